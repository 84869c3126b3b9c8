package testserver

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// SentinelOptions say how the set differs from one primary, two replicas and three Sentinels.
type SentinelOptions struct {
	Name            string        // of the primary among the Sentinels; "" means mymaster
	Replicas        int           // 0 means 2, a negative number none
	Sentinels       int           // 0 means 3
	Quorum          int           // 0 means a majority
	DownAfter       time.Duration // 0 means 1 s
	FailoverTimeout time.Duration // 0 means 6 s; after a failover, the Sentinels begin no other of their own for twice as long

	// Node and Sentinel are options of every data server and of every Sentinel. A password is used between the servers,
	// too, and has to be of letters and digits: Sentinel rewrites its file without quotes. WithTLS among Node's is for all.
	Node, Sentinel []RedisOption

	// Hosts are those of the data servers in turn, the first one the primary's, and SentinelHosts those of the Sentinels;
	// nil means this machine.
	Hosts, SentinelHosts []*Host

	// Hostnames, on this machine only: the servers are called localhost and not 127.0.0.1 (resolve-hostnames, announce-hostnames).
	Hostnames bool
}

// SentinelSet is a primary with its replicas, watched by Sentinels. Its methods fail the test when they cannot do what
// they say, and leave out servers that are down or paused.
type SentinelSet struct {
	Name      string         // of the primary among the Sentinels
	Nodes     []*RedisServer // the first one began as the primary
	Sentinels []*RedisServer

	t         testing.TB
	hostnames bool
}

// Sentinel starts a set of servers and returns when the replicas are in step and all Sentinels know everybody.
func Sentinel(t testing.TB, o SentinelOptions) *SentinelSet {
	t.Helper()
	setDefault(&o.Name, "mymaster")
	setDefault(&o.Replicas, 2)
	setDefault(&o.Sentinels, 3)
	setDefault(&o.Quorum, o.Sentinels/2+1)
	setDefault(&o.DownAfter, time.Second)
	setDefault(&o.FailoverTimeout, 6*time.Second)
	s := &SentinelSet{Name: o.Name, t: t, hostnames: o.Hostnames}

	certs := writeCerts(t, tempDir(t), slices.Concat(o.Hosts, o.SentinelHosts)...)
	member := func(r *RedisServer) {
		r.certs = certs
		r.inTurn(o.Hosts, len(s.Nodes))
		var lines []string
		if r.tls {
			lines = append(lines, "tls-replication yes")
		}
		if o.Hostnames {
			lines = append(lines, "replica-announce-ip localhost")
		}
		if len(s.Nodes) > 0 {
			host, port := s.addr(s.Nodes[0])
			lines = append(lines, "replicaof "+host+" "+port)
		}
		r.conf = slices.Concat(peerConf(r), lines, r.conf)
	}
	for range 1 + max(o.Replicas, 0) {
		s.Nodes = append(s.Nodes, Redis(t, append(slices.Clip(o.Node), member)...))
	}
	primary := s.Nodes[0]
	// A Sentinel learns of replicas by asking the primary when it starts, and then every ten seconds.
	await(t, "replicas", func() string { return s.wrongReplicas(primary) })

	for range o.Sentinels {
		s.Sentinels = append(s.Sentinels, Redis(t, append(slices.Clip(o.Sentinel), func(r *RedisServer) {
			r.sentinel, r.certs, r.tls = true, certs, r.tls || primary.tls
			r.inTurn(o.SentinelHosts, len(s.Sentinels))
			r.conf = append(sentinelConf(s, r, o), r.conf...)
		})...))
	}
	s.WaitOK()
	return s
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// peerConf is for servers that replicate from each other.
func peerConf(r *RedisServer) []string {
	lines := []string{"repl-diskless-sync-delay 0"} // else a full synchronisation waits five seconds for more replicas
	if r.password != "" {
		lines = append(lines, "masterauth "+confQuote(r.password))
		if r.user != "" {
			lines = append(lines, "masteruser "+confQuote(r.user))
		}
	}
	return lines
}

func sentinelConf(s *SentinelSet, r *RedisServer, o SentinelOptions) []string {
	primary := s.Nodes[0]
	host, port := s.addr(primary)
	lines := []string{
		fmt.Sprint("sentinel monitor ", o.Name, " ", host, " ", port, " ", o.Quorum),
		fmt.Sprint("sentinel down-after-milliseconds ", o.Name, " ", o.DownAfter.Milliseconds()),
		fmt.Sprint("sentinel failover-timeout ", o.Name, " ", o.FailoverTimeout.Milliseconds()),
	}
	if o.Hostnames {
		lines = append(lines, "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes")
	}
	if primary.user != "" {
		lines = append(lines, "sentinel auth-user "+o.Name+" "+primary.user)
	}
	if primary.password != "" {
		lines = append(lines, "sentinel auth-pass "+o.Name+" "+primary.password)
	}
	if r.user != "" {
		lines = append(lines, "sentinel sentinel-user "+r.user)
	}
	if r.password != "" {
		lines = append(lines, "sentinel sentinel-pass "+r.password)
	}
	if r.tls {
		lines = append(lines, "tls-replication yes")
	}
	return lines
}

// URL returns redis-sentinel://[user:password@]host:port,.../name/0, and rediss-sentinel:// with TLS, for data and
// Sentinels alike. What the Sentinels want to know is in the parameters sentinel_username and sentinel_password.
func (s *SentinelSet) URL() string {
	primary, first := s.Nodes[0], s.Sentinels[0]
	q := url.Values{}
	for name, v := range map[string]string{"sentinel_username": first.user, "sentinel_password": first.password, "ca_file": primary.CAFile} {
		if v != "" {
			q.Set(name, v)
		}
	}
	return setURL("redis", "-sentinel", primary, s.Sentinels, s.hostnames, "/"+s.Name+"/0", q)
}

// setURL writes the URL of a set whose data servers are like node and which is asked for at the doors.
func setURL(scheme, kind string, node *RedisServer, doors []*RedisServer, hostnames bool, path string, q url.Values) string {
	var at []string
	for _, d := range doors {
		addr := d.peerAddr()
		if hostnames {
			addr = "localhost:" + portOf(addr)
		}
		at = append(at, addr)
	}
	if node.tls {
		scheme += "s"
	}
	u := url.URL{Scheme: scheme + kind, Host: strings.Join(at, ","), Path: path, RawQuery: q.Encode()}
	if node.password != "" {
		u.User = url.UserPassword(node.user, node.password)
	}
	return u.String()
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr) // ours, so it has one
	return port
}

// addr is how the others call the server.
func (s *SentinelSet) addr(r *RedisServer) (host, port string) {
	host, port, _ = net.SplitHostPort(r.peerAddr())
	if s.hostnames {
		host = "localhost"
	}
	return host, port
}

// node returns the data server that is called so, or nil.
func (s *SentinelSet) node(host, port string) *RedisServer {
	for _, n := range s.Nodes {
		if h, p := s.addr(n); h == host && p == port {
			return n
		}
	}
	return nil
}

// Primary returns the server that a majority of all Sentinels names and that says itself that it is a primary, or nil
// when there is none at the moment.
func (s *SentinelSet) Primary() *RedisServer {
	votes := map[*RedisServer]int{}
	for _, sentinel := range s.Sentinels {
		if n := s.named(sentinel); n != nil {
			if votes[n]++; votes[n] > len(s.Sentinels)/2 && n.awake() && n.role().primary {
				return n
			}
		}
	}
	return nil
}

// named returns the server that a Sentinel says is the primary, or nil.
func (s *SentinelSet) named(sentinel *RedisServer) *RedisServer {
	if !sentinel.awake() {
		return nil
	}
	reply, _ := sentinel.Try("SENTINEL", "get-master-addr-by-name", s.Name)
	if addr := texts(reply); len(addr) == 2 {
		return s.node(addr[0], addr[1])
	}
	return nil
}

// WaitPrimary waits until there is a primary other than not, which may be nil, and returns it.
func (s *SentinelSet) WaitPrimary(not *RedisServer) *RedisServer {
	s.t.Helper()
	var n *RedisServer
	await(s.t, "another primary", func() string {
		if n = s.Primary(); n == nil || n == not {
			return "the Sentinels name none, or it does not agree"
		}
		return ""
	})
	return n
}

// ReplicasOf returns the servers that say that they replicate from primary.
func (s *SentinelSet) ReplicasOf(primary *RedisServer) []*RedisServer {
	var list []*RedisServer
	for _, n := range s.Nodes {
		if n == primary || !n.awake() {
			continue
		}
		if r := n.role(); !r.primary && r.host != "" && s.node(r.host, r.port) == primary {
			list = append(list, n)
		}
	}
	return list
}

// Failover makes a Sentinel begin a planned failover, and does not wait for it.
func (s *SentinelSet) Failover() {
	s.t.Helper()
	for _, sentinel := range s.Sentinels {
		if sentinel.awake() {
			sentinel.Do("SENTINEL", "FAILOVER", s.Name)
			return
		}
	}
	s.t.Fatal("testserver: failover: no Sentinel is up")
}

// WaitOK waits until all servers that are up agree: one primary, all others its replicas and in step, and Sentinels
// that have nothing to complain of any of them, so that the next failover can begin.
//
// Meanwhile the Sentinels work with shorter periods: by themselves they tell of each other every two seconds, ask the
// servers for their roles every ten, and make a former primary a replica only at the first such answer after eight.
func (s *SentinelSet) WaitOK() {
	s.t.Helper()
	s.periods("100", "100")
	defer s.periods("2000", "10000") // sentinel.c: SENTINEL_PUBLISH_PERIOD, SENTINEL_INFO_PERIOD
	await(s.t, "a set that agrees", func() string {
		primary := s.Primary()
		if primary == nil {
			return "no primary"
		}
		if w := s.wrongReplicas(primary); w != "" {
			return w
		}
		for i, sentinel := range s.Sentinels {
			if w := s.wrongSentinel(sentinel, primary); w != "" && sentinel.awake() {
				return fmt.Sprint("Sentinel ", i, ": ", w)
			}
		}
		return ""
	})
}

func (s *SentinelSet) periods(publish, info string) {
	s.t.Helper()
	for _, sentinel := range s.Sentinels {
		if sentinel.awake() {
			sentinel.Do("SENTINEL", "DEBUG", "publish-period", publish, "info-period", info)
		}
	}
}

// wrongReplicas says what is wrong with the replicas of primary in its own eyes.
func (s *SentinelSet) wrongReplicas(primary *RedisServer) string {
	online := primary.role().replicas
	for i, n := range s.Nodes {
		if _, port := s.addr(n); n != primary && n.awake() && !slices.Contains(online, port) {
			return fmt.Sprintf("node %d is no replica in step", i)
		}
	}
	return ""
}

// wrongSentinel says what a Sentinel does not know, or complains of.
func (s *SentinelSet) wrongSentinel(sentinel, primary *RedisServer) string {
	if s.named(sentinel) != primary {
		return "names another primary"
	}
	reply, err := sentinel.Try("SENTINEL", "MASTER", s.Name)
	if flags := pairs(reply)["flags"]; flags != "master" {
		return fmt.Sprint("of the primary: ", flags, err)
	}
	known := map[string]map[string]string{} // by the port
	for _, what := range []string{"REPLICAS", "SENTINELS"} {
		reply, err := sentinel.Try("SENTINEL", what, s.Name)
		if err != nil {
			return err.Error()
		}
		for _, entry := range reply.([]any) {
			p := pairs(entry)
			known[p["port"]] = p
		}
	}
	for i, n := range s.Nodes {
		k := known[portOf(n.peerAddr())]
		if n != primary && n.awake() && (k["flags"] != "slave" || k["master-link-status"] != "ok") {
			return fmt.Sprintf("of node %d: %q, link %q", i, k["flags"], k["master-link-status"])
		}
	}
	for i, other := range s.Sentinels {
		if k := known[portOf(other.peerAddr())]; other != sentinel && other.awake() && k["flags"] != "sentinel" {
			return fmt.Sprintf("of Sentinel %d: %q", i, k["flags"])
		}
	}
	return ""
}

// redisRole is what a data server says of itself.
type redisRole struct {
	primary    bool
	host, port string   // a replica: of its primary
	replicas   []string // a primary: the ports of those that are in step
}

// role asks for the server's role; a server that does not say has none.
func (s *RedisServer) role() redisRole {
	reply, _ := s.Try("ROLE")
	r, _ := reply.([]any)
	switch {
	case len(r) == 3 && r[0] == "master":
		role := redisRole{primary: true}
		for _, replica := range r[2].([]any) {
			role.replicas = append(role.replicas, texts(replica)[1])
		}
		return role
	case len(r) == 5 && r[0] == "slave":
		return redisRole{host: fmt.Sprint(r[1]), port: fmt.Sprint(r[2])}
	}
	return redisRole{}
}

// texts returns a reply that is a list of strings.
func texts(reply any) []string {
	list, _ := reply.([]any)
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// pairs returns a reply that is a list of names and values.
func pairs(reply any) map[string]string {
	m := map[string]string{}
	list := texts(reply)
	for i := 0; i+1 < len(list); i += 2 {
		m[list[i]] = list[i+1]
	}
	return m
}
