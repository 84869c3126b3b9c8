package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// mariadb is a MariaDB server of this run, and connections to it. Where options do not say otherwise, commits are durable, as
// they are by default, and all tables fit into its memory; there is a connection for everybody.
type mariadb struct {
	*proc
	*sql.DB
	addr, socket string
}

func (r *run) mariadb(install, server string, options ...string) (*mariadb, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	args := []string{"--no-defaults", "--datadir=" + filepath.Join(r.dir, "mariadb"+port)}
	if os.Geteuid() == 0 {
		args = append(args, "--user=root")
	}
	cmd := exec.CommandContext(r.ctx, install, append(slices.Clone(args), "--auth-root-authentication-method=normal", "--skip-test-db")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	db := &mariadb{addr: addr, socket: filepath.Join(r.dir, "mariadb"+port+".sock")}
	db.proc, err = r.start("tcp", addr, slices.Concat([]string{server}, args, []string{"--port=" + port, "--bind-address=127.0.0.1", "--skip-name-resolve",
		"--socket=" + db.socket, "--innodb-buffer-pool-size=1G", "--max-connections=2000"}, options)...)
	if err != nil {
		return nil, err
	}
	db.DB, err = db.open("mysql")
	return db, err
}

// open opens connections to a database. Parameters are put into the statements, as DBD::mysql does it.
func (db *mariadb) open(name string) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.DBName, cfg.InterpolateParams = "tcp", db.addr, "root", name, true
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// exec runs statements one after the other.
func (db *mariadb) exec(ctx context.Context, statements ...string) error {
	for _, text := range statements {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("%.40s: %w", text, err)
		}
	}
	return nil
}

// sessions makes a database with RT's table (its etc/schema.mysql), and n sessions in it.
func (db *mariadb) sessions(ctx context.Context, name string, n int) error {
	err := db.exec(ctx, "CREATE DATABASE "+name+" CHARACTER SET utf8mb4", "CREATE TABLE "+name+".sessions (id char(32) NOT NULL, "+
		"a_session LONGBLOB, LastUpdated TIMESTAMP, PRIMARY KEY (id)) ENGINE=InnoDB CHARACTER SET utf8mb4")
	for from := 0; from < n && err == nil; from += 100 {
		var args []any
		for i := from; i < from+100; i++ {
			args = append(args, sessionID(i), sessionBytes(sessionID(i), 0, false))
		}
		_, err = db.ExecContext(ctx, "INSERT INTO "+name+".sessions (id, a_session) VALUES (?, ?)"+strings.Repeat(", (?, ?)", 99), args...)
	}
	return err
}

// pages are RT's (Apache::Session::MySQL): a page has a connection of the pool, and the session's lock on it, from
// beginning to end.
func (db *mariadb) pages(users int) (_ []view, end func(), err error) {
	pool, err := db.open("rt")
	if err != nil {
		return nil, nil, err
	}
	pool.SetMaxOpenConns(users)
	pool.SetMaxIdleConns(users)
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	for range users {
		c, err := pool.Conn(context.Background())
		if err != nil {
			return nil, nil, err
		}
		defer c.Close() // all at the end, so that there are as many
	}
	show := func(ctx context.Context, id string, change func([]byte) ([]byte, error)) (err error) {
		c, err := pool.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := yes(ctx, c, "SELECT GET_LOCK(?, 3600)", "Apache-Session-"+id); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, yes(ctx, c, "SELECT RELEASE_LOCK(?)", "Apache-Session-"+id)) }()
		var found []byte
		if err := c.QueryRowContext(ctx, "SELECT a_session FROM sessions WHERE id = ?", id).Scan(&found); err != nil {
			return err
		}
		b, err := change(found)
		if err == nil {
			_, err = c.ExecContext(ctx, "UPDATE sessions SET a_session = ? WHERE id = ?", b, id)
		}
		return err
	}
	return slices.Repeat([]view{show}, users), func() { pool.Close() }, nil
}

// yes asks what is to be answered with 1.
func yes(ctx context.Context, c *sql.Conn, text, arg string) error {
	var answer sql.NullInt64
	if err := c.QueryRowContext(ctx, text, arg).Scan(&answer); err != nil {
		return err
	}
	if answer.Int64 != 1 {
		return fmt.Errorf("%s: %v", text, answer)
	}
	return nil
}

// edits are heavy ones, in a table that is not the sessions', one after the other and over again.
type edits struct {
	db  *mariadb
	all []edit
}

type edit struct {
	name, sql string
	took      []float64 // seconds
}

func (db *mariadb) edits(ctx context.Context, rows int) (*edits, error) {
	insert := func(step int) string {
		return fmt.Sprintf("INSERT INTO other.history SELECT seq, seq DIV 10, 0, REPEAT(MD5(seq), 32) FROM other.seq_%d_to_%d_step_%d", step, rows, step)
	}
	e := &edits{db: db, all: []edit{{name: "an `UPDATE` of all rows", sql: "UPDATE other.history SET seen = seen + 1, note = REVERSE(note)"},
		{name: "an `ALTER TABLE` that copies them", sql: "ALTER TABLE other.history FORCE, ALGORITHM=COPY"},
		{name: "a `DELETE` of every other one", sql: "DELETE FROM other.history WHERE id % 2 = 0"},
		{name: "an `INSERT` of those", sql: insert(2)}}}
	return e, db.exec(ctx, "CREATE DATABASE other", "CREATE TABLE other.history (id INT PRIMARY KEY, ticket INT NOT NULL, seen INT NOT NULL, "+
		"note VARCHAR(1024) CHARACTER SET ascii NOT NULL, KEY (ticket), KEY (seen)) ENGINE=InnoDB", insert(1))
}

// String says what they are and, once they ran, how often and for how long.
func (e *edits) String() string {
	var all []string
	for _, one := range e.all {
		if len(one.took) > 0 {
			one.name += fmt.Sprintf(" (%d of %.1f s)", len(one.took), summary(one.took)[1])
		}
		all = append(all, one.name)
	}
	return strings.Join(all, ", ")
}

// run edits until it is stopped, which waits for the statement that runs.
func (e *edits) run(ctx context.Context) (stop func() error) {
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				ended <- nil
				return
			default:
			}
			one := &e.all[i%len(e.all)]
			start := time.Now()
			if err := e.db.exec(ctx, one.sql); err != nil {
				ended <- err
				return
			}
			one.took = append(one.took, time.Since(start).Seconds())
		}
	}()
	return func() error {
		close(done)
		return <-ended
	}
}
