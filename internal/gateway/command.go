package gateway

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// A command is a row of the table. Commands of the connection itself have local; the others have parse, which makes a
// request of the arguments and neither asks nor changes anything, an op, which says what exec does with it, and a reply,
// which says how render answers.
type command struct {
	name  string // in capitals; a subcommand is "CLIENT|SETNAME"
	arity int    // as Redis counts: with the name; negative: at least
	parse func(r *request, args [][]byte)
	op    op
	reply reply
	local func(c *conn, args [][]byte)

	first, last int // its keys, of one that is passed on

	container bool   // has subcommands
	free      bool   // allowed before login
	always    bool   // allowed while the connection listens, see subscribe.go
	refusal   string // why it is not served
}

type op uint8

const (
	opNone      op = iota
	opLoad         // the value
	opLoads        // several values
	opExists       // how many of the keys there are
	opInspect      // the deadline
	opSave         // a whole value, or a lock
	opTouch        // a deadline
	opLoadTouch    // both
	opDelete       // several keys
	opTake         // the value, and delete
	opUnlock       // compare and delete, of a lock
	opSorted       // of the access set
	opPass         // see pass.go
	opExec         // those since MULTI
)

type reply uint8

const (
	replyBulk reply = iota // the value or null
	replyBulks
	replyInt
	replyOK     // +OK, or null where a condition did not hold
	replyType   // +string or +none
	replyLength // of the value
	replyTTL    // as a count of command.unit
	replyScore
	replyMembers // of the access set, with scores or without
	replyRaw     // as exec has written it
)

// timed reports whether the command is about deadlines.
func (c *command) timed() bool {
	switch c.op {
	case opInspect, opSave, opTouch, opLoadTouch:
		return true
	}
	return false
}

// unit is what the command counts time in, if it does.
func (c *command) unit() time.Duration {
	if c.name[0] == 'P' {
		return time.Millisecond
	}
	return time.Second
}

// A request is a command that was understood. Its byte slices lie in the connection's input buffer.
type request struct {
	site  *Site
	cmd   *command
	began time.Time // for Hooks.Done
	now   time.Time
	fail  string // the error to answer; nothing else counts then

	keys  []key
	data  []byte
	flags uint32 // of a memcached client

	ttl     time.Duration // what was asked for; 0 with expires zero: nothing
	expires time.Time
	at      bool // it was given as a time of day
	only    only
	get     bool // SET: answer the old value
	keep    bool // SET: keep the deadline

	unsure bool // it may have been done: that is to be found out

	absolute bool // EXPIRETIME and PEXPIRETIME
	orNull   bool // unlock: null where the lock was not held

	token string

	sorted *sorted  // a command about the access set
	passed []string // one that is passed on, as it is
}

// only are the conditions of a write.
type only uint8

const (
	ifAbsent  only = 1 << iota // NX
	ifPresent                  // XX
	ifLater                    // GT
	ifEarlier                  // LT
)

const (
	textSyntax     = "ERR syntax error"
	textNotInteger = "ERR value is not an integer or out of range"
	textPersist    = "ERR sessile: 'getex' with PERSIST is not served: " + whyPersist
)

var (
	table   = newTable()
	unknown = &command{name: "other"} // commands that Redis does not know
)

func newTable() map[string]*command {
	one, all := (*request).parseKey, (*request).parseKeys
	t := map[string]*command{}
	for _, c := range []command{
		{name: "GET", arity: 2, parse: one, op: opLoad, reply: replyBulk},
		{name: "STRLEN", arity: 2, parse: one, op: opLoad, reply: replyLength},
		{name: "TYPE", arity: 2, parse: one, op: opLoad, reply: replyType},
		{name: "MGET", arity: -2, parse: all, op: opLoads, reply: replyBulks},
		{name: "EXISTS", arity: -2, parse: all, op: opExists, reply: replyInt},
		{name: "TTL", arity: 2, parse: (*request).parseTTL, op: opInspect, reply: replyTTL},
		{name: "PTTL", arity: 2, parse: (*request).parseTTL, op: opInspect, reply: replyTTL},
		{name: "EXPIRETIME", arity: 2, parse: (*request).parseTTL, op: opInspect, reply: replyTTL},
		{name: "PEXPIRETIME", arity: 2, parse: (*request).parseTTL, op: opInspect, reply: replyTTL},
		{name: "SET", arity: -3, parse: (*request).parseSet, op: opSave, reply: replyOK},
		{name: "SETEX", arity: 4, parse: (*request).parseSetEx, op: opSave, reply: replyOK},
		{name: "PSETEX", arity: 4, parse: (*request).parseSetEx, op: opSave, reply: replyOK},
		{name: "SETNX", arity: 3, parse: (*request).parseSetNX, op: opSave, reply: replyInt},
		{name: "GETSET", arity: 3, parse: (*request).parseGetSet, op: opSave, reply: replyBulk},
		{name: "GETEX", arity: -2, parse: (*request).parseGetEx, op: opLoadTouch, reply: replyBulk},
		{name: "GETDEL", arity: 2, parse: one, op: opTake, reply: replyBulk},
		{name: "EXPIRE", arity: -3, parse: (*request).parseExpire, op: opTouch, reply: replyInt},
		{name: "PEXPIRE", arity: -3, parse: (*request).parseExpire, op: opTouch, reply: replyInt},
		{name: "EXPIREAT", arity: -3, parse: (*request).parseExpire, op: opTouch, reply: replyInt},
		{name: "PEXPIREAT", arity: -3, parse: (*request).parseExpire, op: opTouch, reply: replyInt},
		{name: "DEL", arity: -2, parse: all, op: opDelete, reply: replyInt},
		{name: "UNLINK", arity: -2, parse: all, op: opDelete, reply: replyInt},
		{name: "EVAL", arity: -3, parse: (*request).parseEval, op: opUnlock, reply: replyInt},
		{name: "EVALSHA", arity: -3, parse: (*request).parseEval, op: opUnlock, reply: replyInt},

		{name: "ZADD", arity: -4, parse: (*request).parseZAdd, op: opSorted, reply: replyInt},
		{name: "ZREM", arity: -3, parse: (*request).parseZRem, op: opSorted, reply: replyInt},
		{name: "ZCARD", arity: 2, parse: (*request).parseZRem, op: opSorted, reply: replyInt},
		{name: "ZSCORE", arity: 3, parse: (*request).parseZRem, op: opSorted, reply: replyScore},
		{name: "ZCOUNT", arity: 4, parse: (*request).parseZBounds, op: opSorted, reply: replyInt},
		{name: "ZREMRANGEBYSCORE", arity: 4, parse: (*request).parseZBounds, op: opSorted, reply: replyInt},
		{name: "ZRANGEBYSCORE", arity: -4, parse: (*request).parseZRangeByScore, op: opSorted, reply: replyMembers},
		{name: "ZRANGE", arity: -4, parse: (*request).parseZRange, op: opSorted, reply: replyMembers},

		{name: "MULTI", arity: 1, local: (*conn).begin},
		{name: "EXEC", arity: 1, parse: func(*request, [][]byte) {}, op: opExec, reply: replyRaw},
		{name: "DISCARD", arity: 1, local: (*conn).discard},

		{name: "AUTH", arity: -2, local: (*conn).auth, free: true},
		{name: "HELLO", arity: -1, local: (*conn).hello, free: true},
		{name: "QUIT", arity: -1, local: (*conn).quit, free: true, always: true},
		{name: "RESET", arity: 1, local: (*conn).reset, free: true, always: true},
		{name: "SELECT", arity: 2, local: (*conn).selectDatabase},
		{name: "PING", arity: -1, local: (*conn).ping, always: true},
		{name: "ECHO", arity: 2, local: (*conn).echo},
		{name: "ROLE", arity: 1, local: (*conn).role},
		{name: "INFO", arity: -1, local: (*conn).info},
		{name: "COMMAND", arity: -1, local: (*conn).commands, container: true},
		{name: "COMMAND|COUNT", arity: 2, local: (*conn).commandCount},
		{name: "COMMAND|DOCS", arity: -2, local: (*conn).emptyMap},
		{name: "COMMAND|INFO", arity: -2, local: (*conn).commandInfo},
		{name: "COMMAND|LIST", arity: -2, local: (*conn).commandList},
		{name: "CONFIG", arity: -2, container: true},
		{name: "CONFIG|GET", arity: -3, local: (*conn).emptyMap},
		{name: "CLIENT", arity: -2, container: true},
		{name: "CLIENT|SETNAME", arity: 3, local: (*conn).setName},
		{name: "CLIENT|GETNAME", arity: 2, local: (*conn).getName},
		{name: "CLIENT|SETINFO", arity: 4, local: (*conn).ok}, // Redis 7.2; harmless
		{name: "CLIENT|ID", arity: 2, local: (*conn).clientID},
		{name: "CLIENT|INFO", arity: 2, local: (*conn).clientInfo},
		{name: "CLIENT|NO-EVICT", arity: 3, local: (*conn).onOff},
		{name: "SCRIPT", arity: -2, container: true},
		{name: "SCRIPT|LOAD", arity: 3, local: (*conn).scriptLoad},
		{name: "SCRIPT|EXISTS", arity: -3, local: (*conn).scriptExists},
		{name: "CLUSTER", arity: -2, container: true},
		{name: "CLUSTER|SLOTS", arity: 2, local: (*conn).clusterSlots},
		{name: "CLUSTER|SHARDS", arity: 2, local: (*conn).clusterShards},
		{name: "CLUSTER|NODES", arity: 2, local: (*conn).clusterNodes},
		{name: "CLUSTER|INFO", arity: 2, local: (*conn).clusterInfo},
		{name: "CLUSTER|MYID", arity: 2, local: (*conn).clusterID},
		{name: "READONLY", arity: 1, local: (*conn).ok},
		{name: "READWRITE", arity: 1, local: (*conn).ok},
		{name: "ASKING", arity: 1, local: (*conn).ok},
		// Before login, too: where only the data have a password, clients send their Sentinels none, and Redis::Fast cannot. It
		// says nothing but the address that they have.
		{name: "SENTINEL", arity: -2, container: true},
		{name: "SENTINEL|GET-MASTER-ADDR-BY-NAME", arity: 3, local: (*conn).sentinelAddress, free: true},
		{name: "SENTINEL|MASTERS", arity: 2, local: (*conn).sentinelMasters, free: true},
		{name: "SENTINEL|MASTER", arity: 3, local: (*conn).sentinelMaster, free: true},
		{name: "SENTINEL|SENTINELS", arity: 3, local: (*conn).sentinels, free: true},
		{name: "SENTINEL|REPLICAS", arity: 3, local: (*conn).emptyArray, free: true},
		{name: "SENTINEL|SLAVES", arity: 3, local: (*conn).emptyArray, free: true},
		{name: "SENTINEL|MYID", arity: 2, local: (*conn).sentinelID, free: true},
		{name: "SENTINEL|CKQUORUM", arity: 3, local: (*conn).quorum, free: true},
		{name: "SUBSCRIBE", arity: -2, local: (*conn).subscribe, always: true},
		{name: "PSUBSCRIBE", arity: -2, local: (*conn).psubscribe, always: true},
		{name: "UNSUBSCRIBE", arity: -1, local: (*conn).unsubscribe, always: true},
		{name: "PUNSUBSCRIBE", arity: -1, local: (*conn).punsubscribe, always: true},

		// Redis hangs up at these: they are the beginning of an HTTP request.
		{name: "POST", arity: -1, local: (*conn).foreign, free: true},
		{name: "HOST:", arity: -1, local: (*conn).foreign, free: true},
	} {
		t[c.name] = &c
	}
	for _, r := range refusals {
		for _, name := range strings.Fields(r.names) {
			t[name] = &command{name: name, arity: -1, refusal: r.why}
		}
	}
	return t
}

// served lists the commands that are served, without subcommands.
func served(passed map[string]*command) (list []*command) {
	for _, name := range slices.Sorted(maps.Keys(table)) {
		cmd := table[name]
		if p := passed[name]; p != nil {
			cmd = p
		}
		if cmd.refusal == "" && !strings.ContainsAny(name, "|:") && name != "POST" {
			list = append(list, cmd)
		}
	}
	return list
}

// keys says where the keys stand among the arguments, from first to last, and 0 where there are none; movable: that is for
// the arguments to say.
func (c *command) keys() (first, last int, movable bool) {
	switch c.op {
	case opNone, opExec:
		return 0, 0, false
	case opUnlock:
		return 0, 0, true
	case opLoads, opExists, opDelete:
		return 1, -1, false
	case opPass:
		return c.first, c.last, false
	}
	return 1, 1, false
}

const (
	whyPersist = "there are no sessions without a deadline"
	aString    = "a session is a string"
)

// refusals are the commands of Redis 7.0 that are not served, so that they are not taken for unknown ones.
var refusals = []struct{ why, names string }{
	{"a session is read and written as a whole", `APPEND BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS DECR DECRBY GETBIT
		GETRANGE INCR INCRBY INCRBYFLOAT LCS SETBIT SETRANGE SUBSTR`},
	{whyPersist, `PERSIST`},
	{"a session is written by itself", `MSET MSETNX COPY MOVE RENAME RENAMENX SWAPDB TOUCH DUMP RESTORE RESTORE-ASKING
		MIGRATE OBJECT`},
	{"others may come in between the commands of MULTI", `WATCH UNWATCH`},
	{"sessions cannot be listed by clients", `KEYS SCAN RANDOMKEY DBSIZE`},
	{"the only script served is the release of a lock", `EVAL_RO EVALSHA_RO FCALL FCALL_RO FUNCTION SCRIPT|DEBUG SCRIPT|FLUSH
		SCRIPT|HELP SCRIPT|KILL`},
	{"there is no publishing here", `PUBLISH PUBSUB SPUBLISH SSUBSCRIBE SUNSUBSCRIBE`},
	{"the server is not administered through here", `ACL BGREWRITEAOF BGSAVE COMMAND|GETKEYS COMMAND|GETKEYSANDFLAGS
		COMMAND|HELP CONFIG|HELP CONFIG|RESETSTAT CONFIG|REWRITE CONFIG|SET CLIENT|CACHING CLIENT|GETREDIR CLIENT|HELP
		CLIENT|KILL CLIENT|LIST CLIENT|PAUSE CLIENT|REPLY CLIENT|TRACKING CLIENT|TRACKINGINFO CLIENT|UNBLOCK CLIENT|UNPAUSE
		DEBUG FAILOVER FLUSHALL FLUSHDB LASTSAVE LATENCY LOLWUT MEMORY MODULE MONITOR PFDEBUG PFSELFTEST PSYNC REPLCONF
		REPLICAOF SAVE SHUTDOWN SLAVEOF SLOWLOG SYNC TIME WAIT`},
	{"this is one server with all slots", `CLUSTER|ADDSLOTS CLUSTER|ADDSLOTSRANGE
		CLUSTER|BUMPEPOCH CLUSTER|COUNT-FAILURE-REPORTS CLUSTER|COUNTKEYSINSLOT CLUSTER|DELSLOTS CLUSTER|DELSLOTSRANGE
		CLUSTER|FAILOVER CLUSTER|FLUSHSLOTS CLUSTER|FORGET CLUSTER|GETKEYSINSLOT CLUSTER|HELP CLUSTER|KEYSLOT CLUSTER|LINKS
		CLUSTER|MEET CLUSTER|REPLICAS CLUSTER|REPLICATE CLUSTER|RESET CLUSTER|SAVECONFIG CLUSTER|SET-CONFIG-EPOCH
		CLUSTER|SETSLOT CLUSTER|SLAVES`},
	{aString, `BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN GEOADD GEODIST GEOHASH GEOPOS
		GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE HDEL HEXISTS HGET HGETALL
		HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HRANDFIELD HSCAN HSET HSETNX HSTRLEN HVALS LINDEX LINSERT LLEN LMOVE
		LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM PFADD PFCOUNT PFMERGE RPOP RPOPLPUSH RPUSH RPUSHX SADD SCARD
		SDIFF SDIFFSTORE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SRANDMEMBER
		SREM SSCAN SUNION SUNIONSTORE XACK XADD XAUTOCLAIM XCLAIM XDEL XGROUP XINFO XLEN XPENDING XRANGE XREAD
		XREADGROUP XREVRANGE XSETID XTRIM ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT ZMPOP
		ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGEBYLEX ZRANGESTORE ZRANK ZREMRANGEBYLEX ZREMRANGEBYRANK ZREVRANGE
		ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZUNION ZUNIONSTORE`},
}

// lookup finds the command that args name. Where fail is not "", it is the error to answer; the texts are those of
// Redis 7.0.15.
func lookup(args [][]byte) (cmd *command, fail string) {
	var buf [48]byte
	name := upper(buf[:0], args[0])
	cmd = table[string(name)]
	if cmd == nil || bytes.IndexByte(name, '|') >= 0 {
		return unknown, unknownCommand(args)
	}
	if cmd.container && len(args) > 1 {
		sub := table[string(upper(append(name, '|'), args[1]))]
		if sub == nil {
			return cmd, "ERR unknown subcommand '" + cText(args[1], 128) + "'. Try " + cmd.name + " HELP."
		}
		cmd = sub
	}
	return cmd, cmd.wrongArity(args)
}

// wrongArity is the error to answer where there are too few args or too many, else "".
func (c *command) wrongArity(args [][]byte) string {
	if c.arity > 0 && len(args) != c.arity || len(args) < -c.arity {
		return "ERR wrong number of arguments for '" + strings.ToLower(c.name) + "' command"
	}
	return ""
}

// upper appends name in capitals, as far as buf has room: no command has a longer name.
func upper(buf, name []byte) []byte {
	for _, b := range name[:min(len(name), cap(buf)-len(buf))] {
		if 'a' <= b && b <= 'z' {
			b -= 'a' - 'A'
		}
		buf = append(buf, b)
	}
	return buf
}

// unknownCommand is the text that clients know an unknown command by (phpredis looks for "ERR unknown command").
func unknownCommand(args [][]byte) string {
	var list strings.Builder
	for _, a := range args[1:] {
		if list.Len() >= 128 {
			break
		}
		list.WriteString("'" + cText(a, 128-list.Len()) + "' ")
	}
	return "ERR unknown command '" + cText(args[0], 128) + "', with args beginning with: " + list.String()
}

// cText is what C's %.*s prints of b: nothing behind a NUL.
func cText(b []byte, n int) string {
	b, _, _ = bytes.Cut(b[:min(n, len(b))], []byte{0})
	return string(b)
}

func (c *command) refused() string {
	return "ERR sessile: '" + strings.ToLower(c.name) + "' is not served: " + c.refusal
}

func (r *request) parseKey(args [][]byte) { r.keys = append(r.keys, r.site.key(args[1])) }

func (r *request) parseKeys(args [][]byte) {
	for _, a := range args[1:] {
		r.keys = append(r.keys, r.site.key(a))
	}
}

func (r *request) parseTTL(args [][]byte) {
	r.parseKey(args)
	r.absolute = strings.HasSuffix(r.cmd.name, "EXPIRETIME")
}

func (r *request) parseSetEx(args [][]byte) {
	r.parseKey(args)
	r.data = args[3]
	if r.deadline(args[2], r.cmd.unit(), false, true) {
		r.saveOrLock()
	}
}

func (r *request) parseSetNX(args [][]byte) {
	r.parseKey(args)
	r.data, r.only = args[2], ifAbsent
	r.saveOrLock()
}

func (r *request) parseGetSet(args [][]byte) {
	r.parseKey(args)
	r.data, r.get = args[2], true
	r.saveOrLock()
}

// parseSet reads the options as Redis does: any order, any case, and the same one twice.
func (r *request) parseSet(args [][]byte) {
	r.parseKey(args)
	r.data = args[2]
	var expiry string // the option that names the deadline
	var arg []byte
	for i := 3; i < len(args); i++ {
		var buf [8]byte
		switch name := string(upper(buf[:0], args[i])); {
		case name == "NX" && r.only&ifPresent == 0:
			r.only |= ifAbsent
		case name == "XX" && r.only&ifAbsent == 0:
			r.only |= ifPresent
		case name == "GET":
			r.get = true
		case name == "KEEPTTL" && expiry == "":
			r.keep = true
		case expiryUnit(name) != 0 && !r.keep && (expiry == "" || expiry == name) && i+1 < len(args):
			i++
			expiry, arg = name, args[i]
		default:
			r.fail = textSyntax
			return
		}
	}
	if expiry == "" || r.deadline(arg, expiryUnit(expiry), len(expiry) == 4, true) {
		r.saveOrLock()
	}
}

// expiryUnit is the unit of EX, PX, EXAT and PXAT, and 0 for anything else.
func expiryUnit(option string) time.Duration {
	switch option {
	case "EX", "EXAT":
		return time.Second
	case "PX", "PXAT":
		return time.Millisecond
	}
	return 0
}

// saveOrLock finishes a SET. That of a lock key takes the lock.
func (r *request) saveOrLock() {
	k := r.keys[0]
	switch {
	case !k.lock && r.expires.IsZero() && !r.keep:
		if r.site.Lifetime == 0 {
			r.fail = string(errNoLifetime)
		}
		r.expires = r.now.Add(r.site.Lifetime)
	case !k.lock:
	case r.only != ifAbsent || r.get || r.keep || len(r.data) == 0 || len(r.data) > r.site.Limits.Key:
		r.fail = string(errLockKey)
	default:
		r.token = string(r.data)
		if !r.expires.IsZero() {
			r.ttl = r.expires.Sub(r.now)
		}
	}
}

func (r *request) parseGetEx(args [][]byte) {
	r.parseKey(args)
	if len(args) == 2 {
		return
	}
	var buf [8]byte
	name := string(upper(buf[:0], args[2]))
	switch {
	case name == "PERSIST" && len(args) == 3:
		r.fail = textPersist
	case expiryUnit(name) != 0 && len(args) == 4:
		r.deadline(args[3], expiryUnit(name), len(name) == 4, true)
	default:
		r.fail = textSyntax
	}
}

// condition is what an option of EXPIRE and ZADD asks for, and 0 for anything else.
func condition(option string) only {
	switch option {
	case "NX":
		return ifAbsent
	case "XX":
		return ifPresent
	case "GT":
		return ifLater
	case "LT":
		return ifEarlier
	}
	return 0
}

func (r *request) parseExpire(args [][]byte) {
	r.parseKey(args)
	for _, a := range args[3:] {
		cond := condition(strings.ToUpper(string(a)))
		if cond == 0 {
			r.fail = "ERR Unsupported option " + cText(a, len(a))
			return
		}
		r.only |= cond
	}
	switch {
	case r.only&ifAbsent != 0 && r.only != ifAbsent:
		r.fail = "ERR NX and XX, GT or LT options at the same time are not compatible"
		return
	case r.only&ifLater != 0 && r.only&ifEarlier != 0:
		r.fail = "ERR GT and LT options at the same time are not compatible"
		return
	}
	r.deadline(args[2], r.cmd.unit(), strings.HasSuffix(r.cmd.name, "AT"), false)
}

// maxLifetime is the longest lifetime a session can be given: more is a mistake, or somebody who wants an immortal one.
const maxLifetime = 100 * 365 * 24 * time.Hour

// deadline sets expires from the number in arg, as Redis computes it.
func (r *request) deadline(arg []byte, unit time.Duration, absolute, positive bool) bool {
	n, ok := parseInt(arg)
	if !ok {
		r.fail = textNotInteger
		return false
	}
	r.at = absolute
	per := int64(unit / time.Millisecond)
	ms, now := n*per, r.now.UnixMilli()
	bad := positive && n <= 0 || n > math.MaxInt64/per || n < math.MinInt64/per
	switch {
	case bad:
	case absolute:
		bad = ms > now+maxLifetime.Milliseconds()
	default:
		bad = ms > maxLifetime.Milliseconds()
		ms += now
	}
	if bad {
		r.fail = "ERR invalid expire time in '" + strings.ToLower(r.cmd.name) + "' command"
		return false
	}
	if r.expires = time.UnixMilli(ms); !absolute && n > 0 {
		// The deadline counts from now and not from the millisecond that now lies in: rounded down it would end early.
		r.expires = r.now.Add(time.Duration(n) * unit)
	}
	return true
}

// parseInt reads a number as strictly as Redis: no sign but '-', no leading zeros, no spaces.
func parseInt(b []byte) (int64, bool) {
	digits := bytes.TrimPrefix(b, []byte("-"))
	if len(digits) == 0 || digits[0] < '0' || digits[0] > '9' || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}

// parseEval takes EVAL and EVALSHA alike; which script it is, and whether it was seen, is for the server to say.
func (r *request) parseEval(args [][]byte) {
	n, ok := parseInt(args[2])
	switch {
	case !ok:
		r.fail = textNotInteger
	case n > int64(len(args)-3):
		r.fail = "ERR Number of keys can't be greater than number of args"
	case n < 0:
		r.fail = "ERR Number of keys can't be negative"
	default:
		r.data = args[1]
		if n != 1 || len(args) < 5 {
			return // no keys: exec refuses, after it looked at the script
		}
		r.keys = append(r.keys, r.site.key(args[3]))
		r.token = string(args[4])
	}
}

// failure is the text that a client is answered instead of a reply. The first word decides what PHP makes of it: any
// but ERR is an uncaught exception (clients.md, 4.4), so neither MOVED nor READONLY nor LOADING ever passes here. No
// text names a session.
func failure(err error) string {
	outcome := store.OutcomeOf(err)
	own, ours := errors.AsType[refusal](err)
	refused, _ := errors.AsType[*store.RefusedError](err)
	switch {
	case refused != nil && refused.Reason == store.ReasonType:
		return string(errWrongType)
	case ours:
		return string(own)
	case errors.Is(err, errors.ErrUnsupported):
		return "ERR sessile: this site's store cannot do that"
	case outcome == store.OutcomeInvalid:
		return "ERR sessile: invalid session id or value"
	case outcome == store.OutcomeConflict:
		return "ERR sessile: the session was changed meanwhile, try again"
	case outcome == store.OutcomeUnknown:
		return "ERR sessile: outcome unknown, the session may or may not have been written"
	}
	return "ERR sessile: session store unavailable, try again"
}

// A refusal is an error that the gateway itself answers, in the client's words.
type refusal string

func (e refusal) Error() string { return string(e) }

const (
	errForeign    refusal = "ERR sessile: the key does not have this site's prefix"
	errNoScript   refusal = "NOSCRIPT No matching script. Please use EVAL."
	errScript     refusal = "ERR sessile: the only script served is the release of a lock (compare GET with ARGV[1], then DEL)"
	errLockKey    refusal = "ERR sessile: a lock is taken by SET with NX and released; this cannot be done to it"
	errTooLarge   refusal = "ERR sessile: the answer would be too large"
	errNoLifetime refusal = "ERR sessile: a session needs a lifetime: give one, or configure the site's"
)

// outcomeOf classifies what a command came to.
func outcomeOf(err error) store.Outcome {
	if _, ok := errors.AsType[refusal](err); ok {
		return store.OutcomeInvalid
	}
	return store.OutcomeOf(err)
}
