package sqltable_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testapp"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// eachApp runs test for every application that it is for, with its library on a table that it has made. The servers are in
// a time zone of their own, with half an hour, so that a time that is read in another one shows.
func eachApp(t *testing.T, of func(testapp.App) bool, test func(t *testing.T, app testapp.App, url string, lib *testapp.Library)) {
	servers := map[string]server{"mysql": testserver.MariaDB(t, "--default-time-zone=+05:30"), "postgres": testserver.Postgres(t, "-c", "timezone=Asia/Kolkata")}
	testapp.Each(t, of, func(t *testing.T, app testapp.App, scheme string) {
		db := fmt.Sprint("db", number.Add(1))
		servers[scheme].Exec("CREATE DATABASE " + db)
		url := servers[scheme].URL(db)
		lib := app.Start(t, url)
		lib.Create()
		test(t, app, url+"?preset="+app.Preset+app.Params, lib)
	})
}

// texts are what sessions keep; the large one is larger than most.
var texts = map[string]string{
	"plain":     "hello",
	"non-ASCII": "Grüße, \"€\" \\ 🍀 \u2028\t\n",
	"large":     strings.Repeat("0123456789 äöü ", 2500),
	"empty":     "",
}

// What an application's own library wrote in its table is what the one for Redis reads once it is there, and the other way
// round; and both agree about when it ends.
func TestApplications(t *testing.T) {
	redis := testserver.Redis(t)
	every := func(testapp.App) bool { return true }
	eachApp(t, every, func(t *testing.T, app testapp.App, url string, lib *testapp.Library) {
		s := at(t, url)
		inRedis := app.Start(t, redis.URL())
		ids := map[string]string{}
		id := func(name string) string {
			if ids[name] == "" {
				ids[name] = app.NewID(int(number.Add(1)))
			}
			return ids[name]
		}
		load := func(name string) (store.Record, error) { return s.Load(t.Context(), id(name)) }
		reads := func(who string, l *testapp.Library, name, want string) {
			t.Helper()
			if got, found := l.Read(id(name)); !found || got != want {
				t.Errorf("%s reads %.80q, %v of %s, want %.80q", who, got, found, name, want)
			}
		}
		// From the table to Redis.
		for name, text := range texts {
			if text == "" && app.NoEmpty {
				continue
			}
			lib.Write(id(name), text, app.Life)
			reads("the library", lib, name, text)
			rec, err := load(name)
			if err != nil {
				t.Fatalf("Load of %s: %v", name, err)
			}
			if left := time.Until(rec.Expires); left > app.Life+time.Second || left < app.Life-5*time.Second {
				t.Errorf("%s lives for %v, want %v", name, left, app.Life)
			}
			redis.Do("SET", app.Key+id(name), string(rec.Data), "PX", "60000")
			reads("the library for Redis", inRedis, name, text)
		}
		if found, err := s.Check(t.Context()); err != nil || len(found.Against) > 0 {
			t.Errorf("Check: %q, %v", found.Against, err)
		}

		// From Redis to the table, a row that is new and one that is there.
		body := func(text string) []byte {
			t.Helper()
			id := app.NewID(int(number.Add(1)))
			inRedis.Write(id, text, app.Life)
			return []byte(redis.Do("GET", app.Key+id).(string))
		}
		save := func(name, text string, life time.Duration, cond store.Condition) {
			t.Helper()
			if err := s.Save(t.Context(), id(name), store.Record{Data: body(text), Expires: time.Now().Add(life)}, cond); err != nil {
				t.Fatalf("Save of %s: %v", name, err)
			}
		}
		ours := maps.Clone(texts)
		if app.Latin1 {
			ours["non-ASCII"] = "Grüße"
		}
		for name, text := range ours {
			if text == "" && app.NoEmpty {
				continue
			}
			save(name+", ours", text, app.Life, store.IfAbsent)
			reads("the library", lib, name+", ours", text)
		}
		rec, err := load("plain")
		must(t, "Load", err)
		save("plain", "another", app.Life, store.IfVersion(rec.Version()))
		reads("the library", lib, "plain", "another")
		late := store.Record{Data: body("late"), Expires: time.Now().Add(app.Life)}
		if err := s.Save(t.Context(), id("plain"), late, store.IfVersion(rec.Version())); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Save over another version: %v", err)
		}
		if page, err := s.Scan(t.Context(), "", 0); !app.Hashed && (err != nil || !slices.Contains(page.Keys, id("plain"))) {
			t.Errorf("Scan: %q, %v", page.Keys, err)
		}

		// Rows that we made, wrote and touched end for the library when they do for us; so do its own for us.
		const short = 3 * time.Second
		over := map[string]time.Time{}
		ends := func(name string) { over[name] = time.Now().Add(short) }
		if !app.OneLife {
			lib.Write(id("theirs"), "x", short)
			ends("theirs")
		}
		save("made", "x", short, store.IfAbsent)
		ends("made")
		if app.Fixed {
			save("kept", "x", app.Life, store.IfAbsent)
		} else {
			lib.Write(id("written"), "x", app.Life)
			save("written", "y", short, store.IfPresent)
			ends("written")
			lib.Write(id("touched"), "x", app.Life)
			must(t, "Touch", s.Touch(t.Context(), id("touched"), time.Now().Add(short)))
			ends("touched")
			save("kept", "x", short, store.IfAbsent)
			must(t, "Touch", s.Touch(t.Context(), id("kept"), time.Now().Add(app.Life)))
		}
		libHas := func(name string) bool { _, found := lib.Read(id(name)); return found }
		weHave := func(name string) bool { _, err := load(name); return !errors.Is(err, store.ErrAbsent) }
		ended := map[string]time.Duration{} // for whom what had ended, after its deadline
		for last := time.Now().Add(short + 2*time.Second); time.Now().Before(last) && len(ended) < 2*len(over); time.Sleep(20 * time.Millisecond) {
			for name, end := range over {
				for who, has := range map[string]func(string) bool{"the library": libHas, "us": weHave} {
					if _, known := ended[name+" for "+who]; !known && !has(name) {
						ended[name+" for "+who] = time.Since(end)
					}
				}
			}
		}
		for what, off := range ended {
			if off < -1500*time.Millisecond || app.Lazy {
				t.Errorf("%s ended %v after its deadline", what, off)
			}
		}
		if len(ended) < 2*len(over) && !app.Lazy {
			t.Errorf("only these ended: %v", ended)
		}

		// Its own collection takes those, and leaves the others.
		lib.Collect()
		for name := range over {
			if rec, err := s.Inspect(t.Context(), id(name)); libHas(name) || !errors.Is(err, store.ErrAbsent) {
				t.Errorf("its collection left %s: %.80q, %v", name, rec.Data, err)
			}
		}
		reads("the library", lib, "kept", "x")
		for name, text := range ours {
			if text == "" && app.NoEmpty {
				continue
			}
			reads("the library", lib, name+", ours", text)
		}

		// Logouts.
		if existed, err := s.Delete(t.Context(), id("kept"), store.Always); !existed || err != nil {
			t.Errorf("Delete: %v, %v", existed, err)
		}
		if text, found := lib.Read(id("kept")); found {
			t.Errorf("the library reads %.80q of what we deleted", text)
		}
		lib.Destroy(id("large"))
		if _, err := load("large"); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("Load of what the library destroyed: %v", err)
		}
	})
}
