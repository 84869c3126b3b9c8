package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/internal/testserver"
	store "github.com/sessile/sessile/store/redis"
	"go.uber.org/goleak"
)

// scs.New starts a goroutine for a store that is not used, and cannot stop it.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/alexedwards/scs/v2/memstore.(*MemStore).startCleanup"))
}

type browser struct {
	t    testing.TB
	url  string
	http http.Client
	user string
	cart []string // what it has put in, and was answered
}

func newBrowser(t testing.TB, url, user string) *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{t: t, url: url, user: user, http: http.Client{Jar: jar}}
}

func (b *browser) do(path string, form ...string) string {
	var resp *http.Response
	var err error
	if path == "/" {
		resp, err = b.http.Get(b.url)
	} else {
		values := url.Values{}
		for i := 0; i < len(form); i += 2 {
			values.Set(form[i], form[i+1])
		}
		resp, err = b.http.PostForm(b.url+path, values)
	}
	if err != nil {
		b.t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		b.t.Errorf("%s of %s: %s, %v", b.user, path, resp.Status, err)
	}
	return strings.TrimSpace(string(body))
}

func (b *browser) buy() {
	item := fmt.Sprint(b.user, "-", len(b.cart))
	b.do("/cart", "item", item)
	b.cart = append(b.cart, item)
}

// check looks whether the browser is logged in, with all that it has put into its cart.
func (b *browser) check(when string) {
	b.t.Helper()
	if got, want := b.do("/"), b.user+": "+strings.Join(b.cart, " "); got != want {
		b.t.Errorf("%s: got %q, want %q", when, got, want)
	}
}

// cookie is the value of the session's cookie.
func (b *browser) cookie() string {
	u, _ := url.Parse(b.url)
	for _, c := range b.http.Jar.Cookies(u) {
		return c.Value
	}
	return ""
}

// with is another browser, which has somehow got that cookie.
func (b *browser) with(cookie string) *browser {
	u, _ := url.Parse(b.url)
	other := newBrowser(b.t, b.url, b.user+"'s cookie")
	other.http.Jar.SetCookies(u, []*http.Cookie{{Name: "session", Value: cookie, Path: "/"}})
	return other
}

func TestNobodyIsLoggedOut(t *testing.T) {
	srv := testserver.Redis(t)
	client := redis.NewClient(&redis.Options{Addr: srv.Addr})
	t.Cleanup(func() { client.Close() })
	sessions := oldSessions(client)
	was := before(sessions)
	is, end, err := after(t.Context(), srv.Addr, "a secret", sessions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end() })

	// What stands before the site sends each request to the one or to the other.
	var now atomic.Pointer[http.Handler]
	now.Store(&was)
	var byOld, byNew atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := now.Load()
		if site == &was {
			byOld.Add(1)
		} else {
			byNew.Add(1)
		}
		(*site).ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)

	browsers := make([]*browser, 50)
	oldCookies := make([]string, len(browsers))
	for i := range browsers {
		b := newBrowser(t, front.URL, fmt.Sprint("user", i))
		b.buy()
		b.do("/login", "user", b.user, "password", "demo")
		b.check("logged in with scs")
		browsers[i], oldCookies[i] = b, b.cookie()
	}
	away := newBrowser(t, front.URL, "away") // who comes when all is over
	away.buy()
	away.do("/login", "user", "away", "password", "demo")
	if n := len(srv.Do("KEYS", "scs:session:*").([]any)); n != len(browsers)+1 {
		t.Fatalf("%d sessions of scs, want %d", n, len(browsers)+1)
	}

	// All of them go on buying while the site is replaced: one request of each browser at a time, some of them in the old site when the new
	// one begins.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, b := range browsers {
		wg.Go(func() {
			for bought := 0; ; bought++ {
				select {
				case <-stop:
					if bought > 0 {
						return
					}
				default:
				}
				b.buy()
				b.check("while the site is replaced")
			}
		})
	}
	until(t, "requests to the old site", func() bool { return byOld.Load() > 400 })
	now.Store(&is)
	until(t, "requests to the new site", func() bool { return byNew.Load() > 400 })
	close(stop)
	wg.Wait()

	for i, b := range browsers {
		b.check("on the new site")
		if b.cookie() == oldCookies[i] {
			t.Errorf("%s has the old cookie", b.user)
		}
	}
	if left := srv.Do("KEYS", "scs:session:*").([]any); len(left) != 1 {
		t.Errorf("%d sessions of scs are left, want the one of who is away", len(left))
	}

	// A logout is one, be it with the old cookie, in both sites.
	for i, b := range browsers {
		own := b.cookie()
		if i%2 == 0 {
			b.do("/logout")
		} else { // by the old cookie, in another window
			b.with(oldCookies[i]).do("/logout")
		}
		for _, cookie := range []string{own, oldCookies[i]} {
			if got := b.with(cookie).do("/"); got != "nobody:" {
				t.Errorf("%s after the logout: %q", b.user, got)
			}
		}
	}
	now.Store(&was)
	for i, b := range browsers {
		if got := b.with(oldCookies[i]).do("/"); got != "nobody:" {
			t.Errorf("%s on the old site: %q", b.user, got)
		}
	}
	away.check("on the old site, once more") // the way back, for who was not on the new one
	now.Store(&is)

	// Two windows of one browser, whose first requests to the new site come at the same time.
	oldCookie := away.cookie()
	for w := range 2 {
		wg.Go(func() { away.do("/cart", "item", fmt.Sprint("w", w)) })
	}
	wg.Wait()
	if got := away.do("/"); got != "away: away-0 w0 w1" && got != "away: away-0 w1 w0" {
		t.Errorf("two windows: %q", got)
	}
	if got, own := away.with(oldCookie).do("/"), away.do("/"); got != own {
		t.Errorf("the old cookie is %q, the new one %q", got, own)
	}
	if left := srv.Do("KEYS", "scs:session:*").([]any); len(left) != 0 {
		t.Errorf("%d sessions of scs are left", len(left))
	}
}

// Who closes the browser is logged in the next morning, before and after.
func TestCookiesStay(t *testing.T) {
	srv := testserver.Redis(t)
	client := redis.NewClient(&redis.Options{Addr: srv.Addr})
	t.Cleanup(func() { client.Close() })
	sessions := oldSessions(client)
	is, end, err := after(t.Context(), srv.Addr, "a secret", sessions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end() })
	r := httptest.NewRequest("POST", "/cart?item=tea", nil)
	for _, site := range []http.Handler{before(sessions), is} {
		w := httptest.NewRecorder()
		site.ServeHTTP(w, r)
		cookies := w.Result().Cookies()
		if len(cookies) != 1 || cookies[0].MaxAge < 86_000 || cookies[0].MaxAge > 86_400 {
			t.Fatalf("cookies: %v", cookies)
		}
		r = httptest.NewRequest("GET", "/", nil)
		r.AddCookie(cookies[0])
	}
}

// Our store and goredisstore have the same sessions, so that one can take the other's place at any time.
func TestTheFirstStepAndBack(t *testing.T) {
	srv := testserver.Redis(t)
	client := redis.NewClient(&redis.Options{Addr: srv.Addr})
	t.Cleanup(func() { client.Close() })
	under, err := store.Connect(t.Context(), store.Options{Addr: srv.Addr, Prefix: "scs:session:"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { under.Close() })
	with := oldSessions(client)
	ours, err := scsstore.New(under, scsstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	with.Store, with.ErrorFunc = ours, scsstore.ErrorFunc(with.ErrorFunc)

	sites := []http.Handler{before(oldSessions(client)), before(with)}
	var turn atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sites[int(turn.Add(1))%len(sites)].ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	for i := range 2 {
		turn.Store(int32(i))
		b := newBrowser(t, front.URL, "alice")
		b.do("/login", "user", b.user, "password", "demo")
		for range 5 {
			b.buy()
			b.check("in turn")
			b.do("/") // so that both sites sell
		}
		cookie := b.cookie()
		b.do("/logout")
		for range sites {
			if got := b.with(cookie).do("/"); got != "nobody:" {
				t.Errorf("after the logout: %q", got)
			}
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute: ", what)
		}
	}
}
