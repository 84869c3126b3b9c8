package file

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

// Everything about a session happens under a flock on its file, as in PHP: shared for reading, exclusive for the rest.

// Calls that tests make fail.
var (
	pwrite    = unix.Pwrite
	fallocate = unix.Fallocate
)

var (
	errAbsent   = fmt.Errorf("store/file: %w", store.ErrAbsent)
	errConflict = fmt.Errorf("store/file: %w", store.ErrConflict)

	// Inside the package only, and never wrapped.
	errAgain = errors.New("begin again: the name leads to another file now")
	errBusy  = errors.New("somebody else has the flock")
)

// A file is a session's file, open and flocked.
type file struct {
	fd, dir  int
	lock     int // the file that the flock is on, where that is another: see Layout; else -1
	key      string
	name     string
	how      int  // unix.LOCK_SH or unix.LOCK_EX
	readOnly bool // by this process's rights
	dead     bool // the name does not lead here any more
	st       unix.Stat_t

	// fresh: Lock made this file, to have something to lock, and nobody has written to it since. Until then there is
	// no session.
	fresh atomic.Bool

	io    sync.Mutex // one operation at a time where several share the file
	entry *entry     // whose users share it, nil for a file that one operation has to itself; guarded by Store.mu
	refs  int        // users of a shared file, the owner of the application's lock being one; guarded by Store.mu
}

func (f *file) absent() bool { return f == nil || f.fresh.Load() }

// An op is one operation under way.
type op struct {
	ctx   context.Context
	key   string
	since time.Time // its beginning, or the end of its wait for a lock
	bound time.Duration
}

// late says why the operation must not be executed any more. It is asked right before the system call that would: a
// write that is late must not land (PROTOCOL.md, section 4).
func (o *op) late() error {
	if err := store.Gone(o.ctx); err != nil {
		return fmt.Errorf("store/file: too late to write: %w", err)
	}
	now := time.Now()
	if end, ok := o.ctx.Deadline(); ok && !now.Before(end) || now.Sub(o.since) > o.bound {
		return unavailable("too late to write", nil)
	}
	return nil
}

// do runs step with key's file, flocked, or with nil where there is none. If seal is not nil the origin's mark stays
// what it is until step has returned. The seal's lock is taken last and never held while waiting for a session's, which
// a page of PHP may hold for minutes.
func (s *Store) do(ctx context.Context, key string, seal *sealing, how int, step func(*op, *file) error) error {
	if err := s.check(key); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.live.RUnlock()
	o := &op{ctx: ctx, key: key, since: time.Now(), bound: s.opt.OpBound}
	for {
		f, err := s.acquire(o, how)
		if err != nil {
			return err
		}
		if seal != nil {
			err = s.sealed(o, seal, func() error { return step(o, f) })
		} else {
			err = step(o, f)
		}
		if f != nil {
			s.release(f)
		}
		if err == errBusy { // somebody else has the lock of a session that is not there
			time.Sleep(time.Millisecond)
			o.since, err = time.Now(), store.Gone(ctx)
			if err == nil {
				err = errAgain
			}
		}
		if err != errAgain {
			return err
		}
	}
}

// acquire returns key's file under a flock: that of the application's lock where this process holds it, else one of
// its own, for which it waits as long as ctx lasts. It returns nil where there is no file.
func (s *Store) acquire(o *op, how int) (*file, error) {
	for {
		f := s.join(o.key)
		if f == nil {
			if err := store.Gone(o.ctx); err != nil {
				return nil, fmt.Errorf("store/file: %w", err)
			}
			var err error
			f, err = s.open(o.key, how)
			if err == errBusy {
				f, err = s.await(o)
				if f == nil && err == nil {
					continue
				}
				o.since = time.Now()
			}
			if err != nil || f == nil {
				return nil, err
			}
		}
		if how == unix.LOCK_SH && f.st.Nlink > 0 || f.current() {
			err := s.refuse(f)
			if err != nil {
				f.dead = true // nor is it one for the application's lock
				s.release(f)
				f = nil
			}
			return f, err
		}
		s.forget(f)
		s.release(f)
	}
}

// open opens key's file and takes the flock if nobody else has it; errBusy if somebody has. It returns nil where there
// is no file.
func (s *Store) open(key string, how int) (*file, error) {
	f, err := s.openFile(key, how)
	if f == nil {
		return nil, err
	}
	if err := s.flock(f, how|unix.LOCK_NB); err != nil {
		s.close(f)
		switch err {
		case unix.EWOULDBLOCK:
			return nil, errBusy
		case errAgain:
			return s.open(key, how)
		}
		return nil, unavailable("flock", err)
	}
	if err := unix.Fstat(f.fd, &f.st); err != nil {
		s.close(f)
		return nil, unavailable("fstat", err)
	}
	return f, nil
}

// openFile never asks to create the file: with fs.protected_regular not even root may do that where another user's
// file exists already in a directory like Debian's.
func (s *Store) openFile(key string, how int) (*file, error) {
	dir, err := s.level(key)
	if err == unix.ENOENT {
		return nil, s.gone()
	}
	if err != nil {
		return nil, unavailable("directory level", err)
	}
	f := &file{dir: dir, lock: -1, key: key, name: s.fileName(key), how: how}
	// O_NONBLOCK: the open of a FIFO must not wait.
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	if how == unix.LOCK_SH {
		flags ^= unix.O_RDWR
		if s.can(unix.CAP_FOWNER) {
			flags |= unix.O_NOATIME
		}
	}
	f.fd, err = openat(dir, f.name, flags, 0)
	if err == unix.EPERM && flags&unix.O_NOATIME != 0 { // the capability does not reach users outside our namespace
		f.fd, err = openat(dir, f.name, flags^unix.O_NOATIME, 0)
	}
	if how == unix.LOCK_EX && (err == unix.EACCES || err == unix.EROFS || err == unix.EPERM) {
		f.readOnly = true
		f.fd, err = openat(dir, f.name, flags^unix.O_RDWR, 0)
	}
	if err == nil {
		if err = s.openLock(f); err != nil {
			s.close(f)
			return nil, err
		}
		return f, nil
	}
	s.leave(dir)
	switch err {
	case unix.ENOENT:
		return nil, s.gone()
	case unix.ELOOP:
		return nil, &store.RefusedError{Reason: reasonSymlink}
	case unix.ENXIO, unix.ENODEV, unix.EISDIR:
		return nil, &store.RefusedError{Reason: reasonType}
	case unix.EWOULDBLOCK: // a lease is being broken: see discard
		return nil, errBusy
	}
	return nil, unavailable("open", err)
}

func (s *Store) close(f *file) {
	unix.Close(f.fd) // and with it the flock
	if f.lock >= 0 {
		unix.Close(f.lock)
	}
	s.leave(f.dir)
}

// current reports whether the name still leads to the file. PHP unlinks under the flock, its collector without.
func (f *file) current() bool {
	var named unix.Stat_t
	return f.st.Nlink > 0 && unix.Fstatat(f.dir, f.name, &named, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		named.Ino == f.st.Ino && named.Dev == f.st.Dev
}

// refuse says no to what PHP would not open, and to a hard link that may have been made to have us read or write a file
// of somebody else.
func (s *Store) refuse(f *file) error {
	switch st := &f.st; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return &store.RefusedError{Reason: reasonType}
	case s.opt.Owner != nil && st.Uid != 0 && int(st.Uid) != s.opt.Owner.UID:
		return &store.RefusedError{Reason: reasonOwner}
	case st.Nlink > 1 && int(st.Uid) != s.owner.UID:
		return &store.RefusedError{Reason: reasonLinks}
	}
	return nil
}

// writable says whether what Save and Touch do to a file is this process's right, before any of it is done: only the
// owner may set a file's times.
func (s *Store) writable(f *file) error {
	switch {
	case s.cantSave != nil:
		return s.cantSave
	case f.readOnly, int(f.st.Uid) != s.euid && !s.can(unix.CAP_FOWNER):
		return unavailable("the session's file belongs to another user", unix.EACCES)
	}
	return nil
}

func (s *Store) read(f *file) ([]byte, error) {
	if f.st.Size > int64(s.opt.MaxValue) {
		return nil, &store.RefusedError{Reason: reasonSize}
	}
	data := make([]byte, f.st.Size)
	for n := 0; n < len(data); {
		got, err := unix.Pread(f.fd, data[n:], int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, unavailable("read", err)
		case got == 0: // somebody who knows no flock has cut it
			return nil, errAgain
		}
		n += max(got, 0)
	}
	return data, nil
}

// aboutContent reports whether cond needs the version of what is there, and not only whether something is.
func aboutContent(cond store.Condition) bool { return len(cond.Encode()) > 1 }

// holds evaluates cond for a file with this content.
func (s *Store) holds(cond store.Condition, content []byte) bool {
	if aboutContent(cond) {
		return cond.Holds(store.VersionOf(s.opt.body(content), 0))
	}
	return cond.Holds("any")
}

// Load implements store.Store. Expires is always filled, and lies in the past for a session that PHP's collector has
// not removed yet.
func (s *Store) Load(ctx context.Context, key string) (rec store.Record, err error) {
	err = s.do(ctx, key, nil, unix.LOCK_SH, func(_ *op, f *file) (err error) {
		if f.absent() {
			return errAbsent
		}
		content, err := s.read(f)
		rec.Data = s.opt.body(content)
		rec.Expires = modified(&f.st).Add(s.opt.Lifetime)
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	return rec, nil
}

// Inspect implements store.Store; it is Load.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	return s.Load(ctx, key)
}

// Save implements store.Store.
//
// A new session appears in one step, complete. One that exists is written in place, because PHP's lock is on the file
// and not on the name, in PHP's order: if it gets shorter ftruncate to 0, then one pwrite, then the deadline. SIGKILL
// after the ftruncate leaves an empty session, within the pwrite a session whose first pages are new (a write of less
// than a page is not divided), after it one whose deadline is a full Lifetime away. The other order, write and then
// cut, would leave the new session with the old one's tail, in which PHP may find variables that had been unset.
//
// A full disk costs no session: the space is reserved before anything is touched, and where that cannot be done or is
// not enough the old content is put back. store.ErrUnknown says that this failed too.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.save(ctx, key, rec, cond, nil)
}

func (s *Store) save(ctx context.Context, key string, rec store.Record, cond store.Condition, seal *sealing) error {
	switch {
	case rec.Flags != 0:
		return fmt.Errorf("store/file: %w: files keep no flags", store.ErrInvalid)
	case len(rec.Data) > s.opt.MaxValue:
		return fmt.Errorf("store/file: %w: %d bytes are more than %d", store.ErrInvalid, len(rec.Data), s.opt.MaxValue)
	}
	mtime, err := s.mtime(rec.Expires)
	if err == nil {
		rec.Data, err = s.opt.content(rec.Data)
	}
	if err != nil {
		return err
	}
	return s.do(ctx, key, seal, unix.LOCK_EX, func(o *op, f *file) error {
		if f.absent() && !cond.Holds(store.Absent) {
			return errConflict
		}
		if f == nil {
			f, err := s.make(o.key, rec.Data, mtime, o.late)
			if err == nil {
				s.release(f)
			}
			return err
		}
		old, err := s.read(f)
		if err != nil {
			return err
		}
		if !f.absent() && !s.holds(cond, old) {
			return errConflict
		}
		if err := s.writable(f); err != nil {
			return err
		}
		return f.rewrite(o, old, rec.Data, mtime)
	})
}

// mtime returns the modification time that says expires.
func (s *Store) mtime(expires time.Time) (time.Time, error) {
	if !expires.After(time.Now()) {
		return time.Time{}, fmt.Errorf("store/file: %w: the deadline is not in the future", store.ErrInvalid)
	}
	return expires.Add(-s.opt.Lifetime), nil
}

func (f *file) rewrite(o *op, old, data []byte, mtime time.Time) error {
	if int64(len(data)) > f.st.Blocks*512 {
		switch err := fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, 0, int64(len(data))); err {
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EIO:
			return unavailable("save", err)
		} // other errors: a file system that cannot reserve
	}
	if err := o.late(); err != nil {
		return err
	}
	var err error
	if len(data) < len(old) {
		err = unix.Ftruncate(f.fd, 0)
	}
	if err == nil {
		err = write(f.fd, data)
	}
	if err != nil {
		if write(f.fd, old) == nil && unix.Ftruncate(f.fd, int64(len(old))) == nil && setTime(f.fd, modified(&f.st)) == nil {
			return unavailable("save: put back what was there", err)
		}
		return unknown("save: could not put back what was there", err)
	}
	f.fresh.Store(false)
	return f.settle(mtime)
}

// write is one pwrite at offset 0. One that is short has failed.
func write(fd int, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	n, err := pwrite(fd, data, 0)
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	return err
}

// settle sets the deadline, the last step of a write. A file that has lost its name meanwhile was collected as overdue:
// what was written to it has not happened.
func (f *file) settle(mtime time.Time) error {
	if err := f.setDeadline(mtime); err != nil {
		return unknown("set the deadline", err)
	}
	if f.st.Nlink == 0 {
		return errAgain
	}
	return nil
}

// setDeadline never sets an earlier one, not even on a file system that rounds times down to 1 or 2 seconds.
func (f *file) setDeadline(mtime time.Time) error {
	err := setTime(f.fd, mtime)
	if err == nil {
		err = unix.Fstat(f.fd, &f.st)
	}
	if err == nil && modified(&f.st).Before(mtime) {
		err = setTime(f.fd, mtime.Add(2*time.Second))
	}
	return err
}

func modified(st *unix.Stat_t) time.Time {
	sec, nsec := st.Mtim.Unix()
	return time.Unix(sec, nsec)
}

// setTime is futimens(2), which package unix does not have.
func setTime(fd int, mtime time.Time) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// make makes key's file with data in it and returns it flocked; errAgain if there is one meanwhile. It asks last, if
// not nil, right before the file can be seen.
//
// The file gets its name when it is complete and locked. Where the file system has no such files (O_TMPFILE; NFS) it is
// there, empty, for a moment before it is locked and written, as PHP's are.
func (s *Store) make(key string, data []byte, mtime time.Time, last func() error) (*file, error) {
	if err := errors.Join(s.cantSave, s.cantMake); err != nil {
		return nil, err
	}
	dir, err := s.level(key)
	if err == unix.ENOENT {
		if err := s.gone(); err != nil {
			return nil, err
		}
		return nil, unavailable(fmt.Sprintf("a directory of the %d levels is missing; neither PHP nor this store makes it: mkdir", s.opt.Depth), nil)
	}
	if err != nil {
		return nil, unavailable("directory level", err)
	}
	f := &file{dir: dir, lock: -1, key: key, name: s.fileName(key), how: unix.LOCK_EX}
	hidden := !s.visible.Load()
	if hidden {
		f.fd, err = openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR, uint32(s.opt.Mode))
		if err == unix.EOPNOTSUPP || err == unix.EISDIR || err == unix.EINVAL {
			s.visible.Store(true)
			hidden, err = false, nil
		}
	}
	if !hidden {
		if last != nil {
			err = last()
		}
		if err == nil {
			f.fd, err = openat(dir, f.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint32(s.opt.Mode))
		}
	}
	if err != nil {
		s.leave(dir)
		switch {
		case err == unix.EEXIST:
			return nil, errAgain
		case errors.Is(err, store.ErrUnavailable):
			return nil, err
		}
		return nil, unavailable("create", err)
	}
	if err = s.openLock(f); err == nil {
		err = s.fill(f, data, mtime, hidden)
	} else if !hidden {
		unix.Unlinkat(f.dir, f.name, 0)
	}
	if err == nil && hidden && last != nil {
		err = last()
	}
	if err == nil && hidden {
		err = s.link(f)
	}
	if err != nil {
		s.close(f)
		return nil, err
	}
	return f, nil
}

// fill makes a new file what it shall be. In one that others can see already they may be faster; then it is theirs.
func (s *Store) fill(f *file, data []byte, mtime time.Time, hidden bool) error {
	err := unix.Fstat(f.fd, &f.st)
	if err == nil {
		err = unix.Fchmod(f.fd, uint32(s.opt.Mode))
	}
	uid, gid := s.owner.UID, s.owner.GID
	if uid == s.euid && !s.can(unix.CAP_CHOWN) {
		uid, gid = -1, -1
	}
	if err == nil && (uid >= 0 && uid != int(f.st.Uid) || gid >= 0 && gid != int(f.st.Gid)) {
		err = unix.Fchown(f.fd, uid, gid)
	}
	if err == nil {
		err = s.flock(f, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil && !hidden {
		err = unix.Fstat(f.fd, &f.st)
	}
	if f.lock >= 0 && (err == unix.EWOULDBLOCK || err == errAgain) {
		if !hidden {
			unix.Unlinkat(f.dir, f.name, 0)
		}
		if err == unix.EWOULDBLOCK {
			err = errBusy // of a session that is not there
		}
		return err
	}
	if err == unix.EWOULDBLOCK || err == nil && !hidden && (f.st.Size > 0 || f.st.Nlink == 0) {
		return errAgain
	}
	if err == nil {
		err = write(f.fd, data)
	}
	if err == nil {
		err = f.setDeadline(mtime)
	}
	if err == nil {
		return nil
	}
	if !hidden {
		if unlinked := unix.Unlinkat(f.dir, f.name, 0); unlinked != nil {
			return unknown("create: could not remove the incomplete file", err)
		}
	}
	return unavailable("create", err)
}

func (s *Store) link(f *file) error {
	err := unix.Linkat(f.fd, "", f.dir, f.name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT { // needs CAP_DAC_READ_SEARCH; this needs /proc
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(f.fd), f.dir, f.name, unix.AT_SYMLINK_FOLLOW)
	}
	switch err {
	case nil:
		return nil
	case unix.EEXIST:
		return errAgain
	case unix.ENOSPC, unix.EDQUOT, unix.EACCES, unix.EROFS:
		return unavailable("create", err)
	case unix.EIO:
		return unknown("create", err)
	}
	s.visible.Store(true)
	return errAgain
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.touch(ctx, key, expires, nil)
}

func (s *Store) touch(ctx context.Context, key string, expires time.Time, seal *sealing) error {
	mtime, err := s.mtime(expires)
	if err != nil {
		return err
	}
	return s.do(ctx, key, seal, unix.LOCK_EX, func(o *op, f *file) error {
		if f.absent() {
			return errAbsent
		}
		if err := s.writable(f); err != nil {
			return err
		}
		if err := o.late(); err != nil {
			return err
		}
		return f.settle(mtime)
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return s.delete(ctx, key, cond, nil)
}

func (s *Store) delete(ctx context.Context, key string, cond store.Condition, seal *sealing) (existed bool, err error) {
	err = s.do(ctx, key, seal, unix.LOCK_EX, func(o *op, f *file) (err error) {
		if f.absent() {
			if !cond.Holds(store.Absent) {
				return errConflict
			}
			return nil
		}
		var data []byte
		if aboutContent(cond) { // otherwise even one that is too large can be deleted
			if data, err = s.read(f); err != nil {
				return err
			}
		}
		if !s.holds(cond, data) {
			return errConflict
		}
		if s.cantSave != nil {
			return s.cantSave
		}
		if err := o.late(); err != nil {
			return err
		}
		switch err := unix.Unlinkat(f.dir, f.name, 0); err {
		case nil:
			existed = true
			s.forget(f)
			return nil
		case unix.ENOENT:
			return errAgain
		case unix.EIO:
			return unknown("delete", err)
		default:
			return unavailable("delete", err)
		}
	})
	return existed, err
}

func flock(fd, how int) error {
	if !guard.On(guard.Flock) {
		return nil
	}
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}
