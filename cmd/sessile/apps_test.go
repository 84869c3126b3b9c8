package main

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/internal/testserver"
)

// The sessions of an application in its table are read by its library for Redis, through the gateway in every phase, and
// from Redis itself at the end; those of before the gateway, and those that began in any phase. Half way they are all in
// the table again.
func TestApplicationsMove(t *testing.T) {
	my, pg := testserver.MariaDB(t, "--default-time-zone=+05:30"), testserver.Postgres(t, "-c", "timezone=Asia/Kolkata")
	var n atomic.Int64
	testapp.Each(t, func(a testapp.App) bool { return !a.BySchema }, func(t *testing.T, app testapp.App, scheme string) {
		db := fmt.Sprint("db", n.Add(1))
		if scheme == "mysql" {
			my.Exec("CREATE DATABASE " + db)
			moveApp(t, app, my.URL(db))
		} else {
			pg.Exec("CREATE DATABASE " + db)
			moveApp(t, app, pg.URL(db))
		}
	})
}

func moveApp(t *testing.T, app testapp.App, url string) {
	inTable := app.Start(t, url)
	inTable.Create()
	texts := map[string]string{} // of each session by its id; "-" is logged out
	begin := func(l *testapp.Library, text string) string {
		id := app.NewID(len(texts))
		l.Write(id, text, app.Life)
		texts[id] = text
		return id
	}
	for _, text := range []string{"a", "Grüße 🍀", "c", "d", "e", "f"} {
		begin(inTable, text)
	}
	r := redis(t)
	flags := []string{"--origin", url + "?preset=" + app.Preset + app.Params, "--target", r.URL(), "--bound", "2s"}
	if app.Key != "" {
		flags = append(flags, "--origin-key", app.Key)
	}
	if app.NoTTL {
		flags = append(flags, "--lifetime", app.Life.String())
	}
	d := serve(t, flags...)
	d.migrate("create").want(t, 0, "phase off", "")
	through := app.Start(t, "redis://"+d.addr)
	all := func(where string, l *testapp.Library) {
		t.Helper()
		for id, want := range texts {
			if text, found := l.Read(id); found != (want != "-") || found && text != want {
				t.Errorf("%s: read %q, %v of %s, want %q", where, text, found, id, want)
			}
		}
	}
	// A page each that begins a session, writes to one that there was before, and ends one.
	work := func(where string) {
		t.Helper()
		all(where, through)
		kept := begin(through, where)
		through.Write(kept, where+", again", app.Life)
		texts[kept] = where + ", again"
		for id, text := range texts {
			if len(text) == 1 && text != "-" {
				through.Destroy(id)
				texts[id] = "-"
				break
			}
		}
		all(where, through)
	}
	work("off")
	for _, phase := range []string{"dual-write", "sync", "live", "ramp-down"} {
		d.migrate("switchtraffic", "--window", "300ms").want(t, 0, "phase "+phase, "")
		work(phase)
	}
	d.migrate("reversetraffic", "--to", "off").want(t, 0, "phase off", "")
	all("back in the table", inTable)
	d.migrate("switchtraffic", "--to", "ramp-down", "--window", "300ms").want(t, 0, "phase ramp-down", "")
	d.migrate("complete", "--yes").want(t, 0, "phase complete", "")
	work("complete")
	inRedis := app.Start(t, r.URL())
	all("in Redis itself", inRedis)
	for id, text := range texts {
		if left := r.Do("PTTL", app.Key+id).(int64); text != "-" && time.Duration(left)*time.Millisecond < app.Life-5*time.Minute {
			t.Errorf("a session ends in %d ms, want %v", left, app.Life)
		}
	}
}
