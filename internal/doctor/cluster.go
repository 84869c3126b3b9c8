package doctor

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	slots = 16384
	// clusterElection is what a failover takes once a primary counts as failed: replicas wait for half a second, and up to
	// as much again, before they ask for votes.
	clusterElection = time.Second
)

// cluster judges each node and all of them together.
func (j *judge) cluster() {
	set := Subject{Name: "cluster of " + j.Options.Cluster[0], Role: "cluster"}
	var seen *Server // whose view is taken for all; that views differ is a finding
	for i := range j.Servers {
		if s := &j.Servers[i]; seen == nil && s.Nodes != nil {
			seen = s
		}
	}
	if seen == nil {
		set.add(Danger, "cluster", "no node tells of the others (CLUSTER NODES)", "Nothing is known of where sessions lie.", "is this a Cluster? may our user run CLUSTER NODES?")
	} else {
		j.coverage(&set, seen)
		j.shards(&set, seen)
		j.nodeSettings(&set)
	}
	j.subjects = append(j.subjects, set)
	for _, s := range j.Servers {
		var primary *Server
		if self := s.self(); self != nil && self.Primary != "" {
			for i := range j.Servers {
				if o := j.Servers[i].self(); o != nil && o.ID == self.Primary {
					primary = &j.Servers[i]
				}
			}
		}
		sub := j.server(s, primary)
		if s.Info != nil && s.Info["cluster_enabled"] != "1" {
			sub.add(Danger, "cluster", "the server is not in cluster mode", "The URL says that it is.", "write redis://"+s.Addr+" for the URL")
		}
		j.subjects = append(j.subjects, sub)
	}
}

// coverage looks whether every slot is served, and whether all nodes think so.
func (j *judge) coverage(s *Subject, seen *Server) {
	states, views := map[string]string{}, map[string]string{}
	for _, server := range j.Servers {
		if server.Nodes == nil {
			continue
		}
		states[server.Addr] = server.State["cluster_state"]
		var owners []string
		for _, n := range server.Nodes {
			if n.Slots > 0 {
				owners = append(owners, fmt.Sprintf("%.8s:%d", n.ID, n.Slots))
			}
		}
		slices.Sort(owners)
		views[server.Addr] = strings.Join(owners, "+")
	}
	said, one := distinct(states)
	switch {
	case !one || states[seen.Addr] != "ok":
		s.add(Danger, "state", "cluster_state: "+said, "Sessions of the slots that are down, or all, cannot be read.", "redis-cli --cluster check "+seen.Addr)
	default:
		s.ok("state", "cluster_state ok in all nodes")
	}
	total := 0
	for _, n := range seen.Nodes {
		total += n.Slots
	}
	if failing := seen.State.int("cluster_slots_fail") + seen.State.int("cluster_slots_pfail"); total < slots || failing > 0 {
		s.add(Danger, "slots", fmt.Sprintf("%d of %d slots have an owner, %d of them one that does not answer", total, slots, failing),
			"Sessions of the other slots cannot be read or written.", "redis-cli --cluster fix "+seen.Addr)
	} else {
		s.ok("slots", fmt.Sprintf("all %d slots have an owner that answers", slots))
	}
	if said, one := distinct(views); !one {
		s.add(Warning, "view", "the nodes do not agree on who has how many slots: "+said, "Requests are sent to and fro until they do.",
			"wait until a reshard or failover is over; then redis-cli --cluster check "+seen.Addr)
	}
	var moving []string
	leaving := map[string]bool{} // the slots that are, as their own servers say
	for _, server := range j.Servers {
		if self := server.self(); self != nil && len(self.Moving) > 0 {
			moving = append(moving, fmt.Sprintf("%s at %s", strings.Join(self.Moving, " "), server.Addr))
			for _, m := range self.Moving {
				if slot, _, ok := strings.Cut(m, "->-"); ok {
					leaving[slot] = true
				}
			}
		}
	}
	for _, server := range j.Servers {
		self := server.self()
		if self == nil {
			continue
		}
		for _, m := range self.Moving {
			if slot, _, ok := strings.Cut(m, "-<-"); ok && !leaving[slot] {
				slot = slot[1:]
				s.add(Danger, "moving", fmt.Sprintf("slot %s is on its way to %s, and its own server has forgotten that", slot, server.Addr),
					"A failover came into the move. Sessions of the slot that are at "+server.Addr+" already are out of reach.",
					"at the server that has the slot: CLUSTER SETSLOT "+slot+" MIGRATING "+self.ID, "redis-cli --cluster fix "+seen.Addr)
			}
		}
	}
	if moving != nil {
		s.add(Warning, "moving", "slots on their way: "+strings.Join(moving, ", "), "Each request for them may take two steps. Left so, they are in the way of the next failover.",
			"let the reshard end, or redis-cli --cluster fix "+seen.Addr)
	}
}

// shards looks whether each primary has somebody to take over, elsewhere.
func (j *judge) shards(s *Subject, seen *Server) {
	byID := map[string]*Server{}
	for i := range j.Servers {
		if self := j.Servers[i].self(); self != nil {
			byID[self.ID] = &j.Servers[i]
		}
	}
	host := func(n Node) string {
		addr := n.Addr
		if server := byID[n.ID]; addr == "" && server != nil {
			addr = server.Addr // a node may not know its own
		}
		h, _, _ := net.SplitHostPort(addr)
		return h
	}
	var primaries, bare, together, gone, barred []string
	hosts := map[string]int{}
	for _, n := range seen.Nodes {
		if n.is("fail") || n.is("fail?") || n.is("handshake") || n.is("noaddr") {
			gone = append(gone, fmt.Sprintf("%s (%s)", cmp.Or(n.Addr, n.ID), strings.Join(n.Flags, ",")))
		}
		if n.Slots == 0 {
			continue
		}
		name := cmp.Or(n.Addr, n.ID)
		primaries = append(primaries, name)
		hosts[host(n)]++
		var able, apart, may int
		for _, r := range seen.Nodes {
			if r.Primary != n.ID || r.is("fail") || r.is("fail?") {
				continue
			}
			able++
			if host(r) != host(n) {
				apart++
			}
			if server := byID[r.ID]; server == nil || server.Config["cluster-replica-no-failover"] != "yes" {
				may++
			}
		}
		switch {
		case able == 0:
			bare = append(bare, name)
		case may == 0:
			barred = append(barred, name)
		case apart == 0:
			together = append(together, name)
		}
	}
	if n := len(primaries); n < 3 {
		s.add(Danger, "primaries", plural(n, "primary", "primaries")+" with slots", "A failover needs a majority of those that are left: with fewer than three there is none.",
			"three primaries: redis-cli --cluster add-node, then --cluster reshard")
	}
	for _, c := range []struct {
		which       []string
		level       Level
		check, what string
		why, remedy string
	}{
		{bare, Danger, "replicas", "primaries without a replica", "When one of them fails, the sessions of its slots are gone until it is back.", "redis-cli --cluster add-node new:6379 " + seen.Addr + " --cluster-slave --cluster-master-id ID"},
		{barred, Danger, "replicas", "primaries whose replicas may not take over (cluster-replica-no-failover yes)", "When one of them fails, the sessions of its slots are gone until it is back.", "on the replicas: CONFIG SET cluster-replica-no-failover no"},
		{together, Warning, "hosts", "primaries with all their replicas on their own machine", "If that machine fails, the sessions of its slots are gone.", "a replica on another machine"},
		{gone, Warning, "nodes", "nodes that do not answer", "They cannot take over, and primaries among them count for the majority.", "start them, or on every node: CLUSTER FORGET id"},
	} {
		if c.which != nil {
			s.add(c.level, c.check, c.what+": "+strings.Join(c.which, ", "), c.why, c.remedy)
		}
	}
	if bare == nil && barred == nil {
		s.ok("replicas", fmt.Sprintf("each of %d primaries has a replica that may take over", len(primaries)))
	}
	for h, n := range hosts {
		if len(primaries) >= 3 && len(primaries)-n < len(primaries)/2+1 {
			s.add(Warning, "hosts", fmt.Sprintf("%d of %d primaries are on %s", n, len(primaries), h), "If that machine fails there is no majority, so no failover.",
				"swap roles: CLUSTER FAILOVER on replicas that are elsewhere")
		}
	}
}

// nodeSettings looks at what all nodes are to have in common.
func (j *judge) nodeSettings(s *Subject) {
	values := func(name string) map[string]string {
		m := map[string]string{}
		for _, server := range j.Servers {
			if server.Config.has(name) {
				m[server.Addr] = server.Config[name]
			}
		}
		return m
	}
	having := func(name, value string) (list []string) {
		for at, v := range values(name) {
			if v == value {
				list = append(list, at)
			}
		}
		slices.Sort(list)
		return list
	}
	if full := having("cluster-require-full-coverage", "yes"); full != nil {
		s.add(Warning, "full-coverage", "cluster-require-full-coverage yes: "+strings.Join(full, ", "),
			"One shard that is down stops all others: nobody can log in, not only its own users.", "on each: CONFIG SET cluster-require-full-coverage no", "CONFIG REWRITE")
	} else if len(values("cluster-require-full-coverage")) > 0 {
		s.ok("full-coverage", "a shard that is down hurts only its own sessions")
	}
	if any := having("cluster-replica-validity-factor", "0"); any != nil {
		s.add(Warning, "validity", "cluster-replica-validity-factor 0: "+strings.Join(any, ", "),
			"A replica takes over however long it has heard nothing: logins and logouts since then are undone.", "on each: CONFIG SET cluster-replica-validity-factor 10", "CONFIG REWRITE")
	}
	timeouts := values("cluster-node-timeout")
	if said, one := distinct(timeouts); !one {
		s.add(Warning, "node-timeout", "cluster-node-timeout is not the same in all: "+said, "Nodes take each other for dead at different times.", "on each: CONFIG SET cluster-node-timeout 2000", "CONFIG REWRITE")
	}
	if after := j.noticed(); after > 0 {
		j.waits(s, "cluster-node-timeout", after, clusterElection, func(d time.Duration) string {
			return fmt.Sprintf("on each: CONFIG SET cluster-node-timeout %d", d.Milliseconds())
		})
	}
}
