// Package gateway serves a site's sessions to clients that speak Redis or memcached: listeners, connections and their end,
// the table that turns commands into store calls, the order of those who wait for a lock.
//
// Four walls, so that the layer of connections can change without the rest: command.go makes requests of bytes and asks
// nobody; exec.go runs them over the store; render makes bytes of what came out; the two transports alone, stream and
// looped, know that there are sockets and goroutines. What a client is answered when a store fails is chosen by what the
// client does with it: failure in command.go, exists and write in exec.go.
//
// Memcached has bytes of its own, front.go and memcached.go, and shares the rest: what it names is the same sessions, and the
// same locks.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("gateway: server closed")

// A Server serves one site.
type Server struct {
	site     Site
	database string
	unauth   resp.Limits
	auth     resp.Limits
	users    credentials
	served   []*command
	passed   map[string]*command // by name
	log      *slog.Logger
	hooks    Hooks
	started  time.Time

	ctx    context.Context // of every store call; it ends when the server gives up
	giveUp context.CancelFunc

	destroyed *destroyed
	locks     *locks
	critical  critical
	known     sightings
	recall    Recall // nil where nobody remembers
	scripts   scripts
	touches   touches
	blind     atomic.Bool // the last read failed
	setAway   atomic.Bool // the last command about the access set failed
	anybody   sync.Once   // to say that any password is accepted
	stranger  sync.Once   // to say that a prefix may be configured wrongly
	lastAlarm atomic.Int64
	memory    atomic.Int64
	count     counters

	drain atomic.Int64 // when Shutdown began, in ns; 0: it did not

	mu        sync.Mutex // guards what follows; never held while reading, writing or asking a store
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	wg        sync.WaitGroup // connections

	loop   *loop // nil where all connections have goroutines of their own
	loopWG sync.WaitGroup
}

type counters struct {
	accepted, refused, commands, protocol, held, dropped, logins, expired, panics, setLost atomic.Uint64
	open                                                                                   atomic.Int64
}

// Stats are a server's counts since its start, and what there is at the moment.
type Stats struct {
	Open     int64  // connections at the moment
	Accepted uint64 // connections in all
	Refused  uint64 // connections above the limit
	Commands uint64
	Protocol uint64 // connections closed for what they sent
	Held     uint64 // commands that waited for a store that was away
	Dropped  uint64 // writes of sessions that were destroyed after the client read them
	Logins   uint64 // with a wrong password
	Panics   uint64 // connections given up: a bug
	SetLost  uint64 // commands about the access set that the target did not answer
	Memory   int64  // bytes of unfinished commands and unread replies, beyond what each connection has free

	LocksHeld    int64 // by clients of ours
	LocksWaiting int64 // clients
	LocksExpired uint64
}

// New returns a server that serves site once it is given listeners. Shutdown or Close ends it; the store stays open.
func New(site Site, opt Options) (*Server, error) {
	if err := site.complete(); err != nil {
		return nil, fmt.Errorf("gateway: site %q: %w", site.Name, err)
	}
	writes, err := parseCritical(site.Critical)
	if err != nil {
		return nil, fmt.Errorf("gateway: site %q: %w", site.Name, err)
	}
	passed, err := passing(site.Passed)
	if err != nil {
		return nil, fmt.Errorf("gateway: site %q: %w", site.Name, err)
	}
	s := &Server{
		critical: writes, known: sightings{seed: maphash.MakeSeed(), off: !writes.create || writes.all},
		site: site, database: strconv.Itoa(site.Database), users: newCredentials(site.Users),
		auth: site.limits(true), unauth: site.limits(false), passed: passed, served: served(passed),
		log: opt.Logger, hooks: opt.Hooks, started: time.Now(),
		destroyed: newDestroyed(site.DestroyedMemory, 100_000),
		touches:   touches{lifetime: site.Lifetime},
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{},
	}
	setDefault(&s.log, slog.New(slog.DiscardHandler))
	s.locks = newLocks(func() { s.count.expired.Add(1) }, func(c *conn) {
		if s.drain.Load() != 0 {
			c.io.hurry()
		}
	})
	if r, ok := site.Store.(Recall); ok && r.Remembers() {
		s.recall = r
	}
	s.ctx, s.giveUp = context.WithCancel(context.Background())
	return s, nil
}

func (s *Server) limits(authenticated bool) resp.Limits {
	if authenticated {
		return s.auth
	}
	return s.unauth
}

// Serve accepts connections from l, which nobody else uses from then on, until Shutdown or Close, and closes l. It refuses
// a listener that anybody can reach and log in at.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if err := s.admit(l); err != nil {
		return err
	}
	m, _ := l.(*memcachedListener)
	s.mu.Lock()
	if s.drain.Load() != 0 {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	if s.loop == nil {
		s.loop = newLoop(s)
	}
	loop := s.loop
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	if m == nil {
		if err, done := loop.listen(l); done {
			return err
		}
	}
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.accept(nc, m)
			continue
		}
		if s.drain.Load() != 0 {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("gateway: accept: %w", err)
		}
		// Out of descriptors, most likely: those who are connected go on.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Error("cannot accept", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
		}
	}
}

// admit refuses a listener at which strangers would be let in.
func (s *Server) admit(l net.Listener) error {
	addr, tcp := l.Addr().(*net.TCPAddr)
	if !tcp || addr.IP.IsLoopback() || len(s.users) > 0 || s.site.Insecure {
		return nil
	}
	if m, ok := l.(*memcachedListener); ok {
		l = m.Listener
	}
	if t, ok := l.(*tlsListener); ok && t.files.clientCA != "" {
		return nil
	}
	return fmt.Errorf("gateway: %v is open to others and the site has no users: configure users or client certificates, "+
		"listen on a loopback address or a unix socket, or set insecure", addr)
}

// accept serves nc, whose client speaks memcached if m is where it came.
func (s *Server) accept(nc net.Conn, m *memcachedListener) {
	var c *stream
	if s.admitted(func(id int64) *conn {
		if c = newStream(s, nc, id); m != nil {
			c.speakMemcached(m.front)
		}
		return &c.conn
	}) {
		go func() {
			defer s.ended(&c.conn)
			c.serve()
		}()
		return
	}
	if _, ok := nc.(*tls.Conn); !ok && m == nil { // a handshake is not worth the wait, and an error is an empty session to PHP's memcached
		nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		nc.Write(resp.AppendError(nil, textMaxConns))
	}
	nc.Close()
}

// admitted makes a connection, or reports false where there are too many. Whoever runs it calls ended.
func (s *Server) admitted(newConn func(id int64) *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := int64(s.count.accepted.Add(1))
	if len(s.conns) >= s.site.Limits.Conns || s.drain.Load() != 0 {
		s.count.refused.Add(1)
		return false
	}
	s.conns[newConn(id)] = struct{}{}
	s.count.open.Add(1)
	s.wg.Add(1)
	return true
}

func (s *Server) ended(c *conn) {
	if c.memcached != nil {
		close(c.memcached.over)
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.count.open.Add(-1)
	s.mu.Unlock()
	s.wg.Done()
}

// Shutdown stops accepting. A connection is closed once its running commands are answered and its client has been quiet
// for Site.Linger, or that long after the beginning if it never is, but not while it holds a lock: a page is under way.
// Shutdown returns when all are closed, or with ctx's error at its end; then what is left is cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.giveUp()
		s.loopWG.Wait()
		return nil
	case <-ctx.Done():
		s.cutOff()
		return ctx.Err()
	}
}

// Close cuts everything off and returns when the last connection has ended.
func (s *Server) Close() error {
	s.stop()
	s.cutOff()
	s.wg.Wait()
	s.loopWG.Wait()
	return nil
}

func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.drain.CompareAndSwap(0, time.Now().UnixNano()) {
		return
	}
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.io.hurry()
	}
	s.loop.post(nil)
}

func (s *Server) cutOff() {
	s.giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.io.cut()
	}
}

// charge notes that connections hold n bytes more. Above the limit the connection that has been at it longest goes.
func (s *Server) charge(n int) {
	if s.memory.Add(int64(n)) <= int64(s.site.Limits.Memory) || n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var worst *conn
	for c := range s.conns {
		if since := c.stuck.Load(); since != 0 && (worst == nil || since < worst.stuck.Load()) {
			worst = c
		}
	}
	if worst != nil {
		s.count.refused.Add(1)
		worst.stuck.Store(0) // only once
		worst.io.cut()
	}
}

// security reports what no honest client does. The log takes one a second.
func (s *Server) security(kind string, c *conn) {
	if s.hooks.Security != nil {
		s.hooks.Security(kind)
	}
	now := time.Now().UnixNano()
	if last := s.lastAlarm.Load(); now-last > int64(time.Second) && s.lastAlarm.CompareAndSwap(last, now) {
		s.log.Warn("security", "kind", kind, "site", s.site.Name, "from", c.remote.String())
	}
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	n := &s.count
	return Stats{
		Open: n.open.Load(), Accepted: n.accepted.Load(), Refused: n.refused.Load(), Commands: n.commands.Load(),
		Protocol: n.protocol.Load(), Held: n.held.Load(), Dropped: n.dropped.Load(), Logins: n.logins.Load(),
		Panics: n.panics.Load(), SetLost: n.setLost.Load(), Memory: s.memory.Load(),
		LocksHeld: s.locks.held.Load(), LocksWaiting: s.locks.waiting.Load(), LocksExpired: n.expired.Load(),
	}
}
