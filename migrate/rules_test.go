package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// A stop makes a gateway stand still the first time it comes to an arrow on a key.
type stop struct {
	arrow, key string
	there      chan struct{} // closed when it stands
	goOn       chan struct{} // close it to let it go on
	armed      atomic.Bool
}

func stopAt(arrow, key string) *stop {
	s := laterAt(arrow, key)
	s.armed.Store(true)
	return s
}

// laterAt is stopAt for a stop that counts only once it is armed.
func laterAt(arrow, key string) *stop {
	return &stop{arrow: arrow, key: key, there: make(chan struct{}), goOn: make(chan struct{})}
}

func (s *stop) option(o *Options) {
	o.Hooks.Arrow = func(_ context.Context, arrow, key string) {
		if arrow == s.arrow && key == s.key && s.armed.CompareAndSwap(true, false) {
			close(s.there)
			<-s.goOn
		}
	}
}

// answered runs an operation in the background and returns what it will answer.
func answered(do func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- do() }()
	return c
}

func (w *world) both(a, b *Engine, p Phase) {
	w.t.Helper()
	w.at(p)
	w.phase(a, p)
	w.phase(b, p)
	time.Sleep(5 * time.Second) // the reconcile pass is over
}

func TestAReaderOfTheTargetSeesAWriteThatTheOriginHas(t *testing.T) { // race R1
	simulate(t, func(w *world) {
		s := stopAt("commit", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, Live)
		w.save(b, "k", "old")
		ack := answered(func() error { return a.Save(w.ctx(), "k", hour("new"), store.Always) })
		<-s.there
		w.holds(w.n, "k", "old")
		w.reads(b, "k", "new")
		close(s.goOn)
		w.must(<-ack)
		w.reads(b, "k", "new")
	})
}

func TestALogoutIsSeenBeforeItsCommit(t *testing.T) { // race R6
	simulate(t, func(w *world) {
		s := stopAt("commit", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, Live)
		w.save(b, "k", "in")
		ack := answered(func() error { _, err := a.Delete(w.ctx(), "k", store.Always); return err })
		<-s.there
		w.reads(b, "k", "-")
		close(s.goOn)
		w.must(<-ack)
		w.reads(b, "k", "-")
	})
}

func TestWritersOfOneSessionTakeTurns(t *testing.T) { // race R2
	for _, p := range []Phase{Sync, Live} {
		simulate(t, func(w *world) {
			s := stopAt("write", "k")
			a, b := w.gateway(s.option), w.gateway()
			w.both(a, b, p)
			first := answered(func() error { return a.Save(w.ctx(), "k", hour("first"), store.Always) })
			<-s.there
			second := answered(func() error { return b.Save(w.ctx(), "k", hour("second"), store.Always) })
			time.Sleep(500 * time.Millisecond)
			select {
			case err := <-second:
				t.Errorf("the second write did not wait for the first: %v", err)
			default:
			}
			close(s.goOn)
			w.must(<-first)
			w.must(<-second)
			w.holds(w.o, "k", "second")
			w.holds(w.n, "k", "second")
		})
	}
}

func TestACommitThatFailsIsAcknowledgedAndSettled(t *testing.T) {
	for what, err := range map[string]error{"refused": store.ErrUnavailable, "lost": store.ErrUnknown} {
		t.Run(what, func(t *testing.T) {
			simulate(t, func(w *world) {
				a, b := w.gateway(), w.gateway()
				w.both(a, b, Live)
				w.save(a, "k", "old")
				fail := true
				w.target.set(func(call, _ string) error {
					if call == "commit" && fail {
						fail = false
						return err
					}
					return nil
				}, nil)
				w.save(a, "k", "new")
				w.holds(w.n, "k", "old")
				w.reads(b, "k", "new")
				w.destroy(b, "other")
				time.Sleep(5 * time.Second)
				w.holds(w.n, "k", "new")
				if u, _ := a.flow.Unsettled(w.ctx(), 1); u.Intents != 0 {
					t.Errorf("unsettled %+v", u)
				}
			})
		})
	}
}

func TestAnUnknownAnswerOfTheOriginLeavesTheIntent(t *testing.T) {
	for _, happened := range []bool{false, true} {
		simulate(t, func(w *world) {
			a, b := w.gateway(), w.gateway()
			w.both(a, b, Live)
			w.save(a, "k", "old")
			once := func(call, _ string) error {
				if call == "save" {
					w.origin.up()
					return store.ErrUnknown
				}
				return nil
			}
			if happened {
				w.origin.set(nil, once)
			} else {
				w.origin.set(once, nil)
			}
			err := a.Save(w.ctx(), "k", hour("new"), store.Always)
			if store.OutcomeOf(err) != store.OutcomeUnknown {
				t.Errorf("Save: got %v, want unknown", err)
			}
			want := map[bool]string{false: "old", true: "new"}[happened]
			w.reads(b, "k", want)
			time.Sleep(5 * time.Second)
			w.holds(w.n, "k", want)
			w.reads(b, "k", want)
		})
	}
}

func TestAnIntentOfOnesOwnIsWithdrawnAndATakenOverOneIsNot(t *testing.T) {
	simulate(t, func(w *world) {
		a := w.gateway()
		b := w.gateway()
		w.both(a, b, Live)
		w.save(a, "k", "old")
		refuse := func(call, _ string) error {
			if call == "save" {
				return store.ErrUnavailable
			}
			return nil
		}
		w.origin.set(refuse, nil)
		if err := a.Save(w.within(10*time.Millisecond), "k", hour("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
			t.Errorf("Save: got %v, want unavailable", err)
		}
		if u, _ := a.flow.Unsettled(w.ctx(), 1); u.Intents != 0 {
			t.Errorf("an intent was left: %+v", u)
		}
		// A dead intent of somebody who may have written: whoever takes it over must not remove it unseen.
		c, _ := a.current()
		dead := store.Op{Nonce: "dead", Epoch: c.epoch, Lease: time.Millisecond}
		_, err := a.flow.Begin(w.ctx(), "k", dead)
		w.must(err)
		w.must(w.o.Save(w.ctx(), "k", hour("by the dead"), store.Always))
		time.Sleep(2 * time.Millisecond)
		if err := a.Save(w.within(10*time.Millisecond), "k", hour("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
			t.Errorf("Save: got %v, want unavailable", err)
		}
		w.origin.up()
		w.reads(b, "k", "by the dead")
		time.Sleep(5 * time.Second)
		w.reads(b, "k", "by the dead")
		w.holds(w.n, "k", "by the dead")
	})
}

func TestAWriteThatOutlivedItsLeaseIsUnknown(t *testing.T) { // race R4
	simulate(t, func(w *world) {
		s := stopAt("commit", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, Live)
		ack := answered(func() error { return a.Save(w.ctx(), "k", hour("slow"), store.Always) })
		<-s.there
		time.Sleep(10 * time.Second)
		w.save(b, "k", "newer")
		close(s.goOn)
		if err := <-ack; store.OutcomeOf(err) != store.OutcomeUnknown {
			t.Errorf("Save: got %v, want unknown", err)
		}
		w.reads(b, "k", "newer")
		w.holds(w.n, "k", "newer")
		w.holds(w.o, "k", "newer")
	})
}

func TestAnOperationThatStoodStillDoesNotWriteTheOriginLate(t *testing.T) { // race R4
	for _, p := range []Phase{Off, DualWrite, Sync, Live} {
		t.Run(p.String(), func(t *testing.T) {
			simulate(t, func(w *world) {
				s := stopAt("write", "k")
				a, b := w.gateway(s.option), w.gateway()
				w.at(DualWrite)
				w.both(a, b, p)
				ack := answered(func() error { return a.Save(w.within(2*time.Second), "k", hour("late"), store.Always) })
				<-s.there
				time.Sleep(10 * time.Second)
				w.save(b, "k", "newer")
				close(s.goOn)
				if err := <-ack; err == nil {
					t.Error("the late write was acknowledged")
				}
				w.holds(w.o, "k", "newer")
				w.reads(b, "k", "newer")
			})
		})
	}
}

func TestAForeignWriteIsNotOverwrittenUnseen(t *testing.T) { // race R8
	simulate(t, func(w *world) {
		s := stopAt("write", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, Live)
		w.save(b, "k", "old")
		ack := answered(func() error {
			return a.Save(w.ctx(), "k", hour("ours"), store.IfVersion(store.VersionOf([]byte("old"), 0)))
		})
		<-s.there
		w.must(w.o.Save(w.ctx(), "k", hour("foreign"), store.Always))
		close(s.goOn)
		if err := <-ack; !errors.Is(err, store.ErrConflict) {
			t.Errorf("Save: got %v, want a conflict", err)
		}
		if n := a.Counters()["foreign_writes"]; n != 1 {
			t.Errorf("%d foreign writes counted, want 1", n)
		}
		w.reads(b, "k", "foreign")
		time.Sleep(5 * time.Second)
		w.holds(w.n, "k", "foreign")
	})
}

func TestBackfillNeverOverwrites(t *testing.T) { // races R5, R6
	for what, change := range map[string]func(w *world, g *Engine){
		"a write":  func(w *world, g *Engine) { w.save(g, "k", "new") },
		"a logout": func(w *world, g *Engine) { w.destroy(g, "k") },
	} {
		t.Run(what, func(t *testing.T) {
			simulate(t, func(w *world) {
				s := stopAt("backfill add", "")
				a, b := w.gateway(s.option), w.gateway()
				w.must(w.o.Save(w.ctx(), "k", hour("old"), store.Always))
				w.must(a.Create(w.ctx(), StepOptions{}))
				w.must(a.SwitchTraffic(w.ctx(), DualWrite, StepOptions{}))
				var worker bool
				select {
				case <-s.there:
					worker = true
				case <-time.After(3 * time.Second): // b runs it
				}
				change(w, b)
				want := answer(w.o.Load(w.ctx(), "k"))
				time.Sleep(time.Second)
				if worker {
					close(s.goOn)
				}
				time.Sleep(2 * time.Second)
				w.at(Live)
				w.reads(b, "k", want)
				w.holds(w.n, "k", want)
			})
		})
	}
}

func TestATouchThatMissesTheTargetIsAFullWrite(t *testing.T) { // race R10
	for _, on := range []bool{true, false} {
		t.Run(fmt.Sprintf("guard %v", on), func(t *testing.T) {
			if !on {
				defer guard.Disable(guard.Touch)()
			}
			simulate(t, func(w *world) {
				a, b := w.gateway(), w.gateway()
				w.both(a, b, Sync)
				w.save(a, "k", "v")
				// The target loses the one session: evicted, or removed by somebody's tool.
				_, err := w.n.Delete(w.ctx(), "k", store.Always)
				w.must(err)
				w.must(b.Touch(w.ctx(), "k", hour("").Expires))
				w.at(Live)
				w.phase(b, Live)
				want := map[bool]string{true: "v", false: "-"}[on]
				w.reads(b, "k", want)
			})
		})
	}
}

func TestATouchInLiveBringsBackWhatTheCollectorTook(t *testing.T) { // races R11, R12
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, Live)
		w.save(a, "k", "v")
		_, err := w.o.Delete(w.ctx(), "k", store.Always) // PHP's collector
		w.must(err)
		w.must(b.Touch(w.ctx(), "k", hour("").Expires))
		w.holds(w.o, "k", "v")
		w.reads(b, "k", "v")
		w.at(DualWrite)
		w.phase(b, DualWrite)
		w.reads(b, "k", "v")
	})
}

func TestAnOverdueSessionEndsInLiveAndIsNotBroughtBack(t *testing.T) { // race R11
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.must(w.o.Save(w.ctx(), "k", store.Record{Data: []byte("v"), Expires: time.Now().Add(time.Second)}, store.Always))
		time.Sleep(2 * time.Second)
		w.reads(a, "k", "v") // while the origin decides it is a session
		w.both(a, b, Sync)
		w.reads(a, "k", "v")
		w.at(Live)
		w.phase(b, Live)
		w.reads(b, "k", "-")
		if err := b.Touch(w.ctx(), "k", hour("").Expires); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Touch: got %v, want absent", err)
		}
		w.reads(b, "k", "-")
	})
}

func TestADeadlineOfTheSecondaryIsNotEarlier(t *testing.T) {
	simulate(t, func(w *world) {
		a := w.gateway()
		w.at(Sync)
		time.Sleep(2 * time.Second)
		at := time.Now().Add(90*time.Minute + 777*time.Microsecond)
		w.must(a.Save(w.ctx(), "k", store.Record{Data: []byte("v"), Expires: at}, store.Always))
		n, err := w.n.Inspect(w.ctx(), "k")
		w.must(err)
		if n.Expires.Before(at) {
			t.Errorf("the target ends %v early", at.Sub(n.Expires))
		}
		w.must(a.Touch(w.ctx(), "k", at.Add(time.Hour)))
		for name, s := range map[string]store.Store{"origin": w.o, "target": w.n} {
			if rec, _ := s.Inspect(w.ctx(), "k"); rec.Expires.Before(at.Add(time.Hour)) {
				t.Errorf("the %s ends early", name)
			}
		}
	})
}

func TestRampDownWaitsForAnIntentAndThenDecides(t *testing.T) { // race R21
	simulate(t, func(w *world) {
		s := stopAt("write", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, Live)
		w.save(b, "k", "old")
		strict := answered(func() error { return a.Save(w.ctx(), "k", hour("strict"), store.Always) })
		<-s.there
		step := answered(func() error { return b.SwitchTraffic(w.ctx(), RampDown, StepOptions{}) })
		for range 100 { // until b has adopted ramp-down: a still runs an operation of live
			if c, _ := b.current(); c.phase == RampDown {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		ahead := answered(func() error { return b.Save(w.ctx(), "k", hour("ahead"), store.Always) })
		time.Sleep(200 * time.Millisecond)
		select {
		case err := <-ahead:
			t.Errorf("the write did not wait for the intent: %v", err)
		default:
		}
		close(s.goOn)
		w.must(<-strict)
		w.must(<-ahead)
		w.must(<-step)
		w.reads(a, "k", "ahead")
		time.Sleep(3 * time.Second)
		w.holds(w.o, "k", "ahead")
	})
}

func TestOnePropagatorPerSessionAndTheLastVersionWins(t *testing.T) {
	simulate(t, func(w *world) {
		s := stopAt("propagated", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, RampDown)
		w.save(a, "k", "one")
		<-s.there // the origin has "one", the marker is still there
		w.save(b, "k", "two")
		w.save(b, "k", "three")
		if n := b.Counters()["propagated"]; n != 0 {
			t.Errorf("a second propagator ran")
		}
		close(s.goOn)
		time.Sleep(time.Second)
		w.holds(w.o, "k", "three")
		if u, _ := a.flow.Unsettled(w.ctx(), 1); u.Aheads != 0 {
			t.Errorf("unsettled %+v", u)
		}
	})
}

func TestAPropagatorThatStoodStillPutsNothingOldBack(t *testing.T) {
	simulate(t, func(w *world) {
		s := laterAt("write", "k")
		a, b := w.gateway(s.option), w.gateway()
		w.both(a, b, RampDown)
		s.armed.Store(true)
		w.save(a, "k", "one")
		<-s.there // read the origin, about to write it
		time.Sleep(5 * time.Second)
		w.save(b, "k", "two")
		time.Sleep(5 * time.Second)
		w.holds(w.o, "k", "two")
		close(s.goOn)
		time.Sleep(5 * time.Second)
		w.holds(w.o, "k", "two")
		w.reads(a, "k", "two")
	})
}

func TestTheOriginFollowsATouchOfRampDown(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, RampDown)
		w.save(a, "k", "v")
		time.Sleep(time.Second)
		at := time.Now().Add(3 * time.Hour)
		w.must(b.Touch(w.ctx(), "k", at))
		time.Sleep(time.Second)
		if rec, err := w.o.Inspect(w.ctx(), "k"); err != nil || rec.Expires.Before(at) {
			t.Errorf("the origin ends at %v, %v, want %v", rec.Expires, err, at)
		}
		_, err := w.o.Delete(w.ctx(), "k", store.Always)
		w.must(err)
		w.must(b.Touch(w.ctx(), "k", at))
		time.Sleep(time.Second)
		w.holds(w.o, "k", "v") // marked ahead as it stands, and propagated
	})
}

func TestLocksExcludeInBothDomains(t *testing.T) { // race R9
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		w.both(a, b, DualWrite)
		w.must(a.Lock(w.ctx(), "k", "t1", time.Minute))
		if err := w.o.Lock(w.within(10*time.Millisecond), "k", "direct", time.Minute); !errors.Is(err, store.ErrLocked) {
			t.Errorf("a direct client locks, too: %v", err)
		}
		w.both(a, b, Live)
		if err := b.Lock(w.within(100*time.Millisecond), "k", "t2", time.Minute); !errors.Is(err, store.ErrLocked) {
			t.Errorf("another gateway locks in live: %v", err)
		}
		// A lock without the target's half keeps ramp-down waiting.
		step := answered(func() error { return a.SwitchTraffic(w.ctx(), RampDown, StepOptions{}) })
		time.Sleep(10 * time.Second)
		select {
		case err := <-step:
			t.Errorf("ramp-down was entered while a lock of dual-write was held: %v", err)
		default:
		}
		if held, err := a.Unlock(w.ctx(), "k", "t1"); !held || err != nil {
			t.Errorf("Unlock: got %v, %v", held, err)
		}
		w.must(<-step)
		w.phase(b, RampDown)
		w.must(b.Lock(w.ctx(), "k", "t3", time.Minute))
		if err := w.n.Lock(w.within(10*time.Millisecond), "k", "direct", time.Minute); !errors.Is(err, store.ErrLocked) {
			t.Errorf("a direct client of the target locks, too: %v", err)
		}
		w.at(Sync)
		down := answered(func() error { return a.ReverseTraffic(w.ctx(), DualWrite, StepOptions{}) })
		time.Sleep(10 * time.Second)
		select {
		case err := <-down:
			t.Errorf("dual-write was entered while a lock of ramp-down was held: %v", err)
		default:
		}
		if held, err := a.Unlock(w.ctx(), "k", "t3"); !held || err != nil {
			t.Errorf("Unlock through another gateway: got %v, %v", held, err)
		}
		// b still counts the lock that a has released, until its life is over; it is told by its own unlock.
		_, _ = b.Unlock(w.ctx(), "k", "t3")
		w.must(<-down)
	})
}

func TestConditionsAreEvaluatedOnce(t *testing.T) { // race R14
	for _, p := range []Phase{Off, DualWrite, Sync, Live, RampDown, Complete} {
		simulate(t, func(w *world) {
			a, b := w.gateway(), w.gateway()
			w.at(p)
			w.phase(b, p)
			results := make(chan error, 8)
			for i := range 8 {
				g := []*Engine{a, b}[i%2]
				go func() { results <- g.Save(w.ctx(), "k", hour(fmt.Sprint(i)), store.IfAbsent) }()
			}
			won := 0
			for range 8 {
				switch err := <-results; {
				case err == nil:
					won++
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("%s: Save: %v", p, err)
				}
			}
			if won != 1 {
				t.Errorf("%s: %d created the session, want 1", p, won)
			}
		})
	}
}

func TestASettledSessionHasItsValueAndNothingElse(t *testing.T) {
	simulate(t, func(w *world) {
		a, b := w.gateway(), w.gateway()
		for p := DualWrite; p <= RampDown; p++ {
			w.at(p)
			w.phase(b, p)
			for i := range 10 {
				w.save(a, fmt.Sprint("k", i), p.String())
				w.must(b.Touch(w.ctx(), fmt.Sprint("k", i), hour("").Expires))
			}
			w.destroy(b, "k9")
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if u, err := a.flow.Unsettled(w.ctx(), 10); u.Intents+u.Aheads != 0 || err != nil {
				t.Errorf("%s: unsettled %+v, %v", p, u, err)
			}
			if keys := w.n.Keys(""); len(keys) != 9 {
				t.Errorf("%s: the target holds %q", p, keys)
			}
		}
	})
}

func TestForeignWritersAreSeen(t *testing.T) { // race R8
	for what, tc := range map[string]struct {
		write func(w *world, g *Engine)
		want  Foreign
	}{
		"nobody":        {func(w *world, g *Engine) {}, Foreign{}},
		"this gateway":  {func(w *world, g *Engine) { w.save(g, "a", "2"); w.save(g, "n", "1"); w.destroy(g, "b") }, Foreign{}},
		"a writer":      {func(w *world, _ *Engine) { w.must(w.o.Save(w.ctx(), "a", hour("2"), store.Always)) }, Foreign{Changed: 1}},
		"a touch":       {func(w *world, _ *Engine) { w.must(w.o.Touch(w.ctx(), "a", time.Now().Add(2*time.Hour))) }, Foreign{Changed: 1}},
		"a new session": {func(w *world, _ *Engine) { w.must(w.o.Save(w.ctx(), "n", hour("2"), store.Always)) }, Foreign{Changed: 1}},
		"a logout":      {func(w *world, _ *Engine) { _, _ = w.o.Delete(w.ctx(), "a", store.Always) }, Foreign{Vanished: 1}},
		"a collector":   {func(w *world, _ *Engine) { w.o.Collect() }, Foreign{}},
	} {
		t.Run(what, func(t *testing.T) {
			simulate(t, func(w *world) {
				g := w.gateway()
				w.must(w.o.Save(w.ctx(), "a", hour("1"), store.Always))
				w.must(w.o.Save(w.ctx(), "b", hour("1"), store.Always))
				w.must(w.o.Save(w.ctx(), "old", store.Record{Expires: time.Now().Add(time.Second)}, store.Always))
				time.Sleep(10 * time.Second)
				w.at(DualWrite)
				seen := make(chan Foreign, 1)
				go func() {
					f, err := g.foreignWriters(w.ctx(), 3*time.Second)
					w.must(err)
					seen <- f
				}()
				time.Sleep(time.Second)
				tc.write(w, g)
				if f := <-seen; f.Changed != tc.want.Changed || f.Vanished != tc.want.Vanished || f.Unknown != 0 {
					t.Errorf("got %+v, want %+v", f, tc.want)
				}
			})
		})
	}
}

func TestAForeignWriterClosesTheGateIntoSync(t *testing.T) {
	simulate(t, func(w *world) {
		g := w.gateway()
		w.must(w.o.Save(w.ctx(), "k", hour("1"), store.Always))
		w.at(DualWrite)
		go func() {
			for i := range 5 {
				time.Sleep(time.Second)
				_ = w.o.Save(w.t.Context(), "k", hour(fmt.Sprint("foreign", i)), store.Always)
			}
		}()
		var closed *GateError
		if err := g.SwitchTraffic(w.ctx(), Sync, w.opt()); !errors.As(err, &closed) {
			t.Fatalf("SwitchTraffic: got %v, want a closed gate", err)
		}
		for _, gate := range closed.Gates {
			if gate.Open == (gate.Name == "foreign writers") && gate.Name != "diff" { // which sees them, too
				t.Errorf("gate %+v", gate)
			}
		}
		var usage *UsageError
		if err := g.SwitchTraffic(w.ctx(), Sync, StepOptions{Force: true}); !errors.As(err, &usage) {
			t.Errorf("--force without a reason: got %v", err)
		}
		w.must(g.SwitchTraffic(w.ctx(), Sync, StepOptions{Force: true, Reason: "it is a monitor"}))
		if log := g.Status(w.ctx()).Log; len(log) == 0 || log[len(log)-1].Reason != "it is a monitor" {
			t.Errorf("the log does not say what was forced: %+v", log)
		}
	})
}
