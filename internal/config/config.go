// Package config makes sites of sessile.yaml, the environment and flags, which say the same things. One table
// (settings.go) names each setting, what it takes, its default and where it goes. A flag goes before the environment,
// that before the file, the file before the default.
//
// Every mistake is an error that names where it stands and what to write instead. No error shows a password.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/open"
)

// DefaultFile is read, if it is there, where no other file is named.
const DefaultFile = "/etc/sessile/sessile.yaml"

// Config is what `sessile serve` goes by.
type Config struct {
	Admin     Admin
	Gateway   string // this gateway's name; "": the engine makes one
	LogLevel  slog.Level
	LogFormat string
	Drain     time.Duration // negative: none
	Sites     []Site

	// Warnings are for the log: what works and should not be.
	Warnings []string

	where map[string]string // where a setting of the daemon was said
}

// Admin is the admin API, for those who serve it and for those who call it.
type Admin struct {
	Address   string // host:port, unix:/path, https://host:port, or off
	TokenFile string
	Cert, Key string
	CA        string
}

// Site is one site: each field is the setting of its name. Durations that were said to be 0 are negative, since 0 means
// the default where they go.
type Site struct {
	Name   string
	Listen []string

	Origin, Target       open.URL // zero: none
	OriginKey, TargetKey string   // TargetKey is complete after Check
	Bound, RetreatAfter  time.Duration
	Migrate              migrate.Options // complete after Check, but for what the program adds

	Users      []User
	Insecure   bool
	Database   int
	LockSuffix string
	AccessSet  string
	Critical   string

	ExtraCommands []string

	SentinelMaster string

	Lifetime                                         time.Duration // 0: none
	Sliding                                          bool
	Hold, LockWait, LockLife                         time.Duration
	DestroyedMemory, Linger                          time.Duration
	IdleTimeout, CommandTimeout                      time.Duration
	MaxValue, MaxKey, MaxArgs, MaxConnections        int
	MaxOutput, MaxMemory, MaxLoginArgs, MaxLoginSize int

	where map[string]string // where a setting was said
}

// User may log in with any of its passwords.
type User struct {
	Name      string
	Passwords []string
}

// Sources are what a Config is made of.
type Sources struct {
	File     string // "": none
	Optional bool   // File need not be there, nor be readable for us
	Environ  []string
	Flags    map[string][]string // by setting, those that were given
}

// A said is one value, and where it was found.
type said struct {
	values []string
	where  string
}

// Load reads all sources. What it returns is right by itself; Check says whether it makes sense.
func Load(src Sources) (*Config, error) {
	c := &Config{where: map[string]string{}}
	f, err := c.readFile(src)
	if err != nil {
		return nil, err
	}
	env := map[string]said{}
	byEnv := map[string]Setting{}
	for _, s := range Settings() {
		byEnv[s.Env()] = s
	}
	for _, pair := range src.Environ {
		name, value, _ := strings.Cut(pair, "=")
		s, ok := byEnv[name]
		switch {
		case value == "":
		case ok && s.List:
			env[s.Name] = said{strings.Fields(value), name}
		case ok:
			env[s.Name] = said{[]string{value}, name}
		case strings.HasPrefix(name, "SESSILE_"):
			if near, edits := nearest(name, slices.Collect(maps.Keys(byEnv))); edits <= 2 {
				c.Warnings = append(c.Warnings, fmt.Sprintf("%+q is no setting; did you mean %s?", name, near))
			}
		}
	}
	flags := map[string]said{}
	for name, values := range src.Flags {
		flags[name] = said{values, "--" + name}
	}

	if err := c.apply(daemonSettings, nil, c.where, f.daemon, env, flags); err != nil {
		return nil, err
	}
	sites := f.sites
	outside := slices.ContainsFunc(siteSettings, func(s Setting) bool { return env[s.Name].where != "" || flags[s.Name].where != "" })
	switch {
	case len(sites) == 0 && outside:
		sites = []map[string]said{{}}
	case len(sites) > 1 && outside:
		for _, s := range siteSettings {
			if where := cmp.Or(flags[s.Name].where, env[s.Name].where); where != "" {
				return nil, fmt.Errorf("%s: which of the %d sites is meant? Say it in %s", where, len(sites), f.path)
			}
		}
	}
	for _, own := range sites {
		s := Site{where: map[string]string{}}
		if err := c.apply(siteSettings, &s, s.where, own, env, flags); err != nil {
			return nil, err
		}
		c.Sites = append(c.Sites, s)
	}
	return c, f.guardSecrets()
}

// apply sets every setting from all the sources that say it, so that a mistake is found even where another source goes
// before it.
func (c *Config) apply(settings []Setting, s *Site, where map[string]string, sources ...map[string]said) error {
	for _, set := range settings {
		if set.Default != "" {
			if err := set.set(c, s, []string{set.Default}); err != nil {
				return fmt.Errorf("the default of %s: %w", set.Name, err)
			}
		}
		for _, source := range sources {
			v, ok := source[set.Name]
			if !ok {
				continue
			}
			if err := set.set(c, s, v.values); err != nil {
				return fmt.Errorf("%s: %w", about(v.where, set.Name), err)
			}
			where[set.Name] = v.where
			if strings.HasPrefix(v.where, "--") && hasSecret(set.Name, v.values) {
				c.Warnings = append(c.Warnings, fmt.Sprintf("%s has a password in it, and every list of processes shows it: use %s, sessile.yaml or password_file=",
					v.where, set.Env()))
			}
		}
	}
	return nil
}

// about names a setting and where it was said, without saying it twice.
func about(where, name string) string {
	if where == "" || strings.HasPrefix(where, "--") || strings.HasPrefix(where, "SESSILE_") {
		return cmp.Or(where, name)
	}
	return where + ": " + name
}

func hasSecret(name string, values []string) bool {
	switch name {
	case "users":
		return true
	case "origin", "target":
		u, err := open.Parse(values[0])
		return err == nil && u.HasPassword()
	}
	return false
}

func (c *Config) errorf(name, format string, args ...any) error {
	return fmt.Errorf("%s: %w", about(c.where[name], name), fmt.Errorf(format, args...))
}

func (s *Site) errorf(name, format string, args ...any) error {
	where := about(s.where[name], name)
	if s.where[name] == "" {
		where = fmt.Sprintf("site %s: %s", s.Name, name)
	}
	return fmt.Errorf("%s: %w", where, fmt.Errorf(format, args...))
}

// Check refuses what cannot work, and completes what follows from the rest. With listen it asks for listeners, too, and
// for an admin address at which nobody else can change anything.
func (c *Config) Check(listen bool) error {
	if len(c.Sites) == 0 {
		return errors.New("there is nothing to serve: name at least --listen and --target, and --origin to move sessions from (or a sessile.yaml with --config)")
	}
	for i := range c.Sites {
		if err := c.Sites[i].check(c, listen); err != nil {
			return err
		}
	}
	if err := c.checkNeighbours(); err != nil || !listen {
		return err
	}
	return c.checkAdmin()
}

// shorter reports whether text, if it is a duration, is one below d.
func shorter(text string, d time.Duration) bool {
	given, err := time.ParseDuration(text)
	return err == nil && given < d
}

func (s *Site) check(c *Config, listen bool) error {
	switch {
	case s.Target.IsZero() && s.Origin.IsZero():
		return s.errorf("target", "is missing: where shall the sessions lie? Such as redis://127.0.0.1:6379/0")
	case s.Target.IsZero():
		return s.errorf("target", "is missing: a site with an origin needs the target of its move from the start; nothing is written to it before `sessile migrate create`")
	case s.Origin.Scheme() == "file" && s.Origin.Param("lifetime") == "" && s.Lifetime == 0:
		return s.errorf("origin", "needs a lifetime: PHP's session.gc_maxlifetime, as in file:///var/lib/php/sessions?layout=php&lifetime=1440s")
	case s.Sliding && s.Lifetime == 0:
		return s.errorf("sliding", "needs a lifetime")
	case s.AccessSet != "" && !s.Target.IsRedis():
		return s.errorf("access-set", "needs a target that is Redis")
	case s.AccessSet != "" && strings.HasSuffix(s.AccessSet, s.LockSuffix):
		return s.errorf("access-set", "ends in %s, as locks do", s.LockSuffix)
	case s.AccessSet != "" && shorter(s.Origin.Param("lifetime"), s.Lifetime):
		return s.errorf("access-set", "needs a lifetime that is not longer than the origin's lifetime=: by it one knows when a session was written, and who is to be collected")
	case len(s.ExtraCommands) > 0 && !s.Origin.IsZero():
		return s.errorf("extra-commands", "is for a site without an origin: what these commands write would not be moved. Once the move is complete, take away the origin")
	case len(s.ExtraCommands) > 0 && !s.Target.IsRedis():
		return s.errorf("extra-commands", "needs a target that is Redis")
	case s.MaxMemory < 4*s.MaxValue:
		return s.errorf("max-memory", "is to be at least four times max-value")
	}
	for _, u := range []open.URL{s.Origin, s.Target} {
		if file := u.Param("password_file"); file != "" {
			if _, err := readSecret(file); err != nil {
				return fmt.Errorf("password_file: %w", err)
			}
		}
	}

	if s.Migrate.Workflow == "" {
		s.Migrate.Workflow = s.Name
	}
	s.Migrate.Gateway = c.Gateway
	if s.Origin.IsSQL() { // a statement may wait for a row, and what waits for the origin for that
		s.unlessSaid("bound", &s.Bound, 5*time.Second)
		s.unlessSaid("hold", &s.Hold, 15*time.Second)
	}
	s.Migrate.Times = migrate.DefaultTimes(s.Bound)
	s.Migrate.Times.RetreatAfter = s.RetreatAfter
	inURL := s.Target.Param("prefix")
	if err := keyRule(inURL); err != nil {
		return s.errorf("target", "its prefix= %w", err)
	}
	if inURL != "" && s.TargetKey != "" && inURL != s.TargetKey {
		return s.errorf("target-key", "the target's URL has another prefix=")
	}
	s.TargetKey = cmp.Or(s.TargetKey, inURL, s.OriginKey)
	if overlap(s.Origin, s.originPrefix(), s.Target, s.TargetKey) {
		if s.Origin.IsRedis() {
			return s.errorf("target", "is the same store as the origin, and the sessions' names begin alike (with %q here, with %q there): "+
				"say target-key and, in the origin's URL, prefix=, or another database", s.TargetKey, s.originPrefix())
		}
		return s.errorf("target", "is the same store as the origin")
	}
	if s.AccessSet != "" && s.TargetKey != s.OriginKey && strings.HasPrefix(s.AccessSet, s.TargetKey) {
		return s.errorf("access-set", "begins like the sessions in the target (%s): one of them could take its place", s.TargetKey)
	}
	if len(s.ExtraCommands) > 0 && s.TargetKey != s.OriginKey {
		return s.errorf("extra-commands", "needs keys that lie in the target under the client's names: origin-key and target-key are to be the same")
	}
	if s.Target.Scheme() == "redis-cluster" && slices.ContainsFunc(s.ExtraCommands, func(c string) bool { return strings.EqualFold(c, "KEYS") || strings.EqualFold(c, "SCAN") }) {
		return s.errorf("extra-commands", "has KEYS or SCAN, which a Cluster answers for one of its nodes only")
	}
	s.SentinelMaster = cmp.Or(s.SentinelMaster, s.Target.Master())
	if _, said := s.where["database"]; !said {
		if s.Database = s.Target.Database(); s.Origin.IsRedis() { // where clients have been until now
			s.Database = s.Origin.Database()
		}
	}
	if n := s.Target.Database(); n != s.Database {
		c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: clients SELECT %d and the sessions lie in database %d of the target: after the move, clients have to be told", s.Name, s.Database, n))
	}
	if !listen {
		return nil
	}
	if len(s.Listen) == 0 {
		return s.errorf("listen", "is missing: where shall clients connect? Such as redis://127.0.0.1:6400")
	}
	for _, raw := range s.Listen {
		if err := s.checkListener(raw); err != nil {
			return s.errorf("listen", "%w", err)
		}
	}
	if s.TargetKey == "" && slices.ContainsFunc(s.Listen, func(raw string) bool { return strings.HasPrefix(raw, "memcached") }) {
		c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: the sessions lie in the target under their bare ids; PHP's redis handler looks for them under target-key PHPREDIS_SESSION:", s.Name))
	}
	return nil
}

// unlessSaid gives a setting another default.
func (s *Site) unlessSaid(name string, to *time.Duration, d time.Duration) {
	if _, said := s.where[name]; !said {
		*to = d
	}
}

// originPrefix is what stands before the session id in the origin: in Redis what the client puts there, unless the URL says
// otherwise.
func (s *Site) originPrefix() string {
	if !s.Origin.IsRedis() {
		return ""
	}
	return cmp.Or(s.Origin.Param("prefix"), s.OriginKey)
}

// overlap reports whether two stores are one, with sessions whose names begin alike.
func overlap(a open.URL, prefixA string, b open.URL, prefixB string) bool {
	return a.Place() != "" && a.Place() == b.Place() && (strings.HasPrefix(prefixA, prefixB) || strings.HasPrefix(prefixB, prefixA))
}

// checkListener finds what can be found without listening; gateway.ListenURL and Serve look at the rest.
func (s *Site) checkListener(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("not a URL: write redis://127.0.0.1:6400, with [brackets] around an IPv6 address")
	}
	schemes := []string{"redis", "redis+tls", "redis+unix", "memcached", "memcached+tls", "memcached+unix", "memcached+fd", "fd"}
	if !slices.Contains(schemes, u.Scheme) {
		near, _ := nearest(u.Scheme, schemes)
		return fmt.Errorf("%+q is no scheme to listen at; did you mean %s://?", u.Scheme, near)
	}
	if strings.HasSuffix(u.Scheme, "fd") || strings.HasSuffix(u.Scheme, "+unix") {
		return nil
	}
	if err := checkPort(u.Host); err != nil {
		return err
	}
	if isPublic(u.Hostname()) && len(s.Users) == 0 && !s.Insecure && u.Query().Get("client_ca") == "" {
		return fmt.Errorf("%s://%s is open to others and the site has no users: add users or client certificates (client_ca=), listen on 127.0.0.1 or a unix socket, or say insecure", u.Scheme, u.Host)
	}
	return nil
}

func checkPort(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%+q is not host:port, or [address]:port for IPv6", address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("port %+q: a number from 1 to 65535 is wanted", port)
	}
	return nil
}

// isPublic reports whether a host is known to be reached by others: "", an address that is not a loopback one. What a name
// resolves to is seen when it is listened at.
func isPublic(host string) bool {
	if host == "" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && !ip.Unmap().IsLoopback()
}

// checkNeighbours refuses sites that would write each other's sessions.
func (c *Config) checkNeighbours() error {
	listens := map[string]string{}
	for i := range c.Sites {
		s := &c.Sites[i]
		for j := range i {
			o := &c.Sites[j]
			place := s.Target.Place() != "" && s.Target.Place() == o.Target.Place()
			switch {
			case s.Name == o.Name:
				return s.errorf("name", "%s is the name of two sites", s.Name)
			case overlap(s.Origin, s.originPrefix(), o.Origin, o.originPrefix()):
				return s.errorf("origin", "is the origin of site %s, too", o.Name)
			case overlap(s.Origin, s.originPrefix(), o.Target, o.TargetKey):
				return s.errorf("origin", "is the target of site %s", o.Name)
			case overlap(s.Target, s.TargetKey, o.Origin, o.originPrefix()):
				return s.errorf("target", "is the origin of site %s", o.Name)
			case place && s.Migrate.Workflow == o.Migrate.Workflow:
				return s.errorf("workflow", "%s is the workflow of site %s, too, in the same target", s.Migrate.Workflow, o.Name)
			case overlap(s.Target, s.TargetKey, o.Target, o.TargetKey):
				return s.errorf("target-key", "in the same target, site %s has keys that begin like these: give each a prefix or a database of its own", o.Name)
			case place && s.AccessSet != "" && (s.AccessSet == o.AccessSet || strings.HasPrefix(s.AccessSet, o.TargetKey)),
				place && o.AccessSet != "" && strings.HasPrefix(o.AccessSet, s.TargetKey):
				return s.errorf("access-set", "in the same target, site %s has keys that begin like it, or the same set: give each site a database of its own", o.Name)
			}
		}
		for _, l := range s.Listen {
			if other, ok := listens[l]; ok {
				return s.errorf("listen", "%s is given twice (site %s)", l, other)
			}
			listens[l] = s.Name
		}
	}
	return nil
}

func (c *Config) checkAdmin() error {
	a := &c.Admin
	if a.Address == "off" {
		return nil
	}
	if path, ok := strings.CutPrefix(a.Address, "unix:"); ok {
		if len(path) == 0 || path[0] != '/' || len(path) > 107 {
			return c.errorf("admin", "unix: is followed by an absolute path of up to 107 bytes")
		}
		return nil
	}
	if err := checkPort(a.Address); err != nil {
		return c.errorf("admin", "%w", err)
	}
	if (a.Cert == "") != (a.Key == "") {
		return c.errorf("admin-cert", "admin-cert and admin-key go together")
	}
	host, _, _ := net.SplitHostPort(a.Address)
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) && (a.Cert == "" || a.TokenFile == "") {
		return c.errorf("admin", "%s can be reached by others: it needs admin-token-file, admin-cert and admin-key, or use 127.0.0.1:6480 or unix:/path", a.Address)
	}
	for _, s := range c.Sites {
		if slices.Contains(s.Listen, "redis://"+a.Address) {
			return c.errorf("admin", "%s is where site %s listens", a.Address, s.Name)
		}
	}
	return nil
}

// Token reads the admin token; "" where none is configured.
func (a Admin) Token() (string, error) {
	if a.TokenFile == "" {
		return "", nil
	}
	token, err := readSecret(a.TokenFile)
	if err == nil && len(token) < 16 {
		err = fmt.Errorf("%s: a token has 16 characters at least; `openssl rand -hex 32` makes one", a.TokenFile)
	}
	if err != nil {
		return "", fmt.Errorf("admin-token-file: %w", err)
	}
	return token, nil
}

// readSecret reads a file that holds a secret, without the line feed at its end. One that everybody can read is
// refused.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := private(path, info); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}

// private refuses a file that everybody on the machine can read or write.
func private(path string, info fs.FileInfo) error {
	if mode := info.Mode(); mode.IsRegular() && mode&0o007 != 0 {
		return fmt.Errorf("%s holds a secret and its mode is %04o, open to everybody: chmod o= %s", path, mode.Perm(), path)
	}
	return nil
}

// nearest returns the name that takes the fewest edits to become word, and how many.
func nearest(word string, names []string) (best string, edits int) {
	edits = 1 << 30
	slices.Sort(names)
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
		if row[len(name)] < edits {
			best, edits = name, row[len(name)]
		}
	}
	return best, edits
}

// Nearest returns the name that word was probably meant to be.
func Nearest(word string, names []string) string {
	best, _ := nearest(word, names)
	return best
}
