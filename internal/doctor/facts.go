package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/redis"
)

// Facts are what the servers of a store say.
type Facts struct {
	Options redis.Options // complete
	Use     Use

	Servers   []Server
	Sentinels []Sentinel
}

// Use is what the gateway makes of a store, besides its options.
type Use struct {
	Sets []string      // keys of sorted sets that applications use
	Hold time.Duration // how long a request waits for a store that is away
}

// A Server is one that holds data.
type Server struct {
	Addr   string
	Err    string // why it cannot be asked: then nothing else is known
	Info   Fields
	Config Fields
	Unseen map[string]string // INFO, CONFIG ...: why it is not known
	Open   Entrance
	Rights Rights
	Clock  *Clock // nil: not known

	Watchers int // Sentinels that listen to it; -1: not known

	// In a Cluster.
	State Fields // CLUSTER INFO
	Nodes []Node // CLUSTER NODES
}

// A Sentinel watches the servers.
type Sentinel struct {
	Addr  string
	Err   string
	Named bool   // by the URL
	ID    string // which it keeps over restarts
	Info  Fields
	Open  Entrance

	Master    Fields // what it knows of the primary; nil: it does not watch one of this name
	Replicas  []Fields
	Sentinels []Fields // without itself
	Quorum    string   // why there would be no failover; "": there would
}

// Entrance says whether somebody gets in who has no password.
type Entrance string

const (
	Shut    Entrance = "shut"
	Ajar    Entrance = "ajar" // we do, from this machine; who is elsewhere does not
	Open    Entrance = "open"
	Unknown Entrance = "unknown"
)

// Clock is how far a server's clock is ahead of ours, give or take Within.
type Clock struct{ Ahead, Within time.Duration }

// A Node is one line of CLUSTER NODES.
type Node struct {
	ID, Addr string // Addr is "" where it is not known
	Flags    []string
	Primary  string // a replica: the id of its primary
	Linked   bool
	Slots    int
	Moving   []string // slots that are on their way: [93-<-id]
}

func (n Node) is(flag string) bool { return slices.Contains(n.Flags, flag) }

// Look asks the servers of the store that opt names. Its error matches store.ErrUnavailable where none could be asked
// that holds data.
func Look(ctx context.Context, opt redis.Options, use Use) (Facts, error) {
	opt, err := opt.Completed()
	if err != nil {
		return Facts{}, err
	}
	password, err := opt.Secret()
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Options: opt, Use: use}
	data := door{network: opt.Network, tls: opt.TLS, username: opt.Username, password: password, dial: opt.DialTimeout, answer: opt.Timeout}
	switch {
	case len(opt.Sentinels) > 0:
		err = f.askSentinels(ctx, data)
	case len(opt.Cluster) > 0:
		err = f.askCluster(ctx, data)
	default:
		f.askServer(ctx, data, opt.Addr)
	}
	if err == nil {
		err = f.blind()
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return f, err
}

// blind returns an error where no server with data could be asked.
func (f *Facts) blind() error {
	why := "they name no server"
	for _, s := range f.Servers {
		if s.Err == "" {
			return nil
		}
		why = s.Addr + ": " + s.Err
	}
	return fmt.Errorf("%w: %s", store.ErrUnavailable, why)
}

// known reports whether the server was asked before.
func (f *Facts) known(addr string) bool {
	return slices.ContainsFunc(f.Servers, func(s Server) bool { return s.Addr == addr })
}

// config is what is asked for with CONFIG GET. None of it is a secret.
var config = []string{
	"aclfile", "appendfsync", "bind", "cluster-node-timeout", "cluster-replica-no-failover", "cluster-replica-validity-factor", "cluster-require-full-coverage",
	"min-replicas-max-lag", "min-replicas-to-write", "proto-max-bulk-len", "protected-mode", "replica-priority",
	"replica-read-only", "save", "tcp-keepalive", "timeout",
}

// askServer asks the server at addr, unless it was asked before.
func (f *Facts) askServer(ctx context.Context, d door, addr string) {
	if f.known(addr) || ctx.Err() != nil {
		return
	}
	d.addr = addr
	s := Server{Addr: addr, Unseen: map[string]string{}, Open: Unknown, Watchers: -1}
	defer func() { f.Servers = append(f.Servers, s) }()
	c, err := d.enter(ctx)
	if err == nil {
		defer c.Close()
		if n := f.Options.Database; n > 0 {
			_, err = c.do(ctx, "SELECT", fmt.Sprint(n))
		}
	}
	if err != nil {
		s.Err = err.Error()
		return
	}
	// A question that is refused leaves a gap; a connection that breaks ends it.
	ask := func(what string, args ...string) (v string, f Fields, ok bool) {
		reply, err := c.do(ctx, args...)
		var no refusal
		switch {
		case errors.As(err, &no):
			s.Unseen[what] = no.Error()
		case err != nil:
			s.Unseen[what] = err.Error()
		default:
			return text(reply), pairs(reply), true
		}
		return "", nil, false
	}
	if v, _, ok := ask("INFO", "INFO"); ok {
		s.Info = lines(v)
	}
	if _, v, ok := ask("CONFIG", append([]string{"CONFIG", "GET"}, config...)...); ok {
		s.Config = v
	}
	if _, v, ok := ask("PUBSUB", "PUBSUB", "NUMSUB", hello); ok {
		s.Watchers = int(v.int(hello))
	}
	if s.Info["cluster_enabled"] == "1" {
		if v, _, ok := ask("CLUSTER", "CLUSTER", "INFO"); ok {
			s.State = lines(v)
		}
		if v, _, ok := ask("CLUSTER", "CLUSTER", "NODES"); ok {
			s.Nodes = readNodes(v)
		}
	}
	if s.Clock, err = readClock(ctx, c); err != nil {
		s.Unseen["TIME"] = err.Error()
	}
	if s.Rights, err = probe(ctx, c, f.Options, f.Use.Sets); err != nil {
		s.Unseen["MULTI"] = err.Error()
	}
	s.Open = entrance(ctx, d, s.Config)
}

// hello is the channel on which Sentinels tell each other who there is, and which server is the primary.
const hello = "__sentinel__:hello"

// readClock compares the server's clock with ours, and keeps the best of a few tries.
func readClock(ctx context.Context, c *conn) (*Clock, error) {
	var best *Clock
	for range 3 {
		sent := time.Now()
		v, err := c.do(ctx, "TIME")
		trip := time.Since(sent)
		if err != nil {
			return nil, err
		}
		if len(v.Elems) != 2 {
			return nil, errors.New("no time")
		}
		var sec, usec int64
		if _, err := fmt.Sscan(text(v.Elems[0])+" "+text(v.Elems[1]), &sec, &usec); err != nil {
			return nil, errors.New("no time")
		}
		if best == nil || trip/2 < best.Within {
			best = &Clock{Ahead: time.Unix(sec, usec*1000).Sub(sent.Add(trip / 2)), Within: trip / 2}
		}
	}
	return best, nil
}

// entrance tries to get in without a password.
func entrance(ctx context.Context, d door, config Fields) Entrance {
	c, err := d.knock(ctx)
	if err != nil {
		return Unknown
	}
	defer c.Close()
	var no refusal
	switch _, err := c.do(ctx, "PING"); {
	case errors.As(err, &no) && (no.code() == "NOAUTH" || no.code() == "DENIED" || no.code() == "NOPERM"):
		return Shut
	case err != nil:
		return Unknown
	case !d.here():
		return Open
	case d.network == "unix" && config == nil:
		return Ajar // whoever may use the socket
	case config == nil:
		return Unknown
	case config["protected-mode"] == "no" && !onlyHere(config["bind"]):
		return Open
	}
	return Ajar
}

// here reports whether the door can only be reached from this machine.
func (d door) here() bool {
	host, _, _ := net.SplitHostPort(d.addr)
	return d.network == "unix" || isLoopback(host)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// onlyHere reports whether all addresses of a bind line are this machine's own.
func onlyHere(bind string) bool {
	addrs := strings.Fields(bind)
	for _, a := range addrs {
		if !isLoopback(strings.TrimPrefix(a, "-")) {
			return false
		}
	}
	return len(addrs) > 0
}

// askSentinels asks the Sentinels that the URL names, those that they name, and all servers that any of them names.
func (f *Facts) askSentinels(ctx context.Context, data door) error {
	o := f.Options.Sentinel
	password, err := o.Secret()
	if err != nil {
		return err
	}
	// Nobody waits for us as for a gateway, which asks the next one after 100 ms.
	d := door{network: "tcp", tls: o.TLS, username: o.Username, password: password, dial: max(o.ConnectTimeout, time.Second), answer: o.ReadTimeout}
	queue := slices.Clone(f.Options.Sentinels)
	for i := 0; i < len(queue) && ctx.Err() == nil; i++ {
		d.addr = queue[i]
		s := askSentinel(ctx, d, f.Options.Master)
		s.Named = i < len(f.Options.Sentinels)
		// One may have two addresses: a name in the URL, and what it announces.
		same := func(o Sentinel) bool { return s.ID != "" && o.ID == s.ID }
		if slices.ContainsFunc(f.Sentinels, same) {
			continue
		}
		f.Sentinels = append(f.Sentinels, s)
		for _, peer := range s.Sentinels {
			addr := address(peer)
			met := slices.ContainsFunc(f.Sentinels, func(o Sentinel) bool { return o.ID != "" && o.ID == peer["runid"] })
			if !met && !slices.Contains(queue, addr) {
				queue = append(queue, addr)
			}
		}
	}
	var silent []string
	for _, s := range f.Sentinels {
		if s.Err != "" {
			silent = append(silent, s.Addr+": "+s.Err)
		} else if s.Master != nil {
			f.askServer(ctx, data, address(s.Master))
		}
	}
	for _, s := range f.Sentinels {
		for _, r := range s.Replicas {
			f.askServer(ctx, data, address(r))
		}
	}
	if len(silent) == len(f.Sentinels) {
		return fmt.Errorf("%w: no Sentinel answers; %s", store.ErrUnavailable, strings.Join(silent, "; "))
	}
	return nil
}

func address(f Fields) string { return net.JoinHostPort(f["ip"], f["port"]) }

func askSentinel(ctx context.Context, d door, master string) Sentinel {
	s := Sentinel{Addr: d.addr}
	c, err := d.enter(ctx)
	if err != nil {
		s.Err = err.Error()
		return s
	}
	defer c.Close()
	info, err := c.do(ctx, "INFO")
	if err != nil {
		s.Err = err.Error()
		return s
	}
	if s.Info = lines(text(info)); s.Info["redis_mode"] != "sentinel" {
		s.Err = "it is no Sentinel"
		return s
	}
	if v, err := c.do(ctx, "SENTINEL", "MYID"); err == nil {
		s.ID = text(v)
	}
	if v, err := c.do(ctx, "SENTINEL", "MASTER", master); err == nil {
		s.Master = pairs(v)
	}
	list := func(what string) (all []Fields) {
		v, _ := c.do(ctx, "SENTINEL", what, master) // refused where the name is not known
		for _, e := range v.Elems {
			all = append(all, pairs(e))
		}
		return all
	}
	s.Replicas, s.Sentinels = list("REPLICAS"), list("SENTINELS")
	if _, err := c.do(ctx, "SENTINEL", "CKQUORUM", master); err != nil {
		s.Quorum = err.Error()
	}
	s.Open = entrance(ctx, d, nil)
	return s
}

// askCluster asks the nodes that the URL names, and those that they name.
func (f *Facts) askCluster(ctx context.Context, data door) error {
	queue := slices.Clone(f.Options.Cluster)
	var mine []string // ids of those that were asked
	for i := 0; i < len(queue) && ctx.Err() == nil; i++ {
		f.askServer(ctx, data, queue[i])
		s := &f.Servers[len(f.Servers)-1]
		if self := s.self(); self != nil {
			if slices.Contains(mine, self.ID) { // under another name
				f.Servers = f.Servers[:len(f.Servers)-1]
				continue
			}
			mine = append(mine, self.ID)
		}
		for _, n := range s.Nodes {
			if n.Addr != "" && !n.is("myself") && !n.is("noaddr") && !slices.Contains(mine, n.ID) && !slices.Contains(queue, n.Addr) {
				queue = append(queue, n.Addr)
			}
		}
	}
	return nil
}

// self is the server's own line in CLUSTER NODES, or nil.
func (s *Server) self() *Node {
	for i := range s.Nodes {
		if s.Nodes[i].is("myself") {
			return &s.Nodes[i]
		}
	}
	return nil
}

// readNodes reads CLUSTER NODES:
// id ip:port@bus[,hostname] flags primary ping pong epoch link-state slot slot-slot [slot->-id] ...
func readNodes(text string) (nodes []Node) {
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 8 {
			continue
		}
		n := Node{ID: w[0], Flags: strings.Split(w[2], ","), Linked: w[7] == "connected"}
		if addr, _, ok := strings.Cut(w[1], "@"); ok && !strings.HasPrefix(addr, ":") {
			if i := strings.LastIndexByte(addr, ':'); i > 0 {
				n.Addr = net.JoinHostPort(strings.Trim(addr[:i], "[]"), addr[i+1:]) // Redis writes IPv6 without brackets
			}
		}
		if w[3] != "-" {
			n.Primary = w[3]
		}
		for _, s := range w[8:] {
			var first, last int
			switch read, _ := fmt.Sscanf(s, "%d-%d", &first, &last); {
			case strings.HasPrefix(s, "["):
				n.Moving = append(n.Moving, s)
			case read == 2:
				n.Slots += last - first + 1
			case read == 1:
				n.Slots++
			}
		}
		nodes = append(nodes, n)
	}
	return nodes
}
