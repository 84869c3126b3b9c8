package redis

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// canned is a connection to somebody who says all at once and closes it.
type canned struct {
	net.Conn // nil: nothing else is called
	says     *bytes.Reader
}

func (c canned) Read(b []byte) (int, error)       { return c.says.Read(b) }
func (c canned) Write(b []byte) (int, error)      { return len(b), nil }
func (c canned) SetReadDeadline(time.Time) error  { return nil }
func (c canned) SetWriteDeadline(time.Time) error { return nil }

// Whatever answers at a Sentinel's address, a view has a name and an address in it, and what is heard is what was published.
func FuzzSentinel(f *testing.F) {
	const master = "*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n*6\r\n$12\r\nconfig-epoch\r\n$1\r\n1\r\n$5\r\nflags\r\n$6\r\nmaster\r\n$14\r\nlast-ping-sent\r\n$2\r\n12\r\n"
	f.Add([]byte(master + "*1\r\n*4\r\n$2\r\nip\r\n$9\r\n127.0.0.2\r\n$5\r\nrunid\r\n$1\r\nx\r\n$40\r\n" + strings.Repeat("a", 40) + "\r\n"))
	f.Add([]byte(master + "*0\r\n:1\r\n"))
	f.Add([]byte("*-1\r\n-ERR No such master with that name\r\n-ERR No such master with that name\r\n+x\r\n"))
	f.Add([]byte("*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$5\r\n+odown\r\n$15\r\nmaster mymaster \r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		conn := func() *sentinelConn {
			return &sentinelConn{nc: canned{says: bytes.NewReader(data)}, opt: &SentinelOptions{}}
		}
		if v, err := conn().ask("mymaster"); err == nil && (v.id == "" || v.addr == "") {
			t.Errorf("a view without a name or an address: %+v", v)
		}
		_ = conn().listen(func(e event) {
			if !bytes.Contains(data, []byte(e.name)) || !bytes.Contains(data, []byte(e.about)) {
				t.Errorf("nobody has said %+v", e)
			}
		})
	})
}

// What stands in the registry and in gone markers others have written, perhaps of another version.
func FuzzRegistry(f *testing.F) {
	f.Add("g", record{beat: 7, marks: true, memory: "a-b", step: serving, puts: 1, seen: 2}.String())
	f.Add("=a-b", "refill")
	f.Add("", "gone 1700000000000 abc")
	f.Fuzz(func(t *testing.T, id, text string) {
		if r, ok := parseRecord(text); ok {
			if again, ok := parseRecord(r.String()); !ok || again != r {
				t.Errorf("%+v is written as %q", r, r.String())
			}
		}
		fleet, now := newFleet("self"), time.Now()
		for i := range 3 {
			fleet.note(map[string]string{id: text, "self": text}, "a-b", now.Add(time.Duration(i)*time.Second))
			fleet.at(serving, "a-b")
			fleet.seen(fleet.puts("a-b"))
		}
		if n := fleet.living(); n < 1 || n > 2 {
			t.Errorf("%d live", n)
		}
		if end, _, ok := readGone(text); ok && end == 0 && !strings.Contains(text, "0") {
			t.Errorf("%q has an end", text)
		}
	})
}
