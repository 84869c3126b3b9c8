package gateway

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/redis"
)

const phpPrefix = "PHPREDIS_SESSION:"

// redisSite is a site whose sessions lie in r as phpredis itself would put them there.
func redisSite(t testing.TB, r *testserver.RedisServer, prefix string, database int) Site {
	t.Helper()
	u, err := url.Parse(fmt.Sprintf("%s/%d?prefix=%s", r.URL(), database, url.QueryEscape(prefix)))
	if err != nil {
		t.Fatal(err)
	}
	st, err := redis.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return Site{Store: st, Prefix: prefix, Database: database}
}

// holds lists what lies in a database of r: key, type, value, and the lifetime to ten seconds.
func holds(r *testserver.RedisServer, database int) map[string]string {
	db := strconv.Itoa(database)
	all := map[string]string{}
	for key := range strings.FieldsSeq(r.CLI("-n", db, "KEYS", "*")) {
		ttl, _ := strconv.Atoi(r.CLI("-n", db, "TTL", key))
		all[key] = fmt.Sprintf("%s, %d s, %q", r.CLI("-n", db, "TYPE", key), (ttl+5)/10*10, r.CLI("-n", db, "GET", key))
	}
	return all
}

// phpredis through the gateway prints what it prints with Redis, and leaves there what it leaves there.
func TestPHPRedisHandler(t *testing.T) {
	php := testserver.PHP(t)
	direct, behind := testserver.Redis(t), testserver.Redis(t)
	const begin = `<?php ob_start(); error_reporting(E_ALL); ini_set("display_errors", "1");
		function page($id, $f, $opt = []) { session_id($id); $ok = session_start($opt); $r = $ok ? $f() : "no session";
			if (session_status() == PHP_SESSION_ACTIVE) session_write_close();
			echo "page $id: ", var_export($ok, true), " ", var_export($r, true), "\n"; }
		function set($k, $v) { return function() use ($k, $v) { $_SESSION[$k] = $v; return $_SESSION; }; }
		function get() { return function() { return $_SESSION; }; }
	`
	cases := []struct {
		name, script string
		ini          map[string]string
		params       string // of the save path
		prefix       string
		database     int
	}{
		{name: "new, read, change", script: `page("a", set("user", "alice")); page("a", get()); page("a", set("n", 7)); page("a", get());`},
		{name: "unchanged", script: `page("a", set("user", "alice")); page("a", get()); page("a", get());`,
			ini: map[string]string{"session.gc_maxlifetime": "300"}},
		{name: "unchanged, no lazy_write", script: `page("a", set("user", "alice")); page("a", get());`,
			ini: map[string]string{"session.lazy_write": "0"}},
		{name: "a shorter life", script: `page("a", set("user", "alice")); ini_set("session.gc_maxlifetime", "100"); page("a", get());`},
		{name: "empty", script: `page("a", get()); page("a", get()); page("b", get());`},
		{name: "regenerate", script: `page("a", set("user", "alice")); page("a", function() { session_create_id(); $old = $_SESSION;
			session_regenerate_id(false); $_SESSION["id"] = "new"; session_id() != "a" or print("same id"); return $old; }); page("a", get());`},
		{name: "regenerate and delete", script: `page("a", set("user", "alice")); page("a", function() { session_regenerate_id(true);
			$_SESSION["id"] = "new"; return $_SESSION; }); page("a", get());`},
		{name: "destroy", script: `page("a", set("user", "alice")); page("a", function() { return session_destroy(); }); page("a", get());`},
		{name: "destroy what is not there", script: `page("a", function() { return session_destroy(); });`},
		{name: "abort", script: `page("a", set("user", "alice")); page("a", function() { $_SESSION["x"] = 1; session_abort(); return 1; }); page("a", get());`},
		{name: "reset", script: `page("a", set("user", "alice")); page("a", function() { $_SESSION["x"] = 1; session_reset(); return $_SESSION; });`},
		{name: "read and close", script: `page("a", set("user", "alice")); page("a", get(), ["read_and_close" => true]);`},
		{name: "strict, known", script: `page("a", set("user", "alice")); ini_set("session.use_strict_mode", "1"); page("a", get()); echo session_id();`},
		{name: "strict, unknown", script: `session_id("unknown"); echo session_start() ? "ok" : "no"; echo session_id() == "unknown" ? "adopted" : "new";
			session_abort();`, ini: map[string]string{"session.use_strict_mode": "1"}},
		{name: "php_serialize", script: `page("a", set("user", "alice")); page("a", get());`, ini: map[string]string{"session.serialize_handler": "php_serialize"}},
		{name: "php_binary", script: `page("a", set("user", "alice")); page("a", get());`, ini: map[string]string{"session.serialize_handler": "php_binary"}},
		{name: "igbinary", script: `page("a", set("user", "alice")); page("a", get());`, ini: map[string]string{"session.serialize_handler": "igbinary"}},
		{name: "binary data", script: `$b = ""; for ($i = 0; $i < 256; $i++) $b .= chr($i); page("a", set("b", $b)); page("a", get());`},
		{name: "half a megabyte", script: `page("a", set("b", str_repeat("\r\n\0x", 125000))); page("a", function() { return md5($_SESSION["b"]); });`},
		{name: "persistent", script: `page("a", set("user", "alice")); page("a", get()); page("b", set("x", 1)); page("a", set("y", 2)); page("a", get());`,
			params: "persistent=1"},
		{name: "persistent with a login", script: `page("a", set("user", "alice")); page("a", get());`, params: "persistent=1&auth[]=default&auth[]=secret"},
		{name: "login as a user", script: `page("a", set("user", "alice")); page("a", get());`, params: "auth[]=bob&auth[]=b%26b"},
		{name: "prefix and database", script: `page("a", set("user", "alice")); page("a", get()); page("a", function() { return session_destroy(); }); page("b", get());`,
			params: "database=3&prefix=APP1_", prefix: "APP1_", database: 3},
		{name: "locking", script: `page("a", set("user", "alice")); page("a", get()); page("a", function() { session_regenerate_id(true); return 1; });
			page("a", function() { return session_destroy(); }); page("c", get());`, ini: map[string]string{"redis.session.locking_enabled": "1"}},
		{name: "locking with expiry", script: `page("a", set("user", "alice")); page("a", set("n", 1)); page("a", get());`,
			ini: map[string]string{"redis.session.locking_enabled": "1", "redis.session.lock_expire": "20"}},
		{name: "locking, persistent", script: `page("a", set("user", "alice")); page("a", set("n", 1)); page("b", get()); page("a", get());`,
			ini: map[string]string{"redis.session.locking_enabled": "1"}, params: "persistent=1"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			direct.Do("FLUSHALL")
			behind.Do("FLUSHALL")
			prefix := tc.prefix
			if prefix == "" {
				prefix = phpPrefix
			}
			site := redisSite(t, behind, prefix, tc.database)
			if strings.Contains(tc.params, "bob") {
				direct.Do("ACL", "SETUSER", "bob", "on", ">b&b", "~*", "+@all")
				site.Users = []User{{Name: "bob", Passwords: []string{"b&b"}}}
			} else if strings.Contains(tc.params, "auth") {
				direct.Do("CONFIG", "SET", "requirepass", "secret")
				site.Users = []User{{Passwords: []string{"secret"}}}
			}
			gw := start(t, site)
			run := func(addr string) string {
				ini := map[string]string{"session.save_handler": "redis", "session.save_path": "tcp://" + addr + "?" + tc.params,
					"session.use_cookies": "0", "session.cache_limiter": ""}
				maps.Copy(ini, tc.ini)
				return php.Run(begin+tc.script, ini)
			}
			want, got := run(direct.Addr), run(gw.addr.String())
			if got != want {
				t.Errorf("PHP prints\n%swith Redis\n%s", got, want)
			}
			if strings.Contains(want, "Warning") {
				t.Errorf("the test itself: %s", want)
			}
			if strings.Contains(tc.params, "default") {
				direct.CLI("-a", "secret", "CONFIG", "SET", "requirepass", "")
			}
			if got, want := contents(holds(behind, tc.database)), contents(holds(direct, tc.database)); !slices.Equal(got, want) {
				t.Errorf("there lies\n%q\nwith Redis\n%q", got, want)
			}
			if n := gw.Stats(); n.LocksHeld != 0 {
				t.Errorf("%d locks are left", n.LocksHeld)
			}
		})
	}
}

// contents are what holds found, with one name for all ids that PHP made up.
func contents(all map[string]string) (list []string) {
	for key, what := range all {
		if len(key) > 30 {
			key = key[:len(key)-26] + "(new id)"
		}
		list = append(list, key+": "+what)
	}
	slices.Sort(list)
	return list
}

// rediscluster, which is told that everything lies at the gateway, prints what it prints at a Cluster, and leaves there what
// it leaves there. The gateway listens at all addresses.
func TestPHPRedisClusterHandler(t *testing.T) {
	php, behind := testserver.PHP(t), testserver.Redis(t)
	direct := testserver.Cluster(t, testserver.ClusterOptions{Primaries: 2, Replicas: -1})
	const begin = `<?php ob_start(); error_reporting(E_ALL); ini_set("display_errors", "1");
		function page($id, $f) { session_id($id); $ok = session_start(); $r = $f(); session_status() == PHP_SESSION_ACTIVE && session_write_close();
			echo "page $id: ", var_export($ok, true), " ", var_export($r, true), "\n"; }
		function set($k, $v) { return function() use ($k, $v) { $_SESSION[$k] = $v; return $_SESSION; }; }
		function get() { return function() { return $_SESSION; }; }
		page("a", set("user", "alice")); page("b", set("b", "\r\n\0x")); page("a", get()); page("a", set("n", 7)); page("c", get());
		page("b", function() { return session_destroy(); }); page("a", function() { session_regenerate_id(true); $_SESSION["id"] = "new"; return $_SESSION; });
		page("a", get()); page("b", get());`
	for _, tc := range []struct {
		name, params, prefix string
		ini                  map[string]string
	}{
		{name: "plain"},
		{name: "with timeouts", params: "&timeout=2&read_timeout=2&failover=error"},
		{name: "persistent", params: "&persistent=1"},
		{name: "slots cached", ini: map[string]string{"redis.clusters.cache_slots": "1"}},
		{name: "persistent, slots cached", params: "&persistent=1", ini: map[string]string{"redis.clusters.cache_slots": "1"}},
		{name: "a prefix", params: "&prefix=APP1_", prefix: "APP1_"},
		{name: "reads from replicas", params: "&failover=distribute"},
		{name: "replicas if need be", params: "&failover=error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			behind.Do("FLUSHALL")
			site := redisSite(t, behind, cmp.Or(tc.prefix, "PHPREDIS_CLUSTER_SESSION:"), 0)
			site.Insecure = true
			l, err := net.Listen("tcp", "0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			gw := startOn(t, site, Options{}, l)
			_, port, _ := net.SplitHostPort(gw.addr.String())
			run := func(seeds ...string) string {
				ini := map[string]string{"session.save_handler": "rediscluster", "session.use_cookies": "0", "session.cache_limiter": "",
					"session.save_path": "seed[]=" + strings.Join(seeds, "&seed[]=") + tc.params}
				maps.Copy(ini, tc.ini)
				return php.Run(begin, ini)
			}
			var nodes []string
			there := map[string]string{}
			for _, n := range direct.Nodes {
				n.Do("FLUSHALL")
				nodes = append(nodes, n.Addr)
			}
			want, got := run(nodes...), run("127.0.0.2:"+port)
			if got != want || strings.Contains(want, "Warning") {
				t.Errorf("PHP prints\n%swith a Cluster\n%s", got, want)
			}
			for _, n := range direct.Nodes {
				maps.Copy(there, holds(n, 0))
			}
			if got, want := contents(holds(behind, 0)), contents(there); !slices.Equal(got, want) || len(want) < 3 {
				t.Errorf("there lies\n%q\nwith a Cluster\n%q", got, want)
			}
		})
	}
}

func TestPHPOverUnixSocket(t *testing.T) {
	php, r := testserver.PHP(t), testserver.Redis(t)
	path := t.TempDir() + "/s"
	startOn(t, redisSite(t, r, phpPrefix, 0), Options{}, listenAt(t, "redis+unix://"+path))
	php.Run(`<?php session_id("a"); session_start(); $_SESSION["user"] = "alice";`, map[string]string{"session.save_handler": "redis",
		"session.save_path": "unix://" + path, "session.use_cookies": "0"})
	if got := r.CLI("GET", phpPrefix+"a"); got != `user|s:5:"alice";` {
		t.Errorf("in Redis: %q", got)
	}
}

// With phpredis' defaults a lock that is not free within 20 ms is not waited for, and the page's writes are refused. The
// gateway parks the request instead: no update is lost, and none is refused.
func TestPHPProcessesThatContend(t *testing.T) {
	php, r := testserver.PHP(t), testserver.Redis(t)
	gw := start(t, redisSite(t, r, phpPrefix, 0))
	const processes, pages = 4, 10
	ini := map[string]string{"session.save_handler": "redis", "session.save_path": "tcp://" + gw.addr.String(), "session.use_cookies": "0",
		"redis.session.locking_enabled": "1", "max_execution_time": "30"}
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			out, stderr, err := php.Try(t.Context(), fmt.Sprintf(`<?php set_time_limit(30); for ($i = 0; $i < %d; $i++) { session_id("a"); session_start();
				$n = $_SESSION["n"] ?? 0; usleep(5000); $_SESSION["n"] = $n + 1; session_write_close(); }`, pages), ini)
			if out != "" || err != nil {
				t.Errorf("PHP says: %s%s %v", out, stderr, err)
			}
		})
	}
	wg.Wait()
	if got, want := r.CLI("GET", phpPrefix+"a"), fmt.Sprintf("n|i:%d;", processes*pages); got != want {
		t.Errorf("the counter: %s, want %s", got, want)
	}
}

// clients.md 4.4: what PHP makes of the answers of a gateway whose store is away. Nobody gets another id, and no page dies.
func TestPHPWhileTheStoreIsAway(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Prefix: phpPrefix, Hold: 50 * time.Millisecond, LockWait: 50 * time.Millisecond})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", phpPrefix+"a", "100", `user|s:5:"alice";`)
	for _, ini := range []map[string]string{{}, {"session.use_strict_mode": "1"}, {"redis.session.locking_enabled": "1"},
		{"redis.session.locking_enabled": "1", "session.use_strict_mode": "1"}} {
		all := map[string]string{"session.save_handler": "redis", "session.save_path": "tcp://" + gw.addr.String(), "display_errors": "0"}
		maps.Copy(all, ini)
		fpm := testserver.FPM(t, testserver.FPMOptions{Ini: all, Workers: 1})
		fpm.Script("page.php", `<?php echo @session_start() ? "started " . ($_SESSION["user"] ?? "nobody") : "not started";`)
		fpm.Script("write.php", `<?php session_start(); $_SESSION["n"] = 1; echo "written";`)
		page := func(script string) (body string, cookies []string) {
			t.Helper()
			resp, err := fpm.Get(t.Context(), script, "", map[string]string{"PHPSESSID": "a"})
			if err != nil || resp.Status != 200 {
				t.Fatalf("%v: %v, %+v", ini, err, resp)
			}
			return string(resp.Body), resp.Header.Values("Set-Cookie")
		}
		for _, err := range []error{store.ErrUnavailable, store.ErrUnknown} {
			st.set(failing(err, "load", "save", "touch", "delete", "lock", "unlock", "holder"), nil)
			if body, cookies := page("page.php"); body != "not started" || len(cookies) > 0 {
				t.Errorf("%v, %v: PHP says %q and sets %q", ini, err, body, cookies)
			}
			st.set(failing(err, "save"), nil)
			if body, cookies := page("write.php"); !strings.HasSuffix(body, "written") || len(cookies) > 0 {
				t.Errorf("%v, %v: PHP says %q and sets %q", ini, err, body, cookies)
			}
			st.set(nil, nil)
			if body, cookies := page("page.php"); body != "started alice" || len(cookies) > 0 {
				t.Errorf("%v, %v: afterwards PHP says %q and sets %q", ini, err, body, cookies)
			}
			c.want(bulk(`user|s:5:"alice";`), "GET", phpPrefix+"a")
		}
	}
}

// phpredis' own class, as hand-written handlers use it: what PHP sees is what it would see of Redis.
func TestPHPRedisWithAnAccessSet(t *testing.T) {
	php, direct, behind := testserver.PHP(t), testserver.Redis(t), testserver.Redis(t)
	site := redisSite(t, behind, "app:", 0)
	site.Lifetime, site.AccessSet, site.Sets = time.Hour, "app:ALL", site.Store.(SortedSets)
	gw := start(t, site)
	const script = `<?php
		[$host, $port] = explode(":", $argv[1]);
		$r = new Redis; $r->connect($host, (int) $port); $r->setOption(Redis::OPT_PREFIX, "app:");
		$all = "ALL"; $now = 4000000000; // later than any session was written: nobody is in use
		$say = function (...$what) { foreach ($what as $w) echo json_encode($w), "\n"; };
		$say($r->zAdd($all, $now, "a"), $r->zAdd($all, $now + 1, "a"), $r->zAdd($all, ["CH"], $now + 2, "a", $now, "b"), $r->zAdd($all, ["XX"], 5, "nobody"),
			$r->zAdd($all, ["NX"], 5, "a", 6.5, "c"), $r->zAdd($all, ["INCR"], 1.5, "c"), $r->zAdd($all, ["XX", "INCR"], 1, "nobody"));
		$say($r->zScore($all, "a"), $r->zScore($all, "nobody"), $r->zCard($all), $r->zCount($all, 0, "($now"), $r->zRange($all, 0, -1), $r->zRange($all, 0, -1, true),
			$r->zRangeByScore($all, "-inf", "($now"), $r->zRangeByScore($all, 0, "+inf", ["withscores" => true, "limit" => [1, 1]]), $r->zRangeByScore($all, 9, 1));
		$say($r->zRem($all, "b", "nobody"), $r->zRem($all, "b"), $r->zRemRangeByScore($all, 0, "($now"), $r->zCard($all));
		$say($r->pipeline()->set("s", "v")->zAdd($all, $now, "s")->get("s")->exec());
		$say($r->multi()->set("s", "w", 100)->zAdd($all, $now + 1, "s")->get("s")->zRangeByScore($all, 0, $now + 1)->exec());
		$say($r->multi()->set("s", "x")->discard(), $r->get("s"));
		foreach ($r->zRangeByScore($all, 0, "(" . ($now + 2)) as $id) $say($id, $r->del($id), $r->zRem($all, $id));
		$say($r->get("s"), $r->zRange($all, 0, -1), $r->getLastError());`
	want, got := php.Run(script, nil, direct.Addr), php.Run(script, nil, gw.addr.String())
	if got != want || strings.Count(want, "\n") < 25 {
		t.Errorf("PHP prints\n%swith Redis\n%s", got, want)
	}
	if got, want := behind.CLI("ZRANGE", "app:ALL", "0", "-1", "WITHSCORES"), direct.CLI("ZRANGE", "app:ALL", "0", "-1", "WITHSCORES"); got != want || got == "" {
		t.Errorf("the set is %q, with Redis %q", got, want)
	}
}
