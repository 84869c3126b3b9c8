// Package testserver gives a test the real server that it is about: a Redis, a PHP, a php-fpm of its own, and sets of
// servers that stand in for each other.
//
// A server listens on a free port and a unix socket in a folder of its own, is ready when the function returns, and ends
// with the test: by its pid, never by its name, so that no other server on the machine is touched. It ends as well when
// the test binary panics or is killed.
package testserver

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	startTime = 90 * time.Second // a cold disk under -race; a server that dies is noticed at once
	stopTime  = 5 * time.Second  // from SIGTERM to SIGKILL
	agreeTime = 60 * time.Second // for servers to agree, with elections that fail at first: twice the failover-timeout each
)

// Need skips the test when what it needs is not present, naming it, and fails it where nothing may be skipped: in CI
// (CI=true) and with SESSILE_REQUIRE=1. What is skipped is added to the file that SESSILE_SKIPS names, one line per
// test: name, package and test, with tabs between.
func Need(t testing.TB, name string, present bool) {
	t.Helper()
	if present {
		return
	}
	if isSet("CI") || isSet("SESSILE_REQUIRE") {
		t.Fatalf("%s is missing, and nothing is skipped here: scripts/setup.sh installs it", name)
	}
	if err := recordSkip(name, t.Name()); err != nil {
		t.Errorf("testserver: record a skip: %v", err)
	}
	t.Skipf("skipped for want of %s: scripts/setup.sh installs it", name)
}

func isSet(env string) bool {
	v := strings.ToLower(os.Getenv(env))
	return v != "" && v != "0" && v != "false"
}

func recordSkip(name, test string) error {
	path := os.Getenv("SESSILE_SKIPS")
	if path == "" {
		return nil
	}
	pkg := "?"
	if info, ok := debug.ReadBuildInfo(); ok {
		pkg = strings.TrimSuffix(info.Path, ".test")
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	// One write: the test binaries of several packages append at the same time.
	_, err = fmt.Fprintf(f, "%s\t%s\t%s\n", name, pkg, test)
	return firstError(err, f.Close())
}

// await asks until nothing is wrong any more.
func await(t testing.TB, what string, wrong func() string) {
	t.Helper()
	for deadline := time.Now().Add(agreeTime); ; time.Sleep(20 * time.Millisecond) {
		w := wrong()
		if w == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("testserver: %s: not within %v: %s", what, agreeTime, w)
		}
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// find returns the path of the first of the named programs that there is, or "". A name may end in a pattern; the
// highest match counts (php-fpm8.4 before php-fpm8.2). Daemons lie in sbin, which a user's PATH does not have.
func find(names ...string) string {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin")
	for _, name := range names {
		for _, dir := range dirs {
			found, _ := filepath.Glob(filepath.Join(dir, name)) // the only error is a malformed pattern
			sort.Sort(sort.Reverse(sort.StringSlice(found)))
			for _, path := range found {
				if p, err := exec.LookPath(path); err == nil {
					return p
				}
			}
		}
	}
	return ""
}

// tempDir returns a new folder that is removed after the test, with a path short enough for a unix socket in it:
// sun_path holds 108 bytes (unix(7)), and t.TempDir carries the whole name of the test.
func tempDir(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if len(base) > 50 {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, dirPrefix()+"*")
	if err != nil {
		t.Fatalf("testserver: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("testserver: %v", err)
		}
	})
	return dir
}

// dirPrefix begins the name of every folder that this process makes: its servers work in them, and can be told from
// those of other processes.
func dirPrefix() string { return fmt.Sprintf("sessile-%d-", os.Getpid()) }

// ports are those handed out by this process and not given back. A server that is down for a while keeps its port.
var ports = struct {
	mu    sync.Mutex // guards taken
	taken map[int]bool
}{taken: map[int]bool{}}

// freePort returns a port that nobody listens on, until the test ends. It lies below the ephemeral range (32768 on
// Linux), so that no outgoing connection can take it while its server is down, and so does the port 10000 above it
// (the bus of a Redis Cluster).
func freePort(t testing.TB) int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for range 1000 {
		port := 10000 + rand.IntN(10000)
		if ports.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		ports.taken[port] = true
		t.Cleanup(func() {
			ports.mu.Lock()
			defer ports.mu.Unlock()
			delete(ports.taken, port)
		})
		return port
	}
	t.Fatal("testserver: found no free port")
	return 0
}
