package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sessile/sessile/internal/admin"
)

func (m *moving) complete() *cobra.Command {
	var req admin.Request
	var yes bool
	cmd := m.leaf(&cobra.Command{
		Use:   "complete",
		Short: "Let go of the origin, from ramp-down; there is no way back",
		Long: `Let go of the origin, from ramp-down. There is no way back.

It returns when every gateway has left ramp-down: from then on applications may be
pointed at Redis directly.`,
	}, func(ctx context.Context, _ []string) error {
		if err := checkDurations(req); err != nil {
			return err
		}
		if !yes && !req.DryRun && !term.IsTerminal(int(m.in.Fd())) {
			return usage("complete has no way back: say --yes, or run it on a terminal")
		}
		client, site, err := m.connect(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		if !yes && !req.DryRun {
			fmt.Fprintf(m.err, "There is no way back from complete. Type the workflow's name (%s) to go on: ", site.Workflow)
			answer := make(chan string, 1)
			go func() {
				line, _ := bufio.NewReader(m.in).ReadString('\n') // what there is; an end without it is a no
				answer <- strings.TrimSpace(line)
			}()
			select {
			case name := <-answer:
				if name != site.Workflow {
					return usage("that is not the workflow's name: nothing was done")
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return m.doWith(ctx, client, site, "complete", req)
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for the workflow's name")
	return stepFlags(cmd, &req)
}
