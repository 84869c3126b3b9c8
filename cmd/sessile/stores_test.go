package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testapp"
)

// The session stores of express and of Django, which work together in every phase of a move from one Redis to another, up, back and up
// again, see what they see in Redis itself.
func TestSessionStoresMove(t *testing.T) {
	t.Parallel()
	from, to := redis(t), redis(t)
	d := serve(t, "--origin", from.URL(), "--target", to.URL(), "--lifetime", "1h")
	stores := []testapp.SessionStore{}
	for _, st := range testapp.SessionStores {
		switch st.Name {
		case "connect-redis on node-redis 6", "Django's cache sessions in django-redis":
			stores = append(stores, st)
		}
	}
	want := make([]string, len(stores))
	work := func(where, addr string) {
		t.Helper()
		t.Run(where, func(t *testing.T) {
			for i, st := range stores {
				t.Run(st.Name, func(t *testing.T) {
					t.Parallel()
					url := "redis://" + addr + "/0"
					saw := st.Run(t, testapp.Place{URL: url, Kept: url})[0]
					if want[i] == "" {
						want[i] = saw
					}
					if saw != want[i] || strings.Count(saw, "\n") < 15 {
						t.Errorf("it sees\n%s\nin Redis\n%s", saw, want[i])
					}
				})
			}
		})
	}
	work("Redis", redis(t).Addr)
	d.migrate("create").want(t, 0, "phase off", "")
	work("off", d.addr)
	for _, phase := range []string{"dual-write", "sync", "live", "ramp-down"} {
		d.migrate("switchtraffic", "--window", "300ms").want(t, 0, "phase "+phase, "")
		work(phase, d.addr)
	}
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	work("off again", d.addr)
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	work("complete", d.addr)
}

// Commands beyond those of a session are served where they are named, and only where nothing is moved.
func TestExtraCommands(t *testing.T) {
	t.Parallel()
	r := redis(t)
	d := serve(t, "--target", r.URL(), "--origin-key", "spring:", "--extra-commands", "HSET", "--extra-commands", "hgetall")
	c := d.dial()
	if got := c.do("HSET", "spring:a", "f", "v"); got != ":1" {
		t.Errorf("HSET: %s", got)
	}
	if got := c.list("HGETALL", "spring:a"); !slices.Equal(got, []string{"f", "v"}) {
		t.Errorf("HGETALL: %s", got)
	}
	if got := c.do("HGET", "spring:a", "f"); !strings.Contains(got, "'hget' is not served: a session is a string") {
		t.Errorf("HGET: %s", got)
	}
	refused := func(flags ...string) result {
		return run(t, nil, append([]string{"serve", "--listen", fmt.Sprint("redis://127.0.0.1:", port(t)), "--admin", "off", "--target", r.URL()}, flags...)...)
	}
	refused("--extra-commands", "EVAL").want(t, 1, "", `"EVAL" cannot be passed on`)
	refused("--extra-commands", "HSET", "--origin", redis(t).URL()).want(t, 2, "", "would not be moved")
}
