// Package cached is a cache before a table, as one origin: the MySQL + memcached set-up, whose session handler reads the cache,
// else the table, and writes both.
//
// The handler writes the table with every write, and the cache is a copy that may be stale: a server was away while a session
// was written or destroyed, and came back with what it had; a reader put back what he had read before. So where the two differ the
// table is right, and the cache is never read. All that the contract asks for (conditions, deadlines, listing, locks, identity and seal) is the table's, one store's, in
// one step. The cache is there for those who read it: the handlers of application servers that have not moved yet, or have moved
// back. They must not find there what is no more, so what is written or destroyed here is removed from the cache, twice:
//
//	remove from the cache    it cannot be asked: nothing was done, ErrUnavailable
//	write the table          refused: the cache lacks a copy, which costs its next reader a look into the table. Nothing else
//	remove from the cache    what a reader has filled in meanwhile, from the row as it was. Fails: ErrUnknown, the table has it
//
// Removed and not written: two writers would have to write the cache in the order in which they wrote the table. A touch writes the
// table alone: a copy that ends sooner is no other session. Killed after the second line, a write or a logout is in the table and
// was answered to nobody; a copy that a reader filled in between the lines stays until it ends, as when a handler is killed there.
//
// A copy must not come back with its server, so a server that cannot be asked keeps its sessions from being written; reading goes
// on. But one that refuses connections is no process any more, and has no memory to come back with, unless it keeps that in a file,
// which plan is against: it is passed over.
//
// What no third party can prevent is what the handlers do to each other without us: one that read the old row, and puts it into the
// cache after our second removal. It is stale for readers of the cache, until it ends; we and the target never see it.
package cached

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// Store is a table and the cache before it. It implements store.Origin.
type Store struct {
	view
	table store.Origin
}

var (
	_ store.Origin     = (*Store)(nil)
	_ store.BulkReader = (*Store)(nil)
	_ store.Auditor    = (*Store)(nil)
	_ store.Checker    = (*Store)(nil)
	_ store.Prover     = (*Store)(nil)
)

// New returns a store that closes both. Of the cache it asks that Delete removes a copy: or Forget, where it has one.
func New(cache store.Store, table store.Origin) *Store {
	return &Store{view: view{cache: cache, table: table}, table: table}
}

// Lifetime is that of a session where the table does not say when it ends.
func (s *Store) Lifetime() time.Duration {
	if t, ok := s.table.(interface{ Lifetime() time.Duration }); ok {
		return t.Lifetime()
	}
	return 0
}

// Close implements store.Store.
func (s *Store) Close() error { return errors.Join(s.cache.Close(), s.table.Close()) }

// Mark implements store.Origin: identity and seal are the table's.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) { return s.table.Mark(ctx) }

// SwapMark implements store.Origin.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	return s.table.SwapMark(ctx, old, next)
}

// Under implements store.Origin. What the table refuses was removed from the cache at the most.
func (s *Store) Under(m store.Mark) store.Store {
	return &view{cache: s.cache, table: s.table.Under(m)}
}

// view is the two stores, the table perhaps under a mark.
type view struct{ cache, table store.Store }

// Close does nothing: whoever has opened them closes them.
func (*view) Close() error { return nil }

// Capabilities implements store.Store.
func (v *view) Capabilities() store.Capabilities { return v.table.Capabilities() }

// Load implements store.Store.
func (v *view) Load(ctx context.Context, key string) (store.Record, error) {
	return v.table.Load(ctx, key)
}

// Inspect implements store.Store.
func (v *view) Inspect(ctx context.Context, key string) (store.Record, error) {
	return v.table.Inspect(ctx, key)
}

// InspectAll implements store.BulkReader.
func (v *view) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	return inspectAll(ctx, v.table, keys)
}

// inspectAll is InspectAll of a store that may be none.
func inspectAll(ctx context.Context, s store.Store, keys []string) ([]*store.Record, error) {
	if bulk, ok := s.(store.BulkReader); ok {
		return bulk.InspectAll(ctx, keys)
	}
	all := make([]*store.Record, len(keys))
	for i, key := range keys {
		rec, err := s.Inspect(ctx, key)
		switch {
		case err == nil:
			all[i] = &rec
		case !errors.Is(err, store.ErrAbsent):
			return nil, err
		}
	}
	return all, nil
}

// Save implements store.Store.
func (v *view) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return v.write(ctx, key, func() error { return v.table.Save(ctx, key, rec, cond) })
}

// Delete implements store.Store.
func (v *view) Delete(ctx context.Context, key string, cond store.Condition) (existed bool, err error) {
	err = v.write(ctx, key, func() error {
		existed, err = v.table.Delete(ctx, key, cond)
		return err
	})
	return existed, err
}

// write is a write of the table, with the cache emptied of the session before and after.
func (v *view) write(ctx context.Context, key string, do func() error) error {
	if err := v.forget(ctx, key); err != nil {
		if errors.Is(err, store.ErrInvalid) {
			return err
		}
		return fmt.Errorf("store/cached: %w: the cache cannot be asked, and must not keep what is replaced: %s", store.ErrUnavailable, err.Error())
	}
	err := do()
	if err != nil && store.OutcomeOf(err) != store.OutcomeUnknown {
		return err
	}
	// That the caller's time is over does not make the copy right. The cache has a bound of its own.
	if left := v.forget(context.WithoutCancel(ctx), key); left != nil && err == nil {
		err = fmt.Errorf("store/cached: %w: the table has it, and the cache may have what was there before: %s", store.ErrUnknown, left.Error())
	}
	return err
}

// forget removes the cache's copy.
func (v *view) forget(ctx context.Context, key string) error {
	if f, ok := v.cache.(interface {
		Forget(ctx context.Context, key string) error
	}); ok {
		return f.Forget(ctx, key)
	}
	_, err := v.cache.Delete(ctx, key, store.Always)
	return err
}

// Touch implements store.Store.
func (v *view) Touch(ctx context.Context, key string, expires time.Time) error {
	return v.table.Touch(ctx, key, expires)
}

// Scan implements store.Store.
func (v *view) Scan(ctx context.Context, cursor string, limit int) (store.Page, error) {
	return v.table.Scan(ctx, cursor, limit)
}

// Lock implements store.Store.
func (v *view) Lock(ctx context.Context, key, token string, life time.Duration) error {
	return v.table.Lock(ctx, key, token, life)
}

// Unlock implements store.Store.
func (v *view) Unlock(ctx context.Context, key, token string) (bool, error) {
	return v.table.Unlock(ctx, key, token)
}

// LockHolder implements store.Store.
func (v *view) LockHolder(ctx context.Context, key string) (string, time.Duration, error) {
	return v.table.LockHolder(ctx, key)
}
