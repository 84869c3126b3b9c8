package sqltable_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// Whatever is wrong with a table or its server is said, with what to do.
func TestWhatPlanFinds(t *testing.T) {
	my, pg := testserver.MariaDB(t, "--max-connections=20", "--max-allowed-packet=1M"), testserver.Postgres(t)
	withUser(my)
	withUser(pg)
	const table = "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data LONGBLOB, expires BIGINT) ENGINE=InnoDB"
	row := func(data string, expires any) string {
		return fmt.Sprintf("; INSERT INTO %%s VALUES ('0123456789abcdef', '%s', %v)", data, expires)
	}
	now := time.Now().Unix()
	for name, c := range map[string]struct {
		s                     sqlServer
		create, params, user  string
		against, advice, fact string
	}{
		"view": {my, "CREATE TABLE b%s (id VARBINARY(64) PRIMARY KEY, data BLOB, expires INT) ENGINE=InnoDB; CREATE VIEW %s AS SELECT * FROM b%s", "", "",
			"name the table behind it", "", ""},
		"view, PostgreSQL": {pg, "CREATE TABLE b%s (id varchar(64) PRIMARY KEY, data bytea, expires int); CREATE VIEW %s AS SELECT * FROM b%s", "", "",
			"name the table behind it", "", ""},
		"trigger": {my, table + "; CREATE TRIGGER tr%s BEFORE UPDATE ON %s FOR EACH ROW SET NEW.expires = 1", "", "", "", "has 1 triggers", ""},
		"trigger, PostgreSQL": {pg, "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int); CREATE FUNCTION f%s() RETURNS trigger AS 'BEGIN RETURN NEW; END' LANGUAGE plpgsql; " +
			"CREATE TRIGGER tr BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION f%s()", "", "", "", "has 1 triggers", ""},
		"small BLOB":         {my, "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB, expires BIGINT) ENGINE=InnoDB", "", "", "", "holds 65534 bytes at the most", ""},
		"text, Storable":     {my, "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data LONGTEXT, expires BIGINT) ENGINE=InnoDB", "&codec=to-base64", "", "", "is a text", ""},
		"text, Base64":       {my, "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data LONGTEXT, expires BIGINT) ENGINE=InnoDB", "&codec=base64", "", "", "-is a text", ""},
		"wrong codec":        {my, table + row("user|i:1;", now+900), "&codec=base64", "", "is it the right codec=", "", ""},
		"cut off":            {my, "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data TINYBLOB, expires BIGINT) ENGINE=InnoDB" + row(strings.Repeat("x", 255), now+900), "", "", "", "probably cut off", ""},
		"ms taken for s":     {my, table + row("x", now*1000), "", "", "", "more than ten years", ""},
		"s taken for ms":     {my, table + row("x", now+900), "&expires_unit=ms", "", "", "past its deadline", ""},
		"access as deadline": {my, table + row("x", now-60), "", "", "", "past its deadline", ""},
		"deadline as access": {my, table + row("x", now+900), "&expires_kind=last-access&lifetime=24m", "", "", "is it expires_kind=deadline?", ""},
		"right":              {my, table + row("x", now+900), "", "", "", "-right expires_kind", "ids: 16 characters"},
		"no age":             {my, table + row("x", "NULL"), "&expires=&lifetime=2h", "", "", "does not know how old", ""},
		"connections":        {my, table, "", "", "", "max_connections is 20, of which each gateway takes up to 272 (16, and one for each lock that is held): raise it, or say max_locks=", ""},
		"few connections":    {my, table, "&max_locks=4&max_conns=2", "", "", "-max_connections is", ""},
		"packet":             {my, table, "", "", "", "max_allowed_packet is 1048576", ""},
		"generated":          {my, "CREATE TABLE %s (id VARBINARY(64) PRIMARY KEY, data BLOB, made BIGINT, expires BIGINT AS (made + 1440) STORED) ENGINE=InnoDB", "", "", "a generated one", "", ""},
		"generated, PostgreSQL": {pg, "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, made bigint, expires bigint GENERATED ALWAYS AS (made + 1440) STORED)", "", "",
			"a generated one", "", ""},
		"partitioned": {my, table + " PARTITION BY KEY (id) PARTITIONS 4" + row("x", now+900), "", "", "-", "", "ids: 16"},
		"compressed":  {my, table + " ROW_FORMAT=COMPRESSED" + row("x", now+900), "", "", "-", "", "ids: 16"},
		"partitioned, PostgreSQL": {pg, "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int) PARTITION BY HASH (id); " +
			"CREATE TABLE p%s PARTITION OF %s FOR VALUES WITH (MODULUS 1, REMAINDER 0)", "", "", "-", "", ""},
		"may only read": {my, table + "; CREATE USER ro1; GRANT SELECT ON app.%s TO ro1", "", "ro1", "INSERT on", "may only read", ""},
		"may only read, PostgreSQL": {pg, "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int); CREATE USER ro1; GRANT SELECT ON %s TO ro1", "", "ro1",
			"Make it: CREATE TABLE", "may only read", ""},
		"may not make a table":            {my, table + "; CREATE USER ro2; GRANT SELECT, INSERT, UPDATE, DELETE ON app.%s TO ro2", "", "ro2", "Make it: CREATE TABLE", "", ""},
		"may make no table, but read all": {my, table + "; CREATE USER ro3; GRANT SELECT, INSERT, UPDATE, DELETE ON app.* TO ro3", "", "ro3", "Make it: CREATE TABLE", "", ""},
		"may not write marks": {pg, "CREATE TABLE %s (id varchar(64) PRIMARY KEY, data bytea, expires int); CREATE TABLE IF NOT EXISTS sessile_marks (name varchar(128) PRIMARY KEY, mark varchar(1024) NOT NULL); " +
			"CREATE USER ro2; GRANT ALL ON %s TO ro2; GRANT SELECT ON sessile_marks TO ro2", "", "ro2", "UPDATE on sessile_marks", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			name := fmt.Sprint("f", number.Add(1))
			c.s.Exec("DROP TABLE IF EXISTS sessile_marks")
			c.s.Exec(strings.ReplaceAll(c.create, "%s", name))
			var srv server = c.s
			if c.user != "" {
				srv = as(c.s, c.user)
			}
			params := c.params
			if !strings.Contains(params, "expires=") {
				params += "&expires=expires"
			}
			found, err := at(t, srv.URL("app")+"?table="+name+"&id=id&data=data"+strings.ReplaceAll(params, "&expires=&", "&")).Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for what, x := range map[string][2]string{"against": {strings.Join(found.Against, "; "), c.against}, "advice": {strings.Join(found.Advice, "; "), c.advice},
				"facts": {strings.Join(found.Facts, "; "), c.fact}} {
				all, want := x[0], x[1]
				if not, negated := strings.CutPrefix(want, "-"); negated && (not == "" && all != "" || not != "" && strings.Contains(all, not)) || !negated && !strings.Contains(all, want) {
					t.Errorf("%s: %q, want %q", what, all, want)
				}
			}
		})
	}
	t.Run("a replica", func(t *testing.T) {
		for _, s := range []sqlServer{my, pg} {
			name := nameOf(s)
			st, _ := made(t, as(s, "site"), plain[name], "")
			readOnly(s, true)
			found, err := st.Check(t.Context())
			for deadline := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(deadline); {
				found, err = st.Check(t.Context()) // PostgreSQL has ended our connections
			}
			if all := strings.Join(found.Against, "; "); err != nil || !strings.Contains(all, "name the primary") {
				t.Errorf("%s: %q, %v", name, all, err)
			}
			if all := strings.Join(found.Advice, "; "); strings.Contains(all, "may only read") {
				t.Errorf("%s: %q", name, all)
			}
			readOnly(s, false)
		}
	})
}
