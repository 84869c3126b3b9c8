// Package admin is the HTTP API beside the gateway: health, metrics, and the commands of a migration; and the client of
// it that the command line uses.
//
//	GET  /healthz                             the process answers
//	GET  /readyz                              every site serves: 200, else 503 (holding, draining)
//	GET  /metrics                             Prometheus
//	GET  /v1/sites                            which sites there are
//	GET  /v1/sites/{site}/migrate/status      migrate.Status
//	GET  /v1/sites/{site}/migrate/plan        migrate.Plan
//	POST /v1/sites/{site}/migrate/{command}   runs a command; the body is a Request, the answer lines of Line
//	GET  /v1/sites/{site}/target/status       TargetStatus, where the target fails over
//	POST /v1/sites/{site}/target/{command}    the same for refill and accept
//
// A GET changes nothing. A POST can change where users' sessions are served from, so a browser that a stranger's page
// made to send it is refused (Host, Origin, Sec-Fetch-Site, content type), and beyond the loopback address so is
// everybody without the token.
package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sessile/sessile/migrate"
)

const (
	maxBody  = 16 << 10
	maxConns = 128
	// writeTime is how long a client may take to read what it asked for.
	writeTime = 10 * time.Second
)

// readTime is how long a client may take to send its request.
var readTime = 10 * time.Second

// A Site is what the API shows and moves.
type Site struct {
	Name     string
	Workflow string
	Engine   *migrate.Engine             // nil: a plain gateway
	Ping     func(context.Context) error // of a plain gateway: whether its store is there
	Meter    *Meter                      // of its commands; nil: none
	Gauges   func() []Gauge              // what else its gateway counts; nil: nothing
	Target   Target                      // nil: it does not fail over

	mu     sync.Mutex // guards what follows; held while the stores are asked, so that many askers ask once
	looked time.Time
	status migrate.Status
	down   error // of Ping
}

// recent returns the site's status, at most half a second old: probes and scrapes must not be a load.
func (s *Site) recent(ctx context.Context) (migrate.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) < 500*time.Millisecond {
		return s.status, s.down
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch {
	case s.Engine != nil:
		s.status = s.Engine.Status(ctx)
		s.down = nil
		if s.status.Serving != "yes" {
			s.down = errors.New(s.status.Serving)
		}
	case s.Ping != nil:
		s.down = s.Ping(ctx)
	}
	s.looked = time.Now()
	return s.status, s.down
}

// Options of a Server.
type Options struct {
	// Token is asked for, where it is not "", as `Authorization: Bearer`, by everything but the two probes.
	Token string
	// Names are host names by which the API may be asked besides addresses and localhost: those of its certificate.
	Names   func(host string) bool
	Version string
	Logger  *slog.Logger
}

// Server answers the API.
type Server struct {
	sites    []*Site
	opt      Options
	token    [sha256.Size]byte
	log      *slog.Logger
	http     *http.Server
	metrics  http.Handler
	life     context.Context // of commands
	stop     context.CancelFunc
	conns    atomic.Int64
	refused  atomic.Uint64
	draining atomic.Bool
	lastWarn atomic.Int64
}

// New returns a server that answers once it is given a listener. It borrows what the sites name.
func New(sites []*Site, opt Options) *Server {
	s := &Server{sites: sites, opt: opt, token: sha256.Sum256([]byte(opt.Token)), log: cmp.Or(opt.Logger, slog.New(slog.DiscardHandler))}
	s.life, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readTime / 2,
		ReadTimeout:       readTime, // lifted while a command runs
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnState: func(nc net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if s.conns.Add(1) > maxConns {
					nc.Close()
				}
			case http.StateClosed, http.StateHijacked:
				s.conns.Add(-1)
			}
		},
	}
	s.http.Protocols.SetHTTP1(true)
	s.metrics = s.metricsHandler()
	return s
}

// Listen listens at host:port, with TLS where there is a certificate, which is read anew for every connection.
func Listen(address, cert, key string) (net.Listener, error) {
	if cert != "" {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil || cert == "" {
		return l, err
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // and nothing that speaks another protocol
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		},
	}), nil
}

// Names returns what reports whether a certificate is for a host, for Options.Names; nil without a certificate.
func Names(cert, key string) (func(host string) bool, error) {
	if cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return func(host string) bool { return pair.Leaf.VerifyHostname(host) == nil }, nil
}

// Serve answers on l until Shutdown.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(l) }

// Drain makes /readyz say that the gateway is going.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown ends the commands that run, which can be run again, and then the server.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")

	if status, text := s.guard(r); status != 0 {
		s.refused.Add(1)
		now := time.Now().UnixNano()
		if last := s.lastWarn.Load(); now-last > int64(time.Second) && s.lastWarn.CompareAndSwap(last, now) {
			s.log.Warn("admin: refused", "status", status, "why", text, "from", r.RemoteAddr)
		}
		if status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", "Bearer")
		}
		fail(w, status, text)
		return
	}
	site, command, found := s.route(r.URL.Path)
	_, post := commands[command]
	switch {
	case !found:
		fail(w, http.StatusNotFound, "not found")
	case post && r.Method != http.MethodPost:
		h.Set("Allow", http.MethodPost)
		fail(w, http.StatusMethodNotAllowed, "this command takes POST")
	case !post && r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		fail(w, http.StatusMethodNotAllowed, "this takes GET")
	case r.URL.Path == "/healthz":
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	case r.URL.Path == "/readyz":
		s.ready(w, r)
	case r.URL.Path == "/metrics":
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
		s.metrics.ServeHTTP(w, r)
	case r.URL.Path == "/v1/sites":
		answer(w, http.StatusOK, s.list())
	case command == "target/status" && site.Target != nil:
		answer(w, http.StatusOK, site.Target.Status())
	case strings.HasPrefix(command, "target/") && site.Target == nil:
		fail(w, http.StatusConflict, "this site's target does not fail over: only behind Sentinels or in a Cluster there is something to show and to decide")
	case strings.HasPrefix(command, "migrate/") && site.Engine == nil:
		fail(w, http.StatusConflict, "this site has no origin: there is nothing to move; `sessile serve` needs --origin")
	case command == "migrate/status":
		answer(w, http.StatusOK, site.Engine.Status(r.Context()))
	case command == "migrate/plan":
		s.plan(w, r, site)
	default:
		s.command(w, r, site, command)
	}
}

// looks are what a GET of a site shows.
var looks = []string{"migrate/status", "migrate/plan", "target/status"}

// route finds what a path names. It knows no patterns and cleans nothing: what is not exactly a path of ours is none.
func (s *Server) route(path string) (site *Site, command string, ok bool) {
	switch path {
	case "/healthz", "/readyz", "/metrics", "/v1/sites":
		return nil, "", true
	}
	part := strings.Split(path, "/")
	if len(part) != 6 || part[0] != "" || part[1] != "v1" || part[2] != "sites" {
		return nil, "", false
	}
	command = part[4] + "/" + part[5]
	_, known := commands[command]
	i := slices.IndexFunc(s.sites, func(s *Site) bool { return s.Name == part[3] })
	if i < 0 || !known && !slices.Contains(looks, command) {
		return nil, "", false
	}
	return s.sites[i], command, true
}

// guard refuses what is not for us, or not from whom it seems to be from. It looks at nothing but the request.
func (s *Server) guard(r *http.Request) (status int, text string) {
	if r.Host == "" {
		return http.StatusBadRequest, "no Host"
	}
	if !s.ours(r.Host) {
		return http.StatusMisdirectedRequest, "this host name is not ours" // DNS rebinding
	}
	if origin, sent := r.Header["Origin"]; sent && (len(origin) != 1 || origin[0] != "http://"+r.Host && origin[0] != "https://"+r.Host) {
		return http.StatusForbidden, "cross-origin"
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return http.StatusForbidden, "cross-site"
	}
	switch q, err := url.ParseQuery(r.URL.RawQuery); {
	case err != nil || q.Has("token") || q.Has("access_token"):
		return http.StatusBadRequest, "a token belongs into the Authorization header"
	case r.URL.RawQuery != "" && strings.HasPrefix(r.URL.Path, "/v1"):
		return http.StatusBadRequest, "no parameters are taken here"
	}
	if s.opt.Token != "" && r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
		sent, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(sent))
		if subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 || !ok {
			return http.StatusUnauthorized, "a token is needed"
		}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			return http.StatusUnsupportedMediaType, "application/json is wanted"
		}
		if len(r.TransferEncoding) > 0 { // a way to smuggle a second request past a proxy; a length says the same
			return http.StatusLengthRequired, "a Content-Length is wanted"
		}
		if r.Header.Get("Content-Encoding") != "" {
			return http.StatusUnsupportedMediaType, "no content encoding is taken"
		}
	default:
		return http.StatusMethodNotAllowed, "GET and POST are taken"
	}
	return 0, ""
}

// ours reports whether a Host names us: by an address, which no stranger's DNS can make point elsewhere, as localhost,
// or by a name of our certificate.
func (s *Server) ours(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "localhost" || s.opt.Names != nil && s.opt.Names(host)
}

func answer(w http.ResponseWriter, status int, v any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime)) // not every ResponseWriter of a test can
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
}

func fail(w http.ResponseWriter, status int, text string) {
	if status != http.StatusNotFound && status != http.StatusConflict {
		w.Header().Set("Connection", "close")
	}
	answer(w, status, Line{Error: text, Exit: map[int]int{http.StatusNotFound: 2, http.StatusConflict: 2, http.StatusBadRequest: 2}[status]})
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() {
		answer(w, http.StatusServiceUnavailable, map[string]string{"status": "draining"})
		return
	}
	for _, site := range s.sites {
		if _, err := site.recent(r.Context()); err != nil {
			answer(w, http.StatusServiceUnavailable, map[string]string{"status": "holding"})
			return
		}
	}
	answer(w, http.StatusOK, map[string]string{"status": "ready"})
}

// SiteInfo is one line of /v1/sites.
type SiteInfo struct {
	Name     string `json:"name"`
	Workflow string `json:"workflow,omitempty"` // "": a plain gateway
}

func (s *Server) list() []SiteInfo {
	all := []SiteInfo{}
	for _, site := range s.sites {
		info := SiteInfo{Name: site.Name}
		if site.Engine != nil {
			info.Workflow = site.Workflow
		}
		all = append(all, info)
	}
	return all
}

func (s *Server) plan(w http.ResponseWriter, r *http.Request, site *Site) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // a large directory takes its time, and the client may go away meanwhile
	ctx, cancel := s.with(r.Context())
	defer cancel()
	plan, err := site.Engine.Plan(ctx)
	if err != nil {
		answer(w, http.StatusOK, Line{Error: err.Error(), Exit: exitOf(ctx, err)})
		return
	}
	answer(w, http.StatusOK, plan)
}

// with returns a context that ends with ctx and with the server.
func (s *Server) with(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unwatch := context.AfterFunc(s.life, func() { cancel(errors.New("the gateway is stopping")) })
	return ctx, func() { unwatch(); cancel(nil) }
}

// readRequest reads a command's body: one flat object, with the command's own fields and no field twice.
func readRequest(r *http.Request, fields string) (req Request, err error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return req, err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return req, nil
	}
	if !utf8.Valid(b) {
		return req, errors.New("the body is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return req, errors.New("the body is to be a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return req, errors.New("the body is not JSON")
		}
		name, _ := t.(string)
		if !slices.Contains(strings.Fields(fields), name) {
			return req, errors.New("the body has a field that this command does not take; it takes: " + cmp.Or(fields, "none"))
		}
		if seen[name] {
			return req, errors.New("the body has a field twice")
		}
		seen[name] = true
		if t, err = d.Token(); err != nil {
			return req, errors.New("the body is not JSON")
		}
		if _, nested := t.(json.Delim); nested {
			return req, errors.New("the body is to be a flat object")
		}
	}
	strict := json.NewDecoder(bytes.NewReader(b))
	if err := strict.Decode(&req); err != nil {
		return req, errors.New("a field of the body has a value of the wrong kind")
	}
	if _, err := strict.Token(); err != io.EOF {
		return req, errors.New("there is something behind the body's object")
	}
	return req, nil
}
