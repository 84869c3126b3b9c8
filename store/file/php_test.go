package file_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
)

const phpIncrement = `for ($i = 0; $i < (int)$argv[2]; $i++) {
	session_id($argv[1]); session_start(); $_SESSION["n"] = ($_SESSION["n"] ?? 0) + 1; session_write_close();
}`

// increment does what such a page does, through the store.
func increment(s store.Store, key, token string) error {
	if err := s.Lock(ctx, key, token, time.Minute); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	n := 0
	rec, err := s.Load(ctx, key)
	if err != nil && !errors.Is(err, store.ErrAbsent) {
		return fmt.Errorf("load: %w", err)
	}
	fmt.Sscanf(string(rec.Data), "n|i:%d;", &n)
	if err := s.Save(ctx, key, record(fmt.Sprintf("n|i:%d;", n+1)), store.Always); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if held, err := s.Unlock(ctx, key, token); !held || err != nil {
		return fmt.Errorf("unlock: held %v, %w", held, err)
	}
	return nil
}

// PHP beside the store, on one session: no increment is lost, and without the flock some are.
func TestIncrementsBesidePHP(t *testing.T) {
	const pages, each = 3, 300
	run := func(dir string, stderr io.Writer) (got, want int) {
		s := open(t, dir)
		var processes, workers sync.WaitGroup
		var ours atomic.Int64
		over := make(chan struct{})
		for p := range pages {
			cmd := php(t, 0, dir, phpIncrement, "k", fmt.Sprint(each))
			cmd.Stderr = stderr
			processes.Go(func() {
				if err := cmd.Run(); err != nil {
					t.Errorf("php: %v", err)
				}
			})
			workers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-over:
						return
					default:
					}
					if err := increment(s, "k", fmt.Sprint(p, "-", i)); err != nil {
						t.Error(err)
						return
					}
					ours.Add(1)
				}
			})
		}
		processes.Wait()
		close(over)
		workers.Wait()
		rec, err := s.Load(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Sscanf(string(rec.Data), "n|i:%d;", &got)
		return got, pages*each + int(ours.Load())
	}
	if got, want := run(t.TempDir(), os.Stderr); got != want {
		t.Errorf("got %d increments, want %d", got, want)
	} else {
		t.Logf("%d by PHP, %d by the store", pages*each, want-pages*each)
	}
	t.Run("without the flock it shows", func(t *testing.T) {
		defer guard.Disable(guard.Flock)()
		for range 20 {
			if got, want := run(t.TempDir(), nil); got != want {
				return
			}
		}
		t.Error("nothing was lost: the test shows nothing")
	})
}

func TestPHPAndTheStoreReadEachOther(t *testing.T) {
	for name, user := range map[string]int{"PHP as root": 0, "PHP as www-data in Debian's directory": www} {
		t.Run(name, func(t *testing.T) {
			dir := debian(t)
			s := open(t, dir, func(o *file.Options) { o.Owner = &file.Owner{UID: user, GID: user} })
			wantErr(t, "Save", s.Save(ctx, "abc", record(`user|s:5:"alice";`), store.Always), nil)
			const page = `session_id("abc"); session_start(); echo json_encode($_SESSION); $_SESSION = ["n" => 7];`
			if got := phpOut(t, user, dir, page); got != `{"user":"alice"}` {
				t.Errorf("PHP: got %s", got)
			}
			wantData(t, s, "abc", "n|i:7;")
			if rec, err := s.Load(ctx, "abc"); err != nil || time.Until(rec.Expires) < lifetime-time.Minute || time.Until(rec.Expires) > lifetime {
				t.Errorf("got %v, %v", rec.Expires, err)
			}
			wantErr(t, "Save", s.Save(ctx, "abc", record(`n|i:123456789;`), store.IfVersion(store.VersionOf([]byte("n|i:7;"), 0))), nil)
			if got := phpOut(t, user, dir, page); got != `{"n":123456789}` {
				t.Errorf("PHP: got %s", got)
			}
			// In strict mode PHP asks whether there is a session at all.
			strict := `ini_set("session.use_strict_mode", "1"); session_id("abc"); session_start(); echo session_id() === "abc" ? "kept" : "new";`
			if got := phpOut(t, user, dir, strict); got != "kept" {
				t.Errorf("strict mode: got %s", got)
			}
			if existed, err := s.Delete(ctx, "abc", store.Always); !existed || err != nil {
				t.Errorf("Delete: got %v, %v", existed, err)
			}
			if got := phpOut(t, user, dir, strict); got != "new" {
				t.Errorf("strict mode after Delete: got %s", got)
			}
			phpOut(t, user, dir, `session_id("visitor"); session_start();`)
			wantData(t, s, "visitor", "")
			phpOut(t, user, dir, `session_id("visitor"); session_start(); session_destroy();`)
			_, err := s.Load(ctx, "visitor")
			wantErr(t, "Load after session_destroy", err, store.ErrAbsent)
		})
	}
	t.Run("levels", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(dir+"/a/,", 0o700); err != nil {
			t.Fatal(err)
		}
		depth, mode, path, err := file.ParseSavePath("2;0640;" + dir)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, path, func(o *file.Options) { o.Depth, o.Mode = depth, mode })
		wantErr(t, "Save", s.Save(ctx, "a,b", record(`n|i:1;`), store.Always), nil)
		if got := phpOut(t, 0, "2;0640;"+dir, `session_id("a,b"); session_start(); echo $_SESSION["n"]; $_SESSION["n"] = 2;`); got != "1" {
			t.Errorf("PHP: got %s", got)
		}
		wantData(t, s, "a,b", "n|i:2;")
	})
}

// What PHP refuses this store refuses with an owner, and what the store makes PHP takes.
func TestPlantedSessionIsRefused(t *testing.T) {
	dir := debian(t)
	asUser(t, 34, func() { put(t, dir+"/sess_planted", `user|s:5:"admin";`) })
	s := open(t, dir, func(o *file.Options) { o.Owner = &file.Owner{UID: www, GID: www} })
	_, err := s.Load(ctx, "planted")
	var refused *store.RefusedError
	if !errors.As(err, &refused) || refused.Reason != "foreign owner" {
		t.Errorf("got %v, want refused for its owner", err)
	}
}

func TestStoreWaitsForAPage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	cmd := php(t, 0, dir, `session_id("k"); session_start(); echo "in"; flush(); fgets(STDIN); $_SESSION["n"] = 1;`)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Read(make([]byte, 2))
	_, err := s.Load(within(t, 20*time.Millisecond), "k")
	wantErr(t, "Load while the page runs", err, store.ErrUnavailable)
	loaded := make(chan string)
	go func() {
		rec, err := s.Load(ctx, "k")
		loaded <- fmt.Sprint(string(rec.Data), err)
	}()
	eventually(t, "Load waits", func() bool { return s.Waiting("k") == 1 })
	fmt.Fprintln(in)
	cmd.Wait()
	if got := <-loaded; got != "n|i:1;<nil>" {
		t.Errorf("Load after the page: got %s", got)
	}
}

// PHP waits for our lock on a session that is not there, and we write nothing: its own write must not be lost.
func TestPageThatWaitsForALockOnNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
	cmd := php(t, 0, dir, `session_id("k"); session_start(); $_SESSION["n"] = 1;`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "PHP waits", func() bool {
		link, _ := os.ReadFile("/proc/locks")
		return strings.Contains(string(link), fmt.Sprintf("-> FLOCK  ADVISORY  WRITE %d ", cmd.Process.Pid))
	})
	s.Unlock(ctx, "k", "t")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	wantData(t, s, "k", "n|i:1;")
}
