package sqltable

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// column is what the server says of one.
type column struct {
	kind, collation string
	length          int64  // in characters, of what has one
	generated       string // what it is made of by the server, which then takes no value
}

func (c column) isTime() bool {
	return strings.HasPrefix(c.kind, "timestamp") || strings.HasPrefix(c.kind, "date")
}

func (c column) isNumber() bool {
	return strings.Contains(c.kind, "int") || c.kind == "numeric" || c.kind == "decimal" || strings.HasPrefix(c.kind, "double") ||
		c.kind == "real" || c.kind == "float"
}

// small are types of columns that hold so little that a session may not fit, in bytes.
var small = map[string]int{"tinyblob": 255, "tinytext": 255, "blob": 65535, "text": 65535, "mediumblob": 1<<24 - 1, "mediumtext": 1<<24 - 1}

// look asks the server what the columns are, and settles what depends on it.
func (s *Store) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.opt.Bound)
	defer cancel()
	if err := s.lookAtColumns(ctx); err != nil {
		return err
	}
	t := &s.opt.Table
	for what, name := range map[string]string{"id": t.ID, "data": t.Data, "expires": t.Time.Column, "expires_since": t.Time.Since} {
		if _, there := s.schema[name]; !there && name != "" {
			return fmt.Errorf("store/sqltable: table %s has no column %s (%s=)", t.Name, name, what)
		}
	}
	if err := s.lookAtTime(); err != nil {
		return err
	}
	s.says, s.saysSince = s.asTime(t.Time.Column), s.asTime(t.Time.Since)
	id, data := s.schema[t.ID], s.schema[t.Data]
	if s.idLen = int(id.length); s.idLen == 0 || s.idLen > 512 {
		s.idLen = 512 // text
	}
	switch data.kind {
	case "binary", "char", "character":
		return fmt.Errorf("store/sqltable: column %s is of fixed width, and does not give back what was written: change its type", t.Data)
	}
	if s.d == postgres {
		s.exact = true
		s.idParam, s.dataParam = "?::varchar", "?::"+data.kind
		switch id.kind { // compared as another type, it would not be looked up in the index
		case "character":
			s.idParam, s.padded = "?::bpchar", true
		case "bytea": // Joomla
			s.idParam = "convert_to(?::varchar, 'UTF8')"
		}
		s.sameData = fmt.Sprintf(s.d.same, s.data, s.dataParam)
		switch data.kind {
		case "bytea":
			return nil
		case "json": // which knows no equality, and keeps the text as it is
			s.asText = "::text"
			s.sameData = fmt.Sprintf(s.d.same, s.data+s.asText, "?::text")
		case "jsonb":
			return fmt.Errorf("store/sqltable: column %s is jsonb, which does not give back what was written: change its type to json", t.Data)
		}
		s.textual = true
		return nil
	}
	limits, err := s.ask(ctx, s.d.limits)
	if err != nil {
		return err
	}
	fmt.Sscan(limits, new(int), &s.packet)
	s.dataLen = small[data.kind]
	if strings.Contains(data.kind, "char") || strings.Contains(data.kind, "binary") {
		s.dataLen = int(data.length)
	}
	if data.kind == "json" { // of MySQL; MariaDB's is a text
		return fmt.Errorf("store/sqltable: column %s is json, which does not give back what was written: change its type to longtext", t.Data)
	}
	s.exact, s.idFixed = strings.Contains(id.kind, "binary"), id.kind == "binary"
	s.binary = strings.HasSuffix(id.collation, "_bin")
	s.sameID, s.sameData = fmt.Sprintf(s.d.same, asSent(s.id), s.idParam), fmt.Sprintf(s.d.same, s.data, s.dataParam)
	if s.textual = data.collation != ""; s.textual {
		s.sameData = fmt.Sprintf(s.d.same, asSent(s.data), s.dataParam)
	}
	return nil
}

// asSent is a text in the character set of our connections: its bytes in the table may be others.
func asSent(column string) string { return "CONVERT(" + column + " USING utf8mb4)" }

func (s *Store) lookAtColumns(ctx context.Context) error {
	schema, table := s.opt.Table.place()
	where, args := "table_schema = "+s.d.schema+" AND table_name = "+s.d.text, []any{table}
	if schema != "" {
		where, args = "table_schema = "+s.d.text+" AND table_name = "+s.d.text, []any{schema, table}
	}
	q := s.query("SELECT column_name, data_type, COALESCE(character_maximum_length, 0), COALESCE(collation_name, ''), COALESCE(generation_expression, '') "+
		"FROM information_schema.columns WHERE "+where, args...)
	s.schema = map[string]column{}
	if err := s.rows(ctx, q, "table", func(rows *sql.Rows) error {
		var name string
		var c column
		err := rows.Scan(&name, &c.kind, &c.length, &c.collation, &c.generated)
		s.schema[name] = c
		return err
	}); err != nil {
		return err
	}
	if len(s.schema) == 0 {
		return fmt.Errorf("store/sqltable: there is no table %s in this database, or this user may not see it", s.opt.Table.Name)
	}
	return nil
}

// asTime is how a time column is read: what is none in a text is NULL, where PostgreSQL would refuse all of a statement,
// and MySQL make something of it.
func (s *Store) asTime(name string) string {
	column, c := s.d.ident(name), s.schema[name]
	if c.isTime() || c.isNumber() {
		return column
	}
	form, value := "^[0-9]{14}$", column
	if s.opt.Table.Time.Unit != Digits {
		form, value = "^[0-9]{1,18}$", "CAST("+column+" AS DECIMAL(18))"
	}
	return "(CASE WHEN " + fmt.Sprintf(s.d.matches, column, form) + " THEN " + value + " END)"
}

// lookAtTime takes a time column that is of the server's own type for that, and refuses what cannot be meant.
func (s *Store) lookAtTime() error {
	t := &s.opt.Table.Time
	c := s.schema[t.Column]
	switch {
	case t.Column == "":
	case c.isTime() && t.Unit == Seconds && t.Since == "":
		t.Unit = Timestamp
	case t.Unit == UTC && c.kind == "timestamp with time zone":
		t.Unit = Timestamp
	case c.isTime() != (t.Unit == Timestamp || t.Unit == UTC), t.Unit == Digits && c.isNumber():
		return fmt.Errorf("store/sqltable: column %s is of type %s: which expires_unit is it?", t.Column, c.kind)
	}
	return nil
}
