package cached_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cached"
	"github.com/sessile/sessile/store/memcached"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/sqltable"
	"github.com/sessile/sessile/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var number atomic.Int64

// database is a server that the tests share.
type database interface {
	Exec(sql string) string
	URL(db string) string
}

// parts are a cache of three servers and an empty table, as a handler uses them.
type parts struct {
	*cached.Store
	t       *testing.T
	cache   *memcached.Store
	table   *sqltable.Store
	servers []*testserver.MemcachedServer
	db      database
	name    string // of the table
}

// open opens parts for tests that take servers away, and do not wait for them long.
func open(t *testing.T, db database, servers ...*testserver.MemcachedServer) *parts {
	t.Helper()
	return openPatiently(t, 500*time.Millisecond, db, servers...)
}

func openPatiently(t *testing.T, timeout time.Duration, db database, servers ...*testserver.MemcachedServer) *parts {
	t.Helper()
	p := &parts{t: t, db: db, name: fmt.Sprint("php_sessions", number.Add(1)), servers: servers}
	blob := "MEDIUMBLOB"
	if strings.HasPrefix(db.URL("app"), "postgres") {
		blob = "bytea"
	}
	db.Exec(fmt.Sprintf("CREATE TABLE %s (id VARCHAR(128) PRIMARY KEY, data %s NOT NULL, access INTEGER NOT NULL)", p.name, blob))
	u, err := url.Parse(db.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	if p.table, err = sqltable.Open(t.Context(), u, sqltable.Options{Lifetime: 10 * time.Hour, MaxValue: 1 << 20,
		Table: sqltable.Table{Name: p.name, ID: "id", Data: "data", Time: sqltable.Time{Column: "access", Meaning: sqltable.LastAccess}}}); err != nil {
		t.Fatal(err)
	}
	// Tests of one cache have each their prefix.
	opt := memcached.Options{Client: memcached.Object, Prefix: p.name + ":", Timeout: timeout}
	for _, s := range servers {
		host, port, err := net.SplitHostPort(s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(port)
		opt.Servers = append(opt.Servers, memcached.Server{Host: host, Port: n})
	}
	if p.cache, err = memcached.New(opt); err != nil {
		t.Fatal(err)
	}
	p.Store = cached.New(p.cache, p.table)
	t.Cleanup(func() { p.Close() })
	return p
}

func some(t *testing.T, n int) (all []*testserver.MemcachedServer) {
	t.Helper()
	for range n {
		all = append(all, testserver.Memcached(t))
	}
	return all
}

var badKeys = []string{"a b", "a\x00b", "ä", strings.Repeat("a", 300)}

func TestStore(t *testing.T) {
	for name, db := range map[string]database{"MariaDB": testserver.MariaDB(t), "PostgreSQL": testserver.Postgres(t)} {
		t.Run("memcached before "+name, func(t *testing.T) {
			servers := some(t, 3)
			storetest.RunOrigin(t, storetest.Harness[*parts]{
				New:     func(t *testing.T) *parts { return openPatiently(t, 10*time.Second, db, servers...) },
				BadKeys: badKeys,
			})
		})
	}
	t.Run("memory before memory", func(t *testing.T) {
		storetest.RunOrigin(t, storetest.Harness[*cached.Store]{New: func(t *testing.T) *cached.Store {
			s := cached.New(memory.New(memory.Options{}), memory.New(memory.Options{}))
			t.Cleanup(func() { s.Close() })
			return s
		}})
	})
}

func TestTogether(t *testing.T) {
	my, servers := testserver.MariaDB(t), some(t, 3)
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer)
	}{
		{"what plan says", whatPlanSays},
		{"the cache has nothing that is no more", theCacheHasNothingThatIsNoMore},
		{"the seal holds for both", theSealHoldsForBoth},
		{"a cache in trouble", aCacheInTrouble},
		{"a cache that hangs between the two", aCacheThatHangsBetweenTheTwo},
		{"a reader that fills the cache meanwhile", aReaderThatFillsTheCacheMeanwhile},
		{"a cache that comes back empty", aCacheThatComesBackEmpty},
		{"writers at once", writersAtOnce},
		{"a table that is away", aTableThatIsAway},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, my, servers) })
	}
}

func in10s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func rec(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

func (p *parts) save(s store.Store, key, data string, want error) {
	p.t.Helper()
	if err := s.Save(in10s(p.t), key, rec(data), store.Always); !errors.Is(err, want) {
		p.t.Errorf("Save of %q: %v, want %v", key, err, want)
	}
}

func (p *parts) destroy(key string, want error) {
	p.t.Helper()
	if _, err := p.Delete(in10s(p.t), key, store.Always); !errors.Is(err, want) {
		p.t.Errorf("Delete of %q: %v, want %v", key, err, want)
	}
}

// is looks what a store has: "" is nothing.
func (p *parts) is(s store.Store, key, want string) {
	p.t.Helper()
	got, err := s.Load(in10s(p.t), key)
	if err != nil && !errors.Is(err, store.ErrAbsent) || string(got.Data) != want {
		p.t.Errorf("%T has %q under %s, %v, want %q", s, got.Data, key, err, want)
	}
}

// handler is what a handler of a site's own does: it reads the cache, else the table and fills the cache, and writes both.
func (p *parts) handler(key string) (data string) {
	p.t.Helper()
	got, err := p.cache.Load(in10s(p.t), key)
	if err == nil {
		return string(got.Data)
	}
	if got, err = p.table.Load(in10s(p.t), key); err != nil {
		return ""
	}
	p.save(p.cache, key, string(got.Data), nil)
	return string(got.Data)
}

// on returns a key whose copy lies on that server.
func (p *parts) on(server int) string {
	p.t.Helper()
	for i := 0; ; i++ {
		if key := fmt.Sprint("key", i); int(hash(p.name+":"+key)%uint32(len(p.servers))) == server {
			return key
		}
	}
}

// hash is Jenkins' one-at-a-time, by which an object of class Memcached chooses servers.
func hash(s string) (h uint32) {
	for i := range len(s) {
		h += uint32(s[i])
		h += h << 10
		h ^= h >> 6
	}
	h += h << 3
	h ^= h >> 11
	return h + h<<15
}

// Whoever still reads the cache sees what was written and destroyed here, and nobody here sees what is stale there.
func theCacheHasNothingThatIsNoMore(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	p.save(p, "a", "one", nil)
	if got := p.handler("a"); got != "one" {
		t.Fatalf("the handler reads %q", got)
	}
	p.is(p.cache, "a", "one") // it has filled the cache
	p.save(p, "a", "two", nil)
	p.is(p.cache, "a", "")
	if got := p.handler("a"); got != "two" {
		t.Errorf("the handler reads %q, want two", got)
	}
	if err := p.Touch(in10s(t), "a", time.Now().Add(2*time.Hour)); err != nil {
		t.Error(err)
	}
	p.is(p.cache, "a", "two")
	p.destroy("a", nil)
	p.is(p.cache, "a", "")
	if got := p.handler("a"); got != "" {
		t.Errorf("the handler reads %q after a logout", got)
	}

	// What was put back late, or left by a server that was away, is nobody's session.
	p.save(p.cache, "a", "one", nil)
	p.is(p, "a", "")
	for what, err := range map[string]error{
		"Save IfPresent": p.Save(in10s(t), "a", rec("x"), store.IfPresent),
		"Save IfVersion": p.Save(in10s(t), "a", rec("x"), store.IfVersion(store.VersionOf([]byte("one"), 0))),
	} {
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s on what only the cache has: %v", what, err)
		}
	}
	p.save(p, "b", "new", nil)
	p.save(p.cache, "b", "old", nil)
	p.is(p, "b", "new")
	if all, err := p.InspectAll(in10s(t), []string{"a", "b"}); err != nil || all[0] != nil || string(all[1].Data) != "new" {
		t.Errorf("InspectAll: %v, %v", all, err)
	}
	if page, err := p.Scan(in10s(t), "", 10); err != nil || len(page.Keys) != 1 || page.Keys[0] != "b" {
		t.Errorf("Scan: %v, %v", page.Keys, err)
	}
}

// A write that the seal refuses leaves the table, and gives the cache nothing.
func theSealHoldsForBoth(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	p.save(p, "a", "one", nil)
	mark := store.Mark{Identity: "i", Seal: store.Seal{Workflow: "w", Epoch: 1, Floor: store.FloorSync}}
	if err := p.SwapMark(in10s(t), store.Mark{}, mark); err != nil {
		t.Fatal(err)
	}
	late := p.Under(store.Mark{})
	p.save(late, "a", "two", store.ErrSealed)
	p.save(late, "b", "two", store.ErrSealed)
	if _, err := late.Delete(in10s(t), "a", store.Always); !errors.Is(err, store.ErrSealed) {
		t.Errorf("Delete: %v", err)
	}
	for _, key := range []string{"a", "b"} {
		p.is(p.cache, key, "")
	}
	p.is(p, "a", "one")
}

// One server of the cache hangs: what it keeps is stale as soon as it is replaced, so it is not. It is killed: it keeps nothing.
// Nobody is logged out, nor back in when it comes back, and sessions of the other servers never notice.
func aCacheInTrouble(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:3]...)
	hangs, other, gone := p.on(1), p.on(0), p.on(1)+"x"
	for hash(p.name+":"+gone)%3 != 1 {
		gone += "x"
	}
	for _, key := range []string{hangs, other, gone} {
		p.save(p, key, "in", nil)
		p.handler(key)
		p.is(p.cache, key, "in")
	}
	p.servers[1].Pause()
	p.is(p, hangs, "in")
	p.save(p, hangs, "written", store.ErrUnavailable)
	p.destroy(hangs, store.ErrUnavailable)
	if err := p.Touch(in10s(t), hangs, time.Now().Add(2*time.Hour)); err != nil {
		t.Errorf("Touch: %v", err)
	}
	p.save(p, other, "goes on", nil)
	p.destroy(other, nil)
	p.servers[1].Resume()
	p.is(p.table, hangs, "in") // nothing was done: the client was told so
	p.destroy(hangs, nil)
	if got := p.handler(hangs); got != "" {
		t.Errorf("the handler reads %q after a logout", got)
	}

	p.servers[1].Kill()
	p.is(p, gone, "in")
	p.save(p, gone, "written", nil)
	p.is(p, gone, "written")
	p.destroy(gone, nil)
	p.servers[1].Restart()
	p.is(p, gone, "")
	if got := p.handler(gone); got != "" {
		t.Errorf("the handler reads %q after a logout", got)
	}
}

// The table has it and the cache cannot be asked any more: that is not known to be done, and whoever looks finds it done.
func aCacheThatHangsBetweenTheTwo(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	for _, what := range []string{"save", "destroy"} {
		key := what
		p.save(p, key, "old", nil)
		p.save(p.cache, key, "old", nil)
		s := cached.New(p.cache, hooked{p.table, func() { p.servers[0].Pause() }})
		var err error
		if what == "save" {
			err = s.Save(in10s(t), key, rec("new"), store.Always)
		} else {
			_, err = s.Delete(in10s(t), key, store.Always)
		}
		if !errors.Is(err, store.ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", what, err)
		}
		p.is(p, key, map[string]string{"save": "new"}[what])
		p.servers[0].Resume()
	}
}

// hooked calls a function when the table was written.
type hooked struct {
	store.Origin
	then func()
}

func (h hooked) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	defer h.then()
	return h.Origin.Save(ctx, key, rec, cond)
}

func (h hooked) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	defer h.then()
	return h.Origin.Delete(ctx, key, cond)
}

// A reader fills the cache from the row as it was, between the two removals.
func aReaderThatFillsTheCacheMeanwhile(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	p.save(p, "a", "old", nil)
	s := cached.New(p.cache, hooked{p.table, func() { p.save(p.cache, "a", "old", nil) }})
	if _, err := s.Delete(in10s(t), "a", store.Always); err != nil {
		t.Fatal(err)
	}
	if got := p.handler("a"); got != "" {
		t.Errorf("the handler reads %q after a logout", got)
	}
}

// A cache that comes back empty has lost nothing: the table has it.
func aCacheThatComesBackEmpty(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	mark := store.Mark{Identity: "i"}
	if err := p.SwapMark(in10s(t), store.Mark{}, mark); err != nil {
		t.Fatal(err)
	}
	p.save(p.Under(mark), "a", "in", nil)
	p.handler("a")
	p.servers[0].Restart()
	p.is(p.Under(mark), "a", "in")
	if got, err := p.Mark(in10s(t)); err != nil || got != mark {
		t.Errorf("Mark: %v, %v", got, err)
	}
	if got := p.handler("a"); got != "in" {
		t.Errorf("the handler reads %q", got)
	}
}

// A table that is away takes nothing from the cache's place: reads fail, and are never absent.
func aTableThatIsAway(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	p.save(p, "a", "in", nil)
	p.handler("a")
	my.Kill()
	if _, err := p.Load(in10s(t), "a"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load: %v", err)
	}
	if err := p.Save(in10s(t), "a", rec("x"), store.Always); !store.Failed(err) {
		t.Errorf("Save: %v", err)
	}
	my.Restart()
	p.is(p, "a", "in")
}

// Writers at the same time: in the end the cache has nothing, or what the table has.
func writersAtOnce(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	p := open(t, my, servers[:1]...)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				var err error
				if (w+i)%5 == 0 {
					_, err = p.Delete(in10s(t), "a", store.Always)
				} else {
					err = p.Save(in10s(t), "a", rec(fmt.Sprint(w, "-", i)), store.Always)
				}
				if err != nil && !errors.Is(err, store.ErrUnavailable) { // others write it all the time
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p.save(p, "a", "last", nil)
	p.is(p.cache, "a", "")
	p.is(p, "a", "last")
}

// What plan says of how the two agree.
func whatPlanSays(t *testing.T, my *testserver.MariaDBServer, servers []*testserver.MemcachedServer) {
	for _, tc := range []struct {
		name    string
		does    func(p *parts, i int)
		against string
		fact    string
	}{
		{"both have it", func(p *parts, i int) {}, "", "of 40 sampled sessions of the table 40 are in the cache; of 80 in both 0 have other contents"},
		{"a few copies are stale", func(p *parts, i int) {
			if i == 7 {
				p.save(p.table, "k7", "newer", nil)
			}
		}, "", "of 80 in both 2 have other contents"},
		{"the table is written now and then", func(p *parts, i int) {
			if i%2 == 0 {
				p.t.Helper()
				if err := p.cache.Save(in10s(p.t), fmt.Sprint("k", i), store.Record{Data: []byte("newer"), Expires: time.Now().Add(3 * time.Hour)}, store.Always); err != nil {
					p.t.Error(err)
				}
			}
		}, "does not write the table with every write", "in 40 the cache's ends later"},
		{"the deadline moves in the cache alone", func(p *parts, i int) {
			if err := p.cache.Touch(in10s(p.t), fmt.Sprint("k", i), time.Now().Add(2*time.Hour)); err != nil {
				p.t.Error(err)
			}
		}, "80 of 80 sampled sessions end later in the cache than the table says", "of 80 in both 0 have other contents"},
		{"the table lacks many", func(p *parts, i int) {
			if i%3 == 0 {
				if _, err := p.table.Delete(in10s(p.t), fmt.Sprint("k", i), store.Always); err != nil {
					p.t.Error(err)
				}
			}
		}, "does not write the table with every write", "of 40 sampled of the cache the table lacks 14"},
		{"the cache has none", func(p *parts, i int) {
			if err := p.cache.Forget(in10s(p.t), fmt.Sprint("k", i)); err != nil {
				p.t.Error(err)
			}
		}, "the cache has none of the table's sessions", "of 40 sampled sessions of the table 0 are in the cache"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := open(t, my, servers...)
			for i := range 40 {
				p.save(p.table, fmt.Sprint("k", i), "v", nil)
				p.save(p.cache, fmt.Sprint("k", i), "v", nil)
				tc.does(p, i)
			}
			f, err := p.Check(in10s(t))
			if err != nil {
				t.Fatal(err)
			}
			against, facts := strings.Join(f.Against, "\n"), strings.Join(f.Facts, "\n")
			if !strings.Contains(facts, tc.fact) {
				t.Errorf("facts: %s\nwant %q", facts, tc.fact)
			}
			if (tc.against == "") != (against == "") || !strings.Contains(against, tc.against) {
				t.Errorf("against: %q, want %q", against, tc.against)
			}
		})
	}
	t.Run("a copy never ends", func(t *testing.T) {
		p := open(t, my, servers[0])
		p.save(p.table, "k", "v", nil)
		c, err := net.Dial("tcp", servers[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		answer := make([]byte, 8)
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "set %s:k 0 0 1\r\nv\r\n", p.name)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "STORED\r\n" {
			t.Fatalf("%q, %v", answer, err)
		}
		f, err := p.Check(in10s(t))
		if err != nil || len(f.Against) > 0 || !strings.Contains(strings.Join(f.Advice, "\n"), "2 of 2 sampled sessions never end in the cache") {
			t.Errorf("%v, %+v, %+v", err, f.Against, f.Advice)
		}
	})
	t.Run("a server remembers after a restart", func(t *testing.T) {
		remembers := testserver.Memcached(t, "-m", "64", "-e", filepath.Join(t.TempDir(), "memory"))
		p := open(t, my, servers[0], remembers)
		f, err := p.Check(in10s(t))
		if err != nil || len(f.Against) != 1 || !strings.HasPrefix(f.Against[0], remembers.Addr+": it keeps its memory in a file") {
			t.Errorf("%v, %+v", err, f.Against)
		}
	})
	t.Run("the servers are in another order", func(t *testing.T) {
		p := open(t, my, servers...)
		for i := range 40 {
			p.save(p.table, fmt.Sprint("k", i), "v", nil)
			p.save(p.cache, fmt.Sprint("k", i), "v", nil)
		}
		o := memcached.Options{Client: memcached.Object, Prefix: p.name + ":"}
		for _, s := range []int{2, 0, 1} {
			host, port, _ := net.SplitHostPort(servers[s].Addr)
			n, _ := strconv.Atoi(port)
			o.Servers = append(o.Servers, memcached.Server{Host: host, Port: n})
		}
		wrong, err := memcached.New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer wrong.Close()
		f, err := cached.New(wrong, p.table).Check(in10s(t))
		if err != nil || !strings.Contains(strings.Join(f.Against, "\n"), "40 of 40 sampled names in the cache are not where the handler would look for them") {
			t.Errorf("%v, %+v", err, f.Against)
		}
	})
}
