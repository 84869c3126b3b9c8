package memcached

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// sessionsPHP writes a session for each number, with PHP's own handler, as a page would.
const sessionsPHP = `<?php
for ($i = 0; $i < (int)$argv[1]; $i++) {
	session_id(md5("session $i"));
	if (!session_start()) { exit(1); }
	$_SESSION['n'] = $i;
	session_write_close();
	echo md5("session $i"), "\n";
}
`

// phpSession is what every one of these scripts needs to run in a loop without a browser.
func phpSession(handler, path string, more map[string]string) map[string]string {
	ini := map[string]string{"session.save_handler": handler, "session.save_path": path, "session.use_cookies": "0",
		"session.cache_limiter": "", "session.gc_maxlifetime": "1440", "max_execution_time": "30"}
	for k, v := range more {
		ini[k] = v
	}
	return ini
}

// names lists what a server has.
func names(t *testing.T, s *testserver.MemcachedServer) (all []string) {
	t.Helper()
	c, err := net.Dial(s.Network, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "lru_crawler metadump all\r\n")
	for lines := bufio.NewScanner(c); lines.Scan() && lines.Text() != "END"; {
		name, _, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "key="), " ")
		name, err := url.PathUnescape(name)
		if !ok || err != nil {
			t.Fatalf("metadump: %q", lines.Text())
		}
		all = append(all, name)
	}
	return all
}

// serverOf is how a test's server is named in settings.
func serverOf(t *testing.T, s *testserver.MemcachedServer, weight int) Server {
	t.Helper()
	if s.Network == "unix" {
		return Server{Host: s.Addr, Weight: weight}
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return Server{Host: host, Port: n, Weight: weight}
}

// TestPlaces has the real extensions write 1,000 sessions to three servers, and looks where they are.
func TestPlaces(t *testing.T) {
	const sessions = 1000
	for _, tc := range []struct {
		name    string
		opt     Options
		weights []int
		socket  bool // the last server is one on a socket
		ini     map[string]string
	}{
		{name: "php-memcached, as it is", opt: Options{Client: PHPMemcached, Distribution: Ketama, Copies: 1}},
		{name: "php-memcached, a socket", opt: Options{Client: PHPMemcached, Distribution: Ketama, Copies: 1}, socket: true},
		{name: "php-memcached, ketama, weights", opt: Options{Client: PHPMemcached, Distribution: Ketama, Copies: 1}, weights: []int{1, 2, 5}},
		{name: "php-memcached, ketama_weighted", opt: Options{Client: PHPMemcached, Distribution: KetamaWeighted, Copies: 1},
			ini: map[string]string{"memcached.sess_consistent_hash_type": "ketama_weighted"}},
		{name: "php-memcached, ketama_weighted, weights", opt: Options{Client: PHPMemcached, Distribution: KetamaWeighted, Copies: 1},
			weights: []int{1, 2, 5}, ini: map[string]string{"memcached.sess_consistent_hash_type": "ketama_weighted"}},
		{name: "php-memcached, modula", opt: Options{Client: PHPMemcached, Distribution: Modula, Copies: 1},
			ini: map[string]string{"memcached.sess_consistent_hash": "0", "memcached.sess_binary_protocol": "0"}},
		{name: "php-memcached, a replica", opt: Options{Client: PHPMemcached, Distribution: Ketama, Copies: 2},
			ini: map[string]string{"memcached.sess_number_of_replicas": "1"}},
		{name: "php-memcache, as it is", opt: Options{Client: PHPMemcache, Distribution: Consistent, Hash: CRC32, Copies: 2}},
		{name: "php-memcache, a prefix", opt: Options{Client: PHPMemcache, Distribution: Consistent, Hash: CRC32, Copies: 2, Prefix: "site-"},
			ini: map[string]string{"memcache.session_prefix_static_key": "site-"}},
		{name: "php-memcached, a prefix", opt: Options{Client: PHPMemcached, Distribution: Ketama, Copies: 1, Prefix: "my.site."},
			ini: map[string]string{"memcached.sess_prefix": "my.site."}},
		{name: "php-memcache, a socket", opt: Options{Client: PHPMemcache, Distribution: Consistent, Hash: CRC32, Copies: 2}, socket: true},
		{name: "php-memcache, weights", opt: Options{Client: PHPMemcache, Distribution: Consistent, Hash: CRC32, Copies: 2}, weights: []int{1, 2, 5}},
		{name: "php-memcache, fnv", opt: Options{Client: PHPMemcache, Distribution: Consistent, Hash: FNV, Copies: 1},
			ini: map[string]string{"memcache.hash_function": "fnv", "memcache.session_redundancy": "1"}},
		{name: "php-memcache, standard", opt: Options{Client: PHPMemcache, Distribution: Standard, Hash: CRC32, Copies: 1},
			ini: map[string]string{"memcache.hash_strategy": "standard", "memcache.session_redundancy": "1"}},
		{name: "php-memcache, standard, fnv, weights", opt: Options{Client: PHPMemcache, Distribution: Standard, Hash: FNV, Copies: 2},
			weights: []int{1, 2, 5}, ini: map[string]string{"memcache.hash_strategy": "standard", "memcache.hash_function": "fnv"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			php := testserver.PHP(t, "memcached", "memcache")
			var servers []*testserver.MemcachedServer
			var path []string
			for i := range 3 {
				weight := 1
				if tc.weights != nil {
					weight = tc.weights[i]
				}
				var s *testserver.MemcachedServer
				var url string
				if tc.socket && i == 2 {
					s = testserver.MemcachedOnSocket(t)
					url = "unix://" + s.Addr + ":0"
				} else {
					s = testserver.Memcached(t)
					url = "tcp://" + s.Addr
				}
				servers = append(servers, s)
				tc.opt.Servers = append(tc.opt.Servers, serverOf(t, s, weight))
				if tc.opt.Client == PHPMemcached {
					path = append(path, fmt.Sprintf("%s:%d", s.Addr, weight))
					if s.Network == "unix" {
						path[i] = s.Addr
					}
				} else {
					path = append(path, fmt.Sprintf("%s?weight=%d", url, weight))
				}
			}
			handler := strings.TrimPrefix(string(tc.opt.Client), "php-")
			ids := strings.Fields(php.Run(sessionsPHP, phpSession(handler, strings.Join(path, ","), tc.ini), strconv.Itoa(sessions)))
			if len(ids) != sessions {
				t.Fatalf("%d sessions, want %d", len(ids), sessions)
			}
			is := map[string][]int{}
			for i, s := range servers {
				mine := names(t, s)
				if len(mine) == 0 {
					t.Errorf("server %d has nothing", i)
				}
				prefix := tc.opt.Prefix
				if prefix == "" && tc.opt.Client == PHPMemcached {
					prefix = "memc.sess.key."
				}
				for _, name := range mine {
					if id, ours := strings.CutPrefix(name, prefix); ours {
						is[id] = append(is[id], i)
					}
				}
			}
			where, wrong := place(&tc.opt), 0
			for _, id := range ids {
				want := where(id)
				slices.Sort(want)
				if !slices.Equal(is[id], want) {
					if wrong++; wrong < 4 {
						t.Errorf("%s is on servers %v, we say %v", id, is[id], want)
					}
				}
			}
			if wrong > 0 {
				t.Errorf("%d of %d are elsewhere", wrong, sessions)
			}
		})
	}
}
