// Package open turns store URLs into stores. It is the only place that knows every back end by name.
//
//	redis://user:password@host:6379/0?password_file=...   rediss:// over TLS, redis+unix:///run/redis.sock?database=1
//	redis-sentinel://s1:26379,s2:26379,s3:26379/mymaster/0   redis-cluster://n1:6379,n2:6379   rediss-... over TLS
//	file:///var/lib/php/sessions?layout=php&lifetime=1440s
//	mysql://rt@127.0.0.1/rt5?preset=rt&lifetime=12h  postgres://app@db/app?table=sessions&id=sid&data=payload&expires=expire
//	memcached://h1:11211,h2:11211?client=php-memcached       memcached+unix:///run/a.sock,/run/b.sock
//	cassandra://app@h1,h2:9042/keyspace?table=sessions&id=sid&data=payload
//	cached(memcached://h1:11211?client=memcached-object&prefix=sess_, mysql://app@db/app?table=php_sessions&...)
//	                                                      a table, and the cache before it
//	memory://                                             this process, empty at its start
//
// What else may stand in a URL is said by the back end's own ParseURL or OpenURL.
package open

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cached"
	"github.com/sessile/sessile/store/cassandra"
	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/memcached"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
	"github.com/sessile/sessile/store/sqltable"
)

// Options are what a URL need not say. A parameter of the URL goes before them.
type Options struct {
	// Prefix is put before every key of a session in Redis. Files have none.
	Prefix string
	// LockSuffix is put behind a session's key in Redis to make that of its lock. "" is the back end's default.
	LockSuffix string
	// Lifetime is the deadline of session files, counted from their mtime. A file store needs one, here or in its URL. In a
	// Redis, memcached or Cassandra origin it is that of sessions that have none.
	Lifetime time.Duration
	// MaxValue is the size in bytes of the largest session in an origin. 0 is the back end's default.
	MaxValue int
	// Bound is the longest time an operation on an origin may take. 0 is the back end's default.
	Bound time.Duration
	// Logger hears of connections lost and regained. nil is silence.
	Logger *slog.Logger

	origin bool // for Origin
}

// An Opener makes a store of a URL.
type Opener func(ctx context.Context, u *url.URL, opt Options) (store.Store, error)

var openers = map[string]Opener{
	"redis":           openRedis,
	"rediss":          openRedis,
	"redis+unix":      openRedis,
	"redis-sentinel":  openRedis,
	"rediss-sentinel": openRedis,
	"redis-cluster":   openRedis,
	"rediss-cluster":  openRedis,
	"file":            openFile,
	"memcached":       openMemcached,
	"memcached+unix":  openMemcached,
	"cassandra":       openCassandra,
	"memory":          openMemory,
	"mysql":           openSQL,
	"postgres":        openSQL,
}

func openRedis(ctx context.Context, u *url.URL, opt Options) (store.Store, error) {
	o, err := redisOptions(u, opt)
	if err != nil {
		return nil, err
	}
	if !opt.origin {
		return redis.Connect(ctx, o)
	}
	if o.Failover.Replay > 0 {
		return nil, errors.New("replay= is not for an origin, which applications write by themselves, too, before all of them have moved to a gateway")
	}
	o.Failover.Replay, o.Origin = -1, true
	s, err := redis.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	return redis.NewOrigin(s, opt.Lifetime), nil
}

func redisOptions(u *url.URL, opt Options) (redis.Options, error) {
	o, err := redis.ParseURL(u)
	if err != nil {
		return o, err
	}
	if o.Prefix == "" {
		o.Prefix = opt.Prefix
	}
	if o.LockSuffix == "" {
		o.LockSuffix = opt.LockSuffix
	}
	o.Logger = opt.Logger
	return o, nil
}

// Redis returns what the store that u names would be opened with, and whether it is one in Redis.
func Redis(u URL, opt Options) (o redis.Options, ok bool, err error) {
	if !isRedis(u.Scheme()) {
		return o, false, nil
	}
	o, err = redisOptions(u.u, opt)
	return o, true, err
}

func openFile(ctx context.Context, u *url.URL, opt Options) (store.Store, error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("store/file: the parameters of the URL cannot be read")
	}
	unless := func(name string, given bool, value string) {
		if given && !q.Has(name) {
			q.Set(name, value)
		}
	}
	unless("lifetime", opt.Lifetime > 0, opt.Lifetime.String())
	unless("max_value", opt.MaxValue > 0, strconv.Itoa(opt.MaxValue))
	unless("op_bound", opt.Bound > 0, opt.Bound.String())
	with := *u
	with.RawQuery = q.Encode()
	return file.OpenURL(ctx, &with)
}

func openSQL(ctx context.Context, u *url.URL, opt Options) (store.Store, error) {
	plain, o, err := sqltable.ParseURL(u, sqltable.Options{Lifetime: opt.Lifetime, MaxValue: opt.MaxValue, Bound: opt.Bound})
	if err != nil {
		return nil, err
	}
	return sqltable.OpenLate(ctx, plain, o, opt.Logger)
}

func openMemcached(_ context.Context, u *url.URL, opt Options) (store.Store, error) {
	o, err := memcached.ParseURL(u, memcached.Options{Lifetime: opt.Lifetime, MaxValue: opt.MaxValue, Timeout: opt.Bound})
	if err != nil {
		return nil, err
	}
	return memcached.New(o)
}

func openCassandra(ctx context.Context, u *url.URL, opt Options) (store.Store, error) {
	o, err := cassandra.ParseURL(u, cassandra.Options{Lifetime: opt.Lifetime, MaxValue: opt.MaxValue, Bound: opt.Bound, Logger: opt.Logger})
	if err != nil {
		return nil, err
	}
	return cassandra.Open(ctx, o)
}

// openCached opens both. An operation asks the cache, then the table, whose part of the bound holds in its server, then the cache.
func openCached(ctx context.Context, u URL, opt Options) (store.Store, error) {
	of := opt
	of.Bound /= 4
	opt.Bound -= of.Bound
	cache, err := Store(ctx, *u.cache, of)
	if err != nil {
		return nil, err
	}
	table, err := Origin(ctx, URL{u: u.u}, opt)
	if err != nil {
		return nil, errors.Join(err, cache.Close())
	}
	return cached.New(cache, table), nil
}

func openMemory(_ context.Context, u *url.URL, _ Options) (store.Store, error) {
	if u.Host != "" || u.Path != "" || u.RawQuery != "" {
		return nil, errors.New("store/memory: memory:// takes nothing more")
	}
	return memory.New(memory.Options{}), nil
}

// A URL names a store. Its String, which is what logs and errors show, has neither user nor parameters, so no password.
type URL struct {
	u     *url.URL
	cache *URL // of cached(cache, table), whose table is u
}

// IsRedis reports whether the store is Redis, of whatever topology.
func (u URL) IsRedis() bool { return isRedis(u.Scheme()) }

// IsSQL reports whether the store is a table of a SQL server, behind a cache or not.
func (u URL) IsSQL() bool { return u.u != nil && isSQL(u.u.Scheme) }

// between is what separates the two of cached(cache, table): host lists have commas, too.
var between = regexp.MustCompile(`,\s*[a-z][a-z0-9+.-]*://`)

// parseCached reads cached(cache, table).
func parseCached(raw string) (URL, error) {
	inner, closed := strings.CutSuffix(strings.TrimPrefix(raw, "cached("), ")")
	at := between.FindAllStringIndex(inner, -1)
	if !closed || len(at) != 1 {
		return URL{}, errors.New("write cached(memcached://..., mysql://...): the cache, a comma, the table")
	}
	cache, err := Parse(strings.TrimSpace(inner[:at[0][0]]))
	if err != nil {
		return URL{}, err
	}
	table, err := Parse(strings.TrimSpace(inner[at[0][0]+1:]))
	if err != nil {
		return URL{}, err
	}
	if !strings.HasPrefix(cache.Scheme(), "memcached") || !isSQL(table.Scheme()) {
		return URL{}, fmt.Errorf("cached(%s://..., %s://...) is not in this version: the cache is memcached, and the table mysql or postgres", cache.Scheme(), table.Scheme())
	}
	return URL{u: table.u, cache: &cache}, nil
}

// Parse reads a store URL and refuses what no store of this version is named by. The store itself is not asked.
func Parse(raw string) (URL, error) {
	if strings.HasPrefix(raw, "cached(") {
		return parseCached(raw)
	}
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok {
		return URL{}, errors.New("not a store URL: write scheme://..., such as redis://127.0.0.1:6379/0 or file:///var/lib/php/sessions?lifetime=1440s")
	}
	if openers[scheme] == nil {
		return URL{}, fmt.Errorf("there is no store %q; did you mean %s://?", scheme, nearest(scheme, Schemes()))
	}
	u, err := url.Parse(raw)
	if err != nil { // whose text quotes the URL, password and all
		return URL{}, fmt.Errorf("the %s URL cannot be read: in a password write @ as %%40, / as %%2F, : as %%3A, %% as %%25", scheme)
	}
	switch {
	case isRedis(scheme):
		o, err := redis.ParseURL(u)
		if err != nil {
			return URL{}, err
		}
		if o.Username != "" && o.Password == "" && o.PasswordFile == "" {
			return URL{}, errors.New("the URL has a user and no password: add password_file=")
		}
	case isSQL(scheme):
		if _, _, err := sqltable.ParseURL(u, sqltable.Options{Lifetime: time.Hour}); err != nil { // the site may name it
			return URL{}, err
		}
	case strings.HasPrefix(scheme, "memcached"):
		if _, err := memcached.ParseURL(u, memcached.Options{}); err != nil {
			return URL{}, err
		}
	case scheme == "cassandra":
		if _, err := cassandra.ParseURL(u, cassandra.Options{}); err != nil {
			return URL{}, err
		}
	case scheme == "file":
		if u.Host != "" || u.User != nil || !path.IsAbs(u.Path) {
			return URL{}, errors.New("write file:///absolute/path?layout=php&lifetime=1440s, with three slashes")
		}
	}
	return URL{u: u}, nil
}

func isRedis(scheme string) bool { return strings.HasPrefix(scheme, "redis") }
func isSQL(scheme string) bool   { return scheme == "mysql" || scheme == "postgres" }

// Schemes lists the schemes of this version, besides cached(...).
func Schemes() []string { return slices.Sorted(maps.Keys(openers)) }

// IsZero reports whether u names nothing.
func (u URL) IsZero() bool { return u.u == nil }

// Scheme returns the URL's scheme, "cached" of cached(cache, table), "" of the zero URL.
func (u URL) Scheme() string {
	switch {
	case u.u == nil:
		return ""
	case u.cache != nil:
		return "cached"
	}
	return u.u.Scheme
}

// Param returns a parameter, of cached(cache, table) the table's, "" where it is not given.
func (u URL) Param(name string) string {
	if u.u == nil {
		return ""
	}
	return u.u.Query().Get(name)
}

// HasPassword reports whether a password stands in the URL itself.
func (u URL) HasPassword() bool {
	if u.u == nil {
		return false
	}
	_, ok := u.u.User.Password()
	return ok || u.u.Query().Has("sentinel_password")
}

// Database returns the number of a Redis database, 0 of anything else.
func (u URL) Database() int { return u.redis().Database }

// Master returns the name by which Sentinels know the primary, "" of anything else.
func (u URL) Master() string { return u.redis().Master }

// redis returns what the URL of a Redis says, nothing of anything else.
func (u URL) redis() redis.Options {
	if !isRedis(u.Scheme()) {
		return redis.Options{}
	}
	o, err := redis.ParseURL(u.u)
	if err != nil {
		return redis.Options{} // Parse refused it
	}
	return o
}

// Place says where the store lies, behind a cache or not, the same for two URLs of one place as far as their text shows it; ""
// where no two stores lie in one place.
func (u URL) Place() string {
	if u.cache != nil {
		return URL{u: u.u}.Place()
	}
	switch u.Scheme() {
	case "redis", "rediss":
		host := u.u.Hostname()
		if ip := net.ParseIP(host); host == "" || host == "localhost" || ip != nil && ip.IsLoopback() {
			host = "127.0.0.1"
		}
		port := u.u.Port()
		if port == "" {
			port = "6379"
		}
		return fmt.Sprintf("redis %s/%d", net.JoinHostPort(host, port), u.Database())
	case "redis+unix":
		return fmt.Sprintf("redis %s/%d", path.Clean(u.u.Path), u.Database())
	case "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster":
		hosts := strings.Split(u.u.Host, ",")
		slices.Sort(hosts)
		return fmt.Sprintf("redis %s%s", strings.Join(hosts, ","), strings.TrimSuffix(path.Clean(u.u.Path), "/0"))
	case "memcached", "memcached+unix":
		return "memcached " + u.u.Host + path.Clean(u.u.Path)
	case "cassandra":
		hosts := strings.Split(u.u.Host, ",")
		slices.Sort(hosts)
		return fmt.Sprintf("cassandra %s%s %s", strings.Join(hosts, ","), path.Clean(u.u.Path), u.Param("table"))
	case "file":
		return "file " + path.Clean(u.u.Path)
	case "mysql", "postgres":
		return fmt.Sprintf("%s %s%s %s", u.u.Scheme, u.u.Host, path.Clean(u.u.Path), u.Param("table")+u.Param("preset"))
	}
	return ""
}

func (u URL) String() string {
	if u.u == nil {
		return ""
	}
	text := u.u.Scheme + "://" + u.u.Host + u.u.Path
	if u.cache != nil {
		return "cached(" + u.cache.String() + ", " + text + ")"
	}
	return text
}

// GoString is String: %#v must not show more.
func (u URL) GoString() string { return u.String() }

// MarshalText is String, for logs.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Store opens what u names. A server that does not answer is no error: operations fail until it does.
func Store(ctx context.Context, u URL, opt Options) (store.Store, error) {
	if u.u == nil {
		return nil, errors.New("no store URL")
	}
	if u.cache != nil {
		return openCached(ctx, u, opt)
	}
	return openers[u.u.Scheme](ctx, u.u, opt)
}

// Origin opens a store that sessions can be moved away from.
func Origin(ctx context.Context, u URL, opt Options) (store.Origin, error) {
	opt.origin = true
	return as[store.Origin](ctx, u, opt, "an origin: it can hold neither identity nor seal; origins of this version are file, memcached, memcached+unix, cassandra, mysql, postgres, cached(memcached, mysql or postgres), redis, redis-sentinel, redis-cluster, these three with rediss, too, redis+unix and memory")
}

// Target opens a store that sessions can be moved to.
func Target(ctx context.Context, u URL, opt Options) (store.Target, error) {
	return as[store.Target](ctx, u, opt, "a target: it can hold neither control record nor markers; targets of this version are redis, redis-sentinel, redis-cluster, all of them with rediss, too, redis+unix and memory")
}

func as[T store.Store](ctx context.Context, u URL, opt Options, what string) (none T, err error) {
	s, err := Store(ctx, u, opt)
	if err != nil {
		return none, err
	}
	t, ok := s.(T)
	if !ok {
		return none, errors.Join(fmt.Errorf("a %s store cannot be %s", u.Scheme(), what), s.Close())
	}
	return t, nil
}

// nearest returns the name that takes the fewest edits to become word.
func nearest(word string, names []string) (best string) {
	least := 1 << 30
	for _, name := range names {
		row := make([]int, len(name)+1)
		for j := range row {
			row[j] = j
		}
		for i := range len(word) {
			diagonal := row[0]
			row[0] = i + 1
			for j := range len(name) {
				cost := diagonal
				if word[i] != name[j] {
					cost++
				}
				diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
			}
		}
		if row[len(name)] < least {
			best, least = name, row[len(name)]
		}
	}
	return best
}
