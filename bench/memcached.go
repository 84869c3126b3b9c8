package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/migrate"
)

const memcachedPrefix = "memc.sess.key."

// memcachedServer is a memcached of this run.
type memcachedServer struct {
	*proc
	addr string
}

func (r *run) startMemcached(megabytes int) (*memcachedServer, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	p, err := r.start("tcp", addr, find("memcached"), "-u", "root", "-l", "127.0.0.1", "-p", port, "-U", "0", "-m", fmt.Sprint(megabytes), "-t", "2")
	return &memcachedServer{p, addr}, err
}

func (r *run) memcached() error {
	if find("memcached") == "" {
		fmt.Print("\n### memcached\n\nLeft out, since it is not on this machine: memcached (`apt-get install --no-install-recommends memcached`).\n")
		return nil
	}
	for _, part := range []func() error{r.memcachedFront, r.memcachedPages, r.memcachedMove} {
		if err := part(); err != nil {
			return err
		}
		r.stopAll()
	}
	return nil
}

// A talk is how a client asks for a session and writes one.
type talk struct {
	name, addr string
	proxy      *proc
	direct     int // which one it is compared with
	get, set   func(id string) (request []byte)
	got, kept  int // lengths of the answers, of ids of equal length
}

// memcachedFront compares the gateway's two fronts with the servers whose clients they serve.
func (r *run) memcachedFront() error {
	const keys = 100_000
	redis, err := r.redis()
	if err != nil {
		return err
	}
	mc, err := r.startMemcached(512)
	if err != nil {
		return err
	}
	front, err := freeAddr()
	if err != nil {
		return err
	}
	g, err := r.serve("--listen=memcached://"+front+"?client=php-memcached", "--target=redis://"+redis.addr, "--origin-key="+prefix, "--lifetime=1h")
	if err != nil {
		return err
	}
	value := strings.Repeat("x", size)
	id := func(i int) string { return fmt.Sprintf("%026d", i) }
	asMemcached := talk{
		get: func(id string) []byte { return []byte("get " + memcachedPrefix + id + "\r\n") },
		set: func(id string) []byte {
			return fmt.Appendf(nil, "set %s%s 0 1440 %d\r\n%s\r\n", memcachedPrefix, id, size, value)
		},
		got: len(fmt.Sprintf("VALUE %s%s 0 %d\r\n%s\r\nEND\r\n", memcachedPrefix, id(0), size, value)), kept: len("STORED\r\n"),
	}
	asRedis := talk{
		get: func(id string) []byte { return resp.AppendRequestStrings(nil, "GET", prefix+id) },
		set: func(id string) []byte { return resp.AppendRequestStrings(nil, "SETEX", prefix+id, "1440", value) },
		got: len(resp.AppendBulkString(nil, value)), kept: len("+OK\r\n"),
	}
	at := func(t talk, name, addr string, proxy *proc, direct int) talk {
		t.name, t.addr, t.proxy, t.direct = name, addr, proxy, direct
		return t
	}
	talks := []talk{at(asMemcached, "memcached", mc.addr, nil, 0), at(asMemcached, "sessile, memcached", front, g.proc, 0),
		at(asRedis, "Redis", redis.addr, nil, 2), at(asRedis, "sessile, Redis", g.addr, g.proc, 2)}
	names := make([]string, len(talks))
	for i, t := range talks {
		names[i] = t.name
		if i == 1 || i == 3 {
			continue // the same Redis
		}
		if err := t.fill(keys, id); err != nil {
			return err
		}
	}
	fmt.Printf("\n### Clients of memcached\n\n%d connections, each of which sends one request at a time, to one of %d sessions of %d bytes: memcached (2 threads) and Redis asked directly, and "+
		"`sessile serve --listen memcached://... --listen redis://...` in front of that Redis, for the same sessions. Share: requests per second, of those of the server "+
		"whose protocol it is, and of those of the gateway's other front.\n", clients, keys, size)
	rows := [][]string{{"", "", "requests/s", "share of its server", "of sessile, Redis", "p50 ms", "p99 ms", "sessile's CPU µs each"}}
	for _, test := range []string{"get", "set"} {
		results, err := r.rotated(test, names, func(row int) ([]float64, error) { return talks[row].load(test, r.scaled(200_000), keys, id) })
		if err != nil {
			return err
		}
		for i, s := range results {
			cells := s.cells("%.0f", "%.3f", "%.3f", "%.1f")
			rows = append(rows, []string{names[i], test, cells[0], s.share(results[talks[i].direct], 0), s.share(results[3], 0), cells[1], cells[2], cells[3]})
		}
	}
	table(rows)
	return nil
}

// fill writes the sessions.
func (t talk) fill(n int, id func(int) string) error {
	c, err := net.Dial("tcp", t.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	const batch = 200
	for from := 0; from < n; from += batch {
		var b []byte
		for i := from; i < min(from+batch, n); i++ {
			b = append(b, t.set(id(i))...)
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c, int64(t.kept*(min(from+batch, n)-from))); err != nil {
			return err
		}
	}
	return nil
}

// load sends n requests, one at a time on each connection. It returns requests per second, p50 and p99 in ms, and the proxy's processor
// time for each in µs.
func (t talk) load(test string, n, keys int, id func(int) string) ([]float64, error) {
	request, answer := t.get, t.got
	if test == "set" {
		request, answer = t.set, t.kept
	}
	times, errs := make([][]float64, clients), make([]error, clients)
	cpu, start := t.proxy.cpu(), time.Now()
	var wg sync.WaitGroup
	for w := range clients {
		wg.Go(func() {
			c, err := net.Dial("tcp", t.addr)
			if err != nil {
				errs[w] = err
				return
			}
			defer c.Close()
			buf := make([]byte, answer)
			for range n / clients {
				b := request(id(rand.IntN(keys)))
				began := time.Now()
				if _, errs[w] = c.Write(b); errs[w] == nil {
					_, errs[w] = io.ReadFull(c, buf)
				}
				if errs[w] == nil && !bytes.HasSuffix(buf, []byte("\r\n")) {
					errs[w] = fmt.Errorf("it answers %.80q", buf)
				}
				if errs[w] != nil {
					return
				}
				times[w] = append(times[w], float64(time.Since(began).Microseconds())/1000)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	var all []float64
	for _, of := range times {
		all = append(all, of...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", t.name, err)
	}
	s := summary(all)
	return []float64{float64(len(all)) / took.Seconds(), s[1], s[2], float64((t.proxy.cpu() - cpu).Microseconds()) / float64(len(all))}, nil
}

// memcachedPages compares what a page's session costs with each handler.
func (r *run) memcachedPages() error {
	fpm := findFPM()
	if fpm == "php-fpm" {
		return nil // said where pages are measured with phpredis
	}
	mc, err := r.startMemcached(64)
	if err != nil {
		return err
	}
	redis, err := r.redis()
	if err != nil {
		return err
	}
	behind, err := r.redis()
	if err != nil {
		return err
	}
	front, err := freeAddr()
	if err != nil {
		return err
	}
	g, err := r.serve("--listen=memcached://"+front+"?client=php-memcached", "--target=redis://"+behind.addr, "--origin-key="+prefix)
	if err != nil {
		return err
	}
	sites := []*site{{name: "php-memcached, direct", handler: "memcached", path: mc.addr}, {name: "php-memcached, gateway", handler: "memcached", path: front},
		{name: "phpredis, direct", handler: "redis", path: "tcp://" + redis.addr}, {name: "phpredis, gateway", handler: "redis", path: "tcp://" + g.addr}}
	if err := r.startFPM(fpm, sites); err != nil {
		return err
	}
	names := make([]string, len(sites))
	for i, s := range sites {
		names[i] = s.name
		if i == 3 {
			s.visits = map[string]int{} // other sessions than those of the other front
			for n := range 25 * workers {
				s.visits[fmt.Sprintf("other%026d", n)] = 0
			}
			if _, err := s.browse(r.ctx, workers, len(s.visits)); err != nil {
				return err
			}
			continue
		}
		if err := s.seed(r.ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	fmt.Printf("\nThe same page as with phpredis above, with locks, by php-memcached (binary protocol) and phpredis. Times in µs.\n")
	rows := [][]string{{"sessions in", "pages at a time", "session mean", "p50", "p99", "session to its server's"}}
	for _, atATime := range []int{1, workers} {
		results, err := r.rotated(fmt.Sprintf("pages, %d at a time", atATime), names, func(row int) ([]float64, error) {
			return sites[row].browse(r.ctx, atATime, r.scaled(500*(atATime+1)))
		})
		if err != nil {
			return err
		}
		for i, s := range results {
			rows = append(rows, append(append([]string{names[i], fmt.Sprint(atATime)}, s.cells("%.0f", "%.0f", "%.0f")[:3]...), s.share(results[i/2*2], 0)))
		}
	}
	table(rows)
	return nil
}

// memcachedMove moves a million sessions out of two memcached servers, while users ask for theirs.
func (r *run) memcachedMove() error {
	n := r.scaled(1_000_000)
	one, err := r.startMemcached(4096)
	if err != nil {
		return err
	}
	redis, err := r.redis()
	if err != nil {
		return err
	}
	id := func(i int) string { return fmt.Sprintf("%026d", i*7919) }
	value := strings.Repeat("x", size)
	of := talk{addr: one.addr, kept: len("STORED\r\n"), set: func(id string) []byte {
		return fmt.Appendf(nil, "set %s%s 0 86400 %d\r\n%s\r\n", memcachedPrefix, id, size, value)
	}}
	r.say("making %d sessions in memcached", n)
	if err := of.fill(n, id); err != nil {
		return err
	}
	names := []string{"metadump, get, SET", "sessile"}
	results, err := r.rotated("memcached to Redis", names, func(row int) ([]float64, error) {
		if err := redis.cli("FLUSHALL"); err != nil {
			return nil, err
		}
		if row == 0 {
			return metadump(one.addr, redis.addr, n)
		}
		return r.moveUnderLoad(one.addr, redis, n, id)
	})
	if err != nil {
		return err
	}
	s := results[1]
	ratio := func(column int) string {
		return fmt.Sprintf("%.2f", s.median(func(round int, v []float64) float64 { return v[column] / results[0][round][0] }))
	}
	fmt.Printf("\nA move of %d sessions of %d bytes from one memcached to one Redis, up to ramp-down. By hand: the names by `lru_crawler metadump hash`, 100 in a get, 100 SETs in a write, guarded by "+
		"nothing. Sessile's as `migrate status` has them, while users ask for 200 sessions a second through the gateway from before the move to ramp-down.\n", n, size)
	table([][]string{{"", "sessions/s", "rate to by hand"}, {"by hand", fmt.Sprintf("%.0f", results[0].mid(0)), "1.00"},
		{"sessile: backfill", fmt.Sprintf("%.0f", s.mid(0)), ratio(0)}, {"sessile: reconcile pass", fmt.Sprintf("%.0f", s.mid(1)), ratio(1)}})
	table([][]string{{"users' reads", "found", "share", "p50 ms", "p99 ms", "missing in Redis at the end", "peak MiB of sessile", "whole move, s"},
		s.cells("%.0f", "%.0f", "%.0f", "%.0f", "%.4f", "%.2f", "%.2f", "%.0f", "%.0f", "%.0f")[2:]})
	return nil
}

// metadump copies by hand.
func metadump(from, to string, n int) ([]float64, error) {
	mc, err := net.Dial("tcp", from)
	if err != nil {
		return nil, err
	}
	defer mc.Close()
	list, err := net.Dial("tcp", from)
	if err != nil {
		return nil, err
	}
	defer list.Close()
	redis, err := net.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	defer redis.Close()
	start := time.Now()
	if _, err := io.WriteString(list, "lru_crawler metadump hash\r\n"); err != nil {
		return nil, err
	}
	names, values := bufio.NewReaderSize(list, 1<<20), bufio.NewReaderSize(mc, 1<<20)
	copied := 0
	var keys []string
	flush := func() error {
		if _, err := io.WriteString(mc, "get "+strings.Join(keys, " ")+"\r\n"); err != nil {
			return err
		}
		var b []byte
		sent := 0
		for {
			line, err := values.ReadString('\n')
			if err != nil {
				return err
			}
			if line == "END\r\n" {
				break
			}
			var key string
			var flags, length int
			if _, err := fmt.Sscanf(line, "VALUE %s %d %d", &key, &flags, &length); err != nil {
				return err
			}
			data := make([]byte, length+2)
			if _, err := io.ReadFull(values, data); err != nil {
				return err
			}
			b = resp.AppendRequest(b, []byte("SET"), []byte(prefix+strings.TrimPrefix(key, memcachedPrefix)), data[:length], []byte("EX"), []byte("86400"))
			sent++
		}
		copied += sent
		return exchange(redis, b, sent)
	}
	// All names before the first get, which may wait for a lock that the crawler has while its client does not read.
	var all []string
	for {
		line, err := names.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if line == "END\r\n" {
			break
		}
		line, ok := strings.CutPrefix(line, "key=")
		if !ok {
			return nil, fmt.Errorf("metadump answers %q", line)
		}
		name, _, _ := strings.Cut(line, " ")
		if name, err = url.QueryUnescape(name); err != nil {
			return nil, err
		}
		all = append(all, name)
	}
	for keys = range slices.Chunk(all, 100) {
		if err := flush(); err != nil {
			return nil, err
		}
	}
	if copied < n {
		return nil, fmt.Errorf("by hand %d of %d", copied, n)
	}
	return []float64{float64(copied) / time.Since(start).Seconds()}, nil
}

// moveUnderLoad moves n sessions to ramp-down. It returns the rates of backfill and pass; how many reads users have made, how many
// found their session as it is, and the share; p50 and p99 of a read in ms; how many are missing in Redis; MiB; and seconds.
func (r *run) moveUnderLoad(from string, redis *server, n int, id func(int) string) (values []float64, err error) {
	g, err := r.serve("--target=redis://"+redis.addr, "--origin-key="+prefix, "--origin=memcached://"+from, "--lifetime=24h")
	if err != nil {
		return nil, err
	}
	defer g.stop()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	want := resp.AppendBulkString(nil, strings.Repeat("x", size))
	var stop atomic.Bool
	var times []float64
	found := 0
	var uerr error
	var users sync.WaitGroup
	users.Go(func() {
		got := make([]byte, len(want))
		start := time.Now()
		for i := 0; !stop.Load(); i++ {
			due := start.Add(time.Duration(i) * 5 * time.Millisecond)
			time.Sleep(time.Until(due))
			began := time.Now()
			_ = c.SetDeadline(began.Add(20 * time.Second)) // a shorter answer is an error, too
			if _, uerr = c.Write(resp.AppendRequestStrings(nil, "GET", prefix+id(rand.IntN(n)))); uerr == nil {
				_, uerr = io.ReadFull(c, got)
			}
			if uerr != nil {
				return
			}
			times = append(times, float64(time.Since(began).Microseconds())/1000)
			if bytes.Equal(got, want) {
				found++
			} else {
				uerr = fmt.Errorf("a user is answered %.60q", got)
				return
			}
		}
	})
	start := time.Now()
	rates := [2]float64{}
	for i, p := range []struct {
		to  migrate.Phase
		job func(migrate.Status) migrate.Job
	}{{migrate.DualWrite, func(st migrate.Status) migrate.Job { return st.Backfill }}, {migrate.Sync, func(st migrate.Status) migrate.Job { return st.Reconcile }}} {
		if err = g.take(p.to); err != nil {
			break
		}
		if rates[i], err = r.await(g, n, p.job); err != nil {
			break
		}
	}
	if err == nil {
		err = g.take(migrate.RampDown)
	}
	took := time.Since(start)
	stop.Store(true)
	users.Wait()
	if err = errors.Join(err, uerr); err != nil {
		return nil, err
	}
	missing := 0
	check, err := net.Dial("unix", redis.socket)
	if err != nil {
		return nil, err
	}
	defer check.Close()
	replies := bufio.NewReader(check)
	const batch = 500
	for from := 0; from < n; from += batch {
		var b []byte
		for i := from; i < from+batch; i++ {
			b = resp.AppendRequestStrings(b, "EXISTS", prefix+id(i))
		}
		if _, err := check.Write(b); err != nil {
			return nil, err
		}
		for range batch {
			line, err := replies.ReadString('\n')
			if err != nil {
				return nil, err
			}
			if line != ":1\r\n" {
				missing++
			}
		}
	}
	_, err = g.migrate("cancel")
	s := summary(times)
	return []float64{rates[0], rates[1], float64(len(times)), float64(found), float64(found) / float64(len(times)), s[1], s[2], float64(missing),
		g.memory("VmHWM"), took.Seconds()}, err
}
