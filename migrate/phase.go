package migrate

import "fmt"

// Phase is a rung of the ladder. Only neighbours ever coexist in a fleet, so a step goes one rung up or down; the one
// exception is the retreat to DualWrite, which floor retreat of the origin's seal keeps apart from what was before.
type Phase uint8

const (
	// Off: the origin answers and takes every write. The target is not used.
	Off Phase = iota
	// DualWrite: as Off, and the target gets copies that nobody trusts.
	DualWrite
	// Sync: the origin answers; every write goes through an intent in the target. Here the reconcile pass runs.
	Sync
	// Live: the target answers, a write still reaches both.
	Live
	// RampDown: the target answers, the origin follows.
	RampDown
	// Complete: the target alone. There is no way back.
	Complete
)

var phaseNames = [...]string{"off", "dual-write", "sync", "live", "ramp-down", "complete"}

func (p Phase) String() string {
	if int(p) < len(phaseNames) {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// ParsePhase reads a phase's name.
func ParsePhase(s string) (Phase, error) {
	for i, name := range phaseNames {
		if name == s {
			return Phase(i), nil
		}
	}
	return 0, fmt.Errorf("unknown phase %q: one of off, dual-write, sync, live, ramp-down, complete", s)
}

// MarshalText writes the phase's name.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a phase's name.
func (p *Phase) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePhase(string(b))
	return err
}

// strict reports whether writes in this phase go through an intent.
func (p Phase) strict() bool { return p == Sync || p == Live }
