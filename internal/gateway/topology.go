package gateway

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"time"
)

// A client that is configured for Sentinel or for a Cluster is told that all there is lies at the address at which it
// reached the gateway: one primary without replicas, one Sentinel, one node with all slots. So nothing but the address
// has to be changed in its configuration. Fields and their order are those of Redis 7.0.15.

// address is where the client reached us; host is "" on a unix socket.
func (c *conn) address() (host string, port int) {
	if a, ok := c.local.(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("").String(), a.Port
	}
	return "", 0
}

// A self is the address at which a client reached us, and an id made of it.
type self struct {
	host string
	port int
	id   string
}

func (s self) addr() string { return net.JoinHostPort(s.host, strconv.Itoa(s.port)) }

// self returns who we are to the client, or answers fail where there is no address.
func (c *conn) self(fail string) (s self, ok bool) {
	if s.host, s.port = c.address(); s.host == "" {
		c.fail(fail)
		return s, false
	}
	sum := sha1.Sum([]byte("sessile " + s.addr()))
	s.id = hex.EncodeToString(sum[:])
	return s, true
}

const (
	lastSlot      = 16383
	textNoCluster = "ERR This instance has cluster support disabled"
)

func (c *conn) clusterSlots([][]byte) {
	if s, ok := c.self(textNoCluster); ok {
		c.array(1)
		c.array(3)
		c.int(0)
		c.int(lastSlot)
		c.array(4)
		c.bulk(s.host)
		c.int(int64(s.port))
		c.bulk(s.id)
		c.dict(0)
	}
}

func (c *conn) clusterShards([][]byte) {
	if s, ok := c.self(textNoCluster); ok {
		c.array(1)
		c.dict(2)
		c.bulk("slots")
		c.array(2)
		c.int(0)
		c.int(lastSlot)
		c.bulk("nodes")
		c.array(1)
		c.dict(7)
		c.fields("id", s.id)
		c.bulk("port")
		c.int(int64(s.port))
		c.fields("ip", s.host, "endpoint", s.host, "role", "master")
		c.bulk("replication-offset")
		c.int(0)
		c.fields("health", "online")
	}
}

func (c *conn) clusterNodes([][]byte) {
	if s, ok := c.self(textNoCluster); ok {
		c.text(fmt.Sprintf("%s %s:%d@%d myself,master - 0 0 1 connected 0-%d\n", s.id, s.host, s.port, s.port, lastSlot))
	}
}

func (c *conn) clusterInfo([][]byte) {
	if _, ok := c.self(textNoCluster); ok {
		c.text("cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_slots_pfail:0\r\n" +
			"cluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:1\r\ncluster_current_epoch:1\r\ncluster_my_epoch:1\r\n" +
			"cluster_stats_messages_sent:0\r\ncluster_stats_messages_received:0\r\ntotal_cluster_links_buffer_limit_exceeded:0\r\n")
	}
}

func (c *conn) clusterID([][]byte) {
	if s, ok := c.self(textNoCluster); ok {
		c.bulk(s.id)
	}
}

const textNoSentinel = "ERR sessile: on a unix socket there is no address that could be named"

func (c *conn) sentinelAddress([][]byte) {
	if s, ok := c.self(textNoSentinel); ok {
		c.array(2)
		c.bulk(s.host)
		c.bulk(strconv.Itoa(s.port))
	}
}

// sentinelMasters lists the one name that the site is given; everywhere else any name is that of our only primary.
func (c *conn) sentinelMasters([][]byte) {
	if s, ok := c.self(textNoSentinel); ok {
		c.array(1)
		c.master(s, c.s.site.SentinelMaster)
	}
}

func (c *conn) sentinelMaster(args [][]byte) {
	if s, ok := c.self(textNoSentinel); ok {
		c.master(s, string(args[2]))
	}
}

func (c *conn) master(s self, name string) {
	up := strconv.FormatInt(time.Since(c.s.started).Milliseconds(), 10)
	c.dict(20)
	c.instance(s, name, "master")
	c.fields("info-refresh", "0", "role-reported", "master", "role-reported-time", up, "config-epoch", "0", "num-slaves", "0",
		"num-other-sentinels", "1", "quorum", "1", "failover-timeout", "180000", "parallel-syncs", "1")
}

// sentinels answers one other Sentinel, us again, for clients that want to hear of more than one. Redis.pm takes its name for
// an address.
func (c *conn) sentinels([][]byte) {
	if s, ok := c.self(textNoSentinel); ok {
		c.array(1)
		c.dict(14)
		c.instance(s, s.addr(), "sentinel")
		c.fields("last-hello-message", "0", "voted-leader", "?", "voted-leader-epoch", "0")
	}
}

// instance writes the eleven fields that Sentinel has for everybody.
func (c *conn) instance(s self, name, flags string) {
	c.fields("name", name, "ip", s.host, "port", strconv.Itoa(s.port), "runid", s.id, "flags", flags, "link-pending-commands", "0",
		"link-refcount", "1", "last-ping-sent", "0", "last-ok-ping-reply", "0", "last-ping-reply", "0", "down-after-milliseconds", "30000")
}

// fields writes names and values.
func (c *conn) fields(pairs ...string) {
	for _, s := range pairs {
		c.bulk(s)
	}
}

func (c *conn) sentinelID([][]byte) {
	if s, ok := c.self(textNoSentinel); ok {
		c.bulk(s.id)
	}
}

func (c *conn) quorum([][]byte) {
	c.simple("OK 1 usable Sentinels. Quorum and failover authorization can be reached")
}
