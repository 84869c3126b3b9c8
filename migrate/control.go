package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// Times are the bounds and leases of a workflow, kept in its control record. Each is longer than the one it has to
// outlive: an operation in the origin is over before its marker is dead, a marker before its gateway's lease ends.
type Times struct {
	Bound        time.Duration `json:"bound"`         // on one operation in the origin, from before `begin` was sent
	Marker       time.Duration `json:"marker"`        // a marker's lease: bound + 0.5 s
	Gateway      time.Duration `json:"gateway"`       // a gateway's lease: marker + 1 s, renewed every fifth of it
	RetreatAfter time.Duration `json:"retreat_after"` // how long a gateway without a lease holds before it retreats
}

// DefaultTimes returns the times for an origin whose operations are bounded by bound: 2 s for files, memcached and
// Cassandra, 5 s for SQL.
func DefaultTimes(bound time.Duration) Times {
	marker := bound + 500*time.Millisecond
	return Times{Bound: bound, Marker: marker, Gateway: marker + time.Second, RetreatAfter: time.Second}
}

func (t Times) check() error {
	if t.Bound <= 0 || t.Marker <= t.Bound || t.Gateway <= t.Marker || t.RetreatAfter < 0 {
		return fmt.Errorf("migrate: times %+v: each of bound, marker, gateway must be longer than the one before", t)
	}
	return nil
}

// Control is the control record: one for a workflow, in the target, changed by compare-and-set.
type Control struct {
	Format   int    `json:"format"` // 1
	Workflow string `json:"workflow"`
	Epoch    uint64 `json:"epoch"`
	Phase    Phase  `json:"phase"`
	From     Phase  `json:"from"` // the phase before the last step
	Done     bool   `json:"done"` // every gateway has adopted Epoch and the fence stands at it

	// Reconciled: a whole pass began after the step into sync was done. Kept while the workflow stays in sync or above.
	Reconciled bool `json:"reconciled"`
	// Purged: every gateway has left ramp-down and no side key is looked at any more. The move is over.
	Purged bool `json:"purged,omitempty"`
	// Cancelled: the workflow is in phase off for good and its record is about to be removed.
	Cancelled bool `json:"cancelled,omitempty"`

	Times    Times  `json:"times"`
	Prefix   string `json:"prefix"`   // of this workflow's keys in the target: no two workflows share any
	Instance string `json:"instance"` // the target's run id
	Identity string `json:"identity"` // the origin's

	MaxLoad int `json:"max_load,omitempty"` // Options.MaxLoad, for every gateway; 0: each goes by its own, negative: no bound

	Longest int64 `json:"longest,omitempty"` // seconds that a session was seen to live, where the origin cannot be listed

	Backfill  Job        `json:"backfill"`
	Reconcile Job        `json:"reconcile"`
	Diff      *DiffEnd   `json:"diff,omitempty"`
	Created   time.Time  `json:"created"`
	Log       []LogEntry `json:"log,omitempty"` // the last steps, forced ones with their reason

	raw []byte // as read: what a compare-and-set compares
}

// Job is the checkpoint of a worker that walks over a store.
type Job struct {
	State   string    `json:"state"` // "", running, paused, done, failed
	Epoch   uint64    `json:"epoch,omitempty"`
	Gateway string    `json:"gateway,omitempty"` // who runs it
	Side    string    `json:"side,omitempty"`    // origin or target: which store is walked over
	Cursor  string    `json:"cursor,omitempty"`
	Seen    int64     `json:"seen"`
	Copied  int64     `json:"copied"`
	Same    int64     `json:"same"`
	Overdue int64     `json:"overdue"`
	Failed  int64     `json:"failed"`
	Total   int64     `json:"total"` // estimated; 0: not known
	Rate    int       `json:"rate"`  // sessions a second at the most; 0: as fast as it goes
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Until   time.Time `json:"until,omitzero"` // of a pass over an origin that cannot be listed: not done before, by the target's clock, and so is Started
	Error   string    `json:"error,omitempty"`
}

const (
	jobRunning = "running"
	jobPaused  = "paused"
	jobDone    = "done"
	jobFailed  = "failed"
)

// DiffEnd is the end of a diff: what the gate into sync goes by.
type DiffEnd struct {
	Compared   int64     `json:"compared"`
	Missing    int64     `json:"missing"`  // in the origin, not in the target
	Extra      int64     `json:"extra"`    // in the target, not in the origin: a logout that would be undone
	Mismatch   int64     `json:"mismatch"` // different data
	Unfit      int64     `json:"unfit"`    // in the origin, and cannot be moved: too large, not to be read
	Deadline   int64     `json:"deadline"` // the same data, deadlines further apart than the tolerance
	Overdue    int64     `json:"overdue"`  // in the origin past their deadline: absent in the target, and no mismatch
	Rounds     int       `json:"rounds"`
	Repaired   int64     `json:"repaired"`
	At         time.Time `json:"at"`
	DurationMS int64     `json:"duration_ms"`
}

// Differences is the number of sessions that are not the same in both stores.
func (d DiffEnd) Differences() int64 { return d.Missing + d.Extra + d.Mismatch + d.Unfit }

// LogEntry is one line of the workflow's history.
type LogEntry struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Epoch  uint64    `json:"epoch"`
	By     string    `json:"by"`
	Forced []string  `json:"forced,omitempty"` // the gates that were closed
	Reason string    `json:"reason,omitempty"`
}

const logLimit = 50

func (c *Control) note(e LogEntry) {
	e.At, e.Epoch = time.Now().UTC(), c.Epoch
	c.Log = append(c.Log, e)
	if n := len(c.Log) - logLimit; n > 0 {
		c.Log = append([]LogEntry(nil), c.Log[n:]...)
	}
}

// errNoWorkflow says that the target has no control record.
var errNoWorkflow = &UsageError{"no workflow: run `sessile migrate create` first"}

// readControl returns the control record; nil where there is none.
func readControl(ctx context.Context, w store.Workflow) (*Control, error) {
	b, err := w.Control(ctx)
	if err != nil {
		return nil, err
	}
	return parseControl(b)
}

func parseControl(b []byte) (*Control, error) {
	if b == nil {
		return nil, nil
	}
	c := &Control{raw: b}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("migrate: the control record cannot be read: %w", err)
	}
	if c.Format != 1 {
		return nil, fmt.Errorf("migrate: the control record has format %d; this version of sessile knows 1", c.Format)
	}
	return c, c.Times.check()
}

func (c *Control) encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // no type in Control can fail
	}
	return b
}

// updateControl changes the control record by compare-and-set until it succeeds. change returns an error to stop. An
// unknown outcome is resolved by reading: the record says whether the change is there.
func updateControl(ctx context.Context, w store.Workflow, change func(*Control) error) (*Control, error) {
	for {
		c, err := readControl(ctx, w)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, errNoWorkflow
		}
		if err := change(c); err != nil {
			return c, err
		}
		old, next := c.raw, c.encode()
		if string(next) == string(old) {
			return c, nil
		}
		c.raw = next
		switch err := w.SwapControl(ctx, old, next); {
		case err == nil:
			return c, nil
		case errors.Is(err, store.ErrConflict):
			continue
		case errors.Is(err, store.ErrUnknown):
			if now, rerr := w.Control(ctx); rerr == nil && string(now) == string(next) {
				return c, nil
			}
			return nil, err
		default:
			return nil, err
		}
	}
}
