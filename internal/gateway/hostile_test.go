package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// reliability.md, c1, by number. What only the parser decides is tested in internal/resp as well; here it is whether the
// connection does what the parser says.
func TestHostileBytes(t *testing.T) {
	const (
		alive  = "alive"  // the connection is still in use
		closed = "closed" // without a word
		failed = "failed" // an error, then closed
	)
	cases := []struct{ name, send, want string }{
		{"1 empty line", "\r\n", alive},
		{"2 empty lines without end", strings.Repeat("\r\n", 1_000_000), closed},
		{"3 negative array", "*-1\r\nPING\r\n", failed},
		{"4 negative array", "*-10\r\n", failed},
		{"5 space", "* 1\r\n$4\r\nPING\r\n", failed},
		{"6 plus", "*+1\r\n$4\r\nPING\r\n", failed},
		{"7 many arguments", "*1048577\r\n", failed},
		{"8 more", "*2147483648\r\n", failed},
		{"9 overflow", "*99999999999999999999\r\n", failed},
		{"10 wrap-around", "*18446744073709551617\r\n$4\r\nPING\r\n", failed},
		{"11 not a bulk", "*1\r\n:4\r\n", failed},
		{"12 null bulk", "*1\r\n$-1\r\n", failed},
		{"13 long bulk", "*1\r\n$536870913\r\n", failed},
		{"14 longest bulk", "*1\r\n$9223372036854775807\r\n", failed},
		{"15 plus", "*1\r\n$+4\r\nPING\r\n", failed},
		{"16 zero", "*1\r\n$04\r\nPING\r\n", failed},
		{"17 space", "*1\r\n$4 \r\nPING\r\n", failed},
		{"18 two in one", "*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n", failed},
		{"23 one byte too many", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577\r\n", failed},
		{"28 inline ping", "PING\n", alive + "+PONG\r\n"},
		{"28 inline quit", "QUIT\r\n", closed + "+OK\r\n"},
		{"28 inline get", "GET a\r\n", failed},
		{"29 inline quotes", "GET \"x\\x4\"\r\n", failed},
		{"30 inline quotes", "PING \"ax\xff\"\r\n", failed},
		{"31 HTTP", "POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a b\r\n", closed},
		{"31 HTTP in RESP", "*2\r\n$4\r\nPOST\r\n$1\r\n/\r\n" + command_("SET", "a", "b"), closed},
		{"32 header", "Host: 127.0.0.1\r\n", closed},
		{"33 HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", closed},
		{"33 OPTIONS", "OPTIONS * HTTP/1.1\r\n\r\n", closed},
		{"33 CONNECT", "CONNECT a:1 HTTP/1.1\r\n\r\n", closed},
		{"34 TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", closed},
		{"35 PROXY v2", "\r\n\r\n\x00\r\nQUIT\n", closed},
		{"36 memcached", "set a 0 0 1\r\nx\r\n", failed},
		{"37 map", "%1\r\n+a\r\n+b\r\n", failed},
		{"37 set", "~2\r\n", failed},
		{"37 push", ">2\r\n", failed},
		{"37 attribute", "|1\r\n", failed},
		{"48 quit, then ping", command_("QUIT") + command_("PING"), closed + "+OK\r\n"},
	}
	st := newScripted()
	var alarms atomic.Int64
	gw := startWith(t, Site{Store: st}, Options{Hooks: Hooks{Security: func(kind string) {
		if kind == SecurityForeign {
			alarms.Add(1)
		}
	}}})
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := gw.dial()
			c.t = t
			go io.WriteString(c.nc, tc.send) // the server may close before all of it is written
			if reply, ok := strings.CutPrefix(tc.want, alive); ok {
				if reply != "" {
					if got := c.reply(); got != reply {
						t.Errorf("got %q, want %q", got, reply)
					}
				}
				c.want("+PONG\r\n", "PING")
				return
			}
			if tc.want == failed {
				if got := c.reply(); !strings.HasPrefix(got, "-ERR Protocol error") {
					t.Errorf("got %q, want a protocol error", got)
				}
			}
			if reply, ok := strings.CutPrefix(tc.want, closed); ok && reply != "" {
				if got := c.reply(); got != reply {
					t.Errorf("got %q, want %q", got, reply)
				}
			}
			c.closed()
		})
	}
	if n := alarms.Load(); n != 8 {
		t.Errorf("%d security events, want 8", n)
	}
	if n := st.saves.Load() + st.loads.Load(); n != 0 {
		t.Errorf("the store was asked %d times", n)
	}
}

// 19, 20: a command that does not end is not run.
func TestUnfinishedCommand(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st})
	for _, send := range []string{"*1\r\n$4\r\nPI", "*2\r\n$3\r\nGET\r\n", command_("SET", "k", "v")[:20]} {
		c := gw.dial()
		c.send(send)
		c.nc.(*net.TCPConn).CloseWrite()
		c.closed()
	}
	// But what came whole before the end is answered.
	c := gw.dial()
	c.send(command_("SET", "k", "v") + command_("GET", "k") + "*1\r\n$4\r\nPI")
	c.nc.(*net.TCPConn).CloseWrite()
	if got := c.reply() + c.reply(); got != "+OK\r\n"+bulk("v") {
		t.Errorf("got %q", got)
	}
	c.closed()
}

// 21, 22 and PROTOCOL.md 1: keys that cannot be a session's.
func TestHostileKeys(t *testing.T) {
	const text = "-ERR sessile: invalid session id or value\r\n"
	st := newScripted()
	var alarms atomic.Int64
	gw := startWith(t, Site{Store: st, Prefix: "P:"}, Options{Hooks: Hooks{Security: func(string) { alarms.Add(1) }}})
	c := gw.dial()
	for _, id := range []string{"", "a\x00b", "a\r\nb", "\xff", "\x1b[31m", "a b", "é", "sessile:m:k", strings.Repeat("x", 511), "_LOCK", "a_LOCK_LOCK",
		"a\x00_LOCK", "sessile:x_LOCK"} {
		k := "P:" + id
		c.want(text, "GET", k)
		c.want(":0\r\n", "EXISTS", k)
		c.want(":0\r\n", "DEL", k)
		c.want(":-2\r\n", "TTL", k)
		c.want(":0\r\n", "EXPIRE", k, "10")
		c.want(text, "SETEX", k, "10", "v")
		c.want(text, "SET", k, "v", "EX", "10", "NX")
		c.want(text, "GETDEL", k)
		c.want(text, "GETEX", k, "EX", "10")
		c.want(text, "MGET", "P:a", k)
		c.want(text, "STRLEN", k)
	}
	for _, key := range []string{"", "a", "p:a", "P", "sessile"} { // not of this site
		const text = "-ERR sessile: the key does not have this site's prefix\r\n"
		c.want(text, "GET", key)
		c.want(":1\r\n", "EXISTS", key)
		c.want(text, "DEL", key)
		c.want(text, "SETEX", key, "10", "v")
		c.want(text, "TTL", key)
	}
	c.want(text, "GET", "sessile:c:w")
	if alarms.Load() == 0 {
		t.Error("nobody was told of the keys that are ours")
	}
	if n := st.saves.Load() + st.deletes.Load(); n != 0 {
		t.Errorf("the store was written %d times", n)
	}
	// A pattern of the site's own; a store that refuses on its own.
	bin := start(t, Site{KeyPattern: func(id []byte) bool { return id[0] == 0 }, Store: st}).dial()
	bin.want("+OK\r\n", "SETEX", "\x00\r\n\xff", "10", "v")
	bin.want(bulk("v"), "GET", "\x00\r\n\xff")
	bin.want(text, "GET", "a")
	st.set(failing(store.ErrInvalid, "load", "save", "delete", "touch"), nil)
	c.want(text, "GET", "P:a")
	c.want(":0\r\n", "EXISTS", "P:a")
	c.want(":0\r\n", "DEL", "P:a")
	c.want(":0\r\n", "EXPIRE", "P:a", "10")
	c.want(":-2\r\n", "PTTL", "P:a")
	c.want(text, "SETEX", "P:a", "10", "v")
}

// 41 to 47 and every other command of Redis that is not served.
func TestCommandsThatAreNotServed(t *testing.T) {
	st := newScripted()
	c := start(t, Site{Store: st}).dial()
	for _, line := range []string{
		"SELECT 99999", "SELECT -1", "SELECT 1x", "SELECT 1",
		"KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "FLUSHALL", "FLUSHDB",
		"EVAL return_1 0", "EVAL return_1 1 k", "EVAL return_1 1 k_LOCK v", "FCALL f 0", "FUNCTION LOAD x", "SCRIPT LOAD x", "SCRIPT FLUSH", "EVAL_RO x 0",
		"SETRANGE k 536870911 x", "SETBIT k 4294967295 1", "APPEND k x", "INCR k",
		"SETEX k 0 v", "EXPIRE k 9223372036854775807", "EXPIRE k 99999999999", "PERSIST k", "GETEX k PERSIST", "SET k v PXAT 9223372036854775807",
		"MSET a", "MSET a b", "RENAME a b", "COPY a b",
		"SUBSCRIBE x", "SUBSCRIBE +switch-master x", "PSUBSCRIBE x", "PSUBSCRIBE __key*", "SSUBSCRIBE +sdown", "PUBLISH __sentinel__:hello x", "MONITOR", "CLIENT TRACKING ON", "CLIENT KILL x", "CLIENT REPLY OFF", "CLIENT LIST",
		"EXEC", "DISCARD", "WATCH k", "CONFIG SET a b", "DEBUG SLEEP 10", "SHUTDOWN", "REPLICAOF a 1", "ACL LIST",
		"SADD s a", "HSET h a b", "ZADD z 1 a", "LPUSH l a", "XADD x * a b", "SORT k", "OBJECT FREQ k", "WAIT 1 1", "CLUSTER MEET a 1", "COMMAND GETKEYS x",
		"SENTINEL", "SENTINEL reset x",
	} {
		args := strings.Split(line, " ")
		got := c.do(args...)
		if args[0] == "SELECT" {
			c.want("+OK\r\n", "SELECT", "0")
		}
		if !strings.HasPrefix(got, "-ERR ") {
			t.Errorf("%s: got %q, want an error that begins with ERR", line, got)
		}
		if len(args) > 1 && strings.Contains(got, "unknown command") {
			t.Errorf("%s: got %q, as if Redis did not know it", line, got)
		}
	}
	c.want("-ERR sessile: 'append' is not served: a session is read and written as a whole\r\n", "ApPend")
	c.want("-ERR sessile: 'client|kill' is not served: the server is not administered through here\r\n", "client", "kill", "x")
	if n := st.saves.Load() + st.deletes.Load(); n != 0 {
		t.Errorf("the store was written %d times", n)
	}
	// 46: as many keys as there are arguments; more is the parser's business.
	keys := strings.Split(strings.Repeat("k ", 63), " ")[:63]
	c.want(":0\r\n", append([]string{"DEL"}, keys...)...)
	c.send(command_(append([]string{"MGET", "k"}, keys...)...))
	if got := c.reply(); !strings.HasPrefix(got, "-ERR Protocol error") {
		t.Errorf("got %q", got)
	}
}

// 39, 40
func TestBeforeLogin(t *testing.T) {
	gw := start(t, Site{Users: []User{{Name: "u", Passwords: []string{"p"}}}, Limits: Limits{Command: time.Minute}})
	for _, send := range []string{"*11\r\n", "*2\r\n$3\r\nGET\r\n$16385\r\n"} {
		c := gw.dial()
		c.send(send)
		if got := c.reply(); !strings.HasPrefix(got, "-ERR Protocol error") {
			t.Errorf("%q: got %q", send, got)
		}
		c.closed()
	}
	c := gw.dial()
	flood(c, "PING", 50<<20)
	eventually(t, "the end of one who lets refusals pile up", func() bool { return gw.Stats().Open == 0 })
}

// flood writes a command until the server closes or n bytes are written, and reads nothing.
func flood(c *client, cmd string, n int) (written int) {
	b := []byte(strings.Repeat(command_(strings.Split(cmd, " ")...), 1000))
	c.nc.SetWriteDeadline(time.Now().Add(patience))
	for written < n {
		k, err := c.nc.Write(b)
		written += k
		if err != nil {
			break
		}
	}
	return written
}

// 24: an announced size costs nothing, an unfinished command little and not for long.
func TestManyUnfinishedCommands(t *testing.T) {
	const conns = 2000
	gw := start(t, Site{Limits: Limits{Command: 500 * time.Millisecond}})
	before := heap()
	var all []*client
	for range conns {
		c := gw.dial()
		c.send("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n")
		all = append(all, c)
	}
	eventually(t, "all connections", func() bool { return gw.Stats().Accepted == conns })
	if grown := int(heap()-before) / conns; grown > 64<<10 {
		t.Errorf("a connection costs %d bytes", grown)
	}
	eventually(t, "their end", func() bool { return gw.Stats().Open == 0 })
	for _, c := range all {
		c.close()
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// All connections together have a limit too, and it is the one that takes longest that has to go.
func TestMemoryOfAllConnections(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Memory: 4 << 20, Command: time.Minute}})
	oldest := gw.dial()
	part := "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n" + strings.Repeat("x", 900_000)
	oldest.send(part)
	eventually(t, "the first", func() bool { return gw.Stats().Memory > 900_000 })
	var rest []*client
	for range 4 {
		c := gw.dial()
		c.send(part)
		rest = append(rest, c)
	}
	oldest.closed()
	if n := gw.Stats().Memory; n > 5<<20 {
		t.Errorf("%d bytes are held", n)
	}
	c := rest[3]
	c.send(strings.Repeat("x", 1<<20-900_000) + "\r\n")
	if got := c.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	eventually(t, "one buffer less", func() bool { return gw.Stats().Memory < 4<<20 })
}

// 25, 26: a client that asks and does not read is served from a bounded buffer, then not at all, then closed.
func TestClientThatDoesNotRead(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Limits: Limits{Command: 300 * time.Millisecond}})
	set := gw.dial()
	set.want("+OK\r\n", "SETEX", "k", "100", strings.Repeat("v", 1<<20))
	for _, cmd := range []string{"PING", "GET k"} {
		before := heap()
		c := gw.dial()
		flood(c, cmd, 100<<20)
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%s: %d bytes more", cmd, grown)
		}
		eventually(t, cmd+": its end", func() bool { return gw.Stats().Open == 1 })
	}
	if n := st.loads.Load(); n > 60 {
		t.Errorf("%d values were loaded for nobody", n)
	}
	set.want("+PONG\r\n", "PING")
}

// A client that writes all its commands before it reads, as pipelining libraries do, is served up to the limit.
func TestPipelineThatIsReadLate(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Command: time.Second}})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "k", "100", strings.Repeat("v", 10_000))
	const n = 600 // 6 MB of replies: more than the kernel's buffers, less than those and ours
	c.send(strings.Repeat(command_("GET", "k"), n))
	time.Sleep(50 * time.Millisecond)
	for i := range n {
		if got := c.reply(); len(got) != 10_000+len("$10000\r\n\r\n") {
			t.Fatalf("reply %d: %.100q", i, got)
		}
	}
	eventually(t, "an empty queue", func() bool { return gw.Stats().Memory == 0 })
	time.Sleep(time.Second) // the deadline that the queue was written under is over
	c.want("+PONG\r\n", "PING")
}

// 27: many commands in one packet are answered in order, and others are served meanwhile.
func TestManyCommandsInOnePacket(t *testing.T) {
	gw := start(t, Site{})
	c, other := gw.dial(), gw.dial()
	var b strings.Builder
	const n = 10_000
	for i := range n {
		b.WriteString(command_("ECHO", fmt.Sprint(i)))
	}
	go io.WriteString(c.nc, b.String())
	other.want("+PONG\r\n", "PING")
	for i := range n {
		if got := c.reply(); got != bulk(fmt.Sprint(i)) {
			t.Fatalf("reply %d: %q", i, got)
		}
	}
}

// Any way of cutting a stream of commands gives the same replies.
func TestAnyChunking(t *testing.T) {
	gw := start(t, Site{})
	stream := command_("SETEX", "k", "100", "a\r\nb") + "PING\r\n" + command_("GET", "k") + "\r\n" + command_("DEL", "k") + command_("GET", "k")
	const want = "+OK\r\n+PONG\r\n$4\r\na\r\nb\r\n:1\r\n$-1\r\n"
	for size := 1; size < len(stream); size += 1 + size/3 {
		c := gw.dial()
		for rest := stream; rest != ""; {
			k := min(size, len(rest))
			c.send(rest[:k])
			rest = rest[k:]
			if size < 8 {
				runtime.Gosched()
			}
		}
		var got string
		for range 5 {
			got += c.reply()
		}
		if got != want {
			t.Errorf("in pieces of %d: got %q, want %q", size, got, want)
		}
		c.close()
	}
}

// No text that a client or the log gets names a session, its content or a password.
func TestNothingSecretIsSaid(t *testing.T) {
	const id, data, password, token = "canaryid", "canarydata", "canarypassword", "canarytoken"
	var log syncBuilder
	st := newScripted()
	gw := startWith(t, Site{Store: st, Hold: -1, LockWait: 50 * time.Millisecond, Users: []User{{Passwords: []string{password}}}},
		Options{Logger: log.logger()})
	c := gw.dial()
	var replies strings.Builder
	ask := func(args ...string) { replies.WriteString(c.do(args...)) }
	ask("AUTH", password+"x")
	ask("AUTH", "default", password)
	for _, err := range []error{nil, store.ErrUnavailable, store.ErrUnknown, store.ErrInvalid, store.ErrConflict} {
		before := failing(err, "load", "save", "delete", "touch", "lock", "unlock", "holder")
		if err == nil {
			before = nil
		}
		st.set(before, nil)
		ask("SETEX", id, "100", data)
		ask("SET", id, data, "EX", "0")
		ask("SET", id, data, "FOO")
		ask("EXPIRE", id, "x")
		ask("EXPIRE", id, "10")
		ask("TTL", id)
		ask("SET", id+"_LOCK", token, "NX")
		ask("SET", id+"_LOCK", token)
		ask("EVAL", phpredisScript, "1", id+"_LOCK", token)
		ask("EVAL", phpredisScript, "1", id, token)
		ask("DEL", id)
		ask("APPEND", id, data)
		ask("GET", "sessile:"+id)
		ask("GET", id+"\xff")
		ask("SETEX", id, "100", strings.Repeat(data, 1000))
	}
	c.send("*1\r\n$9\r\n" + id)
	bad := gw.dial()
	bad.send("POST /" + id + " HTTP/1.1\r\n\r\n" + data)
	bad.closed()
	c.close()
	gw.Shutdown(context.Background())
	for _, canary := range []string{id, data, password, token} {
		if strings.Contains(replies.String(), canary) {
			t.Errorf("a reply names %s: %q", canary, replies.String())
		}
		if strings.Contains(log.String(), canary) {
			t.Errorf("the log names %s", canary)
		}
	}
}

func FuzzConn(f *testing.F) {
	for _, seed := range []string{
		command_("SETEX", "k", "100", "v") + command_("GET", "k") + command_("DEL", "k"), "PING\r\nQUIT\r\n",
		command_("SET", "k_LOCK", "t", "NX", "PX", "100") + command_("EVAL", phpredisScript, "1", "k_LOCK", "t"),
		command_("HELLO", "3", "AUTH", "a", "b") + command_("CLIENT", "SETNAME", "x") + command_("INFO"),
		command_("GETEX", "k", "EX", "10") + command_("MGET", "a", "b") + command_("EXPIRE", "k", "1", "GT"),
		"*1\r\n$9223372036854775807\r\n", "*9223372036854775807\r\n$1\r\na\r\n", "*-1\r\n", "POST / HTTP/1.1\r\n",
		command_("SELECT", "1") + command_("GET", "k") + command_("RESET") + command_("FOO", "a\r\n"),
		command_("SET", "k", "v", "KEEPTTL", "GET") + command_("GETDEL", "k") + command_("CLUSTER", "SLOTS"),
		command_("ZADD", "z", "XX", "CH", "1.5", "k", "-inf", "l") + command_("ZRANGEBYSCORE", "z", "(0", "+inf", "WITHSCORES", "LIMIT", "0", "9"),
		command_("HELLO", "3") + command_("ZADD", "z", "INCR", "1", "k") + command_("ZSCORE", "z", "k") + command_("ZRANGE", "z", "-9", "-1", "WITHSCORES"),
		command_("MULTI") + command_("SETEX", "k", "9", "v") + command_("ZADD", "z", "1", "k") + command_("EXEC") + command_("DISCARD"),
		command_("MULTI") + command_("FOO") + command_("MULTI") + command_("EXEC") + command_("MULTI") + command_("GET", "k"),
		command_("ZREM", "z", "k", "l") + command_("ZCARD", "z") + command_("ZREMRANGEBYSCORE", "z", "0", "(9") + command_("ZCOUNT", "z", "0", "9"),
	} {
		f.Add([]byte(seed))
	}
	st := memory.New(memory.Options{})
	answers := [][]string{nil, {"a"}, {"1"}, {"a", "1", "b"}, {"", "x", "k", "-inf"}} // of a target that may be anything
	sets := setsFunc(func(args []string) ([]string, error) { return answers[len(strings.Join(args, ""))%len(answers)], nil })
	s, err := New(Site{Store: st, Lifetime: time.Hour, LockWait: time.Millisecond, LockLife: 10 * time.Millisecond, AccessSet: "z", Sets: sets,
		Limits: Limits{Idle: 5 * time.Millisecond, Command: 5 * time.Millisecond}}, Options{}) // not every input ends in a whole QUIT
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		s.accept(theirs, nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			ours.Write(in)
			ours.Write([]byte(command_("QUIT")))
		})
		ours.SetDeadline(time.Now().Add(patience))
		out, err := io.ReadAll(ours)
		ours.Close()
		wg.Wait()
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("no end; so far %.200q", out)
		}
		if n := s.Stats(); n.Panics != 0 {
			t.Fatal("a panic")
		}
		if len(out) > 64*len(in)+4096 {
			t.Fatalf("%d bytes out of %d", len(out), len(in))
		}
	})
}
