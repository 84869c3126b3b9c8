package redis

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// The simulation has gateways, each with a window and a recovery of its own, at servers that do what the scripts do, in
// virtual time. A server is promoted with a prefix of what the one before it did; gateways learn of it one after the
// other, are cut off together with the old one, and die. Every value is written once, so that its age is known.

var seedFlag = flag.Uint64("seed", 0, "run the simulation with this seed alone")

// trouble is what a run meets.
type trouble struct {
	alone  bool          // every session is in one hand at a time, is read before it is written, and nobody is cut off
	split  time.Duration // gateways stay with the old primary for up to so long
	deaths bool
	joins  bool // gateways begin, too
	idle   bool // no clients but those that the test plays
}

// A simServer remembers all it did, so that another one can begin with a prefix of it.
type simServer struct {
	memory   string
	began    time.Time
	over     bool // nobody reaches it any more
	log      []simStep
	data     map[string]string
	marks    map[string]simMark
	registry map[string]string
	heard    map[string]time.Time // who registered here, and when last
}

type simStep struct {
	at time.Time
	do func(s *simServer)
}

type simMark struct {
	end     time.Time
	version store.Version
}

func newSimServer(memory string) *simServer {
	return &simServer{memory: memory, began: time.Now(), data: map[string]string{}, marks: map[string]simMark{},
		registry: map[string]string{}, heard: map[string]time.Time{}}
}

// do changes s, and whatever will follow it.
func (s *simServer) do(f func(s *simServer)) {
	s.log = append(s.log, simStep{time.Now(), f})
	f(s)
}

// promote returns a server that has what s did until then.
func (s *simServer) promote(memory string, until time.Time) *simServer {
	next := newSimServer(memory)
	for _, step := range s.log {
		if !step.at.After(until) {
			step.do(next)
			next.log = append(next.log, step)
		}
	}
	return next
}

func (s *simServer) mark(key string) (m simMark, ok bool) {
	m, ok = s.marks[key]
	return m, ok && m.end.After(time.Now())
}

// leave leaves a gone marker and returns its end.
func (s *simServer) leave(key string, version store.Version) uint64 {
	end := time.Now().Add(goneLife(simSpan))
	if m, ok := s.mark(key); ok && !end.After(m.end) {
		end = m.end.Add(time.Millisecond)
	}
	s.do(func(s *simServer) { s.marks[key] = simMark{end, version} })
	return uint64(end.UnixMilli())
}

func (s *simServer) set(key, value string) { s.do(func(s *simServer) { s.data[key] = value }) }
func (s *simServer) del(key string)        { s.do(func(s *simServer) { delete(s.data, key) }) }

const simSpan = 5 * time.Second

func versionOf(value string) store.Version { return store.VersionOf([]byte(value), 0) }

// An ack is a write that was acknowledged, or may have been done.
type ack struct {
	asked, at, told time.Time // it was done at at
	g               *simGateway
	value           string // "": deleted
	unknown         bool
}

type simGateway struct {
	w    *simWorld
	name string
	win  *window
	r    *recovery
	life context.Context
	stop context.CancelFunc
	dead bool
	gate gate

	at       *simServer
	came     time.Time
	move     uint64
	comings  chan struct{}
	ordered  *simServer      // the server that it has put in order last
	waited   bool            // as long as it may
	left     map[string]bool // sessions of which it has left something
	hesitate time.Duration   // before it begins to put a server in order
}

type simWorld struct {
	trouble trouble
	life    context.Context
	wg      sync.WaitGroup

	mu        sync.Mutex
	rng       *rand.Rand
	primary   *simServer
	gateways  []*simGateway
	acks      map[string][]*ack
	born      map[string]*ack // by value
	hands     map[string]chan *simGateway
	violation string
	story     []string
	putBack   int
	counts    [reasons]uint64
	owed      []debt
}

// A debt is what a gateway has to admit: that it left something of a session.
type debt struct {
	g               *simGateway
	key, value, who string
}

func (w *simWorld) say(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *simWorld) violate(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
		w.say("VIOLATION %s", w.violation)
	}
}

func (w *simWorld) rand(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *simWorld) upTo(d time.Duration) time.Duration {
	return time.Duration(w.rand(int(d/time.Microsecond)+1)) * time.Microsecond
}

func (w *simWorld) gateway() *simGateway {
	g := &simGateway{w: w, name: fmt.Sprintf("g%d", len(w.gateways)), win: newWindow(simSpan, 64<<20), comings: make(chan struct{}, 1), left: map[string]bool{}}
	g.gate.opened = make(chan struct{})
	g.r = &recovery{p: g, w: g.win, f: newFleet(g.name), log: slog.New(slog.NewTextHandler(io.Discard, nil)), stats: new(failovers), isOrigin: new(atomic.Bool),
		hold: 3 * time.Second, gone: goneLife(simSpan), mine: func(string) bool { return true }, slot: func(string) int { return 0 },
		still: g.gate.empty}
	g.hesitate = w.upTo(20 * time.Millisecond)
	g.life, g.stop = context.WithCancel(w.life)
	w.mu.Lock()
	w.gateways = append(w.gateways, g)
	w.mu.Unlock()
	g.moveTo(w.primary)
	w.wg.Go(func() { g.attend(g.life) })
	if !w.trouble.idle {
		for range 3 {
			w.wg.Go(func() { g.serve(g.life) })
		}
	}
	return g
}

func (g *simGateway) moveTo(s *simServer) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	if g.at == s || g.dead {
		return
	}
	g.gate.close(recovering)
	g.at, g.came, g.waited = s, time.Now(), false
	g.move++
	g.w.say("%s moves to %s", g.name, s.memory)
	select {
	case g.comings <- struct{}{}:
	default:
	}
}

func (g *simGateway) kill() {
	g.w.mu.Lock()
	g.dead = true
	g.w.say("%s dies", g.name)
	g.w.mu.Unlock()
	g.stop()
}

// attend is what an attendant does.
func (g *simGateway) attend(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	confirm := time.NewTicker(250 * time.Millisecond)
	defer confirm.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if g.gate.shut.Load() == 0 {
				_ = g.r.beat(ctx)
			}
		case <-confirm.C:
			g.w.mu.Lock()
			sure := g.at == g.w.primary
			g.w.mu.Unlock()
			if sure && g.gate.shut.Load() == 0 {
				g.win.confirm(time.Now())
			}
		case <-g.comings:
			time.Sleep(g.hesitate)
			g.putInOrder(ctx)
		}
	}
}

func (g *simGateway) putInOrder(ctx context.Context) {
	for ctx.Err() == nil {
		g.w.mu.Lock()
		move, at, known := g.move, g.at, g.r.known
		g.w.mu.Unlock()
		began := time.Now()
		jobs := map[string]reason{}
		g.r.told = func(j *job) { jobs[j.key] = j.left }
		err := g.r.restore(ctx)
		g.w.mu.Lock()
		over := err == nil && g.move == move
		if over {
			g.ordered, g.waited = at, time.Since(began) >= g.r.hold
			for key, left := range jobs {
				g.w.counts[left]++
				if left != notLeft {
					g.left[key] = true
				}
			}
			g.w.putBack += int(g.r.record.puts)
			for _, o := range g.w.owed {
				if o.g == g && !g.left[o.key] && at.data[o.key] == o.value {
					g.w.violate("%s: %s shows %q, and %s says nothing of it", o.key, o.who, o.value, g.name)
				}
			}
			g.w.say("%s has put %s in order (knew %s): left %v", g.name, at.memory, known, jobs)
			g.gate.open(recovering)
		}
		g.w.mu.Unlock()
		if over {
			return
		}
		time.Sleep(pollEvery)
	}
}

var errSim = errors.New("not reached")

// call runs f at g's server, on the way there and back. Where it fails it may have run, if unknown.
func (g *simGateway) call(f func(s *simServer)) (unknown bool, err error) {
	w := g.w
	w.mu.Lock()
	s, move := g.at, g.move
	w.mu.Unlock()
	time.Sleep(50*time.Microsecond + w.upTo(2*time.Millisecond))
	w.mu.Lock()
	if g.dead || s.over || g.move != move && w.rng.IntN(2) == 0 {
		w.mu.Unlock()
		return false, errSim
	}
	f(s)
	w.mu.Unlock()
	time.Sleep(50*time.Microsecond + w.upTo(2*time.Millisecond))
	w.mu.Lock()
	defer w.mu.Unlock()
	if g.dead || g.move != move {
		return true, errSim
	}
	return false, nil
}

func (g *simGateway) identify(context.Context) (id serverID, err error) {
	_, err = g.call(func(s *simServer) { id = serverID{memory: s.memory, keys: len(s.data) + len(s.marks) + 1} })
	return id, err
}

func (g *simGateway) register(_ context.Context, gateway, record string, _ []string) (all map[string]string, err error) {
	_, err = g.call(func(s *simServer) {
		if record != "" {
			s.do(func(s *simServer) { s.registry[gateway] = record })
			s.heard[gateway] = time.Now()
		}
		all = maps.Clone(s.registry)
	})
	return all, err
}

func (g *simGateway) look(_ context.Context, asks []ask) (found []finding, err error) {
	_, err = g.call(func(s *simServer) {
		for _, q := range asks {
			var f finding
			var value string
			if value, f.there = s.data[q.key]; f.there {
				if f.same = q.version == "" || versionOf(value) == q.version; !f.same {
					f.data = []byte(value)
				}
			}
			if m, ok := s.mark(q.key); ok {
				f.marker = strings.TrimSpace(fmt.Sprintf("g %d %s", m.end.UnixMilli(), m.version))
			}
			found = append(found, f)
		}
	})
	return found, err
}

func (g *simGateway) put(_ context.Context, changes []change) (done []uint64, err error) {
	_, err = g.call(func(s *simServer) {
		for _, c := range changes {
			value, there := s.data[c.key]
			m, marked := s.mark(c.key)
			fits := c.want == "" && !there || there && versionOf(value) == c.want
			d := uint64(0)
			switch {
			case c.what == "note":
				d = s.leave(c.key, store.Version(c.data))
			case !fits:
			case c.what == "delete":
				g.replaces(s, c.key, value, "")
				d = s.leave(c.key, "")
				s.del(c.key)
			case there || !marked || uint64(m.end.UnixMilli()) == c.own && m.version == "" || !guard.On(guard.Gone):
				g.replaces(s, c.key, value, string(c.data))
				s.set(c.key, string(c.data))
				d = 1
			}
			if d > 0 {
				g.w.say("%s at %s: %s %s over %q: %q", g.name, s.memory, c.what, c.key, value, c.data)
			}
			done = append(done, d)
		}
	})
	return done, err
}

// replaces judges what is put back: never over a newer write.
func (g *simGateway) replaces(s *simServer, key, old, next string) {
	w := g.w
	a := w.born[next]
	if next == "" {
		a = g.last(key)
	}
	if old != "" && w.born[old].after(a) {
		w.violate("%s: %s puts %q of %v over %q of %v at %s", key, g.name, next, a, old, w.born[old], s.memory)
	}
}

// after reports whether a was asked for when b was over. Two that were under way together have no order.
func (a *ack) after(b *ack) bool { return !b.told.IsZero() && a.asked.After(b.told) }

func (a *ack) String() string { return a.at.Format("05.000") }

// last is when g was last told that it had changed key.
func (g *simGateway) last(key string) (last *ack) {
	for _, a := range g.w.acks[key] {
		if a.g == g && !a.unknown {
			last = a
		}
	}
	return last
}

// serve is one client after the other.
func (g *simGateway) serve(ctx context.Context) {
	w := g.w
	for n := 0; ctx.Err() == nil; n++ {
		if !sleep(ctx, w.upTo(time.Second)) {
			return
		}
		key := fmt.Sprintf("s%d", w.rand(simKeys))
		if !w.trouble.alone {
			g.page(key, n)
			continue
		}
		select {
		case last := <-w.hands[key]:
			if g.page(key, n) {
				last = g
			}
			w.hands[key] <- last
		case <-ctx.Done():
		}
	}
}

// page is what a page does with its session. It reports whether it deleted it.
func (g *simGateway) page(key string, n int) (deleted bool) {
	w := g.w
	read, base := "", uint64(0)
	if blind := !w.trouble.alone && w.rand(4) == 0; !blind {
		var ok bool
		if read, ok = g.read(key); !ok {
			return false
		}
		if read != "" {
			base = g.win.sum([]byte(read))
		}
		time.Sleep(w.upTo(10 * time.Millisecond))
	}
	switch {
	case w.trouble.alone && read == "" && w.madeElsewhere(key, g): // an exception that recover.go states
	case w.rand(4) == 0 && read != "":
		g.write(key, "")
		return true
	default:
		g.writeOver(key, fmt.Sprintf("%s-%s-%d-%d", key, g.name, n, w.rand(1<<30)), base)
	}
	return false
}

func (g *simGateway) read(key string) (value string, ok bool) {
	ok = g.operate(func() (bool, error) {
		return g.call(func(s *simServer) {
			value = s.data[key]
			g.served(s, key, value)
		})
	}, func() {})
	return value, ok
}

// write writes a value, or deletes where that is "".
func (g *simGateway) write(key, value string) { g.writeOver(key, value, 0) }

func (g *simGateway) writeOver(key, value string, base uint64) {
	w := g.w
	a := &ack{g: g, value: value, unknown: true}
	var version store.Version
	var end uint64
	g.operate(func() (bool, error) {
		a.asked = time.Now()
		return g.call(func(s *simServer) {
			a.at, version = time.Now(), ""
			if value != "" {
				w.born[value] = a
				s.set(key, value)
				return
			}
			if old, ok := s.data[key]; ok {
				version = versionOf(old)
			}
			end = s.leave(key, "")
			s.del(key)
		})
	}, func() {
		if a.unknown = false; value == "" {
			g.win.deleted(key, a.asked, version, end)
		} else {
			g.win.saved(key, []byte(value), time.Now().Add(time.Hour), a.asked, base)
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.told = time.Now(); !a.at.IsZero() {
		w.acks[key] = append(w.acks[key], a)
		w.say("%s: %s has %q, unknown %v", key, g.name, value, a.unknown)
	}
}

// madeElsewhere reports whether key was last deleted through another gateway than g.
func (w *simWorld) madeElsewhere(key string, g *simGateway) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range slices.Backward(w.acks[key]) {
		if a.value == "" {
			return a.g != g
		}
	}
	return false
}

// operate runs f through the gate, and noted where it was answered, while it is still inside.
func (g *simGateway) operate(f func() (bool, error), noted func()) bool {
	ctx, cancel := context.WithTimeout(g.life, 5*time.Second)
	defer cancel()
	if g.gate.enter(ctx, time.Second) != nil {
		return false
	}
	defer g.gate.leave(ctx)
	if _, err := f(); err != nil {
		return false
	}
	noted()
	return true
}

// served judges what a client is shown: no session that was ended since, by a gateway that could be heard.
func (g *simGateway) served(s *simServer, key, value string) {
	w := g.w
	if value == "" || s != w.primary {
		return
	}
	for _, a := range w.acks[key] {
		d := a.g
		switch {
		case a.value != "" || a.unknown || d.dead || !a.after(w.born[value]):
		case w.broken(key, w.born[value], a), w.reborn(key, a): // exceptions that recover.go states
		case d.left[key] && !w.trouble.alone: // it has said so
		case d.ordered != s && d.at == s && !w.trouble.alone: // and will say so
			w.owed = append(w.owed, debt{d, key, value, g.name})
		case d.ordered != s && (g.waited || time.Since(later(g.came, s.heard[d.name])) >= deadAfter-beatEvery):
		default:
			w.violate("%s: %s shows %q of %v, which %s has deleted at %v", key, g.name, value, w.born[value], d.name, a)
		}
	}
}

// broken reports whether somebody has written key between a and b, and never heard of it.
func (w *simWorld) broken(key string, a, b *ack) bool {
	return slices.ContainsFunc(w.acks[key], func(c *ack) bool { return c.unknown && c.value != "" && c.at.After(a.at) && c.at.Before(b.at) })
}

// reborn reports whether who has deleted key has made it again.
func (w *simWorld) reborn(key string, a *ack) bool {
	return slices.ContainsFunc(w.acks[key], func(c *ack) bool { return c.g == a.g && c.value != "" && c.at.After(a.at) })
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// audit judges how it all ended.
func (w *simWorld) audit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, acks := range w.acks {
		got := w.primary.data[key]
		var last []*ack // after which nothing was acknowledged
		for _, a := range acks {
			if !a.unknown && !slices.ContainsFunc(acks, func(b *ack) bool { return !b.unknown && b.after(a) }) {
				last = append(last, a)
			}
		}
		fine := false
		for _, a := range acks {
			fine = fine || a.value == got && (slices.Contains(last, a) || a.unknown && !slices.ContainsFunc(last, func(b *ack) bool { return b.after(a) }))
		}
		for _, a := range last {
			if !fine && !a.g.dead && (w.trouble.alone || !a.g.left[key]) {
				w.violate("%s: it is %q of %v, and %s was told %q at %v", key, got, w.born[got], a.g.name, a.value, a)
			}
		}
	}
}

// simulated runs f in a world and returns that as it ended.
func simulated(t *testing.T, seed uint64, tr trouble, f func(w *simWorld)) (w *simWorld) {
	synctest.Test(t, func(t *testing.T) {
		w = &simWorld{trouble: tr, rng: rand.New(rand.NewPCG(seed, 2)), acks: map[string][]*ack{},
			born: map[string]*ack{}, hands: map[string]chan *simGateway{}}
		for i := range simKeys {
			hand := make(chan *simGateway, 1)
			hand <- nil
			w.hands[fmt.Sprintf("s%d", i)] = hand
		}
		var end context.CancelFunc
		w.life, end = context.WithCancel(context.Background())
		w.primary = newSimServer("p0")
		f(w)
		end()
		w.wg.Wait()
		w.audit()
	})
	return w
}

const simKeys = 6

// replay runs one seed. It decides what happens, but not in which order goroutines run that have something to do at the
// same moment.
func replay(t *testing.T, seed uint64, tr trouble) *simWorld {
	return simulated(t, seed, tr, func(w *simWorld) {
		for range 2 + w.rand(3) {
			w.gateway()
		}
		time.Sleep(2 * time.Second)
		for n := range 3 {
			w.failover(fmt.Sprintf("p%d", n+1))
			time.Sleep(time.Second + w.upTo(3*time.Second))
		}
		time.Sleep(10 * time.Second)
	})
}

// promote has another primary take over, which lacks what was done in the last time.
func (w *simWorld) promote(memory string, lag time.Duration) *simServer {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.primary = w.primary.promote(memory, time.Now().Add(-lag))
	w.say("%s is the primary, without the last %v", memory, lag)
	return w.primary
}

// failover has another primary take over, and everybody learn of it.
func (w *simWorld) failover(memory string) {
	tr := w.trouble
	if tr.joins && w.rand(2) == 0 {
		w.gateway()
		time.Sleep(w.upTo(time.Second))
	}
	old, gateways := w.primary, slices.Clone(w.gateways)
	next := w.promote(memory, w.upTo(1500*time.Millisecond))
	var wg sync.WaitGroup
	for i, g := range gateways {
		delay := w.upTo(1200 * time.Millisecond)
		if tr.split > 0 && w.rand(2) == 0 && i > 0 {
			delay = w.upTo(tr.split)
		}
		dies := tr.deaths && i > 0 && w.rand(6) == 0
		wg.Go(func() {
			time.Sleep(delay)
			if dies {
				g.kill()
			}
			g.moveTo(next)
		})
	}
	wg.Wait()
	w.mu.Lock()
	old.over = true
	w.mu.Unlock()
}

func simSeeds(n int) (list []uint64) {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	if os.Getenv("SESSILE_SOAK") != "" {
		n *= 15
	}
	for i := range n {
		list = append(list, uint64(i+1))
	}
	return list
}

var troubles = map[string]trouble{
	"planned":          {alone: true},
	"at the same time": {},
	"partitions":       {split: 8 * time.Second},
	"long partitions":  {split: 90 * time.Second},
	"deaths":           {split: 3 * time.Second, deaths: true, joins: true},
}

func TestRecoveryInASimulation(t *testing.T) {
	for name, tr := range troubles {
		t.Run(name, func(t *testing.T) {
			putBack := 0
			var counts [reasons]uint64
			for _, seed := range simSeeds(40) {
				w := replay(t, seed, tr)
				if w.violation != "" {
					t.Fatalf("-seed %d: %s\n%s", seed, w.violation, strings.Join(w.story, "\n"))
				}
				putBack += w.putBack
				for i, n := range w.counts {
					counts[i] += n
				}
			}
			if putBack == 0 {
				t.Error("nothing was put back")
			}
			t.Log(putBack, counts)
		})
	}
}

func TestRecoveryNoticesEveryMissingGuard(t *testing.T) {
	for name, tc := range map[string]struct {
		g  guard.Guard
		in string
	}{
		"older":   {guard.Older, "at the same time"},
		"gone":    {guard.Gone, "partitions"},
		"settled": {guard.Settled, "at the same time"},
		"again":   {guard.Again, "planned"},
	} {
		t.Run(name, func(t *testing.T) {
			defer guard.Disable(tc.g)()
			for _, seed := range simSeeds(200) {
				if w := replay(t, seed, troubles[tc.in]); w.violation != "" {
					t.Logf("noticed at seed %d: %s", seed, w.violation)
					return
				}
			}
			t.Errorf("nobody noticed that %q was missing", name)
		})
	}
}

// deletedElsewhere has a session written at one gateway and deleted at the next primary, which that gateway does not know yet.
func deletedElsewhere(w *simWorld) (a *simGateway, next *simServer) {
	a, b := w.gateway(), w.gateway()
	time.Sleep(time.Second)
	a.write("k", "w")
	next = w.promote("p1", 0)
	b.moveTo(next)
	time.Sleep(3 * time.Second)
	b.write("k", "")
	return a, next
}

// Traces that are too rare for the simulation.
func TestRecoveryTraces(t *testing.T) {
	for name, tc := range map[string]struct {
		g   guard.Guard
		run func(w *simWorld)
	}{
		"a marker that is over says nothing": {guard.Late, func(w *simWorld) {
			a, next := deletedElsewhere(w)
			time.Sleep(70 * time.Second) // b's window has forgotten it, and so has the server
			a.moveTo(next)
		}},
		"nor does a touch of what was deleted elsewhere": {guard.Late, func(w *simWorld) {
			a, next := deletedElsewhere(w)
			time.Sleep(65 * time.Second)
			a.win.touched("k", time.Now().Add(time.Hour), time.Now()) // at the old primary
			time.Sleep(5 * time.Second)
			a.moveTo(next)
		}},
		"nobody begins whom the others do not know": {guard.Meet, func(w *simWorld) {
			a := w.gateway()
			time.Sleep(time.Second)
			began := time.Now()
			a.write("k", "w")
			b := w.gateway()
			b.write("k", "") // as soon as it can
			next := w.promote("p1", time.Since(began)+time.Millisecond)
			a.moveTo(next)
			time.Sleep(time.Second)
			a.read("k")
			b.moveTo(next)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			run := func() string {
				w := simulated(t, 1, trouble{idle: true}, func(w *simWorld) {
					tc.run(w)
					time.Sleep(5 * time.Second)
					for _, g := range w.gateways {
						g.read("k")
					}
				})
				return w.violation
			}
			if v := run(); v != "" {
				t.Error(v)
			}
			defer guard.Disable(tc.g)()
			if v := run(); v == "" {
				t.Error("it makes no difference")
			}
		})
	}
}
