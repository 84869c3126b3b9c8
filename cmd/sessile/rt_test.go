package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// recipe is a page of the documentation that a test follows: the indented lines under each heading.
type recipe struct {
	t      testing.TB
	blocks map[string][]string // by the heading's first word: "1."
	names  *strings.Replacer   // what the page calls the parts of the test
}

func readRecipe(t testing.TB, file string, names ...string) *recipe {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := &recipe{t: t, blocks: map[string][]string{}, names: strings.NewReplacer(names...)}
	heading, indented := "", false
	for line := range strings.Lines(string(b)) {
		if title, is := strings.CutPrefix(line, "## "); is {
			heading = strings.Fields(title)[0]
		}
		code, is := strings.CutPrefix(line, "    ")
		if is && !indented {
			r.blocks[heading] = append(r.blocks[heading], "")
		}
		if is {
			r.blocks[heading][len(r.blocks[heading])-1] += code
		}
		indented = is
	}
	return r
}

// block is the n-th block under a heading.
func (r *recipe) block(heading string, n int) string {
	r.t.Helper()
	if len(r.blocks[heading]) <= n {
		r.t.Fatalf("the recipe has %d blocks under %q", len(r.blocks[heading]), heading)
	}
	return r.names.Replace(r.blocks[heading][n])
}

// commands are the arguments of the `sessile` commands in a block.
func (r *recipe) commands(heading string, n int) (commands [][]string) {
	r.t.Helper()
	for line := range strings.Lines(strings.ReplaceAll(r.block(heading, n), "\\\n", " ")) {
		line, _, _ = strings.Cut(line, " #")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "sessile" {
			r.t.Fatalf("no command of ours: %q", line)
		}
		for i := range words {
			words[i] = strings.Trim(words[i], "'")
		}
		commands = append(commands, words[1:])
	}
	return commands
}

// balancer is what stands before the web servers: it gives each request to one of them.
type balancer struct {
	requests, failures atomic.Int64

	mu      sync.Mutex // guards servers
	servers []*backend
}

type backend struct {
	addr string
	busy sync.WaitGroup // requests that it has been given
}

func (b *balancer) add(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.servers = append(b.servers, &backend{addr: addr})
}

// remove takes a server out and returns when it has answered what it was given.
func (b *balancer) remove(addr string) {
	b.mu.Lock()
	var gone *backend
	for i, s := range b.servers {
		if s.addr == addr {
			gone = s
			b.servers = append(b.servers[:i:i], b.servers[i+1:]...)
			break
		}
	}
	b.mu.Unlock()
	gone.busy.Wait()
}

func (b *balancer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	b.mu.Lock()
	s := b.servers[rand.IntN(len(b.servers))]
	s.busy.Add(1)
	b.mu.Unlock()
	nc, err := new(net.Dialer).DialContext(ctx, network, s.addr)
	if err != nil {
		s.busy.Done()
		return nil, err
	}
	return &given{Conn: nc, done: sync.OnceFunc(s.busy.Done)}, nil
}

type given struct {
	net.Conn
	done func()
}

func (g *given) Close() error {
	defer g.done()
	return g.Conn.Close()
}

// browser is one that somebody uses RequestTracker with.
type browser struct {
	user string
	site *balancer
	base string
	c    http.Client
}

func newBrowser(site *balancer, base, user string) *browser {
	jar, _ := cookiejar.New(nil) // never an error
	return &browser{user, site, base, http.Client{Jar: jar, Timeout: patience,
		Transport: &http.Transport{DialContext: site.dial, DisableKeepAlives: true}}}
}

// session is the id of the browser's session.
func (b *browser) session() string {
	u, _ := url.Parse(b.base)
	for _, c := range b.c.Jar.Cookies(u) {
		if strings.HasPrefix(c.Name, "RT_SID_") {
			return c.Value
		}
	}
	return ""
}

// again is a browser with the cookies that b has now.
func (b *browser) again() *browser {
	n := newBrowser(b.site, b.base, b.user)
	u, _ := url.Parse(b.base)
	n.c.Jar.SetCookies(u, b.c.Jar.Cookies(u))
	return n
}

// page asks for a page, with a form if there is one, follows where it leads, and returns its text.
func (b *browser) page(path string, form url.Values) (string, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	req, err := http.NewRequest(method, b.base+path, body)
	if err != nil {
		return "", err
	}
	req.Header.Set("Referer", b.base+"/") // RT looks at it
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	b.site.requests.Add(1)
	text, err := func() (string, error) {
		resp, err := b.c.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return string(text), err
	}()
	if err != nil {
		b.site.failures.Add(1)
		return text, fmt.Errorf("%s: %s %s: %w", b.user, method, path, err)
	}
	return text, nil
}

// in asks for a page that somebody sees who is logged in, with what it has to show.
func (b *browser) in(path string, form url.Values, want string) error {
	text, err := b.page(path, form)
	switch {
	case err != nil:
		return err
	case !strings.Contains(text, "/NoAuth/Logout.html") || strings.Contains(text, `name="pass"`):
		return fmt.Errorf("%s: %s: not logged in: %s", b.user, path, excerpt(text))
	case !strings.Contains(html.UnescapeString(text), want):
		return fmt.Errorf("%s: %s does not show %q: %s", b.user, path, want, excerpt(text))
	}
	return nil
}

var tags = regexp.MustCompile(`(?s)<script.*?</script>|<style.*?</style>|<[^>]*>|\s+`)

// excerpt is what a page says.
func excerpt(page string) string {
	text := tags.ReplaceAllString(page, " ")
	return text[:min(len(text), 1000)]
}

var nextPage = regexp.MustCompile(`name="next" value="([0-9a-f]+)"`)

// found is a page that costs RT a third of what its home page does.
const found = "/Search/Results.html?Query=id%3D0"

func (b *browser) login() error {
	text, err := b.page(found, nil)
	if err != nil {
		return err
	}
	next := nextPage.FindStringSubmatch(text)
	if next == nil {
		return fmt.Errorf("%s: no login form: %s", b.user, excerpt(text))
	}
	return b.in("/NoAuth/Login.html", url.Values{"user": {b.user}, "pass": {testserver.RTPassword}, "next": {next[1]}}, "Found")
}

// out is nil where the browser's cookie is not, or no longer, that of somebody who is logged in.
func (b *browser) out() error {
	text, err := b.page("/", nil)
	if err == nil && !strings.Contains(text, `name="pass"`) {
		err = fmt.Errorf("%s: is logged in again: %s", b.user, excerpt(text))
	}
	return err
}

func (b *browser) logout() error {
	text, err := b.page("/NoAuth/Logout.html", nil)
	if err == nil && !strings.Contains(text, `id="not-logged-in"`) {
		err = fmt.Errorf("%s: logout: %s", b.user, excerpt(text))
	}
	return err
}

// work walks pages until done: what one leaves in the session another has to show.
func (b *browser) work(done *atomic.Bool) error {
	ticket := "1"
	read := func() { time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond) } // as people do
	for n := 0; !done.Load(); n++ {
		search := fmt.Sprintf("Subject LIKE '%s %d'", b.user, n)
		// The search is a structure in the session, with objects of RT's in it.
		if err := b.in("/Search/Results.html?"+url.Values{"Query": {search}}.Encode(), nil, "Found"); err != nil {
			return err
		}
		read()
		if err := b.in("/", nil, "RT at a glance"); err != nil {
			return err
		}
		read()
		if err := b.in("/Search/Build.html", nil, search); err != nil {
			return err
		}
		read()
		if n%4 == 0 {
			// The page after the redirect shows what this one has put into the session.
			text, err := b.page("/Ticket/Create.html", url.Values{"id": {"new"}, "Queue": {"1"}, "Status": {"new"},
				"Subject": {search}, "Content": {"text"}, "SubmitTicket": {"1"}})
			created := regexp.MustCompile(`Ticket (\d+) created`).FindStringSubmatch(text)
			if err != nil || created == nil {
				return fmt.Errorf("%s: no ticket: %w: %s", b.user, err, excerpt(text))
			}
			ticket = created[1]
		}
		// Two at once, as from two tabs.
		var errs [2]error
		var wg sync.WaitGroup
		for i, path := range []string{"/Ticket/Display.html?id=" + ticket, "/"} {
			wg.Go(func() { errs[i] = b.in(path, nil, "") })
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		read()
	}
	return nil
}

// rtMove is a RequestTracker that is to be moved, as docs/requesttracker.md calls its parts.
type rtMove struct {
	t    *testing.T
	rt   *testserver.RTSite
	r    *testserver.RedisServer
	site *balancer
	d    *daemon
	page *recipe

	begin, step time.Time
}

// moveRT makes a RequestTracker in db, with the server at addr, and everything else, nothing of which runs.
func moveRT(t *testing.T, db testserver.RTDatabase, addr string, users ...string) *rtMove {
	t.Helper()
	m := &rtMove{t: t, rt: testserver.RT(t, db, users...), r: redis(t), site: &balancer{}, begin: time.Now(), step: time.Now()}
	m.d = &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: fmt.Sprintf("127.0.0.1:%d", port(t))}
	m.d.env = []string{"SESSILE_ADMIN=" + m.d.admin}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.page = readRecipe(t, "../../docs/requesttracker.md", "127.0.0.1:3306", addr, "127.0.0.1:5432", addr, "127.0.0.1:6379", m.r.Addr,
		"127.0.0.1:6400", m.d.addr, "127.0.0.1:6480", m.d.admin, "/etc/sessile/rt5-password", password)
	return m
}

// serve starts the gateway.
func (m *rtMove) serve(args ...string) {
	m.t.Helper()
	m.d.cmd = commandFor(m.t, 20*patience, nil, args...)
	m.d.launch()
}

// start starts a web server, which gets its share of the requests from now on, and stop ends one that gets no more.
func (m *rtMove) start(lines string) *testserver.RTServer {
	m.t.Helper()
	s := m.rt.Server(2, lines)
	m.site.add(s.Addr)
	return s
}

func (m *rtMove) stop(s *testserver.RTServer) {
	m.t.Helper()
	m.site.remove(s.Addr)
	s.Stop()
}

// browser is one that nobody is logged in with yet.
func (m *rtMove) browser(user string) *browser {
	return newBrowser(m.site, fmt.Sprintf("http://127.0.0.1:%d", m.rt.Port), user)
}

func (m *rtMove) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// took says how long it was since it was last called.
func (m *rtMove) took(what string) {
	m.t.Helper()
	m.t.Logf("%5.1f s  %s (%d pages so far, %d failed)", time.Since(m.step).Seconds(), what, m.site.requests.Load(),
		m.site.failures.Load())
	m.step = time.Now()
}

// rtDatabase is what the recipe says twice.
type rtDatabase struct {
	testserver.RTDatabase
	addr string
	nth  int                                  // of two blocks
	try  func(db, sql string) (string, error) // as the superuser
	row  string                               // the Base64 of a session, without line feeds
}

func (d *rtDatabase) exec(t *testing.T, sql string) string {
	t.Helper()
	out, err := d.try("rt5", sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A RequestTracker moves from its database to Redis as docs/requesttracker.md says, there, back to its own table, and there again,
// while its users work: nobody has to log in again, and who has logged out stays out.
func TestRequestTracker(t *testing.T) {
	t.Parallel()
	t.Run("MariaDB", func(t *testing.T) {
		t.Parallel()
		my := testserver.MariaDB(t)
		theWholeMoveOfRT(t, &rtDatabase{my, my.Addr, 0, my.Try,
			`SELECT REPLACE(TO_BASE64(a_session), '\n', '') FROM sessions WHERE id = '%s'`})
	})
	if os.Getenv("SESSILE_SOAK") == "" {
		return // `make faults`: RT keeps two cores busy for minutes, and everything else waits
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		pg := testserver.Postgres(t)
		theWholeMoveOfRT(t, &rtDatabase{pg, pg.Addr, 1, pg.Try,
			`SELECT replace(convert_from(a_session, 'UTF8'), E'\n', '') FROM sessions WHERE id = '%s'`})
	})
}

func theWholeMoveOfRT(t *testing.T, db *rtDatabase) {
	users := []string{"alice", "bob", "carol"}
	m := moveRT(t, db.RTDatabase, db.addr, append(users, "quiet", "leaver")...)
	old := m.start("") // Apache::Session::MySQL or ::Postgres

	var done atomic.Bool
	var wg sync.WaitGroup
	lost := make(chan error, len(users))
	defer wg.Wait()
	defer done.Store(true)
	for _, user := range users {
		b := m.browser(user)
		m.must(b.login())
		wg.Go(func() {
			if err := b.work(&done); err != nil {
				lost <- err
			}
		})
	}
	// quiet stays logged in and looks at the home page in every phase.
	quiet := m.browser("quiet")
	m.must(quiet.login())
	// In every phase somebody logs out who came some phases ago, and somebody who came in it; and one more comes.
	var in, out []*browser
	come := func() *browser {
		b := m.browser("leaver")
		m.must(b.login())
		in = append(in, b)
		return b
	}
	leave := func(b *browser) {
		out = append(out, b.again()) // with the cookie of before
		m.must(b.in(found, nil, "Found"))
		m.must(b.logout())
		in = slices.DeleteFunc(in, func(other *browser) bool { return other == b })
	}
	phase := func(name string) {
		t.Helper()
		leave(in[0])
		leave(come())
		come()
		for _, b := range out {
			m.must(b.again().out())
		}
		m.must(quiet.in("/", nil, "RT at a glance"))
		select {
		case err := <-lost:
			t.Fatal(err)
		default:
		}
		m.took("  users in " + name)
	}
	// A page that is under way when its user logs out does not bring the session back.
	race := func() {
		t.Helper()
		b := come()
		in = in[:len(in)-1]
		before := b.again()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := before.again().page(found, nil); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		m.must(b.logout())
		wg.Wait()
		out = append(out, before)
	}
	for range 3 {
		come()
	}
	m.took("set-up")
	phase("the table alone")

	db.exec(t, m.page.block("What", db.nth))
	m.serve(m.page.commands("1.", db.nth)[0]...)
	gateway := m.start(m.page.block("2.", 0))
	m.took("the gateway, and a second RT server, started")
	phase("the table, and the gateway in off")
	m.stop(old)
	phase("the gateway in off")
	db.exec(t, m.page.block("3.", db.nth))
	forgotten := m.rt.Server(1, "")
	elsewhere := &balancer{}
	elsewhere.add(forgotten.Addr)
	text, err := newBrowser(elsewhere, quiet.base, "leaver").page("/", nil)
	if err != nil || !strings.Contains(text, "internal RT error") {
		t.Errorf("after the lock-out a server that was forgotten goes on: %v: %s", err, excerpt(text))
	}
	forgotten.Stop()
	m.took("lock-out")

	up := func(commands [][]string) {
		t.Helper()
		want := []string{"sessions in the origin", "phase off", "phase dual-write", "phase sync", "phase live", "phase ramp-down"}
		want = want[len(want)-len(commands):]
		for i, command := range commands {
			got := run(t, m.d.env, command...).want(t, 0, want[i], "")
			m.took(strings.Join(command, " "))
			if command[1] == "plan" {
				got.want(t, 0, "are read, written and read again as they were", "")
				continue
			}
			race()
			phase(want[i])
		}
	}
	ladder := m.page.commands("4.", 0)
	if len(ladder) != 6 {
		t.Fatalf("the ladder of the recipe has %d steps", len(ladder))
	}
	up(ladder)
	// RT saves a session at nearly every page, and the table follows.
	eventually(t, "the table has what Redis has", func() bool {
		value, _ := m.r.Do("GET", quiet.session()).(string)
		return value != "" && strings.ReplaceAll(value, "\n", "") == db.exec(t, fmt.Sprintf(db.row, quiet.session()))
	})

	for _, command := range m.page.commands("5.", 0) {
		run(t, m.d.env, command...).want(t, 0, "phase off", "")
		m.took(strings.Join(command, " "))
	}
	phase("off, after the way back")
	db.exec(t, m.page.block("5.", 1+db.nth))
	old = m.start("")
	phase("the table, and the gateway in off")
	m.stop(gateway)
	phase("the table alone, after the way back")

	gateway = m.start(m.page.block("2.", 0))
	m.stop(old)
	db.exec(t, m.page.block("3.", db.nth))
	m.took("RT at the gateway again")
	up(m.page.commands("4.", 1))
	for _, command := range m.page.commands("6.", 0) {
		run(t, m.d.env, append(command, "--yes")...).want(t, 0, "phase complete", "")
		m.took(strings.Join(command, " "))
	}
	race()
	phase("complete")
	m.start(m.page.block("7.", 0))
	phase("complete, half of RT without the gateway")
	m.stop(gateway)
	if code := m.d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("the gateway ended with %d: %s", code, m.d.Log())
	}
	phase("Redis alone")
	for _, b := range in {
		m.must(b.in(found, nil, "Found"))
	}
	done.Store(true)
	wg.Wait()
	select {
	case err := <-lost:
		t.Fatal(err)
	default:
	}
	t.Logf("%d pages in %.0f s, %d failed", m.site.requests.Load(), time.Since(m.begin).Seconds(), m.site.failures.Load())
	if m.site.failures.Load() != 0 {
		t.Error("some failed")
	}
}

// RT takes any error at reading a session for its end and begins another, if that can be written: then the user is logged
// out. So both fail together while the table is away; who asks again when it is back is still logged in. The table is in a
// server of its own here, so that RT itself goes on.
func TestRequestTrackerWithoutItsTable(t *testing.T) {
	t.Parallel()
	tickets, table := testserver.MariaDB(t), testserver.MariaDB(t)
	table.Exec("CREATE TABLE sessions (id char(32) NOT NULL, a_session LONGBLOB, LastUpdated TIMESTAMP, PRIMARY KEY (id)) ENGINE=InnoDB CHARACTER SET utf8mb4")
	m := moveRT(t, tickets, tickets.Addr, "alice")
	m.serve("serve", "--listen", "redis://"+m.d.addr, "--admin", m.d.admin, "--origin", table.URL("app")+"?preset=rt&lifetime=96h",
		"--target", m.r.URL(), "--lifetime", "96h", "--sliding", "--hold", "500ms")
	m.start(m.page.block("2.", 0))
	alice := m.browser("alice")
	m.must(alice.login())
	id := alice.session()
	m.d.migrate("create").want(t, 0, "phase off", "")
	for _, phase := range []string{"off", "dual-write"} {
		if phase != "off" {
			m.d.migrate("switchtraffic", "--to", phase).want(t, 0, phase, "")
		}
		table.Kill()
		for _, command := range [][]string{{"GET", id}, {"SET", "0123456789abcdef0123456789abcdef", "BQ==\n"}, {"DEL", id}} {
			if got := m.d.dial().do(command...); !strings.HasPrefix(got, "-ERR") {
				t.Errorf("%s, without the table: %s is answered with %q", phase, command[0], got)
			}
		}
		for range 4 { // more than there are processes
			text, err := alice.page("/", nil)
			if err != nil || !strings.Contains(text, "internal RT error") || strings.Contains(text, `name="pass"`) {
				t.Errorf("%s, without the table: %v: %s", phase, err, excerpt(text))
			}
		}
		if alice.session() != id {
			t.Errorf("%s, without the table: another session has begun", phase)
		}
		table.Restart()
		eventually(t, "the table is back", func() bool { return !strings.HasPrefix(m.d.dial().do("GET", id), "-") })
		m.must(alice.in("/", nil, "RT at a glance"))
		if alice.session() != id {
			t.Errorf("%s, with the table again: another session has begun", phase)
		}
	}
}
