package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// workers are writers, each with a session and a client of its own, whose writes are numbered.
type workers struct {
	mu           sync.Mutex
	acked, tried []int // the last number of each user
	wg           sync.WaitGroup
	stop         context.CancelFunc
	quiet        sync.RWMutex // held for writing while nobody is to write
}

// atWork starts n users, who go to one gateway or another.
func atWork(t *testing.T, n int, gateways ...*daemon) *workers {
	ctx, stop := context.WithCancel(t.Context())
	u := &workers{acked: make([]int, n), tried: make([]int, n), stop: stop}
	for i := range n {
		var clients []*client
		for _, d := range gateways {
			clients = append(clients, d.dial())
		}
		u.wg.Go(func() {
			for number := 1; ctx.Err() == nil; number++ {
				u.quiet.RLock()
				u.mu.Lock()
				u.tried[i] = number
				u.mu.Unlock()
				got := clients[rand.IntN(len(clients))].do("SETEX", userKey(i), "1440", strconv.Itoa(number))
				if got == "+OK" {
					u.mu.Lock()
					u.acked[i] = number
					u.mu.Unlock()
				}
				u.quiet.RUnlock()
				if strings.HasPrefix(got, "closed") {
					t.Errorf("user %d: %s", i, got)
					return
				}
				time.Sleep(50 * time.Millisecond) // longer than a copy takes: what always differs is a difference
			}
		})
	}
	t.Cleanup(u.end)
	return u
}

func userKey(i int) string { return fmt.Sprint("PHPREDIS_SESSION:user", i) }

func (u *workers) end() {
	u.stop()
	u.wg.Wait()
}

// writes waits until each user has had a write acknowledged that began later.
func (u *workers) writes(t *testing.T, when string) {
	t.Helper()
	u.mu.Lock()
	from := append([]int(nil), u.tried...)
	u.mu.Unlock()
	eventually(t, "everybody writes, "+when, func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		for i := range from {
			if u.acked[i] <= from[i] {
				return false
			}
		}
		return true
	})
}

// read checks that what a gateway answers is not older than what was acknowledged, nor anything that nobody wrote.
func (u *workers) read(t *testing.T, when string, gateways ...*daemon) {
	t.Helper()
	u.quiet.Lock()
	defer u.quiet.Unlock()
	for g, d := range gateways {
		c := d.dial()
		for i := range u.acked {
			got := c.do("GET", userKey(i))
			if n, err := strconv.Atoi(got); err != nil || n < u.acked[i] || n > u.tried[i] {
				t.Errorf("%s, gateway %d: user %d has %q, was answered %d and has sent %d", when, g, i, got, u.acked[i], u.tried[i])
			}
		}
	}
}

// left returns the names of ours that a cluster holds because of a move.
func left(c *testserver.ClusterSet) (names []string) {
	for _, n := range c.Primaries() {
		for _, key := range n.Do("KEYS", "sessile:*").([]any) {
			if name := key.(string); !strings.HasPrefix(name, "sessile:gateways") { // who is there, workflow or not
				names = append(names, name)
			}
		}
	}
	return names
}

// TestTheMoveToACluster goes up, all the way down, and up to the end, with users at work and slots that are moved while both
// stores are compared.
func TestTheMoveToACluster(t *testing.T) {
	t.Parallel()
	const slots = 300 // that are moved
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	dir := sessions(t, 500)
	a, b := serve(t, site(dir, c.URL())...), serve(t, site(dir, c.URL())...)
	a.migrate("plan").want(t, 0, "500 sessions in the origin", "")
	a.migrate("create").want(t, 0, "phase off", "")
	u := atWork(t, 12, a, b)

	life, stop := context.WithCancel(t.Context())
	moved := make(chan int, 1)
	go func() {
		n := 0
		for from, to := c.Nodes[0], c.Nodes[1]; life.Err() == nil; from, to = to, from {
			for slot := 0; slot < slots && life.Err() == nil; slot++ {
				c.MoveSlots(from, to, slot)
				n++
			}
		}
		moved <- n
	}()
	// Sessions that the target alone has, in slots that are on the move, are found and removed before it answers.
	var stray []string
	for i := 0; len(stray) < 60; i++ {
		name := fmt.Sprint("PHPREDIS_SESSION:stray", i)
		if c.Slot(name) < slots {
			stray = append(stray, name)
		}
	}
	for _, to := range []string{"dual-write", "sync", "live"} {
		eventually(t, "phase "+to, func() bool { // the gate into sync may find a copy under way three times
			return a.migrate("switchtraffic", "--to", to, "--window", "100ms").code == 0
		})
		u.writes(t, "in "+to)
		u.read(t, "in "+to, a, b)
		if to == "dual-write" {
			for _, name := range stray {
				eventually(t, "a stray session is there", func() bool {
					_, err := c.NodeOf(name).Try("SET", name, "x", "EX", "1000")
					return err == nil // and not MOVED
				})
			}
		}
	}
	for _, name := range stray {
		if got := a.dial().do("GET", name); got != "$-1" {
			t.Errorf("%s was missed: %q", name, got)
		}
	}
	eventually(t, "a diff without differences", func() bool { return a.migrate("diff").code == 0 }) // a copy may be on its way
	stop()
	if n := <-moved; n < 40 {
		t.Errorf("only %d slots were moved", n)
	}
	if st := a.status(); st.Phase != migrate.Live {
		t.Errorf("status: got %+v", st)
	}
	c.WaitOK()
	b.migrate("switchtraffic").want(t, 0, "phase ramp-down", "")
	u.writes(t, "in ramp-down")
	u.read(t, "in ramp-down", a, b)
	b.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	u.writes(t, "back in off")
	u.read(t, "back in off", a, b)
	b.migrate("cancel").want(t, 0, "none", "cancelled")
	eventually(t, "the gateways have left", func() bool { return len(left(c)) == 0 })
	if n := c.NodeOf("PHPREDIS_SESSION:id7").Do("EXISTS", "PHPREDIS_SESSION:id7"); n != int64(0) {
		t.Error("cancel leaves a session")
	}

	a.migrate("create").want(t, 0, "phase off", "")
	a.migrate("switchtraffic", "--to", "ramp-down", "--window", "100ms").want(t, 0, "phase ramp-down", "")
	u.writes(t, "in ramp-down again")
	a.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	u.writes(t, "in complete")
	u.read(t, "in complete", a, b)
	u.end()
	plain := serve(t, "--target", c.URL(), "--origin-key", "PHPREDIS_SESSION:")
	u.read(t, "without the origin", plain)
	if got := plain.dial().do("GET", key); got != `user|s:3:"007";` {
		t.Errorf("a session that nobody used: %q", got)
	}
	for _, name := range left(c) {
		if !strings.HasPrefix(name, "sessile:control") && !strings.HasPrefix(name, "sessile:leases") {
			t.Errorf("complete leaves %q", name)
			break
		}
	}
}

// TestAPrimaryOfTheTargetGoes kills a primary in each phase in which the target matters, with users at work. Whatever the
// gateways make of it, nobody loses what was acknowledged, and the move comes to its end.
func TestAPrimaryOfTheTargetGoes(t *testing.T) {
	t.Parallel()
	for phase, home := range map[string]bool{"sync": false, "live": true, "ramp-down": false} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			c := testserver.Cluster(t, testserver.ClusterOptions{NodeTimeout: time.Second})
			dir := sessions(t, 100)
			a, b := serve(t, site(dir, c.URL())...), serve(t, site(dir, c.URL())...)
			a.migrate("create").want(t, 0, "phase off", "")
			a.migrate("switchtraffic", "--to", phase, "--window", "100ms").want(t, 0, "phase "+phase, "")
			u := atWork(t, 12, a, b)
			u.writes(t, "before")

			control := "sessile:control{8d0}" // what there is once is with it
			victim := c.NodeOf(control)
			for _, n := range c.Primaries() {
				if !home && n != c.NodeOf(control) {
					victim = n
				}
			}
			// What it has acknowledged and not sent to its replica yet it takes with it. In ramp-down that is for a person.
			if phase == "ramp-down" {
				u.quiet.Lock()
				offset := func(n *testserver.RedisServer) any {
					return n.Do("ROLE").([]any)[map[bool]int{true: 1, false: 4}[n == victim]]
				}
				replica := c.ReplicaOf(victim)
				eventually(t, "the replica is in step", func() bool { return offset(victim) == offset(replica) })
			}
			victim.Kill()
			gone := time.Now()
			if phase == "ramp-down" {
				u.quiet.Unlock()
			}
			u.writes(t, "a primary was killed")
			t.Logf("everybody has written %v after the primary was killed, in phase %s", time.Since(gone).Round(10*time.Millisecond), a.status().Phase)
			u.read(t, "a primary was killed", a, b)
			a.migrate("switchtraffic", "--to", "ramp-down", "--window", "100ms").want(t, 0, "phase ramp-down", "")
			u.writes(t, "in ramp-down")
			a.migrate("complete", "--yes").want(t, 0, "phase complete", "")
			u.writes(t, "in complete")
			u.read(t, "in complete", a, b)
			if t.Failed() {
				t.Log(a.Log())
			}
		})
	}
}
