package sessile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sessile/sessile/store"
)

// An Info is a session in the list of a user's.
type Info[T any] struct {
	Key     Key // names it to Revoke; no cookie can be made of it
	Created time.Time
	Login   time.Time
	Value   T
}

// Key names the request's session, in the list of its user's sessions. It is "" where there is none.
func (s *Session[T]) Key() Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec == nil {
		return ""
	}
	return s.key()
}

// Sessions lists the sessions in which user is logged in, the newest first. It costs a round trip for each, and one more.
func (m *Manager[T]) Sessions(ctx context.Context, user string) ([]Info[T], error) {
	x, err := m.index(ctx, user)
	if err != nil {
		return nil, err
	}
	var list []Info[T]
	for _, e := range x.entries {
		rec, err := m.live(ctx, e.key)
		if err != nil {
			return nil, err
		}
		if rec == nil || rec.user != user {
			continue
		}
		info := Info[T]{Key: e.key, Created: rec.created, Login: rec.login}
		if err := m.opt.Codec.Unmarshal(rec.body, &info.Value); err == nil {
			list = append(list, info)
		}
	}
	slices.SortStableFunc(list, func(a, b Info[T]) int { return b.Login.Compare(a.Login) })
	return list, nil
}

// Revoke ends the sessions in which user is logged in: all but those that are named. No request that is under way can bring one
// back, and a login that is under way has come before it, or is refused. It returns how many there were; what an error has
// kept it from is not ended.
func (m *Manager[T]) Revoke(ctx context.Context, user string, except ...Key) (n int, err error) {
	return m.revoke(ctx, user, func(k Key) bool { return !slices.Contains(except, k) })
}

// RevokeOnly ends those of user's sessions that are named.
func (m *Manager[T]) RevokeOnly(ctx context.Context, user string, keys ...Key) (n int, err error) {
	return m.revoke(ctx, user, func(k Key) bool { return slices.Contains(keys, k) })
}

func (m *Manager[T]) revoke(ctx context.Context, user string, this func(Key) bool) (n int, err error) {
	x, err := m.index(ctx, user)
	if err != nil {
		return 0, err
	}
	for _, e := range x.entries {
		if !this(e.key) {
			continue
		}
		rec, err := m.live(ctx, e.key)
		if err != nil {
			return n, err
		}
		if rec != nil && rec.user != user {
			continue
		}
		// Also where there is none: it may be just about to be made.
		if err := m.bury(ctx, e.key, &record{}, store.Always); err != nil {
			return n, fmt.Errorf("sessile: revoke: %w", err)
		}
		if rec != nil {
			n++
		}
	}
	return n, nil
}

// live returns the session under key, nil where there is none.
func (m *Manager[T]) live(ctx context.Context, key Key) (*record, error) {
	rec, _, err := m.find(ctx, key)
	if rec != nil && rec.kind != live {
		rec = nil
	}
	return rec, err
}

// A userIndex is a record of its own, under a key of the user: which sessions may be his. It is written before a session is, so that
// none is missing, and what has ended since is left out when it is written the next time, or found not to be there.
//
//	0    format: 0x9d
//	1    for each session: its key (20 bytes), when it was made (4, in seconds since 1970)
type userIndex struct {
	key     Key
	entries []indexEntry
	version store.Version
}

type indexEntry struct {
	key     Key
	created time.Time
}

const (
	indexFormat = 0x9d
	entrySize   = keyBytes + 4
	// maxEntries bounds a user's list: the oldest go, and are not listed any more. Who has so many sessions is no person.
	maxEntries = 1000
)

func (m *Manager[T]) index(ctx context.Context, user string) (*userIndex, error) {
	x := &userIndex{key: digest(m.opt.Secret, "user", user)}
	got, err := m.st.Load(ctx, string(x.key))
	switch {
	case errors.Is(err, store.ErrAbsent):
		return x, nil
	case err != nil:
		return nil, fmt.Errorf("sessile: the list of a user's sessions: %w", err)
	}
	x.version = got.Version()
	x.entries, err = decodeIndex(got.Data)
	return x, err
}

var errIndex = errors.New("sessile: not a list of sessions of this version")

func decodeIndex(b []byte) (list []indexEntry, err error) {
	if len(b) == 0 || b[0] != indexFormat || (len(b)-1)%entrySize != 0 {
		return nil, errIndex
	}
	for e := range slices.Chunk(b[1:], entrySize) {
		list = append(list, indexEntry{Key(letters.EncodeToString(e[:keyBytes])), timeOf(e[keyBytes:])})
	}
	return list, nil
}

func encodeIndex(list []indexEntry) []byte {
	b := make([]byte, 1, 1+len(list)*entrySize)
	b[0] = indexFormat
	for _, e := range list {
		key, _ := letters.DecodeString(string(e.key)) // of our own making
		b = appendTime(append(b, key...), e.created)
	}
	return b
}

// enlist notes that the session under key is about to be user's.
func (m *Manager[T]) enlist(ctx context.Context, user string, key Key, created time.Time) error {
	for try := 0; ; try++ {
		x, err := m.index(ctx, user)
		if err != nil {
			return err
		}
		keep, life := x.entries[:0], 10*365*24*time.Hour
		for _, e := range x.entries {
			if m.opt.Absolute < 0 || created.Sub(e.created) < m.opt.Absolute+time.Second {
				keep = append(keep, e)
			}
		}
		if m.opt.Absolute > 0 {
			life = m.opt.Absolute + time.Second
		}
		if len(keep) >= maxEntries {
			keep = keep[1:]
		}
		rec := store.Record{Data: encodeIndex(append(keep, indexEntry{key, created})), Expires: created.Add(life)}
		if err = m.st.Save(ctx, string(x.key), rec, store.IfVersion(x.version)); err == nil {
			return nil
		}
		// An entry too many does no harm: where nobody knows what became of it, it is written again.
		again := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown)
		if !again || try == maxTries || !backOff(ctx, try) {
			return fmt.Errorf("sessile: the list of a user's sessions: %w", err)
		}
	}
}
