package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/memcache"
	"github.com/sessile/sessile/store"
)

// memcached is what a connection has besides where its client speaks memcached. Either protocol will do: its first byte says
// which.
type memcached struct {
	*front
	req    memcache.Request
	begun  bool
	binary bool
	skip   int           // bytes to come that belong to a refused request
	over   chan struct{} // closed when the connection has ended

	// may has the sessions that this connection has asked for: false where another page had the lock.
	may map[string]bool
}

const maxMay = 64

// note says whether what follows may write id.
func (m *memcached) note(id string, may bool) {
	if m.may == nil || len(m.may) >= maxMay {
		m.may = map[string]bool{}
	}
	m.may[id] = may
}

// memcachedVersion is whose answers ours are.
const memcachedVersion = "1.6.18"

// memcachedCommands are what Event.Command calls the operations.
var memcachedCommands = map[memcache.Op]*command{
	memcache.OpGet: {name: "get"}, memcache.OpGetTouch: {name: "gat"}, memcache.OpDebug: {name: "me"}, memcache.OpSet: {name: "set"},
	memcache.OpAdd: {name: "add"}, memcache.OpReplace: {name: "replace"}, memcache.OpAppend: {name: "append"},
	memcache.OpPrepend: {name: "prepend"}, memcache.OpDelete: {name: "delete"}, memcache.OpTouch: {name: "touch"},
	memcache.OpIncr: {name: "incr"}, memcache.OpDecr: {name: "decr"}, memcache.OpFlush: {name: "flush_all"},
	memcache.OpStats: {name: "stats"}, memcache.OpVersion: {name: "version"}, memcache.OpVerbosity: {name: "verbosity"},
	memcache.OpNoop: {name: "noop"}, memcache.OpQuit: {name: "quit"}, memcache.OpSASLList: {name: "sasl_list", free: true},
	memcache.OpSASLAuth: {name: "sasl_auth", free: true}, memcache.OpSASLStep: {name: "sasl_step", free: true},
}

var (
	errFlush = &memcache.Error{Reply: "CLIENT_ERROR flush_all not allowed", Status: memcache.StatusAuth} // as memcached -F
	errLogin = &memcache.Error{Reply: "CLIENT_ERROR", Status: memcache.StatusAuth}
	errStats = &memcache.Error{Reply: "CLIENT_ERROR sessile: statistics have no arguments here", Status: memcache.StatusInvalid}
	errCache = &memcache.Error{Reply: "CLIENT_ERROR sessile: a session has no flags of a cache", Status: memcache.StatusInvalid}
	errFlags = &memcache.Error{Reply: "SERVER_ERROR sessile: the stores of this site keep no flags", Status: memcache.StatusInvalid}
	errZlib  = &memcache.Error{Reply: "SERVER_ERROR sessile: this is not the zlib that its flags say", Status: memcache.StatusInvalid}
)

// speakMemcached makes c a connection of f's client.
func (c *stream) speakMemcached(f *front) {
	c.memcached = &memcached{front: f, over: make(chan struct{})}
	c.hold, c.lockWait = min(c.hold, f.hold), min(c.lockWait, f.lockWait)
}

// memcachedRequests is commands for a client that speaks memcached.
func (c *stream) memcachedRequests() (need int) {
	m, lim := c.memcached, memcache.Limits{Item: c.s.site.Limits.Value}
	if !c.authenticated {
		lim.Item = c.s.site.Limits.UnauthenticatedArg
	}
	for {
		drop := min(m.skip, len(c.in)-c.pos)
		c.pos, m.skip = c.pos+drop, m.skip-drop
		n, need, err := m.parse(c.in[c.pos:], lim)
		if err == memcache.ErrIncomplete {
			switch waits := c.pos < len(c.in) || m.skip > 0; {
			case !waits:
				c.began = time.Time{}
			case c.began.IsZero():
				c.began = c.clock()
			}
			return need
		}
		c.began = time.Time{}
		raw := c.in[c.pos:min(c.pos+n, len(c.in))]
		c.pos, m.skip = c.pos+len(raw), n-len(raw)
		if err != nil {
			c.refuseMemcached(err.(*memcache.Error))
		} else {
			c.serveMemcached(raw)
		}
		if c.closing || len(c.out) >= flushAt && !c.flush() {
			return 0
		}
	}
}

// isCopy: php-memcached sends this beside the same to the session's own server (memcached.sess_number_of_replicas). Where both are
// gateways, that one has done it, and a copy that was delayed would come over what was written since.
func (m *memcached) isCopy(k key) bool {
	return m.mutes && m.binary && m.req.Quiet && (m.req.Op == memcache.OpSet || m.req.Op == memcache.OpDelete) && !k.lock && !m.may[k.id]
}

func (m *memcached) parse(b []byte, lim memcache.Limits) (n, need int, err error) {
	if !m.begun && len(b) > 0 {
		m.begun, m.binary = true, memcache.IsBinary(b[0])
	}
	if m.binary {
		n, need, err = m.req.ParseBinary(b, lim)
		m.req.Mute = m.mutes && m.req.Quiet && m.req.Op == memcache.OpDelete
		return n, need, err
	}
	return m.req.ParseText(b, lim)
}

// refuseMemcached answers what is no request.
func (c *conn) refuseMemcached(e *memcache.Error) {
	c.out = c.memcached.req.AppendError(c.out, e)
	if !e.Close {
		c.done(unknown, store.OutcomeInvalid, c.clock())
		return
	}
	c.s.count.protocol.Add(1)
	c.closing = true
	if c.refused = e.Reply != ""; e.Security {
		c.foreign(nil)
	}
}

// serveMemcached runs and answers the request that was parsed from raw.
func (c *conn) serveMemcached(raw []byte) {
	m, r := c.memcached, &c.req
	now := c.clock()
	*r = request{site: &c.s.site, keys: r.keys[:0], cmd: memcachedCommands[m.req.Op], began: now, now: now}
	if !c.authenticated && !r.cmd.free { // also a get, so not a word
		c.closing = true
		return
	}
	for _, raw := range m.req.Keys {
		if m.req.Op == memcache.OpStats || r.cmd.free {
			break
		}
		k := m.key(r.site, raw)
		switch r.keys = append(r.keys, k); k.err {
		case errReserved:
			c.s.security(SecurityKey, c)
		case errForeign:
			c.s.stranger.Do(func() {
				c.s.log.Warn("a memcached client asks for keys that do not have its listener's prefix: is that what its settings say?", "prefix", string(m.prefix))
			})
		}
	}
	err := c.memcachedOp(raw)
	if err == nil || err == store.ErrAbsent {
		for _, k := range r.keys {
			if _, asked := m.may[k.id]; !asked && !k.lock && !m.isCopy(k) {
				m.note(k.id, true)
			}
		}
	}
	outcome := outcomeOf(err)
	if _, refused := errors.AsType[*memcache.Error](err); refused {
		outcome = store.OutcomeInvalid
	}
	c.done(r.cmd, outcome, r.began)
}

// memcachedOp runs the request and answers it.
//
// What cannot be read is answered by the end of the connection: PHP takes any error for an empty session, and writes that over the
// real one (clients.md, 6.4).
func (c *conn) memcachedOp(raw []byte) error {
	req := &c.memcached.req
	switch req.Op {
	case memcache.OpGet, memcache.OpGetTouch, memcache.OpDebug:
		err := c.appendItems()
		if e, ok := errors.AsType[*memcache.Error](err); ok {
			c.out = req.AppendError(c.out, e)
		} else if err != nil && !errors.Is(err, store.ErrAbsent) {
			c.closing = true
			for _, k := range c.req.keys {
				c.s.locks.givenUp(k.id, c)
			}
		}
		return err
	case memcache.OpFlush:
		return c.memcachedError(errFlush)
	case memcache.OpStats:
		return c.appendStats()
	case memcache.OpVersion:
		c.out = req.AppendText(c.out, memcachedVersion)
		return nil
	case memcache.OpSASLList:
		c.out = req.AppendText(c.out, "PLAIN")
		return nil
	case memcache.OpSASLAuth, memcache.OpSASLStep:
		// RFC 4616: whom to be, a name, a password, with NUL between them.
		parts := bytes.Split(req.Value, []byte{0})
		if string(req.Keys[0]) != "PLAIN" || len(parts) != 3 || !c.login(parts[1], parts[2]) {
			return c.memcachedError(errLogin)
		}
		c.out = req.AppendText(c.out, "Authenticated")
		return nil
	case memcache.OpQuit:
		c.closing = true
		fallthrough
	case memcache.OpNoop, memcache.OpVerbosity:
		c.out = req.AppendResult(c.out, memcache.Done, 0)
		return nil
	case memcache.OpIncr, memcache.OpDecr:
		if !c.req.keys[0].lock {
			return c.count()
		}
	}
	if k := c.req.keys[0]; k.lock && k.err == nil {
		return c.memcachedLock(k, raw)
	}
	res, cas, err := c.changeItem()
	if err != nil && res != memcache.Exists {
		return c.memcachedError(err)
	}
	c.out = req.AppendResult(c.out, res, cas)
	return err
}

// memcachedError answers a request that changes something, and has not.
func (c *conn) memcachedError(err error) error {
	e, ok := errors.AsType[*memcache.Error](err)
	if !ok {
		reason := strings.TrimPrefix(failure(err), "ERR ")
		if e = (&memcache.Error{Reply: "SERVER_ERROR " + reason, Status: memcache.StatusTemporary}); outcomeOf(err) == store.OutcomeInvalid {
			e.Status = memcache.StatusInvalid
		}
	}
	c.out = c.memcached.req.AppendError(c.out, e)
	return err
}

// casOf is the token by which a client names what it has read: 64 bits of its version, never 0.
func casOf(rec *store.Record) uint64 {
	v := rec.Version()
	n, _ := strconv.ParseUint(string(v[:min(len(v), 16)]), 16, 64)
	return max(n, 1)
}

// appendItems answers the gets. ErrAbsent: there was none of them.
func (c *conn) appendItems() (err error) {
	m, r, s := c.memcached, &c.req, c.s
	touch := m.req.Op == memcache.OpGetTouch
	if m.req.HasFlag('N') || m.req.HasFlag('R') {
		return errCache
	}
	if touch {
		if err := c.lasts(m.req.Exptime); err != nil {
			return err
		}
	}
	missing := true
	for i, k := range r.keys {
		rec, err := s.load(c, k)
		if err == nil && !k.lock && rec.Expires.IsZero() && (m.req.HasFlag('t') || m.req.Op == memcache.OpDebug) {
			rec, err = s.look(c, k.id)
		}
		if err == nil && touch && !k.lock {
			if _, err = s.move(c, k.id, r); errors.Is(err, store.ErrAbsent) {
				err = nil // it was there
			}
		}
		switch {
		case errors.Is(err, store.ErrAbsent):
			c.out = m.req.AppendResult(c.out, memcache.NotFound, 0)
			continue
		case err != nil:
			return err
		}
		it := memcache.Item{Value: rec.Data, Flags: rec.Flags, TTL: -1, Fetched: true}
		if k.lock {
			it.Value = lockTaken
		}
		if m.req.WantsCAS() {
			it.CAS = casOf(&rec)
		}
		if !rec.Expires.IsZero() {
			it.TTL = int64(max(0, rec.Remaining(r.now)) / time.Second)
		}
		c.out, missing = m.req.AppendItem(c.out, m.req.Keys[i], it), false
		if len(c.out) >= flushAt && !c.io.flush() {
			c.closing = true
			return nil
		}
	}
	c.out = m.req.AppendEnd(c.out)
	if missing {
		return store.ErrAbsent
	}
	return nil
}

// lasts sets the deadline that exptime says. A session that is to have none has the site's lifetime.
func (c *conn) lasts(exptime int64) error {
	r := &c.req
	if r.expires, _ = memcache.Deadline(exptime, r.now); !r.expires.IsZero() {
		return nil
	}
	if r.site.Lifetime == 0 {
		return errNoLifetime
	}
	r.expires = r.now.Add(r.site.Lifetime)
	return nil
}

// changeItem runs what is answered by a word.
func (c *conn) changeItem() (memcache.Result, uint64, error) {
	m, r, s := c.memcached, &c.req, c.s
	req, k := &m.req, r.keys[0]
	var res result
	switch {
	case req.Op == memcache.OpAdd && len(req.Value) == 0:
		return c.reserve(k)
	case k.err != nil:
		return 0, 0, k.err
	case req.HasFlag('I'):
		return 0, 0, errCache
	case m.isCopy(k):
		return memcache.Done, 0, nil
	case req.Op == memcache.OpTouch:
		if err := c.lasts(req.Exptime); err != nil {
			return 0, 0, err
		}
		s.touch(c, r, &res)
		return orNot(res.n == 1, memcache.NotFound), 0, res.err
	case req.Op == memcache.OpDelete && req.HasCAS:
		return c.revise(func(*store.Record) (*store.Record, error) { return nil, nil })
	case req.Op == memcache.OpDelete:
		existed, err := s.remove(c, k)
		return orNot(existed, memcache.NotFound), 0, err
	case req.Op == memcache.OpAppend || req.Op == memcache.OpPrepend:
		return c.revise(func(old *store.Record) (*store.Record, error) {
			if old == nil {
				return nil, nil
			}
			next := *old
			if next.Data = append(bytes.Clone(old.Data), req.Value...); req.Op == memcache.OpPrepend {
				next.Data = append(bytes.Clone(req.Value), old.Data...)
			}
			if len(next.Data) > s.site.Limits.Value {
				return nil, memcache.ErrTooLarge
			}
			return &next, nil
		})
	}
	if err := c.body(); err != nil {
		return 0, 0, err
	}
	if err := c.lasts(req.Exptime); err != nil {
		return 0, 0, err
	}
	if req.HasCAS {
		return c.revise(func(*store.Record) (*store.Record, error) {
			return &store.Record{Data: r.data, Flags: r.flags, Expires: r.expires}, nil
		})
	}
	switch req.Op {
	case memcache.OpAdd:
		r.only = ifAbsent
	case memcache.OpReplace:
		r.only = ifPresent
	default:
		if m.blanks {
			return c.setUnlessBlank(k)
		}
	}
	s.save(c, r, &res)
	return orNot(res.found, memcache.NotStored), c.casOfData(), res.err
}

// setUnlessBlank is the set of a client that writes blanks: an empty session with what its page put in it, where it got no lock in
// time, or no answer and comes back on another connection. Over a session that is there it writes only what it has read. It is
// told so as by a wrong CAS: an error would be one of the server, which it then asks nothing for a while.
func (c *conn) setUnlessBlank(k key) (memcache.Result, uint64, error) {
	s, r := c.s, &c.req
	var res result
	switch may, asked := c.memcached.may[k.id]; {
	case may:
		s.save(c, r, &res)
		return memcache.Done, c.casOfData(), res.err
	case !asked && !s.destroyed.since(s.ctx, k.id, 0):
		r.only = ifAbsent
		if s.save(c, r, &res); res.found || res.err != nil {
			return memcache.Done, c.casOfData(), res.err
		}
		// It may be the copy of what has been written through another gateway (memcache.session_redundancy).
		if rec, err := s.load(c, k); err == nil && bytes.Equal(rec.Data, r.data) {
			return memcache.Done, c.casOfData(), nil
		}
	}
	s.count.dropped.Add(1)
	return memcache.Exists, 0, store.ErrConflict
}

func orNot(done bool, not memcache.Result) memcache.Result {
	if done {
		return memcache.Done
	}
	return not
}

// casOfData is the token of what was written, for who wants to know it.
func (c *conn) casOfData() uint64 {
	if !c.memcached.req.WantsCAS() {
		return 0
	}
	return casOf(&store.Record{Data: c.req.data, Flags: c.req.flags})
}

// body takes the value as it is to lie in the store. php-memcache's long ones come compressed; they are kept as any other handler
// would have written them, and read by php-memcache as well.
func (c *conn) body() (err error) {
	m := c.memcached
	switch c.req.data = m.req.Value; {
	case m.req.Flags == 0:
		return nil
	case m.zlib && m.req.Flags == memcache.FlagZlib:
		if c.req.data, err = memcache.Inflate(m.req.Value, c.s.site.Limits.Value); errors.Is(err, memcache.ErrNotZlib) {
			err = errZlib
		}
		return err
	case c.s.site.Store.Capabilities().Flags:
		c.req.flags = m.req.Flags
		return nil
	}
	return errFlags
}

// reserve is add of an empty item, by which php-memcached makes an id that nobody else gets. With a deadline that is over it is
// how it asks, in strict mode, whether there is such a session: then nothing is stored. Whatever is not known there is: any
// failure would be a new id, and the user logged out (clients.md, 6.4).
func (c *conn) reserve(k key) (memcache.Result, uint64, error) {
	r, s := &c.req, c.s
	at, gone := memcache.Deadline(c.memcached.req.Exptime, r.now)
	if gone {
		there, err := s.exists(c, k)
		return orNot(!there && err == nil, memcache.NotStored), 0, nil
	}
	if k.err != nil {
		return 0, 0, k.err
	}
	if at.IsZero() { // it is that of the lock, and so is the life of one that asks for none
		at = r.now.Add(s.site.LockLife)
	}
	if err := c.body(); err != nil {
		return 0, 0, err
	}
	err := s.put(c, k.id, store.Record{Expires: at, Flags: r.flags}, store.IfAbsent)
	switch {
	case errors.Is(err, store.ErrConflict), store.Failed(err):
		return memcache.NotStored, 0, nil
	case err != nil:
		return 0, 0, err
	}
	return memcache.Done, c.casOfData(), nil
}

// revise is a write of what next makes of the session, if that is what the client says it is.
func (c *conn) revise(next func(old *store.Record) (*store.Record, error)) (res memcache.Result, cas uint64, err error) {
	req := &c.memcached.req
	absent := memcache.NotFound
	if req.Op == memcache.OpAppend || req.Op == memcache.OpPrepend {
		absent = memcache.NotStored
	}
	err = c.s.revise(c, c.req.keys[0].id, func(old *store.Record) (*store.Record, error) {
		switch {
		case old == nil:
			res = absent
			return old, nil
		case req.HasCAS && req.CAS != casOf(old):
			res = memcache.Exists
			return old, nil
		}
		rec, err := next(old)
		if res = memcache.Done; rec != nil {
			cas = casOf(rec)
		}
		return rec, err
	})
	return res, cas, err
}

// count is incr and decr of what is no lock. PHP's handlers do not do so.
func (c *conn) count() error {
	m, r := c.memcached, &c.req
	req := &m.req
	k := r.keys[0]
	if k.err != nil {
		return c.memcachedError(k.err)
	}
	var n, cas uint64
	res := memcache.Done
	err := c.s.revise(c, k.id, func(old *store.Record) (*store.Record, error) {
		next := store.Record{}
		switch {
		case old == nil && !req.Create:
			res = memcache.NotFound
			return nil, nil
		case old == nil:
			n = req.Initial
			if err := c.lasts(req.Exptime); err != nil {
				return nil, err
			}
			next.Expires = r.expires
		case req.HasCAS && req.CAS != casOf(old):
			res = memcache.Exists
			return old, nil
		default:
			was, err := strconv.ParseUint(string(old.Data), 10, 64)
			if err != nil {
				return nil, memcache.ErrNotNumber
			}
			if n = was + req.Delta; req.Op == memcache.OpDecr {
				n = was - min(was, req.Delta)
			}
			next = *old
		}
		next.Data = strconv.AppendUint(nil, n, 10)
		cas = casOf(&next)
		return &next, nil
	})
	switch {
	case err != nil:
		return c.memcachedError(err)
	case res != memcache.Done:
		c.out = req.AppendResult(c.out, res, 0)
	default:
		c.out = req.AppendNumber(c.out, n, cas)
	}
	return nil
}

// lockTaken is what a lock holds, and lockFree what php-memcache sets it to to release it.
var lockTaken, lockFree = []byte("1"), []byte("0")

// memcachedLock runs what is about a lock. php-memcached adds it and deletes it. php-memcache sends incr, add and get together: in the
// binary protocol incr takes it, making it 1; in text there is nothing to incr, and add takes it. It releases it by setting it to 0.
//
// A failure closes the connection: neither PHP then has a session, and neither writes one.
func (c *conn) memcachedLock(k key, raw []byte) (err error) {
	m, s := c.memcached, c.s
	// While a lock is waited for, what the client sends moves the buffer.
	raw = bytes.Clone(raw)
	if _, _, err := m.parse(raw, memcache.Limits{Item: s.site.Limits.Value}); err != nil {
		return c.memcachedError(errLockKey)
	}
	req := &m.req
	var took, held bool
	switch {
	case req.Op == memcache.OpAdd && len(req.Value) > 0, req.Op == memcache.OpIncr && req.Create:
		at, gone := memcache.Deadline(req.Exptime, c.req.now)
		var life time.Duration // none
		switch {
		case gone:
			return c.memcachedError(errLockKey)
		case !at.IsZero():
			life = at.Sub(c.req.now)
		}
		if took, err = s.lock(c, k.id, fmt.Sprintf("%s:%016x", m.client, rand.Uint64()), life); err != nil {
			c.closing = true
			return err
		}
		if _, by := s.locks.taken(k.id); took {
			delete(m.may, k.id) // the get that follows says it
		} else if m.blanks && by != c {
			m.note(k.id, false)
		}
		if req.Op == memcache.OpAdd {
			c.out = req.AppendResult(c.out, orNot(took, memcache.NotStored), 1)
		} else if took {
			c.out = req.AppendNumber(c.out, 1, 1)
		} else {
			c.out = req.AppendNumber(c.out, 2, 1)
		}
		return nil
	case req.Op == memcache.OpIncr:
		c.out = req.AppendResult(c.out, memcache.NotFound, 0)
		return nil
	case req.Op == memcache.OpDelete && !req.HasCAS:
		held, err = s.letGo(c, k.id)
		if err == nil {
			c.out = req.AppendResult(c.out, orNot(held, memcache.NotFound), 0)
			return nil
		}
	case req.Op == memcache.OpSet && !req.HasCAS && bytes.Equal(req.Value, lockFree):
		// Who has it not has let go of it. php-memcache releases also what it never got.
		if may, asked := m.may[k.id]; may || !asked {
			_, err = s.letGo(c, k.id)
		}
		if err == nil {
			c.out = req.AppendResult(c.out, memcache.Done, 1)
			return nil
		}
	case req.Op == memcache.OpTouch:
		if _, err = s.load(c, k); err == nil || absent(err) {
			c.out = req.AppendResult(c.out, orNot(err == nil, memcache.NotFound), 1) // its life cannot be changed
			return nil
		}
	default:
		err = errLockKey
	}
	return c.memcachedError(err)
}

func (c *conn) appendStats() error {
	req, n, now := &c.memcached.req, c.s.Stats(), c.req.now
	if len(req.Keys) > 0 {
		return c.memcachedError(errStats)
	}
	for _, stat := range []struct {
		name  string
		value int64
	}{
		{"pid", int64(os.Getpid())}, {"uptime", int64(now.Sub(c.s.started) / time.Second)}, {"time", now.Unix()},
		{"curr_connections", n.Open}, {"total_connections", int64(n.Accepted)}, {"rejected_connections", int64(n.Refused)},
	} {
		c.out = req.AppendStat(c.out, stat.name, strconv.FormatInt(stat.value, 10))
	}
	c.out = req.AppendStat(c.out, "version", memcachedVersion)
	c.out = req.AppendEnd(c.out)
	return nil
}
