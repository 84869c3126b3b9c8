package testserver

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const slotCount = 16384

// ClusterOptions say how the cluster differs from three primaries with a third of the slots and one replica each.
type ClusterOptions struct {
	Primaries   int           // 0 means 3, or as many as Slots has
	Replicas    int           // of each primary; 0 means 1, a negative number none
	NodeTimeout time.Duration // 0 means 2 s

	// Slots are those of each primary, as CLUSTER NODES writes them: "0-99 101 5000-16383". nil means equal shares.
	Slots []string

	// Node are options of every server. A slot without a server leaves the others serving (cluster-require-full-coverage
	// no); WithConf can say otherwise.
	Node []RedisOption

	Hosts []*Host // of the servers in turn; nil means this machine
}

// ClusterSet is a Redis Cluster. Its methods fail the test when they cannot do what they say, and leave out servers that
// are down or paused.
type ClusterSet struct {
	Nodes []*RedisServer // at first the primaries, then the replicas of the first one, of the second, ...

	t     testing.TB
	slots int // that were given to primaries
}

// Cluster starts a cluster and returns when all its servers see the same one and the replicas are in step.
func Cluster(t testing.TB, o ClusterOptions) *ClusterSet {
	t.Helper()
	setDefault(&o.Primaries, 3)
	setDefault(&o.Replicas, 1)
	setDefault(&o.NodeTimeout, 2*time.Second)
	if o.Slots == nil {
		for i := range o.Primaries {
			o.Slots = append(o.Slots, fmt.Sprintf("%d-%d", slotCount*i/o.Primaries, slotCount*(i+1)/o.Primaries-1))
		}
	}
	primaries := len(o.Slots)
	c := &ClusterSet{t: t}
	certs := writeCerts(t, tempDir(t), o.Hosts...)
	for range primaries * (1 + max(o.Replicas, 0)) {
		c.Nodes = append(c.Nodes, Redis(t, append(slices.Clip(o.Node), func(r *RedisServer) {
			r.certs = certs
			r.inTurn(o.Hosts, len(c.Nodes))
			lines := append(peerConf(r), "cluster-enabled yes", "cluster-require-full-coverage no",
				fmt.Sprint("cluster-node-timeout ", o.NodeTimeout.Milliseconds()))
			if r.tls {
				lines = append(lines, "tls-cluster yes", "tls-replication yes")
			}
			r.conf = append(lines, r.conf...)
		})...))
	}
	for i, n := range c.Nodes {
		n.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)) // else they settle who comes before whom when they meet
		if i < primaries {
			args, count := addSlots(t, o.Slots[i])
			c.slots += count
			if count > 0 {
				n.Do(args...)
			}
		}
		for _, other := range c.Nodes[:i] { // gossip would do the rest, in seconds
			host, port, _ := net.SplitHostPort(other.peerAddr())
			n.Do("CLUSTER", "MEET", host, port)
		}
	}
	for i, n := range c.Nodes[primaries:] {
		of := c.Nodes[i/o.Replicas].clusterID()
		await(t, "a replica in a cluster", func() string {
			_, err := n.Try("CLUSTER", "REPLICATE", of)
			if err != nil { // it does not know of that node yet
				return err.Error()
			}
			return ""
		})
	}
	c.WaitOK()
	return c
}

// addSlots returns the command that gives a server slots, and their number.
func addSlots(t testing.TB, slots string) (args []string, count int) {
	t.Helper()
	args = []string{"CLUSTER", "ADDSLOTSRANGE"}
	for _, r := range strings.Fields(slots) {
		first, last, err := slotRange(r)
		if err != nil {
			t.Fatalf("testserver: cluster: slots %q: %v", slots, err)
		}
		count += last - first + 1
		args = append(args, strconv.Itoa(first), strconv.Itoa(last))
	}
	return args, count
}

// slotRange reads "7" or "7-9".
func slotRange(s string) (first, last int, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	first, err = strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	return first, last, firstError(err, err2)
}

// URL returns redis-cluster://[user:password@]host:port,... of the first servers, and rediss-cluster:// with TLS.
func (c *ClusterSet) URL() string {
	q := url.Values{}
	if ca := c.Nodes[0].CAFile; ca != "" {
		q.Set("ca_file", ca)
	}
	return setURL("redis", "-cluster", c.Nodes[0], c.Nodes[:min(3, len(c.Nodes))], false, "", q)
}

// Slot returns the slot of a key, as a server says.
func (c *ClusterSet) Slot(key string) int {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.awake() {
			return int(n.Do("CLUSTER", "KEYSLOT", key).(int64))
		}
	}
	c.t.Fatal("testserver: cluster: no server is up")
	return 0
}

// Node returns the primary that has the slot, or nil.
func (c *ClusterSet) Node(slot int) *RedisServer { return c.owners()[slot] }

// NodeOf returns the primary that has the key's slot, or nil.
func (c *ClusterSet) NodeOf(key string) *RedisServer {
	c.t.Helper()
	return c.Node(c.Slot(key))
}

// Primaries returns the servers that have slots.
func (c *ClusterSet) Primaries() []*RedisServer {
	owners := c.owners()
	var list []*RedisServer
	for _, n := range c.Nodes {
		if slices.Contains(owners, n) {
			list = append(list, n)
		}
	}
	return list
}

// ReplicaOf returns a server that replicates from primary, or nil. The primary may be down, not wiped.
func (c *ClusterSet) ReplicaOf(primary *RedisServer) *RedisServer {
	_, port, _ := net.SplitHostPort(primary.peerAddr())
	for _, n := range c.Nodes {
		if n.awake() && n != primary && n.role().port == port {
			return n
		}
	}
	return nil
}

// WaitPrimary waits until the slot belongs to another server than not, which may be nil, and returns it.
func (c *ClusterSet) WaitPrimary(slot int, not *RedisServer) *RedisServer {
	c.t.Helper()
	var n *RedisServer
	await(c.t, fmt.Sprint("another primary of slot ", slot), func() string {
		if n = c.Node(slot); n == nil || n == not {
			return "nobody else says that it is"
		}
		return ""
	})
	return n
}

// MoveSlots moves slots with their keys while the cluster serves.
func (c *ClusterSet) MoveSlots(from, to *RedisServer, slots ...int) {
	c.t.Helper()
	for _, slot := range slots {
		c.BeginMove(from, to, slot)
		c.MoveKeys(from, to, slot)
		c.EndMove(to, slot)
	}
}

// BeginMove makes the slot migrating and importing: what from does not have, it answers with ASK.
func (c *ClusterSet) BeginMove(from, to *RedisServer, slot int) {
	c.t.Helper()
	s := strconv.Itoa(slot)
	to.Do("CLUSTER", "SETSLOT", s, "IMPORTING", from.clusterID())
	from.Do("CLUSTER", "SETSLOT", s, "MIGRATING", to.clusterID())
}

// MoveKeys moves the keys of a slot between BeginMove and EndMove, those that are there when it looks for the last time.
func (c *ClusterSet) MoveKeys(from, to *RedisServer, slot int) {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(to.peerAddr())
	move := []string{"MIGRATE", host, port, "", "0", "5000"}
	switch {
	case to.user != "":
		move = append(move, "AUTH2", to.user, to.password)
	case to.password != "":
		move = append(move, "AUTH", to.password)
	}
	move = append(move, "KEYS")
	for {
		keys := texts(from.Do("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), "1000"))
		if len(keys) == 0 {
			return
		}
		from.Do(append(slices.Clip(move), keys...)...)
	}
}

// EndMove gives the slot to its new server and tells the other primaries; the replicas hear of it.
func (c *ClusterSet) EndMove(to *RedisServer, slot int) {
	c.t.Helper()
	id := to.clusterID()
	// First the new one, so that the slot is never without a server (redis-cli.c, clusterManagerMoveSlot).
	to.Do("CLUSTER", "SETSLOT", strconv.Itoa(slot), "NODE", id)
	for _, n := range c.Nodes {
		if n != to && n.awake() && n.role().primary {
			n.Do("CLUSTER", "SETSLOT", strconv.Itoa(slot), "NODE", id)
		}
	}
}

// WaitOK waits until all servers that are up agree: on who they are and who has which slot, that each slot that was
// given away has a server that is up and none is being moved, that the cluster is well, and that the replicas are in step.
func (c *ClusterSet) WaitOK() {
	c.t.Helper()
	await(c.t, "a cluster that agrees", c.wrong)
}

func (c *ClusterSet) wrong() string {
	up := map[string]*RedisServer{} // by id
	for _, n := range c.Nodes {
		if n.awake() {
			up[n.clusterID()] = n
		}
	}
	var first []string
	for id, n := range up {
		info, _ := n.Try("CLUSTER", "INFO")
		if !strings.Contains(fmt.Sprint(info), "cluster_state:ok") {
			return n.Addr + ": the state is not ok"
		}
		var view []string
		replicas := 0
		for _, e := range n.clusterNodes() {
			if up[e.id] == nil {
				continue
			}
			if e.link != "connected" || strings.Contains(e.flags, "fail") || strings.Contains(e.flags, "handshake") {
				return fmt.Sprintf("%s: of %s: %s, %s", n.Addr, e.addr, e.flags, e.link)
			}
			if e.master == id {
				replicas++
			}
			view = append(view, fmt.Sprint(e.id, " of ", e.master, " with ", e.slots))
		}
		slices.Sort(view)
		if first == nil {
			first = view
		}
		if len(view) < len(up) || !slices.Equal(view, first) {
			return fmt.Sprintf("%s: sees %q, another %q", n.Addr, view, first)
		}
		if got := len(n.role().replicas); got < replicas {
			return fmt.Sprintf("%s: %d of %d replicas in step", n.Addr, got, replicas)
		}
	}
	served := 0
	for _, owner := range c.owners() {
		if owner != nil {
			served++
		}
	}
	if served < c.slots {
		return fmt.Sprintf("%d of %d slots have a server", served, c.slots)
	}
	return ""
}

// owners returns for each slot the primary that says that it has it. Of two, as behind a partition, it is the one that was
// chosen later.
func (c *ClusterSet) owners() []*RedisServer {
	owners, epochs := make([]*RedisServer, slotCount), make([]int, slotCount)
	for _, n := range c.Nodes {
		if !n.awake() {
			continue
		}
		for _, e := range n.clusterNodes() {
			if !strings.Contains(e.flags, "myself") || e.master != "" {
				continue
			}
			for _, r := range e.slots {
				first, last, err := slotRange(r)
				if err != nil {
					continue // [93-<-...]: being moved
				}
				for slot := first; slot <= last; slot++ {
					if owners[slot] == nil || e.epoch > epochs[slot] {
						owners[slot], epochs[slot] = n, e.epoch
					}
				}
			}
		}
	}
	return owners
}

// clusterNode is a line of CLUSTER NODES.
type clusterNode struct {
	id, addr, flags string
	master          string // of a replica: the id of its primary
	epoch           int
	link            string
	slots           []string
}

// clusterNodes returns the server's view of the cluster, nothing when it does not say.
func (s *RedisServer) clusterNodes() []clusterNode {
	reply, _ := s.Try("CLUSTER", "NODES")
	text, _ := reply.(string)
	var list []clusterNode
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		e := clusterNode{id: f[0], addr: f[1], flags: f[2], link: f[7], slots: f[8:]}
		if f[3] != "-" {
			e.master = f[3]
		}
		e.epoch, _ = strconv.Atoi(f[6])
		list = append(list, e)
	}
	return list
}

func (s *RedisServer) clusterID() string {
	s.t.Helper()
	return s.Do("CLUSTER", "MYID").(string)
}
