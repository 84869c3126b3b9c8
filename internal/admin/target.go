package admin

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/sessile/sessile/migrate"
)

// A Target is a site's target whose servers change their roles.
type Target interface {
	Status() TargetStatus
	// Refill puts back what is remembered where a server has forgotten everything, AcceptEmpty goes on without. They return
	// when the server is in order, and fail where no server has forgotten everything.
	Refill(ctx context.Context) error
	AcceptEmpty(ctx context.Context) error
}

// TargetStatus is what has happened to a target that fails over, as this gateway has seen it. What is not a total is as
// it is now. What the metrics have, too, is called as there.
type TargetStatus struct {
	Holding   []string `json:"holding"`    // why operations are held up: announced, recovering, forgotten, adrift, unleased, moving
	HoldingMS int64    `json:"holding_ms"` // for how long
	Switches  uint64   `json:"switches"`   // new primaries that were put in order
	HeldMS    int64    `json:"held_ms"`    // in all
	HeldMaxMS int64    `json:"held_max_ms"`

	Unknown  uint64 `json:"unknown"`  // writes of which no answer came
	Resolved uint64 `json:"resolved"` // those of them that were found done

	PutBack uint64            `json:"put_back"` // states that a new primary lacked and was told again
	Left    map[string]uint64 `json:"left"`     // states that were not put back, by reason
	Lost    uint64            `json:"lost"`     // those of them that nobody had replaced or deleted
	Exposed uint64            `json:"exposed"`  // writes acknowledged between the last confirmation of a primary and its end

	Remembered      int    `json:"remembered"` // states that would be put back
	RememberedBytes int    `json:"remembered_bytes"`
	Overflow        uint64 `json:"overflow"` // forgotten before their time, for want of room

	Shortfalls uint64 `json:"shortfalls"` // critical writes that not all replicas confirmed in time
	Gateways   int    `json:"gateways"`   // that share the target and live
	Forgotten  uint64 `json:"forgotten"`  // primaries that came back empty
	Evicted    uint64 `json:"evicted"`    // keys that servers threw away for want of memory
}

// Empty reports whether operations are held up until somebody decides about a server that has forgotten everything.
func (st TargetStatus) Empty() bool { return slices.Contains(st.Holding, "forgotten") }

var errNotForgotten = errors.New("no server of the target has forgotten everything: there is nothing to decide")

// decide takes a person's decision about a server that has forgotten everything.
func (c *call) decide(ctx context.Context, how func(context.Context) error) error {
	if strings.TrimSpace(c.Reason) == "" {
		return &migrate.UsageError{Text: "it needs a reason, which is logged"}
	}
	c.step.Say("waiting until the server is in order")
	err := how(ctx)
	if err != nil && ctx.Err() == nil && !c.Target.Status().Empty() {
		return errNotForgotten // and if one had, somebody else was quicker
	}
	return err
}
