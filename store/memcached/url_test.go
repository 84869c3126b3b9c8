package memcached

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseURL(t *testing.T) {
	three := []Server{{Host: "h1", Port: 11211, Weight: 1}, {Host: "10.0.0.2", Port: 11212, Weight: 1}, {Host: "h3", Port: 3, Weight: 1}}
	for raw, want := range map[string]Options{
		"memcached://h1,10.0.0.2:11212,h3:3": {Servers: three, Client: PHPMemcached, Distribution: Ketama, Copies: 1, Prefix: "memc.sess.key."},
		"memcached://[::1]:3":                {Servers: []Server{{Host: "::1", Port: 3, Weight: 1}}, Client: PHPMemcached, Distribution: Ketama, Copies: 1, Prefix: "memc.sess.key."},
		"memcached://h?client=php-memcache": {Servers: []Server{{Host: "h", Port: 11211, Weight: 1}}, Client: PHPMemcache,
			Distribution: Consistent, Hash: CRC32, Copies: 1},
		"memcached://h1,10.0.0.2:11212,h3:3/?client=php-memcache&copies=3&hash=fnv&distribution=standard&prefix=p": {Servers: three,
			Client: PHPMemcache, Distribution: Standard, Hash: FNV, Copies: 3, Prefix: "p"},
		"memcached+unix:///a,/b?weights=2,7&prefix=&distribution=modula&listed=false&lifetime=1h": {
			Servers: []Server{{Host: "/a", Weight: 2}, {Host: "/b", Weight: 7}}, Client: PHPMemcached, Distribution: Modula, Copies: 1,
			Unlisted: true, Lifetime: time.Hour},
	} {
		want.MaxValue, want.MaxConns, want.DialTimeout, want.Timeout = 1<<20, 64, time.Second, 2*time.Second
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseURL(u, Options{}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", raw, got, err, want)
		}
	}
	for raw, want := range map[string]string{
		"memcached://":                               "write memcached://",
		"memcached://h/1":                            "write memcached://",
		"memcached://h:0":                            "write memcached://",
		"memcached+unix://h/a":                       "write memcached://",
		"memcached+unix:///a,b":                      "write memcached://",
		"memcached://u:p@h":                          "ask for a user",
		"memcached://h,h":                            "there twice",
		"memcached://h?client=phpredis":              "no client",
		"memcached://h?distribution=standard":        "no distribution",
		"memcached://h?hash=crc32":                   "hash is for php-memcache",
		"memcached://h?client=php-memcache&hash=md5": "no hash",
		"memcached://h?weights=1,2":                  "there are 1 servers",
		"memcached://h?weights=0":                    "more than 0",
		"memcached://h?timeout=0s":                   "more than 0",
		"memcached://h?tiemout=1s":                   "the parameters are: client",
		"memcached://h?prefix=a&prefix=b":            "given 2 times",
		"memcached://h?prefix=sessile:":              "no such prefix",
		"memcached://h?prefix=a%20b":                 "no such prefix",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseURL(u, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", raw, err, want)
		}
	}
}
