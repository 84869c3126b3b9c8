package sqltable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/sessile/sessile/store"
)

// Open connects to the database of a URL, mysql://user:password@host:port/db or postgres://..., and looks at the table. The
// URL's parameters are not looked at.
func Open(ctx context.Context, u *url.URL, opt Options) (*Store, error) {
	opt = opt.withDefaults()
	if err := opt.Table.check(opt.Lifetime); err != nil {
		return nil, fmt.Errorf("store/sqltable: %w", err)
	}
	var db *sql.DB
	var d *dialect
	var err error
	switch u.Scheme {
	case "mysql":
		d = mariadb
		db, err = openMySQL(ctx, u, opt)
	case "postgres":
		d = postgres
		db, err = openPostgres(u, opt)
	default:
		err = fmt.Errorf("%s is no SQL server: it is mysql or postgres", u.Scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("store/sqltable: %w", err)
	}
	s, err := newStore(ctx, db, d, opt)
	if err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

func (o Options) withDefaults() Options {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&o.MaxValue, 1<<20)
	set(&o.MaxConns, 16)
	set(&o.MaxLocks, 256)
	if o.Bound == 0 {
		o.Bound = 2 * time.Second
	}
	if o.Table.Codec == nil {
		o.Table.Codec = identity{}
	}
	return o
}

// openMySQL: how long a statement may take is said in seconds, whole ones for a wait for a row.
func openMySQL(ctx context.Context, u *url.URL, opt Options) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr = "tcp", u.Host
	if u.Port() == "" {
		cfg.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	cfg.DBName = strings.TrimPrefix(u.Path, "/")
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Timeout = opt.Bound
	cfg.ClientFoundRows = true // an UPDATE that changes nothing has found its row
	cfg.Logger = nopLogger{}
	cfg.Params = map[string]string{
		"sql_mode":                 "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'", // what does not fit is an error, not cut
		"innodb_lock_wait_timeout": strconv.Itoa(max(1, int(opt.Bound/(2*time.Second)))),
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	// Which server it is decides what else is set.
	probe := sql.OpenDB(connector)
	defer probe.Close()
	ask, cancel := context.WithTimeout(ctx, 2*opt.Bound)
	defer cancel()
	var version string
	if err := probe.QueryRowContext(ask, "SELECT VERSION()").Scan(&version); err != nil {
		return nil, fmt.Errorf("%w: %s", store.ErrUnavailable, codeMySQL(err))
	}
	isolation := "transaction_isolation"
	if strings.Contains(version, "MariaDB") {
		isolation = "tx_isolation" // its other name is known since 11.1
		cfg.Params["max_statement_time"] = strconv.FormatFloat((opt.Bound / 2).Seconds(), 'f', 3, 64)
	}
	cfg.Params[isolation] = "'REPEATABLE-READ'"
	if connector, err = mysql.NewConnector(cfg); err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

type nopLogger struct{}

func (nopLogger) Print(...any) {}

func openPostgres(u *url.URL, opt Options) (*sql.DB, error) {
	plain := *u
	plain.RawQuery = ""
	cfg, err := pgx.ParseConfig(plain.String())
	if err != nil {
		return nil, errors.New("the address cannot be read: write postgres://user:password@host:5432/database")
	}
	cfg.ConnectTimeout = opt.Bound
	half := strconv.FormatInt((opt.Bound / 2).Milliseconds(), 10)
	cfg.RuntimeParams["application_name"] = "sessile"
	cfg.RuntimeParams["statement_timeout"] = half
	cfg.RuntimeParams["lock_timeout"] = half
	return stdlib.OpenDB(*cfg), nil
}

// newStore makes a store of a database, which it closes at its end.
func newStore(ctx context.Context, db *sql.DB, d *dialect, opt Options) (*Store, error) {
	t := &opt.Table
	s := &Store{db: db, d: d, opt: opt, stmts: map[string]*sql.Stmt{},
		table: d.ident(t.Name), id: d.ident(t.ID), data: d.ident(t.Data), idParam: "?", dataParam: "?"}
	if t.Time.Column != "" {
		s.time = d.ident(t.Time.Column)
	}
	if s.marks.table = d.ident(marksTable); strings.Contains(t.Name, ".") {
		schema, _ := s.place()
		s.marks.table = d.ident(schema + "." + marksTable)
	}
	s.locks.init(opt.MaxLocks)
	db.SetMaxOpenConns(opt.MaxConns + opt.MaxLocks)
	db.SetMaxIdleConns(opt.MaxConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return s, s.look(ctx)
}

// place is the schema, "" for the current one, and the name of the table in it.
func (s *Store) place() (schema, table string) {
	if schema, table, found := strings.Cut(s.opt.Table.Name, "."); found {
		return schema, table
	}
	return "", s.opt.Table.Name
}

// look asks the server what the columns are.
func (s *Store) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.opt.Bound)
	defer cancel()
	schema, table := s.place()
	where, args := "table_schema = "+s.d.schema+" AND table_name = "+s.d.text, []any{table}
	if schema != "" {
		where, args = "table_schema = "+s.d.text+" AND table_name = "+s.d.text, []any{schema, table}
	}
	q := s.query("SELECT column_name, data_type, COALESCE(character_maximum_length, 0), COALESCE(collation_name, '') FROM information_schema.columns WHERE "+where, args...)
	rows, err := s.db.QueryContext(ctx, q.text.String(), q.args...)
	if err != nil {
		return s.failure(ctx, "table", err, false)
	}
	defer rows.Close()
	type column struct {
		kind, collation string
		length          int64
	}
	columns := map[string]column{}
	for rows.Next() {
		var name string
		var c column
		if err := rows.Scan(&name, &c.kind, &c.length, &c.collation); err != nil {
			return s.failure(ctx, "table", err, false)
		}
		columns[name] = c
	}
	if err := rows.Err(); err != nil {
		return s.failure(ctx, "table", err, false)
	}
	if len(columns) == 0 {
		return fmt.Errorf("store/sqltable: there is no table %s in this database, or this user may not see it", s.opt.Table.Name)
	}
	for what, name := range map[string]string{"id": s.opt.Table.ID, "data": s.opt.Table.Data, "expires": s.opt.Table.Time.Column} {
		if _, there := columns[name]; !there && name != "" {
			return fmt.Errorf("store/sqltable: table %s has no column %s (%s=)", s.opt.Table.Name, name, what)
		}
	}
	id, data := columns[s.opt.Table.ID], columns[s.opt.Table.Data]
	if s.idLen = int(id.length); s.idLen == 0 || s.idLen > 512 {
		s.idLen = 512 // text
	}
	if s.d == postgres {
		s.exact = true
		s.idParam, s.dataParam = "?::varchar", "?::"+data.kind
		if id.kind == "character" { // compared as another type, it would not be looked up in the index
			s.idParam = "?::bpchar"
		}
		s.sameData = fmt.Sprintf(s.d.same, s.data, s.dataParam)
		switch data.kind {
		case "bytea":
			return nil
		case "json": // which knows no equality, and keeps the text as it is
			s.sameData = fmt.Sprintf(s.d.same, s.data+"::text", "?::text")
		case "jsonb":
			return fmt.Errorf("store/sqltable: column %s is jsonb, which does not give back what was written: change its type to json", s.opt.Table.Data)
		}
		s.textual = true
		return nil
	}
	s.sameData = fmt.Sprintf(s.d.same, s.data, s.dataParam)
	s.exact = strings.Contains(id.kind, "binary")
	s.binary = strings.HasSuffix(id.collation, "_bin")
	s.textual = !strings.Contains(data.kind, "blob") && !strings.Contains(data.kind, "binary")
	return nil
}
