package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/redis"
)

// child is what the gateway that is killed is told.
type child struct {
	Dir, Redis, Listen string
	Arrow              string // kills itself when it comes to this arrow ...
	Times              int64  // ... for that many times; 0: never
}

const childEnv = "SESSILE_TEST_GATEWAY"

func TestMain(m *testing.M) {
	if told := os.Getenv(childEnv); told != "" {
		if err := runChild(told); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild is a gateway in a process of its own, until standard input ends.
func runChild(told string) error {
	var c child
	if err := json.Unmarshal([]byte(told), &c); err != nil {
		return err
	}
	ctx := context.Background()
	origin, err := file.Open(ctx, c.Dir, file.Options{Lifetime: lifetime})
	if err != nil {
		return err
	}
	u := &url.URL{Scheme: "redis", Host: c.Redis, Path: "/0", RawQuery: url.Values{"prefix": {prefix}}.Encode()}
	target, err := redis.Open(ctx, u)
	if err != nil {
		return err
	}
	var seen atomic.Int64
	engine, err := migrate.New(origin, target, migrate.Options{Workflow: "demo", Times: migrate.DefaultTimes(500 * time.Millisecond),
		Hooks: migrate.Hooks{Arrow: func(_ context.Context, arrow, _ string) {
			if c.Times > 0 && arrow == c.Arrow && seen.Add(1) == c.Times {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // it does not come back
			}
		}}})
	if err != nil {
		return err
	}
	server, err := gateway.New(gateway.Site{Name: "demo", Store: engine, Prefix: prefix, Lifetime: lifetime}, gateway.Options{})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(l) }()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return engine.Close()
}

// start starts the gateway's process and waits until it serves.
func (c child) start(t *testing.T) (died <-chan error, end func()) {
	t.Helper()
	told, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(told))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 6)
	if _, err := io.ReadFull(out, ready); err != nil {
		t.Fatalf("the gateway did not start: %v", err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	return gone, func() { in.Close() }
}

// A gateway is killed, really, at each arrow of each kind of operation in each phase, under load, and started again:
// nobody is logged out or back in, and no acknowledged page is lost.
func TestGatewayKilledAtEveryArrow(t *testing.T) {
	t.Parallel()
	arrows := map[migrate.Phase][]string{
		migrate.Off:       {"write"},
		migrate.DualWrite: {"write", "copy read", "copy"},
		migrate.Sync:      {"begin", "write", "commit", "touch", "touch origin"},
		migrate.Live:      {"read", "begin", "write", "commit", "touch", "touch origin"},
		migrate.RampDown:  {"read", "write ahead", "read origin", "write", "propagated", "touch"},
	}
	var out bytes.Buffer
	w, err := newWorld(t.Context(), Options{Err: &out, Out: &out, Visitors: 60})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	testserver.Need(t, "redis-server", w.redis != "")
	w.traffic.pace = 5 * time.Millisecond
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	c := child{Dir: filepath.Join(w.dir, "sessions"), Redis: w.redis, Listen: "127.0.0.1:" + port}

	phase := "test"
	w.traffic.phase.Store(&phase)
	w.through(shortLived(c.Listen))
	visitors, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 6) })
	defer wg.Wait()
	defer leave()

	step := func(to migrate.Phase) {
		t.Helper()
		// The command runs in a gateway of its own, which is gone again before anybody is killed: what a dead one
		// leaves is settled by its successor.
		e, err := migrate.New(w.origin, w.target, migrate.Options{Workflow: "demo", Times: migrate.DefaultTimes(500 * time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if err := e.Create(t.Context(), migrate.StepOptions{}); err != nil {
			t.Fatal(err)
		}
		opt := migrate.StepOptions{Force: true, Reason: "test", Window: time.Millisecond}
		if to == migrate.Complete {
			err = e.Complete(t.Context(), opt)
		} else {
			err = e.SwitchTraffic(t.Context(), to, opt)
		}
		if err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
	}
	for p := migrate.Off; p <= migrate.RampDown; p++ {
		died, end := c.start(t)
		step(p)
		end()
		<-died
		for _, arrow := range arrows[p] {
			c.Arrow, c.Times = arrow, 7
			died, end := c.start(t)
			select {
			case err := <-died:
				if err == nil {
					t.Errorf("%s: %s: it ended by itself", p, arrow)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("%s: the gateway never came to %q", p, arrow)
				end()
				<-died
			}
			c.Times = 0
			died, end = c.start(t)
			(&site{}).stay(400 * time.Millisecond)
			end()
			<-died
			r := w.traffic.rec.Report()
			t.Logf("%-10s killed at %-14s %6d requests, %5d failed, %d logged out, %d undone, %d lost", p, arrow, r.Requests, r.Failures, r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
		}
	}
	died, end := c.start(t)
	step(migrate.Complete)
	(&site{}).stay(300 * time.Millisecond)
	leave()
	wg.Wait()
	end()
	<-died
	if err := w.traffic.rec.Final("a plain client at the end", lookRedis(w.redis)); err != nil {
		t.Fatal(err)
	}
	if r := w.traffic.rec.Report(); r.Bad() || r.Requests-r.Failures < 1000 {
		t.Errorf("%+v", r)
	}
}
