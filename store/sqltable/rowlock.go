package sqltable

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// rowLock is a lock that is the row's own: a transaction that has selected it FOR UPDATE. Where there is no row nothing
// can be locked; the first write makes one.
//
// A write that its client is told of must outlive us, so each is committed at once, and the row is locked again behind it.
// A page of the application's own may come between, as it may for an application that commits twice on a page. Processes of
// ours exclude each other all the time, by the named lock that is held beside it.
type rowLock struct {
	key  string
	conn *sql.Conn

	mu   sync.Mutex // guards what follows: the transaction is one at a time
	open bool       // there is one; otherwise there is no row
	lost bool       // somebody else may have had it meanwhile
	over bool
}

// lockRow waits for the row under key, as long as ctx lives.
func (s *Store) lockRow(ctx context.Context, conn *sql.Conn, key string) (*rowLock, error) {
	row := &rowLock{key: key, conn: conn}
	for {
		err := row.begin(ctx, s)
		switch {
		case err == nil:
			return row, nil
		case s.d.classify(err) != classNot && s.d.classify(err) != classAgain:
			discard(conn)
			return nil, s.failure(ctx, "lock", err, false)
		case !held(s.d.code(err)):
			return nil, s.failure(ctx, "lock", err, false)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, store.ErrLocked
		}
	}
}

// begin locks the row, if there is one. The server ends the wait for it in time. No sql.Tx: its Commit and Rollback know no
// context, and wait for ever for a server that stands still.
func (l *rowLock) begin(ctx context.Context, s *Store) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opt.Bound)
	defer cancel()
	for _, text := range s.d.begin {
		if _, err := l.conn.ExecContext(ctx, text); err != nil {
			discard(l.conn)
			return err
		}
	}
	l.open = true
	q := s.where(s.query("SELECT 1 FROM "+s.table), l.key).add(" FOR UPDATE")
	var one int
	err := l.conn.QueryRowContext(ctx, q.text.String(), q.args...).Scan(&one)
	if err == nil {
		return nil
	}
	if end := l.finish(ctx, "ROLLBACK"); end != nil || errors.Is(err, sql.ErrNoRows) {
		return end
	}
	return err
}

// finish ends the transaction, or the connection and with it the transaction.
func (l *rowLock) finish(ctx context.Context, how string) error {
	l.open = false
	_, err := l.conn.ExecContext(ctx, how)
	if err != nil {
		discard(l.conn)
	}
	return err
}

// exec runs a write to the row.
func (l *rowLock) exec(ctx context.Context, s *Store, q *query) (res sql.Result, err error) {
	l.mu.Lock()
	res, err = l.conn.ExecContext(ctx, q.text.String(), q.args...)
	if l.open {
		if err == nil {
			err = l.finish(ctx, "COMMIT")
		} else {
			_ = l.finish(ctx, "ROLLBACK") // which also the end of the connection is
		}
	}
	go func() { // whoever comes next waits for it; this write's client need not
		defer l.mu.Unlock()
		if !l.over && !l.lost {
			l.lost = l.begin(ctx, s) != nil
		}
	}()
	return res, err
}

// end gives the row back, and reports whether it was ours all the time.
func (l *rowLock) end(ctx context.Context) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.open && l.finish(ctx, "ROLLBACK") != nil {
		l.lost = true
	}
	return !l.lost
}

// row is the lock on the row under key, if this process has it.
func (k *locks) row(key string) *rowLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.held[key]; l != nil && l.conn != nil {
		return l.row
	}
	return nil
}
