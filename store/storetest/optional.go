package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// runOptional checks what the store can do besides. One that has the methods and always answers errors.ErrUnsupported, because
// of what it wraps or is part of, cannot do it.
func runOptional[S store.Store](t *testing.T, h Harness[S]) {
	s := h.New(t)
	if b, is := any(s).(store.Batcher); is && !errors.Is(b.SaveAll(context10(t), nil), errors.ErrUnsupported) {
		runBatcher(t, h)
	}
	if a, is := any(s).(store.Appender); is {
		_, err := a.Append(context10(t), h.key("probe"), nil, time.Now().Add(time.Minute))
		if !errors.Is(err, errors.ErrUnsupported) {
			runAppender(t, h)
		}
	}
}

func version(data string) store.Condition { return store.IfVersion(store.VersionOf([]byte(data), 0)) }

func runBatcher[S store.Store](t *testing.T, h Harness[S]) {
	key := func(word string) string { return "{t}" + h.key(word) } // all in one place
	saveAll := func(s S, writes ...store.Write) error {
		return any(s).(store.Batcher).SaveAll(context10(t), writes)
	}
	write := func(word, data string, cond store.Condition) store.Write {
		return store.Write{Key: key(word), Record: rec(data), Condition: cond}
	}
	for name, run := range map[string]func(t *testing.T, s S){
		"SaveAll saves all": func(t *testing.T, s S) {
			ok(t, "Save", s.Save(context10(t), key("old"), rec("session"), store.Always))
			ok(t, "Save", s.Save(context10(t), key("any"), rec("a long record"), store.Always))
			writes := []store.Write{write("new", "\x00\r\n\xff", store.IfAbsent), write("old", "marker", version("session")),
				write("any", "", store.IfPresent), write("none", "x", store.Always)}
			for i := range writes {
				writes[i].Record.Expires = time.Now().Add(time.Duration(i+1) * time.Hour)
			}
			ok(t, "SaveAll", saveAll(s, writes...))
			for _, w := range writes {
				want := string(w.Record.Data)
				for i := range w.Record.Data { // they are the caller's
					w.Record.Data[i] = 'X'
				}
				wantData(t, s, w.Key, want)
				wantDeadline(t, s, w.Key, w.Record.Expires)
			}
			ok(t, "SaveAll of one", saveAll(s, write("new", "y", version("\x00\r\n\xff"))))
			wantData(t, s, key("new"), "y")
			ok(t, "SaveAll of none", saveAll(s))
		},
		"SaveAll does nothing where one condition does not hold": func(t *testing.T, s S) {
			before := map[string]string{"a": "1", "b": "2"}
			for word, data := range before {
				ok(t, "Save", s.Save(context10(t), key(word), rec(data), store.Always))
			}
			fine := []store.Write{write("a", "one", version("1")), write("b", "two", store.IfPresent), write("c", "three", store.IfAbsent)}
			for i, broken := range map[int][]store.Condition{0: {store.IfAbsent, version("2"), version("")}, 1: {store.IfAbsent, version("1")},
				2: {store.IfPresent, version("3")}} {
				for _, cond := range broken {
					writes := slices.Clone(fine)
					writes[i].Condition = cond
					wantErr(t, fmt.Sprintf("SaveAll, write %d if %s", i, cond.Encode()), saveAll(s, writes...), store.ErrConflict)
					slices.Reverse(writes)
					wantErr(t, fmt.Sprintf("SaveAll the other way, write %d if %s", i, cond.Encode()), saveAll(s, writes...), store.ErrConflict)
				}
			}
			for word, data := range before {
				wantData(t, s, key(word), data)
			}
			wantAbsent(t, s, key("c"))
			ok(t, "SaveAll", saveAll(s, fine...))
			wantErr(t, "SaveAll again", saveAll(s, fine...), store.ErrConflict)
		},
		"SaveAll does nothing where one write is refused": func(t *testing.T, s S) {
			flags := rec("x")
			flags.Flags = 7
			bad := []store.Write{{Key: key("x"), Record: store.Record{Data: []byte("x")}},
				{Key: key("x"), Record: store.Record{Data: []byte("x"), Expires: time.Now().Add(-time.Second)}}, write("b", "twice", store.Always)}
			if !s.Capabilities().Flags {
				bad = append(bad, store.Write{Key: key("x"), Record: flags})
			}
			for _, k := range append([]string{""}, h.BadKeys...) {
				bad = append(bad, store.Write{Key: k, Record: rec("x")})
			}
			fine := []store.Write{write("a", "x", store.Always), write("b", "x", store.IfAbsent)}
			for i, w := range bad {
				for at := range len(fine) + 1 {
					wantErr(t, fmt.Sprintf("SaveAll with bad write %d at %d", i, at), saveAll(s, slices.Insert(slices.Clone(fine), at, w)...), store.ErrInvalid)
				}
			}
			for _, word := range []string{"a", "b", "x"} {
				wantAbsent(t, s, key(word))
			}
		},
		"SaveAll does nothing in a context that is over": func(t *testing.T, s S) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := any(s).(store.Batcher).SaveAll(ctx, []store.Write{write("a", "x", store.Always), write("b", "x", store.Always)})
			wantErr(t, "SaveAll", err, store.ErrUnavailable)
			wantAbsent(t, s, key("a"))
			wantAbsent(t, s, key("b"))
		},
		"of many SaveAll, any two of which have a key in common, one wins": func(t *testing.T, s S) {
			words := []string{"a", "b", "c"}
			for round := range 10 {
				was := fmt.Sprint("before ", round)
				for i, word := range words {
					if i < 2 || round%2 > 0 { // the last one is made anew in every other round
						ok(t, "Save", s.Save(context10(t), key(word), rec(was), store.Always))
					} else if _, err := s.Delete(context10(t), key(word), store.Always); err != nil {
						t.Fatal(err)
					}
				}
				cond := func(i int) store.Condition {
					if i == 2 && round%2 == 0 {
						return store.IfAbsent
					}
					return version(was)
				}
				var won atomic.Int32
				var winner atomic.Int64
				var wg sync.WaitGroup
				for n := range 9 {
					wg.Go(func() {
						one, two := n%3, (n+1)%3
						if n%2 > 0 { // nor does their order matter
							one, two = two, one
						}
						mine := fmt.Sprint("of ", n)
						err := saveAll(s, write(words[one], mine, cond(one)), write(words[two], mine, cond(two)))
						if err == nil {
							won.Add(1)
							winner.Store(int64(n))
						} else if !errors.Is(err, store.ErrConflict) {
							t.Errorf("SaveAll: %v", err)
						}
					})
				}
				wg.Wait()
				if won.Load() != 1 {
					t.Fatalf("round %d: %d won, want 1", round, won.Load())
				}
				n := int(winner.Load())
				for i, word := range words {
					switch {
					case i == n%3 || i == (n+1)%3:
						wantData(t, s, key(word), fmt.Sprint("of ", n))
					case i == 2 && round%2 == 0:
						wantAbsent(t, s, key(word))
					default:
						wantData(t, s, key(word), was)
					}
				}
			}
		},
		// There is no reading of two at once. But of two that are always counted up together, the one that is read later is not behind.
		"nobody sees a part of what SaveAll saves": func(t *testing.T, s S) {
			ok(t, "SaveAll", saveAll(s, write("a", "0", store.Always), write("b", "0", store.Always)))
			const rounds = 50
			var over atomic.Bool
			var wg sync.WaitGroup
			for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
				wg.Go(func() {
					for !over.Load() {
						var n [2]int
						for i, word := range order {
							got, err := s.Load(context10(t), key(word))
							if err != nil {
								t.Errorf("Load: %v", err)
								return
							}
							n[i], _ = strconv.Atoi(string(got.Data))
						}
						if n[1] < n[0] {
							t.Errorf("%s is %d, and %s still %d", order[0], n[0], order[1], n[1])
							return
						}
					}
				})
			}
			for i := range rounds {
				was, is := fmt.Sprint(i), fmt.Sprint(i+1)
				if err := saveAll(s, write("a", is, version(was)), write("b", is, version(was))); err != nil {
					t.Errorf("SaveAll: %v", err)
					break
				}
			}
			over.Store(true)
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) { run(t, h.New(t)) })
	}
}

func runAppender[S store.Store](t *testing.T, h Harness[S]) {
	add := func(s S, word, data string, expires time.Time) (store.Record, error) {
		return any(s).(store.Appender).Append(context10(t), h.key(word), []byte(data), expires)
	}
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	near := func(got, want time.Time) bool {
		return !got.Before(want.Add(-50*time.Millisecond)) && !got.After(want.Add(1100*time.Millisecond))
	}
	for name, run := range map[string]func(t *testing.T, s S){
		"Append makes a record, and adds to one": func(t *testing.T, s S) {
			want := ""
			for i, data := range []string{"one", "", "\x00\r\n\xff", strings.Repeat("long ", 3000), "end"} {
				want += data
				got, err := add(s, "list", data, in(time.Hour))
				if err != nil || string(got.Data) != want || !near(got.Expires, in(time.Hour)) {
					t.Fatalf("Append %d: got %d bytes until %v, %v, want %d bytes", i, len(got.Data), got.Expires, err, len(want))
				}
				got.Data = append(got.Data[:0], "XXX"...) // it is the caller's
				wantData(t, s, h.key("list"), want)
			}
			got, err := add(s, "empty", "", in(time.Hour))
			if err != nil || len(got.Data) != 0 {
				t.Errorf("Append of nothing to nothing: got %q, %v", got.Data, err)
			}
			wantData(t, s, h.key("empty"), "")
			ok(t, "Save", s.Save(context10(t), h.key("saved"), rec("a"), store.Always))
			if got, err := add(s, "saved", "b", in(time.Hour)); err != nil || string(got.Data) != "ab" {
				t.Errorf("Append to what was saved: got %q, %v", got.Data, err)
			}
		},
		"the version of what Append returns is that of what there is": func(t *testing.T, s S) {
			if !s.Capabilities().Conditional {
				t.Skip("nothing is compared")
			}
			for _, data := range []string{"a", "b"} {
				got, err := add(s, "version", data, in(time.Hour))
				ok(t, "Append", err)
				ok(t, "Save", s.Save(context10(t), h.key("version"), got, store.IfVersion(got.Version())))
			}
			wantData(t, s, h.key("version"), "ab")
		},
		"Append moves a deadline to later, never to sooner": func(t *testing.T, s S) {
			latest := time.Time{}
			for i, d := range []time.Duration{time.Hour, 3 * time.Hour, 2 * time.Hour, time.Minute, 4 * time.Hour} {
				expires := in(d)
				if latest.Before(expires) {
					latest = expires
				}
				got, err := add(s, "deadline", "x", expires)
				if err != nil || !near(got.Expires, latest) {
					t.Errorf("Append %d: got %v, %v, want %v", i, got.Expires, err, latest)
				}
				wantDeadline(t, s, h.key("deadline"), latest)
			}
		},
		"Append keeps the flags": func(t *testing.T, s S) {
			if !s.Capabilities().Flags {
				t.Skip("there are none")
			}
			r := rec("a")
			r.Flags = 5
			ok(t, "Save", s.Save(context10(t), h.key("flags"), r, store.Always))
			got, err := add(s, "flags", "b", in(time.Hour))
			if err != nil || string(got.Data) != "ab" || got.Flags != 5 {
				t.Errorf("Append: got %q, flags %d, %v", got.Data, got.Flags, err)
			}
			if got, err = s.Load(context10(t), h.key("flags")); err != nil || string(got.Data) != "ab" || got.Flags != 5 {
				t.Errorf("Load: got %q, flags %d, %v", got.Data, got.Flags, err)
			}
		},
		"of many who append, nobody is lost": func(t *testing.T, s S) {
			const workers, rounds = 8, 10
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := range rounds {
						mine := fmt.Sprintf("%d-%d;", w, i)
						got, err := add(s, "many", mine, in(time.Hour))
						if err != nil || !bytes.HasSuffix(got.Data, []byte(mine)) {
							t.Errorf("Append(%q): got %q, %v", mine, got.Data, err)
						}
					}
				})
			}
			wg.Wait()
			got, err := s.Load(context10(t), h.key("many"))
			ok(t, "Load", err)
			entries := strings.Split(strings.TrimSuffix(string(got.Data), ";"), ";")
			if slices.Sort(entries); len(entries) != workers*rounds || len(slices.Compact(entries)) != workers*rounds {
				t.Errorf("got %q", entries)
			}
		},
		"Append refuses what Save refuses, and does nothing": func(t *testing.T, s S) {
			ok(t, "Save", s.Save(context10(t), h.key("a"), rec("a"), store.Always))
			for _, expires := range []time.Time{{}, in(-time.Second)} {
				for _, word := range []string{"a", "none"} {
					_, err := add(s, word, "x", expires)
					wantErr(t, "Append until "+expires.String(), err, store.ErrInvalid)
				}
			}
			for _, key := range append([]string{""}, h.BadKeys...) {
				_, err := any(s).(store.Appender).Append(context10(t), key, []byte("x"), in(time.Hour))
				wantErr(t, fmt.Sprintf("Append(%q)", key), err, store.ErrInvalid)
				if err != nil && key != "" && strings.Contains(err.Error(), key) {
					t.Errorf("the error %q names the key", err)
				}
			}
			wantData(t, s, h.key("a"), "a")
			wantAbsent(t, s, h.key("none"))
		},
		"Append does nothing in a context that is over": func(t *testing.T, s S) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := any(s).(store.Appender).Append(ctx, h.key("ctx"), []byte("x"), in(time.Hour))
			wantErr(t, "Append", err, store.ErrUnavailable)
			wantAbsent(t, s, h.key("ctx"))
		},
	} {
		t.Run(name, func(t *testing.T) { run(t, h.New(t)) })
	}
}

// sealedOptional checks that nothing is done under a mark that is not there. What a store cannot do under any it says.
func sealedOptional(t *testing.T, under store.Store, key string) {
	t.Helper()
	var errs []error
	if b, is := under.(store.Batcher); is {
		errs = append(errs, b.SaveAll(context10(t), []store.Write{{Key: key, Record: rec("b")}}))
	}
	if a, is := under.(store.Appender); is {
		_, err := a.Append(context10(t), key, []byte("b"), time.Now().Add(time.Hour))
		errs = append(errs, err)
	}
	for i, err := range errs {
		if !errors.Is(err, store.ErrSealed) && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%d: got error %v, want ErrSealed or ErrUnsupported", i, err)
		}
	}
}
