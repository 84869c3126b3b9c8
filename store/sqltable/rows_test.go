package sqltable_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// made makes a table, of which create says what is between the brackets and behind them, and opens a store on it. params
// are the URL's, whose columns are id, data and, if they say no other, expires.
func made(t *testing.T, s server, create, params string) (*sqltable.Store, string) {
	t.Helper()
	name := fmt.Sprint("m", number.Add(1))
	s.Exec("CREATE TABLE " + name + " " + create)
	if !strings.Contains(params, "expires=") {
		params += "&expires=expires"
	}
	return at(t, s.URL("app")+"?table="+name+"&id=id&data=data"+params), name
}

// both runs test with each server for which there is a way to make the table.
func both(t *testing.T, mysql, postgres string, test func(t *testing.T, s server, create string)) {
	t.Helper()
	if mysql != "" {
		t.Run("MariaDB", func(t *testing.T) { test(t, testserver.MariaDB(t), mysql) })
	}
	if postgres != "" {
		t.Run("PostgreSQL", func(t *testing.T) { test(t, testserver.Postgres(t), postgres) })
	}
}

// In the hour that a time zone has twice, we write the moments that the application would: the clock is the server's, not
// that of its zone.
func TestTheHourThatComesTwice(t *testing.T) {
	my := testserver.MariaDB(t)
	const change = 1792890000 // 2026-10-25 03:00 becomes 02:00 in Berlin
	if _, err := my.Try("mysql", fmt.Sprintf(`INSERT INTO time_zone VALUES (1, 'N'); INSERT INTO time_zone_name VALUES ('Berlin', 1);
		INSERT INTO time_zone_transition_type VALUES (1, 0, 7200, 1, 'CEST'), (1, 1, 3600, 0, 'CET');
		INSERT INTO time_zone_transition VALUES (1, 0, 0), (1, %d, 1);
		CREATE USER app; GRANT ALL ON app.* TO app`, change)); err != nil {
		t.Fatal(err)
	}
	for at, now := range map[string]int64{"the first time": change - 1800, "the second time": change + 1800, "behind it": change + 3600 + 60} {
		my.Exec(fmt.Sprintf("SET GLOBAL init_connect = \"SET time_zone = 'Berlin', timestamp = %d\"", now))
		for kind, column := range map[string]string{"INT": "%s", "TIMESTAMP NULL": "UNIX_TIMESTAMP(%s)", "DATETIME": ""} {
			t.Run(at+", "+kind, func(t *testing.T) {
				s, table := made(t, as(my, "app"), "(id VARBINARY(64) PRIMARY KEY, data BLOB, expires "+kind+") ENGINE=InnoDB",
					"&expires_kind=last-access&lifetime=1440s")
				for what, write := range map[string]func() error{
					"Save":  func() error { return s.Save(t.Context(), "k", left("x", 1440*time.Second), store.Always) },
					"Touch": func() error { return s.Touch(t.Context(), "k", left("x", 1440*time.Second).Expires) },
				} {
					if what == "Touch" {
						if err := s.Save(t.Context(), "k", left("x", 1000*time.Second), store.Always); err != nil {
							t.Fatal(err)
						}
					}
					if err := write(); err != nil {
						t.Fatal(err)
					}
					if column == "" { // it cannot say which of the two it is: the session lives on, for too long if need be
						if rec, err := s.Inspect(t.Context(), "k"); err != nil || time.Until(rec.Expires) < 1430*time.Second {
							t.Errorf("%s: it lives for %v, %v", what, time.Until(rec.Expires), err)
						}
						continue
					}
					var got int64
					fmt.Sscan(my.Exec("SELECT "+fmt.Sprintf(column, "expires")+" FROM "+table), &got)
					if got != now && got != now+1 {
						t.Errorf("%s: the row says %d, %ds from now", what, got, got-now)
					}
					if rec, err := s.Inspect(t.Context(), "k"); err != nil || time.Until(rec.Expires).Round(10*time.Second) != 1440*time.Second {
						t.Errorf("%s: it lives for %v, %v", what, time.Until(rec.Expires), err)
					}
				}
			})
		}
	}
}

// left is a session that lives for d.
func left(data string, d time.Duration) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(d)}
}

// as is the server for another user.
func as(s server, user string) server { return other{s, user} }

type other struct {
	server
	user string
}

func (o other) URL(db string) string {
	return strings.NewReplacer("root@", o.user+"@", "postgres@", o.user+"@").Replace(o.server.URL(db))
}

// What a time column may hold besides an ordinary moment: Load, Touch and the listing say the same of it, and nothing that
// is far away becomes over.
func TestDeadlinesThatAreNone(t *testing.T) {
	const lifetime = 2 * time.Hour
	srv := servers(t)
	srv["MariaDB"].Exec("SET GLOBAL sql_mode = ''")
	for name, c := range map[string]struct {
		mysql, postgres string // the column's type
		value           string
		params          string
		want            time.Duration // 0: over; -1: refused
	}{
		"NULL":                          {"INT", "int", "NULL", "&lifetime=2h", lifetime},
		"NULL, no lifetime":             {"INT", "int", "NULL", "", -1},
		"NULL DATETIME":                 {"DATETIME", "timestamp", "NULL", "&lifetime=2h", lifetime},
		"zero":                          {"INT", "int", "0", "&lifetime=2h", 0},
		"negative":                      {"INT", "int", "-1", "&lifetime=2h", 0},
		"lowest":                        {"BIGINT", "bigint", "-9223372036854775808", "", 0},
		"highest":                       {"BIGINT", "bigint", "9223372036854775807", "", forever},
		"highest, ms":                   {"BIGINT", "bigint", "9223372036854775807", "&expires_unit=ms", forever},
		"highest, unsigned":             {"BIGINT UNSIGNED", "", "18446744073709551615", "", forever},
		"highest, last access":          {"BIGINT", "bigint", "9223372036854775807", "&expires_kind=last-access&lifetime=2h", forever},
		"float":                         {"DOUBLE", "double precision", "1e300", "", forever},
		"2038":                          {"INT", "int", "2147483647", "", forever},
		"behind 2038":                   {"DATETIME", "timestamp", "'2040-01-01 00:00:00'", "", forever},
		"9999":                          {"DATETIME", "timestamp", "'9999-12-31 23:59:59'", "", forever},
		"9999, UTC":                     {"DATETIME", "timestamp", "'9999-12-31 23:59:59'", "&expires_unit=utc", forever},
		"infinity":                      {"", "timestamptz", "'infinity'", "", forever},
		"minus infinity":                {"", "timestamptz", "'-infinity'", "", 0},
		"before 1970":                   {"DATETIME", "timestamp", "'1960-01-01 00:00:00'", "", 0},
		"zero date":                     {"DATETIME", "", "'0000-00-00 00:00:00'", "&lifetime=2h", 0},
		"zero date, UTC":                {"DATETIME", "", "'0000-00-00 00:00:00'", "&lifetime=2h&expires_unit=utc", 0},
		"zero date, TIMESTAMP":          {"TIMESTAMP", "", "'0000-00-00 00:00:00'", "&lifetime=2h", 0},
		"digits in a text":              {"VARCHAR(20)", "varchar(20)", "'4000000000'", "", forever},
		"a text without digits":         {"VARCHAR(20)", "varchar(20)", "'soon'", "", -1},
		"a text without digits, MS":     {"VARCHAR(20)", "varchar(20)", "''", "&expires_unit=ms", -1},
		"digits of a moment":            {"VARCHAR(20)", "varchar(20)", "'20400101000000'", "&expires_unit=digits", forever},
		"digits of no moment, a letter": {"VARCHAR(20)", "varchar(20)", "'2040010100000x'", "&expires_unit=digits", -1},
	} {
		t.Run(name, func(t *testing.T) {
			for server, s := range srv {
				kind := map[string]string{"MariaDB": c.mysql, "PostgreSQL": c.postgres}[server]
				if kind == "" {
					continue
				}
				t.Run(server, func(t *testing.T) {
					st, table := made(t, s, "(id varchar(64) PRIMARY KEY, data varchar(100), expires "+kind+")", c.params)
					s.Exec("INSERT INTO " + table + " VALUES ('k', 'x', " + c.value + ")")
					rec, err := st.Inspect(t.Context(), "k")
					switch {
					case c.want == -1:
						if !errors.Is(err, store.ErrInvalid) {
							t.Errorf("Inspect: %v, %v", rec, err)
						}
					case c.want == 0:
						if !errors.Is(err, store.ErrAbsent) {
							t.Errorf("Inspect: %v, %v", rec, err)
						}
					case err != nil || time.Until(rec.Expires) < c.want-time.Minute:
						t.Errorf("Inspect: for %v, %v", time.Until(rec.Expires), err)
					}
					all, err := st.InspectAll(t.Context(), []string{"k", "other"})
					if c.want == -1 && err == nil || c.want >= 0 && (err != nil || (all[0] != nil) != (c.want > 0)) {
						t.Errorf("InspectAll: %v, %v", all, err)
					}
					if found, err := st.Check(t.Context()); err != nil {
						t.Errorf("Check: %v, %v", found, err)
					}
					err = st.Touch(t.Context(), "k", time.Now().Add(time.Hour))
					if c.want == 0 && !errors.Is(err, store.ErrAbsent) || c.want > 0 && err != nil || c.want < 0 && err == nil {
						t.Errorf("Touch: %v", err)
					}
					if c.want >= 0 {
						if err := st.Save(t.Context(), "k", hour("y"), store.Always); err != nil {
							t.Errorf("Save: %v", err)
						}
						if rec, err := st.Inspect(t.Context(), "k"); err != nil || string(rec.Data) != "y" {
							t.Errorf("Inspect: %v, %v", rec, err)
						}
					}
				})
			}
		})
	}
}

// A deadline that the server can make no moment of is refused: it would be stored as none.
func TestADeadlineBehind2038(t *testing.T) {
	both(t, "DATETIME", "timestamp", func(t *testing.T, s server, kind string) {
		st, table := made(t, s, "(id varchar(64) PRIMARY KEY, data varchar(100), expires "+kind+")", "")
		if err := st.Save(t.Context(), "k", hour("x"), store.Always); err != nil {
			t.Fatal(err)
		}
		late := left("y", 20*365*24*time.Hour)
		for what, err := range map[string]error{"Save": st.Save(t.Context(), "k", late, store.Always), "Touch": st.Touch(t.Context(), "k", late.Expires)} {
			if err != nil && !errors.Is(err, store.ErrInvalid) || err == nil && kind == "DATETIME" {
				t.Errorf("%s: %v", what, err)
			}
		}
		if got := s.Exec("SELECT COUNT(*) FROM " + table + " WHERE expires IS NULL"); got != "0" {
			t.Error("the row has no deadline any more")
		}
	})
}

// forever is longer than anything that is written in a test: until 2038 at the least.
const forever = 10 * 365 * 24 * time.Hour
