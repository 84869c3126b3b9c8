package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessile/sessile/migrate"
)

func working(seen, total int64) migrate.Status {
	return migrate.Status{Phase: migrate.DualWrite, Backfill: migrate.Job{State: "running", Seen: seen, Total: total}}
}

func TestProgressInLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{out: &b}
		p.say("off -> dual-write")
		p.update(working(0, 10_000))
		for i := range int64(20) { // 10 s, 200 sessions a second
			time.Sleep(500 * time.Millisecond)
			p.say("waiting backfill: running: and so on")
			p.update(working(100*i, 10_000))
		}
		p.update(migrate.Status{})
		p.say("in phase dual-write\x1b")
		p.end()
		got := strings.Split(strings.TrimSpace(b.String()), "\n")
		want := []string{"off -> dual-write", "backfill: 0 of about 10000 sessions (0 %)", "backfill: 900 of about 10000 sessions (9 %), 180/s, about 50s left",
			"backfill: 1900 of about 10000 sessions (19 %), 190/s, about 42s left", "in phase dual-write?"}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestWaitingIsSaidNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{out: &b}
		for range 120 {
			p.say("waiting soak: " + time.Now().Format("05.000") + "s of 1m")
			time.Sleep(100 * time.Millisecond)
		}
		p.say("waiting debt: 3 intents")
		if n := strings.Count(b.String(), "soak"); n != 3 || !strings.HasSuffix(b.String(), "debt: 3 intents\n") {
			t.Errorf("%d lines in 12 s: %s", n, b.String())
		}
	})
}

func TestProgressAsABar(t *testing.T) {
	var b bytes.Buffer
	p := &progress{out: &b, bars: true}
	p.update(working(0, 0)) // the total is not known yet
	p.update(working(500, 1000))
	time.Sleep(150 * time.Millisecond)
	p.update(working(2000, 1000)) // the estimate was too low
	p.say("a line between")
	p.end()
	if got := b.String(); !strings.Contains(got, "backfill") || !strings.Contains(got, "a line between\n") {
		t.Errorf("got %q", got)
	}
}
