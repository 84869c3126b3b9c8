package migrate

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// What each operation costs in each phase, in calls of the two stores. A call of the target is one round trip and one
// command (store/redis asserts that). What follows the answer, and nobody waits for, stands behind the bar.
func TestBudget(t *testing.T) {
	want := map[Phase]map[string]string{
		Off:       {"load": "O.load", "save": "O.save", "touch": "O.touch", "delete": "O.delete"},
		DualWrite: {"load": "O.load", "save": "O.save | N.copy O.inspect O.inspect", "touch": "O.touch | N.copy O.inspect O.inspect", "delete": "O.delete | N.copy O.inspect O.inspect"},
		Sync:      {"load": "O.load", "save": "N.begin N.commit O.save", "touch": "N.touchmarked O.touch", "delete": "N.begin N.commit O.delete"},
		Live:      {"load": "N.loadmarked", "save": "N.begin N.commit O.save", "touch": "N.touchmarked O.touch", "delete": "N.begin N.commit O.delete"},
		RampDown: {"load": "N.loadmarked", "save": "N.writeahead | N.propagated O.inspect O.save", "touch": "N.touchmarked | O.touch",
			"delete": "N.writeahead | N.propagated O.delete O.inspect"},
		Complete: {"load": "N.load", "save": "N.save", "touch": "N.touch", "delete": "N.delete"},
	}
	simulate(t, func(w *world) {
		g := w.gateway()
		var mu sync.Mutex
		var calls []string
		background := map[string]bool{"mark": true, "renew": true, "control": true, "unsettled": true, "leases": true}
		count := func(side string) func(call, key string) error {
			return func(call, key string) error {
				if !background[call] && key == "k" {
					mu.Lock()
					calls = append(calls, side+"."+call)
					mu.Unlock()
				}
				return nil
			}
		}
		for p := Off; p <= Complete; p++ {
			w.at(p)
			time.Sleep(5 * time.Second)
			w.save(g, "k", "v")
			time.Sleep(time.Second)
			w.origin.set(count("O"), nil)
			w.target.set(count("N"), nil)
			for _, op := range []string{"load", "save", "touch", "delete"} {
				calls = nil
				switch op {
				case "load":
					w.reads(g, "k", "v")
				case "save":
					w.save(g, "k", "v2")
				case "touch":
					w.must(g.Touch(w.ctx(), "k", time.Now().Add(2*time.Hour)))
				case "delete":
					_, err := g.Delete(w.ctx(), "k", store.Always)
					w.must(err)
				}
				mu.Lock()
				answered := append([]string(nil), calls...)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				after := append([]string(nil), calls[len(answered):]...)
				mu.Unlock()
				all := append(append([]string(nil), answered...), after...)
				sort.Strings(all)
				parts := strings.Split(want[p][op], " | ")
				expect := strings.Fields(strings.Join(parts, " "))
				sort.Strings(expect)
				if fmt.Sprint(all) != fmt.Sprint(expect) {
					t.Errorf("%s in %s: %v, want %v", op, p, all, expect)
				}
				// What is asked before the answer is at least what the client waits for, and never more than that
				// and what may have begun to follow.
				for _, call := range strings.Fields(parts[0]) {
					if !strings.Contains(" "+strings.Join(answered, " ")+" ", " "+call+" ") {
						t.Errorf("%s in %s was answered before %s", op, p, call)
					}
				}
			}
			w.origin.up()
			w.target.up()
		}
	})
}
