package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// A hand-written handler through a whole move of its table: SET without a TTL, an access set, and a collector that destroys
// in every phase whom nobody has seen, and nobody else. The set stays where it is when the target is emptied, whatever the
// sessions of the origin are called.
func TestAnAccessSetThroughAMove(t *testing.T) {
	t.Parallel()
	my, r := testserver.MariaDB(t), redis(t)
	my.Exec("CREATE TABLE php_sessions (id VARBINARY(128) PRIMARY KEY, data BLOB NOT NULL, access INT UNSIGNED NOT NULL) ENGINE=InnoDB")
	my.Exec("INSERT INTO php_sessions VALUES ('ALL_SESSIONS', 'user|s:3:\"eve\";', UNIX_TIMESTAMP()), ('eve_LOCK', 'user|s:3:\"eve\";', UNIX_TIMESTAMP()), ('sessile:control', 'user|s:3:\"eve\";', UNIX_TIMESTAMP()), ('old', 'user|s:3:\"bob\";', UNIX_TIMESTAMP() - 700)")
	d := serve(t, "--origin", my.URL("app")+"?table=php_sessions&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s&lazy=true&codec=php-object",
		"--target", r.URL(), "--lifetime", "1440s", "--access-set", "ALL_SESSIONS")
	c := d.dial()

	write := func(id string) {
		t.Helper()
		now := time.Now().Unix()
		const data = `user|s:3:"bob";`
		body := fmt.Sprintf(`O:8:"stdClass":3:{s:2:"id";s:%d:"%s";s:6:"access";i:%d;s:4:"data";s:%d:"%s";}`, len(id), id, now, len(data), data)
		if got := c.do("SET", id, body); got != "+OK" {
			t.Fatalf("SET: %s", got)
		}
		if got := c.do("ZADD", "ALL_SESSIONS", fmt.Sprint(now), id); got != ":0" && got != ":1" {
			t.Fatalf("ZADD: %s", got)
		}
		if got := c.do("GET", id); got != body {
			t.Fatalf("GET: %q, want %q", got, body)
		}
		var left int
		if fmt.Sscanf(c.do("TTL", id), ":%d", &left); left < 1430 || left > 1441 {
			t.Errorf("%d s are left of a session that was just written", left)
		}
	}
	collect := func(before int64) (ids []string) {
		t.Helper()
		ids = c.list("ZRANGEBYSCORE", "ALL_SESSIONS", "0", fmt.Sprintf("(%d", before))
		slices.Sort(ids)
		for _, id := range ids {
			c.do("DEL", id)
			c.do("ZREM", "ALL_SESSIONS", id)
		}
		return ids
	}
	round := 0
	check := func(phase string) {
		t.Helper()
		round++
		idle := []string{fmt.Sprint("idle", round, "a"), fmt.Sprint("idle", round, "b")}
		for _, id := range idle {
			write(id)
		}
		begun := time.Now().Unix()
		eventually(t, "the second after the next", func() bool { return time.Now().Unix() > begun+1 })
		write("busy")
		r.Do("ZADD", "ALL_SESSIONS", "5", "busy") // a server that does not keep the set was the last that wrote it
		if got := collect(begun + 2); !slices.Equal(got, idle) {
			t.Errorf("%s: %q are collected, want %q", phase, got, idle)
		}
		for _, id := range idle {
			if got := c.do("GET", id); got != "$-1" {
				t.Errorf("%s: a collected session is there: %s", phase, got)
			}
		}
		for _, id := range []string{"busy", "old"} {
			if got := c.do("EXISTS", id); got != ":1" {
				t.Errorf("%s: %s: %s", phase, id, got)
			}
		}
		if got := c.do("SET", "ALL_SESSIONS", "x"); !strings.HasPrefix(got, "-WRONGTYPE") {
			t.Errorf("%s: SET of the set: %s", phase, got)
		}
		if got := r.Do("TYPE", "ALL_SESSIONS"); got != "zset" {
			t.Errorf("%s: in Redis ALL_SESSIONS is a %v", phase, got)
		}
	}

	check("before the move")
	r.Pause() // nobody notices
	begun := time.Now()
	write("busy")
	if got := collect(time.Now().Unix() + 1000); len(got) > 0 {
		t.Errorf("while the target is away %q are collected", got)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("while the target is away a page takes %v", took)
	}
	r.Resume()
	eventually(t, "Redis", func() bool { return c.do("ZCARD", "ALL_SESSIONS") != ":0" })

	d.migrate("create").want(t, 0, "phase off", "")
	for _, phase := range []string{"dual-write", "sync", "live", "ramp-down"} {
		d.migrate("switchtraffic", "--to", phase, "--window", "300ms").want(t, 0, "phase "+phase, "")
		check(phase)
	}
	d.migrate("reversetraffic", "--to", "live").want(t, 0, "phase live", "")
	check("live again")
	d.migrate("cancel").want(t, 0, "", "")
	if got := r.Do("ZSCORE", "ALL_SESSIONS", "busy"); got == nil {
		t.Error("the set did not stay where it was")
	}
	if keys := r.CLI("KEYS", "*"); keys != "ALL_SESSIONS" {
		t.Errorf("after cancel there are %q", keys)
	}
	check("after cancel")

	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	check("complete")
	for _, id := range []string{"busy", "old"} {
		if got := fmt.Sprint(r.Do("GET", id)); !strings.HasPrefix(got, `O:8:"stdClass":3:{`) {
			t.Errorf("in Redis %s is %q", id, got)
		}
	}
	if n := my.Exec("SELECT COUNT(*) FROM php_sessions WHERE id LIKE 'idle%'"); n != "0" {
		t.Errorf("%s sessions are in MySQL that were collected", n)
	}
}
