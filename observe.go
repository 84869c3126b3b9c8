package sessile

import (
	"context"
	"log/slog"
	"time"
)

// An EventKind says what has happened.
type EventKind string

// What Options.Observe is told. Those with a duration are operations, whose Err says that they have failed.
const (
	EventLoad   EventKind = "load"   // a session was looked for (duration)
	EventCreate EventKind = "create" // one was saved for the first time (duration)
	EventSave   EventKind = "save"   // one was saved (duration)
	EventTouch  EventKind = "touch"  // one was extended (duration)
	EventLogin  EventKind = "login"  // somebody has logged in (duration)
	EventRenew  EventKind = "renew"  // a session was given a new token (duration)
	EventLogout EventKind = "logout" // a session was destroyed by its user (duration)
	EventRevoke EventKind = "revoke" // one was destroyed from elsewhere, or because there were too many
	EventAdopt  EventKind = "adopt"  // one of an Origin was looked for, and taken over (duration)

	EventConflict    EventKind = "conflict"    // another request has changed the session meanwhile, and the change was made once more, on that
	EventGone        EventKind = "gone"        // another request has destroyed it meanwhile, and the change was dropped
	EventUndecodable EventKind = "undecodable" // what lies in the store cannot be read, and counts as none (Err says why)
	EventRefused     EventKind = "refused"     // a cookie or header that has not the form of a token, or two that differ: somebody may be trying something
)

// An Event is told to Options.Observe. It has neither tokens nor values.
type Event struct {
	Kind EventKind
	// Key is the session's in the store, "" where there is none.
	Key Key
	// Start is when an operation began, and Duration how long it took, its calls of the store included; both are zero for other events.
	Start    time.Time
	Duration time.Duration
	Err      error
}

func (m *Manager[T]) saw(ctx context.Context, kind EventKind, key Key, start time.Time, err error) {
	if m.opt.Observe == nil {
		return
	}
	e := Event{Kind: kind, Key: key, Start: start, Err: err}
	if !start.IsZero() {
		e.Duration = time.Since(start)
	}
	m.opt.Observe(ctx, e)
}

// Log returns an Options.Observe that writes a line to l for each event: operations at slog.LevelDebug, those that have failed and what
// concerns security (a login, a logout, a token that is none) at slog.LevelInfo. A session is named by its key, of which no cookie can be made.
func Log(l *slog.Logger) func(ctx context.Context, e Event) {
	return func(ctx context.Context, e Event) {
		level := slog.LevelInfo
		switch e.Kind {
		case EventLoad, EventCreate, EventSave, EventTouch, EventConflict:
			if e.Err == nil {
				level = slog.LevelDebug
			}
		}
		if !l.Enabled(ctx, level) {
			return
		}
		attrs := []slog.Attr{slog.String("event", string(e.Kind))}
		if e.Key != "" {
			attrs = append(attrs, slog.String("session", string(e.Key)))
		}
		if e.Duration > 0 {
			attrs = append(attrs, slog.Duration("took", e.Duration))
		}
		if e.Err != nil {
			attrs = append(attrs, slog.Any("error", e.Err))
		}
		l.LogAttrs(ctx, level, "session", attrs...)
	}
}
