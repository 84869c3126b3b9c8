package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) forgetGateway() *cobra.Command {
	var req admin.Request
	cmd := &cobra.Command{
		Use:   "forget-gateway NAME",
		Short: "Forget a gateway that will not come back: no step waits for it, and nobody asks what it was told",
		Args:  cobra.ExactArgs(1),
	}
	m.leaf(cmd, func(ctx context.Context, args []string) error {
		if req.Gateway = args[0]; req.Gateway == "" {
			return usage("which gateway? `sessile migrate status` shows their names")
		}
		if err := checkDurations(req); err != nil {
			return err
		}
		return m.do(ctx, "forget-gateway", req)
	})
	return timeoutFlag(cmd, &req)
}
