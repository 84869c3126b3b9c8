package prom_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sessile/sessile"
	"github.com/sessile/sessile/adapters/prom"
	"github.com/sessile/sessile/store/memory"
)

func Test(t *testing.T) {
	reg := prometheus.NewRegistry()
	observe, err := prom.Observe(reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prom.Observe(reg); err == nil {
		t.Error("registered twice")
	}
	sessions, err := sessile.New[int](memory.New(memory.Options{}), sessile.Options{Observe: observe, Cookie: sessile.Cookie{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	handler := sessions.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil {
			err = s.Update(func(n *int) error { *n++; return nil })
		}
		if err != nil {
			t.Error(err)
		}
	}))
	cookie := ""
	for range 3 {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", cookie)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if cookies := w.Result().Cookies(); len(cookies) > 0 {
			cookie = cookies[0].Name + "=" + cookies[0].Value
		}
	}
	want := `
# HELP sessile_session_events_total What has happened to sessions, by its outcome.
# TYPE sessile_session_events_total counter
sessile_session_events_total{event="create",outcome="ok"} 1
sessile_session_events_total{event="load",outcome="ok"} 2
sessile_session_events_total{event="save",outcome="ok"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "sessile_session_events_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(reg, "sessile_session_duration_seconds"); n != 3 {
		t.Errorf("%d histograms", n)
	}
}
