package memcached

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// objectsPHP is an object of class Memcached. It writes 300 small sessions; then one of each form that a value takes, and what it
// reads of a session that is ours.
const objectsPHP = `<?php
$m = new Memcached();
foreach (explode(';', $argv[2]) as $o) { if ($o) { [$name, $value] = explode('=', $o); $m->setOption(constant("Memcached::$name"), (int)$value); } }
foreach (explode(',', $argv[1]) as $s) { [$h, $p] = explode(':', $s); $m->addServer($h, (int)$p); }
for ($i = 0; $i < 300; $i++) { $m->set('sess_' . md5("session $i"), "n|i:$i;", 1440) || exit(1); }
mt_srand(7);
$words = '';
while (strlen($words) < 300000) { $words .= md5((string)mt_rand(0, 900)) . '|'; }
foreach (['fastlz' => Memcached::COMPRESSION_FASTLZ, 'zlib' => Memcached::COMPRESSION_ZLIB] as $name => $kind) {
	$m->setOption(Memcached::OPT_COMPRESSION_TYPE, $kind);
	$m->set("sess_$name-run", str_repeat('x', 3000), 1440) || exit(1);
	$m->set("sess_$name-words", substr($words, 0, 9000), 1440) || exit(1);
	$m->set("sess_$name-large", $words, 1440) || exit(1);
	$m->set("sess_$name-random", substr(str_shuffle($words), 0, 70000) . str_repeat('ab', 2000), 1440) || exit(1);
	foreach (['run', 'words', 'large', 'random'] as $what) { echo "$name-$what ", md5($m->get("sess_$name-$what")), "\n"; }
}
$m->set('sess_array', ['data' => 'x'], 1440) || exit(1);
echo 'ours ', $m->get('sess_ours'), "\n";
`

// A handler of a site's own on an object: where its sessions lie, what they hold, and that it reads what we write.
func TestObjects(t *testing.T) {
	for _, tc := range []struct {
		distribution Distribution
		options      string
	}{
		{Modula, ""},
		{Ketama, "OPT_DISTRIBUTION=1"},
		{KetamaWeighted, "OPT_LIBKETAMA_COMPATIBLE=1;OPT_BINARY_PROTOCOL=1"},
	} {
		t.Run(string(tc.distribution), func(t *testing.T) {
			t.Parallel()
			php := testserver.PHP(t, "memcached")
			servers := some(t, 3)
			var path []string
			for _, s := range servers {
				path = append(path, s.Addr)
			}
			s := newStore(t, Options{Client: Object, Prefix: "sess_", Distribution: tc.distribution}, servers...)
			if err := s.Save(in10s(t), "ours", store.Record{Data: []byte("a|i:1;"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
				t.Fatal(err)
			}
			out := php.Run(objectsPHP, nil, strings.Join(path, ","), tc.options)
			is := map[string]int{}
			for i, server := range servers {
				for _, name := range names(t, server) {
					is[name] = i
				}
			}
			for i := range 300 {
				id := fmt.Sprintf("%x", md5.Sum(fmt.Appendf(nil, "session %d", i)))
				if want := s.places(id); !slices.Equal([]int{is["sess_"+id]}, want) {
					t.Fatalf("%s is on server %d, we say %v", id, is["sess_"+id], want)
				}
				if rec, err := s.Load(in10s(t), id); err != nil || string(rec.Data) != fmt.Sprintf("n|i:%d;", i) {
					t.Fatalf("session %d: %q, %v", i, rec.Data, err)
				}
			}
			forms := 0
			for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
				what, want, _ := strings.Cut(line, " ")
				if what == "ours" {
					if want != "a|i:1;" {
						t.Errorf("PHP reads of ours %q", want)
					}
					continue
				}
				forms++
				name, _ := s.name(what)
				if it, err := s.nodes[s.places(what)[0]].get(in10s(t), s, name, nil, false); err != nil || it.flags&objectCompressed == 0 {
					t.Errorf("%s is not compressed: %v", what, err)
				}
				if rec, err := s.Load(in10s(t), what); err != nil || rec.Flags != 0 || fmt.Sprintf("%x", md5.Sum(rec.Data)) != want {
					t.Errorf("%s: %d bytes, %v", what, len(rec.Data), err)
				}
			}
			if forms != 8 {
				t.Errorf("%d forms, want 8: %s", forms, out)
			}
			var refused *store.RefusedError
			if _, err := s.Load(in10s(t), "array"); !errors.As(err, &refused) {
				t.Errorf("an array: %v", err)
			}
		})
	}
}

// What a store keeps elsewhere is removed wherever it may lie; a server that is gone has nothing, one that does not answer may.
func TestForget(t *testing.T) {
	t.Parallel()
	servers := some(t, 2)
	s := newStore(t, Options{Client: Object, Copies: 2, Timeout: 300 * time.Millisecond}, servers...)
	save := func(key string) {
		t.Helper()
		if err := s.Save(in10s(t), key, store.Record{Data: []byte("x"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(key string, want error) {
		t.Helper()
		if err := s.Forget(in10s(t), key); !errors.Is(err, want) {
			t.Errorf("Forget: %v, want %v", err, want)
		}
	}
	save("a")
	forget("a", nil)
	forget("a", nil)
	for i, server := range servers {
		if mine := names(t, server); len(mine) > 0 {
			t.Errorf("server %d still has %q", i, mine)
		}
	}
	save("a")
	servers[1].Pause()
	forget("a", store.ErrUnknown)
	servers[1].Resume()
	save("a")
	servers[1].Kill()
	forget("a", nil)
	if mine := names(t, servers[0]); len(mine) > 0 {
		t.Errorf("it still has %q", mine)
	}
}

// FuzzFastlz: nothing makes it panic, or give more than was asked for.
func FuzzFastlz(f *testing.F) {
	f.Add([]byte("\x02abc\x20\x00"), 10)
	f.Add(append([]byte{0x21, 'a', 'b'}, bytes.Repeat([]byte{0xff}, 20)...), 5000)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = min(max(size, 0), 1<<20)
		if out := unfastlz(in, size); out != nil && len(out) != size {
			t.Errorf("%d bytes, want %d", len(out), size)
		}
	})
}
