package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Which server is the primary is decided here, by all Sentinels together, and not by one of them or by what it announces:
//
//   - Each is asked again and again, and at once when any of them publishes something. What they publish is a reason to
//     ask and to hold operations up, never an answer: a Sentinel that was restarted publishes a +switch-master of
//     yesterday (redis/redis#12798).
//   - The primary is the address that a majority gives for GET-MASTER-ADDR-BY-NAME and that answers role:master itself.
//     The address and the epoch of SENTINEL MASTER do not change at one time: for a moment there is a new epoch with the
//     old address. So an epoch decides nothing, but for this: what a majority says is not believed where it is older than
//     what a majority has said before, as long as the server that we have still says that it is a primary.
//   - From the first announcement (+odown, +try-failover ...) operations are held up, because what a primary acknowledges
//     between the promotion of its replica and the moment at which it is told is lost: about a second of writes in a
//     failover that somebody asked for. An announcement that nothing follows ends after FailoverOptions.Hold, and whoever
//     made it alone is not heeded for a while.

// A view is what one Sentinel says.
type view struct {
	asked     time.Time // before the question was sent
	id        string    // the Sentinel's
	addr      string    // of the primary
	epoch     uint64
	failing   bool      // it takes the primary for down together with others, or is replacing it
	down      bool      // it takes the primary for down
	silent    time.Time // since when it has had no answer from the primary; zero: it waits for none
	downAfter time.Duration
	others    []peer
}

type peer struct{ id, addr string }

// sure is when the Sentinel last knew that the primary is there.
func (v *view) sure() time.Time {
	if v.silent.IsZero() || v.silent.After(v.asked) {
		return v.asked
	}
	return v.silent
}

// A watcher follows the Sentinels of one store.
type watcher struct {
	s    *Store
	node *node
	life context.Context

	mu        sync.Mutex // guards what follows
	sentinels map[string]*sentinel
	epoch     uint64    // of the primary that we have
	moved     time.Time // when it became the primary for us
	announced time.Time // when operations were first held up for what was announced; zero: they are not
	from      string    // the primary at that time
	crying    map[string]time.Time
	agreed    bool // a majority agrees, or did when that was last looked at
	said      string

	first     chan struct{} // closed when there is an answer to start with
	firstOnce sync.Once
	look      chan struct{}          // there is something to look at
	confirmed atomic.Int64           // when a majority last confirmed the primary, in ns after Store.began; 0: never
	silences  atomic.Pointer[[]span] // the last ones of primaries, in order; changed under mu
	downAfter atomic.Int64           // as the Sentinels have it
}

// A sentinel is one of those that are asked.
type sentinel struct {
	addr       string
	configured bool
	stop       context.CancelFunc
	ask        chan struct{}

	view view  // the last answer; guarded by watcher.mu
	err  error // why there is none; guarded by watcher.mu
	deaf bool  // it cannot be listened to; guarded by watcher.mu
}

func (s *Store) watch(life context.Context, n *node) *watcher {
	w := &watcher{s: s, node: n, life: life, sentinels: map[string]*sentinel{}, crying: map[string]time.Time{},
		first: make(chan struct{}), look: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, addr := range s.opt.Sentinels {
		w.add(addr, true)
	}
	w.silences.Store(new([]span))
	n.silent = w.silent
	s.wg.Go(w.run)
	if s.opt.Failover.Lease > 0 {
		n.gate.close(unleased)
		n.lease = w.leased
		s.wg.Go(w.lease)
	}
	return w
}

// begin waits for a first answer. It fails where the options are wrong, not where nobody answers.
func (w *watcher) begin(ctx context.Context) error {
	patience := time.NewTimer(w.s.opt.Sentinel.ConnectTimeout + w.s.opt.Sentinel.ReadTimeout)
	defer patience.Stop()
	select {
	case <-w.first:
		return nil
	case <-patience.C:
	case <-ctx.Done():
	}
	err := w.failure()
	w.node.moveTo("", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := 0
	for _, p := range w.sentinels {
		if misconfigured(p.err) || errors.Is(p.err, errNoMaster) {
			wrong++
		}
	}
	if 2*wrong > len(w.sentinels) {
		return err
	}
	return nil
}

// leased reports whether a majority of the Sentinels has confirmed the primary within the lease.
func (w *watcher) leased() bool {
	at := w.confirmed.Load()
	return at > 0 && time.Since(w.s.began)-time.Duration(at) < w.s.opt.Failover.Lease
}

// lease shuts the gate while there is none.
func (w *watcher) lease() {
	tick := time.NewTicker(max(time.Millisecond, w.s.opt.Failover.Lease/20))
	defer tick.Stop()
	for {
		if w.leased() {
			w.node.gate.open(unleased)
		} else if w.node.gate.close(unleased) {
			w.log().Warn("redis: no majority of the Sentinels confirms the primary, operations are held up")
		}
		select {
		case <-tick.C:
		case <-w.life.Done():
			return
		}
	}
}

func (w *watcher) log() *slog.Logger { return w.s.opt.Logger.With("master", w.s.opt.Master) }

// add begins to ask one more. Callers hold mu.
func (w *watcher) add(addr string, configured bool) {
	ctx, stop := context.WithCancel(w.life)
	p := &sentinel{addr: addr, configured: configured, stop: stop, ask: make(chan struct{}, 1), err: errNotAsked}
	w.sentinels[addr] = p
	w.s.wg.Go(func() { w.question(ctx, p) })
	w.s.wg.Go(func() { w.listen(ctx, p) })
}

var errNotAsked, errNoMaster = errors.New("it was not asked yet"), errors.New("it knows no master of that name")

// interval is the time between two questions to one Sentinel.
func (w *watcher) interval() time.Duration {
	every := 250 * time.Millisecond
	if lease := w.s.opt.Failover.Lease; lease > 0 {
		every = min(every, lease/5)
	}
	if w.node.gate.shut.Load()&^forgotten != 0 { // for that may last
		every = min(every, 25*time.Millisecond)
	}
	return every
}

// question asks p until ctx ends.
func (w *watcher) question(ctx context.Context, p *sentinel) {
	var c *sentinelConn
	defer func() {
		if c != nil {
			c.nc.Close()
		}
	}()
	for ctx.Err() == nil {
		var v view
		var err error
		if c == nil {
			c, err = dialSentinel(ctx, p.addr, &w.s.opt.Sentinel)
		}
		if err == nil {
			nc := c.nc // c may be nil by the time that ctx has ended
			stop := context.AfterFunc(ctx, func() { nc.Close() })
			v, err = c.ask(w.s.opt.Master)
			stop()
			if err != nil {
				c.nc.Close()
				c = nil
			}
		}
		w.mu.Lock()
		if p.err = err; err == nil {
			// What it publishes is heard before, but for a Sentinel that does not let us listen, or whose connection just broke.
			if v.failing && !p.view.failing && v.addr == w.node.place.Load().addr {
				w.announce(p, "its flags")
			}
			p.view = v
		}
		w.mu.Unlock()
		w.nudge()
		every := w.interval()
		if err != nil {
			every = max(every, 100*time.Millisecond)
		}
		select {
		case <-time.After(every/2 + rand.N(every)):
		case <-p.ask:
		case <-ctx.Done():
		}
	}
}

// listen hears what p publishes until ctx ends.
func (w *watcher) listen(ctx context.Context, p *sentinel) {
	for ctx.Err() == nil {
		c, err := dialSentinel(ctx, p.addr, &w.s.opt.Sentinel)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { c.nc.Close() })
			err = c.listen(func(e event) { w.heard(p, e) })
			stop()
			c.nc.Close()
		}
		var re *replyError
		w.mu.Lock()
		if deaf := errors.As(err, &re); deaf && !p.deaf {
			w.log().Warn("redis: a Sentinel does not let us listen; failovers that it announces are seen later", "sentinel", p.addr, "error", err)
			p.deaf = true
		}
		w.mu.Unlock()
		select {
		case <-time.After(250*time.Millisecond + rand.N(250*time.Millisecond)):
		case <-ctx.Done():
		}
	}
}

// about reports whether e is about our master, and the primary that it names.
func (w *watcher) about(e event) bool {
	f := strings.Fields(e.about)
	if e.name == "+switch-master" {
		return len(f) == 5 && f[0] == w.s.opt.Master
	}
	return len(f) >= 2 && f[0] == "master" && f[1] == w.s.opt.Master ||
		slices.Contains(f, "@") && slices.Contains(f, w.s.opt.Master)
}

// heard takes what p has published.
func (w *watcher) heard(p *sentinel, e event) {
	if !w.about(e) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case e.name == "+odown", e.name == "+try-failover", e.name == "+elected-leader", e.name == "+selected-slave",
		e.name == "+promoted-slave", strings.HasPrefix(e.name, "+failover-state-"):
		w.announce(p, e.name)
	}
	for _, p := range w.sentinels {
		select {
		case p.ask <- struct{}{}:
		default:
		}
	}
}

// wolf is how long an announcement of a Sentinel is not heeded that has made one before which nothing followed.
const wolf = 30 * time.Second

// announce holds operations up. Callers hold mu.
func (w *watcher) announce(p *sentinel, what string) {
	if at, ok := w.crying[p.addr]; ok && !at.IsZero() && time.Since(at) < wolf {
		return
	}
	w.crying[p.addr] = time.Time{}
	if !w.announced.IsZero() {
		return
	}
	w.announced, w.from = time.Now(), w.node.place.Load().addr
	w.node.gate.close(announced)
	w.log().Warn("redis: a failover is announced, operations are held up", "event", what, "sentinel", p.addr, "primary", w.from)
	time.AfterFunc(w.s.opt.Failover.heeded(), w.nudge)
}

// nudge has the watcher look.
func (w *watcher) nudge() {
	select {
	case w.look <- struct{}{}:
	default:
	}
}

// run judges what the Sentinels say until the store is closed.
func (w *watcher) run() {
	for {
		select {
		case <-w.look:
			w.judge(time.Now())
		case <-w.node.arrived:
			w.judge(time.Now())
		case <-w.life.Done():
			return
		}
	}
}

// A verdict is what all views come to.
type verdict struct {
	voters, answering int
	addr              string // that a majority gives; "" where none does
	epoch             uint64 // that a majority has reached; a single one may say anything
	failing, down     int    // of those who give it
	confirmed         time.Time
	silence           span // in which a majority had no answer from it
	downAfter         time.Duration
}

func (v verdict) majority() int { return v.voters/2 + 1 }

// A span is a time with a beginning and an end.
type span struct{ from, to time.Time }

const (
	maxSilences = 8
	minSilence  = 500 * time.Millisecond // a ping is always under way for a moment
)

// silent reports whether a majority of the Sentinels had no answer from the primary of that time.
func (w *watcher) silent(at time.Time) bool {
	return slices.ContainsFunc(*w.silences.Load(), func(s span) bool {
		return !at.Before(s.from) && !at.After(s.to)
	})
}

// note adds to the silences. Callers hold mu.
func (w *watcher) note(s span) {
	if s.to.Sub(s.from) < minSilence {
		return
	}
	list := slices.Clone(*w.silences.Load())
	if i := len(list) - 1; i >= 0 && !s.from.After(list[i].to) {
		if s.to.After(list[i].to) {
			list[i].to = s.to
		}
	} else {
		list = append(list, s)
	}
	list = list[max(0, len(list)-maxSilences):]
	w.silences.Store(&list)
}

// fresh is how old a view may be that counts.
const fresh = 2 * time.Second

// sum counts the views. configured is how many Sentinels were named to us.
func sum(views []view, configured int, now time.Time) (v verdict) {
	byID := map[string]view{}
	for _, one := range views {
		if old, ok := byID[one.id]; now.Sub(one.asked) < fresh && (!ok || old.asked.Before(one.asked)) {
			byID[one.id] = one // one that is known by a name and by an address has one vote
		}
	}
	var known []int
	votes := map[string][]view{}
	for _, one := range byID {
		known = append(known, 1+len(one.others))
		votes[one.addr] = append(votes[one.addr], one)
	}
	v.answering, v.voters = len(byID), configured
	if slices.Sort(known); len(known) > 0 {
		v.voters = max(v.voters, known[(len(known)-1)/2]) // so many as half of them know, whatever a single one may say
	}
	for addr, of := range votes {
		if len(of) < v.majority() {
			continue
		}
		v.addr = addr
		slices.SortFunc(of, func(a, b view) int { return b.asked.Compare(a.asked) })
		epochs := make([]uint64, len(of))
		var sure, unanswered []view
		for i, one := range of {
			epochs[i], v.downAfter = one.epoch, cmp.Or(v.downAfter, one.downAfter)
			if one.failing {
				v.failing++
			}
			if one.down {
				v.down++
			}
			if !one.failing && !one.down {
				sure = append(sure, one)
			}
			if !one.silent.IsZero() {
				unanswered = append(unanswered, one)
			}
		}
		slices.Sort(epochs)
		v.epoch = epochs[len(epochs)-v.majority()]
		slices.SortFunc(unanswered, func(a, b view) int { return a.silent.Compare(b.silent) })
		if len(unanswered) >= v.majority() {
			longest := unanswered[:v.majority()]
			v.silence.from = longest[len(longest)-1].silent
			v.silence.to = slices.MinFunc(longest, func(a, b view) int { return a.asked.Compare(b.asked) }).asked
		}
		if len(sure) >= v.majority() {
			slices.SortFunc(sure, func(a, b view) int { return b.sure().Compare(a.sure()) })
			v.confirmed = sure[v.majority()-1].sure()
		}
	}
	return v
}

// after returns the views of those who were asked since then. What we went by last was decided by a majority of all views, some of which
// may have been older: whoever was not asked since then has not said anything about it.
func after(views []view, since time.Time) []view {
	return slices.DeleteFunc(slices.Clone(views), func(one view) bool { return one.asked.Before(since) })
}

// judge acts on what the Sentinels say now.
func (w *watcher) judge(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var views []view
	since := 0 // who was asked since the announcement and still sees a failover
	waiting := 0
	for _, p := range w.sentinels {
		if p.err != nil || p.view.id == "" {
			continue
		}
		views = append(views, p.view)
		switch {
		case now.Sub(p.view.asked) >= fresh:
		case p.view.asked.Before(w.announced):
			waiting++
		case p.view.failing:
			since++
		}
	}
	v := sum(views, len(w.s.opt.Sentinels), now)
	w.discover(views, v)
	w.report(v)
	at := w.node.place.Load().addr
	if v.downAfter > 0 {
		w.downAfter.Store(int64(v.downAfter))
	}
	switch {
	case v.addr == "":
	case v.addr == at:
		w.epoch = max(w.epoch, v.epoch)
		w.note(v.silence)
		if !v.confirmed.IsZero() {
			w.confirmed.Store(int64(v.confirmed.Sub(w.s.began)))
			w.node.confirm(v.confirmed)
		}
	default:
		recent := sum(after(views, w.moved), len(w.s.opt.Sentinels), now)
		if recent.addr != v.addr || // some of them were asked before they said what we went by last
			recent.epoch < w.epoch && w.node.up() { // older than what we know, and ours still says that it is a primary
			break
		}
		w.log().Warn("redis: another server is the primary", "was", at, "is", v.addr, "epoch", recent.epoch)
		w.epoch, w.moved = recent.epoch, now
		w.confirmed.Store(0)
		w.node.moveTo(v.addr, nil)
		at = v.addr
	}
	if v.addr != "" || v.answering > 0 && now.Sub(w.s.began) > time.Second {
		w.firstOnce.Do(func() { close(w.first) })
	}
	if w.announced.IsZero() {
		return
	}
	over := now.Sub(w.announced) >= w.s.opt.Failover.heeded()
	moved := at != w.from && w.node.up()
	calm := at == w.from && v.addr == at && since == 0 && waiting == 0 && now.Sub(w.announced) > settleTime && w.node.up()
	if !over && !moved && !calm {
		return
	}
	for addr, at := range w.crying {
		if at.IsZero() {
			if moved {
				delete(w.crying, addr)
			} else {
				w.crying[addr] = now
			}
		}
	}
	begun := w.announced
	w.announced = time.Time{}
	w.node.gate.open(announced)
	w.log().Warn("redis: the failover is over", "took", now.Sub(begun).Round(time.Millisecond), "moved", moved, "primary", at)
}

// settleTime is the least time for which an announcement is waited for to become a failover.
const settleTime = 300 * time.Millisecond

// discover asks those, too, that a majority of the Sentinels know and we were not told of. Callers hold mu.
func (w *watcher) discover(views []view, v verdict) {
	answered := map[string]bool{}
	known := map[string]int{}
	addrs := map[string]string{}
	for _, one := range views {
		answered[one.id] = true
		for _, p := range one.others {
			known[p.id]++
			addrs[p.id] = p.addr
		}
	}
	for id, n := range known {
		if addr := addrs[id]; !answered[id] && 2*n > v.answering && w.sentinels[addr] == nil && len(w.sentinels) < maxSentinels {
			w.log().Info("redis: one more Sentinel", "sentinel", addr)
			w.add(addr, false)
		}
	}
	for addr, p := range w.sentinels { // who is gone, or answers under another address, too
		if p.configured || p.err == nil && p.view.id != "" {
			continue
		}
		still := false
		for id, a := range addrs {
			still = still || a == addr && !answered[id]
		}
		if !still && len(views) > 0 {
			p.stop()
			delete(w.sentinels, addr)
		}
	}
}

const maxSentinels = 32

// report says when the Sentinels stop or begin to agree. Callers hold mu.
func (w *watcher) report(v verdict) {
	agreed := v.addr != ""
	said := fmt.Sprintf("%v %d", agreed, v.answering)
	if agreed == w.agreed && said == w.said {
		return
	}
	switch {
	case !agreed && w.agreed:
		w.log().Error("redis: no majority of the Sentinels agrees on a primary; the one that there is stays", "answering", v.answering, "of", v.voters)
	case agreed && !w.agreed:
		w.log().Info("redis: a majority of the Sentinels agrees", "answering", v.answering, "of", v.voters, "primary", v.addr)
	}
	w.agreed, w.said = agreed, said
}

// failure is why there is no primary to start with.
func (w *watcher) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, p := range w.sentinels {
		if p.err != nil {
			errs = append(errs, fmt.Errorf("sentinel %s: %w", p.addr, p.err))
		}
	}
	return errors.Join(append([]error{errNowhere}, errs...)...)
}
