package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// A strict operation works on one session under its own intent.
type strict struct {
	e    *Engine
	a    authority
	key  string
	op   store.Op
	sent time.Time     // before the begin that counts was sent: the bound in the origin and the lease run from here
	took bool          // the intent took over a dead one: the origin may hold what the dead operation wrote
	n    store.Version // what the target holds
	o    *store.Record // what the origin holds, if it was read
	read bool          // o is known
	free func()
}

// begin makes the intent on key. While another operation's marker lives it waits: woken, where that operation is this
// engine's, and otherwise by asking again, at the latest when that marker is dead.
func (e *Engine) begin(ctx context.Context, a authority, key string) (*strict, error) {
	free, err := e.takeTurn(ctx, key)
	if err != nil {
		return nil, err
	}
	s := &strict{e: e, a: a, key: key, free: free}
	if err := s.begin(ctx); err != nil {
		free()
		return nil, err
	}
	return s, nil
}

func (s *strict) begin(ctx context.Context) error {
	e, a, key := s.e, s.a, s.key
	s.op = e.op(a)
	for try := 0; ; try++ {
		e.arrow(ctx, "begin", key)
		s.sent = time.Now()
		b, err := e.flow.Begin(ctx, key, s.op)
		switch {
		case err == nil && b.Took == store.AheadOf:
			// Left by ramp-down, and its propagator is dead: the origin has to have it before anything else is written.
			// Unless the target has become another one, or others have retreated meanwhile: then it is no guide any more.
			if !e.look(a) {
				return errAgain
			}
			if err := e.propagate(ctx, a, key, s.op, b.Ahead, s.sent); err != nil {
				return e.again(err)
			}
			s.op = e.op(a)
		case err == nil:
			s.took, s.n = b.Took == store.Intent, b.Holds
			return nil
		case errors.Is(err, store.ErrBusy):
			var busy *store.BusyError
			errors.As(err, &busy)
			e.stats.waits.Add(1)
			if !sleep(ctx, min(busy.Left+time.Millisecond, time.Millisecond<<min(try, 5))) {
				return fmt.Errorf("%w: %v", store.ErrUnavailable, err) // not a conflict of the caller's
			}
		default:
			// Whether or not this begin was executed, nothing has happened to the session: the intent, if it is there,
			// is ours alone and is settled when it is dead.
			if errors.Is(err, store.ErrUnknown) {
				e.withdrawSoon(key, s.op)
			}
			return e.again(err)
		}
	}
}

// takeTurn queues this engine's strict operations on one session, so that they wake each other instead of polling the
// target.
func (e *Engine) takeTurn(ctx context.Context, key string) (free func(), err error) {
	for {
		e.mu.Lock()
		q, taken := e.queues[key]
		if !taken {
			mine := make(chan struct{})
			e.queues[key] = mine
			e.mu.Unlock()
			return func() {
				e.mu.Lock()
				delete(e.queues, key)
				e.mu.Unlock()
				close(mine)
			}, nil
		}
		e.mu.Unlock()
		select {
		case <-q:
		case <-ctx.Done():
			return nil, store.Gone(ctx)
		}
	}
}

// bounded is the context of the operation on the origin, which ends, wherever it is, before the marker's lease does.
func (s *strict) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return store.NotAfter(ctx, s.sent.Add(s.a.times.Bound))
}

// readOrigin reads what the origin holds under the intent.
func (s *strict) readOrigin(ctx context.Context) error {
	s.e.arrow(ctx, "read origin", s.key)
	octx, cancel := s.bounded(ctx)
	defer cancel()
	rec, err := s.e.asKnown(s.a).Inspect(octx, s.key)
	switch {
	case err == nil:
		s.o, s.read = &rec, true
	case errors.Is(err, store.ErrAbsent):
		s.o, s.read = nil, true
	default:
		return err
	}
	return nil
}

// writeOrigin makes x the origin's value, on condition that it still holds v0: the moment the write happens.
func (s *strict) writeOrigin(ctx context.Context, x *store.Record, v0 store.Version) error {
	s.e.arrow(ctx, "write", s.key)
	octx, cancel := s.bounded(ctx)
	defer cancel()
	cond := store.IfVersion(v0)
	if x == nil {
		_, err := s.e.origin.Delete(octx, s.key, cond)
		return err
	}
	return s.e.origin.Save(octx, s.key, *x, cond)
}

// putBack makes x, which the target holds, the value of an origin that has none. Nobody asked for this write, so it must
// not land after a retreat: it carries the seal.
func (s *strict) putBack(ctx context.Context, x *store.Record) error {
	s.e.arrow(ctx, "write", s.key)
	octx, cancel := s.bounded(ctx)
	defer cancel()
	return s.e.originUnder(s.a).Save(octx, s.key, *x, store.IfAbsent)
}

// commit makes x the target's value and removes the intent. A commit that fails does not undo the write: it happened
// in the origin, the intent sends readers there, and the sweep settles it.
func (s *strict) commit(ctx context.Context, x *store.Record) error {
	s.e.arrow(ctx, "commit", s.key)
	// The client's patience may be over, but the session is better settled now than by the sweep.
	cctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), s.sent.Add(s.a.times.Marker))
	defer cancel()
	var err error
	if guard.On(guard.Commit) {
		err = s.e.flow.Commit(cctx, s.key, s.op, x)
	} else {
		_, err = s.e.flow.SaveLast(cctx, s.key, s.a.sendEpoch(), x, store.Always)
	}
	if err != nil {
		s.e.stats.commitsFailed.Add(1)
	}
	if errors.Is(err, store.ErrLost) {
		// By the target's clock the lease was over, and somebody took the intent over. He may have looked at the origin
		// before this write was there.
		if err = s.begin(cctx); err == nil {
			err = s.readOrigin(cctx)
		}
		if err == nil {
			err = s.commitRead(cctx)
		}
		if err != nil {
			return errLate
		}
	}
	return err
}

// errLate is what commit answers where the target may hold something older than the origin, and no marker says so.
var errLate = fmt.Errorf("%w: the intent was lost", store.ErrUnknown)

// commitRead makes what was read in the origin the target's value.
func (s *strict) commitRead(ctx context.Context) error {
	s.e.arrow(ctx, "commit", s.key)
	cctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), s.sent.Add(s.a.times.Marker))
	defer cancel()
	return s.e.flow.CommitRead(cctx, s.key, s.op, s.o)
}

// answer is the look before a write is answered.
func (s *strict) answer(committed error) error {
	switch {
	case elapsed(s.sent, time.Now()) >= s.a.times.Marker:
		s.e.settleLate(s.key)
		return errGap
	case !s.e.look(s.a):
		return errGap
	case errors.Is(committed, errLate):
		s.e.settleLate(s.key)
		return errLate
	}
	return nil
}

// settleLate looks at a session once more that this gateway may have written in the origin after its marker was dead,
// because it stood still: whoever settled it since did not see that.
func (e *Engine) settleLate(key string) {
	e.spawn(func() {
		ctx, cancel := context.WithTimeout(e.life, time.Minute)
		defer cancel()
		if err := e.serve(ctx, key, func(a authority) error {
			switch {
			case a.phase.strict():
				return e.reconcileKey(ctx, a, key, false) // what it took away may be what is missing
			case a.phase == RampDown:
				return e.owe(ctx, a, key)
			case a.phase == DualWrite:
				e.copySoon(key)
			}
			return nil
		}); err != nil {
			e.log.Warn("a session that was written late could not be settled", "session", e.hash(key), "error", err)
		}
	})
}

// giveUp ends an operation that certainly changed nothing. The intent is removed where begin found no marker; where it
// took over a dead one, or the stores were seen to differ, it stays and sends readers to the origin until a sweep has
// looked what the origin holds.
func (s *strict) giveUp(ctx context.Context, differ bool) {
	if s.took || differ {
		return
	}
	s.e.arrow(ctx, "withdraw", s.key)
	cctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), s.sent.Add(s.a.times.Marker))
	defer cancel()
	_ = s.e.flow.Withdraw(cctx, s.key, s.op) // otherwise the sweep settles it
}

// seen is the version by which the client's condition is judged where v0 is what a write replaces. From live on the target
// answers: what is overdue in the origin, and the target does not have, is no session, and what the origin alone lacks went
// by its collector.
func (s *strict) seen(v0 store.Version) store.Version {
	switch {
	case s.a.phase != Live || !s.read:
		return v0
	case overdue(s.o) && s.n != v0:
		return store.Absent
	case s.o == nil && !s.took && s.a.reconciled:
		return s.n
	}
	return v0
}

// differ reports whether the stores were seen to hold different sessions.
func (s *strict) differ() bool { return s.read && s.seen(s.o.Version()) != s.n }

// strictWrite is the write of sync and live: begin in the target, write in the origin, commit in the target.
func (e *Engine) strictWrite(ctx context.Context, a authority, key string, x *store.Record, cond store.Condition) (existed bool, err error) {
	s, err := e.begin(ctx, a, key)
	if err != nil {
		return false, err
	}
	defer s.free()
	v0 := s.n
	if !a.reconciled || s.took {
		// What the target holds is no guide to what the origin holds.
		if err := s.readOrigin(ctx); err != nil {
			s.giveUp(ctx, false)
			return false, notDone(err)
		}
		v0 = s.o.Version()
	}
	for try := 0; ; try++ {
		if !cond.Holds(v0) && !s.read {
			// Beside gateways of dual-write, on the way down, the target may be behind: ask the origin before saying no.
			if err := s.readOrigin(ctx); err != nil {
				s.giveUp(ctx, false)
				return false, notDone(err)
			}
			v0 = s.o.Version()
		}
		if !cond.Holds(s.seen(v0)) {
			s.giveUp(ctx, try > 0 && s.differ())
			return s.seen(v0) != store.Absent, store.ErrConflict
		}
		if !e.look(a) {
			s.giveUp(ctx, try > 0 && s.differ())
			return false, errAgain
		}
		err := s.writeOrigin(ctx, x, v0)
		switch {
		case err == nil:
			return s.seen(v0) != store.Absent, s.answer(s.commit(ctx, x)) // a commit that failed is acknowledged all the same
		case errors.Is(err, store.ErrConflict) && try < 4:
			// Somebody else wrote. Where one side is absent it may only have been expiry or a collector.
			was := v0
			if err := s.readOrigin(ctx); err != nil {
				return false, notDone(err)
			}
			if v0 = s.o.Version(); v0 == was {
				continue
			}
			if s.o != nil && was != store.Absent {
				e.stats.foreignWrites.Add(1)
				e.log.Warn("somebody else wrote to the origin: is every application server behind the gateway?", "session", e.hash(key))
			}
		case store.OutcomeOf(err) == store.OutcomeUnknown:
			if elapsed(s.sent, time.Now()) >= a.times.Marker {
				e.settleLate(key)
			}
			return false, err // the intent stays
		default:
			s.giveUp(ctx, try > 0 && s.differ())
			return false, notDone(err)
		}
	}
}

// notDone makes sure that a failure before the write is not taken for one of the write.
func notDone(err error) error {
	if store.OutcomeOf(err) == store.OutcomeUnknown {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, errors.New(err.Error()))
	}
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%w: the origin changes under every write", store.ErrUnavailable)
	}
	return err
}

// escalate is a touch that met the session in one store only: a strict write of the value as it is under the intent.
// The origin decides what that is, except in live where begin found no marker: there the target answers reads, and what
// the origin lacks went by its collector, which never propagates.
func (e *Engine) escalate(ctx context.Context, a authority, key string, expires time.Time) error {
	s, err := e.begin(ctx, a, key)
	if err != nil {
		return err
	}
	defer s.free()
	if err := s.readOrigin(ctx); err != nil {
		s.giveUp(ctx, false)
		return notDone(err)
	}
	x := s.o
	if a.phase == Live && !s.took && a.reconciled {
		n, _, err := e.flow.LoadMarked(ctx, key)
		if err != nil {
			s.giveUp(ctx, false)
			return e.again(err)
		}
		if n == nil {
			s.giveUp(ctx, false)
			if !e.look(a) {
				return errAgain
			}
			return store.ErrAbsent
		}
		x = n
	}
	if !e.look(a) {
		s.giveUp(ctx, false)
		return errAgain
	}
	if x != nil {
		x.Expires = expires
		if s.o == nil {
			if err := s.putBack(ctx, x); err != nil {
				if store.OutcomeOf(err) != store.OutcomeUnknown {
					s.giveUp(ctx, errors.Is(err, store.ErrConflict))
				}
				return err
			}
		}
	}
	if err := s.answer(s.commit(ctx, x)); err != nil {
		return err
	}
	if x == nil {
		return store.ErrAbsent
	}
	return nil
}

// settle takes over what is dead on key, if anything is, and brings it to an end. It answers store.ErrBusy where the
// marker lives, and nil where there is none.
func (e *Engine) settle(ctx context.Context, a authority, key string) error {
	free, err := e.takeTurn(ctx, key)
	if err != nil {
		return err
	}
	defer free()
	s := &strict{e: e, a: a, key: key, op: e.op(a)}
	e.arrow(ctx, "settle", key)
	s.sent = time.Now()
	b, err := e.flow.Settle(ctx, key, s.op)
	switch {
	case errors.Is(err, store.ErrAbsent):
		return nil
	case err != nil:
		return err
	case !e.look(a):
		return errAgain
	case b.Took == store.AheadOf:
		return e.propagate(ctx, a, key, s.op, b.Ahead, s.sent)
	}
	s.took = true
	if err := s.readOrigin(ctx); err != nil {
		return err
	}
	e.stats.settled.Add(1)
	return s.commitRead(ctx)
}

// withdrawSoon removes an intent that may or may not have been made, so that nobody waits for it to die.
func (e *Engine) withdrawSoon(key string, op store.Op) {
	e.spawn(func() {
		ctx, cancel := context.WithTimeout(e.life, op.Lease)
		defer cancel()
		_ = e.flow.Withdraw(ctx, key, op) // dead in a moment anyway
	})
}

// unguardedWrite is what people write by hand: both stores, one after the other. Only a test that shows what the intent
// is for gets here.
func (e *Engine) unguardedWrite(ctx context.Context, a authority, key string, x *store.Record, cond store.Condition) (existed bool, err error) {
	e.arrow(ctx, "write", key)
	if x == nil {
		existed, err = e.origin.Delete(ctx, key, cond)
	} else {
		existed, err = true, e.origin.Save(ctx, key, *x, cond)
	}
	if err != nil {
		return existed, err
	}
	e.arrow(ctx, "commit", key)
	_ = e.flow.Copy(ctx, key, a.sendEpoch(), x)
	return existed, nil
}
