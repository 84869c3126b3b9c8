package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// lease of markers that shall outlive a test, and of markers that shall die in it.
const (
	long  = time.Minute
	short = 50 * time.Millisecond
)

func op(nonce string, epoch uint64, lease time.Duration) store.Op {
	return store.Op{Nonce: nonce, Epoch: epoch, Lease: lease}
}

func recp(data string) *store.Record { r := rec(data); return &r }

// RunTarget checks the contract of store.Target, Run's included.
func RunTarget[S store.Target](t *testing.T, h Harness[S]) {
	Run(t, h)
	type test struct {
		name string
		run  func(t *testing.T, s S, w store.Workflow)
	}
	k := h.key("k")
	wantMarker := func(t *testing.T, w store.Workflow, data string, absent bool, kind store.MarkerKind) {
		t.Helper()
		got, m, err := w.LoadMarked(context10(t), k)
		if err != nil || absent != (got == nil) || got != nil && string(got.Data) != data || m.Kind != kind {
			t.Errorf("LoadMarked: got %v, %v marker, %v; want %q (absent %v), %v marker", got, m.Kind, err, data, absent, kind)
		}
	}
	dead := func(t *testing.T, w store.Workflow) {
		t.Helper()
		eventually(t, 5*time.Second, "the marker is dead", func() bool {
			u, err := w.Unsettled(context10(t), 1)
			return err == nil && len(u.Keys) == 1 && u.Oldest > 0
		})
	}
	for _, tc := range []test{
		{"flags go with the value", func(t *testing.T, s S, w store.Workflow) {
			if !s.Capabilities().Flags {
				return
			}
			with := func(data string, flags uint32) *store.Record {
				r := recp(data)
				r.Flags = flags
				return r
			}
			want := func(step, data string, flags uint32) {
				t.Helper()
				got, _, err := w.LoadMarked(context10(t), k)
				if err != nil || got == nil || string(got.Data) != data || got.Flags != flags {
					t.Fatalf("%s: LoadMarked: got %+v, %v, want %q, %d", step, got, err, data, flags)
				}
				if got, err := s.Load(context10(t), k); err != nil || got.Flags != flags {
					t.Errorf("%s: Load: got %+v, %v, want %q, %d", step, got, err, data, flags)
				}
			}
			same := func(data string, flags uint32, want bool) {
				t.Helper()
				got, err := w.Same(context10(t), 5, []store.Entry{{Key: k, Record: with(data, flags)}})
				if err != nil || got[0] != want {
					t.Errorf("Same as %q, %d: got %v, %v", data, flags, got, err)
				}
			}
			stored, err := w.Add(context10(t), 5, []store.Entry{{Key: k, Record: with("a", 1)}})
			ok(t, "Add", err)
			if !stored[0] {
				t.Error("Add stored nothing")
			}
			want("Add", "a", 1)
			stored, err = w.Add(context10(t), 5, []store.Entry{{Key: k, Record: with("a", 2)}})
			if ok(t, "Add", err); stored[0] {
				t.Error("Add stored over something")
			}
			want("Add onto something", "a", 1)
			same("a", 1, true)
			same("a", 0, false)
			same("a", 2, false)
			ok(t, "Copy", w.Copy(context10(t), k, 5, with("a", 2)))
			want("Copy", "a", 2)

			b, err := w.Begin(context10(t), k, op("o1", 5, long))
			if err != nil || b.Holds != store.VersionOf([]byte("a"), 2) {
				t.Errorf("Begin: got %+v, %v", b, err)
			}
			ok(t, "Commit", w.Commit(context10(t), k, op("o1", 5, long), with("b", 3)))
			want("Commit", "b", 3)
			_, err = w.Begin(context10(t), k, op("o2", 5, long))
			ok(t, "Begin", err)
			sooner := with("b", 4) // other flags: it is another value, and its deadline is its own
			sooner.Expires = sooner.Expires.Add(-time.Minute)
			ok(t, "CommitRead", w.CommitRead(context10(t), k, op("o2", 5, long), sooner))
			want("CommitRead", "b", 4)
			wantDeadline(t, s, k, sooner.Expires)
			_, err = w.Begin(context10(t), k, op("o3", 5, long))
			ok(t, "Begin", err)
			longer := with("b", 4)
			ok(t, "Touch", s.Touch(context10(t), k, longer.Expires))
			ok(t, "CommitRead", w.CommitRead(context10(t), k, op("o3", 5, long), sooner))
			wantDeadline(t, s, k, longer.Expires)
			want("CommitRead of the same", "b", 4)
			_, err = w.Begin(context10(t), k, op("o5", 5, long))
			ok(t, "Begin", err)
			sooner.Expires = time.Now().Add(-time.Second)
			ok(t, "CommitRead", w.CommitRead(context10(t), k, op("o5", 5, long), sooner))
			want("CommitRead of the same, overdue there", "b", 4)

			_, err = w.WriteAhead(context10(t), k, op("p1", 5, long), with("c", 5), store.IfVersion(store.VersionOf([]byte("b"), 0)))
			wantErr(t, "WriteAhead over other flags", err, store.ErrConflict)
			a, err := w.WriteAhead(context10(t), k, op("p1", 5, long), with("c", 5), store.IfVersion(store.VersionOf([]byte("b"), 4)))
			if err != nil || a.Record == nil || a.Record.Flags != 5 {
				t.Errorf("WriteAhead: got %+v, %v", a, err)
			}
			want("WriteAhead", "c", 5)
			a, err = w.MarkAhead(context10(t), k, op("p2", 5, long))
			if err != nil || a.Record == nil || a.Record.Flags != 5 {
				t.Errorf("MarkAhead: got %+v, %v", a, err)
			}
			_, err = w.WriteAhead(context10(t), k, op("p3", 5, long), with("d", 0), store.Always)
			ok(t, "WriteAhead", err)
			_, err = w.WriteAhead(context10(t), k, op("p4", 5, long), with("d", 6), store.Always)
			ok(t, "WriteAhead", err)
			a, done, err := w.Propagated(context10(t), k, op("p1", 5, 50*time.Millisecond), 1)
			if err != nil || done || a.Record == nil || a.Record.Flags != 6 {
				t.Errorf("Propagated: got %+v, %v, %v", a, done, err)
			}
			dead(t, w)
			b, err = w.Begin(context10(t), k, op("o4", 5, long))
			if err != nil || b.Took != store.AheadOf || b.Ahead.Record == nil || b.Ahead.Record.Flags != 6 || b.Holds != store.VersionOf([]byte("d"), 6) {
				t.Errorf("Begin over a dead ahead: got %+v, %v", b, err)
			}
			_, done, err = w.Propagated(context10(t), k, op("o4", 5, long), b.Ahead.Version)
			if ok(t, "Propagated", err); !done {
				t.Error("Propagated: not done")
			}
			_, err = w.SaveLast(context10(t), k, 5, with("e", 7), store.IfVersion(store.VersionOf([]byte("d"), 0)))
			wantErr(t, "SaveLast over other flags", err, store.ErrConflict)
			_, err = w.SaveLast(context10(t), k, 5, with("e", 7), store.IfVersion(store.VersionOf([]byte("d"), 6)))
			ok(t, "SaveLast", err)
			want("SaveLast", "e", 7)
			_, _, err = w.TouchMarked(context10(t), k, 5, time.Now().Add(2*time.Hour))
			ok(t, "TouchMarked", err)
			want("TouchMarked", "e", 7)
			n, err := w.Remove(context10(t), 5, []string{k})
			if ok(t, "Remove", err); n != 1 {
				t.Errorf("Remove: got %d", n)
			}
			ok(t, "Copy", w.Copy(context10(t), k, 5, with("e", 0)))
			want("Copy behind Remove", "e", 0)
		}},
		{"without a fence, or below it, nothing is done", func(t *testing.T, s S, _ store.Workflow) {
			for _, name := range []string{"nofence", "w"} {
				w := s.Workflow(name)
				o := op("o", 4, long)
				_, e1 := w.Begin(context10(t), k, o)
				_, e2 := w.Settle(context10(t), k, o)
				_, e3 := w.WriteAhead(context10(t), k, o, recp("x"), store.Always)
				_, e4 := w.MarkAhead(context10(t), k, o)
				_, _, e5 := w.Propagated(context10(t), k, o, 1)
				_, e6 := w.SaveLast(context10(t), k, 4, recp("x"), store.Always)
				_, _, e7 := w.TouchMarked(context10(t), k, 4, time.Now().Add(time.Hour))
				_, e8 := w.Add(context10(t), 4, []store.Entry{{Key: k, Record: recp("x")}})
				_, e9 := w.Same(context10(t), 4, []store.Entry{{Key: k, Record: recp("x")}})
				_, e10 := w.Remove(context10(t), 4, []string{k})
				for i, err := range []error{e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, w.Commit(context10(t), k, o, recp("x")),
					w.Withdraw(context10(t), k, o), w.Copy(context10(t), k, 4, recp("x"))} {
					wantErr(t, fmt.Sprintf("%s: operation %d", name, i+1), err, store.ErrFenced)
				}
				if _, _, err := w.LoadMarked(context10(t), k); (name == "nofence") != errors.Is(err, store.ErrFenced) {
					t.Errorf("%s: LoadMarked: got %v", name, err)
				}
			}
			wantAbsent(t, s, k)
		}},
		{"the fence only rises", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "RaiseFence", w.RaiseFence(context10(t), 3))
			if got, err := w.Fence(context10(t)); got != 5 || err != nil {
				t.Errorf("Fence: got %d, %v, want 5", got, err)
			}
			if got, err := s.Workflow("other").Fence(context10(t)); got != 0 || err != nil {
				t.Errorf("Fence of another workflow: got %d, %v, want 0", got, err)
			}
		}},
		{"the control record is changed by compare-and-set", func(t *testing.T, s S, w store.Workflow) {
			if got, err := w.Control(context10(t)); got != nil || err != nil {
				t.Errorf("Control: got %q, %v", got, err)
			}
			ok(t, "SwapControl", w.SwapControl(context10(t), nil, []byte("a\x00")))
			wantErr(t, "SwapControl", w.SwapControl(context10(t), nil, []byte("b")), store.ErrConflict)
			wantErr(t, "SwapControl", w.SwapControl(context10(t), []byte("a"), []byte("b")), store.ErrConflict)
			ok(t, "SwapControl", w.SwapControl(context10(t), []byte("a\x00"), []byte("b")))
			if names, err := s.Workflows(context10(t)); !slices.Equal(names, []string{"w"}) || err != nil {
				t.Errorf("Workflows: got %q, %v", names, err)
			}
			ok(t, "SwapControl", w.SwapControl(context10(t), []byte("b"), nil))
			if names, err := s.Workflows(context10(t)); len(names) != 0 || err != nil {
				t.Errorf("Workflows: got %q, %v", names, err)
			}
		}},
		{"a lease runs by the target's clock and is listed when it is over", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "SwapControl", w.SwapControl(context10(t), nil, []byte("control")))
			c, err := w.Renew(context10(t), "g1", []byte("info"), long)
			if string(c.Control) != "control" || c.Forgot || err != nil {
				t.Errorf("Renew: got %q, %v, %v", c.Control, c.Forgot, err)
			}
			_, err = w.Renew(context10(t), "g2", nil, short)
			ok(t, "Renew", err)
			eventually(t, 5*time.Second, "g2's lease is over", func() bool {
				ls, err := w.Leases(context10(t))
				ok(t, "Leases", err)
				return len(ls) == 2 && ls[1].Left <= 0
			})
			ls, _ := w.Leases(context10(t))
			if ls[0].Gateway != "g1" || string(ls[0].Info) != "info" || ls[0].Left <= 0 || ls[0].Left > long ||
				ls[0].Until.Sub(c.Now) != long {
				t.Errorf("Leases: got %+v, given at %v", ls[0], c.Now)
			}
			wantErr(t, "DropLease of a lease that is not over", w.DropLease(context10(t), "g1"), store.ErrConflict)
			ok(t, "DropLease", w.DropLease(context10(t), "g2"))
			ok(t, "DropLease of none", w.DropLease(context10(t), "g3"))
			if ls, _ := w.Leases(context10(t)); len(ls) != 1 {
				t.Errorf("Leases after DropLease: got %d", len(ls))
			}
		}},
		{"a strict write is begun and committed", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Save", s.Save(context10(t), k, rec("old"), store.Always))
			b, err := w.Begin(context10(t), k, op("o1", 5, long))
			if err != nil || b.Took != store.NoMarker || b.Holds != store.VersionOf([]byte("old"), 0) {
				t.Errorf("Begin: got %+v, %v", b, err)
			}
			wantMarker(t, w, "old", false, store.Intent)
			if u, err := w.Unsettled(context10(t), 10); u.Intents != 1 || !slices.Equal(u.Keys, []string{k}) || err != nil {
				t.Errorf("Unsettled: got %+v, %v", u, err)
			}
			ok(t, "Commit", w.Commit(context10(t), k, op("o1", 5, long), recp("new")))
			wantMarker(t, w, "new", false, store.NoMarker)
			wantDeadline(t, s, k, time.Now().Add(time.Hour))
			if u, _ := w.Unsettled(context10(t), 10); u.Intents+u.Aheads != 0 || len(u.Keys) != 0 {
				t.Errorf("Unsettled: got %+v", u)
			}
			wantErr(t, "Commit again", w.Commit(context10(t), k, op("o1", 5, long), recp("newer")), store.ErrLost)
			b, err = w.Begin(context10(t), k, op("o2", 6, long))
			if err != nil || b.Holds != store.VersionOf([]byte("new"), 0) {
				t.Errorf("Begin: got %+v, %v", b, err)
			}
			ok(t, "Commit of absence", w.Commit(context10(t), k, op("o2", 6, long), nil))
			wantMarker(t, w, "", true, store.NoMarker)
		}},
		{"a living intent makes others wait", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.Begin(context10(t), k, op("o1", 5, long))
			ok(t, "Begin", err)
			for what, f := range map[string]func() error{
				"Begin":  func() error { _, err := w.Begin(context10(t), k, op("o2", 5, long)); return err },
				"Settle": func() error { _, err := w.Settle(context10(t), k, op("o2", 5, long)); return err },
				"WriteAhead": func() error {
					_, err := w.WriteAhead(context10(t), k, op("o2", 5, long), recp("x"), store.Always)
					return err
				},
			} {
				var busy *store.BusyError
				if err := f(); !errors.As(err, &busy) || !errors.Is(err, store.ErrBusy) || busy.Left <= 0 || busy.Left > long {
					t.Errorf("%s: got %v, want a BusyError", what, err)
				}
			}
			wantErr(t, "Commit by another", w.Commit(context10(t), k, op("o2", 5, long), recp("x")), store.ErrLost)
			ok(t, "Withdraw by another", w.Withdraw(context10(t), k, op("o2", 5, long)))
			wantMarker(t, w, "", true, store.Intent)
			b, err := w.Begin(context10(t), k, op("o1", 5, long))
			if err != nil || b.Took != store.NoMarker {
				t.Errorf("Begin repeated: got %+v, %v", b, err)
			}
			ok(t, "Withdraw", w.Withdraw(context10(t), k, op("o1", 5, long)))
			wantMarker(t, w, "", true, store.NoMarker)
			if u, _ := w.Unsettled(context10(t), 1); u.Intents != 0 {
				t.Errorf("Unsettled: got %+v", u)
			}
		}},
		{"a dead intent is taken over", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.Begin(context10(t), k, op("o1", 5, short))
			ok(t, "Begin", err)
			dead(t, w)
			wantMarker(t, w, "", true, store.Intent)
			b, err := w.Settle(context10(t), k, op("o2", 5, long))
			if err != nil || b.Took != store.Intent {
				t.Errorf("Settle: got %+v, %v", b, err)
			}
			if b, err := w.Begin(context10(t), k, op("o2", 5, long)); err != nil || b.Took != store.Intent {
				t.Errorf("Begin repeated: got %+v, %v, want Took intent still", b, err)
			}
			wantErr(t, "Commit by the dead", w.Commit(context10(t), k, op("o1", 5, long), recp("late")), store.ErrLost)
			// What the dead one wrote into the origin nobody has seen yet.
			ok(t, "Withdraw", w.Withdraw(context10(t), k, op("o2", 5, long)))
			wantMarker(t, w, "", true, store.Intent)
			ok(t, "Commit", w.Commit(context10(t), k, op("o2", 5, long), recp("settled")))
			wantMarker(t, w, "settled", false, store.NoMarker)
		}},
		{"what was read in the origin takes no deadline back", func(t *testing.T, s S, w store.Workflow) {
			for i, c := range []struct {
				held, read string
				longer     bool
			}{{"x", "x", true}, {"x", "y", false}, {"", "x", false}} {
				if c.held != "" {
					r := rec(c.held)
					r.Expires = r.Expires.Add(time.Hour)
					ok(t, "Save", s.Save(context10(t), k, r, store.Always))
				}
				o := op(fmt.Sprint("o", i), 5, long)
				_, err := w.Begin(context10(t), k, o)
				ok(t, "Begin", err)
				ok(t, "CommitRead", w.CommitRead(context10(t), k, o, recp(c.read)))
				wantMarker(t, w, c.read, false, store.NoMarker)
				wantDeadline(t, s, k, time.Now().Add(map[bool]time.Duration{false: time.Hour, true: 2 * time.Hour}[c.longer]))
				_, err = w.Begin(context10(t), k, o)
				ok(t, "Begin", err)
				over := rec(c.read)
				over.Expires = time.Now().Add(-time.Second)
				ok(t, "CommitRead of what is overdue in the origin", w.CommitRead(context10(t), k, o, &over))
				wantMarker(t, w, c.read, false, store.NoMarker)
				for _, gone := range []*store.Record{{Data: []byte("z"), Expires: over.Expires}, nil} {
					ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
					_, err = w.Begin(context10(t), k, o)
					ok(t, "Begin", err)
					ok(t, "CommitRead of absence", w.CommitRead(context10(t), k, o, gone))
					wantMarker(t, w, "", true, store.NoMarker)
				}
			}
		}},
		{"a handle finds out that its steps were forgotten", func(t *testing.T, s S, w store.Workflow) {
			o := op("o", 5, long)
			other := s.Workflow("w")
			ok(t, "SwapControl", w.SwapControl(context10(t), nil, []byte("c")))
			for what, step := range map[string]func() error{
				"Renew":       func() error { _, err := w.Renew(context10(t), "g", nil, long); return err },
				"Begin":       func() error { _, err := w.Begin(context10(t), k, o); return err },
				"Commit":      func() error { return w.Commit(context10(t), k, o, recp("x")) },
				"WriteAhead":  func() error { _, err := w.WriteAhead(context10(t), k, o, recp("x"), store.Always); return err },
				"MarkAhead":   func() error { _, err := w.MarkAhead(context10(t), k, o); return err },
				"SaveLast":    func() error { _, err := w.SaveLast(context10(t), k, 5, recp("x"), store.Always); return err },
				"TouchMarked": func() error { _, _, err := w.TouchMarked(context10(t), k, 5, time.Now().Add(time.Hour)); return err },
			} {
				ok(t, "SaveLast", s.Save(context10(t), k, rec("x"), store.Always))
				if what == "Commit" {
					_, err := w.Begin(context10(t), k, o)
					ok(t, "Begin", err)
				}
				ok(t, what, step())
				_, err := other.Renew(context10(t), "other", nil, long)
				ok(t, "Renew", err)
				ok(t, "Purge", w.Purge(context10(t), []byte("c"))) // forgets steps, too
				ok(t, "RaiseFence", w.RaiseFence(context10(t), 5))
				if !h.Sharded || what != "Renew" { // which is not about a key
					_, err = w.Begin(context10(t), k, o)
					wantErr(t, "Begin after "+what, err, store.ErrFenced)
					_, err = w.SaveLast(context10(t), k, 5, recp("y"), store.Always)
					wantErr(t, "SaveLast after "+what, err, store.ErrFenced)
					wantData(t, s, k, "x")
				}
				for i := range 4 { // it is said until it is accepted
					r, err := w.Renew(context10(t), "g", nil, long)
					if r.Forgot != (i < 3) || string(r.Control) != "c" || err != nil {
						t.Errorf("Renew %d after %s: got %q, %v, %v", i, what, r.Control, r.Forgot, err)
					}
					if i == 2 {
						w.Accept()
					}
				}
				_, err = w.SaveLast(context10(t), k, 5, recp("y"), store.Always)
				ok(t, "SaveLast", err)
				if r, err := other.Renew(context10(t), "other", nil, long); !r.Forgot || err != nil {
					t.Errorf("Renew by another handle: got %v, %v", r.Forgot, err)
				}
				other.Accept()
				third := s.Workflow("w")
				for range 2 {
					if r, err := third.Renew(context10(t), "third", nil, long); r.Forgot || err != nil {
						t.Errorf("Renew by a new handle: got %v, %v", r.Forgot, err)
					}
					ok(t, "Leave", third.Leave(context10(t), "third"))
				}
				if ls, err := w.Leases(context10(t)); len(ls) != 2 || err != nil {
					t.Errorf("Leases after Leave: got %+v, %v", ls, err)
				}
			}
		}},
		{"a dead intent of one's own can still be committed", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.Begin(context10(t), k, op("o1", 5, short))
			ok(t, "Begin", err)
			dead(t, w)
			ok(t, "Commit", w.Commit(context10(t), k, op("o1", 5, short), recp("x")))
			wantMarker(t, w, "x", false, store.NoMarker)
		}},
		{"Settle makes no marker", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
			_, err := w.Settle(context10(t), k, op("o1", 5, long))
			wantErr(t, "Settle", err, store.ErrAbsent)
			wantMarker(t, w, "x", false, store.NoMarker)
		}},
		{"a write ahead is propagated by its owner", func(t *testing.T, s S, w store.Workflow) {
			a, err := w.WriteAhead(context10(t), k, op("o1", 5, long), recp("one"), store.Always)
			if err != nil || !a.Mine || a.Version == 0 || !same(a.Record, "one") {
				t.Errorf("WriteAhead: got %+v, %v", a, err)
			}
			wantMarker(t, w, "one", false, store.AheadOf)
			if u, _ := w.Unsettled(context10(t), 1); u.Aheads != 1 || u.Intents != 0 {
				t.Errorf("Unsettled: got %+v", u)
			}
			var busy *store.BusyError
			if _, err := w.Begin(context10(t), k, op("b", 5, long)); !errors.As(err, &busy) {
				t.Errorf("Begin on a living ahead: got %v, want a BusyError", err)
			}
			a2, err := w.WriteAhead(context10(t), k, op("o2", 5, long), recp("two"), store.Always)
			if err != nil || a2.Mine || a2.Version != a.Version+1 {
				t.Errorf("WriteAhead on a living ahead: got %+v, %v", a2, err)
			}
			_, _, err = w.Propagated(context10(t), k, op("o2", 5, long), a2.Version)
			wantErr(t, "Propagated by another", err, store.ErrLost)
			next, done, err := w.Propagated(context10(t), k, op("o1", 5, long), a.Version)
			if done || err != nil || next.Version != a2.Version || !same(next.Record, "two") || next.Record.Expires.IsZero() {
				t.Errorf("Propagated of an old version: got %+v, %v, %v", next, done, err)
			}
			if _, done, err := w.Propagated(context10(t), k, op("o1", 5, long), next.Version); !done || err != nil {
				t.Errorf("Propagated: got %v, %v", done, err)
			}
			wantMarker(t, w, "two", false, store.NoMarker)
		}},
		{"a deletion is ahead as well", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
			a, err := w.WriteAhead(context10(t), k, op("o1", 5, long), nil, store.Always)
			if err != nil || !a.Mine || a.Record != nil || !a.Existed {
				t.Errorf("WriteAhead: got %+v, %v", a, err)
			}
			wantMarker(t, w, "", true, store.AheadOf)
			a, err = w.WriteAhead(context10(t), k, op("o2", 5, long), nil, store.Always)
			if err != nil || a.Existed {
				t.Errorf("WriteAhead of absence again: got %+v, %v", a, err)
			}
		}},
		{"a write ahead obeys its condition", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.WriteAhead(context10(t), k, op("o", 5, long), recp("x"), store.IfPresent)
			wantErr(t, "IfPresent", err, store.ErrConflict)
			wantMarker(t, w, "", true, store.NoMarker)
			_, err = w.WriteAhead(context10(t), k, op("o", 5, long), recp("x"), store.IfAbsent)
			ok(t, "IfAbsent", err)
			_, err = w.WriteAhead(context10(t), k, op("o2", 5, long), recp("y"), store.IfVersion(store.VersionOf([]byte("z"), 0)))
			wantErr(t, "IfVersion", err, store.ErrConflict)
			wantMarker(t, w, "x", false, store.AheadOf)
		}},
		{"a dead ahead is taken over as it stands", func(t *testing.T, s S, w store.Workflow) {
			a, err := w.WriteAhead(context10(t), k, op("o1", 5, short), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			dead(t, w)
			b, err := w.Begin(context10(t), k, op("o2", 5, long))
			if err != nil || b.Took != store.AheadOf || !b.Ahead.Mine || b.Ahead.Version != a.Version || !same(b.Ahead.Record, "x") {
				t.Errorf("Begin: got %+v, %v", b, err)
			}
			wantMarker(t, w, "x", false, store.AheadOf)
			_, _, err = w.Propagated(context10(t), k, op("o1", 5, short), a.Version)
			wantErr(t, "Propagated by the dead", err, store.ErrLost)
			if _, done, err := w.Propagated(context10(t), k, op("o2", 5, long), a.Version); !done || err != nil {
				t.Errorf("Propagated: got %v, %v", done, err)
			}
		}},
		{"a dead intent gives way to a write ahead", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.Begin(context10(t), k, op("o1", 5, short))
			ok(t, "Begin", err)
			dead(t, w)
			var busy *store.BusyError
			if _, err := w.WriteAhead(context10(t), k, op("o2", 5, long), recp("x"), store.IfAbsent); !errors.As(err, &busy) || busy.Left > 0 {
				t.Errorf("WriteAhead IfAbsent: got %v, want a BusyError with nothing left", err)
			}
			a, err := w.WriteAhead(context10(t), k, op("o2", 5, long), recp("x"), store.Always)
			if err != nil || !a.Mine {
				t.Errorf("WriteAhead: got %+v, %v", a, err)
			}
			wantErr(t, "Commit by the dead", w.Commit(context10(t), k, op("o1", 5, short), recp("late")), store.ErrLost)
			wantMarker(t, w, "x", false, store.AheadOf)
			if u, _ := w.Unsettled(context10(t), 9); u.Intents != 0 || u.Aheads != 1 {
				t.Errorf("Unsettled: got %+v", u)
			}
		}},
		{"a value is marked ahead as it stands", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.MarkAhead(context10(t), k, op("o", 5, long))
			wantErr(t, "MarkAhead of nothing", err, store.ErrAbsent)
			wantMarker(t, w, "", true, store.NoMarker)
			ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
			a, err := w.MarkAhead(context10(t), k, op("o", 5, long))
			if err != nil || !a.Mine || !same(a.Record, "x") {
				t.Errorf("MarkAhead: got %+v, %v", a, err)
			}
			wantMarker(t, w, "x", false, store.AheadOf)
		}},
		{"a value under an intent, even a dead one, is not marked ahead: the origin decides", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
			_, err := w.Begin(context10(t), k, op("o1", 5, short))
			ok(t, "Begin", err)
			dead(t, w)
			var busy *store.BusyError
			if _, err := w.MarkAhead(context10(t), k, op("o2", 5, long)); !errors.As(err, &busy) || busy.Left > 0 {
				t.Errorf("MarkAhead: got %v, want a BusyError with nothing left", err)
			}
			wantMarker(t, w, "x", false, store.Intent)
		}},
		{"the last write removes what marker there is", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.WriteAhead(context10(t), k, op("o1", 5, long), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			_, err = w.SaveLast(context10(t), k, 5, recp("y"), store.IfAbsent)
			wantErr(t, "SaveLast IfAbsent", err, store.ErrConflict)
			existed, err := w.SaveLast(context10(t), k, 5, recp("y"), store.Always)
			if !existed || err != nil {
				t.Errorf("SaveLast: got %v, %v", existed, err)
			}
			wantMarker(t, w, "y", false, store.NoMarker)
			if u, _ := w.Unsettled(context10(t), 9); u.Intents+u.Aheads != 0 {
				t.Errorf("Unsettled: got %+v", u)
			}
			existed, err = w.SaveLast(context10(t), k, 5, nil, store.Always)
			if !existed || err != nil {
				t.Errorf("SaveLast of absence: got %v, %v", existed, err)
			}
			wantMarker(t, w, "", true, store.NoMarker)
		}},
		{"a touch moves the deadline and leaves the marker", func(t *testing.T, s S, w store.Workflow) {
			later := time.Now().Add(2 * time.Hour)
			present, m, err := w.TouchMarked(context10(t), k, 5, later)
			if present || m.Kind != store.NoMarker || err != nil {
				t.Errorf("TouchMarked of nothing: got %v, %v, %v", present, m, err)
			}
			wantMarker(t, w, "", true, store.NoMarker)
			_, err = w.WriteAhead(context10(t), k, op("o1", 5, long), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			present, m, err = w.TouchMarked(context10(t), k, 5, later)
			if !present || m.Kind != store.AheadOf || err != nil {
				t.Errorf("TouchMarked: got %v, %v, %v", present, m, err)
			}
			wantDeadline(t, s, k, later)
			wantMarker(t, w, "x", false, store.AheadOf)
		}},
		{"a copy gives way to a marker", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Copy", w.Copy(context10(t), k, 5, recp("copy")))
			wantMarker(t, w, "copy", false, store.NoMarker)
			ok(t, "Copy of absence", w.Copy(context10(t), k, 5, nil))
			wantMarker(t, w, "", true, store.NoMarker)
			_, err := w.Begin(context10(t), k, op("o", 5, long))
			ok(t, "Begin", err)
			ok(t, "Copy", w.Copy(context10(t), k, 5, recp("copy")))
			wantMarker(t, w, "", true, store.Intent)
		}},
		{"Add never replaces, not even a marker", func(t *testing.T, s S, w store.Workflow) {
			marked, there := h.key("marked"), h.key("there")
			_, err := w.Begin(context10(t), marked, op("o", 5, long))
			ok(t, "Begin", err)
			ok(t, "Save", s.Save(context10(t), there, rec("mine"), store.Always))
			overdue := store.Record{Data: []byte("x"), Expires: time.Now().Add(-time.Second)}
			stored, err := w.Add(context10(t), 5, []store.Entry{{Key: marked, Record: recp("b")}, {Key: there, Record: recp("b")},
				{Key: k, Record: recp("b\x00\xff")}, {Key: h.key("overdue"), Record: &overdue}, {Key: h.key("empty"), Record: recp("")}})
			if !slices.Equal(stored, []bool{false, false, true, false, true}) || err != nil {
				t.Errorf("Add: got %v, %v", stored, err)
			}
			wantData(t, s, there, "mine")
			wantData(t, s, k, "b\x00\xff")
			wantDeadline(t, s, k, time.Now().Add(time.Hour))
			wantData(t, s, h.key("empty"), "")
			wantAbsent(t, s, marked)
			wantAbsent(t, s, h.key("overdue"))
		}},
		{"Same compares data and marker, and moves the deadline", func(t *testing.T, s S, w store.Workflow) {
			ok(t, "Save", s.Save(context10(t), k, rec("x"), store.Always))
			ok(t, "Save", s.Save(context10(t), h.key("b"), rec("x"), store.Always))
			_, err := w.Begin(context10(t), h.key("c"), op("o", 5, long))
			ok(t, "Begin", err)
			later := rec("x")
			later.Expires = time.Now().Add(3 * time.Hour)
			got, err := w.Same(context10(t), 5, []store.Entry{{Key: k, Record: &later}, {Key: h.key("b"), Record: recp("y")},
				{Key: h.key("c")}, {Key: h.key("d")}, {Key: h.key("b")}, {Key: h.key("d"), Record: recp("")}})
			if !slices.Equal(got, []bool{true, false, false, true, false, false}) || err != nil {
				t.Errorf("Same: got %v, %v", got, err)
			}
			wantDeadline(t, s, k, later.Expires)
		}},
		{"Same never moves a deadline back", func(t *testing.T, s S, w store.Workflow) {
			held := rec("x")
			for _, tc := range []struct {
				what  string
				by    time.Duration // from what is held to what the entry says
				same  bool
				moves bool
			}{
				{"much earlier", -30 * time.Minute, false, false},
				{"beyond the slack", -store.DeadlineSlack - 2*time.Second, false, false},
				{"within the slack", -store.DeadlineSlack + 2*time.Second, true, false},
				{"overdue", -2 * time.Hour, false, false},
				{"a little later", 2 * time.Second, true, true},
				{"much later", time.Hour, true, true},
			} {
				ok(t, "Save", s.Save(context10(t), k, held, store.Always))
				entry, want := held, held.Expires
				entry.Expires = held.Expires.Add(tc.by)
				if tc.moves {
					want = entry.Expires
				}
				got, err := w.Same(context10(t), 5, []store.Entry{{Key: k, Record: &entry}})
				if len(got) != 1 || got[0] != tc.same || err != nil {
					t.Errorf("Same of a deadline %s: got %v, %v, want %v", tc.what, got, err, tc.same)
				}
				wantDeadline(t, s, k, want)
				wantMarker(t, w, "x", false, store.NoMarker)
			}
			held.Expires = time.Now().Add(2 * time.Second) // within the slack of one that is over
			ok(t, "Save", s.Save(context10(t), k, held, store.Always))
			overdue := held
			overdue.Expires = time.Now().Add(-time.Second)
			if got, err := w.Same(context10(t), 5, []store.Entry{{Key: k, Record: &overdue}}); !slices.Equal(got, []bool{false}) || err != nil {
				t.Errorf("Same of an overdue record: got %v, %v", got, err)
			}
			wantDeadline(t, s, k, held.Expires)
		}},
		{"Remove takes values and markers", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.WriteAhead(context10(t), k, op("o", 5, long), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			ok(t, "Save", s.Save(context10(t), h.key("b"), rec("x"), store.Always))
			n, err := w.Remove(context10(t), 5, []string{k, h.key("b"), h.key("c")})
			if n != 2 || err != nil {
				t.Errorf("Remove: got %d, %v, want 2", n, err)
			}
			wantMarker(t, w, "", true, store.NoMarker)
			if u, _ := w.Unsettled(context10(t), 9); u.Intents+u.Aheads != 0 {
				t.Errorf("Unsettled: got %+v", u)
			}
		}},
		{"Unsettled lists what died first at the front", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.Begin(context10(t), h.key("b"), op("1", 5, long))
			ok(t, "Begin", err)
			_, err = w.WriteAhead(context10(t), k, op("2", 5, short), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			_, err = w.Begin(context10(t), h.key("c"), op("3", 5, 2*long))
			ok(t, "Begin", err)
			u, err := w.Unsettled(context10(t), 2)
			if u.Intents != 2 || u.Aheads != 1 || len(u.Keys) != 2 || u.Keys[0] != k || err != nil {
				t.Errorf("Unsettled: got %+v, %v", u, err)
			}
		}},
		{"markers are no sessions, and Purge leaves none", func(t *testing.T, s S, w store.Workflow) {
			_, err := w.WriteAhead(context10(t), k, op("1", 5, long), recp("x"), store.Always)
			ok(t, "WriteAhead", err)
			_, err = w.Begin(context10(t), h.key("b"), op("2", 5, long))
			ok(t, "Begin", err)
			_, err = w.Renew(context10(t), "g", nil, long)
			ok(t, "Renew", err)
			ok(t, "SwapControl", w.SwapControl(context10(t), nil, []byte("c")))
			keys := []string{}
			for cursor := ""; ; {
				page, err := s.Scan(context10(t), cursor, 100)
				ok(t, "Scan", err)
				keys = append(keys, page.Keys...)
				if cursor = page.Cursor; cursor == "" {
					break
				}
			}
			if keys = slices.Compact(sorted(keys)); !slices.Equal(keys, []string{k}) {
				t.Errorf("Scan: got %q, want the session alone", keys)
			}
			wantErr(t, "Purge", w.Purge(context10(t), []byte("another")), store.ErrConflict)
			wantErr(t, "Purge", s.Workflow("none").Purge(context10(t), []byte("c")), store.ErrConflict)
			if u, _ := w.Unsettled(context10(t), 9); u.Intents+u.Aheads != 2 {
				t.Errorf("Unsettled after a Purge that was late: got %+v", u)
			}
			ok(t, "Purge", w.Purge(context10(t), []byte("c")))
			wantData(t, s, k, "x")
			if u, _ := w.Unsettled(context10(t), 9); u.Intents+u.Aheads != 0 {
				t.Errorf("Unsettled after Purge: got %+v", u)
			}
			if f, _ := w.Fence(context10(t)); f != 0 {
				t.Errorf("Fence after Purge: %d", f)
			}
			if ls, _ := w.Leases(context10(t)); len(ls) != 0 {
				t.Errorf("Leases after Purge: %v", ls)
			}
			if c, _ := w.Control(context10(t)); string(c) != "c" {
				t.Errorf("Control after Purge: %q", c)
			}
		}},
		{"an instance has a name", func(t *testing.T, s S, w store.Workflow) {
			a, err := s.Instance(context10(t))
			if b, err2 := s.Instance(context10(t)); a == "" || a != b || err != nil || err2 != nil {
				t.Errorf("Instance: got %q, %v, then %q, %v", a, err, b, err2)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := h.New(t)
			w := s.Workflow("w")
			ok(t, "RaiseFence", w.RaiseFence(context10(t), 5))
			tc.run(t, s, w)
		})
	}
}
