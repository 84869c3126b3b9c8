package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// login is what a login writes: a new session, and a marker in the old one's place.
func (p *pair) login(was, n string) []store.Write {
	return []store.Write{{Key: "new " + n, Record: p.live("session"), Condition: store.IfAbsent}, {Key: "old " + n, Record: p.live("marker"), Condition: p.on(was)}}
}

func TestWhatIsSavedTogetherIsPutBack(t *testing.T) { withFlags(t, savedTogether) }

func savedTogether(t *testing.T, p *pair) {
	ctx := context.Background()
	s := p.gateway()
	p.save(s, "old 1", "anonymous")
	list := p.live("a")
	p.old.Do("SET", "list", text(&list), "PX", "3000000") // somebody else's: that it is older Append finds out
	p.part()
	if err := s.SaveAll(ctx, p.login("anonymous", "1")); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveAll(ctx, p.login("anonymous", "1")); !errors.Is(err, store.ErrConflict) {
		t.Errorf("SaveAll again: got %v", err)
	}
	for _, data := range []string{"b", "c"} {
		if _, err := s.Append(ctx, "list", []byte(data), list.Expires); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Append(ctx, "new list", []byte("x"), list.Expires)
	if err != nil || string(got.Data) != "x" {
		t.Fatalf("Append: got %q, %v", got.Data, err)
	}
	p.move(s)
	p.want("new 1", "session")
	p.want("old 1", "marker")
	p.want("list", "abc")
	if got := p.next.Do("GET", "new list"); got != "x" {
		t.Errorf("the new list: got %v", got)
	}
	if got := p.next.Do("TTL", "new list").(int64); got < 3000 {
		t.Errorf("the new list lives for %d s", got)
	}
	if f := s.Failover(); f.PutBack != 4 || f.Lost != 0 {
		t.Errorf("%d put back, %d lost, want 4 and 0", f.PutBack, f.Lost)
	}
}

// What nobody has answered is looked up at the next primary: all, a part of it, or none.
func TestWhatBecameOfSavesTogether(t *testing.T) { withFlags(t, becameOfSavesTogether) }

func becameOfSavesTogether(t *testing.T, p *pair) {
	ctx := context.Background()
	direct := p.old.Addr
	m := newMute(t, direct)
	p.old.Addr = m.addr
	s := p.gateway(func(o *Options) { o.Timeout, o.Failover.Hold = 10*time.Second, 20*time.Second }) // however slow this machine is
	for _, n := range []string{"all", "part", "none"} {
		p.save(s, "old "+n, "anonymous")
	}
	p.save(s, "list", "a")
	if _, err := s.Append(ctx, "other list", nil, p.live("").Expires); err != nil { // and the scripts are known
		t.Fatal(err)
	}
	p.save(s, "old x", "anonymous")
	if err := s.SaveAll(ctx, p.login("anonymous", "x")); err != nil {
		t.Fatal(err)
	}
	m.on.Store(true)
	var wg sync.WaitGroup
	outcomes := map[string]*store.Outcome{}
	run := func(what string, op func() error) {
		o := new(store.Outcome)
		outcomes[what] = o
		wg.Go(func() { *o = store.OutcomeOf(op()) })
	}
	there := func(key string) func() bool {
		return func() bool { return p.old.Do("EXISTS", key) == int64(1) }
	}
	run("all", func() error { return s.SaveAll(ctx, p.login("anonymous", "all")) })
	run("part", func() error { return s.SaveAll(ctx, p.login("anonymous", "part")) })
	run("append", func() error { _, err := s.Append(ctx, "list", []byte("b"), p.live("").Expires); return err })
	eventually(t, "all of it is done", func() bool {
		return there("new all")() && there("new part")() && bytes.HasSuffix([]byte(p.old.Do("GET", "list").(string)), []byte("ab"))
	})
	p.part()
	run("none", func() error { return s.SaveAll(ctx, p.login("anonymous", "none")) })
	eventually(t, "what is lost is done", there("new none"))
	p.next.Do("SET", "old part", "somebody else's", "PX", "100000")
	p.move(s)
	wg.Wait()
	for what, want := range map[string]store.Outcome{"all": store.OK, "part": store.OutcomeUnknown, "none": store.OutcomeUnknown, "append": store.OutcomeUnknown} {
		if got := *outcomes[what]; got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	// What was acknowledged after all is remembered, and the rest is not.
	for key, want := range map[string]string{"new all": "session", "old all": "marker", "new part": "", "old part": "anonymous", "new none": "", "list": "a"} {
		got := ""
		if e := s.window.get(key); e != nil {
			data, _ := store.Unflagged(e.data)
			got = string(data)
		}
		if got != want {
			t.Errorf("of %q it remembers %q, want %q", key, got, want)
		}
	}
	if st := s.Failover(); st.Unknown != 4 || st.Resolved != 1 {
		t.Errorf("%d unknown, %d resolved, want 4 and 1", st.Unknown, st.Resolved)
	}
}

// Many of one gateway add to a list: whatever the order in which they hear of it, the last one is put back.
func TestTheWindowKnowsWhichWasAddedLast(t *testing.T) {
	type note struct {
		value, base string
		asked       int // in which order they were asked for
	}
	one, two, three := note{"1", "", 3}, note{"12", "1", 2}, note{"123", "12", 1}
	for name, notes := range map[string][]note{
		"in order":       {one, two, three},
		"backwards":      {three, two, one},
		"the first last": {two, three, one},
		"one left out":   {two, one, three},
		"and the others": {three, one, two},
		"the last first": {one, three, two},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWindow(time.Second, 1<<20)
				began := time.Now()
				time.Sleep(time.Second)
				for _, n := range notes {
					base := uint64(0)
					if n.base != "" {
						base = w.sum([]byte(n.base))
					}
					w.appended("k", []byte(n.value), began.Add(time.Hour), began.Add(time.Duration(n.asked)*time.Millisecond), base)
					w.check(t)
				}
				e := w.get("k")
				if string(e.data) != "123" {
					t.Errorf("got %q, want 123", e.data)
				}
				for _, older := range []string{"1", "12"} {
					if !w.knows(e, []byte(older), versionOf(older)) {
						t.Errorf("it does not know that %s is older", older)
					}
				}
				if w.knows(e, []byte("123"), versionOf("123")) {
					t.Error("it takes what there is for older")
				}
			})
		})
	}
}

// Of a list that is cut short while it is added to: what was added last is put back, in whichever order that is heard of.
func TestTheWindowKnowsWhatWasAddedToAShorterOne(t *testing.T) {
	for name, cutFirst := range map[string]bool{"in order": true, "backwards": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWindow(time.Second, 1<<20)
				began := time.Now()
				in, at := began.Add(time.Hour), func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
				time.Sleep(time.Millisecond)
				w.appended("k", []byte("12"), in, at(0), 0)
				time.Sleep(time.Second)
				cut := func() { w.saved("k", []byte("2"), in, at(500), sumOf(versionOf("12"))) }
				if cutFirst {
					cut()
				}
				w.appended("k", []byte("23"), in, at(400), w.sum([]byte("2")))
				if !cutFirst {
					cut()
				}
				w.check(t)
				e := w.get("k")
				if string(e.data) != "23" {
					t.Errorf("got %q, want 23", e.data)
				}
				for _, older := range []string{"12", "2"} {
					if !w.knows(e, []byte(older), versionOf(older)) {
						t.Errorf("it does not know that %s is older", older)
					}
				}
			})
		})
	}
}

func TestAppendHasLimits(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL()+"?max_value=40")
	in := time.Now().Add(time.Hour)
	add := func(key, data string) error {
		_, err := s.Append(ctx, key, []byte(data), in)
		return err
	}
	head := "\x00sessile:flags="
	for _, tc := range []struct {
		what, key, was, data string
		want                 error
		is                   string
	}{
		{"up to the limit", "full", "0123456789012345678901234567890123456789"[:39], "x", nil, "012345678901234567890123456789012345678x"},
		{"above it", "over", "0123456789012345678901234567890123456789", "x", store.ErrInvalid, "0123456789012345678901234567890123456789"},
		{"flags in two parts", "parts", head, "7\nx", store.ErrInvalid, head},
		{"flags in front of nothing", "flags", "", head + "7\nx", store.ErrInvalid, ""},
		{"behind flags", "behind", head + "7\nx", head + "8\ny", nil, head + "7\nx" + head + "8\ny"},
	} {
		if tc.was != "" {
			server.Do("SET", tc.key, tc.was, "PX", "100000")
		}
		if err := add(tc.key, tc.data); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.what, err, tc.want)
		}
		if got := server.Do("GET", tc.key); got != tc.is && (got != nil || tc.is != "") {
			t.Errorf("%s: got %q, want %q", tc.what, got, tc.is)
		}
	}
	server.Do("SET", "immortal", "a")
	if got, err := s.Append(ctx, "immortal", []byte("b"), in); err != nil || !got.Expires.IsZero() || string(got.Data) != "ab" {
		t.Errorf("Append without a deadline: got %q until %v, %v", got.Data, got.Expires, err)
	}
	if got := server.Do("TTL", "immortal"); got != int64(-1) {
		t.Errorf("TTL: got %v", got)
	}
	server.Do("HSET", "hash", "f", "v")
	if err := add("hash", "x"); store.OutcomeOf(err) != store.OutcomeUnavailable {
		t.Errorf("Append to a hash: got %v, want unavailable", err)
	}
	writes := []store.Write{{Key: "new", Record: live("x")}, {Key: "hash", Record: live("x"), Condition: store.IfVersion("v")}}
	if err := s.SaveAll(ctx, writes); store.OutcomeOf(err) != store.OutcomeUnavailable || server.Do("EXISTS", "new") != int64(0) {
		t.Errorf("SaveAll with a hash: got %v, and the others %v", err, server.Do("EXISTS", "new"))
	}
	server.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	server.Do("CONFIG", "SET", "maxmemory", "1")
	if err := add("full memory", "x"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Append where there is no memory: got %v", err)
	}
	if err := s.SaveAll(ctx, writes[:1]); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("SaveAll where there is no memory: got %v", err)
	}
}

// In a Cluster what is saved together lies in one slot, also while that is on its way. A prefix with braces of its own decides where.
func TestSaveAllInACluster(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	ctx := context.Background()
	both := func(one, two string) []store.Write {
		return []store.Write{{Key: one, Record: live("1")}, {Key: two, Record: live("2")}}
	}
	for prefix, want := range map[string]error{"": nil, "app:": nil, "%7Bapp%7D:": nil, "%7B%7D:": errors.ErrUnsupported, "%7B": nil} {
		s := open(t, c.URL()+"?prefix="+prefix)
		if err := s.SaveAll(ctx, both("{t}one", "{t}two")); !errors.Is(err, want) {
			t.Errorf("under %s: got %v, want %v", prefix, err, want)
		}
		for _, key := range []string{"{t}one", "{t}two"} {
			if _, err := s.Load(ctx, key); (err == nil) != (want == nil) {
				t.Errorf("under %s: Load(%s): %v", prefix, key, err)
			}
		}
	}
	s := open(t, c.URL()+"?hold=10s")
	slot := slotOf("t")
	other := ""
	for i := 0; other == ""; i++ {
		if key := fmt.Sprint(i); slotOf(key) != slot {
			other = key
		}
	}
	if err := s.SaveAll(ctx, both("{t}unsaved", other)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SaveAll in two slots: got %v", err)
	}
	if _, err := s.Load(ctx, "{t}unsaved"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load: got %v", err)
	}
	life, stop := context.WithCancel(ctx)
	moved := make(chan int, 1)
	// Not faster than the writers are: one that was told to ask a server which is about to have the slot finds it there, and not on its way there
	// for the second time. (What is created or added to then is there twice: Redis executes it, and cannot move the other one.)
	var saves, appends atomic.Int64
	go func() {
		servers, n := c.Primaries(), 0
		passed := func() {
			for a, b := saves.Load(), appends.Load(); life.Err() == nil && (saves.Load() < min(a+2, 99) || appends.Load() < min(b+2, 200)); {
				time.Sleep(time.Millisecond)
			}
		}
		for at := slices.Index(servers, c.Node(slot)); life.Err() == nil; n++ {
			from := servers[at]
			at = (at + 1) % len(servers)
			c.BeginMove(from, servers[at], slot)
			passed()
			c.MoveKeys(from, servers[at], slot)
			passed()
			c.EndMove(servers[at], slot)
			passed()
		}
		moved <- n
	}()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 2; i < 200; i += 2 {
			was := []string{fmt.Sprint(i - 1), fmt.Sprint(i)}
			writes := []store.Write{{Key: "{t}one", Record: live(fmt.Sprint(i + 1)), Condition: store.IfVersion(versionOf(was[0]))},
				{Key: "{t}two", Record: live(fmt.Sprint(i + 2)), Condition: store.IfVersion(versionOf(was[1]))}}
			if err := s.SaveAll(ctx, writes); err != nil {
				t.Errorf("SaveAll %d while the slot moves: %v", i, err)
				return
			}
			saves.Add(1)
		}
	})
	var want []byte
	wg.Go(func() {
		for i := range 200 {
			want = append(want, byte('a'+i%26))
			got, err := s.Append(ctx, "{t}list", want[i:i+1], time.Now().Add(time.Hour))
			if err != nil || !bytes.Equal(got.Data, want) {
				t.Errorf("Append %d while the slot moves: got %q, %v", i, got.Data, err)
				return
			}
			appends.Add(1)
		}
	})
	wg.Wait()
	stop()
	t.Logf("the slot moved %d times", <-moved)
	for key, want := range map[string]string{"{t}one": "199", "{t}two": "200", "{t}list": string(want)} {
		if got, err := s.Load(ctx, key); err != nil || string(got.Data) != want {
			t.Errorf("Load(%s): got %q, %v, want %q", key, got.Data, err, want)
		}
		if e := s.window.get(key); e == nil || e.did != saved || string(e.data) != want {
			t.Errorf("%s is not noted as it is", key)
		}
	}
}

// A record that is to be made beside one that there is: as long as the slot is on its way the two are in no one place.
func TestALoginWhileItsSlotIsOnItsWay(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	ctx := context.Background()
	s := open(t, c.URL()+"?hold=10s")
	if err := s.Save(ctx, "{t}old", live("0"), store.Always); err != nil {
		t.Fatal(err)
	}
	slot, from := slotOf("t"), c.NodeOf("{t}old")
	to := c.Primaries()[slices.IndexFunc(c.Primaries(), func(n *testserver.RedisServer) bool { return n != from })]
	was := 0
	login := func(what string, want error) {
		t.Helper()
		writes := []store.Write{{Key: fmt.Sprint("{t}new ", what), Record: live("x"), Condition: store.IfAbsent},
			{Key: "{t}old", Record: live(fmt.Sprint(was + 1)), Condition: store.IfVersion(versionOf(fmt.Sprint(was)))}}
		if err := s.SaveAll(ctx, writes); !errors.Is(err, want) {
			t.Fatalf("SaveAll %s: got %v, want %v", what, err, want)
		}
		for _, w := range writes {
			if want == nil {
				break
			}
			if err := s.Save(ctx, w.Key, w.Record, w.Condition); err != nil {
				t.Fatalf("Save(%s) %s: %v", w.Key, what, err)
			}
		}
		was++
	}
	login("before", nil)
	c.BeginMove(from, to, slot)
	login("at its beginning", errors.ErrUnsupported)
	c.MoveKeys(from, to, slot)
	login("half-way", errors.ErrUnsupported)
	c.EndMove(to, slot)
	eventually(t, "the slot is where it shall be", func() bool { return s.cluster.asked[slot].Load() == nil })
	login("behind", nil)
}

// What store.Replicated marks is answered behind a WAIT.
func TestTogetherAndReplicated(t *testing.T) {
	p := newPair(t)
	s := p.gateway(func(o *Options) { o.Failover.Wait, o.Failover.Strict = time.Second, true })
	eventually(t, "the replica is known", func() bool { return s.node.replicas.Load() == 1 })
	ctx := store.Replicated(context.Background())
	waits := func(op func() error) int {
		t.Helper()
		return commands(t, p.old, func() {
			if err := op(); err != nil {
				t.Error(err)
			}
		})["wait"]
	}
	p.save(s, "old 1", "anonymous")
	if n := waits(func() error { return s.SaveAll(ctx, p.login("anonymous", "1")) }); n == 0 {
		t.Error("SaveAll has not waited for the replica")
	}
	if n := waits(func() error { _, err := s.Append(ctx, "list", []byte("x"), p.live("").Expires); return err }); n == 0 {
		t.Error("Append has not waited for the replica")
	}
	keys := []string{"new 1", "old 1", "list"}
	if slices.ContainsFunc(keys, func(key string) bool { return p.next.Do("EXISTS", key) != int64(1) }) {
		t.Error("the replica does not have what was answered")
	}
	p.next.Pause()
	for what, err := range map[string]error{
		"SaveAll": s.SaveAll(ctx, p.login("marker", "2")[:1]),
		"Append":  func() error { _, err := s.Append(ctx, "list", []byte("x"), p.live("").Expires); return err }(),
	} {
		if !errors.Is(err, store.ErrUnknown) {
			t.Errorf("%s without the replica: got %v, want unknown", what, err)
		}
	}
	// Done it is, and who finds it goes by it. So it is not to be lost.
	for key, want := range map[string]string{"new 2": "session", "list": "xx"} {
		if e := s.window.get(key); e == nil || string(e.data) != want {
			t.Errorf("%s is not noted as it is", key)
		}
	}
}
