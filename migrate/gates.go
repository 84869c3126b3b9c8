package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// A Gate is one condition of a step, with its evidence.
type Gate struct {
	Name    string `json:"name"`
	Open    bool   `json:"open"`
	Waiting bool   `json:"waiting,omitempty"` // closed now, and waiting may open it
	Hard    bool   `json:"hard,omitempty"`    // the protocol's own condition: --force does not open it
	Value   string `json:"value"`             // the evidence
	Remedy  string `json:"remedy,omitempty"`
}

// TargetHealth is what the gates look at in the target's set-up. Empty fields are not known.
type TargetHealth struct {
	Version     string `json:"version"`
	Role        string `json:"role"`
	Eviction    string `json:"eviction"`    // maxmemory-policy
	MaxMemory   int64  `json:"max_memory"`  // bytes; 0: no limit
	UsedMemory  int64  `json:"used_memory"` // bytes
	Persistence string `json:"persistence"` // aof, rdb, none
	Evicted     int64  `json:"evicted_keys"`
}

// openGates returns when every gate of the step from c's phase to to is open. It waits for those that open by waiting,
// as long as they make progress or ctx lives.
func (e *Engine) openGates(ctx context.Context, c *Control, to Phase, opt StepOptions) ([]Gate, error) {
	said := ""
	defer e.waitsFor.Store(nil)
	for {
		gates, err := e.gates(ctx, c, to, opt, true)
		if err != nil {
			return nil, err
		}
		var closed, waiting int
		text := ""
		for _, g := range gates {
			switch {
			case g.Open || opt.Force && !g.Hard && !g.Waiting:
			case g.Waiting:
				waiting++
				text += "; " + g.Name + ": " + g.Value
			default:
				closed++
			}
		}
		if opt.DryRun {
			for _, g := range gates {
				state := map[bool]string{true: "open", false: "closed"}[g.Open]
				if !g.Open && g.Waiting {
					state = "waiting"
				}
				opt.say("  gate %-16s %-8s %s", g.Name, state, g.Value)
			}
			return gates, nil
		}
		if closed > 0 {
			if now, err := readControl(ctx, e.flow); err == nil && (now == nil || now.Epoch != c.Epoch) {
				return gates, errOvertaken // what was looked at was another phase
			}
			return gates, &GateError{to, gates}
		}
		if waiting == 0 {
			return gates, nil
		}
		if text != said {
			opt.say("waiting%s", text[1:])
			said = text
			e.waitsFor.Store(&text)
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return gates, fmt.Errorf("%w while waiting%s", ctx.Err(), text[1:])
		}
		now, err := readControl(ctx, e.flow)
		switch {
		case err != nil:
			return gates, err
		case now == nil:
			return gates, errNoWorkflow
		case now.Epoch != c.Epoch:
			return gates, errOvertaken // nobody works any more on what is waited for
		}
		c = now
	}
}

// gates evaluates the conditions of the step from c's phase to to. With gather it takes the evidence that costs time
// (a diff, a watch on the origin, a canary); without, it says what is known.
func (e *Engine) gates(ctx context.Context, c *Control, to Phase, opt StepOptions, gather bool) (gates []Gate, err error) {
	add := func(g Gate) { gates = append(gates, g) }
	leases, err := e.flow.Leases(ctx)
	if err != nil {
		return nil, err
	}
	living, blind, locksO, locksN := 0, 0, 0, 0
	strangers := ""
	for _, l := range leases {
		var r report
		if l.Left <= 0 || json.Unmarshal(l.Info, &r) != nil {
			continue
		}
		living++
		locksO += r.LocksO
		locksN += r.LocksN
		switch r.Identity {
		case c.Identity:
		case "":
			blind++ // has not looked yet
		default:
			strangers = l.Gateway
		}
	}
	add(Gate{Name: "gateways", Open: living > blind && blind == 0 && strangers == "", Hard: true, Waiting: strangers == "",
		Value:  fmt.Sprintf("%d with a lease", living) + map[bool]string{true: "; " + strangers + " sees another origin"}[strangers != ""],
		Remedy: "every gateway of a workflow must see the same origin"})
	up := to > c.Phase
	if up && to <= RampDown {
		e.healthGates(ctx, add)
	}
	switch {
	case to == DualWrite && up && e.opt.OriginCheck != nil && gather:
		found, err := e.opt.OriginCheck(ctx)
		add(Gate{Name: "origin", Open: err == nil && len(found.Against) == 0, Value: evidence(err, strings.Join(found.Against, "; ")),
			Remedy: "`sessile migrate plan` says more"})
	case to == Sync && up:
		e.gatesIntoSync(ctx, c, opt, gather, &gates, add)
	case to == Live && up:
		j, wait := c.Reconcile, ""
		if !e.listed() && !c.Reconciled {
			wait = fmt.Sprintf("; the origin cannot be listed: waiting until %s, when what nobody uses has ended by itself", j.Until.Format(time.RFC3339))
		}
		add(Gate{Name: "reconciled", Open: c.Reconciled, Hard: true, Waiting: j.State != jobPaused,
			Value:  fmt.Sprintf("%s: %d of about %d seen, %d copied%s", orNone(j.State), j.Seen, j.Total, j.Copied, wait),
			Remedy: "`sessile migrate start`"})
		if c.Reconciled && !j.Until.IsZero() {
			add(e.lifetimeGate(c, j.wait())) // who was away when sync was entered may have seen more since
		}
		add(Gate{Name: "overdue", Open: true,
			Value: fmt.Sprintf("%d sessions past their deadline, not collected yet, end with this step", j.Overdue)})
		if gather && c.Reconciled {
			err := e.canary(ctx)
			add(Gate{Name: "reverse path", Open: err == nil, Value: evidence(err, "a canary was written, read from the origin and destroyed"),
				Remedy: "see the error"})
		}
		add(e.soakGate(c, opt))
	case to == RampDown && up:
		u, err := e.flow.Unsettled(ctx, 0)
		if err != nil {
			return nil, err
		}
		dead := u.Intents > 0 && u.Oldest > 0
		add(Gate{Name: "reconciled", Open: c.Reconciled, Hard: true, Value: fmt.Sprint(c.Reconciled)})
		add(Gate{Name: "intents", Open: !dead, Waiting: true, Value: fmt.Sprintf("%d, the oldest dead for %v", u.Intents, max(0, u.Oldest))})
		add(Gate{Name: "locks", Open: locksO == 0, Hard: true, Waiting: true, Value: fmt.Sprintf("%d held in the origin alone", locksO)})
		add(e.soakGate(c, opt))
	case to == Complete:
		u, err := e.flow.Unsettled(ctx, 0)
		if err != nil {
			return nil, err
		}
		// An ahead that lives is under way: its propagator is waited for by the barrier. A dead one is debt.
		debt := u.Intents > 0 || u.Aheads > 0 && u.Oldest > 0
		add(Gate{Name: "debt", Open: !debt, Hard: true, Waiting: true,
			Value:  fmt.Sprintf("%d intents, %d ahead, the oldest dead for %v", u.Intents, u.Aheads, max(0, u.Oldest)),
			Remedy: "the origin has to take what it is owed; is it reachable?"})
		add(e.soakGate(c, opt))
	case to == Live && !up:
		if !c.Reconciled && !e.listed() {
			add(Gate{Name: "diff", Hard: true, Value: "the target has forgotten what the origin was owed, and the origin cannot be listed: who logged out would be logged in again",
				Remedy: "`sessile migrate complete`"})
		} else if !c.Reconciled && gather {
			// A person decided for a target that had forgotten what the origin was owed.
			d, err := e.Diff(ctx, DiffOptions{Repair: true})
			add(Gate{Name: "diff", Open: err == nil && d.Missing+d.Extra+d.Mismatch == 0, Hard: true,
				Value: evidence(err, fmt.Sprintf("%d compared: %d missing, %d extra, %d mismatched, %d brought to the origin",
					d.Compared, d.Missing, d.Extra, d.Mismatch, d.Repaired)),
				Remedy: "the origin has to take what the target holds; is it reachable?"})
		}
	case to == Sync && !up:
		u, err := e.flow.Unsettled(ctx, 0)
		if err != nil {
			return nil, err
		}
		mark, err := e.origin.Mark(ctx)
		if err != nil {
			return nil, err
		}
		// A seal above C's epoch is that of a step up which was never taken, and now never will be.
		behind := mark.Seal.Floor == store.FloorRampDown && mark.Seal.Epoch <= c.Epoch
		add(Gate{Name: "debt", Open: u.Aheads == 0 && !behind, Hard: true, Waiting: true,
			Value: fmt.Sprintf("%d ahead; floor %s", u.Aheads, mark.Seal.Floor), Remedy: "the origin has to take what it is owed; is it reachable?"})
	case to == DualWrite && !up:
		add(Gate{Name: "locks", Open: locksN == 0, Hard: true, Waiting: true, Value: fmt.Sprintf("%d held in the target alone", locksN)})
	}
	return gates, nil
}

func orNone(s string) string {
	if s == "" {
		return "not begun"
	}
	return s
}

func evidence(err error, fine string) string {
	if err != nil {
		return err.Error()
	}
	return fine
}

// soakGate waits until the phase is as old as was asked for.
func (e *Engine) soakGate(c *Control, opt StepOptions) Gate {
	since := c.Created
	if n := len(c.Log); n > 0 {
		since = c.Log[n-1].At
	}
	age := time.Since(since)
	return Gate{Name: "soak", Open: age >= opt.Soak, Waiting: true, Value: fmt.Sprintf("%v of %v", age.Truncate(time.Second), opt.Soak)}
}

func (e *Engine) healthGates(ctx context.Context, add func(Gate)) {
	if e.opt.TargetHealth == nil {
		return
	}
	h, err := e.opt.TargetHealth(ctx)
	if err != nil {
		add(Gate{Name: "target", Value: err.Error(), Remedy: "is the target reachable?"})
		return
	}
	add(Gate{Name: "target", Open: h.Role == "" || h.Role == "master", Value: "version " + h.Version + ", role " + h.Role,
		Remedy: "a replica takes no writes: name the primary"})
	add(Gate{Name: "eviction", Open: h.Eviction == "" || h.Eviction == "noeviction" || h.MaxMemory == 0,
		Value:  fmt.Sprintf("maxmemory-policy %s, maxmemory %d", h.Eviction, h.MaxMemory),
		Remedy: "CONFIG SET maxmemory-policy noeviction: an evicted session is a user logged out"})
	if h.MaxMemory > 0 {
		add(Gate{Name: "memory", Open: float64(h.UsedMemory) < 0.8*float64(h.MaxMemory),
			Value: fmt.Sprintf("%d of %d bytes used", h.UsedMemory, h.MaxMemory), Remedy: "raise maxmemory"})
	}
}

// gatesIntoSync asks for coverage, and for evidence that nobody writes the origin beside the gateways.
func (e *Engine) gatesIntoSync(ctx context.Context, c *Control, opt StepOptions, gather bool, gates *[]Gate, add func(Gate)) {
	j, unseen := c.Backfill, ""
	done := j.State == jobDone || !e.listed()
	if !e.listed() {
		add(Gate{Name: "backfill", Open: true, Value: "none, since the origin cannot be listed: sessions come over as they are used"})
		add(e.lifetimeGate(c, e.opt.Lifetime))
		unseen = " of those that the target holds, too (the origin cannot be listed: the others are not seen)"
	} else {
		add(Gate{Name: "backfill", Open: done, Waiting: !done && j.State != jobPaused,
			Value:  fmt.Sprintf("%s: %d of about %d seen, %d copied, %d that cannot be moved", orNone(j.State), j.Seen, j.Total, j.Copied, j.Failed),
			Remedy: "`sessile migrate start`"})
	}
	if !gather || !done {
		return
	}
	for _, g := range *gates {
		if !g.Open && !(opt.Force && !g.Hard) {
			return // no need to look further
		}
	}
	window := opt.Window
	if window <= 0 {
		window = 3 * time.Second
	}
	opt.say("watching the origin for foreign writers (%v), comparing both stores", window)
	audit := e.audit(ctx)
	f, err := e.foreignWriters(ctx, max(window, opt.Soak))
	audit(add)
	add(Gate{Name: "foreign writers", Open: err == nil && f.Changed+f.Unknown+f.Vanished == 0,
		Value: evidence(err, fmt.Sprintf("%d sessions%s watched for %v: %d written, %d removed by somebody else, %d locked or not readable all the time",
			f.Watched, unseen, f.Window, f.Changed, f.Vanished, f.Unknown)),
		Remedy: "point every application server at the gateway, then lock the origin against the rest (docs/php.md, docs/sql.md, docs/redis.md: \"lock-out\")"})
	d, err := e.Diff(ctx, DiffOptions{Repair: true})
	add(Gate{Name: "diff", Open: err == nil && d.Differences() == 0,
		Value: evidence(err, fmt.Sprintf("%d%s compared: %d missing, %d extra, %d mismatched, %d that cannot be moved, %d overdue, %d copied again",
			d.Compared, unseen, d.Missing, d.Extra, d.Mismatch, d.Unfit, d.Overdue, d.Repaired)),
		Remedy: "`sessile migrate diff` shows them and says why; does somebody else write to one of the stores?"})
}

// audit asks the origin's server, until the returned function is called, who else uses the sessions.
func (e *Engine) audit(ctx context.Context) (end func(add func(Gate))) {
	o, ok := e.origin.(store.Auditor)
	if !ok {
		return func(func(Gate)) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan Gate, 1)
	go func() {
		a, err := o.Audit(ctx)
		value := fmt.Sprintf("writers: %s; readers: %s", among(a.Writers), among(a.Readers))
		if a.Blind != "" {
			value += "; " + a.Blind
		}
		done <- Gate{Name: "audit", Open: err == nil && len(a.Writers) == 0, Value: evidence(err, value),
			Remedy: "point them at the gateway, or lock them out (docs/sql.md, docs/redis.md: \"lock-out\")"}
	}()
	return func(add func(Gate)) {
		cancel()
		add(<-done)
	}
}

// among shows the first few of many.
func among(lines []string) string {
	switch n := len(lines); {
	case n == 0:
		return "none seen"
	case n > 5:
		return fmt.Sprintf("%s and %d more", strings.Join(lines[:5], ", "), n-5)
	}
	return strings.Join(lines, ", ")
}

// canary proves the way back before the target answers reads: a session that is written through the engine lies in the
// origin, too, and is gone from both when it is destroyed.
func (e *Engine) canary(ctx context.Context) error {
	op := e.op(authority{})
	key, data := "sessile-canary-"+op.Nonce, []byte("canary")
	if !e.opt.OwnsKey(key) {
		key = op.Nonce
	}
	if p, ok := e.origin.(store.Prover); ok {
		key, data = p.Canary()
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rec := store.Record{Data: data, Expires: time.Now().Add(time.Minute)}
	if err := e.Save(ctx, key, rec, store.IfAbsent); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	for name, s := range map[string]store.Store{"origin": e.origin, "target": e.target} {
		got, err := s.Load(ctx, key)
		if err != nil || string(got.Data) != string(data) {
			return fmt.Errorf("reading it from the %s: %q, %w", name, got.Data, errors.Join(err, errors.New("not what was written")))
		}
	}
	if existed, err := e.Delete(ctx, key, store.Always); err != nil || !existed {
		return fmt.Errorf("destroying: existed %v, %w", existed, err)
	}
	for name, s := range map[string]store.Store{"origin": e.origin, "target": e.target} {
		if _, err := s.Load(ctx, key); !errors.Is(err, store.ErrAbsent) {
			return fmt.Errorf("after destroying, in the %s: %w", name, errors.Join(err, errors.New("still there")))
		}
	}
	return nil
}
