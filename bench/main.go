// Command bench measures Sessile side by side with what one would use instead, all on this machine and in one run: every
// round runs every row once, in an order that rotates, and the tables show medians over the rounds. Shares and ratios
// are medians of each round's own, so that what else goes on meanwhile hits both sides alike.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// run is one run of the program.
type run struct {
	ctx     context.Context
	began   time.Time
	dir     string // temporary, of this run
	rounds  int
	short   bool
	keys    int    // among which redis-benchmark chooses
	sessile string // the binary
	procs   []*proc
}

func main() {
	serveSite()
	only := flag.String("only", "", "gateway, failover, php, page, backfill, sql, memcached or library (default all)")
	rounds := flag.Int("rounds", 3, "how often every row is run")
	short := flag.Bool("short", false, "a tenth of the work: does it run at all?")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{ctx: ctx, began: time.Now(), rounds: *rounds, short: *short}
	if err := r.all(*only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (r *run) all(only string) (err error) {
	parts := []struct {
		name string
		run  func() error
	}{{"gateway", r.gateway}, {"failover", r.failover}, {"php", r.php}, {"page", r.page}, {"backfill", r.backfill}, {"sql", r.sql}, {"memcached", r.memcached}, {"library", r.library}}
	known := only == ""
	for _, part := range parts {
		known = known || part.name == only
	}
	if !known || r.rounds < 1 {
		return errors.New("-only takes gateway, failover, php, page, backfill, sql, memcached or library; -rounds a number above 0")
	}
	if r.dir, err = os.MkdirTemp("", "sessile-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	defer r.stopAll()
	if r.sessile, err = build(r.ctx, r.dir); err != nil {
		return err
	}
	fmt.Printf("Machine: %s.\n\nVersions: %s.\n\n%s, %d rounds; load average before: %s.\n", machine(), versions(),
		time.Now().Format("2006-01-02 15:04"), r.rounds, load())
	for _, part := range parts {
		if only != "" && part.name != only {
			continue
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		r.stopAll()
	}
	fmt.Printf("The run took %v; load average after: %s.\n", time.Since(r.began).Round(time.Second), load())
	return nil
}

// build makes the binary in dir.
func build(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "sessile")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/sessile")
	cmd.Dir = ".." // a module of its own
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return path, nil
}

// say tells of progress.
func (r *run) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// scaled is n, or a tenth of it in a short run.
func (r *run) scaled(n int) int {
	if r.short {
		return n / 10
	}
	return n
}

// series are a row's measurements: one slice of numbers for each round.
type series [][]float64

// rotated measures every row once a round, in an order that rotates.
func (r *run) rotated(what string, rows []string, measure func(row int) ([]float64, error)) ([]series, error) {
	all := make([]series, len(rows))
	for round := range r.rounds {
		for i := range rows {
			row := (round + i) % len(rows)
			values, err := measure(row)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", what, rows[row], err)
			}
			r.say("round %d  %s  %-22s %.4g", round+1, what, rows[row], values)
			all[row] = append(all[row], values)
		}
	}
	return all, nil
}

// mid is the median of a column.
func (s series) mid(column int) float64 {
	return s.median(func(_ int, v []float64) float64 { return v[column] })
}

// share is the median of each round's own ratio to base.
func (s series) share(base series, column int) string {
	return fmt.Sprintf("%.2f", s.median(func(round int, v []float64) float64 { return v[column] / base[round][column] }))
}

func (s series) median(number func(round int, values []float64) float64) float64 {
	var all []float64
	for round, values := range s {
		all = append(all, number(round, values))
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// cells are the medians of all columns.
func (s series) cells(formats ...string) (cells []string) {
	for column, format := range formats {
		cells = append(cells, fmt.Sprintf(format, s.mid(column)))
	}
	return cells
}

// summary is mean, median and 99th percentile; it sorts values.
func summary(values []float64) []float64 {
	mean := 0.0
	for _, v := range values {
		mean += v / float64(len(values))
	}
	slices.Sort(values)
	return []float64{mean, values[len(values)/2], values[len(values)*99/100]}
}

// table prints rows of a markdown table; the first is its head.
func table(rows [][]string) {
	fmt.Println()
	for i, row := range rows {
		fmt.Printf("| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Printf("|%s\n", strings.Repeat(" --- |", len(row)))
		}
	}
	fmt.Println()
}

func machine() string {
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	model := "unknown"
	if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(cpu); m != nil {
		model = string(m[1])
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d cores (%s), Linux %s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)))
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// versions says which version there is of what is run.
func versions() string {
	all := []string{runtime.Version(), sessileVersion(), version("redis-server", "--version"), version("nutcracker", "--version"), version("haproxy", "-v"),
		version(findFPM(), "-v"), version(cmp.Or(find("mariadbd"), "mariadbd"), "--version")}
	return strings.Join(all, ", ")
}

func sessileVersion() string {
	return "sessile at " + version("git", "describe", "--always", "--dirty", "--exclude=*")
}

// version is what a program says of its version.
func version(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	said := regexp.MustCompile(`(^|v=|Ver |nutcracker-|HAProxy version |PHP )[0-9a-f]+[^\s]*`).Find(out)
	if err != nil || said == nil {
		return "no " + argv[0]
	}
	return strings.NewReplacer("v=", "Redis ", "Ver ", "").Replace(string(said))
}
