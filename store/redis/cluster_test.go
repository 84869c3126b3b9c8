package redis

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/storetest"
)

func flush(c *testserver.ClusterSet) {
	for _, n := range c.Primaries() {
		n.Do("FLUSHALL")
	}
}

func TestConformanceOfACluster(t *testing.T) {
	for name, h := range map[string]struct {
		query string
		key   func(word string) string
	}{
		"plain":                    {"", nil},
		"keys with braces":         {"?track=yes&prefix=PHPREDIS_SESSION%3A", func(word string) string { return "}" + word + "{}{" + word + "}" }},
		"all sessions in one slot": {"?prefix=%7Bapp%7D%3A&connections=1", nil},
	} {
		if name != "keys with braces" && os.Getenv("SESSILE_SOAK") == "" { // which has all that the others have
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, NodeTimeout: 20 * time.Second})
			storetest.RunTarget(t, storetest.Harness[*Store]{
				New: func(t *testing.T) *Store {
					flush(c)
					return open(t, c.URL()+h.query)
				},
				Beside: func(t *testing.T, _ *Store) *Store { return open(t, c.URL()+h.query) },
				Key:    h.key, Sharded: true,
			})
		})
	}
}

// reshard moves slots from server to server until ctx ends, and returns how often.
func reshard(ctx context.Context, c *testserver.ClusterSet, slots []int) (moved int) {
	servers := c.Primaries()
	at := map[int]int{} // which of them has a slot
	for _, slot := range slots {
		at[slot] = slices.Index(servers, c.Node(slot))
	}
	for {
		for _, slot := range slots {
			if ctx.Err() != nil {
				return moved
			}
			next := (at[slot] + 1) % len(servers)
			from, to := servers[at[slot]], servers[next]
			c.BeginMove(from, to, slot)
			time.Sleep(5 * time.Millisecond) // so that somebody comes
			c.MoveKeys(from, to, slot)
			time.Sleep(5 * time.Millisecond)
			c.EndMove(to, slot)
			at[slot] = next
			moved++
		}
	}
}

// TestReshard lets writers at work while slots go to and fro under them. Each write happens once: of the numbers that a writer
// puts under its key one by one none is missing and none comes back.
func TestReshard(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL()+"?hold=10s")
	w := s.Workflow("w")
	ctx := context.Background()
	if err := w.RaiseFence(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var keys []string
	var slots []int
	for i := range 8 { // keys whose slots are moved
		key := fmt.Sprint("k}", i)
		keys, slots = append(keys, key), append(slots, slotOf(key))
	}
	still := make([]string, 1600) // keys that stay, most of them in slots that do not
	for i := range still {
		if still[i] = fmt.Sprint("still{", i, "}"); i >= 100 {
			still[i] = fmt.Sprint(slotTag(slots[i%len(slots)]), i)
		}
		if err := s.Save(ctx, still[i], live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	life, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	moved := make(chan int, 1)
	go func() { moved <- reshard(life, c, slots) }()
	var plain, strict, ahead, scans atomic.Int64
	deadline := time.Now().Add(4 * time.Second)
	for i, key := range keys {
		wg.Go(func() {
			for n := 1; time.Now().Before(deadline); n++ {
				was, next := fmt.Sprint(n-1), live(fmt.Sprint(n))
				cond := store.IfVersion(store.VersionOf([]byte(was), 0))
				if n == 1 {
					cond = store.IfAbsent
				}
				var err error
				switch op := opOf(fmt.Sprint(i, "-", n), alive); i % 4 {
				case 0, 1:
					err = s.Save(ctx, key, next, cond)
					plain.Add(1)
				case 2:
					var b store.Begun
					if b, err = w.Begin(ctx, key, op); err == nil && n > 1 && b.Holds != store.VersionOf([]byte(was), 0) {
						err = fmt.Errorf("begin %d finds another value", n)
					}
					if err == nil {
						err = w.Commit(ctx, key, op, &next)
					}
					strict.Add(1)
				case 3:
					var a store.Ahead
					if a, err = w.WriteAhead(ctx, key, op, &next, cond); err == nil {
						var done bool
						if _, done, err = w.Propagated(ctx, key, op, a.Version); err == nil && !done {
							err = errors.New("not propagated")
						}
					}
					ahead.Add(1)
				}
				if err != nil {
					t.Errorf("%s, write %d: %v", key, n, err)
					return
				}
				if rec, m, err := w.LoadMarked(ctx, key); err != nil || rec == nil || string(rec.Data) != fmt.Sprint(n) || m.Kind != store.NoMarker {
					t.Errorf("%s: got %v, %v, %v, want %d", key, rec, m.Kind, err, n)
					return
				}
			}
		})
	}
	wg.Go(func() { // every scan has every key that was there all the time
		for time.Now().Before(deadline) {
			found := map[string]bool{}
			for cursor := ""; ; {
				page, err := s.Scan(ctx, cursor, 100)
				if err != nil {
					t.Errorf("Scan: %v", err)
					return
				}
				for _, key := range page.Keys {
					found[key] = true
				}
				if cursor = page.Cursor; cursor == "" {
					break
				}
			}
			for _, key := range still {
				if !found[key] {
					t.Errorf("a scan has missed %s", key)
					return
				}
			}
			scans.Add(1)
		}
	})
	wg.Go(func() {
		for time.Now().Before(deadline) {
			if r, err := w.Renew(ctx, "g", nil, time.Minute); r.Forgot || err != nil {
				t.Errorf("Renew: got %v, %v", r.Forgot, err)
				return
			}
			if _, err := w.Unsettled(ctx, 10); err != nil {
				t.Errorf("Unsettled: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	wg.Wait()
	stop()
	n := <-moved
	t.Logf("%d slots moved, %d plain writes, %d strict ones, %d ahead, %d scans", n, plain.Load(), strict.Load(), ahead.Load(), scans.Load())
	if n < 10 {
		t.Errorf("only %d slots were moved", n)
	}
}

// keysOf returns n keys whose slots the server has.
func keysOf(c *testserver.ClusterSet, server *testserver.RedisServer, n int) (keys []string) {
	for i := 0; len(keys) < n; i++ {
		if key := fmt.Sprint("key", i); c.Node(slotOf(key)) == server {
			keys = append(keys, key)
		}
	}
	return keys
}

// TestAPrimaryGoes takes one of three primaries away under load. What the others have is served all the time, and what it had
// as soon as Redis has chosen another one.
func TestAPrimaryGoes(t *testing.T) {
	for what, do := range map[string]func(n, replica *testserver.RedisServer){
		"killed":                 func(n, _ *testserver.RedisServer) { n.Kill() },
		"stopped":                func(n, _ *testserver.RedisServer) { n.Pause() },
		"replaced in good order": func(_, replica *testserver.RedisServer) { replica.Do("CLUSTER", "FAILOVER") },
	} {
		t.Run(what, func(t *testing.T) {
			c := testserver.Cluster(t, testserver.ClusterOptions{})
			s := open(t, c.URL()+"?timeout=1s")
			servers := c.Primaries()
			replica := c.ReplicaOf(servers[0])
			ctx := context.Background()
			type tally struct {
				mu                    sync.Mutex
				done, failed, unknown int
				longest               time.Duration // between two that were done
				last                  time.Time     // when one was done
			}
			tallies := make([]tally, len(servers))
			life, stop := context.WithCancel(ctx)
			defer stop()
			var wg sync.WaitGroup
			for i, server := range servers {
				for _, key := range keysOf(c, server, 4) {
					wg.Go(func() {
						last, y := time.Now(), &tallies[i]
						for n := 0; life.Err() == nil; n++ {
							err := s.Save(ctx, key, live(fmt.Sprint(n)), store.Always)
							y.mu.Lock()
							switch store.OutcomeOf(err) {
							case store.OK:
								y.longest = max(y.longest, time.Since(last))
								last = time.Now()
								y.done, y.last = y.done+1, last
							case store.OutcomeUnknown:
								y.unknown++
							default:
								y.failed++
							}
							y.mu.Unlock()
							time.Sleep(time.Millisecond)
						}
					})
				}
			}
			doneSince := func(then time.Time) bool {
				y := &tallies[0]
				y.mu.Lock()
				defer y.mu.Unlock()
				return y.last.After(then)
			}
			eventually(t, "writers are at work", func() bool { return doneSince(time.Time{}) })
			instance, err := s.Instance(ctx)
			if err != nil {
				t.Error(err)
			}
			gone := time.Now()
			do(servers[0], replica)
			eventually(t, "the replica is the primary", func() bool { return replica.Do("ROLE").([]any)[0] == "master" })
			elected := time.Now()
			eventually(t, "the slots are served again", func() bool { return doneSince(elected) })
			served := time.Since(elected)
			eventually(t, "the instance is another one", func() bool { now, err := s.Instance(ctx); return err == nil && now != instance })
			stop()
			wg.Wait()
			t.Logf("Redis chose another primary after %v, and %v later its slots were served", elected.Sub(gone), served)
			if served > 500*time.Millisecond {
				t.Errorf("the slots were served %v after there was a primary", served)
			}
			for i := range tallies {
				y := &tallies[i]
				t.Logf("shard %d: %d done, %d failed, %d unknown, longest pause %v", i, y.done, y.failed, y.unknown, y.longest.Round(time.Millisecond))
				if i > 0 && (y.failed > 0 || y.unknown > 0 || y.longest > time.Second) {
					t.Errorf("shard %d was disturbed", i)
				}
			}
			if what == "replaced in good order" && tallies[0].failed+tallies[0].unknown > 0 {
				t.Error("writes failed")
			}
		})
	}
}

// TestClusterAddresses asks clusters that call their nodes in various ways, and hide them behind passwords and TLS.
func TestClusterAddresses(t *testing.T) {
	secret := testserver.WithPassword("", "pw1")
	for what, node := range map[string][]testserver.RedisOption{
		"by hostnames":                {testserver.WithConf("cluster-announce-hostname localhost", "cluster-preferred-endpoint-type hostname")},
		"as those whom one has asked": {testserver.WithConf("cluster-preferred-endpoint-type unknown-endpoint")},
		"with a password and TLS":     {secret, testserver.WithTLS()},
	} {
		t.Run(what, func(t *testing.T) {
			c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, Node: node})
			s := open(t, c.URL())
			for i := range 50 {
				if err := s.Save(context.Background(), fmt.Sprint(i), live("x"), store.Always); err != nil {
					t.Fatal(err)
				}
			}
			key := keysOf(c, c.Primaries()[0], 1)[0]
			c.BeginMove(c.Primaries()[0], c.Primaries()[1], slotOf(key))
			c.MoveKeys(c.Primaries()[0], c.Primaries()[1], slotOf(key))
			if err := s.Save(context.Background(), key, live("y"), store.Always); err != nil {
				t.Errorf("Save in a slot that is being moved: %v", err)
			}
			for _, h := range s.cluster.all() {
				if host, _, _ := strings.Cut(h.place.Load().addr, ":"); (what == "by hostnames") != (host == "localhost") {
					t.Errorf("a primary is at %s", h.place.Load().addr)
				}
			}
		})
	}
	t.Run("a wrong password", func(t *testing.T) {
		c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, Node: []testserver.RedisOption{secret}})
		u, _ := url.Parse(strings.Replace(c.URL(), "pw1", "pw2", 1))
		if _, err := Open(context.Background(), u); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
			t.Errorf("Open: got %v", err)
		}
	})
	t.Run("what is no cluster", func(t *testing.T) {
		u, _ := url.Parse("redis-cluster://" + testserver.Redis(t).Addr)
		if _, err := Open(context.Background(), u); err == nil || !strings.Contains(err.Error(), "cluster support disabled") {
			t.Errorf("Open: got %v", err)
		}
	})
}

// TestOddSlots is about a cluster in which no server has two slots in a row, and some slots are nobody's.
func TestOddSlots(t *testing.T) {
	var slots [2]strings.Builder
	for slot := 0; slot < 16000; slot++ {
		fmt.Fprint(&slots[slot%2], slot, " ")
	}
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, Slots: []string{slots[0].String(), slots[1].String(), ""}})
	s := open(t, c.URL()+"?hold=500ms")
	ctx := context.Background()
	var entries []store.Entry
	nobodys := ""
	for i := 0; len(entries) < 3000; i++ {
		if key := fmt.Sprint(i); slotOf(key) < 16000 {
			rec := live(key)
			entries = append(entries, store.Entry{Key: key, Record: &rec})
		} else {
			nobodys = key
		}
	}
	if err := s.Save(ctx, nobodys, live("x"), store.Always); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Save in a slot that is nobody's: got %v", err)
	}
	for _, e := range entries {
		if err := s.Save(ctx, e.Key, *e.Record, store.Always); err != nil {
			t.Fatal(err)
		}
	}
	keys := make([]string, len(entries))
	for i, e := range entries {
		keys[i] = e.Key
	}
	all, err := s.InspectAll(ctx, append(keys, "absent"))
	if err != nil || len(all) != len(keys)+1 || all[len(keys)] != nil {
		t.Fatalf("InspectAll: got %d, %v", len(all), err)
	}
	for i, rec := range all[:len(keys)] {
		if rec == nil || string(rec.Data) != keys[i] || rec.Expires.IsZero() {
			t.Fatalf("InspectAll: got %v for %s", rec, keys[i])
		}
	}
}

// Who asks for the lock of a session, which lies elsewhere, does not change where the session is looked for.
func TestResolveLockLeavesTheSlots(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	s := open(t, c.URL())
	for i := range 20 {
		key := fmt.Sprint("k", i)
		before := s.cluster.owner[slotOf(key)].Load()
		if _, err := s.ResolveLock(t.Context(), key, "t", time.Now()); err != nil {
			t.Fatal(err)
		}
		if s.cluster.owner[slotOf(key)].Load() != before {
			t.Errorf("%s is looked for at another server now", key)
		}
	}
}
