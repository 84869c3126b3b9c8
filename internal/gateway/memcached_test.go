package gateway

import (
	"bytes"
	"compress/zlib"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// startMemcached starts a gateway for memcached's clients; params are the listener's.
func startMemcached(t testing.TB, site Site, params string) *gateway {
	t.Helper()
	l, err := ListenURL("memcached://127.0.0.1:0?" + params)
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, site, Options{}, l)
}

// says sends b and checks that want comes, and nothing else before the answer to what follows.
func (c *client) says(want, b string) {
	c.t.Helper()
	c.send(b)
	if got := c.read(len(want)); got != want {
		c.t.Errorf("%.200q: got %.300q, want %.300q", b, got, want)
	}
}

// read reads n bytes, or what there is before the end, or within the patience that a test has.
func (c *client) read(n int) string {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	for len(c.buf) < n {
		var b [32 << 10]byte
		k, err := c.nc.Read(b[:])
		if c.buf = append(c.buf, b[:k]...); k == 0 && err != nil {
			break
		}
	}
	n = min(n, len(c.buf))
	got := string(c.buf[:n])
	c.buf = bytes.Clone(c.buf[n:])
	return got
}

// pkt is a request of the binary protocol.
func pkt(opcode byte, extras, key, value string, cas uint64) string {
	b := []byte{0x80, opcode, 0, byte(len(key)), byte(len(extras)), 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(len(extras)+len(key)+len(value)))
	b = append(b, "opaq"...)
	b = binary.BigEndian.AppendUint64(b, cas)
	return string(b) + extras + key + value
}

func be32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }
func be64(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }

// A talker has one conversation twice: with memcached and with the gateway. Tokens differ, so that each is told its own.
type talker struct {
	*client
	cas uint64
}

var textToken = regexp.MustCompile(`(VALUE \S+ \d+ \d+ | c)(\d+)`)

// text sends one step of a text conversation and returns what is answered.
func (c *talker) text(step string) string {
	c.send(strings.ReplaceAll(step, "{cas}", fmt.Sprint(c.cas)) + "mn\r\n")
	var got []byte
	for !bytes.HasSuffix(got, []byte("MN\r\n")) {
		got = append(got, c.line()...)
	}
	for _, m := range textToken.FindAllSubmatch(got, -1) {
		fmt.Sscan(string(m[2]), &c.cas)
	}
	return textToken.ReplaceAllString(string(got), "${1}CAS")
}

// binary is text for the binary protocol: a step is packets, each with cas where it says so.
func (c *talker) binary(step func(cas uint64) string) string {
	c.send(step(c.cas) + pkt(0x0a, "", "", "", 0))
	var all strings.Builder
	for {
		head := c.read(24)
		if len(head) < 24 {
			return all.String() + "closed"
		}
		body := c.read(int(binary.BigEndian.Uint32([]byte(head[8:12]))))
		if head[1] == 0x0a {
			return all.String()
		}
		switch cas := binary.BigEndian.Uint64([]byte(head[16:])); {
		case head[1] == 0x1c || head[1] == 0x02 && c.cas != 0: // a touch costs no read, and the answer to a question has no token
			head = head[:16]
		case cas != 0:
			c.cas = cas
			head = head[:16] + "has a CAS"
		}
		fmt.Fprintf(&all, "%q %q\n", head, body)
	}
}

// What a client of memcached is answered, it is answered by the gateway: the same conversations with both. The exceptions are in
// TestMemcachedRefusals.
func TestMemcachedAnswersLikeMemcached(t *testing.T) {
	real := testserver.Memcached(t)
	gw := startMemcached(t, Site{}, "client=php-memcache")
	dial := func(network, addr string) *talker {
		nc, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		return &talker{client: newClient(t, nc)}
	}
	theirs, ours := dial(real.Network, real.Addr), dial("tcp", gw.addr.String())
	for _, step := range strings.Split(`get a
set a 0 100 1|x
get a
gets b a b a
get a  b
add a 0 100 1|y
add b 0 100 0|
get b
replace c 0 100 1|x
replace a 0 100 2|xy
append a 0 0 1|z
prepend a 0 0 1|w
append c 0 0 1|z
prepend c 0 0 1|z
gets a
cas a 0 100 1 {cas}|q
cas a 0 100 1 {cas}|r
cas c 0 100 1 {cas}|r
gets a
cas a 0 100 1 {cas} noreply|s
get a
touch a 50
touch c 50
gat 60 a c
gats 60 a
gat -1 a
get a
set a 0 -1 1|x
get a
set a 0 2678400 1|x
get a
set a 0 100 1|x
add a 0 2678400 0|
add c 0 2678400 0|
get a c
add c 0 -1 0|
get c
touch a -1
get a
set n 0 100 2|10
incr n 5
decr n 3
decr n 100
incr n 18446744073709551615
incr n 2
incr c 1
decr c 1
incr n 1 noreply
set s 0 100 1|x
incr s 1
set s 0 100 1 noreply|y
add s 0 100 1 noreply|z
replace s 0 100 1 noreply|z
append s 0 100 1 noreply|z
touch s 100 noreply
get s
delete s noreply
delete s
delete n 0
delete n
verbosity 1
verbosity 1 noreply
mg a
mg a v
set m 0 100 2|ab
mg m
mg m v
mg m s v f k O123 c
mg m q v
mg c q v
mg c k O1
mg m T50 v
ms m 2|cd
mg m v
ms m 2 T100 ME|cd
ms c2 2 T100 MR|cd
ms c2 2 T100 MA|cd
ms m 2 T100 MA|ef
ms m 2 MP|gh
mg m s v c
ms m 2 C{cas} T100|ij
ms m 2 C{cas} T100|kl
ms m 2 q T100 O7 k|mn
mg m v
md m q
md m q
md m k O2
set f 5 100 1|x
get f
append f 7 0 1|y
get f
prepend f 0 0 1|w
gets f
set f 0 100 3|wxy
cas f 5 100 1 {cas}|z
get f
set f 4294967295 100 1|x
add f 3 100 1|y
gat 50 f
gets f
cas f 9 100 1 {cas}|z
cas f 1 100 1 {cas}|z
touch f 40
get f
replace f 3 100 1|z
mg f f v
ms f 2 F12 T100|kl
mg f f v
ms f 2 T100|kl
mg f f v
set n 6 100 1|1
incr n 5
get n
add e 8 100 0|
gets e
delete e
delete n
mn
mx
get
get `+strings.Repeat("x", 250)+`
get `+strings.Repeat("x", 251)+`
GET a
`, "\n") {
		if step = strings.ReplaceAll(step, "|", "\r\n") + "\r\n"; step == "\r\n" {
			continue
		}
		if want, got := theirs.text(step), ours.text(step); got != want {
			t.Errorf("%.100q: got %q, memcached says %q", step, got, want)
		}
	}

	theirs, ours = dial(real.Network, real.Addr), dial("tcp", gw.addr.String())
	ex := func(exptime uint32) string { return be32(0) + be32(exptime) }
	p := func(opcode byte, extras, key, value string) func(uint64) string {
		return func(uint64) string { return pkt(opcode, extras, key, value, 0) }
	}
	if want, got := theirs.text("delete a\r\ndelete b\r\ndelete c\r\n"), ours.text("delete a\r\ndelete b\r\ndelete c\r\n"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	theirs, ours = dial(real.Network, real.Addr), dial("tcp", gw.addr.String())
	for i, step := range []func(cas uint64) string{
		p(0x00, "", "a", ""), p(0x0c, "", "a", ""), p(0x09, "", "a", ""), p(0x0d, "", "a", ""),
		p(0x01, ex(100), "a", "x"), p(0x00, "", "a", ""), p(0x0c, "", "a", ""), p(0x09, "", "a", ""), p(0x0d, "", "a", ""),
		p(0x02, ex(100), "a", "y"), p(0x02, ex(100), "b", ""), p(0x03, ex(100), "c", "y"), p(0x03, ex(100), "b", "z"),
		p(0x12, ex(100), "a", "y"), p(0x11, ex(100), "a", "y"), p(0x13, ex(100), "c", "y"), p(0x00, "", "a", ""),
		p(0x0e, "", "a", "z"), p(0x0f, "", "a", "w"), p(0x19, "", "a", "z"), p(0x0e, "", "c", "z"), p(0x19, "", "c", "z"), p(0x00, "", "a", ""),
		func(cas uint64) string { return pkt(0x01, ex(100), "a", "q", cas) },
		func(cas uint64) string { return pkt(0x01, ex(100), "a", "r", cas+1) },
		func(cas uint64) string { return pkt(0x01, ex(100), "c", "r", 5) },
		func(cas uint64) string { return pkt(0x02, ex(100), "c", "r", 5) },
		p(0x00, "", "a", ""),
		func(cas uint64) string { return pkt(0x0e, "", "a", "r", cas+1) },
		func(cas uint64) string { return pkt(0x04, "", "a", "", 5) },
		p(0x00, "", "a", ""),
		func(cas uint64) string { return pkt(0x04, "", "a", "", cas) },
		p(0x04, "", "a", ""), p(0x14, "", "a", ""), p(0x14, "", "b", ""),
		p(0x02, ex(2678400), "a", ""), p(0x00, "", "a", ""), p(0x01, ex(100), "a", "x"), p(0x02, ex(2678400), "a", ""), p(0x00, "", "a", ""),
		p(0x1c, be32(100), "a", ""), p(0x1c, be32(100), "c", ""), p(0x1d, be32(100), "a", ""), p(0x1d, be32(100), "c", ""), p(0x1e, be32(100), "c", ""),
		p(0x23, be32(100), "a", ""), p(0x24, be32(100), "c", ""),
		p(0x05, be64(1)+be64(7)+be32(100), "n", ""), p(0x05, be64(1)+be64(7)+be32(100), "n", ""), p(0x06, be64(2)+be64(7)+be32(100), "n", ""),
		p(0x15, be64(1)+be64(7)+be32(100), "n", ""), p(0x05, be64(1)+be64(7)+be32(1<<32-1), "c", ""), p(0x05, be64(1)+be64(7)+be32(100), "a", ""),
		p(0x01, be32(5)+be32(100), "h", "x"), p(0x00, "", "h", ""), p(0x0e, "", "h", "y"), p(0x0c, "", "h", ""), p(0x03, be32(1<<31)+be32(100), "h", "x"),
		func(cas uint64) string { return pkt(0x01, be32(6)+be32(100), "h", "x", cas) }, p(0x00, "", "h", ""), p(0x1d, be32(100), "h", ""),
		p(0xff, "", "", ""), p(0x04, "", "n", ""),
	} {
		if want, got := theirs.binary(step), ours.binary(step); got != want {
			t.Errorf("step %d: got %s, memcached says %s", i, got, want)
		}
	}
}

// reliability.md, c2, by number: what only the parser decides is tested in internal/memcache as well; here it is whether the
// connection does what the parser says.
func TestMemcachedHostileBytes(t *testing.T) {
	const closed = "closed"
	refused := func(why string) string { return "CLIENT_ERROR " + why + "\r\n" }
	format := refused("bad command line format")
	long := strings.Repeat("x", 251)
	header := func(opcode byte, key, extras, dataType byte, body uint32) string {
		return string([]byte{0x80, opcode, 0, key, extras, dataType, 0, 0}) + be32(body) + "opaq" + be64(0)
	}
	answer := func(opcode byte, status uint16, body string) string {
		return string([]byte{0x81, opcode, 0, 0, 0, 0, 0, byte(status)}) + be32(uint32(len(body))) + "opaq" + be64(0) + body
	}
	// After each of these the connection is still in use, unless want ends in closed.
	cases := []struct{ name, send, want string }{
		{"1 empty line", "\r\n", "ERROR\r\n"},
		{"2 no key", "get\r\n", "ERROR\r\n"},
		{"3 a key of 250", "get " + long[1:] + "\r\n", "END\r\n"},
		{"4 a key of 251", "get " + long + "\r\n", format},
		{"5 NUL", "get a\x00b\r\n", format},
		{"6 a tab", "get a\tb\r\n", format},
		{"7 DEL", "get a\x7fb\r\n", format},
		{"7 a control character", "get \x01\r\n", format},
		{"8 two keys", "get  a  b\r\n", "END\r\n"},
		{"9 capitals", "GET a\r\n", "ERROR\r\n"},
		{"10 many keys", "get" + strings.Repeat(" k", 3000) + "\r\n", refused("too many keys")},
		{"11 bare LF", "get a\nget a\n", format + format},
		{"12 data too long", "set a 0 0 3\r\nab\r\nversion\r\n", refused("bad data chunk") + closed},
		{"13 a negative length", "set a 0 0 -1\r\n", format + closed},
		{"14 a huge length", "set a 0 0 2147483647\r\n", format + closed},
		{"15 one byte too many", "set a 0 0 1048577\r\n" + strings.Repeat("x", 1048577) + "\r\n", "SERVER_ERROR object too large for cache\r\n"},
		{"16 negative flags", "set a -1 0 1\r\nx\r\n", format},
		{"17 no time", "set a 0 abc 1\r\nx\r\n", format},
		{"18 too many words", "set a 0 0 1 noreply extra\r\nx\r\n", "ERROR\r\n"},
		{"19 noreply", "set a 0 0 1 noreply\r\nx\r\nget a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n"},
		{"20 data of a refused key", "set " + long + " 0 0 11\r\nflush_all\r\n\r\n", format},
		{"22 gone at once", "set a 0 -1 1\r\nx\r\nget a\r\n", "STORED\r\nEND\r\n"},
		{"23 a time of 33 bits", "set a 0 4294967296 1\r\nx\r\n", format},
		{"23 a time of 32 bits", "touch a 2147483648\r\n", refused("invalid exptime argument")},
		{"24 cas of nothing", "cas nokey 0 0 1 1\r\nx\r\n", "NOT_FOUND\r\n"},
		{"26 append past the limit", "set a 0 0 1048576\r\n" + strings.Repeat("x", 1<<20) + "\r\nappend a 0 0 1\r\nx\r\ndelete a\r\n",
			"STORED\r\nSERVER_ERROR object too large for cache\r\nDELETED\r\n"},
		{"27 touch without a time", "touch a\r\n", "ERROR\r\n"},
		{"27 touch that ends", "set a 0 0 1\r\nx\r\ntouch a -1\r\nget a\r\n", "STORED\r\nTOUCHED\r\nEND\r\n"},
		{"28 delete with a time", "delete a 0\r\ndelete a 10\r\n", "NOT_FOUND\r\n" + refused("bad command line format.  Usage: delete <key> [noreply]")},
		{"29 flush_all", "flush_all\r\n", refused("flush_all not allowed")},
		{"29 flush_all -1", "flush_all -1\r\n", refused("flush_all not allowed")},
		{"29 flush_all abc", "flush_all abc\r\n", refused("invalid exptime argument")},
		{"29 of the operator", "shutdown\r\nslabs reassign 1 2\r\nlru_crawler metadump all\r\nwatch\r\ndebugtime\r\n", strings.Repeat("ERROR\r\n", 5)},
		{"29 stats", "stats cachedump 1 0\r\n", "CLIENT_ERROR sessile: statistics have no arguments here\r\n"},
		{"29 verbosity", "verbosity 9\r\n", "OK\r\n"}, // which changes nothing
		{"30 quit, then version", "quit\r\nversion\r\n", closed},
		{"31 HTTP", "GET / HTTP/1.0\r\n\r\n", closed},
		{"31 HTTP with commands", "POST / HTTP/1.1\r\nHost: x\r\n\r\nflush_all\r\n", closed},
		{"32 TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", closed},
		{"33 a line end in a key", "set a\r\nflush_all\r\n 0 0 1\r\nx\r\n", "ERROR\r\n" + closed},
		{"34 mg alone", "mg\r\n", "ERROR\r\n"},
		{"35 a flag twice", "mg a v v\r\n", refused("duplicate flag")},
		{"36 ms without a length", "ms a abc\r\n", format + closed},
		{"36 ms with an old length", "ms a S2\r\nxx\r\n", format + closed},
		{"37 ms, data too long", "ms a 2 T-1\r\nxxx\r\n", refused("bad data chunk") + closed},
		{"38 quiet", "md a q\r\nmn\r\n", "NF\r\nMN\r\n"},
		{"39 ma", "ma a D-1\r\nma a J13\r\n", "ERROR\r\nERROR\r\n"},
		{"42 a key longer than all", header(0, 255, 0, 0, 1), closed},
		{"43 a huge body", header(1, 1, 8, 0, 0xffffffff), closed},
		{"45 extras longer than all", header(1, 1, 8, 0, 5), closed},
		{"46 a key of 251", header(0, 251, 0, 0, 251) + long, answer(0, 4, "Invalid arguments") + closed},
		{"47 no key", header(0, 0, 0, 0, 0), answer(0, 4, "Invalid arguments") + closed},
		{"48 short extras", header(1, 1, 4, 0, 6) + be32(0) + "ax", answer(1, 4, "Invalid arguments") + closed},
		{"49 a negative length", header(1, 250, 8, 0, 9), closed},
		{"50 an unknown opcode", pkt(0xff, "", "", "", 0), answer(0xff, 0x81, "Unknown command")},
		{"51 an answer", "\x81" + strings.Repeat("\x00", 23), closed},
		{"52 a data type", header(0, 1, 0, 1, 1) + "a", answer(0, 4, "Invalid arguments")},
		{"53 append shorter than its key", header(0x0e, 9, 0, 0, 3), closed},
		{"54 a step before the list", pkt(0x22, "", "PLAIN", "x", 0), answer(0x22, 0x20, "Auth failure.")},
		{"54 a long mechanism", header(0x21, 5, 0, 0, 1<<20) + "PLAIN" + strings.Repeat("x", 1<<20-5), answer(0x21, 3, "Too large.")},
		{"56 noop with a body", pkt(0x0a, "", "", "x", 0), answer(0x0a, 4, "Invalid arguments") + closed},
		{"57 flush", pkt(0x08, "", "", "", 0), answer(0x08, 0x20, "Auth failure.")},
		{"57 stat", pkt(0x10, "", "settings", "", 0), answer(0x10, 4, "Invalid arguments")},
		{"57 verbosity", pkt(0x1b, be32(1), "", "", 0), answer(0x1b, 0x81, "Unknown command")},
		{"58 a counter with short extras", pkt(0x05, be64(1)+be64(1), "a", "", 0), answer(0x05, 4, "Invalid arguments") + closed},
		{"59 cas of nothing", pkt(0x01, be32(0)+be32(0), "none", "x", 7), answer(0x01, 1, "Not found")},
		{"60 text, then binary", "get a\r\n" + pkt(0x0a, "", "", "", 0), "END\r\n" + closed},
	}
	st := newScripted()
	var alarms atomic.Int64
	l, err := ListenURL("memcached://127.0.0.1:0?prefix=")
	if err != nil {
		t.Fatal(err)
	}
	gw := startOn(t, Site{Store: st}, Options{Hooks: Hooks{Security: func(kind string) {
		if kind == SecurityForeign {
			alarms.Add(1)
		}
	}}}, l)
	other := gw.dial()
	other.says("STORED\r\n", "set other 0 0 1\r\nx\r\n")
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := gw.dial()
			c.t = t
			go io.WriteString(c.nc, tc.send) // the server may close before all of it is written
			want, ends := strings.CutSuffix(tc.want, closed)
			if got := c.read(len(want)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			switch {
			case ends:
				c.closed()
			case tc.send[0] == 0x80:
				c.says(answer(0x0a, 0, ""), pkt(0x0a, "", "", "", 0))
			default:
				c.says("MN\r\n", "mn\r\n")
			}
		})
	}
	if n := alarms.Load(); n != 5 {
		t.Errorf("%d security events, want 5", n)
	}
	other.says("VALUE other 0 1\r\nx\r\nEND\r\n", "get other\r\n")

	// 61: wherever it is cut, it is the same.
	whole := pkt(0x01, be32(0)+be32(100), "cut", "value", 0) + pkt(0x09, "", "cut", "", 0) + pkt(0x0a, "", "", "", 0)
	for at := 1; at < 60; at++ {
		c := gw.dial()
		c.send(whole[:at])
		c.send(whole[at:])
		if got := c.read(24 + 24 + 9 + 24); !strings.HasSuffix(got, answer(0x0a, 0, "")) || !strings.Contains(got, "value") {
			t.Fatalf("cut at %d: %q", at, got)
		}
		c.close()
	}
}

// 40, 41, 55: who does not read, or does not go on, is let go.
func TestMemcachedClientsThatStandStill(t *testing.T) {
	gw := startMemcached(t, Site{Limits: Limits{Command: 100 * time.Millisecond, Output: 64 << 10, Idle: 50 * time.Millisecond}}, "client=php-memcache")
	c := gw.dial()
	c.says("STORED\r\n", "set a 0 0 100000\r\n"+strings.Repeat("x", 100000)+"\r\n")
	for _, send := range []string{"\x80", "set a 0 0 10\r\nab", "set a 0 0 2000000\r\nab"} {
		d := gw.dial()
		d.send(send)
		eventually(t, "the end of "+send, func() bool { return gw.Stats().Open == 1 })
	}
	quiet := gw.dial()
	for _, send := range []string{strings.Repeat("get a\r\n", 1000), strings.Repeat(pkt(0x09, "", "a", "", 0), 1000)} {
		d := gw.dial()
		go func() {
			for range 1000 {
				if _, err := io.WriteString(d.nc, send); err != nil {
					return
				}
			}
		}()
		eventually(t, "the end of who does not read", func() bool { return gw.Stats().Open == 2 })
	}
	quiet.says("VALUE a 0 100000\r\n", "get a\r\n") // who says nothing may
}

// What memcached does and the gateway does not.
func TestMemcachedRefusals(t *testing.T) {
	const foreign = "SERVER_ERROR sessile: the key does not have this site's prefix\r\n"
	st := newScripted()
	gw := startMemcached(t, Site{Store: st}, "")
	key := "memc.sess.key.a"
	set := func(key string) string { return "set " + key + " 0 100 1\r\nx\r\n" }
	c := gw.dial()
	c.says("STORED\r\n", set(key))
	loads, saves := st.loads.Load(), st.saves.Load()
	for _, tc := range []struct{ send, want string }{
		{set("a"), foreign}, {set("PHPREDIS_SESSION:a"), foreign}, {"touch a 100\r\n", foreign}, {"delete a\r\n", foreign}, {"incr a 1\r\n", foreign},
		{"add a 0 100 1\r\nx\r\n", foreign}, {"append a 0 100 1\r\nx\r\n", foreign}, {"cas a 0 100 1 7\r\nx\r\n", foreign}, {"gat 100 a\r\n", "closed"},
		{"get a\r\n", "closed"}, {"mg a v\r\n", "closed"}, {"me a\r\n", "closed"}, {"get " + key + " a\r\n", "VALUE " + key + " 0 1\r\nx\r\nclosed"},
		{pkt(0x00, "", "a", "", 0), "closed"}, {pkt(0x0d, "", "a", "", 0), "closed"},
		// There is no such id, or nobody is to be logged out for a prefix that is configured wrongly.
		{"add a 0 2678400 0\r\n\r\n", "NOT_STORED\r\n"},
		{"add memc.sess.key.a_LOCK 0 2678400 0\r\n\r\n", "STORED\r\n"},
		{"get sessile:m:a\r\n", "closed"}, {"get memc.sess.key.sessile:m:a\r\n", "closed"}, {"get memc.sess.key.a_LOCK\r\n", "closed"},
		{set("sessile:m:a"), "SERVER_ERROR sessile: invalid session id or value\r\n"},
		{set("memc.sess.key.a_LOCK"), "SERVER_ERROR sessile: invalid session id or value\r\n"},
		{set("memc.sess.key."), "SERVER_ERROR sessile: invalid session id or value\r\n"},
		{"add memc.sess.key.lock.lock.a 0 30 1\r\n1\r\n", "SERVER_ERROR sessile: invalid session id or value\r\n"},
		{"ms " + key + " 1 T100 I\r\nx\r\n", errCache.Reply + "\r\n"}, {"mg " + key + " N30 v\r\n", errCache.Reply + "\r\n"},
	} {
		want, ends := strings.CutSuffix(tc.want, "closed")
		c := gw.dial()
		c.says(want, tc.send)
		if ends {
			c.closed()
		}
	}
	if loads, saves := st.loads.Load()-loads, st.saves.Load()-saves; loads != 1 || saves != 0 {
		t.Errorf("the store was asked: %d loads, want 1, and %d saves", loads, saves)
	}
	// A session has a deadline.
	gw = startMemcached(t, Site{Store: st, Lifetime: time.Minute}, "")
	gw.dial().says("STORED\r\nHD t60\r\n", "set "+key+" 0 0 1\r\nx\r\nmg "+key+" t\r\n")
}

// plainStore keeps no flags.
type plainStore struct{ *scripted }

func (s plainStore) Capabilities() store.Capabilities {
	c := s.scripted.Capabilities()
	c.Flags = false
	return c
}

func TestMemcachedOverAStoreWithoutFlags(t *testing.T) {
	c := startMemcached(t, Site{Store: plainStore{newScripted()}}, "client=php-memcache").dial()
	c.says("STORED\r\n", "set a 0 100 1\r\nx\r\n")
	for _, flags := range []string{"1", "3", "4294967295"} {
		c.says(errFlags.Reply+"\r\n", "set a "+flags+" 100 1\r\ny\r\n")
		c.says(errFlags.Reply+"\r\n", "cas a "+flags+" 100 1 5\r\ny\r\n")
		c.says(errFlags.Reply+"\r\n", "add b "+flags+" 100 0\r\n\r\n")
	}
	c.says("VALUE a 0 1\r\nx\r\nEND\r\n", "get a b\r\n")
}

// Bodies of php-memcache lie in the store as every other handler writes them.
func TestMemcachedFlags(t *testing.T) {
	zipped := func(s string) string {
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		io.WriteString(w, s)
		w.Close()
		return b.String()
	}
	st := newScripted()
	c := startMemcached(t, Site{Store: st, Limits: Limits{Value: 100_000}}, "client=php-memcache").dial()
	body := strings.Repeat("long ", 10000)
	set := func(flags int, body string) string {
		return fmt.Sprintf("set a %d 100 %d\r\n%s\r\n", flags, len(body), body)
	}
	c.says("STORED\r\n", set(2, zipped(body)))
	if rec, err := st.Load(t.Context(), "a"); string(rec.Data) != body || rec.Flags != 0 || err != nil {
		t.Errorf("there lie %d bytes, flags %d, %v", len(rec.Data), rec.Flags, err)
	}
	c.says("VALUE a 0 50000\r\n"+body+"\r\nEND\r\n", "get a\r\n")
	c.says("SERVER_ERROR sessile: this is not the zlib that its flags say\r\n", set(2, "x"))
	c.says("SERVER_ERROR object too large for cache\r\n", set(2, zipped(strings.Repeat("x", 100_001))))
	// All others are kept.
	c.says("STORED\r\nVALUE a 768 1\r\n1\r\nEND\r\n", set(768, "1")+"get a\r\n")
	if rec, err := st.Load(t.Context(), "a"); string(rec.Data) != "1" || rec.Flags != 768 || err != nil {
		t.Errorf("there lie %q, flags %d, %v", rec.Data, rec.Flags, err)
	}
	c.says("STORED\r\nVALUE a 768 2\r\n1x\r\nEND\r\n", "append a 5 0 1\r\nx\r\nget a\r\n") // as memcached does: those of an append do not count
	c.says("STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n", set(0, "1")+"get a\r\n")
	c.says("STORED\r\nVALUE a 4294967295 1\r\n1\r\nEND\r\n", set(1<<32-1, "1")+"get a\r\n")
	c.says("HD f4294967295\r\n", "mg a f\r\n")
	// Other flags are another value: who has read the one does not write over the other.
	token := casOf(&store.Record{Data: []byte("1"), Flags: 1<<32 - 1})
	c.says(fmt.Sprintf("VALUE a 4294967295 1 %d\r\n1\r\nEND\r\n", token), "gets a\r\n")
	c.says("STORED\r\nEXISTS\r\n", set(3, "1")+fmt.Sprintf("cas a 4 100 1 %d\r\n2\r\n", token))
}

// The lock of a session is one, whoever asks for it, and however.
func TestMemcachedLocks(t *testing.T) {
	gw := startMemcached(t, Site{LockWait: 20 * time.Millisecond}, "")
	mc, err := ListenURL("memcached://127.0.0.1:0?client=php-memcache")
	if err != nil {
		t.Fatal(err)
	}
	redis := freeListener(t)
	for _, l := range []net.Listener{mc, redis} {
		go gw.Serve(l)
	}
	dial := func(l net.Listener) *client {
		nc, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, nc)
	}
	const add, free = "add memc.sess.key.lock.s 0 30 1\r\n1\r\n", "delete memc.sess.key.lock.s\r\n"
	const incr, unlock = "incr s.lock 1\r\nadd s.lock 768 15 1\r\n1\r\nget s\r\n", "set s.lock 768 15 1\r\n0\r\n"
	a, b, m, r := gw.dial(), gw.dial(), dial(mc), dial(redis)

	a.says("STORED\r\n", add)
	a.says("NOT_STORED\r\n", add) // at once
	b.says("NOT_STORED\r\n", add)
	m.says("NOT_FOUND\r\nNOT_STORED\r\nEND\r\n", incr)
	r.want(null, acquire("r")...)
	if got := r.do("GET", "s_LOCK"); !strings.Contains(got, "php-memcached:") {
		t.Errorf("the token: %q", got)
	}
	b.says("VALUE memc.sess.key.lock.s 0 1\r\n1\r\nEND\r\n", "get memc.sess.key.lock.s\r\n") // never the token
	b.says("TOUCHED\r\n", "touch memc.sess.key.lock.s 100\r\n")
	// Nobody frees another's.
	b.says("NOT_FOUND\r\n", free)
	m.says("STORED\r\nNOT_FOUND\r\n", unlock+"delete s.lock\r\n")
	b.says("NOT_STORED\r\n", add)
	a.says("DELETED\r\nNOT_FOUND\r\n", free+free)

	m.says("NOT_FOUND\r\nSTORED\r\nEND\r\n", incr)
	m.says("NOT_FOUND\r\nNOT_STORED\r\nEND\r\n", incr)
	a.says("NOT_STORED\r\n", add)
	r.want(null, acquire("r")...)
	m.says("STORED\r\n", unlock)
	// The binary protocol of php-memcache.
	mb := dial(mc)
	mb.send(pkt(0x05, be64(1)+be64(1)+be32(15), "s.lock", "", 0) + pkt(0x02, be32(768)+be32(15), "s.lock", "1", 0))
	if got := mb.read(24 + 8); !strings.HasSuffix(got, be64(1)) {
		t.Errorf("incr: %q", got)
	}
	if got := mb.read(24 + 20); got[7] != 2 {
		t.Errorf("add of one's own lock: %q", got)
	}
	if b := dial(mc); true {
		b.send(pkt(0x05, be64(1)+be64(1)+be32(15), "s.lock", "", 0))
		if got := b.read(24 + 8); !strings.HasSuffix(got, be64(2)) {
			t.Errorf("incr of another's lock: %q", got)
		}
	}
	mb.send(pkt(0x01, be32(768)+be32(15), "s.lock", "0", 0))
	mb.read(24)
	// Those of Redis.
	r.want("+OK\r\n", acquire("r")...)
	a.says("NOT_STORED\r\n", add)
	a.says("NOT_FOUND\r\n", free)
	m.says("NOT_FOUND\r\nNOT_STORED\r\nEND\r\n", incr)
	r.unlock(":1\r\n", "r")

	// A connection that breaks under its lock: whoever comes for it next releases it, but another lock of that session it does not.
	a.says("STORED\r\n", add)
	a.close()
	eventually(t, "the end of the connection", func() bool { return gw.Stats().Open == 5 })
	b.says("NOT_STORED\r\nDELETED\r\nSTORED\r\n", add+free+add)
	gw.dial().says("NOT_FOUND\r\n", free)
	b.says("DELETED\r\n", free)
	// One that asks for no end ends with its connection, and one that is over is anybody's.
	a = gw.dial()
	a.says("STORED\r\n", "add memc.sess.key.lock.s 0 0 1\r\n1\r\n")
	a.close()
	eventually(t, "the lock free", func() bool { b.send(add); return b.line() == "STORED\r\n" })
	for _, what := range []string{"set memc.sess.key.lock.s 0 30 1\r\n1\r\n", "add memc.sess.key.lock.s 0 -1 1\r\n1\r\n", "append memc.sess.key.lock.s 0 0 1\r\n1\r\n",
		"ms memc.sess.key.lock.s 1 MR\r\n1\r\n", "decr memc.sess.key.lock.s 1\r\n"} {
		b.says("SERVER_ERROR sessile: a lock is taken by", what)
		b.line()
	}
	// What it echoes is not moved by its wait.
	b.says("NS Oabc kmemc.sess.key.lock.s\r\n"+strings.Repeat("END\r\n", 9), "ms memc.sess.key.lock.s 1 ME T30 Oabc k\r\n1\r\n"+strings.Repeat("get memc.sess.key.other\r\n", 9))
}

// Who waits for a lock is woken, and gets it in his turn, as long as his client waits for an answer.
func TestMemcachedLocksAreWaitedFor(t *testing.T) {
	gw := startMemcached(t, Site{}, "")
	const add, free = "add memc.sess.key.lock.s 0 30 1\r\n1\r\n", "delete memc.sess.key.lock.s\r\n"
	a, b, c := gw.dial(), gw.dial(), gw.dial()
	a.says("STORED\r\n", add)
	for i, w := range []*client{b, c} {
		w.send(add)
		eventually(t, "the waiter in the queue", func() bool { return gw.Stats().LocksWaiting == int64(i+1) })
	}
	b.send("get memc.sess.key.s\r\n" + free) // while it waits, and behind it
	a.says("DELETED\r\n", free)
	b.says("STORED\r\nEND\r\nDELETED\r\n", "")
	c.says("STORED\r\n", "")
	// Nobody waits longer than php-memcache does for any answer.
	m := startMemcached(t, Site{}, "client=php-memcache")
	d, e := m.dial(), m.dial()
	const take = "incr s.lock 1\r\nadd s.lock 768 15 1\r\n1\r\nget s\r\n"
	d.says("NOT_FOUND\r\nSTORED\r\nEND\r\n", take)
	began := time.Now()
	if e.says("NOT_FOUND\r\nNOT_STORED\r\nEND\r\n", take); time.Since(began) > 900*time.Millisecond {
		t.Errorf("answered after %v", time.Since(began))
	}
}

// clients.md, 6.4 and 7.1: what a client is answered while the store is away.
func TestMemcachedAnswersWhenTheStoreFails(t *testing.T) {
	for _, fails := range []error{store.ErrUnavailable, store.ErrUnknown} {
		st := newScripted()
		gw := startMemcached(t, Site{Store: st, Hold: 20 * time.Millisecond, LockWait: 20 * time.Millisecond}, "")
		const k, lock = "memc.sess.key.a", "memc.sess.key.lock.a"
		c := gw.dial()
		c.says("STORED\r\nSTORED\r\n", "set "+k+" 0 100 1\r\nx\r\nadd "+lock+" 0 30 1\r\n1\r\n")
		st.set(failing(fails, "load", "save", "touch", "delete", "lock", "unlock", "holder"), nil)
		for _, send := range []string{"get " + k, "gets " + k, "gat 10 " + k, "mg " + k + " v", "me " + k, "mg " + k + " q v", "get " + lock, "add " + lock + "b 0 30 1\r\n1"} {
			d := gw.dial()
			d.send(send + "\r\nset " + k + " 0 100 1\r\ny\r\n")
			d.closed() // and what follows is not run
		}
		for _, opcode := range []byte{0x00, 0x09, 0x0c, 0x0d} {
			d := gw.dial()
			d.send(pkt(opcode, "", k, "", 0))
			d.closed()
		}
		for _, send := range []string{"set " + k + " 0 100 1\r\ny", "add " + k + " 0 100 1\r\ny", "replace " + k + " 0 100 1\r\ny", "append " + k + " 0 100 1\r\ny",
			"cas " + k + " 0 100 1 7\r\ny", "touch " + k + " 100", "delete " + k, "incr " + k + " 1", "delete " + lock} {
			c.send(send + "\r\n")
			if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR sessile: ") {
				t.Errorf("%v: %q: got %q", fails, send, got)
			}
		}
		c.says("NOT_STORED\r\nNOT_STORED\r\n", "add "+k+" 0 2678400 0\r\n\r\nadd new 0 2678400 0\r\n\r\n")
		c.says("NOT_STORED\r\n", "add memc.sess.key.new 0 30 0\r\n\r\n") // an id that may not be one's own
		// Reads fail, writes would work: both or neither.
		saves := st.saves.Load()
		st.set(failing(fails, "load"), nil)
		d := gw.dial()
		d.says("STORED\r\n", "add "+lock+"c 0 30 1\r\n1\r\n")
		d.send("get " + k + "c\r\n")
		d.closed()
		gw.dial().says("STORED\r\n", "add "+lock+"c 0 30 1\r\n1\r\n") // whose page has no session
		c.send("set " + k + " 0 100 1\r\ny\r\n")
		if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR sessile: ") || st.saves.Load() != saves {
			t.Errorf("%v: while nothing can be read: %q, %d saves", fails, got, st.saves.Load()-saves)
		}
		st.set(nil, nil)
		freed := "DELETED\r\n"
		if fails == store.ErrUnknown {
			freed = "NOT_FOUND\r\n" // it may be, and is not asked for twice
		}
		c.says("VALUE "+k+" 0 1\r\nx\r\nEND\r\n"+freed, "get "+k+"\r\ndelete "+lock+"\r\n")
	}
}

// A page that read a session before it was destroyed does not bring it back, whichever handler did what.
func TestMemcachedLateWrites(t *testing.T) {
	gw := startMemcached(t, Site{Prefix: phpPrefix}, "")
	redis := freeListener(t)
	go gw.Serve(redis)
	nc, err := net.Dial(redis.Addr().Network(), redis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r, m := newClient(t, nc), gw.dial()
	const k = "memc.sess.key.a"
	set := func(v string) string { return "set " + k + " 0 100 1\r\n" + v + "\r\n" }
	m.says("STORED\r\nVALUE "+k+" 0 1\r\n1\r\nEND\r\n", set("1")+"get "+k+"\r\n")
	r.want(":1\r\n", "DEL", phpPrefix+"a")
	m.says("STORED\r\nEND\r\n", set("2")+"get "+k+"\r\n")
	r.want("+OK\r\n", "SETEX", phpPrefix+"a", "100", "3")
	r.want(bulk("3"), "GET", phpPrefix+"a")
	m.says("VALUE "+k+" 0 1\r\n3\r\nEND\r\nDELETED\r\n", "get "+k+"\r\ndelete "+k+"\r\n")
	r.want("+OK\r\n", "SETEX", phpPrefix+"a", "100", "4")
	r.want(null, "GET", phpPrefix+"a")
	if n := gw.Stats().Dropped; n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
}

// What php-memcache writes counts where it has an answer to what it asked.
func TestMemcachedWritesNoBlanks(t *testing.T) {
	gw := startMemcached(t, Site{LockWait: 10 * time.Millisecond}, "client=php-memcache")
	const incr, set, free = "incr s.lock 1\r\nadd s.lock 768 15 1\r\n1\r\nget s\r\n", "set s 0 100 1\r\nx\r\n", "set s.lock 768 15 1\r\n0\r\n"
	const refused = "EXISTS\r\n"
	a, b := gw.dial(), gw.dial()
	a.says("NOT_FOUND\r\nSTORED\r\nEND\r\nSTORED\r\n", incr+set)
	b.says("NOT_FOUND\r\nNOT_STORED\r\nVALUE s 0 1\r\nx\r\nEND\r\n"+refused+"STORED\r\n", incr+set+free)
	a.says("STORED\r\nSTORED\r\n", set+free)
	b.says(refused+"NOT_FOUND\r\nSTORED\r\nVALUE s 0 1\r\nx\r\nEND\r\nSTORED\r\nSTORED\r\n", set+incr+set+free)
	c := gw.dial()
	const other = "set s 0 100 1\r\ny\r\n"
	c.says(refused+"STORED\r\nSTORED\r\n", other+"set new 0 100 1\r\nx\r\nset new 0 100 1\r\ny\r\n")
	c.says("VALUE s 0 1\r\nx\r\nEND\r\nSTORED\r\n", "get s\r\n"+other)
	gw.dial().says(refused+"STORED\r\n", set+other) // what is there already
	// Who never got the lock does not release it, not even one whose connection has ended.
	d, e := gw.dial(), gw.dial()
	d.says("NOT_FOUND\r\nSTORED\r\n", incr[:strings.Index(incr, "get")])
	d.close()
	e.says("NOT_FOUND\r\nNOT_STORED\r\nVALUE s 0 1\r\ny\r\nEND\r\nSTORED\r\nNOT_FOUND\r\nNOT_STORED\r\n", incr+free+incr[:strings.Index(incr, "get")])
	gw.dial().says("STORED\r\n", free)
	// Nor does it bring back what was destroyed meanwhile, but for who destroyed it.
	c.says("DELETED\r\n", "delete s\r\n")
	gw.dial().says(refused+"END\r\nSTORED\r\nDELETED\r\n"+"STORED\r\n", set+"get s\r\n"+set+"delete s\r\n"+set)
}

// What php-memcached sends to the second server of a session is done already, and gets no answer, whatever comes of it.
func TestMemcachedCopies(t *testing.T) {
	st := newScripted()
	gw := startMemcached(t, Site{Store: st, Hold: 10 * time.Millisecond}, "")
	const k, lock, noop = "memc.sess.key.s", "memc.sess.key.lock.s", "\x81\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00opaq\x00\x00\x00\x00\x00\x00\x00\x00"
	gw.dial().says("STORED\r\n", "set "+k+" 0 100 1\r\n2\r\n")
	c := gw.dial()
	copies := pkt(0x11, be32(0)+be32(100), k, "1", 0) + pkt(0x14, "", k, "", 0) + pkt(0x14, "", k+"none", "", 0) + pkt(0x14, "", lock, "", 0)
	c.says(noop, copies+pkt(0x0a, "", "", "", 0))
	gw.dial().says("VALUE "+k+" 0 1\r\n2\r\nEND\r\n", "get "+k+"\r\n")
	// Who has read it means it.
	c.send(pkt(0x00, "", k, "", 0))
	c.read(24 + 4 + 1)
	st.set(failing(store.ErrUnavailable, "delete"), nil)
	c.says(noop, pkt(0x14, "", k, "", 0)+pkt(0x0a, "", "", "", 0))
	st.set(nil, nil)
	c.says(noop, pkt(0x11, be32(0)+be32(100), k, "3", 0)+pkt(0x0a, "", "", "", 0))
	gw.dial().says("VALUE "+k+" 0 1\r\n3\r\nEND\r\n", "get "+k+"\r\n")
	c.says(noop, pkt(0x14, "", k, "", 0)+pkt(0x0a, "", "", "", 0))
	gw.dial().says("END\r\n", "get "+k+"\r\n")
}

// Where the site has users, a client says who it is, or gets nothing, not even an error.
func TestMemcachedLogin(t *testing.T) {
	gw := startMemcached(t, Site{Users: []User{{Name: "bob", Passwords: []string{"secret"}}}}, "client=php-memcache")
	for _, send := range []string{"get a\r\n", "version\r\n", pkt(0x00, "", "a", "", 0), pkt(0x0a, "", "", "", 0)} {
		c := gw.dial()
		c.send(send)
		c.closed()
	}
	c := gw.dial()
	c.send(pkt(0x20, "", "", "", 0))
	if got := c.read(24 + 5); !strings.HasSuffix(got, "PLAIN") {
		t.Errorf("the mechanisms: %q", got)
	}
	for _, login := range []string{"\x00bob\x00wrong", "bob\x00secret", "", "\x00bob\x00secret\x00"} {
		c.send(pkt(0x21, "", "PLAIN", login, 0))
		if got := c.read(24 + 13); !strings.HasSuffix(got, "Auth failure.") {
			t.Errorf("%q: %q", login, got)
		}
	}
	c.send(pkt(0x21, "", "PLAIN", "\x00bob\x00secret", 0) + pkt(0x01, be32(0)+be32(100), "a", "x", 0))
	if got := c.read(24 + 13 + 24); !strings.Contains(got, "Authenticated") {
		t.Errorf("got %q", got)
	}
	if n := gw.Stats(); n.Logins != 1 {
		t.Errorf("%d logins failed, want 1", n.Logins)
	}
}

func TestMemcachedEvents(t *testing.T) {
	l, err := ListenURL("memcached://127.0.0.1:0?client=php-memcache")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var events []string
	gw := startOn(t, Site{}, Options{Hooks: Hooks{Done: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e.Command+" "+e.Outcome.String())
	}}}, l)
	c := gw.dial()
	c.says("END\r\n", "get a\r\n")
	c.says("STORED\r\n", "set a 0 100 1\r\nx\r\n")
	c.says("VALUE a 0 1\r\nx\r\nEND\r\n", "get a b\r\n")
	c.says(errFlush.Reply+"\r\n", "flush_all\r\n")
	c.says(errCache.Reply+"\r\n", "mg a N1\r\n")
	c.says("ERROR\r\n", "nonsense\r\n")
	c.send("get sessile:x\r\n")
	c.closed()
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(events, ", "), "get absent, set ok, get ok, flush_all invalid, get invalid, other invalid, get invalid"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A get of many sessions has but a few of them in memory.
func TestMemcachedManyGets(t *testing.T) {
	st := newScripted()
	c := startMemcached(t, Site{Store: st}, "client=php-memcache").dial()
	a := strings.Repeat("x", 100_000)
	c.says("STORED\r\n", "set a 0 100 100000\r\n"+a+"\r\n")
	read := make(chan struct{})
	st.set(func(_, key string) error {
		if key == "b" {
			<-read
		}
		return nil
	}, nil)
	c.send("get a b\r\n")
	if got, want := c.read(len(a)), "VALUE a 0 100000\r\n"+a; got != want[:len(a)] {
		t.Errorf("got %d bytes", len(got))
	}
	close(read)
}

// A write that depends on what is there does not overwrite what somebody else has written meanwhile.
func TestMemcachedConditionsAreTheStores(t *testing.T) {
	st := newScripted()
	gw := startMemcached(t, Site{Store: st}, "client=php-memcache")
	c := gw.dial()
	for _, tc := range []struct{ send, want, left string }{
		{"cas a 0 100 1 {cas}\r\nx\r\n", "EXISTS\r\n", "7"},
		{"append a 0 100 1\r\n0\r\n", "STORED\r\n", "70"},
		{"incr a 1\r\n", "8\r\n", "8"},
		{"md a C{cas}\r\n", "EX\r\n", "7"},
	} {
		c.says("STORED\r\n", "set a 0 100 1\r\n1\r\n")
		c.send("gets a\r\n")
		var cas uint64
		fmt.Sscanf(c.line(), "VALUE a 0 1 %d", &cas)
		c.line()
		c.line()
		between := func() error {
			return st.Store.Save(t.Context(), "a", store.Record{Data: []byte("7"), Expires: time.Now().Add(time.Hour)}, store.Always)
		}
		var done sync.Once
		st.set(func(op, _ string) (err error) {
			if op == "save" || op == "delete" {
				done.Do(func() { err = between() })
			}
			return err
		}, nil)
		c.says(tc.want, strings.ReplaceAll(tc.send, "{cas}", fmt.Sprint(cas)))
		if rec, err := st.Store.Load(t.Context(), "a"); string(rec.Data) != tc.left || err != nil {
			t.Errorf("%q left %q, %v, want %q", tc.send, rec.Data, err, tc.left)
		}
		st.set(nil, nil)
	}
}

// No client is held longer than it waits, however long the site holds others.
func TestMemcachedPatience(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for client, lock := range map[string]string{"php-memcached": "lock.b", "php-memcache": "b.lock"} {
		patience := map[string]time.Duration{"php-memcached": 5 * time.Second, "php-memcache": time.Second}[client]
		st := newScripted()
		gw := startMemcached(t, Site{Store: st, Hold: 30 * time.Second, LockWait: 30 * time.Second}, "prefix=&client="+client)
		st.set(failing(store.ErrUnavailable, "load", "save", "lock"), nil)
		for _, send := range []string{"get a", "set a 0 100 1\r\nx", "add " + lock + " 0 30 1\r\n1"} {
			c, began := gw.dial(), time.Now()
			c.send(send + "\r\n")
			wg.Go(func() {
				if c.read(1); time.Since(began) < patience/2 || time.Since(began) > patience {
					t.Errorf("%s, %q: answered after %v, the client waits for %v", client, send, time.Since(began), patience)
				}
			})
		}
	}
	wg.Wait()
}

// An id that is reserved is no session yet: the write that makes it one is what a user would miss.
func TestMemcachedReservationsAreNotTheFirstWrite(t *testing.T) {
	st := newScripted()
	gw := startMemcached(t, Site{Store: st, Critical: "create"}, "client=php-memcache")
	c := gw.dial()
	c.says("STORED\r\nVALUE a 0 0\r\n\r\nEND\r\n", "add a 0 30 0\r\n\r\nget a\r\n")
	if !gw.isCritical("a") {
		t.Error("the write that follows is not critical")
	}
	c.says("STORED\r\n", "set a 0 100 1\r\nx\r\n")
	if gw.isCritical("a") {
		t.Error("the next one is")
	}
}

// What names the access set is no session, and there is no word for who comes above the limit.
func TestMemcachedBesideOthers(t *testing.T) {
	sets := setsFunc(func([]string) ([]string, error) { return nil, nil })
	gw := startMemcached(t, Site{AccessSet: "app:ALL", Prefix: "app:", Sets: sets, Limits: Limits{Conns: 1}}, "")
	c := gw.dial()
	c.says("SERVER_ERROR WRONGTYPE", "set memc.sess.key.ALL 0 100 1\r\nx\r\n")
	gw.dial().closed()
}

// Over a socket of a file, and over TLS.
func TestMemcachedTransports(t *testing.T) {
	dir := t.TempDir()
	cert := makeCert(t, dir, 1)
	for _, url := range []string{"memcached+unix://" + dir + "/s?client=php-memcache", "memcached+tls://127.0.0.1:0?client=php-memcache&cert=" + cert.cert + "&key=" + cert.key} {
		gw := startOn(t, Site{}, Options{}, listenAt(t, url))
		nc, err := net.Dial(gw.addr.Network(), gw.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(url, "memcached+tls") {
			nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
		}
		newClient(t, nc).says("STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n", "set a 0 100 1\r\nx\r\nget a\r\n")
	}
}

// Any bytes: an end, no panic, and not more out than in.
func FuzzMemcached(f *testing.F) {
	for _, seed := range []string{
		"set a 0 100 1\r\nx\r\ngets a\r\ncas a 0 100 1 7\r\ny\r\nappend a 0 0 1\r\nz\r\nincr a 1\r\ndelete a\r\n", "add lock.a 0 30 1\r\n1\r\ndelete lock.a\r\n",
		"add lock.a 0 0 1\r\n1\r\nadd lock.a 0 0 1\r\n1\r\n", "add a 0 2678400 0\r\n\r\nget a\r\n", "gat 10 a\r\nmg a v t k\r\nms a 1 T9 k\r\nx\r\nmd a q\r\nme a\r\n",
		"set a 0 0 2000\r\nx", "stats\r\nversion\r\nverbosity 1\r\nflush_all\r\n", "GET / HTTP/1.0\r\n",
		pkt(0x01, be32(0)+be32(100), "a", "x", 0) + pkt(0x0c, "", "a", "", 0) + pkt(0x05, be64(1)+be64(1)+be32(9), "n", "", 0) + pkt(0x0a, "", "", "", 0),
		pkt(0x02, be32(0)+be32(30), "lock.a", "1", 0) + pkt(0x14, "", "lock.a", "", 0) + pkt(0x10, "", "", "", 0) + pkt(0x20, "", "", "", 0),
	} {
		f.Add([]byte(seed))
	}
	s, err := New(Site{Store: memory.New(memory.Options{}), Lifetime: time.Hour, LockWait: time.Millisecond, LockLife: 10 * time.Millisecond,
		Limits: Limits{Value: 1000, Command: 5 * time.Millisecond}}, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	m := &memcachedListener{front: &front{client: "fuzz", before: "lock.", hold: time.Second, lockWait: time.Second}}
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		s.accept(theirs, m)
		var wg sync.WaitGroup
		wg.Go(func() {
			ours.Write(in)
			for _, quit := range []string{"\r\nquit\r\n", pkt(0x07, "", "", "", 0), strings.Repeat("x", 2000)} { // whichever protocol, or neither
				ours.Write([]byte(quit))
			}
			ours.Close()
		})
		ours.SetDeadline(time.Now().Add(patience))
		out, err := io.ReadAll(ours)
		wg.Wait()
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("no end; so far %.200q", out)
		}
		if n := s.Stats(); n.Panics != 0 {
			t.Fatal("a panic")
		}
		if len(out) > 1100*len(in)+4096 { // a get of a session
			t.Fatalf("%d bytes out of %d", len(out), len(in))
		}
	})
}
