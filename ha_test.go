package sessile_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store/redis"
)

func openRedis(t *testing.T, at string) *redis.Store {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	st, err := redis.Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// In a Cluster a session keeps its slot under each token, so that a login is one step there, too.
func TestInACluster(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	st := openRedis(t, c.URL()+"?prefix=shop%3A&track=yes")
	s := newPages(t, st, sessile.Options{})
	for range 20 {
		b := s.window("")
		b.want("/add", "")
		slot := c.Slot("shop:" + b.get("/key"))
		for _, path := range []string{"/login", "/renew", "/login"} {
			old := b.get("/key")
			b.want(path, "")
			if key := b.get("/key"); key == old || c.Slot("shop:"+key) != slot {
				t.Errorf("%s: %s in slot %d becomes %s in slot %d", path, old, slot, key, c.Slot("shop:"+key))
			}
		}
		b.want("/", `"alice" 1`)
	}
	list, err := s.m.Sessions(t.Context(), "alice")
	if len(list) != 20 || err != nil {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	if n, err := s.m.Revoke(t.Context(), "alice", list[0].Key); n != 19 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if list, err = s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
		t.Errorf("%d sessions, %v", len(list), err)
	}
}

// While the primary changes, planned and killed, users buy, log in and log out: nobody is logged out or back in, and what was
// acknowledged is there.
func TestWhileRedisFailsOver(t *testing.T) {
	servers := testserver.Sentinel(t, testserver.SentinelOptions{})
	st := openRedis(t, servers.URL()+"?prefix=shop%3A&track=yes")
	for _, near := range []bool{false, true} {
		opt := sessile.Options{Idle: 10 * 60e9}
		if near {
			opt.Near = 5e9
		}
		s := newPages(t, st, opt)
		var stop atomic.Bool
		var wg sync.WaitGroup
		var asked, failed atomic.Int64
		for i := range 8 {
			wg.Go(func() {
				b, n := s.window(""), 0
				for !stop.Load() {
					for _, c := range []struct{ path, want string }{{"/login", ""}, {"/add", ""}, {"/add", ""}, {"/", ""}, {"/renew", ""}, {"/add", ""}, {"/", ""}, {"/logout", ""}, {"/", ""}} {
						old := b.cookie
						got := b.get(c.path)
						if asked.Add(1); strings.HasPrefix(got, "5") {
							failed.Add(1)
							if b.cookie != old {
								t.Errorf("browser %d: %s: %s, and another cookie", i, c.path, got)
							}
							if c.path != "/" { // whether it was done is not known
								b, n = s.window(""), 0
								break
							}
							continue
						}
						switch c.path {
						case "/add":
							n++
						case "/logout":
							n = 0
							if again := s.window(old).get("/"); !strings.HasPrefix(again, "5") && again != `"" 0` {
								t.Errorf("browser %d: a logout was undone: %s", i, again)
							}
						case "/":
							want := fmt.Sprintf(`"alice" %d`, n)
							if b.cookie == "" {
								want = `"" 0`
							}
							if got != want {
								t.Errorf("browser %d: got %s, want %s", i, got, want)
							}
						}
					}
				}
			})
		}
		former := servers.Primary()
		if near {
			former.Kill()
		} else {
			servers.Failover()
		}
		servers.WaitPrimary(former)
		after := asked.Load()
		for asked.Load() < after+2000 && !t.Failed() { // they go on with the new one
			s.window("").get("/")
		}
		stop.Store(true)
		wg.Wait()
		t.Logf("near %v: %d requests, %d failed", near, asked.Load(), failed.Load())
		if near {
			former.Restart()
		}
		servers.WaitOK()
	}
}

// PHP keeps the session of sessions of five values in 248 bytes.
func TestASessionIsSmall(t *testing.T) {
	server := testserver.Redis(t)
	st := openRedis(t, "redis://"+server.Addr+"/0?prefix=s%3A")
	type values struct {
		Name string `json:"name"`
		CSRF string `json:"csrf"`
		N    int    `json:"n"`
		Seen int64  `json:"seen"`
	}
	m, err := sessile.New[values](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	key := loggedIn(t, m, strings.Repeat("u", 36), values{strings.Repeat("n", 13), strings.Repeat("c", 32), 42, 1_800_000_000})
	if got := fmt.Sprint(server.Do("MEMORY", "USAGE", "s:"+string(key))); got > "248" || len(got) != 3 {
		t.Errorf("%s bytes", got)
	}
}
