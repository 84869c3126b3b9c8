package sessile_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// A window is a browser without a network, for when time is not the real one.
type window struct {
	t       *testing.T
	handler http.Handler
	cookie  string // "name=value"
	version string // the same, of the one whose name ends in -v
	header  http.Header
}

func (w *window) get(path string) string {
	w.t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	if w.cookie != "" {
		r.Header.Set("Cookie", strings.Trim(w.cookie+"; "+w.version, "; "))
	}
	for k, v := range w.header {
		r.Header[k] = v
	}
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	resp := rec.Result()
	for _, c := range resp.Cookies() {
		switch {
		case strings.HasSuffix(c.Name, "-v"):
			w.version = c.Name + "=" + c.Value
		case c.MaxAge < 0 && strings.HasPrefix(w.cookie, c.Name+"="):
			w.cookie = ""
		case c.MaxAge >= 0:
			w.cookie = c.Name + "=" + c.Value
		}
	}
	for k, v := range w.header {
		if got := resp.Header[k]; len(got) > 0 {
			w.header[k] = got
		} else {
			w.header[k] = v
		}
	}
	if rec.Code != http.StatusOK {
		return fmt.Sprintf("%d %s", rec.Code, strings.TrimSpace(rec.Body.String()))
	}
	return rec.Body.String()
}

func (w *window) want(path, want string) {
	w.t.Helper()
	if got := w.get(path); got != want {
		w.t.Errorf("%s: got %q, want %q", path, got, want)
	}
}

func (s *site) window(cookie string) *window {
	return &window{t: s.t, handler: s.m.Handler(s.mux), cookie: cookie}
}

// newPages is newSite without a server.
func newPages(t *testing.T, st store.Store, opt sessile.Options) *site {
	t.Helper()
	opt.Cookie.Insecure = true
	m, err := sessile.New[data](st, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	s := &site{t: t, m: m, mux: http.NewServeMux()}
	s.pages()
	return s
}

// Who comes with the old token of a session that was renewed gets the new one, until the grace is over.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{RenewEvery: 10 * time.Minute, Grace: 20 * time.Second})
		b := s.window("")
		b.want("/login", "")
		b.want("/add", "")
		first := b.cookie
		time.Sleep(9 * time.Minute)
		b.want("/", `"alice" 1`)
		if b.cookie != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * time.Minute)
		b.want("/", `"alice" 1`)
		second := b.cookie
		if second == first {
			t.Fatal("it was not renewed")
		}
		lost := s.window(first) // the response was
		lost.want("/add", "")
		if lost.cookie != second {
			t.Errorf("the old token is answered with %q, not with the new one, %q", lost.cookie, second)
		}
		b.want("/", `"alice" 2`)
		time.Sleep(11 * time.Minute)
		b.want("/", `"alice" 2`)
		if b.cookie == second {
			t.Error("it was renewed once only")
		}
		for _, old := range []string{first, second} {
			w := s.window(old)
			if old == first {
				w.want("/", `"" 0`)
			} else {
				w.want("/", `"alice" 2`)
			}
		}
		time.Sleep(21 * time.Second)
		s.window(second).want("/", `"" 0`)
		s.window(second).want("/add", "500 sessile: the session was destroyed meanwhile")
		b.want("/", `"alice" 2`)
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
	})
}

// A logout ends a session under all its tokens, whichever it comes with.
func TestLogoutAfterRenewal(t *testing.T) {
	for name, st := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := newPages(t, st, sessile.Options{})
			for _, with := range []string{"the old one", "the new one", "from elsewhere", "others, from elsewhere"} {
				b := s.window("")
				b.want("/login", "")
				old, key := b.cookie, b.get("/key")
				b.want("/renew", "")
				fresh := b.cookie
				n := 0
				var err error
				switch with {
				case "the old one":
					s.window(old).want("/logout", "")
				case "the new one":
					b.want("/logout", "")
				case "from elsewhere": // by a list from before
					n, err = s.m.RevokeOnly(t.Context(), "alice", sessile.Key(key))
				case "others, from elsewhere":
					if n, err = s.m.Revoke(t.Context(), "alice", sessile.Key(key)); n != 0 || err != nil {
						t.Errorf("%d, %v", n, err)
					}
					s.window(fresh).want("/", `"alice" 0`)
					n, err = s.m.Revoke(t.Context(), "alice")
				}
				if want := strings.Count(with, "elsewhere"); n != want || err != nil {
					t.Errorf("%s: %d, %v", with, n, err)
				}
				s.window(old).want("/", `"" 0`)
				s.window(fresh).want("/", `"" 0`)
				s.window(fresh).want("/logout", "")
			}
		})
	}
}

// Of many requests that find that it is time for a new token one makes it, and all get the same; nothing that they change is lost.
func TestOneSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, slowly{memory.New(memory.Options{})}, sessile.Options{RenewEvery: time.Minute})
		b := s.window("")
		b.want("/login", "")
		for round := range 5 {
			time.Sleep(2 * time.Minute)
			windows := make([]*window, 8)
			var wg sync.WaitGroup
			for i := range windows {
				windows[i] = s.window(b.cookie)
				wg.Go(func() {
					windows[i].want([]string{"/add", "/"}[i%2], map[bool]string{true: fmt.Sprintf(`"alice" %d`, 4*round)}[i%2 == 1])
				})
			}
			wg.Wait()
			for _, w := range windows {
				w.want("/", fmt.Sprintf(`"alice" %d`, 4*(round+1)))
				if w.cookie == b.cookie || w.cookie != windows[0].cookie {
					t.Errorf("%s has become %s, and another one %s", b.cookie, w.cookie, windows[0].cookie)
				}
			}
			b = windows[0]
		}
		if n, err := s.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
			t.Errorf("%d sessions, %v", n, err)
		}
		b.want("/", `"" 0`)
	})
}

// slowly has requests overlap: each of its operations takes a while, and another time.
type slowly struct{ store.Store }

func (s slowly) Load(ctx context.Context, key string) (store.Record, error) {
	rec, err := s.Store.Load(ctx, key)
	time.Sleep(rand.N(time.Millisecond))
	return rec, err
}

func (s slowly) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	time.Sleep(rand.N(time.Millisecond))
	return s.Store.Save(ctx, key, rec, cond)
}

// Who confirms his password has a new token at once. Requests of his other windows go on, but not as if they had confirmed it.
func TestLoginAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{})
		s.page("/fresh", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
			_, err := fmt.Fprint(w, s.Fresh(time.Minute))
			return err
		})
		b := s.window("")
		b.want("/login", "")
		b.want("/fresh", "true")
		time.Sleep(5 * time.Minute)
		b.want("/fresh", "false")
		old := b.cookie
		b.want("/login", "")
		b.want("/fresh", "true")
		other := s.window(old)
		other.want("/", `"alice" 0`)
		other.want("/fresh", "false")
		other.want("/add", "")
		b.want("/", `"alice" 1`)
		if other.cookie != old {
			t.Error("whoever has the old token gets the new one")
		}
		other.want("/renew", "")
		if other.cookie != old {
			t.Error("whoever has the old token gets a new one")
		}
		time.Sleep(31 * time.Second)
		other.want("/", `"" 0`)
		b.want("/", `"alice" 1`)
		// Somebody else on the same machine: nothing of it is forwarded.
		s.page("/bob", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
			return s.Login(r.Context(), "bob")
		})
		old = b.cookie
		b.want("/bob", "")
		s.window(old).want("/", `"" 0`)
	})
}

func TestALimitOfSessions(t *testing.T) {
	for name, st := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := newPages(t, st, sessile.Options{MaxSessions: 2})
			a, b, c := s.window(""), s.window(""), s.window("")
			a.want("/login", "")
			b.want("/login", "")
			b.want("/login", "") // takes the place of its own
			a.want("/", `"alice" 0`)
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // logins are known to the second
			c.want("/login", "")
			a.want("/", `"" 0`)
			b.want("/", `"alice" 0`)
			c.want("/", `"alice" 0`)
			if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
				t.Error(err)
			}

			s = newPages(t, st, sessile.Options{MaxSessions: 2, RefuseMore: true})
			a, b, c = s.window(""), s.window(""), s.window("")
			windows := make([]*window, 20)
			var wg sync.WaitGroup
			for i := range windows {
				windows[i] = s.window("")
				wg.Go(func() { windows[i].get("/login") })
			}
			wg.Wait()
			in := 0
			for _, w := range windows {
				if w.get("/") == `"alice" 0` {
					in++
				}
			}
			if in == 0 || in > 2 {
				t.Errorf("%d are logged in", in)
			}
			for _, w := range windows {
				if w.get("/") == `"alice" 0` {
					w.want("/logout", "")
				}
			}
			a.want("/login", "")
			b.want("/login", "")
			c.want("/login", "500 "+sessile.ErrTooMany.Error())
			c.want("/", `"" 0`)
			a.want("/login", "") // not one more
			b.want("/logout", "")
			c.want("/login", "")
			if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
				t.Error(err)
			}
		})
	}
}

// However often a session is renewed within the grace, who has its oldest token is in it, is listed once, and logs all of it out.
func TestRenewedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		oldest := b.cookie
		for range 60 {
			b.want("/renew", "")
		}
		s.window(oldest).want("/add", "")
		b.want("/", `"alice" 1`)
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
		s.window(oldest).want("/logout", "")
		b.want("/", `"" 0`)
	})
}

// However often a user logs in, his list stays short, and all that are logged in are in it.
func TestTheListStaysShort(t *testing.T) {
	for name, hide := range map[string]bool{"a store that appends": false, "one that does not": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var st store.Store = memory.New(memory.Options{})
				if hide {
					st = newPlay()
				}
				s := newPages(t, st, sessile.Options{Idle: 4 * time.Hour})
				keep := s.window("")
				keep.want("/login", "")
				for range 100 {
					w := s.window("")
					w.want("/login", "")
					w.want("/logout", "")
					time.Sleep(time.Minute)
				}
				list, err := s.m.Sessions(t.Context(), "alice")
				if len(list) != 1 || err != nil {
					t.Errorf("%d sessions, %v", len(list), err)
				}
				page, err := st.Scan(t.Context(), "", 1000)
				if err != nil {
					t.Fatal(err)
				}
				for _, key := range page.Keys {
					rec, err := st.Load(t.Context(), key)
					if err != nil {
						t.Fatal(err)
					}
					if rec.Expires.IsZero() {
						t.Errorf("%s has no deadline", key)
					}
					if len(rec.Data) > 32*27 {
						t.Errorf("%s has %d bytes", key, len(rec.Data))
					}
				}
			})
		})
	}
}

func TestTokensInAHeader(t *testing.T) {
	for _, header := range []string{"X-Session", "Authorization"} {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{Header: header})
		empty := map[bool]string{false: "", true: "Bearer "}[header == "Authorization"]
		app := s.window("")
		app.header = http.Header{header: {empty}}
		app.want("/add", "")
		if got := app.header.Get(header); len(got) < 30 || !strings.HasPrefix(got, empty) || app.cookie != "" {
			t.Fatalf("%s: %q, cookie %q", header, got, app.cookie)
		}
		app.want("/", `"" 1`)
		b := s.window("session=" + strings.TrimPrefix(app.header.Get(header), empty)) // the same may come in a cookie, from who has it
		b.want("/", `"" 1`)
		old := app.header.Get(header)
		app.want("/login", "")
		if app.header.Get(header) == old {
			t.Error("a login without a new token")
		}
		app.want("/", `"alice" 1`)
		app.cookie = b.cookie // does not count
		app.header = http.Header{header: {empty + "junk"}}
		app.want("/", `"" 0`)
		app.header = http.Header{header: {old, old}}
		app.want("/", `"" 0`)
	}
	s := newPages(t, memory.New(memory.Options{}), sessile.Options{Header: "Authorization"})
	b := s.window("")
	b.want("/add", "")
	b.header = http.Header{"Authorization": {"Basic dTpw"}}
	b.want("/", `"" 1`)
}

// What is shown once is not shown again, and what comes while it is shown is not lost.
func TestFlash(t *testing.T) {
	type value struct{ Notes sessile.Flash[string] }
	m, err := sessile.New[value](memory.New(memory.Options{}), sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan bool, 1), make(chan bool, 1)
	mux := http.NewServeMux()
	page := func(path string, f func(w http.ResponseWriter, s *sessile.Session[value]) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err == nil {
				err = f(w, s)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	notes := func(v *value) *sessile.Flash[string] { return &v.Notes }
	page("/note", func(_ http.ResponseWriter, s *sessile.Session[value]) error {
		return s.Update(func(v *value) error { v.Notes.Add("saved"); return nil })
	})
	show := func(w http.ResponseWriter, s *sessile.Session[value]) error {
		list, err := sessile.Take(s, notes)
		fmt.Fprint(w, list)
		return err
	}
	page("/show", show)
	page("/slow", func(w http.ResponseWriter, s *sessile.Session[value]) error {
		begun <- true
		<-goOn
		return show(w, s)
	})
	b := &window{t: t, handler: m.Handler(mux)}
	b.want("/show", "[]")
	if b.cookie != "" {
		t.Error("a session of nothing")
	}
	b.want("/note", "")
	b.want("/note", "")
	b.want("/show", "[saved saved]")
	b.want("/show", "[]")
	b.want("/note", "")
	slow := &window{t: t, handler: b.handler, cookie: b.cookie}
	done := make(chan string, 1)
	go func() { done <- slow.get("/slow") }()
	<-begun
	b.want("/note", "")
	goOn <- true
	if got := <-done; got != "[saved]" {
		t.Error(got)
	}
	b.want("/show", "[saved]")
	b.want("/show", "[]")
}

// Secrets, keys and codecs are changed while the site runs.
func TestChangesOfTheSetUp(t *testing.T) {
	key := func(b byte) []byte { return []byte(strings.Repeat(string(rune('a'+b)), 32)) }
	for name, c := range map[string]struct{ before, after, wrong sessile.Options }{
		"secret":    {sessile.Options{Secret: []byte("a")}, sessile.Options{Secret: []byte("b"), OldSecrets: [][]byte{[]byte("a")}}, sessile.Options{Secret: []byte("b")}},
		"first one": {sessile.Options{}, sessile.Options{Secret: []byte("b"), OldSecrets: [][]byte{nil}}, sessile.Options{Secret: []byte("b")}},
		"key":       {sessile.Options{Encrypt: [][]byte{key(0)}}, sessile.Options{Encrypt: [][]byte{key(1), key(0)}}, sessile.Options{Encrypt: [][]byte{key(1)}}},
		"encrypt":   {sessile.Options{}, sessile.Options{Encrypt: [][]byte{key(0)}, AcceptPlain: true}, sessile.Options{Encrypt: [][]byte{key(0)}}},
		"codec":     {sessile.Options{}, sessile.Options{Codec: upper{}}, sessile.Options{}},
		"codec 2":   {sessile.Options{Codec: upper{}}, sessile.Options{Codecs: []sessile.Codec{upper{}}}, sessile.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			st := memory.New(memory.Options{})
			before, after, wrong := newPages(t, st, c.before), newPages(t, st, c.after), newPages(t, st, c.wrong)
			b := before.window("")
			b.want("/login", "")
			b.want("/add", "")
			if name != "codec" {
				wrong.window(b.cookie).want("/", `"" 0`)
			}
			a := after.window(b.cookie)
			a.want("/", `"alice" 1`)
			a.want("/add", "")
			a.want("/", `"alice" 2`)
			if name != "encrypt" && name != "key" && name != "codec" { // what is written now is for those who know what is new
				b.want("/", `"alice" 2`)
			}
			if list, err := after.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
				t.Errorf("%d sessions, %v", len(list), err)
			}
			a.want("/renew", "")
			a.want("/", `"alice" 2`)
			if n, err := after.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("%d sessions, %v", n, err)
			}
			a.want("/", `"" 0`)
		})
	}
	if _, err := sessile.New[struct{ C chan int }](memory.New(memory.Options{}), sessile.Options{}); err == nil {
		t.Error("values that JSON cannot write are taken")
	}
	for name, opt := range map[string]sessile.Options{
		"two codecs of one ID": {Codec: upper{}, Codecs: []sessile.Codec{upper{}}}, "AcceptPlain alone": {AcceptPlain: true}, "RefuseMore alone": {RefuseMore: true},
		"a grace before its time": {Grace: -1}, "copies of what does not tell": {Near: time.Second},
	} {
		if _, err := sessile.New[data](struct{ store.Store }{memory.New(memory.Options{})}, opt); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

type upper struct{}

func (upper) ID() byte { return 8 }
func (upper) Marshal(v any) ([]byte, error) {
	b, err := sessile.JSON.Marshal(v)
	return append([]byte("upper"), b...), err
}
func (upper) Unmarshal(data []byte, v any) error {
	rest, ok := strings.CutPrefix(string(data), "upper")
	if !ok {
		return errors.New("not mine")
	}
	return sessile.JSON.Unmarshal([]byte(rest), v)
}

// Forms of other sites' pages change nothing.
func TestOtherSites(t *testing.T) {
	s := newPages(t, memory.New(memory.Options{}), sessile.Options{Header: "X-Session"})
	post := func(header, value string) int {
		r := httptest.NewRequest("POST", "/add", nil)
		r.Header.Set(header, value)
		w := httptest.NewRecorder()
		s.m.Handler(s.mux).ServeHTTP(w, r)
		return w.Code
	}
	for _, c := range []struct {
		header, value string
		want          int
	}{{"Sec-Fetch-Site", "same-origin", 200}, {"Sec-Fetch-Site", "cross-site", 403}, {"Origin", "https://evil.example", 403}, {"X-Session", "", 200}} {
		if got := post(c.header, c.value); got != c.want {
			t.Errorf("%s: %s: %d", c.header, c.value, got)
		}
	}
}

// What another site's page embeds begins no session, nor does it log anybody in, but where the cookie is for that. What is there goes on.
func TestEmbeddedElsewhere(t *testing.T) {
	embedded := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"no-cors"}}
	for _, c := range []struct {
		header http.Header
		none   bool
		begins bool
	}{
		{embedded, false, false},
		{embedded, true, true},
		{http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"navigate"}}, false, true},
		{http.Header{"Sec-Fetch-Site": {"same-site"}, "Sec-Fetch-Mode": {"no-cors"}}, false, true},
		{nil, false, true},
	} {
		st := memory.New(memory.Options{})
		opt := sessile.Options{}
		if c.none {
			opt.Cookie.SameSite = http.SameSiteNoneMode
		}
		m, err := sessile.New[data](st, opt)
		if err != nil {
			t.Fatal(err)
		}
		for name, act := range map[string]func(s *sessile.Session[data]) error{
			"change": func(s *sessile.Session[data]) error { return s.Update(add) },
			"login":  func(s *sessile.Session[data]) error { return s.Login(t.Context(), "alice") },
		} {
			h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				s, err := m.Get(r)
				if err == nil {
					err = act(s)
				}
				if want := map[bool]error{false: sessile.ErrCrossSite}[c.begins]; !errors.Is(err, want) {
					t.Errorf("%v: %s: %v, want %v", c, name, err, want)
				}
			}))
			r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
			r.Header = maps.Clone(c.header)
			h.ServeHTTP(w, r)
			if begun := len(w.Result().Cookies()) > 0; begun != c.begins {
				t.Errorf("%v: %s: begun: %v", c, name, begun)
			}
		}
		if page, err := st.Scan(t.Context(), "", 10); err != nil || (len(page.Keys) > 0) != c.begins {
			t.Errorf("%v: %d keys, %v", c, len(page.Keys), err)
		}
	}
}

// Whoever observes hears of everything, and of no token.
func TestEvents(t *testing.T) {
	var mu sync.Mutex
	var kinds []string
	s := newPages(t, memory.New(memory.Options{}), sessile.Options{Observe: func(_ context.Context, e sessile.Event) {
		mu.Lock()
		defer mu.Unlock()
		kind := string(e.Kind)
		if e.Err != nil {
			kind += " failed"
		}
		kinds = append(kinds, kind)
		if (e.Duration > 0) != !e.Start.IsZero() {
			t.Errorf("%+v", e)
		}
	}})
	b := s.window("")
	for _, c := range []struct{ path, want string }{
		{"/", ""}, {"/add", "create"}, {"/", "load"}, {"/add", "load save"}, {"/login", "load login"}, {"/renew", "load renew"}, {"/logout", "load logout"},
	} {
		kinds = nil
		b.get(c.path)
		if got := strings.Join(kinds, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	kinds = nil
	s.window("session=junk").want("/", `"" 0`)
	if fmt.Sprint(kinds) != "[refused]" {
		t.Error(kinds)
	}
}

// A login whose session cannot be put into the list of the user's is none, and the session from before is there still.
func TestALoginThatCannotBeListed(t *testing.T) {
	for name, st := range map[string]store.Store{"in one step": noList{memory.New(memory.Options{})}, "in two": struct{ store.Store }{noIndex{memory.New(memory.Options{})}}} {
		t.Run(name, func(t *testing.T) {
			s := newPages(t, st, sessile.Options{})
			b := s.window("")
			b.want("/add", "")
			if got := b.get("/login"); !strings.Contains(got, "list") {
				t.Error(got)
			}
			b.want("/", `"" 1`)
			b.want("/add", "")
			b.want("/", `"" 2`)
		})
	}
}

type noList struct{ *memory.Store }

func (noList) Append(context.Context, string, []byte, time.Time) (store.Record, error) {
	return store.Record{}, errAway
}

type noIndex struct{ store.Store }

func (s noIndex) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	if !strings.HasPrefix(key, "{") {
		return errAway
	}
	return s.Store.Save(ctx, key, rec, cond)
}
