package sqltable_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// sqlServer is what the tests of trouble need of either kind.
type sqlServer interface {
	server
	Stop()
	Kill()
	Pause()
	Resume()
	Restart(args ...string)
	Try(db, sql string) (string, error)
}

// plain is a table for either kind of server.
var plain = map[string]string{
	"MariaDB":    "(id VARBINARY(64) PRIMARY KEY, data LONGBLOB, expires INT UNSIGNED) ENGINE=InnoDB",
	"PostgreSQL": "(id varchar(64) PRIMARY KEY, data bytea, expires integer)",
}

// withUser makes a user who may do in app what applications may, and no more.
func withUser(s sqlServer) {
	if isMySQL(s) {
		s.Exec("CREATE USER site; GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP ON app.* TO site")
	} else {
		s.Exec("CREATE USER site; GRANT ALL ON SCHEMA public TO site; ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO site")
	}
}

func nameOf(s server) string {
	return map[bool]string{true: "MariaDB", false: "PostgreSQL"}[isMySQL(s)]
}

func isMySQL(s server) bool { return strings.HasPrefix(s.URL(""), "mysql") }

// severed ends the connections of a user.
func severed(s server, user string) {
	if isMySQL(s) {
		s.Exec("KILL CONNECTION USER " + user)
	} else {
		s.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '" + user + "'")
	}
}

// An operation, and how to see that it was done.
type operation struct {
	name string
	read bool
	do   func(ctx context.Context, s *sqltable.Store, key string) error
	done func(rec store.Record, err error) bool
}

var operations = []operation{
	{"Load", true, func(ctx context.Context, s *sqltable.Store, key string) error { _, err := s.Load(ctx, key); return err }, nil},
	{"Inspect", true, func(ctx context.Context, s *sqltable.Store, key string) error {
		_, err := s.Inspect(ctx, key)
		return err
	}, nil},
	{"InspectAll", true, func(ctx context.Context, s *sqltable.Store, key string) error {
		all, err := s.InspectAll(ctx, []string{key})
		if err == nil && all[0] == nil {
			return store.ErrAbsent
		}
		return err
	}, nil},
	{"Scan", true, func(ctx context.Context, s *sqltable.Store, key string) error {
		page, err := s.Scan(ctx, "", 1000)
		if err == nil && len(page.Keys) == 0 {
			return store.ErrAbsent
		}
		return err
	}, nil},
	{"Mark", true, func(ctx context.Context, s *sqltable.Store, key string) error {
		m, err := s.Mark(ctx)
		if err == nil && m != mark {
			return store.ErrAbsent
		}
		return err
	}, nil},
	{"Save", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		return s.Save(ctx, key, hour("new"), store.Always)
	}, isNew},
	{"Save under the mark", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		return s.Under(mark).Save(ctx, key, hour("new"), store.Always)
	}, isNew},
	{"Save over a version", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		return s.Save(ctx, key, hour("new"), store.IfVersion(store.VersionOf([]byte("old"), 0)))
	}, isNew},
	{"SaveAll", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		return s.SaveAll(ctx, []store.Write{{Key: key + "b", Record: hour("new")}, {Key: key, Record: hour("new"), Condition: store.IfPresent}})
	}, isNew},
	{"Append", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		_, err := s.Append(ctx, key, []byte("er"), time.Now().Add(time.Hour))
		return err
	}, func(rec store.Record, err error) bool { return err == nil && string(rec.Data) == "older" }},
	{"Touch", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		return s.Touch(ctx, key, time.Now().Add(3*time.Hour))
	}, func(rec store.Record, err error) bool { return err == nil && time.Until(rec.Expires) > 2*time.Hour }},
	{"Delete", false, func(ctx context.Context, s *sqltable.Store, key string) error {
		existed, err := s.Delete(ctx, key, store.Always)
		if err == nil && !existed {
			return store.ErrAbsent
		}
		return err
	}, func(_ store.Record, err error) bool { return errors.Is(err, store.ErrAbsent) }},
	{"Lock", true, func(ctx context.Context, s *sqltable.Store, key string) error {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		err := s.Lock(ctx, key, "t", time.Minute)
		if err == nil {
			s.Unlock(ctx, key, "t")
		}
		return err
	}, nil},
}

func isNew(rec store.Record, err error) bool { return err == nil && string(rec.Data) == "new" }

var mark = store.Mark{Identity: "i"}

// Whatever happens to the server: a read is never absent, a write is done if it was said to be and not if it was said that
// it is not, everything ends within its bound, and when the server is back everybody's session is there.
func TestTrouble(t *testing.T) {
	for _, c := range []struct {
		name      string
		mysql, pg func(t *testing.T, s sqlServer, table string) (undo func())
		fine      bool   // operations may as well succeed
		outside   string // those that have nothing to do with it
	}{
		{"the server is stopped", stopped, stopped, false, ""},
		{"the server is killed", killed, killed, true, ""},
		{"the server stands still", pause, pause, false, ""},
		{"the server restarts", restart, restart, true, ""},
		{"connections are lost", func(_ *testing.T, s sqlServer, _ string) func() { severed(s, "site"); return func() {} },
			func(_ *testing.T, s sqlServer, _ string) func() { severed(s, "site"); return func() {} }, true, ""},
		{"too many connections", func(t *testing.T, s sqlServer, _ string) func() {
			s.Exec("CREATE USER other; SET GLOBAL max_connections = 10")
			return crowd(t, s, 10, "site")
		}, func(t *testing.T, s sqlServer, _ string) func() {
			s.Restart("-c", "max_connections=8", "-c", "superuser_reserved_connections=2")
			return crowd(t, s, 6, "site")
		}, false, ""},
		{"too many connections of the user", func(t *testing.T, s sqlServer, _ string) func() {
			s.Exec("ALTER USER site WITH MAX_USER_CONNECTIONS 1")
			return crowd(t, s, 1, "site")
		}, func(t *testing.T, s sqlServer, _ string) func() {
			s.Exec("ALTER ROLE site CONNECTION LIMIT 1")
			return crowd(t, s, 1, "site")
		}, false, ""},
		{"the password is another", func(_ *testing.T, s sqlServer, _ string) func() {
			s.Exec("ALTER USER site IDENTIFIED BY 'other'")
			severed(s, "site")
			return func() { s.Exec("ALTER USER site IDENTIFIED BY ''") }
		}, func(_ *testing.T, s sqlServer, _ string) func() {
			s.Exec("ALTER ROLE site NOLOGIN")
			severed(s, "site")
			return func() { s.Exec("ALTER ROLE site LOGIN") }
		}, false, ""},
		{"the table is locked", func(t *testing.T, s sqlServer, table string) func() {
			return locked(t, s, "LOCK TABLES "+table+" WRITE", "UNLOCK TABLES")
		},
			func(t *testing.T, s sqlServer, table string) func() {
				return locked(t, s, "BEGIN; LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE", "ROLLBACK")
			}, true, ""},
		{"the table is renamed", renamed, renamed, false, "Mark Lock"},
		{"the table is another one for a moment", widened, widened, true, ""},
		{"a right is taken", func(_ *testing.T, s sqlServer, table string) func() {
			s.Exec("REVOKE ALL ON app.* FROM site")
			severed(s, "site")
			return func() { s.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP ON app.* TO site") }
		}, func(_ *testing.T, s sqlServer, table string) func() {
			s.Exec("REVOKE ALL ON " + table + " FROM site; REVOKE ALL ON sessile_marks FROM site")
			return func() { s.Exec("GRANT ALL ON " + table + " TO site; GRANT ALL ON sessile_marks TO site") }
		}, false, "Lock"},
	} {
		for name, trouble := range map[string]func(*testing.T, sqlServer, string) func(){"MariaDB": c.mysql, "PostgreSQL": c.pg} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				var srv sqlServer
				if name == "MariaDB" {
					srv = testserver.MariaDB(t)
				} else {
					srv = testserver.Postgres(t)
				}
				withUser(srv)
				s, table := made(t, as(srv, "site"), plain[name], "")
				if !isMySQL(srv) {
					srv.Exec("GRANT ALL ON " + table + " TO site")
				}
				if err := s.SwapMark(t.Context(), store.Mark{}, mark); err != nil {
					t.Fatal(err)
				}
				keys := make([]string, len(operations))
				for i := range operations {
					keys[i] = fmt.Sprint("k", i)
					if err := s.Save(t.Context(), keys[i], hour("old"), store.Always); err != nil {
						t.Fatal(err)
					}
				}
				undo := trouble(t, srv, table)
				errs := make([]error, len(operations))
				var wg sync.WaitGroup
				for i, op := range operations {
					wg.Go(func() {
						began := time.Now()
						errs[i] = op.do(t.Context(), s, keys[i])
						if took := time.Since(began); took > 2500*time.Millisecond && op.name != "Scan" || took > 11*time.Second {
							t.Errorf("%s took %v", op.name, took)
						}
					})
				}
				wg.Wait()
				undo()
				for i, op := range operations {
					o := store.OutcomeOf(errs[i])
					switch {
					case (c.fine || strings.Contains(c.outside, op.name)) && o == store.OK:
					case o == store.OutcomeUnavailable:
					case errors.Is(errs[i], store.ErrLocked) && c.fine:
					case o == store.OutcomeUnknown && !op.read:
					default:
						t.Errorf("%s: %v", op.name, errs[i])
					}
					var rec store.Record
					var err error
					for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
						rec, err = s.Inspect(t.Context(), keys[i])
						if err == nil || errors.Is(err, store.ErrAbsent) {
							break
						}
						if time.Now().After(deadline) {
							t.Fatalf("Inspect behind it: %v", err)
						}
					}
					was := err == nil && string(rec.Data) == "old" && time.Until(rec.Expires) < 2*time.Hour
					is := op.done != nil && op.done(rec, err)
					if o == store.OK && !op.read && !is || o == store.OutcomeUnavailable && !was || !was && !is {
						t.Errorf("%s came to %v, and then there is %q for %v, %v", op.name, errs[i], rec.Data, time.Until(rec.Expires), err)
					}
					if err := op.do(t.Context(), s, keys[i]); err != nil && !errors.Is(err, store.ErrConflict) && !is {
						t.Errorf("%s behind it: %v", op.name, err)
					}
				}
			})
		}
	}
}

func stopped(_ *testing.T, s sqlServer, _ string) func() { s.Stop(); return func() { s.Restart() } }
func killed(_ *testing.T, s sqlServer, _ string) func()  { s.Kill(); return func() { s.Restart() } }
func pause(_ *testing.T, s sqlServer, _ string) func() {
	s.Pause()
	return s.Resume
}
func restart(_ *testing.T, s sqlServer, _ string) func() { s.Restart(); return func() {} }

// crowd takes all n connections that user may have, away from whoever had one: who is cut off leaves a little later.
func crowd(t *testing.T, s sqlServer, n int, user string) func() {
	t.Helper()
	db := raw(t, as(s, user).URL("app"))
	db.SetMaxIdleConns(0)
	var held []*sql.Conn
	t.Cleanup(func() {
		for _, c := range held {
			c.Close()
		}
	})
	for deadline := time.Now().Add(10 * time.Second); len(held) < n; {
		for _, c := range held {
			c.Close()
		}
		held = nil
		severed(s, user)
		for len(held) < n {
			c, err := db.Conn(t.Context())
			if err != nil && time.Now().After(deadline) {
				t.Fatalf("%d of %d connections: %v", len(held), n, err)
			} else if err != nil {
				break
			}
			held = append(held, c)
		}
	}
	return func() { db.Close(); severed(s, user) }
}

// locked runs sql on a connection of its own, and undo at the end.
func locked(t *testing.T, s sqlServer, sql, undo string) func() {
	t.Helper()
	c, err := raw(t, s.URL("app")).Conn(t.Context())
	for _, text := range strings.Split(sql, "; ") {
		if err == nil {
			_, err = c.ExecContext(t.Context(), text)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { c.ExecContext(t.Context(), undo); c.Close() }
}

func renamed(_ *testing.T, s sqlServer, table string) func() {
	s.Exec("ALTER TABLE " + table + " RENAME TO away")
	return func() { s.Exec("ALTER TABLE away RENAME TO " + table) }
}

// widened changes columns under statements that are prepared.
func widened(_ *testing.T, s sqlServer, table string) func() {
	if isMySQL(s) {
		s.Exec("ALTER TABLE " + table + " ADD extra INT FIRST, MODIFY id VARBINARY(128)")
	} else {
		s.Exec("ALTER TABLE " + table + " ADD extra int; ALTER TABLE " + table + " ALTER id TYPE varchar(128)")
	}
	return func() {}
}

// Somebody alters the table while statements are prepared: nobody notices.
func TestATableThatIsAltered(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, table := made(t, srv, plain[name], "")
			if err := s.Save(t.Context(), "k", hour("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			many := func() {
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						for range 10 {
							if _, err := s.Load(t.Context(), "k"); err != nil {
								t.Errorf("Load: %v", err)
							}
							if _, err := s.Scan(t.Context(), "", 10); err != nil {
								t.Errorf("Scan: %v", err)
							}
							if all, err := s.InspectAll(t.Context(), []string{"k"}); err != nil || all[0] == nil {
								t.Errorf("InspectAll: %v", err)
							}
						}
					})
				}
				wg.Wait()
			}
			many()
			widened(t, srv.(sqlServer), table)
			many()
		})
	}
}

// Who has a statement that somebody else forgets in the same moment gets the next one.
func TestAStatementThatIsClosed(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, _ := made(t, srv, plain[name], "")
			if err := s.Save(t.Context(), "k", hour("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			if closed, err := s.LoadClosed(t.Context(), "k"); err != nil || !closed {
				t.Errorf("LoadClosed: %v, %v", closed, err)
			}
		})
	}
}

// A server that has become a replica takes no writes, and then is not read from either: an application that can do the one
// and not the other logs its users out. When it is the primary again, everybody is there.
func TestAServerThatBecomesReadOnly(t *testing.T) {
	for name, server := range servers(t) {
		t.Run(name, func(t *testing.T) {
			srv := server.(sqlServer)
			withUser(srv)
			s, _ := made(t, as(srv, "site"), plain[name], "")
			if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
				t.Fatal(err)
			}
			readOnly(srv, true)
			for said := false; !said; { // PostgreSQL has ended our connections
				err := s.Save(t.Context(), "k", hour("new"), store.Always)
				if said = err != nil && strings.Contains(err.Error(), "read-only"); err == nil {
					t.Fatal("Save went through")
				}
			}
			for range 3 {
				if _, err := s.Load(t.Context(), "k"); store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("Load: %v", err)
				}
			}
			if _, err := s.InspectAll(t.Context(), []string{"k"}); store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("InspectAll: %v", err)
			}
			readOnly(srv, false)
			rec, err := s.Load(t.Context(), "k")
			for deadline := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(deadline); {
				rec, err = s.Load(t.Context(), "k")
			}
			if err != nil || string(rec.Data) != "old" {
				t.Errorf("Load: %q, %v", rec.Data, err)
			}
			if err := s.Save(t.Context(), "k", hour("new"), store.Always); err != nil {
				t.Errorf("Save: %v", err)
			}
		})
	}
}

// readOnly makes a server a replica, as far as its clients can tell.
func readOnly(s server, on bool) {
	if isMySQL(s) {
		s.Exec(fmt.Sprintf("SET GLOBAL read_only = %t", on))
		return
	}
	s.Exec(fmt.Sprintf("ALTER ROLE site SET default_transaction_read_only = %t", on))
	severed(s, "site")
}

// The server gives up our statement for the sake of another one: it is sent again, and nobody notices.
func TestADeadlock(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, table := made(t, srv, plain[name], "&op_bound=8s")
			if err := errors.Join(s.SwapMark(t.Context(), store.Mark{}, mark), s.Save(t.Context(), "k", hour("old"), store.Always)); err != nil {
				t.Fatal(err)
			}
			tx, err := raw(t, srv.URL("app")).BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			exec := func(text string) {
				t.Helper()
				if _, err := tx.Exec(text); err != nil {
					t.Error(err)
				}
			}
			if !isMySQL(srv) {
				exec("SET deadlock_timeout = '10s'") // so that ours is the one that looks, a second after it began to wait
			} else {
				exec("UPDATE " + table + " SET expires = expires + 0 WHERE id = 'none'")
				for i := range 50 { // a transaction that has written much is spared
					exec(fmt.Sprintf("INSERT INTO %s VALUES ('many%d', 'x', 2000000000)", table, i))
				}
			}
			exec("UPDATE " + table + " SET expires = expires + 1 WHERE id = 'k'")
			saved := make(chan error, 1)
			go func() { saved <- s.Under(mark).Save(t.Context(), "k", hour("new"), store.Always) }()
			for deadline := time.Now().Add(3 * time.Second); blocked(srv) != "1"; {
				if time.Now().After(deadline) {
					t.Fatal("the write does not wait for the row")
				}
			}
			exec("UPDATE sessile_marks SET mark = CONCAT(mark, '') WHERE name = '" + table + "'")
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := <-saved; err != nil {
				t.Errorf("Save: %v", err)
			}
			if got := deadlocks(srv); got == "0" {
				t.Error("there was no deadlock")
			}
		})
	}
}

// deadlocks is how many there were.
func deadlocks(s server) string {
	if isMySQL(s) {
		return s.Exec("SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Innodb_deadlocks'")
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got := s.Exec("SELECT deadlocks FROM pg_stat_database WHERE datname = 'app'"); got != "0" {
			return got
		}
	}
	return "0"
}

// The connection ends while the server works: the write may have happened.
func TestAConnectionIsLostInTheMiddle(t *testing.T) {
	for name, server := range servers(t) {
		t.Run(name, func(t *testing.T) {
			srv := server.(sqlServer)
			withUser(srv)
			s, table := made(t, as(srv, "site"), plain[name], "")
			all := []store.Write{{Key: "a", Record: hour("new")}, {Key: "k", Record: hour("new")}}
			for what, do := range map[string]func() error{
				"Save": func() error { return s.Save(t.Context(), "k", hour("new"), store.Always) },
				"Append": func() error {
					_, err := s.Append(t.Context(), "k", []byte("er"), time.Now().Add(time.Minute))
					return err
				},
				// Of what was not committed nothing is done.
				"SaveAll": func() error { return s.SaveAll(t.Context(), all) },
				"Touch":   func() error { return s.Touch(t.Context(), "k", time.Now().Add(time.Minute)) },
				"Delete":  func() error { _, err := s.Delete(t.Context(), "k", store.Always); return err },
			} {
				srv.Exec("DELETE FROM " + table)
				if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
					t.Fatal(err)
				}
				free := locked(t, srv, "BEGIN; UPDATE "+table+" SET expires = expires + 1", "ROLLBACK")
				done := make(chan error, 1)
				go func() { done <- do() }()
				for deadline := time.Now().Add(900 * time.Millisecond); blocked(srv) != "1" && time.Now().Before(deadline); {
				}
				severed(srv, "site")
				want := store.OutcomeUnknown
				if what == "SaveAll" {
					want = store.OutcomeUnavailable
				}
				if err := <-done; store.OutcomeOf(err) != want {
					t.Errorf("%s: %v", what, err)
				}
				if free(); what == "SaveAll" {
					if _, err := s.Load(t.Context(), "a"); !errors.Is(err, store.ErrAbsent) {
						t.Errorf("a part of SaveAll is there: %v", err)
					}
				}
			}
		})
	}
}

// A session larger than the server takes in one packet is refused, and the one before stays.
func TestAPacketThatIsTooLarge(t *testing.T) {
	my := testserver.MariaDB(t, "--max-allowed-packet=1M")
	s, _ := made(t, my, plain["MariaDB"], "&max_value=8000000")
	if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1<<20 - 2000, 1<<20 - 500, 1 << 20, 1<<20 + 1, 3 << 20} {
		err := s.Save(t.Context(), "k", hour(strings.Repeat("x", size)), store.Always)
		if err != nil && !errors.Is(err, store.ErrInvalid) || (err == nil) != (size < 1<<20-1024) {
			t.Errorf("Save of %d bytes: %v", size, err)
		}
		rec, err := s.Load(t.Context(), "k")
		if err != nil {
			t.Fatalf("behind %d bytes: %v", size, err)
		}
		if err := s.Save(t.Context(), "k", hour("old"), store.IfVersion(rec.Version())); err != nil {
			t.Errorf("Save over %d bytes: %v", len(rec.Data), err)
		}
	}
}

// relay stands between a store and its server, and can go silent: to the server the connection is still there.
type relay struct {
	net.Listener
	silent atomic.Bool
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, near, far)
			mu.Unlock()
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				wg.Go(func() {
					b := make([]byte, 64<<10)
					for {
						n, err := way[0].Read(b)
						if r.silent.Load() {
							return // and the other side hears nothing of it
						}
						if _, werr := way[1].Write(b[:n]); err != nil || werr != nil {
							way[1].Close()
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return r
}

// A gateway is cut off while its write waits in the server: the server gives it up within the bound, so that it does not
// land later, behind what others have done.
func TestAWriteOfAGatewayThatIsCutOffDoesNotLandLate(t *testing.T) {
	for name, srv := range servers(t) {
		for what, c := range map[string]struct{ mysql, postgres, undo string }{
			"row":   {"BEGIN; UPDATE %s SET expires = expires + 1", "BEGIN; UPDATE %s SET expires = expires + 1", "ROLLBACK"},
			"table": {"LOCK TABLES %s WRITE", "BEGIN; LOCK TABLE %s IN ACCESS EXCLUSIVE MODE", map[bool]string{true: "UNLOCK TABLES", false: "ROLLBACK"}[isMySQL(srv)]},
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				r := newRelay(t, parse(t, srv.URL("app")).Host)
				_, table := made(t, srv, plain[name], "")
				s := at(t, strings.Replace(srv.URL("app"), parse(t, srv.URL("app")).Host, r.Addr().String(), 1)+
					"?op_bound=2s&table="+table+"&id=id&data=data&expires=expires")
				for range 2 { // statements are prepared
					if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
						t.Fatal(err)
					}
				}
				lock := c.postgres
				if isMySQL(srv) {
					lock = c.mysql
				}
				free := locked(t, srv.(sqlServer), fmt.Sprintf(lock, table), c.undo)
				done := make(chan error, 1)
				began := time.Now()
				go func() { done <- s.Touch(t.Context(), "k", time.Now().Add(time.Minute)) }()
				for deadline := time.Now().Add(800 * time.Millisecond); waiting(srv) == "0" && time.Now().Before(deadline); {
				}
				if waiting(srv) == "0" {
					t.Fatal("the write does not wait")
				}
				r.silent.Store(true)
				<-done
				time.Sleep(2*time.Second - time.Since(began)) // the bound
				if got := waiting(srv); got != "0" {
					t.Errorf("%s statements still wait", got)
				}
				free()
			})
		}
	}
}

// What may not happen after a time is not sent when the server might still be at it then.
func TestAWriteThatMayNotHappenLater(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s, _ := made(t, srv, plain[name], "&op_bound=2s")
			if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
				t.Fatal(err)
			}
			for after, want := range map[time.Duration]store.Outcome{900 * time.Millisecond: store.OutcomeUnavailable, time.Minute: store.OK} {
				ctx, cancel := store.NotAfter(t.Context(), time.Now().Add(after))
				defer cancel()
				for what, do := range map[string]func() error{
					"Save":   func() error { return s.Save(ctx, "k", hour("old"), store.Always) },
					"Touch":  func() error { return s.Touch(ctx, "k", time.Now().Add(time.Hour)) },
					"Delete": func() error { _, err := s.Delete(ctx, "none", store.Always); return err },
				} {
					if err := do(); store.OutcomeOf(err) != want {
						t.Errorf("%s within %v: %v", what, after, err)
					}
				}
			}
		})
	}
}

// waiting is how many statements wait for a row or a table.
func waiting(s server) string {
	if isMySQL(s) {
		return s.Exec("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%sessile%' AND command IN ('Query', 'Execute') AND id <> CONNECTION_ID()")
	}
	return s.Exec("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
}

// Somebody empties the table of marks, or takes it away: nothing is written under a mark that is gone, what needs none goes
// on, and the zero mark can be written under again.
func TestTheMarkIsTakenAway(t *testing.T) {
	for name, srv := range servers(t) {
		for _, how := range []string{"DELETE FROM sessile_marks", "DROP TABLE sessile_marks"} {
			t.Run(name+", "+how, func(t *testing.T) {
				s, _ := made(t, srv, plain[name], "")
				if err := errors.Join(s.SwapMark(t.Context(), store.Mark{}, mark), s.Under(mark).Save(t.Context(), "k", hour("old"), store.Always)); err != nil {
					t.Fatal(err)
				}
				srv.Exec(how)
				if err := s.Under(mark).Save(t.Context(), "k", hour("new"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("Save under what is gone: %v", err)
				}
				if m, err := s.Mark(t.Context()); err != nil || m != (store.Mark{}) {
					t.Errorf("Mark: %v, %v", m, err)
				}
				if rec, err := s.Load(t.Context(), "k"); err != nil || string(rec.Data) != "old" {
					t.Errorf("Load: %q, %v", rec.Data, err)
				}
				zero := func() error { return s.Under(store.Mark{}).Save(t.Context(), "k", hour("zero"), store.Always) }
				if err := zero(); err != nil { // then it is known
					if err := zero(); err != nil {
						t.Errorf("Save under the zero mark: %v", err)
					}
				}
				if err := s.SwapMark(t.Context(), store.Mark{}, mark); err != nil {
					t.Errorf("SwapMark: %v", err)
				}
			})
		}
	}
}

// PostgreSQL's own ends of quiet sessions do not take a lock away.
func TestALockIsQuietForLong(t *testing.T) {
	pg := testserver.Postgres(t, "-c", "idle_session_timeout=300ms", "-c", "idle_in_transaction_session_timeout=300ms")
	for _, kind := range kinds {
		s, _ := made(t, pg, plain["PostgreSQL"], "&lock="+kind)
		if err := errors.Join(s.Save(t.Context(), "k", hour("x"), store.Always), s.Lock(t.Context(), "k", "t", time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(600 * time.Millisecond) // longer than that
		if held, err := s.Unlock(t.Context(), "k", "t"); !held || err != nil {
			t.Errorf("%s: %v, %v", kind, held, err)
		}
	}
}
