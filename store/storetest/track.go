package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// tracks reports whether s says what changes.
func tracks(t *testing.T, s store.Store) bool {
	t.Helper()
	tr, is := s.(store.Tracker)
	if !is {
		return false
	}
	_, stop, err := tr.Track(func(string) {})
	if errors.Is(err, errors.ErrUnsupported) {
		return false
	}
	ok(t, "Track", err)
	stop()
	return true
}

// told is how late the news of a change may come.
const told = 5 * time.Second

// A near keeps a copy of one record until it hears that it is not good any more: what a Tracker is there for. One get at a time
// loads, so that no older copy takes the place of a newer one.
type near struct {
	key  string
	load func(context.Context, string) (store.Record, error)

	loading sync.Mutex
	mu      sync.Mutex // guards what follows
	news    int        // how often it has heard of the record

	copy *store.Record
}

func newNear(t *testing.T, s store.Store, key string) *near {
	t.Helper()
	n := &near{key: key}
	load, stop, err := s.(store.Tracker).Track(n.changed)
	ok(t, "Track", err)
	t.Cleanup(stop)
	n.load = load
	return n
}

func (n *near) changed(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if key == "" || key == n.key {
		n.news++
		n.copy = nil
	}
}

func (n *near) heard() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.news
}

func (n *near) get(ctx context.Context) (store.Record, error) {
	n.loading.Lock()
	defer n.loading.Unlock()
	n.mu.Lock()
	kept, news := n.copy, n.news
	n.mu.Unlock()
	if kept != nil {
		return *kept, nil
	}
	rec, err := n.load(ctx, n.key)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil && n.news == news { // otherwise it is not good any more already
		n.copy = &rec
	}
	return rec, err
}

// runTracker checks the contract of store.Tracker.
func runTracker[S store.Store](t *testing.T, h Harness[S]) {
	both := func(t *testing.T) (s, other S) {
		s = h.New(t)
		if h.Beside == nil {
			return s, s
		}
		return s, h.Beside(t, s)
	}
	want := func(t *testing.T, n *near, data string) {
		t.Helper()
		if got, err := n.get(context10(t)); err != nil || string(got.Data) != data {
			t.Errorf("a load after the news: got %q, %v, want %q", got.Data, err, data)
		}
	}
	t.Run("what others do to a record that was loaded is told", func(t *testing.T) {
		s, other := both(t)
		key := h.key("told")
		n := newNear(t, s, key)
		ok(t, "Save", s.Save(context10(t), key, rec("0"), store.Always))
		data := "0"
		for _, change := range []struct {
			what, leaves string
			do           func() error
		}{
			{"Save", "1", func() error { return other.Save(context10(t), key, rec("1"), store.Always) }},
			{"Save if it is there", "2", func() error { return other.Save(context10(t), key, rec("2"), store.IfPresent) }},
			{"Save of a version", "3", func() error {
				return other.Save(context10(t), key, rec("3"), store.IfVersion(store.VersionOf([]byte("2"), 0)))
			}},
			{"SaveAll", "4", func() error {
				b, is := any(other).(store.Batcher)
				if !is {
					return errors.ErrUnsupported
				}
				return b.SaveAll(context10(t), []store.Write{{Key: key, Record: rec("4"), Condition: store.IfPresent}})
			}},
			{"Append", "45", func() error {
				a, is := any(other).(store.Appender)
				if !is {
					return errors.ErrUnsupported
				}
				_, err := a.Append(context10(t), key, []byte("5"), time.Now().Add(time.Hour))
				return err
			}},
			{"a Save of its own", "6", func() error { return s.Save(context10(t), key, rec("6"), store.Always) }},
			{"Delete", "", func() error { _, err := other.Delete(context10(t), key, store.Always); return err }},
		} {
			want(t, n, data)
			before := n.heard()
			err := change.do()
			if errors.Is(err, errors.ErrUnsupported) {
				ok(t, "Save instead", other.Save(context10(t), key, rec(change.leaves), store.Always))
				err = nil
			}
			ok(t, change.what, err)
			eventually(t, told, "the news of "+change.what, func() bool { return n.heard() > before })
			data = change.leaves
		}
		if got, err := n.get(context10(t)); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("a load after the news of Delete: got %q, %v, want ErrAbsent", got.Data, err)
		}
		ok(t, "Save", other.Save(context10(t), key, rec("7"), store.IfAbsent))
		want(t, n, "7")
	})
	t.Run("load is Load", func(t *testing.T) {
		s := h.New(t)
		n := newNear(t, s, h.key("absent"))
		_, err := n.get(context10(t))
		wantErr(t, "load of nothing", err, store.ErrAbsent)
		_, err = n.load(context10(t), "")
		wantErr(t, "load of the empty key", err, store.ErrInvalid)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = n.load(ctx, n.key)
		wantErr(t, "load under a context that is over", err, store.ErrUnavailable)
	})
	t.Run("who has stopped is told nothing, the others are", func(t *testing.T) {
		s, other := both(t)
		key := h.key("stopped")
		n := newNear(t, s, key)
		var calls int // after stop it is nobody else's
		load, stop, err := any(s).(store.Tracker).Track(func(string) { calls++ })
		ok(t, "Track", err)
		ok(t, "Save", s.Save(context10(t), key, rec("0"), store.Always))
		_, err = load(context10(t), key)
		ok(t, "load", err)
		want(t, n, "0")
		stop()
		stop()
		before, was := n.heard(), calls
		ok(t, "Save", other.Save(context10(t), key, rec("1"), store.Always))
		eventually(t, told, "the news for the other one", func() bool { return n.heard() > before })
		if calls != was {
			t.Errorf("%d calls after stop", calls-was)
		}
		_, err = load(context10(t), key)
		ok(t, "a load after stop", err)
	})
	t.Run("in a storm copies never go backwards, and the last one is the last", func(t *testing.T) {
		s, other := both(t)
		var wg sync.WaitGroup
		for k := range 3 {
			key := h.key(fmt.Sprint("storm", k))
			ok(t, "Save", s.Save(context10(t), key, rec("0"), store.Always))
			n := newNear(t, s, key)
			written, last := make(chan struct{}), 0
			wg.Go(func() {
				defer close(written)
				for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); last++ {
					if err := other.Save(context10(t), key, rec(strconv.Itoa(last+1)), store.Always); err != nil {
						t.Errorf("Save: %v", err)
						return
					}
				}
			})
			wg.Go(func() {
				seen, reads := 0, 0
				look := func() bool {
					got, err := n.get(context10(t))
					v, bad := strconv.Atoi(string(got.Data))
					if err != nil || bad != nil || v < seen {
						t.Errorf("got %q, %v after %d", got.Data, err, seen)
						return false
					}
					seen, reads = v, reads+1
					return true
				}
				for done := false; !done; {
					select {
					case <-written:
						done = true
					default:
					}
					if !look() {
						return
					}
				}
				for end := time.Now().Add(told); seen < last; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("the copy is %d still, %d was written", seen, last)
						return
					}
					if !look() {
						return
					}
				}
				t.Logf("%d writes, %d reads, %d times news", last, reads, n.heard())
			})
		}
		wg.Wait()
	})
}
