package memcached

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sessile/sessile/internal/memcache"
	"github.com/sessile/sessile/store"
)

var (
	errTimeout = errors.New("no answer within the timeout")
	errClosed  = errors.New("the store is closed")
	errForeign = errors.New("the server does not answer like memcached")
)

// An answerError is the server's refusal: it did nothing.
type answerError struct{ line string }

func (e *answerError) Error() string { return "the server answers " + strconv.Quote(e.line) }

// An item is what a server has under a name.
type item struct {
	data  []byte
	flags uint32
	cas   string // as the server writes it, "" where it was not asked for
	left  int64  // seconds to its end; forever, or unknown
	large bool   // it is larger than a session may be, so data was passed over
}

const (
	forever = -1
	unknown = -2
)

// A node is one server, with the connections to it.
type node struct {
	network, addr string
	opt           *Options
	slots         chan struct{} // one for each connection in use

	mu     sync.Mutex // guards idle, closed
	idle   []*conn    // the last one is the freshest
	closed bool
}

func newNode(opt *Options, s *Server) *node {
	n := &node{network: "unix", addr: s.Host, opt: opt, slots: make(chan struct{}, opt.MaxConns)}
	if s.Port != 0 {
		n.network, n.addr = "tcp", net.JoinHostPort(s.Host, strconv.Itoa(s.Port))
	}
	return n
}

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.drop()
}

// drop closes the connections that are not in use. Callers hold mu.
func (n *node) drop() {
	for _, c := range n.idle {
		c.Close()
	}
	n.idle = nil
}

// A conn is a connection, used by one operation at a time.
type conn struct {
	net.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	heard  bool // the server has said something since the operation began
	writes bool // a command that changes something was sent, and not answered yet
	owed   int  // answers that have not been read
	spent  bool // it is not to be used any more
}

func (n *node) dial(ctx context.Context) (*conn, error) {
	d := net.Dialer{Timeout: n.opt.DialTimeout}
	c, err := d.DialContext(ctx, n.network, n.addr)
	if err != nil {
		class := store.ErrUnavailable
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
			class = store.ErrDown
		}
		return nil, fmt.Errorf("store/memcached: %w: %w", class, err)
	}
	return &conn{Conn: c, r: bufio.NewReaderSize(c, 16<<10), w: bufio.NewWriterSize(c, 16<<10)}, nil
}

// take returns a connection that nobody uses, or nil.
func (n *node) take() (*conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, errClosed)
	}
	if len(n.idle) == 0 {
		return nil, nil
	}
	c := n.idle[len(n.idle)-1]
	n.idle = n.idle[:len(n.idle)-1]
	return c, nil
}

// give puts a connection back. One on which anything is still to come is closed: the next one would take it for its own.
func (n *node) give(c *conn, err error) {
	var refused *answerError
	healthy := (err == nil || errors.As(err, &refused) && strings.HasPrefix(refused.line, "SERVER_ERROR")) && c.owed == 0 && c.r.Buffered() == 0 && !c.spent
	n.mu.Lock()
	defer n.mu.Unlock()
	if healthy && !n.closed {
		n.idle = append(n.idle, c)
		return
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // what the server has not taken yet is not to come later
	}
	c.Close()
	if err != nil && !healthy && !errors.As(err, &refused) {
		n.drop() // the others are as old
	}
}

// do runs f with a connection, and f's failure is one of the store's: nothing has happened where no command was on its way that
// changes something. A connection that had been idle may be one that the server has closed meanwhile: then f runs again, if it has
// changed nothing, or is such that it may run twice.
func (n *node) do(ctx context.Context, twice bool, f func(c *conn) error) error {
	if err := store.Gone(ctx); err != nil {
		return err
	}
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-ctx.Done():
		return store.Gone(ctx)
	}
	for {
		c, err := n.take()
		if err != nil {
			return err
		}
		idle := c != nil
		if c == nil {
			if c, err = n.dial(ctx); err != nil {
				return err
			}
		}
		c.heard, c.writes, c.owed = false, false, 0
		err = c.run(ctx, f)
		n.give(c, err)
		var refused *answerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused):
			return refusal(refused)
		case store.Gone(ctx) != nil:
			err = context.Cause(ctx)
		case idle && !c.heard && (!c.writes || twice):
			continue
		}
		if c.writes {
			return fmt.Errorf("store/memcached: %w: %w", store.ErrUnknown, err)
		}
		return fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, err)
	}
}

// refusal is what an answer means that is an error.
func refusal(e *answerError) error {
	if e.line == "SERVER_ERROR object too large for cache" {
		return fmt.Errorf("store/memcached: %w: it is too large for this server (-I)", store.ErrInvalid)
	}
	return fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, e)
}

// run runs f as long as ctx goes on.
func (c *conn) run(ctx context.Context, f func(c *conn) error) error {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := f(c)
	c.spent = !stop() // its deadline may be set only now
	return err
}

// ask queues a command that has an answer.
func (c *conn) ask(parts ...string) {
	for i, p := range parts {
		if i > 0 {
			c.w.WriteByte(' ')
		}
		c.w.WriteString(p)
	}
	c.w.WriteString("\r\n")
	c.owed++
}

// line reads one, without its end.
func (c *conn) line() (string, error) {
	if c.w.Buffered() > 0 {
		if err := c.w.Flush(); err != nil {
			return "", err
		}
	}
	b, err := c.r.ReadSlice('\n')
	c.heard = c.heard || len(b) > 0
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errForeign
		}
		return "", err
	}
	line := string(bytes.TrimSuffix(b[:len(b)-1], []byte{'\r'}))
	if line == "ERROR" || strings.HasPrefix(line, "ERROR ") || strings.HasPrefix(line, "CLIENT_ERROR") || strings.HasPrefix(line, "SERVER_ERROR") {
		c.owed--
		c.writes = false
		return "", &answerError{line}
	}
	return line, nil
}

// answer reads an answer of one line.
func (c *conn) answer() (string, error) {
	line, err := c.line()
	if err == nil {
		c.owed--
		c.writes = false
	}
	return line, err
}

// values reads the answer to gets of names; what is not there is nil. A value over limit bytes is passed over.
func (c *conn) values(limit int, names ...string) ([]*item, error) {
	all := make([]*item, len(names))
	for next := 0; ; next++ {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		if line == "END" {
			c.owed--
			return all, nil
		}
		f := strings.Split(line, " ")
		if len(f) != 5 || f[0] != "VALUE" {
			return nil, errForeign
		}
		for next < len(names) && names[next] != f[1] {
			next++
		}
		flags, err1 := strconv.ParseUint(f[2], 10, 32)
		size, err2 := strconv.ParseUint(f[3], 10, 31)
		if next == len(names) || err1 != nil || err2 != nil {
			return nil, errForeign
		}
		it := &item{flags: uint32(flags), cas: f[4], left: unknown, large: size > uint64(limit)}
		if it.large {
			_, err = io.CopyN(io.Discard, c.r, int64(size))
		} else {
			it.data = make([]byte, size)
			_, err = io.ReadFull(c.r, it.data)
		}
		var end [2]byte
		if err == nil {
			_, err = io.ReadFull(c.r, end[:])
		}
		if err == nil && string(end[:]) != "\r\n" {
			err = errForeign
		}
		if err != nil {
			return nil, err
		}
		all[next] = it
	}
}

// age reads the answer to mg with t and c: how long it has got, if that is still it.
func (c *conn) age(it *item) error {
	line, err := c.answer()
	if err != nil {
		return err
	}
	f := strings.Split(line, " ")
	if f[0] != "HD" && f[0] != "EN" && f[0] != "OK" { // OK is what HD was up to 1.6.9
		return errForeign
	}
	if it == nil || f[0] == "EN" {
		return nil
	}
	left, cas := int64(unknown), ""
	for _, flag := range f[1:] {
		if t, ok := strings.CutPrefix(flag, "t"); ok {
			if left, err = strconv.ParseInt(t, 10, 32); err != nil || left < forever {
				return errForeign
			}
		} else if c, ok := strings.CutPrefix(flag, "c"); ok {
			cas = c
		}
	}
	if cas == it.cas {
		it.left = left
	}
	return nil
}

// get returns what is under name, nil for nothing; with deadline its end, too. With w a server is refused that has not the mark
// that is wanted. It is asked for that behind the session: what a server has lost by then is not taken for absent.
func (n *node) get(ctx context.Context, s *Store, name string, w *want, deadline bool) (it *item, err error) {
	var mark []*item
	err = n.do(ctx, true, func(c *conn) error {
		c.ask("gets", name)
		if deadline {
			c.ask("mg", name, "t", "c")
		}
		if w != nil {
			c.ask("gets", s.markName())
		}
		found, err := c.values(n.opt.MaxValue, name)
		if err != nil {
			return err
		}
		if it = found[0]; deadline {
			err = c.age(it)
		}
		if err == nil && w != nil {
			mark, err = c.values(maxMark, s.markName())
		}
		return err
	})
	if err == nil && w != nil {
		err = s.knows(mark[0], w)
	}
	if err != nil {
		return nil, err
	}
	return it, nil
}

// getAll is get of many names, with their ends.
func (n *node) getAll(ctx context.Context, limit int, names []string) (all []*item, err error) {
	err = n.do(ctx, true, func(c *conn) error {
		c.ask(append([]string{"gets"}, names...)...)
		for _, name := range names {
			c.ask("mg", name, "t", "c")
		}
		if all, err = c.values(limit, names...); err != nil {
			return err
		}
		for i := range names {
			if err := c.age(all[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

// store sends one of the commands that write a value.
func (c *conn) store(command, name string, it *item, life int64, cas ...string) (line string, err error) {
	c.writes = true
	c.ask(append([]string{command, name, strconv.FormatUint(uint64(it.flags), 10), strconv.FormatInt(life, 10), strconv.Itoa(len(it.data))}, cas...)...)
	c.w.Write(it.data)
	c.w.WriteString("\r\n")
	return c.answer()
}

func (n *node) store(ctx context.Context, command, name string, it *item, life int64, cas ...string) (line string, err error) {
	err = n.do(ctx, false, func(c *conn) error {
		line, err = c.store(command, name, it, life, cas...)
		return err
	})
	return line, err
}

// swap replaces exactly was (nil: nothing) by next (nil: nothing). It answers false where there is something else by now.
//
// There is no delete by cas in the plain protocol: what is replaced by an item that has ended is gone all the same.
func (n *node) swap(ctx context.Context, name string, was, next *item, life int64) (bool, error) {
	var line string
	var err error
	switch {
	case was == nil:
		line, err = n.store(ctx, "add", name, next, life)
	case next == nil:
		line, err = n.store(ctx, "cas", name, &item{}, -1, was.cas)
	default:
		line, err = n.store(ctx, "cas", name, next, life, was.cas)
	}
	switch {
	case err != nil:
		return false, err
	case line == "STORED":
		return true, nil
	case line == "NOT_STORED", line == "EXISTS", line == "NOT_FOUND":
		return false, nil
	}
	return false, fmt.Errorf("store/memcached: %w: %w", store.ErrUnknown, errForeign)
}

// set replaces whatever is there.
func (n *node) set(ctx context.Context, name string, next *item, life int64) error {
	line, err := n.store(ctx, "set", name, next, life)
	if err == nil && line != "STORED" {
		err = fmt.Errorf("store/memcached: %w: %w", store.ErrUnknown, errForeign)
	}
	return err
}

// simple sends a command that may run twice and changes an item that is there.
func (n *node) simple(ctx context.Context, yes string, parts ...string) (there bool, err error) {
	err = n.do(ctx, true, func(c *conn) error {
		c.writes = true
		c.ask(parts...)
		line, err := c.answer()
		if there = line == yes; err == nil && !there && line != "NOT_FOUND" {
			c.writes = true
			return errForeign
		}
		return err
	})
	return there, err
}

// remove removes what is there.
func (n *node) remove(ctx context.Context, name string) error {
	_, err := n.simple(ctx, "DELETED", "delete", name)
	return err
}

// touch gives what is there another end.
func (n *node) touch(ctx context.Context, name string, life int64) (there bool, err error) {
	return n.simple(ctx, "TOUCHED", "touch", name, strconv.FormatInt(life, 10))
}

// stats returns the answer to stats, or to stats of something.
func (c *conn) stats(of ...string) (map[string]string, error) {
	c.ask(append([]string{"stats"}, of...)...)
	for all := map[string]string{}; ; {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		if line == "END" {
			c.owed--
			return all, nil
		}
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "STAT "), " ")
		if all[name] = value; len(all) > 10000 {
			return nil, errForeign
		}
	}
}

func (n *node) stats(ctx context.Context, of ...string) (all map[string]string, err error) {
	err = n.do(ctx, true, func(c *conn) error {
		all, err = c.stats(of...)
		return err
	})
	return all, err
}

// inflate returns what zlib has made of a body.
func inflate(b []byte, limit int) ([]byte, error) {
	data, err := memcache.Inflate(b, limit)
	switch {
	case errors.Is(err, memcache.ErrTooLarge):
		return nil, fmt.Errorf("store/memcached: %w", &store.RefusedError{Reason: "too large"})
	case err != nil:
		return nil, fmt.Errorf("store/memcached: %w", &store.RefusedError{Reason: "not the zlib that its flags say"})
	}
	return data, nil
}
