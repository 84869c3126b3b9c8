package demo

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/internal/recorder"
)

// traffic is the visitors: browsers with several tabs that click, fill carts, log in and out, all at the same time.
type traffic struct {
	rec     *recorder.Recorder
	pace    time.Duration // between two clicks of one browser
	via     atomic.Pointer[func(worker int) handler]
	members []string     // who stays logged in all the time
	active  atomic.Int64 // how many of them click; 0: all
	workers int
	// alone: no two pages of one session at a time. An application without locks would itself lose what one of them writes.
	alone atomic.Bool

	mu     sync.Mutex // guards guests, times
	guests []string   // who is logged in for a while
	times  map[string][]float64
	phase  atomic.Pointer[string]
	pages  atomic.Int64
	serial atomic.Int64
}

func newID() string { return strings.ToLower(rand.Text()) } // 26 characters, as PHP's

// browse runs n browsers until ctx is over.
func (t *traffic) browse(ctx context.Context, n int) {
	var wg sync.WaitGroup
	t.workers = n
	for worker := range n {
		wg.Go(func() { t.browser(ctx, worker) })
	}
	wg.Wait()
}

func (t *traffic) browser(ctx context.Context, worker int) {
	for ctx.Err() == nil {
		if mrand.IntN(25) == 0 {
			t.comeAndGo(ctx, worker)
		} else {
			n := len(t.members)
			if active := int(t.active.Load()); active > 0 {
				n = active
			}
			i, tabs := mrand.IntN(n), 1
			alone := t.alone.Load()
			if alone {
				i = worker + t.workers*mrand.IntN((n-worker+t.workers-1)/t.workers)
			}
			id := t.members[i]
			if !alone && mrand.IntN(6) == 0 {
				tabs = 3 // of one browser, at once
			}
			var wg sync.WaitGroup
			for tab := range tabs {
				v := visit{id: id}
				if mrand.IntN(4) == 0 {
					v.add = fmt.Sprintf("i%d", t.serial.Add(1))
				}
				wg.Go(func() { t.timed(ctx, worker*10+tab, v, tabs == 1) })
			}
			wg.Wait()
		}
		// A browser whose pace is exact would march in step with the others.
		pause := time.Duration(float64(t.pace) * (0.5 + mrand.Float64()))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// comeAndGo is a guest: half of the time a new one logs in, and otherwise one of those who are there leaves, while
// another tab of theirs still loads, and looks once more afterwards.
func (t *traffic) comeAndGo(ctx context.Context, worker int) {
	t.mu.Lock()
	var id string
	if len(t.guests) > 0 && mrand.IntN(2) == 0 {
		i := mrand.IntN(len(t.guests))
		id = t.guests[i]
		t.guests = append(t.guests[:i], t.guests[i+1:]...)
	}
	t.mu.Unlock()
	if id == "" {
		id = newID()
		if t.page(ctx, worker*10, visit{id: id, login: "guest"}) {
			t.mu.Lock()
			t.guests = append(t.guests, id)
			t.mu.Unlock()
		}
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		t.page(ctx, worker*10+1, visit{id: id, add: fmt.Sprintf("i%d", t.serial.Add(1))})
	})
	if t.alone.Load() {
		wg.Wait()
	}
	wg.Go(func() { t.page(ctx, worker*10, visit{id: id, logout: true}) })
	wg.Wait()
	t.page(ctx, worker*10, visit{id: id})
	t.page(ctx, worker*10+1, visit{id: id})
}

// page loads one page and notes what was answered.
func (t *traffic) page(ctx context.Context, worker int, v visit) bool {
	return t.timed(ctx, worker, v, false)
}

// timed is page; its time counts if nobody else holds the session's lock, since how long tabs of one browser wait for
// each other says nothing about where the session lies.
func (t *traffic) timed(ctx context.Context, worker int, v visit, counts bool) bool {
	h := (*t.via.Load())(worker)
	// A page that has begun is loaded to its end: what it answers counts.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if v.logout {
		t.rec.Leaving(v.id)
	}
	phase := *t.phase.Load()
	begun := time.Now()
	s, err := h.visit(ctx, v)
	took := time.Since(begun)
	t.pages.Add(1)
	if err != nil {
		t.rec.Failed()
		return false
	}
	if counts {
		t.mu.Lock()
		t.times[phase] = append(t.times[phase], float64(took.Microseconds())/1000)
		t.mu.Unlock()
	}
	switch {
	case v.login != "":
		t.rec.LoggedIn(v.id)
	case v.logout:
		t.rec.Left(v.id)
	default:
		t.rec.Saw(v.id, begun, s.found, s.items, "a page in "+phase)
		if v.add != "" && s.found && s.wrote {
			t.rec.Wrote(v.id, v.add)
		}
	}
	return true
}

// PageTime is how long pages took in one phase: the work with the session alone.
type PageTime struct {
	Phase string  `json:"phase"`
	Pages int     `json:"pages"`
	Mean  float64 `json:"ms_mean"`
	P50   float64 `json:"ms_p50"`
	P99   float64 `json:"ms_p99"`
}

func (t *traffic) pageTimes(order []string) []PageTime {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []PageTime
	for _, phase := range order {
		times := t.times[phase]
		if len(times) == 0 {
			continue
		}
		sort.Float64s(times)
		sum := 0.0
		for _, ms := range times {
			sum += ms
		}
		round := func(x float64) float64 { return math.Round(x*1000) / 1000 }
		all = append(all, PageTime{phase, len(times), round(sum / float64(len(times))), round(times[len(times)/2]), round(times[len(times)*99/100])})
	}
	return all
}
