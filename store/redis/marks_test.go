package redis

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"os"
	"regexp"
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

func TestConformanceOfAClusterAsAnOrigin(t *testing.T) {
	t.Parallel()
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1, NodeTimeout: 20 * time.Second})
	storetest.RunOrigin(t, storetest.Harness[*Origin]{
		New: func(t *testing.T) *Origin {
			flush(c)
			return NewOrigin(open(t, c.URL()+"?prefix=PHPREDIS_CLUSTER_SESSION%3A"), 0)
		},
		Key:     func(word string) string { return "}" + word + "{}{" + word + "}" },
		BadKeys: []string{"k_LOCK"},
		Sharded: true,
	})
}

// marksOf is a Cluster with two gateways that have it as their origin, and a session in each shard.
type marksOf struct {
	t    *testing.T
	c    *testserver.ClusterSet
	a, b *Origin
	keys []string
}

func newMarks(t *testing.T) *marksOf {
	t.Helper()
	m := &marksOf{t: t, c: testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})}
	m.a, m.b = m.open(), m.open()
	for _, n := range m.c.Primaries() {
		m.keys = append(m.keys, keysOf(m.c, n, 1)[0])
	}
	return m
}

func (m *marksOf) open() *Origin {
	return NewOrigin(open(m.t, m.c.URL()+"?replay=off&timeout=10s"), 0) // however slow this machine is
}

// home is the mark that counts.
func (m *marksOf) home() stamp {
	m.t.Helper()
	raw, err := m.a.readHome(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	home, err := parseStamp(raw)
	if err != nil {
		m.t.Fatal(err)
	}
	return home
}

// late tells all slots what home says, or has said.
func (m *marksOf) late(home stamp) (latest stamp, lost, away bool, err error) {
	m.a.told.forget()
	return m.a.spread(m.t.Context(), home)
}

// says wants o to know this mark, and that writes go under it and under none of the others.
func (m *marksOf) says(o *Origin, want store.Mark, others ...store.Mark) {
	m.t.Helper()
	ctx := context.Background()
	if got, err := o.Mark(ctx); got != want || err != nil {
		m.t.Fatalf("Mark: got %+v, %v, want %+v", got, err, want)
	}
	for _, key := range m.keys {
		for _, other := range others {
			if err := o.Under(other).Save(ctx, key, live("x"), store.Always); !errors.Is(err, store.ErrSealed) {
				m.t.Errorf("Save of %q under %+v: %v", key, other, err)
			}
		}
		if err := o.Under(want).Save(ctx, key, live("x"), store.Always); err != nil {
			m.t.Errorf("Save of %q: %v", key, err)
		}
		if _, err := o.Under(want).Load(ctx, key); err != nil {
			m.t.Errorf("Load of %q: %v", key, err)
		}
		if _, err := o.Under(want).Inspect(ctx, key); err != nil {
			m.t.Errorf("Inspect of %q: %v", key, err)
		}
	}
}

// notHome is a server that does not have the mark that counts.
func (m *marksOf) notHome() *testserver.RedisServer {
	home := m.c.Node(m.a.home())
	all := m.c.Primaries()
	return all[slices.IndexFunc(all, func(n *testserver.RedisServer) bool { return n != home })]
}

var next = store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: 4, Floor: store.FloorRampDown}}

func TestAClusterHasOneMark(t *testing.T) {
	m := newMarks(t)
	m.says(m.a, store.Mark{}, marked)
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.b, marked, store.Mark{}, next)
	swap(t, m.b, marked, next)
	m.says(m.a, next, store.Mark{}, marked)
	if err := m.a.SwapMark(t.Context(), marked, store.Mark{}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a swap of what was: %v", err)
	}
	swap(t, m.a, next, store.Mark{})
	m.says(m.b, store.Mark{}, marked, next)
	swap(t, m.b, store.Mark{}, marked) // over what is left of the one before
	m.says(m.a, marked, store.Mark{}, next)
	m.says(m.open(), marked)
	m.says(NewOrigin(m.a.Store, 0), marked) // which knows nothing of the slots
}

// Who was killed in the middle of a swap has changed the mark of home, and told perhaps some: nobody knows it as the mark
// before all are told.
func TestASwapThatWasCutOff(t *testing.T) {
	for _, from := range []store.Mark{{}, marked} {
		m := newMarks(t)
		if from != (store.Mark{}) {
			swap(t, m.a, store.Mark{}, from)
		}
		m.says(m.b, from)
		is, _ := encodeMark(next)
		if err := m.a.stamp(t.Context(), m.home(), 0, map[bool]string{true: tellAll, false: tellMarked}[from == store.Mark{}], is); err != nil {
			t.Fatal(err)
		}
		m.says(m.b, next, from)
		m.says(m.a, next, from)
	}
}

// What comes late undoes nothing.
func TestATellingThatComesLate(t *testing.T) {
	m := newMarks(t)
	swap(t, m.a, store.Mark{}, marked)
	home := m.home()
	home.note = tellAll
	m.says(m.b, marked)
	swap(t, m.b, marked, next)
	if latest, _, _, err := m.late(home); err != nil || latest.serial <= home.serial {
		t.Fatal(latest, err)
	}
	m.says(m.b, next, marked)
	swap(t, m.b, next, store.Mark{})
	if _, _, _, err := m.late(home); err != nil {
		t.Fatal(err)
	}
	m.says(m.b, store.Mark{}, marked, next)
}

// A shard that has lost its sessions has lost its marks with them: nobody is told that he is not logged in, and the origin has
// no identity any more until a person has said how to go on.
func TestAShardOfAnOriginForgets(t *testing.T) {
	eachShard(t, func(t *testing.T, m *marksOf, server *testserver.RedisServer) {
		ctx := t.Context()
		swap(t, m.a, store.Mark{}, marked)
		for _, o := range []*Origin{m.a, m.b} {
			m.says(o, marked)
		}
		server.Do("FLUSHALL")
		for _, key := range m.keys {
			_, err := m.a.Under(marked).Load(ctx, key)
			if lost := m.c.NodeOf(key) == server; lost && !errors.Is(err, store.ErrSealed) || !lost && err != nil {
				t.Errorf("Load of %q: %v", key, err)
			}
		}
		bare := marked
		bare.Identity = ""
		eventually(t, "that is seen", func() bool { got, err := m.a.Mark(ctx); return got == bare && err == nil })
		if got, err := m.b.Mark(ctx); got != bare || err != nil {
			t.Errorf("the other one sees %+v, %v", got, err)
		}
		m.noReader(server)
		swap(t, m.b, bare, marked) // a person's decision
		m.says(m.a, marked, bare)
	})
}

// eachShard runs a test of the shard that has the mark that counts, and of another one.
func eachShard(t *testing.T, test func(t *testing.T, m *marksOf, server *testserver.RedisServer)) {
	for name, which := range map[string]func(m *marksOf) *testserver.RedisServer{
		"home":        func(m *marksOf) *testserver.RedisServer { return m.c.Node(m.a.home()) },
		"another one": (*marksOf).notHome,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMarks(t)
			test(t, m, which(m))
		})
	}
}

// A server that comes back with an older memory has older marks. Those of the others know better.
func TestAShardOfAnOriginIsOlder(t *testing.T) {
	eachShard(t, func(t *testing.T, m *marksOf, server *testserver.RedisServer) {
		swap(t, m.a, store.Mark{}, marked)
		server.Do("SAVE")
		swap(t, m.a, marked, next)
		m.says(m.b, next)
		server.Kill()
		server.Restart()
		m.c.WaitOK()
		for _, o := range []*Origin{m.a, m.b, m.open()} {
			eventually(t, "it answers", func() bool {
				got, err := o.Mark(t.Context())
				for _, key := range m.keys {
					err = cmp.Or(err, o.Under(next).Save(t.Context(), key, live("x"), store.Always))
				}
				return err == nil && got == next
			})
			m.says(o, next, marked)
		}
	})
}

// Marks change, gateways begin, and slots go from server to server, all at once: what anybody knows as the mark is what all
// slots go by, until somebody has begun to change it.
func TestTheMarkOfAClusterOnTheMove(t *testing.T) {
	m := newMarks(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	began := time.Now()
	var wg sync.WaitGroup
	slots := []int{slotOf(m.keys[0]), slotOf(m.keys[1]), slotOf(m.keys[2]), 1, 2, 3}
	wg.Go(func() { reshard(ctx, m.c, slots) })
	mark := func(epoch uint64) store.Mark {
		return store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: epoch, Floor: store.Floor(epoch % 4)}}
	}
	if err := m.a.SwapMark(ctx, store.Mark{}, mark(1)); err != nil {
		t.Fatal(err)
	}
	var swaps, saves, refused atomic.Int64
	wg.Go(func() { // it swaps
		for epoch := uint64(1); ctx.Err() == nil; {
			switch now, err := m.a.Mark(ctx); {
			case err != nil && ctx.Err() == nil:
				t.Errorf("Mark: %v", err)
			case err == nil:
				epoch = now.Seal.Epoch
				if m.a.SwapMark(ctx, now, mark(epoch+1)) == nil {
					swaps.Add(1)
				}
			}
			sleep(ctx, rand.N(200*time.Millisecond))
		}
	})
	wg.Go(func() { // it writes under what was before what it knows
		for ctx.Err() == nil {
			now, err := m.b.Mark(ctx)
			if err != nil {
				continue
			}
			for _, key := range m.keys {
				if now.Seal.Epoch > 1 {
					if err := m.b.Under(mark(now.Seal.Epoch-1)).Save(ctx, key, live("x"), store.Always); err == nil {
						t.Errorf("%q was saved under epoch %d, while %d is known", key, now.Seal.Epoch-1, now.Seal.Epoch)
					}
					refused.Add(1)
				}
				if err := m.b.Under(now).Save(ctx, key, live("x"), store.Always); err == nil {
					saves.Add(1)
				}
			}
		}
	})
	for ctx.Err() == nil && (time.Since(began) < 3*time.Second || swaps.Load() < 8 || saves.Load() < 50 || refused.Load() < 50) {
		sleep(ctx, pollEvery)
	}
	if ctx.Err() != nil {
		t.Error("that is not much")
	}
	stop()
	wg.Wait()
	t.Logf("%d swaps, %d saves, %d refused in %v", swaps.Load(), saves.Load(), refused.Load(), time.Since(began))
}

func BenchmarkSwapMarkOfACluster(b *testing.B) {
	c := testserver.Cluster(b, testserver.ClusterOptions{Replicas: -1})
	o := NewOrigin(open(b, c.URL()), 0)
	was := store.Mark{}
	for i := range b.N {
		now := store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: uint64(i) + 1}}
		if err := o.SwapMark(b.Context(), was, now); err != nil {
			b.Fatal(err)
		}
		was = now
	}
}

// The primary of a shard is killed. Without a replica its sessions wait, and nobody else does, but for the mark itself; with one
// all of it is there again, and the next swap tells the new primary, too.
func TestAShardOfAnOriginIsAway(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m := newMarks(t)
	swap(t, m.a, store.Mark{}, marked)
	away := m.notHome()
	gone := map[string]bool{}
	for _, key := range m.keys {
		gone[key] = m.c.NodeOf(key) == away
	}
	away.Kill()
	b := m.open()
	for _, o := range []*Origin{m.a, b} {
		if got, err := o.Mark(ctx); got != marked || err != nil {
			t.Errorf("Mark: got %+v, %v", got, err)
		}
		for _, key := range m.keys {
			short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			err := o.Under(marked).Save(short, key, live("x"), store.Always)
			cancel()
			if is := gone[key]; is == (err == nil) || is && !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Save of %q: %v", key, err)
			}
		}
	}
	swap(t, m.a, marked, next) // all are told who are there
	for _, o := range []*Origin{m.a, b} {
		began := time.Now()
		if got, err := o.Mark(ctx); got != next || err != nil {
			t.Errorf("Mark: got %+v, %v", got, err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("Mark took %v", d)
		}
		for _, key := range m.keys {
			if gone[key] {
				continue
			}
			if err := o.Under(next).Save(ctx, key, live("x"), store.Always); err != nil {
				t.Errorf("Save of %q: %v", key, err)
			}
			if err := o.Under(marked).Save(ctx, key, live("x"), store.Always); !errors.Is(err, store.ErrSealed) {
				t.Errorf("Save of %q under the mark that was: %v", key, err)
			}
		}
	}
	away.Restart() // with nothing
	m.c.WaitOK()
	bare := next
	bare.Identity = ""
	eventually(t, "what it has lost is seen", func() bool { got, err := b.Mark(ctx); return err == nil && got == bare })
}

func TestAFailoverOfAnOriginsShard(t *testing.T) {
	t.Parallel()
	m := &marksOf{t: t, c: testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})}
	m.a, m.b = m.open(), m.open()
	for _, n := range m.c.Primaries() {
		m.keys = append(m.keys, keysOf(m.c, n, 1)[0])
	}
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.b, marked)
	home := m.a.home()
	old := m.c.Node(home)
	old.Kill()
	m.c.WaitPrimary(home, old)
	eventually(t, "it answers", func() bool { got, err := m.b.Mark(t.Context()); return err == nil && got == marked })
	m.says(m.b, marked, store.Mark{})
	swap(t, m.a, marked, next)
	m.says(m.b, next, marked)
}

// noReader wants nobody to be told of what was in a shard that has lost its memory.
func (m *marksOf) noReader(server *testserver.RedisServer) {
	m.t.Helper()
	for _, key := range m.keys {
		if m.c.NodeOf(key) != server {
			continue
		}
		if _, err := m.b.Under(marked).Load(m.t.Context(), key); !errors.Is(err, store.ErrSealed) {
			m.t.Errorf("Load of %q: %v", key, err)
		}
	}
}

// A swap tells those who have a mark: one that has none has lost it, and what it had.
func TestASwapDoesNotCoverALoss(t *testing.T) {
	t.Parallel()
	m := newMarks(t)
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.b, marked)
	server := m.notHome()
	server.Do("FLUSHALL") // which nothing tells
	if err := m.a.SwapMark(t.Context(), marked, next); store.OutcomeOf(err) != store.OutcomeUnknown {
		t.Errorf("SwapMark: %v", err)
	}
	bare := next
	bare.Identity = ""
	if got, err := m.b.Mark(t.Context()); got != bare || err != nil {
		t.Errorf("Mark: got %+v, %v", got, err)
	}
	m.noReader(server)
}

// The slot of home may be lost alone.
func TestTheSlotOfHomeIsLost(t *testing.T) {
	t.Parallel()
	m := newMarks(t)
	m.keys = append(m.keys, "{sessile}user")
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.a, marked)
	server := m.c.NodeOf("{sessile}user")
	server.Do("DEL", "{sessile}user")
	server.Do("DEL", m.a.homeMark())
	bare := marked
	bare.Identity = ""
	if got, err := m.b.Mark(t.Context()); got != bare || err != nil {
		t.Errorf("Mark: got %+v, %v", got, err)
	}
	m.keys = []string{"{sessile}user"}
	m.noReader(server)
}

// Home has come back with an older mark: a swap of that one is refused, where the others can be asked; where they cannot, nobody is
// told the older one who knows better.
func TestAnOlderHome(t *testing.T) {
	t.Parallel()
	m := newMarks(t)
	ctx := t.Context()
	retreat := marked // under the same epoch
	retreat.Seal.Floor = store.FloorRetreat
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.b, marked)
	home := m.c.Node(m.a.home())
	home.Do("SAVE")
	swap(t, m.a, marked, next)
	m.says(m.a, next, marked)
	home.Kill()
	home.Restart()
	m.c.WaitOK()
	if err := m.b.SwapMark(ctx, marked, retreat); err == nil {
		t.Error("a mark that was replaced is replaced")
	}
	m.says(m.a, next, retreat, marked)

	home.Do("SAVE")
	swap(t, m.a, next, retreat)
	m.says(m.a, retreat)
	home.Kill()
	home.Restart()
	m.c.WaitOK()
	for _, n := range m.c.Primaries() {
		if n != home {
			n.Pause()
			t.Cleanup(n.Resume)
		}
	}
	for range 3 {
		short, cancel := context.WithTimeout(ctx, time.Second)
		if got, err := m.a.Mark(short); err == nil && got != retreat {
			t.Errorf("it is forgotten: %+v", got)
		}
		cancel()
	}
}

// One serial for two marks: home has lost the second one, and its clock is behind. That of the others counts.
func TestOneSerialForTwoMarks(t *testing.T) {
	t.Parallel()
	m := newMarks(t)
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.a, marked)
	m.says(m.b, marked)
	was := m.home()
	swap(t, m.a, marked, next)
	retreat := marked
	retreat.Seal.Floor = store.FloorRetreat
	text, _ := encodeMark(retreat)
	if err := m.a.stamp(t.Context(), m.home(), m.home().serial, "", text); err != nil {
		t.Fatal(err)
	}
	c := m.open()
	m.says(c, next, retreat, marked)
	m.says(m.a, next, retreat, marked)
	if now := m.home(); now.serial <= was.serial+1 {
		t.Errorf("the serial is %d, and was %d", now.serial, was.serial)
	}
}

// A replica that stands still holds nobody up.
func TestAReplicaOfAnOriginStandsStill(t *testing.T) {
	t.Parallel()
	m := &marksOf{t: t, c: testserver.Cluster(t, testserver.ClusterOptions{})}
	m.a, m.b = m.open(), m.open()
	swap(t, m.a, store.Mark{}, marked)
	m.says(m.b, marked)
	replica := m.c.ReplicaOf(m.c.Primaries()[0])
	replica.Pause()
	defer replica.Resume()
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := m.a.SwapMark(short, marked, next); err != nil {
		t.Errorf("SwapMark: %v", err)
	}
	m.says(m.b, next, marked)
}

// The rights that the documentation names are enough, and one that is missing is seen.
func TestCheckOfACluster(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile(`ACL SETUSER sessile .*`).FindAllString(string(page), 2)
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	for _, n := range c.Primaries() {
		for _, line := range rights {
			n.Do(strings.Fields(strings.Replace(line, "PASSWORD", "secret", 1))...)
		}
	}
	u, err := url.Parse(c.URL() + "?replay=off&prefix=PHPREDIS_SESSION:")
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("sessile", "secret")
	o := NewOrigin(open(t, u.String()), 0)
	if err := o.SwapMark(t.Context(), store.Mark{}, marked); err != nil {
		for _, n := range c.Primaries() {
			t.Log(n.Do("ACL", "LOG"))
		}
		t.Fatal(err)
	}
	f, err := o.Check(t.Context())
	if err != nil || len(f.Against) > 0 || said(f.Advice, "may not") || !said(f.Facts, "a Cluster of 3 primaries") {
		t.Errorf("got %+v, %v", f, err)
	}
	c.Nodes[1].Do("ACL", "SETUSER", "sessile", "-asking")
	if f, err = o.Check(t.Context()); err != nil || !said(f.Against, "lacks the right to ASKING") {
		t.Errorf("got %+v, %v", f, err)
	}
}
