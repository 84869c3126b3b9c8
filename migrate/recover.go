package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// leaseLoop renews this gateway's lease every fifth of it, adopts what the control record says, and does what has to
// be done when a target or a floor comes back.
func (e *Engine) leaseLoop() {
	var failing error
	for {
		generation := e.target.Generation()
		err := e.renew(e.life)
		if err == nil {
			err = e.maintain(e.life)
		}
		waits := (*waitError)(nil)
		if errors.As(err, &waits) {
			err = nil // a step that is not done yet is no failure
		}
		if err != nil && e.life.Err() == nil && (failing == nil || failing.Error() != err.Error()) {
			e.log.Warn("the lease in the target could not be renewed", "error", err)
		} else if err == nil && failing != nil {
			e.log.Info("the lease in the target is renewed again")
		}
		failing = err

		e.mu.Lock()
		every := e.auth.times.Gateway / 5
		if err != nil {
			every /= 4 // whoever vouches later has to know what the target did meanwhile: witnessed
		}
		switch since := e.auth.lostSince; {
		case !since.IsZero() && time.Since(since) < 2*e.auth.times.Gateway, // others may be asking the same
			since.IsZero() && waits != nil && !e.auth.hasLease(time.Now(), e.auth.generation): // introduced
			every = min(every, 50*time.Millisecond)
		}
		e.mu.Unlock()
		if !e.awaitRenewal(every, generation) {
			return
		}
	}
}

// awaitRenewal waits until the lease is to be renewed: after a time, where somebody wants it, and where the target may be
// another one than it was. Others wait for what this gateway says of that, though no client may be asking for anything here.
// It reports whether the engine still runs.
func (e *Engine) awaitRenewal(every time.Duration, generation uint64) bool {
	for end := time.Now().Add(every); time.Now().Before(end) && e.target.Generation() == generation; {
		t := time.NewTimer(min(time.Until(end), 50*time.Millisecond))
		select {
		case <-t.C:
		case <-e.renewNow:
			t.Stop()
			return true
		case <-e.life.Done():
			t.Stop()
			return false
		}
	}
	return e.life.Err() == nil
}

// renew asks for the lease once. The control record that comes with the answer is adopted.
func (e *Engine) renew(ctx context.Context) error {
	e.mu.Lock()
	times, known := e.auth.times, e.auth.control
	e.mu.Unlock()
	if known == nil {
		// A lease is for gateways of a workflow: look first whether there is one.
		c, err := e.control(ctx, times)
		if err != nil {
			return err
		}
		if c == nil {
			return e.noControl(ctx)
		}
		if c.Purged {
			e.retire(c)
			return nil
		}
		times = c.Times
	} else if known.Purged {
		return nil
	}
	for range 3 { // a reconnect in the middle makes the answer worthless; then ask again at once
		asked, generation := time.Now(), e.target.Generation()
		e.mu.Lock()
		e.auth.asked = generation
		e.mu.Unlock()
		ask, cancel := context.WithTimeout(ctx, times.Gateway/2)
		r, err := e.flow.Renew(ask, e.opt.Gateway, e.report().encode(), times.Gateway)
		cancel()
		if errors.Is(err, store.ErrDown) || r.Down {
			e.mu.Lock()
			e.witnessed(asked)
			e.mu.Unlock()
		}
		if err != nil {
			return err
		}
		if r.Forgot {
			e.mu.Lock()
			e.auth.forgot, e.auth.generation = true, 0
			e.mu.Unlock()
		}
		c, err := parseControl(r.Control)
		if err != nil {
			return err
		}
		if e.target.Generation() != generation {
			continue
		}
		return e.judge(ctx, c, asked, r.Now, generation)
	}
	return errUnsteady
}

var errUnsteady = fmt.Errorf("%w: the connection to the target does not last", store.ErrUnavailable)

// witnessed notes that at that time nobody else was answered by the target, if this gateway knows so of all the time
// before. Callers hold mu.
func (e *Engine) witnessed(at time.Time) {
	if s := &e.auth; elapsed(s.witness, at) < s.times.Gateway {
		s.witness = at
	}
}

func (e *Engine) control(ctx context.Context, t Times) (*Control, error) {
	ctx, cancel := context.WithTimeout(ctx, t.Gateway/2)
	defer cancel()
	return readControl(ctx, e.flow)
}

// judge decides whether what the target just said comes from the target that this gateway knows, and adopts it then.
func (e *Engine) judge(ctx context.Context, c *Control, asked, given time.Time, generation uint64) error {
	e.mu.Lock()
	s := &e.auth
	known, verified := s.control, s.generation == generation && !s.forgot
	if s.asked != s.cameOn {
		s.came, s.cameOn = given, s.asked
	}
	e.mu.Unlock()
	switch {
	case c == nil:
		return e.noControl(ctx)
	case known != nil && c.Epoch < known.Epoch:
		return e.otherMemory(ctx, c, errors.New("its control record is older than the one that this gateway knows"))
	}
	if c.Purged {
		e.retire(c)
		return e.flow.Leave(ctx, e.opt.Gateway)
	}
	if !verified {
		ask, cancel := context.WithTimeout(ctx, c.Times.Gateway/2)
		defer cancel()
		instance, err := e.target.Instance(ask)
		if err != nil {
			return err
		}
		if e.target.Generation() != generation {
			return errUnsteady // whose name that is?
		}
		e.mu.Lock()
		if s.instance != instance {
			s.instance, s.there = instance, elapsed(s.witness, time.Now()) < c.Times.Gateway
		}
		// What this gateway was told matters no more where it has served nothing yet, or where a step was taken without
		// it on the target as it is now.
		if s.forgot && (known == nil || c.Cancelled || c.Epoch > known.Epoch && c.Instance == instance) {
			e.accept()
		}
		forgot := s.forgot
		e.mu.Unlock()
		if forgot && guard.On(guard.Memory) {
			return e.otherMemory(ctx, c, errors.New("it does not know the last steps that it had answered to this gateway"))
		}
		if instance != c.Instance {
			switch why, err := e.vouch(ask, c, instance); {
			case err != nil:
				return err
			case why != nil:
				return e.otherMemory(ctx, c, why)
			}
			c.Instance = instance
		}
	}
	if err := e.introduced(ctx, c, asked); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.hasLease(asked, generation) {
		s.leaseSince = asked
	}
	s.leaseUntil, s.generation = asked.Add(c.Times.Gateway), generation
	s.leaseLast, s.witness = given, asked
	e.adopt(c)
	return nil
}

// introduced waits, where this gateway had no lease until now, until all others that live have renewed theirs since it came.
// Otherwise one that has nothing to do could vouch for a memory which is older than the first thing that this gateway was
// answered, and in which it does not stand: vouch.
func (e *Engine) introduced(ctx context.Context, c *Control, asked time.Time) error {
	e.mu.Lock()
	s := &e.auth
	came, known := s.came, elapsed(s.leaseUntil, asked) < 0
	e.mu.Unlock()
	if known || c.Phase < Sync {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Times.Gateway/2)
	defer cancel()
	leases, err := e.flow.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if l.Gateway != e.opt.Gateway && l.Left > 0 && !l.Until.After(came.Add(c.Times.Gateway)) {
			e.mu.Lock()
			s.holdSince = time.Time{} // nothing to retreat from
			e.mu.Unlock()
			return &waitError{fmt.Sprintf("gateway %s may not know yet that this one is there", l.Gateway)}
		}
	}
	return nil
}

// accept goes on with the target's memory as it is. Callers hold mu.
func (e *Engine) accept() {
	e.auth.forgot = false
	e.flow.Accept()
}

// noControl deals with a control record that is not there: because there is no workflow, or none any more, where the
// origin is nobody's, and otherwise because the target has lost it.
func (e *Engine) noControl(ctx context.Context) error {
	e.refreshMark(ctx)
	e.mu.Lock()
	s := &e.auth
	known := s.control
	if s.markErr == nil && s.mark.Seal.Workflow == e.opt.Workflow || known != nil && (s.markErr != nil || s.mark.Seal.Floor != store.FloorNone) {
		e.mu.Unlock()
		why := error(errors.New("its control record is missing"))
		if known == nil {
			why = &waitError{"the target has no control record, and the origin belongs to its workflow"} // `create` may be at work
		}
		return e.otherMemory(ctx, nil, why)
	}
	s.lostSince, s.lostTold = time.Time{}, false
	if known == nil {
		e.mu.Unlock()
		return nil
	}
	s.control, s.leaseUntil, s.times, s.forgot = nil, time.Time{}, e.opt.Times, false
	e.checkIdentity()
	e.wake()
	e.mu.Unlock()
	e.log.Info("the workflow was cancelled")
	return e.flow.Leave(ctx, e.opt.Gateway)
}

// retire makes the target a store like any other: the move is over.
func (e *Engine) retire(c *Control) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.adopt(c)
}

// adopt makes c what new operations go by. Callers hold mu.
func (e *Engine) adopt(c *Control) {
	s := &e.auth
	old := s.control
	s.control, s.times = c, c.Times
	s.lostSince, s.lostTold = time.Time{}, false
	if s.forgot {
		e.accept()
	}
	if old == nil || old.Epoch != c.Epoch || old.Phase != c.Phase {
		e.log.Info("adopted", "phase", c.Phase.String(), "epoch", c.Epoch)
		e.renewSoon() // to report it
		if s.mark.Identity != c.Identity {
			// Perhaps it was given one a moment ago, by the `create` that this record comes from: look now.
			select {
			case e.markNow <- struct{}{}:
			default:
			}
		}
	}
	if c.Phase != DualWrite {
		e.copies.drop()
	}
	e.checkIdentity()
	e.wake()
}

// report says how far this gateway is.
func (e *Engine) report() report {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := report{Identity: e.auth.mark.Identity, Instance: e.auth.instance, Lost: e.auth.forgot}
	for _, l := range e.locks {
		switch {
		case l.origin && !l.target:
			r.LocksO++
		case l.target && !l.origin:
			r.LocksN++
		}
	}
	if c := e.auth.control; c != nil {
		for epoch, n := range e.running {
			if epoch < c.Epoch {
				r.Running += n
			}
		}
		if r.Running == 0 || !guard.On(guard.Drain) {
			e.auth.drained = c.Epoch
		}
		r.Adopted = e.auth.drained
	}
	return r
}

// vouch decides for a target that runs under another id whether it has forgotten anything, and writes the new id into the
// control record if not. A run id that changed is no loss by itself: Redis may come back from its disk with everything,
// or without the last second.
//
// Its memory is a prefix of its history. This gateway's last step is there, or its renewal would have said so, and so is
// everything that anybody was answered before. What was answered later was answered to gateways that had a lease at that
// time; they stand in that memory, and each has to say for itself that it misses nothing. why is what speaks against it.
func (e *Engine) vouch(ctx context.Context, c *Control, instance string) (why, err error) {
	e.mu.Lock()
	known, last, there := e.auth.control, e.auth.leaseLast, e.auth.there
	e.mu.Unlock()
	if !guard.On(guard.Memory) {
		return nil, nil
	}
	if known == nil || !there { // others may have come meanwhile, whom that memory does not know
		return &waitError{"the target was restarted, and this gateway was not there to know whether it forgot anything"}, nil
	}
	leases, err := e.flow.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		if l.Gateway == e.opt.Gateway {
			continue
		}
		var r report
		if err := json.Unmarshal(l.Info, &r); err != nil {
			return fmt.Errorf("gateway %s reports what this version cannot read: %w", l.Gateway, err), nil
		}
		switch {
		case r.Instance != instance && l.Until.Before(last):
			// It was over when this gateway renewed its own for the last time.
		case r.Instance != instance:
			return &waitError{fmt.Sprintf("the target was restarted: gateway %s has not said whether it forgot anything "+
				"(`sessile migrate forget-gateway %s` if it will not come back)", l.Gateway, l.Gateway)}, nil
		case r.Lost:
			return fmt.Errorf("it does not know the last steps that it had answered to gateway %s", l.Gateway), nil
		}
	}
	_, err = updateControl(ctx, e.flow, func(now *Control) error {
		switch {
		case now.Epoch == c.Epoch && now.Instance == instance:
			return nil // another gateway was as fast
		case now.Epoch != c.Epoch || now.Instance != c.Instance:
			return errOvertaken
		}
		now.Instance = instance
		now.note(LogEntry{What: "the target was restarted and has forgotten nothing", By: e.opt.Gateway})
		return nil
	})
	if err == nil {
		e.log.Info("the target was restarted and has forgotten nothing")
	}
	return nil, err
}

// otherMemory is PROTOCOL.md 3, "N with another memory": wait one lease, since the target has forgotten to whom it gave
// one, then let the origin's floor decide, never the phase in an older control record.
func (e *Engine) otherMemory(ctx context.Context, c *Control, why error) error {
	e.mu.Lock()
	s := &e.auth
	s.leaseUntil = time.Time{}
	if s.lostSince.IsZero() {
		s.lostSince = time.Now()
		e.wake()
	}
	s.lostWhy = why.Error()
	waited, known, times, told := time.Since(s.lostSince), s.control, s.times, s.lostTold
	if known == nil && c != nil {
		times = c.Times
	}
	// As long as it may turn out that nothing is lost there is nothing to tell.
	waits := (*waitError)(nil)
	tell := !told && (!errors.As(why, &waits) || waited >= times.Gateway)
	s.lostTold = told || tell
	e.mu.Unlock()
	if tell {
		e.stats.otherMemory.Add(1)
		e.alarm("the target has come back with another memory", "why", why)
	}
	if waited < times.Gateway {
		return fmt.Errorf("%w; waiting one lease", why)
	}
	e.refreshMark(ctx) // the seal after C
	e.mu.Lock()
	mark, err := e.auth.mark, e.auth.markErr
	e.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w; and the origin's seal cannot be read: %w", why, err)
	}
	switch mark.Seal.Floor {
	case store.FloorSync: // retreatIfDue changes the seal, and then:
		return fmt.Errorf("%w; retreating to the origin", why)
	case store.FloorRetreat:
		return e.toDualWrite(ctx, c, DualWrite, "retreat: the target came back with another memory")
	case store.FloorNone:
		phase := DualWrite
		if known == nil && c == nil || known != nil && known.Phase == Off || known == nil && c != nil && c.Phase == Off {
			phase = Off
		}
		return e.toDualWrite(ctx, c, phase, "the target came back with another memory")
	default:
		if known != nil && known.Phase == Complete {
			return fmt.Errorf("%w; in complete there is no other copy: `sessile migrate repair --use target --reason ...` goes on with what the target holds", why)
		}
		return fmt.Errorf("%w; the origin may be behind, so a person has to decide: bring the target's data back, or see `sessile migrate repair`", why)
	}
}

// toDualWrite makes a control record of phase dual-write (or off) under a new epoch, whatever c, the target's own, says,
// and finishes that step.
func (e *Engine) toDualWrite(ctx context.Context, c *Control, phase Phase, why string) error {
	e.mu.Lock()
	known, mark, times := e.auth.control, e.auth.mark, e.auth.times
	e.mu.Unlock()
	instance, err := e.target.Instance(ctx)
	if err != nil {
		return err
	}
	next := Control{Format: 1, Workflow: e.opt.Workflow, Prefix: e.opt.Prefix, Times: times, Identity: mark.Identity, Created: time.Now().UTC()}
	var old []byte
	if c != nil {
		next, old = *c, c.raw
	} else if known != nil {
		next = *known
	}
	epoch := mark.Seal.Epoch
	if c != nil {
		epoch = max(epoch, c.Epoch)
	}
	if known != nil {
		epoch = max(epoch, known.Epoch)
	}
	next.From, next.Phase, next.Epoch, next.Done = next.Phase, phase, epoch+1, false
	next.Instance, next.Identity = instance, mark.Identity
	next.Reconciled, next.Purged, next.Diff = false, false, nil
	next.Backfill, next.Reconcile = Job{Rate: next.Backfill.Rate}, Job{Rate: next.Reconcile.Rate}
	next.note(LogEntry{What: "to " + phase.String(), By: e.opt.Gateway, Reason: why})
	if err := e.flow.SwapControl(ctx, old, next.encode()); err != nil {
		return err // somebody else was first, or it is found again at the next renewal
	}
	e.mu.Lock()
	e.auth.generation = 0 // verify anew, by the record just written
	e.accept()
	e.auth.control = &next
	e.renewSoon()
	e.mu.Unlock()
	e.alarm("went back to "+phase.String()+" by itself", "why", why, "epoch", next.Epoch)
	return nil
}

// maintain does what nobody asked for but the protocol: a retreat is finished, a seal is lowered.
func (e *Engine) maintain(ctx context.Context) error {
	e.mu.Lock()
	c, mark, seen := e.auth.control, e.auth.mark, e.auth.markErr == nil && e.auth.markKnown
	lease := e.auth.hasLease(time.Now(), e.target.Generation())
	e.mu.Unlock()
	if c == nil || !seen || !lease || c.Phase == Complete && mark.Seal.Floor != store.FloorRetreat {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Times.Gateway/2)
	defer cancel()
	if mark.Seal.Floor == store.FloorRetreat {
		fresh, err := readControl(ctx, e.flow)
		if err != nil || fresh == nil {
			return err
		}
		e.refreshMark(ctx) // C first, then the seal
		e.mu.Lock()
		mark = e.auth.mark
		e.mu.Unlock()
		if mark.Seal.Floor != store.FloorRetreat {
			return nil
		}
		if fresh.Phase != DualWrite && fresh.Phase != Off || fresh.Epoch <= mark.Seal.Epoch {
			return e.toDualWrite(ctx, fresh, DualWrite, "retreat: the target could not be reached")
		}
		c = fresh
	}
	if !c.Done {
		// A retreat is nobody's command, so nobody else would finish it. Other steps are finished by whoever runs
		// their command again.
		if mark.Seal.Floor == store.FloorRetreat || c.Phase <= DualWrite {
			if done, err := e.finishStep(ctx, c); err != nil || !done {
				return err
			}
			next := *c // others read the one that was adopted
			next.Done = true
			c = &next
		} else {
			return nil
		}
	}
	if err := e.tickJobs(ctx, c); err != nil {
		return err
	}
	return e.lowerSeal(ctx, c, mark)
}

// lowerSeal brings the seal down to what the phase of a finished step asks for, by compare-and-set on all of it,
// keeping its epoch; never while its epoch is above C's, since then a step is pending.
func (e *Engine) lowerSeal(ctx context.Context, c *Control, mark store.Mark) error {
	floor := floorOf(c.Phase)
	if !c.Done || mark.Seal.Epoch > c.Epoch || mark.Seal.Floor == floor {
		return nil
	}
	if floor == store.FloorSync {
		if mark.Seal.Floor != store.FloorRampDown {
			return nil // raising is a step's work
		}
		if u, err := e.flow.Unsettled(ctx, 0); err != nil || u.Aheads > 0 {
			return err // the origin is behind as long as something is ahead
		}
	} else if floor == store.FloorRampDown {
		return nil
	}
	next := mark
	next.Seal.Floor = floor
	err := e.origin.SwapMark(ctx, mark, next)
	if err == nil {
		e.log.Info("lowered the origin's seal", "floor", floor.String())
	}
	e.refreshMark(ctx)
	return err
}

// floorOf is the floor that a settled phase needs.
func floorOf(p Phase) store.Floor {
	switch p {
	case Sync, Live:
		return store.FloorSync
	case RampDown, Complete:
		return store.FloorRampDown
	}
	return store.FloorNone
}

// retreatIfDue changes the seal from sync to retreat when this gateway has held without a lease for long enough. The
// origin has every acknowledged write, so nobody will notice but the operator.
func (e *Engine) retreatIfDue(ctx context.Context) {
	e.mu.Lock()
	s := &e.auth
	now := time.Now()
	due := s.mark.Seal.Floor == store.FloorSync && s.markFresh(now) && !s.hasLease(now, e.target.Generation()) && s.refused == nil
	if !due {
		s.holdSince = time.Time{}
		e.mu.Unlock()
		return
	}
	if s.holdSince.IsZero() {
		s.holdSince = now
	}
	mark := s.mark
	due = now.Sub(s.holdSince) >= s.times.RetreatAfter
	bound := s.times.Bound
	e.mu.Unlock()
	if !due {
		return
	}
	next := mark
	next.Seal.Floor = store.FloorRetreat
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := e.origin.SwapMark(ctx, mark, next)
	e.refreshMark(ctx) // if it changed meanwhile, look again
	if err == nil {
		e.stats.retreats.Add(1)
		e.alarm("retreating to the origin: the target cannot be reached")
	} else if !errors.Is(err, store.ErrConflict) {
		e.log.Warn("the retreat to the origin could not be written into its seal", "error", err)
	}
}
