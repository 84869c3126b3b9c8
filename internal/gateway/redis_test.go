package gateway

import (
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// The same commands to a real Redis and to a gateway over memory: the same bytes, in both protocols.
func TestRepliesAreThoseOfRedis(t *testing.T) {
	real := testserver.Redis(t)
	long := func(c string, n int) string { return strings.Repeat(c, n) }
	script := phpredisScript
	sha := phpredisSHA
	scripts := [][]string{ // one connection each; Redis is emptied before
		{"GET k", "SET k v EX 100", "GET k", "get k", "STRLEN k", "TYPE k", "TYPE nokey", "STRLEN nokey", "EXISTS k", "EXISTS k k nokey",
			"TTL k", "TTL nokey", "PTTL nokey", "EXPIRETIME nokey", "PEXPIRETIME nokey", "DEL k", "DEL k", "GET k"},
		{"SETEX k 1440 v", "GET k", "TTL k", "SETEX k 0 v", "SETEX k -1 v", "SETEX k x v", "SETEX k 01 v", "SETEX k +1 v", "SETEX k 1",
			"SETEX k 9223372036854775807 v", "SETEX k 9223372036854775808 v", "PSETEX k 100000 w", "GET k", "PSETEX k 0 w", "PSETEX k", "setex K 100 v"},
		{"SETEX k 100 ", "GET k", "EXISTS k", "STRLEN k", "EXPIRE k 50", "TTL k"}, // empty is not absent
		{"SET k v EX 100", "SET k w ex 100 NX", "SET k w nx EX 100", "SET k w XX px 100000", "GET k", "SET n w XX EX 10", "GET n",
			"SET n w NX EX 10", "GET n", "SET k v NX XX", "SET k v EX", "SET k v EX x", "SET k v EX 0", "SET k v PX -5",
			"SET k v EX 1 PX 1", "SET k v KEEPTTL EX 1", "SET k v FOO", "SET k v PERSIST", "SET k v ex 10 ex 20", "TTL k", "SET k",
			"SET k v EX 9223372036854775807", "SET k v PX 9223372036854775807", "SET k v EXAT 1", "GET k", "SET k v EX 10", "SET k v PXAT 1 NX", "SET k2 v PXAT 1 XX",
			"SET k v PXAT 5 XX", "GET k"},
		{"SET k v EX 100 GET", "SET k w EX 100 GET", "SET k x NX GET EX 10", "SET n x NX GET EX 10", "GET n", "SET m x XX GET EX 10", "GET m",
			"SET k y KEEPTTL", "TTL k", "GET k", "SET k y GET GET EX 100", "GETSET k z", "GET k", "GETDEL k", "GETDEL k", "GETSET g v"},
		{"SETNX k v", "SETNX k w", "GET k", "EXPIRE k 100", "TTL k"},
		{"SET k v EX 100", "EXPIRE k 50", "TTL k", "EXPIRE nokey 50", "PEXPIRE k 60000", "TTL k", "EXPIRE k 10 NX", "EXPIRE k 10 XX", "TTL k",
			"EXPIRE k 5 GT", "EXPIRE k 20 gt", "TTL k", "EXPIRE k 30 LT", "EXPIRE k 15 lt", "TTL k", "EXPIRE k 10 NX XX", "EXPIRE k 10 GT LT",
			"EXPIRE k 10 NX GT", "EXPIRE k 10 XX GT", "EXPIRE k 10 FOO", "EXPIRE k x", "EXPIRE k x FOO", "EXPIRE k", "EXPIRE k 9223372036854775807",
			"EXPIRE nokey -9223372036854775808", "EXPIRE k 0", "GET k", "EXPIRE k 0", "SET k v EX 9", "PEXPIREAT k 1", "GET k",
			"SET k v EX 9", "EXPIREAT k 1 LT", "EXISTS k", "EXPIREAT k 4000000000", "EXPIREAT k -9223372036854775808"},
		{"SET k v EX 100", "EXPIREAT k 1900000000", "EXPIRETIME k", "PEXPIRETIME k", "PEXPIREAT k 1900000000500", "EXPIRETIME k", "PEXPIRETIME k",
			"SET k v EXAT 1900000001", "EXPIRETIME k", "SET k v PXAT 1900000001499", "EXPIRETIME k"},
		{"GETEX k", "GETEX k EX 10", "SET k v EX 100", "GETEX k", "TTL k", "GETEX k EX 50", "TTL k", "GETEX k px 70000", "TTL k", "GETEX k EX",
			"GETEX k FOO", "GETEX k FOO 1", "GETEX k EX 10 PX 1", "GETEX k EX 0", "GETEX k EX x", "GETEX", "GETEX k PERSIST EX", "GETEX k EXAT 1", "GET k"},
		{"SET a 1 EX 9", "SET b 2 EX 9", "MGET a nokey b", "DEL a nokey b", "MGET a b", "MGET", "DEL", "EXISTS", "UNLINK a", "UNLINK", "GETDEL", "TYPE",
			"SET a 1 EX 9", "UNLINK a a"},
		{"PING", "PING a", "PING a b", "ECHO x", "ECHO", "ECHO a b", "ping", "ROLE", "ROLE x", "QUIT x"},
		{"QUIT"},
		{"SELECT 0", "SELECT 1x", "SELECT -1", "SELECT 0", "SELECT", "SELECT 99999999999999999999"},
		{"AUTH", "AUTH a b c"},
		{"HELLO 2", "HELLO 4", "HELLO x", "HELLO 3 AUTH", "HELLO 3 AUTH a", "HELLO 3 FOO", "HELLO 3 SETNAME", "HELLO 3 SETNAME a", "CLIENT GETNAME", "HELLO 1", "HELLO"},
		{"HELLO 3", "GET k", "SET k v EX 10 NX", "SET k v EX 10 NX", "MGET k nokey", "CLIENT GETNAME", "CONFIG GET nosuch", "COMMAND DOCS nosuch", "INFO nosuch",
			"COMMAND INFO nosuch", "RESET", "GET nokey"},
		{"CLIENT", "CLIENT FOO", "CLIENT SETNAME", "CLIENT SETNAME x", "client getname", "CLIENT SETNAME ", "CLIENT GETNAME", "CLIENT NO-EVICT on",
			"CLIENT NO-EVICT zz", "CLIENT MAINT_NOTIFICATIONS on", "CLIENT GETNAME x"},
		{"RESET", "RESET x", "INFO nosuch", "CONFIG", "CONFIG FOO", "CONFIG GET", "CONFIG GET nosuch", "COMMAND FOO", "COMMAND COUNT x", "COMMAND INFO nosuch",
			"COMMAND DOCS nosuch", "CLUSTER", "CLUSTER FOO", "CLUSTER INFO x"},
		{"EVAL x", "EVAL return1 x", "EVAL return1 2 a", "EVAL return1 -1", "EVALSHA abc 0", "EVALSHA " + sha + " 1 k_LOCK v", "EVALSHA " + sha + " 5 k v",
			"SCRIPT", "SCRIPT FOO", "SCRIPT EXISTS", "SCRIPT EXISTS " + sha, "SCRIPT LOAD"},
		{"ZADD z 1 a", "ZADD z 1 a 2.5 b", "ZADD z ch 3 a 4 c", "ZADD z NX 9 a 9 d", "ZADD z XX 5 a 5 nobody", "ZADD z GT CH 4 a 6 b", "ZADD z lt xx CH 1 b",
			"ZADD z INCR 1.5 a", "ZADD z incr 1.5 new", "ZADD z NX INCR 1 a", "ZADD z XX INCR 1 nobody", "ZADD z 1 x 2 x", "ZCARD z", "ZRANGE z 0 -1 WITHSCORES",
			"ZADD z", "ZADD z 1", "ZADD z 1 a 2", "ZADD z a 1", "ZADD z nan a", "ZADD z 1e999 a", "ZADD z  a", "ZADD z 1x a", "ZADD z NX XX 1 a", "ZADD z GT NX 1 a",
			"ZADD z GT LT 1 a", "ZADD z LT NX 1 a", "ZADD z INCR 1 a 2 b", "ZADD z CH", "ZADD z CH NX", "ZADD z INCR 1", "ZADD z FOO 1 a", "ZADD z 1 a 1x b",
			"ZADD z inf i -inf j +inf k", "ZSCORE z i", "ZSCORE z j", "ZADD z 1e300 a 1763715600.25 b 0.1 c", "ZSCORE z a", "ZSCORE z b", "ZSCORE z c",
			"ZSCORE z nobody", "ZSCORE z", "ZSCORE nokey2 a b", "ZCARD z x", "ZRANGE z 0 -1", "ZRANGE z 1 2", "ZRANGE z -2 -1", "ZRANGE z 5 1", "ZRANGE z -100 100", "ZRANGE z 0 -100", "ZRANGE z -3 -5", "ZRANGE z 9223372036854775807 9223372036854775807", "ZRANGE z 0 9223372036854775807", "ZRANGE z -9223372036854775808 0", "ZRANGE z 0 -9223372036854775808", "ZRANGE z 0 x",
			"ZRANGE z 0", "ZRANGE z 0 1 FOO", "ZRANGE z 0 -1 LIMIT 0 1", "ZRANGE z 0 (1 BYSCORE", "ZRANGE z 0 2 BYSCORE WITHSCORES LIMIT 0 1"},
		{"SET k v EX 100", "ZADD k 1 a", "ZREM k a", "ZRANGEBYSCORE k 0 1", "GET k"},
		{"ZADD z 1 a 2 b 3 c 4 d", "ZRANGEBYSCORE z 0 (3", "ZRANGEBYSCORE z (1 3", "ZRANGEBYSCORE z -inf +inf", "ZRANGEBYSCORE z -inf +inf withscores", "zrangebyscore z (2 inf limit 1 1",
			"ZRANGEBYSCORE z 0 9 LIMIT 1 2 WITHSCORES", "ZRANGEBYSCORE z 0 9 LIMIT -1 2", "ZRANGEBYSCORE z 0 9 LIMIT 0 -1", "ZRANGEBYSCORE z 0 9 LIMIT 0 0", "ZRANGEBYSCORE z 3 1",
			"ZRANGEBYSCORE z 0 9 LIMIT 0", "ZRANGEBYSCORE z 0 9 LIMIT x 1", "ZRANGEBYSCORE z 0 9 FOO", "ZRANGEBYSCORE z x 9", "ZRANGEBYSCORE z 0 ((3", "ZRANGEBYSCORE z nan 1",
			"ZRANGEBYSCORE z 0 1e999x", "ZRANGEBYSCORE z 0 1 BYSCORE", "ZRANGEBYSCORE z 0", "ZCOUNT z 0 (3", "ZCOUNT z x 3", "ZCOUNT z 0", "ZREM z a nobody b", "ZREM z", "ZREM z a",
			"ZREMRANGEBYSCORE z 0 (4", "ZREMRANGEBYSCORE z x (4", "ZREMRANGEBYSCORE z 0", "ZCARD z", "ZREMRANGEBYSCORE z -inf +inf", "ZCARD z", "ZRANGEBYSCORE z 0 9", "ZRANGE z 0 -1"},
		{"ZADD z 1 a", "GET z", "SET k v EX 9", "SETEX z"},
		{"MULTI", "SET k v EX 100", "GET k", "EXPIRE k 50", "EXISTS k nokey", "ZADD z 1 a", "ZSCORE z a", "ZRANGE z 0 -1 WITHSCORES", "DEL k", "EXEC", "EXEC", "GET k", "ZCARD z"},
		{"EXEC", "DISCARD", "MULTI", "DISCARD", "MULTI", "MULTI", "SET k v EX 9", "DISCARD", "GET k", "MULTI x", "MULTI", "EXEC", "MULTI", "FOO a", "GET k", "EXEC", "GET k",
			"MULTI", "GET", "EXEC", "MULTI", "SETEX k 0 v", "SETEX k 10 v", "EXPIRE k x", "ZADD z x a", "EXEC", "GET k", "EXEC x", "DISCARD x",
			"MULTI", "GET k", "EXEC x", "EXEC", "MULTI", "RESET", "EXEC", "MULTI", "GET k", "QUIT"},
		{"HELLO 3", "MULTI", "GET nokey", "ZADD z 1.5 a", "ZSCORE z a", "EXEC"},
		{"HELLO 3", "ZADD z 1 a 2.5 b", "ZSCORE z a", "ZSCORE z nobody", "ZADD z INCR 1 a", "ZADD z XX INCR 1 nobody", "ZRANGEBYSCORE z 0 9", "ZRANGEBYSCORE z 0 9 WITHSCORES", "ZRANGE z 0 -1 WITHSCORES",
			"ZRANGE z 5 6 WITHSCORES", "ZCARD z"},
		{"SUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUBSCRIBE +switch-master", "SUBSCRIBE +switch-master", "subscribe +sentinel", "GET k", "get", "FOO", "MULTI", "AUTH x", "HELLO 3",
			"SELECT 0", "CLIENT SETNAME x", "CLIENT foo", "APPEND k v", "PING", "ping x", "PING x y", "PSUBSCRIBE *", "PSUBSCRIBE [-+]sdown", "UNSUBSCRIBE +sentinel", "UNSUBSCRIBE +sdown",
			"UNSUBSCRIBE", "GET k", "PUNSUBSCRIBE *", "PUNSUBSCRIBE", "GET k", "SUBSCRIBE +odown", "RESET", "GET k", "PSUBSCRIBE +*", "QUIT"},
		{"HELLO 3", "SUBSCRIBE +switch-master", "GET k", "PING", "PING x", "PSUBSCRIBE *", "CLIENT SETNAME x", "HELLO 2", "GET k", "PING", "RESET", "GET k"},
		{"SUBSCRIBE +a -b", "PING", "PSUBSCRIBE +c +d", "PING", "UNSUBSCRIBE +a -b +a", "PING", "PING"}, // several answers each: those of the last are not read
		{"FOO", "foo a b", "FOO " + long("a", 200) + " b", long("f", 200) + " x", "FOO " + long("x", 100) + " " + long("y", 100) + " z",
			"FOO " + long("x", 127) + " y", "FOO " + long("x", 125) + " y z", "FOO a\r\nb", "FOO a\x00b c", "fo\x00o a", "FOO ", " a", "FOO \xff", "DELEX k IFEQ v", "DELIFEQ k v",
			"HGETEX a", long("FO", 30), "GET\x00 k", "GET_ k", "CLIENT|ID", "CLIENT " + long("x", 200)},
	}
	sets := testserver.Redis(t)
	site := Site{LockSuffix: "_LOCK", AccessSet: "z", Sets: redisSite(t, sets, "", 0).Store.(SortedSets)}
	for i, cmds := range slices.Concat(scripts, scripts) {
		real.Do("FLUSHALL")
		sets.Do("FLUSHALL")
		real.Do("SCRIPT", "FLUSH")
		gw := start(t, site)
		ours := gw.dial()
		nc, err := net.Dial("tcp", real.Addr)
		if err != nil {
			t.Fatal(err)
		}
		theirs := newClient(t, nc)
		if i >= len(scripts) { // once more, in the other protocol, in which who is subscribed may say anything
			if strings.HasPrefix(cmds[0], "SUBSCRIBE") {
				cmds = cmds[:3]
			}
			cmds = slices.Concat([]string{"HELLO 3"}, cmds)
		}
		for _, line := range cmds {
			args := strings.Split(line, " ")
			want, got := theirs.do(args...), ours.do(args...)
			if got, want := steady(got), steady(want); got != want {
				t.Errorf("%.80q after %.80q:\n got %q\nwant %q", line, cmds[:2], got, want)
			}
		}
		theirs.close()
		ours.close()
	}
	t.Run("the lock", func(t *testing.T) {
		const orNull = `if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) end`
		cmds := [][]string{
			{"SET", "k_LOCK", "a", "NX", "PX", "30000"}, {"SET", "k_LOCK", "b", "NX", "PX", "30000"}, {"GET", "k_LOCK"}, {"EXISTS", "k_LOCK"},
			{"TYPE", "k_LOCK"}, {"STRLEN", "k_LOCK"}, {"TTL", "k_LOCK"}, {"TTL", "nokey_LOCK"}, {"GET", "nokey_LOCK"}, {"EXISTS", "nokey_LOCK"},
			{"EVALSHA", sha, "1", "k_LOCK", "b"}, {"EVAL", script, "1", "k_LOCK", "b"}, {"EVALSHA", sha, "1", "k_LOCK", "b"}, {"GET", "k_LOCK"},
			{"EVALSHA", strings.ToUpper(sha), "1", "k_LOCK", "a"}, {"GET", "k_LOCK"}, {"SCRIPT", "EXISTS", sha, "x"}, {"SETNX", "k_LOCK", "c"},
			{"SETNX", "k_LOCK", "c"}, {"EXPIRE", "k_LOCK", "300"}, {"DEL", "k_LOCK"}, {"DEL", "k_LOCK"}, {"SET", "k_LOCK", "d", "ex", "30", "nx"},
			{"EXPIRE", "k_LOCK", "-1"}, {"GET", "k_LOCK"}, {"SET", "k_LOCK", "d", "NX", "PX", "0"}, {"SET", "k_LOCK", "d", "NX", "PX", "x"}, {"EXPIRE", "k_LOCK", "10"},
			{"SCRIPT", "LOAD", script}, {"EVAL", script + " ", "1", "k_LOCK", "a"},
			{"EVAL", orNull, "1", "k_LOCK", "a"},
		}
		for _, proto := range []string{"2", "3"} {
			real.Do("FLUSHALL")
			real.Do("SCRIPT", "FLUSH")
			ours := start(t, Site{LockWait: time.Millisecond}).dial()
			nc, err := net.Dial("tcp", real.Addr)
			if err != nil {
				t.Fatal(err)
			}
			theirs := newClient(t, nc)
			for _, args := range slices.Concat([][]string{{"HELLO", proto}}, cmds) {
				want, got := theirs.do(args...), ours.do(args...)
				if got, want := steady(got), steady(want); got != want {
					t.Errorf("RESP%s, %.80q: got %q, want %q", proto, args, got, want)
				}
			}
		}
	})
	t.Run("before login", func(t *testing.T) {
		real := testserver.Redis(t, testserver.WithPassword("", "secret"))
		gw := start(t, Site{Users: []User{{Passwords: []string{"old", "secret"}}}})
		ours := gw.dial()
		nc, err := net.Dial("tcp", real.Addr)
		if err != nil {
			t.Fatal(err)
		}
		theirs := newClient(t, nc)
		for _, line := range []string{"GET k", "PING", "FOO a", "GET", "HELLO 3", "HELLO 4", "HELLO 3 AUTH default wrong", "CLIENT ID", "CLIENT FOO", "INFO",
			"COMMAND", "ECHO x", "SELECT 0", "RESET", "AUTH wrong", "AUTH default wrong", "AUTH nobody secret", "PING", "AUTH secret", "PING", "AUTH default wrong",
			"PING", "RESET", "PING", "AUTH default secret", "GET k", "RESET", "HELLO 3 AUTH default secret", "GET k", "RESET",
			"HELLO 3 SETNAME a AUTH default wrong", "HELLO 3 SETNAME a AUTH default secret", "CLIENT GETNAME", "HELLO 4", "HELLO 2", "GET k", "QUIT"} {
			args := strings.Split(line, " ")
			want, got := theirs.do(args...), ours.do(args...)
			if got, want := steady(got), steady(want); got != want {
				t.Errorf("%q: got %q, want %q", line, got, want)
			}
		}
		ours.closed()
	})
}

// steady replaces what differs between two servers: the connection's id.
func steady(reply string) string { return helloID.ReplaceAllString(reply, "id\r\n:N\r\n") }

var helloID = regexp.MustCompile(`id\r\n:\d+\r\n`)

// What is no string is answered as by Redis, whoever put it there. It is no sign that the store is away, so nobody waits for it.
func TestAnotherType(t *testing.T) {
	direct, behind := testserver.Redis(t), testserver.Redis(t)
	nc, err := net.Dial("tcp", direct.Addr)
	if err != nil {
		t.Fatal(err)
	}
	gw := start(t, redisSite(t, behind, "", 0))
	theirs, ours := newClient(t, nc), gw.dial()
	for _, r := range []*testserver.RedisServer{direct, behind} {
		for _, key := range []string{"h", "g", "i"} {
			r.Do("HSET", key, "a", "1")
		}
	}
	for line := range strings.SplitSeq("GET h,EXISTS h,STRLEN h,GETEX h,SET k v EX 100,GET k,GETDEL h,SET h v EX 100 GET,GETSET h v,"+
		"EXPIRE h 100,SET h v EX 100 NX,SETEX h 100 v,GET h,DEL g,GET g,SET i v EX 10,GET i", ",") {
		args := strings.Fields(line)
		if want, got := theirs.do(args...), ours.do(args...); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
	if n := gw.Stats(); n.Held != 0 {
		t.Errorf("%d were held", n.Held)
	}
}
