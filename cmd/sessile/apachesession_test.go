package main

import (
	"context"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
)

// perlCount is a page of an application: it counts in a session, in files or in Redis, and says its id and what it counted to.
const perlCount = `use strict;
my ($class, $id, $do, %args) = @ARGV;
eval "require $class" or die $@;
tie my %s, $class, $id eq 'new' ? undef : $id, \%args;
$s{n} = ($s{n} // 0) + 1 if $do eq 'count';
print $s{_session_id}, " ", $s{n} // '-';
tied(%s)->delete if $do eq 'delete';
`

// apacheSession runs a page on one of Apache::Session's classes.
func apacheSession(t *testing.T, class, id, do string, args ...string) (saw, n string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lib, err := filepath.Abs("../../internal/testserver/perl")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, "perl", append([]string{"-I", lib, "-e", perlCount, "Apache::Session::" + class, id, do}, args...)...).CombinedOutput()
	saw, n, _ = strings.Cut(string(out), " ")
	if strings.Contains(string(out), "Object does not exist in") {
		return "", "none"
	}
	if err != nil || len(saw) != 32 {
		t.Fatalf("perl: %v: %s", err, out)
	}
	return saw, n
}

// An application on Apache::Session::File, or ::Postgres, moves to Apache::Session::Redis, page by page, and back. Files have what
// Storable made; the table and Redis have the Base64 of it.
func TestAMoveFromApacheSession(t *testing.T) {
	t.Parallel()
	testserver.Need(t, "Perl's Redis", exec.Command("perl", "-MRedis", "-e", "1").Run() == nil)
	for class, module := range map[string]string{"File": "Apache::Session::File", "Postgres": "DBD::Pg"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			testserver.Need(t, "Perl's "+module, exec.Command("perl", "-M"+module, "-e", "1").Run() == nil)
			var before []string
			var origin string
			if class == "File" {
				dir, locks := t.TempDir(), t.TempDir()
				before = []string{"Directory", dir, "LockDirectory", locks, "Transaction", "1"}
				origin = "file://" + dir + "?layout=apache-session&lock_dir=" + locks + "&codec=to-base64&lifetime=12h"
			} else {
				pg := testserver.Postgres(t)
				pg.Exec("CREATE TABLE sessions (id char(32) PRIMARY KEY, a_session text)")
				u, err := url.Parse(pg.URL("app"))
				if err != nil {
					t.Fatal(err)
				}
				before = []string{"DataSource", "dbi:Pg:dbname=app;host=" + u.Hostname() + ";port=" + u.Port(), "UserName", u.User.Username(), "Password", "", "Commit", "1"}
				origin = pg.URL("app") + "?preset=rt&lifetime=12h"
			}
			moveApacheSession(t, class, before, origin)
		})
	}
}

func moveApacheSession(t *testing.T, class string, before []string, origin string) {
	r := redis(t)
	var ids []string
	for range 5 {
		id, _ := apacheSession(t, class, "new", "count", before...)
		ids = append(ids, id)
	}
	d := serve(t, "--origin", origin, "--target", r.URL(), "--sliding", "--lifetime", "12h")
	gateway := []string{"server", d.addr}
	if _, n := apacheSession(t, "Redis", ids[0], "count", gateway...); n != "2" {
		t.Errorf("through the gateway: %s, want 2", n)
	}
	if _, n := apacheSession(t, class, ids[0], "count", before...); n != "3" {
		t.Errorf("where it was: %s, want 3", n)
	}
	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	for i, id := range ids {
		want := map[bool]string{true: "4", false: "2"}[i == 0]
		if _, n := apacheSession(t, "Redis", id, "count", gateway...); n != want {
			t.Errorf("session %d in ramp-down: %s, want %s", i, n, want)
		}
		if _, n := apacheSession(t, "Redis", id, "look", "server", r.Addr); n != want {
			t.Errorf("session %d in Redis: %s, want %s", i, n, want)
		}
	}
	apacheSession(t, "Redis", ids[1], "delete", gateway...)
	made, _ := apacheSession(t, "Redis", "new", "count", gateway...)
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	for id, want := range map[string]string{ids[0]: "4", ids[1]: "none", ids[2]: "2", made: "1"} {
		if _, n := apacheSession(t, class, id, "look", before...); n != want {
			t.Errorf("back where it was: %s, want %s", n, want)
		}
	}
}
