package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

func FuzzNames(f *testing.F) {
	for _, key := range hostileKeys {
		f.Add("P:", key)
		f.Add(key, "}{")
	}
	s := &Store{cluster: &cluster{}}
	f.Fuzz(func(t *testing.T, prefix, key string) {
		data := prefix + key
		slot := s.slotOf(data)
		tag := s.tag(slot)
		for _, name := range append(emptyNames(slot), sideKey(tag, data), fenceKey(tag, key), intentsKey(tag, key), aheadsKey(tag, key), stepsKey(tag, key)) {
			if slotOf(name) != slotOf(data) {
				t.Errorf("%q is in slot %d, its session %q in %d", name, slotOf(name), data, slotOf(data))
			}
		}
		home := s.homeTag()
		if controlKey(home) == leaseKey(home, key) || slotOf(controlKey(home)) != slotOf(leaseKey(home, key)) {
			t.Errorf("%q and %q", controlKey(home), leaseKey(home, key))
		}
	})
}

// TestWhatOneShardForgets is about shards each of which has a memory of its own.
func TestWhatOneShardForgets(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL())
	ctx := context.Background()
	home := c.Node(s.home())
	var other *testserver.RedisServer
	for _, n := range c.Primaries() {
		if n != home {
			other = n
		}
	}
	key := keysOf(c, other, 1)[0]
	slot := slotOf(key)
	tag := slotTag(slot)

	var w store.Workflow
	epoch := uint64(5)
	fresh := func() {
		t.Helper()
		w = s.Workflow("w")
		if err := w.RaiseFence(ctx, epoch); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if _, err := w.SaveLast(ctx, key, epoch, nil, store.Always); err != nil {
				t.Fatal(err)
			}
			if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
				t.Fatalf("Renew %d: got %v, %v", i, r.Forgot, err)
			}
		}
	}
	forgets := func(what string) {
		t.Helper()
		for range 2 {
			if r, err := w.Renew(ctx, "g", nil, time.Minute); !r.Forgot || err != nil {
				t.Errorf("Renew after %s: got %v, %v", what, r.Forgot, err)
			}
		}
		w.Accept()
		for range 3 {
			if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
				t.Errorf("%s: it is said after Accept: %v", what, err)
			}
		}
	}
	// The server may have been a replica meanwhile: all its slots are looked at in the next renewal.
	anew := func() {
		t.Helper()
		memory := s.cluster.memory(slot)
		eventually(t, "the new epoch is seen", func() bool {
			home.Do("CLUSTER", "BUMPEPOCH")
			other.Do("CLUSTER", "BUMPEPOCH") // which does nothing where it has the highest one
			return s.cluster.memory(slot) != memory
		})
	}

	fresh()
	other.Do("HDEL", stepsKey(tag, "w"), w.(*workflow).steps.Load().handle)
	if _, err := w.SaveLast(ctx, key, 5, nil, store.Always); !errors.Is(err, store.ErrFenced) {
		t.Errorf("SaveLast in the slot: got %v, want ErrFenced", err)
	}
	for _, n := range []string{keysOf(c, home, 1)[0], keysOf(c, other, 2)[1]} {
		if _, err := w.SaveLast(ctx, n, 5, nil, store.Always); err != nil {
			t.Errorf("SaveLast in another one: %v", err)
		}
	}
	anew()
	forgets("steps")

	fresh()
	other.Do("DEL", fenceKey(tag, "w"))
	anew()
	forgets("a fence")

	fresh()
	other.Do("FLUSHALL")
	forgets("everything")

	raise := func() {
		t.Helper()
		if epoch++; w.RaiseFence(ctx, epoch) != nil {
			t.Fatalf("epoch %d is not raised", epoch)
		}
	}
	back := func() { other.Do("SET", fenceKey(tag, "w"), fmt.Sprint(epoch-1)) }

	fresh()
	raise()
	if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
		t.Fatalf("Renew: got %v, %v", r.Forgot, err)
	}
	back()
	anew()
	forgets("a fence that home has")

	// An Accept excuses what was missing then, and nothing later.
	fresh()
	other.Do("FLUSHALL")
	anew()
	forgets("everything again")
	for range 2 {
		raise()
		if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
			t.Fatalf("Renew: got %v, %v", r.Forgot, err)
		}
	}
	back()
	anew()
	forgets("a fence that was raised since Accept")

	// Of one that was raised since the last renewal nothing hangs yet.
	fresh()
	raise()
	back()
	anew()
	if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
		t.Fatalf("Renew: got %v, %v", r.Forgot, err)
	}
	if got := other.Do("GET", fenceKey(tag, "w")); got != fmt.Sprint(epoch) {
		t.Errorf("a fence that was lost stands at %v", got)
	}

	// Nor of the first of all.
	w = s.Workflow("first")
	if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
		t.Fatalf("Renew: got %v, %v", r.Forgot, err)
	}
	if err := w.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	other.Do("DEL", fenceKey(tag, "first"))
	anew()
	if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
		t.Errorf("Renew: got %v, %v", r.Forgot, err)
	}
	if _, err := w.SaveLast(ctx, key, 1, nil, store.Always); err != nil {
		t.Errorf("SaveLast behind the first fence: %v", err)
	}
}

// TestALatePurge does what a Purge would do that was sent before another workflow of that name was created.
func TestALatePurge(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL())
	ctx := context.Background()
	w := s.Workflow("w")
	if err := errors.Join(w.RaiseFence(ctx, 7), w.SwapControl(ctx, nil, []byte("new"))); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Begin(ctx, "k", store.Op{Nonce: "n", Epoch: 7, Lease: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if err := w.Purge(ctx, []byte("old")); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Purge: got %v", err)
	}
	tag := slotTag(slotOf("k"))
	for _, p := range []part{
		{[]string{fenceKey(tag, "w"), fenceKey(tag, "w"), stepsKey(tag, "w")}, []string{"fence", "6", ""}},
		{[]string{fenceKey(tag, "w"), intentsKey(tag, "w"), sideKey(tag, "k")}, []string{"fence", "6", "k"}},
		{[]string{controlKey(s.homeTag()), fenceKey(s.homeTag(), "w"), stepsKey(s.homeTag(), "w")}, []string{"control", "old", ""}},
	} {
		if err := s.parts(ctx, "purge", store.ErrUnknown, purgeScript, []string{"w"}, []part{p}, allDone); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a purge of %q: got %v", p.names, err)
		}
	}
	if u, err := w.Unsettled(ctx, 9); u.Intents != 1 || err != nil {
		t.Errorf("Unsettled: got %+v, %v", u, err)
	}
	if f, err := w.Fence(ctx); f != 7 || err != nil {
		t.Errorf("Fence: got %d, %v", f, err)
	}
	if err := w.Purge(ctx, []byte("new")); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Primaries() { // whatever its name
		for _, key := range n.Do("KEYS", "*").([]any) {
			if name := key.(string); !strings.HasPrefix(name, "sessile:control") && !strings.HasPrefix(name, "sessile:gateways") {
				t.Errorf("Purge leaves %v", key)
			}
		}
	}
}

// TestAShardWithoutAPrimary has one shard gone for good: its sessions fail, and nobody else's.
func TestAShardWithoutAPrimary(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL()+"?hold=500ms")
	ctx := context.Background()
	w := s.Workflow("w")
	if err := w.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	home := c.Node(s.home())
	var lost, kept string
	for _, n := range c.Primaries() {
		if n == home {
			kept = keysOf(c, n, 1)[0]
		} else {
			lost = keysOf(c, n, 1)[0]
		}
	}
	for _, key := range []string{lost, kept} {
		if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
		t.Fatalf("Renew: got %v, %v", r.Forgot, err)
	}
	instance, _ := s.Instance(ctx)
	c.NodeOf(lost).Kill()
	for range 3 {
		if _, err := s.Load(ctx, lost); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Load of what is away: got %v", err)
		}
		// A connection that is not known to be broken yet takes it.
		if out := store.OutcomeOf(s.Save(ctx, lost, live("y"), store.Always)); out != store.OutcomeUnavailable && out != store.OutcomeUnknown {
			t.Errorf("Save of what is away: got %v", out)
		}
		began := time.Now()
		if _, err := s.Load(ctx, kept); err != nil {
			t.Errorf("Load of what is there: %v", err)
		}
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("Load of what is there took %v", took)
		}
		if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
			t.Errorf("Renew: got %v, %v", r.Forgot, err)
		}
	}
	if all, err := s.InspectAll(ctx, []string{kept, lost}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("InspectAll: got %v, %v", all, err)
	}
	if u, err := w.Unsettled(ctx, 1); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Unsettled: got %v, %v: what is away is not settled", u, err)
	}
	if _, err := s.Scan(ctx, fmt.Sprint(slotOf(lost), ".1"), 10); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Scan: got %v", err)
	}
	if err := w.RaiseFence(ctx, 2); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknown) {
		t.Errorf("RaiseFence: got %v", err)
	}
	if f, err := w.Fence(ctx); err == nil {
		t.Errorf("Fence: got %d", f)
	}
	if now, err := s.Instance(ctx); now != instance || err != nil {
		t.Errorf("Instance: got %v, %v, want %v: nobody else has taken its place", now, err, instance)
	}
	// Who comes now cannot know which server that was.
	late := open(t, c.URL()+"?hold=500ms")
	if _, err := late.Load(ctx, kept); err != nil {
		t.Errorf("Load: %v", err)
	}
	if id, err := late.Instance(ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Instance: got %q, %v", id, err)
	}
}

// TestAServerMore gives slots to a server that had none.
func TestAServerMore(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, Slots: []string{"0-8191", "8192-16383", ""}})
	s := open(t, c.URL())
	ctx := context.Background()
	instance, _ := s.Instance(ctx)
	key := keysOf(c, c.Nodes[0], 1)[0]
	if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
		t.Fatal(err)
	}
	// What lies in two places is not listed, and nothing is done that needs to see all of it.
	w := s.Workflow("w")
	if err := w.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	halved := func(err error) bool {
		return store.OutcomeOf(err) == store.OutcomeUnavailable && (strings.Contains(err.Error(), "TRYAGAIN") || strings.Contains(err.Error(), "ASK "))
	}
	impatient := open(t, c.URL()+"?hold=200ms")
	eventually(t, "the other gateway has met this one", func() bool { return impatient.Save(ctx, key, live("x"), store.Always) == nil })
	waits := func(when string) {
		t.Helper()
		if page, err := impatient.Scan(ctx, fmt.Sprint(slotOf(key), ".1"), 10); !halved(err) {
			t.Errorf("Scan %s: got %v, %v", when, page.Keys, err)
		}
		rec := live("z")
		w := impatient.Workflow("w")
		for what, f := range map[string]func() error{
			"Begin": func() error { _, err := w.Begin(ctx, key, opOf("n", alive)); return err },
			"Add": func() error {
				_, err := w.Add(ctx, 1, []store.Entry{{Key: key + "}", Record: &rec}, {Key: key, Record: &rec}})
				return err
			},
			"LoadMarked": func() error { _, _, err := w.LoadMarked(ctx, key); return err },
		} {
			if err := f(); !halved(err) {
				t.Errorf("%s %s: got %v", what, when, err)
			}
		}
	}
	c.BeginMove(c.Nodes[0], c.Nodes[2], slotOf(key))
	waits("before its keys are moved")
	c.MoveKeys(c.Nodes[0], c.Nodes[2], slotOf(key))
	waits("before it is moved")
	if rec, err := s.Load(ctx, key); string(rec.Data) != "x" || err != nil {
		t.Errorf("Load of what has moved ahead of its slot: got %v, %v", rec, err)
	}
	if err := s.Save(ctx, "{"+key+"}", live("y"), store.Always); err != nil {
		t.Errorf("Save in a slot that is being moved: %v", err)
	}
	c.EndMove(c.Nodes[2], slotOf(key))
	for _, k := range []string{key, "{" + key + "}"} {
		if _, err := s.Load(ctx, k); err != nil {
			t.Errorf("Load: %v", err)
		}
	}
	if page, err := s.Scan(ctx, fmt.Sprint(slotOf(key), ".1"), 10); len(page.Keys) != 2 || err != nil {
		t.Errorf("Scan: got %v, %v", page.Keys, err)
	}
	eventually(t, "the instance is another one", func() bool { now, err := s.Instance(ctx); return now != instance && err == nil })
}

// TestWideSlot lists a slot in which nearly everything is, as under a prefix with a tag, while it is moved.
func TestWideSlot(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL()+"?prefix=%7Bapp%7D%3A")
	ctx := context.Background()
	slot := slotOf("{app}")
	from := c.Node(slot)
	const n = 12_000
	load := `for i = 1, ARGV[1] do redis.call('SET', '{app}:' .. i, 'x', 'PX', 3600000) end`
	from.Do("EVAL", load, "1", "{app}", fmt.Sprint(n))
	from.Do("RPUSH", "{app}:list", "x")
	var to *testserver.RedisServer
	for _, p := range c.Primaries() {
		if p != from {
			to = p
		}
	}
	found, pages, lists, wide := map[string]bool{}, 0, 0, 0
	for cursor := ""; ; {
		page, err := s.Scan(ctx, cursor, 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range page.Keys {
			found[key] = true
		}
		lists += page.Skipped["type"]
		pages++
		if cursor = page.Cursor; cursor == "" {
			break
		}
		if strings.Count(cursor, ".") == 3 {
			if wide++; wide == 5 {
				c.MoveSlots(from, to, slot)
			}
		}
		if len(page.Keys) > 1100 {
			t.Errorf("a page of %d keys", len(page.Keys))
		}
	}
	if len(found) != n || lists == 0 || wide < 20 {
		t.Errorf("got %d of %d keys, %d lists, in %d pages, %d of them of that slot", len(found), n, lists, pages, wide)
	}
	for _, bad := range []string{"x", "1", "16384.1", "-1.1", "1.0", "1.9999", "1.1.x.0", "1.1.1.x", "1.1.1"} {
		if _, err := s.Scan(ctx, bad, 1); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Scan from %q: got %v", bad, err)
		}
	}
}

// TestAShardThatLostWrites has a replica that is behind take over: two gateways put back what they were told was done, and
// the other shards do not notice.
func TestAShardThatLostWrites(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second, Node: []testserver.RedisOption{testserver.WithPassword("", "pw1")}})
	a, b := open(t, c.URL()), open(t, c.URL())
	ctx := context.Background()
	victim := c.Primaries()[0]
	replica := c.ReplicaOf(victim)
	keys := keysOf(c, victim, 300)
	save := func(s *Store, key, data string) {
		t.Helper()
		if err := s.Save(ctx, key, live(data), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range keys[100:] {
		save(a, key, "old")
	}
	eventually(t, "both know each other, and the replica is in step", func() bool {
		return a.Failover().Gateways == 2 && b.Failover().Gateways == 2 && replica.Do("ROLE").([]any)[4] == victim.Do("ROLE").([]any)[1]
	})
	// From here on the replica hears nothing.
	replica.Do("CONFIG", "SET", "masterauth", "wrong")
	replica.Do("CLIENT", "KILL", "TYPE", "master")
	eventually(t, "the replica is cut off", func() bool { return replica.Do("ROLE").([]any)[3] != "connected" })
	for i, key := range keys {
		switch {
		case i < 100:
			save([]*Store{a, b}[i%2], key, "new") // onto nothing
		case i < 200:
			save(a, key, "new") // which knows what is older
		default:
			if _, err := b.Delete(ctx, key, store.Always); err != nil {
				t.Fatal(err)
			}
		}
	}
	victim.Kill()
	eventually(t, "another primary", func() bool { return c.Node(slotOf(keys[0])) != nil && c.Node(slotOf(keys[0])) != victim })
	for i, key := range keys {
		for _, s := range []*Store{a, b} {
			rec, err := s.Load(ctx, key)
			switch {
			case i < 200 && (err != nil || string(rec.Data) != "new"):
				t.Errorf("a write is lost: %s is %q, %v", key, rec.Data, err)
			case i >= 200 && !errors.Is(err, store.ErrAbsent):
				t.Errorf("a delete is undone: %s is %q, %v", key, rec.Data, err)
			}
		}
	}
	for name, s := range map[string]*Store{"a": a, "b": b} {
		if f := s.Failover(); f.PutBack == 0 || f.Lost > 0 || f.Switches != 1 {
			t.Errorf("gateway %s: got %+v", name, f)
		}
	}
}
