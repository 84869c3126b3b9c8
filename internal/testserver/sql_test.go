package testserver

import (
	"strings"
	"testing"
)

func TestMariaDB(t *testing.T) {
	s := MariaDB(t)
	s.Exec("CREATE TABLE t (id INT PRIMARY KEY, d LONGBLOB); INSERT INTO t VALUES (1, 'one'), (2, 'two')")
	s.Kill()
	s.Restart()
	if got := s.Exec("SELECT id, d FROM t ORDER BY id"); got != "1\tone\n2\ttwo" {
		t.Errorf("got %q", got)
	}
	if _, err := s.Try("app", "SELECT nothing"); err == nil || !strings.Contains(err.Error(), "1054") {
		t.Errorf("got %v", err)
	}
}

func TestPostgres(t *testing.T) {
	s := Postgres(t)
	s.Exec("CREATE TABLE t (id INT PRIMARY KEY, d BYTEA); INSERT INTO t VALUES (1, 'one'), (2, 'two')")
	s.Restart()
	s.Kill()
	s.Restart("-c", "max_connections=7")
	if got := s.Exec("SELECT id, convert_from(d, 'UTF8') FROM t ORDER BY id; SHOW max_connections"); got != "1\tone\n2\ttwo\n7" {
		t.Errorf("got %q", got)
	}
	if _, err := s.Try("app", "SELECT nothing"); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("got %v", err)
	}
}
