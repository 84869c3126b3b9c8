package store

import (
	"context"
	"fmt"
)

// Origin is a store that sessions are moved away from. It holds, beside the sessions, what somebody who can see only
// the origin has to know: which origin this is, and who may serve from it.
type Origin interface {
	Store

	// Mark returns identity and seal. Neither existing is no error: the zero Mark. A mark that is there and cannot be
	// read is an error, never the zero Mark.
	Mark(ctx context.Context) (Mark, error)

	// SwapMark replaces identity and seal by compare-and-set on all of them; ErrConflict if old is not what is there.
	SwapMark(ctx context.Context, old, next Mark) error

	// Under returns a view of this store whose writes are refused with ErrSealed, certainly not executed, unless the
	// origin's mark is still exactly m at the moment of the write. Load and Inspect are as before, but where the store can
	// see in the same step that it does not have m's identity (any more), they are refused so, too: it has lost its memory,
	// or is another one, and what it lacks is no news. The view shares everything else, locks included; closing it does
	// nothing.
	Under(m Mark) Store
}

// BulkReader is what a store may be, besides: one that reads many records for little more than the price of one.
type BulkReader interface {
	// InspectAll is Inspect of each key, in their order; nil is an absent record. Where one cannot be read it fails for
	// all, and the caller asks for each.
	InspectAll(ctx context.Context, keys []string) ([]*Record, error)
}

// Checker is what an origin may be, besides: one that can say what it is, and what is wrong with its set-up.
type Checker interface {
	// Check looks at the origin, and writes nothing.
	Check(ctx context.Context) (Findings, error)
}

// Findings are lines for people.
type Findings struct {
	Facts   []string // what the origin was taken for
	Against []string // what keeps sessions from being moved away safely
	Advice  []string // what one should know
	Require []string // what has to be so and cannot be seen; nil: nothing is known of that
}

// Auditor is what an origin may be, besides: one whose server can say who else uses the sessions.
type Auditor interface {
	// Audit looks who does, until ctx ends. It sees what it comes upon: that it saw nobody proves little.
	Audit(ctx context.Context) (Audit, error)
}

// Audit is what was seen, in lines for people: user, host, what was done.
type Audit struct {
	Writers, Readers []string
	Blind            string // what could not be seen, and the remedy
}

// Prover is what an origin may be, besides: one that does not hold a session of any form.
type Prover interface {
	// Canary returns a session that it can hold, under a key that no application has.
	Canary() (key string, data []byte)
}

// Marked is what a target may be, besides: one that may be another workflow's origin, or may have been.
type Marked interface {
	// Mark is that of Origin.
	Mark(ctx context.Context) (Mark, error)
}

// A Mark is what an origin carries beside its sessions.
type Mark struct {
	Identity string `json:"identity,omitempty"` // random, made at `create`: which directory, which table
	Seal     Seal   `json:"seal"`
}

// A Seal says who may serve from this origin. The zero Seal is floor none.
type Seal struct {
	Workflow string `json:"workflow,omitempty"`
	Epoch    uint64 `json:"epoch,omitempty"`
	Floor    Floor  `json:"floor,omitempty"`
}

// Floor is what an origin says of itself to whoever can see only the origin.
type Floor uint8

const (
	FloorNone     Floor = iota // the origin alone decides; whoever sees it may serve from it
	FloorSync                  // it has every acknowledged write, but others may be answering from the target
	FloorRetreat               // it has every acknowledged write, and the target must not be trusted
	FloorRampDown              // it may be behind: nobody serves from it
)

var floorNames = [...]string{"none", "sync", "retreat", "ramp-down"}

func (f Floor) String() string {
	if int(f) < len(floorNames) {
		return floorNames[f]
	}
	return fmt.Sprintf("floor(%d)", uint8(f))
}

// MarshalText writes the floor's name.
func (f Floor) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads a floor's name. One that this version does not know is an error: it must not be taken for none.
func (f *Floor) UnmarshalText(b []byte) error {
	for i, name := range floorNames {
		if name == string(b) {
			*f = Floor(i)
			return nil
		}
	}
	return fmt.Errorf("store: unknown floor %q", b)
}
