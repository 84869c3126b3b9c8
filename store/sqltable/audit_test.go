package sqltable_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// Who uses the table beside us is named, and what for; we are not, however much we do.
func TestAudit(t *testing.T) {
	for name, srv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "deadline in seconds")
			db := raw(t, srv.URL("app"))
			var done atomic.Bool
			ended := make(chan struct{}, 3)
			work := func(do func(n int) error) {
				defer func() { ended <- struct{}{} }()
				for n := 0; !done.Load(); n++ {
					if err := do(n); err != nil && !done.Load() {
						t.Error(err)
						return
					}
				}
			}
			audit := func(until func(store.Audit) bool) (all store.Audit) {
				t.Helper()
				for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					a, err := s.Audit(ctx)
					cancel()
					if err != nil {
						t.Fatal(err)
					}
					if all = a; until(a) {
						break
					}
				}
				return all
			}
			go work(func(n int) error {
				return s.Save(t.Context(), fmt.Sprint("k", n%10), hour("x"), store.Always)
			})
			rounds := 0
			if a := audit(func(store.Audit) bool { rounds++; return rounds > 3 }); len(a.Writers)+len(a.Readers) != 0 {
				t.Errorf("it is only us, and seen were %+v", a)
			}
			go work(func(int) error {
				_, err := db.ExecContext(t.Context(), "UPDATE "+s.Table()+" SET expires = expires + 1")
				return err
			})
			go work(func(int) error {
				_, err := db.ExecContext(t.Context(), "SELECT COUNT(*) FROM "+s.Table()+" a CROSS JOIN "+s.Table()+" b CROSS JOIN "+s.Table()+" c")
				return err
			})
			in := func(lines []string, verb string) bool {
				return slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, ": "+verb) })
			}
			both := func(a store.Audit) bool { return in(a.Writers, "UPDATE") && in(a.Readers, "SELECT") }
			if a := audit(both); !both(a) || a.Blind != "" {
				t.Errorf("seen: %+v", a)
			}
			done.Store(true)
			for range 3 {
				<-ended
			}
		})
	}
}
