package redis

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// Names. What a script touches comes to it from here.
//
// In a Cluster a script touches only what lies in one slot. What is ours beside a session has a tag that puts it into
// the session's slot, whatever braces the session's name has; control records and leases are in the slot of home. Elsewhere
// there are no slots: all is in one, and the tag of that is "".

const reserved = "sessile:" // what begins so is ours, and no session's

func controlKey(home string) string    { return reserved + "control" + home }
func leaseKey(home, wf string) string  { return reserved + "leases:" + home + wf }
func fenceKey(tag, wf string) string   { return reserved + "fence:" + tag + wf }
func intentsKey(tag, wf string) string { return reserved + "intents:" + tag + wf }
func aheadsKey(tag, wf string) string  { return reserved + "aheads:" + tag + wf }
func stepsKey(tag, wf string) string   { return reserved + "steps:" + tag + wf }

func sideKey(tag, data string) string {
	if tag == "" {
		return reserved + "m:{" + data + "}"
	}
	return reserved + "m:" + tag + data
}

// sideKey returns the name of what lies beside the session whose name in Redis is data.
func (s *Store) sideKey(data string) string { return sideKey(s.tag(s.slotOf(data)), data) }

// slotOf returns the slot of the session whose name in Redis is data.
func (s *Store) slotOf(data string) int {
	if s.cluster == nil {
		return 0
	}
	return slotOf(data)
}

// slots returns how many slots there are.
func (s *Store) slots() int {
	if s.cluster == nil {
		return 1
	}
	return slotCount
}

// tag returns the tag of a slot.
func (s *Store) tag(slot int) string {
	if s.cluster == nil {
		return ""
	}
	return slotTag(slot)
}

// home returns the slot of what there is once.
func (s *Store) home() int { return s.slotOf("sessile") }

// markKey is the name of the mark of the sessions under prefix: two sites in one database have two.
func markKey(tag, prefix string) string { return reserved + "mark:" + tag + prefix }

const maxKey = 512

// name returns the name in Redis of the session under key.
func (s *Store) name(key string) (string, error) {
	data := s.opt.Prefix + key
	if err := checkName(s, key, data); err != nil {
		return "", err
	}
	return data, nil
}

// checkName refuses a key that no session can have. data is the key with the prefix.
func checkName[T string | []byte](s *Store, key string, data T) error {
	switch {
	case key == "":
		return fmt.Errorf("store/redis: empty key: %w", store.ErrInvalid)
	case len(key) > maxKey:
		return fmt.Errorf("store/redis: key of %d bytes: %w", len(key), store.ErrInvalid)
	case len(data) >= len(reserved) && string(data[:len(reserved)]) == reserved,
		len(data) >= len(s.opt.LockSuffix) && string(data[len(data)-len(s.opt.LockSuffix):]) == s.opt.LockSuffix:
		return fmt.Errorf("store/redis: reserved key: %w", store.ErrInvalid)
	}
	return nil
}

const century = 876_000 * time.Hour // as good as for ever, and far from where sums overflow

// millis writes d as Redis takes it, rounded up.
func millis(d time.Duration) string {
	return strconv.FormatInt(int64((min(d, century)+time.Millisecond-1)/time.Millisecond), 10)
}

// px returns the lifetime that rec has left, "0" where it is overdue, and refuses what cannot be kept. A lifetime goes to
// the server, never a deadline: the clocks may differ.
func (s *Store) px(rec store.Record) (string, error) {
	switch {
	case len(rec.Data) > s.opt.MaxValue:
		return "", fmt.Errorf("store/redis: a record of %d bytes: %w", len(rec.Data), store.ErrInvalid)
	case rec.Expires.IsZero():
		return "", fmt.Errorf("store/redis: a record without a deadline: %w", store.ErrInvalid)
	}
	now := time.Now()
	if rec.Expires.Sub(now) > century { // the year 9999, which Remaining cannot round up
		return millis(century), nil
	}
	return millis(max(0, rec.Remaining(now))), nil
}

// pxLeft is px for where an overdue record is refused.
func (s *Store) pxLeft(rec store.Record) (string, error) {
	px, err := s.px(rec)
	if px == "0" {
		err = fmt.Errorf("store/redis: the deadline is over: %w", store.ErrInvalid)
	}
	return px, err
}

// Capabilities of one Redis server.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{Scan: true, Conditional: true, NativeTTL: true, Lock: true, Flags: true}
}

// Load is one GET.
func (s *Store) Load(ctx context.Context, key string) (store.Record, error) {
	name, err := s.name(key)
	if err != nil {
		return store.Record{}, err
	}
	r := s.ask(ctx, "load", "GET", name)
	if r.err == nil && !r.has(0) {
		return store.Record{}, store.ErrAbsent
	}
	return recordOf(r.bytes(0)), r.refused()
}

// text is a record as it lies in Redis, and recordOf what lies there: see store.Flagged.
func text(rec *store.Record) string { return string(store.Flagged(rec.Data, rec.Flags)) }

func recordOf(value []byte) (rec store.Record) {
	rec.Data, rec.Flags = store.Unflagged(value)
	return rec
}

// valueVersion is the version of what lies in Redis.
func valueVersion(value []byte) store.Version { return store.VersionOf(store.Unflagged(value)) }

// Inspect is a GET and a PTTL in one step.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	name, err := s.name(key)
	if err != nil {
		return store.Record{}, err
	}
	r := s.queryOne(ctx, "inspect", inspectScript, name)
	rec := r.record(0)
	if rec == nil {
		return store.Record{}, cmp.Or(r.refused(), store.ErrAbsent)
	}
	return *rec, r.fail()
}

// InspectAll implements store.BulkReader: one script for many keys, several where they are very many, or large.
func (s *Store) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	names := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if names[i], err = s.name(key); err != nil {
			return nil, err
		}
	}
	parts := make([]part, len(names))
	for i, name := range names {
		parts[i].names = []string{name}
	}
	all := make([]*store.Record, len(keys))
	err := s.parts(ctx, "inspect", store.ErrUnavailable, inspectScript, nil, parts, func(i int, m *rueidis.RedisMessage) error {
		items, err := m.ToArray()
		r := &reply{op: "inspect", lost: store.ErrUnavailable, items: items}
		r.unreadable(err)
		all[i] = r.record(0)
		return r.err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Save is one command: SET with PX, and NX or XX where cond says so. Only IfVersion takes a script.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	px, err := s.pxLeft(rec)
	if err != nil {
		return err
	}
	args := []string{"SET", name, text(&rec), "PX", px}
	switch cond {
	case store.Always:
	case store.IfAbsent:
		args = append(args, "NX")
	case store.IfPresent:
		args = append(args, "XX")
	default:
		script := []string{cond.Encode(), px, text(&rec)}
		r := s.call(ctx, "save", store.ErrUnknown, writeScript, []string{name}, script, nil, s.whenSaved(ctx, key, rec, cond))
		return s.resolved(ctx, r.fail(), func(ctx context.Context) (bool, error) { return s.ResolveSave(ctx, key, rec) })
	}
	r := s.note(ctx, "save", s.whenSaved(ctx, key, rec, cond), args...)
	if r.err == nil && !r.has(0) {
		return store.ErrConflict
	}
	return s.resolved(ctx, r.fail(), func(ctx context.Context) (bool, error) { return s.ResolveSave(ctx, key, rec) })
}

// Touch is one PEXPIRE.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	px, err := s.pxLeft(store.Record{Expires: expires}) // PEXPIRE would delete what has none left
	if err != nil {
		return err
	}
	var done func(*reply)
	if asked := time.Now(); s.Remembers() {
		done = func(r *reply) {
			if r.flag(0) {
				s.Touched(key, expires, asked)
			}
		}
	}
	r := s.note(ctx, "touch", done, "PEXPIRE", name, px)
	err = r.err
	if there := r.flag(0); err == nil && !there {
		err = cmp.Or(r.err, store.ErrAbsent)
	}
	return s.resolved(ctx, err, func(ctx context.Context) (bool, error) {
		r := s.note(ctx, "touch", done, "PEXPIRE", name, px) // it neither creates nor changes anything else
		if r.err == nil && !r.flag(0) {
			return true, cmp.Or(r.err, store.ErrAbsent)
		}
		return true, r.fail()
	})
}

// Delete is one DEL, or a script where there is a condition, or where servers change their roles: then it leaves a gone
// marker.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (existed bool, err error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	gone := func(err error) (bool, error) {
		err = s.resolved(ctx, err, func(ctx context.Context) (bool, error) {
			existed = true // as far as anybody knows
			return s.ResolveDelete(ctx, key)
		})
		return existed, err
	}
	if s.Remembers() {
		asked := time.Now()
		r := s.call(ctx, "delete", store.ErrUnknown, deleteScript, []string{name, s.sideKey(name)}, []string{cond.Encode(), s.goneLife()}, nil,
			func(r *reply) { s.Deleted(key, asked, store.Version(r.text(2)), uint64(r.int(3))) })
		existed = r.flag(1)
		return gone(r.fail())
	}
	var r *reply
	if cond == store.Always {
		r = s.tell(ctx, "delete", "DEL", name)
		existed = r.flag(0)
	} else {
		r = s.run(ctx, "delete", writeScript.spare, []string{name}, cond.Encode(), "0", "")
		existed = r.flag(1)
	}
	return gone(r.fail())
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// Scan is one script: SCAN, and TYPE of what it found. It leaves out what is under the prefix and is no session: locks
// (Page.Skipped["lock"]), our own ("sessile"), values that are not strings ("type"), keys that are none ("key"). In a Cluster
// see scanSlots.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (store.Page, error) {
	if limit <= 0 {
		limit = 100
	}
	if s.cluster != nil {
		return s.scanSlots(ctx, cursor, limit)
	}
	if _, err := strconv.ParseUint("0"+cursor, 10, 64); err != nil {
		return store.Page{}, errCursor
	}
	page, _, err := s.scan(ctx, cursor, limit, "")
	return page, err
}

var errCursor = fmt.Errorf("store/redis: scan: not a cursor: %w", store.ErrInvalid)

// scan is one step of SCAN. In a Cluster it is for the server that has the slot of the name; here says whether one does.
func (s *Store) scan(ctx context.Context, cursor string, limit int, name string) (page store.Page, here bool, err error) {
	args := []string{cmp.Or(cursor, "0"), globEscaper.Replace(s.opt.Prefix) + "*", strconv.Itoa(min(limit, 1000)), name} // the server does nothing else meanwhile
	r := s.callAt(ctx, "scan", store.ErrUnavailable, scanScript, name, nil, args, nil, nil)
	others := int(r.int(3))
	s.list(&page, others, r.texts(4))
	if page.Cursor = r.text(1); page.Cursor == "0" {
		page.Cursor = ""
	}
	if s.opt.Prefix == "" {
		page.Total = int(r.int(2))
	}
	return page, others >= 0, r.fail()
}

// list puts names in Redis into a page, those that are of sessions, and counts the rest. others are of values that are not
// strings.
func (s *Store) list(page *store.Page, others int, names []string) {
	if page.Skipped == nil {
		page.Skipped = make(map[string]int)
	}
	if others > 0 {
		page.Skipped["type"] += others
	}
	for _, data := range names {
		key := strings.TrimPrefix(data, s.opt.Prefix)
		switch _, err := s.name(key); {
		case err == nil:
			page.Keys = append(page.Keys, key)
		case strings.HasPrefix(data, reserved):
			page.Skipped["sessile"]++
		case strings.HasSuffix(data, s.opt.LockSuffix):
			page.Skipped["lock"]++
		default:
			page.Skipped["key"]++
		}
	}
}

// lockGrace is how long the answer to an attempt at a lock is waited for beyond the end of the context, so that a lock
// is not taken and forgotten.
const lockGrace = 250 * time.Millisecond

// Lock is SET with NX and PX on key_LOCK, as phpredis does it, again and again: other clients do not say when they
// release a lock.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	name, err := s.name(key)
	switch {
	case err != nil:
		return err
	case token == "" || life <= 0:
		return fmt.Errorf("store/redis: a lock without token or life: %w", store.ErrInvalid)
	}
	if err := store.Gone(ctx); err != nil {
		return fmt.Errorf("store/redis: lock: %w", err)
	}
	attempt, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lockGrace, cancel) })()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		asked := time.Now()
		done := func(r *reply) {
			if r.has(0) {
				s.Locked(key, token, asked.Add(life))
			}
		}
		r := s.note(attempt, "lock", done, "SET", name+s.opt.LockSuffix, token, "NX", "PX", millis(life))
		if r.has(0) || r.err != nil {
			return s.resolved(attempt, r.fail(), func(ctx context.Context) (bool, error) {
				return s.ResolveLock(ctx, key, token, asked.Add(life))
			})
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return store.ErrLocked
		}
	}
}

// Unlock deletes the lock if it is still token's.
func (s *Store) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	once := func(ctx context.Context) (bool, error) {
		r := s.call(ctx, "unlock", store.ErrUnknown, unlockScript, []string{name + s.opt.LockSuffix}, []string{token}, nil,
			func(r *reply) { s.Unlocked(key, token) })
		held = r.flag(1)
		return true, r.fail()
	}
	_, err = once(ctx)
	return held, s.resolved(ctx, err, func(ctx context.Context) (bool, error) {
		_, err := once(ctx) // it releases nobody else's
		held = true
		return true, err
	})
}

// LockHolder is Inspect of the lock.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	name, err := s.name(key)
	if err != nil {
		return "", 0, err
	}
	r := s.queryOne(ctx, "lock holder", inspectScript, name+s.opt.LockSuffix)
	return r.text(0), max(0, r.millis(1)), r.fail()
}
