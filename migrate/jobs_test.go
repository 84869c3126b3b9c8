package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

func TestBackfillCountsWhatItDoes(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		for i := range 5000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		w.at(DualWrite)
		time.Sleep(5 * time.Second)
		j := g.Status(w.ctx()).Backfill
		if j.State != jobDone || j.Seen != 5000 || j.Copied != 5000 || j.Total != 5000 {
			t.Errorf("backfill %+v", j)
		}
		w.at(Live)
		r := g.Status(w.ctx()).Reconcile
		if r.State != jobDone || r.Seen != 5000 || r.Same != 5000 || r.Copied != 0 {
			t.Errorf("reconcile %+v", r)
		}
	})
}

// Somebody outside holds the lock of one session's file for minutes: the others move on, and the gate into sync says
// that somebody is there.
func TestASessionThatCannotBeReadHoldsUpNobodyElse(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		for i := range 1000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		locked := func(call, key string) error {
			if key == "s7" && (call == "inspect" || call == "load") {
				return fmt.Errorf("%w: locked", store.ErrUnavailable)
			}
			return nil
		}
		w.origin.set(locked, nil)
		w.at(DualWrite)
		time.Sleep(5 * time.Second)
		if j := g.Status(w.ctx()).Backfill; j.State != jobDone || j.Copied != 999 {
			t.Errorf("backfill %+v", j)
		}
		var closed *GateError
		if err := g.SwitchTraffic(w.ctx(), Sync, w.opt()); !errors.As(err, &closed) {
			t.Errorf("SwitchTraffic: got %v, want a closed gate", err)
		}
		w.origin.up()
		w.at(Live)
		w.reads(g, "s7", "x")
	})
}

// A session that the origin refuses to show, too large, keeps the gate into sync shut for as long as it is like that, and
// the step that is forced moves the others.
func TestASessionThatCannotBeMoved(t *testing.T) {
	refused := func(call, key string) error {
		if key == "s7" && (call == "inspect" || call == "load") {
			return &store.RefusedError{Reason: "too large"}
		}
		return nil
	}
	start := func(w *world) *Engine {
		g := w.gateway()
		for i := range 1000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		w.origin.set(refused, nil)
		w.at(DualWrite)
		time.Sleep(5 * time.Second)
		if j := g.Status(w.ctx()).Backfill; j.State != jobDone || j.Copied != 999 || j.Failed != 1 {
			t.Errorf("backfill %+v", j)
		}
		d, err := g.Diff(w.ctx(), DiffOptions{Repair: true})
		if w.must(err); d.Unfit != 1 || d.Differences() != 1 || len(d.Sample) != 1 || !strings.Contains(d.Sample[0].Why, "too large") {
			t.Errorf("diff %+v", d)
		}
		var closed *GateError
		if err := g.SwitchTraffic(w.ctx(), Sync, w.opt()); !errors.As(err, &closed) || !strings.Contains(err.Error(), "1 that cannot be moved") {
			t.Errorf("SwitchTraffic: got %v, want a closed gate", err)
		}
		return g
	}
	t.Run("mended", func(t *testing.T) {
		simulate(t, func(w *world) {
			g := start(w)
			w.origin.up() // no second backfill is needed
			w.at(Live)
			w.reads(g, "s7", "x")
		})
	})
	t.Run("forced", func(t *testing.T) {
		simulate(t, func(w *world) {
			g := start(w)
			w.must(g.SwitchTraffic(w.ctx(), RampDown, StepOptions{Force: true, Reason: "nobody needs it"}))
			w.reads(g, "s7", "-")
			w.reads(g, "s8", "x")
		})
	})
	// It was copied when it could be, and then somebody wrote more into it: what the target holds is nobody's session.
	t.Run("an older copy", func(t *testing.T) {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.must(w.o.Save(w.ctx(), "s7", hour("x"), store.Always))
			w.at(DualWrite)
			time.Sleep(5 * time.Second)
			w.holds(w.n, "s7", "x")
			w.must(w.o.Save(w.ctx(), "s7", hour("x, and more"), store.Always))
			w.origin.set(refused, nil)
			w.must(g.SwitchTraffic(w.ctx(), Live, StepOptions{Force: true, Reason: "nobody needs it"}))
			if r, err := g.Load(w.within(5*time.Second), "s7"); err == nil || errors.Is(err, store.ErrAbsent) {
				t.Errorf("Load: %q, %v", r.Data, err)
			}
			w.origin.up()
			w.reads(g, "s7", "x, and more")
		})
	})
}

func TestAnOriginThatIsNotFitClosesTheFirstGate(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway(func(o *Options) {
			o.OriginCheck = func(context.Context) (store.Findings, error) {
				return store.Findings{Facts: []string{"a table"}, Against: []string{"no unique index"}, Advice: []string{"a text"}}, nil
			}
		})
		w.must(g.Create(w.ctx(), w.opt()))
		p, err := g.Plan(w.ctx())
		if w.must(err); !slices.Contains(p.Blockers, "no unique index") || !slices.Contains(p.Advise, "a text") || !slices.Contains(p.Origin, "a table") ||
			!strings.Contains(p.Ladder[0], "not possible") {
			t.Errorf("plan: %q, %q", p.Blockers, p.Advise)
		}
		var closed *GateError
		if err := g.SwitchTraffic(w.ctx(), DualWrite, w.opt()); !errors.As(err, &closed) || !strings.Contains(err.Error(), "no unique index") {
			t.Errorf("SwitchTraffic: got %v, want a closed gate", err)
		}
	})
}

func TestAWorkerThatIsHeldBackIsPausedAtOnce(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		for i := range 3 * pageSize {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("v"), store.Always))
		}
		w.target.set(func(call, _ string) error {
			if call == "add" {
				time.Sleep(300 * time.Millisecond)
			}
			return nil
		}, nil)
		w.at(DualWrite)
		_, err := g.Start(w.ctx(), 1, 0) // a page takes half an hour
		w.must(err)
		seen := func() int64 {
			time.Sleep(5 * time.Second)
			return g.Status(w.ctx()).Backfill.Seen
		}
		held := seen()
		_, err = g.Start(w.ctx(), -1, 0)
		w.must(err)
		if lifted := seen(); held == 3*pageSize || lifted != 3*pageSize {
			t.Errorf("%d were seen, then %d", held, lifted)
		}
	})
}

// In live the target answers, and what a collector takes from the origin ends nobody's session.
func TestARepairInLiveLogsNobodyOut(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		w.save(g, "k", "in")
		_, err := w.o.Delete(w.ctx(), "k", store.Always)
		w.must(err)
		w.reads(g, "k", "in")
		r, err := g.Diff(w.ctx(), DiffOptions{Repair: true})
		w.must(err)
		if r.Repaired != 1 || r.Differences() != 0 {
			t.Errorf("%+v", r.DiffEnd)
		}
		w.reads(g, "k", "in")
		w.holds(w.o, "k", "in")
	})
}

// calls counts the calls of a store.
func calls(f *fault) map[string]*atomic.Int64 {
	n := map[string]*atomic.Int64{"inspect": {}, "scan": {}}
	f.set(func(call, _ string) error {
		if n[call] != nil {
			n[call].Add(1)
		}
		return nil
	}, nil)
	return n
}

// A gate, or a pass, that reads every session of a large table twice, once in the order of the target, takes a table that
// does not fit into the server's memory many times as long.
func TestWhatIsComparedIsReadOnce(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		const many = 3000
		for i := range many {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		w.at(DualWrite)
		time.Sleep(5 * time.Second)
		w.must(w.n.Save(w.ctx(), "extra", hour("x"), store.Always))
		n := calls(&w.origin.fault)
		d, err := g.Diff(w.ctx(), DiffOptions{Rounds: 1})
		if w.must(err); d.Compared != many+1 || d.Extra != 1 || d.Differences() != 1 {
			t.Errorf("diff %+v", d.DiffEnd)
		}
		if got := n["inspect"].Load(); got != many+1 {
			t.Errorf("the diff read the origin %d times", got)
		}
		w.must(g.SwitchTraffic(w.ctx(), Sync, StepOptions{Force: true, Reason: "the extra one", Say: func(line string) {
			if strings.HasPrefix(line, "sealed") { // the gates are open, and the pass may begin before the command returns
				w.must(w.n.Save(w.ctx(), "extra", hour("x"), store.Always)) // a logout that the copies missed
				n["inspect"].Store(0)
			}
		}}))
		time.Sleep(5 * time.Second)
		if got := n["inspect"].Load(); !g.Status(w.ctx()).Reconciled || got != many+2 { // the extra one once more, under the intent
			t.Errorf("the reconcile pass read the origin %d times: %+v", got, g.Status(w.ctx()).Reconcile)
		}
		w.holds(w.n, "extra", "-")
	})
}

// jittery is an origin that tells how long a session has left, as a table does, and takes its time to say so.
type jittery struct {
	store.Origin
	n atomic.Int64
}

func (j *jittery) Inspect(ctx context.Context, key string) (store.Record, error) {
	rec, err := j.Origin.Inspect(ctx, key)
	rec.Expires = rec.Expires.Add(time.Duration(j.n.Add(1)*37%400) * time.Millisecond)
	return rec, err
}

func TestDeadlinesThatJitterAreNoForeignWrites(t *testing.T) {
	simulate(t, func(w *world) {
		w.origin.Origin = &jittery{Origin: w.o}
		g := w.gateway()
		for i := range 1000 {
			w.must(w.o.Save(w.ctx(), fmt.Sprint("s", i), hour("x"), store.Always))
		}
		w.at(DualWrite)
		time.Sleep(5 * time.Second)
		n := calls(&w.target.fault)
		f, err := g.foreignWriters(w.ctx(), time.Second)
		if w.must(err); f.Watched != 1000 || f.Changed+f.Vanished+f.Unknown != 0 {
			t.Errorf("%+v", f)
		}
		if got := n["inspect"].Load(); got != 0 {
			t.Errorf("%d sessions were suspected", got)
		}
		// A touch beside the gateways is seen all the same.
		done := answered(func() (err error) { f, err = g.foreignWriters(w.ctx(), 3*time.Second); return err })
		time.Sleep(2 * time.Second)
		w.must(w.o.Touch(w.ctx(), "s7", hour("").Expires))
		_, err = w.o.Delete(w.ctx(), "s8", store.Always)
		w.must(err)
		w.must(w.o.Save(w.ctx(), "s9", hour("y"), store.Always))
		w.must(w.o.Save(w.ctx(), "new", hour("y"), store.Always))
		if w.must(<-done); f.Changed != 3 || f.Vanished != 1 {
			t.Errorf("%+v", f)
		}
	})
}

// Copies are made of what the origin holds, by every gateway for itself: one that read the session before somebody destroyed it
// elsewhere, and copies it afterwards, must not be the last word. Nobody has written there but gateways, and the gate says so.
func TestCopiesOfTwoGateways(t *testing.T) {
	for name, change := range map[string]func(w *world, g *Engine){
		"destroyed": func(w *world, g *Engine) { w.destroy(g, "k") },
		"written":   func(w *world, g *Engine) { w.save(g, "k", "newer") },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(w *world) {
				slow := w.gateway(func(o *Options) {
					o.Hooks.Arrow = func(_ context.Context, arrow, key string) {
						if arrow == "copy" {
							time.Sleep(100 * time.Millisecond)
						}
					}
				})
				quick := w.gateway()
				w.at(DualWrite)
				w.phase(quick, DualWrite)
				w.save(slow, "k", "v")
				time.Sleep(50 * time.Millisecond)
				change(w, quick)
				time.Sleep(time.Second)
				w.holds(w.n, "k", answer(w.o.Load(w.ctx(), "k")))
			})
		})
	}
}

// A session that is written all the time is the same in both stores only for moments: a copy of it is always under way. That
// is no difference, and nobody else's write. One whose copies do not arrive is one.
func TestASessionThatIsWrittenAllTheTime(t *testing.T) {
	for name, c := range map[string]struct {
		copied bool
		want   int64
	}{"its copies arrive": {true, 0}, "they do not": {false, 1}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(w *world) {
				gates, busy := w.gateway(), w.gateway()
				w.at(DualWrite)
				w.phase(busy, DualWrite)
				time.Sleep(time.Second)
				w.target.set(func(call, key string) error {
					if call == "copy" && key == "hot" {
						if !c.copied {
							return fmt.Errorf("%w: down", store.ErrUnavailable)
						}
						time.Sleep(5700 * time.Microsecond)
					}
					return nil
				}, nil)
				w.save(busy, "hot", "begun")
				ctx, end := context.WithCancel(w.ctx())
				var wg sync.WaitGroup
				wg.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						w.save(busy, "hot", fmt.Sprint(n))
						time.Sleep(6300 * time.Microsecond)
					}
				})
				for range 20 {
					d, err := gates.Diff(w.ctx(), DiffOptions{Repair: c.copied})
					if w.must(err); d.Differences() != c.want {
						t.Errorf("diff %+v, want %d", d.DiffEnd, c.want)
					}
					f, err := gates.foreignWriters(w.ctx(), 100*time.Millisecond)
					if w.must(err); int64(f.Changed+f.Unknown+f.Vanished) != c.want {
						t.Errorf("foreign writers %+v, want %d", f, c.want)
					}
				}
				end()
				wg.Wait()
				w.target.up()
			})
		})
	}
}
