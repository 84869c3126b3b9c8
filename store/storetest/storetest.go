// Package storetest is the conformance suite that every store passes, against its real server. Whoever writes a store
// calls Run (and RunOrigin, RunTarget) from a test; the names of the subtests are the sentences of the contract. A
// rule that a store broke once is a case here.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// Harness tells the suite how to make stores and keys.
type Harness[S store.Store] struct {
	// New makes an empty store, closed by the test's cleanup.
	New func(t *testing.T) S
	// Key turns a word of [a-z0-9] into a key that the store holds; nil: the word itself.
	Key func(word string) string
	// BadKeys are keys that this store refuses, besides the empty one.
	BadKeys []string
	// MaxValue is the largest value that the suite tries; 0: 1 MiB.
	MaxValue int
	// Sharded says that the target's memory is in parts, each of which can forget without the others: what was forgotten in
	// one, only operations on its keys find out, and Renew.
	Sharded bool
	// Beside makes another store on what s has, as another process would have it; nil: s itself is written to.
	Beside func(t *testing.T, s S) S
	// Grace is how late a record may go away after its deadline; 0: 2 s.
	Grace time.Duration
}

func (h Harness[S]) key(word string) string {
	if h.Key == nil {
		return word
	}
	return h.Key(word)
}

func (h Harness[S]) grace() time.Duration {
	if h.Grace == 0 {
		return 2 * time.Second
	}
	return h.Grace
}

func rec(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

func context10(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func wantData(t *testing.T, s store.Store, key, want string) {
	t.Helper()
	got, err := s.Load(context10(t), key)
	if err != nil || string(got.Data) != want {
		t.Errorf("Load: got %q, %v, want %q", got.Data, err, want)
	}
}

func wantAbsent(t *testing.T, s store.Store, key string) {
	t.Helper()
	if got, err := s.Load(context10(t), key); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load: got %q, %v, want ErrAbsent", got.Data, err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// saveAll saves records by their keys.
func saveAll(t *testing.T, s store.Store, data map[string]string) {
	t.Helper()
	each(slices.Collect(maps.Keys(data)), func(i int, key string) {
		if err := s.Save(context10(t), key, rec(data[key]), store.Always); err != nil {
			t.Errorf("Save: %v", err)
		}
	})
}

// each does something with keys, some at a time: a store may take a while for each.
func each(keys []string, do func(i int, key string)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)); i = next.Add(1) - 1 {
				do(int(i), keys[i])
			}
		})
	}
	wg.Wait()
}

// eventually waits for a condition with a deadline.
func eventually(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// Run checks the contract of store.Store.
func Run[S store.Store](t *testing.T, h Harness[S]) {
	caps, bulk, tracking := func() (store.Capabilities, bool, bool) {
		s := h.New(t)
		_, bulk := any(s).(store.BulkReader)
		return s.Capabilities(), bulk, tracks(t, s)
	}()
	type test struct {
		name string
		need bool
		run  func(t *testing.T, s S)
	}
	for _, tc := range []test{
		{"what was never saved is absent", true, func(t *testing.T, s S) {
			wantAbsent(t, s, h.key("never"))
			existed, err := s.Delete(context10(t), h.key("never"), store.Always)
			if existed || err != nil {
				t.Errorf("Delete of nothing: got %v, %v, want false, nil", existed, err)
			}
			wantErr(t, "Touch of nothing", s.Touch(context10(t), h.key("never"), time.Now().Add(time.Hour)), store.ErrAbsent)
			wantAbsent(t, s, h.key("never"))
		}},
		{"what was saved is loaded byte for byte", true, func(t *testing.T, s S) {
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			for i, data := range []string{"x", string(all), "\r\n", "\x00", strings.Repeat("long ", 3000)} {
				key := h.key(fmt.Sprint("bytes", i))
				ok(t, "Save", s.Save(context10(t), key, rec(data), store.Always))
				wantData(t, s, key, data)
			}
		}},
		{"an empty record is not an absent one", true, func(t *testing.T, s S) {
			ok(t, "Save", s.Save(context10(t), h.key("empty"), rec(""), store.Always))
			wantData(t, s, h.key("empty"), "")
			existed, err := s.Delete(context10(t), h.key("empty"), store.Always)
			if !existed || err != nil {
				t.Errorf("Delete: got %v, %v, want true, nil", existed, err)
			}
			wantAbsent(t, s, h.key("empty"))
		}},
		{"a shorter record replaces a longer one wholly", true, func(t *testing.T, s S) {
			for _, data := range []string{"a long record", "short", "", "longer again"} {
				ok(t, "Save", s.Save(context10(t), h.key("len"), rec(data), store.Always))
				wantData(t, s, h.key("len"), data)
			}
		}},
		{"the largest value fits", true, func(t *testing.T, s S) {
			n := h.MaxValue
			if n == 0 {
				n = 1 << 20
			}
			data := strings.Repeat("v", n)
			ok(t, "Save", s.Save(context10(t), h.key("big"), rec(data), store.Always))
			wantData(t, s, h.key("big"), data)
		}},
		{"the store does not keep the caller's bytes, and gives its own away", true, func(t *testing.T, s S) {
			r := rec("mine")
			ok(t, "Save", s.Save(context10(t), h.key("alias"), r, store.Always))
			r.Data[0] = 'X'
			got, err := s.Load(context10(t), h.key("alias"))
			ok(t, "Load", err)
			got.Data[0] = 'Y'
			wantData(t, s, h.key("alias"), "mine")
		}},
		{"Inspect knows the deadline", true, func(t *testing.T, s S) {
			r := rec("timed")
			ok(t, "Save", s.Save(context10(t), h.key("timed"), r, store.Always))
			wantDeadline(t, s, h.key("timed"), r.Expires)
		}},
		{"InspectAll is Inspect of each", bulk, func(t *testing.T, s S) {
			large := strings.Repeat("x", cmp.Or(h.MaxValue, 1<<20)/4)
			var keys []string
			there := map[string]string{}
			for i := range 600 {
				key := h.key(fmt.Sprintf("bulk%d", i))
				keys = append(keys, key)
				switch {
				case i%3 == 0: // absent
				case i%100 == 1:
					there[key] = large
				default:
					there[key] = key
				}
			}
			saveAll(t, s, there)
			all, err := any(s).(store.BulkReader).InspectAll(context10(t), keys)
			ok(t, "InspectAll", err)
			if len(all) != len(keys) {
				t.Fatalf("%d answers for %d keys", len(all), len(keys))
			}
			each(keys, func(i int, key string) {
				got := all[i]
				want, err := s.Inspect(context10(t), key)
				switch {
				case errors.Is(err, store.ErrAbsent) && got == nil:
				case err != nil || got == nil || !bytes.Equal(got.Data, want.Data) || got.Expires.Sub(want.Expires).Abs() > time.Second:
					t.Errorf("%s: got %v, Inspect answers %d bytes, %v", key, got != nil, len(want.Data), err)
				}
			})
			if all, err := any(s).(store.BulkReader).InspectAll(context10(t), nil); len(all) != 0 || err != nil {
				t.Errorf("of no keys: %d, %v", len(all), err)
			}
		}},
		{"Touch moves the deadline and nothing else", true, func(t *testing.T, s S) {
			ok(t, "Save", s.Save(context10(t), h.key("touch"), rec("data"), store.Always))
			later := time.Now().Add(2 * time.Hour)
			ok(t, "Touch", s.Touch(context10(t), h.key("touch"), later))
			wantDeadline(t, s, h.key("touch"), later)
			wantData(t, s, h.key("touch"), "data")
			sooner := time.Now().Add(30 * time.Minute)
			ok(t, "Touch", s.Touch(context10(t), h.key("touch"), sooner))
			wantDeadline(t, s, h.key("touch"), sooner)
		}},
		{"a record without a deadline, or past it, is refused", true, func(t *testing.T, s S) {
			ok(t, "Save", s.Save(context10(t), h.key("dl"), rec("old"), store.Always))
			for _, expires := range []time.Time{{}, time.Now().Add(-time.Second)} {
				err := s.Save(context10(t), h.key("dl"), store.Record{Data: []byte("new"), Expires: expires}, store.Always)
				wantErr(t, "Save", err, store.ErrInvalid)
				wantErr(t, "Touch", s.Touch(context10(t), h.key("dl"), expires), store.ErrInvalid)
			}
			wantData(t, s, h.key("dl"), "old")
		}},
		{"a record is absent after its deadline", caps.NativeTTL, func(t *testing.T, s S) {
			r := rec("short-lived")
			r.Expires = time.Now().Add(300 * time.Millisecond)
			ok(t, "Save", s.Save(context10(t), h.key("ttl"), r, store.Always))
			wantData(t, s, h.key("ttl"), "short-lived")
			eventually(t, h.grace(), "absent", func() bool {
				_, err := s.Load(context10(t), h.key("ttl"))
				return errors.Is(err, store.ErrAbsent)
			})
			if early := time.Until(r.Expires); early > 0 {
				t.Errorf("gone %v before its deadline", early)
			}
			wantErr(t, "Save IfPresent", s.Save(context10(t), h.key("ttl"), rec("x"), store.IfPresent), store.ErrConflict)
		}},
		{"an overdue record lives until it is collected", caps.LazyExpiry, func(t *testing.T, s S) {
			r := rec("overdue")
			r.Expires = time.Now().Add(50 * time.Millisecond)
			ok(t, "Save", s.Save(context10(t), h.key("lazy"), r, store.Always))
			eventually(t, h.grace(), "overdue", func() bool { return time.Now().After(r.Expires) })
			got, err := s.Load(context10(t), h.key("lazy"))
			if err != nil || string(got.Data) != "overdue" || got.Expires.After(time.Now()) {
				t.Errorf("Load: got %q until %v, %v", got.Data, got.Expires, err)
			}
			ok(t, "Touch", s.Touch(context10(t), h.key("lazy"), time.Now().Add(time.Hour)))
		}},
		{"a refused key is ErrInvalid and touches nothing", true, func(t *testing.T, s S) {
			for _, key := range append([]string{""}, h.BadKeys...) {
				_, err := s.Load(context10(t), key)
				wantErr(t, fmt.Sprintf("Load(%q)", key), err, store.ErrInvalid)
				_, err = s.Inspect(context10(t), key)
				wantErr(t, fmt.Sprintf("Inspect(%q)", key), err, store.ErrInvalid)
				wantErr(t, fmt.Sprintf("Save(%q)", key), s.Save(context10(t), key, rec("x"), store.Always), store.ErrInvalid)
				wantErr(t, fmt.Sprintf("Touch(%q)", key), s.Touch(context10(t), key, time.Now().Add(time.Hour)), store.ErrInvalid)
				_, err = s.Delete(context10(t), key, store.Always)
				wantErr(t, fmt.Sprintf("Delete(%q)", key), err, store.ErrInvalid)
				if err != nil && key != "" && strings.Contains(err.Error(), key) {
					t.Errorf("the error %q names the key", err)
				}
			}
		}},
		{"Save obeys its condition", caps.Conditional, func(t *testing.T, s S) {
			key := h.key("cond")
			save := func(data string, c store.Condition) error { return s.Save(context10(t), key, rec(data), c) }
			wantErr(t, "IfPresent on nothing", save("a", store.IfPresent), store.ErrConflict)
			wantErr(t, "IfVersion on nothing", save("a", store.IfVersion(store.VersionOf([]byte("z"), 0))), store.ErrConflict)
			wantAbsent(t, s, key)
			ok(t, "IfAbsent on nothing", save("a", store.IfAbsent))
			wantErr(t, "IfAbsent on something", save("b", store.IfAbsent), store.ErrConflict)
			wantData(t, s, key, "a")
			ok(t, "IfPresent", save("b", store.IfPresent))
			wantErr(t, "IfVersion of what was", save("c", store.IfVersion(store.VersionOf([]byte("a"), 0))), store.ErrConflict)
			ok(t, "IfVersion of what is", save("", store.IfVersion(store.VersionOf([]byte("b"), 0))))
			ok(t, "IfVersion of the empty record", save("d", store.IfVersion(store.VersionOf(nil, 0))))
			wantData(t, s, key, "d")
			wantErr(t, "IfVersion(Absent)", save("e", store.IfVersion(store.Absent)), store.ErrConflict)
		}},
		{"Delete obeys its condition", caps.Conditional, func(t *testing.T, s S) {
			key := h.key("delcond")
			ok(t, "Save", s.Save(context10(t), key, rec("a"), store.Always))
			_, err := s.Delete(context10(t), key, store.IfVersion(store.VersionOf([]byte("b"), 0)))
			wantErr(t, "Delete of another version", err, store.ErrConflict)
			wantData(t, s, key, "a")
			existed, err := s.Delete(context10(t), key, store.IfVersion(store.VersionOf([]byte("a"), 0)))
			if !existed || err != nil {
				t.Errorf("Delete: got %v, %v", existed, err)
			}
			wantAbsent(t, s, key)
		}},
		{"of many who save on one version, one wins", caps.Conditional, func(t *testing.T, s S) {
			key := h.key("race")
			ok(t, "Save", s.Save(context10(t), key, rec("0"), store.Always))
			for round := range 10 {
				at := store.VersionOf([]byte(fmt.Sprint(round)), 0)
				var won atomic.Int32
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						switch err := s.Save(context10(t), key, rec(fmt.Sprint(round+1)), store.IfVersion(at)); {
						case err == nil:
							won.Add(1)
						case !errors.Is(err, store.ErrConflict):
							t.Errorf("Save: %v", err)
						}
					})
				}
				wg.Wait()
				if won.Load() != 1 {
					t.Fatalf("round %d: %d won, want 1", round, won.Load())
				}
			}
		}},
		{"Scan returns every key that stays", caps.Scan, func(t *testing.T, s S) {
			want := map[string]string{}
			for i := range 257 {
				want[h.key(fmt.Sprintf("scan%03d", i))] = "x"
			}
			saveAll(t, s, want)
			seen := map[string]bool{}
			for cursor, steps := "", 0; ; steps++ {
				page, err := s.Scan(context10(t), cursor, 50)
				ok(t, "Scan", err)
				for _, key := range page.Keys {
					if want[key] == "" {
						t.Errorf("Scan returned %q, which nobody saved", key)
					}
					seen[key] = true
				}
				if cursor = page.Cursor; cursor == "" || steps > 10000 {
					break
				}
			}
			if len(seen) != len(want) {
				t.Errorf("Scan returned %d keys, want %d", len(seen), len(want))
			}
		}},
		{"a lock excludes lockers, not reads and writes", caps.Lock, func(t *testing.T, s S) {
			key := h.key("lock")
			ok(t, "Save", s.Save(context10(t), key, rec("a"), store.Always))
			ok(t, "Lock", s.Lock(context10(t), key, "one", time.Minute))
			wantErr(t, "Lock by another", s.Lock(soon(t), key, "two", time.Minute), store.ErrLocked)
			wantErr(t, "Lock by the same token", s.Lock(soon(t), key, "one", time.Minute), store.ErrLocked)
			wantData(t, s, key, "a")
			ok(t, "Save", s.Save(context10(t), key, rec("b"), store.Always))
			wantData(t, s, key, "b")
			if token, _, err := s.LockHolder(context10(t), key); token != "one" || err != nil {
				t.Errorf("LockHolder: got %q, %v", token, err)
			}
			if held, err := s.Unlock(context10(t), key, "two"); held || err != nil {
				t.Errorf("Unlock by another: got %v, %v", held, err)
			}
			if held, err := s.Unlock(context10(t), key, "one"); !held || err != nil {
				t.Errorf("Unlock: got %v, %v", held, err)
			}
			if held, err := s.Unlock(context10(t), key, "one"); held || err != nil {
				t.Errorf("Unlock again: got %v, %v", held, err)
			}
			if token, _, err := s.LockHolder(context10(t), key); token != "" || err != nil {
				t.Errorf("LockHolder of a free lock: got %q, %v", token, err)
			}
		}},
		{"a lock on an absent session makes no session", caps.Lock, func(t *testing.T, s S) {
			key := h.key("lockabsent")
			ok(t, "Lock", s.Lock(context10(t), key, "one", time.Minute))
			wantAbsent(t, s, key)
			if caps.Conditional {
				ok(t, "Save IfAbsent", s.Save(context10(t), key, rec("a"), store.IfAbsent))
				wantData(t, s, key, "a")
			}
			_, err := s.Unlock(context10(t), key, "one")
			ok(t, "Unlock", err)
			ok(t, "Lock", s.Lock(context10(t), h.key("lockonly"), "one", time.Minute))
			_, err = s.Unlock(context10(t), h.key("lockonly"), "one")
			ok(t, "Unlock", err)
			wantAbsent(t, s, h.key("lockonly"))
		}},
		{"a destroyed session can be made again under its lock", caps.Lock, func(t *testing.T, s S) {
			key := h.key("lockdel")
			ok(t, "Save", s.Save(context10(t), key, rec("a"), store.Always))
			ok(t, "Lock", s.Lock(context10(t), key, "one", time.Minute))
			_, err := s.Delete(context10(t), key, store.Always)
			ok(t, "Delete", err)
			wantAbsent(t, s, key)
			wantErr(t, "Lock by another", s.Lock(soon(t), key, "two", time.Minute), store.ErrLocked)
			ok(t, "Save", s.Save(context10(t), key, rec("b"), store.Always))
			wantData(t, s, key, "b")
			_, err = s.Unlock(context10(t), key, "one")
			ok(t, "Unlock", err)
			wantData(t, s, key, "b")
			ok(t, "Lock", s.Lock(context10(t), key, "two", time.Minute))
		}},
		{"a lock ends with its life", caps.Lock, func(t *testing.T, s S) {
			ok(t, "Lock", s.Lock(context10(t), h.key("life"), "one", 200*time.Millisecond))
			ok(t, "Lock by another, waiting", s.Lock(context10(t), h.key("life"), "two", time.Minute))
			if held, err := s.Unlock(context10(t), h.key("life"), "one"); held || err != nil {
				t.Errorf("Unlock by the late one: got %v, %v", held, err)
			}
			if token, _, _ := s.LockHolder(context10(t), h.key("life")); token != "two" {
				t.Errorf("LockHolder: got %q, want two", token)
			}
		}},
		{"lockers take turns and lose no update", caps.Lock, func(t *testing.T, s S) {
			key := h.key("turns")
			ok(t, "Save", s.Save(context10(t), key, rec("0"), store.Always))
			var wg sync.WaitGroup
			const workers, rounds = 6, 10
			for w := range workers {
				wg.Go(func() {
					for range rounds {
						token := fmt.Sprint("w", w)
						if err := s.Lock(context10(t), key, token, time.Minute); err != nil {
							t.Errorf("Lock: %v", err)
							return
						}
						got, err := s.Load(context10(t), key)
						if err != nil {
							t.Errorf("Load: %v", err)
						}
						var n int
						fmt.Sscan(string(got.Data), &n)
						if err := s.Save(context10(t), key, rec(fmt.Sprint(n+1)), store.Always); err != nil {
							t.Errorf("Save: %v", err)
						}
						if _, err := s.Unlock(context10(t), key, token); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
			wg.Wait()
			wantData(t, s, key, fmt.Sprint(workers*rounds))
		}},
		{"a context that is over does nothing", true, func(t *testing.T, s S) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := s.Save(ctx, h.key("ctx"), rec("x"), store.Always)
			wantErr(t, "Save", err, store.ErrUnavailable)
			if _, err := s.Load(ctx, h.key("ctx")); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Load: got %v, want ErrUnavailable", err)
			}
			wantAbsent(t, s, h.key("ctx"))
		}},
		{"what a store cannot do it refuses", true, func(t *testing.T, s S) {
			if !caps.Scan {
				_, err := s.Scan(context10(t), "", 1)
				wantErr(t, "Scan", err, errors.ErrUnsupported)
			}
			if !caps.Lock {
				wantErr(t, "Lock", s.Lock(context10(t), h.key("l"), "t", time.Second), errors.ErrUnsupported)
			}
			if !caps.Conditional {
				wantErr(t, "Save", s.Save(context10(t), h.key("l"), rec("x"), store.IfAbsent), errors.ErrUnsupported)
			}
			if !caps.Flags {
				r := rec("x")
				r.Flags = 7
				wantErr(t, "Save with flags", s.Save(context10(t), h.key("l"), r, store.Always), store.ErrInvalid)
			}
		}},
		{"flags are kept", caps.Flags, func(t *testing.T, s S) {
			k := h.key("flags")
			want := func(step, data string, flags uint32) {
				t.Helper()
				got, err := s.Load(context10(t), k)
				if err != nil || string(got.Data) != data || got.Flags != flags {
					t.Errorf("%s: Load: got %q, flags %d, %v, want %q, %d", step, got.Data, got.Flags, err, data, flags)
				}
				if got, err = s.Inspect(context10(t), k); err != nil || string(got.Data) != data || got.Flags != flags {
					t.Errorf("%s: Inspect: got %q, flags %d, %v, want %q, %d", step, got.Data, got.Flags, err, data, flags)
				}
				if b, is := any(s).(store.BulkReader); is {
					all, err := b.InspectAll(context10(t), []string{h.key("none"), k})
					if err != nil || all[0] != nil || all[1] == nil || all[1].Flags != flags {
						t.Errorf("%s: InspectAll: got %+v, %v, want flags %d", step, all, err, flags)
					}
				}
			}
			save := func(data string, flags uint32, cond store.Condition) error {
				return s.Save(context10(t), k, store.Record{Data: []byte(data), Flags: flags, Expires: time.Now().Add(time.Minute)}, cond)
			}
			ok(t, "Save", save("x", 1<<32-1, store.Always))
			want("at first", "x", 1<<32-1)
			ok(t, "Save", save("x", 5, store.Always))
			want("the same data", "x", 5)
			ok(t, "Touch", s.Touch(context10(t), k, time.Now().Add(time.Hour)))
			want("with another deadline", "x", 5)
			if caps.Conditional {
				wantErr(t, "Save over other flags", save("y", 7, store.IfVersion(store.VersionOf([]byte("x"), 0))), store.ErrConflict)
				_, err := s.Delete(context10(t), k, store.IfVersion(store.VersionOf([]byte("x"), 6)))
				wantErr(t, "Delete of other flags", err, store.ErrConflict)
				wantErr(t, "Save onto something", save("y", 7, store.IfAbsent), store.ErrConflict)
				want("nothing done", "x", 5)
				ok(t, "Save", save("x", 6, store.IfVersion(store.VersionOf([]byte("x"), 5))))
				want("over a version", "x", 6)
			}
			ok(t, "Save", save("x", 0, store.Always))
			want("without", "x", 0)
			ok(t, "Save", save("", 9, store.Always))
			want("of nothing", "", 9)
			_, err := s.Delete(context10(t), k, store.Always)
			ok(t, "Delete", err)
			wantAbsent(t, s, k)
			ok(t, "Save", save("", 0, store.Always))
			want("behind a delete", "", 0)
		}},
		{"Close may be called twice", true, func(t *testing.T, s S) {
			ok(t, "Close", s.Close())
			ok(t, "Close again", s.Close())
		}},
	} {
		if tc.need {
			t.Run(tc.name, func(t *testing.T) { tc.run(t, h.New(t)) })
		}
	}
	if tracking {
		runTracker(t, h)
	}
	runOptional(t, h)
}

// soon is the patience of a locker who shall not get the lock.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond) // a busy machine takes some of it
	t.Cleanup(cancel)
	return ctx
}

// wantDeadline allows for a second's rounding up, and for none down but what passes between two clocks' readings.
func wantDeadline(t *testing.T, s store.Store, key string, want time.Time) {
	t.Helper()
	got, err := s.Inspect(context10(t), key)
	if err != nil || got.Expires.Before(want.Add(-50*time.Millisecond)) || got.Expires.After(want.Add(1100*time.Millisecond)) {
		t.Errorf("Inspect: got deadline %v, %v, want %v", got.Expires, err, want)
	}
}

// RunOrigin checks the contract of store.Origin, Run's included.
func RunOrigin[S store.Origin](t *testing.T, h Harness[S]) {
	Run(t, h)
	mark := store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: 3, Floor: store.FloorSync}}
	t.Run("a new origin has the zero mark", func(t *testing.T) {
		got, err := h.New(t).Mark(context10(t))
		if err != nil || got != (store.Mark{}) {
			t.Errorf("Mark: got %v, %v", got, err)
		}
	})
	t.Run("the mark is changed by compare-and-set on all of it", func(t *testing.T) {
		s := h.New(t)
		ok(t, "SwapMark", s.SwapMark(context10(t), store.Mark{}, mark))
		wantErr(t, "SwapMark again", s.SwapMark(context10(t), store.Mark{}, mark), store.ErrConflict)
		other := mark
		other.Seal.Epoch++
		wantErr(t, "SwapMark of another epoch", s.SwapMark(context10(t), other, store.Mark{}), store.ErrConflict)
		if got, err := s.Mark(context10(t)); got != mark || err != nil {
			t.Errorf("Mark: got %v, %v, want %v", got, err, mark)
		}
		ok(t, "SwapMark", s.SwapMark(context10(t), mark, other))
		if got, err := s.Mark(context10(t)); got != other || err != nil {
			t.Errorf("Mark: got %v, %v, want %v", got, err, other)
		}
	})
	t.Run("of many who swap the mark, one wins", func(t *testing.T) {
		s := h.New(t)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if s.SwapMark(context10(t), store.Mark{}, store.Mark{Identity: fmt.Sprint(i)}) == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d won, want 1", won.Load())
		}
	})
	t.Run("a write under another mark does not happen", func(t *testing.T) {
		s := h.New(t)
		none, under := s.Under(store.Mark{}), s.Under(mark)
		ok(t, "Save under no mark", none.Save(context10(t), h.key("u"), rec("a"), store.Always))
		wantErr(t, "Save under a mark that is not there", under.Save(context10(t), h.key("u"), rec("b"), store.Always), store.ErrSealed)
		ok(t, "SwapMark", s.SwapMark(context10(t), store.Mark{}, mark))
		wantErr(t, "Save", none.Save(context10(t), h.key("u"), rec("b"), store.Always), store.ErrSealed)
		wantErr(t, "Touch", none.Touch(context10(t), h.key("u"), time.Now().Add(time.Hour)), store.ErrSealed)
		_, err := none.Delete(context10(t), h.key("u"), store.Always)
		wantErr(t, "Delete", err, store.ErrSealed)
		sealedOptional(t, none, h.key("u"))
		wantData(t, none, h.key("u"), "a")
		ok(t, "Save under it", under.Save(context10(t), h.key("u"), rec("c"), store.Always))
		wantData(t, s, h.key("u"), "c")
		ok(t, "Save under nothing", s.Save(context10(t), h.key("u"), rec("d"), store.Always))
	})
	t.Run("the mark is no session", func(t *testing.T) {
		s := h.New(t)
		ok(t, "SwapMark", s.SwapMark(context10(t), store.Mark{}, mark))
		if s.Capabilities().Scan {
			page, err := s.Scan(context10(t), "", 10)
			if err != nil || len(page.Keys) != 0 {
				t.Errorf("Scan: got %q, %v", page.Keys, err)
			}
		}
	})
}

// same reports whether got is the record want, by data.
func same(got *store.Record, want string) bool {
	return got != nil && bytes.Equal(got.Data, []byte(want))
}

// sorted is a helper for comparing sets of keys.
func sorted(keys []string) []string { slices.Sort(keys); return keys }
