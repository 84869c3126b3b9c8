package migrate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// copyQueue holds the keys whose copies dual-write still owes the target. It keeps keys, not values: a copy is made of
// what the origin holds when its turn comes, so that the last of several copies is never an older one.
type copyQueue struct {
	limit int
	ready chan struct{} // has room for one: something is queued

	mu      sync.Mutex // guards what follows
	keys    []string
	queued  map[string]bool
	working map[string]int // how many workers copy it now
}

func newCopyQueue(limit int) *copyQueue {
	return &copyQueue{limit: limit, ready: make(chan struct{}, 1), queued: map[string]bool{}, working: map[string]int{}}
}

// push queues key. It never waits; it reports false where the queue is full.
func (q *copyQueue) push(key string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queued[key] {
		return true
	}
	if len(q.keys) >= q.limit {
		return false
	}
	q.keys, q.queued[key] = append(q.keys, key), true
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

func (q *copyQueue) pop(n int) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.keys))
	keys := q.keys[:n:n]
	if q.keys = q.keys[n:]; len(q.keys) == 0 {
		q.keys = nil
	}
	for _, key := range keys {
		delete(q.queued, key)
		q.working[key]++
	}
	return keys
}

// done ends what pop began.
func (q *copyQueue) done(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working[key]--; q.working[key] == 0 {
		delete(q.working, key)
	}
}

// owes reports whether a copy of key is still to come.
func (q *copyQueue) owes(key string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queued[key] || q.working[key] > 0
}

func (q *copyQueue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.keys = nil
	clear(q.queued)
}

func (q *copyQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.keys)
}

// copySoon queues a copy of key.
func (e *Engine) copySoon(key string) {
	if !e.copies.push(key) {
		e.stats.copiesDropped.Add(1)
	}
}

// copyLoop makes the copies of dual-write.
func (e *Engine) copyLoop() {
	for {
		select {
		case <-e.copies.ready:
		case <-e.life.Done():
			return
		}
		for {
			keys := e.copies.pop(64)
			if len(keys) == 0 {
				break
			}
			var wg sync.WaitGroup
			each := make(chan string)
			for range min(4, len(keys)) {
				wg.Go(func() {
					for key := range each {
						e.copy(key)
						e.copies.done(key)
					}
				})
			}
			for _, key := range keys {
				each <- key
			}
			close(each)
			wg.Wait()
		}
	}
}

// copy makes one copy, if the phase is still dual-write. One that fails is made later: what stays different the gate into
// sync takes for a foreign write.
func (e *Engine) copy(key string) {
	ctx, cancel := context.WithTimeout(e.life, time.Second)
	defer cancel()
	a, err := e.current()
	if err != nil || a.phase != DualWrite || !a.lease {
		e.stats.copiesDropped.Add(1)
		return
	}
	a, err = e.enter(ctx)
	if err != nil {
		return
	}
	defer e.leave(a, 0)
	if a.phase != DualWrite || !a.lease {
		return
	}
	if err := e.copyNow(ctx, a, key); err != nil {
		e.stats.copiesFailed.Add(1)
		if !errors.Is(err, store.ErrInvalid) && sleep(e.life, 20*time.Millisecond) {
			e.copySoon(key)
		}
		return
	}
	e.stats.copies.Add(1)
}

// copyNow copies what the origin holds under key, and looks again: another gateway may have copied something newer between
// our reading and our copy, and nobody would copy that again.
func (e *Engine) copyNow(ctx context.Context, a authority, key string) error {
	var copied store.Version
	for try := 0; ; try++ {
		e.arrow(ctx, "copy read", key)
		rec, err := e.asKnown(a).Inspect(ctx, key)
		var x *store.Record
		switch {
		case err == nil:
			x = &rec
		case !errors.Is(err, store.ErrAbsent):
			return err
		}
		if try > 0 && x.Version() == copied || try > 10 { // who goes on writing it copies it, too
			return nil
		}
		copied = x.Version()
		e.arrow(ctx, "copy", key)
		if err := e.flow.Copy(ctx, key, a.sendEpoch(), x); err != nil {
			return err
		}
	}
}

// shadow compares one answered read with the target, without making anybody wait for it.
func (e *Engine) shadow(key string, answered store.Record) {
	if e.stats.shadowRunning.Add(1) > 32 {
		e.stats.shadowRunning.Add(-1)
		return
	}
	if !e.spawn(func() {
		defer e.stats.shadowRunning.Add(-1)
		ctx, cancel := context.WithTimeout(e.life, time.Second)
		defer cancel()
		rec, m, err := e.flow.LoadMarked(ctx, key)
		switch {
		case err != nil || m.Kind == store.Intent || m.Kind == store.AheadOf:
			return
		case rec.Version() == answered.Version() || answered.Expires.Before(time.Now()) && !answered.Expires.IsZero():
			e.stats.shadowSame.Add(1)
			return
		}
		// What differs may only be under way: a copy is queued, a write came between. Look once more.
		if !sleep(ctx, 50*time.Millisecond) {
			return
		}
		again, err := e.origin.Load(ctx, key)
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			return
		}
		var o *store.Record
		if err == nil {
			o = &again
		}
		if n, m, err := e.flow.LoadMarked(ctx, key); err == nil && m.Kind == store.NoMarker && n.Version() != o.Version() {
			// Not copied again: it may be a foreign write, and the gate into sync goes by what was not copied.
			e.stats.shadowDifferent.Add(1)
			return
		}
		e.stats.shadowSame.Add(1)
	}) {
		e.stats.shadowRunning.Add(-1)
	}
}
