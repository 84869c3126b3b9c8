package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

const (
	clients = 50
	size    = 1024
)

// An endpoint is what redis-benchmark is pointed at.
type endpoint struct {
	name, network, addr string
	proxy               *proc // nil: Redis itself
	direct              int   // the endpoint that this one is compared with
}

func (r *run) gateway() error {
	r.keys = 100_000
	redis, err := r.redis()
	if err != nil {
		return err
	}
	endpoints, missing, err := r.endpoints(redis)
	if err != nil {
		return err
	}
	if err := fill("unix", redis.socket, r.keys); err != nil {
		return err
	}
	fmt.Printf("\n### Gateway\n\n`redis-benchmark -c %d -r %d -d %d -t get|set -P 1|16` against each, in front of one Redis without persistence: "+
		"`sessile serve --listen ... --target ... --lifetime 1h`, nutcracker with one pool of one server, HAProxy in TCP mode. Every GET hits. "+
		"Share: operations per second, of those of Redis asked directly over the same kind of socket. Latency as redis-benchmark says it.\n", clients, r.keys, size)
	for _, name := range missing {
		fmt.Printf("\nLeft out, since it is not on this machine: %s (`apt-get install --no-install-recommends %s`).\n", name, name)
	}
	names, rate, err := r.fullLoad(endpoints, redis, "share of direct")
	if err != nil {
		return err
	}
	return r.halfLoad(endpoints, names, rate)
}

// fullLoad prints what each endpoint does at the most, and its share of the one that it is compared with. rate is half of what
// the slower of the first two does.
func (r *run) fullLoad(endpoints []endpoint, redis *server, share string) (names []string, rate map[string]float64, err error) {
	for _, e := range endpoints {
		names = append(names, e.name)
		if _, err := r.benchmark(e, redis, "get", 1, 200*clients); err != nil { // warm; not counted
			return nil, nil, err
		}
	}
	rows := [][]string{{"target", "test", "P", "ops/s", share, "p50 ms", "p99 ms", "proxy CPU µs/op", "redis CPU µs/op"}}
	rate = map[string]float64{}
	for _, pipeline := range []int{1, 16} {
		for _, test := range []string{"get", "set"} {
			results, err := r.rotated(fmt.Sprintf("%s P=%d", test, pipeline), names, func(row int) ([]float64, error) {
				return r.benchmark(endpoints[row], redis, test, pipeline, r.scaled(200_000*(1+pipeline/8)))
			})
			if err != nil {
				return nil, nil, err
			}
			for i, s := range results {
				cells := slices.Insert(s.cells("%.0f", "%.3f", "%.3f", "%.2f", "%.2f"), 1, s.share(results[endpoints[i].direct], 0))
				rows = append(rows, append([]string{names[i], test, fmt.Sprint(pipeline)}, cells...))
			}
			if pipeline == 1 {
				rate[test] = min(results[0].mid(0), results[1].mid(0)) / 2
			}
		}
	}
	table(rows)
	return names, rate, nil
}

// endpoints starts the proxies. Both legs of a unix row are unix sockets.
func (r *run) endpoints(redis *server) (all []endpoint, missing []string, err error) {
	all = []endpoint{{name: "direct", network: "tcp", addr: redis.addr}}
	tcp, err := r.serve("--target=redis://"+redis.addr, "--lifetime=1h")
	if err != nil {
		return nil, nil, err
	}
	all = append(all, endpoint{name: "sessile", network: "tcp", addr: tcp.addr, proxy: tcp.proc})

	for _, peer := range []struct {
		name, conf string
		argv       func(conf, stats string) []string
	}{
		{"nutcracker", "bench:\n  listen: %s\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  servers:\n    - %s:1\n",
			func(conf, stats string) []string {
				return []string{"nutcracker", "-c", conf, "-a", "127.0.0.1", "-s", stats}
			}},
		{"haproxy", "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n" +
			"listen redis\n  bind %s\n  server redis %s\n",
			func(conf, _ string) []string { return []string{"haproxy", "-db", "-f", conf} }},
	} {
		if _, err := exec.LookPath(peer.name); err != nil {
			missing = append(missing, peer.name)
			continue
		}
		addr, err := freeAddr()
		if err != nil {
			return nil, nil, err
		}
		stats, err := freeAddr()
		if err != nil {
			return nil, nil, err
		}
		_, port, _ := net.SplitHostPort(stats)
		conf := filepath.Join(r.dir, peer.name+".conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, peer.conf, addr, redis.addr), 0o600); err != nil {
			return nil, nil, err
		}
		p, err := r.start("tcp", addr, peer.argv(conf, port)...)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, endpoint{name: peer.name, network: "tcp", addr: addr, proxy: p})
	}

	socket := filepath.Join(r.dir, "sessile.sock")
	unix, err := r.serve("--listen=redis+unix://"+socket, "--target=redis+unix://"+redis.socket, "--lifetime=1h")
	if err != nil {
		return nil, nil, err
	}
	direct := len(all)
	return append(all, endpoint{"direct, unix socket", "unix", redis.socket, nil, direct},
		endpoint{"sessile, unix sockets", "unix", socket, unix.proc, direct}), missing, nil
}

// fill writes the first n of the keys that redis-benchmark may ask for.
func fill(network, addr string, n int) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	value := strings.Repeat("x", size)
	for from := 0; from < n; from += 500 {
		var b []byte
		for i := from; i < from+500; i++ {
			b = resp.AppendRequestStrings(b, "SET", fmt.Sprintf("key:%012d", i), value, "EX", "86400")
		}
		if err := exchange(c, b, 500); err != nil {
			return err
		}
	}
	return nil
}

// exchange sends n commands and expects OK for each.
func exchange(c net.Conn, commands []byte, n int) error {
	if _, err := c.Write(commands); err != nil {
		return err
	}
	got, want := make([]byte, 5*n), bytes.Repeat([]byte("+OK\r\n"), n)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("a SET was refused: %q", got[:min(len(got), 80)])
	}
	return nil
}

// benchmark runs redis-benchmark once: operations per second, p50 and p99 in ms, processor time of proxy and Redis in
// µs per operation.
func (r *run) benchmark(e endpoint, redis *server, test string, pipeline, n int) ([]float64, error) {
	args := []string{"-s", e.addr}
	if e.network == "tcp" {
		host, port, _ := net.SplitHostPort(e.addr)
		args = []string{"-h", host, "-p", port}
	}
	args = append(args, "-c", fmt.Sprint(clients), "-r", fmt.Sprint(r.keys), "-d", fmt.Sprint(size), "-n", fmt.Sprint(n),
		"-P", fmt.Sprint(pipeline), "-t", test, "--csv")
	proxy, server := e.proxy.cpu(), redis.cpu()
	out, err := exec.CommandContext(r.ctx, "redis-benchmark", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("redis-benchmark %v: %w", args, err)
	}
	proxy, server = e.proxy.cpu()-proxy, redis.cpu()-server
	lines, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil || len(lines) != 2 {
		return nil, fmt.Errorf("redis-benchmark %v answers %q", args, out)
	}
	var values []float64
	for _, name := range []string{"rps", "p50_latency_ms", "p99_latency_ms"} {
		v, err := strconv.ParseFloat(lines[1][slices.Index(lines[0], name)], 64)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return append(values, float64(proxy.Microseconds())/float64(n), float64(server.Microseconds())/float64(n)), nil
}

// halfLoad measures the TCP endpoints with a paced generator.
func (r *run) halfLoad(endpoints []endpoint, names []string, rate map[string]float64) error {
	tcp := slices.IndexFunc(endpoints, func(e endpoint) bool { return e.network != "tcp" }) // they come first
	rows := [][]string{{"target", "test", "requests/s", "mean µs", "p50 µs", "p99 µs", "sent late by, p99 µs", "p99 to direct"}}
	for _, test := range []string{"get", "set"} {
		results, err := r.rotated("half load "+test, names[:tcp], func(row int) ([]float64, error) {
			return paced(endpoints[row].addr, test, r.keys, rate[test], time.Duration(r.scaled(5000))*time.Millisecond)
		})
		if err != nil {
			return err
		}
		for i, s := range results {
			cells := append(s.cells("%.0f", "%.0f", "%.0f", "%.0f"), s.share(results[0], 2))
			rows = append(rows, append([]string{names[i], test, fmt.Sprintf("%.0f", rate[test])}, cells...))
		}
	}
	fmt.Printf("At half load: %d connections, requests sent when they are due whether or not answers are late, latency counted from "+
		"when a request was due; the rate is half of what the slower of direct and sessile reached above (P=1).\n", clients)
	table(rows)
	return nil
}
