package migrate

import (
	"context"
	"errors"
	"time"

	"github.com/sessile/sessile/store"
)

// sweepLoop settles what died: intents whose operation never committed, aheads whose propagator is gone. It runs in
// every gateway; who comes second finds the marker alive or away.
func (e *Engine) sweepLoop() {
	for {
		e.mu.Lock()
		every := e.auth.times.Marker / 4
		e.forgetLocks(time.Now())
		e.mu.Unlock()
		if !sleep(e.life, every) {
			return
		}
		if _, err := e.sweep(e.life); err != nil && e.life.Err() == nil {
			e.log.Debug("sweep", "error", err)
		}
	}
}

// sweep settles every dead marker once, and returns how many it found.
func (e *Engine) sweep(ctx context.Context) (found int, err error) {
	for range 100 {
		a, err := e.current()
		if err != nil || !a.lease || a.phase < Sync || a.phase > RampDown {
			return found, err
		}
		ask, cancel := context.WithTimeout(ctx, a.times.Marker)
		u, err := e.flow.Unsettled(ask, 100)
		cancel()
		if err != nil || len(u.Keys) == 0 || u.Oldest <= 0 {
			return found, err
		}
		for _, key := range u.Keys {
			err := e.settleOne(ctx, key)
			if errors.Is(err, store.ErrBusy) {
				return found, nil // the first that lives: those behind it live, too
			}
			if err != nil {
				return found, err
			}
			found++
		}
	}
	return found, nil
}

// settleOne settles one session under an authority of its own.
func (e *Engine) settleOne(ctx context.Context, key string) error {
	a, err := e.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.times.Marker)
	defer cancel()
	if a, err = e.enter(ctx); err != nil {
		return err
	}
	start := time.Now()
	if !a.lease || a.phase < Sync || a.phase > RampDown {
		err = errGap
	} else {
		err = e.settle(ctx, a, key)
	}
	var linger time.Duration
	if errors.Is(err, store.ErrUnknown) {
		linger = a.times.Bound - time.Since(start)
	}
	e.leave(a, linger)
	return err
}
