package memcache

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
)

// FlagZlib is what php-memcache says of a body that it has compressed (MMC_COMPRESSED). To others it means something else:
// php-memcached says by the same number that a value is a double.
const FlagZlib = 2

// ErrNotZlib: it is not what FlagZlib says.
var ErrNotZlib = errors.New("memcache: not zlib")

// Inflate returns what zlib has made of a body, or ErrTooLarge where that has over limit bytes.
func Inflate(b []byte, limit int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(b))
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(r, int64(limit)+1))
	}
	switch {
	case err != nil:
		return nil, ErrNotZlib
	case len(data) > limit:
		return nil, ErrTooLarge
	}
	return data, nil
}
