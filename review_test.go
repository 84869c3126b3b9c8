package sessile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// A play is a store whose operations do what a test has in mind: fail, wait, happen and not be answered, or happen later.
type play struct {
	store.Store
	batches bool

	one sync.Mutex // makes several saves one step; held while the store is called

	mu    sync.Mutex // guards what follows
	scene func(c *call) error
}

type call struct {
	ctx  context.Context
	op   string // "load", "save", "saveall", "delete", "touch"
	list bool   // it is about the list of a user's sessions
	kind byte   // of the last record that is written: 'l' live, 'o' over, 'm' moved
	key  string
	do   func() error
}

func newPlay() *play { return &play{Store: memory.New(memory.Options{})} }

// set has the operations from now on go through scene; with nil they do what they are to do.
func (p *play) set(scene func(c *call) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scene = scene
}

func (p *play) run(ctx context.Context, op, key string, data []byte, do func() error) error {
	p.mu.Lock()
	scene := p.scene
	p.mu.Unlock()
	act := func() error {
		p.one.Lock()
		defer p.one.Unlock()
		return do()
	}
	if scene == nil {
		return act()
	}
	c := &call{ctx: ctx, op: op, key: key, list: len(strings.Trim(key, "{}")) == 32, do: act}
	if len(data) > 1 && data[0] == 0x9e {
		c.kind = "lom?"[data[1]>>4&3]
	}
	return scene(c)
}

func (p *play) Load(ctx context.Context, key string) (rec store.Record, err error) {
	err = p.run(ctx, "load", key, nil, func() (err error) {
		rec, err = p.Store.Load(ctx, key)
		return err
	})
	return rec, err
}

func (p *play) Inspect(ctx context.Context, key string) (rec store.Record, err error) {
	err = p.run(ctx, "load", key, nil, func() (err error) {
		rec, err = p.Store.Inspect(ctx, key)
		return err
	})
	return rec, err
}

func (p *play) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return p.run(ctx, "save", key, rec.Data, func() error { return p.Store.Save(context.WithoutCancel(ctx), key, rec, cond) })
}

func (p *play) Delete(ctx context.Context, key string, cond store.Condition) (existed bool, err error) {
	err = p.run(ctx, "delete", key, nil, func() (err error) {
		existed, err = p.Store.Delete(ctx, key, cond)
		return err
	})
	return existed, err
}

func (p *play) Touch(ctx context.Context, key string, expires time.Time) error {
	return p.run(ctx, "touch", key, nil, func() error { return p.Store.Touch(ctx, key, expires) })
}

func (p *play) SaveAll(ctx context.Context, writes []store.Write) error {
	if !p.batches {
		return errors.ErrUnsupported
	}
	last := writes[len(writes)-1]
	return p.run(ctx, "saveall", last.Key, last.Record.Data, func() error {
		ctx := context.WithoutCancel(ctx)
		for _, w := range writes {
			var v store.Version
			if rec, err := p.Store.Load(ctx, w.Key); err == nil {
				v = rec.Version()
			}
			if !w.Condition.Holds(v) {
				return store.ErrConflict
			}
		}
		for _, w := range writes {
			if err := p.Store.Save(ctx, w.Key, w.Record, store.Always); err != nil {
				return err
			}
		}
		return nil
	})
}

// once is a scene in which the first operation that is meant goes another way.
func (p *play) once(meant func(c *call) bool, then func(c *call) error) {
	p.set(func(c *call) error {
		if !meant(c) {
			return c.do()
		}
		p.set(nil)
		return then(c)
	})
}

var (
	errUnavailable = fmt.Errorf("play: %w", store.ErrUnavailable)
	errUnknown     = fmt.Errorf("play: %w", store.ErrUnknown)
)

// A stop is where one request waits until the test has done something else.
type stop struct{ here, on chan bool }

func newStop() stop { return stop{make(chan bool), make(chan bool)} }

func (s stop) wait() {
	s.here <- true
	<-s.on
}

// at runs do in another goroutine until it is at the stop, does what is done meanwhile, and waits for the end.
func (s stop) at(do, meanwhile func()) {
	done := make(chan bool)
	go func() {
		defer close(done)
		do()
	}()
	<-s.here
	meanwhile()
	close(s.on)
	<-done
}

// notYet is for what is known and not mended: SESSILE_OPEN=1 shows it.
func notYet(t *testing.T) {
	t.Helper()
	if os.Getenv("SESSILE_OPEN") == "" {
		t.Skip("known, and not mended")
	}
}

func eachWay(t *testing.T, f func(t *testing.T, st *play)) {
	for _, batches := range []bool{false, true} {
		t.Run(map[bool]string{false: "one by one", true: "in one step"}[batches], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newPlay()
				st.batches = batches
				f(t, st)
			})
		})
	}
}

// A login whose list cannot be written fails; it does not panic.
func TestReviewLoginOfAnUnsavedSession(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		s.page("/both", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v", p)
				}
			}()
			if err := s.Update(add); err != nil {
				return err
			}
			return s.Login(r.Context(), "alice")
		})
		st.set(func(c *call) error {
			if c.list {
				return errUnavailable
			}
			return c.do()
		})
		if got := s.window("").get("/both"); strings.Contains(got, "panic") {
			t.Error(got)
		}
	})
}

// A logout behind a save that has failed ends the session all the same.
func TestReviewLogoutBehindAFailedSave(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		for _, what := range []string{"save", "renew"} {
			b := s.window("")
			b.want("/login", "")
			same := s.window(b.cookie)
			s.page("/"+what+"-and-out", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
				if err := s.Update(add); err != nil {
					return err
				}
				st.once(func(c *call) bool { return !c.list && c.kind != 0 }, func(c *call) error {
					same.want("/add", "") // another request is first
					st.set(func(c *call) error {
						if c.op == "load" {
							return errUnavailable
						}
						return c.do()
					})
					return c.do()
				})
				var err error
				if what == "save" {
					err = s.Save(r.Context())
				} else {
					err = s.Renew(r.Context())
				}
				st.set(nil)
				if !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%s: %v", what, err)
				}
				return s.Logout(r.Context())
			})
			stolen := s.window(b.cookie)
			b.want("/"+what+"-and-out", "")
			if got := stolen.get("/"); got != `"" 0` {
				t.Errorf("%s: logged out, and the session is there: %s", what, got)
			}
		}
	})
}

// A renewal that has failed leaves the session as it was: what is done behind it is done in it.
func TestReviewUpdateBehindAFailedRenewal(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		same := s.window(b.cookie)
		s.page("/try", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
			st.once(func(c *call) bool { return c.kind == 'm' }, func(c *call) error {
				same.want("/add", "")
				st.set(func(c *call) error {
					if c.op == "load" {
						return errUnavailable
					}
					return c.do()
				})
				return c.do()
			})
			if err := s.Renew(r.Context()); err == nil {
				t.Error("renewed")
			}
			st.set(nil)
			return s.Update(add)
		})
		b.get("/try")
		b.want("/", `"alice" 2`)
	})
}

// A renewal whose client goes away in the middle ends no session.
func TestReviewRenewalWithoutAClient(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		b.want("/add", "")
		old := b.cookie
		s.page("/leave", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
			ctx, cancel := context.WithCancel(r.Context())
			st.once(func(c *call) bool { return c.kind == 'm' }, func(c *call) error {
				if err := c.do(); err != nil {
					t.Error(err)
				}
				cancel()
				return errUnknown
			})
			_ = s.Renew(ctx)
			return nil
		})
		b.get("/leave")
		s.window(old).want("/", `"alice" 1`)
		b.want("/", `"alice" 1`)
	})
}

// So is a login of who is logged in, and one that fails with the outcome unknown.
func TestReviewLoginWithoutAClient(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		b.want("/add", "")
		old := b.cookie
		s.page("/leave", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
			ctx, cancel := context.WithCancel(r.Context())
			st.once(func(c *call) bool { return c.kind == 'm' }, func(c *call) error {
				if err := c.do(); err != nil {
					t.Error(err)
				}
				cancel()
				return errUnknown
			})
			_ = s.Login(ctx, "alice")
			return nil
		})
		b.get("/leave")
		s.window(old).want("/", `"alice" 1`)
	})
}

// A renewal that was done and not answered stays, though others have used it before that was found out.
func TestReviewRenewalUsedBeforeItIsKnown(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		other := s.window(b.cookie)
		st.once(func(c *call) bool { return c.kind == 'm' }, func(c *call) error {
			if err := c.do(); err != nil {
				t.Error(err)
			}
			other.want("/add", "")
			return errUnknown
		})
		b.want("/renew", "")
		other.want("/", `"alice" 1`)
		b.want("/", `"alice" 1`)
	})
}

// A write of unknown outcome that is executed when the library has looked already.
func TestReviewLateMark(t *testing.T) {
	for _, path := range []string{"/renew", "/login"} {
		eachWay(t, func(t *testing.T, st *play) {
			s := newPages(t, st, sessile.Options{MaxSessions: 5})
			b := s.window("")
			b.want("/login", "")
			b.want("/add", "")
			var late func() error
			n := 0
			st.set(func(c *call) error {
				if c.kind != 'm' {
					return c.do()
				}
				if n++; n == 1 {
					late = c.do
					return errUnknown
				}
				if late != nil {
					_ = late()
					late = nil
				}
				return c.do()
			})
			if got := b.get(path); got != "" {
				t.Errorf("%s: %s", path, got)
			}
			st.set(nil)
			b.want("/", `"alice" 1`)
			if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
				t.Errorf("%s: %d sessions, %v", path, len(list), err)
			}
		})
	}
}

// A session that was to be made, and is made when its login has been made anew, is one that nobody can log out of.
func TestReviewLateNewSession(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 2})
		first := s.window("")
		first.want("/login", "")
		time.Sleep(2 * time.Second)
		b := s.window("")
		var late func() error
		st.once(func(c *call) bool { return c.kind == 'l' }, func(c *call) error {
			late = c.do
			return errUnknown
		})
		b.want("/login", "")
		_ = late()
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 2 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
		b.want("/login", "")
		first.want("/", `"alice" 0`)
	})
}

// A change that is saved later than its outcome was asked for is made once.
func TestReviewLateSave(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		for _, before := range []int{0, 1} {
			b := s.window("")
			for range before {
				b.want("/add", "")
			}
			var late func() error
			st.set(func(c *call) error {
				switch {
				case c.kind != 'l':
					return c.do()
				case late == nil:
					late = c.do
					return errUnknown
				}
				st.set(nil)
				_ = late()
				return c.do()
			})
			b.want("/add", "")
			b.want("/", fmt.Sprintf(`"" %d`, before+1))
		}
	})
}

// What the login has to take back when its list cannot be written, others may have used: a logout stays one, and a change is not lost.
func TestReviewALoginIsTakenBack(t *testing.T) {
	for _, path := range []string{"/logout", "/add"} {
		eachWay(t, func(t *testing.T, st *play) {
			s := newPages(t, st, sessile.Options{})
			b := s.window("")
			b.want("/login", "")
			old := b.cookie
			other := s.window(old)
			listing := newStop()
			st.once(func(c *call) bool { return c.list && c.op == "save" }, func(*call) error {
				listing.wait()
				return errUnavailable
			})
			listing.at(func() { b.get("/login") }, func() {
				synctest.Wait() // what is done besides is done
				other.want(path, "")
			})
			want := map[string]string{"/logout": `"" 0`, "/add": `"alice" 1`}[path]
			s.window(old).want("/", want)
		})
	}
}

// Who has the new token of a renewal is in the list, whatever becomes of the process that has made it.
func TestReviewRenewedAndNotListed(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		other := s.window(b.cookie)
		marked := newStop()
		st.set(func(c *call) error {
			switch {
			case c.list && c.op != "load":
				marked.wait() // and is never heard of again
				return errUnavailable
			}
			return c.do()
		})
		ended := make(chan bool)
		go func() { b.get("/renew"); close(ended) }()
		<-marked.here
		synctest.Wait()
		st.set(nil)
		other.want("/", `"alice" 0`)
		time.Sleep(3 * time.Minute)
		other.want("/", `"alice" 0`)
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("logged in, and %d sessions, %v", len(list), err)
		}
		if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
			t.Error(err)
		}
		other.want("/", `"" 0`)
		close(marked.on)
		<-ended
	})
}

// A session that is renewed while the list is read is in it.
func TestReviewListedWhileRenewed(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		st.once(func(c *call) bool { return c.list && c.op == "load" }, func(c *call) error {
			err := c.do()
			b.want("/renew", "")
			return err
		})
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
	})
}

// "Log me out everywhere else", while another window of this browser is given a new token.
func TestReviewRevokeOthersWhileRenewed(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		key := sessile.Key(b.get("/key"))
		listed := newStop()
		st.once(func(c *call) bool { return !c.list && c.op != "load" }, func(c *call) error {
			listed.wait() // it is in the list, and not there yet
			return c.do()
		})
		var done sync.WaitGroup
		done.Go(func() { b.want("/renew", "") })
		<-listed.here
		synctest.Wait()
		st.once(func(c *call) bool { return c.op == "load" && c.key == string(key) }, func(c *call) error {
			err := c.do()
			close(listed.on) // it is renewed when this one was read, and before the next
			done.Wait()
			return err
		})
		if n, err := s.m.Revoke(t.Context(), "alice", key); n != 0 || err != nil {
			t.Errorf("%d were ended, %v", n, err)
		}
		b.want("/", `"alice" 0`)
	})
}

// Two windows renew a session at once, and what the one that comes too late has written cannot be taken back: two records of one session,
// of which nobody has the second one's token. The list has the first, and who ends any of the two ends both.
func TestReviewTwoRecordsOfOneSession(t *testing.T) {
	for order, stops := range map[string]func(c *call) bool{
		"listed before": func(c *call) bool { return c.kind == 'm' },
		"listed behind": func(c *call) bool { return c.list && c.op == "load" },
	} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newPlay()
				s := newPages(t, st, sessile.Options{})
				b := s.window("")
				b.want("/login", "")
				late, stop := s.window(b.cookie), newStop()
				st.once(stops, func(c *call) error { stop.wait(); return c.do() })
				stop.at(func() { late.want("/renew", "") }, func() {
					b.want("/renew", "")
					st.set(func(c *call) error {
						if err := c.do(); c.kind == 'o' && errors.Is(err, store.ErrConflict) {
							return errUnavailable
						} else {
							return err
						}
					})
				})
				st.set(nil)
				for _, d := range []time.Duration{0, 5 * time.Minute} {
					b.want("/add", "")
					time.Sleep(d)
					list, err := s.m.Sessions(t.Context(), "alice")
					if mine := sessile.Key(b.get("/key")); err != nil || len(list) != 1 || list[0].Key != mine || mine == "" {
						t.Errorf("%v later: %v, %v, want %q", d, list, err, mine)
					}
				}
				var stray sessile.Key
				page, _ := st.Scan(t.Context(), "", 10)
				for _, key := range page.Keys {
					if k := sessile.Key(key); len(k) > 32 && k != sessile.Key(b.get("/key")) {
						stray = k
					}
				}
				if n, err := s.m.RevokeOnly(t.Context(), "alice", stray); n != 1 || err != nil {
					t.Errorf("%d, %v", n, err)
				}
				b.want("/", `"" 0`)
			})
		})
	}
}

// An entry of the list that was written twice is one session.
func TestReviewAnEntryTwice(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 2})
		first, b := s.window(""), s.window("")
		first.want("/login", "")
		time.Sleep(2 * time.Second)
		st.once(func(c *call) bool { return c.list && c.op == "save" }, func(c *call) error {
			if err := c.do(); err != nil {
				t.Error(err)
			}
			return errUnknown
		})
		b.want("/login", "")
		first.want("/", `"alice" 0`)
		b.want("/", `"alice" 0`)
	})
}

// A login that was answered with success is one, however slow it was.
func TestReviewTheLimitAndASlowLogin(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1})
		slow, quick := s.window(""), s.window("")
		st.once(func(c *call) bool { return c.list && c.op == "load" }, func(c *call) error {
			time.Sleep(2 * time.Second)
			quick.want("/login", "")
			return c.do()
		})
		slow.want("/login", "")
		slow.want("/", `"alice" 0`)
	})
}

// A login that had to be tried twice does not stand in its own way.
func TestReviewRefuseMoreAndAnotherTry(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: true})
		b := s.window("")
		b.want("/add", "")
		same := s.window(b.cookie)
		st.once(func(c *call) bool { return c.kind == 'o' }, func(c *call) error {
			same.want("/add", "")
			return c.do()
		})
		b.want("/login", "")
		b.want("/", `"alice" 2`)
	})
}

// Nor does one that a store that was away for a moment has kept from being made.
func TestReviewRefuseMoreBehindAnOutage(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: true})
		b := s.window("")
		st.once(func(c *call) bool { return c.kind == 'l' }, func(*call) error { return errUnavailable })
		if got := b.get("/login"); !strings.HasPrefix(got, "500") {
			t.Error(got)
		}
		b.want("/login", "")
	})
}

// The limit holds while a session is being renewed, and when the secret is another one.
func TestReviewTheLimit(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		for _, refuse := range []bool{false, true} {
			s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: refuse})
			a, b := s.window(""), s.window("")
			a.want("/login", "")
			time.Sleep(2 * time.Second)
			at := newStop()
			st.once(func(c *call) bool { return c.list && c.op == "load" }, func(c *call) error {
				at.wait()
				return c.do()
			})
			at.at(func() { a.get("/renew") }, func() {
				synctest.Wait()
				b.get("/login")
			})
			if a.get("/") == `"alice" 0` && b.get("/") == `"alice" 0` {
				t.Errorf("refused %v: both are logged in", refuse)
			}
			if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Hour)
		}
	})
	eachWay(t, func(t *testing.T, st *play) {
		old := newPages(t, st, sessile.Options{MaxSessions: 1, Secret: []byte("old")})
		s := newPages(t, st, sessile.Options{MaxSessions: 1, Secret: []byte("new"), OldSecrets: [][]byte{[]byte("old")}})
		a := old.window("")
		a.want("/login", "")
		time.Sleep(2 * time.Second)
		b := s.window("")
		b.want("/login", "")
		if in := s.window(a.cookie).get("/"); in == `"alice" 0` {
			t.Error("another secret: both are logged in")
		}
	})
}

// A request that came with an older token does not give the browser one that is known to end.
func TestReviewACookieInTheWay(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		late := s.window(b.cookie)
		b.want("/renew", "")
		b.want("/login", "")
		fresh := b.cookie
		before := late.cookie
		late.want("/", `"alice" 0`)
		if late.cookie != before { // the browser has one cookie: that of the last response
			b.cookie = late.cookie
		}
		time.Sleep(time.Minute)
		b.want("/", `"alice" 0`)
		s.window(fresh).want("/", `"alice" 0`)
	})
}

// The same, where the request has read before the login, and answers behind it.
func TestReviewACookieInTheWayOfALogin(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		at := newStop()
		s.page("/slow", func(http.ResponseWriter, *http.Request, *sessile.Session[data]) error {
			at.wait()
			return nil
		})
		b := s.window("")
		b.want("/add", "")
		late := s.window(b.cookie)
		b.want("/renew", "")
		before := late.cookie
		at.at(func() { late.want("/slow", "") }, func() { b.want("/login", "") })
		if late.cookie != before {
			b.cookie = late.cookie
		}
		b.want("/", `"alice" 1`)
	})
}

// And where copies are kept nearby, and cookies have versions.
func TestReviewACookieInTheWayNear(t *testing.T) {
	for _, what := range []string{"reads before the login", "reads behind the login", "writes before the login"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newPages(t, &tracker{Store: memory.New(memory.Options{})}, sessile.Options{Near: 5 * time.Second})
				at := newStop()
				s.page("/slow", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
					if strings.HasPrefix(what, "writes") {
						if err := s.Update(add); err != nil {
							return err
						}
						if err := s.Save(r.Context()); err != nil {
							return err
						}
					}
					at.wait()
					return nil
				})
				b := s.window("")
				b.want("/login", "")
				late := s.window(b.cookie)
				before := late.cookie
				n := 0
				if strings.HasPrefix(what, "reads before") {
					b.want("/add", "")
					n++
				}
				if strings.HasSuffix(what, "before the login") {
					at.at(func() { late.want("/slow", "") }, func() { b.want("/login", "") })
				} else {
					b.want("/login", "")
					late.want("/", `"alice" 0`)
				}
				if late.cookie != before {
					b.cookie = late.cookie
				}
				if strings.HasPrefix(what, "writes") {
					n++
				}
				time.Sleep(time.Minute)
				b.want("/", fmt.Sprintf(`"alice" %d`, n))
			})
		})
	}
}

// A browser does not see a session from before its own writes, though another window of it has read before them, and is answered last.
func TestReviewNearReadsBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memory.New(memory.Options{})
		here, there := &tracker{Store: mem}, &tracker{Store: mem} // news do not come
		opt := sessile.Options{Near: 5 * time.Second, TouchEvery: 10 * time.Minute}
		a, other := newPages(t, here, opt), newPages(t, there, opt)
		at := newStop()
		a.page("/slow", func(http.ResponseWriter, *http.Request, *sessile.Session[data]) error {
			at.wait()
			return nil
		})
		b := a.window("")
		b.want("/add", "")
		slow := a.window(b.cookie) // knows the first version
		there.silent = true
		w := &window{t: t, handler: other.m.Handler(other.mux), cookie: b.cookie}
		w.want("/add", "")
		fresh := w.cookie
		before := slow.cookie
		a.window(fresh).want("/", `"" 2`) // here is a copy of the second version
		at.at(func() { slow.want("/slow", "") }, func() { w.want("/add", "") })
		last := w.cookie
		if slow.cookie != before {
			last = slow.cookie
		}
		a.window(last).want("/", `"" 3`)
	})
}

// The deadline of a copy is that from when it was loaded.
func TestReviewNearAndTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, &tracker{Store: memory.New(memory.Options{})}, sessile.Options{Near: 5 * time.Second, Idle: time.Minute})
		b := s.window("")
		b.want("/login", "")
		time.Sleep(58 * time.Second)
		b.want("/", `"alice" 0`) // and it lasts a minute more
		time.Sleep(3 * time.Second)
		b.want("/", `"alice" 0`)
	})
}

// A cookie that stays lasts as long as the session.
func TestReviewPersistentCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{Idle: time.Hour, Absolute: 24 * time.Hour, Cookie: sessile.Cookie{Persistent: true}})
		cookie, until := "", time.Time{}
		visit := func(path string) string {
			r := httptest.NewRequest("GET", path, nil)
			if cookie != "" && time.Now().Before(until) {
				r.Header.Set("Cookie", cookie)
			}
			w := httptest.NewRecorder()
			s.m.Handler(s.mux).ServeHTTP(w, r)
			for _, c := range w.Result().Cookies() {
				cookie, until = c.Name+"="+c.Value, time.Now().Add(time.Duration(c.MaxAge)*time.Second)
			}
			return w.Body.String()
		}
		visit("/login")
		for range 9 {
			time.Sleep(10 * time.Minute)
			if got := visit("/"); got != `"alice" 0` {
				t.Fatalf("a session in use is over for the browser: %s", got)
			}
		}
	})
}

// No cache keeps a response with a token, whatever the handler says of its own part of it.
func TestReviewCaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{RenewEvery: time.Minute})
		s.page("/public", func(w http.ResponseWriter, _ *http.Request, _ *sessile.Session[data]) error {
			w.Header().Set("Cache-Control", "public, max-age=600")
			return nil
		})
		b := s.window("")
		b.want("/login", "")
		time.Sleep(2 * time.Minute)
		r := httptest.NewRequest("GET", "/public", nil)
		r.Header.Set("Cookie", b.cookie)
		w := httptest.NewRecorder()
		s.m.Handler(s.mux).ServeHTTP(w, r)
		if got := w.Result().Header; got.Get("Set-Cookie") == "" || strings.Contains(got.Get("Cache-Control"), "public") {
			t.Errorf("%v", got)
		}
	})
}

// An adopted session ends with Options.Absolute at the latest, and is in the list as long as it lasts.
func TestReviewAdoptedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		was := &before{sessions: map[string]*sessile.Adopted[data]{"a": {User: "alice", End: time.Now().Add(100 * time.Hour)}}}
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{Secret: []byte("secret"), Absolute: 12 * time.Hour})
		if err := s.m.Adopt(was.origin()); err != nil {
			t.Fatal(err)
		}
		b := s.window("old=a")
		b.want("/", `"alice" 0`)
		for range 37 {
			time.Sleep(20 * time.Minute)
			b.get("/")
		}
		if b.get("/") != `"alice" 0` {
			return
		}
		t.Error("logged in, though the absolute timeout is over")
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("logged in, and %d sessions, %v", len(list), err)
		}
		if n, err := s.m.Revoke(t.Context(), "alice"); n != 1 || err != nil {
			t.Errorf("logged in, and %d were ended, %v", n, err)
		}
	})
}

// Whose sessions were ended does not come back by one that was not taken over yet.
func TestReviewRevokedBeforeAdoption(t *testing.T) {
	notYet(t)
	synctest.Test(t, func(t *testing.T) {
		was := &before{sessions: map[string]*sessile.Adopted[data]{"a": {User: "alice", Login: time.Now()}}}
		s := newPages(t, memory.New(memory.Options{}), sessile.Options{Secret: []byte("secret")})
		if err := s.m.Adopt(was.origin()); err != nil {
			t.Fatal(err)
		}
		s.window("").want("/login", "")
		time.Sleep(time.Minute)
		if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
			t.Error(err)
		}
		s.window("old=a").want("/", `"" 0`)
	})
}

// Cookies do not count in a request with the header: not those of another library either.
func TestReviewHeaderAndAnOldCookie(t *testing.T) {
	was := &before{sessions: map[string]*sessile.Adopted[data]{"a": {User: "alice"}}}
	s := newPages(t, memory.New(memory.Options{}), sessile.Options{Secret: []byte("secret"), Header: "X-Session"})
	if err := s.m.Adopt(was.origin()); err != nil {
		t.Fatal(err)
	}
	w := s.window("old=a")
	w.header = http.Header{"X-Session": {""}}
	w.want("/", `"" 0`)
}

// A session may be used by several goroutines of its request, while one of them answers.
func TestReviewGoroutines(t *testing.T) {
	s := newPages(t, memory.New(memory.Options{}), sessile.Options{})
	s.page("/p", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Update(add); err != nil && !errors.Is(err, sessile.ErrLate) {
				t.Error(err)
			}
		})
		fmt.Fprint(w, "x")
		wg.Wait()
		return nil
	})
	for range 50 {
		s.window("").want("/p", "x")
	}
}

// A store is what it is also where something is wrapped around it.
func TestReviewAWrappedStore(t *testing.T) {
	st := newPlay()
	st.batches = true
	s := newPages(t, st, sessile.Options{})
	wrapped := newPages(t, struct{ store.Store }{st}, sessile.Options{})
	b := s.window("")
	b.want("/login", "")
	wrapped.window(b.cookie).want("/", `"alice" 0`)
}

// A session that this process cannot decode is over when it is logged out.
func TestReviewLogoutOfWhatCannotBeDecoded(t *testing.T) {
	st := memory.New(memory.Options{})
	s := newPages(t, st, sessile.Options{})
	type next struct{ N string }
	m, err := sessile.New[next](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	b := s.window("")
	b.want("/login", "")
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", b.cookie)
	m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err == nil {
			err = s.Logout(r.Context())
		}
		if err != nil {
			t.Error(err)
		}
	})).ServeHTTP(httptest.NewRecorder(), r)
	b.want("/", `"" 0`)
}

// Options with which sessions in use end are refused.
func TestReviewTouchedTooSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := sessile.New[data](memory.New(memory.Options{}), sessile.Options{Idle: time.Minute, TouchEvery: time.Hour, Cookie: sessile.Cookie{Insecure: true}})
		if err != nil {
			return
		}
		s := &site{t: t, m: m, mux: http.NewServeMux()}
		s.pages()
		b := s.window("")
		b.want("/login", "")
		for range 4 {
			time.Sleep(20 * time.Second)
			b.want("/", `"alice" 0`)
		}
	})
}

// A session that is renewed between two looks of a list is in it once, and is one for the limit.
func TestReviewListedOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 2})
		b, other := s.window(""), s.window("")
		b.want("/login", "")
		key := b.get("/key")
		midway := newStop()
		st.once(func(c *call) bool { return c.op != "load" && !c.list }, func(c *call) error { // its new place is in the list
			midway.wait()
			return c.do()
		})
		var done sync.WaitGroup
		done.Go(func() { b.want("/renew", "") })
		<-midway.here
		synctest.Wait()
		st.once(func(c *call) bool { return c.op == "load" && c.key == key }, func(c *call) error {
			err := c.do()
			close(midway.on)
			done.Wait()
			return err
		})
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
		other.want("/login", "")
		b.want("/", `"alice" 0`)
	})
}

// A session that is just being renewed is one, not two.
func TestReviewRefuseMoreWhileRenewed(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 2, RefuseMore: true})
		b, other := s.window(""), s.window("")
		b.want("/login", "")
		midway := newStop()
		st.once(func(c *call) bool { return c.op != "load" && !c.list }, func(c *call) error {
			midway.wait()
			return c.do()
		})
		midway.at(func() { b.want("/renew", "") }, func() {
			synctest.Wait()
			other.want("/login", "")
		})
	})
}

// slowlyAdopting is a site that takes over alice's session "a", the first loading of which has come to midway.
func slowlyAdopting(t *testing.T, st store.Store) (s *site, midway stop) {
	t.Helper()
	was := &before{sessions: map[string]*sessile.Adopted[data]{"a": {User: "alice"}}}
	o := was.origin()
	load, midway, slow := o.Load, newStop(), true
	o.Load = func(ctx context.Context, id string) (*sessile.Adopted[data], error) {
		old, err := load(ctx, id)
		if slow {
			slow = false
			midway.wait()
		}
		return old, err
	}
	s = newPages(t, st, sessile.Options{Secret: []byte("secret")})
	if err := s.m.Adopt(o); err != nil {
		t.Fatal(err)
	}
	return s, midway
}

// Held: an old session whose loading takes long is not taken over again when ours is over by logout.
func TestReviewSlowAdoptionAndLogout(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s, midway := slowlyAdopting(t, st)
		b, late := s.window("old=a"), s.window("old=a")
		midway.at(func() { late.want("/", `"" 0`) }, func() {
			b.want("/", `"alice" 0`)
			b.want("/logout", "")
		})
		s.window("old=a").want("/", `"" 0`)
	})
}

// Held: what ends a session of unknown outcome, be it executed at once, later or never, ends it once, and nothing else.
func TestReviewLateLogout(t *testing.T) {
	for _, when := range []string{"at once", "later", "never"} {
		eachWay(t, func(t *testing.T, st *play) {
			s := newPages(t, st, sessile.Options{})
			b := s.window("")
			b.want("/login", "")
			old := b.cookie
			var late func() error
			st.once(func(c *call) bool { return c.kind == 'o' }, func(c *call) error {
				switch when {
				case "at once":
					_ = c.do()
				case "later":
					late = c.do
				}
				return errUnknown
			})
			b.want("/logout", "")
			s.window(old).want("/", `"" 0`)
			b.want("/login", "")
			if late != nil {
				_ = late()
			}
			b.want("/", `"alice" 0`)
			s.window(old).want("/", `"" 0`)
		})
	}
}

// Held: of a save, a touch, a renewal or a login again that are under way when a session is ended none brings it back.
func TestReviewUnderWayWhenEnded(t *testing.T) {
	for _, path := range []string{"/", "/add", "/renew"} {
		for _, how := range []string{"logout", "revoke"} {
			for n := range 4 {
				eachWay(t, func(t *testing.T, st *play) {
					s := newPages(t, st, sessile.Options{TouchEvery: -1})
					b := s.window("")
					b.want("/login", "")
					old := b.cookie
					out := s.window(old)
					var seen atomic.Int64
					midway := newStop()
					st.set(func(c *call) error {
						if seen.Add(1) == int64(n+1) {
							st.set(nil)
							midway.wait()
						}
						return c.do()
					})
					done := make(chan bool)
					go func() { b.get(path); close(done) }()
					select {
					case <-midway.here:
						if how == "logout" {
							out.get("/logout")
						} else if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
							t.Error(err)
						}
						close(midway.on)
						<-done
					case <-done:
						st.set(nil)
						return
					}
					for _, cookie := range []string{old, b.cookie} {
						s.window(cookie).want("/", `"" 0`)
					}
					if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 0 || err != nil {
						t.Errorf("%s, %s, %d: %d sessions, %v", path, how, n, len(list), err)
					}
				})
			}
		}
	}
}

// Who has sent a login twice has one that lasts, whichever answer comes last.
func TestReviewTwoLoginsAnsweredInReverse(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		first, second := s.window(b.cookie), s.window(b.cookie)
		first.want("/login", "")
		second.want("/login", "")
		time.Sleep(time.Minute)
		first.want("/", `"alice" 0`)
	})
}

// A response with a new token that is lost logs nobody out, be it that he comes back later than the grace.
func TestReviewALostResponse(t *testing.T) {
	notYet(t)
	for _, path := range []string{"/renew", "/login"} {
		eachWay(t, func(t *testing.T, st *play) {
			s := newPages(t, st, sessile.Options{})
			b := s.window("")
			b.want("/login", "")
			s.window(b.cookie).want(path, "") // not answered
			time.Sleep(time.Minute)
			b.want("/", `"alice" 0`)
		})
	}
}

// bob adds a page that logs another user in.
func (s *site) bob() {
	s.page("/bob", func(_ http.ResponseWriter, r *http.Request, s *sessile.Session[data]) error {
		return s.Login(r.Context(), "bob")
	})
}

// A session that was ended while a login in it was under way stays ended, when that login is taken back.
func TestReviewEndedWhileALoginIsTakenBack(t *testing.T) {
	for _, how := range []string{"logout", "revoke", "revoke only"} {
		t.Run(how, func(t *testing.T) {
			eachWay(t, func(t *testing.T, st *play) {
				s := newPages(t, st, sessile.Options{})
				s.bob()
				b := s.window("")
				b.want("/login", "")
				old, key := b.cookie, sessile.Key(b.get("/key"))
				other := s.window(old)
				listing := newStop()
				st.once(func(c *call) bool { return c.list && c.op == "save" }, func(*call) error {
					listing.wait()
					return errUnavailable
				})
				listing.at(func() { b.get("/bob") }, func() {
					synctest.Wait()
					switch how {
					case "logout":
						other.want("/logout", "")
					case "revoke":
						if _, err := s.m.Revoke(t.Context(), "alice"); err != nil {
							t.Error(err)
						}
					case "revoke only":
						if _, err := s.m.RevokeOnly(t.Context(), "alice", key); err != nil {
							t.Error(err)
						}
					}
				})
				s.window(old).want("/", `"" 0`)
			})
		})
	}
}

// The limit holds, whichever of two logins is saved last.
func TestReviewTheLimitAndASlowSave(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1})
		slow, quick := s.window(""), s.window("")
		midway := newStop()
		st.once(func(c *call) bool { return c.kind == 'l' }, func(c *call) error {
			midway.wait()
			return c.do()
		})
		midway.at(func() { slow.want("/login", "") }, func() {
			synctest.Wait() // slow is in the list
			quick.want("/login", "")
		})
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
	})
}

// With RefuseMore two logins in one session are one too many, too.
func TestReviewRefuseMoreAndTwoLogins(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: true})
		b := s.window("")
		b.want("/login", "")
		first, second := s.window(b.cookie), s.window(b.cookie)
		first.want("/login", "")
		second.get("/login")
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 1 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
	})
}

// Whom a list from some minutes ago names is ended, renewed or not.
func TestReviewRevokeOnlyByAnOldList(t *testing.T) {
	for _, after := range []time.Duration{time.Minute, 3 * time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			eachWay(t, func(t *testing.T, st *play) {
				s := newPages(t, st, sessile.Options{RenewEvery: 10 * time.Minute})
				b := s.window("")
				b.want("/login", "")
				time.Sleep(9 * time.Minute)
				list, _ := s.m.Sessions(t.Context(), "alice") // what another window of alice shows
				time.Sleep(2 * time.Minute)
				b.want("/", `"alice" 0`) // renewed
				time.Sleep(after)
				n, err := s.m.RevokeOnly(t.Context(), "alice", list[0].Key)
				if got := b.get("/"); got != `"" 0` {
					t.Errorf("%d ended, %v, and there is %s", n, err, got)
				}
			})
		})
	}
}

// endsAll ends all of alice's sessions, w's among them.
func (s *site) endsAll(w *window) {
	s.t.Helper()
	n, err := s.m.Revoke(s.t.Context(), "alice")
	if got := w.get("/"); got != `"" 0` {
		s.t.Errorf("%d ended, %v, and there is %s", n, err, got)
	}
}

// fill logs alice in until her list is looked through.
func (s *site) fill(n int) {
	for range n {
		w := s.window("")
		w.want("/login", "")
		w.want("/logout", "")
	}
}

// Who is named by the key that he has just had is spared, and ended, though the list was pruned meanwhile.
func TestReviewPrunedBehindARenewal(t *testing.T) {
	for _, only := range []bool{false, true} {
		t.Run(fmt.Sprint("only ", only), func(t *testing.T) {
			eachWay(t, func(t *testing.T, st *play) {
				s := newPages(t, st, sessile.Options{})
				b := s.window("")
				b.want("/login", "")
				time.Sleep(time.Minute)
				var n int
				var err error
				s.page("/others", func(_ http.ResponseWriter, r *http.Request, se *sessile.Session[data]) error {
					other := s.window(b.cookie)
					other.want("/renew", "") // another window of the browser
					s.fill(16)
					if only {
						n, err = s.m.RevokeOnly(r.Context(), "alice", se.Key())
					} else {
						n, err = s.m.Revoke(r.Context(), "alice", se.Key())
					}
					return err
				})
				b.want("/others", "")
				want := map[bool]string{true: `"" 0`, false: `"alice" 0`}[only]
				if got := b.get("/"); got != want {
					t.Errorf("%d, %v: %s, want %s", n, err, got, want)
				}
			})
		})
	}
}

// A session that is in the list stays there while it lasts, be it that the absolute timeout was made shorter meanwhile.
func TestReviewAShorterAbsolute(t *testing.T) {
	for name, st := range map[string]store.Store{"one by one": newPlay(), "memory": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := st
				if st == nil {
					st = memory.New(memory.Options{})
				} else {
					st = newPlay()
				}
				was := newPages(t, st, sessile.Options{Absolute: 24 * time.Hour})
				is := newPages(t, st, sessile.Options{Absolute: time.Hour})
				b := was.window("")
				b.want("/login", "")
				w := is.window(b.cookie)
				for range 4 {
					time.Sleep(20 * time.Minute)
					w.want("/", `"alice" 0`)
				}
				is.fill(16)
				is.endsAll(w)
			})
		})
	}
}

// A session that this process cannot read stays in the list: another process may.
func TestReviewPrunedByWhoCannotRead(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
		was := newPages(t, st, sessile.Options{Encrypt: [][]byte{key(1)}})
		is := newPages(t, st, sessile.Options{Encrypt: [][]byte{key(2), key(1)}})
		b := is.window("") // at a process that has the new key already
		b.want("/login", "")
		time.Sleep(time.Minute)
		was.fill(16) // at one that has not
		is.endsAll(b)
	})
}

// A session that takes long to be made, as long as Timeout allows, is in the list.
func TestReviewPrunedBeforeItIsMade(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{Timeout: time.Minute})
		b := s.window("")
		midway := newStop()
		st.once(func(c *call) bool { return c.kind == 'l' }, func(c *call) error {
			midway.wait()
			return c.do()
		})
		midway.at(func() { b.want("/login", "") }, func() {
			time.Sleep(40 * time.Second)
			s.fill(16)
		})
		s.endsAll(b)
	})
}

// What was in a session that is over is not another user's.
func TestReviewAnothersValue(t *testing.T) {
	for _, by := range []string{"save", "renew"} {
		t.Run(by, func(t *testing.T) {
			eachWay(t, func(t *testing.T, st *play) {
				s := newPages(t, st, sessile.Options{})
				b := s.window("")
				b.want("/login", "")
				b.want("/add", "")
				b.want("/add", "")
				s.page("/try", func(_ http.ResponseWriter, r *http.Request, se *sessile.Session[data]) error {
					s.window(b.cookie).want("/logout", "")
					if err := se.Update(add); err != nil {
						return err
					}
					var err error
					if by == "save" {
						err = se.Save(r.Context())
					} else {
						err = se.Renew(r.Context())
					}
					if !errors.Is(err, sessile.ErrGone) {
						t.Error(err)
					}
					return se.Login(r.Context(), "bob")
				})
				b.want("/try", "")
				b.want("/", `"bob" 0`)
			})
		})
	}
}

// A session that is used lasts, though what was changed late in one request could not be saved.
func TestReviewNotExtendedBehindALateChange(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{Idle: 30 * time.Minute, TouchEvery: 20 * time.Minute})
		s.page("/late", func(w http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
			io.WriteString(w, "x")
			st.once(func(c *call) bool { return c.op == "save" }, func(*call) error { return errUnavailable })
			return s.Update(add)
		})
		b := s.window("")
		b.want("/login", "")
		time.Sleep(21 * time.Minute)
		b.want("/late", "x")
		time.Sleep(5 * time.Minute)
		b.want("/", `"alice" 0`)
		time.Sleep(5 * time.Minute)
		b.want("/", `"alice" 0`)
	})
}

// A copy whose deadline is over is not the session's: another process may have extended it.
func TestReviewNearAndATouchElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memory.New(memory.Options{})
		opt := sessile.Options{Near: 30 * time.Second, Idle: 5 * time.Minute}
		here, there := newPages(t, &tracker{Store: mem}, opt), newPages(t, &tracker{Store: mem}, opt)
		b := here.window("")
		b.want("/login", "")
		b.want("/", `"alice" 0`)
		at := func(s *site) *window {
			return &window{t: t, handler: s.m.Handler(s.mux), cookie: b.cookie, version: b.version}
		}
		time.Sleep(5*time.Minute - 10*time.Second)
		// A request that is answered by here makes a copy, and its extension is delayed; there extends it.
		here.page("/slow", func(http.ResponseWriter, *http.Request, *sessile.Session[data]) error {
			at(there).want("/", `"alice" 0`)
			time.Sleep(11 * time.Second)
			at(here).want("/", `"alice" 0`)
			at(here).want("/add", "")
			return nil
		})
		at(here).want("/slow", "")
		at(there).want("/", `"alice" 1`)
	})
}

// A response whose cookie the browser does not keep gives no new token.
func TestReviewRenewedWhereEmbedded(t *testing.T) {
	embedded := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"no-cors"}}
	visit := func(s *site, cookie string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = embedded.Clone()
		r.Header.Set("Cookie", cookie)
		s.m.Handler(s.mux).ServeHTTP(httptest.NewRecorder(), r)
	}
	t.Run("SameSite was None", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newPages(t, memory.New(memory.Options{}), sessile.Options{RenewEvery: 10 * time.Minute})
			b := s.window("")
			b.want("/login", "")
			time.Sleep(11 * time.Minute)
			visit(s, b.cookie)
			time.Sleep(time.Minute)
			b.want("/", `"alice" 0`)
		})
	})
	t.Run("adopted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			was := &before{sessions: map[string]*sessile.Adopted[data]{"a": {User: "alice", Login: time.Now().Add(-time.Hour)}}}
			s := newPages(t, memory.New(memory.Options{}), sessile.Options{Secret: []byte("secret"), RenewEvery: 10 * time.Minute})
			if err := s.m.Adopt(was.origin()); err != nil {
				t.Fatal(err)
			}
			visit(s, "old=a")
			time.Sleep(time.Minute)
			s.window("old=a").want("/", `"alice" 0`)
		})
	})
}

// stray has b's session have two records: a renewal that came too late, and could not be taken back.
func stray(st *play, s *site, b *window) {
	late, stop := s.window(b.cookie), newStop()
	st.once(func(c *call) bool { return c.kind == 'm' }, func(c *call) error { stop.wait(); return c.do() })
	stop.at(func() { late.want("/renew", "") }, func() {
		b.want("/renew", "")
		st.set(func(c *call) error {
			err := c.do()
			if c.kind == 'o' && errors.Is(err, store.ErrConflict) {
				return errUnavailable
			}
			return err
		})
	})
	st.set(nil)
}

// Of two records of one session the one is listed that is used, though it was not saved since.
func TestReviewTwoRecordsAndNotUsedSince(t *testing.T) {
	notYet(t)
	synctest.Test(t, func(t *testing.T) {
		st := newPlay()
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		stray(st, s, b)
		for range 2 {
			list, err := s.m.Sessions(t.Context(), "alice")
			if mine := sessile.Key(b.get("/key")); err != nil || len(list) != 1 || list[0].Key != mine {
				t.Errorf("%v, %v, want %q", list, err, mine)
			}
			time.Sleep(5 * time.Minute)
		}
	})
}

// Who logs out has no session then, and may log in.
func TestReviewTwoRecordsAndLogout(t *testing.T) {
	notYet(t)
	synctest.Test(t, func(t *testing.T) {
		st := newPlay()
		s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: true})
		b := s.window("")
		b.want("/login", "")
		stray(st, s, b)
		b.want("/logout", "")
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 0 || err != nil {
			t.Errorf("logged out, and %d sessions, %v", len(list), err)
		}
		time.Sleep(10 * time.Minute)
		b.want("/login", "")
	})
}

// The same, of a login that was done and not answered.
func TestReviewRefuseMoreBehindAnUnknownLogin(t *testing.T) {
	notYet(t)
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 1, RefuseMore: true})
		b := s.window("")
		st.set(func(c *call) error {
			if c.kind != 'l' {
				return c.do()
			}
			if err := c.do(); err != nil {
				t.Error(err)
			}
			st.set(func(*call) error { return errUnavailable })
			return errUnknown
		})
		if got := b.get("/login"); !strings.HasPrefix(got, "500") {
			t.Error(got)
		}
		st.set(nil)
		time.Sleep(time.Minute)
		b.want("/login", "")
	})
}

type wide struct {
	N    int
	Seen [1 << 16]bool `json:",omitzero"`
}

// What is kept decoded is bounded, in bytes that it takes.
func TestReviewMemoOfWideValues(t *testing.T) {
	st := memory.New(memory.Options{})
	m, err := sessile.New[wide](st, sessile.Options{Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	h := m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err == nil {
			switch r.URL.Path {
			case "/add":
				err = s.Update(func(v *wide) error { v.N++; return nil })
			case "/out":
				err = s.Logout(r.Context())
			}
		}
		if err != nil {
			t.Error(err)
		}
	}))
	heap := func() uint64 {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	was := heap()
	for range 2000 {
		w := &window{t: t, handler: h}
		w.get("/add")
		w.get("/")
		w.get("/out")
	}
	if now := heap(); now > was+40<<20 {
		t.Errorf("%d MB for 2000 sessions of which none is there any more", (now-was)>>20)
	}
	runtime.KeepAlive(m)
}

// A session that lasts is ended by Revoke, however often its user has logged in since: somebody who has stolen a password could hide one so.
func TestReviewHiddenByManyLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, out := range []bool{false, true} { // the others are over
			s := newPages(t, memory.New(memory.Options{}), sessile.Options{})
			b := s.window("")
			b.want("/login", "")
			for range 1010 {
				w := s.window("")
				w.want("/login", "")
				if out {
					w.want("/logout", "")
				}
			}
			n, err := s.m.Revoke(t.Context(), "alice")
			if got := b.get("/"); got != `"" 0` {
				t.Errorf("others over %v: %d ended, %v, and there is %s", out, n, err, got)
			}
		}
	})
}

// The same as above, where nothing fails but that a client goes away.
func TestReviewEndedWhileAClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newPlay()
		st.batches = true
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		old := b.cookie
		s.page("/bob", func(_ http.ResponseWriter, r *http.Request, se *sessile.Session[data]) error {
			ctx, cancel := context.WithCancel(r.Context())
			st.once(func(c *call) bool { return c.list && c.op == "load" }, func(c *call) error {
				synctest.Wait() // the other write is done
				if n, err := s.m.Revoke(t.Context(), "alice"); err != nil {
					t.Error(n, err)
				}
				cancel()
				return store.Gone(c.ctx)
			})
			return se.Login(ctx, "bob")
		})
		b.get("/bob")
		s.window(old).want("/", `"" 0`)
	})
}

// With RefuseMore many logins at once in one session that has just been logged in again are no way around the limit.
func TestReviewRefuseMoreAndManyLogins(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{MaxSessions: 2, RefuseMore: true})
		b := s.window("")
		b.want("/login", "")
		old := b.cookie
		b.want("/login", "")
		on := make(chan bool)
		st.set(func(c *call) error {
			if c.kind == 'l' {
				<-on
			}
			return c.do()
		})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { s.window(old).get("/login") })
		}
		time.Sleep(time.Second)
		close(on)
		wg.Wait()
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) > 2 || err != nil {
			t.Errorf("%d sessions, %v", len(list), err)
		}
	})
}

// A logout with a token that was renewed a minute ago, whose successor never came, ends the session.
func TestReviewLogoutBehindTheGrace(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		b := s.window("")
		b.want("/login", "")
		other := s.window(b.cookie)
		other.want("/renew", "") // not answered, or answered to somebody else
		time.Sleep(time.Minute)
		b.want("/logout", "")
		if list, err := s.m.Sessions(t.Context(), "alice"); len(list) != 0 || err != nil {
			t.Errorf("logged out, and %d sessions, %v", len(list), err)
		}
		other.want("/", `"" 0`)
	})
}

// Of a change that has panicked nothing is saved, where somebody has recovered.
func TestReviewAPanicInAChange(t *testing.T) {
	eachWay(t, func(t *testing.T, st *play) {
		s := newPages(t, st, sessile.Options{})
		s.page("/panics", func(_ http.ResponseWriter, _ *http.Request, s *sessile.Session[data]) error {
			func() {
				defer func() { _ = recover() }()
				_ = s.Update(func(d *data) error { d.N = 100; panic("x") })
			}()
			return s.Update(add)
		})
		b := s.window("")
		b.want("/add", "")
		b.want("/panics", "")
		b.want("/", `"" 2`)
	})
}
