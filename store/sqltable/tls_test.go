package sqltable_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// A connection is protected as tls= says, and is not made otherwise.
func TestTLS(t *testing.T) {
	srv := servers(t)
	for name, s := range srv {
		s.Exec("CREATE TABLE s " + plain[name])
	}
	my, pg := srv["MariaDB"].(*testserver.MariaDBServer), srv["PostgreSQL"].(*testserver.PostgresServer)
	my.Exec("CREATE USER secure REQUIRE SSL; GRANT ALL ON app.* TO secure") // it shows whether a connection has TLS
	const works, plainText, refused = "TLS", "no TLS", "refused"
	check := func(name, params, want, why string) {
		t.Helper()
		s, host := srv[name], "127.0.0.1"
		if strings.Contains(params, "localhost") {
			host, params = "localhost", strings.TrimPrefix(params, "localhost")
		}
		try := func(user string) error {
			raw := strings.ReplaceAll(as(s, user).URL("app"), "127.0.0.1", host) + "?table=s&id=id&data=data&expires=expires" + params
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			plain, opt, err := sqltable.ParseURL(u, sqltable.Options{})
			if err != nil {
				return err
			}
			st, err := sqltable.Open(t.Context(), plain, opt)
			if err != nil {
				return err
			}
			defer st.Close()
			return st.Save(t.Context(), "k", hour("x"), store.Always)
		}
		got := works
		var err error
		if name == "MariaDB" {
			if err = try("secure"); err != nil {
				if got = refused; try("root") == nil {
					got = plainText
				}
			}
		} else {
			pg.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sessile'")
			pg.Exec("ALTER SYSTEM SET log_connections = on; SELECT pg_reload_conf()")
			before := len(pg.Log())
			if err = try("postgres"); err != nil {
				got = refused
			} else {
				deadline := time.Now().Add(5 * time.Second)
				for !strings.Contains(pg.Log()[before:], "application_name=sessile") && time.Now().Before(deadline) {
					time.Sleep(5 * time.Millisecond)
				}
				if !strings.Contains(pg.Log()[before:], "SSL enabled") {
					got = plainText
				}
			}
		}
		if got != want {
			t.Errorf("%s, %s: %s, want %s: %v", name, params, got, want, err)
		}
		if why != "" && (err == nil || !strings.Contains(err.Error(), why)) {
			t.Errorf("%s, %s: %v, want %q", name, params, err, why)
		}
	}
	for name := range srv {
		check(name, "", plainText, "")
		check(name, "&tls=preferred", plainText, "")
		check(name, "&tls=false", plainText, "")
		check(name, "&tls=true", refused, "the server has no TLS")
		check(name, "&tls=skip-verify", refused, "the server has no TLS")
	}
	for name, ca := range map[string]string{"MariaDB": my.TLS(), "PostgreSQL": pg.TLS()} {
		check(name, "", works, "")
		check(name, "&tls=preferred", works, "")
		check(name, "&tls=false", plainText, "")
		check(name, "&tls=skip-verify", works, "")
		check(name, "&tls=true", refused, "ca_file=")
		check(name, "&tls=true&ca_file="+ca, works, "")
		check(name, "localhost&tls=true&ca_file="+ca, works, "")
		check(name, "&tls=skip-verify&ca_file="+ca, refused, "goes with tls=true")
	}
}
