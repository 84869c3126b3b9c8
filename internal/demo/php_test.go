package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/recorder"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/redis"
)

// page is the application: whatever warning PHP's session code raises makes it fail, since that is how phpredis reports
// a write that was refused.
const page = `<?php
$problems = [];
set_error_handler(function ($no, $text) use (&$problems) { $problems[] = $text; return true; });
$ok = session_start();
$user = $_SESSION['user'] ?? '';
$cart = $_SESSION['cart'] ?? [];
$found = $user !== '';
if (isset($_GET['login'])) {
	$_SESSION['user'] = $_GET['login'];
	$_SESSION['cart'] = [];
} elseif (isset($_GET['logout'])) {
	session_destroy();
} elseif ($found && isset($_GET['add'])) {
	$_SESSION['cart'][] = $_GET['add'];
}
if (session_status() === PHP_SESSION_ACTIVE) {
	session_write_close();
}
if (!$ok || $problems) {
	http_response_code(500);
}
header('Content-Type: application/json');
echo json_encode(['found' => $found, 'items' => $cart, 'problems' => $problems]);
`

// fpm is a real PHP site.
type fpm struct{ *testserver.FPMServer }

func (f fpm) close() {}

func (f fpm) visit(ctx context.Context, v visit) (s seen, err error) {
	q := url.Values{}
	switch {
	case v.login != "":
		q.Set("login", v.login)
	case v.logout:
		q.Set("logout", "1")
	case v.add != "":
		q.Set("add", v.add)
	}
	r, err := f.Get(ctx, "page.php", q.Encode(), map[string]string{"PHPSESSID": v.id})
	if err != nil {
		return s, err
	}
	var answer struct {
		Found    bool
		Items    []string
		Problems []string
	}
	if err := json.Unmarshal(r.Body, &answer); err != nil {
		return s, fmt.Errorf("status %d: %s", r.Status, r.Body)
	}
	if r.Status != http.StatusOK {
		return s, fmt.Errorf("status %d: %s", r.Status, strings.Join(answer.Problems, "; "))
	}
	return seen{found: answer.Found, items: answer.Items, wrote: true}, nil
}

// newPHP starts one.
func newPHP(t *testing.T, workers int, ini map[string]string) fpm {
	t.Helper()
	ini["session.gc_maxlifetime"] = "1440"
	ini["session.gc_probability"] = "0"
	ini["session.use_strict_mode"] = "0"
	f := testserver.FPM(t, testserver.FPMOptions{Ini: ini, Workers: workers})
	f.Script("page.php", page)
	return fpm{f}
}

// onRedis is the configuration of a site with its sessions in Redis, by its own handler.
func onRedis(addr string) map[string]string {
	return map[string]string{"session.save_handler": "redis", "session.save_path": "tcp://" + addr,
		"redis.session.locking_enabled": "1", "redis.session.lock_retries": "500", "redis.session.lock_wait_time": "20000"}
}

// The move of a real PHP site: 9 php-fpm processes, 200 sessions, several requests of one browser at once; half of the
// servers on files while others use the gateway already, then all, every step of the ladder up and down and up again,
// and at the end PHP on Redis directly.
func TestPHPSiteMovesUnderLoad(t *testing.T) {
	sessions := filepath.Join(shortTemp(t), "s")
	if err := os.Mkdir(sessions, 0o700); err != nil {
		t.Fatal(err)
	}
	server := testserver.Redis(t)
	onFiles := newPHP(t, 4, map[string]string{"session.save_handler": "files", "session.save_path": sessions})

	w := &world{opt: Options{Visitors: 200}, began: time.Now()}
	defer w.close()
	var err error
	if w.origin, err = file.Open(t.Context(), sessions, file.Options{Lifetime: lifetime}); err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() { w.origin.Close() })
	u, err := url.Parse(server.URL() + "/0?prefix=" + url.QueryEscape(prefix))
	if err != nil {
		t.Fatal(err)
	}
	target, err := redis.Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() { target.Close() })
	w.target, w.redis = target, server.Addr
	if err := w.startGateway(); err != nil {
		t.Fatal(err)
	}
	onGateway := newPHP(t, 8, onRedis(w.addr))

	w.traffic = &traffic{rec: recorder.New(), pace: 10 * time.Millisecond, times: map[string][]float64{}}
	phase := "files"
	first := phase
	w.traffic.phase.Store(&first)
	w.through(func(int) handler { return onFiles })
	w.logIn(t)
	visitors, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.traffic.browse(visitors, 8) })
	defer wg.Wait()
	defer leave()
	failures := int64(0)
	enter := func(name string) {
		r := w.traffic.rec.Report()
		t.Logf("%-22s %6d requests, %d failed, %d logged out, %d undone, %d lost", phase, r.Requests, r.Failures-failures, r.LoggedOut, r.LogoutsUndone, r.LostUpdates)
		failures = r.Failures
		now := name
		phase = name
		w.traffic.phase.Store(&now)
	}
	stay := func(d time.Duration) { (&site{}).stay(d) }

	stay(500 * time.Millisecond)
	enter("half on the gateway")
	w.through(func(worker int) handler {
		if worker/10%2 == 0 {
			return onFiles
		}
		return onGateway
	})
	stay(1500 * time.Millisecond)
	enter("all on the gateway")
	w.through(func(int) handler { return onGateway })
	stay(time.Second)
	if err := w.engine.Create(t.Context(), migrate.StepOptions{}); err != nil {
		t.Fatal(err)
	}
	at := migrate.Off
	opt := migrate.StepOptions{Window: time.Second}
	for _, next := range []migrate.Phase{migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown, migrate.Live, migrate.Sync,
		migrate.DualWrite, migrate.Off, migrate.DualWrite, migrate.Sync, migrate.Live, migrate.RampDown} {
		enter(at.String() + " -> " + next.String())
		if next > at {
			err = w.engine.SwitchTraffic(t.Context(), next, opt)
		} else {
			err = w.engine.ReverseTraffic(t.Context(), next, opt)
		}
		if err != nil {
			t.Fatal(err)
		}
		at = next
		enter(at.String())
		stay(500 * time.Millisecond)
	}
	if err := w.engine.Complete(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	enter("complete")
	stay(500 * time.Millisecond)
	leave()
	wg.Wait()

	// Without the gateway: PHP's own handler finds every session where it would have put it.
	enter("directly on Redis")
	direct := newPHP(t, 4, onRedis(server.Addr))
	w.through(func(int) handler { return direct })
	for _, id := range w.traffic.members {
		if !w.traffic.page(t.Context(), 0, visit{id: id, add: "direct-" + id}) {
			t.Error("a page failed on Redis directly")
		}
	}
	enter("end")
	if err := w.traffic.rec.Final("a plain client at the end", func(id string) (bool, []string, error) {
		v, err := server.Try("GET", prefix+id)
		if err != nil || v == nil {
			return false, nil, err
		}
		user, items := parse([]byte(fmt.Sprint(v)))
		return user != "", items, nil
	}); err != nil {
		t.Fatal(err)
	}
	r := w.traffic.rec.Report()
	if r.Bad() || r.Requests < 1000 || r.Failures > 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("the report: %+v", r)
	for _, key := range strings.Fields(server.CLI("KEYS", "*")) {
		if !strings.HasPrefix(key, prefix) && key != "sessile:control" {
			t.Errorf("%q was left in the target", key)
		}
	}
}

// shortTemp is a temporary folder; php-fpm's configuration cannot hold every character of a test's name.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sessile-php-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
