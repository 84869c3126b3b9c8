package gateway

import (
	"bytes"
	"fmt"
	"slices"
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
func (c *conn) set(n int)          { c.out = resp.AppendSetLen(c.out, n, c.proto) }

// text answers what RESP3 has a type for that says "for people to read".
func (c *conn) text(s string) {
	if c.proto < 3 {
		c.bulk(s)
		return
	}
	c.out = fmt.Appendf(c.out, "=%d\r\ntxt:%s\r\n", len(s)+4, s)
}

func (c *conn) ok([][]byte)         { c.simple("OK") }
func (c *conn) emptyArray([][]byte) { c.array(0) }
func (c *conn) emptyMap([][]byte)   { c.dict(0) }

func (c *conn) ping(args [][]byte) {
	switch {
	case len(args) > 2:
		c.fail("ERR wrong number of arguments for 'ping' command")
	case c.listening(): // where only messages are expected
		c.array(2)
		c.bulk("pong")
		c.bulk(string(bytes.Join(args[1:], nil)))
	case len(args) == 1:
		c.simple("PONG")
	default:
		c.echo(args)
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
	c.channels, c.patterns = nil, nil
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

// clientInfo has all of Redis' fields, since redis-py looks for some. What nobody counts is 0.
func (c *conn) clientInfo([][]byte) {
	queued := -1
	if c.multi != nil {
		queued = len(c.multi.queue)
	}
	c.text(fmt.Sprintf("id=%d addr=%s laddr=%s fd=0 name=%s age=%d idle=0 flags=N db=%s sub=%d psub=%d ssub=0 multi=%d qbuf=0 qbuf-free=0 argv-mem=0 "+
		"multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd=client|info user=default redir=-1 resp=%d\n", c.id, c.remote, c.local, c.name,
		int(time.Since(c.opened).Seconds()), c.s.database, len(c.channels), len(c.patterns), queued, c.proto))
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

// Clients of a Cluster ask which commands there are and where their keys stand; redis-py sends no other.

func (c *conn) commandCount([][]byte) { c.int(int64(len(c.s.served))) }

func (c *conn) commandList([][]byte) {
	c.array(len(c.s.served))
	for _, cmd := range c.s.served {
		c.bulk(strings.ToLower(cmd.name))
	}
}

func (c *conn) commands([][]byte) {
	c.array(len(c.s.served))
	for _, cmd := range c.s.served {
		c.describe(cmd)
	}
}

func (c *conn) commandInfo(args [][]byte) {
	c.array(len(args) - 2)
	for _, name := range args[2:] {
		i := slices.IndexFunc(c.s.served, func(cmd *command) bool { return strings.EqualFold(cmd.name, string(name)) })
		if i < 0 {
			c.out = resp.AppendNull(c.out, c.proto)
		} else {
			c.describe(c.s.served[i])
		}
	}
}

// describe answers what COMMAND says of one, as far as clients look at it: name, arity, keys, and whether these have to be
// looked for. Categories, tips, specifications of keys and subcommands are none.
func (c *conn) describe(cmd *command) {
	first, last, movable := cmd.keys()
	c.array(10)
	c.bulk(strings.ToLower(cmd.name))
	c.int(int64(cmd.arity))
	if movable {
		c.set(1)
		c.simple("movablekeys")
	} else {
		c.set(0)
	}
	c.int(int64(first))
	c.int(int64(last))
	c.int(int64(first)) // the step is 1 where there are keys
	c.set(0)
	for range 3 {
		c.array(0)
	}
}

// info answers what clients look for: ioredis loading and role, Moodle redis_version.
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
		{"Cluster", fmt.Sprintf("cluster_enabled:%d\r\n", min(port, 1))}, // redis-py 4 goes by it
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
