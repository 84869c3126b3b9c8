package sqltable

import (
	"context"
	"database/sql"
	"maps"
	"slices"
)

func (s *Store) Table() string    { return s.opt.Table.Name }
func (s *Store) Options() Options { return s.opt }

func Steps() []string                                     { return slices.Sorted(maps.Keys(steps)) }
func ColumnID(t *Table, key string) string                { return t.columnID(key) }
func KeyOf(t *Table, column string) (key string, ok bool) { return t.key(column) }

// LoadClosed looks for a session with a statement that somebody closes between its being got and its being run.
func (s *Store) LoadClosed(ctx context.Context, key string) (closed bool, err error) {
	q := s.query("SELECT 1 FROM "+s.table+" WHERE "+s.id+" = "+s.idParam, s.opt.Table.columnID(key))
	err = s.get(ctx, q, "read", func(st *sql.Stmt) error {
		if !closed {
			closed = true
			s.forget(q, st)
		}
		return st.QueryRowContext(ctx, q.args...).Scan(new(int))
	})
	return closed, err
}
