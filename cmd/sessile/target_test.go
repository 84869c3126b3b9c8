package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/admin"
	"github.com/sessile/sessile/internal/testserver"
)

func (d *daemon) target(args ...string) result {
	d.t.Helper()
	return run(d.t, d.env, append([]string{"target"}, args...)...)
}

func (d *daemon) targetStatus() (st admin.TargetStatus) {
	d.t.Helper()
	r := d.target("status", "--json").want(d.t, 0, "", "")
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		d.t.Fatalf("%v: %s", err, r.stdout)
	}
	return st
}

// A primary is killed and is there again, empty, before any Sentinel has noticed. Nobody is told that he is logged out,
// until a person has decided, or the primary is a replica that still has the sessions.
func TestAPrimaryThatComesBackEmpty(t *testing.T) {
	for _, c := range []struct {
		way  string
		want string // what who was there before is answered
	}{
		{"refill", "there"},
		{"accept", "$-1"},
		{"replica", "there"},
	} {
		t.Run(c.way, func(t *testing.T) {
			t.Parallel()
			replicas := -1
			if c.way == "replica" {
				replicas = 1
			}
			set := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: replicas, Sentinels: 1, DownAfter: time.Minute})
			primary := set.Nodes[0]
			d, other := serve(t, "--target", set.URL()+"?replay=1m", "--hold", "1m"), serve(t, "--target", set.URL()+"?replay=1m", "--hold", "1m")
			clients := []*client{d.dial(), other.dial()}
			for i, who := range clients {
				if got := who.do("SETEX", fmt.Sprint("PHPREDIS_SESSION:id", i), "1440", "there"); got != "+OK" {
					t.Fatal(got)
				}
			}
			d.target("accept", "--reason", "x").want(t, 3, "", "nothing to decide")
			d.target("status").want(t, 0, "holding     no\n", "")
			// A gateway expects to be known when it has been registered for three seconds; a record begins with its beat.
			eventually(t, "the gateways have been registered for long enough", func() bool {
				records := primary.Do("HVALS", "sessile:gateways").([]any)
				for _, r := range records {
					var beat int
					if fmt.Sscan(fmt.Sprint(r), &beat); beat <= 12 {
						return false
					}
				}
				return len(records) == 2
			})
			if c.way == "replica" {
				set.Nodes[1].Pause() // it is cut off, or else it would be as empty at once
			}
			primary.Kill()
			primary.Wipe()
			primary.Restart()

			answers := make(chan string, len(clients))
			for i, who := range clients {
				go func() { answers <- who.do("GET", fmt.Sprint("PHPREDIS_SESSION:id", i)) }()
			}
			eventually(t, "both see it", func() bool { return d.targetStatus().Empty() && other.targetStatus().Empty() })
			seen := time.Now()
			r := d.target("status").want(t, 0, "holding     forgotten\n", "")
			for line := range strings.Lines(r.stdout) {
				if len(line) > 81 {
					t.Errorf("%d columns: %s", len(line)-1, line)
				}
			}
			if st := d.targetStatus(); st.HoldingMS == 0 || st.Forgotten != 1 || st.Remembered == 0 {
				t.Errorf("got %+v", st)
			}
			select {
			case got := <-answers:
				t.Fatalf("before anybody has decided: %s", got)
			default:
			}
			held := time.Since(seen)
			if c.way == "replica" {
				primary.Kill()
				set.Nodes[1].Resume()
				eventually(t, "a Sentinel fails over", func() bool {
					_, err := set.Sentinels[0].Try("SENTINEL", "FAILOVER", set.Name)
					return err == nil
				})
			} else {
				d.target(c.way, "--reason", "the disk is gone").want(t, 0, "holding     no\n", "")
				if !strings.Contains(d.Log(), "the disk is gone") {
					t.Errorf("the reason is not logged: %s", d.Log())
				}
			}
			for range clients {
				if got := <-answers; got != c.want {
					t.Errorf("a GET that was held is answered %q, want %q", got, c.want)
				}
			}
			if got := clients[0].do("SETEX", "PHPREDIS_SESSION:new", "1440", "x"); got != "+OK" {
				t.Errorf("afterwards: %s", got)
			}
			if st := d.targetStatus(); len(st.Holding) > 0 || st.HoldingMS != 0 || st.HeldMaxMS < held.Milliseconds() || st.Switches != 1 || c.way == "refill" && st.PutBack != 1 {
				t.Errorf("held for more than %v: got %+v", held, st)
			}
			d.target("refill", "--reason", "x").want(t, 3, "", "nothing to decide")
		})
	}
}

// The commands are there for sites that are moved, too, and say so where there is nothing for them.
func TestTheTargetOfAMove(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, Sentinels: 1})
	d := serve(t, site(sessions(t, 1), set.URL())...)
	d.target("status").want(t, 0, "gateways    1\n", "")
	d.target("accept", "--reason", "x").want(t, 3, "", "nothing to decide")
	one := serve(t, "--target", redis(t).URL())
	for _, args := range [][]string{{"status"}, {"refill", "--reason", "x"}, {"accept", "--reason", "x"}} {
		one.target(args...).want(t, 2, "", "does not fail over")
	}
}
