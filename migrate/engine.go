// Package migrate moves sessions from an origin to a target while both are in use. It is docs/protocol.md in code: an
// Engine is a store over two stores, one in every gateway, and the commands that take a fleet of them from phase to
// phase and back.
//
// The engine's files follow the protocol: authority.go who may serve, operations.go what a client's operation does in
// each phase, strict.go the strict write, rampdown.go the write ahead and its propagator, steps.go how a phase is
// left for another, recover.go a target or a gateway that comes back, and jobs.go, load.go, diff.go, unlisted.go,
// gates.go what makes a step possible.
package migrate

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// Options of an Engine. Zero values mean the defaults.
type Options struct {
	// Workflow is the name of the workflow. Default "default".
	Workflow string
	// Gateway names this engine in leases and reports, with a random suffix: a process that drains and the one that
	// takes its place are two. Default: the host's name.
	Gateway string
	// Times are what `create` writes into the control record, and what holds before one is known. Default:
	// DefaultTimes(2 s).
	Times Times
	// OwnsKey reports whether a key can be a session of this site; nil: every key. Nothing else is ever moved, nor removed
	// from the target.
	OwnsKey func(key string) bool
	// Prefix is what the names of this site's sessions begin with in the target. Two workflows whose prefixes overlap
	// would remove each other's sessions, so one target takes only one of them.
	Prefix string
	// ShadowShare is the share of reads in dual-write and sync that are compared with the target, 0 to 1. Default
	// 0.05; negative: none.
	ShadowShare float64
	// Queue is the number of copies in dual-write that may wait. Default 10,000. One that does not fit is dropped and
	// counted; the diff finds it.
	Queue int
	// Workers is the number of goroutines of a backfill or reconcile pass. Default 4.
	Workers int
	// MaxLoad is the share of the time, in percent, that the walks of this engine may have a request open at the origin, one
	// at a time. 0: no bound, but for Workers.
	MaxLoad int
	// Lifetime is how long a session lives in the origin that nobody uses. It has to be known where the origin cannot be
	// listed: so long is to be waited in sync.
	Lifetime time.Duration
	// TargetHealth reports what the gates want to know of the target's set-up; nil: nothing is known.
	TargetHealth func(context.Context) (TargetHealth, error)
	// OriginCheck looks at the origin's set-up; nil: nothing is known.
	OriginCheck func(context.Context) (store.Findings, error)
	Logger      *slog.Logger
	// Hooks are called at points of interest, if set.
	Hooks Hooks
}

// Hooks let tests stop an operation at an arrow, and others observe. They may be called by many goroutines.
type Hooks struct {
	// Arrow is called before each message of an operation is sent: "begin", "write", "commit" ...
	Arrow func(ctx context.Context, arrow, key string)
	// Alarm is called when a person is needed.
	Alarm func(what string)
}

// Engine is the compound store. It implements store.Store: what a client does through it is linearizable per session
// in every phase and across every step.
type Engine struct {
	opt    Options
	origin store.Origin
	target store.Target
	flow   store.Workflow
	log    *slog.Logger
	recall recall
	lazy   bool // the origin keeps overdue records
	cond   bool // the origin compares and writes in one step

	stop context.CancelFunc
	life context.Context // ends with Close
	wg   sync.WaitGroup

	mu      sync.Mutex // guards what follows; never held across a store call
	closing bool
	auth    authorityState
	running map[uint64]int           // operations under way, by the epoch they began under
	queues  map[string]chan struct{} // per key: holds one token while a strict operation runs
	locks   map[string]*heldLock     // application locks taken through this engine
	changed chan struct{}            // closed and replaced when anything that a holder waits for may have changed

	renewNow chan struct{}
	markNow  chan struct{}
	copies   *copyQueue
	stats    counters
	jobs     jobRunner
	load     load
	longest  atomic.Int64 // seconds that a session was seen to live, at the most; counted where the origin cannot be listed
	stepping sync.Mutex   // one command at a time in this process
	waitsFor atomic.Pointer[string]
}

var _ store.Store = (*Engine)(nil)

// New returns an engine over the two stores, which it borrows, and starts its goroutines: Close ends them. It works at
// once, with whatever of the two stores can be reached.
func New(origin store.Origin, target store.Target, opt Options) (*Engine, error) {
	if opt.Workflow == "" {
		opt.Workflow = "default"
	}
	if opt.Gateway == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "gateway"
		}
		opt.Gateway = host
	}
	opt.Gateway += "-" + rand.Text()[:6]
	if opt.Times == (Times{}) {
		opt.Times = DefaultTimes(2 * time.Second)
	}
	if err := opt.Times.check(); err != nil {
		return nil, err
	}
	if opt.OwnsKey == nil {
		opt.OwnsKey = func(string) bool { return true }
	}
	if opt.ShadowShare == 0 {
		opt.ShadowShare = 0.05
	}
	if opt.Queue == 0 {
		opt.Queue = 10000
	}
	if opt.Workers == 0 {
		opt.Workers = 4
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.MaxLoad < 0 || opt.MaxLoad > 100 {
		return nil, fmt.Errorf("migrate: a load of %d percent", opt.MaxLoad)
	}
	if !origin.Capabilities().Seal {
		return nil, fmt.Errorf("migrate: the origin can hold neither identity nor seal: %w", errors.ErrUnsupported)
	}
	if !origin.Capabilities().Conditional || !target.Capabilities().Conditional {
		return nil, fmt.Errorf("migrate: both stores need conditional writes: %w", errors.ErrUnsupported)
	}
	e := &Engine{opt: opt, origin: origin, target: target, flow: target.Workflow(opt.Workflow),
		log:  opt.Logger.With("workflow", opt.Workflow),
		lazy: origin.Capabilities().LazyExpiry, cond: origin.Capabilities().Conditional,
		running: map[uint64]int{}, queues: map[string]chan struct{}{}, locks: map[string]*heldLock{},
		changed: make(chan struct{}), renewNow: make(chan struct{}, 1), markNow: make(chan struct{}, 1)}
	e.recall, _ = target.(recall)
	e.copies = newCopyQueue(opt.Queue)
	e.load.turn = make(chan struct{}, 1)
	e.auth.times = opt.Times
	e.life, e.stop = context.WithCancel(context.Background())
	e.wg.Go(e.markLoop)
	e.wg.Go(e.leaseLoop)
	e.wg.Go(e.copyLoop)
	e.wg.Go(e.sweepLoop)
	return e, nil
}

// recall is what a target that puts back what a new primary lacks has to know of its clients. Once the move is over it is a
// store like any other, and nobody else looks after what it lost.
type recall interface {
	Remembers() bool
	Sum(data []byte) uint64
	Base(ctx context.Context, sum uint64) context.Context
}

// Remembers reports whether the target puts back what a new primary lacks.
func (e *Engine) Remembers() bool { return e.recall != nil && e.recall.Remembers() }

// Sum stands for a value that was read, where the target Remembers.
func (e *Engine) Sum(data []byte) uint64 { return e.recall.Sum(data) }

// Base returns a context for the Save of a client that had read the value with that Sum.
func (e *Engine) Base(ctx context.Context, sum uint64) context.Context {
	return e.recall.Base(ctx, sum)
}

// Close ends the engine's goroutines, propagators and workers included, and drops its lease where the target can be
// reached. It does not close the stores.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	e.stop()
	e.wg.Wait()
	e.mu.Lock()
	// A lease on a target that may have forgotten what this gateway was told stays, for the others to see.
	leaves := e.auth.hasLease(time.Now(), e.target.Generation()) && !e.auth.forgot
	e.auth.leaseUntil = time.Time{} // before it is dropped: nobody waits for this gateway any more
	e.mu.Unlock()
	if leaves {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		// Best effort: a lease that stays is over by itself, and only makes the next step wait for that.
		_ = e.flow.Leave(ctx, e.opt.Gateway)
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for; it reports false, and runs nothing, once the engine is closing.
func (e *Engine) spawn(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.wg.Go(f)
	return true
}

// Capabilities implements store.Store.
func (e *Engine) Capabilities() store.Capabilities {
	o, n := e.origin.Capabilities(), e.target.Capabilities()
	return store.Capabilities{Scan: o.Scan && n.Scan, Conditional: o.Conditional && n.Conditional,
		LazyExpiry: o.LazyExpiry, Lock: o.Lock && n.Lock, Flags: o.Flags && n.Flags}
}

// Scan implements store.Store. It lists the store that answers reads.
func (e *Engine) Scan(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	err = e.serve(ctx, "", func(a authority) error {
		page, err = e.primary(a).Scan(ctx, cursor, limit)
		return err
	})
	return page, err
}

// primary is the store that answers reads under a.
func (e *Engine) primary(a authority) store.Store {
	if a.phase >= Live {
		return e.target
	}
	return e.origin
}

// wake tells everybody who waits that something may have changed. Callers hold mu.
func (e *Engine) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// arrow reports that the next message of an operation is about to be sent.
func (e *Engine) arrow(ctx context.Context, name, key string) {
	if f := e.opt.Hooks.Arrow; f != nil {
		f(ctx, name, key)
	}
}

func (e *Engine) alarm(what string, args ...any) {
	e.stats.alarms.Add(1)
	e.log.Error("alarm: "+what, args...)
	if f := e.opt.Hooks.Alarm; f != nil {
		f(what)
	}
}

// sleep waits for d, or less if ctx ends; it reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// op makes a target operation with a fresh nonce.
func (e *Engine) op(a authority) store.Op {
	return store.Op{Nonce: rand.Text(), Epoch: a.sendEpoch(), Lease: a.times.Marker}
}

// sendEpoch is the epoch that a's messages carry.
func (a authority) sendEpoch() uint64 {
	if !guard.On(guard.Fence) {
		return math.MaxInt64 >> 11 // above every fence, and exact in a script's double
	}
	return a.epoch
}

// report is what a gateway notes beside its lease.
type report struct {
	Adopted  uint64           `json:"adopted"`        // the newest epoch with nothing older under way here
	Running  int              `json:"running"`        // operations that hold back the next epoch
	LocksO   int              `json:"locks_o"`        // application locks held in the origin alone
	LocksN   int              `json:"locks_n"`        // application locks held in the target alone
	Lost     bool             `json:"lost,omitempty"` // the target has forgotten steps that it had answered to this gateway
	Instance string           `json:"instance"`       // the target's run id, as this gateway last saw it
	Identity string           `json:"identity"`       // the origin that this gateway sees
	Version  string           `json:"version,omitempty"`
	Counters map[string]int64 `json:"counters,omitempty"`
}

func (r report) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return b
}
