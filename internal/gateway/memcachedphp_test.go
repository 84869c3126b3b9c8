package gateway

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// A handler is one of PHP's for memcached, in one of its protocols.
type handler struct {
	name, listen, lock string // lock: of the session a
	path               func(addr string) string
	ini                map[string]string
}

func plainPath(addr string) string { return addr }
func tcpPath(addr string) string   { return "tcp://" + addr + "?retry_interval=1" } // 15 s that a worker does not ask a server again

var handlers = []handler{
	{"memcached", "client=php-memcached", "memc.sess.key.lock.a", plainPath, nil},
	{"memcached text", "client=php-memcached", "memc.sess.key.lock.a", plainPath, map[string]string{"memcached.sess_binary_protocol": "0"}},
	{"memcache", "client=php-memcache", "a.lock", tcpPath, nil},
	{"memcache binary", "client=php-memcache", "a.lock", tcpPath, map[string]string{"memcache.protocol": "binary"}},
}

// php returns the ini settings of a page whose sessions are at addr.
func (h *handler) php(addr string, more map[string]string) map[string]string {
	name, _, _ := strings.Cut(h.name, " ")
	ini := map[string]string{"session.save_handler": name, "session.save_path": h.path(addr), "session.use_cookies": "0", "session.cache_limiter": "",
		"max_execution_time": "30"}
	maps.Copy(ini, h.ini)
	maps.Copy(ini, more)
	return ini
}

// PHP's handlers for memcached print through the gateway what they print with memcached, and leave in Redis what the redis handler
// would have left there.
func TestPHPMemcachedHandlers(t *testing.T) {
	php := testserver.PHP(t, "memcached", "memcache")
	r := testserver.Redis(t)
	const begin = `<?php ob_start(); error_reporting(E_ALL); ini_set("display_errors", "1"); set_time_limit(30);
		function page($id, $f, $opt = []) { session_id($id); $ok = session_start($opt); $r = $ok ? $f() : "no session";
			if (session_status() == PHP_SESSION_ACTIVE) session_write_close();
			echo "page $id: ", var_export($ok, true), " ", var_export($r, true), "\n"; }
		function set($k, $v) { return function() use ($k, $v) { $_SESSION[$k] = $v; return $_SESSION; }; }
		function get() { return function() { return $_SESSION; }; }
	`
	strict := map[string]string{"session.use_strict_mode": "1"}
	cases := []struct {
		name, script string
		ini          map[string]string
		only         string // a handler
		left         []string
	}{
		{name: "new, read, change", script: `page("a", set("user", "alice")); page("a", get()); page("a", set("n", 7)); page("a", get());`,
			left: []string{`a: string, 1440 s, "user|s:5:\"alice\";n|i:7;"`}},
		{name: "unchanged", script: `page("a", set("user", "alice")); page("a", get()); page("a", get());`,
			ini: map[string]string{"session.gc_maxlifetime": "300"}, left: []string{`a: string, 300 s, "user|s:5:\"alice\";"`}},
		{name: "unchanged, no lazy_write", script: `page("a", set("user", "alice")); page("a", get());`,
			ini: map[string]string{"session.lazy_write": "0"}, left: []string{`a: string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "over thirty days", script: `page("a", set("user", "alice")); page("a", get());`,
			ini: map[string]string{"session.gc_maxlifetime": "2600000"}, left: []string{`a: string, 2600000 s, "user|s:5:\"alice\";"`}},
		{name: "a shorter life", script: `page("a", set("user", "alice")); ini_set("session.gc_maxlifetime", "100"); page("a", get());`,
			left: []string{`a: string, 100 s, "user|s:5:\"alice\";"`}},
		{name: "empty", script: `page("a", get()); page("a", get()); page("b", get());`, left: []string{`a: string, 1440 s, ""`, `b: string, 1440 s, ""`}},
		{name: "regenerate", script: `page("a", set("user", "alice")); page("a", function() { $old = $_SESSION;
			session_regenerate_id(false); $_SESSION["id"] = "new"; session_id() != "a" or print("same id"); return $old; }); page("a", get());`,
			left: []string{`(new id): string, 1440 s, "user|s:5:\"alice\";id|s:3:\"new\";"`, `a: string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "regenerate and delete", script: `page("a", set("user", "alice")); page("a", function() { session_regenerate_id(true);
			$_SESSION["id"] = "new"; return $_SESSION; });`, left: []string{`(new id): string, 1440 s, "user|s:5:\"alice\";id|s:3:\"new\";"`}},
		{name: "regenerate, strict", script: `page("a", set("user", "alice")); ini_set("session.use_strict_mode", "1");
			page("a", function() { session_regenerate_id(true); $_SESSION["id"] = "new"; return $_SESSION; });`},
		{name: "destroy", script: `page("a", set("user", "alice")); page("a", function() { return session_destroy(); }); page("b", get());`,
			left: []string{`b: string, 1440 s, ""`}},
		{name: "destroy, and again", script: `page("a", set("user", "alice")); page("a", function() { return session_destroy(); }); page("a", get());`,
			left: []string{`a: string, 1440 s, ""`}},
		{name: "destroy what is not there", script: `page("a", function() { return session_destroy(); });`},
		{name: "abort", script: `page("a", set("user", "alice")); page("a", function() { $_SESSION["x"] = 1; session_abort(); return 1; });`,
			left: []string{`a: string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "read and close", script: `page("a", set("user", "alice")); page("a", get(), ["read_and_close" => true]);`,
			left: []string{`a: string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "strict, known", script: `page("a", set("user", "alice")); ini_set("session.use_strict_mode", "1"); page("a", get()); page("a", get()); echo session_id();`,
			left: []string{`a: string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "strict, unknown", script: `session_id("unknown"); echo session_start() ? "ok" : "no"; echo session_id() == "unknown" ? "adopted" : "new";
			session_abort();`, ini: strict},
		{name: "an id that php made", script: `echo session_start() ? "ok" : "no"; $_SESSION["user"] = "alice"; session_write_close(); echo strlen(session_id());`,
			left: []string{`(new id): string, 1440 s, "user|s:5:\"alice\";"`}},
		{name: "igbinary", script: `page("a", set("user", "alice")); page("a", get());`, ini: map[string]string{"session.serialize_handler": "igbinary"}},
		{name: "binary data", script: `$b = ""; for ($i = 0; $i < 256; $i++) $b .= chr($i); page("a", set("b", $b)); page("a", get());`},
		{name: "a large body", script: `page("a", set("b", str_repeat("\r\n\0x", 250000))); page("a", function() { return md5($_SESSION["b"]); });`},
		{name: "a large body that is hardly compressed", script: `mt_srand(1); $b = ""; for ($i = 0; $i < 900000; $i++) $b .= chr(mt_rand(0, 255));
			page("a", set("b", $b)); page("a", function() { return md5($_SESSION["b"]); });`},
		{name: "no locking", script: `page("a", set("user", "alice")); page("a", get()); page("a", function() { session_regenerate_id(true); return 1; }); page("c", get());`,
			ini: map[string]string{"memcached.sess_locking": "0"}, only: "memcached"},
		{name: "persistent", script: `page("a", set("user", "alice")); page("a", get()); page("b", set("x", 1)); page("a", set("y", 2)); page("a", get());`,
			ini: map[string]string{"memcached.sess_persistent": "1"}, only: "memcached"},
		{name: "hostile ids", script: `foreach (["lock.a", "sessile:x", str_repeat("x", 240), "a\x7fb", "a_LOCK"] as $id) {
			session_id($id); @session_start(); $_SESSION["x"] = 1; @session_write_close(); }`},
	}
	for i, h := range handlers {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			direct := testserver.Memcached(t)
			site := redisSite(t, r, phpPrefix, i)
			for _, tc := range cases {
				if !strings.HasPrefix(h.name, tc.only) {
					continue
				}
				r.CLI("-n", strconv.Itoa(i), "FLUSHDB")
				clear(t, direct)
				gw := startMemcached(t, site, h.listen)
				want, got := php.Run(begin+tc.script, h.php(direct.Addr, tc.ini)), php.Run(begin+tc.script, h.php(gw.addr.String(), tc.ini))
				if got != want {
					t.Errorf("%s: PHP prints\n%.1000swith memcached\n%.1000s", tc.name, got, want)
				}
				if strings.Contains(want, "Warning") {
					t.Errorf("the test %s itself: %s", tc.name, want)
				}
				all := holds(r, i)
				if !strings.HasPrefix(h.name, "memcached") {
					delete(all, phpPrefix+"a_LOCK") // php-memcache does not release the lock of a page that only reads
				}
				is := contents(all)
				for i := range is {
					is[i] = strings.TrimPrefix(is[i], phpPrefix)
				}
				if tc.left != nil && !slices.Equal(is, tc.left) {
					t.Errorf("%s: there lies\n%.1000q\nwant\n%q", tc.name, is, tc.left)
				}
			}
		})
	}
}

// clear makes a memcached empty.
func clear(t *testing.T, m *testserver.MemcachedServer) {
	t.Helper()
	nc, err := net.Dial(m.Network, m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.send("flush_all\r\n")
	if got := c.line(); got != "OK\r\n" {
		t.Fatalf("flush_all: %q", got)
	}
	c.close()
}

// line reads one line.
func (c *client) line() string {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	for !bytes.Contains(c.buf, []byte("\n")) {
		var b [4 << 10]byte
		n, err := c.nc.Read(b[:])
		if c.buf = append(c.buf, b[:n]...); n == 0 && err != nil {
			c.t.Fatalf("no line: %v (got %q)", err, c.buf)
		}
	}
	i := bytes.IndexByte(c.buf, '\n') + 1
	line := string(c.buf[:i])
	c.buf = bytes.Clone(c.buf[i:])
	return line
}

// clients.md 6.4 and 7.1: what PHP makes of a store that is away. Nobody gets another id, and nothing is written over what could not
// be read.
func TestPHPMemcachedWhileTheStoreIsAway(t *testing.T) {
	for _, h := range handlers {
		for _, more := range []map[string]string{{}, {"session.use_strict_mode": "1"}, {"memcached.sess_locking": "0"},
			{"memcached.sess_locking": "0", "session.use_strict_mode": "1"}, {"memcached.sess_persistent": "1", "session.use_strict_mode": "1"}} {
			memcached := strings.HasPrefix(h.name, "memcached")
			if !memcached && len(more) > 0 {
				continue // it knows none of it
			}
			t.Run(fmt.Sprint(h.name, more), func(t *testing.T) {
				t.Parallel()
				st := newScripted()
				gw := startMemcached(t, Site{Store: st, Hold: 50 * time.Millisecond, LockWait: 50 * time.Millisecond}, h.listen)
				const alice = `user|s:5:"alice";`
				if err := st.Save(t.Context(), "a", store.Record{Data: []byte(alice), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
					t.Fatal(err)
				}
				ini := h.php(gw.addr.String(), more)
				ini["session.use_cookies"], ini["session.cache_limiter"], ini["display_errors"] = "1", "nocache", "0"
				fpm := testserver.FPM(t, testserver.FPMOptions{Ini: ini, Workers: 1, Extensions: []string{"memcached", "memcache"}})
				fpm.Script("page.php", `<?php echo @session_start() ? "started " . ($_SESSION["user"] ?? "nobody") : "not started";`)
				fpm.Script("write.php", `<?php $ok = @session_start(); $_SESSION["n"] = 1; $told = false; set_error_handler(function() use (&$told) { $told = true; });
					$ok && session_write_close(); echo $told ? "told" : "not told";`)
				page := func(script string) (body string, cookies []string) {
					t.Helper()
					resp, err := fpm.Get(t.Context(), script, "", map[string]string{"PHPSESSID": "a"})
					if err != nil || resp.Status != 200 {
						t.Fatalf("%v, %+v", err, resp)
					}
					return string(resp.Body), resp.Header.Values("Set-Cookie")
				}
				for _, err := range []error{store.ErrUnavailable, store.ErrUnknown} {
					for _, ops := range []string{"load save touch delete lock unlock holder", "load"} {
						st.set(failing(err, strings.Fields(ops)...), nil)
						want := "not started"
						if !memcached {
							want = "started nobody"
						}
						if body, cookies := page("page.php"); body != want || len(cookies) > 0 {
							t.Errorf("%v, %s: PHP says %q and sets %q", err, ops, body, cookies)
						}
						if _, cookies := page("write.php"); len(cookies) > 0 {
							t.Errorf("%v, %s: it sets %q", err, ops, cookies)
						}
					}
					st.set(nil, nil)
					eventually(t, "the session as it was", func() bool { body, cookies := page("page.php"); return body == "started alice" && len(cookies) == 0 })
					st.set(failing(err, "save"), nil)
					if body, cookies := page("write.php"); body != "told" || len(cookies) > 0 {
						t.Errorf("%v, save: PHP says %q and sets %q", err, body, cookies)
					}
					st.set(nil, nil)
					eventually(t, "the session as it was", func() bool { body, cookies := page("page.php"); return body == "started alice" && len(cookies) == 0 })
					if rec, err := st.Store.Load(t.Context(), "a"); string(rec.Data) != alice {
						t.Errorf("there lies %q, %v", rec.Data, err)
					}
				}
			})
		}
	}
}

// Three handlers at once on one site: one lock, and the same sessions. No update is lost.
func TestPHPHandlersThatContend(t *testing.T) {
	php, r := testserver.PHP(t, "memcached", "memcache"), testserver.Redis(t)
	gw := start(t, redisSite(t, r, phpPrefix, 0))
	inis := []map[string]string{{"session.save_handler": "redis", "session.save_path": "tcp://" + gw.addr.String(), "session.use_cookies": "0",
		"session.cache_limiter": "", "redis.session.locking_enabled": "1"}}
	for _, h := range handlers {
		l, err := ListenURL("memcached://127.0.0.1:0?" + h.listen)
		if err != nil {
			t.Fatal(err)
		}
		go gw.Serve(l)
		inis = append(inis, h.php(l.Addr().String(), nil))
	}
	const pages = 8
	var wg sync.WaitGroup
	for _, ini := range inis {
		wg.Go(func() {
			out, stderr, err := php.Try(t.Context(), fmt.Sprintf(`<?php set_time_limit(30); for ($i = 0; $i < %d; $i++) { session_id("a");
				session_start() or print("no session "); $n = $_SESSION["n"] ?? 0; usleep(5000); $_SESSION["n"] = $n + 1; session_write_close(); }`, pages), ini)
			if out != "" || err != nil {
				t.Errorf("PHP says: %s%s %v", out, stderr, err)
			}
		})
	}
	wg.Wait()
	if got, want := r.CLI("GET", phpPrefix+"a"), fmt.Sprintf("n|i:%d;", len(inis)*pages); got != want {
		t.Errorf("the counter: %s, want %s", got, want)
	}
}

// php-memcached says who it is where the site has users; who says it wrongly has no session.
func TestPHPMemcachedLogsIn(t *testing.T) {
	php := testserver.PHP(t, "memcached", "memcache")
	gw := startMemcached(t, Site{Users: []User{{Name: "bob", Passwords: []string{"secret"}}}}, "")
	for password, want := range map[string]string{"secret": "session", "wrong": "no session", "": "no session"} {
		ini := map[string]string{}
		if password != "" {
			ini = map[string]string{"memcached.sess_sasl_username": "bob", "memcached.sess_sasl_password": password}
		}
		if got := php.Run(`<?php session_id("a"); echo @session_start() ? "session" : "no session"; $_SESSION["x"] = 1;`, handlers[0].php(gw.addr.String(), ini)); got != want {
			t.Errorf("password %q: %s, want %s", password, got, want)
		}
	}
}

// A gateway that restarts behind a socket that stays logs nobody out, in strict mode either.
func TestPHPMemcachedAndARestart(t *testing.T) {
	for _, h := range handlers {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			st := newScripted()
			own, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			inherit := func() net.Listener {
				f, err := own.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				l, err := net.FileListener(f)
				if err != nil {
					t.Fatal(err)
				}
				q, _ := url.ParseQuery(h.listen)
				front, err := newFront(q)
				if err != nil {
					t.Fatal(err)
				}
				return &memcachedListener{l, front}
			}
			if err := st.Save(t.Context(), "a", store.Record{Data: []byte(`user|s:5:"alice";`), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
				t.Fatal(err)
			}
			gw := startOn(t, Site{Store: st}, Options{}, inherit())
			ini := h.php(own.Addr().String(), map[string]string{"session.use_strict_mode": "1"})
			ini["session.use_cookies"], ini["session.cache_limiter"], ini["display_errors"] = "1", "nocache", "0"
			fpm := testserver.FPM(t, testserver.FPMOptions{Ini: ini, Workers: 1, Extensions: []string{"memcached", "memcache"}})
			fpm.Script("page.php", `<?php echo @session_start() ? "started " . ($_SESSION["user"] ?? "nobody") : "not started";`)
			page := func() {
				resp, err := fpm.Get(t.Context(), "page.php", "", map[string]string{"PHPSESSID": "a"})
				if err != nil || string(resp.Body) != "started alice" || len(resp.Header.Values("Set-Cookie")) > 0 {
					t.Errorf("%v, %+v", err, resp)
				}
			}
			page()
			if err := gw.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(page) // while nobody accepts
			startOn(t, Site{Store: st}, Options{}, inherit())
			wg.Wait()
			page()
		})
	}
}

// php-memcache goes on with an empty session where it got no lock in twice its lock_timeout, or no session, and writes that: at once, or
// after retry_interval. What is there stays.
func TestPHPMemcacheWritesNoEmptySession(t *testing.T) {
	php := testserver.PHP(t, "memcached", "memcache")
	const alice = `user|s:5:"alice";`
	for _, h := range handlers[2:] {
		for _, tc := range []struct {
			name string
			do   func(t *testing.T, st *scripted)
		}{
			{"another page has the lock", func(t *testing.T, st *scripted) {
				if err := st.Lock(t.Context(), "a", "another", time.Minute); err != nil {
					t.Fatal(err)
				}
			}},
			{"the store is away", func(t *testing.T, st *scripted) {
				var until atomic.Pointer[time.Time]
				st.set(func(op, _ string) error {
					end := time.Now().Add(300 * time.Millisecond)
					if until.CompareAndSwap(nil, &end); time.Now().Before(*until.Load()) {
						return store.ErrUnavailable
					}
					return nil
				}, nil)
			}},
		} {
			t.Run(h.name+", "+tc.name, func(t *testing.T) {
				t.Parallel()
				st := newScripted()
				gw := startMemcached(t, Site{Store: st, Hold: 50 * time.Millisecond, LockWait: 50 * time.Millisecond}, h.listen)
				if err := st.Save(t.Context(), "a", store.Record{Data: []byte(alice), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
					t.Fatal(err)
				}
				tc.do(t, st)
				out := php.Run(`<?php session_id("a"); echo @session_start() ? "started " . ($_SESSION["user"] ?? "nobody") : "not started"; usleep(2100000); $_SESSION["n"] = 1;
					set_error_handler(function() { echo " told"; }); session_write_close();`, h.php(gw.addr.String(), map[string]string{"memcache.lock_timeout": "1"}))
				if out != "started nobody told" {
					t.Errorf("PHP says %q", out)
				}
				if rec, err := st.Store.Load(t.Context(), "a"); string(rec.Data) != alice {
					t.Errorf("there lies %q, %v", rec.Data, err)
				}
			})
		}
	}
}

// Sites with copies of their sessions on two servers have two gateways. Quiet commands go to the second one: its answers are nobody else's,
// which with memcached they are where connections are kept, and a copy that comes late does not matter.
func TestPHPMemcachedCopies(t *testing.T) {
	testserver.PHP(t, "memcached", "memcache")
	for _, h := range handlers {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			st := newScripted()
			paths := make([]string, 2)
			for i := range paths {
				paths[i] = strings.Replace(h.path(startMemcached(t, Site{Store: st}, h.listen).addr.String()), "?", "?persistent=1&", 1)
			}
			ini := h.php("", map[string]string{"memcached.sess_number_of_replicas": "1", "memcached.sess_persistent": "1", "memcache.session_redundancy": "3", "session.save_path": strings.Join(paths, ",")})
			ini["session.use_cookies"], ini["session.cache_limiter"], ini["display_errors"] = "1", "nocache", "1"
			fpm := testserver.FPM(t, testserver.FPMOptions{Ini: ini, Workers: 1, Extensions: []string{"memcached", "memcache"}})
			fpm.Script("page.php", `<?php $ok = session_start(); echo $ok ? "" : "not started "; if (isset($_GET["out"])) { session_destroy(); echo "out"; exit; }
				echo $_SESSION["who"] ?? "nobody", " ", $_SESSION["n"] ?? 0; $_SESSION["who"] = session_id(); $_SESSION["n"] = ($_SESSION["n"] ?? 0) + 1;`)
			for _, round := range []struct{ query, want string }{{"", "nobody 0"}, {"", "ID 1"}, {"out=1", "out"}, {"", "nobody 0"}, {"", "ID 1"}, {"", "ID 2"}} {
				for i := range 12 { // some have the one for their own, some the other
					id := fmt.Sprint("user", i)
					resp, err := fpm.Get(t.Context(), "page.php", round.query, map[string]string{"PHPSESSID": id})
					if err != nil {
						t.Fatal(err)
					}
					if want := strings.Replace(round.want, "ID", id, 1); string(resp.Body) != want {
						t.Errorf("%s: got %.200q, want %q", id, resp.Body, want)
					}
				}
			}
		})
	}
}
