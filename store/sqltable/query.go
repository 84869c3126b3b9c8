package sqltable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sessile/sessile/store"
)

// query is a statement that is being written: SQL with ? for each parameter, and the parameters.
type query struct {
	dollar bool // parameters are $1, $2
	text   strings.Builder
	args   []any
}

// add appends SQL, and a parameter for each ? in it. No SQL of ours has a ? elsewhere.
func (q *query) add(text string, args ...any) *query {
	for _, arg := range args {
		before, after, _ := strings.Cut(text, "?")
		q.args = append(q.args, arg)
		q.text.WriteString(before)
		if q.dollar {
			q.text.WriteString("$" + strconv.Itoa(len(q.args)))
		} else {
			q.text.WriteByte('?')
		}
		text = after
	}
	q.text.WriteString(text)
	return q
}

// statement returns q prepared. Statements are few: their text depends on the table and on what is done, never on a value.
func (s *Store) statement(ctx context.Context, q *query) (*sql.Stmt, error) {
	text := q.text.String()
	s.mu.Lock()
	st, closed := s.stmts[text], s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case st != nil:
		return st, nil
	}
	// Prepared on one connection now, and by database/sql on each other one that it comes to.
	st, err := s.db.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	other := s.stmts[text]
	switch {
	case s.closed:
		st.Close()
		return nil, errClosed
	case other != nil: // somebody was faster
		st.Close()
		return other, nil
	}
	s.stmts[text] = st
	return st, nil
}

var errClosed = fmt.Errorf("store/sqltable: closed: %w", store.ErrUnavailable)

// tries is how often a statement is sent that the server gives up for the sake of another one (a deadlock).
const tries = 4

// exec runs a write and returns how many rows it found. One to the session under key ("": to none) goes the way of the lock
// on it, where that is the row's: on any other it would wait for ourselves.
func (s *Store) exec(ctx context.Context, key string, q *query) (rows int64, err error) {
	for try := 1; ; try++ {
		var res sql.Result
		if row := s.locks.row(key); row != nil {
			res, err = row.exec(ctx, s, q)
		} else {
			var st *sql.Stmt
			if st, err = s.statement(ctx, q); err != nil {
				return 0, s.failure(ctx, "prepare", err, false)
			}
			res, err = st.ExecContext(ctx, q.args...)
		}
		if err == nil {
			return res.RowsAffected()
		}
		s.noteReadOnly(err)
		if s.d.classify(err) != classAgain || try == tries {
			return 0, s.failure(ctx, "write", err, true)
		}
	}
}

// row runs a read of one row, which scan reads. None is sql.ErrNoRows.
func (s *Store) row(ctx context.Context, q *query, scan func(*sql.Row) error) error {
	return s.get(ctx, q, "read", func(st *sql.Stmt) error { return scan(st.QueryRowContext(ctx, q.args...)) })
}

// rows runs a read of many rows, each of which scan reads.
func (s *Store) rows(ctx context.Context, q *query, what string, scan func(*sql.Rows) error) error {
	return s.get(ctx, q, what, func(st *sql.Stmt) error {
		rows, err := st.QueryContext(ctx, q.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// get runs q, and runs it again where PostgreSQL does not take the statement any more, before it has answered with a row
// (somebody has altered the table), or where somebody else has closed it for that.
func (s *Store) get(ctx context.Context, q *query, what string, run func(*sql.Stmt) error) error {
	if err := s.writable(ctx); err != nil {
		return err
	}
	for try := 1; ; try++ {
		st, err := s.statement(ctx, q)
		if err == nil {
			err = run(st)
		}
		switch {
		case err == nil, errors.Is(err, sql.ErrNoRows):
			return err
		case try < tries && (s.d.code(err) == "error 0A000" || err.Error() == closedStatement): // cached plan must not change result type
			s.forget(q, st)
		default:
			return s.failure(ctx, what, err, false)
		}
	}
}

// noteReadOnly takes notice of a server that takes no writes any more: it was the primary before a failover. Connections to
// it are given up, so that the next ones find who is.
func (s *Store) noteReadOnly(err error) {
	if code, _, _ := strings.Cut(s.d.code(err), " ("); slices.Contains(s.d.readOnlyErrors, code) {
		s.readOnly.Store(true)
		s.db.SetMaxIdleConns(-1) // closes those that are idle
		s.db.SetMaxIdleConns(s.opt.MaxConns + s.opt.MaxLocks)
	}
}

// writable refuses to read where no write went through, until one would: an application that can read a session and not
// write it takes what is no longer true for it, and one that can write and not read makes a new one.
func (s *Store) writable(ctx context.Context) error {
	if !s.readOnly.Load() {
		return nil
	}
	answer, err := s.ask(ctx, s.d.readOnly)
	switch {
	case err != nil:
		return err
	case answer == "1":
		return fmt.Errorf("store/sqltable: %w: the server is read-only", store.ErrUnavailable)
	}
	s.readOnly.Store(false)
	return nil
}

// forget has q prepared anew, unless somebody else has seen to it.
func (s *Store) forget(q *query, st *sql.Stmt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := q.text.String(); st != nil && s.stmts[text] == st {
		delete(s.stmts, text)
		st.Close()
	}
}

// closedStatement is what database/sql says of a statement that is closed, for which it has no error to compare with: nothing
// was sent.
const closedStatement = "sql: statement is closed"

// errDuplicate: there is a row of this id.
var errDuplicate = fmt.Errorf("%w: there is such a row", store.ErrConflict)

// failure is what an error of the server or of the connection means to callers. The server's text may show a value, of a
// key for example, so only its number is kept.
func (s *Store) failure(ctx context.Context, what string, err error, write bool) error {
	c := s.d.classify(err)
	if c == classMissing {
		s.marks.there.Store(false) // it may be the table of marks
	}
	switch {
	case c == classDuplicate:
		return errDuplicate
	case c == classInvalid:
		return fmt.Errorf("store/sqltable: %s: %w: %s", what, store.ErrInvalid, s.d.code(err))
	case c == classUnknown && write:
		return fmt.Errorf("store/sqltable: %s: %w: %s", what, store.ErrUnknown, s.d.code(err))
	case ctx.Err() != nil:
		return fmt.Errorf("store/sqltable: %s: %w: %w", what, store.ErrUnavailable, ctx.Err())
	}
	return fmt.Errorf("store/sqltable: %s: %w: %s", what, unavailable(err), s.d.code(err))
}

// unavailable is ErrDown where there is no server, or one that is not ready for anybody, and not one that refuses us.
func unavailable(err error) error {
	var my *mysql.MySQLError
	var pg *pgconn.PgError
	var op *net.OpError
	switch {
	case errors.As(err, &my) && !slices.Contains([]uint16{1040, 1053}, my.Number), // too many connections, shutting down
		errors.As(err, &pg) && pg.Code != "53300" && !strings.HasPrefix(pg.Code, "57P0"): // the same, starting up
	case my != nil, pg != nil, errors.As(err, &op), errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return store.ErrDown
	}
	return store.ErrUnavailable
}
