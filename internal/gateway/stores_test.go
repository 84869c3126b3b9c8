package gateway

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/internal/testserver"
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
