package memory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sessile/sessile/store"
)

// SaveAll implements store.Batcher; all keys are in one place.
func (s *Store) SaveAll(ctx context.Context, writes []store.Write) error {
	return s.saveAll(ctx, writes, nil)
}

func (s *Store) saveAll(ctx context.Context, writes []store.Write, under *store.Mark) error {
	keys := make(map[string]bool, len(writes))
	for _, w := range writes {
		if err := checkKey(w.Key); err != nil {
			return err
		}
		if keys[w.Key] {
			return fmt.Errorf("store/memory: %w: two writes for one key", store.ErrInvalid)
		}
		keys[w.Key] = true
	}
	if err := store.Gone(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, w := range writes {
		if err := checkRecord(w.Record, now); err != nil {
			return err
		}
	}
	if err := s.sealed(under); err != nil {
		return err
	}
	for _, w := range writes {
		if !w.Condition.Holds(s.get(w.Key, now).Version()) {
			return store.ErrConflict
		}
	}
	for _, w := range writes {
		s.put(w.Key, &w.Record, now)
	}
	return nil
}

// Append implements store.Appender.
func (s *Store) Append(ctx context.Context, key string, data []byte, expires time.Time) (store.Record, error) {
	return s.append(ctx, key, data, expires, nil)
}

func (s *Store) append(ctx context.Context, key string, data []byte, expires time.Time, under *store.Mark) (rec store.Record, err error) {
	err = s.do(ctx, key, func(now time.Time) error {
		rec = store.Record{Data: data, Expires: expires}
		if err := checkRecord(rec, now); err != nil {
			return err
		}
		if err := s.sealed(under); err != nil {
			return err
		}
		if old := s.get(key, now); old != nil {
			rec.Data, rec.Flags = slices.Concat(old.Data, data), old.Flags
			if old.Expires.After(expires) {
				rec.Expires = old.Expires
			}
		}
		s.put(key, &rec, now)
		rec.Data = slices.Clone(rec.Data)
		return nil
	})
	if err != nil {
		return store.Record{}, err
	}
	return rec, nil
}
