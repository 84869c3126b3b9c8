package sqltable_test

import (
	"bytes"
	"testing"

	"github.com/sessile/sessile/store/sqltable"
)

func TestJSONLatin1(t *testing.T) {
	c := codec("json-latin1")
	body, err := c.Read(sqltable.Row{Data: []byte(`{"a":"é€🍀"}`)})
	if want := "{\"a\":\"\xe9\\u20ac\\ud83c\\udf40\"}"; err != nil || string(body) != want {
		t.Errorf("got %q, %v, want %q", body, err, want)
	}
	if row, err := c.Write("", body); err != nil || string(row.Data) != `{"a":"é\u20ac\ud83c\udf40"}` {
		t.Errorf("got %q, %v", row.Data, err)
	}
	if body, err := c.Read(sqltable.Row{Data: []byte("\xe9")}); err == nil {
		t.Errorf("what is not UTF-8 became %q", body)
	}
}

// Every body comes back from the column as it was.
func FuzzJSONLatin1(f *testing.F) {
	f.Add([]byte("{\"a\":\"\xe9\"}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := codec("json-latin1")
		row, err := c.Write("", body)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := c.Read(row); err != nil || !bytes.Equal(back, body) {
			t.Errorf("%q came back as %q, %v", body, back, err)
		}
	})
}
