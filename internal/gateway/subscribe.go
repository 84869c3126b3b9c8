package gateway

import (
	"regexp"
	"slices"
	"strings"

	"github.com/sessile/sessile/internal/resp"
)

// Clients of Sentinel subscribe to what it announces (+switch-master), and take a refusal for a Sentinel that is down.
// So they may, and are never told anything: failovers are the gateway's business, and its own address stays. Any other
// channel is refused, or somebody would wait for messages that never come.

// announced matches the channels of Sentinel's events, and the patterns by which clients ask for them: Lettuce for *,
// node-redis for [-+]sdown and, by mistake, switch-master.
var announced = regexp.MustCompile(`^(\*|switch-master|([-+]|\[-\+\]|\[\+-\])[a-z*-]{0,64})$`)

// maxChannels bounds what a connection may subscribe to; there are not as many events.
const maxChannels = 64

const (
	textChannel  = "ERR sessile: there is no publishing here, and nothing to subscribe to but the events of a Sentinel"
	textChannels = "ERR sessile: too many subscriptions"

	textListening = "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
)

// subscribed reports whether the connection waits for announcements.
func (c *conn) subscribed() bool { return len(c.channels)+len(c.patterns) > 0 }

// listening reports whether it can do nothing else: RESP2 cannot tell a message from a reply.
func (c *conn) listening() bool { return c.proto < 3 && c.subscribed() }

func (c *conn) subscribe(args [][]byte)    { c.addTo(&c.channels, args) }
func (c *conn) psubscribe(args [][]byte)   { c.addTo(&c.patterns, args) }
func (c *conn) unsubscribe(args [][]byte)  { c.dropFrom(&c.channels, args) }
func (c *conn) punsubscribe(args [][]byte) { c.dropFrom(&c.patterns, args) }

func (c *conn) addTo(list *[]string, args [][]byte) {
	for _, a := range args[1:] {
		if !announced.Match(a) {
			c.fail(textChannel)
			return
		}
	}
	if len(*list)+len(args)-1 > maxChannels {
		c.fail(textChannels)
		return
	}
	for _, a := range args[1:] {
		if name := string(a); !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
		c.acknowledge(args[0], a)
	}
}

// dropFrom without names drops all, and answers once in any case.
func (c *conn) dropFrom(list *[]string, args [][]byte) {
	names := args[1:]
	if len(names) == 0 {
		for _, name := range *list {
			names = append(names, []byte(name))
		}
	}
	if len(names) == 0 {
		names = [][]byte{nil}
	}
	for _, name := range names {
		*list = slices.DeleteFunc(*list, func(s string) bool { return s == string(name) })
		c.acknowledge(args[0], name)
	}
}

func (c *conn) acknowledge(command, name []byte) {
	c.out = resp.AppendPushLen(c.out, 3, c.proto)
	c.bulk(strings.ToLower(string(command)))
	if name == nil {
		c.out = resp.AppendNull(c.out, c.proto)
	} else {
		c.out = resp.AppendBulk(c.out, name)
	}
	c.int(int64(len(c.channels) + len(c.patterns)))
}
