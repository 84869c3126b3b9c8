package migrate

import (
	"errors"
	"fmt"
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
		_, err := g.Start(w.ctx(), 1) // a page takes half an hour
		w.must(err)
		seen := func() int64 {
			time.Sleep(5 * time.Second)
			return g.Status(w.ctx()).Backfill.Seen
		}
		held := seen()
		_, err = g.Start(w.ctx(), -1)
		w.must(err)
		if lifted := seen(); held == 3*pageSize || lifted != 3*pageSize {
			t.Errorf("%d were seen, then %d", held, lifted)
		}
	})
}
