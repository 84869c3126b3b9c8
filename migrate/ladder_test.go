package migrate

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sessile/sessile/store"
)

func TestLadderUpAndDown(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		for i := range 50 {
			w.save(g, fmt.Sprint("s", i), fmt.Sprint("v", i))
		}
		check := func(step string) {
			t.Helper()
			for i := range 50 {
				w.reads(g, fmt.Sprint("s", i), fmt.Sprint("v", i))
			}
			w.save(g, "live", step)
			w.reads(g, "live", step)
			w.destroy(g, "live")
			w.reads(g, "live", "-")
			w.must(g.Touch(w.ctx(), "s1", hour("").Expires))
			if err := g.Touch(w.ctx(), "never", hour("").Expires); !errors.Is(err, store.ErrAbsent) {
				t.Errorf("%s: Touch of nothing: got %v", step, err)
			}
			w.must(g.Lock(w.ctx(), "s2", "token", 1e9))
			if holder, _, err := g.LockHolder(w.ctx(), "s2"); holder != "token" || err != nil {
				t.Errorf("%s: LockHolder: got %q, %v", step, holder, err)
			}
			if held, err := g.Unlock(w.ctx(), "s2", "token"); !held || err != nil {
				t.Errorf("%s: Unlock: got %v, %v", step, held, err)
			}
			for _, c := range []struct {
				cond store.Condition
				key  string
				want error
			}{{store.IfAbsent, "s3", store.ErrConflict}, {store.IfPresent, "never", store.ErrConflict}, {store.IfPresent, "s3", nil},
				{store.IfVersion(store.VersionOf([]byte("v3"), 0)), "s3", nil}} {
				if err := g.Save(w.ctx(), c.key, hour("v3"), c.cond); !errors.Is(err, c.want) {
					t.Errorf("%s: Save %v: got %v, want %v", step, c.cond, err, c.want)
				}
			}
			u, err := g.flow.Unsettled(w.ctx(), 10)
			w.must(err)
			if u.Intents != 0 {
				t.Errorf("%s: unsettled %+v", step, u)
			}
		}
		check("off, no workflow")
		for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown, Live, Sync, DualWrite, Off, Sync, Live, RampDown, Complete} {
			w.at(p)
			check(p.String())
		}
		for i := range 50 {
			w.holds(w.n, fmt.Sprint("s", i), fmt.Sprint("v", i))
		}
	})
}

// A session of the origin whose name means something else in the target is not moved there, and what lies under that name
// stays as it is: up, down, and when the target is emptied.
func TestAKeyThatIsNoneOfTheSites(t *testing.T) {
	simulate(t, func(w *world) {
		w.must(w.o.Save(w.ctx(), "other", hour("of the origin"), store.Always))
		g := w.gateway(func(o *Options) { o.OwnsKey = func(key string) bool { return key != "other" } })
		w.save(g, "s", "v")
		for _, p := range []Phase{DualWrite, Sync, Live, RampDown, Off} {
			w.at(p)
			w.holds(w.n, "other", "-")
		}
		w.must(w.n.Save(w.ctx(), "other", hour("of the target"), store.Always))
		for _, p := range []Phase{DualWrite, Sync, Live, RampDown, Off} {
			w.at(p)
			w.holds(w.n, "other", "of the target")
			w.holds(w.o, "other", "of the origin")
			w.reads(g, "s", "v")
		}
		w.must(g.Cancel(w.ctx(), w.opt()))
		w.holds(w.n, "other", "of the target")
		w.holds(w.n, "s", "-")
	})
}
