package migrate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

var seedFlag = flag.Uint64("seed", 0, "run the simulation with this seed alone")

// A simulated run is many clients on few sessions through two gateways, while a controller walks the ladder at random
// and both stores are slow, refuse, lose answers and execute late. Everything acknowledged has to be linearizable.
type run struct {
	*world
	seed uint64

	mu      sync.Mutex // guards rng, history
	rng     *rand.Rand
	history map[string][]porcupine.Operation
	story   []string

	faults faults
}

// faults are probabilities per call.
type faults struct {
	refuse, lose, late float64
	outages            bool // now and then a whole store is away for seconds
	stops              bool // now and then a gateway stands still between two messages
	unsealed           bool // the origin cannot compare its mark and write in one step
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
	kind  byte // W, D, R
	value string
}

var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		switch i := in.(input); i.kind {
		case 'W':
			return true, i.value
		case 'D':
			return true, ""
		default:
			return out == nil || out.(string) == state.(string), state
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

// disturb gives every call of a store a latency and, by chance, a fault.
func (r *run) disturb(f *fault, origin bool) {
	control := map[string]bool{"mark": true, "swapmark": true, "renew": true, "control": true, "swapcontrol": true, "leases": true, "instance": true, "unsettled": true}
	side := map[bool]string{true: "O", false: "N"}[origin]
	f.set(func(call, key string) error {
		time.Sleep(r.upTo(2 * time.Millisecond))
		r.trace("  %s.%s %s", side, call, key)
		if !control[call] && r.chance(r.faults.refuse) {
			r.trace("  %s.%s %s REFUSED", side, call, key)
			return fmt.Errorf("%w: refused", store.ErrUnavailable)
		}
		return nil
	}, func(call, key string) error {
		time.Sleep(r.upTo(2 * time.Millisecond))
		if !control[call] && r.chance(r.faults.lose) {
			r.trace("  %s.%s %s ANSWER LOST", side, call, key)
			return fmt.Errorf("%w: answer lost", store.ErrUnknown)
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
// happen at any time after.
func (r *run) record(client int, key string, in input, do func(ctx context.Context) (string, error)) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	call := time.Now()
	r.trace("client %d: %c %s %s", client, in.kind, key, in.value)
	out, err := do(ctx)
	r.trace("client %d: %c %s %s answered %q, %v", client, in.kind, key, in.value, out, err)
	ret := time.Now().UnixNano()
	var output any = out
	switch store.OutcomeOf(err) {
	case store.OK, store.OutcomeAbsent:
	case store.OutcomeUnknown:
		ret, output = 1<<62, nil
	default:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history[key] = append(r.history[key], porcupine.Operation{ClientId: client, Input: in, Call: call.UnixNano(), Output: output, Return: ret})
}

func (r *run) client(id int, keys, ops int) {
	g := func() *Engine { return r.gws[r.pick(len(r.gws))] }
	for i := range ops {
		time.Sleep(r.upTo(1500 * time.Millisecond))
		key := fmt.Sprint("k", r.pick(keys))
		switch n := r.pick(10); {
		case n < 3:
			value := fmt.Sprintf("c%d.%d", id, i)
			r.record(id, key, input{'W', value}, func(ctx context.Context) (string, error) {
				return "", g().Save(ctx, key, hour(value), store.Always)
			})
		case n < 5:
			r.record(id, key, input{'D', ""}, func(ctx context.Context) (string, error) {
				_, err := g().Delete(ctx, key, store.Always)
				return "", err
			})
		case n < 9:
			r.record(id, key, input{'R', ""}, func(ctx context.Context) (string, error) {
				rec, err := g().Load(ctx, key)
				if store.OutcomeOf(err) == store.OutcomeUnknown {
					err = fmt.Errorf("%w: a read that has no answer has no effect", store.ErrUnavailable)
				}
				return string(rec.Data), err
			})
		default:
			ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
			_ = g().Touch(ctx, key, time.Now().Add(time.Hour))
			cancel()
		}
	}
}

// controller takes steps at random, mostly up, until stop is closed.
func (r *run) controller(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		time.Sleep(r.upTo(3 * time.Second))
		g := r.gws[r.pick(len(r.gws))]
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
		c, err := readControl(ctx, g.flow)
		if err == nil && c != nil {
			opt := StepOptions{Force: true, Reason: "simulation", Window: time.Millisecond}
			switch {
			case r.chance(0.7) && c.Phase < RampDown:
				r.trace("CTL up from %s", c.Phase)
				err := g.SwitchTraffic(ctx, c.Phase+1, opt)
				r.trace("CTL up from %s: %v", c.Phase, err)
			case c.Phase > Off:
				r.trace("CTL down from %s", c.Phase)
				err := g.ReverseTraffic(ctx, c.Phase-1, opt)
				r.trace("CTL down from %s: %v", c.Phase, err)
			}
		}
		cancel()
	}
}

// outages takes a store away for some seconds, now and then: long enough for a retreat.
func (r *run) outages(stop chan struct{}) {
	for {
		time.Sleep(5*time.Second + r.upTo(20*time.Second))
		select {
		case <-stop:
			return
		default:
		}
		f, origin := &r.target.fault, false
		if r.chance(0.3) {
			f, origin = &r.origin.fault, true
		}
		r.trace("DOWN origin %v", origin)
		f.down()
		time.Sleep(r.upTo(15 * time.Second))
		r.disturb(f, origin)
	}
}

// simulation runs one seed and returns what was violated.
func simulation(t *testing.T, seed uint64, f faults) (violation string) {
	simulate(t, func(w *world) {
		r := &run{world: w, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), history: map[string][]porcupine.Operation{}, faults: f}
		w.origin = &faulty{Origin: &lateOrigin{w.o, r}}
		w.target = &faultyTarget{Target: &lateTarget{w.n, r}}
		stopAt := func(ctx context.Context, arrow, key string) {
			if f.stops && r.chance(0.004) {
				r.trace("a gateway stands still at %s %s", arrow, key)
				time.Sleep(r.upTo(8 * time.Second)) // longer than every lease
			}
		}
		for range 2 {
			w.gateway(func(o *Options) { o.Hooks.Arrow = stopAt })
		}
		w.must(w.gws[0].Create(w.ctx(), StepOptions{}))
		r.disturb(&w.origin.fault, true)
		r.disturb(&w.target.fault, false)
		stop := make(chan struct{})
		var background, clients sync.WaitGroup
		background.Go(func() { r.controller(stop) })
		if f.outages {
			background.Go(func() { r.outages(stop) })
		}
		for id := range 5 {
			clients.Go(func() { r.client(id, 2, 40) })
		}
		clients.Wait()
		close(stop)
		background.Wait()
		w.origin.up()
		w.target.up()
		time.Sleep(20 * time.Second) // what is dead is settled, what retreats comes back
		for k := range 2 {
			key := fmt.Sprint("k", k)
			for _, g := range w.gws {
				r.record(99, key, input{'R', ""}, func(ctx context.Context) (string, error) {
					rec, err := g.Load(ctx, key)
					return string(rec.Data), err
				})
			}
		}
		c, err := readControl(w.ctx(), w.gws[0].flow)
		w.must(err)
		for key, ops := range r.history {
			if !porcupine.CheckOperations(register, ops) {
				violation += fmt.Sprintf("session %s is not linearizable; ", key)
				r.tell(key, ops)
			}
		}
		if c.Reconciled && c.Phase >= Sync && c.Phase <= RampDown {
			for k := range 2 {
				key := fmt.Sprint("k", k)
				o, n := answer(w.o.Load(w.ctx(), key)), answer(w.n.Load(w.ctx(), key))
				if _, m, _ := w.gws[0].flow.LoadMarked(w.ctx(), key); m.Kind == store.NoMarker && o != n {
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
	_ = os.WriteFile(fmt.Sprintf("/tmp/violation-%d.txt", r.seed), []byte(b.String()), 0o600)
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
		n *= 100
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
		"calls fail":             {refuse: 0.02, lose: 0.02},
		"writes land late":       {refuse: 0.01, lose: 0.01, late: 0.05},
		"a weaker origin":        {refuse: 0.01, lose: 0.01, unsealed: true, slow: true},
		"stores go away":         {refuse: 0.01, lose: 0.01, outages: true},
		"gateways stand still":   {refuse: 0.01, lose: 0.01, stops: true},
		"everything at one time": {refuse: 0.01, lose: 0.01, late: 0.03, outages: true, stops: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, seed := range seeds(10) {
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
		"intent":       {guard.Intent, faults{refuse: 0.02, lose: 0.02}},
		"commit check": {guard.Commit, faults{late: 0.1}},
		"fence":        {guard.Fence, faults{late: 0.1}},
		"drain":        {guard.Drain, faults{unsealed: true, slow: true}},
		"reconcile":    {guard.Reconcile, faults{refuse: 0.02, lose: 0.02}},
		"seal":         {guard.Seal, faults{refuse: 0.02, lose: 0.02, outages: true}},
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

var _ = errors.Is
