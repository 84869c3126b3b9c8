package sqltable

import (
	"context"
	"errors"
	"fmt"

	"github.com/sessile/sessile/store"
)

// Check says what about the table and the server keeps sessions from being moved away safely (against), and what one should
// know (advice). Nothing is written.
func (s *Store) Check(ctx context.Context) (against, advice []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*s.opt.Bound)
	defer cancel()
	t := &s.opt.Table
	columns := s.id + ", " + s.data
	if t.Time.Column != "" {
		columns += ", " + s.time
	}
	for _, c := range t.Also {
		columns += ", " + s.d.ident(c.Name)
	}
	// Rights are looked at before rows are, and columns that have to be given a value.
	for what, q := range map[string]*query{
		"SELECT": s.query("SELECT COUNT(*) FROM " + s.table + " WHERE 1 = 0"),
		"UPDATE": s.query("UPDATE " + s.table + " SET " + s.data + " = " + s.data + " WHERE 1 = 0"),
		"INSERT": s.query("INSERT INTO " + s.table + " (" + columns + ") SELECT " + columns + " FROM " + s.table + " WHERE 1 = 0"),
		"DELETE": s.query("DELETE FROM " + s.table + " WHERE 1 = 0"),
	} {
		if _, err := s.db.ExecContext(ctx, q.text.String()); err != nil {
			if s.d.classify(err) != classNot {
				return nil, nil, s.failure(ctx, "check", err, false)
			}
			against = append(against, fmt.Sprintf("%s on %s: %s", what, t.Name, s.d.code(err)))
		}
	}
	ask := func(sql string, args ...any) (answer string, err error) {
		q := s.query(sql, args...)
		err = s.db.QueryRowContext(ctx, q.text.String(), q.args...).Scan(&answer)
		if err != nil {
			err = s.failure(ctx, "check", err, false)
		}
		return answer, err
	}
	schema, name := s.place()
	readOnly, err := ask(s.d.readOnly)
	if err != nil {
		return nil, nil, err
	}
	if readOnly == "1" {
		against = append(against, "the server is read-only: is it a replica? name the primary")
	}
	unique, err := ask(s.d.unique, schema, schema, name, t.ID)
	if err != nil {
		return nil, nil, err
	}
	if unique == "0" {
		against = append(against, fmt.Sprintf("column %s has no unique index of its own: which of two rows is the session?", t.ID))
	}
	if s.d.engine != "" {
		engine, err := ask(s.d.engine, schema, schema, name)
		if err != nil {
			return nil, nil, err
		}
		if engine != "InnoDB" {
			against = append(against, fmt.Sprintf("the table's engine is %s, whose writes are not all or nothing: ALTER TABLE %s ENGINE=InnoDB", engine, t.Name))
		}
	}
	if !s.exact && !s.binary {
		advice = append(advice, fmt.Sprintf("column %s takes ids that differ in case only for one: an id that is new is refused where such a one is there", t.ID))
	}
	if _, raw := t.Codec.(identity); raw && s.textual {
		advice = append(advice, fmt.Sprintf("column %s is a text: a body that is not of its character set is refused; a binary column takes any", t.Data))
	}
	line, err := s.marks.read(ctx, s)
	switch {
	case err != nil && !errors.Is(err, store.ErrUnavailable):
		return nil, nil, err
	case err != nil || line == "":
		advice = append(advice, fmt.Sprintf("`create` makes a small table, %s, beside the sessions': the user needs the right to", marksTable))
	}
	return against, advice, nil
}
