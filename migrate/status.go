package migrate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// Status is what `sessile migrate status` shows.
type Status struct {
	Workflow   string           `json:"workflow"`
	Exists     bool             `json:"exists"`
	Phase      Phase            `json:"phase"`
	Epoch      uint64           `json:"epoch"`
	Step       string           `json:"step"` // "done", or what it waits for
	Reconciled bool             `json:"reconciled"`
	Floor      store.Floor      `json:"floor"`
	Serving    string           `json:"serving"` // what this gateway does now: "yes", or why it holds
	Gateways   []GatewayStatus  `json:"gateways"`
	Backfill   Job              `json:"backfill"`
	Reconcile  Job              `json:"reconcile"`
	Diff       *DiffEnd         `json:"diff"`
	Debt       Debt             `json:"debt"`
	Gates      []Gate           `json:"gates"`    // of the next step up, as far as they are known without looking
	MaxLoad    int              `json:"max_load"` // percent; 0: no bound
	Times      Times            `json:"times"`
	Log        []LogEntry       `json:"log,omitempty"`
	Counters   map[string]int64 `json:"counters"`
	Problem    string           `json:"problem,omitempty"` // what could not be asked
}

// GatewayStatus is one gateway of the fleet.
type GatewayStatus struct {
	Name     string `json:"name"`
	LeaseMS  int64  `json:"lease_ms"` // left; 0 or less: over
	Adopted  uint64 `json:"adopted"`
	Draining int    `json:"draining"`
	Here     bool   `json:"here,omitempty"`
}

// Debt is what is unsettled.
type Debt struct {
	Intents  int   `json:"intents"`
	Aheads   int   `json:"aheads"`
	OldestMS int64 `json:"oldest_ms"` // how long the oldest dead marker has been dead; 0: none is
}

// Status reports on the workflow. What cannot be asked is in Problem.
func (e *Engine) Status(ctx context.Context) Status {
	st := Status{Workflow: e.opt.Workflow, Step: "done", Serving: "yes", Times: e.opt.Times, Counters: e.Counters(), MaxLoad: e.maxLoad(),
		Gateways: []GatewayStatus{}, Gates: []Gate{}}
	if _, err := e.current(); err != nil {
		st.Serving = err.Error()
	}
	e.mu.Lock()
	known := e.auth.control
	st.Floor = e.auth.mark.Seal.Floor
	e.mu.Unlock()
	c, err := readControl(ctx, e.flow)
	if err != nil {
		st.Problem = fmt.Sprintf("the target cannot be asked: %v", err)
		c = known
	}
	if c == nil {
		return st
	}
	st.Exists, st.Phase, st.Epoch, st.Reconciled = true, c.Phase, c.Epoch, c.Reconciled
	st.Backfill, st.Reconcile, st.Diff, st.Times, st.Log = c.Backfill, c.Reconcile, c.Diff, c.Times, c.Log
	if err != nil {
		return st
	}
	if !c.Done {
		st.Step = "waiting for every gateway to adopt epoch " + fmt.Sprint(c.Epoch)
	}
	if w := e.waitsFor.Load(); w != nil {
		st.Step = *w
	}
	if leases, err := e.flow.Leases(ctx); err == nil {
		for _, l := range leases {
			var r report
			_ = json.Unmarshal(l.Info, &r)
			st.Gateways = append(st.Gateways, GatewayStatus{l.Gateway, l.Left.Milliseconds(), r.Adopted, r.Running, l.Gateway == e.opt.Gateway})
		}
	}
	if u, err := e.flow.Unsettled(ctx, 0); err == nil {
		st.Debt = Debt{u.Intents, u.Aheads, max(0, u.Oldest.Milliseconds())}
	}
	if c.Phase < Complete {
		if gates, err := e.gates(ctx, c, c.Phase+1, StepOptions{}, false); err == nil {
			st.Gates = gates
		}
	}
	return st
}

// Plan is what `sessile migrate plan` shows: what the move means, before anything is written.
type Plan struct {
	Workflow   string           `json:"workflow"`
	Sessions   int64            `json:"sessions"` // in the origin
	Overdue    int64            `json:"overdue"`  // of the sample, past their deadline and not collected: they end with the step into live
	Sampled    int64            `json:"sampled"`
	MeanBytes  int64            `json:"mean_bytes"`
	MaxBytes   int64            `json:"max_bytes"`
	Formats    map[string]int64 `json:"formats"` // of the sample's bodies
	Origin     []string         `json:"origin"`  // what it was taken for
	Skipped    map[string]int64 `json:"skipped"` // by reason: what lies there and is no session
	TargetOK   bool             `json:"target_ok"`
	TargetKeys int64            `json:"target_keys"` // sessions of this site that the target holds already
	Times      Times            `json:"times"`
	Stalls     []string         `json:"stalls"`
	Require    []string         `json:"require"`
	Advise     []string         `json:"advise"`
	Blockers   []string         `json:"blockers"`
	Gates      []Gate           `json:"gates"`
	Ladder     []string         `json:"ladder"`
}

// Plan looks at both stores and writes nothing.
func (e *Engine) Plan(ctx context.Context) (Plan, error) {
	p := Plan{Workflow: e.opt.Workflow, Times: e.opt.Times, Formats: map[string]int64{}, Skipped: map[string]int64{},
		Origin: []string{}, Stalls: []string{}, Require: []string{}, Advise: []string{}, Blockers: []string{}, Gates: []Gate{}}
	t := p.Times
	p.Stalls = append(p.Stalls,
		fmt.Sprintf("a step: none; the step into sync takes at least %v, while everything goes on", t.Gateway),
		fmt.Sprintf("the target away in sync or live: requests are held for at most %v, then the origin serves alone", t.Gateway+t.RetreatAfter+t.Gateway),
		"the target away in ramp-down or complete: requests are held, then fail, until it is back",
		fmt.Sprintf("the origin slow: an operation on it is given up after %v", t.Bound),
	)
	p.Advise = append(p.Advise, "`complete` only after a few session lifetimes in ramp-down")
	p.Ladder = []string{"create", "switchtraffic --to dual-write", "switchtraffic --to sync", "switchtraffic --to live", "switchtraffic --to ramp-down", "complete"}

	var found store.Findings
	if e.opt.OriginCheck != nil {
		var err error
		found, err = e.opt.OriginCheck(ctx)
		if err != nil {
			return p, fmt.Errorf("the origin cannot be asked: %w", err)
		}
		if len(found.Against) > 0 {
			for i := range p.Ladder {
				p.Ladder[i] += ": not possible while something is in the way"
			}
		}
		p.Origin, p.Blockers, p.Advise = found.Facts, append(p.Blockers, found.Against...), append(p.Advise, found.Advice...)
	}
	if !e.listed() {
		p.Advise = append(p.Advise, "the origin cannot be listed: no backfill, and nobody sees what it alone has. Give this process the right to list it, or stay a whole lifetime in sync, "+
			"where what is used comes over, and the rest ends by itself")
		if g := e.lifetimeGate(&Control{}, e.opt.Lifetime); !g.Open {
			p.Blockers = append(p.Blockers, g.Name+": "+g.Value+" ("+g.Remedy+")")
		}
	} else {
		now, cursor := time.Now(), ""
		var bytes int64
		for {
			page, err := e.scan(ctx, e.origin, cursor, pageSize)
			if err != nil {
				return p, fmt.Errorf("the origin cannot be listed: %w", err)
			}
			p.Sessions += int64(len(page.Keys))
			for reason, n := range page.Skipped {
				p.Skipped[reason] += int64(n)
			}
			for _, key := range page.Keys {
				if p.Sampled >= 1000 {
					break
				}
				var rec store.Record
				err := e.inTurn(ctx, func() (err error) {
					defer e.opened(time.Now())
					rec, err = e.origin.Inspect(ctx, key)
					return err
				})
				if errors.Is(err, store.ErrAbsent) {
					continue
				}
				var refused *store.RefusedError
				switch {
				case errors.As(err, &refused):
					p.Skipped[refused.Reason]++
					continue
				case err != nil:
					p.Skipped["not readable"]++
					continue
				}
				p.Sampled++
				bytes += int64(len(rec.Data))
				p.MaxBytes = max(p.MaxBytes, int64(len(rec.Data)))
				if !rec.Expires.After(now) {
					p.Overdue++
				}
				p.Formats[format(rec.Data)]++
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		if p.Sampled > 0 {
			p.MeanBytes = bytes / p.Sampled
		}
	}
	if found.Require != nil {
		p.Require = append(p.Require, found.Require...)
	} else if e.opt.OriginCheck == nil || p.Formats["php"]+p.Formats["php_serialize"]+p.Formats["php_binary"]+p.Formats["igbinary"]+p.Formats["msgpack"] > 0 {
		p.Require = append(p.Require,
			"every application server uses the same session.serialize_handler",
			"redis.session.compression is off (bodies are copied as they are)",
			"session.gc_maxlifetime equals the origin's lifetime=")
		p.Advise = append(p.Advise, "redis.session.locking_enabled=1 where the origin's sessions are locked: applications may rely on it")
	} else {
		p.Require = append(p.Require, "every application server writes sessions in the same form, and gives the lifetime that the origin's sessions have")
	}
	if e.listed() && p.Sessions == 0 && len(p.Blockers) == 0 {
		p.Advise = append(p.Advise, "the origin holds no session at all: is it the right place (another path inside a container or chroot)?")
	}
	if p.Overdue > 0 {
		p.Advise = append(p.Advise, fmt.Sprintf("%d of %d sampled sessions are past their deadline and not collected; they end with the step into live: raise lifetime= to keep them", p.Overdue, p.Sampled))
	}
	n, err := e.ownKeys(ctx, 100000, nil)
	if err != nil {
		p.Blockers = append(p.Blockers, fmt.Sprintf("the target cannot be asked: %v", err))
	} else {
		p.TargetOK, p.TargetKeys = true, int64(n)
		e.healthGates(ctx, func(g Gate) { p.Gates = append(p.Gates, g) })
		for _, g := range p.Gates {
			if !g.Open {
				p.Blockers = append(p.Blockers, g.Name+": "+g.Value+" ("+g.Remedy+")")
			}
		}
	}
	c, err := readControl(ctx, e.flow)
	switch {
	case err != nil:
	case c != nil:
		p.Advise = append(p.Advise, fmt.Sprintf("workflow %s exists already, in phase %s", c.Workflow, c.Phase))
	case p.TargetKeys > 0:
		p.Blockers = append(p.Blockers, fmt.Sprintf("the target holds %d sessions of this site that no workflow put there", p.TargetKeys))
	}
	if err := e.alone(ctx); err != nil && p.TargetOK {
		p.Blockers = append(p.Blockers, err.Error())
	}
	mark, err := e.origin.Mark(ctx)
	switch {
	case err != nil:
		p.Blockers = append(p.Blockers, fmt.Sprintf("the origin's identity and seal cannot be read: %v", err))
	case c == nil && mark.Seal.Floor != store.FloorNone:
		p.Blockers = append(p.Blockers, fmt.Sprintf("the origin is sealed (floor %s) by workflow %q, which this target does not know", mark.Seal.Floor, mark.Seal.Workflow))
	}
	return p, nil
}

// format guesses what wrote a body, for the plan: a mixture means that not every server has the same settings. The
// bytes are never interpreted otherwise.
func format(b []byte) string {
	switch {
	case len(b) == 0:
		return "empty"
	case len(b) > 4 && string(b[:4]) == "\x00\x00\x00\x02":
		return "igbinary"
	case len(b) > 2 && (b[0] == 'a' || b[0] == 'O' || b[0] == 's') && b[1] == ':':
		return "php_serialize"
	case len(b) > 2 && b[0] == 'B' && b[1] == 'Q': // 05 0b, 05 0a, 05 09
		return "Perl's Storable in Base64"
	case b[0] == '{' || b[0] == '[':
		return "json"
	case b[0] < 0x20:
		return "php_binary"
	case b[0] >= 0x80:
		return "msgpack"
	}
	if bytes.IndexByte(b, '|') >= 0 {
		return "php"
	}
	return "other"
}

// Repair is a person's decision where the protocol has none. Without use it settles what is dead and changes nothing
// else.
//
// use "origin": the target is lost under floor ramp-down. The origin serves, with what it has: writes that had not
// reached it are gone, and logouts that had not are undone. use "target": go on with what the target holds. Both are also
// for an origin that has come back without its memory, or with an older one.
func (e *Engine) Repair(ctx context.Context, use string, opt StepOptions) error {
	e.stepping.Lock()
	defer e.stepping.Unlock()
	switch use {
	case "":
		n, err := e.sweep(ctx)
		if err != nil {
			return err
		}
		opt.say("settled %d sessions", n)
		return nil
	case "origin", "target":
	default:
		return &UsageError{"--use takes origin or target"}
	}
	if opt.Reason == "" {
		return &UsageError{"--use needs --reason: it is recorded"}
	}
	mark, err := e.origin.Mark(ctx)
	if err != nil {
		return err
	}
	e.mu.Lock()
	known, seen := e.auth.control, e.auth.mark
	e.mu.Unlock()
	if mark.Identity == "" || mark.Identity == seen.Identity && mark.Seal.Epoch < seen.Seal.Epoch {
		return e.repairOrigin(ctx, mark, seen, use, opt)
	}
	if mark.Seal.Floor != store.FloorRampDown {
		return &UsageError{fmt.Sprintf("the origin's floor is %s: the gateways find their way back by themselves", mark.Seal.Floor)}
	}
	if a, err := e.current(); err == nil && a.lease {
		return &UsageError{"this gateway has a lease in the target and serves: there is nothing to decide"}
	}
	if known != nil && known.Purged {
		return &UsageError{"the move is complete: the target alone has the sessions, and what the origin has is old"}
	}
	if opt.DryRun {
		opt.say("would go on with the %s", use)
		return nil
	}
	if use == "origin" {
		next := mark
		next.Seal.Floor = store.FloorRetreat
		if err := e.origin.SwapMark(ctx, mark, next); err != nil {
			return err
		}
		e.refreshMark(ctx)
		e.alarm("a person decided: the origin serves", "reason", opt.Reason)
		opt.say("the origin serves in %v; when the target is back, the workflow goes on in dual-write", e.opt.Times.Gateway)
		return nil
	}
	c, err := readControl(ctx, e.flow)
	if err != nil {
		return err
	}
	phase := RampDown
	if known != nil {
		phase = max(known.Phase, RampDown)
	} else if c != nil {
		phase = max(c.Phase, RampDown)
	}
	if err := e.toDualWrite(ctx, c, phase, "a person decided: "+opt.Reason); err != nil {
		return err
	}
	e.mu.Lock()
	e.auth.lostSince = time.Time{}
	e.mu.Unlock()
	e.renewNowAndWait(ctx)
	if c, err = readControl(ctx, e.flow); err != nil {
		return err
	}
	_, err = e.awaitStep(ctx, c, opt)
	return err
}

// repairOrigin is Repair for an origin that has no mark any more, or an older one: was, where seen was before.
func (e *Engine) repairOrigin(ctx context.Context, was, seen store.Mark, use string, opt StepOptions) error {
	c, err := readControl(ctx, e.flow)
	switch {
	case err != nil:
		return err
	case c == nil && use == "origin" && seen.Identity != "" && seen.Seal.Workflow == "" && was.Seal.Workflow == "":
		return e.renewIdentity(ctx, was, seen, opt) // its move was cancelled
	case c == nil || c.Phase == Complete || seen.Identity != "" && seen.Identity != c.Identity:
		return &UsageError{"no workflow goes by this origin: there is nothing to decide"}
	case use == "target" && c.Phase < Live:
		return &UsageError{fmt.Sprintf("the workflow is in phase %s, in which the target does not decide anything yet: bring the origin back with its data, or --use origin", c.Phase)}
	case opt.DryRun:
		opt.say("would go on with the %s", use)
		return nil
	}
	mark := store.Mark{Identity: c.Identity, Seal: store.Seal{Workflow: c.Workflow, Epoch: max(c.Epoch, seen.Seal.Epoch), Floor: store.FloorRetreat}}
	if use == "target" {
		// To ramp-down, where nobody asks the origin; and since it lacks most of what it had, the way down begins with a diff.
		// C first: a run that is killed behind it finds no mark, and begins again.
		if c, err = updateControl(ctx, e.flow, func(now *Control) error {
			if now.Epoch != c.Epoch {
				return errOvertaken
			}
			now.Epoch, now.From, now.Phase, now.Done = mark.Seal.Epoch+1, now.Phase, RampDown, false
			now.Reconciled, now.Diff = false, nil
			now.note(LogEntry{What: "to " + RampDown.String(), By: e.opt.Gateway, Reason: "a person decided: " + opt.Reason})
			return nil
		}); err != nil {
			return err
		}
		mark.Seal.Epoch, mark.Seal.Floor = c.Epoch, store.FloorRampDown
	}
	if err := e.origin.SwapMark(ctx, was, mark); err != nil {
		return err
	}
	e.refreshMark(ctx)
	e.alarm("a person decided: the "+use+" serves", "reason", opt.Reason)
	if use == "origin" {
		opt.say("the origin serves, with what it has, in %v; the workflow goes on in dual-write", e.opt.Times.Gateway)
		return nil
	}
	_, err = e.awaitStep(ctx, c, opt)
	return err
}

// renewIdentity is repairOrigin where the origin is nobody's: the gateways that miss its identity go on with another one.
func (e *Engine) renewIdentity(ctx context.Context, was, seen store.Mark, opt StepOptions) error {
	if opt.DryRun {
		opt.say("would go on with the origin")
		return nil
	}
	mark := store.Mark{Identity: rand.Text(), Seal: store.Seal{Epoch: max(was.Seal.Epoch, seen.Seal.Epoch)}}
	if err := e.origin.SwapMark(ctx, was, mark); err != nil {
		return err
	}
	e.refreshMark(ctx)
	e.alarm("a person decided: the origin serves", "reason", opt.Reason)
	opt.say("the origin serves, with what it has")
	return nil
}
