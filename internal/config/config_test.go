package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/migrate"
)

// secret is a password that no message may show.
const secret = "s3cr3t-Pa55"

// write makes a file in a folder of its own.
func write(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// load loads and checks a configuration as `serve` does.
func load(t testing.TB, yaml string, environ []string, flags map[string][]string) (*Config, error) {
	t.Helper()
	src := Sources{Environ: environ, Flags: flags}
	if yaml != "" {
		src.File = write(t, "sessile.yaml", yaml, 0o600)
	}
	c, err := Load(src)
	if err == nil {
		err = c.Check(true)
	}
	return c, err
}

const plain = "listen: redis://127.0.0.1:6400\ntarget: redis://127.0.0.1:6379/0\n"

func TestTheFileOfTheDesign(t *testing.T) {
	c, err := load(t, "", nil, map[string][]string{
		"listen": {"redis://127.0.0.1:6400"}, "admin": {"127.0.0.1:6480"},
		"origin": {"file:///var/lib/php/sessions?layout=php&lifetime=1440s"}, "origin-key": {"PHPREDIS_SESSION:"},
		"target": {"redis://127.0.0.1:6379/3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Sites[0]
	if s.TargetKey != "PHPREDIS_SESSION:" || s.Database != 3 || s.Migrate.Workflow != "default" || s.Name != "default" {
		t.Errorf("got %+v", s)
	}
	if s.Migrate.Times != migrate.DefaultTimes(2*time.Second) {
		t.Errorf("got times %+v, want the defaults for 2s", s.Migrate.Times)
	}
	if s.MaxValue != 1<<20 || s.MaxKey != 512 || s.Hold != 10*time.Second || s.MaxConnections != 10000 || len(c.Warnings) != 0 {
		t.Errorf("got %+v, warnings %v", s, c.Warnings)
	}
}

func TestListenersForMemcached(t *testing.T) {
	for yaml, want := range map[string]string{
		"memcached://127.0.0.1:11211":                                 "",
		"memcached://127.0.0.1:11211?client=php-memcache&prefix=p.":   "",
		"memcached+unix:///run/sessile/m.sock?mode=0660":              "",
		"memcached+fd://sessile-memcached":                            "",
		"memcached://0.0.0.0:11211":                                   "open to others",
		"memcached://127.0.0.1":                                       "host:port",
		"memcache://127.0.0.1:11211":                                  "did you mean memcached://",
		"memcached+tls://0.0.0.0:11211?cert=c&key=k&client_ca=ca.pem": "",
	} {
		for key, warnings := range map[string]int{"target-key: 'PHPREDIS_SESSION:'": 0, "lifetime: 1h": 1} {
			c, err := load(t, "listen: '"+yaml+"'\ntarget: redis://127.0.0.1\n"+key+"\n", nil, nil)
			switch {
			case want == "" && (err != nil || len(c.Warnings) != warnings):
				t.Errorf("%s, %s: got %v, warnings %q, want %d", yaml, key, err, c.Warnings, warnings)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: got %v, want %q", yaml, err, want)
			}
		}
	}
}

// A SQL server has longer, unless it is said how long.
func TestTheNameOfTheMasterIsTheTargets(t *testing.T) {
	for yaml, want := range map[string]string{
		plain: "",
		"listen: redis://127.0.0.1:1\ntarget: redis-sentinel://s1,s2/sessions/0\n":                          "sessions",
		"listen: redis://127.0.0.1:1\ntarget: redis-sentinel://s1,s2/sessions/0\nsentinel-master: others\n": "others",
	} {
		c, err := load(t, yaml, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Sites[0].SentinelMaster; got != want {
			t.Errorf("%q: got %q, want %q", yaml, got, want)
		}
	}
}

func TestASQLServerHasFiveSeconds(t *testing.T) {
	for yaml, want := range map[string][2]time.Duration{
		"":                      {5 * time.Second, 15 * time.Second},
		"bound: 3s\nhold: 9s\n": {3 * time.Second, 9 * time.Second},
	} {
		c, err := load(t, plain+"origin: mysql://app@db/app?preset=yii2\n"+yaml, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s := c.Sites[0]; s.Bound != want[0] || s.Hold != want[1] || s.Migrate.Times != migrate.DefaultTimes(want[0]) {
			t.Errorf("%q: bound %v, hold %v, times %+v", yaml, s.Bound, s.Hold, s.Migrate.Times)
		}
	}
}

// From one Redis to another: to another server, another database, another prefix; two sites in one database.
func TestAnOriginThatIsRedis(t *testing.T) {
	for yaml, want := range map[string]struct {
		database  int
		targetKey string
		warnings  int
	}{
		"origin: redis://old\ntarget: redis://new\norigin-key: 'a:'\n":                      {0, "a:", 0},
		"origin: redis://h/3\ntarget: redis://h/4\norigin-key: 'a:'\n":                      {3, "a:", 1},
		"origin: redis://h/3\ntarget: redis://h/4\ndatabase: 4\n":                           {4, "", 0},
		"origin: redis://h\ntarget: redis://h\norigin-key: 'a:'\ntarget-key: 'b:'\n":        {0, "b:", 0},
		"origin: 'redis://h?prefix=a:'\ntarget: 'redis://h?prefix=b:'\n":                    {0, "b:", 0},
		"origin: redis+unix:///r.sock?prefix=a:&database=2\ntarget: redis+unix:///r.sock\n": {2, "", 1},
	} {
		c, err := load(t, "listen: redis://127.0.0.1:6400\n"+yaml, nil, nil)
		if err != nil {
			t.Errorf("%q: %v", yaml, err)
			continue
		}
		if s := c.Sites[0]; s.Database != want.database || s.TargetKey != want.targetKey || len(c.Warnings) != want.warnings {
			t.Errorf("%q: database %d, target-key %q, warnings %q; want %+v", yaml, s.Database, s.TargetKey, c.Warnings, want)
		}
	}
	if _, err := load(t, `
sites:
  - {name: a, listen: 'redis://127.0.0.1:1', origin: 'redis://h', origin-key: 'a:', target: 'redis://h/1'}
  - {name: b, listen: 'redis://127.0.0.1:2', origin: 'redis://h', origin-key: 'b:', target: 'redis://h/1'}
  - {name: c, listen: 'redis://127.0.0.1:3', target: 'redis://h?prefix=c:'}
`, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestAFlagGoesBeforeTheEnvironmentBeforeTheFileBeforeTheDefault(t *testing.T) {
	yaml := plain + "max-value: 2MiB\nhold: 2s\nlock-wait: 2s\n"
	env := []string{"SESSILE_HOLD=3s", "SESSILE_LOCK_WAIT=3s", "SESSILE_LISTEN=redis://127.0.0.1:1 redis://127.0.0.1:2", "SESSILE_TARGET="}
	c, err := load(t, yaml, env, map[string][]string{"lock-wait": {"4s"}})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Sites[0]
	if s.MaxValue != 2<<20 || s.Hold != 3*time.Second || s.LockWait != 4*time.Second || s.LockLife != 10*time.Minute {
		t.Errorf("got max-value %d, hold %v, lock-wait %v, lock-life %v; want 2MiB of the file, 3s of the environment, 4s of the flag, the default 10m",
			s.MaxValue, s.Hold, s.LockWait, s.LockLife)
	}
	if want := []string{"redis://127.0.0.1:1", "redis://127.0.0.1:2"}; !slices.Equal(s.Listen, want) {
		t.Errorf("listen: got %q, want %q", s.Listen, want)
	}
}

func TestSeveralSites(t *testing.T) {
	yaml := `
admin: unix:/run/sessile/admin.sock
drain: 5s
sites:
  - name: shop
    listen: [redis://127.0.0.1:6400, "redis+unix:///run/shop.sock"]
    origin: file:///srv/shop?lifetime=1440s
    target: redis://127.0.0.1/1
    origin-key: "PHPREDIS_SESSION:"
    users:
      - password: ` + secret + `
      - name: old
        passwords: [a, b]
  - name: wiki
    listen: redis://127.0.0.1:6401
    target: redis://127.0.0.1/2
    hold: 0s
`
	c, err := load(t, yaml, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	shop, wiki := c.Sites[0], c.Sites[1]
	if shop.Migrate.Workflow != "shop" || len(shop.Listen) != 2 || shop.Database != 1 || c.Drain != 5*time.Second || wiki.Hold >= 0 {
		t.Errorf("got %+v", c)
	}
	if want := []User{{"default", []string{secret}}, {"old", []string{"a", "b"}}}; !reflect.DeepEqual(shop.Users, want) {
		t.Errorf("users: got %v, want %v", shop.Users, want)
	}
	if text := fmt.Sprintf("%v %+v %#v", shop.Target, shop.Origin, shop.Target); strings.Contains(text, "lifetime") {
		t.Errorf("a store URL shows its parameters: %s", text)
	}
}

// TestMistakes is reliability.md c6, as far as it is about what there is: each mistake is an error that says where it
// stands and what to write.
func TestMistakes(t *testing.T) {
	secretFile := write(t, "secret", secret+"\n", 0o600)
	openFile := write(t, "open", secret+"\n", 0o644)
	emptyFile := write(t, "empty", "\n", 0o600)
	for _, c := range []struct {
		name, yaml string
		env        []string
		flags      map[string][]string
		want       string // in the error
	}{
		{name: "an empty file", yaml: " ", want: "nothing to serve"},
		{name: "a comment only", yaml: "# soon\n", want: "nothing to serve"},
		{name: "not UTF-8", yaml: plain + "name: \xff\n", want: "not plain UTF-8"},
		{name: "a byte order mark", yaml: "\ufeff" + plain, want: "byte order mark"},
		{name: "a NUL", yaml: plain + "name: a\x00b\n", want: "NUL"},
		{name: "an enormous file", yaml: plain + strings.Repeat("#\n", maxFile), want: "larger than"},
		{name: "an unknown key", yaml: plain + "origin-kye: x\n", want: `sessile.yaml:3: there is no setting "origin-kye"; did you mean origin-key?`},
		{name: "an underscore", yaml: plain + "origin_key: x\n", want: "did you mean origin-key?"},
		{name: "a look-alike letter", yaml: plain + "оrigin: x\n", want: `"\u043erigin"; did you mean origin?`},
		{name: "an unknown key of a site", yaml: "sites:\n- lsten: x\n", want: "sessile.yaml:2: there is no setting \"lsten\"; did you mean listen?"},
		{name: "an unknown key of a user", yaml: plain + "users:\n- pasword: " + secret + "\n", want: "sessile.yaml:4: there is no setting \"pasword\"; did you mean password?"},
		{name: "a key twice", yaml: plain + "hold: 1s\nhold: 2s\n", want: "sessile.yaml:4: "},
		{name: "a tab", yaml: "sites:\n\t- name: x\n", want: "sessile.yaml:2: "},
		{name: "a broken line with a password on it", yaml: plain + "users: '" + secret + "\n", want: "sessile.yaml:3: "},
		{name: "another broken line with a password on it", yaml: plain + "target: redis://:" + secret + "@h x: y\n", want: "sessile.yaml:"},
		{name: "several documents", yaml: plain + "---\nname: x\n", want: "several documents"},
		{name: "a list instead of a mapping", yaml: "- a\n", want: "sessile.yaml:1: key: value is wanted"},
		{name: "a mapping instead of a value", yaml: plain + "hold: {a: b}\n", want: "sessile.yaml:3: hold: takes one value"},
		{name: "a list instead of a value", yaml: plain + "hold: [1s, 2s]\n", want: "sessile.yaml:3: hold: takes one value"},
		{name: "a value instead of a list", yaml: "sites: x\n", want: "sites: a list is wanted"},
		{name: "no value", yaml: plain + "hold:\n", want: "sessile.yaml:3: hold: has no value"},
		{name: "an anchor", yaml: plain + "hold: &x 1s\n", want: "anchors"},
		{name: "an alias", yaml: plain + "hold: *x\n", want: "anchors"},
		{name: "a merge key", yaml: "<<: {hold: 1s}\n", want: "there is no setting"},
		{name: "a tag", yaml: plain + "hold: !!str 1s\n", want: "tags"},
		{name: "a number where a duration is wanted", yaml: plain + "hold: 5\n", want: `sessile.yaml:3: hold: "5": which unit? for seconds write 5s`},
		{name: "a negative duration", yaml: plain + "hold: -5s\n", want: "from 0s to 1m is wanted"},
		{name: "a zero that is no answer", yaml: plain + "lock-wait: 0s\n", want: "from 1ms to 1m is wanted"},
		{name: "a duration that overflows", yaml: plain + "idle-timeout: 9223372036855s\n", want: "a duration is wanted"},
		{name: "days", yaml: plain + "idle-timeout: 1d\n", want: "a duration is wanted"},
		{name: "infinity", yaml: plain + "idle-timeout: .inf\n", want: "a duration is wanted"},
		{name: "longer than PHP waits", yaml: plain + "lock-wait: 61s\n", want: "from 1ms to 1m is wanted"},
		{name: "an octal number", yaml: plain + "max-connections: 0644\n", want: "a number from 1 to 1000000 is wanted"},
		{name: "a number with underscores", yaml: plain + "max-connections: 1_000\n", want: `"1_000": a number`},
		{name: "no connections", yaml: plain + "max-connections: 0\n", want: "a number from 1"},
		{name: "fewer than no connections", yaml: plain + "max-connections: -1\n", want: "a number from 1"},
		{name: "a thousand million connections", yaml: plain + "max-connections: 1000000000\n", want: "a number from 1"},
		{name: "a boolean that YAML makes of a word", yaml: plain + "insecure: no\n", want: "true or false is wanted"},
		{name: "a size without a unit", yaml: plain + "max-value: 1048576\n", want: `which unit? for bytes write 1048576B`},
		{name: "1k", yaml: plain + "max-value: 1k\n", want: "a size is wanted"},
		{name: "1KB", yaml: plain + "max-value: 1KB\n", want: "a size is wanted"},
		{name: "1.5M", yaml: plain + "max-value: 1.5M\n", want: "a size is wanted"},
		{name: "a size that overflows", yaml: plain + "max-value: 9223372036854775807GiB\n", want: "from 1KiB to 512MiB is wanted"},
		{name: "a value larger than Redis takes", yaml: plain + "max-value: 513MiB\n", want: "from 1KiB to 512MiB"},
		{name: "values that no memory is left for", yaml: plain + "max-value: 100MiB\n", want: "max-memory: is to be at least four times max-value"},
		{name: "a log level", yaml: plain + "log-level: loud\n", want: "one of debug, info, warn, error"},
		{name: "a log format", yaml: plain + "log-format: xml\n", want: "one of text, json"},
		{name: "a share", yaml: plain + "shadow-share: 1.1\n", want: "from 0 to 1"},
		{name: "not a share", yaml: plain + "shadow-share: .nan\n", want: "from 0 to 1"},
		{name: "a name", yaml: plain + "name: a/b\n", want: "name: is to have"},

		{name: "no target", yaml: "listen: redis://127.0.0.1:6400\n", want: "target: is missing"},
		{name: "an origin and no target", yaml: "listen: redis://127.0.0.1:6400\norigin: file:///srv/s?lifetime=1s\n", want: "target: is missing: a site with an origin needs"},
		{name: "no listener", yaml: "target: redis://127.0.0.1\n", want: "listen: is missing"},
		{name: "an empty address", yaml: plain + "admin: ''\n", want: "admin: is empty"},
		{name: "no port", yaml: "listen: redis://127.0.0.1\ntarget: redis://h\n", want: "sessile.yaml:1: listen: \"127.0.0.1\" is not host:port"},
		{name: "port 0", yaml: "listen: redis://127.0.0.1:0\ntarget: redis://h\n", want: "a number from 1 to 65535"},
		{name: "port 70000", yaml: "listen: redis://127.0.0.1:70000\ntarget: redis://h\n", want: "a number from 1 to 65535"},
		{name: "IPv6 without brackets", yaml: "listen: redis://::1:6400\ntarget: redis://h\n", want: "listen: "},
		{name: "an unknown listener", yaml: "listen: rdis://127.0.0.1:1\ntarget: redis://h\n", want: "did you mean redis://"},
		{name: "two listeners at one address", yaml: "listen: [redis://127.0.0.1:1, redis://127.0.0.1:1]\ntarget: redis://h\n", want: "given twice"},
		{name: "everybody may come and nobody has to log in", yaml: "listen: redis://0.0.0.0:6400\ntarget: redis://h\n", want: "open to others and the site has no users"},
		{name: "the same without an address", yaml: "listen: redis://:6400\ntarget: redis://h\n", want: "open to others"},
		{name: "the same in IPv6", yaml: "listen: redis://[::]:6400\ntarget: redis://h\n", want: "open to others"},
		{name: "the same over TLS", yaml: "listen: redis+tls://10.0.0.1:6400?cert=a&key=b\ntarget: redis://h\n", want: "open to others"},

		{name: "an admin address for everybody", yaml: plain + "admin: 0.0.0.0:6480\n", want: "can be reached by others"},
		{name: "an admin address without a host", yaml: plain + "admin: :6480\n", want: "can be reached by others"},
		{name: "an admin address with a token and no TLS", yaml: plain + "admin: 10.0.0.1:6480\nadmin-token-file: /x\n", want: "can be reached by others"},
		{name: "an admin certificate without a key", yaml: plain + "admin-cert: /x\n", want: "go together"},
		{name: "an admin address without a port", yaml: plain + "admin: 127.0.0.1\n", want: "not host:port"},
		{name: "an admin socket with a long path", yaml: plain + "admin: unix:/" + strings.Repeat("a", 107) + "\n", want: "up to 107 bytes"},
		{name: "admin where a site listens", yaml: plain + "admin: 127.0.0.1:6400\n", want: "is where site default listens"},

		{name: "origin and target in one place", yaml: plain + "origin: redis://localhost\n", want: "same store as the origin"},
		{name: "two prefixes of one place that begin alike", yaml: plain + "origin: redis://localhost?prefix=a\ntarget-key: 'a:'\n", want: "begin alike"},
		{name: "one prefix for both, by the client's", yaml: plain + "origin: redis://localhost\norigin-key: 'a:'\n", want: "begin alike"},
		{name: "a hash tag in a prefix", yaml: plain + "origin-key: 'a{b}'\n", want: "in a Redis Cluster"},
		{name: "a hash tag in the target's prefix", yaml: plain + "target-key: '}'\n", want: "in a Redis Cluster"},
		{name: "a hash tag in the URL", yaml: "listen: redis://127.0.0.1:6400\ntarget: redis://h?prefix={\n", want: "prefix= has {"},
		{name: "two prefixes", yaml: "listen: redis://127.0.0.1:6400\ntarget: redis://h?prefix=a\ntarget-key: b\n", want: "another prefix="},
		{name: "our prefix", yaml: plain + "target-key: 'sessile:x'\n", want: "which is ours"},
		{name: "an unknown store", yaml: "target: rediis://" + secret + "@h\n", want: "did you mean redis://?"},
		{name: "a cache before no table", yaml: "origin: cached(memcached://h, mysql://" + secret + "@h/d)\n", want: "say which table it is"},
		{name: "a cache that is none", yaml: "origin: cached(redis://:" + secret + "@h, mysql://h/d?preset=rt)\n", want: "the cache is memcached"},
		{name: "a user without a password", yaml: "target: redis://somebody@h\n", want: "a user and no password"},
		{name: "a password that breaks the URL", yaml: "target: redis://:" + secret + "%zz@h\n", want: "%40"},
		{name: "a file store without a lifetime", yaml: plain + "origin: file:///srv/s\n", want: "needs a lifetime"},
		{name: "a relative file store", yaml: plain + "origin: file://srv/s?lifetime=1s\n", want: "three slashes"},
		{name: "sliding without a lifetime", yaml: plain + "sliding: true\n", want: "needs a lifetime"},

		{name: "two sites of one name", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h/1'}\n- {name: a, listen: 'redis://127.0.0.1:2', target: 'redis://h/2'}\n", want: "name of two sites"},
		{name: "two sites without names", yaml: "sites:\n- {listen: 'redis://127.0.0.1:1', target: 'redis://h/1'}\n- {listen: 'redis://127.0.0.1:2', target: 'redis://h/2'}\n", want: "needs a name"},
		{name: "two sites with one origin", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h/1', origin: 'file:///s?lifetime=1s'}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h/2', origin: 'file:///s/?lifetime=1s'}\n", want: "origin of site a"},
		{name: "two sites with one origin in Redis", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h/1', origin: 'redis://o?prefix=x'}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h/2', origin: 'redis://o', origin-key: xy}\n", want: "origin of site a"},
		{name: "a site's origin that is another one's target", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h'}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h/2', origin: 'redis://h?prefix=y'}\n", want: "origin: is the target of site a"},
		{name: "a site's target that is another one's origin", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h/1', origin: 'redis://h'}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h', target-key: y}\n", want: "target: is the origin of site a"},
		{name: "two sites with keys that overlap", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h', target-key: 'x'}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h:6379/0', target-key: 'xy'}\n", want: "keys that begin like these"},
		{name: "extra commands and an origin", yaml: plain + "origin: file:///srv/s?lifetime=1440s\nextra-commands: [HGETALL]\n", want: "without an origin"},
		{name: "extra commands and no Redis", yaml: "listen: redis://127.0.0.1:6400\ntarget: memory://\nextra-commands: [HGETALL]\n", want: "needs a target that is Redis"},
		{name: "extra commands and two prefixes", yaml: plain + "origin-key: 'a:'\ntarget-key: 'b:'\nextra-commands: [HGETALL]\n", want: "are to be the same"},
		{name: "extra commands that list a Cluster", yaml: "listen: redis://127.0.0.1:6400\ntarget: redis-cluster://h:1\nextra-commands: [HGETALL, keys]\n", want: "one of its nodes"},
		{name: "an access set of no Redis", yaml: "listen: redis://127.0.0.1:6400\ntarget: memory://\naccess-set: ALL\n", want: "needs a target that is Redis"},
		{name: "an access set that is a lock", yaml: plain + "access-set: ALL_LOCK\n", want: "ends in _LOCK"},
		{name: "an access set that is ours", yaml: plain + "access-set: 'sessile:x'\n", want: "which is ours"},
		{name: "an access set that a session could be", yaml: plain + "origin-key: 'a:'\ntarget-key: 'b:'\naccess-set: 'b:ALL'\n", want: "could take its place"},
		{name: "an access set and two lifetimes", yaml: plain + "origin: file:///srv/s?lifetime=1440s\nlifetime: 2h\naccess-set: ALL\n", want: "not longer than the origin's"},
		{name: "one access set of two sites", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h', target-key: 'x', access-set: ALL}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h', target-key: 'y', access-set: ALL}\n", want: "site a has keys that begin like it, or the same set"},
		{name: "an access set like another site's keys", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h', target-key: 'x', access-set: yALL}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h', target-key: 'y'}\n", want: "site a has keys that begin like it"},
		{name: "two sites with one workflow", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h', target-key: 'x', workflow: w}\n- {name: b, listen: 'redis://127.0.0.1:2', target: 'redis://h', target-key: 'y', workflow: w}\n", want: "workflow of site a"},
		{name: "two sites at one address", yaml: "sites:\n- {name: a, listen: 'redis://127.0.0.1:1', target: 'redis://h/1'}\n- {name: b, listen: 'redis://127.0.0.1:1', target: 'redis://h/2'}\n", want: "given twice (site a)"},
		{name: "a site beside sites", yaml: "sites:\n- {name: a}\norigin: x\n", want: "sessile.yaml:3: with sites: below it, origin belongs to one of them"},
		{name: "a flag for one of several sites", yaml: "sites:\n- {name: a}\n- {name: b}\n", flags: map[string][]string{"hold": {"1s"}}, want: "--hold: which of the 2 sites is meant?"},

		{name: "a user without a password in the file", yaml: plain + "users:\n- name: x\n", want: "sessile.yaml:4: a user without password"},
		{name: "an empty password", yaml: plain + "users:\n- password: ''\n", want: "an empty password"},
		{name: "a user with a colon", yaml: plain + "users:\n- {name: 'a:b', password: x}\n", want: "neither spaces nor a colon"},
		{name: "a password file that is not there", yaml: plain + "users:\n- password-file: /nowhere/x\n", want: "no such file"},
		{name: "a password file that everybody reads", yaml: plain + "users:\n- password-file: " + openFile + "\n", want: "0644, open to everybody: chmod"},
		{name: "an empty password file", yaml: plain + "users:\n- password-file: " + emptyFile + "\n", want: "is empty"},
		{name: "a store's password file that everybody reads", yaml: "listen: redis://127.0.0.1:1\ntarget: redis://h?password_file=" + openFile + "\n", want: "open to everybody"},
		{name: "a store's empty password file", yaml: "listen: redis://127.0.0.1:1\ntarget: redis://h?password_file=" + emptyFile + "\n", want: "is empty"},

		{name: "an environment variable", yaml: plain, env: []string{"SESSILE_HOLD=5"}, want: `SESSILE_HOLD: "5": which unit?`},
		{name: "a user in the environment", yaml: plain, env: []string{"SESSILE_USERS=" + secret}, want: "SESSILE_USERS: is to be name:password"},
		{name: "a flag", yaml: plain, flags: map[string][]string{"hold": {"5"}}, want: `--hold: "5": which unit?`},
		{name: "a flag twice", yaml: plain, flags: map[string][]string{"hold": {"5s", "6s"}}, want: "--hold: takes one value"},
		{name: "an empty flag", yaml: plain, flags: map[string][]string{"target": {""}}, want: "--target: is empty"},
		{name: "a mistake that another source covers", yaml: plain + "hold: 5\n", flags: map[string][]string{"hold": {"5s"}}, want: "sessile.yaml:3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.yaml, c.env, c.flags)
			if err == nil {
				t.Fatalf("no error, want one with %q", c.want)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want one with %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows a password: %q", err)
			}
			if strings.Contains(err.Error(), "\n") && !strings.Contains(c.yaml, "- {name") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
	if _, err := load(t, "listen: redis://127.0.0.1:1\ntarget: redis://h?password_file="+secretFile+"\n", nil, nil); err != nil {
		t.Errorf("a good password file: %v", err)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	for name, path := range map[string]string{"missing": "/nowhere/sessile.yaml", "a directory": t.TempDir()} {
		if _, err := Load(Sources{File: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error with its name", name, err)
		}
	}
	if _, err := Load(Sources{File: "/nowhere/sessile.yaml", Optional: true}); err != nil {
		t.Errorf("missing, and not asked for: %v", err)
	}
}

func TestAPasswordInAFileThatEverybodyReads(t *testing.T) {
	for _, yaml := range []string{
		plain + "users:\n- password: " + secret + "\n",
		"listen: redis://127.0.0.1:1\ntarget: redis://:" + secret + "@h\n",
	} {
		for mode, good := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: false, 0o602: false} {
			_, err := Load(Sources{File: write(t, "sessile.yaml", yaml, mode)})
			if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "chmod") {
				t.Errorf("mode %o: got %v, want an error: %v", mode, err, !good)
			}
		}
	}
	if _, err := Load(Sources{File: write(t, "sessile.yaml", plain, 0o644)}); err != nil {
		t.Errorf("without a password: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct {
		name  string
		env   []string
		flags map[string][]string
		want  string // "": none
	}{
		{"a password in a flag", nil, map[string][]string{"target": {"redis://:" + secret + "@h"}}, "--target has a password in it"},
		{"a password in a flag, behind a cache", nil, map[string][]string{"target": {"redis://h"}, "origin": {"cached(memcached://h, mysql://u:" + secret + "@h/d?preset=rt&lifetime=1h)"}},
			"--origin has a password in it"},
		{"a user in a flag", nil, map[string][]string{"users": {"default:" + secret}}, "--users has a password in it"},
		{"a password in the environment", []string{"SESSILE_TARGET=redis://:" + secret + "@h"}, nil, ""},
		{"a variable that is none", []string{"SESSILE_TAGRET=x"}, nil, "did you mean SESSILE_TARGET?"},
		{"a variable of somebody else", []string{"SESSILE_SOAK=1"}, nil, ""},
		{"another database", nil, map[string][]string{"database": {"4"}}, "clients SELECT 4"},
	} {
		got, err := load(t, plain, c.env, c.flags)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		text := strings.Join(got.Warnings, "\n")
		if c.want == "" && text != "" || !strings.Contains(text, c.want) || strings.Contains(text, secret) {
			t.Errorf("%s: got warnings %q, want %q", c.name, text, c.want)
		}
	}
}

func TestToken(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		good bool
	}{
		"good": {"0123456789abcdef\n", 0o600, true}, "short": {"0123\n", 0o600, false}, "open": {"0123456789abcdef\n", 0o644, false}, "empty": {"", 0o600, false},
	} {
		token, err := Admin{TokenFile: write(t, "token", c.text, c.mode)}.Token()
		if (err == nil) != c.good || c.good && token != "0123456789abcdef" {
			t.Errorf("%s: got %q, %v", name, token, err)
		}
	}
}

// Every setting has names of its own, and its default is one of the values that it takes.
func TestTheTable(t *testing.T) {
	seen := map[string]bool{"sites": true}
	for _, s := range Settings() {
		if seen[s.Name] || s.Help == "" || s.Takes == "" || strings.ToLower(s.Name) != s.Name {
			t.Errorf("setting %q", s.Name)
		}
		seen[s.Name] = true
	}
}

var update = flag.Bool("update", false, "write the table of docs/configuration.md")

func TestTheDocumentationHasTheTable(t *testing.T) {
	const path, begin, end = "../../docs/configuration.md", "<!-- settings: go test ./internal/config -update -->\n", "<!-- end -->\n"
	var b strings.Builder
	table := func(title string, settings []Setting) {
		fmt.Fprintf(&b, "### %s\n\n| `sessile.yaml`, flag | takes | default | |\n| --- | --- | --- | --- |\n", title)
		for _, s := range settings {
			def, takes := s.Default, s.Takes
			if def != "" {
				def = "`" + def + "`"
			}
			if s.List {
				takes += " (list)"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Name, takes, def, s.Help)
		}
		b.WriteString("\n")
	}
	table("The daemon", daemonSettings)
	table("A site", siteSettings)
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(doc), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	if want := "\n" + b.String(); old != want {
		if *update {
			if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Errorf("%s is not up to date: go test ./internal/config -update", path)
	}
}

// FuzzFile: no file makes the loader panic, and none that is refused shows a password.
func FuzzFile(f *testing.F) {
	f.Add(plain)
	f.Add("sites:\n- name: a\n  users:\n  - passwords: [x, 'y']\n")
	f.Add("a: &x {b: *x}\n<<: ? [")
	f.Add("hold: |\n  1s\n? !!map {}\n: - -\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			t.Skip() // the parser's time grows with the square of the nesting
		}
		path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Load(Sources{File: path}); err == nil {
			_ = c.Check(true)
		}
	})
}
