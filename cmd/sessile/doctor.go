package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/internal/doctor"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/open"
)

// diagnosis is what was found about one store of a site.
type diagnosis struct {
	Site     string           `json:"site"`
	Store    string           `json:"store"` // target, origin
	URL      string           `json:"url"`
	Problem  string           `json:"problem,omitempty"` // why it could not be looked at
	Subjects []doctor.Subject `json:"subjects"`
}

func (a *app) doctor() *cobra.Command {
	var strict bool
	var accept []string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is unsafe about the Redis servers, and how to mend it; nothing is written",
		Long: `Say what is unsafe about the Redis servers, and how to mend it. Nothing is written.

It asks every server of each site's target, and of an origin in Redis: the servers
with data, the Sentinels, the nodes of a Cluster. docs/doctor.md says what each
finding means. Exit code 3 means that there is danger, 4 that a store could not
be looked at.`,
		Example: `  sessile doctor --target redis-sentinel://s1,s2,s3/mymaster/0`,
	}
	flags := addSettings(cmd, oneOfNames("target", "origin", "target-key", "origin-key", "lifetime", "access-set", "max-value", "hold"))
	cmd.Flags().BoolVar(&a.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 3 for warnings, too, and for what cannot be seen")
	cmd.Flags().StringSliceVar(&accept, "accept", nil, "`check` that is known and shall not count for the exit code (may be repeated)")
	return a.leaf(cmd, func(ctx context.Context, _ []string) error {
		for _, check := range accept {
			if !slices.Contains(doctor.Checks, check) {
				return usage("--accept: there is no check %+q; did you mean %s?", short(check), config.Nearest(check, slices.Clone(doctor.Checks)))
			}
		}
		c, err := a.load(flags)
		if err == nil {
			if err = c.Check(false); err != nil {
				err = usage("%v", err)
			}
		}
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
		for _, w := range c.Warnings {
			log.Warn("configuration", "warning", w)
		}
		var all []diagnosis
		for _, site := range c.Sites {
			for _, s := range []struct {
				name string
				url  open.URL
			}{{"target", site.Target}, {"origin", site.Origin}} {
				d, ok, err := examine(ctx, site, s.name, s.url)
				if err != nil {
					return err
				}
				if ok {
					all = append(all, d)
				}
			}
		}
		if all == nil {
			return usage("no store of this configuration is in Redis: there is nothing to look at")
		}
		return a.report(all, strict, accept)
	})
}

// examine looks at a store; ok is false where it is not in Redis.
func examine(ctx context.Context, site config.Site, name string, u open.URL) (d diagnosis, ok bool, err error) {
	opt := open.Options{LockSuffix: site.LockSuffix}
	if name == "target" {
		opt.Prefix = site.TargetKey
	}
	o, ok, err := open.Redis(u, opt)
	if err != nil || !ok {
		return d, false, err
	}
	o.MaxValue = site.MaxValue
	use := doctor.Use{Hold: site.Hold}
	if site.AccessSet != "" && name == "target" {
		use.Sets = append(use.Sets, site.AccessSet)
	}
	d = diagnosis{Site: site.Name, Store: name, URL: u.String()}
	facts, err := doctor.Look(ctx, o, use)
	if err != nil {
		if !errors.Is(err, store.ErrUnavailable) {
			return d, true, fmt.Errorf("site %s: %s %v: %w", site.Name, name, u, err)
		}
		d.Problem = err.Error()
	}
	d.Subjects = doctor.Judge(facts)
	return d, true, nil
}

// report prints what was found, and returns the end that it means.
func (a *app) report(all []diagnosis, strict bool, accept []string) error {
	count := map[doctor.Level]int{}
	counted, blind := 0, ""
	for _, d := range all {
		if d.Problem != "" && blind == "" {
			blind = fmt.Sprintf("site %s: %s %s: %s", d.Site, d.Store, d.URL, d.Problem)
		}
		for level, n := range doctor.Count(d.Subjects) {
			count[level] += n
		}
		for _, s := range d.Subjects {
			for _, f := range s.Findings {
				bad := f.Level == doctor.Danger || strict && f.Level != doctor.OK
				if bad && !slices.Contains(accept, f.Check) {
					counted++
				}
			}
		}
	}
	if a.json {
		a.print(struct {
			Danger  int         `json:"danger"`
			Warning int         `json:"warning"`
			Unseen  int         `json:"unseen"`
			OK      int         `json:"ok"`
			Stores  []diagnosis `json:"stores"`
		}{count[doctor.Danger], count[doctor.Warning], count[doctor.Unseen], count[doctor.OK], all})
	} else {
		for i, d := range all {
			if i > 0 {
				fmt.Fprintln(a.out)
			}
			fmt.Fprintln(a.out, clean(fmt.Sprintf("site %s, %s %s", d.Site, d.Store, d.URL)))
			var b bytes.Buffer
			doctor.Write(&b, cleaned(d.Subjects), a.out.isColourful())
			fmt.Fprint(a.out, b.String())
		}
		fmt.Fprintf(a.out, "\ndanger %d, warning %d, unseen %d, ok %d\n",
			count[doctor.Danger], count[doctor.Warning], count[doctor.Unseen], count[doctor.OK])
	}
	switch {
	case blind != "":
		return &exitError{code: admin.ExitBlind, text: blind, said: true}
	case counted > 0:
		return &exitError{code: admin.ExitClosed, text: fmt.Sprintf("findings to be mended: %d", counted), said: true}
	}
	return nil
}

// cleaned returns subjects with nothing in them that a terminal would obey: servers name each other.
func cleaned(subjects []doctor.Subject) []doctor.Subject {
	var out []doctor.Subject
	for _, s := range subjects {
		s.Name, s.Findings = clean(s.Name), slices.Clone(s.Findings)
		for i := range s.Findings {
			f := &s.Findings[i]
			f.What, f.Remedy = clean(f.What), slices.Clone(f.Remedy)
			for j := range f.Remedy {
				f.Remedy[j] = clean(f.Remedy[j])
			}
		}
		out = append(out, s)
	}
	return out
}
