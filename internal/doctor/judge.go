package doctor

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	// election is what a failover takes once the primary counts as down: measured, from kill -9 under a down-after of 1 s
	// to the next write, 2.3 s.
	election = 1500 * time.Millisecond
	// drift is how much room there has to be between a lease and a failover.
	drift = 100 * time.Millisecond
)

// Judge says what the facts mean, the worst first.
func Judge(f Facts) []Subject {
	j := judge{Facts: f}
	switch {
	case len(f.Options.Sentinels) > 0:
		j.sentinels()
	case len(f.Options.Cluster) > 0:
		j.cluster()
	default:
		j.single()
	}
	return sorted(j.subjects)
}

type judge struct {
	Facts
	subjects []Subject
}

// set reports whether there are others to take over from a server.
func (j *judge) set() bool { return len(j.Options.Sentinels)+len(j.Options.Cluster) > 0 }

// noticed is how long it takes until a primary that is gone counts as down; 0: not known, or nobody looks.
func (j *judge) noticed() (d time.Duration) {
	for _, s := range j.Sentinels {
		d = max(d, time.Duration(s.Master.int("down-after-milliseconds"))*time.Millisecond)
	}
	if len(j.Options.Cluster) > 0 {
		for _, s := range j.Servers {
			d = max(d, time.Duration(s.Config.int("cluster-node-timeout"))*time.Millisecond)
		}
	}
	return d
}

func (j *judge) single() {
	if len(j.Servers) == 0 {
		return // somebody interrupted us
	}
	s := j.Servers[0]
	sub := j.server(s, nil)
	switch {
	case s.Info["cluster_enabled"] == "1":
		sub.add(Danger, "topology", "the server is a node of a Cluster, and the URL names one server",
			"Every session that lies on another node is refused.", "write redis-cluster://"+s.Addr+" for the URL")
	case s.Info["role"] == "slave":
		sub.add(Danger, "topology", "the server is a replica of "+net.JoinHostPort(s.Info["master_host"], s.Info["master_port"]),
			"A replica takes no writes: nobody can log in or out.", "name the primary, or its Sentinels: redis-sentinel://host:26379,.../name/0")
	case s.Watchers > 0:
		sub.add(Danger, "topology", plural(s.Watchers, "Sentinel watches", "Sentinels watch")+" the server, and the URL names the server",
			"After a failover it is no longer the primary: what is still written there is thrown away when it becomes a replica.",
			"name the Sentinels: redis-sentinel://host:26379,.../name/0")
	case s.Info.int("connected_slaves") > 0:
		sub.ok("topology", plural(int(s.Info.int("connected_slaves")), "replica", "replicas")+", and no Sentinel that makes one of them the primary")
	}
	j.subjects = append(j.subjects, sub)
}

// server judges what is true of any server with data. primary is the one that it replicates from, where that was asked.
func (j *judge) server(s Server, primary *Server) Subject {
	sub := Subject{Name: s.Addr, Role: "server"}
	if s.Err != "" {
		sub.add(Danger, "reach", "cannot be asked: "+s.Err,
			"Once it is the primary, no session can be read or written from here.", "is this its address as seen from here? firewall, user and password, TLS")
		return sub
	}
	replica := s.Info["role"] == "slave"
	if s.Info != nil {
		sub.Role = "primary"
		if replica {
			sub.Role = "replica"
		}
		sub.version(s.Info)
		sub.memory(s.Info)
		sub.saving(s.Info)
		if replica {
			j.replica(&sub, s, primary)
		}
		sub.clients(s.Info)
	}
	j.persistence(&sub, s)
	j.replication(&sub, s, replica)
	sub.clock(s)
	sub.connections(s.Config)
	j.valueSize(&sub, s.Config)
	j.entrance(&sub, s)
	j.rights(&sub, s)
	j.unseen(&sub, s)
	return sub
}

func (s *Subject) memory(info Fields) {
	policy, limit, used, evicted := info["maxmemory_policy"], info.int("maxmemory"), info.int("used_memory"), info.int("evicted_keys")
	noEviction := []string{"CONFIG SET maxmemory-policy noeviction", "CONFIG REWRITE"}
	switch {
	case policy == "noeviction" && evicted > 0:
		s.add(Warning, "eviction", fmt.Sprintf("maxmemory-policy noeviction, but %d keys were evicted since the server was started", evicted),
			"They may have been sessions: users who were logged out.", "CONFIG RESETSTAT, when you know where they went")
	case policy == "noeviction":
		s.ok("eviction", "maxmemory-policy noeviction")
	case limit > 0:
		s.add(Danger, "eviction", fmt.Sprintf("maxmemory-policy %s, %s of %s used, %d keys evicted since the server was started", policy, bytes(used), bytes(limit), evicted),
			"When the memory is full, users are logged out without a word to anybody.", noEviction...)
	default:
		s.add(Warning, "eviction", "maxmemory-policy "+policy+", without effect as long as maxmemory is 0",
			"Who sets maxmemory one day has users logged out without a word.", noEviction...)
	}

	room, of := limit, "maxmemory"
	if limit == 0 {
		room, of = info.int("total_system_memory"), "the machine's memory"
	}
	if room == 0 {
		return
	}
	share := float64(used) / float64(room)
	what := fmt.Sprintf("%s used, %.0f %% of %s (%s)", bytes(used), 100*share, of, bytes(room))
	full := "When it is full, nobody can log in; who is logged in keeps the session, but nothing new in it."
	if limit == 0 {
		full = "The kernel ends a server that takes too much (and that is all sessions, where nothing is on disk); maxmemory refuses writes before."
	}
	raise := fmt.Sprintf("CONFIG SET maxmemory %d", limit*3/2)
	if total := info.int("total_system_memory"); limit == 0 {
		raise = fmt.Sprintf("CONFIG SET maxmemory %d", total*3/4)
	} else if total > 0 && limit > total {
		s.add(Warning, "memory", fmt.Sprintf("maxmemory is %s, and the machine has %s", bytes(limit), bytes(total)),
			"The kernel ends the server before it refuses a write.", fmt.Sprintf("CONFIG SET maxmemory %d", total*3/4), "CONFIG REWRITE")
		return
	}
	switch {
	case share >= 0.95:
		s.add(Danger, "memory", what, full, raise, "CONFIG REWRITE")
	case share >= 0.8 || limit == 0:
		s.add(Warning, "memory", what, full, raise, "CONFIG REWRITE")
	default:
		s.ok("memory", what)
	}
}

// saving looks at what is written to disk and cannot be.
func (s *Subject) saving(info Fields) {
	if info["loading"] == "1" {
		s.add(Danger, "saving", "the server is loading its data", "Until it is done, it answers nobody.")
		return
	}
	var bad []string
	for _, name := range []string{"rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"} {
		if v := info[name]; v != "" && v != "ok" {
			bad = append(bad, name+" "+v)
		}
	}
	if bad != nil {
		s.add(Danger, "saving", strings.Join(bad, ", "),
			"A Redis that cannot write to its disk refuses all writes (MISCONF): nobody can log in. A restart brings back what the last good file has.",
			"see the server's log and the room on its disk (df), then BGSAVE or BGREWRITEAOF")
		return
	}
	s.ok("saving", "the last writes to disk went well")
}

func (s *Subject) clients(info Fields) {
	limit, now := info.int("maxclients"), info.int("connected_clients")
	if limit == 0 {
		return
	}
	what := fmt.Sprintf("%d of %d connections in use", now, limit)
	if n := info.int("rejected_connections"); n > 0 {
		what += fmt.Sprintf(", %d refused since the server was started", n)
	}
	level := OK
	switch {
	case float64(now) >= 0.95*float64(limit):
		level = Danger
	case float64(now) >= 0.8*float64(limit) || info.int("rejected_connections") > 0:
		level = Warning
	}
	if level == OK {
		s.ok("clients", what)
		return
	}
	s.add(level, "clients", what, "A gateway that connects anew is refused, and so are Sentinels, which then take the server for dead.",
		fmt.Sprintf("CONFIG SET maxclients %d", 2*limit), "CONFIG REWRITE")
}

func (j *judge) persistence(s *Subject, server Server) {
	info, config := server.Info, server.Config
	if info == nil {
		return
	}
	aof := info["aof_enabled"] == "1"
	if !aof && !config.has("save") {
		s.add(Unseen, "persistence", "no append-only file; whether RDB files are written is not to be seen", "")
		return
	}
	rdb := config["save"] != ""
	on := []string{"CONFIG SET appendonly yes", "CONFIG SET appendfsync everysec", "CONFIG REWRITE"}
	switch {
	case aof && config["appendfsync"] == "no":
		s.add(Warning, "persistence", "append-only file, appendfsync no", "A machine that fails takes the logins of the last half minute with it.",
			"CONFIG SET appendfsync everysec", "CONFIG REWRITE")
	case aof && config["appendfsync"] == "":
		s.add(Unseen, "persistence", "append-only file; appendfsync is not to be seen", "")
	case aof:
		s.ok("persistence", "append-only file, appendfsync "+config["appendfsync"])
	case !j.set() && !rdb:
		s.add(Danger, "persistence", "none: neither append-only file nor RDB", "A restart logs everybody out.", on...)
	case !j.set():
		s.add(Warning, "persistence", fmt.Sprintf("RDB only (save %s); %d changes since the last file, %s ago", config["save"], info.int("rdb_changes_since_last_save"), sinceSave(info)),
			"A crash loses every login since the last file, and undoes every logout.", on...)
	default:
		after := j.noticed()
		back, what := "empty", "none: neither append-only file nor RDB"
		if rdb {
			back, what = "old", fmt.Sprintf("RDB only (save %s); the last file is %s old", config["save"], sinceSave(info))
		}
		if by := info["process_supervised"]; by != "" && by != "no" && by != "unknown" {
			what += "; restarted by " + by
		}
		wait := int(math.Ceil((after + 10*time.Second).Seconds()))
		level := Danger
		if rdb {
			level = Warning
		}
		s.add(level, "persistence", what,
			fmt.Sprintf("A primary that crashes and is started again before it counts as down (%v) comes back %s as the primary, and its replicas make themselves equal to it.", after, back),
			append(on, "or, without a disk, let it rest until another one is primary (this cannot be seen from here):",
				fmt.Sprintf("systemctl edit redis-server: [Service] RestartSec=%d", wait))...)
	}
}

func sinceSave(info Fields) time.Duration {
	return max(0, time.Duration(time.Now().Unix()-info.int("rdb_last_save_time"))*time.Second)
}

// replica judges a server as one that may become the primary.
func (j *judge) replica(s *Subject, server Server, primary *Server) {
	info := server.Info
	if info["slave_read_only"] == "0" {
		s.add(Danger, "read-only", "replica-read-only no", "A write that comes here by mistake is acknowledged, and gone with the next synchronisation.",
			"CONFIG SET replica-read-only yes", "CONFIG REWRITE")
	}
	behind := ""
	if primary != nil && primary.Info != nil {
		behind = fmt.Sprintf(", %s behind", bytes(max(0, primary.Info.int("master_repl_offset")-info.int("slave_repl_offset"))))
	}
	switch silent := info.int("master_last_io_seconds_ago"); {
	case info["master_link_status"] != "up":
		s.add(Danger, "link", fmt.Sprintf("the link to the primary is down, since %d s", info.int("master_link_down_since_seconds")),
			"It misses every login and logout meanwhile. Made primary like this, it undoes them.",
			"see its log: masterauth, firewall, memory for a full synchronisation")
	case silent > 10:
		s.add(Warning, "link", fmt.Sprintf("nothing heard from the primary for %d s%s", silent, behind), "What it lacks is lost if it has to take over.")
	default:
		s.ok("link", fmt.Sprintf("up, heard from %d s ago%s", silent, behind))
	}
	if primary == nil || primary.Info == nil {
		return
	}
	own, its, used := info.int("maxmemory"), primary.Info.int("maxmemory"), primary.Info.int("used_memory")
	if own == 0 || its != 0 && own >= its {
		return
	}
	level := Warning
	if own < used {
		level = Danger
	}
	s.add(level, "replica-memory", fmt.Sprintf("maxmemory %s here, %s in the primary, which uses %s", bytes(own), orNone(its), bytes(used)),
		"A replica looks at its maxmemory when it becomes the primary: then it refuses writes, or evicts sessions, at once.",
		fmt.Sprintf("CONFIG SET maxmemory %d", its), "CONFIG REWRITE")
}

// replication judges what a server does, or would do, as the primary of others.
func (j *judge) replication(s *Subject, server Server, replica bool) {
	info, config := server.Info, server.Config
	online := 0
	for _, r := range info.replicaLines() {
		switch lag := r.int("lag"); {
		case r["state"] != "online":
			s.add(Warning, "replicas", fmt.Sprintf("replica %s is %s", address(r), r["state"]), "Until it is online, it cannot take over.")
		case lag > 10:
			online++
			s.add(Warning, "replicas", fmt.Sprintf("replica %s was last heard of %d s ago", address(r), lag), "What it lacks is lost if it has to take over.")
		default:
			online++
		}
	}

	atLeast, maxLag := config.int("min-replicas-to-write"), config.int("min-replicas-max-lag")
	stop := []string{"CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-max-lag 2", "CONFIG REWRITE"}
	switch {
	case !config.has("min-replicas-to-write"):
	case atLeast == 0 && !j.set():
	case atLeast == 0 && j.Options.Failover.Lease > 0:
		s.ok("min-replicas", fmt.Sprintf("min-replicas-to-write 0; the lease (%v) bounds what a primary that is cut off acknowledges", j.Options.Failover.Lease))
	case atLeast == 0:
		s.add(Warning, "min-replicas", "min-replicas-to-write 0",
			"A primary that is cut off from the others goes on acknowledging what is thrown away later: measured, 45116 writes in a cut of 6 s, and 11434 with 1 and a lag of 2 s. "+
				"It costs this: with no replica at all, nobody can log in. safety=strict bounds it, too.", stop...)
	case !replica && info != nil && atLeast > int64(online):
		s.add(Danger, "min-replicas", fmt.Sprintf("min-replicas-to-write %d, and %s online", atLeast, plural(online, "replica is", "replicas are")),
			"All writes are refused (NOREPLICAS): nobody can log in.", "bring the replicas back, or CONFIG SET min-replicas-to-write "+fmt.Sprint(max(0, online-1)))
	case !replica && info != nil && atLeast == int64(online):
		s.add(Warning, "min-replicas", fmt.Sprintf("min-replicas-to-write %d, and %s online", atLeast, plural(online, "replica is", "replicas are")),
			"With one replica less, all writes are refused: nobody can log in.", "one more replica, or a smaller number")
	case maxLag > 10 || maxLag == 0:
		s.add(Warning, "min-replicas", fmt.Sprintf("min-replicas-to-write %d, min-replicas-max-lag %d", atLeast, maxLag),
			"A primary that is cut off acknowledges writes for as long, and they are thrown away later.", "CONFIG SET min-replicas-max-lag 2", "CONFIG REWRITE")
	default:
		s.ok("min-replicas", fmt.Sprintf("min-replicas-to-write %d, min-replicas-max-lag %d", atLeast, maxLag))
	}

	if replica || online == 0 {
		return
	}
	// The offset goes on from former primaries, and the input counts reads: the smaller average is the better guess.
	average := min(info.int("master_repl_offset"), info.int("total_net_input_bytes")) / max(60, info.int("uptime_in_seconds"))
	now := 0.0
	fmt.Sscan(info["instantaneous_repl_output_kbps"], &now)
	rate := max(1, average, int64(now*1024)/int64(online))
	size := info.int("repl_backlog_size")
	if seconds := size / rate; seconds < 60 {
		s.add(Warning, "backlog", fmt.Sprintf("repl-backlog-size %s holds %d s of writes (%s a second); %d partial synchronisations refused since the server was started",
			bytes(size), seconds, bytes(rate), info.int("sync_partial_err")),
			"A replica that was away for longer copies everything anew, and cannot take over meanwhile.",
			fmt.Sprintf("CONFIG SET repl-backlog-size %d", rate*120), "CONFIG REWRITE")
	} else {
		s.ok("backlog", fmt.Sprintf("repl-backlog-size %s", bytes(size)))
	}
}

func (s *Subject) clock(server Server) {
	if server.Clock == nil {
		return
	}
	ahead, within := server.Clock.Ahead.Round(time.Millisecond), server.Clock.Within.Round(time.Millisecond)
	off := max(ahead.Abs()-within, 0)
	what := fmt.Sprintf("%v ahead of this machine's clock, give or take %v", ahead, within)
	if ahead < 0 {
		what = fmt.Sprintf("%v behind this machine's clock, give or take %v", -ahead, within)
	}
	why := "Deadlines are copied to replicas as times of day: if a server with another clock takes over, sessions end too early or too late by as much."
	remedy := []string{"timedatectl set-ntp true, on the server and on this machine"}
	switch {
	case off > time.Second:
		s.add(Danger, "clock", what, why, remedy...)
	case off > 100*time.Millisecond:
		s.add(Warning, "clock", what, why, remedy...)
	case within > 100*time.Millisecond:
		s.add(Unseen, "clock", "too far away to say: "+what, "")
	default:
		s.ok("clock", what)
	}
}

func (s *Subject) connections(config Fields) {
	if n := config.int("timeout"); config.has("timeout") && n > 0 && n < 10 {
		s.add(Warning, "timeout", fmt.Sprintf("timeout %d: connections that say nothing for so long are closed", n),
			"A command that is sent at that moment has an unknown outcome.", "CONFIG SET timeout 0", "CONFIG REWRITE")
	}
	if config.has("tcp-keepalive") {
		if n := config.int("tcp-keepalive"); n == 0 || n > 600 {
			s.add(Warning, "keepalive", fmt.Sprintf("tcp-keepalive %d", n),
				"Connections of machines that are gone stay, until there is no room for new ones.", "CONFIG SET tcp-keepalive 300", "CONFIG REWRITE")
		} else {
			s.ok("keepalive", fmt.Sprintf("tcp-keepalive %d", n))
		}
	}
}

func (j *judge) valueSize(s *Subject, config Fields) {
	if n, limit := config.int("proto-max-bulk-len"), int64(j.Options.MaxValue); config.has("proto-max-bulk-len") && n < limit {
		s.add(Danger, "value-size", fmt.Sprintf("proto-max-bulk-len %s, and sessions may have %s (max-value)", bytes(n), bytes(limit)),
			"Redis closes the connection on a larger session, and with it on everybody's commands that are under way.",
			fmt.Sprintf("CONFIG SET proto-max-bulk-len %d", max(limit, 512<<20)), "CONFIG REWRITE")
	}
}

func (j *judge) entrance(s *Subject, server Server) {
	switch server.Open {
	case Open:
		s.add(Danger, "open", "the server lets everybody in who reaches it, without a password",
			"Who gets in reads every session, is every user, and in PHP may run code by what he puts into one.",
			"CONFIG SET requirepass '...' (or ACL SETUSER default off) and masterauth on all servers, then CONFIG REWRITE",
			"and a firewall, or bind, that lets in nobody but the gateways and the other servers")
	case Ajar:
		s.ok("open", "no password, and reached from this machine only")
	case Shut:
		s.ok("open", "nobody gets in without a password")
	default:
		s.add(Unseen, "open", "whether others get in without a password is not to be seen (CONFIG GET bind protected-mode)", "")
	}
	s.tls(server.Addr, j.Options.Network != "unix" && j.Options.TLS == nil)
}

func (s *Subject) tls(addr string, plain bool) {
	if host, _, _ := net.SplitHostPort(addr); plain && !isLoopback(host) {
		s.add(Warning, "tls", "sessions and passwords go over the network as they are",
			"Who listens there is every user.", "tls-port, tls-cert-file, tls-key-file in redis.conf, and rediss:// in the URL; or a network of your own")
	}
}

func (j *judge) rights(s *Subject, server Server) {
	if why, ok := server.Unseen["MULTI"]; ok {
		s.add(Unseen, "rights", "what our user may do is not to be seen: "+why, "", "ACL SETUSER ... +multi +discard")
		return
	}
	user, save := j.Options.Username, "CONFIG REWRITE"
	if user == "" {
		user = "default"
	}
	if server.Config["aclfile"] != "" {
		save = "ACL SAVE"
	}
	if missing := server.Rights.Missing; len(missing) > 0 {
		s.add(Danger, "rights", fmt.Sprintf("the user %s lacks %s", user, strings.Join(missing, " ")),
			"What needs it is refused.", "ACL SETUSER "+user+" "+strings.Join(quoted(missing), " "), save)
	}
	if excess := server.Rights.Excess; len(excess) > 0 {
		s.add(Warning, "acl", fmt.Sprintf("the user %s may also %s", user, strings.Join(excess, "; ")),
			"Who learns the gateway's password can do that, too.", append(Grant(j.Options, j.Use.Sets), save, "then name that user in the URL")...)
	}
	if len(server.Rights.Missing)+len(server.Rights.Excess) == 0 {
		s.ok("rights", "the user "+user+" may do what it has to, and no more")
	}
}

// unseen lists what the server did not say.
func (j *judge) unseen(s *Subject, server Server) {
	for _, what := range []string{"INFO", "CONFIG", "TIME", "CLUSTER"} {
		if why, ok := server.Unseen[what]; ok {
			about := map[string]string{
				"INFO":    "version, memory, eviction, persistence, replication",
				"CONFIG":  "appendfsync, save, min-replicas, cluster-*, bind, timeout, proto-max-bulk-len",
				"TIME":    "the server's clock",
				"CLUSTER": "the Cluster",
			}[what]
			s.add(Unseen, strings.ToLower(what), "cannot be seen: "+about+" ("+why+")", "",
				"run the doctor with the URL of a user who may use "+what)
		}
	}
	if server.Config != nil {
		var gaps []string
		for _, name := range config {
			if !server.Config.has(name) && (!strings.HasPrefix(name, "cluster-") || len(j.Options.Cluster) > 0) {
				gaps = append(gaps, name)
			}
		}
		if gaps != nil {
			s.add(Unseen, "config", "cannot be seen: "+strings.Join(gaps, ", "), "")
		}
	}
}

// crowded returns the host that has most of the addresses, and how many.
func crowded(addrs []string) (host string, most int) {
	n := map[string]int{}
	for _, a := range addrs {
		h, _, _ := net.SplitHostPort(a)
		n[h]++
	}
	for h, count := range n {
		if count > most || count == most && h < host {
			host, most = h, count
		}
	}
	return host, most
}

func bytes(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func orNone(n int64) string {
	if n == 0 {
		return "none"
	}
	return bytes(n)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// distinct returns the values and who has them, in words: "2 (10.0.0.1:26379), 3 (10.0.0.2:26379)"; one is false where
// all are the same.
func distinct(values map[string]string) (said string, one bool) {
	who := map[string][]string{}
	for at, v := range values {
		who[v] = append(who[v], at)
	}
	var parts []string
	for v, at := range who {
		slices.Sort(at)
		parts = append(parts, fmt.Sprintf("%s (%s)", v, strings.Join(at, ", ")))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", "), len(parts) <= 1
}
