package sessile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// A Session is that of one request. It may be used by several goroutines of the request, and not after it.
type Session[T any] struct {
	m *Manager[T]

	mu      sync.Mutex // guards what follows; held across calls of the store: operations of one request come one after the other
	w       *writer
	token   token // what the request came with, or has now; "": none
	opened  bool
	sent    token // what the browser has, as far as the response so far says
	rec     *record
	version store.Version // of what lies in the store; Absent: nothing of ours
	value   T
	ops     []func(*T) error // that are not saved
	dirty   bool             // something besides ops is not saved
	tried   store.Version    // of the last save
	gone    bool             // destroyed, by another request
}

const maxTries = 10

// open loads the session, once. Callers do not hold mu.
func (s *Session[T]) open(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil
	}
	if s.token != "" {
		if err := s.load(ctx); err != nil {
			return err
		}
	}
	s.opened = true
	s.sent = s.token
	return nil
}

// backOff waits before another try, and reports whether ctx goes on.
func backOff(ctx context.Context, try int) bool {
	select {
	case <-time.After(rand.N(time.Millisecond << min(try, 5))):
		return true
	case <-ctx.Done():
		return false
	}
}

// load reads the session of s.token. Where there is none, rec is nil.
func (s *Session[T]) load(ctx context.Context) error {
	s.rec, s.version = nil, store.Absent
	rec, version, err := s.m.find(ctx, s.key())
	if rec == nil || err != nil {
		return err
	}
	if rec.kind != live {
		s.gone = true
		return nil
	}
	var v T
	if err := s.m.opt.Codec.Unmarshal(rec.body, &v); err != nil {
		s.m.log.Warn("sessile: a session cannot be decoded, and counts as none", "error", err)
		return nil
	}
	s.rec, s.version, s.value = rec, version, v
	return nil
}

// find returns what lies under key, be it over, and its version; nil where there is nothing, nothing that counts, or a session whose
// time is over.
func (m *Manager[T]) find(ctx context.Context, key Key) (*record, store.Version, error) {
	got, err := m.st.Load(ctx, string(key))
	switch {
	case errors.Is(err, store.ErrAbsent):
		return nil, store.Absent, nil
	case err != nil:
		return nil, store.Absent, fmt.Errorf("sessile: load: %w", err)
	}
	rec, err := m.ring.decode(key, got.Data)
	if err != nil {
		m.log.Warn("sessile: what lies under a session's key is none, and counts as none", "error", err)
		return nil, store.Absent, nil
	}
	now := time.Now()
	if rec.kind == live && (rec.over(now) || !got.Expires.IsZero() && !now.Before(got.Expires)) {
		return nil, store.Absent, nil
	}
	return rec, got.Version(), nil
}

func (s *Session[T]) key() Key { return s.token.key(s.m.opt.Secret) }

// Value returns the session's value as this request sees it, with its own changes: T's zero value where there is no session. What
// is reached through its pointers, maps and slices is shared: change it by Update.
func (s *Session[T]) Value() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value
}

// Exists reports whether the session lies in the store, or will when the request has ended.
func (s *Session[T]) Exists() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec != nil
}

// User returns who is logged in, and since when; "" for nobody.
func (s *Session[T]) User() (id string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec == nil {
		return "", time.Time{}
	}
	return s.rec.user, s.rec.login
}

// Update runs change on the value, and has what it did saved before the response begins. Where another request has saved something
// meanwhile, change is run again, on that: so it should do nothing else. What it returns is returned, and then nothing is changed.
//
// After the response has begun the change is saved when the request ends if the browser has the session's cookie already, and
// otherwise refused with ErrLate. ErrGone: another request has destroyed the session a moment ago, or renewed it by a login. Then
// there is nothing to change, and nothing new is begun: its cookie would take the place of the one that the browser got by that.
func (s *Session[T]) Update(change func(v *T) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return ErrGone
	case s.w.begun && (s.rec == nil || s.token != s.sent):
		return ErrLate
	}
	if err := change(&s.value); err != nil {
		if again := s.again(); again != nil {
			return errors.Join(err, again)
		}
		return err
	}
	s.make()
	s.ops = append(s.ops, change)
	return nil
}

// again makes the value of what was loaded and of all changes since.
func (s *Session[T]) again() error {
	var v T
	if s.rec != nil && s.rec.body != nil {
		if err := s.m.opt.Codec.Unmarshal(s.rec.body, &v); err != nil {
			return fmt.Errorf("sessile: the codec: %w", err)
		}
	}
	for _, op := range s.ops {
		if err := op(&v); err != nil {
			return err
		}
	}
	s.value = v
	return nil
}

// make has a session be there that is not.
func (s *Session[T]) make() {
	if s.rec != nil {
		return
	}
	now := time.Now()
	s.rec = &record{incarnation: newIncarnation(), created: now}
	if s.m.opt.Absolute > 0 {
		s.rec.end = now.Add(s.m.opt.Absolute)
	}
	s.token, s.version, s.dirty = newToken(), store.Absent, true // never one that came with the request: nobody chooses another's id
}

// Login makes the session user's, under a new id (ASVS 7.2.4): who knew the old one, from before, has nothing. What was in it
// stays, and its timeouts begin anew. It is saved when Login returns.
func (s *Session[T]) Login(ctx context.Context, user string) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case user == "" || len(user) > maxUser:
		return fmt.Errorf("sessile: the name of a user has 1 to %d bytes", maxUser)
	case s.w.begun:
		return ErrLate
	}
	old := &Session[T]{m: s.m, token: s.token, rec: s.rec, version: s.version, ops: s.ops} // what it is made of
	token, rec, version, value, ops, dirty, gone := s.token, s.rec, s.version, s.value, s.ops, s.dirty, s.gone
	defer func() {
		if err != nil { // nobody is logged in by what comes later
			s.token, s.rec, s.version, s.value, s.ops, s.dirty, s.gone = token, rec, version, value, ops, dirty, gone
		}
	}()
	for try := 0; ; try++ {
		s.rec, s.gone = nil, false
		s.make()
		s.rec.user, s.rec.login = user, s.rec.created
		if err := s.m.enlist(ctx, user, s.key(), s.rec.created); err != nil {
			return err
		}
		if err := s.put(ctx, store.IfAbsent); err != nil {
			return err
		}
		if old.rec == nil || old.version == store.Absent {
			return nil
		}
		// The old one ends, if it is still what this one was made of.
		err := s.m.bury(ctx, old.key(), old.rec, store.IfVersion(old.version))
		if err == nil {
			return nil
		}
		_, _ = s.m.st.Delete(ctx, string(s.key()), store.Always) // nobody was told of it; if not now, it ends by itself
		if !errors.Is(err, store.ErrConflict) || try == maxTries {
			return fmt.Errorf("sessile: login: %w", err)
		}
		ops := old.ops
		if err := old.load(ctx); err != nil {
			return err
		}
		if old.rec != nil { // another request has changed it
			if old.ops = ops; old.again() == nil {
				s.value = old.value
			}
		} // else one has ended it, perhaps by another login: who logs in now is logged in all the same, with what he had
	}
}

// graveLife is how long a session that was destroyed is known to be: longer than a request takes that was under way then.
const graveLife = 2 * time.Minute

// Logout destroys the session: no request that is under way can bring it back. It is done when it returns, also where the client
// is gone.
func (s *Session[T]) Logout(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec != nil && s.version != store.Absent {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
		defer cancel()
		if err := s.m.bury(ctx, s.key(), s.rec, store.Always); err != nil {
			return fmt.Errorf("sessile: logout: %w", err)
		}
	}
	var none T
	s.rec, s.version, s.ops, s.dirty, s.value, s.token = nil, store.Absent, nil, false, none, ""
	return nil
}

// bury leaves in the place of a session that it is over.
func (m *Manager[T]) bury(ctx context.Context, key Key, rec *record, cond store.Condition) error {
	now := time.Now()
	end := &record{kind: over, incarnation: rec.incarnation, created: now}
	data, err := m.ring.encode(key, end)
	if err != nil {
		return err
	}
	return m.st.Save(store.Replicated(ctx), string(key), store.Record{Data: data, Expires: now.Add(graveLife)}, cond)
}

// life is how long the session may last from now on, if nobody uses it.
func (s *Session[T]) life() time.Duration {
	life := s.m.opt.Idle
	if !s.rec.end.IsZero() {
		life = min(life, time.Until(s.rec.end))
	}
	return life
}

// put writes the session if cond holds for what is there.
func (s *Session[T]) put(ctx context.Context, cond store.Condition) error {
	body, err := s.m.opt.Codec.Marshal(s.value)
	if err != nil {
		return fmt.Errorf("sessile: the codec: %w", err)
	}
	next := *s.rec
	next.version, next.body = (next.version+1)&0xffffff, body
	life := s.life()
	if life <= 0 { // its absolute deadline has passed during the request
		s.gone = true
		return ErrGone
	}
	data, err := s.m.ring.encode(s.key(), &next)
	if err != nil {
		return err
	}
	s.tried = store.VersionOf(data, 0)
	err = s.m.st.Save(ctx, string(s.key()), store.Record{Data: data, Expires: time.Now().Add(life)}, cond)
	if err != nil {
		return fmt.Errorf("sessile: save: %w", err)
	}
	s.rec, s.version = &next, s.tried
	s.ops, s.dirty = nil, false
	s.m.touched.note(s.key(), time.Now())
	return nil
}

// Save saves what was changed, now. Without it that is done before the response begins.
func (s *Session[T]) Save(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(ctx)
}

func (s *Session[T]) save(ctx context.Context) error {
	if s.gone || s.rec == nil || len(s.ops) == 0 && !s.dirty {
		return nil
	}
	for try := 0; ; try++ {
		was, ops, isNew := *s.rec, s.ops, s.version == store.Absent
		err := s.put(ctx, store.IfVersion(s.version))
		unknown := errors.Is(err, store.ErrUnknown)
		if err == nil || !unknown && (isNew || !errors.Is(err, store.ErrConflict)) || try == maxTries {
			return err // a new id of 160 random bits is nobody's
		}
		// Others write it at this moment, too: not all of them again at the same time.
		if !backOff(ctx, try) {
			return err
		}
		if lerr := s.load(ctx); lerr != nil {
			s.rec, s.ops = &was, ops
			return errors.Join(err, lerr)
		}
		s.ops = ops
		switch {
		case s.rec == nil && isNew && !s.gone: // it was not made
			s.rec, s.version = &was, store.Absent
		case s.rec == nil || s.rec.incarnation != was.incarnation:
			s.gone, s.rec, s.ops, s.dirty = true, nil, nil, false
			return ErrGone
		case unknown && s.version == s.tried:
			s.ops, s.dirty = nil, false
			return nil
		}
		if err := s.again(); err != nil {
			return err
		}
	}
}

// atHeader is what is done before the header of the response is sent.
func (s *Session[T]) atHeader(ctx context.Context, h http.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.opened {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
	defer cancel()
	err := s.save(ctx)
	switch {
	case errors.Is(err, ErrGone):
		s.m.log.Info("sessile: the session was destroyed while a request was using it, and what that has changed is dropped")
	case err != nil:
		s.m.log.Error("sessile: a session could not be saved, and its request is answered so", "error", err)
		return err
	case s.rec != nil && s.token != s.sent:
		s.m.opt.Cookie.set(h, s.token, s.life())
		s.sent = s.token
	case s.token == "" && s.sent != "" && !s.gone: // by this request: the cookie of a session that somebody else has ended may be another one by now
		s.m.opt.Cookie.set(h, "", 0)
		s.sent = ""
	}
	return nil
}

// atEnd is what is done when the handler has returned: what it has changed late is saved, and a session that was used lasts longer.
func (s *Session[T]) atEnd(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.opened || s.rec == nil || s.gone || s.w.drop {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
	defer cancel()
	if err := s.save(ctx); err != nil {
		s.m.log.Error("sessile: what was changed behind the beginning of the response could not be saved", "error", err)
		return
	}
	if now := time.Now(); s.m.touched.due(s.key(), now) {
		if err := s.m.st.Touch(ctx, string(s.key()), now.Add(s.life())); err != nil && !errors.Is(err, store.ErrAbsent) {
			s.m.log.Warn("sessile: a session could not be extended", "error", err)
		}
	}
}
