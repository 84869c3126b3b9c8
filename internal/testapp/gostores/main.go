// Command gostores is an application with its sessions in Redis, by alexedwards/scs or gorilla/sessions, that asks itself for
// pages: see stores.go.
package main

import (
	"context"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore"
	"github.com/gomodule/redigo/redis"
	"github.com/gorilla/sessions"
	"github.com/rbcervilla/redisstore/v9"
	goredis "github.com/redis/go-redis/v9"
)

// values are what a session holds.
type values map[string]string

// step is what a page is asked to do.
type step struct {
	Do, Name, Value string
}

func main() {
	library, at, kept := os.Args[1], os.Args[2], os.Args[3]
	server := httptest.NewServer(applications[library](at))
	begin := func() *browser { return newBrowser(server.URL) }
	a := begin()
	say("nothing is kept", a.ask("read", "", ""))
	say("begin", a.ask("set", "user", "alice"))
	first := a.cookies()
	say("read", a.ask("read", "", ""))
	say("change", a.ask("set", "user", "Grüße 🍀\r\n\x00"))
	say("read", a.ask("read", "", ""))
	say("large", len(a.ask("set", "b", strings.Repeat("x", 4000)).Values["b"]))
	say("read", len(a.ask("read", "", "").Values["b"]))
	say("drop", a.ask("drop", "b", ""))
	say("renew", a.ask("renew", "", ""))
	say("read", a.ask("read", "", ""))
	old := begin()
	old.set(first)
	say("the old one", old.ask("read", "", ""))
	last := a.cookies()
	say("destroy", a.ask("destroy", "", ""))
	old.set(last)
	say("destroyed", old.ask("read", "", ""))

	b := begin()
	b.ask("set", "user", "bob")
	say("live for a second", b.ask("live", "", ""))
	brief := b.cookies()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		one := begin()
		one.set(brief)
		if one.ask("read", "", "").Values["user"] == "" || time.Now().After(end) {
			say("read", one.ask("read", "", ""))
			break
		}
	}

	users := make([]*browser, 20)
	var wg sync.WaitGroup
	for n := range users {
		users[n] = begin()
		wg.Go(func() {
			name := fmt.Sprint("user", n)
			users[n].ask("set", "user", name)
			for range 10 {
				if got := users[n].ask("read", "", ""); got.Values["user"] != name {
					say("wrong", got)
				}
			}
			if n > 1 {
				users[n].ask("destroy", "", "")
			}
		})
	}
	wg.Wait()
	c := begin()
	for range 20 {
		c.ask("count", "n", "")
	}
	say("count", c.ask("count", "n", ""))
	server.Close()

	there := httptest.NewServer(applications[library](kept))
	defer there.Close()
	for _, b := range []*browser{c, users[0], users[1]} {
		moved := newBrowser(there.URL)
		moved.set(b.cookies())
		say("kept", moved.ask("read", "", ""))
	}
}

// apply does to the session what the step says, as far as that is only about what it holds.
func (v values) apply(s step) {
	switch s.Do {
	case "set":
		v[s.Name] = s.Value
	case "drop":
		delete(v, s.Name)
	case "count":
		n, _ := strconv.Atoi(v[s.Name])
		v[s.Name] = strconv.Itoa(n + 1)
	}
}

var applications = map[string]func(at string) http.Handler{
	"scs on go-redis": func(at string) http.Handler {
		return scsPages(goredisstore.New(goredis.NewClient(must(goredis.ParseURL(at)))))
	},
	"scs on redigo": func(at string) http.Handler {
		return scsPages(redisstoreOfSCS{&redis.Pool{MaxIdle: 5, Dial: func() (redis.Conn, error) { return redis.DialURL(at) }}})
	},
	"gorilla on go-redis": func(at string) http.Handler {
		client := goredis.NewClient(must(goredis.ParseURL(at)))
		st := must(redisstore.NewRedisStore(context.Background(), client))
		st.Options(sessions.Options{Path: "/", MaxAge: 3600})
		return gorillaPages(st)
	},
	"gorilla on redigo": func(at string) http.Handler {
		st := must(redistore.NewRediStoreWithURL(5, at, []byte("key")))
		st.SetMaxAge(3600)
		st.SetMaxLength(1 << 20)
		return gorillaPages(st)
	},
}

// redisstoreOfSCS does what redisstore of scs does; that itself is no module that the module proxy has.
type redisstoreOfSCS struct{ pool *redis.Pool }

const scsPrefix = "scs:session:"

func (r redisstoreOfSCS) Find(token string) ([]byte, bool, error) {
	c := r.pool.Get()
	defer c.Close()
	b, err := redis.Bytes(c.Do("GET", scsPrefix+token))
	if errors.Is(err, redis.ErrNil) {
		return nil, false, nil
	}
	return b, err == nil, err
}

func (r redisstoreOfSCS) Commit(token string, b []byte, expiry time.Time) error {
	c := r.pool.Get()
	defer c.Close()
	if err := errors.Join(c.Send("MULTI"), c.Send("SET", scsPrefix+token, b), c.Send("PEXPIREAT", scsPrefix+token, expiry.UnixMilli())); err != nil {
		return err
	}
	_, err := c.Do("EXEC")
	return err
}

func (r redisstoreOfSCS) Delete(token string) error {
	c := r.pool.Get()
	defer c.Close()
	_, err := c.Do("DEL", scsPrefix+token)
	return err
}

func scsPages(st scs.Store) http.Handler {
	gob.Register(values{})
	m := scs.New()
	m.Store, m.Lifetime = st, time.Hour
	return m.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var s step
		check(json.NewDecoder(r.Body).Decode(&s))
		v, _ := m.Get(r.Context(), "values").(values)
		v = maps.Clone(v)
		switch s.Do {
		case "read":
		case "destroy":
			check(m.Destroy(r.Context()))
			v = nil
		case "renew":
			check(m.RenewToken(r.Context()))
		case "live":
			m.SetDeadline(r.Context(), time.Now().Add(time.Second))
		default:
			if v == nil {
				v = values{}
			}
			v.apply(s)
			m.Put(r.Context(), "values", v)
		}
		check(json.NewEncoder(w).Encode(v))
	}))
}

func gorillaPages(st sessions.Store) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var what step
		check(json.NewDecoder(r.Body).Decode(&what))
		s := must(st.Get(r, "sid"))
		v := values{}
		for key, value := range s.Values {
			v[key.(string)] = value.(string)
		}
		age := s.Options.MaxAge
		switch what.Do {
		case "destroy":
			age, v = -1, nil
		case "renew": // what an application does that wants it: end this one, and go on with another
			s.Options.MaxAge = -1
			check(s.Save(r, httptest.NewRecorder()))
			s.ID = ""
		case "live":
			age = 1
		default:
			v.apply(what)
		}
		clear(s.Values)
		for key, value := range v {
			s.Values[key] = value
		}
		if s.Options.MaxAge = age; what.Do != "read" {
			check(s.Save(r, w))
		}
		check(json.NewEncoder(w).Encode(v))
	})
}

// A browser keeps the cookie, and says whether it is a new one.
type browser struct {
	url  *url.URL
	http http.Client
}

type answer struct {
	Values values
	NewID  bool
}

func newBrowser(at string) *browser {
	return &browser{url: must(url.Parse(at)), http: http.Client{Jar: must(cookiejar.New(nil))}}
}

func (b *browser) ask(do, name, value string) (a answer) {
	before := b.cookies()
	res := must(b.http.Post(b.url.String(), "application/json", strings.NewReader(string(must(json.Marshal(step{do, name, value}))))))
	defer res.Body.Close()
	if res.StatusCode != 200 {
		log.Fatalf("%s: status %d", do, res.StatusCode)
	}
	check(json.NewDecoder(res.Body).Decode(&a.Values))
	a.NewID = !slices.EqualFunc(before, b.cookies(), func(x, y *http.Cookie) bool { return idOf(x) == idOf(y) })
	return a
}

// idOf is what of a cookie is the session's id. gorilla's redistore signs it together with the second (TIME|ID|MAC in Base64), so
// that another cookie may have the same one.
func idOf(c *http.Cookie) string {
	if b, err := base64.URLEncoding.DecodeString(c.Value); err == nil {
		if parts := strings.SplitN(string(b), "|", 3); len(parts) == 3 {
			return parts[1]
		}
	}
	return c.Value
}

func (b *browser) cookies() []*http.Cookie    { return b.http.Jar.Cookies(b.url) }
func (b *browser) set(cookies []*http.Cookie) { b.http.Jar.SetCookies(b.url, cookies) }

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

func say(what string, value any) { fmt.Printf("%s: %s\n", what, must(json.Marshal(value))) }
