package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// goneLife is how long a gone marker lives: see recover.go.
func goneLife(replay time.Duration) time.Duration { return max(2*replay, time.Minute) }

// An attendant keeps one node registered, and puts every server in order that the node comes to. It is one goroutine.
type attendant struct {
	n      *node
	r      *recovery
	last   string          // the name of the registry when it was last used
	coming chan struct{}   // has room for one: a connection came where there was none, or of another server
	comes  atomic.Uint64   // counts them
	order  atomic.Bool     // the server is in order
	decide chan resolution // of a person
	stop   context.CancelFunc
	done   chan struct{}
	left   sync.Once
}

type resolution struct {
	decision
	err chan error // has room for one
}

func (s *Store) attendant(n *node) *attendant {
	a := &attendant{n: n, coming: make(chan struct{}, 1), decide: make(chan resolution), done: make(chan struct{})}
	a.r = &recovery{p: a, w: s.window, f: newFleet(rand.Text()[:12]), log: s.opt.Logger, stats: &s.failovers, isOrigin: &s.isOrigin, hold: s.opt.Failover.Hold,
		gone: goneLife(s.opt.Failover.Replay), mine: func(string) bool { return true }, slot: func(string) int { return 0 },
		still: func(ctx context.Context) bool {
			ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
			defer cancel()
			return n.gate.empty(ctx)
		}}
	return a
}

type comesKey struct{ a *attendant } // another node has nothing to do with it

// bound binds what is done with a context to the server that is there now: it is about that one, and another one has
// nothing to do with it.
func (a *attendant) bound(ctx context.Context, comes uint64) context.Context {
	return context.WithValue(ctx, comesKey{a}, comes)
}

// arriving is called before a connection is put to use that is the only one, or of another server than those before.
// Callers hold admission.
func (a *attendant) arriving() {
	a.n.gate.close(recovering) // nobody is let through this connection before
	a.order.Store(false)
	a.comes.Add(1)
	select {
	case a.coming <- struct{}{}:
	default:
	}
}

// run attends until ctx ends.
func (a *attendant) run(ctx context.Context) {
	defer close(a.done)
	ctx = pass(ctx, everything)
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-a.coming:
			a.putInOrder(ctx)
		case <-tick.C:
			if comes := a.comes.Load(); a.order.Load() && a.n.serves() {
				ctx, cancel := context.WithTimeout(a.bound(ctx, comes), deadAfter)
				_ = a.r.beat(ctx) // a server that does not answer will be another one, or come back
				if a.r.record.beat%countEvery == 0 {
					a.r.count(ctx)
				}
				cancel()
			}
		case d := <-a.decide:
			d.err <- errors.New("the server has not forgotten anything")
		case <-ctx.Done():
			return
		}
	}
}

// putInOrder opens the gate when the server is in order.
func (a *attendant) putInOrder(ctx context.Context) {
	n, said := a.n, ""
	answer := func(error) {}
	for ctx.Err() == nil {
		comes := a.comes.Load()
		a.r.log = n.log()
		var err error
		if n.serves() {
			err = a.r.restore(a.bound(ctx, comes))
		}
		if err == errForgotten {
			answer = a.await(a.bound(ctx, comes))
			n.gate.close(recovering)
			continue
		}
		n.admission.Lock()
		over := err == nil && a.comes.Load() == comes
		if over {
			a.order.Store(true)
			held := n.gate.open(forgotten)
			if held = max(held, n.gate.open(recovering)); held > 0 && a.r.stats.switches.Load() > 0 {
				n.log().Warn("redis: operations go on", "held", held.Round(time.Millisecond))
			}
		}
		n.admission.Unlock()
		if over {
			answer(nil)
			return
		}
		if err != nil && !errors.Is(err, errAdrift) && err.Error() != said {
			said = err.Error()
			n.log().Error("redis: the server cannot be put in order, operations are held up", "error", err)
		}
		select {
		case <-time.After(pollEvery):
		case <-a.coming:
		case <-ctx.Done():
		}
	}
	answer(context.Cause(ctx))
}

// await holds operations up until somebody has decided, here or at another gateway, or the server is another one. Who
// has decided is to get an answer when that is done.
func (a *attendant) await(ctx context.Context) (answer func(error)) {
	nobody := func(error) {}
	n := a.n
	if n.gate.close(forgotten) {
		a.r.stats.forgotten.Add(1)
		n.log().Error("redis: the server has forgotten everything, nobody is served until that is decided: " +
			"`sessile target refill` puts back what this gateway remembers, `sessile target accept` goes on without")
	}
	n.admission.Lock()
	if len(a.coming) == 0 {
		n.gate.open(recovering) // for those whom the other reason does not hold up
	}
	n.admission.Unlock()
	for {
		select {
		case d := <-a.decide:
			// It is about the server with this memory, and about no other one; and all gateways go by it.
			id, err := a.identify(ctx)
			if err == nil {
				_, err = a.register(ctx, decisionField(id.memory), string(d.decision), nil)
			}
			if err == nil {
				return func(err error) { d.err <- err }
			}
			d.err <- err
		case <-time.After(beatEvery):
			if id, err := a.identify(ctx); err == nil {
				if _, err = a.r.forgotten(ctx, id); err == nil {
					return nobody
				}
			}
		case <-a.coming:
			return nobody
		case <-ctx.Done():
			return nobody
		}
	}
}

// ask hands a decision over and waits until the server is in order.
func (a *attendant) ask(ctx context.Context, d decision) error {
	q := resolution{d, make(chan error, 1)}
	select {
	case a.decide <- q:
	case <-a.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-q.err:
		return err
	case <-a.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave takes the gateway out of the registry: nobody is to wait for it.
func (a *attendant) leave() {
	a.left.Do(func() {
		if a.stop == nil {
			return // it was never begun
		}
		a.stop()
		<-a.done
		if comes := a.comes.Load(); a.order.Load() && a.n.up() && a.n.serves() {
			ctx, cancel := context.WithTimeout(a.bound(pass(context.Background(), everything), comes), lockGrace)
			defer cancel()
			_ = a.n.send(ctx, "leave", store.ErrUnknown, []string{"HDEL", a.n.registry(), a.r.f.self}, nil, nil).fail() // its deadAfter will tell
		}
	})
}

// registry is the name of the registry on n.
func (n *node) registry() string { return registryKey(n.tag()) }

// identify implements primary.
func (a *attendant) identify(ctx context.Context) (id serverID, err error) {
	r := a.n.send(ctx, "info", store.ErrUnavailable, []string{"INFO", "default"}, nil, nil)
	m := infoFields(r.text(0))
	switch run, history := m["run_id"], m["master_replid"]; {
	case r.err != nil:
		return id, r.err
	case m["role"] != "master":
		return id, errNotPrimary
	case len(run) < 16 || len(history) < 16:
		return id, errors.New("the server does not say which one it is (INFO)")
	default:
		id.memory = run[:16] + "-" + history[:16]
	}
	if db, ok := strings.CutPrefix(m["db"+strconv.Itoa(a.n.s.opt.Database)], "keys="); ok {
		keys, _, _ := strings.Cut(db, ",")
		id.keys, err = strconv.Atoi(keys)
	}
	id.evicted, _ = strconv.ParseUint(m["evicted_keys"], 10, 64)
	return id, err
}

// register implements primary.
func (a *attendant) register(ctx context.Context, gateway, record string, strike []string) (map[string]string, error) {
	name := a.n.registry()
	if name != a.last {
		a.r.f.moved()
		a.last = name
	}
	r := a.n.run(ctx, "register", registerScript, []string{name}, append([]string{gateway, record}, strike...)...)
	var re *replyError
	if errors.As(r.err, &re) && re.elsewhere() {
		a.n.trouble()
	}
	all := map[string]string{}
	list := r.texts(1)
	for i := 0; i+1 < len(list); i += 2 {
		all[list[i]] = list[i+1]
	}
	return all, r.fail()
}

// names returns the names of key and of its side key.
func (a *attendant) names(key string) (data, side string) {
	data = a.n.s.opt.Prefix + key
	return data, a.n.s.sideKey(data)
}

// look implements primary. In a Cluster it is for the first ones that are of one slot.
func (a *attendant) look(ctx context.Context, asks []ask) ([]finding, error) {
	keys, args := make([]string, 0, 2*len(asks)), make([]string, 0, 2*len(asks))
	for i, q := range asks {
		if a.r.slot(q.key) != a.r.slot(asks[0].key) {
			asks = asks[:i]
			break
		}
		data, side := a.names(q.key)
		keys, args = append(keys, data, side), append(args, string(q.version), q.px)
	}
	if split := a.splitAt(asks[0].key); split != nil {
		return a.lookAround(ctx, split, asks), nil
	}
	r := a.n.run(ctx, "look", lookScript, keys, args...)
	var re *replyError
	if errors.As(r.err, &re) && re.elsewhere() {
		return a.lookAround(ctx, nil, asks), nil
	}
	found := make([]finding, 0, len(asks))
	for i := 1; i+1 < len(r.items); i += 2 {
		found = append(found, r.finding(i))
	}
	return found, r.fail()
}

// lookAround is look where the slot is half-way to another server. As long as it is, only what has one name can be looked at,
// on whichever of the two it is, and that may be for good: nobody else waits for it. What is not found out counts as there.
// split is the other one, where this one does not know of it.
func (a *attendant) lookAround(ctx context.Context, split *shard, asks []ask) []finding {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	found := make([]finding, len(asks))
	for i, q := range asks {
		f := &found[i]
		f.there, f.moving = true, true
		if ctx.Err() != nil {
			continue
		}
		data, _ := a.names(q.key)
		var r *reply
		if split == nil {
			r = a.n.s.cluster.send(ctx, "look", store.ErrUnavailable, data, []string{"GET", data}, nil, nil)
		} else if r = split.send(ctx, "look", store.ErrUnavailable, []string{askingCommand, "GET", data}, nil, nil); r.err == nil && !r.has(0) {
			r = a.n.send(ctx, "look", store.ErrUnavailable, []string{"GET", data}, nil, nil)
		}
		if r.err == nil {
			f.there = r.has(0)
			if f.same = f.there && valueVersion(r.bytes(0)) == q.version; f.there && !f.same {
				f.data = append([]byte{}, r.bytes(0)...)
			}
		}
	}
	return found
}

// splitAt returns the server that a part of the key's slot lies on, where this one does not know of it.
func (a *attendant) splitAt(key string) *shard {
	if a.n.s.cluster == nil {
		return nil
	}
	return a.n.s.cluster.splitSlots()[a.r.slot(key)]
}

// finding reads one of lua/look.lua.
func (r *reply) finding(i int) (f finding) {
	f.marker = r.text(i + 1)
	switch m := &r.items[i]; {
	case m.IsNil():
	case m.IsInt64():
		f.there, f.same = true, r.int(i) == 1
	default:
		f.there, f.data = true, append([]byte{}, r.bytes(i)...)
	}
	return f
}

// put implements primary.
func (a *attendant) put(ctx context.Context, changes []change) (done []uint64, err error) {
	size, onlyGone := 0, true
	keys, args := make([]string, 0, 2*len(changes)), append(make([]string, 0, 1+5*len(changes)), millis(a.r.gone))
	for n, c := range changes {
		if n > 0 && size+len(c.data) > batchBytes {
			break
		}
		data, side := a.names(c.key)
		own := ""
		if c.own > 0 {
			own = digits(c.own)
		}
		keys, args = append(keys, data, side), append(args, c.what, string(c.want), own, c.px, string(c.data))
		size += len(c.data)
		onlyGone = onlyGone && c.what != "set"
	}
	sc := putBackScript
	if onlyGone {
		sc = sc.spare
	}
	r := a.n.run(ctx, "put back", sc, keys, args...)
	for i := 1; i < len(r.items); i++ {
		done = append(done, uint64(r.int(i)))
	}
	if r.err == nil && len(done) != len(keys)/2 {
		r.unreadable(fmt.Errorf("%d answers for %d keys", len(done), len(keys)/2))
	}
	return done, r.fail()
}

// run calls a script on this node.
func (n *node) run(ctx context.Context, op string, sc *script, keys []string, args ...string) *reply {
	return sc.call(keys, args, nil, nil, func(cmd []string, late lateArgs, done func(*reply)) *reply {
		return n.send(ctx, op, store.ErrUnknown, cmd, late, done)
	})
}

// readGone reads a marker that a delete has left: its end, and the version of what was deleted elsewhere.
func readGone(marker string) (end uint64, version store.Version, ok bool) {
	m, err := parseMarker(marker)
	if err != nil || m.Kind != store.GoneMark {
		return 0, "", false
	}
	f := strings.Split(marker, " ") // as parseMarker does
	if len(f) == 3 {
		version = store.Version(f[2])
	}
	end, err = strconv.ParseUint(f[1], 10, 64)
	return end, version, err == nil
}
