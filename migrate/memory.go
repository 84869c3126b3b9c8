package migrate

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// counters of an engine. Every exception that PROTOCOL.md 6 states is counted here.
type counters struct {
	held, alarms, retreats, otherMemory          atomic.Int64
	waits, commitsFailed, settled, foreignWrites atomic.Int64
	touchEscalations, readsOfOrigin              atomic.Int64
	propagated, propagationsFailed               atomic.Int64
	copies, copiesFailed, copiesDropped          atomic.Int64
	shadowSame, shadowDifferent, shadowRunning   atomic.Int64
}

// Counters returns what the engine has counted since it was made, by stable names.
func (e *Engine) Counters() map[string]int64 {
	s := &e.stats
	return map[string]int64{
		"held": s.held.Load(), "alarms": s.alarms.Load(), "retreats": s.retreats.Load(), "other_memory": s.otherMemory.Load(),
		"waits": s.waits.Load(), "commits_failed": s.commitsFailed.Load(), "settled": s.settled.Load(),
		"foreign_writes": s.foreignWrites.Load(), "touch_escalations": s.touchEscalations.Load(),
		"reads_of_origin": s.readsOfOrigin.Load(), "propagated": s.propagated.Load(),
		"propagations_failed": s.propagationsFailed.Load(), "copies": s.copies.Load(), "copies_failed": s.copiesFailed.Load(),
		"copies_dropped": s.copiesDropped.Load(), "copies_queued": int64(e.copies.len()),
		"shadow_same": s.shadowSame.Load(), "shadow_different": s.shadowDifferent.Load(),
	}
}

var logKey = func() []byte { b := make([]byte, 32); _, _ = rand.Read(b); return b }()

// hash names a session in logs: the same within this process, worthless outside.
func (e *Engine) hash(key string) string {
	m := hmac.New(sha256.New, logKey)
	m.Write([]byte(key))
	return hex.EncodeToString(m.Sum(nil)[:6])
}

// recentWrites remembers the last writes that this gateway acknowledged, to find out whether a target that was
// restarted still knows them. A restarted Redis holds a prefix of its history, and writes that ran side by side may
// have been executed in another order than they were answered; so it is not one write that is looked for, but some.
type recentWrites struct {
	mu   sync.Mutex // guards ring, next
	ring [64]recentWrite
	next int
}

type recentWrite struct {
	key     string
	version store.Version
	expires time.Time
	strict  bool // the origin had it, too, before it was acknowledged
}

func newRecentWrites() *recentWrites { return &recentWrites{} }

func (r *recentWrites) note(key string, rec *store.Record, strict bool) {
	w := recentWrite{key: key, version: rec.Version(), strict: strict}
	if rec != nil {
		w.expires = rec.Expires
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.next%len(r.ring)] = w
	r.next++
}

// remember notes a write that is about to be acknowledged, unless the target has become another one since the operation
// began: what reached the new one says nothing about what it forgot.
func (e *Engine) remember(a authority, key string, rec *store.Record) {
	if e.target.Generation() == a.generation {
		e.recent.note(key, rec, a.phase.strict())
	}
}

// missing counts the remembered writes that the target does not know any more.
func (r *recentWrites) missing(ctx context.Context, flow store.Workflow) (missing int, err error) {
	r.mu.Lock()
	last := map[string]recentWrite{}
	for i := range r.ring { // oldest first
		if w := r.ring[(r.next+i)%len(r.ring)]; w.key != "" {
			last[w.key] = w
		}
	}
	r.mu.Unlock()
	for key, w := range last {
		if w.version != store.Absent && !w.expires.After(time.Now()) {
			continue
		}
		rec, m, err := flow.LoadMarked(ctx, key)
		if err != nil {
			return missing, err
		}
		// A strict write whose commit is missing is not lost where an intent sends readers to the origin.
		if rec.Version() != w.version && !(w.strict && m.Kind == store.Intent) {
			missing++
		}
	}
	return missing, nil
}

// ownWrites remembers when this gateway wrote which session in the origin, so that a sweep can tell foreign writers.
type ownWrites struct {
	mu   sync.Mutex // guards what follows
	at   map[uint64]time.Time
	full time.Time // when something had to be forgotten
}

// ownWritesLimit bounds the memory: at about 60 bytes each, 30 MB.
const ownWritesLimit = 500_000

func newOwnWrites() *ownWrites { return &ownWrites{at: map[uint64]time.Time{}} }

var sessionSeed = maphash.MakeSeed()

// sessionHash stands for a session where its id would take too much room.
func sessionHash(key string) uint64 { return maphash.String(sessionSeed, key) }

func (w *ownWrites) note(key string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.at) >= ownWritesLimit {
		for k, t := range w.at {
			if now.Sub(t) > time.Minute {
				delete(w.at, k)
			}
		}
		if len(w.at) >= ownWritesLimit {
			clear(w.at)
			w.full = now
		}
	}
	w.at[sessionHash(key)] = now
}

// since reports whether this gateway wrote a session after t; known is false where it cannot know.
func (w *ownWrites) since(session uint64, t time.Time) (wrote, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at[session].After(t), w.full.Before(t)
}
