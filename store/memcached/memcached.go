// Package memcached keeps sessions in memcached servers (1.6 or later) under the names, with the values, the lifetimes and the
// locks that the session handlers of PHP give them. It is there to move sessions away from memcached: a store.Origin, and a store
// as far as memcached is one.
//
// What memcached does not have, no client can add to it. It forgets what it has no room for, and everything when it restarts. It
// compares and writes in one step only one item by its cas, so that a write cannot be bound to the mark of the origin: it is looked
// for just before, in the packet that reads what the write will replace. And a command that lies in the socket of a server that
// stands still is executed when that wakes, however late: so every write of a session is bound to the cas that was read, and
// does nothing where the session has been written meanwhile. Only a session that was absent, and is so again, can come back.
package memcached

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/memcache"
	"github.com/sessile/sessile/store"
)

// A Server is named as in the client's settings (session.save_path): its name goes into the choice of servers.
type Server struct {
	Host   string // a name or an address, or the path of a unix socket
	Port   int    // 0: a unix socket
	Weight int    // 0: 1
}

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Servers are required, in the client's order.
	Servers []Server
	// Client is who writes the sessions, php-memcached if nothing else is said; Distribution and Hash are how it chooses servers.
	// Their defaults are the client's.
	Client       Client
	Distribution Distribution
	Hash         Hash
	// Copies is on how many servers each session lies. The default is the client's: 1 for php-memcached (which calls the others
	// replicas), 2 for php-memcache (memcache.session_redundancy). All but the first are only written: neither client reads them
	// where the first answers.
	Copies int
	// Prefix is put before every session's id, and takes no part in the choice of servers that php-memcached's session handler makes.
	Prefix string

	// Lifetime is what a session has left that has no deadline, from whenever it is looked at. 0: such a session is refused.
	Lifetime time.Duration
	// Unlisted says that the servers forbid `lru_crawler metadump`, so that sessions cannot be listed.
	Unlisted bool
	// MaxValue is the size in bytes of the largest session. The default is 1 MiB, which is memcached's own (-I).
	MaxValue int
	// DialTimeout bounds the making of a connection; the default is 1 s. Timeout bounds an operation; the default is 2 s.
	DialTimeout, Timeout time.Duration
	// MaxConns bounds the connections to each server. The default is 64.
	MaxConns int
}

func (o *Options) complete() error {
	o.Client = cmp.Or(o.Client, PHPMemcached)
	choices := map[Client][]Distribution{PHPMemcached: {Ketama, KetamaWeighted, Modula}, PHPMemcache: {Consistent, Standard},
		Object: {Modula, Ketama, KetamaWeighted}}[o.Client]
	if choices == nil {
		return fmt.Errorf("store/memcached: there is no client %q: it is %s, %s or %s", o.Client, PHPMemcached, PHPMemcache, Object)
	}
	if o.Distribution = cmp.Or(o.Distribution, choices[0]); !slices.Contains(choices, o.Distribution) {
		return fmt.Errorf("store/memcached: %s has no distribution %q: it has %v", o.Client, o.Distribution, choices)
	}
	switch o.Client {
	case PHPMemcached, Object:
		if o.Hash != "" {
			return errors.New("store/memcached: hash is for php-memcache: the session handler of php-memcached has no choice")
		}
		o.Copies = cmp.Or(o.Copies, 1)
	case PHPMemcache:
		if o.Hash = cmp.Or(o.Hash, CRC32); o.Hash != CRC32 && o.Hash != FNV {
			return fmt.Errorf("store/memcached: php-memcache has no hash %q: it has %s and %s", o.Hash, CRC32, FNV)
		}
		o.Copies = cmp.Or(o.Copies, 2)
	}
	if len(o.Servers) == 0 {
		return errors.New("store/memcached: no server")
	}
	seen := map[Server]bool{}
	for i := range o.Servers {
		s := &o.Servers[i]
		s.Weight = cmp.Or(s.Weight, 1)
		place := Server{Host: s.Host, Port: s.Port}
		if s.Host == "" || s.Port < 0 || s.Port > 65535 || s.Weight < 0 || s.Weight > 1000 || seen[place] {
			return fmt.Errorf("store/memcached: server %d of %d has no name, a port or weight that cannot be, or is there twice", i+1, len(o.Servers))
		}
		seen[place] = true
	}
	o.Copies = min(o.Copies, len(o.Servers))
	o.MaxValue, o.MaxConns = cmp.Or(o.MaxValue, 1<<20), cmp.Or(o.MaxConns, 64)
	o.DialTimeout, o.Timeout = cmp.Or(o.DialTimeout, time.Second), cmp.Or(o.Timeout, 2*time.Second)
	if o.Copies < 1 || o.MaxValue < 0 || o.MaxConns < 0 || o.DialTimeout < 0 || o.Timeout < 0 || o.Lifetime < 0 {
		return errors.New("store/memcached: a number or a time is negative")
	}
	if bad(o.Prefix) || len(o.Prefix) > 128 || strings.HasPrefix(o.Prefix, reserved) {
		return errors.New("store/memcached: no such prefix is possible")
	}
	return nil
}

// A Store is some memcached servers. It implements store.Origin.
type Store struct {
	opt    Options
	nodes  []*node
	places places
	dumped atomic.Pointer[dump]   // the last one, while a scan goes on
	view   atomic.Pointer[under]  // the last one: marks change seldom
	noted  atomic.Pointer[marked] // the last mark that was read
}

var (
	_ store.Origin     = (*Store)(nil)
	_ store.BulkReader = (*Store)(nil)
	_ store.Checker    = (*Store)(nil)
)

// New returns a store. Servers are connected to when they are asked.
func New(opt Options) (*Store, error) {
	opt.Servers = append([]Server(nil), opt.Servers...)
	if err := opt.complete(); err != nil {
		return nil, err
	}
	s := &Store{opt: opt, places: place(&opt)}
	for i := range opt.Servers {
		s.nodes = append(s.nodes, newNode(&opt, &opt.Servers[i]))
	}
	return s, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	for _, n := range s.nodes {
		n.close()
	}
	return nil
}

// Capabilities implements store.Store.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{Scan: !s.opt.Unlisted, Conditional: true, NativeTTL: true, Lock: s.opt.Client != Object, Seal: true,
		Ageless: s.opt.Lifetime > 0, Flags: s.opt.Client != Object}
}

// Lifetime is what a session has left that has no deadline.
func (s *Store) Lifetime() time.Duration { return s.opt.Lifetime }

// reserved begins the names of our own items. No session has such a name.
const reserved = "sessile:"

// bad reports whether a text protocol cannot carry a name. php-memcached's binary one can, and somebody may send it a cookie of
// that kind; but no session's id looks so.
func bad(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] == 0x7f {
			return true
		}
	}
	return false
}

// maxName is the length of the longest name that memcached takes.
const maxName = 250

// name returns the name under which a session lies.
func (s *Store) name(key string) (string, error) {
	name := s.opt.Prefix + key
	if key == "" || bad(key) || len(name)+len(reserved)+len("lock:") > maxName || strings.HasPrefix(name, reserved) || s.isLock(key) {
		return "", fmt.Errorf("store/memcached: %w: no session of %s has such an id", store.ErrInvalid, s.opt.Client)
	}
	return name, nil
}

// seconds is a lifetime as memcached takes it. It counts by ticks of a clock that is up to a second behind, and a session must
// not end before its deadline, so one second more than it has. Over 30 days it is a date to memcached.
func seconds(expires time.Time) (int64, error) {
	now := time.Now()
	if !expires.After(now) {
		return 0, fmt.Errorf("store/memcached: %w: the deadline is not in the future", store.ErrInvalid)
	}
	up := func(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
	if d := expires.Sub(now); d <= 30*24*time.Hour-2*time.Second {
		return up(d) + 1, nil
	}
	return min(expires.Unix()+2, math.MaxInt32), nil // it reads no more: in 2038 it is to be asked again
}

// record makes a record of an item.
//
// Flags are the client's own. Session handlers leave them 0, but for php-memcache, which says by 2 that it has compressed the body
// (over memcache.compress_threshold bytes): such a body is decoded here, and the record has no flags, as if it had been written
// without. It is written back as it is then, which php-memcache reads as well. All other flags are given as they are,
// in Record.Flags, and are part of the version; a target that cannot keep them refuses the record.
func (s *Store) record(it *item) (store.Record, error) {
	switch {
	case it.large:
		return store.Record{}, fmt.Errorf("store/memcached: %w", &store.RefusedError{Reason: "too large"})
	case it.flags == memcache.FlagZlib && s.opt.Client == PHPMemcache:
		data, err := inflate(it.data, s.opt.MaxValue)
		return store.Record{Data: data}, err
	case s.opt.Client == Object:
		data, err := object(it, s.opt.MaxValue)
		return store.Record{Data: data}, err
	}
	return store.Record{Data: it.data, Flags: it.flags}, nil
}

func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.opt.Timeout, errTimeout)
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, key string) (store.Record, error) {
	return s.load(ctx, key, nil, false)
}

// Inspect implements store.Store.
func (s *Store) Inspect(ctx context.Context, key string) (store.Record, error) {
	return s.load(ctx, key, nil, true)
}

func (s *Store) load(ctx context.Context, key string, w *want, deadline bool) (store.Record, error) {
	name, err := s.name(key)
	if err != nil {
		return store.Record{}, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	n := s.nodes[s.places(key)[0]]
	for {
		before := time.Now()
		it, err := n.get(ctx, s, name, w, deadline)
		switch {
		case err != nil:
			return store.Record{}, err
		case it == nil:
			return store.Record{}, store.ErrAbsent
		case deadline && it.left == unknown:
			continue // it was written, or ended, between two commands
		}
		rec, err := s.record(it)
		if err == nil && deadline {
			err = s.age(&rec, before, it.left)
		}
		return rec, err
	}
}

// age fills in the deadline of a record that had left seconds, asked for at a time before that.
func (s *Store) age(rec *store.Record, before time.Time, left int64) error {
	switch {
	case left >= 0:
		rec.Expires = before.Add(time.Duration(left) * time.Second)
	case s.opt.Lifetime > 0:
		rec.Expires = time.Now().Add(s.opt.Lifetime)
	default:
		return fmt.Errorf("store/memcached: %w", &store.RefusedError{Reason: "without a deadline"})
	}
	return nil
}

// InspectAll implements store.BulkReader.
func (s *Store) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	all := make([]*store.Record, len(keys))
	names := make([]string, len(keys))
	byNode := make([][]int, len(s.nodes))
	for i, key := range keys {
		var err error
		if names[i], err = s.name(key); err != nil {
			return nil, err
		}
		at := s.places(key)[0]
		byNode[at] = append(byNode[at], i)
	}
	for at, mine := range byNode {
		for len(mine) > 0 {
			batch := mine[:min(len(mine), 64)] // what is sent before anything is read has to fit into the sockets
			mine = mine[len(batch):]
			if err := s.inspectBatch(ctx, s.nodes[at], batch, keys, names, all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (s *Store) inspectBatch(ctx context.Context, n *node, batch []int, keys, names []string, all []*store.Record) error {
	bounded, cancel := s.begin(ctx)
	defer cancel()
	of := make([]string, len(batch))
	for i, k := range batch {
		of[i] = names[k]
	}
	before := time.Now()
	items, err := n.getAll(bounded, s.opt.MaxValue, of)
	if err != nil {
		return err
	}
	for i, it := range items {
		k := batch[i]
		var rec store.Record
		switch {
		case it == nil:
			continue
		case it.left == unknown:
			rec, err = s.Inspect(ctx, keys[k])
		default:
			if rec, err = s.record(it); err == nil {
				err = s.age(&rec, before, it.left)
			}
		}
		if errors.Is(err, store.ErrAbsent) {
			continue
		}
		if err != nil {
			return err
		}
		all[k] = &rec
	}
	return nil
}

// Save implements store.Store.
func (s *Store) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return s.save(ctx, key, rec, cond, nil)
}

func (s *Store) save(ctx context.Context, key string, rec store.Record, cond store.Condition, w *want) error {
	life, err := seconds(rec.Expires)
	if err != nil {
		return err
	}
	if len(rec.Data) > s.opt.MaxValue {
		return fmt.Errorf("store/memcached: %w: over %d bytes", store.ErrInvalid, s.opt.MaxValue)
	}
	if rec.Flags != 0 && s.opt.Client == Object {
		return fmt.Errorf("store/memcached: %w: the flags of an object say what type it has", store.ErrInvalid)
	}
	_, err = s.change(ctx, key, cond, w, func(ctx context.Context, name string, at []int, was *item) (bool, error) {
		next := &item{data: rec.Data, flags: rec.Flags}
		done, err := s.nodes[at[0]].swap(ctx, name, was, next, life)
		// The copies come behind what decides. One that could not be written is an older session to a handler that cannot reach the
		// first server, so it is not passed over.
		for _, copy := range at[1:] {
			if done && err == nil {
				err = unsure(s.nodes[copy].set(ctx, name, next, life))
			}
		}
		return done, err
	})
	return err
}

// unsure makes a failure one of an operation of which a part was done.
func unsure(err error) error {
	if err == nil || errors.Is(err, store.ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: only a part of it was done: %s", store.ErrUnknown, err.Error())
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return s.remove(ctx, key, cond, nil)
}

func (s *Store) remove(ctx context.Context, key string, cond store.Condition, w *want) (bool, error) {
	return s.change(ctx, key, cond, w, func(ctx context.Context, name string, at []int, was *item) (bool, error) {
		// Copies go first: one that stayed would be the session again to such a handler.
		for i, copy := range at[1:] {
			if err := s.nodes[copy].remove(ctx, name); err != nil && i > 0 {
				return false, unsure(err)
			} else if err != nil {
				return false, err
			}
		}
		if was == nil {
			return true, nil
		}
		return s.nodes[at[0]].swap(ctx, name, was, nil, 0)
	})
}

// Forget removes whatever lies under key, wherever the client looks, for a store that has the session elsewhere (store/cached). A
// server that refuses connections has no process, so nothing that it could remember: it is passed over.
func (s *Store) Forget(ctx context.Context, key string) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	for _, at := range s.places(key) {
		if err := s.nodes[at].remove(ctx, name); err != nil && !errors.Is(err, store.ErrDown) {
			return err
		}
	}
	return nil
}

// change looks what there is, and has do replace exactly that. do answers false where it is something else by then. What there
// is on the first server decides.
func (s *Store) change(ctx context.Context, key string, cond store.Condition, w *want,
	do func(ctx context.Context, name string, at []int, was *item) (bool, error)) (existed bool, err error) {
	name, err := s.name(key)
	if err != nil {
		return false, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	at := s.places(key)
	for {
		was, err := s.nodes[at[0]].get(ctx, s, name, w, false)
		if err != nil {
			return false, err
		}
		if cond != store.Always {
			v := store.Absent
			if was != nil {
				rec, err := s.record(was)
				if err != nil {
					return false, err
				}
				v = rec.Version()
			}
			if !cond.Holds(v) {
				return false, store.ErrConflict
			}
		}
		done, err := do(ctx, name, at, was)
		if done || err != nil {
			return was != nil, err
		}
		if err := store.Gone(ctx); err != nil {
			return false, err
		}
	}
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.touch(ctx, key, expires, nil)
}

func (s *Store) touch(ctx context.Context, key string, expires time.Time, w *want) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	life, err := seconds(expires)
	if err != nil {
		return err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	at := s.places(key)
	if w != nil {
		if _, err := s.nodes[at[0]].get(ctx, s, s.markName(), w, false); err != nil {
			return err
		}
	}
	for i, at := range at {
		if there, err := s.nodes[at].touch(ctx, name, life); err != nil {
			return err
		} else if !there && i == 0 {
			return store.ErrAbsent
		}
	}
	return nil
}
