package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/migrate"
)

// app is one run of the command line.
type app struct {
	in       *os.File
	out, err *sink
	json     bool
	config   string // --config
	begun    bool   // the arguments were understood; what fails from here on is no usage error by itself
}

// sink is an output that remembers that it failed: a result that nobody got is a failure.
type sink struct {
	*os.File
	failed error
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.File.Write(b)
	s.failed = cmp.Or(s.failed, err)
	return n, err
}

func (s *sink) isTerminal() bool { return term.IsTerminal(int(s.Fd())) && os.Getenv("TERM") != "dumb" }

func (s *sink) isColourful() bool { return s.isTerminal() && os.Getenv("NO_COLOR") == "" }

func newApp(in, out, err *os.File) *app {
	return &app{in: in, out: &sink{File: out}, err: &sink{File: err}}
}

// run runs one command and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.out.failed
	}
	if err == nil {
		return admin.ExitDone
	}
	code := a.exitCode(ctx, err)
	if text := err.Error(); text != "" {
		fmt.Fprintln(a.err, clean("sessile: "+text))
	}
	var known *exitError
	if a.json && a.begun && !(errors.As(err, &known) && known.said) {
		end := admin.Line{Error: err.Error(), Exit: code}
		if e := (*admin.Error)(nil); errors.As(err, &e) {
			end.Gates = e.Gates
		}
		a.print(end)
	}
	return code
}

// exitError is an end that is not simply failed. Where said is set its result is out already.
type exitError struct {
	code int
	text string
	said bool
}

func (e *exitError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return &exitError{code: admin.ExitUsage, text: fmt.Sprintf(format, args...)}
}

func (a *app) exitCode(ctx context.Context, err error) int {
	var exit *exitError
	var answered *admin.Error
	var wrong *migrate.UsageError
	switch {
	case errors.As(err, &exit):
		return exit.code
	case !a.begun, errors.As(err, &wrong):
		return admin.ExitUsage
	case ctx.Err() != nil:
		return 130 // as if the signal had ended us
	case errors.As(err, &answered):
		return answered.Exit
	case errors.Is(err, admin.ErrUnreachable):
		return admin.ExitBlind
	}
	return admin.ExitFailed
}

// clean makes text from elsewhere safe for a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, s)
}

// print writes v to stdout as JSON.
func (a *app) print(v any) {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the sink remembers
}

func (a *app) root() *cobra.Command {
	root := a.parent(&cobra.Command{
		Use:           "sessile",
		Short:         "Move web sessions to Redis while the site runs, without logging anybody out",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	})
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().StringVar(&a.config, "config", "", "configuration `file` (SESSILE_CONFIG; default "+config.DefaultFile+", if it is there)")
	root.AddCommand(a.serve(), a.demo(), a.migrate(), a.target(), a.doctor(), a.version())
	return root
}

// parent makes cmd one that only has subcommands.
func (a *app) parent(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			fmt.Fprint(a.err, cmd.UsageString())
			return usage("")
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return usage("there is no command %+q%s\nrun `%s --help` to see what there is", short(args[0]), hint, cmd.CommandPath())
	}
	return cmd
}

// leaf makes cmd one that does something.
func (a *app) leaf(cmd *cobra.Command, run func(ctx context.Context, args []string) error) *cobra.Command {
	args := cmd.Args
	if args == nil {
		args = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return usage("%s takes %s\nrun `%s --help` to see the flags", cmd.CommandPath(), argsOf(cmd), cmd.CommandPath())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.begun = true
		return run(cmd.Context(), args)
	}
	return cmd
}

func argsOf(cmd *cobra.Command) string {
	if _, names, ok := strings.Cut(cmd.Use, " "); ok {
		return names
	}
	return "no arguments, only flags"
}

func short(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}

// flagError suggests the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return usage("%s\nrun `%s --help` to see the flags", err, cmd.CommandPath())
	}
	var all []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { all = append(all, f.Name) })
	name := short(unknown.GetSpecifiedName())
	return usage("there is no flag %+q; did you mean --%s?\nrun `%s --help` to see the flags", "--"+name, config.Nearest(name, all), cmd.CommandPath())
}

// settingFlags are flags that say what sessile.yaml says, too.
type settingFlags map[string]*settingFlag

type settingFlag struct {
	config.Setting
	values []string
}

func (f *settingFlag) Set(v string) error { f.values = append(f.values, v); return nil }
func (f *settingFlag) String() string     { return strings.Join(f.values, " ") }
func (f *settingFlag) Type() string       { return map[bool]string{true: "bool", false: "value"}[f.Bool] }

// settingFlags adds a flag for each setting that want wants.
func addSettings(cmd *cobra.Command, want func(config.Setting) bool) settingFlags {
	all := settingFlags{}
	for _, s := range config.Settings() {
		if !want(s) {
			continue
		}
		f := &settingFlag{Setting: s}
		all[s.Name] = f
		about := strings.ReplaceAll(s.Help, "`", "") + " (" + s.Takes // pflag would take what is quoted for the value's name
		if s.List {
			about += "; may be repeated"
		}
		if s.Default != "" {
			about += "; default " + s.Default
		}
		flag := cmd.Flags().VarPF(f, s.Name, "", about+")")
		if s.Bool {
			flag.NoOptDefVal = "true"
		}
	}
	return all
}

// given are the flags that were set, by setting.
func (fs settingFlags) given() map[string][]string {
	m := map[string][]string{}
	for name, f := range fs {
		if f.values != nil {
			m[name] = f.values
		}
	}
	return m
}

// load reads the configuration. What is wrong with it is a usage error.
func (a *app) load(flags settingFlags) (*config.Config, error) {
	src := config.Sources{File: cmp.Or(a.config, os.Getenv("SESSILE_CONFIG")), Environ: os.Environ(), Flags: flags.given()}
	if src.File == "" {
		src.File, src.Optional = config.DefaultFile, true
	}
	c, err := config.Load(src)
	if err != nil {
		return nil, usage("%v", err)
	}
	return c, nil
}

func oneOfNames(names ...string) func(config.Setting) bool {
	return func(s config.Setting) bool { return slices.Contains(names, s.Name) }
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

var _ io.Writer = (*sink)(nil)
