package testserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
)

// Host is a machine of its own as far as the network is concerned: a network namespace with an address, whose cable ends
// in a switch. Its methods fail the test when they cannot do what they say.
type Host struct {
	IP string

	t     testing.TB
	ns    *os.File // its network namespace
	lan   *os.File // that of the switch
	plug  string   // the switch's end of its cable
	chain string   // of the switch's rules on what it sends
}

// lans numbers the switches of this process.
var lans atomic.Int32

// Hosts makes n hosts on one switch, and returns this machine as one of them: here reaches the others, and they it. The
// namespaces have no names but descriptors of this process, so that they are gone with it, however it ends.
func Hosts(t testing.TB, n int) (hosts []*Host, here *Host) {
	t.Helper()
	probe, err := newNamespace()
	Need(t, "network namespaces (root, ip, nft, nsenter)",
		err == nil && find("ip") != "" && find("nft") != "" && find("nsenter") != "")
	// The switch has a namespace of its own, where this machine's firewall does not see the frames.
	lan := probe
	t.Cleanup(func() { lan.Close() })
	run(t, lan, "ip link add switch type bridge", "ip link set switch up", "nft add table bridge test",
		"nft 'add chain bridge test forward { type filter hook forward priority 0; }'")
	net24 := freeNet(t)
	for i := range n + 1 {
		h := &Host{IP: fmt.Sprint(net24, i+1), t: t, lan: lan, plug: fmt.Sprint("plug", i), chain: fmt.Sprint("from", i)}
		name := "eth0"
		if i == n {
			name = fmt.Sprintf("ses%d.%d", os.Getpid(), lans.Add(1)%100)
			h.ns, err = thisNamespace()
			here = h
		} else {
			h.ns, err = newNamespace()
			hosts = append(hosts, h)
		}
		if err != nil {
			t.Fatalf("testserver: hosts: %v", err)
		}
		t.Cleanup(func() { h.ns.Close() })
		run(t, lan, "ip link add "+h.plug+" type veth peer name "+name+" netns "+nsPath(h.ns),
			"ip link set "+h.plug+" master switch up",
			"nft add chain bridge test "+h.chain,
			"nft add rule bridge test forward ip saddr "+h.IP+" jump "+h.chain)
		run(t, h.ns, "ip addr add "+h.IP+"/24 dev "+name, "ip link set "+name+" up", "ip link set lo up")
	}
	// Both ends go together; the namespaces would take them along, but some time later.
	t.Cleanup(func() { run(t, lan, "ip link del "+here.plug) })
	return hosts, here
}

// freeNet returns a /24 that no interface of this machine is in, as "10.1.2.".
func freeNet(t testing.TB) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatalf("testserver: hosts: %v", err)
	}
	for {
		prefix := fmt.Sprintf("10.%d.%d.", rand.IntN(256), rand.IntN(256))
		taken := false
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && (n.Contains(net.ParseIP(prefix+"1")) || strings.HasPrefix(n.IP.String(), prefix)) {
				taken = true
			}
		}
		if !taken {
			return prefix
		}
	}
}

// nsPath is where other processes find a namespace of ours.
func nsPath(ns *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

// inside returns a command that runs in a namespace, and has the pid that it would have outside.
func inside(ns *os.File, name string, args ...string) *exec.Cmd {
	return exec.Command(find("nsenter"), append([]string{"--net=" + nsPath(ns), "--", name}, args...)...)
}

// run runs lines of shell in a namespace.
func run(t testing.TB, ns *os.File, lines ...string) {
	t.Helper()
	script := strings.Join(lines, "\n")
	cmd := inside(ns, "sh", "-ec", script)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("testserver: hosts: %v\n%s\n%s", err, script, out)
	}
}

// Command returns a command that will run on the host.
func (h *Host) Command(name string, args ...string) *exec.Cmd { return inside(h.ns, name, args...) }

// Dial connects from the host to an IP address and port.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	// A socket belongs to the namespace of the thread that makes it, wherever it is used then.
	if nsErr := inNamespace(h.ns, func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) }); nsErr != nil {
		return nil, nsErr
	}
	return conn, err
}

// Down pulls the host's cable, or takes its power: nothing comes through any more, and nobody is told.
func (h *Host) Down() {
	h.t.Helper()
	// The switch's end: the host's own would make the kernel answer at once that there is no way.
	run(h.t, h.lan, "ip link set "+h.plug+" down")
}

// Up plugs the cable in again.
func (h *Host) Up() {
	h.t.Helper()
	run(h.t, h.lan, "ip link set "+h.plug+" up")
}

// Block loses what the host sends to another: all of it, or what goes to these TCP ports there. The other direction is
// not touched: a partition is a.Block(b) and b.Block(a).
func (h *Host) Block(to *Host, ports ...int) {
	h.t.Helper()
	match := "ip daddr " + to.IP
	if len(ports) > 0 {
		match += " tcp dport { " + strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]") + " }"
	}
	run(h.t, h.lan, "nft 'add rule bridge test "+h.chain+" "+match+" drop'")
}

// Unblock ends all Blocks of what the host sends.
func (h *Host) Unblock() {
	h.t.Helper()
	run(h.t, h.lan, "nft flush chain bridge test "+h.chain)
}
