package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// failover measures what it costs to be ready for a failover while there is none: the same primary with a replica, once as one
// server that never changes, and as what three Sentinels say.
func (r *run) failover() error {
	const sessions = 50_000 // which each gateway has seen: what it has not is written like a login
	r.keys = sessions
	primary, err := r.redis()
	if err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(primary.addr)
	replica, err := r.redis()
	if err != nil {
		return err
	}
	if err := replica.cli("REPLICAOF", host, port); err != nil {
		return err
	}
	sentinels := ""
	for i := range 3 {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		_, at, _ := net.SplitHostPort(addr)
		conf := filepath.Join(r.dir, fmt.Sprintf("sentinel-%d.conf", i))
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor bench %s %s 2\nsentinel down-after-milliseconds bench 10000\n", at, r.dir, host, port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		if _, err := r.start("tcp", addr, "redis-server", conf, "--sentinel"); err != nil {
			return err
		}
		sentinels += "," + addr
	}
	all := []endpoint{{name: "direct", network: "tcp", addr: primary.addr}}
	for _, g := range []struct{ name, target string }{
		{"redis://", "redis://" + primary.addr},
		{"redis-sentinel://", "redis-sentinel://" + sentinels[1:] + "/bench/0"},
		{"safety=strict", "redis-sentinel://" + sentinels[1:] + "/bench/0?safety=strict"},
		{"replay=off", "redis-sentinel://" + sentinels[1:] + "/bench/0?replay=off"},
	} {
		s, err := r.serve("--target="+g.target, "--lifetime=1h")
		if err != nil {
			return err
		}
		if err := fill("tcp", s.addr, sessions); err != nil {
			return err
		}
		all = append(all, endpoint{name: g.name, network: "tcp", addr: s.addr, proxy: s.proc, direct: 1})
	}
	fmt.Printf("\n### Ready for a failover\n\n`redis-benchmark -c %d -r %d -d %d -t get|set -P 1|16` against `sessile serve --target ... --lifetime 1h` "+
		"with different targets, which all are the same primary with one replica, and against it directly. Each gateway has seen all of the sessions before, "+
		"as it has where pages read theirs before they write. What was written in the last 5 s is remembered, but for `replay=off`. "+
		"Share: operations per second, of those through the gateway with `redis://`.\n", clients, sessions, size)
	if _, _, err := r.fullLoad(all, primary, "share of redis://"); err != nil {
		return err
	}
	if err := r.logins(all, primary); err != nil {
		return err
	}
	fmt.Println("Memory of the gateways (VmHWM), in MiB, after all that:")
	rows := [][]string{{"target", "at the most"}}
	for _, e := range all[1:] {
		rows = append(rows, []string{e.name, fmt.Sprintf("%.0f", e.proxy.memory("VmHWM"))})
	}
	table(rows)
	r.stopAll()
	return r.ofACluster()
}

// logins measures writes of sessions that nobody has seen before, which wait for the replica.
func (r *run) logins(all []endpoint, primary *server) error {
	r.keys = 1_000_000_000
	var names []string
	for _, e := range all {
		names = append(names, e.name)
	}
	results, err := r.rotated("logins", names, func(row int) ([]float64, error) {
		return r.benchmark(all[row], primary, "set", 1, r.scaled(100_000))
	})
	if err != nil {
		return err
	}
	rows := [][]string{{"target", "logins/s", "share of redis://", "p50 ms", "p99 ms", "proxy CPU µs/op", "redis CPU µs/op"}}
	for i, s := range results {
		rows = append(rows, append([]string{names[i]}, slices.Insert(s.cells("%.0f", "%.3f", "%.3f", "%.2f", "%.2f"), 1, s.share(results[1], 0))...))
	}
	fmt.Println("Writes of new sessions, P=1; behind Sentinels they wait for the replica:")
	table(rows)
	return nil
}

// ofACluster measures a gateway on a Cluster with all slots on one primary, so that redis-benchmark may ask that, too, and one
// with redis:// on the same server, which never hears of another.
func (r *run) ofACluster() error {
	r.keys = 50_000
	dir := filepath.Join(r.dir, "cluster") // of its own: a replica leaves a file behind that it would load
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	node, err := r.redis("--cluster-enabled", "yes", "--dir", dir)
	if err != nil {
		return err
	}
	if err := node.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383"); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = fill("unix", node.socket, r.keys); err == nil {
			break
		}
		if time.Now().After(end) {
			return err
		}
	}
	all := []endpoint{{name: "direct", network: "tcp", addr: node.addr}}
	for _, scheme := range []string{"redis://", "redis-cluster://"} {
		s, err := r.serve("--target="+scheme+node.addr, "--lifetime=1h")
		if err != nil {
			return err
		}
		if err := fill("tcp", s.addr, r.keys); err != nil {
			return err
		}
		all = append(all, endpoint{name: scheme, network: "tcp", addr: s.addr, proxy: s.proc, direct: 1})
	}
	fmt.Printf("\nThe same of a Cluster (one primary without replicas, and it asked as if it were one server):\n")
	_, _, err = r.fullLoad(all, node, "share of redis://")
	return err
}
