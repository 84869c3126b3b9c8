package demo

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/gateway"
	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/redis"
)

// newSite is the demo's site with two gateways, each with connections of its own, on the target at a URL, whose servers the
// test can kill, restart and empty. The engines are as change has them.
func newSite(t *testing.T, at string, change func(*migrate.Options)) *world {
	t.Helper()
	var out bytes.Buffer
	w := &world{opt: Options{Visitors: 40, Err: &out}, began: time.Now(), dir: shortTemp(t)}
	w.change = func(o *migrate.Options, _ *gateway.Site) { change(o) }
	t.Cleanup(w.close)
	sessions := filepath.Join(w.dir, "sessions")
	if err := os.Mkdir(sessions, 0o700); err != nil {
		t.Fatal(err)
	}
	origin, err := file.Open(t.Context(), sessions, file.Options{Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(at + "?prefix=" + url.QueryEscape(prefix))
	if err != nil {
		t.Fatal(err)
	}
	w.origin = origin
	w.closers = append(w.closers, func() { origin.Close() })
	var addrs []string
	for range 2 {
		target, err := redis.Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		w.target = target
		w.closers = append(w.closers, func() { target.Close() })
		if err := w.startGateway(); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, w.addr)
	}
	w.traffic = &traffic{rec: recorder.New(), pace: 10 * time.Millisecond, times: map[string][]float64{}}
	phase := "test"
	w.traffic.phase.Store(&phase)
	w.through(shortLived(addrs...))
	w.logIn(t)
	if err := w.engine.Create(t.Context(), migrate.StepOptions{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// logIn has all visitors log in.
func (w *world) logIn(t *testing.T) {
	t.Helper()
	for i := range w.opt.Visitors {
		id := newID()
		w.traffic.members = append(w.traffic.members, id)
		if !w.traffic.page(t.Context(), 0, visit{id: id, login: fmt.Sprint("user", i)}) {
			t.Fatal("a login failed")
		}
	}
}

// shortLived is client with locks that end soon: one in Redis outlives the connection through which it was taken, as it
// should, and these tests cut many.
func shortLived(addrs ...string) func(worker int) handler {
	return func(worker int) handler {
		return &phpredis{addr: addrs[worker%len(addrs)], token: fmt.Sprint("test|", worker), life: "1500"}
	}
}

func (w *world) clicks(t *testing.T) (stop func()) {
	visitors, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 4) })
	return func() { leave(); wg.Wait() }
}

// comes waits until the workflow is in phase p and its step done.
func (w *world) comes(t *testing.T, p migrate.Phase) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		st := w.engine.Status(t.Context())
		if st.Phase == p && st.Step == "done" && st.Serving == "yes" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("phase %s, step %s, serving %s: never came to %s", st.Phase, st.Step, st.Serving, p)
		}
		(&site{}).stay(20 * time.Millisecond)
	}
}

// The target is killed, really, and comes back with its data, empty, or with an older copy of it, while people click.
func TestTheTargetIsKilledUnderLoad(t *testing.T) {
	for _, tc := range []struct {
		phase migrate.Phase
		how   string
		want  migrate.Phase
	}{
		{migrate.DualWrite, "empty", migrate.DualWrite},
		{migrate.Sync, "with its data", migrate.Sync},
		{migrate.Sync, "empty", migrate.DualWrite},
		{migrate.Live, "with its data", migrate.Live},
		{migrate.Live, "empty", migrate.DualWrite},
		{migrate.Live, "older", migrate.DualWrite},
		{migrate.RampDown, "with its data", migrate.RampDown},
		{migrate.RampDown, "with its data, late", migrate.RampDown}, // later than every lease
	} {
		t.Run(tc.phase.String()+" "+tc.how, func(t *testing.T) {
			t.Parallel()
			server := testserver.Redis(t, testserver.Persistent())
			w := newSite(t, server.URL()+"/0", func(*migrate.Options) {})
			(&site{world: w}).at(t, tc.phase)
			if tc.phase == migrate.Sync {
				(&site{world: w}).reconciled(t)
			}
			stop := w.clicks(t)
			defer stop()
			(&site{}).stay(500 * time.Millisecond)
			var copied string
			if tc.how == "older" {
				// A copy of its files, as an old backup is; what is written after it will be missing.
				copied = copyDir(t, server)
				(&site{}).stay(500 * time.Millisecond)
			}
			server.Kill()
			switch tc.how {
			case "empty":
				server.Wipe()
			case "older":
				server.Wipe()
				if err := os.CopyFS(server.Data(), os.DirFS(copied)); err != nil {
					t.Fatal(err)
				}
			}
			(&site{}).stay(300 * time.Millisecond)
			if strings.HasSuffix(tc.how, "late") {
				(&site{}).stay(5 * time.Second)
			}
			server.Restart()
			if tc.want == tc.phase {
				// Nothing was lost, so nothing changes: the phase is the same after everybody has looked.
				(&site{}).stay(3 * time.Second)
			}
			w.comes(t, tc.want)
			(&site{}).stay(500 * time.Millisecond)
			stop()
			for _, id := range w.traffic.members {
				w.traffic.page(t.Context(), 0, visit{id: id})
			}
			r := w.traffic.rec.Report()
			t.Logf("%d requests, %d failed, %+v", r.Requests, r.Failures, r)
			if r.Bad() {
				t.Errorf("%+v", r)
			}
			// And on from there.
			(&site{world: w}).at(t, migrate.RampDown)
			for _, id := range w.traffic.members {
				w.traffic.page(t.Context(), 0, visit{id: id})
			}
			if r := w.traffic.rec.Report(); r.Bad() {
				t.Errorf("on the way up again: %+v", r)
			}
		})
	}
}

// In ramp-down an empty target is refused: stale sessions of the origin are never served without a person's word.
func TestAnEmptyTargetInRampDownIsRefusedUntilSomebodyDecides(t *testing.T) {
	t.Parallel()
	server := testserver.Redis(t)
	w := newSite(t, server.URL()+"/0", func(*migrate.Options) {})
	(&site{world: w}).at(t, migrate.RampDown)
	server.Kill()
	server.Restart()
	h := client(w.addr)(0)
	defer h.close()
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		s, err := h.visit(ctx, visit{id: w.traffic.members[0]})
		cancel()
		if err == nil {
			t.Fatalf("answered %+v", s)
		}
	}
	if st := w.engine.Status(t.Context()); st.Serving == "yes" || st.Counters["alarms"] == 0 {
		t.Errorf("status: serving %q, %d alarms", st.Serving, st.Counters["alarms"])
	}
	if err := w.engine.Repair(t.Context(), "origin", migrate.StepOptions{Reason: "the target has no disk"}); err != nil {
		t.Fatal(err)
	}
	w.comes(t, migrate.DualWrite)
	for _, id := range w.traffic.members {
		w.traffic.page(t.Context(), 0, visit{id: id})
	}
	if r := w.traffic.rec.Report(); r.LoggedOut > 0 {
		t.Errorf("%+v", r)
	}
}

func copyDir(t *testing.T, server *testserver.RedisServer) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(server.Data())); err != nil {
		t.Fatal(err)
	}
	return dir
}
