package memory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// sealed reports whether a write begun under m may still happen. Callers hold mu.
func (s *Store) sealed(m *store.Mark) error {
	if m != nil && *m != s.mark {
		return store.ErrSealed
	}
	return nil
}

// Mark implements store.Origin.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) {
	if err := store.Gone(ctx); err != nil {
		return store.Mark{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark, nil
}

// SwapMark implements store.Origin.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	if err := store.Gone(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mark != old {
		return store.ErrConflict
	}
	s.mark = next
	return nil
}

// Under implements store.Origin.
func (s *Store) Under(m store.Mark) store.Store { return under{s, m} }

type under struct {
	*Store
	mark store.Mark
}

// Track is not for a view: nobody tells when the mark changes.
func (u under) Track(func(string)) (func(context.Context, string) (store.Record, error), func(), error) {
	return nil, nil, fmt.Errorf("store/memory: a view of an origin does not track: %w", errors.ErrUnsupported)
}

// known refuses an origin that does not have the identity that it was known by.
func (u under) known() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mark.Identity != "" && u.Store.mark.Identity != u.mark.Identity {
		return store.ErrSealed
	}
	return nil
}

func (u under) Load(ctx context.Context, key string) (store.Record, error) {
	rec, err := u.Store.Load(ctx, key)
	if lost := u.known(); lost != nil { // what was forgotten stays so, so it is looked at behind the answer
		return store.Record{}, lost
	}
	return rec, err
}

func (u under) Inspect(ctx context.Context, key string) (store.Record, error) {
	return u.Load(ctx, key)
}

func (u under) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.save(ctx, key, rec, cond, &u.mark)
}

func (u under) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.touch(ctx, key, expires, &u.mark)
}

func (u under) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return u.delete(ctx, key, cond, &u.mark)
}

func (u under) SaveAll(ctx context.Context, writes []store.Write) error {
	return u.saveAll(ctx, writes, &u.mark)
}

func (u under) Append(ctx context.Context, key string, data []byte, expires time.Time) (store.Record, error) {
	return u.append(ctx, key, data, expires, &u.mark)
}
