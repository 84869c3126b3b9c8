package admin

import (
	"bytes"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

// Metrics are written in Prometheus' text format (version 0.0.4). No label is chosen by a client: sites come from the
// configuration, commands from the gateway's table.

// buckets are upper bounds of the latency histogram, in seconds.
var buckets = [...]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 10, 60}

// A Meter counts a gateway's commands. Its methods are called for every command, so they only add.
type Meter struct {
	commands sync.Map // name -> *commandMeter
	security sync.Map // kind -> *atomic.Uint64
}

type commandMeter struct {
	outcomes [store.OutcomeInvalid + 1]atomic.Uint64
	buckets  [len(buckets) + 1]atomic.Uint64
	nanos    atomic.Int64
}

// Done counts a command that was answered.
func (m *Meter) Done(command string, outcome store.Outcome, took time.Duration) {
	v, ok := m.commands.Load(command)
	if !ok {
		v, _ = m.commands.LoadOrStore(command, new(commandMeter))
	}
	c := v.(*commandMeter)
	c.outcomes[outcome].Add(1)
	i, _ := slices.BinarySearch(buckets[:], took.Seconds())
	c.buckets[i].Add(1)
	c.nanos.Add(int64(took))
}

// Security counts what no honest client does.
func (m *Meter) Security(kind string) {
	v, ok := m.security.Load(kind)
	if !ok {
		v, _ = m.security.LoadOrStore(kind, new(atomic.Uint64))
	}
	v.(*atomic.Uint64).Add(1)
}

// A Gauge is one number that a gateway knows at the moment. Its name begins after "sessile_gateway_"; one that ends in
// "_total" is a counter. Every site has the same ones in the same order.
type Gauge struct {
	Name, Help string
	Value      float64
}

// exposition is a page of metrics.
type exposition struct{ bytes.Buffer }

// sample writes one value of the family that was begun last; labels are names and values in turn.
type sample func(value float64, labels ...string)

// family writes a metric and its samples. A histogram's samples name their suffix themselves.
func (x *exposition) family(name, kind, help string, each func(sample)) {
	x.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
	each(func(value float64, labels ...string) { x.line(name, value, labels) })
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func (x *exposition) line(name string, value float64, labels []string) {
	x.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		x.WriteString(map[bool]string{true: "{", false: ","}[i == 0] + labels[i] + `="` + escapeLabel.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		x.WriteByte('}')
	}
	x.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

// metrics answers /metrics.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	statuses := make([]migrate.Status, len(s.sites))
	downs := make([]error, len(s.sites))
	var wg sync.WaitGroup
	for i, site := range s.sites {
		wg.Go(func() { statuses[i], downs[i] = site.recent(r.Context()) })
	}
	wg.Wait()

	x := new(exposition)
	x.family("sessile_build_info", "gauge", "The version that runs.", func(put sample) {
		put(1, "version", s.opt.Version, "go", runtime.Version())
	})
	x.family("sessile_goroutines", "gauge", "Goroutines of the process.", func(put sample) { put(float64(runtime.NumGoroutine())) })
	x.family("sessile_admin_refused_total", "counter", "Requests that the admin API refused.", func(put sample) { put(float64(s.refused.Load())) })
	x.family("sessile_ready", "gauge", "1 while the site serves, 0 while it holds.", func(put sample) {
		for i, site := range s.sites {
			put(map[bool]float64{true: 1}[downs[i] == nil], "site", site.Name)
		}
	})
	s.gatewayMetrics(x)
	s.commandMetrics(x)
	s.migrateMetrics(x, statuses)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(x.Bytes()) // a scraper that has gone needs no answer
}

func (s *Server) gatewayMetrics(x *exposition) {
	var names []string
	all := map[string][]Gauge{} // by site
	for _, site := range s.sites {
		if site.Gauges != nil {
			all[site.Name] = site.Gauges()
		}
	}
	for _, site := range s.sites {
		for i, g := range all[site.Name] {
			if slices.Contains(names, g.Name) {
				continue
			}
			names = append(names, g.Name)
			x.family("sessile_gateway_"+g.Name, map[bool]string{true: "counter", false: "gauge"}[strings.HasSuffix(g.Name, "_total")], g.Help, func(put sample) {
				for _, site := range s.sites {
					if gauges := all[site.Name]; i < len(gauges) {
						put(gauges[i].Value, "site", site.Name)
					}
				}
			})
		}
	}
}

func (s *Server) commandMetrics(x *exposition) {
	each := func(f func(site, command string, c *commandMeter)) {
		for _, site := range s.sites {
			if site.Meter == nil {
				continue
			}
			var names []string
			site.Meter.commands.Range(func(k, _ any) bool { names = append(names, k.(string)); return true })
			slices.Sort(names)
			for _, name := range names {
				c, _ := site.Meter.commands.Load(name)
				f(site.Name, name, c.(*commandMeter))
			}
		}
	}
	x.family("sessile_command_outcomes_total", "counter", "Commands by name and outcome.", func(put sample) {
		each(func(site, command string, c *commandMeter) {
			for outcome := range c.outcomes {
				if n := c.outcomes[outcome].Load(); n > 0 {
					put(float64(n), "site", site, "command", command, "outcome", store.Outcome(outcome).String())
				}
			}
		})
	})
	const seconds = "sessile_command_seconds"
	x.family(seconds, "histogram", "Time from a command's arrival to its answer.", func(sample) {
		each(func(site, command string, c *commandMeter) {
			total := uint64(0)
			for i := range c.buckets {
				total += c.buckets[i].Load()
				le := "+Inf"
				if i < len(buckets) {
					le = strconv.FormatFloat(buckets[i], 'g', -1, 64)
				}
				x.line(seconds+"_bucket", float64(total), []string{"site", site, "command", command, "le", le})
			}
			x.line(seconds+"_sum", time.Duration(c.nanos.Load()).Seconds(), []string{"site", site, "command", command})
			x.line(seconds+"_count", float64(total), []string{"site", site, "command", command})
		})
	})
	x.family("sessile_security_total", "counter", "What no honest client does.", func(put sample) {
		for _, site := range s.sites {
			if site.Meter == nil {
				continue
			}
			site.Meter.security.Range(func(kind, n any) bool {
				put(float64(n.(*atomic.Uint64).Load()), "site", site.Name, "kind", kind.(string))
				return true
			})
		}
	})
}

func (s *Server) migrateMetrics(x *exposition, statuses []migrate.Status) {
	each := func(f func(site string, st migrate.Status)) {
		for i, site := range s.sites {
			if site.Engine != nil {
				f(site.Name, statuses[i])
			}
		}
	}
	x.family("sessile_migrate_phase", "gauge", "1 for the phase that the workflow is in, 0 for the others; all 0 without a workflow.", func(put sample) {
		each(func(site string, st migrate.Status) {
			for p := migrate.Off; p <= migrate.Complete; p++ {
				put(map[bool]float64{true: 1}[st.Exists && st.Phase == p], "site", site, "phase", p.String())
			}
		})
	})
	for _, m := range []struct {
		name, help string
		of         func(migrate.Status) float64
	}{
		{"epoch", "The workflow's epoch.", func(st migrate.Status) float64 { return float64(st.Epoch) }},
		{"reconciled", "1 once the reconcile pass is done.", func(st migrate.Status) float64 { return map[bool]float64{true: 1}[st.Reconciled] }},
		{"debt_intents", "Strict writes that are under way or died.", func(st migrate.Status) float64 { return float64(st.Debt.Intents) }},
		{"debt_aheads", "Sessions in which the origin is behind.", func(st migrate.Status) float64 { return float64(st.Debt.Aheads) }},
		{"debt_oldest_seconds", "How long the oldest dead marker has been dead.", func(st migrate.Status) float64 { return float64(st.Debt.OldestMS) / 1000 }},
		{"leases", "Gateways with a lease.", func(st migrate.Status) (n float64) {
			for _, g := range st.Gateways {
				if g.LeaseMS > 0 {
					n++
				}
			}
			return n
		}},
		{"target_problem", "1 while the target cannot be asked.", func(st migrate.Status) float64 { return map[bool]float64{true: 1}[st.Problem != ""] }},
	} {
		x.family("sessile_migrate_"+m.name, "gauge", m.help, func(put sample) {
			each(func(site string, st migrate.Status) { put(m.of(st), "site", site) })
		})
	}
	x.family("sessile_migrate_job_sessions", "gauge", "Progress of backfill and reconcile.", func(put sample) {
		each(func(site string, st migrate.Status) {
			for name, j := range map[string]migrate.Job{"backfill": st.Backfill, "reconcile": st.Reconcile} {
				for what, n := range map[string]int64{"seen": j.Seen, "copied": j.Copied, "same": j.Same, "overdue": j.Overdue, "failed": j.Failed, "total": j.Total} {
					put(float64(n), "site", site, "job", name, "what", what)
				}
			}
		})
	})
	x.family("sessile_migrate_job_running", "gauge", "1 while the job runs.", func(put sample) {
		each(func(site string, st migrate.Status) {
			for name, j := range map[string]migrate.Job{"backfill": st.Backfill, "reconcile": st.Reconcile} {
				put(map[bool]float64{true: 1}[j.State == "running"], "site", site, "job", name)
			}
		})
	})
	counters := func(put sample, queued bool) {
		each(func(site string, st migrate.Status) {
			for name, n := range st.Counters {
				if (name == "copies_queued") == queued {
					put(float64(n), "site", site, "event", name)
				}
			}
		})
	}
	x.family("sessile_migrate_events_total", "counter", "What the engine has counted, by event.", func(put sample) { counters(put, false) })
	x.family("sessile_migrate_copies_queued", "gauge", "Copies to the target that wait, in dual-write.", func(put sample) {
		each(func(site string, st migrate.Status) { put(float64(st.Counters["copies_queued"]), "site", site) })
	})
}
