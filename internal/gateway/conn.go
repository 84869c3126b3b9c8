package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

const (
	smallBuffer = 4 << 10  // what a connection reads into while its commands are small
	freeBuffer  = 16 << 10 // what a connection may hold without being charged for it
	flushAt     = 64 << 10 // replies are sent at the latest when there are as many bytes of them
	maxEmpty    = 1 << 10  // empty requests in a row
	watchAfter  = 20 * time.Millisecond
)

const (
	textNoAuth   = "NOAUTH Authentication required."
	textMaxConns = "ERR max number of clients reached"
)

// conn is one client. Everything but the fields below `mu` and the atomics belongs to its own goroutine, which reads
// what has arrived, runs all commands that are complete, one after the other, and sends the replies together.
type conn struct {
	s       *Server
	nc      net.Conn
	id      int64
	opened  time.Time
	strange time.Time // since when nobody has been logged in

	in   []byte // what has arrived; what lies before pos is done with
	pos  int
	args [][]byte
	req  request
	out  []byte // replies not yet sent

	proto         int
	authenticated bool
	wrongDatabase bool
	name          string
	closing       bool // after the replies so far
	refused       bool // closing, and the client may still be sending

	empty  int       // empty requests since the last command
	active time.Time // the end of the last commands
	began  time.Time // when the command that is still incomplete began; zero if there is none
	armed  time.Time // the read deadline that is set

	reads reads
	bound []string // ids whose locks end with the connection

	charged atomic.Int64 // bytes beyond what is free
	stuck   atomic.Int64 // since when (in ns) the connection has been charged; 0: it is not
	room    int          // what in is charged with

	raw     syscall.RawConn // nil where a write cannot be tried without waiting (TLS)
	attempt func(fd uintptr) bool
	tried   int // bytes that attempt wrote

	mu      sync.Mutex // guards what follows
	drained *sync.Cond
	queue   []byte // replies that wait until writeQueue takes them
	queued  int    // bytes that wait or are being written
	writing bool   // writeQueue runs
	broken  bool   // nothing can be written any more
}

func newConn(s *Server, nc net.Conn, id int64) *conn {
	now := time.Now()
	c := &conn{s: s, nc: nc, id: id, opened: now, strange: now, active: now, proto: 2, authenticated: len(s.users) == 0}
	c.in = make([]byte, 0, smallBuffer)
	c.drained = sync.NewCond(&c.mu)
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			c.attempt = func(fd uintptr) bool {
				c.tried, _ = syscall.Write(int(fd), c.out)
				return true
			}
		}
	}
	return c
}

func (c *conn) serve() {
	defer c.end()
	if t, ok := c.nc.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(c.s.ctx, c.s.site.Limits.Command)
		err := t.HandshakeContext(ctx)
		if cancel(); err != nil {
			return
		}
	}
	for {
		need, err := c.commands()
		if !c.flush() || err != nil || c.closing {
			return
		}
		for c.active = time.Now(); ; {
			if c.fill() != nil {
				return
			}
			if len(c.in)-c.pos >= need {
				break
			}
		}
	}
}

// end closes the connection and cleans up behind it.
func (c *conn) end() {
	if p := recover(); p != nil {
		what := fmt.Sprintf("%T", p) // its text might name a session
		if e, ok := p.(runtime.Error); ok {
			what = e.Error()
		}
		c.s.count.panics.Add(1)
		c.s.log.Error("panic, connection closed", "panic", what, "stack", string(debug.Stack()))
	}
	c.s.endLocks(c)
	c.mu.Lock()
	for c.writing { // a client that does not read ends this, see writeQueue
		c.drained.Wait()
	}
	c.mu.Unlock()
	if c.refused {
		c.linger()
	}
	c.nc.Close()
	c.charge(-c.room)
}

// cut ends the connection from outside. A TLS connection would first try to say so.
func (c *conn) cut() {
	if t, ok := c.nc.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	c.nc.Close()
}

// linger reads a little of what a refused client still sends: closing while bytes lie unread would reset the
// connection and take the error that was just sent with it.
func (c *conn) linger() {
	if w, ok := c.nc.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
	for range 64 {
		if _, err := c.nc.Read(c.in[:cap(c.in)]); err != nil {
			return
		}
	}
}

// commands runs every command that is complete. need is what the buffer must hold before the next one can be.
func (c *conn) commands() (need int, err error) {
	for fresh := true; ; fresh = false {
		args, n, need, err := resp.ParseRequest(c.in[c.pos:], c.s.limits(c.authenticated), c.args[:0])
		c.args = args
		switch {
		case errors.Is(err, resp.ErrIncomplete):
			if c.pos == len(c.in) {
				c.began = time.Time{}
			} else if !fresh || c.began.IsZero() {
				c.began = time.Now()
			}
			return need, nil
		case err != nil:
			c.protocolError(err)
			return 0, err
		}
		c.pos += n
		if len(args) == 0 {
			if c.empty++; c.empty > maxEmpty {
				c.s.count.protocol.Add(1)
				return 0, resp.ErrIncomplete
			}
			continue
		}
		c.empty = 0
		if c.run(args); c.closing || len(c.out) >= flushAt && !c.flush() {
			return 0, nil
		}
	}
}

func (c *conn) protocolError(err error) {
	bad, ok := errors.AsType[*resp.ProtocolError](err)
	if !ok {
		return
	}
	c.s.count.protocol.Add(1)
	if bad.Security {
		c.foreign(nil)
		return
	}
	c.out = resp.AppendError(c.out, bad.Reply)
	c.refused = true
}

// run runs one command and appends its reply.
func (c *conn) run(args [][]byte) {
	s := c.s
	s.count.commands.Add(1)
	var began time.Time
	if s.hooks.Done != nil {
		began = time.Now()
	}
	outcome := store.OutcomeInvalid
	cmd, fail := lookup(args)
	switch {
	case fail != "":
	case !c.authenticated && !cmd.free:
		fail = textNoAuth
	case cmd.refusal != "":
		fail = cmd.refused()
	case cmd.local != nil:
		cmd.local(c, args)
		outcome = store.OK
	case c.wrongDatabase:
		fail = "ERR sessile: this site is database " + s.database + ", and this connection selected another"
	default:
		outcome, fail = c.request(cmd, args)
	}
	if fail != "" {
		c.out = resp.AppendError(c.out, fail)
	}
	if s.hooks.Done != nil {
		s.hooks.Done(Event{cmd.name, outcome, time.Since(began)})
	}
}

// request runs a command that is about sessions.
func (c *conn) request(cmd *command, args [][]byte) (outcome store.Outcome, fail string) {
	r := &c.req
	*r = request{site: &c.s.site, cmd: cmd, keys: r.keys[:0]}
	if cmd.timed() {
		r.now = time.Now()
	}
	if cmd.parse(r, args); r.fail != "" {
		return store.OutcomeInvalid, r.fail
	}
	for i := range r.keys {
		if r.keys[i].err == errReserved {
			c.s.security(SecurityKey, c)
		}
	}
	res := c.s.exec(c, r)
	c.out = r.render(c.out, c.proto, &res)
	if cmd.op == opLoad && !res.found && res.err == nil {
		return store.OutcomeAbsent, ""
	}
	return outcomeOf(res.err), ""
}

// Reading

// fill waits for bytes. It fails when the client is gone, takes too long or has to go.
func (c *conn) fill() error {
	c.makeRoom()
	for {
		c.arm()
		n, err := c.nc.Read(c.in[len(c.in):cap(c.in)])
		if n > 0 {
			c.in = c.in[:len(c.in)+n]
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if c.armed = (time.Time{}); time.Now().Before(c.due()) {
				continue
			}
		}
		if err != nil {
			return err
		}
	}
}

// makeRoom makes room for a read. A buffer grows with what has arrived, never with what was announced.
func (c *conn) makeRoom() {
	if c.pos > 0 {
		c.in = c.in[:copy(c.in, c.in[c.pos:])]
		c.pos = 0
	}
	switch {
	case len(c.in) == 0 && cap(c.in) > freeBuffer:
		c.in = make([]byte, 0, smallBuffer)
	case len(c.in) == cap(c.in):
		c.in = append(make([]byte, 0, 2*cap(c.in)), c.in...)
	default:
		return
	}
	room := max(0, cap(c.in)-freeBuffer)
	c.charge(room - c.room)
	c.room = room
}

// charge notes that the connection holds n bytes more.
func (c *conn) charge(n int) {
	if n == 0 {
		return
	}
	switch c.charged.Add(int64(n)) {
	case int64(n):
		c.stuck.Store(time.Now().UnixNano())
	case 0:
		c.stuck.Store(0)
	}
	c.s.charge(n)
}

// due says when the connection is closed if nothing arrives.
func (c *conn) due() time.Time {
	l, due := &c.s.site.Limits, c.active
	switch {
	case !c.authenticated:
		due = c.strange.Add(l.Command)
	case !c.began.IsZero():
		due = c.began.Add(l.Command)
	case l.Idle < 0:
		due = due.Add(100 * 365 * 24 * time.Hour)
	default:
		due = due.Add(l.Idle)
	}
	if start := c.s.drain.Load(); start != 0 {
		last := min(c.active.UnixNano(), start)
		if end := time.Unix(0, last).Add(max(0, c.s.site.Linger)); end.Before(due) {
			return end
		}
	}
	return due
}

// arm sets the read deadline. One that is too early does no harm: fill looks again, which is cheaper than to move it
// for every command.
func (c *conn) arm() {
	for {
		start := c.s.drain.Load()
		if due := c.due(); c.armed.IsZero() || due.Before(c.armed) {
			c.nc.SetReadDeadline(due)
			c.armed = due
		}
		if c.s.drain.Load() == start { // or Shutdown's own deadline may just have been overwritten
			return
		}
	}
}

// watch calls cancel if the client goes away while one of its commands waits. stop ends the watch and says whether it
// did. What the client sends meanwhile is kept. No argument of the waiting command may be used any more.
func (c *conn) watch(cancel func()) (stop func() (left bool)) {
	c.makeRoom()
	c.nc.SetReadDeadline(time.Time{})
	c.armed = time.Time{}
	left, done := false, make(chan struct{})
	t := time.AfterFunc(watchAfter, func() {
		defer close(done)
		for len(c.in) < cap(c.in) {
			n, err := c.nc.Read(c.in[len(c.in):cap(c.in)])
			c.in = c.in[:len(c.in)+n]
			if err != nil {
				if left = !errors.Is(err, os.ErrDeadlineExceeded); left {
					cancel()
				}
				return
			}
		}
	})
	return func() bool {
		if !t.Stop() {
			c.nc.SetReadDeadline(time.Unix(1, 0))
			<-done
		}
		return left
	}
}

// Writing

// flush sends the replies so far. Where the client does not take them as fast as it asks, they wait in a queue and the
// client is served on; from Limits.Output on, it has to read first.
func (c *conn) flush() bool {
	if len(c.out) == 0 {
		return true
	}
	defer func() {
		if c.out = c.out[:0]; cap(c.out) > freeBuffer {
			c.out = nil
		}
	}()
	if c.raw == nil {
		return c.write(c.out) == nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return false
	}
	if !c.writing {
		c.tried = 0
		if err := c.raw.Write(c.attempt); err != nil {
			c.broken = true
			return false
		}
		if c.tried == len(c.out) {
			return true
		}
		c.out = c.out[max(0, c.tried):]
		c.writing = true
		go c.writeQueue()
	}
	c.queue = append(c.queue, c.out...)
	c.queued += len(c.out)
	c.charge(len(c.out))
	if !c.authenticated && c.queued > flushAt {
		// Nobody has to let strangers pile up replies, refusals least of all (CVE-2025-21605).
		c.broken = true
		c.nc.Close()
	}
	for c.queued > c.s.site.Limits.Output && !c.broken {
		c.drained.Wait()
	}
	return !c.broken
}

// writeQueue writes what is queued until nothing is. A client that takes nothing for as long as a command may take
// is given up.
func (c *conn) writeQueue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 && !c.broken {
		b := c.queue
		c.queue = nil
		for len(b) > 0 && !c.broken {
			piece := b[:min(len(b), flushAt)]
			c.mu.Unlock()
			err := c.write(piece)
			c.mu.Lock()
			b = b[len(piece):]
			c.queued -= len(piece)
			c.charge(-len(piece))
			if err != nil {
				c.broken = true
				c.nc.Close()
			}
			c.drained.Broadcast()
		}
	}
	c.nc.SetWriteDeadline(time.Time{}) // or the next attempt would be too late
	c.charge(-c.queued)
	c.queue, c.queued, c.writing = nil, 0, false
	c.drained.Broadcast()
}

func (c *conn) write(b []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(c.s.site.Limits.Command))
	_, err := c.nc.Write(b)
	return err
}
