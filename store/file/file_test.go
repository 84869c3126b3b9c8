package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("FILE_TEST_SAVE_FOR_EVER"); dir != "" {
		saveForEver(dir)
	}
	goleak.VerifyTestMain(m)
}

const lifetime = 1440 * time.Second

var ctx = context.Background()

// open opens dir and closes it after the test.
func open(t testing.TB, dir string, opts ...func(*file.Options)) *file.Store {
	t.Helper()
	opt := file.Options{Lifetime: lifetime, Logger: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		o(&opt)
	}
	s, err := file.Open(ctx, dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func depth(n int) func(*file.Options) { return func(o *file.Options) { o.Depth = n } }

func record(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(lifetime)}
}

func within(t testing.TB, d time.Duration) context.Context {
	c, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return c
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func put(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func wantData(t testing.TB, s store.Store, key, want string) {
	t.Helper()
	if rec, err := s.Load(ctx, key); err != nil || string(rec.Data) != want {
		t.Errorf("Load: got %.60q, %v, want %.60q", rec.Data, err, want)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || want == nil && got != nil {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// asUser runs f in a thread that belongs to another user and has no capabilities.
func asUser(t *testing.T, uid int, f func()) {
	t.Helper()
	testserver.Need(t, "root", os.Geteuid() == 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for _, id := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(id, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				t.Error(errno)
				return
			}
		}
		f()
	}()
	<-done
}

// debian makes a directory such as Debian's /var/lib/php/sessions.
func debian(t testing.TB) string {
	t.Helper()
	testserver.Need(t, "root", os.Geteuid() == 0)
	dir, err := os.MkdirTemp("", "sessions")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Chmod(dir, 0o1733); err != nil {
		t.Fatal(err)
	}
	return dir
}

const www = 33 // www-data on Debian; any user that is not root will do

func TestOpenRefuses(t *testing.T) {
	tmp := t.TempDir()
	plain := filepath.Join(tmp, "plain")
	put(t, plain, "")
	loose := filepath.Join(tmp, "loose")
	if err := errors.Join(os.Mkdir(loose, 0o700), os.Chmod(loose, 0o777)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ url, says string }{
		"60 empty path":                    {"file://?lifetime=1m", "not absolute"},
		"60 root":                          {"file:///?lifetime=1m", "is /"},
		"60 root by dots":                  {"file:///tmp/..?lifetime=1m", "is /"},
		"63 relative path":                 {"file:tmp?lifetime=1m", "file:///absolute"},
		"a host":                           {"file://tmp/x?lifetime=1m", "file:///absolute"},
		"61 writable for all, not sticky":  {"file://" + loose + "?lifetime=1m", "sticky"},
		"64 missing":                       {"file://" + tmp + "/none?lifetime=1m", "no such file"},
		"not a directory":                  {"file://" + plain + "?lifetime=1m", "not a directory"},
		"34 no lifetime":                   {"file://" + tmp, "gc_maxlifetime"},
		"lifetime without a unit":          {"file://" + tmp + "?lifetime=1440", "write 1440s"},
		"negative lifetime":                {"file://" + tmp + "?lifetime=-5s", "above 0"},
		"unknown parameter":                {"file://" + tmp + "?lifetme=5s", `did you mean "lifetime"`},
		"parameter twice":                  {"file://" + tmp + "?depth=1&depth=2", "2 times"},
		"another layout":                   {"file://" + tmp + "?layout=apache&lifetime=5s", "layouts are: php"},
		"depth":                            {"file://" + tmp + "?depth=17&lifetime=5s", "0 to 16"},
		"negative depth":                   {"file://" + tmp + "?depth=-1&lifetime=5s", "0 to 16"},
		"mode decimal":                     {"file://" + tmp + "?mode=0690&lifetime=5s", "octal"},
		"mode that its owner cannot write": {"file://" + tmp + "?mode=0440&lifetime=5s", "0600"},
		"mode with setuid":                 {"file://" + tmp + "?mode=4600&lifetime=5s", "octal"},
		"unknown owner":                    {"file://" + tmp + "?owner=nobody-at-all&lifetime=5s", "no such user"},
		"unknown group":                    {"file://" + tmp + "?owner=root:nobody-at-all&lifetime=5s", "no such group"},
		"max_value":                        {"file://" + tmp + "?max_value=0&lifetime=5s", "above 0"},
		"broken escape":                    {"file://" + tmp + "?depth=%zz&lifetime=5s", "parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(c.url)
			if err != nil {
				t.Fatal(err)
			}
			s, err := file.OpenURL(ctx, u)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "store/file: ") {
				t.Errorf("got error %v, want one of store/file that says %q", err, c.says)
			}
		})
	}
}

func TestOpenURLTakesAllParameters(t *testing.T) {
	u, _ := url.Parse("file://" + t.TempDir() + "?layout=php&lifetime=1440s&depth=0&mode=0640&owner=0:0&max_value=10&op_bound=1s")
	s, err := file.OpenURL(ctx, u)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantErr(t, "Save of 11 bytes", s.Save(ctx, "a", record("12345678901"), store.Always), store.ErrInvalid)
	wantErr(t, "Save", s.Save(ctx, "a", record("1234567890"), store.Always), nil)
	if st, err := os.Stat(u.Path + "/sess_a"); err != nil || st.Mode() != 0o640 {
		t.Errorf("got mode %v, %v, want 0640 whatever the umask", st.Mode(), err)
	}
	if got, want := s.Capabilities(), (store.Capabilities{Scan: true, Conditional: true, LazyExpiry: true, Lock: true, Seal: true, NarrowKeys: true}); got != want {
		t.Errorf("Capabilities: got %+v, want %+v", got, want)
	}
}

func TestParseSavePath(t *testing.T) {
	for in, want := range map[string]struct {
		depth int
		mode  fs.FileMode
		path  string
		bad   bool
	}{
		"/p":         {path: "/p"},
		"0;/p":       {path: "/p"},
		"2;/p":       {depth: 2, path: "/p"},
		"2;0640;/p":  {depth: 2, mode: 0o640, path: "/p"},
		"2;640;/p;q": {depth: 2, mode: 0o640, path: "/p;q"},
		"":           {bad: true},
		"2;":         {bad: true},
		"x;/p":       {bad: true},
		"-1;/p":      {bad: true},
		"2;09;/p":    {bad: true},
		"2;;/p":      {bad: true},
	} {
		depth, mode, path, err := file.ParseSavePath(in)
		if (err != nil) != want.bad || depth != want.depth || mode != want.mode || path != want.path {
			t.Errorf("ParseSavePath(%q): got %d, %#o, %q, %v, want %+v", in, depth, mode, path, err, want)
		}
	}
}

func FuzzParseSavePath(f *testing.F) {
	for _, seed := range []string{"/p", "2;0640;/p", ";;", "16;/p;q", "-0;/p"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		depth, mode, path, err := file.ParseSavePath(in)
		if err == nil && (depth < 0 || depth > 16 || mode > 0o777 || path == "" || !strings.HasSuffix(in, path)) {
			t.Errorf("got %d, %#o, %q", depth, mode, path)
		}
	})
}

func ExampleOpenURL() {
	u, _ := url.Parse("file:///var/lib/php/session?layout=php&lifetme=1440s")
	_, err := file.OpenURL(context.Background(), u)
	fmt.Println(err)
	// Output: store/file: no parameter "lifetme"; did you mean "lifetime"?
}

func TestSymlinkedSavePathIsFollowedOnceAndLogged(t *testing.T) { // c4.62
	tmp := t.TempDir()
	a, b, link := filepath.Join(tmp, "a"), filepath.Join(tmp, "b"), filepath.Join(tmp, "link")
	if err := errors.Join(os.Mkdir(a, 0o700), os.Mkdir(b, 0o700), os.Symlink(a, link)); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := open(t, link, func(o *file.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if !strings.Contains(log.String(), "resolved="+a) {
		t.Errorf("log: got %q", log.String())
	}
	if err := errors.Join(os.Remove(link), os.Symlink(b, link)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Save", s.Save(ctx, "x", record("1"), store.Always), nil)
	if got := get(t, a+"/sess_x"); got != "1" {
		t.Errorf("got %q in the directory that was opened", got)
	}
}

func TestRightsAreNamed(t *testing.T) {
	dir := debian(t)
	asUser(t, www, func() {
		s := open(t, dir)
		if s.Capabilities().Scan {
			t.Error("Scan: got the capability in a directory that cannot be listed")
		}
		_, err := s.Scan(ctx, "", 10)
		wantErr(t, "Scan", err, errors.ErrUnsupported)
		if err == nil || !strings.Contains(err.Error(), "CAP_DAC_READ_SEARCH") {
			t.Errorf("Scan: got %v, want what to do", err)
		}
		wantErr(t, "Save", s.Save(ctx, "mine", record("1"), store.Always), nil)
		wantData(t, s, "mine", "1")
		_, err = file.Open(ctx, dir, file.Options{Lifetime: lifetime, Owner: &file.Owner{UID: 0, GID: 0}})
		wantErr(t, "Open for another owner's files", err, store.ErrUnavailable)
		if err == nil || !strings.Contains(err.Error(), "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER") {
			t.Errorf("Open for another owner's files: got %v, want what to do", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	asUser(t, www, func() {
		s := open(t, dir)
		wantData(t, s, "mine", "1")
		err := s.Save(ctx, "mine", record("2"), store.Always)
		wantErr(t, "Save in a directory that is not writable", err, store.ErrUnavailable)
		if err == nil || !strings.Contains(err.Error(), "read-only for uid 33") {
			t.Errorf("Save: got %v, want what to do", err)
		}
		wantErr(t, "Touch", s.Touch(ctx, "mine", time.Now().Add(time.Hour)), store.ErrUnavailable)
		_, err = s.Delete(ctx, "mine", store.Always)
		wantErr(t, "Delete", err, store.ErrUnavailable)
		wantErr(t, "Lock of a session that exists", s.Lock(ctx, "mine", "t", time.Minute), nil)
		wantErr(t, "Lock of one that does not", s.Lock(ctx, "none", "t", time.Minute), store.ErrUnavailable)
		wantErr(t, "SwapMark", s.SwapMark(ctx, store.Mark{}, store.Mark{Identity: "x"}), store.ErrUnavailable)
		wantData(t, s, "mine", "1")
	})
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	asUser(t, www, func() {
		_, err := file.Open(ctx, dir, file.Options{Lifetime: lifetime})
		if err == nil || !strings.Contains(err.Error(), "cannot be entered by uid 33") {
			t.Errorf("Open: got %v, want what to do", err)
		}
	})
}

func TestOwnerOfNewFiles(t *testing.T) {
	owned := func(uid, gid int) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Chown(dir, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	holding := func(name string, uid, gid int) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			put(t, dir+"/"+name, "")
			if err := os.Chown(dir+"/"+name, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		dir      []func(t *testing.T, dir string)
		owner    *file.Owner
		uid, gid uint32
		refused  bool
	}{
		"asked for":                         {owner: &file.Owner{UID: www, GID: 7}, uid: www, gid: 7},
		"without a group":                   {owner: &file.Owner{UID: www, GID: -1}, uid: www, gid: 0},
		"that of the session files":         {dir: []func(*testing.T, string){holding("sess_x", www, 7)}, uid: www, gid: 7},
		"root's session files say little":   {dir: []func(*testing.T, string){holding("sess_x", 0, 0)}, refused: true},
		"other files say nothing":           {dir: []func(*testing.T, string){holding("other", www, 7)}, refused: true},
		"of two users nobody knows":         {dir: []func(*testing.T, string){holding("sess_x", www, 7), holding("sess_y", 34, 7)}, refused: true},
		"nobody knows":                      {refused: true},
		"the directory's":                   {dir: []func(*testing.T, string){owned(www, 7)}, uid: www, gid: 7},
		"the files' before the directory's": {dir: []func(*testing.T, string){owned(1, 1), holding("sess_x", www, 7)}, uid: www, gid: 7},
		"root's private directory": {dir: []func(*testing.T, string){func(t *testing.T, dir string) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}}},
		"group of a setgid directory": {dir: []func(*testing.T, string){owned(www, 7), func(t *testing.T, dir string) {
			if err := unix.Chmod(dir, 0o2770); err != nil {
				t.Fatal(err)
			}
		}}, uid: www, gid: 7},
	} {
		t.Run(name, func(t *testing.T) {
			dir := debian(t)
			for _, f := range c.dir {
				f(t, dir)
			}
			s := open(t, dir, func(o *file.Options) { o.Owner = c.owner })
			err := s.Save(ctx, "new", record("1"), store.Always)
			if c.refused {
				wantErr(t, "Save", err, store.ErrUnavailable)
				if err == nil || !strings.Contains(err.Error(), "owner=user") {
					t.Errorf("got %v, want what to do", err)
				}
				return
			}
			wantErr(t, "Save", err, nil)
			st, err := os.Stat(dir + "/sess_new")
			if err != nil {
				t.Fatal(err)
			}
			if sys := st.Sys().(*syscall.Stat_t); sys.Uid != c.uid || sys.Gid != c.gid || st.Mode() != 0o600 {
				t.Errorf("got %d:%d %v, want %d:%d 0600", sys.Uid, sys.Gid, st.Mode(), c.uid, c.gid)
			}
			// A file that exists keeps its owner and its mode.
			if err := errors.Join(os.Chown(dir+"/sess_new", 0, 9), os.Chmod(dir+"/sess_new", 0o640)); err != nil {
				t.Fatal(err)
			}
			wantErr(t, "Save", s.Save(ctx, "new", record("2"), store.Always), nil)
			st, _ = os.Stat(dir + "/sess_new")
			if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 || sys.Gid != 9 || st.Mode() != 0o640 {
				t.Errorf("after Save: got %d:%d %v, want 0:9 0640", sys.Uid, sys.Gid, st.Mode())
			}
		})
	}
}

func TestRemovedDirectoryIsNotAnEmptyOne(t *testing.T) { // c4.40
	for _, levels := range []int{0, 1} {
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.MkdirAll(dir+"/a", 0o700); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, depth(levels))
		for i := range 10 {
			if levels == 0 {
				wantErr(t, "Save", s.Save(ctx, fmt.Sprint("k", i), record(""), store.Always), nil)
			}
		}
		page, err := s.Scan(ctx, "", 1)
		wantErr(t, "Scan", err, nil)
		os.RemoveAll(dir)
		_, err = s.Load(ctx, "abc")
		wantErr(t, "Load", err, store.ErrUnavailable)
		_, err = s.Delete(ctx, "abc", store.Always)
		wantErr(t, "Delete", err, store.ErrUnavailable)
		wantErr(t, "Save", s.Save(ctx, "abc", record(""), store.Always), store.ErrUnavailable)
		wantErr(t, "Lock", s.Lock(ctx, "abc", "t", time.Minute), store.ErrUnavailable)
		_, err = s.Mark(ctx)
		wantErr(t, "Mark", err, store.ErrUnavailable)
		_, err = s.Scan(ctx, "", 1)
		wantErr(t, "Scan", err, store.ErrUnavailable)
		if levels == 0 {
			s.ForgetWalks()
			_, err = s.Scan(ctx, page.Cursor, 1)
			wantErr(t, "Scan", err, store.ErrUnavailable)
		}
	}
}

func TestEndedContextsAndClosedStores(t *testing.T) {
	s := open(t, t.TempDir())
	ended, cancel := context.WithCancel(ctx)
	cancel()
	calls := func(ctx context.Context) map[string]error {
		errs := map[string]error{}
		_, errs["Load"] = s.Load(ctx, "a")
		_, errs["Inspect"] = s.Inspect(ctx, "a")
		errs["Save"] = s.Save(ctx, "a", record("1"), store.Always)
		errs["Touch"] = s.Touch(ctx, "a", time.Now().Add(time.Hour))
		_, errs["Delete"] = s.Delete(ctx, "a", store.Always)
		_, errs["Scan"] = s.Scan(ctx, "", 1)
		errs["Lock"] = s.Lock(ctx, "a", "t", time.Minute)
		_, errs["Unlock"] = s.Unlock(ctx, "a", "t")
		_, _, errs["LockHolder"] = s.LockHolder(ctx, "a")
		_, errs["Mark"] = s.Mark(ctx)
		errs["SwapMark"] = s.SwapMark(ctx, store.Mark{}, store.Mark{Identity: "x"})
		errs["Under.Save"] = s.Under(store.Mark{}).Save(ctx, "a", record("1"), store.Always)
		return errs
	}
	for what, err := range calls(ended) {
		wantErr(t, what+" with an ended context", err, store.ErrUnavailable)
	}
	wantErr(t, "Close of a view", s.Under(store.Mark{}).Close(), nil)
	_, err := s.Load(ctx, "a")
	wantErr(t, "Load", err, store.ErrAbsent)
	wantErr(t, "Close", s.Close(), nil)
	wantErr(t, "Close again", s.Close(), nil)
	for what, err := range calls(ctx) {
		wantErr(t, what+" after Close", err, store.ErrUnavailable)
	}
}

// php runs PHP code as uid with the files handler over dir; each run is one page.
func php(t testing.TB, uid int, savePath, code string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("php")
	testserver.Need(t, "php-cli", err == nil)
	cmd := exec.Command(path, append([]string{"-n", "-d", "session.save_handler=files", "-d", `session.save_path="` + savePath + `"`,
		"-d", "session.use_cookies=0", "-d", "session.use_only_cookies=0", "-d", "session.cache_limiter=", "-d", "session.gc_probability=0",
		"-d", "session.gc_maxlifetime=1440", "-d", "error_reporting=-1", "-d", "display_errors=stderr", "-r", code, "--"}, args...)...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

func phpOut(t testing.TB, uid int, savePath, code string, args ...string) string {
	t.Helper()
	cmd := php(t, uid, savePath, code, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("php: %v\n%s", err, stderr.String())
	}
	return string(out)
}

func makeLevels(t testing.TB, dir string) {
	t.Helper()
	for _, level := range []string{"/a/b", "/a/c", "/x/y"} {
		if err := os.MkdirAll(dir+level, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
