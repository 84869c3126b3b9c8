package main

import (
	"context"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sessile/sessile/internal/demo"
)

func (a *app) demo() *cobra.Command {
	opt := demo.Options{Out: a.out, Err: a.err}
	cmd := a.leaf(&cobra.Command{Use: "demo", Short: "Watch a whole move on this machine, nothing else installed"}, func(ctx context.Context, _ []string) error {
		if a.err.isTerminal() {
			opt.Width, _, _ = term.GetSize(int(a.err.Fd()))
		}
		_, err := demo.Run(ctx, opt)
		return err
	})
	cmd.Flags().BoolVar(&opt.JSON, "json", false, "print one JSON object instead of the report")
	cmd.Flags().StringVar(&opt.Redis, "redis", "auto", "`server` to move to: auto, the path of a redis-server, or memory")
	cmd.Flags().IntVar(&opt.Visitors, "visitors", 200, "logged-in visitors")
	cmd.Flags().BoolVar(&opt.Short, "short", false, "spend less time in each phase")
	return cmd
}
