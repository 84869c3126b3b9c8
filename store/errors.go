package store

import (
	"context"
	"errors"
	"fmt"
)

// The classes of failure. Programs match them with errors.Is, or use OutcomeOf; the text is for people.
var (
	// ErrAbsent: there is no such record. ErrExpired and ErrDestroyed match it too.
	ErrAbsent = errors.New("no such session")
	// ErrExpired: there was one, and its deadline is over.
	ErrExpired = fmt.Errorf("%w: expired", ErrAbsent)
	// ErrDestroyed: there was one, and it was deleted.
	ErrDestroyed = fmt.Errorf("%w: destroyed", ErrAbsent)

	// ErrConflict: the condition did not hold; nothing was done.
	ErrConflict = errors.New("conflict: the session was changed meanwhile")
	// ErrLocked: somebody else holds the application's lock.
	ErrLocked = fmt.Errorf("%w: locked", ErrConflict)
	// ErrBusy: another operation on this session is under way in the target; see BusyError.
	ErrBusy = fmt.Errorf("%w: an operation is under way", ErrConflict)
	// ErrLost: the marker is no longer this operation's.
	ErrLost = fmt.Errorf("%w: the marker is not ours any more", ErrConflict)

	// ErrUnavailable: the store could not be asked, or refused; the operation certainly did not happen.
	ErrUnavailable = errors.New("store unavailable")
	// ErrDown: there is no server where the store is, or one that is still loading, so that nobody else is answered either,
	// nor was when this was asked. It may come beside ErrUnknown, which is the outcome then.
	ErrDown = fmt.Errorf("%w: no server", ErrUnavailable)
	// ErrFenced: the sender's epoch is over (or the target knows no fence); certainly not executed.
	ErrFenced = fmt.Errorf("%w: fenced", ErrUnavailable)
	// ErrSealed: the origin's seal is no longer the one that the write was begun under; certainly not executed.
	ErrSealed = fmt.Errorf("%w: the origin's seal has changed", ErrUnavailable)

	// ErrUnknown: it was sent and no answer came; it may or may not have happened, or may still happen within the
	// store's bound.
	ErrUnknown = errors.New("outcome unknown")

	// ErrInvalid: this store cannot hold such a key or record, now or ever; nothing was touched.
	ErrInvalid = errors.New("not a valid session key or record")
)

// RefusedError says that what a store has under a session's key is not served as one, and why: it is too large, or not
// what the application itself would read. It matches ErrInvalid.
type RefusedError struct {
	Reason string // one of few, to count by
}

// ReasonType: it is not of the type that sessions have there: a hash in Redis, say.
const ReasonType = "type"

func (e *RefusedError) Error() string { return "refused: " + e.Reason + ": " + ErrInvalid.Error() }
func (e *RefusedError) Unwrap() error { return ErrInvalid }

// An Outcome is what an operation came to. The set is exhaustive.
type Outcome uint8

const (
	OK Outcome = iota
	OutcomeAbsent
	OutcomeConflict
	OutcomeUnavailable // certainly not executed
	OutcomeUnknown     // may or may not have happened
	OutcomeInvalid
)

func (o Outcome) String() string {
	return [...]string{"ok", "absent", "conflict", "unavailable", "unknown", "invalid"}[o]
}

// OutcomeOf classifies err. An error of no class counts as unknown, because that is what nothing may be concluded
// from.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, ErrAbsent):
		return OutcomeAbsent
	case errors.Is(err, ErrConflict):
		return OutcomeConflict
	case errors.Is(err, ErrUnknown):
		return OutcomeUnknown
	case errors.Is(err, ErrUnavailable), errors.Is(err, errors.ErrUnsupported):
		return OutcomeUnavailable
	case errors.Is(err, ErrInvalid):
		return OutcomeInvalid
	}
	return OutcomeUnknown
}

// Failed reports whether err says that the store did not do its work, as opposed to an answer such as absent or
// conflict.
func Failed(err error) bool {
	o := OutcomeOf(err)
	return o == OutcomeUnavailable || o == OutcomeUnknown
}

// Gone turns the error of a context that ended before anything was sent into ErrUnavailable, and leaves nil for one
// that goes on.
func Gone(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
