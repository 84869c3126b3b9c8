package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

const watchAfter = 20 * time.Millisecond

// stream is a connection with a goroutine of its own, which reads what has arrived, runs all commands that are complete,
// one after the other, and sends the replies together.
type stream struct {
	conn
	nc    net.Conn
	armed time.Time // the read deadline that is set

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

func newStream(s *Server, nc net.Conn, id int64) *stream {
	c := &stream{nc: nc}
	c.init(s, c, id, nc.LocalAddr(), nc.RemoteAddr(), time.Now)
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

func (c *stream) serve() {
	defer c.end()
	if t, ok := c.nc.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(c.s.ctx, c.s.site.Limits.Command)
		err := t.HandshakeContext(ctx)
		if cancel(); err != nil {
			return
		}
	}
	for {
		need := 0
		if c.memcached != nil {
			need = c.memcachedRequests()
		} else {
			need = c.commands()
		}
		if !c.flush() || c.closing {
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
func (c *stream) end() {
	if p := recover(); p != nil {
		c.s.panicked(p)
	}
	c.s.endLocks(&c.conn)
	c.mu.Lock()
	for c.writing { // a client that does not read ends this, see writeQueue
		c.drained.Wait()
	}
	c.mu.Unlock()
	if c.refused {
		c.linger()
	}
	c.nc.Close()
	c.endMulti()
	c.charge(-c.room)
}

// cut closes the socket. A TLS connection would first try to say so.
func (c *stream) cut() {
	if t, ok := c.nc.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	c.nc.Close()
}

func (c *stream) hurry() { c.nc.SetReadDeadline(time.Unix(1, 0)) } // fill then sets its own

const lingerTime, lingerReads = 250 * time.Millisecond, 64

// linger reads a little of what a refused client still sends: closing while bytes lie unread would reset the
// connection and take the error that was just sent with it.
func (c *stream) linger() {
	if w, ok := c.nc.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	for range lingerReads {
		if _, err := c.nc.Read(c.in[:cap(c.in)]); err != nil {
			return
		}
	}
}

// commands runs every command that is complete. need is what the buffer must hold before the next one can be.
func (c *stream) commands() (need int) {
	for {
		args, need, err := c.next()
		switch err {
		case nil:
			if c.understand(args); !c.answer(args) {
				res := c.exec()
				c.finish(&res)
			}
		case resp.ErrIncomplete:
			return need
		default:
			c.refuse(err)
		}
		if c.closing || len(c.out) >= flushAt && !c.flush() {
			return 0
		}
	}
}

// Reading

// fill waits for bytes. It fails when the client is gone, takes too long or has to go.
func (c *stream) fill() error {
	c.kept = c.pos
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

// arm sets the read deadline. One that is too early does no harm: fill looks again, which is cheaper than to move it
// for every command.
func (c *stream) arm() {
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

func (c *stream) watch(cancel func()) (stop func() (left bool)) {
	c.kept = c.pos
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
func (c *stream) flush() bool {
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
func (c *stream) writeQueue() {
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

func (c *stream) write(b []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(c.s.site.Limits.Command))
	_, err := c.nc.Write(b)
	return err
}
