package doctor

import (
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store/redis"
)

// goodServer is one of which there is nothing to say.
func goodServer(addr string) Server {
	return Server{
		Addr: addr,
		Info: Fields{
			"redis_version": "8.10.1", "role": "master", "cluster_enabled": "0", "process_supervised": "systemd", "uptime_in_seconds": "100000",
			"maxmemory_policy": "noeviction", "maxmemory": "1073741824", "used_memory": "104857600", "total_system_memory": "8589934592", "evicted_keys": "0",
			"rdb_last_bgsave_status": "ok", "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok", "aof_enabled": "1", "loading": "0",
			"maxclients": "10000", "connected_clients": "20", "rejected_connections": "0", "connected_slaves": "0",
			"master_repl_offset": "1000", "repl_backlog_size": "67108864", "total_net_input_bytes": "1000", "instantaneous_repl_output_kbps": "0.10",
		},
		Config: Fields{
			"aclfile": "", "appendfsync": "everysec", "bind": "*", "cluster-node-timeout": "1500", "cluster-replica-no-failover": "no", "cluster-replica-validity-factor": "10",
			"cluster-require-full-coverage": "no", "min-replicas-max-lag": "2", "min-replicas-to-write": "1", "proto-max-bulk-len": "536870912", "protected-mode": "yes",
			"replica-priority": "100", "replica-read-only": "yes", "save": "", "tcp-keepalive": "300", "timeout": "0",
		},
		Open: Shut, Clock: &Clock{Ahead: time.Millisecond, Within: time.Millisecond}, Watchers: 0, Unseen: map[string]string{},
	}
}

func goodReplica(addr string) Server {
	s := goodServer(addr)
	maps.Copy(s.Info, Fields{"role": "slave", "slave_read_only": "1", "slave_repl_offset": "1000", "slave_priority": "100",
		"master_host": "10.0.0.1", "master_port": "6379", "master_link_status": "up", "master_last_io_seconds_ago": "0"})
	return s
}

func withReplicas(s Server, addrs ...string) Server {
	s.Info["connected_slaves"] = fmt.Sprint(len(addrs))
	for i, a := range addrs {
		host, port, _ := strings.Cut(a, ":")
		s.Info[fmt.Sprint("slave", i)] = "ip=" + host + ",port=" + port + ",state=online,offset=1000,lag=0"
	}
	return s
}

func goodSingle() Facts {
	f := Facts{Use: Use{Hold: 10 * time.Second}, Options: options(redis.Options{Addr: "10.0.0.1:6379"}), Servers: []Server{goodServer("10.0.0.1:6379")}}
	f.Servers[0].Config["min-replicas-to-write"] = "0"
	return f
}

func goodSentinels() Facts {
	hosts := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}
	f := Facts{Use: Use{Hold: 10 * time.Second}, Options: options(redis.Options{Sentinels: []string{"10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26379"}, Master: "mymaster"})}
	f.Servers = []Server{withReplicas(goodServer("10.0.0.1:6379"), "10.0.0.2:6379", "10.0.0.3:6379"), goodReplica("10.0.0.2:6379"), goodReplica("10.0.0.3:6379")}
	for i, h := range hosts {
		s := Sentinel{Addr: h + ":26379", Named: true, ID: h, Info: Fields{"redis_version": "8.10.1", "sentinel_tilt": "0"}, Open: Shut,
			Master: Fields{"ip": "10.0.0.1", "port": "6379", "flags": "master", "quorum": "2", "down-after-milliseconds": "1000", "failover-timeout": "30000",
				"num-slaves": "2", "num-other-sentinels": "2"}}
		for j, o := range hosts {
			if j != i {
				s.Sentinels = append(s.Sentinels, Fields{"ip": o, "port": "26379", "runid": o, "flags": "sentinel"})
			}
			if j != 0 {
				s.Replicas = append(s.Replicas, Fields{"ip": o, "port": "6379", "flags": "slave", "slave-priority": "100"})
			}
		}
		f.Sentinels = append(f.Sentinels, s)
	}
	for i := range f.Servers {
		f.Servers[i].Watchers = 3
	}
	return f
}

func goodCluster() Facts {
	f := Facts{Use: Use{Hold: 10 * time.Second}, Options: options(redis.Options{Cluster: []string{"10.0.0.1:6379"}})}
	var nodes []Node
	for i := range 3 {
		primary, replica := fmt.Sprintf("10.0.0.%d:6379", i+1), fmt.Sprintf("10.0.0.%d:6380", (i+1)%3+1)
		slots := 5461
		if i == 0 {
			slots++
		}
		nodes = append(nodes, Node{ID: fmt.Sprint("p", i), Addr: primary, Flags: []string{"master"}, Linked: true, Slots: slots},
			Node{ID: fmt.Sprint("r", i), Addr: replica, Flags: []string{"slave"}, Primary: fmt.Sprint("p", i), Linked: true})
	}
	for i, n := range nodes {
		s := withReplicas(goodServer(n.Addr), "10.0.0.9:6379", "10.0.0.8:6379")
		if n.Primary != "" {
			s = goodReplica(n.Addr)
		}
		s.Info["cluster_enabled"] = "1"
		s.State = Fields{"cluster_state": "ok", "cluster_slots_fail": "0", "cluster_slots_pfail": "0"}
		for j, o := range nodes {
			if j == i {
				o.Flags = append([]string{"myself"}, o.Flags...)
			}
			s.Nodes = append(s.Nodes, o)
		}
		f.Servers = append(f.Servers, s)
	}
	return f
}

// options are complete, with TLS and nothing to be afraid of.
func options(o redis.Options) redis.Options {
	o.TLS = &tls.Config{}
	o, err := o.Completed()
	if err != nil {
		panic(err)
	}
	o.Sentinel.TLS = o.TLS
	o.MaxValue = 1 << 20
	return o
}

func TestNothingToSay(t *testing.T) {
	for name, f := range map[string]Facts{"single": goodSingle(), "sentinels": goodSentinels(), "cluster": goodCluster()} {
		subjects := Judge(f)
		if n := Count(subjects); n[Danger]+n[Warning]+n[Unseen] > 0 || n[OK] < 8 {
			t.Errorf("%s: got %v:%s", name, n, said(subjects))
		}
	}
}

// said writes what is not in order.
func said(subjects []Subject) string {
	var b strings.Builder
	for _, s := range subjects {
		for _, f := range s.Findings {
			if f.Level != OK {
				fmt.Fprintf(&b, "\n%s %s: %s %s: %s", s.Role, s.Name, f.Level, f.Check, f.What)
			}
		}
	}
	return b.String()
}

// finding is one that is expected: of that server (or set), with that in its text or remedy.
type finding struct {
	level              Level
	check, name, words string
}

func TestJudge(t *testing.T) {
	const first, second = "10.0.0.1:6379", "10.0.0.2:6379"
	server := func(i int, field, value string) func(*Facts) {
		return func(f *Facts) { f.Servers[i].Info[field] = value }
	}
	config := func(i int, field, value string) func(*Facts) {
		return func(f *Facts) { f.Servers[i].Config[field] = value }
	}
	both := func(fs ...func(*Facts)) func(*Facts) {
		return func(f *Facts) {
			for _, g := range fs {
				g(f)
			}
		}
	}
	master := func(field string, values ...string) func(*Facts) {
		return func(f *Facts) {
			for i, v := range values {
				f.Sentinels[i].Master[field] = v
			}
		}
	}
	all := func(field, value string) func(*Facts) { return master(field, value, value, value) }
	replicaOf := func(field string, values ...string) func(*Facts) { // in the eyes of all Sentinels
		return func(f *Facts) {
			for _, s := range f.Sentinels {
				for i, v := range values {
					s.Replicas[i][field] = v
				}
			}
		}
	}
	node := func(id string, change func(*Node)) func(*Facts) { // in the eyes of all nodes
		return func(f *Facts) {
			for _, s := range f.Servers {
				for i := range s.Nodes {
					if s.Nodes[i].ID == id {
						change(&s.Nodes[i])
					}
				}
			}
		}
	}
	everywhere := func(field, value string) func(*Facts) {
		return func(f *Facts) {
			for _, s := range f.Servers {
				s.Config[field] = value
			}
		}
	}

	for _, tc := range []struct {
		name   string
		good   func() Facts
		change func(*Facts)
		want   []finding // and nothing else that is not in order
	}{
		{"evicts, with a limit", goodSingle, server(0, "maxmemory_policy", "allkeys-lru"), []finding{{Danger, "eviction", first, "100.0 MiB of 1.0 GiB used"}}},
		{"would evict", goodSingle, both(server(0, "maxmemory_policy", "volatile-ttl"), server(0, "maxmemory", "0")),
			[]finding{{Warning, "eviction", first, "maxmemory-policy noeviction"}, {Warning, "memory", first, "CONFIG SET maxmemory 6442450944"}}},
		{"has evicted", goodSingle, server(0, "evicted_keys", "7"), []finding{{Warning, "eviction", first, "7 keys were evicted"}}},
		{"is filling up", goodSingle, server(0, "used_memory", "900000000"), []finding{{Warning, "memory", first, "84 % of maxmemory"}}},
		{"is full", goodSingle, server(0, "used_memory", "1073741000"), []finding{{Danger, "memory", first, "100 % of maxmemory"}}},
		{"no limit", goodSingle, server(0, "maxmemory", "0"), []finding{{Warning, "memory", first, "1 % of the machine's memory"}}},
		{"no limit, and the machine is full", goodSingle, both(server(0, "maxmemory", "0"), server(0, "used_memory", "8500000000")), []finding{{Danger, "memory", first, "99 %"}}},
		{"a limit that is none", goodSingle, server(0, "maxmemory", "99999999999"), []finding{{Warning, "memory", first, "the machine has 8.0 GiB"}}},
		{"keeps nothing", goodSingle, server(0, "aof_enabled", "0"), []finding{{Danger, "persistence", first, "appendonly yes"}}},
		{"keeps files now and then", goodSingle, both(server(0, "aof_enabled", "0"), config(0, "save", "3600 1 300 100"), server(0, "rdb_changes_since_last_save", "12")),
			[]finding{{Warning, "persistence", first, "12 changes since"}}},
		{"leaves the disk to the kernel", goodSingle, config(0, "appendfsync", "no"), []finding{{Warning, "persistence", first, "appendfsync everysec"}}},
		{"cannot write its file", goodSingle, server(0, "rdb_last_bgsave_status", "err"), []finding{{Danger, "saving", first, "rdb_last_bgsave_status err"}}},
		{"cannot write its log", goodSingle, server(0, "aof_last_write_status", "err"), []finding{{Danger, "saving", first, "aof_last_write_status err"}}},
		{"loads", goodSingle, server(0, "loading", "1"), []finding{{Danger, "saving", first, "loading"}}},
		{"many clients", goodSingle, server(0, "connected_clients", "8500"), []finding{{Warning, "clients", first, "8500 of 10000"}}},
		{"no room for clients", goodSingle, server(0, "connected_clients", "9999"), []finding{{Danger, "clients", first, "maxclients 20000"}}},
		{"refused clients", goodSingle, server(0, "rejected_connections", "3"), []finding{{Warning, "clients", first, "3 refused"}}},
		{"closes idle connections", goodSingle, config(0, "timeout", "3"), []finding{{Warning, "timeout", first, "timeout 0"}}},
		{"closes them late", goodSingle, config(0, "timeout", "300"), nil},
		{"keeps dead connections", goodSingle, config(0, "tcp-keepalive", "0"), []finding{{Warning, "keepalive", first, "300"}}},
		{"small values only", goodSingle, config(0, "proto-max-bulk-len", "1048575"), []finding{{Danger, "value-size", first, "max-value"}}},
		{"a clock ahead", goodSingle, func(f *Facts) { f.Servers[0].Clock = &Clock{1500 * time.Millisecond, 10 * time.Millisecond} }, []finding{{Danger, "clock", first, "1.5s ahead"}}},
		{"a clock behind", goodSingle, func(f *Facts) { f.Servers[0].Clock = &Clock{-200 * time.Millisecond, 10 * time.Millisecond} }, []finding{{Warning, "clock", first, "200ms behind"}}},
		{"a clock that may be right", goodSingle, func(f *Facts) { f.Servers[0].Clock = &Clock{200 * time.Millisecond, 150 * time.Millisecond} }, []finding{{Unseen, "clock", first, "give or take 150ms"}}},
		{"open", goodSingle, func(f *Facts) { f.Servers[0].Open = Open }, []finding{{Danger, "open", first, "requirepass"}}},
		{"open to whom?", goodSingle, func(f *Facts) { f.Servers[0].Open = Unknown }, []finding{{Unseen, "open", first, "bind"}}},
		{"in clear", goodSingle, func(f *Facts) { f.Options.TLS = nil }, []finding{{Warning, "tls", first, "rediss://"}}},
		{"lacks rights", goodSingle, func(f *Facts) { f.Servers[0].Rights.Missing = []string{"+pexpire", "~sessile:*"} },
			[]finding{{Danger, "rights", first, "ACL SETUSER default '+pexpire' '~sessile:*'"}}},
		{"has too many", goodSingle, func(f *Facts) {
			f.Servers[0].Rights.Excess = []string{"empty the database (FLUSHALL)"}
			f.Servers[0].Config["aclfile"] = "/etc/redis/users.acl"
		}, []finding{{Warning, "acl", first, "ACL SAVE"}}},
		{"does not say", goodSingle, func(f *Facts) {
			f.Servers[0].Info, f.Servers[0].Config, f.Servers[0].Clock = nil, nil, nil
			f.Servers[0].Unseen = map[string]string{"INFO": "NOPERM i", "CONFIG": "NOPERM c", "TIME": "NOPERM t", "MULTI": "NOPERM m"}
		}, []finding{{Unseen, "rights", first, "NOPERM m"}, {Unseen, "info", first, "NOPERM i"}, {Unseen, "config", first, "NOPERM c"}, {Unseen, "time", first, "NOPERM t"}}},
		{"does not say its configuration", goodSingle, func(f *Facts) {
			f.Servers[0].Config, f.Servers[0].Info["aof_enabled"] = nil, "0"
			f.Servers[0].Unseen = map[string]string{"CONFIG": "NOPERM"}
		}, []finding{{Unseen, "persistence", first, "RDB"}, {Unseen, "config", first, "appendfsync"}}},
		{"does not say all of it", goodSingle, func(f *Facts) { delete(f.Servers[0].Config, "timeout") }, []finding{{Unseen, "config", first, "timeout"}}},
		{"does not answer", goodSingle, func(f *Facts) { f.Servers[0] = Server{Addr: first, Err: "connection refused"} }, []finding{{Danger, "reach", first, "connection refused"}}},
		{"a node of a Cluster", goodSingle, server(0, "cluster_enabled", "1"), []finding{{Danger, "topology", first, "redis-cluster://10.0.0.1:6379"}}},
		{"a replica", goodSingle, func(f *Facts) { f.Servers[0] = goodReplica(first); f.Servers[0].Config["min-replicas-to-write"] = "0" }, []finding{{Danger, "topology", first, "replica of 10.0.0.1:6379"}}},
		{"watched", goodSingle, func(f *Facts) { f.Servers[0].Watchers = 3 }, []finding{{Danger, "topology", first, "3 Sentinels watch"}}},
		{"waits for replicas that it has not", goodSingle, config(0, "min-replicas-to-write", "1"), []finding{{Danger, "min-replicas", first, "0 replicas are online"}}},
		{"an old version", goodSingle, server(0, "redis_version", "6.2.24"), []finding{{Danger, "version", first, "7.0 is needed"}, {Warning, "version", first, "CVE-2022-0543"}}},
		{"Debian 12's", goodSingle, server(0, "redis_version", "7.0.15"), []finding{{Warning, "version", first, "5:7.0.15-1~deb12u10"}}},
		{"no version", goodSingle, server(0, "redis_version", "unstable"), []finding{{Unseen, "version", first, ""}}},

		{"a replica that takes writes", goodSentinels, server(1, "slave_read_only", "0"), []finding{{Danger, "read-only", second, "replica-read-only yes"}}},
		{"a link that is down", goodSentinels, both(server(1, "master_link_status", "down"), server(1, "master_link_down_since_seconds", "42")), []finding{{Danger, "link", second, "42 s"}}},
		{"a silent link", goodSentinels, server(1, "master_last_io_seconds_ago", "30"), []finding{{Warning, "link", second, "for 30 s, 0 B behind"}}},
		{"a replica with less memory", goodSentinels, server(1, "maxmemory", "536870912"), []finding{{Warning, "replica-memory", second, "CONFIG SET maxmemory 1073741824"}}},
		{"a replica with too little memory", goodSentinels, server(1, "maxmemory", "52428800"), []finding{{Danger, "replica-memory", second, "50.0 MiB here"}, {Danger, "memory", second, "200 %"}}},
		{"a replica that is not online", goodSentinels, server(0, "slave0", "ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0"),
			[]finding{{Warning, "replicas", first, "10.0.0.2:6379 is wait_bgsave"}, {Warning, "min-replicas", first, "1 replica is online"}}},
		{"a replica that lags", goodSentinels, server(0, "slave0", "ip=10.0.0.2,port=6379,state=online,offset=0,lag=20"), []finding{{Warning, "replicas", first, "20 s ago"}}},
		{"a small backlog", goodSentinels, both(server(0, "repl_backlog_size", "1048576"), server(0, "instantaneous_repl_output_kbps", "2048.00")), []finding{{Warning, "backlog", first, "holds 1 s"}}},
		{"a small backlog, on average", goodSentinels, both(server(0, "repl_backlog_size", "1048576"), server(0, "master_repl_offset", "99999999999"), server(0, "total_net_input_bytes", "9999999999")),
			[]finding{{Warning, "backlog", first, "CONFIG SET repl-backlog-size"}}},
		{"an offset of a former primary", goodSentinels, server(0, "master_repl_offset", "99999999999"), nil},
		{"no bound on a cut-off primary", goodSentinels, everywhere("min-replicas-to-write", "0"),
			[]finding{{Warning, "min-replicas", first, "45116"}, {Warning, "min-replicas", second, ""}, {Warning, "min-replicas", "10.0.0.3:6379", ""}}},
		{"the lease bounds it", goodSentinels, func(f *Facts) {
			everywhere("min-replicas-to-write", "0")(f)
			f.Options.Failover.Lease = 500 * time.Millisecond
		}, nil},
		{"needs all replicas", goodSentinels, config(0, "min-replicas-to-write", "2"), []finding{{Warning, "min-replicas", first, "one more replica"}}},
		{"needs more than all", goodSentinels, config(0, "min-replicas-to-write", "3"), []finding{{Danger, "min-replicas", first, "NOREPLICAS"}}},
		{"a long lag", goodSentinels, config(0, "min-replicas-max-lag", "60"), []finding{{Warning, "min-replicas", first, "min-replicas-max-lag 2"}}},
		{"an empty primary comes back", goodSentinels, server(0, "aof_enabled", "0"), []finding{{Danger, "persistence", first, "RestartSec=11"}}},
		{"an old primary comes back", goodSentinels, both(server(0, "aof_enabled", "0"), config(0, "save", "3600 1")), []finding{{Warning, "persistence", first, "restarted by systemd"}}},

		{"two Sentinels", goodSentinels, func(f *Facts) { f.Sentinels = f.Sentinels[:2] },
			[]finding{{Danger, "sentinels", "mymaster", "2 Sentinels known"}, {Warning, "strangers", "mymaster", "3 Sentinels listen to 10.0.0.1:6379, and 2 are known"}}},
		{"four", goodSentinels, func(f *Facts) {
			s := f.Sentinels[2]
			s.Addr, s.ID = "10.0.0.4:26379", "4"
			f.Sentinels = append(f.Sentinels, s)
		}, []finding{{Warning, "sentinels", "mymaster", "even"}}},
		{"one is down", goodSentinels, func(f *Facts) {
			f.Sentinels[2] = Sentinel{Addr: "10.0.0.3:26379", Err: "connection refused"}
			f.Sentinels[0].Sentinels[1]["flags"] = "s_down,sentinel,disconnected"
		}, []finding{{Warning, "sentinels", "mymaster", "2 of them answer"}, {Warning, "reach", "10.0.0.3:26379", "the other Sentinels say, too"}}},
		{"we reach no majority", goodSentinels, func(f *Facts) {
			for i := range 2 {
				f.Sentinels[i] = Sentinel{Addr: f.Sentinels[i].Addr, Err: "i/o timeout"}
			}
		}, []finding{{Danger, "sentinels", "mymaster", "a majority is 2"}, {Warning, "reach", "10.0.0.1:26379", "cannot be asked: i/o timeout"}, {Warning, "reach", "10.0.0.2:26379", ""}}},
		{"none of them watches it", goodSentinels, func(f *Facts) {
			f.Servers = nil
			for i := range f.Sentinels {
				f.Sentinels[i].Master, f.Sentinels[i].Replicas = nil, nil
			}
		}, []finding{{Danger, "sentinels", "mymaster", "0 of them answer"}, {Danger, "replicas", "mymaster", ""}, {Danger, "reach", "10.0.0.1:26379", "SENTINEL MONITOR mymaster"},
			{Danger, "reach", "10.0.0.2:26379", ""}, {Danger, "reach", "10.0.0.3:26379", ""}}},
		{"the URL names one", goodSentinels, func(f *Facts) { f.Options.Sentinels = f.Options.Sentinels[:1] }, []finding{{Warning, "url", "mymaster", "1 of 3"}}},
		{"no quorum", goodSentinels, func(f *Facts) { f.Sentinels[1].Quorum = "NOQUORUM 1 usable Sentinels" }, []finding{{Danger, "ckquorum", "mymaster", "10.0.0.2:26379: NOQUORUM"}}},
		{"two Sentinels on one machine", goodSentinels, func(f *Facts) { f.Sentinels[1].Addr = "10.0.0.1:26380" }, []finding{{Warning, "hosts", "mymaster", "2 of 3 Sentinels are on 10.0.0.1"}}},
		{"all servers on one machine", goodSentinels, func(f *Facts) {
			for i := range f.Servers {
				f.Servers[i].Addr = fmt.Sprint("10.0.0.1:", 6379+i)
			}
		}, []finding{{Warning, "hosts", "mymaster", "all 3 servers"}}},
		{"two primaries are named", goodSentinels, master("ip", "10.0.0.1", "10.0.0.2"), []finding{{Danger, "address", "mymaster", "10.0.0.2:6379 (10.0.0.2:26379)"}}},
		{"named by a loopback address", goodSentinels, func(f *Facts) { all("ip", "127.0.0.1")(f); f.Servers[0].Addr = "127.0.0.1:6379" }, []finding{{Danger, "address", "mymaster", "127.0.0.1:6379"}}},
		{"the primary is a replica", goodSentinels, func(f *Facts) {
			f.Servers[0] = goodReplica(first)
			f.Servers[0].Watchers = 3
		}, []finding{{Danger, "roles", "mymaster", "says that it is a replica"}}},
		{"a replica is a primary", goodSentinels, both(server(1, "role", "master"), config(1, "min-replicas-to-write", "0"), func(f *Facts) { f.Options.Failover.Lease = time.Millisecond }),
			[]finding{{Danger, "roles", "mymaster", "REPLICAOF 10.0.0.1 6379"}}},
		{"other quorums", goodSentinels, master("quorum", "2", "2", "3"), []finding{{Warning, "agreement", "mymaster", "SENTINEL SET mymaster quorum 2"}}},
		{"other down-afters", goodSentinels, master("down-after-milliseconds", "1000", "1000", "1200"), []finding{{Warning, "agreement", "mymaster", "1200 (10.0.0.3:26379)"}}},
		{"one that knows fewer", goodSentinels, master("num-other-sentinels", "1"), []finding{{Warning, "agreement", "mymaster", "SENTINEL RESET"}}},
		{"a quorum of one", goodSentinels, all("quorum", "1"), []finding{{Warning, "quorum", "mymaster", "quorum 2"}}},
		{"a quorum of all", goodSentinels, all("quorum", "3"), []finding{{Warning, "quorum", "mymaster", "quorum 3 of 3"}}},
		{"slow to notice", goodSentinels, all("down-after-milliseconds", "30000"), []finding{{Warning, "hold", "mymaster", "fail for 21.5s"}, {Warning, "window", "mymaster", "replay=33s"}}},
		{"slow to notice, without a window", goodSentinels, func(f *Facts) {
			all("down-after-milliseconds", "30000")(f)
			f.Options.Failover.Replay = -1
		}, []finding{{Warning, "hold", "mymaster", "down-after-milliseconds 2000"}}},
		{"too quick", goodSentinels, all("down-after-milliseconds", "300"), []finding{{Warning, "down-after", "mymaster", "1000"}}},
		{"as quick as the lease", goodSentinels, func(f *Facts) { f.Options.Failover.Lease = 900 * time.Millisecond }, []finding{{Danger, "lease", "mymaster", "1800"}}},
		{"quicker than the lease", goodSentinels, func(f *Facts) { f.Options.Failover.Lease = 500 * time.Millisecond }, nil},
		{"slow to try again", goodSentinels, all("failover-timeout", "180000"), []finding{{Warning, "failover-timeout", "mymaster", "6m0s"}}},
		{"one replica", goodSentinels, func(f *Facts) {
			f.Servers = f.Servers[:2]
			withReplicas(f.Servers[0], second)
			all("num-slaves", "1")(f)
			for i := range f.Sentinels {
				f.Sentinels[i].Replicas = f.Sentinels[i].Replicas[:1]
			}
		}, []finding{{Warning, "replicas", "mymaster", "one replica"}, {Warning, "min-replicas", first, "one replica less"}}},
		{"replicas that may not", goodSentinels, replicaOf("slave-priority", "0", "0"), []finding{{Danger, "replicas", "mymaster", "replica-priority 100"}, {Warning, "priority", "mymaster", ""}}},
		{"one that may not", goodSentinels, replicaOf("slave-priority", "0"), []finding{{Warning, "replicas", "mymaster", ""}, {Warning, "priority", "mymaster", "0 (10.0.0.2:6379)"}}},
		{"a favourite", goodSentinels, replicaOf("slave-priority", "50"), []finding{{Warning, "priority", "mymaster", "50 (10.0.0.2:6379)"}}},
		{"the primary's own priority", goodSentinels, config(0, "replica-priority", "10"), []finding{{Warning, "priority", "mymaster", "10 (10.0.0.1:6379)"}}},
		{"a stale replica", goodSentinels, replicaOf("flags", "s_down,slave,disconnected"), []finding{{Warning, "stale", "mymaster", second}, {Warning, "replicas", "mymaster", "one replica"}}},
		{"sees the primary down", goodSentinels, func(f *Facts) { f.Sentinels[1].Master["flags"] = "s_down,master" }, []finding{{Danger, "down", "10.0.0.2:26379", "auth-pass"}}},
		{"in tilt", goodSentinels, func(f *Facts) { f.Sentinels[1].Info["sentinel_tilt"] = "1" }, []finding{{Danger, "tilt", "10.0.0.2:26379", ""}}},
		{"an open Sentinel", goodSentinels, func(f *Facts) { f.Sentinels[1].Open = Open }, []finding{{Danger, "open", "10.0.0.2:26379", "sentinel-pass"}}},
		{"Sentinels in clear", goodSentinels, func(f *Facts) { f.Options.Sentinel.TLS = nil },
			[]finding{{Warning, "tls", "10.0.0.1:26379", ""}, {Warning, "tls", "10.0.0.2:26379", ""}, {Warning, "tls", "10.0.0.3:26379", ""}}},

		{"a Cluster that fails", goodCluster, func(f *Facts) { f.Servers[2].State["cluster_state"] = "fail" }, []finding{{Danger, "state", clusterName, "fail (10.0.0.2:6379)"}}},
		{"slots without an owner", goodCluster, node("p1", func(n *Node) { n.Slots = 5000 }), []finding{{Danger, "slots", clusterName, "15923 of 16384"}}},
		{"slots of a dead owner", goodCluster, func(f *Facts) { f.Servers[0].State["cluster_slots_pfail"] = "5461" }, []finding{{Danger, "slots", clusterName, "5461"}}},
		{"different views", goodCluster, func(f *Facts) { f.Servers[3].Nodes[0].Slots--; f.Servers[3].Nodes[2].Slots++ }, []finding{{Warning, "view", clusterName, "p0:5461"}}},
		{"slots on their way", goodCluster, node("p1", func(n *Node) { n.Moving = []string{"[93->-p2]"} }), []finding{{Warning, "moving", clusterName, "[93->-p2] at 10.0.0.2:6379"}}},
		{"a slot that is only half on its way", goodCluster, node("p1", func(n *Node) { n.Moving = []string{"[93-<-p0]"} }),
			[]finding{{Danger, "moving", clusterName, "slot 93 is on its way to 10.0.0.2:6379"}, {Warning, "moving", clusterName, "[93-<-p0] at 10.0.0.2:6379"}}},
		{"a dead replica", goodCluster, node("r1", func(n *Node) { n.Flags = append(n.Flags, "fail") }), []finding{{Danger, "replicas", clusterName, "10.0.0.2:6379"}, {Warning, "nodes", clusterName, "fail"}}},
		{"replicas that may not take over", goodCluster, config(3, "cluster-replica-no-failover", "yes"), []finding{{Danger, "replicas", clusterName, "10.0.0.2:6379"}}},
		{"a replica beside its primary", goodCluster, node("r1", func(n *Node) { n.Addr = "10.0.0.2:6380" }), []finding{{Warning, "hosts", clusterName, "10.0.0.2:6379"}}},
		{"two primaries on one machine", goodCluster, node("p1", func(n *Node) { n.Addr = "10.0.0.1:6390" }), []finding{{Warning, "hosts", clusterName, "2 of 3 primaries are on 10.0.0.1"}}},
		{"two primaries in all", goodCluster, func(f *Facts) {
			node("p0", func(n *Node) { n.Slots = 8192 })(f)
			node("p1", func(n *Node) { n.Slots = 8192 })(f)
			node("p2", func(n *Node) { n.Slots = 0 })(f)
		}, []finding{{Danger, "primaries", clusterName, "2 primaries"}}},
		{"all for one", goodCluster, config(1, "cluster-require-full-coverage", "yes"), []finding{{Warning, "full-coverage", clusterName, "10.0.0.2:6380"}}},
		{"any replica will do", goodCluster, config(1, "cluster-replica-validity-factor", "0"), []finding{{Warning, "validity", clusterName, "10.0.0.2:6380"}}},
		{"other timeouts", goodCluster, config(1, "cluster-node-timeout", "1200"), []finding{{Warning, "node-timeout", clusterName, "1200 (10.0.0.2:6380)"}}},
		{"a long timeout", goodCluster, everywhere("cluster-node-timeout", "15000"), []finding{{Warning, "hold", clusterName, "fail for 6s"}, {Warning, "window", clusterName, "replay=17s"}}},
		{"no Cluster", goodCluster, func(f *Facts) {
			f.Servers = f.Servers[:1]
			f.Servers[0].Info["cluster_enabled"], f.Servers[0].Nodes = "0", nil
		}, []finding{{Danger, "cluster", clusterName, ""}, {Danger, "cluster", first, "redis://10.0.0.1:6379"}}},
		{"a Cluster that does not say", goodCluster, func(f *Facts) {
			f.Servers = f.Servers[:1]
			f.Servers[0].Nodes, f.Servers[0].Unseen = nil, map[string]string{"CLUSTER": "NOPERM"}
		}, []finding{{Danger, "cluster", clusterName, "CLUSTER NODES"}, {Unseen, "cluster", first, "NOPERM"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.good()
			tc.change(&f)
			subjects := Judge(f)
			var rest []finding
			for _, s := range subjects {
				for _, got := range s.Findings {
					if !slices.Contains(Checks, got.Check) {
						t.Errorf("%s is not among the checks", got.Check)
					}
					if got.Level != OK {
						rest = append(rest, finding{got.Level, got.Check, s.Name, got.What + "\n" + got.Why + "\n" + strings.Join(got.Remedy, "\n")})
					}
				}
			}
			for _, want := range tc.want {
				i := slices.IndexFunc(rest, func(got finding) bool {
					return got.level == want.level && got.check == want.check && got.name == want.name && strings.Contains(got.words, want.words)
				})
				if i < 0 {
					t.Errorf("no %v, but%s", want, said(subjects))
					continue
				}
				rest = slices.Delete(rest, i, i+1)
			}
			if len(rest) > 0 {
				t.Errorf("got %v, too", rest)
			}
		})
	}
}

const clusterName = "cluster of 10.0.0.1:6379"

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		product, version string
		has, hasNot      []string
	}{
		{"redis", "7.0.15", []string{"CVE-2025-49844", "CVE-2026-23631"}, []string{"CVE-2022-24834", "CVE-2026-23479", "CVE-2022-0543"}},
		{"redis", "7.0.11", []string{"CVE-2022-24834"}, nil},
		{"redis", "6.2.24", []string{"CVE-2022-0543"}, []string{"CVE-2026-23631"}},
		{"redis", "7.2.10", []string{"CVE-2025-49844"}, []string{"CVE-2025-32023"}},
		{"redis", "7.2.11", []string{"CVE-2026-25243"}, []string{"CVE-2025-49844"}},
		{"redis", "8.0.4", []string{"CVE-2026-25243"}, []string{"CVE-2025-49844", "CVE-2025-21605"}},
		{"redis", "8.10.0", []string{"CVE-2026-81934"}, []string{"CVE-2026-25243"}},
		{"redis", "8.10.1", nil, []string{"CVE"}},
		{"redis", "9.0.0-rc1", nil, []string{"CVE"}},
		{"valkey", "8.0.5", []string{"CVE-2025-49844"}, []string{"CVE-2025-32023"}},
		{"valkey", "9.0.4", nil, []string{"CVE"}},
		{"valkey", "9.1.0", nil, []string{"CVE"}},
	} {
		info := Fields{"redis_version": tc.version}
		if tc.product == "valkey" {
			info = Fields{"redis_version": "7.2.4", "valkey_version": tc.version}
		}
		var s Subject
		s.version(info)
		text := fmt.Sprint(s.Findings)
		for _, cve := range tc.has {
			if !strings.Contains(text, cve) {
				t.Errorf("%s %s: no %s in %s", tc.product, tc.version, cve, text)
			}
		}
		for _, cve := range tc.hasNot {
			if strings.Contains(text, cve) {
				t.Errorf("%s %s: %s in %s", tc.product, tc.version, cve, text)
			}
		}
	}
}

func TestWrite(t *testing.T) {
	f := goodSentinels()
	f.Servers[1].Info["maxmemory_policy"] = "allkeys-lru"
	f.Sentinels[0].Master["down-after-milliseconds"] = "30000"
	var plain, coloured strings.Builder
	Write(&plain, Judge(f), false)
	Write(&coloured, Judge(f), true)
	text := plain.String()
	// The worst comes first, the server with the worst, too.
	if i, j := strings.Index(text, "DANGER"), strings.Index(text, "warning"); i < 0 || j < i || !strings.HasPrefix(text, "\nreplica 10.0.0.2:6379\n  DANGER  eviction: ") {
		t.Errorf("got\n%s", text)
	}
	for line := range strings.Lines(text) {
		if len(line) > width+1 && !strings.HasPrefix(line, "          > ") {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	for _, want := range []string{"          > CONFIG SET maxmemory-policy noeviction\n", "  ok      address, "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.ContainsRune(text, '\x1b') || !strings.Contains(coloured.String(), "\x1b[1;31m  DANGER  \x1b[0m") {
		t.Errorf("colours: got %q", coloured.String())
	}
}

func TestEveryCheckIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for name := range strings.SplitSeq(cells[1], ",") {
				if name = strings.TrimSpace(name); strings.HasPrefix(name, "`") {
					documented = append(documented, strings.Trim(name, "`"))
				}
			}
		}
	}
	slices.Sort(documented)
	if checks := slices.Sorted(slices.Values(Checks)); !slices.Equal(documented, checks) {
		t.Errorf("docs/doctor.md has %q, and there are %q", documented, checks)
	}
}
