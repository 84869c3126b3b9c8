package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// A fakeSentinel says what it is told to say.
type fakeSentinel struct {
	id, addr string

	mu      sync.Mutex // guards what follows
	primary string
	epoch   int
	flags   string
	pinged  time.Duration // since the first ping of the primary that was not answered; 0: all were
	others  []*fakeSentinel
	silent  bool
	refuses string
	ears    map[net.Conn]bool
}

func newFakeSentinel(t testing.TB, id, primary string) *fakeSentinel {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSentinel{id: id, addr: ln.Addr().String(), primary: primary, flags: "master", ears: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			conns[c] = true
			f.mu.Unlock()
			wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		for c := range conns {
			c.Close()
		}
		f.mu.Unlock()
		wg.Wait()
	})
	return f
}

func (f *fakeSentinel) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	var buf []byte
	list := func(words ...string) string {
		b := resp.AppendArrayLen(nil, len(words))
		for _, w := range words {
			b = resp.AppendBulkString(b, w)
		}
		return string(b)
	}
	for {
		args, n, _, err := resp.ParseRequest(buf, resp.Limits{}, nil)
		if err != nil {
			more := make([]byte, 4096)
			k, err := r.Read(more)
			if err != nil {
				return
			}
			buf = append(buf, more[:k]...)
			continue
		}
		var words []string
		for _, a := range args {
			words = append(words, string(a))
		}
		buf = buf[n:]
		f.mu.Lock()
		host, port, _ := net.SplitHostPort(f.primary)
		out := "-ERR unknown command\r\n"
		switch cmd := strings.Join(words, " "); {
		case f.silent:
			out = ""
		case f.refuses != "":
			out = f.refuses
		case cmd == "PING":
			out = list("pong", "")
		case cmd == "PSUBSCRIBE *":
			f.ears[c] = true
			out = "*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n"
		case strings.HasPrefix(cmd, "SENTINEL GET-MASTER"):
			out = list(host, port)
		case strings.HasPrefix(cmd, "SENTINEL MASTER "):
			out = list("ip", host, "port", port, "config-epoch", fmt.Sprint(f.epoch), "flags", f.flags, "down-after-milliseconds", "1000",
				"last-ping-sent", fmt.Sprint(f.pinged.Milliseconds()))
		case strings.HasPrefix(cmd, "SENTINEL SENTINELS"):
			out = fmt.Sprintf("*%d\r\n", len(f.others))
			for _, o := range f.others {
				host, port, _ := net.SplitHostPort(o.addr)
				out += list("ip", host, "port", port, "runid", o.id)
			}
		case cmd == "SENTINEL MYID":
			out = list(f.id)[len("*1\r\n"):]
		}
		f.mu.Unlock()
		if _, err := c.Write([]byte(out)); err != nil {
			return
		}
	}
}

// publish tells everybody who listens.
func (f *fakeSentinel) publish(name, about string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.ears {
		fmt.Fprintf(c, "*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(about), about)
	}
}

func (f *fakeSentinel) listeners() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ears)
}

func (f *fakeSentinel) set(change func(f *fakeSentinel)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// newFakes starts two primaries, and three Sentinels of the first that know each other.
func newFakes(t *testing.T) (a, b *testserver.RedisServer, fakes []*fakeSentinel) {
	a, b = testserver.Redis(t), testserver.Redis(t)
	b.Do("SET", "other", "1") // an empty one would be taken for one that has forgotten everything
	for i := range 3 {
		fakes = append(fakes, newFakeSentinel(t, fmt.Sprint("id", i), a.Addr))
	}
	for i, f := range fakes {
		f.others = []*fakeSentinel{fakes[(i+1)%3], fakes[(i+2)%3]}
	}
	return a, b, fakes
}

func urlOf(fakes []*fakeSentinel, query string) string {
	var hosts []string
	for _, f := range fakes {
		hosts = append(hosts, f.addr)
	}
	return "redis-sentinel://" + strings.Join(hosts, ",") + "/mymaster/0?sentinel_connect_timeout=1s&replay=off&" + query
}

// at waits until what is saved goes to server.
func at(t *testing.T, s *Store, server *testserver.RedisServer) {
	t.Helper()
	eventually(t, "writes at "+server.Addr, func() bool {
		key := fmt.Sprint("k", time.Now().UnixNano())
		return s.Save(context.Background(), key, live("x"), store.Always) == nil && server.Do("EXISTS", key) == int64(1)
	})
}

// stays looks for half a second that every write goes to server.
func stays(t *testing.T, s *Store, server *testserver.RedisServer, while string) {
	t.Helper()
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		key := fmt.Sprint("k", time.Now().UnixNano())
		if err := s.Save(context.Background(), key, live("x"), store.Always); err != nil || server.Do("EXISTS", key) != int64(1) {
			t.Fatalf("%s: a write did not go to the primary: %v", while, err)
		}
	}
}

func TestWhichServerIsThePrimary(t *testing.T) {
	a, b, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, ""))
	at(t, s, a)

	fakes[2].set(func(f *fakeSentinel) { f.primary, f.epoch = b.Addr, 9 })
	stays(t, s, a, "one Sentinel names another server, with a higher epoch")
	host, port, _ := net.SplitHostPort(b.Addr)
	ahost, aport, _ := net.SplitHostPort(a.Addr)
	eventually(t, "a listener", func() bool { return fakes[2].listeners() > 0 })
	fakes[2].publish("+switch-master", "mymaster "+ahost+" "+aport+" "+host+" "+port)
	stays(t, s, a, "it publishes that this is the primary")
	fakes[2].set(func(f *fakeSentinel) { f.primary, f.epoch, f.silent = a.Addr, 9, true })
	stays(t, s, a, "one Sentinel does not answer")
	for _, f := range fakes[:2] {
		f.set(func(f *fakeSentinel) { f.epoch = 10 })
	}
	stays(t, s, a, "the epoch is higher and the address is the old one")
	for _, f := range fakes[:2] {
		f.set(func(f *fakeSentinel) { f.primary = b.Addr })
	}
	at(t, s, b)

	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.primary, f.epoch, f.silent = a.Addr, 3, false })
	}
	stays(t, s, b, "all Sentinels say what they said earlier, and the server is still a primary")
	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.silent = true })
	}
	stays(t, s, b, "no Sentinel answers")
	time.Sleep(fresh) // what they said is stale by then
	stays(t, s, b, "no Sentinel has answered for long")
	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.silent = false })
	}
	stays(t, s, b, "they answer again, what they said earlier")
	b.Do("REPLICAOF", ahost, aport)
	at(t, s, a)

	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.primary, f.epoch = b.Addr, 11 })
	}
	if err := s.Save(context.Background(), "k", live("x"), store.Always); err == nil {
		eventually(t, "no writes at a replica", func() bool { return s.Save(context.Background(), "k", live("x"), store.Always) != nil })
	}
	b.Do("REPLICAOF", "NO", "ONE")
	at(t, s, b)
}

// Two of three Sentinels take back what one of them has said before it has heard of the switch, and one that was not asked since
// the switch has said the same under a higher epoch.
func TestAnEpochFromBeforeTheSwitch(t *testing.T) {
	now := time.Now()
	moved := now.Add(-time.Second)
	views := []view{
		{id: "1", addr: "a", epoch: 3, asked: now},
		{id: "2", addr: "a", epoch: 10, asked: moved.Add(-time.Millisecond)},
		{id: "3", addr: "a", epoch: 3, asked: now},
	}
	if v := sum(after(views, moved), 3, now); v.addr != "a" || v.epoch != 3 {
		t.Errorf("got %+v", v)
	}
	views[1] = view{id: "2", addr: "a", epoch: 1 << 60, asked: now} // whatever that one means
	if v := sum(views, 3, now); v.addr != "a" || v.epoch != 3 {
		t.Errorf("got %+v", v)
	}
}

// isDown reports whether a question that is not answered comes to store.ErrDown.
func isDown(t *testing.T, s *Store) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := s.Ping(ctx)
	if err == nil {
		t.Fatal("it was answered")
	}
	return errors.Is(err, store.ErrDown)
}

// That this gateway is not answered says nothing about others. That a majority of the Sentinels is not answered, either, does.
func TestThatNobodyIsAnsweredIsForTheSentinelsToSay(t *testing.T) {
	a, _, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, ""))
	at(t, s, a)
	a.Pause()
	if isDown(t, s) {
		t.Error("all Sentinels are answered")
	}
	fakes[0].set(func(f *fakeSentinel) { f.pinged = time.Minute })
	for range 3 {
		if isDown(t, s) {
			t.Error("two of three Sentinels are answered")
		}
	}
	fakes[1].set(func(f *fakeSentinel) { f.pinged = time.Minute })
	eventually(t, "nobody is answered", func() bool { return isDown(t, s) })
	fakes[1].set(func(f *fakeSentinel) { f.pinged = 10 * time.Millisecond }) // it was, after this was asked
	eventually(t, "somebody was answered", func() bool { return !isDown(t, s) })
	a.Kill()
	for range 3 {
		if isDown(t, s) {
			t.Error("the address refuses connections: another server may have taken its place")
		}
	}
}

// A Sentinel that still waits for the primary's answer does not take it for down yet, and confirms nothing either.
func TestASilentPrimaryIsNotConfirmed(t *testing.T) {
	now := time.Now()
	silent := func(d ...time.Duration) (views []view) {
		for i, d := range d {
			v := view{asked: now, id: fmt.Sprint(i), addr: "p:1", downAfter: 30 * time.Second}
			if d > 0 {
				v.silent = now.Add(-d)
			}
			views = append(views, v)
		}
		return views
	}
	for _, tc := range []struct {
		views []view
		want  time.Duration // ago
	}{
		{silent(0, 0, 0), 0},
		{silent(8*time.Second, 0, 0), 0},
		{silent(8*time.Second, 0, 7*time.Second), 7 * time.Second},
		{silent(8*time.Second, 9*time.Second, 7*time.Second), 8 * time.Second},
	} {
		if got := now.Sub(sum(tc.views, 3, now).confirmed); got != tc.want {
			t.Errorf("%+v: confirmed %v ago, want %v", tc.views, got, tc.want)
		}
	}
}

// Who renews a lease while nobody is answered, and is answered by the next primary, knows that, too.
func TestARenewalThatWasHeldUp(t *testing.T) {
	a, b, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, "hold=20s"))
	at(t, s, a)
	w := s.Workflow("w")
	renew := func() store.Renewal {
		t.Helper()
		r, err := w.Renew(t.Context(), "g", nil, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if renew().Down {
		t.Error("everybody is answered")
	}
	eventually(t, "a listener", func() bool { return fakes[0].listeners() > 0 })
	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.pinged, f.flags = time.Minute, "master,o_down" })
	}
	fakes[0].publish("+odown", "master mymaster "+strings.ReplaceAll(a.Addr, ":", " ")+" #quorum 2/2")
	eventually(t, "a hold", func() bool { return s.node.gate.shut.Load()&announced != 0 })
	got := make(chan store.Renewal, 1)
	asked := time.Now()
	go func() { got <- renew() }()
	eventually(t, "nobody is answered a second later", func() bool { return s.node.silent(asked.Add(time.Second)) })
	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.pinged, f.flags, f.primary, f.epoch = 0, "master", b.Addr, 1 })
	}
	if r := <-got; !r.Down {
		t.Error("nobody was answered when it was asked")
	}
	if renew().Down {
		t.Error("everybody is answered again")
	}
	// A ping that has just been sent, to the next one, does not make that undone, nor is it a silence itself.
	for _, f := range fakes {
		f.set(func(f *fakeSentinel) { f.pinged = 20 * time.Millisecond })
	}
	eventually(t, "pings are seen", func() bool {
		s.watcher.mu.Lock()
		defer s.watcher.mu.Unlock()
		for _, f := range fakes {
			if s.watcher.sentinels[f.addr].view.silent.IsZero() {
				return false
			}
		}
		return true
	})
	at(t, s, b)
	if !s.node.silent(asked.Add(time.Second)) || len(*s.watcher.silences.Load()) != 1 {
		t.Errorf("the pings of another primary count: %v", *s.watcher.silences.Load())
	}
}

// The same with Sentinels that find it out themselves, long before they would replace the primary.
func TestSentinelsKnowThatNobodyIsAnswered(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, DownAfter: time.Minute})
	for how, stop := range map[string]func(){"paused": set.Nodes[0].Pause, "killed": set.Nodes[0].Kill} {
		t.Run(how, func(t *testing.T) {
			set.Nodes[0].Restart()
			s := openLoud(t, set.URL())
			at(t, s, set.Nodes[0])
			stop()
			eventually(t, "nobody is answered", func() bool { return isDown(t, s) })
		})
	}
}

func TestAnnouncements(t *testing.T) {
	a, _, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, "hold=1s"))
	at(t, s, a)
	held := func() bool { return s.node.gate.shut.Load()&announced != 0 }
	for _, f := range fakes {
		eventually(t, "a listener", func() bool { return f.listeners() > 0 })
	}
	fakes[0].publish("+try-failover", "master other 127.0.0.1 1")
	stays(t, s, a, "a failover of another master is announced")

	fakes[0].set(func(f *fakeSentinel) { f.flags = "master,failover_in_progress" })
	fakes[0].publish("+try-failover", "master mymaster "+strings.ReplaceAll(a.Addr, ":", " "))
	eventually(t, "a hold", held)
	if err := s.Save(context.Background(), "k", live("x"), store.Always); err != nil || held() {
		t.Errorf("Save while a failover is announced: got %v, before the end of the hold: %v", err, held())
	}
	fakes[0].publish("+try-failover", "master mymaster "+strings.ReplaceAll(a.Addr, ":", " "))
	stays(t, s, a, "who has cried wolf cries again")

	fakes[2].set(func(f *fakeSentinel) { f.flags = "master,failover_in_progress" }) // published while nobody listened
	eventually(t, "a hold because of flags", held)
	fakes[2].set(func(f *fakeSentinel) { f.flags = "master" })
	fakes[0].set(func(f *fakeSentinel) { f.flags = "master" })
	eventually(t, "its end before its time", func() bool { return !held() })
	fakes[0].set(func(f *fakeSentinel) { f.flags = "master,failover_in_progress" })

	fakes[1].publish("+odown", "master mymaster "+strings.ReplaceAll(a.Addr, ":", " ")+" #quorum 2/2")
	eventually(t, "a hold", held)
	fakes[0].set(func(f *fakeSentinel) { f.flags = "master" })
	eventually(t, "its end before its time", func() bool { return !held() })
}

func TestLease(t *testing.T) {
	a, _, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, "safety=strict&lease=300ms"))
	at(t, s, a)
	fakes[0].set(func(f *fakeSentinel) { f.silent = true })
	stays(t, s, a, "one Sentinel does not answer")
	fakes[1].set(func(f *fakeSentinel) { f.flags = "master,s_down" })
	eventually(t, "no lease", func() bool { return !s.node.Trusted() })
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := s.Save(ctx, "k", live("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable || s.node.Enter() {
		t.Errorf("Save without a lease: got %v", err)
	}
	if _, err := s.Load(ctx, "k"); store.OutcomeOf(err) != store.OutcomeUnavailable {
		t.Errorf("Load without a lease: got %v", err)
	}
	fakes[1].set(func(f *fakeSentinel) { f.flags = "master" })
	at(t, s, a)

	// An answer that comes after the end of the lease is none.
	a.Do("CLIENT", "PAUSE", "1500", "WRITE")
	done := make(chan error)
	go func() { done <- s.Save(context.Background(), "late", live("x"), store.Always) }()
	eventually(t, "the write at the server", func() bool {
		return strings.Contains(fmt.Sprint(a.Do("INFO", "clients")), "blocked_clients:1")
	})
	fakes[1].set(func(f *fakeSentinel) { f.silent = true })
	if err := <-done; store.OutcomeOf(err) != store.OutcomeUnknown {
		t.Errorf("an answer after the end of the lease: got %v", err)
	}
}

func TestSentinelsThatAreNotNamed(t *testing.T) {
	a, b, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes[:1], ""))
	at(t, s, a)
	fakes[0].set(func(f *fakeSentinel) { f.primary = b.Addr })
	stays(t, s, a, "the one that was named stands alone")
	fakes[1].set(func(f *fakeSentinel) { f.primary = b.Addr })
	at(t, s, b)
}

func TestSentinelsThatRefuse(t *testing.T) {
	_, _, fakes := newFakes(t)
	for answer, want := range map[string]string{
		"-NOAUTH Authentication required.\r\n":   "NOAUTH",
		"-WRONGPASS invalid\r\n":                 "WRONGPASS",
		"-ERR No such master with that name\r\n": "no master of that name",
	} {
		for _, f := range fakes {
			f.set(func(f *fakeSentinel) { f.refuses = answer })
		}
		o := Options{Master: "mymaster"}
		for _, f := range fakes {
			o.Sentinels = append(o.Sentinels, f.addr)
		}
		s, err := Connect(context.Background(), o)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", answer, err)
		}
	}
}
