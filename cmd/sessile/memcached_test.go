package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// inMemcached has PHP's handler of that name write 200 sessions to three servers, and returns them with the URL of the origin.
func inMemcached(t *testing.T, handler string) (servers []*testserver.MemcachedServer, url string) {
	t.Helper()
	php := testserver.PHP(t, "memcached", "memcache")
	url = "memcached://"
	var path []string
	for i := range 3 {
		s := testserver.Memcached(t)
		servers = append(servers, s)
		path = append(path, map[string]string{"memcached": "", "memcache": "tcp://"}[handler]+s.Addr)
		if i > 0 {
			url += ","
		}
		url += s.Addr
	}
	php.Run(`<?php for ($i = 0; $i < 200; $i++) { session_id("quiet$i"); session_start(); $_SESSION['user'] = $i; session_write_close(); }`,
		map[string]string{"session.save_handler": handler, "session.save_path": strings.Join(path, ","), "session.use_cookies": "0",
			"session.cache_limiter": "", "session.gc_maxlifetime": "1440"})
	return servers, url + "?client=php-" + handler
}

// A PHP site whose sessions are in three memcached servers moves to Redis, up, back and up again, behind two gateways, while its
// users work. Nobody misses anything, and who is out stays out.
func TestAMoveFromMemcached(t *testing.T) {
	for _, handler := range []string{"memcached", "memcache"} {
		t.Run(handler, func(t *testing.T) {
			_, origin := inMemcached(t, handler)
			r := redis(t)
			args := []string{"--origin", origin, "--origin-key", "PHPREDIS_SESSION:", "--target", r.URL(), "--bound", "2s"}
			p := run(t, nil, append([]string{"migrate", "plan"}, args...)...).want(t, 0, "200 sessions in the origin", "")
			for _, want := range []string{"3 memcached servers, written by php-" + handler, "deadlines: the first in", "evict anything, the mark too", "in the same order"} {
				if !strings.Contains(p.stdout, want) {
					t.Errorf("plan does not say %q: %s", want, p.stdout)
				}
			}
			d, other := serve(t, args...), serve(t, args...)
			d.migrate("create").want(t, 0, "phase off", "")
			eventually(t, "both gateways know of it", func() bool { return len(d.status().Gateways) == 2 })
			end := users(t, "PHPREDIS_SESSION:", d, other)
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			other.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
			allMoved(t, d, r, end())
		})
	}
}

// One of three servers restarts, and a third of all sessions is gone. Nobody is told that he is logged out, in whatever phase; in
// live a person goes on with the target, and then down again with all that it has.
func TestAMemcachedThatComesBackEmpty(t *testing.T) {
	for _, phase := range []string{"dual-write", "live"} {
		t.Run(phase, func(t *testing.T) {
			servers, origin := inMemcached(t, "memcached")
			d := serve(t, "--origin", origin, "--origin-key", "PHPREDIS_SESSION:", "--target", redis(t).URL(), "--bound", "500ms", "--hold", "1s")
			d.migrate("create").want(t, 0, "", "")
			d.migrate("switchtraffic", "--to", phase, "--window", "10ms").want(t, 0, "", "")
			var done atomic.Bool
			var wg sync.WaitGroup
			var held atomic.Int64
			for u := range 8 {
				c := d.dial()
				wg.Go(func() {
					for i := u; !done.Load(); i++ {
						switch got := c.do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", i%200)); {
						case got == "$-1":
							t.Error("logged out")
							return
						case got != fmt.Sprintf("user|i:%d;", i%200):
							held.Add(1)
						}
					}
				})
			}
			servers[1].Restart()
			eventually(t, "nobody is served", func() bool { return held.Load() > 16 })
			eventually(t, "it says what to do", func() bool { return strings.Contains(d.status().Serving, "sessile migrate repair") })
			if phase == "live" {
				d.migrate("repair", "--use", "target", "--reason", "restarted").want(t, 0, "phase ramp-down", "")
				d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
				c := d.dial()
				for i := range 200 {
					if got := c.do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", i)); got != fmt.Sprintf("user|i:%d;", i) {
						t.Errorf("quiet%d from the origin: %v", i, got)
					}
				}
			}
			done.Store(true)
			wg.Wait()
			if phase != "live" {
				d.migrate("repair", "--use", "origin", "--reason", "restarted").want(t, 0, "", "")
				eventually(t, "it goes on with what there is", func() bool {
					there := 0
					c := d.dial()
					for i := range 200 {
						if strings.HasPrefix(c.do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", i)), "user|") {
							there++
						}
					}
					return there > 0 && there < 200
				})
			}
		})
	}
}

// From ramp-down on the origin may be behind. When one of three servers has come back empty, the others still say so, and a gateway
// that has just begun, and cannot reach the target, serves nobody from what is left.
func TestNobodyIsServedFromWhatAMemcachedHasLeft(t *testing.T) {
	servers, origin := inMemcached(t, "memcached")
	r := redis(t)
	args := []string{"--origin", origin, "--origin-key", "PHPREDIS_SESSION:", "--target", r.URL(), "--bound", "500ms", "--hold", "1s"}
	d := serve(t, args...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "10ms").want(t, 0, "", "")
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	if got := d.dial().do("DEL", "PHPREDIS_SESSION:quiet0"); got != ":1" {
		t.Fatalf("logout: %v", got)
	}
	r.Kill()
	for i := range servers {
		servers[i].Restart()
		c := serve(t, args...).dial()
		for id := range 3 { // on all servers, more or less
			if got := c.do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", id)); !strings.HasPrefix(got, "-") {
				t.Errorf("without server %d and the target, quiet%d is told %q", i, id, got)
			}
		}
		if i == 1 {
			break // without the last one nobody knows anything
		}
	}
}

// A site whose sessions are in memcached moves to Redis behind its own handler, unchanged but for the address. Some pages have phpredis'
// handler already: both see the same sessions in every phase, and at the end Redis has them as phpredis would have left them.
func TestAMoveBehindMemcachedHandlers(t *testing.T) {
	for _, handler := range []string{"memcached", "memcache"} {
		t.Run(handler, func(t *testing.T) {
			php := testserver.PHP(t, "memcached", "memcache")
			servers, origin := inMemcached(t, handler)
			r := redis(t)
			front := fmt.Sprintf("127.0.0.1:%d", port(t))
			d := serve(t, "--listen", "memcached://"+front+"?client=php-"+handler, "--origin", origin, "--origin-key", "PHPREDIS_SESSION:", "--target", r.URL(), "--bound", "2s")
			path := map[string]string{"memcached": "", "memcache": "tcp://"}[handler]
			page := func(handler, path, id, add string) string {
				t.Helper()
				return php.Run(`<?php session_id($argv[1]); session_start() or print("no session"); echo json_encode($_SESSION); $argv[2] and $_SESSION[$argv[2]] = 1;`,
					map[string]string{"session.save_handler": handler, "session.save_path": path, "session.use_cookies": "0", "session.cache_limiter": "",
						"redis.session.locking_enabled": "1", "max_execution_time": "30"}, id, add)
			}
			want, n := `{"user":7`, 0
			look := func(phase string) {
				t.Helper()
				for _, at := range [][2]string{{handler, path + front}, {"redis", "tcp://" + d.addr}} {
					n++
					if got := page(at[0], at[1], "quiet7", fmt.Sprint("p", n)); got != want+"}" {
						t.Errorf("%s: %s sees %s, want %s}", phase, at[0], got, want)
					}
					want += fmt.Sprintf(`,"p%d":1`, n)
				}
			}
			look("before")
			// Who still uses the servers sees it, too.
			if got := page(handler, path+servers[0].Addr+","+path+servers[1].Addr+","+path+servers[2].Addr, "quiet7", ""); got != want+"}" {
				t.Errorf("memcached itself: %s, want %s}", got, want)
			}
			d.migrate("create").want(t, 0, "phase off", "")
			for _, phase := range []string{"dual-write", "sync", "live", "ramp-down"} {
				d.migrate("switchtraffic", "--to", phase, "--window", "10ms").want(t, 0, "phase "+phase, "")
				look(phase)
			}
			d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
			look("complete")
			u := "tcp://" + r.Addr
			if got := page("redis", u, "quiet7", ""); got != want+"}" {
				t.Errorf("phpredis at Redis: %s, want %s}", got, want)
			}
			if got := r.Do("GET", "PHPREDIS_SESSION:quiet7_LOCK"); got != nil {
				t.Errorf("a lock is left: %v", got)
			}
		})
	}
}

// Sessions of other handlers than PHP's have flags. They keep them in every phase, up and back, and for good in Redis.
func TestFlagsMoveToo(t *testing.T) {
	s, r := testserver.Memcached(t), redis(t)
	front := fmt.Sprintf("127.0.0.1:%d", port(t))
	// ask says something to a memcached, or the gateway, and returns the answer that ends in a line of that.
	ask := func(addr, send, last string) string {
		t.Helper()
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(nc, send)
		var got strings.Builder
		for in := bufio.NewReader(nc); ; {
			line, err := in.ReadString('\n')
			if got.WriteString(line); strings.TrimSpace(line) == last || err != nil {
				return strings.ReplaceAll(got.String(), "\r\n", " ")
			}
		}
	}
	type value struct {
		flags uint32
		data  string
	}
	want := map[string]value{}
	set := func(addr, key string, v value) {
		t.Helper()
		if got := ask(addr, fmt.Sprintf("set :1:%s %d 1440 %d\r\n%s\r\n", key, v.flags, len(v.data), v.data), "STORED"); got != "STORED " {
			t.Errorf("set %s: %s", key, got)
		}
		want[key] = v
	}
	for i := range 120 {
		set(s.Addr, fmt.Sprint("s", i), value{uint32(i % 3 * 8), fmt.Sprint("data", i%2)})
	}
	look := func(where, addr string) {
		t.Helper()
		for key, v := range want {
			answer := fmt.Sprintf("VALUE :1:%s %d %d %s END ", key, v.flags, len(v.data), v.data)
			if got := ask(addr, "get :1:"+key+"\r\n", "END"); got != answer {
				t.Errorf("%s: got %q, want %q", where, got, answer)
			}
		}
	}
	stores := []string{"--origin", "memcached://" + s.Addr + "?prefix=:1:", "--target", r.URL(), "--target-key", "django:"}
	run(t, nil, append([]string{"migrate", "plan"}, stores...)...).want(t, 0, "80 of 120 sampled sessions carry flags", "")
	d := serve(t, append(stores, "--listen", "memcached://"+front+"?prefix=:1:")...)
	d.migrate("create").want(t, 0, "phase off", "")
	n := 0
	use := func(phase string) {
		t.Helper()
		look(phase, front)
		for i, flags := range []uint32{0, 8, 1<<32 - 1} { // what was there before has others, and some have the same data
			n++
			set(front, fmt.Sprint("s", 40*i+n), value{flags, "data0"})
			set(front, fmt.Sprint("new", n), value{flags, phase})
		}
		gone := fmt.Sprint("s", 10+n)
		if got := ask(front, "delete :1:"+gone+"\r\n", "DELETED"); got != "DELETED " {
			t.Errorf("%s: delete: %s", phase, got)
		}
		delete(want, gone)
		if got := ask(front, "touch :1:s3 1000\r\nappend :1:s5 0 0 1\r\n+\r\n", "STORED"); got != "TOUCHED STORED " {
			t.Errorf("%s: touch and append: %s", phase, got)
		}
		want["s5"] = value{want["s5"].flags, want["s5"].data + "+"}
		look(phase, front)
	}
	for _, phases := range [][]string{{"off", "dual-write", "sync", "live", "ramp-down", "live", "sync", "dual-write", "off"}, {"dual-write", "sync", "live", "ramp-down"}} {
		at := "off"
		for i, phase := range phases {
			if up := i > 0 && i < 5 || len(phases) < 9; phase != at && up {
				d.migrate("switchtraffic", "--to", phase, "--window", "10ms").want(t, 0, "phase "+phase, "")
			} else if phase != at {
				d.migrate("reversetraffic", "--to", phase).want(t, 0, "phase "+phase, "")
			}
			at = phase
			use(phase)
			if phase != "live" && phase != "ramp-down" {
				look(phase+", memcached itself", s.Addr)
			}
		}
	}
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	use("complete")
	c := d.dial()
	for key, v := range want {
		lies := v.data
		if v.flags > 0 {
			lies = fmt.Sprintf("\x00sessile:flags=%d\n%s", v.flags, v.data)
		}
		if got := r.Do("GET", "django:"+key); got != lies {
			t.Errorf("in Redis there is %q, want %q", got, lies)
		}
		if got := c.do("GET", key); got != v.data {
			t.Errorf("a client of Redis sees %q, want %q", got, v.data)
		}
	}
	// What looks so, and has no flags, is what it is.
	const odd = "\x00sessile:flags=5\nx"
	if got := c.do("SETEX", "odd", "100", odd) + c.do("GET", "odd"); got != "+OK"+odd {
		t.Errorf("a client of Redis writes what looks like flags: %q", got)
	}
	if got, want := ask(front, "get :1:odd\r\n", "END"), fmt.Sprintf("VALUE :1:odd 0 %d %s END ", len(odd), odd); got != want {
		t.Errorf("a client of memcached sees %q, want %q", got, want)
	}
}
