package sqltable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// OpenLate is Open for a process that has to begin without the server: where that is away, and only then, it returns a store
// that is unavailable until the server is there. In ramp-down nobody needs the origin for an answer, and a gateway that is
// started anew then must not wait for it.
func OpenLate(ctx context.Context, u *url.URL, opt Options, log *slog.Logger) (store.Origin, error) {
	s, err := Open(ctx, u, opt)
	if err == nil || !errors.Is(err, store.ErrDown) {
		return s, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log.Warn("the origin cannot be asked; its site begins without it", "error", err)
	return &late{u: u, opt: opt.withDefaults(), log: log, tried: time.Now(), err: err}, nil
}

// late is a store that could not be opened yet. Who needs it tries to.
type late struct {
	u   *url.URL
	opt Options
	log *slog.Logger
	s   atomic.Pointer[Store]

	mu     sync.Mutex // guards what follows, and is held while somebody tries
	tried  time.Time
	err    error // of the last attempt
	closed bool
}

// again is how long nobody tries after somebody has.
const again = 500 * time.Millisecond

// get returns the store, if there is a server now.
func (l *late) get(ctx context.Context) (*Store, error) {
	if s := l.s.Load(); s != nil {
		return s, nil
	}
	if !l.mu.TryLock() { // somebody tries
		return nil, fmt.Errorf("store/sqltable: %w", store.ErrDown)
	}
	defer l.mu.Unlock()
	switch s := l.s.Load(); {
	case s != nil:
		return s, nil
	case l.closed:
		return nil, errClosed
	case time.Since(l.tried) < again:
		return nil, l.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.opt.Bound) // not for this caller alone
	defer cancel()
	s, err := Open(ctx, l.u, l.opt)
	l.tried = time.Now()
	if err != nil {
		if !errors.Is(err, store.ErrDown) {
			l.log.Error("the origin is there, and cannot be used", "error", err)
			err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		l.err = err
		return nil, err
	}
	l.log.Info("the origin is there")
	l.s.Store(s)
	return s, nil
}

// with is one call of the store, or the reason why there is none.
func with[T any](ctx context.Context, l *late, call func(*Store) (T, error)) (none T, err error) {
	s, err := l.get(ctx)
	if err != nil {
		return none, err
	}
	return call(s)
}

// do is with for a call that answers nothing.
func (l *late) do(ctx context.Context, call func(*Store) error) error {
	_, err := with(ctx, l, func(s *Store) (struct{}, error) { return struct{}{}, call(s) })
	return err
}

func (l *late) Capabilities() store.Capabilities { return l.opt.Table.capabilities() }
func (l *late) Lifetime() time.Duration          { return l.opt.Lifetime }

func (l *late) Load(ctx context.Context, key string) (store.Record, error) {
	return with(ctx, l, func(s *Store) (store.Record, error) { return s.Load(ctx, key) })
}

func (l *late) Inspect(ctx context.Context, key string) (store.Record, error) {
	return with(ctx, l, func(s *Store) (store.Record, error) { return s.Inspect(ctx, key) })
}

func (l *late) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	return with(ctx, l, func(s *Store) ([]*store.Record, error) { return s.InspectAll(ctx, keys) })
}

func (l *late) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return l.do(ctx, func(s *Store) error { return s.Save(ctx, key, rec, cond) })
}

func (l *late) Touch(ctx context.Context, key string, expires time.Time) error {
	return l.do(ctx, func(s *Store) error { return s.Touch(ctx, key, expires) })
}

func (l *late) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return with(ctx, l, func(s *Store) (bool, error) { return s.Delete(ctx, key, cond) })
}

func (l *late) Scan(ctx context.Context, cursor string, limit int) (store.Page, error) {
	return with(ctx, l, func(s *Store) (store.Page, error) { return s.Scan(ctx, cursor, limit) })
}

func (l *late) Lock(ctx context.Context, key, token string, life time.Duration) error {
	return l.do(ctx, func(s *Store) error { return s.Lock(ctx, key, token, life) })
}

func (l *late) Unlock(ctx context.Context, key, token string) (bool, error) {
	return with(ctx, l, func(s *Store) (bool, error) { return s.Unlock(ctx, key, token) })
}

func (l *late) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	err = l.do(ctx, func(s *Store) error {
		token, left, err = s.LockHolder(ctx, key)
		return err
	})
	return token, left, err
}

func (l *late) Mark(ctx context.Context) (store.Mark, error) {
	return with(ctx, l, func(s *Store) (store.Mark, error) { return s.Mark(ctx) })
}

func (l *late) SwapMark(ctx context.Context, old, next store.Mark) error {
	return l.do(ctx, func(s *Store) error { return s.SwapMark(ctx, old, next) })
}

func (l *late) Check(ctx context.Context) (store.Findings, error) {
	return with(ctx, l, func(s *Store) (store.Findings, error) { return s.Check(ctx) })
}

func (l *late) Audit(ctx context.Context) (store.Audit, error) {
	return with(ctx, l, func(s *Store) (store.Audit, error) { return s.Audit(ctx) })
}

// Canary is asked for in sync, so that there is a store then; without one it is what any table of bytes can hold.
func (l *late) Canary() (key string, data []byte) {
	if s := l.s.Load(); s != nil {
		return s.Canary()
	}
	return (&Store{opt: l.opt, idLen: 32}).Canary()
}

func (l *late) Under(m store.Mark) store.Store { return lateUnder{l, m} }

func (l *late) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if s := l.s.Load(); s != nil {
		return s.Close()
	}
	return nil
}

type lateUnder struct {
	*late
	mark store.Mark
}

func (u lateUnder) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.do(ctx, func(s *Store) error { return s.Under(u.mark).Save(ctx, key, rec, cond) })
}

func (u lateUnder) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.do(ctx, func(s *Store) error { return s.Under(u.mark).Touch(ctx, key, expires) })
}

func (u lateUnder) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return with(ctx, u.late, func(s *Store) (bool, error) { return s.Under(u.mark).Delete(ctx, key, cond) })
}

func (lateUnder) Close() error { return nil }
