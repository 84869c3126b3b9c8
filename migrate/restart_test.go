package migrate

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// refused checks that g holds, since only a person can say how to go on.
func (w *world) refused(g *Engine) {
	w.t.Helper()
	if got := g.Status(w.ctx()).Serving; !strings.Contains(got, "older memory") {
		w.t.Errorf("%s serves: %q", g.opt.Gateway, got)
	}
	if _, err := g.Load(w.within(time.Second), "k"); store.OutcomeOf(err) != store.OutcomeUnavailable {
		w.t.Errorf("Load: got %v, want unavailable", err)
	}
}

func TestACleanRestartOfTheTargetLosesNothing(t *testing.T) {
	for _, p := range []Phase{DualWrite, Sync, Live, RampDown} {
		simulate(t, func(w *world) {
			a, b := w.gateway(), w.gateway()
			w.both(a, b, p)
			w.save(a, "k", "v")
			w.save(b, "k", "v2") // after a's
			w.n.Restart(w.n.Snapshot())
			time.Sleep(time.Second)
			for _, g := range []*Engine{a, b} {
				w.reads(g, "k", "v2")
				if st := g.Status(w.ctx()); st.Phase != p || st.Serving != "yes" || g.Counters()["alarms"] != 0 {
					t.Errorf("%s: phase %s, serving %s, %d alarms", p, st.Phase, st.Serving, g.Counters()["alarms"])
				}
			}
		})
	}
}

// Two gateways that find at the same time that nothing is forgotten are no trouble to tell anybody of.
func TestGatewaysThatVouchAtOneTime(t *testing.T) {
	simulate(t, func(w *world) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		loud := func(o *Options) { o.Logger = logger }
		a, b := w.gateway(loud), w.gateway(loud)
		w.both(a, b, Live)
		time.Sleep(5 * time.Second)
		log.Reset()
		var met atomic.Bool // both have read the record before one of them writes it
		for range 20 {
			var times atomic.Int64
			second := make(chan struct{})
			w.target.set(func(call, _ string) error {
				if call != "swapcontrol" {
					return nil
				}
				switch times.Add(1) {
				case 2:
					close(second)
				case 1:
					select {
					case <-second:
						met.Store(true)
					case <-time.After(300 * time.Millisecond): // longer, and it is in trouble by this test
					}
				}
				return nil
			}, nil)
			w.n.Restart(w.n.Snapshot())
			time.Sleep(10*time.Second + rand.N(time.Second)) // the beats are in step with each other
			if met.Load() {
				break
			}
		}
		if !met.Load() {
			t.Fatal("they did not meet")
		}
		w.phase(a, Live)
		if log.Len() > 0 {
			t.Errorf("told:\n%s", log.String())
		}
	})
}

func TestAnIdleGatewayDoesNotVouchForABusyOne(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			idle := w.gateway()
			busy, _, view := w.view()
			w.both(idle, busy, p)
			w.save(busy, "k", "in")
			time.Sleep(3 * time.Second)
			var last atomic.Bool
			view.set(nil, func(call, _ string) error {
				if call == "renew" {
					last.Store(true)
				}
				return nil
			})
			for !last.Load() {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(690 * time.Millisecond) // the idle gateway renews between snapshot and crash, if it can
			snap := w.n.Snapshot()
			w.destroy(busy, "k") // acknowledged, and not in the snapshot
			view.down()          // it comes back later than the idle one
			w.n.Restart(snap)
			time.Sleep(900 * time.Millisecond)
			view.up()
			time.Sleep(time.Minute)
			if p == RampDown {
				w.refused(busy)
				w.refused(idle)
				return
			}
			w.reads(busy, "k", "-")
			w.reads(idle, "k", "-")
			w.phase(idle, DualWrite)
		})
	}
}

// What a page saves is mostly what was there: it is not by values that one sees what is missing.
func TestALostLogoutIsNoticedBehindWritesThatChangeNothing(t *testing.T) {
	lost := func(t *testing.T) (undone bool) {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(RampDown)
			w.save(g, "k", "in")
			page := func() {
				for i := range 100 {
					w.save(g, fmt.Sprint("s", i), "data")
				}
			}
			page()
			time.Sleep(2 * time.Second)
			snap := w.n.Snapshot()
			w.destroy(g, "k")
			page()
			w.n.Restart(snap)
			time.Sleep(10 * time.Second)
			if undone = answer(g.Load(w.within(time.Second), "k")) == "in"; !undone {
				w.refused(g)
			}
		})
		return undone
	}
	if lost(t) {
		t.Error("the logout is undone")
	}
	defer guard.Disable(guard.Memory)()
	if !lost(t) {
		t.Error("without the guard nothing is undone: what is it for?")
	}
}

func TestAGatewayThatTookAnothersPlaceKnowsWhatThatWasTold(t *testing.T) {
	simulate(t, func(w *world) {
		a := w.gateway()
		w.at(RampDown)
		w.save(a, "k", "in")
		time.Sleep(4 * time.Second)
		snap := w.n.Snapshot()
		w.destroy(a, "k")
		a.stop() // as SIGKILL
		b := w.gateway()
		w.reads(b, "k", "-")
		w.n.Restart(snap)
		time.Sleep(10 * time.Second)
		w.refused(b)
	})
}

func TestAGatewayThatDiedWithTheTargetIsMissed(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, RampDown)
		w.save(b, "k", "in")
		time.Sleep(time.Second)
		b.stop()
		w.n.Restart(w.n.Snapshot())
		time.Sleep(20 * time.Second)
		w.refused(a) // whatever b was told last, nobody knows
		w.must(a.ForgetGateway(w.ctx(), b.opt.Gateway))
		time.Sleep(time.Second)
		w.reads(a, "k", "in")
	})
}

// One that has just come stands in no memory that an idle gateway would find too old. So it does not answer before the others
// have renewed their leases beside its own.
func TestAGatewayThatHasJustComeIsMissed(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			idle := w.gateway()
			w.at(p)
			w.save(idle, "k", "in")
			time.Sleep(5 * time.Second)
			var renewed atomic.Bool
			w.target.set(nil, func(call, _ string) error {
				if call == "renew" {
					renewed.Store(true)
				}
				return nil
			})
			for !renewed.Load() {
				time.Sleep(time.Millisecond)
			}
			w.target.up()
			snap := w.n.Snapshot()
			begun := time.Now()
			w.destroy(w.gateway(), "k") // acknowledged, by one that the snapshot does not know
			if took := time.Since(begun); took > 800*time.Millisecond {
				t.Errorf("%s: it took %v, and a lease is renewed every 700 ms", p, took)
			}
			w.n.Restart(snap)
			for range 500 {
				if got := answer(idle.Load(w.within(20*time.Millisecond), "k")); got == "in" {
					t.Fatalf("%s: the logout is undone", p)
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

// It waits for nobody who may be dead for longer than for the end of the lease, and that is no reason for a retreat.
func TestAGatewayThatTakesThePlaceOfOneThatWasKilled(t *testing.T) {
	for _, p := range []Phase{Sync, Live, RampDown} {
		simulate(t, func(w *world) {
			g, h := w.gateway(), w.gateway()
			w.both(g, h, p)
			w.save(h, "k", "in")
			h.stop()
			begun := time.Now()
			w.reads(w.gateway(), "k", "in")
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("%s: it took %v, and a lease is 3.5 s", p, took)
			}
			w.phase(g, p)
		})
	}
}

func TestALeaseThatWasOverLongAgoIsNotMissed(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, RampDown)
		w.save(b, "k", "in")
		b.stop()
		time.Sleep(10 * time.Second)
		w.n.Restart(w.n.Snapshot())
		time.Sleep(time.Second)
		w.reads(a, "k", "in")
	})
}

// While there is no server nobody is told anything; while this gateway alone is cut off others may be.
func TestWhoVouchesWasThereAllTheTime(t *testing.T) {
	for _, dead := range []bool{true, false} {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(RampDown)
			w.save(g, "k", "in")
			if dead {
				w.target.dead()
			} else {
				w.target.down()
			}
			time.Sleep(20 * time.Second)
			w.n.Restart(w.n.Snapshot())
			w.target.up()
			time.Sleep(10 * time.Second)
			if !dead {
				w.refused(g)
				return
			}
			w.reads(g, "k", "in")
			if n := g.Counters()["alarms"]; n != 0 {
				t.Errorf("%d alarms", n)
			}
		})
	}
}

// A renewal is held up by a failover that lasts for longer than a lease, and answered by the next primary.
func TestWhoWasHeldUpWasThereAllTheTime(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(RampDown)
		w.save(g, "k", "in")
		var renewals atomic.Int64
		w.target.set(func(call, _ string) error {
			if call != "renew" {
				return nil
			}
			switch life := g.opt.Times.Gateway; renewals.Add(1) {
			case 1: // asked before anybody else knew
				time.Sleep(life / 2)
				return store.ErrUnavailable
			case 2:
				time.Sleep(life/2 + 100*time.Millisecond)
				w.n.Restart(w.n.Snapshot())
				w.target.held.Store(true)
			}
			return nil
		}, nil)
		time.Sleep(20 * time.Second)
		w.reads(g, "k", "in")
		if n := g.Counters()["alarms"]; n != 0 || renewals.Load() < 3 {
			t.Errorf("%d alarms, %d renewals", n, renewals.Load())
		}
	})
}

func TestNoStepIsTakenOnATargetWithAnotherMemory(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, Live)
		w.save(a, "k", "in")
		snap := w.n.Snapshot()
		time.Sleep(100 * time.Millisecond)
		w.destroy(a, "k") // both stores have it; the target's disk does not
		w.n.Restart(snap)
		if err := a.SwitchTraffic(w.within(20*time.Second), RampDown, StepOptions{}); err == nil {
			t.Error("the step was taken")
		}
		time.Sleep(time.Minute)
		w.reads(a, "k", "-")
		w.reads(b, "k", "-")
	})
}

// isIn reports whether g goes by phase p.
func (w *world) isIn(g *Engine, p Phase) bool {
	c, _ := g.current()
	return c.phase == p
}

// upToSync takes the step into sync, during which a user logs out.
func (w *world) upToSyncWithALogout(g *Engine, key string) {
	w.t.Helper()
	opt := w.opt()
	say := opt.Say
	opt.Say = func(line string) {
		say(line)
		if strings.HasPrefix(line, "sealed") {
			w.destroy(g, key)
		}
	}
	w.must(g.SwitchTraffic(w.ctx(), Sync, opt))
	time.Sleep(5 * time.Second)
	w.reads(g, key, "-")
}

func TestAnAheadOfAnOlderMemoryIsNotPropagated(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(RampDown)
		w.origin.down()
		w.save(g, "k", "in") // ahead
		time.Sleep(3 * time.Second)
		snap := w.n.Snapshot()
		w.origin.up()
		time.Sleep(5 * time.Second)
		w.holds(w.o, "k", "in")
		w.at(Live)
		time.Sleep(2 * time.Second)
		w.n.Restart(snap)
		w.phase(g, DualWrite)
		w.reads(g, "k", "in")
		w.upToSyncWithALogout(g, "k")
	})
}

func TestAnAheadThatRepairGaveUpIsNotPropagated(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(RampDown)
		w.save(g, "k", "in")
		time.Sleep(2 * time.Second)
		w.origin.set(func(call, _ string) error {
			if call == "save" || call == "touch" {
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		w.save(g, "k", "in") // ahead
		w.target.down()      // and not crashed
		w.origin.up()
		time.Sleep(10 * time.Second)
		w.must(g.Repair(w.ctx(), "origin", StepOptions{Reason: "x"}))
		w.reads(g, "k", "in")
		w.target.up()
		w.phase(g, DualWrite)
		w.upToSyncWithALogout(g, "k")
	})
}

// What a person gave up is not served again before the workflow has gone back, nor does it reach the origin.
func TestATargetThatRepairGaveUpIsNotServed(t *testing.T) {
	for _, complete := range []bool{false, true} {
		simulate(t, func(w *world) {
			a, b := w.gateway(), w.gateway()
			w.both(a, b, RampDown)
			w.save(a, "k", "in")
			time.Sleep(2 * time.Second)
			if complete { // not to its end: one of them has left ramp-down
				w.target.set(func(call, _ string) error {
					if call == "purge" || call == "swapcontrol" && w.isIn(a, Complete) {
						return store.ErrUnavailable
					}
					return nil
				}, nil)
				_ = a.Complete(w.within(5*time.Second), StepOptions{})
			}
			w.target.down()
			time.Sleep(10 * time.Second)
			w.must(a.Repair(w.ctx(), "origin", StepOptions{Reason: "it is lost"}))
			time.Sleep(5 * time.Second)
			w.reads(b, "k", "in")
			w.destroy(b, "k")
			w.target.set(func(call, _ string) error {
				if call == "swapcontrol" {
					time.Sleep(100 * time.Millisecond)
				}
				return nil
			}, nil)
			for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				for _, g := range []*Engine{a, b} {
					if got := answer(g.Load(w.within(time.Second), "k")); got != "-" {
						w.t.Fatalf("complete %v: %s reads %q", complete, g.opt.Gateway, got)
					}
				}
			}
			w.phase(b, DualWrite)
			w.reads(b, "k", "-")
		})
	}
}

func TestIntentsLeftByARetreatDoNotCloseTheGate(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		w.save(g, "k", "old")
		w.target.set(func(call, _ string) error {
			if call == "commit" {
				w.target.down()
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		w.save(g, "k", "new")
		time.Sleep(10 * time.Second)
		w.target.up()
		w.phase(g, DualWrite)
		w.must(g.SwitchTraffic(w.ctx(), Live, StepOptions{}))
		w.reads(g, "k", "new")
	})
}

func TestASealThatNoStepFollowedDoesNotCloseTheWayDown(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		time.Sleep(3 * time.Second)
		w.target.set(func(call, _ string) error {
			if m, _ := w.o.Mark(w.ctx()); call == "swapcontrol" && m.Seal.Floor == store.FloorRampDown {
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		if err := g.SwitchTraffic(w.within(5*time.Second), RampDown, StepOptions{}); err == nil {
			t.Fatal("the step was taken")
		}
		w.target.up()
		if m, _ := w.o.Mark(w.ctx()); m.Seal.Floor != store.FloorRampDown {
			t.Fatalf("seal %+v", m.Seal)
		}
		w.must(g.ReverseTraffic(w.within(time.Minute), Sync, StepOptions{}))
		w.must(g.Cancel(w.within(time.Minute), StepOptions{}))
	})
}

func TestTwoWorkflowsDoNotShareATarget(t *testing.T) {
	simulate(t, func(w *world) {
		named := func(name, prefix string) func(*Options) {
			return func(o *Options) { o.Workflow, o.Prefix = name, prefix }
		}
		elsewhere := func(change func(*Options)) *Engine {
			o := w.origin
			defer func() { w.origin = o }()
			w.origin = &faulty{Origin: memory.New(memory.Options{LazyExpiry: true})}
			return w.gateway(change)
		}
		w.must(w.gateway(named("host1", "a:")).Create(w.ctx(), StepOptions{}))
		for _, prefix := range []string{"", "a:", "a:b", "a"} {
			if err := elsewhere(named("host2", prefix)).Create(w.ctx(), StepOptions{}); err == nil {
				t.Errorf("two workflows, prefixes %q and %q", "a:", prefix)
			}
		}
		w.must(elsewhere(named("host3", "b:")).Create(w.ctx(), StepOptions{}))
		if err := w.gateway(named("again", "c:")).Create(w.ctx(), StepOptions{}); err == nil {
			t.Error("two workflows on one origin")
		}
	})
}

func TestAWorkflowIsGoneForAGatewayThatWasAway(t *testing.T) {
	for _, again := range []bool{false, true} {
		simulate(t, func(w *world) {
			g := w.gateway()
			away, f := w.freezable()
			w.save(g, "k", "in")
			w.at(DualWrite)
			w.phase(away, DualWrite)
			f.stop()
			w.must(g.Cancel(w.ctx(), StepOptions{}))
			if again {
				w.must(g.Create(w.ctx(), StepOptions{}))
			}
			f.goOn()
			time.Sleep(20 * time.Second)
			names, err := w.n.Workflows(w.ctx())
			w.must(err)
			if want := map[bool]int{true: 1}[again]; len(names) != want || len(w.n.Keys("")) != 0 {
				t.Errorf("workflows %q, keys %q", names, w.n.Keys(""))
			}
			if n := away.Counters()["alarms"]; n != 0 {
				t.Errorf("%d alarms", n)
			}
			w.reads(away, "k", "in")
			if again {
				w.phase(away, Off)
				w.at(Live)
				w.reads(away, "k", "in")
			}
		})
	}
}

func TestThatItForgotIsSaidUntilItIsHeard(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(p)
			w.save(g, "k", "in")
			time.Sleep(5 * time.Second)
			snap := w.n.Snapshot()
			w.destroy(g, "k") // one step
			var heard atomic.Bool
			w.target.set(nil, func(call, _ string) error {
				if call == "renew" && heard.CompareAndSwap(false, true) {
					return store.ErrUnknown
				}
				return nil
			})
			w.n.Restart(snap)
			if got := answer(g.Load(w.within(10*time.Second), "k")); got == "in" {
				t.Errorf("%s: the logout is undone", p)
			}
		})
	}
}

func TestALossIsNotForgottenWithTheGatewayThatSawIt(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			g, h := w.gateway(), w.gateway()
			w.both(g, h, p)
			w.save(h, "k", "in")
			time.Sleep(5 * time.Second)
			snap := w.n.Snapshot()
			w.destroy(h, "k")
			w.n.Restart(snap)
			time.Sleep(map[Phase]time.Duration{Live: 100 * time.Millisecond, RampDown: 10 * time.Second}[p])
			w.must(h.Close()) // in good order
			for _, g := range []*Engine{g, w.gateway()} {
				if got := answer(g.Load(w.within(20*time.Second), "k")); got == "in" {
					t.Errorf("%s: the logout is undone", p)
				}
			}
		})
	}
}

func TestATargetThatRestartsWhileItIsAskedForItsName(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			g := w.gateway()
			h, _, view := w.view()
			w.both(g, h, p)
			w.save(h, "k", "in")
			time.Sleep(5 * time.Second)
			snap := w.n.Snapshot()
			w.destroy(h, "k")
			var once atomic.Bool
			view.set(func(call, _ string) error {
				if call == "instance" && once.CompareAndSwap(false, true) {
					w.n.Restart(snap)
				}
				return nil
			}, nil)
			h.mu.Lock()
			h.auth.generation = 0 // its connection was made anew, to the server as it was
			h.renewSoon()
			h.mu.Unlock()
			for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				if got := answer(g.Load(w.within(100*time.Millisecond), "k")); got == "in" {
					t.Fatalf("%s: the logout is undone", p)
				}
			}
		})
	}
}

func TestAGatewayThatWasSuspendedDoesNotVouchForWhomItNeverSaw(t *testing.T) {
	simulate(t, func(w *world) {
		g, f := w.freezable()
		w.at(RampDown)
		w.save(g, "k", "in")
		time.Sleep(5 * time.Second)
		f.stop()
		time.Sleep(20 * time.Second)
		snap := w.n.Snapshot() // without the gateway that took its place
		h := w.gateway()
		time.Sleep(10 * time.Second)
		w.destroy(h, "k")
		time.Sleep(10 * time.Second)
		w.n.Restart(snap)
		f.goOn()
		time.Sleep(20 * time.Second)
		w.refused(g)
		w.refused(h)
	})
}

// aheadClock is a target that fails over to a server whose clock is ahead: leases that the old one gave look over.
type aheadClock struct {
	store.Target
	since *atomic.Pointer[time.Time]
}

func (a aheadClock) Workflow(name string) store.Workflow {
	return aheadClockFlow{a.Target.Workflow(name), a.since}
}

type aheadClockFlow struct {
	store.Workflow
	since *atomic.Pointer[time.Time]
}

func (a aheadClockFlow) Leases(ctx context.Context) ([]store.Lease, error) {
	leases, err := a.Workflow.Leases(ctx)
	if since := a.since.Load(); since != nil {
		for i, l := range leases {
			if l.Until.Before(since.Add(DefaultTimes(2 * time.Second).Gateway)) {
				leases[i].Left -= 10 * time.Second
			}
		}
	}
	return leases, err
}

func TestAServerWhoseClockIsAheadKnowsWhoHadALease(t *testing.T) {
	simulate(t, func(w *world) {
		var since atomic.Pointer[time.Time]
		w.target = &faultyTarget{Target: aheadClock{w.n, &since}}
		g := w.gateway()
		h, f := w.freezable()
		w.both(g, h, RampDown)
		w.save(h, "k", "in")
		time.Sleep(5 * time.Second)
		snap := w.n.Snapshot()
		w.destroy(h, "k")
		f.stop() // it needs a moment to connect
		now := time.Now()
		since.Store(&now)
		w.n.Restart(snap)
		time.Sleep(500 * time.Millisecond)
		f.goOn()
		time.Sleep(20 * time.Second)
		w.refused(g)
	})
}

// A move that was cancelled, and then an old record: under floor none the origin decides, whatever a target says.
func TestAnOldRecordIsNotObeyedWhereTheOriginDecides(t *testing.T) {
	for _, p := range []Phase{Live, RampDown} {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(p)
			w.save(g, "k", "in")
			time.Sleep(5 * time.Second)
			snap := w.n.Snapshot()
			w.must(g.Cancel(w.ctx(), StepOptions{}))
			time.Sleep(5 * time.Second)
			w.destroy(g, "k")
			w.n.Restart(snap)
			instance, err := w.n.Instance(w.ctx())
			w.must(err)
			_, err = updateControl(w.ctx(), w.n.Workflow("default"), func(c *Control) error { c.Instance = instance; return nil })
			w.must(err)
			time.Sleep(5 * time.Second)
			w.reads(g, "k", "-")
		})
	}
}

func TestAMachineThatIsRebootedWithAnEmptyTarget(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown} {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(p)
			w.save(g, "k", "v")
			time.Sleep(5 * time.Second)
			g.stop()
			w.n.Restart(memory.Snapshot{})
			time.Sleep(10 * time.Second)
			g = w.gateway()
			w.gws[0] = g
			time.Sleep(10 * time.Second)
			if p == RampDown {
				w.refused(g)
				w.must(g.Repair(w.ctx(), "origin", StepOptions{Reason: "it is lost"}))
			}
			w.reads(g, "k", "v")
			time.Sleep(20 * time.Second)
			w.must(g.SwitchTraffic(w.ctx(), Live, StepOptions{}))
			w.reads(g, "k", "v")
			w.must(g.Cancel(w.ctx(), StepOptions{}))
		})
	}
}

func TestCancelLeavesNoSealedOrigin(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		w.save(g, "k", "v")
		time.Sleep(5 * time.Second)
		w.origin.set(func(call, _ string) error {
			if call == "swapmark" {
				return fmt.Errorf("%w: no space left", store.ErrUnavailable)
			}
			return nil
		}, nil)
		if err := g.Cancel(w.within(30*time.Second), StepOptions{}); err == nil {
			t.Error("cancelled, and the origin is sealed")
		}
		w.origin.up()
		w.must(g.Cancel(w.ctx(), StepOptions{}))
		if m, _ := w.o.Mark(w.ctx()); m.Seal.Floor != store.FloorNone || m.Seal.Workflow != "" {
			t.Errorf("seal %+v", m.Seal)
		}
		w.reads(g, "k", "v")
	})
}

func TestWhatIsNotCompleteIsNotPurged(t *testing.T) {
	simulate(t, func(w *world) {
		b := w.gateway()
		a, _, view := w.view()
		w.both(b, a, RampDown)
		w.save(b, "k", "in")
		time.Sleep(5 * time.Second)
		snap := w.n.Snapshot()
		record := func() *Control {
			c, err := readControl(w.ctx(), w.n.Workflow("default"))
			w.must(err)
			return c
		}
		var once atomic.Bool
		view.set(nil, func(call, _ string) error {
			if c := record(); call == "swapcontrol" && c.Phase == Complete && c.Done && once.CompareAndSwap(false, true) {
				w.n.Restart(snap)
			}
			return nil
		})
		if err := a.Complete(w.within(20*time.Second), StepOptions{}); err == nil {
			t.Error("it is complete")
		}
		if c := record(); c.Purged {
			t.Errorf("%s, and purged", c.Phase)
		}
	})
}

// The target fails over at any point of an operation and has forgotten nothing: whoever is held up meanwhile is answered.
func TestAFailoverInTheMiddleOfAnOperation(t *testing.T) {
	operations := map[string]func(w *world, g *Engine) error{
		"save":   func(w *world, g *Engine) error { return g.Save(w.ctx(), "k", hour("new"), store.Always) },
		"delete": func(w *world, g *Engine) error { _, err := g.Delete(w.ctx(), "k", store.Always); return err },
		"touch":  func(w *world, g *Engine) error { return g.Touch(w.ctx(), "k", hour("").Expires) },
		"load":   func(w *world, g *Engine) error { _, err := g.Load(w.ctx(), "k"); return err },
		"lock":   func(w *world, g *Engine) error { return g.Lock(w.ctx(), "k", "token", time.Minute) },
	}
	for p := Off; p <= RampDown; p++ {
		for name, operation := range operations {
			for n := int64(1); ; n++ { // after its n-th call, answered or not
				var calls atomic.Int64
				for _, answered := range []bool{true, false} {
					simulate(t, func(w *world) {
						g, h := w.gateway(), w.gateway()
						w.save(g, "k", "old")
						w.both(g, h, p)
						time.Sleep(5 * time.Second)
						calls.Store(0)
						fail := func(call, _ string) error {
							if call == "renew" || call == "mark" || call == "control" || call == "leases" {
								return nil
							}
							if calls.Add(1) == n {
								w.n.Restart(w.n.Snapshot())
								if !answered && call != "save" && call != "delete" && call != "touch" { // the origin's are answered
									return store.ErrUnknown
								}
							}
							return nil
						}
						w.origin.set(nil, fail)
						w.target.set(nil, fail)
						if err := operation(w, g); err != nil {
							t.Errorf("%s: %s, after call %d, answered %v: %v", p, name, n, answered, err)
						}
						want := map[string]string{"save": "new", "delete": "-"}[name]
						w.reads(h, "k", cmp.Or(want, "old"))
						w.phase(g, p)
					})
				}
				if calls.Load() < n {
					break
				}
			}
		}
	}
}

// What is there is no proof that a write was done, if it may still come: between it and what somebody else has written
// alike there may be a logout.
func TestAWriteThatMayStillComeIsNotAcknowledged(t *testing.T) {
	for _, tc := range []struct {
		name      string
		phase     Phase
		call      string // that gets no answer
		restart   bool
		meanwhile string // what somebody else writes
		want      store.Outcome
	}{
		{"it is not there", RampDown, "writeahead", true, "other", store.OutcomeUnknown},
		{"it is there, on the same server", RampDown, "writeahead", false, "new", store.OutcomeUnknown},
		{"it is there, on another server", RampDown, "writeahead", true, "new", store.OK},
		{"it may be under way in the origin", DualWrite, "save", true, "new", store.OutcomeUnknown},
	} {
		simulate(t, func(w *world) {
			h := w.gateway()
			g, origin, target := w.view()
			w.both(h, g, tc.phase)
			time.Sleep(5 * time.Second)
			var once atomic.Bool
			lost := func(call, _ string) error {
				if call != tc.call || !once.CompareAndSwap(false, true) {
					return nil
				}
				w.save(h, "k", tc.meanwhile)
				if tc.restart {
					w.n.Restart(w.n.Snapshot())
				}
				return store.ErrUnknown
			}
			origin.set(lost, nil)
			target.set(lost, nil)
			if err := g.Save(w.ctx(), "k", hour("new"), store.Always); store.OutcomeOf(err) != tc.want {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
			}
		})
	}
}
