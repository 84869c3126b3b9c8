package testapp

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// SessionStore is what keeps an application's sessions in Redis: a store for a framework, on a client library.
type SessionStore struct {
	Name string
	Key  string // what it puts before the id
	Pass string // the commands that its site has to pass on
	// NoTTL: it names no lifetime.
	NoTTL bool

	start func(t testing.TB, url, kept string) *exec.Cmd
}

// SessionStores are all of them but PHP's own. Laravel is among Apps.
var SessionStores = []SessionStore{
	{Name: "connect-redis on node-redis 5", Key: "sess:", start: nodeStore("redis")},
	{Name: "connect-redis on node-redis 5 with RESP3", Key: "sess:", start: nodeStore("redis, RESP3")},
	{Name: "connect-redis on node-redis 6", Key: "sess:", start: nodeStore("redis-6")},
	{Name: "connect-redis on ioredis", Key: "sess:", start: nodeStore("ioredis")},
	{Name: "Django's cache sessions in its RedisCache", Key: ":1:django.contrib.sessions.cache", start: djangoStore("Django", "cache")},
	{Name: "Django's cached_db sessions in its RedisCache", Key: ":1:django.contrib.sessions.cached_db", start: djangoStore("Django", "cached_db")},
	{Name: "Django's cache sessions in django-redis", Key: ":1:django.contrib.sessions.cache", start: djangoStore("django-redis", "cache")},
	{Name: "redis-rack", Key: "rack:session:", start: rubyStore("redis-rack")},
	{Name: "redis-actionpack", Key: "rails:session:", start: rubyStore("redis-actionpack")},
	{Name: "Rails' cache_store sessions in its RedisCacheStore", Key: "rails:_session_id:", start: rubyStore("Rails")},
	{Name: "scs on go-redis", Key: "scs:session:", start: goStore("scs on go-redis")},
	{Name: "scs on redigo", Key: "scs:session:", start: goStore("scs on redigo")},
	{Name: "gorilla/sessions, redisstore on go-redis", Key: "session:", start: goStore("gorilla on go-redis")},
	{Name: "gorilla/sessions, redistore on redigo", Key: "session_", start: goStore("gorilla on redigo")},
	{Name: "Spring Session", Key: "spring:session:", Pass: "DEL EXISTS HGETALL HMSET PEXPIREAT RENAME", start: javaStore("default")},
	{Name: "predis", Key: "sess:", start: phpStore("predis")},
	{Name: "Symfony's RedisSessionHandler on phpredis", Key: "sf_s", start: phpStore("Symfony on phpredis")},
	{Name: "Symfony's RedisSessionHandler on predis", Key: "sf_s", start: phpStore("Symfony on predis")},
	{Name: "Apache::Session::Browseable with indexes", Pass: "KEYS SADD SMEMBERS SREM", NoTTL: true, start: perlStore},
}

// OnMemcached is one that keeps its sessions in memcached, where a Place is an address. Its values have flags.
var OnMemcached = SessionStore{Name: "Django's cache sessions in its PyMemcacheCache", Key: ":1:django.contrib.sessions.cache", start: djangoStore("pymemcache", "cache")}

func nodeStore(library string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		return nodeScript(t, "stores.js", library, url, kept)
	}
}

func djangoStore(cache, engine string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		return pythonScript(t, "stores.py", cache, engine, url, kept)
	}
}

func rubyStore(library string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		bin, _ := exec.LookPath("ruby")
		testserver.Need(t, "ruby", bin != "")
		testserver.Need(t, "ruby-redis-actionpack", exec.Command(bin, "-e", "require 'action_dispatch'; require 'redis-actionpack'").Run() == nil)
		return exec.Command(bin, filepath.Join(here(), "ruby", "stores.rb"), library, url, kept)
	}
}

func goStore(library string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		return goProgram(t, "gostores", library, url, kept)
	}
}

func javaStore(repository string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		for name, want := range map[string]string{"mvn": "maven", "javac": "a JDK"} {
			_, err := exec.LookPath(name)
			testserver.Need(t, want, err == nil)
		}
		built := fetch(t, "Maven", "java", []string{"pom.xml", "Stores.java"}, func(dir string) *exec.Cmd {
			cmd := exec.Command("sh", "-c", "mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib && javac -cp 'lib/*' Stores.java")
			cmd.Dir = dir
			return cmd
		})
		return exec.Command("java", "-XX:TieredStopAtLevel=1", "-cp", built+":"+built+"/lib/*", "Stores", repository, url, kept)
	}
}

func phpStore(library string) func(testing.TB, string, string) *exec.Cmd {
	return func(t testing.TB, url, kept string) *exec.Cmd {
		bin := testserver.PHP(t).Path
		for file, name := range map[string]string{"Predis/autoload.php": "php-nrk-predis", "Symfony/Component/HttpFoundation/autoload.php": "php-symfony-http-foundation"} {
			testserver.Need(t, name, exec.Command(bin, "-r", "include '"+file+"' or exit(1);").Run() == nil)
		}
		return exec.Command(bin, "-f", filepath.Join(here(), "php", "stores.php"), "--", library, url, kept)
	}
}

func perlStore(t testing.TB, url, kept string) *exec.Cmd {
	bin, _ := exec.LookPath("perl")
	testserver.Need(t, "perl", bin != "")
	testserver.Need(t, "libapache-session-browseable-perl", exec.Command(bin, "-MApache::Session::Browseable::Redis", "-e", "1").Run() == nil)
	return exec.Command(bin, filepath.Join(here(), "perl", "stores.pl"), url, kept)
}

// Place is where an application has its sessions: at a URL, and later at another, which is where they are kept.
type Place struct{ URL, Kept string }

// Run has an application begin, read, change, extend, regenerate and destroy sessions, one and many at once, and at the end look
// for them where they are kept. It returns what the application saw in each of the places, where it is at the same time.
func (s SessionStore) Run(t testing.TB, places ...Place) []string {
	t.Helper()
	saw := make([]string, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		cmd := s.start(t, p.URL, p.Kept)
		wg.Go(func() {
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			err := cmd.Start()
			if err == nil {
				late := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
				err = cmd.Wait()
				late.Stop()
			}
			if saw[i] = out.String(); err != nil {
				t.Errorf("testapp: %s: %v\n%s%s", s.Name, err, saw[i], stderr.Bytes())
			}
		})
	}
	wg.Wait()
	return saw
}
