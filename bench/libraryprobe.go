package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// A verdict is what a library did in a probe.
type verdict struct {
	ok   bool
	text string // what it did, "ok" or more
	skip bool   // it says nothing for or against: text is why
}

func (v verdict) String() string {
	switch {
	case v.skip:
		return "– " + v.text
	case v.ok:
		return v.text
	}
	return "**" + v.text + "**"
}

func good(format string, args ...any) verdict {
	return verdict{ok: true, text: fmt.Sprintf(format, args...)}
}
func bad(format string, args ...any) verdict { return verdict{text: fmt.Sprintf(format, args...)} }
func skipped(why string) verdict             { return verdict{skip: true, text: why} }

// either is the verdict of a probe that looks for one thing.
func either(wrong bool, what string) verdict {
	if wrong {
		return bad("%s", what)
	}
	return good("ok")
}

// A libraryProbe is one question to a library, asked over HTTP of a server process and a Redis without any other session.
type libraryProbe struct {
	name  string
	ask   func(p *prober) verdict
	setup siteSetup
}

// A prober asks a library. What fails on the way is kept, and whatever comes after it does nothing.
type prober struct {
	run   *run
	lib   *library
	site  *librarySite
	redis *redisClient
	err   error
}

// probe runs one probe against a new server process.
func (r *run) probe(lib *library, redis string, probe libraryProbe) verdict {
	p := &prober{run: r, lib: lib, redis: &redisClient{addr: redis}}
	defer p.redis.close()
	p.do("FLUSHALL")
	setup := probe.setup
	setup.Redis = redis
	var err error
	p.site, err = r.startLibrary(lib, setup)
	if err != nil {
		return bad("it does not start: %v", err)
	}
	defer r.end(p.site.proc)
	v := probe.ask(p)
	if p.site.crashed() {
		return bad("the process ends with a panic")
	}
	if p.err != nil {
		return bad("cannot be asked: %v", p.err)
	}
	return v
}

// end stops a server before the run ends.
func (r *run) end(p *proc) {
	p.stop()
	r.procs = slices.DeleteFunc(r.procs, func(other *proc) bool { return other == p })
}

// crashed reports whether the process has ended, with a panic.
func (p *proc) crashed() bool {
	select {
	case <-p.done:
	default:
		return false
	}
	text, _ := os.ReadFile(p.log)
	return strings.Contains(string(text), "panic: ")
}

func (p *prober) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// do asks Redis.
func (p *prober) do(args ...string) resp.Value {
	if p.err != nil {
		return resp.Value{}
	}
	v, err := p.redis.do(args...)
	if err != nil {
		p.fail(err)
	}
	return v
}

// keys are all there are in Redis.
func (p *prober) keys() (keys []string) {
	for _, e := range p.do("KEYS", "*").Elems {
		keys = append(keys, string(e.Str))
	}
	return keys
}

// A reply is a page as a browser got it.
type reply struct {
	status int
	fields []string // user, a, b, number, bytes of the page
	body   string
	cookie string // that it sets; "-": it removes it
}

func (a reply) field(i int) string {
	if len(a.fields) != 5 {
		return ""
	}
	return a.fields[i]
}

func (a reply) user() string { return a.field(0) }
func (a reply) a() string    { return a.field(1) }
func (a reply) b() string    { return a.field(2) }

// got is the cookie that a browser has after the reply.
func (a reply) got(had string) string {
	if a.cookie == "" {
		return had
	}
	return a.cookie
}

var probeClient = &http.Client{Timeout: 2 * rendezvousTime, Transport: &http.Transport{DisableKeepAlives: true}}

// ask gets a page, with cookies as they are.
func (p *prober) ask(path string, cookies ...string) reply {
	a, err := p.askFor(context.Background(), path, cookies...)
	if err != nil {
		p.fail(err)
	}
	return a
}

// askFor lets a page fail.
func (p *prober) askFor(ctx context.Context, path string, cookies ...string) (a reply, err error) {
	if p.err != nil {
		return a, p.err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.site.addr+"/"+path, nil)
	if err != nil {
		return a, err
	}
	var pairs []string
	for _, c := range cookies {
		if c != "" && c != "-" {
			pairs = append(pairs, p.lib.cookie+"="+c)
		}
	}
	if len(pairs) > 0 {
		req.Header.Set("Cookie", strings.Join(pairs, "; "))
	}
	res, err := probeClient.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	a.status, a.body, a.fields = res.StatusCode, string(body), strings.Split(string(body), "|")
	for _, c := range res.Cookies() { // the last one counts
		if c.Name == p.lib.cookie {
			if a.cookie = c.Value; c.Value == "" || c.MaxAge < 0 {
				a.cookie = "-"
			}
		}
	}
	return a, err
}

// login is the cookie of somebody who has logged in.
func (p *prober) login(user string) string { return p.ask("login?user=" + user).cookie }

// slow asks for a page that waits, and returns when it does. end has it go on and returns what it answers.
func (p *prober) slow(path, cookie string) (end func() reply) {
	var a reply
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { a, err = p.askFor(context.Background(), path, cookie) })
	p.ask("entered")
	return func() reply {
		p.ask("release")
		wg.Wait()
		if err != nil {
			p.fail(err)
		}
		return a
	}
}

// undead logs out while a page is under way.
func undead(page string) func(p *prober) verdict {
	return func(p *prober) verdict {
		cookie := p.login("alice")
		end := p.slow(page, cookie)
		p.ask("logout", cookie)
		end()
		return either(p.ask("read", cookie).user() != "", "undead")
	}
}

// lost changes something else while a page is under way.
func lost(page string) func(p *prober) verdict {
	return func(p *prober) verdict {
		cookie := p.login("alice")
		end := p.slow(page, cookie)
		p.ask("set?key=b&value=kept", cookie)
		end()
		a := p.ask("read", cookie)
		return either(a.b() != "kept" || page != "slowread" && a.a() != "x", "lost")
	}
}

const slowSet = "slowset?key=a&value=x"

// renewed logs in while a page of the time before is under way.
func renewed(page string) func(p *prober) verdict {
	return func(p *prober) verdict {
		old := p.ask("set?key=b&value=before").cookie
		end := p.slow(page, old)
		cookie := p.ask("login?user=alice", old).got(old)
		late := end()
		after := p.ask("read", old)
		switch {
		case cookie == old && after.user() == "alice":
			return bad("the id stays, known to whoever knew it before")
		case cookie == old:
			return bad("the id stays, and the login is lost")
		case after.user() == "alice":
			return bad("who has the old id is logged in")
		case after.b() != "" || after.a() != "":
			return bad("the old id is there again")
		case late.cookie != "" && late.cookie != cookie:
			return bad("its cookie takes the place of the login's")
		case p.ask("read", cookie).user() != "alice":
			return bad("the login is lost")
		}
		return good("ok")
	}
}

// pass waits until the deadline of a session has passed, also for a library that counts whole seconds. Nothing can be asked meanwhile
// that would not use the session.
func pass(life time.Duration) { time.Sleep(life + life/2) }

const shortLife = 2 * time.Second

var libraryProbes = []libraryProbe{
	{name: "logout while a page reads", ask: undead("slowread")},
	{name: "logout while a page writes", ask: undead(slowSet)},
	{name: "a write while a page reads", ask: lost("slowread")},
	{name: "a write while a page writes another value", ask: lost(slowSet)},
	{name: "login while a page reads", ask: renewed("slowread")},
	{name: "login while a page writes", ask: renewed(slowSet)},
	{name: "put, flush, write: the cookie is there", ask: flushFirst},
	{name: "103, put: it is kept", ask: earlyHints},
	{name: "write, put in a new session: an error, or kept", ask: lateNew},
	{name: "write, put in a session that is there: an error, or kept", ask: lateOld},
	{name: "all sessions of a user ended, of three", ask: killAll},
	{name: "the same with hashed ids", ask: killAll, setup: siteSetup{Hashed: true}},
	{name: "the deadline passes during a request that writes", ask: deadline, setup: siteSetup{Life: shortLife}},
	{name: "logout of a client that is gone", ask: goneLogout},
	{name: "an id that somebody has chosen", ask: chosenID},
	{name: "the id of a session that has ended", ask: usedAgain},
	{name: "PINGs per request", ask: pings},
	{name: "a value that cannot be decoded", ask: garbage},
	{name: "a list of a user's sessions that cannot be decoded: the next login", ask: garbageList},
	{name: "the store answers with an error", ask: wrongType},
	{name: "20 requests without a cookie: sessions stored", ask: anonymous},
	{name: "a key of Redis as a cookie", ask: leakedKey},
	{name: "cookies: somebody else's, then one's own", ask: otherFirst},
	{name: "cookies: one of no session, then one's own", ask: staleFirst},
}

// needHTTP skips what is about http.ResponseWriter.
func needHTTP(ask func(p *prober) verdict) func(p *prober) verdict {
	return func(p *prober) verdict {
		if p.lib.notHTTP {
			return skipped("no http.ResponseWriter")
		}
		return ask(p)
	}
}

func flushFirst(p *prober) verdict {
	return needHTTP(func(p *prober) verdict {
		a := p.ask("flush?value=x")
		switch n := len(p.keys()); {
		case a.cookie == "" && n > 0:
			return bad("no cookie, and %d record nobody has the id of", n)
		case a.cookie == "":
			return bad("no cookie")
		}
		return either(p.ask("read", a.cookie).a() != "x", "lost")
	})(p)
}

func earlyHints(p *prober) verdict {
	return needHTTP(func(p *prober) verdict {
		cookie := p.login("alice")
		p.ask("early?value=x", cookie)
		return either(p.ask("read", cookie).a() != "x", "lost")
	})(p)
}

func lateNew(p *prober) verdict { return late(p, "") }

func lateOld(p *prober) verdict {
	if p.lib.notHTTP {
		return late(p, "")
	}
	return late(p, p.login("alice"))
}

func late(p *prober, cookie string) verdict {
	return needHTTP(func(p *prober) verdict {
		a := p.ask("late?value=x", cookie)
		switch {
		case strings.Contains(a.body, "failed: "):
			return good("ok: an error")
		case p.ask("read", a.got(cookie)).a() == "x":
			return good("ok: kept")
		}
		return bad("lost, and nobody is told")
	})(p)
}

func killAll(p *prober) verdict {
	var cookies []string
	for range 3 {
		cookies = append(cookies, p.login("alice"))
	}
	other := p.login("bob")
	a := p.ask("kill?user=alice", other)
	left := 0
	for _, c := range cookies {
		if p.ask("read", c).user() != "" {
			left++
		}
	}
	switch {
	case a.status == http.StatusNotFound || p.lib.notHTTP:
		return skipped("no call for it")
	case p.site.lib.ours() && p.ask("read", other).user() != "bob":
		return bad("another user's, too")
	case left == 0:
		return good("ok")
	case a.status != http.StatusOK:
		return bad("%d left, and an error", left)
	}
	return bad("says %s, %d left", a.body, left)
}

func deadline(p *prober) verdict {
	if p.lib.noEnd {
		return skipped("no deadline: each write begins anew")
	}
	cookie := p.login("alice")
	end := p.slow(slowSet, cookie)
	pass(shortLife)
	cookie = end().got(cookie)
	user := p.ask("read", cookie).user()
	for _, key := range p.keys() {
		if ttl := p.do("TTL", key).Int; ttl == -1 && user != "" {
			return bad("goes on, for ever")
		} else if ttl == -1 {
			return bad("lies there for ever")
		}
	}
	return either(user != "", "goes on")
}

func goneLogout(p *prober) verdict {
	cookie := p.login("alice")
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = p.askFor(ctx, "slowlogout", cookie) }) // it does not hear of it
	p.ask("entered")
	leave()
	wg.Wait()
	p.ask("release")
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if p.err != nil || p.ask("read", cookie).user() == "" {
			return good("ok")
		}
		if time.Now().After(end) {
			return bad("stays logged in")
		}
	}
}

// chosenID tries ids of the form that some library has.
func chosenID(p *prober) verdict {
	for _, id := range []string{"ATTACKERCHOSEN", strings.Repeat("A", 27), strings.Repeat("A", 43), strings.Repeat("A", 52)} {
		a := p.ask("login?user=alice", id)
		if p.ask("read", id).user() == "alice" {
			return bad("is taken, and logs in who has chosen it")
		}
		if a.cookie == id {
			return bad("is taken")
		}
		p.ask("set?key=a&value=x", id)
		if p.ask("read", id).a() == "x" {
			return bad("is taken where there is no login")
		}
	}
	return good("ok: a new one")
}

func usedAgain(p *prober) verdict {
	cookie := p.login("alice")
	p.ask("logout", cookie)
	a := p.ask("set?key=a&value=x", cookie)
	return either(a.cookie == cookie || p.ask("read", cookie).a() == "x", "is used again")
}

func pings(p *prober) verdict {
	const n = 50
	cookie := p.login("alice")
	p.do("CONFIG", "RESETSTAT")
	for range n {
		p.ask("read", cookie)
	}
	calls, _ := commandCalls(p.do("INFO", "commandstats"))
	if each := float64(calls["ping"]) / n; each >= 0.5 {
		return bad("%.1f", each)
	}
	return good("0") // but for those that look after a connection at times
}

// spoil changes all that lies in Redis.
func (p *prober) spoil(how func(key string)) {
	for _, key := range p.keys() {
		how(key)
	}
}

// state is how a page is answered whose session cannot be had.
func (p *prober) state(cookie string) (a reply, ended bool) {
	a, err := p.askFor(context.Background(), "read", cookie)
	if err != nil {
		select {
		case <-p.site.done:
			return a, true
		case <-time.After(5 * time.Second):
			p.fail(err)
		}
	}
	return a, false
}

func (p *prober) garble() {
	p.spoil(func(key string) { p.do("SET", key, "\x01garbage", "KEEPTTL") })
}

// garbage is what a session of nobody has become.
func garbage(p *prober) verdict {
	cookie := p.ask("set?key=a&value=x").cookie
	p.garble()
	a, ended := p.state(cookie)
	switch {
	case ended:
		return bad("the process ends")
	case a.status == http.StatusOK:
		b := p.ask("login?user=alice", cookie)
		return either(a.a() != "" || p.ask("read", b.got(cookie)).user() != "alice", "no session, and no login either")
	}
	if b := p.ask("login?user=alice", cookie); b.status != http.StatusOK {
		return bad("%d until the cookie ends", a.status)
	}
	return bad("%d", a.status)
}

// garbageList is what a library has become that knows which sessions a user has.
func garbageList(p *prober) verdict {
	p.login("alice")
	if len(p.keys()) < 2 {
		return skipped("no list")
	}
	p.garble()
	return either(p.ask("login?user=alice").status != http.StatusOK, "no login")
}

func wrongType(p *prober) verdict {
	cookie := p.login("alice")
	p.spoil(func(key string) {
		p.do("DEL", key)
		p.do("LPUSH", key, "x")
	})
	a, ended := p.state(cookie)
	switch {
	case ended:
		return bad("the process ends")
	case a.status >= 500:
		return good("ok: an error")
	}
	return bad("%d, logged out", a.status)
}

func anonymous(p *prober) verdict {
	for range 20 {
		p.ask("read")
	}
	if n := len(p.keys()); n > 0 {
		return bad("%d", n)
	}
	return good("0")
}

func leakedKey(p *prober) verdict {
	p.login("alice")
	for _, key := range p.keys() {
		for _, id := range []string{key, strings.TrimPrefix(key, p.lib.prefix), key[strings.LastIndexAny(key, ":_")+1:]} {
			if p.ask("read", id).user() == "alice" {
				return bad("logs in")
			}
		}
	}
	return good("ok")
}

func otherFirst(p *prober) verdict {
	own, other := p.login("alice"), p.login("mallory")
	switch user := p.ask("read", other, own).user(); user {
	case "mallory":
		return bad("somebody else's session")
	case "":
		return good("ok: none")
	default:
		return good("ok: %s", cmp.Or(map[string]string{"alice": "one's own"}[user], user))
	}
}

func staleFirst(p *prober) verdict {
	stale, own := p.login("alice"), p.login("alice")
	p.ask("logout", stale)
	if p.ask("read", stale, own).user() == "alice" {
		return good("ok: one's own")
	}
	return bad("logged out")
}

// commandCalls are the calls of each command in what INFO commandstats says, and of all that clients of sessions send.
func commandCalls(info resp.Value) (calls map[string]int64, all int64) {
	calls = map[string]int64{}
	for line := range strings.Lines(string(info.Str)) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, ",")
		n, _ := strconv.ParseInt(number, 10, 64)
		calls[name] = n
		if name != "info" && !strings.HasPrefix(name, "config") {
			all += n
		}
	}
	return calls, all
}

// libraryProbes runs all probes on all libraries that are probed, in turns, and prints what came of it.
func (r *run) libraryProbes(redis string) error {
	head := []string{""}
	var probed []*library
	for _, l := range libraries {
		if l.probed {
			probed, head = append(probed, l), append(head, l.name)
		}
	}
	rows := [][]string{head}
	for _, probe := range libraryProbes {
		row := []string{probe.name}
		for _, l := range probed {
			v := r.probe(l, redis, probe)
			r.say("%s, %s: %v", probe.name, l.name, v)
			row = append(row, v.String())
			if err := r.ctx.Err(); err != nil {
				return err
			}
		}
		rows = append(rows, row)
	}
	table(rows)
	return nil
}
