// Package store is the contract between those who keep sessions and those who ask for them.
// Back ends and wrappers implement Store; the engine, the gateway and the library only call it.
//
// Three interfaces, each a superset of what the one before can do:
//
//   - Store: a place that keeps sessions.
//   - Origin: a store that sessions can be moved away from (identity and seal).
//   - Target: a store that sessions can be moved to (control record, fence, leases, markers).
package store

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"math"
	"time"
)

// Store keeps records under keys. Implementations are safe for concurrent use.
//
// Keys are hostile bytes: a store validates or encodes them before use and answers ErrInvalid for a key that it
// cannot hold, without having touched anything. Every method honours ctx; an operation has a hard bound of the
// store's own besides. A store that is asked for something that its Capabilities exclude answers
// errors.ErrUnsupported.
//
// Errors match one of the classes of Outcome. A failure is never ErrAbsent.
type Store interface {
	// Capabilities says what this store can do, so that a use that cannot work is refused early. It does not change.
	Capabilities() Capabilities

	// Load returns the live record under key, or an error matching ErrAbsent when there is none: never saved,
	// expired or deleted. Record.Expires is filled where it costs nothing and is otherwise zero: see Inspect.
	// A store with LazyExpiry returns overdue records that it still holds, with Expires in the past. The caller may
	// modify Record.Data. Where another process is in the middle of a write, Load waits for it.
	Load(ctx context.Context, key string) (Record, error)

	// Inspect is Load with Expires filled, whatever that costs. A zero Expires then means: no deadline.
	Inspect(ctx context.Context, key string) (Record, error)

	// Save stores rec under key if cond holds, and answers ErrConflict, with nothing done, if not. Data may be empty:
	// an empty record is not an absent one. Expires must lie in the future: there are no sessions without a
	// deadline, and one that is over is refused with ErrInvalid. The store does not keep rec.Data.
	Save(ctx context.Context, key string, rec Record, cond Condition) error

	// Touch moves the deadline of the record under key, never its data. It answers ErrAbsent, and creates nothing,
	// where there is no record.
	Touch(ctx context.Context, key string, expires time.Time) error

	// Delete removes the record under key if cond holds. To delete nothing is no error: existed says whether there
	// was something.
	Delete(ctx context.Context, key string, cond Condition) (existed bool, err error)

	// Scan returns the next keys after cursor: "" begins, and Page.Cursor "" ends. A key that is there during the
	// whole scan is returned at least once; others may be, and twice. limit is a hint.
	Scan(ctx context.Context, cursor string, limit int) (Page, error)

	// Lock takes the application's lock on key for token, for at most life: the lock that other clients of this
	// store take, outside Sessile, too (a file's flock, `key_LOCK` in Redis). It waits for the lock until ctx is done
	// and answers ErrLocked if somebody else has it then, be it with the same token. The lock excludes other lockers,
	// not reads and writes through this store. Locks are addressed by key and token, because a lock that lies in
	// the store outlives the process that took it.
	Lock(ctx context.Context, key, token string, life time.Duration) error

	// Unlock releases the lock on key if token holds it.
	Unlock(ctx context.Context, key, token string) (held bool, err error)

	// LockHolder returns the token that holds the lock on key, or "" where nobody does (as far as this store can
	// know: who holds a flock cannot be known), and the life that is left, 0 where that is not known.
	LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error)

	// Close releases what Open acquired and returns when the store's goroutines have ended. It may be called twice.
	Close() error
}

// Capabilities of a store. The zero value can do nothing but Load, Save with Always, Touch and Delete.
type Capabilities struct {
	Scan        bool // Scan lists every key
	Conditional bool // Save and Delete compare and write in one step
	NativeTTL   bool // records go away by themselves at their deadline
	LazyExpiry  bool // overdue records stay until collected, and are live until then
	Lock        bool // Lock, Unlock, LockHolder
	Seal        bool // is an Origin that keeps identity and seal
	Ageless     bool // does not know how old a record is, or does not move its deadline: Expires is no evidence
	Flags       bool // keeps Record.Flags
	NarrowKeys  bool // takes keys of A-Z a-z 0-9 , and - only
}

// A Record is one session as a store keeps it.
type Record struct {
	Data    []byte
	Expires time.Time // the deadline; zero where Load does not know it
	Flags   uint32    // memcached client flags; 0 everywhere else
}

// Version computes the record's version; a nil record is an absent one. It costs a digest of Data.
func (r *Record) Version() Version {
	if r == nil {
		return Absent
	}
	return VersionOf(r.Data, r.Flags)
}

// Remaining is the time from now to the deadline, rounded up to a millisecond, the finest step that a store keeps:
// rounding down would end a session before its time. A deadline further away than a Duration reaches is as far as that.
func (r Record) Remaining(now time.Time) time.Duration {
	d := r.Expires.Sub(now) // saturates
	if d > math.MaxInt64-time.Millisecond {
		return d.Truncate(time.Millisecond)
	}
	if rest := d % time.Millisecond; rest > 0 {
		d += time.Millisecond - rest
	}
	return d
}

// Version identifies a record's content. It is the same in every store, since applications' values carry no stamp of
// ours: the lower-case hex SHA-1 of Data (what Redis can compute in a script), with the Flags before it where they are not 0:
// see Flagged. The empty Version is the version of an absent record.
type Version string

// Absent is the version of what is not there.
const Absent Version = ""

// VersionOf computes the version of a record.
func VersionOf(data []byte, flags uint32) Version {
	sum := sha1.Sum(Flagged(data, flags))
	var b [2 * sha1.Size]byte
	hex.Encode(b[:], sum[:])
	return Version(b[:])
}

// A Condition says what a write expects to replace. The zero value is Always.
type Condition struct {
	kind    conditionKind
	version Version
}

type conditionKind uint8

const (
	always conditionKind = iota
	ifAbsent
	ifPresent
	ifVersion
)

// Always replaces whatever is there.
var Always = Condition{}

// IfAbsent creates and never overwrites.
var IfAbsent = Condition{kind: ifAbsent}

// IfPresent overwrites and never creates.
var IfPresent = Condition{kind: ifPresent}

// IfVersion replaces exactly v; IfVersion(Absent) is IfAbsent.
func IfVersion(v Version) Condition {
	if v == Absent {
		return IfAbsent
	}
	return Condition{kind: ifVersion, version: v}
}

// Holds reports whether the condition holds for a record of version v (Absent for none).
func (c Condition) Holds(v Version) bool {
	switch c.kind {
	case ifAbsent:
		return v == Absent
	case ifPresent:
		return v != Absent
	case ifVersion:
		return v == c.version
	}
	return true
}

// Encode returns the condition in the form that scripts compare: "*" always, "-" absent, "+" present, else the
// version.
func (c Condition) Encode() string {
	switch c.kind {
	case ifAbsent:
		return "-"
	case ifPresent:
		return "+"
	case ifVersion:
		return string(c.version)
	}
	return "*"
}

// A Page is one step of a Scan.
type Page struct {
	Keys   []string
	Cursor string // where to go on; "" at the end
	// Skipped counts, by reason, what lay there and is no session of this store (a symbolic link, a foreign name).
	Skipped map[string]int
	// Total is the number of entries in all, where the store can tell cheaply; 0 where not.
	Total int
}
