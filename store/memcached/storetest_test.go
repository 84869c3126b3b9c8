package memcached

import (
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newStore returns a store of some servers, closed by the test's cleanup.
func newStore(t *testing.T, opt Options, servers ...*testserver.MemcachedServer) *Store {
	t.Helper()
	for _, s := range servers {
		opt.Servers = append(opt.Servers, serverOf(t, s, 1))
	}
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// some starts memcached servers.
func some(t *testing.T, n int) (all []*testserver.MemcachedServer) {
	t.Helper()
	for range n {
		all = append(all, testserver.Memcached(t))
	}
	return all
}

func TestStore(t *testing.T) {
	for _, tc := range []struct {
		name    string
		servers int
		opt     Options
		bad     []string
	}{
		{"php-memcached, one server", 1, Options{Prefix: "memc.sess.key."}, []string{"lock.x"}},
		{"php-memcached, three servers", 3, Options{Prefix: "memc.sess.key.", Copies: 2}, []string{"lock.x"}},
		{"php-memcache, three servers", 3, Options{Client: PHPMemcache}, []string{"x.lock", "sessile:x"}},
		{"a handler of a site's own, three servers", 3, Options{Client: Object, Prefix: "sess_"}, nil},
		{"php-memcache, one server, unlisted", 1, Options{Client: PHPMemcache, Unlisted: true}, []string{"x.lock"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			storetest.RunOrigin(t, storetest.Harness[*Store]{
				New:      func(t *testing.T) *Store { return newStore(t, tc.opt, some(t, tc.servers)...) },
				BadKeys:  append(tc.bad, "a b", "a\r\nb", "a\x00", "\t", "a\x7f", strings.Repeat("x", 251)),
				MaxValue: 1_000_000,       // of an item of 1 MiB, name and all
				Grace:    4 * time.Second, // memcached counts whole seconds, and one more here
			})
		})
	}
}

// waitFor waits for a condition with a deadline.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
