package sessile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// Login makes the session user's, under a new token (ASVS 7.2.4): who knew the old one, from before, has nothing. What was in it
// stays, but for what was saved while another user was logged in, and its timeouts begin anew. It is saved when Login returns.
//
// Who logs in again in his own session gets a new token, too. Requests of his other windows that are under way with the old one go on
// until the end of Options.Grace, in the same session, but as of the login before (Session.Fresh), and never learn the new token.
//
// ErrTooMany: the user has Options.MaxSessions already, and no more are wanted (Options.RefuseMore).
func (s *Session[T]) Login(ctx context.Context, user string) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case user == "" || len(user) > maxUser:
		return fmt.Errorf("sessile: the name of a user has 1 to %d bytes", maxUser)
	case s.w.begun:
		return ErrLate
	case s.embedded():
		return ErrCrossSite
	}
	defer func(start time.Time) { s.m.saw(ctx, EventLogin, s.at, start, err) }(time.Now())
	if s.tries != nil { // else what they have done would be done again
		if err := s.save(ctx); err != nil && !errors.Is(err, ErrGone) {
			return err
		}
	}
	if err := s.fresh(); err != nil {
		return err
	}
	was := s.state()
	defer func() {
		if err != nil { // nobody is logged in by what comes later
			s.restore(was)
		}
	}()
	if s.gone { // what it has gone on as, where its token is over, is nobody's any more: who would have it logs in here
		at := s.at
		if s.m.opt.RefuseMore { // it would count
			s.m.forget(ctx, at)
		}
		defer func() {
			if err == nil {
				s.m.forget(ctx, at)
			}
		}()
	}
	now := time.Now()
	for try := 0; ; try++ {
		next := s.m.newRecord(now)
		next.user, next.login = user, now
		old := placed{s.at, s.rec, s.raw}
		switch {
		case s.gone:
			old = placed{}
		case old.rec == nil || old.rec.user == "":
		case old.rec.user != user:
			if err := s.empty(); err != nil {
				return err
			}
		case s.blind: // another login has come first, whose answer may come last: both last
			old = placed{}
		default:
			next.incarnation, next.version = old.rec.incarnation, old.rec.version
		}
		s.rec, s.gone = next, false
		err := s.move(ctx, old, true)
		if err == nil || !errors.Is(err, store.ErrConflict) {
			return err
		}
		if try == maxTries || !backOff(ctx, try) {
			return fmt.Errorf("sessile: login: %w", err)
		}
		if s.rec = old.rec; old.raw == nil {
			s.rec = was.rec
			continue
		}
		if err := s.load(ctx, nil); err != nil {
			return err
		}
		if s.rec != nil { // another request has changed it
			if err := s.again(); err != nil {
				return err
			}
		} // else one has ended it, perhaps by another login: who logs in now is logged in all the same, with what he had
	}
}

// empty makes the value of nothing and of all changes that are not saved.
func (s *Session[T]) empty() error {
	rec := s.rec
	s.rec = nil
	defer func() { s.rec = rec }()
	return s.again()
}

// A state is what Login and load change of a session.
type state[T any] struct {
	token token
	at    Key
	blind bool
	rec   *record
	raw   []byte
	value T
	asOf  time.Time
	stale bool
	ops   []func(*T) error
	dirty bool
	gone  bool
}

func (s *Session[T]) state() state[T] {
	return state[T]{s.token, s.at, s.blind, s.rec, s.raw, s.value, s.asOf, s.stale, s.ops, s.dirty, s.gone}
}

func (s *Session[T]) restore(was state[T]) {
	s.token, s.at, s.blind, s.rec, s.raw, s.value, s.asOf = was.token, was.at, was.blind, was.rec, was.raw, was.value, was.asOf
	s.stale, s.ops, s.dirty, s.gone = was.stale, was.ops, was.dirty, was.gone
}

// placed is a record and where it lies; rec and raw are nil where nothing does.
type placed struct {
	key Key
	rec *record
	raw []byte
}

// A line is what a session is under all its tokens.
type line struct {
	tag Key
	incarnation
}

// line returns that of a record that is there.
func (p placed) line() line { return line{p.key.tag(), p.rec.incarnation} }

// move has the session go on as s.rec with a new token, and the old one end, which is one step where the store can do that. It answers
// store.ErrConflict, with nothing done, where the old one is not any more what it was, and another attempt may do.
//
// Where a login makes another session of it, the old one is over. Otherwise it has moved, and who has its token goes on for a grace: by
// renewal with the new one, which he gets to know; by a login he does not.
func (s *Session[T]) move(ctx context.Context, old placed, login bool) error {
	m := s.m
	next, err := s.next()
	if err != nil {
		return err
	}
	oldToken := s.token
	tok := newToken("")
	if old.raw != nil { // in one slot, so that it can be one step
		tok = newToken(oldToken)
	}
	key := m.keys[0].session(tok)
	writes := []write{{key, next, m.life(next), store.IfAbsent}}
	if old.raw != nil {
		mark := &record{kind: over, created: time.Now()}
		if old.rec != nil {
			mark.incarnation = old.rec.incarnation
		}
		if old.rec != nil && old.rec.incarnation == next.incarnation {
			n := successor{key: key}
			if !login {
				n.sealed = oldToken.sealFor(tok, key)
			}
			mark.kind, mark.user, mark.login, mark.end, mark.body = moved, old.rec.user, old.rec.login, mark.created.Add(m.opt.Grace), n.encode()
		}
		writes = append(writes, write{old.key, mark, graveLife + m.opt.Grace, store.IfVersion(versionOf(old.raw))})
	}
	var list []indexEntry
	enlist := func() (err error) {
		if next.user != "" {
			list, err = m.enlist(store.Replicated(ctx), next.user, key, time.Now())
		}
		return err
	}
	listed := make(chan error, 1)
	refuse := login && m.opt.MaxSessions > 0 && m.opt.RefuseMore
	if refuse || old.rec != nil && old.rec.user != "" {
		// First of all: as soon as the old one says where it goes on, others are there, too, be it that this process is no more. And what is
		// over stays so: somebody may have ended it who has found that done.
		if err := enlist(); err != nil {
			return err
		}
		listed <- nil
	} else { // at once: nobody is there before both are done
		go func() { listed <- enlist() }()
	}
	if refuse {
		if err := m.mayBe(ctx, next.user, list, key, old.key); err != nil {
			m.forget(ctx, key) // nor does it count as one that is just being made
			return err
		}
	}
	raw, err := m.writeAll(ctx, writes)
	if lerr := <-listed; err == nil && lerr != nil {
		m.unlisted(ctx, writes, raw, old)
		return lerr
	}
	if err != nil {
		if errors.Is(err, store.ErrUnknown) { // the changes may be in there
			s.tries = append(s.tries, attempt{raw[0], len(s.ops)})
		}
		return err
	}
	s.token, s.at, s.blind, s.asOf = tok, key, false, time.Time{}
	s.written(next, raw[0])
	if login && !m.opt.RefuseMore {
		if err := m.trim(ctx, next.user, list, key); err != nil {
			m.log.Warn("sessile: a user has more sessions than he may have, and the oldest could not be ended", "error", err)
		}
	}
	return nil
}

// unlisted takes back a login whose session could not be put into the list, where nobody could find it to revoke it. The old session, in
// which nobody is logged in, comes back if it can, with what was in it.
func (m *Manager[T]) unlisted(ctx context.Context, writes []write, raw [][]byte, old placed) {
	m.forget(ctx, writes[0].key)
	if old.rec == nil || len(writes) == 1 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opt.Timeout)
	defer cancel()
	if _, err := m.write(ctx, old.key, old.rec, m.life(old.rec), store.IfVersion(versionOf(raw[1]))); err != nil {
		m.log.Warn("sessile: a login that has failed has ended the session from before", "error", err)
	}
}

// A write is what the library asks of a store.
type write struct {
	key  Key
	rec  *record
	life time.Duration
	cond store.Condition
}

// writeAll does one write or two: a new session, and what lies in the place of the old one then. It answers store.ErrConflict where
// nothing is done, and may be attempted anew with another key for the new session. It goes on though the client has gone.
func (m *Manager[T]) writeAll(ctx context.Context, writes []write) (raw [][]byte, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(store.Replicated(ctx)), m.opt.Timeout)
	defer cancel()
	batch := make([]store.Write, len(writes))
	now := time.Now()
	for i, w := range writes {
		data, err := m.encode(w.key, w.rec)
		if err != nil {
			return nil, err
		}
		raw = append(raw, data)
		batch[i] = store.Write{Key: string(w.key), Record: store.Record{Data: data, Expires: now.Add(w.life)}, Condition: w.cond}
	}
	defer func() {
		for _, w := range batch {
			m.near.drop(Key(w.Key))
		}
	}()
	err = errors.ErrUnsupported
	if m.batcher != nil && len(batch) > 1 {
		err = m.settle(ctx, batch[len(batch)-1], func() error { return m.batcher.SaveAll(ctx, batch) })
	}
	if errors.Is(err, errors.ErrUnsupported) {
		for _, w := range batch {
			if err = m.settle(ctx, w, func() error { return m.st.Save(ctx, w.Key, w.Record, w.Condition) }); err != nil {
				break
			}
		}
	}
	if err != nil && (!errors.Is(err, store.ErrUnknown) || len(writes) == 1) { // else the old one may have gone on as the new one
		m.forget(ctx, writes[0].key)
	}
	return raw, err
}

// settle does save until it is known what has become of it. last is its last write, which lies there when all is done, and which nobody
// replaces who has not seen all. What is executed when nobody waits for it any more does the same.
func (m *Manager[T]) settle(ctx context.Context, last store.Write, save func() error) error {
	unknown := false
	for try := 0; ; try++ {
		err := save()
		if err == nil || !errors.Is(err, store.ErrUnknown) && !unknown {
			return err
		}
		unknown = true
		got, lerr := m.st.Load(ctx, last.Key)
		switch {
		case lerr == nil && bytes.Equal(got.Data, last.Record.Data):
			return nil
		case errors.Is(err, store.ErrConflict) && (lerr == nil || errors.Is(lerr, store.ErrAbsent)):
			return err
		case try == maxTries || !backOff(ctx, try):
			return fmt.Errorf("%w: %v", store.ErrUnknown, err) // also where the last attempt has met the first
		}
	}
}

// forget has a session be over that nobody has the token of, also a new one that may still be written. If not now, it ends by itself.
func (m *Manager[T]) forget(ctx context.Context, key Key) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opt.Timeout)
	defer cancel()
	_, _ = m.end(ctx, placed{key: key}, nil)
}

// Renew gives the session a new token: after a change of what its user may do, say. Requests that are under way with the old one, and
// those that still come with it until the end of Options.Grace, go on in the session and get the new one.
func (s *Session[T]) Renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return ErrGone
	case s.rec == nil:
		return nil
	case s.w.begun:
		return ErrLate
	}
	if s.raw == nil { // its token is new, and nobody has it
		return s.save(ctx)
	}
	if s.tries != nil { // else what they have done would be done again
		if err := s.save(ctx); err != nil {
			return err
		}
	}
	return s.renew(ctx)
}

// renewable reports whether the token is to be changed now. A browser that does not keep the cookie of this response would have none.
func (s *Session[T]) renewable() bool {
	return s.m.opt.RenewEvery > 0 && !s.embedded() && s.rec != nil && s.raw != nil && !s.gone && !s.blind && time.Since(s.rec.since()) >= s.m.opt.RenewEvery
}

func (s *Session[T]) renew(ctx context.Context) (err error) {
	defer func(start time.Time) { s.m.saw(ctx, EventRenew, s.at, start, err) }(time.Now())
	if err := s.fresh(); err != nil {
		return err
	}
	for try := 0; ; try++ {
		if s.blind {
			return nil // it has a new one, which is not for everybody
		}
		tok, was := s.token, s.rec
		next := *s.rec
		next.renewed = time.Now()
		s.rec = &next
		err := s.move(ctx, placed{s.at, was, s.raw}, false)
		if err == nil {
			return nil
		}
		if s.gone {
			return err
		}
		s.rec = was
		if !errors.Is(err, store.ErrConflict) || try == maxTries || !backOff(ctx, try) {
			return err
		}
		if err := s.load(ctx, nil); err != nil {
			return err
		}
		if s.rec == nil || s.rec.incarnation != was.incarnation {
			return s.over()
		}
		if err := s.again(); err != nil {
			return err
		}
		if s.token != tok { // another request has done it
			return s.save(ctx)
		}
	}
}

// graveLife is how long a session that was destroyed is known to be: longer than a request takes that was under way then.
const graveLife = 2 * time.Minute

// Logout destroys the session: no request that is under way can bring it back. It is done when it returns, also where the client
// is gone. Where its token is over, but it is still known what the session has gone on as, it destroys that, and with an Origin also the
// session from before that the request has a cookie of. A request that takes longer than two minutes and Options.Grace, in which another
// one renews the session, does not find it any more.
func (s *Session[T]) Logout(ctx context.Context) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
	defer cancel()
	if s.raw != nil { // also one that cannot be read here: another process may; and one whose token is over, which may have gone on
		defer func(key Key, start time.Time) { s.m.saw(ctx, EventLogout, key, start, err) }(s.at, time.Now())
		p := placed{s.at, s.rec, s.raw}
		if s.gone {
			p = placed{key: s.at}
		}
		if _, err := s.m.end(ctx, p, nil); err != nil {
			return fmt.Errorf("sessile: logout: %w", err)
		}
	}
	if id := s.oldID(); id != "" {
		if err := s.endOld(ctx, id); err != nil {
			return err
		}
	}
	var none T
	s.rec, s.raw, s.ops, s.dirty, s.value, s.token = nil, nil, nil, false, none, ""
	return nil
}

// maxEnds bounds how often a session is written while it is to be destroyed.
const maxEnds = 100

// end leaves in the place of a session that it is over, and in that of what it goes on as where it was renewed meanwhile. ended is
// what was there, without a record where there was none. Those that are among spared stay.
func (m *Manager[T]) end(ctx context.Context, p placed, spared []line) (ended placed, err error) {
	ctx = store.Replicated(ctx)
	for try := 0; ; try++ {
		if p.rec != nil && (p.rec.kind == over || p.among(spared)) {
			return ended, nil
		}
		if p.rec != nil && p.rec.kind == moved {
			next, ok := decodeSuccessor(p.rec.body)
			if !ok {
				return ended, nil
			}
			p.key = next.key
		} else {
			grave := &record{kind: over, created: time.Now()}
			if p.rec != nil {
				grave.incarnation = p.rec.incarnation
			}
			_, err := m.write(ctx, p.key, grave, graveLife, store.IfVersion(versionOf(p.raw)))
			if err == nil {
				return p, nil
			}
			if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) || try == maxEnds || !backOff(ctx, min(try, 2)) {
				return placed{}, err
			}
			if ended = (placed{}); errors.Is(err, store.ErrUnknown) {
				ended = p // if it is over now
			}
		}
		if p.rec, p.raw, err = m.find(ctx, p.key); err != nil {
			return placed{}, err
		}
	}
}
