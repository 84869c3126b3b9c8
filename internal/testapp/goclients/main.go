// Command goclients has go-redis or rueidis, told to find the server through Sentinels or as a Cluster, do what a session
// handler does: see clients.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"regexp"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

const release = `if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end`

var ctx = context.Background()

func main() {
	library, kind, nodes, service := os.Args[1], os.Args[2], strings.Split(os.Args[3], ","), os.Args[4]
	switch {
	case library == "rueidis":
		opt := rueidis.ClientOption{InitAddress: nodes, DisableCache: true}
		if kind == "sentinel" {
			opt.Sentinel = rueidis.SentinelOption{MasterSet: service}
		}
		run(rueidisClient(opt))
	case kind == "cluster":
		run(goredisClient(goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: nodes})))
	default:
		run(goredisClient(goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: service, SentinelAddrs: nodes})))
	}
}

// client has what a session handler does, with nil for null.
type client struct {
	info     func() (any, error) // of a connection
	do       func(args ...any) (any, error)
	evalsha  func(token string) (any, error)
	pipeline func(cmds [][]any) ([]any, error)
}

func run(c client) {
	do := func(args ...any) any { return must(c.do(args...)) }
	say("where", regexp.MustCompile(`laddr=(\S+)`).FindStringSubmatch(must(c.info()).(string))[1])
	say("get", do("GET", "k"))
	say("setex", do("SETEX", "k", "100", "v") == "OK")
	say("get", do("GET", "k"))
	say("expire", do("EXPIRE", "k", "200"))
	say("ttl", do("TTL", "k").(int64) > 100)
	say("lock", do("SET", "k_LOCK", "me", "NX", "PX", "30000") == "OK")
	say("lock", do("SET", "k_LOCK", "you", "NX", "PX", "100") == "OK")
	say("release", must(c.evalsha("me")))
	say("exists", do("EXISTS", "k"))
	say("del", do("DEL", "k"))
	var ok []bool
	for _, reply := range must(c.pipeline([][]any{{"SETEX", "a", "100", "a1"}, {"SETEX", "b", "100", "b1"}, {"SETEX", "c", "100", "c1"}})) {
		ok = append(ok, reply == "OK")
	}
	say("pipeline", ok)
	say("mget", do("MGET", "a", "b", "nokey", "c"))
	say("del", do("DEL", "a", "b"))
	say("unlink", do("UNLINK", "b", "c"))
}

func goredisClient(r goredis.UniversalClient) client {
	notNull := func(reply any, err error) (any, error) {
		if errors.Is(err, goredis.Nil) {
			return nil, nil
		}
		return reply, err
	}
	return client{
		info: func() (any, error) { return r.Do(ctx, "CLIENT", "INFO").Result() },
		do:   func(args ...any) (any, error) { return notNull(r.Do(ctx, args...).Result()) },
		evalsha: func(token string) (any, error) {
			return goredis.NewScript(release).Run(ctx, r, []string{"k_LOCK"}, token).Result()
		},
		pipeline: func(cmds [][]any) (replies []any, err error) {
			p := r.Pipeline()
			for _, args := range cmds {
				p.Do(ctx, args...)
			}
			done, err := p.Exec(ctx)
			for _, cmd := range done {
				replies = append(replies, cmd.(*goredis.Cmd).Val())
			}
			return replies, err
		},
	}
}

func rueidisClient(opt rueidis.ClientOption) client {
	r := must(rueidis.NewClient(opt))
	build := func(args []any) rueidis.Completed {
		words := make([]string, len(args))
		for i, a := range args {
			words[i] = a.(string)
		}
		return r.B().Arbitrary(words[0]).Keys(words[1]).Args(words[2:]...).Build()
	}
	notNull := func(reply any, err error) (any, error) {
		if rueidis.IsRedisNil(err) {
			return nil, nil
		}
		return reply, err
	}
	return client{
		info: func() (any, error) {
			one, release := r.Dedicate() // else a command without a key may go to a node that is down
			defer release()
			if err := one.Do(ctx, one.B().Get().Key("k").Build()).Error(); err != nil && !rueidis.IsRedisNil(err) {
				return nil, err
			}
			return one.Do(ctx, one.B().ClientInfo().Build()).ToAny()
		},
		do: func(args ...any) (any, error) { return notNull(r.Do(ctx, build(args)).ToAny()) },
		evalsha: func(token string) (any, error) {
			return rueidis.NewLuaScript(release).Exec(ctx, r, []string{"k_LOCK"}, []string{token}).ToAny()
		},
		pipeline: func(cmds [][]any) (replies []any, err error) {
			var all []rueidis.Completed
			for _, args := range cmds {
				all = append(all, build(args))
			}
			for _, reply := range r.DoMulti(ctx, all...) {
				v, err := reply.ToAny()
				if err != nil {
					return nil, err
				}
				replies = append(replies, v)
			}
			return replies, nil
		},
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func say(step string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", step, b)
}
