package sessile

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
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
	return s.at
}

// Sessions lists the sessions in which user is logged in, the newest first. It costs two round trips, or one for each and one more
// where the store cannot read many at once.
func (m *Manager[T]) Sessions(ctx context.Context, user string) ([]Info[T], error) {
	all, err := m.listed(ctx, user, m.keys)
	if err != nil {
		return nil, err
	}
	if all, err = m.follow(ctx, all); err != nil {
		return nil, err
	}
	var list []Info[T]
	for _, p := range all {
		if !p.of(user) {
			continue
		}
		info := Info[T]{Key: p.key, Created: p.rec.created, Login: p.rec.login}
		if err := m.decode(p.rec, &info.Value); err == nil {
			list = append(list, info)
		}
	}
	slices.SortStableFunc(list, func(a, b Info[T]) int { return b.Login.Compare(a.Login) })
	return list, nil
}

// of reports whether it is a session in which user is logged in.
func (p placed) of(user string) bool { return p.rec != nil && p.rec.kind == live && p.rec.user == user }

// Revoke ends the sessions in which user is logged in: all but those that are named. No request that is under way can bring one
// back, and a login that is under way comes before or behind it. It returns how many there were; what an error has
// kept it from is not ended.
func (m *Manager[T]) Revoke(ctx context.Context, user string, except ...Key) (n int, err error) {
	all, err := m.listed(ctx, user, m.keys)
	if err != nil {
		return 0, err
	}
	return m.revoke(ctx, user, all, linesOf(all, except), func(p placed) bool { return !slices.Contains(except, p.key) })
}

// RevokeOnly ends those of user's sessions that are named.
func (m *Manager[T]) RevokeOnly(ctx context.Context, user string, keys ...Key) (n int, err error) {
	all, err := m.listed(ctx, user, m.keys)
	if err != nil {
		return 0, err
	}
	these := linesOf(all, keys)
	for _, k := range keys {
		if k.bytes() == nil || slices.ContainsFunc(all, func(p placed) bool { return p.key == k && p.rec != nil }) {
			continue
		}
		for _, p := range all { // it was renewed, a while ago: its tag has stayed
			if p.rec != nil && p.key.tag() == k.tag() {
				these = append(these, p.line())
			}
		}
	}
	return m.revoke(ctx, user, all, nil, func(p placed) bool { return slices.Contains(keys, p.key) || p.among(these) })
}

// linesOf returns the lines of those of all that have one of keys. A line stays the same when a session is renewed, meanwhile or since
// its key was asked for, and a renewal that was cut short may have left two records of one.
func linesOf(all []placed, keys []Key) (lines []line) {
	for _, p := range all {
		if p.rec != nil && slices.Contains(keys, p.key) {
			lines = append(lines, p.line())
		}
	}
	return lines
}

func (p placed) among(lines []line) bool { return p.rec != nil && slices.Contains(lines, p.line()) }

func (m *Manager[T]) revoke(ctx context.Context, user string, all []placed, spared []line, this func(placed) bool) (n int, err error) {
	counted := map[line]bool{}
	for _, p := range all {
		// Also where there is none: it may be just about to be made.
		if !this(p) || p.rec != nil && p.rec.user != user {
			continue
		}
		ended, err := m.end(ctx, p, spared)
		if err != nil {
			return n, fmt.Errorf("sessile: revoke: %w", err)
		}
		if ended.rec != nil && !counted[ended.line()] {
			counted[ended.line()] = true
			n++
			m.saw(ctx, EventRevoke, p.key, time.Time{}, nil)
		}
	}
	return n, nil
}

// listed returns what lies under the keys in the user's lists, in their order.
func (m *Manager[T]) listed(ctx context.Context, user string, by []*keyer) (all []placed, err error) {
	list, err := m.entries(ctx, user, by)
	if err != nil {
		return nil, err
	}
	return m.findAll(ctx, list)
}

func (m *Manager[T]) entries(ctx context.Context, user string, by []*keyer) (list []indexEntry, err error) {
	for _, keys := range by {
		x, err := m.index(ctx, keys.user(user), m.st.Load)
		if err != nil {
			return nil, err
		}
		list = append(list, x.entries...)
	}
	return list, nil
}

// follow has each session be there once: one that is renewed while its user's list is looked through may be found in its old place and
// in its new one, or in neither of them. Of two that are there the one that was saved more often is the one that is used.
func (m *Manager[T]) follow(ctx context.Context, all []placed) (each []placed, err error) {
	at, found := map[line]int{}, map[Key]placed{}
	for _, p := range all {
		if p.rec != nil {
			found[p.key] = p
		}
	}
	for _, p := range all {
		for hop := 0; p.rec != nil && p.rec.kind == moved && hop <= maxHops; hop++ {
			next, ok := decodeSuccessor(p.rec.body)
			if !ok {
				break
			}
			if p, ok = found[next.key]; ok {
				continue
			}
			p.key = next.key
			if p.rec, p.raw, err = m.find(ctx, p.key); err != nil {
				return nil, err
			}
			if p.rec != nil {
				found[p.key] = p
			}
		}
		if p.rec == nil || p.rec.kind != live {
			continue
		}
		switch i, twice := at[p.line()]; {
		case !twice:
			at[p.line()] = len(each)
			each = append(each, p)
		case !notBefore(each[i].rec.version, p.rec.version):
			each[i] = p
		}
	}
	return each, nil
}

// findAll is find for each, in one round trip where the store can do that.
func (m *Manager[T]) findAll(ctx context.Context, entries []indexEntry) ([]placed, error) {
	all, names := make([]placed, len(entries)), make([]string, len(entries))
	for i, e := range entries {
		all[i].key, names[i] = e.key, string(e.key)
	}
	if bulk, ok := m.st.(store.BulkReader); ok && len(all) > 1 {
		if got, err := bulk.InspectAll(ctx, names); err == nil {
			for i, rec := range got {
				if rec != nil {
					all[i].rec, all[i].raw, _ = m.read(ctx, all[i].key, *rec)
				}
			}
			return all, nil
		}
	}
	for i := range all {
		var err error
		if all[i].rec, all[i].raw, err = m.find(ctx, all[i].key); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// A userIndex is a record of its own, under a key of the user: which sessions may be his. A session is not told to anybody before it is
// in there, so that none is missing, and what has ended since is left out when there are many, or found not to be there.
//
// It is one entry behind the other, so that one can be added without reading those that there are. Twice the same is one.
//
//	0    format: 0x9d
//	1    the session's key (22 bytes)
//	23   when it was entered (4), in seconds since 1970
type userIndex struct {
	key     Key
	entries []indexEntry
	version store.Version
	expires time.Time
}

type indexEntry struct {
	key     Key
	entered time.Time
}

const (
	indexFormat = 0x9d
	entrySize   = 1 + tagBytes + keyBytes + 4
	// maxSessions is how many sessions a user may have where Options.MaxSessions does not say it: each is in his list, and the list is
	// one record.
	maxSessions = 10_000
	// pruneAt is how long a list gets before it is looked through for sessions that are over, and how much longer, at the least, before it is
	// again.
	pruneAt = 16
)

// pending is how long an entry may be without a session that is just being made: the list is written first, looked through, and then the
// session is written, each within Timeout; and clocks may differ.
func (m *Manager[T]) pending() time.Duration { return 30*time.Second + 3*m.opt.Timeout }

// index reads a list by the store's Load, or by its Inspect, which knows the deadline.
func (m *Manager[T]) index(ctx context.Context, key Key, read func(ctx context.Context, key string) (store.Record, error)) (*userIndex, error) {
	got, err := read(ctx, string(key))
	switch {
	case errors.Is(err, store.ErrAbsent):
		return &userIndex{key: key}, nil
	case err != nil:
		return nil, fmt.Errorf("sessile: the list of a user's sessions: %w", err)
	}
	return m.readIndex(ctx, key, got), nil
}

func (m *Manager[T]) readIndex(ctx context.Context, key Key, got store.Record) *userIndex {
	entries, err := m.keys[0].decodeIndex(got.Data)
	if err != nil {
		m.log.Error("sessile: the list of a user's sessions cannot be read, and counts as empty", "error", err)
		m.saw(ctx, EventUndecodable, key, time.Time{}, err)
	}
	return &userIndex{key, entries, got.Version(), got.Expires}
}

var errIndex = errors.New("sessile: not a list of sessions of this version")

func (k *keyer) decodeIndex(b []byte) (list []indexEntry, err error) {
	there := make(map[Key]bool, len(b)/entrySize)
	for e := range slices.Chunk(b, entrySize) {
		if len(e) != entrySize || e[0] != indexFormat {
			return nil, errIndex
		}
		one := indexEntry{k.of(e[1 : 1+tagBytes+keyBytes]), timeOf(e[1+tagBytes+keyBytes:])}
		if !there[one.key] {
			there[one.key] = true
			list = append(list, one)
		}
	}
	return list, nil
}

func (e indexEntry) append(b []byte) []byte {
	return appendTime(append(append(b, indexFormat), e.key.bytes()...), e.entered)
}

func encodeIndex(list []indexEntry) []byte {
	b := make([]byte, 0, len(list)*entrySize)
	for _, e := range list {
		b = e.append(b)
	}
	return b
}

// enlist notes that the session under key is about to be user's, and returns his list up to it.
func (m *Manager[T]) enlist(ctx context.Context, user string, key Key, now time.Time) ([]indexEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, m.opt.Timeout) // all attempts together
	defer cancel()
	mine, at := indexEntry{key, now}, m.keys[0].user(user)
	for try := 0; ; try++ {
		x, err := m.enter(ctx, at, mine)
		if err == nil {
			if n := len(x.entries); n%max(pruneAt, 1<<bits.Len(uint(n))/8) == 0 || n > maxSessions { // the longer, the more seldom
				m.prune(ctx, x, now)
			}
			return x.entries, nil
		}
		// An entry too many does no harm: where nobody knows what became of it, it is written again.
		again := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown)
		if !again || try == maxTries || !backOff(ctx, try) {
			return nil, fmt.Errorf("sessile: the list of a user's sessions: %w", err)
		}
	}
}

// enter adds an entry to a list: in one step where the store can do that.
func (m *Manager[T]) enter(ctx context.Context, at Key, mine indexEntry) (*userIndex, error) {
	if m.appender != nil {
		got, err := m.appender.Append(ctx, string(at), mine.append(nil), mine.entered.Add(m.indexLife()))
		if err == nil {
			if x := m.readIndex(ctx, at, got); len(x.entries) > 0 {
				return x, nil
			}
		} else if !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
	}
	x, err := m.index(ctx, at, m.st.Inspect)
	if err != nil {
		return nil, err
	}
	x.entries = slices.DeleteFunc(x.entries, func(e indexEntry) bool { return e.key == mine.key }) // of an attempt whose outcome was not known
	x.entries = append(x.entries, mine)
	return x, m.saveIndex(ctx, x, mine.entered)
}

// prune leaves out of a list what is over, and nothing else: not what cannot be read here, nor what says where a session has gone. Where it
// cannot, somebody does it later.
func (m *Manager[T]) prune(ctx context.Context, x *userIndex, now time.Time) {
	all, err := m.findAll(ctx, x.entries)
	if err != nil {
		return
	}
	short := *x
	short.entries = nil
	for i, e := range x.entries {
		if p := all[i]; p.raw != nil && (p.rec == nil || p.rec.kind != over) || now.Sub(e.entered) < m.pending() {
			short.entries = append(short.entries, e)
		}
	}
	_ = m.saveIndex(ctx, &short, now)
}

// indexLife is how long a session may last that was just made.
func (m *Manager[T]) indexLife() time.Duration {
	if m.opt.Absolute > 0 {
		return m.opt.Absolute + time.Second
	}
	return 10 * 365 * 24 * time.Hour
}

// saveIndex saves x, which is what lies in the store then. It never has a list end sooner: another process's clock may be ahead.
func (m *Manager[T]) saveIndex(ctx context.Context, x *userIndex, now time.Time) error {
	if len(x.entries) == 0 {
		return nil
	}
	rec := store.Record{Data: encodeIndex(x.entries), Expires: now.Add(m.indexLife())}
	if x.expires.After(rec.Expires) {
		rec.Expires = x.expires
	}
	if err := m.st.Save(ctx, string(x.key), rec, store.IfVersion(x.version)); err != nil {
		return err
	}
	x.version, x.expires = rec.Version(), rec.Expires
	return nil
}

// mayBe refuses a session of a user who has Options.MaxSessions already. list is his up to the new one. old is the one that this is to
// follow. Of those that are just being made the one that was entered before counts.
func (m *Manager[T]) mayBe(ctx context.Context, user string, list []indexEntry, mine, old Key) error {
	ctx, cancel := context.WithTimeout(ctx, m.opt.Timeout)
	defer cancel()
	before := slices.DeleteFunc(slices.Clone(list), func(e indexEntry) bool { return e.key == mine || e.key == old })
	all, err := m.findAll(ctx, before)
	if err != nil {
		return err
	}
	n, tags := 0, map[Key]bool{} // of those that are there, which one that is just being made may be the renewal of
	for _, p := range all {
		tags[p.key.tag()] = tags[p.key.tag()] || p.raw != nil
	}
	for i, p := range all {
		if p.raw == nil && time.Since(before[i].entered) < m.pending() && !tags[p.key.tag()] {
			n++
		}
	}
	older, err := m.listed(ctx, user, m.keys[1:])
	if err == nil {
		all, err = m.follow(ctx, append(all, older...))
	}
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.of(user) && p.key != mine && p.key != old {
			n++
		}
	}
	if n >= m.opt.MaxSessions {
		return ErrTooMany
	}
	return nil
}

// trim ends the oldest sessions of a user who has more than he may have, but not the one that he has just logged in in. list is his
// from before that was made.
func (m *Manager[T]) trim(ctx context.Context, user string, list []indexEntry, mine Key) error {
	limit := m.opt.MaxSessions
	if limit == 0 {
		limit = maxSessions
	}
	if m.opt.MaxSessions == 0 && len(list) <= limit {
		return nil
	}
	list, err := m.entries(ctx, user, m.keys) // now: of two who log in at once the one that is made last sees both
	if err != nil || len(list) <= limit {
		return err
	}
	all, err := m.findAll(ctx, list)
	if err != nil {
		return err
	}
	each, err := m.follow(ctx, all)
	if err != nil {
		return err
	}
	each = slices.DeleteFunc(each, func(p placed) bool { return !p.of(user) })
	slices.SortStableFunc(each, func(a, b placed) int {
		if a.key == mine || b.key == mine { // its clock may be another one than theirs, or it was slow
			return map[bool]int{a.key == mine: 1, b.key == mine: -1}[true]
		}
		return a.rec.login.Compare(b.rec.login)
	})
	var oldest []line
	for _, p := range each[:max(0, len(each)-limit)] {
		oldest = append(oldest, p.line())
	}
	_, err = m.revoke(ctx, user, all, nil, func(p placed) bool { return p.among(oldest) })
	return err
}
