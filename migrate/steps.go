package migrate

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// StepOptions of a command that changes the phase.
type StepOptions struct {
	// Force opens gates that are closed; it needs a Reason, which is recorded. It never skips barrier, epoch, seal or
	// reconcile: those are no gates.
	Force  bool
	Reason string
	// DryRun says what would be done, and changes nothing.
	DryRun bool
	// Soak is how long a phase that looks good is watched before it is left. 0: not at all.
	Soak time.Duration
	// Window is how long the origin is watched for foreign writers. Default 3 s.
	Window time.Duration
	// Say is told what goes on, a line at a time; nil: nobody.
	Say func(line string)
}

func (o StepOptions) say(format string, args ...any) {
	if o.Say != nil {
		o.Say(fmt.Sprintf(format, args...))
	}
}

func (o StepOptions) check() error {
	if o.Force && strings.TrimSpace(o.Reason) == "" {
		return &UsageError{"--force needs --reason: it is recorded with the step"}
	}
	return nil
}

// UsageError says that a command was asked for something that it never does.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// GateError says that gates are closed which waiting will not open.
type GateError struct {
	To    Phase
	Gates []Gate
}

func (e *GateError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the way to %s is closed:", e.To)
	for _, g := range e.Gates {
		if !g.Open {
			fmt.Fprintf(&b, "\n  %s: %s", g.Name, g.Value)
			if g.Remedy != "" {
				fmt.Fprintf(&b, "\n    remedy: %s", g.Remedy)
			}
		}
	}
	return b.String()
}

// Create makes the workflow, in phase off. It refuses a target that holds sessions of this site already, because a
// copy that this workflow did not make could log somebody back in. Run again it does nothing.
func (e *Engine) Create(ctx context.Context, opt StepOptions) error {
	e.stepping.Lock()
	defer e.stepping.Unlock()
	c, err := readControl(ctx, e.flow)
	if err != nil {
		return fmt.Errorf("the target cannot be asked: %w", err)
	}
	mark, err := e.origin.Mark(ctx)
	if err != nil {
		return fmt.Errorf("the origin's identity and seal cannot be read: %w", err)
	}
	if c != nil {
		if mark.Identity == "" && c.Phase < Complete {
			return &UsageError{fmt.Sprintf("workflow %q exists, and its origin has lost its identity: see `sessile migrate repair`", e.opt.Workflow)}
		}
		if c.Identity != mark.Identity {
			return &UsageError{fmt.Sprintf("workflow %q exists, on another origin: give this one another name (--workflow)", e.opt.Workflow)}
		}
		opt.say("workflow %s exists, in phase %s", c.Workflow, c.Phase)
		return nil
	}
	switch seal := mark.Seal; {
	case seal.Floor != store.FloorNone:
		return &UsageError{fmt.Sprintf("the origin is sealed (floor %s) by workflow %q, whose control record is not in this target: "+
			"is it the right target? If its data is lost, see `sessile migrate repair`", seal.Floor, seal.Workflow)}
	case seal.Workflow != "" && seal.Workflow != e.opt.Workflow:
		return &UsageError{fmt.Sprintf("the origin belongs to workflow %q: `sessile migrate cancel --workflow %s` first", seal.Workflow, seal.Workflow)}
	}
	if err := e.alone(ctx); err != nil {
		return err
	}
	found, err := e.ownKeys(ctx, 1000, nil)
	if err != nil {
		return fmt.Errorf("the target cannot be listed: %w", err)
	}
	if found > 0 {
		return &UsageError{fmt.Sprintf("the target holds at least %d sessions of this site that this workflow did not put there: "+
			"remove them, or choose another database or --target-key", found)}
	}
	if opt.DryRun {
		opt.say("would create workflow %s in phase off", e.opt.Workflow)
		return nil
	}
	instance, err := e.target.Instance(ctx)
	if err != nil {
		return err
	}
	// The origin learns whose it is first: whoever finds it so, and no control record, knows that one was lost.
	fence, err := e.flow.Fence(ctx) // left from an earlier run
	if err != nil {
		return err
	}
	owned := mark
	if owned.Identity == "" && owned.Seal.Workflow != "" {
		opt.say("a part of the origin had lost its memory: what it has left is what there is")
	}
	if owned.Identity == "" {
		owned.Identity = rand.Text()
	}
	owned.Seal.Workflow, owned.Seal.Epoch = e.opt.Workflow, max(mark.Seal.Epoch, fence)+1
	if err := e.origin.SwapMark(ctx, mark, owned); err != nil {
		return fmt.Errorf("the origin's identity cannot be written: %w", err)
	}
	e.refreshMark(ctx)
	next := &Control{Format: 1, Workflow: e.opt.Workflow, Epoch: owned.Seal.Epoch, Phase: Off, Times: e.opt.Times,
		Prefix: e.opt.Prefix, Instance: instance, Identity: owned.Identity, Created: time.Now().UTC()}
	next.note(LogEntry{What: "created", By: e.opt.Gateway})
	if err := e.flow.SwapControl(ctx, nil, next.encode()); err != nil {
		return err
	}
	if _, err := e.awaitStep(ctx, next, opt); err != nil {
		return err
	}
	opt.say("workflow %s created", next.Workflow)
	return nil
}

// alone refuses a target in which another workflow has, or may have, sessions under names of ours.
func (e *Engine) alone(ctx context.Context) error {
	if t, ok := e.target.(store.Marked); ok {
		mark, err := t.Mark(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("whether the target is another workflow's origin cannot be seen: %w", err)
		case mark.Seal.Workflow != "":
			return &UsageError{fmt.Sprintf("the target is, or was, the origin of workflow %q (floor %s): choose another database or --target-key, "+
				"or, if that move is over, remove its sessions and its mark", mark.Seal.Workflow, mark.Seal.Floor)}
		}
	}
	names, err := e.target.Workflows(ctx)
	if err != nil {
		return fmt.Errorf("the target's workflows cannot be listed: %w", err)
	}
	for _, name := range names {
		if name == e.opt.Workflow {
			continue
		}
		c, err := readControl(ctx, e.target.Workflow(name))
		switch {
		case err != nil:
			return fmt.Errorf("workflow %q in the same target: %w", name, err)
		case c == nil || !strings.HasPrefix(c.Prefix, e.opt.Prefix) && !strings.HasPrefix(e.opt.Prefix, c.Prefix):
			continue
		}
		return &UsageError{fmt.Sprintf("workflow %q keeps its sessions in this target under the same names (they begin with %q): "+
			"choose another database or --target-key", name, c.Prefix)}
	}
	return nil
}

// renewNowAndWait makes this gateway adopt what a command has just written.
func (e *Engine) renewNowAndWait(ctx context.Context) {
	e.mu.Lock()
	changed := e.changed
	e.renewSoon()
	e.mu.Unlock()
	select {
	case <-changed:
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// ownKeys calls each (if set) with the target's keys of this site, in batches, and returns how many there were. It
// stops at limit if that is above 0.
func (e *Engine) ownKeys(ctx context.Context, limit int, each func(keys []string) error) (n int, err error) {
	for cursor := ""; ; {
		page, err := e.target.Scan(ctx, cursor, 1000)
		if err != nil {
			return n, err
		}
		keys := page.Keys[:0]
		for _, key := range page.Keys {
			if e.opt.OwnsKey(key) {
				keys = append(keys, key)
			}
		}
		n += len(keys)
		if each != nil && len(keys) > 0 {
			if err := each(keys); err != nil {
				return n, err
			}
		}
		if cursor = page.Cursor; cursor == "" || limit > 0 && n >= limit {
			return n, nil
		}
	}
}

// emptyTarget removes what the target holds of this site: before dual-write, so that nothing of an earlier attempt
// is found there, and after cancel, so that a later gateway finds no logged-out session.
func (e *Engine) emptyTarget(ctx context.Context, epoch uint64) (removed int, err error) {
	if err := e.removeMarked(ctx, epoch); err != nil {
		return 0, err
	}
	_, err = e.ownKeys(ctx, 0, func(keys []string) error {
		n, err := e.flow.Remove(ctx, epoch, keys)
		removed += n
		return err
	})
	return removed, err
}

// removeMarked removes every session from the target that has a marker, and the marker.
func (e *Engine) removeMarked(ctx context.Context, epoch uint64) error {
	for {
		u, err := e.flow.Unsettled(ctx, 1000)
		if err != nil || len(u.Keys) == 0 {
			return err
		}
		if _, err := e.flow.Remove(ctx, epoch, u.Keys); err != nil {
			return err
		}
	}
}

// SwitchTraffic takes the workflow up to phase to, step by step. What another process left half done it finishes.
func (e *Engine) SwitchTraffic(ctx context.Context, to Phase, opt StepOptions) error {
	if to == Complete {
		return &UsageError{"the step into complete has no way back: use `sessile migrate complete`"}
	}
	return e.walk(ctx, to, +1, opt)
}

// ReverseTraffic takes the workflow down to phase to, step by step.
func (e *Engine) ReverseTraffic(ctx context.Context, to Phase, opt StepOptions) error {
	return e.walk(ctx, to, -1, opt)
}

// Complete takes the last step, from ramp-down. It returns when every gateway has left ramp-down: from then on
// applications may talk to the target directly.
func (e *Engine) Complete(ctx context.Context, opt StepOptions) error {
	e.stepping.Lock()
	defer e.stepping.Unlock()
	if err := opt.check(); err != nil {
		return err
	}
	c, err := e.settledControl(ctx, opt)
	if err != nil {
		return err
	}
	if c.Phase < RampDown {
		return &UsageError{fmt.Sprintf("the workflow is in phase %s: complete is entered from ramp-down (`sessile migrate switchtraffic --to ramp-down`)", c.Phase)}
	}
	if c.Phase == RampDown {
		if _, err = e.step(ctx, c, Complete, opt); err != nil {
			return err
		}
	}
	if opt.DryRun {
		return nil
	}
	if c, err = updateControl(ctx, e.flow, func(c *Control) error {
		if c.Phase != Complete || !c.Done { // the target has come back with an older memory, or somebody repairs it
			return errOvertaken
		}
		c.Purged = true
		return nil
	}); err != nil {
		return err
	}
	if err := e.flow.Purge(ctx, c.raw); err != nil { // once more, if an earlier run was killed just here
		return err
	}
	e.renewNowAndWait(ctx)
	opt.say("complete: applications may now be pointed at the target directly")
	return nil
}

// Cancel walks down to off, removes from the target what the move put there, and forgets the workflow.
func (e *Engine) Cancel(ctx context.Context, opt StepOptions) error {
	err := e.cancel(ctx, opt)
	for errors.Is(err, errOvertaken) && sleep(ctx, 100*time.Millisecond) { // down is where it goes, whoever leads
		err = e.cancel(ctx, opt)
	}
	if err == nil || opt.DryRun {
		return err
	}
	// Somebody else may have cancelled it meanwhile, or a run before this one, up to its last word.
	c, cerr := readControl(ctx, e.flow)
	mark, merr := e.origin.Mark(ctx)
	if cerr != nil || merr != nil || c != nil || mark.Seal.Workflow == e.opt.Workflow {
		return err
	}
	opt.say("there is no workflow %s", e.opt.Workflow)
	return nil
}

func (e *Engine) cancel(ctx context.Context, opt StepOptions) error {
	e.mu.Lock()
	none := e.auth.control == nil
	e.mu.Unlock()
	if c, err := readControl(ctx, e.flow); err != nil {
		return err
	} else if c == nil && none && !opt.DryRun {
		if err := e.disown(ctx, nil); err != nil { // a `create` was killed between origin and target
			return err
		}
		return errNoWorkflow
	}
	if err := e.walk(ctx, Off, -1, opt); err != nil || opt.DryRun {
		return err
	}
	e.stepping.Lock()
	defer e.stepping.Unlock()
	c, err := updateControl(ctx, e.flow, func(c *Control) error {
		if c.Phase != Off {
			return fmt.Errorf("%w: phase %s", errOvertaken, c.Phase)
		}
		if !c.Cancelled {
			c.Cancelled, c.Epoch, c.Done, c.From = true, c.Epoch+1, false, Off
			c.note(LogEntry{What: "cancelled", By: e.opt.Gateway})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c, err = e.awaitStep(ctx, c, opt); err != nil {
		return err
	}
	// The origin is nobody's any more before the control record goes: a gateway that was away finds no record, and must
	// not take that for one that was lost.
	removed, err := e.emptyTarget(ctx, c.Epoch)
	if err != nil {
		return err
	}
	if err := e.disown(ctx, c); err != nil {
		return err
	}
	if err := e.flow.Purge(ctx, c.raw); err != nil {
		return err
	}
	if err := e.flow.SwapControl(ctx, c.raw, nil); err != nil {
		return err
	}
	e.renewNowAndWait(ctx)
	opt.say("cancelled: %d copies removed from the target; the origin is as it was", removed)
	return nil
}

// disown makes the origin nobody's, under an epoch above all that c's workflow had (nil: it has no record). It waits for
// the seal to be lowered first, as the last step down allows.
func (e *Engine) disown(ctx context.Context, c *Control) error {
	for {
		mark, err := e.origin.Mark(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("the origin's seal cannot be read: %w", err)
		case mark.Seal.Workflow != e.opt.Workflow:
			return nil
		case c != nil && mark.Seal.Epoch > c.Epoch:
			return errOvertaken
		case c == nil && mark.Seal.Floor != store.FloorNone:
			return &UsageError{fmt.Sprintf("the origin is sealed (floor %s), and the target has lost the workflow's record: "+
				"wait until a gateway has made another, or see `sessile migrate repair`", mark.Seal.Floor)}
		}
		next := mark
		next.Seal.Workflow, next.Seal.Floor = "", store.FloorNone
		if c != nil {
			next.Seal.Epoch = c.Epoch
		}
		switch err := e.origin.SwapMark(ctx, mark, next); {
		case err == nil:
			e.refreshMark(ctx)
			return nil
		case !errors.Is(err, store.ErrConflict):
			return fmt.Errorf("the origin is still sealed (floor %s), and its seal cannot be written: %w", mark.Seal.Floor, err)
		}
	}
}

// walk goes from phase to phase.
func (e *Engine) walk(ctx context.Context, to Phase, direction int, opt StepOptions) error {
	e.stepping.Lock()
	defer e.stepping.Unlock()
	if err := opt.check(); err != nil {
		return err
	}
	for {
		c, err := e.settledControl(ctx, opt)
		if err != nil {
			return err
		}
		at := int(c.Phase)
		if (int(to)-at)*direction <= 0 {
			if at == int(to) {
				opt.say("in phase %s", to)
				return nil
			}
			verb := map[int]string{1: "reversetraffic", -1: "switchtraffic"}[direction]
			return &UsageError{fmt.Sprintf("the workflow is in phase %s, beyond %s: use `sessile migrate %s --to %s`", c.Phase, to, verb, to)}
		}
		if c.Phase == Complete {
			return &UsageError{"the workflow is complete: there is no way back"}
		}
		if c.Cancelled {
			return &UsageError{"the workflow is being cancelled: run `sessile migrate cancel` again"}
		}
		next := Phase(at + direction)
		if _, err := e.step(ctx, c, next, opt); err != nil {
			return err
		}
		if opt.DryRun {
			if next != to {
				opt.say("then on to %s, each step with gates of its own", to)
			}
			return nil
		}
	}
}

// settledControl returns the control record with no step under way: a step that somebody began is finished first.
func (e *Engine) settledControl(ctx context.Context, opt StepOptions) (*Control, error) {
	c, err := readControl(ctx, e.flow)
	if err != nil {
		return nil, fmt.Errorf("the target cannot be asked: %w", err)
	}
	if c == nil {
		return nil, errNoWorkflow
	}
	if c.Done || opt.DryRun {
		return c, nil
	}
	opt.say("finishing the step into %s", c.Phase)
	return e.awaitStep(ctx, c, opt)
}

// step takes c's workflow to the neighbouring phase to: PROTOCOL.md 2.
func (e *Engine) step(ctx context.Context, c *Control, to Phase, opt StepOptions) (*Control, error) {
	from := c.Phase
	opt.say("%s -> %s", from, to)
	if !opt.DryRun {
		if err := e.awaitLease(ctx, c); err != nil { // it looks at the phase that it serves by
			return c, err
		}
	}
	gates, err := e.openGates(ctx, c, to, opt)
	if err != nil || opt.DryRun {
		return c, err
	}
	entry := LogEntry{What: fmt.Sprintf("%s -> %s", from, to), By: e.opt.Gateway}
	for _, g := range gates {
		if !g.Open {
			entry.Forced, entry.Reason = append(entry.Forced, g.Name), opt.Reason
		}
	}
	if from == Off && to == DualWrite {
		if err := e.alone(ctx); err != nil {
			return c, err
		}
		removed, err := e.emptyTarget(ctx, c.Epoch)
		if err != nil {
			return c, fmt.Errorf("emptying the target: %w", err)
		}
		if removed > 0 {
			opt.say("removed %d copies of an earlier attempt from the target", removed)
		}
	}

	// 1. Up into sync or ramp-down: the seal first, with an epoch above C's and its own.
	if err := e.awaitLease(ctx, c); err != nil { // gates may have been waited for
		return c, err
	}
	var seal uint64
	if to > from && (to == Sync || to == RampDown) && guard.On(guard.Seal) {
		if seal, err = e.raiseSeal(ctx, c, floorOf(to)); err != nil {
			return c, fmt.Errorf("raising the origin's seal: %w", err)
		}
		if to == Sync {
			opt.say("sealed the origin; waiting one lease (%v)", c.Times.Gateway)
			if !sleep(ctx, c.Times.Gateway) {
				return c, ctx.Err()
			}
		}
	}
	// 2. C, with an epoch above the seal's. Into sync one more is left free for the second seal (4.).
	mark, err := e.origin.Mark(ctx)
	if err != nil {
		return c, fmt.Errorf("the origin's seal cannot be read: %w", err)
	}
	if to != Complete && mark.Identity != c.Identity { // it would be compared with, or be trusted with, what it lacks
		return c, &UsageError{"the origin has lost its identity, and sessions with it: see `sessile migrate repair`"}
	}
	if seal != 0 && (mark.Seal.Floor != floorOf(to) || mark.Seal.Epoch != seal) {
		return c, fmt.Errorf("the origin's seal changed meanwhile (floor %s): run the command again", mark.Seal.Floor)
	}
	epoch := c.Epoch
	if err := e.awaitLease(ctx, c); err != nil {
		return c, err
	}
	next, err := updateControl(ctx, e.flow, func(now *Control) error {
		if now.Epoch != epoch || now.Phase != from {
			return fmt.Errorf("%w: phase %s, epoch %d", errOvertaken, now.Phase, now.Epoch)
		}
		now.Epoch = max(now.Epoch, mark.Seal.Epoch) + 2
		now.From, now.Phase, now.Done = from, to, false
		if to < Sync {
			now.Reconciled = false
		}
		if to == DualWrite {
			now.Backfill = Job{Rate: now.Backfill.Rate}
			now.Diff = nil
		}
		if to == Sync && from < Sync {
			now.Reconciled = !guard.On(guard.Reconcile)
			now.Reconcile = Job{Rate: now.Reconcile.Rate}
		}
		entry.Epoch = now.Epoch
		now.note(entry)
		return nil
	})
	if err != nil {
		return c, err
	}
	return e.awaitStep(ctx, next, opt)
}

// awaitLease returns when this gateway has a lease under c's epoch. A target that the gateways do not serve by, because
// it has come back with another memory, is none to take a step on.
func (e *Engine) awaitLease(ctx context.Context, c *Control) error {
	ctx, cancel := context.WithTimeout(ctx, 2*c.Times.Gateway)
	defer cancel()
	for {
		a, err := e.current()
		if err == nil && a.lease && a.epoch == c.Epoch {
			return nil
		}
		e.mu.Lock()
		e.renewSoon()
		e.mu.Unlock()
		if !sleep(ctx, 20*time.Millisecond) {
			if err == nil {
				err = fmt.Errorf("%w: it has no lease", store.ErrUnavailable)
			}
			return fmt.Errorf("this gateway does not serve by epoch %d: %w", c.Epoch, err)
		}
	}
}

// raiseSeal writes a higher floor, or the same under a new epoch, and returns that epoch.
func (e *Engine) raiseSeal(ctx context.Context, c *Control, floor store.Floor) (uint64, error) {
	for range 10 {
		mark, err := e.origin.Mark(ctx)
		if err != nil {
			return 0, err
		}
		if mark.Identity != c.Identity {
			return 0, errors.New("this is not the origin that the workflow was created on")
		}
		if mark.Seal.Floor == store.FloorRetreat {
			return 0, errors.New("a retreat is under way: wait until it is done")
		}
		// The seal first, then C: by now it may be the seal of a later phase. Where it is not, whoever has taken a step up since
		// has changed it, and the swap fails.
		if err := e.awaitLease(ctx, c); err != nil {
			return 0, err
		}
		next := mark
		next.Seal = store.Seal{Workflow: c.Workflow, Epoch: max(c.Epoch, mark.Seal.Epoch) + 1, Floor: floor}
		err = e.origin.SwapMark(ctx, mark, next)
		e.refreshMark(ctx)
		if err == nil {
			return next.Seal.Epoch, nil
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
			return 0, err
		}
	}
	return 0, store.ErrConflict
}

// awaitStep waits until every gateway has adopted c's epoch, and ends the step.
func (e *Engine) awaitStep(ctx context.Context, c *Control, opt StepOptions) (*Control, error) {
	said := ""
	defer e.waitsFor.Store(nil)
	for {
		e.mu.Lock()
		e.renewSoon()
		e.mu.Unlock()
		done, err := e.finishStep(ctx, c)
		var waits *waitError
		switch {
		case done:
			opt.say("in phase %s (epoch %d)", c.Phase, c.Epoch)
			e.renewNowAndWait(ctx)
			now, err := readControl(ctx, e.flow)
			if err == nil && now == nil {
				err = errOvertaken
			}
			return now, err
		case errors.As(err, &waits):
			text := waits.Error()
			e.waitsFor.Store(&text)
			if text != said {
				opt.say("%s", text)
				said = text
			}
		case errors.Is(err, errOvertaken), err != nil && !store.Failed(err):
			return c, err
		}
		if !sleep(ctx, 25*time.Millisecond) {
			if err == nil {
				err = ctx.Err()
			}
			return c, fmt.Errorf("the step into %s is not done: %w (run the command again to finish it)", c.Phase, err)
		}
	}
}

// errOvertaken ends a command whose step is no longer the last one.
var errOvertaken = errors.New("somebody else took another step meanwhile")

// waitError says what a step waits for.
type waitError struct{ what string }

func (w *waitError) Error() string { return w.what }

// finishStep ends the step into c's phase if every gateway with a lease has adopted its epoch: it raises the fence
// and, into sync, writes the seal once more. Anybody may call it, any number of times.
func (e *Engine) finishStep(ctx context.Context, c *Control) (bool, error) {
	leases, err := e.flow.Leases(ctx)
	if err != nil {
		return false, err
	}
	if guard.On(guard.Drain) {
		for _, l := range leases {
			if l.Left <= 0 {
				continue
			}
			var r report
			if err := json.Unmarshal(l.Info, &r); err != nil {
				return false, fmt.Errorf("gateway %s reports what this version cannot read: %w", l.Gateway, err)
			}
			if r.Adopted < c.Epoch {
				return false, &waitError{fmt.Sprintf("waiting for gateway %s to adopt epoch %d (%d operations under way)", l.Gateway, c.Epoch, r.Running)}
			}
		}
	}
	now, err := readControl(ctx, e.flow)
	if err != nil {
		return false, err
	}
	if now == nil || now.Epoch != c.Epoch {
		return false, errOvertaken
	}
	if now.Done {
		return true, nil
	}
	if err := e.flow.RaiseFence(ctx, c.Epoch); err != nil {
		return false, err
	}
	if c.Phase == DualWrite {
		// Markers belong to the phases above. One that were left, by a retreat or by an older memory, would keep the copies
		// away from its session, and in sync an ahead would be propagated over what the origin has taken since.
		if err := e.removeMarked(ctx, c.Epoch); err != nil {
			return false, err
		}
	}
	if c.Phase == Sync && c.From < Sync && guard.On(guard.Seal) {
		// The origin's own fence: a write that was begun under the first seal, or none, and stood still, finds another.
		mark, err := e.origin.Mark(ctx)
		if err != nil {
			return false, err
		}
		if mark.Seal.Floor == store.FloorSync { // whatever its epoch: two may have begun the step
			next := mark
			next.Seal.Epoch = max(mark.Seal.Epoch+1, c.Epoch-1)
			switch err := e.origin.SwapMark(ctx, mark, next); {
			case errors.Is(err, store.ErrConflict):
				return false, &waitError{"somebody else writes the origin's seal"}
			case err != nil:
				return false, err
			}
			e.refreshMark(ctx)
		}
	}
	_, err = updateControl(ctx, e.flow, func(now *Control) error {
		if now.Epoch == c.Epoch {
			now.Done = true
		}
		return nil
	})
	return err == nil, err
}

// ForgetGateway forgets a gateway that will not come back. It waits for the end of its lease, by which it may still serve,
// and refuses where it renews it.
func (e *Engine) ForgetGateway(ctx context.Context, name string) error {
	var until time.Time
	for {
		leases, err := e.flow.Leases(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(leases, func(l store.Lease) bool { return l.Gateway == name })
		if i < 0 {
			if until.IsZero() {
				return &UsageError{fmt.Sprintf("no gateway %q has a lease here", name)}
			}
			return nil // it left by itself
		}
		l := leases[i]
		if until.IsZero() {
			until = l.Until
		}
		if l.Until.After(until) {
			return &UsageError{fmt.Sprintf("gateway %q lives: it has renewed its lease; stop it first", name)}
		}
		if l.Left <= 0 {
			if err := e.flow.DropLease(ctx, name); !errors.Is(err, store.ErrConflict) {
				return err
			}
			continue
		}
		if !sleep(ctx, l.Left) {
			return fmt.Errorf("%w while waiting for the end of the lease of %s", ctx.Err(), name)
		}
	}
}
