package migrate

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/sessile/sessile/store"
)

// An origin that cannot be listed (a directory without the right to, a memcached) has no backfill. What is used in dual-write
// is copied, what is used in sync is brought to the target, and what nobody uses for a whole lifetime in sync has ended by
// itself. So the reconcile pass walks over the target, and then waits until that is over.

// listed reports whether the origin can be listed.
func (e *Engine) listed() bool { return e.origin.Capabilities().Scan }

// walked is the store whose sessions are looked at where those of the origin are meant: the target, where the origin cannot
// be listed.
func (e *Engine) walked() store.Store {
	if e.listed() {
		return e.origin
	}
	return e.target
}

// lives notes a deadline before sync, since a session that lives for longer than the lifetime would end in live although it
// has not. From sync on it is in the target.
func (e *Engine) lives(deadline time.Time) {
	if e.listed() || deadline.IsZero() {
		return
	}
	seconds := int64(min(time.Until(deadline).Seconds(), math.MaxInt32))
	for longest := e.longest.Load(); longest < seconds && !e.longest.CompareAndSwap(longest, seconds); longest = e.longest.Load() {
	}
}

// noteLives writes into the control record, where it outlives the gateway, the longest life that this one has seen. Of
// gateways that were given different lifetimes the longest is waited for, whoever runs the pass.
func (e *Engine) noteLives(ctx context.Context, c *Control) error {
	note := func(c *Control) error {
		c.Longest = max(c.Longest, e.longest.Load())
		if j := &c.Reconcile; !c.Reconciled && !j.Until.IsZero() && j.wait() < e.opt.Lifetime {
			j.Until = j.Started.Add(e.opt.Lifetime)
		}
		return nil
	}
	if next := *c; note(&next) != nil || next.Longest == c.Longest && next.Reconcile == c.Reconcile {
		return nil
	}
	_, err := updateControl(ctx, e.flow, note)
	return err
}

// wait is how long the pass over an origin that cannot be listed takes at least.
func (j *Job) wait() time.Duration { return j.Until.Sub(j.Started) }

// lifetimeGate says whether a wait of that length in sync is long enough.
func (e *Engine) lifetimeGate(c *Control, wait time.Duration) Gate {
	g := Gate{Name: "lifetime", Remedy: "--lifetime: how long a session lives that nobody uses, as it is known when sync is entered"}
	longest := time.Duration(max(c.Longest, e.longest.Load())) * time.Second
	switch {
	case wait <= 0:
		g.Hard, g.Value = true, "not known, and the origin cannot be listed"
	case longest > wait+store.DeadlineSlack:
		g.Value = fmt.Sprintf("%v, and there are sessions that live for %v", wait, longest)
	default:
		g.Open, g.Value = true, fmt.Sprintf("%v: sync takes at least that long", wait)
	}
	return g
}

// outlive waits until what nobody has used since the step into sync has ended, by the target's clock: the gateways' may
// differ.
func (e *Engine) outlive(ctx context.Context, point *checkpoint, until time.Time) error {
	for {
		if err := point.at(ctx, "target", "", 0); err != nil {
			return err
		}
		e.mu.Lock()
		left := until.Sub(e.auth.leaseLast)
		if c := e.auth.control; c != nil { // another gateway may know of a longer lifetime
			left = max(left, c.Reconcile.Until.Sub(e.auth.leaseLast))
		}
		e.mu.Unlock()
		if left <= 0 {
			return nil
		}
		if !sleep(ctx, min(time.Second, max(left, 10*time.Millisecond))) {
			return ctx.Err()
		}
	}
}

// bring makes the target hold a session that was read in sync, without making anybody wait for it. One that nobody
// brought is brought by the next touch, or write, that is waited for.
func (e *Engine) bring(key string) {
	if e.stats.bringing.Add(1) > 32 || !e.spawn(func() {
		defer e.stats.bringing.Add(-1)
		ctx, cancel := context.WithTimeout(e.life, 2*e.opt.Times.Marker)
		defer cancel()
		n, m, err := e.flow.LoadMarked(ctx, key)
		if err != nil || n != nil || m.Kind == store.Intent || m.Kind == store.AheadOf {
			return
		}
		if err := e.under(ctx, func(p Phase) bool { return p == Sync }, func(ctx context.Context, a authority) error {
			return e.reconcileKey(ctx, a, key, false)
		}); err == nil {
			e.stats.brought.Add(1)
		}
	}) {
		e.stats.bringing.Add(-1)
	}
}
