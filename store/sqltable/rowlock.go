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
	tx   *sql.Tx    // nil: there is no row
	lost bool       // somebody else may have had it meanwhile
	over bool
}

// lockRow waits for the row under key, as long as ctx lives.
func (s *Store) lockRow(ctx context.Context, conn *sql.Conn, key string) (*rowLock, error) {
	row := &rowLock{key: key, conn: conn}
	for {
		err := row.begin(context.WithoutCancel(ctx), s)
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

// begin locks the row, if there is one. The server ends the wait for it in time.
func (l *rowLock) begin(ctx context.Context, s *Store) error {
	ctx, cancel := context.WithTimeout(ctx, s.opt.Bound)
	defer cancel()
	// No more than the row: in MySQL's usual isolation a row that is not there would lock out others that are to be made.
	tx, err := l.conn.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	q := s.where(s.query("SELECT 1 FROM "+s.table), l.key).add(" FOR UPDATE")
	var one int
	switch err := tx.QueryRowContext(ctx, q.text.String(), q.args...).Scan(&one); {
	case err == nil:
		l.tx = tx
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return tx.Rollback()
	default:
		tx.Rollback()
		return err
	}
}

// exec runs a write to the row.
func (l *rowLock) exec(ctx context.Context, s *Store, st *sql.Stmt, args []any) (res sql.Result, err error) {
	l.mu.Lock()
	if l.tx == nil {
		res, err = st.ExecContext(ctx, args...)
	} else {
		if res, err = l.tx.StmtContext(ctx, st).ExecContext(ctx, args...); err == nil {
			err = l.tx.Commit()
		} else {
			l.tx.Rollback()
		}
		l.tx = nil
	}
	go func() { // whoever comes next waits for it; this write's client need not
		defer l.mu.Unlock()
		if !l.over && !l.lost {
			l.lost = l.begin(context.WithoutCancel(ctx), s) != nil
		}
	}()
	return res, err
}

// end gives the row back, and reports whether it was ours all the time.
func (l *rowLock) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.tx != nil {
		if err := l.tx.Rollback(); err != nil {
			discard(l.conn)
			l.lost = true
		}
		l.tx = nil
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
