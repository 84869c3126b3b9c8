package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	librarySessions = 10_000
	libraryChanges  = 0.1 // of the requests change the session
	// How uneven the sessions are asked for: session k as often as (10+k)^-1.1 says, so that the first one gets a fiftieth of the
	// requests. That is one request or five at a time, of 64 or 256: what a browser with several tabs has under way.
	libraryZipf, libraryZipfFrom = 1.1, 10
)

// A crowded library is one with a server, sessions, and who asks for them.
type crowded struct {
	*librarySite
	browsers []atomic.Pointer[browser]
	acked    []atomic.Int64  // changes that were acknowledged, by session
	had      []int64         // changes that there were before
	times    []time.Duration // that answers took
	failed   atomic.Int64    // requests that were answered with an error
}

// A browser has a cookie, and the requests that it sends with it.
type browser struct {
	cookie    string // with a second one behind it, where a library has two: "value; name-v=value"
	read, add []byte
}

// A talker is a connection that is kept. It is as little as can be: it shares two cores with those it measures.
type talker struct {
	conn net.Conn
	buf  []byte
}

func dialTalker(addr string) (*talker, error) {
	c, err := net.Dial("tcp", addr)
	return &talker{c, make([]byte, 16<<10)}, err
}

var (
	headEnd    = []byte("\r\n\r\n")
	bodyLength = []byte("\r\nContent-Length: ")
)

// ask sends a request and returns the status line with the header, and the body, which are good until the next.
func (t *talker) ask(request []byte) (head, body []byte, err error) {
	if err := t.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, nil, err
	}
	if _, err := t.conn.Write(request); err != nil {
		return nil, nil, err
	}
	for have := 0; have < len(t.buf); {
		n, err := t.conn.Read(t.buf[have:])
		if err != nil {
			return nil, nil, err
		}
		have += n
		end := bytes.Index(t.buf[:have], headEnd)
		if end < 0 {
			continue
		}
		_, after, ok := bytes.Cut(t.buf[:end+2], bodyLength)
		if !ok {
			return nil, nil, errors.New("an answer without Content-Length")
		}
		length, err := strconv.Atoi(string(after[:bytes.IndexByte(after, '\r')]))
		if err != nil {
			return nil, nil, err
		}
		if end += len(headEnd); have >= end+length {
			return t.buf[:end], t.buf[end : end+length], nil
		}
	}
	return nil, nil, errors.New("an answer that is too long")
}

// page is a request.
func (c *crowded) page(path, cookie string) []byte {
	return fmt.Appendf(nil, "GET /%s HTTP/1.1\r\nHost: %s\r\nCookie: %s=%s\r\n\r\n", path, c.addr, c.lib.cookie, cookie)
}

// each has talkers do something for each of n.
func (c *crowded) each(n int, do func(t *talker, i int) error) error {
	const talkers = 64
	errs := make([]error, talkers)
	var wg sync.WaitGroup
	for w := range talkers {
		wg.Go(func() {
			t, err := dialTalker(c.addr)
			if err != nil {
				errs[w] = err
				return
			}
			defer t.conn.Close()
			for i := w; i < n && errs[w] == nil; i += talkers {
				errs[w] = do(t, i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// fill has n users log in.
func (c *crowded) fill(n int) error {
	c.browsers, c.acked, c.had = make([]atomic.Pointer[browser], n), make([]atomic.Int64, n), make([]int64, n)
	return c.each(n, func(t *talker, i int) error {
		head, body, err := t.ask(c.page("page?n="+strconv.Itoa(i), ""))
		if err != nil {
			return err
		}
		if !ok(head) {
			return fmt.Errorf("a login is answered %q", body)
		}
		if c.lib.cookie == "" { // a request as long as the others'
			c.have(i, strings.Repeat("x", 43))
		} else if value := c.set(head, ""); value != "" {
			c.have(i, value)
		} else {
			return errors.New("a login without a cookie")
		}
		return nil
	})
}

var setCookie = []byte("\r\nSet-Cookie: ")

// set is the cookie that a browser has after an answer, where it was had, "" where it is the same. A second cookie is called like the first one, with -v.
func (c *crowded) set(head []byte, had string) string {
	if !bytes.Contains(head, setCookie) {
		return ""
	}
	first, second, _ := strings.Cut(had, "; ")
	for line := range bytes.SplitSeq(head, setCookie[:2]) {
		set, ok := bytes.CutPrefix(line, setCookie[2:])
		if !ok {
			continue
		}
		pair, _, _ := bytes.Cut(set, []byte(";"))
		if value, ok := bytes.CutPrefix(pair, []byte(c.lib.cookie+"=")); ok {
			first = string(value)
		} else if bytes.HasPrefix(pair, []byte(c.lib.cookie+"-v=")) {
			second = string(pair)
		}
	}
	now := first
	if second != "" {
		now += "; " + second
	}
	if now == had {
		return ""
	}
	return now
}

// have gives browser i a cookie.
func (c *crowded) have(i int, cookie string) {
	c.browsers[i].Store(&browser{cookie, c.page("read", cookie), c.page("add", cookie)})
}

func ok(head []byte) bool { return bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) }

// counts are the changes that each session has.
func (c *crowded) counts() ([]int64, error) {
	all := make([]int64, len(c.browsers))
	return all, c.each(len(c.browsers), func(t *talker, i int) error {
		head, body, err := t.ask(c.browsers[i].Load().read)
		fields := strings.Split(string(body), "|")
		switch {
		case err != nil:
			return err
		case !ok(head) || len(fields) != 5:
			return fmt.Errorf("a page is answered %q", body)
		case c.lib.cookie != "" && fields[0] != "user-"+strconv.Itoa(i):
			return fmt.Errorf("session %d is that of %q", i, fields[0])
		}
		all[i], err = strconv.ParseInt(fields[3], 10, 64)
		return err
	})
}

// press has conns ask for pages at once, each again when it is answered, for d. It returns how many were answered.
func (c *crowded) press(ctx context.Context, conns int, d time.Duration) (n int, took time.Duration, err error) {
	times, errs := make([][]time.Duration, conns), make([]error, conns)
	for i := range c.acked {
		c.acked[i].Store(0)
	}
	c.failed.Store(0)
	talkers := make([]*talker, conns)
	for i := range talkers {
		if talkers[i], err = dialTalker(c.addr); err != nil {
			return 0, 0, err
		}
		defer talkers[i].conn.Close()
	}
	began := time.Now()
	var wg sync.WaitGroup
	for w, t := range talkers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), uint64(conns)))
			zipf := rand.NewZipf(rng, libraryZipf, libraryZipfFrom, uint64(len(c.browsers)-1))
			for now := began; now.Sub(began) < d && ctx.Err() == nil; {
				i, change := zipf.Uint64(), rng.Float64() < libraryChanges
				b := c.browsers[i].Load()
				request := b.read
				if change {
					request = b.add
				}
				head, _, err := t.ask(request)
				if err != nil {
					errs[w] = err
					return
				}
				then := time.Now()
				times[w] = append(times[w], then.Sub(now))
				switch now = then; {
				case !ok(head):
					c.failed.Add(1)
				case change:
					c.acked[i].Add(1)
				}
				if cookie := c.set(head, b.cookie); cookie != "" {
					c.have(int(i), cookie)
				}
			}
		})
	}
	wg.Wait()
	took = time.Since(began)
	c.times = slices.Concat(times...)
	slices.Sort(c.times)
	return len(c.times), took, errors.Join(append(errs, ctx.Err())...)
}

// number is what the server says of itself.
func (c *crowded) number(page string) (n float64, err error) {
	t, err := dialTalker(c.addr)
	if err != nil {
		return 0, err
	}
	defer t.conn.Close()
	_, body, err := t.ask(c.page(page, ""))
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(string(body), 64)
}

// The columns of measure: what is not named here is only printed.
const (
	pagesPerSecond = 0 // then p50, p99, processor time of server and Redis, allocations, commands
	ackedWrites    = 7
	lostWrites     = 8
	failedPages    = 9
)

// measure has the server pressed once.
func (r *run) measure(c *crowded, redis *server, conns int) ([]float64, error) {
	client := &redisClient{addr: redis.addr}
	defer client.close()
	if _, err := client.do("CONFIG", "RESETSTAT"); err != nil {
		return nil, err
	}
	allocs, err := c.number("allocs")
	if err != nil {
		return nil, err
	}
	cpu, rcpu := c.cpu(), redis.cpu()
	pages, took, err := c.press(r.ctx, conns, time.Duration(r.scaled(4000))*time.Millisecond)
	if err != nil {
		return nil, err
	}
	cpu, rcpu = c.cpu()-cpu, redis.cpu()-rcpu
	after, err := c.number("allocs")
	if err != nil {
		return nil, err
	}
	info, err := client.do("INFO", "commandstats")
	if err != nil {
		return nil, err
	}
	_, calls := commandCalls(info)
	now, err := c.counts()
	if err != nil {
		return nil, err
	}
	var acked, lost int64
	for i := range now {
		n := c.acked[i].Load()
		acked += n
		lost += n - (now[i] - c.had[i])
	}
	c.had = now
	n := float64(pages)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) }
	return []float64{n / took.Seconds(), micros(c.times[pages/2]) / 1000, micros(c.times[pages*99/100]) / 1000, micros(cpu) / n, micros(rcpu) / n,
		(after - allocs) / n, float64(calls) / n, float64(acked), float64(lost), float64(c.failed.Load())}, nil
}

// libraryLoad measures the libraries under load.
func (r *run) libraryLoad(redis *server) error {
	var all []*crowded
	var names []string
	against := map[string]int{}
	for _, l := range libraries {
		if !l.load {
			continue
		}
		s, err := r.startLibrary(l, siteSetup{Redis: redis.addr})
		if err != nil {
			return err
		}
		c := &crowded{librarySite: s}
		if err := c.fill(librarySessions); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		against[l.name] = len(all)
		all, names = append(all, c), append(names, l.name)
	}
	base := "scs, goredisstore, IdleTimeout"
	for _, conns := range []int{64, libraryConns} {
		results, err := r.rotated(fmt.Sprint(conns, " connections"), names, func(row int) ([]float64, error) { return r.measure(all[row], redis, conns) })
		if err != nil {
			return err
		}
		rows := [][]string{{"library", "requests/s", "to none", "to scs, goredisstore, IdleTimeout", "p50 ms", "p99 ms", "server CPU µs/request", "Redis CPU µs/request",
			"allocations/request", "Redis commands/request", "changes acknowledged", "lost of these", "requests answered with an error"}}
		for i, s := range results {
			cells := slices.Insert(s.cells("%.0f", "%.2f", "%.2f", "%.1f", "%.1f", "%.0f", "%.2f"), 1, s.share(results[against["none"]], pagesPerSecond), s.share(results[against[base]], pagesPerSecond))
			acked, lost, failed := s.sum(ackedWrites), s.sum(lostWrites), s.sum(failedPages)
			losses := "–"
			if names[i] != "none" {
				losses = fmt.Sprintf("%.0f (%.3f %%)", lost, 100*lost/acked)
			}
			rows = append(rows, append(append([]string{names[i]}, cells...), fmt.Sprintf("%.0f", acked), losses, fmt.Sprintf("%.0f", failed)))
		}
		fmt.Printf("%d connections:\n", conns)
		table(rows)
	}
	for _, c := range all {
		r.end(c.proc)
	}
	return nil
}

// sum is that of a column over all rounds.
func (s series) sum(column int) (sum float64) {
	for _, values := range s {
		sum += values[column]
	}
	return sum
}
