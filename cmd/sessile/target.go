package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
)

func (a *app) target() *cobra.Command {
	cmd := a.parent(&cobra.Command{
		Use:   "target",
		Short: "Show what happened to a target that fails over, and decide where it has forgotten everything",
		Long: `Show what happened to a target that fails over (Sentinel, Cluster), and decide
where a server of it has forgotten everything: nobody is served until then.
docs/redis-ha.md says what to try first.`,
		Example: `  sessile target status
  sessile target refill --reason 'primary restarted, no replica has the data'`,
	})
	return a.withSubs(cmd, (*moving).targetStatus, (*moving).refill, (*moving).accept)
}

func (m *moving) refill() *cobra.Command {
	return m.decision(&cobra.Command{
		Use:   "refill",
		Short: "Put back what the gateways remember on a server that has forgotten everything, and go on",
		Long: `Put back what the gateways remember on a server that has forgotten everything, and
go on. That is what was written in the last seconds before (replay); whoever has
done nothing in that time logs in again.`,
	})
}

func (m *moving) accept() *cobra.Command {
	return m.decision(&cobra.Command{
		Use:   "accept",
		Short: "Go on with a server that has forgotten everything: everybody logs in again",
	})
}

func (m *moving) decision(cmd *cobra.Command) *cobra.Command {
	var req admin.Request
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`why`; it is logged")
	return m.leaf(cmd, func(ctx context.Context, _ []string) error {
		if strings.TrimSpace(req.Reason) == "" {
			return usage("%s needs --reason: it is logged", cmd.CommandPath())
		}
		client, site, err := m.connectAny(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		p := &progress{out: m.err}
		end, err := client.Run(ctx, site.Name, "target/"+cmd.Name(), req, p.say)
		if err != nil {
			return err
		}
		m.showTarget(*end.Target)
		return nil
	})
}
