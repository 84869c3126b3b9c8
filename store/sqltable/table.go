package sqltable

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Table says where in a table the sessions are. Presets are known ones.
type Table struct {
	Name string // may begin with a schema: app.sessions
	ID   string // column of the session id: unique, and compared byte by byte
	// Prefix is what the column has before the id (CodeIgniter). Behind it is the id's Hash, if there is one.
	Prefix string
	Hash   Hash
	Data   string // column of the body
	Time   Time   // where the deadline is had from
	// Also are further columns that a write sets: constants of SQL, or "now" in Unit.
	Also []Column
	// Lazy: the application serves what is past its deadline until it is collected. Otherwise such a session is none.
	Lazy  bool
	Codec Codec // between the row and the body; nil: the column's bytes
	Lock  Lock  // the application's own
}

// Time is a column that says how long a session lives.
type Time struct {
	Column  string // "": the table knows no age, and every session lives for Lifetime from when it is looked at
	Unit    Unit
	Meaning Meaning
	// Since is a second column, of the same unit: what Column says is counted from there, unless it is a moment of its own
	// (Symfony, whose older versions wrote a number of seconds). Only for deadlines in seconds.
	Since string
}

// Unit of a time column.
type Unit uint8

const (
	Seconds Unit = iota // since 1970
	Milliseconds
	Timestamp // the server's own type; without a zone, in that of the server
	UTC       // the same, but without a zone it is in UTC
	Digits    // YYYYMMDDHHMMSS in UTC, as text (MediaWiki)
)

// Meaning of a time column.
type Meaning uint8

const (
	Deadline   Meaning = iota // when the session ends
	LastAccess                // when it was last written: it ends Lifetime later
	Created                   // when it was made: it ends Lifetime later, and touches move nothing
)

// Hash is what a table has instead of an id that a client could show. Such a table can be asked for a session, but its
// ids cannot be listed.
type Hash uint8

const (
	NoHash Hash = iota
	SHA256Hex
	SHA256Base64 // in the alphabet of URLs, without padding (Drupal)
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
	// Name is that of a named lock, which GET_LOCK or pg_advisory_lock(hashtext()) takes: {id} stands for the session's
	// id, {md5} for its MD5 in hex.
	Name string
}

// LockKind is the way that an application locks.
type LockKind uint8

const (
	NoLock    LockKind = iota // the application takes none; ours excludes what goes through this store, and no more
	Named                     // GET_LOCK; pg_advisory_lock
	ForUpdate                 // SELECT ... FOR UPDATE, until the end of the transaction
)

// check reports what is not possible.
func (t *Table) check(lifetime time.Duration) error {
	if t.Name == "" || t.ID == "" || t.Data == "" {
		return errors.New("say which table it is: preset=, or table=, id= and data=")
	}
	names := []string{t.Name, t.ID, t.Data, t.Time.Column, t.Time.Since}
	for _, c := range t.Also {
		names = append(names, c.Name)
	}
	for i, name := range names {
		if i > 2 && name == "" {
			continue
		}
		if err := checkName(name); err != nil {
			return err
		}
	}
	switch {
	case lifetime <= 0 && (t.Time.Column == "" || t.Time.Meaning != Deadline):
		return errors.New("needs lifetime=: the table does not say when a session ends")
	case t.Time.Since != "" && (t.Time.Column == "" || t.Time.Unit != Seconds || t.Time.Meaning != Deadline):
		return errors.New("a column that a lifetime is counted from goes with a deadline in seconds")
	case t.Codec != nil && t.Codec.Timed() && (t.Time.Column == "" || t.Time.Meaning != LastAccess):
		return errors.New("the codec says when a session was written last: it needs the column, expires= with expires_kind=last-access")
	case t.Codec != nil && t.Codec.Timed() && t.Hash != NoHash:
		return errors.New("the codec has the id in the body, which cannot be had from its hash")
	case t.Lock.Kind == Named && !strings.Contains(t.Lock.Name, "{"):
		return errors.New("the lock needs a name with {id} or {md5} in it: lock_name=")
	}
	return nil
}

// columnID is what the column of ids has for a session's id.
func (t *Table) columnID(key string) string {
	switch t.Hash {
	case SHA256Hex:
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	case SHA256Base64:
		sum := sha256.Sum256([]byte(key))
		key = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return t.Prefix + key
}

// key is the session's id of what the column of ids has. No hash can be undone.
func (t *Table) key(column string) (key string, ok bool) {
	key, ok = strings.CutPrefix(column, t.Prefix)
	return key, ok && t.Hash == NoHash
}

// lockName is what the server knows the application's own lock by.
func (t *Table) lockName(key string) string {
	sum := md5.Sum([]byte(key))
	return strings.NewReplacer("{id}", key, "{md5}", hex.EncodeToString(sum[:])).Replace(t.Lock.Name)
}

// fixed: the application's touches move no deadline.
func (t *Table) fixed() bool { return t.Time.Meaning == Created || t.Codec.Timed() }

// describe says what a session is in the table, for people.
func (t *Table) describe(lifetime time.Duration) []string {
	ends := "never written down: it lives for " + lifetime.String() + " from when it is first seen"
	if t.Time.Column != "" {
		ends = map[Meaning]string{Deadline: "what " + t.Time.Column + " says",
			LastAccess: lifetime.String() + " after its last write, which " + t.Time.Column + " says",
			Created:    lifetime.String() + " after it was made, which " + t.Time.Column + " says"}[t.Time.Meaning]
	}
	id := t.ID
	if t.Hash != NoHash {
		id += ", the SHA-256 of the client's id"
	}
	if t.Prefix != "" {
		id += fmt.Sprintf(", which begins with %q", t.Prefix)
	}
	lock := map[LockKind]string{NoLock: "none", Named: "the server's, named " + t.Lock.Name, ForUpdate: "the row's, by SELECT ... FOR UPDATE"}[t.Lock.Kind]
	return []string{"id: " + id, "ends: " + ends, "lock: " + lock}
}
