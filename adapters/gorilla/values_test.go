package gorilla_test

import (
	"bytes"
	"encoding/gob"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/boj/redistore"
	"github.com/gorilla/sessions"

	"github.com/sessile/sessile/adapters/gorilla"
	"github.com/sessile/sessile/store"
)

// written is what boj/redistore lays in Redis. rbcervilla/redisstore does the same with its default, gob.
func written(t testing.TB, s redistore.SessionSerializer, values map[any]any) []byte {
	t.Helper()
	session := sessions.NewSession(nil, "s")
	session.Values = values
	data, err := s.Serialize(session)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type address struct{ Street string }

func init() { gob.Register(address{}) }

func TestDecode(t *testing.T) {
	for name, values := range map[string]map[any]any{
		"nothing":     {},
		"a user":      {"user": "alice", "admin": true},
		"flashes":     {"_flash": []any{"saved", "and", "sent"}},
		"other keys":  {1: "one", true: 2.5, address{"x"}: []byte("bytes")},
		"own types":   {"home": address{"Main Street"}},
		"much":        {"text": strings.Repeat("x", 100_000)},
		"123 letters": {"text": strings.Repeat("{", 123)},
		"no value":    {"nothing": nil},
	} {
		got, err := gorilla.Decode(written(t, redistore.GobSerializer{}, values))
		if err != nil || !reflect.DeepEqual(got, values) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, values)
		}
	}
	values := map[any]any{"user": "alice", "n": 1.5, "list": []any{"a", true, nil}, "{": map[string]any{}}
	for name, values := range map[string]map[any]any{"nothing": {}, "values": values} {
		got, err := gorilla.Decode(written(t, redistore.JSONSerializer{}, values))
		if err != nil || !reflect.DeepEqual(got, values) {
			t.Errorf("JSON, %s: got %v, %v; want %v", name, got, err, values)
		}
	}
	if _, err := gorilla.JSON.Serialize(map[any]any{1: 1}); err == nil {
		t.Error("JSON has a key that is a number")
	}
}

// sliceAsKey is a map in gob one key of which is a slice, which no map can have: one with slices as its values, where the last key and
// its value are changed over. (With the first value comes what its type is.)
func sliceAsKey(t testing.TB) []byte {
	data := written(t, redistore.GobSerializer{}, map[any]any{"k": []any{"v"}, "l": []any{"v"}})
	value := bytes.LastIndex(data, []byte("\x0e[]interface {}"))
	key := bytes.LastIndex(data[:max(0, value)], []byte("\x06string"))
	if key < 0 {
		t.Fatalf("gob writes maps otherwise now: %q", data)
	}
	return bytes.Join([][]byte{data[:key], data[value:], data[key:value]}, nil)
}

func TestDecodeRefuses(t *testing.T) {
	whole := written(t, redistore.GobSerializer{}, map[any]any{"user": "alice", "list": []any{1, "two"}})
	bad := map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "a list": []byte("[1]"), "null": []byte("null"), "half of JSON": []byte(`{"a":`), "too long": make([]byte, gorilla.MaxSize+1),
		"JSON that is too long": []byte(`{"a":"` + strings.Repeat("x", gorilla.MaxSize) + `"}`), "deep JSON": []byte(`{"a":` + strings.Repeat("[", 100_000)),
		"a slice as a key": sliceAsKey(t), "scs": []byte("\xff\x81"), "a long message": []byte("\xfc\x7f\xff\xff\xff"),
	}
	for i := range len(whole) {
		if _, err := gorilla.Decode(whole[:i]); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("cut off after %d bytes: %v", i, err)
		}
	}
	for name, data := range bad {
		if values, err := gorilla.Decode(data); !errors.Is(err, store.ErrInvalid) || values != nil {
			t.Errorf("%s: %v, %v", name, values, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, values := range []map[any]any{{}, {"user": "alice", "n": 1.5}, {"_flash": []any{"x", "y"}, "nil": nil}, {"list": []any{[]any{[]any{}}}, "b": []byte("bytes")}} {
		f.Add(written(f, redistore.GobSerializer{}, values))
	}
	f.Add(written(f, redistore.GobSerializer{}, map[any]any{1: "one", address{"x"}: address{"y"}}))
	f.Add(written(f, redistore.JSONSerializer{}, map[any]any{"user": "alice", "list": []any{1, "two", nil}}))
	f.Add(sliceAsKey(f))
	f.Add([]byte("\xfc\x7f\xff\xff\xff"))
	f.Add([]byte(`{"a":[[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := gorilla.Decode(data)
		switch {
		case err != nil && !errors.Is(err, store.ErrInvalid):
			t.Errorf("the error is of no class: %v", err)
		case err == nil && values == nil:
			t.Error("neither values nor an error")
		}
	})
}
