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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
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
		o.Bound = 5 * time.Second
	}
	if o.Table.Codec == nil {
		o.Table.Codec = identity
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
	cfg.TLS, cfg.AllowFallbackToPlaintext = opt.tls(u.Hostname()), opt.TLS == TLSPreferred
	cfg.ClientFoundRows = true // an UPDATE that changes nothing has found its row
	cfg.Logger = nopLogger{}
	cfg.Params = map[string]string{
		"sql_mode":                 "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'", // what does not fit is an error, not cut
		"wait_timeout":             "28800",                                      // a lock's connection is quiet as long as its page takes
		"innodb_lock_wait_timeout": strconv.Itoa(max(1, int(opt.Bound/(2*time.Second)))),
		"lock_wait_timeout":        strconv.Itoa(max(1, int(opt.Bound/(2*time.Second)))), // for the table: MySQL knows no max_statement_time
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
	var version, kind string // and max_allowed_packet, above which a value is not sent as a part of its statement
	schema, table := opt.Table.place()
	if err := probe.QueryRowContext(ask, "SELECT @@max_allowed_packet, VERSION(), COALESCE((SELECT data_type FROM information_schema.columns "+
		"WHERE table_schema = IF(? = '', DATABASE(), ?) AND table_name = ? AND column_name = ?), '')",
		schema, schema, table, opt.Table.Time.Column).Scan(&cfg.MaxAllowedPacket, &version, &kind); err != nil {
		return nil, fmt.Errorf("%w: %s", unavailable(err), codeMySQL(err))
	}
	if kind == "timestamp" && opt.Table.Time.Unit != UTC { // else the hour that comes twice could not be written
		cfg.Params["time_zone"] = "'+00:00'"
	}
	isolation := "transaction_isolation"
	if strings.Contains(version, "MariaDB") {
		isolation = "tx_isolation" // its other name is known since 11.1
		cfg.Params["max_statement_time"] = strconv.FormatFloat((opt.Bound / 2).Seconds(), 'f', 3, 64)
	} else { // of a SELECT, in ms; what writes is bounded by its waits
		cfg.Params["max_execution_time"] = strconv.FormatInt((opt.Bound / 2).Milliseconds(), 10)
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
	plain.RawQuery = "sslmode=disable" // it would have its own idea
	cfg, err := pgx.ParseConfig(plain.String())
	if err != nil {
		return nil, errors.New("the address cannot be read: write postgres://user:password@host:5432/database")
	}
	cfg.ConnectTimeout = opt.Bound
	if cfg.TLSConfig = opt.tls(u.Hostname()); opt.TLS == TLSPreferred {
		cfg.Fallbacks = []*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port}}
	}
	half := strconv.FormatInt((opt.Bound / 2).Milliseconds(), 10)
	cfg.RuntimeParams["application_name"] = "sessile"
	cfg.RuntimeParams["statement_timeout"] = half
	// Shorter, so that who waits for a row is told that it was not written, before it gives up by itself.
	cfg.RuntimeParams["lock_timeout"] = strconv.FormatInt((opt.Bound * 2 / 5).Milliseconds(), 10)
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "0" // a lock's is quiet as long as its page takes
	return stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		// These end a lock's connection, and not every version has them.
		_, err := conn.Exec(ctx, "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')")
		return err
	})), nil
}

// newStore makes a store of a database, which it closes at its end.
func newStore(ctx context.Context, db *sql.DB, d *dialect, opt Options) (*Store, error) {
	t := &opt.Table
	s := &Store{db: db, d: d, opt: opt, stmts: map[string]*sql.Stmt{},
		table: d.ident(t.Name), id: d.ident(t.ID), data: d.ident(t.Data), idParam: "?", dataParam: "?"}
	if t.Time.Column != "" {
		s.time = d.ident(t.Time.Column)
	}
	if t.Time.Since != "" {
		s.since = d.ident(t.Time.Since)
	}
	if s.marks.table = d.ident(marksTable); strings.Contains(t.Name, ".") {
		schema, _ := t.place()
		s.marks.table = d.ident(schema + "." + marksTable)
	}
	s.locks.init(opt.MaxLocks)
	db.SetMaxOpenConns(opt.MaxConns + opt.MaxLocks)
	// A connection that was needed is needed again in a moment: to make one anew costs the server as much as several statements.
	db.SetMaxIdleConns(opt.MaxConns + opt.MaxLocks)
	db.SetConnMaxIdleTime(time.Minute)
	if opt.Create {
		if _, err := db.ExecContext(ctx, fmt.Sprintf(d.own, s.table)); err != nil {
			return nil, s.failure(ctx, "create table "+t.Name, err, false)
		}
	}
	return s, s.look(ctx)
}

// place is the schema, "" for the current one, and the name of the table in it.
func (t *Table) place() (schema, table string) {
	if schema, table, found := strings.Cut(t.Name, "."); found {
		return schema, table
	}
	return "", t.Name
}
