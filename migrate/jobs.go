package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// jobRunner runs this gateway's workers: the backfill of dual-write and the reconcile pass of sync. The control record
// says what is to be run and by whom; the lease loop calls tick.
type jobRunner struct {
	mu      sync.Mutex // guards running
	running map[string]context.CancelFunc
}

// walk is one worker's progress over a store.
type walk struct {
	seen, copied, same, overdue, failed atomic.Int64
}

func (w *walk) into(j *Job) {
	j.Seen, j.Copied, j.Same = w.seen.Load(), w.copied.Load(), w.same.Load()
	j.Overdue, j.Failed = w.overdue.Load(), w.failed.Load()
}

func (w *walk) from(j Job) {
	w.seen.Store(j.Seen)
	w.copied.Store(j.Copied)
	w.same.Store(j.Same)
	w.overdue.Store(j.Overdue)
	w.failed.Store(j.Failed)
}

// job selects one of c's jobs by name.
func (c *Control) job(name string) *Job {
	if name == "backfill" {
		return &c.Backfill
	}
	return &c.Reconcile
}

// tickJobs starts what c says should run and does not.
func (e *Engine) tickJobs(ctx context.Context, c *Control) error {
	if err := e.noteLives(ctx, c); err != nil {
		return err
	}
	name, due := "", false
	switch {
	case c.Phase == DualWrite && c.Done && e.listed():
		name, due = "backfill", c.Backfill.State == "" || c.Backfill.State == jobRunning
	case c.Phase == Sync && c.Done && !c.Reconciled && (e.listed() || e.opt.Lifetime > 0 || !c.Reconcile.Until.IsZero()):
		name, due = "reconcile", c.Reconcile.State == "" || c.Reconcile.State == jobRunning
	}
	if !due {
		return nil
	}
	e.jobs.mu.Lock()
	_, here := e.jobs.running[name]
	e.jobs.mu.Unlock()
	if here {
		return nil
	}
	if owner := c.job(name).Gateway; owner != "" && owner != e.opt.Gateway {
		leases, err := e.flow.Leases(ctx)
		if err != nil {
			return err
		}
		for _, l := range leases {
			if l.Gateway == owner && l.Left > 0 {
				return nil // it is at work
			}
		}
	}
	e.mu.Lock()
	given := e.auth.leaseLast // c came with that lease, so the step into sync was done then
	e.mu.Unlock()
	claimed, err := updateControl(ctx, e.flow, func(now *Control) error {
		if now.Epoch != c.Epoch || now.job(name).State != c.job(name).State || now.job(name).Gateway != c.job(name).Gateway {
			return store.ErrConflict
		}
		j := now.job(name)
		if j.Started.IsZero() {
			j.Started = time.Now().UTC()
		}
		if !e.listed() && j.Until.IsZero() {
			j.Started, j.Until = given.UTC(), given.UTC().Add(e.opt.Lifetime)
		}
		j.State, j.Gateway, j.Epoch, j.Error = jobRunning, e.opt.Gateway, now.Epoch, ""
		return nil
	})
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	if now := e.auth.control; now != nil && now.Epoch == claimed.Epoch {
		e.auth.control = claimed // or the worker would read there that it is not to run
	}
	e.mu.Unlock()
	run, cancel := context.WithCancel(e.life)
	e.jobs.mu.Lock()
	if e.jobs.running == nil {
		e.jobs.running = map[string]context.CancelFunc{}
	}
	e.jobs.running[name] = cancel
	e.jobs.mu.Unlock()
	if !e.spawn(func() {
		defer cancel()
		e.runJob(run, name, claimed)
		e.jobs.mu.Lock()
		delete(e.jobs.running, name)
		e.jobs.mu.Unlock()
	}) {
		cancel()
	}
	return nil
}

// errStopped ends a worker whose job is paused, or whose phase is over.
var errStopped = errors.New("stopped")

// runJob runs a worker to its end and writes down how it ended.
func (e *Engine) runJob(ctx context.Context, name string, c *Control) {
	w := &walk{}
	var err error
	if name == "backfill" {
		w.from(c.Backfill)
		err = e.backfill(ctx, c, w)
	} else {
		err = e.reconcile(ctx, c, w)
	}
	if errors.Is(err, errStopped) || ctx.Err() != nil {
		return
	}
	if err != nil {
		e.log.Error(name+" failed; it goes on at the next `sessile migrate start`, or by itself in a moment", "error", err)
		// Whatever it was, trying again is safe: leave the job running, for whoever comes next.
		sleep(ctx, time.Second)
		return
	}
	ended, err := updateControl(ctx, e.flow, func(now *Control) error {
		if now.Epoch != c.Epoch {
			return errStopped
		}
		j := now.job(name)
		w.into(j)
		j.State, j.Cursor, j.Ended, j.Total = jobDone, "", time.Now().UTC(), j.Seen
		if name == "reconcile" {
			now.Reconciled = true
		}
		return nil
	})
	if err != nil {
		e.log.Warn(name+" ended, and that could not be written down: it will be run again", "error", err)
		return
	}
	j := ended.job(name)
	e.log.Info(name+" done", "seen", j.Seen, "copied", j.Copied, "same", j.Same, "overdue", j.Overdue, "failed", j.Failed)
	e.mu.Lock()
	e.renewSoon()
	e.mu.Unlock()
}

// checkpoint writes a worker's progress down now and then, and finds out whether it shall go on.
type checkpoint struct {
	e    *Engine
	name string
	c    *Control
	w    *walk
	last time.Time
	rate int
	from time.Time // the rate is held over the time since
	base int64
}

func (e *Engine) checkpoint(name string, c *Control, w *walk) *checkpoint {
	return &checkpoint{e: e, name: name, c: c, w: w, last: time.Now(), rate: c.job(name).Rate, from: time.Now(), base: w.seen.Load()}
}

// at is called after every page: side and cursor say where to go on. It holds the worker back where a rate is set, and
// looks all the while whether that, or the job, has changed.
func (p *checkpoint) at(ctx context.Context, side, cursor string, total int64) error {
	for {
		p.e.mu.Lock()
		now := p.e.auth.control
		p.e.mu.Unlock()
		if now == nil || now.Epoch != p.c.Epoch || now.job(p.name).State != jobRunning {
			return errStopped
		}
		if rate := now.job(p.name).Rate; rate != p.rate {
			p.rate, p.from, p.base = rate, time.Now(), p.w.seen.Load()
		}
		if time.Since(p.last) >= 500*time.Millisecond {
			p.last = time.Now()
			if _, err := updateControl(ctx, p.e.flow, func(now *Control) error {
				j := now.job(p.name)
				if now.Epoch != p.c.Epoch || j.State != jobRunning || j.Gateway != p.e.opt.Gateway {
					return errStopped
				}
				p.w.into(j)
				j.Side, j.Cursor, j.Total = side, cursor, max(total, j.Total)
				return nil
			}); err != nil {
				return err
			}
		}
		if p.rate <= 0 {
			return nil
		}
		done := p.w.seen.Load() - p.base
		ahead := time.Duration(float64(done)/float64(p.rate)*float64(time.Second)) - time.Since(p.from)
		if ahead <= 0 {
			return nil
		}
		if !sleep(ctx, min(ahead, 100*time.Millisecond)) {
			return ctx.Err()
		}
	}
}

// pageSize is how many sessions a worker takes at a time: large enough that the target is asked in batches, small
// enough that a pause is obeyed at once and that memory stays flat.
const pageSize = 4000

// batch is how many of them go into one message to the target. A script of that size holds Redis up for less than a
// millisecond.
const batch = 200

// errNotOurs: the target has no place for a session of this name.
var errNotOurs = fmt.Errorf("%w: its name is none of this site's", store.ErrInvalid)

// pages calls each with the keys of s that can be sessions of this site, page by page, dealt out in batches to the engine's
// workers. The next page is listed meanwhile.
func (e *Engine) pages(ctx context.Context, s store.Store, cursor string, each func(ctx context.Context, keys []string) error, after func(page store.Page) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages := make(chan store.Page)
	listed := make(chan error, 1)
	go func() {
		defer close(pages)
		for first := true; first || cursor != ""; first = false {
			limit := pageSize
			if e.maxLoad() > 0 {
				limit = batch // of pages that rest for minutes nobody would see progress, and a listing may be kept open for ten
			}
			page, err := e.scan(ctx, s, cursor, limit)
			if err != nil {
				listed <- err
				return
			}
			cursor = page.Cursor
			select {
			case pages <- page:
			case <-ctx.Done():
				listed <- store.Gone(ctx)
				return
			}
		}
		listed <- nil
	}()
	for page := range pages {
		keys := page.Keys[:0]
		for _, key := range page.Keys {
			if e.opt.OwnsKey(key) {
				keys = append(keys, key)
			} else if s == store.Store(e.origin) {
				e.cannotMove(&walk{}, key, errNotOurs)
			}
		}
		err := e.deal(ctx, keys, each)
		if err == nil {
			err = after(page)
		}
		if err != nil {
			cancel()
			for range pages { // until the other one has ended
			}
			return err
		}
	}
	return <-listed
}

// deal runs each over batches of keys with the engine's workers, or under a bound of the load in turns, and returns the first
// error.
func (e *Engine) deal(ctx context.Context, keys []string, each func(ctx context.Context, keys []string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(e.opt.Workers, (len(keys)+batch-1)/batch) {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(batch)) - batch
				if from >= len(keys) {
					return
				}
				if err := e.inTurn(ctx, func() error { return each(ctx, keys[from:min(from+batch, len(keys))]) }); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// under runs f under an authority of phase, one batch of a worker: the barrier waits for it like for any operation.
func (e *Engine) under(ctx context.Context, phases func(Phase) bool, f func(ctx context.Context, a authority) error) error {
	for try := 0; ; try++ {
		wait, cancel := context.WithTimeout(ctx, 30*time.Second)
		a, err := e.enter(wait)
		cancel()
		if err != nil {
			return err
		}
		if !a.lease || !phases(a.phase) {
			e.leave(a, 0)
			return errStopped
		}
		start := time.Now()
		err = f(ctx, a)
		var linger time.Duration
		if errors.Is(err, store.ErrUnknown) {
			linger = a.times.Bound - time.Since(start)
		}
		e.leave(a, linger)
		if err == nil || !store.Failed(err) && !errors.Is(err, errAgain) || try >= 20 {
			return err
		}
		if !e.backoff(ctx, try) {
			return err
		}
	}
}

// reader reads keys in a store, each by its place: all of them now, where the store can do that, and otherwise each when it
// is asked for.
func (e *Engine) reader(ctx context.Context, s store.Store, bound time.Duration, keys []string) func(i int) (store.Record, error) {
	ofOrigin := s == store.Store(e.origin)
	if ofOrigin {
		defer e.opened(time.Now())
	}
	if bulk, ok := s.(store.BulkReader); ok {
		octx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		if all, err := bulk.InspectAll(octx, keys); err == nil {
			return func(i int) (store.Record, error) {
				if all[i] == nil {
					return store.Record{}, store.ErrAbsent
				}
				return *all[i], nil
			}
		}
	}
	return func(i int) (store.Record, error) {
		octx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		if ofOrigin {
			defer e.opened(time.Now())
		}
		return s.Inspect(octx, keys[i])
	}
}

// everything calls each with every session of the origin (if that can be listed), and then with those of the target that the origin did not have:
// those that it had are done with, and are not read once more in the order of the target, which to a table is none at all.
// Of a session there are eight bytes meanwhile, so that ten million fit into memory; that one is taken for another at that
// size, and passed over, is as likely as 10^7 in 2^64.
func (e *Engine) everything(ctx context.Context, each func(ctx context.Context, keys []string) error, after func(side string, page store.Page) error) error {
	var mu sync.Mutex // guards had
	had := make([]uint64, 0, e.expected())
	if !e.listed() {
		return e.pages(ctx, e.target, "", each, func(page store.Page) error { return after("target", page) })
	}
	if err := e.pages(ctx, e.origin, "", func(ctx context.Context, keys []string) error {
		if err := each(ctx, keys); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, key := range keys {
			had = append(had, sessionHash(key))
		}
		return nil
	}, func(page store.Page) error { return after("origin", page) }); err != nil {
		return err
	}
	slices.Sort(had)
	return e.pages(ctx, e.target, "", func(ctx context.Context, keys []string) error {
		var extra []string
		for _, key := range keys {
			if _, done := slices.BinarySearch(had, sessionHash(key)); !done {
				extra = append(extra, key)
			}
		}
		if len(extra) == 0 {
			return nil
		}
		return each(ctx, extra)
	}, func(page store.Page) error { return after("target", page) })
}

// expected is about how many sessions the origin has, as far as the backfill knows: a list that grows to that size bit by
// bit takes twice the room.
func (e *Engine) expected() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.auth.control; c != nil {
		return c.Backfill.Total + c.Backfill.Total/20
	}
	return 0
}

// inspect reads keys in the origin. What is overdue there, or cannot be moved, is nil: absent in the target.
//
// A few that cannot be read are left out if spare says so: somebody outside may hold a session's lock for a whole slow
// page. Many are an origin that is away.
func (e *Engine) inspect(ctx context.Context, bound time.Duration, keys []string, w *walk, spare bool) ([]store.Entry, error) {
	entries := make([]store.Entry, 0, len(keys))
	now, spared := time.Now(), 0
	read := e.reader(ctx, e.origin, bound, keys)
	for i, key := range keys {
		rec, err := read(i)
		if err != nil && store.Failed(err) && spare && ctx.Err() == nil && spared < 3 {
			spared++
			continue
		}
		switch {
		case err == nil && rec.Expires.After(now):
			entries = append(entries, store.Entry{Key: key, Record: &rec})
		case err == nil:
			w.overdue.Add(1)
			entries = append(entries, store.Entry{Key: key})
		case errors.Is(err, store.ErrAbsent):
			entries = append(entries, store.Entry{Key: key})
		case errors.Is(err, store.ErrInvalid):
			e.cannotMove(w, key, err)
			entries = append(entries, store.Entry{Key: key})
		default:
			return nil, err
		}
	}
	return entries, nil
}

// cannotMove counts a session that is none to us. The gates ask the diff, which sees it as it is by then; the log says
// what a pass found, of very many not each.
func (e *Engine) cannotMove(w *walk, key string, why error) {
	w.failed.Add(1)
	if e.stats.unfit.Add(1) <= 1000 {
		e.log.Warn("a session of the origin cannot be moved", "session", e.hash(key), "error", why)
	}
}

// backfill is the warm-up of dual-write: every session of the origin is added to the target if it is absent there. Its
// result is never trusted.
func (e *Engine) backfill(ctx context.Context, c *Control, w *walk) error {
	total := c.Backfill.Total
	if total == 0 {
		total = e.count(ctx, e.origin)
	}
	point := e.checkpoint("backfill", c, w)
	dual := func(p Phase) bool { return p == DualWrite }
	return e.pages(ctx, e.origin, c.Backfill.Cursor, func(ctx context.Context, keys []string) error {
		return e.under(ctx, dual, func(ctx context.Context, a authority) error {
			tally := &walk{}
			entries, err := e.inspect(ctx, a.times.Bound, keys, tally, true)
			if err != nil {
				return err
			}
			live := entries[:0]
			for _, entry := range entries {
				if entry.Record != nil {
					live = append(live, entry)
				}
			}
			e.arrow(ctx, "backfill add", "")
			stored, err := e.flow.Add(ctx, a.sendEpoch(), live)
			if err != nil {
				return err
			}
			for _, s := range stored {
				if s {
					tally.copied.Add(1)
				} else {
					tally.same.Add(1)
				}
			}
			tally.seen.Store(int64(len(keys)))
			w.add(tally)
			return nil
		})
	}, func(page store.Page) error {
		return point.at(ctx, "origin", page.Cursor, total)
	})
}

func (w *walk) add(t *walk) {
	w.seen.Add(t.seen.Load())
	w.copied.Add(t.copied.Load())
	w.same.Add(t.same.Load())
	w.overdue.Add(t.overdue.Load())
	w.failed.Add(t.failed.Load())
}

// count counts a store's keys, for an estimate: it gives up, and answers 0, where that takes more than two seconds.
func (e *Engine) count(ctx context.Context, s store.Store) (n int64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for cursor := ""; ; {
		page, err := e.scan(ctx, s, cursor, 10*pageSize)
		if err != nil {
			return 0
		}
		if page.Total > 0 {
			return int64(page.Total)
		}
		n += int64(len(page.Keys))
		if cursor = page.Cursor; cursor == "" {
			return n
		}
	}
}

// reconcile is the pass of sync whose correctness counts: for every key of the origin and of the target, the origin is
// read; where the target holds the same and no marker, one script says so, and otherwise the key is written strictly
// with what the origin holds, absence included.
func (e *Engine) reconcile(ctx context.Context, c *Control, w *walk) error {
	total := c.Backfill.Total // as good as counting once more
	if total == 0 {
		total = e.count(ctx, e.walked())
	}
	point := e.checkpoint("reconcile", c, w)
	strict := func(p Phase) bool { return p.strict() }
	err := e.everything(ctx, func(ctx context.Context, keys []string) error {
		return e.under(ctx, strict, func(ctx context.Context, a authority) error {
			tally := &walk{}
			entries, err := e.inspect(ctx, a.times.Bound, keys, tally, false)
			if err != nil {
				return err
			}
			e.arrow(ctx, "reconcile compare", "")
			same, err := e.flow.Same(ctx, a.sendEpoch(), entries)
			if err != nil {
				return err
			}
			for i, entry := range entries {
				if same[i] {
					tally.same.Add(1)
					continue
				}
				start := time.Now()
				err := e.reconcileKey(ctx, a, entry.Key, false)
				e.opened(start)
				switch {
				case err == nil:
					tally.copied.Add(1)
				case errors.Is(err, store.ErrInvalid): // its intent stays: readers ask the origin, as before the move
					e.cannotMove(tally, entry.Key, err)
				default:
					return err
				}
			}
			tally.seen.Store(int64(len(keys)))
			w.add(tally)
			return nil
		})
	}, func(side string, page store.Page) error {
		return point.at(ctx, side, page.Cursor, total)
	})
	if err != nil || e.listed() {
		return err
	}
	return e.outlive(ctx, point, c.Reconcile.Until)
}

// reconcileKey makes the target hold what the origin holds, under an intent. With putBack, which is for live, where the
// target answers, what the origin alone lacks is taken to have gone by its collector, and is put back there.
func (e *Engine) reconcileKey(ctx context.Context, a authority, key string, putBack bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*a.times.Marker)
	defer cancel()
	s, err := e.begin(ctx, a, key)
	if err != nil {
		return err
	}
	defer s.free()
	if err := s.readOrigin(ctx); err != nil {
		s.giveUp(ctx, true) // they differ: readers shall go on asking the origin
		return err
	}
	if putBack && s.o == nil && a.reconciled && !s.took {
		n, err := e.target.Inspect(ctx, key)
		if err == nil && !e.look(a) {
			err = errAgain
		}
		if err == nil {
			s.o = &n
			err = s.putBack(ctx, &n)
		}
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			if store.OutcomeOf(err) != store.OutcomeUnknown {
				s.giveUp(ctx, errors.Is(err, store.ErrConflict))
			}
			return err
		}
	}
	if err := s.commitRead(ctx); err != nil {
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return nil
}

// Start resumes the worker of the current phase, Stop pauses it. rate limits it to that many sessions a second; 0
// leaves the rate as it is, a negative one lifts the limit. maxLoad is Options.MaxLoad for every gateway from now on; 0 leaves
// it as it is, a negative one lifts the bound.
func (e *Engine) Start(ctx context.Context, rate, maxLoad int) (string, error) {
	return e.setJob(ctx, jobRunning, rate, maxLoad)
}

// Stop pauses the worker of the current phase.
func (e *Engine) Stop(ctx context.Context) (string, error) { return e.setJob(ctx, jobPaused, 0, 0) }

func (e *Engine) setJob(ctx context.Context, state string, rate, maxLoad int) (said string, err error) {
	_, err = updateControl(ctx, e.flow, func(c *Control) error {
		name := map[Phase]string{DualWrite: "backfill", Sync: "reconcile"}[c.Phase]
		if name == "" {
			return &UsageError{fmt.Sprintf("in phase %s no worker runs: the backfill belongs to dual-write, the reconcile pass to sync", c.Phase)}
		}
		j := c.job(name)
		switch {
		case rate > 0:
			j.Rate = rate
		case rate < 0:
			j.Rate = 0
		}
		if maxLoad != 0 {
			c.MaxLoad = maxLoad
		}
		said = name + " " + state
		if j.State == jobDone {
			said = name + " is done already"
			return nil
		}
		if state == jobRunning && j.State == jobPaused {
			j.Gateway = "" // whoever comes first
		}
		j.State = state
		return nil
	})
	if err == nil {
		e.renewNowAndWait(ctx)
	}
	return said, err
}
