package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// clusterSite is a site whose sessions are in a Cluster, as the options of a gateway.
func clusterSite(c *testserver.ClusterSet, target string) []string {
	return []string{"--origin", c.URL(), "--origin-key", "PHPREDIS_CLUSTER_SESSION:", "--target", target, "--target-key", "PHPREDIS_SESSION:", "--bound", "1s"}
}

// inCluster puts sessions of users who do nothing into a Cluster.
func inCluster(c *testserver.ClusterSet, n int) {
	for i := range n {
		name := fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i)
		c.NodeOf(name).Do("SET", name, fmt.Sprintf("user|i:%d;", i), "EX", "1440")
	}
}

// TestTheMoveOutOfACluster goes up, down and up again, from a Cluster to one server, with users at work and slots on the move.
func TestTheMoveOutOfACluster(t *testing.T) {
	t.Parallel()
	c, to := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1}), redis(t)
	const quiet = 300
	inCluster(c, quiet)
	args := clusterSite(c, to.URL())
	p := run(t, nil, append([]string{"migrate", "plan"}, args...)...).want(t, 0, "300 sessions in the origin", "")
	if want := `a Cluster of 3 primaries: sessions are strings whose names begin with "PHPREDIS_CLUSTER_SESSION:"`; !strings.Contains(p.stdout, want) {
		t.Errorf("plan does not say %q: %s", want, p.stdout)
	}
	run(t, nil, "migrate", "plan", "--origin", c.Nodes[0].URL(), "--origin-key", "PHPREDIS_CLUSTER_SESSION:", "--target", to.URL()).
		want(t, 3, "name it as one, redis-cluster://", "")

	life, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for from, to := c.Nodes[0], c.Nodes[1]; life.Err() == nil; from, to = to, from {
			for slot := 0; slot < 200 && life.Err() == nil; slot++ {
				c.MoveSlots(from, to, slot)
			}
		}
	})
	a, b := serve(t, args...), serve(t, args...)
	a.migrate("create").want(t, 0, "phase off", "")
	eventually(t, "both gateways know of it", func() bool { return len(a.status().Gateways) == 2 })
	end := users(t, "PHPREDIS_CLUSTER_SESSION:", a, b)
	climb := func(d *daemon, to string) {
		t.Helper()
		eventually(t, "phase "+to, func() bool { return d.migrate("switchtraffic", "--to", to, "--window", "300ms").code == 0 })
	}
	climb(a, "ramp-down")
	b.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	climb(b, "ramp-down")
	for i := range quiet {
		want := fmt.Sprintf("user|i:%d;", i)
		if got := a.dial().do("GET", fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i)); got != want {
			t.Fatalf("quiet%d: got %q", i, got)
		}
	}
	b.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	end()
	stop()
	wg.Wait()
	if got := to.CLI("KEYS", "PHPREDIS_SESSION:user*"); got != "" {
		t.Errorf("all of them are out, and the target has %s", got)
	}
	if st := a.status(); st.Debt != (migrate.Debt{}) || st.Counters["alarms"] != 0 || st.Counters["unfit"] != 0 {
		t.Errorf("got %+v", st)
	}
	// What was the origin is neither served nor moved to by mistake.
	old := c.URL() + "?prefix=PHPREDIS_CLUSTER_SESSION:"
	run(t, nil, "serve", "--target", old, "--listen", fmt.Sprintf("redis://127.0.0.1:%d", port(t)), "--admin", "off").
		want(t, 1, "", "was, the origin of workflow \"default\" (floor ramp-down)")
}

// TestACancelledMoveOutOfACluster leaves the Cluster as it was, to whoever uses it without a gateway.
func TestACancelledMoveOutOfACluster(t *testing.T) {
	t.Parallel()
	c, to := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1}), redis(t)
	inCluster(c, 50)
	d := serve(t, clusterSite(c, to.URL())...)
	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "live", "--window", "10ms").want(t, 0, "phase live", "")
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	d.migrate("cancel").want(t, 0, "none", "cancelled")
	for i := range 50 {
		name := fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i)
		if got, want := c.NodeOf(name).Do("GET", name), fmt.Sprintf("user|i:%d;", i); got != want {
			t.Errorf("%s: got %q", name, got)
		}
	}
	for _, name := range left(c) {
		if !strings.HasPrefix(name, "sessile:mark:") {
			t.Errorf("%s is left", name)
		}
	}
	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "live", "--window", "10ms").want(t, 0, "phase live", "")
}

// TestALossThatAStepComesUpon empties a shard of the origin in live, where nobody reads from it. Whoever takes a step next is told,
// and goes on with the target.
func TestALossThatAStepComesUpon(t *testing.T) {
	t.Parallel()
	c, to := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1}), redis(t)
	inCluster(c, 60)
	d := serve(t, append(clusterSite(c, to.URL()), "--hold", "1s")...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic", "--to", "live", "--window", "10ms").want(t, 0, "", "")
	for _, n := range c.Primaries() {
		if n != c.NodeOf("sessile:mark:{8d0}") {
			n.Do("FLUSHALL")
			break
		}
	}
	if got := d.migrate("switchtraffic", "--to", "ramp-down"); got.code == 0 {
		t.Error("the step up is taken")
	}
	d.migrate("reversetraffic", "--to", "off").want(t, 2, "", "sessile migrate repair")
	d.migrate("repair", "--use", "target", "--reason", "flushed").want(t, 0, "phase ramp-down", "")
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	for i := range 60 {
		name := fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i)
		if got := d.dial().do("GET", name); got != fmt.Sprintf("user|i:%d;", i) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestAShardOfTheOriginComesBackEmpty kills a primary that has no replica and nothing on its disk, with users at work. Nobody
// is told that he is logged out, in whatever phase; in live a person goes on with the target, and then down again with all
// that it has.
func TestAShardOfTheOriginComesBackEmpty(t *testing.T) {
	t.Parallel()
	for phase, home := range map[string]bool{"off": true, "live": false} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			c, to := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1}), redis(t)
			inCluster(c, 60)
			d := serve(t, append(clusterSite(c, to.URL()), "--hold", "1s")...)
			d.migrate("create").want(t, 0, "", "")
			if phase != "off" {
				d.migrate("switchtraffic", "--to", phase, "--window", "10ms").want(t, 0, "", "")
			}
			began := time.Now()
			eventually(t, "the gateway is not young any more", func() bool { return time.Since(began) > 4*time.Second })
			victim := c.NodeOf("sessile:mark:{8d0}") // which has the mark that counts
			if !home {
				for _, n := range c.Primaries() {
					if n != victim {
						victim = n
						break
					}
				}
			}
			var done atomic.Bool
			var wg sync.WaitGroup
			var held atomic.Int64
			for u := range 8 {
				cl := d.dial()
				wg.Go(func() {
					for i := u; !done.Load(); i++ {
						n := i % 60
						if got := cl.do("GET", fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", n)); got == "$-1" {
							t.Error("logged out")
							return
						} else if got != fmt.Sprintf("user|i:%d;", n) {
							held.Add(1)
						}
					}
				})
			}
			victim.Kill()
			victim.Restart()
			c.WaitOK()
			eventually(t, "it says why nobody is served", func() bool { return strings.Contains(d.status().Serving, "sessile migrate repair") })
			if phase == "live" {
				d.migrate("repair", "--use", "target", "--reason", "no disk").want(t, 0, "phase ramp-down", "")
				d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
				for i := range 60 {
					name := fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i)
					if got := c.NodeOf(name).Do("GET", name); got != fmt.Sprintf("user|i:%d;", i) {
						t.Errorf("%s in the origin: %v", name, got)
					}
				}
			} else if held.Load() == 0 {
				t.Error("everybody was served")
			}
			done.Store(true)
			wg.Wait()
			if phase != "live" {
				d.migrate("repair", "--use", "origin", "--reason", "no disk").want(t, 0, "", "")
				lost := ""
				for i := range 60 {
					if name := fmt.Sprint("PHPREDIS_CLUSTER_SESSION:quiet", i); c.NodeOf(name) == victim {
						lost = name
					}
				}
				eventually(t, "it goes on with what there is", func() bool { return d.dial().do("GET", lost) == "$-1" })
			}
		})
	}
}
