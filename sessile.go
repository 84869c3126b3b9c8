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
	// TouchEvery is the least time between two extensions of one session by this process. 0 means a tenth of Idle; negative: at every
	// request, which costs a round trip each.
	TouchEvery time.Duration
	// Secret is what tokens are hashed with before they become keys of the store: the same in all processes of a site. The default is
	// none, which is as good as long as nobody can write to the store.
	Secret []byte
	// Encrypt are keys of 32 bytes, with which sessions are encrypted in the store (AES-256-GCM): the first one writes, all of them
	// read. To change the key put a new one before it, and take the old one away when all sessions of that time are over. The
	// default is none. Where there are some, sessions that are not encrypted do not count.
	Encrypt [][]byte
	// Codec writes and reads values. The default is JSON.
	Codec Codec
	// Cookie says how the cookie is called and what it may be used for.
	Cookie Cookie
	// Timeout bounds what is saved at the end of a request. It does not end with the request: a logout must not depend on the
	// client's staying connected. The default is 3 s.
	Timeout time.Duration
	// Unavailable answers a request whose session could not be saved before its response began. The default is a plain 503.
	Unavailable http.Handler
	// Logger hears of what is wrong: undecodable sessions, changes that could not be saved. It never sees a token or a value. The
	// default is silence.
	Logger *slog.Logger
}

// A Codec makes bytes of values and values of bytes. Bytes that it cannot read are a session that is not there.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// JSON is the default codec.
var JSON Codec = jsonCodec{}

// A Manager keeps the sessions of one site, with values of type T. It is safe for concurrent use.
type Manager[T any] struct {
	st  store.Store
	opt Options
	log *slog.Logger

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
	switch {
	case opt.Idle < time.Second:
		return nil, fmt.Errorf("sessile: an idle timeout of %v is not one", opt.Idle)
	case opt.Absolute > 0 && opt.Absolute < opt.Idle:
		return nil, fmt.Errorf("sessile: the absolute timeout, %v, is shorter than the idle timeout, %v", opt.Absolute, opt.Idle)
	case opt.Timeout < 0:
		return nil, errors.New("sessile: Timeout is negative")
	}
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
	ring, err := newRing(opt.Encrypt)
	if err != nil {
		return nil, err
	}
	return &Manager[T]{st: st, opt: opt, log: opt.Logger, ring: ring, touched: touches{every: opt.TouchEvery}}, nil
}

// Handler gives the requests of next a session, which costs nothing until it is asked for.
func (m *Manager[T]) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &Session[T]{m: m}
		s.token = m.opt.Cookie.read(r)
		s.w = &writer{ResponseWriter: w, commit: func(h http.Header) error { return s.atHeader(r.Context(), h) }, failed: func(w http.ResponseWriter) { m.opt.Unavailable.ServeHTTP(w, r) }}
		next.ServeHTTP(s.w, r.WithContext(context.WithValue(r.Context(), contextKey[T]{m}, s)))
		s.w.begin()
		s.atEnd(r.Context())
	})
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
