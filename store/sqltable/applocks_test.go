package sqltable_test

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// A page of an application that locks and a lock of ours are never inside at one time, whoever is first.
func TestApplicationsLocks(t *testing.T) {
	locks := func(app testapp.App) bool { return app.Locks }
	eachApp(t, locks, func(t *testing.T, app testapp.App, url string, lib *testapp.Library) {
		s := at(t, url)
		id := app.NewID(int(number.Add(1)))
		lib.Write(id, "x", app.Life)

		lib.Open(id)
		if err := s.Lock(within(t, 300*time.Millisecond), id, "t", time.Minute); !errors.Is(err, store.ErrLocked) {
			t.Errorf("Lock while a page is open: %v", err)
		}
		if _, err := s.Load(t.Context(), id); err != nil {
			t.Errorf("Load while a page is open: %v", err)
		}
		entered := make(chan error)
		go func() { entered <- s.Lock(within(t, 10*time.Second), id, "t", time.Minute) }()
		lib.Close()
		if err := <-entered; err != nil {
			t.Fatalf("Lock behind the page: %v", err)
		}

		opened := make(chan struct{})
		go func() { lib.Open(id); close(opened) }()
		select {
		case <-opened:
			t.Error("a page opened under our lock")
		case <-time.After(300 * time.Millisecond):
		}
		if held, err := s.Unlock(t.Context(), id, "t"); !held || err != nil {
			t.Errorf("Unlock: %v, %v", held, err)
		}
		select {
		case <-opened:
			lib.Close()
		case <-time.After(10 * time.Second):
			t.Fatal("no page opens behind our lock")
		}
	})
}

// A write that waits for a row that somebody else holds is told in time that it did not happen.
func TestAWriteToARowThatIsHeld(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "deadline in seconds")
			must(t, "Save", s.Save(t.Context(), "k", hour("old"), store.Always))
			tx, err := raw(t, srv.URL("app")).BeginTx(t.Context(), nil)
			must(t, "BeginTx", err)
			defer tx.Rollback()
			_, err = tx.Exec("SELECT 1 FROM " + s.Table() + " WHERE id = 'k' FOR UPDATE")
			must(t, "SELECT FOR UPDATE", err)
			if err := s.Save(t.Context(), "k", hour("late"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("Save: %v, want that it is unavailable", err)
			}
		})
	}
}

// rowLocked opens stores, each of them a process of its own, on one table whose locks are the rows'.
func rowLocked(t *testing.T, s server, n int) (table string, stores []*sqltable.Store) {
	t.Helper()
	first := open(t, s, "deadline in seconds")
	u, err := url.Parse(s.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	opt := first.Options()
	opt.Table.Lock.Kind, opt.Bound = sqltable.ForUpdate, 1500*time.Millisecond
	for range n {
		st, err := sqltable.Open(t.Context(), u, opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		stores = append(stores, st)
	}
	return opt.Table.Name, stores
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// kill ends the connections with a transaction that is open, but for those that were killed before.
func kill(t *testing.T, s server, before map[string]bool) {
	t.Helper()
	// MariaDB makes a new list only where the last one was looked at more than a tenth of a second ago.
	list, end := "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx", "KILL %s"
	if !strings.HasPrefix(s.URL(""), "mysql") {
		list, end = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'", "SELECT pg_terminate_backend(%s)"
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(150 * time.Millisecond) {
		out, err := s.Try("app", list)
		must(t, "list of transactions", err)
		killed := false
		for _, id := range strings.Fields(out) {
			if !before[id] {
				s.Try("app", fmt.Sprintf(end, id)) // one that has ended meanwhile is no error
				before[id], killed = true, true
			}
		}
		if killed {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no transaction is open")
		}
	}
}

func TestRowLocks(t *testing.T) {
	for name, srv := range servers(t) {
		locked := func(t *testing.T, s *sqltable.Store, key string, want bool) {
			t.Helper()
			err := s.Lock(within(t, 200*time.Millisecond), key, "other", time.Minute)
			if got := errors.Is(err, store.ErrLocked); got != want || err != nil && !got {
				t.Errorf("Lock by another one: %v, want locked: %v", err, want)
			}
			if err == nil {
				s.Unlock(t.Context(), key, "other")
			}
		}
		unlock := func(t *testing.T, s *sqltable.Store, want bool) {
			t.Helper()
			if held, err := s.Unlock(t.Context(), "k", "t"); held != want || err != nil {
				t.Errorf("Unlock: %v, %v, want %v", held, err, want)
			}
		}

		t.Run(name+", a write under it is there at once, and the lock goes on", func(t *testing.T) {
			_, s := rowLocked(t, srv, 2)
			must(t, "Save", s[0].Save(t.Context(), "k", hour("a"), store.Always))
			must(t, "Lock", s[0].Lock(within(t, time.Second), "k", "t", time.Minute))
			for _, text := range []string{"b", "c"} {
				must(t, "Save", s[0].Save(t.Context(), "k", hour(text), store.Always))
				if rec, err := s[1].Load(t.Context(), "k"); err != nil || string(rec.Data) != text {
					t.Errorf("another one reads %q, %v, want %q", rec.Data, err, text)
				}
				locked(t, s[1], "k", true)
			}
			must(t, "Touch", s[0].Touch(t.Context(), "k", time.Now().Add(2*time.Hour)))
			locked(t, s[1], "k", true)
			unlock(t, s[0], true)
			locked(t, s[1], "k", false)
		})

		t.Run(name+", a condition that fails under it", func(t *testing.T) {
			_, s := rowLocked(t, srv, 2)
			must(t, "Save", s[0].Save(t.Context(), "k", hour("a"), store.Always))
			must(t, "Lock", s[0].Lock(within(t, time.Second), "k", "t", time.Minute))
			if err := s[0].Save(t.Context(), "k", hour("b"), store.IfAbsent); !errors.Is(err, store.ErrConflict) {
				t.Errorf("Save: %v", err)
			}
			locked(t, s[1], "k", true)
			unlock(t, s[0], true)
		})

		t.Run(name+", a row that is not there, made and deleted under it", func(t *testing.T) {
			_, s := rowLocked(t, srv, 2)
			must(t, "Lock", s[0].Lock(within(t, time.Second), "k", "t", time.Minute))
			locked(t, s[1], "k", true)
			must(t, "Save", s[0].Save(t.Context(), "k", hour("a"), store.IfAbsent))
			locked(t, s[1], "k", true)
			if existed, err := s[0].Delete(t.Context(), "k", store.Always); !existed || err != nil {
				t.Errorf("Delete: %v, %v", existed, err)
			}
			locked(t, s[1], "k", true)
			must(t, "Save", s[0].Save(t.Context(), "k", hour("b"), store.IfAbsent))
			unlock(t, s[0], true)
			locked(t, s[1], "k", false)
		})

		t.Run(name+", its connection is killed", func(t *testing.T) {
			_, s := rowLocked(t, srv, 2)
			must(t, "Save", s[0].Save(t.Context(), "k", hour("a"), store.Always))
			before := map[string]bool{}
			for _, write := range []bool{false, true} {
				must(t, "Lock", s[0].Lock(within(t, time.Second), "k", "t", time.Minute))
				kill(t, srv, before)
				if write {
					err := s[0].Save(within(t, 5*time.Second), "k", hour("b"), store.Always)
					if o := store.OutcomeOf(err); err != nil && o != store.OutcomeUnavailable && o != store.OutcomeUnknown {
						t.Errorf("Save: %v", err)
					}
				}
				unlock(t, s[0], false)
				locked(t, s[1], "k", false)
				must(t, "Save afterwards", s[0].Save(within(t, 5*time.Second), "k", hour("c"), store.Always))
			}
		})

		t.Run(name+", two processes count", func(t *testing.T) {
			_, s := rowLocked(t, srv, 2)
			const each = 15
			var wg sync.WaitGroup
			for w := range 6 {
				st, token := s[w%2], fmt.Sprint("w", w)
				wg.Go(func() {
					for range each {
						if err := st.Lock(within(t, 30*time.Second), "k", token, time.Minute); err != nil {
							t.Errorf("Lock: %v", err)
							return
						}
						rec, err := st.Load(t.Context(), "k") // the first of all finds nothing
						if err != nil && !errors.Is(err, store.ErrAbsent) {
							t.Errorf("Load: %v", err)
						}
						n, _ := strconv.Atoi(string(rec.Data))
						if err := st.Save(t.Context(), "k", hour(strconv.Itoa(n+1)), store.Always); err != nil {
							t.Errorf("Save: %v", err)
						}
						if _, err := st.Unlock(t.Context(), "k", token); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
			wg.Wait()
			if rec, err := s[0].Load(t.Context(), "k"); err != nil || string(rec.Data) != strconv.Itoa(6*each) {
				t.Errorf("counted %q, %v, want %d", rec.Data, err, 6*each)
			}
		})
	}
}
