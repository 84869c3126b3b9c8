package migrate

import (
	"context"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// load bounds what the walks of this engine (backfill, reconcile, diff, the watch for foreign writers, the census of plan)
// ask of the origin: with a bound of n percent one of them at a time has a request open there, for n percent of the time at
// the most. What counts is how long the origin takes to answer, so one that has much to do is asked less. Clients' own
// operations are neither counted nor held back.
type load struct {
	turn chan struct{} // holds one token while a batch runs under a bound

	mu    sync.Mutex // guards what follows
	began time.Time  // when the last turn began
	open  time.Duration
}

// maxLoad is the bound in percent, 0 for none: what the control record says, or else this engine's option. It may change
// while a walk runs.
func (e *Engine) maxLoad() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.auth.control; c != nil && c.MaxLoad != 0 {
		return max(0, c.MaxLoad)
	}
	return e.opt.MaxLoad
}

// rest is how long the origin is still to be left in peace.
func (e *Engine) rest() time.Duration {
	share := e.maxLoad()
	if share == 0 {
		return 0
	}
	e.load.mu.Lock()
	defer e.load.mu.Unlock()
	return e.load.open*100/time.Duration(share) - time.Since(e.load.began)
}

// inTurn runs f, a batch of a walk, when the bound allows. It waits before the batch and never in it: under an intent, or
// between a barrier and its batch, somebody may be waiting for us.
func (e *Engine) inTurn(ctx context.Context, f func() error) error {
	if e.maxLoad() == 0 {
		return f()
	}
	select {
	case e.load.turn <- struct{}{}:
		defer func() { <-e.load.turn }()
	case <-ctx.Done():
		return store.Gone(ctx)
	}
	for rest := e.rest(); rest > 0; rest = e.rest() {
		if !sleep(ctx, min(rest, 100*time.Millisecond)) {
			return store.Gone(ctx)
		}
	}
	e.load.mu.Lock()
	e.load.began, e.load.open = time.Now(), 0
	e.load.mu.Unlock()
	return f()
}

// opened counts a request that a walk has had open at the origin since start.
func (e *Engine) opened(start time.Time) {
	bound := e.maxLoad() > 0
	e.load.mu.Lock()
	defer e.load.mu.Unlock()
	if e.load.open += time.Since(start); !bound {
		e.load.open = 0 // not to be made up for when there is one
	}
}

// scan lists a page of the origin or the target.
func (e *Engine) scan(ctx context.Context, s store.Store, cursor string, limit int) (page store.Page, err error) {
	if s != store.Store(e.origin) {
		return s.Scan(ctx, cursor, limit)
	}
	err = e.inTurn(ctx, func() error {
		defer e.opened(time.Now())
		page, err = s.Scan(ctx, cursor, limit)
		return err
	})
	return page, err
}
