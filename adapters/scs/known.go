package scsstore

import (
	"context"
	"sync"
)

// known are the keys of sessions that this process has found, so that a Commit knows that it must not create them.
//
// A request that is under way has to be remembered for as long as it takes, however many others come and go: who holds a stolen
// session could otherwise have one request wait, its owner log out, and thousands of others push it out of memory, and have it
// back. So it is counted until its context ends. Contexts that never end, and those that outlive the request (context.WithoutCancel),
// have the last few thousand.
type known struct {
	mu             sync.Mutex     // guards what follows; held for a few map operations only
	using          map[string]int // by requests under way
	marks          int            // the sum of using
	recent, before map[string]struct{}
}

const (
	maxMarks  = 1 << 16 // of contexts that have not ended: half a kilobyte each, and less than the request itself has
	maxRecent = 1 << 13 // in each of two generations
)

// add remembers keys for as long as ctx goes on.
func (k *known) add(ctx context.Context, keys ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Done() == nil || k.marks+len(keys) > maxMarks {
		k.remember(keys)
		return
	}
	if k.using == nil {
		k.using = map[string]int{}
	}
	for _, key := range keys {
		k.using[key]++
	}
	k.marks += len(keys)
	context.AfterFunc(ctx, func() { k.release(keys) })
}

func (k *known) release(keys []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		if k.using[key]--; k.using[key] == 0 {
			delete(k.using, key)
		}
	}
	k.marks -= len(keys)
	k.remember(keys)
}

// remember has the oldest forgotten where there are too many. Callers hold mu.
func (k *known) remember(keys []string) {
	for _, key := range keys {
		if len(k.recent) >= maxRecent {
			k.before, k.recent = k.recent, nil
		}
		if k.recent == nil {
			k.recent = map[string]struct{}{}
		}
		k.recent[key] = struct{}{}
	}
}

func (k *known) has(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.using[key] > 0 {
		return true
	}
	_, recent := k.recent[key]
	_, before := k.before[key]
	return recent || before
}
