package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

func TestDeadlines(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Idle: 1500 * time.Millisecond, Command: 400 * time.Millisecond}})
	within := func(what string, c *client, least, most time.Duration) {
		t.Helper()
		began := time.Now()
		c.closed()
		if took := time.Since(began); took < least || took > most {
			t.Errorf("%s: closed after %v", what, took)
		}
	}
	// Active for longer than Idle, then quiet.
	c := gw.dial()
	for range 12 {
		c.want("+PONG\r\n", "PING")
		time.Sleep(150 * time.Millisecond)
	}
	within("idle", c, 700*time.Millisecond, 5*time.Second)
	// A command byte by byte, each in time: slowloris.
	c = gw.dial()
	began := time.Now()
	for _, b := range []byte(command_("SETEX", "k", "100", strings.Repeat("v", 1000))) {
		if _, err := c.nc.Write([]byte{b}); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
		if time.Since(began) > 5*time.Second {
			t.Fatal("a slow command is never given up")
		}
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("slow command: closed after %v", took)
	}
	// Behind a complete command the clock starts anew, and a connection goes back to Idle afterwards.
	c = gw.dial()
	get := command_("GET", "k")
	c.send(get[:5])
	time.Sleep(220 * time.Millisecond) // less than Command, and twice that is more
	c.send(get[5:] + get[:5])
	c.reply()
	time.Sleep(220 * time.Millisecond) // less than Command, and twice that is more
	c.send(get[5:])
	c.reply()
	time.Sleep(500 * time.Millisecond) // longer than Command
	c.want("+PONG\r\n", "PING")
	// Nobody may stay without a login.
	users := start(t, Site{Users: []User{{Passwords: []string{"p"}}}, Limits: Limits{Command: 100 * time.Millisecond}})
	within("not logged in", users.dial(), 50*time.Millisecond, 2*time.Second)
	c = users.dial()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) { // nor by asking for a new beginning again and again
		if _, err := c.nc.Write([]byte(command_("RESET"))); err != nil {
			break
		}
		if _, err := c.tryReply(patience); err != nil {
			break
		}
		if time.Since(began) > 2*time.Second {
			t.Fatal("who is not logged in stays by RESET")
		}
	}
	c = users.dial()
	c.want("+OK\r\n", "AUTH", "p")
	time.Sleep(200 * time.Millisecond)
	c.want("+PONG\r\n", "PING")
	c.want("+RESET\r\n", "RESET")
	c.want("+OK\r\n", "AUTH", "p")
	forever := start(t, Site{Limits: Limits{Idle: -1, Command: 50 * time.Millisecond}}).dial()
	time.Sleep(150 * time.Millisecond)
	forever.want("+PONG\r\n", "PING")
}

func TestLogin(t *testing.T) {
	var alarms atomic.Int64
	gw := startWith(t, Site{Users: []User{{Passwords: []string{"new", "old"}}, {Name: "bob", Passwords: []string{"b"}}}},
		Options{Hooks: Hooks{Security: func(kind string) {
			if kind == SecurityLogin {
				alarms.Add(1)
			}
		}}})
	for _, args := range [][]string{{"AUTH", "new"}, {"AUTH", "old"}, {"AUTH", "default", "new"}, {"AUTH", "bob", "b"}, {"HELLO", "2", "AUTH", "bob", "b"}} {
		c := gw.dial()
		c.want("-NOAUTH Authentication required.\r\n", "GET", "k")
		if got := c.do(args...); got[0] == '-' {
			t.Errorf("%q: %q", args, got)
		}
		c.want(null, "GET", "k")
	}
	for _, args := range [][]string{{"AUTH", "b"}, {"AUTH", "bob", "new"}, {"AUTH", "", "new"}, {"AUTH", "eve", "new"}, {"AUTH", ""}, {"HELLO", "3", "AUTH", "bob", "x"}} {
		c := gw.dial()
		c.want("-WRONGPASS invalid username-password pair or user is disabled.\r\n", args...)
		c.want("-NOAUTH Authentication required.\r\n", "GET", "k")
	}
	if n := gw.Stats().Logins; n != 6 || alarms.Load() != 6 {
		t.Errorf("%d wrong passwords counted and %d told, want 6", n, alarms.Load())
	}
	// Without users any password will do, and that is said once.
	var log syncBuilder
	open := startWith(t, Site{}, Options{Logger: log.logger()}).dial()
	open.want("+OK\r\n", "AUTH", "secret")
	open.want("+OK\r\n", "AUTH", "bob", "secret")
	open.want(null, "GET", "k")
	if n := strings.Count(log.String(), "password"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// phpredis ignores what SELECT answers, so the commands behind a wrong one must fail.
func TestSelect(t *testing.T) {
	c := start(t, Site{Database: 3}).dial()
	const text = "-ERR sessile: this site is database 3, and this connection selected another\r\n"
	c.want("+OK\r\n", "SETEX", "k", "100", "v") // as yet nothing is wrong
	c.want("-ERR sessile: this site is database 3\r\n", "SELECT", "0")
	c.want(text, "GET", "k")
	c.want(text, "SETEX", "k", "100", "w")
	c.want(text, "EXISTS", "k")
	c.want("+PONG\r\n", "PING")
	c.want("+OK\r\n", "SELECT", "3")
	c.want(bulk("v"), "GET", "k")
	c.want("-ERR DB index is out of range\r\n", "SELECT", "-1")
	c.want(text, "GET", "k")
	c.want("+RESET\r\n", "RESET")
	c.want(bulk("v"), "GET", "k")
}

// What clients ask that are configured for Cluster or Sentinel, or want to know whom they talk to.
func TestWhoIsThere(t *testing.T) {
	gw := start(t, Site{})
	host, port, _ := net.SplitHostPort(gw.addr.String())
	c := gw.dial()
	slots := c.do("CLUSTER", "SLOTS")
	if want := "*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n" + bulk(host) + ":" + port + "\r\n$40\r\n"; !strings.HasPrefix(slots, want) {
		t.Errorf("CLUSTER SLOTS: %q", slots)
	}
	c.want("*2\r\n"+bulk(host)+bulk(port), "SENTINEL", "get-master-addr-by-name", "mymaster")
	id := regexp.MustCompile(`[0-9a-f]{40}`).FindString(slots)
	if got := c.do("CLUSTER", "NODES"); !strings.Contains(got, id) || !strings.Contains(got, "myself,master - 0 0 1 connected 0-16383") {
		t.Errorf("CLUSTER NODES: %q", got)
	}
	c.want(bulk(id), "CLUSTER", "MYID")
	for _, args := range [][]string{{"CLUSTER", "SHARDS"}, {"CLUSTER", "INFO"}, {"SENTINEL", "sentinels", "mymaster"}, {"HELLO", "3"}, {"CLUSTER", "SHARDS"}, {"CLIENT", "INFO"}} {
		if got := c.do(args...); got[0] == '-' {
			t.Errorf("%q: %q", args, got)
		}
	}
	for section, want := range map[string]string{"server": "redis_version:7.0.15", "replication": "role:master", "persistence": "loading:0", "": "tcp_port:" + port} {
		got := c.do(slices.DeleteFunc([]string{"INFO", section}, func(s string) bool { return s == "" })...)
		if !strings.Contains(got, want+"\r\n") || section != "" && strings.Count(got, "# ") != 1 {
			t.Errorf("INFO %s: %q", section, got)
		}
	}
	c.want("=4\r\ntxt:\r\n", "INFO", "nosuch")
}

func TestConnectionLimit(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Conns: 2}})
	a, b := gw.dial(), gw.dial()
	a.want("+PONG\r\n", "PING")
	b.want("+PONG\r\n", "PING")
	c := gw.dial()
	if got := c.reply(); got != "-ERR max number of clients reached\r\n" {
		t.Errorf("got %q", got)
	}
	c.closed()
	a.close()
	eventually(t, "a place", func() bool { return gw.Stats().Open == 1 })
	gw.dial().want("+PONG\r\n", "PING")
	if n := gw.Stats(); n.Refused != 1 || n.Accepted != 4 {
		t.Errorf("%+v", n)
	}
}

func TestEvents(t *testing.T) {
	var mu sync.Mutex
	var got []string
	st := newScripted()
	gw := startWith(t, Site{Store: st, Hold: -1}, Options{Hooks: Hooks{Done: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e.Command+" "+e.Outcome.String())
	}}})
	c := gw.dial()
	for _, line := range []string{"get k", "SETEX k 100 v", "get k", "set k v foo", "NONSENSE a", "append k v", "client SETNAME x", "client nonsense", "SET k_LOCK v NX"} {
		c.do(strings.Split(line, " ")...)
	}
	st.set(failing(store.ErrUnavailable, "load"), nil)
	c.do("GET", "k")
	c.close()
	gw.Close()
	want := []string{"GET absent", "SETEX ok", "GET ok", "SET invalid", "other invalid", "APPEND invalid", "CLIENT|SETNAME ok", "CLIENT invalid", "SET ok", "GET unavailable"}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// One connection's panic is its own affair.
func TestPanic(t *testing.T) {
	st := newScripted()
	var log syncBuilder
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(throughLoop(t, Site{Store: st}), Options{Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Close()
	gw := &gateway{Server: s, t: t, addr: l.Addr()}
	gw.linked()
	other := gw.dial()
	other.want("+OK\r\n", "SETEX", "k", "10", "v")
	other.want(bulk("v"), "GET", "k")
	for _, op := range []string{"load", "delete", "lock"} {
		st.set(func(o, _ string) error {
			if o == op {
				panic("bug")
			}
			return nil
		}, nil)
		c := gw.dial()
		c.send(map[string]string{"load": command_("GET", "k"), "delete": command_("DEL", "k"), "lock": command_("SET", "k_LOCK", "t", "NX")}[op])
		c.closed()
		st.set(nil, nil)
	}
	other.want("+OK\r\n", "SETEX", "k", "10", "v")
	other.want("+OK\r\n", "SET", "k_LOCK", "t", "NX")
	if n := s.Stats(); n.Panics != 3 || !strings.Contains(log.String(), "panic=string") {
		t.Errorf("%d panics counted; log %s", n.Panics, log.String())
	}
}

// Under load every command that was run is answered, and nothing is accepted any more.
func TestShutdownUnderLoad(t *testing.T) {
	st := newScripted()
	st.set(func(string, string) error { time.Sleep(100 * time.Microsecond); return nil }, nil)
	gw := start(t, Site{Store: st, Linger: 50 * time.Millisecond})
	var answered atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		c := gw.dial()
		wg.Go(func() {
			for n := 0; ; n++ {
				if _, err := c.nc.Write([]byte(command_("SETEX", fmt.Sprint("k", i), "100", fmt.Sprint(n)))); err != nil {
					return
				}
				got, err := c.tryReply(patience)
				if err != nil {
					return
				}
				if got != "+OK\r\n" {
					t.Errorf("got %q", got)
				}
				answered.Add(1)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	if err := gw.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	wg.Wait()
	if run := st.saves.Load(); run != answered.Load() || run == 0 {
		t.Errorf("%d commands were run and %d answered", run, answered.Load())
	}
	if _, err := net.Dial("tcp", gw.addr.String()); err == nil {
		t.Error("still accepting")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gw.Serve(l); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// A page that is under way may finish; one that is not is gone at once; a command that waits is waited for.
func TestShutdownIsGentle(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Linger: 300 * time.Millisecond})
	quiet, page, slow := gw.dial(), gw.dial(), gw.dial()
	quiet.want("+PONG\r\n", "PING")
	slow.want("+PONG\r\n", "PING")
	time.Sleep(350 * time.Millisecond)
	page.want(null, "GET", "k")
	release := make(chan struct{})
	st.set(func(op, _ string) error {
		if op == "load" {
			<-release
		}
		return nil
	}, nil)
	slow.send(command_("GETEX", "k")) // by a loop a GET would hold up the other commands of this store
	eventually(t, "the slow command", func() bool { return st.loads.Load() == 2 })
	done := make(chan error)
	go func() { done <- gw.Shutdown(context.Background()) }()
	began := time.Now()
	quiet.closed()
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("the quiet one was closed after %v", took)
	}
	time.Sleep(100 * time.Millisecond)
	page.want("+OK\r\n", "SETEX", "k", "100", "v")
	page.closed()
	select {
	case err := <-done:
		t.Errorf("Shutdown did not wait for the slow command: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if got := slow.reply(); got != bulk("v") {
		t.Errorf("got %q", got)
	}
	slow.closed()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A page that takes longer than Linger saves what it has under the lock that it took, and is not disturbed.
func TestShutdownWaitsForAPageThatHoldsALock(t *testing.T) {
	gw := start(t, Site{Linger: 50 * time.Millisecond})
	page, other, stuck := gw.dial(), gw.dial(), gw.dial()
	page.want("+OK\r\n", "SET", "k_LOCK", "t", "NX", "PX", "10000")
	stuck.want("+OK\r\n", "SET", "s_LOCK", "t", "NX", "PX", "700") // nobody releases this one
	done := make(chan error)
	go func() { done <- gw.Shutdown(context.Background()) }()
	other.closed()
	time.Sleep(200 * time.Millisecond) // longer than Linger
	page.want("+OK\r\n", "SETEX", "k", "100", "v")
	page.want(":1\r\n", "EVAL", phpredisScript, "1", "k_LOCK", "t")
	page.closed()
	stuck.closed()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	case <-time.After(patience):
		t.Error("Shutdown does not end")
	}
}

func TestShutdownGivesUp(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Hold: time.Minute})
	st.set(failing(store.ErrUnavailable, "load"), nil)
	c := gw.dial()
	c.send(command_("GET", "k"))
	eventually(t, "the hold", func() bool { return gw.Stats().Held == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := gw.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the end", func() bool { return gw.Stats().Open == 0 })
}

func TestSiteIsChecked(t *testing.T) {
	st := newScripted()
	for name, site := range map[string]Site{
		"no store":              {},
		"reserved prefix":       {Store: st, Prefix: "sessile:x"},
		"long prefix":           {Store: st, Prefix: strings.Repeat("x", 512)},
		"negative limit":        {Store: st, Limits: Limits{Conns: -1}},
		"negative duration":     {Store: st, LockWait: -1},
		"negative database":     {Store: st, Database: -1},
		"sliding, no lifetime":  {Store: st, SlidingWithoutTTL: true},
		"beyond PHP's patience": {Store: st, Hold: time.Hour},
		"no password":           {Store: st, Users: []User{{Name: "u"}}},
		"empty password":        {Store: st, Users: []User{{Passwords: []string{""}}}},
		"little memory":         {Store: st, Limits: Limits{Memory: 1 << 20}},
	} {
		if _, err := New(site, Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The same over and over: what a GET costs beside the store's own work.
func BenchmarkGet(b *testing.B) {
	for _, size := range []int{200, 5000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			gw := start(b, Site{Store: newQuick(bytes.Repeat([]byte("v"), size))})
			b.ReportAllocs()
			b.SetParallelism(25) // times two processors: 50 connections
			b.RunParallel(func(pb *testing.PB) {
				nc, err := net.Dial("tcp", gw.addr.String())
				if err != nil {
					b.Error(err)
					return
				}
				defer nc.Close()
				get := []byte(command_("GET", "PHPREDIS_SESSION:0123456789abcdefghijklmnop"))
				buf := make([]byte, len(bulk(strings.Repeat("v", size))))
				for pb.Next() {
					if _, err := nc.Write(get); err != nil {
						b.Error(err)
						return
					}
					for n := 0; n < len(buf); {
						k, err := nc.Read(buf[n:])
						if n += k; err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
		})
	}
}

// BenchmarkCommands leaves the sockets out.
func BenchmarkCommands(b *testing.B) {
	s, err := New(Site{Store: newQuick(bytes.Repeat([]byte("v"), 200)), Lifetime: time.Hour}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for _, line := range []string{"GET k", "SETEX k 1440 v", "PING", "EXPIRE k 1440"} {
		b.Run(strings.Fields(line)[0], func(b *testing.B) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			c := newStream(s, ours, 1)
			cmd := []byte(command_(strings.Fields(line)...))
			b.ReportAllocs()
			for b.Loop() {
				c.in, c.pos, c.out = append(c.in[:0], cmd...), 0, c.out[:0]
				if c.commands(); c.closing {
					b.Fatal("refused")
				}
			}
		})
	}
}

// quick answers the same record at once, without copying it.
type quick struct {
	*scripted
	rec store.Record
}

func newQuick(data []byte) *quick { return &quick{newScripted(), store.Record{Data: data}} }

func (q *quick) Load(context.Context, string) (store.Record, error) { return q.rec, nil }
func (q *quick) Save(context.Context, string, store.Record, store.Condition) error {
	return nil
}
func (q *quick) Touch(context.Context, string, time.Time) error { return nil }

// Shutdown wakes every connection, whatever deadline it is about to set itself.
func TestShutdownAtAnyMoment(t *testing.T) {
	get := command_("GET", "k")
	for range 100 {
		gw := start(t, Site{Linger: -1})
		var wg sync.WaitGroup
		for range 4 {
			c := gw.dial()
			wg.Go(func() {
				for { // an unfinished command brings the deadline forward, its end puts it back
					_, err := c.nc.Write([]byte(get[:9]))
					if err == nil {
						_, err = c.nc.Write([]byte(get[9:]))
					}
					if err == nil {
						_, err = c.tryReply(patience)
					}
					if err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := gw.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
		wg.Wait()
	}
}
