package demo

import (
	"fmt"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// A settled session costs Redis what phpredis alone would make it cost, in every phase: its value, and nothing else.
func TestMemoryPerSession(t *testing.T) {
	server := testserver.Redis(t)
	w := newSite(t, server.URL()+"/0", func(*migrate.Options) {})
	for _, p := range []migrate.Phase{migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown, migrate.Complete} {
		if p == migrate.Complete {
			if err := w.engine.Complete(t.Context(), migrate.StepOptions{}); err != nil {
				t.Fatal(err)
			}
		} else {
			(&site{world: w}).at(t, p)
			w.settled(t)
		}
		for i, id := range w.traffic.members[:10] {
			w.traffic.page(t.Context(), 0, visit{id: id, add: fmt.Sprint("item", i)})
		}
		w.settled(t)
		for _, id := range w.traffic.members[:20] {
			ours := fmt.Sprint(server.Do("MEMORY", "USAGE", prefix+id))
			value := fmt.Sprint(server.Do("GET", prefix+id))
			// The same, as phpredis would have set it: under a key of the same length.
			plain := prefix[:len(prefix)-1] + "-" + id
			server.Do("SETEX", plain, "1440", value)
			alone := fmt.Sprint(server.Do("MEMORY", "USAGE", plain))
			server.Do("DEL", plain)
			if ours != alone {
				t.Errorf("%s: %s bytes, phpredis alone: %s", p, ours, alone)
			}
			if left := server.Do("EXISTS", "sessile:m:{"+prefix+id+"}"); fmt.Sprint(left) != "0" {
				t.Errorf("%s: a settled session has a side key", p)
			}
		}
	}
}

// settled waits until nothing is unsettled and no worker runs.
func (w *world) settled(t *testing.T) {
	t.Helper()
	for range 500 {
		st := w.engine.Status(t.Context())
		busy := st.Backfill.State == "running" || st.Reconcile.State == "running" || st.Counters["copies_queued"] > 0
		if st.Debt.Intents+st.Debt.Aheads == 0 && !busy && (st.Phase != migrate.Sync || st.Reconciled) {
			return
		}
		(&site{}).stay(10e6)
	}
	t.Fatal("something is unsettled for ever")
}
