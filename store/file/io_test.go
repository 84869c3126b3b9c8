package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
	"golang.org/x/sys/unix"
)

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	deep := open(t, dir, depth(2))
	for name, key := range map[string]string{
		"1 empty":             "",
		"2 dots":              "..",
		"2 dot":               ".",
		"2 slash":             "/",
		"2 a path":            "a/b",
		"2 a path up":         "../../etc/passwd",
		"2 backslash":         `a\b`,
		"2 drive":             "C:x",
		"3 NUL":               "a\x00b",
		"4 251 bytes":         strings.Repeat("a", 251),
		"4 256 bytes":         strings.Repeat("a", 256),
		"4 100 KB":            strings.Repeat("a", 100_000),
		"6 composed letter":   "\u00e9",
		"6 decomposed letter": "e\u0301",
		"9 newline":           "a\nb",
		"56 lock file":        "Apache-Session-x.lock",
		"underscore":          "a_b",
		"high byte":           "a\xff",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Load(ctx, key)
			wantErr(t, "Load", err, store.ErrInvalid)
			if key != "" && strings.Contains(err.Error(), key) && key != "." && key != "/" {
				t.Errorf("the error shows the key: %v", err)
			}
			wantErr(t, "Save", s.Save(ctx, key, record("x"), store.Always), store.ErrInvalid)
			wantErr(t, "Touch", s.Touch(ctx, key, time.Now().Add(time.Hour)), store.ErrInvalid)
			_, err = s.Delete(ctx, key, store.Always)
			wantErr(t, "Delete", err, store.ErrInvalid)
			wantErr(t, "Lock", s.Lock(ctx, key, "t", time.Minute), store.ErrInvalid)
			_, err = s.Unlock(ctx, key, "t")
			wantErr(t, "Unlock", err, store.ErrInvalid)
			_, _, err = s.LockHolder(ctx, key)
			wantErr(t, "LockHolder", err, store.ErrInvalid)
		})
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("refused keys left %v", entries)
	}
	for name, key := range map[string]string{
		"7 device name": "con", "8 hyphen first": "-rf", "5 case a": "aB", "5 case b": "Ab", "57 comma": "a,b-c",
		"1 byte": "a", "58 22 bytes": strings.Repeat("v", 22), "250 bytes": strings.Repeat("a", 250),
	} {
		t.Run(name, func(t *testing.T) {
			wantErr(t, "Save", s.Save(ctx, key, record(name), store.IfAbsent), nil)
			wantData(t, s, key, name)
		})
	}
	_, err := deep.Load(ctx, "ab")
	wantErr(t, "Load of an id no longer than the levels", err, store.ErrInvalid)
	_, err = deep.Load(ctx, "abc")
	wantErr(t, "Load below a missing level", err, store.ErrAbsent)
}

func TestPayloadsAreCopiedExactly(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	dir := t.TempDir()
	s := open(t, dir)
	for name, data := range map[string]string{
		"10 empty":                "",
		"12 truncated":            `a:1:{s:3:"us`,
		"13 php":                  "user|i:1;",
		"13 php_binary":           "\x04useri:1;",
		"13 php_serialize":        `a:1:{s:4:"user";i:1;}`,
		"14 igbinary":             "\x00\x00\x00\x02\x14\x01",
		"15 Storable":             "pst0\x04\x0b",
		"17 JSON":                 `{"a":1}`,
		"20 all bytes":            string(all),
		"52 trailing garbage":     "user|i:1;\x00\x00garbage",
		"53 byte order mark":      "\xef\xbb\xbfuser|i:1;",
		"54 CRLF":                 "a|s:2:\"\r\n\";",
		"trailing blanks":         "a|i:1;  \n",
		"a block":                 strings.Repeat("x", 4096),
		"the largest":             strings.Repeat("y", 1<<20),
		"what looks like a _LOCK": "sess_a_LOCK",
	} {
		t.Run(name, func(t *testing.T) {
			put(t, dir+"/sess_foreign", data)
			wantData(t, s, "foreign", data)
			for _, before := range []string{"", "short", strings.Repeat("long", 3000)} {
				put(t, dir+"/sess_ours", before)
				wantErr(t, "Save", s.Save(ctx, "ours", record(data), store.IfVersion(store.VersionOf([]byte(before), 0))), nil)
				if got := get(t, dir+"/sess_ours"); got != data {
					t.Errorf("over %d bytes: got %d bytes, want %d", len(before), len(got), len(data))
				}
			}
			wantErr(t, "Save", s.Save(ctx, "a"+fmt.Sprint(len(name)), record(data), store.Always), nil)
			wantData(t, s, "a"+fmt.Sprint(len(name)), data)
		})
	}
}

// What is no session: each is refused with its reason, nothing outside is read or written, nothing is deleted.
func TestRefusals(t *testing.T) {
	testserver.Need(t, "root", os.Geteuid() == 0)
	outside := filepath.Join(t.TempDir(), "secret")
	for name, c := range map[string]struct {
		make   func(path string) error
		reason string
		class  error
		owner  *file.Owner
	}{
		"21 symlink":          {func(p string) error { return os.Symlink(outside, p) }, "symlink", store.ErrInvalid, nil},
		"22 dangling symlink": {func(p string) error { return os.Symlink(outside+"x", p) }, "symlink", store.ErrInvalid, nil},
		"23 symlink loop":     {func(p string) error { return os.Symlink(filepath.Base(p), p) }, "symlink", store.ErrInvalid, nil},
		"24 hard link to another user's file": {func(p string) error {
			return errors.Join(os.Chown(outside, www, www), os.Link(outside, p))
		}, "hard link", store.ErrInvalid, nil},
		"24 hard link to root's file": {func(p string) error { return os.Link(outside, p) }, "hard link", store.ErrInvalid, &file.Owner{UID: www, GID: www}},
		"25 FIFO":                     {func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file", store.ErrInvalid, nil},
		"26 socket": {func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}, "not a regular file", store.ErrInvalid, nil},
		"26 device":    {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, 0x0103) }, "not a regular file", store.ErrInvalid, nil},
		"26 directory": {func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file", store.ErrInvalid, nil},
		"27 owner": {func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Chown(p, 77, 77))
		}, "foreign owner", store.ErrInvalid, &file.Owner{UID: www, GID: www}},
		"18 too large": {func(p string) error { return os.WriteFile(p, make([]byte, 1<<20+1), 0o600) }, "too large", store.ErrInvalid, nil},
		"19 sparse": {func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40))
		}, "too large", store.ErrInvalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(outside)
			put(t, outside, "outside")
			dir, err := os.MkdirTemp("", "f") // short, for the socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			s := open(t, dir, func(o *file.Options) { o.Owner = c.owner })
			if err := c.make(dir + "/sess_victim"); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(dir + "/sess_victim")
			check := func(what string, err error) {
				t.Helper()
				var refused *store.RefusedError
				if !errors.Is(err, c.class) || !errors.As(err, &refused) || refused.Reason != c.reason {
					t.Errorf("%s: got error %v, want refused for %q", what, err, c.reason)
				} else if strings.Contains(err.Error(), "victim") {
					t.Errorf("%s: the error shows the id: %v", what, err)
				}
			}
			_, err = s.Load(within(t, 5*time.Second), "victim")
			check("Load", err)
			check("Save", s.Save(within(t, 5*time.Second), "victim", record("x"), store.Always))
			if c.reason != "too large" {
				check("Touch", s.Touch(within(t, 5*time.Second), "victim", time.Now().Add(time.Hour)))
				check("Lock", s.Lock(within(t, 5*time.Second), "victim", "t", time.Minute))
				_, err = s.Delete(within(t, 5*time.Second), "victim", store.Always)
				check("Delete", err)
			}
			after, err := os.Lstat(dir + "/sess_victim")
			if err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
				t.Errorf("it was changed: %v, %v", after, err)
			}
			if got := get(t, outside); got != "outside" {
				t.Errorf("outside: got %q", got)
			}
			if c.reason == "too large" { // but to log out is possible
				_, err = s.Delete(ctx, "victim", store.IfVersion("abc"))
				check("Delete of a version", err)
				existed, err := s.Delete(ctx, "victim", store.Always)
				wantErr(t, "Delete", err, nil)
				if !existed {
					t.Error("Delete: got existed false")
				}
			}
			if !s.Idle() {
				t.Error("something is still held")
			}
		})
	}
}

func TestSymlinkedLevelIsNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, dir+"/a"); err != nil {
		t.Fatal(err)
	}
	put(t, outside+"/sess_abc", "x")
	s := open(t, dir, depth(1))
	_, err := s.Load(ctx, "abc")
	wantErr(t, "Load", err, store.ErrUnavailable)
	wantErr(t, "Save", s.Save(ctx, "abd", record(""), store.Always), store.ErrUnavailable)
}

func TestOpenFailuresAreNotAbsence(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantErr(t, "Save", s.Save(ctx, "a", record("1"), store.Always), nil)
	t.Run("45 EMFILE", func(t *testing.T) {
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		var held []int // fill what is open, then leave no room
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		for {
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				break
			}
			held = append(held, fd)
		}
		_, loaded := s.Load(ctx, "a")
		_, absent := s.Load(ctx, "none")
		saved, locked := s.Save(ctx, "b", record(""), store.Always), s.Lock(ctx, "c", "t", time.Minute)
		for _, fd := range held {
			unix.Close(fd)
		}
		unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
		for what, err := range map[string]error{"Load": loaded, "Load of none": absent, "Save": saved, "Lock": locked} {
			wantErr(t, what, err, store.ErrUnavailable)
			if err == nil || !strings.Contains(err.Error(), "limit on open files") {
				t.Errorf("%s: got %v, want what to do", what, err)
			}
		}
		wantData(t, s, "a", "1")
	})
	t.Run("28 no right to read", func(t *testing.T) {
		if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(dir+"/sess_a", 0)); err != nil {
			t.Fatal(err)
		}
		parent := debian(t)
		if err := errors.Join(os.Chmod(parent, 0o755), os.Rename(dir+"/sess_a", parent+"/sess_a")); err != nil {
			t.Fatal(err)
		}
		asUser(t, www, func() {
			s := open(t, parent)
			_, err := s.Load(ctx, "a")
			wantErr(t, "Load", err, store.ErrUnavailable)
			if err == nil || !strings.Contains(err.Error(), "CAP_DAC_OVERRIDE") {
				t.Errorf("got %v, want what to do", err)
			}
		})
	})
	t.Run("29 immutable", func(t *testing.T) {
		put(t, dir+"/sess_i", "x")
		if out, err := exec.Command("chattr", "+i", dir+"/sess_i").CombinedOutput(); err != nil {
			t.Skipf("chattr: %s", out)
		}
		defer exec.Command("chattr", "-i", dir+"/sess_i").Run()
		_, err := s.Delete(ctx, "i", store.Always)
		wantErr(t, "Delete", err, store.ErrUnavailable)
		wantErr(t, "Save", s.Save(ctx, "i", record("y"), store.Always), store.ErrUnavailable)
		wantErr(t, "Touch", s.Touch(ctx, "i", time.Now().Add(time.Hour)), store.ErrUnavailable)
		wantData(t, s, "i", "x")
	})
	t.Run("46 EROFS", func(t *testing.T) {
		mnt := tmpfs(t, "size=1m")
		s := open(t, mnt)
		wantErr(t, "Save", s.Save(ctx, "a", record("1"), store.Always), nil)
		if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*file.Store{s, open(t, mnt)} {
			wantErr(t, "Save", s.Save(ctx, "a", record("2"), store.Always), store.ErrUnavailable)
			wantErr(t, "Save", s.Save(ctx, "b", record("2"), store.Always), store.ErrUnavailable)
			wantErr(t, "Touch", s.Touch(ctx, "a", time.Now().Add(time.Hour)), store.ErrUnavailable)
			_, err := s.Delete(ctx, "a", store.Always)
			wantErr(t, "Delete", err, store.ErrUnavailable)
			wantData(t, s, "a", "1")
		}
	})
}

func TestDeadlines(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	now := time.Now()
	for name, mtime := range map[string]time.Time{
		"32 epoch": time.Unix(0, 0), "32 in 2106": time.Date(2106, 2, 8, 0, 0, 0, 0, time.UTC), "overdue": now.Add(-48 * time.Hour),
		"now": now, "with nanoseconds": time.Unix(1_900_000_000, 123_456_789), "2038": time.Unix(1<<31, 1),
	} {
		put(t, dir+"/sess_d", name)
		if err := os.Chtimes(dir+"/sess_d", time.Time{}, mtime); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Inspect(ctx, "d")
		if err != nil || !rec.Expires.Equal(mtime.Add(lifetime)) || string(rec.Data) != name {
			t.Errorf("%s: got %v, %v, want %v", name, rec.Expires, err, mtime.Add(lifetime))
		}
	}
	for _, key := range []string{"d", "new"} {
		for _, left := range []time.Duration{10 * time.Second, lifetime - 1, lifetime, 100 * lifetime, 40 * 365 * 24 * time.Hour} {
			want := time.Now().Add(left)
			wantErr(t, "Save", s.Save(ctx, key, store.Record{Expires: want, Data: []byte("x")}, store.Always), nil)
			if rec, err := s.Load(ctx, key); err != nil || !rec.Expires.Equal(want) {
				t.Errorf("Save with %v left: got %v, %v, want %v", left, rec.Expires, err, want)
			}
			want = want.Add(time.Nanosecond)
			wantErr(t, "Touch", s.Touch(ctx, key, want), nil)
			if rec, err := s.Load(ctx, key); err != nil || !rec.Expires.Equal(want) || string(rec.Data) != "x" {
				t.Errorf("Touch with %v left: got %v, %q, %v, want %v", left, rec.Expires, rec.Data, err, want)
			}
		}
	}
	for name, expires := range map[string]time.Time{"none": {}, "past": now.Add(-time.Second), "now": now} {
		wantErr(t, "Save: "+name, s.Save(ctx, "d", store.Record{Expires: expires}, store.Always), store.ErrInvalid)
		wantErr(t, "Touch: "+name, s.Touch(ctx, "d", expires), store.ErrInvalid)
	}
	wantData(t, s, "d", "x")
	wantErr(t, "Touch of nothing", s.Touch(ctx, "none", now.Add(time.Hour)), store.ErrAbsent)
	if _, err := os.Stat(dir + "/sess_none"); err == nil {
		t.Error("Touch created a file")
	}
	rec := record("x")
	rec.Flags = 1
	wantErr(t, "Save with flags", s.Save(ctx, "d", rec, store.Always), store.ErrInvalid)
}

func TestCoarseTimesAreRoundedUp(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	mnt := t.TempDir()
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 8<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext3", "-q", "-I", "128", img).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext3: %s", out)
	}
	if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("needs a loop mount: %s", out)
	}
	t.Cleanup(func() { exec.Command("umount", mnt).Run() })
	s := open(t, mnt)
	for _, what := range []string{"create", "overwrite"} {
		want := time.Now().Add(time.Hour).Truncate(time.Second).Add(999 * time.Millisecond)
		wantErr(t, what, s.Save(ctx, "a", store.Record{Expires: want}, store.Always), nil)
		if rec, err := s.Load(ctx, "a"); err != nil || rec.Expires.Before(want) || rec.Expires.After(want.Add(2*time.Second)) {
			t.Errorf("%s: got %v, %v, want %v to 2 s later", what, rec.Expires, err, want)
		}
	}
	s.Close()
}

func TestConditions(t *testing.T) {
	v := store.VersionOf([]byte("old"), 0)
	for _, visible := range []bool{false, true} {
		for name, c := range map[string]struct {
			cond              store.Condition
			onAbsent, onOld   bool
			onEmpty, onLocked bool // onLocked: the session's file was made by Lock
		}{
			"Always":            {store.Always, true, true, true, true},
			"IfAbsent":          {store.IfAbsent, true, false, false, true},
			"IfPresent":         {store.IfPresent, false, true, true, false},
			"IfVersion":         {store.IfVersion(v), false, true, false, false},
			"IfVersion, other":  {store.IfVersion("0123"), false, false, false, false},
			"IfVersion, absent": {store.IfVersion(store.Absent), true, false, false, true},
		} {
			dir := t.TempDir()
			s := open(t, dir)
			if visible {
				s.Visible()
			}
			for state, want := range map[string]bool{"absent": c.onAbsent, "old": c.onOld, "empty": c.onEmpty, "locked": c.onLocked} {
				for _, op := range []string{"Save", "Delete"} {
					os.Remove(dir + "/sess_k")
					switch state {
					case "old":
						put(t, dir+"/sess_k", "old")
					case "empty":
						put(t, dir+"/sess_k", "")
					case "locked":
						wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
					}
					what := fmt.Sprintf("%s %s on %s, visible %v", op, name, state, visible)
					var err error
					var existed bool
					if op == "Save" {
						err = s.Save(ctx, "k", record("new"), c.cond)
					} else {
						existed, err = s.Delete(ctx, "k", c.cond)
					}
					wantErr(t, what, err, map[bool]error{true: nil, false: store.ErrConflict}[want])
					present := state == "old" || state == "empty"
					if existed != (op == "Delete" && present && want) {
						t.Errorf("%s: got existed %v", what, existed)
					}
					rec, err := s.Load(ctx, "k")
					switch {
					case want && op == "Save":
						if err != nil || string(rec.Data) != "new" {
							t.Errorf("%s: got %q, %v", what, rec.Data, err)
						}
					case present && !want:
						if err != nil || string(rec.Data) == "new" {
							t.Errorf("%s: got %q, %v", what, rec.Data, err)
						}
					default:
						wantErr(t, what+": Load", err, store.ErrAbsent)
					}
					if state == "locked" {
						if held, err := s.Unlock(ctx, "k", "t"); !held || err != nil {
							t.Errorf("%s: Unlock: got %v, %v", what, held, err)
						}
						if op == "Delete" {
							if _, err := os.Stat(dir + "/sess_k"); err == nil {
								t.Errorf("%s: the lock's file is still there", what)
							}
						}
					}
				}
			}
		}
	}
}

func TestSaveWritesInPlace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_a", "old and long")
	before, _ := os.Stat(dir + "/sess_a")
	for _, data := range []string{"new", "longer than it ever was", "", "again"} {
		wantErr(t, "Save", s.Save(ctx, "a", record(data), store.Always), nil)
		if after, err := os.Stat(dir + "/sess_a"); err != nil || !os.SameFile(before, after) {
			t.Fatalf("%q: the file was replaced: %v", data, err)
		}
		if got := get(t, dir+"/sess_a"); got != data {
			t.Errorf("got %q, want %q", got, data)
		}
	}
}

func TestReplacedFileIsReadWhole(t *testing.T) { // c4.31: somebody renames over it
	dir := t.TempDir()
	s := open(t, dir)
	bodies := []string{strings.Repeat("a", 10_000), strings.Repeat("b", 20_000)}
	put(t, dir+"/sess_r", bodies[0])
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			os.WriteFile(dir+"/tmp", []byte(bodies[i%2]), 0o600)
			os.Rename(dir+"/tmp", dir+"/sess_r")
		}
	})
	for range 2000 {
		rec, err := s.Load(ctx, "r")
		if got := string(rec.Data); err != nil || got != bodies[0] && got != bodies[1] {
			t.Errorf("got %d bytes, %v", len(got), err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// c4.11. A reader without the flock sees torn bodies (clients.md 3); through the flock nobody does.
func TestConcurrentWritersAndReaders(t *testing.T) {
	hammer := func(s *file.Store) (torn int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for w := range 4 {
			body := strings.Repeat(string(rune('a'+w)), 3000*(w+1))
			wg.Go(func() {
				for range 300 {
					if err := s.Save(ctx, "k", record(body), store.Always); err != nil {
						t.Errorf("Save: %v", err)
						return
					}
				}
			})
			wg.Go(func() {
				for range 1000 {
					rec, err := s.Load(ctx, "k")
					if errors.Is(err, store.ErrAbsent) {
						continue
					}
					if err != nil {
						t.Errorf("Load: %v", err)
						return
					}
					n := len(rec.Data)
					if n == 0 || n != 3000*int(rec.Data[0]-'a'+1) || strings.Trim(string(rec.Data), string(rec.Data[:1])) != "" {
						mu.Lock()
						torn++
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		return torn
	}
	for _, visible := range []bool{false, true} {
		s := open(t, t.TempDir())
		if visible {
			s.Visible()
			put(t, t.TempDir()+"/x", "")
			wantErr(t, "Save", s.Save(ctx, "k", record(strings.Repeat("a", 3000)), store.Always), nil)
		}
		if torn := hammer(s); torn > 0 {
			t.Errorf("%d torn reads, visible %v", torn, visible)
		}
		eventually(t, "all locks free", s.Idle)
	}
	t.Run("without the flock it shows", func(t *testing.T) {
		defer guard.Disable(guard.Flock)()
		for range 20 {
			if hammer(open(t, t.TempDir())) > 0 {
				return
			}
		}
		t.Error("no torn read without the flock: the test shows nothing")
	})
}

func TestConditionalIncrementsLoseNothing(t *testing.T) {
	s := open(t, t.TempDir())
	const workers, each = 8, 100
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				cond, n := store.IfAbsent, 0
				rec, err := s.Load(ctx, "n")
				if err == nil {
					cond = store.IfVersion(rec.Version())
					fmt.Sscan(string(rec.Data), &n)
				} else if !errors.Is(err, store.ErrAbsent) {
					t.Error(err)
					return
				}
				switch err := s.Save(ctx, "n", record(fmt.Sprint(n+1)), cond); {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantData(t, s, "n", fmt.Sprint(workers*each))
}

// A write that comes too late must not land.
func TestLateWritesDoNotLand(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(o *file.Options) { o.OpBound = time.Nanosecond })
	put(t, dir+"/sess_a", "old")
	before, _ := os.Stat(dir + "/sess_a")
	wantErr(t, "Save", s.Save(ctx, "a", record("new"), store.Always), store.ErrUnavailable)
	wantErr(t, "Save of a new one", s.Save(ctx, "b", record("new"), store.Always), store.ErrUnavailable)
	wantErr(t, "Touch", s.Touch(ctx, "a", time.Now().Add(time.Hour)), store.ErrUnavailable)
	_, err := s.Delete(ctx, "a", store.Always)
	wantErr(t, "Delete", err, store.ErrUnavailable)
	wantErr(t, "SwapMark", s.SwapMark(ctx, store.Mark{}, store.Mark{Identity: "x"}), store.ErrUnavailable)
	wantData(t, s, "a", "old")
	if after, _ := os.Stat(dir + "/sess_a"); !after.ModTime().Equal(before.ModTime()) {
		t.Error("the deadline moved")
	}
	_, err = s.Load(ctx, "b")
	wantErr(t, "Load", err, store.ErrAbsent)

	// The end of ctx while waiting for PHP's lock.
	s = open(t, dir)
	unlock := foreignLock(t, dir+"/sess_a")
	wantErr(t, "Save", s.Save(within(t, 20*time.Millisecond), "a", record("new"), store.Always), store.ErrUnavailable)
	unlock()
	eventually(t, "the lock is free", s.Idle)
	wantData(t, s, "a", "old")
}

// The wait for PHP's lock does not count against the bound.
func TestWaitingDoesNotCountAgainstTheBound(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(o *file.Options) { o.OpBound = 100 * time.Millisecond })
	put(t, dir+"/sess_a", "old")
	unlock := foreignLock(t, dir+"/sess_a")
	time.AfterFunc(300*time.Millisecond, unlock)
	wantErr(t, "Save", s.Save(ctx, "a", record("new"), store.Always), nil)
	wantData(t, s, "a", "new")
}

// foreignLock takes the flock as another process would: by a descriptor that the store knows nothing of.
func foreignLock(t testing.TB, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func() { f.Close() }
}

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, options+",mode=0700"); err != nil {
		t.Skipf("needs root to mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	return mnt
}

// c4.43, 44: a full disk costs no session.
func TestFullDisk(t *testing.T) {
	for name, reserve := range map[string]bool{"space can be reserved": true, "it cannot": false} {
		t.Run(name, func(t *testing.T) {
			mnt := tmpfs(t, "size=256k")
			s := open(t, mnt)
			if !reserve {
				defer file.NoReserve()()
			}
			old := strings.Repeat("o", 10_000)
			deadline := time.Now().Add(time.Hour)
			for _, key := range []string{"a", "b", "empty"} {
				data := old
				if key == "empty" {
					data = ""
				}
				wantErr(t, "Save", s.Save(ctx, key, store.Record{Data: []byte(data), Expires: deadline}, store.Always), nil)
			}
			if f, err := os.Create(mnt + "/ballast"); err != nil {
				t.Fatal(err)
			} else {
				for err == nil {
					_, err = f.Write(make([]byte, 4096))
				}
				f.Close()
			}
			unchanged := func(key, data string) {
				t.Helper()
				wantData(t, s, key, data)
				if rec, err := s.Load(ctx, key); err != nil || !rec.Expires.Equal(deadline) {
					t.Errorf("deadline: got %v, %v, want %v", rec.Expires, err, deadline)
				}
			}
			for _, n := range []int{50_000, 12_289, 200_000} {
				err := s.Save(ctx, "a", record(strings.Repeat("n", n)), store.Always)
				wantErr(t, "Save that grows", err, store.ErrUnavailable)
				if err == nil || !strings.Contains(err.Error(), "free some space") {
					t.Errorf("got %v, want what to do", err)
				}
				unchanged("a", old)
				wantErr(t, "Save over an empty one", s.Save(ctx, "empty", record(strings.Repeat("n", n)), store.Always), store.ErrUnavailable)
				unchanged("empty", "")
				wantErr(t, "Save of a new one", s.Save(ctx, "new", record(strings.Repeat("n", n)), store.Always), store.ErrUnavailable)
			}
			s.Visible()
			wantErr(t, "Save of a new one", s.Save(ctx, "new", record(old), store.Always), store.ErrUnavailable)
			if _, err := os.Stat(mnt + "/sess_new"); err == nil {
				t.Error("the incomplete file is there")
			}
			wantErr(t, "Save of the same length", s.Save(ctx, "a", record(strings.Repeat("s", 10_000)), store.Always), nil)
			wantErr(t, "Save that shrinks", s.Save(ctx, "b", record("short"), store.Always), nil)
			wantData(t, s, "b", "short")
			if existed, err := s.Delete(ctx, "a", store.Always); !existed || err != nil {
				t.Errorf("Delete: got %v, %v", existed, err)
			}
			wantErr(t, "Save where there is room again", s.Save(ctx, "new", record(old), store.Always), nil)
		})
	}
}

// c4.41, 43: the write itself fails.
func TestFailedWrites(t *testing.T) {
	const old = "the old session"
	for name, c := range map[string]struct {
		data  string
		times int // writes that fail
		short int
		err   error
		want  error
		left  string // what is there afterwards; "?" if it does not matter
	}{
		"EIO":                               {"a new session, longer", 1, 0, unix.EIO, store.ErrUnavailable, old},
		"short write":                       {"a new session, longer", 1, 5, nil, store.ErrUnavailable, old},
		"short write of a shorter one":      {"new", 1, 1, nil, store.ErrUnavailable, old},
		"ENOSPC for a shorter one":          {"new", 1, 0, unix.ENOSPC, store.ErrUnavailable, old},
		"the old one cannot be put back":    {"a new session, longer", 2, 3, nil, store.ErrUnknown, "?"},
		"nor can it where that is all":      {"new", 2, 0, unix.EDQUOT, store.ErrUnknown, "?"},
		"an empty one needs nothing at all": {"", 1, 0, unix.EIO, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			deadline := time.Now().Add(time.Hour)
			wantErr(t, "Save", s.Save(ctx, "a", store.Record{Data: []byte(old), Expires: deadline}, store.Always), nil)
			restore := file.FailWrites(0, c.times, c.short, c.err)
			err := s.Save(ctx, "a", record(c.data), store.Always)
			restore()
			wantErr(t, "Save", err, c.want)
			if c.err != nil {
				wantErr(t, "Save", err, map[bool]error{true: c.err}[c.want != nil])
			}
			if c.left == "?" {
				return
			}
			rec, err := s.Load(ctx, "a")
			if err != nil || string(rec.Data) != c.left || c.want != nil && !rec.Expires.Equal(deadline) {
				t.Errorf("got %q until %v, %v, want %q", rec.Data, rec.Expires, err, c.left)
			}
		})
	}
	for _, visible := range []bool{false, true} {
		dir := t.TempDir()
		s := open(t, dir)
		if visible {
			s.Visible()
		}
		restore := file.FailWrites(0, 1, 0, unix.EIO)
		wantErr(t, "Save of a new one", s.Save(ctx, "new", record("x"), store.Always), store.ErrUnavailable)
		restore()
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("it left %v", entries)
		}
	}
}

// saveForEver is the process that TestKill kills.
func saveForEver(dir string) {
	s, err := file.Open(ctx, dir, file.Options{Lifetime: lifetime})
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		for key, body := range killBodies(i) {
			if err := s.Save(ctx, key, record(body), store.Always); err != nil {
				panic(err)
			}
		}
		s.Delete(ctx, "deleted", store.Always)
	}
}

func killBodies(i int) map[string]string {
	return map[string]string{
		"same":    strings.Repeat(string(rune('a'+i%2)), 2000),
		"varied":  strings.Repeat(string(rune('a'+i%2)), 1000+2000*(i%2)),
		"deleted": strings.Repeat("d", 3000),
	}
}

// c4.48: what SIGKILL can leave is what Save's comment says.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	dir := t.TempDir()
	for key, body := range killBodies(0) {
		put(t, dir+"/sess_"+key, body)
	}
	empty := 0
	for range 60 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FILE_TEST_SAVE_FOR_EVER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1))
		time.Sleep(time.Duration(1000+rand.IntN(20_000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		s := open(t, dir)
		for key := range killBodies(0) {
			rec, err := s.Load(ctx, key)
			switch got := string(rec.Data); {
			case key == "deleted" && errors.Is(err, store.ErrAbsent):
			case err != nil:
				t.Errorf("%s: %v", key, err)
			case got == killBodies(0)[key], got == killBodies(1)[key]:
			case key == "varied" && got == "":
				empty++
			default:
				t.Errorf("%s: got %d bytes %.20q", key, len(got), got)
			}
		}
		s.Close()
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "sess_") {
			t.Errorf("a kill left %s", e.Name())
		}
	}
	t.Logf("60 kills, %d left the session empty that was getting shorter", empty)
}

func TestDepth(t *testing.T) { // c4.36, 37
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, depth(2))
	wantErr(t, "Save", s.Save(ctx, "abc", record("1"), store.Always), nil)
	if got := get(t, dir+"/a/b/sess_abc"); got != "1" {
		t.Errorf("got %q", got)
	}
	wantErr(t, "Save again", s.Save(ctx, "abc", record("2"), store.IfPresent), nil)
	wantData(t, s, "abc", "2")
	wantErr(t, "Lock", s.Lock(ctx, "abd", "t", time.Minute), nil)
	if held, err := s.Unlock(ctx, "abd", "t"); !held || err != nil {
		t.Errorf("Unlock: got %v, %v", held, err)
	}
	for _, key := range []string{"acc", "xyz"} {
		_, err := s.Load(ctx, key)
		wantErr(t, "Load below a missing level", err, store.ErrAbsent)
		existed, err := s.Delete(ctx, key, store.Always)
		if existed || err != nil {
			t.Errorf("Delete below a missing level: got %v, %v", existed, err)
		}
		err = s.Save(ctx, key, record(""), store.Always)
		wantErr(t, "Save below a missing level", err, store.ErrUnavailable)
		if err == nil || !strings.Contains(err.Error(), "mkdir") {
			t.Errorf("got %v, want what to do", err)
		}
		wantErr(t, "Lock below a missing level", s.Lock(ctx, key, "t", time.Minute), store.ErrUnavailable)
	}
	if existed, err := s.Delete(ctx, "abc", store.Always); !existed || err != nil {
		t.Errorf("Delete: got %v, %v", existed, err)
	}
	open := openFiles(t)
	for range 100 {
		s.Load(ctx, "abc")
		s.Load(ctx, "acc")
		s.Save(ctx, "abc", record("1"), store.Always)
	}
	if now := openFiles(t); now != open {
		t.Errorf("descriptors: %d before, %d after", open, now)
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// An unlink that knows no flock, such as the collector's, between the steps of a Save: the session is there afterwards.
func TestSaveAgainstTheCollector(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				os.Remove(dir + "/sess_a")
			}
		}
	})
	for i := range 2000 {
		if err := s.Save(ctx, "a", record(fmt.Sprint(i)), store.Always); err != nil {
			t.Error(err)
			break
		}
		if rec, err := s.Load(ctx, "a"); err != nil && !errors.Is(err, store.ErrAbsent) || err == nil && !bytes.Equal(rec.Data, []byte(fmt.Sprint(i))) {
			t.Errorf("got %q, %v, want %d or absent", rec.Data, err, i)
			break
		}
	}
	close(stop)
	wg.Wait()
}
