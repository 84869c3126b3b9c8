package testserver

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// MemcachedServer is a memcached that belongs to one test. Its methods fail the test when they cannot do what they say.
// Stop, Kill, Pause and Resume may be called while other goroutines use the server.
type MemcachedServer struct {
	server

	Network string // "tcp", or "unix"
	Addr    string // "127.0.0.1:port", or the path of the socket; stays the same over Restart

	bin  string
	args []string
}

// Memcached starts a memcached on 127.0.0.1, and stops it after the test. Further arguments are its options.
func Memcached(t testing.TB, args ...string) *MemcachedServer {
	t.Helper()
	return startMemcached(t, "tcp", args)
}

// MemcachedOnSocket is Memcached on a unix socket, besides which memcached listens nowhere.
func MemcachedOnSocket(t testing.TB, args ...string) *MemcachedServer {
	t.Helper()
	return startMemcached(t, "unix", args)
}

func startMemcached(t testing.TB, network string, args []string) *MemcachedServer {
	t.Helper()
	s := &MemcachedServer{Network: network, bin: find("memcached")}
	Need(t, "memcached", s.bin != "")
	s.prepare(t, "memcached")
	if os.Geteuid() == 0 { // as which it runs only when told
		args = append([]string{"-u", "root"}, args...)
	}
	s.begin(func() {
		if network == "unix" {
			s.Addr = filepath.Join(s.dir, "memcached.sock")
			s.args = append([]string{"-s", s.Addr}, args...)
			return
		}
		port := freePort(t)
		s.Addr = fmt.Sprintf("127.0.0.1:%d", port)
		s.args = append([]string{"-l", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "0"}, args...)
	}, s.start)
	t.Cleanup(s.Kill) // it heeds SIGTERM only at the next second, and has nothing to lose
	return s
}

// Restart kills the server if it runs and starts it again at the same address, with nothing of what it had.
func (s *MemcachedServer) Restart() {
	s.t.Helper()
	s.Kill()
	s.again(s.start)
}

// start starts the server and waits until it answers.
func (s *MemcachedServer) start() error {
	return s.server.start(exec.Command(s.bin, s.args...), syscall.SIGKILL, func() (bool, error) {
		c, err := net.Dial(s.Network, s.Addr)
		if err != nil {
			return false, nil
		}
		defer c.Close()
		buf := make([]byte, 256)
		err = c.SetDeadline(time.Now().Add(time.Second))
		if err == nil {
			_, err = c.Write([]byte("stats\r\n"))
		}
		if err == nil {
			_, err = c.Read(buf)
		}
		// Its pid, which comes first, tells it from another server that has the port.
		return err == nil && strings.HasPrefix(string(buf), fmt.Sprintf("STAT pid %d\r\n", s.Pid)), nil
	})
}
