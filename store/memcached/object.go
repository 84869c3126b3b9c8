package memcached

import (
	"encoding/binary"
	"fmt"

	"github.com/sessile/sessile/store"
)

// An object of class Memcached notes in an item's flags what it has made of a value: its type, 0 for a string, and whether it has
// compressed it, as it does from 2,000 bytes on (memcached.compression_threshold; php_memcached.c, MEMC_VAL_...).
const (
	objectType       = 0x0f
	objectCompressed = 0x10
	objectZlib       = 0x20
	objectFastlz     = 0x40
)

// object returns the string that an object would read. It is written back uncompressed, with no flags, which an object reads
// as well.
func object(it *item, limit int) ([]byte, error) {
	refused := func(why string) ([]byte, error) {
		return nil, fmt.Errorf("store/memcached: %w", &store.RefusedError{Reason: why})
	}
	switch {
	case it.flags&objectType != 0:
		return refused("not a string")
	case it.flags&objectCompressed == 0:
		return it.data, nil
	case len(it.data) < 4:
		return refused("not compressed as its flags say")
	}
	size, body := binary.LittleEndian.Uint32(it.data), it.data[4:]
	switch {
	case uint64(size) > uint64(limit):
		return refused("too large")
	case it.flags&objectZlib != 0:
		data, err := inflate(body, limit)
		if err == nil && len(data) != int(size) {
			return refused("not compressed as its flags say")
		}
		return data, err
	case it.flags&objectFastlz != 0:
		if data := unfastlz(body, int(size)); data != nil {
			return data, nil
		}
	}
	return refused("not compressed as its flags say")
}

// unfastlz decompresses FastLZ 0.1, which is what php-memcached comes with, or returns nil if it is not that, and of that size. A
// block begins with a literal run whose first bits say which of two levels it is.
func unfastlz(in []byte, size int) []byte {
	if len(in) == 0 || in[0]>>5 > 1 {
		return nil
	}
	far := in[0]>>5 == 1 // level 2: long matches, and far ones
	out := make([]byte, 0, size)
	i, ok := 0, true
	next := func() int {
		if i >= len(in) {
			ok = false
			return 0
		}
		i++
		return int(in[i-1])
	}
	for ctrl := next() & 31; ok; ctrl = next() {
		if ctrl < 32 { // literals
			n := ctrl + 1
			if i+n > len(in) || len(out)+n > size {
				return nil
			}
			out = append(out, in[i:i+n]...)
			i += n
		} else {
			n, back := ctrl>>5-1, (ctrl&31)<<8
			if n == 6 {
				more := next()
				for n += more; far && more == 255 && ok; n += more {
					more = next()
				}
			}
			low := next()
			if back += low; far && back == 31<<8+255 {
				back = next() << 8
				back += next() + 8191
			}
			from := len(out) - back - 1
			if n += 3; !ok || from < 0 || len(out)+n > size {
				return nil
			}
			for k := range n { // it may overlap with what it makes
				out = append(out, out[from+k])
			}
		}
		if i == len(in) {
			break
		}
	}
	if !ok || len(out) != size {
		return nil
	}
	return out
}
