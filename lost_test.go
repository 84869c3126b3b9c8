package sessile_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// What the model of TestAnythingAtAll has found, one by one.

// Who has just confirmed his password, and has all others logged out then, stays.
func TestAllOthersAreNotMe(t *testing.T) {
	for _, again := range []string{"/login", "/renew"} {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{})
		b, other := s.window(""), s.window("")
		other.want("/login", "")
		b.want("/login", "")
		b.want(again, "")
		b.want(again, "")
		if n, err := s.m.Revoke(t.Context(), "alice", sessile.Key(b.get("/key"))); n != 1 || err != nil {
			t.Errorf("after %s: %d, %v", again, n, err)
		}
		b.want("/", `"alice" 0`)
		other.want("/", `"" 0`)
	}
}

// A response says nothing that is older than what the browser has got meanwhile.
func TestAResponseIsNotOlderThanTheCookie(t *testing.T) {
	for _, c := range []struct {
		name   string
		near   bool
		before []string // what is done with the token that the slow request has, before it begins
		while  []string // and then
		act    string
	}{
		{"it has waited for a login that came after a renewal", false, nil, []string{"/renew", "/login"}, "add"},
		{"it comes with the token from before both", false, []string{"/renew", "/login"}, nil, "read"},
		{"it was renewed before, and there was a logout", false, []string{"/renew"}, []string{"/logout", "/login"}, "read"},
		{"it was renewed before, and there was a login", false, []string{"/renew"}, []string{"/login"}, "read"},
		{"its version was an old one", true, []string{"/add"}, []string{"/login"}, "read"},
		{"its version was an old one, and there was a login before", true, []string{"/add", "/login"}, nil, "read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := able{&troubled{Store: memory.New(memory.Options{})}}
			var opt sessile.Options
			if c.near {
				opt.Near = time.Minute
			}
			s := newPages(t, st, opt)
			begun, goOn := make(chan bool), make(chan bool)
			s.page("/slow", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
				begun <- true
				<-goOn
				return perform(w, r, s, c.act).err
			})
			b := s.window("")
			b.want("/login", "")
			slow := s.window(b.cookie)
			old := slow.cookie
			for _, path := range c.before {
				b.want(path, "")
			}
			done := make(chan string)
			go func() { done <- slow.get("/slow") }()
			<-begun
			for _, path := range c.while {
				b.want(path, "")
			}
			goOn <- true
			<-done
			if slow.cookie != old && slow.cookie != b.cookie {
				t.Error("the browser has another cookie then, which is not the newest")
			}
		})
	}
}

// A request that has lost its session to an outage does not take it for one that is not there.
func TestALoadThatFailsOnTheWay(t *testing.T) {
	for _, then := range []string{"logout", "save"} {
		t.Run(then, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := &troubled{Store: memory.New(memory.Options{})}
				s := newPages(t, st, sessile.Options{})
				b := s.window("")
				b.want("/login", "")
				other := s.window(b.cookie)
				s.page("/try", func(w http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
					if err := s.Update(add); err != nil {
						return err
					}
					if then == "save" {
						other.want("/logout", "")
						time.Sleep(3 * time.Minute) // the grave is gone
					}
					st.begin([2][]failure{{undone, away}})
					if err := s.Save(r.Context()); err == nil {
						t.Error("nothing has failed")
					}
					if then == "logout" {
						return s.Logout(r.Context())
					}
					return nil
				})
				answer := s.window(b.cookie).get("/try")
				if then == "logout" && answer != "" {
					t.Errorf("Logout: %s", answer)
				}
				other = s.window(b.cookie)
				other.want("/", `"" 0`)
			})
		})
	}
}

// A renewal that nobody has asked for does not end the session, whatever is known of it.
func TestARenewalThatFails(t *testing.T) {
	for _, plan := range [][]failure{{done, away}, {done, fine, away}, {fine, done, away}, {fine, done, fine, away}, {fine, later, fine, fine, fine, away}} {
		for _, at := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				troubled := &troubled{Store: memory.New(memory.Options{})}
				var st store.Store = troubled
				if at {
					st = able{troubled}
				}
				s := newPages(t, st, sessile.Options{RenewEvery: 10 * time.Minute})
				b := s.window("")
				b.want("/login", "")
				time.Sleep(11 * time.Minute)
				troubled.begin([2][]failure{append([]failure{fine}, plan...)})
				b.want("/", `"alice" 0`)
				troubled.pending.Wait()
				troubled.begin([2][]failure{})
				b.want("/", `"alice" 0`)
			})
		}
	}
}

// A session that has gone on under a new token is in the list of its user, whatever has failed.
func TestARenewalIsListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		troubled := &troubled{Store: memory.New(memory.Options{})}
		s := newPages(t, able{troubled}, sessile.Options{RenewEvery: 10 * time.Minute})
		b := s.window("")
		b.want("/login", "")
		time.Sleep(11 * time.Minute)
		troubled.begin([2][]failure{{fine, fine, away, away, away}, {away}}) // the undoing, too
		b.want("/", `"alice" 0`)
		troubled.begin([2][]failure{})
		b.want("/", `"alice" 0`)
		time.Sleep(5 * time.Minute)
		b.want("/", `"alice" 0`)
		if n, err := s.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
			t.Errorf("%d sessions, %v", n, err)
		}
		b.want("/", `"" 0`)
	})
}

// Who has all sessions of a user ended also ends one that is given a new token at the same time.
func TestRevokeGoesAfterARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for round := range 100 {
			s := newPages(t, slowly{memory.New(memory.Options{})}, sessile.Options{})
			b := s.window("")
			b.want("/login", "")
			var wg sync.WaitGroup
			wg.Go(func() {
				for range 3 {
					b.get("/renew")
				}
			})
			time.Sleep(rand.N(5 * time.Millisecond))
			if n, err := s.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("round %d: %d sessions, %v", round, n, err)
			}
			wg.Wait()
			b.want("/", `"" 0`)
		}
	})
}

// A login whose answer was lost is not taken for made because somebody else has ended the session in the same second.
func TestALoginIsNotAnothersLogout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		troubled := &troubled{Store: memory.New(memory.Options{})}
		s := newPages(t, able{troubled}, sessile.Options{})
		s.page("/bob", func(_ http.ResponseWriter, r *http.Request, se *sessile.Session[data]) error {
			if n, err := s.m.Revoke(r.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("Revoke: %d, %v", n, err)
			}
			troubled.begin([2][]failure{{undone}})
			return se.Login(r.Context(), "bob")
		})
		b := s.window("")
		b.want("/login", "")
		b.want("/bob", "")
		b.want("/", `"bob" 0`)
	})
}

// What Save could not save, as far as it knows, is not made a second time before the response begins.
func TestAChangeIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &troubled{Store: memory.New(memory.Options{})}
		s := newPages(t, st, sessile.Options{})
		s.page("/try", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
			if err := s.Update(add); err != nil {
				return err
			}
			st.begin([2][]failure{{done, away}})
			if err := s.Save(r.Context()); err == nil {
				t.Error("nothing has failed")
			}
			return s.Update(add)
		})
		b := s.window("")
		b.want("/add", "")
		b.want("/try", "")
		b.want("/", `"" 3`)
	})
}

// losing is a store of which answers are lost.
type losing struct{ store.Store }

func (s losing) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	n := rand.N(10)
	if n == 0 {
		return store.ErrUnknown
	}
	if err := s.Store.Save(ctx, key, rec, cond); err != nil || n > 1 {
		return err
	}
	return store.ErrUnknown
}

// A change whose answer was lost is not taken for made because another request has made the same.
func TestNoUpdateIsLostWithItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := sessile.New[data](losing{slowly{memory.New(memory.Options{})}}, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
		if err != nil {
			t.Fatal(err)
		}
		n := make(chan int, 1)
		h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err == nil && r.URL.Path == "/add" {
				err = s.Update(add)
			} else if err == nil {
				n <- s.Value().N
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}))
		cookie := ""
		get := func(path string) bool {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Cookie", cookie)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if set := w.Result().Cookies(); len(set) > 0 && cookie == "" {
				cookie = set[0].Name + "=" + set[0].Value
			}
			return w.Code == http.StatusOK
		}
		for cookie == "" {
			get("/add")
		}
		var made atomic.Int64
		made.Store(1)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 100 {
					if get("/add") {
						made.Add(1)
					}
				}
			})
		}
		wg.Wait()
		get("/")
		if got := <-n; got < int(made.Load()) { // one may be made twice, where another one has hidden what became of it
			t.Errorf("%d changes of %d are there", got, made.Load())
		}
	})
}
