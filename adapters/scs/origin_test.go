package scsstore_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/sessile/sessile"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

type visit struct{ Seen string }

func toVisit(values map[string]any) (visit, string, error) {
	user, _ := values["user"].(string)
	if user == "mallory" {
		return visit{}, "", errors.New("no such user")
	}
	seen, _ := values["page"].(string)
	return visit{seen}, user, nil
}

// newer is the site with our sessions, which takes those of sm over.
func newer(t *testing.T, sm *scs.SessionManager) *site {
	t.Helper()
	m, err := sessile.New[visit](memory.New(memory.Options{}), sessile.Options{Secret: []byte("a secret of the site"), Cookie: sessile.Cookie{Name: "sid", Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt(scsstore.Origin(sm, toVisit)); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	page := func(path string, f func(w http.ResponseWriter, r *http.Request, s *sessile.Session[visit]) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err == nil {
				err = f(w, r, s)
			}
			if err != nil {
				t.Log(err)
				http.Error(w, "sorry", http.StatusServiceUnavailable)
			}
		})
	}
	page("/me", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[visit]) error {
		user, _ := s.User()
		_, err := io.WriteString(w, user+s.Value().Seen)
		return err
	})
	page("/logout", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[visit]) error {
		return s.Logout(r.Context())
	})
	s := &site{t: t, srv: httptest.NewServer(m.Handler(mux))}
	t.Cleanup(s.srv.Close)
	return s
}

// plain is a store without contexts.
type plain struct{ scs.Store }

func TestOrigin(t *testing.T) {
	hashed := func(sm *scs.SessionManager) { sm.HashTokenInStore = true }
	for _, c := range []struct {
		name string
		st   scs.Store
		set  func(sm *scs.SessionManager)
	}{
		{"memstore", memstore.NewWithCleanupInterval(0), nil},
		{"hashed", memstore.NewWithCleanupInterval(0), hashed},
		{"ours", newStore(t, memory.New(memory.Options{}), scsstore.Options{}), nil},
		{"ours, hashed by us", newStore(t, memory.New(memory.Options{}), scsstore.Options{Hash: true}), nil},
		{"ours, hashed by scs", newStore(t, memory.New(memory.Options{}), scsstore.Options{}), hashed},
		{"without contexts", plain{memstore.NewWithCleanupInterval(0)}, nil},
		{"another codec", memstore.NewWithCleanupInterval(0), func(sm *scs.SessionManager) { sm.Codec = otherCodec{} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			sm := manager(t, c.st)
			if c.set != nil {
				c.set(sm)
			}
			old := newSite(t, sm)
			cookie := old.get("/login", "").cookie
			next := newer(t, sm)

			// Two requests of one browser at once.
			var wg sync.WaitGroup
			var got [2]page
			for i := range got {
				wg.Go(func() { got[i] = next.get("/me", cookie) })
			}
			wg.Wait()
			for _, p := range got {
				if p.status != 200 || p.body != "alice" {
					t.Errorf("the new site: got %v, want alice", p)
				}
			}
			if user := old.get("/me", cookie).body; user != "" {
				t.Errorf("the old session is still there: %q", user)
			}
			if user := next.get("/me", cookie).body; user != "alice" {
				t.Errorf("the old cookie once more: got %q, want alice", user)
			}
			next.get("/logout", cookie)
			if user := next.get("/me", cookie).body; user != "" {
				t.Errorf("the old cookie after the logout: got %q", user)
			}
			for _, none := range []string{"", "x", newToken(), "sha256:" + cookie} {
				if p := next.get("/me", none); p.body != "" || p.status != 200 {
					t.Errorf("cookie %q: got %v", none, p)
				}
			}
		})
	}
}

// A slow request of an old process writes after the new site has taken its session over.
func TestOldProcessesThatStillRun(t *testing.T) {
	for _, c := range []struct {
		name string
		st   scs.Store
		want bool // it puts the old session back
	}{
		{"with our store", newStore(t, memory.New(memory.Options{}), scsstore.Options{}), false},
		{"with another one", memstore.NewWithCleanupInterval(0), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sm := manager(t, c.st)
			old, next := newSite(t, sm), newer(t, sm)
			cookie := old.get("/login", "").cookie
			done := make(chan page)
			go func() { done <- old.get("/slow?write=1", cookie) }()
			<-old.entered
			if user := next.get("/me", cookie).body; user != "alice" {
				t.Errorf("the new site: %q", user)
			}
			old.leave <- struct{}{}
			if late := <-done; late.status != 200 || late.body != "the page" || (late.cookie != "") != c.want {
				t.Errorf("the slow page: %v", late)
			}
			if _, found, err := c.st.Find(cookie); found != c.want || err != nil {
				t.Errorf("the old session is there: %v, %v, want %v", found, err, c.want)
			}
		})
	}
}

func TestOriginLoad(t *testing.T) {
	ctx := t.Context()
	sm := manager(t, memstore.NewWithCleanupInterval(0))
	o := scsstore.Origin(sm, toVisit)
	deadline := time.Now().Add(time.Hour)
	save := func(b []byte) string {
		token := newToken()
		if err := sm.Store.Commit(token, b, deadline); err != nil {
			t.Fatal(err)
		}
		return token
	}
	got, err := o.Load(ctx, save(encoded(t, deadline, map[string]any{"user": "alice", "page": "7"})))
	if err != nil || got == nil || got.User != "alice" || got.Value.Seen != "7" || !got.End.Equal(deadline) || !got.Login.IsZero() || !got.Created.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, token := range map[string]string{
		"none": newToken(), "of another form": "../../x",
		"one whose time is over": save(encoded(t, time.Now().Add(-time.Second), map[string]any{"user": "alice"})),
	} {
		if got, err := o.Load(ctx, token); got != nil || err != nil {
			t.Errorf("%s: got %v, %v, want nothing", name, got, err)
		}
	}
	for name, token := range map[string]string{
		"not a record": save([]byte("?")), "not converted": save(encoded(t, deadline, map[string]any{"user": "mallory"})),
	} {
		if got, err := o.Load(ctx, token); got != nil || !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: got %v, %v, want ErrInvalid", name, got, err)
		}
		if _, found, _ := sm.Store.Find(token); !found {
			t.Errorf("%s: the record is gone", name)
		}
	}
	if c := o.Cookie; c.Name != "session" || c.Path != "/" {
		t.Errorf("the cookie: %v", c)
	}
}

// broken is somebody else's store without its server.
type broken struct{ scs.Store }

var errRefused = errors.New("connection refused")

func (broken) FindCtx(context.Context, string) ([]byte, bool, error) { return nil, false, errRefused }
func (broken) DeleteCtx(context.Context, string) error               { return errRefused }

func TestOriginOutage(t *testing.T) {
	sm := manager(t, broken{memstore.NewWithCleanupInterval(0)})
	o := scsstore.Origin(sm, toVisit)
	if got, err := o.Load(t.Context(), newToken()); got != nil || !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, errRefused) {
		t.Errorf("Load: got %v, %v, want ErrUnavailable", got, err)
	}
	if err := o.Delete(t.Context(), newToken()); !errors.Is(err, store.ErrUnknown) || !errors.Is(err, errRefused) {
		t.Errorf("Delete: got %v, want ErrUnknown", err)
	}
	if p := newer(t, sm).get("/me", newToken()); p.status != 503 || p.cookie != "" || !strings.Contains(p.body, "sorry") {
		t.Errorf("a page: got %v", p)
	}
}
