package sessile_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

// before is another library's sessions.
type before struct {
	mu       sync.Mutex
	sessions map[string]*sessile.Adopted[data]
	err      error // of Load
	stuck    error // of Delete
	loads    int
}

func (b *before) origin() sessile.Origin[data] {
	return sessile.Origin[data]{
		ID: func(r *http.Request) string {
			if c, err := r.Cookie("old"); err == nil {
				return c.Value
			}
			return ""
		},
		Load: func(_ context.Context, id string) (*sessile.Adopted[data], error) {
			time.Sleep(time.Millisecond)
			b.mu.Lock()
			defer b.mu.Unlock()
			b.loads++
			return b.sessions[id], b.err
		},
		Delete: func(_ context.Context, id string) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.stuck == nil {
				delete(b.sessions, id)
			}
			return b.stuck
		},
		Cookie: http.Cookie{Name: "old"},
	}
}

func TestAdoption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		was := &before{sessions: map[string]*sessile.Adopted[data]{
			"a": {Value: data{N: 7}, User: "alice", Login: time.Now().Add(-time.Hour), Created: time.Now().Add(-2 * time.Hour), End: time.Now().Add(time.Hour)},
			"b": {Value: data{N: 3}}, "over": {User: "mallory", End: time.Now().Add(-time.Second)}, "c": {User: "alice"}, "d": {User: "alice"},
		}}
		st := memory.New(memory.Options{})
		s := newPages(t, slowly{st}, sessile.Options{Secret: []byte("secret")})
		if err := s.m.Adopt(was.origin()); err != nil {
			t.Fatal(err)
		}
		s.page("/since", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
			_, since := s.User()
			_, err := w.Write([]byte(time.Since(since).Round(time.Minute).String()))
			return err
		})

		// Windows of one browser at the same time: all are in, with one and the same session.
		windows := make([]*window, 6)
		var wg sync.WaitGroup
		for i := range windows {
			windows[i] = s.window("old=a")
			wg.Go(func() { windows[i].want("/add", "") })
		}
		wg.Wait()
		for _, w := range windows {
			w.want("/", `"alice" 13`)
			if w.cookie != windows[0].cookie || !strings.HasPrefix(w.cookie, "session=") {
				t.Errorf("%q and %q", w.cookie, windows[0].cookie)
			}
		}
		windows[0].want("/since", "1h0m0s")
		if was.sessions["a"] != nil {
			t.Error("the old one is there still")
		}
		s.window("old=a").want("/", `"alice" 13`) // a request that was under way
		for cookie, want := range map[string]string{"old=over": `"" 0`, "old=unknown": `"" 0`, "old=b": `"" 3`, "other=b": `"" 0`} {
			s.window(cookie).want("/", want)
		}
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}

		// A logout is one, whatever comes with the old cookie.
		windows[1].want("/logout", "")
		s.window("old=a").want("/", `"" 0`)
		windows[2].want("/", `"" 0`)

		// It ends when it would have.
		was.sessions["e"] = &sessile.Adopted[data]{User: "alice", End: time.Now().Add(10 * time.Minute)}
		e := s.window("old=e")
		e.want("/", `"alice" 0`)
		time.Sleep(10*time.Minute + time.Second)
		e.want("/", `"" 0`)

		// What is away is an outage, and nobody is logged out by it.
		was.err = errors.New("away")
		c := s.window("old=c")
		if got := c.get("/"); !strings.HasPrefix(got, "500 ") || c.cookie != "old=c" {
			t.Errorf("%s, cookie %s", got, c.cookie)
		}
		was.err, was.stuck = nil, errors.New("stuck")
		if got := c.get("/"); !strings.HasPrefix(got, "500 ") || c.cookie != "old=c" {
			t.Errorf("%s, cookie %s", got, c.cookie)
		}
		was.stuck = nil
		c.want("/", `"alice" 0`)
		c.want("/logout", "")
		time.Sleep(time.Hour)
		s.window("old=c").want("/", `"" 0`)

		// One of ours that is over by logout does not fall back on an old one.
		d := s.window("")
		d.want("/add", "")
		ours := d.cookie
		d.want("/logout", "")
		s.window(ours+"; old=d").want("/", `"" 0`)
		// One that is not known does.
		time.Sleep(time.Hour)
		s.window(ours+"; old=d").want("/", `"alice" 0`)
	})
	m, err := sessile.New[data](memory.New(memory.Options{}), sessile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt(new(before).origin()); err == nil {
		t.Error("without a secret, new tokens can be made of old ones")
	}
}

// A tracker is a store that tells.
type tracker struct {
	store.Store
	mu      sync.Mutex
	changed func(string)
	loads   int
	silent  bool
}

func (s *tracker) Track(changed func(string)) (func(context.Context, string) (store.Record, error), func(), error) {
	s.changed = changed
	return func(ctx context.Context, key string) (store.Record, error) {
		s.mu.Lock()
		s.loads++
		s.mu.Unlock()
		return s.Store.Load(ctx, key)
	}, func() {}, nil
}

func (s *tracker) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	err := s.Store.Save(ctx, key, rec, cond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.silent {
		s.changed(key)
	}
	return err
}

// With copies of sessions nearby a request that reads asks nobody, and a browser sees what it has written, whichever process it
// went to, at once.
func TestNear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memory.New(memory.Options{})
		here, there := &tracker{Store: mem}, &tracker{Store: mem}
		opt := sessile.Options{Near: 5 * time.Second, TouchEvery: 20 * time.Minute}
		a, b := newPages(t, here, opt), newPages(t, there, opt)
		// News from elsewhere do not come: so it is when a connection has just been lost.
		w := a.window("")
		w.want("/login", "")
		w.want("/add", "")
		for range 10 {
			w.want("/", `"alice" 1`)
		}
		if here.loads > 3 {
			t.Errorf("%d were loaded", here.loads)
		}
		at := func(s *site) *window {
			return &window{t: t, handler: s.m.Handler(s.mux), cookie: w.cookie, version: w.version}
		}
		other := at(b)
		other.want("/", `"alice" 1`)
		w.want("/add", "")
		// The same browser, at the other process: it has a new version.
		at(b).want("/", `"alice" 2`)
		other = at(b)
		other.want("/add", "")
		w.version = other.version
		w.want("/", `"alice" 3`)
		// A change is made of what is there, not of a copy.
		stale := at(a)
		other.want("/add", "")
		stale.want("/add", "")
		w.version = stale.version
		w.want("/", `"alice" 5`)
		// A logout elsewhere is known after Near at the latest.
		at(b).want("/", `"alice" 5`)
		gone := at(b)
		w.want("/logout", "")
		a.window(gone.cookie).want("/", `"" 0`)
		time.Sleep(5*time.Second + time.Millisecond)
		gone.want("/", `"" 0`)
		// And at once where the news come.
		w = a.window("")
		w.want("/login", "")
		at(b).want("/", `"alice" 0`)
		gone = at(b)
		here.changed = func(key string) { there.changed(key) }
		w.want("/logout", "")
		gone.want("/", `"" 0`)
		// A version that was never there, made up, is as good as none.
		w = a.window("")
		w.want("/add", "")
		for _, bad := range []string{w.version[:len(w.version)-3] + "f_8", w.version[:len(w.version)-3] + "!!!", "session-v=x", "session-v="} {
			w.version = bad
			w.want("/", `"" 1`)
		}
	})
}

// On a real Redis: two processes with copies. What one does the other hears of.
func TestNearOnRedis(t *testing.T) {
	server := testserver.Redis(t)
	var sites [2]*site
	for i := range sites {
		st, err := redis.Connect(t.Context(), redis.Options{Addr: server.Addr, Prefix: "s:", Track: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		sites[i] = newPages(t, st, sessile.Options{Near: time.Hour})
	}
	here := sites[0].window("")
	there := func() *window { // another window of the same browser
		w := sites[1].window(here.cookie)
		w.version = here.version
		return w
	}
	here.want("/login", "")
	for n := range 20 {
		here.want("/add", "")
		there().want("/", fmt.Sprintf(`"alice" %d`, n+1)) // its own writes, at once
	}
	old := there() // another window, which does not hear of the new version by its cookie
	old.want("/", `"alice" 20`)
	soon := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			got := old.get("/")
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	}
	here.want("/add", "")
	soon(`"alice" 21`)
	gets := func() string { return fmt.Sprint(server.Do("INFO", "commandstats")) }
	count := func(stats string) string {
		_, rest, _ := strings.Cut(stats, "cmdstat_get:calls=")
		n, _, _ := strings.Cut(rest, ",")
		return n
	}
	before := count(gets())
	for range 50 {
		old.want("/", `"alice" 21`)
	}
	if after := count(gets()); after != before {
		t.Errorf("%s GETs have become %s", before, after)
	}
	if n, err := sites[0].m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	soon(`"" 0`)
}
