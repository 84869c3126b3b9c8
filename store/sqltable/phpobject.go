package sqltable

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// phpObject is for handlers that keep id, time of access and data in columns, and in Redis the three in one value of
// PHP's serialize(), an object or an array:
//
//	O:8:"stdClass":3:{s:2:"id";s:3:"abc";s:6:"access";i:1763715600;s:4:"data";s:13:"user|s:1:"a";";}
//
// The time column is what the body says. What is written in any other way (another order, a field more, a number as a
// string) is refused: it would not come back byte for byte.
type phpObject struct {
	class  string // "": an array
	fields []phpField
}

// phpField is a field's name, as it is serialized, and what is in it.
type phpField struct{ role, name string }

const (
	roleID         = "id"
	roleAccess     = "access"      // in seconds since 1970, a number
	roleAccessText = "access-text" // the same as a string
	roleData       = "data"
)

// parsePHPObject reads what may stand behind the codec's name: the class, and which field has what, in their order.
func parsePHPObject(text string) (Codec, error) {
	if text == "" {
		text = ":stdClass:id=id:access=access:data=data"
	}
	parts := strings.Split(text, ":")
	c := phpObject{class: parts[1]}
	has := map[string]bool{}
	for _, part := range parts[2:] {
		role, name, ok := strings.Cut(part, "=")
		kind := strings.TrimSuffix(role, "-text")
		if !ok || name == "" || has[kind] || !slices.Contains([]string{roleID, roleAccess, roleAccessText, roleData}, role) {
			return nil, fmt.Errorf("php-object takes :class (none for an array), and for each field, in their order, one of :id=name, :access=name, :access-text=name, :data=name")
		}
		has[kind] = true
		c.fields = append(c.fields, phpField{role, name})
	}
	if !has[roleData] || !has[roleAccess] {
		return nil, fmt.Errorf("php-object needs :data=name and :access=name, or :access-text=name")
	}
	return c, nil
}

// lastSecond is the last one of the year 9999. What is later is no time of access.
const lastSecond = 253402300799

func (c phpObject) Read(r Row) ([]byte, error) {
	at := r.Time / 1000
	if at <= 0 || at > lastSecond {
		return nil, invalid("no time of access")
	}
	b := make([]byte, 0, len(r.Data)+len(r.ID)+len(c.class)+128)
	if c.class == "" {
		b = fmt.Appendf(b, "a:%d:{", len(c.fields))
	} else {
		b = fmt.Appendf(b, "O:%d:\"%s\":%d:{", len(c.class), c.class, len(c.fields))
	}
	for _, f := range c.fields {
		b = appendPHPString(b, []byte(f.name))
		switch f.role {
		case roleID:
			b = appendPHPString(b, []byte(r.ID))
		case roleAccess:
			b = fmt.Appendf(b, "i:%d;", at)
		case roleAccessText:
			b = appendPHPString(b, strconv.AppendInt(nil, at, 10))
		case roleData:
			b = appendPHPString(b, r.Data)
		}
	}
	return append(b, '}'), nil
}

func appendPHPString(b, s []byte) []byte {
	b = append(strconv.AppendInt(append(b, "s:"...), int64(len(s)), 10), `:"`...)
	return append(append(b, s...), `";`...)
}

// Write finds the two values that it does not know, and then writes the body itself: what comes out has to be what came in.
func (c phpObject) Write(id string, body []byte) (Row, error) {
	r := Row{ID: id}
	_, rest, _ := bytes.Cut(body, []byte("{"))
	for _, f := range c.fields {
		_, after, ok := bytes.Cut(rest, appendPHPString(nil, []byte(f.name)))
		if !ok {
			return Row{}, invalid("not an object of PHP with these fields")
		}
		value, after, ok := cutPHPScalar(after)
		if !ok {
			return Row{}, invalid("not a value of PHP")
		}
		rest = after
		switch f.role {
		case roleAccess, roleAccessText:
			at, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || at > lastSecond {
				return Row{}, invalid("not a time of access")
			}
			r.Time = 1000 * at
		case roleData:
			r.Data = value
		}
	}
	again, err := c.Read(r)
	if err != nil {
		return Row{}, err
	}
	if !bytes.Equal(again, body) {
		return Row{}, invalid("the object is written in another way than the codec writes it")
	}
	return r, nil
}

func (phpObject) Timed() bool { return true }

// cutPHPScalar cuts a string or an integer off the front, without looking closely.
func cutPHPScalar(b []byte) (value, rest []byte, ok bool) {
	if number, found := bytes.CutPrefix(b, []byte("i:")); found {
		return bytes.Cut(number, []byte(";"))
	}
	text, found := bytes.CutPrefix(b, []byte("s:"))
	length, text, ok := bytes.Cut(text, []byte(`:"`))
	n, err := strconv.Atoi(string(length))
	if !found || !ok || err != nil || n < 0 || n > len(text)-len(`";`) {
		return nil, nil, false
	}
	return text[:n], text[n+len(`";`):], true
}
