package memcached

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// answers is a server that has said all it says.
type answers struct {
	net.Conn
	*bytes.Reader
}

func (a answers) Read(b []byte) (int, error)  { return a.Reader.Read(b) }
func (a answers) Write(b []byte) (int, error) { return len(b), nil }

// FuzzAnswers reads whatever a server says: it ends, takes no more memory than it may, and never takes one item for another's.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		"VALUE a 0 3 7\r\nabc\r\nVALUE b 2 0 8\r\n\r\nEND\r\nHD t12 c7\r\nEN\r\n",
		"VALUE b 4294967295 9999 8\r\nEND\r\n", "VALUE a 0 3 7\r\nabcd\r\nEND\r\n", "SERVER_ERROR out of memory\r\n", "ERROR\r\n",
		"END\r\nHD\r\nHD t-1\r\n", "VALUE a 0 -1 7\r\n", "\r\n", "VALUE a 0 3\r\nabc\r\nEND\r\n", "VALUE b 0 1 1\r\nx\r\nVALUE a 0 1 1\r\ny\r\nEND\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		a := answers{Reader: bytes.NewReader(said)}
		c := &conn{Conn: a, r: bufio.NewReaderSize(a, 64), w: bufio.NewWriter(io.Discard)}
		const limit = 100
		items, err := c.values(limit, "a", "b")
		if err != nil {
			return
		}
		for i, it := range items {
			if it != nil && (len(it.data) > limit || !bytes.Contains(said, []byte("VALUE "+[]string{"a", "b"}[i]+" "))) {
				t.Errorf("item %d is %q", i, it.data)
			}
		}
		for _, it := range items {
			if err := c.age(it); err != nil {
				return
			}
			if it != nil && it.left < unknown {
				t.Errorf("%d seconds left", it.left)
			}
		}
		if _, err := inflate(said, limit); err != nil && errors.Unwrap(err) == nil {
			t.Errorf("inflate: %v", err)
		}
	})
}
