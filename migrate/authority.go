package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// authorityState is what a gateway knows about its right to serve. Engine.mu guards it.
//
// Leases are counted from before the question was sent: lease and mark times are those of sending.
type authorityState struct {
	times   Times
	control *Control // as adopted; nil: no workflow is known
	drained uint64   // the epoch that was last reported as adopted

	leaseUntil time.Time // end of the lease in the target
	leaseSince time.Time // since when it has been held without a gap
	leaseLast  time.Time // when the last lease was given, by the target's clock
	witness    time.Time // until when this gateway knows what the target did: it renewed its lease, or nobody was answered
	generation uint64    // of the target, as verified
	asked      uint64    // the generation that was last asked
	came       time.Time // when this gateway first renewed its lease there, by the target's clock
	cameOn     uint64    // that generation
	instance   string    // the target's run id, as last seen
	there      bool      // this gateway knew all the time, until it saw that run id, what the target did
	forgot     bool      // the target has forgotten steps that it had answered to this gateway

	mark       store.Mark
	markKnown  bool      // it was read at least once: from then on a missing one is unreadable
	markErr    error     // of the last try
	markSeen   time.Time // when the last successful reading was begun
	markSince  time.Time // since when readings have followed each other without a gap
	floorSince time.Time // when this floor was first seen
	holdSince  time.Time // since when this gateway holds under floor sync without a lease
	lostSince  time.Time // when the target was first seen with what may be another memory; zero: it is the one we know
	lostWhy    string    // what speaks against it
	lostTold   bool      // a person was told
	refused    error     // this gateway must not serve at all: another disk under the same workflow
}

// authority is the right under which one operation runs. It is taken at the operation's begin and looked at again
// before its answer.
type authority struct {
	phase      Phase
	epoch      uint64
	reconciled bool
	purged     bool
	times      Times
	mark       store.Mark
	lease      bool // the right comes from a lease in the target, not from the seal alone
	taken      time.Time
	generation uint64
	instance   string // the target's run id
}

// holdError says why nothing is served at the moment. It matches store.ErrUnavailable: the operation did not happen.
type holdError struct{ why string }

func (h *holdError) Error() string { return "migrate: " + h.why }
func (h *holdError) Unwrap() error { return store.ErrUnavailable }

// elapsed is the time from then to now. A machine that was suspended finds it only on the wall clock, one whose clock
// was set back only on the monotonic one: the longer counts.
func elapsed(then, now time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

// hasLease reports whether a lease in the target holds at now, on a target that has been verified.
func (s *authorityState) hasLease(now time.Time, generation uint64) bool {
	return s.control != nil && elapsed(s.leaseUntil, now) < 0 && s.generation == generation
}

// markFresh reports whether the origin's mark was seen within a lease. A try that failed since does not matter: whoever
// changes the mark waits a whole lease.
func (s *authorityState) markFresh(now time.Time) bool {
	return !s.markSeen.IsZero() && elapsed(s.markSeen, now) < s.times.Gateway
}

// reclaimed reports whether this origin was seen to serve alone, or to be about to, in a phase in which the target
// decides. No step leads there, but `repair` does, and a record that is older than the seal: a lease by it is none.
func (s *authorityState) reclaimed(now time.Time) bool {
	floor := s.mark.Seal.Floor
	return (floor == store.FloorNone || floor == store.FloorRetreat) && s.markFresh(now) &&
		s.mark.Identity == s.control.Identity && guard.On(guard.Seal)
}

// decide is PROTOCOL.md 3, "who may serve".
func (s *authorityState) decide(now time.Time, generation uint64) (authority, error) {
	a := authority{times: s.times, mark: s.mark, taken: now, generation: generation, instance: s.instance}
	if s.refused != nil {
		return a, s.refused
	}
	if s.control != nil {
		a.phase, a.epoch, a.reconciled, a.purged = s.control.Phase, s.control.Epoch, s.control.Reconciled, s.control.Purged
	}
	a.lease = s.hasLease(now, generation)
	if a.phase == Complete && a.purged {
		return a, nil // the target is a store like any other
	}
	floor := s.mark.Seal.Floor
	if a.lease && a.phase >= RampDown && !s.reclaimed(now) {
		return a, nil
	}
	if a.phase >= Sync && floor == store.FloorNone && guard.On(guard.Seal) {
		a.lease = false // the origin decides alone: what the target says is from before that
	}
	if a.lease && (floor != store.FloorRetreat || !guard.On(guard.Seal)) {
		if !s.markFresh(now) {
			return a, &holdError{s.unreadable("the origin cannot be read")}
		}
		return a, nil
	}
	// Without a lease, or where the seal says that the target must not be trusted, the seal decides, and the
	// origin is served alone or not at all.
	alone := authority{times: s.times, mark: s.mark, taken: now, generation: generation}
	if s.control != nil {
		alone.epoch = s.control.Epoch
	}
	if !guard.On(guard.Seal) {
		return alone, nil
	}
	if !s.markFresh(now) {
		return a, &holdError{s.unreadable("neither a lease in the target nor the origin's seal can be had")}
	}
	away := "the target cannot be reached"
	if !s.lostSince.IsZero() {
		away = "the target has come back, perhaps with an older memory (" + s.lostWhy + ")"
	}
	switch floor {
	case store.FloorNone:
		return alone, nil
	case store.FloorRetreat:
		if now.Sub(s.floorSince) >= s.times.Gateway { // the monotonic clock: a suspended machine waits once more
			return alone, nil
		}
		return a, &holdError{"retreating to the origin: waiting until every gateway has seen it or lost its lease"}
	case store.FloorSync:
		return a, &holdError{away + "; the origin has every write, and this gateway will retreat to it"}
	default:
		return a, &holdError{away + ", and the origin may be behind it: bring the target back (with its data), " +
			"or see `sessile migrate repair`"}
	}
}

func (s *authorityState) unreadable(what string) string {
	if s.markErr != nil {
		return fmt.Sprintf("%s: %v", what, s.markErr)
	}
	return what
}

// current decides now.
func (e *Engine) current() (authority, error) {
	now, generation := time.Now(), e.target.Generation()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.auth.decide(now, generation)
}

// enter takes the right to run one operation, and counts it as under way. It waits until there is one or ctx ends.
func (e *Engine) enter(ctx context.Context) (authority, error) {
	for held := false; ; held = true {
		generation := e.target.Generation()
		e.mu.Lock()
		a, err := e.auth.decide(time.Now(), generation)
		if err == nil {
			e.running[a.epoch]++
			e.mu.Unlock()
			return a, nil
		}
		if e.auth.asked != generation {
			e.renewSoon() // the target is there again
		}
		changed := e.changed
		e.mu.Unlock()
		if !held {
			e.stats.held.Add(1)
		}
		// Times alone can open the way (a retreat's wait is over), so look again now and then.
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return a, err
		case <-e.life.Done():
			again.Stop()
			return a, &holdError{"the gateway is stopping"}
		}
		again.Stop()
	}
}

// leave ends what enter began. linger keeps it under way for that long: an operation in the origin whose outcome is
// unknown may still happen within its bound.
func (e *Engine) leave(a authority, linger time.Duration) {
	end := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.running[a.epoch]--; e.running[a.epoch] == 0 {
			delete(e.running, a.epoch)
			if e.auth.control != nil && a.epoch < e.auth.control.Epoch {
				e.renewSoon() // somebody waits for this epoch to drain
			}
		}
	}
	if linger <= 0 {
		end()
		return
	}
	if !e.spawn(func() {
		sleep(e.life, linger)
		end()
	}) {
		end()
	}
}

// look reports whether a has held without a gap since it was taken. It is asked before any write is answered and
// after any read of the target: an authority that was lost and renewed since is another one.
func (e *Engine) look(a authority) bool {
	now, generation := time.Now(), e.target.Generation()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &e.auth
	if s.refused != nil {
		return false
	}
	if a.phase == Complete && a.purged {
		return true
	}
	if a.lease {
		if !s.hasLease(now, generation) || s.leaseSince.After(a.taken) || generation != a.generation {
			return false
		}
		if a.phase >= RampDown {
			return !s.reclaimed(now)
		}
	}
	if !guard.On(guard.Seal) {
		return true
	}
	if !s.markFresh(now) || s.markSince.After(a.taken) {
		return false
	}
	// A retreat that was seen since: others may serve the origin alone soon.
	return !a.lease || s.mark.Seal.Floor != store.FloorRetreat
}

// errGap is the answer where the authority had a gap: what was done may or may not count.
var errGap = fmt.Errorf("%w: the right to serve was lost while the operation was under way", store.ErrUnknown)

// errAgain makes serve run the operation once more, under a new authority. It must only be returned where the
// operation certainly did not happen, or where twice is once.
var errAgain = errors.New("migrate: again")

// serve runs f under an authority. f is run again, as long as ctx lives, where it answers that it certainly did not
// happen because the authority had changed (fenced, sealed) or the target could not be asked.
func (e *Engine) serve(ctx context.Context, key string, f func(authority) error) error {
	for try := 0; ; try++ {
		a, err := e.enter(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		err = f(a)
		var linger time.Duration
		if errors.Is(err, store.ErrUnknown) {
			linger = a.times.Bound - time.Since(start)
		}
		e.leave(a, linger)
		switch {
		case errors.Is(err, store.ErrSealed):
			e.refreshMark(ctx)
		case errors.Is(err, store.ErrFenced):
			e.mu.Lock()
			e.renewSoon()
			e.mu.Unlock()
		case errors.Is(err, errAgain):
		default:
			return err
		}
		if !e.backoff(ctx, try) {
			if errors.Is(err, errAgain) {
				return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
			}
			return err
		}
	}
}

// backoff waits before another try; it reports whether there is time for one.
func (e *Engine) backoff(ctx context.Context, try int) bool {
	e.mu.Lock()
	changed := e.changed
	e.mu.Unlock()
	d := min(5*time.Millisecond<<min(try, 5), 100*time.Millisecond)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
		return false
	case <-e.life.Done():
		return false
	}
	return true
}

// renewSoon asks the lease loop not to wait. Callers hold mu.
func (e *Engine) renewSoon() {
	select {
	case e.renewNow <- struct{}{}:
	default:
	}
}

// markLoop reads the origin's mark every third of a lease.
func (e *Engine) markLoop() {
	for {
		e.refreshMark(e.life)
		e.retreatIfDue(e.life)
		e.mu.Lock()
		every := e.auth.times.Gateway / 3
		if !e.auth.hasLease(time.Now(), e.auth.generation) && e.auth.mark.Seal.Floor != store.FloorNone {
			every = min(every, e.auth.times.RetreatAfter/2+time.Millisecond)
		}
		e.mu.Unlock()
		t := time.NewTimer(every)
		select {
		case <-t.C:
		case <-e.markNow:
		case <-e.life.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// refreshMark reads the origin's mark once.
func (e *Engine) refreshMark(ctx context.Context) {
	asked := time.Now()
	e.mu.Lock()
	bound := e.auth.times.Bound
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	mark, err := e.origin.Mark(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &e.auth
	if err == nil && s.markKnown && s.mark.Identity != "" && mark.Identity == "" {
		err = errors.New("the origin's identity is gone: is its directory, table or database still the same? If it has lost its memory, see `sessile migrate repair`")
	}
	if err == nil && mark.Identity == "" && mark.Seal.Workflow != "" {
		err = errors.New("a part of the origin has lost its memory, and its identity with it: see `sessile migrate repair`")
	}
	if err == nil && asked.Before(s.markSeen) {
		return // a slower answer to an older question
	}
	if err == nil && mark.Identity == s.mark.Identity && mark.Seal.Epoch < s.mark.Seal.Epoch { // no step does that
		err = fmt.Errorf("the origin's seal is of epoch %d and was of %d, so it has come back with an older memory: bring it back with its data, "+
			"or see `sessile migrate repair`", mark.Seal.Epoch, s.mark.Seal.Epoch)
	}
	if err != nil {
		if s.markErr == nil { // or those who are not served for the same reason would wake each other all the time
			e.wake()
		}
		s.markErr = err
		return
	}
	if elapsed(s.markSeen, asked) >= s.times.Gateway {
		s.markSince = asked
	}
	if s.markErr != nil || s.mark != mark || !s.markKnown {
		e.wake()
	}
	if s.mark.Seal != mark.Seal || !s.markKnown { // the same floor under another epoch is another retreat
		s.floorSince = time.Now()
	}
	s.mark, s.markErr, s.markSeen, s.markKnown = mark, nil, asked, mark != store.Mark{} || s.markKnown
	e.checkIdentity()
}

// checkIdentity refuses to serve another disk under the same workflow, or an origin that another workflow has sealed.
// Callers hold mu.
func (e *Engine) checkIdentity() {
	s := &e.auth
	s.refused = nil
	if seal := s.mark.Seal; seal.Floor != store.FloorNone && seal.Workflow != e.opt.Workflow {
		s.refused = &holdError{fmt.Sprintf("the origin is sealed by workflow %q, and this gateway serves workflow %q (--workflow)", seal.Workflow, e.opt.Workflow)}
	}
	if s.control != nil && s.control.Identity != "" && !s.markSeen.IsZero() && s.mark.Identity != s.control.Identity && s.control.Phase < Complete {
		s.refused = &holdError{fmt.Sprintf("this gateway sees another origin than workflow %q was created on: "+
			"every host with its own session directory is a workflow of its own (--workflow)", e.opt.Workflow)}
	}
}
