package sqltable_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// kinds of locks, as a URL says them.
var kinds = []string{"none", "named&lock_name=app-{id}", "for-update"}

func eachLock(t *testing.T, test func(t *testing.T, srv sqlServer, params string)) {
	t.Helper()
	for name, srv := range servers(t) {
		withUser(srv.(sqlServer))
		for _, kind := range kinds {
			t.Run(name+", "+kind, func(t *testing.T) { test(t, srv.(sqlServer), "&lock="+kind) })
		}
	}
}

// More clients than there may be locks, on few sessions and on many: never two inside of one, never more connections than
// there may be, and each is let in or told that it was not, in its time.
func TestACrowdOfLocks(t *testing.T) {
	eachLock(t, func(t *testing.T, srv sqlServer, params string) {
		_, table := made(t, srv, plain[nameOf(srv)], params)
		opt := at(t, srv.URL("app")+"?op_bound=2s&table="+table+"&id=id&data=data&expires=expires"+params).Options()
		opt.MaxLocks, opt.MaxConns = 4, 3
		s := with(t, srv, opt)
		for k := range 6 {
			if err := s.Save(t.Context(), fmt.Sprint("k", k), hour("x"), store.Always); err != nil {
				t.Fatal(err)
			}
		}
		var inside [6]atomic.Int64
		var got, refused atomic.Int64
		var wg sync.WaitGroup
		for w := range 40 {
			wg.Go(func() {
				key, token := fmt.Sprint("k", w%6), fmt.Sprint("t", w)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				began := time.Now()
				err := s.Lock(ctx, key, token, time.Minute)
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("Lock took %v", took)
				}
				if err != nil {
					if refused.Add(1); store.OutcomeOf(err) != store.OutcomeUnavailable && !errors.Is(err, store.ErrLocked) {
						t.Errorf("Lock: %v", err)
					}
					return
				}
				got.Add(1)
				if n := inside[w%6].Add(1); n != 1 {
					t.Errorf("%d are inside of %s", n, key)
				}
				if err := s.Save(t.Context(), key, hour(token), store.Always); err != nil {
					t.Errorf("Save: %v", err)
				}
				if rec, err := s.Load(t.Context(), key); err != nil || string(rec.Data) != token {
					t.Errorf("Load: %q, %v", rec.Data, err)
				}
				inside[w%6].Add(-1)
				if held, err := s.Unlock(t.Context(), key, token); !held || err != nil {
					t.Errorf("Unlock: %v, %v", held, err)
				}
			})
		}
		wg.Wait()
		if got.Load() < 10 {
			t.Errorf("%d of 40 got in", got.Load())
		}
		count := "SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'app' AND command <> 'Daemon' AND id <> CONNECTION_ID()"
		if !isMySQL(srv) {
			count = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND application_name = 'sessile'"
		}
		var conns int
		if fmt.Sscan(srv.Exec(count), &conns); conns > 4+3+6 { // the two stores that only looked have a few
			t.Errorf("%d connections", conns)
		}
	})
}

// with opens a store with options that a URL cannot say.
func with(t *testing.T, srv server, opt sqltable.Options) *sqltable.Store {
	t.Helper()
	s, err := sqltable.Open(t.Context(), parse(t, srv.URL("app")), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A lock is over after its life, and one that is taken after it by the same token is another.
func TestALockIsOverAfterItsLife(t *testing.T) {
	eachLock(t, func(t *testing.T, srv sqlServer, params string) {
		s, _ := made(t, srv, plain[nameOf(srv)], params)
		if err := errors.Join(s.Save(t.Context(), "k", hour("x"), store.Always), s.Lock(t.Context(), "k", "t", 200*time.Millisecond),
			s.Lock(within(t, 5*time.Second), "k", "t", time.Minute)); err != nil {
			t.Fatal(err)
		}
		if token, left, err := s.LockHolder(t.Context(), "k"); token != "t" || left < 50*time.Second || err != nil {
			t.Errorf("LockHolder: %q, %v, %v", token, left, err)
		}
		if held, err := s.Unlock(t.Context(), "k", "another"); held || err != nil {
			t.Errorf("Unlock with another token: %v, %v", held, err)
		}
		if held, err := s.Unlock(t.Context(), "k", "t"); !held || err != nil {
			t.Errorf("Unlock: %v, %v", held, err)
		}
	})
}

// The connection is killed while it holds a lock: somebody else gets it, Unlock says that it was lost, and a write over the
// version that was read does not go through behind the other's.
func TestAConnectionIsKilledWhileItHoldsALock(t *testing.T) {
	eachLock(t, func(t *testing.T, srv sqlServer, params string) {
		s, table := made(t, as(srv, "site"), plain[nameOf(srv)], params)
		other := at(t, srv.URL("app")+"?op_bound=2s&table="+table+"&id=id&data=data&expires=expires"+params)
		if err := errors.Join(s.Save(t.Context(), "k", hour("old"), store.Always), s.Lock(t.Context(), "k", "t", time.Minute)); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Load(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		severed(srv, "site")
		if err := other.Lock(within(t, 5*time.Second), "k", "u", time.Minute); err != nil {
			t.Fatalf("the lock outlives its connection: %v", err)
		}
		if err := other.Save(t.Context(), "k", hour("other"), store.Always); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Unlock(t.Context(), "k", "u"); err != nil {
			t.Fatal(err)
		}
		err = s.Save(t.Context(), "k", hour("late"), store.IfVersion(rec.Version()))
		if err == nil || errors.Is(err, store.ErrAbsent) {
			t.Errorf("Save: %v", err)
		}
		if held, err := s.Unlock(t.Context(), "k", "t"); held || err != nil {
			t.Errorf("Unlock: %v, %v", held, err)
		}
		if rec, err := s.Load(t.Context(), "k"); err != nil || string(rec.Data) != "other" {
			t.Errorf("Load: %q, %v", rec.Data, err)
		}
		if err := s.Lock(within(t, 5*time.Second), "k", "t", time.Minute); err != nil {
			t.Errorf("Lock behind it: %v", err)
		}
	})
}

// The server stands still while locks are held and waited for: all that is asked for ends, and so does Close, with all its
// goroutines.
func TestTheServerStandsStillUnderLocks(t *testing.T) {
	for name, server := range servers(t) {
		for _, kind := range kinds {
			t.Run(name+", "+kind, func(t *testing.T) {
				defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
				srv := server.(sqlServer)
				s, _ := made(t, srv, plain[name], "&lock="+kind)
				for _, key := range []string{"a", "b", "c"} {
					if err := errors.Join(s.Save(t.Context(), key, hour("x"), store.Always), s.Lock(t.Context(), key, "t", time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Save(t.Context(), "d", hour("x"), store.Always); err != nil {
					t.Fatal(err)
				}
				waits := make(chan error, 1)
				go func() { waits <- s.Lock(context.WithoutCancel(t.Context()), "c", "u", time.Minute) }()
				srv.Pause()
				defer srv.Resume()
				for what, do := range map[string]func() error{
					"Unlock": func() error { _, err := s.Unlock(t.Context(), "a", "t"); return err },
					"Save":   func() error { return s.Save(t.Context(), "b", hour("y"), store.Always) },
					"Lock":   func() error { return s.Lock(within(t, time.Second), "d", "t", time.Minute) },
				} {
					began := time.Now()
					err := do()
					if took := time.Since(began); took > 4*time.Second || err == nil && what != "Unlock" || errors.Is(err, store.ErrAbsent) {
						t.Errorf("%s took %v: %v", what, took, err)
					}
				}
				began := time.Now()
				s.Close()
				if took := time.Since(began); took > 6*time.Second {
					t.Errorf("Close took %v", took)
				}
				select {
				case err := <-waits:
					if store.OutcomeOf(err) != store.OutcomeUnavailable {
						t.Errorf("Lock that waited: %v", err)
					}
				case <-time.After(3 * time.Second):
					t.Error("Lock outlives Close")
				}
			})
		}
	}
}

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// As many locks as there may be are held: another one is not to be had, and reads and writes go on.
func TestTooManyLocks(t *testing.T) {
	eachLock(t, func(t *testing.T, srv sqlServer, params string) {
		s, _ := made(t, srv, plain[nameOf(srv)], params+"&max_locks=2&max_conns=2")
		for _, key := range []string{"a", "b"} {
			if err := errors.Join(s.Save(t.Context(), key, hour("x"), store.Always), s.Lock(t.Context(), key, "t", time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Lock(within(t, 200*time.Millisecond), "c", "t", time.Minute); store.OutcomeOf(err) != store.OutcomeUnavailable {
			t.Errorf("Lock: %v", err)
		}
		for range 10 {
			if err := s.Save(t.Context(), "a", hour("y"), store.Always); err != nil {
				t.Errorf("Save: %v", err)
			}
			if _, err := s.Load(t.Context(), "b"); err != nil {
				t.Errorf("Load: %v", err)
			}
		}
		if held, err := s.Unlock(t.Context(), "a", "t"); !held || err != nil {
			t.Errorf("Unlock: %v, %v", held, err)
		}
		if err := s.Lock(within(t, 2*time.Second), "c", "t", time.Minute); err != nil {
			t.Errorf("Lock: %v", err)
		}
	})
}

// Behind a write under it the row is the lock's again: a page of the application waits.
func TestTheRowIsLockedAgainBehindAWrite(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, table := made(t, srv, plain[name], "&lock=for-update")
			if err := errors.Join(s.Save(t.Context(), "k", hour("x"), store.Always), s.Lock(t.Context(), "k", "t", time.Minute),
				s.Save(t.Context(), "k", hour("y"), store.Always)); err != nil {
				t.Fatal(err)
			}
			db := raw(t, srv.URL("app"))
			for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, err := db.Exec("SELECT 1 FROM " + table + " WHERE id = 'k' FOR UPDATE NOWAIT"); err != nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the application gets the row")
				}
			}
		})
	}
}
