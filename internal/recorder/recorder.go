// Package recorder judges a run from outside: it notes what clients were answered, and compares every later answer, and
// what plain clients find in the stores at the end, with that. It knows nothing of how sessions are kept.
//
// A session belongs to a visitor who is logged in under one id until the logout. Every acknowledged page adds an item
// that no other page adds, so a session is a growing set, and what is missing from it was lost.
package recorder

import (
	"fmt"
	"sync"
	"time"
)

// Recorder notes answers. It is safe for concurrent use.
type Recorder struct {
	mu       sync.Mutex // guards what follows
	sessions map[string]*session
	report   Report
}

type session struct {
	mu       sync.Mutex // guards what follows
	loggedIn time.Time  // when the login was acknowledged
	leaving  bool       // a logout has begun: absence is no surprise any more
	left     time.Time  // when the logout was acknowledged
	items    map[string]time.Time
	lost     map[string]bool
	out      bool // counted as logged out
	undone   bool // counted as undone
}

// Report is what was found. A run is good if the three in the middle are 0.
type Report struct {
	Users         int      `json:"users"`    // sessions that were ever logged in
	Requests      int64    `json:"requests"` // answers noted
	LoggedOut     int      `json:"logged_out"`
	LogoutsUndone int      `json:"logouts_undone"`
	LostUpdates   int      `json:"lost_updates"`
	Failures      int64    `json:"failures"` // requests that were answered with an error: nothing is concluded from them
	Examples      []string `json:"examples,omitempty"`
}

// Bad reports whether anything was lost.
func (r Report) Bad() bool { return r.LoggedOut+r.LogoutsUndone+r.LostUpdates > 0 }

// New returns an empty recorder.
func New() *Recorder { return &Recorder{sessions: map[string]*session{}} }

func (r *Recorder) session(id string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[id]
	if s == nil {
		s = &session{items: map[string]time.Time{}, lost: map[string]bool{}}
		r.sessions[id] = s
	}
	return s
}

func (r *Recorder) count(f func(*Report), example string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.report)
	if example != "" && len(r.report.Examples) < 20 {
		r.report.Examples = append(r.report.Examples, fmt.Sprintf(example, args...))
	}
}

// LoggedIn notes an acknowledged login: from now on the session has to be there.
func (r *Recorder) LoggedIn(id string) {
	s := r.session(id)
	s.mu.Lock()
	s.loggedIn = time.Now()
	s.mu.Unlock()
	r.count(func(p *Report) { p.Users++; p.Requests++ }, "")
}

// Wrote notes an acknowledged page that added item.
func (r *Recorder) Wrote(id, item string) {
	s := r.session(id)
	s.mu.Lock()
	s.items[item] = time.Now()
	s.mu.Unlock()
	r.count(func(p *Report) { p.Requests++ }, "")
}

// Leaving notes that a logout is about to be asked for.
func (r *Recorder) Leaving(id string) {
	s := r.session(id)
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
}

// Left notes an acknowledged logout: from now on the session must never be seen again.
func (r *Recorder) Left(id string) {
	s := r.session(id)
	s.mu.Lock()
	s.left = time.Now()
	s.mu.Unlock()
	r.count(func(p *Report) { p.Requests++ }, "")
}

// Failed notes a request that was answered with an error.
func (r *Recorder) Failed() { r.count(func(p *Report) { p.Requests++; p.Failures++ }, "") }

// Saw judges a page that was asked for at begun and answered with what it found: whether there was a session, and the
// items in it. where says who looked.
func (r *Recorder) Saw(id string, begun time.Time, found bool, items []string, where string) {
	s := r.session(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.count(func(p *Report) { p.Requests++ }, "")
	short := id[:min(4, len(id))]
	switch {
	case found && !s.left.IsZero() && begun.After(s.left):
		if !s.undone {
			s.undone = true
			r.count(func(p *Report) { p.LogoutsUndone++ }, "%s: %s... logged out at %s, seen again at %s",
				where, short, s.left.Format("05.000"), begun.Format("05.000"))
		}
	case !found && !s.leaving && !s.loggedIn.IsZero() && begun.After(s.loggedIn):
		if !s.out {
			s.out = true
			r.count(func(p *Report) { p.LoggedOut++ }, "%s: %s... logged in at %s, not found at %s",
				where, short, s.loggedIn.Format("05.000"), begun.Format("05.000"))
		}
	case found && !s.leaving:
		there := make(map[string]bool, len(items))
		for _, item := range items {
			there[item] = true
		}
		for item, at := range s.items {
			if at.Before(begun) && !there[item] && !s.lost[item] {
				s.lost[item] = true
				r.count(func(p *Report) { p.LostUpdates++ }, "%s: %s... item %s, acknowledged at %s, missing at %s",
					where, short, item, at.Format("05.000"), begun.Format("05.000"))
			}
		}
	}
}

// Look is how a plain client reads a session from a store, past everything of ours.
type Look func(id string) (found bool, items []string, err error)

// Final judges what plain clients find at the end.
func (r *Recorder) Final(where string, look Look) error {
	r.mu.Lock()
	ids := make([]string, 0, len(r.sessions))
	for id := range r.sessions {
		ids = append(ids, id)
	}
	r.mu.Unlock()
	for _, id := range ids {
		begun := time.Now()
		found, items, err := look(id)
		if err != nil {
			return err
		}
		r.Saw(id, begun, found, items, where)
	}
	return nil
}

// Report returns what was found so far.
func (r *Recorder) Report() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.report
	p.Examples = append([]string(nil), p.Examples...)
	return p
}
