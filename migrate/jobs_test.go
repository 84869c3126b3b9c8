package migrate

import (
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
