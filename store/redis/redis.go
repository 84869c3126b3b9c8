// Package redis keeps sessions in one Redis server (7.0 or later), under the keys, with the values and with the lifetimes
// that the application's own Redis handler would have given them; and it is the target that a migration moves them to, or,
// as an Origin, where it moves them away from.
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Network is "tcp" (the default) or "unix", Addr what to dial there. Addr is required, but for Sentinels and Cluster.
	Network, Addr string

	// Sentinels are the addresses of those who say which server is the primary, Master the name by which they know it.
	Sentinels []string
	Master    string
	Sentinel  SentinelOptions

	// Cluster are the addresses of some nodes of a Redis Cluster. The others are learned from them.
	Cluster []string

	// Origin is for a store that NewOrigin makes an origin: nothing is noted there about who uses it.
	Origin bool

	// Failover is for Sentinels and Cluster.
	Failover FailoverOptions

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
	// Connections is the number of connections that all callers share, one after the other as they are crowded. The default is 2. All of
	// them are of one server, known by its run_id: where the user may not run INFO, there is only one connection, since a second one might be
	// of another server that has the same address (a proxy, a virtual IP that moved).
	Connections int

	// Track has the server say what changes of all that is read on these connections (CLIENT TRACKING), which the Tracker needs. A
	// server that does not speak RESP3, or a user who may not run CLIENT TRACKING, is an error of Connect then. It costs the
	// server some memory for each key that was read and has not changed since, up to tracking-table-max-keys.
	Track bool

	// Logger hears of connections lost and regained. The default is silence.
	Logger *slog.Logger
}

// SentinelOptions say how Sentinels are spoken to. The zero value of a field is its default.
type SentinelOptions struct {
	// Username and Password are the Sentinels' own; by default they are not asked for one. PasswordFile is read again for
	// every connection.
	Username, Password, PasswordFile string
	// TLS, where it is not nil, is spoken to the Sentinels.
	TLS *tls.Config
	// ConnectTimeout bounds the making of a connection; the default is 100 ms. ReadTimeout and WriteTimeout bound each
	// answer and request; the default is 1 s.
	ConnectTimeout, ReadTimeout, WriteTimeout time.Duration
}

// FailoverOptions say what is done when the primary changes. The zero value of a field is its default.
type FailoverOptions struct {
	// Hold caps how long operations are held up because somebody says that the primary is about to change. The default
	// is 3 s.
	Hold time.Duration
	// Replay is how long an acknowledged write is remembered, to be put back where a new primary lacks it. The default is
	// 5 s; negative: nothing is. It has to be off where clients also talk to the servers themselves.
	Replay time.Duration
	// ReplayBytes bounds the memory of it. The default is 64 MiB.
	ReplayBytes int
	// Lease, where it is not 0 (safety=strict: 500 ms), has every answer wait for it that within so long a majority of the
	// Sentinels have said that the server is the primary.
	Lease time.Duration
	// Wait is how long a write that store.Replicated marks waits for the replicas. The default is 100 ms; negative: it
	// does not. Strict has it fail, as unknown, where not all of them have it by then; otherwise that is counted.
	Wait   time.Duration
	Strict bool
}

// heeded is how long an announcement is heeded that nothing follows: less than operations wait, so that who came at its beginning is
// served at its end.
func (f *FailoverOptions) heeded() time.Duration { return f.Hold - f.Hold/10 }

func (o *Options) complete() error {
	switch {
	case len(o.Sentinels) > 0 && (o.Master == "" || len(o.Cluster) > 0 || o.Addr != ""):
		return errors.New("store/redis: Sentinels go with the name of a master, and with nothing else")
	case len(o.Cluster) > 0 && (o.Addr != "" || o.Database != 0):
		return errors.New("store/redis: a Cluster has only database 0, and no other address")
	case o.Addr == "" && !o.watched():
		return errors.New("store/redis: no address")
	case o.Sentinel.ConnectTimeout < 0 || o.Sentinel.ReadTimeout < 0 || o.Sentinel.WriteTimeout < 0:
		return errors.New("store/redis: a timeout for Sentinels is negative")
	case o.Sentinel.Password != "" && o.Sentinel.PasswordFile != "":
		return errors.New("store/redis: both a password and a password file for Sentinels")
	case o.Failover.Hold < 0 || o.Failover.Lease < 0 || o.Failover.ReplayBytes < 0:
		return errors.New("store/redis: hold, lease or replay_bytes is negative")
	case o.Failover.Lease > 0 && len(o.Sentinels) == 0:
		return errors.New("store/redis: a lease (safety=strict) needs Sentinels")
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
	o.Sentinel.ConnectTimeout = cmp.Or(o.Sentinel.ConnectTimeout, 100*time.Millisecond)
	o.Sentinel.ReadTimeout = cmp.Or(o.Sentinel.ReadTimeout, time.Second)
	o.Sentinel.WriteTimeout = cmp.Or(o.Sentinel.WriteTimeout, time.Second)
	f := &o.Failover
	f.Hold, f.Replay, f.Wait = cmp.Or(f.Hold, 3*time.Second), cmp.Or(f.Replay, 5*time.Second), cmp.Or(f.Wait, 100*time.Millisecond)
	f.ReplayBytes = cmp.Or(f.ReplayBytes, 64<<20)
	if f.Wait > o.Timeout {
		return errors.New("store/redis: wait is longer than timeout")
	}
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

// watched reports whether the servers change their roles under somebody's eyes.
func (o *Options) watched() bool { return len(o.Sentinels) > 0 || len(o.Cluster) > 0 }

// replicates reports whether there are writes that wait for the replicas.
func (o *Options) replicates() bool { return o.watched() && o.Failover.Wait > 0 }

func (o *Options) password() (string, error) {
	return password(o.Password, o.PasswordFile)
}

func password(word, file string) (string, error) {
	if file == "" {
		return word, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("store/redis: %w", err)
	}
	if word = strings.TrimRight(string(b), "\r\n"); word == "" {
		return "", fmt.Errorf("store/redis: password file %s is empty", file)
	}
	return word, nil
}

// ParseURL reads a store URL. No error shows what might be a password.
//
//	redis://user:password@host:port/database?prefix=...     rediss:// is the same with TLS
//	redis+unix:///run/redis.sock?database=1
//	redis-sentinel://user:password@s1:26379,s2:26379,s3:26379/mymaster/0     rediss-sentinel://
//	redis-cluster://user:password@n1:6379,n2:6379     rediss-cluster://
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
	case "redis-sentinel", "rediss-sentinel":
		master, db, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
		n, err := strconv.Atoi(cmp.Or(db, "0"))
		if master == "" || err != nil || n < 0 {
			return o, errors.New("store/redis: behind the Sentinels comes /name-of-the-master, and then /number-of-the-database")
		}
		o.Master, o.Database = master, n
		if o.Sentinels, err = addresses(u.Host, "26379"); err != nil {
			return o, err
		}
	case "redis-cluster", "rediss-cluster":
		if strings.Trim(u.Path, "/0") != "" {
			return o, errors.New("store/redis: a Cluster has only database 0")
		}
		var err error
		if o.Cluster, err = addresses(u.Host, "6379"); err != nil {
			return o, err
		}
	case "redis+unix":
		if o.Network, o.Addr = "unix", u.Path; u.Host != "" || u.Path == "" {
			return o, errors.New("store/redis: redis+unix is followed by :// and the absolute path of a socket")
		}
	default:
		return o, fmt.Errorf("store/redis: scheme %q is none of redis, rediss, redis+unix, redis-sentinel, rediss-sentinel, redis-cluster, rediss-cluster", u.Scheme)
	}
	if o.TLS == nil && strings.HasPrefix(u.Scheme, "rediss-") {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if u.Fragment != "" {
		return o, errors.New("store/redis: the URL has a # part; write %23 in a password")
	}

	var cert, key, sentinelTLS, safety string
	f := &o.Failover
	set := map[string]func(v string) error{
		"prefix":        func(v string) error { o.Prefix = v; return nil },
		"lock_suffix":   func(v string) error { o.LockSuffix = v; return nil },
		"password_file": func(v string) error { o.PasswordFile = v; return nil },
		"database":      func(v string) (err error) { o.Database, err = strconv.Atoi(v); return },
		"max_value":     func(v string) (err error) { o.MaxValue, err = strconv.Atoi(v); return },
		"connections":   func(v string) (err error) { o.Connections, err = strconv.Atoi(v); return },
		"timeout":       func(v string) (err error) { o.Timeout, err = time.ParseDuration(v); return },
		"dial_timeout":  func(v string) (err error) { o.DialTimeout, err = time.ParseDuration(v); return },
		"track": func(v string) error {
			if o.Track = v == "yes"; !o.Track && v != "no" {
				return errors.New("neither yes nor no")
			}
			return nil
		},
	}
	if o.watched() {
		set["replay"] = func(v string) (err error) { f.Replay, err = orOff(v); return }
		set["replay_bytes"] = func(v string) (err error) { f.ReplayBytes, err = strconv.Atoi(v); return }
		set["hold"] = func(v string) (err error) { f.Hold, err = positive(v); return }
		set["wait"] = func(v string) (err error) { f.Wait, err = orOff(v); return }
		set["shortfall"] = func(v string) error {
			if f.Strict = v == "fail"; !f.Strict && v != "accept" {
				return errors.New("neither accept nor fail")
			}
			return nil
		}
	}
	if len(o.Sentinels) > 0 {
		w := &o.Sentinel
		set["sentinel_username"] = func(v string) error { w.Username = v; return nil }
		set["sentinel_password"] = func(v string) error { w.Password = v; return nil }
		set["sentinel_password_file"] = func(v string) error { w.PasswordFile = v; return nil }
		set["sentinel_connect_timeout"] = func(v string) (err error) { w.ConnectTimeout, err = positive(v); return }
		set["sentinel_read_timeout"] = func(v string) (err error) { w.ReadTimeout, err = positive(v); return }
		set["sentinel_write_timeout"] = func(v string) (err error) { w.WriteTimeout, err = positive(v); return }
		set["lease"] = func(v string) (err error) { f.Lease, err = positive(v); return }
		set["safety"] = func(v string) error {
			if safety = v; v != "strict" && v != "normal" {
				return errors.New("neither strict nor normal")
			}
			return nil
		}
		if o.TLS != nil {
			set["sentinel_tls"] = func(v string) error {
				if sentinelTLS = v; v != "yes" && v != "no" {
					return errors.New("neither yes nor no")
				}
				return nil
			}
		}
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
	if len(o.Sentinels) > 0 && sentinelTLS != "no" {
		o.Sentinel.TLS = o.TLS
	}
	switch {
	case safety == "strict":
		f.Lease = cmp.Or(f.Lease, 500*time.Millisecond)
	case f.Lease != 0:
		return o, errors.New("store/redis: lease goes with safety=strict")
	}
	return o, nil
}

// addresses reads a list of host:port; the port may be left out.
func addresses(list, port string) (addrs []string, err error) {
	for _, a := range strings.Split(list, ",") {
		host, p, err := net.SplitHostPort(a)
		if err != nil {
			host, p, err = net.SplitHostPort(a + ":" + port)
		}
		if n, bad := strconv.Atoi(p); err != nil || host == "" || bad != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("store/redis: %q is not host:port", a)
		}
		if a = net.JoinHostPort(host, p); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

func positive(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err == nil && d <= 0 {
		err = errors.New("not more than 0")
	}
	return d, err
}

// orOff reads a time, or off, which is a negative one.
func orOff(v string) (time.Duration, error) {
	if v == "off" {
		return -1, nil
	}
	return positive(v)
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

// Store is one Redis server, whichever is the primary, or a Redis Cluster. It implements store.Target.
type Store struct {
	opt        Options
	limits     framingLimits
	node       *node    // nil for a Cluster
	watcher    *watcher // of the Sentinels, nil without
	cluster    *cluster // nil without
	began      time.Time
	window     *window // nil: nothing is remembered
	trackers   trackers
	failovers  failovers
	isOrigin   atomic.Bool  // see recovery.forgotten
	shortfalls atomic.Int64 // writes that were to wait for the replicas, and not all of them confirmed
	errTimeout error
	generation atomic.Uint64
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
	s, life := newStore(opt)
	var err error
	switch {
	case s.cluster != nil:
		err = s.cluster.open(ctx)
	case len(opt.Sentinels) > 0:
		s.watcher = s.watch(life, s.node)
		err = s.watcher.begin(ctx)
	}
	if s.node != nil && err == nil {
		s.node.start(life)
		err = s.node.tried(ctx)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("store/redis: %w", err)
	}
	return s, nil
}

// newStore returns a store that is not connected, and the context of what it begins.
func newStore(opt Options) (s *Store, life context.Context) {
	life, stop := context.WithCancel(context.Background())
	s = &Store{opt: opt, limits: replyLimits(opt.MaxValue), stop: stop, began: time.Now()}
	s.errTimeout = fmt.Errorf("no answer within %v: %w", opt.Timeout, os.ErrDeadlineExceeded)
	if f := opt.Failover; opt.watched() && f.Replay > 0 {
		s.window = newWindow(f.Replay, f.ReplayBytes)
	}
	s.isOrigin.Store(opt.Origin)
	if len(opt.Cluster) > 0 {
		s.cluster = newCluster(s, life)
	} else {
		s.node = newNode(s, opt.Network, opt.Addr)
	}
	return s, life
}

// Close closes the connections. Operations under way get up to a second for their answers.
func (s *Store) Close() error {
	if s.cluster != nil {
		s.cluster.close() // there will be no more nodes
	}
	for _, n := range s.nodes() {
		if n.attendant != nil {
			n.attendant.leave()
		}
	}
	s.stop()
	s.wg.Wait()
	return nil
}

// nodes are those that there are.
func (s *Store) nodes() (list []*node) {
	if s.cluster == nil {
		return []*node{s.node}
	}
	for _, h := range s.cluster.all() {
		list = append(list, h.node)
	}
	return list
}

// Ping asks the server whether it is there and speaks to us.
func (s *Store) Ping(ctx context.Context) error { return s.ask(ctx, "ping", "PING").fail() }

// Prefix is what every session's name in Redis begins with.
func (s *Store) Prefix() string { return s.opt.Prefix }

// Info returns the fields of INFO's default sections: redis_version, run_id, role, maxmemory_policy, used_memory,
// maxmemory, evicted_keys, aof_enabled, rdb_last_bgsave_status and so on. Of a Cluster they are those of one primary, but for
// what is worse in another one.
func (s *Store) Info(ctx context.Context) (map[string]string, error) { return s.info(ctx, "default") }

func (s *Store) info(ctx context.Context, section string) (map[string]string, error) {
	var all []map[string]string
	replies, err := s.each(pass(ctx, forgotten), "info", "INFO", section)
	for _, r := range replies {
		m := infoFields(r.text(0))
		if r.err == nil && m["run_id"] == "" {
			r.unreadable(errors.New("no run_id"))
		}
		all, err = append(all, m), cmp.Or(err, r.fail())
	}
	if err != nil {
		return nil, err
	}
	return oneInfo(all), nil
}

// each sends a command that changes nothing to every server that has sessions.
func (s *Store) each(ctx context.Context, op string, args ...string) ([]*reply, error) {
	if s.cluster != nil {
		return s.cluster.each(ctx, op, args...)
	}
	return []*reply{s.ask(ctx, op, args...)}, nil
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
func (s *Store) Count(ctx context.Context) (n int, err error) {
	replies, err := s.each(ctx, "count", "DBSIZE")
	for _, r := range replies {
		n, err = n+int(r.int(0)), cmp.Or(err, r.fail())
	}
	return n, err
}

// Instance returns the server's run_id, which a restart changes, of a Cluster a digest of those of all primaries that have
// slots. All connections in use are of those servers.
func (s *Store) Instance(ctx context.Context) (string, error) {
	if s.cluster != nil {
		return s.cluster.instance()
	}
	m, err := s.info(ctx, "server")
	return m["run_id"], err
}

// Generation counts the connections that were ever put to use, each before it can answer anybody. An attempt that fails
// does not count: what answers is where it was.
func (s *Store) Generation() uint64 { return s.generation.Load() }
