package sqltable_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// at opens what a URL says.
func at(t *testing.T, raw string) *sqltable.Store {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	plain, opt, err := sqltable.ParseURL(u, sqltable.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sqltable.Open(t.Context(), plain, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func hour(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// RequestTracker's table, as rt-setup-database makes it on MariaDB: a row holds Storable, a client of Redis has its Base64,
// and the lock is RT's own.
func TestRequestTracker(t *testing.T) {
	my := testserver.MariaDB(t)
	my.Exec(`CREATE TABLE sessions (id char(32) NOT NULL, a_session LONGBLOB, LastUpdated TIMESTAMP, PRIMARY KEY (id));
		INSERT INTO sessions (id, a_session) VALUES ('0123456789abcdef0123456789abcdef', concat('pst0', repeat(char(0), 100)))`)
	s := at(t, my.URL("app")+"?preset=rt&lifetime=12h")
	const id = "0123456789abcdef0123456789abcdef"
	rec, err := s.Inspect(t.Context(), id)
	if err != nil || !strings.HasPrefix(string(rec.Data), "cHN0MAAAAAAA") || strings.Count(string(rec.Data), "\n") != 2 {
		t.Fatalf("got %q, %v", rec.Data, err)
	}
	if left := time.Until(rec.Expires); left < 12*time.Hour-time.Minute || left > 12*time.Hour {
		t.Errorf("it lives for %v", left)
	}
	if !s.Capabilities().Ageless {
		t.Error("the table is said to know an age")
	}
	rec.Data = []byte("cHN0MG5ldw==\n")
	if err := s.Save(t.Context(), id, rec, store.Always); err != nil {
		t.Fatal(err)
	}
	if got := my.Exec("SELECT a_session, LastUpdated IS NULL FROM sessions"); got != "pst0new\t1" {
		t.Errorf("the row is %q", got)
	}
	for _, body := range []string{"no Base64", "cHN0MG5ldw=="} { // the second would come back with a line feed
		if err := s.Save(t.Context(), id, hour(body), store.Always); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Save of %q: %v", body, err)
		}
	}

	if err := s.Lock(t.Context(), id, "t", time.Minute); err != nil {
		t.Fatal(err)
	}
	asked := "SELECT GET_LOCK('Apache-Session-" + id + "', 0)"
	if got := my.Exec(asked); got != "0" {
		t.Errorf("RT got the lock that we have: %q", got)
	}
	if held, err := s.Unlock(t.Context(), id, "t"); !held || err != nil {
		t.Errorf("Unlock: %v, %v", held, err)
	}
	if got := my.Exec(asked); got != "1" {
		t.Errorf("RT did not get the lock that nobody has: %q", got)
	}
}

// raw opens a connection pool of a client that knows nothing of us.
func raw(t *testing.T, raw string) *sql.DB {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	driver, dsn := "pgx", raw
	if u.Scheme == "mysql" {
		driver, dsn = "mysql", u.User.Username()+"@tcp("+u.Host+")"+u.Path
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func servers(t *testing.T) map[string]server {
	return map[string]server{"MariaDB": testserver.MariaDB(t), "PostgreSQL": testserver.Postgres(t)}
}

// A write that waits for a row that somebody else holds ends within the bound, and does not land later.
func TestAWriteThatWaitsForARowDoesNotLandLate(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, srv, "deadline in seconds")
			table := s.Table()
			if err := s.Save(t.Context(), "k", hour("old"), store.Always); err != nil {
				t.Fatal(err)
			}
			tx, err := raw(t, srv.URL("app")).BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE " + table + " SET expires = expires WHERE id = 'k'"); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err = s.Save(within(t, 100*time.Millisecond), "k", hour("late"), store.Always)
			if store.OutcomeOf(err) != store.OutcomeUnknown {
				t.Errorf("Save: %v", err)
			}
			time.Sleep(s.Options().Bound - time.Since(began))
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			got, err := s.Load(t.Context(), "k")
			if err != nil || string(got.Data) != "old" {
				t.Errorf("Load: %q, %v: the write landed after its bound", got.Data, err)
			}
		})
	}
}

// Of a write under a mark and the change of that mark one comes first: behind the change no write of before lands.
func TestNoWriteLandsBehindAChangeOfTheMark(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "deadline in seconds")
			mark := store.Mark{Identity: "i"}
			if err := s.SwapMark(t.Context(), store.Mark{}, mark); err != nil {
				t.Fatal(err)
			}
			for round := range 30 {
				under := s.Under(mark)
				var done, landed atomic.Int64
				var wg sync.WaitGroup
				for w := range 4 {
					wg.Go(func() {
						for n := 0; done.Load() == 0; n++ {
							err := under.Save(t.Context(), fmt.Sprint("k", w), hour(fmt.Sprint(round, ".", n)), store.Always)
							if err == nil {
								landed.Add(1)
							} else if !errors.Is(err, store.ErrSealed) && store.OutcomeOf(err) != store.OutcomeUnavailable {
								t.Errorf("Save: %v", err)
							}
						}
					})
				}
				for landed.Load() < 8 && !t.Failed() {
					time.Sleep(time.Millisecond)
				}
				next := mark
				next.Seal.Epoch++
				if err := s.SwapMark(t.Context(), mark, next); err != nil {
					t.Errorf("SwapMark: %v", err)
				}
				state := func() (all string) {
					for w := range 4 {
						rec, _ := s.Load(t.Context(), fmt.Sprint("k", w))
						all += string(rec.Data) + " "
					}
					return all
				}
				behind := state()
				done.Store(1)
				wg.Wait()
				if now := state(); now != behind {
					t.Fatalf("%q became %q behind the change", behind, now)
				}
				mark = next
			}
		})
	}
}

// A row without a body is a session without data, and can be written and removed like any other.
func TestARowWithoutABody(t *testing.T) {
	for name, srv := range servers(t) {
		for _, kind := range []string{"last access in seconds", "deadline in seconds"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				s := open(t, srv, kind)
				id, insert := "sid", "INSERT INTO %s (sid, body, access) VALUES ('k', NULL, 4000000000)"
				if kind == "deadline in seconds" {
					id, insert = "id", "INSERT INTO %s (id, data, expires) VALUES ('k', '', 2000000000)"
				}
				for _, write := range []func() error{
					func() error { return s.Save(t.Context(), "k", hour("x"), store.IfVersion(store.VersionOf(nil, 0))) },
					func() error { return s.Save(t.Context(), "k", hour("x"), store.Always) },
					func() error { _, err := s.Delete(t.Context(), "k", store.Always); return err },
				} {
					srv.Exec("DELETE FROM " + s.Table() + " WHERE " + id + " = 'k'")
					srv.Exec(fmt.Sprintf(insert, s.Table()))
					if rec, err := s.Load(t.Context(), "k"); err != nil || len(rec.Data) != 0 {
						t.Errorf("Load: %q, %v", rec.Data, err)
					}
					if err := write(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// Many are read as each of them is.
func TestInspectAll(t *testing.T) {
	for name, srv := range servers(t) {
		for kind := range tables {
			t.Run(name+", "+kind, func(t *testing.T) {
				s := open(t, srv, kind)
				var keys []string
				for i := range 423 { // more than one statement asks for
					key := fmt.Sprint("k", i)
					keys = append(keys, key)
					if i%3 == 0 {
						continue
					}
					if err := s.Save(t.Context(), key, hour(fmt.Sprint("v", i)), store.Always); err != nil {
						t.Fatal(err)
					}
				}
				all, err := s.InspectAll(t.Context(), keys)
				if err != nil || len(all) != len(keys) {
					t.Fatalf("%d, %v", len(all), err)
				}
				for i, key := range keys {
					one, err := s.Inspect(t.Context(), key)
					switch {
					case errors.Is(err, store.ErrAbsent) != (all[i] == nil):
						t.Errorf("%s: %v, %v", key, all[i], err)
					case all[i] != nil && (all[i].Version() != one.Version() || all[i].Expires.Sub(one.Expires).Abs() > 2*time.Second):
						t.Errorf("%s: %v, %v", key, all[i], one)
					}
				}
				if _, err := s.InspectAll(t.Context(), []string{"a b"}); !errors.Is(err, store.ErrInvalid) {
					t.Error(err)
				}
			})
		}
	}
}

// Check names what is in the way, by what is to be done.
func TestCheck(t *testing.T) {
	srv := servers(t)
	for name, c := range map[string]struct{ server, create, user, want, advice string }{
		"fine":                 {"MariaDB", "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB NOT NULL, expires INT NOT NULL) ENGINE=InnoDB", "", "", ""},
		"another column":       {"MariaDB", "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB, expires INT, ip VARCHAR(20) NOT NULL) ENGINE=InnoDB", "", "has no default", ""},
		"fine, PostgreSQL":     {"PostgreSQL", "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int)", "", "", ""},
		"MyISAM":               {"MariaDB", "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB, expires INT) ENGINE=MyISAM", "", "ENGINE=InnoDB", ""},
		"no index":             {"MariaDB", "CREATE TABLE %s (id VARBINARY(64), data BLOB, expires INT, KEY (id)) ENGINE=InnoDB", "", "no unique index", ""},
		"an index with others": {"PostgreSQL", "CREATE TABLE %s (id varchar(64), data bytea, expires int, UNIQUE (id, expires))", "", "no unique index", ""},
		"case":                 {"MariaDB", "CREATE TABLE %s (id VARCHAR(64) PRIMARY KEY, data BLOB, expires INT) ENGINE=InnoDB", "", "", "differ in case"},
		"text":                 {"PostgreSQL", "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data text, expires int)", "", "", "is a text"},
		"rights": {"MariaDB", "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB, expires INT) ENGINE=InnoDB; CREATE USER r@'127.0.0.1'; GRANT SELECT, UPDATE ON app.%s TO r@'127.0.0.1'",
			"r", "INSERT on", ""},
		"rights, PostgreSQL": {"PostgreSQL", "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int); CREATE USER r; GRANT SELECT ON %s TO r", "r", "DELETE on", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := srv[c.server]
			table := fmt.Sprint("c", number.Add(1))
			s.Exec(strings.ReplaceAll(c.create, "%s", table))
			u := s.URL("app")
			if c.user != "" {
				u = strings.NewReplacer("root@", c.user+"@", "postgres@", c.user+"@").Replace(u)
			}
			found, err := at(t, u+"?table="+table+"&id=id&data=data&expires=expires").Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(found.Against, "; "); c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("against: %q, want %q", all, c.want)
			}
			if all := strings.Join(found.Advice, "; "); !strings.Contains(all, c.advice) {
				t.Errorf("advice: %q, want %q", all, c.advice)
			}
		})
	}
}

// blocked says how many statements wait for a row. InnoDB's list is made anew only when nobody has asked for it for a tenth
// of a second.
func blocked(s server) string {
	if strings.HasPrefix(s.URL(""), "mysql") {
		return s.Exec("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'")
	}
	return s.Exec("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
}

// A write that has seen the mark, and then waits for its row, keeps whoever changes the mark waiting.
func TestTheMarkIsHeldWhileAWriteWaits(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "deadline in seconds")
			mark := store.Mark{Identity: "i"}
			if err := errors.Join(s.SwapMark(t.Context(), store.Mark{}, mark), s.Save(t.Context(), "k", hour("old"), store.Always)); err != nil {
				t.Fatal(err)
			}
			tx, err := raw(t, srv.URL("app")).BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE " + s.Table() + " SET expires = expires WHERE id = 'k'"); err != nil {
				t.Fatal(err)
			}
			saved, swapped := make(chan error, 1), make(chan error, 1)
			go func() { saved <- s.Under(mark).Save(t.Context(), "k", hour("late"), store.Always) }()
			for deadline := time.Now().Add(1500 * time.Millisecond); blocked(srv) != "1"; time.Sleep(120 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the write does not wait for the row")
				}
			}
			go func() {
				swapped <- s.SwapMark(t.Context(), mark, store.Mark{Identity: "i", Seal: store.Seal{Epoch: 1}})
			}()
			var early bool
			select {
			case err := <-swapped:
				early = err == nil
			case <-time.After(150 * time.Millisecond):
			}
			tx.Rollback()
			<-saved
			if rec, err := s.Load(t.Context(), "k"); early && (err != nil || string(rec.Data) != "old") {
				t.Errorf("behind the change of the mark a write has landed: %q, %v", rec.Data, err)
			}
		})
	}
}

// A client that locks as the application does, and one that comes through us, are never inside at one time; and a lock
// ends with its connection.
func TestLocksAreTheServers(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "deadline in seconds")
			if err := s.Lock(t.Context(), "k", "a", time.Minute); err != nil {
				t.Fatal(err)
			}
			u, _ := url.Parse(srv.URL("app"))
			other, err := sqltable.Open(t.Context(), u, s.Options())
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if err := other.Lock(within(t, 300*time.Millisecond), "k", "b", time.Minute); !errors.Is(err, store.ErrLocked) {
				t.Errorf("Lock: %v", err)
			}
			s.Close()
			if err := other.Lock(within(t, 3*time.Second), "k", "b", time.Minute); err != nil {
				t.Errorf("Lock after the end of the other: %v", err)
			}
		})
	}
}

// What is over goes, in as many statements as it takes, and nothing else does.
func TestCollect(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			for kind := range tables {
				s := open(t, srv, kind)
				if err := s.Save(t.Context(), "lives", hour("x"), store.Always); err != nil {
					t.Fatal(err)
				}
				if n, err := s.Collect(t.Context()); n != 0 || err != nil {
					t.Errorf("%s: %d removed of one that lives, %v", kind, n, err)
				}
			}
			own := at(t, srv.URL("app")+"?preset=sessile")
			again := at(t, srv.URL("app")+"?preset=sessile") // which finds the table there
			if err := own.Save(t.Context(), "lives", hour("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			rows := make([]string, 1201)
			for i := range rows {
				rows[i] = fmt.Sprintf("('over%d', 'x', 1000)", i)
			}
			srv.Exec("INSERT INTO sessile_sessions (id, data, expires) VALUES " + strings.Join(rows, ", "))
			if n, err := again.Collect(t.Context()); n != 1201 || err != nil {
				t.Errorf("%d removed, %v", n, err)
			}
			if got := srv.Exec("SELECT id FROM sessile_sessions"); got != "lives" {
				t.Errorf("left: %q", got)
			}
		})
	}
}
