package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// TestARestartInAMove has a server come back from its disk while one of its slots is half-way to another one, and left so.
func TestARestartInAMove(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, NodeTimeout: 15 * time.Second,
		Node: []testserver.RedisOption{testserver.WithConf("appendonly yes", "appendfsync always")}})
	s := open(t, c.URL())
	ctx := context.Background()
	from, to := c.Primaries()[0], c.Primaries()[1]
	other := keysOf(c, from, 2)
	key := other[0]
	save := func(key string) {
		t.Helper()
		if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	save(key)
	save(other[1])
	c.BeginMove(from, to, slotOf(key))
	moved := "{" + key + "}"
	save(moved) // to where the slot goes
	from.Restart()
	eventually(t, "it serves", func() bool { _, err := s.Load(ctx, other[1]); return err == nil })
	for _, key := range []string{key, moved} {
		if _, err := s.Load(ctx, key); err != nil {
			t.Errorf("Load of what is in the slot that moves: %v", err)
		}
	}
	if f := s.Failover(); f.Switches != 1 || f.Lost != 0 {
		t.Errorf("got %+v", f)
	}
}

// TestTheRegistryMoves moves the slot of a shard's registry: gateways go on hearing of each other, and others can come.
func TestTheRegistryMoves(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	a, b := open(t, c.URL()), open(t, c.URL())
	ctx := context.Background()
	from, to := c.Primaries()[0], c.Primaries()[1]
	key := keysOf(c, from, 1)[0]
	lies := func(s *Store) int { return int(s.cluster.owner[slotOf(key)].Load().meets.Load()) }
	eventually(t, "both know each other", func() bool { return a.Failover().Gateways == 2 && b.Failover().Gateways == 2 })
	var alone atomic.Bool
	life, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for sleep(life, time.Millisecond) {
			if a.Failover().Gateways < 2 || b.Failover().Gateways < 2 {
				alone.Store(true)
			}
		}
	})
	slot := lies(a)
	c.MoveSlots(from, to, 0, 1, 2) // as redis-cli does, in order
	eventually(t, "the slots have moved", func() bool {
		return a.cluster.owner[2].Load() == a.cluster.owner[c.Slot(keysOf(c, to, 1)[0])].Load()
	})
	if lies(a) != slot {
		t.Errorf("the registry went from slot %d to %d", slot, lies(a))
	}
	for range 2 {
		slot := lies(a)
		c.BeginMove(from, to, slot)
		c.MoveKeys(from, to, slot)
		late := open(t, c.URL())
		if _, err := late.Load(ctx, key); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Load by who comes now: got %v", err)
		}
		late.Close()
		eventually(t, "all meet in another slot", func() bool {
			return lies(a) != slot && lies(b) == lies(a) && from.Do("HLEN", registryKey(slotTag(lies(a)))) == int64(2)
		})
		c.EndMove(to, slot)
	}
	if alone.Load() {
		t.Error("a gateway was alone for a while")
	}
	eventually(t, "nobody else is there any more", func() bool { return a.Failover().Gateways == 2 && b.Failover().Gateways == 2 })
}

// TestTheSourceOfAMoveFails has a replica take over that does not know that a slot was on its way: what is on the other server
// already is not gone.
func TestTheSourceOfAMoveFails(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
	s := open(t, c.URL()+"?hold=1s")
	ctx := context.Background()
	from, to := c.Primaries()[0], c.Primaries()[1]
	keys := keysOf(c, from, 2)
	key, slot := keys[0], slotOf(keys[0])
	for _, key := range keys {
		if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	c.BeginMove(from, to, slot)
	c.MoveKeys(from, to, slot)
	if err := open(t, c.URL()).Save(ctx, key, live("newer"), store.Always); err != nil {
		t.Fatal(err)
	}
	if rec, err := s.Load(ctx, key); err != nil || string(rec.Data) != "newer" {
		t.Fatalf("Load: got %q, %v", rec.Data, err)
	}
	from.Kill()
	now := c.WaitPrimary(slot, from)
	for range 5 { // which have never seen the one before
		if _, err := open(t, c.URL()+"?hold=100ms").Load(ctx, key); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Load of who has just begun: got %v", err)
		}
	}
	late := open(t, c.URL()+"?hold=1s")
	for _, s := range []*Store{s, late} {
		if _, err := s.Load(ctx, keys[1]); err != nil {
			t.Errorf("Load of what is in another slot: %v", err)
		}
		if _, err := s.Load(ctx, key); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Load: got %v", err)
		}
		if err := s.Save(ctx, key, live("y"), store.Always); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Save: got %v", err)
		}
		if all, err := s.InspectAll(ctx, []string{keys[1], key}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("InspectAll: got %v, %v", all, err)
		}
		if f := s.Failover(); !slices.Equal(f.Holding, []string{"moving"}) || f.Lost != 0 {
			t.Errorf("got %+v", f)
		}
	}
	// As the alarm says.
	now.Do("CLUSTER", "SETSLOT", fmt.Sprint(slot), "MIGRATING", to.Do("CLUSTER", "MYID").(string))
	for _, s := range []*Store{s, late} {
		eventually(t, "it is answered again", func() bool { rec, err := s.Load(ctx, key); return err == nil && string(rec.Data) == "newer" })
	}
	c.EndMove(to, slot)
	if rec, err := s.Load(ctx, key); err != nil || string(rec.Data) != "newer" {
		t.Errorf("Load after the move: got %q, %v", rec.Data, err)
	}
	if f := s.Failover(); len(f.Holding) > 0 {
		t.Errorf("still holding: %v", f.Holding)
	}
}

// TestBothEndsOfAMoveFail has replicas take over at both ends, neither of which knows of the move.
func TestBothEndsOfAMoveFail(t *testing.T) {
	for name, sourceFirst := range map[string]bool{"the source first": true, "the target first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
			s := open(t, c.URL()+"?hold=1s")
			ctx := context.Background()
			from, to := c.Primaries()[0], c.Primaries()[1]
			key, stays := keysOf(c, from, 1)[0], keysOf(c, to, 1)[0]
			if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			c.BeginMove(from, to, slotOf(key))
			c.MoveKeys(from, to, slotOf(key))
			if _, err := s.Load(ctx, key); err != nil {
				t.Fatal(err)
			}
			heir := c.ReplicaOf(to)
			eventually(t, "the target's replica has it, and the move is seen", func() bool {
				return heir.Do("CLUSTER", "COUNTKEYSINSLOT", fmt.Sprint(slotOf(key))) == int64(1) && s.cluster.moves(slotOf(key))
			})
			for i := range 2 {
				if sourceFirst == (i == 0) {
					from.Kill()
					c.WaitPrimary(slotOf(key), from)
				} else {
					to.Kill()
					c.WaitPrimary(slotOf(stays), to)
				}
				eventually(t, "the heir serves", func() bool {
					_, err := s.Load(ctx, stays)
					return errors.Is(err, store.ErrAbsent)
				})
			}
			if _, err := s.Load(ctx, key); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Load: got %v", err)
			}
			if f := s.Failover(); !slices.Equal(f.Holding, []string{"moving"}) || f.Switches != 2 {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// moves reports whether the slot is known to be on its way.
func (c *cluster) moves(slot int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.shards {
		if h.coming[slot] != "" {
			return true
		}
	}
	return false
}

// TestTheTargetOfAMoveFails loses what was written to a slot ahead of its move: that is counted.
func TestTheTargetOfAMoveFails(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second, Node: []testserver.RedisOption{testserver.WithPassword("", "pw1")}})
	s := open(t, c.URL()+"?replay=1m")
	ctx := context.Background()
	from, to := c.Primaries()[0], c.Primaries()[1]
	replica := c.ReplicaOf(to)
	key := keysOf(c, from, 1)[0]
	stays := keysOf(c, to, 1)[0]
	if err := s.Save(ctx, stays, live("x"), store.Always); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica is in step", func() bool { return replica.Do("ROLE").([]any)[4] == to.Do("ROLE").([]any)[1] })
	c.BeginMove(from, to, slotOf(key))
	replica.Do("CONFIG", "SET", "masterauth", "wrong")
	replica.Do("CLIENT", "KILL", "TYPE", "master")
	eventually(t, "the replica is cut off", func() bool { return replica.Do("ROLE").([]any)[3] != "connected" })
	if err := s.Save(ctx, key, live("y"), store.Always); err != nil {
		t.Fatal(err)
	}
	to.Kill()
	c.WaitPrimary(slotOf(stays), to)
	eventually(t, "the others are in order", func() bool { rec, err := s.Load(ctx, stays); return err == nil && string(rec.Data) == "x" })
	if f := s.Failover(); f.Left["moving"] != 1 || f.Lost != 1 {
		t.Errorf("got %+v", f)
	}
	if _, err := s.Load(ctx, key); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Load: got %v", err)
	}
	// As docs/redis-ha.md says.
	id := func(n *testserver.RedisServer) string { return n.Do("CLUSTER", "MYID").(string) }
	replica.Do("CLUSTER", "SETSLOT", fmt.Sprint(slotOf(key)), "IMPORTING", id(from))
	from.Do("CLUSTER", "SETSLOT", fmt.Sprint(slotOf(key)), "MIGRATING", id(replica))
	if err := s.Save(ctx, key, live("z"), store.Always); err != nil {
		t.Errorf("Save: %v", err)
	}
}

// TestAShardIsAskedForManySessions asks a server that knows no gateway whether it knows their sessions: they are of many slots.
func TestAShardIsAskedForManySessions(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL())
	ctx := context.Background()
	server := c.Primaries()[0]
	keys := keysOf(c, server, 20)
	for _, key := range keys {
		if err := s.Save(ctx, key, live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	s.window.mu.Lock()
	for _, key := range keys[:19] { // the last ones may not have come to whoever takes over
		s.window.entries[key].at -= 2 * time.Second
	}
	s.window.mu.Unlock()
	server.Do("DEL", keys[0])
	r := s.cluster.owner[slotOf(keys[0])].Load().attendant.r
	if some, err := r.remembers(pass(ctx, everything), serverID{}, false); !some || err != nil {
		t.Errorf("got %v, %v", some, err)
	}
	server.Do("FLUSHALL")
	if some, err := r.remembers(pass(ctx, everything), serverID{}, false); some || err != nil {
		t.Errorf("of nothing: got %v, %v", some, err)
	}
}

// TestOneOfThreePrimaries leaves one primary that answers. It doubts nobody yet, and connections to the others look well: but
// as long as it is the only one who says that it is a primary, nothing is forgotten.
func TestOneOfThreePrimaries(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, NodeTimeout: 15 * time.Second})
	s := open(t, c.URL()+"?timeout=10s")
	confirmed := func() time.Time {
		s.window.mu.Lock()
		defer s.window.mu.Unlock()
		return s.window.confirmed
	}
	eventually(t, "they are confirmed", func() bool { return !confirmed().IsZero() })
	others := c.Primaries()[1:]
	for _, n := range others {
		n.Pause()
	}
	alone := time.Now()
	for range 3 {
		if err := s.cluster.look(context.Background(), lookTimeout); err != nil || !s.cluster.well() {
			t.Fatalf("look: got %v, well: %v", err, s.cluster.well())
		}
		if confirmed().After(alone) {
			t.Fatal("one primary's word counts")
		}
	}
	for _, n := range others {
		n.Resume()
	}
	eventually(t, "they are confirmed again", func() bool { return confirmed().After(alone) })
}
