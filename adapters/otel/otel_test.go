package sessileotel_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sessile/sessile"
	sessileotel "github.com/sessile/sessile/adapters/otel"
	"github.com/sessile/sessile/store/memory"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func Test(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	sessions, err := sessile.New[int](memory.New(memory.Options{}), sessile.Options{Observe: sessileotel.Observe(provider, sessileotel.WithKeys()), Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	handler := sessions.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil {
			err = s.Login(r.Context(), "alice")
		}
		if err != nil {
			t.Error(err)
		}
	}))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", "session=junk")
	ctx, request := provider.Tracer("test").Start(r.Context(), "request")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r.WithContext(ctx))
	request.End()
	ended := spans.Ended()
	if len(ended) != 2 || ended[0].Name() != "session login" || ended[0].Parent().SpanID() != request.SpanContext().SpanID() || !ended[0].EndTime().After(ended[0].StartTime()) {
		t.Fatalf("%v", ended)
	}
	if events := ended[1].Events(); len(events) != 1 || events[0].Name != "session refused" {
		t.Errorf("%v", events)
	}
	token := w.Result().Cookies()[0].Value
	for _, a := range ended[0].Attributes() {
		if a.Key != "sessile.session.key" || strings.Contains(a.Value.AsString(), token) {
			t.Errorf("%s: %s", a.Key, a.Value.AsString())
		}
	}
}
