package sqltable

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// Identity and seal lie in a small table of ours beside the sessions': a row for each table of sessions. An empty mark is
// the zero Mark. The row is made with the table, so that there always is one to be held.
const marksTable = "sessile_marks"

type marks struct {
	table string // quoted, in the schema of the sessions' table

	there atomic.Bool // our row exists
}

// encodeMark writes m as it is compared: "" for the zero Mark.
func encodeMark(m store.Mark) (string, error) {
	if m == (store.Mark{}) {
		return "", nil
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > 1000 {
		return "", fmt.Errorf("store/sqltable: mark: %w: it does not fit into the table", store.ErrInvalid)
	}
	return string(b), nil
}

// Mark implements store.Origin.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	line, err := s.marks.read(ctx, s)
	if err != nil || line == "" {
		return store.Mark{}, err
	}
	var m store.Mark
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		return store.Mark{}, fmt.Errorf("store/sqltable: %w: the mark in %s cannot be read: is it a newer version's?", store.ErrUnavailable, marksTable)
	}
	return m, nil
}

// row reads our row; the error is the server's own.
func (k *marks) row(ctx context.Context, s *Store) (line string, err error) {
	q := s.query("SELECT mark FROM "+k.table+" WHERE name = "+s.d.text, s.opt.Table.Name)
	st, err := s.statement(ctx, q)
	if err == nil {
		err = st.QueryRowContext(ctx, q.args...).Scan(&line)
	}
	return line, err
}

// read returns the mark as it is written, "" where there is no table, or no row in it.
func (k *marks) read(ctx context.Context, s *Store) (line string, err error) {
	line, err = k.row(ctx, s)
	switch {
	case err == nil, errors.Is(err, sql.ErrNoRows), s.d.classify(err) == classMissing:
		return line, nil
	}
	return "", s.failure(ctx, "mark", err, false)
}

// make sees to it that there is a row to be held.
func (k *marks) make(ctx context.Context, s *Store) error {
	if k.there.Load() {
		return nil
	}
	_, err := k.row(ctx, s)
	if err != nil && s.d.classify(err) == classMissing {
		if _, err = s.db.ExecContext(ctx, fmt.Sprintf(s.d.marks, k.table)); err != nil {
			if s.d.classify(err) == classNot && strings.Contains(s.d.code(err), "lacks this right") {
				return fmt.Errorf("store/sqltable: this user may not make %s. %s: %w", marksTable, s.makeMarks(), errors.ErrUnsupported)
			}
			return s.failure(ctx, "create table "+marksTable, err, false)
		}
		err = sql.ErrNoRows
	}
	if errors.Is(err, sql.ErrNoRows) {
		_, err = s.exec(ctx, "", s.query("INSERT INTO "+k.table+" (name, mark) VALUES ("+s.d.text+", '')", s.opt.Table.Name))
		if errors.Is(err, errDuplicate) {
			err = nil
		}
	} else if err != nil {
		err = s.failure(ctx, "mark", err, false)
	}
	if err == nil {
		k.there.Store(true)
	}
	return err
}

// SwapMark implements store.Origin.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	was, err := encodeMark(old)
	if err != nil {
		return err
	}
	is, err := encodeMark(next)
	if err != nil {
		return err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	s.marks.there.Store(false) // it is worth another look
	if err := s.marks.make(ctx, s); err != nil {
		return err
	}
	rows, err := s.exec(ctx, "", s.query("UPDATE "+s.marks.table+" SET mark = "+s.d.text+" WHERE name = "+s.d.text+" AND mark = "+s.d.text+s.d.changing,
		is, s.opt.Table.Name, was))
	if err == nil && rows == 0 {
		return store.ErrConflict
	}
	return err
}

// under lets a write happen only under m: nil is any. Whoever changes the mark waits for the end of the statement.
func (k *marks) under(ctx context.Context, s *Store, q *query, m *store.Mark) error {
	if m == nil {
		return nil
	}
	line, err := encodeMark(*m)
	if err != nil {
		return err
	}
	if err := k.make(ctx, s); err != nil {
		return err
	}
	q.add(" AND EXISTS (SELECT 1 FROM "+k.table+" WHERE name = "+s.d.text+" AND mark = "+s.d.text+s.d.sharing+" "+s.d.share+")",
		s.opt.Table.Name, line)
	return nil
}

// still answers ErrSealed where the mark is not m any more.
func (k *marks) still(ctx context.Context, s *Store, m *store.Mark) error {
	if m == nil {
		return nil
	}
	k.there.Store(false) // somebody may have taken our row away
	line, err := k.read(ctx, s)
	if err != nil {
		return err
	}
	if want, _ := encodeMark(*m); line != want {
		return store.ErrSealed
	}
	return nil
}

// Under implements store.Origin.
func (s *Store) Under(m store.Mark) store.Store { return under{s, m} }

type under struct {
	*Store
	mark store.Mark
}

func (u under) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.save(ctx, key, rec, cond, &u.mark)
}

func (u under) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.touch(ctx, key, expires, &u.mark)
}

func (u under) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return u.remove(ctx, key, cond, &u.mark)
}

func (u under) SaveAll(ctx context.Context, writes []store.Write) error {
	return u.saveAll(ctx, writes, &u.mark)
}

func (u under) Append(ctx context.Context, key string, data []byte, expires time.Time) (store.Record, error) {
	return u.append(ctx, key, data, expires, &u.mark)
}

func (under) Close() error { return nil }
