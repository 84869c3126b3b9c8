package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// These make rueidis panic or read without end, where nobody can recover: each was seen to end the process.
var deadly = map[string]string{
	"a negative length":                  "$-2\r\n",
	"a length beyond memory":             "$99999999999999\r\n",
	"a length that wraps to less than 0": "$9999999999999999999\r\n",
	"a negative array":                   "*-2\r\n",
	"an array beyond memory":             "*99999999999999\r\n",
	"a negative map":                     "%-1\r\n",
	"a map that wraps to less than 0":    "%9000000000000000000\r\n",
	"a negative set":                     "~-2\r\n",
	"a negative attribute":               "|-1\r\n",
	"a negative push":                    ">-2\r\n",
	"a length of minus 11":               "$-11\r\n",
	"a negative length inside":           "*2\r\n:0\r\n$-2\r\n",
	"a negative chunk":                   "$?\r\n;-5\r\n",
	"nesting without end":                strings.Repeat("*1\r\n", 4<<20),
	"nesting of streams without end":     strings.Repeat("*?\r\n", 4<<20),
	"a subscription that nobody made":    ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
	"a reply too many":                   "$1\r\nx\r\n$1\r\ny\r\n",
	"a null too many":                    "_\r\n_\r\n",
}

// These it would survive, or read as something else.
var broken = map[string]string{
	"a push":                       ">2\r\n+x\r\n+y\r\n",
	"a push inside":                "*1\r\n>2\r\n+x\r\n+y\r\n",
	"a push behind an attribute":   "|0\r\n>2\r\n+x\r\n+y\r\n",
	"a streamed string":            "$?\r\n;1\r\nx\r\n;0\r\n",
	"a streamed array":             "*?\r\n.\r\n",
	"the end of no stream":         ".\r\n",
	"a chunk of no stream":         ";1\r\nx\r\n",
	"another protocol":             "HTTP/1.1 400 Bad Request\r\n\r\n",
	"a request":                    "PING\r\n",
	"zeros":                        "\x00\x00\x00",
	"a line feed alone":            "+OK\n",
	"a line feed in a line":        "+a\nb\r\n",
	"a carriage return in a line":  "+a\rb\r\n",
	"a line without end":           "+" + strings.Repeat("x", 1<<20),
	"a length without end":         "$" + strings.Repeat("0", 1<<20),
	"a number without end":         ":" + strings.Repeat("1", 1<<20),
	"a length that begins with 0":  "$01\r\nx\r\n",
	"a length of minus nothing":    "$-\r\n",
	"a length of minus 0":          "$-0\r\n",
	"a length with a sign":         "$+1\r\nx\r\n",
	"no length":                    "$\r\n",
	"no number":                    ":\r\n",
	"a number of a sign":           ":-\r\n",
	"letters for a number":         ":1x\r\n",
	"a string longer than it says": "$1\r\nxyz\r\n",
	"a null that says something":   "_x\r\n",
	"neither true nor false":       "#x\r\n",
	"a null set":                   "~-1\r\n",
	"a null error":                 "!-1\r\n",
	"too deep a nesting":           strings.Repeat("*1\r\n", maxDepth+1),
	"attributes without end":       strings.Repeat("|1\r\n+k\r\n+v\r\n", maxDepth+1),
	"many elements in many arrays": "*" + fmt.Sprint(maxElems) + "\r\n*1\r\n",
	"a string beyond the limit":    "$" + fmt.Sprint(maxBulk+1) + "\r\n",
}

var fine = map[string]string{
	"a status":       "+OK\r\n",
	"an error":       "-ERR no\r\n",
	"an empty line":  "+\r\n",
	"numbers":        "*4\r\n:0\r\n:-9223372036854775808\r\n:007\r\n:9223372036854775807\r\n",
	"a string":       "$3\r\na\r\n\r\n",
	"empty strings":  "*2\r\n$0\r\n\r\n$0\r\n\r\n",
	"nulls":          "*3\r\n$-1\r\n*-1\r\n_\r\n",
	"empty":          "*3\r\n*0\r\n%0\r\n~0\r\n",
	"RESP3":          "*7\r\n#t\r\n#f\r\n,inf\r\n(123\r\n!5\r\nERR x\r\n=5\r\ntxt:a\r\n~1\r\n+x\r\n",
	"a map":          "%2\r\n+a\r\n*1\r\n:1\r\n+b\r\n%1\r\n+c\r\n+d\r\n",
	"attributes":     "|1\r\n+a\r\n+b\r\n*2\r\n|0\r\n:1\r\n:2\r\n",
	"nested":         strings.Repeat("*1\r\n", maxDepth) + "+x\r\n",
	"a long string":  "$100000\r\n" + strings.Repeat("\n", 100_000) + "\r\n",
	"a longest line": "-" + strings.Repeat("x", maxLine) + "\r\n",
}

// follow passes stream in pieces and returns how far it came.
func follow(lim framingLimits, stream []byte, piece func() int) (f framing, n int, err error) {
	n, err = followOn(&f, lim, stream, piece)
	return f, n, err
}

func followOn(f *framing, lim framingLimits, stream []byte, piece func() int) (n int, err error) {
	f.lim = lim
	for n < len(stream) && err == nil {
		var k int
		k, err = f.pass(stream[n:min(len(stream), n+piece())])
		n += k
	}
	return n, err
}

func whole() int  { return 1 << 30 }
func single() int { return 1 }

func TestFraming(t *testing.T) {
	lim := replyLimits(0)
	for what, text := range fine {
		for _, piece := range []func() int{whole, single} {
			f, n, err := follow(lim, []byte(text+text), piece)
			if n != 2*len(text) || err != nil || f.began != 2 || f.ended != 2 {
				t.Errorf("%s: got %d of %d bytes, %d of %d whole, %v", what, n, 2*len(text), f.ended, f.began, err)
			}
		}
		f, n, err := follow(lim, []byte(text[:len(text)-1]), single)
		if n != len(text)-1 || err != nil || f.ended != 0 {
			t.Errorf("%s, without its last byte: got %d whole, %v", what, f.ended, err)
		}
	}
	refused := func(what, text string) {
		_, n, err := follow(lim, []byte(text), whole)
		_, m, err2 := follow(lim, []byte(text), single)
		var fault *framingError
		if !errors.As(err, &fault) || n != m || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("%s: got %v after %d, in single bytes %v after %d, want an error", what, err, n, err2, m)
		}
	}
	for what, text := range broken {
		refused(what, text)
	}
	for what, text := range deadly {
		if !strings.Contains(what, "too many") {
			refused(what, text)
		}
	}
	if _, _, err := follow(replyLimits(maxBulk+5), fmt.Appendf(nil, "$%d\r\n", maxBulk+5), whole); err != nil {
		t.Errorf("a value of MaxValue, beyond proto-max-bulk-len: %v", err)
	}
	small := framingLimits{bulk: 10, elems: 4, room: 15}
	for text, want := range map[string]bool{
		"$10\r\n": true, "$11\r\n": false, "$100\r\n": false,
		"*4\r\n": true, "*5\r\n": false, "%2\r\n": true, "%3\r\n": false, "*3\r\n*2\r\n": false, "*2\r\n*2\r\n": true, "|2\r\n": false,
		"*2\r\n$10\r\n0123456789\r\n$5\r\n": true, "*2\r\n$10\r\n0123456789\r\n$6\r\n": false,
		"*2\r\n$10\r\n0123456789\r\n+12345\r\n": true, "*2\r\n$10\r\n0123456789\r\n+123456": false,
		"$10\r\n0123456789\r\n$10\r\n0123456789\r\n": true,
	} {
		for _, piece := range []func() int{whole, single} {
			if _, _, err := follow(small, []byte(text), piece); (err == nil) != want {
				t.Errorf("%q under small limits: got %v", text, err)
			}
		}
	}
	var f framing // commands: any number of replies is let through only as far as they were asked for
	f.lim, f.asked = lim, func() int64 { return 2 }
	if n, err := f.pass([]byte("+a\r\n+b\r\n+c\r\n")); n != 8 || err == nil {
		t.Errorf("three replies to two commands: got %d bytes, %v", n, err)
	}
}

// A server, or a proxy, that does not speak RESP costs a connection and nothing else.
func TestRepliesThatWouldKillUs(t *testing.T) {
	ctx := context.Background()
	for _, table := range []map[string]string{deadly, broken} {
		for what, text := range table {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				var atLogin, mended atomic.Bool
				f := newFake(t, func(args []string) string {
					switch {
					case mended.Load():
					case args[0] == "HELLO" && atLogin.Load(), args[0] == "GET" || args[0] == "DEL" || args[0] == "EVALSHA":
						return text
					}
					if args[0] == "HELLO" {
						return welcome
					}
					return "+OK\r\n"
				})
				works := func(s *Store) {
					t.Helper()
					mended.Store(true)
					eventually(t, "Load", func() bool { _, err := s.Load(ctx, "k"); return err == nil })
				}
				s := open(t, "redis://"+f.addr+"?timeout=1s")
				_, err := s.Load(ctx, "k")
				tooMany := strings.HasSuffix(what, "too many")
				if tooMany && store.Failed(err) || !tooMany && !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("Load: got %v", err)
				}
				if !tooMany {
					eventually(t, "Delete", func() bool {
						_, err := s.Delete(ctx, "k", store.Always)
						return errors.Is(err, store.ErrUnknown)
					})
				}
				eventually(t, "another connection", func() bool { return s.Generation() > 2 })
				works(s)

				mended.Store(false)
				atLogin.Store(true)
				s = open(t, "redis://"+f.addr+"?timeout=1s&dial_timeout=1s")
				if err := s.Ping(ctx); !errors.Is(err, store.ErrUnavailable) && !tooMany {
					t.Errorf("Ping: got %v", err)
				}
				works(s)
			})
		}
	}
	t.Run("what was not asked for at all", func(t *testing.T) {
		for _, text := range []string{"+OK\r\n", ">3\r\n+subscribe\r\n+c\r\n:1\r\n", "$-2\r\n"} {
			var n atomic.Int64
			f := newFake(t, func(args []string) string {
				if args[0] != "HELLO" {
					return "+OK\r\n"
				}
				if n.Add(1) == 1 {
					return welcome + text
				}
				return welcome
			})
			s := open(t, "redis://"+f.addr+"?connections=1")
			eventually(t, "Ping", func() bool { return s.Ping(ctx) == nil })
			if n.Load() < 2 {
				t.Errorf("%q: the connection is the first one still", text)
			}
		}
	})
}

// FuzzReplies sends anything to rueidis, past the framing, at the login or as the answer to three commands: it must not
// panic, and answers as many commands as the framing saw replies end.
func FuzzReplies(f *testing.F) {
	for _, table := range []map[string]string{fine, deadly, broken} {
		for _, text := range table {
			if len(text) > 1<<16 {
				text = text[:1<<12]
			}
			f.Add([]byte(text), false, false, uint64(1))
			f.Add([]byte(text), true, false, uint64(1))
			f.Add([]byte("+a\r\n"+text+"+b\r\n+c\r\n"), false, false, uint64(2))
			f.Add([]byte("+a\r\n"+pushed+text+pushed+"+b\r\n+c\r\n"), false, true, uint64(2))
		}
	}
	f.Add([]byte(welcome+"$11\r\nrun_id:fuzz\r\n"), true, false, uint64(3))
	f.Add([]byte(welcome+"$11\r\nrun_id:fuzz\r\n+a\r\n*1\r\n"), true, false, uint64(3))
	f.Add([]byte(welcome+welcome+"+OK\r\n"+pushed+"$11\r\nrun_id:fuzz\r\n"+pushed), true, true, uint64(3))
	f.Add([]byte(pushed+"+a\r\n"+invalidated+"_\r\n"+"+b\r\n"+invalidated+"*2\r\n$-1\r\n$0\r\n\r\n"), false, true, uint64(3))
	f.Fuzz(func(t *testing.T, stream []byte, login, tracked bool, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		piece := func() int { return 1 + rng.IntN(1+len(stream)) }
		lim := framingLimits{bulk: 64 << 10, elems: 1 << 10, room: 128 << 10}
		follow := func(piece func() int) (f framing, n int, err error) {
			f.pushed = func() bool { return tracked }
			n, err = followOn(&f, lim, stream, piece)
			return f, n, err
		}
		_, n, err := follow(whole)
		for _, cut := range []func() int{single, piece} {
			if _, m, err2 := follow(cut); m != n || fmt.Sprint(err) != fmt.Sprint(err2) {
				t.Fatalf("in one piece %d bytes, %v; in pieces %d bytes, %v", n, err, m, err2)
			}
		}

		opt := Options{Addr: "fuzz", Timeout: time.Minute, DialTimeout: time.Minute, Track: tracked}
		if err := opt.complete(); err != nil {
			t.Fatal(err)
		}
		s := &Store{opt: opt, limits: lim}
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer theirs.Close()
		const commands = 3
		before := int64(2) // HELLO, INFO
		if tracked {
			before = 4 // and between them HELLO, CLIENT TRACKING
		}
		wg.Go(func() {
			defer theirs.Close()
			var came framing
			came.lim = framingLimits{bulk: 1 << 20, elems: 1 << 20, room: 1 << 20}
			buf := make([]byte, 4096)
			await := func(n int64) bool {
				for came.ended < n {
					k, err := theirs.Read(buf)
					if err != nil {
						return false
					}
					if _, err := came.pass(buf[:k]); err != nil {
						t.Errorf("rueidis sends no RESP: %v", err)
						return false
					}
				}
				return true
			}
			if login && !await(1) || !login && !(await(1) && say(theirs, welcome) &&
				(!tracked || await(2) && say(theirs, welcome) && await(3) && say(theirs, "+OK\r\n")) &&
				await(before) && say(theirs, "$11\r\nrun_id:fuzz\r\n") && await(before+commands)) {
				return
			}
			wg.Go(func() { io.Copy(io.Discard, theirs) }) // what else is sent has nobody to read it, and a pipe has no room
			for rest := stream; len(rest) > 0; {
				k := min(len(rest), piece())
				if !say(theirs, string(rest[:k])) {
					return
				}
				rest = rest[k:]
			}
		})
		w, err := newNode(s, "", "").connectBy(context.Background(), func(context.Context) (net.Conn, error) { return ours, nil })
		if err != nil {
			if !login {
				t.Fatalf("connect: %v", err)
			}
			return
		}
		defer w.close()
		if login {
			return
		}
		var answered atomic.Int64
		var asking sync.WaitGroup
		for range commands {
			asking.Go(func() {
				if res := w.client.Do(context.Background(), w.client.B().Arbitrary("ECHO", "x").Build()); res.NonRedisError() == nil {
					answered.Add(1)
				}
			})
		}
		asking.Wait()
		seen, _, _ := follow(whole)
		if want := min(commands, seen.ended); answered.Load() != want {
			t.Errorf("%.60q: %d commands were answered, the framing saw %d replies", stream, answered.Load(), want)
		}
	})
}

func say(to io.Writer, text string) bool {
	_, err := io.WriteString(to, text)
	return err == nil
}

func BenchmarkFraming(b *testing.B) {
	bulk := func(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
	key, value := bulk("PHPREDIS_SESSION:1234567890abcdef"), bulk(string(kib))
	for name, text := range map[string]string{
		"GET's reply":       value,
		"SET's reply":       "+OK\r\n",
		"LoadMarked's":      "*3\r\n" + value + "_\r\n$1\r\n1\r\n",
		"SET":               "*5\r\n" + bulk("SET") + key + value + bulk("PX") + bulk("3600000"),
		"EVALSHA of commit": "*14\r\n" + bulk("EVALSHA") + bulk(strings.Repeat("f", 40)) + bulk("5") + strings.Repeat(key, 6) + bulk("17") + bulk("n") + bulk("1000") + bulk("3600000") + value,
	} {
		b.Run(name, func(b *testing.B) {
			stream := []byte(strings.Repeat(text, 50))
			f := framing{lim: replyLimits(0)}
			for b.Loop() {
				if _, err := f.pass(stream); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(50*b.N), "ns/each")
		})
	}
}
