package cassandra_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
)

// wire makes connections, on one of which something happens to what has certain bytes in it, once.
type wire struct {
	mu   sync.Mutex // guards mark, do
	mark []byte
	do   func(c *wired, b []byte) (int, error)
}

func (w *wire) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &wired{Conn: c, w: w}, nil
}

func (w *wire) arm(mark string, do func(c *wired, b []byte) (int, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mark, w.do = []byte(mark), do
}

type wired struct {
	net.Conn
	w    *wire
	read atomic.Int64 // bytes
	deaf atomic.Bool  // what comes is lost

	mu   sync.Mutex // guards kept, held
	held bool
	kept []byte
}

func (c *wired) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	if c.deaf.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *wired) Write(b []byte) (int, error) {
	c.w.mu.Lock()
	var do func(c *wired, b []byte) (int, error)
	if c.w.do != nil && bytes.Contains(b, c.w.mark) {
		do, c.w.do = c.w.do, nil
	}
	c.w.mu.Unlock()
	if do != nil {
		return do(c, b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		c.kept = append(c.kept, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// testTrouble is about servers and networks that fail. It kills the server, and leaves it with other settings, passwords and TLS
// among them.
func testTrouble(t *testing.T, n *node) {
	n.keyspace(t, "trouble", "")
	w, doubts := &wire{}, &atomic.Int64{}
	opt := cassandra.Options{Keyspace: "trouble", Create: true}
	s := n.open(t, opt.Observed(w, func(error) { doubts.Add(1) }))
	opt.Bound = 500 * time.Millisecond
	hasty := n.open(t, opt.Observed(w, nil))
	saved := func(key string) {
		t.Helper()
		ok(t, "Save", s.Save(in10s(t), key, record("old"), store.Always))
	}
	cut := func(c *wired, _ []byte) (int, error) {
		c.Close()
		return 0, net.ErrClosed
	}
	// answerLost has the server do what it is sent, and cuts the connection when that is to be seen.
	answerLost := func(key string, done func(rec store.Record, err error) bool) func(c *wired, b []byte) (int, error) {
		return func(c *wired, b []byte) (int, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.deaf.Store(true)
			n, err := c.Conn.Write(b)
			for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if done(hasty.Inspect(context.Background(), key)) {
					break
				}
			}
			c.Close()
			return n, err
		}
	}

	t.Run("an answer that is lost is found out", func(t *testing.T) {
		saved("lost")
		before := doubts.Load()
		w.arm("written", answerLost("lost", func(rec store.Record, _ error) bool { return string(rec.Data) == "written" }))
		ok(t, "Save", s.Save(in10s(t), "lost", record("written"), store.IfVersion(store.VersionOf([]byte("old"), 0))))
		wantData(t, s, "lost", "written")
		w.arm("written", answerLost("lost", func(_ store.Record, err error) bool { return errors.Is(err, store.ErrAbsent) }))
		if existed, err := s.Delete(in10s(t), "lost", store.IfVersion(store.VersionOf([]byte("written"), 0))); !existed || err != nil {
			t.Errorf("Delete: %v, %v", existed, err)
		}
		if got := doubts.Load() - before; got != 2 {
			t.Errorf("%d were in doubt, want 2", got)
		}
	})
	t.Run("a request that is lost is unknown, and did not happen", func(t *testing.T) {
		saved("cut")
		w.arm("written", cut)
		wantErr(t, "Save", s.Save(in10s(t), "cut", record("written"), store.Always), store.ErrUnknown)
		wantData(t, s, "cut", "old")
		w.arm("old", cut)
		_, err := s.Delete(in10s(t), "cut", store.IfVersion(store.VersionOf([]byte("old"), 0)))
		wantErr(t, "Delete", err, store.ErrUnknown)
		w.arm("old", cut)
		wantErr(t, "Touch", s.Touch(in10s(t), "cut", time.Now().Add(time.Minute)), store.ErrUnknown)
		wantData(t, s, "cut", "old")
		mark := store.Mark{Identity: "identity"}
		ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, store.Mark{Identity: "first"}))
		w.arm("identity", cut)
		wantErr(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{Identity: "first"}, mark), store.ErrUnknown)
		w.arm("identity", func(c *wired, b []byte) (int, error) {
			c.deaf.Store(true)
			n, err := c.Conn.Write(b)
			waitFor(t, "the mark", func() error {
				if m, err := hasty.Mark(context.Background()); m != mark {
					return fmt.Errorf("%v, %v", m, err)
				}
				return nil
			})
			c.Close()
			return n, err
		})
		ok(t, "SwapMark whose answer is lost", s.SwapMark(in10s(t), store.Mark{Identity: "first"}, mark))
		w.arm("token", cut)
		wantErr(t, "Lock", s.Lock(in10s(t), "cut", "token", time.Minute), store.ErrUnknown)
		ok(t, "Lock", s.Lock(in10s(t), "cut", "token", time.Minute))
		w.arm("token", cut)
		_, err = s.Unlock(in10s(t), "cut", "token")
		wantErr(t, "Unlock", err, store.ErrUnknown)
		if holder, _, err := s.LockHolder(in10s(t), "cut"); holder != "token" {
			t.Errorf("LockHolder: %q, %v", holder, err)
		}
	})
	t.Run("a write that is late changes nothing that has changed since", func(t *testing.T) {
		saved("late")
		var held *wired
		w.arm("written late", func(c *wired, b []byte) (int, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			held, c.held, c.kept = c, true, bytes.Clone(b)
			return len(b), nil
		})
		err := hasty.Save(in10s(t), "late", record("written late"), store.Always)
		wantErr(t, "Save", err, store.ErrUnknown)
		ok(t, "Save by another", s.Save(in10s(t), "late", record("newer"), store.Always))
		held.mu.Lock()
		before := held.read.Load()
		ok(t, "deadline", held.SetWriteDeadline(time.Time{}))
		_, err = held.Conn.Write(held.kept)
		held.held = false
		held.mu.Unlock()
		ok(t, "write", err)
		waitFor(t, "the late one is answered", func() error {
			if held.read.Load() == before {
				return errors.New("not yet")
			}
			return nil
		})
		wantData(t, s, "late", "newer")
	})
	t.Run("a server that stands still is unavailable, and nothing has happened", func(t *testing.T) {
		saved("paused")
		n.Pause()
		defer n.Resume()
		begun := time.Now()
		_, err := hasty.Load(in10s(t), "paused")
		wantErr(t, "Load", err, store.ErrUnavailable)
		_, err = hasty.InspectAll(in10s(t), []string{"paused"})
		wantErr(t, "InspectAll", err, store.ErrUnavailable)
		u := hasty.Under(store.Mark{Identity: "identity"})
		for what, err := range map[string]error{"Save": u.Save(in10s(t), "paused", record("new"), store.Always),
			"Touch": u.Touch(in10s(t), "paused", time.Now().Add(time.Hour))} {
			if store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("%s: %v", what, err)
			}
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("they took %v, and each may take half a second", took)
		}
		n.Resume()
		waitFor(t, "it answers", func() error { _, err := hasty.Load(in10s(t), "paused"); return err })
		wantData(t, s, "paused", "old")
	})
	// Writers count, each in a session of his own, while the server is killed. What was acknowledged is there afterwards, or
	// something unknown that came behind it; nobody is told meanwhile that he has no session.
	t.Run("a server that is killed", func(t *testing.T) {
		const writers = 8
		var acked, tried [writers]int
		var done atomic.Bool
		var wg sync.WaitGroup
		for i := range writers {
			key := fmt.Sprint("counter", i)
			ok(t, "Save", s.Save(in10s(t), key, record("0"), store.Always))
			wg.Go(func() {
				for !done.Load() {
					tried[i]++
					switch err := s.Save(in10s(t), key, record(strconv.Itoa(tried[i])), store.Always); store.OutcomeOf(err) {
					case store.OK:
						acked[i] = tried[i]
					case store.OutcomeUnavailable:
						tried[i]-- // it was certainly not done, so the number is still to be had
						time.Sleep(10 * time.Millisecond)
					case store.OutcomeUnknown:
					default:
						t.Errorf("Save: %v", err)
					}
					if _, err := s.Load(in10s(t), key); errors.Is(err, store.ErrAbsent) {
						t.Error("logged out")
					}
				}
			})
		}
		waitFor(t, "they have written", func() error {
			for i := range writers {
				if rec, err := s.Load(in10s(t), fmt.Sprint("counter", i)); err != nil || len(rec.Data) < 2 {
					return fmt.Errorf("%q, %v", rec.Data, err)
				}
			}
			return nil
		})
		n.Kill()
		waitFor(t, "it is noticed", func() error {
			if _, err := hasty.Load(in10s(t), "lost"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrAbsent) {
				return fmt.Errorf("Load: %v", err)
			}
			return nil
		})
		late := n.open(t, opt)
		opt := opt
		opt.Create, opt.Table = false, "missing"
		never := n.open(t, opt)
		_, err := late.Load(in10s(t), "counter0")
		wantErr(t, "Load", err, store.ErrDown)
		_, err = late.Mark(in10s(t))
		wantErr(t, "Mark", err, store.ErrDown)
		n.Restart("cas_contention_timeout: 20ms", "authenticator: PasswordAuthenticator", "authorizer: CassandraAuthorizer", n.certs.Lines(false, true))
		waitFor(t, "it is back", func() error { _, err := s.Load(in10s(t), "counter0"); return err })
		waitFor(t, "who came late is there", func() error { _, err := late.Load(in10s(t), "counter0"); return err })
		waitFor(t, "a table that is missing is", func() error {
			err := never.Save(in10s(t), "k", record("x"), store.Always)
			if errors.Is(err, store.ErrDown) || store.OutcomeOf(err) != store.OutcomeUnavailable {
				return fmt.Errorf("Save: %w", err)
			}
			return nil
		})
		done.Store(true)
		wg.Wait()
		for i := range writers {
			rec, err := s.Inspect(in10s(t), fmt.Sprint("counter", i))
			ok(t, "Inspect", err)
			if got, err := strconv.Atoi(string(rec.Data)); err != nil || got < acked[i] || got > tried[i] || acked[i] == 0 {
				t.Errorf("writer %d: got %q, acknowledged %d, tried %d", i, rec.Data, acked[i], tried[i])
			}
		}
	})
	// The server gives up a transaction after 20 ms of contention, and does not know what became of it. Whoever is told that his
	// write was done has counted, and nobody else.
	n.exec(t, "CREATE TABLE trouble.foreign (id text PRIMARY KEY, data blob)")
	foreign := n.open(t, cassandra.Options{Keyspace: "trouble", Table: "foreign"}.Observed(nil, func(error) { doubts.Add(1) }))
	for name, s := range map[string]*cassandra.Store{"with a nonce": s, "without": foreign} {
		t.Run("a transaction of which the server does not know, "+name, func(t *testing.T) { contend(t, s, doubts) })
	}
}

func contend(t *testing.T, s *cassandra.Store, doubts *atomic.Int64) {
	waitFor(t, "Save", func() error { return s.Save(in10s(t), "contended", record("0"), store.Always) })
	before := doubts.Load()
	var added, unknown atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 12 {
				is, err := s.Inspect(in10s(t), "contended")
				if err != nil {
					continue // contention, too
				}
				was, _ := strconv.Atoi(string(is.Data))
				switch err := s.Save(in10s(t), "contended", record(strconv.Itoa(was+1)), store.IfVersion(is.Version())); store.OutcomeOf(err) {
				case store.OK:
					added.Add(1)
				case store.OutcomeUnknown:
					unknown.Add(1)
				case store.OutcomeConflict, store.OutcomeUnavailable:
				default:
					t.Errorf("Save: %v", err)
				}
			}
		})
	}
	wg.Wait()
	var got int64
	waitFor(t, "it is read", func() error {
		is, err := s.Inspect(in10s(t), "contended")
		if err == nil {
			got, err = strconv.ParseInt(string(is.Data), 10, 64)
		}
		return err
	})
	t.Logf("%d written, %d unknown, %d in doubt", added.Load(), unknown.Load(), doubts.Load()-before)
	if got < added.Load() || got > added.Load()+unknown.Load() || added.Load() == 0 {
		t.Errorf("counted %d: %d were acknowledged, %d are unknown", got, added.Load(), unknown.Load())
	}
	if doubts.Load() == before {
		t.Error("nothing was ever in doubt, so this shows nothing")
	}
}

// testRights is about who may do what, on a server that wants passwords.
func testRights(t *testing.T, n *node) {
	waitFor(t, "the operator is there", func() error { return n.plain.Query("LIST ROLES").Exec() })
	n.keyspace(t, "secured", "id text PRIMARY KEY, data blob")
	for user, rights := range map[string][]string{"app": {"SELECT", "MODIFY", "CREATE"}, "reader": {"SELECT"}, "nobody": nil} {
		n.exec(t, "CREATE ROLE "+user+" WITH PASSWORD = 'pw' AND LOGIN = true")
		for _, right := range rights {
			n.exec(t, "GRANT "+right+" ON KEYSPACE secured TO "+user)
		}
	}
	for _, user := range []string{"stranger:hush", "app:hush", ""} {
		if _, err := n.openURL(t, user, "secured"); err == nil || errors.Is(err, store.ErrDown) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", user, err)
		}
	}
	s, err := n.openURL(t, "app:pw", "secured")
	ok(t, "open", err)
	// This server gives up easily.
	waitFor(t, "Save", func() error { return s.Save(in10s(t), "k", record("old"), store.Always) })
	for user, want := range map[string][]string{
		"app":    nil,
		"reader": {`GRANT MODIFY ON "secured"."sessions" TO "reader"`, `GRANT MODIFY ON "secured"."sessile" TO "reader"`, "may not make it: CREATE TABLE"},
	} {
		s, err := n.openURL(t, user+":pw", "secured")
		ok(t, "open", err)
		f, err := s.Check(in10s(t))
		ok(t, "Check", err)
		if len(f.Against) != len(want) {
			t.Errorf("%s: against: %q", user, f.Against)
		}
		for _, want := range want {
			if !strings.Contains(strings.Join(f.Against, "\n"), want) {
				t.Errorf("%s: not said: %q in %q", user, want, f.Against)
			}
		}
	}
	r, err := n.openURL(t, "reader:pw", "secured")
	ok(t, "open", err)
	wantData(t, r, "k", "old")
	waitFor(t, "Save is refused", func() error {
		err := r.Save(in10s(t), "k", record("mine"), store.Always)
		if store.OutcomeOf(err) != store.OutcomeUnavailable || !strings.Contains(err.Error(), "MODIFY") {
			return fmt.Errorf("Save: %w", err)
		}
		return nil
	})
	err = r.SwapMark(in10s(t), store.Mark{}, store.Mark{Identity: "x"})
	if store.OutcomeOf(err) != store.OutcomeUnavailable || !strings.Contains(err.Error(), "Have it made") {
		t.Errorf("SwapMark: %v", err)
	}
	wantData(t, s, "k", "old")
	x, err := n.openURL(t, "nobody:pw", "secured")
	ok(t, "open", err)
	if _, err := x.Load(in10s(t), "k"); store.OutcomeOf(err) != store.OutcomeUnavailable || !strings.Contains(err.Error(), "SELECT") {
		t.Errorf("Load: %v", err)
	}
}
