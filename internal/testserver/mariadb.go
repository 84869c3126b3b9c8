package testserver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// MariaDBServer is a MariaDB server that belongs to one test, with an empty database "app" and a user root without a
// password. Its methods fail the test when they cannot do what they say. Stop, Kill, Pause and Resume may be called while
// other goroutines use the server.
type MariaDBServer struct {
	server

	Addr   string // "127.0.0.1:port"; stays the same over Restart
	Socket string // path of the unix socket

	bin, client string
	port        int
	args        []string
}

// MariaDB starts a MariaDB server on 127.0.0.1, and stops it after the test. It keeps its data over Restart. Further
// arguments are options of mariadbd (--read-only=1), which go before ours.
func MariaDB(t testing.TB, args ...string) *MariaDBServer {
	t.Helper()
	install := find("mariadb-install-db")
	s := &MariaDBServer{bin: find("mariadbd"), client: find("mariadb"), args: args}
	Need(t, "mariadb-server", install != "" && s.bin != "" && s.client != "")
	s.prepare(t, "mariadb")
	s.Socket = filepath.Join(s.dir, "mariadb.sock")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args = append([]string{"--no-defaults", "--datadir=" + s.Data(), "--auth-root-authentication-method=normal", "--skip-test-db",
		"--innodb-log-file-size=16M"}, s.asUser()...)
	cmd := exec.CommandContext(ctx, install, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+s.dir) // whoever starts a mariadbd removes what others have in its folder for temporary tables
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("testserver: mariadb-install-db: %v\n%s", err, out)
	}
	s.begin(func() {
		s.port = freePort(t)
		s.Addr = fmt.Sprintf("127.0.0.1:%d", s.port)
	}, s.start)
	s.Exec("CREATE DATABASE app CHARACTER SET utf8mb4")
	return s
}

// asUser lets the server run as root, which it does only when told.
func (s *MariaDBServer) asUser() []string {
	if os.Geteuid() == 0 {
		return []string{"--user=root"}
	}
	return nil
}

// Data is the folder of the server's data files.
func (s *MariaDBServer) Data() string { return filepath.Join(s.dir, "data") }

// URL returns the address of a database as mysql://root@127.0.0.1:port/db.
func (s *MariaDBServer) URL(db string) string { return fmt.Sprintf("mysql://root@%s/%s", s.Addr, db) }

// Restart stops the server if it runs and starts it again at the same addresses with its data, and further options.
func (s *MariaDBServer) Restart(args ...string) {
	s.t.Helper()
	s.Stop()
	s.args = append(s.args, args...)
	s.again(s.start)
}

// TLS restarts the server with a certificate for 127.0.0.1 and localhost, and returns the file of the one that signed it.
func (s *MariaDBServer) TLS() (caFile string) {
	s.t.Helper()
	c := writeCerts(s.t, s.dir)
	s.Restart("--ssl-cert="+c.cert, "--ssl-key="+c.key, "--ssl-ca="+c.ca)
	return c.ca
}

func (s *MariaDBServer) start() error {
	args := append([]string{"--no-defaults", "--skip-log-bin"}, s.args...)
	args = append(args, "--datadir="+s.Data(), "--tmpdir="+s.dir, "--socket="+s.Socket, "--bind-address=127.0.0.1", fmt.Sprint("--port=", s.port),
		"--pid-file="+filepath.Join(s.dir, "pid"), "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=2",
		"--innodb-buffer-pool-size=64M", "--skip-name-resolve")
	return s.server.start(exec.Command(s.bin, append(args, s.asUser()...)...), syscall.SIGKILL, func() (bool, error) {
		_, err := s.Try("mysql", "SELECT 1")
		return err == nil, nil
	})
}

// Exec runs SQL statements as root in the database app, if there is one, and returns what they answer: a line for each
// row, tabs between columns. An error fails the test.
func (s *MariaDBServer) Exec(sql string) string {
	s.t.Helper()
	out, err := s.Try("", sql)
	if err != nil {
		s.t.Fatalf("testserver: mariadb: %.200s: %v", sql, err)
	}
	return out
}

// Try is Exec in the database db ("": app) for statements that may fail.
func (s *MariaDBServer) Try(db, sql string) (string, error) {
	if db == "" {
		db = "app"
		if strings.HasPrefix(sql, "CREATE DATABASE") {
			db = "mysql"
		}
	}
	return runSQL(exec.Command(s.client, "--no-defaults", "--socket="+s.Socket, "--user=root", "--batch", "--skip-column-names", "--raw", db), sql)
}

// runSQL feeds sql to a client and returns what it prints, without the last line feed.
func runSQL(cmd *exec.Cmd, sql string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(sql), &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	overdue := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer overdue.Stop()
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}
