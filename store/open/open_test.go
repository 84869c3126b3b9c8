package open

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "s3cr3t-Pa55"

func TestParseRefuses(t *testing.T) {
	for raw, want := range map[string]string{
		"":                                         "not a store URL",
		"127.0.0.1:6379":                           "not a store URL",
		"rediss//h":                                "not a store URL",
		"reddis://:" + secret + "@h":               `there is no store "reddis"; did you mean redis://?`,
		"fiel:///x":                                "did you mean file://?",
		"mysql://u:" + secret + "@h/d":             "say which table it is",
		"mysql://h/d?preset=rr":                    "there is no preset",
		"postgres://h/d?tabel=x":                   "no parameter",
		"postgres://h?preset=rt":                   "write postgres://user@host/database",
		"memcached://h1,h2?weights=1":              "there are 2 servers",
		"memcached://h1?client=phpredis":           "there is no client",
		"cassandra://h1,h2":                        "write cassandra://user@host",
		"cassandra://u:" + secret + "@h/k?tabel=x": "no parameter",
		"redis://:" + secret + "/x@h":              "the redis URL cannot be read: in a password write @ as %40",
		"redis://user@h":                           "a user and no password",
		"redis://h/zero":                           "number of a database",
		"redis://h?pasword_file=/x":                `did you mean "password_file"?`,
		"file://relative/dir":                      "three slashes",
		"file:relative":                            "not a store URL",
		"cached(memcached://h, mysql://h/d)":       "say which table it is",
		"cached(memcached://h, mysql://u:" + secret + "@h/d?tabel=x)":                          "no parameter",
		"cached(memcached://h,mysql://u:" + secret + "@h/d?preset=rt":                          "the cache, a comma, the table",
		"cached(memcached://h1,h2)":                                                            "the cache, a comma, the table",
		"cached(memcached://h, mysql://u:" + secret + "@h/d?preset=rt, mysql://h/d?preset=rt)": "the cache, a comma, the table",
		"cached(redis://:" + secret + "@h, mysql://h/d?preset=rt)":                             "the cache is memcached",
		"cached(cassandra://h/k, mysql://h/d?preset=rt)":                                       "the cache is memcached",
		"cached(memcached://h, file:///d)":                                                     "the table mysql or postgres",
	} {
		_, err := Parse(raw)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): got %v, want an error with %q", raw, err, want)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("Parse(%q) shows the password: %v", raw, err)
		}
	}
}

func parse(t *testing.T, raw string) URL {
	t.Helper()
	u, err := Parse(raw)
	if err != nil {
		t.Fatalf("Parse(%q): %v", raw, err)
	}
	return u
}

func TestAURLShowsNoPassword(t *testing.T) {
	u := parse(t, "redis://user:"+secret+"@h:1/2?prefix=p")
	b, _ := u.MarshalText()
	text := fmt.Sprintf("%v %+v %#v %s %+v", u, u, u, b, struct{ Target URL }{u})
	if strings.Contains(text, secret) || !strings.Contains(text, "redis://h:1/2") {
		t.Errorf("got %s", text)
	}
	if !u.HasPassword() || u.Database() != 2 || u.Param("prefix") != "p" || u.Scheme() != "redis" {
		t.Errorf("got password %v, database %d, prefix %q, scheme %q", u.HasPassword(), u.Database(), u.Param("prefix"), u.Scheme())
	}
}

func TestACacheBeforeATable(t *testing.T) {
	u := parse(t, "cached(memcached://h1:11211,h2:11211?weights=1,2&prefix=sess_,  mysql://u:"+secret+"@h/d?table=t&id=i&data=d&lifetime=1h)")
	b, _ := u.MarshalText()
	text := fmt.Sprintf("%v %+v %#v %s %+v", u, u, u, b, struct{ Origin URL }{u})
	if strings.Contains(text, secret) || !strings.Contains(text, "cached(memcached://h1:11211,h2:11211, mysql://h/d)") {
		t.Errorf("got %s", text)
	}
	table := parse(t, "mysql://u@h/d?table=t&id=i&data=d&lifetime=1h")
	if !u.HasPassword() || !u.IsSQL() || u.IsRedis() || u.Param("lifetime") != "1h" || u.Scheme() != "cached" || u.Place() != table.Place() {
		t.Errorf("got password %v, lifetime %q, scheme %q, place %q", u.HasPassword(), u.Param("lifetime"), u.Scheme(), u.Place())
	}

	my, m := testserver.MariaDB(t), testserver.Memcached(t)
	my.Exec("CREATE TABLE php_sessions (id VARCHAR(128) PRIMARY KEY, data MEDIUMBLOB NOT NULL, access INT UNSIGNED NOT NULL)")
	u = parse(t, "cached(memcached://"+m.Addr+"?client=memcached-object&prefix=sess_, "+my.URL("app")+"?table=php_sessions&id=id&data=data&expires=access&expires_kind=last-access)")
	s, err := Origin(t.Context(), u, Options{Lifetime: time.Hour, MaxValue: 100, Bound: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for size, want := range map[int]error{100: nil, 101: store.ErrInvalid} {
		rec := store.Record{Data: make([]byte, size), Expires: time.Now().Add(time.Minute)}
		if err := s.Save(t.Context(), "k", rec, store.Always); !errors.Is(err, want) {
			t.Errorf("Save of %d bytes: got %v, want %v", size, err, want)
		}
	}
	if n := my.Exec("SELECT LENGTH(data) FROM php_sessions WHERE id = 'k'"); strings.TrimSpace(n) != "100" {
		t.Errorf("the table has %q bytes", n)
	}
	m.Pause()
	began := time.Now()
	if err := s.Save(t.Context(), "k", store.Record{Data: []byte("x"), Expires: time.Now().Add(time.Minute)}, store.Always); !errors.Is(err, store.ErrUnavailable) || time.Since(began) > 2*time.Second {
		t.Errorf("with a cache that hangs: %v after %v", err, time.Since(began))
	}
	m.Resume()
	if _, err := Target(t.Context(), u, Options{Lifetime: time.Hour}); err == nil || !strings.Contains(err.Error(), "cannot be a target") {
		t.Errorf("as a target: %v", err)
	}
}

func TestPlace(t *testing.T) {
	for _, same := range [][]string{
		{"redis://127.0.0.1:6379/0", "redis://localhost", "rediss://[::1]:6379", "redis://:pw@127.0.0.1/?prefix=x"},
		{"redis+unix:///run/redis.sock", "redis+unix:///run//redis.sock?database=0"},
		{"file:///srv/s?lifetime=1s", "file:///srv/s/"},
	} {
		for _, raw := range same[1:] {
			if a, b := parse(t, same[0]).Place(), parse(t, raw).Place(); a != b {
				t.Errorf("%s lies at %q, %s at %q; want the same", same[0], a, raw, b)
			}
		}
	}
	if a, b := parse(t, "redis://h/0").Place(), parse(t, "redis://h/1").Place(); a == b {
		t.Errorf("two databases lie at one place: %q", a)
	}
}

func TestWhatCannotBeAnOrigin(t *testing.T) {
	for raw, want := range map[string]string{"redis-cluster://127.0.0.1:1?replay=1s": "replay= is not for an origin", "redis-sentinel://127.0.0.1:1/m?replay=5s": "replay= is not for an origin"} {
		if _, err := Origin(t.Context(), parse(t, raw), Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", raw, err)
		}
	}
	_, err := Target(t.Context(), parse(t, "file://"+t.TempDir()+"?lifetime=1s"), Options{})
	if err == nil || !strings.Contains(err.Error(), "cannot be a target") {
		t.Errorf("got %v", err)
	}
	if _, err := Target(t.Context(), URL{}, Options{}); err == nil {
		t.Error("the zero URL opens")
	}
}

func TestMemcachedIsAnOrigin(t *testing.T) {
	m := testserver.Memcached(t)
	u := parse(t, "memcached://"+m.Addr+"?client=php-memcache")
	s, err := Origin(t.Context(), u, Options{Lifetime: time.Hour, MaxValue: 100, Bound: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for size, want := range map[int]error{100: nil, 101: store.ErrInvalid} {
		rec := store.Record{Data: make([]byte, size), Expires: time.Now().Add(time.Minute)}
		if err := s.Save(t.Context(), "k", rec, store.Always); !errors.Is(err, want) {
			t.Errorf("Save of %d bytes: got %v, want %v", size, err, want)
		}
	}
	if _, err := Target(t.Context(), u, Options{}); err == nil || !strings.Contains(err.Error(), "cannot be a target") {
		t.Errorf("as a target: %v", err)
	}
}

func TestMemoryIsBoth(t *testing.T) {
	u := parse(t, "memory://")
	if _, err := Origin(t.Context(), u, Options{}); err != nil {
		t.Error(err)
	}
	if _, err := Target(t.Context(), u, Options{}); err != nil {
		t.Error(err)
	}
	if _, err := Store(t.Context(), parse(t, "memory://x"), Options{}); err == nil {
		t.Error("memory://x opens")
	}
}

func TestAFileStoreTakesWhatItsURLDoesNotSay(t *testing.T) {
	dir := t.TempDir()
	for raw, want := range map[string]time.Duration{"file://" + dir: time.Hour, "file://" + dir + "?lifetime=2h": 2 * time.Hour} {
		s, err := Origin(t.Context(), parse(t, raw), Options{Lifetime: time.Hour, MaxValue: 100, Bound: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := os.WriteFile(dir+"/sess_abc", []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Inspect(t.Context(), "abc")
		if left := time.Until(rec.Expires); err != nil || (left-want).Abs() > time.Minute {
			t.Errorf("%s: got %v left, %v, want %v", raw, left, err, want)
		}
		if _, err := s.Load(t.Context(), strings.Repeat("x", 300)); err == nil {
			t.Error("a name that no file can have")
		}
	}
	if _, err := Origin(t.Context(), parse(t, "file://"+dir), Options{}); err == nil || !strings.Contains(err.Error(), "lifetime") {
		t.Errorf("without a lifetime: got %v", err)
	}
	if _, err := Origin(t.Context(), parse(t, "file:///nowhere/at/all?lifetime=1s"), Options{}); err == nil || !strings.Contains(err.Error(), "save_path") {
		t.Errorf("a directory that is not there: got %v", err)
	}
}

func TestThePrefixInRedis(t *testing.T) {
	r := testserver.Redis(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	opt := Options{Prefix: "opt:", LockSuffix: ".l", Lifetime: time.Hour}
	for raw, want := range map[string]string{r.URL(): "opt:k", r.URL() + "/?prefix=url:": "url:k"} {
		target, err := Target(ctx, parse(t, raw), opt)
		origin, err2 := Origin(ctx, parse(t, raw), opt)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		for i, s := range []store.Store{target, origin} {
			if s.Capabilities().Seal != (i == 1) {
				t.Errorf("%s: %+v", raw, s.Capabilities())
			}
			if err := s.Save(ctx, "k", store.Record{Data: []byte{'0' + byte(i)}, Expires: time.Now().Add(time.Minute)}, store.Always); err != nil {
				t.Error(err)
			}
			if got := r.Do("GET", want); got != fmt.Sprint(i) {
				t.Errorf("%s: %s holds %v", raw, want, got)
			}
			if err := s.Lock(ctx, "k", fmt.Sprint("token", i), time.Minute); err != nil {
				t.Error(err)
			}
			if got := r.Do("GETDEL", want+".l"); got != fmt.Sprint("token", i) {
				t.Errorf("%s: the lock holds %v", raw, got)
			}
		}
		r.Do("PERSIST", want)
		if rec, err := origin.Inspect(ctx, "k"); err != nil || time.Until(rec.Expires) < 59*time.Minute {
			t.Errorf("a session without a deadline: %v, %v", rec.Expires, err)
		}
		if _, err := target.Inspect(ctx, "k"); err != nil {
			t.Error(err)
		}
		for _, s := range []store.Store{target, origin} {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// FuzzParse: no URL makes it panic, and what it takes can be shown.
func FuzzParse(f *testing.F) {
	for _, raw := range []string{"redis://u:p@h:1/2?prefix=x", "file:///x?lifetime=1s", "memory://", "cached(a, b)", "cached(memcached://h,h2, mysql://h/d?preset=rt)", "redis+unix:///s"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := Parse(raw)
		if err != nil {
			return
		}
		_ = fmt.Sprint(u, u.Place(), u.Database(), u.HasPassword(), u.Param("prefix"))
	})
}
