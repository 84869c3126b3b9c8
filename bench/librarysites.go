package main

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	redigostore "github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore"
	"github.com/gofiber/fiber/v3"
	fibersession "github.com/gofiber/fiber/v3/middleware/session"
	fiberredis "github.com/gofiber/storage/redis/v3"
	redigo "github.com/gomodule/redigo/redis"
	gorilla "github.com/gorilla/sessions"
	rbc "github.com/rbcervilla/redisstore/v9"
	goredis "github.com/redis/go-redis/v9"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store/redis"
)

// A library is a way to keep sessions in Redis.
type library struct {
	name    string
	cookie  string // what its cookie is called; "": it has none
	serve   func(c siteSetup) error
	load    bool // it is one of those whose load is measured
	probed  bool // it is one of those that are probed
	prefix  string
	noEnd   bool // it has no absolute deadline
	notHTTP bool // its server is not net/http's
}

func (l *library) ours() bool { return strings.HasPrefix(l.name, "Sessile") }

const (
	libraryIdle  = 30 * time.Minute
	libraryConns = 256 // that a pool may have: as many as there are requests at the most
)

// libraries are all of them, those that others are compared with first. What is not said here is as the library has it by default.
var libraries = []*library{
	{name: "none", load: true, serve: noSessions},
	{name: "scs, goredisstore", cookie: "session", prefix: "scs:session:", load: true, probed: true, serve: scsSite(goredisStore, 0)},
	{name: "scs, goredisstore, IdleTimeout", cookie: "session", prefix: "scs:session:", load: true, probed: true, serve: scsSite(goredisStore, libraryIdle)},
	{name: "scs, redisstore", cookie: "session", prefix: "scs:session:", load: true, probed: true, serve: scsSite(redigoStore, 0)},
	{name: "scs, redisstore, IdleTimeout", cookie: "session", prefix: "scs:session:", load: true, serve: scsSite(redigoStore, libraryIdle)},
	{name: "gorilla, boj", cookie: "session", prefix: "session_", load: true, probed: true, noEnd: true, serve: gorillaSite(bojStore, false)},
	{name: "gorilla, boj, sliding", cookie: "session", prefix: "session_", load: true, noEnd: true, serve: gorillaSite(bojStore, true)},
	{name: "gorilla, rbcervilla", cookie: "session", prefix: "session:", load: true, probed: true, noEnd: true, serve: gorillaSite(rbcStore, false)},
	{name: "gorilla, rbcervilla, sliding", cookie: "session", prefix: "session:", load: true, noEnd: true, serve: gorillaSite(rbcStore, true)},
	{name: "Fiber v3", cookie: "session_id", load: true, probed: true, notHTTP: true, serve: fiberSite},
	{name: "Sessile", cookie: ourCookie, load: true, probed: true, serve: ourSite(sessile.Options{}, "")},
	{name: "Sessile, AES", cookie: ourCookie, load: true, serve: ourSite(sessile.Options{Encrypt: [][]byte{make([]byte, 32)}}, "")},
	{name: "Sessile, near", cookie: ourCookie, load: true, probed: true, serve: ourSite(sessile.Options{Near: 5 * time.Second}, "track=yes")},
	{name: "Sessile, extended at each request", cookie: ourCookie, serve: ourSite(sessile.Options{TouchEvery: -1}, "")},
}

func libraryNamed(name string) *library {
	return libraries[slices.IndexFunc(libraries, func(l *library) bool { return l.name == name })]
}

// noSessions is what the pages cost without any.
func noSessions(c siteSetup) error {
	return netSite{open: func(http.ResponseWriter, *http.Request) (librarySession, error) { return none{}, nil }}.serve(c)
}

type none struct{}

func (none) user() string                  { return "" }
func (none) text(string) string            { return "" }
func (none) number(string) int64           { return 0 }
func (none) setText(_, _ string) error     { return nil }
func (none) addNumber(string, int64) error { return nil }
func (none) login(string) error            { return nil }
func (none) logout() error                 { return nil }
func (none) finish() error                 { return nil }

// scs.

func goredisStore(addr string) scs.Store { return goredisstore.New(goredisClient(addr)) }

func redigoStore(addr string) scs.Store { return redigostore.New(redigoPool(addr)) }

func goredisClient(addr string) *goredis.Client {
	return goredis.NewClient(&goredis.Options{Addr: addr, PoolSize: libraryConns})
}

func redigoPool(addr string) *redigo.Pool {
	return &redigo.Pool{MaxIdle: libraryConns, Dial: func() (redigo.Conn, error) { return redigo.Dial("tcp", addr) }}
}

func scsSite(open func(addr string) scs.Store, idle time.Duration) func(c siteSetup) error {
	return func(c siteSetup) error {
		m := scs.New()
		m.Store, m.IdleTimeout, m.HashTokenInStore = open(c.Redis), idle, c.Hashed
		if c.Life > 0 {
			m.Lifetime = c.Life
			m.IdleTimeout = min(idle, c.Life)
		}
		return netSite{
			wrap: m.LoadAndSave,
			open: func(_ http.ResponseWriter, r *http.Request) (librarySession, error) {
				return scsSession{m, r.Context()}, nil
			},
			// As its documentation ends all sessions of a user.
			kill: func(ctx context.Context, user string) (n int, err error) {
				err = m.Iterate(ctx, func(ctx context.Context) error {
					if m.GetString(ctx, keyUser) != user {
						return nil
					}
					n++
					return m.Destroy(ctx)
				})
				return n, err
			},
		}.serve(c)
	}
}

type scsSession struct {
	m   *scs.SessionManager
	ctx context.Context
}

func (s scsSession) user() string            { return s.m.GetString(s.ctx, keyUser) }
func (s scsSession) text(key string) string  { return s.m.GetString(s.ctx, key) }
func (s scsSession) number(key string) int64 { return s.m.GetInt64(s.ctx, key) }

func (s scsSession) setText(key, value string) error {
	s.m.Put(s.ctx, key, value)
	return nil
}

func (s scsSession) addNumber(key string, n int64) error {
	s.m.Put(s.ctx, key, s.number(key)+n)
	return nil
}

func (s scsSession) login(user string) error {
	if err := s.m.RenewToken(s.ctx); err != nil {
		return err
	}
	return s.setText(keyUser, user)
}

func (s scsSession) logout() error { return s.m.Destroy(s.ctx) }
func (s scsSession) finish() error { return nil }

// gorilla/sessions.

func bojStore(c siteSetup) (gorilla.Store, error) {
	s, err := redistore.NewRediStore(libraryConns, "tcp", c.Redis, "", "", []byte(strings.Repeat("k", 32)))
	if err == nil && c.Life > 0 {
		s.SetMaxAge(int(c.Life / time.Second))
	}
	return s, err
}

func rbcStore(c siteSetup) (gorilla.Store, error) {
	s, err := rbc.NewRedisStore(context.Background(), goredisClient(c.Redis))
	if err == nil && c.Life > 0 {
		s.Options(gorilla.Options{Path: "/", MaxAge: int(c.Life / time.Second)})
	}
	return s, err
}

// gorillaSite saves what was changed; where it slides, at every request.
func gorillaSite(open func(siteSetup) (gorilla.Store, error), sliding bool) func(c siteSetup) error {
	return func(c siteSetup) error {
		store, err := open(c)
		if err != nil {
			return err
		}
		return netSite{open: func(w http.ResponseWriter, r *http.Request) (librarySession, error) {
			s, err := store.Get(r, "session")
			if s == nil {
				return nil, err
			}
			// As its documentation has it: there is a session beside the error, an empty one.
			return &gorillaSession{s, w, r, sliding, false, false}, nil
		}}.serve(c)
	}
}

type gorillaSession struct {
	s              *gorilla.Session
	w              http.ResponseWriter
	r              *http.Request
	sliding        bool
	changed, ended bool
}

func (s *gorillaSession) user() string { return s.text(keyUser) }

func (s *gorillaSession) text(key string) string {
	v, _ := s.s.Values[key].(string)
	return v
}

func (s *gorillaSession) number(key string) int64 {
	v, _ := s.s.Values[key].(int64)
	return v
}

func (s *gorillaSession) setText(key, value string) error {
	s.s.Values[key], s.changed = value, true
	return nil
}

func (s *gorillaSession) addNumber(key string, n int64) error {
	s.s.Values[key], s.changed = s.number(key)+n, true
	return nil
}

// login cannot renew the id: there is no call for it.
func (s *gorillaSession) login(user string) error { return s.setText(keyUser, user) }

func (s *gorillaSession) logout() error {
	s.s.Options.MaxAge, s.changed, s.ended = -1, false, true
	if err := s.s.Save(s.r, s.w); err != nil {
		return err
	}
	clear(s.s.Values)
	return nil
}

func (s *gorillaSession) finish() error {
	if s.ended || !s.changed && (!s.sliding || s.s.IsNew) {
		return nil
	}
	s.changed = false
	return s.s.Save(s.r, s.w)
}

// Fiber.

func fiberSite(c siteSetup) error {
	app := fiber.New()
	answer := func(x fiber.Ctx, text string, err error) error {
		if err != nil {
			return x.Status(fiber.StatusInternalServerError).SendString("failed: " + err.Error())
		}
		return x.SendString(text)
	}
	for name, ask := range backstage {
		app.Get("/"+name, func(x fiber.Ctx) error {
			text, err := ask()
			return answer(x, text, err)
		})
	}
	app.Use(fibersession.New(fibersession.Config{
		Storage:         fiberredis.New(fiberredis.Config{Addrs: []string{c.Redis}, PoolSize: libraryConns}),
		IdleTimeout:     cmp.Or(c.Life, libraryIdle),
		AbsoluteTimeout: c.Life,
	}))
	app.Get("/:page", func(x fiber.Ctx) error {
		v := &visit{librarySession: &fiberSession{fibersession.FromContext(x)}, arg: func(name string) string { return strings.Clone(x.Query(name)) }}
		text, err := v.show(x.Params("page"))
		return answer(x, text, err)
	})
	return app.Listen(c.Listen, fiber.ListenConfig{DisableStartupMessage: true})
}

type fiberSession struct{ m *fibersession.Middleware }

func (s *fiberSession) user() string { return s.text(keyUser) }

func (s *fiberSession) text(key string) string {
	v, _ := s.m.Get(key).(string)
	return v
}

func (s *fiberSession) number(key string) int64 {
	v, _ := s.m.Get(key).(int64)
	return v
}

func (s *fiberSession) setText(key, value string) error {
	s.m.Set(key, value)
	return nil
}

func (s *fiberSession) addNumber(key string, n int64) error {
	s.m.Set(key, s.number(key)+n)
	return nil
}

func (s *fiberSession) login(user string) error {
	if err := s.m.Regenerate(); err != nil {
		return err
	}
	return s.setText(keyUser, user)
}

func (s *fiberSession) logout() error { return s.m.Destroy() }
func (s *fiberSession) finish() error { return nil }

// Sessile.

const ourCookie = "__Host-session"

// content is typed, as a program of ours would have it.
type content struct {
	UID    string `json:"uid,omitempty"`
	Name   string `json:"name,omitempty"`
	CSRF   string `json:"csrf,omitempty"`
	Page   string `json:"page,omitempty"`
	A      string `json:"a,omitempty"`
	B      string `json:"b,omitempty"`
	Visits int64  `json:"visits,omitempty"`
	Seen   int64  `json:"seen,omitempty"`
}

func (c *content) text(key string) *string {
	switch key {
	case keyUID:
		return &c.UID
	case keyName:
		return &c.Name
	case keyCSRF:
		return &c.CSRF
	case keyPage:
		return &c.Page
	case keyA:
		return &c.A
	default:
		return &c.B
	}
}

func (c *content) number(key string) *int64 {
	if key == keySeen {
		return &c.Seen
	}
	return &c.Visits
}

// ourSite takes the parameters of the store's URL.
func ourSite(opt sessile.Options, parameters string) func(c siteSetup) error {
	return func(c siteSetup) error {
		st, err := redis.Open(context.Background(), &url.URL{Scheme: "redis", Host: c.Redis, RawQuery: parameters})
		if err != nil {
			return err
		}
		if opt.Idle = libraryIdle; c.Life > 0 {
			opt.Idle, opt.Absolute = c.Life, c.Life
		}
		m, err := sessile.New[content](st, opt)
		if err != nil {
			return err
		}
		return netSite{
			wrap: m.Handler,
			open: func(_ http.ResponseWriter, r *http.Request) (librarySession, error) {
				s, err := m.Get(r)
				if err != nil {
					return nil, err
				}
				return ourSession{s, r.Context()}, nil
			},
			kill: func(ctx context.Context, user string) (int, error) { return m.Revoke(ctx, user) },
		}.serve(c)
	}
}

type ourSession struct {
	s   *sessile.Session[content]
	ctx context.Context
}

func (s ourSession) user() string {
	id, _ := s.s.User()
	return id
}

func (s ourSession) text(key string) string {
	v := s.s.Value()
	return *v.text(key)
}

func (s ourSession) number(key string) int64 {
	v := s.s.Value()
	return *v.number(key)
}

func (s ourSession) setText(key, value string) error {
	return s.s.Update(func(c *content) error { *c.text(key) = value; return nil })
}

func (s ourSession) addNumber(key string, n int64) error {
	return s.s.Update(func(c *content) error { *c.number(key) += n; return nil })
}

func (s ourSession) login(user string) error { return s.s.Login(s.ctx, user) }
func (s ourSession) logout() error           { return s.s.Logout(s.ctx) }
func (s ourSession) finish() error           { return nil }
