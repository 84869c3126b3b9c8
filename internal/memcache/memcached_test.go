package memcache

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// oracle is a real memcached to compare with.
type oracle struct {
	t  testing.TB
	at *testserver.MemcachedServer
}

func newOracle(t testing.TB) *oracle {
	return &oracle{t, testserver.MemcachedOnSocket(t, "-t", "1", "-m", "16")}
}

// ask sends stream in pieces, hangs up, and returns all that is answered.
func (o *oracle) ask(stream []byte, size func(int) int) []byte {
	o.t.Helper()
	c, err := net.Dial("unix", o.at.Addr)
	if err != nil {
		o.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		o.t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for rest := stream; len(rest) > 0; {
			n := min(max(size(len(rest)), 1), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				return // it has hung up
			}
			rest = rest[n:]
		}
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		o.t.Fatalf("%q: got %q and then nothing more", stream, got)
	}
	_ = c.Close() // what it has not read it will not
	<-sent
	return got
}

// empty makes memcached empty and returns a toy in the same state.
func (o *oracle) empty() *toy {
	o.t.Helper()
	got := o.ask([]byte("flush_all\r\nset sync 0 0 0\r\n\r\ngets sync\r\ndelete sync\r\n"), whole)
	s := newToy()
	if _, err := fmt.Sscanf(string(got), "OK\r\nSTORED\r\nVALUE sync 0 0 %d\r\n", &s.cas); err != nil {
		o.t.Fatalf("%q: %v", got, err)
	}
	return s
}

// comparable drops what cannot be the same in both: seconds, slab classes, and whether an item was read, which memcached forgets when it counts.
func comparable(b []byte) string { return string(volatile.ReplaceAll(b, []byte("$1$2#"))) }

var volatile = regexp.MustCompile(`( [tlh]| la=| cls=| size=)\d+|( exp=-)\d\d+`)

// generator makes requests that mean something: it knows what a toy makes of them.
type generator struct {
	*rand.Rand
	toy *toy
}

func (g *generator) of(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) key() string {
	return g.of("a", "b", "c", "n", "/d\xff", "PHPSESSID:e.f", key250)
}

func (g *generator) value() string {
	// No number that becomes shorter when counted: whether memcached then pads it depends on gets that are not sent yet. And
	// none that is negative: some of them wrap into what memcached takes for a number.
	return g.of("", "x", "10", "x-1", "1x", "a\r\nversion\r\n", "\x80\x00\xff", strings.Repeat("v", g.IntN(3000)))
}

func (g *generator) flags() string { return g.of("0", "0", "2", "768", "4294967295") }

func (g *generator) exptime() string {
	return g.of("0", "0", "5000", "-1", "2678400", "2592000", fmt.Sprint(time.Now().Unix()+9000))
}

// token is the CAS of a key, or another.
func (g *generator) token(key string) uint64 {
	return g.toy.items[key].cas + uint64(g.IntN(4)/3)
}

func (g *generator) noreply() string { return g.of("", "", "", " noreply") }

func (g *generator) textRequest() string {
	k, v := g.key(), g.value()
	switch g.IntN(18) {
	case 0, 1:
		line := g.of("get", "gets")
		for range 1 + g.IntN(5) {
			line += g.of(" ", " ", "  ") + g.key()
		}
		return line + g.of("", " ") + "\r\n"
	case 2:
		return fmt.Sprintf("%s %s %s %s\r\n", g.of("gat", "gats"), g.exptime(), k, g.key())
	case 3, 4, 5:
		return fmt.Sprintf("%s %s %s %s %d%s\r\n%s\r\n", g.of("set", "set", "add", "replace"), k, g.flags(), g.exptime(), len(v), g.noreply(), v)
	case 6:
		return fmt.Sprintf("%s %s %s %s %d%s\r\n%s\r\n", g.of("append", "prepend"), k, g.flags(), g.exptime(), len(v), g.noreply(), v)
	case 7:
		return fmt.Sprintf("cas %s %s %s %d %d%s\r\n%s\r\n", k, g.flags(), g.exptime(), len(v), g.token(k), g.noreply(), v)
	case 8:
		return fmt.Sprintf("set n 0 0 4\r\n5000\r\n%s n %s%s\r\n", g.of("incr", "decr"), g.of("0", "1", "4000"), g.noreply())
	case 9:
		return fmt.Sprintf("%s %s %s%s\r\n", g.of("incr", "decr"), k, "0", g.noreply())
	case 10:
		return fmt.Sprintf("delete %s%s%s\r\n", k, g.of("", " 0"), g.noreply())
	case 11:
		return fmt.Sprintf("touch %s %s%s\r\n", k, g.exptime(), g.noreply())
	case 12:
		return g.of("version\r\n", "verbosity 0\r\n", "verbosity 0 noreply\r\n", "stats reset\r\n", "flush_all\r\n", "flush_all noreply\r\n", "flush_all -1\r\n", "mn\r\n", "mn x\r\n")
	case 13:
		// Not t and T together: memcached tells the time that was left where t is first.
		return fmt.Sprintf("mg %s%s\r\n", k, g.metaFlags("v", "v", "f", "c", g.of("t", "T"+g.exptime()), "s", "k", "Oab", "q", "u", "h", "l"))
	case 14:
		mode := g.of("", " ME", " MA", " MP", " MR", " MS", fmt.Sprintf(" C%d", g.token(k)), fmt.Sprintf(" C%d MR", g.token(k)), fmt.Sprintf(" MA C%d", g.token(k)))
		return fmt.Sprintf("ms %s %d%s%s\r\n%s\r\n", k, len(v), mode, g.metaFlags("k", "Oab", "q", "F"+g.flags(), "T"+g.exptime()), v)
	case 15:
		return fmt.Sprintf("md %s%s\r\n", k, g.metaFlags("k", "Oab", "q", fmt.Sprintf("C%d", g.token(k))))
	case 16:
		return g.of("me "+k+"\r\n", "mg AP8= b k v\r\n", "ms AP8= 1 k b\r\nx\r\n", "md AP8= k b\r\n", "me AP8= b\r\n") // "\x00\xff", which has no other name
	}
	// What both refuse with the same words.
	return g.of("\r\n", "x\r\n", "get\r\n", "GET\r\n", "incr a\r\n", "incr a x\r\n", "incr a x noreply\r\n", "touch a\r\n", "touch a x\r\n",
		"delete\r\n", "delete a 1\r\n", "delete a b c d\r\n", "flush_all x\r\n", "verbosity x\r\n", "verbosity\r\n", "verbosity noreply\r\n", "gat x a\r\n", "mg\r\n",
		"mg a v v\r\n", "mg a z\r\n", "me\r\n", "mg a b\r\n", "mg a C T\r\n", "mg a T C\r\n", "ms a 2 z\r\nxx\r\n", "ms a 2 Fx\r\nxx\r\n", "ms a 2 MZ\r\nxx\r\n", "ms a 2 M\r\nxx\r\n",
		"md a z\r\n", "md a b\r\n", "mx a\r\n", "mg "+key251+"\r\n", "md "+key251+" q\r\n", "mg nokey O123456789012345678901234567890123\r\n", // memcached notes that an item was read, and then refuses

		"ms a 2 O123456789012345678901234567890123\r\nxx\r\n", "mg a s v t c f k q u h l N0 R0 T0 O I F0 C0 D0\r\n", "mg a S\r\n", "mg a E1\r\n", "mg a Mx Dx Jx\r\n")
}

func (g *generator) metaFlags(flags ...string) string {
	line := ""
	g.Shuffle(len(flags), func(i, j int) { flags[i], flags[j] = flags[j], flags[i] })
	seen := map[byte]bool{}
	for _, f := range flags[:g.IntN(len(flags)+1)] {
		if !seen[f[0]] {
			line += " " + f
		}
		seen[f[0]] = true
	}
	return line
}

func (g *generator) binaryRequest() string {
	k, v := g.of(g.key(), "k\r\n \x00"), g.value()
	cas := uint64(0)
	if g.IntN(4) == 0 {
		cas = g.token(k)
	}
	exptime := be(4, []uint64{0, 5000, 2678400, 1<<32 - 1, uint64(time.Now().Unix() + 9000)}[g.IntN(5)])
	quietly := func(loud, quiet byte) byte { return []byte{loud, quiet}[g.IntN(2)] }
	p := func(opcode byte, extras, key, value string) string {
		return string(packet(opcode, extras, key, value, cas))
	}
	switch g.IntN(10) {
	case 0, 1:
		return p([]byte{0x00, 0x09, 0x0c, 0x0d}[g.IntN(4)], "", k, "")
	case 2, 3:
		return p([]byte{0x01, 0x02, 0x03, 0x11, 0x12, 0x13}[g.IntN(6)], be(4, g.Uint64())+exptime, k, v)
	case 4:
		return p(quietly(0x04, 0x14), "", k, "")
	case 5:
		// Nothing from 1<<63 on: memcached looks for a minus sign behind such a number, and behind the item (safe_strtoull).
		initial, opcode := be(8, 1<<62+g.Uint64N(1<<60))+g.of(exptime, be(4, 1<<32-1)), []byte{0x05, 0x06, 0x15, 0x16}[g.IntN(4)]
		if g.IntN(2) == 0 {
			return p(opcode, be(8, 0)+initial, k, "")
		}
		return string(packet(0x01, be(4, 0)+be(4, 0), "n", "5000", 0)) + p(opcode, be(8, g.Uint64N(4000))+initial, "n", "")
	case 6:
		return p([]byte{0x0e, 0x0f, 0x19, 0x1a}[g.IntN(4)], "", k, v)
	case 7:
		return p([]byte{0x1d, 0x1e, 0x23, 0x24}[g.IntN(4)], exptime, k, "")
	case 8:
		return string(packet(0x01, be(4, 0)+be(4, 0), k, v, 0)) + p(0x1c, exptime, k, "") // the flags of what is touched are 0
	}
	return g.of(p(0x0a, "", "", ""), p(0x0b, "", "", ""), p(quietly(0x08, 0x18), "", "", ""), p(quietly(0x08, 0x18), be(4, 0), "", ""),
		p(0x20, "", "", ""), p(0xfe, "", "", ""))
}

// stream is made of n requests of next, and ends with one that tells where it ends.
func (g *generator) stream(t testing.TB, n int, next func() string, last string) []byte {
	var stream []byte
	for range n {
		request := next()
		stream = append(stream, request...)
		g.toy.answer(t, []byte(request), Limits{}, whole)
	}
	return append(stream, last...)
}

var protocols = []struct {
	name string
	next func(*generator) string
	last string
}{
	{"text", (*generator).textRequest, "mn\r\n"},
	{"binary", (*generator).binaryRequest, string(packet(0x0a, "", "", "", 0))},
}

func TestMemcachedAnswersTheSame(t *testing.T) {
	o := newOracle(t)
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			for i := range 200 {
				start := o.empty()
				g := &generator{rng, start.clone()}
				stream := g.stream(t, 30, func() string { return p.next(g) }, p.last)
				want := o.ask(stream, randomly(rng))
				got, end, _ := start.answer(t, stream, Limits{}, randomly(rng))
				if comparable(got) != comparable(want) || end != "end" {
					t.Fatalf("seed %d, stream %d: %s", seed, i, o.firstDifference(stream, difference(got, want)))
				}
			}
		})
	}
}

// firstDifference looks for the request after which the answers differ.
func (o *oracle) firstDifference(stream []byte, seen string) string {
	o.t.Helper()
	var cut []int
	var r Request
	for pos := 0; pos < len(stream); {
		n, _, err := r.parse(IsBinary(stream[0]), stream[pos:], Limits{})
		if n == 0 {
			return fmt.Sprintf("at %d of %q: %v", pos, stream, err)
		}
		pos += n
		cut = append(cut, pos)
	}
	from := 0
	for _, to := range cut {
		start := o.empty()
		got, _, _ := start.answer(o.t, stream[:to], Limits{}, whole)
		want := o.ask(stream[:to], whole)
		if comparable(got) != comparable(want) {
			return fmt.Sprintf("after %q comes %q: %s", stream[max(0, from-500):from], stream[from:to], difference(got, want))
		}
		from = to
	}
	return "not again; it was: " + seen
}

// difference shows two answers from a little before where they differ.
func difference(got, want []byte) string {
	same := 0
	for same < min(len(got), len(want)) && got[same] == want[same] {
		same++
	}
	same = max(0, same-100)
	return fmt.Sprintf("got ...%.400q, want ...%.400q", got[same:], want[same:])
}

// beyond is what damaged streams are not made of: it acts beyond the stream, has an answer of its own, makes items (N), is a
// key that damage makes too long, or would touch flags (see TestDifferences) and count numbers that damage makes.
var beyond = regexp.MustCompile(`(?s)^flush_all -|^stats| N0|k{250}|^set n|^(incr|decr) |^.[\x08\x18]\x00\x00\x04|.[\x05\x06\x15\x16\x1c]\x00.[\x04\x14]\x00\x00\x00`)

// Damaged streams: up to where we refuse, memcached has answered the same; and where we refuse nothing, all.
func TestMemcachedReadsWhatWeAcceptOfDamagedRequests(t *testing.T) {
	o := newOracle(t)
	noise := map[string]string{"text": "\r\n 0-123kx\x00\xff", "binary": "\x00\x06\x09\x14\x80\xff"}
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			whole, compared := 0, 0
			for i := range 300 {
				start := o.empty()
				g := &generator{rng, start.clone()}
				stream := g.stream(t, 6, func() string {
					for {
						if r := p.next(g); len(r) < 500 && !beyond.MatchString(r) {
							return r
						}
						if p.name == "text" && rng.IntN(50) == 0 {
							return g.of("incr", "decr") + " none 1" + g.noreply() + "\r\n"
						}
					}
				}, p.last)
				for range 1 + rng.IntN(2) {
					at, c := rng.IntN(len(stream)), noise[p.name][rng.IntN(len(noise[p.name]))]
					switch rng.IntN(3) {
					case 0:
						stream[at] = c
					case 1:
						stream = append(stream[:at], stream[at+1:]...)
					default:
						stream = append(stream[:at], append([]byte{c}, stream[at:]...)...)
					}
				}
				theirs := comparable(o.ask(stream, randomly(rng)))
				answers, end, refused := start.answer(t, stream, Limits{}, randomly(rng))
				if refused < 0 {
					refused = len(answers)
				}
				ours := comparable(answers[:refused])
				switch {
				case end == "end" && refused == len(answers):
					whole++
				case len(ours) < len(theirs):
					theirs = theirs[:len(ours)]
				default:
					// Where memcached waits for data it keeps the answers to what came before, and they end with the connection.
					ours = ours[:len(theirs)]
				}
				if ours != theirs {
					t.Fatalf("seed %d, stream %d: %.2000q: %s", seed, i, stream, difference([]byte(ours), []byte(theirs)))
				}
				compared += len(ours)
			}
			t.Logf("%d streams as a whole, %d bytes of answers", whole, compared)
			if whole < 20 || compared < 3000 {
				t.Errorf("too little was compared: %d streams as a whole, %d bytes of answers", whole, compared)
			}
		})
	}
}

// Streams that do not come up by chance.
func TestMemcachedAnswersTheSameTo(t *testing.T) {
	o := newOracle(t)
	tooLarge := strings.Repeat("x", 1<<20+1)
	for name, in := range map[string]string{
		"a number that wraps":         "set n 0 0 1\r\n1\r\nincr n 18446744073709551615\r\nincr n 9223372036854775807\r\nget n\r\n",
		"a number that gets shorter":  "set n 0 0 2\r\n10\r\ndecr n 1\r\nincr n 1\r\nincr n 90\r\n",
		"a number that gets longer":   "set n 7 0 1\r\n9\r\nincr n 1\r\nget n\r\n",
		"decr below 0":                "set n 0 0 2\r\n10\r\ndecr n 11\r\n",
		"incr beyond 64 bits":         "set n 0 0 20\r\n18446744073709551616\r\nincr n 1\r\n",
		"read, and not":               "set a 0 0 1\r\nx\r\nmg a h u\r\nmg a h\r\nmg a h\r\nme a\r\n",
		"too large":                   "set a 0 0 1048577\r\n" + tooLarge + "\r\nset a 0 0 1048577 noreply\r\n" + tooLarge + "\r\nms a 1048577 q\r\n" + tooLarge + "\r\nversion\r\n",
		"too large, binary":           bin(packet(0x11, store8, "a", tooLarge, 0), packet(0x0e, "", "a", tooLarge, 0), version),
		"quit":                        "version\r\nquit\r\nversion\r\n",
		"quit with an argument":       "quit now\r\nversion\r\n",
		"quit, binary":                bin(version, packet(0x07, "", "", "", 0), version),
		"quitq":                       bin(version, packet(0x17, "", "", "", 0), version),
		"HTTP":                        "GET / HTTP/1.0\r\n\r\nversion\r\n",
		"HTTP with a body":            "POST / HTTP/1.1\r\n\r\nversion\r\n",
		"SASL":                        bin(packet(0x20, "", "", "", 0), packet(0x21, "", "PLAIN", "\x00u\x00p", 0), packet(0x22, "", "PLAIN", "x", 0), version),
		"text behind binary":          bin(version, "version\r\n"),
		"a key of 251":                bin(version, packet(0x00, "", key251, "", 0), version),
		"a get without a key":         bin(version, packet(0x00, "", "", "", 0), version),
		"a set without extras":        bin(version, packet(0x11, "", "a", "x", 0), version),
		"a noop with a body":          bin(version, packet(0x0a, "", "", "x", 0)),
		"an unknown opcode":           bin(packet(0x1b, "", "", "", 0), packet(0xff, "", "", "", 0), version),
		"what does not come":          "set a 0 0 10\r\nabc",
		"half a header":               string(version[:20]),
		"stats that there are not":    "stats nonsense\r\n",
		"stats reset, binary":         bin(packet(0x10, "", "reset", "", 0), packet(0x10, "", "nonsense", "", 0), version),
		"php-memcached, strict mode":  "add k 0 2678400 0\r\n\r\nadd k 0 2678400 0\r\n\r\nset k 0 0 1\r\nx\r\nadd k 0 2678400 0\r\n\r\nget k\r\n",
		"php-memcache, lock and read": "incr s.lock 1\r\nadd s.lock 768 15 1\r\n1\r\nget s\r\nset s.lock 768 15 1\r\n0\r\nincr s.lock 1\r\n",
	} {
		start := o.empty()
		got, _, _ := start.answer(t, []byte(in), Limits{}, whole)
		if want := o.ask([]byte(in), whole); fixed(got) != fixed(want) {
			t.Errorf("%s: %.200q: %s", name, in, difference(got, want))
		}
	}
}

// fixed is comparable for streams in which it is known whether an item was read.
func fixed(b []byte) string { return string(inSlabs.ReplaceAll(b, []byte("$1#"))) }

var inSlabs = regexp.MustCompile(`( [tl]| la=| cls=| size=)\d+`)

// response is a binary answer.
func response(opcode byte, status Status, extras, value string, cas uint64) string {
	p := packet(opcode, extras, "", value, cas)
	p[0], p[7] = responseMagic, byte(status)
	return string(p)
}

// TestDifferences has what is not as in memcached, on purpose. In each, mn (or noop) comes last, to see whether the
// connection went on.
func TestDifferences(t *testing.T) {
	o := newOracle(t)
	noop := string(packet(0x0a, "", "", "", 0))
	datatype := packet(0x0b, "", "", "", 0)
	datatype[5] = 1
	mib := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		why, in      string
		ours, theirs string
	}{
		{"LF only", "version\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"VERSION 1.6.18\r\nMN\r\n"},
		{"LF only, and data", "set a 0 0 2\nmn\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\n",
			"STORED\r\nMN\r\n"},
		{"control characters in keys", "set a\tb 0 0 1\r\nx\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"STORED\r\nMN\r\n"},
		{"NUL ends no line", "get a\x00b\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"END\r\nMN\r\n"},
		{"flags of 33 bits", "set a 4294967296 0 1\r\nx\r\nget a\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nEND\r\nMN\r\n",
			"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\nMN\r\n"},
		{"exptime of 32 bits without a sign", "set a 0 2147483648 1\r\nx\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"STORED\r\nMN\r\n"},
		{"a sign", "set a 0 +5 1\r\nx\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"STORED\r\nMN\r\n"},
		{"something else than noreply", "set a 0 0 1 norep\r\nx\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"STORED\r\nMN\r\n"},
		{"the data of a refused command are none", "set a x 0 7\r\nversion\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n",
			"CLIENT_ERROR bad command line format\r\nVERSION 1.6.18\r\nMN\r\n"},
		{"nor where nobody knows how many", "set a 0 0 -1\r\nversion\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\n",
			"CLIENT_ERROR bad command line format\r\nVERSION 1.6.18\r\nMN\r\n"},
		{"nor where the line ends early", "set a\r\nversion\r\nmn\r\n",
			"ERROR\r\n",
			"ERROR\r\nVERSION 1.6.18\r\nMN\r\n"},
		{"nor in meta", "ms a S7\r\nversion\r\nmn\r\n",
			"CLIENT_ERROR bad command line format\r\n",
			"CLIENT_ERROR bad command line format\r\nVERSION 1.6.18\r\nMN\r\n"},
		{"data shorter than announced", "set a 0 0 3\r\nab\r\nversion\r\nmn\r\n",
			"CLIENT_ERROR bad data chunk\r\n",
			"CLIENT_ERROR bad data chunk\r\nERROR\r\nMN\r\n"},
		{"the limit is the value's", "set a 0 0 1048576\r\n" + mib + "\r\nmn\r\n",
			"STORED\r\nMN\r\n",
			"SERVER_ERROR object too large for cache\r\nMN\r\n"},
		{"what is too large does not delete what was there", "set a 0 0 1\r\nx\r\nset a 0 0 1048577\r\n" + mib + "x\r\nget a\r\nmn\r\n",
			"STORED\r\nSERVER_ERROR object too large for cache\r\nVALUE a 0 1\r\nx\r\nEND\r\nMN\r\n",
			"STORED\r\nSERVER_ERROR object too large for cache\r\nEND\r\nMN\r\n"},
		{"more than a hundred keys", "get" + strings.Repeat(" a", 101) + "\r\nmn\r\n",
			"CLIENT_ERROR too many keys\r\nMN\r\n",
			"END\r\nMN\r\n"},
		{"a key too long does not take answers before it with it", "version\r\nget " + key251 + "\r\nmn\r\n",
			"VERSION 1.6.18\r\nCLIENT_ERROR bad command line format\r\nMN\r\n",
			"CLIENT_ERROR bad command line format\r\nMN\r\n"},
		{"gat of nothing", "gat 0\r\nmn\r\n",
			"ERROR\r\nMN\r\n",
			"END\r\nMN\r\n"},
		{"bget", "bget a\r\nmn\r\n",
			"ERROR\r\nMN\r\n",
			"END\r\nMN\r\n"},
		{"ma", "ma a\r\nmn\r\n",
			"ERROR\r\nMN\r\n",
			"NF\r\nMN\r\n"},
		{"lru_crawler", "lru_crawler crawl all\r\nmn\r\n",
			"ERROR\r\nMN\r\n",
			"OK\r\nMN\r\n"},
		{"HTTP header", "Host: a\r\nmn\r\n",
			"",
			"ERROR\r\nMN\r\n"},
		{"TLS", "\x16\x03\x01\r\nmn\r\n",
			"",
			"ERROR\r\nMN\r\n"},
		{"a first byte beyond ASCII", "\xffversion\r\nmn\r\n",
			"",
			"ERROR\r\nMN\r\n"},
		{"binary behind text", "mn\r\n" + noop,
			"MN\r\n",
			"MN\r\nERROR\r\n"},
		{"a key in base64 is given back as it came", "set a 0 0 1\r\nx\r\nmg YQ== b k\r\nmn\r\n",
			"STORED\r\nHD kYQ== b\r\nMN\r\n",
			"STORED\r\nHD ka\r\nMN\r\n"},
		{"bits behind the end of base64", "mg YR== b\r\nmn\r\n",
			"CLIENT_ERROR error decoding key\r\nMN\r\n",
			"EN\r\nMN\r\n"},
		{"time left is that after the touch", "set a 0 0 1\r\nx\r\nmg a t T0\r\nset a 0 0 1\r\nx\r\nmg a t T5000\r\nmn\r\n",
			"STORED\r\nHD t-1\r\nSTORED\r\nHD t5000\r\nMN\r\n",
			"STORED\r\nHD t-1\r\nSTORED\r\nHD t-1\r\nMN\r\n"},
		{"data of ms with too many flags", "ms a 2 b k s v t c f q u h l N0 R0 T0 O I F0\r\nxx\r\nmn\r\n",
			"CLIENT_ERROR options flags too long\r\nMN\r\n",
			"CLIENT_ERROR options flags too long\r\nERROR\r\nMN\r\n"},
		{"the body of an unknown opcode is not counted twice", bin(packet(0xff, "", strings.Repeat("k", headerLen), "", 0), version, noop),
			response(0xff, StatusUnknownCommand, "", "Unknown command", 0) + response(0x0b, 0, "", "1.6.18", 0) + response(0x0a, 0, "", "", 0),
			response(0xff, StatusUnknownCommand, "", "Unknown command", 0) + response(0x0a, 0, "", "", 0)},
		{"a data type", bin(datatype, noop),
			response(0x0b, StatusInvalid, "", "Invalid arguments", 0) + response(0x0a, 0, "", "", 0),
			response(0x0b, 0, "", "1.6.18", 0) + response(0x0a, 0, "", "", 0)},
		{"lengths that contradict each other", bin(header(0x00, 2, 0, 1), "ab", noop),
			"",
			response(0x00, StatusUnknownCommand, "", "Unknown command", 0)},
		{"what was answered before the connection ends is told", bin(version, "\x81", string(noop[1:]), noop),
			response(0x0b, 0, "", "1.6.18", 0),
			""},
		{"a value of touch is no request", bin(packet(0x1c, be(4, 0), "a", noop, 0), noop),
			response(0x1c, StatusInvalid, "", "Invalid arguments", 0),
			response(0x1c, 1, "", "Not found", 0) + response(0x0a, 0, "", "", 0) + response(0x0a, 0, "", "", 0)},
		{"touch does not tell the flags", bin(packet(0x11, be(4, 7)+be(4, 0), "a", "x", 0), packet(0x1c, be(4, 0), "a", "", 0), noop),
			response(0x1c, 0, be(4, 0), "", 0) + response(0x0a, 0, "", "", 0),
			response(0x1c, 0, be(4, 7), "", 0) + response(0x0a, 0, "", "", 0)},
	} {
		start := o.empty()
		got, _, _ := start.answer(t, []byte(c.in), Limits{}, whole)
		want := o.ask([]byte(c.in), whole)
		for who, pair := range map[string][2]string{"we": {string(got), c.ours}, "memcached": {string(want), c.theirs}} {
			if withoutCAS(pair[0]) != withoutCAS(pair[1]) {
				t.Errorf("%s: %.100q: %s: got %.300q, want %.300q", c.why, c.in, who, pair[0], pair[1])
			}
		}
	}
}

// withoutCAS drops what binary answers have for a CAS.
func withoutCAS(s string) string { return casOf.ReplaceAllString(s, "OPQ1") }

var casOf = regexp.MustCompile(`(?s)OPQ1.{8}`)
