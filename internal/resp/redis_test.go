package resp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startRedis runs a redis-server of our own and returns its socket.
func startRedis(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("no redis-server on PATH")
	}
	dir, err := os.MkdirTemp("", "resp") // t.TempDir may be longer than the name of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	var out bytes.Buffer
	cmd := exec.Command(bin, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--enable-debug-command", "yes")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("redis-server does not listen:\n%s", &out)
		}
	}
}

// ask sends stream as it is and returns the first n replies to it, and whether the server hung up before the last.
func ask(t *testing.T, socket string, stream []byte, n int) (got []Value, closed bool) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	go conn.Write(stream) // the server may stop reading and answer
	var buf []byte
	pos := 0
	for len(got) < n {
		v, m, need, err := ParseReply(buf[pos:], ReplyLimits{})
		switch err {
		case nil:
			got = append(got, v)
			pos += m
		case ErrIncomplete:
			more := make([]byte, max(need, 1<<14))
			m, err := conn.Read(more)
			if m == 0 {
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Fatalf("%q: %d replies, want %d", stream, len(got), n)
				}
				return got, true
			}
			buf = append(buf, more[:m]...)
		default:
			t.Fatalf("%q: Redis answers %q, and ParseReply says %v", stream, buf[pos:], err)
		}
	}
	return got, false
}

// What we accept, Redis reads as the same arguments.
func TestRedisReadsWhatWeRead(t *testing.T) {
	socket := startRedis(t)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		var stream []byte
		var want []string
		for range 1 + rng.IntN(20) {
			args := randomArgs(rng)
			if rng.IntN(3) == 0 {
				stream = append(stream, []string{"\r\n", "\n", "*0\r\n"}[rng.IntN(3)]...)
			}
			stream = AppendRequest(stream, append([][]byte{[]byte("EVAL"), []byte("return ARGV"), []byte("0")}, args...)...)
			want = append(want, `"EVAL" "return ARGV" "0" `+words(args))
		}
		said := play(t, stream, whole, requests(Limits{}))
		got, _ := ask(t, socket, stream, len(want))
		for i, w := range want {
			var args [][]byte
			for _, e := range got[i].Elems {
				args = append(args, e.Str)
			}
			if r := `"EVAL" "return ARGV" "0" ` + words(args); r != w {
				t.Fatalf("seed %d: Redis read %s, want %s", seed, r, w)
			}
		}
		said = without(said, "empty")
		if strings.Join(said, "\n") != strings.Join(append(want, "end"), "\n") {
			t.Fatalf("seed %d: we read %q, want %q", seed, said, want)
		}
	}
}

// The same for requests that were damaged on the way: up to where we refuse, Redis has read the same.
func TestRedisReadsWhatWeAcceptOfDamagedRequests(t *testing.T) {
	socket := startRedis(t)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	accepted := 0
	for range 3000 {
		var stream []byte
		for i := range 3 {
			stream = AppendRequestStrings(stream, "ECHO", strings.Repeat("$1\r\n*", rng.IntN(3))+fmt.Sprint(i))
			stream = append(stream, []string{"PING\r\n", "PING\n", "\r\n", ""}[rng.IntN(4)]...)
		}
		for range 1 + rng.IntN(2) {
			i := rng.IntN(len(stream))
			const noise = "\r\n$*+-0123 x\x00\xff"
			switch c := noise[rng.IntN(len(noise))]; rng.IntN(3) {
			case 0:
				stream[i] = c
			case 1:
				stream = append(stream[:i], stream[i+1:]...)
			default:
				stream = append(stream[:i], append([]byte{c}, stream[i:]...)...)
			}
		}
		said := without(play(t, stream, whole, requests(Limits{})), "empty")
		said = said[:len(said)-1] // how it ended: Redis is laxer
		accepted += len(said)
		got, closed := ask(t, socket, stream, len(said))
		if closed {
			t.Fatalf("seed %d: %q: we read %q, and Redis hung up after %d", seed, stream, said, len(got))
		}
		for i, v := range got {
			want := said[i]
			switch {
			case want == `"PING"`:
				want = `+"PONG"`
			case strings.HasPrefix(want, `"ECHO" `) && strings.Count(want, `" "`) == 1:
				want = "$" + strings.TrimPrefix(want, `"ECHO" `)
			case v.Kind == Error && !strings.Contains(string(v.Str), "Protocol error"):
				continue // no command: read it must be
			}
			if show(v) != want {
				t.Fatalf("seed %d: %q: we read %q, and Redis answered the %dth with %s", seed, stream, said, i, show(v))
			}
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d requests were accepted, so this says little", accepted)
	}
}

// What Redis says, in both protocols, is within the grammar and the default limits.
func TestWeReadWhatRedisSays(t *testing.T) {
	socket := startRedis(t)
	for _, proto := range []string{"2", "3"} {
		stream := AppendRequestStrings(nil, "HELLO", proto)
		names := []string{"string", "integer", "double", "null", "array", "set", "map", "attrib", "push", "verbatim", "true", "false", "bignum"}
		if proto == "2" {
			names = names[:7]
		}
		for _, name := range names {
			stream = AppendRequestStrings(stream, "DEBUG", "PROTOCOL", name)
		}
		for _, cmd := range []string{"COMMAND", "COMMAND DOCS", "INFO everything", "CONFIG GET *", "CLIENT LIST", "GET k", "BLPOP", "ZRANGE k 0 -1", "LOLWUT", "ACL GETUSER default"} {
			stream = AppendRequestStrings(stream, strings.Fields(cmd)...)
		}
		n := len(names) + 11
		if proto == "3" {
			n++ // a reply follows the push
		}
		got, closed := ask(t, socket, stream, n)
		if closed || len(got) != n {
			t.Fatalf("HELLO %s: %d replies, want %d", proto, len(got), n)
		}
		kinds := ""
		for _, v := range got[:n-10] {
			kinds += string(v.Kind)
		}
		if want := map[string]string{"2": "*$:$$***", "3": "%$:,_*~%$>$=##("}[proto]; kinds != want {
			t.Errorf("HELLO %s: got kinds %s, want %s", proto, kinds, want)
		}
	}
}

func without(list []string, drop string) []string {
	var kept []string
	for _, s := range list {
		if s != drop {
			kept = append(kept, s)
		}
	}
	return kept
}
