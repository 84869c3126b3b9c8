// Package scenario is what browsers do on the shop, whatever framework it is made with.
package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

// Run tests the shop that newShop makes.
func Run(t *testing.T, newShop func(st store.Store) (http.Handler, error)) {
	for name, scene := range map[string]func(*testing.T, *site){
		"a cart is kept by a login, and ends with the logout":  visit,
		"what two windows add at once is in the cart":          windows,
		"signing out everywhere else":                          everywhere,
		"a stream has its cookie before its first event":       stream,
		"an error has its cookie, too":                         mistakes,
		"forms of other sites are refused":                     otherSites,
		"without its store the shop says so":                   outage,
		"a session that cannot be saved is not said to be one": unsaved,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := &failing{Store: memory.New(memory.Options{})}
			handler, err := newShop(st)
			if err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(handler)
			t.Cleanup(srv.Close)
			at, err := url.Parse(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			scene(t, &site{t, at, st})
		})
	}
}

// failing is a store that can be made not to answer.
type failing struct {
	store.Store
	load, save atomic.Bool
}

func (s *failing) Load(ctx context.Context, key string) (store.Record, error) {
	if s.load.Load() {
		return store.Record{}, store.ErrUnavailable
	}
	return s.Store.Load(ctx, key)
}

func (s *failing) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	if s.save.Load() {
		return store.ErrUnavailable
	}
	return s.Store.Save(ctx, key, rec, cond)
}

type site struct {
	*testing.T
	at *url.URL
	st *failing
}

// home is what the first page says.
type home struct {
	User  string
	Visit struct {
		Cart              []string
		Mistakes, Streams int
	}
	Devices []struct {
		Name, Key string
		Here      bool
	}
}

func (h home) String() string {
	var devices []string
	for _, d := range h.Devices {
		if d.Here {
			d.Name += " (here)"
		}
		devices = append(devices, d.Name)
	}
	slices.Sort(devices)
	return fmt.Sprintf("%s%v%v", h.User, h.Visit.Cart, devices)
}

type browser struct {
	*site
	http.Client
	name string
}

func (s *site) browser(name string, cookies ...*http.Cookie) *browser {
	jar, _ := cookiejar.New(nil)
	jar.SetCookies(s.at, cookies)
	transport := &http.Transport{}
	s.Cleanup(transport.CloseIdleConnections)
	return &browser{s, http.Client{Jar: jar, Transport: transport, Timeout: time.Minute}, name}
}

func (b *browser) cookies() []*http.Cookie { return b.Jar.Cookies(b.at) }

// do sends a request, with a form where there is one, and returns the status and the body of what it comes to.
func (b *browser) do(method, path string, form ...string) (status int, body string) {
	b.Helper()
	values := url.Values{}
	for pair := range slices.Chunk(form, 2) {
		values.Set(pair[0], pair[1])
	}
	r, err := http.NewRequestWithContext(b.Context(), method, b.at.String()+path, strings.NewReader(values.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("User-Agent", b.name)
	resp, err := b.Do(r)
	if err != nil {
		b.Errorf("%s %s: %v", method, path, err)
		return 0, ""
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Errorf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(data)
}

// home is where the form leads to, or the first page where there is none.
func (b *browser) home(path string, form ...string) (h home) {
	b.Helper()
	method := http.MethodPost
	if path == "/" {
		method = http.MethodGet
	}
	status, body := b.do(method, path, form...)
	if status != http.StatusOK {
		b.Errorf("%s: %d %s", path, status, body)
	} else if err := json.Unmarshal([]byte(body), &h); err != nil {
		b.Errorf("%s: %v of %s", path, err, body)
	}
	return h
}

func (b *browser) want(want, path string, form ...string) {
	b.Helper()
	if got := b.home(path, form...).String(); got != want {
		b.Errorf("%s %s: got %s, want %s", b.name, path, got, want)
	}
}

func (b *browser) refused(want int, path string, form ...string) {
	b.Helper()
	if got, body := b.do(http.MethodPost, path, form...); got != want {
		b.Errorf("%s %s: got %d %s, want %d", b.name, path, got, body, want)
	}
}

func visit(t *testing.T, s *site) {
	b := s.browser("desk")
	b.want("[][]", "/")
	if len(b.cookies()) > 0 {
		t.Error("who has only looked has a session")
	}
	b.want("[tea][]", "/cart", "item", "tea")
	anonymous := s.browser("thief", b.cookies()...)
	anonymous.want("[tea][]", "/")
	b.want("alice[tea][desk (here)]", "/login", "user", "alice", "password", "demo")
	anonymous.want("[][]", "/")
	b.want("alice[tea milk][desk (here)]", "/cart", "item", "milk")

	same := s.browser("desk", b.cookies()...)
	same.want("alice[tea milk][desk (here)]", "/")
	b.want("[][]", "/logout")
	if len(b.cookies()) > 0 {
		t.Error("the cookie is there after the logout")
	}
	same.want("[][]", "/")
	if same.do(http.MethodPost, "/cart", "item", "late"); same.home("/").User != "" {
		t.Error("the old cookie is logged in again")
	}
}

func windows(t *testing.T, s *site) {
	b := s.browser("desk")
	b.want("alice[][desk (here)]", "/login", "user", "alice", "password", "demo")
	var wg sync.WaitGroup
	want := map[string]bool{}
	for i := range 8 {
		item := fmt.Sprint("item ", i)
		want[item] = true
		window := s.browser("desk", b.cookies()...)
		wg.Go(func() { window.home("/cart", "item", item) })
	}
	wg.Wait()
	got := b.home("/").Visit.Cart
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Errorf("in the cart there is %q", got)
	}
}

func everywhere(t *testing.T, s *site) {
	desk, phone, tablet, bob := s.browser("desk"), s.browser("phone"), s.browser("tablet"), s.browser("bob's")
	desk.refused(http.StatusUnauthorized, "/revoke")
	for _, b := range []*browser{desk, phone, tablet} {
		b.home("/login", "user", "alice", "password", "demo")
	}
	bob.want("bob[][bob's (here)]", "/login", "user", "bob", "password", "demo")
	desk.want("alice[][desk (here) phone tablet]", "/")
	for _, d := range desk.home("/").Devices {
		if d.Name == "phone" {
			desk.want("alice[][desk (here) tablet]", "/revoke", "key", d.Key)
			bob.want("bob[][bob's (here)]", "/revoke", "key", d.Key) // it is not his
		}
	}
	phone.want("[][]", "/")
	desk.want("alice[][desk (here)]", "/revoke")
	tablet.want("[][]", "/")
	bob.want("bob[][bob's (here)]", "/")
}

func stream(t *testing.T, s *site) {
	b := s.browser("desk")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.at.String()+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Do(r) // returns with the header
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if len(b.cookies()) != 1 {
		t.Fatalf("the stream has begun with %v", resp.Header)
	}
	if got := b.home("/").Visit.Streams; got != 1 {
		t.Errorf("while the stream goes on the session has %d of them", got)
	}
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "event:") {
		t.Errorf("the first line is %q, %v", line, err)
	}
}

func mistakes(t *testing.T, s *site) {
	b := s.browser("desk")
	for range 2 {
		b.refused(http.StatusUnauthorized, "/login", "user", "alice", "password", "wrong")
	}
	b.refused(http.StatusBadRequest, "/cart", "item", "")
	if h := b.home("/"); h.User != "" || h.Visit.Mistakes != 2 {
		t.Errorf("after two mistakes: %+v", h)
	}
	if status, _ := b.do(http.MethodGet, "/nowhere"); status != http.StatusNotFound {
		t.Errorf("no such page: %d", status)
	}
}

func otherSites(t *testing.T, s *site) {
	b := s.browser("desk")
	b.want("[tea][]", "/cart", "item", "tea")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.at.String()+"/cart", strings.NewReader("item=poison"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := b.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("another site's form: %s", resp.Status)
	}
	b.want("[tea][]", "/")
}

func outage(t *testing.T, s *site) {
	b := s.browser("desk")
	b.want("alice[][desk (here)]", "/login", "user", "alice", "password", "demo")
	s.st.load.Store(true)
	if status, body := b.do(http.MethodGet, "/"); status != http.StatusServiceUnavailable {
		t.Errorf("got %d %s", status, body)
	}
	b.refused(http.StatusServiceUnavailable, "/cart", "item", "tea")
	s.st.load.Store(false)
	b.want("alice[][desk (here)]", "/")
}

func unsaved(t *testing.T, s *site) {
	b := s.browser("desk")
	b.want("[tea][]", "/cart", "item", "tea")
	s.st.save.Store(true)
	b.refused(http.StatusServiceUnavailable, "/cart", "item", "milk")
	b.refused(http.StatusServiceUnavailable, "/login", "user", "alice", "password", "wrong")
	b.refused(http.StatusServiceUnavailable, "/login", "user", "alice", "password", "demo")
	if status, body := s.browser("phone").do(http.MethodGet, "/events"); status != http.StatusServiceUnavailable {
		t.Errorf("the stream: %d %s", status, body)
	}
	s.st.save.Store(false)
	b.want("[tea][]", "/")
}
