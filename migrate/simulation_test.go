package migrate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

var seedFlag = flag.Uint64("seed", 0, "run the simulation with this seed alone")

// A simulated run is many clients, patient and not, on few sessions through three gateways, while a controller walks the
// ladder at random, both stores are slow, refuse, lose answers and execute late, gateways stand still, are cut off and
// killed, and the target comes back with another memory. Everything acknowledged has to be linearizable.
type run struct {
	*world
	seed uint64
	life time.Duration // of a session that nobody uses

	mu       sync.Mutex // guards rng and what follows, up to faults
	rng      *rand.Rand
	history  map[string][]porcupine.Operation
	maybe    map[string][]time.Time // touches of which nobody knows whether they happened
	locked   map[string]int         // how many have the application's lock
	story    []string
	nodes    []*node
	stepping map[*Engine]bool // who has a command

	faults faults
}

// A node is a gateway with its own connections.
type node struct {
	*run
	g      *Engine
	origin *faulty
	target *faultyTarget

	nmu        sync.Mutex // guards what follows
	still      time.Time  // until when it stands still
	cutO, cutN time.Time  // until when it is cut off from a store
	dead       bool
	closing    bool // it is stopped in good order: it works, and nobody comes any more
	holders    int  // clients that have a lock
}

// faults are probabilities per call.
type faults struct {
	refuse, lose, late float64
	outages            bool // now and then a whole store is away for seconds
	stops              bool // now and then a gateway stands still between two messages
	freezes            bool // now and then a gateway stands still as a whole
	cuts               bool // now and then a gateway is cut off from a store for seconds
	kills              bool // now and then a gateway is killed, and another one started
	restarts           bool // now and then the target comes back: as it was, older, or empty
	cancels            bool // the controller also cancels and begins anew
	rolls              bool // now and then a gateway is stopped in good order, and another one started
	reconnects         bool // now and then a connection is made anew
	completes          bool // the controller also completes
	controls           bool // what commands and renewals send fails, too
	forgets            bool // living gateways are forgotten
	failovers          bool // the target also comes back in ramp-down
	commands           bool // three controllers at one time
	locks              bool // clients also take the application's lock
	unsealed           bool // the origin cannot compare its mark and write in one step
	unlisted           bool // the origin cannot be listed; sessions end soon, and users touch them
	slow               bool // now and then a write to the origin takes most of its bound
}

func (r *run) chance(p float64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.Float64() < p
}

func (r *run) upTo(d time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(r.rng.Int64N(int64(d)))
}

func (r *run) pick(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.IntN(n)
}

// A register with absence: what a session is to its clients.
type input struct {
	kind  byte // Write, Add (if absent), Put (if present), Version (if it is old), Touch, Delete, Read
	value string
	old   string
}

var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		held := state.(string)
		switch i := in.(input); i.kind {
		case 'W':
			return true, i.value
		case 'D':
			return true, ""
		case 'A', 'P':
			applies := (held == "") == (i.kind == 'A')
			next := held
			if applies {
				next = i.value
			}
			return out == nil || out.(bool) == applies, next
		case 'V':
			next := held
			if held == i.old {
				next = i.value
			}
			return out == nil || out.(bool) == (held == i.old), next
		case 'T':
			return out.(bool) == (held != ""), held
		default:
			return out.(string) == held, held
		}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%c %s -> %v", in.(input).kind, in.(input).value, out) },
}

// trace tells the story of one seed.
func (r *run) trace(format string, args ...any) {
	if *seedFlag != 0 || tracing {
		line := time.Now().Format("04:05.000000 ") + fmt.Sprintf(format, args...)
		r.mu.Lock()
		r.story = append(r.story, line)
		r.mu.Unlock()
	}
}

// start starts one more gateway, whose every call has a latency and, by chance, a fault.
func (r *run) start() *node {
	n := &node{run: r}
	n.g, n.origin, n.target = r.view(func(o *Options) {
		o.Lifetime = r.life
		if r.faults.unlisted && r.chance(0.7) {
			o.Queue = -1 // drops every copy
		}
		o.Hooks.Arrow = func(_ context.Context, arrow, key string) {
			if r.faults.stops && r.chance(0.004) {
				r.trace("a gateway stands still at %s %s", arrow, key)
				time.Sleep(r.upTo(8 * time.Second)) // longer than every lease
			}
		}
	})
	n.disturb(&n.origin.fault, "O", &n.cutO)
	n.disturb(&n.target.fault, "N", &n.cutN)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = append(r.nodes, n)
	return n
}

// living picks a gateway that has not been killed.
func (r *run) living() *node {
	for {
		i := r.pick(1 << 16)
		r.mu.Lock()
		n := r.nodes[i%len(r.nodes)]
		r.mu.Unlock()
		if !n.killed() {
			return n
		}
	}
}

// killed reports whether n is out of use.
func (n *node) killed() bool {
	n.nmu.Lock()
	defer n.nmu.Unlock()
	return n.dead || n.closing
}

// gone reports why nothing goes between n and a store.
func (n *node) gone(cut *time.Time) error {
	for {
		n.nmu.Lock()
		still, off, dead := time.Until(n.still), time.Now().Before(*cut), n.dead
		n.nmu.Unlock()
		switch {
		case dead:
			return errors.New("killed")
		case still > 0:
			time.Sleep(still)
		case off:
			return errors.New("cut off")
		default:
			return nil
		}
	}
}

func (n *node) disturb(f *fault, side string, cut *time.Time) {
	control := map[string]bool{"mark": true, "swapmark": true, "renew": true, "control": true, "swapcontrol": true, "leases": true, "instance": true, "unsettled": true}
	f.set(func(call, key string) error {
		if err := n.gone(cut); err != nil {
			return fmt.Errorf("%w: %v", store.ErrUnavailable, err)
		}
		time.Sleep(n.upTo(2 * time.Millisecond))
		_ = n.gone(cut)
		n.trace("  %s %s.%s %s", n.g.opt.Gateway, side, call, key)
		if (!control[call] || n.faults.controls) && n.chance(n.faults.refuse) {
			n.trace("  %s %s.%s %s REFUSED", n.g.opt.Gateway, side, call, key)
			return fmt.Errorf("%w: refused", store.ErrUnavailable)
		}
		return nil
	}, func(call, key string) error {
		time.Sleep(n.upTo(2 * time.Millisecond))
		err := n.gone(cut)
		if err == nil && (!control[call] || n.faults.controls) && n.chance(n.faults.lose) {
			err = errors.New("answer lost")
		}
		if err != nil {
			n.trace("  %s %s.%s %s ANSWER LOST: %v", n.g.opt.Gateway, side, call, key, err)
			return fmt.Errorf("%w: %v", store.ErrUnknown, err)
		}
		return nil
	})
}

// lateTarget executes some messages at any time after it has said that their outcome is unknown.
type lateTarget struct {
	store.Target
	r *run
}

func (l *lateTarget) Workflow(name string) store.Workflow {
	return &lateFlow{l.Target.Workflow(name), l.r}
}

type lateFlow struct {
	store.Workflow
	r *run
}

func (l *lateFlow) later(what, key string, message func(ctx context.Context)) error {
	if !l.r.chance(l.r.faults.late) {
		return nil
	}
	l.r.trace("  N.%s %s WILL BE LATE", what, key)
	l.r.late.Go(func() {
		time.Sleep(l.r.upTo(15 * time.Second))
		l.r.trace("  N.%s %s comes LATE", what, key)
		message(context.Background())
	})
	return fmt.Errorf("%w: late", store.ErrUnknown)
}

func (l *lateFlow) Begin(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	if err := l.later("begin", key, func(ctx context.Context) { _, _ = l.Workflow.Begin(ctx, key, op) }); err != nil {
		return store.Begun{}, err
	}
	return l.Workflow.Begin(ctx, key, op)
}

func (l *lateFlow) Commit(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	if err := l.later("commit", key, func(ctx context.Context) { _ = l.Workflow.Commit(ctx, key, op, rec) }); err != nil {
		return err
	}
	return l.Workflow.Commit(ctx, key, op, rec)
}

func (l *lateFlow) CommitRead(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	if err := l.later("commit", key, func(ctx context.Context) { _ = l.Workflow.CommitRead(ctx, key, op, rec) }); err != nil {
		return err
	}
	return l.Workflow.CommitRead(ctx, key, op, rec)
}

func (l *lateFlow) WriteAhead(ctx context.Context, key string, op store.Op, rec *store.Record, c store.Condition) (store.Ahead, error) {
	if err := l.later("writeahead", key, func(ctx context.Context) { _, _ = l.Workflow.WriteAhead(ctx, key, op, rec, c) }); err != nil {
		return store.Ahead{}, err
	}
	return l.Workflow.WriteAhead(ctx, key, op, rec, c)
}

func (l *lateFlow) SaveLast(ctx context.Context, key string, epoch uint64, rec *store.Record, c store.Condition) (bool, error) {
	if err := l.later("savelast", key, func(ctx context.Context) { _, _ = l.Workflow.SaveLast(ctx, key, epoch, rec, c) }); err != nil {
		return false, err
	}
	return l.Workflow.SaveLast(ctx, key, epoch, rec, c)
}

func (l *lateFlow) Copy(ctx context.Context, key string, epoch uint64, rec *store.Record) error {
	if err := l.later("copy", key, func(ctx context.Context) { _ = l.Workflow.Copy(ctx, key, epoch, rec) }); err != nil {
		return err
	}
	return l.Workflow.Copy(ctx, key, epoch, rec)
}

// lateOrigin executes some writes after it has said that their outcome is unknown, but within their bound: that much
// is promised by a store.
type lateOrigin struct {
	store.Origin
	r *run
}

func (l *lateOrigin) later(ctx context.Context, write func(ctx context.Context)) bool {
	if l.r.faults.slow && l.r.chance(0.1) {
		time.Sleep(l.r.upTo(1900 * time.Millisecond))
	}
	if !l.r.chance(l.r.faults.late) {
		return false
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return false
	}
	l.r.late.Go(func() {
		own, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		time.Sleep(l.r.upTo(max(1, time.Until(deadline))))
		write(own)
	})
	return true
}

func (l *lateOrigin) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	if l.later(ctx, func(ctx context.Context) { _ = l.Origin.Save(ctx, key, rec, c) }) {
		return fmt.Errorf("%w: late", store.ErrUnknown)
	}
	return l.Origin.Save(ctx, key, rec, c)
}

func (l *lateOrigin) Delete(ctx context.Context, key string, c store.Condition) (bool, error) {
	if l.later(ctx, func(ctx context.Context) { _, _ = l.Origin.Delete(ctx, key, c) }) {
		return false, fmt.Errorf("%w: late", store.ErrUnknown)
	}
	return l.Origin.Delete(ctx, key, c)
}

func (l *lateOrigin) Under(m store.Mark) store.Store {
	if l.r.faults.unsealed {
		return l
	}
	view := l.Origin.Under(m)
	return &lateView{view, l}
}

type lateView struct {
	store.Store
	l *lateOrigin
}

func (v *lateView) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	if v.l.later(ctx, func(ctx context.Context) { _ = v.Store.Save(ctx, key, rec, c) }) {
		return fmt.Errorf("%w: late", store.ErrUnknown)
	}
	return v.Store.Save(ctx, key, rec, c)
}

// record runs one client operation and notes it. What failed without effect is not noted; what may have happened may
// happen at any time after. do answers what the model calls the output.
func (n *node) record(client int, key string, in input, patience time.Duration, do func(ctx context.Context, g *Engine) (any, error)) {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	call := time.Now()
	n.trace("client %d at %s: %c %s %s", client, n.g.opt.Gateway, in.kind, key, in.value)
	output, err := do(ctx, n.g)
	n.trace("client %d at %s: %c %s %s answered %v, %v", client, n.g.opt.Gateway, in.kind, key, in.value, output, err)
	outcome, ret := store.OutcomeOf(err), time.Now().UnixNano()
	if n.killed() {
		outcome = store.OutcomeUnknown // nobody was told
	}
	switch outcome {
	case store.OK, store.OutcomeAbsent:
	case store.OutcomeConflict:
		if in.kind != 'A' && in.kind != 'P' && in.kind != 'V' {
			n.t.Errorf("-seed %d: %c was answered %v, and had no condition", n.seed, in.kind, err)
		}
	case store.OutcomeUnknown:
		if in.kind == 'R' || in.kind == 'T' {
			if in.kind == 'T' {
				n.mu.Lock()
				n.maybe[key] = append(n.maybe[key], call)
				n.mu.Unlock()
			}
			return // changes nothing
		}
		ret, output = 1<<62, nil
	default:
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.history[key] = append(n.history[key], porcupine.Operation{ClientId: client, Input: in, Call: call.UnixNano(), Output: output, Return: ret})
}

func (n *node) read(client int, key string, patience time.Duration) (err error) {
	var s string
	return n.readInto(client, key, patience, &s)
}

// lock takes the application's lock for a while: nobody else may have it then.
func (r *run) lock(id int, key string, n *node) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	n.holding(1) // from when it asks
	defer n.holding(-1)
	token := fmt.Sprint("t", id, time.Now().UnixNano())
	if err := n.g.Lock(ctx, key, token, 60*time.Second); err != nil {
		return
	}
	r.trace("client %d at %s: locked %s", id, n.g.opt.Gateway, key)
	r.mu.Lock()
	r.locked[key]++
	bad := r.locked[key] > 1
	r.mu.Unlock()
	if bad {
		r.t.Errorf("-seed %d: two have the lock of %s at %s", r.seed, key, time.Now().Format("04:05.000"))
	}
	time.Sleep(r.upTo(4 * time.Second))
	r.mu.Lock()
	r.locked[key]--
	r.mu.Unlock()
	r.trace("client %d at %s: unlocks %s", id, n.g.opt.Gateway, key)
	for range 20 {
		if _, err := n.g.Unlock(r.t.Context(), key, token); err == nil {
			break
		}
	}
}

func (n *node) readInto(client int, key string, patience time.Duration, held *string) (err error) {
	n.record(client, key, input{kind: 'R'}, patience, func(ctx context.Context, g *Engine) (any, error) {
		var rec store.Record
		rec, err = g.Load(ctx, key)
		*held = string(rec.Data)
		return string(rec.Data), err
	})
	return err
}

func (r *run) client(id int, keys, ops int) {
	for i := range ops {
		time.Sleep(r.upTo(1500 * time.Millisecond))
		key, value, n := fmt.Sprint("k", r.pick(keys)), fmt.Sprintf("c%d.%d", id, i), r.living()
		patience := 20 * time.Second
		switch r.pick(3) {
		case 0:
			patience = time.Millisecond + r.upTo(10*time.Millisecond)
		case 1:
			patience = time.Millisecond + r.upTo(3*time.Second)
		}
		save := func(cond store.Condition) func(ctx context.Context, g *Engine) (any, error) {
			return func(ctx context.Context, g *Engine) (any, error) {
				err := g.Save(ctx, key, store.Record{Data: []byte(value), Expires: time.Now().Add(r.life)}, cond)
				return err == nil, err
			}
		}
		if r.faults.locks && r.chance(0.2) {
			r.lock(id, key, n)
			continue
		}
		switch k := r.pick(14); {
		case k >= 12:
			var held string
			if err := n.readInto(id, key, patience, &held); err != nil && !errors.Is(err, store.ErrAbsent) {
				continue
			}
			v := store.Absent
			if held != "" {
				v = store.VersionOf([]byte(held), 0)
			}
			n.record(id, key, input{kind: 'V', value: value, old: held}, patience, save(store.IfVersion(v)))
		case k < 2:
			n.record(id, key, input{kind: 'W', value: value}, patience, save(store.Always))
		case k < 3:
			n.record(id, key, input{kind: 'A', value: value}, patience, save(store.IfAbsent))
		case k < 4:
			n.record(id, key, input{kind: 'P', value: value}, patience, save(store.IfPresent))
		case k < 6:
			n.record(id, key, input{kind: 'D'}, patience, func(ctx context.Context, g *Engine) (any, error) {
				_, err := g.Delete(ctx, key, store.Always)
				return nil, err
			})
		case k < 8:
			n.record(id, key, input{kind: 'T'}, patience, func(ctx context.Context, g *Engine) (any, error) {
				err := g.Touch(ctx, key, time.Now().Add(r.life))
				return err == nil, err
			})
		default:
			_ = n.read(id, key, patience)
		}
	}
}

// keep touches a session now and then, as whoever has it open does, so that it does not end: the model knows no expiry.
func (r *run) keep(key string) {
	time.Sleep(r.upTo(10 * time.Second))
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	_ = r.living().g.Touch(ctx, key, time.Now().Add(r.life))
}

// until calls f again and again until stop is closed.
func until(stop chan struct{}, f func()) {
	for {
		select {
		case <-stop:
			return
		default:
			f()
		}
	}
}

// command takes a step at random, mostly up.
func (r *run) command() {
	time.Sleep(r.upTo(3 * time.Second))
	g := r.living().g
	r.mu.Lock()
	if r.stepping[g] {
		r.mu.Unlock()
		return // a mutex that is waited for stops the clock
	}
	r.stepping[g] = true
	r.mu.Unlock()
	defer func() { r.mu.Lock(); delete(r.stepping, g); r.mu.Unlock() }()
	ctx, cancel := context.WithTimeout(r.t.Context(), max(time.Minute, min(2*r.life, 5*time.Minute)))
	defer cancel()
	b, err := r.n.Workflow("default").Control(ctx)
	r.must(err)
	c, err := parseControl(b)
	r.must(err)
	opt := StepOptions{Force: true, Reason: "simulation", Window: time.Millisecond}
	switch {
	case c == nil:
		r.trace("CTL create: %v", g.Create(ctx, opt))
	case r.faults.completes && c.Phase == RampDown && r.chance(0.5):
		r.trace("CTL complete")
		r.trace("CTL complete: %v", g.Complete(ctx, opt))
	case c.Phase == Complete:
		r.trace("CTL complete again: %v", g.Complete(ctx, opt))
	case r.chance(0.7) && c.Phase < RampDown:
		r.trace("CTL up from %s", c.Phase)
		r.trace("CTL up from %s: %v", c.Phase, g.SwitchTraffic(ctx, c.Phase+1, opt))
	case r.faults.cancels && r.chance(0.3):
		r.trace("CTL cancel")
		r.trace("CTL cancel: %v", g.Cancel(ctx, opt))
	case c.Phase > Off:
		r.trace("CTL down from %s", c.Phase)
		r.trace("CTL down from %s: %v", c.Phase, g.ReverseTraffic(ctx, c.Phase-1, opt))
	}
}

// outage takes a store away from everybody for some seconds: long enough for a retreat.
func (r *run) outage() {
	time.Sleep(5*time.Second + r.upTo(20*time.Second))
	end, origin := time.Now().Add(r.upTo(15*time.Second)), r.chance(0.3)
	r.trace("DOWN origin %v until %s", origin, end.Format("04:05"))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		n.cut(origin, end)
	}
}

func (n *node) cut(origin bool, until time.Time) {
	n.nmu.Lock()
	defer n.nmu.Unlock()
	if origin {
		n.cutO = until
	} else {
		n.cutN = until
	}
}

func (r *run) freeze() {
	time.Sleep(r.upTo(5 * time.Second))
	n, d := r.living(), r.upTo(8*time.Second)
	r.trace("%s stands still for %v", n.g.opt.Gateway, d)
	n.nmu.Lock()
	defer n.nmu.Unlock()
	n.still = time.Now().Add(d)
}

func (r *run) cutOff() {
	time.Sleep(r.upTo(10 * time.Second))
	n, origin, end := r.living(), r.pick(3) == 0, time.Now().Add(r.upTo(8*time.Second))
	r.trace("DOWN for %s: origin %v until %s", n.g.opt.Gateway, origin, end.Format("04:05"))
	n.cut(origin, end)
}

func (r *run) kill() {
	time.Sleep(5*time.Second + r.upTo(10*time.Second))
	n := r.living()
	n.nmu.Lock()
	n.dead, n.still = true, time.Time{}
	n.nmu.Unlock()
	n.g.stop()
	r.trace("%s stands still for ever, %s starts", n.g.opt.Gateway, r.start().g.opt.Gateway)
}

func (r *run) roll() {
	time.Sleep(r.upTo(10 * time.Second))
	n := r.living()
	r.trace("%s stands still in good order, %s starts", n.g.opt.Gateway, r.start().g.opt.Gateway)
	n.nmu.Lock()
	n.closing = true
	n.nmu.Unlock()
	for n.busy() { // the server in front of it waits for them
		time.Sleep(10 * time.Millisecond)
	}
	n.g.Close()
	n.nmu.Lock()
	n.dead = true
	n.nmu.Unlock()
}

func (n *node) busy() bool {
	n.nmu.Lock()
	defer n.nmu.Unlock()
	return n.holders > 0
}

func (n *node) holding(by int) {
	n.nmu.Lock()
	defer n.nmu.Unlock()
	n.holders += by
}

func (r *run) reconnect() {
	time.Sleep(r.upTo(5 * time.Second))
	n := r.living()
	r.trace("%s connects anew", n.g.opt.Gateway)
	n.target.again.Add(1)
}

func (r *run) forget() {
	time.Sleep(r.upTo(8 * time.Second))
	n, by := r.living(), r.living()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	r.trace("CTL %s forgets %s: %v", by.g.opt.Gateway, n.g.opt.Gateway, by.g.ForgetGateway(ctx, n.g.opt.Gateway))
}

// restart lets the target come back, but not where only a person could say how to go on.
func (r *run) restart() {
	time.Sleep(5*time.Second + r.upTo(10*time.Second))
	snap := r.n.Snapshot()
	time.Sleep(r.upTo(8 * time.Second))
	if r.chance(0.5) { // a replica that lags a little, or a disk
		snap = r.n.Snapshot()
		time.Sleep(r.upTo(300 * time.Millisecond))
		if m, _ := r.o.Mark(r.ctx()); m.Seal.Floor != store.FloorRampDown || r.faults.failovers {
			r.trace("CTL the target comes back a little older")
			r.n.Restart(snap)
		}
		return
	}
	if m, _ := r.o.Mark(r.ctx()); m.Seal.Floor == store.FloorRampDown && !r.faults.failovers {
		return
	}
	switch how := r.pick(4); how {
	case 0:
		r.trace("CTL the target is flushed")
		r.n.Flush()
	case 1:
		r.trace("CTL the target comes back empty")
		r.n.Restart(memory.Snapshot{})
	case 2:
		r.trace("CTL the target comes back as it was")
		r.n.Restart(r.n.Snapshot())
	default:
		r.trace("CTL the target comes back older")
		r.n.Restart(snap)
	}
}

// simulation runs one seed and returns what was violated.
func simulation(t *testing.T, seed uint64, f faults) (violation string) {
	simulate(t, func(w *world) {
		r := &run{world: w, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), history: map[string][]porcupine.Operation{}, maybe: map[string][]time.Time{}, locked: map[string]int{}, stepping: map[*Engine]bool{}, faults: f, life: time.Hour}
		w.origin = &faulty{Origin: &lateOrigin{w.o, r}}
		ops := 40
		if f.unlisted {
			w.origin, r.life, ops = &faulty{Origin: &lateOrigin{unlisted{w.o}, r}}, 90*time.Second, 250 // time for a wait or two
		}
		w.target = &faultyTarget{Target: &lateTarget{w.n, r}}
		for range 3 {
			r.start()
		}
		for i := 0; ; i++ {
			err := w.gws[0].Create(w.ctx(), StepOptions{})
			if err == nil {
				break
			}
			if i > 50 {
				t.Fatalf("-seed %d: create: %v", seed, err)
			}
		}
		stop := make(chan struct{})
		var background, clients sync.WaitGroup
		for _, b := range []struct {
			on bool
			do func()
		}{{true, r.command}, {f.commands, r.command}, {f.commands, r.command}, {f.outages, r.outage}, {f.freezes, r.freeze}, {f.cuts, r.cutOff}, {f.kills, r.kill}, {f.restarts, r.restart}, {f.rolls, r.roll}, {f.reconnects, r.reconnect}, {f.forgets, r.forget}} {
			if b.on {
				background.Go(func() { until(stop, b.do) })
			}
		}
		for id := range 5 {
			clients.Go(func() { r.client(id, 2, ops) })
		}
		if f.unlisted {
			for k := range 2 {
				background.Go(func() { until(stop, func() { r.keep(fmt.Sprint("k", k)) }) })
			}
		}
		clients.Wait()
		close(stop)
		background.Wait()
		for _, n := range r.nodes {
			n.nmu.Lock()
			n.cutO, n.cutN = time.Time{}, time.Time{}
			n.nmu.Unlock()
			n.origin.up()
			n.target.up()
		}
		time.Sleep(30 * time.Second) // what is dead is settled, what retreats comes back
		serves := false
		for k := range 2 {
			for _, n := range r.nodes {
				if n.killed() {
					continue
				}
				err := n.read(99, fmt.Sprint("k", k), 20*time.Second)
				failed := err != nil && store.Failed(err)
				serves = serves || !failed
				// A target that came back while somebody went up to ramp-down leaves the rest to a person.
				if m, _ := w.o.Mark(w.ctx()); failed && !(f.restarts && m.Seal.Floor == store.FloorRampDown) {
					violation += fmt.Sprintf("%s does not serve: %v; ", n.g.opt.Gateway, err)
				}
			}
		}
		for key, ops := range r.history {
			if !porcupine.CheckOperations(register, ops) {
				violation += fmt.Sprintf("session %s is not linearizable; ", key)
				r.tell(key, ops)
			}
		}
		flow := w.n.Workflow("default")
		c, err := readControl(w.ctx(), flow)
		w.must(err)
		for _, n := range r.nodes {
			if n.killed() || !serves || f.late > 0 {
				continue
			}
			for k := range 2 {
				key := fmt.Sprint("k", k)
				ctx, cancel := context.WithTimeout(w.ctx(), 5*time.Second)
				rec, err := n.g.Inspect(ctx, key)
				cancel()
				if err != nil {
					continue
				}
				if low := r.earliest(key); rec.Expires.Before(low.Add(r.life - time.Second)) {
					violation += fmt.Sprintf("session %s ends %v early at %s; ", key, low.Add(r.life).Sub(rec.Expires), n.g.opt.Gateway)
					r.tell(key, r.history[key])
				}
			}
		}
		if serves && c != nil && c.Reconciled && c.Phase >= Sync && c.Phase <= RampDown {
			for k := range 2 {
				key := fmt.Sprint("k", k)
				o, n := answer(w.o.Load(w.ctx(), key)), answer(w.n.Load(w.ctx(), key))
				if _, m, _ := flow.LoadMarked(w.ctx(), key); m.Kind == store.NoMarker && o != n {
					violation += fmt.Sprintf("session %s is reconciled and unmarked, and differs: origin %q, target %q; ", key, o, n)
				}
			}
		}
	})
	return strings.TrimSuffix(violation, "; ")
}

// tracing keeps the story of every run; a violation then writes it down.
var tracing = os.Getenv("SESSILE_TRACE") != ""

// tell writes down what happened to a session until the first answer that cannot be.
func (r *run) tell(key string, ops []porcupine.Operation) {
	if len(r.story) == 0 {
		return
	}
	sort.Slice(ops, func(i, j int) bool { return ops[i].Return < ops[j].Return })
	n := sort.Search(len(ops), func(n int) bool { return !porcupine.CheckOperations(register, cut(ops, n+1)) })
	if n == len(ops) {
		n--
	}
	until := "99"
	if ops[n].Return < 1<<61 {
		until = time.Unix(0, ops[n].Return).Format("04:05.000000")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, session %s: the answer at %s cannot be: client %d %s\n", r.seed, key, until, ops[n].ClientId, register.DescribeOperation(ops[n].Input, ops[n].Output))
	for _, line := range r.story {
		if line[:len(until)] <= until && (strings.Contains(line, " "+key) || strings.Contains(line, "CTL") || strings.Contains(line, "DOWN") || strings.HasSuffix(line, "add ") || strings.HasSuffix(line, "same ") || strings.Contains(line, "swap") || strings.Contains(line, "stands")) {
			b.WriteString(line + "\n")
		}
	}
	_ = os.WriteFile(filepath.Join(os.TempDir(), fmt.Sprintf("violation-%d.txt", r.seed)), []byte(b.String()), 0o600)
}

// cut is the history as it was when the first n operations had been answered.
func cut(ops []porcupine.Operation, n int) []porcupine.Operation {
	at := ops[n-1].Return
	var part []porcupine.Operation
	for i, op := range ops {
		switch {
		case i < n:
			part = append(part, op)
		case op.Call < at:
			op.Return, op.Output = 1<<62, nil
			part = append(part, op)
		}
	}
	return part
}

func seeds(n int) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	if os.Getenv("SESSILE_SOAK") != "" {
		n *= 200
	}
	all := make([]uint64, n)
	for i := range all {
		all[i] = uint64(i + 1)
	}
	return all
}

func TestSimulation(t *testing.T) {
	for name, f := range map[string]faults{
		"nothing fails":          {},
		"calls fail":             {refuse: 0.02, lose: 0.05},
		"writes land late":       {refuse: 0.01, lose: 0.01, late: 0.05},
		"a weaker origin":        {refuse: 0.01, lose: 0.01, unsealed: true, slow: true},
		"stores go away":         {refuse: 0.01, lose: 0.01, outages: true},
		"gateways stand still":   {refuse: 0.01, lose: 0.01, stops: true, freezes: true},
		"gateways are cut off":   {refuse: 0.01, lose: 0.02, cuts: true},
		"gateways are killed":    {refuse: 0.01, lose: 0.02, kills: true},
		"the target restarts":    {refuse: 0.01, lose: 0.02, restarts: true},
		"renewals fail":          {refuse: 0.01, lose: 0.03, controls: true, restarts: true},
		"gateways are replaced":  {refuse: 0.01, lose: 0.02, rolls: true, restarts: true, kills: true},
		"gateways are forgotten": {refuse: 0.01, lose: 0.02, forgets: true, freezes: true, cuts: true, controls: true, cancels: true},
		"the target fails over":  {refuse: 0.01, lose: 0.02, rolls: true, restarts: true, failovers: true, controls: true},
		"connections break":      {refuse: 0.01, lose: 0.02, reconnects: true, restarts: true, failovers: true, controls: true, freezes: true},
		"moves are completed":    {refuse: 0.01, lose: 0.02, completes: true, kills: true, freezes: true, cuts: true, controls: true, rolls: true},
		"sessions are locked":    {refuse: 0.01, lose: 0.02, locks: true, controls: true, rolls: true},
		"moves are cancelled":    {refuse: 0.01, lose: 0.01, cancels: true, kills: true, freezes: true},
		"everything at one time": {refuse: 0.01, lose: 0.02, late: 0.02, controls: true, outages: true, stops: true, freezes: true, cuts: true, kills: true,
			restarts: true, failovers: true, cancels: true, rolls: true, reconnects: true},
		"all but restarts": {refuse: 0.01, lose: 0.02, controls: true, outages: true, stops: true, freezes: true, cuts: true, kills: true, cancels: true,
			rolls: true, reconnects: true, completes: true, slow: true, forgets: true},
		"the origin cannot be listed": {refuse: 0.01, lose: 0.02, controls: true, unlisted: true, kills: true, freezes: true, cuts: true, rolls: true},
		"commands meet":               {refuse: 0.01, lose: 0.02, controls: true, freezes: true, cuts: true, cancels: true, commands: true},
		"and slowly":                  {refuse: 0.01, lose: 0.02, late: 0.02, slow: true, stops: true, freezes: true, cuts: true, kills: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, seed := range seeds(3) {
				if v := simulation(t, seed, f); v != "" {
					t.Fatalf("-seed %d: %s", seed, v)
				}
			}
		})
	}
}

// A guard that can be switched off without anybody noticing is not needed, or not tested.
func TestSimulationNoticesEveryMissingGuard(t *testing.T) {
	for name, tc := range map[string]struct {
		g guard.Guard
		f faults
	}{
		"intent":                              {guard.Intent, faults{refuse: 0.02, lose: 0.02}},
		"commit check":                        {guard.Commit, faults{late: 0.1}},
		"fence":                               {guard.Fence, faults{late: 0.1}},
		"drain":                               {guard.Drain, faults{unsealed: true, slow: true}},
		"reconcile":                           {guard.Reconcile, faults{late: 0.1}},
		"reconcile, of what cannot be listed": {guard.Reconcile, faults{unlisted: true}},
		"seal":                                {guard.Seal, faults{refuse: 0.02, lose: 0.02, outages: true}},
		"memory":                              {guard.Memory, faults{restarts: true}},
	} {
		t.Run(name, func(t *testing.T) {
			defer guard.Disable(tc.g)()
			for _, seed := range seeds(400) {
				if v := simulation(t, seed, tc.f); v != "" {
					t.Logf("noticed at seed %d: %s", seed, v)
					return
				}
			}
			t.Errorf("nobody noticed that the %s was missing", name)
		})
	}
}

// earliest is the earliest time at which the last one who set the deadline of a session may have begun to.
func (r *run) earliest(key string) time.Time {
	var last int64
	sets := func(op porcupine.Operation) bool {
		k := op.Input.(input).kind
		b, ok := op.Output.(bool)
		return (k == 'W' || k == 'A' || k == 'P' || k == 'V' || k == 'T') && (!ok || b)
	}
	for _, op := range r.history[key] {
		if sets(op) && op.Return < 1<<61 && op.Call > last {
			last = op.Call
		}
	}
	low := last
	for _, op := range r.history[key] {
		if sets(op) && op.Return >= last && op.Call < low {
			low = op.Call
		}
	}
	for _, t := range r.maybe[key] {
		low = min(low, t.UnixNano())
	}
	return time.Unix(0, low)
}
