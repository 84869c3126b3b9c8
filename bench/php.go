package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// page counts its visits in a session of 1 KiB, and says what the session cost it.
const page = `<?php
$start = hrtime(true);
session_start();
$_SESSION['pad'] ??= str_repeat('x', 1000);
$visits = $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
session_write_close();
echo $visits, ' ', hrtime(true) - $start;
`

const (
	prefix  = "PHPREDIS_SESSION:"
	workers = 8
)

// A site is a way for PHP to keep its sessions.
type site struct {
	name          string
	handler, path string // session.save_handler and session.save_path
	gateway       *gateway
	phase         migrate.Phase // of the gateway, where it is one with an engine
	engine        bool

	fpm    testserver.FPMServer // its FastCGI client
	visits map[string]int       // of each session
}

func (r *run) php() error {
	fpm := findFPM()
	if fpm == "php-fpm" {
		fmt.Print("\n### A PHP page\n\nLeft out, since it is not on this machine: php-fpm (`apt-get install --no-install-recommends php-fpm php-redis`).\n")
		return nil
	}
	sites, err := r.sites()
	if err != nil {
		return err
	}
	if err := r.startFPM(fpm, sites); err != nil {
		return err
	}
	for _, s := range sites {
		if err := s.seed(r.ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r.say("taking the gateways to their phases")
	steps := make([]error, len(sites))
	var wg sync.WaitGroup
	for i, s := range sites {
		if s.engine {
			wg.Go(func() { steps[i] = s.gateway.take(s.phase) })
		}
	}
	wg.Wait()
	if err := errors.Join(steps...); err != nil {
		return err
	}

	fmt.Printf("\n### A PHP page\n\nphp-fpm with %d workers for each row; a page opens its session of 1 KiB, counts up and writes it back; every page "+
		"is checked to find what the one before left. Session: session_start() to session_write_close() as PHP sees it, with "+
		"redis.session.locking_enabled=1, and with a new connection to Redis or the gateway each time, as phpredis does by default. Request: the whole FastCGI "+
		"exchange over a unix socket. Times in µs. Each phase has a gateway, a directory and a Redis of its own. Distinct sessions throughout.\n", workers)
	rows := [][]string{{"sessions in", "pages at a time", "session mean", "p50", "p99", "request mean", "p50", "p99", "session to phpredis", "request to phpredis"}}
	names := make([]string, len(sites))
	for i, s := range sites {
		names[i] = s.name
	}
	for _, atATime := range []int{1, workers} {
		results, err := r.rotated(fmt.Sprintf("%d at a time", atATime), names, func(row int) ([]float64, error) {
			return sites[row].browse(r.ctx, atATime, r.scaled(500*(atATime+1)))
		})
		if err != nil {
			return err
		}
		for i, s := range results {
			cells := append(s.cells("%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f"), s.share(results[1], 0), s.share(results[1], 3))
			rows = append(rows, append([]string{names[i], fmt.Sprint(atATime)}, cells...))
		}
	}
	table(rows)
	return nil
}

// sites starts what keeps the sessions: nothing for files, a Redis and a gateway of its own for each of the others.
func (r *run) sites() ([]*site, error) {
	dir := func(name string) (string, error) {
		path := filepath.Join(r.dir, name)
		return path, os.Mkdir(path, 0o700)
	}
	files, err := dir("files")
	if err != nil {
		return nil, err
	}
	direct, err := r.redis()
	if err != nil {
		return nil, err
	}
	sites := []*site{{name: "files", handler: "files", path: files}, {name: "phpredis, direct", handler: "redis", path: "tcp://" + direct.addr},
		{name: "gateway, plain"}}
	for p := migrate.Off; p <= migrate.Complete; p++ {
		sites = append(sites, &site{name: "gateway, " + p.String(), phase: p, engine: true})
	}
	for i, s := range sites[2:] {
		redis, err := r.redis()
		if err != nil {
			return nil, err
		}
		args := []string{"--target=redis://" + redis.addr, "--origin-key=" + prefix}
		if s.engine {
			origin, err := dir(fmt.Sprint("origin", i))
			if err != nil {
				return nil, err
			}
			args = append(args, "--origin=file://"+origin+"?layout=php&lifetime=1440s")
		}
		if s.gateway, err = r.serve(args...); err != nil {
			return nil, err
		}
		s.handler, s.path = "redis", "tcp://"+s.gateway.addr
	}
	return sites, nil
}

// startFPM starts one php-fpm with a pool of workers for every site.
func (r *run) startFPM(fpm string, sites []*site) error {
	root := filepath.Join(r.dir, "www")
	if err := errors.Join(os.Mkdir(root, 0o755), os.WriteFile(filepath.Join(root, "page.php"), []byte(page), 0o644)); err != nil {
		return err
	}
	conf := "[global]\nerror_log = /dev/stderr\ndaemonize = no\n"
	for i, s := range sites {
		s.fpm.DocRoot, s.fpm.Socket = root, filepath.Join(r.dir, fmt.Sprintf("fpm%d.sock", i))
		conf += fmt.Sprintf("[site%d]\nlisten = %s\npm = static\npm.max_children = %d\ncatch_workers_output = yes\n", i, s.fpm.Socket, workers)
		if os.Geteuid() == 0 {
			conf += "user = root\ngroup = root\n"
		}
		for name, value := range map[string]string{"session.save_handler": s.handler, "session.save_path": s.path, "session.gc_maxlifetime": "1440",
			"session.gc_probability": "0", "session.use_strict_mode": "0", "redis.session.locking_enabled": "1", "display_errors": "1"} {
			conf += fmt.Sprintf("php_admin_value[%s] = '%s'\n", name, value)
		}
	}
	path := filepath.Join(r.dir, "fpm.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return err
	}
	argv := []string{fpm, "--nodaemonize", "--fpm-config", path}
	if os.Geteuid() == 0 {
		argv = append(argv, "--allow-to-run-as-root")
	}
	_, err := r.start("unix", sites[len(sites)-1].fpm.Socket, argv...)
	return err
}

// findFPM returns the php-fpm of this machine, which Debian calls by its version; "php-fpm" if there is none.
func findFPM() string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if found, _ := filepath.Glob(filepath.Join(dir, "php-fpm[0-9]*")); len(found) > 0 {
			return slices.Max(found)
		}
	}
	return "php-fpm"
}

// seed makes the sessions.
func (s *site) seed(ctx context.Context) error {
	s.visits = map[string]int{}
	for i := range 25 * workers {
		s.visits[fmt.Sprintf("bench%027d", i)] = 0
	}
	_, err := s.browse(ctx, workers, len(s.visits))
	return err
}

// browse asks for so many pages, some at a time, each of which has sessions of its own. A page that does not find its
// session as the one before left it is an error. It returns mean, median and 99th percentile of what the session took as
// PHP sees it, and of the whole request, in µs.
func (s *site) browse(ctx context.Context, atATime, pages int) (_ []float64, err error) {
	ids := slices.Sorted(maps.Keys(s.visits))
	var mu sync.Mutex // guards what follows, and s.visits
	var session, request []float64
	var wg sync.WaitGroup
	for worker := range atATime {
		wg.Go(func() {
			for i := worker; i < pages; i += atATime {
				id := ids[i%len(ids)] // len(ids) is a multiple of workers
				start := time.Now()
				r, perr := s.fpm.Get(ctx, "page.php", "", map[string]string{"PHPSESSID": id})
				took := time.Since(start)
				var visits, ns int
				if perr == nil {
					if _, serr := fmt.Sscanf(string(r.Body), "%d %d", &visits, &ns); serr != nil {
						perr = fmt.Errorf("the page says %q", strings.TrimSpace(string(r.Body)))
					}
				}
				mu.Lock()
				s.visits[id]++
				if perr == nil && visits != s.visits[id] {
					perr = fmt.Errorf("a session counts %d visits and had %d", visits, s.visits[id])
				}
				err = errors.Join(err, perr)
				session, request = append(session, float64(ns)/1000), append(request, float64(took.Nanoseconds())/1000)
				stop := err != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if err != nil {
		return nil, err
	}
	return append(summary(session), summary(request)...), nil
}
