package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// Load implements store.Store.
func (e *Engine) Load(ctx context.Context, key string) (store.Record, error) {
	return e.read(ctx, key, store.Store.Load)
}

type reader func(store.Store, context.Context, string) (store.Record, error)

func (e *Engine) read(ctx context.Context, key string, from reader) (rec store.Record, err error) {
	err = e.serve(ctx, key, func(a authority) error {
		rec, err = e.readUnder(ctx, a, key, from)
		if err != nil && store.Failed(err) && a.phase >= Live && !a.purged {
			return e.again(err) // a read can always be tried again, and the way back may open meanwhile
		}
		// The target may have become another one while it was asked, or this gateway may have slept through a step:
		// then the answer is worth nothing.
		if !e.look(a) {
			return errAgain
		}
		if err == nil && a.phase < Sync {
			e.lives(rec.Expires)
		}
		if err == nil && a.lease && a.phase == Sync && !a.reconciled && !e.listed() && !overdue(&rec) {
			e.bring(key)
		}
		if err == nil && a.lease && (a.phase == DualWrite || a.phase == Sync) && rand.Float64() < e.opt.ShadowShare {
			e.shadow(key, rec)
		}
		return err
	})
	return rec, err
}

func (e *Engine) readUnder(ctx context.Context, a authority, key string, from reader) (store.Record, error) {
	if a.phase == Complete {
		return from(e.target, ctx, key)
	}
	if a.phase < Live {
		return from(e.asKnown(a), ctx, key)
	}
	e.arrow(ctx, "read", key)
	rec, m, err := e.flow.LoadMarked(ctx, key)
	if err != nil {
		return store.Record{}, err
	}
	if m.Kind == store.Intent {
		e.stats.readsOfOrigin.Add(1)
		e.arrow(ctx, "read origin", key)
		octx, cancel := context.WithTimeout(ctx, a.times.Bound)
		defer cancel()
		o, err := from(e.asKnown(a), octx, key)
		if err == nil && overdue(&o) && rec.Version() != o.Version() {
			return store.Record{}, store.ErrAbsent // as it was before there was an intent
		}
		return o, err
	}
	if rec == nil {
		return store.Record{}, store.ErrAbsent
	}
	return *rec, nil
}

// asKnown is the origin as reads see it that decide what a session is: one that has lost its memory refuses them, where it
// can tell (store.Origin.Under), and does not answer that there is none.
func (e *Engine) asKnown(a authority) store.Store { return e.origin.Under(a.mark) }

// overdue reports whether rec is over, and only there still because nobody has collected it.
func overdue(rec *store.Record) bool {
	return rec != nil && !rec.Expires.IsZero() && !rec.Expires.After(time.Now())
}

// Inspect implements store.Store.
func (e *Engine) Inspect(ctx context.Context, key string) (rec store.Record, err error) {
	for {
		rec, err = e.read(ctx, key, store.Store.Inspect)
		if err != nil || !rec.Expires.IsZero() {
			return rec, err
		}
		// Value and marker came in one command, which does not tell the deadline. It is asked for behind them, and
		// counts if it is that of the same value.
		n, err := e.target.Inspect(ctx, key)
		switch {
		case err == nil && n.Version() == rec.Version():
			return n, nil
		case err != nil && !errors.Is(err, store.ErrAbsent):
			return store.Record{}, err
		case store.Gone(ctx) != nil:
			return store.Record{}, store.Gone(ctx)
		}
	}
}

// again makes serve run an operation once more that certainly did not happen, unless it was refused for good.
func (e *Engine) again(err error) error {
	if errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrSealed) || errors.Is(err, store.ErrInvalid) {
		return err
	}
	return fmt.Errorf("%w: %w", errAgain, err)
}

// Save implements store.Store.
func (e *Engine) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	_, err := e.write(ctx, key, &rec, cond)
	return err
}

// Delete implements store.Store.
func (e *Engine) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return e.write(ctx, key, nil, cond)
}

// write makes rec (nil: absence) the session's value if cond holds. It reports whether there was one before.
func (e *Engine) write(ctx context.Context, key string, rec *store.Record, cond store.Condition) (existed bool, err error) {
	if rec != nil && !rec.Expires.After(time.Now()) {
		return false, fmt.Errorf("migrate: %w: the deadline is not in the future", store.ErrInvalid)
	}
	var under authority
	err = e.serve(ctx, key, func(a authority) error {
		switch under = a; {
		case a.phase.strict() && !guard.On(guard.Intent):
			existed, err = e.unguardedWrite(ctx, a, key, rec, cond)
		case a.phase.strict():
			existed, err = e.strictWrite(ctx, a, key, rec, cond)
		case a.phase == RampDown:
			existed, err = e.writeAhead(ctx, a, key, rec, cond)
		case a.phase == Complete:
			existed, err = e.lastWrite(ctx, a, key, rec, cond)
		default:
			existed, err = e.originWrite(ctx, a, key, rec, cond)
		}
		return err
	})
	if errors.Is(err, store.ErrUnknown) && e.resolve(ctx, under, key, rec, err) {
		return existed || !errors.Is(err, errGap), nil // as far as anybody knows
	}
	return existed, err
}

// resolve reports whether the session is what a write was to make it that was begun under a and ended with lost, which is
// unknown. It asks under an authority of its own, so what it finds counts like any answer. But what it finds may be somebody
// else's: so nothing of that write must be under way that could still do the same later. That is so where it was done, and
// only the authority had a gap; and where it was sent to a target that has been replaced since.
func (e *Engine) resolve(ctx context.Context, a authority, key string, rec *store.Record, lost error) bool {
	if a.phase < RampDown && !errors.Is(lost, errGap) {
		return false // it may be under way in the origin
	}
	held, err := e.Load(ctx, key)
	if now, nerr := e.current(); !errors.Is(lost, errGap) && (nerr != nil || now.instance == a.instance) {
		return false
	}
	done := rec == nil && errors.Is(err, store.ErrAbsent) || rec != nil && err == nil && bytes.Equal(held.Data, rec.Data)
	if done {
		e.stats.resolved.Add(1)
	}
	return done
}

// originWrite is a write of off, dual-write and retreat: the origin has it or nobody. It carries the mark that it was
// begun under, so that one that is late does not land in a later phase.
func (e *Engine) originWrite(ctx context.Context, a authority, key string, rec *store.Record, cond store.Condition) (existed bool, err error) {
	octx, cancel := context.WithTimeout(ctx, a.times.Bound)
	defer cancel()
	e.arrow(ctx, "write", key)
	o := e.originUnder(a)
	if rec == nil {
		existed, err = o.Delete(octx, key, cond)
	} else {
		e.lives(rec.Expires)
		existed, err = true, o.Save(octx, key, *rec, cond)
	}
	if err != nil {
		return existed, err
	}
	if a.phase == DualWrite {
		e.copySoon(key)
	}
	if !e.look(a) {
		return existed, errGap
	}
	return existed, nil
}

// originUnder is the origin as writes outside the strict phases see it.
func (e *Engine) originUnder(a authority) store.Store {
	if !guard.On(guard.Seal) {
		return e.origin
	}
	return e.origin.Under(a.mark)
}

// lastWrite is a write of phase complete. While a gateway of ramp-down may exist it also removes the marker.
func (e *Engine) lastWrite(ctx context.Context, a authority, key string, rec *store.Record, cond store.Condition) (existed bool, err error) {
	switch {
	case !a.purged:
		existed, err = e.flow.SaveLast(ctx, key, a.sendEpoch(), rec, cond)
	case rec == nil:
		existed, err = e.target.Delete(ctx, key, cond)
	default:
		existed, err = true, e.target.Save(ctx, key, *rec, cond)
	}
	if err == nil && !e.look(a) {
		return existed, errGap
	}
	return existed, err
}

// Touch implements store.Store. A touch carries no data: where one store says "not there" and the other has it, the
// session is written strictly, with the value as it is then.
func (e *Engine) Touch(ctx context.Context, key string, expires time.Time) error {
	if !expires.After(time.Now()) {
		return fmt.Errorf("migrate: %w: the deadline is not in the future", store.ErrInvalid)
	}
	return e.serve(ctx, key, func(a authority) error {
		err := e.touch(ctx, a, key, expires)
		if errors.Is(err, errGap) {
			return errAgain
		}
		return err
	})
}

func (e *Engine) touch(ctx context.Context, a authority, key string, expires time.Time) error {
	switch {
	case a.phase.strict():
		return e.touchBoth(ctx, a, key, expires)
	case a.phase == RampDown:
		return e.touchAhead(ctx, a, key, expires)
	case a.phase == Complete:
		return e.target.Touch(ctx, key, expires)
	}
	octx, cancel := context.WithTimeout(ctx, a.times.Bound)
	defer cancel()
	e.lives(expires)
	err := e.originUnder(a).Touch(octx, key, expires)
	if err == nil {
		if a.phase == DualWrite {
			e.copySoon(key)
		}
		if !e.look(a) {
			return errGap
		}
	}
	return err
}

// touchBoth touches in sync and live.
func (e *Engine) touchBoth(ctx context.Context, a authority, key string, expires time.Time) error {
	e.arrow(ctx, "touch", key)
	present, m, err := e.flow.TouchMarked(ctx, key, a.sendEpoch(), expires)
	if err != nil {
		return e.again(err) // a deadline that was moved and not answered for does no harm
	}
	if m.Kind == store.Intent || m.Kind == store.AheadOf {
		// Whoever made it may have read the deadline before it was moved, and writes it once more; and under an intent the
		// origin may still have what is overdue. So that is brought to its end, or waited for.
		if err := e.settle(ctx, a, key); err != nil && !errors.Is(err, store.ErrBusy) {
			return e.again(err)
		}
		return errAgain
	}
	if a.phase == Live && !present {
		// The target answers: what it does not have is no session any more, and an overdue one in the origin is none.
		if !e.look(a) {
			return errAgain
		}
		return store.ErrAbsent
	}
	octx, cancel := context.WithTimeout(ctx, a.times.Bound)
	defer cancel()
	e.arrow(ctx, "touch origin", key)
	err = e.originUnder(a).Touch(octx, key, expires)
	if err != nil && !errors.Is(err, store.ErrAbsent) {
		return err
	}
	if inOrigin := err == nil; inOrigin != present && guard.On(guard.Touch) {
		e.stats.touchEscalations.Add(1)
		return e.escalate(ctx, a, key, expires)
	}
	if lookErr := error(errGap); !e.look(a) {
		return lookErr
	}
	return err
}

// Lock implements store.Store. The lock lies where the phase says: in the origin as its native lock, in sync and live
// in both, the origin's first, from ramp-down on in the target under the key and with the token that the application's
// own handler would use. So gateway clients and direct clients exclude each other on either side of the move.
func (e *Engine) Lock(ctx context.Context, key, token string, life time.Duration) error {
	return e.serve(ctx, key, func(a authority) error {
		inOrigin, inTarget := a.phase < RampDown, a.phase >= Sync
		if inOrigin {
			if err := e.origin.Lock(ctx, key, token, life); err != nil {
				e.releaseHalves(key, token, store.OutcomeOf(err) == store.OutcomeUnknown, false) // only its answer may be lost
				return err
			}
		}
		if inTarget {
			if err := e.target.Lock(ctx, key, token, life); err != nil {
				e.releaseHalves(key, token, inOrigin, store.Failed(err)) // the target may have it, and only its answer be lost
				if store.Failed(err) {
					return e.again(err)
				}
				return err
			}
		}
		if !e.look(a) {
			// Another authority may think of the lock otherwise: give it back, and take it anew.
			e.releaseHalves(key, token, inOrigin, inTarget)
			return errAgain
		}
		e.mu.Lock()
		e.locks[key] = &heldLock{token: token, origin: inOrigin, target: inTarget, until: time.Now().Add(life)}
		e.mu.Unlock()
		return nil
	})
}

// heldLock is an application lock that was taken through this engine.
type heldLock struct {
	token          string
	origin, target bool // which halves were taken
	until          time.Time
}

func (e *Engine) releaseHalves(key, token string, origin, target bool) {
	ctx, cancel := context.WithTimeout(e.life, time.Second)
	defer cancel()
	// What cannot be released now ends with its life.
	if target {
		_, _ = e.target.Unlock(ctx, key, token)
	}
	if origin {
		_, _ = e.origin.Unlock(ctx, key, token)
	}
}

// Unlock implements store.Store. A lock is released where it was taken, whatever the phase is now; one that another
// gateway or a direct client took is released where its token lies: in both stores, if both take locks in this phase.
func (e *Engine) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	e.mu.Lock()
	l := e.locks[key]
	if l != nil && l.token == token {
		delete(e.locks, key)
	} else {
		l = nil
	}
	e.mu.Unlock()
	if l == nil {
		if err = e.serve(ctx, key, func(a authority) error {
			l = &heldLock{origin: a.phase < RampDown, target: a.phase >= Sync}
			return nil
		}); err != nil {
			return false, err
		}
	}
	if l.target {
		held, err = e.target.Unlock(ctx, key, token)
	}
	if l.origin {
		inOrigin, oerr := e.origin.Unlock(ctx, key, token)
		held = held || inOrigin
		if err == nil {
			err = oerr
		}
	}
	if held {
		err = nil // the half that could not be asked ends with its life
	}
	return held, err
}

// LockHolder implements store.Store.
func (e *Engine) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	err = e.serve(ctx, key, func(a authority) error {
		s := store.Store(e.origin)
		if a.phase >= Sync {
			s = e.target
		}
		token, left, err = s.LockHolder(ctx, key)
		if err == nil && token == "" && a.phase.strict() {
			token, left, err = e.origin.LockHolder(ctx, key) // taken before sync
		}
		return err
	})
	return token, left, err
}

// forgetLocks drops what has ended by itself. Callers hold mu.
func (e *Engine) forgetLocks(now time.Time) {
	for key, l := range e.locks {
		if !l.until.After(now) {
			delete(e.locks, key)
		}
	}
}
