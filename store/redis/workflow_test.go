package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

func newWorkflow(t testing.TB, query string) (*testserver.RedisServer, *Store, store.Workflow) {
	t.Helper()
	server := testserver.Redis(t)
	s := open(t, server.URL()+query)
	w := s.Workflow("w")
	if err := w.RaiseFence(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	return server, s, w
}

func opOf(nonce string, lease time.Duration) store.Op {
	return store.Op{Nonce: nonce, Epoch: 1, Lease: lease}
}

// A marker of lease 0 is dead at once.
const dead, alive = 0, time.Minute

func TestWhatIsGoneStaysGone(t *testing.T) {
	server, _, w := newWorkflow(t, "?prefix=p:")
	ctx := context.Background()
	const side = "sessile:m:{p:k}"
	until := time.Now().Add(time.Hour).UnixMilli()
	gone := func() {
		t.Helper()
		server.Do("SET", side, fmt.Sprint("g ", until), "PXAT", fmt.Sprint(until))
	}
	wantGone := func(when string) {
		t.Helper()
		if _, m, err := w.LoadMarked(ctx, "k"); m.Kind != store.GoneMark || err != nil {
			t.Errorf("%s: got %v, %v, want gone", when, m.Kind, err)
		}
		if left, ok := server.Do("PTTL", side).(int64); !ok || left < 3_590_000 || left > 3_600_010 {
			t.Errorf("%s: PTTL %d, want about an hour", when, left)
		}
	}
	gone()
	if _, err := w.Settle(ctx, "k", opOf("s", alive)); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Settle: got %v, want ErrAbsent", err)
	}
	wantGone("after Settle")
	if b, err := w.Begin(ctx, "k", opOf("1", dead)); b.Took != store.NoMarker || err != nil {
		t.Errorf("Begin: got %+v, %v", b, err)
	}
	if got := server.Do("PTTL", side); got != int64(-1) {
		t.Errorf("PTTL of an intent: got %v, want none: a dead marker is to be found", got)
	}
	if err := w.Withdraw(ctx, "k", opOf("1", dead)); err != nil {
		t.Error(err)
	}
	wantGone("after Begin and Withdraw")
	if u, err := w.Unsettled(ctx, 9); u.Intents != 0 || u.Aheads != 0 || err != nil {
		t.Errorf("Unsettled: got %+v, %v: gone does not count", u, err)
	}

	rec := live("x")
	if got, err := w.Add(ctx, 1, []store.Entry{{Key: "k", Record: &rec}}); !got[0] || err != nil {
		t.Errorf("Add: got %v, %v: gone counts as none", got, err)
	}
	if got, err := w.Same(ctx, 1, []store.Entry{{Key: "k", Record: &rec}}); !got[0] || err != nil {
		t.Errorf("Same: got %v, %v", got, err)
	}
	if err := w.Copy(ctx, "k", 1, nil); err != nil {
		t.Error(err)
	}
	wantGone("after Add, Same, Copy")
	if err := errors.Join(w.SwapControl(ctx, nil, []byte("c")), w.Purge(ctx, []byte("c"))); err != nil {
		t.Error(err)
	}
	w.Accept() // Purge forgot the steps of this handle, too
	if got := server.Do("EXISTS", side); got != int64(1) {
		t.Error("Purge forgets what is gone")
	}

	if err := w.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	until = time.Now().Add(50 * time.Millisecond).UnixMilli()
	gone()
	if _, err := w.Begin(ctx, "k", opOf("3", alive)); err != nil {
		t.Error(err)
	}
	for time.Now().UnixMilli() <= until {
		time.Sleep(time.Millisecond)
	}
	if err := w.Withdraw(ctx, "k", opOf("3", alive)); err != nil {
		t.Error(err)
	}
	if got := server.Do("EXISTS", side); got != int64(0) {
		t.Error("Withdraw puts back what is over")
	}
}

func TestPurgeLeavesOtherWorkflowsAlone(t *testing.T) {
	server, s, w := newWorkflow(t, "")
	ctx := context.Background()
	other := s.Workflow("other")
	if err := other.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteAhead(ctx, "theirs", opOf("1", alive), nil, store.Always); err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		if _, err := w.Begin(ctx, fmt.Sprint("ours", i), opOf("1", alive)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAhead(ctx, fmt.Sprint("too", i), opOf("1", alive), nil, store.Always); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.SwapControl(ctx, nil, []byte("c")), w.Purge(ctx, []byte("c"))); err != nil {
		t.Fatal(err)
	}
	if _, m, err := other.LoadMarked(ctx, "theirs"); m.Kind != store.AheadOf || err != nil {
		t.Errorf("LoadMarked: got %v, %v, want ahead", m.Kind, err)
	}
	if got := server.Do("DBSIZE"); got != int64(5) { // their fence, marker, index and steps, and our control record
		t.Errorf("DBSIZE: got %v, want 5: %v", got, server.Do("KEYS", "*"))
	}
}

func TestMarkersThatCannotBeRead(t *testing.T) {
	server, _, w := newWorkflow(t, "")
	ctx := context.Background()
	rec := live("x")
	for _, raw := range []string{"", "i", "i n 1", "x n 1 2 3", "a n 1 many", "i  1 2 3"} {
		server.Do("SET", "sessile:m:{k}", raw)
		_, err := w.Begin(ctx, "k", opOf("1", alive))
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "BADMARK") {
			t.Errorf("Begin on %q: got %v, want unavailable", raw, err)
		}
		if err := w.Copy(ctx, "k", 1, &rec); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Copy on %q: got %v, want unavailable", raw, err)
		}
		if got, err := w.Add(ctx, 1, []store.Entry{{Key: "k", Record: &rec}}); got[0] || err != nil {
			t.Errorf("Add on %q: got %v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{"", "i", "x n 1 2 3", "a n 1 many"} {
		server.Do("SET", "sessile:m:{k}", raw)
		if _, _, err := w.LoadMarked(ctx, "k"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("LoadMarked on %q: got %v, want unavailable", raw, err)
		}
	}
	if got := server.Do("EXISTS", "k"); got != int64(0) {
		t.Error("something was written")
	}
}

func TestAnotherType(t *testing.T) {
	server, st, w := newWorkflow(t, "")
	ctx := context.Background()
	server.Do("HSET", "h", "f", "v")
	rec := live("x")
	refused := (*store.RefusedError)(nil)
	if _, err := st.Load(ctx, "h"); !errors.As(err, &refused) || store.OutcomeOf(err) != store.OutcomeInvalid {
		t.Errorf("Load: got %v, want a refusal", err)
	}
	if _, err := st.Inspect(ctx, "h"); !errors.As(err, &refused) {
		t.Errorf("Inspect: got %v, want a refusal", err)
	}
	if _, err := w.Begin(ctx, "h", opOf("1", alive)); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Errorf("Begin: got %v, want unavailable", err)
	}
	if _, err := w.WriteAhead(ctx, "h", opOf("1", alive), &rec, store.Always); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("WriteAhead: got %v, want unavailable", err)
	}
	if got := server.Do("EXISTS", "sessile:m:{h}", "sessile:intents:w", "sessile:aheads:w"); got != int64(0) {
		t.Error("a refused operation left something")
	}
	got, err := w.Same(ctx, 1, []store.Entry{{Key: "h", Record: &rec}, {Key: "h"}, {Key: "none"}})
	if want := []bool{false, false, true}; !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("Same: got %v, %v, want %v", got, err, want)
	}
	if got, err := w.Add(ctx, 1, []store.Entry{{Key: "h", Record: &rec}}); got[0] || err != nil {
		t.Errorf("Add: got %v, %v", got, err)
	}
}

func TestInvalidOps(t *testing.T) {
	_, _, w := newWorkflow(t, "")
	ctx := context.Background()
	rec := live("x")
	for _, op := range []store.Op{{Epoch: 1}, {Nonce: "a b", Epoch: 1}, {Nonce: "a\n", Epoch: 1}, {Nonce: "ä", Epoch: 1},
		{Nonce: strings.Repeat("n", 129), Epoch: 1}, {Nonce: "n", Epoch: 1<<53 + 1}, {Nonce: "n", Epoch: 1, Lease: -1}} {
		if _, err := w.Begin(ctx, "k", op); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Begin(%+v): got %v, want ErrInvalid", op, err)
		}
	}
	endless := store.Record{Data: []byte("x")}
	for _, bad := range []store.Record{endless} {
		if err := w.Commit(ctx, "k", opOf("n", alive), &bad); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Commit: got %v, want ErrInvalid", err)
		}
		if _, err := w.Add(ctx, 1, []store.Entry{{Key: "good", Record: &rec}, {Key: "k", Record: &bad}}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Add: got %v, want ErrInvalid", err)
		}
	}
	if rec, _, err := w.LoadMarked(ctx, "good"); rec != nil || err != nil {
		t.Errorf("LoadMarked: got %v, %v: a refused batch touched something", rec, err)
	}
	if err := w.RaiseFence(ctx, 1<<53+1); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("RaiseFence: got %v, want ErrInvalid", err)
	}
	const big = 1 << 53
	if err := w.RaiseFence(ctx, big); err != nil {
		t.Error(err)
	}
	if got, err := w.Fence(ctx); got != big || err != nil {
		t.Errorf("Fence: got %d, %v", got, err)
	}
	if _, err := w.Begin(ctx, "k", store.Op{Nonce: "n", Epoch: big - 1}); !errors.Is(err, store.ErrFenced) {
		t.Errorf("Begin just below the fence: got %v", err)
	}
	if _, err := w.Begin(ctx, "k", store.Op{Nonce: "n", Epoch: big}); err != nil {
		t.Errorf("Begin at the fence: got %v", err)
	}
}

func TestOverdueRecordsAreAbsent(t *testing.T) {
	server, s, w := newWorkflow(t, "")
	ctx := context.Background()
	overdue := store.Record{Data: []byte("x"), Expires: time.Now().Add(-time.Second)}
	for what, f := range map[string]func() error{
		"Commit": func() error {
			if _, err := w.Begin(ctx, "k", opOf("1", alive)); err != nil {
				return err
			}
			return w.Commit(ctx, "k", opOf("1", alive), &overdue)
		},
		"Copy":     func() error { return w.Copy(ctx, "k", 1, &overdue) },
		"SaveLast": func() error { _, err := w.SaveLast(ctx, "k", 1, &overdue, store.IfPresent); return err },
	} {
		if err := s.Save(ctx, "k", live("old"), store.Always); err != nil {
			t.Fatal(err)
		}
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := server.Do("EXISTS", "k", "sessile:m:{k}"); got != int64(0) {
			t.Errorf("%s: the session is there", what)
		}
	}
	got, err := w.Same(ctx, 1, []store.Entry{{Key: "k", Record: &overdue}})
	if !got[0] || err != nil {
		t.Errorf("Same: got %v, %v", got, err)
	}
	if err := s.Save(ctx, "k", live("x"), store.Always); err != nil {
		t.Fatal(err)
	}
	if got, err = w.Same(ctx, 1, []store.Entry{{Key: "k", Record: &overdue}}); got[0] || err != nil {
		t.Errorf("Same where the target still holds it: got %v, %v", got, err)
	}
	a, err := w.WriteAhead(ctx, "k", opOf("1", alive), &overdue, store.Always)
	if a.Record != nil || !a.Existed || err != nil {
		t.Errorf("WriteAhead: got %+v, %v", a, err)
	}
}

// To PEXPIRE with GT, a key without a TTL lives for ever already.
func TestSameGivesADeadlineWhereThereIsNone(t *testing.T) {
	server, _, w := newWorkflow(t, "")
	rec := live("x")
	server.Do("SET", "k", "x")
	got, err := w.Same(context.Background(), 1, []store.Entry{{Key: "k", Record: &rec}})
	if !reflect.DeepEqual(got, []bool{true}) || err != nil {
		t.Errorf("Same: got %v, %v", got, err)
	}
	if left := server.Do("PTTL", "k").(int64); left < 3_590_000 || left > 3_600_010 {
		t.Errorf("PTTL: got %d, want about an hour", left)
	}
}

func TestLargeBatches(t *testing.T) {
	_, s, w := newWorkflow(t, "?prefix=p:")
	ctx := context.Background()
	const n = 3*batchEntries + 7
	entries, keys := make([]store.Entry, n), make([]string, n)
	for i := range entries {
		rec := live(strings.Repeat("v", i%7*1000))
		keys[i], entries[i] = fmt.Sprint("k", i), store.Entry{Key: fmt.Sprint("k", i), Record: &rec}
	}
	if err := s.Save(ctx, "k300", live("there"), store.Always); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Begin(ctx, "k301", opOf("1", alive)); err != nil {
		t.Fatal(err)
	}
	stored, err := w.Add(ctx, 1, entries)
	if err != nil || len(stored) != n {
		t.Fatalf("Add: %d, %v", len(stored), err)
	}
	for i, got := range stored {
		if want := i != 300 && i != 301; got != want {
			t.Errorf("Add: entry %d: got %v", i, got)
		}
	}
	same, err := w.Same(ctx, 1, entries)
	if !reflect.DeepEqual(same, stored) || err != nil {
		t.Errorf("Same: got %v", err)
	}
	// A batch that fails half-way says what it knows: an epoch that is over fails at once.
	if stored, err := w.Add(ctx, 0, entries); !errors.Is(err, store.ErrFenced) || len(stored) != n {
		t.Errorf("Add below the fence: got %d, %v", len(stored), err)
	}
	if removed, err := w.Remove(ctx, 1, keys); removed != n-1 || err != nil {
		t.Errorf("Remove: got %d, %v, want %d", removed, err, n-1)
	}
	if u, err := w.Unsettled(ctx, 0); u.Intents != 0 || err != nil {
		t.Errorf("Unsettled: got %+v, %v", u, err)
	}
	for _, f := range []func(context.Context, uint64, []store.Entry) ([]bool, error){w.Add, w.Same} {
		if got, err := f(ctx, 1, nil); len(got) != 0 || err != nil {
			t.Errorf("of nothing: got %v, %v", got, err)
		}
	}
}

func TestOfManyWhoBeginOneDoes(t *testing.T) {
	_, _, w := newWorkflow(t, "")
	ctx := context.Background()
	for round := range 50 {
		key := fmt.Sprint("k", round)
		if round%2 == 1 { // over a dead one
			if _, err := w.Begin(ctx, key, opOf("dead", dead)); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		var won []string
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				op := opOf(fmt.Sprint("op", i), alive)
				if _, err := w.Begin(ctx, key, op); err == nil {
					mu.Lock()
					won = append(won, op.Nonce)
					mu.Unlock()
				} else if !errors.Is(err, store.ErrBusy) {
					t.Errorf("Begin: %v", err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %q won, want one", round, won)
		}
		rec := live(won[0])
		if err := w.Commit(ctx, key, opOf(won[0], alive), &rec); err != nil {
			t.Errorf("Commit: %v", err)
		}
	}
}

// TestLikeMemory runs the same random operations against Redis and against the reference, and compares every answer.
func TestLikeMemory(t *testing.T) {
	server, s, w := newWorkflow(t, "")
	ctx := context.Background()
	m := memory.New(memory.Options{})
	defer m.Close()
	ref := m.Workflow("w")
	if err := ref.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	text := func(r *store.Record) string {
		if r == nil {
			return "absent"
		}
		return string(r.Data)
	}
	ahead := func(a store.Ahead) string {
		return fmt.Sprint(a.Version, a.Mine, a.Existed, " ", text(a.Record))
	}
	class := func(err error) string {
		for _, c := range []error{store.ErrFenced, store.ErrBusy, store.ErrLost, store.ErrAbsent, store.ErrConflict} {
			if errors.Is(err, c) {
				return c.Error()
			}
		}
		return fmt.Sprint(err)
	}
	answer := func(err error, parts ...any) string { // beside an error nothing is promised
		if err != nil {
			return class(err)
		}
		return fmt.Sprint(parts...)
	}
	steps := 20_000
	if testing.Short() {
		steps = 2000
	}
	var history []string
	for range steps {
		key := fmt.Sprint("k", rnd.IntN(3))
		op := store.Op{Nonce: fmt.Sprint("n", rnd.IntN(4)), Epoch: 1, Lease: alive}
		if rnd.IntN(3) == 0 {
			op.Lease = dead
		}
		if rnd.IntN(40) == 0 {
			op.Epoch = 0
		}
		var rec *store.Record
		if rnd.IntN(3) > 0 {
			r := live(fmt.Sprint("v", rnd.IntN(3)))
			rec = &r
		}
		cond := []store.Condition{store.Always, store.IfAbsent, store.IfPresent,
			store.IfVersion(store.VersionOf([]byte("v1"), 0))}[rnd.IntN(4)]
		version := uint64(rnd.IntN(4))
		what, n := "", rnd.IntN(16)
		run := func(st store.Store, w store.Workflow) string {
			switch n {
			case 0, 1, 2:
				what = "Begin"
				b, err := w.Begin(ctx, key, op)
				return answer(err, b.Took, b.Holds, ahead(b.Ahead))
			case 3:
				what = "Settle"
				b, err := w.Settle(ctx, key, op)
				return answer(err, b.Took, b.Holds, ahead(b.Ahead))
			case 4, 5:
				what = "Commit"
				return class(w.Commit(ctx, key, op, rec))
			case 6:
				what = "Withdraw"
				return class(w.Withdraw(ctx, key, op))
			case 7, 8:
				what = "WriteAhead"
				a, err := w.WriteAhead(ctx, key, op, rec, cond)
				return answer(err, ahead(a))
			case 9:
				what = "MarkAhead"
				a, err := w.MarkAhead(ctx, key, op)
				a.Existed = false // said of WriteAhead alone
				return answer(err, ahead(a))
			case 10:
				what = "Propagated"
				a, done, err := w.Propagated(ctx, key, op, version)
				if done {
					a = store.Ahead{}
				}
				return answer(err, ahead(a), done)
			case 11:
				what = "SaveLast"
				existed, err := w.SaveLast(ctx, key, op.Epoch, rec, cond)
				return answer(err, existed)
			case 12:
				what = "TouchMarked"
				present, m, err := w.TouchMarked(ctx, key, op.Epoch, time.Now().Add(time.Hour))
				return answer(err, present, m.Kind, m.Nonce, m.Version, m.Left > 0)
			case 13:
				what = "Copy"
				return class(w.Copy(ctx, key, op.Epoch, rec))
			case 14:
				what = "Add, Same"
				r := live("v1")
				e := []store.Entry{{Key: key, Record: &r}}
				added, err := w.Add(ctx, op.Epoch, e)
				if err != nil {
					return class(err)
				}
				same, err := w.Same(ctx, op.Epoch, []store.Entry{{Key: key, Record: rec}, {Key: "k0"}})
				return answer(err, added, same)
			default:
				what = "Remove"
				n, err := w.Remove(ctx, op.Epoch, []string{key, "k1"})
				return answer(err, n)
			}
		}
		state := func(w store.Workflow) string {
			r, m, err := w.LoadMarked(ctx, key)
			u, err2 := w.Unsettled(ctx, 0)
			return fmt.Sprint(" then ", text(r), m.Kind, m.Nonce, m.Version, err, u.Intents, u.Aheads, err2)
		}
		got := run(s, w) + state(w)
		want := run(m, ref) + state(ref)
		history = append(history, fmt.Sprintf("%s %s %+v %s %s %d: %s", what, key, op, text(rec), cond.Encode(), version, want))
		if got != want {
			t.Fatalf("got %s\nwant %s\nafter\n%s", got, want, strings.Join(history[max(0, len(history)-15):], "\n"))
		}
	}
	if got := server.Do("ZCARD", "sessile:intents:w"); got == nil {
		t.Error("no index")
	}
}
