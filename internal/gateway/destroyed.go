package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// destroyed remembers which sessions were destroyed lately, so that a page that read one before cannot bring it back:
//
//	A: GET s (found)          B: DEL s          A: SETEX s ...    the user is logged in again
//
// The write is to be dropped if A's read began before B's DEL was done. A counter that only destroys advance says
// which came first. A write that begins while a DEL is under way waits for its end, and one that was under way when
// a DEL began looks once more after its own end; so no order of the two in the store is missed.
type destroyed struct {
	keep time.Duration
	max  int

	clock   atomic.Uint64 // advanced by every destroy, at its end
	pending atomic.Int64  // destroys under way

	mu    sync.Mutex // guards what follows
	ids   map[string]*grave
	order []burial // the ends, oldest first
}

type grave struct {
	at      uint64        // the clock at the end of the last destroy; 0: none has ended
	pending int           // destroys under way
	over    chan struct{} // closed when pending is 0 again
}

type burial struct {
	id   string
	at   uint64
	when time.Time
}

func newDestroyed(keep time.Duration, limit int) *destroyed {
	return &destroyed{keep: keep, max: limit, ids: map[string]*grave{}}
}

// now is what a read notes before it asks the store.
func (d *destroyed) now() uint64 { return d.clock.Load() }

func (d *destroyed) begin(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.ids[id]
	if g == nil {
		g = &grave{}
		d.ids[id] = g
	}
	if g.pending == 0 {
		g.over = make(chan struct{})
	}
	g.pending++
	d.pending.Add(1)
}

func (d *destroyed) end(id string, done bool, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.ids[id]
	if done {
		g.at = d.clock.Add(1)
		d.order = append(d.order, burial{id, g.at, now})
	}
	d.pending.Add(-1) // after the clock: see calm
	if g.pending--; g.pending == 0 {
		close(g.over)
		if g.at == 0 {
			delete(d.ids, id)
		}
	}
	for len(d.order) > 0 && (len(d.order) > d.max || now.Sub(d.order[0].when) > d.keep) {
		oldest := d.order[0]
		d.order = d.order[1:] // append moves what is left to a new array in time
		if g := d.ids[oldest.id]; g != nil && g.at == oldest.at && g.pending == 0 {
			delete(d.ids, oldest.id)
		}
	}
}

// since reports whether id was destroyed after began. It waits for a destroy that is under way, as long as ctx allows.
func (d *destroyed) since(ctx context.Context, id string, began uint64) bool {
	for {
		d.mu.Lock()
		g := d.ids[id]
		if g == nil || g.at > began || g.pending == 0 {
			yes := g != nil && g.at > began
			d.mu.Unlock()
			return yes
		}
		over := g.over
		d.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return false
		}
	}
}

// calm reports whether id was not destroyed after began and is not being destroyed. It does not wait.
func (d *destroyed) calm(id string, began uint64) bool {
	if d.pending.Load() == 0 && d.clock.Load() == began {
		return true // nothing was
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.ids[id]
	return g == nil || g.pending == 0 && g.at <= began
}

// reads are the sessions that a connection found lately: the only reads that a later write is judged by.
type reads struct {
	found []found
	next  int // where the next one goes once found is full
}

type found struct {
	id    string
	began uint64 // destroyed.now before the store was asked
	sum   uint64 // Memory.Sum of what was read, or 0
}

const maxReads = 16

func (r *reads) index(id string) int {
	for i := range r.found {
		if r.found[i].id == id {
			return i
		}
	}
	return -1
}

func (r *reads) note(id string, began, sum uint64) {
	switch i := r.index(id); {
	case i >= 0:
		r.found[i].began, r.found[i].sum = began, sum
	case len(r.found) < maxReads:
		r.found = append(r.found, found{id, began, sum})
	default:
		r.found[r.next] = found{id, began, sum}
		r.next = (r.next + 1) % maxReads
	}
}

func (r *reads) forget(id string) {
	if i := r.index(id); i >= 0 {
		r.found[i].id = ""
	}
}

// last returns when the connection's last read of id began, if it found the session.
func (r *reads) last(id string) (began uint64, ok bool) {
	if i := r.index(id); i >= 0 {
		return r.found[i].began, true
	}
	return 0, false
}

// sum returns what stands for the value that was read last, or 0.
func (r *reads) sum(id string) uint64 {
	if i := r.index(id); i >= 0 {
		return r.found[i].sum
	}
	return 0
}
