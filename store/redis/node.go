package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// A node is a server that the store speaks to: the one at an address, or whichever is the primary at the time.
type node struct {
	s     *Store
	links []*link // all
	quick []*link // those that everybody shares
	slow  *link   // that of writes which wait for the replicas, nil without
	dials atomic.Uint64
	place atomic.Pointer[place]
	gate  gate

	arrived  chan struct{} // a connection was put to use
	suspect  chan struct{} // it may not be a primary any more
	replicas atomic.Int64  // that are connected to it
	marshal  marshal
	lease    func() bool             // whether it may be believed; nil: always
	silent   func(at time.Time) bool // whether nobody was answered then, as far as others know; nil: nobody else is asked

	attendant *attendant // puts servers in order; nil where they do not change their roles

	admission sync.Mutex    // held by who puts a connection to use, or closes those that are
	clock     *serverClock  // of that server; guarded by admission
	server    string        // of the last connection that was put to use; guarded by admission
	moves     atomic.Uint64 // how often it was another one than before
	seen      string        // the last server that was one; guarded by admission
	memories  atomic.Uint64 // how often that may have been one with another memory

	anyRole bool          // it need not be a primary
	tag     func() string // of a slot that it has; "" where there are no slots
	serves  func() bool   // whether it has anything to do with sessions
	trouble func()        // called when a connection broke, or was not to be had
	over    atomic.Bool   // it is given up: nobody has to wait for it
}

// A place is where a node is to be found.
type place struct {
	network, addr string        // addr is "" where that is not known
	err           error         // why not
	left          chan struct{} // closed once the node is elsewhere
}

func newNode(s *Store, network, addr string) *node {
	all := s.opt.Connections
	if s.opt.replicates() {
		all++
	}
	n := &node{s: s, links: make([]*link, all), arrived: make(chan struct{}, 1), suspect: make(chan struct{}, 1),
		anyRole: !s.opt.watched(), trouble: func() {}, tag: func() string { return "" }, serves: func() bool { return true }}
	n.gate.opened = make(chan struct{})
	n.place.Store(&place{network: network, addr: addr, err: errNowhere, left: make(chan struct{})})
	for i := range n.links {
		n.links[i] = &link{tried: make(chan struct{})}
	}
	n.quick = n.links[:s.opt.Connections]
	if s.opt.replicates() {
		n.slow = n.links[all-1]
	}
	if s.opt.watched() {
		n.attendant = s.attendant(n)
		n.gate.close(adrift)
	}
	n.gate.shutting = s.trackers.all // from now on: nothing was read through a gate that was never open
	return n
}

var (
	errNowhere    = errors.New("nobody says which server is the primary")
	errNotPrimary = errors.New("the server is not a primary")
	errHeld       = errors.New("held up while the primary changes")
	errUnleased   = errors.New("not enough Sentinels confirm that the server is the primary")
	errAdrift     = errors.New("there is no connection")
	errCrowd      = errors.New("too many operations are held up")
)

// start starts the connections.
func (n *node) start(life context.Context) {
	for _, l := range n.links {
		n.s.wg.Go(func() { n.keep(life, l) })
	}
	if a := n.attendant; a != nil {
		var ctx context.Context
		ctx, a.stop = context.WithCancel(life)
		go a.run(ctx)
		n.s.wg.Go(func() { n.guard(life) })
	}
}

// tried returns when each connection has been tried once, or when ctx ends.
func (n *node) tried(ctx context.Context) error {
	for _, l := range n.links {
		select {
		case <-l.tried:
		case <-ctx.Done():
			return nil
		}
		if err := *l.err.Load(); misconfigured(err) {
			return err
		}
	}
	return nil
}

func (n *node) log() *slog.Logger { return n.s.opt.Logger.With("addr", n.place.Load().addr) }

// moved is closed once the node is elsewhere.
func (n *node) moved() <-chan struct{} { return n.place.Load().left }

// moveTo gives the connections up, as of now, and has others made to addr, or none where that is "" because of err. What
// has arrived on the old ones and was not read is nobody's answer: a server that was stopped and wakes as a primary that
// it is no longer still executes what it finds in its sockets.
func (n *node) moveTo(addr string, err error) {
	n.admission.Lock()
	defer n.admission.Unlock()
	old := n.place.Load()
	n.place.Store(&place{network: old.network, addr: addr, err: cmp.Or(err, errNowhere), left: make(chan struct{})})
	close(old.left)
	for _, l := range n.links {
		if w := l.wire.Load(); w != nil {
			w.conn.cut(errMoved)
		}
	}
	n.server = ""
	n.moves.Add(1)
	if n.attendant != nil {
		n.attendant.order.Store(false)
		n.gate.close(adrift)
	}
}

// connected is up for any connection.
func (n *node) connected() bool {
	return slices.ContainsFunc(n.links, func(l *link) bool { w := l.wire.Load(); return w != nil && w.conn.up() })
}

// up reports whether there is a connection.
func (n *node) up() bool {
	_, err := n.wire()
	return err == nil
}

// last returns which server it is, or was when it was there for the last time; "" where that is not known.
func (n *node) last() string {
	n.admission.Lock()
	defer n.admission.Unlock()
	return n.seen
}

// lost is called when a connection broke.
func (n *node) lost() {
	n.admission.Lock()
	defer n.admission.Unlock()
	if n.s.opt.watched() && !n.up() {
		n.gate.close(adrift)
	}
	if n.over.Load() {
		n.gate.open(adrift)
	}
}

// found is called when a connection was put to use. Callers hold admission.
func (n *node) found() {
	n.gate.open(adrift)
	select {
	case n.arrived <- struct{}{}:
	default:
	}
}

// roleEvery is how often a primary is asked whether it still is one: nobody says so where it is made a replica by hand.
const roleEvery = 500 * time.Millisecond

// guard looks after the server's role until ctx ends.
func (n *node) guard(ctx context.Context) {
	for {
		select {
		case <-time.After(roleEvery):
		case <-n.suspect:
		case <-ctx.Done():
			return
		}
		w, err := n.wire()
		if err != nil {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, n.s.opt.Timeout)
		msg, err := w.exchange(ask, "INFO", "replication")
		cancel()
		text, bad := msg.ToString()
		if err != nil || bad != nil {
			continue
		}
		info := infoFields(text)
		if info["role"] != "master" {
			n.log().Error("redis: the server is no primary any more", "role", info["role"])
			w.conn.cut(errNotPrimary)
			for _, l := range n.links {
				if w := l.wire.Load(); w != nil {
					w.conn.cut(errNotPrimary)
				}
			}
			n.moves.Add(1)
			continue
		}
		n.replicas.Store(online(info))
	}
}

// online counts the replicas that INFO lists as connected and in step.
func online(info map[string]string) (n int64) {
	for name, value := range info {
		if strings.HasPrefix(name, "slave") && strings.Contains(value, "state=online") {
			n++
		}
	}
	return n
}

// crowd is how many commands are under way on a connection before the next one is used, too. Those that go together cost half as much
// as one by one, here and for the server; and no more than so many wait behind a long answer.
const crowd = 64

// wire returns a connection that is up: the first one that is not crowded, or else the one that is least.
func (n *node) wire() (least *wire, err error) {
	err = errNotSent
	for _, l := range n.quick {
		switch w := l.wire.Load(); {
		case w == nil || !w.conn.up():
			if why := l.err.Load(); why != nil && *why != nil {
				err = *why
			}
		case len(w.turn) < crowd:
			return w, nil
		case least == nil || len(w.turn) < len(least.turn):
			least = w
		}
	}
	if least != nil {
		return least, nil
	}
	return nil, err
}

// send answers lost where the command was sent, or may have been, and no answer came.
// done gets the answer while the operation is still under way.
func (n *node) send(ctx context.Context, op string, lost error, args []string, late lateArgs, done func(*reply)) *reply {
	asked, patience := time.Now(), n.s.opt.Timeout
	if n.s.opt.watched() {
		patience = n.s.opt.Failover.Hold
	}
	for {
		err := n.gate.enter(ctx, patience)
		if err == errHeld {
			if why := n.links[0].err.Load(); why != nil && *why != nil {
				err = fmt.Errorf("%w: %w", errHeld, *why)
			}
		}
		if err == nil && !n.trusted() && passes(ctx) != everything {
			n.gate.leave(ctx)
			n.gate.close(unleased) // until the watcher opens it
			continue
		}
		var msg rueidis.RedisMessage
		if err == nil {
			msg, err = n.try(ctx, args, late)
			if err == nil && !n.trusted() && passes(ctx) != everything {
				err = errUnleased
			}
			r := &reply{op: op, lost: lost, one: [1]rueidis.RedisMessage{msg}}
			r.items = r.one[:]
			if (err == nil || err == errShort) && done != nil { // short of replicas it is done all the same: whoever reads it goes by it
				done(r)
			}
			if n.gate.leave(ctx); err == nil {
				return r
			}
		}
		var re *replyError
		isReply := errors.As(err, &re)
		switch {
		case errors.Is(err, errAdrift) && n.attendant != nil && !n.over.Load() && passes(ctx) != everything && ctx.Err() == nil:
			// The gate is shut until there is a connection. Where only the one for critical writes is away it is not.
			if n.lost(); n.gate.shut.Load() != 0 || time.Since(asked) < patience && sleep(ctx, pollEvery) {
				continue
			}
		case isReply && (re.code == "READONLY" || re.code == "MASTERDOWN"):
			select {
			case n.suspect <- struct{}{}:
			default:
			}
		}
		switch {
		case errors.Is(err, errAdrift), errors.Is(err, errHeld), err == errSplit, err == errCrowd, err == errStalled, isReply && re.certain():
			lost = store.ErrUnavailable
		}
		switch nobody := n.nobody(asked, err); {
		case nobody && lost == store.ErrUnavailable:
			lost = store.ErrDown
		case nobody:
			lost = fmt.Errorf("%w: %w", lost, store.ErrDown)
		}
		return &reply{err: fmt.Errorf("store/redis: %s: %w: %w", op, lost, err)}
	}
}

// nobody reports whether nobody was answered when that was asked which came to err. That an address refuses connections
// says so only where no other server can take its place.
func (n *node) nobody(asked time.Time, err error) bool {
	if n.silent == nil {
		return down(err)
	}
	var re *replyError
	return !errors.As(err, &re) && n.silent(asked)
}

// trusted reports whether the server is still to be believed.
func (n *node) trusted() bool { return n.lease == nil || n.lease() }

// try sends a command once. errAdrift, errStalled and some errors of the server's are certain: it was not executed.
func (n *node) try(ctx context.Context, args []string, late lateArgs) (msg rueidis.RedisMessage, err error) {
	if end, ok := ctx.Deadline(); !ok || time.Until(end) > n.s.opt.Timeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, n.s.opt.Timeout, n.s.errTimeout)
		defer cancel()
	}
	if ctx.Err() != nil {
		return msg, fmt.Errorf("%w: %w", errAdrift, context.Cause(ctx))
	}
	if c := n.s.cluster; c != nil && len(c.splitSlots()) > 0 {
		if slot, ok := ctx.Value(slotKey{}).(int); ok && c.splitSlots()[slot] != nil {
			return msg, errSplit // that was found out while this waited at the gate
		}
	}
	if n.slow != nil && store.WantsReplicas(ctx) {
		return n.replicated(ctx, args, late)
	}
	through := passes(ctx)
	bound, isBound := uint64(0), false // who puts the server in order passes everything
	if through == everything {
		bound, isBound = ctx.Value(comesKey{n.attendant}).(uint64)
	}
	for range 2 * len(n.quick) {
		w, err := n.wire()
		if err != nil {
			return msg, fmt.Errorf("%w: %w", errAdrift, err)
		}
		if n.gate.shut.Load()&^through != 0 || isBound && bound != n.attendant.comes.Load() {
			return msg, errAdrift // the gate was shut before the connection of another server was put to use
		}
		if msg, err = w.do(ctx, args, late); err != errNotSent { // elsewhere: the only case in which anything is sent again
			return msg, err
		}
	}
	return msg, errAdrift
}

// A gate holds operations up.
type gate struct {
	shut    atomic.Uint32 // why; 0 is open
	inside  atomic.Int64  // operations that have passed and are not done
	waiting atomic.Int64

	shutting func() // called when there is one more reason, once nobody enters any more; nil: not

	mu      sync.Mutex    // guards what follows
	opened  chan struct{} // closed, and replaced, when a reason is taken away
	since   time.Time     // when it was shut
	all     time.Duration // for which it was shut before
	longest time.Duration
}

// The reasons why a gate is shut.
const (
	announced  uint32 = 1 << iota // somebody says that the primary is about to change
	recovering                    // this server is new to us: what we know and it does not is put back first
	forgotten                     // its memory is gone, and a person has to say what is to be done
	adrift                        // there is no connection
	unleased                      // not enough Sentinels say that it is the primary (safety=strict)

	everything = ^uint32(0)
)

var gateNames = map[uint32]string{announced: "announced", recovering: "recovering", forgotten: "forgotten", adrift: "adrift", unleased: "unleased"}

// maxHeld bounds the operations that wait at one gate.
const maxHeld = 10_000

// enter waits until the gate is open, for a context without an end as long as patience. Who has entered has to leave.
func (g *gate) enter(ctx context.Context, patience time.Duration) error {
	through := passes(ctx)
	if through == everything {
		return nil
	}
	for {
		g.inside.Add(1)
		if g.shut.Load()&^through == 0 { // in this order: who shuts the gate waits until nobody is inside
			return nil
		}
		g.inside.Add(-1)
		if err := g.wait(ctx, through, patience); err != nil {
			return err
		}
	}
}

// lastMoment is what an operation needs that was held up: one that is sent and given up at once may or may not be done.
const lastMoment = 50 * time.Millisecond

func (g *gate) wait(ctx context.Context, through uint32, patience time.Duration) error {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if g.shut.Load()&^through == 0 {
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		patience = time.Until(end) - lastMoment
	}
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > maxHeld {
		return errCrowd
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-opened:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return errHeld
}

func (g *gate) leave(ctx context.Context) {
	if passes(ctx) != everything {
		g.inside.Add(-1)
	}
}

// close shuts the gate for one more reason and reports whether that is new.
func (g *gate) close(why uint32) bool {
	g.mu.Lock()
	old := g.shut.Or(why)
	if old == 0 {
		g.since = time.Now()
	}
	g.mu.Unlock()
	if old&why != 0 {
		return false
	}
	if g.shutting != nil {
		g.shutting()
	}
	return true
}

// open takes a reason away. It returns for how long the gate was shut where that was the last one.
func (g *gate) open(why uint32) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.shut.And(^why)
	if old&why == 0 {
		return 0
	}
	close(g.opened) // also where others are left: there are some who pass those
	g.opened = make(chan struct{})
	if old&^why != 0 {
		return 0
	}
	d := time.Since(g.since)
	g.all += d
	g.longest = max(g.longest, d)
	return d
}

// held returns for how long the gate was shut, in all and at most at a time, and for how long it has been now.
func (g *gate) held() (all, longest, now time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut.Load() != 0 {
		now = time.Since(g.since)
	}
	return g.all + now, max(g.longest, now), now
}

// empty waits until nobody is inside any more.
func (g *gate) empty(ctx context.Context) bool {
	for g.inside.Load() > 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

type passKey struct{}

// pass marks operations that a gate which is shut for any of these reasons lets through. To pass everything is for those
// who put the store in order: nobody waits until they are over.
func pass(ctx context.Context, reasons uint32) context.Context {
	return context.WithValue(ctx, passKey{}, passes(ctx)|reasons)
}

func passes(ctx context.Context) uint32 {
	reasons, _ := ctx.Value(passKey{}).(uint32)
	return reasons
}
