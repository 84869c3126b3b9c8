package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

// sqlServer is MariaDB or PostgreSQL.
type sqlServer interface {
	URL(db string) string
	Exec(sql string) string
	Stop()
	Pause()
	Resume()
	Restart(args ...string)
}

// What a client gets while the server of its origin is away, stands still or takes no writes: reads and writes fail
// together, and a session that is there is never nil. Behind it everybody is there.
func TestAnOriginInTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		start           func() sqlServer
		create          string
		readOnly, write string
	}{
		"MariaDB": {func() sqlServer { return testserver.MariaDB(t) },
			"CREATE USER site; GRANT ALL ON app.* TO site; CREATE TABLE s (id VARBINARY(128) PRIMARY KEY, data LONGBLOB, access INT UNSIGNED) ENGINE=InnoDB",
			"SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"},
		"PostgreSQL": {func() sqlServer { return testserver.Postgres(t) },
			"CREATE USER site; GRANT ALL ON SCHEMA public TO site; CREATE TABLE s (id varchar(128) PRIMARY KEY, data bytea, access integer); GRANT ALL ON s TO site",
			"ALTER ROLE site SET default_transaction_read_only = on; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'site'",
			"ALTER ROLE site SET default_transaction_read_only = off; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'site'"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := c.start()
			srv.Exec(c.create)
			u := strings.NewReplacer("root@", "site@", "postgres@", "site@").Replace(srv.URL("app"))
			d := serve(t, "--origin", u+"?table=s&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s&op_bound=2s",
				"--hold", "100ms", "--target", redis(t).URL())
			d.migrate("create").want(t, 0, "phase off", "")
			for _, phase := range []string{"off", "dual-write"} {
				if phase != "off" {
					d.migrate("switchtraffic", "--to", phase).want(t, 0, "phase "+phase, "")
				}
				for _, trouble := range []struct {
					name     string
					do, undo func()
				}{
					{"stopped", srv.Stop, func() { srv.Restart() }},
					{"paused", srv.Pause, srv.Resume},
					{"read-only", func() { srv.Exec(c.readOnly) }, func() { srv.Exec(c.write) }},
				} {
					cl := d.dial()
					eventually(t, phase+", before it is "+trouble.name+": a session", func() bool { return cl.do("SETEX", "k", "1440", "old") == "+OK" })
					trouble.do()
					// The read-only server is known by its first refusal.
					for _, command := range [][]string{{"SETEX", "k", "1440", "new"}, {"SETEX", "k", "1440", "new"}, {"GET", "k"}, {"GET", "k"}} {
						if got := d.dial().do(command...); !strings.HasPrefix(got, "-") {
							t.Errorf("%s, %s: %s: %q", phase, trouble.name, command[0], got)
						}
					}
					trouble.undo()
					eventually(t, "the session is there again", func() bool {
						got := d.dial().do("GET", "k")
						if got == "$-1" {
							t.Errorf("%s, %s: the session is gone", phase, trouble.name)
						}
						return got == "old" || got == "new" && trouble.name == "paused"
					})
				}
			}
		})
	}
}

// A gateway that is started while its origin is away answers as soon as it can without it: in ramp-down at once, with what the
// origin is owed; in off when the origin is back.
func TestAGatewayBeginsWithoutItsOrigin(t *testing.T) {
	for name, c := range map[string]struct {
		start  func() sqlServer
		create string
	}{
		"MariaDB": {func() sqlServer { return testserver.MariaDB(t) },
			"CREATE TABLE s (id VARBINARY(128) PRIMARY KEY, data LONGBLOB, access INT UNSIGNED) ENGINE=InnoDB"},
		"PostgreSQL": {func() sqlServer { return testserver.Postgres(t) },
			"CREATE TABLE s (id varchar(128) PRIMARY KEY, data bytea, access integer)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := c.start()
			srv.Exec(c.create)
			args := []string{"--origin", srv.URL("app") + "?table=s&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s",
				"--bound", "2s", "--hold", "300ms", "--target", redis(t).URL()}
			d := serve(t, args...)
			d.migrate("create").want(t, 0, "phase off", "")
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			if got := d.dial().do("SETEX", "k", "1440", "one"); got != "+OK" {
				t.Fatalf("SETEX: %s", got)
			}
			d.stop(syscall.SIGTERM)
			srv.Stop()
			d.start(args...)
			eventually(t, "it answers from the target", func() bool { return d.dial().do("GET", "k") == "one" })
			if got := d.dial().do("SETEX", "k", "1440", "two"); got != "+OK" {
				t.Errorf("SETEX without the origin: %s", got)
			}
			srv.Restart()
			d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
			if got := srv.Exec("SELECT data FROM s WHERE id = 'k'"); !strings.Contains(got, "two") && !strings.Contains(got, `\x74776f`) {
				t.Errorf("the origin has %q", got)
			}
			d.stop(syscall.SIGTERM)
			srv.Stop()
			d.start(args...)
			if got := d.dial().do("GET", "k"); !strings.HasPrefix(got, "-") {
				t.Errorf("GET in off without the origin: %q", got)
			}
			srv.Restart()
			eventually(t, "it answers from the origin", func() bool { return d.dial().do("GET", "k") == "two" })
		})
	}
}

// An account that may only read, and one that may not make our table: plan, create and switchtraffic say so, and nothing is
// half done.
func TestAnOriginThatMayNotBeWritten(t *testing.T) {
	for name, c := range map[string]struct {
		start  func() sqlServer
		create string
	}{
		"MariaDB": {func() sqlServer { return testserver.MariaDB(t) },
			"CREATE TABLE s (id VARBINARY(128) PRIMARY KEY, data LONGBLOB, access INT UNSIGNED) ENGINE=InnoDB; CREATE USER site; GRANT SELECT ON app.* TO site"},
		"PostgreSQL": {func() sqlServer { return testserver.Postgres(t) },
			"CREATE TABLE s (id varchar(128) PRIMARY KEY, data bytea, access integer); CREATE USER site; GRANT SELECT ON s TO site"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := c.start()
			now := map[string]string{"MariaDB": "UNIX_TIMESTAMP()", "PostgreSQL": "extract(epoch FROM now())::int"}[name]
			srv.Exec(c.create + "; INSERT INTO s VALUES ('k', 'user|i:1;', " + now + ")")
			u := strings.NewReplacer("root@", "site@", "postgres@", "site@").Replace(srv.URL("app"))
			r := redis(t)
			d := serve(t, "--origin", u+"?table=s&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s", "--hold", "100ms", "--target", r.URL())
			d.migrate("plan").want(t, 3, "may only read", "")
			d.migrate("plan").want(t, 3, "not possible", "")
			d.migrate("create").want(t, 1, "", "Make it: CREATE TABLE")
			d.migrate("switchtraffic").want(t, 2, "", "run `sessile migrate create` first")
			if keys, _ := r.Do("KEYS", "*").([]any); len(keys) != 0 {
				t.Errorf("the target has %v", keys)
			}
			// Who may only read is read, and no more.
			if got := d.dial().do("GET", "k"); got != "user|i:1;" {
				t.Errorf("GET: %q", got)
			}
			if got := d.dial().do("SETEX", "k", "1440", "x"); !strings.HasPrefix(got, "-") {
				t.Errorf("SETEX: %q", got)
			}
			if name == "MariaDB" {
				// Rights on a database count for connections that are made behind it, those on a table at once.
				srv.Exec("GRANT INSERT, UPDATE, DELETE ON app.s TO site; GRANT ALL ON app.sessile_marks TO site")
			} else {
				srv.Exec("GRANT ALL ON s TO site; GRANT ALL ON SCHEMA public TO site")
			}
			d.migrate("plan").want(t, 0, "1 sessions in the origin", "")
			d.migrate("create").want(t, 0, "phase off", "")
			d.migrate("switchtraffic").want(t, 0, "phase dual-write", "")
		})
	}
}
