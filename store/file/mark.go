package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

// Identity and seal lie in one file of a fixed size, written by one pwrite: a line
//
//	sessile 1 <16 hex digits of the SHA-256 of what follows> {"identity":...,"seal":{...}}
//
// padded with blanks. An empty file is the zero Mark, anything else that does not check out an error.
const (
	markName = ".sessile"
	markSize = 1024
	markHead = "sessile 1 "
)

func encodeMark(m store.Mark) ([]byte, error) {
	body, err := json.Marshal(m)
	line := append(bytes.Repeat([]byte{' '}, markSize-1), '\n')
	copy(line[:markSize-1], fmt.Appendf(nil, "%s%x %s", markHead, checksum(body), body))
	if back, unreadable := decodeMark(line); err != nil || unreadable != nil || back != m {
		return nil, fmt.Errorf("store/file: mark: %w: it cannot be written into %d bytes and read again", store.ErrInvalid, markSize)
	}
	return line, nil
}

func decodeMark(line []byte) (m store.Mark, err error) {
	if len(line) == 0 {
		return m, nil
	}
	head, body, ok := bytes.Cut(bytes.TrimRight(line, " \n"), []byte(" {"))
	body = append([]byte("{"), body...)
	if !ok || len(line) != markSize || string(head) != fmt.Sprintf("%s%x", markHead, checksum(body)) {
		return m, unavailable("the file "+markName+" in the save path is damaged; repair it or restore it", nil)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields() // a newer version's: its meaning is not known
	if err := dec.Decode(&m); err != nil {
		return store.Mark{}, unavailable("the file "+markName+" in the save path is of another version", err)
	}
	return m, nil
}

func checksum(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:8]
}

// openMark opens the file of the mark, takes the flock and reads it; fd is -1 where there is no file. The lock is held
// by others for no longer than one write takes, so it is polled for; until is the end of patience.
func (s *Store) openMark(ctx context.Context, how int, create bool, until time.Time) (fd int, line []byte, err error) {
	flags := unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	if create {
		flags |= unix.O_RDWR
	}
	for {
		fd, err = openat(s.dir, markName, flags, 0)
		if err == unix.ENOENT {
			if err := s.gone(); err != nil || !create {
				return -1, nil, err
			}
			if s.cantSave != nil {
				return -1, nil, s.cantSave
			}
			fd, err = openat(s.dir, markName, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
			if err == unix.EEXIST {
				continue
			}
		}
		if err != nil {
			return -1, nil, unavailable("open "+markName, err)
		}
		for err = flock(fd, how|unix.LOCK_NB); err == unix.EWOULDBLOCK; err = flock(fd, how|unix.LOCK_NB) {
			if !time.Now().Before(until) || ctx.Err() != nil {
				break
			}
			time.Sleep(200 * time.Microsecond)
		}
		if err != nil {
			err = unavailable("flock "+markName, err)
		}
		var st unix.Stat_t
		if err == nil {
			err = s.trusted(fd, &st)
		}
		if err == nil && st.Nlink > 0 {
			line = make([]byte, markSize+1)
			var n int
			if n, err = unix.Pread(fd, line, 0); err == nil {
				return fd, line[:n], nil
			}
			err = unavailable("read "+markName, err)
		}
		unix.Close(fd)
		if err != nil {
			return -1, nil, err
		}
	}
}

// trusted refuses a mark that somebody else can have planted: others may make files in a directory such as Debian's.
func (s *Store) trusted(fd int, st *unix.Stat_t) error {
	var dir unix.Stat_t
	if err := unix.Fstat(fd, st); err != nil {
		return unavailable("fstat "+markName, err)
	}
	if err := unix.Fstat(s.dir, &dir); err != nil {
		return unavailable("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || st.Uid != 0 && st.Uid != dir.Uid && int(st.Uid) != s.euid {
		return unavailable(fmt.Sprintf("the file %s in the save path is not this program's: mode %#o, uid %d; look who made it and remove it",
			markName, st.Mode, st.Uid), nil)
	}
	return nil
}

// Mark implements store.Origin.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) {
	if err := s.enter(ctx); err != nil {
		return store.Mark{}, err
	}
	defer s.live.RUnlock()
	fd, line, err := s.openMark(ctx, unix.LOCK_SH, false, time.Now().Add(s.opt.OpBound))
	if err != nil {
		return store.Mark{}, err
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	return decodeMark(line)
}

// SwapMark implements store.Origin. It waits for the writes that are under way through Under, and the new mark is on
// the disk when it returns.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	line, err := encodeMark(next)
	if err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.live.RUnlock()
	o := op{ctx: ctx, since: time.Now(), bound: s.opt.OpBound}
	s.seal.Lock()
	defer s.seal.Unlock()
	fd, was, err := s.openMark(ctx, unix.LOCK_EX, true, o.since.Add(o.bound))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	is, err := decodeMark(was)
	if err != nil {
		return err
	}
	if is != old {
		return errConflict
	}
	if err := o.late(); err != nil {
		return err
	}
	if err := write(fd, line); err != nil {
		if len(was) == 0 && unix.Ftruncate(fd, 0) == nil {
			return unavailable("write "+markName, err)
		}
		return unknown("write "+markName, err)
	}
	err = unix.Fsync(fd)
	if len(was) == 0 && err == nil { // and its name
		if list, opened := openat(s.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0); opened == nil {
			err = unix.Fsync(list)
			unix.Close(list)
		}
	}
	if err != nil {
		return unknown("fsync "+markName, err)
	}
	return nil
}

// A sealing is the mark that a write was begun under.
type sealing struct {
	mark store.Mark
	line []byte // encoded
}

// sealed runs step if the origin's mark is seal's, and lets nobody change it until step has returned. Where there is no
// file for a lock to be on, the zero Mark gets one, empty: otherwise a first SwapMark would overtake the step.
func (s *Store) sealed(o *op, seal *sealing, step func() error) error {
	s.seal.RLock()
	defer s.seal.RUnlock()
	fd, line, err := s.openMark(o.ctx, unix.LOCK_SH, seal.mark == store.Mark{}, o.since.Add(o.bound))
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if len(line) == 0 || !bytes.Equal(line, seal.line) {
		is, err := decodeMark(line)
		if err != nil {
			return err
		}
		if is != seal.mark {
			return fmt.Errorf("store/file: %w", store.ErrSealed)
		}
	}
	return step()
}

// Under implements store.Origin.
func (s *Store) Under(m store.Mark) store.Store {
	line, _ := encodeMark(m) // one that cannot be encoded cannot be there either
	return view{s, &sealing{m, line}}
}

type view struct {
	*Store
	seal *sealing
}

func (v view) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return v.save(ctx, key, rec, cond, v.seal)
}

func (v view) Touch(ctx context.Context, key string, expires time.Time) error {
	return v.touch(ctx, key, expires, v.seal)
}

func (v view) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return v.delete(ctx, key, cond, v.seal)
}

func (v view) Close() error { return nil }
