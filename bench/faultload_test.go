package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

const (
	writers    = 16
	perSecond  = 300              // writes of each contestant: 2 cores are not to be the judge
	patient    = 15 * time.Second // how long a client waits for an answer: longer than anybody takes for one
	deleteEach = 8                // of so many sessions one is logged out
	lateLogout = 4                // writes after its login
)

// A session is one that a client has written, under a key of its own, and what the client was told.
type session struct {
	key        string
	door       int
	sent, done time.Time
	err        error
	logout     int // notAsked, asked or acknowledged
	gone       time.Time
}

const (
	notAsked = iota
	asked
	acknowledged
)

// A client is what a writer writes through.
type client interface {
	set(ctx context.Context, key, value string) error
	del(ctx context.Context, key string) error
	close()
}

// valueOf is what is written under a key.
func valueOf(key string) string { return "session of " + key }

// A traffic is what the writers of one contestant do in one run.
type traffic struct {
	*contestant
	prefix string // of the keys of this run

	thirds bool // a writer's sessions are all on one third of a Cluster

	stop   chan struct{}
	wg     sync.WaitGroup
	wrote  [writers][]session // each its writer's, until wg is done
	errs   atomic.Int64
	slow   atomic.Int64 // the longest answer in ns
	lastOK [writers]atomic.Int64
	failed atomic.Pointer[error] // the last error
	began  time.Time
	said   map[string]float64 // by the gateways, before
	rush   []time.Duration    // how long each of a crowd waited
}

// begin has all writers write until end.
func (c *contestant) begin(prefix string, thirds bool) *traffic {
	l := &traffic{contestant: c, thirds: thirds, prefix: "fault:" + strings.NewReplacer(" ", "-", "=", "-").Replace(c.name) + ":" + prefix, stop: make(chan struct{}), began: time.Now()}
	for w := range writers {
		l.wg.Go(func() { l.write(w) })
	}
	return l
}

func (l *traffic) write(w int) {
	door := w % len(l.doors)
	c := l.doors[door]()
	defer c.close()
	every := writers * time.Second / perSecond
	turn := time.NewTimer(every * time.Duration(w) / writers)
	defer turn.Stop()
	for i := 0; ; i++ {
		select {
		case <-turn.C:
		case <-l.stop:
		}
		if l.stopped() { // both may be
			return
		}
		turn.Reset(every)
		s := session{key: l.key(w, i), door: door}
		s.sent, s.done, s.err = l.call(func(ctx context.Context) error { return c.set(ctx, s.key, valueOf(s.key)) })
		if s.err == nil {
			l.lastOK[w].Store(int64(s.sent.Sub(l.began)))
		}
		l.wrote[w] = append(l.wrote[w], s)
		if i%deleteEach == deleteEach-1 {
			if old := &l.wrote[w][i-lateLogout]; old.err == nil {
				var err error
				old.logout = asked
				if _, old.gone, err = l.call(func(ctx context.Context) error { return c.del(ctx, old.key) }); err == nil {
					old.logout = acknowledged
				}
			}
		}
	}
}

// crowd has n clients come at once, who log in and go. It returns how long each waited, with the patience of one who was
// not served.
func (l *traffic) crowd(n int) []time.Duration {
	waited := make([]time.Duration, n)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patient)
			defer cancel()
			c := l.doors[i%len(l.doors)]()
			defer c.close()
			key := fmt.Sprintf("%s:crowd:%d", l.prefix, i)
			if waited[i] = patient; c.set(ctx, key, valueOf(key)) == nil {
				waited[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	slices.Sort(waited)
	return waited
}

// key is that of a writer's i-th session. In a Cluster it is always on the same third of the slots.
func (l *traffic) key(w, i int) string {
	key := fmt.Sprintf("%s:%d:%d", l.prefix, w, i)
	for n := 0; l.thirds && third(key) != w%3; n++ {
		key = fmt.Sprintf("%s:%d:%d:%d", l.prefix, w, i, n)
	}
	return key
}

// call times a call and keeps account of it.
func (l *traffic) call(do func(ctx context.Context) error) (sent, done time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	sent = time.Now()
	err = do(ctx)
	done = time.Now()
	if err != nil {
		l.errs.Add(1)
		l.failed.Store(&err)
	}
	for took := int64(done.Sub(sent)); ; {
		if slow := l.slow.Load(); took <= slow || l.slow.CompareAndSwap(slow, took) {
			return sent, done, err
		}
	}
}

// well reports whether every writer has had a write acknowledged that it sent after that.
func (l *traffic) well(after time.Time) bool {
	for w := range writers {
		if l.lastOK[w].Load() <= int64(after.Sub(l.began)) {
			return false
		}
	}
	return true
}

func (l *traffic) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// end waits for the writers, who were stopped, and returns all that they wrote.
func (l *traffic) end() []session {
	l.wg.Wait()
	return slices.Concat(l.wrote[:]...)
}

// plain is a connection of a client that knows nothing but one Redis: what PHP has.
type plain struct {
	path string
	conn net.Conn
	r    *bufio.Reader
}

func (p *plain) set(ctx context.Context, key, value string) error {
	reply, err := p.do(ctx, "SET", key, value, "PX", "600000")
	if err == nil && reply != "+OK" {
		return errors.New(reply)
	}
	return err
}

func (p *plain) del(ctx context.Context, key string) error {
	reply, err := p.do(ctx, "DEL", key)
	if err == nil && !strings.HasPrefix(reply, ":") {
		return errors.New(reply)
	}
	return err
}

func (p *plain) do(ctx context.Context, args ...string) (reply string, err error) {
	if p.conn == nil {
		if p.conn, err = new(net.Dialer).DialContext(ctx, "unix", p.path); err != nil {
			return "", err
		}
		p.r = bufio.NewReader(p.conn)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	end, _ := ctx.Deadline()
	_ = p.conn.SetDeadline(end) // fails where the next line does
	if _, err = p.conn.Write([]byte(b.String())); err == nil {
		reply, err = p.r.ReadString('\n')
	}
	if err != nil {
		p.close() // the answer that is late is nobody's
	}
	return strings.TrimRight(reply, "\r\n"), err
}

func (p *plain) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// slotOf is the slot of a key without braces: its CRC-16 (XMODEM).
func slotOf(key string) int {
	var crc uint16
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			crc = crc<<1 ^ 0x1021*(crc>>15)
		}
	}
	return int(crc % 16384)
}

// executed counts how often a server set a key.
type executed struct {
	conn net.Conn
	done chan struct{}
	sets map[string]int // by key, once done
}

// watch has servers tell what they execute (MONITOR) until the end of the run.
func (r *faultRun) watch(servers ...*testserver.RedisServer) {
	for _, s := range servers {
		conn, err := net.Dial("unix", s.Socket)
		if err == nil {
			_, err = conn.Write([]byte("MONITOR\r\n"))
		}
		if err != nil {
			r.t.Fatal(err)
		}
		e := &executed{conn: conn, done: make(chan struct{}), sets: map[string]int{}}
		r.seen = append(r.seen, e)
		go func() {
			defer close(e.done)
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				// +1795267811.123456 [0 127.0.0.1:5000] "SET" "key" ...; in the place of the address, lua is a script's
				if f := strings.Split(lines.Text(), "\""); len(f) > 3 && strings.Contains(strings.ToUpper(f[1]), "SET") {
					e.sets[f[3]]++
				}
			}
		}()
	}
}

func (e *executed) stop() {
	e.conn.Close()
	<-e.done
}

// repeated reports whether a key was set more than once, as far as that was watched.
func (r *faultRun) repeated(key string) bool {
	n := 0
	for _, e := range r.seen {
		n += e.sets[key]
	}
	return n > 1
}
