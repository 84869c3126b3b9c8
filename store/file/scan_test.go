package file_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
	"golang.org/x/sys/unix"
)

// scan reads everything, calling between before each page but the first.
func scan(t testing.TB, s *file.Store, limit int, between func(page int)) (map[string]int, map[string]int) {
	t.Helper()
	keys, skipped := map[string]int{}, map[string]int{}
	cursor := ""
	for n := 0; n == 0 || cursor != ""; n++ {
		if n > 0 && between != nil {
			between(n)
		}
		page, err := s.Scan(ctx, cursor, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range page.Keys {
			keys[key]++
		}
		for reason, n := range page.Skipped {
			skipped[reason] += n
		}
		cursor = page.Cursor
		if strings.ContainsAny(cursor, "/ \n") || n > 1_000_000 {
			t.Fatalf("cursor %q after %d pages", cursor, n)
		}
	}
	return keys, skipped
}

// twice counts the keys that came more than once.
func twice(keys map[string]int) (n int) {
	for _, times := range keys {
		if times > 1 {
			n++
		}
	}
	return n
}

func TestScanCountsWhatIsNoSession(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{
		"sess_" /* 1 */, "sess_a\nb" /* 9 */, "sess_a.b", "sess_e\u0301" /* 6 */, "sess_\xff", "SESS_abc", "sess-abc", "other" /* 59 */, ".hidden",
		"Apache-Session-abc.lock" /* 56 */, "sess_abc.tmp" /* 47 */, "sess_" + strings.Repeat("a", 250),
		"sess_abc", "sess_ABC" /* 5 */, "sess_-rf" /* 8 */, "sess_a,b-c" /* 57 */, "sess_con", /* 7 */
	} {
		put(t, dir+"/"+name, "")
	}
	if err := errors.Join(
		os.Symlink("/etc/shadow", dir+"/sess_link"), os.Symlink("nowhere", dir+"/sess_dangling"), os.Symlink("sess_loop", dir+"/sess_loop"),
		unix.Mkfifo(dir+"/sess_fifo", 0o600), os.Mkdir(dir+"/sess_dir", 0o700), os.Mkdir(dir+"/a", 0o700),
		s.SwapMark(ctx, store.Mark{}, store.Mark{Identity: "x"}),
	); err != nil {
		t.Fatal(err)
	}
	wantKeys := []string{"-rf", "ABC", "a,b-c", "abc", "con", strings.Repeat("a", 250)}
	wantSkipped := map[string]int{"foreign name": 12, "symlink": 3, "not a regular file": 2}
	slices.Sort(wantKeys)
	for _, limit := range []int{0, 1, 3, 1000} {
		keys, skipped := scan(t, s, limit, nil)
		if got := slices.Sorted(maps.Keys(keys)); !slices.Equal(got, wantKeys) || twice(keys) > 0 {
			t.Errorf("limit %d: got %q, want %q", limit, got, wantKeys)
		}
		if !maps.Equal(skipped, wantSkipped) {
			t.Errorf("limit %d: skipped %v, want %v", limit, skipped, wantSkipped)
		}
	}
	if st, err := os.Lstat(dir + "/sess_link"); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was changed: %v", err)
	}
}

func fill(t testing.TB, dir string, n int, name func(i int) string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	body := []byte(strings.Repeat("user|s:5:\"alice\";", 20))
	for i := range n {
		f, err := unix.Openat(fd, name(i), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Write(f, body)
		unix.Close(f)
	}
}

func number(i int) string { return fmt.Sprintf("sess_%026d", i) }

// A key that is there during the whole scan is returned: with files coming and going, with the listing lost between
// two pages, on file systems where places in a directory outlive that and where they do not.
func TestScanMissesNothing(t *testing.T) {
	const n = 3000
	for name, dir := range map[string]func(t *testing.T) string{
		"ext4 or whatever is here": func(t *testing.T) string { return t.TempDir() },
		"tmpfs":                    func(t *testing.T) string { return tmpfs(t, "size=32m") },
	} {
		for how, between := range map[string]func(s *file.Store, page int){
			"undisturbed":            func(*file.Store, int) {},
			"the listing is lost":    func(s *file.Store, page int) { s.ForgetWalks() },
			"positions mean nothing": func(s *file.Store, page int) { s.Unstable(); lostAt(s, page, 5) },
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				dir := dir(t)
				s := open(t, dir)
				fill(t, dir, n, number)
				if name == "tmpfs" && how == "the listing is lost" {
					between = func(s *file.Store, page int) { lostAt(s, page, 5) }
				}
				keys, _ := scan(t, s, 100, func(page int) {
					between(s, page)
					for i := range 20 { // two thirds stay
						os.Remove(fmt.Sprint(dir, "/", number((page*20+i)*3%n)))
						os.WriteFile(fmt.Sprint(dir, "/sess_new", page, "-", i), nil, 0o600)
					}
				})
				missing := 0
				for i := range n {
					if i%3 != 0 && keys[number(i)[5:]] == 0 {
						missing++
					}
				}
				if missing > 0 {
					t.Errorf("%d of %d keys are missing", missing, n)
				}
				if how == "undisturbed" && twice(keys) > 0 {
					t.Errorf("%d keys came twice", twice(keys))
				}
			})
		}
	}
}

func lostAt(s *file.Store, page, at int) {
	if page == at {
		s.ForgetWalks()
	}
}

func TestScanGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 2000, number)
	first := open(t, dir)
	page, err := first.Scan(ctx, "", 1500)
	if err != nil || len(page.Keys) != 1500 {
		t.Fatalf("got %d keys, %v", len(page.Keys), err)
	}
	first.Close()
	rest, _ := open(t, dir).Scan(ctx, page.Cursor, 5000)
	seen := map[string]int{}
	for _, key := range append(page.Keys, rest.Keys...) {
		seen[key]++
	}
	if len(seen) != 2000 || rest.Cursor != "" {
		t.Errorf("got %d keys and cursor %q", len(seen), rest.Cursor)
	}
	t.Logf("%d keys came twice", twice(seen))
}

func TestScanCursors(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 100, number)
	s, deep := open(t, dir), open(t, t.TempDir(), depth(2))
	for _, cursor := range []string{"x", "..", "1", "1.", "1.a.5", "1.a.5.7", "1..-", "1../", "!.ab.1", strings.Repeat("1", 1000)} {
		_, err := s.Scan(ctx, cursor, 10)
		wantErr(t, fmt.Sprintf("Scan(%.10q)", cursor), err, store.ErrInvalid)
	}
	for _, cursor := range []string{"1..5", "1.a.5", "1./a.5", "1.a/.5", "1.abc.5"} {
		_, err := deep.Scan(ctx, cursor, 10)
		wantErr(t, fmt.Sprintf("Scan(%q) with two levels", cursor), err, store.ErrInvalid)
	}
	if _, err := s.Scan(ctx, "zz..zzzz", 10); err != nil && !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a made-up place: %v", err)
	}
	// The same cursor may be asked for twice, and many scans may run at once.
	page, err := s.Scan(ctx, "", 30)
	if err != nil {
		t.Fatal(err)
	}
	one, err1 := s.Scan(ctx, page.Cursor, 30)
	two, err2 := s.Scan(ctx, page.Cursor, 30)
	if err1 != nil || err2 != nil || !slices.Equal(one.Keys, two.Keys) {
		t.Errorf("the same cursor gave %d and %d keys, %v, %v", len(one.Keys), len(two.Keys), err1, err2)
	}
	before := openFiles(t)
	for range 100 {
		if _, err := s.Scan(ctx, "", 10); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after-before > 16 {
		t.Errorf("100 abandoned scans keep %d descriptors", after-before)
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			cursor, seen := "", map[string]bool{}
			for n := 0; n == 0 || cursor != ""; n++ {
				page, err := s.Scan(ctx, cursor, 7)
				if err != nil {
					t.Error(err)
					return
				}
				for _, key := range page.Keys {
					seen[key] = true
				}
				cursor = page.Cursor
			}
			if len(seen) != 100 {
				t.Errorf("got %d keys", len(seen))
			}
		})
	}
	wg.Wait()
}

func TestScanWithLevels(t *testing.T) { // c4.36, 55
	dir := t.TempDir()
	want := map[string]int{}
	for _, a := range "aZ0," {
		for _, b := range "bY1-" {
			level := fmt.Sprintf("%s/%c/%c", dir, a, b)
			if err := os.MkdirAll(level, 0o700); err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				if a == '0' && b == '1' {
					continue // an empty one in the middle
				}
				id := fmt.Sprintf("%c%c%d", a, b, i)
				put(t, level+"/sess_"+id, "x")
				want[id] = 1
			}
		}
	}
	put(t, dir+"/sess_ab1", "at the top")
	put(t, dir+"/a/b/sess_xyz", "below the wrong level")
	put(t, dir+"/a/b/sess_ab", "no longer than the levels")
	if err := errors.Join(os.Symlink("/etc", dir+"/s"), os.Mkdir(dir+"/toolong", 0o700), os.Mkdir(dir+"/a/b/c", 0o700)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, depth(2))
	for _, limit := range []int{1, 3, 5, 1000} {
		for _, lost := range []bool{false, true} {
			keys, skipped := scan(t, s, limit, func(int) {
				if lost {
					s.ForgetWalks()
				}
			})
			if !slices.Equal(slices.Sorted(maps.Keys(keys)), slices.Sorted(maps.Keys(want))) || !lost && twice(keys) > 0 {
				t.Errorf("limit %d, lost %v: got %v", limit, lost, keys)
			}
			if !lost && (skipped["at another depth"] != 1 || skipped["foreign name"] != 3) {
				t.Errorf("limit %d: skipped %v", limit, skipped)
			}
		}
	}
	// A directory that goes away in the middle takes its keys along and nobody else's.
	keys, _ := scan(t, s, 3, func(page int) {
		if page == 2 {
			os.RemoveAll(dir + "/Z")
			s.ForgetWalks()
		}
	})
	for id := range want {
		if id[0] != 'Z' && keys[id] == 0 {
			t.Errorf("%s is missing", id)
		}
	}
}

// c4.39. Memory stays flat: what a scan keeps is one page.
func TestScanIsStreamed(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 20_000, number)
	s := open(t, dir)
	var before, after runtime.MemStats
	page, err := s.Scan(ctx, "", 100) // the buffer
	runtime.ReadMemStats(&before)
	for n := 0; n < 100 && err == nil; n++ {
		page, err = s.Scan(ctx, page.Cursor, 100)
	}
	runtime.ReadMemStats(&after)
	if err != nil || after.TotalAlloc-before.TotalAlloc > 2<<20 {
		t.Errorf("100 pages of 100 took %d bytes, %v", after.TotalAlloc-before.TotalAlloc, err)
	}
}

func TestReadingLeavesNoTrace(t *testing.T) { // c4.33
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_a", "x")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir+"/sess_a", old, old); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	unix.Stat(dir+"/sess_a", &before)
	wantData(t, s, "a", "x")
	scan(t, s, 10, nil)
	if unix.Stat(dir+"/sess_a", &after); before.Mtim != after.Mtim || before.Ctim != after.Ctim || os.Geteuid() == 0 && before.Atim != after.Atim {
		t.Errorf("times: got %v %v %v, before %v %v %v", after.Mtim, after.Ctim, after.Atim, before.Mtim, before.Ctim, before.Atim)
	}
}

// BenchmarkBackfill reads 200,000 sessions: go test -run - -bench Backfill -benchtime 3x ./store/file
func BenchmarkBackfill(b *testing.B) {
	const n = 200_000
	dir := b.TempDir()
	fill(b, dir, n, number)
	s := open(b, dir)
	var keys []string
	b.Run("Scan", func(b *testing.B) {
		for range b.N {
			keys = keys[:0]
			cursor := ""
			for first := true; first || cursor != ""; first = false {
				page, err := s.Scan(ctx, cursor, 1000)
				if err != nil {
					b.Fatal(err)
				}
				keys = append(keys, page.Keys...)
				cursor = page.Cursor
			}
			if len(keys) != n {
				b.Fatalf("got %d keys", len(keys))
			}
		}
	})
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprint("Load/", workers), func(b *testing.B) {
			for range b.N {
				var next atomic.Int64
				var wg sync.WaitGroup
				for range workers {
					wg.Go(func() {
						for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
							if _, err := s.Load(ctx, keys[i]); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}

func BenchmarkOperations(b *testing.B) {
	s := open(b, b.TempDir())
	rec := record(strings.Repeat("x", 340))
	if err := s.Save(ctx, "k", rec, store.Always); err != nil {
		b.Fatal(err)
	}
	under := s.Under(store.Mark{})
	for name, f := range map[string]func(i int) error{
		"Load":           func(int) error { _, err := s.Load(ctx, "k"); return err },
		"Save":           func(int) error { return s.Save(ctx, "k", rec, store.Always) },
		"Save/IfVersion": func(int) error { return s.Save(ctx, "k", rec, store.IfVersion(rec.Version())) },
		"Save/Under":     func(int) error { return under.Save(ctx, "k", rec, store.Always) },
		"Touch":          func(int) error { return s.Touch(ctx, "k", rec.Expires) },
		"Create+Delete": func(i int) error {
			if err := s.Save(ctx, "new", rec, store.IfAbsent); err != nil {
				return err
			}
			_, err := s.Delete(ctx, "new", store.Always)
			return err
		},
		"Lock+Load+Save+Unlock": func(int) error { return increment(s, "k", "t") },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if err := f(i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
