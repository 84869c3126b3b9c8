package migrate

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"sync/atomic"
)

// counters of an engine. Every exception that PROTOCOL.md 6 states is counted here.
type counters struct {
	held, alarms, retreats, otherMemory          atomic.Int64
	waits, commitsFailed, settled, foreignWrites atomic.Int64
	resolved                                     atomic.Int64
	touchEscalations, readsOfOrigin              atomic.Int64
	propagated, propagationsFailed, unfit        atomic.Int64
	copies, copiesFailed, copiesDropped          atomic.Int64
	bringing, brought                            atomic.Int64
	shadowSame, shadowDifferent, shadowRunning   atomic.Int64
}

// Counters returns what the engine has counted since it was made, by stable names.
func (e *Engine) Counters() map[string]int64 {
	s := &e.stats
	return map[string]int64{
		"held": s.held.Load(), "alarms": s.alarms.Load(), "retreats": s.retreats.Load(), "other_memory": s.otherMemory.Load(),
		"waits": s.waits.Load(), "commits_failed": s.commitsFailed.Load(), "settled": s.settled.Load(), "resolved": s.resolved.Load(),
		"foreign_writes": s.foreignWrites.Load(), "touch_escalations": s.touchEscalations.Load(),
		"reads_of_origin": s.readsOfOrigin.Load(), "brought": s.brought.Load(), "propagated": s.propagated.Load(),
		"propagations_failed": s.propagationsFailed.Load(), "unfit": s.unfit.Load(), "copies": s.copies.Load(), "copies_failed": s.copiesFailed.Load(),
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

var sessionSeed = maphash.MakeSeed()

// sessionHash stands for a session where its id would take too much room.
func sessionHash(key string) uint64 { return maphash.String(sessionSeed, key) }
