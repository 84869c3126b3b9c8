package redis

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// Names. What a script touches comes to it from here, so that a slot's tag could be put in (Redis Cluster).

const reserved = "sessile:" // what begins so is ours, and no session's

func sideKey(data string) string      { return reserved + "m:{" + data + "}" }
func controlKey() string              { return reserved + "control" }
func fenceKey(workflow string) string { return reserved + "fence:" + workflow }
func leaseKey(workflow string) string { return reserved + "leases:" + workflow }
func intentsKey(wf string) string     { return reserved + "intents:" + wf }
func aheadsKey(wf string) string      { return reserved + "aheads:" + wf }
func stepsKey(wf string) string       { return reserved + "steps:" + wf }

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
	case rec.Flags != 0:
		return "", fmt.Errorf("store/redis: a record with flags: %w", store.ErrInvalid)
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
	return store.Capabilities{Scan: true, Conditional: true, NativeTTL: true, Lock: true}
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
	return store.Record{Data: r.bytes(0)}, r.fail()
}

// Inspect is a GET and a PTTL in one step.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	name, err := s.name(key)
	if err != nil {
		return store.Record{}, err
	}
	r := s.query(ctx, "inspect", inspectScript, []string{name})
	rec := r.record(1)
	if rec == nil {
		return store.Record{}, cmp.Or(r.err, store.ErrAbsent)
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
	all := make([]*store.Record, 0, len(keys))
	for len(all) < len(names) {
		from := len(all)
		r := s.query(ctx, "inspect", inspectScript, names[from:min(from+batchEntries, len(names))])
		for i := 1; i == 1 || i+1 < len(r.items); i += 2 {
			all = append(all, r.record(i))
		}
		if r.err != nil {
			return nil, r.err
		}
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
	args := []string{"SET", name, string(rec.Data), "PX", px}
	switch cond {
	case store.Always:
	case store.IfAbsent:
		args = append(args, "NX")
	case store.IfPresent:
		args = append(args, "XX")
	default:
		return s.run(ctx, "save", writeScript, []string{name}, cond.Encode(), px, string(rec.Data)).fail()
	}
	r := s.tell(ctx, "save", args...)
	if r.err == nil && !r.has(0) {
		return store.ErrConflict
	}
	return r.fail()
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
	r := s.tell(ctx, "touch", "PEXPIRE", name, px)
	if !r.flag(0) {
		return cmp.Or(r.err, store.ErrAbsent)
	}
	return nil
}

// Delete is one DEL, or a script where there is a condition.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	if cond == store.Always {
		r := s.tell(ctx, "delete", "DEL", name)
		return r.flag(0), r.fail()
	}
	r := s.run(ctx, "delete", writeScript.spare, []string{name}, cond.Encode(), "0", "")
	return r.flag(1), r.fail()
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// Scan is one script: SCAN, and TYPE of what it found. It leaves out what is under the prefix and is no session: locks
// (Page.Skipped["lock"]), our own ("sessile"), values that are not strings ("type"), keys that are none ("key").
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	if _, err := strconv.ParseUint("0"+cursor, 10, 64); err != nil {
		return page, fmt.Errorf("store/redis: scan: not a cursor: %w", store.ErrInvalid)
	}
	if limit <= 0 {
		limit = 100
	}
	r := s.query(ctx, "scan", scanScript, nil, cmp.Or(cursor, "0"), globEscaper.Replace(s.opt.Prefix)+"*",
		strconv.Itoa(min(limit, 1000))) // the server does nothing else meanwhile
	page.Skipped = make(map[string]int)
	if n := r.int(3); n > 0 {
		page.Skipped["type"] = int(n)
	}
	for _, data := range r.texts(4) {
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
	if page.Cursor = r.text(1); page.Cursor == "0" {
		page.Cursor = ""
	}
	if s.opt.Prefix == "" {
		page.Total = int(r.int(2))
	}
	return page, r.fail()
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
		r := s.tell(attempt, "lock", "SET", name+s.opt.LockSuffix, token, "NX", "PX", millis(life))
		if r.has(0) || r.err != nil {
			return r.fail()
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
	r := s.run(ctx, "unlock", unlockScript, []string{name + s.opt.LockSuffix}, token)
	return r.flag(1), r.fail()
}

// LockHolder is Inspect of the lock.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	name, err := s.name(key)
	if err != nil {
		return "", 0, err
	}
	r := s.query(ctx, "lock holder", inspectScript, []string{name + s.opt.LockSuffix})
	return r.text(1), max(0, r.millis(2)), r.fail()
}
