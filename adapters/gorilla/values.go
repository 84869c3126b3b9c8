package gorilla

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"

	"github.com/sessile/sessile/store"
)

// MaxSize is the size in bytes above which the values of a session are neither saved nor read.
const MaxSize = 1 << 20

// A Serializer makes bytes of the values of a session and values of bytes.
type Serializer interface {
	Serialize(values map[any]any) ([]byte, error)
	Deserialize(data []byte) (map[any]any, error)
}

var (
	// Gob is what gorilla's own stores, boj/redistore and rbcervilla/redisstore write by default. Types other than the basic ones
	// have to be known to gob.Register.
	Gob Serializer = gobSerializer{}
	// JSON is what boj/redistore's JSONSerializer writes. Keys are strings, and numbers come back as float64.
	JSON Serializer = jsonSerializer{}
)

type gobSerializer struct{}

func (gobSerializer) Serialize(values map[any]any) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(values)
	return b.Bytes(), err
}

func (gobSerializer) Deserialize(data []byte) (map[any]any, error) {
	values := map[any]any{}
	err := gob.NewDecoder(bytes.NewReader(data)).Decode(&values)
	return values, err
}

type jsonSerializer struct{}

func (jsonSerializer) Serialize(values map[any]any) ([]byte, error) {
	m := make(map[string]any, len(values))
	for key, value := range values {
		name, ok := key.(string)
		if !ok {
			return nil, fmt.Errorf("a key of type %T: JSON has strings only", key)
		}
		m[name] = value
	}
	return json.Marshal(m)
}

func (jsonSerializer) Deserialize(data []byte) (map[any]any, error) {
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	values := make(map[any]any, len(m))
	for key, value := range m {
		values[key] = value
	}
	return values, nil
}

// Decode reads the values of a session as boj/redistore and rbcervilla/redisstore lay them in Redis, in gob or in JSON. What it cannot
// read, or is longer than MaxSize, is an error that matches store.ErrInvalid.
func Decode(data []byte) (map[any]any, error) {
	// Values in gob begin with the length of the description of their type, which is always the same one and not 123 bytes long.
	if bytes.HasPrefix(data, []byte("{")) {
		return decode(JSON, data)
	}
	return decode(Gob, data)
}

func encode(s Serializer, values map[any]any) ([]byte, error) {
	data, err := s.Serialize(values)
	if err != nil {
		return nil, fmt.Errorf("gorilla: %w: its values cannot be written: %w", store.ErrInvalid, err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("gorilla: %w: its values take %d bytes, and %d are allowed", store.ErrInvalid, len(data), MaxSize)
	}
	return data, nil
}

func decode(s Serializer, data []byte) (values map[any]any, err error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("gorilla: %w: its values take %d bytes, and %d are allowed", store.ErrInvalid, len(data), MaxSize)
	}
	defer func() {
		// encoding/gob is not made for hostile bytes: a key that cannot be one, a slice, ends in a panic of the map's.
		if p := recover(); p != nil {
			values, err = nil, fmt.Errorf("gorilla: %w: its values cannot be read: %v", store.ErrInvalid, p)
		}
	}()
	values, err = s.Deserialize(data)
	if err != nil {
		return nil, fmt.Errorf("gorilla: %w: its values cannot be read: %w", store.ErrInvalid, err)
	}
	return values, nil
}
