// Package guard switches single guards of the protocol off, so that a test can show that each of them matters. Only a
// test binary can: anywhere else Disable panics.
package guard

import (
	"sync/atomic"
	"testing"
)

// A Guard is one rule that can be switched off.
type Guard uint32

const (
	Intent    Guard = 1 << iota // strict writes go through an intent
	Commit                      // a commit looks whether the marker is still its own
	Fence                       // the target refuses epochs below the fence
	Drain                       // a gateway reports an epoch only when older operations are over
	Reconcile                   // live needs a reconcile pass
	Touch                       // a touch that misses in one store becomes a strict write
	Flock                       // files are read and written under flock
	Seal                        // without a lease the origin's seal decides, and writes to the origin carry it
	Memory                      // a target that has forgotten what it had answered is not gone on with

	// What is put back where a new primary lacks it:

	Older   // only over what is known to be older
	Gone    // onto nothing only where no delete has left its marker
	Settled // and when all gateways have put their deletes back
	Late    // and not when the marker may be over
	Again   // who has left something looks again when others have put something back
	Meet    // a gateway begins when the others know of it
	Still   // the clock of what is remembered stands still while nobody confirms the primary
)

// All lists the guards by name.
var All = map[string]Guard{"intent": Intent, "commit check": Commit, "fence": Fence, "drain": Drain,
	"reconcile": Reconcile, "touch rule": Touch, "flock": Flock, "seal": Seal, "memory": Memory, "older": Older, "gone": Gone, "settled": Settled, "late": Late, "again": Again, "meet": Meet, "still": Still}

var off atomic.Uint32

// On reports whether g is in force.
func On(g Guard) bool { return off.Load()&uint32(g) == 0 }

// Disable switches g off until restore is called.
func Disable(g Guard) (restore func()) {
	if !testing.Testing() {
		panic("guard: Disable outside a test")
	}
	off.Or(uint32(g))
	return func() { off.And(^uint32(g)) }
}
