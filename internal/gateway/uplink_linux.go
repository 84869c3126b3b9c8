package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

const (
	maxFlight  = 64       // requests of one connection that are not answered
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

// An entry is a request that the store has to answer. It is made when the request is put behind those before it on an
// uplink, and taken off when its answer is there; nothing else ever takes one off, so an answer is always that of the first.
// For its connection it stands until it is answered, or is run again.
type entry struct {
	of      *batch
	next    *entry // of its connection
	up      *uplink
	c       *looped
	cmd     *command
	class   class
	state   state
	guarded bool // a write after a read
	id      string
	began   uint64    // destroyed.now at the read
	size    int       // in the client's buffer
	end     uint64    // where it ends in all that was ever to be sent on the uplink
	at      time.Time // of its turn

	// Where the store remembers: what was written.
	expires time.Time
	base    uint64
	data    []byte // and later the answer, where it is held
}

// state says how far an entry is.
type state uint8

const (
	underway state = iota
	held           // it is answered, but others before it are not
	undone         // it was certainly not executed, or is a read: it is run by hand
	unsure         // no answer came: it is found out by hand whether it was done
)

// upstream is what all uplinks have in common, and buffers of send.
type upstream struct {
	limits    resp.ReplyLimits
	maxValue  int
	timeout   time.Duration
	remembers bool
	resolves  bool
	unlock    []byte // the script
	remove    []byte // the script that deletes, empty where DEL does; and the lifetime that it wants
	life      []byte

	key    []byte
	number []byte
	side   []byte

	entries *batch // the one that blank's are of
	spares  []*batch
}

// A batch is entries that are used one after the other, and again when all are free: they are read in the order in which they
// were written, and lie so in memory (one by one they cost pipelines a twentieth more CPU).
type batch struct {
	all        [256]entry
	used, live int
}

// An uplink is the loop's connection to a shard, and what is under way on it.
type uplink struct {
	shard   Shard
	fd      int         // -1: none
	addr    string      // of the last one
	current func() bool // false: the shard is at another server by now

	in   []byte // what has arrived
	pos  int    // what lies before is done with
	need int    // what in[pos:] must hold for the next reply
	skip int    // bytes of a value that is too large, which have not arrived

	out   []byte
	sent  int    // of out
	taken uint64 // bytes that the kernel ever took
	ring  ring

	began    time.Time // when it was made
	heard    time.Time // when anything last came
	readable bool
	eof      bool // the end may have come
	armed    bool // an event will say that there is room again
}

func (u *upstream) init(st Upstream, value, maxValue int, timeout time.Duration) {
	u.maxValue, u.timeout = maxValue, timeout
	u.limits = resp.ReplyLimits{Bulk: value, Elems: 4, Depth: 1, Reply: value + 64<<10}
	u.unlock = []byte(st.UnlockScript())
	u.resolves = st.Resolves()
	if u.remembers = st.Remembers(); u.remembers {
		sha, life := st.DeleteScript()
		u.remove, u.life = []byte(sha), []byte(life)
	}
}

// uplink returns the one that leads to shard, nil where nothing can be sent on it now. What is asked for first connects it.
func (l *loop) uplink(shard Shard) *uplink {
	if shard == nil {
		return nil
	}
	for _, u := range l.ups {
		if u.shard == shard {
			if u.full() {
				l.flushUp(u)
			}
			if u.fd < 0 || u.eof || u.full() {
				return nil
			}
			return u
		}
	}
	u := &uplink{shard: shard, fd: -1}
	l.ups = append(l.ups, u)
	l.dial(u, 0)
	return nil
}

// full reports whether the server does not take what it is sent: others need not wait for it.
func (u *uplink) full() bool { return len(u.out)-u.sent > maxBacklog }

// dial connects u in the background, after a while, and goes on trying as long as there is such a shard.
func (l *loop) dial(u *uplink, after time.Duration) {
	l.dialing.Go(func() {
		if after > 0 {
			sleep(l.s.ctx, after)
		}
		for pause := 10 * time.Millisecond; l.s.ctx.Err() == nil; pause = min(2*pause, time.Second) {
			nc, current, err := u.shard.Dial(l.s.ctx)
			if errors.Is(err, net.ErrClosed) {
				l.post(func() { l.ups = slices.DeleteFunc(l.ups, func(other *uplink) bool { return other == u }) })
				return
			}
			if err == nil {
				addr := nc.RemoteAddr().String()
				if fd, err := detach(nc); err == nil {
					if !l.post(func() { l.connected(u, fd, addr, current) }) {
						unix.Close(fd)
					}
					return
				}
			}
			sleep(l.s.ctx, pause)
		}
	})
}

func (l *loop) connected(u *uplink, fd int, addr string, current func() bool) {
	u.fd, u.addr, u.current, u.readable, u.eof, u.armed = fd, addr, current, true, false, false
	u.in, u.pos, u.need, u.skip = make([]byte, 0, upBuffer), 0, 0, 0
	u.out, u.sent, u.taken, u.began, u.heard = nil, 0, 0, l.now, l.now
	if err := l.watch(unix.EPOLL_CTL_ADD, fd, 0); err != nil {
		l.s.log.Error("cannot watch the store's connection", "addr", addr, "error", err)
		l.fail(u)
	}
}

// fail gives the connection up. What of it was read is read again, by hand; what was written may or may not have been.
func (l *loop) fail(u *uplink) {
	if u.fd >= 0 {
		l.dead = append(l.dead, u.fd)
		u.fd = -1
		after := time.Duration(0)
		if l.now.Sub(u.began) < time.Second {
			after = 10 * time.Millisecond // it is made again and again
		}
		l.dial(u, after)
	}
	for u.ring.n > 0 {
		e := u.ring.pop()
		if l.current = e.c; e.c == nil {
			l.free(e)
			continue
		}
		u.shard.Leave()
		if e.end > u.taken {
			l.again(e, undone)
			continue
		}
		l.lost(e)
	}
	l.current = nil
	u.in, u.out = nil, nil
	u.pos, u.sent, u.skip = 0, 0, 0
}

// lost is for a request that was sent and has no answer, or none that counts.
func (l *loop) lost(e *entry) {
	switch e.class {
	case reading:
		l.again(e, undone)
		return
	case destroying:
		if !l.resolves { // else it is under way until it is known what became of it
			l.s.destroyed.end(e.id, false, l.now)
		}
	}
	if l.resolves && (e.class <= destroying || e.class == unlocking) {
		l.supersede(e, nil) // or that might undo it
		l.again(e, unsure)
		return
	}
	l.answer(e, &result{err: errLost})
}

var (
	errLost   = fmt.Errorf("the connection is gone: %w", store.ErrUnknown)
	errFailed = fmt.Errorf("the store refused: %w", store.ErrUnavailable)
)

// follow gives a connection up that stayed where the store was. What goes by hand is at another server by now: a lock of
// the one would be no lock at the other.
func (l *loop) follow(u *uplink) {
	if u.fd >= 0 && !u.current() {
		l.s.log.Warn("the store is another server now, connection given up", "addr", u.addr)
		l.fail(u)
	}
}

// probe gives a connection up that does not answer in time, and asks one that was not asked anything for a while whether
// it is there.
func (l *loop) probe(u *uplink) {
	switch {
	case u.ring.n > 0:
		if l.now.Sub(u.ring.first().at) > l.timeout {
			l.s.log.Warn("the store does not answer, connection given up", "addr", u.addr)
			l.fail(u)
		}
	case u.fd >= 0 && l.now.Sub(u.heard) > time.Second:
		u.out = resp.AppendRequest(u.out, wordPing)
		e := l.blank()
		e.up, e.c, e.cmd, e.at = u, nil, table["PING"], l.now
		l.push(e)
		l.flushUp(u)
	}
}

// plan makes e, which is blank, of the request of c as it is to be run now: by the loop, or, where the entry has no class, in
// the way of a stream. It has to be known beforehand that one command of Redis is all that exec would do.
func (l *loop) plan(c *looped, e *entry) {
	r, s := &c.req, l.s
	if c.inflight == 0 && c.first != nil { // they were to be answered, and now this one is run by hand
		again := l.take(c)
		r.unsure = again.state == unsure
		l.free(again)
		return
	}
	if r.fail != "" || r.cmd.local != nil || len(r.keys) != 1 || r.keys[0].err != nil {
		return
	}
	k := &r.keys[0]
	var err error
	if k.lock {
		l.key, err = l.store.LockKey(l.key[:0], k.id)
	} else {
		l.key, err = l.store.DataKey(l.key[:0], k.id)
	}
	if err != nil {
		return
	}
	if e.up = l.uplink(l.store.Shard(l.key)); e.up == nil {
		return
	}
	e.c, e.cmd, e.id, e.at = c, r.cmd, k.id, l.now
	if k.lock {
		e.class = l.planLock(c, k)
		return
	}
	switch r.cmd.op {
	case opLoad, opExists:
		if s.site.SlidingWithoutTTL { // exec may touch it
			return
		}
		e.class, e.began = reading, s.destroyed.now()
	case opSave, opTouch:
		if r.only != 0 || r.get || r.keep || r.at || !r.expires.After(r.now) || len(r.data) > l.maxValue || s.blind.Load() {
			return // what is sent is a lifetime: of a time of day, exec knows better how much is left
		}
		if e.began, e.guarded = c.reads.last(k.id); e.guarded && !s.destroyed.calm(k.id, e.began) {
			return
		}
		if r.cmd.op == opSave && (s.isCritical(k.id) || store.HasFlags(r.data)) {
			return
		}
		e.class = writing
	case opDelete:
		if s.blind.Load() || s.critical.destroy {
			return
		}
		e.class = destroying
	}
}

// planLock is plan for what is about a lock.
func (l *loop) planLock(c *looped, k *key) class {
	r, s := &c.req, l.s
	if !l.store.Capabilities().Lock {
		return byHand
	}
	switch r.cmd.op {
	case opSave:
		if r.ttl < 0 || c.inflight == 0 && !s.locks.try(k.id) {
			return byHand // it is refused, or has to wait
		}
		return locking
	case opUnlock:
		if orNull, err := s.script(r); err != nil || orNull {
			return byHand
		}
		return unlocking
	}
	return byHand
}

// joins reports whether e may be under way together with those of c that are.
func (l *loop) joins(c *looped, e *entry) bool {
	switch {
	case e.class != c.class || e.class == byHand || c.listed == maxFlight || c.failed > 0 || e.single():
		return false
	case e.class == reading && len(c.out)-c.sent+c.held+c.inflight*c.weight >= l.s.site.Limits.Output: // what is read has to go somewhere
		return false
	}
	// While a slot moves there may be two of one session. And who remembers has to know which of two writes was the later one.
	ordered := l.remembers && e.class != reading
	if len(l.ups) > 1 || ordered {
		for before := c.first; before != nil; before = before.next {
			if before.id == e.id && (ordered || before.up != e.up) {
				return false
			}
		}
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
	wordTwo, wordAny             = []byte("2"), []byte("*")
)

// send puts the request of c, which plan said e of, behind those before it.
func (l *loop) send(c *looped, e *entry) {
	u, r := e.up, &c.req
	if l.remembers && e.class != reading {
		e.at = time.Now() // that of the turn may be before the answer to the one before
	}
	switch op := e.cmd.op; {
	case op == opLoad:
		u.out = resp.AppendRequest(u.out, wordGet, l.key)
	case op == opExists && l.remembers: // what is there stands before what is written next
		u.out = resp.AppendRequest(u.out, wordGet, l.key)
	case op == opExists:
		u.out = resp.AppendRequest(u.out, wordExists, l.key)
	case e.class == locking:
		life, _ := l.s.lockLife(r.ttl)
		u.out = resp.AppendRequest(u.out, wordSet, l.key, r.data, wordNX, wordPX, l.millis(life))
	case op == opSave:
		u.out = resp.AppendRequest(u.out, wordSet, l.key, r.data, wordPX, l.left(r))
		if l.remembers {
			e.data, e.expires, e.base = append(e.data, r.data...), r.expires, c.reads.sum(e.id)
		}
	case op == opTouch:
		u.out = resp.AppendRequest(u.out, wordPExpire, l.key, l.left(r))
		e.expires = r.expires
	case op == opDelete && l.remembers:
		l.s.destroyed.begin(e.id)
		l.side = l.store.SideKey(l.side[:0], string(l.key))
		u.out = resp.AppendRequest(u.out, wordEvalSHA, l.remove, wordTwo, l.key, l.side, wordAny, l.life)
	case op == opDelete:
		l.s.destroyed.begin(e.id)
		u.out = resp.AppendRequest(u.out, wordDel, l.key)
	case op == opUnlock:
		u.out = resp.AppendRequest(u.out, wordEvalSHA, l.unlock, wordOne, l.key, []byte(r.token))
	}
	l.push(e)
	if c.first == nil {
		c.first = e
	} else {
		c.last.next = e
	}
	c.last = e
	c.listed++
	c.inflight++
	c.flying += e.size
	c.class, c.alone = e.class, e.single()
}

// blank returns an entry that push may be given. It is the same one until then, and what is not cleared here is set where it
// matters.
func (l *loop) blank() *entry {
	if l.entries == nil || l.entries.used == len(l.entries.all) {
		if n := len(l.spares); n > 0 {
			l.entries, l.spares = l.spares[n-1], l.spares[:n-1]
		} else {
			l.entries = &batch{}
		}
	}
	e := &l.entries.all[l.entries.used]
	e.class, e.state, e.guarded = byHand, underway, false
	return e
}

// push notes that what was put into out last is the request of e.
func (l *loop) push(e *entry) {
	u := e.up
	e.end = u.taken + uint64(len(u.out)-u.sent)
	u.ring.push(e)
	e.of, e.next = l.entries, nil
	e.of.used++
	e.of.live++
}

// free takes back an entry that nobody has any more.
func (l *loop) free(e *entry) {
	if e.data = e.data[:0]; cap(e.data) > smallBuffer {
		e.data = nil
	}
	e.c = nil
	if e.of.live--; e.of.live == 0 {
		if e.of.used = 0; e.of != l.entries {
			l.spares = append(l.spares, e.of)
		}
	}
}

// left writes the lifetime that r gives, in milliseconds.
func (u *upstream) left(r *request) []byte {
	return u.millis(store.Record{Expires: r.expires}.Remaining(r.now))
}

func (u *upstream) millis(d time.Duration) []byte {
	u.number = strconv.AppendInt(u.number[:0], int64((d+time.Millisecond-1)/time.Millisecond), 10)
	return u.number
}

// flushUp sends what is to be sent. Nobody is answered by that: a connection that broke is given up when there are no more
// answers on it.
func (l *loop) flushUp(u *uplink) {
	if u.fd < 0 || u.eof || u.sent == len(u.out) {
		return
	}
	n, err := syscall.Write(u.fd, u.out[u.sent:])
	switch {
	case n > 0:
		u.sent += n
		u.taken += uint64(n)
	case err != unix.EAGAIN && err != unix.EINTR:
		u.eof, u.readable = true, true
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
			u.eof, u.readable = true, true
		}
	}
}

// replies takes what the store has answered.
func (l *loop) replies(u *uplink) {
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
			l.parseReplies(u)
		case err == unix.EAGAIN:
			u.readable = false
		case err == unix.EINTR:
		default:
			l.s.log.Warn("the store's connection is gone", "addr", u.addr)
			l.fail(u)
		}
	}
}

// parseReplies gives every complete reply to whom it belongs. What is not the answer to the first of those under way ends
// the connection: whatever came after it might be somebody else's.
func (l *loop) parseReplies(u *uplink) {
	for u.fd >= 0 && u.pos < len(u.in) {
		if u.skip > 0 {
			n := min(u.skip, len(u.in)-u.pos)
			u.pos, u.skip = u.pos+n, u.skip-n
			continue
		}
		if u.ring.n == 0 { // not even all of it: the rest would be somebody's answer
			l.outOfTurn(u)
			return
		}
		if len(u.in)-u.pos < u.need {
			return
		}
		v, n, need, err := resp.ParseReply(u.in[u.pos:], l.limits)
		if err == resp.ErrIncomplete {
			u.need = need
			return
		}
		u.need = 0
		switch e := u.ring.first(); {
		case err != nil:
			n := u.long(l.limits.Bulk)
			if n == 0 {
				return
			}
			if n < 0 || e.c == nil || e.cmd.op != opLoad {
				l.outOfTurn(u)
				return
			}
			u.skip = n
			u.ring.pop()
			u.shard.Leave()
			l.again(e, undone)
		case e.c == nil && (v.Kind == resp.Simple && string(v.Str) == "PONG" || v.Kind == resp.Error):
			u.pos += n
			l.free(u.ring.pop())
		case e.c != nil && v.Kind == resp.Error: // of Redis itself, also MOVED and the like: nothing was done
			u.pos += n
			u.ring.pop()
			u.shard.Leave()
			l.again(e, undone)
		case e.c != nil && e.fits(&v, l.remembers):
			u.pos += n
			u.ring.pop()
			l.reply(e, &v)
		default:
			l.outOfTurn(u)
			return
		}
	}
}

func (l *loop) outOfTurn(u *uplink) {
	l.s.log.Error("the store answers what it was not asked, connection given up", "addr", u.addr)
	l.fail(u)
}

// long reads the head of a value that is longer than the site allows, and returns how many bytes are to be skipped from
// there on: 0 where the head is not all there, and less where it is something else. A client that asks for such a value
// gets what a stream would get.
func (u *uplink) long(most int) int {
	rest := u.in[u.pos:]
	head, _, ended := bytes.Cut(rest[:min(len(rest), len("$536870912\r\n"))], []byte("\r\n"))
	size, ok := 0, len(head) > 1 && head[0] == '$' && head[1] != '0'
	for _, b := range bytes.TrimSuffix(head[min(1, len(head)):], []byte("\r")) {
		ok = ok && '0' <= b && b <= '9'
		size = 10*size + int(b-'0')
	}
	switch {
	case !ok || size <= most || size > 512<<20 || !ended && len(rest) > len(head):
		return -1
	case !ended:
		return 0
	}
	return len(head) + 2 + size + 2
}

// fits reports whether v can be the answer.
func (e *entry) fits(v *resp.Value, remembers bool) bool {
	switch e.cmd.op {
	case opLoad:
		return v.Kind == resp.Bulk
	case opExists:
		if remembers {
			return v.Kind == resp.Bulk
		}
	case opSave:
		return v.Kind == resp.Simple && string(v.Str) == "OK" || e.class == locking && v.Kind == resp.Bulk && v.Null
	case opUnlock:
		return v.Kind == resp.Array && len(v.Elems) == 2 && flag(&v.Elems[0]) && v.Elems[0].Int == 0 && flag(&v.Elems[1])
	case opDelete:
		if v.Kind == resp.Array {
			return len(v.Elems) == 4 && flag(&v.Elems[0]) && v.Elems[0].Int == 0 && flag(&v.Elems[1]) && v.Elems[2].Kind == resp.Bulk &&
				v.Elems[3].Kind == resp.Int
		}
	}
	return flag(v)
}

func flag(v *resp.Value) bool { return v.Kind == resp.Int && (v.Int == 0 || v.Int == 1) }

// reply makes a result of the store's answer, as exec does.
func (l *loop) reply(e *entry, v *resp.Value) {
	c, s := e.c, l.s
	l.current = c
	shard := e.up.shard
	defer shard.Leave() // who waits for that shall find noted what was answered
	if !shard.Trusted() {
		l.lost(e)
		return
	}
	if e.class == reading && (e.overtakes() || len(c.out)-c.sent+c.held > s.site.Limits.Output) {
		l.again(e, undone) // in its turn, and when the client has read
		return
	}
	if e.class == locking && v.Null {
		l.again(e, undone) // somebody has it who is not ours, and is waited for
		return
	}
	res := result{n: v.Int, found: v.Int == 1}
	switch e.cmd.op {
	case opLoad:
		res.found = !v.Null
		res.data, _ = store.Unflagged(v.Str)
	case opExists:
		if v.Kind == resp.Bulk && !v.Null {
			res.found, res.n = true, 1
		}
	case opSave:
		if res.found, res.n = true, 1; e.class == writing && l.remembers {
			l.store.Saved(e.id, e.data, e.expires, e.at, e.base)
		}
	case opTouch:
		if res.found {
			l.store.Touched(e.id, e.expires, e.at)
		}
	case opUnlock:
		res.n = v.Elems[1].Int
		l.store.Unlocked(e.id, c.req.token)
	case opDelete:
		if v.Kind == resp.Array {
			res.n, res.found = v.Elems[1].Int, v.Elems[1].Int == 1
			l.store.Deleted(e.id, e.at, store.Version(v.Elems[2].Str), uint64(v.Elems[3].Int))
		}
		s.destroyed.end(e.id, true, l.now)
		c.reads.forget(e.id)
		s.known.forget(e.id)
	}
	if e.class == reading {
		c.weight = max(len(v.Str), c.weight/2)
		s.readable(nil)
		if res.found {
			c.reads.note(e.id, e.began, s.sum(v.Str))
			if len(v.Str) > 0 {
				s.known.note(e.id)
			}
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
	l.supersede(e, res)
	switch {
	case e.class == locking && (res.err != nil || c.gone || c.eof && l.now.Sub(e.at) >= watchAfter): // as lock's watch would find
		id, token, came := e.id, c.req.token, result{err: res.err}
		l.free(l.take(c))
		l.hand(c, func() result {
			l.s.abandon(id, token)
			l.s.locks.pass(id)
			return came
		})
		return
	case e.class == locking:
		life, bound := l.s.lockLife(c.req.ttl)
		l.s.locks.took(e.id, c.req.token, life, &c.conn, bound)
		if l.remembers {
			l.store.Locked(e.id, c.req.token, l.now.Add(life))
		}
	case e.class == unlocking:
		l.s.locks.released(e.id, c.req.token) // where nobody knows, the next one asks the store
	case e.single() && !l.s.destroyed.calm(e.id, e.began):
		rec := store.Record{Data: c.req.data}
		if undo := l.s.undo(e.id, &rec); undo != nil {
			id, began, came := e.id, e.began, *res
			l.free(l.take(c))
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

// overtakes reports whether one before e, of the same session, is to be run by hand.
func (e *entry) overtakes() bool {
	if e.c.failed == 0 {
		return false
	}
	for before := e.c.first; before != e; before = before.next {
		if before.state >= undone && before.id == e.id {
			return true
		}
	}
	return false
}

// supersede answers those that e overtakes, of which res came, nil where nobody knows yet: they can only be run after it. What
// a write before it writes is older. Of two destroys the first one did it, as far as their client can tell.
func (l *loop) supersede(e *entry, res *result) {
	c := e.c
	destroyed := e.class == destroying && res != nil && res.err == nil
	for before := c.first; (e.class == writing || destroyed) && e.overtakes(); before = before.next {
		if before.state < undone || before.id != e.id {
			continue
		}
		came := result{err: errFailed}
		if before.state == unsure {
			came.err = errLost
			l.unresolved(before)
		}
		if destroyed {
			came, *res = *res, result{}
		}
		c.failed--
		l.keep(before, &came)
	}
	l.settle(c)
}

// unresolved is for what will not be found out about e.
func (l *loop) unresolved(e *entry) {
	if e.state == unsure && e.class == destroying {
		l.s.destroyed.end(e.id, false, l.now)
	}
}

// say answers e when it is its turn.
func (l *loop) say(e *entry, res *result) {
	c := e.c
	if e != c.first {
		l.keep(e, res)
		return
	}
	l.take(c)
	c.kept += e.size
	if !c.gone {
		l.soil(c)
		c.out = e.cmd.render(c.out, c.proto, res)
	}
	cmd, at := e.cmd, e.at
	l.free(e)
	c.done(cmd, res.outcome(cmd), at)
	l.settle(c)
}

// keep keeps the answer to e for when it is its turn.
func (l *loop) keep(e *entry, res *result) {
	c := e.c
	e.state = held
	if !c.gone {
		e.data = e.cmd.render(e.data[:0], c.proto, res)
		c.hold(len(e.data))
	}
	c.done(e.cmd, res.outcome(e.cmd), e.at)
}

// hold notes that n bytes more of answers are held.
func (c *looped) hold(n int) {
	before := max(0, c.held-freeBuffer)
	c.held += n
	c.charge(max(0, c.held-freeBuffer) - before)
}

// settle gives c the answers whose turn it is.
func (l *loop) settle(c *looped) {
	for c.first != nil && c.first.state == held {
		e := l.take(c)
		c.kept += e.size
		if !c.gone {
			l.soil(c)
			c.hold(-len(e.data))
			c.out = append(c.out, e.data...)
		}
		l.free(e)
	}
}

// take takes off the first request of c.
func (l *loop) take(c *looped) *entry {
	e := c.first
	c.first = e.next
	c.listed--
	c.flying -= e.size
	if e.state >= undone {
		c.failed--
	}
	return e
}

// again notes that e is to be run by hand: it was certainly not executed or is a read, or nobody knows.
func (l *loop) again(e *entry, why state) {
	c := e.c
	l.current = c
	c.inflight--
	switch {
	case e.class == destroying && why == undone:
		l.s.destroyed.end(e.id, false, l.now)
	case e.class == locking:
		l.s.locks.pass(e.id)
	}
	e.state = why
	c.failed++
	l.resume(c)
}

// resume goes on with c once nothing of it is under way.
func (l *loop) resume(c *looped) {
	if c.inflight > 0 {
		return
	}
	c.alone, c.active = false, l.now
	if c.first != nil {
		if c.first.state < undone {
			panic("answers are missing") // what would be parsed again might be anything
		}
		c.pos, c.need, c.began, c.hungry = c.kept, 0, time.Time{}, false
		c.closing = false // the client has sent all it will, but it has not got all it is owed
	}
	l.schedule(c)
	l.soil(c)
	l.bury(c)
}

// A ring is a queue of entries.
type ring struct {
	buf  []*entry // its length is a power of two
	head int
	n    int
}

func (r *ring) first() *entry { return r.buf[r.head] }

func (r *ring) push(e *entry) {
	if r.n == len(r.buf) {
		buf := make([]*entry, max(64, 2*r.n))
		n := copy(buf, r.buf[r.head:])
		copy(buf[n:], r.buf[:r.head])
		r.buf, r.head = buf, 0
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = e
	r.n++
}

func (r *ring) pop() *entry {
	e := r.buf[r.head]
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	return e
}
