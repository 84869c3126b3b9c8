package memcached

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/memcache"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// onePagePHP is a page: it opens the session, says so, perhaps waits for a file, and writes.
const onePagePHP = `<?php
[, $id, $add, $flag, $until] = $argv + [2 => '', 3 => '', 4 => ''];
session_id($id);
if (!@session_start()) { echo "no session"; exit; }
echo $_SESSION['v'] ?? '-', "\n";
if ($flag) { file_put_contents($flag, 'open'); for ($i = 0; $i < 2000 && !file_exists($until); $i++) { usleep(10000); } }
if ($add === 'destroy') { session_destroy(); exit; }
if ($add) { $_SESSION['v'] = ($_SESSION['v'] ?? '') . $add; }
session_write_close();
`

// site is a PHP site on three servers, and our store on the same.
type site struct {
	t   *testing.T
	s   *Store
	php testserver.PHPBinary
	ini map[string]string
}

var bothClients = []Client{PHPMemcached, PHPMemcache}

func newSite(t *testing.T, client Client) *site {
	t.Helper()
	php := testserver.PHP(t, "memcached", "memcache")
	servers := some(t, 3)
	opt := Options{Client: client}
	var path []string
	for _, s := range servers {
		if client == PHPMemcached {
			opt.Prefix = "memc.sess.key."
			path = append(path, s.Addr)
		} else {
			path = append(path, "tcp://"+s.Addr)
		}
	}
	return &site{t, newStore(t, opt, servers...), php, phpSession(strings.TrimPrefix(string(client), "php-"), strings.Join(path, ","), nil)}
}

func (s *site) page(args ...string) string {
	s.t.Helper()
	return s.php.Run(onePagePHP, s.ini, args...)
}

func in10s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func record(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

func TestPHPAndWeSeeTheSameSessions(t *testing.T) {
	for _, client := range bothClients {
		t.Run(string(client), func(t *testing.T) {
			site := newSite(t, client)
			for i := range 12 { // on all servers
				id := fmt.Sprintf("id%026d", i)
				site.page(id, "php")
				rec, err := site.s.Inspect(in10s(t), id)
				ok(t, "Inspect what PHP wrote", err)
				if string(rec.Data) != `v|s:3:"php";` || rec.Flags != 0 {
					t.Errorf("got %q, flags %d", rec.Data, rec.Flags)
				}
				if left := time.Until(rec.Expires); left < 1430*time.Second || left > 1442*time.Second {
					t.Errorf("%v left, want 1440 s", left)
				}
				ok(t, "Save", site.s.Save(in10s(t), id, record(`v|s:4:"ours";`), store.IfVersion(rec.Version())))
				if got := site.page(id); got != "ours\n" {
					t.Errorf("PHP sees %q, want what we wrote", got)
				}
				site.page(id, "destroy")
				if _, err := site.s.Load(in10s(t), id); !errors.Is(err, store.ErrAbsent) {
					t.Errorf("Load of what PHP destroyed: %v", err)
				}
				ok(t, "Save", site.s.Save(in10s(t), id, record(`v|s:4:"back";`), store.IfAbsent))
				if existed, err := site.s.Delete(in10s(t), id, store.Always); !existed || err != nil {
					t.Errorf("Delete: %v, %v", existed, err)
				}
				if got := site.page(id); got != "-\n" {
					t.Errorf("PHP sees %q of a session that we deleted", got)
				}
			}
		})
	}
}

// With copies, too, a handler believes its first server, and so do we: what that does not have is no session.
func TestPHPDoesNotLookForCopies(t *testing.T) {
	for _, client := range bothClients {
		t.Run(string(client), func(t *testing.T) {
			site := newSite(t, client)
			site.ini["memcached.sess_number_of_replicas"] = "1" // it is php-memcache's default
			site.s.opt.Copies = 2
			site.s.places = place(&site.s.opt)
			for place, want := range []string{"-\n", "php\n"} {
				id := fmt.Sprint("copied", place)
				site.page(id, "php")
				name, err := site.s.name(id)
				ok(t, "name", err)
				for _, at := range site.s.places(id) {
					if it, err := site.s.nodes[at].get(in10s(t), site.s, name, nil, false); it == nil || err != nil {
						t.Fatalf("server %d has no copy: %v", at, err)
					}
				}
				ok(t, "remove", site.s.nodes[site.s.places(id)[place]].remove(in10s(t), name))
				if _, err := site.s.Load(in10s(t), id); (err == nil) != (place == 1) {
					t.Errorf("without the copy on its server %d we see %v", place, err)
				}
				if got := site.page(id); got != want {
					t.Errorf("without the copy on its server %d PHP sees %q, want %q", place, got, want)
				}
			}
		})
	}
}

// A body that php-memcache has compressed is what PHP would have read.
func TestCompressedBodies(t *testing.T) {
	site := newSite(t, PHPMemcache)
	long := strings.Repeat("long ", 10000)
	site.php.Run(`<?php session_id('zipped'); session_start(); $_SESSION['v'] = $argv[1]; session_write_close();`, site.ini, long)
	it, err := site.s.nodes[site.s.places("zipped")[0]].get(in10s(t), site.s, "zipped", nil, false)
	ok(t, "get", err)
	if it == nil || it.flags != memcache.FlagZlib || len(it.data) > 5000 {
		t.Fatalf("php-memcache has not compressed it: %+v", it)
	}
	rec, err := site.s.Load(in10s(t), "zipped")
	if want := fmt.Sprintf(`v|s:%d:"%s";`, len(long), long); err != nil || string(rec.Data) != want || rec.Flags != 0 {
		t.Fatalf("got %d bytes, flags %d, %v, want %d", len(rec.Data), rec.Flags, err, len(want))
	}
	rec.Expires = time.Now().Add(time.Hour)
	ok(t, "Save what was read", site.s.Save(in10s(t), "zipped", rec, store.IfVersion(rec.Version())))
	if got := site.page("zipped"); got != long+"\n" {
		t.Errorf("PHP sees %d bytes, want %d", len(got), len(long)+1)
	}
	for what, it := range map[string]*item{"no zlib": {data: []byte("plain"), flags: memcache.FlagZlib}, "a bomb": {data: it.data, flags: memcache.FlagZlib}} {
		if site.s.opt.MaxValue = 1000; it.flags == memcache.FlagZlib {
			if _, err := site.s.record(it); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: got %v", what, err)
			}
		}
	}
}

func TestPHPWaitsForOurLock(t *testing.T) {
	for _, client := range bothClients {
		t.Run(string(client), func(t *testing.T) {
			t.Parallel()
			site := newSite(t, client)
			for i := range 4 {
				id := fmt.Sprintf("ours%d", i)
				ok(t, "Save", site.s.Save(in10s(t), id, record(`v|s:1:"0";`), store.Always))
				ok(t, "Lock", site.s.Lock(in10s(t), id, "host|123", time.Minute))
				n, _, err := site.s.lockAt(id)
				ok(t, "lockAt", err)
				asked := func() string {
					is, err := n.stats(in10s(t))
					ok(t, "stats", err)
					return is["cmd_set"] + " " + is["incr_hits"]
				}
				before := asked()
				done := make(chan string)
				go func() { done <- site.page(id, "php") }()
				waitFor(t, "PHP asks for the lock where ours is", func() bool { return asked() != before })
				if token, left, err := site.s.LockHolder(in10s(t), id); token != "host|123" || left < 50*time.Second || err != nil {
					t.Errorf("LockHolder: %q, %v, %v", token, left, err)
				}
				select {
				case got := <-done:
					t.Fatalf("PHP did not wait: %q", got)
				default:
				}
				ok(t, "Save", site.s.Save(in10s(t), id, record(`v|s:1:"1";`), store.Always))
				if held, err := site.s.Unlock(in10s(t), id, "host|123"); !held || err != nil {
					t.Errorf("Unlock: %v, %v", held, err)
				}
				if got := <-done; got != "1\n" {
					t.Errorf("PHP sees %q, want what was written under our lock", got)
				}
			}
		})
	}
}

func TestWeWaitForPHPsLock(t *testing.T) {
	for _, client := range bothClients {
		t.Run(string(client), func(t *testing.T) {
			t.Parallel()
			site := newSite(t, client)
			for i := range 4 {
				id := fmt.Sprintf("theirs%d", i)
				ok(t, "Save", site.s.Save(in10s(t), id, record(`v|s:1:"0";`), store.Always))
				dir := t.TempDir()
				done := make(chan string)
				go func() { done <- site.page(id, "php", dir+"/open", dir+"/go") }()
				waitFor(t, "PHP has the session open", func() bool { return exists(dir + "/open") })
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				wantErr(t, "Lock while PHP has it", site.s.Lock(ctx, id, "ours", time.Minute), store.ErrLocked)
				cancel()
				if token, _, err := site.s.LockHolder(in10s(t), id); token == "" || token == "ours" || err != nil {
					t.Errorf("LockHolder: %q, %v", token, err)
				}
				if held, err := site.s.Unlock(in10s(t), id, "ours"); held || err != nil {
					t.Errorf("Unlock of PHP's lock: %v, %v", held, err)
				}
				touch(t, dir+"/go")
				ok(t, "Lock when PHP has done", site.s.Lock(in10s(t), id, "ours", time.Minute))
				if rec, err := site.s.Load(in10s(t), id); string(rec.Data) != `v|s:4:"0php";` || err != nil {
					t.Errorf("got %q, %v, want what PHP wrote under its lock", rec.Data, err)
				}
				if held, err := site.s.Unlock(in10s(t), id, "ours"); !held || err != nil {
					t.Errorf("Unlock: %v, %v", held, err)
				}
				<-done
			}
		})
	}
}
