package resp

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// message is what a parser made of the front of a buffer.
type message struct {
	text string // for comparison, in words
	n    int
	need int
	err  error
}

// play gives stream to parse in pieces, as a connection would, and returns what came of it: the messages, and how it
// ended: "end", "wait" (something is incomplete), "close" or the reply before closing. size tells how much arrives
// next, given what is left.
func play(t testing.TB, stream []byte, size func(left int) int, parse func(buf []byte) message) []string {
	t.Helper()
	var said []string
	pos, have, need := 0, 0, 0
	for {
		m := message{err: ErrIncomplete}
		if buf := stream[pos:have:have]; len(buf) >= need {
			m = parse(buf)
			need = m.need
			var perr *ProtocolError
			switch {
			case m.err == nil && (m.n <= 0 || m.n > len(buf)):
				t.Fatalf("consumed %d of %d bytes", m.n, len(buf))
			case m.err != nil && m.n != 0:
				t.Fatalf("consumed %d bytes with error %v", m.n, m.err)
			case m.err != ErrIncomplete && m.need != 0, m.need != 0 && m.need <= len(buf):
				t.Fatalf("need is %d with %d bytes there and error %v", m.need, len(buf), m.err)
			case m.err == nil:
				said = append(said, m.text)
				pos += m.n
				continue
			case errors.As(m.err, &perr) && perr.Reply == "":
				return append(said, fmt.Sprintf("close, security %t", perr.Security))
			case errors.As(m.err, &perr):
				return append(said, fmt.Sprintf("reply %q, security %t", perr.Reply, perr.Security))
			case m.err != ErrIncomplete:
				t.Fatalf("got error %v, want ErrIncomplete or a *ProtocolError", m.err)
			}
		}
		if have == len(stream) {
			if pos == have {
				return append(said, "end")
			}
			return append(said, "wait")
		}
		have += min(max(size(len(stream)-have), 1), len(stream)-have)
	}
}

func whole(left int) int { return left }
func bytewise(int) int   { return 1 }

// words writes a request down as a test can compare it.
func words(args [][]byte) string {
	if len(args) == 0 {
		return "empty"
	}
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if len(a) > 1000 {
			fmt.Fprintf(&b, "(%d bytes)", len(a))
		} else {
			fmt.Fprintf(&b, "%q", a)
		}
	}
	return b.String()
}

func requests(lim Limits) func(buf []byte) message {
	var args [][]byte
	return func(buf []byte) message {
		var m message
		args, m.n, m.need, m.err = ParseRequest(buf, lim, args[:0])
		m.text = words(args)
		return m
	}
}

func reply(text string) string {
	return fmt.Sprintf("reply %q, security false", "ERR Protocol error: "+text)
}

var (
	invalidBulk  = reply("invalid bulk length")
	invalidMulti = reply("invalid multibulk length")
	noCRLF       = reply("expected CRLF after an argument")
	notInline    = reply("only PING and QUIT can be sent inline")
	silent       = "close, security true"

	// beforeLogin is what an unauthenticated connection gets (CVE-2021-32675).
	beforeLogin = Limits{Args: 10, Arg: 16 << 10}
)

// requestCases are the lines of field/reliability.md c1 that a parser decides. Those missing here are about rates (25,
// 26, 40) or commands (38, 41 to 47).
var requestCases = []struct {
	name string
	in   string
	lim  Limits
	want []string
}{
	{"1 an empty line", "\r\n", Limits{}, []string{"empty", "end"}},
	{"1 an empty line without CR", "\n", Limits{}, []string{"empty", "end"}},
	{"1 CR alone", "\r", Limits{}, []string{"wait"}},
	{"1 CR and something else", "\rPING\r\n", Limits{}, []string{reply("expected '*', got '?'")}},
	{"2 many empty lines", strings.Repeat("\r\n", 3), Limits{}, []string{"empty", "empty", "empty", "end"}},
	{"3 *-1", "*-1\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"4 *-10", "*-10\r\n", Limits{}, []string{invalidMulti}},
	{"5 a space before the count", "* 1\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 a plus before the count", "*+1\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 leading zero in the count", "*01\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 no count", "*\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 a letter in the count", "*1x\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 count ends with LF", "*1\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 count ends with CR and no LF", "*1\r$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"6 *0 is ignored", "*0\r\n*1\r\n$4\r\nPING\r\n", Limits{}, []string{"empty", `"PING"`, "end"}},
	{"6 *00", "*00\r\n", Limits{}, []string{invalidMulti}},
	{"7 more than a million arguments", "*1048577\r\n", Limits{}, []string{invalidMulti}},
	{"7 argument limit", "*64\r\n", Limits{}, []string{"wait"}},
	{"7 argument limit + 1, before the line ends", "*65", Limits{}, []string{invalidMulti}},
	{"8 2^31 arguments", "*2147483648\r\n", Limits{}, []string{invalidMulti}},
	{"9 count of 20 digits", "*99999999999999999999\r\n", Limits{}, []string{invalidMulti}},
	{"9 2^63-1 arguments", "*9223372036854775807\r\n$1\r\na\r\n", Limits{}, []string{invalidMulti}},
	{"10 count that wraps to 1", "*18446744073709551617\r\n$4\r\nPING\r\n", Limits{}, []string{invalidMulti}},
	{"11 a number for a bulk", "*1\r\n:4\r\n", Limits{}, []string{reply("expected '$', got ':'")}},
	{"11 an unprintable byte for a bulk", "*1\r\n\x1b[2J\r\n", Limits{}, []string{reply("expected '$', got '?'")}},
	{"11 an empty line for a bulk", "*1\r\n\r\n", Limits{}, []string{reply("expected '$', got '?'")}},
	{"12 $-1", "*1\r\n$-1\r\n", Limits{}, []string{invalidBulk}},
	{"13 bulk of 512 MiB + 1", "*1\r\n$536870913\r\n", Limits{}, []string{invalidBulk}},
	{"13 the same with the largest limits", "*1\r\n$536870913\r\n", Limits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt}, []string{invalidBulk}},
	{"14 bulk of 2^63-1", "*1\r\n$9223372036854775807\r\n", Limits{}, []string{invalidBulk}},
	{"14 bulk of 2^64+1", "*1\r\n$18446744073709551617\r\na\r\n", Limits{}, []string{invalidBulk}},
	{"15 a plus before the length", "*1\r\n$+4\r\nPING\r\n", Limits{}, []string{invalidBulk}},
	{"16 leading zero in the length", "*1\r\n$04\r\nPING\r\n", Limits{}, []string{invalidBulk}},
	{"17 a space after the length", "*1\r\n$4 \r\nPING\r\n", Limits{}, []string{invalidBulk}},
	{"17 no length", "*1\r\n$\r\n\r\n", Limits{}, []string{invalidBulk}},
	{"17 length ends with LF", "*1\r\n$4\nPING\r\n", Limits{}, []string{invalidBulk}},
	{"18 xx for the CRLF of a bulk", "*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n", Limits{}, []string{noCRLF}},
	{"18 half a CRLF", "*1\r\n$4\r\nPING\rx*1\r\n$4\r\nPING\r\n", Limits{}, []string{noCRLF}},
	{"18 LF for the CRLF of a bulk", "*1\r\n$4\r\nPING\n", Limits{}, []string{noCRLF}},
	{"19 half an argument", "*1\r\n$4\r\nPI", Limits{}, []string{"wait"}},
	{"19 all but the last byte", "*1\r\n$4\r\nPING\r", Limits{}, []string{"wait"}},
	{"20 one argument of two", "*2\r\n$3\r\nGET\r\n", Limits{}, []string{"wait"}},
	{"21 an empty key", "*2\r\n$3\r\nGET\r\n$0\r\n\r\n", Limits{}, []string{`"GET" ""`, "end"}},
	{"22 any byte in a key", "*2\r\n$3\r\nGET\r\n$7\r\n\x00\r\n\xff\x1b$*\r\n", Limits{}, []string{`"GET" "\x00\r\n\xff\x1b$*"`, "end"}},
	{"23 value limit", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n" + strings.Repeat("v", 1<<20) + "\r\n", Limits{}, []string{`"SET" "k" (1048576 bytes)`, "end"}},
	{"23 value limit + 1, before its bytes", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577", Limits{}, []string{invalidBulk}},
	{"23 request limit, before the bytes that break it", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$80\r\n", Limits{Request: 100}, []string{invalidBulk}},
	{"23 request limit, at an argument that would end behind it", "*60\r\n" + strings.Repeat("$0\r\n\r\n", 60), Limits{Request: 100}, []string{invalidBulk}},
	{"23 request limit, in a length", "*60\r\n" + strings.Repeat("$1\r\na\r\n", 3) + strings.Repeat("$0\r\n\r\n", 57), Limits{Request: 100}, []string{reply("too big request")}},
	{"24 a value that never comes", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n", Limits{}, []string{"wait"}},
	{"27 many commands in one packet", strings.Repeat("*1\r\n$4\r\nPING\r\n", 3), Limits{}, []string{`"PING"`, `"PING"`, `"PING"`, "end"}},
	{"28 inline PING of a health check", "PING\n", Limits{}, []string{`"PING"`, "end"}},
	{"28 inline ping and quit", "ping\r\nQuit\r\n", Limits{}, []string{`"ping"`, `"Quit"`, "end"}},
	{"28 inline PING that is not finished", "PING", Limits{}, []string{"wait"}},
	{"28 inline PING with an argument", "PING x\r\n", Limits{}, []string{notInline}},
	{"28 inline PING with spaces", "PING \r\n", Limits{}, []string{notInline}},
	{"28 inline PING with two CR", "PING\r\r\n", Limits{}, []string{notInline}},
	{"28 any other inline", "GET k\r\n", Limits{}, []string{notInline}},
	{"28 an inline that begins with a space", " PING\r\n", Limits{}, []string{reply("expected '*', got ' '")}},
	{"28 inline of 4096 bytes", strings.Repeat("a", 4095) + "\n", Limits{}, []string{notInline}},
	{"28 inline of 4096 bytes and no end", strings.Repeat("a", 4096), Limits{}, []string{reply("too big inline request")}},
	{"28 inline of 4095 bytes and no end", strings.Repeat("a", 4095), Limits{}, []string{"wait"}},
	{"29 half an escape in quotes", "GET \"x\\x4\"\r\n", Limits{}, []string{notInline}},
	{"30 an escape in quotes", "PING \"ax\\xff\"\r\n", Limits{}, []string{notInline}},
	{"30 a byte of 0xff in quotes", "PING \"ax\xff\"\r\n", Limits{}, []string{notInline}},
	{"31 HTTP POST", "POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a b\r\n", Limits{}, []string{silent}},
	{"31 HTTP GET", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", Limits{}, []string{silent}},
	{"31 HTTP in small letters", "post /x http/1.0\r\n", Limits{}, []string{silent}},
	{"31 HTTP/0.9", "GET /\r\n", Limits{}, []string{silent}},
	{"31 HTTP through a proxy", "GET http://x/ HTTP/1.1\r\n", Limits{}, []string{silent}},
	{"31 HTTP with a line over the limit", "GET /" + strings.Repeat("a", 4096), Limits{}, []string{silent}},
	{"32 Host:", "Host: 127.0.0.1\r\n", Limits{}, []string{silent}},
	{"32 another header", "X-A:b\r\n", Limits{}, []string{silent}},
	{"33 HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Limits{}, []string{silent}},
	{"33 OPTIONS *", "OPTIONS * HTTP/1.1\r\n", Limits{}, []string{silent}},
	{"33 CONNECT", "CONNECT a:1 HTTP/1.1\r\n", Limits{}, []string{silent}},
	{"34 TLS ClientHello, at its first byte", "\x16", Limits{}, []string{silent}},
	{"34 TLS ClientHello", "\x16\x03\x01\x02\x00\x01\x00", Limits{}, []string{silent}},
	{"34 memcached binary", "\x80\x0b\x00\x00", Limits{}, []string{silent}},
	{"34 SSH", "SSH-2.0-OpenSSH_9.2p1\r\n", Limits{}, []string{silent}},
	{"35 PROXY v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", Limits{}, []string{"empty", "empty", silent}},
	{"35 PROXY v1", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Limits{}, []string{silent}},
	{"36 memcached set", "set a 0 0 1\r\nx\r\n", Limits{}, []string{notInline}},
	{"37 a map", "%1\r\n+a\r\n+b\r\n", Limits{}, []string{reply("expected '*', got '%'")}},
	{"37 a set", "~2\r\n", Limits{}, []string{reply("expected '*', got '~'")}},
	{"37 a push", ">2\r\n", Limits{}, []string{reply("expected '*', got '>'")}},
	{"37 an attribute", "|1\r\n", Limits{}, []string{reply("expected '*', got '|'")}},
	{"37 a bulk", "$4\r\nPING\r\n", Limits{}, []string{reply("expected '*', got '$'")}},
	{"37 an array in an array", "*1\r\n*1\r\n$4\r\nPING\r\n", Limits{}, []string{reply("expected '$', got '*'")}},
	{"39 11 arguments before login", "*11\r\n", beforeLogin, []string{invalidMulti}},
	{"39 10 arguments before login", "*10\r\n", beforeLogin, []string{"wait"}},
	{"39 16385 bytes before login", "*2\r\n$4\r\nAUTH\r\n$16385\r\n", beforeLogin, []string{invalidBulk}},
	{"39 16384 bytes before login", "*2\r\n$4\r\nAUTH\r\n$16384\r\n", beforeLogin, []string{"wait"}},
	{"48 QUIT and PING in one packet", "QUIT\r\nPING\r\n", Limits{}, []string{`"QUIT"`, `"PING"`, "end"}}, // not to obey the second is the caller's
	{"nothing", "", Limits{}, []string{"end"}},
}

func TestParseRequest(t *testing.T) {
	for _, c := range requestCases {
		t.Run(c.name, func(t *testing.T) {
			for name, size := range map[string]func(int) int{"in one piece": whole, "byte by byte": bytewise} {
				if got := play(t, []byte(c.in), size, requests(c.lim)); !reflect.DeepEqual(got, c.want) {
					t.Errorf("%s: got %q, want %q", name, got, c.want)
				}
			}
		})
	}
}

func TestAMillionEmptyLines(t *testing.T) { // c1.2
	stream := bytes.Repeat([]byte("\r\n"), 1_000_000)
	for i := 0; len(stream) > 0; i++ {
		args, n, _, err := ParseRequest(stream, Limits{}, nil)
		if len(args) != 0 || n != 2 || err != nil {
			t.Fatalf("line %d: got %q, %d, %v, want an empty request of 2 bytes", i, args, n, err)
		}
		stream = stream[n:]
	}
}

func TestParseRequestNeed(t *testing.T) {
	const head = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n"
	for _, c := range []struct {
		in   string
		need int
	}{
		{"", 0}, {"*", 0}, {"*3\r\n", 0}, {"*3\r\n$3\r\n", 12}, {"*3\r\n$3\r\nSET", 12}, {"*3\r\n$3\r\nSET\r", 13},
		{head, len(head) + 1<<20 + 1}, {head + "vvvv", len(head) + 1<<20 + 1}, {"PIN", 0},
	} {
		if _, _, need, err := ParseRequest([]byte(c.in), Limits{}, nil); need != c.need || err != ErrIncomplete {
			t.Errorf("ParseRequest(%q): got need %d, %v, want %d, ErrIncomplete", c.in, need, err, c.need)
		}
	}
}

func TestParseRequestKeepsScratch(t *testing.T) {
	scratch := append(make([][]byte, 0, 8), []byte("mine"))
	for _, in := range []string{"", "PING\r\n", "*1\r\n$4\r\nPING\r\n", "*2\r\n$4\r\nPING\r\n", "*2\r\n$4\r\nPING\r\n+", "x\r\n"} {
		out, _, _, err := ParseRequest([]byte(in), Limits{}, scratch)
		want := [][]byte{[]byte("mine")}
		if err == nil {
			want = append(want, []byte("PING"))
		}
		if !reflect.DeepEqual(out, want) {
			t.Errorf("ParseRequest(%q): got %q, want %q", in, out, want)
		}
	}
}

// An argument that its reader appends to must not overwrite the next one.
func TestArgumentsAreApart(t *testing.T) {
	buf := AppendRequestStrings(nil, "GET", "k")
	for _, in := range [][]byte{buf, []byte("PING\r\nQUIT\r\n")} {
		before := string(in)
		args, _, _, err := ParseRequest(in, Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = append(args[0], "xxxxxx"...)
		if string(in) != before {
			t.Errorf("got %q, want %q", in, before)
		}
	}
}

func TestAnyChunkingOfRequests(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		var stream []byte
		for range rng.IntN(6) {
			switch rng.IntN(4) {
			case 0:
				stream = append(stream, requestCases[rng.IntN(len(requestCases))].in...)
			default:
				stream = AppendRequest(stream, randomArgs(rng)...)
			}
		}
		lim := Limits{Args: 64, Arg: 1 << 12, Request: 1 << 13, Inline: 64}
		want := play(t, stream, whole, requests(lim))
		size := func(int) int { return rng.IntN(1 + rng.IntN(300)) }
		if got := play(t, stream, size, requests(lim)); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: %q in pieces: got %q, want %q", seed, stream, got, want)
		}
	}
}

// Whatever arguments are within the limits, AppendRequest and ParseRequest agree about them.
func TestRequestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		want := randomArgs(rng)
		b := AppendRequest(nil, want...)
		got, n, _, err := ParseRequest(b, Limits{}, nil)
		if err != nil || n != len(b) || words(got) != words(want) {
			t.Fatalf("seed %d: ParseRequest(%q): got %q, %d, %v, want %q", seed, b, got, n, err, want)
		}
		strs := make([]string, len(want))
		for i, a := range want {
			strs[i] = string(a)
		}
		if s := AppendRequestStrings(nil, strs...); !bytes.Equal(s, b) {
			t.Fatalf("seed %d: AppendRequestStrings: got %q, want %q", seed, s, b)
		}
	}
}

func randomArgs(rng *rand.Rand) [][]byte {
	args := make([][]byte, 1+rng.IntN(5))
	for i := range args {
		args[i] = make([]byte, rng.IntN(1+rng.IntN(200)))
		for j := range args[i] {
			if args[i][j] = byte(rng.Uint32()); rng.IntN(4) == 0 {
				args[i][j] = "\r\n$*0"[rng.IntN(5)]
			}
		}
	}
	return args
}

func TestParseRequestDoesNotAllocate(t *testing.T) {
	setex := AppendRequestStrings(nil, "SETEX", "PHPREDIS_SESSION:k", "1440", strings.Repeat("v", 1024))
	args := make([][]byte, 0, 8)
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"SETEX", setex, nil},
		{"inline PING", []byte("PING\r\n"), nil},
		{"empty line", []byte("\r\n"), nil},
		{"half of a SETEX", setex[:100], ErrIncomplete},
		{"half of an inline", []byte("PIN"), ErrIncomplete},
		{"a declared value of 1 MiB", []byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n"), ErrIncomplete},
		{"64 declared arguments", []byte("*64\r\n"), ErrIncomplete},
	} {
		n := testing.AllocsPerRun(100, func() {
			if _, _, _, err := ParseRequest(c.in, Limits{}, args); err != c.want {
				t.Fatalf("%s: got error %v, want %v", c.name, err, c.want)
			}
		})
		if n != 0 {
			t.Errorf("%s: got %v allocations, want 0", c.name, n)
		}
	}
}

// A refusal costs its error, whatever was declared.
func TestDeclaredLengthsCostNothing(t *testing.T) {
	for _, in := range []string{
		"*1\r\n$536870912\r\n", "*1\r\n$9223372036854775807\r\n", "*2147483647\r\n", "*1048577\r\n",
	} {
		grown := allocated(100, func() { _, _, _, _ = ParseRequest([]byte(in), Limits{}, nil) })
		if grown > 1024 {
			t.Errorf("ParseRequest(%q) allocated %d bytes, want those of an error", in, grown)
		}
	}
}

// allocated returns how many bytes a call of f allocates, on average.
func allocated(times uint64, f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / times
}

// Errors go to logs: they must not carry what was received.
func TestProtocolErrorIsPrintable(t *testing.T) {
	for _, c := range requestCases {
		_, _, _, err := ParseRequest([]byte(c.in), c.lim, nil)
		var perr *ProtocolError
		if !errors.As(err, &perr) {
			continue
		}
		for _, text := range []string{perr.Error(), perr.Reply} {
			if len(text) > 100 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%s: got %q, want a short printable text", c.name, text)
			}
		}
	}
	for in, want := range map[string]string{
		"\x16\x03\x01":        "resp: this is TLS",
		"POST / HTTP/1.1\r\n": "resp: this is HTTP",
		"*-1\r\n":             "resp: protocol error: invalid multibulk length",
	} {
		if _, _, _, err := ParseRequest([]byte(in), Limits{}, nil); err == nil || err.Error() != want {
			t.Errorf("ParseRequest(%q): got error %v, want %s", in, err, want)
		}
	}
}

func BenchmarkParseRequest(b *testing.B) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"GET", []string{"GET", "PHPREDIS_SESSION:3f9a0c5be17d42d6a80f"}},
		{"SETEX1KiB", []string{"SETEX", "PHPREDIS_SESSION:3f9a0c5be17d42d6a80f", "1440", strings.Repeat("v", 1024)}},
		{"3args", []string{"EXPIRE", "PHPREDIS_SESSION:3f9a0c5be17d42d6a80f", "1440"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			buf := AppendRequestStrings(nil, c.args...)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			var args [][]byte
			for b.Loop() {
				args, _, _, _ = ParseRequest(buf, Limits{}, args[:0])
			}
			if len(args) != len(c.args) {
				b.Fatal("not parsed")
			}
		})
	}
}
