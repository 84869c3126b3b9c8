package redis

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// A layout is what one node of a Redis Cluster says of all.
type layout struct {
	self    string                  // its own id
	members map[string]*clusterNode // by their ids
	owners  [slotCount]*clusterNode // nil: nobody's

	// The slots of the node itself that are on their way, and the id of the node at the other end. Nobody else knows of them,
	// not even the node's own replicas. askLayout leaves out what is coming as long as there are no keys.
	leaving, coming map[int]string
	counted         bool // the slots of which it was known that they are coming were asked after
}

// A clusterNode is a node as one of them knows it.
type clusterNode struct {
	id, addr string // addr is "" where that is not known
	primary  bool
	of       string // of a replica: the id of its primary
	absent   bool   // it is not one to be spoken to: an address without a node, or a node that is just being met
	epoch    uint64 // its config epoch
	doubts   int    // 1 where it does not answer whose layout this is, or is known to have failed
	failures int    // 1 where most primaries say so
}

// askLayout asks for two things: CLUSTER NODES has the epochs and who has failed, CLUSTER SHARDS the addresses by which the
// nodes want to be called (cluster-preferred-endpoint-type). addr is where w leads.
//
// coming are slots of others of which it is known that there were keys: one that has taken over does not know of them by itself.
func askLayout(ctx context.Context, w *wire, addr string, tls bool, coming map[int]string) (*layout, error) {
	nodes, err := w.exchange(ctx, "CLUSTER", "NODES")
	if err != nil {
		return nil, layoutError(err)
	}
	shards, err := w.exchange(ctx, "CLUSTER", "SHARDS")
	if err != nil {
		return nil, layoutError(err)
	}
	text, err := nodes.ToString()
	if err != nil {
		return nil, err
	}
	v, err := parseLayout(strings.TrimPrefix(text, "txt:")) // the format, before a verbatim string of RESP3
	if err != nil {
		return nil, err
	}
	v.locate(endpoints(&shards), addr, tls)
	for slot, from := range coming {
		if m := v.owners[slot]; v.coming[slot] == "" && (m == nil || m.id != v.self) {
			v.coming[slot] = from
		}
	}
	for slot := range v.coming {
		keys, err := w.exchange(ctx, "CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(slot))
		if n, bad := keys.AsInt64(); err == nil && bad == nil && n == 0 {
			delete(v.coming, slot)
		}
	}
	return v, nil
}

func layoutError(err error) error {
	if re, ok := rueidis.IsRedisErr(err); ok {
		return newReply(re)
	}
	return err
}

var errLayout = errors.New("what answers to CLUSTER NODES cannot be read")

// parseLayout reads an answer to CLUSTER NODES, without the addresses: a line for each node, of
//
//	id ip:port@bus,hostname flags primary ping pong epoch link slots ...
func parseLayout(text string) (*layout, error) {
	v := &layout{members: map[string]*clusterNode{}, leaving: map[int]string{}, coming: map[int]string{}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, errLayout
		}
		id, flags := f[0], strings.Split(f[2], ",")
		is := func(flag string) int {
			if slices.Contains(flags, flag) {
				return 1
			}
			return 0
		}
		epoch, err := strconv.ParseUint(f[6], 10, 64)
		if err != nil {
			return nil, errLayout
		}
		m := &clusterNode{id: id, of: strings.Trim(f[3], "-"), primary: is("master") > 0, absent: is("noaddr")+is("handshake") > 0, epoch: epoch,
			failures: is("fail"), doubts: max(is("fail"), is("fail?"))}
		v.members[id] = m
		if is("myself") > 0 {
			v.self = id
		}
		for _, slots := range f[8:] {
			if moving, ok := strings.CutPrefix(slots, "["); ok {
				if !v.readMove(strings.TrimSuffix(moving, "]")) {
					return nil, errLayout
				}
				continue
			}
			a, b, ok := strings.Cut(slots, "-")
			if !ok {
				b = a
			}
			first, err1 := strconv.Atoi(a)
			last, err2 := strconv.Atoi(b)
			if cmp.Or(err1, err2) != nil || first < 0 || last >= slotCount {
				return nil, errLayout
			}
			for slot := first; slot <= last; slot++ {
				v.owners[slot] = m
			}
		}
	}
	if v.self == "" {
		return nil, errLayout
	}
	return v, nil
}

// readMove reads slot->-id or slot-<-id.
func (v *layout) readMove(text string) bool {
	moves := v.leaving
	number, id, ok := strings.Cut(text, "->-")
	if !ok {
		moves = v.coming
		number, id, ok = strings.Cut(text, "-<-")
	}
	slot, err := strconv.Atoi(number)
	if !ok || err != nil || slot < 0 || slot >= slotCount {
		return false
	}
	moves[slot] = id
	return true
}

// An endpoint is how a node wants to be called. The host is "" where that is how it, or another one, was called just now.
type endpoint struct{ host, port, tlsPort string }

// endpoints reads an answer to CLUSTER SHARDS. What it does not know it leaves out.
func endpoints(shards *rueidis.RedisMessage) map[string]endpoint {
	found := map[string]endpoint{}
	list, _ := shards.ToArray()
	for i := range list {
		shard, _ := list[i].AsMap()
		n := shard["nodes"]
		nodes, _ := n.ToArray()
		for j := range nodes {
			node, _ := nodes[j].AsMap()
			field := func(name string) string {
				m := node[name]
				if n, err := m.AsInt64(); err == nil {
					return strconv.FormatInt(n, 10)
				}
				text, _ := m.ToString() // "" for null
				return text
			}
			host := field("endpoint")
			if host == "?" {
				host = ""
			}
			found[field("id")] = endpoint{host, field("port"), field("tls-port")}
		}
	}
	return found
}

// locate fills in the members' addresses. asked is where the node was found whose layout this is.
func (v *layout) locate(ends map[string]endpoint, asked string, tls bool) {
	here, _, _ := net.SplitHostPort(asked)
	for id, m := range v.members {
		e, ok := ends[id]
		port := e.port
		if tls && e.tlsPort != "" {
			port = e.tlsPort
		}
		if ok && port != "" && port != "0" {
			m.addr = net.JoinHostPort(cmp.Or(e.host, here), port)
		}
	}
}
