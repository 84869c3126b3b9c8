package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// FailoverStats count what happened to a store whose servers change their roles. What is not a total is as it is now.
type FailoverStats struct {
	Switches uint64        // servers that were put in order because they were not the one before
	Held     time.Duration // for how long operations were held up, in all
	HeldMax  time.Duration // and at most at a time
	HeldNow  time.Duration // and for how long they have been now; 0: they are not
	Holding  []string      // why they are now: announced, recovering, forgotten, adrift, unleased; moving: those of a slot that is in two places

	Unknown  uint64 // operations of which no answer came
	Resolved uint64 // those of them that turned out to be done

	PutBack uint64            // what a new primary lacked and was told again
	Left    map[string]uint64 // what was not put back, by reason
	Lost    uint64            // those of them that were lost: nobody had replaced or deleted them
	Exposed uint64            // writes that were acknowledged after the primary was last confirmed, and before a switch

	Entries  int    // that are remembered
	Bytes    int    // that they take
	Overflow uint64 // those that were forgotten before their time, for want of room

	Shortfalls uint64 // critical writes that not all replicas confirmed in time

	Gateways  int    // that are registered and live, this one included
	Forgotten uint64 // how often a server had forgotten everything
	Evicted   uint64 // keys that servers threw away for want of memory, as far as this gateway looked
}

// failovers are the counters behind FailoverStats.
type failovers struct {
	switches, putBack, exposed, forgotten, evicted atomic.Uint64
	unknown, resolved                              atomic.Uint64
	left                                           [reasons]atomic.Uint64
	gateways                                       atomic.Int64
}

// Failover returns what has been counted since the store was made. A store that is one server has nothing to count.
func (s *Store) Failover() FailoverStats {
	f := &s.failovers
	st := FailoverStats{Switches: f.switches.Load(), Unknown: f.unknown.Load(), Resolved: f.resolved.Load(), PutBack: f.putBack.Load(),
		Exposed: f.exposed.Load(), Gateways: int(f.gateways.Load()), Forgotten: f.forgotten.Load(), Evicted: f.evicted.Load(), Left: map[string]uint64{}}
	for i := range f.left {
		if n := f.left[i].Load(); reason(i) != notLeft {
			st.Left[reasonNames[i]] = n
			if reason(i).lost() {
				st.Lost += n
			}
		}
	}
	st.Shortfalls = uint64(s.shortfalls.Load())
	if s.window != nil {
		st.Entries, st.Bytes, st.Overflow = s.window.size()
	}
	for _, n := range s.nodes() {
		held, longest, now := n.gate.held()
		st.Held, st.HeldMax, st.HeldNow = st.Held+held, max(st.HeldMax, longest), max(st.HeldNow, now)
		for why, name := range gateNames {
			if n.gate.shut.Load()&why != 0 && !slices.Contains(st.Holding, name) {
				st.Holding = append(st.Holding, name)
			}
		}
	}
	if s.cluster != nil && len(s.cluster.splitSlots()) > 0 {
		st.Holding = append(st.Holding, "moving")
	}
	slices.Sort(st.Holding)
	return st
}

// What a caller of Dial was answered is noted by these; what went by Save and its like is noted already. It has to be
// noted before the gate counts the operation as over. key is as Save has it.

// Remembers reports whether what is done is remembered, to be put back where a new primary lacks it.
func (s *Store) Remembers() bool { return s.window != nil }

type baseKey struct{}

// Base returns a context for a Save of who had read the value with that Sum before.
func (s *Store) Base(ctx context.Context, sum uint64) context.Context {
	return context.WithValue(ctx, baseKey{}, sum)
}

// Sum stands for a value that was read before a write: see Saved. It is never 0.
func (s *Store) Sum(data []byte) uint64 {
	if s.window == nil {
		return 1
	}
	return s.window.sum(data)
}

// Saved notes a value that was asked for at a time. base is the Sum of what the same client had read before, or 0.
func (s *Store) Saved(key string, data []byte, expires, asked time.Time, base uint64) {
	if s.window != nil {
		s.window.saved(key, data, expires, asked, base)
	}
}

// Touched notes a deadline that was asked for at a time.
func (s *Store) Touched(key string, expires, asked time.Time) {
	if s.window != nil {
		s.window.touched(key, expires, asked)
	}
}

// Deleted notes what the script has answered: see DeleteScript.
func (s *Store) Deleted(key string, asked time.Time, version store.Version, gone uint64) {
	if s.window != nil {
		s.window.deleted(key, asked, version, gone)
	}
}

// Locked notes that token has the lock until then, Unlocked that it was released or is somebody else's.
func (s *Store) Locked(key, token string, until time.Time) {
	if s.window != nil {
		s.window.lock(key, s.opt.LockSuffix, token, locked, until)
	}
}

func (s *Store) Unlocked(key, token string) {
	if s.window != nil {
		s.window.lock(key, s.opt.LockSuffix, token, unlocked, time.Time{})
	}
}

// DeleteScript returns the SHA-1 of the script by which Delete deletes, and the lifetime that is its ARGV[2]; KEYS are the
// names that DataKey and SideKey make, ARGV[1] is "*". The answer is 0, 1 or 0 for whether there was something, and what
// Deleted takes. Where nothing is remembered it is "": a DEL does it.
func (s *Store) DeleteScript() (sha, life string) {
	if s.window == nil {
		return "", ""
	}
	return deleteScript.sha, s.goneLife()
}

// SideKey appends to dst the name of what lies beside the session that is called name in Redis.
func (s *Store) SideKey(dst []byte, name string) []byte { return append(dst, s.sideKey(name)...) }

func (s *Store) goneLife() string { return millis(goneLife(s.opt.Failover.Replay)) }

// whenSaved returns what notes that SET, or the script that writes, has done it.
func (s *Store) whenSaved(ctx context.Context, key string, rec store.Record, cond store.Condition) func(*reply) {
	if s.window == nil {
		return nil
	}
	base, ok := ctx.Value(baseKey{}).(uint64)
	if !ok {
		base = sumOf(store.Version(cond.Encode()))
	}
	asked := time.Now()
	return func(r *reply) {
		if r.has(0) {
			s.window.saved(key, store.Flagged(rec.Data, rec.Flags), rec.Expires, asked, base)
		}
	}
}

// confirm is called with a time at which n was known to be the primary.
func (n *node) confirm(t time.Time) {
	if n.s.window != nil && n.attendant.order.Load() && n.up() { // what we note we also say in the registry
		n.s.window.confirm(t)
	}
}

// resolved finds out what became of a write that ended with lost, where that is unknown: once there is a primary that is
// in order, as long as ctx allows. Nothing is written again that is not the same if done twice.
func (s *Store) resolved(ctx context.Context, lost error, look func(ctx context.Context) (done bool, err error)) error {
	if !errors.Is(lost, store.ErrUnknown) || !s.opt.watched() || errors.Is(lost, errShort) {
		return lost // done it is, in the last case, but not where it shall be
	}
	found := false
	defer func() { s.Resolved(found) }()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.opt.Failover.Hold)
		defer cancel()
	}
	for ctx.Err() == nil {
		done, err := look(ctx)
		switch {
		case done && (err == nil || errors.Is(err, store.ErrAbsent)):
			found = true
			return err
		case err == nil:
			return lost
		case !store.Failed(err) || !sleep(ctx, pollEvery):
			return lost
		}
	}
	return lost
}

// Resolves reports whether it can be found out what became of a write of which no answer came.
func (s *Store) Resolves() bool { return s.opt.watched() }

// Resolved notes what came of it where others have looked, by ResolveSave or ResolveDelete.
func (s *Store) Resolved(done bool) {
	if s.failovers.unknown.Add(1); done {
		s.failovers.resolved.Add(1)
	}
}

// ResolveSave reports whether the session is what a Save, of which no answer came, was to make it. If so it is
// acknowledged, with that deadline at least.
func (s *Store) ResolveSave(ctx context.Context, key string, rec store.Record) (bool, error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	px, err := s.pxLeft(rec)
	if err != nil {
		return false, err
	}
	f, asked := finding{}, time.Now()
	r := s.call(ctx, "resolve", store.ErrUnavailable, lookScript, []string{name, s.sideKey(name)}, []string{string(rec.Version()), px}, nil,
		func(r *reply) {
			if f = r.finding(1); f.same {
				s.Saved(key, store.Flagged(rec.Data, rec.Flags), rec.Expires, asked, 0)
			}
		})
	return f.same, r.fail()
}

// ResolveDelete reports whether there is no session any more, where no answer to a Delete came.
func (s *Store) ResolveDelete(ctx context.Context, key string) (bool, error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	if s.window == nil {
		r := s.queryOne(ctx, "resolve", inspectScript, name)
		there := r.has(0)
		return r.err == nil && !there, r.fail()
	}
	// It deletes nothing: only where there is nothing it leaves the marker that a delete leaves.
	asked := time.Now()
	r := s.call(ctx, "resolve", store.ErrUnavailable, deleteScript, []string{name, s.sideKey(name)}, []string{store.IfAbsent.Encode(), s.goneLife()}, nil,
		func(r *reply) { s.Deleted(key, asked, "", uint64(r.int(3))) })
	if errors.Is(r.err, store.ErrConflict) {
		return false, nil
	}
	return r.err == nil, r.fail()
}

// ResolveLock reports whether token has the lock, where no answer to a Lock came. It is held until then.
func (s *Store) ResolveLock(ctx context.Context, key, token string, until time.Time) (bool, error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	r := s.send(ctx, "resolve", store.ErrUnavailable, name+s.opt.LockSuffix, []string{"GET", name + s.opt.LockSuffix}, nil, func(r *reply) {
		if r.text(0) == token {
			s.Locked(key, token, until)
		}
	})
	return r.err == nil && r.text(0) == token, r.fail()
}

// Refill puts back what is remembered where a server has forgotten everything, and lets operations go on.
func (s *Store) Refill(ctx context.Context) error { return s.decide(ctx, refill) }

// AcceptEmpty lets operations go on with a server that has forgotten everything.
func (s *Store) AcceptEmpty(ctx context.Context) error { return s.decide(ctx, accept) }

func (s *Store) decide(ctx context.Context, d decision) error {
	asked := false
	for _, n := range s.nodes() {
		if n.attendant == nil || n.gate.shut.Load()&forgotten == 0 {
			continue
		}
		asked = true
		if err := n.attendant.ask(ctx, d); err != nil {
			return fmt.Errorf("store/redis: %s: %w", d, err)
		}
	}
	if !asked {
		return fmt.Errorf("store/redis: %s: no server has forgotten everything", d)
	}
	return nil
}

// takeover is called when a workflow's control record was written: whoever did that has decided.
func (s *Store) takeover() {
	for _, n := range s.nodes() {
		if n.attendant != nil && n.gate.shut.Load()&forgotten != 0 {
			s.wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), s.opt.Timeout)
				defer cancel()
				_ = n.attendant.ask(ctx, accept) // if not, it is asked for again
			})
		}
	}
}
