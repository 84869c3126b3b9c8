// Package demo shows a whole move on one machine: a small site whose sessions lie in PHP-layout files, its visitors,
// and Sessile that takes the sessions to Redis and back and to Redis again while they click.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

// Options of the demo. Zero values mean the defaults.
type Options struct {
	JSON     bool      // one object on Out instead of the report
	Out, Err io.Writer // report and progress; default standard output and error
	Redis    string    // auto (the default): the redis-server found on this machine, or else memory; a path; memory
	Visitors int       // default 200
	Short    bool      // every phase a second shorter, for tests
	Width    int       // of the terminal that Err is; 0: it is none, and progress is plain lines
}

// Report is what the demo ends with.
type Report struct {
	Users         int        `json:"users"` // the visitors it began with
	UsersKept     int        `json:"users_kept"`
	Requests      int64      `json:"requests"`
	LoggedOut     int        `json:"logged_out"`
	LogoutsUndone int        `json:"logouts_undone"`
	LostUpdates   int        `json:"lost_updates"`
	Failures      int64      `json:"failures"` // pages that were answered with an error
	Phase         string     `json:"phase"`    // the last one
	Redis         string     `json:"redis"`    // what the sessions were moved to
	Copied        int64      `json:"sessions_copied"`
	RolledBack    bool       `json:"rolled_back"`
	Seconds       float64    `json:"seconds"`
	Pages         []PageTime `json:"pages"`
	Examples      []string   `json:"examples,omitempty"`
}

// ErrLost says that the recorder found something lost.
var ErrLost = errors.New("demo: the recorder found something lost")

// Run runs the demo. It returns ErrLost, and the report, if a user was logged out, a logout undone or an update lost.
func Run(ctx context.Context, opt Options) (Report, error) {
	if opt.Out == nil {
		opt.Out = os.Stdout
	}
	if opt.Err == nil {
		opt.Err = os.Stderr
	}
	if opt.Visitors <= 0 {
		opt.Visitors = 200
	}
	w, err := newWorld(ctx, opt)
	if err != nil {
		return Report{}, err
	}
	defer w.close()
	if err := w.show(ctx); err != nil {
		return Report{}, fmt.Errorf("demo: in %s: %w", *w.traffic.phase.Load(), err)
	}
	r := w.report()
	if opt.JSON {
		enc := json.NewEncoder(opt.Out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return r, err
		}
	} else {
		r.print(opt.Out)
	}
	if r.LoggedOut+r.LogoutsUndone+r.LostUpdates > 0 || r.UsersKept != r.Users {
		return r, ErrLost
	}
	return r, nil
}

// world is the site: its directory of sessions, its Redis, its gateway, its visitors.
type world struct {
	opt     Options
	dir     string
	out     *screen
	origin  store.Origin
	target  store.Target
	redis   string // address of the Redis, "" for the memory target
	name    string // what the target is, for the report
	engine  *migrate.Engine
	server  *gateway.Server
	addr    string // of the gateway
	traffic *traffic
	began   time.Time
	copied  int64
	back    bool
	kept    int
	closers []func()

	// What tests put between the engine and its stores, and what their sites are like.
	wrapOrigin func(store.Origin) store.Origin
	wrapTarget func(store.Target) store.Target
	change     func(*migrate.Options, *gateway.Site)
}

func (w *world) close() {
	for i := len(w.closers) - 1; i >= 0; i-- {
		w.closers[i]()
	}
}

func newWorld(ctx context.Context, opt Options) (w *world, err error) {
	w = &world{opt: opt, began: time.Now()}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = os.MkdirTemp("", "sessile-demo-"); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { os.RemoveAll(w.dir) })
	sessions := filepath.Join(w.dir, "sessions")
	if err := os.Mkdir(sessions, 0o700); err != nil {
		return nil, err
	}
	if err := w.findTarget(ctx); err != nil {
		return nil, err
	}
	if w.origin, err = file.Open(ctx, sessions, file.Options{Lifetime: lifetime}); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { w.origin.Close() })

	w.traffic = &traffic{rec: recorder.New(), pace: 12 * time.Millisecond, times: map[string][]float64{}}
	w.out = newScreen(opt, w.traffic)
	for i := range opt.Visitors {
		id := newID()
		name := fmt.Sprintf("user%03d", i)
		if err := os.WriteFile(filepath.Join(sessions, "sess_"+id), body(name, nil), 0o600); err != nil {
			return nil, err
		}
		w.traffic.members = append(w.traffic.members, id)
		w.traffic.rec.LoggedIn(id)
	}
	return w, nil
}

// findTarget starts a private Redis, or falls back to memory.
func (w *world) findTarget(ctx context.Context) error {
	path := w.opt.Redis
	switch path {
	case "", "auto":
		found, err := exec.LookPath("redis-server")
		if err != nil {
			path = "memory"
			break
		}
		path = found
	}
	if path == "memory" {
		w.name = "memory (no redis-server on this machine)"
		if w.opt.Redis == "memory" {
			w.name = "memory"
		}
		w.target = memory.New(memory.Options{})
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", w.dir, "--daemonize", "no")
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("demo: starting %s: %w", path, err)
	}
	w.closers = append(w.closers, func() {
		_ = cmd.Process.Kill() // private, without persistence: there is nothing to save
		_ = cmd.Wait()
	})
	w.redis = "127.0.0.1:" + port
	s, err := redis.Open(ctx, &url.URL{Scheme: "redis", Host: w.redis, Path: "/0", RawQuery: url.Values{"prefix": {prefix}}.Encode()})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() { s.Close() })
	for end := time.Now().Add(10 * time.Second); ; {
		if err = s.Ping(ctx); err == nil {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("demo: %s does not answer: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	w.name = fmt.Sprintf("redis-server %s (%s, private)", info["redis_version"], path)
	w.target = s
	return nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// startGateway starts the engine and a gateway over it.
func (w *world) startGateway() error {
	times := migrate.DefaultTimes(500 * time.Millisecond) // everything is on this machine
	var origin store.Origin = w.origin
	if w.wrapOrigin != nil {
		origin = w.wrapOrigin(origin)
	}
	target := w.target
	if w.wrapTarget != nil {
		target = w.wrapTarget(target)
	}
	opt := migrate.Options{Workflow: "demo", Times: times, ShadowShare: 0.2}
	site := gateway.Site{Name: "demo", Prefix: prefix, Lifetime: lifetime}
	if w.change != nil {
		w.change(&opt, &site)
	}
	engine, err := migrate.New(origin, target, opt)
	if err != nil {
		return err
	}
	w.engine = engine
	w.closers = append(w.closers, func() { engine.Close() })
	site.Store = engine
	return w.serve(site)
}

// serve starts a gateway for a site, of which w.addr and w.server are then.
func (w *world) serve(site gateway.Site) error {
	server, err := gateway.New(site, gateway.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	w.server = server
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.addr = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	w.closers = append(w.closers, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		wg.Wait()
	})
	return nil
}

// through makes the visitors' pages use the handlers that choose returns, one for each worker.
func (w *world) through(choose func(worker int) handler) {
	var mu sync.Mutex
	made := map[int]handler{}
	via := func(worker int) handler {
		mu.Lock()
		defer mu.Unlock()
		if made[worker] == nil {
			made[worker] = choose(worker)
		}
		return made[worker]
	}
	w.traffic.via.Store(&via)
}

func (w *world) direct() files { return files{filepath.Join(w.dir, "sessions")} }

func client(addr string) func(worker int) handler {
	return func(worker int) handler { return &phpredis{addr: addr, token: fmt.Sprintf("demo|%d", worker)} }
}

// show is the whole move.
func (w *world) show(ctx context.Context) error {
	stay := func(d time.Duration) error {
		if w.opt.Short {
			d /= 3
		}
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	enter := func(phase, line string, args ...any) {
		w.traffic.phase.Store(&phase)
		w.out.line(phase, fmt.Sprintf(line, args...))
	}
	w.out.head(fmt.Sprintf("%d visitors are logged in; their sessions lie in PHP-layout files.\nThe target: %s.", w.opt.Visitors, w.name))

	if w.redis != "" {
		if err := w.plainRedis(ctx, enter, stay); err != nil {
			return err
		}
	}
	enter("plain files", "the site as it is: PHP's files handler")
	w.through(func(int) handler { return w.direct() })
	visitors, leave := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 8) })
	wg.Go(func() { w.out.run(visitors, w) })
	defer wg.Wait()
	defer leave()
	if err := stay(1500 * time.Millisecond); err != nil {
		return err
	}

	if err := w.startGateway(); err != nil {
		return err
	}
	enter("off", "the gateway serves the same files; half of the servers join it")
	half := client(w.addr)
	w.through(func(worker int) handler {
		if worker/10%2 == 0 {
			return w.direct()
		}
		return half(worker)
	})
	if err := stay(1500 * time.Millisecond); err != nil {
		return err
	}
	w.through(client(w.addr))
	if err := stay(1000 * time.Millisecond); err != nil { // pages that still run on files come to their end
		return err
	}

	step := func(ctx context.Context, to migrate.Phase, up bool) error {
		opt := migrate.StepOptions{Window: 500 * time.Millisecond, Say: w.out.say}
		if up {
			return w.engine.SwitchTraffic(ctx, to, opt)
		}
		return w.engine.ReverseTraffic(ctx, to, opt)
	}
	if err := w.engine.Create(ctx, migrate.StepOptions{Say: w.out.say}); err != nil {
		return err
	}
	for _, s := range []struct {
		to   migrate.Phase
		up   bool
		stay time.Duration
		line string
	}{
		{migrate.DualWrite, true, 2 * time.Second, "the files answer; Redis gets copies that nobody trusts yet"},
		{migrate.Sync, true, 2 * time.Second, "every write reaches both; the reconcile pass makes them equal"},
		{migrate.Live, true, 2500 * time.Millisecond, "Redis answers; every write still reaches both"},
		{migrate.DualWrite, false, 1500 * time.Millisecond, "second thoughts: all the way back, with everybody logged in"},
		{migrate.RampDown, true, 3 * time.Second, "on again: Redis answers and decides, the files follow"},
	} {
		at := *w.traffic.phase.Load()
		for {
			// Step by step, so that each phase is seen and its pages are counted under its name.
			phase, err := migrate.ParsePhase(at)
			if err != nil {
				phase = migrate.Off
			}
			next := phase + 1
			if !s.up {
				next = phase - 1
			}
			if err := step(ctx, next, s.up); err != nil {
				return err
			}
			w.note(ctx)
			at = next.String()
			if next == s.to {
				enter(at, "%s", s.line)
				break
			}
			enter(at, "on the way to %s", s.to)
			if err := stay(700 * time.Millisecond); err != nil {
				return err
			}
		}
		if !s.up {
			w.back = true
		}
		if err := stay(s.stay); err != nil {
			return err
		}
	}
	if err := w.engine.Complete(ctx, migrate.StepOptions{Say: w.out.say}); err != nil {
		return err
	}
	enter("complete", "Redis alone")
	if err := stay(1500 * time.Millisecond); err != nil {
		return err
	}
	if w.redis != "" {
		enter("no gateway", "the servers talk to Redis themselves")
		w.through(client(w.redis))
		if err := stay(1500 * time.Millisecond); err != nil {
			return err
		}
	}
	leave()
	wg.Wait()

	// Everybody's session once more, past everything of ours.
	look := w.lookTarget
	if w.redis != "" {
		look = lookRedis(w.redis)
	}
	for _, id := range w.traffic.members {
		if found, _, err := look(id); err == nil && found {
			w.kept++
		}
	}
	return w.traffic.rec.Final("a plain client at the end", look)
}

func (w *world) lookTarget(id string) (bool, []string, error) {
	rec, err := w.target.Load(context.Background(), id)
	if errors.Is(err, store.ErrAbsent) {
		return false, nil, nil
	}
	user, items := parse(rec.Data)
	return user != "", items, err
}

// note remembers how much the workers have copied.
func (w *world) note(ctx context.Context) {
	st := w.engine.Status(ctx)
	w.copied = max(w.copied, st.Backfill.Copied+st.Reconcile.Copied)
}

// plainRedis measures the same pages on Redis directly, on sessions of their own that are removed again: before the
// move, since create refuses a target that holds sessions already.
func (w *world) plainRedis(ctx context.Context, enter func(string, string, ...any), stay func(time.Duration) error) error {
	enter("plain Redis", "for comparison: the same pages, with phpredis straight to Redis")
	t := &traffic{rec: recorder.New(), pace: w.traffic.pace, times: map[string][]float64{}}
	phase := "plain Redis"
	t.phase.Store(&phase)
	p := &phpredis{addr: w.redis, token: "demo"}
	defer p.close()
	for range w.opt.Visitors {
		id := newID()
		t.members = append(t.members, id)
		if _, err := p.visit(ctx, visit{id: id, login: "somebody"}); err != nil {
			return err
		}
	}
	via := map[int]handler{}
	var mu sync.Mutex
	choose := func(worker int) handler {
		mu.Lock()
		defer mu.Unlock()
		if via[worker] == nil {
			via[worker] = client(w.redis)(worker)
		}
		return via[worker]
	}
	t.via.Store(&choose)
	visitors, leave := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { t.browse(visitors, 8) })
	err := stay(1500 * time.Millisecond)
	leave()
	wg.Wait()
	for _, h := range via {
		h.close()
	}
	w.traffic.times[phase] = t.times[phase]
	if _, ferr := p.do(ctx, "FLUSHALL"); err == nil { // a Redis that this demo has started itself
		err = ferr
	}
	return err
}

func (w *world) report() Report {
	rec := w.traffic.rec.Report()
	return Report{Users: w.opt.Visitors, UsersKept: w.kept, Requests: rec.Requests, LoggedOut: rec.LoggedOut,
		LogoutsUndone: rec.LogoutsUndone, LostUpdates: rec.LostUpdates, Failures: rec.Failures, Phase: migrate.Complete.String(),
		Redis: w.name, Copied: w.copied, RolledBack: w.back, Seconds: time.Since(w.began).Round(100 * time.Millisecond).Seconds(),
		Pages:    w.traffic.pageTimes([]string{"plain files", "plain Redis", "off", "dual-write", "sync", "live", "ramp-down", "complete", "no gateway"}),
		Examples: rec.Examples}
}

func (r Report) print(out io.Writer) {
	fmt.Fprintf(out, "\n  users kept        %d of %d\n  logged out        %d\n  logouts undone    %d\n  lost updates      %d\n",
		r.UsersKept, r.Users, r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
	fmt.Fprintf(out, "  failed pages      %d of %d\n  sessions copied   %d\n  time              %.1f s\n  target            %s\n",
		r.Failures, r.Requests, r.Copied, r.Seconds, r.Redis)
	fmt.Fprintf(out, "\n  session work of a page   pages   mean ms    p50 ms    p99 ms\n")
	for _, p := range r.Pages {
		fmt.Fprintf(out, "  %-22s %7d %9.3f %9.3f %9.3f\n", p.Phase, p.Pages, p.Mean, p.P50, p.P99)
	}
	for _, e := range r.Examples {
		fmt.Fprintf(out, "  ! %s\n", e)
	}
}

// screen tells what goes on: one line that changes on a terminal, plain lines elsewhere.
type screen struct {
	opt     Options
	traffic *traffic
	mu      sync.Mutex // guards what is written
	said    atomic.Pointer[string]
}

func newScreen(opt Options, t *traffic) *screen { return &screen{opt: opt, traffic: t} }

func (s *screen) head(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.opt.Err, text)
}

func (s *screen) line(phase, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said.Store(new(string))
	if s.opt.Width > 0 {
		fmt.Fprint(s.opt.Err, "\r\x1b[K")
	}
	fmt.Fprintf(s.opt.Err, "%-12s %s\n", phase, text)
}

func (s *screen) say(line string) { s.said.Store(&line) }

// run shows the counts, twice a second on a terminal.
func (s *screen) run(ctx context.Context, w *world) {
	every := 3 * time.Second
	if s.opt.Width > 0 {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	last, at := int64(0), time.Now()
	rate := 0.0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if s.opt.Width > 0 {
				fmt.Fprint(s.opt.Err, "\r\x1b[K")
			}
			return
		}
		if took := time.Since(at); took >= time.Second {
			n := s.traffic.pages.Load()
			rate, last, at = float64(n-last)/took.Seconds(), n, time.Now()
		}
		r := s.traffic.rec.Report()
		line := fmt.Sprintf("             %d pages, %.0f/s | logged out %d, undone %d, lost %d", s.traffic.pages.Load(), rate, r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
		if said := s.said.Load(); said != nil && *said != "" {
			line += " | " + *said
		}
		s.mu.Lock()
		if s.opt.Width > 0 {
			if n := s.opt.Width - 1; len(line) > n {
				line = line[:n]
			}
			fmt.Fprint(s.opt.Err, "\r\x1b[K", line)
		} else {
			fmt.Fprintln(s.opt.Err, strings.TrimSpace(line))
		}
		s.mu.Unlock()
	}
}
