package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

func (m *moving) plan() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Look at both stores and say what the move means; nothing is written",
		Long: `Look at both stores and say what the move means. Nothing is written.

It asks the gateway, or, with --origin and --target, the stores themselves. Exit code
3 means that something is in the way, 4 that one of them could not be asked.`,
	}
	own := []string{"origin", "target", "origin-key", "target-key", "lifetime", "bound", "workflow", "max-value", "max-load"}
	m.flags = addSettings(cmd, func(s config.Setting) bool { return isAdmin(s) || oneOfNames(own...)(s) })
	return m.leaf(cmd, func(ctx context.Context, _ []string) error {
		local := slices.ContainsFunc(own, func(name string) bool { return m.flags[name].values != nil })
		ask := m.askGateway
		if local {
			ask = m.look
		}
		plan, raw, err := ask(ctx)
		if errors.Is(err, store.ErrUnavailable) {
			return &exitError{code: admin.ExitBlind, text: err.Error()}
		}
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if m.json {
			_ = json.Indent(&b, raw, "", "  ") // it was read as JSON, or written as such
			fmt.Fprintln(m.out, b.String())
		} else {
			writePlan(&b, plan)
			fmt.Fprint(m.out, clean(b.String()))
		}
		switch {
		case !plan.TargetOK:
			return &exitError{code: admin.ExitBlind, text: "the target cannot be asked", said: true}
		case len(plan.Blockers) > 0:
			return &exitError{code: admin.ExitClosed, text: fmt.Sprintf("%d things are in the way", len(plan.Blockers)), said: true}
		}
		return nil
	})
}

func (m *moving) askGateway(ctx context.Context) (p migrate.Plan, raw json.RawMessage, err error) {
	client, site, err := m.connect(ctx)
	if err != nil {
		return p, nil, err
	}
	defer client.Close()
	raw, err = client.Get(ctx, "/v1/sites/"+site.Name+"/migrate/plan")
	if err == nil {
		raw = bytes.TrimSpace(raw)
		err = json.Unmarshal(raw, &p)
	}
	return p, raw, err
}

// look makes the plan here, with an engine that may only read.
func (m *moving) look(ctx context.Context) (p migrate.Plan, raw json.RawMessage, err error) {
	c, err := m.load(m.flags)
	if err == nil {
		if err = c.Check(false); err != nil {
			err = usage("%v", err)
		}
	}
	if err != nil {
		return p, nil, err
	}
	log := slog.New(slog.NewTextHandler(m.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	slog.SetDefault(log)
	for _, w := range c.Warnings {
		log.Warn("configuration", "warning", w)
	}
	i := slices.IndexFunc(c.Sites, func(s config.Site) bool { return s.Name == m.site || m.site == "" && len(c.Sites) == 1 })
	if i < 0 {
		return p, nil, usage("which site is meant? --site takes a name of the configuration")
	}
	site := c.Sites[i]
	if site.Origin.IsZero() {
		return p, nil, usage("site %s has no origin: there is nothing to move. Name it with --origin", site.Name)
	}
	s, err := openStores(ctx, site, nil)
	if err != nil {
		return p, nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	e, err := newEngine(site, s, stores{readOrigin{s.origin}, readTarget{s.target}}, nil)
	if err != nil {
		return p, nil, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if p, err = e.Plan(ctx); err != nil {
		return p, nil, err
	}
	raw, err = json.Marshal(p)
	return p, raw, err
}

// errReadOnly is what a write comes to while somebody only looks. An engine that is in a fleet takes part in it: it
// would take a lease, and retreat where it gets none.
var errReadOnly = fmt.Errorf("%w: only looking", store.ErrUnavailable)

type readOrigin struct{ store.Origin }

func (readOrigin) SwapMark(context.Context, store.Mark, store.Mark) error { return errReadOnly }
func (readOrigin) Save(context.Context, string, store.Record, store.Condition) error {
	return errReadOnly
}
func (readOrigin) Touch(context.Context, string, time.Time) error { return errReadOnly }
func (readOrigin) Delete(context.Context, string, store.Condition) (bool, error) {
	return false, errReadOnly
}

type readTarget struct{ store.Target }

func (t readTarget) Workflow(name string) store.Workflow {
	return readWorkflow{t.Target.Workflow(name)}
}
func (readTarget) Save(context.Context, string, store.Record, store.Condition) error {
	return errReadOnly
}
func (readTarget) Touch(context.Context, string, time.Time) error { return errReadOnly }
func (readTarget) Delete(context.Context, string, store.Condition) (bool, error) {
	return false, errReadOnly
}

// Mark implements store.Marked.
func (t readTarget) Mark(ctx context.Context) (store.Mark, error) {
	if m, ok := t.Target.(store.Marked); ok {
		return m.Mark(ctx)
	}
	return store.Mark{}, nil
}

// readWorkflow refuses what an engine without a lease could still send: it takes none, settles nothing, drops nothing.
type readWorkflow struct{ store.Workflow }

func (readWorkflow) SwapControl(context.Context, []byte, []byte) error { return errReadOnly }
func (readWorkflow) RaiseFence(context.Context, uint64) error          { return errReadOnly }
func (readWorkflow) Renew(context.Context, string, []byte, time.Duration) (store.Renewal, error) {
	return store.Renewal{}, errReadOnly
}
func (readWorkflow) DropLease(context.Context, string) error { return errReadOnly }
func (readWorkflow) Leave(context.Context, string) error     { return errReadOnly }
func (readWorkflow) Settle(context.Context, string, store.Op) (store.Begun, error) {
	return store.Begun{}, errReadOnly
}
func (readWorkflow) Begin(context.Context, string, store.Op) (store.Begun, error) {
	return store.Begun{}, errReadOnly
}
func (readWorkflow) Remove(context.Context, uint64, []string) (int, error) { return 0, errReadOnly }
func (readWorkflow) Purge(context.Context, []byte) error                   { return errReadOnly }

func writePlan(w io.Writer, p migrate.Plan) {
	fmt.Fprintf(w, "workflow %s: %d sessions in the origin", p.Workflow, p.Sessions)
	if p.Sampled > 0 {
		fmt.Fprintf(w, "; of %d sampled: %d bytes on average, %d at the most, %d overdue", p.Sampled, p.MeanBytes, p.MaxBytes, p.Overdue)
	}
	fmt.Fprintln(w)
	for _, counts := range []struct {
		title string
		of    map[string]int64
	}{{"formats", p.Formats}, {"skipped", p.Skipped}} {
		for _, name := range sortedKeys(counts.of) {
			fmt.Fprintf(w, "  %s: %s %d\n", counts.title, name, counts.of[name])
		}
	}
	if p.TargetOK {
		fmt.Fprintf(w, "target: %d sessions of this site\n", p.TargetKeys)
	}
	writeGates(w, p.Gates)
	for _, part := range []struct {
		title string
		lines []string
	}{{"origin", p.Origin}, {"stalls", p.Stalls}, {"required", p.Require}, {"advised", p.Advise}, {"in the way", p.Blockers}, {"ladder", p.Ladder}} {
		for i, line := range part.lines {
			if i == 0 {
				fmt.Fprintf(w, "%s:\n", part.title)
			}
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
}
