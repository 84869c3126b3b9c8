package gorilla_test

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/boj/redistore"
	"github.com/gorilla/securecookie"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/adapters/gorilla"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

type visit struct{ Cart string }

var errStrange = errors.New("strange")

func convert(values map[any]any) (v visit, user string, err error) {
	v.Cart, _ = values["cart"].(string)
	user, _ = values["user"].(string)
	switch user {
	case "nobody any more":
		return v, "", fmt.Errorf("of a user that was deleted: %w", store.ErrAbsent)
	case "strange":
		return v, "", errStrange
	}
	return v, user, nil
}

// newSite of the library, which adopts.
func newAdopter(t *testing.T, st store.Store, o sessile.Origin[visit]) *site {
	t.Helper()
	m, err := sessile.New[visit](st, sessile.Options{Secret: []byte("secret"), Cookie: sessile.Cookie{Name: "ours", Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt(o); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	page := func(path string, f func(r *http.Request, s *sessile.Session[visit]) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err == nil {
				err = f(r, s)
			}
			switch {
			case errors.Is(err, store.ErrInvalid), errors.Is(err, errStrange):
				http.Error(w, "unreadable", http.StatusInternalServerError)
			case err != nil:
				http.Error(w, "outage", http.StatusServiceUnavailable)
			default:
				user, _ := s.User()
				fmt.Fprintf(w, "%s: %s", user, s.Value().Cart)
			}
		})
	}
	page("/", func(*http.Request, *sessile.Session[visit]) error { return nil })
	page("/add", func(_ *http.Request, s *sessile.Session[visit]) error {
		return s.Update(func(v *visit) error { v.Cart += "+"; return nil })
	})
	page("/logout", func(r *http.Request, s *sessile.Session[visit]) error { return s.Logout(r.Context()) })
	srv := httptest.NewServer(m.Handler(mux))
	t.Cleanup(srv.Close)
	return &site{t: t, url: srv.URL}
}

// From boj/redistore's site to ours: nobody is logged out, and nobody is logged back in.
func TestAdopt(t *testing.T) {
	for name, serializer := range map[string]redistore.SessionSerializer{"gob": redistore.GobSerializer{}, "JSON": redistore.JSONSerializer{}} {
		t.Run(name, func(t *testing.T) {
			srv := testserver.Redis(t)
			boj := newRedistore(t, srv)
			boj.SetSerializer(serializer)
			before := newSiteOn(t, boj)
			after := newAdopter(t, openRedis(t, srv, "ours:"), gorilla.Origin("s", securecookie.CodecsFromPairs(keys), openRedis(t, srv, "session_"), convert))

			old := before.browser()
			old.want("/set?user=alice&cart=tea", "map[cart:tea user:alice]")
			b := after.with(old.cookie())
			b.want("/", "alice: tea")
			if b.cookie() != "" {
				t.Error("the browser has the old cookie")
			}
			if got := srv.CLI("--raw", "KEYS", "session_*"); got != "" {
				t.Errorf("in Redis there is %s", got)
			}
			b.want("/add", "alice: tea+")
			after.with(old.cookie()).want("/", "alice: tea+") // another window, with the page from before
			b.want("/logout", ":")
			b.want("/", ":")
			after.with(old.cookie()).want("/", ":")

			for _, c := range []struct{ user, want string }{{"nobody+any+more", ":"}, {"strange", "unreadable"}} {
				old := before.browser()
				old.get("/set?user=" + c.user)
				after.with(old.cookie()).want("/", c.want)
				after.with(old.cookie()).want("/", c.want)
				if got := old.get("/"); !strings.Contains(got, "user:") {
					t.Errorf("%s: the old session is %q", c.user, got)
				}
			}
			old = before.browser()
			old.want("/set?user=alice", "map[user:alice]")
			same := after.with(old.cookie())
			old.want("/logout", "map[user:alice]")
			same.want("/", ":")

			forged, _ := securecookie.EncodeMulti("s", strings.Repeat("A", 52), securecookie.CodecsFromPairs([]byte("another"))...)
			after.with(forged).want("/", ":")
		})
	}
}

// Many requests bring the same old cookie at once: all of them have one and the same session.
func TestAdoptAtOnce(t *testing.T) {
	srv := testserver.Redis(t)
	before := newSiteOn(t, newRedistore(t, srv))
	after := newAdopter(t, openRedis(t, srv, "ours:"), gorilla.Origin("s", securecookie.CodecsFromPairs(keys), openRedis(t, srv, "session_"), convert))
	old := before.browser()
	old.want("/set?user=alice&cart=tea", "map[cart:tea user:alice]")
	var wg sync.WaitGroup
	for range 8 {
		b := after.with(old.cookie())
		wg.Go(func() {
			if got := b.get("/add"); !strings.HasPrefix(got, "alice: tea+") {
				t.Errorf("got %q", got)
			}
		})
	}
	wg.Wait()
	after.with(old.cookie()).want("/", "alice: tea++++++++")
}

// Cookies of rbcervilla/redisstore are ids, and its records values in gob under session: by default.
func TestAdoptPlainIDs(t *testing.T) {
	srv := testserver.Redis(t)
	where := &trouble{Store: openRedis(t, srv, "session:")}
	after := newAdopter(t, openRedis(t, srv, "ours:"), gorilla.Origin("s", nil, where, convert))
	id := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(strings.Repeat("0123456789abcdef", 4)))
	data := written(t, redistore.GobSerializer{}, map[any]any{"user": "alice", "cart": "tea"})
	srv.Do("SET", "session:"+id, string(data), "EX", "100")
	after.with(id).want("/", "alice: tea")
	if got := srv.CLI("EXISTS", "session:"+id); got != "0" {
		t.Error("the old record is there")
	}
	asked := where.asked.Load()
	for _, bad := range []string{"", "short", "../../../etc/passwd", strings.Repeat("a", 129), strings.Repeat("a", 60) + "*", strings.Repeat("a", 60) + "%00"} {
		after.with(bad).want("/", ":")
	}
	if n := where.asked.Load() - asked; n != 0 {
		t.Errorf("hostile cookies: the old store was asked %d times", n)
	}
}

// What is not known of the old session is an error, and no new session takes its place.
func TestAdoptDuringAnOutage(t *testing.T) {
	where := &trouble{Store: memory.New(memory.Options{LazyExpiry: true})}
	after := newAdopter(t, memory.New(memory.Options{}), gorilla.Origin("s", nil, where, convert))
	id := strings.Repeat("A", 103)
	put := func(data []byte, life time.Duration) {
		t.Helper()
		if err := where.Store.Save(t.Context(), id, store.Record{Data: data, Expires: time.Now().Add(life)}, store.Always); err != nil {
			t.Fatal(err)
		}
	}
	data := written(t, redistore.GobSerializer{}, map[any]any{"user": "alice", "cart": "tea"})
	b := after.with(id)
	put([]byte("not gob"), time.Hour)
	b.want("/", "unreadable")
	put(data, time.Hour)
	where.set(store.ErrUnavailable, nil)
	b.want("/", "outage")
	b.want("/add", "outage")
	where.set(nil, nil)
	b.want("/", "alice: tea")

	// One that is over, in a store that has it still.
	id = strings.Repeat("B", 103)
	put(data, time.Millisecond)
	for rec, err := where.Inspect(context.Background(), id); err == nil && time.Now().Before(rec.Expires); {
	}
	after.with(id).want("/", ":")
}
