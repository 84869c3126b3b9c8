package migrate

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// meter takes the time that walks have requests open at a slow origin: each takes took().
type meter struct {
	mu       sync.Mutex
	at, most int // requests that are open
	open     time.Duration
}

func (m *meter) watch(f *fault, took func() time.Duration) {
	f.set(func(call, _ string) error {
		if call != "inspect" && call != "scan" {
			return nil
		}
		m.mu.Lock()
		m.at++
		m.most = max(m.most, m.at)
		m.mu.Unlock()
		d := took()
		time.Sleep(d)
		m.mu.Lock()
		m.at--
		m.open += d
		m.mu.Unlock()
		return nil
	}, nil)
}

func (m *meter) total() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

// Whatever walks, and however long the origin takes: requests are open for the share of the time that was asked for.
func TestTheLoadOfWalksIsBounded(t *testing.T) {
	simulate(t, func(w *world) {
		const percent, many = 25, 1000
		g := w.gateway(func(o *Options) { o.MaxLoad, o.Times = percent, DefaultTimes(5*time.Second) })
		for i := range many {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		w.must(g.Create(w.ctx(), w.opt()))
		slow := 2 * time.Millisecond
		ctx := w.t.Context() // what follows takes its time
		for _, walk := range []struct {
			name string
			run  func() error
		}{
			{"plan", func() error { _, err := g.Plan(ctx); return err }},
			{"backfill", func() error {
				w.must(g.SwitchTraffic(ctx, DualWrite, w.opt()))
				for g.Status(ctx).Backfill.State != jobDone {
					time.Sleep(100 * time.Millisecond)
				}
				return nil
			}},
			{"diff", func() error { _, err := g.Diff(ctx, DiffOptions{Rounds: 1}); return err }},
			{"foreign writers", func() error { _, err := g.foreignWriters(ctx, time.Second); return err }},
			{"gates and reconcile pass", func() error {
				w.must(g.SwitchTraffic(ctx, Sync, w.opt()))
				for !g.Status(ctx).Reconciled {
					time.Sleep(100 * time.Millisecond)
				}
				return nil
			}},
		} {
			m, start := &meter{}, time.Now()
			w.must(w.o.Save(ctx, "user", hour("x"), store.Always))
			m.watch(&w.origin.fault, func() time.Duration { return slow })
			if slow += 3 * time.Millisecond; walk.name == "diff" {
				go func() { // a user is not held back
					time.Sleep(100 * time.Millisecond)
					start := time.Now()
					w.reads(g, "user", "x")
					if took := time.Since(start); took > 20*time.Millisecond {
						w.t.Errorf("a read took %v", took)
					}
				}()
			}
			w.must(walk.run())
			took := time.Since(start)
			w.origin.up()
			if m.open < many*2*time.Millisecond || m.most != 1 {
				w.t.Errorf("%s: %v open in all, %d at a time", walk.name, m.open, m.most)
			}
			// The last batch is not followed by a rest.
			if share := 100 * float64(m.open-min(m.open, 200*slow)) / float64(took); share > percent {
				w.t.Errorf("%s: requests were open for %v of %v: %.0f %%", walk.name, m.open, took, share)
			}
			w.t.Logf("%s: open for %v of %v", walk.name, m.open, took)
		}
	})
}

func TestTheLoadIsChangedWhileAWalkRuns(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway(func(o *Options) { o.MaxLoad = 1 })
		for i := range 2000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		(&meter{}).watch(&w.origin.fault, func() time.Duration { return time.Millisecond })
		w.at(DualWrite) // a batch takes 0.2 s, and 20 s of rest
		time.Sleep(30 * time.Second)
		seen := g.Status(w.ctx()).Backfill.Seen
		_, err := g.Start(w.ctx(), 0, -1)
		w.must(err)
		time.Sleep(5 * time.Second)
		if st := g.Status(w.ctx()); seen > 400 || st.Backfill.State != jobDone || st.MaxLoad != 0 {
			w.t.Errorf("%d were seen, then %+v under %d %%", seen, st.Backfill, st.MaxLoad)
		}
		_, err = g.Start(w.ctx(), 0, 30)
		if w.must(err); g.Status(w.ctx()).MaxLoad != 30 {
			w.t.Errorf("the load is %d %%", g.Status(w.ctx()).MaxLoad)
		}
	})
}

// A page of a walk that takes ten minutes would look like one that has come to a stand, and could not be paused.
func TestAWalkUnderABoundIsSeenToMoveAndObeys(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway(func(o *Options) { o.MaxLoad = 1 })
		for i := range 2000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		m := &meter{}
		m.watch(&w.origin.fault, func() time.Duration { return time.Millisecond })
		w.at(DualWrite) // a batch takes 0.2 s, and 20 s of rest
		time.Sleep(time.Minute)
		if seen := g.Status(w.ctx()).Backfill.Seen; seen < 400 || seen > 800 {
			w.t.Errorf("%d are said to have been seen", seen)
		}
		_, err := g.Stop(w.ctx())
		w.must(err)
		time.Sleep(30 * time.Second) // the batch that waits for its turn
		open := m.total()
		time.Sleep(5 * time.Minute)
		if more := m.total() - open; more > 0 {
			w.t.Errorf("it goes on for %v although it is paused", more)
		}
	})
}
