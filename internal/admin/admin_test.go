package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is a server under test: one site that can be moved, one that cannot.
type api struct {
	*Server
	t      *testing.T
	addr   string
	client *Client
	origin *memory.Store
	target *memory.Store
	meter  *Meter
	log    bytes.Buffer
}

func startAPI(t *testing.T, opt Options) *api {
	t.Helper()
	a := &api{t: t, origin: memory.New(memory.Options{LazyExpiry: true}), target: memory.New(memory.Options{}), meter: &Meter{}}
	times := migrate.DefaultTimes(100 * time.Millisecond)
	e, err := migrate.New(a.origin, a.target, migrate.Options{Workflow: "w", Gateway: "g", Times: times})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	opt.Logger = slog.New(slog.NewTextHandler(&a.log, nil))
	a.Server = New([]*Site{
		{Name: "shop", Workflow: "w", Engine: e, Meter: a.meter, Gauges: func() []Gauge { return []Gauge{{"connections", "Connections.", 7}, {"held_total", "Held.", 3}} }},
		{Name: "plain", Ping: func(context.Context) error { return nil }, Meter: &Meter{}},
	}, opt)
	l, err := Listen("127.0.0.1:0", "", "")
	if err != nil {
		t.Fatal(err)
	}
	a.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- a.Serve(l) }()
	if a.client, err = NewClient(a.addr, opt.Token, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		a.Shutdown(ctx)
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return a
}

// raw sends bytes and returns the answer's status line, header and body.
func (a *api) raw(request string) (status int, header http.Header, body string) {
	a.t.Helper()
	nc, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(nc, request) // the server may answer before it has read all
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		return 0, nil, ""
	}
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b)
}

const statusPath = "/v1/sites/shop/migrate/status"

// TestHostileRequests is reliability.md c8, as far as there is such a thing here. Nothing may change.
func TestHostileRequests(t *testing.T) {
	readTime = 500 * time.Millisecond
	defer func() { readTime = 10 * time.Second }()
	a := startAPI(t, Options{Token: "0123456789abcdef"})
	auth := "Authorization: Bearer 0123456789abcdef\r\n"
	get := func(path, header string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + auth + header + "\r\n"
	}
	post := func(header, body string) string {
		return "POST /v1/sites/shop/migrate/create HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + auth + header + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
	}
	const js = "Content-Type: application/json\r\n"
	for _, c := range []struct {
		name, request string
		want          []int // 0: closed without an answer
	}{
		{"no Host", "GET / HTTP/1.1\r\n" + auth + "\r\n", []int{400}},
		{"no Host in HTTP/1.0", "GET " + statusPath + " HTTP/1.0\r\n" + auth + "\r\n", []int{400}},
		{"another Host", "GET " + statusPath + " HTTP/1.1\r\nHost: evil.example\r\n" + auth + "\r\n", []int{421}},
		{"another Host that begins like an address", "GET " + statusPath + " HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n" + auth + "\r\n", []int{421}},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", []int{400}},
		{"a whole URI with another host", "GET http://evil.example" + statusPath + " HTTP/1.1\r\nHost: localhost\r\n" + auth + "\r\n", []int{421}},
		{"another Origin", post("Origin: http://evil\r\n"+js, "{}"), []int{403}},
		{"Origin null", post("Origin: null\r\n"+js, "{}"), []int{403}},
		{"two Origins", post("Origin: http://localhost\r\nOrigin: http://localhost\r\n"+js, "{}"), []int{403}},
		{"cross-site without Origin", post("Sec-Fetch-Site: cross-site\r\n"+js, "{}"), []int{403}},
		{"same-site", post("Sec-Fetch-Site: same-site\r\n"+js, "{}"), []int{403}},
		{"a GET of another site's page", get(statusPath, "Sec-Fetch-Site: cross-site\r\n"), []int{403}},
		{"a simple request", post("Content-Type: text/plain\r\n", "{}"), []int{415}},
		{"a form", post("Content-Type: application/x-www-form-urlencoded\r\n", "a=b"), []int{415}},
		{"no content type", post("", "{}"), []int{415}},
		{"a gzipped body", post(js+"Content-Encoding: gzip\r\n", "{}"), []int{415}},
		{"a GET of a command", get("/v1/sites/shop/migrate/create", ""), []int{405}},
		{"a HEAD of a command", strings.Replace(get("/v1/sites/shop/migrate/create", ""), "GET", "HEAD", 1), []int{405}},
		{"a POST of a status", strings.Replace(post(js, "{}"), "create", "status", 1), []int{405}},
		{"TRACE", strings.Replace(get(statusPath, ""), "GET", "TRACE", 1), []int{405}},
		{"CONNECT", "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n" + auth + "\r\n", []int{400, 405}},
		{"PATCH", strings.Replace(get(statusPath, ""), "GET", "PATCH", 1), []int{405}},
		{"FOO", strings.Replace(get(statusPath, ""), "GET", "FOO", 1), []int{405}},
		{"a CORS preflight", strings.Replace(get("/v1/sites/shop/migrate/create", "Origin: http://evil\r\nAccess-Control-Request-Method: POST\r\n"), "GET", "OPTIONS", 1), []int{403, 405}},
		{"a method in a header", get("/v1/sites/shop/migrate/create", "X-HTTP-Method-Override: POST\r\n"), []int{405}},

		{"no token", "GET " + statusPath + " HTTP/1.1\r\nHost: localhost\r\n\r\n", []int{401}},
		{"no token for the metrics", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", []int{401}},
		{"a wrong token", strings.Replace(get(statusPath, ""), "cdef", "cdeg", 1), []int{401}},
		{"half a token", strings.Replace(get(statusPath, ""), "89abcdef", "", 1), []int{401}},
		{"a token as Basic", strings.Replace(get(statusPath, ""), "Bearer", "Basic", 1), []int{401}},
		{"a token in the query", strings.Replace(get(statusPath+"?token=0123456789abcdef", ""), auth, "", 1), []int{400}},
		{"a token in a cookie", strings.Replace(get(statusPath, "Cookie: token=0123456789abcdef\r\n"), auth, "", 1), []int{401}},
		{"from the loopback address, it says", strings.Replace(get(statusPath, "X-Forwarded-For: 127.0.0.1\r\n"), auth, "", 1), []int{401}},

		{"dots", get("/v1/../v1/sites", ""), []int{404}},
		{"two slashes", get("//v1/sites", ""), []int{404}},
		{"encoded dots", get("/v1/%2e%2e/v1/sites", ""), []int{404}},
		{"an encoded NUL", get("/v1/sites%00", ""), []int{404}},
		{"a path parameter", get("/v1/sites;jsessionid=1", ""), []int{404}},
		{"a trailing dot", get("/v1/sites.", ""), []int{404}},
		{"a site that there is not", get("/v1/sites/nope/migrate/status", ""), []int{404}},
		{"a command that there is not", get("/v1/sites/shop/migrate/destroy", ""), []int{404}},
		{"pprof", get("/debug/pprof/", ""), []int{404}},
		{"JSONP", get(statusPath+"?callback=x", ""), []int{400}},
		{"a path of 64 KiB", get("/"+strings.Repeat("a", 64<<10), ""), []int{414, 431}},
		{"a header of 64 KiB", get(statusPath, "X: "+strings.Repeat("a", 64<<10)+"\r\n"), []int{431}},
		{"ten thousand headers", get(statusPath, strings.Repeat("X: y\r\n", 10_000)), []int{431}},
		{"chunked and a length", post(js+"Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), []int{400, 411}},
		{"an enormous chunk", strings.Replace(post(js, ""), "Content-Length: 0", "Transfer-Encoding: chunked", 1) + "ffffffffffffffff\r\n", []int{400, 411}},
		{"headers that never end", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", []int{0, 408}},
		{"a body of 1 MiB", post(js, `{"timeout":"`+strings.Repeat("a", 1<<20)+`"}`), []int{413}},
		{"a body that is shorter than it says", "POST /v1/sites/shop/migrate/create HTTP/1.1\r\nHost: localhost\r\n" + auth + js + "Content-Length: 5\r\n\r\n{", []int{400}},
		{"nested", post(js, strings.Repeat(`{"timeout":`, 1000)), []int{400}},
		{"an array", post(js, "[]"), []int{400}},
		{"a nested value", post(js, `{"timeout":{}}`), []int{400}},
		{"a key twice", post(js, `{"timeout":"1s","timeout":"2s"}`), []int{400}},
		{"an unknown field", post(js, `{"tmeout":"1s"}`), []int{400}},
		{"a field in capitals", post(js, `{"TIMEOUT":"1s"}`), []int{400}},
		{"a field of another command", post(js, `{"force":true}`), []int{400}},
		{"a number for a text", post(js, `{"timeout":1}`), []int{400}},
		{"a text for a truth", post(js, `{"dry_run":"true"}`), []int{400}},
		{"an enormous number", post(js, `{"dry_run":1e999}`), []int{400}},
		{"not UTF-8", post(js, "{\"timeout\":\"\xff\"}"), []int{400}},
		{"something behind it", post(js, `{} {}`), []int{400}},
		{"not a duration", post(js, `{"timeout":"1"}`), []int{400}},
		{"a negative duration", post(js, `{"timeout":"-1s"}`), []int{400}},
		{"an upgrade", get("/healthz", "Upgrade: websocket\r\nConnection: Upgrade\r\n"), []int{200}},
		{"HTTP/2 with prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{0, 400, 404, 421, 505}},
		{"HTTP/0.9", "GET /healthz\r\n\r\n", []int{0, 400}},
		{"another protocol", "*1\r\n$4\r\nPING\r\n", []int{0, 400}},
		{"a range", get("/healthz", "Range: bytes=0-0\r\n"), []int{200}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, header, body := a.raw(c.request)
			if !slices.Contains(c.want, status) {
				t.Fatalf("got %d %s, want %v", status, body, c.want)
			}
			if status == 400 && !strings.HasPrefix(body, "{") {
				return // net/http's own, before it reaches us
			}
			if header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("other origins are let in")
			}
			if status != 0 && status != 431 && status != 505 && (header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" ||
				!strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'")) {
				t.Errorf("security headers are missing: %v", header)
			}
			if status >= 400 && status != 431 && strings.HasPrefix(c.request, "HEAD") == false {
				var l Line
				if err := json.Unmarshal([]byte(body), &l); err != nil || l.Error == "" || strings.Contains(body, "0123456789abcdef") {
					t.Errorf("the answer is %q", body)
				}
			}
		})
	}
	if names, _ := a.target.Workflows(t.Context()); len(names) > 0 {
		t.Errorf("something has changed: workflows %v", names)
	}
	if strings.Contains(a.log.String(), "0123456789abcdef") {
		t.Error("the log shows the token")
	}
}

func TestTheProbesNeedNoToken(t *testing.T) {
	a := startAPI(t, Options{Token: "0123456789abcdef"})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := a.sites[0].recent(t.Context()); err == nil { // the engine has looked at the origin's seal
			break
		}
	}
	for path, want := range map[string]string{"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready"}`} {
		status, _, body := a.raw("GET " + path + " HTTP/1.1\r\nHost: 10.1.2.3\r\nConnection: close\r\n\r\n")
		if status != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: got %d %s", path, status, body)
		}
	}
	a.Drain()
	if status, _, body := a.raw("GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 503 || !strings.Contains(body, "draining") {
		t.Errorf("draining: got %d %s", status, body)
	}
}

func TestReadyzSaysWhenASiteHolds(t *testing.T) {
	a := startAPI(t, Options{})
	a.sites[1].Ping = func(context.Context) error { return store.ErrUnavailable }
	if status, _, body := a.raw("GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 503 || !strings.Contains(body, "holding") {
		t.Errorf("got %d %s", status, body)
	}
}

func TestAMove(t *testing.T) {
	a := startAPI(t, Options{Token: "0123456789abcdef"})
	ctx := t.Context()
	for i := range 50 {
		if err := a.origin.Save(ctx, fmt.Sprint("s", i), store.Record{Data: []byte("x"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
			t.Fatal(err)
		}
	}
	sites, err := a.client.Sites(ctx)
	if want := []SiteInfo{{"shop", "w"}, {"plain", ""}}; err != nil || !slices.Equal(sites, want) {
		t.Fatalf("sites: got %v, %v", sites, err)
	}
	var plan migrate.Plan
	if b, err := a.client.Get(ctx, "/v1/sites/shop/migrate/plan"); err != nil || json.Unmarshal(b, &plan) != nil || plan.Sessions != 50 {
		t.Errorf("plan: got %+v, %v", plan, err)
	}
	run := func(command string, req Request, exit int, want string) Line {
		t.Helper()
		var said []string
		end, err := a.client.Run(ctx, "shop", "migrate/"+command, req, func(line string) { said = append(said, line) })
		got := strings.Join(said, "\n")
		if err != nil {
			got += err.Error()
		}
		if end.Exit != exit || end.Done == (err != nil) || !strings.Contains(got, want) {
			t.Errorf("%s %+v: got exit %d, done %v, %q, want exit %d, %q", command, req, end.Exit, end.Done, got, exit, want)
		}
		return end
	}
	run("switchtraffic", Request{}, 2, "no workflow")
	run("create", Request{DryRun: true}, 0, "would create")
	run("create", Request{}, 0, "created")
	run("create", Request{}, 0, "exists")
	run("stop", Request{}, 2, "no worker runs")
	run("reversetraffic", Request{}, 2, "no further step")
	run("complete", Request{}, 2, "entered from ramp-down")
	run("switchtraffic", Request{To: "nowhere"}, 2, "unknown phase")
	run("switchtraffic", Request{Force: true}, 2, "needs --reason")
	run("forget-gateway", Request{}, 2, "which gateway?")
	run("forget-gateway", Request{Gateway: "x"}, 2, "no gateway")
	run("repair", Request{Use: "both"}, 2, "origin or target")
	run("diff", Request{}, 2, "nothing to compare in phase off")
	if end := run("switchtraffic", Request{}, 0, "in phase dual-write"); end.Status == nil || end.Status.Phase != migrate.DualWrite {
		t.Errorf("the answer's status: %+v", end.Status)
	}
	run("start", Request{Rate: 100_000}, 0, "backfill")
	run("switchtraffic", Request{To: "ramp-down", Window: "10ms"}, 0, "in phase ramp-down")
	if end := run("diff", Request{}, 0, ""); end.Diff == nil || end.Diff.Compared != 50 {
		t.Errorf("diff: got %+v", end.Diff)
	}
	run("switchtraffic", Request{}, 2, "complete")
	run("reversetraffic", Request{}, 0, "in phase live")
	if err := a.target.Save(ctx, "extra", store.Record{Data: []byte("x"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
		t.Fatal(err)
	}
	if end := run("diff", Request{Rounds: 1}, 3, ""); end.Diff == nil || end.Diff.Extra != 1 {
		t.Errorf("diff: got %+v", end.Diff)
	}
	if _, err := a.target.Delete(ctx, "extra", store.Always); err != nil {
		t.Fatal(err)
	}
	run("switchtraffic", Request{Soak: "1h", Timeout: "50ms"}, 1, "not done within 50ms")
	run("switchtraffic", Request{}, 0, "in phase ramp-down")
	run("complete", Request{}, 0, "complete: applications may now")
	run("complete", Request{}, 0, "complete: applications may now")
	run("reversetraffic", Request{}, 2, "no way back")
	_, err = a.client.Run(ctx, "plain", "migrate/create", Request{}, func(string) {})
	var answered *Error
	if !errors.As(err, &answered) || answered.Exit != ExitUsage || !strings.Contains(err.Error(), "nothing to move") {
		t.Errorf("a plain site: got %v", err)
	}
}

func TestGatesKeepAStepClosed(t *testing.T) {
	a := startAPI(t, Options{})
	ctx := t.Context()
	for _, command := range []string{"create", "switchtraffic"} {
		if _, err := a.client.Run(ctx, "shop", "migrate/"+command, Request{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // somebody who does not know of the gateway
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				a.origin.Save(context.Background(), "foreign", store.Record{Data: fmt.Append(nil, i), Expires: time.Now().Add(time.Hour)}, store.Always)
			}
		}
	}()
	_, err := a.client.Run(ctx, "shop", "migrate/switchtraffic", Request{Window: "200ms"}, func(string) {})
	close(stop)
	<-done
	var answered *Error
	if !errors.As(err, &answered) || answered.Exit != ExitClosed || !strings.Contains(err.Error(), "foreign writers") {
		t.Fatalf("got %v, want exit 3", err)
	}
	if !slices.ContainsFunc(answered.Gates, func(g migrate.Gate) bool { return g.Name == "foreign writers" && !g.Open }) {
		t.Errorf("the gates are %+v", answered.Gates)
	}
}

func TestACommandEndsWithItsClientAndWithTheServer(t *testing.T) {
	a := startAPI(t, Options{})
	for _, command := range []string{"create", "switchtraffic"} {
		if _, err := a.client.Run(t.Context(), "shop", "migrate/"+command, Request{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(ctx context.Context, then func()) error {
		_, err := a.client.Run(ctx, "shop", "migrate/switchtraffic", Request{Soak: "1h", Window: "1ms"}, func(line string) {
			if strings.HasPrefix(line, "dual-write -> sync") {
				then()
			}
		})
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := waits(ctx, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that goes: got %v", err)
	}
	// The engine runs one command at a time, so this one begins only when the first has ended.
	end := time.AfterFunc(20*time.Second, func() { t.Error("the command did not end with its client"); a.stop() })
	err := waits(t.Context(), a.stop)
	end.Stop()
	if err == nil || !strings.Contains(err.Error(), "the gateway is stopping") {
		t.Errorf("a server that goes: got %v", err)
	}
}

func TestNoProgressEndsACommand(t *testing.T) {
	stallTime = 200 * time.Millisecond
	defer func() { stallTime = 2 * time.Minute }()
	a := startAPI(t, Options{})
	ctx := t.Context()
	for _, command := range []string{"create", "switchtraffic"} {
		if _, err := a.client.Run(ctx, "shop", "migrate/"+command, Request{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	// A gateway that never adopts anything: its lease is renewed by somebody, and nobody is there.
	flow := a.target.Workflow("w")
	mark, err := a.origin.Mark(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flow.Renew(ctx, "ghost", fmt.Appendf(nil, `{"adopted":0,"identity":%q}`, mark.Identity), time.Hour); err != nil {
		t.Fatal(err)
	}
	_, err = a.client.Run(ctx, "shop", "migrate/reversetraffic", Request{}, func(string) {})
	var answered *Error
	if !errors.As(err, &answered) || answered.Exit != ExitFailed || !strings.Contains(err.Error(), "no progress for 200ms") || !strings.Contains(err.Error(), "ghost") {
		t.Fatalf("got %v, want no progress", err)
	}
	if _, err := flow.Renew(ctx, "ghost", nil, time.Millisecond); err != nil { // and now it is gone
		t.Fatal(err)
	}
	if _, err := a.client.Run(ctx, "shop", "migrate/forget-gateway", Request{Gateway: "ghost"}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	end, err := a.client.Run(ctx, "shop", "migrate/reversetraffic", Request{To: "off"}, func(string) {})
	if err != nil || end.Status.Phase != migrate.Off {
		t.Errorf("run again: got %+v, %v", end, err)
	}
}

func TestTwoAtOnce(t *testing.T) {
	a := startAPI(t, Options{})
	if _, err := a.client.Run(t.Context(), "shop", "migrate/create", Request{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 4 {
		go func() {
			_, err := a.client.Run(context.Background(), "shop", "migrate/switchtraffic", Request{To: "live", Window: "1ms"}, func(string) {})
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if st, _ := a.sites[0].recent(t.Context()); st.Phase != migrate.Live {
		t.Errorf("got phase %s", st.Phase)
	}
}

func TestMetrics(t *testing.T) {
	a := startAPI(t, Options{Version: `v1 "x\`})
	a.meter.Done("GET", store.OK, 300*time.Microsecond)
	a.meter.Done("GET", store.OutcomeAbsent, 100*time.Microsecond)
	a.meter.Done("SET", store.OutcomeUnknown, 2*time.Minute)
	a.meter.Security("login")
	for _, command := range []string{"create", "switchtraffic"} {
		if _, err := a.client.Run(t.Context(), "shop", "migrate/"+command, Request{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	_, header, body := a.raw("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("got %q", header.Get("Content-Type"))
	}
	for _, want := range []string{
		`sessile_build_info{go="` + runtime.Version() + `",version="v1 \"x\\"} 1`,
		`sessile_ready{site="plain"} 1`,
		`sessile_gateway_connections{site="shop"} 7`,
		`sessile_gateway_held_total{site="shop"} 3`,
		`sessile_command_outcomes_total{command="GET",outcome="absent",site="shop"} 1`,
		`sessile_command_outcomes_total{command="SET",outcome="unknown",site="shop"} 1`,
		`sessile_command_seconds_bucket{command="GET",site="shop",le="0.0001"} 1`,
		`sessile_command_seconds_bucket{command="GET",site="shop",le="0.0005"} 2`,
		`sessile_command_seconds_bucket{command="SET",site="shop",le="60"} 0`,
		`sessile_command_seconds_bucket{command="SET",site="shop",le="+Inf"} 1`,
		`sessile_command_seconds_count{command="GET",site="shop"} 2`,
		`sessile_security_total{kind="login",site="shop"} 1`,
		`sessile_migrate_phase{phase="dual-write",site="shop"} 1`,
		`sessile_migrate_phase{phase="off",site="shop"} 0`,
		`sessile_migrate_leases{site="shop"} 1`,
		`sessile_migrate_debt_intents{site="shop"} 0`,
		`sessile_migrate_events_total{event="foreign_writes",site="shop"} 0`,
		`sessile_migrate_job_sessions{job="backfill",site="shop",what="seen"} `,
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("there is no %s", want)
		}
	}
	// The format: every line is a comment or a sample of the family above it, and no family comes twice.
	sample := regexp.MustCompile(`^([a-z_]+)(\{[a-z]+="([^"\\]|\\.)*"(,[a-z]+="([^"\\]|\\.)*")*\})? [-+0-9.eInf]+$`)
	family, seen := "", map[string]bool{}
	lines := map[string]bool{}
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "# HELP "); ok {
			family, _, _ = strings.Cut(name, " ")
			if seen[family] {
				t.Errorf("family %s twice", family)
			}
			seen[family] = true
			continue
		}
		if strings.HasPrefix(line, "# TYPE "+family+" ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil || !strings.HasPrefix(m[1], family) {
			t.Errorf("below %s: %q", family, line)
			continue
		}
		key, _, _ := strings.Cut(line, "} ")
		if lines[key] {
			t.Errorf("twice: %s", key)
		}
		lines[key] = true
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	a := startAPI(t, Options{})
	var held []net.Conn
	for range maxConns + 20 {
		nc, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, nc)
	}
	if status, _, _ := a.raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); status != 0 {
		t.Errorf("above the limit: got %d, want the end", status)
	}
	for _, nc := range held {
		nc.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if status, _, _ := a.raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); status == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody is let in again")
		}
	}
}

// cert makes a certificate for a name, and returns the paths of it and of its key.
func cert(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for path, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestTLS(t *testing.T) {
	certFile, keyFile := cert(t, "gw.example")
	names, err := Names(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := New([]*Site{{Name: "plain"}}, Options{Token: "0123456789abcdef", Names: names})
	l, err := Listen("127.0.0.1:0", certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Shutdown(context.Background()); <-done }()

	c, err := NewClient("https://"+l.Addr().String(), "0123456789abcdef", certFile)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if sites, err := c.Sites(t.Context()); err != nil || len(sites) != 1 {
		t.Errorf("got %v, %v", sites, err)
	}
	wrong, err := NewClient("https://"+l.Addr().String(), "fedcba9876543210", certFile)
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if _, err := wrong.Sites(t.Context()); err == nil || !strings.Contains(err.Error(), "asks for a token") {
		t.Errorf("a wrong token: got %v", err)
	}
	stranger, err := NewClient("https://"+l.Addr().String(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Sites(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("an authority that is not trusted: got %v", err)
	}
	// A client of another protocol gets no connection (ALPACA), and there is no HTTP/2.
	for proto, good := range map[string]bool{"redis": false, "h2": false, "http/1.1": true} {
		nc, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if (err == nil) != good {
			t.Errorf("ALPN %s: got %v", proto, err)
		}
		if nc != nil {
			nc.Close()
		}
	}
	if names("gw.example") != true || names("evil.example") {
		t.Error("the names are not those of the certificate")
	}
}

func TestClientRefusesAndReports(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:1/x", "http://h:1", "https://u:p@h", "127.0.0.1:1?x"} {
		if _, err := NewClient(address, "", ""); err == nil {
			t.Errorf("NewClient(%q) works", address)
		}
	}
	if _, err := NewClient("10.0.0.1:6480", "0123456789abcdef", ""); err == nil || !strings.Contains(err.Error(), "unencrypted") {
		t.Errorf("a token over plain HTTP: got %v", err)
	}
	for _, address := range []string{"127.0.0.1:1", "unix:/nowhere/at/all"} {
		c, err := NewClient(address, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Sites(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: got %v", address, err)
		}
	}
	// Something else listens there, or goes away in the middle.
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{
		"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"say\":\"x\"}\n",
	}
	go func() {
		for _, a := range answers {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Read(make([]byte, 4096))
			io.WriteString(nc, a)
			nc.Close()
		}
	}()
	c, err := NewClient("unix:"+l.Addr().String(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Sites(t.Context()); err == nil || !strings.Contains(err.Error(), "is it a sessile gateway's admin address?") {
		t.Errorf("something else: got %v", err)
	}
	if _, err := c.Run(t.Context(), "x", "migrate/create", Request{}, func(string) {}); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "run the command again") {
		t.Errorf("a gateway that goes away: got %v", err)
	}
}

// FuzzRequest: no body makes it panic, and what is taken has only fields that the command takes.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{`{}`, `{"to":"live","force":true}`, `{"to":1}`, `[`, `{"to":"x","to":"y"}`, `{"rate":1e400}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _ := http.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		if req, err := readRequest(r, "to timeout"); err == nil && (req.Force || req.Rate != 0 || req.Use != "") {
			t.Errorf("%q: got %+v", body, req)
		}
	})
}
