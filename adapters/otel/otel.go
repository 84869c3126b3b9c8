// Package sessileotel makes spans of what is done with sessions, as children of the span of the request, for OpenTelemetry:
//
//	sessions, err := sessile.New[Cart](st, sessile.Options{Observe: sessileotel.Observe(otel.GetTracerProvider())})
//
// An operation is a span "session load", "session save" and so on; anything else (a conflict, a token that is none) is an event of the
// span that there is. Neither has the session's key, unless WithKeys is given, and never a token or a value.
package sessileotel

import (
	"context"

	"github.com/sessile/sessile"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// An Option of Observe.
type Option func(*observer)

// WithKeys has spans say which session they are about: "sessile.session.key", of which no cookie can be made.
func WithKeys() Option { return func(o *observer) { o.keys = true } }

type observer struct {
	tracer trace.Tracer
	keys   bool
}

// Observe returns a sessile.Options.Observe.
func Observe(p trace.TracerProvider, opts ...Option) func(ctx context.Context, e sessile.Event) {
	o := &observer{tracer: p.Tracer("github.com/sessile/sessile/adapters/otel")}
	for _, opt := range opts {
		opt(o)
	}
	return o.observe
}

func (o *observer) observe(ctx context.Context, e sessile.Event) {
	var attrs []attribute.KeyValue
	if o.keys && e.Key != "" {
		attrs = append(attrs, attribute.String("sessile.session.key", string(e.Key)))
	}
	if e.Start.IsZero() {
		span := trace.SpanFromContext(ctx)
		if e.Err != nil {
			attrs = append(attrs, attribute.String("error.message", e.Err.Error()))
		}
		span.AddEvent("session "+string(e.Kind), trace.WithAttributes(attrs...))
		return
	}
	_, span := o.tracer.Start(ctx, "session "+string(e.Kind), trace.WithTimestamp(e.Start), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))
	if e.Err != nil {
		span.RecordError(e.Err)
		span.SetStatus(codes.Error, e.Err.Error())
	}
	span.End(trace.WithTimestamp(e.Start.Add(e.Duration)))
}
