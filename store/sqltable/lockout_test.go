package sqltable_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// The lock-out of docs/sql.md, as it stands there: with what it grants everything can be done, and the application's own
// user writes no more.
func TestTheLockOutAsItIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(doc), "## Who else uses the table")
	mysql, postgres, found := strings.Cut(text, "-- PostgreSQL\n")
	if !found {
		t.Fatal("the recipes are not there")
	}
	statements := func(text string) (all []string) {
		text = strings.NewReplacer("10.0.0.%", "127.0.0.1", "'...'", "'secret'").Replace(text)
		for _, line := range regexp.MustCompile(`(?m)^    ((?:CREATE|GRANT|REVOKE|RENAME) [^;]*;)`).FindAllStringSubmatch(text, -1) {
			all = append(all, line[1])
		}
		return all
	}
	srv := servers(t)
	for name, c := range map[string]struct {
		recipe        []string
		create, write string
	}{
		"MariaDB": {statements(mysql), "CREATE TABLE sessions (id VARBINARY(64) PRIMARY KEY, data BLOB NOT NULL, expires INT NOT NULL); CREATE USER app@'127.0.0.1'; " +
			"GRANT SELECT, INSERT, UPDATE, DELETE ON app.sessions TO app@'127.0.0.1'", "UPDATE sessions SET expires = expires"},
		"PostgreSQL": {statements(postgres), "CREATE USER app; CREATE TABLE sessions (id varchar(64) PRIMARY KEY, data bytea NOT NULL, expires int NOT NULL); ALTER TABLE sessions OWNER TO app",
			"UPDATE sessions SET expires = expires"},
	} {
		t.Run(name, func(t *testing.T) {
			s := srv[name]
			s.Exec(c.create)
			user := func(name string) string {
				return strings.NewReplacer("root@", name+"@", "postgres@", name+"@").Replace(s.URL("app"))
			}
			app := raw(t, user("app"))
			if _, err := app.Exec(c.write); err != nil {
				t.Fatal(err)
			}
			renamed := false
			for _, statement := range c.recipe {
				if renamed = strings.HasPrefix(statement, "RENAME"); !renamed {
					s.Exec(statement)
				}
			}
			if len(c.recipe) < 5 || renamed != (name == "MariaDB") {
				t.Errorf("recipe: %q", c.recipe)
			}
			if _, err := app.Exec(c.write); err == nil {
				t.Error("the application writes still")
			}
			st := at(t, strings.Replace(user("sessile"), "sessile@", "sessile:secret@", 1)+"?table=sessions&id=id&data=data&expires=expires")
			if f, err := st.Check(t.Context()); err != nil || len(f.Against) != 0 {
				t.Errorf("in the way: %q, %v", f.Against, err)
			}
			mark := store.Mark{Identity: "i"}
			if err := st.SwapMark(t.Context(), store.Mark{}, mark); err != nil {
				t.Error(err)
			}
			if err := st.Under(mark).Save(t.Context(), "k", hour("x"), store.Always); err != nil {
				t.Error(err)
			}
			if existed, err := st.Under(mark).Delete(t.Context(), "k", store.Always); !existed || err != nil {
				t.Error(existed, err)
			}
			ctx := within(t, 100*time.Millisecond)
			if a, err := st.Audit(ctx); err != nil || a.Blind != "" {
				t.Errorf("audit: %+v, %v", a, err)
			}
			if name != "MariaDB" {
				return
			}
			s.Exec(c.recipe[len(c.recipe)-1])
			s.Exec(regexp.MustCompile("UPDATE sessile_marks [^`]*").FindString(text))
			moved := at(t, s.URL("app")+"?table=sessions_moved&id=id&data=data&expires=expires")
			if m, err := moved.Mark(t.Context()); err != nil || m != mark {
				t.Errorf("under its new name: %+v, %v", m, err)
			}
		})
	}
}
