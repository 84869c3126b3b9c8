package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/migrate"
)

func (m *moving) diff() *cobra.Command {
	var req admin.Request
	cmd := &cobra.Command{Use: "diff", Short: "Compare both stores; exit code 3 where they differ"}
	f := cmd.Flags()
	f.BoolVar(&req.Repair, "repair", false, "copy again what differs")
	f.IntVar(&req.Rounds, "rounds", 3, "a difference counts when it is there in every round")
	f.StringVar(&req.Tolerance, "tolerance", "", "deadlines up to this `time` apart are the same (default 5s)")
	m.leaf(cmd, func(ctx context.Context, _ []string) error {
		if req.Rounds < 1 || req.Rounds > 100 {
			return usage("--rounds takes 1 to 100")
		}
		if err := checkDurations(req); err != nil {
			return err
		}
		return m.do(ctx, "diff", req)
	})
	return timeoutFlag(cmd, &req)
}

func (m *moving) printDiff(d *migrate.DiffReport) {
	fmt.Fprintf(m.out, "%d compared in phase %s: %d missing, %d extra, %d mismatched, %d that cannot be moved; %d with other deadlines, %d overdue, %d copied again\n",
		d.Compared, d.Phase, d.Missing, d.Extra, d.Mismatch, d.Unfit, d.Deadline, d.Overdue, d.Repaired)
	if d.Unlisted {
		fmt.Fprintln(m.out, "  the origin cannot be listed: what it alone has was not seen")
	}
	for _, s := range d.Sample {
		if s.Why != "" {
			fmt.Fprintf(m.out, "  session %s  %-9s %s\n", s.Session, s.Kind, s.Why)
			continue
		}
		fmt.Fprintf(m.out, "  session %s  %-9s %d bytes in the origin, %d in the target\n", s.Session, s.Kind, s.OriginN, s.TargetN)
	}
}
