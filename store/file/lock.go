package file

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

// A flock belongs to an open file, not to a process: two of ours exclude each other. So while the application's lock
// on a session is held here, or waited for, the session has an entry in the table. Who reads or writes joins the file
// of the lock's owner; without an owner, and with the flock elsewhere, whoever wants it queues up, and one goroutine
// waits in the kernel for all of them. The kernel's queue is fair towards PHP, as polling would not be. When the flock
// is there, all reads and writes that waited are let in, one after the other, and with them the first of those who
// want the application's lock; when they are done it is given up, before those who came later get their turn.

// maxBlocked bounds the goroutines, each a thread, that wait in flock(2).
const maxBlocked = 512

// An entry is what this process does about the flock of one session. Store.mu guards it.
type entry struct {
	key     string
	file    *file     // flocked; nil if the flock is not here
	owner   *owner    // of the application's lock; it has a file unless the session was deleted meanwhile
	waiters []*waiter // in the order of their coming
	busy    int       // things under way that will look after the waiters when they end
}

type owner struct {
	token string
	until time.Time
	timer *time.Timer
}

// A waiter wants the application's lock for life, or, if life is 0, the file for one operation. Its fields may be read
// once ready is closed.
type waiter struct {
	token string
	life  time.Duration
	ready chan struct{}
	file  *file // for an operation; nil: look again
	err   error
}

// Lock implements store.Store: it is PHP's own lock, the flock on the session's file, held until Unlock or the end of
// life. A file that is not there is made, empty, as PHP makes it, but for this store there is no session until
// somebody writes it.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	if err := s.check(key); err != nil {
		return err
	}
	if token == "" || life <= 0 {
		return fmt.Errorf("store/file: %w: a lock needs a token and a life", store.ErrInvalid)
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.live.RUnlock()
	w := &waiter{token: token, life: life, ready: make(chan struct{})}
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return errClosed
	}
	e := s.table[key]
	if e == nil { // nobody is before us: try without a goroutine
		e = s.entry(key)
		e.waiters = append(e.waiters, w)
		e.busy++
		s.mu.Unlock()
		f, err := s.openLocked(e, unix.LOCK_NB)
		s.mu.Lock()
		e.busy--
		if err == errBusy {
			s.next(e)
		} else {
			s.grant(e, f, err)
		}
	} else {
		e.waiters = append(e.waiters, w)
		s.next(e)
	}
	s.mu.Unlock()
	return s.wait(ctx, e, w)
}

// Unlock implements store.Store.
func (s *Store) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	if err := s.check(key); err != nil {
		return false, err
	}
	if err := s.enter(ctx); err != nil {
		return false, err
	}
	defer s.live.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table[key]
	if e == nil || e.owner == nil || e.owner.token != token {
		return false, nil
	}
	s.disown(e)
	return true, nil
}

// LockHolder implements store.Store. It knows the locks that were taken through this Store.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	if err := s.check(key); err != nil {
		return "", 0, err
	}
	if err := s.enter(ctx); err != nil {
		return "", 0, err
	}
	defer s.live.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table[key]; e != nil && e.owner != nil {
		return e.owner.token, max(time.Until(e.owner.until), 0), nil
	}
	return "", 0, nil
}

// join lets an operation use the file of the application's lock, if it is held here.
func (s *Store) join(key string) *file {
	s.mu.Lock()
	e := s.table[key]
	if e == nil || e.owner == nil || e.file == nil {
		s.mu.Unlock()
		return nil
	}
	f := e.file
	f.refs++
	s.mu.Unlock()
	return f.begin()
}

// begin waits for an operation's turn with a shared file.
func (f *file) begin() *file {
	f.io.Lock()
	if unix.Fstat(f.fd, &f.st) != nil || f.dead {
		f.st.Nlink = 0
	}
	return f
}

// await waits until the flock is here. It returns nil if the operation shall look again.
func (s *Store) await(o *op) (*file, error) {
	w := &waiter{ready: make(chan struct{})}
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return nil, errClosed
	}
	e := s.entry(o.key)
	if e.owner != nil && e.file != nil {
		s.mu.Unlock()
		return nil, nil
	}
	e.waiters = append(e.waiters, w)
	s.next(e)
	s.mu.Unlock()
	if err := s.wait(o.ctx, e, w); err != nil || w.file == nil {
		return nil, err
	}
	return w.file.begin(), nil
}

func (s *Store) wait(ctx context.Context, e *entry, w *waiter) error {
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(e.waiters, w)
	if i < 0 { // it was granted in the same moment
		return w.err
	}
	e.waiters = slices.Delete(e.waiters, i, i+1)
	s.next(e)
	if w.life > 0 {
		return fmt.Errorf("store/file: %w", store.ErrLocked)
	}
	return fmt.Errorf("store/file: somebody else holds the session's lock: %w: %w", store.ErrUnavailable, context.Cause(ctx))
}

// release ends one operation's use of a file.
func (s *Store) release(f *file) {
	if f.how == unix.LOCK_SH {
		s.close(f)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.entry != nil {
		f.io.Unlock()
		s.drop(f)
		return
	}
	// The session was deleted and made anew under the application's lock, which goes over to the new file.
	if e := s.table[f.key]; e != nil && e.owner != nil && e.file == nil && !f.dead {
		s.attach(e, f)
		return
	}
	s.close(f)
}

// forget takes a file out of use that its name does not lead to any more. Those who share it find out by themselves;
// the application's lock stays, without a file.
func (s *Store) forget(f *file) {
	f.dead = true
	if f.how == unix.LOCK_SH {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := f.entry; e != nil && e.file == f {
		e.file = nil
		if e.owner != nil {
			s.drop(f)
		}
	}
}

// entry returns key's entry, a new one if there is none. Called with mu held, like all that follow.
func (s *Store) entry(key string) *entry {
	e := s.table[key]
	if e == nil {
		e = &entry{key: key}
		s.table[key] = e
	}
	return e
}

// next has somebody wait for the flock if anybody needs it, and drops an entry that nobody needs.
func (s *Store) next(e *entry) {
	if e.busy > 0 || e.file != nil {
		return
	}
	if slices.ContainsFunc(e.waiters, func(w *waiter) bool { return w.life == 0 || e.owner == nil }) {
		if s.blocked >= maxBlocked {
			s.fail(e, unavailable(fmt.Sprintf("%d sessions' locks are waited for already", s.blocked), nil))
		} else {
			s.blocked++
			e.busy++
			go s.block(e)
			return
		}
	}
	if len(e.waiters) == 0 && e.owner == nil && s.table[e.key] == e {
		delete(s.table, e.key)
	}
}

// block waits for the flock on behalf of all who wait. In flock(2) it uses no directory, so that Close need not wait.
func (s *Store) block(e *entry) {
	s.live.RLock()
	defer s.live.RUnlock()
	f, err := s.openLocked(e, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked--
	e.busy--
	s.grant(e, f, err)
}

// openLocked returns e's file under an exclusive flock, for which it waits unless how is LOCK_NB. It returns nil if
// there is none, or if nobody waits for it any more. For the application's lock it makes the file. Called with live,
// which it gives up while it waits, and without mu.
func (s *Store) openLocked(e *entry, how int) (*file, error) {
	for {
		if s.closed.Load() {
			return nil, errClosed
		}
		some, lock := s.wanted(e)
		if !some {
			return nil, nil
		}
		f, err := s.openFile(e.key, unix.LOCK_EX)
		if f == nil && err == nil && lock {
			if f, err = s.make(e.key, nil, time.Now(), nil); err == nil {
				f.fresh.Store(true)
				return f, nil
			}
		}
		switch {
		case err == errAgain:
			continue
		case err == errBusy && how == 0: // a lease in its last microseconds
			time.Sleep(time.Millisecond)
			continue
		case err != nil || f == nil:
			return nil, err
		}
		if how == 0 {
			s.live.RUnlock()
		}
		err = s.flock(f, unix.LOCK_EX|how)
		if how == 0 {
			s.live.RLock()
		}
		switch {
		case s.closed.Load():
			err = errClosed
		case err == errAgain:
		case err == unix.EWOULDBLOCK:
			err = errBusy
		case err != nil:
			err = unavailable("flock", err)
		case unix.Fstat(f.fd, &f.st) != nil || !f.current():
			err = errAgain
		default:
			err = s.refuse(f)
		}
		if err == nil {
			return f, nil
		}
		s.close(f)
		if err != errAgain {
			return nil, err
		}
	}
}

// wanted reports whether somebody waits for e's file, and whether for the application's lock, which nobody has.
func (s *Store) wanted(e *entry) (some, lock bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range e.waiters {
		free := w.life > 0 && e.owner == nil
		some, lock = some || free || w.life == 0, lock || free
	}
	return some, lock
}

// grant gives those who wait what somebody waited for on their behalf: a flocked file, nil for no file, or an error.
func (s *Store) grant(e *entry, f *file, err error) {
	switch {
	case err != nil:
		s.fail(e, err)
	case f != nil && e.file == nil:
		s.attach(e, f)
		return
	default: // there is none, or the application's lock has another meanwhile: operations look again
		if f != nil {
			s.close(f)
		}
		e.waiters = slices.DeleteFunc(e.waiters, func(w *waiter) bool {
			if w.life == 0 {
				close(w.ready)
			}
			return w.life == 0
		})
	}
	s.next(e)
}

// fail answers everybody who waits with err.
func (s *Store) fail(e *entry, err error) {
	for _, w := range e.waiters {
		w.err = err
		close(w.ready)
	}
	e.waiters = nil
	s.next(e)
}

// attach makes f the file that all share: those who wait to read or write and the owner of the application's lock, the
// first who waits for it if there is none.
func (s *Store) attach(e *entry, f *file) {
	f.entry, e.file = e, f
	f.refs = 1 // this function's own
	e.waiters = slices.DeleteFunc(e.waiters, func(w *waiter) bool {
		switch {
		case w.life == 0:
			w.file = f
			f.refs++
		case e.owner == nil:
			o := &owner{token: w.token, until: time.Now().Add(w.life)}
			o.timer = time.AfterFunc(w.life, func() { s.expire(e, o) })
			e.owner = o
		default:
			return false
		}
		close(w.ready)
		return true
	})
	if e.owner != nil {
		f.refs++
	}
	s.drop(f)
}

// drop gives up one use of a shared file. The last one closes it, with mu released meanwhile.
func (s *Store) drop(f *file) {
	f.refs--
	if f.refs > 0 {
		return
	}
	e := f.entry
	if e.file == f {
		e.file = nil
	}
	e.busy++
	s.mu.Unlock()
	if f.fresh.Load() {
		f.discard()
	}
	s.close(f)
	s.mu.Lock()
	e.busy--
	s.next(e)
}

// disown ends the application's lock, if there is one.
func (s *Store) disown(e *entry) {
	if e.owner == nil {
		return
	}
	e.owner.timer.Stop()
	e.owner = nil
	if e.file != nil {
		s.drop(e.file)
	} else {
		s.next(e)
	}
}

// expire ends a lock whose life is over.
func (s *Store) expire(e *entry, o *owner) {
	s.live.RLock()
	defer s.live.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.owner == o {
		s.disown(e)
	}
}

// discard removes the file that Lock made and nobody wrote, unless somebody else has it open: a PHP that waits for the
// flock would go on with a file that has lost its name, and its session would be lost. A write lease is granted only
// if nobody has; who opens the file after that waits for the few microseconds until it is closed. Left in place it is
// an empty session, such as PHP itself makes of every visitor.
func (f *file) discard() {
	if unix.Fstat(f.fd, &f.st) != nil || f.st.Size > 0 || !f.current() {
		return
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETLEASE, unix.F_WRLCK); err == nil {
		unix.Unlinkat(f.dir, f.name, 0)
	}
}
