package sessile_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// counted counts what is asked of a store.
type counted struct {
	store.Store
	n atomic.Int64
}

func (c *counted) Load(ctx context.Context, key string) (store.Record, error) {
	c.n.Add(1)
	return c.Store.Load(ctx, key)
}

func (c *counted) Inspect(ctx context.Context, key string) (store.Record, error) {
	c.n.Add(1)
	return c.Store.Inspect(ctx, key)
}

func (c *counted) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	c.n.Add(1)
	return c.Store.Save(ctx, key, rec, cond)
}

func (c *counted) Touch(ctx context.Context, key string, expires time.Time) error {
	c.n.Add(1)
	return c.Store.Touch(ctx, key, expires)
}

func (c *counted) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	c.n.Add(1)
	return c.Store.Delete(ctx, key, cond)
}

// What a request costs, in operations of the store.
func TestBudget(t *testing.T) {
	st := &counted{Store: memory.New(memory.Options{})}
	s := newSite(t, st, sessile.Options{})
	s.mux.HandleFunc("/static", func(http.ResponseWriter, *http.Request) {})
	b := s.browser()
	for _, c := range []struct {
		path string
		want int64
	}{
		{"/", 0},       // nobody has a session
		{"/add", 1},    // it is made
		{"/", 1},       // it is read
		{"/add", 2},    // read and changed
		{"/static", 0}, // nobody asks for it
		{"/login", 5},  // read; the user's list read and written; the new one made, the old one ended
		{"/", 1},       //
		{"/logout", 2}, // read, and ended
		{"/", 0},       // the cookie is gone
		{"/logout", 0}, //
		{"/static", 0}, //
	} {
		before := st.n.Load()
		b.get(c.path)
		if got := st.n.Load() - before; got != c.want {
			t.Errorf("%s: %d operations, want %d", c.path, got, c.want)
		}
	}
}

// What is no token is not looked up, and no session is made of it.
func TestHostileCookies(t *testing.T) {
	st := &counted{Store: memory.New(memory.Options{})}
	s := newSite(t, st, sessile.Options{})
	for _, value := range []string{"", "x", "../../../../etc/passwd", "%2e%2e%2f", strings.Repeat("a", 29), strings.Repeat("a", 31), strings.Repeat("a", 34), strings.Repeat("a", 4096),
		strings.Repeat("=", 30), "sessile:control", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa ", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaa\"x", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaB", "*"} {
		r, _ := http.NewRequest("GET", s.srv.URL+"/", nil)
		r.Header.Set("Cookie", "session="+value)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != `"" 0` || len(resp.Cookies()) > 0 {
			t.Errorf("%q: %q, %v", value, body, resp.Cookies())
		}
	}
	if n := st.n.Load(); n != 0 {
		t.Errorf("the store was asked %d times", n)
	}
	// A token that somebody has chosen is never the session's.
	chosen := strings.Repeat("A", 27)
	b := s.browser().cookied(chosen)
	b.want("/add", "")
	if got := b.Jar.Cookies(mustURL(t, b.url))[0].Value; got == chosen {
		t.Error("the session has the token that the request came with")
	}
	s.browser().cookied(chosen).want("/", `"" 0`)
}

// A logout is done, though the client does not wait for it.
func TestTheClientIsGone(t *testing.T) {
	st := memory.New(memory.Options{})
	s := newSite(t, st, sessile.Options{})
	done := make(chan error, 1)
	s.page("/leave", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		done <- s.Logout(ctx)
		return nil
	})
	b := s.browser()
	b.want("/login", "")
	same := b.cookied(b.Jar.Cookies(mustURL(t, b.url))[0].Value)
	same.want("/", `"alice" 0`)
	b.want("/leave", "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	same.want("/", `"" 0`)
}

// A handler that panics has changed nothing.
func TestAPanic(t *testing.T) {
	m, err := sessile.New[data](memory.New(memory.Options{}), sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() { recover() }()
		m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			s, _ := m.Get(r)
			s.Update(add)
			panic(http.ErrAbortHandler)
		})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	}()
	if c := w.Result().Cookies(); len(c) != 0 {
		t.Errorf("a cookie: %v", c)
	}
}

// Two managers, each with a cookie of its own, in one request.
func TestTwoManagers(t *testing.T) {
	st := memory.New(memory.Options{})
	type cart struct{ N int }
	one, err := sessile.New[cart](st, sessile.Options{Cookie: sessile.Cookie{Name: "one", Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	two, err := sessile.New[cart](st, sessile.Options{Cookie: sessile.Cookie{Name: "two", Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(one.Handler(two.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err1 := one.Get(r)
		b, err2 := two.Get(r)
		if err1 != nil || err2 != nil {
			t.Error(err1, err2)
			return
		}
		a.Update(func(c *cart) error { c.N++; return nil })
		b.Update(func(c *cart) error { c.N += 10; return nil })
		fmt.Fprint(w, a.Value().N, " ", b.Value().N)
	}))))
	t.Cleanup(srv.Close)
	s := &site{t: t, srv: srv}
	b := s.browser()
	b.want("/", "1 10")
	b.want("/", "2 20")
	if n := len(b.Jar.Cookies(mustURL(t, srv.URL))); n != 2 {
		t.Errorf("%d cookies", n)
	}
	r := httptest.NewRequest("GET", "/", nil)
	if _, err := one.Get(r); err != sessile.ErrNoHandler {
		t.Errorf("without a handler: %v", err)
	}
}

// A connection that is taken over has the cookie in what the handler writes by itself, and the session is saved.
func TestHijack(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), sessile.Options{})
	s.page("/raw", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
		if err := s.Update(add); err != nil {
			return err
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nSet-Cookie: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", w.Header().Get("Set-Cookie"))
		return nil
	})
	b := s.browser()
	b.want("/raw", "")
	b.want("/", `"" 1`)
}

// What the writer below can do, http.ResponseController finds; and a handler that streams does.
func TestStreaming(t *testing.T) {
	s := newSite(t, memory.New(memory.Options{}), sessile.Options{})
	next := make(chan bool)
	s.page("/events", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
		if err := s.Update(add); err != nil {
			return err
		}
		rc := http.NewResponseController(w)
		if err := rc.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		for range 2 {
			fmt.Fprintln(w, "event")
			if err := rc.Flush(); err != nil {
				return err
			}
			<-next
		}
		return nil
	})
	b := s.browser()
	resp, err := b.Get(b.url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	for i := range 2 {
		if !in.Scan() || in.Text() != "event" {
			t.Errorf("event %d: %q", i, in.Text())
		}
		b.want("/", `"" 1`) // in another request, while this one goes on
		next <- true
	}
}

// A handler that streams where its session cannot be saved hears of it, and its client is answered at once.
func TestAStreamWithoutASession(t *testing.T) {
	st := &broken{Store: memory.New(memory.Options{})}
	s := newSite(t, st, sessile.Options{})
	left := make(chan error, 1)
	s.page("/stream", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		if err := s.Update(add); err != nil {
			return err
		}
		st.err.Store(&errAway)
		err := http.NewResponseController(w).Flush()
		left <- err
		<-r.Context().Done() // it runs on
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.srv.URL+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable || len(resp.Cookies()) > 0 {
		t.Errorf("%s, %v", resp.Status, resp.Cookies())
	}
	if err := <-left; err == nil {
		t.Error("Flush says that all is well")
	}
}
