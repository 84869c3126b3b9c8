package sessile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// A Session is that of one request. It may be used by several goroutines of the request, and not after it.
type Session[T any] struct {
	m        *Manager[T]
	r        *http.Request // as it came
	byHeader bool          // the token comes and goes in Options.Header, not in a cookie

	mu      sync.Mutex // guards what follows; held across calls of the store: operations of one request come one after the other
	w       writer
	token   token // what the client has, or is to have; "": none
	at      Key   // where the session lies, which is not where token says for who may not know its new token
	blind   bool  // it is not
	least   least // the version that the client knows of
	opened  bool
	sent    string // what the client has, as far as the response so far says
	rec     *record
	raw     []byte // what lies in the store; nil: nothing of ours
	value   T
	asOf    time.Time        // when the user logged in as far as this request may know; zero: as the record says
	ops     []func(*T) error // that are not saved
	tries   []attempt        // of unknown outcome: one may be executed when nobody waits for it any more
	dirty   bool             // something besides ops is not saved
	stale   bool             // value is without ops
	saved   time.Time        // when this request has saved, and so extended, it; zero: not
	ended   bool             // the handler has returned
	gone    bool             // destroyed, by another request
	dropOld bool             // the cookie of the Origin has done its work
}

const (
	maxTries = 30 // of a save that others get ahead of; Options.Timeout bounds it, too
	maxHops  = 99 // a session that is renewed more often than that within a grace is over for who has the oldest token
)

// open loads the session, once. Callers do not hold mu.
func (s *Session[T]) open(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil
	}
	if s.token != "" {
		start := time.Now()
		err := s.enter(ctx)
		s.m.saw(ctx, EventLoad, s.at, start, err)
		if err != nil {
			return err
		}
	}
	if s.rec == nil && !s.gone {
		if id := s.oldID(); id != "" {
			if err := s.adopt(ctx, id); err != nil {
				return err
			}
		}
	}
	s.opened = true
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

// enter finds the session that the token names.
func (s *Session[T]) enter(ctx context.Context) error {
	came := s.token
	for _, keys := range s.m.keys {
		s.token, s.at, s.blind = came, keys.session(came), false
		if s.m.near != nil && !s.byHeader {
			value, _ := s.m.opt.Cookie.read(s.r, leastCookie)
			s.least = parseLeast(value, s.at)
		}
		if err := s.load(ctx, &s.least); s.raw != nil || err != nil {
			return err
		}
	}
	return nil
}

// load reads what lies where the session is, and goes after one that was renewed. Where there is none, rec is nil. want is nil
// where a copy will not do.
func (s *Session[T]) load(ctx context.Context, want *least) (err error) {
	was := s.state()
	defer func() {
		if err != nil { // an outage, and not "no session": what the request does next, a logout, say, is done to the one that it has
			s.restore(was)
		}
	}()
	s.rec, s.raw = nil, nil
	rec, raw, err := s.look(ctx, want)
	for hop := 0; rec != nil && rec.kind == moved; hop++ {
		next, ok := decodeSuccessor(rec.body)
		if !ok || rec.over(time.Now()) || hop == maxHops {
			rec.kind = over
			break
		}
		switch {
		case s.blind:
		case len(next.sealed) == 0:
			s.blind, s.asOf = true, rec.login
		default:
			s.token = s.token.unseal(next.sealed, next.key)
		}
		s.at = next.key
		rec, raw, err = s.look(ctx, want)
	}
	if s.raw = raw; rec == nil || err != nil {
		return err
	}
	if rec.kind != live {
		s.gone = true
		return nil
	}
	s.stale = len(s.ops) > 0
	if d := s.m.memo.get(s.at, raw); d != nil && d.rec == rec {
		s.rec, s.value = rec, d.value
		return nil
	}
	var none T
	s.value = none
	if err := s.m.decode(rec, &s.value); err != nil {
		s.value = none
		s.m.log.Warn("sessile: a session cannot be decoded, and counts as none", "error", err)
		s.m.saw(ctx, EventUndecodable, s.at, time.Time{}, err)
		return nil
	}
	s.rec = rec
	s.m.memo.put(s.at, raw, rec, s.value)
	return nil
}

// look is find for where the session is, or a copy of that.
func (s *Session[T]) look(ctx context.Context, want *least) (rec *record, raw []byte, err error) {
	if want == nil || s.m.near == nil {
		return s.m.find(ctx, s.at)
	}
	got, err := s.m.near.get(ctx, s.at, want)
	if err != nil {
		return nil, nil, failed(err)
	}
	return s.m.read(ctx, s.at, got)
}

// find returns the record under key, be it over, nil where there is none that counts: nothing, or a session whose time is over. raw is
// what lies there, nil for nothing.
func (m *Manager[T]) find(ctx context.Context, key Key) (rec *record, raw []byte, err error) {
	got, err := m.st.Load(ctx, string(key))
	if err != nil {
		return nil, nil, failed(err)
	}
	return m.read(ctx, key, got)
}

// failed is what a store's error is to who looks for a session: nil where there is none.
func failed(err error) error {
	if errors.Is(err, store.ErrAbsent) {
		return nil
	}
	return fmt.Errorf("sessile: load: %w", err)
}

// read makes of what lies under key what find returns.
func (m *Manager[T]) read(ctx context.Context, key Key, got store.Record) (rec *record, raw []byte, err error) {
	if raw = got.Data; raw == nil {
		raw = []byte{}
	}
	if d := m.memo.get(key, raw); d != nil {
		rec = d.rec
	} else if rec, err = m.ring.decode(key, raw, m.opt.AcceptPlain); err != nil {
		m.log.Warn("sessile: what lies under a session's key is none, and counts as none", "error", err)
		m.saw(ctx, EventUndecodable, key, time.Time{}, err)
		return nil, raw, nil
	}
	if rec.past(got) {
		return nil, raw, nil
	}
	return rec, raw, nil
}

// past reports whether the time of a session is over, which lies in the store as got.
func (r *record) past(got store.Record) bool {
	now := time.Now()
	return r.kind == live && (r.over(now) || !got.Expires.IsZero() && !now.Before(got.Expires))
}

// versionOf is the version of what find has found.
func versionOf(raw []byte) store.Version {
	if raw == nil {
		return store.Absent
	}
	return store.VersionOf(raw, 0)
}

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
	switch {
	case s.rec == nil:
		return "", time.Time{}
	case !s.asOf.IsZero():
		return s.rec.user, s.asOf
	}
	return s.rec.user, s.rec.login
}

// Fresh reports whether somebody has logged in within the last d: what is dearer than the rest of the site (a new password, a payment)
// asks for the password again where nobody has (ASVS 7.5.3), and calls Login again.
func (s *Session[T]) Fresh(d time.Duration) bool {
	user, since := s.User()
	return user != "" && time.Since(since) < d
}

// Update runs change on the value, and has what it did saved before the response begins. Where another request has saved something
// meanwhile, change is run again, on that: so it should do nothing else. What it returns is returned, and then nothing is changed.
// (It is made twice in one case: where the store has done a save and its answer was lost, and another request has saved since.)
//
// After the response has begun the change is saved when the request ends if the browser has the session's cookie already, and
// otherwise refused with ErrLate. ErrGone: another request has destroyed the session a moment ago, or somebody has logged in in it. Then
// there is nothing to change, and nothing new is begun: its cookie would take the place of the one that the browser got by that.
// ErrCrossSite: there is no session, and another site's page has embedded this.
func (s *Session[T]) Update(change func(v *T) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return ErrGone
	case s.ended, s.w.begun && (s.rec == nil || !s.known()):
		return ErrLate
	case s.rec == nil && s.embedded():
		return ErrCrossSite
	}
	returned := false
	defer func() {
		if !returned { // it has panicked: nothing is changed
			_ = s.again()
		}
	}()
	err := change(&s.value)
	if returned = true; err != nil {
		if again := s.again(); again != nil {
			return errors.Join(err, again)
		}
		return err
	}
	s.make()
	s.ops = append(s.ops, change)
	return nil
}

// embedded reports whether the request is for what a page of another site embeds, an image or a script, whoever its user is (Fetch Metadata).
// The page has not asked, and a cookie of ours that came with the answer would not be kept, but one with SameSite=None.
func (s *Session[T]) embedded() bool {
	h := s.r.Header
	return h.Get("Sec-Fetch-Site") == "cross-site" && h.Get("Sec-Fetch-Mode") == "no-cors" && s.m.opt.Cookie.SameSite != http.SameSiteNoneMode
}

// known reports whether the client has the token.
func (s *Session[T]) known() bool {
	return s.sent == string(s.token)
}

// fresh is again where one of the changes could not be made on what others have saved.
func (s *Session[T]) fresh() error {
	if !s.stale {
		return nil
	}
	return s.again()
}

// again makes the value of what was loaded and of all changes since. Where one of them panics they are dropped, and not attempted once more.
func (s *Session[T]) again() error {
	s.stale = true
	returned := false
	defer func() {
		if !returned {
			s.ops, s.tries, s.dirty = nil, nil, false
			_ = s.replay()
		}
	}()
	err := s.replay()
	returned = true
	return err
}

func (s *Session[T]) replay() error {
	var v T
	if s.rec != nil && s.rec.body != nil {
		if err := s.m.decode(s.rec, &v); err != nil {
			return err
		}
	}
	for _, op := range s.ops {
		if err := op(&v); err != nil {
			return err
		}
	}
	s.value, s.stale = v, false
	return nil
}

// make has a session be there that is not.
func (s *Session[T]) make() {
	if s.rec != nil {
		return
	}
	s.rec = s.m.newRecord(time.Now())
	s.token, s.raw, s.dirty = newToken(""), nil, true // never one that came with the request: nobody chooses another's id
	s.at, s.blind = s.m.keys[0].session(s.token), false
}

// newRecord is that of a session that begins now.
func (m *Manager[T]) newRecord(now time.Time) *record {
	rec := &record{incarnation: newIncarnation(), created: now}
	if m.opt.Absolute > 0 {
		rec.end = now.Add(m.opt.Absolute)
	}
	return rec
}

// life is how long a session may last from now on, if nobody uses it.
func (m *Manager[T]) life(rec *record) time.Duration {
	life := m.opt.Idle
	if !rec.end.IsZero() {
		life = min(life, time.Until(rec.end))
	}
	return life
}

// next is the record that is to follow, with the value as it is now.
func (s *Session[T]) next() (*record, error) {
	body, err := s.m.opt.Codec.Marshal(s.value)
	if err != nil {
		return nil, fmt.Errorf("sessile: the codec: %w", err)
	}
	next := *s.rec
	next.version, next.body, next.codec = next.version+1, body, s.m.opt.Codec.ID()
	if s.m.life(&next) <= 0 { // its absolute deadline has passed during the request
		return nil, s.over()
	}
	return &next, nil
}

// An attempt to save is what may lie in the store, and how many of the ops are in it.
type attempt struct {
	raw []byte
	ops int
}

// written notes that next lies in the store, as raw.
func (s *Session[T]) written(next *record, raw []byte) {
	s.rec, s.raw = next, raw
	s.tries, s.ops, s.dirty, s.saved = nil, nil, false, time.Now()
	s.m.touched.note(s.at, s.saved)
}

// encode is rec as it is to lie under key.
func (m *Manager[T]) encode(key Key, rec *record) ([]byte, error) {
	if m.opt.WritePlain {
		return rec.encode(), nil
	}
	return m.ring.encode(key, rec)
}

// write has rec lie under key if cond holds. raw is what lies there then.
func (m *Manager[T]) write(ctx context.Context, key Key, rec *record, life time.Duration, cond store.Condition) (raw []byte, err error) {
	if raw, err = m.encode(key, rec); err != nil {
		return nil, err
	}
	err = m.st.Save(ctx, string(key), store.Record{Data: raw, Expires: time.Now().Add(life)}, cond)
	m.near.drop(key)
	return raw, err
}

// over has there be no session any more, which somebody else has destroyed, and drops what was changed in it.
func (s *Session[T]) over() error {
	var none T
	s.gone, s.rec, s.value, s.ops, s.dirty = true, nil, none, nil, false
	return ErrGone
}

// Save saves what was changed, now. Without it that is done before the response begins.
func (s *Session[T]) Save(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(ctx)
}

// changed reports whether there is something to save.
func (s *Session[T]) changed() bool {
	return s.rec != nil && !s.gone && (len(s.ops) > 0 || s.dirty)
}

func (s *Session[T]) save(ctx context.Context) (err error) {
	if !s.changed() {
		return nil
	}
	kind := EventSave
	if s.raw == nil {
		kind = EventCreate
	}
	defer func(start time.Time) { s.m.saw(ctx, kind, s.at, start, err) }(time.Now())
	if err := s.fresh(); err != nil {
		return err
	}
	for try := 0; ; try++ {
		was, isNew := *s.rec, s.raw == nil
		next, err := s.next()
		if err != nil {
			return err
		}
		raw, err := s.m.write(ctx, s.at, next, s.m.life(next), store.IfVersion(versionOf(s.raw)))
		if err == nil {
			s.written(next, raw)
			return nil
		}
		err = fmt.Errorf("sessile: save: %w", err)
		unknown := errors.Is(err, store.ErrUnknown)
		if !unknown && (isNew && s.tries == nil || !errors.Is(err, store.ErrConflict)) || try == maxTries {
			return err // a new id of 160 random bits is nobody's
		}
		if unknown {
			s.tries = append(s.tries, attempt{raw, len(s.ops)})
		}
		// Others write it at this moment, too: not all of them again at the same time.
		if !backOff(ctx, try) {
			return err
		}
		if lerr := s.load(ctx, nil); lerr != nil {
			return errors.Join(err, lerr)
		}
		switch {
		case s.rec == nil && isNew && !s.gone: // it was not made
			s.rec, s.raw = &was, nil
		case s.rec == nil || s.rec.incarnation != was.incarnation:
			return s.over()
		}
		if i := slices.IndexFunc(s.tries, func(a attempt) bool { return bytes.Equal(s.raw, a.raw) }); i >= 0 {
			s.ops, s.tries, s.dirty, s.saved = s.ops[s.tries[i].ops:], nil, false, time.Now()
			if len(s.ops) == 0 {
				s.stale = false
				return nil
			}
		}
		s.m.saw(ctx, EventConflict, s.at, time.Time{}, nil)
		if err := s.again(); err != nil {
			return err
		}
	}
}

// atHeader is what is done before the header of the response is sent.
func (s *Session[T]) atHeader(ctx context.Context, h http.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.w.begun = true }() // under mu: another goroutine of the request may be in Update
	if !s.opened {
		return nil
	}
	var err error
	if s.changed() || s.renewable() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
		defer cancel()
		err = s.save(ctx)
	}
	if err == nil && s.renewable() && !s.w.hijacked && s.r.Context().Err() == nil { // else nobody gets the new one
		if rerr := s.renew(ctx); errors.Is(rerr, ErrGone) {
			err = rerr
		} else if rerr != nil { // it goes on under the token that it has
			s.m.log.Warn("sessile: a session could not be given a new token", "error", rerr)
		}
	}
	send := s.rec != nil && !s.blind && !s.known() // blind: the browser has got a token that lasts longer
	if send && time.Since(s.saved) > soon && err == nil {
		send = s.lasts(ctx)
	}
	switch {
	case errors.Is(err, ErrGone):
		s.m.log.Info("sessile: the session was destroyed while a request was using it, and what that has changed is dropped")
		s.m.saw(ctx, EventGone, s.at, time.Time{}, err)
	case err != nil:
		s.m.log.Error("sessile: a session could not be saved, and its request is answered so", "error", err)
		return err
	case send:
		s.send(h, string(s.token))
	case s.token == "" && s.sent != "" && !s.gone: // by this request: the cookie of a session that somebody else has ended may be another one by now
		s.send(h, "")
	}
	if s.m.near != nil && !s.byHeader && s.rec != nil && !s.blind && s.known() && (!s.saved.IsZero() || !s.least.known) {
		s.m.opt.Cookie.set(h, leastCookie, least{s.rec.version, true}.value(s.at), s.cookieLife())
	}
	if s.dropOld && s.m.origin.apart(&s.m.opt.Cookie) {
		s.m.origin.drop(h)
	}
	return nil
}

// soon is for how long nobody else is looked for who may have logged in with the token that this request has found, made or saved.
const soon = 100 * time.Millisecond

// lasts reports whether a token that this request has not just saved is still the session's: by a login meanwhile the browser has got
// another one, whose place it would take.
func (s *Session[T]) lasts(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
	defer cancel()
	was := s.state()
	err := s.load(ctx, nil)
	same := err == nil && s.rec != nil && !s.blind && s.token == was.token
	s.restore(was)
	return same || err != nil && !s.saved.IsZero() // whoever has saved it, and cannot ask, has no other one
}

func (s *Session[T]) send(h http.Header, given string) {
	s.sent = given
	if s.byHeader {
		s.m.opt.sendHeader(h, given)
		return
	}
	s.m.opt.Cookie.set(h, "", given, s.cookieLife())
}

// cookieLife is how long a cookie that stays may last: it is not sent again when the session is extended.
func (s *Session[T]) cookieLife() time.Duration {
	if s.rec == nil || s.rec.end.IsZero() {
		return maxAge
	}
	return time.Until(s.rec.end)
}

// atEnd is what is done when the handler has returned: what it has changed late is saved, and a session that was used lasts longer.
func (s *Session[T]) atEnd(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true // of a handler that http.TimeoutHandler does not wait for, say
	if !s.opened || s.rec == nil || s.gone || s.w.drop {
		return
	}
	now := time.Now()
	touch := s.m.touched.due(s.at, now) && !(!s.saved.IsZero() && s.m.opt.TouchEvery < 0)
	if !touch && !s.changed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.m.opt.Timeout)
	defer cancel()
	if err := s.save(ctx); err != nil {
		s.m.touched.forget(s.at)
		s.m.log.Error("sessile: what was changed behind the beginning of the response could not be saved", "error", err)
		return
	}
	if !touch {
		return
	}
	err := s.m.st.Touch(ctx, string(s.at), now.Add(s.m.life(s.rec)))
	s.m.near.drop(s.at) // a copy has the old deadline
	if errors.Is(err, store.ErrAbsent) {
		err = nil
	}
	if err != nil {
		s.m.touched.forget(s.at)
		s.m.log.Warn("sessile: a session could not be extended", "error", err)
	}
	s.m.saw(ctx, EventTouch, s.at, now, err)
}
