package gateway

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// Clients that are configured for Sentinel or for a Cluster do at a gateway what they do at the real ones. They stay at the
// address that they were given, where the gateway listens at others, too, and find it if it is the second of two.
func TestClientsOfSentinelAndCluster(t *testing.T) {
	r := testserver.Redis(t)
	for _, tc := range []struct{ name, listen, reach, before string }{
		{"at its address", "127.0.0.1:0", "127.0.0.1", ""},
		{"at one of all addresses", "0.0.0.0:0", "127.0.0.2", ""},
		{"behind one that is down", "127.0.0.1:0", "127.0.0.1", "127.0.0.1:1,"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", tc.listen)
			if err != nil {
				t.Fatal(err)
			}
			site := redisSite(t, r, "", 0)
			site.Insecure, site.LockWait = true, 10*time.Millisecond
			var refused refusedOnes
			startOn(t, site, Options{Hooks: Hooks{Done: refused.note}}, l)
			_, port, _ := net.SplitHostPort(l.Addr().String())
			addr := net.JoinHostPort(tc.reach, port)
			for _, client := range testapp.Clients {
				t.Run(client.Name, func(t *testing.T) {
					r.Do("FLUSHALL")
					handles(t, client, tc.before+addr, addr)
					if list := refused.take(); len(list) > 0 {
						t.Errorf("refused: %q", list)
					}
				})
			}
		})
	}
}

// What is expected of a gateway is what Sentinels give.
func TestClientsAtRealSentinels(t *testing.T) {
	real := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, Sentinels: 2, Quorum: 1})
	for _, client := range testapp.Clients {
		if client.Cluster {
			continue
		}
		t.Run(client.Name, func(t *testing.T) {
			real.Nodes[0].Do("FLUSHALL")
			handles(t, client, real.Sentinels[0].Addr, real.Nodes[0].Addr)
		})
	}
}

// handles has client do what a session handler does, and checks that it does it at the address where.
func handles(t *testing.T, client testapp.Client, addr, where string) {
	t.Helper()
	if got, want := client.Run(t, addr, "mymaster"), client.Want(where); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// refusedOnes are the commands that clients were refused, but for subcommands that Redis 7.0 does not know either.
type refusedOnes struct {
	mu  sync.Mutex // guards all
	all []string
}

func (r *refusedOnes) note(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Outcome == store.OutcomeInvalid && !table[e.Command].container {
		r.all = append(r.all, e.Command)
	}
}

func (r *refusedOnes) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.all = nil }()
	return r.all
}

// What a gateway says of itself has the form of what a Sentinel and a node of a Cluster say: the same fields in the same
// order, whatever their values.
func TestTopologyHasTheFormOfRedis(t *testing.T) {
	sentinels := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, Sentinels: 2, Quorum: 1})
	cluster := testserver.Cluster(t, testserver.ClusterOptions{Primaries: 1, Replicas: -1,
		Node: []testserver.RedisOption{testserver.WithConf("cluster-announce-ip 127.0.0.1")}}) // alone it does not know its own
	gw := start(t, Site{})
	for addr, lines := range map[string][]string{
		sentinels.Sentinels[0].Addr: {"SENTINEL get-master-addr-by-name mymaster", "SENTINEL MASTERS", "SENTINEL master mymaster",
			"SENTINEL sentinels mymaster", "SENTINEL replicas mymaster", "SENTINEL slaves mymaster", "SENTINEL myid", "SENTINEL ckquorum mymaster",
			"SENTINEL", "SENTINEL foo", "SENTINEL masters x", "SENTINEL master", "SENTINEL ckquorum", "sentinel GET-master-addr-by-name a b"},
		cluster.Nodes[0].Addr: {"CLUSTER SLOTS", "CLUSTER SHARDS", "CLUSTER NODES", "CLUSTER INFO", "CLUSTER MYID", "READONLY", "READWRITE", "ASKING",
			"READONLY x", "CLUSTER slots x"},
	} {
		for _, proto := range []string{"2", "3"} {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			theirs, ours := newClient(t, nc), gw.dial()
			theirs.do("HELLO", proto)
			ours.do("HELLO", proto)
			for _, line := range lines {
				args := strings.Split(line, " ")
				want, got := form(theirs.do(args...)), form(ours.do(args...))
				if got != want {
					t.Errorf("%s, RESP%s:\n got %q\nwant %q", line, proto, got, want)
				}
			}
		}
	}
	c := gw.dial()
	if got := c.do("SENTINEL", "MASTER", "any name"); !strings.Contains(got, "name\r\n"+bulk("any name")) {
		t.Errorf("got %q", got)
	}
	c = start(t, Site{SentinelMaster: "sessions", Users: []User{{Passwords: []string{"p"}}}}).dial() // who is not logged in may ask
	if got := c.do("SENTINEL", "MASTERS"); !strings.Contains(got, "name\r\n"+bulk("sessions")) {
		t.Errorf("got %q", got)
	}
}

// form replaces ids, numbers and addresses. The name of a Sentinel is its id, and ours is an address.
func form(reply string) string {
	reply = regexp.MustCompile(`[0-9a-f]{40}`).ReplaceAllString(reply, "ID")
	reply = regexp.MustCompile(`\d+`).ReplaceAllString(reply, "N")
	return strings.ReplaceAll(reply, "N.N.N.N:N\r\n", "ID\r\n")
}

// COMMAND says of each command that is served what Redis says, as far as clients look for keys by it.
func TestCommandsAreDescribedAsByRedis(t *testing.T) {
	real := testserver.Redis(t)
	nc, err := net.Dial("tcp", real.Addr)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := newClient(t, nc), start(t, Site{}).dial()
	ask := func(c *client, args ...string) resp.Value {
		v, _, _, err := resp.ParseReply([]byte(c.do(args...)), resp.ReplyLimits{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	all := ask(ours, "COMMAND").Elems
	if len(all) < 50 || ask(ours, "COMMAND", "COUNT").Int != int64(len(all)) || len(ask(ours, "COMMAND", "LIST").Elems) != len(all) {
		t.Errorf("%d commands", len(all))
	}
	ours.want("*1\r\n"+null, "COMMAND", "INFO", "append") // not served
	movable := func(flags resp.Value) bool {
		return slices.ContainsFunc(flags.Elems, func(f resp.Value) bool { return string(f.Str) == "movablekeys" })
	}
	for _, got := range all {
		name := string(got.Elems[0].Str)
		if name == "sentinel" {
			continue // is one of Sentinel only
		}
		want := ask(theirs, "COMMAND", "INFO", name).Elems[0]
		if len(got.Elems) != len(want.Elems) || movable(got.Elems[2]) != movable(want.Elems[2]) {
			t.Errorf("%s: %d elements, movable keys: %v", name, len(got.Elems), movable(got.Elems[2]))
		}
		for i, what := range map[int]string{1: "arity", 3: "first key", 4: "last key", 5: "step"} {
			if got, want := got.Elems[i].Int, want.Elems[i].Int; got != want {
				t.Errorf("%s: %s %d, want %d", name, what, got, want)
			}
		}
	}
}

// Who is subscribed may say nothing for as long as he likes, and is not waited for.
func TestSubscriptions(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Idle: 200 * time.Millisecond}})
	sub, quiet := gw.dial(), gw.dial()
	sub.want("*3\r\n"+bulk("subscribe")+bulk("+switch-master")+":1\r\n", "SUBSCRIBE", "+switch-master")
	quiet.want("+PONG\r\n", "PING")
	quiet.closed()
	sub.want("*2\r\n"+bulk("pong")+bulk(""), "PING")

	sub.want("-"+textChannel+"\r\n", "SUBSCRIBE", "+sdown", "__keyevent@0__:expired")
	sub.want("*3\r\n"+bulk("psubscribe")+bulk("*")+":2\r\n", "PSUBSCRIBE", "*")
	for n := 1; n < maxChannels; n++ {
		sub.do("SUBSCRIBE", "+"+strings.Repeat("a", n))
	}
	sub.want("-"+textChannels+"\r\n", "SUBSCRIBE", "-sdown")
	sub.want("*3\r\n"+bulk("unsubscribe")+bulk("-sdown")+fmt.Sprintf(":%d\r\n", maxChannels+1), "UNSUBSCRIBE", "-sdown")

	c := gw.dial()
	c.want("+OK\r\n", "MULTI")
	c.want("-ERR sessile: 'SUBSCRIBE' is not served inside MULTI\r\n", "SUBSCRIBE", "+sdown")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := gw.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	sub.closed()
}
