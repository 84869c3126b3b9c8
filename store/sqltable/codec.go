package sqltable

import (
	"encoding/base64"
	"fmt"

	"github.com/sessile/sessile/store"
)

// Codec turns what a column holds into a session's body and back: pure functions. Read(Write(x)) is x for every body x
// that Write takes; the same body may be written in several ways in a column.
type Codec interface {
	// Read makes a body of a column, Write a column of a body. What is not of this form is an error matching
	// store.ErrInvalid.
	Read(column []byte) (body []byte, err error)
	Write(body []byte) (column []byte, err error)
}

// Codecs are all that a URL may name (codec=).
var Codecs = map[string]Codec{
	"":            identity{},
	"base64":      base64Column{},
	"base64-body": base64Body{76},
}

// identity: the column holds the body.
type identity struct{}

func (identity) Read(column []byte) ([]byte, error) { return column, nil }
func (identity) Write(body []byte) ([]byte, error)  { return body, nil }

// base64Column: the column holds the Base64 of the body, in lines or not.
type base64Column struct{}

func (base64Column) Read(column []byte) ([]byte, error) { return decode64(column) }
func (base64Column) Write(body []byte) ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, body), nil
}

// base64Body: the body is the Base64 of the column, in lines of so many characters with a line feed behind each, as
// Perl's MIME::Base64 writes it. A body in another form is refused, because it would not come back as it was.
type base64Body struct{ line int }

func (c base64Body) Read(column []byte) ([]byte, error) {
	text := base64.StdEncoding.AppendEncode(nil, column)
	body := make([]byte, 0, len(text)+len(text)/c.line+1)
	for len(text) > 0 {
		n := min(c.line, len(text))
		body = append(append(body, text[:n]...), '\n')
		text = text[n:]
	}
	return body, nil
}

func (c base64Body) Write(body []byte) ([]byte, error) {
	column, err := decode64(body)
	if err != nil {
		return nil, err
	}
	if again, _ := c.Read(column); string(again) != string(body) {
		return nil, fmt.Errorf("%w: Base64 in lines of another length than %d", store.ErrInvalid, c.line)
	}
	return column, nil
}

func decode64(text []byte) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().AppendDecode(nil, text) // skips line feeds
	if err != nil {
		return nil, fmt.Errorf("%w: not Base64", store.ErrInvalid)
	}
	return raw, nil
}
