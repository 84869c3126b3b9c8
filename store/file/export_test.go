package file

import "golang.org/x/sys/unix"

// FailWrites makes every pwrite from the after-th on write at most short bytes and then fail with err; the first one
// has number 0. Reserving space is impossible meanwhile.
func FailWrites(after, times, short int, err error) (restore func()) {
	n := 0
	pwrite = func(fd int, p []byte, off int64) (int, error) {
		n++
		if n <= after || n > after+times {
			return unix.Pwrite(fd, p, off)
		}
		if short > 0 {
			return unix.Pwrite(fd, p[:min(short, len(p))], off)
		}
		return -1, err
	}
	fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
	return func() { pwrite, fallocate = unix.Pwrite, unix.Fallocate }
}

// NoReserve makes reserving space impossible until restore is called.
func NoReserve() (restore func()) {
	fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
	return func() { fallocate = unix.Fallocate }
}

// Visible makes the store create files as on a file system without O_TMPFILE.
func (s *Store) Visible() { s.visible.Store(true) }

// Blocked counts the goroutines that wait in flock(2).
func (s *Store) Blocked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blocked
}

// Idle reports whether nothing is held or waited for.
func (s *Store) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.table) == 0
}

// Waiting counts those who wait for key.
func (s *Store) Waiting(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table[key]; e != nil {
		return len(e.waiters)
	}
	return 0
}

// ForgetWalks closes all listings, as a restart does.
func (s *Store) ForgetWalks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.walks {
		unix.Close(w.fd)
		delete(s.walks, id)
	}
}

// Unstable makes the store take directory offsets for meaningless after a restart.
func (s *Store) Unstable() { s.stable = false }

const MaxBlocked = maxBlocked

var (
	EncodeMark = encodeMark
	DecodeMark = decodeMark
)
