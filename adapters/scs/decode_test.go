package scsstore_test

import (
	"bytes"
	"encoding/gob"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/store"
)

type address struct{ Street string }

func init() { gob.Register(address{}) }

func encoded(t testing.TB, deadline time.Time, values map[string]any) []byte {
	t.Helper()
	b, err := scs.GobCodec{}.Encode(deadline, values)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var someValues = map[string]any{
	"user": "alice", "n": 7, "big": int64(1) << 60, "small": int32(-5), "price": 1.5, "ok": true, "raw": []byte{0, 1}, "list": []string{"a", "b"},
	"at": time.Unix(1_700_000_000, 5).UTC(), "where": address{"Main Street"}, "__rememberMe": true,
}

func init() { gob.Register(time.Time{}) }

func TestDecode(t *testing.T) {
	deadline := time.Now().Add(time.Hour)
	for _, codec := range []scs.Codec{nil, scs.GobCodec{}, &scs.GobCodec{}, otherCodec{}} {
		got, values, err := scsstore.Decode(codec, encoded(t, deadline, someValues))
		if !got.Equal(deadline) || !reflect.DeepEqual(values, someValues) || err != nil {
			t.Errorf("%T: got %v, %v, %v", codec, got, values, err)
		}
		if _, values, err := scsstore.Decode(codec, encoded(t, deadline, nil)); values == nil || len(values) != 0 || err != nil {
			t.Errorf("%T: no values: got %v, %v", codec, values, err)
		}
	}
}

// otherCodec is one that a site has made itself.
type otherCodec struct{ scs.GobCodec }

type panics struct{ scs.Codec }

func (panics) Decode([]byte) (time.Time, map[string]any, error) { panic("index out of range") }

// claiming has the record's map say that it has as many entries as count, written as gob does.
func claiming(t testing.TB, count string) []byte {
	t.Helper()
	b := encoded(t, time.Now(), map[string]any{"abc": "x"})
	at, old := bytes.Index(b, []byte("\x01\x03abc")), 0
	for next := 0; next < len(b); next += 1 + int(b[next]) { // messages, each with its length, which is less than 128
		if b[next] > 127 {
			t.Fatal("a long message")
		}
		old = next
	}
	if at < old {
		t.Fatal("gob writes maps in another way")
	}
	b[old] += byte(len(count) - 1)
	return []byte(string(b[:at]) + count + string(b[at+1:]))
}

func TestDecodeOfWhatIsNone(t *testing.T) {
	whole := encoded(t, time.Now(), someValues)
	if b := claiming(t, "\x01"); len(b) == 0 {
		t.Fatal()
	} else if _, values, err := scsstore.Decode(nil, b); values["abc"] != "x" || err != nil {
		t.Fatalf("got %v, %v", values, err)
	}
	for _, c := range []struct {
		name  string
		codec scs.Codec
		b     []byte
	}{
		{"nothing", nil, nil},
		{"text", nil, []byte("user|i:1;")},
		{"half of one", nil, whole[:len(whole)/2]},
		{"one byte less", nil, whole[:len(whole)-1]},
		{"a length beyond the end", nil, []byte("\xf8\x7f\xff\xff\xff\xff\xff\xff\xff")},
		{"a map of 2^39 entries", nil, claiming(t, "\xfb\x80\x00\x00\x00\x00")},
		{"a map of -1 entries", nil, claiming(t, "\xf8\xff\xff\xff\xff\xff\xff\xff\xff")},
		{"a type that nobody has registered", nil, bytes.Replace(whole, []byte(".address"), []byte(".adreess"), 1)},
		{"a codec that panics", panics{}, whole},
		{"too large", nil, make([]byte, scsstore.MaxRecord+1)},
	} {
		deadline, values, err := scsstore.Decode(c.codec, c.b)
		if !errors.Is(err, store.ErrInvalid) || values != nil || !deadline.IsZero() {
			t.Errorf("%s: got %v, %v, %v, want ErrInvalid", c.name, deadline, values, err)
		}
		if c.name == "a type that nobody has registered" && !strings.Contains(err.Error(), "adreess") {
			t.Errorf("%s: %v does not name it", c.name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, time.Now(), someValues))
	f.Add(encoded(f, time.Now(), nil))
	f.Add(claiming(f, "\xfb\x80\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		deadline, values, err := scsstore.Decode(nil, b)
		if err != nil {
			if !errors.Is(err, store.ErrInvalid) || values != nil {
				t.Fatalf("got %v, %v", values, err)
			}
			return
		}
		again, err := scs.GobCodec{}.Encode(deadline, values)
		if err != nil {
			return // a time of a zone that cannot be written, say
		}
		if d, v, err := scsstore.Decode(nil, again); err != nil || !d.Equal(deadline) || len(v) != len(values) {
			t.Fatalf("again: got %v, %v, %v, want %v, %v", d, v, err, deadline, values)
		}
	})
}
