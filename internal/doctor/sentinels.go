package doctor

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// sentinels judges the servers that are watched, each Sentinel, and all of them together.
func (j *judge) sentinels() {
	name := j.Options.Master
	set := Subject{Name: name, Role: "sentinels"}

	var alive []Sentinel // those that we can ask
	for _, s := range j.Sentinels {
		if s.Err == "" && s.Master != nil {
			alive = append(alive, s)
		}
	}
	all := len(j.Sentinels)
	majority := all/2 + 1

	primaryAddr, agreed := j.address(&set, alive)
	var primary *Server
	for i := range j.Servers {
		if j.Servers[i].Addr == primaryAddr && j.Servers[i].Err == "" {
			primary = &j.Servers[i]
		}
	}
	j.numbers(&set, alive, all, majority)
	j.settings(&set, alive, all)
	j.timing(&set, alive)
	if agreed && primary != nil {
		j.roles(&set, primary)
	}
	j.priorities(&set, alive, primary)
	j.subjects = append(j.subjects, set)

	for _, s := range j.Servers {
		of := primary
		if primary != nil && s.Addr == primary.Addr {
			of = nil
		}
		j.subjects = append(j.subjects, j.server(s, of))
	}
	for _, s := range j.Sentinels {
		j.subjects = append(j.subjects, j.sentinel(s, alive))
	}
}

// address looks whether all name one primary, which others can reach, too.
func (j *judge) address(s *Subject, alive []Sentinel) (addr string, agreed bool) {
	named := map[string]string{}
	votes := map[string]int{}
	for _, a := range alive {
		named[a.Addr] = address(a.Master)
		votes[address(a.Master)]++
		if votes[address(a.Master)] > votes[addr] {
			addr = address(a.Master)
		}
	}
	said, agreed := distinct(named)
	if len(alive) == 0 {
		return "", false
	}
	if !agreed {
		s.add(Danger, "address", "the Sentinels do not name one primary: "+said,
			"Gateways that ask different ones write to different servers, and one of the two is thrown away.",
			"wait a minute and look again; then, on each that is wrong: SENTINEL RESET "+j.Options.Master)
		return addr, false
	}
	host, _, _ := net.SplitHostPort(addr)
	if i := slices.IndexFunc(alive, func(a Sentinel) bool { h, _, _ := net.SplitHostPort(a.Addr); return !isLoopback(h) }); i >= 0 && isLoopback(host) {
		s.add(Danger, "address", "the primary is named "+addr+", and Sentinel "+alive[i].Addr+" is on another address than that",
			"On every other machine this address is that machine itself.", "SENTINEL REMOVE and SENTINEL MONITOR, with an address that all can reach")
		return addr, true
	}
	s.ok("address", "all name "+addr)
	return addr, true
}

// numbers looks whether there are enough Sentinels, and on enough machines.
func (j *judge) numbers(s *Subject, alive []Sentinel, all, majority int) {
	name := j.Options.Master
	what := fmt.Sprintf("%s known, %d of them answer us", plural(all, "Sentinel", "Sentinels"), len(alive))
	switch {
	case all < 3:
		s.add(Danger, "sentinels", what, "With one less there is no majority, so no failover: one machine that fails stops all logins.",
			"start more, on machines of their own: three at least")
	case len(alive) < majority:
		s.add(Danger, "sentinels", what+"; a majority is "+fmt.Sprint(majority), "A primary that no majority names to us is not written to.",
			"start those that are down; let the gateways through to all of them; SENTINEL RESET "+name+" on each, one after the other, forgets those that are gone")
	case len(alive) < all:
		s.add(Warning, "sentinels", what, "They count for the majority all the same: one more that fails, and there may be none.",
			"start those that are down; SENTINEL RESET "+name+" on each, half a minute apart, forgets those that are gone")
	case all%2 == 0:
		s.add(Warning, "sentinels", what+": an even number", "The last one buys nothing: as many may fail as with one less.", "one more, or one less")
	default:
		s.ok("sentinels", what)
	}
	if named := len(j.Options.Sentinels); named < 2 && all > 1 {
		s.add(Warning, "url", fmt.Sprintf("the URL names %d of %d Sentinels", named, all),
			"A gateway that is started while it is down finds no primary.", "name all of them in the URL")
	}

	for _, a := range alive {
		if a.Quorum != "" {
			s.add(Danger, "ckquorum", fmt.Sprintf("Sentinel %s: %s", a.Addr, a.Quorum), "A primary that fails is not replaced.", "start the Sentinels that are down, or lower the quorum")
			break
		}
	}

	var sentinels, servers []string
	for _, a := range j.Sentinels {
		sentinels = append(sentinels, a.Addr)
	}
	for _, a := range j.Servers {
		servers = append(servers, a.Addr)
	}
	if host, n := crowded(sentinels); all >= 3 && all-n < majority {
		s.add(Warning, "hosts", fmt.Sprintf("%d of %d Sentinels are on %s", n, all, host),
			"If that machine fails there is no majority, so no failover.", "Sentinels on machines of their own, with no majority on any of them")
	} else if all >= 3 {
		s.ok("hosts", fmt.Sprintf("at most %s on one machine", plural(n, "Sentinel", "Sentinels")))
	}
	if host, n := crowded(servers); n == len(servers) && n > 1 {
		s.add(Warning, "hosts", fmt.Sprintf("all %d servers are on %s", n, host), "If that machine fails there is nothing to fail over to.", "each replica on a machine of its own")
	}
	for _, server := range j.Servers {
		if server.Watchers > all {
			s.add(Warning, "strangers", fmt.Sprintf("%d Sentinels listen to %s, and %d are known", server.Watchers, server.Addr, all),
				"Sentinels that do not know of these may fail over on their own, under another name.", "find them: CLIENT LIST there, name=sentinel-...")
			break
		}
	}
}

// settings looks whether all Sentinels go by the same.
func (j *judge) settings(s *Subject, alive []Sentinel, all int) {
	name := j.Options.Master
	same := true
	for _, setting := range []struct{ field, option, why string }{
		{"quorum", "quorum", "Which of them begins a failover decides how many have to agree that there is need for one."},
		{"down-after-milliseconds", "down-after-milliseconds", "The one with the shortest begins; whether others follow is chance."},
		{"failover-timeout", "failover-timeout", "How soon a failed failover is tried again depends on who began it."},
		{"num-other-sentinels", "", "A Sentinel that does not know all others counts another majority."},
		{"num-slaves", "", "A replica that a Sentinel does not know of cannot be promoted by it."},
	} {
		values := map[string]string{}
		for _, a := range alive {
			values[a.Addr] = a.Master[setting.field]
		}
		said, one := distinct(values)
		if one {
			continue
		}
		same = false
		remedy := "SENTINEL RESET " + name + " on each, half a minute apart"
		if setting.option != "" {
			remedy = fmt.Sprintf("on each: SENTINEL SET %s %s %s", name, setting.option, alive[0].Master[setting.field])
		}
		s.add(Warning, "agreement", setting.field+" is not the same in all: "+said, setting.why, remedy)
	}
	if same && len(alive) > 1 {
		s.ok("agreement", fmt.Sprintf("all %d go by the same settings and know the same servers", len(alive)))
	}
	if len(alive) == 0 {
		return
	}
	m := alive[0].Master
	switch quorum := m.int("quorum"); {
	case quorum <= 1 && all > 1:
		s.add(Warning, "quorum", fmt.Sprintf("quorum %d", quorum), "One Sentinel with a bad network is enough to begin a failover, again and again.",
			fmt.Sprintf("on each: SENTINEL SET %s quorum %d", name, all/2+1))
	case quorum > int64(all/2+1):
		s.add(Warning, "quorum", fmt.Sprintf("quorum %d of %d", quorum, all), "Fewer Sentinels may fail than a majority could do without.",
			fmt.Sprintf("on each: SENTINEL SET %s quorum %d", name, all/2+1))
	default:
		s.ok("quorum", fmt.Sprintf("quorum %d of %d", quorum, all))
	}
}

// timing compares how long it takes to fail over with how long gateways wait and remember.
func (j *judge) timing(s *Subject, alive []Sentinel) {
	after, set := j.noticed(), j.Options.Master
	if after == 0 {
		return
	}
	downAfter := func(d time.Duration) string {
		return fmt.Sprintf("on each Sentinel: SENTINEL SET %s down-after-milliseconds %d", set, d.Milliseconds())
	}
	if lease := j.Options.Failover.Lease; lease > 0 && lease+drift >= after {
		s.add(Danger, "lease", fmt.Sprintf("down-after is %v, the lease of safety=strict %v", after, lease),
			"A new primary can be elected while a gateway still acknowledges writes to the old one, and those are thrown away.", downAfter(max(time.Second, 2*lease)), "or a shorter lease= in the URL")
	} else if lease > 0 {
		s.ok("lease", fmt.Sprintf("the lease of %v ends before down-after, %v", lease, after))
	}
	if after < 500*time.Millisecond {
		s.add(Warning, "down-after", fmt.Sprintf("down-after is %v", after), "A short pause of the primary (a fork, a slow disk) becomes a failover.", downAfter(time.Second))
	}
	j.waits(s, "down-after", after, election, downAfter)

	longest := int64(0)
	for _, a := range alive {
		longest = max(longest, a.Master.int("failover-timeout"))
	}
	if d := time.Duration(longest) * time.Millisecond; d > time.Minute {
		s.add(Warning, "failover-timeout", fmt.Sprintf("failover-timeout is %v", d),
			fmt.Sprintf("A failover that comes to nothing is tried again after twice as long, %v, and nobody can log in meanwhile.", 2*d),
			"on each Sentinel: SENTINEL SET "+set+" failover-timeout 30000")
	} else {
		s.ok("failover-timeout", fmt.Sprintf("failover-timeout is %v", d))
	}
}

// waits compares hold and replay window with the time it takes to replace a primary that is gone.
func (j *judge) waits(s *Subject, setting string, after, election time.Duration, lower func(time.Duration) string) {
	gone, hold, window := after+election, max(j.Use.Hold, 0), j.Options.Failover.Replay
	soon := lower(2 * time.Second)
	more := func(than time.Duration) time.Duration { return than.Round(time.Second) + time.Second }
	if gone > hold {
		s.add(Warning, "hold", fmt.Sprintf("%s is %v: with about %v for the election longer than a request waits (hold), %v", setting, after, election, hold),
			fmt.Sprintf("When a primary fails, requests fail for %v.", gone-hold), soon, fmt.Sprintf("or, if clients wait so long: --hold %v", more(gone)))
	} else {
		s.ok("hold", fmt.Sprintf("%s is %v, and a request waits for up to %v", setting, after, hold))
	}
	switch {
	case window < 0:
	case gone > window:
		s.add(Warning, "window", fmt.Sprintf("%s is %v: with about %v for the election longer than writes are remembered (replay), %v", setting, after, election, window),
			"What the old primary acknowledged at last cannot all be put back at the new one.", soon, fmt.Sprintf("or replay=%v in the URL", more(gone)))
	default:
		s.ok("window", fmt.Sprintf("writes are remembered for %v", window))
	}
}

// roles looks whether servers are what the Sentinels take them for.
func (j *judge) roles(s *Subject, primary *Server) {
	if role := primary.Info["role"]; role != "master" && role != "" {
		s.add(Danger, "roles", "the Sentinels name "+primary.Addr+", which says that it is a replica", "There is nobody to write to.",
			"wait half a minute; then SENTINEL FAILOVER "+j.Options.Master)
		return
	}
	for _, o := range j.Servers {
		if o.Addr != primary.Addr && o.Info["role"] == "master" {
			s.add(Danger, "roles", "two say that they are the primary: "+primary.Addr+", and "+o.Addr+", which the Sentinels take for a replica",
				"What is written to the second is thrown away.", fmt.Sprintf("on %s: REPLICAOF %s", o.Addr, strings.Replace(primary.Addr, ":", " ", 1)))
			return
		}
	}
	s.ok("roles", "primary and replicas are what the Sentinels take them for")
}

// priorities looks at those who may take over.
func (j *judge) priorities(s *Subject, alive []Sentinel, primary *Server) {
	prio := map[string]string{}
	var stale []string
	able, known := 0, map[string]bool{}
	for _, a := range alive {
		for _, r := range a.Replicas {
			addr := address(r)
			if known[addr] {
				continue
			}
			known[addr] = true
			if flags := r["flags"]; strings.Contains(flags, "s_down") || strings.Contains(flags, "disconnected") {
				stale = append(stale, addr)
				continue
			}
			prio[addr] = r["slave-priority"]
			if r["slave-priority"] != "0" {
				able++
			}
		}
	}
	slices.Sort(stale)
	if stale != nil {
		s.add(Warning, "stale", "replicas that are down: "+strings.Join(stale, ", "), "They cannot take over. A failover waits for those it takes for present.",
			"start them; SENTINEL RESET "+j.Options.Master+" on each Sentinel, half a minute apart, forgets those that are gone for good")
	}
	switch {
	case able == 0:
		s.add(Danger, "replicas", "no replica may take over ("+plural(len(prio), "replica is", "replicas are")+" there)", "When the primary fails, nobody can log in until it is back.",
			"start two replicas: replicaof in redis.conf; CONFIG SET replica-priority 100 where it is 0")
	case able == 1:
		s.add(Warning, "replicas", "one replica may take over", "After one failover there is none.", "one more replica on a machine of its own")
	default:
		s.ok("replicas", fmt.Sprintf("%d replicas may take over", able))
	}
	if primary != nil && primary.Config.has("replica-priority") {
		prio[primary.Addr] = primary.Config["replica-priority"]
	}
	if said, one := distinct(prio); !one {
		s.add(Warning, "priority", "replica-priority is not the same in all: "+said,
			"The priority goes before the data: a replica that lacks what another one has is made the primary.", "on each: CONFIG SET replica-priority 100", "CONFIG REWRITE")
	} else if len(prio) > 1 {
		s.ok("priority", "replica-priority "+said[:max(0, strings.IndexByte(said, ' '))]+" in all")
	}
}

func (j *judge) sentinel(s Sentinel, alive []Sentinel) Subject {
	sub := Subject{Name: s.Addr, Role: "sentinel"}
	switch {
	case s.Err != "":
		what := "cannot be asked: " + s.Err
		for _, a := range alive {
			for _, peer := range a.Sentinels {
				if address(peer) == s.Addr && strings.Contains(peer["flags"], "s_down") {
					what = "is down, the other Sentinels say, too: " + s.Err
				}
			}
		}
		sub.add(Warning, "reach", what, "It counts for the majority and does not vote.",
			"start it; if it is gone for good: SENTINEL RESET "+j.Options.Master+" on each of the others, half a minute apart")
		return sub
	case s.Master == nil:
		sub.add(Danger, "reach", "watches nobody of the name "+j.Options.Master, "It takes no part in a failover.",
			"SENTINEL MONITOR "+j.Options.Master+" host port quorum")
	default:
		sub.ok("reach", "watches "+j.Options.Master)
		for _, flag := range []string{"s_down", "o_down", "failover_in_progress"} {
			if slices.Contains(strings.Split(s.Master["flags"], ","), flag) {
				sub.add(Danger, "down", "says of the primary: "+s.Master["flags"], "It cannot see the primary, or is just replacing it.",
					"look again in a minute; can it log in there? SENTINEL SET "+j.Options.Master+" auth-pass ...")
				break
			}
		}
	}
	sub.version(s.Info)
	if s.Info["sentinel_tilt"] == "1" {
		sub.add(Danger, "tilt", "is in tilt mode: its clock jumped, or it stood still", "It takes no part in a failover until half a minute has passed without that.", "see to its clock and its load")
	}
	if s.Open == Open {
		sub.add(Danger, "open", "lets everybody in who reaches it, without a password",
			"Who gets in can name another server as the primary, and is sent every session.", "sentinel.conf: requirepass ..., sentinel sentinel-pass ..., and sentinel_password_file= in the URL",
			"and a firewall that lets in nobody but the gateways and the other Sentinels")
	} else if s.Open != Unknown {
		sub.ok("open", "nobody gets in from elsewhere without a password")
	}
	sub.tls(s.Addr, j.Options.Sentinel.TLS == nil)
	return sub
}
