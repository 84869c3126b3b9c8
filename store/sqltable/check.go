package sqltable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// Check implements store.Checker.
func (s *Store) Check(ctx context.Context) (store.Findings, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*s.opt.Bound)
	defer cancel()
	f := store.Findings{Facts: s.facts()}
	for _, look := range []func(context.Context, *store.Findings) error{s.checkRights, s.checkTable, s.checkServer, s.checkMarks, s.checkSample} {
		if err := look(ctx, &f); err != nil {
			return f, err
		}
	}
	return f, nil
}

// facts are what we took the table for.
func (s *Store) facts() []string {
	t := &s.opt.Table
	typed := func(column string) string {
		if column == "" {
			return ""
		}
		c := s.schema[column]
		if strings.Contains(c.kind, "char") && c.length > 0 || strings.HasSuffix(c.kind, "binary") {
			return fmt.Sprintf("%s %s(%d)", column, c.kind, c.length)
		}
		return column + " " + c.kind
	}
	columns := []string{typed(t.ID), typed(t.Data), typed(t.Time.Column), typed(t.Time.Since)}
	columns = slices.DeleteFunc(columns, func(c string) bool { return c == "" })
	return append([]string{"table " + t.Name + ": " + strings.Join(columns, ", ")}, t.describe(s.opt.Lifetime)...)
}

// checkRights asks for them before rows are looked at, with statements that find none.
func (s *Store) checkRights(ctx context.Context, f *store.Findings) error {
	t := &s.opt.Table
	columns := s.inserted()
	refused := 0
	for _, q := range [][2]string{
		{"SELECT", "SELECT COUNT(*) FROM " + s.table + " WHERE 1 = 0"},
		{"UPDATE", "UPDATE " + s.table + " SET " + s.data + " = " + s.data + " WHERE 1 = 0"},
		// An INSERT also shows which other columns have to be given a value.
		{"INSERT", "INSERT INTO " + s.table + " (" + columns + ") SELECT " + columns + " FROM " + s.table + " WHERE 1 = 0"},
		{"DELETE", "DELETE FROM " + s.table + " WHERE 1 = 0"},
	} {
		if _, err := s.db.ExecContext(ctx, q[1]); err != nil {
			if s.d.classify(err) != classNot {
				return s.failure(ctx, "check", err, false)
			}
			if !strings.Contains(s.d.code(err), "read-only") { // of which more is said
				refused++
			}
			f.Against = append(f.Against, fmt.Sprintf("%s on %s: %s", q[0], t.Name, s.d.code(err)))
		}
	}
	if refused == 3 {
		f.Advice = append(f.Advice, "this user may only read: `plan` is all that can be done with it. Nobody could log in or out through the gateway, "+
			"and `create` could not say in the origin that it moves")
	}
	return nil
}

// ask asks for one value; none is "".
func (s *Store) ask(ctx context.Context, text string, args ...any) (answer string, err error) {
	q := s.query(text, args...)
	var null sql.NullString
	if err = s.db.QueryRowContext(ctx, q.text.String(), q.args...).Scan(&null); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", s.failure(ctx, "check", err, false)
	}
	return null.String, nil
}

func (s *Store) checkTable(ctx context.Context, f *store.Findings) error {
	t := &s.opt.Table
	schema, name := s.opt.Table.place()
	unique, err := s.ask(ctx, s.d.unique, schema, schema, name, t.ID)
	if err != nil {
		return err
	}
	if unique == "0" {
		f.Against = append(f.Against, fmt.Sprintf("column %s has no unique index of its own: which of two rows is the session?", t.ID))
	}
	kind, err := s.ask(ctx, s.d.kind, schema, schema, name)
	if err != nil {
		return err
	}
	switch kind {
	case "InnoDB", "table":
	case "view", "":
		f.Against = append(f.Against, t.Name+" is no table but a view: name the table behind it")
	default:
		f.Against = append(f.Against, fmt.Sprintf("the table's engine is %s, whose writes are not all or nothing: ALTER TABLE %s ENGINE=InnoDB", kind, t.Name))
	}
	for _, column := range []string{t.ID, t.Data, t.Time.Column, t.Time.Since} {
		if s.schema[column].generated != "" {
			f.Against = append(f.Against, fmt.Sprintf("column %s is a generated one, which takes no value: name the column that it is made of", column))
		}
	}
	triggers, err := s.ask(ctx, s.d.triggers, schema, schema, name)
	if err != nil {
		return err
	}
	if triggers != "0" {
		f.Advice = append(f.Advice, fmt.Sprintf("%s has %s triggers: what they do to a row happens in the origin alone", t.Name, triggers))
	}
	if !s.exact && !s.binary {
		f.Advice = append(f.Advice, fmt.Sprintf("column %s takes ids that differ in case only for one: an id that is new is refused where such a one is there", t.ID))
	}
	if s.textual && !s.ascii() {
		f.Advice = append(f.Advice, fmt.Sprintf("column %s is a text: a body that is not of its character set is refused; a binary column takes any", t.Data))
	}
	if s.dataLen > 0 && s.dataLen < s.opt.MaxValue {
		f.Advice = append(f.Advice, fmt.Sprintf("column %s holds %d bytes at the most: a larger session is refused, and one as long as that is not moved, because the server may have cut it off",
			t.Data, s.dataLen-1))
	}
	if t.Hash != NoHash {
		f.Advice = append(f.Advice, "the table has hashes of ids, so it cannot be listed: instead of a backfill one lifetime= is waited for in sync")
	}
	if t.Time.Column == "" {
		f.Advice = append(f.Advice, "the table does not know how old a session is: in the target each lives for a whole lifetime= from when it is first seen")
	}
	if t.fixed() {
		f.Advice = append(f.Advice, "a deadline moves only when a session is written: one that is only looked at ends as the table says")
	}
	return nil
}

// ascii reports whether the codec writes nothing else, whatever is in a body.
func (s *Store) ascii() bool {
	for _, body := range []string{"\xff\x00", "/wA=", "/wA=\n", "s:2:\"\xff\x00\";"} { // in the forms that codecs take
		row, err := s.opt.Table.Codec.Write("id", []byte(body))
		if err == nil && strings.ContainsAny(string(row.Data), "\x00") {
			return false
		}
	}
	return true
}

func (s *Store) checkServer(ctx context.Context, f *store.Findings) error {
	readOnly, err := s.ask(ctx, s.d.readOnly)
	if err != nil {
		return err
	}
	if readOnly == "1" {
		f.Against = append(f.Against, "the server is read-only: is it a replica? name the primary")
	}
	limits, err := s.ask(ctx, s.d.limits)
	if err != nil {
		return err
	}
	var conns, packet int
	fmt.Sscan(limits, &conns, &packet)
	if most := s.opt.MaxConns + s.opt.MaxLocks; conns < 2*most {
		f.Advice = append(f.Advice, fmt.Sprintf("max_connections is %d, of which each gateway takes up to %d (%d, and one for each lock that is held): raise it, or say max_locks=", conns, most, s.opt.MaxConns))
	}
	if packet > 0 && packet < s.columnSize() {
		f.Advice = append(f.Advice, fmt.Sprintf("max_allowed_packet is %d: a session larger than that is refused; raise it, or say max_value=", packet))
	}
	if s.d.cluster == "" {
		return nil
	}
	var name, on string
	err = s.db.QueryRowContext(ctx, s.d.cluster).Scan(&name, &on)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return s.failure(ctx, "check", err, false)
	}
	if on == "ON" {
		f.Advice = append(f.Advice, "the server is one of a Galera cluster, where GET_LOCK knows its own node only: all gateways and applications must name the same one")
	}
	return nil
}

// checkMarks looks whether identity and seal can be written down.
func (s *Store) checkMarks(ctx context.Context, f *store.Findings) error {
	line, err := s.marks.read(ctx, s)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		f.Against = append(f.Against, fmt.Sprintf("%s, the table in which origin and move find each other, cannot be read: %v. %s", marksTable, err, s.makeMarks()))
		return nil
	}
	for _, q := range [][2]string{
		{"UPDATE", "UPDATE " + s.marks.table + " SET mark = mark WHERE 1 = 0"},
		{"INSERT", "INSERT INTO " + s.marks.table + " (name, mark) SELECT name, mark FROM " + s.marks.table + " WHERE 1 = 0"},
	} {
		_, err := s.db.ExecContext(ctx, q[1])
		switch {
		case err == nil:
			continue
		case s.d.classify(err) == classMissing:
			return s.checkMakingMarks(ctx, f)
		case s.d.classify(err) != classNot:
			return s.failure(ctx, "check", err, false)
		case line == "" || q[0] == "UPDATE":
			f.Against = append(f.Against, fmt.Sprintf("%s on %s: %s", q[0], marksTable, s.d.code(err)))
		}
	}
	return nil
}

func (s *Store) makeMarks() string {
	return fmt.Sprintf("Make it: "+s.d.marks+"; and let the user SELECT, INSERT, UPDATE, DELETE there", s.marks.table)
}

func (s *Store) checkMakingMarks(ctx context.Context, f *store.Findings) error {
	may, err := s.mayCreate(ctx, fmt.Sprintf(s.d.marks, s.marks.table))
	if err != nil {
		return err
	}
	if !may {
		f.Against = append(f.Against, fmt.Sprintf("this user may not make %s, a small table in which origin and move find each other: without it nothing can be moved. %s",
			marksTable, s.makeMarks()))
		return nil
	}
	f.Advice = append(f.Advice, fmt.Sprintf("`create` makes a small table beside the sessions', %s", marksTable))
	return nil
}

// mayCreate reports whether the user may make a table.
func (s *Store) mayCreate(ctx context.Context, create string) (bool, error) {
	if s.d.mayCreate != "" {
		schema, _ := s.opt.Table.place()
		may, err := s.ask(ctx, s.d.mayCreate, schema, schema)
		return may == "1", err
	}
	st, err := s.db.PrepareContext(ctx, create) // MySQL looks at rights then
	switch {
	case err == nil:
		return true, st.Close()
	case s.d.classify(err) == classNot:
		return false, nil
	}
	return false, s.failure(ctx, "check", err, false)
}

// sampled is how many rows are looked at.
const sampled = 1000

// checkSample reads rows as they are, and says what their ids, deadlines and bodies are like.
func (s *Store) checkSample(ctx context.Context, f *store.Findings) error {
	q := s.query("SELECT "+s.columns()+" FROM "+s.table+" ORDER BY "+s.id+" LIMIT ?", sampled)
	rows, err := s.db.QueryContext(ctx, q.text.String(), q.args...)
	if err != nil {
		if s.d.classify(err) == classNot { // said already
			return nil
		}
		return s.failure(ctx, "sample", err, false)
	}
	defer rows.Close()
	var n, fine, both int
	odd := map[string]int{}
	lengths := map[int]int{}
	var left []time.Duration
	for rows.Next() {
		r, err := s.scan(time.Now(), rows.Scan)
		if err != nil {
			return s.failure(ctx, "sample", err, false)
		}
		n++
		if key, ours := s.opt.Table.key(r.key); s.opt.Table.Hash == NoHash {
			if !ours || s.check(key) != nil {
				odd["have an id that no client can show"]++
				continue
			}
			lengths[len(key)]++
		}
		if r.left.Valid && s.opt.Table.Time.Column != "" {
			left = append(left, time.Duration(min(r.left.Int64, forever.Milliseconds()))*time.Millisecond)
		}
		rec, err := s.record(r)
		if refused := (*store.RefusedError)(nil); errors.As(err, &refused) {
			odd["are "+refused.Reason]++
			continue
		}
		fine++
		if s.opt.Table.Hash != NoHash {
			both++ // the codecs that such a table goes with do not look at the id
			continue
		}
		key, _ := s.opt.Table.key(r.key)
		if back, err := s.opt.Table.Codec.Write(key, rec.Data); err == nil {
			again, err := s.opt.Table.Codec.Read(Row{ID: key, Data: back.Data, Time: back.Time})
			if err == nil && string(again) == string(rec.Data) {
				both++
			}
		}
	}
	if err := rows.Err(); err != nil {
		return s.failure(ctx, "sample", err, false)
	}
	if n == 0 {
		f.Advice = append(f.Advice, "the table is empty: nothing was learned from its rows")
		return nil
	}
	for _, what := range slices.Sorted(maps.Keys(odd)) {
		f.Advice = append(f.Advice, fmt.Sprintf("%d of %d sampled rows %s: they are not moved", odd[what], n, what))
	}
	f.Facts = append(f.Facts, fmt.Sprintf("codec: of %d rows sampled %d are read, written and read again as they were", n, both))
	if both < fine {
		f.Against = append(f.Against, fmt.Sprintf("%d of %d sampled bodies do not come back through codec= as they were", fine-both, n))
	}
	if fine == 0 {
		f.Against = append(f.Against, "no sampled row can be read: is it the right codec=, id_prefix= or column?")
	}
	if len(lengths) > 0 {
		all := slices.Sorted(maps.Keys(lengths))
		f.Facts = append(f.Facts, map[bool]string{true: fmt.Sprintf("ids: %d characters", all[0]),
			false: fmt.Sprintf("ids: %d to %d characters", all[0], all[len(all)-1])}[len(all) == 1])
	}
	if len(left) > 0 {
		slices.Sort(left)
		round := func(d time.Duration) time.Duration { return d.Round(time.Second) }
		f.Facts = append(f.Facts, fmt.Sprintf("deadlines: the first in %v, half of them within %v, the last in %v", round(left[0]), round(left[len(left)/2]), round(left[len(left)-1])))
		switch last, day := left[len(left)-1], 24*time.Hour; {
		case last <= 0:
			f.Advice = append(f.Advice, "every sampled session is past its deadline: is it the right column, expires_kind=, expires_unit= and lifetime=?")
		case s.opt.Table.Time.Meaning != Deadline && left[len(left)/2] > s.opt.Lifetime+time.Minute:
			f.Advice = append(f.Advice, "sessions are said to have been used in the future: is it expires_kind=deadline?")
		case last > 10*365*day:
			f.Advice = append(f.Advice, "a sampled session lives for more than ten years: is it the right expires_kind= and expires_unit=?")
		}
	}
	return nil
}
