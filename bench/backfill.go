package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/migrate"
)

const (
	lifetime  = "86400s" // longer than any run
	handBatch = 200      // sessions in one write of the loader by hand
)

func (r *run) backfill() error {
	redis, err := r.redis()
	if err != nil {
		return err
	}
	n := r.scaled(200_000)
	r.say("making %d session files", n+n/10)
	large, err := r.sessions("large", n)
	if err != nil {
		return err
	}
	small, err := r.sessions("small", n/10)
	if err != nil {
		return err
	}
	if _, err := r.pipe(redis, large); err != nil { // Redis has its memory now; not counted
		return err
	}
	names := []string{"redis-cli --pipe", "by hand, 2 workers", "by hand, 4 workers", "sessile", "sessile, a tenth of it"}
	results, err := r.rotated("backfill", names, func(row int) ([]float64, error) {
		if err := redis.cli("FLUSHALL"); err != nil {
			return nil, err
		}
		switch row {
		case 0:
			return r.pipe(redis, large)
		case 1, 2:
			return byHand(redis, large, 2*row)
		case 3:
			return r.files(redis, large)
		default:
			return r.files(redis, small)
		}
	})
	if err != nil {
		return err
	}
	fmt.Printf("\n### Backfill\n\n%d PHP session files of about 1 KiB, in the page cache, to one Redis without persistence. redis-cli: the same sessions, as "+
		"`SET key value EX` in one file, `redis-cli --pipe < file`, the loading alone. By hand: a loader in Go that reads the files and sends SETs, %d at a time, and "+
		"guards nothing. Sessile: between start and end of backfill and reconcile pass, as `migrate status` has them.\n", n, handBatch)
	rates := [][]string{{"", "sessions/s", "rate to redis-cli"}}
	for i, s := range results[:4] {
		rates = append(rates, []string{names[i], fmt.Sprintf("%.0f", s.mid(0)), s.share(results[0], 0)})
	}
	sessile := results[3]
	pass := sessile.median(func(round int, v []float64) float64 { return v[1] / results[0][round][0] })
	rates[4][0] += ": backfill"
	table(append(rates, []string{"sessile: reconcile pass", fmt.Sprintf("%.0f", sessile.mid(1)), fmt.Sprintf("%.2f", pass)}))
	memory := [][]string{{"resident MiB of sessile", "before", "peak of backfill", "peak of the gates into sync", "peak of the reconcile pass", "after"}}
	for i, sessions := range []*sessions{large, small} {
		cells := results[3+i].cells("%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f", "%.0f")[2:]
		memory = append(memory, append([]string{fmt.Sprint(sessions.n, " sessions")}, cells...))
	}
	table(memory)
	return nil
}

// sessions are a directory of session files, and a file with the commands that load them.
type sessions struct {
	dir, commands string
	n             int
}

// sessions makes n of them; writing leaves them in the page cache.
func (r *run) sessions(name string, n int) (*sessions, error) {
	s := &sessions{filepath.Join(r.dir, name), filepath.Join(r.dir, name+".resp"), n}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	var commands bytes.Buffer
	pad := strings.Repeat("x", 960)
	for i := range n {
		id := fmt.Sprintf("%026d", i*7919)
		body := fmt.Sprintf(`user|s:10:"user%06d";cart|a:1:{i:0;s:9:"item%05d";}pad|s:960:"%s";`, i, i%100_000, pad)
		if err := os.WriteFile(filepath.Join(s.dir, "sess_"+id), []byte(body), 0o600); err != nil {
			return nil, err
		}
		commands.Write(resp.AppendRequestStrings(nil, "SET", prefix+id, body, "EX", strings.TrimSuffix(lifetime, "s")))
	}
	return s, os.WriteFile(s.commands, commands.Bytes(), 0o600)
}

// pipe loads the sessions with redis-cli. It returns sessions per second.
func (r *run) pipe(redis *server, s *sessions) ([]float64, error) {
	in, err := os.Open(s.commands)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.CommandContext(r.ctx, "redis-cli", "-u", "redis://"+redis.addr, "--pipe")
	cmd.Stdin = in
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("errors: 0, replies: %d\n", s.n)) {
		return nil, fmt.Errorf("redis-cli --pipe: %v: %s", err, out)
	}
	return []float64{float64(s.n) / took.Seconds()}, nil
}

// byHand reads the files and loads them, as a program for the purpose would. It returns sessions per second.
func byHand(redis *server, s *sessions, workers int) ([]float64, error) {
	start := time.Now()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() { errs[w] = loadFiles(redis, s.dir, entries, &next) })
	}
	wg.Wait()
	return []float64{float64(s.n) / time.Since(start).Seconds()}, errors.Join(errs...)
}

func loadFiles(redis *server, dir string, entries []fs.DirEntry, next *atomic.Int64) error {
	c, err := net.Dial("tcp", redis.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	life := []byte(strings.TrimSuffix(lifetime, "s"))
	buf, commands := make([]byte, 64<<10), []byte(nil)
	for {
		from := int(next.Add(handBatch)) - handBatch
		if from >= len(entries) {
			return nil
		}
		commands = commands[:0]
		n := 0
		for _, e := range entries[from:min(from+handBatch, len(entries))] {
			id, ok := strings.CutPrefix(e.Name(), "sess_")
			if !ok {
				continue
			}
			fd, err := unix.Open(dir+"/"+e.Name(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			size, err := unix.Read(fd, buf)
			unix.Close(fd)
			if err != nil {
				return err
			}
			commands = resp.AppendRequest(commands, []byte("SET"), []byte(prefix+id), buf[:size], []byte("EX"), life)
			n++
		}
		if err := exchange(c, commands, n); err != nil {
			return err
		}
	}
}

// files moves session files.
func (r *run) files(redis *server, s *sessions) (values []float64, err error) {
	defer func() { err = errors.Join(err, os.Remove(filepath.Join(s.dir, ".sessile"))) }()
	values, _, err = r.engine(s.n, "--target=redis://"+redis.addr, "--origin-key="+prefix, "--origin=file://"+s.dir+"?layout=php&lifetime="+lifetime)
	return values, err
}

// engine moves n sessions with a gateway of its own, through dual-write into sync. It returns sessions per second of
// backfill and reconcile pass, and the gateway's memory: before, the most during the backfill, during the gates into
// sync, which compare everything, during the pass, and after; and how long the step into sync took, gates included.
func (r *run) engine(n int, args ...string) (values []float64, step time.Duration, err error) {
	g, err := r.serve(args...)
	if err != nil {
		return nil, 0, err
	}
	defer g.stop()
	values = []float64{0, 0, g.memory("VmRSS")}
	for i, p := range []struct {
		to  migrate.Phase
		job func(migrate.Status) migrate.Job
	}{{migrate.DualWrite, func(st migrate.Status) migrate.Job { return st.Backfill }},
		{migrate.Sync, func(st migrate.Status) migrate.Job { return st.Reconcile }}} {
		start := time.Now()
		if err := g.take(p.to); err != nil {
			return nil, 0, err
		}
		if i == 1 {
			step = time.Since(start)
			values = append(values, g.memory("VmHWM"))
			if err := g.resetPeak(); err != nil {
				return nil, 0, err
			}
		}
		if values[i], err = r.await(g, n, p.job); err != nil {
			return nil, 0, err
		}
		values = append(values, g.memory("VmHWM"))
		if err := g.resetPeak(); err != nil {
			return nil, 0, err
		}
	}
	return append(values, g.memory("VmRSS")), step, nil
}

// await waits until a worker has seen all, and returns its rate. It asks seldom, since there are few cores.
func (r *run) await(g *gateway, n int, job func(migrate.Status) migrate.Job) (float64, error) {
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Second) {
		st, err := g.status()
		if err != nil {
			return 0, err
		}
		j := job(st)
		switch {
		case j.State == "done" && j.Seen == int64(n) && j.Copied+j.Same == j.Seen:
			return float64(n) / j.Ended.Sub(j.Started).Seconds(), nil
		case j.State == "done" || time.Now().After(end) || r.ctx.Err() != nil:
			return 0, fmt.Errorf("in phase %s of %d sessions: %+v", st.Phase, n, j)
		}
	}
}
