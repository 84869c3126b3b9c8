package main

import (
	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) cancel() *cobra.Command {
	return m.command("cancel", "Walk back to off, remove what was copied and forget the workflow", &admin.Request{}, stepFlags)
}
