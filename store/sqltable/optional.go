package sqltable

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sessile/sessile/store"
)

var (
	_ store.Batcher  = (*Store)(nil)
	_ store.Appender = (*Store)(nil)
)

// SaveAll implements store.Batcher: one transaction, of the conditional writes that Save would do. A row that was written stays as
// it is until the end of it, so that all conditions hold then. It answers errors.ErrUnsupported where the table's engine has no
// transactions, where MySQL's binlog_format is STATEMENT, and where the application's lock on one of the sessions is the row's and this process has it: another connection
// would wait for ourselves.
func (s *Store) SaveAll(ctx context.Context, writes []store.Write) error {
	return s.saveAll(ctx, writes, nil)
}

// A planned write is one of SaveAll's.
type planned struct {
	store.Write
	row  Row
	left time.Duration
}

func (s *Store) saveAll(ctx context.Context, writes []store.Write, m *store.Mark) error {
	plan := make([]planned, len(writes))
	for i, w := range writes {
		row, left, err := s.encode(w.Key, w.Record)
		if err != nil {
			return err
		}
		plan[i] = planned{w, row, left}
	}
	if len(plan) == 0 {
		return nil
	}
	// In one order, so that no two transactions wait for each other.
	slices.SortFunc(plan, func(a, b planned) int { return cmp.Compare(a.Key, b.Key) })
	for i := range plan[1:] {
		if plan[i].Key == plan[i+1].Key {
			return invalid("two writes for one key")
		}
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	if err := s.transacts(ctx); err != nil {
		return err
	}
	for try := 1; ; try++ {
		statements := make([]*query, len(plan))
		for i, w := range plan {
			if s.locks.row(w.Key) != nil {
				return fmt.Errorf("store/sqltable: save all: the row is locked: %w", errors.ErrUnsupported)
			}
			found, err := s.find(ctx, w.Key, w.Condition)
			if err != nil {
				return err
			}
			if statements[i], err = s.writing(ctx, w.Key, w.row, w.left, found, m); err != nil {
				return err
			}
		}
		done, err := s.transact(ctx, statements)
		if done || err != nil {
			return err
		}
		if err := s.marks.still(ctx, s, m); err != nil {
			return err
		}
		if try == tries {
			return fmt.Errorf("store/sqltable: %w: others write them all the time", store.ErrUnavailable)
		}
	}
}

// transacts refuses a table that has no transactions.
func (s *Store) transacts(ctx context.Context) error {
	if s.whole.Load() {
		return nil
	}
	schema, name := s.opt.Table.place()
	kind, err := s.ask(ctx, s.d.kind, schema, schema, name)
	if err != nil {
		return err
	}
	if kind != "InnoDB" && kind != "table" {
		return fmt.Errorf("store/sqltable: save all: no table with transactions: %w", errors.ErrUnsupported)
	}
	s.whole.Store(true)
	return nil
}

// transact runs writes in one transaction. It reports false, with nothing done, where one of them has not found what it was to
// replace, or the server has given up for the sake of another transaction. Until the COMMIT is sent nothing is done for certain,
// whatever becomes of the connection. No sql.Tx: see rowLock.begin.
func (s *Store) transact(ctx context.Context, writes []*query) (done bool, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return false, s.failure(ctx, "connect", err, false)
	}
	defer conn.Close()
	for _, text := range s.d.begin {
		if _, err = conn.ExecContext(ctx, text); err != nil {
			break
		}
	}
	for i := 0; err == nil && i < len(writes); i++ {
		res, failed := conn.ExecContext(ctx, writes[i].text.String(), writes[i].args...)
		if err = failed; err == nil {
			var rows int64
			if rows, err = res.RowsAffected(); err == nil && rows == 0 {
				err = errReplaced
			}
		}
	}
	sent := err == nil
	if sent {
		if _, err = conn.ExecContext(ctx, "COMMIT"); err == nil {
			return true, nil
		}
	}
	s.noteReadOnly(err)
	if _, lost := conn.ExecContext(ctx, "ROLLBACK"); lost != nil {
		discard(conn) // and the transaction with it
	}
	if s.d.code(err) == "error 1665" {
		return false, fmt.Errorf("store/sqltable: save all: binlog_format=STATEMENT cannot log what is read as committed: %w", errors.ErrUnsupported)
	}
	c := s.d.classify(err)
	if err == errReplaced || c == classAgain || c == classDuplicate || errors.Is(err, driver.ErrBadConn) && ctx.Err() == nil {
		return false, nil
	}
	return false, s.failure(ctx, "write", err, sent)
}

var errReplaced = errors.New("it is not there any more")

// Append implements store.Appender: it reads the row, and writes it where it still is what was read, as often as others come between
// within the time that an operation may take. Each time somebody else's has been done.
func (s *Store) Append(ctx context.Context, key string, data []byte, expires time.Time) (store.Record, error) {
	return s.append(ctx, key, data, expires, nil)
}

func (s *Store) append(ctx context.Context, key string, data []byte, expires time.Time, m *store.Mark) (store.Record, error) {
	if err := s.check(key); err != nil {
		return store.Record{}, err
	}
	if (store.Record{Expires: expires}).Remaining(time.Now()) <= 0 { // also where it has a later one
		return store.Record{}, invalid("the deadline is not in the future")
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	for {
		r, err := s.read(ctx, key)
		if err != nil {
			return store.Record{}, err
		}
		rec, longer := store.Record{Data: slices.Clone(data), Expires: expires}, false
		if s.live(r) {
			old, err := s.record(r)
			if err != nil {
				return store.Record{}, err
			}
			rec.Data = append(old.Data, data...)
			if longer = old.Expires.After(expires); longer {
				rec.Expires = old.Expires
			}
		}
		row, left, err := s.encode(key, rec)
		if err != nil {
			return store.Record{}, err
		}
		if longer { // and stays as it is written: what was made of it and back would be a little later each time
			left = 0
		}
		rows, err := s.write(ctx, key, row, left, found{insert: r == nil, old: r}, m)
		switch {
		case rows > 0:
			return rec, nil
		case err != nil && !errors.Is(err, errDuplicate):
			return store.Record{}, err
		}
		if err := s.marks.still(ctx, s, m); err != nil {
			return store.Record{}, err
		}
	}
}
