package redis

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

func (w *window) get(key string) *entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.entries[key]
}

// check compares what w counts with what it has.
func (w *window) check(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	n, bytes := 0, 0
	for _, c := range []*chain{&w.values, &w.graves} {
		for e, last := c.oldest, (*entry)(nil); e != nil; e, last = e.next, e {
			if n, bytes = n+1, bytes+e.size(); w.entries[e.key] != e || e.prev != last || e.next == nil && c.newest != e || w.chain(e) != c {
				t.Fatalf("%q is not where it belongs", e.key)
			}
		}
	}
	if n != len(w.entries) || bytes != w.bytes {
		t.Errorf("%d entries of %d bytes in order, want %d of %d", n, bytes, len(w.entries), w.bytes)
	}
}

func TestAWindowKnowsWhatIsOlder(t *testing.T) {
	in := time.Now().Add(time.Hour)
	type op func(w *window)
	now := func() time.Time { time.Sleep(time.Millisecond); return time.Now() }
	save := func(data, base string) op {
		return func(w *window) {
			sum := uint64(0)
			if base != "" {
				sum = w.sum([]byte(base))
			}
			w.saved("k", []byte(data), in, now(), sum)
		}
	}
	saveOver := func(data, version string) op {
		return func(w *window) { w.saved("k", []byte(data), in, now(), sumOf(versionOf(version))) }
	}
	del := func(data string) op {
		return func(w *window) {
			v := store.Absent
			if data != "" {
				v = versionOf(data)
			}
			w.deleted("k", now(), v, 7)
		}
	}
	touch := func(w *window) { w.touched("k", in, now()) }
	for name, tc := range map[string]struct {
		ops          []op
		did          deed
		data         string
		older, never string // values, in characters
	}{
		"one":                       {[]op{save("1", "")}, saved, "1", "", "1"},
		"its own":                   {[]op{save("1", ""), save("2", ""), save("3", "")}, saved, "3", "12", "3"},
		"what was read":             {[]op{save("2", "1")}, saved, "2", "1", "2"},
		"what was compared":         {[]op{saveOver("2", "1")}, saved, "2", "1", "2"},
		"the same again":            {[]op{save("1", ""), save("1", "1")}, saved, "1", "", "12"},
		"a delete":                  {[]op{save("1", ""), del("2")}, deleted, "", "12", "3"},
		"a delete of what was ours": {[]op{save("1", ""), del("1")}, deleted, "", "1", "2"},
		"a delete of nothing":       {[]op{del("")}, deleted, "", "", "1"},
		"made again":                {[]op{save("1", ""), del("1"), save("2", "")}, saved, "2", "1", "2"},
		"touched":                   {[]op{touch}, touched, "", "", "1"},
		"saved, touched":            {[]op{save("1", ""), touch}, saved, "1", "", "1"},
		"deleted, touched":          {[]op{del("1"), touch}, deleted, "", "1", "2"},
		"two at the same time":      {[]op{together("1", "2")}, saved, "2", "", "12"},
		"two in the other order":    {[]op{together("2", "1")}, saved, "1", "", "12"},
		"and then one":              {[]op{together("1", "2"), save("3", "")}, saved, "3", "2", "13"},
		"a delete at the same time": {[]op{func(w *window) { at := now(); w.saved("k", []byte("1"), in, at, 0); w.deleted("k", at, "", 7) }}, deleted, "", "", "1"},
		"at the same time, of what was ours": {[]op{func(w *window) {
			at := now()
			w.saved("k", []byte("1"), in, now(), 0)
			w.deleted("k", at, versionOf("1"), 7)
		}}, deleted, "", "1", "2"},
		"held up while another server was put in order": {[]op{func(w *window) {
			del("1")(w)
			asked := now()
			w.settle(w.all(func(string) bool { return true }), w.now()+time.Millisecond, func(int) reason { return notLeft })
			w.saved("k", []byte("2"), in, asked, 0)
		}}, saved, "2", "1", "2"},
		"a delete, the other way": {[]op{func(w *window) { at := now(); w.deleted("k", at, "", 7); w.saved("k", []byte("1"), in, at, 0) }}, deleted, "", "", "1"},
		"the past, as far as it goes": {[]op{func(w *window) {
			for i := range 2 * maxOlder {
				save(string(rune('A'+i)), "")(w)
			}
		}}, saved, string(rune('A' + 2*maxOlder - 1)), string(rune('A'+2*maxOlder-2)) + string(rune('A'+maxOlder)), "A"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWindow(time.Second, 1<<20)
				for _, op := range tc.ops {
					time.Sleep(time.Millisecond)
					op(w)
					w.check(t)
				}
				e := w.get("k")
				if e.did != tc.did || string(e.data) != tc.data {
					t.Errorf("got %d %q, want %d %q", e.did, e.data, tc.did, tc.data)
				}
				for _, c := range tc.older {
					if !w.knows(e, []byte(string(c)), versionOf(string(c))) {
						t.Errorf("it does not know that %c is older", c)
					}
				}
				for _, c := range tc.never {
					if w.knows(e, []byte(string(c)), versionOf(string(c))) {
						t.Errorf("it takes %c for older", c)
					}
				}
			})
		})
	}
}

// together saves two values, the second of which was asked for later, before either was answered.
func together(first, second string) func(w *window) {
	return func(w *window) {
		one := time.Now()
		time.Sleep(time.Millisecond)
		two := time.Now()
		time.Sleep(time.Millisecond)
		w.saved("k", []byte(second), two.Add(time.Hour), two, 0)
		w.saved("k", []byte(first), two.Add(time.Hour), one, 0)
	}
}

func TestAWindowIsBounded(t *testing.T) {
	w := newWindow(time.Minute, 100*(overhead+103))
	in := time.Now().Add(time.Hour)
	for i := range 250 {
		w.saved(fmt.Sprintf("k%02d", i%250), make([]byte, 100), in, time.Now(), 0)
	}
	w.check(t)
	if entries, bytes, overflow := w.size(); entries < 95 || entries > 100 || bytes > w.limit || int(overflow) != 250-entries {
		t.Errorf("%d entries, %d bytes, %d forgotten", entries, bytes, overflow)
	}
	if w.get("k00") != nil || w.get("k249") == nil {
		t.Error("not the oldest were forgotten")
	}
	w.saved("large", make([]byte, w.limit), in, time.Now(), 0) // has no room at all
	w.check(t)
	if entries, bytes, _ := w.size(); entries != 0 || bytes != 0 {
		t.Errorf("%d entries, %d bytes behind what has no room", entries, bytes)
	}
}

func TestDeletesAreForgottenLast(t *testing.T) {
	w := newWindow(time.Minute, 100*(overhead+103))
	in := time.Now().Add(time.Hour)
	w.deleted("gone", time.Now(), "", 7)
	for i := range 250 {
		w.saved(fmt.Sprint(i), make([]byte, 100), in, time.Now(), 0)
	}
	if w.check(t); w.get("gone") == nil {
		t.Error("a delete was forgotten before values were")
	}
	for i := range 250 {
		w.deleted(fmt.Sprint("d", i), time.Now(), "", 7)
	}
	if w.check(t); w.get("gone") != nil || w.get("249") != nil || w.get("d249") == nil {
		t.Error("it does not keep to its bound")
	}
}

func TestALockIsReleasedByItsOwner(t *testing.T) {
	w := newWindow(5*time.Second, 1<<20)
	until := time.Now().Add(time.Minute)
	w.lock("k", "_LOCK", "second", locked, until)
	w.lock("k", "_LOCK", "first", unlocked, time.Time{}) // it was somebody else's
	if e := w.get("k_LOCK"); e.did != locked || string(e.data) != "second" {
		t.Errorf("got %d %q", e.did, e.data)
	}
	w.lock("k", "_LOCK", "second", unlocked, time.Time{})
	if e := w.get("k_LOCK"); w.get("k_LOCK").did != unlocked {
		t.Errorf("got %d %q", e.did, e.data)
	}
	w.check(t)
}

func TestTheClockOfAWindowStandsStill(t *testing.T) {
	run := func(t *testing.T) (left int) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(5*time.Second, 1<<20)
			look := func(d time.Duration) {
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
					w.confirm(time.Now())
				}
			}
			look(time.Second)
			w.touched("k", time.Now().Add(time.Hour), time.Now())
			look(4900 * time.Millisecond)
			if w.get("k") == nil {
				t.Error("forgotten before its time")
			}
			look(time.Second)
			if w.get("k") != nil {
				t.Error("not forgotten in time")
			}
			w.touched("k", time.Now().Add(time.Hour), time.Now())
			time.Sleep(30 * time.Second) // nobody says that the primary is one
			if n := w.exposed(); n != 1 {
				t.Errorf("%d exposed, want 1", n)
			}
			look(3 * time.Second)
			w.check(t)
			left, _, _ = w.size()
			if n := w.exposed(); n != 0 {
				t.Errorf("%d exposed, want 0", n)
			}
		})
		return left
	}
	if run(t) != 1 {
		t.Error("forgotten because nobody looked")
	}
	defer guard.Disable(guard.Still)()
	if run(t) != 0 {
		t.Error("the guard makes no difference")
	}
}

func TestWhatWasNotedSinceStays(t *testing.T) {
	w := newWindow(time.Minute, 1<<20)
	in := time.Now().Add(time.Hour)
	for _, key := range []string{"a", "b", "c"} {
		w.saved(key, []byte("1"), in, time.Now(), 0)
	}
	list := w.all(func(key string) bool { return key != "c" })
	if len(list) != 2 {
		t.Fatalf("%d entries, want 2", len(list))
	}
	w.saved("a", []byte("2"), in, time.Now(), 0)
	at := w.get("a").at
	w.settle(list, 1, func(i int) reason { return isNewer })
	w.settle(list, 1, func(i int) reason { return notLeft })
	if e := w.get("a"); string(e.data) != "2" || e.at != at || string(list[0].data) != "1" {
		t.Errorf("got %+v", e)
	}
	if e := w.get("b"); e.at != 1 {
		t.Errorf("got %+v", e)
	}
	w.clear(func(key string) bool { return key == "b" })
	if w.check(t); w.get("b") != nil || w.get("c") == nil {
		t.Error("not the right one was forgotten")
	}
}

func BenchmarkWindow(b *testing.B) {
	keys := make([]string, 1_000_000)
	for i := range keys {
		keys[i] = fmt.Sprintf("PHPREDIS_SESSION:%026d", i)
	}
	for _, size := range []int{200, 1024, 8192} {
		data := []byte(strings.Repeat("x", size))
		for name, sessions := range map[string]int{"of few sessions": 5_000, "new sessions": len(keys)} {
			b.Run(fmt.Sprint(size, "/", name), func(b *testing.B) {
				w := newWindow(5*time.Second, 64<<20)
				in := time.Now().Add(time.Hour)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					w.saved(keys[i%sessions], data, in, time.Now(), 1)
				}
			})
		}
	}
}
