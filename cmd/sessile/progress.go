package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"

	"github.com/sessile/sessile/migrate"
)

// progress shows what a command says and how far the workers are: bars on a terminal, lines now and then elsewhere.
type progress struct {
	out  io.Writer
	bars bool

	mu       sync.Mutex // guards what follows
	bar      *progressbar.ProgressBar
	job      string // that runs; "": none
	since    time.Time
	base     int64
	lastLine time.Time // of the job, or of a line that says what is waited for
	waiting  string    // that line without its numbers
}

const lineEvery = 5 * time.Second

// say prints a line. What is waited for changes its numbers all the time, so such a line comes now and then only, and
// not at all where a worker's own progress says the same.
func (p *progress) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.HasPrefix(line, "waiting") {
		form := strings.Map(func(r rune) rune {
			if unicode.IsDigit(r) || r == '.' {
				return -1
			}
			return r
		}, line)
		if p.job != "" || form == p.waiting && time.Since(p.lastLine) < lineEvery {
			return
		}
		p.waiting, p.lastLine = form, time.Now()
	}
	p.clear()
	fmt.Fprintln(p.out, clean(line))
}

// update shows how far the worker is that runs, if one does.
func (p *progress) update(st migrate.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, j := "", migrate.Job{}
	switch {
	case st.Backfill.State == "running":
		name, j = "backfill", st.Backfill
	case st.Reconcile.State == "running":
		name, j = "reconcile", st.Reconcile
	}
	if name != p.job {
		p.clear()
		p.bar, p.job, p.since, p.base, p.lastLine = nil, name, time.Now(), j.Seen, time.Time{}
	}
	if name == "" {
		return
	}
	total := max(j.Total, j.Seen) // an estimate, and reconcile walks over both stores
	if p.bars {
		if p.bar == nil {
			p.bar = progressbar.NewOptions64(max(total, 1), progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(name),
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("sessions"),
				progressbar.OptionSetPredictTime(true), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
		}
		p.bar.ChangeMax64(max(total, 1))
		_ = p.bar.Set64(j.Seen) // a terminal that is gone
		return
	}
	if time.Since(p.lastLine) < lineEvery {
		return
	}
	p.lastLine = time.Now()
	fmt.Fprintln(p.out, jobLine(name, j, float64(j.Seen-p.base)/time.Since(p.since).Seconds()))
}

// jobLine says how far a worker is at rate sessions a second.
func jobLine(name string, j migrate.Job, rate float64) string {
	line := fmt.Sprintf("%s: %d", name, j.Seen)
	if j.Total > 0 {
		line += fmt.Sprintf(" of about %d sessions (%d %%)", j.Total, min(100, 100*j.Seen/j.Total))
	} else {
		line += " sessions"
	}
	if rate >= 1 {
		line += fmt.Sprintf(", %.0f/s", rate)
		if left := j.Total - j.Seen; left > 0 {
			line += fmt.Sprintf(", about %v left", (time.Duration(float64(left)/rate) * time.Second).Round(time.Second))
		}
	}
	return line
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.bar = nil
}

// clear takes the bar off the line. Callers hold mu.
func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
