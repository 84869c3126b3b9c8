package testserver

import (
	"net/http"
	"strings"
	"testing"
)

// The servers of a site have their sessions where their configuration says, and name the cookie alike.
func TestRT(t *testing.T) {
	my, redis := MariaDB(t), Redis(t)
	site := RT(t, my, "alice")
	table := site.Server(1, "")
	other := site.Server(2, `Set($WebSessionClass, 'Apache::Session::Redis'); Set(%WebSessionProperties, server => '`+redis.Addr+`');`)
	var cookies []string
	for _, s := range []*RTServer{table, other} {
		resp, err := http.Get("http://" + s.Addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || len(resp.Cookies()) != 1 {
			t.Fatalf("got %s, cookies %v\n%s", resp.Status, resp.Cookies(), s.Log())
		}
		cookies = append(cookies, resp.Cookies()[0].Name)
		id := resp.Cookies()[0].Value
		inTable := my.Exec("SELECT COUNT(*) FROM rt5.sessions WHERE id = '"+id+"'") == "1"
		value, _ := redis.Do("GET", id).(string)
		if inTable != (s == table) || strings.HasPrefix(value, "BQ") != (s == other) {
			t.Errorf("in the table: %v, in Redis: %q", inTable, value)
		}
	}
	if cookies[0] != cookies[1] {
		t.Errorf("cookies are named %q", cookies)
	}
}

func TestRTOnPostgres(t *testing.T) {
	pg := Postgres(t)
	s := RT(t, pg, "alice").Server(1, "")
	resp, err := http.Get("http://" + s.Addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	out, err := pg.Try("rt5", "SELECT count(*) FROM sessions WHERE convert_from(a_session, 'UTF8') LIKE 'BQ%'")
	if err != nil || out == "0" {
		t.Errorf("%s sessions, %v\n%s", out, err, s.Log())
	}
}
