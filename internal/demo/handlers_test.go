package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/open"
	"github.com/sessile/sessile/store/redis"
	"github.com/sessile/sessile/store/sqltable"
)

const accessSet = "ALL_SESSIONS"

// servers are the application servers, of which some have another session handler already. A browser comes to any of them.
type servers struct {
	before, after handler
	where         string // after is
	moved         atomic.Int32
}

const serverCount = 4

func (s *servers) close() {}

func (s *servers) visit(ctx context.Context, v visit) (seen, error) {
	if rand.Int32N(serverCount) < s.moved.Load() {
		return s.after.visit(ctx, v)
	}
	return s.before.visit(ctx, v)
}

// The move of a running PHP site whose handler is hand-written on MySQL: the application servers change one after the other
// to another handler at the gateway, the move goes up, back to off, the servers go back to MySQL, all of it once more, and
// at the end they talk to Redis themselves. Their pages do not lock sessions, so that no two pages of one are loaded at the
// same time, but where all servers have a handler that does.
func TestPHPHandlersMoveUnderLoad(t *testing.T) {
	t.Run("behind memcached, to phpredis", func(t *testing.T) {
		moveFromMySQL(t, destination{prefix: prefix, codec: "", locks: true, cached: true, ini: func(addr string) map[string]string {
			return map[string]string{"session.save_handler": "redis", "session.save_path": "tcp://" + addr, "redis.session.locking_enabled": "1",
				"redis.session.lock_retries": "500", "redis.session.lock_wait_time": "20000"}
		}})
	})
	t.Run("to a handler with an access set", func(t *testing.T) {
		moveFromMySQL(t, destination{codec: "php-object", set: true, ini: func(addr string) map[string]string {
			return map[string]string{"session.save_path": addr, "auto_prepend_file": testdata(t, "redis_handler.php"),
				"session.gc_probability": "1", "session.gc_divisor": "10"} // a collector in every tenth page
		}})
	})
}

// destination is the handler that a site moves to, and where it comes from.
type destination struct {
	prefix, codec string
	locks, set    bool
	cached        bool // memcached stands before the table that the site comes from
	ini           func(addr string) map[string]string
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func moveFromMySQL(t *testing.T, d destination) {
	const bound = 2 * time.Second // a busy machine has room in it
	my, server := testserver.MariaDB(t), testserver.Redis(t)
	my.Exec("CREATE TABLE php_sessions (id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, data MEDIUMBLOB NOT NULL, access INT UNSIGNED NOT NULL) ENGINE=InnoDB")
	start := func(workers int, ini map[string]string) fpm {
		for name, value := range map[string]string{"session.gc_maxlifetime": "1440", "session.gc_probability": "0", "session.use_strict_mode": "0"} {
			if _, own := ini[name]; !own {
				ini[name] = value
			}
		}
		f := testserver.FPM(t, testserver.FPMOptions{Ini: ini, Workers: workers, Extensions: []string{"pdo_mysql", "memcached"}})
		f.Script("page.php", page)
		return fpm{f}
	}
	dsn, old := "mysql:unix_socket="+my.Socket+";dbname=app", "mysql_handler.php"
	var caches []string
	if d.cached {
		for range 3 {
			caches = append(caches, testserver.Memcached(t).Addr)
		}
		dsn, old = dsn+" "+strings.Join(caches, ","), "mysql_memcached_handler.php"
	}
	onMySQL := start(4, map[string]string{"session.save_path": dsn, "auto_prepend_file": testdata(t, old)})

	w := &world{opt: Options{Visitors: 100}, began: time.Now()}
	defer w.close()
	origin := my.URL("app") + "?table=php_sessions&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s&lazy=true"
	if d.codec != "" {
		origin += "&codec=" + d.codec
	}
	if d.cached {
		origin = "cached(memcached://" + strings.Join(caches, ",") + "?client=memcached-object&prefix=sess_, " + origin + ")"
	}
	u, err := open.Parse(origin)
	if err != nil {
		t.Fatal(err)
	}
	if w.origin, err = open.Origin(t.Context(), u, open.Options{Bound: bound}); err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() { w.origin.Close() })
	at, err := url.Parse(server.URL() + "/0?prefix=" + url.QueryEscape(d.prefix))
	if err != nil {
		t.Fatal(err)
	}
	target, err := redis.Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() { target.Close() })
	w.target, w.redis = target, server.Addr
	w.change = func(opt *migrate.Options, site *gateway.Site) {
		opt.Times = migrate.DefaultTimes(bound)
		if site.Prefix = d.prefix; d.set {
			site.AccessSet, site.Sets = accessSet, target
			opt.OwnsKey = func(key string) bool { return key != accessSet }
		}
	}
	if err := w.startGateway(); err != nil {
		t.Fatal(err)
	}
	onGateway := start(8, d.ini(w.addr))

	w.traffic = &traffic{rec: recorder.New(), pace: 10 * time.Millisecond, times: map[string][]float64{}}
	w.traffic.alone.Store(true)
	phase := "MySQL"
	first := phase
	w.traffic.phase.Store(&first)
	all := &servers{before: onMySQL, after: onGateway, where: "at the gateway"}
	w.through(func(int) handler { return all })
	for i := range w.opt.Visitors {
		id := newID()
		w.traffic.members = append(w.traffic.members, id)
		if !w.traffic.page(t.Context(), 0, visit{id: id, login: fmt.Sprint("user", i)}) {
			t.Fatal("a login failed")
		}
	}
	long := time.Now().Unix() - 2000
	if d.set {
		// From an earlier attempt: the set knows everybody as of long ago. And there are some who were never seen again.
		for _, id := range w.traffic.members {
			server.Do("ZADD", accessSet, strconv.FormatInt(long, 10), id)
		}
		for i := range 10 {
			my.Exec(fmt.Sprintf("INSERT INTO php_sessions VALUES ('idle%d', 'user|s:4:\"idle\";', %d)", i, long))
			server.Do("ZADD", accessSet, strconv.FormatInt(long, 10), fmt.Sprint("idle", i))
		}
	}

	visitors, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 8) })
	defer wg.Wait()
	defer leave()
	var before recorder.Report
	enter := func(name string) {
		r := w.traffic.rec.Report()
		t.Logf("%-24s %5d requests, %d failed, %d logged out, %d undone, %d lost", phase, r.Requests-before.Requests, r.Failures-before.Failures,
			r.LoggedOut-before.LoggedOut, r.LogoutsUndone-before.LogoutsUndone, r.LostUpdates-before.LostUpdates)
		before = r
		now := name
		phase = name
		w.traffic.phase.Store(&now)
	}
	stay := func(d time.Duration) { (&site{}).stay(d) }
	move := func(by int32) {
		for range serverCount {
			w.traffic.alone.Store(true)
			n := all.moved.Add(by)
			enter(fmt.Sprintf("%d of %d %s", n, serverCount, all.where))
			stay(300 * time.Millisecond)
		}
		stay(300 * time.Millisecond) // pages that have begun on another server come to their end
		w.traffic.alone.Store(by < 0 || !d.locks)
	}
	stay(300 * time.Millisecond)
	opt := migrate.StepOptions{Window: time.Second}
	climb := func(steps ...migrate.Phase) {
		phaseNow := migrate.Off
		for _, next := range steps {
			enter(phaseNow.String() + " -> " + next.String())
			if next > phaseNow {
				err = w.engine.SwitchTraffic(t.Context(), next, opt)
			} else {
				err = w.engine.ReverseTraffic(t.Context(), next, opt)
			}
			if err != nil {
				t.Fatal(err)
			}
			phaseNow = next
			enter(next.String())
			stay(300 * time.Millisecond)
			for _, id := range w.traffic.members {
				ttl, _ := server.Do("TTL", d.prefix+id).(int64)
				if next >= migrate.Sync && (ttl < 1300 || ttl > 1441) {
					t.Fatalf("%s: a session has %d s left in Redis", next, ttl)
				}
			}
		}
	}
	move(+1)
	if err := w.engine.Create(t.Context(), migrate.StepOptions{}); err != nil {
		t.Fatal(err)
	}
	climb(migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown, migrate.Live, migrate.Sync, migrate.DualWrite, migrate.Off)
	w.traffic.alone.Store(true)
	stay(300 * time.Millisecond)
	move(-1)
	if d.set { // while they were back on MySQL nobody kept the set
		if score(t, server, w.traffic.members[0]) == float64(long) {
			t.Error("the access set was not kept")
		}
		for _, id := range w.traffic.members {
			server.Do("ZADD", accessSet, strconv.FormatInt(long, 10), id)
		}
	}
	move(+1)
	climb(migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown)
	if err := w.engine.Complete(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	enter("complete")
	stay(500 * time.Millisecond)
	if d.set {
		for i := range 10 {
			if got := server.Do("ZSCORE", accessSet, fmt.Sprint("idle", i)); got != nil {
				t.Errorf("idle%d was never collected", i)
			}
		}
		if n := my.Exec("SELECT COUNT(*) FROM php_sessions WHERE id LIKE 'idle%'"); n != "0" {
			t.Errorf("%s idle sessions are in MySQL", n)
		}
	}

	// One server after the other leaves the gateway out.
	direct := start(4, d.ini(server.Addr))
	all = &servers{before: onGateway, after: direct, where: "on Redis"}
	w.through(func(int) handler { return all })
	stay(100 * time.Millisecond)
	move(+1)
	leave()
	wg.Wait()
	for _, id := range w.traffic.members {
		if !w.traffic.page(t.Context(), 0, visit{id: id, add: "direct-" + id}) {
			t.Error("a page failed on Redis directly")
		}
		if d.set {
			if at := score(t, server, id); at < float64(w.began.Unix()) {
				t.Errorf("a session that is in use has the time of access %f", at)
			}
		}
	}
	enter("end")
	codec, _ := sqltable.ParseCodec("php-object")
	if err := w.traffic.rec.Final("a plain client at the end", func(id string) (bool, []string, error) {
		v, err := server.Try("GET", d.prefix+id)
		if err != nil || v == nil {
			return false, nil, err
		}
		body := []byte(fmt.Sprint(v))
		if d.codec != "" {
			row, err := codec.Write(id, body)
			if err != nil {
				return false, nil, err
			}
			body = row.Data
		}
		user, items := parse(body)
		return user != "", items, nil
	}); err != nil {
		t.Fatal(err)
	}
	r := w.traffic.rec.Report()
	if r.Bad() || r.Requests < 1000 || r.Failures > 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("the report: %+v", r)
	for _, key := range strings.Fields(server.CLI("KEYS", "*")) {
		if strings.HasPrefix(key, "sessile:") && key != "sessile:control" {
			t.Errorf("%q was left in the target", key)
		}
	}
}

// score is the time of access that the set has for id.
func score(t *testing.T, server *testserver.RedisServer, id string) float64 {
	t.Helper()
	at, err := strconv.ParseFloat(fmt.Sprint(server.Do("ZSCORE", accessSet, id)), 64)
	if err != nil {
		t.Fatalf("%s is not in the access set: %v", id, err)
	}
	return at
}
