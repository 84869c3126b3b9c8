package gorilla_test

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/boj/redistore"
	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"go.uber.org/goleak"

	"github.com/sessile/sessile/adapters/gorilla"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trouble is a store that can be made to fail, counts what it is asked, and notes what was saved last.
type trouble struct {
	store.Store
	asked atomic.Int64

	mu      sync.Mutex // guards what follows
	err     error      // of all operations, which are not done
	lost    error      // of Save and Delete, which are done
	lastKey string
}

func (s *trouble) now() (err, lost error) {
	s.asked.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err, s.lost
}

func (s *trouble) set(err, lost error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.lost = err, lost
}

func (s *trouble) key() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastKey
}

func (s *trouble) Load(ctx context.Context, key string) (store.Record, error) {
	if err, _ := s.now(); err != nil {
		return store.Record{}, err
	}
	return s.Store.Load(ctx, key)
}

func (s *trouble) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	err, lost := s.now()
	if err != nil {
		return err
	}
	if err := s.Store.Save(ctx, key, rec, cond); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastKey = key
	return lost
}

func (s *trouble) Touch(ctx context.Context, key string, expires time.Time) error {
	if err, _ := s.now(); err != nil {
		return err
	}
	return s.Store.Touch(ctx, key, expires)
}

func (s *trouble) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	if err, _ := s.now(); err != nil {
		return false, err
	}
	return s.Store.Delete(ctx, key, cond)
}

// site is a small site on a gorilla store. /slow waits between its Get and its Save until it may go on.
type site struct {
	t        *testing.T
	st       *trouble
	url      string
	inside   chan struct{}
	goOn     chan struct{}
	sessions sessions.Store
}

func newSite(t *testing.T, st store.Store, opt gorilla.Options) *site {
	t.Helper()
	if opt.Session == nil {
		opt.Session = &sessions.Options{Path: "/", MaxAge: 3600, HttpOnly: true}
	}
	wrapped := &trouble{Store: st}
	g, err := gorilla.New(wrapped, opt)
	if err != nil {
		t.Fatal(err)
	}
	s := newSiteOn(t, g)
	s.st = wrapped
	return s
}

func newSiteOn(t *testing.T, g sessions.Store) *site {
	t.Helper()
	s := &site{t: t, inside: make(chan struct{}), goOn: make(chan struct{}), sessions: g}
	mux := http.NewServeMux()
	page := func(path string, f func(r *http.Request, session *sessions.Session)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			session, err := g.Get(r, "s")
			if err == nil {
				f(r, session)
				err = session.Save(r, w)
			}
			switch {
			case errors.Is(err, gorilla.ErrGone):
				http.Error(w, "gone", http.StatusGone)
			case errors.Is(err, store.ErrConflict):
				http.Error(w, "conflict", http.StatusConflict)
			case store.Failed(err):
				http.Error(w, "outage", http.StatusServiceUnavailable)
			case err != nil:
				http.Error(w, err.Error(), http.StatusInternalServerError)
			default:
				fmt.Fprint(w, show(session.Values))
			}
		})
	}
	set := func(r *http.Request, session *sessions.Session) {
		for key, values := range r.URL.Query() {
			session.Values[key] = values[0]
		}
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		session, err := g.Get(r, "s")
		if err != nil {
			http.Error(w, "outage", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, show(session.Values))
	})
	page("/set", set)
	page("/slow", func(r *http.Request, session *sessions.Session) {
		s.inside <- struct{}{}
		<-s.goOn
		set(r, session)
	})
	page("/login", func(r *http.Request, session *sessions.Session) {
		session.ID = ""
		session.Values["user"] = "alice"
	})
	page("/logout", func(r *http.Request, session *sessions.Session) { session.Options.MaxAge = -1 })
	page("/short", func(r *http.Request, session *sessions.Session) { session.Options.MaxAge = 0 })
	// As many programs do, it looks at no error but the last.
	mux.HandleFunc("/careless", func(w http.ResponseWriter, r *http.Request) {
		session, _ := g.Get(r, "s")
		session.Values["user"] = "nobody"
		if r.FormValue("logout") != "" {
			session.Options.MaxAge = -1
		}
		if err := session.Save(r, w); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func show(values map[any]any) string {
	return fmt.Sprint(values) // fmt sorts maps
}

type browser struct {
	s *site
	*http.Client
}

func (s *site) browser() *browser {
	jar, _ := cookiejar.New(nil)
	transport := &http.Transport{}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &browser{s, &http.Client{Jar: jar, Transport: transport}}
}

func (b *browser) at() *url.URL {
	u, err := url.Parse(b.s.url)
	if err != nil {
		b.s.t.Fatal(err)
	}
	return u
}

// cookie is what the browser has; "" for none.
func (b *browser) cookie() string {
	for _, c := range b.Jar.Cookies(b.at()) {
		if c.Name == "s" {
			return c.Value
		}
	}
	return ""
}

// with is a browser that has the cookie of that value.
func (s *site) with(cookie string) *browser {
	b := s.browser()
	b.Jar.SetCookies(b.at(), []*http.Cookie{{Name: "s", Value: cookie}})
	return b
}

func (b *browser) get(path string) string {
	resp, err := b.Get(b.s.url + path)
	if err != nil {
		b.s.t.Errorf("%s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.s.t.Errorf("%s: %v", path, err)
	}
	return strings.TrimSpace(string(body))
}

func (b *browser) want(path, want string) {
	b.s.t.Helper()
	if got := b.get(path); got != want {
		b.s.t.Errorf("%s: got %q, want %q", path, got, want)
	}
}

// while has a slow request of the browser under way while f runs, and returns what it is answered.
func (b *browser) while(path string, f func()) string {
	answer := make(chan string, 1)
	go func() { answer <- b.get(path) }()
	select {
	case <-b.s.inside:
	case got := <-answer:
		b.s.t.Fatalf("%s did not get there: %q", path, got)
	}
	f()
	b.s.goOn <- struct{}{}
	return <-answer
}

func openRedis(t *testing.T, srv *testserver.RedisServer, prefix string) store.Store {
	t.Helper()
	st, err := redis.Connect(t.Context(), redis.Options{Addr: srv.Addr, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

var keys = []byte("0123456789abcdef0123456789abcdef")

// each runs f on each kind of store and of cookie.
func each(t *testing.T, f func(t *testing.T, st store.Store, opt gorilla.Options)) {
	for name, opt := range map[string]gorilla.Options{
		"gob":    {},
		"JSON":   {Serializer: gorilla.JSON},
		"codecs": {Codecs: securecookie.CodecsFromPairs(keys)},
	} {
		t.Run(name+" in memory", func(t *testing.T) { f(t, memory.New(memory.Options{}), opt) })
		t.Run(name+" in Redis", func(t *testing.T) { f(t, openRedis(t, testserver.Redis(t), "session_"), opt) })
	}
}

func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, st store.Store, opt gorilla.Options) {
		s := newSite(t, st, opt)
		b, other := s.browser(), s.browser()
		b.want("/", "map[]")
		if b.cookie() != "" {
			t.Error("a session that nobody has saved has a cookie")
		}
		b.want("/set?a=1", "map[a:1]")
		b.want("/set?b=2", "map[a:1 b:2]")
		b.want("/", "map[a:1 b:2]")
		other.want("/", "map[]")

		before := s.with(b.cookie())
		b.want("/login", "map[a:1 b:2 user:alice]")
		b.want("/", "map[a:1 b:2 user:alice]")
		before.want("/", "map[]") // who knew the old id has nothing

		stolen := s.with(b.cookie())
		stolen.want("/", "map[a:1 b:2 user:alice]")
		b.want("/logout", "map[a:1 b:2 user:alice]")
		if b.cookie() != "" {
			t.Error("the cookie is there after the logout")
		}
		stolen.want("/", "map[]")

		dead := stolen.cookie()
		stolen.want("/set?c=3", "map[c:3]")
		if stolen.cookie() == dead {
			t.Error("an id that was over is in use again")
		}
		s.with(dead).want("/", "map[]")
	})
}

func TestDeadlines(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), gorilla.Options{Lifetime: time.Minute})
	deadline := func(want time.Duration) {
		t.Helper()
		rec, err := s.st.Inspect(t.Context(), s.st.key())
		if left := time.Until(rec.Expires); err != nil || left > want || left < want-10*time.Second {
			t.Errorf("it lasts %v, %v; want %v", left, err, want)
		}
	}
	b := s.browser()
	b.want("/short?", "map[]")
	deadline(time.Minute)
	b.want("/set?a=1", "map[a:1]")
	deadline(time.Hour)
	b.want("/short", "map[a:1]") // nothing is changed in it but that
	deadline(time.Minute)
}

// The cookie says what gorilla's options say, and comes once.
func TestTheCookie(t *testing.T) {
	g, err := gorilla.New(memory.New(memory.Options{}), gorilla.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	http.SetCookie(w, &http.Cookie{Name: "other", Value: "1"})
	session, err := g.Get(r, "s")
	if err != nil {
		t.Fatal(err)
	}
	session.Options.MaxAge = 60
	for range 2 {
		if err := session.Save(r, w); err != nil {
			t.Fatal(err)
		}
	}
	cookies := w.Result().Cookies()
	if len(cookies) != 2 {
		t.Fatalf("%d cookies: %v", len(cookies), cookies)
	}
	c := cookies[1]
	if c.Name != "s" || len(c.Value) != 27 || c.Path != "/" || c.MaxAge != 60 || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("the cookie is %+v", c)
	}
	if session.ID == "" || strings.Contains(session.ID, c.Value) {
		t.Errorf("of the id %q a cookie can be made", session.ID)
	}
	// An id that a program, or a request, has chosen is not taken.
	session.ID = strings.Repeat("a", 32)
	if err := session.Save(r, w); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("another id: %v", err)
	}
	foreign := sessions.NewSession(g, "s")
	foreign.ID, foreign.Options.MaxAge = strings.Repeat("a", 32), 60
	if err := foreign.Save(r, w); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a session with an id of its own: %v", err)
	}
	foreign.ID, foreign.Options.MaxAge = "../x", -1
	if err := foreign.Save(r, w); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("the end of one with an id that is none: %v", err)
	}
}

// What is not of the form of our cookies is not looked up, and is no error.
func TestHostileCookies(t *testing.T) {
	token := strings.Repeat("A", 27)
	other := securecookie.CodecsFromPairs([]byte("another key, of another site: 32"))
	forged, _ := securecookie.EncodeMulti("s", strings.Repeat("A", 52), other...)
	ours := securecookie.CodecsFromPairs(keys)
	var cookies []string
	for _, id := range []string{"", "x", "../../etc/passwd", strings.Repeat("a", 52), strings.Repeat("A", 51), strings.Repeat("A", 51) + "\n", strings.Repeat("A", 50) + "\r\n"} {
		c, err := securecookie.EncodeMulti("s", id, ours...)
		if err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, "s="+c)
	}
	cookies = append(cookies, "s=", "s="+forged, "s=../../../etc/passwd", "s=%2e%2e%2f", "s="+token[1:], "s="+token+"A", "s="+token[1:]+"B", "s="+token[1:]+"=", "s="+token[1:]+"+",
		"s="+strings.Repeat("a", 4097), "s="+token+"; s="+token[1:]+"E")
	for name, codecs := range map[string][]securecookie.Codec{"tokens": nil, "codecs": ours} {
		s := newSite(t, memory.New(memory.Options{}), gorilla.Options{Codecs: codecs})
		for _, c := range cookies {
			r, _ := http.NewRequest("GET", s.url+"/", nil)
			r.Header.Set("Cookie", c)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(body) != "map[]" {
				t.Errorf("%s: %q: %q", name, c, body)
			}
		}
		if n := s.st.asked.Load(); n != 0 {
			t.Errorf("%s: the store was asked %d times", name, n)
		}
	}
	http.DefaultClient.CloseIdleConnections()

	// One of the right form, that we have not issued, is not taken over.
	s := newSite(t, memory.New(memory.Options{}), gorilla.Options{})
	b := s.with(token)
	b.want("/set?a=1", "map[a:1]")
	if b.cookie() == token || b.cookie() == "" {
		t.Errorf("the session has the cookie %q", b.cookie())
	}
	s.with(token).want("/", "map[]")
}

// A logout stays one, whatever is under way.
func TestALogoutStaysALogout(t *testing.T) {
	for _, path := range []string{"/slow?a=2", "/slow"} {
		for name, merge := range map[string]func(base, mine, theirs map[any]any) (map[any]any, error){"": nil, " with Merge": gorilla.MergeKeys} {
			t.Run(path+name, func(t *testing.T) {
				each(t, func(t *testing.T, st store.Store, opt gorilla.Options) {
					opt.Merge = merge
					s := newSite(t, st, opt)
					b := s.browser()
					b.want("/set?a=1", "map[a:1]")
					same := s.with(b.cookie())
					if got := b.while(path, func() { same.want("/logout", "map[a:1]") }); got != "gone" {
						t.Errorf("the slow request: %q", got)
					}
					b.want("/", "map[]")
				})
			})
		}
	}
}

// Of two requests that change the session the later one is told, or both are kept.
func TestNoUpdateIsLost(t *testing.T) {
	for _, c := range []struct {
		name               string
		merge              func(base, mine, theirs map[any]any) (map[any]any, error)
		slow, other        string
		want, during, then string
	}{
		{"no Merge", nil, "/slow?a=2", "/set?b=3", "conflict", "map[a:1 b:3]", "map[a:1 b:3]"},
		{"nothing changed", nil, "/slow", "/set?b=3", "map[a:1]", "map[a:1 b:3]", "map[a:1 b:3]"},
		{"nobody changes", nil, "/slow", "/set", "map[a:1]", "map[a:1]", "map[a:1]"},
		{"Merge", gorilla.MergeKeys, "/slow?a=2", "/set?b=3", "map[a:2 b:3]", "map[a:1 b:3]", "map[a:2 b:3]"},
		{"Merge, the same key", gorilla.MergeKeys, "/slow?a=2", "/set?a=3", "conflict", "map[a:3]", "map[a:3]"},
		{"Merge, the same value", gorilla.MergeKeys, "/slow?a=2", "/set?a=2&b=3", "map[a:2 b:3]", "map[a:2 b:3]", "map[a:2 b:3]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, st store.Store, opt gorilla.Options) {
				opt.Merge = c.merge
				s := newSite(t, st, opt)
				b := s.browser()
				b.want("/set?a=1", "map[a:1]")
				if got := b.while(c.slow, func() { b.want(c.other, c.during) }); got != c.want {
					t.Errorf("the slow request: got %q, want %q", got, c.want)
				}
				b.want("/", c.then)
			})
		})
	}
}

// Many at once, each with a key of its own: all are there in the end.
func TestManyAtOnce(t *testing.T) {
	s := newSite(t, openRedis(t, testserver.Redis(t), ""), gorilla.Options{Merge: gorilla.MergeKeys})
	b := s.browser()
	b.want("/set?a=1", "map[a:1]")
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for b.get(fmt.Sprintf("/set?k%d=1", i)) == "conflict" { // more of them than one request tries
			}
		})
	}
	wg.Wait()
	b.want("/", "map[a:1 k0:1 k1:1 k2:1 k3:1 k4:1 k5:1]")
}

// A login while another request saves: an error, or both.
func TestALoginMeetsAnUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		merge      func(base, mine, theirs map[any]any) (map[any]any, error)
		want, then string
	}{
		"no Merge": {nil, "not saved", "map[a:1 b:2]"},
		"Merge":    {gorilla.MergeKeys, "saved", "map[a:1 b:2 user:alice]"},
	} {
		each(t, func(t *testing.T, st store.Store, opt gorilla.Options) {
			opt.Merge = c.merge
			s := newSite(t, st, opt)
			b := s.browser()
			b.want("/set?a=1", "map[a:1]")
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", "s="+b.cookie())
			session, err := s.sessions.Get(r, "s")
			if err != nil {
				t.Fatal(err)
			}
			b.want("/set?b=2", "map[a:1 b:2]")
			session.ID, session.Values["user"] = "", "alice"
			w := httptest.NewRecorder()
			got, then := "saved", b
			switch err := session.Save(r, w); {
			case err == nil:
				b.want("/", "map[]")
				then = s.with(w.Result().Cookies()[0].Value)
			case errors.Is(err, store.ErrConflict):
				got = "not saved"
			default:
				t.Error(err)
			}
			if got != c.want {
				t.Errorf("%s: %s", name, got)
			}
			then.want("/", c.then)
		})
	}
}

// A store that does not answer is not an empty session, and nothing is written in the place of what it did not tell.
func TestAnOutage(t *testing.T) {
	for _, outage := range []error{store.ErrUnavailable, store.ErrUnknown} {
		s := newSite(t, memory.New(memory.Options{}), gorilla.Options{})
		b := s.browser()
		b.want("/set?user=alice", "map[user:alice]")
		cookie := b.cookie()

		s.st.set(outage, nil)
		b.want("/", "outage")
		b.want("/set?a=1", "outage")
		b.want("/logout", "outage")
		b.want("/careless", "not saved")

		s.st.set(nil, nil)
		b.want("/", "map[user:alice]")
		if b.cookie() != cookie {
			t.Errorf("%v: the cookie is another one now", outage)
		}

		// The store comes back between the two: what is there was not seen.
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", "s="+cookie)
		s.st.set(outage, nil)
		session, err := s.sessions.Get(r, "s")
		if !errors.Is(err, outage) {
			t.Errorf("Get: %v", err)
		}
		s.st.set(nil, nil)
		w := httptest.NewRecorder()
		if err := session.Save(r, w); !errors.Is(err, outage) || len(w.Header()) != 0 {
			t.Errorf("Save: %v, and %v", err, w.Header())
		}
		b.want("/", "map[user:alice]")
		session.Options.MaxAge = -1 // a logout is no matter of what is there
		if err := session.Save(r, w); err != nil {
			t.Error(err)
		}
		b.want("/", "map[]")
	}
}

// The answer to a save is lost: it is looked up.
func TestALostAnswer(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), gorilla.Options{})
	s.st.set(nil, store.ErrUnknown)
	b := s.browser()
	b.want("/set?a=1", "map[a:1]")
	b.want("/set?a=2", "map[a:2]")
	b.want("/login", "map[a:2 user:alice]")
	b.want("/", "map[a:2 user:alice]")
}

// The client is gone, and the logout is one.
func TestTheClientIsGone(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), gorilla.Options{})
	b := s.browser()
	b.want("/set?a=1", "map[a:1]")
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
	r.Header.Set("Cookie", "s="+b.cookie())
	session, err := s.sessions.Get(r, "s")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	session.Options.MaxAge = -1
	if err := session.Save(r, httptest.NewRecorder()); err != nil {
		t.Error(err)
	}
	b.want("/", "map[]")
}

// Values that cannot be read are an error that says so; they stay where they are, and another session may be begun.
func TestUnreadableValues(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), gorilla.Options{})
	b := s.browser()
	b.want("/set?a=1", "map[a:1]")
	for _, data := range []string{"", "{}", "not gob", strings.Repeat("x", gorilla.MaxSize+1)} {
		key := s.st.key()
		if err := s.st.Store.Save(t.Context(), key, store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", "s="+b.cookie())
		if session, err := s.sessions.Get(r, "s"); !errors.Is(err, store.ErrInvalid) || session == nil || !session.IsNew || len(session.Values) > 0 {
			t.Errorf("%.10q: %v, %v", data, session, err)
		}
		cookie := b.cookie()
		b.want("/careless", "")
		if b.cookie() == cookie {
			t.Errorf("%.10q: it has the old cookie", data)
		}
		if rec, err := s.st.Store.Load(t.Context(), key); err != nil || string(rec.Data) != data {
			t.Errorf("%.10q: what was there is not, %v", data, err)
		}
	}
	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	session, _ := s.sessions.Get(r, "s")
	for _, value := range []any{strings.Repeat("x", gorilla.MaxSize), func() {}} {
		session.Values["v"] = value
		if err := session.Save(r, w); !errors.Is(err, store.ErrInvalid) || len(w.Header()) > 0 {
			t.Errorf("%T: %v, %v", value, err, w.Header())
		}
	}
}

// The stores and the sites that boj/redistore and this one make understand each other's cookies and sessions, at the same time.
func TestBesideRedistore(t *testing.T) {
	for name, serializers := range map[string]struct {
		theirs redistore.SessionSerializer
		ours   gorilla.Serializer
	}{"gob": {redistore.GobSerializer{}, gorilla.Gob}, "JSON": {redistore.JSONSerializer{}, gorilla.JSON}} {
		t.Run(name, func(t *testing.T) {
			srv := testserver.Redis(t)
			boj := newRedistore(t, srv)
			boj.SetSerializer(serializers.theirs)
			before := newSiteOn(t, boj)
			after := newSite(t, openRedis(t, srv, "session_"), gorilla.Options{Codecs: securecookie.CodecsFromPairs(keys), Serializer: serializers.ours})
			old := before.browser()
			old.want("/set?a=1", "map[a:1]")

			b := after.with(old.cookie())
			b.want("/", "map[a:1]")
			b.want("/set?b=2", "map[a:1 b:2]")
			old.want("/", "map[a:1 b:2]")
			before.with(b.cookie()).want("/set?c=3", "map[a:1 b:2 c:3]")
			b.want("/", "map[a:1 b:2 c:3]")

			fresh := after.browser()
			fresh.want("/set?x=1", "map[x:1]")
			before.with(fresh.cookie()).want("/", "map[x:1]")

			b.want("/logout", "map[a:1 b:2 c:3]")
			old.want("/", "map[]")
			if got := srv.CLI("DBSIZE"); got != "1" {
				t.Errorf("%s records", got)
			}
		})
	}
}

func newRedistore(t *testing.T, srv *testserver.RedisServer) *redistore.RediStore {
	t.Helper()
	boj, err := redistore.NewRediStore(2, "tcp", srv.Addr, "", "", keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { boj.Close() })
	return boj
}

func TestOptions(t *testing.T) {
	for name, opt := range map[string]gorilla.Options{
		"a key that is none":  {Codecs: securecookie.CodecsFromPairs(nil)},
		"a negative lifetime": {Lifetime: -1},
		"a negative timeout":  {Timeout: -1},
	} {
		if _, err := gorilla.New(memory.New(memory.Options{}), opt); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := gorilla.New(unconditional{}, gorilla.Options{}); err == nil {
		t.Error("a store that cannot write conditionally is taken")
	}
}

type unconditional struct{ store.Store }

func (unconditional) Capabilities() store.Capabilities { return store.Capabilities{} }

// What is known of a session goes away with it.
func TestNothingIsKept(t *testing.T) {
	g, err := gorilla.New(memory.New(memory.Options{}), gorilla.Options{})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{}, 100)
	for range cap(gone) {
		session, err := g.New(httptest.NewRequest("GET", "/", nil), "s")
		if err != nil {
			t.Fatal(err)
		}
		runtime.AddCleanup(session, func(struct{}) { gone <- struct{}{} }, struct{}{})
	}
	for deadline := time.Now().Add(30 * time.Second); len(gone) < cap(gone) || gorilla.Known(g) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d sessions are gone, and %d are known", len(gone), cap(gone), gorilla.Known(g))
		}
		runtime.GC()
	}
}

// Ids are of boj/redistore's form where its codecs are used.
func TestIDs(t *testing.T) {
	g, err := gorilla.New(memory.New(memory.Options{}), gorilla.Options{Codecs: securecookie.CodecsFromPairs(keys)})
	if err != nil {
		t.Fatal(err)
	}
	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	session, _ := g.Get(r, "s")
	if err := session.Save(r, w); err != nil {
		t.Fatal(err)
	}
	if b, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(session.ID); err != nil || len(b) != 32 {
		t.Errorf("%q: %v", session.ID, err)
	}
}
