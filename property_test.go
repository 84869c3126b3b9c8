package sessile_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

const (
	idle     = 30 * time.Minute
	absolute = 2 * time.Hour
	grace    = 30 * time.Second
	grave    = 2 * time.Minute // as long as that a session that was destroyed is known to have been one
	second   = time.Second     // records know times to the second
)

// A span says until when something is there for sure, and from when on it is not. In between nobody knows: an answer was lost, or it is
// a matter of the second.
type span struct{ sure, may time.Time }

var ever = span{time.Unix(1<<40, 0), time.Unix(1<<40, 0)}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (a span) and(b span) span { return span{earlier(a.sure, b.sure), earlier(a.may, b.may)} }

func until(now time.Time) span        { return span{now, now} }
func unsure(now time.Time) span       { return span{now, ever.may} }
func (a span) yes(now time.Time) bool { return now.Before(a.sure) }
func (a span) no(now time.Time) bool  { return !now.Before(a.may) }

// An account is what the model knows of a session: from the first change, or the login, to its end, under whatever tokens.
type account struct {
	user      string
	low, high int  // how many changes are in it
	idle, end span // by its timeouts
	over      span // by a logout, another's login, or from elsewhere
	now       *ticket
	since     time.Time // when it got the token that it has
	untouched time.Time // until then a failure may keep it from being extended
	lost      bool      // an answer was, so that it may have a token that nobody has
	unknown   bool      // it may be the same as another one, and nothing is said of it
}

// A ticket is a token, as the model knows it.
type ticket struct {
	of     *account
	value  string
	key    sessile.Key
	grace  span      // ever, as long as no other one follows
	blind  bool      // one follows that who has this one must not learn
	buried time.Time // until then there must be a grave
}

func (k *ticket) lasts() span {
	if k.of.unknown {
		return span{may: ever.may}
	}
	return k.grace.and(k.of.idle).and(k.of.end).and(k.of.over)
}

// A visit is a request, which has begun and may go on much later.
type visit struct {
	who     int
	cookie  string
	account *account // nil: it was told that there is no session
	at      *ticket  // where the session lay then
	blind   bool
	buried  bool
	n       int // as it began

	act  chan string
	done chan bool
	w    *httptest.ResponseRecorder
	last sight
}

// A sight is what a handler is told.
type sight struct {
	exists bool
	user   string
	n      int
	key    sessile.Key
	err    error
}

func look(s *sessile.Session[data], err error) sight {
	user, _ := s.User()
	return sight{s.Exists(), user, s.Value().N, s.Key(), err}
}

// A world is a site of one or two processes, with its visitors, and what the model knows of it.
type world struct {
	st         *troubled
	m          []*sessile.Manager[data]
	opt        sessile.Options
	touchEvery time.Duration
	browsers   []string // their cookies
	versions   []string // and those with versions
	tickets    []*ticket
	accounts   []*account
	slow       []*visit
	strays     bool // there may be sessions that nobody was told of
}

func newWorld(t *rapid.T) *world {
	w := &world{st: &troubled{Store: memory.New(memory.Options{})}}
	w.opt = sessile.Options{Idle: idle, Absolute: absolute, Grace: grace, Cookie: sessile.Cookie{Insecure: true}}
	if rapid.Bool().Draw(t, "touched at every request") {
		w.opt.TouchEvery = -1
	} else {
		w.touchEvery = idle / 10
	}
	w.opt.RenewEvery = rapid.SampledFrom([]time.Duration{0, 10 * time.Minute, grace}).Draw(t, "RenewEvery")
	if rapid.Bool().Draw(t, "encrypted") {
		w.opt.Encrypt = [][]byte{make([]byte, 32)}
	}
	var st store.Store = w.st
	if rapid.Bool().Draw(t, "more than a store must") {
		st = able{w.st}
		if rapid.Bool().Draw(t, "copies nearby") {
			w.opt.Near = time.Minute
		}
	}
	for range rapid.IntRange(1, 2).Draw(t, "processes") {
		m, err := sessile.New[data](st, w.opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		w.m = append(w.m, m)
	}
	w.browsers = make([]string, rapid.IntRange(1, 4).Draw(t, "browsers"))
	w.versions = make([]string, len(w.browsers))
	return w
}

func (w *world) process(t *rapid.T) *sessile.Manager[data] {
	return w.m[rapid.IntRange(0, len(w.m)-1).Draw(t, "process")]
}

func (w *world) named(value string) *ticket {
	i := slices.IndexFunc(w.tickets, func(k *ticket) bool { return k.value == value })
	if i < 0 {
		return nil
	}
	return w.tickets[i]
}

// trouble has some of the calls of the store fail that come now.
func (w *world) trouble(t *rapid.T) {
	var plan [2][]failure
	if rapid.IntRange(0, 4).Draw(t, "trouble") == 4 {
		g := rapid.SliceOfN(rapid.SampledFrom([]failure{fine, away, done, undone, later}), 0, 6)
		plan = [2][]failure{g.Draw(t, "with sessions"), g.Draw(t, "with lists")}
	}
	w.st.begin(plan)
}

// arrive has a browser begin a request. It returns nil where that was answered with an outage.
func (w *world) arrive(t *rapid.T) *visit {
	v := &visit{act: make(chan string), done: make(chan bool), w: httptest.NewRecorder()}
	v.who = rapid.IntRange(0, len(w.browsers)-1).Draw(t, "browser")
	v.cookie = w.browsers[v.who]
	if len(w.tickets) > 0 && rapid.IntRange(0, 3).Draw(t, "with an old cookie") == 3 {
		v.cookie = w.tickets[rapid.IntRange(0, len(w.tickets)-1).Draw(t, "which")].value
	}
	m := w.process(t)
	w.trouble(t)
	start, k := time.Now(), w.named(v.cookie)
	r := httptest.NewRequest("GET", "/", nil)
	if v.cookie != "" {
		r.AddCookie(&http.Cookie{Name: "session", Value: v.cookie})
		r.AddCookie(&http.Cookie{Name: "session-v", Value: w.versions[v.who]})
	}
	seen := make(chan sight, 1)
	go func() {
		defer close(v.done)
		m.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err != nil {
				seen <- sight{err: err}
				http.Error(rw, "an outage", http.StatusInternalServerError)
				return
			}
			seen <- look(s, nil)
			if act := <-v.act; act != "" {
				v.last = perform(rw, r, s, act)
			}
		})).ServeHTTP(v.w, r)
	}()
	first, now := <-seen, time.Now()
	if first.err != nil {
		<-v.done
		if w.st.failures() == 0 {
			t.Fatalf("Get: %v", first.err)
		}
		if len(v.w.Result().Cookies()) != 0 {
			t.Fatal("an outage changes a cookie")
		}
		return nil
	}
	t.Cleanup(func() { // where the test has failed
		select {
		case v.act <- "":
			<-v.done
		case <-v.done:
		}
	})
	t.Logf("begin: %v: %+v", v, first)
	if v.n = first.n; !first.exists {
		if k != nil {
			if k.lasts().yes(now) {
				t.Fatalf("lost: %v %v has no session", k, k.of)
			}
			k.grace, v.buried = k.grace.and(until(now)), now.Before(k.buried)
		}
		return v
	}
	switch {
	case k == nil:
		t.Fatalf("%q has a session", v.cookie)
	case k.lasts().no(start):
		t.Fatalf("undead: %v of %v has a session: %+v", k, k.of, first)
	case first.user != k.of.user:
		t.Fatalf("%v of %v is %q", k, k.of, first.user)
	case !k.of.unknown && (first.n < k.of.low || first.n > k.of.high):
		t.Fatalf("%v of %v has %d changes", k, k.of, first.n)
	}
	a := k.of
	a.low, a.high, a.over = first.n, first.n, ever
	v.account, v.at, v.blind = a, a.now, k.blind
	if a.lost { // it may lie under a token that nobody has
		v.at = &ticket{of: a, grace: unsure(now), value: "?"}
	}
	return v
}

func perform(w http.ResponseWriter, r *http.Request, s *sessile.Session[data], act string) sight {
	var err error
	switch act {
	case "add":
		err = s.Update(add)
	case "add, save":
		if err = s.Update(add); err == nil {
			err = s.Save(r.Context())
		}
	case "add late":
		w.WriteHeader(http.StatusOK)
		err = s.Update(add)
	case "logout":
		err = s.Logout(r.Context())
	case "renew":
		err = s.Renew(r.Context())
	case "login alice", "login bob":
		err = s.Login(r.Context(), act[len("login "):])
	}
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
	} else {
		w.WriteHeader(http.StatusOK) // the session is saved now
	}
	return look(s, err)
}

var acts = []string{"read", "add", "add, save", "add late", "login alice", "login bob", "logout", "renew"}

// leave has a request end.
func (w *world) leave(t *rapid.T, v *visit) {
	act := rapid.SampledFrom(acts).Draw(t, "act")
	w.trouble(t)
	start := time.Now()
	v.act <- act
	<-v.done
	now := time.Now()
	err, failures := v.last.err, w.st.failures()
	ok := err == nil && v.w.Code == http.StatusOK
	t.Logf("%s: %v: %d, %+v, %v, %s", act, v, v.w.Code, v.last, v.w.Header()["Set-Cookie"], w.st.calls)
	if !ok && failures == 0 && !errors.Is(err, sessile.ErrGone) && !errors.Is(err, sessile.ErrLate) {
		t.Fatalf("%d, %v, and no failure", v.w.Code, err)
	}
	given := w.given(t, v, act)
	user, login := strings.CutPrefix(act, "login ")
	adds := strings.HasPrefix(act, "add")
	if login && err == nil && given == "" {
		t.Fatal("a login without a new token")
	}
	w.strays = w.strays || failures > 0

	a := v.account
	if a == nil {
		if k := w.named(v.cookie); k != nil && (act == "logout" || login) {
			k.of.over = k.of.over.and(unsure(start)) // where its token is over, and it is still known where it has gone
		}
		switch {
		case v.buried && given != "" && !login:
			t.Fatal("a session takes the place of one that somebody else has ended a moment ago")
		case v.buried && adds && !errors.Is(err, sessile.ErrGone):
			t.Fatalf("a change in a session that is over: %v", err)
		case act == "add late" && ok:
			t.Fatal("a new session when no cookie can be set")
		case v.cookie == "" && errors.Is(err, sessile.ErrGone):
			t.Fatal("a session that was none is gone")
		case adds && ok && given == "":
			t.Fatal("a new session without a cookie")
		case given == "":
		case adds:
			w.begin(v, given, "", 1, start, now)
		case login && err == nil:
			w.begin(v, given, user, v.last.n, start, now)
			if v.last.n != v.n {
				t.Fatalf("a login finds %d changes", v.last.n)
			}
		default:
			t.Fatal("a new session of nothing")
		}
		return
	}

	l := v.at.lasts()
	there, gone := l.yes(now), l.no(start)
	known := w.named(given)
	if given != "" && !login {
		switch {
		case gone:
			t.Fatalf("a cookie for a session that is over: %v", a)
		case v.blind:
			t.Fatal("who came with the token from before a login is given another one")
		case known != nil && known != a.now:
			t.Fatalf("it is given %v, and has gone on as %v", known, a.now)
		}
	}
	// Who has come with an older token may be too late: it is not the session's any more.
	if there && failures == 0 && !ok && !(errors.Is(err, sessile.ErrLate) && v.cookie != a.now.value) {
		t.Fatalf("%v of %v: %d, %v", v.at, a, v.w.Code, err)
	}
	wrote := false
	if adds {
		switch {
		case gone && act == "add, save" && ok:
			t.Fatalf("saved in a session that is over: %v", a)
		case gone:
		case ok && (act == "add, save" || there && (act == "add" || failures == 0)):
			wrote = true
			a.low++
			a.high++
		case ok || w.st.unknown > 0 || act == "add, save":
			a.high++
		}
	}
	switch {
	case act == "logout" && err == nil:
		if a.over.no(start) {
			return
		}
		if !v.at.grace.yes(start) { // it may not be known any more where the session went on
			a.over = a.over.and(unsure(start))
		} else {
			w.end(a, now)
		}
		return
	case act == "logout" && w.st.unknown > 0:
		a.over = a.over.and(unsure(start))
	case login && err == nil:
		other, both := a.user != "" && a.user != user, a.user == user && (v.blind || v.at.blind)
		same := there && v.last.n >= a.low && v.last.n <= a.high
		switch { // another user's value is nobody's
		case other && v.last.n == 0, !other && same, !other && (gone || both) && v.last.n == v.n, !there && !gone:
		default:
			t.Fatalf("who logs in in %v finds %d changes", a, v.last.n)
		}
		switch {
		case there && both: // two logins at once: both last
		case there && a.user == user:
			for _, k := range w.tickets {
				k.blind = k.blind || k.of == a
			}
			a.low, a.high = v.last.n, v.last.n
			w.follow(v, a, given, start, now)
			a.idle, a.end = span{start.Add(idle), now.Add(idle)}, span{start.Add(absolute - second), now.Add(absolute)}
			return
		case there:
			w.end(a, now)
		case !gone:
			a.over = a.over.and(unsure(start))
			a.unknown = a.user == user
		}
		w.begin(v, given, user, v.last.n, start, now)
		w.accounts[len(w.accounts)-1].unknown = a.unknown
		return
	case login && (w.st.unknown > 0 || failures > 1):
		a.over, a.lost = a.over.and(unsure(start)), true
		a.now.grace = a.now.grace.and(span{start.Add(grace - second), ever.may})
	}
	due := w.opt.RenewEvery > 0 && now.Sub(a.since) >= w.opt.RenewEvery-second
	switch {
	case given != "" && known == nil:
		if act != "renew" && !due && !a.lost {
			t.Fatalf("%v has a new token, and nobody wants one", a)
		}
		w.follow(v, a, given, start, now)
		wrote = true
	case given == "" && failures == 0 && there && !v.blind && v.at == a.now && (act == "renew" || due && now.Sub(a.since) > w.opt.RenewEvery+second):
		t.Fatalf("%v has no new token", a)
	case failures > 0 && !gone && (act == "renew" || due):
		a.lost = true
		a.now.grace = a.now.grace.and(span{start.Add(grace - second), ever.may})
	}
	if l = a.now.lasts(); !l.no(now) {
		a.idle.may = now.Add(idle)
	}
	switch {
	case wrote && l.yes(now):
		a.idle.sure = start.Add(idle)
	case v.at == a.now && failures == 0 && l.yes(now) && (w.touchEvery == 0 || start.After(a.untouched)):
		if sure := start.Add(idle - w.touchEvery); a.idle.sure.Before(sure) {
			a.idle.sure = sure
		}
	}
	if failures > 0 {
		a.untouched = now.Add(w.touchEvery)
	}
}

// given is the token that a response sets, "" for none.
func (w *world) given(t *rapid.T, v *visit, act string) string {
	var tokens []*http.Cookie
	for _, c := range v.w.Result().Cookies() {
		if c.Name != "session" {
			w.versions[v.who] = c.Value
		} else {
			tokens = append(tokens, c)
		}
	}
	if len(tokens) > 1 {
		t.Fatalf("%d cookies", len(tokens))
	}
	if len(tokens) == 0 {
		if act == "logout" && v.last.err == nil && v.account != nil {
			t.Fatal("a logout leaves the cookie")
		}
		return ""
	}
	c := tokens[0]
	w.browsers[v.who] = ""
	if c.MaxAge < 0 {
		if act != "logout" {
			t.Fatalf("%s takes the cookie away", act)
		}
		return ""
	}
	w.browsers[v.who] = c.Value
	if k := w.named(c.Value); k != nil && k.of != v.account && !k.of.unknown {
		t.Fatalf("it is given %v, of somebody else's session", k)
	}
	return c.Value
}

// begin notes a new session.
func (w *world) begin(v *visit, value, user string, n int, start, now time.Time) {
	a := &account{user: user, low: n, high: n, over: ever, idle: span{start.Add(idle), now.Add(idle)}, end: span{start.Add(absolute - second), now.Add(absolute)}}
	w.accounts = append(w.accounts, a)
	w.follow(v, a, value, start, now)
}

// follow notes a new token.
func (w *world) follow(v *visit, a *account, value string, start, now time.Time) {
	if a.now != nil {
		a.now.grace = a.now.grace.and(span{start.Add(grace - second), now.Add(grace)})
	}
	a.now = &ticket{of: a, value: value, key: v.last.key, grace: ever}
	a.since, a.lost, a.over = now, false, ever
	w.tickets = append(w.tickets, a.now)
}

// end notes that a session is over.
func (w *world) end(a *account, now time.Time) {
	for _, k := range w.tickets {
		if k.of == a && !a.lost && k.lasts().yes(now) {
			k.buried = now.Add(grave - second)
		}
	}
	a.over = until(now)
}

// revoke ends sessions of a user from elsewhere: all of them, all but one, or one.
func (w *world) revoke(t *rapid.T) {
	user := rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "whose")
	m := w.process(t)
	var named *account
	only := false
	if len(w.accounts) > 0 && rapid.Bool().Draw(t, "with a name") {
		named = w.accounts[rapid.IntRange(0, len(w.accounts)-1).Draw(t, "which")]
		only = rapid.Bool().Draw(t, "only")
	}
	w.trouble(t)
	start := time.Now()
	var n int
	var err error
	switch {
	case named == nil:
		n, err = m.Revoke(t.Context(), user)
	case only:
		n, err = m.RevokeOnly(t.Context(), user, named.now.key)
	default:
		n, err = m.Revoke(t.Context(), user, named.now.key)
	}
	now := time.Now()
	t.Logf("revoke %s, %v, only %v: %d, %v, %s", user, named, only, n, err, w.st.calls)
	if err != nil && w.st.failures() == 0 {
		t.Fatalf("Revoke: %v", err)
	}
	sure, may := 0, 0
	for _, a := range w.accounts {
		l := a.now.lasts()
		if only && a != named && a.user == user && tag(a.now.key) == tag(named.now.key) && !l.no(start) {
			may++ // what was called so may have become this one
			a.over = a.over.and(unsure(start))
			continue
		}
		if a.user != user || named != nil && (a == named) != only || l.no(start) {
			if a == named && a.lost {
				a.over = a.over.and(unsure(start)) // it may have another name
			}
			continue
		}
		if may++; l.yes(now) {
			sure++
		}
		switch {
		case err != nil && w.st.unknown == 0 && w.st.away == 0:
		case err != nil, a.lost && only:
			a.over = a.over.and(unsure(start))
		default:
			w.end(a, now)
		}
	}
	if w.st.failures() == 0 && !w.strays && (n < sure || n > may) {
		t.Fatalf("Revoke: %d of %d to %d", n, sure, may)
	}
}

// check looks at the store and at the lists of users.
func (w *world) check(t *rapid.T) {
	w.st.pending.Wait()
	w.st.begin([2][]failure{})
	now := time.Now()
	for _, user := range []string{"alice", "bob"} {
		list, err := w.m[0].Sessions(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range w.accounts {
			i := slices.IndexFunc(list, func(i sessile.Info[data]) bool { return i.Key == a.now.key })
			l := a.now.lasts()
			switch {
			case i < 0 && w.strays && slices.ContainsFunc(list, func(i sessile.Info[data]) bool { return tag(i.Key) == tag(a.now.key) }):
				continue // what a renewal has left that was cut short may stand for it
			case i < 0 && a.user == user && l.yes(now) && !a.lost:
				t.Fatalf("%v is not in the list", a)
			case i < 0:
				continue
			case a.user != user || l.no(now):
				t.Fatalf("%v is in the list of %s", a, user)
			case !a.unknown && (list[i].Value.N < a.low || list[i].Value.N > a.high):
				t.Fatalf("%v is in the list with %d changes", a, list[i].Value.N)
			}
			list = slices.Delete(list, i, i+1)
		}
		if len(list) > 0 && !w.strays && !slices.ContainsFunc(w.accounts, func(a *account) bool { return a.lost }) {
			t.Fatalf("%d sessions of %s that nobody knows", len(list), user)
		}
	}
	page, err := w.st.Scan(t.Context(), "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range page.Keys {
		rec, err := w.st.Store.Load(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Expires.IsZero() || rec.Expires.After(now.Add(absolute+time.Minute)) {
			t.Fatalf("%s stays until %v", key, rec.Expires)
		}
		for _, k := range w.tickets {
			if strings.Contains(key, k.value) || bytes.Contains(rec.Data, []byte(k.value)) {
				t.Fatal("a token lies in the store")
			}
		}
	}
}

func tag(key sessile.Key) string { return string(key[:strings.IndexByte(string(key), '}')]) }

func (k *ticket) String() string {
	return fmt.Sprintf("%.6s(until %v, blind %v)", k.value, k.lasts(), k.blind)
}

func (a *account) String() string {
	return fmt.Sprintf("%q(%d to %d, now %.6s, lost %v)", a.user, a.low, a.high, a.now.value, a.lost)
}

func (v *visit) String() string { return fmt.Sprintf("browser %d with %.6s", v.who, v.cookie) }

func (a span) String() string {
	if a == ever {
		return "ever"
	}
	return a.sure.Format("15:04:05.000") + "/" + a.may.Format("15:04:05.000")
}

// Whatever browsers do, in whatever order, and whatever fails: what was acknowledged stays, nobody is logged out, and nobody logged in
// again.
func TestAnythingAtAll(t *testing.T) {
	checks := "300"
	if os.Getenv("SESSILE_SOAK") != "" {
		checks = "20000"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true"} { // a seed is enough
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			if err := f.Value.Set(value); err != nil {
				t.Fatal(err)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w := newWorld(t)
			t.Repeat(map[string]func(*rapid.T){
				"": w.check,
				"request": func(t *rapid.T) {
					if v := w.arrive(t); v != nil {
						w.leave(t, v)
					}
				},
				"request ": func(t *rapid.T) { // most of what happens
					if v := w.arrive(t); v != nil {
						w.leave(t, v)
					}
				},
				"a slow request begins": func(t *rapid.T) {
					if len(w.slow) == 4 {
						t.Skip()
					}
					if v := w.arrive(t); v != nil {
						w.slow = append(w.slow, v)
					}
				},
				"and ends": func(t *rapid.T) {
					if len(w.slow) == 0 {
						t.Skip()
					}
					i := rapid.IntRange(0, len(w.slow)-1).Draw(t, "slow one")
					v := w.slow[i]
					w.slow = slices.Delete(w.slow, i, i+1)
					w.leave(t, v)
				},
				"revoke": w.revoke,
				"time": func(t *rapid.T) {
					d := rapid.SampledFrom([]time.Duration{time.Second, 7 * time.Second, 28 * time.Second, 40 * time.Second, 3 * time.Minute, 11 * time.Minute, 26 * time.Minute, 31 * time.Minute, 2 * time.Hour}).Draw(t, "passes")
					t.Logf("%v pass", d)
					time.Sleep(d)
				},
			})
		})
	})
}

// A failure is what becomes of one call of the store.
type failure int

const (
	fine   failure = iota
	away           // the store cannot be asked
	done           // it is done, and no answer comes
	undone         // it is not done, and no answer comes
	later          // it is done when nobody waits for an answer any more
)

// troubled is a store that fails by a plan: one for calls about sessions, and one for those about lists of users, which come at the same
// time. It counts what has failed.
type troubled struct {
	store.Store

	mu            sync.Mutex // guards what follows
	plan          [2][]failure
	away, unknown int
	calls         []string // what became of them
	changed       []func(key string)
	pending       sync.WaitGroup // calls that are done later
}

func (s *troubled) begin(plan [2][]failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan, s.away, s.unknown, s.calls = plan, 0, 0, nil
}

func (s *troubled) failures() int { return s.away + s.unknown }

// call makes one, or not, by the plan.
func (s *troubled) call(ctx context.Context, what, key string, f func(ctx context.Context) error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, next := 0, fine
	if len(key) == 32 { // a list's, which has no tag
		i = 1
	}
	if len(s.plan[i]) > 0 {
		next, s.plan[i] = s.plan[i][0], s.plan[i][1:]
	}
	defer func() {
		s.calls = append(s.calls, fmt.Sprintf("%s %.10s: %v%s", what, key, err, map[failure]string{done: " (done)", undone: " (not done)", later: " (done later)"}[next]))
	}()
	switch next {
	case away:
		s.away++
		return store.ErrUnavailable
	case later:
		if strings.HasPrefix(what, "Save") || what == "Touch" { // the others have results
			s.pending.Go(func() {
				time.Sleep(second)
				s.mu.Lock()
				defer s.mu.Unlock()
				_ = s.run(context.WithoutCancel(ctx), what, key, f)
			})
		}
		fallthrough
	case undone:
		s.unknown++
		return store.ErrUnknown
	}
	err = s.run(ctx, what, key, f)
	if next == done {
		s.unknown++
		return store.ErrUnknown
	}
	return err
}

// run does what a call does, and has news of it told. Callers hold mu.
func (s *troubled) run(ctx context.Context, what, key string, f func(ctx context.Context) error) error {
	err := f(ctx)
	if what != "Load" && what != "Inspect" {
		for _, tell := range s.changed {
			tell(key)
		}
	}
	return err
}

func (s *troubled) Load(ctx context.Context, key string) (rec store.Record, err error) {
	err = s.call(ctx, "Load", key, func(ctx context.Context) (err error) {
		rec, err = s.Store.Load(ctx, key)
		return err
	})
	return rec, err
}

func (s *troubled) Inspect(ctx context.Context, key string) (rec store.Record, err error) {
	err = s.call(ctx, "Inspect", key, func(ctx context.Context) (err error) {
		rec, err = s.Store.Inspect(ctx, key)
		return err
	})
	return rec, err
}

func (s *troubled) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.call(ctx, "Save", key, func(ctx context.Context) error { return s.Store.Save(ctx, key, rec, cond) })
}

func (s *troubled) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.call(ctx, "Touch", key, func(ctx context.Context) error { return s.Store.Touch(ctx, key, expires) })
}

func (s *troubled) Delete(ctx context.Context, key string, cond store.Condition) (existed bool, err error) {
	err = s.call(ctx, "Delete", key, func(ctx context.Context) (err error) {
		existed, err = s.Store.Delete(ctx, key, cond)
		return err
	})
	return existed, err
}

// able is troubled, and can do all that a store can.
type able struct{ *troubled }

func (s able) SaveAll(ctx context.Context, writes []store.Write) error {
	return s.call(ctx, "SaveAll", writes[0].Key, func(ctx context.Context) error {
		for _, w := range writes {
			rec, err := s.Store.Load(ctx, w.Key)
			v := rec.Version()
			if errors.Is(err, store.ErrAbsent) {
				v = store.Absent
			}
			if !w.Condition.Holds(v) {
				return store.ErrConflict
			}
		}
		for _, w := range writes {
			if err := s.Store.Save(ctx, w.Key, w.Record, store.Always); err != nil {
				return err
			}
			for _, tell := range s.changed {
				tell(w.Key)
			}
		}
		return nil
	})
}

func (s able) Append(ctx context.Context, key string, data []byte, expires time.Time) (rec store.Record, err error) {
	err = s.call(ctx, "Append", key, func(ctx context.Context) error {
		was, err := s.Store.Load(ctx, key)
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			return err
		}
		if rec = (store.Record{Data: append(was.Data, data...), Expires: expires}); was.Expires.After(expires) {
			rec.Expires = was.Expires
		}
		return s.Store.Save(ctx, key, rec, store.Always)
	})
	return rec, err
}

func (s able) Track(changed func(key string)) (func(ctx context.Context, key string) (store.Record, error), func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(s.changed, changed)
	return s.Load, func() {}, nil
}
