package gateway

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

// Commands beyond those about a session. Some applications keep theirs as hashes (Spring Session, Magento), or an index of them in
// sets (LemonLDAP). To a store that holds strings of bytes these are nothing, and they cannot be moved. Where nothing is
// moved, a site may name the commands, and they go to the target as they are, those about a session among them: EXPIRE and DEL
// then mean keys of any type, and have none of the guards of a session.

// Passage is where such commands go.
type Passage interface {
	// Command runs a command of Redis. The answer is that of RESP3, but that every string may be a Bulk and a set an Array.
	Command(ctx context.Context, args ...string) (resp.Value, error)
}

// passable are the commands that a site may name, with how many arguments each has, as Redis counts. Their keys are the arguments
// from first to last.
var passable = []struct {
	names       string
	first, last int
}{
	{`HDEL -3 HEXISTS 3 HGET 3 HGETALL 2 HINCRBY 4 HINCRBYFLOAT 4 HKEYS 2 HLEN 2 HMGET -3 HMSET -4 HSCAN -3 HSET -4 HSETNX 4 HSTRLEN 3 HVALS 2
		SADD -3 SCARD 2 SISMEMBER 3 SMEMBERS 2 SMISMEMBER -3 SPOP -2 SRANDMEMBER -2 SREM -3 SSCAN -3
		ZADD -4 ZCARD 2 ZCOUNT 4 ZINCRBY 4 ZRANGE -4 ZRANGEBYSCORE -4 ZRANK 3 ZREM -3 ZREMRANGEBYRANK 4 ZREMRANGEBYSCORE 4
		ZREVRANGE -4 ZREVRANGEBYSCORE -4 ZSCAN -3 ZSCORE 3
		APPEND 3 DECR 2 GETRANGE 4 INCR 2 INCRBY 3 SETRANGE 4 STRLEN 2
		EXPIRE -3 EXPIREAT -3 PEXPIRE -3 PEXPIREAT -3 PERSIST 2 PTTL 2 TTL 2 TYPE 2`, 1, 1},
	{`DEL -2 EXISTS -2 TOUCH -2 UNLINK -2`, 1, -1},
	{`RENAME 3 RENAMENX 3`, 1, 2},
	{`KEYS 2 SCAN -2`, 0, 0},
}

// passing returns the commands of the names, by name.
func passing(names []string) (map[string]*command, error) {
	all := map[string]*command{}
	for _, p := range passable {
		fields := strings.Fields(p.names)
		for pair := range slices.Chunk(fields, 2) {
			arity, _ := strconv.Atoi(pair[1])
			all[pair[0]] = &command{name: pair[0], arity: arity, parse: (*request).parsePassed, op: opPass, reply: replyRaw, first: p.first, last: p.last}
		}
	}
	named := map[string]*command{}
	for _, name := range names {
		name = strings.ToUpper(name)
		if all[name] == nil {
			return nil, fmt.Errorf("the command %q cannot be passed on", name)
		}
		named[name] = all[name]
	}
	return named, nil
}

// lookup is lookup with what the site passes on.
func (s *Server) lookup(args [][]byte) (cmd *command, fail string) {
	cmd, fail = lookup(args)
	if p := s.passed[cmd.name]; p != nil {
		cmd, fail = p, p.wrongArity(args)
	}
	return cmd, fail
}

func (r *request) parsePassed(args [][]byte) {
	first, last, _ := r.cmd.keys()
	if last < 0 {
		last = len(args) - 1
	}
	for i, a := range args {
		if err := r.site.passes(a); err != nil && i >= first && i <= last && first > 0 {
			r.fail = failure(err)
			return
		}
		r.passed = append(r.passed, string(a))
	}
}

// passes is key for a key of any kind: all bytes may be in it.
func (s *Site) passes(raw []byte) error {
	id, ok := bytes.CutPrefix(raw, []byte(s.Prefix))
	switch {
	case bytes.HasPrefix(raw, []byte(reserved)), bytes.HasPrefix(id, []byte(reserved)):
		return errReserved
	case len(raw) > s.Limits.Key:
		return store.ErrInvalid
	case !ok:
		return errForeign
	case bytes.HasSuffix(raw, []byte(s.LockSuffix)):
		return errLockKey
	}
	return nil
}

// pass runs a command that is passed on.
func (s *Server) pass(c *conn, r *request, res *result) {
	var v resp.Value
	res.err = s.wait(c, func(ctx context.Context) (err error) {
		v, err = s.site.Passage.Command(ctx, r.passed...)
		return err
	}, unavailable)
	if res.err != nil {
		return
	}
	switch r.cmd.name {
	case "KEYS":
		s.own(&v)
	case "SCAN":
		if len(v.Elems) == 2 {
			s.own(&v.Elems[1])
		}
	}
	if res.data = r.cmd.appendPassed(nil, c.proto, &v); len(res.data) > s.site.Limits.Output {
		*res = result{err: errTooLarge}
	}
}

// own leaves the site's own keys in a list.
func (s *Server) own(v *resp.Value) {
	v.Elems = slices.DeleteFunc(v.Elems, func(e resp.Value) bool { return s.site.passes(e.Str) != nil })
}

// appendPassed writes an answer as Redis does.
func (c *command) appendPassed(b []byte, proto int, v *resp.Value) []byte {
	switch v.Kind {
	case resp.Error:
		return resp.AppendError(b, string(v.Str))
	case resp.Int:
		return resp.AppendInt(b, v.Int)
	case resp.Double:
		return appendScore(b, proto, v.Str, true)
	case resp.Null:
		return resp.AppendNull(b, proto)
	case resp.Map:
		b = resp.AppendMapLen(b, len(v.Elems)/2, proto)
	case resp.Array:
		switch {
		case c.name == "SMEMBERS" || c.name == "SPOP":
			b = resp.AppendSetLen(b, len(v.Elems), proto)
		case proto < 3 && c.name[0] == 'Z' && len(v.Elems) > 0 && v.Elems[0].Kind == resp.Array: // members with scores, in pairs
			b = resp.AppendArrayLen(b, 2*len(v.Elems))
			for _, pair := range v.Elems {
				for _, e := range pair.Elems {
					b = c.appendPassed(b, proto, &e)
				}
			}
			return b
		default:
			b = resp.AppendArrayLen(b, len(v.Elems))
		}
	default:
		switch c.name {
		case "HMSET", "RENAME", "TYPE":
			return resp.AppendSimple(b, string(v.Str))
		}
		return resp.AppendBulk(b, v.Str)
	}
	for i := range v.Elems {
		b = c.appendPassed(b, proto, &v.Elems[i])
	}
	return b
}
