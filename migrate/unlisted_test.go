package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// life is how long sessions live in an origin that cannot be listed: an hour would be a second of computing in each test.
const life = 6 * time.Minute

// unlist makes the world's origin one that cannot be listed.
func (w *world) unlist() *Engine {
	w.origin.Origin, w.life = unlisted{w.o}, life
	return w.gateway(func(o *Options) { o.Lifetime = life })
}

// A session that only the origin has, which nobody can know of, comes over when it is used in sync, by a write, a touch or a
// read; and live is not entered before those that nobody uses have ended by themselves.
func TestAnOriginThatCannotBeListed(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.unlist()
		for _, key := range []string{"written", "touched", "read", "forgotten"} {
			w.save(g, key, "v")
		}
		w.must(g.Create(w.ctx(), w.opt()))
		w.must(g.SwitchTraffic(w.ctx(), DualWrite, w.opt()))
		w.save(g, "copied", "v")
		w.save(g, "logged out", "v")
		time.Sleep(time.Second)
		w.holds(w.n, "copied", "v")
		w.holds(w.n, "read", "-")
		w.destroy(g, "logged out")
		time.Sleep(time.Second)
		w.must(w.o.Save(w.ctx(), "copied", lasting("x", life), store.Always))
		w.must(w.n.Save(w.ctx(), "foreign", lasting("x", life), store.Always))
		var closed *GateError
		watched := answered(func() error { return g.SwitchTraffic(w.ctx(), Sync, w.opt()) })
		time.Sleep(time.Second)
		w.must(w.o.Save(w.ctx(), "copied", lasting("y", life), store.Always))
		if err := <-watched; !errors.As(err, &closed) || !strings.Contains(err.Error(), "1 written") || !strings.Contains(err.Error(), "the others are not seen") {
			t.Errorf("SwitchTraffic: got %v, want a gate that is closed by a foreign write, and says what it cannot see", err)
		}
		w.must(g.SwitchTraffic(w.ctx(), Sync, StepOptions{Say: func(line string) {
			if strings.HasPrefix(line, "sealed") { // the gates are open: as if the copy of a logout had been dropped now
				w.must(w.n.Save(w.ctx(), "logged out", lasting("v", life), store.Always))
			}
		}}))
		sync := time.Now()
		time.Sleep(5 * time.Second)
		w.holds(w.n, "logged out", "-")
		w.save(g, "written", "w")
		w.must(g.Touch(w.ctx(), "touched", lasting("", life).Expires))
		w.holds(w.n, "touched", "v")
		w.reads(g, "read", "v")
		time.Sleep(time.Second)
		w.holds(w.n, "read", "v")
		w.holds(w.n, "forgotten", "-")
		if err := g.SwitchTraffic(w.ctx(), Live, w.opt()); err == nil || !strings.Contains(w.said[len(w.said)-1], "waiting until") {
			t.Errorf("SwitchTraffic: got %v, %q, want the end of patience", err, w.said)
		}
		for range 3 { // one of them works on
			time.Sleep(75 * time.Second)
			if st := g.Status(w.ctx()); st.Reconciled {
				t.Fatalf("reconciled after %v", time.Since(sync))
			}
			w.must(g.Touch(w.ctx(), "touched", lasting("", life).Expires))
			w.must(g.Touch(w.ctx(), "read", lasting("", life).Expires))
		}
		w.reads(g, "forgotten", "v") // its lifetime is not over, and now it is not forgotten
		time.Sleep(time.Second)
		w.holds(w.n, "forgotten", "v")
		time.Sleep(time.Until(sync.Add(life + 10*time.Second)))
		w.must(g.SwitchTraffic(w.ctx(), Live, w.opt()))
		w.reads(g, "touched", "v")
		w.reads(g, "read", "v")
		w.reads(g, "logged out", "-")
		if st := g.Status(w.ctx()); st.Counters["brought"] != 2 || st.Counters["touch_escalations"] != 1 {
			t.Errorf("%v", st.Counters)
		}
		w.at(Complete)
	})
}

// Nobody reads what a page only touches.
func TestATouchBringsWhatCannotBeListed(t *testing.T) {
	lost := func() (lost bool) {
		simulate(t, func(w *world) {
			g := w.unlist()
			w.save(g, "k", "v")
			w.at(Sync)
			for range 3 {
				w.must(g.Touch(w.ctx(), "k", lasting("", life).Expires))
				time.Sleep(150 * time.Second)
			}
			w.at(Live)
			lost = answer(g.Load(w.ctx(), "k")) != "v"
		})
		return lost
	}
	if lost() {
		t.Error("a session that was touched has ended")
	}
	defer guard.Disable(guard.Touch)()
	if !lost() {
		t.Error("nobody noticed that the touch rule was missing")
	}
}

// A gateway that is started anew goes on waiting where the one before it was killed.
func TestTheWaitOutlivesAGateway(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.unlist()
		w.at(Sync)
		begun := time.Now()
		time.Sleep(4 * time.Minute)
		h := w.gateway(func(o *Options) { o.Lifetime = life })
		g.Close()
		w.gws = []*Engine{h}
		time.Sleep(90 * time.Second)
		if st := h.Status(w.ctx()); st.Reconciled || st.Reconcile.Gateway != h.opt.Gateway {
			t.Errorf("%+v", st.Reconcile)
		}
		time.Sleep(time.Until(begun.Add(life + 20*time.Second)))
		if st := h.Status(w.ctx()); !st.Reconciled {
			t.Errorf("%+v", st.Reconcile)
		}
	})
}

func TestALifetimeThatIsNotKnownOrTooShort(t *testing.T) {
	simulate(t, func(w *world) {
		w.origin.Origin, w.life = unlisted{w.o}, life
		g := w.gateway()
		p, err := g.Plan(w.ctx())
		if w.must(err); len(p.Blockers) != 1 || !strings.Contains(p.Blockers[0], "--lifetime") {
			t.Errorf("plan: %q", p.Blockers)
		}
		w.must(g.Create(w.ctx(), w.opt()))
		w.must(g.SwitchTraffic(w.ctx(), DualWrite, w.opt()))
		if err := g.SwitchTraffic(w.ctx(), Sync, StepOptions{Force: true, Reason: "now"}); err == nil || !strings.Contains(err.Error(), "lifetime: not known") {
			t.Errorf("SwitchTraffic: got %v, want a gate that nobody opens", err)
		}
	})
	simulate(t, func(w *world) {
		g := w.unlist()
		p, err := g.Plan(w.ctx())
		if w.must(err); len(p.Blockers) != 0 || !slices.ContainsFunc(p.Advise, func(s string) bool { return strings.Contains(s, "a whole lifetime in sync") }) {
			t.Errorf("plan: %q, %q", p.Blockers, p.Advise)
		}
		w.must(g.Create(w.ctx(), w.opt()))
		w.must(g.Save(w.ctx(), "k", store.Record{Data: []byte("remember me"), Expires: time.Now().Add(48 * time.Hour)}, store.Always))
		time.Sleep(time.Second) // it outlives the gateway that saw it
		h := w.gateway(func(o *Options) { o.Lifetime = life })
		g.Close()
		w.gws = []*Engine{h}
		w.must(h.SwitchTraffic(w.ctx(), DualWrite, w.opt()))
		if err := h.SwitchTraffic(w.ctx(), Sync, w.opt()); err == nil || !strings.Contains(err.Error(), "there are sessions that live for 48h") {
			t.Errorf("SwitchTraffic: got %v, want a closed gate", err)
		}
		long := w.gateway(func(o *Options) { o.Lifetime = 48 * time.Hour })
		w.must(long.SwitchTraffic(w.ctx(), Sync, w.opt()))
	})
}

// Of two gateways one still has an old configuration, and runs the pass.
func TestTheLongestLifetimeIsWaitedFor(t *testing.T) {
	simulate(t, func(w *world) {
		w.origin.Origin, w.life = unlisted{w.o}, life
		w.gateway(func(o *Options) { o.Lifetime = time.Minute })
		g, _, target := w.view(func(o *Options) { o.Lifetime = life })
		w.save(g, "k", "v")
		w.must(g.Create(w.ctx(), w.opt()))
		target.set(func(call, _ string) error {
			if c, _ := readControl(w.ctx(), w.n.Workflow("default")); call == "swapcontrol" && c != nil && c.Phase == Sync && c.Done {
				return store.ErrUnavailable // the other one finds the pass first
			}
			return nil
		}, nil)
		w.must(g.SwitchTraffic(w.ctx(), Sync, w.opt()))
		w.phase(w.gws[0], Sync)
		time.Sleep(time.Second)
		target.up()
		begun := time.Now()
		time.Sleep(3 * time.Minute)
		if st := g.Status(w.ctx()); st.Reconciled || st.Reconcile.Gateway != w.gws[0].opt.Gateway {
			t.Errorf("after %v: reconciled %v, %+v", time.Since(begun), st.Reconciled, st.Reconcile)
		}
		g.Close() // the other one still knows
		w.gws = w.gws[:1]
		w.save(w.gws[0], "k", "w")
		time.Sleep(150 * time.Second)
		w.reads(w.gws[0], "k", "w")
		if st := w.gws[0].Status(w.ctx()); st.Reconciled {
			t.Errorf("reconciled after %v", time.Since(begun))
		}
		time.Sleep(36 * time.Second)
		w.at(Live)
	})
}

// The gateway that entered sync, and knew how long sessions live, is gone before the pass begins.
func TestAWaitThatWasTooShort(t *testing.T) {
	simulate(t, func(w *world) {
		w.origin.Origin, w.life = unlisted{w.o}, life
		old := w.gateway(func(o *Options) { o.Lifetime = time.Minute })
		w.save(old, "k", "v")
		g, _, target := w.view(func(o *Options) { o.Lifetime = life })
		w.at(DualWrite)
		target.set(func(call, _ string) error {
			if c, _ := readControl(w.ctx(), w.n.Workflow("default")); call == "swapcontrol" && c != nil && c.Phase == Sync {
				return store.ErrUnavailable // it is killed behind the step, before it is done
			}
			return nil
		}, nil)
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		defer cancel()
		if err := g.SwitchTraffic(ctx, Sync, w.opt()); err == nil {
			t.Fatal("the step is done")
		}
		g.Close()
		w.gws = w.gws[:1]
		w.must(old.SwitchTraffic(w.ctx(), Sync, w.opt()))
		time.Sleep(2 * time.Minute)
		var closed *GateError
		if err := old.SwitchTraffic(w.ctx(), Live, w.opt()); !errors.As(err, &closed) || !strings.Contains(err.Error(), "sessions that live for") {
			t.Errorf("SwitchTraffic: got %v, want a closed gate", err)
		}
	})
}

// In the middle of the wait a gateway is cut off from the target and retreats: who waits for live is told so, and the next sync
// takes as long as the first.
func TestARetreatInTheMiddleOfTheWait(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.unlist()
		_, _, target := w.view(func(o *Options) { o.Lifetime = life })
		w.at(Sync)
		ctx, cancel := context.WithTimeout(w.t.Context(), 50*time.Minute)
		defer cancel()
		moved := answered(func() error { return g.SwitchTraffic(ctx, Live, w.opt()) })
		time.Sleep(4 * time.Minute)
		target.down()
		time.Sleep(10 * time.Second)
		target.up()
		w.phase(g, DualWrite)
		if err := <-moved; !errors.Is(err, errOvertaken) {
			t.Errorf("SwitchTraffic: got %v, and nobody works on what it waits for", err)
		}
		w.must(g.SwitchTraffic(w.ctx(), Sync, w.opt()))
		begun := time.Now()
		time.Sleep(330 * time.Second)
		if st := g.Status(w.ctx()); st.Reconciled {
			t.Errorf("reconciled after %v", time.Since(begun))
		}
	})
}
