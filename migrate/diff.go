package migrate

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// DiffOptions of a comparison of both stores.
type DiffOptions struct {
	Rounds    int           // a difference counts when it is there in every round. Default 3
	Interval  time.Duration // between rounds. Default 300 ms
	Tolerance time.Duration // deadlines this far apart are the same. Default 5 s
	Repair    bool          // copy again what differs: in dual-write, plainly; in sync and live, strictly; in ramp-down, to the origin
	Sample    int           // how many differences are described. Default 20
	Say       func(line string)
}

// DiffReport is the result of a comparison.
type DiffReport struct {
	DiffEnd
	Phase Phase `json:"phase"`
	// Unlisted: the origin cannot be listed, so what it alone has was not seen.
	Unlisted bool         `json:"unlisted,omitempty"`
	Sample   []Difference `json:"sample,omitempty"`
}

// Difference is one session that is not the same in both stores. It never shows id or payload.
type Difference struct {
	Session string `json:"session"` // a keyed hash
	Kind    string `json:"kind"`    // missing, extra, mismatch, unfit, deadline
	OriginN int    `json:"origin_bytes"`
	TargetN int    `json:"target_bytes"`
	Why     string `json:"why,omitempty"` // unfit: what the origin says

	kind           diffKind
	origin, target store.Version
}

type diffKind uint8

const (
	diffSame diffKind = iota
	diffOverdue
	diffMissing
	diffExtra
	diffMismatch
	diffUnfit
	diffDeadline
)

var diffNames = [...]string{"same", "overdue", "missing", "extra", "mismatch", "unfit", "deadline"}

// compareAll compares sessions, and calls each with what they come to. The store that follows is read that lag after the other
// one.
func (e *Engine) compareAll(ctx context.Context, a authority, keys []string, tolerance, lag time.Duration, each func(key string, d Difference)) error {
	stores, sides := [2]store.Store{e.origin, e.target}, [2]int{0, 1}
	if a.phase == RampDown {
		sides = [2]int{1, 0}
	}
	var read [2]func(i int) (store.Record, error)
	for _, side := range sides {
		read[side] = e.reader(ctx, stores[side], a.times.Bound, keys)
		if lag > 0 {
			read[side] = atOnce(read[side], len(keys))
			if !sleep(ctx, lag) {
				return ctx.Err()
			}
			lag = 0
		}
	}
	for i, key := range keys {
		o, oerr := read[0](i)
		n, nerr := read[1](i)
		d, err := e.compare(ctx, o, oerr, n, nerr, tolerance)
		if err != nil {
			return err
		}
		each(key, d)
	}
	return nil
}

// atOnce reads what read would read when it is asked.
func atOnce(read func(i int) (store.Record, error), n int) func(i int) (store.Record, error) {
	type answer struct {
		rec store.Record
		err error
	}
	all := make([]answer, n)
	for i := range all {
		all[i].rec, all[i].err = read(i)
	}
	return func(i int) (store.Record, error) { return all[i].rec, all[i].err }
}

// compare compares one session, o in the origin and n in the target. The deadline is that of the store that answers; in the other it may be later by the
// rounding up, or, since touches are copied without waiting, a little earlier.
func (e *Engine) compare(ctx context.Context, o store.Record, oerr error, n store.Record, nerr error, tolerance time.Duration) (Difference, error) {
	d := Difference{OriginN: len(o.Data), TargetN: len(n.Data)}
	switch {
	case nerr != nil && store.Failed(nerr):
		return d, nerr
	case oerr != nil && !errors.Is(oerr, store.ErrAbsent) && ctx.Err() == nil:
		d.Why, d.kind = oerr.Error(), diffUnfit
		return d, nil // or somebody outside holds its lock: the next round looks again
	case oerr != nil && store.Failed(oerr):
		return d, oerr
	}
	inO, inN := oerr == nil, nerr == nil
	if inO {
		d.origin = o.Version()
	}
	if inN {
		d.target = n.Version()
	}
	now := time.Now()
	switch {
	case !inO && !inN:
		d.kind = diffSame
	case inO && !inN && !o.Expires.After(now):
		d.kind = diffOverdue
	case inO && !inN:
		d.kind = diffMissing
	case inN && !inO && n.Expires.Sub(now) < tolerance:
		d.kind = diffOverdue // about to go by itself
	case inN && !inO:
		d.kind = diffExtra
	case d.origin != d.target:
		d.kind = diffMismatch
	case !e.origin.Capabilities().Ageless && !o.Expires.IsZero() && !n.Expires.IsZero() && o.Expires.Sub(n.Expires).Abs() > tolerance:
		d.kind = diffDeadline
	}
	return d, nil
}

// differences are the sessions that were not the same when they were last looked at.
type differences struct {
	mu sync.Mutex // guards of
	of map[string]Difference
	// first has what a session was when it was seen to differ for the first time.
	first map[string]Difference
}

func newDifferences() *differences {
	return &differences{of: map[string]Difference{}, first: map[string]Difference{}}
}

func (s *differences) look(key string, d Difference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.kind == diffSame {
		delete(s.of, key)
		return
	}
	s.of[key] = d
	if _, ok := s.first[key]; !ok {
		s.first[key] = d
	}
}

// written are those that have changed in both stores since they were first seen to differ: they are written, and copied.
func (s *differences) written() (keys []string) {
	for key, d := range s.of {
		if first := s.first[key]; d.kind != diffUnfit && d.origin != first.origin && d.target != first.target {
			keys = append(keys, key)
		}
	}
	return keys
}

// closely looks again at sessions that are written all the time, for two seconds at the most: a copy of such a one may always be under
// way, so that the stores are never the same. It is the same where the one that follows has what the other one had a moment ago.
func (e *Engine) closely(ctx context.Context, s *differences, look func(lag time.Duration) func(ctx context.Context, keys []string) error) error {
	for range 100 {
		keys := s.written()
		if len(keys) == 0 {
			return nil
		}
		lag := 1 + rand.N(time.Millisecond<<rand.N(8)) // how long a copy takes nobody knows
		if err := e.deal(ctx, keys, look(lag)); err != nil {
			return err
		}
	}
	return nil
}

// Diff compares both stores in both directions, in rounds: what differs in one is looked at again in the next, since a
// copy may only have been under way. What differs in the last is a difference.
func (e *Engine) Diff(ctx context.Context, opt DiffOptions) (DiffReport, error) {
	if opt.Rounds <= 0 {
		opt.Rounds = 3
	}
	if opt.Interval <= 0 {
		opt.Interval = 300 * time.Millisecond
	}
	if opt.Tolerance <= 0 {
		opt.Tolerance = 5 * time.Second
	}
	if opt.Sample <= 0 {
		opt.Sample = 20
	}
	start := time.Now()
	report := DiffReport{DiffEnd: DiffEnd{Rounds: opt.Rounds}}
	a, err := e.current()
	if err != nil {
		return report, err
	}
	if !a.lease || a.phase == Off || a.phase == Complete {
		return report, &UsageError{"there is nothing to compare in phase " + a.phase.String()}
	}
	report.Phase, report.Unlisted = a.phase, !e.listed()

	differ := newDifferences()
	look := func(lag time.Duration) func(ctx context.Context, keys []string) error {
		return func(ctx context.Context, keys []string) error {
			return e.compareAll(ctx, a, keys, opt.Tolerance, lag, differ.look)
		}
	}
	var compared atomic.Int64
	if err := e.everything(ctx, func(ctx context.Context, keys []string) error {
		if err := look(0)(ctx, keys); err != nil {
			return err
		}
		compared.Add(int64(len(keys)))
		return nil
	}, func(string, store.Page) error { return ctx.Err() }); err != nil {
		return report, err
	}
	report.Compared = compared.Load()
	rounds := func(n int) error {
		for range n {
			open := make([]string, 0, len(differ.of))
			for key, d := range differ.of {
				if d.kind != diffOverdue {
					open = append(open, key)
				}
			}
			if len(open) == 0 {
				return nil
			}
			if !sleep(ctx, opt.Interval) {
				return ctx.Err()
			}
			if err := e.deal(ctx, open, look(0)); err != nil {
				return err
			}
		}
		return e.closely(ctx, differ, look)
	}
	if err := rounds(opt.Rounds - 1); err != nil {
		return report, err
	}
	// differing are the sessions that a copy may mend.
	differing := func() (keys []string) {
		for key, d := range differ.of {
			if d.kind != diffOverdue && d.kind != diffUnfit {
				keys = append(keys, key)
			}
		}
		return keys
	}
	if opt.Repair {
		again := differing()
		if err := e.deal(ctx, again, func(ctx context.Context, keys []string) error {
			return e.under(ctx, func(p Phase) bool { return p >= DualWrite && p <= RampDown }, func(ctx context.Context, a authority) error {
				defer e.opened(time.Now())
				for _, key := range keys {
					var err error
					switch a.phase {
					case DualWrite:
						err = e.copyNow(ctx, a, key)
					case RampDown:
						err = e.owe(ctx, a, key)
					default:
						err = e.reconcileKey(ctx, a, key, a.phase == Live)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		}); err != nil {
			return report, err
		}
		if err := e.deal(ctx, again, look(0)); err != nil {
			return report, err
		}
		if err := rounds(opt.Rounds - 1); err != nil {
			return report, err
		}
		report.Repaired = int64(len(again) - len(differing()))
	}
	for key, d := range differ.of {
		switch d.kind {
		case diffOverdue:
			report.Overdue++
			continue
		case diffMissing:
			report.Missing++
		case diffExtra:
			report.Extra++
		case diffMismatch:
			report.Mismatch++
		case diffUnfit:
			report.Unfit++
		case diffDeadline:
			report.Deadline++
		}
		if len(report.Sample) < opt.Sample {
			d.Session, d.Kind = e.hash(key), diffNames[d.kind]
			report.Sample = append(report.Sample, d)
		}
	}
	report.At, report.DurationMS = time.Now().UTC(), time.Since(start).Milliseconds()
	// A report that cannot be written down is a report all the same.
	_, _ = updateControl(ctx, e.flow, func(c *Control) error {
		if c.Epoch == a.epoch {
			c.Diff = &report.DiffEnd
		}
		return nil
	})
	return report, nil
}

// Foreign is what a watch for foreign writers saw.
type Foreign struct {
	Window   time.Duration
	Watched  int
	Changed  int // written by somebody else
	Unknown  int // not readable: somebody has held its lock all the time
	Vanished int // gone, not overdue, and not through a gateway
}

// foreignWriters watches the origin for a while in dual-write. Whatever a gateway writes there it copies to the target,
// so what has changed and is not the same in the target a moment later, somebody else wrote.
func (e *Engine) foreignWriters(ctx context.Context, window time.Duration) (f Foreign, err error) {
	f.Window = window
	a, err := e.current()
	if err != nil {
		return f, err
	}
	if !a.lease || a.phase != DualWrite {
		return f, &UsageError{"foreign writers are looked for in dual-write, not in " + a.phase.String()}
	}
	// A session is sixteen bytes here, so that ten million fit into memory.
	type state struct {
		session uint64 // a hash of the key
		is      uint32 // a hash of the version; 0: it could not be read
		expires int32  // tenths of a second from now
	}
	const tenth, limit, there = time.Second / 10, 1 << 30, math.MinInt32
	start, ageless := time.Now(), e.origin.Capabilities().Ageless
	var mu sync.Mutex // guards what the workers fill
	look := func(each func(key string, now state)) error {
		return e.pages(ctx, e.walked(), "", func(ctx context.Context, keys []string) error {
			read := e.reader(ctx, e.origin, a.times.Bound, keys)
			for i, key := range keys {
				rec, err := read(i)
				now := state{session: sessionHash(key), is: uint32(sessionHash(string(rec.Version()))) | 1}
				if !ageless {
					now.expires = int32(max(-limit, min(rec.Expires.Sub(start)/tenth, limit)))
				}
				switch {
				case errors.Is(err, store.ErrAbsent) || errors.Is(err, store.ErrInvalid):
					continue
				case err != nil && ctx.Err() != nil:
					return err
				case err != nil:
					now.is, now.expires = 0, 0
				}
				mu.Lock()
				each(key, now)
				mu.Unlock()
			}
			return nil
		}, func(store.Page) error { return ctx.Err() })
	}
	// A table tells how long it is until a deadline, and that answer takes its time: what moved by a second, somebody moved.
	moved := func(was, now state) bool {
		return was.is != now.is || max(was.expires-now.expires, now.expires-was.expires) >= int32(time.Second/tenth)
	}
	before := make([]state, 0, e.expected())
	if err := look(func(_ string, now state) { before = append(before, now) }); err != nil {
		return f, err
	}
	slices.SortFunc(before, func(a, b state) int { return cmp.Compare(a.session, b.session) })
	known := func(session uint64) *state { // nil: it was not there
		i, ok := slices.BinarySearchFunc(before, session, func(s state, session uint64) int { return cmp.Compare(s.session, session) })
		if !ok {
			return nil
		}
		return &before[i]
	}
	if !sleep(ctx, window) {
		return f, ctx.Err()
	}
	suspects := newDifferences()
	if err := look(func(key string, now state) {
		f.Watched++
		was := known(now.session)
		if was == nil || was.expires != there && moved(*was, now) || now.is == 0 {
			suspects.of[key] = Difference{kind: diffMismatch}
		}
		if was != nil {
			was.expires = there
		}
	}); err != nil {
		return f, err
	}
	vanished := func(was state) bool {
		// What is overdue a collector may take.
		return was.expires != there && (ageless || was.expires > int32(time.Since(start)/tenth))
	}
	if slices.ContainsFunc(before, vanished) { // what a gateway destroyed is gone from the target, too
		if _, err := e.ownKeys(ctx, 0, func(keys []string) error {
			for _, key := range keys {
				if was := known(sessionHash(key)); was != nil && vanished(*was) {
					suspects.of[key] = Difference{kind: diffExtra}
				}
			}
			return nil
		}); err != nil {
			return f, err
		}
	}
	compare := func(lag time.Duration) func(ctx context.Context, keys []string) error {
		return func(ctx context.Context, keys []string) error {
			return e.compareAll(ctx, a, keys, time.Second, lag, func(key string, d Difference) {
				if d.kind == diffOverdue {
					d.kind = diffSame
				}
				suspects.look(key, d)
			})
		}
	}
	for round := 0; round < 10 && len(suspects.of) > 0; round++ { // another gateway's copy may be under way
		if round > 0 && !sleep(ctx, 100*time.Millisecond) {
			return f, ctx.Err()
		}
		maps.DeleteFunc(suspects.of, func(key string, _ Difference) bool { return e.copies.owes(key) }) // this gateway's own
		if err := e.deal(ctx, slices.Collect(maps.Keys(suspects.of)), compare(0)); err != nil {
			return f, err
		}
	}
	if err := e.closely(ctx, suspects, compare); err != nil {
		return f, err
	}
	for _, d := range suspects.of {
		switch d.kind {
		case diffUnfit:
			f.Unknown++
		case diffExtra:
			f.Vanished++
		default:
			f.Changed++
		}
	}
	return f, nil
}
