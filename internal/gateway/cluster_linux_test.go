package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store/redis"
)

// onCluster serves a Cluster, by a loop that is connected to all its primaries.
func onCluster(t *testing.T, c *testserver.ClusterSet, params string) (*gateway, *redis.Store) {
	t.Helper()
	return before(t, c, params, true)
}

// before serves a Cluster by a loop or by hand.
func before(t *testing.T, c *testserver.ClusterSet, params string, loop bool) (*gateway, *redis.Store) {
	t.Helper()
	u, err := url.Parse(c.URL() + params)
	if err != nil {
		t.Fatal(err)
	}
	st, err := redis.Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	viaLoop = loop
	defer func() { viaLoop = false }()
	gw := start(t, Site{Store: st})
	keys := oneOfEach(c)
	gw.linked(keys...)
	for _, key := range keys {
		gw.dial().want(null, "GET", key) // waits until the gateway is registered there
	}
	return gw, st
}

// oneOfEach returns a key of each primary.
func oneOfEach(c *testserver.ClusterSet) (keys []string) {
	for _, p := range c.Primaries() {
		keys = append(keys, keysOf(c, p, 1)...)
	}
	return keys
}

// keysOf returns n keys that lie on p.
func keysOf(c *testserver.ClusterSet, p *testserver.RedisServer, n int) (keys []string) {
	for i := 0; len(keys) < n; i++ {
		if key := fmt.Sprint("k", i); c.NodeOf(key) == p {
			keys = append(keys, key)
		}
	}
	return keys
}

// underway waits until the loop, if there is one, has sent n requests that are not answered.
func (g *gateway) underway(t *testing.T, n int) {
	t.Helper()
	if g.loop == nil {
		return
	}
	eventually(t, "they are under way", func() bool {
		sent := make(chan int, 1)
		g.loop.post(func() {
			sum := 0
			for _, u := range g.loop.ups {
				sum += u.ring.n
			}
			sent <- sum
		})
		return <-sent >= n // a PING may be among them
	})
}

// carried returns how many bytes each uplink of the loop has sent.
func (g *gateway) carried() (sent []uint64) {
	done := make(chan bool)
	g.loop.post(func() {
		for _, u := range g.loop.ups {
			sent = append(sent, u.taken)
		}
		close(done)
	})
	<-done
	return sent
}

// A visitor has sessions of its own, knows what they are, and asks for them in pipelines, through one connection.
type visitor struct {
	t    *testing.T
	c    *client
	rng  *rand.Rand
	seed uint64
	keys []string
	is   map[string]string
	sent atomic.Int64 // commands that were answered
	next int
}

func newVisitor(gw *gateway, name, sessions int) *visitor {
	seed := rand.Uint64()
	u := &visitor{t: gw.t.(*testing.T), c: gw.dial(), rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, is: map[string]string{}}
	for i := range sessions {
		u.keys = append(u.keys, fmt.Sprintf("u%d-%d", name, i))
	}
	return u
}

// pipeline sends n commands at once, and reports whether each answer is the one that there has to be.
func (u *visitor) pipeline(n int) bool {
	u.t.Helper()
	var sent, want []string
	var all strings.Builder
	kind := u.rng.IntN(4)
	for range n {
		key := u.keys[u.rng.IntN(len(u.keys))]
		if u.rng.IntN(8) == 0 {
			kind = u.rng.IntN(8)
		}
		value, there := u.is[key]
		count := ":0\r\n"
		if there {
			count = ":1\r\n"
		}
		var args []string
		switch kind {
		case 0, 1, 2:
			u.next++
			v := strconv.Itoa(u.next)
			args, want, u.is[key] = []string{"SETEX", key, "1000", v}, append(want, "+OK\r\n"), v
		case 3, 4:
			args, want = []string{"GET", key}, append(want, null)
			if there {
				want[len(want)-1] = bulk(value)
			}
		case 5:
			args, want = []string{"EXISTS", key}, append(want, count)
		case 6:
			args, want = []string{"EXPIRE", key, "2000"}, append(want, count)
		case 7:
			args, want = []string{"DEL", key}, append(want, count)
			delete(u.is, key)
		}
		sent = append(sent, strings.Join(args, " "))
		all.WriteString(command_(args...))
	}
	u.c.send(all.String())
	for i := range want {
		got, err := u.c.tryReply(patience)
		if err != nil || got != want[i] {
			u.t.Errorf("seed %d: answer %d of %q: got %q, %v, want %q", u.seed, i, sent, got, err, want[i])
			return false
		}
		u.sent.Add(1)
	}
	return true
}

// The loop speaks to each primary of a Cluster, and every command goes where its key lies, a lock where the lock's name does.
func TestLoopOnACluster(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	gw, _ := onCluster(t, c, "")

	// All of it by the loop, and by all uplinks.
	before := gw.carried()
	u := newVisitor(gw, 0, 60)
	var all uint64
	for _, key := range u.keys {
		u.is[key] = key
		u.c.want("+OK\r\n", "SETEX", key, "100", key)
		all += uint64(len(command_("SET", key, key, "PX", "100000")))
	}
	for range 20 {
		var asks, want strings.Builder
		for range maxFlight {
			key := u.keys[u.rng.IntN(len(u.keys))]
			asks.WriteString(command_("GET", key))
			want.WriteString(bulk(key))
		}
		u.c.send(asks.String())
		all += uint64(asks.Len())
		for got := ""; len(got) < want.Len(); {
			if got += u.c.reply(); !strings.HasPrefix(want.String(), got) {
				t.Fatalf("got %q, want %q", got, want.String())
			}
		}
	}
	for i, sent := range gw.carried() {
		if sent == before[i] {
			t.Errorf("uplink %d carried nothing", i)
		}
		all -= min(all, sent-before[i])
	}
	if len(before) != 3 || all > 0 {
		t.Errorf("%d uplinks, and of what was to go by them %d bytes did not", len(before), all)
	}

	for range 100 {
		if !u.pipeline(1 + u.rng.IntN(100)) {
			break
		}
	}
	release := "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"
	for _, key := range u.keys[:10] {
		u.c.want("+OK\r\n", "SET", key+"_LOCK", "t", "NX", "PX", "60000")
		if got := c.NodeOf(key+"_LOCK").Do("GET", key+"_LOCK"); got != "t" {
			t.Errorf("the lock on %s is %v", key, got)
		}
		u.c.want(":0\r\n", "EVAL", release, "1", key+"_LOCK", "other")
		u.c.want(":1\r\n", "EVAL", release, "1", key+"_LOCK", "t")
	}
}

// While slots go from one server to another, every command of every pipeline is answered as if they stayed.
func TestLoopWhileSlotsMove(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	gw, st := onCluster(t, c, "")
	var users []*visitor
	var over atomic.Bool
	var wg sync.WaitGroup
	for i := range 6 {
		u := newVisitor(gw, i, 20)
		users = append(users, u)
		wg.Go(func() {
			for !over.Load() && u.pipeline(16) {
			}
		})
	}
	answered := func() (n int64) {
		for _, u := range users {
			n += u.sent.Load()
		}
		return n
	}
	rng := rand.New(rand.NewPCG(1, 2))
	primaries := c.Primaries()
	began := gw.carried()
	for n := 0; n < 60 && !t.Failed(); n++ {
		u := users[rng.IntN(len(users))]
		slot := c.Slot(u.keys[rng.IntN(len(u.keys))])
		from := c.Node(slot)
		to := primaries[rng.IntN(len(primaries))]
		if to == from {
			continue
		}
		wait := func() { // until the users have been at it
			for was := answered(); rng.IntN(2) == 0 && answered() < was+200 && !t.Failed(); {
				time.Sleep(time.Millisecond)
			}
		}
		c.BeginMove(from, to, slot)
		wait()
		c.MoveKeys(from, to, slot)
		wait()
		c.EndMove(to, slot)
		wait()
	}
	over.Store(true)
	wg.Wait()
	asked, moved := 0, 0
	for _, p := range primaries {
		stats := p.CLI("INFO", "errorstats")
		asked, moved = asked+strings.Count(stats, "errorstat_ASK"), moved+strings.Count(stats, "errorstat_MOVED")
	}
	sent := uint64(0)
	for i, n := range gw.carried() {
		sent += n - began[i]
	}
	if asked == 0 || moved == 0 || sent < uint64(answered())*10 {
		t.Errorf("ASK of %d servers, MOVED of %d, %d bytes by the loop for %d commands: nothing was tried", asked, moved, sent, answered())
	}
	for _, u := range users {
		for _, key := range u.keys {
			if got, _ := c.NodeOf(key).Do("GET", key).(string); got != u.is[key] {
				t.Errorf("in the end %s is %q, want %q", key, got, u.is[key])
			}
		}
	}
	if f := st.Failover(); f.Unknown > 0 || f.Lost > 0 {
		t.Errorf("got %+v", f)
	}
	t.Logf("%d commands", answered())
}

// A primary dies while users write to all: the others' sessions do not notice, what was acknowledged is there, and what came too
// late for the one that died is not done later.
func TestLoopWhenAPrimaryDies(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
	gw, st := onCluster(t, c, "?hold=9s")
	victim := c.Primaries()[0]
	type session struct {
		key         string
		acked, sent int
		onVictim    bool
	}
	const users, pipeline = 6, 16
	var sessions [users][]*session
	var over atomic.Bool
	var answered, unknown atomic.Int64
	var wg sync.WaitGroup
	for i := range users {
		for k := range 2 * pipeline {
			s := &session{key: fmt.Sprintf("w%d-%d", i, k)}
			s.onVictim = c.NodeOf(s.key) == victim
			sessions[i] = append(sessions[i], s)
		}
		wg.Go(func() {
			cl, rng := gw.dial(), rand.New(rand.NewPCG(uint64(i), 1))
			for !over.Load() {
				var all strings.Builder
				var asked []*session
				for range pipeline {
					s := sessions[i][rng.IntN(len(sessions[i]))]
					s.sent++
					asked = append(asked, s)
					all.WriteString(command_("SETEX", s.key, "1000", strconv.Itoa(s.sent)))
				}
				numbers := map[*session]int{}
				for _, s := range asked {
					numbers[s]++
				}
				cl.send(all.String())
				for _, s := range asked {
					numbers[s]--
					switch got, err := cl.tryReply(patience); {
					case err != nil:
						t.Errorf("no answer: %v", err)
						return
					case got == "+OK\r\n":
						s.acked = s.sent - numbers[s]
					case got == textUnknown && s.onVictim:
						unknown.Add(1)
					default:
						t.Errorf("a write to %s (on the victim: %v): %q", s.key, s.onVictim, got)
						return
					}
					answered.Add(1)
				}
			}
		})
	}
	more := func(n int64) {
		was := answered.Load()
		eventually(t, "answers", func() bool { return answered.Load() >= was+n || t.Failed() })
	}
	more(3000)
	victim.Pause() // what is sent to it now is never executed
	for was := int64(-1); was != answered.Load(); time.Sleep(100 * time.Millisecond) {
		was = answered.Load()
	}
	victim.Kill()
	c.WaitPrimary(c.Slot(keyOn(sessions[0], func(s *session) bool { return s.onVictim }).key), victim)
	gw.linked(oneOfEach(c)...)
	more(3000)
	over.Store(true)
	wg.Wait()
	reader := gw.dial()
	for _, list := range sessions {
		for _, s := range list {
			got := reader.do("GET", s.key)
			n, _ := strconv.Atoi(strings.TrimSpace(got[min(len(got), strings.Index(got, "\r\n")+1):]))
			if n < s.acked || n > s.sent {
				t.Errorf("%s is %q, was acknowledged %d and sent %d", s.key, got, s.acked, s.sent)
			}
		}
	}
	if f := st.Failover(); f.Switches != 1 || f.Lost > 0 || unknown.Load() == 0 {
		t.Errorf("of %d writes %d are unknown, %+v", answered.Load(), unknown.Load(), f)
	}
}

// keyOn returns the first of list that is so.
func keyOn[T any](list []T, so func(T) bool) (found T) {
	for _, one := range list {
		if so(one) {
			return one
		}
	}
	return found
}

// What went by the loop is remembered as what did not: a primary dies of which the replica has not heard for a while, and what was
// acknowledged is put back.
func TestLoopIsRemembered(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second, Node: []testserver.RedisOption{testserver.WithPassword("", "pw1")}})
	gw, st := onCluster(t, c, "?replay=1m&hold=9s")
	victim := c.Primaries()[0]
	replica := c.ReplicaOf(victim)
	keys := keysOf(c, victim, 40)
	cl := gw.dial()
	for _, key := range keys[10:] {
		cl.want("+OK\r\n", "SETEX", key, "1000", "old")
	}
	eventually(t, "the replica is in step", func() bool { return replica.Do("ROLE").([]any)[4] == victim.Do("ROLE").([]any)[1] })
	replica.Do("CONFIG", "SET", "masterauth", "wrong")
	replica.Do("CLIENT", "KILL", "TYPE", "master")
	eventually(t, "the replica is cut off", func() bool { return replica.Do("ROLE").([]any)[3] != "connected" })
	cl.want(":1\r\n", "DEL", keys[39]) // by hand, where no server has the script yet
	before := gw.carried()
	var all strings.Builder
	for i, key := range keys[:39] {
		if i < 30 {
			all.WriteString(command_("SETEX", key, "1000", "new"))
		} else {
			all.WriteString(command_("DEL", key))
		}
	}
	cl.send(all.String())
	for i := range keys[:39] {
		if got := cl.reply(); got != "+OK\r\n" && (i < 30 || got != ":1\r\n") {
			t.Fatalf("write %d: %q", i, got)
		}
	}
	sent := uint64(0)
	for i, n := range gw.carried() {
		sent += n - before[i]
	}
	if sent < uint64(all.Len()) {
		t.Errorf("%d bytes went by the loop, want at least %d", sent, all.Len())
	}
	victim.Kill()
	c.WaitPrimary(c.Slot(keys[0]), victim)
	for i, key := range keys {
		want := bulk("new")
		if i >= 30 {
			want = null
		}
		cl.want(want, "GET", key)
	}
	if f := st.Failover(); f.PutBack < 40 || f.Lost > 0 || f.Switches != 1 {
		t.Errorf("got %+v", f)
	}
}

// byLoopAndByHand runs a test in front of a Cluster both ways.
func byLoopAndByHand(t *testing.T, o testserver.ClusterOptions, test func(t *testing.T, c *testserver.ClusterSet, gw *gateway)) {
	for name, loop := range map[string]bool{"loop": true, "by hand": false} {
		t.Run(name, func(t *testing.T) {
			c := testserver.Cluster(t, o)
			gw, _ := before(t, c, "?replay=1m&hold=9s", loop)
			test(t, c, gw)
		})
	}
}

// What one connection sends at once is in the order in which it was sent: the window has to know that, too.
func TestLoopRemembersTheOrder(t *testing.T) {
	o := testserver.ClusterOptions{NodeTimeout: time.Second, Node: []testserver.RedisOption{testserver.WithPassword("", "pw1")}}
	byLoopAndByHand(t, o, func(t *testing.T, c *testserver.ClusterSet, gw *gateway) {
		victim := c.Primaries()[0]
		replica := c.ReplicaOf(victim)
		keys := keysOf(c, victim, 9)
		cl := gw.dial()
		for _, key := range keys { // by somebody else: the window knows nothing of it
			victim.Do("SET", key, "v1", "EX", "1000")
		}
		cl.want(":1\r\n", "DEL", keys[8]) // the script is there from now on
		eventually(t, "the replica is in step", func() bool { return replica.Do("ROLE").([]any)[4] == victim.Do("ROLE").([]any)[1] })
		replica.Do("CONFIG", "SET", "masterauth", "wrong")
		replica.Do("CLIENT", "KILL", "TYPE", "master")
		eventually(t, "the replica is cut off", func() bool { return replica.Do("ROLE").([]any)[3] != "connected" })
		victim.Do("SET", keys[4], "v0", "EX", "1000")
		set := func(i int, data string) string { return command_("SETEX", keys[i], "1000", data) }
		get := func(i int) string { return command_("GET", keys[i]) }
		exists := func(i int) string { return command_("EXISTS", keys[i]) }
		pages := []struct {
			name  string
			sends []string // each waits for the answers to the one before
			n     int      // of answers
		}{
			{"SET SET, one by one", []string{set(0, "v1"), set(0, "v2")}, 1},
			{"SET SET, at once", []string{set(1, "v1") + set(1, "v2")}, 2},
			{"DEL SET, one by one", []string{command_("DEL", keys[2]), set(2, "v2")}, 1},
			{"DEL SET, at once", []string{command_("DEL", keys[3]) + set(3, "v2")}, 2},
			{"GET SET SET, at once", []string{get(4) + set(4, "v1") + set(4, "v2")}, 3},
			{"GET SET", []string{get(5), set(5, "v2")}, 1},
			{"GET EXISTS SET", []string{get(6), exists(6), set(6, "v2")}, 1},
			{"EXISTS SET", []string{exists(7), set(7, "v2")}, 1},
		}
		for i, page := range pages {
			for _, send := range page.sends {
				cl.send(send)
				for range page.n {
					if got := cl.reply(); got[0] == '-' {
						t.Fatalf("%s: %q", page.name, got)
					}
				}
			}
			if got := victim.Do("GET", keys[i]); got != "v2" {
				t.Fatalf("%s: %v", page.name, got)
			}
		}
		victim.Kill()
		c.WaitPrimary(c.Slot(keys[0]), victim)
		for i, page := range pages {
			if got := cl.do("GET", keys[i]); got != bulk("v2") {
				t.Errorf("%s: acknowledged was v2, now it is %q", page.name, got)
			}
		}
	})
}

// A primary dies with a lock that is being released: it is released at the next one.
func TestALockIsReleasedWhenAPrimaryDies(t *testing.T) {
	byLoopAndByHand(t, testserver.ClusterOptions{NodeTimeout: time.Second}, func(t *testing.T, c *testserver.ClusterSet, gw *gateway) {
		victim := c.Primaries()[0]
		replica := c.ReplicaOf(victim)
		key := ""
		for _, k := range keysOf(c, c.Primaries()[1], 50) {
			if c.NodeOf(k+"_LOCK") == victim {
				key = k
			}
		}
		release := command_("EVAL", "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "1", key+"_LOCK", "t")
		cl := gw.dial()
		cl.want("+OK\r\n", "SET", key+"_LOCK", "t", "NX", "PX", "60000") // and the scripts are there
		cl.send(release)
		if got := cl.reply(); got != ":1\r\n" {
			t.Fatal(got)
		}
		cl.want("+OK\r\n", "SET", key+"_LOCK", "t", "NX", "PX", "60000")
		eventually(t, "the replica is in step", func() bool { return replica.Do("ROLE").([]any)[4] == victim.Do("ROLE").([]any)[1] })
		victim.Pause()
		cl.send(release)
		gw.underway(t, 1)
		victim.Kill()
		c.WaitPrimary(c.Slot(key+"_LOCK"), victim)
		if got := cl.reply(); got != ":1\r\n" {
			t.Errorf("released: %q", got)
		}
		gw.dial().want("+OK\r\n", "SET", key+"_LOCK", "t2", "NX", "PX", "60000")
	})
}

// Where nothing is remembered, it is found out all the same what became of writes without an answer.
func TestLoopResolvesWhatItDoesNotRemember(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
	gw, st := onCluster(t, c, "?replay=off&hold=9s")
	victim := c.Primaries()[0]
	replica := c.ReplicaOf(victim)
	keys := keysOf(c, victim, 3)
	cl := gw.dial()
	cl.want("+OK\r\n", "SETEX", keys[0], "1000", "v1")
	eventually(t, "the replica is in step", func() bool { return replica.Do("ROLE").([]any)[4] == victim.Do("ROLE").([]any)[1] })
	victim.Pause()
	cl.send(command_("SETEX", keys[0], "1000", "v1") + command_("SETEX", keys[1], "1000", "v1")) // the first looks done
	gw.underway(t, 2)
	victim.Kill()
	c.WaitPrimary(c.Slot(keys[0]), victim)
	if a, b := cl.reply(), cl.reply(); a != "+OK\r\n" || b[0] != '-' {
		t.Errorf("got %q, %q", a, b)
	}
	if f := st.Failover(); f.Unknown != 2 || f.Resolved != 1 {
		t.Errorf("%d unknown, %d resolved", f.Unknown, f.Resolved)
	}
}
