package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sessile/sessile/store"
)

var (
	_ store.Batcher  = (*Store)(nil)
	_ store.Appender = (*Store)(nil)
)

// SaveAll implements store.Batcher: one script. In a Cluster all names have to be in one slot, and the slot in one place: as long as it
// is on its way to another server, a record can be made beside another one by one Save for each only. Redis takes the first braces of a
// name for its tag, so those of a Prefix count before those of the keys.
//
// A replica has all that the script has written or nothing. But what a new primary lacks is put back one by one, each by what is
// there then and is known to be older: where somebody else has changed one of the records since, or one was forgotten, the others come
// back without it. A new session may then be there beside the old one, or the old one's marker without the new session, whose
// user logs in again.
func (s *Store) SaveAll(ctx context.Context, writes []store.Write) error {
	names := make([]string, 0, len(writes))
	args := make([]string, 0, 3*len(writes))
	for i := range writes {
		w := &writes[i]
		name, err := s.name(w.Key)
		if err != nil {
			return err
		}
		px, err := s.pxLeft(w.Record)
		if err != nil {
			return err
		}
		if slices.Contains(names, name) {
			return fmt.Errorf("store/redis: two writes for one key: %w", store.ErrInvalid)
		}
		names, args = append(names, name), append(args, w.Condition.Encode(), px, text(&w.Record))
	}
	if len(writes) == 0 {
		return nil
	}
	for _, name := range names[1:] {
		if s.slotOf(name) != s.slotOf(names[0]) {
			return fmt.Errorf("store/redis: save all: keys in several slots: %w", errors.ErrUnsupported)
		}
	}
	var done func(*reply)
	if asked := time.Now(); s.window != nil {
		done = func(*reply) {
			for i := range writes {
				w := &writes[i]
				s.Saved(w.Key, store.Flagged(w.Record.Data, w.Record.Flags), w.Record.Expires, asked, sumOf(store.Version(w.Condition.Encode())))
			}
		}
	}
	r := s.call(context.WithValue(ctx, togetherKey{}, true), "save all", store.ErrUnknown, saveAllScript, names, args, nil, done)
	if re, ok := errors.AsType[*replyError](r.err); ok && re.code == "TRYAGAIN" {
		return fmt.Errorf("store/redis: save all: the slot is on its way to another server: %w", errors.ErrUnsupported)
	}
	return s.resolved(ctx, r.fail(), func(ctx context.Context) (bool, error) { return s.resolveSaveAll(ctx, names, writes) })
}

// resolveSaveAll is ResolveSave for all of writes, read in one step. If all are there they are acknowledged. Where only some are it
// cannot be told whether the others were replaced since, or these were the same before: that stays unknown, and so does it, as
// for one Save, where none is, since all may have been replaced.
func (s *Store) resolveSaveAll(ctx context.Context, names []string, writes []store.Write) (bool, error) {
	keys, args := make([]string, 0, 2*len(writes)), make([]string, 0, 2*len(writes))
	for i := range writes {
		px, err := s.pxLeft(writes[i].Record)
		if err != nil {
			return false, err
		}
		keys, args = append(keys, names[i], s.sideKey(names[i])), append(args, string(writes[i].Record.Version()), px)
	}
	all, asked := false, time.Now()
	r := s.call(ctx, "resolve", store.ErrUnavailable, lookScript, keys, args, nil, func(r *reply) {
		if all = len(r.items) == 1+2*len(writes); !all { // the script left out what is behind many bytes of others
			return
		}
		for i := range writes {
			all = all && r.finding(1+2*i).same
		}
		for i := range writes {
			if rec := &writes[i].Record; all {
				s.Saved(writes[i].Key, store.Flagged(rec.Data, rec.Flags), rec.Expires, asked, 0)
			}
		}
	})
	return all, r.fail()
}

// Append implements store.Appender: one script. It answers ErrInvalid, with nothing done, where the whole would be larger than
// MaxValue, or would look as if it had flags.
//
// Of one whose outcome is unknown nothing can be found out by reading, since the same data may have been there before.
func (s *Store) Append(ctx context.Context, key string, data []byte, expires time.Time) (store.Record, error) {
	name, err := s.name(key)
	if err != nil {
		return store.Record{}, err
	}
	px, err := s.pxLeft(store.Record{Data: data, Expires: expires})
	if err != nil {
		return store.Record{}, err
	}
	var done func(*reply)
	if asked := time.Now(); s.window != nil {
		done = func(r *reply) {
			value, base := r.bytes(1), uint64(0)
			if r.flag(3) {
				base = s.window.sum(value[:len(value)-min(len(value), len(data))])
			}
			until := asked.Add(century) // without a deadline
			if left := r.millis(2); left >= 0 {
				until = time.Now().Add(left)
			}
			if r.err == nil {
				s.window.appended(key, value, until, asked, base)
			}
		}
	}
	r := s.call(ctx, "append", store.ErrUnknown, appendScript, []string{name}, []string{px, digits(uint64(s.opt.MaxValue)), string(data)}, nil, done)
	if r.err != nil {
		return store.Record{}, s.resolved(ctx, r.err, func(context.Context) (bool, error) { return false, nil })
	}
	rec := r.record(1)
	if rec == nil {
		return store.Record{}, r.unreadable(errors.New("no value"))
	}
	return *rec, r.fail()
}

// What an origin does is bounded in its server, and done under a mark: see Origin. A move needs neither of these two.

// SaveAll answers errors.ErrUnsupported.
func (o *Origin) SaveAll(context.Context, []store.Write) error {
	return fmt.Errorf("store/redis: save all in an origin: %w", errors.ErrUnsupported)
}

// Append answers errors.ErrUnsupported.
func (o *Origin) Append(context.Context, string, []byte, time.Time) (store.Record, error) {
	return store.Record{}, fmt.Errorf("store/redis: append in an origin: %w", errors.ErrUnsupported)
}
