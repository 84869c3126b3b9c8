package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// users work until end is called, each at every gateway in turn: eight of them count in a session of their own, read what
// they wrote, log out and in; four count in one session under its lock, which they release where they did not take it. Its
// count is how often they had the lock. end returns the ids of sessions that were destroyed.
func users(t testing.TB, prefix string, gateways ...*daemon) (end func() []string) {
	t.Helper()
	var done atomic.Bool
	var wg sync.WaitGroup
	var mu sync.Mutex // guards gone, counted
	var gone []string
	counted := 0
	// user returns who sends a command through the next gateway.
	user := func() func(args ...string) string {
		var clients []*client
		for _, d := range gateways {
			clients = append(clients, d.dial())
		}
		n := 0
		return func(args ...string) string {
			n++
			return clients[n%len(clients)].do(args...)
		}
	}
	for u := range 8 {
		do := user()
		wg.Go(func() {
			for life := 0; !done.Load(); life++ {
				id := fmt.Sprintf("user%dx%d", u, life)
				for n := range 20 {
					want := fmt.Sprintf("n|i:%d;", n)
					if got := do("SETEX", prefix+id, "1440", want); got != "+OK" {
						t.Errorf("SETEX: %s", got)
						return
					}
					if got := do("GET", prefix+id); got != want {
						t.Errorf("GET: %v, want %q", got, want)
						return
					}
				}
				if got := do("DEL", prefix+id); got != ":1" {
					t.Errorf("DEL: %v", got)
				}
				mu.Lock()
				gone = append(gone, id)
				mu.Unlock()
				if got := do("GET", prefix+id); got != "$-1" {
					t.Errorf("logged in again: %v", got)
				}
			}
		})
	}
	key := prefix + "shared"
	for u := range 4 {
		do := user()
		wg.Go(func() {
			for turn := 0; !done.Load(); turn++ {
				token := fmt.Sprintf("%dx%d", u, turn)
				switch got := do("SET", key+"_LOCK", token, "NX", "PX", "20000"); got {
				case "+OK":
				case "$-1":
					continue
				default:
					t.Errorf("lock: %s", got)
					return
				}
				n := 0
				if got := do("GET", key); got != "$-1" {
					fmt.Sscanf(got, "n|i:%d;", &n)
				}
				if got := do("SETEX", key, "1440", fmt.Sprintf("n|i:%d;", n+1)); got != "+OK" {
					t.Errorf("SETEX: %s", got)
				}
				mu.Lock()
				counted++
				mu.Unlock()
				do("PING") // so that it is not where it was taken
				if got := do("EVAL", `if redis.call("GET",KEYS[1]) == ARGV[1] then return redis.call("DEL",KEYS[1]) else return 0 end`, "1", key+"_LOCK", token); got != ":1" {
					t.Errorf("unlock: %s", got)
				}
			}
		})
	}
	return func() []string {
		t.Helper()
		done.Store(true)
		wg.Wait()
		if got, want := user()("GET", key), fmt.Sprintf("n|i:%d;", counted); got != want || counted == 0 {
			t.Errorf("four have counted to %d under a lock, and the session says %q", counted, got)
		}
		t.Logf("%d logouts, %d locks", len(gone), counted)
		return gone
	}
}

// allMoved checks a move that is complete: who is out has nothing in Redis, and 200 sessions quietN that nobody used are there as they
// were, with what was left of their 1,440 seconds. Nothing is owed.
func allMoved(t *testing.T, d *daemon, r *testserver.RedisServer, gone []string) {
	t.Helper()
	for _, id := range gone {
		if got := r.Do("GET", "PHPREDIS_SESSION:"+id); got != nil {
			t.Errorf("%v is out, and Redis has %v", id, got)
		}
	}
	for i := range 200 {
		key := fmt.Sprint("PHPREDIS_SESSION:quiet", i)
		if got := r.Do("GET", key); got != fmt.Sprintf("user|i:%d;", i) {
			t.Fatalf("quiet%d: %v", i, got)
		}
		if ttl := r.Do("TTL", key).(int64); ttl < 1200 || ttl > 1445 {
			t.Errorf("quiet%d lives for %d s", i, ttl)
		}
	}
	if st := d.status(); st.Debt != (migrate.Debt{}) || st.Counters["alarms"] != 0 || st.Counters["unfit"] != 0 {
		t.Errorf("got %+v", st)
	}
}

// A site whose sessions are in Redis moves to another one, to another database, to another prefix: up, back and up again,
// behind two gateways, while its users work.
func TestAMoveFromRedisToRedis(t *testing.T) {
	t.Parallel()
	one, two := redis(t), redis(t)
	page, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile(`ACL SETUSER sessile on .*`).FindString(string(page))
	one.Do(strings.Fields(strings.Replace(rights, "PASSWORD", "secret", 1))...)
	for name, c := range map[string]struct {
		from, to     *testserver.RedisServer
		fromDB, toDB string
		key, target  string // prefixes
		user         string // of the origin: the rights of docs/redis.md are enough
		flags        []string
	}{
		"server":   {one, two, "0", "0", "PHPREDIS_SESSION:", "PHPREDIS_SESSION:", "sessile:secret@", nil},
		"database": {one, one, "1", "2", "PHPREDIS_SESSION:", "PHPREDIS_SESSION:", "", nil},
		"prefix":   {one, one, "3", "3", "a:", "b:", "", []string{"--target-key", "b:"}},
	} {
		t.Run("another "+name, func(t *testing.T) {
			t.Parallel()
			in := func(r *testserver.RedisServer, db string) func(args ...string) string {
				return func(args ...string) string { return r.CLI(append([]string{"-n", db}, args...)...) }
			}
			from, to := in(c.from, c.fromDB), in(c.to, c.toDB)
			from("EVAL", "for i = 0, 199 do redis.call('SETEX', KEYS[1] .. 'quiet' .. i, 1440, 'user|i:' .. i .. ';') end", "1", c.key)
			// quiet counts those who did nothing, and have their session for about as long as they were to.
			quiet := func(in func(args ...string) string, key string) string {
				return in("EVAL", `local n = 0
					for i = 0, 199 do
						local name = KEYS[1] .. 'quiet' .. i
						local ttl = redis.call('TTL', name)
						if redis.call('GET', name) == 'user|i:' .. i .. ';' and ttl > 1200 and ttl <= 1441 then n = n + 1 end
					end
					return n`, "1", key)
			}
			from("SET", "another application's", "x")
			from("ZADD", c.key+"set", "1", "x")

			args := append([]string{"--origin", "redis://" + c.user + c.from.Addr + "/" + c.fromDB, "--origin-key", c.key, "--target", c.to.URL() + "/" + c.toDB, "--bound", "1s"}, c.flags...)
			p := run(t, nil, append([]string{"migrate", "plan"}, args...)...).want(t, 0, "200 sessions in the origin", "")
			for _, want := range []string{"names begin with \"" + c.key + "\"", "deadlines: the first in", "keeps all settings of its session handler", "skipped: type 1", "appendonly"} {
				if !strings.Contains(p.stdout, want) {
					t.Errorf("plan does not say %q: %s", want, p.stdout)
				}
			}
			d, other := serve(t, args...), serve(t, args...)
			if got := d.dial().do("SELECT", c.fromDB); got != "+OK" { // as clients have done all the time
				t.Errorf("SELECT: %s", got)
			}
			d.migrate("create").want(t, 0, "phase off", "")
			// A gateway that has not heard of the move copies nothing in dual-write, and is a foreign writer.
			eventually(t, "both gateways know of it", func() bool { return len(d.status().Gateways) == 2 })
			end := users(t, c.key, d, other)
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			other.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			if n := quiet(from, c.key); n != "200" {
				t.Errorf("of 200 who did nothing the origin has %s", n)
			}
			other.migrate("complete", "--yes").want(t, 0, "phase complete", "")
			end()
			if got := to("KEYS", c.target+"user*"); got != "" {
				t.Errorf("all of them are out, and the target has %s", got)
			}
			if n := quiet(to, c.target); n != "200" {
				t.Errorf("of 200 who did nothing the target has %s", n)
			}
			if got := from("GET", "another application's"); got != "x" {
				t.Errorf("another application's: %q", got)
			}
			if st := d.status(); st.Debt != (migrate.Debt{}) || st.Counters["alarms"] != 0 || st.Counters["unfit"] != 0 {
				t.Errorf("got %+v", st)
			}
			// What was the origin is neither served nor moved to by mistake.
			old := c.from.URL() + "/" + c.fromDB + "?prefix=" + c.key
			plain := []string{"serve", "--target", old, "--listen", fmt.Sprintf("redis://127.0.0.1:%d", port(t)), "--admin", "off"}
			run(t, nil, plain...).want(t, 1, "", "was, the origin of workflow \"default\" (floor ramp-down)")
			back := []string{"migrate", "plan", "--origin", c.to.URL() + "/" + c.toDB + "?prefix=" + c.target, "--target", old, "--workflow", "back"}
			run(t, nil, back...).want(t, 3, "was, the origin of workflow \"default\"", "")
		})
	}
}

// One server under two addresses is one place.
func TestOneRedisUnderTwoAddresses(t *testing.T) {
	r := redis(t)
	at := func(prefix string) []string {
		return []string{"migrate", "plan", "--origin", r.URL() + "?prefix=a:", "--target", "redis+unix://" + r.Socket, "--target-key", prefix}
	}
	run(t, nil, at("a:b")...).want(t, 1, "", "the same database of one server")
	run(t, nil, at("b:")...).want(t, 0, "in the origin", "")
}

// What arrives in a store is not moved on before all has arrived.
func TestAnOriginInTheMiddleOfAMove(t *testing.T) {
	one, two := redis(t), redis(t)
	d := serve(t, site(sessions(t, 3), one.URL())...)
	d.migrate("create").want(t, 0, "", "")
	plan := []string{"migrate", "plan", "--origin", one.URL(), "--origin-key", "PHPREDIS_SESSION:", "--target", two.URL()}
	run(t, nil, plan...).want(t, 3, `is the origin the target of another move? workflow "default" is in phase off`, "")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "10ms").want(t, 0, "", "")
	d.migrate("complete", "--yes").want(t, 0, "", "")
	run(t, nil, plan...).want(t, 0, "3 sessions in the origin", "")
}

// An origin that is killed and has nothing on its disk comes back empty. Nobody is told that he is logged out, in whatever
// phase; in live a person goes on with the target, and then down again with all that it has.
func TestAnOriginThatComesBackEmpty(t *testing.T) {
	t.Parallel()
	for _, phase := range []string{"off", "sync", "live"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			old, target := redis(t), redis(t)
			for i := range 50 {
				old.Do("SETEX", fmt.Sprint("PHPREDIS_SESSION:id", i), "1440", "x")
			}
			d := serve(t, "--origin", old.URL(), "--origin-key", "PHPREDIS_SESSION:", "--target", target.URL(), "--bound", "500ms", "--hold", "1s")
			d.migrate("create").want(t, 0, "", "")
			if phase != "off" {
				d.migrate("switchtraffic", "--to", phase, "--window", "10ms").want(t, 0, "", "")
			}
			var done atomic.Bool
			var wg sync.WaitGroup
			var held atomic.Int64
			for u := range 8 {
				c := d.dial()
				wg.Go(func() {
					for i := u; !done.Load(); i++ {
						if got := c.do("GET", fmt.Sprint("PHPREDIS_SESSION:id", i%50)); got == "$-1" {
							t.Error("logged out")
							return
						} else if got != "x" {
							held.Add(1)
						}
					}
				})
			}
			old.Kill()
			old.Restart()
			if n := old.Do("DBSIZE"); n != int64(0) {
				t.Errorf("the origin has %v keys", n)
			}
			eventually(t, "nobody is served", func() bool { return held.Load() > 16 })
			if got := d.dial().do("SETEX", "PHPREDIS_SESSION:id1", "1440", "y"); !strings.HasPrefix(got, "-") {
				t.Errorf("a write is answered %q", got)
			}
			if st := d.status(); !strings.Contains(st.Serving, "sessile migrate repair") {
				t.Errorf("it says: %s", st.Serving)
			}
			if phase == "live" {
				d.migrate("repair", "--use", "target", "--reason", "no disk").want(t, 0, "phase ramp-down", "")
				d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
				for i := range 50 {
					if got := old.Do("GET", fmt.Sprint("PHPREDIS_SESSION:id", i)); got != "x" {
						t.Errorf("id%d in the origin: %v", i, got)
					}
				}
			} else {
				d.migrate("repair", "--use", "target", "--reason", "no disk").want(t, 2, "", "does not decide anything yet")
			}
			done.Store(true)
			wg.Wait()
			if phase != "live" {
				d.migrate("repair", "--use", "origin", "--reason", "no disk").want(t, 0, "", "")
				eventually(t, "it goes on with what there is", func() bool { return d.dial().do("GET", "PHPREDIS_SESSION:id1") == "$-1" })
			}
		})
	}
}

// Two sites in one database, each with a move of its own.
func TestTwoMovesFromOneDatabase(t *testing.T) {
	old, target := redis(t), redis(t)
	old.Do("SETEX", "a:id", "1440", "of a")
	old.Do("SETEX", "b:id", "1440", "of b")
	var sites [2]*daemon
	for i, name := range []string{"a", "b"} {
		sites[i] = serve(t, "--name", name, "--origin", old.URL(), "--origin-key", name+":", "--target", target.URL(), "--bound", "200ms")
		sites[i].migrate("create").want(t, 0, "", "")
	}
	sites[0].migrate("switchtraffic", "--to", "ramp-down", "--window", "10ms").want(t, 0, "", "")
	sites[0].migrate("complete", "--yes").want(t, 0, "", "")
	if st := sites[1].status(); st.Phase != migrate.Off || st.Serving != "yes" {
		t.Errorf("the other site: %+v", st)
	}
	if got := sites[1].dial().do("GET", "b:id"); got != "of b" {
		t.Errorf("the other site: %s", got)
	}
	if got := target.Do("KEYS", "[ab]:*"); fmt.Sprint(got) != "[a:id]" {
		t.Errorf("the target has %v", got)
	}
	sites[1].migrate("cancel").want(t, 0, "", "")
	if got := sites[0].dial().do("GET", "a:id"); got != "of a" {
		t.Errorf("after the other one was cancelled: %s", got)
	}
}
