package cassandra_test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
)

// A cluster of three, with three copies of each session: one node killed, and one that stands still, are nobody's logout and lose
// nothing; without a quorum nobody is answered, and nothing is done.
func TestAClusterOfThree(t *testing.T) {
	if os.Getenv("SESSILE_SOAK") == "" {
		t.Skip("three nodes take half a minute to start; SESSILE_SOAK=1 runs it")
	}
	nodes := testserver.CassandraCluster(t, 3)
	cfg := gocql.NewCluster(nodes[0].Addr)
	cfg.Timeout, cfg.ConnectTimeout = 20*time.Second, 10*time.Second
	operator, err := cfg.CreateSession()
	ok(t, "connect", err)
	t.Cleanup(operator.Close)
	ok(t, "CREATE", operator.Query("CREATE KEYSPACE three WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}").Exec())
	s, err := cassandra.Open(t.Context(), cassandra.Options{Hosts: []string{nodes[0].Addr, nodes[1].Addr}, Keyspace: "three", Create: true, Datacenter: "datacenter1"})
	ok(t, "Open", err)
	t.Cleanup(func() { s.Close() })
	const writers = 6
	var acked, tried [writers]atomic.Int64
	var failed atomic.Int64
	var done atomic.Bool
	var wg sync.WaitGroup
	defer func() { done.Store(true); wg.Wait() }()
	for i := range writers {
		key := fmt.Sprint("counter", i)
		ok(t, "Save", s.Save(in10s(t), key, record("0"), store.Always))
		wg.Go(func() {
			for !done.Load() {
				n := tried[i].Add(1)
				switch err := s.Save(t.Context(), key, record(strconv.FormatInt(n, 10)), store.Always); store.OutcomeOf(err) {
				case store.OK:
					acked[i].Store(n)
				case store.OutcomeUnavailable, store.OutcomeUnknown:
					if failed.Add(1) == 1 {
						t.Logf("the first failure: %v", err)
					}
				default:
					t.Errorf("Save: %v", err)
				}
				if _, err := s.Load(t.Context(), key); errors.Is(err, store.ErrAbsent) {
					t.Error("logged out")
				}
			}
		})
	}
	// all waits until everybody has written again so often.
	all := func(what string, times int64) {
		t.Helper()
		var from [writers]int64
		for i := range writers {
			from[i] = acked[i].Load()
		}
		begun, before := time.Now(), failed.Load()
		waitFor(t, what, func() error {
			for i := range writers {
				if got := acked[i].Load(); got < from[i]+times {
					return fmt.Errorf("writer %d: %d of %d", i, got-from[i], times)
				}
			}
			return nil
		})
		t.Logf("%s: after %v, and %d failures", what, time.Since(begun).Round(time.Millisecond), failed.Load()-before)
	}
	all("three nodes", 20)
	nodes[2].Kill()
	all("one is killed", 20)
	nodes[2].Restart()
	all("it is back", 20)
	waitFor(t, "the others know that", func() error {
		var n int
		if err := operator.Query("SELECT count(*) FROM system.peers").Scan(&n); err != nil || n != 2 {
			return fmt.Errorf("%d, %w", n, err)
		}
		return nil
	})
	nodes[1].Pause()
	all("one stands still", 20)
	nodes[1].Resume()
	all("it goes on", 20)
	nodes[1].Kill()
	nodes[2].Kill()
	waitFor(t, "there is no quorum", func() error {
		if err := s.Save(in10s(t), "lonely", record("x"), store.IfAbsent); store.OutcomeOf(err) != store.OutcomeUnavailable {
			return fmt.Errorf("Save: %v", err)
		}
		_, err := s.Load(in10s(t), "lonely")
		if store.OutcomeOf(err) != store.OutcomeUnavailable {
			return fmt.Errorf("Load: %v", err)
		}
		return nil
	})
	nodes[1].Restart()
	nodes[2].Restart()
	all("all are back", 5)
	done.Store(true)
	wg.Wait()
	for i := range writers {
		rec, err := s.Inspect(in10s(t), fmt.Sprint("counter", i))
		ok(t, "Inspect", err)
		if got, err := strconv.ParseInt(string(rec.Data), 10, 64); err != nil || got < acked[i].Load() || got > tried[i].Load() {
			t.Errorf("writer %d: got %q, acknowledged %d, tried %d", i, rec.Data, acked[i].Load(), tried[i].Load())
		}
	}
}
