package admin

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store"
)

// No label is chosen by a client: sites come from the configuration, commands from the gateway's table.

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
// "_total" is a counter. Sites that have one of the same name give it the same help.
type Gauge struct {
	Name, Help string
	Value      float64
}

// metricsHandler returns what answers /metrics, from a registry of its own.
func (s *Server) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sessile_build_info", Help: "The version that runs.",
			ConstLabels: prometheus.Labels{"version": s.opt.Version, "go": runtime.Version()}}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sessile_goroutines", Help: "Goroutines of the process."},
			func() float64 { return float64(runtime.NumGoroutine()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sessile_admin_refused_total", Help: "Requests that the admin API refused."},
			func() float64 { return float64(s.refused.Load()) }),
	)
	for _, site := range s.sites {
		reg.MustRegister(collector{site}) // one each, as the registry asks them at the same time
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: s.http.ErrorLog})
}

// collector shows a site to Prometheus.
type collector struct{ *Site }

// Describe names nothing, which makes the registry check what Collect sends instead: only the gateway knows its gauges.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s collector) Collect(ch chan<- prometheus.Metric) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sessile_"+name, help, labels, prometheus.Labels{"site": s.Name})
	}
	// family returns what sends a value with those labels. It is a counter where the name says so.
	family := func(name, help string, labels ...string) func(value float64, labels ...string) {
		d, kind := desc(name, help, labels...), prometheus.GaugeValue
		if strings.HasSuffix(name, "_total") {
			kind = prometheus.CounterValue
		}
		return func(value float64, labels ...string) { ch <- prometheus.MustNewConstMetric(d, kind, value, labels...) }
	}

	// Others get the answer, too, for half a second: a scraper that goes away must not make it a failure.
	st, down := s.recent(context.Background())
	family("ready", "1 while the site serves, 0 while it holds.")(oneIf(down == nil))
	if s.Gauges != nil {
		for _, g := range s.Gauges() {
			family("gateway_"+g.Name, g.Help)(g.Value)
		}
	}
	if s.Meter != nil {
		outcomes := family("command_outcomes_total", "Commands by name and outcome.", "command", "outcome")
		seconds := desc("command_seconds", "Time from a command's arrival to its answer.", "command")
		s.Meter.commands.Range(func(k, v any) bool {
			command, c := k.(string), v.(*commandMeter)
			for outcome := range c.outcomes {
				if n := c.outcomes[outcome].Load(); n > 0 {
					outcomes(float64(n), command, store.Outcome(outcome).String())
				}
			}
			total, upTo := uint64(0), map[float64]uint64{}
			for i, bound := range buckets {
				total += c.buckets[i].Load()
				upTo[bound] = total
			}
			total += c.buckets[len(buckets)].Load()
			ch <- prometheus.MustNewConstHistogram(seconds, total, time.Duration(c.nanos.Load()).Seconds(), upTo, command)
			return true
		})
		security := family("security_total", "What no honest client does.", "kind")
		s.Meter.security.Range(func(kind, n any) bool {
			security(float64(n.(*atomic.Uint64).Load()), kind.(string))
			return true
		})
	}
	if s.Engine == nil {
		return
	}

	phase := family("migrate_phase", "1 for the phase that the workflow is in, 0 for the others; all 0 without a workflow.", "phase")
	for p := migrate.Off; p <= migrate.Complete; p++ {
		phase(oneIf(st.Exists && st.Phase == p), p.String())
	}
	leases := 0
	for _, g := range st.Gateways {
		if g.LeaseMS > 0 {
			leases++
		}
	}
	family("migrate_epoch", "The workflow's epoch.")(float64(st.Epoch))
	family("migrate_reconciled", "1 once the reconcile pass is done.")(oneIf(st.Reconciled))
	family("migrate_debt_intents", "Strict writes that are under way or died.")(float64(st.Debt.Intents))
	family("migrate_debt_aheads", "Sessions in which the origin is behind.")(float64(st.Debt.Aheads))
	family("migrate_debt_oldest_seconds", "How long the oldest dead marker has been dead.")(float64(st.Debt.OldestMS) / 1000)
	family("migrate_leases", "Gateways with a lease.")(float64(leases))
	family("migrate_target_problem", "1 while the target cannot be asked.")(oneIf(st.Problem != ""))
	sessions := family("migrate_job_sessions", "Progress of backfill and reconcile.", "job", "what")
	running := family("migrate_job_running", "1 while the job runs.", "job")
	for name, j := range map[string]migrate.Job{"backfill": st.Backfill, "reconcile": st.Reconcile} {
		running(oneIf(j.State == "running"), name)
		for what, n := range map[string]int64{"seen": j.Seen, "copied": j.Copied, "same": j.Same, "overdue": j.Overdue, "failed": j.Failed, "total": j.Total} {
			sessions(float64(n), name, what)
		}
	}
	events := family("migrate_events_total", "What the engine has counted, by event.", "event")
	for name, n := range st.Counters {
		if name != "copies_queued" { // which goes down, too
			events(float64(n), name)
		}
	}
	family("migrate_copies_queued", "Copies to the target that wait, in dual-write.")(float64(st.Counters["copies_queued"]))
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
