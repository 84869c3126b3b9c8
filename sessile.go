// Package sessile keeps sessions for net/http: typed, lazy, and right when two requests of one browser overlap.
//
//	type Cart struct{ Items []string }
//
//	sessions, err := sessile.New[Cart](memory.New(memory.Options{}), sessile.Options{})
//	...
//	mux.HandleFunc("POST /cart", func(w http.ResponseWriter, r *http.Request) {
//		s, err := sessions.Get(r) // one round trip, and none for who has no session
//		...
//		err = s.Update(func(c *Cart) error { c.Items = append(c.Items, r.FormValue("item")); return nil })
//	})
//	http.ListenAndServe(":8080", sessions.Handler(mux))
//
// What a request changes it says in functions (Update). They are run at once on what was loaded, and are run again, in their order,
// on what another request has saved meanwhile: no change is lost. What is saved before the response begins is saved
// conditionally: a session that was destroyed meanwhile (a logout in another tab) stays destroyed, and one that somebody else has
// renewed goes on under its new name.
package sessile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// Errors of sessions, to be matched with errors.Is. What a store cannot do comes as the errors of package store: one that matches
// store.ErrUnavailable or store.ErrUnknown is an outage, and never "no session".
var (
	// ErrGone: the session was destroyed while this request was using it. What the request has changed is dropped.
	ErrGone = errors.New("sessile: the session was destroyed meanwhile")
	// ErrLate: the response has begun, so that no cookie can be set any more. Nothing is changed.
	ErrLate = errors.New("sessile: too late: the response has begun")
	// ErrTooMany: the user has as many sessions as he may have (Options.MaxSessions, Options.RefuseMore).
	ErrTooMany = errors.New("sessile: the user has as many sessions as he may have")
	// ErrCrossSite: a page of another site has asked for an image or a script, and nothing is begun for that: browsers would not keep the cookie.
	ErrCrossSite = errors.New("sessile: no session is begun for what another site's page embeds")
	// ErrNoHandler: the request has not come through Manager.Handler.
	ErrNoHandler = errors.New("sessile: the request has not come through Handler of this Manager")
)

// Options of a Manager. The zero value of a field is its default.
type Options struct {
	// Idle is the time after which a session is over that nobody uses. The default is 30 minutes.
	Idle time.Duration
	// Absolute is the time after which every session is over. The default is 12 hours. Negative: no such limit (ASVS 7.3.2 asks for
	// the reason to be written down).
	Absolute time.Duration
	// TouchEvery is the least time between two extensions of one session by this process, less than Idle. 0 means a tenth of Idle; negative: at every
	// request, which costs a round trip each.
	TouchEvery time.Duration
	// RenewEvery gives a session that is used a new token when it has had the old one for so long, no less than Grace. 0: only Login and
	// Renew do.
	RenewEvery time.Duration
	// Grace is how long requests with the old token of a session that was renewed are served. The default is 30 s: a response with the new
	// one may be lost, and other windows have sent their requests already.
	Grace time.Duration
	// MaxSessions is how many sessions a user may be logged in in. When there are more the oldest ends, which costs a login one round trip more, or,
	// with RefuseMore, Login answers ErrTooMany, and costs two. 0 means 10,000, of which then the oldest ends.
	MaxSessions int
	RefuseMore  bool
	// Secret is what tokens are hashed with before they become keys of the store: the same in all processes of a site. The default is
	// none, which is as good as long as nobody can write to the store.
	Secret []byte
	// OldSecrets are others that a session is looked for by where it does not lie under a key by Secret, a round trip more each. To change
	// the secret of a site put the new one in here first, in all processes; then make it Secret, and put the old one in here. When all
	// sessions of that time are over, it can go.
	OldSecrets [][]byte
	// Encrypt are keys of 32 bytes, with which sessions are encrypted in the store (AES-256-GCM): the first one writes, all of them
	// read. To change the key put the new one behind it first, in all processes; then before it; and take the old one away when all sessions
	// of that time are over. The default is none. Where there are some, sessions that are not encrypted do not count, but with AcceptPlain.
	Encrypt [][]byte
	// WritePlain and AcceptPlain are for a site that begins to encrypt. First all processes know the keys, and use them for reading only
	// (WritePlain); then they write with them, and AcceptPlain what is left from before, until all of that is over.
	WritePlain  bool
	AcceptPlain bool
	// Codec writes values, and reads those that have its ID. The default is JSON.
	Codec Codec
	// Codecs read values that were written by others than Codec. To change the codec of a site make the new one known here first, in
	// all processes, and have it write then.
	Codecs []Codec
	// Near keeps copies of sessions in this process for up to so long, so that most requests that only read ask nobody. The store tells
	// when one changes, and a browser never sees a session from before its own writes: a second cookie, called like the first one with -v,
	// knows the version. (Clients with Header are served no copies.) What others do (a logout elsewhere, Revoke) is seen within milliseconds,
	// and within Near if that news is lost; so is a browser's own change, by another process, if it was made after its response had
	// begun, or was answered before an older one. The store has to be opened to track (redis://...?track=yes). The default is none.
	Near time.Duration
	// Cookie says how the cookie is called and what it may be used for.
	Cookie Cookie
	// Header, if it is not "", is for clients without cookies: a request that has it, be it empty, brings its token in it, and gets a new one
	// in the response's header of the same name; cookies do not count then, nor those of an Origin. "Authorization" means "Authorization: Bearer token".
	Header string
	// CrossOrigin decides which requests that change something (POST ...) come from other sites' pages, and are answered 403: a cookie alone
	// does not say who wrote a form. The default is that of http.NewCrossOriginProtection. Requests with Header are not asked.
	CrossOrigin *http.CrossOriginProtection
	// Timeout bounds what is saved at the end of a request, and each step of a login. It does not end with the request: a logout must not
	// depend on the client's staying connected. The default is 3 s.
	Timeout time.Duration
	// Unavailable answers a request whose session could not be saved before its response began. The default is a plain 503.
	Unavailable http.Handler
	// Logger hears of what is wrong: undecodable sessions, changes that could not be saved. It never sees a token or a value. The
	// default is silence.
	Logger *slog.Logger
	// Observe, if not nil, is told what happens, for metrics and traces. It is called while the request waits.
	Observe func(ctx context.Context, e Event)
}

// AAL1, AAL2 and AAL3 are Options with the timeouts of NIST SP 800-63B-4 for the three authenticator assurance levels: 30 days; 24 hours
// and 1 hour without use; 12 hours and 15 minutes. At the third one has to log in with two factors for each of them.
func AAL1() Options { return Options{Idle: 30 * 24 * time.Hour, Absolute: 30 * 24 * time.Hour} }
func AAL2() Options { return Options{Idle: time.Hour, Absolute: 24 * time.Hour} }
func AAL3() Options { return Options{Idle: 15 * time.Minute, Absolute: 12 * time.Hour} }

// A Codec makes bytes of values and values of bytes. Bytes that it cannot read are a session that is not there.
type Codec interface {
	// ID says in a record which codec has written it: 0 is JSON, 8 to 15 are the application's.
	ID() byte
	Marshal(v any) ([]byte, error)
	// Unmarshal does not keep data, nor change it.
	Unmarshal(data []byte, v any) error
}

type jsonCodec struct{}

func (jsonCodec) ID() byte                           { return 0 }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// JSON is the default codec.
var JSON Codec = jsonCodec{}

// A Manager keeps the sessions of one site, with values of type T. It is safe for concurrent use.
type Manager[T any] struct {
	st       store.Store
	batcher  store.Batcher // nil where the store is none; so are the next
	appender store.Appender
	near     *near
	memo     *memo[T]
	opt      Options
	keys     []*keyer // by Secret, and by OldSecrets
	codecs   [16]Codec
	origin   *Origin[T]
	log      *slog.Logger

	ring    ring
	touched touches
}

// New returns a manager of sessions in st, which stays the caller's to close. It does not ask the store.
func New[T any](st store.Store, opt Options) (*Manager[T], error) {
	if !st.Capabilities().Conditional {
		return nil, errors.New("sessile: the store cannot write conditionally, so that a session that was destroyed could come back")
	}
	unless := func(d *time.Duration, is time.Duration) {
		if *d == 0 {
			*d = is
		}
	}
	unless(&opt.Idle, 30*time.Minute)
	unless(&opt.Absolute, 12*time.Hour)
	unless(&opt.TouchEvery, opt.Idle/10)
	unless(&opt.Timeout, 3*time.Second)
	unless(&opt.Grace, 30*time.Second)
	switch {
	case opt.Idle < time.Second:
		return nil, fmt.Errorf("sessile: an idle timeout of %v is not one", opt.Idle)
	case opt.Absolute > 0 && opt.Absolute < opt.Idle:
		return nil, fmt.Errorf("sessile: the absolute timeout, %v, is shorter than the idle timeout, %v", opt.Absolute, opt.Idle)
	case opt.TouchEvery >= opt.Idle:
		return nil, fmt.Errorf("sessile: sessions that are extended every %v only end after %v, used or not", opt.TouchEvery, opt.Idle)
	case opt.Timeout < 0, opt.Grace < 0, opt.RenewEvery < 0, opt.Near < 0, opt.MaxSessions < 0:
		return nil, errors.New("sessile: Timeout, Grace, RenewEvery, Near or MaxSessions is negative")
	case opt.RenewEvery > 0 && opt.RenewEvery < opt.Grace:
		return nil, fmt.Errorf("sessile: a new token every %v, while the old one is good for %v more", opt.RenewEvery, opt.Grace)
	case opt.RefuseMore && opt.MaxSessions == 0:
		return nil, errors.New("sessile: RefuseMore is nothing without MaxSessions")
	case (opt.AcceptPlain || opt.WritePlain) && len(opt.Encrypt) == 0:
		return nil, errors.New("sessile: WritePlain and AcceptPlain are nothing without Encrypt")
	}
	opt.AcceptPlain = opt.AcceptPlain || opt.WritePlain
	if err := opt.Cookie.complete(); err != nil {
		return nil, err
	}
	if opt.Codec == nil {
		opt.Codec = JSON
	}
	if opt.Unavailable == nil {
		opt.Unavailable = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
		})
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.CrossOrigin == nil {
		opt.CrossOrigin = http.NewCrossOriginProtection()
	}
	opt.Header = http.CanonicalHeaderKey(opt.Header)
	m := &Manager[T]{st: st, opt: opt, log: opt.Logger, touched: touches{every: opt.TouchEvery, last: recent[time.Time]{max: maxTouches}}}
	if flat(reflect.TypeFor[T]()) {
		m.memo = &memo[T]{last: recent[*decoded[T]]{max: maxDecoded}}
	}
	m.batcher, _ = st.(store.Batcher)
	for _, secret := range append([][]byte{opt.Secret}, opt.OldSecrets...) {
		m.keys = append(m.keys, newKeyer(secret, !st.Capabilities().NarrowKeys))
	}
	m.appender, _ = st.(store.Appender)
	for _, c := range append([]Codec{opt.Codec}, opt.Codecs...) {
		id := c.ID()
		if int(id) >= len(m.codecs) || m.codecs[id] != nil {
			return nil, fmt.Errorf("sessile: %d is not the ID of a codec, or that of two", id)
		}
		m.codecs[id] = c
	}
	if m.codecs[JSON.ID()] == nil {
		m.codecs[JSON.ID()] = JSON
	}
	var err error
	if m.ring, err = newRing(opt.Encrypt); err != nil {
		return nil, err
	}
	if _, err := opt.Codec.Marshal(*new(T)); err != nil { // a channel, a function: better now than at the end of a request
		return nil, fmt.Errorf("sessile: the codec cannot write values of this type: %w", err)
	}
	if opt.Near > 0 {
		t, ok := st.(store.Tracker)
		if !ok {
			return nil, errors.New("sessile: Near: this store does not tell what has changed")
		}
		if m.near, err = newNear(t, opt.Near); err != nil {
			return nil, fmt.Errorf("sessile: Near: %w", err)
		}
	}
	return m, nil
}

// Close ends what New has begun where there is a Near. The store stays open.
func (m *Manager[T]) Close() {
	if m.near != nil {
		m.near.stop()
	}
}

func (m *Manager[T]) decode(rec *record, v *T) error {
	c := m.codecs[rec.codec]
	if c == nil {
		return fmt.Errorf("sessile: codec %d is not known", rec.codec)
	}
	if err := c.Unmarshal(rec.body, v); err != nil {
		return fmt.Errorf("sessile: the codec: %w", err)
	}
	return nil
}

// Handler gives the requests of next a session, which costs nothing until it is asked for.
func (m *Manager[T]) Handler(next http.Handler) http.Handler {
	protected := m.opt.CrossOrigin.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next, false) }))
	if m.opt.Header == "" {
		return protected
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.opt.hasHeader(r) {
			m.serve(w, r, next, true)
		} else {
			protected.ServeHTTP(w, r)
		}
	})
}

func (m *Manager[T]) serve(w http.ResponseWriter, r *http.Request, next http.Handler, byHeader bool) {
	s := &Session[T]{m: m, r: r, byHeader: byHeader}
	value, ok := m.opt.Cookie.read(r, "")
	if byHeader {
		value, ok = m.opt.readHeader(r)
	}
	if ok && token(value).valid() {
		s.token, s.sent = token(value), value
	} else if !ok || value != "" {
		m.saw(r.Context(), EventRefused, "", time.Time{}, nil)
	}
	s.w = writer{ResponseWriter: w, session: s}
	next.ServeHTTP(&s.w, r.WithContext(context.WithValue(r.Context(), contextKey[T]{m}, s)))
	s.w.begin()
	s.atEnd(r.Context())
}

// unavailable answers a request whose session could not be saved.
func (s *Session[T]) unavailable(w http.ResponseWriter) {
	s.sendOwed(w.Header())
	s.m.opt.Unavailable.ServeHTTP(w, s.r)
}

// commit implements committer.
func (s *Session[T]) commit(h http.Header) error {
	returned := false
	defer func() {
		if !returned { // a change has panicked that was made again
			s.sendOwed(h)
		}
	}()
	err := s.atHeader(s.r.Context(), h)
	returned = true
	return err
}

// sendOwed sends the token that the session was given before something else has failed: the old one is over soon.
func (s *Session[T]) sendOwed(h http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec != nil && s.raw != nil && !s.gone && !s.blind && !s.known() && !s.saved.IsZero() {
		s.send(h, string(s.token))
	}
}

const bearer = "Bearer "

// isBearer: the name of the scheme is that in any case (RFC 9110, 11.1).
func isBearer(value string) bool {
	return len(value) >= len(bearer) && strings.EqualFold(value[:len(bearer)], bearer)
}

func (o *Options) hasHeader(r *http.Request) bool {
	values := r.Header[o.Header]
	return len(values) > 0 && (o.Header != "Authorization" || isBearer(values[0]))
}

// readHeader returns the value of Header in a request that has it. Of several none counts.
func (o *Options) readHeader(r *http.Request) (value string, ok bool) {
	values := r.Header[o.Header]
	if len(values) != 1 {
		return "", false
	}
	if value = values[0]; o.Header == "Authorization" {
		value = value[len(bearer):]
	}
	return value, true
}

func (o *Options) sendHeader(h http.Header, value string) {
	if o.Header == "Authorization" && value != "" {
		value = bearer + value
	}
	h.Set(o.Header, value)
	noStore(h)
}

type contextKey[T any] struct{ m *Manager[T] }

// Get returns the request's session, which is loaded when it is first asked for: one round trip, and none where the request has
// no cookie. A session that is not there, or not any more, is a new one, which is stored when something is changed in it.
//
// An error is an outage. The request then has no session, neither an old nor a new one, and its cookie stays as it is.
func (m *Manager[T]) Get(r *http.Request) (*Session[T], error) {
	s, _ := r.Context().Value(contextKey[T]{m}).(*Session[T])
	if s == nil {
		return nil, ErrNoHandler
	}
	if err := s.open(r.Context()); err != nil {
		return nil, err
	}
	return s, nil
}
