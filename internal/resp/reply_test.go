package resp

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// show writes a value down as a test can compare it.
func show(v Value) string {
	k := string(v.Kind)
	switch {
	case v.Null:
		return k + "null"
	case v.Kind == Int || v.Kind == Bool:
		return k + strconv.FormatInt(v.Int, 10)
	case !v.Kind.aggregate():
		if len(v.Str) > 1000 {
			return fmt.Sprintf("%s(%d bytes)", k, len(v.Str))
		}
		return fmt.Sprintf("%s%q", k, v.Str)
	}
	elems := make([]string, len(v.Elems))
	for i, e := range v.Elems {
		elems[i] = show(e)
	}
	return k + "[" + strings.Join(elems, " ") + "]"
}

// replies parses with ParseReply, and holds ScanReply against it.
func replies(t testing.TB, lim ReplyLimits) func(buf []byte) message {
	return func(buf []byte) message {
		var m message
		var v Value
		v, m.n, m.need, m.err = ParseReply(buf, lim)
		n, need, err := ScanReply(buf, lim)
		if n != m.n || need != m.need || fmt.Sprint(err) != fmt.Sprint(m.err) {
			t.Fatalf("%q: ScanReply says %d, %d, %v, ParseReply %d, %d, %v", buf, n, need, err, m.n, m.need, m.err)
		}
		if err == nil {
			m.text = show(v)
		} else if !reflect.DeepEqual(v, Value{}) {
			t.Fatalf("%q: got a value, %s, with error %v", buf, show(v), err)
		}
		return m
	}
}

var (
	invalidLength = reply("invalid length")
	invalidNumber = reply("invalid number, boolean or null")
	strayEnd      = reply("stray line end")
	tooBig        = reply("too big reply")
	tooDeep       = reply("too deep a reply")
	tooLong       = reply("too long line")
)

// replyCases: what servers send, and "from upstream to us" in field/reliability.md c1. What replies mean (a MOVED, a
// LOADING, one reply too many) is not for a parser to say.
var replyCases = []struct {
	name string
	in   string
	lim  ReplyLimits
	want []string
}{
	{"status", "+OK\r\n", ReplyLimits{}, []string{`+"OK"`, "end"}},
	{"empty status", "+\r\n", ReplyLimits{}, []string{`+""`, "end"}},
	{"error", "-ERR no\r\n", ReplyLimits{}, []string{`-"ERR no"`, "end"}},
	{"integers", ":0\r\n:-5\r\n:+5\r\n:9223372036854775807\r\n:-9223372036854775808\r\n", ReplyLimits{}, []string{":0", ":-5", ":5", ":9223372036854775807", ":-9223372036854775808", "end"}},
	{"integer over 64 bits", ":9223372036854775808\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"integer of many digits", ":" + strings.Repeat("0", 100) + "\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"no integer", ":\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"integer with an underscore", ":1_0\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"bulk", "$6\r\na\r\nb\x00c\r\n", ReplyLimits{}, []string{`$"a\r\nb\x00c"`, "end"}},
	{"empty bulk", "$0\r\n\r\n", ReplyLimits{}, []string{`$""`, "end"}},
	{"null bulk", "$-1\r\n", ReplyLimits{}, []string{"$null", "end"}},
	{"array", "*3\r\n$1\r\na\r\n:1\r\n*1\r\n$-1\r\n", ReplyLimits{}, []string{`*[$"a" :1 *[$null]]`, "end"}},
	{"empty array", "*0\r\n", ReplyLimits{}, []string{"*[]", "end"}},
	{"null array", "*-1\r\n", ReplyLimits{}, []string{"*null", "end"}},
	{"null", "_\r\n", ReplyLimits{}, []string{"_null", "end"}},
	{"null with text", "_x\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"booleans", "#t\r\n#f\r\n", ReplyLimits{}, []string{"#1", "#0", "end"}},
	{"not a boolean", "#true\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"empty boolean", "#\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"doubles", ",1.5\r\n,-10\r\n,1.\r\n,1e5\r\n,1.5E-7\r\n,inf\r\n,-inf\r\n,nan\r\n", ReplyLimits{}, []string{`,"1.5"`, `,"-10"`, `,"1."`, `,"1e5"`, `,"1.5E-7"`, `,"inf"`, `,"-inf"`, `,"nan"`, "end"}},
	{"no double", ",\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"double without digits", ",-.5\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"double with half an exponent", ",1e\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"double with something behind", ",1.5x\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"big number", "(-3492890328409238509324850943850943825024385\r\n", ReplyLimits{}, []string{`("-3492890328409238509324850943850943825024385"`, "end"}},
	{"no big number", "(1.5\r\n", ReplyLimits{}, []string{invalidNumber}},
	{"blob error", "!7\r\nERR a\r\n\r\n", ReplyLimits{}, []string{`!"ERR a\r\n"`, "end"}},
	{"null blob error", "!-1\r\n", ReplyLimits{}, []string{invalidLength}},
	{"verbatim", "=8\r\ntxt:a\r\nb\r\n", ReplyLimits{}, []string{`="a\r\nb"`, "end"}},
	{"verbatim without a format", "=3\r\ntxt\r\n", ReplyLimits{}, []string{reply("invalid verbatim string")}},
	{"verbatim without a colon", "=4\r\ntext\r\n", ReplyLimits{}, []string{reply("invalid verbatim string")}},
	{"map", "%2\r\n+a\r\n:1\r\n+b\r\n%0\r\n", ReplyLimits{}, []string{`%[+"a" :1 +"b" %[]]`, "end"}},
	{"set", "~2\r\n+a\r\n+b\r\n", ReplyLimits{}, []string{`~[+"a" +"b"]`, "end"}},
	{"push", ">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n+OK\r\n", ReplyLimits{}, []string{`>[+"invalidate" *[$"k"]]`, `+"OK"`, "end"}},
	{"attribute", "|1\r\n+ttl\r\n:3600\r\n+OK\r\n", ReplyLimits{}, []string{`+"OK"`, "end"}},
	{"attributes in an array", "*2\r\n|1\r\n+a\r\n*1\r\n+b\r\n:1\r\n|0\r\n|1\r\n+c\r\n|0\r\n+d\r\n%1\r\n+x\r\n+y\r\n", ReplyLimits{}, []string{`*[:1 %[+"x" +"y"]]`, "end"}},
	{"attribute and no value", "|1\r\n+a\r\n+b\r\n", ReplyLimits{}, []string{"wait"}},
	{"redirection", "-MOVED 99999 host:0\r\n-ASK 1 [::1\r\n", ReplyLimits{}, []string{`-"MOVED 99999 host:0"`, `-"ASK 1 [::1"`, "end"}},
	{"a reply too many", "+OK\r\n+OK\r\n", ReplyLimits{}, []string{`+"OK"`, `+"OK"`, "end"}},

	{"half a status", "+OK\r", ReplyLimits{}, []string{"wait"}},
	{"half a bulk", "$4\r\nab", ReplyLimits{}, []string{"wait"}},
	{"half a bulk array", "*2\r\n$1\r\na\r\n", ReplyLimits{}, []string{"wait"}},
	{"no RESP", "HTTP/1.1 400 Bad Request\r\n", ReplyLimits{}, []string{reply("unknown type 'H'")}},
	{"TLS alert", "\x15\x03\x01\x00\x02\x02\x0a", ReplyLimits{}, []string{reply("unknown type '?'")}},
	{"status with CR", "+O\rK\r\n", ReplyLimits{}, []string{strayEnd}},
	{"status with LF", "+O\nK\r\n", ReplyLimits{}, []string{strayEnd}},
	{"bulk without CRLF behind", "$1\r\nabc", ReplyLimits{}, []string{reply("expected CRLF after a string")}},
	{"$-2", "$-2\r\n", ReplyLimits{}, []string{invalidLength}},
	{"$-0", "$-0\r\n", ReplyLimits{}, []string{invalidLength}},
	{"$-11", "$-11\r\n", ReplyLimits{}, []string{invalidLength}},
	{"*-2", "*-2\r\n", ReplyLimits{}, []string{invalidLength}},
	{"%-1", "%-1\r\n", ReplyLimits{}, []string{invalidLength}},
	{"$+1", "$+1\r\na\r\n", ReplyLimits{}, []string{invalidLength}},
	{"$01", "$01\r\na\r\n", ReplyLimits{}, []string{invalidLength}},
	{"streamed string", "$?\r\n;1\r\na\r\n;0\r\n", ReplyLimits{}, []string{invalidLength}},
	{"bulk that wraps", "$18446744073709551617\r\na\r\n", ReplyLimits{}, []string{invalidLength}},
	{"2^63-1 as a bulk", "$9223372036854775807\r\n", ReplyLimits{}, []string{invalidLength}},
	{"2^32-1 elements", "*4294967295\r\n", ReplyLimits{}, []string{invalidLength}},
	{"2^32-1 elements with the largest limits", "*4294967295\r\n", ReplyLimits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt}, []string{invalidLength}},
	{"2^63-1 pairs", "%9223372036854775807\r\n", ReplyLimits{}, []string{invalidLength}},
	{"bulk limit", "$4\r\nabcd\r\n", ReplyLimits{Bulk: 4}, []string{`$"abcd"`, "end"}},
	{"bulk limit + 1", "$5\r\n", ReplyLimits{Bulk: 4}, []string{invalidLength}},
	{"element limit", "*2\r\n*1\r\n:1\r\n:2\r\n", ReplyLimits{Elems: 3}, []string{"*[*[:1] :2]", "end"}},
	{"element limit + 1", "*2\r\n*2", ReplyLimits{Elems: 3}, []string{invalidLength}},
	{"element limit in a map", "%2\r\n", ReplyLimits{Elems: 3}, []string{invalidLength}},
	{"attributes without end", strings.Repeat("|0\r\n", 10), ReplyLimits{Elems: 3}, []string{tooBig}},
	{"depth limit", "*1\r\n*1\r\n:1\r\n", ReplyLimits{Depth: 2}, []string{"*[*[:1]]", "end"}},
	{"depth limit + 1", "*1\r\n*1\r\n*0\r\n", ReplyLimits{Depth: 2}, []string{tooDeep}},
	{"depth limit in attributes", "|1\r\n+a\r\n*1\r\n*1\r\n:1\r\n:1\r\n", ReplyLimits{Depth: 2}, []string{tooDeep}},
	{"arrays in arrays, 10^5 deep", strings.Repeat("*1\r\n", 100_000), ReplyLimits{}, []string{tooDeep}},
	{"the same with the largest limits", strings.Repeat("*1\r\n", 100_000), ReplyLimits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt}, []string{tooDeep}},
	{"attributes in attributes, 10^5 deep", strings.Repeat("|1\r\n", 100_000), ReplyLimits{}, []string{tooDeep}},
	{"reply limit", "*2\r\n$4\r\nabcd\r\n:1\r\n", ReplyLimits{Reply: 18}, []string{`*[$"abcd" :1]`, "end"}},
	{"reply limit + 1", "*2\r\n$4\r\nabcd\r\n:12\r\n", ReplyLimits{Reply: 18}, []string{tooBig}},
	{"reply limit, as soon as declared", "$20\r\n", ReplyLimits{Reply: 18}, []string{tooBig}},
	{"reply limit by elements to come", "*6\r\n:1\r\n", ReplyLimits{Reply: 18}, []string{tooBig}},
	{"map with an odd element", "%1\r\n+a\r\n", ReplyLimits{}, []string{"wait"}},
	{"a line of 64 KiB", "+" + strings.Repeat("a", 64<<10-2) + "\r\n", ReplyLimits{}, []string{"+(65534 bytes)", "end"}},
	{"a line of 64 KiB + 1", "+" + strings.Repeat("a", 64<<10-1) + "\r\n", ReplyLimits{}, []string{tooLong}},
	{"a line without end", "+" + strings.Repeat("a", 64<<10), ReplyLimits{}, []string{tooLong}},
	{"push in an array", "*1\r\n>1\r\n+a\r\n", ReplyLimits{}, []string{reply("push inside a reply")}},
}

func TestParseReply(t *testing.T) {
	for _, c := range replyCases {
		t.Run(c.name, func(t *testing.T) {
			if got := play(t, []byte(c.in), whole, replies(t, c.lim)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("in one piece: got %q, want %q", got, c.want)
			}
			size := bytewise
			if len(c.in) > 1000 {
				size = func(int) int { return 997 } // a line is looked through again with each piece
			}
			got := play(t, []byte(c.in), size, replies(t, c.lim))
			if !reflect.DeepEqual(got, c.want) && !laterVerdict(got, c.want) {
				t.Errorf("in small pieces: got %q, want %q", got, c.want)
			}
		})
	}
}

// laterVerdict: need tells how long a reply is at least, so a reader that waits for it may see an end of the stream
// before it asks again and hears that what came is no reply.
func laterVerdict(got, want []string) bool {
	last := len(want) - 1
	return len(got) == len(want) && got[last] == "wait" && strings.HasPrefix(want[last], "reply") &&
		reflect.DeepEqual(got[:last], want[:last])
}

func TestReplyNeed(t *testing.T) {
	for _, c := range []struct {
		in   string
		need int
	}{
		{"", 3}, {"+", 3}, {"+OK", 0}, {"$", 3}, {"$5\r\n", 11}, {"$5\r\nab", 11}, {"*3\r\n", 13}, {"*3\r\n$4\r\n", 4 + 10 + 6},
		{"*3\r\n$4\r\nabcd\r\n", 4 + 10 + 6}, {"%2\r\n", 16}, {"|1\r\n", 13}, {"*2\r\n|1\r\n", 8 + 6 + 6},
	} {
		if _, need, err := ScanReply([]byte(c.in), ReplyLimits{}); need != c.need || err != ErrIncomplete {
			t.Errorf("ScanReply(%q): got need %d, %v, want %d, ErrIncomplete", c.in, need, err, c.need)
		}
	}
}

// encode writes v as a RESP3 server does: the inverse of ParseReply, but for attributes and for the format of verbatim
// strings.
func encode(b []byte, v Value) []byte {
	switch {
	case v.Kind == Null:
		return AppendNull(b, 3)
	case v.Null && v.Kind == Array:
		return AppendNullArray(b, 2)
	case v.Null:
		return AppendNull(b, 2)
	}
	switch v.Kind {
	case Int:
		return AppendInt(b, v.Int)
	case Bool:
		return append(append(b, "#ft"[0], "ft"[v.Int]), "\r\n"...)
	case Simple:
		return AppendSimple(b, string(v.Str))
	case Error:
		return AppendError(b, string(v.Str))
	case Double, BigNumber:
		return append(append(append(b, byte(v.Kind)), v.Str...), "\r\n"...)
	case Verbatim:
		b = appendLen(b, byte(v.Kind), len(v.Str)+4)
		return append(append(append(b, "txt:"...), v.Str...), "\r\n"...)
	case Bulk, BlobError:
		b = appendLen(b, byte(v.Kind), len(v.Str))
		return append(append(b, v.Str...), "\r\n"...)
	}
	n := len(v.Elems)
	if v.Kind == Map {
		n /= 2
	}
	b = appendLen(b, byte(v.Kind), n)
	for _, e := range v.Elems {
		b = encode(b, e)
	}
	return b
}

func randomValue(rng *rand.Rand, depth int) Value {
	kinds := []Kind{Simple, Error, Int, Bulk, Null, Bool, Double, BigNumber, BlobError, Verbatim, Array, Map, Set, Push}
	v := Value{Kind: kinds[rng.IntN(len(kinds))]}
	if v.Kind.aggregate() && depth == 3 || v.Kind == Push && depth > 0 {
		v.Kind = Bulk
	}
	switch v.Kind {
	case Simple, Error:
		v.Str = []byte(strings.Repeat("ab ", rng.IntN(5)))
	case Int:
		v.Int = int64(rng.Uint64()) >> rng.IntN(64)
	case Bool:
		v.Int = rng.Int64N(2)
	case Double:
		v.Str = strconv.AppendFloat(nil, rng.NormFloat64()*1e10, 'g', -1, 64)
	case BigNumber:
		v.Str = strconv.AppendInt(nil, int64(rng.Uint64()), 10)
	case Null:
		v.Null = true
	case Bulk, Array:
		v.Null = rng.IntN(5) == 0
	}
	switch {
	case v.Null:
	case v.Kind.aggregate():
		n := rng.IntN(5)
		if v.Kind == Map {
			n *= 2
		}
		for range n {
			v.Elems = append(v.Elems, randomValue(rng, depth+1))
		}
	case v.Kind == Bulk || v.Kind == BlobError || v.Kind == Verbatim:
		v.Str = randomArgs(rng)[0]
	}
	return v
}

func TestReplyRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		want := randomValue(rng, 0)
		b := encode(nil, want)
		got, n, _, err := ParseReply(b, ReplyLimits{})
		if err != nil || n != len(b) || show(got) != show(want) {
			t.Fatalf("seed %d: ParseReply(%q): got %s, %d, %v, want %s", seed, b, show(got), n, err, show(want))
		}
	}
}

func TestAnyChunkingOfReplies(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		var stream []byte
		for range rng.IntN(5) {
			stream = encode(stream, randomValue(rng, 0))
		}
		if rng.IntN(2) == 0 {
			if c := replyCases[rng.IntN(len(replyCases))]; len(c.in) < 1000 {
				stream = append(stream, c.in...)
			}
		}
		lim := ReplyLimits{Bulk: 1 << 10, Elems: 100, Depth: 4, Reply: 1 << 11}
		want := play(t, stream, whole, replies(t, lim))
		size := func(int) int { return rng.IntN(1 + rng.IntN(100)) }
		if got := play(t, stream, size, replies(t, lim)); !reflect.DeepEqual(got, want) && !laterVerdict(got, want) {
			t.Fatalf("seed %d: %q in pieces: got %q, want %q", seed, stream, got, want)
		}
	}
}

func TestScanReplyDoesNotAllocate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := encode(nil, randomValue(rng, 0))
		for _, in := range [][]byte{b, b[:len(b)/2]} {
			if n := testing.AllocsPerRun(10, func() { _, _, _ = ScanReply(in, ReplyLimits{}) }); n != 0 {
				t.Fatalf("ScanReply(%q): got %v allocations, want 0", in, n)
			}
		}
	}
}

func TestParseReplyAllocatesOnlyForElementsThatCame(t *testing.T) {
	for _, c := range []struct {
		in  string
		max uint64
	}{
		{"$1024\r\n" + strings.Repeat("v", 1024) + "\r\n", 0},
		{"$16777216\r\n", 0},
		{"*65536\r\n", 0},
		{"%32768\r\n+a\r\n", 0},
		{strings.Repeat("*4096\r\n", 16), 0},
		{"|1\r\n+a\r\n*2\r\n+b\r\n+c\r\n+OK\r\n", 0},
		{"$536870913\r\n", 1024},
		{"*2147483647\r\n", 1024},
		{strings.Repeat("*1\r\n", 100_000), 1024},
	} {
		in := []byte(c.in)
		if got := allocated(100, func() { _, _, _, _ = ParseReply(in, ReplyLimits{}) }); got > c.max+8 { // 8: the runtime's own, now and then
			t.Errorf("ParseReply(%.40q): allocated %d bytes, want at most %d", c.in, got, c.max)
		}
	}
}

func BenchmarkReply(b *testing.B) {
	value := AppendBulk(nil, bytes.Repeat([]byte("v"), 1024))
	array := AppendArrayLen(nil, 10)
	for range 10 {
		array = append(array, value...)
	}
	for name, in := range map[string][]byte{"OK": []byte("+OK\r\n"), "1KiB": value, "10x1KiB": array} {
		b.Run("scan/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = ScanReply(in, ReplyLimits{})
			}
		})
		b.Run("parse/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _, _ = ParseReply(in, ReplyLimits{})
			}
		})
	}
}
