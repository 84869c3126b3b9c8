package store

import (
	"context"
	"fmt"
	"time"
)

// Target is a store that sessions are moved to. Beside the sessions it keeps the workflow's records and, only while
// something about a session is unsettled, a marker under a side key of its own. Redis and memory implement it.
type Target interface {
	Store

	// Workflow opens the records of one workflow. It makes nothing: they exist once somebody writes them. The target
	// counts the steps of each handle that is opened so, which is how a handle finds out that steps were forgotten.
	Workflow(name string) Workflow

	// Workflows lists the workflows that have a control record here.
	Workflows(ctx context.Context) ([]string, error)

	// Instance identifies the running server, in a way that a restart changes (Redis: run_id).
	Instance(ctx context.Context) (string, error)

	// Generation changes, before the first answer of the new connection is seen, whenever this store may have become
	// another one: a connection was made anew. An attempt at one that fails changes nothing. It asks nobody.
	Generation() uint64
}

// Workflow is what a target keeps for one migration. Every method is one atomic step in the target.
//
// What takes an Op or an epoch is fenced: it does nothing and answers ErrFenced where the epoch is below the fence or
// where there is no fence. So does what takes one key where the target knows of fewer steps of this handle than it has
// answered: it has come back with an older memory, and Renew will say so. Where that memory is in parts (a Cluster's
// shards), those steps count that were answered where the key lies.
type Workflow interface {
	// Control returns the control record, nil where there is none. The bytes are the engine's own.
	Control(ctx context.Context) ([]byte, error)
	// SwapControl replaces the control record by compare-and-set, nil standing for none; ErrConflict if old is not
	// what is there.
	SwapControl(ctx context.Context, old, next []byte) error

	// Fence returns the lowest epoch that may still write; 0 where there is no fence.
	Fence(ctx context.Context) (uint64, error)
	// RaiseFence sets the fence to epoch; it never lowers it.
	RaiseFence(ctx context.Context, epoch uint64) error

	// Renew gives gateway a lease for life from now, by the target's clock, notes info beside it, and returns the
	// control record as it is at that moment. A lease does not go away at its end: it is over, and listed as such.
	Renew(ctx context.Context, gateway string, info []byte, life time.Duration) (Renewal, error)
	// Accept goes on with the target's memory as it is: the steps of this handle are counted anew, and Renew does not say
	// any more that some were forgotten. It asks nobody.
	Accept()
	// Leases lists all leases, those that are over included.
	Leases(ctx context.Context) ([]Lease, error)
	// DropLease forgets a lease that is over. One that is not is ErrConflict: its gateway goes by it.
	DropLease(ctx context.Context, gateway string) error
	// Leave is by the gateway itself, for good: its lease is forgotten, over or not, and so are the steps of this handle.
	Leave(ctx context.Context, gateway string) error

	// LoadMarked reads the record and its marker in one step. An absent record is nil, not an error, since the marker
	// may say more. Expires is filled where it costs nothing. Where there is no fence it answers ErrFenced: a target
	// that was emptied must not be taken for one in which nobody is logged in.
	LoadMarked(ctx context.Context, key string) (*Record, Marker, error)

	// Begin makes op's intent on key, or takes over a dead marker. It answers a *BusyError where the marker of another
	// operation lives. A dead Ahead stays ahead, with op as its owner. A Begin that is repeated with the same op
	// renews op's lease on what it took the first time.
	Begin(ctx context.Context, key string, op Op) (Begun, error)
	// Settle is Begin for those who only clean up: where there is no marker it does nothing and answers ErrAbsent.
	Settle(ctx context.Context, key string, op Op) (Begun, error)
	// Commit makes rec (nil: absence) the value and removes op's intent; ErrLost if the intent is not op's any more.
	Commit(ctx context.Context, key string, op Op, rec *Record) error
	// CommitRead is Commit of what was read in the origin. Where the target holds the same data for longer, that deadline
	// stays: a touch has come between.
	CommitRead(ctx context.Context, key string, op Op, rec *Record) error
	// Withdraw removes op's intent and changes nothing else. One that is not op's stays, without error.
	Withdraw(ctx context.Context, key string, op Op) error

	// WriteAhead makes rec (nil: absence) the value, if cond holds for what is there, and marks it ahead, one version
	// further; a *BusyError where an intent lives, and under any condition but Always also where a dead one is left
	// (Left is 0 or less then): the origin decides what is there until that is settled. A living ahead keeps its owner: then Ahead.Mine is false, and that
	// owner propagates.
	WriteAhead(ctx context.Context, key string, op Op, rec *Record, cond Condition) (Ahead, error)
	// MarkAhead marks the value ahead as it stands; ErrAbsent where there is none. Where there is an intent it answers a
	// *BusyError, even for a dead one (Left is 0 or less then): the origin decides until that is settled.
	MarkAhead(ctx context.Context, key string, op Op) (Ahead, error)
	// Propagated removes op's ahead marker if it is still at version; otherwise it returns the version and value that
	// are there now, to be propagated again, and renews the lease. ErrLost if the marker is not op's any more.
	Propagated(ctx context.Context, key string, op Op, version uint64) (Ahead, bool, error)

	// SaveLast writes rec (nil: absence) if cond holds and removes whatever marker there is: the write of phase
	// complete while gateways of ramp-down may exist. It returns whether something had been there.
	SaveLast(ctx context.Context, key string, epoch uint64, rec *Record, cond Condition) (existed bool, err error)

	// TouchMarked moves the deadline of the value, if there is one. It leaves the marker and reports both.
	TouchMarked(ctx context.Context, key string, epoch uint64, expires time.Time) (present bool, m Marker, err error)

	// Copy makes rec (nil: absence) the value where there is no marker, and does nothing where there is one: the
	// unguarded copy of dual-write.
	Copy(ctx context.Context, key string, epoch uint64, rec *Record) error
	// Add stores each entry that has neither value nor marker yet, and reports which it stored.
	Add(ctx context.Context, epoch uint64, entries []Entry) (stored []bool, err error)
	// Same reports for each entry whether the target holds the same data and no marker (or, for a nil or overdue Record,
	// neither value nor marker). Where it does and the entry's deadline is the later one, or the target holds none, that
	// becomes the deadline. Same never moves a deadline back: the entry was read some time ago, and the user may have
	// touched the session in both stores since. Where the target's deadline is later by more than DeadlineSlack, the
	// two are not the same, and nothing is changed: somebody has to look under an intent.
	Same(ctx context.Context, epoch uint64, entries []Entry) (same []bool, err error)
	// Remove deletes values and markers.
	Remove(ctx context.Context, epoch uint64, keys []string) (removed int, err error)

	// Unsettled counts the markers (intents and aheads; gone does not count), and lists up to limit of them, those
	// whose lease ends first at the front.
	Unsettled(ctx context.Context, limit int) (Unsettled, error)

	// Purge removes what is left of the workflow except the control record: markers, fence, leases and steps. It does
	// nothing, and answers ErrConflict, where control is not the record that is there: a Purge that was sent long ago must
	// not take away what another workflow of that name has.
	Purge(ctx context.Context, control []byte) error
}

// An Op identifies one operation to the target's scripts.
type Op struct {
	Nonce string        // fresh for every operation, never a gateway's name: a restarted gateway must not inherit its own past
	Epoch uint64        // the sender's
	Lease time.Duration // how long the marker lives from its making, by the target's clock
}

// DeadlineSlack is how much later than an entry's deadline the target's may be where Same calls them the same: stores
// round up, some of them to seconds, and clocks and the network add their share.
const DeadlineSlack = 5 * time.Second

// An Entry is a session in a batch.
type Entry struct {
	Key    string
	Record *Record // nil: absent
}

// A Lease is a gateway's right to serve by the control record.
type Lease struct {
	Gateway string
	Left    time.Duration // by the target's clock; 0 or less: over
	Until   time.Time     // its end by the clock of the target that gave it
	Info    []byte        // the gateway's own report
}

// A Renewal is the answer to Renew.
type Renewal struct {
	Control []byte
	// Forgot: the target does not know the last step that it had answered to this handle (Begin, Commit, CommitRead,
	// WriteAhead, MarkAhead, SaveLast, TouchMarked or Renew), and so nothing that it was told later either: its memory is
	// older. It is said until Accept.
	Forgot bool
	Now    time.Time // the target's clock
	// Down: when it was asked nobody was answered, as after ErrDown; the answer came later, perhaps from another server.
	Down bool
}

// MarkerKind is the kind of a marker.
type MarkerKind uint8

const (
	NoMarker MarkerKind = iota
	Intent              // a strict write is under way or died: the origin decides
	AheadOf             // the target decides, the origin is behind
	GoneMark            // deleted, and the memory of it is still needed; counts as none wherever a rule says "no marker"
)

func (k MarkerKind) String() string { return [...]string{"none", "intent", "ahead", "gone"}[k] }

// A Marker is what a target notes beside an unsettled session.
type Marker struct {
	Kind    MarkerKind
	Nonce   string        // the owner's
	Left    time.Duration // by the target's clock; 0 or less: the marker is dead
	Version uint64        // of an ahead: counts the writes since it was made
}

// Begun is what Begin and Settle found.
type Begun struct {
	// Took is the kind of the dead marker that was taken over, or NoMarker. Where it is AheadOf, the caller has to
	// propagate Ahead before anything else.
	Took MarkerKind
	// Holds is the version of what the target holds.
	Holds Version
	Ahead Ahead // where Took is AheadOf
}

// Ahead is the state of a session that the origin has to follow.
type Ahead struct {
	Version uint64
	Mine    bool    // the caller owns the marker and has to propagate
	Existed bool    // WriteAhead: there was a value before
	Record  *Record // the value; nil for deleted. Expires is filled.
}

// Unsettled is a count of markers and some of them.
type Unsettled struct {
	Intents, Aheads int
	Keys            []string      // some of them, oldest lease first
	Oldest          time.Duration // how long the one whose lease ended first has been dead; negative: it lives
}

// BusyError says that another operation's marker on this session lives. It matches ErrBusy.
type BusyError struct {
	Left time.Duration // until that marker's lease ends
}

func (e *BusyError) Error() string { return fmt.Sprintf("%v for at most %v", ErrBusy, e.Left) }
func (e *BusyError) Unwrap() error { return ErrBusy }
