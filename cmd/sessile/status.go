package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/migrate"
)

func (m *moving) status() *cobra.Command {
	var watch bool
	cmd := m.leaf(&cobra.Command{Use: "status", Short: "Show where the move is and what it waits for"}, func(ctx context.Context, _ []string) error {
		client, site, err := m.connect(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		for {
			st, raw, err := status(ctx, client, site.Name)
			if err != nil {
				return err
			}
			m.showStatus(st, raw, watch)
			if !watch {
				return problem(st)
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
			if m.out.failed != nil {
				return m.out.failed
			}
		}
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it anew every second; with --json, one object a line")
	return cmd
}

// problem is the end of a look at a workflow whose target could not be asked.
func problem(st migrate.Status) error {
	if st.Problem == "" {
		return nil
	}
	return &exitError{code: admin.ExitBlind, text: st.Problem, said: true}
}

func (m *moving) showStatus(st migrate.Status, raw json.RawMessage, watch bool) {
	if m.json {
		var b bytes.Buffer
		if watch {
			_ = json.Compact(&b, raw) // it was read as JSON before
		} else {
			_ = json.Indent(&b, bytes.TrimSpace(raw), "", "  ")
		}
		fmt.Fprintln(m.out, b.String())
		return
	}
	if watch && m.out.isTerminal() {
		fmt.Fprint(m.out, "\x1b[H\x1b[2J")
	}
	var b bytes.Buffer
	writeStatus(&b, st)
	fmt.Fprint(m.out, clean(b.String()))
	if watch && !m.out.isTerminal() {
		fmt.Fprintln(m.out)
	}
}

func writeStatus(w io.Writer, st migrate.Status) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	if st.Problem != "" {
		line("problem", "%s", st.Problem)
	}
	if !st.Exists {
		line("workflow", "%s: none (`sessile migrate create` makes it)", st.Workflow)
		line("serving", "%s", st.Serving)
		return
	}
	line("workflow", "%s", st.Workflow)
	line("phase", "%s (epoch %d, reconciled: %v, the origin's floor: %s)", st.Phase, st.Epoch, st.Reconciled, st.Floor)
	line("step", "%s", st.Step)
	line("serving", "%s", st.Serving)
	for _, g := range st.Gateways {
		here := map[bool]string{true: ", this one"}[g.Here]
		if g.LeaseMS <= 0 {
			line("gateway", "%s: its lease is over%s", g.Name, here)
			continue
		}
		line("gateway", "%s: adopted epoch %d, %d operations of older ones%s", g.Name, g.Adopted, g.Draining, here)
	}
	for _, j := range []struct {
		name string
		migrate.Job
	}{{"backfill", st.Backfill}, {"reconcile", st.Reconcile}} {
		if j.State != "" {
			line(j.name, "%s: %d of about %d seen, %d copied, %d the same, %d overdue, %d that cannot be moved", j.State, j.Seen, j.Total, j.Copied, j.Same, j.Overdue, j.Failed)
		}
	}
	if st.MaxLoad > 0 {
		line("load", "walks over the origin may have a request open there %d %% of the time", st.MaxLoad)
	}
	if d := st.Diff; d != nil {
		line("diff", "%d compared at %s: %d missing, %d extra, %d mismatched, %d that cannot be moved", d.Compared, d.At.Format(time.RFC3339), d.Missing, d.Extra, d.Mismatch, d.Unfit)
	}
	line("debt", "%d intents, %d ahead, the oldest dead for %v", st.Debt.Intents, st.Debt.Aheads, time.Duration(st.Debt.OldestMS)*time.Millisecond)
	writeGates(w, st.Gates)
}

func writeGates(w io.Writer, gates []migrate.Gate) {
	for _, g := range gates {
		state := map[bool]string{true: "open", false: "closed"}[g.Open]
		if !g.Open && g.Waiting {
			state = "waiting"
		}
		fmt.Fprintf(w, "gate       %-15s %-8s %s\n", g.Name, state, g.Value)
		if !g.Open && g.Remedy != "" {
			fmt.Fprintf(w, "%27s remedy: %s\n", "", g.Remedy)
		}
	}
}
