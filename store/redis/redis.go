// Package redis keeps sessions in one Redis server (7.0 or later), under the keys, with the values and with the lifetimes
// that the application's own Redis handler would have given them; and it is the target that a migration moves them to.
//
// rueidis is the wire. What it does not decide here: when to connect, what an error means, and what is sent again
// (nothing is). Commands share a few pipelined connections. Every step that reads and then writes is one script.
package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Network is "tcp" (the default) or "unix", Addr what to dial there. Addr is required.
	Network, Addr string

	// TLS, where it is not nil, is spoken from the first byte. ServerName defaults to the host of Addr.
	TLS *tls.Config

	// Username and Password are sent on every new connection; without a Username the user is "default".
	Username, Password string
	// PasswordFile is read again for every new connection, so that a password can change under a running store.
	// It takes the place of Password.
	PasswordFile string

	// Database is the number of the logical database.
	Database int

	// Prefix is put before every key ("PHPREDIS_SESSION:"). The default is none.
	Prefix string
	// LockSuffix is put behind a session's key to make that of its lock. The default is "_LOCK", as in phpredis.
	LockSuffix string
	// MaxValue is the size in bytes above which Data is refused with ErrInvalid. The default is 512 MiB, above which
	// Redis itself cuts the connection (proto-max-bulk-len).
	MaxValue int

	// DialTimeout bounds the making of a connection, and then the login on it. The default is 1 s.
	DialTimeout time.Duration
	// Timeout bounds the wait for each answer; a context that ends earlier goes before. A connection that gives no
	// sign of life for as long is given up. The default is 2 s.
	Timeout time.Duration
	// Connections is the number of connections that all callers share. The default is 2. All of them are of one server,
	// known by its run_id: where the user may not run INFO, there is only one connection, since a second one might be
	// of another server that has the same address (a proxy, a virtual IP that moved).
	Connections int

	// Logger hears of connections lost and regained. The default is silence.
	Logger *slog.Logger
}

func (o *Options) complete() error {
	switch {
	case o.Addr == "":
		return errors.New("store/redis: no address")
	case o.Network != "" && o.Network != "tcp" && o.Network != "unix":
		return fmt.Errorf("store/redis: network %q is neither tcp nor unix", o.Network)
	case o.Database < 0:
		return fmt.Errorf("store/redis: database %d is negative", o.Database)
	case o.DialTimeout < 0 || o.Timeout < 0 || o.MaxValue < 0:
		return errors.New("store/redis: a timeout or limit is negative")
	case o.Connections < 0 || o.Connections > 64:
		return fmt.Errorf("store/redis: %d connections; 1 to 64 make sense", o.Connections)
	case strings.HasPrefix(o.Prefix, reserved):
		return fmt.Errorf("store/redis: the prefix may not begin with %q, which is ours", reserved)
	case o.Password != "" && o.PasswordFile != "":
		return errors.New("store/redis: both a password and a password file")
	}
	o.Network, o.LockSuffix = cmp.Or(o.Network, "tcp"), cmp.Or(o.LockSuffix, "_LOCK")
	o.DialTimeout, o.Timeout = cmp.Or(o.DialTimeout, time.Second), cmp.Or(o.Timeout, 2*time.Second)
	o.MaxValue, o.Connections = cmp.Or(o.MaxValue, 512<<20), cmp.Or(o.Connections, 2)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.TLS != nil && o.TLS.ServerName == "" {
		o.TLS = o.TLS.Clone()
		if host, _, err := net.SplitHostPort(o.Addr); err == nil {
			o.TLS.ServerName = host
		}
	}
	_, err := o.password()
	return err
}

func (o *Options) password() (string, error) {
	if o.PasswordFile == "" {
		return o.Password, nil
	}
	b, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("store/redis: %w", err)
	}
	pw := strings.TrimRight(string(b), "\r\n")
	if pw == "" {
		return "", fmt.Errorf("store/redis: password file %s is empty", o.PasswordFile)
	}
	return pw, nil
}

// ParseURL reads a store URL: redis://user:password@host:port/database?prefix=..., rediss:// for TLS, or
// redis+unix:///run/redis.sock?database=1. No error shows what might be a password.
func ParseURL(u *url.URL) (Options, error) {
	o := Options{Network: "tcp", Username: u.User.Username()}
	o.Password, _ = u.User.Password()
	switch u.Scheme {
	case "redis", "rediss":
		host := cmp.Or(u.Hostname(), "127.0.0.1")
		o.Addr = net.JoinHostPort(host, cmp.Or(u.Port(), "6379"))
		if db := strings.Trim(u.Path, "/"); db != "" {
			n, err := strconv.Atoi(db)
			if err != nil || n < 0 {
				return o, fmt.Errorf("store/redis: the path of the URL is to be the number of a database, not %q", db)
			}
			o.Database = n
		}
		if u.Scheme == "rediss" {
			o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
		}
	case "redis+unix":
		if o.Network, o.Addr = "unix", u.Path; u.Host != "" || u.Path == "" {
			return o, errors.New("store/redis: redis+unix is followed by :// and the absolute path of a socket")
		}
	default:
		return o, fmt.Errorf("store/redis: scheme %q is none of redis, rediss, redis+unix", u.Scheme)
	}
	if u.Fragment != "" {
		return o, errors.New("store/redis: the URL has a # part; write %23 in a password")
	}

	var cert, key string
	set := map[string]func(v string) error{
		"prefix":        func(v string) error { o.Prefix = v; return nil },
		"lock_suffix":   func(v string) error { o.LockSuffix = v; return nil },
		"password_file": func(v string) error { o.PasswordFile = v; return nil },
		"database":      func(v string) (err error) { o.Database, err = strconv.Atoi(v); return },
		"max_value":     func(v string) (err error) { o.MaxValue, err = strconv.Atoi(v); return },
		"connections":   func(v string) (err error) { o.Connections, err = strconv.Atoi(v); return },
		"timeout":       func(v string) (err error) { o.Timeout, err = time.ParseDuration(v); return },
		"dial_timeout":  func(v string) (err error) { o.DialTimeout, err = time.ParseDuration(v); return },
	}
	if o.TLS != nil {
		set["server_name"] = func(v string) error { o.TLS.ServerName = v; return nil }
		set["cert_file"] = func(v string) error { cert = v; return nil }
		set["key_file"] = func(v string) error { key = v; return nil }
		set["ca_file"] = func(v string) error {
			pem, err := os.ReadFile(v)
			if o.TLS.RootCAs = x509.NewCertPool(); err == nil && !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
				err = errors.New("no certificate in it")
			}
			return err
		}
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return o, errors.New("store/redis: the parameters of the URL cannot be read")
	}
	for name, values := range query {
		f, ok := set[name]
		switch {
		case !ok:
			return o, fmt.Errorf("store/redis: unknown parameter %q; did you mean %q?", name, nearest(name, set))
		case len(values) != 1:
			return o, fmt.Errorf("store/redis: parameter %s is given %d times", name, len(values))
		}
		if err := f(values[0]); err != nil {
			return o, fmt.Errorf("store/redis: parameter %s: %w", name, err)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return o, fmt.Errorf("store/redis: cert_file, key_file: %w", err)
		}
		o.TLS.Certificates = []tls.Certificate{pair}
	}
	return o, nil
}

// nearest returns the name in set that takes the fewest edits to become name.
func nearest[T any](name string, set map[string]T) (best string) {
	least := 1 << 30
	for cand := range set {
		row := make([]int, len(cand)+1)
		for j := range row {
			row[j] = j
		}
		for i := range len(name) {
			diag := row[0]
			row[0] = i + 1
			for j := range len(cand) {
				cost := diag
				if name[i] != cand[j] {
					cost++
				}
				diag, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
			}
		}
		if d := row[len(cand)]; d < least || d == least && cand < best {
			best, least = cand, d
		}
	}
	return best
}

// Store is one Redis server. It implements store.Target.
type Store struct {
	opt        Options
	limits     framingLimits
	links      []*link
	errTimeout error
	generation atomic.Uint64
	dials      atomic.Uint64
	admission  sync.Mutex    // held by who puts a connection to use, or closes those that are
	server     string        // of the last connection that was put to use; guarded by admission
	moves      atomic.Uint64 // how often it was another one than before
	stop       context.CancelFunc
	wg         sync.WaitGroup
}

var _ store.Target = (*Store)(nil)

// Open opens the store that u names; see ParseURL and Connect.
func Open(ctx context.Context, u *url.URL) (*Store, error) {
	opt, err := ParseURL(u)
	if err != nil {
		return nil, err
	}
	return Connect(ctx, opt)
}

// Connect returns a store that keeps its connections up by itself until Close. It waits for the first attempt, and
// fails where the server answers that the options are wrong (password, database), but not where no server answers:
// then operations answer ErrUnavailable until one does.
func Connect(ctx context.Context, opt Options) (*Store, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	s := &Store{opt: opt, limits: replyLimits(opt.MaxValue), links: make([]*link, opt.Connections), stop: stop}
	s.errTimeout = fmt.Errorf("no answer within %v: %w", opt.Timeout, os.ErrDeadlineExceeded)
	for i := range s.links {
		s.links[i] = &link{tried: make(chan struct{})}
	}
	for _, l := range s.links {
		s.wg.Go(func() { s.keep(life, l) })
	}
	for _, l := range s.links {
		select {
		case <-l.tried:
		case <-ctx.Done():
			return s, nil
		}
		if err := *l.err.Load(); misconfigured(err) {
			s.Close()
			return nil, fmt.Errorf("store/redis: %w", err)
		}
	}
	return s, nil
}

// Close closes the connections. Operations under way get up to a second for their answers.
func (s *Store) Close() error {
	s.stop()
	s.wg.Wait()
	return nil
}

// Ping asks the server whether it is there and speaks to us.
func (s *Store) Ping(ctx context.Context) error { return s.ask(ctx, "ping", "PING").fail() }

// Prefix is what every session's name in Redis begins with.
func (s *Store) Prefix() string { return s.opt.Prefix }

// Info returns the fields of INFO's default sections: redis_version, run_id, role, maxmemory_policy, used_memory,
// maxmemory, evicted_keys, aof_enabled, rdb_last_bgsave_status and so on.
func (s *Store) Info(ctx context.Context) (map[string]string, error) { return s.info(ctx, "default") }

func (s *Store) info(ctx context.Context, section string) (map[string]string, error) {
	r := s.ask(ctx, "info", "INFO", section)
	m := infoFields(r.text(0))
	if r.err == nil && m["run_id"] == "" {
		r.unreadable(errors.New("no run_id"))
	}
	return m, r.fail()
}

func infoFields(text string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			m[name] = value
		}
	}
	return m
}

// Count returns the number of all keys in the database, sessions or not: DBSIZE, which costs nothing.
func (s *Store) Count(ctx context.Context) (int, error) {
	r := s.ask(ctx, "count", "DBSIZE")
	return int(r.int(0)), r.fail()
}

// Instance returns the server's run_id, which a restart changes. All connections in use are of that server.
func (s *Store) Instance(ctx context.Context) (string, error) {
	m, err := s.info(ctx, "server")
	return m["run_id"], err
}

// Generation counts the connections that were ever put to use, each before it can answer anybody. An attempt that fails
// does not count: what answers is where it was.
func (s *Store) Generation() uint64 { return s.generation.Load() }
