package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// writeAhead is the write of ramp-down: the target has it, marked ahead, and the origin follows.
func (e *Engine) writeAhead(ctx context.Context, a authority, key string, x *store.Record, cond store.Condition) (existed bool, err error) {
	return e.ahead(ctx, a, key, func(op store.Op) (store.Ahead, error) {
		return e.flow.WriteAhead(ctx, key, op, x, cond)
	})
}

// ahead runs write, which marks the session ahead, and propagates what it marked if the marker is its own. While an
// intent lives, left from live, it waits.
func (e *Engine) ahead(ctx context.Context, a authority, key string, write func(store.Op) (store.Ahead, error)) (existed bool, err error) {
	op := e.op(a)
	for try := 0; ; try++ {
		e.arrow(ctx, "write ahead", key)
		sent := time.Now()
		ahead, err := write(op)
		switch {
		case err == nil:
			if ahead.Mine {
				e.propagateSoon(a, key, op, ahead, sent)
			}
			if elapsed(sent, time.Now()) >= a.times.Marker || !e.look(a) {
				return ahead.Existed, errGap
			}
			return ahead.Existed, nil
		case errors.Is(err, store.ErrBusy):
			var busy *store.BusyError
			errors.As(err, &busy)
			e.stats.waits.Add(1)
			if busy.Left <= 0 {
				// A dead intent, left from live: the origin decides until somebody has looked there.
				if err := e.settle(ctx, a, key); err != nil && !errors.Is(err, store.ErrBusy) {
					return false, e.again(err)
				}
			}
			if !sleep(ctx, min(busy.Left+time.Millisecond, time.Millisecond<<min(try, 5))) {
				return false, fmt.Errorf("%w: %v", store.ErrUnavailable, err) // not a conflict of the caller's
			}
		case store.OutcomeOf(err) == store.OutcomeUnavailable:
			return false, e.again(err)
		default:
			return false, err
		}
	}
}

// owe has the origin brought to what the target holds.
func (e *Engine) owe(ctx context.Context, a authority, key string) error {
	_, err := e.ahead(ctx, a, key, func(op store.Op) (store.Ahead, error) { return e.flow.MarkAhead(ctx, key, op) })
	if errors.Is(err, store.ErrAbsent) {
		_, err = e.writeAhead(ctx, a, key, nil, store.IfAbsent)
	}
	if errors.Is(err, store.ErrConflict) {
		return nil // somebody has written it meanwhile, ahead
	}
	return err
}

// touchAhead is the touch of ramp-down: the target answers, the origin follows. Where the origin does not have the
// session, or cannot be asked, the value is marked ahead as it stands.
func (e *Engine) touchAhead(ctx context.Context, a authority, key string, expires time.Time) error {
	e.arrow(ctx, "touch", key)
	present, m, err := e.flow.TouchMarked(ctx, key, a.sendEpoch(), expires)
	if err != nil {
		return e.again(err)
	}
	if !e.look(a) {
		return errAgain
	}
	if !present && m.Kind != store.Intent {
		return store.ErrAbsent
	}
	switch m.Kind {
	case store.AheadOf:
		// Whoever propagates it may have read the deadline before it was moved. One version further he looks again.
		_, err := e.ahead(ctx, a, key, func(op store.Op) (store.Ahead, error) { return e.flow.MarkAhead(ctx, key, op) })
		return err
	case store.Intent:
		// Left from live: the origin decides, so settle it first and touch what there is then.
		if err := e.settle(ctx, a, key); err != nil && !errors.Is(err, store.ErrBusy) {
			return e.again(err)
		}
		return errAgain
	}
	e.follow(a, func(ctx context.Context) {
		octx, cancel := context.WithTimeout(ctx, a.times.Bound)
		defer cancel()
		if e.origin.Touch(octx, key, expires) == nil {
			return
		}
		_, _ = e.ahead(ctx, a, key, func(op store.Op) (store.Ahead, error) { return e.flow.MarkAhead(ctx, key, op) })
	})
	return nil
}

// follow runs what has to follow an answered operation, counted as under way for the barrier.
func (e *Engine) follow(a authority, f func(ctx context.Context)) {
	e.mu.Lock()
	e.running[a.epoch]++
	e.mu.Unlock()
	run := func() {
		defer e.leave(a, 0)
		f(e.life)
	}
	if !e.spawn(run) {
		e.leave(a, 0) // the marker stays, and another gateway's sweep takes it over
	}
}

func (e *Engine) propagateSoon(a authority, key string, op store.Op, ahead store.Ahead, sent time.Time) {
	e.follow(a, func(ctx context.Context) {
		if err := e.propagate(ctx, a, key, op, ahead, sent); err != nil && ctx.Err() == nil {
			e.stats.propagationsFailed.Add(1)
			e.log.Debug("the origin could not follow yet; the sweep will try again", "error", err)
		}
	})
}

// propagate makes the origin hold what the target holds, as the one propagator of key: the marker is op's until
// sent + lease. It writes on condition that the origin still holds what was read there after the marker was taken, so
// that a propagator that stood still cannot put an older value over a newer one.
func (e *Engine) propagate(ctx context.Context, a authority, key string, op store.Op, ahead store.Ahead, sent time.Time) error {
	for try := 0; ; try++ {
		if try > 100 {
			return fmt.Errorf("%w: the origin changes under every write", store.ErrUnavailable)
		}
		octx, cancel := store.NotAfter(ctx, sent.Add(a.times.Bound))
		err := e.follows(octx, key, ahead.Record)
		cancel()
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		e.arrow(ctx, "propagated", key)
		asked := time.Now()
		next, done, err := e.flow.Propagated(ctx, key, op, ahead.Version)
		switch {
		case errors.Is(err, store.ErrLost):
			if elapsed(sent, time.Now()) >= a.times.Marker {
				e.settleLate(key)
			}
			return nil // somebody took it over: theirs now
		case err != nil:
			return err
		case done:
			e.stats.propagated.Add(1)
			return nil
		}
		ahead, sent = next, asked
	}
}

// follows makes rec (nil: absence) the origin's value. What the origin can never hold it does not wait for.
func (e *Engine) follows(ctx context.Context, key string, rec *store.Record) error {
	err := e.followsOnce(ctx, key, rec)
	if errors.Is(err, store.ErrInvalid) {
		e.stats.unfit.Add(1)
		e.log.Warn("a session that the origin cannot hold stays in the target alone", "session", e.hash(key), "error", err)
		return nil
	}
	return err
}

func (e *Engine) followsOnce(ctx context.Context, key string, rec *store.Record) error {
	e.arrow(ctx, "read origin", key)
	held, err := e.origin.Inspect(ctx, key)
	var v0 store.Version
	switch {
	case err == nil:
		v0 = held.Version()
	case !errors.Is(err, store.ErrAbsent):
		return err
	}
	e.arrow(ctx, "write", key)
	if rec == nil || !rec.Expires.After(time.Now()) { // over meanwhile: what the origin holds is older still
		if v0 == store.Absent {
			return nil
		}
		_, err := e.origin.Delete(ctx, key, store.IfVersion(v0))
		return err
	}
	if v0 == rec.Version() {
		err := e.origin.Touch(ctx, key, rec.Expires)
		if errors.Is(err, store.ErrAbsent) {
			return store.ErrConflict
		}
		return err
	}
	return e.origin.Save(ctx, key, *rec, store.IfVersion(v0))
}
