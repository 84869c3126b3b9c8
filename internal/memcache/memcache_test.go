package memcache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// parse is the parser that a connection has after its first byte.
func (r *Request) parse(isBinary bool, buf []byte, lim Limits) (n, need int, err error) {
	if isBinary {
		return r.ParseBinary(buf, lim)
	}
	return r.ParseText(buf, lim)
}

// play gives stream to a parser in pieces, as a connection would, and each request and refusal to serve until that says
// to close. It returns how it ended: "end", "wait" (something is incomplete), "drop" (data of a refused request are
// missing) or "close". size tells how much arrives next, given what is left.
func play(t testing.TB, stream []byte, lim Limits, size func(left int) int, serve func(r *Request, err *Error) (end bool)) string {
	t.Helper()
	var r Request
	pos, have, need := 0, 0, 0
	isBinary := len(stream) > 0 && IsBinary(stream[0])
	for {
		if buf := stream[min(pos, have):have:have]; pos <= have && len(buf) >= need {
			n, more, err := r.parse(isBinary, buf, lim)
			need = more
			var refused *Error
			switch {
			case err != ErrIncomplete && more != 0, more != 0 && more <= len(buf):
				t.Fatalf("need is %d with %d bytes there and error %v", more, len(buf), err)
			case err == ErrIncomplete && n != 0, err == nil && (n <= 0 || n > len(buf)):
				t.Fatalf("%d of %d bytes are done with, and the error is %v", n, len(buf), err)
			case err == ErrIncomplete:
			case err != nil && !errors.As(err, &refused):
				t.Fatalf("got error %v, want ErrIncomplete or an *Error", err)
			case refused != nil && refused.Close != (n == 0):
				t.Fatalf("%d bytes are done with, and the error is %#v", n, refused)
			default:
				if serve(&r, refused) || refused != nil && refused.Close {
					return "close"
				}
				pos += n
				continue
			}
		}
		switch {
		case have < len(stream):
			have += min(max(size(len(stream)-have), 1), len(stream)-have)
		case pos < have:
			return "wait"
		case pos > have:
			return "drop"
		default:
			return "end"
		}
	}
}

func whole(left int) int { return left }
func bytewise(int) int   { return 1 }

func randomly(rng *rand.Rand) func(int) int {
	return func(left int) int { return 1 + rng.IntN(min(left, 200)) }
}

// show writes a request or a refusal down as a test can compare it.
func show(r *Request, err *Error) string {
	if err != nil {
		end := ""
		if err.Security {
			end += ", security"
		}
		if err.Close {
			end += ", close"
		}
		return fmt.Sprintf("refused %q%s", err.Reply, end)
	}
	var b strings.Builder
	b.WriteString(opNames[r.Op])
	for _, k := range r.Keys {
		if len(k) > 100 {
			fmt.Fprintf(&b, " (key of %d)", len(k))
		} else {
			fmt.Fprintf(&b, " %q", k)
		}
	}
	field := func(format string, is bool, v ...any) {
		if is {
			fmt.Fprintf(&b, " "+format, v...)
		}
	}
	switch {
	case len(r.Value) > 1000:
		field("value=(%d bytes)", true, len(r.Value))
	case r.Value != nil:
		field("value=%q", len(r.Value) > 0 || r.form != binaryForm, r.Value)
	}
	field("flags=%d", r.Flags != 0, r.Flags)
	field("exptime=%d", r.Exptime != 0, r.Exptime)
	field("cas=%d", r.HasCAS, r.CAS)
	field("delta=%d", r.Delta != 0, r.Delta)
	field("initial=%d", r.Create, r.Initial)
	field("quiet", r.Quiet)
	return b.String()
}

var opNames = map[Op]string{OpNone: "none", OpGet: "get", OpGetTouch: "gat", OpDebug: "debug", OpSet: "set", OpAdd: "add",
	OpReplace: "replace", OpAppend: "append", OpPrepend: "prepend", OpDelete: "delete", OpTouch: "touch", OpIncr: "incr",
	OpDecr: "decr", OpFlush: "flush", OpStats: "stats", OpVersion: "version", OpVerbosity: "verbosity", OpNoop: "noop",
	OpQuit: "quit", OpSASLList: "sasl-list", OpSASLAuth: "sasl-auth", OpSASLStep: "sasl-step"}

// requests returns what a parser makes of stream, in words, and how it ends if that is not "end".
func requests(t testing.TB, stream []byte, lim Limits, size func(int) int) (said []string) {
	t.Helper()
	end := play(t, stream, lim, size, func(r *Request, err *Error) bool {
		said = append(said, show(r, err))
		return err == nil && r.Op == OpQuit
	})
	if end != "end" {
		said = append(said, end)
	}
	return said
}

type requestCase struct {
	name string
	in   string
	lim  Limits
	want []string
}

// run checks each case whole, byte by byte and cut at random.
func run(t *testing.T, cases []requestCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ways := map[string]func(int) int{"whole": whole, "at random": randomly(rand.New(rand.NewPCG(1, 2)))}
			if len(c.in) < 1<<13 {
				ways["byte by byte"] = bytewise
			}
			for way, size := range ways {
				if got := requests(t, []byte(c.in), c.lim, size); !reflect.DeepEqual(got, c.want) {
					t.Errorf("%s: got\n\t%s\nwant\n\t%s", way, strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
				}
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	const month = 2592000
	cases := []struct {
		exptime int64
		after   time.Duration // of now; -1: never
		gone    bool
	}{
		{0, -1, false},
		{1, time.Second, false},
		{month, month * time.Second, false},
		{month + 1, now.Sub(time.Unix(month+1, 0)) * -1, true},
		{2678400, now.Sub(time.Unix(2678400, 0)) * -1, true}, // php-memcached, strict mode
		{-1, 0, true},
		{-1 << 31, 0, true},
		{now.Unix(), 0, true},
		{now.Unix() - 1, -time.Second, true},
		{now.Unix() + 1, time.Second, false},
		{1<<32 - 1, time.Unix(1<<32-1, 0).Sub(now), false},
		{1<<63 - 1, time.Unix(1<<32-1, 0).Sub(now), false},
		{-1 << 63, 0, true},
	}
	for _, c := range cases {
		at, gone := Deadline(c.exptime, now)
		want := now.Add(c.after)
		if c.after == -1 {
			want = time.Time{}
		}
		if !at.Equal(want) || gone != c.gone {
			t.Errorf("Deadline(%d): got %v, %v, want %v, %v", c.exptime, at, gone, want, c.gone)
		}
	}
}

// What is declared costs nothing before it arrives, nor does what arrives in an accepted request.
func TestNothingIsAllocated(t *testing.T) {
	var r Request
	set := string(packet(0x01, store8, "key", "x", 0))
	for name, in := range map[string]string{
		"a value that has not come":             "set key 0 0 1048576\r\nx",
		"a value too large":                     "set key 0 0 1048577\r\nx",
		"a value of 1 GiB":                      "set key 0 0 1073741824\r\n",
		"a line without an end":                 strings.Repeat("get ", 1000),
		"a set":                                 "set key 0 0 1 noreply\r\nx\r\n",
		"a get of as many keys as there may be": "get" + strings.Repeat(" key", 100) + "\r\n",
		"meta with a key in base64":             "ms aGVsbG8= 1 b q O1\r\nx\r\n",
		"binary, a value that has not come":     set[:8] + "\x00\x10\x00\x00" + set[12:],
		"binary, a value too large":             set[:8] + "\x3f\xff\xff\xff" + set[12:],
		"binary, a set":                         set,
	} {
		buf := []byte(in)
		isBinary := IsBinary(buf[0])
		n := testing.AllocsPerRun(20, func() { _, _, _ = r.parse(isBinary, buf, Limits{}) })
		if n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
