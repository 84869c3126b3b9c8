package sqltable

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/sessile/sessile/store"
)

// Row is what a codec sees of a row.
type Row struct {
	ID   string // the session's id, as the application's clients say it
	Data []byte // the column of the body
	Time int64  // the time column, in ms since 1970. 0: there is none, or it holds nothing
}

// Codec turns a row into a session's body and back: pure functions. Read(Write(id, x)) is x for every body x that Write
// takes; the same body may be written in several ways in a column. What is not of this form is an error matching
// store.ErrInvalid.
type Codec interface {
	Read(Row) (body []byte, err error)
	// Write fills Data; and Time, if the codec is timed. ID is not looked at.
	Write(id string, body []byte) (Row, error)
	// Timed: the body says what the time column holds. Then a touch has no place to go, and moves nothing.
	Timed() bool
}

// ParseCodec reads what a URL says (codec=): the names of steps with commas between them, from the column to the body, or
// php-object.
func ParseCodec(text string) (Codec, error) {
	if rest, found := strings.CutPrefix(text, "php-object"); found && (rest == "" || rest[0] == ':') {
		return parsePHPObject(rest)
	}
	var c chain
	for _, name := range strings.Split(text, ",") {
		s, there := steps[name]
		if !there {
			return nil, fmt.Errorf("it takes one of, or several with commas between them: %s; or php-object", strings.Join(slices.Sorted(maps.Keys(steps)), ", "))
		}
		c = append(c, s)
	}
	return c, nil
}

// must is for presets.
func must(c Codec, err error) Codec {
	if err != nil {
		panic(err)
	}
	return c
}

// A step is a codec that looks at nothing but the column: read goes towards the body, write towards the column.
type step struct {
	read, write func(in []byte) ([]byte, error)
}

// steps are what a codec may consist of.
var steps = map[string]step{
	// The column is the Base64 of the body, in lines or not. It is written on one line.
	"base64": {decode64, encode64},
	// The same, where a column that is no Base64 is taken for the body itself, as Magento does.
	"base64-or-plain": {func(in []byte) ([]byte, error) {
		if raw, err := decode64(in); err == nil {
			return raw, nil
		}
		return in, nil
	}, encode64},
	// The body is the Base64 of the column, in lines of 76 characters with a line feed behind each, as Perl's
	// MIME::Base64 writes it, or on one line without any. A body in another form is refused: it would not come back as it was.
	"to-base64":      exact(func(in []byte) []byte { return mime64(in, 76) }, decode64),
	"to-base64-line": exact(func(in []byte) []byte { return base64.StdEncoding.AppendEncode(nil, in) }, decode64),
	// The body is a string as PHP's serialize() writes it, s:3:"abc"; and the column is what is in it (Laravel's in Redis).
	"php-string": exact(func(in []byte) []byte { return fmt.Appendf(nil, "s:%d:\"%s\";", len(in), in) }, phpString),
	// The column is the body compressed by PHP's gzdeflate().
	"deflate": {inflate, deflate},
	// The column is JSON in UTF-8; the body is it in Latin-1, with escapes for what that has not, as Perl's JSON and Redis
	// (2.000) have it between them.
	"json-latin1": {jsonToLatin1, latin1ToUTF8},
}

// identity: the column holds the body.
var identity = chain{}

// chain is steps one after another.
type chain []step

func (c chain) Read(r Row) (body []byte, err error) {
	body = r.Data
	for _, s := range c {
		if body, err = s.read(body); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func (c chain) Write(_ string, body []byte) (r Row, err error) {
	r.Data = body
	for _, s := range slices.Backward(c) {
		if r.Data, err = s.write(r.Data); err != nil {
			return Row{}, err
		}
	}
	return r, nil
}

func (chain) Timed() bool { return false }

func invalid(format string, args ...any) error {
	return fmt.Errorf("store/sqltable: %w: %s", store.ErrInvalid, fmt.Sprintf(format, args...))
}

// exact is a step whose reading takes everything, and whose writing takes only what reading makes of the result again.
func exact(read func([]byte) []byte, write func([]byte) ([]byte, error)) step {
	return step{
		func(in []byte) ([]byte, error) { return read(in), nil },
		func(in []byte) ([]byte, error) {
			out, err := write(in)
			if err == nil && !bytes.Equal(read(out), in) {
				err = invalid("the body is written in another way than the codec writes it")
			}
			return out, err
		},
	}
}

func encode64(in []byte) ([]byte, error) { return base64.StdEncoding.AppendEncode(nil, in), nil }

func decode64(in []byte) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().AppendDecode(nil, in) // skips line feeds
	if err != nil {
		return nil, invalid("not Base64")
	}
	return raw, nil
}

func mime64(in []byte, line int) []byte {
	text := base64.StdEncoding.AppendEncode(nil, in)
	out := make([]byte, 0, len(text)+len(text)/line+1)
	for part := range slices.Chunk(text, line) {
		out = append(append(out, part...), '\n')
	}
	return out
}

// phpString is what is in a serialized string; exact compares the length that it says.
func phpString(in []byte) ([]byte, error) {
	_, rest, found := bytes.Cut(in, []byte(`:"`))
	if !found || !bytes.HasPrefix(in, []byte("s:")) || !bytes.HasSuffix(rest, []byte(`";`)) {
		return nil, invalid("not a serialized string of PHP")
	}
	return rest[:len(rest)-2], nil
}

func jsonToLatin1(in []byte) (out []byte, err error) {
	for len(in) > 0 {
		r, n := utf8.DecodeRune(in)
		switch {
		case r == utf8.RuneError && n == 1:
			return nil, invalid("not UTF-8")
		case r <= 0xff:
			out = append(out, byte(r))
		default: // in JSON such a letter is in a string
			for _, unit := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, "\\u%04x", unit)
			}
		}
		in = in[n:]
	}
	return out, nil
}

func latin1ToUTF8(in []byte) (out []byte, err error) {
	for _, b := range in {
		out = utf8.AppendRune(out, rune(b))
	}
	return out, nil
}

// maxInflated is the most that is made of a few bytes, in bytes.
const maxInflated = 64 << 20

func inflate(in []byte) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(in)), maxInflated+1))
	if err != nil || len(out) > maxInflated {
		return nil, invalid("not compressed by gzdeflate, or too large")
	}
	return out, nil
}

func deflate(in []byte) ([]byte, error) {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.DefaultCompression) // the level is a valid one
	w.Write(in)                                           // a buffer takes everything
	w.Close()
	return b.Bytes(), nil
}
