// Package memory keeps sessions in this process: a whole store, origin and target, with TTLs that run, for
// simulation, tests and the demo on a machine without Redis. Nothing survives the process.
//
// Time is time.Now, so that in a testing/synctest bubble deadlines and leases run in virtual time.
package memory

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// MaxKey is the longest key in bytes that a memory store holds.
const MaxKey = 512

// Options of a memory store. The zero value is a store whose records go away at their deadline.
type Options struct {
	// LazyExpiry keeps overdue records, and returns them, until Collect is called: as a directory of PHP files does.
	LazyExpiry bool
}

// Store is an in-memory store. Make it with New or Open.
type Store struct {
	opt Options

	mu         sync.Mutex // guards what follows
	records    map[string]store.Record
	locks      map[string]held
	lockFree   chan struct{} // closed and replaced whenever a lock is released
	mark       store.Mark
	workflows  map[string]*workflow
	instance   string
	generation uint64
	trackers   map[*func(key string)]struct{}
}

type held struct {
	token string
	until time.Time
}

var (
	_ store.Origin   = (*Store)(nil)
	_ store.Target   = (*Store)(nil)
	_ store.Batcher  = (*Store)(nil)
	_ store.Appender = (*Store)(nil)
	_ store.Tracker  = (*Store)(nil)
)

// New returns an empty store.
func New(opt Options) *Store {
	s := &Store{opt: opt, lockFree: make(chan struct{}), generation: 1, trackers: map[*func(string)]struct{}{}}
	s.clear()
	return s
}

func (s *Store) clear() {
	s.records = map[string]store.Record{}
	s.locks = map[string]held{}
	s.mark = store.Mark{}
	s.workflows = map[string]*workflow{}
	s.instance = rand.Text()
	s.tell("")
}

// tell says that the record under key has changed, "" that all may have. Callers hold mu: no load comes between a change and its news.
func (s *Store) tell(key string) {
	for changed := range s.trackers {
		(*changed)(key)
	}
}

// Track implements store.Tracker; load is Load. stop waits for a call of changed that is under way.
func (s *Store) Track(changed func(key string)) (load func(ctx context.Context, key string) (store.Record, error), stop func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trackers[&changed] = struct{}{}
	return s.Load, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.trackers, &changed)
	}, nil
}

// Capabilities implements store.Store.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{Scan: true, Conditional: true, NativeTTL: !s.opt.LazyExpiry, LazyExpiry: s.opt.LazyExpiry,
		Lock: true, Seal: true, Flags: true}
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("store/memory: %w: a key has 1 to %d bytes", store.ErrInvalid, MaxKey)
	}
	return nil
}

func checkRecord(rec store.Record, now time.Time) error {
	if !rec.Expires.After(now) {
		return fmt.Errorf("store/memory: %w: the deadline is not in the future", store.ErrInvalid)
	}
	return nil
}

// get returns the live record. Callers hold mu.
func (s *Store) get(key string, now time.Time) *store.Record {
	rec, ok := s.records[key]
	if !ok {
		return nil
	}
	if !s.opt.LazyExpiry && !rec.Expires.After(now) {
		delete(s.records, key)
		return nil
	}
	return &rec
}

// put stores rec, or removes the key where rec is nil or overdue. Callers hold mu.
func (s *Store) put(key string, rec *store.Record, now time.Time) {
	if rec == nil || !s.opt.LazyExpiry && !rec.Expires.After(now) {
		s.remove(key)
		return
	}
	kept := *rec
	kept.Data = slices.Clone(rec.Data)
	s.records[key] = kept
	s.tell(key)
}

// remove forgets what is under key. Callers hold mu.
func (s *Store) remove(key string) {
	if _, ok := s.records[key]; ok {
		delete(s.records, key)
		s.tell(key)
	}
}

// do runs f under the lock unless ctx is over: the whole store is one step, so an operation happens or does not.
func (s *Store) do(ctx context.Context, key string, f func(now time.Time) error) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := store.Gone(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(time.Now())
}

// Load implements store.Store. Expires is always filled.
func (s *Store) Load(ctx context.Context, key string) (rec store.Record, err error) {
	err = s.do(ctx, key, func(now time.Time) error {
		r := s.get(key, now)
		if r == nil {
			return store.ErrAbsent
		}
		rec = *r
		rec.Data = slices.Clone(r.Data)
		return nil
	})
	return rec, err
}

// Inspect implements store.Store.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	return s.Load(ctx, key)
}

// Save implements store.Store.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.save(ctx, key, rec, cond, nil)
}

func (s *Store) save(ctx context.Context, key string, rec store.Record, cond store.Condition, under *store.Mark) error {
	return s.do(ctx, key, func(now time.Time) error {
		if err := checkRecord(rec, now); err != nil {
			return err
		}
		if err := s.sealed(under); err != nil {
			return err
		}
		if !cond.Holds(s.get(key, now).Version()) {
			return store.ErrConflict
		}
		s.put(key, &rec, now)
		return nil
	})
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.touch(ctx, key, expires, nil)
}

func (s *Store) touch(ctx context.Context, key string, expires time.Time, under *store.Mark) error {
	return s.do(ctx, key, func(now time.Time) error {
		if err := checkRecord(store.Record{Expires: expires}, now); err != nil {
			return err
		}
		if err := s.sealed(under); err != nil {
			return err
		}
		rec := s.get(key, now)
		if rec == nil {
			return store.ErrAbsent
		}
		rec.Expires = expires
		s.records[key] = *rec
		return nil
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return s.delete(ctx, key, cond, nil)
}

func (s *Store) delete(ctx context.Context, key string, cond store.Condition, under *store.Mark) (existed bool, err error) {
	err = s.do(ctx, key, func(now time.Time) error {
		if err := s.sealed(under); err != nil {
			return err
		}
		rec := s.get(key, now)
		if !cond.Holds(rec.Version()) {
			return store.ErrConflict
		}
		existed = rec != nil
		s.remove(key)
		return nil
	})
	return existed, err
}

// Scan implements store.Store; the cursor is the last key returned.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (store.Page, error) {
	if err := store.Gone(ctx); err != nil {
		return store.Page{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var keys []string
	for key := range s.records {
		if key > cursor && s.get(key, now) != nil {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	page := store.Page{Keys: keys, Total: len(s.records)}
	if limit > 0 && len(keys) > limit {
		page.Keys, page.Cursor = keys[:limit], keys[limit-1]
	}
	return page, nil
}

// Lock implements store.Store.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	for {
		var wait <-chan struct{}
		var left time.Duration
		err := s.do(ctx, key, func(now time.Time) error {
			if h, ok := s.locks[key]; ok && h.until.After(now) {
				wait, left = s.lockFree, h.until.Sub(now)
				return nil
			}
			s.locks[key] = held{token, now.Add(life)}
			return nil
		})
		if err != nil || wait == nil {
			return err
		}
		over := time.NewTimer(left)
		select {
		case <-wait:
		case <-over.C:
		case <-ctx.Done():
			over.Stop()
			return store.ErrLocked
		}
		over.Stop()
	}
}

// Unlock implements store.Store.
func (s *Store) Unlock(ctx context.Context, key, token string) (released bool, err error) {
	err = s.do(ctx, key, func(now time.Time) error {
		h, ok := s.locks[key]
		if !ok || !h.until.After(now) || h.token != token {
			return nil
		}
		delete(s.locks, key)
		close(s.lockFree)
		s.lockFree = make(chan struct{})
		released = true
		return nil
	})
	return released, err
}

// LockHolder implements store.Store.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	err = s.do(ctx, key, func(now time.Time) error {
		if h, ok := s.locks[key]; ok && h.until.After(now) {
			token, left = h.token, h.until.Sub(now)
		}
		return nil
	})
	return token, left, err
}

// Close implements store.Store; there is nothing to release.
func (s *Store) Close() error { return nil }

// Collect removes overdue records, as a garbage collector of PHP files does, and returns how many.
func (s *Store) Collect() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, n := time.Now(), 0
	for key, rec := range s.records {
		if !rec.Expires.After(now) {
			n++
			s.remove(key)
		}
	}
	return n
}

// Keys lists every key that begins with prefix, for tests and reports.
func (s *Store) Keys(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key := range s.records {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	return keys
}

// A Snapshot is the memory of a store at one moment.
type Snapshot struct {
	records   map[string]store.Record
	mark      store.Mark
	workflows map[string]*workflow
}

// Snapshot copies the store's memory: what a disk might hold.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := Snapshot{records: maps.Clone(s.records), mark: s.mark, workflows: map[string]*workflow{}}
	for name, w := range s.workflows {
		snap.workflows[name] = w.clone()
	}
	return snap
}

// Restart makes the store another one, as a server that was restarted: it holds what snap holds, which may be
// nothing, under another Instance and Generation, and has forgotten its locks.
func (s *Store) Restart(snap Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.mark = snap.mark
	maps.Copy(s.records, snap.records)
	for name, w := range snap.workflows {
		s.workflows[name] = w.clone()
	}
	s.generation++
	close(s.lockFree)
	s.lockFree = make(chan struct{})
}

// Flush empties the store while it runs, as FLUSHALL does: the same instance, without its memory.
func (s *Store) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	instance := s.instance
	s.clear()
	s.instance = instance
}
