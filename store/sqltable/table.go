package sqltable

import (
	"errors"
	"time"
)

// Table says where in a table the sessions are. Presets are known ones.
type Table struct {
	Name string // may begin with a schema: app.sessions
	ID   string // column of the session id: unique, and compared byte by byte
	Data string // column of the body
	Time Time   // where the deadline is had from
	// Also are further columns that a write sets: constants of SQL, or "now" in Unit.
	Also []Column
	// Lazy: the application serves what is past its deadline until it is collected. Otherwise such a session is none.
	Lazy  bool
	Codec Codec // between the column and the body; nil: the same bytes
	Lock  Lock  // the application's own
}

// Time is a column that says how long a session lives.
type Time struct {
	Column  string // "": the table knows no age, and every session lives for Lifetime from when it is looked at
	Unit    Unit
	Meaning Meaning
}

// Unit of a time column.
type Unit uint8

const (
	Seconds Unit = iota // since 1970
	Milliseconds
	Timestamp // the server's own type; without a zone, in that of the server
)

// Meaning of a time column.
type Meaning uint8

const (
	Deadline   Meaning = iota // when the session ends
	LastAccess                // when it was last written: it ends Lifetime later
)

// Column is one that a write sets besides.
type Column struct {
	Name string
	Now  bool   // the server's clock, in Unit
	Unit Unit   // of Now
	SQL  string // otherwise: a constant
	// Insert: only a new row gets it.
	Insert bool
}

// Lock is how an application locks a session in the table.
type Lock struct {
	Kind LockKind
	// Prefix is put before the id: the name that GET_LOCK or pg_advisory_lock(hashtext()) takes.
	Prefix string
}

// LockKind is the way that an application locks.
type LockKind uint8

const (
	NoLock LockKind = iota // the application takes none; ours excludes what goes through this store, and no more
	Named                  // GET_LOCK; pg_advisory_lock
)

// Presets are the tables of applications, by the name that a URL gives (preset=).
var Presets = map[string]Table{
	// RequestTracker 5 on MySQL, and Apache::Session::MySQL. On current servers LastUpdated is always NULL.
	"rt": {Name: "sessions", ID: "id", Data: "a_session", Codec: Codecs["base64-body"], Lazy: true,
		Lock: Lock{Named, "Apache-Session-"}},
	"express-mysql-session": {Name: "sessions", ID: "session_id", Data: "data", Time: Time{Column: "expires"}},
	"connect-pg-simple":     {Name: "session", ID: "sid", Data: "sess", Time: Time{Column: "expire", Unit: Timestamp}},
	"yii2":                  {Name: "session", ID: "id", Data: "data", Time: Time{Column: "expire"}},
}

// check reports what is not possible.
func (t *Table) check(lifetime time.Duration) error {
	if t.Name == "" || t.ID == "" || t.Data == "" {
		return errors.New("say which table it is: preset=, or table=, id= and data=")
	}
	for _, name := range []string{t.Name, t.ID, t.Data} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if t.Time.Column != "" {
		if err := checkName(t.Time.Column); err != nil {
			return err
		}
	}
	if lifetime <= 0 && (t.Time.Column == "" || t.Time.Meaning == LastAccess) {
		return errors.New("needs lifetime=: the table does not say when a session ends")
	}
	return nil
}

// milliseconds is the value of a column of unit u in ms since 1970.
func (d *dialect) milliseconds(column string, u Unit) string {
	switch u {
	case Milliseconds:
		return d.number(column)
	case Timestamp:
		return d.epoch(column)
	}
	return d.number(column) + " * 1000"
}

// value is ms since 1970 as a value for a column of unit u, rounded up.
func (d *dialect) value(ms string, u Unit) string {
	switch u {
	case Milliseconds:
		return ms
	case Timestamp:
		return d.time(ms)
	}
	return d.ceil(ms)
}
