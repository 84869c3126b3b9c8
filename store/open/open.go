// Package open turns store URLs into stores. It is the only place that knows every back end by name.
//
//	redis://user:password@host:6379/0?password_file=...   rediss:// over TLS, redis+unix:///run/redis.sock?database=1
//	file:///var/lib/php/sessions?layout=php&lifetime=1440s
//	mysql://rt@127.0.0.1/rt5?preset=rt&lifetime=12h  postgres://app@db/app?table=sessions&id=sid&data=payload&expires=expire
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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
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
	// Lifetime is the deadline of session files, counted from their mtime. A file store needs one, here or in its URL.
	Lifetime time.Duration
	// MaxValue is the size in bytes of the largest session file. 0 is the back end's default.
	MaxValue int
	// Bound is the longest time an operation on a file may take. 0 is the back end's default.
	Bound time.Duration
	// Logger hears of connections lost and regained. nil is silence.
	Logger *slog.Logger
}

// An Opener makes a store of a URL.
type Opener func(ctx context.Context, u *url.URL, opt Options) (store.Store, error)

var openers = map[string]Opener{
	"redis":      openRedis,
	"rediss":     openRedis,
	"redis+unix": openRedis,
	"file":       openFile,
	"memory":     openMemory,
	"mysql":      openSQL,
	"postgres":   openSQL,
}

// later are the schemes that the documentation names and this version does not have.
var later = []string{"memcached", "cassandra", "redis-sentinel", "redis-cluster", "cached"}

func openRedis(ctx context.Context, u *url.URL, opt Options) (store.Store, error) {
	o, err := redis.ParseURL(u)
	if err != nil {
		return nil, err
	}
	if o.Prefix == "" {
		o.Prefix = opt.Prefix
	}
	if o.LockSuffix == "" {
		o.LockSuffix = opt.LockSuffix
	}
	o.Logger = opt.Logger
	return redis.Connect(ctx, o)
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

func openMemory(_ context.Context, u *url.URL, _ Options) (store.Store, error) {
	if u.Host != "" || u.Path != "" || u.RawQuery != "" {
		return nil, errors.New("store/memory: memory:// takes nothing more")
	}
	return memory.New(memory.Options{}), nil
}

// A URL names a store. Its String, which is what logs and errors show, has neither user nor parameters, so no password.
type URL struct{ u *url.URL }

// IsSQL reports whether the store is a table of a SQL server.
func (u URL) IsSQL() bool { return u.Scheme() == "mysql" || u.Scheme() == "postgres" }

// Parse reads a store URL and refuses what no store of this version is named by. The store itself is not asked.
func Parse(raw string) (URL, error) {
	scheme, _, ok := strings.Cut(raw, "://")
	if strings.HasPrefix(raw, "cached(") {
		scheme = "cached"
	} else if !ok {
		return URL{}, errors.New("not a store URL: write scheme://..., such as redis://127.0.0.1:6379/0 or file:///var/lib/php/sessions?lifetime=1440s")
	}
	if slices.Contains(later, scheme) {
		return URL{}, fmt.Errorf("%s stores are not in this version of sessile: it has %s", scheme, strings.Join(Schemes(), ", "))
	}
	if openers[scheme] == nil {
		return URL{}, fmt.Errorf("there is no store %q; did you mean %s://?", scheme, nearest(scheme, Schemes()))
	}
	u, err := url.Parse(raw)
	if err != nil { // whose text quotes the URL, password and all
		return URL{}, fmt.Errorf("the %s URL cannot be read: in a password write @ as %%40, / as %%2F, : as %%3A, %% as %%25", scheme)
	}
	switch scheme {
	case "redis", "rediss", "redis+unix":
		o, err := redis.ParseURL(u)
		if err != nil {
			return URL{}, err
		}
		if o.Username != "" && o.Password == "" && o.PasswordFile == "" {
			return URL{}, errors.New("the URL has a user and no password: add password_file=")
		}
	case "mysql", "postgres":
		if _, _, err := sqltable.ParseURL(u, sqltable.Options{Lifetime: time.Hour}); err != nil { // the site may name it
			return URL{}, err
		}
	case "file":
		if u.Host != "" || u.User != nil || !path.IsAbs(u.Path) {
			return URL{}, errors.New("write file:///absolute/path?layout=php&lifetime=1440s, with three slashes")
		}
	}
	return URL{u}, nil
}

// Schemes lists the schemes of this version.
func Schemes() []string { return slices.Sorted(maps.Keys(openers)) }

// IsZero reports whether u names nothing.
func (u URL) IsZero() bool { return u.u == nil }

// Scheme returns the URL's scheme, "" of the zero URL.
func (u URL) Scheme() string {
	if u.u == nil {
		return ""
	}
	return u.u.Scheme
}

// Param returns a parameter, "" where it is not given.
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
	return ok
}

// Database returns the number of a Redis database, 0 of anything else.
func (u URL) Database() int {
	if !strings.HasPrefix(u.Scheme(), "redis") {
		return 0
	}
	o, err := redis.ParseURL(u.u)
	if err != nil {
		return 0 // Parse refused it
	}
	return o.Database
}

// Place says where the store lies, the same for two URLs of one place as far as their text shows it; "" where no two
// stores lie in one place.
func (u URL) Place() string {
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
	return u.u.Scheme + "://" + u.u.Host + u.u.Path
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
	return openers[u.u.Scheme](ctx, u.u, opt)
}

// Origin opens a store that sessions can be moved away from.
func Origin(ctx context.Context, u URL, opt Options) (store.Origin, error) {
	return as[store.Origin](ctx, u, opt, "an origin: it can hold neither identity nor seal; origins of this version are file, mysql, postgres and memory")
}

// Target opens a store that sessions can be moved to.
func Target(ctx context.Context, u URL, opt Options) (store.Target, error) {
	return as[store.Target](ctx, u, opt, "a target: it can hold neither control record nor markers; targets of this version are redis, rediss, redis+unix and memory")
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
