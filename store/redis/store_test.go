package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"http://x":                            "scheme",
		"redis://h/x":                         "number of a database",
		"redis://h/-1":                        "number of a database",
		"redis+unix:run/redis.sock":           "absolute path",
		"redis+unix://run/redis.sock":         "absolute path",
		"redis://h?prefx=a":                   `did you mean "prefix"?`,
		"redis://h?db=1":                      `unknown parameter "db"`,
		"redis://h?time_out=1s":               `did you mean "timeout"?`,
		"redis://h?hold=1s":                   `unknown parameter "hold"`,
		"redis-sentinel://h":                  "/name-of-the-master",
		"redis-sentinel://h/m/x":              "/number-of-the-database",
		"redis-sentinel://h,:1/m":             "not host:port",
		"redis-sentinel://h:99999/m":          "not host:port",
		"redis-sentinel://h/m?hold=-1s":       "not more than 0",
		"redis-sentinel://h/m?safety=y":       "neither strict nor normal",
		"redis-sentinel://h/m?lease=1s":       "goes with safety=strict",
		"redis-sentinel://h/m?sentinel_tls=x": "unknown parameter",
		"redis-sentinel://h/m?shortfall=x":    "neither accept nor fail",
		"redis-cluster://h/1":                 "only database 0",
		"redis-cluster://h?safety=strict":     "unknown parameter",
		"redis://h?passwordfile=/etc/topsec":  `did you mean "password_file"?`,
		"redis://h?ca_file=/x":                `unknown parameter "ca_file"`,
		"redis://h?timeout=5":                 "missing unit",
		"redis://h?timeout=-5s":               "negative",
		"redis://h?connections=65":            "1 to 64",
		"redis://h?connections=many":          "parameter connections",
		"redis://h?prefix=a&prefix=b":         "2 times",
		"redis://h?prefix=sessile:":           "ours",
		"redis://h?prefix=%zz":                "cannot be read",
		"redis://u:topsec@h?password_file=/x": "both",
		"redis://u:topsec@h?pasword=topsec":   "did you mean",
		"redis://u:top#sec@h":                 "# part",
		"redis://h?password_file=/nowhere":    "no such file",
		"rediss://h?ca_file=/nowhere":         "no such file",
		"rediss://h?ca_file=/dev/null":        "no certificate",
		"rediss://h?cert_file=/dev/null":      "cert_file",
	} {
		u, err := url.Parse(text)
		if err != nil { // then it says so before us
			continue
		}
		s, err := Open(context.Background(), u)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "topsec") {
			t.Errorf("Open(%q): got %v, want %q", text, err, want)
		}
	}

	sentinels := Options{Network: "tcp", Username: "u", Password: "p", Sentinels: []string{"s1:26379", "s2:1"}, Master: "m", Database: 3,
		Sentinel: SentinelOptions{Password: "q", ConnectTimeout: time.Second}, Failover: FailoverOptions{Replay: -1, Lease: 500 * time.Millisecond}}
	for text, want := range map[string]Options{
		"redis-sentinel://u:p@s1,s2:1/m/3?sentinel_password=q&sentinel_connect_timeout=1s&replay=off&safety=strict": sentinels,
		"redis-cluster://n1,n2:7/0?wait=1s&shortfall=fail": {Network: "tcp", Cluster: []string{"n1:6379", "n2:7"},
			Failover: FailoverOptions{Wait: time.Second, Strict: true}},
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseURL(u); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseURL(%q): got %+v, %v, want %+v", text, got, err, want)
		}
	}

	u, _ := url.Parse("rediss://u:p%40@h:7/3?prefix=P%3A&lock_suffix=.l&timeout=3s&dial_timeout=4s&max_value=9&connections=5")
	o, err := ParseURL(u)
	if err != nil {
		t.Fatal(err)
	}
	if o.TLS == nil || o.TLS.ServerName != "h" {
		t.Errorf("TLS: got %v", o.TLS)
	}
	o.TLS = nil
	want := Options{Network: "tcp", Addr: "h:7", Username: "u", Password: "p@", Database: 3, Prefix: "P:", LockSuffix: ".l",
		Timeout: 3 * time.Second, DialTimeout: 4 * time.Second, MaxValue: 9, Connections: 5}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("ParseURL: got %+v, want %+v", o, want)
	}
}

func TestKeys(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL()+"?max_value=10")
	for _, key := range []string{"", "sessile:control", "sessile:m:{k}", "k_LOCK", "_LOCK", strings.Repeat("k", 513)} {
		if _, err := s.Load(ctx, key); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Load(%q): got %v, want ErrInvalid", key, err)
		}
		if err := s.Save(ctx, key, live("x"), store.Always); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Save(%q): got %v, want ErrInvalid", key, err)
		}
		if err := s.Lock(ctx, key, "t", time.Second); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Lock(%q): got %v, want ErrInvalid", key, err)
		}
		w := s.Workflow("w")
		if _, err := w.Begin(ctx, key, store.Op{Nonce: "n"}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Begin(%q): got %v, want ErrInvalid", key, err)
		}
		rec := live("x")
		if _, err := w.Add(ctx, 1, []store.Entry{{Key: "good", Record: &rec}, {Key: key, Record: &rec}}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Add(%q): got %v, want ErrInvalid", key, err)
		}
		if _, err := w.Remove(ctx, 1, []string{"good", key}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Remove(%q): got %v, want ErrInvalid", key, err)
		}
	}
	for _, key := range []string{"k\x00\r\n\xff", "{a}b{", "*", strings.Repeat("k", 512), "sessile", "k_LOCKx"} {
		if err := s.Save(ctx, key, live(key[:1]), store.Always); err != nil {
			t.Errorf("Save(%q): %v", key, err)
		}
		if got := server.Do("GET", key); got != key[:1] {
			t.Errorf("GET %q: got %v", key, got)
		}
	}
	if err := s.Save(ctx, "k", live("01234567890"), store.Always); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Save above the limit: got %v", err)
	}

	// Under a prefix that ends so, another name would be ours.
	p := open(t, server.URL()+"?prefix=sess")
	if _, err := p.Load(ctx, "ile:control"); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Load: got %v, want ErrInvalid", err)
	}
}

func TestWhatLiesInRedis(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL()+"?prefix=PHPREDIS_SESSION:")
	if err := s.Save(ctx, "abc", store.Record{Data: []byte("user|i:1;"), Expires: time.Now().Add(1440 * time.Second)}, store.Always); err != nil {
		t.Fatal(err)
	}
	if got := server.Do("GET", "PHPREDIS_SESSION:abc"); got != "user|i:1;" {
		t.Errorf("GET: got %v", got)
	}
	if got := server.Do("TTL", "PHPREDIS_SESSION:abc"); got != int64(1440) {
		t.Errorf("TTL: got %v, want 1440, as after phpredis' SETEX", got)
	}
	if err := s.Lock(ctx, "abc", "host-token", 1500*time.Microsecond+30*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := server.Do("GET", "PHPREDIS_SESSION:abc_LOCK"); got != "host-token" {
		t.Errorf("GET lock: got %v", got)
	}
	if got := server.Do("PTTL", "PHPREDIS_SESSION:abc_LOCK").(int64); got < 29_000 || got > 30_002 {
		t.Errorf("PTTL lock: got %v", got)
	}
	if _, left, err := s.LockHolder(ctx, "abc"); left < 29*time.Second || left > 31*time.Second || err != nil {
		t.Errorf("LockHolder: got %v, %v", left, err)
	}

	for _, year := range []int{2100, 9999} {
		if err := s.Save(ctx, "far", store.Record{Data: []byte("x"), Expires: time.Date(year, 12, 31, 0, 0, 0, 0, time.UTC)}, store.Always); err != nil {
			t.Errorf("Save until %d: %v", year, err)
		}
		if got := server.Do("TTL", "PHPREDIS_SESSION:far").(int64); got < 70*365*86400 {
			t.Errorf("TTL of %d: got %v", year, got)
		}
	}
	server.Do("DEL", "PHPREDIS_SESSION:far")
	server.Do("SET", "PHPREDIS_SESSION:immortal", "x")
	if got, err := s.Inspect(ctx, "immortal"); err != nil || !got.Expires.IsZero() {
		t.Errorf("Inspect without a TTL: got %v, %v", got, err)
	}
	server.Do("HSET", "PHPREDIS_SESSION:hash", "f", "v")
	for what, err := range map[string]error{
		"Load":    func() error { _, err := s.Load(ctx, "hash"); return err }(),
		"Inspect": func() error { _, err := s.Inspect(ctx, "hash"); return err }(),
	} {
		if refused, ok := errors.AsType[*store.RefusedError](err); !ok || refused.Reason != store.ReasonType {
			t.Errorf("%s of a hash: got %v, want a refusal", what, err)
		}
	}
	for what, err := range map[string]error{
		"IfVersion": s.Save(ctx, "hash", live("x"), store.IfVersion("v")),
		"LockHolder": func() error {
			server.Do("HSET", "PHPREDIS_SESSION:h_LOCK", "f", "v")
			_, _, err := s.LockHolder(ctx, "h")
			return err
		}(),
	} {
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "WRONGTYPE") {
			t.Errorf("%s on a hash: got %v, want unavailable", what, err)
		}
	}
	if n, err := s.Count(ctx); n != 5 || err != nil {
		t.Errorf("Count: got %d, %v, want 5", n, err)
	}
	info, err := s.Info(ctx)
	for _, field := range []string{"redis_version", "run_id", "role", "maxmemory", "maxmemory_policy", "used_memory", "evicted_keys",
		"aof_enabled", "rdb_last_bgsave_status", "loading"} {
		if info[field] == "" || err != nil {
			t.Errorf("Info: no %s, %v", field, err)
		}
	}
}

func TestScan(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	for _, key := range []string{"a[*]?\\:1", "a[*]?\\:2_LOCK", "a[*]?\\:", "ax:3", "a:4", "sessile:m:{a[*]?\\:1}", "a[*]?\\:" + strings.Repeat("k", 600)} {
		server.Do("SET", key, "x")
	}
	server.Do("RPUSH", "a[*]?\\:list", "x")
	all := func(s *Store) (keys []string, skipped map[string]int) {
		skipped = map[string]int{}
		for cursor := ""; ; {
			page, err := s.Scan(ctx, cursor, 2)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, page.Keys...)
			for why, n := range page.Skipped {
				skipped[why] += n
			}
			if cursor = page.Cursor; cursor == "" {
				slices.Sort(keys)
				return slices.Compact(keys), skipped
			}
		}
	}
	keys, skipped := all(open(t, server.URL()+"?prefix="+url.QueryEscape("a[*]?\\:")))
	if want := []string{"1"}; !slices.Equal(keys, want) {
		t.Errorf("under a prefix: got %q, want %q", keys, want)
	}
	if want := map[string]int{"lock": 1, "type": 1, "key": 2}; !maps.Equal(skipped, want) {
		t.Errorf("under a prefix: skipped %v, want %v", skipped, want)
	}
	s := open(t, server.URL())
	keys, skipped = all(s)
	if want := []string{"a:4", "a[*]?\\:", "a[*]?\\:1", "ax:3"}; !slices.Equal(keys, want) {
		t.Errorf("without a prefix: got %q, want %q", keys, want)
	}
	if want := map[string]int{"lock": 1, "type": 1, "key": 1, "sessile": 1}; !maps.Equal(skipped, want) {
		t.Errorf("without a prefix: skipped %v, want %v", skipped, want)
	}
	if page, err := s.Scan(ctx, "", 1); page.Total != 8 || err != nil {
		t.Errorf("Scan: got a total of %d, %v, want 8", page.Total, err)
	}
	if _, err := s.Scan(ctx, "x", 1); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Scan from nowhere: got %v", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL())
	w := s.Workflow("w")
	op := func(nonce string) store.Op { return store.Op{Nonce: nonce, Epoch: 1, Lease: time.Minute} }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.RaiseFence(ctx, 1))
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		must(s.Save(ctx, key, live("x"), store.Always))
	}
	_, err := w.Begin(ctx, "begun", op("1"))
	must(err)
	_, err = w.Begin(ctx, "begun2", op("2"))
	must(err)
	_, err = w.WriteAhead(ctx, "ahead", op("3"), nil, store.Always)
	must(err)
	server.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	server.Do("CONFIG", "SET", "maxmemory", "1")

	rec := live("y")
	for what, f := range map[string]func() error{
		"Save":           func() error { return s.Save(ctx, "a", rec, store.Always) },
		"Save IfVersion": func() error { return s.Save(ctx, "a", rec, store.IfVersion(store.VersionOf([]byte("x"), 0))) },
		"Lock":           func() error { return s.Lock(ctx, "a", "t", time.Second) },
		"Commit":         func() error { return w.Commit(ctx, "begun", op("1"), &rec) },
		"WriteAhead":     func() error { _, err := w.WriteAhead(ctx, "a", op("9"), &rec, store.Always); return err },
		"Add":            func() error { _, err := w.Add(ctx, 1, []store.Entry{{Key: "new", Record: &rec}}); return err },
	} {
		if err := f(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("%s: got %v, want unavailable because of OOM", what, err)
		}
	}
	for what, f := range map[string]func() error{
		"Load":             func() error { _, err := s.Load(ctx, "a"); return err },
		"Inspect":          func() error { _, err := s.Inspect(ctx, "a"); return err },
		"Touch":            func() error { return s.Touch(ctx, "a", time.Now().Add(time.Hour)) },
		"Delete":           func() error { _, err := s.Delete(ctx, "b", store.Always); return err },
		"Delete IfPresent": func() error { _, err := s.Delete(ctx, "c", store.IfPresent); return err },
		"Renew":            func() error { _, err := w.Renew(ctx, "g", nil, time.Second); return err },
		"SwapControl":      func() error { return w.SwapControl(ctx, nil, []byte("c")) },
		"RaiseFence":       func() error { return w.RaiseFence(ctx, 1) },
		"Commit(nil)":      func() error { return w.Commit(ctx, "begun", op("1"), nil) },
		"Withdraw":         func() error { return w.Withdraw(ctx, "begun2", op("2")) },
		"Propagated":       func() error { _, _, err := w.Propagated(ctx, "ahead", op("3"), 1); return err },
		"WriteAhead(nil)":  func() error { _, err := w.WriteAhead(ctx, "d", op("4"), nil, store.Always); return err },
		"SaveLast(nil)":    func() error { _, err := w.SaveLast(ctx, "e", 1, nil, store.Always); return err },
		"Copy(nil)":        func() error { return w.Copy(ctx, "f", 1, nil) },
		"Remove":           func() error { _, err := w.Remove(ctx, 1, []string{"g"}); return err },
		"TouchMarked":      func() error { _, _, err := w.TouchMarked(ctx, "a", 1, time.Now().Add(time.Hour)); return err },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A logout in the phases sync and live, on a server that has not seen the scripts yet.
	server.Do("SCRIPT", "FLUSH")
	if _, err := w.Begin(ctx, "a", op("5")); err != nil {
		t.Errorf("Begin: %v", err)
	}
	if err := w.Commit(ctx, "a", op("5"), nil); err != nil {
		t.Errorf("Commit(nil): %v", err)
	}
	if got := server.Do("EXISTS", "a", "sessile:m:{a}"); got != int64(0) {
		t.Error("the session is there")
	}
	if _, err := w.Begin(ctx, "h", op("6")); err != nil {
		t.Errorf("Begin: %v", err)
	}
	if _, err := w.Settle(ctx, "h", op("6")); err != nil {
		t.Errorf("Settle: %v", err)
	}
}

func TestALockIsNotTakenAndForgotten(t *testing.T) {
	server := testserver.Redis(t)
	s := open(t, server.URL())
	ctx := context.Background()
	var wg sync.WaitGroup
	var got, missed, unknown atomic.Int64
	for i := range 40 {
		wg.Go(func() {
			for range 25 {
				token := fmt.Sprint("token", i)
				soon, cancel := context.WithTimeout(ctx, time.Duration(rand.N(4*time.Millisecond)))
				err := s.Lock(soon, "k", token, time.Hour)
				cancel()
				switch {
				case err == nil:
					got.Add(1)
					if held, err := s.Unlock(ctx, "k", token); !held || err != nil {
						t.Errorf("Unlock: got %v, %v", held, err)
					}
				case errors.Is(err, store.ErrLocked), errors.Is(err, store.ErrUnavailable):
					missed.Add(1)
				case errors.Is(err, store.ErrUnknown): // the machine stood still for longer than lockGrace
					unknown.Add(1)
				default:
					t.Errorf("Lock: %v", err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d got it, %d did not, %d do not know", got.Load(), missed.Load(), unknown.Load())
	if token, _, err := s.LockHolder(ctx, "k"); token != "" && unknown.Load() == 0 || err != nil {
		t.Errorf("LockHolder: got %q, %v", token, err)
	}
}

// commands returns how often the server executed each command, scripts' own commands left out, while f ran.
func commands(t *testing.T, server *testserver.RedisServer, f func()) map[string]int {
	t.Helper()
	server.Do("CONFIG", "RESETSTAT")
	f()
	got := map[string]int{}
	for line := range strings.Lines(server.Do("INFO", "commandstats").(string)) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		calls, _, _ := strings.Cut(rest, ",")
		if n, err := strconv.Atoi(calls); ok && err == nil {
			got[name] = n
		}
	}
	for _, ours := range []string{"config|resetstat", "info", "ping", "hello"} { // the test's, and the connection's
		delete(got, ours)
	}
	return got
}

// TestBudget holds what an operation costs the server. What a script calls is counted as well, so scripts' commands are
// listed beside.
func TestBudget(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL())
	w := s.Workflow("w")
	rec := live("x")
	op := store.Op{Nonce: "n", Epoch: 1, Lease: time.Minute}
	entries := make([]store.Entry, 100)
	for i := range entries {
		entries[i] = store.Entry{Key: fmt.Sprint("e", i), Record: &rec}
	}
	steps := []struct {
		name string
		want string // the one command that is sent
		f    func() error
	}{
		{"RaiseFence", "evalsha", func() error { return w.RaiseFence(ctx, 1) }},
		{"Save", "set", func() error { return s.Save(ctx, "k", rec, store.Always) }},
		{"Save IfPresent", "set", func() error { return s.Save(ctx, "k", rec, store.IfPresent) }},
		{"Load", "get", func() error { _, err := s.Load(ctx, "k"); return err }},
		{"Touch", "pexpire", func() error { return s.Touch(ctx, "k", time.Now().Add(time.Hour)) }},
		{"LoadMarked", "mget", func() error { _, _, err := w.LoadMarked(ctx, "k"); return err }},
		{"Begin", "evalsha", func() error { _, err := w.Begin(ctx, "k", op); return err }},
		{"Commit", "evalsha", func() error { return w.Commit(ctx, "k", op, &rec) }},
		{"WriteAhead", "evalsha", func() error { _, err := w.WriteAhead(ctx, "k", op, &rec, store.Always); return err }},
		{"Propagated", "evalsha", func() error { _, _, err := w.Propagated(ctx, "k", op, 1); return err }},
		{"TouchMarked", "evalsha", func() error { _, _, err := w.TouchMarked(ctx, "k", 1, time.Now().Add(time.Hour)); return err }},
		{"Add", "evalsha", func() error { _, err := w.Add(ctx, 1, entries); return err }},
		{"Same", "evalsha", func() error { _, err := w.Same(ctx, 1, entries); return err }},
		{"Renew", "evalsha", func() error { _, err := w.Renew(ctx, "g", nil, time.Minute); return err }},
		{"Scan", "evalsha", func() error { _, err := s.Scan(ctx, "", 10); return err }},
		{"Lock", "set", func() error { return s.Lock(ctx, "k", "t", time.Minute) }},
		{"Unlock", "evalsha", func() error { _, err := s.Unlock(ctx, "k", "t"); return err }},
		{"Delete", "del", func() error { _, err := s.Delete(ctx, "k", store.Always); return err }},
	}
	for range 2 { // in the first round the scripts are not there
		for _, st := range steps {
			got := commands(t, server, func() {
				if err := st.f(); err != nil {
					t.Errorf("%s: %v", st.name, err)
				}
			})
			if got["eval"] > 0 {
				continue
			}
			if got[st.want] != 1 || st.want != "evalsha" && len(got) != 1 {
				t.Errorf("%s: the server executed %v, want one %s", st.name, got, st.want)
			}
		}
	}
}
