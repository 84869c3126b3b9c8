package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) repair() *cobra.Command {
	var req admin.Request
	cmd := m.leaf(&cobra.Command{
		Use:   "repair",
		Short: "Settle what is dead; with --use, decide where the gateways must not",
		Long: `Settle what is dead, and change nothing else.

With --use a person decides what the gateways must not, because it loses something:
the target's data is gone while the origin may be behind it; or the origin has come
back without its data, or with older data.

  --use origin   go on with the origin: writes that had not reached it, or that it has
                 lost, are lost, and logouts are undone
  --use target   go on with what the target holds, in ramp-down`,
	}, func(ctx context.Context, _ []string) error {
		switch req.Use {
		case "":
		case "origin", "target":
			if req.Reason == "" {
				return usage("--use needs --reason: it is recorded")
			}
		default:
			return usage("--use takes origin or target")
		}
		if err := checkDurations(req); err != nil {
			return err
		}
		return m.do(ctx, "repair", req)
	})
	cmd.Flags().StringVar(&req.Use, "use", "", "`store` to go on with: origin or target")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`why`; it is recorded")
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "say what would be done, and change nothing")
	return timeoutFlag(cmd, &req)
}
