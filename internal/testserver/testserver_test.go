package testserver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if left := inFoldersOf(os.Getpid()); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind: %v\n", left)
		code = 1
	}
	if n := runtime.NumGoroutine(); n > 1 { // those of idle servers are joined by Stop
		buf := make([]byte, 1<<16)
		fmt.Fprintf(os.Stderr, "%d goroutines left:\n%s\n", n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// inFoldersOf lists the processes that work in a folder made by the process pid: its servers, and workers of theirs
// that lost their master.
func inFoldersOf(pid int) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		dir, err := os.Readlink(link)
		if err != nil {
			continue // ended meanwhile, or somebody else's
		}
		if strings.Contains(dir, fmt.Sprintf("/sessile-%d-", pid)) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			found = append(found, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// eventually waits for a condition that comes true from outside.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// fakeTB notes how a test ends instead of ending the real one.
type fakeTB struct {
	testing.TB
	fatal, skip string
}

func (f *fakeTB) Helper()      {}
func (f *fakeTB) Name() string { return "TestFake" }
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (f *fakeTB) Skipf(format string, args ...any) {
	f.skip = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func need(t *testing.T, name string, present bool) *fakeTB {
	f := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Need(f, name, present)
	}()
	<-done
	return f
}

func TestNeed(t *testing.T) {
	skips := filepath.Join(t.TempDir(), "skips")
	t.Setenv("SESSILE_SKIPS", skips)
	cases := []struct {
		name                string
		ci, require         string
		present, fail, skip bool
	}{
		{name: "what is present is not mentioned", ci: "true", present: true},
		{name: "at a desk the test is skipped", skip: true},
		{name: "CI=false is a desk", ci: "false", skip: true},
		{name: "in CI the test fails", ci: "true", fail: true},
		{name: "SESSILE_REQUIRE=1 is as strict as CI", require: "1", fail: true},
	}
	want := 0
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("CI", c.ci)
			t.Setenv("SESSILE_REQUIRE", c.require)
			f := need(t, "php-fpm", c.present)
			if got := f.fatal != ""; got != c.fail {
				t.Errorf("Need: failed with %q, want a failure: %v", f.fatal, c.fail)
			}
			if got := strings.HasPrefix(f.skip, "skipped for want of php-fpm: "); got != c.skip {
				t.Errorf("Need: skipped with %q, want a skip: %v", f.skip, c.skip)
			}
			if c.skip {
				want++
			}
		})
	}
	got, err := os.ReadFile(skips)
	if err != nil {
		t.Fatal(err)
	}
	line := "php-fpm\tgithub.com/sessile/sessile/internal/testserver\tTestFake\n"
	if string(got) != strings.Repeat(line, want) {
		t.Errorf("SESSILE_SKIPS: got %q, want %d times %q", got, want, line)
	}
}

// The ways in which a test binary ends without cleaning up.
var hardEnds = map[string]func(){
	"panic": func() { go func() { panic("on purpose") }() },
	"exit":  func() { os.Exit(3) },
	"kill":  func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) },
}

// TestServersOfADeadTest is not a test but the test binary that TestNoServerOutlivesTheTestBinary ends.
func TestServersOfADeadTest(t *testing.T) {
	end := hardEnds[os.Getenv("SESSILE_TESTSERVER_END")]
	if end == nil {
		t.Skip("runs as a process of its own")
	}
	Redis(t)
	if os.Getuid() == 0 {
		hosts, _ := Hosts(t, 1)
		Redis(t, On(hosts[0])).Pause()
	} else {
		Redis(t).Pause()
	}
	f := FPM(t, FPMOptions{Workers: 2})
	f.Script("sleep.php", "<?php sleep(60);")
	go f.Get(t.Context(), "sleep.php", "", nil)
	time.Sleep(50 * time.Millisecond) // for the request to reach a worker; nothing is wrong if it does not
	fmt.Println("started", len(inFoldersOf(os.Getpid())))
	bufio.NewReader(os.Stdin).ReadByte()
	end()
	select {}
}

func TestNoServerOutlivesTheTestBinary(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child of its parent's death")
	}
	FPM(t, FPMOptions{}) // needed by the other process
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name := range hardEnds {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(self, "-test.run=^TestServersOfADeadTest$", "-test.v")
			cmd.Env = append(os.Environ(), "SESSILE_TESTSERVER_END="+name)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said string
			for lines := bufio.NewScanner(stdout); lines.Scan(); {
				said += lines.Text() + "\n"
				if strings.Contains(lines.Text(), "started") {
					break
				}
			}
			if !strings.Contains(said, "started 5\n") { // 2 redis, 1 master, 2 workers
				t.Errorf("the test binary said %q, want 5 processes started", said)
			}
			stdin.Write([]byte("\n"))
			if err := cmd.Wait(); err == nil {
				t.Error("the test binary ended well, want it to end by " + name)
			}
			eventually(t, "all servers gone", func() bool { return len(inFoldersOf(cmd.Process.Pid)) == 0 })
			eventually(t, "all hosts gone", func() bool {
				ours, _ := filepath.Glob(fmt.Sprintf("/sys/class/net/ses%d.*", cmd.Process.Pid))
				return len(ours) == 0
			})
			dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("sessile-%d-*", cmd.Process.Pid)))
			for _, dir := range dirs {
				os.RemoveAll(dir)
			}
		})
	}
}

func TestTempDirHoldsASocket(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 60))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	if got := len(Redis(t).Socket); got >= 108 {
		t.Errorf("Socket: got a path of %d bytes, want less than 108", got)
	}
}
