package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// brief is the patience of somebody who is not served.
func (w *world) brief() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 500*time.Millisecond)
	w.t.Cleanup(cancel)
	return ctx
}

// An origin that comes back without its memory, as a Redis without a disk does, does not say that nobody is logged in: not in
// the first moment, before anybody has looked at its mark, and not later. What only the target is asked for goes on.
func TestAnOriginThatHasLostItsMemory(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.save(g, "k", "a")
				w.save(g, "dead", "a")
				w.at(p)
				if p.strict() { // whose intent is left
					g.mu.Lock()
					epoch := g.auth.control.Epoch
					g.mu.Unlock()
					if _, err := g.flow.Begin(w.ctx(), "dead", store.Op{Nonce: "x", Epoch: epoch, Lease: time.Millisecond}); err != nil {
						t.Fatal(err)
					}
				}
				w.o.Restart(memory.Snapshot{})
				for range 20 { // longer than a lease, with the sweep at work
					for _, key := range []string{"k", "dead"} {
						got := answer(g.Load(w.brief(), key))
						if p >= Live && key == "k" && got != "a" && !strings.HasPrefix(got, "error: ") || p < Live && !strings.HasPrefix(got, "error: ") || got == "-" {
							t.Fatalf("%s reads %q", key, got)
						}
					}
				}
				if p == RampDown {
					w.reads(g, "k", "a")
					w.save(g, "k", "b")
					time.Sleep(time.Second)
					w.holds(w.o, "k", "b")
				} else if err := g.Save(w.brief(), "k", hour("b"), store.Always); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("Save: got %v", err)
				}
				if p >= Sync {
					w.holds(w.n, "k", map[bool]string{true: "b", false: "a"}[p == RampDown])
					w.holds(w.n, "dead", "a")
				}
			})
		})
	}
}

// Nor does it say so to a touch of what the target does not have yet.
func TestATouchOfAnOriginThatHasLostItsMemory(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.at(p)
				w.save(g, "k", "a")
				time.Sleep(time.Second) // its copy, too
				if _, err := w.n.Delete(w.ctx(), "k", store.Always); err != nil {
					t.Fatal(err)
				}
				w.o.Restart(memory.Snapshot{})
				for range 20 {
					if err := g.Touch(w.brief(), "k", time.Now().Add(time.Hour)); !errors.Is(err, store.ErrUnavailable) {
						t.Fatalf("Touch: got %v", err)
					}
				}
			})
		})
	}
}

// Nor do many who are not served keep each other busy.
func TestManyAskAnOriginThatHasLostItsMemory(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Sync)
		w.save(g, "k", "a")
		w.o.Restart(memory.Snapshot{})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if got := answer(g.Load(w.brief(), "k")); !strings.HasPrefix(got, "error: ") {
					t.Errorf("reads %q", got)
				}
			})
		}
		wg.Wait() // which it would not do as long as anybody has work
	})
}

// One that comes back with an older memory has an older seal, and would let those who see only it serve alone.
func TestAnOriginWithAnOlderSeal(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.save(g, "k", "a")
		w.at(Off)
		old := w.o.Snapshot()
		w.at(RampDown)
		w.save(g, "k", "b")
		time.Sleep(time.Second)
		w.o.Restart(old)
		for range 10 {
			time.Sleep(time.Second)
			w.reads(g, "k", "b")
		}
	})
	simulate(t, func(w *world) {
		g := w.gateway()
		w.save(g, "k", "a")
		w.at(Off)
		old := w.o.Snapshot()
		w.at(Live)
		w.save(g, "k", "b")
		w.o.Restart(old)
		for range 10 {
			time.Sleep(time.Second)
			if got := answer(g.Load(w.brief(), "k")); got == "a" || got == "-" {
				t.Fatalf("reads %q", got)
			}
		}
	})
}

// A person decides: for the target, which in live has every session, and from there there is a way up and a way down; or for
// what the origin has.
func TestRepairOfAnOrigin(t *testing.T) {
	lose := func(w *world, p Phase, how func()) *Engine {
		g := w.gateway()
		w.at(Off)
		w.save(g, "k", "a")
		w.save(g, "other", "a")
		w.at(p)
		w.save(g, "k", "b")
		time.Sleep(time.Second)
		how()
		time.Sleep(10 * time.Second)
		if got := answer(g.Load(w.brief(), "k")); p < RampDown && !strings.HasPrefix(got, "error: ") {
			w.t.Fatalf("reads %q", got)
		}
		return g
	}
	why := StepOptions{Reason: "its disk is gone"}
	for _, p := range []Phase{Live, RampDown} {
		for _, fresh := range []bool{false, true} {
			t.Run(fmt.Sprintf("the target, %v, another gateway %v", p, fresh), func(t *testing.T) {
				simulate(t, func(w *world) {
					g := lose(w, p, func() { w.o.Restart(memory.Snapshot{}) })
					if fresh { // one that knows nothing
						w.must(g.Close())
						w.gws = nil
						g = w.gateway()
						time.Sleep(5 * time.Second)
					}
					w.must(g.Repair(w.ctx(), "target", why))
					for key, want := range map[string]string{"k": "b", "other": "a", "none": "-"} {
						w.reads(g, key, want)
					}
					w.destroy(g, "k")
					w.at(Off)
					w.holds(w.o, "other", "a")
					w.holds(w.o, "k", "-")
					w.at(Complete)
					w.reads(g, "other", "a")
				})
			})
		}
	}
	for _, p := range []Phase{Off, DualWrite, Sync} {
		t.Run("the origin, "+p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := lose(w, p, func() { w.o.Restart(memory.Snapshot{}) })
				var usage *UsageError
				if err := g.Repair(w.ctx(), "target", why); !errors.As(err, &usage) {
					t.Errorf("with the target: %v", err)
				}
				w.must(g.Repair(w.ctx(), "origin", why))
				w.reads(g, "k", "-")
				w.save(g, "k", "c")
				w.phase(g, DualWrite)
				w.at(Complete)
				w.reads(g, "k", "c")
			})
		})
	}
	t.Run("an older origin", func(t *testing.T) {
		for use, want := range map[string]string{"origin": "a", "target": "b"} {
			simulate(t, func(w *world) {
				var old memory.Snapshot
				g := w.gateway()
				w.at(Off)
				w.save(g, "k", "a")
				old = w.o.Snapshot()
				w.at(Live)
				w.save(g, "k", "b")
				w.o.Restart(old)
				time.Sleep(10 * time.Second)
				w.must(g.Repair(w.ctx(), use, why))
				w.reads(g, "k", want)
				w.at(Complete)
				w.reads(g, "k", want)
			})
		}
	})
	simulate(t, func(w *world) {
		g := w.gateway()
		w.at(Live)
		var usage *UsageError
		if err := g.Repair(w.ctx(), "target", why); !errors.As(err, &usage) {
			t.Errorf("nothing is lost: %v", err)
		}
	})
}

// After a cancel the origin still has its identity, and is missed where that goes: a person says that it goes on with what there is.
func TestRepairOfAnOriginThatIsNobodys(t *testing.T) {
	simulate(t, func(w *world) {
		g, other := w.gateway(), w.gateway()
		w.save(g, "k", "a")
		w.at(DualWrite)
		w.must(g.Cancel(w.ctx(), w.opt()))
		time.Sleep(10 * time.Second)
		w.reads(g, "k", "a")
		w.o.Restart(memory.Snapshot{})
		time.Sleep(10 * time.Second)
		if got := answer(g.Load(w.brief(), "k")); !strings.HasPrefix(got, "error: ") {
			t.Errorf("reads %q", got)
		}
		var usage *UsageError
		if err := g.Repair(w.ctx(), "target", StepOptions{Reason: "restarted"}); !errors.As(err, &usage) {
			t.Errorf("the target has nothing: %v", err)
		}
		w.must(g.Repair(w.ctx(), "origin", StepOptions{Reason: "restarted"}))
		time.Sleep(10 * time.Second)
		for _, g := range []*Engine{g, other} {
			w.reads(g, "k", "-")
		}
		w.save(other, "k", "b")
		w.must(g.Create(w.ctx(), w.opt()))
	})
}

// A client whose connection ended up at another gateway releases its lock there, in both stores: where a lock lies in the
// origin's server it would be waited for until its life is over.
func TestALockIsReleasedThroughAnotherGateway(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				one, other := w.gateway(), w.gateway()
				w.at(p)
				w.phase(other, p)
				w.must(one.Lock(w.ctx(), "k", "token", time.Minute))
				if err := other.Lock(w.brief(), "k", "mine", time.Minute); !errors.Is(err, store.ErrLocked) {
					t.Fatalf("Lock by another: %v", err)
				}
				if held, err := other.Unlock(w.ctx(), "k", "token"); !held || err != nil {
					t.Fatalf("Unlock: %v, %v", held, err)
				}
				if err := other.Lock(w.brief(), "k", "mine", time.Minute); err != nil {
					t.Errorf("Lock: %v", err)
				}
			})
		})
	}
}

// mute is an origin that gives locks, and does not say so.
type mute struct{ store.Origin }

func (m mute) Lock(ctx context.Context, key, token string, life time.Duration) error {
	if err := m.Origin.Lock(ctx, key, token, life); err != nil {
		return err
	}
	return fmt.Errorf("%w: no answer", store.ErrUnknown)
}

// A lock that the origin has given, and whose answer is lost, is given back: nobody else could open the session as long as it lives.
func TestALockWhoseAnswerIsLost(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				o := w.origin
				w.origin = &faulty{Origin: mute{o.Origin}}
				one := w.gateway()
				w.origin = o
				other := w.gateway()
				w.at(p)
				w.phase(other, p)
				if err := one.Lock(w.brief(), "k", "token", time.Minute); !errors.Is(err, store.ErrUnknown) {
					t.Fatalf("Lock: %v", err)
				}
				if err := other.Lock(w.brief(), "k", "mine", time.Minute); err != nil {
					t.Errorf("Lock by another: %v", err)
				}
			})
		})
	}
}

// A part of the origin has lost its memory, and with it the identity: nobody is served from what is left, also by a gateway that begins
// where the target is away; and no step is taken.
func TestAnOriginThatHasLostAPart(t *testing.T) {
	for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.save(g, "k", "a")
				w.at(p)
				mark, err := w.o.Mark(w.ctx())
				w.must(err)
				bare := mark
				bare.Identity = ""
				w.must(w.o.SwapMark(w.ctx(), mark, bare))
				_, err = w.o.Delete(w.ctx(), "k", store.Always)
				w.must(err)
				time.Sleep(time.Second)
				for _, to := range []Phase{p + 1, p - 1} {
					step := g.SwitchTraffic
					if to < p {
						step = g.ReverseTraffic
					}
					if p == Off && to < p || to == Complete {
						continue
					}
					if err := step(w.within(5*time.Second), to, w.opt()); err == nil {
						t.Errorf("the step to %s is taken", to)
					}
				}
				w.phase(g, p)
				w.target.down()
				late := w.gateway()
				for range 20 {
					for _, g := range []*Engine{g, late} {
						if got := answer(g.Load(w.brief(), "k")); !strings.HasPrefix(got, "error: ") {
							t.Fatalf("%s reads %q", g.opt.Gateway, got)
						}
					}
				}
			})
		})
	}
}
