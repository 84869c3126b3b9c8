package gateway

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

const (
	smallBuffer = 4 << 10  // what a connection reads into while its commands are small
	freeBuffer  = 16 << 10 // what a connection may hold without being charged for it
	flushAt     = 64 << 10 // replies are sent at the latest when there are as many bytes of them
	maxEmpty    = 1 << 10  // empty requests in a row
)

const (
	textNoAuth   = "NOAUTH Authentication required."
	textMaxConns = "ERR max number of clients reached"
)

// conn is one client: what it has sent, who it is, and what it is to be answered. How its bytes come and go is known to
// its transport: a goroutine of its own (stream) or a loop that it shares with others (looped). Either runs one command
// at a time, and whoever runs it owns everything here but the atomics.
type conn struct {
	s       *Server
	io      transport
	id      int64
	local   net.Addr
	remote  net.Addr
	clock   func() time.Time
	opened  time.Time
	strange time.Time // since when nobody has been logged in

	in   []byte // what has arrived
	kept int    // what lies before is done with
	pos  int    // what lies before was parsed
	args [][]byte
	req  request
	out  []byte // replies not yet sent

	proto         int
	authenticated bool
	wrongDatabase bool
	name          string
	closing       bool // after the replies so far
	refused       bool // closing, and the client may still be sending

	multi *transaction // nil: none

	memcached *memcached // nil: it speaks Redis

	// hold and lockWait are the site's, or less where the client has less patience.
	hold, lockWait time.Duration

	channels, patterns []string // subscriptions

	empty  int       // empty requests since the last command
	active time.Time // the end of the last commands
	began  time.Time // when the command that is still incomplete began; zero if there is none

	reads reads
	bound []string     // ids whose locks end with the connection
	holds atomic.Int32 // how many locks it has taken that are neither released nor over

	charged atomic.Int64 // bytes beyond what is free
	stuck   atomic.Int64 // since when (in ns) the connection has been charged; 0: it is not
	room    int          // what in is charged with
}

// transport is what a connection needs of those who move its bytes.
type transport interface {
	// flush sends the replies so far. It reports false where the client is gone.
	flush() bool
	// watch calls cancel if the client goes away while one of its commands waits. stop ends the watch and says whether
	// it did. What the client sends meanwhile is kept. No argument of the waiting command may be used any more.
	watch(cancel func()) (stop func() (left bool))
	// cut ends the connection from outside, hurry makes it look whether it has to go. Any goroutine may call them.
	cut()
	hurry()
}

func (c *conn) init(s *Server, io transport, id int64, local, remote net.Addr, clock func() time.Time) {
	now := time.Now()
	c.s, c.io, c.id, c.local, c.remote, c.clock = s, io, id, local, remote, clock
	c.opened, c.strange, c.active = now, now, now
	c.proto, c.authenticated = 2, len(s.users) == 0
	c.hold, c.lockWait = s.site.Hold, s.site.LockWait
	c.in = make([]byte, 0, smallBuffer)
}

var errEmpty = errors.New("too many empty requests")

// next parses the next request. Where it is not complete, err is resp.ErrIncomplete and need is what in[pos:] must hold
// before anything new can be said; any other error is for refuse.
func (c *conn) next() (args [][]byte, need int, err error) {
	for {
		args, n, need, err := resp.ParseRequest(c.in[c.pos:], c.s.limits(c.authenticated), c.args[:0])
		c.args = args
		if err != nil {
			if err != resp.ErrIncomplete {
				return nil, 0, err
			}
			if c.pos < len(c.in) && c.began.IsZero() {
				c.began = c.clock()
			}
			return nil, need, err
		}
		c.pos += n
		c.began = time.Time{}
		if len(args) > 0 {
			c.empty = 0
			return args, 0, nil
		}
		if c.empty++; c.empty > maxEmpty {
			return nil, 0, errEmpty
		}
	}
}

// refuse says why the connection has to end, where there is something to be said.
func (c *conn) refuse(err error) {
	c.closing = true
	c.s.count.protocol.Add(1)
	bad, ok := errors.AsType[*resp.ProtocolError](err)
	switch {
	case !ok:
	case bad.Security:
		c.foreign(nil)
	default:
		c.out = resp.AppendError(c.out, bad.Reply)
		c.refused = true
	}
}

// understand makes c.req of args. It neither asks nor changes anything.
func (c *conn) understand(args [][]byte) {
	r := &c.req
	*r = request{site: &c.s.site, keys: r.keys[:0]}
	if c.s.hooks.Done != nil {
		r.began = c.clock()
	}
	r.cmd, r.fail = c.s.lookup(args)
	switch {
	case r.fail != "" && r.cmd.op == opExec:
		r.fail = textBecause + strings.TrimPrefix(r.fail, "ERR ")
	case r.fail != "":
	case !c.authenticated && !r.cmd.free:
		r.fail = textNoAuth
	case c.listening() && !r.cmd.always:
		r.fail = "ERR Can't execute '" + strings.ToLower(r.cmd.name) + textListening
	case r.cmd.refusal != "":
		r.fail = r.cmd.refused()
	default:
		c.inMulti(r)
	}
	switch {
	case r.fail != "", r.cmd.local != nil:
	case c.wrongDatabase:
		r.fail = "ERR sessile: this site is database " + c.s.database + ", and this connection selected another"
	default:
		if r.cmd.timed() {
			r.now = c.clock()
		}
		r.cmd.parse(r, args)
	}
}

// answer answers the request where that takes no store, and reports false where it does.
func (c *conn) answer(args [][]byte) bool {
	r, outcome := &c.req, store.OK
	switch {
	case r.fail != "":
		c.out = resp.AppendError(c.out, r.fail)
		outcome = store.OutcomeInvalid
		switch {
		case r.cmd.op == opExec:
			c.endMulti()
		case c.multi != nil && r.cmd.name != "MULTI":
			c.multi.bad = true
		}
	case r.cmd.local != nil:
		r.cmd.local(c, args)
	default:
		return false
	}
	c.done(r.cmd, outcome, r.began)
	return true
}

// exec runs the request, which is about sessions.
func (c *conn) exec() result {
	if c.req.cmd.op == opExec {
		return c.execMulti()
	}
	return c.run(&c.req)
}

func (c *conn) run(r *request) result {
	for i := range r.keys {
		if r.keys[i].err == errReserved {
			c.s.security(SecurityKey, c)
		}
	}
	return c.s.exec(c, r)
}

// finish answers the request with what came of it.
func (c *conn) finish(res *result) {
	r := &c.req
	c.out = r.render(c.out, c.proto, res)
	c.done(r.cmd, res.outcome(r.cmd), r.began)
}

func (c *conn) done(cmd *command, outcome store.Outcome, began time.Time) {
	c.s.count.commands.Add(1)
	if f := c.s.hooks.Done; f != nil {
		f(Event{cmd.name, outcome, c.clock().Sub(began)})
	}
}

// makeRoom makes room for a read. A buffer grows with what has arrived, never with what was announced.
func (c *conn) makeRoom() {
	if c.kept > 0 {
		c.in = c.in[:copy(c.in, c.in[c.kept:])]
		c.pos, c.kept = c.pos-c.kept, 0
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
	case l.Idle < 0 || c.subscribed() || c.memcached != nil:
		// Who waits for announcements has nothing to say. memcached closes no idle connections, and libmemcached takes the loss of one
		// for a failure, in strict mode of a session.
		due = due.Add(100 * 365 * 24 * time.Hour)
	default:
		due = due.Add(l.Idle)
	}
	// Who holds a lock is in the middle of a page, and may lose it with this process: a flock does not outlive it.
	if start := c.s.drain.Load(); start != 0 && c.holds.Load() == 0 {
		last := min(c.active.UnixNano(), start)
		if end := time.Unix(0, last).Add(max(0, c.s.site.Linger)); end.Before(due) {
			return end
		}
	}
	return due
}

// panicked notes a panic, which is a bug: it costs a connection, and nobody else anything.
func (s *Server) panicked(p any) {
	what := fmt.Sprintf("%T", p) // its text might name a session
	if e, ok := p.(runtime.Error); ok {
		what = e.Error()
	}
	s.count.panics.Add(1)
	s.log.Error("panic, connection closed", "panic", what, "stack", string(debug.Stack()))
}
