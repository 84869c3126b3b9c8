package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// A taken-over intent stands for what a dead operation may have written in the origin.
func TestATakenOverIntentIsNotWithdrawn(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, Live)
		w.save(a, "k", "in")
		var fails atomic.Bool
		fails.Store(true)
		noSweep := func(call, _ string) error {
			if call == "settle" || call == "commit" && fails.CompareAndSwap(true, false) {
				return store.ErrUnavailable
			}
			return nil
		}
		w.target.set(noSweep, nil)
		w.destroy(a, "k")           // its commit fails: the intent is left
		time.Sleep(3 * time.Second) // until it is dead
		ctx, cancel := context.WithCancel(w.ctx())
		w.target.set(noSweep, func(call, key string) error {
			if call == "begin" && key == "k" { // executed, and the answer lost; nor does the client wait any longer
				cancel()
				return store.ErrUnknown
			}
			return nil
		})
		if err := b.Save(ctx, "k", hour("x"), store.IfPresent); err == nil {
			t.Error("saved")
		}
		time.Sleep(100 * time.Millisecond)
		w.target.up()
		w.reads(b, "k", "-")
		time.Sleep(10 * time.Second)
		w.reads(b, "k", "-")
	})
}

func TestATouchThatStoodStillBringsNothingBack(t *testing.T) {
	t.Run("over a retreat", func(t *testing.T) {
		for _, arrow := range []string{"touch", "touch origin", "begin", "read origin", "write"} {
			simulate(t, func(w *world) {
				b, _, view := w.view()
				s := stopAt(arrow, "k")
				a, f := w.freezable(s.option)
				w.both(b, a, Live)
				w.must(w.n.Save(w.ctx(), "k", hour("in"), store.Always)) // PHP's collector has taken it from the origin
				touched := answered(func() error { return a.Touch(w.ctx(), "k", hour("").Expires) })
				<-s.there
				f.stop()
				view.down()                  // b is cut off from the target, and retreats
				time.Sleep(10 * time.Second) // it serves the origin alone: the user is logged out
				w.reads(b, "k", "-")
				close(s.goOn)
				f.goOn()
				<-touched
				w.reads(b, "k", "-")
				w.holds(w.o, "k", "-")
				view.up()
				time.Sleep(10 * time.Second)
				w.reads(a, "k", "-")
			})
		}
	})
	t.Run("over a restart of the target", func(t *testing.T) {
		simulate(t, func(w *world) {
			s := stopAt("touch", "k")
			a, b := w.gateway(s.option), w.gateway()
			w.both(a, b, Live)
			w.save(b, "k", "in")
			snap := w.n.Snapshot()
			time.Sleep(2 * time.Second)
			touched := answered(func() error { return a.Touch(w.ctx(), "k", hour("").Expires) })
			<-s.there
			w.destroy(b, "k")
			w.n.Restart(snap)
			close(s.goOn)
			<-touched
			w.reads(b, "k", "-")
			time.Sleep(20 * time.Second)
			w.reads(b, "k", "-")
		})
	})
}

// The same floor under another epoch is another retreat: the wait begins anew.
func TestAnOldFloorRetreatIsNoRightToServe(t *testing.T) {
	simulate(t, func(w *world) {
		c := w.gateway()
		d, _, cut := w.view()
		a, f := w.freezable()
		w.both(c, d, Live)
		w.save(c, "k", "in")
		m, _ := w.o.Mark(w.ctx())
		next := m
		next.Seal.Floor = store.FloorRetreat
		w.must(w.o.SwapMark(w.ctx(), m, next))
		seen := func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.auth.mark.Seal.Floor == store.FloorRetreat
		}
		for !seen() {
			time.Sleep(time.Millisecond)
		}
		f.stop() // in the first retreat
		w.phase(c, DualWrite)
		w.must(c.SwitchTraffic(w.ctx(), Live, StepOptions{}))
		w.phase(d, Live)
		time.Sleep(5 * time.Second)
		cut.down() // the second
		for m.Seal.Floor != store.FloorRetreat {
			time.Sleep(time.Millisecond)
			m, _ = w.o.Mark(w.ctx())
		}
		w.origin.set(func(call, _ string) error {
			if call == "mark" {
				time.Sleep(1500 * time.Millisecond) // c sees it late, but within its lease
			}
			return nil
		}, nil)
		f.goOn()
		w.destroy(a, "k")
		w.reads(c, "k", "-")
		if err := c.Touch(w.ctx(), "k", hour("").Expires); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Touch: got %v, want ErrAbsent", err)
		}
		time.Sleep(20 * time.Second)
		w.reads(a, "k", "-")
	})
}

// Two processes with one configured name, as when one drains and another takes its place.
func TestADrainingProcessIsWaitedForBesideItsSuccessor(t *testing.T) {
	simulate(t, func(w *world) {
		s := stopAt("write", "k")
		g := w.gateway()
		named := func(o *Options) { o.Gateway = "web1" }
		old := w.gateway(named, s.option)
		w.both(g, old, DualWrite)
		saved := answered(func() error { return old.Save(w.ctx(), "k", hour("x"), store.Always) })
		<-s.there
		next := w.gateway(named)
		w.phase(next, DualWrite)
		if err := g.ReverseTraffic(w.within(1500*time.Millisecond), Off, StepOptions{}); err == nil {
			t.Error("the step is done, and an operation of the phase before under way")
		}
		close(s.goOn)
		w.must(<-saved)
		w.must(g.ReverseTraffic(w.ctx(), Off, StepOptions{}))
	})
}

// A step into sync whose seal comes when others have gone on to ramp-down must not say that the origin has everything.
func TestASealThatComesLateLowersNoFloor(t *testing.T) {
	simulate(t, func(w *world) {
		b := w.gateway()
		a, view, cut := w.view()
		w.both(b, a, DualWrite)
		there, goOn := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		view.set(func(call, _ string) error {
			if call == "swapmark" && once.CompareAndSwap(false, true) {
				close(there)
				<-goOn
			}
			if call == "delete" {
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		late := answered(func() error { return a.SwitchTraffic(w.ctx(), Sync, StepOptions{}) })
		<-there
		w.must(b.SwitchTraffic(w.ctx(), RampDown, StepOptions{}))
		w.save(b, "k", "in")
		time.Sleep(2 * time.Second)
		w.origin.set(func(call, _ string) error {
			if call == "delete" {
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		w.destroy(b, "k") // ahead
		close(goOn)
		if err := <-late; err == nil {
			t.Error("the step was taken")
		}
		w.target.down()
		cut.down()
		time.Sleep(10 * time.Second)
		if got := answer(b.Load(w.within(time.Second), "k")); got == "in" {
			t.Error("the logout is undone")
		}
		if m, _ := w.o.Mark(w.ctx()); m.Seal.Floor != store.FloorRampDown {
			t.Errorf("seal %+v", m.Seal)
		}
	})
}

func TestACreateThatStoodStillTakesNothingAway(t *testing.T) {
	simulate(t, func(w *world) {
		a := w.gateway()
		b, _, view := w.view()
		w.must(a.Create(w.ctx(), StepOptions{})) // the origin gets its identity
		w.must(a.Cancel(w.ctx(), StepOptions{}))
		time.Sleep(time.Second)
		there, goOn := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		view.set(nil, func(call, _ string) error {
			if call == "instance" && once.CompareAndSwap(false, true) {
				close(there)
				<-goOn
			}
			return nil
		})
		created := answered(func() error { return b.Create(w.ctx(), w.opt()) })
		select {
		case <-there:
		case err := <-created:
			t.Fatal(err)
		}
		w.must(a.Create(w.ctx(), StepOptions{}))
		w.must(a.SwitchTraffic(w.ctx(), RampDown, StepOptions{}))
		w.save(a, "k", "in")
		time.Sleep(2 * time.Second)
		w.origin.down()
		w.destroy(a, "k") // ahead
		time.Sleep(5 * time.Second)
		close(goOn)
		if err := <-created; err == nil {
			t.Error("created twice")
		}
		w.origin.up()
		time.Sleep(10 * time.Second)
		w.reads(a, "k", "-")
		w.at(Sync)
		w.reads(a, "k", "-")
	})
}

func TestACancelThatStoodStillTakesNothingFromTheNextWorkflow(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			g := w.gateway()
			other, _, view := w.view()
			w.both(g, other, DualWrite)
			there, goOn := make(chan struct{}), make(chan struct{})
			var once atomic.Bool
			view.set(func(call, _ string) error {
				if call == "purge" && once.CompareAndSwap(false, true) {
					close(there)
					<-goOn
				}
				return nil
			}, nil)
			late := answered(func() error { return other.Cancel(w.ctx(), StepOptions{}) })
			<-there
			w.must(g.Cancel(w.ctx(), StepOptions{}))
			w.at(p)
			time.Sleep(5 * time.Second)
			w.save(g, "k", "in")
			time.Sleep(3 * time.Second)
			if p == RampDown {
				w.origin.down()
			}
			w.destroy(g, "k")
			close(goOn)
			<-late
			w.origin.up()
			w.save(g, "k2", "x")
			time.Sleep(10 * time.Second)
			w.reads(g, "k", "-")
			w.holds(w.o, "k", "-")
		})
	}
}

func TestATouchAtTheLastMomentOutlivesTheReconcilePass(t *testing.T) {
	simulate(t, func(w *world) {
		s := stopAt("touch origin", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, DualWrite)
		w.at(Sync)
		at := time.Now().Add(10*time.Second - 300*time.Millisecond)
		w.must(w.o.Save(w.ctx(), "k", store.Record{Data: []byte("v"), Expires: at}, store.Always))
		w.must(w.n.Save(w.ctx(), "k", store.Record{Data: []byte("v"), Expires: at.Add(time.Second)}, store.Always)) // rounded up
		time.Sleep(time.Until(at) + 200*time.Millisecond)
		touched := answered(func() error { return a.Touch(w.ctx(), "k", hour("").Expires) })
		<-s.there
		c, _ := b.current()
		w.must(b.reconcileKey(w.ctx(), c, "k", false))
		close(s.goOn)
		w.must(<-touched)
		w.at(Live)
		w.phase(b, Live)
		w.reads(b, "k", "v")
	})
}

func TestACommandThatWasOvertakenEnds(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		_, f := w.freezable()
		w.both(a, b, DualWrite)
		f.stop() // steps wait for it until its lease is over
		first := answered(func() error { return a.ReverseTraffic(w.ctx(), Off, StepOptions{}) })
		time.Sleep(time.Second)
		w.must(b.Cancel(w.ctx(), StepOptions{}))
		begun := time.Now()
		<-first
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the first command went on for %v", took)
		}
		f.goOn()
	})
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, Live)
		one := answered(func() error { return a.Cancel(w.ctx(), StepOptions{}) })
		w.must(b.Cancel(w.ctx(), StepOptions{}))
		w.must(<-one)
	})
}

// noDeadline is a target whose LoadMarked does not tell the deadline, as Redis' does not.
type noDeadline struct{ store.Target }

func (n noDeadline) Workflow(name string) store.Workflow {
	return noDeadlineFlow{n.Target.Workflow(name)}
}

type noDeadlineFlow struct{ store.Workflow }

func (n noDeadlineFlow) LoadMarked(ctx context.Context, key string) (*store.Record, store.Marker, error) {
	r, m, err := n.Workflow.LoadMarked(ctx, key)
	if r != nil {
		r.Expires = time.Time{}
	}
	return r, m, err
}

func TestInspectTellsTheDeadlineInEveryPhase(t *testing.T) {
	simulate(t, func(w *world) {
		w.target = &faultyTarget{Target: noDeadline{w.n}}
		g := w.gateway()
		for p := Off; p <= Complete; p++ {
			w.at(p)
			w.save(g, "k", "v")
			if rec, err := g.Inspect(w.ctx(), "k"); err != nil || time.Until(rec.Expires).Round(time.Second) != time.Hour {
				t.Errorf("%s: Inspect: %v, %v", p, rec.Expires, err)
			}
		}
	})
}

func TestASessionThatTheOriginCannotHoldHoldsUpNoStep(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.origin.set(func(call, key string) error {
			if strings.HasPrefix(key, "long") {
				return fmt.Errorf("%w: 250 characters at the most", store.ErrInvalid)
			}
			return nil
		}, nil)
		w.at(RampDown)
		w.save(g, "long", "v")
		time.Sleep(5 * time.Second)
		w.reads(g, "long", "v")
		w.must(g.ReverseTraffic(w.ctx(), Sync, StepOptions{}))
		if n := g.Counters()["unfit"]; n == 0 {
			t.Error("it is not counted")
		}
	})
}

// shortLease is a target whose clock goes ahead of what was asked of it.
type shortLease struct{ store.Target }

func (s shortLease) Workflow(name string) store.Workflow {
	return shortLeaseFlow{s.Target.Workflow(name)}
}

type shortLeaseFlow struct{ store.Workflow }

func (s shortLeaseFlow) Begin(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	op.Lease = time.Millisecond
	return s.Workflow.Begin(ctx, key, op)
}

func TestAnIntentThatWasLostEarlyIsMadeAgainBeforeTheAnswer(t *testing.T) {
	simulate(t, func(w *world) {
		b := w.gateway()
		n := w.target
		w.target = &faultyTarget{Target: shortLease{w.n}}
		s := stopAt("write", "k")
		a := w.gateway(s.option)
		w.target = n
		w.both(b, a, Live)
		w.save(b, "k", "old")
		saved := answered(func() error { return a.Save(w.ctx(), "k", hour("a"), store.Always) })
		<-s.there
		time.Sleep(10 * time.Millisecond)
		w.reads(b, "k", "old")
		w.must(b.settleOne(w.ctx(), "k")) // takes the intent over, and finds the origin as it was
		close(s.goOn)
		w.must(<-saved)
		w.reads(b, "k", "a")
		w.holds(w.o, "k", "a")
		w.holds(w.n, "k", "a")
	})
}

func TestTheWritesOfAnotherGatewayAreNotForeign(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, DualWrite)
		ctx, cancel := context.WithCancel(w.ctx())
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; sleep(ctx, 50*time.Millisecond); i++ {
				key := fmt.Sprint("s", i%5)
				switch i % 7 {
				case 0:
					_, _ = b.Delete(w.ctx(), key, store.Always)
				case 1:
					_ = b.Touch(w.ctx(), key, hour("").Expires)
				default:
					_ = b.Save(w.ctx(), key, hour(fmt.Sprint(i)), store.Always)
				}
			}
		})
		w.must(a.SwitchTraffic(w.ctx(), Sync, StepOptions{}))
		cancel()
		wg.Wait()
	})
}

func TestALockWhoseAnswerWasLostIsGivenBack(t *testing.T) {
	simulate(t, func(w *world) {
		a := w.gateway()
		w.at(Live)
		once := true
		w.target.set(nil, func(call, _ string) error {
			if call == "lock" && once {
				once = false
				return store.ErrUnknown
			}
			return nil
		})
		if err := a.Lock(w.within(time.Second), "k", "t1", 10*time.Minute); err != nil {
			w.must(a.Lock(w.within(time.Second), "k", "t2", 10*time.Minute))
		}
	})
}

func TestAnAheadThatIsOverWhenItIsPropagatedLeavesNothingOlder(t *testing.T) {
	simulate(t, func(w *world) {
		s := laterAt("write", "k")
		g := w.gateway(s.option)
		w.at(RampDown)
		w.save(g, "k", "old") // for an hour
		time.Sleep(2 * time.Second)
		s.armed.Store(true)
		w.must(g.Save(w.ctx(), "k", store.Record{Data: []byte("bye"), Expires: time.Now().Add(time.Second)}, store.Always))
		<-s.there
		time.Sleep(1500 * time.Millisecond)
		close(s.goOn)
		time.Sleep(5 * time.Second)
		w.reads(g, "k", "-")
		w.at(Sync)
		w.reads(g, "k", "-")
	})
}

// On the way down a gateway of sync works beside one of dual-write, which keeps no intents.
func TestAConditionBesideDualWriteIsJudgedByTheOrigin(t *testing.T) {
	simulate(t, func(w *world) {
		s := stopAt("begin", "k")
		a, b := w.gateway(), w.gateway(s.option)
		w.both(a, b, Live)
		w.at(Sync)
		w.phase(b, Sync)
		w.save(a, "k", "in")
		down := answered(func() error { return a.ReverseTraffic(w.ctx(), DualWrite, StepOptions{}) })
		for {
			if c, _ := a.current(); c.phase == DualWrite {
				break
			}
			time.Sleep(time.Millisecond)
		}
		w.destroy(a, "k")
		created := answered(func() error { return b.Save(w.ctx(), "k", hour("new"), store.IfAbsent) })
		<-s.there
		close(s.goOn)
		w.must(<-created)
		w.must(<-down)
		w.reads(a, "k", "new")
	})
}

func TestReconcileMovesNoDeadlineBack(t *testing.T) {
	simulate(t, func(w *world) {
		there, goOn := make(chan struct{}), make(chan struct{})
		a := w.gateway(func(o *Options) {
			o.Hooks.Arrow = func(_ context.Context, arrow, _ string) {
				if arrow == "reconcile compare" { // the origin is read already
					close(there)
					<-goOn
				}
			}
		})
		soon := time.Now().Add(20 * time.Second)
		w.must(w.o.Save(w.ctx(), "k", store.Record{Data: []byte("v"), Expires: soon}, store.Always))
		w.at(Sync)
		<-there
		w.must(a.Touch(w.ctx(), "k", hour("").Expires)) // the user comes back
		close(goOn)
		w.at(Live)
		time.Sleep(time.Minute)
		w.reads(a, "k", "v")
		w.holds(w.o, "k", "v")
	})
}

// From live on a session that is over is none, though nobody has collected it in the origin.
func TestWhatIsOverIsAbsentUnderAnIntent(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		s := stopAt("write", "k")
		h := w.gateway(s.option)
		w.both(g, h, Live)
		w.must(g.Save(w.ctx(), "k", store.Record{Data: []byte("old"), Expires: time.Now().Add(10 * time.Second)}, store.Always))
		w.reads(g, "k", "old")
		time.Sleep(11 * time.Second)
		w.reads(g, "k", "-")
		saved := answered(func() error { return h.Save(w.ctx(), "k", hour("new"), store.Always) })
		<-s.there
		w.reads(g, "k", "-")
		close(s.goOn)
		w.must(<-saved)
		w.reads(g, "k", "new")
	})
}

func TestAConditionIsJudgedByWhatAReadAnswers(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		w.must(g.Save(w.ctx(), "k", store.Record{Data: []byte("old"), Expires: time.Now().Add(10 * time.Second)}, store.Always))
		time.Sleep(11 * time.Second)
		w.reads(g, "k", "-")
		if err := g.Save(w.ctx(), "k", hour("x"), store.IfPresent); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Save if present: got %v, want ErrConflict", err)
		}
		w.reads(g, "k", "-")
		if err := g.Save(w.ctx(), "k", hour("x"), store.IfVersion(store.VersionOf([]byte("old"), 0))); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Save over what it was: got %v, want ErrConflict", err)
		}
		w.reads(g, "k", "-")
		if err := g.Touch(w.ctx(), "k", hour("").Expires); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Touch: got %v, want ErrAbsent", err)
		}
		w.reads(g, "k", "-")
		if existed, err := g.Delete(w.ctx(), "k", store.IfPresent); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Delete if present: got %v, %v, want ErrConflict", existed, err)
		}
		w.must(g.Save(w.ctx(), "k", hour("x"), store.IfAbsent))
		w.reads(g, "k", "x")
	})
}

func TestATouchBringsNothingBackThatIsOver(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		h := w.gateway()
		w.both(g, h, Live)
		w.must(g.Save(w.ctx(), "k", store.Record{Data: []byte("old"), Expires: time.Now().Add(10 * time.Second)}, store.Always))
		time.Sleep(11 * time.Second)
		w.reads(g, "k", "-")
		w.origin.set(func(call, _ string) error {
			if call == "save" {
				return store.ErrUnknown
			}
			return nil
		}, nil)
		if err := g.Save(w.ctx(), "k", hour("x"), store.Always); err == nil {
			t.Error("saved")
		}
		w.origin.up()
		if err := h.Touch(w.ctx(), "k", hour("").Expires); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Touch: got %v, want ErrAbsent", err)
		}
		time.Sleep(10 * time.Second)
		w.reads(g, "k", "-")
		w.at(Sync)
		w.o.Collect()
		w.reads(g, "k", "-")
	})
}

func TestATouchMovesTheDeadlineOfWhatIsBeingPropagated(t *testing.T) {
	simulate(t, func(w *world) {
		w.life = 2 * time.Minute
		g := w.gateway()
		s := stopAt("write", "k")
		h := w.gateway(s.option)
		w.both(g, h, RampDown)
		w.save(h, "k", "in")
		<-s.there
		w.must(g.Touch(w.ctx(), "k", time.Now().Add(time.Hour)))
		close(s.goOn)
		time.Sleep(5 * time.Second)
		r, err := w.o.Load(w.ctx(), "k")
		w.must(err)
		if d := time.Until(r.Expires); d < 50*time.Minute {
			t.Errorf("in the origin it ends in %v", d)
		}
		w.at(Sync)
		time.Sleep(4 * time.Minute)
		w.o.Collect()
		w.reads(g, "k", "in")
	})
}

func TestATouchMovesTheDeadlineOfWhatIsNotCommittedYet(t *testing.T) {
	for _, p := range []Phase{Sync, Live} {
		simulate(t, func(w *world) {
			w.life = 2 * time.Minute
			g := w.gateway()
			h, _, view := w.view()
			w.both(g, h, p)
			w.save(g, "k", "was")
			there, goOn := make(chan struct{}), make(chan struct{})
			var once atomic.Bool
			view.set(func(call, key string) error {
				if call == "commit" && once.CompareAndSwap(false, true) {
					close(there)
					<-goOn
				}
				return nil
			}, nil)
			saved := answered(func() error { return h.Save(w.ctx(), "k", lasting("in", w.life), store.Always) })
			<-there // the write has happened
			touched := answered(func() error { return g.Touch(w.ctx(), "k", time.Now().Add(time.Hour)) })
			time.Sleep(100 * time.Millisecond)
			close(goOn)
			w.must(<-saved)
			w.must(<-touched)
			w.at(Live)
			time.Sleep(4 * time.Minute)
			w.reads(g, "k", "in")
		})
	}
}

// A collector that goes by a shorter lifetime than the gateways do takes sessions from the origin that live answers.
func TestAConditionInLiveIsNotJudgedByACollector(t *testing.T) {
	was := store.VersionOf([]byte("in"), 0)
	for name, tc := range map[string]struct {
		do   func(w *world, g *Engine) error
		err  error
		then string
	}{
		"save if present": {func(w *world, g *Engine) error { return g.Save(w.ctx(), "k", hour("x"), store.IfPresent) }, nil, "x"},
		"save over it":    {func(w *world, g *Engine) error { return g.Save(w.ctx(), "k", hour("x"), store.IfVersion(was)) }, nil, "x"},
		"save if absent":  {func(w *world, g *Engine) error { return g.Save(w.ctx(), "k", hour("x"), store.IfAbsent) }, store.ErrConflict, "in"},
		"delete if present": {func(w *world, g *Engine) error {
			existed, err := g.Delete(w.ctx(), "k", store.IfPresent)
			if !existed {
				w.t.Error("nothing was deleted")
			}
			return err
		}, nil, "-"},
		"refused by the origin": {func(w *world, g *Engine) error {
			n := 0
			w.origin.set(func(call, _ string) error {
				if n++; call == "save" && n > 1 {
					return store.ErrUnavailable
				}
				return nil
			}, nil)
			defer w.origin.up()
			return g.Save(w.ctx(), "k", hour("x"), store.Always)
		}, store.ErrUnavailable, "in"},
	} {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(Live)
			w.save(g, "k", "in")
			_, err := w.o.Delete(w.ctx(), "k", store.Always)
			w.must(err)
			if err := tc.do(w, g); !errors.Is(err, tc.err) {
				t.Errorf("%s: got %v, want %v", name, err, tc.err)
			}
			w.reads(g, "k", tc.then)
			time.Sleep(10 * time.Second)
			w.reads(g, "k", tc.then)
		})
	}
}

// The second seal of the step into sync is the origin's fence: what was begun under any before it must not land.
func TestTheOriginIsFencedThoughTwoStepIntoSync(t *testing.T) {
	simulate(t, func(w *world) {
		c := w.gateway()
		a, _, first := w.view()
		b, second, _ := w.view()
		w.both(a, b, DualWrite)
		w.phase(c, DualWrite)
		var before store.Mark
		raised, goOn := make(chan struct{}), make(chan struct{})
		var once, twice atomic.Bool
		second.set(func(call, _ string) error {
			if m, _ := w.o.Mark(w.ctx()); call == "swapmark" && m.Seal.Floor == store.FloorSync && once.CompareAndSwap(false, true) {
				<-goOn
			}
			return nil
		}, func(call, _ string) error {
			if call == "swapmark" && once.Load() && twice.CompareAndSwap(false, true) {
				before, _ = w.o.Mark(w.ctx())
				close(raised)
			}
			return nil
		})
		opt := w.opt()
		say, late := opt.Say, make(chan error, 1)
		opt.Say = func(line string) {
			say(line)
			if strings.HasPrefix(line, "sealed") {
				go func() { late <- b.SwitchTraffic(w.ctx(), Sync, StepOptions{}) }()
			}
		}
		var swapped atomic.Bool
		first.set(func(call, _ string) error {
			if call == "swapcontrol" && once.Load() && swapped.CompareAndSwap(false, true) {
				close(goOn)
				<-raised
			}
			return nil
		}, nil)
		w.must(a.SwitchTraffic(w.ctx(), Sync, opt))
		<-late
		if !swapped.Load() || before.Seal.Floor != store.FloorSync {
			t.Fatalf("they did not meet: %+v", before.Seal)
		}
		if err := w.o.Under(before).Save(w.ctx(), "k", hour("late"), store.Always); !errors.Is(err, store.ErrSealed) {
			t.Errorf("what was begun under %+v: got %v, want ErrSealed", before.Seal, err)
		}
	})
}
