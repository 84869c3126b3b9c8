package memcache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

func FuzzParseText(f *testing.F) { fuzz(f, false) }

func FuzzParseBinary(f *testing.F) { fuzz(f, true) }

// fuzz: no panic, no progress without bytes, nothing over the limits; and a stream cut anywhere gives the same requests and
// the same answers.
func fuzz(f *testing.F, isBinary bool) {
	for i, in := range seeds(isBinary) {
		f.Add([]byte(in), uint64(i))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		if len(stream) > 0 && IsBinary(stream[0]) != isBinary {
			return
		}
		lim := Limits{}
		if seed%2 == 0 {
			lim = Limits{Item: 10, Keys: 3, Line: 40}
		}
		for pos := 0; pos < len(stream); {
			n := check(t, isBinary, stream[pos:], lim)
			if n == 0 {
				break
			}
			pos += n
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		ways := []func(int) int{randomly(rng)}
		if len(stream) <= 256 { // a parser looks at a line again with each piece: long streams would take all the time
			ways = append(ways, bytewise)
		}
		want := requests(t, stream, lim, whole)
		answer, end, _ := newToy().answer(t, stream, lim, whole)
		for _, way := range ways {
			if got := requests(t, stream, lim, way); !reflect.DeepEqual(got, want) {
				t.Fatalf("in pieces: got %q, want %q", got, want)
			}
			if got, gotEnd, _ := newToy().answer(t, stream, lim, way); !bytes.Equal(got, answer) || gotEnd != end {
				t.Fatalf("in pieces: answered %q, %s, want %q, %s", got, gotEnd, answer, end)
			}
		}
	})
}

// check parses buf and holds what must be true of every answer. It returns how many bytes are done with.
func check(t *testing.T, isBinary bool, buf []byte, lim Limits) int {
	before := bytes.Clone(buf)
	var r Request
	n, need, err := r.parse(isBinary, buf, lim)
	if !bytes.Equal(buf, before) {
		t.Fatalf("%q became %q", before, buf)
	}
	most := lim.line() + lim.item() + 2
	if isBinary {
		most = headerLen + 20 + MaxKey + max(lim.item(), maxAuth)
	}
	if err == ErrIncomplete && (len(buf) >= most || need > most) {
		t.Fatalf("%d bytes of at most %d, and need is %d", len(buf), most, need)
	}
	var refused *Error
	if errors.As(err, &refused) {
		out := r.AppendError(nil, refused)
		switch {
		case refused.Security && refused.Reply != "":
			t.Fatalf("%q is told %q", buf, refused.Reply)
		case n > maxValue+lim.line()+headerLen+2:
			t.Fatalf("%q: %d bytes are to be dropped", buf, n)
		case !isBinary && len(out) > 0 && bytes.IndexByte(out, '\n') != len(out)-1:
			t.Fatalf("%q is answered %q", buf, out)
		}
		return n
	}
	if err != nil {
		return 0
	}
	if len(r.Value) > lim.item() || len(r.Keys) > max(lim.keys(), 1) && r.Op != OpStats || r.Op == OpNone {
		t.Fatalf("%q became %s", buf[:n], show(&r, nil))
	}
	for _, k := range r.Keys {
		if len(k) == 0 || len(k) > MaxKey && r.Op != OpStats || !isBinary && !r.HasFlag('b') && (hasControl(k) || bytes.IndexByte(k, ' ') >= 0) {
			t.Fatalf("%q: key %q", buf[:n], k)
		}
	}
	// Cut off behind it, it is the same: nothing behind a request counts.
	var again Request
	if m, _, err := again.parse(isBinary, buf[:n:n], lim); m != n || err != nil || show(&again, nil) != show(&r, nil) {
		t.Fatalf("%q: cut off behind it: %d, %v, %s, want %s", buf[:n], m, err, show(&again, nil), show(&r, nil))
	}
	// And whatever the answer is, it is an answer.
	for _, b := range [][]byte{r.AppendResult(nil, Exists, 1), r.AppendResult(nil, NotFound, 1), r.AppendNumber(nil, 1, 1), r.AppendText(nil, "a\r\nb"), r.AppendStat(nil, "a", "b\r\n")} {
		if r.form != binaryForm && bytes.Count(b, []byte("\n")) > 1 {
			t.Fatalf("%q is answered %q", buf[:n], b)
		}
	}
	return n
}

// seeds are the streams of the tables.
func seeds(isBinary bool) []string {
	var list []string
	for _, cases := range [][]requestCase{textRequests, badText, binaryRequests(), badBinary()} {
		for _, c := range cases {
			if len(c.in) > 0 && len(c.in) < 1<<13 && IsBinary(c.in[0]) == isBinary {
				list = append(list, c.in)
			}
		}
	}
	return list
}
