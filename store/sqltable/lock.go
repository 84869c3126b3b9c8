package sqltable

import (
	"context"
	"crypto/sha1"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// locks are the application's own, one connection for each that is held: the server releases it when that is lost.
// Those who wait for the same session in this process wait here, so that a crowd does not need as many connections.
type locks struct {
	seats chan struct{} // one for each connection

	mu     sync.Mutex       // guards held, closed
	held   map[string]*lock // by key: who holds it, or is asking for it
	closed bool

	open context.Context // until closed
	end  context.CancelFunc
}

type lock struct {
	token string
	until time.Time
	conn  *sql.Conn // nil: still asking
	row   *rowLock  // of a lock that is the row's
	timer *time.Timer
	done  chan struct{} // closed when it is over
}

func (l *locks) init(n int) {
	l.seats, l.held = make(chan struct{}, n), map[string]*lock{}
	l.open, l.end = context.WithCancel(context.Background())
}

// Lock implements store.Store.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	if err := s.check(key); err != nil {
		return err
	}
	if token == "" || life <= 0 {
		return fmt.Errorf("store/sqltable: %w: a lock needs a token and a life", store.ErrInvalid)
	}
	l := &lock{token: token, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.locks.open, cancel)()
	if err := s.locks.turn(ctx, key, l); err != nil {
		return err
	}
	conn, row, err := s.acquire(ctx, key)
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	if s.locks.closed {
		if err == nil {
			s.release(conn, row, key)
		}
		err = errClosed
	}
	if err != nil {
		delete(s.locks.held, key)
		close(l.done)
		return err
	}
	l.conn, l.row, l.until = conn, row, time.Now().Add(life)
	l.timer = time.AfterFunc(life, func() { s.unlock(key, func(other *lock) bool { return other == l }) })
	return nil
}

// turn waits until nobody else in this process has the lock on key or asks for it.
func (k *locks) turn(ctx context.Context, key string, l *lock) error {
	for {
		k.mu.Lock()
		if k.closed {
			k.mu.Unlock()
			return errClosed
		}
		other := k.held[key]
		if other == nil {
			k.held[key] = l
			k.mu.Unlock()
			return nil
		}
		k.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			if k.open.Err() != nil {
				return errClosed
			}
			return store.ErrLocked
		}
	}
}

// lockName is what the server knows the lock on key by: as the application names it, or, where it takes none, a name that
// is ours and short enough for MySQL (64 characters).
func (s *Store) lockName(key string) string {
	if s.opt.Table.Lock.Kind == Named {
		return s.opt.Table.lockName(key)
	}
	return fmt.Sprintf("sessile-%x", sha1.Sum([]byte(s.opt.Table.Name+"/"+key)))
}

// acquire takes the lock on key on a connection of its own: a named one, and the row's behind it if that is what the
// application locks.
func (s *Store) acquire(ctx context.Context, key string) (*sql.Conn, *rowLock, error) {
	select {
	case s.locks.seats <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("store/sqltable: lock: %w: %d are held already", store.ErrUnavailable, cap(s.locks.seats))
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		<-s.locks.seats
		return nil, nil, s.failure(ctx, "lock", err, false)
	}
	args := []any{s.lockName(key)}
	if s.d.lockWaits {
		args = append(args, (s.opt.Bound / 4).Seconds()) // less than a statement may take; MySQL rounds to whole seconds
	}
	for {
		var got sql.NullBool
		ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opt.Bound)
		err := conn.QueryRowContext(ask, s.d.lock, args...).Scan(&got)
		cancel()
		switch {
		case err != nil:
			discard(conn) // it may have the lock
			s.release(conn, nil, "")
			return nil, nil, s.failure(ctx, "lock", err, false)
		case !got.Valid: // GET_LOCK's way to say that something went wrong
			s.release(conn, nil, "")
			return nil, nil, fmt.Errorf("store/sqltable: lock: %w: the server cannot give it", store.ErrUnavailable)
		case got.Bool && s.opt.Table.Lock.Kind == ForUpdate:
			row, err := s.lockRow(ctx, conn, key)
			if err != nil {
				s.release(conn, nil, key)
				return nil, nil, err
			}
			return conn, row, nil
		case got.Bool:
			return conn, nil, nil
		case ctx.Err() != nil:
			s.release(conn, nil, "")
			return nil, nil, store.ErrLocked
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// release gives a connection back, without the lock on key ("": it has none). Where that fails the connection is closed,
// and its locks end with it.
func (s *Store) release(conn *sql.Conn, row *rowLock, key string) (held bool) {
	defer func() { <-s.locks.seats }()
	ctx, cancel := context.WithTimeout(context.Background(), s.opt.Bound)
	defer cancel()
	held = row == nil || row.end(ctx)
	if key != "" {
		var got sql.NullBool
		err := conn.QueryRowContext(ctx, s.d.unlock, s.lockName(key)).Scan(&got)
		if err != nil || !got.Bool {
			discard(conn)
			held = false
		}
	}
	conn.Close()
	return held
}

// discard has a connection closed when it is given back.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// Unlock implements store.Store.
func (s *Store) Unlock(ctx context.Context, key, token string) (bool, error) {
	if err := s.check(key); err != nil {
		return false, err
	}
	return s.unlock(key, func(l *lock) bool { return l.token == token }), nil
}

// unlock ends the lock on key if it is the one that is meant.
func (s *Store) unlock(key string, meant func(*lock) bool) bool {
	s.locks.mu.Lock()
	l := s.locks.held[key]
	if l == nil || l.conn == nil || !meant(l) {
		s.locks.mu.Unlock()
		return false
	}
	conn := l.conn
	l.conn = nil // nobody else releases it
	l.timer.Stop()
	s.locks.mu.Unlock()
	held := s.release(conn, l.row, key)
	s.locks.mu.Lock()
	delete(s.locks.held, key)
	s.locks.mu.Unlock()
	close(l.done)
	return held
}

// LockHolder implements store.Store. Who holds it outside of this process cannot be known.
func (s *Store) LockHolder(ctx context.Context, key string) (string, time.Duration, error) {
	if err := s.check(key); err != nil {
		return "", 0, err
	}
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	l := s.locks.held[key]
	if l == nil || l.conn == nil {
		return "", 0, nil
	}
	return l.token, time.Until(l.until), nil
}

// close ends the locks that are held, and the waiting for others.
func (k *locks) close(s *Store) {
	k.mu.Lock()
	k.closed = true
	k.end()
	keys := slices.Collect(maps.Keys(k.held))
	k.mu.Unlock()
	var wg sync.WaitGroup
	for _, key := range keys {
		wg.Go(func() { s.unlock(key, func(*lock) bool { return true }) })
	}
	wg.Wait()
}
