package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/redis"
)

// The ways in which another server becomes the primary.
const (
	planned = "planned" // SENTINEL FAILOVER
	killed  = "killed"  // the primary, with SIGKILL
	stopped = "stopped" // the primary, with SIGSTOP; it goes on when another one has its place
	behind  = "behind"  // killed, and its replicas have not got what it acknowledged last
)

// failOver makes another server the primary.
func failOver(t *testing.T, set *testserver.SentinelSet, how string) {
	t.Helper()
	old := set.WaitPrimary(nil)
	began := time.Now()
	switch how {
	case planned:
		set.Failover()
	case killed:
		old.Kill()
	case stopped:
		old.Pause()
	case behind:
		// What is in a replica's socket it reads when it goes on. After that it would connect again; but then nobody is there.
		replicas := set.ReplicasOf(old)
		for _, r := range replicas {
			r.Pause()
		}
		old.Do("CLIENT", "KILL", "TYPE", "replica")
		(&site{}).stay(400 * time.Millisecond)
		old.Kill()
		for _, r := range replicas {
			r.Resume()
		}
	}
	set.WaitPrimary(old)
	t.Logf("%s: another primary after %v", how, time.Since(began).Round(10*time.Millisecond))
	if how == stopped {
		old.Resume()
	}
}

// soak reports whether there is time for all cases.
func soak() bool { return os.Getenv("SESSILE_SOAK") != "" }

// newFailoverSite is newSite on a target that fails over, with the times that a workflow has by default.
func newFailoverSite(t *testing.T) (*world, *testserver.SentinelSet) {
	t.Helper()
	set := testserver.Sentinel(t, testserver.SentinelOptions{})
	w := newSite(t, set.URL(), func(o *migrate.Options) { o.Times = migrate.DefaultTimes(2 * time.Second) })
	return w, set
}

// judge ends the load and looks at every session once more, through the gateways and past them.
func (w *world) judge(t *testing.T, set *testserver.SentinelSet, stop func()) {
	t.Helper()
	stop()
	for _, id := range w.traffic.members {
		if !w.traffic.page(t.Context(), 0, visit{id: id, add: "last-" + id}) {
			t.Error("a page failed after everything")
		}
	}
	w.settled(t)
	look := lookFile(filepath.Join(w.dir, "sessions"))
	if w.engine.Status(t.Context()).Phase >= migrate.Live {
		look = lookRedis(set.WaitPrimary(nil).Addr)
	}
	if err := w.traffic.rec.Final("a plain client at the end", look); err != nil {
		t.Fatal(err)
	}
	r := w.traffic.rec.Report()
	t.Logf("%d requests, %d failed, %d logged out, %d logouts undone, %d updates lost", r.Requests, r.Failures, r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
	if r.Bad() || r.Requests < 150 {
		t.Errorf("%+v", r)
	}
}

// refused reports whether a person has to decide.
func (w *world) refused(t *testing.T) bool {
	return strings.Contains(w.engine.Status(t.Context()).Serving, "repair")
}

// repaired takes the origin for a target that has forgotten something in ramp-down. Until then nobody is answered.
func (w *world) repaired(t *testing.T) {
	t.Helper()
	h := client(w.addr)(0)
	defer h.close()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if s, err := h.visit(ctx, visit{id: w.traffic.members[0]}); err == nil {
		t.Errorf("answered %+v, and nobody has decided", s)
	}
	if n := w.engine.Counters()["alarms"]; n == 0 {
		t.Error("no alarm")
	}
	if err := w.engine.Repair(t.Context(), "origin", migrate.StepOptions{Reason: "the replicas were behind"}); err != nil {
		t.Fatal(err)
	}
	w.comes(t, migrate.DualWrite)
}

// await asks until ok, for as long as a failover and two leases may take.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); !ok(); (&site{}).stay(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// The target fails over under two gateways and load, in each phase, in each way. What the new primary has the workflow goes on
// with, where it was; and where it lacks something that is noticed, and the origin serves.
func TestTheTargetFailsOverUnderLoad(t *testing.T) {
	for _, p := range []migrate.Phase{migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown, migrate.Complete} {
		for _, how := range []string{planned, killed, stopped, behind} {
			name := p.String() + " " + how
			if !soak() && !slices.Contains([]string{"live planned", "live behind", "ramp-down stopped"}, name) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w, set := newFailoverSite(t)
				s := &site{world: w}
				s.at(t, min(p, migrate.RampDown))
				switch p {
				case migrate.Sync:
					s.reconciled(t)
				case migrate.Complete:
					if err := w.engine.Complete(t.Context(), migrate.StepOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				stop := w.clicks(t)
				defer stop()
				s.stay(500 * time.Millisecond)
				before := w.engine.Status(t.Context())
				failOver(t, set, how)
				switch {
				case how == behind && p == migrate.RampDown:
					await(t, "refused", func() bool { return w.refused(t) })
					w.repaired(t)
				case how == behind && p < migrate.Complete:
					await(t, "another epoch", func() bool { return w.engine.Status(t.Context()).Epoch > before.Epoch })
					w.comes(t, migrate.DualWrite)
				default:
					s.stay(time.Second)
					w.comes(t, p)
					if st := w.engine.Status(t.Context()); st.Epoch != before.Epoch || st.Reconciled != before.Reconciled {
						// A primary that hangs is replaced after 2.3 s and more, a lease lasts for 3.5 s: then they may retreat.
						t.Errorf("from epoch %d to %d", before.Epoch, st.Epoch)
					}
				}
				s.stay(500 * time.Millisecond)
				w.judge(t, set, stop)
			})
		}
	}
}

// The target fails over while the workflow takes a step, up or down, and while the reconcile pass runs. A command that fails is
// run again.
func TestTheTargetFailsOverDuringAStep(t *testing.T) {
	type step struct{ from, to migrate.Phase }
	var steps []step
	for p := migrate.Off; p < migrate.Complete; p++ {
		steps = append(steps, step{p, p + 1})
		if p > migrate.Off && p < migrate.RampDown {
			steps = append(steps, step{p + 1, p})
		}
	}
	for _, s := range steps {
		for _, how := range []string{planned, killed, behind} {
			if (s.to != migrate.RampDown || how != planned) && !soak() {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s, %s", s.from, s.to, how), func(t *testing.T) {
				w, set := newFailoverSite(t)
				(&site{world: w}).at(t, s.from)
				stop := w.clicks(t)
				defer stop()
				(&site{}).stay(500 * time.Millisecond)
				take := func() error {
					opt := migrate.StepOptions{Force: true, Reason: "test", Window: time.Millisecond}
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					switch {
					case s.to == migrate.Complete:
						return w.engine.Complete(ctx, opt)
					case s.to > s.from:
						return w.engine.SwitchTraffic(ctx, s.to, opt)
					}
					return w.engine.ReverseTraffic(ctx, s.to, opt)
				}
				taken := make(chan error, 1)
				go func() {
					(&site{}).stay(rand.N(600 * time.Millisecond))
					taken <- take()
				}()
				failOver(t, set, how)
				if how != behind {
					if err := <-taken; err != nil {
						t.Logf("the step: %v", err)
						if err := take(); err != nil {
							t.Fatalf("the step, once more: %v", err)
						}
					}
					w.comes(t, s.to)
				} else {
					await(t, "it serves, or is refused", func() bool {
						return w.refused(t) || w.engine.Status(t.Context()).Serving == "yes"
					})
					(&site{}).stay(4 * time.Second) // a lease
					if w.refused(t) {
						w.repaired(t)
					}
					t.Logf("the step: %v", <-taken)
					await(t, "it serves", func() bool { return w.engine.Status(t.Context()).Serving == "yes" })
				}
				(&site{}).stay(500 * time.Millisecond)
				w.judge(t, set, stop)
			})
		}
	}
}

// sticky are web servers among which each browser keeps to one: session_destroy of phpredis releases the lock before its DEL,
// and only the gateway that had the DEL knows what a page that came between must not bring back.
type sticky []fpm

func (s sticky) close() {}

func (s sticky) visit(ctx context.Context, v visit) (seen, error) {
	return s[int(v.id[0])%len(s)].visit(ctx, v)
}

// A real PHP site that is not on the move, with its own handler and two gateways, while Redis fails over in one way after the
// other.
func TestTheTargetFailsOverUnderPHP(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{})
	phpUsers(t, set.URL(), []string{planned, killed, stopped, behind}, func(how string) {
		old := set.WaitPrimary(nil)
		failOver(t, set, how)
		(&site{}).stay(time.Second)
		if how == killed || how == behind {
			old.Restart()
		}
		set.WaitOK()
	}, func(string) *testserver.RedisServer { return set.WaitPrimary(nil) })
}

// The same with a Cluster, of which one primary fails over.
func TestTheTargetIsAClusterUnderPHP(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
	const slot = 7777
	phpUsers(t, c.URL(), []string{planned, killed, stopped}, func(how string) {
		old := c.Node(slot)
		switch how {
		case planned:
			c.ReplicaOf(old).Do("CLUSTER", "FAILOVER")
		case killed:
			old.Kill()
		case stopped:
			old.Pause()
		}
		c.WaitPrimary(slot, old)
		(&site{}).stay(time.Second)
		switch how {
		case killed:
			old.Restart()
		case stopped:
			old.Resume()
		}
		c.WaitOK()
	}, c.NodeOf)
}

// phpUsers have their sessions in Redis at a URL while it fails over in those ways. at returns where a key is.
func phpUsers(t *testing.T, target string, ways []string, failOver func(how string), at func(key string) *testserver.RedisServer) {
	w := &world{opt: Options{Visitors: 200}, began: time.Now()}
	defer w.close()
	var sites []fpm
	for range 2 {
		u, err := url.Parse(target + "?prefix=" + url.QueryEscape(prefix))
		if err != nil {
			t.Fatal(err)
		}
		s, err := redis.Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		w.closers = append(w.closers, func() { s.Close() })
		if err := w.serve(gateway.Site{Name: "php", Prefix: prefix, Lifetime: lifetime, Store: s}); err != nil {
			t.Fatal(err)
		}
		sites = append(sites, newPHP(t, 4, onRedis(w.addr)))
	}
	w.traffic = &traffic{rec: recorder.New(), pace: 10 * time.Millisecond, times: map[string][]float64{}}
	w.through(func(int) handler { return sticky(sites) })
	phase := "before"
	w.traffic.phase.Store(&phase)
	w.logIn(t)
	stop := w.clicks(t)
	defer stop()
	failed := int64(0)
	if !soak() {
		ways = ways[:2]
	}
	for _, how := range ways {
		(&site{}).stay(500 * time.Millisecond)
		failOver(how)
		r := w.traffic.rec.Report()
		t.Logf("%s: %d requests so far, %d more failed", how, r.Requests, r.Failures-failed)
		if how == planned && r.Failures > 0 {
			t.Error("nothing was in flight to the old primary")
		}
		failed = r.Failures
	}
	stop()
	if err := w.traffic.rec.Final("a plain client at the end", func(id string) (bool, []string, error) {
		return lookRedis(at(prefix + id).Addr)(id)
	}); err != nil {
		t.Fatal(err)
	}
	r := w.traffic.rec.Report()
	if t.Logf("%+v", r); r.Bad() || r.Requests < 150 {
		t.Error("somebody noticed")
	}
}
