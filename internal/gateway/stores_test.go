package gateway

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// The session stores of other languages see through the gateway what they see in Redis, leave there what they leave there, and
// find it there when the gateway is gone.
func TestSessionStores(t *testing.T) {
	databases := testserver.WithConf("databases 64") // one for each
	direct, behind := testserver.Redis(t, databases), testserver.Redis(t, databases)
	for n, st := range testapp.SessionStores {
		if byLoop := n%2 == 0; byLoop != viaLoop {
			continue // one of two, of each language: the others in TestThroughTheLoop, and the other way round
		}
		t.Run(st.Name, func(t *testing.T) {
			t.Parallel()
			var refused refusedOnes
			site := redisSite(t, behind, st.Key, n)
			site.Passed, site.Passage = strings.Fields(st.Pass), site.Store.(Passage)
			gw := startWith(t, site, Options{Hooks: Hooks{Done: refused.note}})
			place := func(addr, kept string) testapp.Place {
				return testapp.Place{URL: fmt.Sprintf("redis://%s/%d", addr, n), Kept: fmt.Sprintf("redis://%s/%d", kept, n)}
			}
			saw := st.Run(t, place(direct.Addr, direct.Addr), place(gw.addr.String(), behind.Addr))
			want, got := saw[0], saw[1]
			if got != want || strings.Count(want, "\n") < 10 {
				t.Errorf("it sees\n%s\nin Redis\n%s", got, want)
			}
			if got, want := kept(behind, n, st), kept(direct, n, st); !slices.Equal(got, want) || want[0] == "" {
				t.Errorf("there lies\n%q\nwithout a gateway\n%q", got, want)
			}
			if list := refused.take(); len(list) > 0 {
				t.Errorf("refused: %q", list)
			}
		})
	}
}

// Sessions of Django in memcached, which have flags, are at the gateway what they are in memcached, and lie in Redis.
func TestSessionStoreOnMemcached(t *testing.T) {
	st := testapp.OnMemcached
	direct, behind := testserver.Memcached(t).Addr, testserver.Redis(t)
	gw := startMemcached(t, redisSite(t, behind, "django:", 0), "prefix="+url.QueryEscape(st.Key))
	front := gw.addr.String()
	saw := st.Run(t, testapp.Place{URL: direct, Kept: direct}, testapp.Place{URL: front, Kept: front})
	if saw[0] != saw[1] || strings.Count(saw[0], "\n") < 20 {
		t.Errorf("it sees\n%s\nin memcached\n%s", saw[1], saw[0])
	}
	names := strings.Fields(behind.CLI("KEYS", "django:*"))
	if len(names) == 0 {
		t.Fatal("nothing lies in Redis")
	}
	if value, _ := behind.Do("GET", names[0]).(string); !store.HasFlags([]byte(value)) {
		t.Errorf("what lies there has no flags: %q", value)
	}
}

// kept lists what lies in a database of r, without the ids: type and lifetime, to a hundred seconds, where the store names one.
// What is in it has times in it.
func kept(r *testserver.RedisServer, database int, st testapp.SessionStore) []string {
	const script = `local all = {}
		for _, k in ipairs(redis.call("KEYS", "*")) do
			local ttl = ARGV[2] == "true" and "" or math.floor((redis.call("TTL", k) + 50) / 100) * 100
			all[#all + 1] = string.gsub(k, "^(" .. ARGV[1] .. ").*", "%1") .. " " .. redis.call("TYPE", k)["ok"] .. " " .. ttl
		end
		table.sort(all)
		return all`
	return strings.Split(r.CLI("-n", strconv.Itoa(database), "EVAL", script, "0", strings.ReplaceAll(st.Key, "-", "%-"), strconv.FormatBool(st.NoTTL)), "\n")
}
