package redis

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

type workflow struct {
	s    *Store
	name string

	steps   atomic.Pointer[steps]
	indices func() []part // of all slots
}

// Workflow opens the records of one workflow.
func (s *Store) Workflow(name string) store.Workflow {
	w := &workflow{s: s, name: name}
	w.indices = sync.OnceValue(func() []part { // what sweeps ask for all the time
		return w.slotParts(w.allSlots(), func(tag string) []string { return []string{intentsKey(tag, name), aheadsKey(tag, name)} })
	})
	w.Accept()
	return w
}

// Accept makes the steps count under another name: what is still on its way under the old one is refused.
func (w *workflow) Accept() {
	w.steps.Store(&steps{handle: rand.Text()[:12], of: make([]slotSteps, w.s.slots())})
}

// steps are what the servers have done for a handle, in each slot.
type steps struct {
	handle string // the name that they count them under
	forgot atomic.Bool
	stands atomic.Int64 // the fence of home when all slots were last found to be in order, and 1; 0: never
	of     []slotSteps
}

type slotSteps struct {
	answered atomic.Uint64 // the highest number that was answered
	memory   atomic.Uint64 // of what server it was seen last that it knows them; see verify
	bare     atomic.Int64  // stands when there was none then, while there was one in home
}

// run calls a script of which args[at] is how many steps were answered in that slot. It is looked up when the connection is
// known: what was made out for one server, and comes to one with an older memory, would be counted there as if it were the
// step that was forgotten.
func (w *workflow) run(ctx context.Context, name string, sc *script, keys, args []string, steps *steps, slot, at int) *reply {
	of := &steps.of[slot]
	r := w.s.call(ctx, name, store.ErrUnknown, sc, keys, args, func(_ *wire, args []string) { args[at] = digits(of.answered.Load()) }, nil)
	if r.err == nil {
		of.saw(uint64(r.int(0)))
	}
	return r
}

func (s *slotSteps) saw(step uint64) {
	for old := s.answered.Load(); old < step && !s.answered.CompareAndSwap(old, step); old = s.answered.Load() {
	}
}

// homeTag is the tag of what there is once.
func (s *Store) homeTag() string { return s.tag(s.home()) }

// Workflows lists the fields of the hash of control records.
func (s *Store) Workflows(ctx context.Context) ([]string, error) {
	r := s.ask(ctx, "workflows", "HKEYS", controlKey(s.homeTag()))
	names := r.texts(0)
	slices.Sort(names)
	return names, r.fail()
}

func (w *workflow) Control(ctx context.Context) ([]byte, error) {
	r := w.s.ask(ctx, "control", "HGET", controlKey(w.s.homeTag()), w.name)
	return r.bytes(0), r.fail()
}

func (w *workflow) SwapControl(ctx context.Context, old, next []byte) error {
	_, err := w.swapControl(ctx, old, next)
	return err
}

// swapControl returns the fence that there was at that moment.
func (w *workflow) swapControl(ctx context.Context, old, next []byte) (fence uint64, err error) {
	encode := func(b []byte) string {
		if b == nil {
			return "-"
		}
		return "+" + string(b)
	}
	home := w.s.homeTag()
	r := w.s.run(ctx, "swap control", controlScript, []string{controlKey(home), fenceKey(home, w.name)}, w.name, encode(old), encode(next))
	if r.err == nil {
		w.s.takeover()
	}
	return uint64(r.int(1)), r.fail()
}

// Fence returns the highest of the fences of all slots: an epoch below that may not write everywhere. All of them are the same
// but while one is raised.
func (w *workflow) Fence(ctx context.Context) (highest uint64, err error) {
	err = w.look(ctx, "", w.allSlots(), func(_ int, fence, _ uint64) { highest = max(highest, fence) })
	return highest, err
}

// RaiseFence ends with the fence of home: where that stands, the others do.
func (w *workflow) RaiseFence(ctx context.Context, epoch uint64) error {
	if epoch > maxEpoch {
		return errEpoch
	}
	all := slices.DeleteFunc(w.allSlots(), func(slot int) bool { return slot == w.s.home() })
	if err := w.raise(ctx, epoch, all); err != nil {
		return err
	}
	return w.raise(ctx, epoch, []int{w.s.home()})
}

func (w *workflow) raise(ctx context.Context, epoch uint64, slots []int) error {
	parts := w.slotParts(slots, func(tag string) []string { return []string{fenceKey(tag, w.name)} })
	return w.s.parts(ctx, "raise fence", store.ErrUnknown, fenceScript, []string{digits(epoch)}, parts, allDone)
}

func allDone(_ int, m *rueidis.RedisMessage) error {
	_, err := did(m)
	return err
}

func (w *workflow) allSlots() []int {
	all := make([]int, w.s.slots())
	for i := range all {
		all[i] = i
	}
	return all
}

// slotParts are parts of a script that is about slots.
func (w *workflow) slotParts(slots []int, names func(tag string) []string, args ...string) []part {
	parts := make([]part, len(slots))
	for i, slot := range slots {
		parts[i] = part{names(w.s.tag(slot)), args}
	}
	return parts
}

// look reads the fences of slots, and how many steps of a handle are known there.
func (w *workflow) look(ctx context.Context, handle string, slots []int, seen func(slot int, fence, steps uint64)) error {
	parts := w.slotParts(slots, func(tag string) []string { return []string{fenceKey(tag, w.name), stepsKey(tag, w.name)} })
	return w.s.parts(ctx, "look", store.ErrUnavailable, stepsScript, []string{handle}, parts, func(i int, m *rueidis.RedisMessage) error {
		items, err := m.ToArray()
		r := &reply{op: "look", lost: store.ErrUnavailable, items: items}
		r.unreadable(err)
		fence, steps := uint64(r.int(0)), uint64(r.int(1))
		if r.err == nil {
			seen(slots[i], fence, steps)
		}
		return r.err
	})
}

// Renew is not refused by a server that is out of memory: the gateways must be able to go on, and back.
func (w *workflow) Renew(ctx context.Context, gateway string, info []byte, life time.Duration) (store.Renewal, error) {
	steps, home := w.steps.Load(), w.s.homeTag()
	keys := []string{leaseKey(home, w.name), controlKey(home), stepsKey(home, w.name), fenceKey(home, w.name)}
	args := []string{w.name, gateway, millis(life), string(info), steps.handle, ""}
	asked := time.Now()
	r := w.run(ctx, "renew", renewScript, keys, args, steps, w.s.home(), 5)
	if r.err == nil && w.s.cluster != nil {
		r.err = w.verify(ctx, steps, uint64(r.int(3)))
	}
	forgot := r.int(0) == 0 || steps.forgot.Load()
	return store.Renewal{Control: r.bytes(1), Forgot: forgot, Now: time.UnixMilli(r.int(2)), Down: r.err == nil && w.s.node != nil && w.s.node.silent != nil && w.s.node.silent(asked)}, r.fail()
}

// verify finds out whether the other slots of a Cluster know the steps that were answered there.
//
// A slot that is another server's since it was last looked at, or that of a server with another run_id or config epoch, has to
// be looked at: no renewal without it. That is every slot after a failover, and rarely any. Where a memory is cut short
// without any of that (FLUSHALL) a few slots show it, each time others.
//
// The servers' histories are each their own: one may have lost a fence that the control record in another says was raised.
// Where that was since the last renewal, it is raised again. A fence below that of home (which is raised last) at the last
// renewal is a memory that was lost: with it goes what was copied since, and what a reconcile pass has found to be the same. None
// of that need be a step of this gateway's. Where there was none since Accept, nothing more is to be found out by that.
func (w *workflow) verify(ctx context.Context, steps *steps, fence uint64) error {
	type state struct{ answered, memory uint64 }
	before := make([]state, len(steps.of)) // anything is asked
	split := w.s.cluster.splitSlots()
	var must, some []int
	for slot := range steps.of {
		of := &steps.of[slot]
		before[slot] = state{of.answered.Load(), w.s.cluster.memory(slot)}
		if of.memory.Load() != before[slot].memory && split[slot] == nil {
			must = append(must, slot) // one that is in two places is served to nobody until it is whole, and is looked at then
		}
	}
	stood := steps.stands.Load()
	look := func(ctx context.Context, slots []int) error {
		var behind []int
		err := w.look(ctx, steps.handle, slots, func(slot int, at, known uint64) {
			of := &steps.of[slot]
			if known < before[slot].answered || int64(at) < stood-1 && (at > 0 || of.bare.Load() != stood) {
				steps.forgot.Store(true)
			}
			if at < fence && (at > 0 || stood == 1) { // there was none anywhere
				behind = append(behind, slot)
				return
			}
			if at == 0 && fence > 0 {
				of.bare.Store(int64(fence) + 1)
			}
			of.memory.Store(before[slot].memory)
		})
		if err == nil && len(behind) > 0 {
			err = w.raise(ctx, fence, behind)
		}
		if err == nil {
			for _, slot := range behind {
				steps.of[slot].memory.Store(before[slot].memory)
			}
		}
		return err
	}
	if err := look(ctx, must); err != nil {
		return err
	}
	steps.stands.Store(int64(fence) + 1)
	for range 64 {
		if slot := mathrand.IntN(len(steps.of)); split[slot] == nil {
			some = append(some, slot)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_ = look(ctx, some) // a shard that is away keeps nobody else from going on
	return nil
}

func (w *workflow) Leases(ctx context.Context) (leases []store.Lease, err error) {
	r := w.s.query(ctx, "leases", leasesScript, []string{leaseKey(w.s.homeTag(), w.name)})
	for f := range slices.Chunk(r.texts(2), 2) {
		till, info, _ := strings.Cut(f[1], "|")
		ms, err := strconv.ParseInt(till, 10, 64)
		r.unreadable(err)
		left := time.Duration(ms-r.int(1)) * time.Millisecond
		leases = append(leases, store.Lease{Gateway: f[0], Left: left, Until: time.UnixMilli(ms), Info: []byte(info)})
	}
	slices.SortFunc(leases, func(a, b store.Lease) int { return cmp.Compare(a.Gateway, b.Gateway) })
	return leases, r.fail()
}

func (w *workflow) DropLease(ctx context.Context, gateway string) error {
	return w.s.run(ctx, "drop lease", dropScript, []string{leaseKey(w.s.homeTag(), w.name)}, gateway).fail()
}

// Leave is two commands, in a Cluster more. The steps go last: without them a lease would be renewed by nobody.
func (w *workflow) Leave(ctx context.Context, gateway string) error {
	if err := w.s.tell(ctx, "leave", "HDEL", leaseKey(w.s.homeTag(), w.name), gateway).fail(); err != nil {
		return err
	}
	steps := w.steps.Load()
	w.Accept()
	used := slices.DeleteFunc(w.allSlots(), func(slot int) bool { return steps.of[slot].answered.Load() == 0 })
	parts := w.slotParts(used, func(tag string) []string { return []string{stepsKey(tag, w.name)} })
	return w.s.parts(ctx, "leave", store.ErrUnknown, leaveScript, []string{steps.handle}, parts, allDone)
}

// LoadMarked is one MGET of value, marker and fence. A value that is no string counts as absent in it. Marker.Left is not
// known here and 0: it is by the server's clock, which MGET does not tell. Begin, Settle, BusyError and TouchMarked know it.
func (w *workflow) LoadMarked(ctx context.Context, key string) (rec *store.Record, m store.Marker, err error) {
	name, err := w.s.name(key)
	if err != nil {
		return nil, m, err
	}
	tag := w.s.tag(w.s.slotOf(name))
	r := w.s.ask(pass(ctx, forgotten), "load", "MGET", name, sideKey(tag, name), fenceKey(tag, w.name))
	r.items = r.list(0)
	if !r.has(2) {
		return nil, m, cmp.Or(r.err, store.ErrFenced)
	}
	if r.has(0) {
		value := recordOf(r.bytes(0))
		rec = &value
	}
	if r.has(1) {
		m, err = parseMarker(r.text(1))
		r.unreadable(err)
	}
	return rec, m, r.fail()
}

// parseMarker reads what lua/part/marker.lua describes.
func parseMarker(raw string) (m store.Marker, err error) {
	f := strings.Split(raw, " ")
	switch {
	case len(f) == 5 && f[0] == "i":
		return store.Marker{Kind: store.Intent, Nonce: f[1]}, nil
	case len(f) == 4 && f[0] == "a":
		m = store.Marker{Kind: store.AheadOf, Nonce: f[1]}
		m.Version, err = strconv.ParseUint(f[3], 10, 64)
		return m, err
	case (len(f) == 2 || len(f) == 3) && f[0] == "g":
		return store.Marker{Kind: store.GoneMark}, nil
	}
	return m, errors.New("not a marker")
}

const maxEpoch = 1 << 53 // up to here a script's numbers are exact

var errEpoch = fmt.Errorf("store/redis: the epoch is too large: %w", store.ErrInvalid)

func digits(n uint64) string { return strconv.FormatUint(n, 10) }

// A value is what the scripts' put takes.
type value struct{ px, data string }

var (
	noValue = value{}
	absence = value{px: "0"}
	asItIs  = value{px: "="}
)

// value encodes rec. A record that is overdue is absent here.
func (w *workflow) value(rec *store.Record) (value, error) {
	if rec == nil {
		return absence, nil
	}
	px, err := w.s.px(*rec)
	if err != nil || px == absence.px {
		return absence, err
	}
	return value{px, text(rec)}, nil
}

// plain is for what leaves markers alone.
func plain(epoch uint64) store.Op { return store.Op{Nonce: "-", Epoch: epoch} }

// step calls a script that deals with one key. All of them get the same keys and, at first, the same arguments:
// lua/part/fenced.lua.
func (w *workflow) step(ctx context.Context, name string, sc *script, key string, op store.Op, v value, more ...string) *reply {
	data, err := w.s.name(key)
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f }
	switch {
	case err != nil:
		return &reply{err: err}
	case op.Epoch > maxEpoch:
		return &reply{err: errEpoch}
	case op.Nonce == "" || len(op.Nonce) > 128 || strings.ContainsFunc(op.Nonce, bad) || op.Lease < 0:
		return &reply{err: fmt.Errorf("store/redis: the nonce or the lease is not valid: %w", store.ErrInvalid)}
	}
	if v.px == absence.px {
		sc = sc.spare
	}
	slot := w.s.slotOf(data)
	tag := w.s.tag(slot)
	keys := []string{fenceKey(tag, w.name), data, sideKey(tag, data), intentsKey(tag, w.name), aheadsKey(tag, w.name), stepsKey(tag, w.name)}
	steps := w.steps.Load()
	args := append([]string{digits(op.Epoch), key, op.Nonce, millis(op.Lease), v.px, v.data, steps.handle, ""}, more...)
	return w.run(ctx, name, sc, keys, args, steps, slot, 7)
}

// stepTo is step with a record.
func (w *workflow) stepTo(ctx context.Context, name string, sc *script, key string, op store.Op, rec *store.Record, more ...string) *reply {
	v, err := w.value(rec)
	if err != nil {
		return &reply{err: err}
	}
	return w.step(ctx, name, sc, key, op, v, more...)
}

// Begin is not refused by a server that is out of memory: a logout begins like every other write, and what begins adds
// a marker, which is small. It is the commit that brings a value, and is refused.
func (w *workflow) Begin(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	return w.step(ctx, "begin", beginScript, key, op, noValue, "").begun()
}

func (w *workflow) Settle(ctx context.Context, key string, op store.Op) (store.Begun, error) {
	return w.step(ctx, "settle", beginScript, key, op, noValue, "settle").begun()
}

func (r *reply) begun() (b store.Begun, err error) {
	b = store.Begun{Took: store.MarkerKind(r.int(1)), Holds: store.Version(r.text(2))}
	if b.Took == store.AheadOf {
		b.Ahead = store.Ahead{Version: uint64(r.int(3)), Mine: true, Record: r.record(4)}
	}
	return b, r.fail()
}

func (w *workflow) Commit(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	return w.stepTo(ctx, "commit", commitScript, key, op, rec, "").fail()
}

func (w *workflow) CommitRead(ctx context.Context, key string, op store.Op, rec *store.Record) error {
	if rec == nil {
		return w.Commit(ctx, key, op, nil)
	}
	v, err := w.value(rec)
	if err != nil {
		return err
	}
	if v == absence {
		v.data = text(rec) // overdue where it was read, and here perhaps not any more
	}
	return w.step(ctx, "commit", commitScript, key, op, v, "read").fail()
}

func (w *workflow) Withdraw(ctx context.Context, key string, op store.Op) error {
	return w.step(ctx, "withdraw", withdrawScript, key, op, noValue).fail()
}

func (w *workflow) WriteAhead(ctx context.Context, key string, op store.Op, rec *store.Record, cond store.Condition) (a store.Ahead, err error) {
	v, err := w.value(rec)
	if err != nil {
		return a, err
	}
	r := w.step(ctx, "write ahead", aheadScript, key, op, v, cond.Encode())
	a = store.Ahead{Version: uint64(r.int(1)), Mine: r.flag(2), Existed: r.flag(3)}
	if v != absence && r.err == nil {
		a.Record = &store.Record{Data: bytes.Clone(rec.Data), Flags: rec.Flags, Expires: rec.Expires}
	}
	return a, r.fail()
}

func (w *workflow) MarkAhead(ctx context.Context, key string, op store.Op) (store.Ahead, error) {
	r := w.step(ctx, "mark ahead", aheadScript, key, op, asItIs, store.IfPresent.Encode())
	a := store.Ahead{Version: uint64(r.int(1)), Mine: r.flag(2), Existed: r.flag(3), Record: r.record(4)}
	return a, r.fail()
}

// Propagated renews op's lease where there is more to do.
func (w *workflow) Propagated(ctx context.Context, key string, op store.Op, version uint64) (store.Ahead, bool, error) {
	r := w.step(ctx, "propagated", propagatedScript, key, op, noValue, digits(version))
	done, a := r.flag(1), store.Ahead{Version: uint64(r.int(2))}
	if !done && r.err == nil {
		a.Mine, a.Record = true, r.record(3)
	}
	return a, done, r.fail()
}

func (w *workflow) SaveLast(ctx context.Context, key string, epoch uint64, rec *store.Record, cond store.Condition) (bool, error) {
	r := w.stepTo(ctx, "save last", lastScript, key, plain(epoch), rec, cond.Encode())
	return r.flag(1), r.fail()
}

func (w *workflow) TouchMarked(ctx context.Context, key string, epoch uint64, expires time.Time) (present bool, m store.Marker, err error) {
	px, err := w.s.pxLeft(store.Record{Expires: expires})
	if err != nil {
		return false, m, err
	}
	r := w.step(ctx, "touch", touchScript, key, plain(epoch), value{px: px})
	m = store.Marker{Kind: store.MarkerKind(r.int(2)), Nonce: r.text(3), Left: r.millis(4), Version: uint64(r.int(5))}
	return r.flag(1), m, r.fail()
}

func (w *workflow) Copy(ctx context.Context, key string, epoch uint64, rec *store.Record) error {
	return w.stepTo(ctx, "copy", copyScript, key, plain(epoch), rec).fail()
}

// names returns the names of keys, all of them valid.
func (w *workflow) names(epoch uint64, n int, key func(i int) string) ([]string, error) {
	if epoch > maxEpoch {
		return nil, errEpoch
	}
	names := make([]string, n)
	for i := range names {
		name, err := w.s.name(key(i))
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		names[i] = name
	}
	return names, nil
}

// batch calls a script of parts for entries, in several steps where they are many. For each the script gets the lifetime
// and what encode makes of the record, which is nil where it is overdue. Where a step fails, what was answered is
// returned beside the error.
func (w *workflow) batch(ctx context.Context, op string, sc *script, epoch uint64, entries []store.Entry, encode func(*store.Record) string) ([]bool, error) {
	names, err := w.names(epoch, len(entries), func(i int) string { return entries[i].Key })
	if err != nil {
		return nil, err
	}
	parts := make([]part, len(entries))
	for i, e := range entries { // before anything is touched
		px, rec := absence.px, e.Record
		if rec != nil {
			if px, err = w.s.px(*rec); err != nil {
				return nil, fmt.Errorf("entry %d: %w", i, err)
			}
		}
		if px == absence.px {
			rec = nil
		}
		tag := w.s.tag(w.s.slotOf(names[i]))
		parts[i] = part{[]string{fenceKey(tag, w.name), names[i], sideKey(tag, names[i])}, []string{px, encode(rec)}}
	}
	yes := make([]bool, len(entries))
	err = w.s.parts(ctx, op, store.ErrUnknown, sc, []string{digits(epoch)}, parts, func(i int, m *rueidis.RedisMessage) error {
		n, err := did(m)
		yes[i] = n > 0
		return err
	})
	return yes, err
}

// Add takes several steps for a large batch, each of them atomic. An absent or overdue record is not stored.
func (w *workflow) Add(ctx context.Context, epoch uint64, entries []store.Entry) ([]bool, error) {
	return w.batch(ctx, "add", addScript, epoch, entries, func(rec *store.Record) string {
		if rec == nil {
			return ""
		}
		return text(rec)
	})
}

// Same takes several steps for a large batch, each of them atomic. An overdue record counts as an absent one.
func (w *workflow) Same(ctx context.Context, epoch uint64, entries []store.Entry) ([]bool, error) {
	return w.batch(ctx, "same", sameScript, epoch, entries, func(rec *store.Record) string { return string(rec.Version()) })
}

func (w *workflow) Remove(ctx context.Context, epoch uint64, keys []string) (removed int, err error) {
	names, err := w.names(epoch, len(keys), func(i int) string { return keys[i] })
	if err != nil {
		return 0, err
	}
	parts := make([]part, len(keys))
	for i, name := range names {
		tag := w.s.tag(w.s.slotOf(name))
		parts[i] = part{[]string{fenceKey(tag, w.name), name, sideKey(tag, name), intentsKey(tag, w.name), aheadsKey(tag, w.name)}, keys[i : i+1]}
	}
	err = w.s.parts(ctx, "remove", store.ErrUnknown, removeScript, []string{digits(epoch)}, parts, func(_ int, m *rueidis.RedisMessage) error {
		n, err := did(m)
		removed += max(0, n)
		return err
	})
	return removed, err
}

// Unsettled asks all slots.
func (w *workflow) Unsettled(ctx context.Context, limit int) (u store.Unsettled, err error) {
	marks, err := w.marks(ctx, w.indices(), max(1, limit), func(intents, aheads int) {
		u.Intents, u.Aheads = u.Intents+intents, u.Aheads+aheads
	})
	slices.SortFunc(marks, func(a, b mark) int { return cmp.Compare(a.left, b.left) })
	if len(marks) > 0 {
		u.Oldest = -marks[0].left
	}
	for _, m := range marks[:min(len(marks), max(0, limit))] {
		u.Keys = append(u.Keys, m.key)
	}
	return u, err
}

// A mark is a marker as an index knows it.
type mark struct {
	key   string
	left  time.Duration // until its lease ends
	index string
}

// marks lists up to limit markers of each kind and slot, those first whose lease ends first, and counts all. parts are some
// of the indices.
func (w *workflow) marks(ctx context.Context, parts []part, limit int, count func(intents, aheads int)) (marks []mark, err error) {
	err = w.s.parts(ctx, "unsettled", store.ErrUnavailable, unsettledScript, []string{strconv.Itoa(limit)}, parts, func(i int, m *rueidis.RedisMessage) error {
		if n, err := m.AsInt64(); err == nil && n == 0 {
			return nil
		}
		items, err := m.ToArray()
		r := &reply{op: "unsettled", lost: store.ErrUnavailable, items: items}
		r.unreadable(err)
		count(int(r.int(0)), int(r.int(1)))
		for j := range 2 {
			for f := range slices.Chunk(r.texts(2+j), 2) {
				left, err := strconv.ParseInt(f[1], 10, 64)
				r.unreadable(err)
				marks = append(marks, mark{f[0], time.Duration(left) * time.Millisecond, parts[i].names[j]})
			}
		}
		return r.err
	})
	return marks, err
}

// Purge removes the markers that the indices name, in bounded steps, the fences first, so that no new ones are made
// meanwhile. It does not look for side keys by their names: under a short prefix, or none, there are other workflows'
// among them. What is gone stays so, until it goes away by itself.
//
// In home each step compares the control record. The other slots of a Cluster cannot see that: they come first, and there
// a step does nothing where the fence is above the one that went with the record. A workflow of the same name that was created
// since has a higher one (or another origin, and then, where a message is that late, a fence in a slot may go: nothing is written
// there any more, and Renew finds it).
func (w *workflow) Purge(ctx context.Context, control []byte) error {
	fence, err := w.swapControl(ctx, control, control)
	if err != nil {
		return err
	}
	home := w.s.home()
	// purge removes first and second, or a marker: a member of the index first and its side key second.
	purge := func(slot int, first, second, member string) part {
		tag := w.s.tag(slot)
		if slot == home {
			return part{[]string{controlKey(tag), first, second}, []string{"control", string(control), member}}
		}
		return part{[]string{fenceKey(tag, w.name), first, second}, []string{"fence", digits(fence), member}}
	}
	run := func(parts []part) error {
		return w.s.parts(ctx, "purge", store.ErrUnknown, purgeScript, []string{w.name}, parts, allDone)
	}
	others := slices.DeleteFunc(w.allSlots(), func(slot int) bool { return slot == home })
	for _, slots := range [][]int{others, {home}} {
		var whole, indices []part
		for _, slot := range slots {
			tag := w.s.tag(slot)
			whole, indices = append(whole, purge(slot, fenceKey(tag, w.name), stepsKey(tag, w.name), "")), append(indices, w.indices()[slot])
		}
		if err := run(whole); err != nil {
			return err
		}
		for {
			marks, err := w.marks(ctx, indices, batchEntries, func(int, int) {})
			if err != nil {
				return err
			}
			if len(marks) == 0 {
				break
			}
			parts := make([]part, len(marks))
			for i, m := range marks {
				name := w.s.opt.Prefix + m.key
				slot := w.s.slotOf(name)
				parts[i] = purge(slot, m.index, sideKey(w.s.tag(slot), name), m.key)
			}
			if err := run(parts); err != nil {
				return err
			}
		}
	}
	tag := w.s.homeTag()
	return run([]part{purge(home, leaseKey(tag, w.name), stepsKey(tag, w.name), "")})
}
