package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// binary is the command under test: what users run, built once, with the race detector where the tests have it.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sessile-cmd-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "sessile")
		args := []string{"build", "-o", binary}
		if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

const patience = 30 * time.Second

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

// command prepares a run of the binary with an environment of its own: env, then args.
func command(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	return commandFor(t, 2*patience, env, args...)
}

// commandFor is command for one that may run so long.
func commandFor(t testing.TB, limit time.Duration, env []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GORACE=atexit_sleep_ms=0 halt_on_error=1"}, env...)
	cmd.Dir = t.TempDir()
	return cmd
}

func run(t testing.TB, env []string, args ...string) result {
	t.Helper()
	return finish(t, command(t, env, args...))
}

// finish runs cmd to its end; while are called once it runs.
func finish(t testing.TB, cmd *exec.Cmd, while ...func()) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Start(); e != nil {
		t.Fatal(e)
	}
	for _, f := range while {
		f()
	}
	e := cmd.Wait()
	var exit *exec.ExitError
	if e != nil && !errors.As(e, &exit) {
		t.Fatal(e)
	}
	if strings.Contains(err.String(), "DATA RACE") || strings.Contains(err.String(), "panic:") {
		t.Errorf("%q: %s", cmd.Args[1:], err.String())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// want checks exit code and a part of what was printed on both outputs.
func (r result) want(t testing.TB, code int, stdout, stderr string) result {
	t.Helper()
	if r.code != code || !strings.Contains(r.stdout, stdout) || !strings.Contains(r.stderr, stderr) {
		t.Fatalf("got exit code %d, stdout %q, stderr %q; want %d, %q, %q", r.code, r.stdout, r.stderr, code, stdout, stderr)
	}
	return r
}

// daemon is a gateway that runs.
type daemon struct {
	t     testing.TB
	cmd   *exec.Cmd
	env   []string // for the commands that talk to it
	addr  string
	admin string
	ended chan struct{} // closed when the process has ended

	mu  sync.Mutex
	log bytes.Buffer
}

func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *daemon) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// port returns one that is free, below the ephemeral range.
func port(t testing.TB) int {
	t.Helper()
	for range 100 {
		n := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			l.Close()
			return n
		}
	}
	t.Fatal("no free port")
	return 0
}

// serve starts a gateway with args besides its addresses.
func serve(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: fmt.Sprintf("127.0.0.1:%d", port(t))}
	d.env = []string{"SESSILE_ADMIN=" + d.admin}
	d.start(args...)
	return d
}

func (d *daemon) start(args ...string) {
	d.t.Helper()
	args = append([]string{"serve", "--listen", "redis://" + d.addr, "--admin", d.admin, "--linger", "0s"}, args...)
	d.cmd = commandFor(d.t, 20*patience, nil, args...)
	d.launch()
}

func (d *daemon) launch() {
	d.t.Helper()
	d.cmd.Stderr = d
	from := len(d.Log()) // of an earlier run
	var stdout bytes.Buffer
	d.cmd.Stdout = &stdout
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGQUIT) } // to see where it stands
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	cmd, done := d.cmd, make(chan struct{})
	d.ended = done
	go func() { cmd.Wait(); close(done) }()
	d.t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		if strings.Contains(d.Log(), "DATA RACE") || strings.Contains(d.Log(), "panic:") {
			d.t.Error(d.Log())
		}
		if stdout.Len() > 0 {
			d.t.Errorf("serve wrote to stdout: %s", stdout.String())
		}
	})
	eventually(d.t, "the gateway serves", func() bool {
		select {
		case <-done:
			d.t.Fatalf("the gateway ended: %s", d.Log())
		default:
		}
		return strings.Contains(d.Log()[from:], "msg=serving")
	})
}

// stop sends sig and returns the exit code.
func (d *daemon) stop(sig syscall.Signal) int {
	d.t.Helper()
	d.cmd.Process.Signal(sig)
	return d.wait()
}

func (d *daemon) wait() int {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatalf("the gateway does not end: %s", d.Log())
	}
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) migrate(args ...string) result {
	d.t.Helper()
	return run(d.t, d.env, append([]string{"migrate"}, args...)...)
}

func (d *daemon) status() (st migrate.Status) {
	d.t.Helper()
	r := d.migrate("status", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || r.code != 0 {
		d.t.Fatalf("status: %v: %+v", err, r)
	}
	return st
}

// client is a connection to the gateway.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func (d *daemon) dial() *client {
	d.t.Helper()
	nc, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { nc.Close() })
	return &client{d.t, nc, bufio.NewReader(nc)}
}

// do sends a command and returns the answer: a text, or its first line where it is something else.
func (c *client) do(args ...string) string {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(patience))
	if _, err := c.nc.Write(resp.AppendRequestStrings(nil, args...)); err != nil {
		return "closed: " + err.Error()
	}
	return c.answer()
}

// list is do for an answer that is a list of texts.
func (c *client) list(args ...string) (list []string) {
	c.t.Helper()
	var n int
	if got := c.do(args...); got[0] != '*' {
		c.t.Fatalf("%q: %s", args, got)
	} else {
		fmt.Sscan(got[1:], &n)
	}
	for range n {
		list = append(list, c.answer())
	}
	return list
}

func (c *client) answer() string {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "closed: " + err.Error()
	}
	line = strings.TrimSpace(line)
	if line[0] != '$' || line == "$-1" {
		return line
	}
	var n int
	fmt.Sscan(line[1:], &n)
	b := make([]byte, n+2)
	for got := 0; got < len(b); {
		k, err := c.r.Read(b[got:])
		if err != nil {
			return "closed: " + err.Error()
		}
		got += k
	}
	return string(b[:n])
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// sessions makes a directory with n session files of PHP.
func sessions(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("sess_id%d", i)), fmt.Appendf(nil, `user|s:3:"%03d";`, i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// site are the flags of a site that is moved, with times short enough for a test.
func site(dir, target string) []string {
	return []string{"--origin", "file://" + dir + "?layout=php&lifetime=1440s", "--origin-key", "PHPREDIS_SESSION:", "--target", target, "--bound", "200ms"}
}

func isJSON(t testing.TB, r result) map[string]any {
	t.Helper()
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(r.stdout))
	if err := d.Decode(&m); err != nil || d.More() {
		t.Fatalf("stdout is not one JSON object: %v: %+v", err, r)
	}
	return m
}

func redis(t testing.TB) *testserver.RedisServer { t.Helper(); return testserver.Redis(t) }
