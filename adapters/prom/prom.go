// Package prom counts the events of sessions for Prometheus:
//
//	observe, err := prom.Observe(prometheus.DefaultRegisterer)
//	sessions, err := sessile.New[Cart](st, sessile.Options{Observe: observe})
//
// There are two metrics:
//
//	sessile_session_events_total{event, outcome}   counter: what has happened; outcome is ok, absent, conflict, unavailable, unknown ... (store.Outcome)
//	sessile_session_duration_seconds{event}        histogram: how long operations took, their calls of the store included
//
// Labels have neither sessions nor users.
package prom

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
)

// Observe registers the metrics, and returns what counts: a sessile.Options.Observe. Several managers may have the same.
func Observe(reg prometheus.Registerer) (func(ctx context.Context, e sessile.Event), error) {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sessile_session_events_total", Help: "What has happened to sessions, by its outcome.",
	}, []string{"event", "outcome"})
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sessile_session_duration_seconds", Help: "How long operations on sessions took, their calls of the store included.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 3},
	}, []string{"event"})
	for _, c := range []prometheus.Collector{events, durations} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("prom: %w", err)
		}
	}
	return func(_ context.Context, e sessile.Event) {
		events.WithLabelValues(string(e.Kind), outcome(e.Err)).Inc()
		if !e.Start.IsZero() {
			durations.WithLabelValues(string(e.Kind)).Observe(e.Duration.Seconds())
		}
	}, nil
}

// outcome is one of few words.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, sessile.ErrGone):
		return "gone"
	case errors.Is(err, sessile.ErrTooMany):
		return "too many"
	}
	return store.OutcomeOf(err).String()
}
