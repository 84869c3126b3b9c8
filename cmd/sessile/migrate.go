package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/migrate"
)

// moving is what all commands to a gateway that runs have in common.
type moving struct {
	*app
	flags settingFlags // admin ...
	site  string
}

func (a *app) migrate() *cobra.Command {
	cmd := a.parent(&cobra.Command{
		Use:   "migrate",
		Short: "Move a site's sessions, step by step and back",
		Long: `Move a site's sessions, step by step and back:

  off -> dual-write -> sync -> live -> ramp-down -> complete

Every command can be interrupted at any point and run again.`,
		Example: `  sessile migrate plan && sessile migrate create &&
  sessile migrate switchtraffic --to ramp-down && sessile migrate complete`,
	})
	return a.withSubs(cmd, (*moving).plan, (*moving).create, (*moving).start, (*moving).stop, (*moving).status, (*moving).diff,
		(*moving).switchTraffic, (*moving).reverseTraffic, (*moving).complete, (*moving).cancel, (*moving).repair, (*moving).forgetGateway)
}

// withSubs adds commands to a gateway that runs to cmd.
func (a *app) withSubs(cmd *cobra.Command, subs ...func(*moving) *cobra.Command) *cobra.Command {
	for _, sub := range subs {
		m := &moving{app: a}
		c := sub(m)
		if m.flags == nil {
			m.flags = addSettings(c, isAdmin)
		}
		c.Flags().StringVar(&m.site, "site", "", "`name` of the site, where the gateway has several")
		c.Flags().BoolVar(&a.json, "json", false, "print one JSON object")
		cmd.AddCommand(c)
	}
	return cmd
}

func isAdmin(s config.Setting) bool {
	return s.Name == "admin" || s.Name == "admin-token-file" || s.Name == "admin-ca"
}

// connect returns a client of the gateway, and the site that is meant, which can be moved.
func (m *moving) connect(ctx context.Context) (*admin.Client, admin.SiteInfo, error) {
	client, site, err := m.connectAny(ctx)
	if err == nil && site.Workflow == "" {
		client.Close()
		return nil, site, usage("site %s has no origin: there is nothing to move. `sessile serve` needs --origin and --target for that", site.Name)
	}
	return client, site, err
}

// connectAny is connect for any site.
func (m *moving) connectAny(ctx context.Context) (*admin.Client, admin.SiteInfo, error) {
	var none admin.SiteInfo
	c, err := m.load(m.flags)
	if err != nil {
		return nil, none, err
	}
	token, err := c.Admin.Token()
	if err != nil {
		return nil, none, usage("%v", err)
	}
	address := c.Admin.Address
	if address == "off" {
		return nil, none, usage("--admin: it is off; which gateway is meant?")
	}
	if c.Admin.Cert != "" && !strings.Contains(address, ":/") {
		address = "https://" + address
	}
	client, err := admin.NewClient(address, token, c.Admin.CA)
	if err != nil {
		return nil, none, usage("--admin: %v", err)
	}
	sites, err := client.Sites(ctx)
	if err != nil {
		client.Close()
		return nil, none, fmt.Errorf("%w\nis `sessile serve` running, and is this its --admin address?", err)
	}
	var names []string
	for _, s := range sites {
		if s.Name == m.site || m.site == "" && len(sites) == 1 {
			return client, s, nil
		}
		names = append(names, s.Name)
	}
	client.Close()
	if m.site == "" {
		return nil, none, usage("which site is meant? --site takes one of %s", strings.Join(names, ", "))
	}
	return nil, none, usage("the gateway has no site %+q; it has %s", short(m.site), strings.Join(names, ", "))
}

// do runs a command, shows how it goes on and prints how it ended.
func (m *moving) do(ctx context.Context, command string, req admin.Request) error {
	client, site, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return m.doWith(ctx, client, site, command, req)
}

func (m *moving) doWith(ctx context.Context, client *admin.Client, site admin.SiteInfo, command string, req admin.Request) error {
	p := &progress{out: m.err, bars: m.err.isTerminal()}
	var said []string
	say := p.say
	if req.DryRun {
		say = func(line string) { // the result, not progress
			said = append(said, line)
			if !m.json {
				fmt.Fprintln(m.out, clean(line))
			}
		}
	}
	end, err := p.watch(ctx, client, site.Name, func() (admin.Line, error) {
		return client.Run(ctx, site.Name, "migrate/"+command, req, say)
	})
	if err != nil {
		return err
	}
	switch {
	case m.json && req.DryRun:
		m.print(struct {
			DryRun bool            `json:"dry_run"`
			Say    []string        `json:"say"`
			Status *migrate.Status `json:"status"`
		}{true, append([]string{}, said...), end.Status})
	case m.json && end.Diff != nil:
		m.print(end.Diff)
	case m.json:
		m.print(end.Status)
	case end.Diff != nil:
		m.printDiff(end.Diff)
	case !req.DryRun && end.Status != nil && end.Status.Exists:
		fmt.Fprintf(m.out, "workflow %s: phase %s, epoch %d\n", end.Status.Workflow, end.Status.Phase, end.Status.Epoch)
	case !req.DryRun && end.Status != nil:
		fmt.Fprintf(m.out, "workflow %s: none\n", end.Status.Workflow)
	}
	if end.Exit != admin.ExitDone {
		return &exitError{code: end.Exit, said: true}
	}
	return nil
}

// status asks for the site's status.
func status(ctx context.Context, client *admin.Client, site string) (st migrate.Status, raw json.RawMessage, err error) {
	raw, err = client.Get(ctx, "/v1/sites/"+site+"/migrate/status")
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	return st, raw, err
}

// stepFlags are those of the commands that change the phase.
func stepFlags(cmd *cobra.Command, req *admin.Request) *cobra.Command {
	f := cmd.Flags()
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would be done, and change nothing")
	f.BoolVar(&req.Force, "force", false, "open gates that are closed, but never those of the protocol itself; needs --reason")
	f.StringVar(&req.Reason, "reason", "", "`why` --force is right; it is recorded")
	f.StringVar(&req.Soak, "soak", "", "how long (`time`) a phase that looks good is watched before it is left (default: not at all)")
	f.StringVar(&req.Window, "window", "", "how long (`time`) the origin is watched for foreign writers (default 3s)")
	return timeoutFlag(cmd, req)
}

func timeoutFlag(cmd *cobra.Command, req *admin.Request) *cobra.Command {
	cmd.Flags().StringVar(&req.Timeout, "timeout", "", "give up after this `time` (default: as long as there is progress)")
	return cmd
}

// command makes a command that does nothing but send req.
func (m *moving) command(use, about string, req *admin.Request, flags func(*cobra.Command, *admin.Request) *cobra.Command) *cobra.Command {
	name, _, _ := strings.Cut(use, " ")
	cmd := m.leaf(&cobra.Command{Use: use, Short: about}, func(ctx context.Context, args []string) error {
		if err := checkDurations(*req); err != nil {
			return err
		}
		return m.do(ctx, name, *req)
	})
	return flags(cmd, req)
}

// checkDurations finds mistakes before a gateway is asked.
func checkDurations(req admin.Request) error {
	for name, text := range map[string]string{"soak": req.Soak, "window": req.Window, "timeout": req.Timeout, "tolerance": req.Tolerance} {
		if d, err := time.ParseDuration(text); text != "" && (err != nil || d <= 0) {
			return usage("--%s: %+q: a duration above 0 is wanted, such as 30s or 5m", name, short(text))
		}
	}
	if req.To != "" {
		if _, err := migrate.ParsePhase(req.To); err != nil {
			return usage("--to: %v", err)
		}
	}
	if req.Force && strings.TrimSpace(req.Reason) == "" {
		return usage("--force needs --reason: it is recorded with the step")
	}
	return nil
}

// watch runs f, and shows meanwhile how far backfill and reconcile are.
func (p *progress) watch(ctx context.Context, client *admin.Client, site string, f func() (admin.Line, error)) (admin.Line, error) {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait := 500 * time.Millisecond; ; {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			if st, _, err := status(ctx, client, site); err == nil { // a gateway that is gone is f's business
				p.update(st)
			}
		}
	})
	end, err := f()
	stop()
	wg.Wait()
	p.end()
	return end, err
}
