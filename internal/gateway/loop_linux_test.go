package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

// viaLoop makes start use a loop where it can.
var viaLoop bool

// TestThroughTheLoop runs the tests of the package once more, with connections that share a loop.
func TestThroughTheLoop(t *testing.T) {
	viaLoop = true
	defer func() { viaLoop = false }()
	for name, test := range map[string]func(*testing.T){
		"AnswersWhenTheStoreFails": TestAnswersWhenTheStoreFails, "Hold": TestHold, "HoldOfManyKeys": TestHoldOfManyKeys, "EarlierRepliesAreNotHeld": TestEarlierRepliesAreNotHeld,
		"ReadsAndWritesFailTogether": TestReadsAndWritesFailTogether, "WriteAfterDestroy": TestWriteAfterDestroy,
		"WriteWhileDestroyed": TestWriteWhileDestroyed, "SiteLifetime": TestSiteLifetime, "StoreWithoutConditions": TestStoreWithoutConditions,
		"AgainstAModel": TestAgainstAModel,

		"HostileBytes": TestHostileBytes, "UnfinishedCommand": TestUnfinishedCommand, "HostileKeys": TestHostileKeys,
		"CommandsThatAreNotServed": TestCommandsThatAreNotServed, "BeforeLogin": TestBeforeLogin,
		"ManyUnfinishedCommands": TestManyUnfinishedCommands, "MemoryOfAllConnections": TestMemoryOfAllConnections,
		"ClientThatDoesNotRead": TestClientThatDoesNotRead, "PipelineThatIsReadLate": TestPipelineThatIsReadLate,
		"ManyCommandsInOnePacket": TestManyCommandsInOnePacket, "AnyChunking": TestAnyChunking, "NothingSecretIsSaid": TestNothingSecretIsSaid,

		"Deadlines": TestDeadlines, "Login": TestLogin, "Select": TestSelect, "WhoIsThere": TestWhoIsThere, "ConnectionLimit": TestConnectionLimit,
		"Events": TestEvents, "Panic": TestPanic, "ShutdownUnderLoad": TestShutdownUnderLoad, "ShutdownIsGentle": TestShutdownIsGentle,
		"ShutdownGivesUp": TestShutdownGivesUp, "ShutdownAtAnyMoment": TestShutdownAtAnyMoment,

		"ReleaseScripts": TestReleaseScripts, "LockCommands": TestLockCommands, "LockIsFair": TestLockIsFair,
		"LockTwiceOnOneConnection": TestLockTwiceOnOneConnection, "LockHeldElsewhere": TestLockHeldElsewhere, "LockLife": TestLockLife,
		"TurnAtTheEndOfLockWait": TestTurnAtTheEndOfLockWait,
		"LockAndConnection":      TestLockAndConnection, "CommandsBehindALock": TestCommandsBehindALock,
		"LockOfUnknownOutcome": TestLockOfUnknownOutcome, "LockAtTheEnd": TestLockAtTheEnd, "LockAcrossGateways": TestLockAcrossGateways,

		"PHPRedisHandler": TestPHPRedisHandler, "PHPRedisClusterHandler": TestPHPRedisClusterHandler, "PHPOverUnixSocket": TestPHPOverUnixSocket,
		"PHPProcessesThatContend": TestPHPProcessesThatContend, "PHPWhileTheStoreIsAway": TestPHPWhileTheStoreIsAway,
		"ClientsOfSentinelAndCluster": TestClientsOfSentinelAndCluster, "SessionStores": TestSessionStores, "AnotherType": TestAnotherType, "Subscriptions": TestSubscriptions,
		"RepliesAreThoseOfRedis": TestRepliesAreThoseOfRedis, "UnixSocket": TestUnixSocket, "TLS": TestTLS,
	} {
		t.Run(name, test)
	}
}

func throughLoop(t testing.TB, site Site) Site {
	site.NoLoop = !viaLoop
	if _, ok := site.Store.(Upstream); !ok && viaLoop {
		site.Store = wire(t, site.Store)
	}
	return site
}

// linked waits until the loop, where there is one, has its connections to those who have these names.
func (g *gateway) linked(names ...string) {
	if !g.viaLoop {
		return
	}
	eventually(g.t, "a connection to the store", func() bool {
		g.mu.Lock()
		l := g.loop
		g.mu.Unlock()
		up := make(chan bool, 1)
		return l.post(func() {
			all := true
			for _, name := range append(names, "") {
				all = l.uplink(l.store.Shard([]byte(name))) != nil && all
			}
			up <- all
		}) && <-up
	})
}

// wired is a store that can be asked over a wire, as if it were a Redis. A failure of the store that is certain is an
// error of that Redis, and an unknown outcome its end.
type wired struct {
	store.Store
	l  net.Listener
	wg sync.WaitGroup

	shut, doubtful atomic.Bool  // nothing may be sent now; no answer may be passed on
	inside         atomic.Int64 // requests that were sent and are not done

	remember bool
	notes    []string // of what is remembered; guarded by mu

	running sync.RWMutex // for reading: commands; for writing: kill

	mu      sync.Mutex
	conns   map[net.Conn]bool
	dialed  int
	seen    []string // the commands, but for PING
	script  func(args []string) (answer string, ok bool)
	timeout time.Duration
	small   bool                    // the socket's buffers
	route   func(name []byte) Shard // who is said to have it; nil: this one
	cut     func() (in, out int)    // how much a new connection takes and says until it ends
}

// hangUp at the end of a scripted answer closes the connection.
const hangUp = "(hang up)"

// play sets what commands are answered instead of what the store says, where ok.
func (w *wired) play(script func(args []string) (answer string, ok bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.script = script
}

// kill ends all connections. What has come by them and was not run yet is not run any more.
func (w *wired) kill() {
	w.running.Lock()
	defer w.running.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for nc := range w.conns {
		nc.Close()
		delete(w.conns, nc)
	}
}

func wire(t testing.TB, st store.Store) *wired {
	t.Helper()
	l := freeListener(t)
	w := &wired{Store: st, l: l, conns: map[net.Conn]bool{}, timeout: 2 * time.Second}
	w.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns[nc] = true
			w.dialed++
			if w.small {
				nc.(*net.TCPConn).SetReadBuffer(32 << 10)
				nc.(*net.TCPConn).SetWriteBuffer(32 << 10)
			}
			var rw io.ReadWriter = nc
			if w.cut != nil {
				in, out := w.cut()
				rw = &frail{nc, in, out}
			}
			w.mu.Unlock()
			w.wg.Go(func() { w.serve(nc, rw) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for nc := range w.conns {
			nc.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
		if n := w.inside.Load(); n != 0 {
			t.Errorf("%d requests are said to be under way when nobody is left", n)
		}
	})
	return w
}

func (w *wired) Shard(name []byte) Shard {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.route != nil {
		return w.route(name)
	}
	return w
}

func (w *wired) Enter() bool {
	if w.shut.Load() {
		return false
	}
	w.inside.Add(1)
	return true
}

func (w *wired) Leave()        { w.inside.Add(-1) }
func (w *wired) Trusted() bool { return !w.doubtful.Load() }

func (w *wired) Raw() (bool, int, time.Duration) { return true, 512 << 20, w.timeout }

func (w *wired) Dial(ctx context.Context) (net.Conn, func() bool, error) {
	nc, err := new(net.Dialer).DialContext(ctx, w.l.Addr().Network(), w.l.Addr().String())
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.small {
		nc.(*net.TCPConn).SetReadBuffer(32 << 10)
		nc.(*net.TCPConn).SetWriteBuffer(32 << 10)
	}
	return nc, func() bool { return true }, err
}

func (w *wired) DataKey(dst []byte, key string) ([]byte, error) { return append(dst, key...), nil }

func (w *wired) LockKey(dst []byte, key string) ([]byte, error) {
	return append(dst, key+"_LOCK"...), nil
}

func (w *wired) UnlockScript() string { return "unlock" }

// What it remembers it only lists.
func (w *wired) noted(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

func (w *wired) Remembers() bool        { return w.remember }
func (w *wired) Resolves() bool         { return w.remember }
func (w *wired) Resolved(bool)          {}
func (w *wired) Sum(data []byte) uint64 { return uint64(1 + len(data)) }

type baseKey struct{}

func (w *wired) Base(ctx context.Context, sum uint64) context.Context {
	return context.WithValue(ctx, baseKey{}, sum)
}

func (w *wired) Saved(key string, data []byte, expires, asked time.Time, base uint64) {
	w.noted("saved %s %s over %d", key, data, base)
}
func (w *wired) Touched(key string, expires, asked time.Time) { w.noted("touched %s", key) }
func (w *wired) Deleted(key string, asked time.Time, version store.Version, gone uint64) {
	w.noted("deleted %s %s %d", key, version, gone)
}
func (w *wired) Locked(key, token string, until time.Time) { w.noted("locked %s %s", key, token) }
func (w *wired) Unlocked(key, token string)                { w.noted("unlocked %s %s", key, token) }

func (w *wired) DeleteScript() (sha, life string) { return "delete", "77" }

func (w *wired) SideKey(dst []byte, name string) []byte {
	return append(append(dst, "side:"...), name...)
}

func (w *wired) ResolveSave(ctx context.Context, key string, rec store.Record) (bool, error) {
	have, err := w.Load(ctx, key)
	w.noted("resolve %s %s", key, rec.Data)
	if errors.Is(err, store.ErrAbsent) {
		err = nil
	}
	return string(have.Data) == string(rec.Data), err
}

func (w *wired) ResolveDelete(ctx context.Context, key string) (bool, error) {
	_, err := w.Load(ctx, key)
	w.noted("resolve %s", key)
	if errors.Is(err, store.ErrAbsent) {
		return true, nil
	}
	return false, err
}

// frail is a connection that ends after so many bytes. What came by then is run before.
type frail struct {
	net.Conn
	in, out int
}

func (f *frail) Read(b []byte) (int, error) {
	if f.in == 0 {
		return 0, io.EOF
	}
	n, err := f.Conn.Read(b[:min(len(b), f.in)])
	f.in -= n
	return n, err
}

func (f *frail) Write(b []byte) (int, error) {
	n, err := f.Conn.Write(b[:min(len(b), f.out)])
	if f.out -= n; f.out == 0 {
		err = io.ErrShortWrite
	}
	return n, err
}

func (w *wired) serve(nc net.Conn, rw io.ReadWriter) {
	defer func() {
		nc.Close()
		w.mu.Lock()
		delete(w.conns, nc)
		w.mu.Unlock()
	}()
	var in, out []byte
	r := bufio.NewReader(rw)
	for {
		var args [][]byte
		for {
			var n int
			var err error
			if args, n, _, err = resp.ParseRequest(in, resp.Limits{Arg: 64 << 20}, nil); err == nil {
				in = in[n:]
				break
			}
			if !errors.Is(err, resp.ErrIncomplete) {
				panic(err)
			}
			if len(out) > 0 {
				if _, err := rw.Write(out); err != nil {
					return
				}
				out = out[:0]
			}
			var b [64 << 10]byte
			if n, err = r.Read(b[:]); err != nil {
				return
			}
			in = append(in[:len(in):len(in)], b[:n]...)
		}
		if len(args) == 1 && string(args[0]) == "PING" {
			out = append(out, "+PONG\r\n"...)
			continue
		}
		if answer, ok := w.scripted(args); ok {
			answer, hang := strings.CutSuffix(answer, hangUp)
			if out = append(out, answer...); hang {
				rw.Write(out)
				return
			}
			continue
		}
		w.running.RLock()
		w.mu.Lock()
		alive := w.conns[nc]
		w.mu.Unlock()
		if !alive {
			w.running.RUnlock()
			return
		}
		answer, err := w.answer(args)
		w.running.RUnlock()
		switch {
		case err == nil:
			out = append(out, answer...)
		case store.OutcomeOf(err) == store.OutcomeUnknown:
			rw.Write(out)
			return
		default:
			out = resp.AppendError(out, "LOADING the store says no")
		}
	}
}

func (w *wired) answer(args [][]byte) (b []byte, err error) {
	defer func() {
		if recover() != nil {
			err = store.ErrUnavailable // the gateway will see the panic when it asks by itself
		}
	}()
	ctx := context.Background()
	key := func() string { return string(args[1]) }
	in := func(ms []byte) time.Time {
		n, err := strconv.Atoi(string(ms))
		if err != nil {
			panic(err)
		}
		return time.Now().Add(time.Duration(n) * time.Millisecond)
	}
	number := func(n int64, err error) ([]byte, error) {
		if errors.Is(err, store.ErrAbsent) {
			n, err = 0, nil
		}
		return resp.AppendInt(nil, n), err
	}
	switch name := string(args[0]); {
	case name == "GET" && len(args) == 2:
		rec, err := w.Load(ctx, key())
		if errors.Is(err, store.ErrAbsent) {
			return []byte(null), nil
		}
		return resp.AppendBulk(nil, rec.Data), err
	case name == "EXISTS" && len(args) == 2:
		_, err := w.Load(ctx, key())
		return number(1, err)
	case name == "SET" && len(args) == 5 && string(args[3]) == "PX":
		return []byte("+OK\r\n"), w.Save(ctx, key(), store.Record{Data: args[2], Expires: in(args[4])}, store.Always)
	case name == "SET" && len(args) == 6 && string(args[3])+string(args[4]) == "NXPX":
		id := strings.TrimSuffix(key(), "_LOCK")
		if token, _, err := w.LockHolder(ctx, id); err != nil || token != "" {
			return []byte(null), err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond) // somebody may have been faster
		defer cancel()
		err := w.Lock(ctx, id, string(args[2]), time.Until(in(args[5])))
		if errors.Is(err, store.ErrLocked) {
			return []byte(null), nil
		}
		return []byte("+OK\r\n"), err
	case name == "EVALSHA" && len(args) == 5 && string(args[1])+string(args[2]) == "unlock1":
		n := int64(0)
		held, err := w.Unlock(ctx, strings.TrimSuffix(string(args[3]), "_LOCK"), string(args[4]))
		if held {
			n = 1
		}
		return resp.AppendInt([]byte("*2\r\n:0\r\n"), n), err
	case name == "EVALSHA" && len(args) == 7 && string(args[1])+string(args[2]) == "delete2":
		rec, _ := w.Load(ctx, string(args[3]))
		existed, err := w.Delete(ctx, string(args[3]), store.Always)
		n := int64(0)
		if existed {
			n = 1
		}
		return fmt.Appendf(nil, "*4\r\n:0\r\n:%d\r\n$%d\r\n%s\r\n:5\r\n", n, len(rec.Data), rec.Data), err
	case name == "PEXPIRE" && len(args) == 3:
		return number(1, w.Touch(ctx, key(), in(args[2])))
	case name == "DEL" && len(args) == 2:
		existed, err := w.Delete(ctx, key(), store.Always)
		n := int64(0)
		if existed {
			n = 1
		}
		return number(n, err)
	}
	return nil, fmt.Errorf("%q", args)
}

func (w *wired) scripted(args [][]byte) (answer string, ok bool) {
	var list []string
	for _, a := range args {
		list = append(list, string(a))
	}
	w.mu.Lock()
	w.seen = append(w.seen, strings.Join(list, " "))
	script := w.script
	w.mu.Unlock()
	if script == nil {
		return "", false
	}
	return script(list)
}

// commands returns the commands that came over the wire since the last call.
func (w *wired) commands() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

func (w *wired) counts() (seen, dialed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen), w.dialed
}

// startLoop serves site, over a wire, by a loop.
func startLoop(t testing.TB, site Site) (*gateway, *wired) {
	t.Helper()
	if site.Store == nil {
		site.Store = memory.New(memory.Options{})
	}
	w, ok := site.Store.(*wired)
	if !ok {
		w = wire(t, site.Store)
		site.Store = w
	}
	viaLoop = true
	defer func() { viaLoop = false }()
	return start(t, site), w
}

// What is one command of Redis goes by the loop, and nothing else.
func TestWhatGoesByTheLoop(t *testing.T) {
	st := newScripted()
	gw, w := startLoop(t, Site{Store: st})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "k", "100", "v")
	sha := gw.scripts.add([]byte("if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"), false)
	w.commands()
	for _, tc := range []struct{ send, reply, want string }{
		{"GET k", bulk("v"), "GET k"},
		{"get k", bulk("v"), "GET k"},
		{"GET none", null, "GET none"},
		{"STRLEN k", ":1\r\n", "GET k"},
		{"TYPE k", "+string\r\n", "GET k"},
		{"EXISTS k", ":1\r\n", "EXISTS k"},
		{"EXISTS none", ":0\r\n", "EXISTS none"},
		{"SETEX n 100 w", "+OK\r\n", "SET n w PX 100000"},
		{"PSETEX n 100001 w", "+OK\r\n", "SET n w PX 100001"},
		{"SET n w", "+OK\r\n", "SET n w PX 3600000"},
		{"SET n w ex 7", "+OK\r\n", "SET n w PX 7000"},
		{"SET n w PX 70", "+OK\r\n", "SET n w PX 70"},
		{"EXPIRE k 50", ":1\r\n", "PEXPIRE k 50000"},
		{"PEXPIRE k 50001", ":1\r\n", "PEXPIRE k 50001"},
		{"EXPIRE none 50", ":0\r\n", "PEXPIRE none 50000"},
		{"DEL n", ":1\r\n", "DEL n"},
		{"UNLINK n", ":0\r\n", "DEL n"},

		{"PING", "+PONG\r\n", ""},
		{"MGET k none", "*2\r\n" + bulk("v") + null, ""},
		{"EXISTS k k", ":2\r\n", ""},
		{"DEL none none", ":0\r\n", ""},
		{"TTL none", ":-2\r\n", ""},
		{"SET k x NX", null, ""},
		{"SET k v XX EX 10", "+OK\r\n", ""},
		{"SET k v GET EX 10", bulk("v"), ""},
		{"SET k v KEEPTTL", "+OK\r\n", ""},
		{"SET k v EXAT 4000000000", "+OK\r\n", ""},
		{"SETNX k v", ":0\r\n", ""},
		{"GETSET k v", bulk("v"), ""},
		{"GETEX k EX 10", bulk("v"), ""},
		{"EXPIRE k 10 NX", ":0\r\n", ""},
		{"EXPIREAT k 4000000000", ":1\r\n", ""},
		{"GET k_LOCK", null, ""},
		{"EXISTS k_LOCK", ":0\r\n", ""},
		{"SET k_LOCK t NX", "+OK\r\n", "SET k_LOCK t NX PX 600000"},
		{"SET k_LOCK t NX", null, ""},
		{"DEL k_LOCK", ":1\r\n", ""},
		{"SET k_LOCK t NX PX 70", "+OK\r\n", "SET k_LOCK t NX PX 70"},
		{"EVALSHA " + sha + " 1 k_LOCK other", ":0\r\n", "EVALSHA unlock 1 k_LOCK other"},
		{"EVALSHA " + sha + " 1 k_LOCK t", ":1\r\n", "EVALSHA unlock 1 k_LOCK t"},
		{"EVALSHA " + sha + " 1 k t", "-ERR sessile: the only script served is the release of a lock (compare GET with ARGV[1], then DEL)\r\n", ""},
		{"EVALSHA " + sha + " 0 t t", "-ERR sessile: the only script served is the release of a lock (compare GET with ARGV[1], then DEL)\r\n", ""},
		{"EVALSHA 0123456789012345678901234567890123456789 1 k_LOCK t", "-NOSCRIPT No matching script. Please use EVAL.\r\n", ""},
		{"GET sessile:k", "-ERR sessile: invalid session id or value\r\n", ""},
		{"EXPIRE k 0", ":1\r\n", ""},
		{"GETDEL k", null, ""},
		{"SETEX k 0 v", "-ERR invalid expire time in 'setex' command\r\n", ""},
	} {
		c.want(tc.reply, strings.Split(tc.send, " ")...)
		if got := strings.Join(w.commands(), ", "); got != tc.want {
			t.Errorf("%s: %q went over the wire, want %q", tc.send, got, tc.want)
		}
	}

	// A write while reads fail, and one of a session that was destroyed since it was read, are not for the loop.
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "d", "100", "v")
	a.want(bulk("v"), "GET", "d")
	b.want(":1\r\n", "DEL", "d")
	w.commands()
	a.want("+OK\r\n", "SETEX", "d", "100", "v")
	a.want("+OK\r\n", "SETEX", "e", "100", "v")
	gw.blind.Store(true)
	a.want("+OK\r\n", "SETEX", "f", "100", "v") // finds that reads work
	a.want("+OK\r\n", "SETEX", "f", "100", "v")
	if got := strings.Join(w.commands(), ", "); got != "SET e v PX 100000, SET f v PX 100000" {
		t.Errorf("%q went over the wire", got)
	}
	sliding, w := startLoop(t, Site{Store: st, Lifetime: time.Hour, SlidingWithoutTTL: true})
	sliding.dial().want(null, "GET", "d")
	if got := w.commands(); len(got) > 0 {
		t.Errorf("%q went over the wire of a site whose reads may write", got)
	}
}

// Commands that are sent at once come to what they come to one after the other, whichever way they go and however they
// are cut: a loop and a goroutine answer the same.
func TestPipelinesByLoopAndByHand(t *testing.T) {
	one := func(rng *rand.Rand) string {
		key := []string{"a", "b", "c", "a_LOCK"}[rng.IntN(4)]
		value := strings.Repeat(string(rune('a'+rng.IntN(26))), []int{0, 1, 10, 1000, 5000}[rng.IntN(5)])
		return [...]func() string{
			func() string { return command_("GET", key) },
			func() string { return command_("GET", key) },
			func() string { return command_("SETEX", key, "100", value) },
			func() string { return command_("SETEX", key, "100", value) },
			func() string { return command_("DEL", key) },
			func() string { return command_("EXISTS", key) },
			func() string { return command_("EXPIRE", key, "50") },
			func() string { return command_("SET", key, value, "NX", "EX", "10") },
			func() string { return command_("MGET", "a", key) },
			func() string { return command_("DEL", "a", key) },
			func() string { return command_("GETDEL", key) },
			func() string { return command_("ECHO", value) },
			func() string { return command_("TTL", key) },
			func() string { return command_("HELLO", fmt.Sprint(2+rng.IntN(2)))[:0] + command_("PING") },
			func() string { return command_("HELLO", "3") },
			func() string { return command_("RESET") },
			func() string { return command_("SELECT", fmt.Sprint(rng.IntN(5)/4)) },
			func() string { return command_("NONSENSE", key) },
			func() string { return command_("EXPIRE", key, "x") },
			func() string { return "\r\n" },
			func() string { return "PING\r\n" },
		}[rng.IntN(21)]()
	}
	for range 150 {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		var stream strings.Builder
		for range 1 + rng.IntN(200) {
			stream.WriteString(one(rng))
		}
		switch rng.IntN(4) {
		case 0:
			stream.WriteString("*1\r\n$-1\r\n" + command_("PING"))
		case 1:
			stream.WriteString(command_("GET", "a")[:9])
		default:
			stream.WriteString(command_("QUIT"))
		}
		run := func(gw *gateway) string {
			c := gw.dial()
			defer c.close()
			go func() {
				cut := rand.New(rand.NewPCG(seed, 1))
				for rest := []byte(stream.String()); len(rest) > 0; {
					n := min(len(rest), 1+cut.IntN(1+cut.IntN(1<<(1+cut.IntN(15)))))
					if _, err := c.nc.Write(rest[:n]); err != nil {
						return
					}
					if rest = rest[n:]; cut.IntN(10) == 0 {
						time.Sleep(time.Millisecond / 4)
					}
				}
				c.nc.(*net.TCPConn).CloseWrite()
			}()
			c.nc.SetReadDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(c.nc)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("seed %d: no end", seed)
			}
			return steady(string(got))
		}
		site := Site{LockWait: 20 * time.Millisecond}
		loop, _ := startLoop(t, site)
		byLoop, byHand := run(loop), run(start(t, site))
		if byLoop != byHand {
			i := 0
			for i < min(len(byLoop), len(byHand)) && byLoop[i] == byHand[i] {
				i++
			}
			t.Fatalf("seed %d: of %d bytes by loop and %d by hand %d are the same, after %q\n by loop %.300q\n by hand %.300q",
				seed, len(byLoop), len(byHand), i, byLoop[max(0, i-200):i], byLoop[i:], byHand[i:])
		}
	}
}

// tally counts how often each value was written.
type tally struct {
	*memory.Store
	mu    sync.Mutex
	saved map[string]int
}

// mark is what is unique of a value, which ends in many x.
func mark(value string) string { return strings.TrimRight(value, "x") }

func (s *tally) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	s.mu.Lock()
	s.saved[mark(string(rec.Data))]++
	s.mu.Unlock()
	return s.Store.Save(ctx, key, rec, cond)
}

func (s *tally) count(value string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved[mark(value)]
}

// Many clients, some of which go away, read slowly or send all they have to say at once, over a store that loses its
// connections: whatever a client reads is what it wrote under that key, what was acknowledged was done once and is there,
// and nothing was done twice.
func TestNobodyGetsAnothersAnswer(t *testing.T) {
	some := func() int { return rand.IntN(1 << rand.IntN(20)) } // bytes
	for name, wreck := range map[string]func(w *wired) (stop func()){
		"between two commands": func(w *wired) func() {
			done := make(chan struct{})
			var killer sync.WaitGroup
			killer.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-time.After(rand.N(20 * time.Millisecond)):
						w.kill()
					}
				}
			})
			return func() {
				close(done)
				killer.Wait()
			}
		},
		"at any byte": func(w *wired) func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cut = func() (in, out int) { return some(), some() }
			w.script = func([]string) (string, bool) { return "-LOADING not now\r\n", rand.IntN(50) == 0 }
			return func() {}
		},
		"at any byte, over small sockets": func(w *wired) func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.small = true
			w.cut = func() (in, out int) { return 1<<10 + some(), 1<<10 + some() }
			return func() {}
		},
		"over shards between which the keys move":                func(w *wired) func() { return shards(t, w) },
		"over shards between which the keys move, with a memory": func(w *wired) func() { w.remember = true; return shards(t, w) },
	} {
		t.Run(name, func(t *testing.T) { manyClients(t, wreck) })
	}
}

// shards makes of w a store of three, of which each refuses what it does not have, as a Cluster does. Who has what changes all
// the time, is heard of later, and now and then one loses its connections.
func shards(t *testing.T, w *wired) (stop func()) {
	all := []*wired{w, wire(t, w.Store), wire(t, w.Store)}
	var turn, heard atomic.Uint32
	of := func(name []byte, turn uint32) int { return int((crc32.ChecksumIEEE(name) + turn) % uint32(len(all))) }
	for i, shard := range all {
		shard.play(func(args []string) (string, bool) {
			key := args[1]
			if args[0] == "EVALSHA" {
				key = args[3]
			}
			return "-MOVED 1 127.0.0.1:1\r\n", of([]byte(key), turn.Load()) != i
		})
	}
	w.mu.Lock()
	w.route = func(name []byte) Shard {
		if i := of(name, heard.Load()); rand.IntN(100) > 0 {
			return all[i]
		}
		return nil // nobody knows
	}
	w.mu.Unlock()
	done := make(chan struct{})
	var mover sync.WaitGroup
	mover.Go(func() {
		for {
			heard.Store(turn.Load())
			select {
			case <-done:
				return
			case <-time.After(rand.N(10 * time.Millisecond)):
				turn.Add(rand.Uint32N(2) + 1)
			}
			time.Sleep(rand.N(2 * time.Millisecond))
			if rand.IntN(4) == 0 {
				all[rand.IntN(len(all))].kill()
			}
		}
	})
	return func() {
		close(done)
		mover.Wait()
	}
}

func manyClients(t *testing.T, wreck func(w *wired) (stop func())) {
	const clients = 24
	rounds := 20
	if os.Getenv("SESSILE_SOAK") != "" {
		rounds = 600
	}
	st := &tally{Store: memory.New(memory.Options{}), saved: map[string]int{}}
	w := wire(t, st)
	w.timeout = time.Minute // what is given up while this process has no turn is executed later, and takes back what came behind it
	defer wreck(w)()
	gw, _ := startLoop(t, Site{Store: w, Limits: Limits{Args: 100}, LockWait: time.Millisecond})
	sha := gw.scripts.add(nil, false)
	w.kill() // the connection that was made before
	var wg sync.WaitGroup
	var exact, unknown, refused atomic.Int64
	for i := range clients {
		seed := rand.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for round := range rounds {
				c := gw.dial()
				hasty := rng.IntN(4) == 0 // goes away without having read
				slow := rng.IntN(32) == 0
				if slow {
					c.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
				}
				may := map[string]map[string]bool{}
				key := func() string { return fmt.Sprintf("c%d-%d-%d", i, round, rng.IntN(4)) }
				type sent struct{ name, key, value string }
				last := 5
				for batch := range last + 1 {
					var all []sent
					var b strings.Builder
					for n := range 1 + rng.IntN(30) {
						s := sent{key: key(), name: []string{"GET", "GET", "SETEX", "SETEX", "EXISTS", "EXPIRE", "DEL", "MGET", "PING",
							"lock", "lock", "unlock"}[rng.IntN(12)]}
						switch s.name {
						case "lock", "unlock":
							// the token of one batch is not that of the next
							s.key, s.value = s.key+"_LOCK", fmt.Sprintf("%d-%d", i, batch)
							if s.name == "lock" {
								b.WriteString(command_("SET", s.key, s.value, "NX", "PX", "100000"))
							} else {
								b.WriteString(command_("EVALSHA", sha, "1", s.key, s.value))
							}
						case "SETEX":
							s.value = fmt.Sprintf("%s-%d-%d-", s.key, batch, n) + strings.Repeat("x", rng.IntN(1<<rng.IntN(16)))
							b.WriteString(command_("SETEX", s.key, "100", s.value))
						case "EXPIRE":
							b.WriteString(command_("EXPIRE", s.key, "100"))
						case "PING":
							b.WriteString(command_("PING"))
						default:
							b.WriteString(command_(s.name, s.key))
						}
						if may[s.key] == nil {
							may[s.key] = map[string]bool{null: true}
						}
						all = append(all, s)
					}
					end := batch == last && rng.IntN(2) == 0
					go func() {
						io.WriteString(c.nc, b.String())
						if end {
							c.nc.(*net.TCPConn).CloseWrite()
						}
					}()
					if hasty && rng.IntN(3) == 0 {
						c.nc.(*net.TCPConn).SetLinger(rng.IntN(3) - 1) // a reset if 0
						may = nil
						break
					}
					for _, s := range all {
						if slow {
							time.Sleep(time.Millisecond / 4)
						}
						got, err := c.tryReply(patience)
						if err != nil {
							t.Errorf("client %d, seed %d: %s: %v", i, seed, s.name, err)
							return
						}
						had := may[s.key]
						var ok bool
						switch s.name {
						case "GET":
							if ok = had[got]; ok {
								may[s.key] = map[string]bool{got: true}
							}
						case "MGET":
							got, ok = strings.CutPrefix(got, "*1\r\n")
							if ok = ok && had[got]; ok {
								may[s.key] = map[string]bool{got: true}
							}
						case "SETEX":
							times := st.count(s.value)
							switch got {
							case "+OK\r\n":
								ok = times == 1
								may[s.key] = map[string]bool{bulk(s.value): true}
								exact.Add(1)
							case textUnknown:
								ok = times <= 1
								had[bulk(s.value)] = true
								unknown.Add(1)
							case textAway:
								ok = times == 0
								refused.Add(1)
							}
						case "DEL":
							switch got {
							case ":0\r\n":
								ok = had[null]
								may[s.key] = map[string]bool{null: true}
							case ":1\r\n":
								ok = len(had) > 1 || !had[null] || w.remember // what is found done, nobody knows what it did
								may[s.key] = map[string]bool{null: true}
							case textUnknown:
								ok = true
								had[null] = true
							case textAway:
								ok = true
							}
						case "lock":
							switch got {
							case "+OK\r\n":
								ok = had[null]
								may[s.key] = map[string]bool{bulk(s.value): true}
							case null, textAway: // also when LockWait is over before anybody was asked
								ok = true
							case textUnknown: // it is released, if it had not been taken before with the same token too
								ok = true
								had[null] = had[null] || had[bulk(s.value)]
							}
						case "unlock":
							switch got {
							case ":1\r\n":
								if ok = had[bulk(s.value)] || w.remember; w.remember { // of which no answer came, it is taken for its own
									delete(had, bulk(s.value))
									had[null] = true
								} else {
									may[s.key] = map[string]bool{null: true}
								}
							case ":0\r\n":
								ok = len(had) > 1 || !had[bulk(s.value)]
								delete(had, bulk(s.value))
							case textUnknown:
								ok = true
								had[null] = had[null] || had[bulk(s.value)]
							case textAway:
								ok = true
							}
						case "EXISTS", "EXPIRE":
							switch got {
							case ":0\r\n":
								ok = had[null]
							case ":1\r\n":
								ok = len(had) > 1 || !had[null]
							case textUnknown, textAway:
								ok = s.name == "EXPIRE"
							}
						case "PING":
							ok = got == "+PONG\r\n"
						}
						if !ok {
							t.Errorf("client %d, seed %d: %s %s: got %.100q, may be one of %d", i, seed, s.name, s.key, got, len(had))
							return
						}
					}
					if end {
						c.closed()
					}
				}
				c.close()
				for key, had := range may {
					rec, err := st.Load(context.Background(), key)
					if id, lock := strings.CutSuffix(key, "_LOCK"); lock {
						var token string
						token, _, err = st.LockHolder(context.Background(), id)
						if rec.Data = []byte(token); token == "" {
							err = store.ErrAbsent
						}
					}
					if got := string(appendValue(nil, 2, rec.Data, err == nil)); !had[got] {
						t.Errorf("client %d, seed %d: in the end %s is %.100q, may be one of %d", i, seed, key, got, len(had))
					}
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "the end of all", func() bool { return gw.Stats().Open == 0 })
	for what, n := range st.saved {
		if n != 1 {
			t.Errorf("%s was written %d times", what, n)
		}
	}
	if n := gw.destroyed.pending.Load(); n != 0 {
		t.Errorf("%d sessions are being destroyed for ever", n)
	}
	gw.locks.mu.Lock()
	defer gw.locks.mu.Unlock()
	for id, q := range gw.locks.queues {
		if q.asking || len(q.waiters) > 0 {
			t.Errorf("somebody asks for the lock on %s for ever: %+v", id, q)
		}
	}
	_, dialed := w.counts()
	if dialed < 5 || exact.Load() == 0 || unknown.Load() == 0 {
		t.Errorf("%d connections to the store, %d writes acknowledged, %d unknown: nothing was tried", dialed, exact.Load(), unknown.Load())
	}
	t.Logf("%d connections to the store, %d writes acknowledged, %d unknown, %d refused", dialed, exact.Load(), unknown.Load(), refused.Load())
}

// What a connection asks of one session is done in its order, also where the session moves meanwhile: what is under way on one
// shard is waited for before the other one is asked.
func TestOneSessionOnTwoShards(t *testing.T) {
	st := memory.New(memory.Options{})
	from, to := wire(t, st), wire(t, st)
	var moved atomic.Bool
	from.route = func([]byte) Shard {
		if moved.Load() {
			return to
		}
		return from
	}
	gw, _ := startLoop(t, Site{Store: from})
	asked, release := make(chan bool), make(chan bool)
	from.play(func([]string) (string, bool) {
		asked <- true
		<-release
		return "", false
	})
	c, other := gw.dial(), gw.dial()
	c.send(command_("SETEX", "k", "100", "old"))
	<-asked
	moved.Store(true)
	gw.linked()
	c.send(command_("SETEX", "free", "100", "v") + command_("SETEX", "k", "100", "new"))
	eventually(t, "what is about another session", func() bool {
		other.want("+OK\r\n", "SETEX", "other", "100", "v")
		_, err := st.Load(t.Context(), "free")
		return err == nil
	})
	from.play(nil)
	close(release)
	for range 3 {
		if got := c.reply(); got != "+OK\r\n" {
			t.Errorf("got %q", got)
		}
	}
	if rec, err := st.Load(t.Context(), "k"); string(rec.Data) != "new" {
		t.Errorf("in the end there is %q, %v", rec.Data, err)
	}
}

// What is not the answer to the question ends the connection, and nobody gets anything of it.
func TestStoreThatAnswersOutOfTurn(t *testing.T) {
	for _, tc := range []struct{ send, answer, want string }{
		{"GET k", "+OK\r\n", bulk("v")},
		{"GET k", ":1\r\n", bulk("v")},
		{"GET k", "*1\r\n$1\r\nx\r\n", bulk("v")},
		{"GET k", "*-1\r\n", bulk("v")},
		{"GET k", "_\r\n", bulk("v")},
		{"GET k", "#t\r\n", bulk("v")},
		{"GET k", ">1\r\n+x\r\n", bulk("v")},
		{"GET k", "=5\r\ntxt:x\r\n", bulk("v")},
		{"GET k", "$1\r\nxyz", bulk("v")},
		{"GET k", "$-2\r\n", bulk("v")},
		{"GET k", "$01\r\nx\r\n", bulk("v")},
		{"GET k", "$536870913\r\n", bulk("v")},
		{"GET k", "$99999999999999999999999\r\n", bulk("v")},
		{"GET k", "$2000000x\r\n", bulk("v")},
		{"GET k", "HTTP/1.1 200 OK\r\n", bulk("v")},
		{"GET k", hangUp, bulk("v")},
		{"EXISTS k", ":2\r\n", ":1\r\n"},
		{"EXISTS k", "$1\r\n1\r\n", ":1\r\n"},
		{"EXISTS k", ":01x\r\n", ":1\r\n"},
		{"SETEX k 100 w", "+OKAY\r\n", textUnknown},
		{"SETEX k 100 w", "$2\r\nOK\r\n", textUnknown},
		{"SETEX k 100 w", "$-1\r\n", textUnknown},
		{"SETEX k 100 w", ":1\r\n", textUnknown},
		{"EXPIRE k 100", "+OK\r\n", textUnknown},
		{"EXPIRE k 100", ":-1\r\n", textUnknown},
		{"DEL k", "+OK\r\n", textUnknown},
		{"DEL k", hangUp, textUnknown},

		// the answer, and more
		{"GET k", bulk("x") + bulk("y"), bulk("x")},
		{"SETEX k 100 w", "+OK\r\n+OK\r\n", "+OK\r\n"},
	} {
		gw, w := startLoop(t, Site{})
		c := gw.dial()
		c.want("+OK\r\n", "SETEX", "k", "100", "v")
		once := true
		w.play(func([]string) (string, bool) {
			defer func() { once = false }()
			return tc.answer, once
		})
		c.want(tc.want, strings.Split(tc.send, " ")...)
		eventually(t, "another connection", func() bool { _, dialed := w.counts(); return dialed == 2 })
		gw.linked()
		c.want(bulk("v"), "GET", "k")
		if got := w.commands(); len(got) != 3 {
			t.Errorf("%s, %q: %q went over the wire", tc.send, tc.answer, got)
		}
		if n := len(gw.destroyed.ids); n > 1 || gw.destroyed.pending.Load() != 0 {
			t.Errorf("%s, %q: %d sessions are being destroyed", tc.send, tc.answer, gw.destroyed.pending.Load())
		}
	}
	// Nobody asked. Of the second, what a GET is answered would be the rest: a value of "hel$1".
	for _, unasked := range []string{"+OK\r\n", "$5\r\nhel"} {
		gw, w := startLoop(t, Site{})
		c := gw.dial()
		c.want("+OK\r\n", "SETEX", "k", "100", "v")
		w.mu.Lock()
		for nc := range w.conns {
			io.WriteString(nc, unasked)
		}
		w.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		c.want(bulk("v"), "GET", "k")
		eventually(t, "another connection", func() bool { _, dialed := w.counts(); return dialed == 2 })
	}
}

// The connection ends after any number of bytes of the answers to four clients: who read has the right answer anyhow, who
// wrote has the answer if it was complete, and else is told that nobody knows.
func TestStoreThatDiesAtAnyByte(t *testing.T) {
	answers := []string{bulk("value of a"), "+OK\r\n", ":1\r\n", bulk("value of b"), ":1\r\n"}
	commands := [][]string{{"GET", "a"}, {"SETEX", "k", "100", "v"}, {"DEL", "d"}, {"GET", "b"}, {"EXPIRE", "b", "100"}}
	all := strings.Join(answers, "")
	st := memory.New(memory.Options{})
	for cut := range len(all) + 1 {
		gw, w := startLoop(t, Site{Store: st})
		set := gw.dial()
		for _, key := range []string{"a", "b", "d"} {
			set.want("+OK\r\n", "SETEX", key, "100", "value of "+key)
		}
		n := 0
		w.play(func([]string) (string, bool) {
			switch n++; {
			case n < len(commands):
				return "", true
			case n == len(commands):
				return all[:cut] + hangUp, true
			}
			return "", false
		})
		w.commands()
		var clients []*client
		for i, args := range commands {
			c := gw.dial()
			c.send(command_(args...))
			if i%2 == 0 {
				c.nc.(*net.TCPConn).CloseWrite() // which changes nothing
			}
			clients = append(clients, c)
			eventually(t, "the command", func() bool { seen, _ := w.counts(); return seen == i+1 })
		}
		end := 0
		for i, c := range clients {
			want := answers[i]
			if end += len(want); cut < end && commands[i][0] != "GET" {
				want = textUnknown
			}
			if got, err := c.tryReply(w.timeout / 2); got != want { // it is not the timeout that finds out
				t.Errorf("after %d of %d bytes: %q: got %q, %v, want %q", cut, len(all), commands[i], got, err, want)
			}
			c.close()
		}
		if n := gw.destroyed.pending.Load(); n != 0 {
			t.Errorf("%d sessions are being destroyed for ever", n)
		}
		gw.Close()
	}
}

// A store that takes everything and says nothing is given up within its timeout, and one that was given up does not get to
// say anything later.
func TestStoreThatIsSilent(t *testing.T) {
	w := wire(t, memory.New(memory.Options{}))
	w.timeout = 150 * time.Millisecond
	gw, _ := startLoop(t, Site{Store: w})
	a, b, c := gw.dial(), gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "k", "100", "v")
	release := make(chan struct{})
	w.play(func(args []string) (string, bool) {
		<-release
		return bulk("late"), true
	})
	began := time.Now()
	a.send(command_("GET", "k"))
	b.send(command_("SETEX", "k", "100", "w"))
	c.send(command_("EXISTS", "k"))
	if got := a.reply() + b.reply() + c.reply(); got != bulk("v")+textUnknown+":1\r\n" {
		t.Errorf("got %q", got)
	}
	if took := time.Since(began); took < 100*time.Millisecond || took > 2*time.Second {
		t.Errorf("given up after %v", took)
	}
	close(release)
	w.play(nil)
	gw.linked()
	if got := a.do("GET", "k"); got != bulk("v") && got != bulk("w") {
		t.Errorf("got %q", got)
	}
}

// Errors of the store are never passed on. A command that was refused is run again, unless it is a write or a destroy and a later
// one of the same session was not refused.
func TestStoreThatRefuses(t *testing.T) {
	const oom = "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
	for _, tc := range []struct {
		send    []string
		answers []string // over the wire
		want    []string
		byHand  int64 // saves
	}{
		{[]string{"SETEX a 100 v"}, []string{oom}, []string{"+OK\r\n"}, 1},
		{[]string{"SETEX a 100 v", "SETEX b 100 v", "SETEX c 100 v"}, []string{"+OK\r\n", oom, oom},
			[]string{"+OK\r\n", "+OK\r\n", "+OK\r\n"}, 2},
		{[]string{"SETEX a 100 v", "SETEX b 100 v", "SETEX c 100 v"}, []string{oom, "+OK\r\n", oom},
			[]string{"+OK\r\n", "+OK\r\n", "+OK\r\n"}, 2},
		{[]string{"SETEX a 100 v", "EXPIRE r 100", "SETEX a 100 w", "SETEX a 100 x"}, []string{"-MOVED 1 127.0.0.1:1\r\n", ":1\r\n", "+OK\r\n", oom},
			[]string{textAway, ":1\r\n", "+OK\r\n", "+OK\r\n"}, 1},
		{[]string{"GET r", "GET r", "EXISTS r"}, []string{"-LOADING x\r\n", bulk("wrong"), ":0\r\n"},
			[]string{bulk("v"), bulk("v"), ":1\r\n"}, 0},
		{[]string{"GET r", "GET none", "GET r"}, []string{bulk("right"), null, "-MOVED 1 127.0.0.1:1\r\n"},
			[]string{bulk("right"), null, bulk("v")}, 0},
		{[]string{"DEL a", "DEL r", "GET r"}, []string{"-READONLY x\r\n", "-READONLY x\r\n"}, []string{":0\r\n", ":1\r\n", null}, 0},
		{[]string{"DEL r", "DEL r"}, []string{"-LOADING x\r\n", ":1\r\n"}, []string{":1\r\n", ":0\r\n"}, 0},
		{[]string{"DEL r", "DEL a", "DEL r", "DEL r"}, []string{"-LOADING x\r\n", ":1\r\n", "-LOADING x\r\n", ":1\r\n"},
			[]string{":1\r\n", ":1\r\n", ":0\r\n", ":0\r\n"}, 0},
	} {
		st := newScripted()
		gw, w := startLoop(t, Site{Store: st})
		c := gw.dial()
		c.want("+OK\r\n", "SETEX", "r", "100", "v")
		var held []string
		n := 0
		w.play(func(args []string) (string, bool) {
			if n++; n > len(tc.answers) {
				return "", false
			}
			held = append(held, tc.answers[n-1])
			if n == len(tc.answers) {
				return strings.Join(held, ""), true
			}
			return "", true
		})
		saves := st.saves.Load()
		var b strings.Builder
		for _, line := range tc.send {
			b.WriteString(command_(strings.Split(line, " ")...))
		}
		c.send(b.String())
		for i, want := range tc.want {
			if got := c.reply(); got != want {
				t.Errorf("%q, %q: reply %d: %q, want %q", tc.send, tc.answers, i, got, want)
			}
		}
		if got := st.saves.Load() - saves; tc.byHand != 0 && got > tc.byHand {
			t.Errorf("%q, %q: %d saves by hand", tc.send, tc.answers, got)
		}
	}
}

// A write and the destroy of what was read before it, both under way in this order: the session stays destroyed.
func TestDestroyBehindAWrite(t *testing.T) {
	gw, w := startLoop(t, Site{})
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "k", "100", "v")
	a.want(bulk("v"), "GET", "k")
	release := make(chan struct{})
	w.play(func([]string) (string, bool) { <-release; return "", false })
	a.send(command_("SETEX", "k", "100", "w") + command_("PING"))
	eventually(t, "the write on its way", func() bool { n, _ := w.counts(); return n == 3 })
	b.send(command_("DEL", "k"))
	eventually(t, "the destroy", func() bool { return gw.destroyed.pending.Load() == 1 })
	close(release)
	if got := a.reply() + a.reply() + b.reply(); got != "+OK\r\n+PONG\r\n:1\r\n" {
		t.Errorf("got %q", got)
	}
	b.want(null, "GET", "k")
}

// Whatever becomes of a request for a lock, and of one to release it: no lock stands that nobody knows of, and the next one
// is not kept waiting.
func TestLocksByTheLoop(t *testing.T) {
	const take, release = "SET k_LOCK t NX PX 5000", "EVAL"
	for _, tc := range []struct {
		send, answer string
		held         bool // in the store before
		want         string
		after        string // who holds it in the store then
		wire         int    // commands that went over it
	}{
		{take, "", false, "+OK\r\n", "t", 1},
		{take, "-LOADING x\r\n", false, "+OK\r\n", "t", 1},
		{take, null, false, "+OK\r\n", "t", 1}, // by hand it is free
		{take, "", true, null, "t", 1},
		{take, "+OKAY\r\n", true, textUnknown, "", 1},
		{take, ":1\r\n", true, textUnknown, "", 1},
		{take, bulk("OK"), true, textUnknown, "", 1},
		{take, hangUp, true, textUnknown, "", 1},
		{release, "", true, ":1\r\n", "", 1},
		{release, "", false, ":0\r\n", "", 1},
		{release, "-NOSCRIPT x\r\n", true, ":1\r\n", "", 1},
		{release, ":1\r\n", true, textUnknown, "t", 1},
		{release, "*2\r\n:1\r\n:1\r\n", true, textUnknown, "t", 1},
		{release, "*2\r\n:0\r\n:2\r\n", true, textUnknown, "t", 1},
		{release, "*2\r\n:0\r\n$1\r\n1\r\n", true, textUnknown, "t", 1},
		{release, "*1\r\n:0\r\n", true, textUnknown, "t", 1},
		{release, "*-1\r\n", true, textUnknown, "t", 1},
		{release, hangUp, true, textUnknown, "t", 1},
	} {
		st := memory.New(memory.Options{})
		gw, w := startLoop(t, Site{Store: st, LockWait: 20 * time.Millisecond})
		if tc.held {
			if err := st.Lock(t.Context(), "k", "t", time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		w.play(func([]string) (string, bool) { return tc.answer, tc.answer != "" })
		c := gw.dial()
		args := strings.Split(tc.send, " ")
		if tc.send == release {
			args = []string{"EVAL", "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "1", "k_LOCK", "t"}
		}
		c.want(tc.want, args...)
		token, _, _ := st.LockHolder(t.Context(), "k")
		if token != tc.after {
			t.Errorf("%s, %q: held by %q, want %q", tc.send, tc.answer, token, tc.after)
		}
		if n, _ := w.counts(); n != tc.wire {
			t.Errorf("%s, %q: %d commands went over the wire, want %d", tc.send, tc.answer, n, tc.wire)
		}
		gw.locks.mu.Lock() // the end of a lock's life may come after that of this test
		for id, q := range gw.locks.queues {
			if q.asking {
				t.Errorf("%s, %q: somebody asks for the lock on %s for ever", tc.send, tc.answer, id)
			}
		}
		gw.locks.mu.Unlock()
	}
}

// Clients that count up under a lock, over a store whose connections end at any byte: no number is written twice.
func TestLocksExclude(t *testing.T) {
	const clients, counts = 8, 40
	some := func() int { return rand.IntN(1 << rand.IntN(16)) }
	gw, w := startLoop(t, Site{LockWait: 5 * time.Second})
	sha := gw.scripts.add(nil, false)
	w.mu.Lock()
	w.cut = func() (in, out int) { return some(), some() }
	w.mu.Unlock()
	w.kill()
	gw.dial().want("+OK\r\n", "SETEX", "n", "100", "0")
	var mu sync.Mutex // guards written
	written := map[string]bool{}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c := gw.dial()
			for k := range counts {
				token := fmt.Sprint(i, "-", k)
				for got := ""; got != "+OK\r\n"; {
					if got = c.do("SET", "n_LOCK", token, "NX", "PX", "60000"); got != "+OK\r\n" && got != textUnknown && got != null {
						t.Errorf("lock: %q", got)
						return
					}
				}
				_, old, _ := strings.Cut(c.do("GET", "n"), "\r\n")
				n, err := strconv.Atoi(strings.TrimSpace(old))
				if err != nil {
					t.Error(err)
					return
				}
				next := fmt.Sprint(n + 1)
				if got := c.do("SETEX", "n", "100", next); got == "+OK\r\n" {
					mu.Lock()
					if written[next] {
						t.Errorf("%s was written twice", next)
					}
					written[next] = true
					mu.Unlock()
				}
				for got := textUnknown; got == textUnknown; {
					got = c.do("EVALSHA", sha, "1", "n_LOCK", token)
				}
			}
		})
	}
	wg.Wait()
	if _, dialed := w.counts(); dialed < 5 || len(written) < clients*counts/4 {
		t.Errorf("%d connections to the store, %d numbers: nothing was tried", dialed, len(written))
	}
	t.Logf("%d numbers of %d", len(written), clients*counts)
}

// A client that goes away while it is given a lock does not keep it.
func TestLockOfAClientThatIsGone(t *testing.T) {
	st := memory.New(memory.Options{})
	gw, w := startLoop(t, Site{Store: st})
	asked, release := make(chan bool), make(chan bool)
	w.play(func([]string) (string, bool) {
		asked <- true
		<-release
		return "", false
	})
	a, b := gw.dial(), gw.dial()
	a.nc.(*net.TCPConn).SetLinger(0)
	a.send(command_("SET", "k_LOCK", "a", "NX", "PX", "60000"))
	<-asked
	a.close()
	time.Sleep(2 * watchAfter)
	b.send(command_("SET", "k_LOCK", "b", "NX", "PX", "60000")) // waits
	eventually(t, "b waits", func() bool { return gw.Stats().LocksWaiting == 1 })
	w.play(nil)
	close(release)
	if got := b.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	if token, _, _ := st.LockHolder(t.Context(), "k"); token != "b" {
		t.Errorf("held by %q", token)
	}
	eventually(t, "one connection", func() bool { return gw.Stats().Open == 1 })
	if n := gw.Stats().LocksHeld; n != 1 {
		t.Errorf("%d locks are held", n)
	}
}

// Values as long as they may be, over sockets that take little at a time.
func TestSmallSockets(t *testing.T) {
	w := wire(t, memory.New(memory.Options{}))
	w.mu.Lock()
	w.small, w.timeout = true, patience
	w.mu.Unlock()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 32<<10)
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 32<<10)
		})
	}}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	viaLoop = true
	gw := startOn(t, Site{Store: w, Limits: Limits{Command: patience}}, Options{}, l)
	viaLoop = false
	var wg sync.WaitGroup
	for i := range 4 {
		c := gw.dial()
		c.nc.(*net.TCPConn).SetReadBuffer(32 << 10)
		wg.Go(func() {
			for n := range 2 {
				v := strings.Repeat(fmt.Sprint(i, n, " "), 1<<20/4)[:1<<20]
				key := fmt.Sprint("k", i)
				go io.WriteString(c.nc, command_("SETEX", key, "100", v)+strings.Repeat(command_("GET", key), 3))
				for k := range 4 {
					want := bulk(v)
					if k == 0 {
						want = "+OK\r\n"
					}
					if got, err := c.tryReply(patience); err != nil || got != want {
						t.Errorf("client %d, reply %d: %v, %d bytes %.20q, want %d", i, k, err, len(got), got, len(want))
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n, _ := w.counts(); n < 4*2 { // the rest by hand, while the store takes no more
		t.Errorf("%d commands went over the wire", n)
	}
}

// A value that is longer than clients may write comes all the same, if not by the loop, and costs nobody the connection.
func TestValueThatIsTooLong(t *testing.T) {
	st := memory.New(memory.Options{})
	long := strings.Repeat("0123456789", 300_000)
	if err := st.Save(t.Context(), "k", store.Record{Data: []byte(long), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
		t.Fatal(err)
	}
	gw, w := startLoop(t, Site{Store: st})
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "a", "100", "v")
	for range 3 {
		b.send(strings.Repeat(command_("GET", "k"), 2))
		a.want(bulk("v"), "GET", "a")
		for range 2 {
			if got := b.reply(); got != bulk(long) {
				t.Errorf("got %d bytes", len(got))
			}
		}
	}
	if _, dialed := w.counts(); dialed != 1 {
		t.Errorf("%d connections to the store", dialed)
	}
	size := make(chan int)
	gw.loop.post(func() { size <- cap(gw.loop.ups[0].in) })
	if n := <-size; n > 4<<20 {
		t.Errorf("a buffer of %d bytes", n)
	}
}

// Whoever sends thousands of commands does not keep the others waiting.
func TestFairness(t *testing.T) {
	gw, _ := startLoop(t, Site{})
	hog, c := gw.dial(), gw.dial()
	c.want("+OK\r\n", "SETEX", "k", "100", "v")
	stop := make(chan struct{})
	go io.Copy(io.Discard, hog.nc)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := []byte(strings.Repeat(command_("GET", "k")+command_("PING"), 5000))
		for {
			select {
			case <-stop:
				return
			default:
				hog.nc.Write(b)
			}
		}
	})
	time.Sleep(50 * time.Millisecond)
	worst := time.Duration(0)
	for range 200 {
		began := time.Now()
		c.want(bulk("v"), "GET", "k")
		worst = max(worst, time.Since(began))
	}
	close(stop)
	hog.close()
	wg.Wait()
	if worst > 500*time.Millisecond {
		t.Errorf("somebody waited for %v", worst)
	}
}

// A loop leaves the goroutines as many processors as they had without it, see addProcessor.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	a, _ := startLoop(t, Site{})
	b, _ := startLoop(t, Site{})
	if n := runtime.GOMAXPROCS(0); n != before+2 {
		t.Errorf("%d processors beside two loops, %d without", n, before)
	}
	a.Close()
	b.Close()
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors in the end, %d before", n, before)
	}
}

// Nothing is left of connections, ours and the store's, however they end.
func TestDescriptors(t *testing.T) {
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(list)
	}
	gw, w := startLoop(t, Site{Limits: Limits{Command: 200 * time.Millisecond}})
	gw.dial().want("+PONG\r\n", "PING")
	before := open()
	for i := range 300 {
		c := gw.dial()
		switch i % 6 {
		case 0: // in the middle of a command
			c.send("*2\r\n$3\r\nGET\r\n")
		case 1:
			c.want("+OK\r\n", "QUIT")
		case 2: // without reading
			c.send(strings.Repeat(command_("GET", "k"), 100))
		case 3: // a reset
			c.send(command_("SETEX", "k", "100", "v"))
			c.nc.(*net.TCPConn).SetLinger(0)
		case 4:
			c.send("*1\r\n$-1\r\n")
		case 5:
			c.want("+OK\r\n", "SET", fmt.Sprint("k", i, "_LOCK"), "t", "NX")
			w.kill()
		}
		c.close()
	}
	eventually(t, "the end of all", func() bool { return gw.Stats().Open <= 1 })
	gw.linked()
	eventually(t, "as many descriptors as before", func() bool { return open() <= before })
	if n := gw.Stats(); n.LocksHeld != 0 || n.Panics != 0 {
		t.Errorf("%+v", n)
	}
}

// A connection that the loop accepts is as one that package net does, and says where it comes from and where it came to.
func TestAcceptedByTheLoop(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Log(err)
			continue
		}
		viaLoop = true
		gw := startOn(t, Site{Insecure: true}, Options{}, l)
		viaLoop = false
		_, port, _ := net.SplitHostPort(l.Addr().String())
		for _, host := range []string{"127.0.0.1", "::1"} {
			nc, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err != nil {
				continue // not what is listened at
			}
			c := newClient(t, nc)
			info := c.do("CLIENT", "INFO")
			if want := fmt.Sprintf(" addr=%s laddr=%s ", nc.LocalAddr(), nc.RemoteAddr()); !strings.Contains(info, want) {
				t.Errorf("%s: got %q, want %q in it", addr, info, want)
			}
			if shards := c.do("CLUSTER", "SLOTS"); !strings.Contains(shards, bulk(host)) {
				t.Errorf("%s: got %q, want %s in it", addr, shards, host)
			}
			done := make(chan bool)
			gw.loop.post(func() {
				defer close(done)
				for fd, c := range gw.loop.conns {
					for _, o := range acceptedOptions {
						if c == nil {
							break
						}
						if got, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || got != o.value {
							t.Errorf("option %d of level %d: got %d, %v, want %d", o.name, o.level, got, err, o.value)
						}
					}
				}
			})
			<-done
			c.close()
			eventually(t, "the end", func() bool { return gw.Stats().Open == 0 })
		}
	}
}

// Whoever comes with many others is let in too.
func TestManyAtOnce(t *testing.T) {
	gw, _ := startLoop(t, Site{})
	stop := make(chan bool)
	gw.loop.post(func() { <-stop })
	var all []*client
	for range 3*burst + 1 {
		all = append(all, gw.dial())
	}
	close(stop)
	for _, c := range all {
		c.want("+PONG\r\n", "PING")
	}
}

// Whoever comes when a drain has begun is not refused where others have the socket too (systemd, the next server): it stays
// there for them.
func TestWhoComesDuringADrain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	others, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	busy, release := make(chan bool), make(chan bool)
	viaLoop = true
	gw := startOn(t, Site{}, Options{Hooks: Hooks{Done: func(Event) {
		close(busy)
		<-release
	}}}, l)
	viaLoop = false
	gw.dial().send(command_("PING"))
	<-busy
	c := gw.dial() // while the loop is in the middle of a turn
	done := make(chan error, 1)
	go func() { done <- gw.Shutdown(t.Context()) }()
	eventually(t, "the drain", func() bool { return gw.drain.Load() != 0 })
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	others.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	nc, err := others.Accept()
	if err != nil {
		t.Fatalf("nobody is there for the next server: %v", err)
	}
	defer nc.Close()
	io.WriteString(nc, "+next\r\n")
	if got := c.reply(); got != "+next\r\n" {
		t.Errorf("got %q", got)
	}
}

// Where there are no descriptors any more, those who wait are let in when there are some again.
func TestOutOfDescriptors(t *testing.T) {
	var log syncBuilder
	viaLoop = true
	gw := startWith(t, Site{}, Options{Logger: log.logger()})
	viaLoop = false
	nc, err := net.Listen("tcp", "127.0.0.1:0") // Go's poller and what else is made at the first use
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
	defer restore()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	to := &unix.SockaddrInet4{Port: gw.addr.(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a line in the log", func() bool { return strings.Contains(log.String(), "cannot accept") })
	restore()
	io.WriteString(fdWriter(fd), command_("PING"))
	b := make([]byte, 16)
	if n, err := unix.Read(fd, b); string(b[:max(n, 0)]) != "+PONG\r\n" {
		t.Errorf("got %q, %v", b[:max(n, 0)], err)
	}
}

type fdWriter int

func (fd fdWriter) Write(b []byte) (int, error) { return unix.Write(int(fd), b) }

// A store that goes away and comes back: by hand meanwhile, and by the loop again.
func TestStoreThatComesBack(t *testing.T) {
	r := testserver.Redis(t, testserver.Persistent())
	viaLoop = true
	gw := start(t, redisSite(t, r, "P:", 0))
	viaLoop = false
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "P:k", "100", "v")
	for range 3 {
		r.Kill()
		c.send(command_("GET", "P:k") + command_("SETEX", "P:k", "100", "v"))
		time.Sleep(50 * time.Millisecond)
		r.Restart()
		if got := c.reply() + c.reply(); got != bulk("v")+"+OK\r\n" {
			t.Errorf("got %q", got)
		}
		gw.linked()
	}
	r.Do("CLIENT", "KILL", "TYPE", "normal")
	c.want(bulk("v"), "GET", "P:k")
	if got := r.CLI("CLIENT", "LIST"); strings.Count(got, "name=sessile") < 1 {
		t.Errorf("clients: %s", got)
	}
}

// A movable is an address that moves from one server to another. Connections that there are stay where they are.
type movable struct {
	net.Listener

	mu    sync.Mutex // guards what follows
	to    string
	conns []net.Conn // in the order in which they came
}

func newMovable(t *testing.T, to string) *movable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &movable{Listener: l, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			up, err := net.Dial("tcp", m.to)
			m.conns = append(m.conns, nc)
			m.mu.Unlock()
			if err != nil {
				nc.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{up, nc}, {nc, up}} {
				wg.Go(func() {
					io.Copy(way[0], way[1])
					up.Close()
					nc.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		m.cut(0, m.came())
		wg.Wait()
	})
	return m
}

func (m *movable) move(to string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.to = to
}

func (m *movable) came() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.conns)
}

// cut ends the connections from the from-th to that before the to-th.
func (m *movable) cut(from, to int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, nc := range m.conns[from:to] {
		nc.Close()
	}
}

// Where the store's address becomes another server's, what goes by the loop and what goes by hand go there together,
// whichever of the connections breaks: or a session would be written to the one and looked for on the other, and a lock
// granted on both.
func TestLoopFollowsTheStore(t *testing.T) {
	for _, broken := range []string{"those of the store", "that of the loop"} {
		old, next := testserver.Redis(t), testserver.Redis(t)
		m := newMovable(t, old.Addr)
		u, err := url.Parse("redis://" + m.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		st, err := redis.Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		links := m.came()
		viaLoop = true
		gw := start(t, Site{Store: st})
		viaLoop = false
		c := gw.dial()
		c.want("+OK\r\n", "SETEX", "k", "100", "old")
		m.move(next.Addr)
		if broken == "that of the loop" {
			m.cut(links, m.came())
		} else {
			m.cut(0, links)
		}
		eventually(t, "the new server", func() bool { return c.do("MGET", "k") == "*1\r\n"+null })
		c.want(null, "GET", "k")
		gw.linked()
		for i := range 20 {
			v := fmt.Sprint(i)
			c.want("+OK\r\n", "SETEX", "k", "100", v)
			c.want("*1\r\n"+bulk(v), "MGET", "k")
			c.want(bulk(v), "GET", "k")
		}
		if got := old.CLI("GET", "k"); got != "old" {
			t.Errorf("%s broke: the old server has %q", broken, got)
		}
	}
}

// A descriptor that a child has too, which is just being started, is closed only with the child's. What happens to that
// connection is not put down to another one that got the same number.
func TestDescriptorThatAChildHas(t *testing.T) {
	gw, _ := startLoop(t, Site{})
	l := gw.loop
	a, b := gw.dial(), gw.dial()
	a.want("+PONG\r\n", "PING")
	b.want("+PONG\r\n", "PING")
	inLoop := func(do func()) {
		done := make(chan bool)
		l.post(func() { do(); close(done) })
		<-done
	}
	of := func(c *client) *looped {
		for _, got := range l.conns {
			if got != nil && got.remote.String() == c.nc.LocalAddr().String() {
				return got
			}
		}
		return nil
	}
	var number, child int
	inLoop(func() {
		number = of(a).fd
		child, _ = unix.FcntlInt(uintptr(number), unix.F_DUPFD_CLOEXEC, 0)
	})
	defer unix.Close(child)
	a.want("+OK\r\n", "QUIT")
	eventually(t, "the end of a", func() bool { return gw.Stats().Open == 1 })
	inLoop(func() { // b gets the number of a
		c := of(b)
		l.conns[c.fd] = nil
		unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
		if err := unix.Dup3(c.fd, number, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
		unix.Close(c.fd)
		c.fd, l.conns[number] = number, c
		if err := l.watch(unix.EPOLL_CTL_ADD, number, 0); err != nil {
			t.Error(err)
		}
	})
	b.want("+PONG\r\n", "PING")
	a.close()
	time.Sleep(20 * time.Millisecond)
	b.want("+PONG\r\n", "PING")
}

// whenLogged is called for every record.
type whenLogged func()

func (f whenLogged) Enabled(context.Context, slog.Level) bool  { return true }
func (f whenLogged) Handle(context.Context, slog.Record) error { f(); return nil }
func (f whenLogged) WithAttrs([]slog.Attr) slog.Handler        { return f }
func (f whenLogged) WithGroup(string) slog.Handler             { return f }

// What a loop was given to do in its last turn is done: a connection that begins then would never end, nor would Close.
func TestJobInTheLastTurn(t *testing.T) {
	w := wire(t, memory.New(memory.Options{}))
	var l *loop
	given, done := make(chan bool, 1), make(chan bool, 1)
	viaLoop = true
	gw := startWith(t, Site{Store: w}, Options{Logger: slog.New(whenLogged(sync.OnceFunc(func() {
		given <- l.post(func() { done <- true })
	})))})
	viaLoop = false
	l = gw.loop
	l.post(func() {
		l.leaving = true
		unix.Shutdown(l.ups[0].fd, unix.SHUT_RDWR) // the log hears of that when all jobs are done
		l.ups[0].readable = true
	})
	if !<-given {
		t.Fatal("the loop had ended before")
	}
	gw.loopWG.Wait()
	select {
	case <-done:
	default:
		t.Error("a job was taken and not done")
	}
}

// A client of which something is always under way, as one that many threads share, does not keep a server that has to end.
func TestShutdownWithSomethingAlwaysUnderWay(t *testing.T) {
	w := wire(t, memory.New(memory.Options{}))
	w.timeout = 500 * time.Millisecond // for the last command, see below
	gw, _ := startLoop(t, Site{Store: w, Linger: 50 * time.Millisecond})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "k", "100", "v")
	answer := ""
	w.play(func([]string) (string, bool) { // what answers a command comes with the next one
		last := answer
		answer = bulk("v")
		return last, true
	})
	c.send(command_("GET", "k"))
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		defer cancel()
		done <- gw.Shutdown(ctx)
	}()
	for err := error(nil); err == nil; {
		if _, err = io.WriteString(c.nc, command_("GET", "k")); err == nil {
			_, err = c.tryReply(patience)
		}
	}
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// A panic costs one connection, and those whose writes were under way the knowledge of what became of them.
func TestPanicInTheLoop(t *testing.T) {
	var boom atomic.Bool
	st := wire(t, memory.New(memory.Options{}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Site{Store: st}, Options{Hooks: Hooks{Done: func(e Event) {
		if boom.CompareAndSwap(true, false) {
			panic("bug")
		}
	}}})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Close()
	gw := &gateway{Server: s, t: t, addr: l.Addr(), viaLoop: true}
	other := gw.dial()
	other.want("+PONG\r\n", "PING")
	for i, args := range [][]string{{"GET", "k"}, {"PING"}, {"MGET", "k"}, {"SETEX", "k", "100", "v"}, {"DEL", "k"}, {"NONSENSE"}} {
		gw.linked()
		c := gw.dial()
		boom.Store(true)
		c.send(command_(args...))
		c.closed()
		other.want("+OK\r\n", "SETEX", "o", "100", "v")
		other.want(bulk("v"), "GET", "o")
		if n := s.Stats().Panics; n != uint64(i+1) {
			t.Errorf("%q: %d panics counted", args, n)
		}
	}
	eventually(t, "one connection", func() bool { return s.Stats().Open == 1 })
	if n := s.destroyed.pending.Load(); n != 0 {
		t.Errorf("%d sessions are being destroyed for ever", n)
	}
}

// A panic over the answer to a client that is gone leaves nothing of it behind: the server could never end.
func TestPanicOverAClientThatIsGone(t *testing.T) {
	for _, args := range [][]string{{"GET", "k"}, {"DEL", "k"}} {
		w := wire(t, memory.New(memory.Options{}))
		var boom atomic.Bool
		viaLoop = true
		gw := startWith(t, Site{Store: w}, Options{Hooks: Hooks{Done: func(Event) {
			if boom.CompareAndSwap(true, false) {
				panic("bug")
			}
		}}})
		viaLoop = false
		asked, release := make(chan bool), make(chan bool)
		w.play(func([]string) (string, bool) {
			close(asked)
			<-release
			return "", false
		})
		c := gw.dial()
		c.send(command_(args...))
		<-asked
		c.nc.(*net.TCPConn).SetLinger(0)
		c.close()
		eventually(t, "its end", func() bool {
			gone := make(chan bool, 1)
			gw.loop.post(func() {
				for _, c := range gw.loop.conns {
					if c != nil {
						gone <- false
						return
					}
				}
				gone <- true
			})
			return <-gone
		})
		boom.Store(true)
		close(release)
		eventually(t, "no connection", func() bool { return gw.Stats().Open == 0 })
		if n := gw.count.panics.Swap(0); n != 1 {
			t.Errorf("%q: %d panics", args, n)
		}
	}
}

// Any bytes from clients: the loop answers what a goroutine does.
func FuzzLoop(f *testing.F) {
	for _, seed := range []string{
		command_("SETEX", "k", "100", "v") + command_("GET", "k") + command_("DEL", "k") + command_("GET", "k"), "PING\r\nQUIT\r\n",
		command_("GET", "k") + command_("GET", "k") + "*1\r\n$-1\r\n", command_("EXISTS", "k") + command_("HELLO", "3") + command_("GET", "k"),
		command_("SETEX", "k", "100", "v") + command_("EXPIRE", "k", "0") + command_("EXISTS", "k"), "\r\n\r\n" + command_("PING"),
		"POST / HTTP/1.1\r\n",
		command_("GET", "k") + command_("MULTI") + command_("SETEX", "k", "100", "v") + command_("GET", "k") + command_("EXEC") + command_("GET", "k"),
		command_("SET", "k_LOCK", "t", "NX") + command_("SET", "k_LOCK", "t", "NX", "PX", "50") + command_("EVAL",
			"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "1", "k_LOCK", "t"),
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		site := Site{LockWait: 20 * time.Millisecond, Limits: Limits{Command: 5 * time.Second}}
		loop, _ := startLoop(t, site)
		run := func(gw *gateway) string {
			c := gw.dial()
			defer c.close()
			go func() {
				for rest := in; len(rest) > 0; {
					n := min(len(rest), 1+int(cut))
					if _, err := c.nc.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
				c.nc.(interface{ CloseWrite() error }).CloseWrite()
			}()
			c.nc.SetReadDeadline(time.Now().Add(patience))
			out, err := io.ReadAll(c.nc)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("no end; so far %.200q", out)
			}
			return unsteady.ReplaceAllString(steady(string(out)), "")
		}
		if byLoop, byHand := run(loop), run(start(t, site)); byLoop != byHand {
			t.Fatalf("by loop %q, by hand %q", byLoop, byHand)
		}
	})
}

// unsteady is what differs from server to server: ports, and what is made of them.
var unsteady = regexp.MustCompile(`(?s)(:\d{4,5}\r\n|[0-9a-f]{40}|127\.0\.0\.1:\d+.*|tcp_port:\d+.*)`)

// Any bytes from the store: no panic, and every client gets some answer.
func FuzzStoreAnswers(f *testing.F) {
	for _, seed := range []string{bulk("v") + "+OK\r\n:1\r\n", "$-1\r\n-ERR x\r\n", "$2000000\r\nabc", "*2\r\n+a\r\n+b\r\n", ":1\r\n", "$5\r\nab",
		bulk("v") + "+OK\r\n$-1\r\n", "*2\r\n:0\r\n:1\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		w := wire(t, memory.New(memory.Options{}))
		w.timeout = 100 * time.Millisecond
		gw, _ := startLoop(t, Site{Store: w})
		n := 0
		w.play(func([]string) (string, bool) {
			if n++; n == 1 {
				return string(answer), true
			}
			return "", n <= 3
		})
		a, b, c := gw.dial(), gw.dial(), gw.dial()
		a.send(command_("GET", "k"))
		b.send(command_("SETEX", "k", "100", "v"))
		c.send(command_("SET", "k_LOCK", "t", "NX"))
		for _, c := range []*client{a, b, c} {
			c.reply()
			c.want("+PONG\r\n", "PING")
		}
	})
}

// While the primary changes nothing goes by the loop's connection; it goes by hand, where it waits. And an answer that
// the store does not stand by is none.
func TestLoopWhileThePrimaryChanges(t *testing.T) {
	release := []string{"EVAL", "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "1", "k_LOCK", "t"}
	gw, w := startLoop(t, Site{Store: memory.New(memory.Options{}), Lifetime: time.Hour})
	c := gw.dial()
	w.shut.Store(true)
	for range 2 {
		c.want("+OK\r\n", "SET", "k", "v")
		c.want("$1\r\nv\r\n", "GET", "k")
		c.want("+OK\r\n", "SET", "k_LOCK", "t", "NX", "PX", "9999")
		c.want(":1\r\n", release...)
		c.want(":1\r\n", "DEL", "k")
	}
	if n, _ := w.counts(); n != 0 {
		t.Errorf("%d commands went over the wire", n)
	}
	w.shut.Store(false)
	c.want("+OK\r\n", "SET", "k", "v")
	w.doubtful.Store(true)
	c.want("$1\r\nv\r\n", "GET", "k") // asked again, by hand
	c.want(textUnknown, "SET", "k", "w")
	c.want(textUnknown, "EXPIRE", "k", "9")
	c.want(textUnknown, "DEL", "k")
	c.want(textUnknown, "SET", "k_LOCK", "t", "NX", "PX", "9999")
	w.doubtful.Store(false)
	c.want("$-1\r\n", "GET", "k")
	c.want("+OK\r\n", "SET", "k_LOCK", "t", "NX", "PX", "9999")
}

func TestCriticalWrites(t *testing.T) {
	for _, tc := range []struct{ critical, want string }{
		{"create,delete", "SET k:1 SET k:0 EXPIRE k:0 DEL k:1 SET k:1 SET l:0 SET m:1"},
		{"delete", "SET k:0 SET k:0 EXPIRE k:0 DEL k:1 SET k:0 SET l:0 SET m:0"},
		{"all", "SET k:1 SET k:1 EXPIRE k:0 DEL k:1 SET k:1 SET l:1 SET m:1"},
		{"", "SET k:0 SET k:0 EXPIRE k:0 DEL k:0 SET k:0 SET l:0 SET m:0"},
	} {
		for _, loop := range []bool{false, true} {
			st := &marked{Store: memory.New(memory.Options{})}
			if err := st.Store.Save(t.Context(), "l", store.Record{Data: []byte("v"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
				t.Fatal(err)
			}
			site := Site{Store: st, Lifetime: time.Hour, Critical: tc.critical}
			gw := start(t, site)
			if loop {
				gw, _ = startLoop(t, site)
			}
			c := gw.dial()
			for _, cmd := range []string{"SET k v", "SET k w", "EXPIRE k 100", "DEL k", "SET k v", "GET l", "SET l w", "SET m v"} {
				c.do(strings.Split(cmd, " ")...)
			}
			if got := strings.Join(st.seen, " "); got != tc.want {
				t.Errorf("critical %q, by the loop %v: got %s, want %s", tc.critical, loop, got, tc.want)
			}
		}
	}
	if _, err := New(Site{Store: memory.New(memory.Options{}), Critical: "crate"}, Options{}); err == nil {
		t.Error("a word that there is not was taken")
	}
}

// marked notes which writes are to wait for replicas.
type marked struct {
	store.Store
	mu   sync.Mutex
	seen []string
}

func (m *marked) note(ctx context.Context, op, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	if store.WantsReplicas(ctx) {
		n = 1
	}
	m.seen = append(m.seen, fmt.Sprintf("%s %s:%d", op, key, n))
}

func (m *marked) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	m.note(ctx, "SET", key)
	return m.Store.Save(ctx, key, rec, cond)
}

func (m *marked) Touch(ctx context.Context, key string, expires time.Time) error {
	m.note(ctx, "EXPIRE", key)
	return m.Store.Touch(ctx, key, expires)
}

func (m *marked) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	m.note(ctx, "DEL", key)
	return m.Store.Delete(ctx, key, cond)
}

// What a store remembers it is told by the loop before the request counts as done, and what became of a write of which no
// answer came is found out by asking.
func TestLoopTellsWhatItWasAnswered(t *testing.T) {
	w := wire(t, memory.New(memory.Options{}))
	w.remember = true
	gw, _ := startLoop(t, Site{Store: w, Lifetime: time.Hour})
	c := gw.dial()
	notes := func(want ...string) {
		t.Helper()
		w.mu.Lock()
		got := w.notes
		w.notes = nil
		w.mu.Unlock()
		if !slices.Equal(got, want) {
			t.Errorf("noted %q, want %q", got, want)
		}
	}
	c.want("+OK\r\n", "SET", "k", "v")
	c.want("$1\r\nv\r\n", "GET", "k")
	c.want("+OK\r\n", "SET", "k", "new")
	c.want(":1\r\n", "EXPIRE", "k", "9")
	c.want(":0\r\n", "EXPIRE", "other", "9")
	c.want(":1\r\n", "DEL", "k")
	c.want(":0\r\n", "DEL", "k")
	notes("saved k v over 0", "saved k new over 2", "touched k", "deleted k new 5", "deleted k  5")
	c.want("+OK\r\n", "SET", "k_LOCK", "t", "NX", "PX", "9999")
	c.want(":1\r\n", "EVAL", "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "1", "k_LOCK", "t")
	notes("locked k t", "unlocked k t")
	c.want("+OK\r\n", "SET", "k", "v")
	notes("saved k v over 0")

	// The connection ends behind the command, which was executed or not.
	for _, tc := range []struct {
		send, want string
		done       bool
		notes      []string
	}{
		{"SET k a", "+OK\r\n", true, []string{"resolve k a"}},
		{"SET k b", textUnknown, false, []string{"resolve k b"}},
		{"EXPIRE k 9", ":1\r\n", false, nil},
		{"DEL k", textUnknown, false, []string{"resolve k"}},
		{"DEL k", ":1\r\n", true, []string{"resolve k"}},
	} {
		w.play(func(args []string) (string, bool) {
			if tc.done && args[0] == "SET" {
				w.Save(t.Context(), args[1], store.Record{Data: []byte(args[2]), Expires: time.Now().Add(time.Hour)}, store.Always)
			} else if tc.done {
				w.Delete(t.Context(), args[3], store.Always)
			}
			return hangUp, true
		})
		gw.linked()
		c.want(tc.want, strings.Split(tc.send, " ")...)
		notes(tc.notes...)
		w.play(nil)
	}

	// What is found done was overtaken all the same by a destroy between this client's read and its write.
	c.want("+OK\r\n", "SET", "k", "v")
	c.want("$1\r\nv\r\n", "GET", "k")
	w.play(func(args []string) (string, bool) {
		if args[0] != "SET" {
			return "", false
		}
		gw.destroyed.begin("k") // somebody's DEL, by hand, that comes before
		gw.destroyed.end("k", true, time.Now())
		w.Save(t.Context(), "k", store.Record{Data: []byte("a"), Expires: time.Now().Add(time.Hour)}, store.Always)
		return hangUp, true
	})
	gw.linked()
	c.want("+OK\r\n", "SET", "k", "a") // as to everybody whose write is dropped
	w.play(nil)
	if rec, err := w.Load(t.Context(), "k"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("a logout was undone: %q, %v", rec.Data, err)
	}

	// Of many at once each gets its own answer: those that are there, and those that are not.
	var came atomic.Int64
	w.play(func(args []string) (string, bool) {
		n := came.Add(1)
		if args[0] != "SET" || n > 3 {
			return hangUp, true
		}
		if n != 2 {
			w.Save(t.Context(), args[1], store.Record{Data: []byte(args[2]), Expires: time.Now().Add(time.Hour)}, store.Always)
		}
		if n == 1 {
			return "+OK\r\n", true
		}
		return "", true
	})
	gw.linked()
	var all []byte
	for _, cmd := range []string{"SET a 1", "SET b 2", "SET c 3", "SET d 4", "GET c"} {
		var args [][]byte
		for word := range strings.FieldsSeq(cmd) {
			args = append(args, []byte(word))
		}
		all = resp.AppendRequest(all, args...)
	}
	c.send(string(all))
	for _, want := range []string{"+OK\r\n", textUnknown, "+OK\r\n", textUnknown, "$1\r\n3\r\n"} {
		if got := c.reply(); got != want {
			t.Errorf("one of many: got %q, want %q", got, want)
		}
	}
}

// slowly lets Load of one session wait.
type slowly struct {
	store.Store
	key  string
	wait chan struct{}
}

func (s *slowly) Load(ctx context.Context, key string) (store.Record, error) {
	if key == s.key {
		select {
		case <-s.wait:
		case <-ctx.Done():
		}
	}
	return s.Store.Load(ctx, key)
}

// A delete of which no answer came counts as under way until it is known what became of it: who had read the session before does
// not bring it back meanwhile.
func TestLoopDoesNotForgetADeleteWithoutAnswer(t *testing.T) {
	st := memory.New(memory.Options{})
	slow := &slowly{Store: st, key: "x", wait: make(chan struct{})}
	w := wire(t, slow)
	w.remember = true
	gw, _ := startLoop(t, Site{Store: w})
	gw.linked()
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "k", "100", "v")
	b.want(bulk("v"), "GET", "k")
	n := 0
	w.play(func(args []string) (string, bool) { // both are done, and neither is answered
		if args[0] != "EVALSHA" || !strings.HasPrefix(args[1], "delete") {
			return "", false
		}
		st.Delete(context.Background(), args[3], store.Always)
		if n++; n == 2 {
			return hangUp, true
		}
		return "", true
	})
	a.send(command_("DEL", "x") + command_("DEL", "k"))
	eventually(t, "the deletes are done", func() bool {
		_, err := st.Load(context.Background(), "k")
		return err != nil
	})
	gw.linked() // again
	w.play(nil)
	got := make(chan string, 1)
	b.send(command_("SETEX", "k", "100", "v")) // of who has read it before
	go func() { got <- b.reply() }()
	select {
	case r := <-got:
		t.Errorf("the late write was answered %q", r)
	case <-time.After(100 * time.Millisecond):
	}
	close(slow.wait)
	for range 2 {
		if got := a.reply(); got != ":1\r\n" {
			t.Errorf("a delete: %q", got)
		}
	}
	<-got
	if rec, err := st.Load(context.Background(), "k"); err == nil {
		t.Errorf("who has logged out is logged in again: %q", rec.Data)
	}
}
