package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sessile/sessile/migrate"
)

// proc is a server of this run.
type proc struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start starts a server and waits until it accepts connections.
func (r *run) start(network, address string, argv ...string) (*proc, error) {
	p := &proc{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.log = filepath.Join(r.dir, fmt.Sprintf("%d-%s.log", len(r.procs), filepath.Base(argv[0])))
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that starts it for ours (prctl(2), PR_SET_PDEATHSIG), and Go ends threads at times.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	r.procs = append(r.procs, p)
	return p, p.await(r.ctx, network, address)
}

// await waits until the server accepts connections.
func (p *proc) await(ctx context.Context, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := net.Dial(network, address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-time.After(10 * time.Millisecond):
			continue
		case <-p.done:
		case <-ctx.Done():
		}
		text, _ := os.ReadFile(p.log)
		return fmt.Errorf("%s: %w\n%s", p.cmd.Path, err, text)
	}
}

// stop ends the server, and after five seconds also one that does not want to, with all its workers.
func (p *proc) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // its own group; nobody has waited for it yet
		<-p.done
	}
}

func (r *run) stopAll() {
	for _, p := range r.procs {
		p.stop()
	}
	r.procs = nil
}

// cpu is the processor time that p has used: utime and stime of proc(5), in ticks of 10 ms.
func (p *proc) cpu() time.Duration {
	if p == nil {
		return 0
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is what p has in memory (VmRSS), or had at the most since resetPeak (VmHWM), in MiB.
func (p *proc) memory(field string) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	_, after, _ := strings.Cut(string(b), field+":")
	var kib float64
	_, _ = fmt.Sscan(after, &kib)
	return kib / 1024
}

// resetPeak makes VmHWM start anew: proc_pid_clear_refs(5).
func (p *proc) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0o200)
}

// find returns where a server is, which need not be in the path; "" if there is none.
func find(name string) string {
	for _, file := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	return ""
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// server is a redis-server of this run, without persistence.
type server struct {
	*proc
	addr, socket string
}

func (r *run) redis(options ...string) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	s := &server{addr: addr, socket: filepath.Join(r.dir, port+".sock")}
	argv := []string{"redis-server", "--port", port, "--bind", "127.0.0.1", "--unixsocket", s.socket, "--save", "", "--appendonly", "no", "--dir", r.dir}
	s.proc, err = r.start("unix", s.socket, append(argv, options...)...)
	return s, err
}

// cli runs redis-cli.
func (s *server) cli(args ...string) error {
	out, err := exec.Command("redis-cli", append([]string{"-s", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("redis-cli %v: %w: %s", args, err, out)
	}
	return nil
}

// gateway is a sessile of this run.
type gateway struct {
	*proc
	run         *run
	addr, admin string
}

// serve starts `sessile serve` with args, at a free address besides the listeners in args.
func (r *run) serve(args ...string) (*gateway, error) {
	g := &gateway{run: r}
	var err error
	for _, into := range []*string{&g.addr, &g.admin} {
		if *into, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	argv := append([]string{r.sessile, "serve", "--listen=redis://" + g.addr, "--admin=" + g.admin}, args...)
	if g.proc, err = r.start("tcp", g.addr, argv...); err != nil {
		return nil, err
	}
	return g, g.await(r.ctx, "tcp", g.admin)
}

// migrate runs `sessile migrate`.
func (g *gateway) migrate(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(g.run.ctx, g.run.sessile, append(append([]string{"migrate"}, args...), "--admin="+g.admin)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sessile migrate %v: %w: %s%s", args, err, out, &stderr)
	}
	return out, nil
}

func (g *gateway) status() (st migrate.Status, err error) {
	out, err := g.migrate("status", "--json")
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	return st, err
}

// take takes the workflow up to a phase.
func (g *gateway) take(to migrate.Phase) error {
	if _, err := g.migrate("create"); err != nil {
		return err
	}
	if up := min(to, migrate.RampDown); up > migrate.Off {
		if _, err := g.migrate("switchtraffic", "--to="+up.String()); err != nil {
			return err
		}
	}
	if to == migrate.Complete {
		_, err := g.migrate("complete", "--yes")
		return err
	}
	return nil
}
