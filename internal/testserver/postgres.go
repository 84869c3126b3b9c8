package testserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PostgresServer is a PostgreSQL server that belongs to one test, with an empty database "app" and a superuser postgres
// without a password. Its methods fail the test when they cannot do what they say. Stop, Kill, Pause and Resume may be
// called while other goroutines use the server.
type PostgresServer struct {
	server

	Addr string // "127.0.0.1:port"; stays the same over Restart

	bin, client string
	port        int
	args        []string
	as          *syscall.Credential // the server refuses to run as root
	paused      []int               // its processes that serve, which have groups of their own
}

// Postgres starts a PostgreSQL server on 127.0.0.1, and stops it after the test. It keeps its data over Restart. Further
// arguments are options of postgres (-c, max_connections=5).
func Postgres(t testing.TB, args ...string) *PostgresServer {
	t.Helper()
	// Debian keeps the server's programs out of everybody's way.
	highest := func(name string) string {
		return find(name, "../lib/postgresql/*/bin/"+name)
	}
	initdb := highest("initdb")
	s := &PostgresServer{bin: highest("postgres"), client: find("psql"), args: args}
	Need(t, "postgresql", initdb != "" && s.bin != "" && s.client != "")
	s.prepare(t, "postgres")
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		Need(t, "postgresql", err == nil)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, uid, gid); err != nil {
			t.Fatalf("testserver: postgres: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, initdb, "-D", s.Data(), "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("testserver: initdb: %v\n%s", err, out)
	}
	s.begin(func() {
		s.port = freePort(t)
		s.Addr = fmt.Sprintf("127.0.0.1:%d", s.port)
	}, s.start)
	if _, err := s.Try("postgres", "CREATE DATABASE app"); err != nil {
		t.Fatalf("testserver: postgres: %v", err)
	}
	return s
}

// Data is the folder of the server's data files.
func (s *PostgresServer) Data() string { return filepath.Join(s.dir, "data") }

// URL returns the address of a database as postgres://postgres@127.0.0.1:port/db.
func (s *PostgresServer) URL(db string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s", s.Addr, db)
}

// Restart stops the server if it runs and starts it again at the same address with its data, and further options.
func (s *PostgresServer) Restart(args ...string) {
	s.t.Helper()
	s.Stop()
	s.args = append(s.args, args...)
	s.again(s.start)
}

// TLS restarts the server with a certificate for 127.0.0.1 and localhost, and returns the file of the one that signed it.
func (s *PostgresServer) TLS() (caFile string) {
	s.t.Helper()
	c := writeCerts(s.t, s.dir)
	if s.as != nil {
		for _, file := range []string{c.cert, c.key} {
			if err := os.Chown(file, int(s.as.Uid), int(s.as.Gid)); err != nil {
				s.t.Fatalf("testserver: postgres: %v", err)
			}
		}
	}
	s.Restart("-c", "ssl=on", "-c", "ssl_cert_file="+c.cert, "-c", "ssl_key_file="+c.key)
	return c.ca
}

// Stop ends the server in the middle of whatever it does: at SIGTERM it would wait for its clients.
func (s *PostgresServer) Stop() {
	s.t.Helper()
	s.Resume()
	s.change("stop", func(p *process) error {
		if err := p.signal(syscall.SIGINT, false); err != nil {
			return err
		}
		return p.stop(func() { s.t.Logf("testserver: postgres: no end %v after SIGINT: killed", stopTime) })
	})
}

// Pause stops the server where it stands (SIGSTOP): connections stay open and are accepted, and nothing answers.
func (s *PostgresServer) Pause() {
	s.t.Helper()
	pids, err := s.Try("postgres", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	if err != nil {
		s.t.Fatalf("testserver: postgres: pause: %v", err)
	}
	s.server.Pause() // before the others, so that it makes no more of them
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range strings.Fields(pids) {
		if pid, err := strconv.Atoi(line); err == nil && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			s.paused = append(s.paused, pid)
		}
	}
}

// Resume lets a paused server go on.
func (s *PostgresServer) Resume() {
	s.t.Helper()
	s.mu.Lock()
	for _, pid := range s.paused {
		_ = syscall.Kill(pid, syscall.SIGCONT) // a process that stands still keeps its pid
	}
	s.paused = nil
	s.mu.Unlock()
	s.server.Resume()
}

func (s *PostgresServer) start() error {
	args := append([]string{"-D", s.Data(), "-k", s.dir, "-h", "127.0.0.1", "-p", fmt.Sprint(s.port), "-c", "fsync=off",
		"-c", "shared_buffers=64MB"}, s.args...)
	cmd := exec.Command(s.bin, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	// SIGQUIT: its processes would outlive a SIGKILL of the first, until they look.
	return s.server.start(cmd, syscall.SIGQUIT, func() (bool, error) {
		_, err := s.Try("postgres", "SELECT 1")
		return err == nil, nil
	})
}

// Exec runs SQL statements as the superuser in the database app and returns what they answer: a line for each row, tabs
// between columns. An error fails the test.
func (s *PostgresServer) Exec(sql string) string {
	s.t.Helper()
	out, err := s.Try("app", sql)
	if err != nil {
		s.t.Fatalf("testserver: postgres: %.200s: %v", sql, err)
	}
	return out
}

// Try is Exec in any database, for statements that may fail.
func (s *PostgresServer) Try(db, sql string) (string, error) {
	return runSQL(exec.Command(s.client, "-X", "-q", "-h", s.dir, "-p", fmt.Sprint(s.port), "-U", "postgres", "-d", db,
		"-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"), sql)
}
