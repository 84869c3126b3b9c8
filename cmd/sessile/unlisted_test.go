package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// Debian's directory for PHP's sessions may be listed by root alone. A session that only the file's owner knows of comes over
// when it is used; one that nobody uses has ended when live begins.
func TestAMoveFromADirectoryThatCannotBeListed(t *testing.T) {
	t.Parallel()
	top, err := os.MkdirTemp("", "sessile-unlisted-") // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := filepath.Join(top, "sessions")
	nobody := 65534
	if os.Geteuid() != 0 {
		nobody = os.Geteuid()
	}
	for _, err := range []error{os.Chmod(filepath.Dir(binary), 0o755), os.Chmod(top, 0o755), os.Mkdir(dir, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"used", "forgotten"} {
		file := filepath.Join(dir, "sess_"+name)
		if err := os.WriteFile(file, []byte("n|i:1;"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, os.ModeSticky|0o333); err != nil {
		t.Fatal(err)
	}
	r := redis(t)
	d := &daemon{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port(t)), admin: fmt.Sprintf("127.0.0.1:%d", port(t))}
	d.env = []string{"SESSILE_ADMIN=" + d.admin}
	d.cmd = command(t, nil, "serve", "--listen", "redis://"+d.addr, "--admin", d.admin, "--origin", "file://"+dir+"?layout=php&lifetime=20s",
		"--origin-key", "PHPREDIS_SESSION:", "--target", r.URL())
	d.cmd.Dir = top
	if os.Geteuid() == 0 {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(nobody), Gid: uint32(nobody)}}
	}
	d.launch()
	moveUnlisted(t, d, r)
}

// A table that has a hash of each id cannot be listed either.
func TestAMoveFromATableOfHashes(t *testing.T) {
	t.Parallel()
	my := testserver.MariaDB(t)
	my.Exec("CREATE TABLE hashed (id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, data LONGBLOB NOT NULL, access INT UNSIGNED NOT NULL) ENGINE=InnoDB")
	r := redis(t)
	d := serve(t, "--origin", my.URL("app")+"?table=hashed&id=id&data=data&expires=access&expires_kind=last-access&lifetime=20s&id_hash=sha256-hex", "--lifetime", "20s",
		"--origin-key", "PHPREDIS_SESSION:", "--target", r.URL())
	my.Exec("INSERT INTO hashed VALUES (SHA2('used', 256), 'n|i:1;', UNIX_TIMESTAMP()), (SHA2('forgotten', 256), 'n|i:1;', UNIX_TIMESTAMP())")
	moveUnlisted(t, d, r)
}

// moveUnlisted moves two sessions of twenty seconds, of which one is used.
func moveUnlisted(t *testing.T, d *daemon, r *testserver.RedisServer) {
	d.migrate("plan").want(t, 0, "a whole lifetime in sync", "")
	d.migrate("create").want(t, 0, "phase off", "")
	d.migrate("switchtraffic", "--to", "sync", "--window", "300ms").want(t, 0, "phase sync", "")
	cl := d.dial()
	if got := r.Do("EXISTS", "PHPREDIS_SESSION:used"); fmt.Sprint(got) != "0" {
		t.Errorf("the target has what nobody used: %v", got)
	}
	if got := cl.do("EXPIRE", "PHPREDIS_SESSION:used", "20"); got != ":1" {
		t.Errorf("EXPIRE: %v", got)
	}
	if got := r.Do("EXISTS", "PHPREDIS_SESSION:used"); fmt.Sprint(got) != "1" {
		t.Errorf("the target does not have what was touched: %v", got)
	}
	since := time.Now()
	live := make(chan result, 1)
	go func() { live <- d.migrate("switchtraffic", "--to", "live") }()
	var ended result
	for waiting := true; waiting; {
		select {
		case ended = <-live:
			waiting = false
		case <-time.After(time.Second):
			if got := cl.do("EXPIRE", "PHPREDIS_SESSION:used", "20"); got != ":1" {
				t.Fatalf("EXPIRE: %v", got)
			}
		}
	}
	ended.want(t, 0, "phase live", "")
	if took := time.Since(since); took < 10*time.Second {
		t.Errorf("live after %v", took)
	}
	if got := cl.do("GET", "PHPREDIS_SESSION:used"); got != "n|i:1;" {
		t.Errorf("GET: %v", got)
	}
	if got := cl.do("GET", "PHPREDIS_SESSION:forgotten"); got != "$-1" {
		t.Errorf("GET: %v", got)
	}
}
