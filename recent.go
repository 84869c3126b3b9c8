package sessile

import (
	"bytes"
	"sync"
	"unsafe"
)

// A recent is a map that is bounded: what was not put for long is forgotten. It is two maps, of which the older one goes when the
// newer one has its fill. Its users see to it that one at a time is in it.
type recent[V any] struct {
	max, size int // of what is in now
	now, old  map[Key]sized[V]
}

type sized[V any] struct {
	v    V
	size int
}

func (r *recent[V]) get(k Key) (v V, ok bool) {
	s, ok := r.now[k]
	if !ok {
		s, ok = r.old[k]
	}
	return s.v, ok
}

func (r *recent[V]) put(k Key, v V, size int) {
	if r.now == nil || r.size >= r.max {
		r.old, r.now, r.size = r.now, map[Key]sized[V]{}, 0
	}
	r.size += size - r.now[k].size
	r.now[k] = sized[V]{v, size}
}

func (r *recent[V]) drop(k Key) {
	r.size -= r.now[k].size
	delete(r.now, k)
	delete(r.old, k)
}

func (r *recent[V]) clear() { r.now, r.old, r.size = nil, nil, 0 }

// A memo keeps what was decoded of late, so that a value is decoded once while it stays the same: that is dearer than to read it. It is for
// values that share nothing when they are copied. A nil one keeps nothing.
type memo[T any] struct {
	mu   sync.Mutex // guards what follows
	last recent[*decoded[T]]
}

type decoded[T any] struct {
	raw   []byte
	rec   *record // nobody changes it
	value T
}

// maxDecoded bounds each of a memo's two maps, in bytes of what was decoded and of the values. Each costs decodedCosts besides.
const maxDecoded, decodedCosts = 8 << 20, 256

func (m *memo[T]) get(k Key, raw []byte) *decoded[T] {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	d, _ := m.last.get(k)
	m.mu.Unlock()
	if d == nil || !bytes.Equal(d.raw, raw) {
		return nil
	}
	return d
}

func (m *memo[T]) put(k Key, raw []byte, rec *record, value T) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last.put(k, &decoded[T]{raw, rec, value}, 2*len(raw)+int(unsafe.Sizeof(value))+decodedCosts)
}
