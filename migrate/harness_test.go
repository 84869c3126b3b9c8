package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// A world is an origin, a target and gateways over them, in virtual time: run one inside simulate.
type world struct {
	t      *testing.T
	o      *memory.Store // lazy expiry, as a directory of files
	n      *memory.Store
	origin *faulty // what the gateways see of o
	target *faultyTarget
	gws    []*Engine
	said   []string
	late   sync.WaitGroup // messages that are still on their way
	life   time.Duration  // of what save saves
}

// simulate runs f in a bubble whose clock jumps when everybody waits.
func simulate(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, life: time.Hour, o: memory.New(memory.Options{LazyExpiry: true}), n: memory.New(memory.Options{})}
		w.origin = &faulty{Origin: w.o}
		w.target = &faultyTarget{Target: w.n}
		defer func() {
			for _, g := range w.gws {
				g.Close()
			}
			w.late.Wait()
		}()
		f(w)
	})
}

// gateway starts one more gateway.
func (w *world) gateway(change ...func(*Options)) *Engine {
	w.t.Helper()
	opt := Options{Gateway: fmt.Sprintf("g%d", len(w.gws)+1), ShadowShare: -1}
	for _, c := range change {
		c(&opt)
	}
	g, err := New(w.origin, w.target, opt)
	if err != nil {
		w.t.Fatal(err)
	}
	w.gws = append(w.gws, g)
	return g
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) opt() StepOptions {
	return StepOptions{Say: func(line string) { w.said = append(w.said, line); w.t.Log(time.Now().Format("05.000 "), line) }}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// at takes the workflow to a phase, up or down.
func (w *world) at(p Phase) {
	w.t.Helper()
	g := w.gws[0]
	w.must(g.Create(w.ctx(), w.opt()))
	c, err := readControl(w.ctx(), g.flow)
	w.must(err)
	switch {
	case p == Complete:
		w.must(g.SwitchTraffic(w.ctx(), RampDown, w.opt()))
		w.must(g.Complete(w.ctx(), w.opt()))
	case p > c.Phase:
		w.must(g.SwitchTraffic(w.ctx(), p, w.opt()))
	case p < c.Phase:
		w.must(g.ReverseTraffic(w.ctx(), p, w.opt()))
	}
}

func (w *world) save(g *Engine, key, data string) {
	w.t.Helper()
	w.must(g.Save(w.ctx(), key, lasting(data, w.life), store.Always))
}

func (w *world) destroy(g *Engine, key string) {
	w.t.Helper()
	if _, err := g.Delete(w.ctx(), key, store.Always); err != nil {
		w.t.Fatal(err)
	}
}

// reads checks what g answers for key; "-" stands for absent.
func (w *world) reads(g *Engine, key, want string) {
	w.t.Helper()
	if got := answer(g.Load(w.ctx(), key)); got != want {
		w.t.Errorf("%s reads %q, want %q", g.opt.Gateway, got, want)
	}
}

// holds checks what a store holds under key.
func (w *world) holds(s *memory.Store, key, want string) {
	w.t.Helper()
	if got := answer(s.Load(w.ctx(), key)); got != want {
		w.t.Errorf("%s holds %q, want %q", map[bool]string{true: "the origin", false: "the target"}[s == w.o], got, want)
	}
}

func answer(rec store.Record, err error) string {
	switch {
	case errors.Is(err, store.ErrAbsent):
		return "-"
	case err != nil:
		return "error: " + err.Error()
	}
	return string(rec.Data)
}

func hour(data string) store.Record { return lasting(data, time.Hour) }

func lasting(data string, life time.Duration) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(life)}
}

// phase waits until g has adopted p.
func (w *world) phase(g *Engine, p Phase) {
	w.t.Helper()
	for range 10000 {
		g.mu.Lock()
		c := g.auth.control
		g.mu.Unlock()
		if c != nil && c.Phase == p && c.Done {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("%s never came to %s", g.opt.Gateway, p)
}

// A fault decides what happens to a call of a store: before it is executed and after. A nil error lets it pass.
type fault struct {
	mu     sync.Mutex
	before func(call, key string) error
	after  func(call, key string) error
}

func (f *fault) set(before, after func(call, key string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

func (f *fault) down() {
	f.set(func(string, string) error { return fmt.Errorf("%w: down", store.ErrUnavailable) }, nil)
}

// dead is down where a server is known not to run.
func (f *fault) dead() {
	f.set(func(string, string) error { return fmt.Errorf("%w: dead", store.ErrDown) }, nil)
}

func (f *fault) up() { f.set(nil, nil) }

func (f *fault) call(name, key string, run func() error) error {
	f.mu.Lock()
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(name, key); err != nil {
			return err
		}
	}
	err := run()
	if after != nil {
		if ferr := after(name, key); ferr != nil {
			return ferr
		}
	}
	return err
}

// faulty is an origin with faults.
type faulty struct {
	store.Origin
	fault
}

func (f *faulty) Load(ctx context.Context, key string) (r store.Record, err error) {
	err = f.call("load", key, func() error { r, err = f.Origin.Load(ctx, key); return err })
	return r, err
}

func (f *faulty) Inspect(ctx context.Context, key string) (r store.Record, err error) {
	err = f.call("inspect", key, func() error { r, err = f.Origin.Inspect(ctx, key); return err })
	return r, err
}

func (f *faulty) Scan(ctx context.Context, cursor string, limit int) (p store.Page, err error) {
	err = f.call("scan", "", func() error { p, err = f.Origin.Scan(ctx, cursor, limit); return err })
	return p, err
}

func (f *faulty) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	return f.call("save", key, func() error { return f.Origin.Save(ctx, key, rec, c) })
}

func (f *faulty) Touch(ctx context.Context, key string, at time.Time) error {
	return f.call("touch", key, func() error { return f.Origin.Touch(ctx, key, at) })
}

func (f *faulty) Delete(ctx context.Context, key string, c store.Condition) (b bool, err error) {
	err = f.call("delete", key, func() error { b, err = f.Origin.Delete(ctx, key, c); return err })
	return b, err
}

func (f *faulty) Mark(ctx context.Context) (m store.Mark, err error) {
	err = f.call("mark", "", func() error { m, err = f.Origin.Mark(ctx); return err })
	return m, err
}

func (f *faulty) SwapMark(ctx context.Context, old, next store.Mark) error {
	return f.call("swapmark", "", func() error { return f.Origin.SwapMark(ctx, old, next) })
}

func (f *faulty) Under(m store.Mark) store.Store {
	return &faultyView{Store: f.Origin.Under(m), f: f}
}

type faultyView struct {
	store.Store
	f *faulty
}

func (v *faultyView) Load(ctx context.Context, key string) (r store.Record, err error) {
	err = v.f.call("load", key, func() error { r, err = v.Store.Load(ctx, key); return err })
	return r, err
}

func (v *faultyView) Inspect(ctx context.Context, key string) (r store.Record, err error) {
	err = v.f.call("inspect", key, func() error { r, err = v.Store.Inspect(ctx, key); return err })
	return r, err
}

func (v *faultyView) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	return v.f.call("save", key, func() error { return v.Store.Save(ctx, key, rec, c) })
}

func (v *faultyView) Touch(ctx context.Context, key string, at time.Time) error {
	return v.f.call("touch", key, func() error { return v.Store.Touch(ctx, key, at) })
}

func (v *faultyView) Delete(ctx context.Context, key string, c store.Condition) (b bool, err error) {
	err = v.f.call("delete", key, func() error { b, err = v.Store.Delete(ctx, key, c); return err })
	return b, err
}

// unlisted is an origin that cannot be listed.
type unlisted struct{ store.Origin }

func (u unlisted) Capabilities() store.Capabilities {
	c := u.Origin.Capabilities()
	c.Scan = false
	return c
}

func (unlisted) Scan(context.Context, string, int) (store.Page, error) {
	return store.Page{}, errors.ErrUnsupported
}

// faultyTarget is a target with faults.
type faultyTarget struct {
	store.Target
	fault
	again atomic.Uint64 // connections made anew, to the same server
	held  atomic.Bool   // the renewal that is answered next was asked for while nobody was
}

func (f *faultyTarget) Generation() uint64 { return f.Target.Generation() + f.again.Load() }

func (f *faultyTarget) Load(ctx context.Context, key string) (r store.Record, err error) {
	err = f.call("load", key, func() error { r, err = f.Target.Load(ctx, key); return err })
	return r, err
}

func (f *faultyTarget) Inspect(ctx context.Context, key string) (r store.Record, err error) {
	err = f.call("inspect", key, func() error { r, err = f.Target.Inspect(ctx, key); return err })
	return r, err
}

func (f *faultyTarget) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	return f.call("save", key, func() error { return f.Target.Save(ctx, key, rec, c) })
}

func (f *faultyTarget) Delete(ctx context.Context, key string, c store.Condition) (b bool, err error) {
	err = f.call("delete", key, func() error { b, err = f.Target.Delete(ctx, key, c); return err })
	return b, err
}

func (f *faultyTarget) Touch(ctx context.Context, key string, at time.Time) error {
	return f.call("touch", key, func() error { return f.Target.Touch(ctx, key, at) })
}

func (f *faultyTarget) Instance(ctx context.Context) (s string, err error) {
	err = f.call("instance", "", func() error { s, err = f.Target.Instance(ctx); return err })
	return s, err
}

func (f *faultyTarget) Lock(ctx context.Context, key, token string, life time.Duration) error {
	return f.call("lock", key, func() error { return f.Target.Lock(ctx, key, token, life) })
}

func (f *faultyTarget) Workflow(name string) store.Workflow {
	return &faultyFlow{f.Target.Workflow(name), f}
}

type faultyFlow struct {
	store.Workflow
	f *faultyTarget
}

func (v *faultyFlow) Control(ctx context.Context) (b []byte, err error) {
	err = v.f.call("control", "", func() error { b, err = v.Workflow.Control(ctx); return err })
	return b, err
}

func (v *faultyFlow) SwapControl(ctx context.Context, old, next []byte) error {
	return v.f.call("swapcontrol", "", func() error { return v.Workflow.SwapControl(ctx, old, next) })
}

func (v *faultyFlow) Renew(ctx context.Context, g string, info []byte, life time.Duration) (r store.Renewal, err error) {
	err = v.f.call("renew", g, func() error { r, err = v.Workflow.Renew(ctx, g, info, life); return err })
	r.Down = v.f.held.Swap(false)
	return r, err
}

func (v *faultyFlow) Leases(ctx context.Context) (l []store.Lease, err error) {
	err = v.f.call("leases", "", func() error { l, err = v.Workflow.Leases(ctx); return err })
	return l, err
}

func (v *faultyFlow) LoadMarked(ctx context.Context, key string) (r *store.Record, m store.Marker, err error) {
	err = v.f.call("loadmarked", key, func() error { r, m, err = v.Workflow.LoadMarked(ctx, key); return err })
	return r, m, err
}

func (v *faultyFlow) Begin(ctx context.Context, key string, op store.Op) (b store.Begun, err error) {
	err = v.f.call("begin", key, func() error { b, err = v.Workflow.Begin(ctx, key, op); return err })
	return b, err
}

func (v *faultyFlow) Settle(ctx context.Context, key string, op store.Op) (b store.Begun, err error) {
	err = v.f.call("settle", key, func() error { b, err = v.Workflow.Settle(ctx, key, op); return err })
	return b, err
}

func (v *faultyFlow) Commit(ctx context.Context, key string, op store.Op, r *store.Record) error {
	return v.f.call("commit", key, func() error { return v.Workflow.Commit(ctx, key, op, r) })
}

func (v *faultyFlow) CommitRead(ctx context.Context, key string, op store.Op, r *store.Record) error {
	return v.f.call("commit", key, func() error { return v.Workflow.CommitRead(ctx, key, op, r) })
}

func (v *faultyFlow) Withdraw(ctx context.Context, key string, op store.Op) error {
	return v.f.call("withdraw", key, func() error { return v.Workflow.Withdraw(ctx, key, op) })
}

func (v *faultyFlow) WriteAhead(ctx context.Context, key string, op store.Op, r *store.Record, c store.Condition) (a store.Ahead, err error) {
	err = v.f.call("writeahead", key, func() error { a, err = v.Workflow.WriteAhead(ctx, key, op, r, c); return err })
	return a, err
}

func (v *faultyFlow) MarkAhead(ctx context.Context, key string, op store.Op) (a store.Ahead, err error) {
	err = v.f.call("markahead", key, func() error { a, err = v.Workflow.MarkAhead(ctx, key, op); return err })
	return a, err
}

func (v *faultyFlow) Propagated(ctx context.Context, key string, op store.Op, version uint64) (a store.Ahead, done bool, err error) {
	err = v.f.call("propagated", key, func() error { a, done, err = v.Workflow.Propagated(ctx, key, op, version); return err })
	return a, done, err
}

func (v *faultyFlow) SaveLast(ctx context.Context, key string, epoch uint64, r *store.Record, c store.Condition) (b bool, err error) {
	err = v.f.call("savelast", key, func() error { b, err = v.Workflow.SaveLast(ctx, key, epoch, r, c); return err })
	return b, err
}

func (v *faultyFlow) TouchMarked(ctx context.Context, key string, epoch uint64, at time.Time) (b bool, m store.Marker, err error) {
	err = v.f.call("touchmarked", key, func() error { b, m, err = v.Workflow.TouchMarked(ctx, key, epoch, at); return err })
	return b, m, err
}

func (v *faultyFlow) Copy(ctx context.Context, key string, epoch uint64, r *store.Record) error {
	return v.f.call("copy", key, func() error { return v.Workflow.Copy(ctx, key, epoch, r) })
}

func (v *faultyFlow) Add(ctx context.Context, epoch uint64, entries []store.Entry) (s []bool, err error) {
	err = v.f.call("add", "", func() error { s, err = v.Workflow.Add(ctx, epoch, entries); return err })
	return s, err
}

func (v *faultyFlow) Same(ctx context.Context, epoch uint64, entries []store.Entry) (s []bool, err error) {
	err = v.f.call("same", "", func() error { s, err = v.Workflow.Same(ctx, epoch, entries); return err })
	return s, err
}

func (v *faultyFlow) Purge(ctx context.Context, c []byte) error {
	return v.f.call("purge", "", func() error { return v.Workflow.Purge(ctx, c) })
}

func (v *faultyFlow) Unsettled(ctx context.Context, limit int) (u store.Unsettled, err error) {
	err = v.f.call("unsettled", "", func() error { u, err = v.Workflow.Unsettled(ctx, limit); return err })
	return u, err
}

// A freezer stops a gateway as SIGSTOP does: nothing that it sends is sent until it goes on.
type freezer struct {
	mu   sync.Mutex
	gate chan struct{} // nil while it runs
}

func (f *freezer) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
}

func (f *freezer) goOn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.gate)
	f.gate = nil
}

func (f *freezer) wait(string, string) error {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return nil
}

// view starts a gateway that has its own view of both stores, for faults that are its alone.
func (w *world) view(change ...func(*Options)) (g *Engine, origin *faulty, target *faultyTarget) {
	w.t.Helper()
	o, n := w.origin, w.target
	defer func() { w.origin, w.target = o, n }()
	w.origin, w.target = &faulty{Origin: o.Origin}, &faultyTarget{Target: n.Target}
	return w.gateway(change...), w.origin, w.target
}

// freezable starts a gateway that can be stopped.
func (w *world) freezable(change ...func(*Options)) (*Engine, *freezer) {
	w.t.Helper()
	f := &freezer{}
	g, o, n := w.view(change...)
	o.set(f.wait, nil)
	n.set(f.wait, nil)
	return g, f
}
