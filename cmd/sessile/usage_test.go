package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

const secret = "s3cr3t-Pa55"

// TestUsage is reliability.md c7, as far as there is such a command: exit code 2, a line that says what to do, nothing on
// stdout, nothing done.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string // on stderr
	}{
		{"nothing", nil, "Usage:"},
		{"a command that there is not", []string{"migrat"}, "did you mean migrate?"},
		{"a command like none", []string{"frobnicate"}, `there is no command "frobnicate"`},
		{"no subcommand", []string{"migrate"}, "Usage:"},
		{"a subcommand that there is not", []string{"migrate", "stats"}, "or status?"},
		{"a flag that there is not", []string{"serve", "--lisen", "x"}, "did you mean --listen?"},
		{"a short flag that there is not", []string{"serve", "-x"}, "there is no flag"},
		{"a cluster of short flags", []string{"migrate", "status", "-abc"}, "there is no flag"},
		{"a flag without its value", []string{"serve", "--listen"}, "flag needs an argument"},
		{"an empty flag", []string{"serve", "--target="}, "--target: is empty"},
		{"a flag twice", []string{"serve", "--hold", "1s", "--hold", "2s"}, "--hold: takes one value"},
		{"a word too many", []string{"serve", "now"}, "takes no arguments"},
		{"a word that looks like a flag", []string{"serve", "--", "--listen"}, "takes no arguments"},
		{"an argument of 100 KiB", []string{"serve", "--" + strings.Repeat("x", 100<<10)}, "there is no flag"},
		{"a command of 100 KiB", []string{strings.Repeat("x", 100<<10)}, "there is no command"},
		{"a number as a duration", []string{"serve", "--hold", "5"}, "for seconds write 5s"},
		{"infinity", []string{"serve", "--hold", "∞"}, "a duration is wanted"},
		{"1e6", []string{"serve", "--max-connections", "1e6"}, "a number from 1"},
		{"a size", []string{"serve", "--max-value", "1k"}, "a size is wanted"},
		{"nothing to serve", []string{"serve"}, "nothing to serve"},
		{"a boolean with a value that is none", []string{"serve", "--insecure=yes"}, "true or false is wanted"},
		{"no file", []string{"serve", "--config", "/nowhere/sessile.yaml"}, "/nowhere/sessile.yaml"},
		{"a tilde", []string{"serve", "--config", "~/sessile.yaml"}, "~/sessile.yaml"},
		{"an origin in Redis", []string{"serve", "--listen", "redis://127.0.0.1:1", "--origin", "redis://h/1", "--target", "redis://h/1"}, "same store as the origin"},
		{"an origin without a target", []string{"serve", "--listen", "redis://127.0.0.1:1", "--origin", "file:///tmp?lifetime=1s"}, "target: is missing"},
		{"half a store", []string{"serve", "--listen", "redis://127.0.0.1:1", "--target", "cached(memcached://" + secret + "@h)"}, "write cached(memcached://"},
		{"force without a reason", []string{"migrate", "switchtraffic", "--force"}, "--force needs --reason"},
		{"a phase", []string{"migrate", "switchtraffic", "--to", "lvie"}, "unknown phase"},
		{"a soak time", []string{"migrate", "switchtraffic", "--soak", "1d"}, "--soak"},
		{"a time that is over", []string{"migrate", "switchtraffic", "--timeout", "-5s"}, "--timeout"},
		{"a rate", []string{"migrate", "start", "--rate", "-1"}, "--rate takes"},
		{"a rate that is no number", []string{"migrate", "start", "--rate", "1_000x"}, "invalid argument"},
		{"no rounds", []string{"migrate", "diff", "--rounds", "0"}, "--rounds takes"},
		{"no gateway", []string{"migrate", "forget-gateway"}, "takes NAME"},
		{"two gateways", []string{"migrate", "forget-gateway", "a", "b"}, "takes NAME"},
		{"complete without a terminal", []string{"migrate", "complete"}, "say --yes"},
		{"use without a reason", []string{"migrate", "repair", "--use", "origin"}, "needs --reason"},
		{"use of both", []string{"migrate", "repair", "--use", "both", "--reason", "x"}, "origin or target"},
		{"a decision without a reason", []string{"target", "accept"}, "needs --reason"},
		{"a decision with a reason that says nothing", []string{"target", "refill", "--reason", " "}, "needs --reason"},
		{"a plan without a target", []string{"migrate", "plan", "--origin", "file:///tmp?lifetime=1s"}, "target: is missing"},
		{"a plan without an origin", []string{"migrate", "plan", "--target", "redis://127.0.0.1:1"}, "no origin"},
		{"an admin address", []string{"migrate", "status", "--admin", "http://x/y"}, "--admin"},
		{"a token for everybody", []string{"migrate", "status", "--admin", "10.0.0.1:6480", "--admin-token-file", "TOKEN"}, "unencrypted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			token := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(token, []byte(strings.Repeat("x", 32)), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range c.args {
				if c.args[i] == "TOKEN" {
					c.args[i] = token
				}
			}
			r := run(t, nil, c.args...).want(t, 2, "", c.want)
			if r.stdout != "" || strings.Contains(r.stderr, secret) || len(r.stderr) > 4000 {
				t.Errorf("got %+.2000v", r)
			}
		})
	}
}

func TestNothingIsEchoedRawToATerminal(t *testing.T) {
	for _, args := range [][]string{{"\x1b[2Jx"}, {"serve", "--\x1b[2J"}, {"serve", "--hold", "\x1b[2J"}, {"migrate", "status", "--site", "\x1b[2J", "--admin", "\x1b[2J"}, {"serve", "\x1b[2J"}} {
		if r := run(t, nil, args...); strings.ContainsRune(r.stderr+r.stdout, '\x1b') || r.code == 0 {
			t.Errorf("%q: got %+v", args, r)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}, {"help", "migrate"}, {"serve", "--help"}, {"migrate", "switchtraffic", "-h"}} {
		if r := run(t, nil, args...).want(t, 0, "Usage:", ""); r.stderr != "" {
			t.Errorf("%q: stderr %q", args, r.stderr)
		}
	}
	run(t, nil, "version").want(t, 0, "sessile ", "")
	run(t, nil, "--version").want(t, 0, "sessile version ", "")
	if m := isJSON(t, run(t, nil, "version", "--json")); m["version"] == nil {
		t.Errorf("got %v", m)
	}
	// Everything that serve takes is there.
	help := run(t, nil, "serve", "--help").stdout
	for _, flag := range []string{"--origin ", "--target-key ", "--lock-wait ", "--max-value ", "--admin-token-file ", "--insecure", "1KiB to 512MiB; default 1MiB"} {
		if !strings.Contains(help, flag) {
			t.Errorf("serve --help has no %q", flag)
		}
	}
}

func TestAStdoutThatCannotBeWritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	cmd := command(t, nil, "version")
	cmd.Stdout = full
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("a full disk: got %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd = command(t, nil, "version")
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err == nil || stderr.String() != "" {
		t.Errorf("a pipe that nobody reads: got %v, stderr %q", err, stderr.String())
	}
}

func TestConfigurationErrorsNameTheLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessile.yaml")
	if err := os.WriteFile(path, []byte("listen: redis://127.0.0.1:6400\norigin-kye: x\ntarget: redis://:"+secret+"@h\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "serve", "--config", path).want(t, 2, "", "sessile.yaml:2: there is no setting \"origin-kye\"; did you mean origin-key?")
	run(t, []string{"SESSILE_CONFIG=" + path}, "serve").want(t, 2, "", "sessile.yaml:2")
	run(t, nil, "migrate", "status", "--config", path, "--json").want(t, 2, `"exit": 2`, "sessile.yaml:2")
}

func TestNobodyAnswers(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"plan"}, {"create"}, {"switchtraffic"}, {"complete", "--yes"}, {"diff"}, {"forget-gateway", "x"}} {
		r := run(t, []string{"SESSILE_ADMIN=127.0.0.1:1"}, append(append([]string{"migrate"}, args...), "--json")...)
		r.want(t, 4, `"exit": 4`, "is `sessile serve` running")
		isJSON(t, r)
	}
}

func TestServeRefusesWhatCannotWork(t *testing.T) {
	r := testserver.Redis(t, testserver.WithPassword("", secret))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	listen, admin := fmt.Sprintf("redis://127.0.0.1:%d", port(t)), fmt.Sprintf("127.0.0.1:%d", port(t))
	with := func(args ...string) []string {
		return append([]string{"serve", "--listen", listen, "--admin", admin}, args...)
	}
	down := "redis://127.0.0.1:1"
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no directory", with("--origin", "file:///nowhere/at/all?lifetime=1s", "--target", down), "is it the application's session.save_path"},
		{"a file instead of a directory", with("--origin", "file://"+binary+"?lifetime=1s", "--target", down), "save path"},
		{"a directory that everybody writes", with("--origin", "file://"+open+"?lifetime=1s", "--target", down), "sticky bit"},
		{"a wrong password", with("--target", strings.Replace(r.URL(), secret, "wrong-"+secret, 1)), "WRONGPASS"},
		{"no password", with("--target", "redis://"+r.Addr), "NOAUTH"},
		{"an address that is taken", []string{"serve", "--listen", "redis://" + taken.Addr().String(), "--admin", admin, "--target", down}, "address already in use"},
		{"an admin address that is taken", []string{"serve", "--listen", listen, "--admin", taken.Addr().String(), "--target", down}, "address already in use"},
		{"no certificate", []string{"serve", "--listen", "redis+tls://127.0.0.1:" + fmt.Sprint(port(t)) + "?cert=/nowhere/c&key=/nowhere/k", "--admin", admin, "--target", down}, "no such file"},
		{"a socket that was not passed", []string{"serve", "--listen", "fd://3", "--admin", admin, "--target", down}, "LISTEN_PID"},
		{"an origin with a replay window", with("--origin", "redis-cluster://"+r.Addr+"?replay=10s", "--target", down), "replay= is not for an origin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := run(t, nil, c.args...).want(t, 1, "", c.want)
			if strings.Contains(got.stderr, secret) {
				t.Errorf("a password is shown: %s", got.stderr)
			}
		})
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	r := testserver.Redis(t, testserver.WithPassword("", secret))
	d := serve(t, "--target", r.URL(), "--users", "default:client-"+secret, "--lifetime", "1h")
	if c := d.dial(); c.do("GET", "x") != "-NOAUTH Authentication required." || c.do("AUTH", "client-"+secret) != "+OK" || c.do("SET", "x", "y") != "+OK" || c.do("GET", "x") != "y" {
		t.Error("login does not work")
	}
	if code := d.stop(syscall.SIGTERM); code != 0 || strings.Contains(d.Log(), secret) || strings.Count(d.Log(), "has a password in it") != 2 {
		t.Errorf("got exit code %d, log %s", code, d.Log())
	}
}

func TestAdminNeedsATokenBeyondTheMachine(t *testing.T) {
	run(t, nil, "serve", "--listen", "redis://127.0.0.1:1", "--target", "redis://h", "--admin", "0.0.0.0:6480").want(t, 2, "", "can be reached by others")
}

func TestAdminOnASocketWithAToken(t *testing.T) {
	r := redis(t)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(strings.Repeat("t", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: "unix:" + filepath.Join(dir, "admin.sock")}
	d.start(append(site(sessions(t, 1), r.URL()), "--admin-token-file", token)...)
	run(t, nil, "migrate", "status", "--admin", d.admin).want(t, 1, "", "asks for a token")
	run(t, nil, "migrate", "status", "--admin", d.admin, "--admin-token-file", token).want(t, 0, "none", "")
	if info, err := os.Stat(filepath.Join(dir, "admin.sock")); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
}

func TestSystemd(t *testing.T) {
	r := redis(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "s") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	nc, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/n", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	d := &daemon{t: t, addr: l.Addr().String(), admin: "off"}
	d.cmd = command(t, []string{"NOTIFY_SOCKET=" + dir + "/n", "LISTEN_FDS=1", "LISTEN_FDNAMES=sessions"})
	d.cmd.Path = "/bin/sh" // LISTEN_PID is the process that is started, which only it can know
	d.cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, binary, "serve", "--listen", "fd://sessions", "--admin", "off", "--target", r.URL(), "--lifetime", "1h", "--linger", "0s"}
	d.cmd.ExtraFiles = []*os.File{f}
	d.launch()
	told := func() string {
		nc.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 100)
		n, _ := nc.Read(b)
		return string(b[:n])
	}
	if got := told(); got != "READY=1" {
		t.Errorf("systemd was told %q", got)
	}
	if c := d.dial(); c.do("SET", "x", "y") != "+OK" || c.do("GET", "x") != "y" {
		t.Error("the socket that was passed does not serve")
	}
	if code := d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("got exit code %d: %s", code, d.Log())
	}
	if got := told(); got != "STOPPING=1" {
		t.Errorf("systemd was told %q", got)
	}
	// The listener lives on: whoever comes now waits for the next gateway.
	if c, err := net.Dial("tcp", d.addr); err != nil {
		t.Errorf("between two gateways: %v", err)
	} else {
		c.Close()
	}
}

func TestSignalsDrain(t *testing.T) {
	r := redis(t)
	args := []string{"--target", r.URL(), "--lifetime", "1h"}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		d := serve(t, args...)
		c := d.dial()
		if got := c.do("SET", "x", "y"); got != "+OK" {
			t.Fatal(got)
		}
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "SIGHUP is explained", func() bool { return strings.Contains(d.Log(), "SIGHUP") })
		if got := c.do("GET", "x"); got != "y" {
			t.Errorf("after SIGHUP: %q", got)
		}
		if code := d.stop(sig); code != 0 || !strings.Contains(d.Log(), "draining") || !strings.Contains(d.Log(), "stopped") {
			t.Errorf("%v: got exit code %d: %s", sig, code, d.Log())
		}
		if _, err := c.r.ReadByte(); err != io.EOF {
			t.Errorf("%v: the client got %v, want the end", sig, err)
		}
	}
	// A client that does not let go holds the drain up, until the second signal.
	d := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: fmt.Sprintf("127.0.0.1:%d", port(t))}
	d.start(append(args, "--drain", "10m", "--lock-wait", "1m")...)
	a, b := d.dial(), d.dial()
	if got := a.do("SET", "k_LOCK", "t", "NX", "EX", "600"); got != "+OK" {
		t.Fatal(got)
	}
	go b.do("SET", "k_LOCK", "u", "NX", "EX", "600") // waits for the lock
	eventually(t, "somebody waits for the lock", func() bool {
		got := run(t, nil, "migrate", "status", "--admin", d.admin)
		return got.code == 2 && strings.Contains(metrics(t, d), "sessile_gateway_locks_waiting{site=\"default\"} 1")
	})
	d.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "it drains", func() bool { return strings.Contains(d.Log(), "draining") })
	start := time.Now()
	if code := d.stop(syscall.SIGTERM); code != 128+int(syscall.SIGTERM) || time.Since(start) > 5*time.Second {
		t.Errorf("the second signal: exit code %d after %v: %s", code, time.Since(start), d.Log())
	}
}
