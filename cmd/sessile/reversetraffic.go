package main

import (
	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) reverseTraffic() *cobra.Command {
	return m.command("reversetraffic", "Go one phase back, or back to --to", &admin.Request{}, func(cmd *cobra.Command, req *admin.Request) *cobra.Command {
		cmd.Flags().StringVar(&req.To, "to", "", "`phase` to go back to: live, sync, dual-write, off (default: one step)")
		return stepFlags(cmd, req)
	})
}
