package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sessile/sessile/store/redis"
)

// Rights are what the user may not do that it has to, and may do that it need not.
type Rights struct {
	Missing []string // as ACL SETUSER would give them: +get, ~sessile:*
	Excess  []string // in words
}

// A sample is a command as Redis is asked whether it may be run.
type sample struct {
	rule string // what ACL SETUSER calls it
	args []string
}

// needs are the commands of store/redis, scripts included, with keys as they have them. A command that comes to nothing
// when it is run is taken wherever there is one.
func needs(o redis.Options, sets []string) []sample {
	key, ours := o.Prefix+"sessile-doctor", reserved+"doctor"
	list := []sample{
		{"+ping", []string{"PING"}}, // first: it shows whether commands are really only noted
		{"+client|setname", []string{"CLIENT", "SETNAME", "sessile"}},
		{"+info", []string{"INFO", "server"}},
		{"+dbsize", []string{"DBSIZE"}},
		{"+time", []string{"TIME"}},
		{"+scan", []string{"SCAN", "0", "COUNT", "1"}},
		{"+get", []string{"GET", key}},
		{"+mget", []string{"MGET", key}},
		{"+set", []string{"SET", key, "", "NX", "XX"}},
		{"+del", []string{"DEL", ours}},
		{"+exists", []string{"EXISTS", ours}},
		{"+type", []string{"TYPE", key}},
		{"+pexpire", []string{"PEXPIRE", ours, "x"}},
		{"+pttl", []string{"PTTL", key}},
		{"+eval", []string{"EVAL", "return 0", "1", key}},
		{"+evalsha", []string{"EVALSHA", strings.Repeat("0", 40), "1", key}},
		{"+hget", []string{"HGET", ours, "x"}},
		{"+hset", []string{"HSET", ours, "x", "x", "x"}},
		{"+hdel", []string{"HDEL", ours, "x"}},
		{"+hkeys", []string{"HKEYS", ours}},
		{"+hgetall", []string{"HGETALL", ours}},
		{"+hincrby", []string{"HINCRBY", ours, "x", "x"}},
		{"+zadd", []string{"ZADD", ours, "x", "x"}},
		{"+zrem", []string{"ZREM", ours, "x"}},
		{"+zcard", []string{"ZCARD", ours}},
		{"+zrange", []string{"ZRANGE", ours, "0", "0"}},
	}
	if o.Database != 0 {
		list = append(list, sample{"+select", []string{"SELECT", fmt.Sprint(o.Database)}})
	}
	if o.Track {
		list = append(list, sample{"+client|tracking", []string{"CLIENT", "TRACKING", "OFF"}})
	}
	if len(o.Sentinels) > 0 || len(o.Cluster) > 0 {
		list = append(list, sample{"+role", []string{"ROLE"}}, sample{"+wait", []string{"WAIT", "0", "1"}})
	}
	if len(o.Cluster) > 0 {
		list = append(list,
			sample{"+cluster|slots", []string{"CLUSTER", "SLOTS"}}, sample{"+cluster|shards", []string{"CLUSTER", "SHARDS"}},
			sample{"+cluster|nodes", []string{"CLUSTER", "NODES"}}, sample{"+cluster|info", []string{"CLUSTER", "INFO"}},
			sample{"+cluster|countkeysinslot", []string{"CLUSTER", "COUNTKEYSINSLOT", "0"}}, sample{"+asking", []string{"ASKING"}})
	}
	for _, set := range sets {
		list = append(list,
			sample{"+zscore", []string{"ZSCORE", set, "x"}}, sample{"+zcount", []string{"ZCOUNT", set, "0", "0"}},
			sample{"+zrangebyscore", []string{"ZRANGEBYSCORE", set, "0", "0"}},
			sample{"+zremrangebyscore", []string{"ZREMRANGEBYSCORE", set, "x", "x"}})
	}
	return list
}

// reserved begins the names of what Sessile itself keeps in Redis.
const reserved = "sessile:"

// excess is what a thief of the password could do with the rest, in words. None of these does anything when it is run.
func excess(o redis.Options) []sample {
	list := []sample{
		{"empty the database (FLUSHALL)", []string{"FLUSHALL", "x"}},
		{"change the server's settings (CONFIG SET)", []string{"CONFIG", "SET", "sessile-doctor", "x"}},
		{"make users (ACL SETUSER)", []string{"ACL", "DELUSER", "sessile-doctor"}},
		{"tell Sentinels that another server is the primary (PUBLISH " + hello + ")", []string{"PUBLISH", hello, "sessile-doctor"}},
	}
	if o.Prefix != "" {
		list = append(list, sample{"read other keys than " + o.Prefix + "*", []string{"GET", "sessile-doctor"}})
	}
	return list
}

// probe asks what the user may do. Redis checks a command against the user's rights when it is put into a transaction,
// so the transaction is begun, and thrown away: that needs no more rights than MULTI and DISCARD. Each refusal is a line
// in ACL LOG.
func probe(ctx context.Context, c *conn, o redis.Options, sets []string) (r Rights, err error) {
	if _, err := c.do(ctx, "MULTI"); err != nil {
		return r, err
	}
	may := func(s sample) (yes bool, key bool, err error) {
		v, err := c.do(ctx, s.args...)
		var no refusal
		switch {
		case err == nil && text(v) == "QUEUED":
			return true, false, nil
		case err == nil:
			return false, false, errors.New("something on the way does not know MULTI")
		case !errors.As(err, &no):
			return false, false, err
		}
		unknown := strings.HasPrefix(string(no), "ERR unknown")
		return no.code() != "NOPERM" && !unknown, strings.Contains(string(no), " keys"), nil // MOVED, OOM ... come after the rights
	}
	for _, s := range needs(o, sets) {
		yes, key, err := may(s)
		if err != nil {
			return r, err
		}
		rule := s.rule
		if key {
			rule = keyRule(s.args, o, sets)
		}
		if !yes && !slices.Contains(r.Missing, rule) {
			r.Missing = append(r.Missing, rule)
		}
	}
	for _, s := range excess(o) {
		yes, _, err := may(s)
		if err != nil {
			return r, err
		}
		if yes {
			r.Excess = append(r.Excess, s.rule)
		}
	}
	_, err = c.do(ctx, "DISCARD")
	return r, err
}

// keyRules are the keys that the user has to get at.
func keyRules(o redis.Options, sets []string) []string {
	if o.Prefix == "" {
		return []string{"~*"} // behind which Redis takes no others
	}
	rules := []string{"~" + globbed(o.Prefix) + "*", "~" + reserved + "*"}
	for _, s := range sets {
		rules = append(rules, "~"+globbed(s))
	}
	return rules
}

// keyRule is the one that a refused command needed.
func keyRule(args []string, o redis.Options, sets []string) string {
	rules := keyRules(o, sets)
	if len(rules) == 1 {
		return rules[0]
	}
	for i, s := range sets {
		if slices.Contains(args, s) {
			return rules[2+i]
		}
	}
	if slices.Contains(args, reserved+"doctor") {
		return rules[1]
	}
	return rules[0]
}

// globbed quotes what a pattern of Redis would take for more than itself.
func globbed(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// Grant returns the commands that make a user with the rights that a store with these options needs, and those that
// this package needs to see them. It is a new one: whoever takes rights from a user in several steps, or in one that has a
// mistake in it, takes the sessions away from a gateway that is at work.
func Grant(o redis.Options, sets []string) (commands []string) {
	name := "sessile"
	if o.Username == name {
		name = "sessile2"
	}
	commands = []string{fmt.Sprintf("ACL SETUSER %s reset on '>PASSWORD'", name)}
	line := func(rules []string) {
		commands = append(commands, "ACL SETUSER "+name+" "+strings.Join(rules, " "))
	}
	line(quoted(keyRules(o, sets)))
	rules := []string{"+multi", "+discard"}
	for _, s := range needs(o, sets) {
		if !slices.Contains(rules, s.rule) {
			rules = append(rules, s.rule)
		}
	}
	const width = 55 // a command of them fits into a line
	for first, size, i := 0, 0, 0; i <= len(rules); i++ {
		if i == len(rules) || size+len(rules[i]) > width {
			line(rules[first:i])
			first, size = i, 0
		}
		if i < len(rules) {
			size += len(rules[i]) + 1
		}
	}
	return commands
}

// quoted writes rules for redis-cli, in single quotes.
func quoted(rules []string) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = "'" + strings.ReplaceAll(r, "'", `\'`) + "'"
	}
	return out
}
