package scsstore_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/sessile/sessile"
	scsstore "github.com/sessile/sessile/adapters/scs"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
	"go.uber.org/goleak"
)

// scs.New starts a goroutine that cannot be stopped without a race.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/alexedwards/scs/v2/memstore.(*MemStore).startCleanup"))
}

func newStore(t testing.TB, st store.Store, opt scsstore.Options) *scsstore.Store {
	t.Helper()
	s, err := scsstore.New(st, opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func inRedis(t testing.TB) (*redis.Store, *testserver.RedisServer) {
	t.Helper()
	srv := testserver.Redis(t)
	st, err := redis.Connect(t.Context(), redis.Options{Addr: srv.Addr, Prefix: "scs:session:"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st, srv
}

// manager is a SessionManager on st. What scs answers errors with goes to the test's log.
func manager(t testing.TB, st scs.Store) *scs.SessionManager {
	sm := scs.New()
	sm.Store = st
	sm.ErrorFunc = scsstore.ErrorFunc(func(w http.ResponseWriter, _ *http.Request, err error) {
		t.Log(err)
		http.Error(w, "sorry", http.StatusInternalServerError)
	})
	return sm
}

// A site has its pages in one process.
type site struct {
	t       testing.TB
	sm      *scs.SessionManager
	srv     *httptest.Server
	entered chan struct{} // a request for /slow has its session
	leave   chan struct{} // it may go on
}

func newSite(t testing.TB, sm *scs.SessionManager) *site {
	s := &site{t: t, sm: sm, entered: make(chan struct{}), leave: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := sm.RenewToken(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		sm.Put(r.Context(), "user", "alice")
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := sm.Destroy(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/me", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, sm.GetString(r.Context(), "user")) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		s.entered <- struct{}{}
		<-s.leave
		if r.FormValue("write") != "" {
			sm.Put(r.Context(), "page", "slow")
		}
		io.WriteString(w, "the page")
	})
	mux.HandleFunc("/past", func(w http.ResponseWriter, r *http.Request) {
		sm.SetDeadline(r.Context(), time.Now().Add(-time.Second))
	})
	s.srv = httptest.NewServer(sm.LoadAndSave(mux))
	t.Cleanup(s.srv.Close)
	return s
}

type page struct {
	status int
	body   string
	cookie string // "" where none was set
}

// get asks for a page with a cookie of that value.
func (s *site) get(path, cookie string) page {
	s.t.Helper()
	r, _ := http.NewRequest("GET", s.srv.URL+path, nil)
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: "session", Value: cookie})
	}
	resp, err := s.srv.Client().Do(r)
	if err != nil {
		s.t.Error(err)
		return page{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Error(err)
	}
	p := page{status: resp.StatusCode, body: string(body)}
	for _, c := range resp.Cookies() {
		p.cookie = c.Value
	}
	return p
}

// overtaken has a slow page under way while the session ends, and returns the slow page and whom its session belongs to afterwards.
func overtaken(slow, other *site, path, end string, meanwhile func()) (late page, user string) {
	old := slow.get("/login", "").cookie
	done := make(chan page)
	go func() { done <- slow.get(path, old) }()
	<-slow.entered
	other.get(end, old)
	meanwhile()
	slow.leave <- struct{}{}
	return <-done, other.get("/me", old).body
}

func TestALogoutStaysOne(t *testing.T) {
	inRedis, _ := inRedis(t)
	idle := func(sm *scs.SessionManager) { sm.IdleTimeout = time.Hour }
	hashed := func(sm *scs.SessionManager) { sm.HashTokenInStore = true }
	cases := []struct {
		name string
		set  func(sm *scs.SessionManager)
		opt  scsstore.Options
		path string
	}{
		{"a slow page that writes", nil, scsstore.Options{}, "/slow?write=1"},
		{"a slow page that only reads, with an idle timeout", idle, scsstore.Options{}, "/slow"},
		{"a slow page that writes, with an idle timeout", idle, scsstore.Options{}, "/slow?write=1"},
		{"hashed by scs", hashed, scsstore.Options{}, "/slow?write=1"},
		{"hashed by us", nil, scsstore.Options{Hash: true}, "/slow?write=1"},
	}
	for _, st := range []store.Store{memory.New(memory.Options{}), inRedis} {
		for _, c := range cases {
			for _, end := range []string{"/logout", "/login"} {
				for _, where := range []string{"here", "in another process"} {
					t.Run(c.name+", ended by "+end+" "+where, func(t *testing.T) {
						one := func() *site {
							sm := manager(t, newStore(t, st, c.opt))
							if c.set != nil {
								c.set(sm)
							}
							return newSite(t, sm)
						}
						slow := one()
						other := slow
						if where != "here" {
							other = one()
						}
						late, user := overtaken(slow, other, c.path, end, func() {})
						if user != "" {
							t.Errorf("the old cookie is logged in as %q", user)
						}
						if want := (page{200, "the page", ""}); late != want {
							t.Errorf("the slow page: got %v, want %v", late, want)
						}
					})
				}
			}
		}
	}
}

// What the test above looks for is there to be seen with another store.
func TestWithoutUsALogoutIsUndone(t *testing.T) {
	s := newSite(t, manager(t, memstore.NewWithCleanupInterval(0)))
	if _, user := overtaken(s, s, "/slow?write=1", "/logout", func() {}); user != "alice" {
		t.Errorf("memstore: the old cookie is logged in as %q: the test does not see what it is about", user)
	}
}

// Whoever can make a request last cannot have it forgotten by making many others.
func TestASlowRequestIsNotForgotten(t *testing.T) {
	st := newStore(t, memory.New(memory.Options{}), scsstore.Options{})
	s := newSite(t, manager(t, st))
	var tokens []string
	for range 20_000 {
		token := newToken()
		if err := st.Commit(token, []byte("x"), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	_, user := overtaken(s, s, "/slow?write=1", "/logout", func() {
		for _, token := range tokens {
			if _, found, err := st.Find(token); !found || err != nil {
				t.Fatal(found, err)
			}
		}
	})
	if user != "" {
		t.Errorf("the old cookie is logged in as %q", user)
	}
}

// A save that goes on behind its request does not create what has gone, either.
func TestBehindTheRequest(t *testing.T) {
	for _, c := range []struct {
		name   string
		behind func(ctx context.Context) context.Context
	}{
		{"under its context, which has ended", func(ctx context.Context) context.Context { return ctx }},
		{"under a context without its end", context.WithoutCancel},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStore(t, memory.New(memory.Options{}), scsstore.Options{})
			sm := manager(t, st)
			first, _ := sm.Load(t.Context(), "")
			sm.Put(first, "user", "alice")
			token, _, err := sm.Commit(first)
			if err != nil {
				t.Fatal(err)
			}
			request, end := context.WithCancel(t.Context())
			ctx, err := sm.Load(request, token)
			if err != nil {
				t.Fatal(err)
			}
			end()
			if err := st.Delete(token); err != nil {
				t.Fatal(err)
			}
			sm.Put(ctx, "late", true)
			if _, _, err := sm.Commit(c.behind(ctx)); !errors.Is(err, sessile.ErrGone) || !errors.Is(err, store.ErrConflict) {
				t.Errorf("Commit: got %v, want ErrGone and ErrConflict", err)
			}
			if _, found, err := st.Find(token); found || err != nil {
				t.Errorf("Find: got %v, %v, want none", found, err)
			}
		})
	}
}

// A request saves what it has made, and once more when its response begins.
func TestWhatARequestHasMadeAndSomebodyHasEnded(t *testing.T) {
	st := newStore(t, memory.New(memory.Options{}), scsstore.Options{})
	sm := manager(t, st)
	ctx, _ := sm.Load(t.Context(), "")
	for range 2 {
		if _, _, err := sm.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Delete(sm.Token(ctx)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := sm.Commit(ctx); !errors.Is(err, sessile.ErrGone) {
		t.Errorf("Commit: got %v, want ErrGone", err)
	}
	if err := sm.RenewToken(ctx); err != nil {
		t.Error(err)
	}
	if _, _, err := sm.Commit(ctx); err != nil {
		t.Errorf("under a new token: %v", err)
	}
}

// The client goes away while the logout is under way, and when a session is saved.
func TestTheEndOfARequestDoesNotEndItsSaves(t *testing.T) {
	st := newStore(t, memory.New(memory.Options{}), scsstore.Options{})
	token, end := newToken(), time.Now().Add(time.Hour)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.CommitCtx(gone, token, []byte("1"), end); !errors.Is(err, context.Canceled) {
		t.Errorf("a new session: got %v, want context.Canceled: nobody would have its token", err)
	}
	if err := st.Commit(token, []byte("1"), end); err != nil {
		t.Fatal(err)
	}
	if err := st.CommitCtx(gone, token, []byte("2"), end); err != nil {
		t.Error("a session that is there: ", err)
	}
	if b, _, err := st.Find(token); string(b) != "2" || err != nil {
		t.Errorf("Find: got %q, %v", b, err)
	}
	if err := st.DeleteCtx(gone, token); err != nil {
		t.Error("delete: ", err)
	}
	if _, found, err := st.Find(token); found || err != nil {
		t.Errorf("deleted: got %v, %v", found, err)
	}
}

// asked counts what reaches a store.
type asked struct {
	store.Store
	n atomic.Int32
}

func (a *asked) Load(ctx context.Context, key string) (store.Record, error) {
	a.n.Add(1)
	return a.Store.Load(ctx, key)
}

func (a *asked) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	a.n.Add(1)
	return a.Store.Delete(ctx, key, cond)
}

func (a *asked) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	a.n.Add(1)
	return a.Store.Save(ctx, key, rec, cond)
}

func TestWhatAPageCosts(t *testing.T) {
	under := &asked{Store: memory.New(memory.Options{})}
	s := newSite(t, manager(t, newStore(t, under, scsstore.Options{})))
	cookie := ""
	for _, c := range []struct {
		path string
		want int32
	}{{"/me", 0}, {"/login", 1}, {"/me", 1}, {"/login", 3}, {"/logout", 2}} {
		under.n.Store(0)
		if p := s.get(c.path, cookie); p.cookie != "" {
			cookie = p.cookie
		}
		if n := under.n.Load(); n != c.want {
			t.Errorf("%s: the store was asked %d times, want %d", c.path, n, c.want)
		}
	}
}

func TestTokensAreRefusedByTheirForm(t *testing.T) {
	good := newToken()
	for _, opt := range []scsstore.Options{{}, {Hash: true}} {
		for name, token := range map[string]string{
			"empty": "", "short": good[1:], "long": good + "A", "a space": " " + good[1:], "a NUL": "\x00" + good[1:],
			"a line feed": good[:42] + "\n", "another prefix": "../../" + good[6:], "padded": good[:42] + "=", "not url": "/" + good[1:],
			"bits that do not count": strings.Repeat("A", 42) + "B", "Unicode": strings.Repeat("ä", 21) + "A", "two": good + good, "large": strings.Repeat("A", 1<<20),
			"a name from All": "sha256:" + good,
		} {
			under := &asked{Store: memory.New(memory.Options{})}
			st := newStore(t, under, opt)
			if b, found, err := st.Find(token); b != nil || found || err != nil {
				t.Errorf("%s: Find: got %q, %v, %v, want nothing", name, b, found, err)
			}
			if opt.Hash && strings.HasPrefix(token, "sha256:") {
				continue // what All returns can be ended
			}
			if err := st.Delete(token); err != nil {
				t.Errorf("%s: Delete: %v", name, err)
			}
			if err := st.Commit(token, nil, time.Now().Add(time.Hour)); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: Commit: got %v, want ErrInvalid", name, err)
			}
			if n := under.n.Load(); n != 0 {
				t.Errorf("%s: the store was asked %d times", name, n)
			}
		}
	}
}

// failing is a store that answers everything with one error.
type failing struct {
	store.Store
	err error
}

func (f failing) Load(context.Context, string) (store.Record, error) { return store.Record{}, f.err }
func (f failing) Save(context.Context, string, store.Record, store.Condition) error {
	return f.err
}
func (f failing) Delete(context.Context, string, store.Condition) (bool, error) { return false, f.err }
func (f failing) Scan(context.Context, string, int) (store.Page, error) {
	return store.Page{}, f.err
}

func TestAnOutageIsAnError(t *testing.T) {
	for _, class := range []error{store.ErrUnavailable, store.ErrUnknown, store.ErrBusy, &store.RefusedError{Reason: store.ReasonType}} {
		st := newStore(t, failing{memory.New(memory.Options{}), class}, scsstore.Options{})
		_, found, err := st.Find(newToken())
		if !errors.Is(err, class) || found {
			t.Errorf("Find: got %v, %v, want %v", found, err, class)
		}
		if err := st.Commit(newToken(), nil, time.Now().Add(time.Hour)); !errors.Is(err, class) || errors.Is(err, sessile.ErrGone) {
			t.Errorf("Commit: got %v, want %v", err, class)
		}
		if err := st.Delete(newToken()); !errors.Is(err, class) {
			t.Errorf("Delete: got %v, want %v", err, class)
		}
		if _, err := st.All(); !errors.Is(err, class) {
			t.Errorf("All: got %v, want %v", err, class)
		}
		s := newSite(t, manager(t, st))
		if got, want := s.get("/me", newToken()), (page{500, "sorry\n", ""}); got != want {
			t.Errorf("a page: got %v, want %v", got, want)
		}
	}
	redis, srv := inRedis(t)
	st := newStore(t, redis, scsstore.Options{})
	s := newSite(t, manager(t, st))
	cookie := s.get("/login", "").cookie
	srv.Stop()
	if got, want := s.get("/me", cookie), (page{500, "sorry\n", ""}); got != want {
		t.Errorf("a page without a Redis: got %v, want %v", got, want)
	}
}

// ignorant is a store that would have to ask once more for the deadline of what it loads.
type ignorant struct{ store.Store }

func (i ignorant) Load(ctx context.Context, key string) (store.Record, error) {
	rec, err := i.Store.Load(ctx, key)
	rec.Expires = time.Time{}
	return rec, err
}

func TestNoSessionOutlivesItsDeadline(t *testing.T) {
	redis, srv := inRedis(t)
	st := newStore(t, redis, scsstore.Options{})
	s := newSite(t, manager(t, st))
	token := newToken()
	if err := st.Commit(token, []byte("x"), time.Now().Add(-time.Hour)); err != nil {
		t.Errorf("a new session whose time is over: %v", err)
	}
	if err := st.Commit(token, []byte("x"), time.Time{}); err != nil {
		t.Errorf("one without a time: %v", err)
	}
	cookie := s.get("/login", "").cookie
	if ttl := srv.Do("PTTL", "scs:session:"+cookie).(int64); ttl <= 0 || ttl > 24*60*60*1000 {
		t.Errorf("PTTL of a session: %d", ttl)
	}
	if late := s.get("/past", cookie); late.status != 200 {
		t.Errorf("the page that ends it: %v", late)
	}
	if n := srv.Do("DBSIZE").(int64); n != 0 {
		t.Errorf("%d keys are left: %v", n, srv.Do("KEYS", "*"))
	}
	if user := s.get("/me", cookie).body; user != "" {
		t.Errorf("the old cookie is logged in as %q", user)
	}

	// It passes while the request is under way.
	sm := manager(t, nil) // outside, since it starts a goroutine
	synctest.Test(t, func(t *testing.T) {
		under := memory.New(memory.Options{LazyExpiry: true})
		st := newStore(t, ignorant{under}, scsstore.Options{})
		sm.Store = st
		ctx, _ := sm.Load(t.Context(), "")
		sm.SetDeadline(ctx, time.Now().Add(time.Minute))
		token, _, err := sm.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if _, found, _ := st.Find(token); !found {
			t.Error("a session is over before its time")
		}
		time.Sleep(31 * time.Second)
		if _, found, err := st.Find(token); found || err != nil {
			t.Errorf("Find of what the store has not collected: got %v, %v", found, err)
		}
		if all, err := st.All(); len(all) != 0 || err != nil {
			t.Errorf("All of what the store has not collected: got %v, %v", all, err)
		}
		if _, _, err := sm.Commit(ctx); err != nil {
			t.Errorf("Commit when the time is over: %v", err)
		}
		if n := len(under.Keys("")); n != 0 {
			t.Errorf("%d records are left", n)
		}
	})
}

// A record that goredisstore has saved when its time was over has no deadline of its own.
func TestTheDeadlineInARecordCountsWithACodec(t *testing.T) {
	redis, srv := inRedis(t)
	over, _ := scs.GobCodec{}.Encode(time.Now().Add(-time.Minute), map[string]any{"user": "alice"})
	live, _ := scs.GobCodec{}.Encode(time.Now().Add(time.Minute), map[string]any{"user": "alice"})
	old, young, broken := newToken(), newToken(), newToken()
	for token, data := range map[string]string{old: string(over), young: string(live), broken: "?"} {
		srv.Do("SET", "scs:session:"+token, data)
	}
	st := newStore(t, redis, scsstore.Options{Codec: scs.GobCodec{}})
	if _, found, err := st.Find(old); found || err != nil {
		t.Errorf("Find of one that is over: got %v, %v", found, err)
	}
	if b, found, err := st.Find(young); string(b) != string(live) || !found || err != nil {
		t.Errorf("Find: got %q, %v, %v", b, found, err)
	}
	if _, found, err := st.Find(broken); found || !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Find of what cannot be read: got %v, %v", found, err)
	}
}

func TestAll(t *testing.T) {
	inRedis, _ := inRedis(t)
	for name, under := range map[string]store.Store{"memory": memory.New(memory.Options{}), "redis": inRedis} {
		for _, hash := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				ctx := t.Context()
				st := newStore(t, under, scsstore.Options{Hash: hash})
				sm := manager(t, st)
				if all, err := st.All(); all == nil || len(all) != 0 || err != nil {
					t.Errorf("All of none: got %v, %v", all, err)
				}
				if err := under.Save(ctx, "somebody's", store.Record{Data: []byte("x"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
					t.Fatal(err)
				}
				tokens := map[string]bool{}
				for range 450 { // some pages
					c, _ := sm.Load(ctx, "")
					sm.Put(c, "user", "alice")
					token, _, err := sm.Commit(c)
					if err != nil {
						t.Fatal(err)
					}
					tokens[token] = true
				}
				n := 0
				err := sm.Iterate(ctx, func(ctx context.Context) error {
					if n++; hash == tokens[sm.Token(ctx)] {
						t.Errorf("hash is %v, and All returns the token", hash)
					}
					if n%2 == 0 {
						return sm.Destroy(ctx)
					}
					sm.Put(ctx, "seen", true)
					_, _, err := sm.Commit(ctx)
					return err
				})
				if n != 450 || err != nil {
					t.Errorf("Iterate: got %d, %v", n, err)
				}
				left := 0
				for token := range tokens {
					if _, found, err := st.Find(token); err != nil {
						t.Fatal(err)
					} else if found {
						left++
					}
				}
				if left != 225 {
					t.Errorf("%d are left of 450, of which half was destroyed", left)
				}
				// One that is destroyed while it is listed does not come back.
				st = newStore(t, under, scsstore.Options{Hash: hash})
				all, err := st.All()
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range slices.Collect(maps.Keys(all)) {
					if err := st.Delete(name); err != nil {
						t.Fatal(err)
					}
					if err := st.Commit(name, []byte("x"), time.Now().Add(time.Hour)); !errors.Is(err, sessile.ErrGone) {
						t.Fatalf("Commit of what All has named, and is gone: got %v, want ErrGone", err)
					}
				}
				if all, err := st.All(); len(all) != 0 || err != nil {
					t.Errorf("in the end: got %d, %v", len(all), err)
				}
			})
		}
	}
}

func TestHashIsThatOfSCS(t *testing.T) {
	under := memory.New(memory.Options{})
	theirs := manager(t, newStore(t, under, scsstore.Options{}))
	theirs.HashTokenInStore = true
	cookie := newSite(t, theirs).get("/login", "").cookie
	if user := newSite(t, manager(t, newStore(t, under, scsstore.Options{Hash: true}))).get("/me", cookie).body; user != "alice" {
		t.Errorf("the session is %q's", user)
	}
	key := under.Keys("")[0]
	if key == cookie {
		t.Error("the token lies in the store")
	}
	for _, stolen := range []string{key, "sha256:" + key} {
		if user := newSite(t, manager(t, newStore(t, under, scsstore.Options{Hash: true}))).get("/me", stolen).body; user != "" {
			t.Errorf("a cookie %q, made of the key, is %q", stolen, user)
		}
	}
}

type unable struct {
	store.Store
	is store.Capabilities
}

func (u unable) Capabilities() store.Capabilities { return u.is }

func TestStoresThatDoNotDo(t *testing.T) {
	mem := memory.New(memory.Options{})
	if _, err := scsstore.New(unable{mem, store.Capabilities{}}, scsstore.Options{}); err == nil {
		t.Error("a store that writes unconditionally is taken")
	}
	ageless := unable{mem, store.Capabilities{Conditional: true, Ageless: true}}
	if _, err := scsstore.New(ageless, scsstore.Options{}); err == nil {
		t.Error("a store whose records have no end is taken without a codec")
	}
	st := newStore(t, ageless, scsstore.Options{Codec: scs.GobCodec{}})
	if _, err := st.All(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("All where there is no Scan: got %v", err)
	}
}
