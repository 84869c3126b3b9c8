package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

// Exit codes of the command line, which an answer carries, too.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
	ExitClosed = 3 // mismatches found, or gates closed
	ExitBlind  = 4 // could not look
)

// Request is the body of a command. Durations are written like 30s.
type Request struct {
	To        string `json:"to,omitempty"` // a phase; "": one step
	DryRun    bool   `json:"dry_run,omitempty"`
	Force     bool   `json:"force,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Soak      string `json:"soak,omitempty"`
	Window    string `json:"window,omitempty"`    // of the watch for foreign writers
	Timeout   string `json:"timeout,omitempty"`   // "": as long as there is progress
	Rate      int    `json:"rate,omitempty"`      // of start: sessions a second; negative: no limit
	MaxLoad   int    `json:"max_load,omitempty"`  // of start: percent; negative: no bound
	Use       string `json:"use,omitempty"`       // of repair: origin or target
	Gateway   string `json:"gateway,omitempty"`   // of forget-gateway
	Repair    bool   `json:"repair,omitempty"`    // of diff
	Rounds    int    `json:"rounds,omitempty"`    // of diff
	Tolerance string `json:"tolerance,omitempty"` // of diff
}

// Line is one line of a command's answer: what goes on (Say), and at last how it ended (Done or Error). An answer
// without a last line was cut off; the command can be run again.
type Line struct {
	Say string `json:"say,omitempty"`

	Done   bool                `json:"done,omitempty"`
	Error  string              `json:"error,omitempty"`
	Exit   int                 `json:"exit,omitempty"`
	Gates  []migrate.Gate      `json:"gates,omitempty"` // of the step that they keep closed
	Status *migrate.Status     `json:"status,omitempty"`
	Target *TargetStatus       `json:"target,omitempty"`
	Diff   *migrate.DiffReport `json:"diff,omitempty"`
}

// call is a command that is being run.
type call struct {
	Request
	*Site
	step migrate.StepOptions
}

const stepFields = "dry_run force reason soak window timeout"

// commands are those that a POST runs, with the fields that they take.
var commands = map[string]struct {
	fields string
	run    func(ctx context.Context, c *call, end *Line) error
}{
	"migrate/create":         {"dry_run timeout", func(ctx context.Context, c *call, _ *Line) error { return c.Engine.Create(ctx, c.step) }},
	"migrate/switchtraffic":  {"to " + stepFields, func(ctx context.Context, c *call, _ *Line) error { return c.walk(ctx, c.Engine.SwitchTraffic, +1) }},
	"migrate/reversetraffic": {"to " + stepFields, func(ctx context.Context, c *call, _ *Line) error { return c.walk(ctx, c.Engine.ReverseTraffic, -1) }},
	"migrate/complete":       {stepFields, func(ctx context.Context, c *call, _ *Line) error { return c.Engine.Complete(ctx, c.step) }},
	"migrate/cancel":         {stepFields, func(ctx context.Context, c *call, _ *Line) error { return c.Engine.Cancel(ctx, c.step) }},
	"migrate/repair":         {"use reason dry_run timeout", func(ctx context.Context, c *call, _ *Line) error { return c.Engine.Repair(ctx, c.Use, c.step) }},
	"migrate/forget-gateway": {"gateway timeout", func(ctx context.Context, c *call, _ *Line) error {
		if c.Request.Gateway == "" {
			return &migrate.UsageError{Text: "which gateway?"}
		}
		return c.Engine.ForgetGateway(ctx, c.Request.Gateway)
	}},
	"migrate/start": {"rate max_load timeout", func(ctx context.Context, c *call, _ *Line) error {
		said, err := c.Engine.Start(ctx, c.Rate, c.MaxLoad)
		return c.said(said, err)
	}},
	"migrate/stop": {"timeout", func(ctx context.Context, c *call, _ *Line) error {
		said, err := c.Engine.Stop(ctx)
		return c.said(said, err)
	}},
	"migrate/diff": {"repair rounds tolerance timeout", func(ctx context.Context, c *call, end *Line) error { return c.diff(ctx, end) }},

	"target/refill": {"reason", func(ctx context.Context, c *call, _ *Line) error { return c.decide(ctx, c.Target.Refill) }},
	"target/accept": {"reason", func(ctx context.Context, c *call, _ *Line) error { return c.decide(ctx, c.Target.AcceptEmpty) }},
}

func (c *call) said(text string, err error) error {
	if err == nil {
		c.step.Say(text)
	}
	return err
}

// walk takes the workflow to the phase that was asked for, or one step on.
func (c *call) walk(ctx context.Context, f func(context.Context, migrate.Phase, migrate.StepOptions) error, direction int) error {
	if c.To != "" {
		to, err := migrate.ParsePhase(c.To)
		if err != nil {
			return &migrate.UsageError{Text: err.Error()}
		}
		return f(ctx, to, c.step)
	}
	st := c.Engine.Status(ctx)
	to := int(st.Phase) + direction
	for _, g := range st.Gateways {
		if st.Step != "done" && g.LeaseMS > 0 && g.Adopted < st.Epoch {
			to = int(st.Phase) // the step that is under way is the one that is meant
		}
	}
	if to < int(migrate.Off) || to > int(migrate.Complete) {
		return &migrate.UsageError{Text: fmt.Sprintf("the workflow is in phase %s: there is no further step", st.Phase)}
	}
	return f(ctx, migrate.Phase(to), c.step)
}

func (c *call) diff(ctx context.Context, end *Line) error {
	tolerance, err := duration(c.Tolerance)
	if err != nil {
		return err
	}
	if c.Rounds < 0 || c.Rounds > 100 {
		return &migrate.UsageError{Text: "1 to 100 rounds are possible"}
	}
	report, err := c.Engine.Diff(ctx, migrate.DiffOptions{Repair: c.Repair, Rounds: c.Rounds, Tolerance: tolerance, Say: c.step.Say})
	if err != nil {
		return err
	}
	end.Diff = &report
	if report.Differences() > 0 {
		end.Exit = ExitClosed
	}
	return nil
}

func duration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, &migrate.UsageError{Text: fmt.Sprintf("%+q: a duration above 0 is wanted, such as 30s or 5m", s)}
	}
	return d, nil
}

// exitOf is the exit code that err stands for. Where ctx has ended, its end is what failed, whatever it was called on
// the way.
func exitOf(ctx context.Context, err error) int {
	var gates *migrate.GateError
	var usage *migrate.UsageError
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &usage):
		return ExitUsage
	case ctx.Err() != nil: // gates that had no time to be looked at are closed, too
		return ExitFailed
	case errors.As(err, &gates), errors.Is(err, errNotForgotten):
		return ExitClosed
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrUnknown):
		return ExitBlind
	}
	return ExitFailed
}

// command runs one command and streams what it says. The command ends when the client goes away.
func (s *Server) command(w http.ResponseWriter, r *http.Request, site *Site, name string) {
	cmd := commands[name]
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	req, err := readRequest(r, cmd.fields)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		fail(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return
	case err != nil:
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	c := &call{Request: req, Site: site, step: migrate.StepOptions{Force: req.Force, Reason: req.Reason, DryRun: req.DryRun}}
	var timeout time.Duration
	for _, d := range []struct {
		text string
		into *time.Duration
	}{{req.Soak, &c.step.Soak}, {req.Window, &c.step.Window}, {req.Timeout, &timeout}} {
		if *d.into, err = duration(d.text); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
	}

	ctx, cancel := s.with(r.Context())
	defer cancel()
	if timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, timeout)
		defer stop()
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // for the rest of the request, which is to see the client go away
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()

	var mu sync.Mutex // guards w and last
	last := ""
	send := func(l Line) {
		mu.Lock()
		defer mu.Unlock()
		last = cmp.Or(l.Say, last)
		_ = control.SetWriteDeadline(time.Now().Add(writeTime))
		if err := errors.Join(json.NewEncoder(w).Encode(l), control.Flush()); err != nil {
			giveUp(errors.New("the client does not listen"))
		}
	}
	c.step.Say = func(text string) { send(Line{Say: text}) }
	var wg sync.WaitGroup
	ended := make(chan struct{})
	if timeout == 0 {
		wg.Go(func() {
			err := c.stalled(ctx, ended, func() string { mu.Lock(); defer mu.Unlock(); return last })
			if err != nil {
				giveUp(err)
			}
		})
	}

	log := s.log.With("site", site.Name, "command", name)
	if req.Reason != "" {
		log.Info("a command begins", "reason", req.Reason)
	}
	start := time.Now()
	end := Line{Done: true}
	err = cmd.run(ctx, c, &end)
	close(ended)
	wg.Wait()
	switch {
	case err != nil:
		end = Line{Error: err.Error(), Exit: exitOf(ctx, err)}
		var gates *migrate.GateError
		if errors.As(err, &gates) {
			end.Gates = gates.Gates
		}
		switch cause := context.Cause(ctx); {
		case end.Exit != ExitFailed || cause == nil:
		case errors.Is(cause, context.DeadlineExceeded):
			end.Error = fmt.Sprintf("not done within %v: %v", timeout, err)
		case !errors.Is(cause, context.Canceled):
			end.Error = fmt.Sprintf("%v: %v", cause, err)
		}
	case strings.HasPrefix(name, "target/"):
		st := site.Target.Status()
		end.Target = &st
	case name != "migrate/diff":
		st := site.Engine.Status(ctx)
		end.Status = &st
	}
	log.Info("a command has ended", "exit", end.Exit, "took", time.Since(start).Round(time.Millisecond))
	send(end)
}

// stallTime is how long a command may wait without any progress. Leases are over long before.
var stallTime = 2 * time.Minute

// stalled returns an error when the command has waited for stallTime and nothing moved meanwhile. It looks only at what
// the command waits for: work, such as comparing both stores, takes as long as it takes, and so does a soak time.
func (c *call) stalled(ctx context.Context, ended <-chan struct{}, last func() string) error {
	patience := stallTime + c.step.Soak
	tick := time.NewTicker(min(time.Second, stallTime/4))
	defer tick.Stop()
	since, before := time.Now(), ""
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !strings.HasPrefix(last(), "waiting") {
			since = time.Now()
			continue
		}
		st, err := c.recent(ctx)
		now := fmt.Sprint(st.Phase, st.Epoch, st.Backfill.Seen, st.Reconcile.Seen, st.Backfill.State, st.Reconcile.State, st.Debt.Intents, st.Debt.Aheads, len(st.Gateways), err)
		// A pass over an origin that cannot be listed ends at a time that is known.
		if now != before || st.Phase == migrate.Sync && !st.Reconciled && time.Now().Before(st.Reconcile.Until.Add(time.Minute)) {
			since, before = time.Now(), now
		} else if time.Since(since) > patience {
			return fmt.Errorf("no progress for %v", patience)
		}
	}
}
