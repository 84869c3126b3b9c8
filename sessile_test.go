package sessile_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

// data shares nothing when it is copied, so that what was decoded of it is kept (memo).
type data struct {
	N    int
	Slow bool
}

// stores are what everything here is tried on.
func stores(t *testing.T) map[string]store.Store {
	t.Helper()
	mem := memory.New(memory.Options{})
	red, err := redis.Connect(t.Context(), redis.Options{Addr: testserver.Redis(t).Addr, Prefix: "s:"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close(); red.Close() })
	return map[string]store.Store{"memory": mem, "Redis": red}
}

// A site is a server with pages, and counts what it asks its store.
type site struct {
	t   *testing.T
	m   *sessile.Manager[data]
	mux *http.ServeMux
	srv *httptest.Server
}

func newSite(t *testing.T, st store.Store, opt sessile.Options) *site {
	t.Helper()
	opt.Cookie.Insecure = true
	m, err := sessile.New[data](st, opt)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, m: m, mux: http.NewServeMux()}
	s.srv = httptest.NewServer(m.Handler(s.mux))
	t.Cleanup(s.srv.Close)
	s.pages()
	return s
}

func (s *site) pages() {
	s.page("/", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		user, _ := s.User()
		_, err := fmt.Fprintf(w, "%q %v", user, s.Value().N)
		return err
	})
	s.page("/add", func(_ http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error { return s.Update(add) })
	s.page("/login", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		return s.Login(r.Context(), "alice")
	})
	s.page("/logout", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		return s.Logout(r.Context())
	})
	s.page("/renew", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		return s.Renew(r.Context())
	})
	s.page("/key", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
		_, err := io.WriteString(w, string(s.Key()))
		return err
	})
}

func add(d *data) error {
	d.N++
	return nil
}

func (s *site) page(pattern string, f func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		session, err := s.m.Get(r)
		if err == nil {
			err = f(w, r, session)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

type browser struct {
	t   *testing.T
	url string
	*http.Client
}

func (s *site) browser() *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{s.t, s.srv.URL, &http.Client{Jar: jar}}
}

func (b *browser) get(path string) string {
	b.t.Helper()
	resp, err := b.Get(b.url + path)
	if err != nil {
		b.t.Errorf("%s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Errorf("%s: %v", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return string(body)
}

func (b *browser) want(path, want string) {
	b.t.Helper()
	if got := b.get(path); got != want {
		b.t.Errorf("%s: got %q, want %q", path, got, want)
	}
}

func TestASession(t *testing.T) {
	for name, st := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, st, sessile.Options{Encrypt: [][]byte{make([]byte, 32)}, Secret: []byte("secret")})
			b, other := s.browser(), s.browser()
			b.want("/", `"" 0`)
			b.want("/add", "")
			b.want("/add", "")
			b.want("/", `"" 2`)
			other.want("/", `"" 0`)
			b.want("/login", "")
			b.want("/", `"alice" 2`)
			b.want("/logout", "")
			b.want("/", `"" 0`)
			b.want("/add", "")
			b.want("/", `"" 1`)
		})
	}
}

// The probe: while one request of a browser is under way, another one of it does something. Nothing of that is undone or lost, by a
// request that only reads or by one that writes; and who was logged in meanwhile stays so.
func TestTwoRequestsOfOneBrowser(t *testing.T) {
	for name, st := range stores(t) {
		for _, slow := range []string{"reads", "writes", "writes late"} {
			for _, c := range []struct{ quick, want, slow string }{
				{"/logout", `"" 0`, ""},
				{"/add", "", ""},
				{"/login", "", ""},
			} {
				t.Run(fmt.Sprintf("%s: it %s, while %s", name, slow, c.quick), func(t *testing.T) {
					s := newSite(t, st, sessile.Options{TouchEvery: -1})
					begun, goOn := make(chan bool), make(chan bool)
					s.page("/slow", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
						begun <- true
						<-goOn
						switch slow {
						case "writes":
							return s.Update(func(d *data) error { d.Slow = true; return nil })
						case "writes late":
							io.WriteString(w, "x")
							return s.Update(func(d *data) error { d.Slow = true; return nil })
						}
						return nil
					})
					s.page("/items", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
						_, err := fmt.Fprint(w, map[bool]int{true: 1}[s.Value().Slow])
						return err
					})
					b := s.browser()
					b.want("/add", "")
					old := b.Jar.Cookies(mustURL(t, b.url))[0].Value
					slowly := b.cookied(old)
					done := make(chan string, 1)
					go func() { done <- slowly.get("/slow") }()
					<-begun
					b.want(c.quick, "")
					close(goOn)
					if got := <-done; strings.HasPrefix(got, "5") && slow != "reads" && c.quick == "/add" {
						t.Errorf("the slow request: %s", got)
					}
					// What the browser has now, and what it had before.
					var now, items string
					switch c.quick {
					case "/logout":
						now, items = `"" 0`, "0"
					case "/add":
						now, items = `"" 2`, map[string]string{"reads": "0"}[slow]
						if items == "" {
							items = "1"
						}
					case "/login":
						now, items = `"alice" 1`, "0"
					}
					b.want("/", now)
					b.want("/items", items)
					if c.quick != "/add" {
						b.cookied(old).want("/", `"" 0`) // undead
					}
					if fresh := slowly.Jar.Cookies(mustURL(t, b.url)); len(fresh) != 1 || fresh[0].Value != old {
						t.Errorf("the slow request was answered with another cookie, which takes the place of the new one: %v", fresh)
					}
				})
			}
		}
	}
}

// Whatever many requests add at the same time is there at the end.
func TestNoUpdateIsLost(t *testing.T) {
	for name, st := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, st, sessile.Options{})
			b := s.browser()
			b.want("/add", "")
			var ok atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 10 {
						if got := b.get("/add"); got == "" {
							ok.Add(1)
						}
					}
				})
			}
			wg.Wait()
			b.want("/", fmt.Sprintf(`"" %d`, 1+ok.Load()))
			if ok.Load() < 70 {
				t.Errorf("%d of 80 were acknowledged", ok.Load())
			}
		})
	}
}

// A store that is away is an outage: no page takes it for a session that is not there, and no cookie changes.
func TestAStoreThatIsAway(t *testing.T) {
	st := &broken{Store: memory.New(memory.Options{})}
	s := newSite(t, st, sessile.Options{})
	s.mux.HandleFunc("/public", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "public") })
	b, stranger := s.browser(), s.browser()
	b.want("/add", "")
	st.err.Store(&errAway)
	for _, path := range []string{"/", "/add", "/login", "/logout"} {
		if got := b.get(path); !strings.HasPrefix(got, "500 sessile: load: ") {
			t.Errorf("%s: %q", path, got)
		}
	}
	b.want("/public", "public")
	stranger.want("/", `"" 0`)
	stranger.want("/add", "503 Service Unavailable")
	if n := len(stranger.Jar.Cookies(mustURL(t, b.url))); n != 0 {
		t.Error("a cookie of a session that was not saved")
	}
	st.err.Store(nil)
	b.want("/", `"" 1`)
}

// A login that has failed logs nobody in later, by what else the request does.
func TestALoginThatFails(t *testing.T) {
	st := &broken{Store: memory.New(memory.Options{})}
	s := newSite(t, st, sessile.Options{})
	s.page("/try", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		st.err.Store(&errAway)
		if err := s.Login(r.Context(), "alice"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Login: %v", err)
		}
		st.err.Store(nil)
		return s.Update(add)
	})
	for _, before := range []string{"/", "/add"} {
		b := s.browser()
		b.get(before)
		b.want("/try", "")
		b.want("/", fmt.Sprintf(`"" %d`, 1+len(before)/4))
	}
}

var errAway = fmt.Errorf("down: %w", store.ErrUnavailable)

type broken struct {
	store.Store
	err atomic.Pointer[error]
}

func (b *broken) Load(ctx context.Context, key string) (store.Record, error) {
	if err := b.err.Load(); err != nil {
		return store.Record{}, *err
	}
	return b.Store.Load(ctx, key)
}

func (b *broken) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	if err := b.err.Load(); err != nil {
		return *err
	}
	return b.Store.Save(ctx, key, rec, cond)
}

// A session ends when it is not used, and at its absolute deadline however much it is.
func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := sessile.New[data](memory.New(memory.Options{}), sessile.Options{Idle: 30 * time.Minute, Absolute: 2 * time.Hour, Cookie: sessile.Cookie{Insecure: true}})
		if err != nil {
			t.Fatal(err)
		}
		cookie := ""
		visit := func(change bool) (n int) {
			t.Helper()
			r := httptest.NewRequest("GET", "/", nil)
			if cookie != "" {
				r.Header.Set("Cookie", cookie)
			}
			w := httptest.NewRecorder()
			m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				s, err := m.Get(r)
				if err != nil {
					t.Fatal(err)
				}
				n = s.Value().N
				if change {
					err = s.Update(add)
				}
				if err != nil {
					t.Error(err)
				}
			})).ServeHTTP(w, r)
			for _, c := range w.Result().Cookies() {
				cookie = c.Name + "=" + c.Value
			}
			return n
		}
		visit(true)
		for range 5 {
			time.Sleep(20 * time.Minute)
			if n := visit(false); n != 1 {
				t.Fatalf("a session in use is over: %d", n)
			}
		}
		time.Sleep(20*time.Minute + time.Second)
		if n := visit(false); n != 0 {
			t.Error("the absolute deadline is over, and the session is not")
		}
		visit(true)
		time.Sleep(30*time.Minute + time.Second)
		if n := visit(false); n != 0 {
			t.Error("nobody has used the session, and it is there")
		}
	})
}

// What can be said about a response is said before it begins, on whatever way that is.
func TestTheCookieComesBeforeTheResponse(t *testing.T) {
	for how, respond := range map[string]func(w http.ResponseWriter){
		"nothing": func(http.ResponseWriter) {},
		"Write":   func(w http.ResponseWriter) { io.WriteString(w, "x") },
		"status":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"Flush":   func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"FlushError": func(w http.ResponseWriter) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
		},
		"ReadFrom": func(w http.ResponseWriter) { io.Copy(w, strings.NewReader("x")) },
	} {
		t.Run(how, func(t *testing.T) {
			s := newSite(t, memory.New(memory.Options{}), sessile.Options{})
			late := make(chan error, 1)
			s.page("/p", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
				w.Header().Set("Link", "</a.css>")
				w.WriteHeader(http.StatusEarlyHints)
				if err := s.Update(add); err != nil {
					return err
				}
				respond(w)
				late <- s.Update(add)
				return nil
			})
			b := s.browser()
			b.get("/p")
			if err := <-late; err != nil {
				t.Errorf("a change when the browser has the cookie: %v", err)
			}
			b.want("/", `"" 2`)
		})
	}
}

func TestALateChangeWithoutACookie(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), sessile.Options{})
	s.page("/p", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		io.WriteString(w, "x")
		if err := errors.Join(s.Update(add)); !errors.Is(err, sessile.ErrLate) {
			t.Errorf("Update: %v", err)
		}
		if err := s.Login(r.Context(), "alice"); !errors.Is(err, sessile.ErrLate) {
			t.Errorf("Login: %v", err)
		}
		return nil
	})
	b := s.browser()
	b.want("/p", "x")
	b.want("/", `"" 0`)
}
