package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/storetest"
)

// A pair is a primary and a replica of it.
type pair struct {
	t         *testing.T
	old, next *testserver.RedisServer
	flags     uint32 // of all that is saved
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, old: testserver.Redis(t, testserver.WithConf("repl-diskless-sync-delay 0"))}
	p.next = replicaOf(t, p.old)
	return p
}

func replicaOf(t *testing.T, of *testserver.RedisServer) *testserver.RedisServer {
	t.Helper()
	host, port, _ := strings.Cut(of.Addr, ":")
	r := testserver.Redis(t, testserver.WithConf("repl-diskless-sync-delay 0", "replicaof "+host+" "+port))
	eventually(t, "a replica in step", func() bool {
		return strings.Contains(r.Do("INFO", "replication").(string), "master_link_status:up")
	})
	return r
}

// withFlags runs f with sessions that have none, and with some that have.
func withFlags(t *testing.T, f func(t *testing.T, p *pair)) {
	for _, flags := range []uint32{0, 5} {
		t.Run(fmt.Sprint("flags ", flags), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.flags = flags
			f(t, p)
		})
	}
}

// gateway opens a store that is told where the primary is by the test.
func (p *pair) gateway(change ...func(*Options)) *Store {
	p.t.Helper()
	opt := Options{Sentinels: []string{"nobody:1"}, Master: "m", Failover: FailoverOptions{Wait: -1}}
	for _, c := range change {
		c(&opt)
	}
	if testing.Verbose() {
		opt.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if err := opt.complete(); err != nil {
		p.t.Fatal(err)
	}
	s, life := newStore(opt)
	p.t.Cleanup(func() { s.Close() })
	s.node.moveTo(p.old.Addr, nil)
	s.node.start(life)
	if err := s.node.tried(context.Background()); err != nil {
		p.t.Fatal(err)
	}
	p.ready(s)
	return s
}

// ready waits until s serves.
func (p *pair) ready(s *Store) {
	p.t.Helper()
	eventually(p.t, "a server in order", func() bool { return s.node.gate.shut.Load() == 0 })
}

// inStep waits until the replica has what the primary has.
func (p *pair) inStep() {
	p.t.Helper()
	// WAIT would look at what its own connection has written. And a new replica is sent nothing until it has said, after
	// up to a second, that it has the first copy.
	offset := func(r *testserver.RedisServer, field string) string {
		_, rest, _ := strings.Cut(r.Do("INFO", "replication").(string), field+":")
		n, _, _ := strings.Cut(rest, "\r\n")
		return n
	}
	eventually(p.t, "a replica in step", func() bool {
		return offset(p.next, "slave_repl_offset") == offset(p.old, "master_repl_offset")
	})
}

// part makes the replica a primary: what the old one is told from now on is lost.
func (p *pair) part() {
	p.inStep()
	p.next.Do("REPLICAOF", "NO", "ONE")
}

// move sends the gateways to the new primary, and waits until they serve.
func (p *pair) move(all ...*Store) {
	p.t.Helper()
	for _, s := range all {
		s.node.moveTo(p.next.Addr, nil)
	}
	for _, s := range all {
		p.ready(s)
	}
}

func (p *pair) save(s *Store, key, data string, conds ...store.Condition) {
	p.t.Helper()
	cond := store.Always
	if len(conds) > 0 {
		cond = conds[0]
	}
	if err := s.Save(context.Background(), key, p.live(data), cond); err != nil {
		p.t.Fatalf("Save(%q): %v", key, err)
	}
}

func (p *pair) del(s *Store, key string) {
	p.t.Helper()
	if _, err := s.Delete(context.Background(), key, store.Always); err != nil {
		p.t.Fatalf("Delete(%q): %v", key, err)
	}
}

func (p *pair) live(data string) store.Record {
	rec := live(data)
	rec.Flags = p.flags
	return rec
}

// on is what a save over data expects.
func (p *pair) on(data string) store.Condition {
	return store.IfVersion(store.VersionOf([]byte(data), p.flags))
}

// value is what lies under key, without flags.
func (p *pair) value(at *testserver.RedisServer, key string) any {
	got := at.Do("GET", key)
	if text, ok := got.(string); ok {
		data, _ := store.Unflagged([]byte(text))
		return string(data)
	}
	return got
}

// want compares what the new primary has ("": nothing).
func (p *pair) want(key, data string) {
	p.t.Helper()
	got := p.value(p.next, key)
	if data == "" && got != nil || data != "" && got != data {
		p.t.Errorf("%s: got %v, want %q", key, got, data)
	}
}

func (p *pair) left(s *Store, want map[string]uint64) {
	p.t.Helper()
	for name, got := range s.Failover().Left {
		if got != want[name] {
			p.t.Errorf("left as %s: got %d, want %d", name, got, want[name])
		}
	}
}

func TestWhatANewPrimaryLacksIsPutBack(t *testing.T) { withFlags(t, putBackWhatItLacks) }

func putBackWhatItLacks(t *testing.T, p *pair) {
	ctx := context.Background()
	a, b := p.gateway(), p.gateway()
	for _, key := range []string{"over", "over blindly", "over unknown", "deleted", "deleted by b", "chain", "other delete", "both gone", "touched", "again", "newer"} {
		p.save(a, key, "0")
	}
	p.save(a, "twice", "0")
	p.save(a, "flags", "0")
	if err := a.Lock(ctx, "locked", "token", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := a.Lock(ctx, "unlocked", "token", time.Minute); err != nil {
		t.Fatal(err)
	}
	p.part()

	p.save(a, "new", "1")                  // onto nothing
	p.save(a, "over", "1")                 // over a value of its own
	p.save(b, "over blindly", "1")         // over one of which b knows nothing
	p.save(b, "chain", "1", p.on("0"))     // b read what a wrote, and a what b wrote
	p.save(a, "chain", "2", p.on("1"))     //
	p.save(b, "chain", "3", p.on("2"))     //
	p.del(a, "deleted")                    // by who wrote it
	p.del(b, "deleted by b")               // by another one, which saw it
	p.save(a, "other delete", "1")         // a write that the one who deletes saw, over one that it did not see
	p.del(b, "other delete")               //
	p.save(a, "both gone", "1")            //
	p.save(a, "login and logout", "1")     // nothing of which is there
	p.del(b, "login and logout")           //
	p.del(a, "again")                      // and made again, under the same id
	p.save(a, "again", "1")                //
	p.next.Do("SET", "newer", "elsewhere") // by somebody who is there already
	p.save(a, "newer", "1")
	flagged := live("0")
	flagged.Flags = 6
	if err := a.Save(ctx, "flags", flagged, store.Always); err != nil { // the same data
		t.Fatal(err)
	}
	if err := a.Touch(ctx, "touched", time.Now().Add(10*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if held, err := a.Unlock(ctx, "unlocked", "token"); !held || err != nil {
		t.Fatal(held, err)
	}
	if err := b.Lock(ctx, "lock", "token", time.Minute); err != nil {
		t.Fatal(err)
	}
	p.next.Do("DEL", "both gone", "locked_LOCK")
	p.next.Do("SET", "sessile:m:{both gone}", fmt.Sprint("g ", time.Now().Add(time.Minute).UnixMilli()), "PX", "60000")
	p.move(a, b)

	p.want("new", "1")
	p.want("over", "1")
	p.want("over blindly", "0")
	p.want("chain", "3")
	p.want("deleted", "")
	p.want("deleted by b", "")
	p.want("other delete", "")
	p.want("both gone", "")
	p.want("login and logout", "")
	p.want("again", "1")
	p.want("newer", "elsewhere")
	p.want("touched", "0")
	p.want("twice", "0")
	p.want("locked_LOCK", "token")
	p.want("unlocked_LOCK", "")
	p.want("lock_LOCK", "token")
	if ttl := p.next.Do("TTL", "touched").(int64); ttl < 9*3600 {
		t.Errorf("the touched session lives %d s", ttl)
	}
	if ttl := p.next.Do("TTL", "new").(int64); ttl < 3500 || ttl > 3600 {
		t.Errorf("the new session lives %d s", ttl)
	}
	if left := a.Failover().Left; left["newer"] < 1 || left["newer"] > 2 { // "newer", and perhaps "chain", of which b has the last word
		t.Errorf("left as newer: got %d", left["newer"])
	}
	if left := a.Failover().Left; left["gone"] < 3 || left["gone"] > 4 { // what b has deleted, and "other delete", unless a itself was the one to do it
		t.Errorf("left as gone: got %d", left["gone"])
	}
	p.left(b, map[string]uint64{"newer": 1}) // "over blindly"
	for _, key := range []string{"new", "over", "chain", "again", "touched"} {
		if rec, err := a.Load(ctx, key); rec.Flags != p.flags || err != nil {
			t.Errorf("%s: got flags %d, %v, want %d", key, rec.Flags, err, p.flags)
		}
	}
	if rec, err := a.Load(ctx, "flags"); rec.Flags != 6 || err != nil {
		t.Errorf("got flags %d, %v, want 6", rec.Flags, err)
	}
	if st := a.Failover(); st.Switches != 1 || st.PutBack < 7 || st.Lost != 0 || st.Gateways != 2 || st.HeldMax == 0 || st.Entries == 0 {
		t.Errorf("got %+v", st)
	}
}

// A thousand pages a second, of which a replica that lags for half a minute has none.
func TestManyArePutBackQuickly(t *testing.T) {
	const n = 30_000
	p := newPair(t)
	s := p.gateway()
	data := []byte(strings.Repeat("0123456789abcdef", 64))
	p.part()
	in, asked := time.Now().Add(time.Hour), time.Now()
	for i := range n {
		s.Saved(fmt.Sprint("k", i), data, in, asked, 0)
	}
	p.move(s)
	if got := p.next.Do("DBSIZE").(int64); got < n {
		t.Errorf("%d keys, want %d", got, n)
	}
	st := s.Failover()
	if t.Log("held for", st.HeldMax); st.PutBack != n {
		t.Errorf("%d put back, held for %v", st.PutBack, st.HeldMax)
	}
	// And once more, when all of it is there.
	before := st.Held
	p.old, p.next = p.next, replicaOf(t, p.next)
	p.part()
	p.move(s)
	st = s.Failover()
	if t.Log("held for", st.Held-before); st.PutBack != n || st.Switches != 2 {
		t.Errorf("%d put back, held for %v, %d switches", st.PutBack, st.Held-before, st.Switches)
	}
}

// Who comes late puts its deletes back over what another one has put back, but not over what was written since.
func TestAGatewayThatComesLate(t *testing.T) {
	p := newPair(t)
	a, b := p.gateway(), p.gateway()
	p.part()
	for _, key := range []string{"deleted", "written since"} {
		p.save(a, key, "1")
		p.del(b, key)
	}
	p.save(b, "late login", "1")
	p.move(a) // it waits for b, and then not any more
	if held := a.Failover().HeldMax; held < deadAfter {
		t.Errorf("held for %v, want more than %v", held, deadAfter)
	}
	p.want("deleted", "1")
	p.save(a, "written since", "2")
	p.move(b)
	p.want("deleted", "")
	p.want("written since", "2")
	p.want("late login", "1")
	p.left(b, map[string]uint64{"newer": 1})
}

func TestALogoutThatWasNotLostIsNotUndone(t *testing.T) {
	p := newPair(t)
	a, b := p.gateway(), p.gateway()
	p.save(a, "k", "1")
	p.save(a, "l", "1")
	p.part()
	p.move(b)
	p.del(b, "k")
	p.move(a)
	p.want("k", "")
	p.want("l", "1")
	p.left(a, map[string]uint64{"gone": 1})
}

// Beside a gateway whose deletes leave no markers nothing is put onto nothing.
func TestReplayOff(t *testing.T) {
	p := newPair(t)
	ctx := context.Background()
	a, off := p.gateway(), p.gateway(func(o *Options) { o.Failover.Replay = -1 })
	p.save(a, "over", "0")
	p.save(off, "k", "0")
	p.del(off, "k")
	if got := p.old.Do("EXISTS", "sessile:m:{k}"); got != int64(0) {
		t.Error("a marker that nobody needs")
	}
	eventually(t, "a has seen it", func() bool { return a.Failover().Gateways == 2 })
	eventually(t, "a replica in step", func() bool { return p.next.Do("EXISTS", "over") == int64(1) })
	p.part()
	p.save(a, "new", "1")
	p.save(a, "over", "1")
	p.save(off, "lost", "1")
	p.move(a, off)
	p.want("new", "")
	p.want("over", "1")
	p.want("lost", "")
	p.left(a, map[string]uint64{"bare": 1})
	if st := a.Failover(); st.Lost != 1 {
		t.Errorf("%d lost, want 1", st.Lost)
	}
	if st := off.Failover(); st.Entries != 0 || st.Switches != 1 {
		t.Errorf("got %+v", st)
	}
	if _, err := off.Load(ctx, "k"); !errors.Is(err, store.ErrAbsent) {
		t.Error(err)
	}
}

// What a full server does not take is not waited for any longer than the hold.
func TestAFullPrimary(t *testing.T) {
	p := newPair(t)
	s := p.gateway(func(o *Options) { o.Failover.Hold = 500 * time.Millisecond })
	p.save(s, "deleted", "1")
	p.part()
	p.del(s, "deleted")
	p.save(s, "new", "1")
	p.next.Do("CONFIG", "SET", "maxmemory", "1")
	p.move(s)
	p.want("deleted", "")
	p.want("new", "")
	p.left(s, map[string]uint64{"refused": 1})
}

func TestAConnectionThatIsLostIsNoSwitch(t *testing.T) {
	p := newPair(t)
	s := p.gateway()
	p.save(s, "k", "1")
	p.old.Do("DEL", "k") // not even then is anything put back
	p.old.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	eventually(t, "a connection", func() bool { return s.Ping(context.Background()) == nil })
	p.ready(s)
	if got := p.old.Do("EXISTS", "k"); got != int64(0) || s.Failover().Switches != 0 {
		t.Errorf("k: %v, %d switches", got, s.Failover().Switches)
	}
}

// The run id of a server that was made a replica, and a primary again, is what it was. Its memory is not.
func TestAPrimaryThatWasAReplica(t *testing.T) {
	p := newPair(t)
	s := p.gateway()
	p.part()
	p.save(s, "k", "1")
	host, port, _ := strings.Cut(p.next.Addr, ":")
	p.old.Do("REPLICAOF", host, port)
	eventually(t, "a replica in step", func() bool {
		return strings.Contains(p.old.Do("INFO", "replication").(string), "master_link_status:up")
	})
	if got := p.old.Do("EXISTS", "k"); got != int64(0) {
		t.Fatal("nothing was forgotten")
	}
	p.old.Do("REPLICAOF", "NO", "ONE")
	s.node.moveTo(p.old.Addr, nil)
	p.ready(s)
	eventually(t, "k is back", func() bool { return p.old.Do("GET", "k") == "1" })
}

func TestWhoLeavesIsNotWaitedFor(t *testing.T) {
	p := newPair(t)
	a, b := p.gateway(), p.gateway()
	if n := p.old.Do("HLEN", registryKey("")); n != int64(2) {
		t.Fatalf("%v gateways are registered", n)
	}
	b.Close()
	if n := p.old.Do("HLEN", registryKey("")); n != int64(1) {
		t.Fatalf("%v gateways are registered", n)
	}
	eventually(t, "a has seen it", func() bool { return a.Failover().Gateways == 1 })
	p.part()
	p.save(a, "k", "1")
	p.move(a)
	if held := a.Failover().HeldMax; held >= deadAfter {
		t.Errorf("held for %v", held)
	}
	p.want("k", "1")
}

// empty is a server that the gateways took for their own, and that comes back with nothing.
func empty(t *testing.T, p *pair, gateways ...*Store) {
	t.Helper()
	for _, s := range gateways {
		p.save(s, "early", "1")
	}
	for i, s := range gateways {
		eventually(t, "a while", func() bool { return s.node.attendant.r.beats.Load() >= minBeats })
		p.save(s, fmt.Sprint("login", i), "1")
	}
	p.next = p.old
	p.next.Kill()
	p.next.Restart()
	for _, s := range gateways {
		eventually(t, "the alarm", func() bool { return s.Failover().Forgotten == 1 })
	}
}

func TestAPrimaryThatHasForgottenEverything(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("is not served from, and refilled", func(t *testing.T) {
		p := &pair{t: t, old: testserver.Redis(t)}
		a, b := p.gateway(), p.gateway()
		empty(t, p, a, b)
		if _, err := a.Load(soon(), "login0"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Load: got %v", err)
		}
		if err := b.Save(soon(), "x", live("1"), store.Always); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Save: got %v", err)
		}
		if got := p.next.Do("DBSIZE"); got != int64(0) {
			t.Errorf("%v keys", got)
		}
		// Somebody begins meanwhile, and is not what they remember.
		c := p.gateway()
		p.save(c, "other", "1")
		p.next.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		eventually(t, "connections", func() bool { return a.node.up() && b.node.up() })
		if _, err := a.Load(soon(), "login0"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Load: got %v", err)
		}
		if got := a.Failover().Holding; fmt.Sprint(got) != "[forgotten]" {
			t.Errorf("held up because of %v", got)
		}
		if err := a.Refill(ctx); err != nil {
			t.Fatal(err)
		}
		p.ready(a)
		p.ready(b) // it follows
		for _, key := range []string{"early", "login0", "login1", "other"} {
			p.want(key, "1")
		}
		if err := a.Refill(ctx); err == nil {
			t.Errorf("Refill: got %v", err)
		}
	})
	t.Run("is not served from by a gateway that is young, nor by others because of it", func(t *testing.T) {
		p := &pair{t: t, old: testserver.Redis(t)}
		a := p.gateway()
		eventually(t, "a while", func() bool { return a.node.attendant.r.beats.Load() >= minBeats })
		b := p.gateway()
		for began, i := time.Now(), 0; time.Since(began) < 1100*time.Millisecond; i++ {
			p.save(a, fmt.Sprint("a", i), "1")
			p.save(b, fmt.Sprint("b", i), "1")
		}
		b.node.attendant.r.beats.Store(2) // however slow this machine is
		p.old.Kill()
		p.old.Restart()
		for _, s := range []*Store{a, b} {
			eventually(t, "the alarm", func() bool { return s.Failover().Forgotten == 1 })
		}
		if n := p.old.Do("DBSIZE"); n != int64(0) {
			t.Errorf("%v keys", n)
		}
	})
	t.Run("is accepted", func(t *testing.T) {
		p := &pair{t: t, old: testserver.Redis(t)}
		a, b := p.gateway(), p.gateway(func(o *Options) { o.Failover.Replay = -1 })
		empty(t, p, a, b)
		if err := b.AcceptEmpty(ctx); err != nil {
			t.Fatal(err)
		}
		p.ready(a)
		p.want("login0", "")
		if st := a.Failover(); st.Entries != 0 {
			t.Errorf("%d entries", st.Entries)
		}
	})
	t.Run("is a move's own business", func(t *testing.T) {
		p := &pair{t: t, old: testserver.Redis(t)}
		a := p.gateway()
		empty(t, p, a)
		w := a.Workflow("w")
		if _, err := a.Instance(soon()); err != nil {
			t.Error(err)
		}
		if c, err := w.Control(soon()); c != nil || err != nil {
			t.Errorf("Control: got %q, %v", c, err)
		}
		if _, _, err := w.LoadMarked(soon(), "login0"); !errors.Is(err, store.ErrFenced) {
			t.Errorf("LoadMarked: got %v", err)
		}
		if err := w.SwapControl(soon(), nil, []byte("c")); err != nil {
			t.Error(err)
		}
		p.ready(a)
		p.want("login0", "")
	})
}

// A mute stands before a server and can keep its answers to itself.
type mute struct {
	addr string
	on   atomic.Bool
}

func newMute(t *testing.T, to string) *mute {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			wg.Go(func() { io.Copy(up, c); up.Close() })
			wg.Go(func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := up.Read(buf)
					if err != nil {
						return
					}
					if !m.on.Load() {
						c.Write(buf[:n])
					}
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return m
}

func TestWhatIsUnknownIsResolvedByReading(t *testing.T) { withFlags(t, resolveByReading) }

func resolveByReading(t *testing.T, p *pair) {
	ctx := context.Background()
	direct := p.old.Addr
	m := newMute(t, direct)
	p.old.Addr = m.addr
	s := p.gateway(func(o *Options) { o.Timeout, o.Failover.Hold = 10*time.Second, 20*time.Second }) // however slow this machine is
	for _, key := range []string{"deleted", "touched", "touched again", "over", "lost delete"} {
		p.save(s, key, "0")
	}
	for _, key := range []string{"nothing", "unlock", "lost unlock"} {
		if err := s.Lock(ctx, key, "token", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Unlock(ctx, "nothing", "token"); err != nil {
		t.Fatal(err)
	}
	p.del(s, "nothing") // and the scripts are known
	p.save(s, "over", "0", p.on("0"))
	if err := s.Touch(ctx, "over", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	m.on.Store(true)
	done := map[string]func() error{ // by the primary and the replica
		"new":     func() error { return s.Save(ctx, "new", p.live("1"), store.Always) },
		"over":    func() error { return s.Save(ctx, "over", p.live("1"), p.on("0")) },
		"created": func() error { return s.Save(ctx, "created", p.live("1"), store.IfAbsent) },
		"deleted": func() error { _, err := s.Delete(ctx, "deleted", store.Always); return err },
		"touched": func() error { return s.Touch(ctx, "touched", time.Now().Add(10*time.Hour)) },
		"lock":    func() error { return s.Lock(ctx, "lock", "token", time.Minute) },
		"unlock":  func() error { _, err := s.Unlock(ctx, "unlock", "token"); return err },
	}
	lost := map[string]func() error{ // by the primary alone
		"lost new":    func() error { return s.Save(ctx, "lost new", p.live("1"), store.Always) },
		"lost delete": func() error { _, err := s.Delete(ctx, "lost delete", store.Always); return err },
		"lost lock":   func() error { return s.Lock(ctx, "lost lock", "token", time.Minute) },
	}
	again := map[string]func() error{ // that is the same done twice
		"lost touch":  func() error { return s.Touch(ctx, "touched again", time.Now().Add(20*time.Hour)) },
		"lost unlock": func() error { _, err := s.Unlock(ctx, "lost unlock", "token"); return err },
	}
	var wg sync.WaitGroup
	run := func(ops map[string]func() error, want store.Outcome) {
		before := p.old.Do("INFO", "commandstats")
		for name, op := range ops {
			wg.Go(func() {
				if err := op(); store.OutcomeOf(err) != want {
					t.Errorf("%s: got %v, want %v", name, err, want)
				}
			})
		}
		eventually(t, "they are under way", func() bool { return int(s.node.gate.inside.Load()) >= len(ops) })
		eventually(t, "they are done", func() bool { return p.old.Do("INFO", "commandstats") != before })
	}
	run(done, store.OK)
	eventually(t, "all of it is done", func() bool {
		return p.old.Do("EXISTS", "new", "created", "lock_LOCK") == int64(3) && p.old.Do("EXISTS", "deleted", "unlock_LOCK") == int64(0) &&
			p.value(p.old, "over") == "1" && p.old.Do("TTL", "touched").(int64) > 9*3600
	})
	p.part()
	run(lost, store.OutcomeUnknown)
	run(again, store.OK)
	eventually(t, "all of it is done", func() bool {
		return p.old.Do("EXISTS", "lost new", "lost lock_LOCK") == int64(2) && p.old.Do("EXISTS", "lost delete", "lost unlock_LOCK") == int64(0) &&
			p.old.Do("TTL", "touched again").(int64) > 19*3600
	})
	p.move(s)
	wg.Wait()
	p.want("new", "1")
	p.want("lost new", "")
	p.want("deleted", "")
	p.want("lost delete", "0")
	p.want("lost unlock_LOCK", "")
	if got := p.next.Do("TTL", "touched again").(int64); got < 19*3600 {
		t.Errorf("the touched session lives for %d s", got)
	}
	if st := s.Failover(); st.Unknown != 12 || st.Resolved != 9 {
		t.Errorf("%d unknown, %d resolved, want 12 and 9", st.Unknown, st.Resolved)
	}
}

func TestConformanceWhereServersChangeTheirRoles(t *testing.T) {
	server := testserver.Redis(t)
	storetest.RunTarget(t, storetest.Harness[*Store]{
		New: func(t *testing.T) *Store {
			server.Do("FLUSHALL")
			return (&pair{t: t, old: server}).gateway()
		},
	})
}

// fade lets s take it that so much time has passed that it remembers nothing.
func fade(s *Store) {
	for i := range 8 {
		s.window.confirm(time.Now().Add(time.Duration(i) * time.Second))
	}
}

// aWhile waits until s expects to be known.
func aWhile(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "a while", func() bool { return s.node.attendant.r.beats.Load() >= minBeats })
}

// A server that comes back with an old file, or a replica that was cut off for long: nobody remembers what it lacks.
func TestAServerThatIsOlder(t *testing.T) {
	t.Parallel()
	for _, older := range []bool{true, false} {
		p := &pair{t: t, old: testserver.Redis(t)}
		a, b := p.gateway(), p.gateway()
		p.save(a, "out", "user")
		if !older {
			fade(a)
		}
		aWhile(t, a)
		p.old.Do("SAVE")
		if older {
			p.del(a, "out")
			p.save(a, "in", "user")
			fade(a)
		}
		p.old.Kill()
		p.old.Restart()
		for _, s := range []*Store{a, b} {
			eventually(t, "the server is in order", func() bool { return s.Failover().Switches == 1 })
		}
		f, want := a.Failover(), map[bool]uint64{true: 2}[older]
		if f.Left["old"] != want || f.Lost != want || b.Failover().Lost != 0 {
			t.Errorf("older %v: got %+v, and of another gateway %+v", older, f, b.Failover())
		}
	}
}

func TestTheGuardOfAnIdleSite(t *testing.T) {
	t.Parallel()
	for _, replay := range []time.Duration{0, -1} {
		p := &pair{t: t, old: testserver.Redis(t)}
		a := p.gateway(func(o *Options) { o.Failover.Replay = replay })
		for i := range 20 {
			p.save(a, fmt.Sprint("k", i), "user")
		}
		aWhile(t, a)
		eventually(t, "the keys are counted", func() bool { return a.node.attendant.r.keys.Load() >= 20 })
		if a.window != nil {
			fade(a)
		}
		p.old.Kill()
		p.old.Restart()
		eventually(t, "the alarm", func() bool { return a.Failover().Forgotten == 1 })
		p.old.Do("SET", "somebody", "1")
		for end := time.Now().Add(4 * beatEvery); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if a.node.gate.shut.Load()&forgotten == 0 {
				t.Fatal("it takes somebody's key for a memory")
			}
		}
		// Nor is anybody told that there are no sessions.
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if all, err := a.InspectAll(ctx, []string{"k1"}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("InspectAll: got %v, %v", all, err)
		}
		if page, err := a.Scan(ctx, "", 10); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Scan: got %v, %v", page.Keys, err)
		}
	}
}

// How old a write is counts from when it was asked for: whoever stood still reads the answer late.
func TestAnAnswerThatIsReadLate(t *testing.T) {
	p := newPair(t)
	a := p.gateway()
	p.part()
	a.Saved("k", []byte("w"), time.Now().Add(time.Hour), time.Now().Add(-70*time.Second), 0)
	p.move(a)
	p.want("k", "")
	p.left(a, map[string]uint64{"late": 1})
}

// turns counts how often who has it is asked for its values.
type turns struct {
	context.Context
	n *atomic.Int64
}

func (c turns) Value(key any) any { c.n.Add(1); return c.Context.Value(key) }

func TestCriticalWritesWithoutTheirConnection(t *testing.T) {
	p := &pair{t: t, old: testserver.Redis(t)}
	a := p.gateway(func(o *Options) { o.Failover.Wait = 100 * time.Millisecond })
	a.node.slow.wire.Store(nil) // it is being made
	ctx, cancel := context.WithTimeout(store.Replicated(context.Background()), 300*time.Millisecond)
	defer cancel()
	count := turns{ctx, new(atomic.Int64)}
	if err := a.Save(count, "k", live("1"), store.Always); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Save: got %v", err)
	}
	if n := count.n.Load(); n > 1000 {
		t.Errorf("the context was asked %d times in 300 ms", n)
	}
}

// Whoever has given up a critical write that was not sent yet has it not sent any more: perhaps somebody has logged out since.
func TestACriticalWriteThatWasGivenUp(t *testing.T) {
	p := &pair{t: t, old: testserver.Redis(t)}
	a := p.gateway(func(o *Options) { o.Failover.Wait = 100 * time.Millisecond })
	a.node.marshal.mu.Lock()
	a.node.marshal.busy = true // a batch is under way
	a.node.marshal.mu.Unlock()
	ctx, cancel := context.WithTimeout(store.Replicated(context.Background()), 100*time.Millisecond)
	defer cancel()
	if err := a.Save(ctx, "k", live("login"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
		t.Errorf("Save: got %v", err)
	}
	p.del(a, "k")
	a.node.march()
	if got := p.old.Do("EXISTS", "k"); got != int64(0) {
		t.Error("it was sent after the delete")
	}
}

// A connection that breaks while the replicas are waited for does not say that they have it.
func TestAServerThatGoesWhileItsReplicasAreWaitedFor(t *testing.T) {
	p := newPair(t)
	a := p.gateway(func(o *Options) { o.Failover.Wait, o.Failover.Replay = 1900*time.Millisecond, -1 })
	eventually(t, "a replica", func() bool { return a.node.replicas.Load() == 1 })
	p.next.Pause()
	ctx, cancel := context.WithTimeout(store.Replicated(context.Background()), 20*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() { got <- a.Save(ctx, "k", live("login"), store.Always) }()
	eventually(t, "it is done", func() bool { return p.old.Do("EXISTS", "k") == int64(1) })
	third := testserver.Redis(t)
	third.Do("SET", "somebody", "1")
	a.node.moveTo(third.Addr, nil) // while the replica says nothing
	if err := <-got; store.OutcomeOf(err) != store.OutcomeUnknown {
		t.Errorf("Save: got %v", err)
	}
	p.next.Resume()
}

func TestEvictionIsNoticed(t *testing.T) {
	p := &pair{t: t, old: testserver.Redis(t)}
	s := p.gateway()
	eventually(t, "the keys are counted", func() bool { return s.node.attendant.r.beats.Load() > countEvery })
	for i := range 200 {
		p.save(s, fmt.Sprint("k", i), strings.Repeat("x", 1000))
	}
	p.old.Do("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
	p.old.Do("CONFIG", "SET", "maxmemory", "1")
	eventually(t, "eviction is noticed", func() bool { return s.Failover().Evicted > 0 })
}

// What an attendant asks of one server is not for another one.
func TestAnAttendantIsBoundToItsServer(t *testing.T) {
	p := newPair(t)
	s := p.gateway()
	a := s.node.attendant
	ctx := a.bound(pass(context.Background(), everything), a.comes.Load())
	if _, err := a.register(ctx, "x", "", nil); err != nil {
		t.Error(err)
	}
	p.part()
	p.move(s)
	if _, err := a.register(ctx, "x", "", nil); err == nil {
		t.Error("another server was asked")
	}
}
