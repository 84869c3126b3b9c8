package gateway

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// locks orders those who want the application's lock on a session. The lock itself lies in the store. Of the waiters of
// one session in this process only the first asks the store, and not before the connection of ours that holds the lock
// has released it: the others are woken in the order in which they came.
type locks struct {
	expire func()        // counts
	free   func(c *conn) // c holds no lock any more

	waiting, held atomic.Int64

	mu     sync.Mutex // guards queues; never held across a store call
	queues map[string]*queue
}

type queue struct {
	asking  bool      // somebody has the turn
	holder  *heldLock // the lock that a connection of ours took; nil if none
	waiters []chan struct{}
}

// heldLock is a lock that was taken through us and is neither released nor over.
type heldLock struct {
	token string
	conn  *conn // whose end ends the lock, because no life was asked for; else nil
	by    *conn
	timer *time.Timer
}

func newLocks(expire func(), free func(*conn)) *locks {
	return &locks{expire: expire, free: free, queues: map[string]*queue{}}
}

// try takes the turn if that needs no waiting.
func (l *locks) try(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queues[id] != nil {
		return false
	}
	l.queues[id] = &queue{asking: true}
	return true
}

// turn waits until nobody of ours holds the lock on id or is before c in asking for it; then c has the turn, and ends
// it with took or with pass. It reports false at the end of ctx, and at once where c itself holds the lock: on that
// connection nobody could release it.
func (l *locks) turn(ctx context.Context, id string, c *conn) bool {
	l.mu.Lock()
	q := l.queues[id]
	if q == nil {
		q = &queue{}
		l.queues[id] = q
	}
	if q.holder != nil && q.holder.by == c {
		l.mu.Unlock()
		return false
	}
	if !q.asking && q.holder == nil { // then nobody waits either
		q.asking = true
		l.mu.Unlock()
		return true
	}
	ready := make(chan struct{})
	q.waiters = append(q.waiters, ready)
	l.mu.Unlock()

	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	select {
	case <-ready:
		return true
	case <-ctx.Done():
	}
	l.mu.Lock()
	for i, w := range q.waiters {
		if w == ready {
			q.waiters = append(q.waiters[:i], q.waiters[i+1:]...)
			l.mu.Unlock()
			return false
		}
	}
	l.mu.Unlock()
	l.pass(id) // the turn came at the same moment
	return false
}

// pass gives the turn to the next.
func (l *locks) pass(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queues[id]
	q.asking = false
	l.next(id, q)
}

// next hands on the turn, which is free. Callers hold mu.
func (l *locks) next(id string, q *queue) {
	if len(q.waiters) == 0 {
		delete(l.queues, id)
		return
	}
	q.asking = true
	close(q.waiters[0])
	q.waiters = q.waiters[1:]
}

// took ends the turn: the store gave c the lock for life. With bound, it ends with the connection too.
func (l *locks) took(id, token string, life time.Duration, c *conn, bound bool) {
	h := &heldLock{token: token, by: c}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queues[id]
	if q.asking, q.holder = false, h; bound {
		l.bind(id, q, c)
	}
	h.timer = time.AfterFunc(life, func() {
		if l.drop(id, h) {
			l.expire()
		}
	})
	l.held.Add(1)
	c.holds.Add(1)
}

// bind lets the lock that c holds on id end with c. Callers hold mu.
func (l *locks) bind(id string, q *queue, c *conn) {
	q.holder.conn = c
	c.bound = append(slices.DeleteFunc(c.bound, func(id string) bool {
		q := l.queues[id] // others may have released it
		return q == nil || q.holder == nil || q.holder.conn != c
	}), id)
}

// givenUp notes that c is to end, since the session that it may have locked could not be read: its page has none.
func (l *locks) givenUp(id string, c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[id]; q != nil && q.holder != nil && q.holder.by == c {
		l.bind(id, q, c)
	}
}

// released notes that the lock that token had on id is gone from the store.
func (l *locks) released(id, token string) {
	l.mu.Lock()
	q := l.queues[id]
	var h *heldLock
	if q != nil && q.holder != nil && q.holder.token == token {
		h = q.holder
	}
	l.mu.Unlock()
	l.drop(id, h)
}

// drop removes h if it is still there, and wakes the next.
func (l *locks) drop(id string, h *heldLock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queues[id]
	if h == nil || q == nil || q.holder != h {
		return false
	}
	h.timer.Stop()
	q.holder = nil
	l.held.Add(-1)
	if h.by.holds.Add(-1) == 0 {
		l.free(h.by)
	}
	l.next(id, q)
	return true
}

// taken returns the token of the lock on id, and the connection of ours that has taken it, nil if none has.
func (l *locks) taken(id string) (token string, by *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[id]; q != nil && q.holder != nil {
		return q.holder.token, q.holder.by
	}
	return "", nil
}

// boundTo returns the token of the lock on id if it is to end with c.
func (l *locks) boundTo(id string, c *conn) (token string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[id]; q != nil && q.holder != nil && q.holder.conn == c {
		return q.holder.token, true
	}
	return "", false
}

// holder says who holds the lock on id; nobody is ErrAbsent.
func (s *Server) holder(c *conn, id string) (token string, left time.Duration, err error) {
	token, err = read(s, c, func(ctx context.Context) (token string, err error) {
		if token, left, err = s.site.Store.LockHolder(ctx, id); err == nil && token == "" {
			err = store.ErrAbsent
		}
		return token, err
	})
	return token, left, err
}

// lock takes the lock on id for token; false: somebody else has it. life is what the client asked for, 0 for no end.
func (s *Server) lock(c *conn, id, token string, life time.Duration) (bool, error) {
	if !s.site.Store.Capabilities().Lock {
		return false, errors.ErrUnsupported
	}
	life, bound := s.lockLife(life)
	c.io.flush()
	here, leave := context.WithCancel(s.ctx) // as long as the client is
	defer leave()
	began := time.Now()
	ctx, cancel := context.WithTimeout(here, c.lockWait)
	defer cancel()
	stop := c.io.watch(leave)
	if !s.locks.turn(ctx, id, c) {
		stop()
		return false, nil
	}
	took := false
	defer func() {
		if !took {
			s.locks.pass(id)
		}
	}()
	err := s.site.Store.Lock(ctx, id, token, life)
	if unavailable(err) && errors.Is(err, context.DeadlineExceeded) {
		err = store.ErrLocked // the turn came when LockWait was over, and nobody was asked
	}
	if unavailable(err) && c.hold > 0 {
		// That the store is away is not that somebody else has the lock: it is waited for as with any command.
		s.count.held.Add(1)
		hold, cancel := context.WithDeadline(here, began.Add(c.hold))
		defer cancel()
		for pause := firstPause; unavailable(err) && sleep(hold, pause); pause = min(2*pause, lastPause) {
			err = s.site.Store.Lock(hold, id, token, life)
		}
	}
	switch left := stop(); {
	case err == nil && !left:
		took = true
		s.locks.took(id, token, life, c, bound)
		return true, nil
	case err == nil || store.OutcomeOf(err) == store.OutcomeUnknown:
		s.abandon(id, token)
	case errors.Is(err, store.ErrLocked):
		err = nil
	}
	return false, err
}

// lockLife returns for how long a lock is taken for which a life is asked for, and whether it ends with the connection.
func (s *Server) lockLife(asked time.Duration) (life time.Duration, bound bool) {
	if asked == 0 {
		return s.site.LockLife, true
	}
	return min(asked, s.site.LockLife), false
}

// abandon releases a lock that nobody waits for any more, or nobody knows of: it must not stand until its end, also when
// this server's has come.
func (s *Server) abandon(id, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.site.Limits.Command)
	defer cancel()
	_, _ = s.site.Store.Unlock(ctx, id, token)
}

func (s *Server) unlock(c *conn, id, token string) (held bool, err error) {
	err = s.wait(c, func(ctx context.Context) (err error) {
		held, err = s.site.Store.Unlock(ctx, id, token)
		return err
	}, unavailable)
	if !unavailable(err) {
		s.locks.released(id, token) // where nobody knows, the next one asks the store
	}
	return held, err
}

// closing is how long the end of a connection may take to be noticed.
const closing = 100 * time.Millisecond

// letGo releases the lock on id for c, which speaks memcached and cannot say which lock it means: the one that it has taken, and
// never somebody else's. But libmemcached closes a connection at any failure, and comes with a new one for what is left to
// do: the lock of a connection to memcached that has ended, or is just ending, is released, too.
func (s *Server) letGo(c *conn, id string) (held bool, err error) {
	token, by := s.locks.taken(id)
	if by == nil || by != c && by.memcached == nil {
		return false, nil
	}
	if by != c {
		select {
		case <-by.memcached.over:
		case <-time.After(closing):
			return false, nil
		}
	}
	return s.unlock(c, id, token)
}

// release is EVAL and EVALSHA.
func (s *Server) release(c *conn, r *request, res *result) {
	r.orNull, res.err = s.script(r)
	switch {
	case res.err != nil:
	case len(r.keys) == 0:
		res.err = errScript
	case r.keys[0].err != nil:
		res.err = r.keys[0].err
	case !r.keys[0].lock:
		res.err = errScript
	default:
		var held bool
		if held, res.err = s.unlock(c, r.keys[0].id, r.token); held {
			res.n = 1
		}
	}
}

// script finds the script that r names, and says whether it answers null for a lock that is not held.
func (s *Server) script(r *request) (orNull bool, err error) {
	if r.cmd.name == "EVALSHA" {
		orNull, ok := s.scripts.get(r.data)
		if !ok {
			return false, errNoScript
		}
		return orNull, nil
	}
	orNull, ok := isRelease(r.data)
	if !ok {
		return false, errScript
	}
	s.scripts.add(r.data, orNull)
	return orNull, nil
}

// endLocks releases the locks that were to end with c.
func (s *Server) endLocks(c *conn) {
	for _, id := range c.bound {
		if token, ok := s.locks.boundTo(id, c); ok {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.site.Limits.Command)
			if _, err := s.site.Store.Unlock(ctx, id, token); err == nil {
				s.locks.released(id, token)
			}
			cancel()
		}
	}
}
