package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/redis"
	"github.com/sessile/sessile/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t testing.TB, raw string) redis.Options {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	o, err := redis.ParseURL(u)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func look(t testing.TB, o redis.Options, sets ...string) (Facts, []Subject) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	f, err := Look(ctx, o, Use{Sets: sets, Hold: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return f, Judge(f)
}

// find returns what was found about a check, of that server, or of any where name is "".
func find(subjects []Subject, name, check string) (list []Finding) {
	for _, s := range subjects {
		for _, f := range s.Findings {
			if f.Check == check && (name == "" || name == s.Name) {
				list = append(list, f)
			}
		}
	}
	return list
}

// want checks that a finding is there, with that in its text.
func want(t testing.TB, subjects []Subject, level Level, name, check, words string) {
	t.Helper()
	for _, f := range find(subjects, name, check) {
		if f.Level == level && strings.Contains(f.What, words) {
			return
		}
	}
	t.Errorf("no %s %s %q of %q, but %+v", level, check, words, name, find(subjects, name, check))
}

// eventually looks until the finding is there: others have to notice first.
func eventually(t testing.TB, o redis.Options, level Level, name, check, words string) []Subject {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		_, subjects := look(t, o)
		if slices.ContainsFunc(find(subjects, name, check), func(f Finding) bool { return f.Level == level && strings.Contains(f.What, words) }) || time.Now().After(deadline) {
			want(t, subjects, level, name, check, words)
			return subjects
		}
	}
}

func TestOneServer(t *testing.T) {
	server := testserver.Redis(t)
	o := parse(t, server.URL()+"?prefix=P:")
	_, subjects := look(t, o)
	want(t, subjects, Danger, server.Addr, "persistence", "none")
	want(t, subjects, OK, server.Addr, "eviction", "noeviction")
	want(t, subjects, OK, server.Addr, "clock", "clock")
	want(t, subjects, OK, server.Addr, "open", "from this machine only")
	want(t, subjects, Warning, server.Addr, "acl", "FLUSHALL")
	want(t, subjects, Warning, server.Addr, "memory", "of the machine's memory")
	if f := find(subjects, "", "tls"); f != nil {
		t.Errorf("of a loopback address: got %v", f)
	}

	server.Do("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
	server.Do("CONFIG", "SET", "appendonly", "yes", "appendfsync", "no", "timeout", "3", "tcp-keepalive", "0", "proto-max-bulk-len", "2mb")
	o.MaxValue = 4 << 20
	_, subjects = look(t, o)
	want(t, subjects, Danger, "", "eviction", "allkeys-lru")
	want(t, subjects, Warning, "", "persistence", "appendfsync no")
	want(t, subjects, Warning, "", "timeout", "timeout 3")
	want(t, subjects, Warning, "", "keepalive", "0")
	want(t, subjects, Danger, "", "value-size", "2.0 MiB")

	// It has really been looked at only: nothing was written, nothing is left behind.
	if got := server.Do("DBSIZE"); got != int64(0) {
		t.Errorf("DBSIZE: got %v", got)
	}
	if got := server.CLI("INFO", "commandstats"); strings.Contains(got, "cmdstat_flushall") || strings.Contains(got, "cmdstat_exec:") {
		t.Errorf("commands were executed: %s", got)
	}

	// What the remedies say is what Redis takes.
	for _, check := range []string{"eviction", "timeout", "keepalive", "value-size", "persistence"} {
		for _, f := range find(subjects, "", check) {
			for _, r := range f.Remedy {
				server.Do(strings.Fields(r)...)
			}
		}
	}
	_, subjects = look(t, o)
	for _, check := range []string{"eviction", "timeout", "keepalive", "value-size", "persistence"} {
		for _, f := range find(subjects, "", check) {
			if f.Level != OK {
				t.Errorf("after the remedy: %v", f)
			}
		}
	}

	// A folder of the name of the file cannot be replaced by a file.
	if err := os.MkdirAll(server.Data()+"/dump.rdb/x", 0o700); err != nil {
		t.Fatal(err)
	}
	server.Do("CONFIG", "SET", "appendonly", "no", "save", "3600 1")
	server.Do("BGSAVE")
	subjects = eventually(t, o, Danger, server.Addr, "saving", "rdb_last_bgsave_status err")
	want(t, subjects, Warning, server.Addr, "persistence", "RDB only (save 3600 1)")
}

func TestAServerIsNotThere(t *testing.T) {
	server := testserver.Redis(t, testserver.WithPassword("", "secret"))
	ctx := context.Background()
	for name, raw := range map[string]string{"no password": "redis://" + server.Addr, "a wrong one": "redis://:x@" + server.Addr, "another database": server.URL() + "/99",
		"nobody listens": "redis://127.0.0.1:1", "no Sentinel": "redis-sentinel://" + server.Addr + "/m?sentinel_password=secret", "nobody of a Cluster": "redis-cluster://127.0.0.1:1"} {
		if _, err := Look(ctx, parse(t, raw), Use{}); !errors.Is(err, store.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// A server that stands still costs no more than the timeout.
	server.Pause()
	began := time.Now()
	if _, err := Look(ctx, parse(t, server.URL()+"?timeout=100ms"), Use{}); !errors.Is(err, store.ErrUnavailable) || time.Since(began) > 5*time.Second {
		t.Errorf("a server that stands still: got %v after %v", err, time.Since(began))
	}
	server.Resume()
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Look(ctx, parse(t, server.URL()), Use{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestWhoGetsIn(t *testing.T) {
	locked := testserver.Redis(t, testserver.WithPassword("", "secret"))
	_, subjects := look(t, parse(t, locked.URL()))
	want(t, subjects, OK, "", "open", "nobody gets in")

	var other string // an address of this machine that others reach
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && ip.IP.To4() != nil {
			other = ip.IP.String()
		}
	}
	open := testserver.Redis(t, testserver.WithConf("protected-mode no", "bind * -::*"))
	_, subjects = look(t, parse(t, open.URL()))
	want(t, subjects, Danger, "", "open", "without a password")
	testserver.Need(t, "an address besides 127.0.0.1", other != "")
	_, port, _ := net.SplitHostPort(open.Addr)
	_, subjects = look(t, parse(t, "redis://"+net.JoinHostPort(other, port)))
	want(t, subjects, Danger, "", "open", "without a password")
	want(t, subjects, Warning, "", "tls", "as they are")
	open.Do("ACL", "SETUSER", "default", "-config") // then what it is bound to cannot be asked
	_, subjects = look(t, parse(t, "redis://"+net.JoinHostPort(other, port)))
	want(t, subjects, Danger, "", "open", "without a password")
	_, subjects = look(t, parse(t, open.URL()))
	want(t, subjects, Unseen, "", "open", "not to be seen")
}

// Nothing but what is harmless may be sent to something that takes MULTI for a command like others.
func TestMultiThatIsNone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sent []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		buf := make([]byte, 4096)
		for {
			n, err := nc.Read(buf)
			if err != nil {
				return
			}
			sent = append(sent, strings.Fields(string(buf[:n]))[2])
			nc.Write([]byte("+OK\r\n"))
		}
	}()
	c, err := door{network: "tcp", addr: l.Addr().String(), dial: time.Second, answer: time.Second}.knock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, err = probe(context.Background(), c, redis.Options{}, nil)
	c.Close()
	l.Close()
	<-done
	if err == nil || !slices.Equal(sent, []string{"MULTI", "PING"}) {
		t.Errorf("got %v, sent %q", err, sent)
	}
}

func TestTLSAndUnixSocket(t *testing.T) {
	server := testserver.Redis(t, testserver.WithTLS(), testserver.WithPassword("app", "secret"))
	for _, raw := range []string{"rediss://app:secret@" + server.TLSAddr + "?ca_file=" + server.CAFile, "redis+unix://app:secret@" + server.Socket} {
		f, subjects := look(t, parse(t, raw))
		if f.Servers[0].Err != "" || f.Servers[0].Config == nil || f.Servers[0].Open != Shut {
			t.Errorf("%s: got %+v", raw, f.Servers[0])
		}
		want(t, subjects, OK, "", "eviction", "")
	}
}

// TestGrant: the user that the remedy makes has all the rights that a store needs, and no others.
func TestGrant(t *testing.T) {
	server := testserver.Redis(t)
	const prefix, set = "a[*]?:", "ALL_SESSIONS"
	o := parse(t, "redis://"+server.Addr)
	o.Prefix, o.Database = prefix, 3
	grant(t, server, o, set)
	o.Username, o.Password = "sessile", "secret"
	f, subjects := look(t, o, set)
	if s := f.Servers[0]; s.Err != "" || s.Unseen["MULTI"] != "" || s.Rights.Missing != nil || s.Rights.Excess != nil {
		t.Errorf("got %+v", s)
	}
	want(t, subjects, OK, "", "rights", "no more")
	want(t, subjects, Unseen, "", "config", "NOPERM")

	for _, take := range [][]string{{"-pexpire"}, {"resetkeys", "~" + globbed(prefix) + "*"}, {"-zscore"}, {"+multi", "+publish", "&*"}} {
		server.Do(append([]string{"ACL", "SETUSER", "sessile"}, take...)...)
	}
	_, subjects = look(t, o, set)
	want(t, subjects, Danger, "", "rights", "+pexpire")
	want(t, subjects, Danger, "", "rights", "~sessile:*")
	want(t, subjects, Danger, "", "rights", "~ALL_SESSIONS")
	want(t, subjects, Danger, "", "rights", "+zscore")
	want(t, subjects, Warning, "", "acl", "PUBLISH")
	server.Do("ACL", "SETUSER", "sessile", "-multi", "-info")
	_, subjects = look(t, o, set)
	want(t, subjects, Unseen, "", "rights", "NOPERM")
	want(t, subjects, Unseen, "", "info", "NOPERM")

	// The store itself is content with them.
	grant(t, server, o) // makes another one
	o.Username = "sessile2"
	storetest.RunTarget(t, storetest.Harness[*redis.Store]{New: func(t *testing.T) *redis.Store {
		server.Do("FLUSHALL")
		s, err := redis.Connect(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}})
	// So is the gateway's own connection.
	s, err := redis.Connect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	nc, _, err := s.Shard(nil).Dial(context.Background())
	if err != nil {
		t.Error(err)
	} else {
		nc.Close()
	}
	if log, _ := server.Do("ACL", "LOG").([]any); len(log) > 0 {
		for _, e := range log {
			if s := fmt.Sprint(e); strings.Contains(s, "username sessile2") {
				t.Errorf("a right is missing: %s", s)
			}
		}
	}
}

// grant makes the user that the remedy makes, with the password "secret".
func grant(t *testing.T, server *testserver.RedisServer, o redis.Options, sets ...string) {
	t.Helper()
	for _, command := range Grant(o, sets) {
		if out := server.CLI(arguments(strings.Replace(command, "PASSWORD", "secret", 1))...); out != "OK" {
			t.Fatalf("%s: %s", command, out)
		}
	}
}

// arguments takes a command apart as redis-cli does.
func arguments(command string) (args []string) {
	for _, a := range strings.Fields(command) {
		args = append(args, strings.Trim(a, "'"))
	}
	return args
}

func TestSentinels(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{Node: []testserver.RedisOption{testserver.Persistent(),
		testserver.WithConf("min-replicas-to-write 1", "min-replicas-max-lag 2", "maxmemory 1gb")}})
	o := parse(t, set.URL())
	f, subjects := look(t, o)
	if len(f.Servers) != 3 || len(f.Sentinels) != 3 {
		t.Fatalf("got %d servers, %d Sentinels: %+v", len(f.Servers), len(f.Sentinels), f)
	}
	if n := Count(subjects); n[Danger] > 0 || n[Unseen] > 0 {
		t.Errorf("got %v:%s", n, said(subjects))
	}
	for _, check := range []string{"sentinels", "address", "roles", "agreement", "quorum", "hold", "window", "failover-timeout", "replicas", "priority"} {
		want(t, subjects, OK, "mymaster", check, "")
	}
	want(t, subjects, Warning, "mymaster", "hosts", "3 of 3 Sentinels are on 127.0.0.1")
	for _, n := range set.Nodes {
		want(t, subjects, OK, n.Addr, "persistence", "append-only")
		want(t, subjects, OK, n.Addr, "min-replicas", "1")
		want(t, subjects, OK, n.Addr, "clock", "")
	}
	primary, replica := set.Nodes[0], set.Nodes[1]
	want(t, subjects, OK, replica.Addr, "link", "up")
	for _, s := range set.Sentinels {
		want(t, subjects, OK, s.Addr, "reach", "")
	}

	// The user that the remedy makes is enough for a store that follows them.
	least := o
	least.Username, least.Password = "sessile", "secret"
	for _, n := range set.Nodes {
		grant(t, n, o)
	}
	st, err := redis.Connect(context.Background(), least)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Save(store.Replicated(context.Background()), "x", store.Record{Data: []byte("1"), Expires: time.Now().Add(time.Hour)}, store.Always); err != nil {
		t.Error(err)
	}
	_, subjects = look(t, least)
	for _, n := range set.Nodes {
		want(t, subjects, OK, n.Addr, "rights", "no more")
		for _, e := range n.Do("ACL", "LOG").([]any) {
			// What the doctor itself tried is in a transaction, or about the server.
			if s := fmt.Sprint(e); !strings.Contains(s, "context multi") && !strings.Contains(s, "object config|get") && !strings.Contains(s, "object pubsub|numsub") {
				t.Errorf("a right is missing: %s", s)
			}
		}
	}

	// One of them is enough to find the others. The data servers by themselves are not to be named.
	one := o
	one.Sentinels = o.Sentinels[1:2]
	if f, subjects = look(t, one); len(f.Sentinels) != 3 || len(f.Servers) != 3 {
		t.Errorf("got %+v", f)
	}
	want(t, subjects, Warning, "mymaster", "url", "1 of 3")
	_, subjects = look(t, parse(t, primary.URL()))
	want(t, subjects, Danger, primary.Addr, "topology", "3 Sentinels watch")
	_, subjects = look(t, parse(t, replica.URL()))
	want(t, subjects, Danger, replica.Addr, "topology", "replica of "+primary.Addr)
	one.Sentinels = []string{o.Sentinels[1], strings.Replace(o.Sentinels[1], "127.0.0.1", "localhost", 1)} // twice the same
	if f, _ = look(t, one); len(f.Sentinels) != 3 {
		t.Errorf("by another name: got %+v", f.Sentinels)
	}
	wrong := o
	wrong.Master = "other"
	if f, err := Look(context.Background(), wrong, Use{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("another name: got %v", err)
	} else {
		want(t, Judge(f), Danger, set.Sentinels[0].Addr, "reach", "watches nobody of the name other")
	}

	for _, s := range set.Sentinels {
		s.Do("SENTINEL", "DEBUG", "info-period", "100") // by themselves they ask every ten seconds
	}
	primary.Do("CONFIG", "SET", "appendonly", "no")
	replica.Do("CONFIG", "SET", "maxmemory", "1mb", "replica-read-only", "no", "replica-priority", "0")
	set.Sentinels[0].Do("SENTINEL", "SET", "mymaster", "quorum", "1")
	set.Sentinels[2].Do("SENTINEL", "SET", "mymaster", "down-after-milliseconds", "30000")
	set.Sentinels[2].Do("SENTINEL", "SET", "mymaster", "failover-timeout", "180000")
	subjects = eventually(t, o, Warning, "mymaster", "priority", "0 ("+replica.Addr+")")
	want(t, subjects, Danger, primary.Addr, "persistence", "none")
	want(t, subjects, Danger, replica.Addr, "replica-memory", "1.0 MiB here")
	want(t, subjects, Danger, replica.Addr, "read-only", "")
	want(t, subjects, Warning, "mymaster", "agreement", "quorum")
	want(t, subjects, Warning, "mymaster", "agreement", "down-after-milliseconds is not the same")
	want(t, subjects, Warning, "mymaster", "quorum", "quorum 1")
	want(t, subjects, Warning, "mymaster", "hold", "30s")
	want(t, subjects, Warning, "mymaster", "window", "30s")
	want(t, subjects, Warning, "mymaster", "failover-timeout", "3m0s")
	want(t, subjects, Warning, "mymaster", "replicas", "one replica")
	for _, f := range append(find(subjects, "mymaster", "hold"), find(subjects, "mymaster", "agreement")...) {
		command, ok := strings.CutPrefix(f.Remedy[0], "on each Sentinel: ")
		if !ok {
			command, _ = strings.CutPrefix(f.Remedy[0], "on each: ")
		}
		for _, s := range set.Sentinels {
			s.Do(strings.Fields(command)...)
		}
	}
	_, subjects = look(t, o)
	want(t, subjects, OK, "mymaster", "agreement", "")

	strict := o
	strict.Failover.Lease = 3 * time.Second
	_, subjects = look(t, strict)
	want(t, subjects, Danger, "mymaster", "lease", "3s")

	// A second primary, behind the Sentinels' back.
	other := set.Nodes[2]
	other.Do("REPLICAOF", "NO", "ONE")
	_, subjects = look(t, o)
	want(t, subjects, Danger, "mymaster", "roles", other.Addr)

	set.Sentinels[0].Stop()
	set.Sentinels[1].Stop()
	subjects = eventually(t, o, Danger, "mymaster", "ckquorum", "NOQUORUM")
	want(t, subjects, Danger, "mymaster", "sentinels", "1 of them answer")
	want(t, subjects, Warning, set.Sentinels[0].Addr, "reach", "the other Sentinels say, too")
}

func TestSentinelsWithPasswordsAndTLS(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{
		Node:     []testserver.RedisOption{testserver.WithTLS(), testserver.WithPassword("app", "datasecret")},
		Sentinel: []testserver.RedisOption{testserver.WithPassword("", "sentinelsecret")},
	})
	f, subjects := look(t, parse(t, set.URL()))
	if len(f.Servers) != 3 || len(f.Sentinels) != 3 {
		t.Fatalf("got %+v", f)
	}
	for _, s := range f.Servers {
		if s.Err != "" || s.Open != Shut {
			t.Errorf("got %+v", s)
		}
	}
	for _, s := range f.Sentinels {
		if s.Err != "" || s.Open != Shut {
			t.Errorf("got %+v", s)
		}
	}
	if text := fmt.Sprint(subjects); strings.Contains(text, "secret") {
		t.Errorf("a password is shown: %s", text)
	}
}

func TestCluster(t *testing.T) {
	set := testserver.Cluster(t, testserver.ClusterOptions{Node: []testserver.RedisOption{testserver.Persistent(), testserver.WithConf("maxmemory 1gb")}})
	o := parse(t, set.URL())
	f, subjects := look(t, o)
	if len(f.Servers) != 6 {
		t.Fatalf("got %d servers: %+v", len(f.Servers), f)
	}
	all := "cluster of " + o.Cluster[0]
	if n := Count(subjects); n[Danger] > 0 || n[Unseen] > 0 {
		t.Errorf("got %v:%s", n, said(subjects))
	}
	for _, check := range []string{"state", "slots", "replicas", "full-coverage", "hold", "window"} {
		want(t, subjects, OK, all, check, "")
	}
	want(t, subjects, Warning, all, "hosts", "3 of 3 primaries are on 127.0.0.1")

	twice := o
	twice.Cluster = []string{o.Cluster[0], strings.Replace(o.Cluster[0], "127.0.0.1", "localhost", 1)}
	if f, _ := look(t, twice); len(f.Servers) != 6 {
		t.Errorf("by another name: got %+v", f.Servers)
	}

	primary := set.Nodes[0]
	replica := set.ReplicaOf(primary)
	set.BeginMove(primary, set.Nodes[1], 7)
	primary.Do("CONFIG", "SET", "cluster-require-full-coverage", "yes", "cluster-node-timeout", "15000", "cluster-replica-validity-factor", "0")
	replica.Do("CONFIG", "SET", "cluster-replica-no-failover", "yes")
	_, subjects = look(t, o)
	want(t, subjects, Warning, all, "moving", "[7->-")
	want(t, subjects, Warning, all, "full-coverage", primary.Addr)
	want(t, subjects, Warning, all, "validity", primary.Addr)
	want(t, subjects, Warning, all, "node-timeout", "15000 ("+primary.Addr+")")
	want(t, subjects, Warning, all, "hold", "15s")
	want(t, subjects, Danger, all, "replicas", primary.Addr)
	_, subjects = look(t, parse(t, primary.URL()))
	want(t, subjects, Danger, primary.Addr, "topology", "node of a Cluster")
	plain := testserver.Redis(t)
	if f, err := Look(context.Background(), parse(t, "redis-cluster://"+plain.Addr), Use{}); err != nil {
		t.Error(err)
	} else {
		want(t, Judge(f), Danger, plain.Addr, "cluster", "not in cluster mode")
	}

	replica.Kill()
	primary.Kill()
	subjects = eventually(t, o, Danger, all, "slots", "one that does not answer")
	want(t, subjects, Danger, primary.Addr, "reach", "refused")
	want(t, subjects, Warning, all, "nodes", primary.Addr)
}
