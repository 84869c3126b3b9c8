package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

const (
	phpredisScript = `if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end`
	phpredisSHA    = "b70c2384248f88e6b75b9f89241a180f856ad852"
)

func acquire(token string) []string { return []string{"SET", "s_LOCK", token, "NX", "PX", "30000"} }

func (c *client) unlock(want, token string) {
	c.t.Helper()
	c.want(want, "EVAL", phpredisScript, "1", "s_LOCK", token)
}

func TestReleaseScripts(t *testing.T) {
	served := []struct{ name, text string }{
		{"phpredis", phpredisScript},
		{"Laravel", `
if redis.call("get",KEYS[1]) == ARGV[1] then
    return redis.call("del",KEYS[1])
else
    return 0
end
`},
		{"redlock-py", `
    if redis.call("get",KEYS[1]) == ARGV[1] then
        return redis.call("del",KEYS[1])
    else
        return 0
    end`},
		{"Symfony", `
                if redis.call("GET", KEYS[1]) == ARGV[1] then
                    return redis.call("DEL", KEYS[1])
                else
                    return 0
                end
            `},
		{"single quotes and semicolons", `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]); else return 0; end;`},
		{"unlink", `if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('unlink',KEYS[1]) else return 0 end`},
		{"pcall", `if redis.pcall('get',KEYS[1]) == ARGV[1] then return redis.pcall('del',KEYS[1]) else return 0 end`},
		{"redis-py", `
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('del', KEYS[1])
        return 1
    `},
	}
	for _, tc := range served {
		if orNull, ok := isRelease([]byte(tc.text)); !ok || orNull {
			t.Errorf("%s: not recognised", tc.name)
		}
	}
	if orNull, ok := isRelease([]byte(`if redis.call("get",KEYS[1])==ARGV[1] then return redis.call("del",KEYS[1]) end`)); !ok || !orNull {
		t.Error("without else: not recognised")
	}
	for _, text := range []string{
		"", "return 1", "while true do end",
		`if redis.call("get",KEYS[1]) == ARGV[2] then return redis.call("del",KEYS[1]) else return 0 end`,
		`if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[2]) else return 0 end`,
		`if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("pexpire",KEYS[1],ARGV[2]) else return 0 end`,
		`redis.call("flushall") ` + phpredisScript,
		phpredisScript + " return redis.call('keys','*')",
		phpredisScript + strings.Repeat(" ", maxScript),
	} {
		if _, ok := isRelease([]byte(text)); ok {
			t.Errorf("%q is recognised", text)
		}
	}

	// NOSCRIPT first, on every server; then EVALSHA on all its connections.
	gw := start(t, Site{})
	a, b := gw.dial(), gw.dial()
	const noscript = "-NOSCRIPT No matching script. Please use EVAL.\r\n"
	a.want(noscript, "EVALSHA", phpredisSHA, "1", "s_LOCK", "x")
	a.want(":0\r\n", "EVAL", phpredisScript, "1", "s_LOCK", "x")
	b.want(":0\r\n", "EVALSHA", phpredisSHA, "1", "s_LOCK", "x")
	a.want(string("-"+errScript+"\r\n"), "EVALSHA", phpredisSHA, "1", "s", "x")
	a.want(string("-"+errScript+"\r\n"), "EVAL", phpredisScript, "0")
	a.want(string("-"+errScript+"\r\n"), "EVAL", phpredisScript, "1", "s_LOCK")
	var known scripts
	for i := range 2 * maxScripts {
		known.add(fmt.Append(nil, phpredisScript, i), false)
	}
	if len(known.known) != maxScripts {
		t.Errorf("%d scripts are remembered", len(known.known))
	}
}

// Every way to ask for a lock, to ask about it and to release it.
func TestLockCommands(t *testing.T) {
	gw := start(t, Site{LockWait: 20 * time.Millisecond})
	a, b := gw.dial(), gw.dial()
	const refused = "-" + string(errLockKey) + "\r\n"
	a.want("+OK\r\n", acquire("a")...)
	b.want(null, acquire("b")...)
	a.want(null, acquire("a")...) // the same connection again: at once
	b.want(bulk("a"), "GET", "s_LOCK")
	b.want(":1\r\n", "EXISTS", "s_LOCK")
	b.want(":30\r\n", "TTL", "s_LOCK")
	b.unlock(":0\r\n", "b")
	a.unlock(":1\r\n", "a")
	a.want(null, "GET", "s_LOCK")
	for _, line := range []string{"SET s_LOCK v", "SET s_LOCK v XX", "SET s_LOCK v EX 10", "SET s_LOCK v NX GET", "SET s_LOCK v NX KEEPTTL", "SET s_LOCK  NX",
		"SETEX s_LOCK 10 v", "GETSET s_LOCK v", "GETDEL s_LOCK"} {
		a.want(refused, strings.Split(line, " ")...)
	}
	// What lies under the lock's name is no session, and the session is no lock.
	a.want("+OK\r\n", "SETEX", "s", "100", "v")
	a.want(null, "GET", "s_LOCK")
	a.want("+OK\r\n", acquire("a")...)
	a.want(refused, "GETEX", "s_LOCK", "EX", "10")
	a.want(bulk("v"), "GET", "s")
	b.want(":2\r\n", "DEL", "s", "s_LOCK") // whoever holds it
	b.want("+OK\r\n", acquire("b")...)

	ci := start(t, Site{LockSuffix: ":lock"}).dial() // CodeIgniter
	ci.want("+OK\r\n", "SET", "ci_session:x:lock", "1700000000", "NX", "EX", "300")
	ci.want(":1\r\n", "EXPIRE", "ci_session:x:lock", "300")
	ci.want(":1\r\n", "DEL", "ci_session:x:lock")
}

// Waiters get the lock in the order in which they came, without asking the store in between.
func TestLockIsFair(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st})
	holder := gw.dial()
	holder.want("+OK\r\n", acquire("holder")...)
	const n = 8
	var waiters [n]*client
	for i := range waiters {
		waiters[i] = gw.dial()
		waiters[i].send(command_(acquire(fmt.Sprint("w", i))...))
		eventually(t, "the waiter in the queue", func() bool { return gw.Stats().LocksWaiting == int64(i+1) })
	}
	time.Sleep(30 * time.Millisecond)
	if asked := st.locks.Load(); asked != 1 {
		t.Errorf("the store was asked %d times while the lock was held", asked)
	}
	holder.unlock(":1\r\n", "holder")
	for i, w := range waiters {
		began := time.Now()
		if got := w.reply(); got != "+OK\r\n" {
			t.Fatalf("waiter %d: %q", i, got)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("waiter %d was woken after %v", i, took)
		}
		w.want(bulk(fmt.Sprint("w", i)), "GET", "s_LOCK")
		w.unlock(":1\r\n", fmt.Sprint("w", i))
	}
	if asked := st.locks.Load(); asked != n+1 {
		t.Errorf("the store was asked %d times, want %d", asked, n+1)
	}
	if len(gw.locks.queues) != 0 {
		t.Errorf("%d queues are left", len(gw.locks.queues))
	}
}

// On the connection that holds the lock nobody could release it while it waits.
func TestLockTwiceOnOneConnection(t *testing.T) {
	c := start(t, Site{LockWait: time.Minute}).dial()
	c.want("+OK\r\n", acquire("a")...)
	c.want(null, acquire("a")...)
	c.want(null, acquire("b")...)
}

// However many give up at whatever moment, the turn is never lost and never with two.
func TestTurnsAreNotLost(t *testing.T) {
	l := newLocks(func() {}, func(*conn) {})
	var wg sync.WaitGroup
	var having atomic.Int64
	for range 8 {
		wg.Go(func() {
			c := &conn{}
			for range 2000 {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(50*time.Microsecond))
				if l.turn(ctx, "s", c) {
					if having.Add(1) != 1 {
						t.Error("two have the turn")
					}
					time.Sleep(rand.N(20 * time.Microsecond))
					having.Add(-1)
					if rand.IntN(2) == 0 {
						l.took("s", "t", time.Hour, c, false)
						l.released("s", "t")
					} else {
						l.pass("s")
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if len(l.queues) != 0 || l.held.Load() != 0 || l.waiting.Load() != 0 {
		t.Errorf("%d queues, %d locks and %d waiters are left", len(l.queues), l.held.Load(), l.waiting.Load())
	}
}

// Somebody outside this process holds the lock: the store waits for it, and only for the first of ours.
func TestLockHeldElsewhere(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, LockWait: 400 * time.Millisecond})
	if err := st.Store.Lock(t.Context(), "s", "elsewhere", time.Minute); err != nil {
		t.Fatal(err)
	}
	a, b := gw.dial(), gw.dial()
	a.send(command_(acquire("a")...))
	eventually(t, "the first to ask", func() bool { return st.locks.Load() == 1 })
	b.send(command_(acquire("b")...))
	time.Sleep(20 * time.Millisecond)
	if n := st.locks.Load(); n != 1 {
		t.Errorf("the store was asked %d times", n)
	}
	began := time.Now()
	if a.reply() != null || b.reply() != null {
		t.Error("somebody got a lock that was held")
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > 3*time.Second {
		t.Errorf("parked for %v", took)
	}
	a.send(command_(acquire("a")...))
	time.Sleep(20 * time.Millisecond)
	st.Store.Unlock(t.Context(), "s", "elsewhere")
	if got := a.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
}

// Who gets the turn at the very end of LockWait does not wait for Hold as well.
func TestTurnAtTheEndOfLockWait(t *testing.T) {
	st := newScripted()
	c := start(t, Site{Store: st, LockWait: 20 * time.Millisecond}).dial()
	if err := st.Store.Lock(t.Context(), "s", "elsewhere", time.Minute); err != nil {
		t.Fatal(err)
	}
	st.set(func(op, _ string) error {
		if op == "lock" {
			time.Sleep(40 * time.Millisecond)
		}
		return nil
	}, nil)
	began := time.Now()
	c.want(null, acquire("a")...)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("answered after %v", took)
	}
}

func TestLockLife(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, LockLife: 150 * time.Millisecond})
	a, b := gw.dial(), gw.dial()
	for _, args := range [][]string{acquire("a"), {"SET", "s_LOCK", "a", "NX"}, {"SETNX", "s_LOCK", "a"}} {
		if got := a.do(args...); got != "+OK\r\n" && got != ":1\r\n" {
			t.Fatalf("%q: %q", args, got)
		}
		_, left, _ := st.Store.LockHolder(t.Context(), "s")
		if left > 150*time.Millisecond {
			t.Errorf("%q: a life of %v", args, left)
		}
		b.want("+OK\r\n", acquire("b")...) // after the end of a's
		a.unlock(":0\r\n", "a")
		b.unlock(":1\r\n", "b")
	}
	if n := gw.Stats(); n.LocksExpired != 3 || n.LocksHeld != 0 {
		t.Errorf("%d locks expired and %d held, want 3 and none", n.LocksExpired, n.LocksHeld)
	}
}

// A lock without a life ends with the connection that took it; one with a life does not.
func TestLockAndConnection(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st})
	b := gw.dial()
	a := gw.dial()
	a.want("+OK\r\n", "SET", "s_LOCK", "a", "NX")
	a.want("+OK\r\n", "SET", "t_LOCK", "a", "NX", "PX", "30000")
	a.want("+OK\r\n", "SET", "u_LOCK", "a", "NX")
	b.want(":1\r\n", "EVAL", phpredisScript, "1", "u_LOCK", "a")
	b.want("+OK\r\n", "SET", "u_LOCK", "a", "NX") // with the same token: not a's any more
	b.send(command_(acquire("b")...))
	a.close()
	if got := b.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	b.want(bulk("a"), "GET", "t_LOCK")
	b.want(bulk("a"), "GET", "u_LOCK")

	// A waiter that goes away leaves the queue, whether it waits for us or for the store.
	c, d := gw.dial(), gw.dial()
	c.send(command_(acquire("c")...))
	eventually(t, "a waiter", func() bool { return gw.Stats().LocksWaiting == 1 })
	d.send(command_(acquire("d")...))
	eventually(t, "another", func() bool { return gw.Stats().LocksWaiting == 2 })
	c.close()
	eventually(t, "one waiter less", func() bool { return gw.Stats().LocksWaiting == 1 })
	b.unlock(":1\r\n", "b")
	if got := d.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	if err := st.Store.Lock(t.Context(), "v", "elsewhere", time.Minute); err != nil {
		t.Fatal(err)
	}
	open := gw.Stats().Open
	asked := st.locks.Load()
	e := gw.dial()
	e.send(command_("SET", "v_LOCK", "e", "NX", "PX", "30000") + command_("PING")) // what is sent meanwhile does not hide the end
	eventually(t, "the store asked", func() bool { return st.locks.Load() > asked })
	e.close()
	eventually(t, "its end", func() bool { return gw.Stats().Open == open })
	st.Store.Unlock(t.Context(), "v", "elsewhere")
	b.want(null, "GET", "v_LOCK")
}

// A command that was sent behind the request for a lock is served when the wait is over.
func TestCommandsBehindALock(t *testing.T) {
	gw := start(t, Site{LockWait: 200 * time.Millisecond})
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", acquire("a")...)
	b.send(command_(acquire("b")...))
	time.Sleep(60 * time.Millisecond) // beyond watchAfter
	b.send(command_("ECHO", "x"))
	if got := b.reply() + b.reply(); got != null+bulk("x") {
		t.Errorf("got %q", got)
	}
	b.want("+PONG\r\n", "PING")
}

// A lock whose taking was not confirmed does not stand in the way until its end.
func TestLockOfUnknownOutcome(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st})
	a := gw.dial()
	st.set(nil, failing(store.ErrUnknown, "lock"))
	a.want(textUnknown, acquire("a")...)
	st.set(nil, nil)
	a.want("+OK\r\n", acquire("a")...)
	a.unlock(":1\r\n", "a")
}

// A lock that is granted while the server gives up does not stand in the way of the next one's clients.
func TestLockAtTheEnd(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st})
	granted, release := make(chan bool), make(chan bool)
	st.set(nil, func(op, _ string) error {
		if op == "lock" {
			close(granted)
			<-release
			return store.ErrUnknown
		}
		return nil
	})
	gw.dial().send(command_(acquire("a")...))
	<-granted
	done := make(chan error)
	go func() { done <- gw.Close() }()
	<-gw.ctx.Done()
	close(release)
	<-done
	if token, _, _ := st.Store.LockHolder(t.Context(), "s"); token != "" {
		t.Errorf("%s holds it", token)
	}
}

// Two gateways over one store exclude each other.
func TestLockAcrossGateways(t *testing.T) {
	st := memory.New(memory.Options{})
	a, b := start(t, Site{Store: st}).dial(), start(t, Site{Store: st}).dial()
	for i := range 100 {
		token := fmt.Sprint(i)
		a.send(command_(acquire(token)...))
		b.send(command_(acquire(token)...))
		first, second := a, b
		for end := time.Now().Add(5 * time.Second); ; first, second = second, first { // whoever is answered
			got, err := first.tryReply(2 * time.Millisecond)
			if got == "+OK\r\n" {
				break
			}
			if err == nil || time.Now().After(end) {
				t.Fatalf("nobody has the lock: %q, %v", got, err)
			}
		}
		if got, err := second.tryReply(time.Millisecond); err == nil {
			t.Fatalf("while one had the lock the other got %q", got)
		}
		first.unlock(":1\r\n", token)
		if got := second.reply(); got != "+OK\r\n" {
			t.Fatalf("got %q", got)
		}
		second.unlock(":1\r\n", token)
	}
}
