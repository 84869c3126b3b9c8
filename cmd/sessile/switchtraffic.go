package main

import (
	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) switchTraffic() *cobra.Command {
	return m.command("switchtraffic", "Go one phase forward, or on to --to", &admin.Request{}, func(cmd *cobra.Command, req *admin.Request) *cobra.Command {
		cmd.Flags().StringVar(&req.To, "to", "", "`phase` to go on to: dual-write, sync, live, ramp-down (default: one step)")
		return stepFlags(cmd, req)
	})
}
