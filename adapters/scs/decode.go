package scsstore

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/sessile/sessile/store"
)

// MaxRecord is the size in bytes of the largest record that Decode reads.
const MaxRecord = 4 << 20

// Decode reads a record that codec has written (nil: scs.GobCodec, the default of scs): the session's absolute deadline and its values.
// As with scs the types of values have to be known to gob (gob.Register).
//
// What it cannot read is an error that matches store.ErrInvalid, and never a panic, whatever the bytes are. One thing is left, which is
// gob's: for a map inside a value (of a type that was registered) it reserves as much memory as the record says that the map has entries.
func Decode(codec scs.Codec, b []byte) (deadline time.Time, values map[string]any, err error) {
	if len(b) > MaxRecord {
		return time.Time{}, nil, fmt.Errorf("adapters/scs: a record of %d bytes: %w", len(b), store.ErrInvalid)
	}
	defer func() {
		if r := recover(); r != nil { // a map of fewer entries than none has gob panic; other codecs are other people's
			err = fmt.Errorf("%v", r)
		}
		if err != nil {
			deadline, values, err = time.Time{}, nil, fmt.Errorf("adapters/scs: %w: the codec: %v", store.ErrInvalid, err)
		}
	}()
	switch codec.(type) {
	case nil, scs.GobCodec, *scs.GobCodec:
		deadline, values, err = decodeGob(b)
	default:
		deadline, values, err = codec.Decode(b)
	}
	if values == nil {
		values = map[string]any{}
	}
	return deadline, values, err
}

// decodeGob does what scs.GobCodec does, into a map that is there: for one that is not, gob makes room for as many entries as the record
// says, before it has seen one, and fifty bytes can ask for more memory than there is.
func decodeGob(b []byte) (time.Time, map[string]any, error) {
	rec := struct {
		Deadline time.Time
		Values   map[string]any
	}{Values: map[string]any{}}
	err := gob.NewDecoder(bytes.NewReader(b)).Decode(&rec)
	return rec.Deadline, rec.Values, err
}
