package main

import (
	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) stop() *cobra.Command {
	return m.command("stop", "Pause the phase's worker (backfill, reconcile)", &admin.Request{}, timeoutFlag)
}
