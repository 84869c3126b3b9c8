package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

// A result is what came of a request.
type result struct {
	found  bool // something was there, or a condition held
	n      int64
	data   []byte
	values [][]byte // of several keys; nil where there is none
	err    error
}

// exec runs r for c.
func (s *Server) exec(c *conn, r *request) (res result) {
	if r.unsure {
		s.resolve(c, r, &res)
		return res
	}
	switch r.cmd.op {
	case opLoad:
		res.value(s.load(c, r.keys[0]))
	case opLoads:
		s.loads(c, r, &res)
	case opExists:
		for i, k := range r.keys {
			there, err := s.exists(c, k)
			if err != nil { // nor could the others be known, and each of them would be waited for
				res.n += int64(len(r.keys) - i)
				break
			}
			if there {
				res.n++
			}
		}
	case opInspect:
		s.inspect(c, r, &res)
	case opSave:
		if k := r.keys[0]; k.err != nil {
			res.err = k.err
		} else if k.lock {
			res.found, res.err = s.lock(c, k.id, r.token, r.ttl)
		} else {
			s.save(c, r, &res)
		}
		if res.found && !r.get {
			res.n = 1
		}
	case opTouch:
		s.touch(c, r, &res)
	case opLoadTouch:
		s.loadTouch(c, r, &res)
	case opTake:
		s.take(c, r, &res)
	case opDelete:
		for _, k := range r.keys {
			existed, err := s.remove(c, k)
			if err != nil && !absent(err) {
				res.err = err
				return res
			}
			if existed {
				res.n++
			}
		}
	case opUnlock:
		s.release(c, r, &res)
	case opSorted:
		s.accessSet(r, &res)
	case opPass:
		s.pass(c, r, &res)
	}
	return res
}

// value takes what a load returned.
func (res *result) value(rec store.Record, err error) {
	if errors.Is(err, store.ErrAbsent) {
		return
	}
	res.data, res.found, res.err = rec.Data, err == nil, err
}

// outcome is what is told of a command that came to res.
func (res *result) outcome(cmd *command) store.Outcome {
	if cmd.op == opLoad && !res.found && res.err == nil {
		return store.OutcomeAbsent
	}
	return outcomeOf(res.err)
}

// render writes the answer.
func (r *request) render(b []byte, proto int, res *result) []byte {
	switch {
	case res.err != nil:
	case r.get:
		return appendValue(b, proto, res.data, res.found)
	case r.orNull && res.n == 0:
		return resp.AppendNull(b, proto)
	case r.cmd.reply == replyRaw:
		return append(b, res.data...)
	case r.cmd.reply == replyMembers:
		return appendMembers(b, proto, res.values, r.sorted.withScores)
	case r.cmd.reply == replyScore || r.sorted != nil && r.sorted.step != "":
		return appendScore(b, proto, res.data, res.found)
	}
	return r.cmd.render(b, proto, res)
}

// render writes the answer as it is where no option of the request changes it.
func (c *command) render(b []byte, proto int, res *result) []byte {
	switch {
	case res.err != nil:
		return resp.AppendError(b, failure(res.err))
	case c.reply == replyBulk:
		return appendValue(b, proto, res.data, res.found)
	case c.reply == replyBulks:
		b = resp.AppendArrayLen(b, len(res.values))
		for _, v := range res.values {
			b = appendValue(b, proto, v, v != nil)
		}
		return b
	case c.reply == replyType && res.found:
		return resp.AppendSimple(b, "string")
	case c.reply == replyType:
		return resp.AppendSimple(b, "none")
	case c.reply == replyLength:
		return resp.AppendInt(b, int64(len(res.data)))
	case c.reply == replyOK && res.found:
		return resp.AppendSimple(b, "OK")
	case c.reply == replyOK:
		return resp.AppendNull(b, proto)
	}
	return resp.AppendInt(b, res.n)
}

func appendValue(b []byte, proto int, data []byte, found bool) []byte {
	if !found {
		return resp.AppendNull(b, proto)
	}
	return resp.AppendBulk(b, data)
}

func (s *Server) load(c *conn, k key) (rec store.Record, err error) {
	if k.err != nil {
		return rec, k.err
	}
	if k.lock {
		token, _, err := s.holder(c, k.id)
		return store.Record{Data: []byte(token)}, err
	}
	var began uint64
	rec, err = read(s, c, func(ctx context.Context) (store.Record, error) {
		began = s.destroyed.now()
		return s.site.Store.Load(ctx, k.id)
	})
	s.readable(err)
	switch {
	case err == nil:
		c.reads.note(k.id, began, s.sum(store.Flagged(rec.Data, rec.Flags)))
		if len(rec.Data) > 0 {
			s.known.note(k.id)
		}
		if s.site.SlidingWithoutTTL && s.touches.due(k.id, rec.Expires, time.Now()) {
			// The session was read; that its deadline did not move is no reason to say otherwise.
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			_ = s.site.Store.Touch(ctx, k.id, time.Now().Add(s.site.Lifetime))
			cancel()
		}
	case errors.Is(err, store.ErrAbsent):
		c.reads.forget(k.id)
	}
	return rec, err
}

func (s *Server) loads(c *conn, r *request, res *result) {
	size := 0
	for _, k := range r.keys {
		rec, err := s.load(c, k)
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			res.err = err
			return
		}
		var data []byte
		if err == nil {
			if data = rec.Data; data == nil {
				data = []byte{} // empty is not absent
			}
		}
		if size += len(data); size > s.site.Limits.Output {
			res.err = errTooLarge
			return
		}
		res.values = append(res.values, data)
	}
}

// exists says whether there is such a session; err: that cannot be known. EXISTS never fails: in PHP's strict mode every
// failure of it is a new session id, and the user logged out (clients.md, 4.4). What cannot be known exists, and the GET
// that follows fails harmlessly.
func (s *Server) exists(c *conn, k key) (there bool, err error) {
	if errors.Is(k.err, errForeign) {
		return true, nil // the site's prefix is configured wrongly, and nobody is to be logged out for that
	}
	_, err = s.load(c, k)
	refused := (*store.RefusedError)(nil)
	switch {
	case errors.As(err, &refused): // it is there, and is no session
		return true, nil
	case absent(err):
		return false, nil
	}
	return err == nil, err
}

// look is Inspect with patience.
func (s *Server) look(c *conn, id string) (rec store.Record, err error) {
	rec, err = read(s, c, func(ctx context.Context) (store.Record, error) { return s.site.Store.Inspect(ctx, id) })
	s.readable(err)
	return rec, err
}

// inspect answers TTL and its like: -2 for no session, -1 for no deadline.
func (s *Server) inspect(c *conn, r *request, res *result) {
	k := r.keys[0]
	rec, err := store.Record{}, k.err
	switch {
	case err != nil:
	case k.lock:
		var left time.Duration
		if _, left, err = s.holder(c, k.id); left > 0 {
			rec.Expires = r.now.Add(left)
		}
	default:
		rec, err = s.look(c, k.id)
	}
	per := int64(r.cmd.unit() / time.Millisecond) // seconds are rounded, as in Redis
	switch {
	case err != nil && absent(err):
		res.n = -2
	case err != nil:
		res.err = err
	case rec.Expires.IsZero():
		res.n = -1
	case r.absolute:
		res.n = (rec.Expires.UnixMilli() + per/2) / per
	default:
		res.n = (max(0, rec.Remaining(r.now).Milliseconds()) + per/2) / per
	}
}

// resolve finds out what became of a write of one session of which no answer came. What was not done is not done now: it
// may be on its way.
func (s *Server) resolve(c *conn, r *request, res *result) {
	id, done := r.keys[0].id, false
	memory := s.site.Store.(Memory) // of an Upstream: nobody else is asked on a loop
	defer func() { memory.Resolved(res.err == nil) }()
	look := func(do func(ctx context.Context) (bool, error)) {
		if done, res.err = read(s, c, do); !done {
			res.err = errUndone
		}
	}
	switch r.cmd.op {
	case opSave:
		rec := store.Record{Data: r.data, Expires: r.expires}
		look(func(ctx context.Context) (bool, error) { return memory.ResolveSave(ctx, id, rec) })
		if began, guarded := c.reads.last(id); guarded {
			if undo := s.undo(id, &rec); undo != nil {
				s.overtaken(id, began, res.err, undo)
			}
		}
	case opTouch: // twice is once
		s.touch(c, r, res)
		return
	case opUnlock: // it releases nobody else's, and what it finds released was its own
		if s.release(c, r, res); res.err == nil {
			res.n = 1
		}
		return
	case opDelete: // which is under way still for who comes meanwhile
		look(func(ctx context.Context) (bool, error) { return memory.ResolveDelete(ctx, id) })
		if s.destroyed.end(id, done, time.Now()); done {
			c.reads.forget(id)
			s.known.forget(id)
		}
	}
	if done {
		res.found, res.n = true, 1
	}
}

// errUndone: what is there is not what was written.
var errUndone = fmt.Errorf("no answer came, and it does not look done: %w", store.ErrUnknown)

// sum stands for what was read, where somebody remembers it.
func (s *Server) sum(data []byte) uint64 {
	if s.recall == nil {
		return 0
	}
	return s.recall.Sum(data)
}

// save is SET in all its forms but the lock.
func (s *Server) save(c *conn, r *request, res *result) {
	id := r.keys[0].id
	rec := store.Record{Data: r.data, Flags: r.flags, Expires: r.expires}
	if r.get || r.keep || !r.expires.After(r.now) {
		s.replace(c, r, rec, res)
		return
	}
	cond := store.Always
	switch {
	case r.only&ifAbsent != 0:
		cond = store.IfAbsent
	case r.only&ifPresent != 0:
		cond = store.IfPresent
	}
	err := s.put(c, id, rec, cond)
	if r.only != 0 && errors.Is(err, store.ErrConflict) {
		return
	}
	res.found, res.err = err == nil, err
}

func (s *Server) put(c *conn, id string, rec store.Record, cond store.Condition) error {
	base := c.reads.sum(id)
	err := s.update(c, id, func(ctx context.Context) error {
		if base != 0 {
			ctx = s.recall.Base(ctx, base)
		}
		return s.site.Store.Save(s.mark(ctx, id), id, rec, cond)
	}, s.undo(id, &rec))
	if err == nil && len(rec.Data) > 0 { // an empty one is a reservation: what makes it a session is still to come
		s.known.note(id)
	}
	return err
}

// undo returns what removes rec again, nil where the store cannot.
func (s *Server) undo(id string, rec *store.Record) func(ctx context.Context) error {
	if !s.site.Store.Capabilities().Conditional {
		return nil
	}
	return func(ctx context.Context) error {
		_, err := s.site.Store.Delete(ctx, id, store.IfVersion(rec.Version()))
		return err
	}
}

// maxReplace bounds how often a read-and-write that somebody else got in between is begun again.
const maxReplace = 4

// replace is SET where what was there before matters: with GET, with KEEPTTL, and with a deadline that is over.
func (s *Server) replace(c *conn, r *request, rec store.Record, res *result) {
	stays := false
	err := s.revise(c, r.keys[0].id, func(old *store.Record) (*store.Record, error) {
		*res = result{found: old != nil}
		if old != nil {
			res.data = old.Data
		}
		if stays = old != nil && r.only&ifAbsent != 0 || old == nil && r.only&ifPresent != 0; stays {
			return old, nil
		}
		if r.keep {
			rec.Expires = r.now.Add(s.site.Lifetime)
			if old != nil && !old.Expires.IsZero() {
				rec.Expires = old.Expires
			} else if s.site.Lifetime == 0 {
				return nil, errNoLifetime
			}
		}
		return &rec, nil
	})
	there := res.found
	res.err = err
	if stays {
		res.found = there && r.get
	} else {
		res.found = err == nil && (there || !r.get)
	}
}

// revise writes what next makes of the session as it is, nil where there is none. What has its deadline behind it is deleted;
// old itself is left as it is.
func (s *Server) revise(c *conn, id string, next func(old *store.Record) (*store.Record, error)) error {
	for range maxReplace {
		var old *store.Record
		switch was, err := s.look(c, id); {
		case err == nil:
			old = &was
		case !errors.Is(err, store.ErrAbsent):
			return err
		}
		rec, err := next(old)
		if err != nil || rec == old {
			return err
		}
		cond := store.IfVersion(old.Version())
		if rec != nil && rec.Expires.After(time.Now()) {
			err = s.put(c, id, *rec, cond)
		} else {
			_, err = s.destroy(c, id, cond)
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return store.ErrConflict
}

func (s *Server) touch(c *conn, r *request, res *result) {
	there, err := s.expire(c, r)
	switch {
	case there:
		res.n = 1
	case err != nil && !absent(err):
		res.err = err
	}
}

// absent reports whether err says that there is no such session, or cannot be one.
func absent(err error) bool {
	return errors.Is(err, store.ErrAbsent) || errors.Is(err, store.ErrInvalid)
}

// expire is EXPIRE and its like.
func (s *Server) expire(c *conn, r *request) (there bool, err error) {
	k := r.keys[0]
	switch {
	case k.err != nil:
		return false, k.err
	case k.lock && !r.expires.After(r.now):
		return s.remove(c, k)
	case k.lock: // its life cannot be changed
		_, err := s.load(c, k)
		return err == nil, err
	case r.only != 0:
		rec, err := s.look(c, k.id)
		if err != nil || !r.only.allows(rec.Expires, r.expires) {
			return false, err
		}
	}
	return s.move(c, k.id, r)
}

// move gives id the request's deadline; one that is over deletes, as in Redis.
func (s *Server) move(c *conn, id string, r *request) (there bool, err error) {
	if !r.expires.After(r.now) {
		return s.destroy(c, id, store.Always)
	}
	err = s.update(c, id, func(ctx context.Context) error { return s.site.Store.Touch(ctx, id, r.expires) }, nil)
	return err == nil, err
}

// allows says whether EXPIRE's options let the deadline be moved.
func (o only) allows(old, next time.Time) bool {
	switch {
	case o&ifAbsent != 0 && !old.IsZero(), o&ifPresent != 0 && old.IsZero():
		return false
	case o&ifLater != 0:
		return !old.IsZero() && next.After(old)
	case o&ifEarlier != 0:
		return old.IsZero() || next.Before(old)
	}
	return true
}

func (s *Server) loadTouch(c *conn, r *request, res *result) {
	k := r.keys[0]
	res.value(s.load(c, k))
	if !res.found || r.expires.IsZero() {
		return
	}
	if k.lock {
		*res = result{err: errLockKey}
		return
	}
	if _, err := s.move(c, k.id, r); err != nil && !errors.Is(err, store.ErrAbsent) {
		*res = result{err: err}
	}
}

// take is GETDEL: exactly one of several takers gets the session, where the store can compare.
func (s *Server) take(c *conn, r *request, res *result) {
	k := r.keys[0]
	if k.lock {
		res.err = errLockKey
		return
	}
	for range maxReplace {
		*res = result{}
		rec, err := s.load(c, k)
		if res.value(rec, err); !res.found {
			return
		}
		cond := store.Always
		if s.site.Store.Capabilities().Conditional {
			cond = store.IfVersion(rec.Version())
		}
		if _, res.err = s.destroy(c, k.id, cond); !errors.Is(res.err, store.ErrConflict) {
			return
		}
	}
}

// remove is DEL of one key. That of a lock releases it, whoever holds it.
func (s *Server) remove(c *conn, k key) (existed bool, err error) {
	switch {
	case k.err != nil:
		return false, k.err
	case !k.lock:
		return s.destroy(c, k.id, store.Always)
	case c.memcached != nil:
		return s.letGo(c, k.id)
	}
	token, _, err := s.holder(c, k.id)
	if err != nil {
		return false, err
	}
	return s.unlock(c, k.id, token)
}

// destroy deletes, and remembers it for the writes that come late. c itself may make the session again.
func (s *Server) destroy(c *conn, id string, cond store.Condition) (existed bool, err error) {
	done := false
	s.destroyed.begin(id)
	defer func() { s.destroyed.end(id, done, time.Now()) }()
	err = s.write(c, id, func(ctx context.Context) (err error) {
		if s.critical.destroy {
			ctx = store.Replicated(ctx)
		}
		existed, err = s.site.Store.Delete(ctx, id, cond)
		return err
	})
	if done = err == nil; done {
		c.reads.forget(id)
		s.known.forget(id)
	}
	return existed, err
}

// touches says when a session's deadline is to be moved on.
type touches struct {
	lifetime time.Duration

	mu       sync.Mutex // guards the maps: when a session was touched; those that last has are forgotten next
	now, old map[string]time.Time
}

const maxTouches = 1 << 16

// due reports whether a tenth of the lifetime is over since the last touch, as far as that is known.
func (t *touches) due(id string, expires, now time.Time) bool {
	every := t.lifetime / 10
	if !expires.IsZero() && expires.Sub(now) > t.lifetime-every {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.now[id]
	if !ok {
		at, ok = t.old[id]
	}
	if ok && now.Sub(at) < every {
		return false
	}
	if t.now == nil || len(t.now) >= maxTouches {
		t.now, t.old = map[string]time.Time{}, t.now
	}
	t.now[id] = now
	return true
}
