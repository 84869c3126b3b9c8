// Package sqltable keeps sessions in a table of MySQL, MariaDB or PostgreSQL: that of an application, described by a
// Table, or one of its own.
//
// Ages are computed by the server's clock. A conditional write reads the row, and then writes on condition that it still
// has the very bytes that were read; under a mark, the same statement holds the mark's row. So one that lands late finds
// something else there, and does nothing. How long a statement may run, and wait for a row, is bounded by the server
// (max_statement_time, innodb_lock_wait_timeout; statement_timeout, lock_timeout): one that waits for a row outlives its
// connection.
package sqltable

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// Options of a store.
type Options struct {
	Table    Table
	Lifetime time.Duration // of a session where the table says when it was used last, or says nothing
	MaxValue int           // size of a body in bytes above which it is refused. 0 is 1 MiB
	Bound    time.Duration // the longest time an operation may take. 0 is 5 s
	MaxConns int           // connections for reads and writes. 0 is 16
	MaxLocks int           // locks held at a time, each on a connection of its own. 0 is 256
	TLS      TLS
	CAs      *x509.CertPool // whose certificates count. nil: the system's
	Create   bool           // make the table if it is not there: one of ours, as the preset sessile describes it
}

// TLS says how a connection is protected.
type TLS uint8

const (
	TLSPreferred  TLS = iota // with TLS where the server has it, whoever it is: nobody can listen, but somebody may pretend
	TLSVerified              // only with a certificate for the host's name, of one of CAs
	TLSUnverified            // only with TLS, whoever it is
	TLSNever
)

// tls is what a connection to host is made with; nil is none.
func (o *Options) tls(host string) *tls.Config {
	if o.TLS == TLSNever {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: o.CAs, InsecureSkipVerify: o.TLS != TLSVerified}
}

// Store is a table of sessions. It is safe for concurrent use.
type Store struct {
	db  *sql.DB
	d   *dialect
	opt Options

	table, id, data, time, since string // quoted
	says, saysSince              string // time and since as they are read
	idParam, dataParam           string // ? with what the server has to know of its type
	sameID                       string // the column of ids holds the bytes of ?, where it may take another id for equal
	sameData                     string // that of the body does
	idLen                        int    // longest id in bytes
	dataLen                      int    // of a column that holds little, in bytes: a body of that length may have been cut off
	packet                       int    // the largest that the server takes, in bytes; 0 where it does not say
	padded                       bool   // ids are filled up with blanks
	idFixed                      bool   // ids are of idLen bytes, no less
	asText                       string // behind the column of the body where it is of a type without a length
	exact                        bool   // the server tells ids apart byte by byte
	binary                       bool   // it does, but for blanks at the end
	textual                      bool   // the column of the body is text, and takes no []byte

	schema map[string]column

	locks locks
	marks marks

	whole atomic.Bool // a transaction is done wholly or not at all

	readOnly atomic.Bool // a write was refused because the server is

	mu     sync.Mutex // guards stmts, closed
	stmts  map[string]*sql.Stmt
	closed bool
}

// Capabilities implements store.Store.
func (s *Store) Capabilities() store.Capabilities { return s.opt.Table.capabilities() }

func (t *Table) capabilities() store.Capabilities {
	return store.Capabilities{Scan: t.Hash == NoHash, Conditional: true, LazyExpiry: t.Lazy, Lock: true, Seal: true,
		Ageless: t.Time.Column == "" || t.fixed()}
}

// Lifetime is that of a session where the table does not say when it ends; 0: the table says.
func (s *Store) Lifetime() time.Duration { return s.opt.Lifetime }

// begin bounds an operation. The last statement is sent in the first half, and runs for half of it at most: also of what is left
// until store.NotAfter, since the server goes on when nobody waits any more.
func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	end := time.Now().Add(s.opt.Bound / 2)
	if latest, ok := store.Latest(ctx); ok && latest.Add(-s.opt.Bound/2).Before(end) {
		end = latest.Add(-s.opt.Bound / 2)
	}
	return context.WithDeadline(ctx, end)
}

// check refuses keys that the table cannot hold, or that the server might take for another one's: it ignores blanks at
// the end, and reads bytes beyond ASCII by a character set.
func (s *Store) check(key string) error {
	if key == "" || len(key) > 512 || len(s.opt.Table.columnID(key)) > s.idLen {
		return invalid("a key has 1 to %d characters", s.idLen-len(s.opt.Table.Prefix))
	}
	if s.idFixed && len(s.opt.Table.columnID(key)) < s.idLen {
		return invalid("ids are of %d characters", s.idLen)
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return invalid("a key has visible ASCII characters only")
		}
	}
	return nil
}

func (s *Store) query(text string, args ...any) *query {
	q := &query{dollar: s.d.dollar}
	if !q.dollar {
		q.add(ours)
	}
	return q.add(text, args...)
}

// where limits q to the row under key.
func (s *Store) where(q *query, key string) *query {
	id := s.opt.Table.columnID(key)
	q.add(" WHERE "+s.id+" = "+s.idParam, id)
	if !s.exact { // another id may be equal to it by the column's collation
		q.add(" AND "+s.sameID, id)
	}
	return q
}

// ends is when a row's session ends, in ms since 1970 by the server's clock: "" where the table does not say.
func (s *Store) ends() string {
	t := s.opt.Table.Time
	switch {
	case t.Column == "":
		return ""
	case t.Meaning != Deadline:
		return fmt.Sprintf("(%s + %d)", s.d.milliseconds(s.says, t.Unit), s.opt.Lifetime.Milliseconds())
	case t.Since != "":
		return fmt.Sprintf("(CASE WHEN %s > %d THEN %s ELSE %s + %s END)", s.says, longestLife,
			s.d.milliseconds(s.says, t.Unit), s.d.milliseconds(s.says, t.Unit), s.d.milliseconds(s.saysSince, t.Unit))
	}
	return s.d.milliseconds(s.says, t.Unit)
}

// forever is longer than any session lives. A column may say more than a time.Duration can.
const forever = 100 * 365 * 24 * time.Hour

// longestLife is in seconds, ten years: a larger number is a moment.
const longestLife = 10 * 365 * 24 * 60 * 60

// moved is what the time column says, in ms since 1970; 0 where the codec does not ask.
func (s *Store) moved() string {
	if s.opt.Table.Codec.Timed() && s.opt.Table.Time.Column != "" {
		return s.d.milliseconds(s.says, s.opt.Table.Time.Unit)
	}
	return "0"
}

// dataArg is a column's bytes as a parameter; nil is a column without a value, which is a session without data.
func (s *Store) dataArg(column []byte) any {
	if s.textual && column != nil {
		return string(column)
	}
	return column
}

// left is how long a row's session lives from now, in ms; NULL where the table does not say.
func (s *Store) left() string {
	if ends := s.ends(); ends != "" {
		return ends + " - " + s.d.now
	}
	return "NULL"
}

// alive limits q to what live takes for a session.
func (s *Store) alive(q *query) *query {
	if ends := s.ends(); ends != "" && !s.opt.Table.Lazy {
		q.add(fmt.Sprintf(" AND COALESCE(%s > %s, %t)", ends, s.d.now, s.opt.Lifetime > 0))
	}
	return q
}

// moment is what a time column has to hold for a session that lives for left from now on.
func (s *Store) moment(q *query, left time.Duration) *query {
	t := s.opt.Table.Time
	if t.Meaning != Deadline {
		left -= s.opt.Lifetime
	}
	return q.add(s.d.value(s.d.now+" + ?", t.Unit), left.Milliseconds())
}

// holds reports whether the table can hold the deadline of a session that lives for left: MySQL's FROM_UNIXTIME makes NULL,
// so no deadline at all, of what is behind 2038.
func (s *Store) holds(left time.Duration) bool {
	t := s.opt.Table.Time
	return s.d != mariadb || t.Unit != Timestamp || t.Meaning != Deadline || time.Now().Add(left).Unix() < 1<<31
}

var errBehind2038 = invalid("the table holds no deadline behind 2038")

// raw is a row as it is in the table.
type raw struct {
	key  string
	data []byte        // nil where it is too large to be read
	size int64         // of the column, in bytes
	left sql.NullInt64 // ms
	time sql.NullInt64 // what the time column says, if the codec is timed
	at   time.Time     // when it was asked for: left is counted from there, however long the answer takes
}

// columns are what a row is read from, and scan reads them.
func (s *Store) columns() string {
	size := "octet_length(" + s.data + s.asText + ")"
	return fmt.Sprintf("%s, CASE WHEN %s <= %d THEN %s END, COALESCE(%s, 0), %s, %s", s.id, size, s.columnSize(), s.data, size, s.left(), s.moved())
}

// scan reads a row; one that is not of this table's form has no key.
func (s *Store) scan(at time.Time, scan func(...any) error) (*raw, error) {
	r := &raw{at: at}
	var id []byte
	if err := scan(&id, &r.data, &r.size, &r.left, &r.time); err != nil {
		return nil, err
	}
	r.key = s.unpadded(string(id))
	return r, nil
}

// read returns the row under key, or nil, overdue or not.
func (s *Store) read(ctx context.Context, key string) (*raw, error) {
	var r *raw
	at := time.Now()
	err := s.row(ctx, s.where(s.query("SELECT "+s.columns()+" FROM "+s.table), key), func(row *sql.Row) (err error) {
		r, err = s.scan(at, row.Scan)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	case r.key != s.opt.Table.columnID(key):
		return nil, nil
	case s.huge(r):
		return nil, errHuge
	}
	return r, nil
}

// unpadded is an id without the blanks that fill a column of fixed width, which MySQL takes off itself. No key of ours ends
// in one.
func (s *Store) unpadded(id string) string {
	if s.padded {
		return strings.TrimRight(id, " ")
	}
	return id
}

var errHuge = &store.RefusedError{Reason: "too large"}

func (s *Store) huge(r *raw) bool { return r.size > int64(s.columnSize()) }

// columnSize is the largest column that may hold a body of MaxValue bytes: Base64 takes four for three.
func (s *Store) columnSize() int { return s.opt.MaxValue*3/2 + 1024 }

// record is the session of a row.
func (s *Store) record(r *raw) (store.Record, error) {
	t := &s.opt.Table
	key, _ := t.key(r.key)
	body, err := t.Codec.Read(Row{ID: key, Data: r.data, Time: r.time.Int64})
	switch {
	case s.huge(r):
		return store.Record{}, errHuge
	case err != nil:
		return store.Record{}, &store.RefusedError{Reason: "not of the table's codec"}
	case s.dataLen > 0 && len(r.data) == s.dataLen:
		return store.Record{}, &store.RefusedError{Reason: "as long as its column, so probably cut off"}
	case !r.left.Valid && t.Time.Column != "" && s.opt.Lifetime == 0:
		return store.Record{}, &store.RefusedError{Reason: "without a deadline"}
	}
	if len(body) > s.opt.MaxValue {
		return store.Record{}, errHuge
	}
	left := s.opt.Lifetime // no age: it begins now
	if r.left.Valid {
		left = time.Duration(min(r.left.Int64, forever.Milliseconds())) * time.Millisecond
	}
	return store.Record{Data: body, Expires: r.at.Add(left)}, nil
}

// live reports whether a row is a session: there is one, and it is not over.
func (s *Store) live(r *raw) bool {
	return r != nil && (s.opt.Table.Lazy || !r.left.Valid || r.left.Int64 > 0)
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, key string) (store.Record, error) {
	if err := s.check(key); err != nil {
		return store.Record{}, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	r, err := s.read(ctx, key)
	if err != nil {
		return store.Record{}, err
	}
	if !s.live(r) {
		return store.Record{}, store.ErrAbsent
	}
	return s.record(r)
}

// Inspect implements store.Store.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	return s.Load(ctx, key)
}

// bulk is how many rows InspectAll asks for in one statement.
const bulk = 200

// InspectAll implements store.BulkReader.
func (s *Store) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	at := make(map[string][]int, len(keys))
	for i, key := range keys {
		if err := s.check(key); err != nil {
			return nil, err
		}
		id := s.opt.Table.columnID(key)
		at[id] = append(at[id], i)
	}
	all := make([]*store.Record, len(keys))
	for rest := range slices.Chunk(keys, bulk) {
		q := s.query("SELECT " + s.columns() + " FROM " + s.table + " WHERE " + s.id + " IN (")
		for i := range bulk { // always as many, so that there is one statement; the last one again is nothing more
			q.add(map[bool]string{true: ", "}[i > 0]+s.idParam, s.opt.Table.columnID(rest[min(i, len(rest)-1)]))
		}
		asked := time.Now()
		err := s.rows(ctx, q.add(")"), "read", func(rows *sql.Rows) error {
			r, err := s.scan(asked, rows.Scan)
			if err != nil || !s.live(r) {
				return err
			}
			for _, i := range at[r.key] { // none: another id, that is equal by the column's collation
				rec, err := s.record(r)
				if err != nil {
					return err
				}
				all[i] = &rec
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Save implements store.Store.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.save(ctx, key, rec, cond, nil)
}

func (s *Store) save(ctx context.Context, key string, rec store.Record, cond store.Condition, m *store.Mark) error {
	row, left, err := s.encode(key, rec)
	if err != nil {
		return err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	for try := 0; ; try++ {
		found, err := s.find(ctx, key, cond)
		if err != nil {
			return err
		}
		rows, err := s.write(ctx, key, row, left, found, m)
		switch {
		case rows > 0:
			return nil
		case err != nil && !errors.Is(err, errDuplicate):
			return err
		}
		if err := s.marks.still(ctx, s, m); err != nil {
			return err
		}
		if try == tries {
			return fmt.Errorf("store/sqltable: %w: others write it all the time", store.ErrUnavailable)
		}
	}
}

// encode is the row of a session under key, and how long that lives, or why the table cannot hold it.
func (s *Store) encode(key string, rec store.Record) (row Row, left time.Duration, err error) {
	if err := s.check(key); err != nil {
		return row, 0, err
	}
	left = rec.Remaining(time.Now())
	switch {
	case rec.Flags != 0:
		return row, 0, invalid("a table keeps no flags")
	case len(rec.Data) > s.opt.MaxValue:
		return row, 0, invalid("%d bytes are more than %d", len(rec.Data), s.opt.MaxValue)
	case left <= 0:
		return row, 0, invalid("the deadline is not in the future")
	case !s.holds(left):
		return row, 0, errBehind2038
	}
	row, err = s.opt.Table.Codec.Write(key, rec.Data)
	if err != nil {
		return row, 0, err
	}
	if row.Data == nil {
		row.Data = []byte{}
	}
	if s.dataLen > 0 && len(row.Data) >= s.dataLen {
		return row, 0, invalid("%d bytes do not fit into the column", len(row.Data))
	}
	if s.packet > 0 && len(row.Data) > s.packet-1024 { // it would end the connection, so that nobody knew what became of it
		return row, 0, invalid("%d bytes do not fit into max_allowed_packet", len(row.Data))
	}
	return row, left, nil
}

// found is what a write may replace.
type found struct {
	insert bool // nothing
	old    *raw // this row as it is, if not nil; otherwise any
}

// find looks what is under key, and whether cond holds for it.
func (s *Store) find(ctx context.Context, key string, cond store.Condition) (f found, err error) {
	r, err := s.read(ctx, key)
	if refused := (&store.RefusedError{}); errors.As(err, &refused) && cond == store.Always {
		return found{}, nil
	}
	if err != nil {
		return f, err
	}
	v := store.Absent
	if s.live(r) {
		rec, err := s.record(r)
		switch {
		case err == nil:
			v = rec.Version()
		case cond == store.Always:
			return found{old: r}, nil
		default:
			return f, err
		}
	}
	if !cond.Holds(v) {
		return f, store.ErrConflict
	}
	if r == nil {
		return found{insert: true}, nil
	}
	return found{old: r}, nil
}

// inserted are the columns that a new row is given.
func (s *Store) inserted() string {
	t := &s.opt.Table
	columns := s.id + ", " + s.data
	if t.Time.Column != "" {
		columns += ", " + s.time
	}
	if t.Time.Since != "" {
		columns += ", " + s.since
	}
	for _, c := range t.Also {
		columns += ", " + s.d.ident(c.Name)
	}
	return columns
}

// write puts a row where found was, and returns how many rows it found to be so.
func (s *Store) write(ctx context.Context, key string, row Row, left time.Duration, f found, m *store.Mark) (int64, error) {
	q, err := s.writing(ctx, key, row, left, f, m)
	if err != nil {
		return 0, err
	}
	return s.exec(ctx, key, q)
}

// writing is the statement of write.
func (s *Store) writing(ctx context.Context, key string, row Row, left time.Duration, f found, m *store.Mark) (*query, error) {
	var q *query
	if f.insert {
		q = s.insert(key, row, left)
	} else {
		q = s.update(key, row, left, f)
	}
	return q, s.marks.under(ctx, s, q, m)
}

func (s *Store) insert(key string, row Row, left time.Duration) *query {
	t := &s.opt.Table
	q := s.query("INSERT INTO " + s.table + " (" + s.inserted())
	q.add(") SELECT "+s.idParam+", "+s.dataParam, t.columnID(key), s.dataArg(row.Data))
	switch {
	case t.Time.Column == "":
	case row.Time != 0:
		q.add(", "+s.d.value("?", t.Time.Unit), row.Time)
	default:
		s.moment(q.add(", "), left)
	}
	if t.Time.Since != "" {
		q.add(", " + s.d.value(s.d.now, t.Time.Unit))
	}
	for _, c := range t.Also {
		q.add(", " + s.d.also(c))
	}
	return q.add(s.d.dual + " WHERE 1 = 1")
}

func (s *Store) update(key string, row Row, left time.Duration, f found) *query {
	q := s.query("UPDATE "+s.table+" SET "+s.data+" = "+s.dataParam+", ", s.dataArg(row.Data))
	if row.Time != 0 {
		q.add(s.time+" = "+s.d.value("?", s.opt.Table.Time.Unit)+", ", row.Time)
	}
	s.renew(q, left)
	s.where(q, key)
	s.unchanged(q, f)
	return q
}

// renew appends what a write sets beside the body; its last assignment changes nothing, and needs no comma. left 0 leaves the
// deadline where it is.
func (s *Store) renew(q *query, left time.Duration) {
	t := &s.opt.Table
	switch {
	case t.Time.Column == "" || t.fixed() || left == 0:
	case t.Time.Since != "": // in the form that is there; MySQL assigns from the left to the right
		s.moment(q.add(fmt.Sprintf("%s = CASE WHEN %s > %d THEN ", s.time, s.time, longestLife)), left)
		q.add(" ELSE "+s.d.ceil("?")+" END, "+s.since+" = "+s.d.value(s.d.now, t.Time.Unit)+", ", left.Milliseconds())
	default:
		s.moment(q.add(s.time+" = "), left).add(", ")
	}
	for _, c := range t.Also {
		if !c.Insert {
			q.add(s.d.ident(c.Name) + " = " + s.d.also(c) + ", ")
		}
	}
	q.add(s.id + " = " + s.id)
}

// unchanged limits q to a row that still holds what was read.
func (s *Store) unchanged(q *query, f found) {
	if f.old == nil {
		return
	}
	q.add(" AND "+s.sameData, s.dataArg(f.old.data))
	if s.opt.Table.Codec.Timed() && f.old.time.Valid { // the body says more than its column
		q.add(" AND "+s.moved()+" = ?", f.old.time.Int64)
	}
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.touch(ctx, key, expires, nil)
}

func (s *Store) touch(ctx context.Context, key string, expires time.Time, m *store.Mark) error {
	if err := s.check(key); err != nil {
		return err
	}
	left := store.Record{Expires: expires}.Remaining(time.Now())
	switch {
	case left <= 0:
		return invalid("the deadline is not in the future")
	case !s.holds(left):
		return errBehind2038
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	q := s.query("UPDATE " + s.table + " SET ")
	s.renew(q, left)
	s.alive(s.where(q, key))
	if err := s.marks.under(ctx, s, q, m); err != nil {
		return err
	}
	rows, err := s.exec(ctx, key, q)
	if err != nil || rows > 0 {
		return err
	}
	if err := s.marks.still(ctx, s, m); err != nil {
		return err
	}
	return store.ErrAbsent
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return s.remove(ctx, key, cond, nil)
}

func (s *Store) remove(ctx context.Context, key string, cond store.Condition, m *store.Mark) (bool, error) {
	if err := s.check(key); err != nil {
		return false, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	for try := 0; ; try++ {
		f, err := s.find(ctx, key, cond)
		if err != nil || f.insert { // nothing to delete
			if err == nil {
				err = s.marks.still(ctx, s, m)
			}
			return errors.Is(err, store.ErrConflict) && cond != store.IfAbsent, err
		}
		q := s.where(s.query("DELETE FROM "+s.table), key)
		s.unchanged(q, f)
		if err := s.marks.under(ctx, s, q, m); err != nil {
			return false, err
		}
		rows, err := s.exec(ctx, key, q)
		if err != nil || rows > 0 {
			return rows > 0, err
		}
		if err := s.marks.still(ctx, s, m); err != nil {
			return false, err
		}
		if try == tries {
			return false, fmt.Errorf("store/sqltable: %w: others write it all the time", store.ErrUnavailable)
		}
	}
}

// Scan implements store.Store. A cursor is "=" and the last id.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	if s.opt.Table.Hash != NoHash {
		return page, fmt.Errorf("store/sqltable: the table has hashes of ids, which no client shows: %w", errors.ErrUnsupported)
	}
	if limit <= 0 {
		limit = 1000
	}
	limit = min(limit, 100000)
	after := ""
	if cursor != "" {
		if cursor[0] != '=' {
			return page, invalid("the cursor is not one of this store's; begin with an empty one")
		}
		after = cursor[1:]
	}
	// A page takes longer than one row, though its ids are read by an index.
	ctx, cancel := context.WithTimeout(ctx, 5*s.opt.Bound)
	defer cancel()
	q := s.query("SELECT "+s.id+" FROM "+s.table+" WHERE "+s.id+" > "+s.idParam+" ORDER BY "+s.id+" LIMIT ?", after, limit)
	n := 0
	page.Skipped = map[string]int{}
	err = s.rows(ctx, q, "scan", func(rows *sql.Rows) error {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		n++
		id = s.unpadded(id)
		page.Cursor = "=" + id
		if key, ours := s.opt.Table.key(id); ours && s.check(key) == nil {
			page.Keys = append(page.Keys, key)
		} else {
			page.Skipped["foreign name"]++
		}
		return nil
	})
	if err != nil {
		return store.Page{}, err
	}
	if n < limit {
		page.Cursor = ""
	}
	return page, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	stmts := s.stmts
	s.stmts, s.closed = nil, true
	s.mu.Unlock()
	s.locks.close(s)
	for _, st := range stmts {
		st.Close()
	}
	return s.db.Close()
}
