package store

import (
	"context"
	"time"
)

// What some stores can do besides, each in an interface of its own. Who wants it asks for it by a type assertion, and does without
// where it is not there.

// A Batcher saves several records in one step. It finds keys that begin with the same {tag} in one place, wherever it keeps
// records in several.
type Batcher interface {
	// SaveAll saves all of writes if the conditions of all of them hold, and answers ErrConflict, with nothing done, if not. It is
	// one step: nobody sees some of them, and no failure leaves some. No two are for one key. Where the keys lie in several places
	// it answers errors.ErrUnsupported, with nothing done.
	SaveAll(ctx context.Context, writes []Write) error
}

// A Write is what one Save would do.
type Write struct {
	Key       string
	Record    Record
	Condition Condition
}

// An Appender adds to a record that it has not read.
type Appender interface {
	// Append puts data behind what lies under key, or makes a record of it where there is none, and has the record last until
	// expires, or longer if it does already. It returns what there is then. One of unknown outcome may be in there or not.
	Append(ctx context.Context, key string, data []byte, expires time.Time) (Record, error)
}

// A Tracker says when a copy of a record is not good any more.
type Tracker interface {
	// Track returns what loads records as Load does, and has changed called when a record that it has loaded changes or goes away,
	// whoever does it, as soon as the store hears of it, and with "" when the store may have missed such news, about any of them.
	// The call may come before load returns, never later than a load that has seen the change; it must be quick, and call nothing
	// of the store. A deadline that has passed need not be told. It ends when stop is called. Where the store was not opened to
	// track it answers errors.ErrUnsupported.
	Track(changed func(key string)) (load func(ctx context.Context, key string) (Record, error), stop func(), err error)
}
