package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/config"
	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

func (a *app) serve() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway that applications keep their sessions through",
		Long: `Run the gateway that applications keep their sessions through.

With --origin and --target it serves the origin's sessions until a move is begun with
"sessile migrate create", and then from wherever the move is. With --target alone it
is a plain session gateway. Every flag can be said by sessile.yaml and by the
environment, too: --max-value is SESSILE_MAX_VALUE.`,
		Example: `  sessile serve --listen redis://127.0.0.1:6400 \
      --origin 'file:///var/lib/php/sessions?layout=php&lifetime=1440s' --origin-key 'PHPREDIS_SESSION:' \
      --target redis://127.0.0.1:6379/0`,
	}
	flags := addSettings(cmd, func(config.Setting) bool { return true })
	return a.leaf(cmd, func(ctx context.Context, _ []string) error {
		c, err := a.load(flags)
		if err == nil {
			if err = c.Check(true); err != nil {
				err = usage("%v", err)
			}
		}
		if err != nil {
			return err
		}
		return a.runGateway(ctx, c)
	})
}

// served is a site that runs.
type served struct {
	stores
	engine    *migrate.Engine // nil: plain
	gateway   *gateway.Server
	listeners []net.Listener
	admin     *admin.Site
}

func (s *served) close() error {
	var err error
	for _, l := range s.listeners {
		l.Close() // those that are served are closed already
	}
	if s.gateway != nil {
		err = s.gateway.Close()
	}
	if s.engine != nil {
		err = errors.Join(err, s.engine.Close())
	}
	return errors.Join(err, s.stores.close())
}

// start opens a site's stores and listeners. It serves nobody yet.
func start(ctx context.Context, c *config.Config, site config.Site, log *slog.Logger) (s *served, err error) {
	s = &served{admin: &admin.Site{Name: site.Name, Workflow: site.Migrate.Workflow, Meter: &admin.Meter{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			s = nil
		}
	}()
	if s.stores, err = openStores(ctx, site, log); err != nil {
		return s, err
	}
	var at store.Store
	if s.origin == nil {
		if at, err = plainStore(ctx, site, neighbours(c, site), s.target, log); err != nil {
			return s, err
		}
		s.admin.Ping = func(ctx context.Context) error {
			_, err := s.target.Instance(ctx)
			return err
		}
	} else {
		if s.engine, err = newEngine(site, s.stores, s.stores, log); err != nil {
			return s, err
		}
		at, s.admin.Engine = s.engine, s.engine
	}
	s.gateway, err = gateway.New(gatewaySite(site, at, s.target), gateway.Options{Logger: log.With("site", site.Name), Hooks: gateway.Hooks{
		Done:     func(e gateway.Event) { s.admin.Meter.Done(e.Command, e.Outcome, e.Took) },
		Security: s.admin.Meter.Security,
	}})
	if err != nil {
		return s, err
	}
	s.admin.Target = shownTarget(s.target)
	s.admin.Gauges = func() []admin.Gauge { return append(gauges(s.gateway.Stats()), failoverGauges(s.target)...) }
	for _, raw := range site.Listen {
		l, err := gateway.ListenURL(raw)
		if err != nil {
			return s, fmt.Errorf("site %s: %w", site.Name, err)
		}
		s.listeners = append(s.listeners, l)
		log.Info("listening", "site", site.Name, "address", l.Addr().Network()+" "+l.Addr().String())
	}
	return s, nil
}

func gauges(n gateway.Stats) []admin.Gauge {
	return []admin.Gauge{
		{Name: "connections", Help: "Client connections.", Value: float64(n.Open)},
		{Name: "connections_total", Help: "Client connections since the start.", Value: float64(n.Accepted)},
		{Name: "connections_refused_total", Help: "Client connections above a limit.", Value: float64(n.Refused)},
		{Name: "commands_total", Help: "Commands of all clients.", Value: float64(n.Commands)},
		{Name: "protocol_errors_total", Help: "Connections closed for what they sent.", Value: float64(n.Protocol)},
		{Name: "held_total", Help: "Commands that waited for a store that was away.", Value: float64(n.Held)},
		{Name: "dropped_after_destroy_total", Help: "Writes of sessions that were destroyed after the client read them.", Value: float64(n.Dropped)},
		{Name: "logins_failed_total", Help: "Logins with a wrong password.", Value: float64(n.Logins)},
		{Name: "panics_total", Help: "Connections given up because of a bug.", Value: float64(n.Panics)},
		{Name: "buffered_bytes", Help: "Unfinished commands and unread replies.", Value: float64(n.Memory)},
		{Name: "access_set_lost_total", Help: "Commands about the access set that the target did not answer.", Value: float64(n.SetLost)},
		{Name: "locks", Help: "Session locks held by clients.", Value: float64(n.LocksHeld)},
		{Name: "locks_waiting", Help: "Clients that wait for a session lock.", Value: float64(n.LocksWaiting)},
		{Name: "locks_expired_total", Help: "Session locks that ended by their own life.", Value: float64(n.LocksExpired)},
	}
}

// runGateway serves until a signal or ctx ends it, and then drains.
func (a *app) runGateway(ctx context.Context, c *config.Config) (err error) {
	// ctx ends with the first signal, too, but may do so before that signal is here: only what is here is counted.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	log := a.logger(c)
	slog.SetDefault(log)
	for _, w := range c.Warnings {
		log.Warn("configuration", "warning", w)
	}
	warnOfDescriptors(c, log)
	token, err := c.Admin.Token()
	if err != nil {
		return usage("%v", err)
	}
	var sites []*served
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
	}()
	var shown []*admin.Site
	for _, site := range c.Sites {
		s, err := start(ctx, c, site, log)
		if err != nil {
			return err
		}
		sites, shown = append(sites, s), append(shown, s.admin)
	}
	names, err := admin.Names(c.Admin.Cert, c.Admin.Key)
	if err != nil {
		return fmt.Errorf("admin-cert: %w", err)
	}
	api := admin.New(shown, admin.Options{Token: token, Names: names, Version: version(), Logger: log})
	adminListener, err := listenAdmin(c.Admin)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}

	var wg sync.WaitGroup
	failed := make(chan error, 1)
	try := func(err error) {
		if !errors.Is(err, gateway.ErrServerClosed) && !errors.Is(err, http.ErrServerClosed) {
			select {
			case failed <- err:
			default:
			}
		}
	}
	if adminListener != nil {
		log.Info("admin", "address", adminListener.Addr().Network()+" "+adminListener.Addr().String())
		wg.Go(func() { try(api.Serve(adminListener)) })
	}
	for _, s := range sites {
		for _, l := range s.listeners {
			wg.Go(func() { try(s.gateway.Serve(l)) })
		}
	}
	log.Info("serving", "version", version(), "sites", len(sites))
	notify("READY=1")

	select {
	case err = <-failed:
		log.Error("stopping", "error", err)
	case <-ending(signals, log):
	}
	go func() {
		s := <-ending(signals, log)
		log.Warn("quitting at once")
		os.Exit(128 + int(s))
	}()
	notify("STOPPING=1")
	log.Info("draining", "for", c.Drain)
	api.Drain()
	drain, cancel := context.WithTimeout(context.Background(), max(c.Drain, 0))
	defer cancel()
	var drained sync.WaitGroup
	for _, s := range sites {
		drained.Go(func() {
			if err := s.gateway.Shutdown(drain); err != nil {
				log.Warn("clients were cut off", "site", s.admin.Name, "error", err)
			}
		})
	}
	drained.Wait()
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := api.Shutdown(stop); err != nil {
		log.Warn("admin requests were cut off", "error", err)
	}
	wg.Wait()
	log.Info("stopped")
	return err
}

// ending returns a channel for the next signal that means an end.
func ending(signals <-chan os.Signal, log *slog.Logger) <-chan syscall.Signal {
	end := make(chan syscall.Signal, 1)
	go func() {
		for s := range signals {
			if s != syscall.SIGHUP {
				end <- s.(syscall.Signal)
				return
			}
			log.Info("SIGHUP: certificates are read anew by themselves, and for the rest a restart is needed")
		}
	}()
	return end
}

func (a *app) logger(c *config.Config) *slog.Logger {
	opt := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.err, opt))
	}
	return slog.New(slog.NewTextHandler(a.err, opt))
}

func listenAdmin(c config.Admin) (net.Listener, error) {
	if c.Address == "off" {
		return nil, nil
	}
	if path, ok := strings.CutPrefix(c.Address, "unix:"); ok {
		return gateway.ListenURL((&url.URL{Scheme: "redis+unix", Path: path, RawQuery: "mode=0660"}).String())
	}
	return admin.Listen(c.Address, c.Cert, c.Key)
}

// warnOfDescriptors compares the connections that are allowed with the descriptors that there are.
func warnOfDescriptors(c *config.Config, log *slog.Logger) {
	want := uint64(100)
	for _, s := range c.Sites {
		want += uint64(s.MaxConnections)
	}
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have); err == nil && have.Cur < want {
		log.Warn("fewer descriptors than max-connections may need: raise LimitNOFILE= or ulimit -n", "have", have.Cur, "want", want)
	}
}

// notify tells systemd (sd_notify(3)), if it wants to know. What it misses it finds out by itself.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	nc, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer nc.Close()
	_, _ = nc.Write([]byte(state))
}
