package redis

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

type workflow struct {
	s    *Store
	name string

	steps atomic.Pointer[steps]
}

// Workflow opens the records of one workflow.
func (s *Store) Workflow(name string) store.Workflow {
	w := &workflow{s: s, name: name}
	w.Accept()
	return w
}

// Accept makes the steps count under another name: what is still on its way under the old one is refused.
func (w *workflow) Accept() { w.steps.Store(&steps{handle: rand.Text()[:12]}) }

// steps are what the server has done for a handle.
type steps struct {
	handle   string        // the name that it counts them under
	answered atomic.Uint64 // the highest number that it has answered
}

// run calls a script of which args[at] is how many steps were answered. It is looked up when the connection is known: what
// was made out for one server, and comes to one with an older memory, would be counted there as if it were the step that
// was forgotten.
func (w *workflow) run(ctx context.Context, name string, sc *script, keys, args []string, steps *steps, at int) *reply {
	r := w.s.call(ctx, name, store.ErrUnknown, sc, keys, args, func(args []string) { args[at] = digits(steps.answered.Load()) })
	if r.err == nil {
		steps.saw(uint64(r.int(0)))
	}
	return r
}

func (s *steps) saw(step uint64) {
	for old := s.answered.Load(); old < step && !s.answered.CompareAndSwap(old, step); old = s.answered.Load() {
	}
}

// Workflows lists the fields of the hash of control records.
func (s *Store) Workflows(ctx context.Context) ([]string, error) {
	r := s.ask(ctx, "workflows", "HKEYS", controlKey())
	names := r.texts(0)
	slices.Sort(names)
	return names, r.fail()
}

func (w *workflow) Control(ctx context.Context) ([]byte, error) {
	r := w.s.ask(ctx, "control", "HGET", controlKey(), w.name)
	return r.bytes(0), r.fail()
}

func (w *workflow) SwapControl(ctx context.Context, old, next []byte) error {
	encode := func(b []byte) string {
		if b == nil {
			return "-"
		}
		return "+" + string(b)
	}
	return w.s.run(ctx, "swap control", controlScript, []string{controlKey()}, w.name, encode(old), encode(next)).fail()
}

func (w *workflow) Fence(ctx context.Context) (uint64, error) {
	r := w.s.ask(ctx, "fence", "GET", fenceKey(w.name))
	return uint64(r.int(0)), r.fail()
}

func (w *workflow) RaiseFence(ctx context.Context, epoch uint64) error {
	if epoch > maxEpoch {
		return errEpoch
	}
	return w.s.run(ctx, "raise fence", fenceScript, []string{fenceKey(w.name)}, digits(epoch)).fail()
}

// Renew is not refused by a server that is out of memory: the gateways must be able to go on, and back.
func (w *workflow) Renew(ctx context.Context, gateway string, info []byte, life time.Duration) (store.Renewal, error) {
	steps := w.steps.Load()
	keys := []string{leaseKey(w.name), controlKey(), stepsKey(w.name)}
	args := []string{w.name, gateway, millis(life), string(info), steps.handle, ""}
	r := w.run(ctx, "renew", renewScript, keys, args, steps, 5)
	return store.Renewal{Control: r.bytes(1), Forgot: r.int(0) == 0, Now: time.UnixMilli(r.int(2))}, r.fail()
}

func (w *workflow) Leases(ctx context.Context) (leases []store.Lease, err error) {
	r := w.s.query(ctx, "leases", leasesScript, []string{leaseKey(w.name)})
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
	return w.s.run(ctx, "drop lease", dropScript, []string{leaseKey(w.name)}, gateway).fail()
}

// Leave is two commands. The steps go last: without them a lease would be renewed by nobody.
func (w *workflow) Leave(ctx context.Context, gateway string) error {
	if err := w.s.tell(ctx, "leave", "HDEL", leaseKey(w.name), gateway).fail(); err != nil {
		return err
	}
	handle := w.steps.Load().handle
	w.Accept()
	return w.s.tell(ctx, "leave", "HDEL", stepsKey(w.name), handle).fail()
}

// LoadMarked is one MGET of value, marker and fence. A value that is no string counts as absent in it. Marker.Left is not
// known here and 0: it is by the server's clock, which MGET does not tell. Begin, Settle, BusyError and TouchMarked know it.
func (w *workflow) LoadMarked(ctx context.Context, key string) (rec *store.Record, m store.Marker, err error) {
	name, err := w.s.name(key)
	if err != nil {
		return nil, m, err
	}
	r := w.s.ask(ctx, "load", "MGET", name, sideKey(name), fenceKey(w.name))
	r.items = r.list(0)
	if !r.has(2) {
		return nil, m, cmp.Or(r.err, store.ErrFenced)
	}
	if r.has(0) {
		rec = &store.Record{Data: r.bytes(0)}
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
	case len(f) == 2 && f[0] == "g":
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
	return value{px, string(rec.Data)}, nil
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
	keys := []string{fenceKey(w.name), data, sideKey(data), intentsKey(w.name), aheadsKey(w.name), stepsKey(w.name)}
	steps := w.steps.Load()
	args := append([]string{digits(op.Epoch), key, op.Nonce, millis(op.Lease), v.px, v.data, steps.handle, ""}, more...)
	return w.run(ctx, name, sc, keys, args, steps, 7)
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
		v.data = string(rec.Data) // overdue where it was read, and here perhaps not any more
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
		a.Record = &store.Record{Data: []byte(v.data), Expires: rec.Expires}
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

// A script on a batch holds everybody else up: as many entries and bytes as take the server about a millisecond.
const (
	batchEntries = 250
	batchBytes   = 512 << 10
)

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

// batch calls a fenced script for entries, in several steps where they are many. For each the script gets the lifetime
// and what encode makes of the record, which is nil where it is overdue. Where a step fails, what was answered before
// is returned beside the error.
func (w *workflow) batch(ctx context.Context, op string, sc *script, epoch uint64, entries []store.Entry, encode func(*store.Record) string) ([]bool, error) {
	names, err := w.names(epoch, len(entries), func(i int) string { return entries[i].Key })
	if err != nil {
		return nil, err
	}
	pxs := make([]string, len(entries))
	for i, e := range entries { // before anything is touched
		pxs[i] = absence.px
		if e.Record != nil {
			if pxs[i], err = w.s.px(*e.Record); err != nil {
				return nil, fmt.Errorf("entry %d: %w", i, err)
			}
		}
	}
	yes := make([]bool, len(entries))
	for i := 0; i < len(entries); {
		from, size := i, 0
		keys, args := []string{fenceKey(w.name)}, []string{digits(epoch)}
		for ; i < len(entries) && i-from < batchEntries && size < batchBytes; i++ {
			rec := entries[i].Record
			if pxs[i] == absence.px {
				rec = nil
			}
			keys = append(keys, names[i], sideKey(names[i]))
			args = append(args, pxs[i], encode(rec))
			size += len(args[len(args)-1])
		}
		r := w.s.run(ctx, op, sc, keys, args...)
		answer := r.text(1)
		if r.err == nil && len(answer) != i-from {
			r.unreadable(fmt.Errorf("%d answers for %d entries", len(answer), i-from))
		}
		if r.err != nil {
			return yes, r.err
		}
		for j := range len(answer) {
			yes[from+j] = answer[j] == '1'
		}
	}
	return yes, nil
}

// Add takes several steps for a large batch, each of them atomic. An absent or overdue record is not stored.
func (w *workflow) Add(ctx context.Context, epoch uint64, entries []store.Entry) ([]bool, error) {
	return w.batch(ctx, "add", addScript, epoch, entries, func(rec *store.Record) string {
		if rec == nil {
			return ""
		}
		return string(rec.Data)
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
	for len(keys) > 0 {
		n := min(len(keys), batchEntries)
		touched := []string{fenceKey(w.name), intentsKey(w.name), aheadsKey(w.name)}
		for _, name := range names[:n] {
			touched = append(touched, name, sideKey(name))
		}
		r := w.s.run(ctx, "remove", removeScript, touched, append([]string{digits(epoch)}, keys[:n]...)...)
		if removed += int(r.int(1)); r.err != nil {
			return removed, r.err
		}
		names, keys = names[n:], keys[n:]
	}
	return removed, nil
}

func (w *workflow) Unsettled(ctx context.Context, limit int) (u store.Unsettled, err error) {
	r := w.s.query(ctx, "unsettled", unsettledScript, []string{intentsKey(w.name), aheadsKey(w.name)},
		strconv.Itoa(max(1, limit)))
	type mark struct {
		key  string
		till int64
	}
	var marks []mark
	for f := range slices.Chunk(append(r.texts(4), r.texts(5)...), 2) {
		till, err := strconv.ParseInt(f[1], 10, 64)
		r.unreadable(err)
		marks = append(marks, mark{f[0], till})
	}
	slices.SortFunc(marks, func(a, b mark) int { return cmp.Compare(a.till, b.till) })
	if len(marks) > 0 {
		u.Oldest = time.Duration(r.int(1)-marks[0].till) * time.Millisecond
	}
	for _, m := range marks[:min(len(marks), max(0, limit))] {
		u.Keys = append(u.Keys, m.key)
	}
	u.Intents, u.Aheads = int(r.int(2)), int(r.int(3))
	return u, r.fail()
}

// Purge removes the markers that the indices name, in bounded steps, the fence first, so that no new ones are made
// meanwhile. It does not look for side keys by their names: under a short prefix, or none, there are other workflows'
// among them. What is gone stays so, until it goes away by itself.
func (w *workflow) Purge(ctx context.Context, control []byte) error {
	purge := func(keys []string, members ...string) error {
		return w.s.run(ctx, "purge", purgeScript, append([]string{controlKey()}, keys...), append([]string{w.name, string(control)}, members...)...).fail()
	}
	if err := purge([]string{fenceKey(w.name)}); err != nil {
		return err
	}
	for _, index := range []string{intentsKey(w.name), aheadsKey(w.name)} {
		for {
			r := w.s.ask(ctx, "purge", "ZRANGE", index, "0", strconv.Itoa(batchEntries-1))
			members := r.texts(0)
			if r.err != nil {
				return r.err
			}
			if len(members) == 0 {
				break
			}
			names := []string{index}
			for _, key := range members {
				names = append(names, sideKey(w.s.opt.Prefix+key))
			}
			if err := purge(names, members...); err != nil {
				return err
			}
		}
	}
	return purge([]string{leaseKey(w.name), stepsKey(w.name)})
}
