package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store/open"
)

// A Setting is one thing that can be said by a flag, by the environment and by sessile.yaml, under one name:
// `--max-value`, `SESSILE_MAX_VALUE` and `max-value:`.
type Setting struct {
	Name    string
	Default string // "": none, or what Help says
	Help    string // for --help and docs/configuration.md
	Site    bool   // belongs to a site; the others belong to the daemon
	kind
}

// Env is the setting's name in the environment.
func (s Setting) Env() string {
	return "SESSILE_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// A kind says what values a setting takes and where they go.
type kind struct {
	Takes string // for people: unit and limits
	List  bool   // several values: the flag repeated, words in the environment, a list in the file
	Bool  bool   // the flag may stand alone

	set func(c *Config, s *Site, values []string) error
}

// Settings lists every setting, those of the daemon first.
func Settings() []Setting { return append(append([]Setting(nil), daemonSettings...), siteSettings...) }

var daemonSettings = []Setting{
	{"admin", "127.0.0.1:6480", "where the admin API listens and `migrate` looks for it: host:port, unix:/path, or off; beyond the loopback address it needs " +
		"admin-token-file, admin-cert and admin-key, and `migrate` is told https://host:port", false,
		text("host:port, unix:/path, off", nil, func(c *Config, _ *Site) *string { return &c.Admin.Address })},
	{"admin-token-file", "", "file with the token, 16 characters at least, that the admin API asks for", false,
		text("file", nil, func(c *Config, _ *Site) *string { return &c.Admin.TokenFile })},
	{"admin-cert", "", "certificate of the admin API (PEM)", false,
		text("file", nil, func(c *Config, _ *Site) *string { return &c.Admin.Cert })},
	{"admin-key", "", "key of admin-cert (PEM)", false,
		text("file", nil, func(c *Config, _ *Site) *string { return &c.Admin.Key })},
	{"admin-ca", "", "what `migrate` trusts besides the system's authorities when it talks to an admin API over TLS (PEM)", false,
		text("file", nil, func(c *Config, _ *Site) *string { return &c.Admin.CA })},
	{"gateway", "", "this gateway's name in a fleet, unique there; by default the host's name and something random", false,
		text("name", nameRule, func(c *Config, _ *Site) *string { return &c.Gateway })},
	{"log-level", "info", "least level that is logged", false, logLevel},
	{"log-format", "text", "format of the log on stderr", false, oneOf(func(c *Config) *string { return &c.LogFormat }, "text", "json")},
	{"drain", "30s", "how long SIGTERM lets clients finish before they are cut off", false,
		duration(0, 10*time.Minute, func(c *Config, _ *Site) *time.Duration { return &c.Drain })},
}

var siteSettings = []Setting{
	{"name", "default", "the site's name in logs, metrics and the admin API", true,
		text("name", nameRule, func(_ *Config, s *Site) *string { return &s.Name })},
	{"listen", "", "where clients connect: redis://host:port, redis+unix:///path?mode=0660&owner=user:group, " +
		"redis+tls://host:port?cert=FILE&key=FILE&client_ca=FILE, fd://3 or fd://name for a socket of systemd; for clients of memcached " +
		"memcached://host:port?client=php-memcached&prefix=memc.sess.key., and memcached+unix, memcached+tls, memcached+fd", true,
		list("listen URL", func(s *Site) *[]string { return &s.Listen })},
	{"origin", "", "the store that sessions are moved away from: file:///var/lib/php/sessions?layout=php&lifetime=1440s, mysql://..., postgres://..., redis://old:6379/0, memcached://h1:11211,h2:11211, cassandra://h1,h2:9042/keyspace, cached(memcached://..., mysql://...)", true,
		storeURL(func(s *Site) *open.URL { return &s.Origin })},
	{"target", "", "the store that sessions are moved to, or, without an origin, where they are: redis://127.0.0.1:6379/0, redis-sentinel://s1:26379,s2:26379,s3:26379/mymaster/0, redis-cluster://n1:6379,n2:6379", true,
		storeURL(func(s *Site) *open.URL { return &s.Target })},
	{"origin-key", "", "what the client puts before the session id: PHPREDIS_SESSION:. Files, tables, memcached and Cassandra do not have it; an origin that is Redis has, unless its URL says another prefix=", true,
		text("text", keyRule, func(_ *Config, s *Site) *string { return &s.OriginKey })},
	{"target-key", "", "what stands before the session id in the target; by default what the client puts there (origin-key)", true,
		text("text", keyRule, func(_ *Config, s *Site) *string { return &s.TargetKey })},
	{"workflow", "", "the name of the site's migration; by default the site's name", true,
		text("name", nameRule, func(_ *Config, s *Site) *string { return &s.Migrate.Workflow })},
	{"database", "", "the number that clients SELECT; by default that of the origin, if it is Redis, or the target's", true,
		count(0, 1<<20, func(s *Site) *int { return &s.Database })},
	{"sentinel-master", "", "the name that SENTINEL MASTERS lists, in which redis-py looks for the one it was given; to all else any name is right. By default the " +
		"target's, or mymaster", true,
		text("name", nameRule, func(_ *Config, s *Site) *string { return &s.SentinelMaster })},
	{"users", "", "who may log in, as name:password, `default:password` for clients that send a password only; two passwords of one name during a rotation. " +
		"Without users any password is accepted", true, users},
	{"insecure", "false", "listen without users where others can reach us", true,
		boolean(func(s *Site) *bool { return &s.Insecure })},
	{"lifetime", "", "the lifetime of a session for which the client names none, of session files whose URL names none, and of sessions in a Redis, memcached or Cassandra origin that have no deadline; without it such a write is refused", true,
		duration(time.Second, 100*365*24*time.Hour, func(_ *Config, s *Site) *time.Duration { return &s.Lifetime })},
	{"sliding", "false", "a GET puts lifetime on the session anew, for clients that never name one", true,
		boolean(func(s *Site) *bool { return &s.Sliding })},
	{"lock-suffix", "_LOCK", "what the client puts behind a session's key to make its lock's", true,
		text("text", keyRule, func(_ *Config, s *Site) *string { return &s.LockSuffix })},
	{"access-set", "", "the key, as clients send it, of the one sorted set that is served: that of access times of a hand-written handler (ALL_SESSIONS). It lies in " +
		"the target under this name, whatever target-key says", true,
		text("key", keyRule, func(_ *Config, s *Site) *string { return &s.AccessSet })},
	{"extra-commands", "", "commands that go to the target as they are, where an application keeps its sessions in hashes (Spring Session: DEL EXISTS HGETALL HMSET " +
		"PEXPIREAT RENAME) or an index in sets: see docs/clients.md. What they write cannot be moved, so a site with an origin has none", true,
		list("command", func(s *Site) *[]string { return &s.ExtraCommands })},
	{"critical", "create,delete", "the writes that are answered only when the replicas have them, where the target has some (redis-sentinel, redis-cluster): create (the first " +
		"write of a session), delete, both, all or none", true,
		text("list of words", criticalRule, func(_ *Config, s *Site) *string { return &s.Critical })},
	{"hold", "10s", "how long a command waits for a store that is away before it fails; by default 15s where the origin is a SQL server", true,
		duration(0, time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.Hold })},
	{"lock-wait", "5s", "how long a request for a lock waits for it", true,
		duration(time.Millisecond, time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.LockWait })},
	{"lock-life", "10m", "the longest life of a lock, and the life of one that asks for none", true,
		duration(time.Second, 24*time.Hour, func(_ *Config, s *Site) *time.Duration { return &s.LockLife })},
	{"destroyed-memory", "2m", "how long a late write to a destroyed session is recognised", true,
		duration(time.Second, time.Hour, func(_ *Config, s *Site) *time.Duration { return &s.DestroyedMemory })},
	{"linger", "1s", "how long a draining gateway lets a page that used a connection go on with it; one that holds a lock has until `drain`", true,
		duration(0, time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.Linger })},
	{"max-value", "1MiB", "size of a session", true,
		size(1<<10, 512<<20, func(s *Site) *int { return &s.MaxValue })},
	{"max-key", "512B", "size of a key and of a lock's token", true,
		size(32, 64<<10, func(s *Site) *int { return &s.MaxKey })},
	{"max-args", "64", "arguments of a command", true,
		count(8, 1<<20, func(s *Site) *int { return &s.MaxArgs })},
	{"max-connections", "10000", "connections at a time", true,
		count(1, 1_000_000, func(s *Site) *int { return &s.MaxConnections })},
	{"max-output", "4MiB", "replies that a client asked for and does not read", true,
		size(64<<10, 1<<30, func(s *Site) *int { return &s.MaxOutput })},
	{"max-memory", "256MiB", "unfinished commands and unread replies of all connections together; at least four times max-value", true,
		size(1<<20, 64<<30, func(s *Site) *int { return &s.MaxMemory })},
	{"max-login-args", "10", "arguments of a command before login", true,
		count(4, 64, func(s *Site) *int { return &s.MaxLoginArgs })},
	{"max-login-size", "16KiB", "size of an argument before login", true,
		size(128, 1<<20, func(s *Site) *int { return &s.MaxLoginSize })},
	{"idle-timeout", "5m", "how long a connection may say nothing", true,
		duration(time.Second, 365*24*time.Hour, func(_ *Config, s *Site) *time.Duration { return &s.IdleTimeout })},
	{"command-timeout", "10s", "how long a command may take from its first byte to its last, a login from the connection's beginning, a client to read", true,
		duration(100*time.Millisecond, 10*time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.CommandTimeout })},
	{"bound", "2s", "the longest time an operation in the origin may take, by default 5s in a SQL server; a marker's lease is half a second more, a gateway's another second", true,
		duration(100*time.Millisecond, time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.Bound })},
	{"retreat-after", "1s", "how long requests are held in sync and live when the target is away, before the gateway goes back to the origin", true,
		duration(time.Millisecond, time.Minute, func(_ *Config, s *Site) *time.Duration { return &s.RetreatAfter })},
	{"shadow-share", "0.05", "share of the reads in dual-write and sync that are compared with the target", true, shadowShare},
	{"copy-queue", "10000", "copies to the target that may wait in dual-write; what does not fit is counted, and copied by the diff", true,
		count(1, 10_000_000, func(s *Site) *int { return &s.Migrate.Queue })},
	{"max-load", "0", "percent of the time that this gateway's walks over the origin (backfill, reconcile, diff, the gates, plan) may have a request open there, one at a time; " +
		"0: no bound but `workers`. `sessile migrate start --max-load` changes it while they run", true,
		count(0, 100, func(s *Site) *int { return &s.Migrate.MaxLoad })},
	{"workers", "4", "parallel workers of backfill, reconcile and diff", true,
		count(1, 256, func(s *Site) *int { return &s.Migrate.Workers })},
}

// one makes the setter of a setting that has a single value.
func one(read func(c *Config, s *Site, v string) error) func(*Config, *Site, []string) error {
	return func(c *Config, s *Site, values []string) error {
		if len(values) != 1 {
			return errors.New("takes one value, not a list")
		}
		if values[0] == "" {
			return errors.New("is empty")
		}
		return read(c, s, values[0])
	}
}

func text(takes string, rule func(string) error, at func(*Config, *Site) *string) kind {
	if rule == nil {
		rule = printableRule
	}
	return kind{Takes: takes, set: one(func(c *Config, s *Site, v string) error {
		*at(c, s) = v
		return rule(v)
	})}
}

func printableRule(v string) error {
	for _, r := range v {
		if !strconv.IsPrint(r) {
			return errors.New("has characters that cannot be printed")
		}
	}
	return nil
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// criticalRule is for gateway.Site's Critical.
func criticalRule(v string) error {
	for word := range strings.SplitSeq(v, ",") {
		if word := strings.TrimSpace(word); !slices.Contains([]string{"create", "delete", "all", "none"}, word) {
			return fmt.Errorf("%q is none of create, delete, all, none", word)
		}
	}
	return nil
}

func nameRule(v string) error {
	if !nameForm.MatchString(v) {
		return errors.New("is to have 1 to 64 of the characters A-Z a-z 0-9 . _ -, the first a letter or digit")
	}
	return nil
}

// keyRule is for what becomes part of a key in Redis.
func keyRule(v string) error {
	for i := range len(v) {
		switch c := v[i]; {
		case c == '{' || c == '}':
			return errors.New("has { or }: in a Redis Cluster they decide where a key lies")
		case c < 0x21 || c > 0x7e:
			return errors.New("has a space or a character that is not ASCII")
		}
	}
	switch {
	case len(v) > 256:
		return errors.New("has more than 256 characters")
	case strings.HasPrefix(v, "sessile:"):
		return errors.New("begins with sessile:, which is ours")
	}
	return nil
}

func oneOf(at func(*Config) *string, choices ...string) kind {
	return kind{Takes: strings.Join(choices, ", "), set: one(func(c *Config, _ *Site, v string) error {
		for _, choice := range choices {
			if v == choice {
				*at(c) = v
				return nil
			}
		}
		return fmt.Errorf("%+q: one of %s is wanted", v, strings.Join(choices, ", "))
	})}
}

var logLevel = kind{Takes: "debug, info, warn, error", set: one(func(c *Config, _ *Site, v string) error {
	level, ok := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}[v]
	if !ok {
		return fmt.Errorf("%+q: one of debug, info, warn, error is wanted", v)
	}
	c.LogLevel = level
	return nil
})}

func list(takes string, at func(*Site) *[]string) kind {
	return kind{Takes: takes, List: true, set: func(_ *Config, s *Site, values []string) error {
		for _, v := range values {
			if v == "" {
				return errors.New("is empty")
			}
		}
		*at(s) = values
		return nil
	}}
}

func storeURL(at func(*Site) *open.URL) kind {
	return kind{Takes: "store URL", set: one(func(_ *Config, s *Site, v string) (err error) {
		*at(s), err = open.Parse(v)
		return err
	})}
}

// users are given as name:password, so that a name has no colon; the file has a form of its own.
var users = kind{Takes: "name:password", List: true, set: func(_ *Config, s *Site, values []string) error {
	s.Users = nil
	at := map[string]int{}
	for _, v := range values {
		name, password, ok := strings.Cut(v, ":")
		if !ok || password == "" {
			return errors.New("is to be name:password")
		}
		if name == "" {
			name = "default"
		}
		i, known := at[name]
		if !known {
			i = len(s.Users)
			at[name] = i
			s.Users = append(s.Users, User{Name: name})
		}
		u := &s.Users[i]
		u.Passwords = append(u.Passwords, password)
	}
	return nil
}}

// boolean takes true and false only: YAML's no, off and y are traps.
func boolean(at func(*Site) *bool) kind {
	return kind{Takes: "true, false", Bool: true, set: one(func(_ *Config, s *Site, v string) error {
		if v != "true" && v != "false" {
			return fmt.Errorf("%+q: true or false is wanted", v)
		}
		*at(s) = v == "true"
		return nil
	})}
}

func count(lo, hi int, at func(*Site) *int) kind {
	return kind{Takes: fmt.Sprintf("%d to %d", lo, hi), set: one(func(_ *Config, s *Site, v string) error {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || int(n) < lo || int(n) > hi || v[0] == '+' || len(v) > 1 && v[0] == '0' {
			return fmt.Errorf("%+q: a number from %d to %d is wanted", v, lo, hi)
		}
		*at(s) = int(n)
		return nil
	})}
}

// duration reads 5s, 1m30s, 24m. A number without a unit is an error: one program's 5 are seconds, another's minutes.
// The structures that are filled take 0 for "the default", so 0s becomes the negative value that they take for none.
func duration(lo, hi time.Duration, at func(*Config, *Site) *time.Duration) kind {
	return kind{Takes: fmt.Sprintf("%s to %s", short(lo), short(hi)), set: one(func(c *Config, s *Site, v string) error {
		d, err := time.ParseDuration(v)
		if _, number := strconv.ParseFloat(v, 64); number == nil {
			return fmt.Errorf("%+q: which unit? for seconds write %ss", v, v)
		}
		if err != nil {
			return fmt.Errorf("%+q: a duration is wanted, such as 500ms, 30s, 5m, 24h", v)
		}
		if d < lo || d > hi {
			return fmt.Errorf("%+q: from %s to %s is wanted", v, short(lo), short(hi))
		}
		if d == 0 {
			d = -1
		}
		*at(c, s) = d
		return nil
	})}
}

// short writes a duration without the parts that are 0.
func short(d time.Duration) string {
	s := d.String()
	for _, end := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, end) {
			s = s[:len(s)-2]
		}
	}
	return s
}

var sizeUnits = []struct {
	name  string
	bytes int
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

// size reads 512B, 64KiB, 1MiB. 1k, 1KB and 1M are errors, because people do not agree on them.
func size(lo, hi int, at func(*Site) *int) kind {
	limits := fmt.Sprintf("from %s to %s is wanted", shortSize(lo), shortSize(hi))
	return kind{Takes: shortSize(lo) + " to " + shortSize(hi), set: one(func(_ *Config, s *Site, v string) error {
		for _, unit := range sizeUnits {
			number, ok := strings.CutSuffix(v, unit.name)
			n, err := strconv.ParseUint(number, 10, 63)
			if !ok || err != nil {
				continue
			}
			if n > math.MaxInt64/uint64(unit.bytes) || int(n)*unit.bytes < lo || int(n)*unit.bytes > hi {
				return fmt.Errorf("%+q: %s", v, limits)
			}
			*at(s) = int(n) * unit.bytes
			return nil
		}
		if _, err := strconv.ParseUint(v, 10, 63); err == nil {
			return fmt.Errorf("%+q: which unit? for bytes write %sB", v, v)
		}
		return fmt.Errorf("%+q: a size is wanted, such as 512B, 64KiB, 1MiB", v)
	})}
}

func shortSize(n int) string {
	for _, unit := range []int{2, 1, 0} {
		if u := sizeUnits[unit]; n >= u.bytes && n%u.bytes == 0 {
			return strconv.Itoa(n/u.bytes) + u.name
		}
	}
	return strconv.Itoa(n) + "B"
}

var shadowShare = kind{Takes: "0 to 1", set: one(func(_ *Config, s *Site, v string) error {
	share, err := strconv.ParseFloat(v, 64)
	if err != nil || !(share >= 0 && share <= 1) {
		return fmt.Errorf("%+q: a number from 0 to 1 is wanted", v)
	}
	if share == 0 {
		share = -1 // 0 would be the default
	}
	s.Migrate.ShadowShare = share
	return nil
})}
