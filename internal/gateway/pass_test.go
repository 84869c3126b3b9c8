package gateway

import (
	"context"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// The same commands to a real Redis and, passed on, to a gateway: the same bytes, in both protocols.
func TestPassedRepliesAreThoseOfRedis(t *testing.T) {
	direct, behind := testserver.Redis(t), testserver.Redis(t)
	site := redisSite(t, behind, "", 0)
	site.Passage = site.Store.(Passage)
	for _, p := range passable {
		for i, word := range strings.Fields(p.names) {
			if i%2 == 0 {
				site.Passed = append(site.Passed, strings.ToLower(word))
			}
		}
	}
	gw := start(t, site)
	for _, proto := range []string{"2", "3"} {
		direct.Do("FLUSHALL")
		behind.Do("FLUSHALL")
		nc, err := net.Dial("tcp", direct.Addr)
		if err != nil {
			t.Fatal(err)
		}
		theirs, ours := newClient(t, nc), gw.dial()
		theirs.do("HELLO", proto)
		ours.do("HELLO", proto)
		said := map[string]bool{}
		for line := range strings.SplitSeq(passedLines, "\n") {
			args := strings.Fields(line)
			if len(args) == 0 {
				continue
			}
			said[strings.ToLower(args[0])] = true
			if want, got := theirs.do(args...), ours.do(args...); got != want {
				t.Errorf("RESP%s, %s: got %q, want %q", proto, line, got, want)
			}
		}
		for _, name := range site.Passed {
			if !said[name] {
				t.Errorf("%s is not tried", name)
			}
		}
		theirs.close()
		ours.close()
	}
}

const passedLines = `
HSET h a 1
HSET h a 1 b
HSET h
HMSET h a 2 b 3
HMSET h a
HGETALL h
HGETALL nokey
HGETALL h x
HGET h a
HGET h nothing
HMGET h a nothing b
HKEYS h
HVALS h
HLEN h
HEXISTS h a
HSTRLEN h a
HSETNX h a 5
HSETNX h c x
HINCRBY h a 5
HINCRBY h c 1
HINCRBYFLOAT h a 1.5
HSCAN h 0 MATCH a*
HSCAN h x
HDEL h a nothing
TYPE h
EXISTS h nokey h
EXPIRE h 100
TTL h
PTTL nokey
PEXPIRE h 50000
PERSIST h
PERSIST h
TTL h
EXPIREAT h 4000000000 GT
EXPIREAT h 4000000000
PEXPIREAT h 4000000000000
EXPIRE h x
SADD s a
SADD s a b
SMEMBERS nokey
SREM s b c
SMEMBERS s
SCARD s
SISMEMBER s a
SMISMEMBER s a b
SRANDMEMBER s
SRANDMEMBER nokey
SRANDMEMBER s 5
SRANDMEMBER nokey 5
SSCAN s 0
SPOP s 5
SPOP s
SADD s a
SPOP s
HSET s a 1
SADD h a
GET s
ZADD z 1 a 2.5 b inf c
ZADD z XX INCR 1 nobody
ZADD z INCR 1.5 a
ZADD z x a
ZCARD z
ZCOUNT z 0 2
ZSCORE z a
ZSCORE z c
ZSCORE z nobody
ZRANK z b
ZRANK z nobody
ZINCRBY z 0.1 b
ZRANGE z 0 -1
ZRANGE z 0 -1 WITHSCORES
ZRANGE z 9 10 WITHSCORES
ZRANGEBYSCORE z -inf (3 WITHSCORES LIMIT 0 1
ZREVRANGE z 0 -1 WITHSCORES
ZREVRANGEBYSCORE z 3 0
ZSCAN z 0
ZREM z c
ZREMRANGEBYSCORE z 0 (1
ZREMRANGEBYRANK z 0 0
APPEND t abc
APPEND t def
GETRANGE t 1 3
SETRANGE t 1 xx
STRLEN t
INCR n
INCRBY n 5
DECR n
INCR t
INCR h
RENAME n m
RENAME nokey m
RENAMENX m h
RENAMENX m o
TOUCH h o nokey
SCAN 0 MATCH o
SCAN 0 MATCH nothing TYPE hash COUNT 1000
SCAN x
KEYS o*
KEYS nothing*
MULTI
HSET h q 1
SMEMBERS s
HGETALL nokey
GET s
EXEC
UNLINK h
DEL s z o t nokey
DEL
KEYS *
HGETALL
`

// What is passed on stays among the site's own keys, and away from what is ours. What is not named is refused.
func TestPassedKeys(t *testing.T) {
	r := testserver.Redis(t)
	site := redisSite(t, r, "app:", 0)
	site.Passage, site.Passed = site.Store.(Passage), []string{"HSET", "DEL", "EXISTS", "RENAME", "KEYS", "SCAN", "SADD"}
	c := start(t, site).dial()
	for _, key := range []string{"other:x", "sessile:x", "app:mine"} {
		r.Do("HSET", key, "a", "1")
	}
	r.Do("SET", "app:sessile:x", "")
	foreign, invalid := "-"+string(errForeign)+"\r\n", "-ERR sessile: invalid session id or value\r\n"
	c.want(foreign, "HSET", "other:x", "a", "2")
	c.want(foreign, "DEL", "app:mine", "other:x")
	c.want(foreign, "RENAME", "app:mine", "other:y")
	c.want(foreign, "EXISTS", "")
	c.want(invalid, "HSET", "sessile:x", "a", "2")
	c.want(invalid, "HSET", "app:sessile:x", "a", "2")
	c.want(invalid, "HSET", "app:"+strings.Repeat("x", 600), "a", "2")
	c.want("-"+string(errLockKey)+"\r\n", "DEL", "app:mine_LOCK")
	c.want("*1\r\n"+bulk("app:mine"), "KEYS", "*")
	c.want("*0\r\n", "KEYS", "other*")
	c.want("*2\r\n"+bulk("0")+"*1\r\n"+bulk("app:mine"), "SCAN", "0", "COUNT", "1000")
	c.want("-ERR sessile: 'hgetall' is not served: "+aString+"\r\n", "HGETALL", "app:mine")
	c.want(":1\r\n", "HSET", "app:ä b\r\n", "a", "1") // of an index, say
	c.want(":2\r\n", "DEL", "app:mine", "app:ä b\r\n")
	if got := strings.Fields(r.CLI("KEYS", "*")); len(got) != 3 {
		t.Errorf("there is %q", got)
	}
	all := c.do("COMMAND", "INFO", "hset", "rename", "hget")
	if !strings.Contains(all, "hset\r\n:-4\r\n") || !strings.Contains(all, "rename\r\n:3\r\n*0\r\n:1\r\n:2\r\n") || !strings.HasSuffix(all, null) {
		t.Errorf("COMMAND says %q", all)
	}
	for _, bad := range [][]string{{"EVAL"}, {"GET"}, {"nothing"}, {"HSET", ""}} {
		site.Passed = bad
		if _, err := New(site, Options{}); err == nil {
			t.Errorf("%q are passed on", bad)
		}
	}
	site.Passed, site.Passage = []string{"HSET"}, nil
	if site.complete() == nil {
		t.Error("commands are passed on to nowhere")
	}
}

// passageFunc answers as a test says.
type passageFunc func(args []string) (resp.Value, error)

func (f passageFunc) Command(_ context.Context, args ...string) (resp.Value, error) { return f(args) }

// A command that was certainly not executed waits for the target like any other, and one that may have been is not sent again.
func TestPassedWhileTheTargetIsAway(t *testing.T) {
	var asked atomic.Int64
	failure := store.ErrUnavailable
	site := Site{Passed: []string{"HSET"}, Hold: time.Minute, Passage: passageFunc(func([]string) (v resp.Value, err error) {
		if asked.Add(1) < 3 {
			return v, failure
		}
		return resp.Value{Kind: resp.Int, Int: 1}, nil
	})}
	gw := start(t, site)
	c := gw.dial()
	c.want(":1\r\n", "HSET", "k", "a", "1")
	if n := gw.Stats(); n.Held != 1 || asked.Load() != 3 {
		t.Errorf("%d were held, and asked %d times", n.Held, asked.Load())
	}
	asked.Store(0)
	failure = store.ErrUnknown
	c.want("-ERR sessile: outcome unknown, the session may or may not have been written\r\n", "HSET", "k", "a", "1")
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
	// An answer is as large as any.
	gw = start(t, Site{Passed: []string{"HGETALL"}, Limits: Limits{Output: 1000}, Passage: passageFunc(func([]string) (resp.Value, error) {
		return resp.Value{Kind: resp.Bulk, Str: make([]byte, 1000)}, nil
	})})
	gw.dial().want("-"+string(errTooLarge)+"\r\n", "HGETALL", "k")
}

func TestPassableCommandsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(doc), "It may be any of")
	list, _, _ = strings.Cut(list, "and the answers")
	said := strings.Fields(strings.ReplaceAll(list, "`", " "))
	all, _ := passing(said)
	if want := slices.Sorted(maps.Keys(all)); !slices.Equal(said, want) {
		t.Errorf("docs/clients.md says %q, want in this order %q", said, want)
	}
	n := 0
	for _, p := range passable {
		n += len(strings.Fields(p.names)) / 2
	}
	if len(said) != n {
		t.Errorf("docs/clients.md names %d commands of %d", len(said), n)
	}
}
