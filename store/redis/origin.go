package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// Origin is a Store that sessions are moved away from. It implements store.Origin.
//
// Its writes are bounded in the server. A command cannot be taken back once it is sent, and one that lies in the socket of a
// server that stands still is executed when that wakes. So every write is a script that says until when it may happen, by
// the server's own clock: nothing of it happens later than its caller has waited.
type Origin struct {
	*Store
	lifetime time.Duration
	view     atomic.Pointer[under] // the last one: marks change seldom
	told     told
}

var (
	_ store.Origin     = (*Origin)(nil)
	_ store.BulkReader = (*Origin)(nil)
	_ store.Checker    = (*Origin)(nil)
	_ store.Auditor    = (*Origin)(nil)
	_ store.Marked     = (*Store)(nil)
)

// NewOrigin returns s as an origin, with all that s can do. lifetime is what a session has left that has no deadline in
// Redis, from whenever it is looked at; with 0 such a session is refused.
func NewOrigin(s *Store, lifetime time.Duration) *Origin {
	s.isOrigin.Store(true)
	o := &Origin{Store: s, lifetime: lifetime}
	o.told.turn = make(chan struct{}, 1)
	return o
}

// Capabilities implements store.Store.
func (o *Origin) Capabilities() store.Capabilities {
	c := o.Store.Capabilities()
	c.Seal, c.Ageless = true, o.lifetime > 0
	return c
}

// A clock is what a server's clock showed when it was asked last.
type clock struct {
	told int64     // ms since 1970, by the server
	at   time.Time // when we had read that, so the server's clock is not behind it any more
}

// A serverClock is what is known of the clock of one server.
type serverClock struct{ atomic.Pointer[clock] }

// clockAge is how long an answer counts. Meanwhile two clocks drift apart by some milliseconds.
const clockAge = 10 * time.Second

// until is what the server's clock shows at end, or a little before. 0 where that is not known: what is sent with it is
// refused, and the refusal tells the time.
func (s *serverClock) until(end time.Time) string {
	c := s.Load()
	if c == nil || time.Since(c.at) > clockAge {
		return "0"
	}
	return strconv.FormatInt(c.told+end.Sub(c.at).Milliseconds(), 10)
}

func (s *serverClock) tells(ms int64) { s.Store(&clock{told: ms, at: time.Now()}) }

// A lateError is a script's refusal to do something later than it was allowed to, by a clock that shows now.
type lateError struct{ now int64 }

func (*lateError) Error() string {
	return "store/redis: it came to the server too late: " + store.ErrUnavailable.Error()
}
func (*lateError) Unwrap() error { return store.ErrUnavailable }

// write runs a script that has part/timely.lua, where the mark that lies under the name says is as it is written ("*" is any).
func (o *Origin) write(ctx context.Context, op string, sc *script, keys []string, name, mark string, args ...string) *reply {
	ctx, cancel := context.WithTimeoutCause(ctx, o.opt.Timeout, o.errTimeout)
	defer cancel()
	end, _ := ctx.Deadline()
	keys, args = append(keys, name), append(args, "", mark)
	for try := 0; ; try++ {
		var at *wire
		r := o.call(ctx, op, store.ErrUnknown, sc, keys, args, func(w *wire, args []string) {
			at = w
			args[len(args)-2] = w.clock.until(end)
		}, nil)
		var late *lateError
		if !errors.As(r.err, &late) {
			return r
		}
		// It may be the clock that was not known well enough.
		if at.clock.tells(late.now); try == 2 {
			return r
		}
	}
}

// writeTo is write of the session named data.
func (o *Origin) writeTo(ctx context.Context, op string, sc *script, data, mark string, args ...string) *reply {
	r := o.write(ctx, op, sc, []string{data}, o.markOf(data), mark, args...)
	if errors.Is(r.err, store.ErrSealed) {
		o.doubt(data)
	}
	return r
}

// Inspect implements store.Store.
func (o *Origin) Inspect(ctx context.Context, key string) (store.Record, error) {
	rec, err := o.Store.Inspect(ctx, key)
	if err == nil {
		err = o.age(&rec)
	}
	return rec, err
}

// InspectAll implements store.BulkReader.
func (o *Origin) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	all, err := o.Store.InspectAll(ctx, keys)
	for _, rec := range all {
		if rec != nil && err == nil {
			err = o.age(rec)
		}
	}
	return all, err
}

// age gives a session a deadline that has none.
func (o *Origin) age(rec *store.Record) error {
	switch {
	case !rec.Expires.IsZero():
	case o.lifetime > 0:
		rec.Expires = time.Now().Add(o.lifetime)
	default:
		return fmt.Errorf("store/redis: %w", &store.RefusedError{Reason: "without a deadline"})
	}
	return nil
}

// Save implements store.Store.
func (o *Origin) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return o.save(ctx, key, rec, cond, anyMark)
}

func (o *Origin) save(ctx context.Context, key string, rec store.Record, cond store.Condition, mark string) error {
	name, err := o.name(key)
	if err != nil {
		return err
	}
	px, err := o.pxLeft(rec)
	if err != nil {
		return err
	}
	return o.writeTo(ctx, "save", timelyScript, name, mark, cond.Encode(), px, text(&rec)).fail()
}

// Touch implements store.Store.
func (o *Origin) Touch(ctx context.Context, key string, expires time.Time) error {
	return o.touch(ctx, key, expires, anyMark)
}

func (o *Origin) touch(ctx context.Context, key string, expires time.Time, mark string) error {
	name, err := o.name(key)
	if err != nil {
		return err
	}
	px, err := o.pxLeft(store.Record{Expires: expires})
	if err != nil {
		return err
	}
	r := o.writeTo(ctx, "touch", extendScript, name, mark, px)
	if r.err == nil && !r.flag(1) {
		return store.ErrAbsent
	}
	return r.fail()
}

// Delete implements store.Store.
func (o *Origin) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return o.remove(ctx, key, cond, anyMark)
}

func (o *Origin) remove(ctx context.Context, key string, cond store.Condition, mark string) (bool, error) {
	name, err := o.name(key)
	if err != nil {
		return false, err
	}
	r := o.writeTo(ctx, "delete", timelyScript.spare, name, mark, cond.Encode(), "0", "")
	return r.flag(1), r.fail()
}

// Under implements store.Origin. In a Cluster the mark that was before may hold in a shard that is away to us, until it is back.
func (o *Origin) Under(m store.Mark) store.Store {
	if u := o.view.Load(); u != nil && u.mark == m {
		return u
	}
	text, err := encodeMark(m)
	if err != nil {
		text = "-" // which is no mark: one that cannot be written cannot be there either
	}
	u := &under{o, m, text}
	o.view.Store(u)
	return u
}

// under is an origin with a mark that its writes were begun under.
type under struct {
	*Origin
	mark store.Mark
	text string // as it is written
}

// Track is not for a view: nobody tells when the mark changes.
func (u *under) Track(func(string)) (func(context.Context, string) (store.Record, error), func(), error) {
	return nil, nil, fmt.Errorf("store/redis: a view of an origin does not track: %w", errors.ErrUnsupported)
}

func (u *under) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.save(ctx, key, rec, cond, u.text)
}

func (u *under) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.touch(ctx, key, expires, u.text)
}

func (u *under) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return u.remove(ctx, key, cond, u.text)
}

// Load is one MGET of the value and the mark. In a Cluster it is a GET of the value, and only where there is none one of the
// mark behind it: of two names that are both asked for a server that gives their slot away answers only if it still has both.
func (u *under) Load(ctx context.Context, key string) (store.Record, error) {
	if u.mark.Identity == "" {
		return u.Origin.Load(ctx, key)
	}
	name, err := u.name(key)
	if err != nil {
		return store.Record{}, err
	}
	if u.cluster != nil {
		slot := slotOf(name)
		memory := u.cluster.memory(slot)
		rec, err := u.Origin.Load(ctx, key)
		if !errors.Is(err, store.ErrAbsent) {
			return rec, err
		}
		if known := u.known(u.ask(ctx, "load", "GET", u.markOf(name)), 0, name); known != nil {
			return rec, known
		}
		if u.cluster.memory(slot) != memory { // whose mark that is did not answer first
			return rec, fmt.Errorf("store/redis: load: %w: another server has the slot now", store.ErrUnavailable)
		}
		return rec, err
	}
	r := u.ask(ctx, "load", "MGET", name, u.markOf(name))
	r.items = r.list(0)
	if err := u.known(r, 1, name); err != nil {
		return store.Record{}, err
	}
	if r.err == nil && !r.has(0) {
		return store.Record{}, store.ErrAbsent
	}
	return recordOf(r.bytes(0)), r.fail()
}

// Inspect is Inspect of mark and value in one step.
func (u *under) Inspect(ctx context.Context, key string) (store.Record, error) {
	if u.mark.Identity == "" {
		return u.Origin.Inspect(ctx, key)
	}
	name, err := u.name(key)
	if err != nil {
		return store.Record{}, err
	}
	r := u.query(ctx, "inspect", inspectScript, []string{u.markOf(name), name})
	mark, session := r.sub(1), r.sub(2)
	if err := u.known(mark, 0, name); err != nil {
		return store.Record{}, err
	}
	rec := session.record(0)
	r.err = cmp.Or(r.err, session.err)
	if err := r.fail(); err != nil {
		return store.Record{}, err
	}
	if rec == nil {
		return store.Record{}, store.ErrAbsent
	}
	return *rec, u.age(rec)
}

// known refuses an answer about the session named data that does not carry, as the i-th item, the identity that the origin was known by. Redis that
// has come back without its memory would say of everybody that he is not logged in.
func (u *under) known(r *reply, i int, data string) error {
	raw := r.text(i)
	text, err := u.textOf(raw)
	if err = cmp.Or(r.err, err); err != nil || text == u.text {
		return err
	}
	m, err := decodeMark(text)
	if err == nil && m.Identity != u.mark.Identity {
		u.doubt(data)
		err = fmt.Errorf("store/redis: %w: this origin, or its memory, is another one", store.ErrSealed)
	}
	return err
}

// Close does nothing: the origin is closed by who has opened it.
func (*under) Close() error { return nil }
