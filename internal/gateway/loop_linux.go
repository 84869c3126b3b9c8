package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
)

const (
	burst    = 128 // commands of one connection in a turn, and connections, so that nobody waits for somebody's thousands
	tickTime = 100 * time.Millisecond
	hurried  = 10 * time.Millisecond // tickTime after Shutdown
	spares   = 64                    // buffers for replies that are kept for whoever needs one next

	// A goroutine that runs for 10 ms (forcePreemptNS in Go's runtime/proc.go) is watched: every 20 us a thread wakes up
	// and takes the processor away from it if it is in a system call, as this one nearly always is. Whoever yields
	// before is left alone, which saves an eighth to a fifth of the CPU of a command.
	yieldAfter = 5 * time.Millisecond
)

// loop serves many connections in one goroutine: a turn takes what has come from all of them and from the store, sends
// the store in one write what they ask for, and each of them in one write what it is answered. Clients that send one
// command at a time are served with fewer packets and wake-ups than they would cost the store itself. Of a store with
// shards it has a connection to each, and each command goes where its key lies.
//
// Only what is one command of Redis goes this way, see uplink_linux.go. Everything else, and everything while the store
// does not answer, is done by a goroutine just as a stream does it (hand), and meanwhile nothing else is done for that
// connection. Commands of one connection are run and answered in their order: several are under way at a time only if
// they are of one class; any other waits until none is. Shards answer when they will: an answer whose turn has not come is
// held.
//
// What a client has sent stays in its buffer until it is answered: a request that was certainly not executed is run again
// by parsing it again (resume).
//
// Sockets are watched edge-triggered: an event sets a flag, which stays until the socket is found empty, or full. The
// goroutine blocks in epoll_wait, which costs less than to be parked by Go's own poller (measured: 4.7 us of CPU for a
// command instead of 6.5), and is not locked to a thread: where processors are scarce, each time that it is preempted would
// then cost two switches of threads (13 us instead of 4).
type loop struct {
	s     *Server
	store Upstream

	epoll  int
	events [256]unix.EpollEvent
	now    time.Time // of this turn
	tick   time.Time // when the next one is due

	yielded time.Time

	listeners []*listener

	conns []*looped // by descriptor
	count int       // those that have not ended, with and without one
	ready []*looped // those that there is something to do for, in the next turn
	batch []*looped // the same in this one, from at on
	at    int
	dirty []*looped // those that there is something to send to, or to close
	dead  []int     // descriptors to be closed at the end of the turn: until then events name them
	spare [][]byte

	ups     []*uplink
	dialing sync.WaitGroup
	upstream

	current  *looped // whom a panic is put down to
	sick     bool    // there was one
	draining bool
	leaving  bool // the server gives up

	wakeFD int
	mu     sync.Mutex // guards what follows
	jobs   []func()   // for the loop to do
	woken  bool
	over   bool // nobody does them any more
}

// looped is a connection that a loop serves.
type looped struct {
	conn
	l  *loop
	fd int

	readable, eof bool // something may have come; and the end too
	hungry        bool // all that has come is done or under way
	need          int  // what in[pos:] must hold for the next request
	blocked       bool // it does not read what it is sent
	paused        bool // a goroutine runs its command
	gone, buried  bool
	lingering     time.Time // until when; zero: it does not
	lingered      int

	inReady, inDirty bool

	first, last *entry // the requests that are not answered, in their order
	listed      int    // how many they are
	flying      int    // their bytes in the buffer, from kept on
	inflight    int    // those of them that the store has to answer
	class       class  // of these
	alone       bool   // nothing may be added to them
	failed      int    // those that are to be run by hand
	held        int    // bytes of answers to those whose turn has not come
	weight      int    // what the next reply may well weigh

	sent    int       // of out
	pending int       // what out is charged with
	moved   time.Time // when the client last took something, or had nothing to take
	armed   bool      // an event will say that there is room again

	mu    sync.Mutex // guards what follows
	left  bool       // the client is gone, or will send nothing more
	leave func()     // of who wants to know
}

func newLoop(s *Server) *loop {
	up, ok := s.site.Store.(Upstream)
	if !ok || s.site.NoLoop {
		return nil
	}
	plain, maxValue, timeout := up.Raw()
	if !plain {
		return nil
	}
	l := &loop{s: s, store: up, now: time.Now(), epoll: -1, wakeFD: -1}
	l.upstream.init(up, s.site.Limits.Value, maxValue, timeout)
	if err := l.open(); err != nil {
		s.log.Error("no loop: every connection gets a goroutine", "error", err)
		l.close()
		return nil
	}
	s.loopWG.Go(l.run)
	return l
}

func (l *loop) open() (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	return l.watch(unix.EPOLL_CTL_ADD, l.wakeFD, 0)
}

// processors guards GOMAXPROCS, which each loop raises by one. It holds a processor of Go's also while it waits in
// epoll_wait, until that is noticed, up to 10 ms later, and when it is busy it gives none away: where there was only one,
// each step of what a goroutine did for a client took 10 ms.
var processors sync.Mutex

func addProcessor(n int) {
	processors.Lock()
	defer processors.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

func (l *loop) run() {
	addProcessor(1)
	defer addProcessor(-1)
	defer context.AfterFunc(l.s.ctx, func() { l.post(func() { l.leaving = true }) })()
	for !l.done() {
		l.turn()
	}
	l.closeListeners()
	l.dialing.Wait()
	l.close()
}

// done reports whether there is nothing to do any more, and has post know. A job may have come in the last turn.
func (l *loop) done() bool {
	if !l.leaving || l.count > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = len(l.jobs) == 0
	return l.over
}

func (l *loop) close() {
	for _, u := range l.ups {
		l.dead = append(l.dead, u.fd)
	}
	for _, fd := range append(l.dead, l.wakeFD, l.epoll) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (l *loop) clock() time.Time { return l.now }

// post has the loop do job, and reports false where there is no loop any more. A nil job only wakes it.
func (l *loop) post(job func()) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return false
	}
	if job != nil {
		l.jobs = append(l.jobs, job)
	}
	wake := !l.woken
	l.woken = true
	l.mu.Unlock()
	if wake {
		syscall.Write(l.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return true
}

// turn waits until there is something to do, and does it. What it has taken off a list is done with: a panic leaves the
// rest for the next turn.
func (l *loop) turn() {
	defer func() {
		if p := recover(); p != nil {
			l.s.panicked(p)
			l.sick = true
		}
	}()
	if l.sick {
		l.recover()
	}
	l.wait()
	for job := l.job(); job != nil; job = l.job() {
		job()
	}
	for _, u := range l.ups {
		l.follow(u)
		l.replies(u)
	}
	if l.at == len(l.batch) {
		l.batch, l.ready, l.at = l.ready, l.batch[:0], 0
	}
	for l.at < len(l.batch) {
		c := l.batch[l.at]
		l.at++
		c.inReady = false
		l.current = c
		l.serve(c)
	}
	for _, u := range l.ups {
		if l.flushUp(u); u.eof {
			l.replies(u)
		}
	}
	for len(l.dirty) > 0 {
		c := l.dirty[len(l.dirty)-1]
		l.dirty = l.dirty[:len(l.dirty)-1]
		c.inDirty = false
		l.current = c
		l.flush(c)
	}
	l.current = nil
	if !l.now.Before(l.tick) {
		l.look()
	}
	for _, fd := range l.dead {
		// A child that is being started has it too, and then events still name it (epoll(7), the second question).
		unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		unix.Close(fd)
	}
	l.dead = l.dead[:0]
	if l.now.Sub(l.yielded) > yieldAfter {
		l.yielded = l.now
		runtime.Gosched()
	}
}

// recover drops the connection that the last turn panicked with. It may have been in the middle of asking the store, or
// of taking an answer, so that nobody knows any more which answer is whose.
func (l *loop) recover() {
	c := l.current
	l.sick, l.current = false, nil
	if c != nil {
		l.drop(c)
	}
	for _, u := range l.ups {
		l.fail(u)
	}
	if c != nil {
		l.bury(c) // it may have been gone before
	}
}

// Events

// watch has events of fd reported, with EPOLLOUT where more is that.
func (l *loop) watch(op, fd int, more uint32) error {
	return unix.EpollCtl(l.epoll, op, fd, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET | more, Fd: int32(fd)})
}

func (l *loop) wait() {
	timeout := 0
	if len(l.ready)+len(l.batch) == l.at && len(l.dirty) == 0 {
		timeout = int(max(0, time.Until(l.tick))/time.Millisecond) + 1
	}
	n, _ := unix.EpollWait(l.epoll, l.events[:], timeout)
	l.now = time.Now()
	for _, ev := range l.events[:max(0, n)] {
		switch fd := int(ev.Fd); {
		case fd == l.wakeFD:
			var b [8]byte
			syscall.Read(fd, b[:])
		case fd < len(l.conns) && l.conns[fd] != nil:
			l.event(l.conns[fd], ev.Events)
		default:
			if i := slices.IndexFunc(l.ups, func(u *uplink) bool { return u.fd == fd }); i >= 0 {
				u := l.ups[i]
				u.readable, u.eof = true, u.eof || ev.Events&ends != 0
				continue
			}
			l.accept(fd)
		}
	}
}

// ends are the events behind which there is nothing more.
const ends = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

func (l *loop) event(c *looped, what uint32) {
	if what&^unix.EPOLLOUT != 0 {
		c.readable = true
		l.schedule(c)
	}
	if what&ends != 0 {
		c.eof = true
		c.mu.Lock()
		c.left = true
		if c.leave != nil {
			c.leave()
		}
		c.mu.Unlock()
	}
	if what&unix.EPOLLOUT != 0 {
		l.soil(c)
	}
}

func (l *loop) job() func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.jobs) == 0 {
		l.jobs, l.woken = nil, false
		if l.s.drain.Load() != 0 && !l.draining {
			l.draining, l.tick = true, l.now // everybody is to be looked at
			l.closeListeners()
		}
		return nil
	}
	job := l.jobs[0]
	l.jobs = l.jobs[1:]
	return job
}

// schedule has c served in the next turn, or in this one where it is not as far as that.
func (l *loop) schedule(c *looped) {
	if !c.inReady && !c.gone {
		c.inReady = true
		l.ready = append(l.ready, c)
	}
}

// soil has c flushed in this turn.
func (l *loop) soil(c *looped) {
	if c.gone {
		return
	}
	if !c.inDirty {
		c.inDirty = true
		l.dirty = append(l.dirty, c)
	}
	if c.out == nil && len(l.spare) > 0 {
		c.out = l.spare[len(l.spare)-1]
		l.spare = l.spare[:len(l.spare)-1]
	}
}

// look closes those whose time is over.
func (l *loop) look() {
	switch {
	case l.draining:
		l.tick = l.now.Add(hurried)
	case l.count == 0:
		l.tick = l.now.Add(10 * tickTime)
	default:
		l.tick = l.now.Add(tickTime)
	}
	for _, u := range l.ups {
		l.probe(u)
	}
	l.accept(-1)
	for _, c := range l.conns {
		switch {
		case c == nil:
		case !c.lingering.IsZero():
			if l.now.After(c.lingering) {
				l.drop(c)
			}
		case c.pending > 0 && l.now.Sub(c.moved) > l.s.site.Limits.Command:
			l.drop(c) // it does not read
		case c.hungry && c.inflight == 0 && !c.paused && !l.now.Before(c.due()):
			l.end(c) // it waits for nothing but the client
		}
	}
}

// Connections

// A listener is one from which the loop accepts by itself: a goroutine that does it takes two changes of threads and a dozen
// system calls more, a fifth of what a page of PHP costs the gateway (each makes a connection of its own).
type listener struct {
	fd     int
	addr   net.Addr
	closed chan error
	failed bool // to be tried again
}

// listen accepts from nl until the server is told to end, and closes nl. It reports false where nl is none of those that
// it can do that for, and does nothing.
func (l *loop) listen(nl net.Listener) (error, bool) {
	if l == nil {
		return nil, false
	}
	ln := &listener{addr: nl.Addr(), closed: make(chan error, 1)}
	var err error
	switch nl := nl.(type) {
	case *net.TCPListener:
		ln.fd, err = detach(nl)
		for _, o := range acceptedOptions {
			unix.SetsockoptInt(ln.fd, o.level, o.name, o.value)
		}
	case *unixListener:
		ln.fd, err = detach(nl.UnixListener) // the file stays
	default:
		return nil, false
	}
	if err != nil && l.s.drain.Load() != 0 {
		err = ErrServerClosed
	}
	if err != nil {
		return err, true
	}
	begun := l.post(func() {
		err := error(ErrServerClosed)
		if !l.draining {
			err = l.watch(unix.EPOLL_CTL_ADD, ln.fd, 0)
		}
		if err != nil {
			l.dead = append(l.dead, ln.fd)
			ln.closed <- err
			return
		}
		l.listeners = append(l.listeners, ln)
	})
	if !begun {
		unix.Close(ln.fd)
		return ErrServerClosed, true
	}
	return <-ln.closed, true
}

// acceptedOptions are those that a connection has from package net. Set for a listener, they are inherited.
var acceptedOptions = []struct{ level, name, value int }{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
}

func (l *loop) closeListeners() {
	for _, ln := range l.listeners {
		l.dead = append(l.dead, ln.fd)
		ln.closed <- ErrServerClosed
	}
	l.listeners = nil
}

// accept takes the connections that wait at the listener with the descriptor fd, or at those where it failed.
func (l *loop) accept(fd int) {
	for _, ln := range l.listeners {
		if ln.fd == fd || fd < 0 && ln.failed {
			ln.failed = false
			for n := 0; l.acceptOne(ln); n++ {
				if n == burst {
					l.watch(unix.EPOLL_CTL_MOD, ln.fd, 0) // which reports those who are left
					break
				}
			}
		}
	}
}

func (l *loop) acceptOne(ln *listener) (more bool) {
	if l.s.drain.Load() != 0 {
		return false // whoever comes now waits for the next server, where there is one that has the socket
	}
	fd, from, err := syscall.Accept4(ln.fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
	switch err {
	case nil:
	case unix.EAGAIN:
		return false
	case unix.EINTR, unix.ECONNABORTED:
		return true
	default:
		// Out of descriptors, most likely: those who are connected go on.
		l.s.log.Error("cannot accept", "error", err)
		ln.failed = true
		return false
	}
	c := &looped{l: l, fd: fd, hungry: true, weight: l.s.site.Limits.Output / 4, moved: l.now}
	admitted := l.s.admitted(func(id int64) *conn {
		c.init(l.s, c, id, ln.local(fd), address(from, ln.addr), l.clock)
		return &c.conn
	})
	if !admitted {
		unix.Write(fd, resp.AppendError(nil, textMaxConns))
		unix.Close(fd)
		return true
	}
	if l.count++; l.count == 1 {
		l.tick = l.now
	}
	for len(l.conns) <= fd {
		l.conns = append(l.conns, nil)
	}
	if l.conns[fd] = c; l.watch(unix.EPOLL_CTL_ADD, fd, 0) != nil {
		l.drop(c)
	}
	return true
}

// local returns the address at which the connection fd was accepted.
func (ln *listener) local(fd int) net.Addr {
	if a, ok := ln.addr.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		sa, _ := syscall.Getsockname(fd)
		return address(sa, ln.addr)
	}
	return ln.addr
}

// address makes an address of sa; that of a unix socket is like.
func address(sa syscall.Sockaddr, like net.Addr) net.Addr {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *syscall.SockaddrInet6:
		a := &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
		if sa.ZoneId != 0 {
			a.Zone = strconv.Itoa(int(sa.ZoneId))
		}
		return a
	}
	return like
}

// detach takes the descriptor out of nc and closes nc, so that Go's own poller does not watch it too.
func detach(nc io.Closer) (fd int, err error) {
	defer nc.Close()
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return -1, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(ctlErr, err)
}

// drop ends c at once. What the store was asked for it is still answered, and a command that a goroutine runs ends.
func (l *loop) drop(c *looped) {
	if c.gone {
		return
	}
	c.gone = true
	l.conns[c.fd] = nil
	l.dead = append(l.dead, c.fd)
	c.mu.Lock()
	c.left = true
	if c.leave != nil {
		c.leave()
	}
	c.mu.Unlock()
	l.bury(c)
}

// bury forgets c once nothing is done for it any more.
func (l *loop) bury(c *looped) {
	if !c.gone || c.paused || c.inflight > 0 || c.buried {
		return
	}
	c.buried = true
	c.endMulti()
	for c.first != nil {
		l.unresolved(c.first)
		l.free(l.take(c))
	}
	c.hold(-c.held)
	c.charge(-c.room - c.pending)
	c.room, c.pending = 0, 0
	l.count--
	if len(c.bound) == 0 {
		l.s.ended(&c.conn)
		return
	}
	go func() {
		defer l.s.ended(&c.conn)
		l.s.endLocks(&c.conn)
	}()
}

// flush is for exec, whose command began after the replies before it were sent.
func (c *looped) flush() bool { return true }

func (c *looped) cut() { c.l.post(func() { c.l.drop(c) }) }

func (c *looped) hurry() { c.l.post(nil) }

// watch begins after a while, as stream's: a client may have sent all that it wants to send.
func (c *looped) watch(cancel func()) (stop func() (left bool)) {
	began, over := false, false // guarded by mu
	t := time.AfterFunc(watchAfter, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if over {
			return
		}
		began, c.leave = true, cancel
		if c.left {
			cancel()
		}
	})
	return func() bool {
		t.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		over, c.leave = true, nil
		return began && c.left
	}
}

// serve takes what c has sent, as far as it is its turn.
func (l *loop) serve(c *looped) {
	switch {
	case c.gone:
		return
	case !c.lingering.IsZero():
		l.linger(c)
		return
	case c.paused, c.alone, c.closing:
		return // whoever ends that goes on
	}
	if c.hungry && c.readable && c.space() {
		if l.draining && !l.now.Before(c.due()) {
			if c.inflight == 0 {
				l.end(c)
			}
			return // and no more is added to what is under way, or there might always be something
		}
		if !l.read(c) {
			return
		}
	}
	l.commands(c)
	switch {
	case !c.hungry || c.closing:
	case c.readable:
		if c.space() {
			l.schedule(c)
		}
	case c.eof: // an unfinished command does not matter any more
		l.end(c)
	}
}

// space reports whether there is room for a read or there may be: as long as requests are under way, the buffer does not
// grow beyond what is free.
func (c *looped) space() bool {
	return len(c.in) < cap(c.in) || c.kept > 0 || c.inflight == 0 || cap(c.in) < freeBuffer
}

// read takes what has arrived, and reports false where the client is gone.
func (l *loop) read(c *looped) bool {
	if c.kept == len(c.in) || len(c.in) == cap(c.in) {
		c.makeRoom()
	}
	room := c.in[len(c.in):cap(c.in)]
	n, err := syscall.Read(c.fd, room)
	switch {
	case n > 0:
		c.in = c.in[:len(c.in)+n]
		c.readable = n == len(room) || c.eof // less than there is room for was all there is (epoll(7))
	case err == unix.EAGAIN:
		c.readable = false
	case err == unix.EINTR:
	case err != nil:
		l.drop(c)
	default:
		c.readable, c.eof = false, true
	}
	return !c.gone
}

// commands runs what is complete, as far as it can be begun now.
func (l *loop) commands(c *looped) {
	if len(c.in)-c.pos < c.need {
		return
	}
	c.need, c.hungry = 0, false
	for n := 0; !c.alone && !c.closing; n++ {
		if n == burst {
			l.schedule(c)
			return
		}
		if len(c.out)-c.sent > l.s.site.Limits.Output {
			c.blocked = true // until flush finds that it has read
			l.soil(c)
			return
		}
		mark := c.pos
		args, need, err := c.next()
		if err == resp.ErrIncomplete {
			if c.need, c.hungry = need, true; c.first == nil {
				c.kept = c.pos // it may have skipped empty requests
			}
			return
		}
		e := l.blank()
		if err == nil {
			c.understand(args)
			l.plan(c, e)
		}
		if c.inflight > 0 && !l.joins(c, e) {
			c.pos = mark // until they are answered
			return
		}
		if e.class != byHand && !e.up.shard.Enter() { // it has to wait, which a loop does not
			if c.inflight > 0 {
				c.pos = mark
				return
			}
			if e.class == locking {
				l.s.locks.pass(e.id)
			}
			e.class = byHand
		}
		if e.class != byHand {
			e.size = c.pos - c.kept - c.flying
			l.send(c, e)
			continue
		}
		l.soil(c)
		if err != nil {
			c.refuse(err)
		} else if !c.answer(args) {
			l.hand(c, c.exec)
			return
		}
		l.settled(c)
	}
}

// settled notes that the request of c is answered which was parsed last, and none before it is left.
func (l *loop) settled(c *looped) {
	c.kept, c.active = c.pos, l.now
	l.settle(c)
	c.pos = c.kept
}

// hand has a goroutine do what takes time for the request of c.
func (l *loop) hand(c *looped, do func() result) {
	c.paused = true
	go func() {
		var res result
		done := false
		defer func() {
			if p := recover(); p != nil {
				l.s.panicked(p)
			}
			l.post(func() {
				c.paused, c.alone = false, false
				if l.current = c; done {
					l.soil(c)
					c.finish(&res)
					l.settled(c)
					l.schedule(c)
				} else {
					l.drop(c)
				}
				l.bury(c)
			})
		}()
		res = do()
		done = true
	}()
}

// end closes c once it has what it is owed.
func (l *loop) end(c *looped) {
	c.closing = true
	l.soil(c)
}

// flush sends c what there is for it.
func (l *loop) flush(c *looped) {
	if c.gone || !c.lingering.IsZero() {
		return
	}
	if len(c.out) > c.sent {
		n, err := syscall.Write(c.fd, c.out[c.sent:])
		switch {
		case n > 0:
			c.sent += n
			c.moved = l.now
		case err != unix.EAGAIN && err != unix.EINTR:
			l.drop(c)
			return
		}
	}
	left := len(c.out) - c.sent
	if armed := left > 0; armed != c.armed {
		c.armed = armed
		more := uint32(0)
		if armed {
			more = unix.EPOLLOUT
		}
		if l.watch(unix.EPOLL_CTL_MOD, c.fd, more) != nil {
			l.drop(c)
			return
		}
	}
	switch {
	case left == 0:
		if cap(c.out) > 0 && cap(c.out) <= flushAt && len(l.spare) < spares {
			l.spare = append(l.spare, c.out[:0])
		}
		c.out, c.sent = nil, 0
	case !c.authenticated && left > flushAt:
		// Nobody has to let strangers pile up replies, refusals least of all (CVE-2025-21605).
		l.drop(c)
		return
	case c.pending == 0:
		c.moved = l.now
	case c.sent > len(c.out)/2:
		c.out = c.out[:copy(c.out, c.out[c.sent:])]
		c.sent = 0
	}
	c.charge(left - c.pending)
	c.pending = left
	if c.blocked && left <= l.s.site.Limits.Output {
		c.blocked = false
		l.schedule(c)
	}
	switch {
	case left > 0 || !c.closing || c.inflight > 0:
	case !c.refused || unix.Shutdown(c.fd, unix.SHUT_WR) != nil:
		l.drop(c)
	default:
		c.lingering = l.now.Add(lingerTime)
		l.schedule(c)
	}
}

// linger is stream's.
func (l *loop) linger(c *looped) {
	n, err := syscall.Read(c.fd, c.in[:cap(c.in)])
	if c.lingered++; n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR || c.lingered == lingerReads {
		l.drop(c)
	} else if n > 0 {
		l.schedule(c)
	}
}
