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

// locked reports whether another process would find the flock taken.
func locked(t testing.TB, path string) bool {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

func wantHolder(t testing.TB, s *file.Store, key, want string) {
	t.Helper()
	token, left, err := s.LockHolder(ctx, key)
	if err != nil || token != want || (left > 0) != (want != "") {
		t.Errorf("LockHolder: got %q with %v left, %v, want %q", token, left, err, want)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantErr(t, "Save", s.Save(ctx, "k", record("1"), store.Always), nil)
	wantHolder(t, s, "k", "")
	wantErr(t, "Lock", s.Lock(ctx, "k", "one", time.Minute), nil)
	wantHolder(t, s, "k", "one")
	if !locked(t, dir+"/sess_k") {
		t.Error("another process does not see the lock")
	}
	// It excludes lockers, the same token included, and not reads and writes.
	for _, token := range []string{"two", "one"} {
		wantErr(t, "Lock by "+token, s.Lock(within(t, 10*time.Millisecond), "k", token, time.Minute), store.ErrLocked)
	}
	wantData(t, s, "k", "1")
	wantErr(t, "Save", s.Save(ctx, "k", record("2"), store.IfVersion(store.VersionOf([]byte("1"), 0))), nil)
	wantErr(t, "Touch", s.Touch(ctx, "k", time.Now().Add(time.Hour)), nil)
	wantData(t, s, "k", "2")
	if held, err := s.Unlock(ctx, "k", "two"); held || err != nil {
		t.Errorf("Unlock with another token: got %v, %v", held, err)
	}
	if held, err := s.Unlock(ctx, "k", "one"); !held || err != nil {
		t.Errorf("Unlock: got %v, %v", held, err)
	}
	if held, err := s.Unlock(ctx, "k", "one"); held || err != nil {
		t.Errorf("Unlock again: got %v, %v", held, err)
	}
	if locked(t, dir+"/sess_k") || !s.Idle() {
		t.Error("still locked")
	}
	wantErr(t, "Lock without a life", s.Lock(ctx, "k", "t", 0), store.ErrInvalid)
	wantErr(t, "Lock without a token", s.Lock(ctx, "k", "", time.Minute), store.ErrInvalid)
}

func TestLockEndsWithItsLife(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wantErr(t, "Lock", s.Lock(ctx, "k", "one", 50*time.Millisecond), nil)
	begin := time.Now()
	wantErr(t, "Lock", s.Lock(within(t, 10*time.Second), "k", "two", time.Minute), nil)
	if took := time.Since(begin); took < 40*time.Millisecond || took > 5*time.Second {
		t.Errorf("the second waited %v", took)
	}
	wantHolder(t, s, "k", "two")
	if held, err := s.Unlock(ctx, "k", "one"); held || err != nil {
		t.Errorf("Unlock by the first: got %v, %v", held, err)
	}
	wantErr(t, "Close", s.Close(), nil)
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("Close left %v", entries)
	}
}

// A lock needs a file, but nobody has saved a session.
func TestLockOfAnAbsentSession(t *testing.T) {
	for _, visible := range []bool{false, true} {
		dir := t.TempDir()
		s := open(t, dir)
		if visible {
			s.Visible()
		}
		path := dir + "/sess_k"
		wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
		if !locked(t, path) {
			t.Error("another process does not see the lock")
		}
		_, err := s.Load(ctx, "k")
		wantErr(t, "Load", err, store.ErrAbsent)
		wantErr(t, "Touch", s.Touch(ctx, "k", time.Now().Add(time.Hour)), store.ErrAbsent)
		if page, err := s.Scan(ctx, "", 10); err != nil || len(page.Keys) > 0 || len(page.Skipped) > 0 {
			t.Errorf("Scan: got %+v, %v", page, err)
		}
		if held, _ := s.Unlock(ctx, "k", "t"); !held {
			t.Error("Unlock: not held")
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Unlock: got %v", err)
		}

		wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
		wantErr(t, "Save of an empty session", s.Save(ctx, "k", record(""), store.IfAbsent), nil)
		wantData(t, s, "k", "")
		if page, err := s.Scan(ctx, "", 10); err != nil || len(page.Keys) != 1 {
			t.Errorf("Scan: got %+v, %v", page, err)
		}
		s.Unlock(ctx, "k", "t")
		wantData(t, s, "k", "")

		// With PHP waiting for the lock, the file stays: PHP would write into one without a name.
		os.Remove(path)
		wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		s.Unlock(ctx, "k", "t")
		if _, err := os.Stat(path); err != nil {
			t.Errorf("after Unlock with PHP waiting: got %v", err)
		}
		f.Close()
	}
}

func TestDeleteUnderTheLock(t *testing.T) {
	for _, visible := range []bool{false, true} {
		dir := t.TempDir()
		s := open(t, dir)
		if visible {
			s.Visible()
		}
		path := dir + "/sess_k"
		wantErr(t, "Save", s.Save(ctx, "k", record("1"), store.Always), nil)
		wantErr(t, "Lock", s.Lock(ctx, "k", "t", time.Minute), nil)
		if existed, err := s.Delete(ctx, "k", store.Always); !existed || err != nil {
			t.Fatalf("Delete: got %v, %v", existed, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Delete: got %v", err)
		}
		_, err := s.Load(ctx, "k")
		wantErr(t, "Load", err, store.ErrAbsent)
		if existed, err := s.Delete(ctx, "k", store.Always); existed || err != nil {
			t.Errorf("Delete again: got %v, %v", existed, err)
		}
		wantHolder(t, s, "k", "t")
		wantErr(t, "Lock by another", s.Lock(within(t, 10*time.Millisecond), "k", "u", time.Minute), store.ErrLocked)
		wantErr(t, "Save", s.Save(ctx, "k", record("2"), store.IfAbsent), nil)
		if !locked(t, path) {
			t.Error("the lock is not on the new file")
		}
		wantData(t, s, "k", "2")
		wantErr(t, "Save", s.Save(ctx, "k", record("3"), store.IfPresent), nil)

		// The collector, or somebody's rm.
		os.Remove(path)
		_, err = s.Load(ctx, "k")
		wantErr(t, "Load of a collected session", err, store.ErrAbsent)
		wantErr(t, "Save", s.Save(ctx, "k", record("4"), store.IfAbsent), nil)
		if !locked(t, path) {
			t.Error("the lock is not on the file after the collector")
		}
		os.Remove(path)
		wantErr(t, "Save over a collected session", s.Save(ctx, "k", record("5"), store.Always), nil)
		wantData(t, s, "k", "5")

		// Deleted, and made anew by PHP, which has the flock.
		s.Delete(ctx, "k", store.Always)
		unlock := foreignLock(t, path)
		wantErr(t, "Save while PHP is at it", s.Save(within(t, 10*time.Millisecond), "k", record("6"), store.Always), store.ErrUnavailable)
		saved := make(chan error)
		go func() { saved <- s.Save(ctx, "k", record("7"), store.IfPresent) }()
		eventually(t, "Save waits", func() bool { return s.Waiting("k") == 1 })
		unlock()
		wantErr(t, "Save after PHP", <-saved, nil)
		if !locked(t, path) {
			t.Error("the lock is not on PHP's file")
		}
		if held, _ := s.Unlock(ctx, "k", "t"); !held || locked(t, path) || !s.Idle() {
			t.Errorf("Unlock: got %v, or something is still held", held)
		}
		wantData(t, s, "k", "7")
	}
}

func TestEverybodyWaitsForAForeignLock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_k", "1")
	unlock := foreignLock(t, dir+"/sess_k")
	for what, call := range map[string]func(context.Context) error{
		"Load":   func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err },
		"Save":   func(ctx context.Context) error { return s.Save(ctx, "k", record("x"), store.Always) },
		"Touch":  func(ctx context.Context) error { return s.Touch(ctx, "k", time.Now().Add(time.Hour)) },
		"Delete": func(ctx context.Context) error { _, err := s.Delete(ctx, "k", store.Always); return err },
	} {
		begin := time.Now()
		err := call(within(t, 30*time.Millisecond))
		wantErr(t, what, err, store.ErrUnavailable)
		wantErr(t, what, err, context.DeadlineExceeded)
		if took := time.Since(begin); took < 25*time.Millisecond || took > 5*time.Second {
			t.Errorf("%s waited %v", what, took)
		}
	}
	wantErr(t, "Lock", s.Lock(within(t, 30*time.Millisecond), "k", "t", time.Minute), store.ErrLocked)
	wantHolder(t, s, "k", "")
	if n := s.Blocked(); n != 1 {
		t.Errorf("%d goroutines wait in flock, want 1", n)
	}

	var wg sync.WaitGroup
	var mu sync.Mutex
	var order []string
	wait := func(name string, n int) {
		wg.Go(func() {
			if err := s.Lock(within(t, 20*time.Second), "k", name, time.Minute); err != nil {
				t.Errorf("Lock: %v", err)
				return
			}
			mu.Lock()
			order = append(order, name)
			mu.Unlock()
			if held, err := s.Unlock(ctx, "k", name); !held || err != nil {
				t.Errorf("Unlock: got %v, %v", held, err)
			}
		})
		eventually(t, "the next one waits", func() bool { return s.Waiting("k") == n })
	}
	for i := range 5 {
		wait(fmt.Sprint(i), 2*i+1)
		wg.Go(func() { wantData(t, s, "k", "1") })
		eventually(t, "a reader waits", func() bool { return s.Waiting("k") == 2*i+2 })
	}
	if n := s.Blocked(); n != 1 {
		t.Errorf("%d goroutines wait in flock for one session, want 1", n)
	}
	unlock()
	wg.Wait()
	if got := strings.Join(order, ""); got != "01234" {
		t.Errorf("the locks were given in the order %s", got)
	}
	eventually(t, "nothing is held", s.Idle)
}

// A shared flock of somebody who reads: reads go on, writes wait.
func TestForeignSharedLock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_k", "1")
	f, err := os.Open(dir + "/sess_k")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(within(t, time.Second), "k"); err != nil {
		t.Errorf("Load: %v", err)
	}
	wantErr(t, "Save", s.Save(within(t, 10*time.Millisecond), "k", record("2"), store.Always), store.ErrUnavailable)
	f.Close()
	eventually(t, "nothing is held", s.Idle)
}

func TestDestroyedWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_k", "1")
	unlock := foreignLock(t, dir+"/sess_k")
	errs := make(chan error, 4)
	go func() { _, err := s.Load(ctx, "k"); errs <- err }()
	eventually(t, "Load waits", func() bool { return s.Waiting("k") == 1 })
	os.Remove(dir + "/sess_k") // as session_destroy does, under the flock
	unlock()
	wantErr(t, "Load", <-errs, store.ErrAbsent)

	put(t, dir+"/sess_k", "1")
	unlock = foreignLock(t, dir+"/sess_k")
	go func() { errs <- s.Save(ctx, "k", record("2"), store.IfPresent) }()
	eventually(t, "Save waits", func() bool { return s.Waiting("k") == 1 })
	go func() { errs <- s.Lock(ctx, "k", "t", time.Minute) }()
	eventually(t, "Lock waits", func() bool { return s.Waiting("k") == 2 })
	os.Remove(dir + "/sess_k")
	unlock()
	a, b := <-errs, <-errs
	if !(a == nil && errors.Is(b, store.ErrConflict) || b == nil && errors.Is(a, store.ErrConflict)) {
		t.Errorf("Save and Lock: got %v and %v, want a conflict and a lock", a, b)
	}
	_, err := s.Load(ctx, "k")
	wantErr(t, "Load", err, store.ErrAbsent)
	wantHolder(t, s, "k", "t")
}

func TestWaitersAreBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var unlock []func()
	var wg sync.WaitGroup
	waiting, cancel := context.WithCancel(ctx)
	for i := range file.MaxBlocked {
		key := fmt.Sprint("k", i)
		unlock = append(unlock, foreignLock(t, dir+"/sess_"+key))
		wg.Go(func() {
			if err := s.Lock(waiting, key, "t", time.Minute); !errors.Is(err, store.ErrLocked) {
				t.Errorf("Lock: got %v, want locked", err)
			}
		})
	}
	eventually(t, "all wait", func() bool { return s.Blocked() == file.MaxBlocked })
	unlock = append(unlock, foreignLock(t, dir+"/sess_more"))
	_, err := s.Load(ctx, "more")
	wantErr(t, "Load of one more", err, store.ErrUnavailable)
	wantErr(t, "Lock of one more", s.Lock(ctx, "more", "t", time.Minute), store.ErrUnavailable)
	wantErr(t, "Lock of a free one", s.Lock(ctx, "free", "t", time.Minute), nil)
	s.Unlock(ctx, "free", "t")
	cancel()
	wg.Wait()
	for _, f := range unlock {
		f()
	}
	eventually(t, "nothing is held", func() bool { return s.Idle() && s.Blocked() == 0 })
	for i := range file.MaxBlocked {
		if locked(t, fmt.Sprint(dir, "/sess_k", i)) {
			t.Fatal("a lock was kept that nobody waited for any more")
		}
	}
}

func TestCloseWhileOthersHoldLocks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, dir+"/sess_mine", "1")
	unlock := foreignLock(t, dir+"/sess_theirs")
	wantErr(t, "Lock", s.Lock(ctx, "mine", "t", time.Minute), nil)
	errs := make(chan error, 2)
	go func() { errs <- s.Lock(ctx, "theirs", "t", time.Minute) }()
	go func() { _, err := s.Load(ctx, "theirs"); errs <- err }()
	eventually(t, "both wait", func() bool { return s.Waiting("theirs") == 2 })
	wantErr(t, "Close", s.Close(), nil)
	wantErr(t, "a waiting Lock", <-errs, store.ErrUnavailable)
	wantErr(t, "a waiting Load", <-errs, store.ErrUnavailable)
	if locked(t, dir+"/sess_mine") {
		t.Error("Close left a lock")
	}
	unlock()
	eventually(t, "the goroutine in flock ends", func() bool { return s.Blocked() == 0 })
	if locked(t, dir+"/sess_theirs") {
		t.Error("a closed store took a lock")
	}
}

// Everything at once, with the collector, and nothing may be left over.
func TestLockChaos(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	before := openFiles(t)
	end := time.Now().Add(2 * time.Second)
	if testing.Short() {
		end = time.Now().Add(200 * time.Millisecond)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	inside := map[string]string{}
	for g := range 16 {
		wg.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				key := fmt.Sprint("k", (i+g)%3)
				token := fmt.Sprint(g, "-", i)
				c, cancel := context.WithTimeout(ctx, time.Duration(i%7)*time.Millisecond+time.Microsecond)
				switch (i * (g + 1)) % 11 {
				case 0, 1, 2:
					if s.Lock(c, key, token, time.Minute) == nil {
						mu.Lock()
						if inside[key] != "" {
							t.Errorf("two hold the lock: %s and %s", inside[key], token)
						}
						inside[key] = token
						mu.Unlock()
						s.Save(c, key, record(token), store.Always)
						mu.Lock()
						inside[key] = ""
						mu.Unlock()
						if held, err := s.Unlock(ctx, key, token); !held || err != nil {
							t.Errorf("Unlock: got %v, %v", held, err)
						}
					}
				case 3:
					s.Delete(c, key, store.Always)
				case 4:
					if f, err := os.OpenFile(dir+"/sess_"+key, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
						unix.Flock(int(f.Fd()), unix.LOCK_EX)
						f.WriteAt([]byte("php"), 0)
						f.Close()
					}
				case 5:
					os.Remove(dir + "/sess_" + key)
				case 6:
					s.Scan(c, "", 10)
				case 7:
					s.Touch(c, key, time.Now().Add(time.Hour))
				default:
					if err := s.Save(c, key, record(token), store.Always); err != nil && !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("Save: %v", err)
					}
					if _, err := s.Load(c, key); err != nil && !errors.Is(err, store.ErrAbsent) && !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("Load: %v", err)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	eventually(t, "nothing is held", func() bool { return s.Idle() && s.Blocked() == 0 })
	if after := openFiles(t); after != before {
		t.Errorf("descriptors: %d before, %d after", before, after)
	}
}
