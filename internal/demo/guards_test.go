package demo

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

// Every zero of the demo must be seen to turn red: here the same site, the same visitors and the same recorder meet the
// fault that a guard is for, once with the guard and once without. (For fence and seal two engines are needed; they
// have their turn in migrate's simulation.)
func TestEveryZeroTurnsRedWithoutItsGuard(t *testing.T) {
	for _, tc := range []struct {
		guard guard.Guard
		name  string
		fault string
		run   func(t *testing.T, s *site)
	}{
		{guard.Flock, "flock", "half of the servers still write the files themselves", func(t *testing.T, s *site) {
			half := client(s.addr)
			s.through(func(worker int) handler {
				if worker%2 == 0 {
					return s.direct()
				}
				return half(worker)
			})
			s.traffic.active.Store(3)
			s.stay(3 * time.Second)
		}},
		{guard.Intent, "intent", "one in five messages to the target is refused", func(t *testing.T, s *site) {
			s.at(t, migrate.Live)
			s.refuse.Store(true)
			s.stay(2 * time.Second)
			s.refuse.Store(false)
			s.stay(500 * time.Millisecond)
		}},
		{guard.Commit, "commit check", "commits come later than their lease", func(t *testing.T, s *site) {
			s.at(t, migrate.Live)
			s.late.Store(true)
			s.traffic.active.Store(20)
			s.stay(4 * time.Second)
			s.late.Store(false)
			s.stay(2 * time.Second)
		}},
		{guard.Drain, "drain", "slow writes to an origin that cannot compare its seal", func(t *testing.T, s *site) {
			for range 4 {
				s.at(t, migrate.DualWrite)
				s.slow.Store(true)
				s.at(t, migrate.Live)
				s.slow.Store(false)
				s.stay(300 * time.Millisecond)
			}
		}},
		{guard.Reconcile, "reconcile", "one in five copies of dual-write is refused", func(t *testing.T, s *site) {
			s.refuse.Store(true)
			s.at(t, migrate.Sync)
			s.refuse.Store(false)
			s.at(t, migrate.Live)
			s.stay(time.Second)
		}},
		{guard.Touch, "touch rule", "the target lost sessions that are only looked at", func(t *testing.T, s *site) {
			s.at(t, migrate.Sync)
			s.reconciled(t)
			s.leave() // nobody writes any more
			for _, id := range s.traffic.members {
				if _, err := s.target.Delete(t.Context(), id, store.Always); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range s.traffic.members {
				s.traffic.page(t.Context(), 0, visit{id: id})
			}
			s.at(t, migrate.Live)
			for _, id := range s.traffic.members {
				s.traffic.page(t.Context(), 0, visit{id: id})
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			with := measure(t, tc.run)
			if with.Bad() {
				t.Errorf("with the guard: %+v", with)
			}
			restore := guard.Disable(tc.guard)
			defer restore()
			without := measure(t, tc.run)
			for range 2 { // a fault hits by chance: on a slow machine perhaps nobody whom it would cost something
				if !without.Bad() {
					without = measure(t, tc.run)
				}
			}
			if !without.Bad() {
				t.Errorf("without the guard nothing was lost: either the guard is not needed or the recorder is blind")
			}
			row := func(r recorder.Report) string {
				return fmt.Sprintf("%3d / %3d / %3d", r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
			}
			t.Logf("| %-12s | %-56s | %s | %s |", tc.name, tc.fault, row(with), row(without))
		})
	}
}

// site is the demo's world with faults.
type site struct {
	*world
	refuse, late, slow toggle
	leave              func()
}

type toggle struct {
	mu sync.Mutex
	on bool
}

func (t *toggle) Store(on bool) { t.mu.Lock(); t.on = on; t.mu.Unlock() }
func (t *toggle) Load() bool    { t.mu.Lock(); defer t.mu.Unlock(); return t.on }

// measure runs one scenario and returns what the recorder found.
func measure(t *testing.T, run func(t *testing.T, s *site)) recorder.Report {
	t.Helper()
	s := &site{}
	var out bytes.Buffer
	w, err := newWorld(t.Context(), Options{Err: &out, Out: &out, Visitors: 60})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	s.world = w
	w.wrapOrigin = func(o store.Origin) store.Origin { return &slowOrigin{o, s} }
	w.wrapTarget = func(n store.Target) store.Target { return &badTarget{n, s} }
	w.traffic.pace = 4 * time.Millisecond
	if err := w.startGateway(); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Create(t.Context(), migrate.StepOptions{}); err != nil {
		t.Fatal(err)
	}
	phase := "test"
	w.traffic.phase.Store(&phase)
	w.through(client(w.addr))
	visitors, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 6) })
	s.leave = func() { leave(); wg.Wait() }
	defer s.leave()
	run(t, s)
	s.leave()
	st := w.engine.Status(t.Context())
	look := lookFile(filepath.Join(w.dir, "sessions"))
	if st.Phase >= migrate.Live {
		look = lookRedis(w.redis)
		if w.redis == "" {
			look = w.lookTarget
		}
	}
	for range 100 { // what is settled late is settled before a plain client looks
		if st := w.engine.Status(t.Context()); st.Debt.Intents+st.Debt.Aheads == 0 {
			break
		}
		s.stay(50 * time.Millisecond)
	}
	if err := w.traffic.rec.Final("a plain client at the end", look); err != nil {
		t.Fatal(err)
	}
	r := w.traffic.rec.Report()
	if r.Requests-r.Failures < 60 {
		t.Errorf("only %d of %d pages were answered", r.Requests-r.Failures, r.Requests)
	}
	return r
}

// stay lets the visitors go on for d.
func (s *site) stay(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func (s *site) at(t *testing.T, p migrate.Phase) {
	t.Helper()
	opt := migrate.StepOptions{Force: true, Reason: "test", Window: time.Millisecond}
	st := s.engine.Status(t.Context())
	var err error
	if st.Phase <= p {
		err = s.engine.SwitchTraffic(t.Context(), p, opt)
	} else {
		err = s.engine.ReverseTraffic(t.Context(), p, opt)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) reconciled(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !s.engine.Status(t.Context()).Reconciled; {
		if time.Now().After(end) {
			t.Fatal("never reconciled")
		}
		s.stay(20 * time.Millisecond)
	}
}

// slowOrigin takes long for some writes, and while it does it is an origin that cannot compare its mark in one step.
type slowOrigin struct {
	store.Origin
	s *site
}

func (o *slowOrigin) Under(m store.Mark) store.Store {
	if o.s.slow.Load() {
		return o
	}
	return o.Origin.Under(m)
}

func (o *slowOrigin) Save(ctx context.Context, key string, rec store.Record, c store.Condition) error {
	if o.s.slow.Load() && rand.IntN(3) == 0 {
		o.s.stay(time.Duration(100+rand.IntN(350)) * time.Millisecond)
	}
	return o.Origin.Save(ctx, key, rec, c)
}

// badTarget refuses some messages and delivers others late.
type badTarget struct {
	store.Target
	s *site
}

func (n *badTarget) Workflow(name string) store.Workflow {
	return &badFlow{n.Target.Workflow(name), n.s}
}

type badFlow struct {
	store.Workflow
	s *site
}

func (f *badFlow) refused() error {
	if f.s.refuse.Load() && rand.IntN(5) == 0 {
		return fmt.Errorf("%w: refused by the test", store.ErrUnavailable)
	}
	return nil
}

func (f *badFlow) Copy(ctx context.Context, key string, epoch uint64, rec *store.Record) error {
	if err := f.refused(); err != nil {
		return err
	}
	return f.Workflow.Copy(ctx, key, epoch, rec)
}

func (f *badFlow) Begin(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	if err := f.refused(); err != nil {
		return store.Begun{}, err
	}
	return f.Workflow.Begin(ctx, key, op)
}

// later runs message after the marker's lease (1 s in the demo) is over.
func (f *badFlow) later(message func(ctx context.Context)) error {
	if !f.s.late.Load() || rand.IntN(10) != 0 {
		return nil
	}
	go func() {
		f.s.stay(1500 * time.Millisecond)
		message(context.Background())
	}()
	return fmt.Errorf("%w: on its way", store.ErrUnknown)
}

// kept is a copy for a message that is sent when its sender's buffer has another use.
func kept(rec *store.Record) *store.Record {
	if rec == nil {
		return nil
	}
	c := *rec
	c.Data = bytes.Clone(rec.Data)
	return &c
}

func (f *badFlow) Commit(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	if err := f.refused(); err != nil {
		return err
	}
	later := kept(rec)
	if err := f.later(func(ctx context.Context) { _ = f.Workflow.Commit(ctx, key, op, later) }); err != nil {
		return err
	}
	return f.Workflow.Commit(ctx, key, op, rec)
}

func (f *badFlow) CommitRead(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	if err := f.refused(); err != nil {
		return err
	}
	later := kept(rec)
	if err := f.later(func(ctx context.Context) { _ = f.Workflow.CommitRead(ctx, key, op, later) }); err != nil {
		return err
	}
	return f.Workflow.CommitRead(ctx, key, op, rec)
}

func (f *badFlow) SaveLast(ctx context.Context, key string, epoch uint64, rec *store.Record, c store.Condition) (bool, error) {
	later := kept(rec)
	if err := f.later(func(ctx context.Context) { _, _ = f.Workflow.SaveLast(ctx, key, epoch, later, c) }); err != nil {
		return false, err
	}
	return f.Workflow.SaveLast(ctx, key, epoch, rec, c)
}
