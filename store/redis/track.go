package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// The server remembers which keys each connection has read and tells it, once, when one of them changes (CLIENT TRACKING, plain:
// neither OPTIN nor BCAST). So news of a record come by the connection that it was loaded on, behind the answer, and there are
// none after that connection is lost. Where they may be missing everything is told to be in doubt:
//
//   - a connection that was in use is closed, by whomever: see conn.over;
//   - a gate is shut, since others may be writing to another server already: see gate.close;
//   - a slot has another owner or, while it is on its way, another server to ask: absence is told by nobody then.
//
// What was answered before that is not used afterwards: who asks has looked at connection, gate and owner after beginning, and each
// of them changes before it is told.

var _ store.Tracker = (*Store)(nil)

// trackers are those who keep what they have loaded.
type trackers struct {
	mu      sync.RWMutex // guards changed, and is held in every call of one: none comes after stop
	changed map[*func(key string)]struct{}
}

// Track implements store.Tracker, where Options.Track is set. Besides changes it tells what Touch does, since a deadline is of the key
// for Redis, what expires and what is evicted; and it may tell of keys that load has not loaded: all that is read on the store's
// connections is tracked. News take a round trip; that a server has gone silent is noticed within Options.Timeout and a second. stop
// waits for calls of changed that are under way.
//
// News are in order with the answers of one connection, not of all: an answer by another one may be newer than a copy of which no news
// have come yet. So one load of a key is to be under way at a time, and who writes gives up the copy by itself.
func (s *Store) Track(changed func(key string)) (load func(ctx context.Context, key string) (store.Record, error), stop func(), err error) {
	if !s.opt.Track {
		return nil, nil, fmt.Errorf("store/redis: not opened to track (track=yes): %w", errors.ErrUnsupported)
	}
	t := &s.trackers
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = map[*func(string)]struct{}{}
	}
	t.changed[&changed] = struct{}{}
	return s.Load, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.changed, &changed)
	}, nil
}

// tell says that what is under key has changed, "" that anything may have.
func (t *trackers) tell(key string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for changed := range t.changed {
		(*changed)(key)
	}
}

func (t *trackers) all() { t.tell("") }

// heard takes news: the names of what has changed, nil for all. Those of others are left out, and so is the prefix itself: its
// key would be "", which is all.
func (t *trackers) heard(prefix string, names []rueidis.RedisMessage) {
	if names == nil {
		t.all()
	}
	for i := range names {
		name, err := names[i].ToString()
		if err != nil {
			t.all()
		} else if key, ours := strings.CutPrefix(name, prefix); ours && key != "" {
			t.tell(key)
		}
	}
}

var (
	errUntracked = errors.New("the server does not tell what changes (track=yes, CLIENT TRACKING)")
	errNoRESP3   = fmt.Errorf("%w: it does not speak RESP3", errUntracked)
)

// track has the server tell what changes of that which is read on w from here on.
func (w *wire) track(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	hello, err := w.exchange(ctx, "HELLO")
	if err == nil && !hello.IsMap() { // in RESP2 it would agree, and tell nothing
		return errNoRESP3
	}
	if err == nil {
		w.conn.tracking.Store(true)
		_, err = w.exchange(ctx, "CLIENT", "TRACKING", "ON")
	}
	if re, ok := rueidis.IsRedisErr(err); ok {
		return fmt.Errorf("%w: %w", errUntracked, newReply(re))
	}
	return err
}
