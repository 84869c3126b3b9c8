package gateway

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// redisVersion is the version whose answers ours are.
const redisVersion = "7.0.15"

func (c *conn) simple(text string) { c.out = resp.AppendSimple(c.out, text) }
func (c *conn) fail(text string)   { c.out = resp.AppendError(c.out, text) }
func (c *conn) bulk(text string)   { c.out = resp.AppendBulkString(c.out, text) }
func (c *conn) int(n int64)        { c.out = resp.AppendInt(c.out, n) }
func (c *conn) array(n int)        { c.out = resp.AppendArrayLen(c.out, n) }
func (c *conn) dict(n int)         { c.out = resp.AppendMapLen(c.out, n, c.proto) }

// text answers what RESP3 has a type for that says "for people to read".
func (c *conn) text(s string) {
	if c.proto < 3 {
		c.bulk(s)
		return
	}
	c.out = fmt.Appendf(c.out, "=%d\r\ntxt:%s\r\n", len(s)+4, s)
}

func (c *conn) ok([][]byte)         { c.simple("OK") }
func (c *conn) zero([][]byte)       { c.int(0) }
func (c *conn) emptyArray([][]byte) { c.array(0) }
func (c *conn) emptyMap([][]byte)   { c.dict(0) }

func (c *conn) ping(args [][]byte) {
	switch len(args) {
	case 1:
		c.simple("PONG")
	case 2:
		c.echo(args)
	default:
		c.fail("ERR wrong number of arguments for 'ping' command")
	}
}

func (c *conn) echo(args [][]byte) { c.out = resp.AppendBulk(c.out, args[1]) }

func (c *conn) quit([][]byte) {
	c.simple("OK")
	c.closing = true
}

// foreign hangs up on who speaks another protocol.
func (c *conn) foreign([][]byte) {
	c.s.security(SecurityForeign, c)
	c.closing = true
}

func (c *conn) reset([][]byte) {
	c.proto, c.name, c.wrongDatabase = 2, "", false
	c.endMulti()
	if c.authenticated { // whoever was not logged in gets no more time for it
		c.authenticated, c.strange = len(c.s.users) == 0, time.Now()
	}
	c.simple("RESET")
}

const textWrongPass = "WRONGPASS invalid username-password pair or user is disabled."

func (c *conn) auth(args [][]byte) {
	name := []byte(defaultUser)
	switch len(args) {
	case 2:
	case 3:
		name = args[1]
	default:
		c.fail(textSyntax)
		return
	}
	if c.login(name, args[len(args)-1]) {
		c.simple("OK")
	} else {
		c.fail(textWrongPass)
	}
}

// login lets anybody in where there are no users: clients that were given a password for Redis keep sending it, and
// those of PHP take an error for a broken session.
func (c *conn) login(name, password []byte) bool {
	if len(c.s.users) == 0 {
		c.s.anybody.Do(func() { c.s.log.Warn("a client sent a password, and the site has no users: accepted") })
		return true
	}
	if !c.s.users.allow(name, password) {
		c.s.count.logins.Add(1)
		c.s.security(SecurityLogin, c)
		return false
	}
	c.authenticated = true
	return true
}

// selectDatabase accepts the site's own number. phpredis sends SELECT before every command and ignores the answer, so
// that the commands behind a wrong one must fail too.
func (c *conn) selectDatabase(args [][]byte) {
	n, ok := parseInt(args[1])
	switch {
	case !ok:
		c.fail(textNotInteger)
		return
	case n == int64(c.s.site.Database):
		c.wrongDatabase = false
		c.simple("OK")
		return
	case n < 0 || n > 1<<30:
		c.fail("ERR DB index is out of range")
	default:
		c.fail("ERR sessile: this site is database " + c.s.database)
	}
	c.wrongDatabase = true
}

const textName = "ERR Client names cannot contain spaces, newlines or special characters."

func nameOK(b []byte) bool { return printable(b) && len(b) <= 512 }

func (c *conn) hello(args [][]byte) {
	proto := c.proto
	if len(args) > 1 {
		n, ok := parseInt(args[1])
		switch {
		case !ok:
			c.fail("ERR Protocol version is not an integer or out of range")
			return
		case n != 2 && n != 3:
			c.fail("NOPROTO unsupported protocol version")
			return
		}
		proto = int(n)
	}
	var name []byte
	for i := 2; i < len(args); i++ {
		var buf [8]byte
		switch option := string(upper(buf[:0], args[i])); {
		case option == "AUTH" && i+2 < len(args):
			if !c.login(args[i+1], args[i+2]) {
				c.fail(textWrongPass)
				return
			}
			i += 2
		case option == "SETNAME" && i+1 < len(args):
			i++
			if name = args[i]; !nameOK(name) {
				c.fail(textName)
				return
			}
		default:
			c.fail("ERR Syntax error in HELLO option '" + cText(args[i], len(args[i])) + "'")
			return
		}
	}
	if !c.authenticated {
		c.fail("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> " +
			"option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	if name != nil {
		c.name = string(name)
	}
	c.proto = proto
	c.dict(7)
	c.bulk("server")
	c.bulk("redis")
	c.bulk("version")
	c.bulk(redisVersion)
	c.bulk("proto")
	c.int(int64(proto))
	c.bulk("id")
	c.int(c.id)
	c.bulk("mode")
	c.bulk("standalone")
	c.bulk("role")
	c.bulk("master")
	c.bulk("modules")
	c.array(0)
}

func (c *conn) setName(args [][]byte) {
	if !nameOK(args[2]) {
		c.fail(textName)
		return
	}
	c.name = string(args[2])
	c.simple("OK")
}

func (c *conn) getName([][]byte) {
	if c.name == "" {
		c.out = resp.AppendNull(c.out, c.proto)
		return
	}
	c.bulk(c.name)
}

func (c *conn) clientID([][]byte) { c.int(c.id) }

func (c *conn) clientInfo([][]byte) {
	c.text(fmt.Sprintf("id=%d addr=%s laddr=%s name=%s age=%d flags=N db=%s resp=%d\n", c.id, c.remote,
		c.local, c.name, int(time.Since(c.opened).Seconds()), c.s.database, c.proto))
}

func (c *conn) onOff(args [][]byte) {
	if s := strings.ToLower(string(args[2])); s != "on" && s != "off" {
		c.fail(textSyntax)
		return
	}
	c.simple("OK")
}

func (c *conn) role([][]byte) {
	c.array(3)
	c.bulk("master")
	c.int(0)
	c.array(0)
}

func (c *conn) commandInfo(args [][]byte) {
	c.array(len(args) - 2)
	for range args[2:] {
		c.out = resp.AppendNull(c.out, c.proto)
	}
}

// info answers what clients look for: ioredis loading, Moodle redis_version.
func (c *conn) info(args [][]byte) {
	_, port := c.address()
	stats := c.s.Stats()
	sections := []struct{ name, lines string }{
		{"Server", fmt.Sprintf("redis_version:%s\r\nredis_mode:standalone\r\ntcp_port:%d\r\nuptime_in_seconds:%d\r\n",
			redisVersion, port, int(time.Since(c.s.started).Seconds()))},
		{"Clients", fmt.Sprintf("connected_clients:%d\r\nmaxclients:%d\r\n", stats.Open, c.s.site.Limits.Conns)},
		{"Persistence", "loading:0\r\n"},
		{"Stats", fmt.Sprintf("total_connections_received:%d\r\ntotal_commands_processed:%d\r\n", stats.Accepted, stats.Commands)},
		{"Replication", "role:master\r\nconnected_slaves:0\r\n"},
		{"Cluster", "cluster_enabled:0\r\n"},
	}
	var b strings.Builder
	for _, s := range sections {
		wanted := len(args) == 1
		for _, a := range args[1:] {
			switch a := strings.ToLower(string(a)); a {
			case strings.ToLower(s.name), "all", "default", "everything":
				wanted = true
			}
		}
		if !wanted {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + s.name + "\r\n" + s.lines)
	}
	c.text(b.String())
}

func (c *conn) scriptLoad(args [][]byte) {
	orNull, ok := isRelease(args[2])
	if !ok {
		c.fail(string(errScript))
		return
	}
	c.bulk(c.s.scripts.add(args[2], orNull))
}

func (c *conn) scriptExists(args [][]byte) {
	c.array(len(args) - 2)
	for _, sha := range args[2:] {
		n := int64(0)
		if _, ok := c.s.scripts.get(sha); ok {
			n = 1
		}
		c.int(n)
	}
}

// Cluster and Sentinel: a client that is configured for one is told that all there is lies at the address at which it
// reached the gateway.

// address is where the client reached us; host is "" on a unix socket.
func (c *conn) address() (host string, port int) {
	if a, ok := c.local.(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("").String(), a.Port
	}
	return "", 0
}

// self returns the address and an id made of it, or answers what a Redis without Cluster does.
func (c *conn) self() (host string, port int, id string, ok bool) {
	host, port = c.address()
	if host == "" {
		c.fail("ERR This instance has cluster support disabled")
		return "", 0, "", false
	}
	sum := sha1.Sum([]byte("sessile " + net.JoinHostPort(host, strconv.Itoa(port))))
	return host, port, hex.EncodeToString(sum[:]), true
}

const lastSlot = 16383

func (c *conn) clusterSlots([][]byte) {
	if host, port, id, ok := c.self(); ok {
		c.array(1)
		c.array(3)
		c.int(0)
		c.int(lastSlot)
		c.array(4)
		c.bulk(host)
		c.int(int64(port))
		c.bulk(id)
		c.array(0)
	}
}

func (c *conn) clusterShards([][]byte) {
	if host, port, id, ok := c.self(); ok {
		c.array(1)
		c.dict(2)
		c.bulk("slots")
		c.array(2)
		c.int(0)
		c.int(lastSlot)
		c.bulk("nodes")
		c.array(1)
		c.dict(7)
		for _, field := range [][2]string{{"id", id}, {"ip", host}, {"endpoint", host}, {"role", "master"}, {"health", "online"}} {
			c.bulk(field[0])
			c.bulk(field[1])
		}
		c.bulk("port")
		c.int(int64(port))
		c.bulk("replication-offset")
		c.int(0)
	}
}

func (c *conn) clusterNodes([][]byte) {
	if host, port, id, ok := c.self(); ok {
		c.text(fmt.Sprintf("%s %s:%d@%d myself,master - 0 0 1 connected 0-%d\n", id, host, port, port, lastSlot))
	}
}

func (c *conn) clusterInfo([][]byte) {
	if _, _, _, ok := c.self(); ok {
		c.text("cluster_enabled:1\r\ncluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\n" +
			"cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:1\r\n" +
			"cluster_current_epoch:1\r\ncluster_my_epoch:1\r\n")
	}
}

func (c *conn) clusterID([][]byte) {
	if _, _, id, ok := c.self(); ok {
		c.bulk(id)
	}
}

func (c *conn) sentinelMaster([][]byte) {
	if host, port, _, ok := c.self(); ok {
		c.array(2)
		c.bulk(host)
		c.bulk(strconv.Itoa(port))
	}
}

// sentinels answers one Sentinel: us. Redis.pm takes the name for an address.
func (c *conn) sentinels([][]byte) {
	if host, port, id, ok := c.self(); ok {
		c.array(1)
		c.dict(4)
		for _, field := range [][2]string{{"name", net.JoinHostPort(host, strconv.Itoa(port))}, {"ip", host},
			{"port", strconv.Itoa(port)}, {"runid", id}} {
			c.bulk(field[0])
			c.bulk(field[1])
		}
	}
}
