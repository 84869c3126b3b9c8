package main

import (
	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) create() *cobra.Command {
	return m.command("create", "Make the workflow, in phase off", &admin.Request{}, func(cmd *cobra.Command, req *admin.Request) *cobra.Command {
		cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "say what would be done, and change nothing")
		return timeoutFlag(cmd, req)
	})
}
