package resp

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
)

func FuzzParseRequest(f *testing.F) {
	for i, c := range requestCases {
		if len(c.in) < 1<<16 {
			f.Add([]byte(c.in), uint64(i))
		}
	}
	f.Add(AppendRequestStrings(nil, "SETEX", "k", "1440", "a|s:1:\"b\";"), uint64(1))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		lim := Limits{}
		if seed%2 == 0 {
			lim = Limits{Args: 8, Arg: 64, Request: 128, Inline: 32}
		}
		checked := func(buf []byte) message { return checkRequest(t, buf, lim) }
		want := play(t, stream, whole, checked)
		for _, size := range pieces(stream, rng) {
			if got := play(t, stream, size, checked); !reflect.DeepEqual(got, want) {
				t.Fatalf("in pieces: got %q, want %q", got, want)
			}
		}
	})
}

// pieces returns ways to cut stream, for play.
func pieces(stream []byte, rng *rand.Rand) []func(left int) int {
	ways := []func(int) int{func(left int) int { return rng.IntN(left + 1) }}
	if len(stream) <= 256 { // a parser may look at all again with each piece: long streams would take all the time
		ways = append(ways, bytewise)
	}
	return ways
}

// checkRequest parses buf and holds what must be true of every answer.
func checkRequest(t *testing.T, buf []byte, lim Limits) message {
	before := bytes.Clone(buf)
	args, n, need, err := ParseRequest(buf, lim, nil)
	if !bytes.Equal(buf, before) {
		t.Fatalf("%q became %q", before, buf)
	}
	maxArgs, maxArg := orDefault(lim.Args, 64), orDefault(lim.Arg, 1<<20)
	maxRequest := orDefault(lim.Request, maxArg+64<<10)
	if need > maxRequest || err == ErrIncomplete && len(buf) >= maxRequest {
		t.Fatalf("%d bytes of at most %d, and need is %d", len(buf), maxRequest, need)
	}
	if err != nil && len(args) > 0 {
		t.Fatalf("got arguments %q with error %v", args, err)
	}
	if len(args) > maxArgs || n > maxRequest {
		t.Fatalf("%d arguments in %d bytes", len(args), n)
	}
	for _, a := range args {
		if len(a) > maxArg {
			t.Fatalf("argument of %d bytes", len(a))
		}
	}
	if len(args) > 0 {
		// An accepted request has one spelling, or is an inline of one word.
		again := AppendRequest(nil, args...)
		if buf[0] == '*' && !bytes.Equal(again, buf[:n]) {
			t.Fatalf("accepted %q, which is %q", buf[:n], again)
		}
		if back, m, _, err := ParseRequest(again, Limits{Arg: maxArg + 64}, nil); err != nil || m != len(again) || words(back) != words(args) {
			t.Fatalf("%q came back as %q, %v", args, back, err)
		}
	}
	return message{words(args), n, need, err}
}

func FuzzParseReply(f *testing.F) {
	for i, c := range replyCases {
		if len(c.in) < 1<<16 {
			f.Add([]byte(c.in), uint64(i))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		lim := ReplyLimits{}
		if seed%2 == 0 {
			lim = ReplyLimits{Bulk: 64, Elems: 20, Depth: 3, Reply: 128}
		}
		agreeing := replies(t, lim)
		checked := func(buf []byte) message {
			m := agreeing(buf)
			checkReply(t, buf, lim)
			return m
		}
		want := play(t, stream, whole, checked)
		for _, size := range pieces(stream, rng) {
			if got := play(t, stream, size, checked); !reflect.DeepEqual(got, want) && !laterVerdict(got, want) {
				t.Fatalf("in pieces: got %q, want %q", got, want)
			}
		}
	})
}

func checkReply(t *testing.T, buf []byte, lim ReplyLimits) {
	v, n, need, err := ParseReply(buf, lim)
	maxReply := orDefault(lim.Reply, orDefault(lim.Bulk, 16<<20)+1<<20)
	if need > maxReply || n > maxReply || err == ErrIncomplete && len(buf) >= maxReply {
		t.Fatalf("%d bytes of at most %d, and need is %d", len(buf), maxReply, need)
	}
	if err != nil {
		return
	}
	elems := 0
	var walk func(v Value, depth int)
	walk = func(v Value, depth int) {
		if v.Kind.aggregate() && !v.Null && depth == orDefault(lim.Depth, 16) {
			t.Fatalf("%q: deeper than %d", buf[:n], depth)
		}
		if len(v.Str) > orDefault(lim.Bulk, 16<<20) && !(v.Kind == Simple || v.Kind == Error || v.Kind == Double || v.Kind == BigNumber) {
			t.Fatalf("string of %d bytes", len(v.Str))
		}
		if v.Kind == Map && len(v.Elems)%2 != 0 || v.Kind == attribute {
			t.Fatalf("%q became %s", buf[:n], show(v))
		}
		elems += len(v.Elems)
		for _, e := range v.Elems {
			walk(e, depth+1)
		}
	}
	walk(v, 0)
	if elems > orDefault(lim.Elems, 65536) {
		t.Fatalf("%d elements", elems)
	}
	// ParseReply's value, written again, is the same value.
	again := encode(nil, v)
	if back, m, _, err := ParseReply(again, ReplyLimits{}); err != nil || m != len(again) || show(back) != show(v) {
		t.Fatalf("%s came back as %s, %v", show(v), show(back), err)
	}
}
