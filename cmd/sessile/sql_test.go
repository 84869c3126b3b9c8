package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

// A site whose sessions are in a table of its own moves to Redis, up, back and up again, while its users work. Nobody misses
// anything, and who is out stays out.
func TestAMoveFromATable(t *testing.T) {
	t.Parallel()
	my, pg := testserver.MariaDB(t), testserver.Postgres(t)
	for name, c := range map[string]struct {
		url, create string
		exec        func(sql string) string
	}{
		"MariaDB":    {my.URL("app"), "CREATE TABLE php_sessions (id VARBINARY(128) PRIMARY KEY, data LONGBLOB NOT NULL, access INT UNSIGNED NOT NULL) ENGINE=InnoDB", my.Exec},
		"PostgreSQL": {pg.URL("app"), "CREATE TABLE php_sessions (id varchar(128) PRIMARY KEY, data bytea NOT NULL, access integer NOT NULL)", pg.Exec},
	} {
		t.Run(name, func(t *testing.T) {
			now := map[string]string{"MariaDB": "UNIX_TIMESTAMP()", "PostgreSQL": "extract(epoch FROM now())::int"}[name]
			c.exec(c.create)
			rows := make([]string, 200)
			for i := range rows {
				rows[i] = fmt.Sprintf("('quiet%d', 'user|i:%d;', %s)", i, i, now)
			}
			c.exec("INSERT INTO php_sessions VALUES " + strings.Join(rows, ", "))
			r := redis(t)
			d := serve(t, "--origin", c.url+"?table=php_sessions&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s",
				"--origin-key", "PHPREDIS_SESSION:", "--target", r.URL(), "--bound", "2s")
			d.migrate("plan").want(t, 0, "200 sessions in the origin", "")
			d.migrate("create").want(t, 0, "phase off", "")

			end := users(t, "PHPREDIS_SESSION:", d)
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
			d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
			if ids := c.exec("SELECT id FROM php_sessions WHERE id LIKE 'quiet%'"); strings.Count(ids, "\n") != 199 {
				t.Errorf("%d of 200 who did nothing are in the table", strings.Count(ids, "\n")+1)
			}
			d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
			for _, id := range end() {
				if got := r.Do("GET", "PHPREDIS_SESSION:"+id); got != nil {
					t.Errorf("%v is out, and Redis has %v", id, got)
				}
			}
			for i := range 200 {
				if got := r.Do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", i)); got != fmt.Sprintf("user|i:%d;", i) {
					t.Fatalf("quiet%d: %v", i, got)
				}
			}
		})
	}
}
