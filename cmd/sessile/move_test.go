package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
	"github.com/sessile/sessile/store/memory"
)

func metrics(t testing.TB, d *daemon) string {
	t.Helper()
	resp, err := http.Get("http://" + d.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const key = "PHPREDIS_SESSION:id7"

// TestTheWholeMove is the walk of the README, with a look at what is printed where.
func TestTheWholeMove(t *testing.T) {
	r := redis(t)
	dir := sessions(t, 300)
	d := serve(t, site(dir, r.URL())...)
	c := d.dial()
	reads := func() {
		t.Helper()
		if got := c.do("GET", key); got != `user|s:3:"007";` {
			t.Fatalf("the session is %q", got)
		}
	}
	reads()
	d.migrate("switchtraffic").want(t, 2, "", "sessile migrate create")
	d.migrate("status").want(t, 0, "none", "")
	d.migrate("plan").want(t, 0, "300 sessions in the origin", "")
	if p := isJSON(t, d.migrate("plan", "--json").want(t, 0, "", "")); p["sessions"] != 300.0 || p["target_ok"] != true {
		t.Errorf("plan: got %v", p)
	}
	if n := r.Do("DBSIZE"); n != int64(0) {
		t.Errorf("plan wrote %v keys", n)
	}
	d.migrate("create", "--dry-run").want(t, 0, "would create", "")
	for range 2 {
		d.migrate("create").want(t, 0, "workflow default: phase off, epoch", "")
	}
	d.migrate("plan").want(t, 0, "exists already", "")
	dry := d.migrate("switchtraffic", "--dry-run", "--json").want(t, 0, `"dry_run": true`, "")
	isJSON(t, dry)
	if st := d.status(); st.Phase != migrate.Off {
		t.Fatalf("a dry run went to %s", st.Phase)
	}
	d.migrate("switchtraffic").want(t, 0, "workflow default: phase dual-write", "in phase dual-write")
	reads()
	d.migrate("stop").want(t, 0, "phase dual-write", "backfill")
	d.migrate("start", "--rate", "0").want(t, 0, "phase dual-write", "backfill")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "workflow default: phase ramp-down", "sealed the origin")
	reads()
	if got := c.do("SET", key, "new", "EX", "100"); got != "+OK" {
		t.Fatal(got)
	}
	eventually(t, "the origin follows", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "sess_id7"))
		return string(b) == "new"
	})
	d.migrate("switchtraffic", "--to", "ramp-down").want(t, 0, "phase ramp-down", "in phase ramp-down")
	d.migrate("switchtraffic").want(t, 2, "", "sessile migrate complete")
	d.migrate("complete").want(t, 2, "", "say --yes")

	// Back, to the very beginning.
	d.migrate("reversetraffic", "--json").want(t, 0, `"phase": "live"`, "in phase live")
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "in phase dual-write")
	if got := c.do("GET", key); got != "new" {
		t.Errorf("back in off: %q", got)
	}
	d.migrate("cancel", "--dry-run").want(t, 0, "", "")
	d.migrate("cancel").want(t, 0, "none", "cancelled")
	d.migrate("cancel").want(t, 0, "none", "no workflow")
	if got := r.Do("GET", key); got != nil {
		t.Errorf("after cancel the target holds %q", got)
	}

	// And all the way.
	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "live", "--window", "10ms").want(t, 0, "phase live", "")
	if rep := isJSON(t, d.migrate("diff", "--json").want(t, 0, "", "")); rep["compared"] != 300.0 {
		t.Errorf("diff: got %v", rep)
	}
	r.Do("SET", "PHPREDIS_SESSION:stranger", "x", "EX", "1000")
	d.migrate("diff", "--rounds", "1").want(t, 3, "1 extra", "")
	if rep := isJSON(t, d.migrate("diff", "--rounds", "1", "--json").want(t, 3, "", "")); rep["extra"] != 1.0 {
		t.Errorf("diff: got %v", rep)
	}
	d.migrate("diff", "--repair").want(t, 0, "1 copied again", "")
	d.migrate("switchtraffic").want(t, 0, "phase ramp-down", "")
	for range 2 {
		d.migrate("complete", "--yes").want(t, 0, "phase complete", "may now be pointed at the target")
	}
	d.migrate("reversetraffic").want(t, 2, "", "no way back")
	if got := c.do("GET", key); got != "new" {
		t.Errorf("complete: %q", got)
	}
	if got := r.Do("GET", key); got != "new" {
		t.Errorf("directly: %q", got)
	}
	if text := metrics(t, d); !strings.Contains(text, `sessile_migrate_phase{phase="complete",site="default"} 1`) || !strings.Contains(text, `sessile_command_outcomes_total{command="GET",outcome="ok",site="default"}`) {
		t.Errorf("metrics: %s", text)
	}
	if code := d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("got exit code %d: %s", code, d.Log())
	}
	// The origin is no longer needed: a plain gateway serves what is there.
	plain := serve(t, "--target", r.URL(), "--origin-key", "PHPREDIS_SESSION:")
	if got := plain.dial().do("GET", key); got != "new" {
		t.Errorf("without the origin: %q", got)
	}
	plain.migrate("status").want(t, 2, "", "nothing to move")
}

func TestAPlainGatewayRefusesATargetInTheMiddleOfAMove(t *testing.T) {
	r := redis(t)
	d := serve(t, site(sessions(t, 3), r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	args := []string{"serve", "--target", r.URL(), "--listen", fmt.Sprintf("redis://127.0.0.1:%d", port(t)), "--admin", "off"}
	run(t, nil, args...).want(t, 1, "", "in the middle of a move: workflow \"default\" is in phase off")
	d.migrate("cancel").want(t, 0, "", "")
	plain := serve(t, "--target", r.URL())
	if got := plain.dial().do("GET", "x"); got != "$-1" {
		t.Errorf("after cancel: %q", got)
	}
}

func TestAPlainGatewayWaitsForATargetThatIsDown(t *testing.T) {
	r := redis(t)
	r.Stop()
	d := serve(t, "--target", r.URL(), "--lifetime", "1h", "--hold", "0s")
	if got := d.dial().do("SET", "x", "y"); got == "+OK" {
		t.Error("a write without a target was acknowledged")
	}
	resp, err := http.Get("http://" + d.admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("readyz: %s", resp.Status)
	}
	r.Restart()
	eventually(t, "the target serves", func() bool { return d.dial().do("SET", "x", "y") == "+OK" })
}

func TestAPlainGatewayThatFindsAMoveLater(t *testing.T) {
	r := testserver.Redis(t, testserver.Persistent())
	d := serve(t, site(sessions(t, 3), r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	d.stop(syscall.SIGTERM)
	r.Stop()
	plain := serve(t, "--target", r.URL(), "--lifetime", "1h", "--hold", "0s")
	r.Restart()
	eventually(t, "it says why it does not serve", func() bool {
		if got := plain.dial().do("SET", "x", "y"); got == "+OK" {
			t.Fatal("it serves a target in the middle of a move")
		}
		return strings.Contains(plain.Log(), "in the middle of a move")
	})
}

func TestATargetThatIsDownAtTheStart(t *testing.T) {
	r := redis(t)
	r.Stop()
	dir := sessions(t, 10)
	d := serve(t, site(dir, r.URL())...)
	if got := d.dial().do("GET", key); got != `user|s:3:"007";` {
		t.Errorf("phase off, the target down: %q", got)
	}
	d.migrate("plan").want(t, 4, "the target cannot be asked", "")
	isJSON(t, d.migrate("plan", "--json").want(t, 4, "", ""))
	d.migrate("status").want(t, 4, "problem", "")
	isJSON(t, d.migrate("status", "--json").want(t, 4, "", ""))
	d.migrate("create").want(t, 4, "", "the target cannot be asked")
	r.Restart()
	eventually(t, "the target is back", func() bool { return d.migrate("plan").code == 0 })
	d.migrate("create").want(t, 0, "phase off", "")
}

func TestClosedGates(t *testing.T) {
	r := redis(t)
	dir := sessions(t, 20)
	d := serve(t, site(dir, r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic").want(t, 0, "", "")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // PHP that does not know of the gateway
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				os.WriteFile(filepath.Join(dir, "sess_id3"), fmt.Append(nil, "n|i:", i, ";"), 0o600)
			}
		}
	})
	closed := d.migrate("switchtraffic", "--window", "500ms").want(t, 3, "", "foreign writers")
	if closed.stdout != "" || !strings.Contains(closed.stderr, "remedy:") {
		t.Errorf("got %+v", closed)
	}
	m := isJSON(t, d.migrate("switchtraffic", "--window", "500ms", "--json").want(t, 3, `"gates"`, ""))
	if m["exit"] != 3.0 || m["error"] == nil {
		t.Errorf("got %v", m)
	}
	d.migrate("switchtraffic", "--window", "500ms", "--force", "--reason", "it is only the cron job").want(t, 0, "phase sync", "")
	close(stop)
	wg.Wait()
	st := d.status()
	if i := slices.IndexFunc(st.Log, func(e migrate.LogEntry) bool { return e.Reason == "it is only the cron job" }); i < 0 || !slices.Contains(st.Log[i].Forced, "foreign writers") {
		t.Errorf("the reason is not recorded: %+v", st.Log)
	}
}

func TestTimeoutAndInterrupt(t *testing.T) {
	r := redis(t)
	d := serve(t, site(sessions(t, 5), r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic").want(t, 0, "", "")
	d.migrate("switchtraffic", "--to", "live", "--window", "10ms", "--soak", "1h", "--timeout", "300ms").want(t, 1, "", "not done within 300ms")

	cmd := command(t, d.env, "migrate", "switchtraffic", "--soak", "1h", "--window", "10ms", "--json")
	interrupt := func() { time.Sleep(500 * time.Millisecond); cmd.Process.Signal(syscall.SIGINT) }
	isJSON(t, finish(t, cmd, interrupt).want(t, 130, `"exit": 130`, "")) // and stdout is JSON even so
	d.migrate("switchtraffic", "--window", "10ms").want(t, 0, "phase sync", "")
}

// TestTwoTerminals: the same command at the same time, and one up while the other goes down.
func TestTwoTerminals(t *testing.T) {
	r := redis(t)
	d := serve(t, site(sessions(t, 50), r.URL())...)
	both := func(a, b []string) (ra, rb result) {
		t.Helper()
		var wg sync.WaitGroup
		wg.Go(func() { ra = d.migrate(a...) })
		wg.Go(func() { rb = d.migrate(b...) })
		wg.Wait()
		return ra, rb
	}
	same := func(phase string, args ...string) {
		t.Helper()
		a, b := both(args, args)
		a.want(t, 0, phase, "")
		b.want(t, 0, phase, "")
	}
	same("phase off", "create")
	same("phase ramp-down", "switchtraffic", "--to", "ramp-down", "--window", "50ms")
	same("phase sync", "reversetraffic", "--to", "sync")
	both([]string{"switchtraffic", "--to", "live"}, []string{"reversetraffic", "--to", "off"})
	if st := d.status(); st.Phase != migrate.Live && st.Phase != migrate.Off || st.Step != "done" {
		t.Errorf("got %s, %s", st.Phase, st.Step)
	}
	same("phase ramp-down", "switchtraffic", "--to", "ramp-down", "--window", "50ms")
	same("phase complete", "complete", "--yes")
	if got := d.dial().do("GET", key); got != `user|s:3:"007";` {
		t.Errorf("at the end: %q", got)
	}
}

// TestKilledHalfWay kills the command again and again, and the gateway once, and each time runs it again.
func TestKilledHalfWay(t *testing.T) {
	r := testserver.Redis(t, testserver.Persistent())
	dir := sessions(t, 200)
	args := site(dir, r.URL())
	d := serve(t, args...)
	d.migrate("create").want(t, 0, "", "")
	ladder := func(name, to string, after ...time.Duration) {
		t.Helper()
		run := []string{"migrate", name, "--to", to, "--window", "200ms"}
		for _, wait := range after {
			cmd := command(t, d.env, run...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			cmd.Process.Kill()
			cmd.Wait()
			if got := d.dial().do("GET", key); got != `user|s:3:"007";` {
				t.Fatalf("after a kill: %q", got)
			}
		}
		d.migrate(run[1:]...).want(t, 0, "phase "+to, "")
	}
	ms := func(n ...int) (all []time.Duration) {
		for _, n := range n {
			all = append(all, time.Duration(n)*time.Millisecond)
		}
		return all
	}
	ladder("switchtraffic", "ramp-down", ms(20, 60, 150, 400, 700, 1500, 2300)...)
	ladder("reversetraffic", "off", ms(20, 60, 100, 150)...)
	ladder("switchtraffic", "sync", ms(300, 1200)...)

	// The gateway dies with the command in it.
	cmd := command(t, d.env, "migrate", "switchtraffic", "--to", "ramp-down", "--soak", "1h")
	kill := func() { time.Sleep(500 * time.Millisecond); d.cmd.Process.Kill() }
	finish(t, cmd, kill).want(t, 4, "", "run the command again")
	d.wait()
	d.start(args...)
	ladder("switchtraffic", "ramp-down")
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	if got := r.Do("GET", key); got != `user|s:3:"007";` {
		t.Errorf("at the end: %q", got)
	}
}

// TestPlanWithoutAGateway: the stores themselves, with a Redis user that may not write.
func TestPlanWithoutAGateway(t *testing.T) {
	r := testserver.Redis(t, testserver.WithConf("user reader on >"+secret+" ~* &* -@all +@read +@connection +info +evalsha +eval +script"))
	dir := sessions(t, 30)
	flags := site(dir, strings.Replace(r.URL(), "redis://", "redis://reader:"+secret+"@", 1))
	before := listing(t, dir)
	p := run(t, nil, append([]string{"migrate", "plan"}, flags...)...).want(t, 0, "30 sessions in the origin", "--target has a password in it")
	if strings.Contains(p.stdout+p.stderr, secret) {
		t.Errorf("a password is shown: %+v", p)
	}
	if m := isJSON(t, run(t, nil, append([]string{"migrate", "plan", "--json"}, flags...)...).want(t, 0, "", "")); m["sessions"] != 30.0 {
		t.Errorf("got %v", m)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("plan changed the origin: %s, before %s", after, before)
	}
	r.Do("SET", "PHPREDIS_SESSION:x", "y", "EX", "100")
	run(t, nil, append([]string{"migrate", "plan"}, flags...)...).want(t, 3, "in the way", "")
	r.Do("DEL", "PHPREDIS_SESSION:x")
	r.Do("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
	run(t, nil, append([]string{"migrate", "plan"}, flags...)...).want(t, 3, "noeviction", "")

	// While a move is going on it takes no part in it.
	r.Do("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
	d := serve(t, site(dir, r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic", "--to", "sync", "--window", "10ms").want(t, 0, "", "")
	run(t, nil, append([]string{"migrate", "plan"}, flags...)...).want(t, 0, "exists already, in phase sync", "")
	if st := d.status(); st.Phase != migrate.Sync || len(st.Gateways) != 1 || st.Counters["retreats"] != 0 {
		t.Errorf("plan took part: %+v", st)
	}
}

// An engine that only looks takes no lease, and does not retreat for want of one.
func TestWhoOnlyLooksTakesNoPart(t *testing.T) {
	origin, target := memory.New(memory.Options{}), memory.New(memory.Options{})
	opt := migrate.Options{Times: migrate.DefaultTimes(50 * time.Millisecond)}
	opt.Times.RetreatAfter = time.Millisecond
	e, err := migrate.New(origin, target, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx := t.Context()
	if err := errors.Join(e.Create(ctx, migrate.StepOptions{}), e.SwitchTraffic(ctx, migrate.Sync, migrate.StepOptions{Window: time.Millisecond})); err != nil {
		t.Fatal(err)
	}
	before, err := origin.Mark(ctx)
	if err != nil {
		t.Fatal(err)
	}
	looking, err := migrate.New(readOrigin{origin}, readTarget{target}, opt)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // many times what an engine with the right to write would need
	if _, err := looking.Plan(ctx); err != nil {
		t.Error(err)
	}
	if err := looking.Close(); err != nil {
		t.Error(err)
	}
	after, err := origin.Mark(ctx)
	leases, err2 := target.Workflow("default").Leases(ctx)
	if after != before || len(leases) != 1 || errors.Join(err, err2) != nil {
		t.Errorf("got mark %+v, leases %v, %v, %v; want %+v and one lease", after, leases, err, err2, before)
	}
}

// listing is a directory's contents as text.
func listing(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, e.Name(), info.Size(), info.ModTime(), info.Mode())
	}
	return b.String()
}

func TestSeveralSites(t *testing.T) {
	r := redis(t)
	path, wiki := filepath.Join(t.TempDir(), "sessile.yaml"), port(t)
	d := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: fmt.Sprintf("127.0.0.1:%d", port(t))}
	if err := os.WriteFile(path, fmt.Appendf(nil, `
admin: %s
log-format: text
sites:
  - name: shop
    listen: redis://%s
    origin: file://%s?lifetime=1440s
    origin-key: "PHPREDIS_SESSION:"
    target: %s/1
    bound: 200ms
  - name: wiki
    listen: redis://127.0.0.1:%d
    target: "%s/1?prefix=wiki:"
    lifetime: 1h
`, d.admin, d.addr, sessions(t, 10), r.URL(), wiki, r.URL()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.cmd = command(t, nil, "serve", "--config", path)
	d.launch()
	d.env = []string{"SESSILE_CONFIG=" + path} // where admin is said, too
	d.migrate("status").want(t, 2, "", "which site is meant? --site takes one of shop, wiki")
	d.migrate("status", "--site", "blog").want(t, 2, "", "it has shop, wiki")
	d.migrate("create", "--site", "wiki").want(t, 2, "", "nothing to move")
	d.migrate("create", "--site", "shop").want(t, 0, "workflow shop: phase off", "")
	// The plain site beside it is none of that move's business, though it lies in the same database.
	d.stop(syscall.SIGTERM)
	d.cmd = command(t, nil, "serve", "--config", path)
	d.launch()
	other := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", wiki)}
	if c := other.dial(); c.do("SET", "x", "y") != "+OK" || c.do("GET", "x") != "y" {
		t.Error("the plain site does not serve")
	}
}

func TestWatch(t *testing.T) {
	r := redis(t)
	d := serve(t, site(sessions(t, 5), r.URL())...)
	cmd := command(t, d.env, "migrate", "status", "--watch", "--json")
	got := finish(t, cmd, func() { time.Sleep(2500 * time.Millisecond); cmd.Process.Signal(syscall.SIGINT) }).want(t, 0, "", "")
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if len(lines) < 2 {
		t.Errorf("got %d lines", len(lines))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %q", line)
		}
	}
}

// TestOnATerminal: complete asks, and progress is a bar.
func TestOnATerminal(t *testing.T) {
	r := redis(t)
	d := serve(t, site(sessions(t, 3000), r.URL())...)
	d.migrate("create").want(t, 0, "", "")
	d.migrate("switchtraffic").want(t, 0, "", "")
	d.migrate("stop").want(t, 0, "", "")
	on := func(answer string, args ...string) (code int, screen string) {
		t.Helper()
		terminal, side := pty(t)
		cmd := command(t, append(d.env, "TERM=xterm"), append([]string{"migrate"}, args...)...)
		var stdout bytes.Buffer
		cmd.Stdin, cmd.Stderr, cmd.Stdout = side, side, &stdout
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		side.Close()
		var b bytes.Buffer
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(&b, terminal) }() // ends with EIO when nobody has the other side
		if _, err := io.WriteString(terminal, answer); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		<-done
		return cmd.ProcessState.ExitCode(), b.String()
	}
	d.migrate("start", "--rate", "1").want(t, 0, "", "") // slow enough to be seen
	lifted := make(chan struct{})
	go func() {
		defer close(lifted)
		time.Sleep(3 * time.Second)
		d.migrate("start", "--rate", "0")
	}()
	if code, screen := on("", "switchtraffic", "--to", "ramp-down", "--window", "10ms"); code != 0 || !strings.Contains(screen, "in phase ramp-down") {
		t.Errorf("got exit code %d, %q", code, screen)
	}
	<-lifted
	if code, screen := on("no\n", "complete"); code != 2 || !strings.Contains(screen, "Type the workflow's name (default)") {
		t.Errorf("another name: got exit code %d, %q", code, screen)
	}
	if st := d.status(); st.Phase != migrate.RampDown {
		t.Fatalf("got %s", st.Phase)
	}
	if code, screen := on("default\n", "complete"); code != 0 || !strings.Contains(screen, "may now be pointed") {
		t.Errorf("the name: got exit code %d, %q", code, screen)
	}
}

// pty opens a terminal and returns both of its sides.
func pty(t testing.TB) (terminal, side *os.File) {
	t.Helper()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { terminal.Close() })
	n, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	side, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return terminal, side
}
