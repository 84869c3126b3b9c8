package main

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/testserver"
)

// A faultRow is a row of the fault matrix.
type faultRow struct {
	id    string // its number, and a letter where one fault comes in several ways
	what  string
	bed   func(t *testing.T) *bed
	fault func(r *faultRun) // breaks and mends; returns when everybody who can serve again does
	goal  goal              // Sessile's
}

var matrix = []*faultRow{
	{"1", "primary killed (SIGKILL), back empty after the failover", sentinelBed, killed, lossless},
	{"2a", "host of the primary lost (cable, then power)", hostBed, func(r *faultRun) { hostLost(r, 0) }, lossless},
	{"2b", "the same, half a second after the cable to the replicas", quick(hostBed), func(r *faultRun) { hostLost(r, 500*time.Millisecond) }, lossless},
	{"3a", "primary stopped (SIGSTOP) for 6 s", strictBed, func(r *faultRun) { stopped(r, 6*time.Second) }, lossless},
	{"3b", "primary stopped for 0.5, 2, 12 and 30 s by turns", strictBed, func(r *faultRun) {
		stopped(r, []time.Duration{500 * time.Millisecond, 2 * time.Second, 12 * time.Second, 30 * time.Second}[(r.n-1)%4])
	}, lossless},
	{"4", "`SENTINEL FAILOVER`", sentinelBed, planned, within(1500 * time.Millisecond)},
	{"5", "`REPLICAOF` by hand: a replica is made the primary, and the others its replicas, for 4 s", sentinelBed, repointed, lossless},
	{"6", "primary and half of the clients cut off from all others for 6 s", strict(quick(hostBed)), partitioned, leased},
	{"7", "half of the clients cut off from all servers for 5 s", hostBed, func(r *faultRun) { r.cutOff(r.place(0), r.servers()) }, lossless},
	{"8", "clients cut off from all Sentinels for 5 s", strict(hostBed), func(r *faultRun) { r.cutOff(r.places, r.sentinelHosts()) }, unlessStrict},
	{"9", "what the primary answers to half of the clients is lost for 4 s", hostBed, deaf, lossless},
	{"10", "the replicas cut off from the primary for 5 s", hostBed, alone, within(500 * time.Millisecond)},
	{"11", "one more Sentinel, asked first, that knows another primary: one of former times that still runs", staleBed, planned, within(1500 * time.Millisecond)},
	{"12a", "a Sentinel publishes a `+switch-master` of yesterday, to a server that is a replica now", oldNewsBed, func(r *faultRun) { r.oldNews(nil) }, within(time.Second)},
	{"12b", "the same, to a server that still says that it is a primary", oldNewsBed, func(r *faultRun) { r.oldNews(r.stranger) }, within(time.Second)},
	{"13", "all Sentinels killed for 5 s", strictBed, noSentinels, unlessStrict},
	{"14", "`SENTINEL FAILOVER` of servers that are called by names (announce-hostnames)", namesBed, planned, within(1500 * time.Millisecond)},
	{"15", "Cluster: a primary killed, back empty after the failover", clusterBed, shardKilled, backAtOnce},
	{"16", "Cluster: slots moved one after the other for 3 s, and back again", clusterBed, resharded, within(time.Second)},
	{"17", "Cluster: a primary and its replica killed for 4 s; pauses are of the sessions elsewhere", durableClusterBed, shardLost, within(time.Second)},
	{"19", "primary killed and back at once, empty: no failover; after 2 s `sessile target refill`", sentinelBed, func(r *faultRun) { reborn(r, nil) }, lossless},
	{"20", "`SCRIPT FLUSH` twenty times a second, and `SENTINEL FAILOVER`", sentinelBed, flushed, within(1500 * time.Millisecond)},
	{"22", "no memory left (noeviction) for 4 s", sentinelBed, noMemory, lossless},
	{"23", "the primary's disk full for 4 s", diskBed, diskFull, lossless},
	{"24", "primary killed and back at once, without the last 64 KiB of its append-only file", durableBed, func(r *faultRun) { reborn(r, truncate) }, lossless},
	{"27", "the primary stands still for 200 ms four times a second, for 5 s", sentinelBed, slow, within(time.Second)},
	{"31", "`SENTINEL FAILOVER`, and 10,000 clients who come all at once then", sentinelBed, rush, crowdServed},
}

// A goal is what Sessile shall reach in all runs of a row.
type goal struct {
	text string
	met  func(f figures) bool
}

var lossless = goal{"0 lost", func(f figures) bool { return f.lost+f.undone+f.zombies == 0 }}

// within is lossless with a bound for every pause.
func within(d time.Duration) goal {
	return goal{fmt.Sprint("0 lost, pauses under ", d), func(f figures) bool { return lossless.met(f) && f.pauseMax < d.Seconds() }}
}

// backAtOnce counts from the moment at which there is somebody to serve.
var backAtOnce = goal{"0 lost, serving within a second of the new primary", func(f figures) bool { return lossless.met(f) && f.backMax < 1 }}

// crowdServed is for many who come at once.
var crowdServed = goal{"0 lost, 99 % of the clients served within 3 s", func(f figures) bool {
	return lossless.met(f) && f.crowd < 3 && f.crowdFailed == 0
}}

// leased is that of a partition: who has a lease is told nothing after it.
var leased = goal{"0 lost; strict: exposed for 0.5 s at most", func(f figures) bool {
	return lossless.met(f) && (f.contestant != "sessile strict" || f.exposedWorst <= 0.5)
}}

// unlessStrict: without Sentinels who has a lease does not serve, and all others do.
var unlessStrict = goal{"0 lost; pauses under 0.5 s unless strict", func(f figures) bool {
	return lossless.met(f) && (f.contestant == "sessile strict" || f.pauseMax < 0.5)
}}

// figures are what one contestant came to in all runs of a row.
type figures struct {
	contestant                                                              string
	runs, acknowledged, lost, worst, zombies, undone                        int
	errors, done, exposedWrites, repeated, crowdFailed                      int
	pauseMid, pauseMax, slowestMid, slowestMax, exposedWorst, memory, crowd float64
	elected, backMax                                                        float64            // median; from another primary to the end of the pause
	says                                                                    map[string]float64 // what the gateways counted
}

// sentinelBed is a primary, two replicas and three Sentinels on this machine.
func sentinelBed(t *testing.T) *bed {
	b := newBed(t)
	b.onSentinels(testserver.SentinelOptions{})
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// strict is a bed with one more kind of gateways.
func strict(open func(t *testing.T) *bed) func(t *testing.T) *bed {
	return func(t *testing.T) *bed {
		b := open(t)
		b.gateways = append(b.gateways, b.sessile("sessile strict", url.Values{"safety": {"strict"}, "lease": {"500ms"}}))
		return b
	}
}

func strictBed(t *testing.T) *bed { return strict(sentinelBed)(t) }

// diskBed has servers that can be told to write elsewhere.
func diskBed(t *testing.T) *bed {
	b := newBed(t)
	b.onSentinels(testserver.SentinelOptions{Node: []testserver.RedisOption{testserver.WithConf("enable-protected-configs yes")}})
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// durableBed has servers that keep what they are told.
func durableBed(t *testing.T) *bed {
	b := newBed(t)
	b.onSentinels(testserver.SentinelOptions{Node: []testserver.RedisOption{testserver.Persistent()}})
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// clusterBed is a Cluster of three primaries with a replica each, on this machine.
func clusterBed(t *testing.T) *bed { return onCluster(t) }

// durableClusterBed has servers that keep what they are told.
func durableClusterBed(t *testing.T) *bed { return onCluster(t, testserver.Persistent()) }

func onCluster(t *testing.T, node ...testserver.RedisOption) *bed {
	b := newBed(t)
	b.cluster = testserver.Cluster(t, testserver.ClusterOptions{Node: node})
	t.Cleanup(b.run.stopAll) // before the set
	b.url = b.cluster.URL()
	for _, n := range b.cluster.Nodes[:3] {
		b.addrs = append(b.addrs, n.Addr)
	}
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// quick is a bed with one more kind of gateways: no write waits for the replicas.
func quick(open func(t *testing.T) *bed) func(t *testing.T) *bed {
	return func(t *testing.T) *bed {
		b := open(t)
		b.gateways = append(b.gateways, b.sessile("sessile critical=none", nil, "--critical=none"))
		return b
	}
}

// namesBed has servers with names.
func namesBed(t *testing.T) *bed {
	b := newBed(t)
	b.onSentinels(testserver.SentinelOptions{Hostnames: true})
	for i, s := range b.sentinels.Sentinels {
		b.addrs[i] = fmt.Sprint("localhost:", portOf(s))
	}
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// staleBed has, before its own Sentinels, one that watches another primary under the same name.
func staleBed(t *testing.T) *bed {
	b := newBed(t)
	old := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, Sentinels: 1})
	b.onSentinels(testserver.SentinelOptions{})
	b.askFirst(old.Sentinels[0].Addr)
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// oldNewsBed has a Sentinel that can be made to publish anything. It is the one that clients are told of: who asks more
// learns of the others.
func oldNewsBed(t *testing.T) *bed {
	b := newBed(t)
	b.stranger = testserver.Redis(t)
	b.onSentinels(testserver.SentinelOptions{})
	b.addrs = nil
	b.news = newNewsroom(t, b.sentinels.Sentinels[0].Addr)
	b.askFirst(b.news.addr)
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// askFirst puts a Sentinel before the others.
func (b *bed) askFirst(addr string) {
	b.addrs = append([]string{addr}, b.addrs...)
	b.url = "redis-sentinel://" + strings.Join(b.addrs, ",") + "/" + b.sentinels.Name + "/0"
}

func (b *bed) onSentinels(o testserver.SentinelOptions) {
	b.sentinels = testserver.Sentinel(b.t, o)
	b.t.Cleanup(b.run.stopAll) // before the set
	b.url = b.sentinels.URL()
	for _, s := range b.sentinels.Sentinels {
		b.addrs = append(b.addrs, s.Addr)
	}
}

// hostBed has each server and each gateway, with the clients there, on a host of its own.
func hostBed(t *testing.T) *bed {
	b := newBed(t)
	hosts, _ := testserver.Hosts(t, 8)
	data, sentinels := hosts[:3], hosts[3:6]
	b.places = hosts[6:]
	b.onSentinels(testserver.SentinelOptions{Hosts: data, SentinelHosts: sentinels})
	b.hosts = map[*testserver.RedisServer]*testserver.Host{}
	for i, n := range b.sentinels.Nodes {
		b.hosts[n] = data[i]
	}
	for i, s := range b.sentinels.Sentinels {
		b.hosts[s] = sentinels[i]
	}
	b.gateways = append(b.gateways, b.sessile("sessile", nil))
	return b
}

// follows waits until the Sentinels have another primary than old.
func (r *faultRun) follows(old *testserver.RedisServer) *testserver.RedisServer {
	p := r.sentinels.WaitPrimary(old)
	r.elected = time.Now()
	return p
}

func planned(r *faultRun) {
	old := r.sentinels.Primary()
	r.fault()
	r.sentinels.Failover()
	r.follows(old)
	r.serving()
}

func killed(r *faultRun) {
	old := r.sentinels.Primary()
	r.fault()
	old.Kill()
	r.follows(old)
	r.serving()
	old.Restart()
}

func stopped(r *faultRun, d time.Duration) {
	old := r.sentinels.Primary()
	r.fault()
	old.Pause()
	if d > 2*time.Second { // else nobody may notice
		r.follows(old)
	}
	r.lasts(time.Until(r.at.Add(d)))
	old.Resume()
	r.serving()
}

func hostLost(r *faultRun, alone time.Duration) {
	old := r.sentinels.Primary()
	h := r.hosts[old]
	r.fault()
	for _, replica := range r.sentinels.ReplicasOf(old) {
		if alone > 0 {
			h.Block(r.hosts[replica])
			r.hosts[replica].Block(h)
		}
	}
	r.lasts(alone)
	h.Down()
	old.Kill()
	r.follows(old)
	r.serving()
	for _, other := range r.hosts {
		other.Unblock()
	}
	h.Up()
	old.Restart()
}

func partitioned(r *faultRun) {
	old := r.sentinels.Primary()
	var others []*testserver.Host
	for _, h := range append(r.servers(), r.places[1]) {
		if h != r.hosts[old] {
			others = append(others, h)
		}
	}
	r.cut = 0
	r.fault()
	heal := part([]*testserver.Host{r.hosts[old], r.places[0]}, others)
	r.at = time.Now()
	r.follows(old)
	r.lasts(time.Until(r.at.Add(6 * time.Second)))
	r.healed = time.Now()
	heal()
	r.serving()
	r.lasts(2 * time.Second)
}

// part loses what goes between two groups of hosts, and returns what ends that.
func part(a, b []*testserver.Host) (heal func()) {
	for _, x := range a {
		for _, y := range b {
			x.Block(y)
			y.Block(x)
		}
	}
	return func() {
		for _, h := range slices.Concat(a, b) {
			h.Unblock()
		}
	}
}

func (r *faultRun) servers() []*testserver.Host { return slices.Collect(maps.Values(r.hosts)) }

func (r *faultRun) place(i int) []*testserver.Host { return r.places[i : i+1] }

func (r *faultRun) sentinelHosts() (list []*testserver.Host) {
	for _, s := range r.sentinels.Sentinels {
		list = append(list, r.hosts[s])
	}
	return list
}

// cutOff cuts two groups of hosts off from each other for a while.
func (r *faultRun) cutOff(a, b []*testserver.Host) {
	r.fault()
	heal := part(a, b)
	r.lasts(5 * time.Second)
	heal()
	r.serving()
}

func repointed(r *faultRun) {
	old := r.sentinels.Primary()
	next := r.sentinels.ReplicasOf(old)[0]
	host, port, _ := net.SplitHostPort(next.Addr)
	r.fault()
	next.Do("REPLICAOF", "NO", "ONE")
	for _, n := range r.sentinels.Nodes {
		if n != next {
			n.Do("REPLICAOF", host, port)
		}
	}
	r.lasts(4 * time.Second)
	// Left alone, the Sentinels would make it a failover after twenty seconds more.
	host, port, _ = net.SplitHostPort(old.Addr)
	old.Do("REPLICAOF", "NO", "ONE")
	for _, n := range r.sentinels.Nodes {
		if n != old {
			n.Do("REPLICAOF", host, port)
		}
	}
	r.serving()
}

func deaf(r *faultRun) {
	old := r.sentinels.Primary()
	r.watch(old)
	r.fault()
	r.hosts[old].Block(r.places[0])
	r.lasts(4 * time.Second)
	r.hosts[old].Unblock()
	r.serving()
}

func alone(r *faultRun) {
	old := r.sentinels.Primary()
	var replicas []*testserver.Host
	for _, n := range r.sentinels.ReplicasOf(old) {
		replicas = append(replicas, r.hosts[n])
	}
	r.cutOff([]*testserver.Host{r.hosts[old]}, replicas)
}

// oldNews has the Sentinel that clients listen to publish that the primary is another one: stranger, or else a replica.
func (r *faultRun) oldNews(stranger *testserver.RedisServer) {
	now := r.sentinels.Primary()
	if stranger == nil {
		stranger = r.sentinels.ReplicasOf(now)[0]
	}
	from, to := strings.ReplaceAll(now.Addr, ":", " "), strings.ReplaceAll(stranger.Addr, ":", " ")
	r.fault()
	r.news.publish("+switch-master", fmt.Sprint(r.sentinels.Name, " ", from, " ", to))
	r.lasts(3 * time.Second)
	r.serving()
}

func noSentinels(r *faultRun) {
	r.fault()
	for _, s := range r.sentinels.Sentinels {
		s.Kill()
	}
	r.lasts(5 * time.Second)
	for _, s := range r.sentinels.Sentinels {
		s.Restart()
	}
	r.serving()
}

func flushed(r *faultRun) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, n := range r.sentinels.Nodes {
				n.Do("SCRIPT", "FLUSH")
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	planned(r)
	close(stop)
	wg.Wait()
}

func noMemory(r *faultRun) {
	primary := r.sentinels.Primary()
	r.fault()
	primary.Do("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1mb")
	r.lasts(4 * time.Second)
	primary.Do("CONFIG", "SET", "maxmemory", "0")
	r.serving()
}

// reborn has the primary start again before anybody takes it for down.
func reborn(r *faultRun, before func(r *faultRun, dir string)) {
	primary := r.sentinels.Primary()
	r.fault()
	primary.Kill()
	if before != nil {
		before(r, primary.Data())
	}
	primary.Restart()
	if before == nil {
		r.decide()
	}
	r.serving()
}

// decide is the person who is asked what to do about a primary that has forgotten everything.
func (r *faultRun) decide() {
	r.lasts(2 * time.Second)
	for _, c := range r.gateways {
		if out, err := exec.Command(binary, "target", "refill", "--admin=unix:"+c.admin[0], "--reason=a row of the matrix").CombinedOutput(); err != nil {
			r.t.Errorf("sessile target refill: %v: %s", err, out)
		}
	}
}

// truncate takes away the end of an append-only file.
func truncate(r *faultRun, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "appendonlydir", "*.incr.aof"))
	slices.Sort(files)
	for _, file := range slices.Backward(files) {
		info, err := os.Stat(file)
		if err != nil || info.Size() < 64<<10 {
			continue
		}
		if err := os.Truncate(file, info.Size()-64<<10); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	r.t.Fatalf("no append-only file in %s", dir)
}

// third is that of the slots which a session is in, as they are given to three primaries.
func third(key string) int { return slotOf(key) * 3 / 16384 }

func shardKilled(r *faultRun) {
	old := r.cluster.Node(0)
	r.hit = func(key string) bool { return third(key) == 0 }
	r.fault()
	old.Kill()
	r.cluster.WaitPrimary(0, old)
	r.elected = time.Now()
	r.serving()
	old.Restart()
}

func shardLost(r *faultRun) {
	primary := r.cluster.Node(0)
	replica := r.cluster.ReplicaOf(primary)
	r.hit = func(key string) bool { return third(key) != 0 }
	r.fault()
	primary.Kill()
	replica.Kill()
	r.lasts(4 * time.Second)
	primary.Restart()
	replica.Restart()
	r.serving()
}

// resharded moves slots away and back again.
func resharded(r *faultRun) {
	a, b := r.cluster.Node(0), r.cluster.Node(16383)
	r.watch(a, b)
	r.fault()
	moved := 0
	for time.Since(r.at) < 3*time.Second {
		r.cluster.MoveSlots(a, b, moved)
		moved++
	}
	for slot := range moved {
		r.cluster.MoveSlots(b, a, slot)
	}
	r.bed.run.say("%d slots moved, and back", moved)
	r.serving()
}

// diskFull has the primary write its append-only file to a disk that fills up.
func diskFull(r *faultRun) {
	primary := r.sentinels.Primary()
	dir := r.t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		testserver.Need(r.t, "a disk that is full (root)", false)
	}
	primary.Do("CONFIG", "SET", "dir", dir)
	primary.Do("CONFIG", "SET", "appendonly", "yes")
	info := func(what string) bool { return strings.Contains(primary.Do("INFO", "persistence").(string), what) }
	if !r.until(recovery, func() bool { return info("aof_enabled:1") && info("aof_rewrite_in_progress:0") }) {
		r.t.Fatal("no append-only file")
	}
	full := filepath.Join(dir, "full")
	r.fault()
	if err := os.WriteFile(full, make([]byte, 64<<20), 0o600); err == nil {
		r.t.Fatal("the disk is not full")
	}
	r.lasts(4 * time.Second)
	if err := os.Remove(full); err != nil {
		r.t.Fatal(err)
	}
	r.serving()
	primary.Do("CONFIG", "SET", "appendonly", "no")
	primary.Do("CONFIG", "SET", "dir", primary.Data())
	if err := unix.Unmount(dir, 0); err != nil {
		r.t.Fatal(err)
	}
}

const many = 10_000

// rush has many clients come at once, of one contestant after the other.
func rush(r *faultRun) {
	old := r.sentinels.Primary()
	r.fault()
	r.sentinels.Failover()
	r.follows(old)
	for i := range r.loads {
		l := r.loads[(i+r.n)%len(r.loads)]
		l.rush = l.crowd(many)
	}
	r.serving()
}

func slow(r *faultRun) {
	primary := r.sentinels.Primary()
	r.fault()
	for range 20 {
		primary.Pause()
		r.lasts(200 * time.Millisecond)
		primary.Resume()
		r.lasts(50 * time.Millisecond)
	}
	r.serving()
}

func portOf(s *testserver.RedisServer) int {
	_, port, _ := net.SplitHostPort(s.Addr)
	n, _ := strconv.Atoi(port)
	return n
}
