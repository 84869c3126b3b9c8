package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) start() *cobra.Command {
	var req admin.Request
	cmd := &cobra.Command{Use: "start", Short: "Resume the phase's worker (backfill, reconcile), or change its rate or load"}
	rate := cmd.Flags().Int("rate", 0, "sessions a second at the most; 0: no limit (default: as it is)")
	load := cmd.Flags().Int("max-load", 0, "`percent` of the time that the walks over the origin may have a request open there; 0: no bound (default: as it is, and at first each gateway's setting)")
	m.leaf(cmd, func(ctx context.Context, _ []string) error {
		if cmd.Flags().Changed("rate") {
			if *rate < 0 || *rate > 10_000_000 {
				return usage("--rate takes 0 (no limit) to 10000000")
			}
			if req.Rate = *rate; *rate == 0 {
				req.Rate = -1
			}
		}
		if cmd.Flags().Changed("max-load") {
			if *load < 0 || *load > 100 {
				return usage("--max-load takes 0 (no bound) to 100 percent")
			}
			if req.MaxLoad = *load; *load == 0 {
				req.MaxLoad = -1
			}
		}
		if err := checkDurations(req); err != nil {
			return err
		}
		return m.do(ctx, "start", req)
	})
	return timeoutFlag(cmd, &req)
}
