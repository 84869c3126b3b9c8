package redis

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/sessile/sessile/internal/guard"
	"github.com/sessile/sessile/store"
)

// A window remembers what this gateway was lately told is done: for each key the last state, so that recovery can put it
// back where a new primary lacks it. Keys are as Store's callers know them; a lock's is its session's and the suffix.
//
// It knows no stamps, since applications' values carry none. What it has instead is what it knows to be older than the
// last state: what the key held before, as far as this gateway wrote it, or saw it before it wrote.
type window struct {
	span  time.Duration // for which a state is remembered
	limit int           // bytes
	seed  maphash.Seed
	began time.Time

	mu             sync.Mutex // guards what follows
	entries        map[string]*entry
	values, graves chain // the graves are deletes: of another gateway's older writes only they know
	bytes          int
	buf            []byte        // of keys
	notes          uint64        // how many there were
	clock          time.Duration // stands still while nobody confirms the primary: see confirm
	confirmed      time.Time     // when the clock was last moved
	spare          *entry        // forgotten ones, to be used again: together with the others they are never more than there once were
	overflow       uint64        // states that were forgotten before their time
	faded          uint64        // the highest number of a note that was forgotten when its time was over
}

// A chain is entries in the order in which they were noted.
type chain struct{ oldest, newest *entry }

// A deed is what was last done to a key.
type deed uint8

const (
	saved    deed = iota // data is the value
	touched              // there is a value that is not ours, and it got a deadline
	deleted              //
	locked               // data is the token
	unlocked             // data is the token that it was
)

// maxOlder bounds what is remembered of a key's past: a session that changes more often than that, in the time by which a
// replica lags behind, is not put back.
const maxOlder = 64

// An entry is what is remembered of one key.
type entry struct {
	key     string
	did     deed
	data    []byte
	sum     uint64 // of data
	expires time.Duration
	grown   bool     // it was added to
	older   []uint64 // sums of values that are older; the last ones

	version string        // deleted: that of the value, "" where there was none
	gone    uint64        // the gone marker that our own last delete left
	asked   time.Duration // when that was asked for, by the real clock
	at      time.Duration // when it was noted
	sure    time.Duration // when it was there, or not, for sure: no later than when it was asked for
	tick    time.Duration // and by the window's
	note    uint64        // the number of that note
	left    reason        // why it was not put back the last time
	settled bool          // a recovery came after it, which nothing is under way across

	prev, next *entry
}

// overhead is about what an entry takes beside key and data.
const overhead = 256

func (e *entry) size() int { return len(e.key) + cap(e.data) + 8*cap(e.older) + overhead }

func newWindow(span time.Duration, limit int) *window {
	return &window{span: span, limit: limit, seed: maphash.MakeSeed(), began: time.Now(), entries: map[string]*entry{}}
}

// sum stands for a value among what is older. 0 is none.
func (w *window) sum(data []byte) uint64 { return max(1, maphash.Bytes(w.seed, data)) }

// sumOf is that of a value of which only the version is known: in 64 bits it will not be mistaken for another one.
func sumOf(v store.Version) uint64 {
	var b [8]byte
	if len(v) < 2*len(b) {
		return 0
	}
	if _, err := hex.Decode(b[:], []byte(v[:2*len(b)])); err != nil {
		return 0
	}
	return max(1, binary.BigEndian.Uint64(b[:]))
}

// knows reports whether data is known to be older than e's state.
func (w *window) knows(e *entry, data []byte, v store.Version) bool {
	sum, short := w.sum(data), sumOf(v)
	return slices.Contains(e.older, sum) || slices.Contains(e.older, short)
}

func (e *entry) addOlder(sum uint64) {
	if sum == 0 || slices.Contains(e.older, sum) {
		return
	}
	if len(e.older) == maxOlder {
		e.older = e.older[:copy(e.older, e.older[1:])]
	}
	e.older = append(e.older, sum)
}

// entry returns that of key, as the newest, and makes one where there is none. together says that its last operation was
// still under way when this one was asked for. Callers hold mu, and call made when the entry is what it shall be.
func (w *window) entry(key string, suffix string, asked time.Duration) (e *entry, together bool) {
	w.buf = append(append(w.buf[:0], key...), suffix...)
	e = w.entries[string(w.buf)]
	if e == nil {
		if suffix != "" {
			key = string(w.buf)
		}
		if e = w.spare; e != nil {
			w.spare = e.next
			*e = entry{data: e.data[:0], older: e.older[:0]}
		} else {
			e = new(entry)
		}
		e.key, e.did, e.sure = key, touched, asked
		w.entries[key] = e
	} else {
		w.bytes -= e.size()
		w.unlink(e)
		together = e.at >= asked && !e.settled
	}
	e.at, e.tick = time.Since(w.began), w.clock
	w.notes++
	e.note = w.notes
	e.left, e.settled = notLeft, false
	return e, together
}

func (w *window) made(e *entry) {
	c := w.chain(e)
	if e.prev = c.newest; e.prev != nil {
		e.prev.next = e
	} else {
		c.oldest = e
	}
	c.newest = e
	w.bytes += e.size()
	for w.bytes > w.limit && len(w.entries) > 0 {
		w.forget(cmp.Or(w.values.oldest, w.graves.oldest))
		w.overflow++
	}
}

func (w *window) chain(e *entry) *chain {
	if e.did == deleted {
		return &w.graves
	}
	return &w.values
}

func (w *window) unlink(e *entry) {
	c := w.chain(e)
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		c.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		c.newest = e.prev
	}
	e.prev, e.next = nil, nil
}

func (w *window) forget(e *entry) {
	w.unlink(e)
	delete(w.entries, e.key)
	w.bytes -= e.size()
	e.key, e.next = "", w.spare
	w.spare = e
}

// each calls f for all entries; it may forget the one that it gets.
func (w *window) each(f func(e *entry)) {
	for _, c := range []*chain{&w.values, &w.graves} {
		for e := c.oldest; e != nil; {
			next := e.next
			f(e)
			e = next
		}
	}
}

// Two operations on one key that were under way at the same time were done in an order that is not known: neither is older
// than the other. Then a delete counts as the last one, and of two values the one that was asked for last.

// saved notes a value that was asked for at a time. base is the sum of what is known to have been there before, 0 where
// nothing is known.
func (w *window) saved(key string, data []byte, expires, asked time.Time, base uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.save(key, data, expires, asked, base, false)
}

// appended is saved for a value that has grown. Many add to one list at the same time, and in which order they did can be told:
// the later value has the one before it in it. So none of them is taken for the last one that is not.
func (w *window) appended(key string, value []byte, expires, asked time.Time, base uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.save(key, value, expires, asked, base, true)
}

// save is saved and appended. Callers hold mu.
func (w *window) save(key string, data []byte, expires, asked time.Time, base uint64, grown bool) {
	sum, when := w.sum(data), asked.Sub(w.began)
	e, together := w.entry(key, "", when)
	// A session that there was before nobody confirmed the primary any more may have been deleted elsewhere since.
	if there := base != 0 || e.did == saved; there && !w.confirmed.IsZero() {
		e.sure = max(e.sure, min(when, w.confirmed.Sub(w.began)))
	} else {
		e.sure = max(e.sure, when)
	}
	if base != sum {
		e.addOlder(base)
	}
	over := together && (e.did == deleted || e.did == saved && e.asked > when)
	follows := !together
	if together && e.did == saved {
		switch {
		case grown && e.grown && len(e.data) > len(data) && bytes.HasPrefix(e.data, data):
			over = true
			e.addOlder(sum)
		case grown && (base == e.sum || e.grown && bytes.HasPrefix(data, e.data)):
			over, follows = false, true
		case !grown && e.grown && slices.Contains(e.older, sum) && base != sumOf(valueVersion(e.data)):
			over = true // it was added to already
		}
	}
	switch {
	case over:
		w.made(e)
		return
	case follows && e.did == saved && e.sum != sum:
		e.addOlder(e.sum)
	}
	if cap(e.data) < len(data) || cap(e.data) > 2*len(data) {
		e.data = make([]byte, 0, len(data))
	}
	e.data = append(e.data[:0], data...)
	e.did, e.sum, e.expires, e.version, e.asked, e.grown = saved, sum, expires.Sub(w.began), "", when, grown
	w.made(e)
}

// touched notes a deadline. What was deleted by us and touched since is somebody else's new session, of which nothing is
// known; that we deleted the one before it still holds.
func (w *window) touched(key string, expires, asked time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, _ := w.entry(key, "", asked.Sub(w.began))
	e.expires = expires.Sub(w.began)
	w.made(e)
}

// deleted notes that a value of that version was deleted ("": there was none), and what marker that left.
func (w *window) deleted(key string, asked time.Time, version store.Version, gone uint64) {
	when := asked.Sub(w.began)
	w.mu.Lock()
	defer w.mu.Unlock()
	e, together := w.entry(key, "", when)
	ours := e.did == saved && valueVersion(e.data) == version // then it was deleted, whichever was asked for first
	if ours || e.did == saved && !together {
		e.addOlder(e.sum)
	}
	if !ours {
		e.addOlder(sumOf(version))
	}
	if gone >= e.gone || e.did != deleted {
		e.version, e.gone = string(version), gone
	}
	e.did, e.data, e.sum, e.asked = deleted, nil, 0, when
	w.made(e)
}

// lock notes that token has the lock, or has released it.
func (w *window) lock(key, suffix, token string, did deed, expires time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, _ := w.entry(key, suffix, 0)
	if did == unlocked && e.did == locked && string(e.data) != token {
		w.made(e) // whose lock it was is over, and somebody else has it
		return
	}
	e.did, e.data, e.expires = did, append(e.data[:0], token...), expires.Sub(w.began)
	w.made(e)
}

// maxTick is the most that one look moves the clock: before it, nobody had looked for longer.
const maxTick = time.Second

// confirm is called again and again with a time at which the primary was known to be the primary. By these looks the
// window's clock runs, and what is older than span is forgotten: in a partition, where nobody looks or nobody agrees, it
// stands still, so that all that was acknowledged there is remembered until it has healed.
func (w *window) confirm(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !t.After(w.confirmed) {
		return // who says so had waited for an answer
	}
	if !w.confirmed.IsZero() {
		passed := t.Sub(w.confirmed)
		if guard.On(guard.Still) {
			passed = min(passed, maxTick)
		}
		w.clock += passed
	}
	w.confirmed = t
	for _, c := range []*chain{&w.values, &w.graves} {
		for c.oldest != nil && w.clock-c.oldest.tick > w.span {
			w.faded = max(w.faded, c.oldest.note)
			w.forget(c.oldest)
		}
	}
	if len(w.entries) == 0 {
		w.spare = nil
	}
}

// all returns copies of the entries of those keys, oldest first, but for what is over.
func (w *window) all(mine func(key string) bool) (list []entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list = make([]entry, 0, len(w.entries))
	now := time.Since(w.began)
	w.each(func(e *entry) {
		if (e.did == deleted || e.did == unlocked || e.expires > now) && mine(e.key) {
			one := *e
			one.data, one.older = slices.Clone(e.data), slices.Clone(e.older)
			list = append(list, one)
		}
	})
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.note, b.note) })
	return list
}

// settle takes what has become of the copies in list. What is known to be there counts as done at that time. The rest stays
// as it was: the next primary may lack what was in its way. What was noted since stays as it is, too.
func (w *window) settle(list []entry, at time.Duration, left func(i int) reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range list {
		e := w.entries[list[i].key]
		if e == nil || e.note != list[i].note {
			continue
		}
		e.settled = true
		if e.left = left(i); e.left == notLeft {
			e.at, e.sure, e.tick, e.gone = at, at, w.clock, list[i].gone
		}
	}
}

// size returns how many entries there are, the bytes that they take, and how many were forgotten before their time.
func (w *window) size() (entries, bytes int, overflow uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries), w.bytes, w.overflow
}

// exposed counts the states that were noted after the primary was last confirmed.
func (w *window) exposed() (n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range []chain{w.values, w.graves} {
		for e := c.newest; e != nil && w.began.Add(e.at).After(w.confirmed); e = e.prev {
			n++
		}
	}
	return n
}

// clear forgets the entries of those keys.
func (w *window) clear(mine func(key string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.each(func(e *entry) {
		if mine(e.key) {
			w.forget(e)
		}
	})
}

// noted returns how many notes there were, and how many of those after the first so many may have been forgotten when their
// time was over.
func (w *window) noted(first uint64) (all, faded uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notes, max(first, w.faded) - first
}

// now is the real time as entries have it.
func (w *window) now() time.Duration { return time.Since(w.began) }
