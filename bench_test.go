package sessile_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/redis"
)

type page struct {
	UID, Name, Text string
	N               int
}

// BenchmarkRequest is what a session costs beside a request without one ("none").
func BenchmarkRequest(b *testing.B) {
	mem := memory.New(memory.Options{})
	red, err := redis.Connect(b.Context(), redis.Options{Addr: testserver.Redis(b).Addr, Prefix: "s:"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { red.Close() })
	for name, st := range map[string]store.Store{"memory": mem, "Redis": red, "near": mem} {
		opt := sessile.Options{Cookie: sessile.Cookie{Insecure: true}}
		if name == "near" {
			opt.Near = time.Hour
		}
		m, err := sessile.New[page](st, opt)
		if err != nil {
			b.Fatal(err)
		}
		get := func(w http.ResponseWriter, r *http.Request) *sessile.Session[page] {
			s, err := m.Get(r)
			if err != nil {
				b.Fatal(err)
			}
			return s
		}
		fill := func(p *page) error {
			p.UID, p.Name, p.Text = strings.Repeat("u", 36), "alice", strings.Repeat("t", 900)
			p.N++
			return nil
		}
		for what, h := range map[string]http.HandlerFunc{
			"none":   func(w http.ResponseWriter, r *http.Request) {},
			"read":   func(w http.ResponseWriter, r *http.Request) { _ = get(w, r).Value().N },
			"modify": func(w http.ResponseWriter, r *http.Request) { _ = get(w, r).Update(fill) },
		} {
			handler := m.Handler(h)
			if what == "none" {
				handler = h
			}
			first := httptest.NewRecorder()
			m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = get(w, r).Update(fill) })).ServeHTTP(first, httptest.NewRequest("GET", "/", nil))
			r := httptest.NewRequest("GET", "/", nil)
			for _, c := range first.Result().Cookies() {
				r.AddCookie(c)
			}
			b.Run(name+"/"+what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					handler.ServeHTTP(discard{}, r)
				}
			})
		}
	}
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
