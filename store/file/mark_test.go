package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/file"
	"golang.org/x/sys/unix"
)

var (
	markA = store.Mark{Identity: "0123456789abcdef"}
	markB = store.Mark{Identity: "0123456789abcdef", Seal: store.Seal{Workflow: "shop", Epoch: 7, Floor: store.FloorSync}}
	markC = store.Mark{Identity: "0123456789abcdef", Seal: store.Seal{Workflow: "shop", Epoch: 1 << 63, Floor: store.FloorRampDown}}
)

func TestMark(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantMark := func(want store.Mark) {
		t.Helper()
		if got, err := s.Mark(ctx); err != nil || got != want {
			t.Errorf("Mark: got %+v, %v, want %+v", got, err, want)
		}
	}
	wantMark(store.Mark{})
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("Mark left %v", entries)
	}
	wantErr(t, "SwapMark from another", s.SwapMark(ctx, markA, markB), store.ErrConflict)
	wantMark(store.Mark{})
	for _, step := range [][2]store.Mark{{{}, markA}, {markA, markB}, {markB, markC}, {markC, {}}, {{}, markB}} {
		wantErr(t, "SwapMark", s.SwapMark(ctx, step[0], step[1]), nil)
		wantMark(step[1])
		st, err := os.Stat(dir + "/.sessile")
		if err != nil || st.Size() != 1024 || st.Mode() != 0o600 {
			t.Errorf("got %v", st)
		}
		other := open(t, dir)
		if got, err := other.Mark(ctx); err != nil || got != step[1] {
			t.Errorf("Mark in another process: got %+v, %v, want %+v", got, err, step[1])
		}
		if step[0] != step[1] {
			wantErr(t, "SwapMark again", s.SwapMark(ctx, step[0], step[1]), store.ErrConflict)
		}
	}
	long := markA
	long.Seal.Workflow = strings.Repeat("w", 1024)
	wantErr(t, "SwapMark to a long one", s.SwapMark(ctx, markB, long), store.ErrInvalid)
	wantErr(t, "SwapMark to one that is not text", s.SwapMark(ctx, markB, store.Mark{Identity: "\xff"}), store.ErrInvalid)
	wantErr(t, "SwapMark to an unknown floor", s.SwapMark(ctx, markB, store.Mark{Seal: store.Seal{Floor: 9}}), store.ErrInvalid)
	wantMark(markB)
	os.Remove(dir + "/.sessile")
	wantErr(t, "Save under a mark that cannot be", s.Under(long).Save(ctx, "k", record("x"), store.Always), store.ErrSealed)
}

func FuzzMark(f *testing.F) {
	for _, m := range []store.Mark{{}, markA, markB, markC} {
		line, err := file.EncodeMark(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte("sessile 1 0123456789abcdef {"))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := file.DecodeMark(line)
		if err != nil {
			if m != (store.Mark{}) || store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("got %+v, %v", m, err)
			}
			return
		}
		if m == (store.Mark{}) && len(line) > 0 {
			if _, err := file.EncodeMark(m); err != nil {
				t.Error(err)
			}
		}
		if len(line) != 0 && len(line) != 1024 {
			t.Errorf("a mark of %d bytes was read", len(line))
		}
	})
}

// What cannot be read is an error and never the zero Mark.
func TestDamagedMark(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/.sessile"
	s := open(t, dir)
	wantErr(t, "SwapMark", s.SwapMark(ctx, store.Mark{}, markB), nil)
	good := get(t, path)
	wantErr(t, "SwapMark", s.SwapMark(ctx, markB, markC), nil)
	next := get(t, path)
	cases := map[string]func() error{
		"zeros":          func() error { return os.WriteFile(path, make([]byte, 1024), 0o600) },
		"blanks":         func() error { return os.WriteFile(path, []byte(strings.Repeat(" ", 1024)), 0o600) },
		"cut":            func() error { return os.WriteFile(path, []byte(good[:512]), 0o600) },
		"one byte":       func() error { return os.WriteFile(path, []byte("{"), 0o600) },
		"longer":         func() error { return os.WriteFile(path, []byte(good+" "), 0o600) },
		"torn":           func() error { return os.WriteFile(path, []byte(good[:100]+next[100:]), 0o600) },
		"wrong checksum": func() error { return os.WriteFile(path, []byte(strings.Replace(good, "shop", "shap", 1)), 0o600) },
		"wrong version": func() error {
			return os.WriteFile(path, []byte(strings.Replace(good, "sessile 1", "sessile 2", 1)), 0o600)
		},
		"writable for all": func() error { return errors.Join(os.WriteFile(path, []byte(good), 0o600), os.Chmod(path, 0o666)) },
		"a directory":      func() error { return os.Mkdir(path, 0o700) },
		"a symlink":        func() error { return os.Symlink("/etc/passwd", path) },
		"a dangling link":  func() error { return os.Symlink("nowhere", path) },
		"a FIFO":           func() error { return unix.Mkfifo(path, 0o600) },
	}
	if os.Geteuid() == 0 {
		cases["planted by another user"] = func() error { return errors.Join(os.WriteFile(path, []byte(good), 0o600), os.Chown(path, www, www)) }
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			os.RemoveAll(path)
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			m, err := s.Mark(within(t, 5*time.Second))
			if err == nil || m != (store.Mark{}) || store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("Mark: got %+v, %v", m, err)
			}
			for _, old := range []store.Mark{{}, markB} {
				wantErr(t, "SwapMark", s.SwapMark(within(t, 5*time.Second), old, markA), store.ErrUnavailable)
				err := s.Under(old).Save(within(t, 5*time.Second), "k", record("x"), store.Always)
				wantErr(t, "Save under it", err, store.ErrUnavailable)
			}
			_, err = s.Load(ctx, "k")
			wantErr(t, "Load", err, store.ErrAbsent)
		})
	}
}

func TestUnder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	writes := func(st store.Store) map[string]error {
		errs := map[string]error{}
		errs["Save"] = st.Save(ctx, "k", record("2"), store.Always)
		errs["Save of a new one"] = st.Save(ctx, "new", record("2"), store.Always)
		errs["Touch"] = st.Touch(ctx, "k", time.Now().Add(2*lifetime))
		_, errs["Delete of nothing"] = st.Delete(ctx, "none", store.Always)
		_, errs["Delete"] = st.Delete(ctx, "k", store.Always)
		return errs
	}
	steps := []store.Mark{{}, markA, markB, markC}
	for i, now := range steps {
		if i > 0 {
			wantErr(t, "SwapMark", s.SwapMark(ctx, steps[i-1], now), nil)
		}
		for _, under := range steps {
			s.Delete(ctx, "new", store.Always)
			deadline := time.Now().Add(lifetime)
			wantErr(t, "Save", s.Save(ctx, "k", store.Record{Data: []byte("1"), Expires: deadline}, store.Always), nil)
			for what, err := range writes(s.Under(under)) {
				if under == now {
					wantErr(t, what, err, nil)
				} else {
					wantErr(t, fmt.Sprintf("%s under %+v while it is %+v", what, under, now), err, store.ErrSealed)
				}
			}
			if under != now {
				rec, err := s.Under(under).Load(ctx, "k")
				if err != nil || string(rec.Data) != "1" || !rec.Expires.Equal(deadline) {
					t.Errorf("after refused writes: got %q until %v, %v", rec.Data, rec.Expires, err)
				}
				_, err = s.Load(ctx, "new")
				wantErr(t, "Load", err, store.ErrAbsent)
			}
		}
	}
	// The lock is one and the same, and nothing is left locked.
	u := s.Under(markC)
	wantErr(t, "Lock", u.Lock(ctx, "k", "t", time.Minute), nil)
	wantErr(t, "Lock", s.Lock(within(t, 10*time.Millisecond), "k", "u", time.Minute), store.ErrLocked)
	wantErr(t, "Save under the lock", u.Save(ctx, "k", record("3"), store.Always), nil)
	if held, _ := s.Unlock(ctx, "k", "t"); !held || locked(t, dir+"/.sessile") {
		t.Error("Unlock: not held, or the seal is still locked")
	}
	// Somebody removes the file: the zero Mark, which nothing was begun under.
	os.Remove(dir + "/.sessile")
	wantErr(t, "Save", u.Save(ctx, "k", record("4"), store.Always), store.ErrSealed)
}

// SwapMark waits for writes under way, in this process and in others, and is not kept out by many.
func TestSwapMarkAmongWrites(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	m := store.Mark{}
	for w := range 16 {
		st := s.Under(m)
		if w%2 == 1 {
			st = other.Under(m)
		}
		wg.Go(func() {
			sealed := false
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				switch err := st.Save(ctx, fmt.Sprint("k", w), record(fmt.Sprint(i)), store.Always); {
				case errors.Is(err, store.ErrSealed):
					sealed = true
				case err != nil:
					t.Errorf("Save: %v", err)
					return
				case sealed:
					t.Error("a write after one that was refused")
					return
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	wantErr(t, "SwapMark", s.SwapMark(ctx, m, markA), nil)
	t.Logf("SwapMark among 16 writers took %v", time.Since(begin))
	var after [16]store.Record
	for i := range after {
		after[i], _ = s.Load(ctx, fmt.Sprint("k", i))
	}
	time.Sleep(20 * time.Millisecond)
	for i := range after {
		if rec, _ := s.Load(ctx, fmt.Sprint("k", i)); string(rec.Data) != string(after[i].Data) {
			t.Errorf("k%d was written after SwapMark had returned", i)
		}
	}
	close(stop)
	wg.Wait()

	// Two swap at once: one wins.
	var won, lost int
	var mu sync.Mutex
	for i := range 8 {
		wg.Go(func() {
			next := markB
			next.Seal.Epoch = uint64(100 + i)
			err := []interface {
				SwapMark(context.Context, store.Mark, store.Mark) error
			}{s, other}[i%2].SwapMark(ctx, markA, next)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case errors.Is(err, store.ErrConflict):
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 7 {
		t.Errorf("%d won and %d lost", won, lost)
	}
}

// Whoever holds the seal's lock keeps writes out for no longer than the bound.
func TestSealLockThatIsHeld(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantErr(t, "SwapMark", s.SwapMark(ctx, store.Mark{}, markA), nil)
	unlock := foreignLock(t, dir+"/.sessile")
	begin := time.Now()
	c := within(t, 50*time.Millisecond)
	wantErr(t, "Save", s.Under(markA).Save(c, "k", record("1"), store.Always), store.ErrUnavailable)
	_, err := s.Mark(c)
	wantErr(t, "Mark", err, store.ErrUnavailable)
	wantErr(t, "SwapMark", s.SwapMark(within(t, 50*time.Millisecond), markA, markB), store.ErrUnavailable)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	wantErr(t, "Save without a seal", s.Save(ctx, "k", record("1"), store.Always), nil)
	unlock()
	wantErr(t, "Save", s.Under(markA).Save(ctx, "k", record("2"), store.Always), nil)
}

func TestFailedSwapMark(t *testing.T) {
	mnt := tmpfs(t, "size=64k")
	s := open(t, mnt)
	if err := os.WriteFile(mnt+"/ballast", make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	wantErr(t, "SwapMark on a full disk", s.SwapMark(ctx, store.Mark{}, markA), store.ErrUnavailable)
	if m, err := s.Mark(ctx); err != nil || m != (store.Mark{}) {
		t.Errorf("got %+v, %v, want the zero Mark", m, err)
	}
}
