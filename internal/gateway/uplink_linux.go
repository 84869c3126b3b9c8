package gateway

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

const (
	maxFlight  = 64       // requests of one connection that the store has to answer
	maxBacklog = 1 << 20  // bytes that wait for the store to take them
	upBuffer   = 64 << 10 // what is read from it at a time
	keepBuffer = 4 * upBuffer
)

// class says which requests of a connection may be under way together: those that in any order come to the same, and
// leave the same behind in reads and destroyed. A write after a read, say, is judged by what was read.
type class uint8

const (
	byHand class = iota // none: not a request that goes by the loop, or not now
	reading
	writing
	destroying
	locking // takes the turn, see locks, until it is answered
	unlocking
)

// An entry is a request that the store has to answer. It is made when the request is put behind those before it, and
// taken off when its answer is there; nothing else ever takes one off, so an answer is always that of the first.
type entry struct {
	c       *looped
	cmd     *command
	class   class
	guarded bool // a write after a read
	id      string
	began   uint64    // destroyed.now at the read
	size    int       // in the client's buffer
	end     uint64    // where it ends in all that was ever to be sent on this connection
	at      time.Time // of its turn
}

// An uplink is the loop's connection to the store, and what is under way on it.
type uplink struct {
	fd       int         // -1: none
	current  func() bool // false: it is another server than the store's by now
	dialing  sync.WaitGroup
	limits   resp.ReplyLimits
	maxValue int
	timeout  time.Duration

	in   []byte // what has arrived
	pos  int    // what lies before is done with
	need int    // what in[pos:] must hold for the next reply
	skip int    // bytes of a value that is too large, which have not arrived

	out    []byte
	sent   int    // of out
	taken  uint64 // bytes that the kernel ever took
	ring   ring
	key    []byte // buffers of send
	number []byte
	unlock []byte // the script

	began    time.Time // when it was made
	heard    time.Time // when anything last came
	readable bool
	eof      bool // the end may have come
	armed    bool // an event will say that there is room again
}

func (u *uplink) init(value, maxValue int, timeout time.Duration) {
	u.fd, u.maxValue, u.timeout = -1, maxValue, timeout
	u.limits = resp.ReplyLimits{Bulk: value, Elems: 2, Depth: 1, Reply: value + 64<<10}
}

// full reports whether the store does not take what it is sent.
func (u *uplink) full() bool { return len(u.out)-u.sent > maxBacklog }

// dial connects to the store in the background, after a while, and goes on trying.
func (l *loop) dial(after time.Duration) {
	l.up.dialing.Go(func() {
		if after > 0 {
			sleep(l.s.ctx, after)
		}
		for pause := 10 * time.Millisecond; l.s.ctx.Err() == nil; pause = min(2*pause, time.Second) {
			if nc, current, err := l.store.Dial(l.s.ctx); err == nil {
				if fd, err := detach(nc); err == nil {
					if !l.post(func() { l.connected(fd, current) }) {
						unix.Close(fd)
					}
					return
				}
			}
			sleep(l.s.ctx, pause)
		}
	})
}

func (l *loop) connected(fd int, current func() bool) {
	u := &l.up
	u.fd, u.current, u.readable, u.eof, u.armed = fd, current, true, false, false
	u.in, u.pos, u.need, u.skip = make([]byte, 0, upBuffer), 0, 0, 0
	u.out, u.sent, u.taken, u.began, u.heard = nil, 0, 0, l.now, l.now
	if err := l.watch(unix.EPOLL_CTL_ADD, fd, 0); err != nil {
		l.s.log.Error("cannot watch the store's connection", "error", err)
		l.fail()
	}
}

// fail gives the connection up. What of it was read is read again, by hand; what was written may or may not have been.
func (l *loop) fail() {
	u := &l.up
	if u.fd >= 0 {
		l.dead = append(l.dead, u.fd)
		u.fd = -1
		after := time.Duration(0)
		if l.now.Sub(u.began) < time.Second {
			after = 10 * time.Millisecond // it is made again and again
		}
		l.dial(after)
	}
	for u.ring.n > 0 {
		e := u.ring.pop()
		if l.current = e.c; e.c == nil {
			continue
		}
		if e.class == reading || e.end > u.taken {
			l.again(&e)
			continue
		}
		if e.class == destroying {
			l.s.destroyed.end(e.id, false, l.now)
		}
		l.answer(&e, &result{err: errLost})
	}
	l.current = nil
	u.in, u.out = nil, nil
	u.pos, u.sent, u.skip = 0, 0, 0
}

var (
	errLost   = fmt.Errorf("the connection is gone: %w", store.ErrUnknown)
	errFailed = fmt.Errorf("the store refused: %w", store.ErrUnavailable)
)

// follow gives a connection up that stayed where the store was. What goes by hand is at another server by now: a lock of
// the one would be no lock at the other.
func (l *loop) follow() {
	if u := &l.up; u.fd >= 0 && !u.current() {
		l.s.log.Warn("the store's address is another server's now, connection given up")
		l.fail()
	}
}

// probe gives a connection up that does not answer in time, and asks one that was not asked anything for a while whether
// it is there.
func (l *loop) probe() {
	u := &l.up
	switch {
	case u.ring.n > 0:
		if l.now.Sub(u.ring.first().at) > u.timeout {
			l.s.log.Warn("the store does not answer, connection given up")
			l.fail()
		}
	case u.fd >= 0 && l.now.Sub(u.heard) > time.Second:
		u.out = resp.AppendRequest(u.out, wordPing)
		l.push(&entry{cmd: table["PING"], at: l.now})
		l.flushUp()
	}
}

// plan says how the request of c is to be run now: by the loop, or, where the entry has no class, in the way of a stream.
// It has to be known beforehand that one command of Redis is all that exec would do.
func (l *loop) plan(c *looped) (e entry) {
	r, s := &c.req, l.s
	if r.fail != "" || r.cmd.local != nil || len(r.keys) != 1 || l.up.fd < 0 || l.up.eof || c.byHand {
		return e
	}
	k := &r.keys[0]
	switch {
	case k.err != nil:
		return e
	case k.lock:
		return l.planLock(c, k)
	}
	switch r.cmd.op {
	case opLoad, opExists:
		if s.site.SlidingWithoutTTL { // exec may touch it
			return e
		}
		e.class, e.began = reading, s.destroyed.now()
	case opSave, opTouch:
		if r.only != 0 || r.get || r.keep || r.at || !r.expires.After(r.now) || len(r.data) > l.up.maxValue || s.blind.Load() {
			return e // what is sent is a lifetime: of a time of day, exec knows better how much is left
		}
		if e.began, e.guarded = c.reads.last(k.id); e.guarded && !s.destroyed.calm(k.id, e.began) {
			return e
		}
		e.class = writing
	case opDelete:
		if s.blind.Load() {
			return e
		}
		e.class = destroying
	default:
		return e
	}
	var err error
	if l.up.key, err = l.store.DataKey(l.up.key[:0], k.id); err != nil {
		e.class = byHand
	}
	e.c, e.cmd, e.id, e.at = c, r.cmd, k.id, l.now
	return e
}

// planLock is plan for what is about a lock.
func (l *loop) planLock(c *looped, k *key) (e entry) {
	r, s := &c.req, l.s
	if !l.store.Capabilities().Lock {
		return e
	}
	var err error
	if l.up.key, err = l.store.LockKey(l.up.key[:0], k.id); err != nil {
		return e
	}
	switch r.cmd.op {
	case opSave:
		if r.ttl < 0 || c.inflight == 0 && !s.locks.try(k.id) {
			return e // it is refused, or has to wait
		}
		e.class = locking
	case opUnlock:
		if orNull, err := s.script(r); err != nil || orNull {
			return e
		}
		e.class = unlocking
	}
	e.c, e.cmd, e.id, e.at = c, r.cmd, k.id, l.now
	return e
}

// joins reports whether e may be under way together with those of c that are.
func (l *loop) joins(c *looped, e *entry) bool {
	switch {
	case e.class != c.class || e.class == byHand || c.inflight == maxFlight || e.single():
		return false
	case e.class == reading: // and what is read has to go somewhere
		return len(c.out)-c.sent+c.inflight*c.weight < l.s.site.Limits.Output
	}
	return true
}

// single reports whether nothing else of its connection may be under way with e, because its request has to be there still
// when it is answered: a write may have to be undone.
func (e *entry) single() bool { return e.class >= locking || e.guarded && e.cmd.op == opSave }

var (
	wordGet, wordExists, wordDel = []byte("GET"), []byte("EXISTS"), []byte("DEL")
	wordSet, wordPX, wordPExpire = []byte("SET"), []byte("PX"), []byte("PEXPIRE")
	wordPing, wordNX             = []byte("PING"), []byte("NX")
	wordEvalSHA, wordOne         = []byte("EVALSHA"), []byte("1")
)

// send puts the request of c, which plan said e of, behind those before it.
func (l *loop) send(c *looped, e *entry) {
	u, r := &l.up, &c.req
	switch op := e.cmd.op; {
	case op == opLoad:
		u.out = resp.AppendRequest(u.out, wordGet, u.key)
	case op == opExists:
		u.out = resp.AppendRequest(u.out, wordExists, u.key)
	case e.class == locking:
		life, _ := l.s.lockLife(r.ttl)
		u.out = resp.AppendRequest(u.out, wordSet, u.key, r.data, wordNX, wordPX, u.millis(life))
	case op == opSave:
		u.out = resp.AppendRequest(u.out, wordSet, u.key, r.data, wordPX, u.left(r))
	case op == opTouch:
		u.out = resp.AppendRequest(u.out, wordPExpire, u.key, u.left(r))
	case op == opDelete:
		l.s.destroyed.begin(e.id)
		u.out = resp.AppendRequest(u.out, wordDel, u.key)
	case op == opUnlock:
		u.out = resp.AppendRequest(u.out, wordEvalSHA, u.unlock, wordOne, u.key, []byte(r.token))
	}
	l.push(e)
	c.inflight++
	c.flying += e.size
	c.class, c.alone = e.class, e.single()
}

// push notes that what was put into out last is the request of e.
func (l *loop) push(e *entry) {
	u := &l.up
	e.end = u.taken + uint64(len(u.out)-u.sent)
	u.ring.push(e)
}

// left writes the lifetime that r gives, in milliseconds.
func (u *uplink) left(r *request) []byte {
	return u.millis(store.Record{Expires: r.expires}.Remaining(r.now))
}

func (u *uplink) millis(d time.Duration) []byte {
	u.number = strconv.AppendInt(u.number[:0], int64((d+time.Millisecond-1)/time.Millisecond), 10)
	return u.number
}

// flushUp sends what is to be sent.
func (l *loop) flushUp() {
	u := &l.up
	if u.fd < 0 || u.eof || u.sent == len(u.out) {
		return
	}
	n, err := syscall.Write(u.fd, u.out[u.sent:])
	switch {
	case n > 0:
		u.sent += n
		u.taken += uint64(n)
	case err != unix.EAGAIN && err != unix.EINTR:
		u.eof, u.readable = true, true // there may still be answers, but the end is near
		l.replies()
		return
	}
	switch left := len(u.out) - u.sent; {
	case left == 0:
		if u.out, u.sent = u.out[:0], 0; cap(u.out) > 2*maxBacklog {
			u.out = nil
		}
	case u.sent > maxBacklog:
		u.out = u.out[:copy(u.out, u.out[u.sent:])]
		u.sent = 0
	}
	if armed := u.sent < len(u.out); armed != u.armed {
		u.armed = armed
		more := uint32(0)
		if armed {
			more = unix.EPOLLOUT
		}
		if l.watch(unix.EPOLL_CTL_MOD, u.fd, more) != nil {
			l.fail()
		}
	}
}

// replies takes what the store has answered.
func (l *loop) replies() {
	u := &l.up
	for u.fd >= 0 && u.readable {
		if u.pos == len(u.in) {
			if u.in, u.pos = u.in[:0], 0; cap(u.in) > keepBuffer {
				u.in = make([]byte, 0, upBuffer)
			}
		} else if len(u.in) == cap(u.in) {
			in := u.in
			if u.pos == 0 { // a long reply
				in = make([]byte, 0, 2*cap(u.in))
			}
			u.in = append(in[:0], u.in[u.pos:]...)
			u.pos = 0
		}
		room := u.in[len(u.in):cap(u.in)]
		n, err := syscall.Read(u.fd, room)
		switch {
		case n > 0:
			u.in, u.heard = u.in[:len(u.in)+n], l.now
			u.readable = n == len(room) || u.eof
			l.parseReplies()
		case err == unix.EAGAIN:
			u.readable = false
		case err == unix.EINTR:
		default:
			l.s.log.Warn("the store's connection is gone")
			l.fail()
		}
	}
}

// parseReplies gives every complete reply to whom it belongs. What is not the answer to the first of those under way ends
// the connection: whatever came after it might be somebody else's.
func (l *loop) parseReplies() {
	u := &l.up
	for u.fd >= 0 && u.pos < len(u.in) {
		if u.skip > 0 {
			n := min(u.skip, len(u.in)-u.pos)
			u.pos, u.skip = u.pos+n, u.skip-n
			continue
		}
		if u.ring.n == 0 { // not even all of it: the rest would be somebody's answer
			l.outOfTurn()
			return
		}
		if len(u.in)-u.pos < u.need {
			return
		}
		v, n, need, err := resp.ParseReply(u.in[u.pos:], u.limits)
		if err == resp.ErrIncomplete {
			u.need = need
			return
		}
		u.need = 0
		switch e := u.ring.first(); {
		case err != nil:
			n := u.long()
			if n == 0 {
				return
			}
			if n < 0 || e.c == nil || e.cmd.op != opLoad {
				l.outOfTurn()
				return
			}
			u.skip = n
			e := u.ring.pop()
			l.again(&e)
		case e.c == nil && (v.Kind == resp.Simple && string(v.Str) == "PONG" || v.Kind == resp.Error):
			u.pos += n
			u.ring.pop()
		case e.c != nil && v.Kind == resp.Error: // of Redis itself: nothing was done
			u.pos += n
			e := u.ring.pop()
			l.again(&e)
		case e.c != nil && e.fits(&v):
			u.pos += n
			e := u.ring.pop()
			l.reply(&e, &v)
		default:
			l.outOfTurn()
			return
		}
	}
}

func (l *loop) outOfTurn() {
	l.s.log.Error("the store answers what it was not asked, connection given up")
	l.fail()
}

// long reads the head of a value that is longer than the site allows, and returns how many bytes are to be skipped from
// there on: 0 where the head is not all there, and less where it is something else. A client that asks for such a value
// gets what a stream would get.
func (u *uplink) long() int {
	rest := u.in[u.pos:]
	head, _, ended := bytes.Cut(rest[:min(len(rest), len("$536870912\r\n"))], []byte("\r\n"))
	size, ok := 0, len(head) > 1 && head[0] == '$' && head[1] != '0'
	for _, b := range bytes.TrimSuffix(head[min(1, len(head)):], []byte("\r")) {
		ok = ok && '0' <= b && b <= '9'
		size = 10*size + int(b-'0')
	}
	switch {
	case !ok || size <= u.limits.Bulk || size > 512<<20 || !ended && len(rest) > len(head):
		return -1
	case !ended:
		return 0
	}
	return len(head) + 2 + size + 2
}

// fits reports whether v can be the answer.
func (e *entry) fits(v *resp.Value) bool {
	switch e.cmd.op {
	case opLoad:
		return v.Kind == resp.Bulk
	case opSave:
		return v.Kind == resp.Simple && string(v.Str) == "OK" || e.class == locking && v.Kind == resp.Bulk && v.Null
	case opUnlock:
		return v.Kind == resp.Array && len(v.Elems) == 2 && flag(&v.Elems[0]) && v.Elems[0].Int == 0 && flag(&v.Elems[1])
	}
	return flag(v)
}

func flag(v *resp.Value) bool { return v.Kind == resp.Int && (v.Int == 0 || v.Int == 1) }

// reply makes a result of the store's answer, as exec does.
func (l *loop) reply(e *entry, v *resp.Value) {
	c, s := e.c, l.s
	l.current = c
	if e.class == reading && (len(c.failed) > 0 || len(c.out)-c.sent > s.site.Limits.Output) {
		l.again(e) // in its turn, and when the client has read
		return
	}
	if e.class == locking && v.Null {
		l.again(e) // somebody has it who is not ours, and is waited for
		return
	}
	res := result{n: v.Int, found: v.Int == 1}
	switch e.cmd.op {
	case opLoad:
		res.found, res.data = !v.Null, v.Str
	case opSave:
		res.found, res.n = true, 1
	case opUnlock:
		res.n = v.Elems[1].Int
	case opDelete:
		s.destroyed.end(e.id, true, l.now)
		c.reads.forget(e.id)
	}
	if e.class == reading {
		c.weight = max(len(v.Str), c.weight/2)
		s.readable(nil)
		if res.found {
			c.reads.note(e.id, e.began)
		} else {
			c.reads.forget(e.id)
		}
	}
	l.answer(e, &res)
}

// answer answers a request that was under way.
func (l *loop) answer(e *entry, res *result) {
	c := e.c
	c.inflight--
	for i := range c.failed { // writes that could only be run again after this one
		l.say(&c.failed[i], &result{err: errFailed})
	}
	c.failed = nil
	switch {
	case e.class == locking && (res.err != nil || c.gone || c.eof && l.now.Sub(e.at) >= watchAfter): // as lock's watch would find
		id, token, came := e.id, c.req.token, result{err: res.err}
		l.hand(c, func() result {
			l.s.abandon(id, token)
			l.s.locks.pass(id)
			return came
		})
		return
	case e.class == locking:
		life, bound := l.s.lockLife(c.req.ttl)
		l.s.locks.took(e.id, c.req.token, life, &c.conn, bound)
	case e.class == unlocking:
		l.s.locks.released(e.id, c.req.token) // where nobody knows, the next one asks the store
	case e.single() && !l.s.destroyed.calm(e.id, e.began):
		rec := store.Record{Data: c.req.data}
		if undo := l.s.undo(e.id, &rec); undo != nil {
			id, began, came := e.id, e.began, *res
			l.hand(c, func() result {
				l.s.overtaken(id, began, came.err, undo)
				return came
			})
			return
		}
	}
	l.say(e, res)
	l.resume(c)
}

func (l *loop) say(e *entry, res *result) {
	c := e.c
	c.kept += e.size
	c.flying -= e.size
	if !c.gone {
		l.soil(c)
		c.out = e.cmd.render(c.out, c.proto, res)
	}
	c.done(e.cmd, res.outcome(e.cmd), e.at)
}

// again notes that e, which was certainly not executed or is a read, is to be run again, and so is what comes after it.
func (l *loop) again(e *entry) {
	c := e.c
	l.current = c
	c.inflight--
	switch e.class {
	case destroying:
		l.s.destroyed.end(e.id, false, l.now)
	case locking:
		l.s.locks.pass(e.id)
	}
	c.failed = append(c.failed, *e)
	l.resume(c)
}

// resume goes on with c once nothing of it is under way.
func (l *loop) resume(c *looped) {
	if c.inflight > 0 {
		return
	}
	c.alone, c.active = false, l.now
	again := 0
	for i := range c.failed {
		again += c.failed[i].size
	}
	if c.flying != again {
		panic("answers are missing") // what would be parsed again might be anything
	}
	if c.flying = 0; again > 0 {
		c.pos, c.need, c.began = c.kept, 0, time.Time{}
		c.failed, c.byHand, c.hungry = nil, true, false
		c.closing = false // the client has sent all it will, but it has not got all it is owed
	}
	l.schedule(c)
	l.soil(c)
	l.bury(c)
}

// A ring is a queue of entries.
type ring struct {
	buf  []entry // its length is a power of two
	head int
	n    int
}

func (r *ring) first() *entry { return &r.buf[r.head] }

func (r *ring) push(e *entry) {
	if r.n == len(r.buf) {
		buf := make([]entry, max(64, 2*r.n))
		n := copy(buf, r.buf[r.head:])
		copy(buf[n:], r.buf[:r.head])
		r.buf, r.head = buf, 0
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = *e
	r.n++
}

func (r *ring) pop() entry {
	e := r.buf[r.head]
	r.buf[r.head] = entry{}
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	return e
}
