package redis

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// openLoud is open with a log, where -v is given.
func openLoud(t testing.TB, text string) *Store {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseURL(u)
	if err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, err := Connect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A burden saves sessions, every one under a new key, and keeps what it was told.
type burden struct {
	s       *Store
	stop    atomic.Bool
	wg      sync.WaitGroup
	mu      sync.Mutex
	acked   map[string]bool
	unknown int
	refused int
	pause   time.Duration // the longest time without an answer "done"
	last    time.Time
}

func newBurden(t *testing.T, s *Store, writers int) *burden {
	l := &burden{s: s, acked: map[string]bool{}, last: time.Now()}
	for w := range writers {
		l.wg.Go(func() {
			for i := 0; !l.stop.Load(); i++ {
				key := fmt.Sprintf("w%d-%d", w, i)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				err := s.Save(ctx, key, live(key), store.Always)
				cancel()
				l.mu.Lock()
				switch store.OutcomeOf(err) {
				case store.OutcomeOf(nil):
					l.acked[key] = true
					l.pause = max(l.pause, time.Since(l.last))
					l.last = time.Now()
				case store.OutcomeUnknown:
					l.unknown++
				default:
					l.refused++
				}
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *burden) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

// lost counts what was acknowledged and is not in server.
func (l *burden) lost(server *testserver.RedisServer) (n int) {
	for key := range l.acked {
		if server.Do("EXISTS", key) == int64(0) {
			n++
		}
	}
	return n
}

func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	set := testserver.Sentinel(t, testserver.SentinelOptions{})
	for _, how := range []string{"planned", "killed", "paused"} {
		t.Run(how, func(t *testing.T) {
			set.WaitOK()
			s := openLoud(t, set.URL())
			old := set.Primary()
			l := newBurden(t, s, 16)
			time.Sleep(500 * time.Millisecond)
			switch how {
			case "planned":
				set.Failover()
			case "killed":
				old.Kill()
			case "paused":
				old.Pause()
			}
			primary := set.WaitPrimary(old)
			if how == "paused" {
				old.Resume()
			}
			eventually(t, "writes at the new primary", func() bool {
				return s.Save(context.Background(), "after", live("x"), store.Always) == nil && primary.Do("EXISTS", "after") == int64(1)
			})
			time.Sleep(500 * time.Millisecond)
			l.end()
			if how == "killed" {
				old.Restart()
			}
			lost := l.lost(primary)
			t.Logf("%s: %d acknowledged, %d lost, %d unknown, %d refused, pause %v", how, len(l.acked), lost, l.unknown, l.refused, l.pause)
			if lost > 0 {
				t.Errorf("%d of %d acknowledged writes are lost", lost, len(l.acked))
			}
		})
	}
}

func TestWritesThatWaitForReplicas(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{DownAfter: time.Minute})
	s := openLoud(t, set.URL()+"?wait=1500ms")
	strict := openLoud(t, set.URL()+"?wait=200ms&shortfall=fail")
	replicas := set.ReplicasOf(set.Primary())
	ctx := store.Replicated(context.Background())
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 50 {
				key := fmt.Sprintf("s%d-%d", w, i)
				if err := s.Save(ctx, key, live(key), store.Always); err != nil {
					t.Errorf("Save: %v", err)
				}
				for _, r := range replicas {
					if i%10 == 0 && r.Do("EXISTS", key) != int64(1) {
						t.Errorf("%s was acknowledged, and a replica does not have it", key)
					}
				}
			}
		})
	}
	wg.Wait()
	if existed, err := s.Delete(ctx, "s0-0", store.Always); !existed || err != nil || replicas[1].Do("EXISTS", "s0-0") != int64(0) {
		t.Errorf("Delete: got %v, %v", existed, err)
	}
	if n := s.shortfalls.Load(); n != 0 {
		t.Errorf("%d writes were not confirmed by all replicas", n)
	}
	if err := s.Save(ctx, "s", live("x"), store.IfVersion("other")); store.OutcomeOf(err) != store.OutcomeConflict {
		t.Errorf("Save under a condition that does not hold: got %v", err)
	}

	replicas[0].Pause()
	if err := s.Save(ctx, "short", live("x"), store.Always); err != nil || s.shortfalls.Load() != 1 {
		t.Errorf("with one replica less: got %v, %d counted", err, s.shortfalls.Load())
	}
	if err := strict.Save(ctx, "short", live("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnknown {
		t.Errorf("with one replica less, shortfall=fail: got %v", err)
	}
	slow := openLoud(t, set.URL()+"?wait=2s")
	var over atomic.Bool
	wg.Go(func() { slow.Save(ctx, "short", live("x"), store.Always); over.Store(true) })
	for i := range 100 {
		if err := slow.Save(context.Background(), "other", live("x"), store.Always); err != nil || over.Load() {
			t.Fatalf("any other write, the %dth: got %v; it waited %v", i, err, over.Load())
		}
	}
	wg.Wait()
}

func TestSentinelsWithPasswordsTLSAndNames(t *testing.T) {
	for what, o := range map[string]testserver.SentinelOptions{
		"passwords": {Node: []testserver.RedisOption{testserver.WithPassword("app", "secret")}, Sentinel: []testserver.RedisOption{testserver.WithPassword("eve", "other")}},
		"TLS":       {Node: []testserver.RedisOption{testserver.WithTLS()}},
		"names":     {Hostnames: true},
	} {
		t.Run(what, func(t *testing.T) {
			set := testserver.Sentinel(t, o)
			s := openLoud(t, set.URL())
			old := set.Primary()
			at(t, s, old)
			set.Failover()
			at(t, s, set.WaitPrimary(old))
			if moves := s.node.moves.Load(); moves > 4 {
				t.Errorf("the primary has changed %d times", moves)
			}
		})
	}
}
