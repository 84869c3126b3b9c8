package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// Recovery: what a gateway does with a server that it has not known as the primary before it lets anybody use it. A new
// primary has a prefix of what the old one had acknowledged, and perhaps more that others have written since. The gateway
// puts back, from its window, what it knows and the server does not; of three kinds, of which each has its own danger:
//
//   - A delete: where there is nothing, a gone marker is left. Where there is a value that is known to be older, it is
//     deleted. A value that is not known stays, and is counted: it may be a newer session.
//   - A value over another one: by compare-and-set, where that one is known to be older. Any other stays, and is counted.
//   - A value onto nothing. Nothing has no version, so this is the one that could undo a logout:
//
//     A: SET k w     B: DEL k     both lost: A sees nothing, as if B's delete had never been
//
//     So all gateways first put their deletes back and say so in the registry (step noDeletes); who lives is waited for,
//     until the hold is over: then nothing is put onto nothing. And where the delete was not lost, its gone marker is there:
//
//     A: SET k w     A is cut off     B: DEL k on the new primary     A comes back: nothing there, but the marker is
//
//     A marker lives for gone (two windows and no less than a minute); a write that is older than that may have been
//     deleted and forgotten, and is left (reason late). In the window A's write would otherwise never grow old, since the
//     window's clock stands still while A is cut off.
//
// Then there are chains, of which no single gateway knows both ends (v0 is on the new primary, all else is lost):
//
//	A reads v0, writes v1     B reads v1, writes v2            B finds v0, which it does not know
//	A reads v0, writes v1     B deletes v1                     B finds v0, which it does not know: undone logout
//
// So who has left something looks again when another one has put something back (B finds v1), until all are in order and
// nothing changes any more; and a delete that finds what it does not know leaves a marker with the version that it had
// deleted. Who finds that marker on a write of its own (A) knows that its write was deleted, and deletes what it knows to
// be older in its stead.
//
// Nobody is let in before all that live are in order: a page that is served by B while A has not put the login back
// finds no session, makes a new one, and A leaves it, as a newer one.
//
// What can go wrong all the same:
//
//	A value that returns to bytes that are known to be older is taken for older (there are no stamps).
//	A gateway that dies takes its window with it. A delete that it acknowledged and that was lost is undone where another
//	gateway puts back an older write of the same session.
//	Who is silent for two seconds is not waited for. If it is only cut off, and comes later, its deletes are put back then:
//	over what was put back, not over what was written since, which is counted (reason newer).
//	Blind writes of one session through two gateways in the same lost second, without a read between, end in any order.
//	A session that was destroyed and made again under the same id is in the window as what it was made: that it was destroyed between is
//	forgotten. Where another gateway has a state of before, of which this one knows nothing, and all of it is lost, that one may come back.
//	A write after a delete of another gateway, under the same id, is left where the marker of that delete is there and the
//	write is not (reason gone): only of its own markers a gateway knows that the write came after.
//	A read that was answered before the switch may have been of a write that nobody acknowledged. Such a write breaks a chain, too: where it was
//	deleted, or written over and that was deleted, what was there before it may come back, since who made it does not know that it was done.

// A primary is a server as recovery needs it.
type primary interface {
	identify(ctx context.Context) (serverID, error)
	// register notes what gateway says of itself ("": it only asks) and returns all that is in the registry.
	register(ctx context.Context, gateway, record string, strike []string) (map[string]string, error)
	// look and put may answer for the first ones only.
	look(ctx context.Context, asks []ask) ([]finding, error)
	put(ctx context.Context, changes []change) ([]uint64, error)
}

// A serverID says which server it is.
type serverID struct {
	// memory is its run id and its replication id. The run id alone stays when it is made a replica, takes over the
	// data of another one, and is made a primary again; the replication id changes then.
	memory string
	keys   int // in the database
	// How many it has evicted since it began.
	evicted uint64
}

// An ask is a key, the version that is looked for there, and the lifetime that it shall have at least.
type ask struct {
	key     string
	version store.Version // "": any; none: the value is wanted, whatever it is
	px      string        // "0": it stays as it is
}

const none store.Version = "-"

// A finding is what is there.
type finding struct {
	there, same bool
	data        []byte // where there is something else; nil: what is no string
	marker      string
	moving      bool // the slot is on its way: what is there was found elsewhere, or not at all, and nothing can be put back
}

// A change is made where what is wanted is what is there.
type change struct {
	key  string
	what string        // lua/putback.lua
	want store.Version // "": nothing
	own  uint64        // the end of a gone marker that does not count
	px   string
	data []byte
}

// A reason is why something was left.
type reason uint8

const (
	notLeft     reason = iota
	isNewer            // another value is there, which is not known to be older
	isGone             // another gateway has deleted it
	isUnsettled        // the marker of a move is there
	isTaken            // somebody else has the lock
	isLate             // nothing is there; too long ago, so that the marker of a delete may be over
	isUnheard          // nothing is there; not all gateways have said that they know of no later delete
	isBare             // nothing is there; a gateway's deletes leave no markers (replay=off)
	isRefused          // the server does not take it
	isOld              // the server is older than all that is remembered: these are notes that were forgotten when their time was over
	isMoving           // its slot was left half-way between two servers of a Cluster
	reasons
)

var reasonNames = [reasons]string{isNewer: "newer", isGone: "gone", isUnsettled: "unsettled", isTaken: "taken",
	isLate: "late", isUnheard: "unheard", isBare: "bare", isRefused: "refused", isOld: "old", isMoving: "moving"}

// lost reports whether what was left for that reason is gone, and nobody has replaced or deleted it.
func (r reason) lost() bool {
	return r == isLate || r == isUnheard || r == isBare || r == isRefused || r == isOld || r == isMoving
}

// A recovery is one gateway's, for one node. Its methods are called by one goroutine.
type recovery struct {
	p        primary
	w        *window // nil: nothing is remembered, and nothing put back
	f        *fleet
	log      *slog.Logger
	stats    *failovers
	isOrigin *atomic.Bool
	hold     time.Duration
	gone     time.Duration // the life of a gone marker

	mine  func(key string) bool          // whether a key is this node's
	slot  func(key string) int           // keys of different slots go in different calls
	still func(ctx context.Context) bool // waits until no operation is under way

	told    func(j *job) // what became of it; of a test
	known   string       // the memory of the server that was last put in order
	keys    atomic.Int64 // that it had when they were last counted
	counted serverID     // by count
	old     struct {     // a server that was compared, and what nobody remembers of what it lacks: see compare
		memory string
		notes  uint64
	}
	tried  string    // what is to be done
	began  time.Time // when that was first tried
	record record
	beats  atomic.Int64 // that were answered since the process began
	strike []string
}

const (
	pollEvery = 20 * time.Millisecond
	meeting   = 2*beatEvery + 100*time.Millisecond // by then a gateway that lives has heard of a new one
	slack     = 2 * time.Second                    // a marker ends by the clock of a server, which may not be that of the one before
)

var (
	errForgotten = errors.New("the server has forgotten everything")
	errNotStill  = errors.New("operations are still under way")
)

// A decision is a person's, about a server that has forgotten everything.
type decision string

const (
	undecided decision = ""
	refill    decision = "refill" // put back what is remembered, onto nothing, too
	accept    decision = "accept" // go on with what is there
)

// restore puts the server in order. It returns errForgotten where a person has to say how, and any other error where it
// is to be tried again.
func (r *recovery) restore(ctx context.Context) error {
	id, err := r.p.identify(ctx)
	switch {
	case err != nil:
		return err
	case id.memory == r.known: // the connection was lost, and nothing else
		r.record = record{beat: r.record.beat, marks: r.w != nil, memory: id.memory, step: serving} // another one may have been tried meanwhile
		return nil
	case r.known == "":
		return r.arrive(ctx, id)
	}
	d, err := r.forgotten(ctx, id)
	if err != nil {
		return err
	}
	if task := id.memory + string(d); r.tried != task {
		r.tried, r.began = task, time.Now()
	}
	if !r.still(ctx) {
		return errNotStill
	}
	r.record = record{beat: r.record.beat, marks: r.w != nil, memory: id.memory}
	var jobs []job
	exposed := uint64(0)
	switch {
	case r.w == nil:
	case d == accept:
		r.w.clear(r.mine)
	default:
		exposed = r.w.exposed()
		if jobs, err = r.putBack(ctx, d == refill); err != nil {
			return err
		}
	}
	r.record.step = serving
	if err := r.beat(ctx); err != nil && r.w != nil {
		return err
	}
	r.known = id.memory
	r.keys.Store(int64(id.keys))
	r.report(jobs, exposed)
	return nil
}

// compare looks how much of what this gateway has noted the server with that memory had: what its record there says, of the
// time before. What came after and is remembered is put back; what is not remembered any more is lost, and as nobody can say
// what it was, it is counted.
func (r *recovery) compare(all map[string]string, id serverID) {
	if r.w == nil || r.old.memory == id.memory {
		return
	}
	had := uint64(0)
	if mine, ok := parseRecord(all[r.f.self]); ok {
		had = mine.notes
	}
	r.old.memory = id.memory
	_, r.old.notes = r.w.noted(had)
}

// arrive is for the first server of all: there is nothing to put back. But whoever begins to delete has to be known to
// those who would wait for it:
//
//	A: SET k w     B begins, DEL k     both lost, and B's registration, too: A puts w back, and waits for nobody
//
// And who begins while the others are about to put a server in order waits for them.
func (r *recovery) arrive(ctx context.Context, id serverID) error {
	r.record = record{marks: r.w != nil, memory: id.memory, step: serving}
	for began := time.Now(); ; {
		err := r.beat(ctx)
		switch {
		case r.w == nil: // nobody waits for it
		case err != nil:
			return err
		case !r.f.met() && time.Now().Before(began.Add(meeting)) && guard.On(guard.Meet),
			!r.f.at(serving, id.memory) && time.Now().Before(began.Add(r.hold)):
			if !sleep(ctx, pollEvery) {
				return ctx.Err()
			}
			continue
		}
		r.known = id.memory
		r.keys.Store(int64(id.keys))
		return nil
	}
}

// count counts the server's keys, and those that it has thrown away for want of memory: sessions whose users are logged out.
func (r *recovery) count(ctx context.Context) {
	id, err := r.p.identify(ctx)
	if err != nil || id.memory != r.known {
		return
	}
	r.keys.Store(int64(id.keys))
	if id.memory == r.counted.memory && id.evicted > r.counted.evicted {
		n := id.evicted - r.counted.evicted
		r.stats.evicted.Add(n)
		r.log.Error("redis: the server evicts keys, whose users are logged out: maxmemory is reached, and maxmemory-policy is not noeviction", "evicted", n)
	}
	r.counted = id
}

// beat says that this gateway lives, and looks who else does.
func (r *recovery) beat(ctx context.Context) error {
	if r.isOrigin.Load() { // where nobody waits for anybody
		r.beats.Add(1)
		return nil
	}
	if r.record.beat++; r.w != nil {
		r.record.notes, _ = r.w.noted(0)
	}
	all, err := r.p.register(ctx, r.f.self, r.record.String(), r.strike)
	if err != nil {
		return err
	}
	r.beats.Add(1)
	r.strike = r.f.note(all, r.record.memory, time.Now())
	r.stats.gateways.Store(int64(r.f.living()))
	return nil
}

// minBeats is for how long a gateway has to be registered before it expects to be known: about three seconds.
const minBeats = 10

// forgotten returns errForgotten where the server knows neither anybody of the fleet nor any of the sessions, and
// otherwise what somebody has decided about it. That an origin has lost its memory its mark says, and people decide about that
// by the move.
func (r *recovery) forgotten(ctx context.Context, id serverID) (decision, error) {
	if r.isOrigin.Load() {
		return undecided, nil
	}
	all, err := r.p.register(ctx, r.f.self, "", nil)
	if err != nil {
		return undecided, err
	}
	if d := decision(all[decisionField(id.memory)]); d != undecided {
		return d, nil
	}
	if r.f.knows(all, id.memory) || r.f.trusts(all, id.memory) {
		r.compare(all, id)
		return undecided, nil
	}
	if len(all) > 0 {
		id.keys-- // the registry, of gateways that began after it had forgotten
	}
	young := r.beats.Load() < minBeats
	if young && id.keys > 0 {
		return undecided, nil
	}
	if young || id.keys > 0 {
		if some, err := r.remembers(ctx, id, young); some || err != nil {
			if err == nil {
				r.compare(all, id)
			}
			return undecided, err
		}
	}
	return undecided, errForgotten
}

// remembers reports whether any of the sessions that the server should have is there. On an idle site none is known that it
// should have: then most of the keys should be there, but where this gateway is young.
func (r *recovery) remembers(ctx context.Context, id serverID, young bool) (bool, error) {
	many := 2*id.keys >= int(r.keys.Load())
	if r.w == nil {
		return young || many, nil
	}
	list := r.w.all(r.mine)
	var last time.Duration
	for i := range list {
		last = max(last, list[i].at)
	}
	var asks []ask
	for i := range list {
		if e := &list[i]; (e.did == saved || e.did == touched) && last-e.at > time.Second && len(asks) < batchEntries {
			asks = append(asks, ask{e.key, "", "0"})
		}
	}
	if len(asks) == 0 {
		return young || many || len(list) > 0, nil
	}
	for len(asks) > 0 {
		found, err := r.p.look(ctx, asks)
		if err != nil {
			return false, err
		}
		for i := range found {
			if found[i].there && !found[i].moving { // elsewhere is no memory of this server
				return true, nil
			}
		}
		asks = asks[max(1, len(found)):]
	}
	return false, nil
}

// decisionField is no gateway's name.
func decisionField(memory string) string { return "=" + memory }

// A job is an entry on its way back.
type job struct {
	*entry
	left  reason
	noted bool
	puts  int
}

// A round is one look at a number of jobs.
type round struct {
	onto func(e *entry) reason // whether e may be put onto nothing
	end  time.Time             // until when the server may refuse
	puts atomic.Uint64
}

// putBack puts back what the window has. force is for a server that has forgotten everything: then there is nothing that
// could be undone.
func (r *recovery) putBack(ctx context.Context, force bool) ([]job, error) {
	end, since := r.began.Add(r.hold), r.w.now()
	list := r.w.all(r.mine)
	jobs := make([]job, len(list))
	var all, deletes []*job
	for i := range list {
		j := &jobs[i]
		j.entry = &list[i]
		if all = append(all, j); j.did == deleted || j.did == unlocked {
			deletes = append(deletes, j)
		}
	}
	p := &round{end: end, onto: func(*entry) reason { return isUnheard }}
	if err := r.run(ctx, p, deletes); err != nil {
		return nil, err
	}
	r.record.step = noDeletes
	heard, err := r.wait(ctx, end)
	if err != nil {
		return nil, err
	}
	p.onto = func(e *entry) reason {
		switch {
		case force:
		case !heard:
			return isUnheard
		case !r.f.bare.IsZero() && e.sure <= r.f.bare.Sub(r.w.began):
			return isBare
		case r.w.now()-e.sure > r.gone-slack && guard.On(guard.Late):
			return isLate
		}
		return notLeft
	}
	for pending, again := all, true; again; {
		puts := r.f.puts(r.record.memory) + r.record.puts
		before := r.record.puts
		if err := r.run(ctx, p, pending); err != nil {
			return nil, err
		}
		pending = nil
		for i := range jobs {
			if j := &jobs[i]; j.left == isNewer || j.left == isGone {
				pending = append(pending, j)
			}
		}
		r.record.step, r.record.seen = noWrites, puts+r.record.puts-before
		if again, err = r.unseen(ctx, end); err != nil {
			return nil, err
		}
	}
	r.w.settle(list, since, func(i int) reason { return jobs[i].left })
	return jobs, nil
}

// wait waits until all that live are as far as this gateway. It reports false where the hold is over before.
func (r *recovery) wait(ctx context.Context, end time.Time) (bool, error) {
	for {
		if err := r.beat(ctx); err != nil {
			return false, err
		}
		switch {
		case r.f.at(r.record.step, r.record.memory), !guard.On(guard.Settled):
			return true, nil
		case !time.Now().Before(end):
			return false, nil
		case !sleep(ctx, pollEvery):
			return false, ctx.Err()
		}
	}
}

// unseen waits until all that live are done and have seen what everybody has put back. It reports true where somebody
// has put back more than this gateway has seen, so that it has to look again.
func (r *recovery) unseen(ctx context.Context, end time.Time) (bool, error) {
	for guard.On(guard.Again) {
		ready, err := r.wait(ctx, end)
		puts := r.f.puts(r.record.memory) + r.record.puts
		switch {
		case err != nil, !ready, !time.Now().Before(end):
			return false, err
		case puts != r.record.seen:
			return true, nil
		case r.f.seen(puts):
			return false, nil
		case !sleep(ctx, pollEvery):
			return false, ctx.Err()
		}
	}
	return false, nil
}

// maxPuts bounds how often one job is put back: of a value that goes back and forth between two gateways, each knows that
// the other's is older.
const maxPuts = 2

// run looks at what is there for each job, and changes what is to be changed.
func (r *recovery) run(ctx context.Context, p *round, jobs []*job) error {
	err := inChunks(ctx, jobs, r.slot, func(ctx context.Context, jobs []*job) error {
		for len(jobs) > 0 {
			n, err := r.some(ctx, p, jobs)
			if err != nil {
				return err
			}
			jobs = jobs[n:]
		}
		return nil
	})
	r.record.puts += p.puts.Swap(0)
	return err
}

// some is run for the first of jobs. It returns how many these were.
func (r *recovery) some(ctx context.Context, p *round, jobs []*job) (int, error) {
	asks := make([]ask, len(jobs))
	for i, j := range jobs {
		asks[i] = ask{key: j.key, version: j.wants(), px: "0"}
		if j.did == saved || j.did == touched || j.did == locked {
			asks[i].px = r.px(j.entry)
		}
	}
	found, err := r.p.look(ctx, asks)
	if err != nil {
		return 0, err
	}
	if len(found) == 0 || len(found) > len(jobs) {
		return 0, fmt.Errorf("%d answers for %d keys", len(found), len(jobs))
	}
	var changes []change
	var of []*job
	for i := range found {
		var c change
		if c, jobs[i].left = r.decide(jobs[i], asks[i].version, &found[i], p.onto); c.what != "" {
			changes, of = append(changes, c), append(of, jobs[i])
		}
	}
	for len(changes) > 0 {
		done, err := r.p.put(ctx, changes)
		if refuses(err) && !time.Now().Before(p.end) {
			for _, j := range of {
				j.left = isRefused
			}
			break
		}
		if err != nil {
			return 0, err
		}
		for i := range done {
			of[i].took(&changes[i], done[i], r, p)
		}
		changes, of = changes[len(done):], of[len(done):]
	}
	return len(found), nil
}

// refuses reports whether err is that of a server that takes no writes, for reasons that may last.
func refuses(err error) bool {
	var re *replyError
	return errors.As(err, &re) && (re.code == "OOM" || re.code == "MISCONF" || re.code == "NOREPLICAS")
}

// wants is the version that j would like to see.
func (j *job) wants() store.Version {
	switch j.did {
	case saved, locked, unlocked:
		return valueVersion(j.data)
	case deleted:
		return none
	}
	return ""
}

// took notes what became of a change.
func (j *job) took(c *change, done uint64, r *recovery, p *round) {
	switch {
	case c.what == "note":
		j.noted = true
	case done == 0: // it has changed since the look
		j.left = isNewer
	default:
		if c.what == "delete" && j.did == deleted {
			j.gone = done
		}
		j.puts++
		p.puts.Add(1)
		r.stats.putBack.Add(1)
	}
}

// px is the lifetime that e has left.
func (r *recovery) px(e *entry) string { return millis(max(time.Millisecond, e.expires-r.w.now())) }

// decide says what is to be done about j, which would like to see mine, and why it is left where nothing is.
func (r *recovery) decide(j *job, mine store.Version, f *finding, onto func(*entry) reason) (change, reason) {
	c := change{key: j.key, own: j.gone, px: r.px(j.entry), data: j.data}
	do := func(what string, left reason) (change, reason) {
		c.what = what
		return c, left
	}
	older := false // what is there
	if f.there && !f.same && f.data != nil {
		c.want = valueVersion(f.data)
		older = (r.w.knows(j.entry, f.data, c.want) || !guard.On(guard.Older)) && j.puts < maxPuts
	}
	end, version, marked := readGone(f.marker)
	moving := f.marker != "" && !marked
	if f.moving {
		other := f.data != nil && !older
		switch {
		case f.same && (j.did == saved || j.did == locked), !f.there && (j.did == deleted || j.did == unlocked), j.did == touched:
			return change{}, notLeft
		case other:
			return change{}, isNewer
		}
		return change{}, isMoving
	}

	switch j.did {
	case locked:
		switch {
		case f.same:
			return change{}, notLeft
		case f.there || moving:
			return change{}, isTaken
		}
		return do("set", notLeft)

	case unlocked:
		if c.want = mine; f.same {
			return do("release", notLeft)
		}
		return change{}, notLeft

	case deleted:
		switch {
		case !f.there && (moving || marked && end == j.gone):
			return change{}, notLeft // a marker of another delete may be one that a lost write came after
		case moving:
			return change{}, isUnsettled
		case !f.there || older:
			return do("delete", notLeft)
		case j.version != "" && !j.noted && guard.On(guard.Again):
			c.data = []byte(j.version)
			return do("note", isNewer)
		}
		return change{}, isNewer

	case saved:
		overruled := version == mine && guard.On(guard.Again) // somebody has deleted what we wrote
		switch {
		case f.same:
			return change{}, notLeft
		case moving:
			return change{}, isUnsettled
		case !f.there && marked && end != j.gone && guard.On(guard.Gone):
			return change{}, isGone
		case !f.there:
			if left := onto(j.entry); left != notLeft {
				return change{}, left
			}
			return do("set", notLeft)
		case older && overruled:
			return do("delete", notLeft)
		case overruled:
			return change{}, isGone
		case older:
			return do("set", notLeft)
		}
		return change{}, isNewer
	}
	return change{}, notLeft // touched: the look has done it
}

// report tells what was done.
func (r *recovery) report(jobs []job, exposed uint64) {
	var left [reasons]uint64
	for i := range jobs {
		if j := &jobs[i]; j.left != j.entry.left {
			left[j.left]++
		}
		if r.told != nil {
			r.told(&jobs[i])
		}
	}
	r.stats.switches.Add(1)
	r.stats.exposed.Add(exposed)
	args := []any{"took", time.Since(r.began).Round(time.Millisecond), "remembered", len(jobs), "put_back", r.record.puts, "exposed", exposed, "gateways", r.f.living()}
	if r.old.memory == r.known {
		left[isOld], r.old.notes = r.old.notes, 0
	}
	lost := uint64(0)
	for i, n := range left {
		if reason(i) != notLeft && n > 0 {
			r.stats.left[i].Add(n)
			args = append(args, "left_"+reasonNames[i], n)
		}
		if reason(i).lost() {
			lost += n
		}
	}
	if left[isOld] > 0 {
		r.log.Error("redis: the server is older than what anybody remembers: logouts may be undone, and sessions missing", "writes_lost_at_most", left[isOld])
	}
	r.log.Warn("redis: another server was put in order", append(args, "lost", lost)...)
}

// inChunks calls f for all of jobs, in chunks of one slot each, many at the same time.
func inChunks(ctx context.Context, jobs []*job, slot func(key string) int, f func(context.Context, []*job) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turns := make(chan struct{}, 32)
	var wg sync.WaitGroup
	start := func(chunk []*job) {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if ctx.Err() == nil {
				if err := f(ctx, chunk); err != nil {
					cancel(err)
				}
			}
		})
	}
	type open struct {
		jobs  []*job
		bytes int
	}
	chunks := map[int]*open{}
	for _, j := range jobs {
		at := slot(j.key)
		c := chunks[at]
		if c == nil {
			c = &open{}
			chunks[at] = c
		}
		c.jobs, c.bytes = append(c.jobs, j), c.bytes+len(j.data)
		if len(c.jobs) == batchEntries || c.bytes >= batchBytes {
			start(c.jobs)
			delete(chunks, at)
		}
	}
	for _, c := range chunks {
		start(c.jobs)
	}
	wg.Wait()
	return context.Cause(ctx)
}

// sleep reports whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
