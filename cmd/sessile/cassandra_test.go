package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/internal/testserver"
)

// A site whose sessions are in a table of Cassandra moves to Redis, up, back and up again, behind two gateways, while its users
// work. Nobody misses anything, and who is out stays out.
func TestAMoveFromCassandra(t *testing.T) {
	t.Parallel()
	c := testserver.Cassandra(t)
	cfg := gocql.NewCluster(c.Addr)
	cfg.Timeout, cfg.ConnectTimeout = 20*time.Second, 10*time.Second
	app, err := cfg.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	exec := func(cql string, args ...any) {
		t.Helper()
		if err := app.Query(cql, args...).Exec(); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE KEYSPACE app WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
	exec("CREATE TABLE app.php_sessions (sid text PRIMARY KEY, payload text, ip text)")
	for i := range 200 {
		exec("INSERT INTO app.php_sessions (sid, payload, ip) VALUES (?, ?, '::1') USING TTL 1440", fmt.Sprint("quiet", i), fmt.Sprintf("user|i:%d;", i))
	}
	r := redis(t)
	args := []string{"--origin", "cassandra://" + c.Addr + "/app?table=php_sessions&id=sid&data=payload", "--origin-key", "PHPREDIS_SESSION:",
		"--target", r.URL(), "--bound", "2s"}
	p := run(t, nil, append([]string{"migrate", "plan"}, args...)...).want(t, 0, "200 sessions in the origin", "")
	for _, want := range []string{"table app.php_sessions: sid text, payload text; the deadline is the TTL of payload", "Cassandra 5.0.", "SimpleStrategy with replication_factor 1",
		"1 copies of each session", "deadlines: the first in 2", "other columns (ip)", "compares the seal and writes in two steps", "paxos_variant is v1"} {
		if !strings.Contains(p.stdout, want) {
			t.Errorf("plan does not say %q: %s", want, p.stdout)
		}
	}
	d, other := serve(t, args...), serve(t, args...)
	d.migrate("create").want(t, 0, "phase off", "")
	eventually(t, "both gateways know of it", func() bool { return len(d.status().Gateways) == 2 })
	end := users(t, "PHPREDIS_SESSION:", d, other)
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	other.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	for i := range 200 {
		var payload string
		if err := app.Query("SELECT payload FROM app.php_sessions WHERE sid = ?", fmt.Sprint("quiet", i)).Scan(&payload); err != nil || payload != fmt.Sprintf("user|i:%d;", i) {
			t.Fatalf("quiet%d, who did nothing, in the table: %q, %v", i, payload, err)
		}
	}
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	allMoved(t, d, r, end())
}
