package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// within is the patience of a client.
func (w *world) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	w.t.Cleanup(cancel)
	return ctx
}

func TestTargetAwayInSyncAndLive(t *testing.T) {
	for _, p := range []Phase{Sync, Live} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.at(p)
				w.save(g, "k", "before")
				w.target.down()
				begun := time.Now()
				// What is asked now is held, and then answered: nobody notices but by the wait.
				w.reads(g, "k", "before")
				w.save(g, "k", "during")
				times := g.opt.Times
				if took := time.Since(begun); took > times.Gateway+times.RetreatAfter+times.Gateway+time.Second {
					t.Errorf("held for %v", took)
				}
				w.reads(g, "k", "during")
				w.holds(w.o, "k", "during")
				if m, _ := w.o.Mark(w.ctx()); m.Seal.Floor != store.FloorRetreat {
					t.Errorf("floor %s, want retreat", m.Seal.Floor)
				}
				w.target.up()
				w.phase(g, DualWrite)
				time.Sleep(time.Second)
				if m, _ := w.o.Mark(w.ctx()); m.Seal.Floor != store.FloorNone {
					t.Errorf("floor %s after the way back, want none", m.Seal.Floor)
				}
				w.reads(g, "k", "during")
				w.at(RampDown)
				w.reads(g, "k", "during")
			})
		})
	}
}

func TestTargetAwayInDualWriteIsNotNoticed(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(DualWrite)
		w.target.down()
		begun := time.Now()
		for i := range 20 {
			w.save(g, "k", fmt.Sprint(i))
			w.reads(g, "k", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		if took := time.Since(begun); took > 21*time.Second {
			t.Errorf("somebody was held: %v", took)
		}
		w.target.up()
		time.Sleep(5 * time.Second)
		w.at(Live)
		w.reads(g, "k", "19")
	})
}

func TestTargetAwayInRampDownHoldsThenFails(t *testing.T) {
	for _, p := range []Phase{RampDown, Complete} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.at(p)
				w.save(g, "k", "v")
				w.target.down()
				time.Sleep(10 * time.Second)
				_, err := g.Load(w.within(time.Second), "k")
				if store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("Load: got %v, want unavailable", err)
				}
				err = g.Save(w.within(time.Second), "k", hour("x"), store.Always)
				if store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("Save: got %v, want unavailable", err)
				}
				w.target.up()
				w.reads(g, "k", "v")
				w.save(g, "k", "v2")
			})
		})
	}
}

func TestTargetComesBackEmpty(t *testing.T) {
	for _, p := range []Phase{DualWrite, Sync, Live} {
		for how, forget := range map[string]func(n *memory.Store){
			"restarted": func(n *memory.Store) { n.Restart(memory.Snapshot{}) },
			"flushed":   func(n *memory.Store) { n.Flush() },
		} {
			t.Run(p.String()+" "+how, func(t *testing.T) {
				simulate(t, func(w *world) {
					g := w.gateway()
					w.at(p)
					w.save(g, "k", "v")
					forget(w.n)
					w.reads(g, "k", "v") // never "no such session"
					w.save(g, "k", "v2")
					w.destroy(g, "k")
					w.reads(g, "k", "-")
					w.save(g, "k2", "v")
					w.phase(g, DualWrite)
					w.reads(g, "k2", "v")
					time.Sleep(5 * time.Second)
					w.at(RampDown)
					w.reads(g, "k2", "v")
					w.reads(g, "k", "-")
				})
			})
		}
	}
}

func TestTargetComesBackEmptyInRampDown(t *testing.T) {
	for how, forget := range map[string]func(n *memory.Store){
		"restarted": func(n *memory.Store) { n.Restart(memory.Snapshot{}) },
		"flushed":   func(n *memory.Store) { n.Flush() },
	} {
		t.Run(how, func(t *testing.T) {
			simulate(t, func(w *world) {
				var alarms []string
				g := w.gateway(func(o *Options) { o.Hooks.Alarm = func(s string) { alarms = append(alarms, s) } })
				w.at(RampDown)
				w.save(g, "k", "v")
				time.Sleep(time.Second)
				forget(w.n)
				for range 10 {
					if got := answer(g.Load(w.within(time.Second), "k")); !strings.HasPrefix(got, "error") {
						t.Fatalf("reads %q, want a refusal", got)
					}
				}
				if len(alarms) == 0 {
					t.Error("no alarm")
				}
				// A person decides for the origin: what had reached it is there.
				w.must(g.Repair(w.ctx(), "origin", StepOptions{Reason: "the disk of the target is gone"}))
				w.reads(g, "k", "v")
				w.save(g, "k", "v2")
				w.phase(g, DualWrite)
				w.reads(g, "k", "v2")
				w.at(Live)
				w.reads(g, "k", "v2")
			})
		})
	}
}

func TestRepairWithTheTarget(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(RampDown)
		w.save(g, "k", "v")
		snap := w.n.Snapshot()
		w.save(g, "k", "lost")
		w.n.Restart(snap)
		time.Sleep(10 * time.Second)
		if got := answer(g.Load(w.within(time.Second), "k")); !strings.HasPrefix(got, "error") {
			t.Fatalf("reads %q from a target that lost a write, want a refusal", got)
		}
		w.must(g.Repair(w.ctx(), "target", StepOptions{Reason: "that one write is no loss"}))
		w.reads(g, "k", "v")
		w.save(g, "k", "v3")
		w.at(Complete)
		w.reads(g, "k", "v3")
	})
}

func TestNobodyGoesBackToTheOriginAfterComplete(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Complete)
		w.target.down()
		time.Sleep(10 * time.Second)
		var usage *UsageError
		if err := g.Repair(w.ctx(), "origin", StepOptions{Reason: "the target is away"}); !errors.As(err, &usage) {
			t.Errorf("Repair: got %v", err)
		}
		w.target.up()
		w.save(g, "k", "v")
	})
}

// What the target has forgotten, markers included, the origin may still have: it is brought to what the target holds before
// it decides again.
func TestTheWayDownAfterARepairWithTheTarget(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(RampDown)
		snap := w.n.Snapshot()
		w.save(g, "in", "v")
		w.save(g, "out", "v")
		time.Sleep(10 * time.Second)
		w.origin.down()
		w.destroy(g, "out")
		w.n.Restart(snap)
		w.origin.up()
		time.Sleep(10 * time.Second)
		w.must(g.Repair(w.ctx(), "target", StepOptions{Reason: "they log in again"}))
		w.save(g, "new", "v")
		w.at(DualWrite)
		w.reads(g, "out", "-")
		w.reads(g, "in", "-")
		w.reads(g, "new", "v")
		w.holds(w.o, "out", "-")
	})
}

func TestTargetRestartsWithItsData(t *testing.T) {
	for _, p := range []Phase{Sync, Live, RampDown, Complete} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.at(p)
				for i := range 100 {
					w.save(g, fmt.Sprint("k", i%7), fmt.Sprint(i))
				}
				w.destroy(g, "k3")
				time.Sleep(time.Second)
				w.n.Restart(w.n.Snapshot())
				w.reads(g, "k1", "99")
				w.reads(g, "k3", "-")
				time.Sleep(10 * time.Second)
				if st := g.Status(w.ctx()); st.Phase != p {
					t.Errorf("in phase %s, want %s still: nothing was lost", st.Phase, p)
				}
				w.save(g, "k1", "x")
				w.reads(g, "k1", "x")
			})
		})
	}
}

func TestTargetRestartsWithoutItsLastWrite(t *testing.T) {
	for _, p := range []Phase{Sync, Live} {
		for what, last := range map[string]func(w *world, g *Engine){
			"a write":  func(w *world, g *Engine) { w.save(g, "k", "new") },
			"a logout": func(w *world, g *Engine) { w.destroy(g, "k") },
		} {
			t.Run(p.String()+" "+what, func(t *testing.T) {
				simulate(t, func(w *world) {
					g := w.gateway()
					w.at(p)
					time.Sleep(5 * time.Second) // the reconcile pass is over: it would mend what is about to be lost
					w.save(g, "k", "old")
					snap := w.n.Snapshot()
					last(w, g)
					want := answer(w.o.Load(w.ctx(), "k"))
					w.n.Restart(snap)
					w.reads(g, "k", want)
					w.phase(g, DualWrite)
					w.reads(g, "k", want)
					time.Sleep(5 * time.Second)
					w.at(Live)
					w.reads(g, "k", want)
				})
			})
		}
	}
}

func TestOriginAway(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.at(p)
				w.save(g, "k", "v")
				w.origin.down()
				time.Sleep(20 * time.Second)
				if err := g.Save(w.within(time.Second), "k", hour("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("Save: got %v, want unavailable", err)
				}
				if got := answer(g.Load(w.within(time.Second), "k")); got != "v" && !strings.HasPrefix(got, "error") {
					t.Errorf("reads %q", got)
				}
				w.origin.up()
				w.reads(g, "k", "v")
				w.save(g, "k", "v2")
				w.reads(g, "k", "v2")
			})
		})
	}
	t.Run("ramp-down", func(t *testing.T) {
		simulate(t, func(w *world) {
			g := w.gateway()
			w.at(RampDown)
			w.save(g, "k", "v")
			w.origin.down()
			for i := range 20 {
				w.save(g, fmt.Sprint("k", i), "v")
				w.must(g.Touch(w.ctx(), "k", hour("").Expires))
			}
			w.destroy(g, "k7")
			time.Sleep(10 * time.Second)
			st := g.Status(w.ctx())
			if st.Debt.Aheads < 20 {
				t.Errorf("debt %+v, want at least 20 ahead", st.Debt)
			}
			err := g.ReverseTraffic(w.within(10*time.Second), Sync, w.opt())
			if err == nil {
				t.Error("went back to sync although the origin is behind")
			}
			w.origin.up()
			time.Sleep(10 * time.Second)
			w.at(Sync)
			w.holds(w.o, "k3", "v")
			w.holds(w.o, "k7", "-")
			w.reads(g, "k7", "-")
		})
	})
}

func TestGatewayRestartsAtEveryPhase(t *testing.T) {
	for p := Off; p <= Complete; p++ {
		for _, away := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, target away %v", p, away), func(t *testing.T) {
				simulate(t, func(w *world) {
					g := w.gateway()
					w.at(p)
					w.save(g, "k", "v")
					w.save(g, "gone", "v")
					w.destroy(g, "gone")
					w.must(g.Close())
					if away {
						w.target.down()
					}
					w.gws = nil
					g = w.gateway()
					if away && p >= RampDown {
						for range 10 {
							if got := answer(g.Load(w.within(time.Second), "k")); !strings.HasPrefix(got, "error") {
								t.Fatalf("reads %q, want a refusal", got)
							}
						}
						w.target.up()
					}
					w.reads(g, "k", "v")
					w.reads(g, "gone", "-")
					w.save(g, "k", "v2")
					w.target.up()
					time.Sleep(10 * time.Second)
					w.reads(g, "k", "v2")
					if p < Complete {
						w.at(RampDown)
						w.reads(g, "k", "v2")
						w.reads(g, "gone", "-")
					}
				})
			})
		}
	}
}

func TestAnotherDiskIsRefused(t *testing.T) {
	simulate(t, func(w *world) {
		w.gateway()
		w.at(DualWrite)
		other, err := New(memory.New(memory.Options{LazyExpiry: true}), w.n, Options{Gateway: "stranger"})
		w.must(err)
		defer other.Close()
		time.Sleep(2 * time.Second)
		if _, err := other.Load(w.within(time.Second), "k"); err == nil || !strings.Contains(err.Error(), "another origin") {
			t.Errorf("Load: got %v, want a refusal that says why", err)
		}
	})
}

// One that cannot reach the target serves by its phase for as long as its lease lasts, whoever forgets it: a step that did not
// wait for that would be one beside it.
func TestAGatewayThatGoesByItsLeaseIsNotForgotten(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		h, _, view := w.view()
		w.at(DualWrite)
		w.phase(h, DualWrite)
		var usage *UsageError
		if err := g.ForgetGateway(w.ctx(), h.opt.Gateway); !errors.As(err, &usage) || !strings.Contains(err.Error(), "lives") {
			t.Errorf("ForgetGateway of one that lives: %v", err)
		}
		view.down() // and now it does not renew
		begun := time.Now()
		w.must(g.ForgetGateway(w.ctx(), h.opt.Gateway))
		if took := time.Since(begun); took < 2*time.Second || took > 5*time.Second {
			t.Errorf("it took %v, want about one lease", took)
		}
		if l, _ := g.flow.Leases(w.ctx()); len(l) != 1 {
			t.Errorf("leases %+v", l)
		}
	})
}

func TestASilentGatewayIsWaitedForUntilItsLeaseIsOver(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		silent := w.gateway()
		w.at(DualWrite)
		w.phase(silent, DualWrite)
		silent.stop() // as SIGKILL: its lease stays
		begun := time.Now()
		w.at(Off)
		if took := time.Since(begun); took < 2*time.Second || took > 5*time.Second {
			t.Errorf("the step took %v, want about one lease", took)
		}
		silent2 := w.gateway()
		w.at(DualWrite)
		w.phase(silent2, DualWrite)
		silent2.stop()
		w.must(g.ForgetGateway(w.ctx(), silent2.opt.Gateway))
		begun = time.Now()
		w.at(Off)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the step took %v after forget-gateway", took)
		}
	})
}

func TestCreateRefusesWhatItDidNotMake(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.must(w.n.Save(w.ctx(), "foreign", hour("x"), store.Always))
		var usage *UsageError
		if err := g.Create(w.ctx(), w.opt()); !errors.As(err, &usage) || !strings.Contains(err.Error(), "1 sessions") {
			t.Errorf("Create: got %v, want a refusal", err)
		}
		w.holds(w.n, "foreign", "x")
	})
}

func TestCancelLeavesNothing(t *testing.T) {
	for p := Off; p <= RampDown; p++ {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.gateway()
				w.save(g, "a", "1")
				w.at(p)
				w.save(g, "b", "2")
				w.must(g.Cancel(w.ctx(), w.opt()))
				w.must(g.Cancel(w.ctx(), w.opt()))
				if keys := w.n.Keys(""); len(keys) != 0 {
					t.Errorf("the target still holds %q", keys)
				}
				if flows, _ := w.n.Workflows(w.ctx()); len(flows) != 0 {
					t.Errorf("workflows %q", flows)
				}
				w.reads(g, "a", "1")
				w.reads(g, "b", "2")
				time.Sleep(10 * time.Second)
				w.reads(w.gws[1], "b", "2")
				w.save(g, "b", "3")
				w.at(RampDown) // and it can begin again
				w.reads(g, "b", "3")
			})
		})
	}
}

// Every command can be killed at any point and run again: here it dies after its n-th call of a store, for every n.
func TestCommandsKilledAnywhereAndRunAgain(t *testing.T) {
	for n := 1; n < 400; n += 3 {
		finished := false
		simulate(t, func(w *world) {
			g := w.gateway()
			w.save(g, "k", "v")
			var calls atomic.Int64
			var kill atomic.Pointer[context.CancelFunc]
			killer := func(call, _ string) error {
				if call == "swapcontrol" || call == "swapmark" || call == "control" || call == "leases" || call == "mark" {
					if f := kill.Load(); calls.Add(1) == int64(n) && f != nil {
						(*f)()
					}
				}
				return nil
			}
			command := func(run func(ctx context.Context) error) {
				ctx, cancel := context.WithCancel(w.ctx())
				kill.Store(&cancel)
				_ = run(ctx)
				cancel()
				w.must(run(w.ctx()))
			}
			w.origin.set(killer, nil)
			w.target.set(nil, killer)
			command(func(ctx context.Context) error { return g.Create(ctx, StepOptions{}) })
			command(func(ctx context.Context) error { return g.SwitchTraffic(ctx, RampDown, StepOptions{}) })
			command(func(ctx context.Context) error { return g.ReverseTraffic(ctx, DualWrite, StepOptions{}) })
			command(func(ctx context.Context) error { return g.SwitchTraffic(ctx, RampDown, StepOptions{}) })
			command(func(ctx context.Context) error { return g.Complete(ctx, StepOptions{}) })
			w.origin.up()
			w.target.up()
			w.reads(g, "k", "v")
			w.save(g, "k", "v2")
			w.reads(g, "k", "v2")
			finished = calls.Load() < int64(n)
		})
		if t.Failed() {
			t.Fatalf("killed at call %d", n)
		}
		if finished {
			break
		}
	}
}

func TestCommandsFromTwoTerminals(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.save(a, "k", "v")
		w.must(a.Create(w.ctx(), StepOptions{}))
		errs := make(chan error, 2)
		for _, g := range []*Engine{a, b} {
			go func() {
				err := g.SwitchTraffic(w.ctx(), RampDown, StepOptions{})
				for i := 0; err != nil && i < 20; i++ { // one of them is told that the other was faster, and tries again
					err = g.SwitchTraffic(w.ctx(), RampDown, StepOptions{})
				}
				errs <- err
			}()
		}
		w.must(<-errs)
		w.must(<-errs)
		if st := a.Status(w.ctx()); st.Phase != RampDown || st.Step != "done" {
			t.Errorf("status %s, %s", st.Phase, st.Step)
		}
		w.reads(b, "k", "v")
	})
}

func TestAnIdleGatewaySaysSoonWhatItMisses(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Sync)
		time.Sleep(time.Second)
		w.target.again.Add(1)
		time.Sleep(60 * time.Millisecond) // a fifth of a lease is ten times as long
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.auth.hasLease(time.Now(), w.target.Generation()) {
			t.Error("it has not renewed its lease on a target that may be another one")
		}
	})
}
