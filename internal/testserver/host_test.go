package testserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hears reports whether a server's answer reaches from.
func hears(t *testing.T, from *Host, r *RedisServer) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", r.Addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	return answers(t, conn)
}

// answers reports whether the server at the other end of a connection answers on it.
func answers(t *testing.T, conn net.Conn) bool {
	t.Helper()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	conn.Write([]byte("PING\r\n"))
	buf := make([]byte, 16)
	n, _ := conn.Read(buf)
	if n > 0 && !strings.HasPrefix(string(buf[:n]), "+PONG\r\n") { // or several, of questions from before
		t.Fatalf("PING: got %q, which is not our server's", buf[:n])
	}
	return n > 0
}

func TestHosts(t *testing.T) {
	t.Parallel()
	hosts, here := Hosts(t, 2)
	a, b := hosts[0], hosts[1]
	r := Redis(t, On(a))
	other := Redis(t, On(a))
	expect := func(what string, want ...bool) {
		t.Helper()
		for i, from := range []*Host{a, b, here} {
			if got := hears(t, from, r); got != want[i] {
				t.Errorf("%s, the server is heard from %s: %v", what, []string{"its own host", "another one", "here"}[i], got)
			}
		}
		if got := r.Do("PING"); got != "PONG" {
			t.Errorf("%s, over the unix socket: got %v", what, got)
		}
	}
	expect("at first", true, true, true)
	conn, err := b.Dial(t.Context(), "tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, _, _ := net.SplitHostPort(conn.LocalAddr().String()); got != b.IP {
		t.Errorf("Dial: connected from %s, want %s", got, b.IP)
	}

	a.Down()
	expect("with the cable pulled", true, false, false)
	if answers(t, conn) {
		t.Error("a connection from before goes on without a cable")
	}
	a.Up()
	// What was sent meanwhile is sent again by and by, for neither side was told anything.
	eventually(t, "the old connection goes on", func() bool { return answers(t, conn) })
	expect("with the cable in again", true, true, true)

	b.Block(a)
	expect("with one way blocked", true, false, true)
	b.Unblock()
	a.Block(b)
	expect("with the other way blocked", true, false, true)
	a.Unblock()
	here.Block(a, 1, port(r))
	expect("with its port blocked", true, true, false)
	if !hears(t, here, other) {
		t.Error("with a port blocked, another port is not heard either")
	}
	here.Unblock()
	expect("unblocked", true, true, true)
}

func port(r *RedisServer) int {
	addr, _ := net.ResolveTCPAddr("tcp", r.Addr)
	return addr.Port
}

func TestHostCommand(t *testing.T) {
	t.Parallel()
	hosts, here := Hosts(t, 1)
	for _, h := range []*Host{hosts[0], here} {
		out, err := h.Command(find("ip"), "-br", "-4", "addr").CombinedOutput()
		if err != nil || !strings.Contains(string(out), h.IP+"/24") {
			t.Errorf("Command on %s: got %q, %v", h.IP, out, err)
		}
	}
}

// An open connection keeps its namespace, which must not keep this machine's end of the cable and the route over it.
func TestHostsAreGoneAfterTheTest(t *testing.T) {
	interfaces := func() []string {
		names, _ := filepath.Glob(fmt.Sprintf("/sys/class/net/ses%d.*", os.Getpid()))
		return names
	}
	t.Run("with a connection open", func(sub *testing.T) {
		hosts, _ := Hosts(sub, 1)
		conn, err := hosts[0].Dial(sub.Context(), "tcp", Redis(sub, On(hosts[0])).Addr)
		if err != nil {
			sub.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if len(interfaces()) == 0 {
			sub.Error("this machine has no cable")
		}
	})
	if left := interfaces(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A namespace that a thread is left in would be met by another goroutine, some other time.
func TestNoThreadStaysInANamespace(t *testing.T) {
	hosts, _ := Hosts(t, 1)
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := inNamespace(hosts[0].ns, func() {}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all threads at home", func() bool {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
				return false
			}
		}
		return true
	})
}

func TestSentinelLosesAHost(t *testing.T) {
	t.Parallel()
	hosts, here := Hosts(t, 3)
	s := Sentinel(t, SentinelOptions{Hosts: hosts, SentinelHosts: hosts[1:], FailoverTimeout: time.Second,
		Node: []RedisOption{WithTLS()}})
	first := s.Nodes[0]
	hosts[0].Down()
	now := s.WaitPrimary(first)
	if !first.role().primary {
		t.Error("the primary that is cut off knows of it")
	}
	if hears(t, here, first) || !hears(t, here, now) {
		t.Error("here, not the new primary is heard and nobody else")
	}
	hosts[0].Up()
	s.WaitOK()
	if got := s.Primary(); got != now {
		t.Error("the primary changed once more when the cable was in again")
	}
}

func TestClusterLosesAHost(t *testing.T) {
	t.Parallel()
	hosts, _ := Hosts(t, 6)
	c := Cluster(t, ClusterOptions{Hosts: hosts})
	first := c.Nodes[0]
	replica := c.ReplicaOf(first)
	hosts[0].Down()
	if got := c.WaitPrimary(0, first); got != replica {
		t.Error("WaitPrimary: got another one than the replica")
	}
	hosts[0].Up()
	c.WaitOK()
	if got := c.ReplicaOf(replica); got != first {
		t.Error("the former primary is not the replica of the new one")
	}
}
