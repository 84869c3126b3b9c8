package sqltable_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
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
	if !strings.Contains(params, "op_bound=") {
		params += "&op_bound=2s"
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

// Ids that no client of ours can show are left alone, and counted; hostile keys are refused, and touch nothing.
func TestIDs(t *testing.T) {
	srv := servers(t)
	for name, c := range map[string]struct {
		server, create string
		rows           []string // ids as SQL
		skipped        int
	}{
		"VARBINARY": {"MariaDB", "(id VARBINARY(200) NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB",
			[]string{"NULL", "''", "'abc  '", "'abc\\0'", "X'FF'", "X'00FF'", "'a\\'b c'", "'ä'", "'-- '"}, 7},
		"CHAR": {"MariaDB", "(id CHAR(40) CHARACTER SET ascii COLLATE ascii_bin NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB",
			[]string{"NULL", "''", "'abc  '", "'a b'"}, 1},
		"utf8mb3": {"MariaDB", "(id VARCHAR(200) CHARACTER SET utf8mb3 NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB",
			[]string{"NULL", "''", "'abc '", "'ä'", "'a b'"}, 3},
		"utf8mb4": {"MariaDB", "(id VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB",
			[]string{"'abc '", "_utf8mb4 X'F09F9880'", "'ab\\nc'"}, 3},
		"latin1": {"MariaDB", "(id VARCHAR(200) CHARACTER SET latin1 NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB",
			[]string{"'abc '", "_latin1 X'E4'"}, 2},
		"ucs2": {"MariaDB", "(id VARCHAR(200) CHARACTER SET ucs2 NULL UNIQUE, data BLOB, expires BIGINT) ENGINE=InnoDB", []string{"'abc '"}, 1},
		"varchar": {"PostgreSQL", "(id varchar(200) UNIQUE, data bytea, expires bigint)",
			[]string{"NULL", "''", "'abc  '", "'ä'", "E'a\\nb'", "'a b'"}, 4},
		"char": {"PostgreSQL", "(id char(40) UNIQUE, data bytea, expires bigint)", []string{"NULL", "''", "'abc  '", "'a b'"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := srv[c.server]
			st, table := made(t, s, c.create, "")
			for _, id := range append(c.rows, "'a%b'", "'zzz'") {
				s.Exec("INSERT INTO " + table + " VALUES (" + id + ", 'row', 4000000000)")
			}
			for limit := 1; limit < 12; limit++ {
				var keys []string
				skipped, cursor := 0, ""
				for pages := 0; ; pages++ {
					page, err := st.Scan(t.Context(), cursor, limit)
					if err != nil || pages > 20 {
						t.Fatalf("page %d: %v", pages, err)
					}
					keys, skipped, cursor = append(keys, page.Keys...), skipped+page.Skipped["foreign name"], page.Cursor
					if cursor == "" {
						break
					}
				}
				want := "[a%b zzz]"
				if strings.EqualFold(name, "char") {
					want = "[a%b abc zzz]"
				}
				slices.Sort(keys)
				if fmt.Sprint(keys) != want || skipped != c.skipped {
					t.Errorf("pages of %d: %v, %d skipped, want %s, %d", limit, keys, skipped, want, c.skipped)
				}
			}
			before := s.Exec("SELECT COUNT(*), SUM(expires), COUNT(DISTINCT data) FROM " + table)
			for _, key := range []string{"", "abc ", "abc\x00", "\xff", "a'b c", "ä", "\U0001F600", "a\nb", strings.Repeat("a", 201), strings.Repeat("a", 600)} {
				if _, err := st.Load(t.Context(), key); !errors.Is(err, store.ErrInvalid) {
					t.Errorf("Load(%q): %v", key, err)
				}
				if err := st.Save(t.Context(), key, hour("x"), store.Always); !errors.Is(err, store.ErrInvalid) {
					t.Errorf("Save(%q): %v", key, err)
				}
				if err := st.Touch(t.Context(), key, time.Now().Add(time.Hour)); !errors.Is(err, store.ErrInvalid) {
					t.Errorf("Touch(%q): %v", key, err)
				}
				if _, err := st.Delete(t.Context(), key, store.Always); !errors.Is(err, store.ErrInvalid) {
					t.Errorf("Delete(%q): %v", key, err)
				}
			}
			// None of these is there, whatever the server takes for equal, or for SQL.
			absent := []string{"ABC", "AbC", "'OR'1'='1", "'--", "\\", "a_b", "%", "zz%", "ZZZ", "a\\'b", `"`, "$1", "$(x)"}
			if !strings.EqualFold(name, "char") {
				absent = append(absent, "abc")
			}
			for _, key := range absent {
				if _, err := st.Load(t.Context(), key); !errors.Is(err, store.ErrAbsent) {
					t.Errorf("Load(%q): %v", key, err)
				}
				if all, err := st.InspectAll(t.Context(), []string{key, "zzz", key, "zzz"}); err != nil || all[0] != nil || all[2] != nil || all[1] == nil || all[3] == nil {
					t.Errorf("InspectAll(%q): %v, %v", key, all, err)
				}
				if err := st.Touch(t.Context(), key, time.Now().Add(time.Hour)); !errors.Is(err, store.ErrAbsent) {
					t.Errorf("Touch(%q): %v", key, err)
				}
				if err := st.Save(t.Context(), key, hour("x"), store.IfPresent); !errors.Is(err, store.ErrConflict) {
					t.Errorf("Save(%q): %v", key, err)
				}
				if existed, err := st.Delete(t.Context(), key, store.Always); existed || err != nil {
					t.Errorf("Delete(%q): %v, %v", key, existed, err)
				}
			}
			if after := s.Exec("SELECT COUNT(*), SUM(expires), COUNT(DISTINCT data) FROM " + table); after != before {
				t.Errorf("%q became %q", before, after)
			}
			// Such a key is a session of its own, or it is refused: never the other one.
			for _, key := range absent {
				if err := st.Save(t.Context(), key, hour("mine"), store.Always); err == nil {
					if rec, err := st.Load(t.Context(), key); err != nil || string(rec.Data) != "mine" {
						t.Errorf("Load(%q): %q, %v", key, rec.Data, err)
					}
				} else if store.OutcomeOf(err) != store.OutcomeUnavailable && store.OutcomeOf(err) != store.OutcomeInvalid {
					t.Errorf("Save(%q): %v", key, err)
				}
			}
			if got := s.Exec("SELECT COUNT(*) FROM " + table + " WHERE data = 'row'"); got != fmt.Sprint(len(c.rows)+2) {
				t.Errorf("%s rows are as they were", got)
			}
		})
	}
}

// A BINARY column fills an id up with zeros, and does not find it again: it takes ids of its own length.
func TestIDsOfFixedWidth(t *testing.T) {
	s, _ := made(t, testserver.MariaDB(t), "(id BINARY(8) PRIMARY KEY, data BLOB, expires BIGINT) ENGINE=InnoDB", "")
	if err := s.Save(t.Context(), "short", hour("x"), store.Always); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Save: %v", err)
	}
	if err := s.Save(t.Context(), "longlong", hour("x"), store.Always); err != nil {
		t.Error(err)
	}
	if _, err := s.Load(t.Context(), "longlong"); err != nil {
		t.Error(err)
	}
}

// A body comes back byte by byte, in a column of any type, or is refused and leaves what was there.
func TestBodies(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	bodies := map[string]string{"empty": "", "all bytes": string(all), "NUL": "O:1:\"\x00A\x00b\"", "umlaut": "ä|s:2:\"ä\";", "emoji": "\U0001F600",
		"blanks": "x  ", "JSON": `{"b": 1, "a":2,"a":3}`, "not UTF-8": "\xe4\xff", "quotes": `'"\'`, "igbinary": "\x00\x00\x00\x02\x14\x00", "Storable": "pst0\x04\x0b\x00",
		"64K-1": strings.Repeat("x", 65535), "64K": strings.Repeat("x", 65536), "line feeds": "a\r\nb\n"}
	srv := servers(t)
	for server, kinds := range map[string][]string{
		"MariaDB": {"LONGBLOB", "BLOB", "TINYBLOB", "VARBINARY(2000)", "LONGTEXT", "TEXT", "VARCHAR(2000)", "LONGTEXT CHARACTER SET latin1",
			"LONGTEXT CHARACTER SET utf8mb3", "LONGTEXT CHARACTER SET ucs2", "JSON"},
		"PostgreSQL": {"bytea", "text", "varchar(2000)", "json"},
	} {
		for _, kind := range kinds {
			for _, codec := range []string{"", "base64"} {
				if codec != "" && strings.EqualFold(kind, "json") {
					continue
				}
				t.Run(server+", "+kind+", "+codec, func(t *testing.T) {
					params := ""
					if codec != "" {
						params = "&codec=" + codec
					}
					s, table := made(t, srv[server], "(id varchar(64) PRIMARY KEY, data "+kind+", expires bigint)", params)
					for name, body := range bodies {
						if err := s.Save(t.Context(), "k", hour(`"old"`), store.Always); err != nil {
							t.Fatal(err)
						}
						want := body
						switch err := s.Save(t.Context(), "k", hour(body), store.Always); {
						case errors.Is(err, store.ErrInvalid):
							if want = `"old"`; strings.Contains(strings.ToLower(kind), "long") && codec != "" || kind == "bytea" || kind == "LONGBLOB" {
								t.Errorf("%s: %v", name, err)
							}
						case err != nil:
							t.Errorf("%s: %v", name, err)
						}
						rec, err := s.Load(t.Context(), "k")
						if err != nil || string(rec.Data) != want {
							t.Errorf("%s: got %.100q, want %.100q, %v", name, rec.Data, want, err)
						}
						if err := s.Save(t.Context(), "k", hour(`"next"`), store.IfVersion(rec.Version())); err != nil {
							t.Errorf("%s: Save over what was read: %v", name, err)
						}
					}
					if err := s.Save(t.Context(), "k", hour(`"old"`), store.Always); err != nil {
						t.Fatal(err)
					}
					srv[server].Exec("UPDATE " + table + " SET data = NULL")
					rec, err := s.Load(t.Context(), "k")
					if err != nil || len(rec.Data) != 0 {
						t.Errorf("NULL: %q, %v", rec.Data, err)
					}
					if _, err := s.Delete(t.Context(), "k", store.IfVersion(rec.Version())); err != nil {
						t.Errorf("NULL: %v", err)
					}
				})
			}
		}
	}
}

// What the server has cut off is no session, and is not moved.
func TestABodyThatWasCutOff(t *testing.T) {
	my := testserver.MariaDB(t)
	s, table := made(t, my, "(id VARBINARY(64) PRIMARY KEY, data BLOB, expires BIGINT) ENGINE=InnoDB", "")
	my.Exec("SET sql_mode = ''; INSERT INTO " + table + " VALUES ('k', REPEAT('x', 70000), 4000000000)")
	if _, err := s.Load(t.Context(), "k"); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Load: %v", err)
	}
	if err := s.Save(t.Context(), "k", hour("whole"), store.Always); err != nil {
		t.Errorf("Save: %v", err)
	}
}

// A row that is much too large is not read into memory.
func TestAHugeRow(t *testing.T) {
	both(t, plain["MariaDB"], plain["PostgreSQL"], func(t *testing.T, s server, create string) {
		st, table := made(t, s, create, "&max_value=10000")
		repeat := map[bool]string{true: "REPEAT('x', 12000000)", false: "convert_to(repeat('x', 12000000), 'UTF8')"}[isMySQL(s)]
		s.Exec("INSERT INTO " + table + " VALUES ('k', " + repeat + ", 2000000000)")
		if err := st.Save(t.Context(), "small", hour("x"), store.Always); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := st.Load(t.Context(), "k"); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Load: %v", err)
		}
		if _, err := st.InspectAll(t.Context(), []string{"small", "k"}); err == nil {
			t.Errorf("InspectAll: %v", err)
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 2_000_000 {
			t.Errorf("%d bytes were taken", grown)
		}
		if existed, err := st.Delete(t.Context(), "k", store.Always); !existed || err != nil {
			t.Errorf("Delete: %v, %v", existed, err)
		}
	})
}
