package memory

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/sessile/sessile/store"
)

type workflow struct {
	control []byte
	fence   uint64
	leases  map[string]lease
	markers map[string]marker
	steps   map[*handle]uint64
}

type lease struct {
	until time.Time
	info  []byte
}

type marker struct {
	kind    store.MarkerKind
	nonce   string
	until   time.Time
	version uint64
	took    store.MarkerKind // what an intent found when it was made, for a Begin that is repeated
	gone    time.Time        // until when a gone marker that an intent replaced has to be remembered
}

func (w *workflow) clone() *workflow {
	return &workflow{slices.Clone(w.control), w.fence, maps.Clone(w.leases), maps.Clone(w.markers), maps.Clone(w.steps)}
}

// Workflow implements store.Target.
func (s *Store) Workflow(name string) store.Workflow { return &handle{s: s, name: name} }

// Workflows implements store.Target.
func (s *Store) Workflows(ctx context.Context) ([]string, error) {
	if err := store.Gone(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, w := range s.workflows {
		if w.control != nil {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// Instance implements store.Target.
func (s *Store) Instance(ctx context.Context) (string, error) {
	if err := store.Gone(ctx); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance, nil
}

// Generation implements store.Target.
func (s *Store) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// A handle is one workflow of a store; what it knows is in the store, since Restart replaces that.
type handle struct {
	s    *Store
	name string
	seen uint64 // how many of its steps it was told were done; s.mu guards it
}

// do runs f on the workflow as one step.
func (h *handle) do(ctx context.Context, f func(w *workflow, now time.Time) error) error {
	if err := store.Gone(ctx); err != nil {
		return err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	w := h.s.workflows[h.name]
	if w == nil {
		w = &workflow{leases: map[string]lease{}, markers: map[string]marker{}, steps: map[*handle]uint64{}}
		h.s.workflows[h.name] = w
	}
	return f(w, time.Now())
}

// fenced is do for senders who say their epoch.
func (h *handle) fenced(ctx context.Context, epoch uint64, f func(w *workflow, now time.Time) error) error {
	return h.do(ctx, func(w *workflow, now time.Time) error {
		if w.fence == 0 || epoch < w.fence {
			return store.ErrFenced
		}
		return f(w, now)
	})
}

// keyed is fenced for one key.
func (h *handle) keyed(ctx context.Context, key string, epoch uint64, f func(w *workflow, m marker, now time.Time) error) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return h.fenced(ctx, epoch, func(w *workflow, now time.Time) error {
		if w.steps[h] < h.seen {
			return store.ErrFenced
		}
		m := w.markers[key]
		if m.kind == store.GoneMark && !m.until.After(now) {
			delete(w.markers, key)
			m = marker{}
		}
		return f(w, m, now)
	})
}

// step counts one step of h. Callers hold mu.
func (h *handle) step(w *workflow) {
	w.steps[h]++
	h.seen = w.steps[h]
}

// none reports whether m is no marker to whoever asks for one.
func (m marker) none() bool { return m.kind == store.NoMarker || m.kind == store.GoneMark }

func (m marker) mine(op store.Op, kind store.MarkerKind) bool {
	return m.kind == kind && m.nonce == op.Nonce
}

func (m marker) lives(now time.Time) bool { return !m.none() && m.until.After(now) }

func (h *handle) Control(ctx context.Context) (control []byte, err error) {
	err = h.do(ctx, func(w *workflow, _ time.Time) error {
		control = slices.Clone(w.control)
		return nil
	})
	return control, err
}

func (h *handle) SwapControl(ctx context.Context, old, next []byte) error {
	return h.do(ctx, func(w *workflow, _ time.Time) error {
		if !bytes.Equal(w.control, old) {
			return store.ErrConflict
		}
		w.control = slices.Clone(next)
		return nil
	})
}

func (h *handle) Fence(ctx context.Context) (epoch uint64, err error) {
	err = h.do(ctx, func(w *workflow, _ time.Time) error {
		epoch = w.fence
		return nil
	})
	return epoch, err
}

func (h *handle) RaiseFence(ctx context.Context, epoch uint64) error {
	return h.do(ctx, func(w *workflow, _ time.Time) error {
		w.fence = max(w.fence, epoch)
		return nil
	})
}

func (h *handle) Renew(ctx context.Context, gateway string, info []byte, life time.Duration) (r store.Renewal, err error) {
	err = h.do(ctx, func(w *workflow, now time.Time) error {
		w.leases[gateway] = lease{now.Add(life), slices.Clone(info)}
		r = store.Renewal{Control: slices.Clone(w.control), Forgot: w.steps[h] < h.seen, Now: now}
		if !r.Forgot {
			h.step(w)
		}
		return nil
	})
	return r, err
}

func (h *handle) Accept() {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.seen = 0
}

func (h *handle) Leases(ctx context.Context) (leases []store.Lease, err error) {
	err = h.do(ctx, func(w *workflow, now time.Time) error {
		for name, l := range w.leases {
			leases = append(leases, store.Lease{Gateway: name, Left: l.until.Sub(now), Until: l.until, Info: slices.Clone(l.info)})
		}
		sort.Slice(leases, func(i, j int) bool { return leases[i].Gateway < leases[j].Gateway })
		return nil
	})
	return leases, err
}

func (h *handle) DropLease(ctx context.Context, gateway string) error {
	return h.do(ctx, func(w *workflow, now time.Time) error {
		if l, ok := w.leases[gateway]; ok && l.until.After(now) {
			return store.ErrConflict
		}
		delete(w.leases, gateway)
		return nil
	})
}

func (h *handle) Leave(ctx context.Context, gateway string) error {
	return h.do(ctx, func(w *workflow, _ time.Time) error {
		delete(w.leases, gateway)
		delete(w.steps, h)
		h.seen = 0
		return nil
	})
}

func (h *handle) LoadMarked(ctx context.Context, key string) (rec *store.Record, mk store.Marker, err error) {
	if err := checkKey(key); err != nil {
		return nil, store.Marker{}, err
	}
	err = h.do(ctx, func(w *workflow, now time.Time) error {
		if w.fence == 0 {
			return store.ErrFenced
		}
		rec = h.s.copyOf(key, now)
		m := w.markers[key]
		if m.kind == store.GoneMark && !m.until.After(now) {
			m = marker{}
		}
		mk = m.public(now)
		return nil
	})
	return rec, mk, err
}

func (m marker) public(now time.Time) store.Marker {
	if m.kind == store.NoMarker {
		return store.Marker{}
	}
	return store.Marker{Kind: m.kind, Nonce: m.nonce, Left: m.until.Sub(now), Version: m.version}
}

// copyOf returns the live record as the caller's own. Callers hold mu.
func (s *Store) copyOf(key string, now time.Time) *store.Record {
	rec := s.get(key, now)
	if rec != nil {
		rec.Data = slices.Clone(rec.Data)
	}
	return rec
}

func (h *handle) Begin(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	return h.begin(ctx, key, op, true)
}

func (h *handle) Settle(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	return h.begin(ctx, key, op, false)
}

func (h *handle) begin(ctx context.Context, key string, op store.Op, create bool) (b store.Begun, err error) {
	err = h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if m.lives(now) && m.nonce != op.Nonce {
			return &store.BusyError{Left: m.until.Sub(now)}
		}
		b.Holds = h.s.get(key, now).Version()
		switch {
		case m.kind == store.AheadOf:
			m.nonce, m.until = op.Nonce, now.Add(op.Lease)
			b.Took = store.AheadOf
			b.Ahead = store.Ahead{Version: m.version, Mine: true, Record: h.s.copyOf(key, now)}
		case m.kind == store.Intent:
			if m.nonce != op.Nonce {
				m.took = store.Intent
			}
			m.nonce, m.until = op.Nonce, now.Add(op.Lease)
			b.Took = m.took
		case !create:
			return store.ErrAbsent
		default:
			m = marker{kind: store.Intent, nonce: op.Nonce, until: now.Add(op.Lease), gone: m.until}
		}
		w.markers[key] = m
		h.step(w)
		return nil
	})
	return b, err
}

func (h *handle) Commit(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	return h.commit(ctx, key, op, rec, false)
}

func (h *handle) CommitRead(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	return h.commit(ctx, key, op, rec, true)
}

func (h *handle) commit(ctx context.Context, key string, op store.Op, rec *store.Record, read bool) error {
	return h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if !m.mine(op, store.Intent) {
			return store.ErrLost
		}
		held := h.s.get(key, now)
		if stays := read && held != nil && held.Version() == rec.Version() && held.Expires.After(rec.Expires); !stays {
			if read && rec != nil && !rec.Expires.After(now) {
				rec = nil
			}
			h.s.put(key, rec, now)
		}
		delete(w.markers, key)
		h.step(w)
		return nil
	})
}

func (h *handle) Withdraw(ctx context.Context, key string, op store.Op) error {
	return h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if !m.mine(op, store.Intent) || m.took != store.NoMarker { // one taken over from a dead one has to be settled
			return nil
		}
		delete(w.markers, key)
		if m.gone.After(now) {
			w.markers[key] = marker{kind: store.GoneMark, until: m.gone}
		}
		return nil
	})
}

func (h *handle) WriteAhead(ctx context.Context, key string, op store.Op, rec *store.Record, cond store.Condition) (a store.Ahead, err error) {
	err = h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if m.kind == store.Intent && (m.lives(now) || cond != store.Always) {
			return &store.BusyError{Left: m.until.Sub(now)}
		}
		held := h.s.get(key, now)
		if !cond.Holds(held.Version()) {
			return store.ErrConflict
		}
		h.s.put(key, rec, now)
		a = h.ahead(w, key, m, op, now)
		a.Existed = held != nil
		return nil
	})
	return a, err
}

func (h *handle) MarkAhead(ctx context.Context, key string, op store.Op) (a store.Ahead, err error) {
	err = h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if m.kind == store.Intent {
			return &store.BusyError{Left: m.until.Sub(now)}
		}
		if h.s.get(key, now) == nil {
			return store.ErrAbsent
		}
		a = h.ahead(w, key, m, op, now)
		return nil
	})
	return a, err
}

// ahead marks what the target holds ahead, one version further. Callers hold mu.
func (h *handle) ahead(w *workflow, key string, m marker, op store.Op, now time.Time) store.Ahead {
	owned := m.kind == store.AheadOf && m.lives(now) && m.nonce != op.Nonce
	if m.kind != store.AheadOf {
		m = marker{kind: store.AheadOf}
	}
	m.version++
	if !owned {
		m.nonce, m.until = op.Nonce, now.Add(op.Lease)
	}
	w.markers[key] = m
	h.step(w)
	return store.Ahead{Version: m.version, Mine: !owned, Record: h.s.copyOf(key, now)}
}

func (h *handle) Propagated(ctx context.Context, key string, op store.Op, version uint64) (a store.Ahead, done bool, err error) {
	err = h.keyed(ctx, key, op.Epoch, func(w *workflow, m marker, now time.Time) error {
		if !m.mine(op, store.AheadOf) {
			return store.ErrLost
		}
		if m.version == version {
			delete(w.markers, key)
			done = true
			return nil
		}
		m.until = now.Add(op.Lease)
		w.markers[key] = m
		a = store.Ahead{Version: m.version, Mine: true, Record: h.s.copyOf(key, now)}
		return nil
	})
	return a, done, err
}

func (h *handle) SaveLast(ctx context.Context, key string, epoch uint64, rec *store.Record, cond store.Condition) (existed bool, err error) {
	err = h.keyed(ctx, key, epoch, func(w *workflow, _ marker, now time.Time) error {
		held := h.s.get(key, now)
		if !cond.Holds(held.Version()) {
			return store.ErrConflict
		}
		existed = held != nil
		h.s.put(key, rec, now)
		delete(w.markers, key)
		h.step(w)
		return nil
	})
	return existed, err
}

func (h *handle) TouchMarked(ctx context.Context, key string, epoch uint64, expires time.Time) (present bool, mk store.Marker, err error) {
	err = h.keyed(ctx, key, epoch, func(w *workflow, m marker, now time.Time) error {
		h.step(w)
		mk = m.public(now)
		if rec := h.s.get(key, now); rec != nil {
			present = true
			rec.Expires = expires
			h.s.put(key, rec, now)
		}
		return nil
	})
	return present, mk, err
}

func (h *handle) Copy(ctx context.Context, key string, epoch uint64, rec *store.Record) error {
	return h.keyed(ctx, key, epoch, func(_ *workflow, m marker, now time.Time) error {
		if m.none() {
			h.s.put(key, rec, now)
		}
		return nil
	})
}

func (h *handle) Add(ctx context.Context, epoch uint64, entries []store.Entry) ([]bool, error) {
	stored := make([]bool, len(entries))
	err := h.fenced(ctx, epoch, func(w *workflow, now time.Time) error {
		for i, e := range entries {
			if w.markers[e.Key].none() && h.s.get(e.Key, now) == nil && e.Record.Expires.After(now) {
				h.s.put(e.Key, e.Record, now)
				stored[i] = true
			}
		}
		return nil
	})
	return stored, err
}

func (h *handle) Same(ctx context.Context, epoch uint64, entries []store.Entry) ([]bool, error) {
	same := make([]bool, len(entries))
	err := h.fenced(ctx, epoch, func(w *workflow, now time.Time) error {
		for i, e := range entries {
			held, want := h.s.get(e.Key, now), e.Record
			if want != nil && !want.Expires.After(now) {
				want = nil
			}
			if !w.markers[e.Key].none() || held.Version() != want.Version() {
				continue
			}
			if held != nil {
				if held.Expires.Sub(want.Expires) > store.DeadlineSlack {
					continue
				}
				if want.Expires.After(held.Expires) {
					held.Expires = want.Expires
					h.s.put(e.Key, held, now)
				}
			}
			same[i] = true
		}
		return nil
	})
	return same, err
}

func (h *handle) Remove(ctx context.Context, epoch uint64, keys []string) (removed int, err error) {
	err = h.fenced(ctx, epoch, func(w *workflow, now time.Time) error {
		for _, key := range keys {
			if h.s.get(key, now) != nil {
				removed++
			}
			h.s.remove(key)
			delete(w.markers, key)
		}
		return nil
	})
	return removed, err
}

func (h *handle) Unsettled(ctx context.Context, limit int) (u store.Unsettled, err error) {
	err = h.do(ctx, func(w *workflow, now time.Time) error {
		for key, m := range w.markers {
			switch m.kind {
			case store.Intent:
				u.Intents++
			case store.AheadOf:
				u.Aheads++
			default:
				continue
			}
			u.Keys = append(u.Keys, key)
		}
		sort.Slice(u.Keys, func(i, j int) bool {
			a, b := w.markers[u.Keys[i]], w.markers[u.Keys[j]]
			return a.until.Before(b.until) || a.until.Equal(b.until) && u.Keys[i] < u.Keys[j]
		})
		if len(u.Keys) > 0 {
			u.Oldest = now.Sub(w.markers[u.Keys[0]].until)
		}
		u.Keys = u.Keys[:min(len(u.Keys), limit)]
		return nil
	})
	return u, err
}

func (h *handle) Purge(ctx context.Context, control []byte) error {
	return h.do(ctx, func(w *workflow, _ time.Time) error {
		if !bytes.Equal(w.control, control) {
			return store.ErrConflict
		}
		w.fence, w.leases, w.markers, w.steps = 0, map[string]lease{}, map[string]marker{}, map[*handle]uint64{}
		return nil
	})
}

// String names the handle in failed tests.
func (h *handle) String() string { return fmt.Sprintf("memory workflow %q", h.name) }
