package testserver

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPHPRun(t *testing.T) {
	t.Parallel()
	p := PHP(t)
	for _, want := range []string{"", "plain", `tcp://h:1?database=2&prefix=A;B|~`, `it's "so" \ $x ${y}`} {
		got := p.Run(`<?php echo ini_get("session.save_path"), "|", $argv[1];`,
			map[string]string{"session.save_path": want}, "--arg")
		if got != want+"|--arg" {
			t.Errorf("Run: got %q, want %q", got, want+"|--arg")
		}
	}
	file := filepath.Join(t.TempDir(), "x.php")
	if err := writeScript(filepath.Dir(file), "x.php", "<?php echo 42;"); err != nil {
		t.Fatal(err)
	}
	if got := p.Run(file, nil); got != "42" {
		t.Errorf("Run of a file: got %q, want 42", got)
	}
	_, stderr, err := p.Try(t.Context(), `<?php fwrite(STDERR, "why"); exit(7);`, nil)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || stderr != "why" {
		t.Errorf("Try of exit(7): got %v, stderr %q", err, stderr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := p.Try(ctx, `<?php sleep(60);`, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Try beyond its context: got %v, want DeadlineExceeded", err)
	}
}

func TestPHPSessionInRedis(t *testing.T) {
	t.Parallel()
	r, p := Redis(t, WithPassword("bob", "p&w;")), PHP(t)
	p.Run(`<?php session_id("abc"); session_start(); $_SESSION["user"] = "alice";`, map[string]string{
		"session.save_handler": "redis",
		"session.save_path":    "tcp://" + r.Addr + "?auth[]=bob&auth[]=p%26w;&database=3",
	})
	if got := r.CLI("-n", "3", "GET", "PHPREDIS_SESSION:abc"); got != `user|s:5:"alice";` {
		t.Errorf("the session in Redis: got %q", got)
	}
}

func TestFPMGet(t *testing.T) {
	t.Parallel()
	s := FPM(t, FPMOptions{Ini: map[string]string{"user_agent": "a;b|c'd", "display_errors": "0"}})
	s.Script("echo.php", `<?php header("X-A: 1"); header("X-A: 2", false); setcookie("c", "v");
		echo $_GET["q"], "|", $_COOKIE["s"], "|", ini_get("user_agent"), "|", $_SERVER["REQUEST_URI"];`)
	s.Script("sub/dead.php", `<?php throw new Exception("so there");`)
	s.Script("big.php", `<?php echo str_repeat("0123456789", 100000), strlen($_COOKIE["s"]) + strlen($_GET["q"]);`)
	s.Script("gone.php", `<?php posix_kill(getmypid(), 9);`)

	get := func(script, query string, cookies map[string]string) *Response {
		t.Helper()
		resp, err := s.Get(t.Context(), script, query, cookies)
		if err != nil {
			t.Fatalf("Get(%q): %v", script, err)
		}
		return resp
	}
	resp := get("echo.php", "q=a%20b", map[string]string{"s": "x%00y", "t": "u"})
	if want := "a b|x\x00y|a;b|c'd|/echo.php?q=a%20b"; string(resp.Body) != want || resp.Status != 200 {
		t.Errorf("Get: got %d %q, want 200 %q", resp.Status, resp.Body, want)
	}
	if got := resp.Header.Values("X-A"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("X-A: got %q, want 1 and 2", got)
	}
	if got := resp.Header.Get("Set-Cookie"); got != "c=v" {
		t.Errorf("Set-Cookie: got %q, want c=v", got)
	}
	resp = get("/sub/dead.php", "", nil)
	if resp.Status != 500 || !strings.Contains(string(resp.Stderr)+s.Log(), "so there") {
		t.Errorf("an uncaught exception: got %d, stderr %q, log %q", resp.Status, resp.Stderr, s.Log())
	}
	if resp = get("no-such.php", "", nil); resp.Status != 404 {
		t.Errorf("a missing script: got %d, want 404", resp.Status)
	}
	// Parameters and answer of more than one record.
	long := strings.Repeat("x", 40000)
	resp = get("big.php", "q="+long, map[string]string{"s": long})
	if got := string(resp.Body[max(0, len(resp.Body)-15):]); got != "012345678980000" || len(resp.Body) != 1000005 {
		t.Errorf("a big page: got %d bytes ending in %q", len(resp.Body), got)
	}
	if _, err := s.Get(t.Context(), "big.php", "", map[string]string{"s": long + long}); err == nil {
		t.Error("Get with a cookie of 80000 bytes: got no error")
	}
	if resp, err := s.Get(t.Context(), "gone.php", "", nil); err == nil {
		t.Errorf("a worker that is killed: got %d %q, want an error", resp.Status, resp.Body)
	}
}

func TestFPMManyAtOnce(t *testing.T) {
	t.Parallel()
	r := Redis(t)
	s := FPM(t, FPMOptions{Workers: 3, Ini: map[string]string{
		"session.save_handler": "redis", "session.save_path": "tcp://" + r.Addr,
	}})
	s.Script("count.php", `<?php session_start(); echo $_SESSION["n"] = ($_SESSION["n"] ?? 0) + 1;`)
	var wg sync.WaitGroup
	for user := range 20 {
		wg.Go(func() {
			for n := 1; n <= 10; n++ {
				resp, err := s.Get(t.Context(), "count.php", "", map[string]string{"PHPSESSID": fmt.Sprint("user", user)})
				if err != nil {
					t.Errorf("Get: %v", err)
				} else if string(resp.Body) != fmt.Sprint(n) {
					t.Errorf("page %d of user %d: got %q", n, user, resp.Body)
				}
			}
		})
	}
	wg.Wait()
	if got := r.Do("DBSIZE"); got != int64(20) {
		t.Errorf("sessions in Redis: got %v, want 20", got)
	}
}

func TestFPMGetHonoursItsContext(t *testing.T) {
	t.Parallel()
	s := FPM(t, FPMOptions{Workers: 1})
	s.Script("sleep.php", `<?php sleep(60);`)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Get(ctx, "sleep.php", "", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get: got %v, want DeadlineExceeded", err)
	}
	s.Stop()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("Get and Stop: took %v", took)
	}
	if _, err := s.Get(t.Context(), "sleep.php", "", nil); err == nil {
		t.Error("Get after Stop: got no error")
	}
}

func TestFPMKeepsSessionsInItsOwnFolder(t *testing.T) {
	t.Parallel()
	s := FPM(t, FPMOptions{})
	s.Script("start.php", `<?php session_start(); $_SESSION["a"] = 1;`)
	if _, err := s.Get(t.Context(), "start.php", "", map[string]string{"PHPSESSID": "abc"}); err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(filepath.Join(s.dir, "sessions", "sess_abc")); len(found) != 1 {
		t.Errorf("sess_abc: got %q, want it in %s", found, s.dir)
	}
}
