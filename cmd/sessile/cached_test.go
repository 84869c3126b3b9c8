package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/migrate"
)

// A PHP site whose handler reads memcached, else MySQL, and writes both. One server of the cache hangs, and is killed: who is in stays
// in, and who is out stays out. Then it moves to Redis, and back, behind two gateways, while its users work.
func TestAMoveFromMySQLBehindMemcached(t *testing.T) {
	t.Parallel()
	php := testserver.PHP(t, "memcached", "pdo_mysql")
	my := testserver.MariaDB(t)
	my.Exec("CREATE TABLE php_sessions (id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, data MEDIUMBLOB NOT NULL, access INT UNSIGNED NOT NULL) ENGINE=InnoDB")
	my.Exec("CREATE USER sessile IDENTIFIED BY 's3cr3t'; GRANT ALL ON app.* TO sessile")
	var servers []*testserver.MemcachedServer
	var addrs []string
	for range 3 {
		servers = append(servers, testserver.Memcached(t))
		addrs = append(addrs, servers[len(servers)-1].Addr)
	}
	handler, err := filepath.Abs("../../internal/demo/testdata/mysql_memcached_handler.php")
	if err != nil {
		t.Fatal(err)
	}
	page := func(script string) string {
		t.Helper()
		return php.Run("<?php "+script, map[string]string{
			"auto_prepend_file": handler, "session.save_path": "mysql:unix_socket=" + my.Socket + ";dbname=app " + strings.Join(addrs, ","),
			"session.gc_maxlifetime": "1440", "session.gc_probability": "0", "session.use_cookies": "0", "session.cache_limiter": ""})
	}
	page(`for ($i = 0; $i < 200; $i++) { session_id("quiet$i"); session_start(); $_SESSION['user'] = $i; session_write_close(); }`)
	read := func(id string) string {
		t.Helper()
		return page(`session_id("` + id + `"); session_start(['read_and_close' => true]); echo $_SESSION['user'] ?? 'nobody';`)
	}

	// As a file has it, with the password.
	origin := "cached(memcached://" + strings.Join(addrs, ",") + "?client=memcached-object&prefix=sess_, " + strings.Replace(my.URL("app"), "root@", "sessile:s3cr3t@", 1) +
		"?table=php_sessions&id=id&data=data&expires=access&expires_kind=last-access&lifetime=1440s&lazy=true)"
	r := redis(t)
	config := filepath.Join(t.TempDir(), "sessile.yaml")
	if err := os.WriteFile(config, []byte("origin: "+origin+"\norigin-key: 'PHPREDIS_SESSION:'\ntarget: "+r.URL()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := run(t, []string{"SESSILE_CONFIG=" + config}, "migrate", "plan", "--origin", origin).want(t, 0, "200 sessions in the origin", "")
	for _, want := range []string{"of 200 sampled sessions of the table 200 are in the cache; of 400 in both 0 have other contents", "every handler writes the table", "table php_sessions"} {
		if !strings.Contains(p.stdout, want) {
			t.Errorf("plan does not say %q: %s", want, p.stdout)
		}
	}
	if !strings.Contains(p.stderr, "has a password in it") || strings.Contains(p.stdout+p.stderr, "s3cr3t") {
		t.Errorf("a password in a flag: %s%s", p.stdout, p.stderr)
	}
	d := serve(t, "--config", config, "--bound", "2s", "--hold", "500ms")
	c := d.dial()
	if got := c.do("SETEX", "PHPREDIS_SESSION:quiet7", "1440", "user|i:77;"); got != "+OK" || read("quiet7") != "77" {
		t.Errorf("a page that still uses both reads %q after %s", read("quiet7"), got)
	}
	if got := c.do("DEL", "PHPREDIS_SESSION:quiet8"); got != ":1" || read("quiet8") != "nobody" {
		t.Errorf("a page that still uses both reads %q after a logout, %s", read("quiet8"), got)
	}
	if read("quiet9"); c.do("GET", "PHPREDIS_SESSION:quiet9") != "user|i:9;" {
		t.Error("the gateway does not see what the page sees")
	}

	// A server hangs: what it has kept must not be replaced behind its back. All else goes on.
	servers[1].Pause()
	refused := 0
	for i := 30; i < 40; i++ {
		key := fmt.Sprint("PHPREDIS_SESSION:quiet", i)
		if got := d.dial().do("GET", key); got != fmt.Sprintf("user|i:%d;", i) {
			t.Errorf("%s, while a server of the cache hangs: %s", key, got)
		}
		switch got := d.dial().do("DEL", key); {
		case strings.HasPrefix(got, "-"):
			if refused++; d.dial().do("GET", key) != fmt.Sprintf("user|i:%d;", i) {
				t.Errorf("%s: a logout that was refused has happened", key)
			}
		case got != ":1":
			t.Errorf("DEL: %s", got)
		}
	}
	if refused < 4 { // so many of them have their copies there
		t.Errorf("%d of 10 logouts were refused, want those of 4 sessions", refused)
	}
	servers[1].Kill()
	for i := 30; i < 40; i++ {
		if got := d.dial().do("DEL", fmt.Sprint("PHPREDIS_SESSION:quiet", i)); strings.HasPrefix(got, "-") {
			t.Errorf("DEL while a server of the cache is gone: %s", got)
		}
	}
	servers[1].Restart()
	for i := 30; i < 40; i++ {
		if id := fmt.Sprint("quiet", i); d.dial().do("GET", "PHPREDIS_SESSION:"+id) != "$-1" || read(id) != "nobody" {
			t.Errorf("%s is in again", id)
		}
	}

	d.stop(syscall.SIGTERM)
	log := d.Log()
	d, other := serve(t, "--config", config), serve(t, "--config", config)
	d.migrate("create").want(t, 0, "phase off", "")
	eventually(t, "both gateways know of it", func() bool { return len(d.status().Gateways) == 2 })
	end := users(t, "PHPREDIS_SESSION:", d, other)
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	if got := d.dial().do("DEL", "PHPREDIS_SESSION:quiet9"); got != ":1" {
		t.Errorf("DEL: %s", got)
	}
	if got := d.dial().do("SETEX", "PHPREDIS_SESSION:quiet7", "1440", "user|i:777;"); got != "+OK" {
		t.Errorf("SETEX: %s", got)
	}
	for i := 40; i < 200; i++ {
		if got := r.Do("GET", fmt.Sprint("PHPREDIS_SESSION:quiet", i)); got != fmt.Sprintf("user|i:%d;", i) {
			t.Fatalf("quiet%d: %v", i, got)
		}
	}
	other.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	if in, out := read("quiet7"), read("quiet9"); in != "777" || out != "nobody" {
		t.Errorf("a page that uses both again reads %q, and %q after a logout", in, out)
	}
	out := end()
	for _, id := range out[max(len(out)-20, 0):] {
		if n := my.Exec("SELECT COUNT(*) FROM php_sessions WHERE id = '" + id + "'"); strings.TrimSpace(n) != "0" {
			t.Errorf("%s is out, and the table has it", id)
		}
	}
	if st := d.status(); st.Debt != (migrate.Debt{}) || st.Counters["alarms"] != 0 || st.Counters["unfit"] != 0 {
		t.Errorf("got %+v", st)
	}
	if strings.Contains(log+d.Log()+other.Log(), "s3cr3t") {
		t.Error("the log shows the password")
	}
}
