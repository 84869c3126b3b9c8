package redis

import (
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// A cluster is the shards of a Redis Cluster, and which of them has which slot.
//
// There is no event that says that this changes: it is looked at every now and then, and at once when a connection is lost, a
// dial is refused or an answer says MOVED. No layout of a single node is believed: what was decided later, by the config
// epoch, counts.
type cluster struct {
	s     *Store
	life  context.Context                  // of the shards
	ends  context.Context                  // of watch
	stop  context.CancelFunc               // ends it
	wg    sync.WaitGroup                   // of it
	owner [slotCount]atomic.Pointer[shard] // nil: nobody's, as far as is known
	asked [slotCount]atomic.Pointer[shard] // to which one the owner has sent us with ASK, while the slot is on its way
	split atomic.Pointer[map[int]*shard]   // see divide
	soon  chan struct{}                    // has room for one: look at once

	mu       sync.Mutex        // guards what follows
	once     map[string]*shard // by the ids that their primaries had before
	shards   map[string]*shard // by the id of the primary
	epochs   [slotCount]uint64 // the config epoch under which the owner has the slot
	replicas map[string]string // the ids of those that are not primaries, and of whose
	others   []string          // their addresses
	changed  chan struct{}     // closed, and replaced, when a slot has another owner
	count    uint64            // of the shards that ever were
	err      error             // of the last look
}

// A shard is a primary and its replicas: slots that change their server together. Its node is where the primary is.
type shard struct {
	*node
	number uint64
	stop   context.CancelFunc
	meets  atomic.Int64 // the slot of its registry; slotCount: it has no slots

	// cluster.mu guards what follows.
	id      string         // of the primary
	addr    string         // its address, as far as anybody has ever said
	epoch   uint64         // the primary's config epoch
	slots   int            // how many it has
	leaving map[int]string // those that are on their way elsewhere, as the primary itself says; not to be changed
	coming  map[int]string // those of others that are on their way here, and of which keys are here; not to be changed
	told    bool           // the primary itself has said so at least once
	doubted bool           // most of the others say that the primary is away, or may be
	since   time.Time      // since when
}

const (
	lookEvery    = 400 * time.Millisecond // where all is well
	lookAgain    = 50 * time.Millisecond  // where it is not
	lookTimeout  = 200 * time.Millisecond // for an answer
	lookPatience = 50 * time.Millisecond  // for the others, once there is one
	lookAsks     = 6                      // how many primaries are asked beside half of them, and how many others where that is not enough
)

var (
	errFailed   = errors.New("the other primaries say that this one is away")
	errUnowned  = errors.New("no server has the key's slot")
	errSplit    = errors.New("a part of the key's slot lies on another server, and its own one does not say so")
	errUnlooked = errors.New("no node of the cluster says who has which slot")
)

func newCluster(s *Store, life context.Context) *cluster {
	c := &cluster{s: s, life: life, soon: make(chan struct{}, 1), shards: map[string]*shard{}, once: map[string]*shard{}, changed: make(chan struct{})}
	c.ends, c.stop = context.WithCancel(life)
	return c
}

// close ends the watch. The shards are as they are from then on.
func (c *cluster) close() {
	c.stop()
	c.wg.Wait()
}

// open looks at the cluster for the first time and connects to its primaries. Where nobody answers it goes on trying.
func (c *cluster) open(ctx context.Context) error {
	err := c.look(ctx, c.s.opt.DialTimeout)
	c.wg.Go(c.watch)
	if misconfigured(err) {
		return err
	}
	for _, h := range c.all() {
		if err := h.tried(ctx); err != nil {
			return err
		}
	}
	return nil
}

// watch looks at the cluster until the store is closed.
func (c *cluster) watch() {
	for {
		pause := lookEvery*3/4 + rand.N(lookEvery/2)
		if !c.well() {
			pause = lookAgain
		}
		c.mu.Lock()
		if misconfigured(c.err) {
			pause = 2 * time.Second
		}
		c.mu.Unlock()
		began := time.Now()
		select {
		case <-time.After(pause):
		case <-c.soon:
			if rest := 10*time.Millisecond - time.Since(began); rest > 0 { // of many who call, the last one is heard, too
				select {
				case <-time.After(rest):
				case <-c.ends.Done():
				}
			}
		case <-c.ends.Done():
		}
		if c.ends.Err() != nil {
			return
		}
		c.look(c.ends, lookTimeout)
	}
}

// lookSoon has the cluster looked at now.
func (c *cluster) lookSoon() {
	select {
	case c.soon <- struct{}{}:
	default:
	}
}

// well reports whether each shard serves.
func (c *cluster) well() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	well := c.err == nil
	for _, h := range c.shards {
		c.mind(h)
		well = well && (h.gate.shut.Load() == 0 || h.slots == 0)
	}
	return well
}

// mind holds operations up while h is said to be away, for as long as FailoverOptions.Hold says. Callers hold mu.
func (c *cluster) mind(h *shard) {
	switch {
	case !h.doubted:
		h.since = time.Time{}
		h.gate.open(announced)
	case h.since.IsZero():
		h.since = time.Now()
		h.gate.close(announced)
	case time.Since(h.since) > c.s.opt.Failover.heeded():
		h.gate.open(announced)
	}
}

// look asks the nodes who has which slot, and goes by it.
func (c *cluster) look(ctx context.Context, timeout time.Duration) error {
	asked := time.Now()
	layouts, err := c.ask(ctx, timeout)
	c.mu.Lock()
	var leaving []*shard
	if len(layouts) > 0 {
		err = nil
		leaving = c.adopt(layouts)
	}
	if err != nil && c.err == nil && c.ends.Err() == nil {
		c.s.opt.Logger.Warn("redis: no node of the cluster answers", "error", err)
	}
	c.err = err
	c.mu.Unlock()
	if len(leaving) > 0 {
		c.leave(leaving)
	}
	if err == nil && c.well() {
		c.confirm(asked, layouts)
	}
	return err
}

// confirm says of all shards that their primaries were the primaries when layouts were asked for, if most of those that have
// slots have said so themselves: one that is cut off together with us doubts nobody for a while.
func (c *cluster) confirm(asked time.Time, layouts []*layout) {
	c.mu.Lock()
	serving, said := 0, 0
	for id, h := range c.shards {
		if h.slots == 0 {
			continue
		}
		serving++
		if slices.ContainsFunc(layouts, func(l *layout) bool { return l.self == id }) {
			said++
		}
	}
	c.mu.Unlock()
	if 2*said <= serving {
		return
	}
	for _, h := range c.serving() {
		h.confirm(asked)
	}
}

// leave moves shards whose former primaries say that they are replicas now. Such a one is to be believed, and answers MOVED to
// what it has not done: that is waited for, since a connection that is cut leaves open what became of it.
func (c *cluster) leave(shards []*shard) {
	ctx, cancel := context.WithTimeout(c.life, lookTimeout)
	defer cancel()
	for _, h := range shards {
		h.gate.empty(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range shards {
		h.moveTo(h.addr, nil)
		h.doubted = false
		c.mind(h)
	}
}

// ask collects layouts: from primaries over the connections that there are, and where one of them does not answer from the
// replicas and from the addresses in the options, too. It does not wait for who is slow once there is a layout.
func (c *cluster) ask(ctx context.Context, timeout time.Duration) (layouts []*layout, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type answer struct {
		v   *layout
		err error
	}
	shards := c.all()
	rand.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
	shards = shards[:min(len(shards), len(shards)/2+lookAsks)]
	answers := make(chan answer, len(shards)+lookAsks)
	open := 0
	begin := func(from func() (*layout, error)) {
		open++
		c.s.wg.Go(func() {
			v, err := from()
			answers <- answer{v, err}
		})
	}
	collect := func() {
		var enough <-chan time.Time
		if len(layouts) > 0 {
			enough = time.After(lookPatience)
		}
		for open > 0 {
			select {
			case a := <-answers:
				open--
				if a.err != nil {
					err = cmp.Or(err, a.err)
				} else if layouts = append(layouts, a.v); enough == nil {
					enough = time.After(lookPatience)
				}
			case <-enough:
				return
			case <-ctx.Done():
				err = cmp.Or(err, context.Cause(ctx))
				return
			}
		}
	}
	for _, h := range shards {
		if w, err := h.wire(); err == nil {
			c.mu.Lock()
			coming := h.coming
			c.mu.Unlock()
			begin(func() (*layout, error) {
				v, err := askLayout(ctx, w, w.place.addr, c.s.opt.TLS != nil, coming)
				if err == nil {
					v.counted = true
				}
				return v, err
			})
		}
	}
	collect()
	if len(layouts) > 0 && len(layouts) == len(shards) {
		return layouts, nil
	}
	for _, addr := range c.elsewhere(shards) {
		begin(func() (*layout, error) {
			n := newNode(c.s, "tcp", addr)
			n.anyRole = true
			w, err := n.connect(ctx)
			if err != nil {
				return nil, err
			}
			defer w.close()
			return askLayout(ctx, w, addr, c.s.opt.TLS != nil, nil)
		})
	}
	collect()
	return layouts, cmp.Or(err, errUnlooked)
}

// all returns the shards.
func (c *cluster) all() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*shard, 0, len(c.shards))
	for _, h := range c.shards {
		list = append(list, h)
	}
	return list
}

// elsewhere returns some addresses of nodes that are not among the primaries that can be asked anyway.
func (c *cluster) elsewhere(asked []*shard) []string {
	c.mu.Lock()
	addrs := slices.Concat(c.others, c.s.opt.Cluster)
	c.mu.Unlock()
	for _, h := range asked {
		if addr := h.place.Load().addr; addr != "" && h.up() {
			addrs = slices.DeleteFunc(addrs, func(a string) bool { return a == addr })
		}
	}
	addrs = slices.DeleteFunc(addrs, func(a string) bool { return a == "" })
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs[:min(len(addrs), lookAsks)]
}

// adopt goes by layouts. It returns the shards that are at their old place still, with the gate shut, and have to leave it.
// Callers hold mu.
func (c *cluster) adopt(layouts []*layout) (leaving []*shard) {
	members, owners := c.merge(layouts)
	replicas := map[string]bool{} // those that say so themselves
	for _, l := range layouts {
		if m := l.members[l.self]; !m.primary {
			replicas[m.id] = true
		}
	}
	has := map[string]int{} // how many slots each primary has
	for _, m := range owners {
		if m != nil {
			has[m.id]++
		}
	}
	for id, m := range members {
		if m.primary && !m.absent && m.doubts == 0 && m.addr != "" {
			has[id] += 0 // an ASK may come before it has a slot
		}
	}
	shards := map[string]*shard{}
	former := map[*shard]string{}
	for id := range has {
		if h := c.heir(id, owners); h != nil {
			former[h] = h.id
			h.id, shards[id] = id, h
		}
	}
	for id := range has {
		if h := c.shards[id]; h != nil && h.id == id {
			shards[id] = h
		} else if shards[id] == nil {
			shards[id] = c.newShard(id, members[id].addr)
		}
	}
	for _, h := range c.shards {
		if shards[h.id] != h {
			c.drop(h)
		}
	}
	split := c.divide(layouts, shards, former, owners)
	c.split.Store(&split) // before anybody gets a new primary to use
	for id, h := range shards {
		m := members[id]
		h.addr = cmp.Or(m.addr, h.addr)
		h.slots, h.doubted = has[id], 2*m.doubts > len(layouts)
		if m.epoch != h.epoch {
			h.epoch = m.epoch
			h.memories.Add(1) // it may have been a replica meanwhile, and have lost what it knew
		}
		addr, why := h.addr, errNowhere
		if 2*m.failures > len(layouts) { // from here on it is no use, whatever it answers
			addr, why = "", errFailed
		}
		if h.place.Load().addr != addr {
			c.s.opt.Logger.Info("redis: the primary of a shard", "addr", addr, "slots", h.slots)
			if replicas[former[h]] {
				h.doubted, leaving = true, append(leaving, h)
			} else {
				h.moveTo(addr, why)
			}
		}
		c.mind(h)
	}
	meets := map[*shard]int{}
	for slot, m := range owners {
		if m != nil {
			h := shards[m.id]
			if best, ok := meets[h]; !ok || h.rank(slot) < h.rank(best) {
				meets[h] = slot
			}
		}
	}
	for _, h := range shards {
		if slot, ok := meets[h]; ok {
			h.has(slot)
		} else {
			h.has(slotCount)
		}
		if h.stop == nil {
			var life context.Context
			life, h.stop = context.WithCancel(c.life)
			h.start(life)
		}
	}
	moved := false
	for slot, m := range owners {
		var h *shard
		if m != nil {
			h, c.epochs[slot] = shards[m.id], m.epoch
		}
		moved = c.owner[slot].Swap(h) != h || moved
		if to := c.asked[slot].Load(); to != nil && split[slot] == nil && (to == h || h == nil || h.leaving[slot] == "") {
			c.asked[slot].Store(nil)
		}
	}
	c.shards, c.replicas, c.others = shards, map[string]string{}, nil
	for id, m := range members {
		if !m.primary {
			c.replicas[id] = m.of
			c.others = append(c.others, m.addr)
		}
	}
	if moved {
		close(c.changed)
		c.changed = make(chan struct{})
		c.s.trackers.all() // the former owner does not tell what happens at the new one
	}
	return leaving
}

// divide notes which slots are on their way, and returns those of which a part lies on another server while their own one does
// not say so, with that other one: what such a slot's own server does not have may well be there, so nobody is answered.
//
// A primary's replicas do not know what it was about to move: one that takes over says of all that was moved already that
// there is no such session. And what one that is about to get a slot was given already is out of reach where its replica
// takes over: that is refused by itself, with ASK.
//
// The nodes are not asked at one moment. Keys come only after the slot's own server says that it is on its way: so
// what counts is that it does not say so after another one said that there were keys. Callers hold mu.
func (c *cluster) divide(layouts []*layout, shards map[string]*shard, former map[*shard]string, owners *[slotCount]*clusterNode) map[int]*shard {
	for h, was := range former {
		c.once[was] = h
	}
	for id, h := range c.once {
		if shards[h.id] != h {
			delete(c.once, id)
		}
	}
	for h, was := range former {
		leaving := h.leaving
		h.leaving = nil
		for slot, id := range leaving {
			if to := cmp.Or(shards[id], c.once[id]); to != nil { // until it says otherwise
				to.coming = with(to.coming, map[int]string{slot: was})
			}
		}
	}
	came := map[*shard]map[int]string{}
	for _, h := range shards {
		came[h] = h.coming
	}
	for _, l := range layouts {
		h := shards[l.self]
		if h == nil {
			continue
		}
		if !h.told { // who is new to us may have said so before to others
			came[h], h.told = with(h.coming, l.coming), true
		}
		for slot := range l.leaving {
			if h.leaving[slot] == "" { // what is absent here is made there from now on
				c.s.trackers.all()
				break
			}
		}
		h.leaving = l.leaving
		if h.coming = l.coming; !l.counted { // one that has taken over does not know by itself what it has of others
			h.coming = with(came[h], l.coming)
		}
	}
	split, before := map[int]*shard{}, c.splitSlots()
	for to, slots := range came {
		for slot := range slots {
			m := owners[slot]
			if m == nil || shards[m.id] == to || to.coming[slot] == "" || shards[m.id].leaving[slot] != "" {
				continue
			}
			if split[slot] = to; before[slot] == nil {
				c.s.opt.Logger.Error("redis: a part of a slot lies on another server, and the slot's own one has forgotten that: requests for it are held up. "+
					"Tell it, and have the move finished (redis-cli --cluster fix)", "slot", slot, "addr", m.addr, "other", to.addr,
					"command", fmt.Sprintf("CLUSTER SETSLOT %d MIGRATING %s", slot, to.id))
			}
		}
	}
	return split
}

// with returns what is in both.
func with(a, b map[int]string) map[int]string {
	all := maps.Clone(a)
	if all == nil {
		all = map[int]string{}
	}
	maps.Copy(all, b)
	return all
}

// slotKey is of the slot that an operation is about.
type slotKey struct{}

// splitSlots are what divide has found.
func (c *cluster) splitSlots() map[int]*shard {
	if m := c.split.Load(); m != nil {
		return *m
	}
	return nil
}

// newShard makes a shard. Callers hold mu.
func (c *cluster) newShard(id, addr string) *shard {
	c.count++
	h := &shard{node: newNode(c.s, "tcp", addr), number: c.count, id: id}
	c.s.opt.Logger.Info("redis: a shard", "addr", addr)
	h.trouble = c.lookSoon
	h.tag = func() string { return slotTag(int(h.meets.Load())) }
	h.serves = func() bool { return h.meets.Load() < slotCount }
	h.attendant.r.slot = func(key string) int { return slotOf(c.s.opt.Prefix + key) }
	h.attendant.r.mine = func(key string) bool {
		slot := slotOf(c.s.opt.Prefix + key)
		return c.owner[slot].Load() == h || c.asked[slot].Load() == h
	}
	h.meets.Store(slotCount)
	return h
}

// rank orders the shard's slots: the registry lies in the lowest one, which all gateways find alike. A reshard moves slots
// in the order of their numbers, so the order is another one here, and it rarely comes to that slot; while it is on its way
// elsewhere the registry lies in the next one. Callers hold cluster.mu.
func (h *shard) rank(slot int) int {
	rank := (slot*10127 + 5000) % slotCount // 10127 is odd, and so no two are the same
	if _, ok := h.leaving[slot]; ok {
		rank += slotCount
	}
	return rank
}

// has notes the slot of the shard's registry. With the first slot of all, what there is to be done for a new primary begins.
func (h *shard) has(slot int) {
	if h.meets.Swap(int64(slot)) == slotCount && slot < slotCount && h.up() {
		h.admission.Lock()
		defer h.admission.Unlock()
		h.attendant.arriving()
	}
}

// heir returns the shard of which the primary id was a replica, where nobody else has as many of its slots now, or nil. Its
// former primary may have some: one that it was given just before it failed, of which its replicas had not heard. Callers hold mu.
func (c *cluster) heir(id string, owners *[slotCount]*clusterNode) *shard {
	h := c.shards[c.replicas[id]]
	if h == nil || c.shards[id] != nil {
		return nil
	}
	shares := map[string]int{}
	for slot, m := range owners {
		if m != nil && c.owner[slot].Load() == h {
			shares[m.id]++
		}
	}
	for other, n := range shares {
		if n > shares[id] || n == shares[id] && other > id {
			return nil
		}
	}
	if shares[id] == 0 {
		return nil
	}
	return h
}

// drop gives a shard up. What is under way gets its time. Callers hold mu.
func (c *cluster) drop(h *shard) {
	h.over.Store(true)
	h.gate.open(^uint32(0))
	c.s.wg.Go(func() {
		select {
		case <-time.After(c.s.opt.Timeout):
		case <-c.life.Done():
		}
		h.moves.Add(1) // for who has a connection by Dial
		h.attendant.leave()
		h.stop()
	})
}

// merge makes one picture of layouts and of what was known: the members, and who has which slot. Callers hold mu.
//
// What was known stays, since those who know better may not have been asked: but not where nobody has heard of the owner,
// not where the owner itself says that it does not have the slot, and not where it has failed and another one says that it has it:
// the owner was given the slot then, and died before anybody heard of it.
func (c *cluster) merge(layouts []*layout) (members map[string]*clusterNode, owners *[slotCount]*clusterNode) {
	members, owners = map[string]*clusterNode{}, new([slotCount]*clusterNode)
	itself := map[string]*layout{}
	for _, v := range layouts {
		itself[v.self] = v
		for id, m := range v.members {
			known := members[id]
			if known == nil {
				first := *m
				members[id] = &first
				continue
			}
			if m.epoch > known.epoch || m.epoch == known.epoch && v.self == id {
				known.primary, known.of, known.epoch, known.absent = m.primary, m.of, m.epoch, m.absent
			}
			known.addr = cmp.Or(known.addr, m.addr)
			known.doubts += m.doubts
			known.failures += m.failures
		}
	}
	for slot := range owners {
		epoch := uint64(0)
		if h := c.owner[slot].Load(); h != nil && members[h.id] != nil {
			if v := itself[h.id]; v == nil || v.owners[slot] == v.members[h.id] {
				owners[slot], epoch = members[h.id], c.epochs[slot]
			}
		}
		for _, v := range layouts {
			m := v.owners[slot]
			if m == nil {
				continue
			}
			own := v.self == m.id
			if owners[slot] == nil || m.epoch > epoch || own && (m.epoch == epoch || 2*owners[slot].failures > len(layouts)) {
				owners[slot], epoch = members[m.id], m.epoch
			}
		}
	}
	return members, owners
}

// at returns the shard whose primary is at addr, or nil.
func (c *cluster) at(addr string) *shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.shards {
		if h.place.Load().addr == addr {
			return h
		}
	}
	return nil
}

// anywhere returns a shard that serves, if there is one.
func (c *cluster) anywhere() *shard {
	var h *shard
	for range 32 {
		if h = c.owner[rand.IntN(slotCount)].Load(); h != nil && h.up() {
			break
		}
	}
	return h
}

// send is node.send to the shard that has the key's slot, whichever that is by then. What a server refuses because
// the slot is not, or not yet, or not wholly its own was certainly not executed: it is sent again, to the right one, for as
// long as an operation may take.
func (c *cluster) send(ctx context.Context, op string, lost error, at string, args []string, late lateArgs, done func(*reply)) *reply {
	slot, end := slotOf(at), c.patience(ctx)
	if at != "" {
		ctx = context.WithValue(ctx, slotKey{}, slot)
	}
	var elsewhere *shard // where the last answer says that the key is
	asking := false
	for try := 0; ; try++ {
		h := cmp.Or(elsewhere, c.owner[slot].Load())
		if at == "" {
			h = c.anywhere()
		}
		var r *reply
		split := at != "" && c.splitSlots()[slot] != nil
		switch {
		case split:
			r = &reply{err: fmt.Errorf("store/redis: %s: %w: %w", op, store.ErrUnavailable, errSplit)}
		case h == nil:
			r = &reply{err: fmt.Errorf("store/redis: %s: %w: %w", op, store.ErrUnavailable, errUnowned)}
			c.lookSoon()
		case asking:
			r = h.send(ctx, op, lost, append([]string{askingCommand}, args...), behind(late), done)
		default:
			r = h.send(ctx, op, lost, args, late, done)
		}
		var re *replyError
		pause := true
		switch {
		case r.err == nil:
			if asking && c.asked[slot].Swap(h) != h { // what was absent there may have been made here
				c.s.trackers.all()
			}
			return r
		case h == nil || errors.Is(r.err, errSplit):
		case errors.Is(r.err, errAdrift) && h.over.Load():
			elsewhere, asking = nil, false
		case errors.As(r.err, &re) && re.code == "TRYAGAIN" && try >= togetherTries && ctx.Value(togetherKey{}) != nil:
			return r
		case errors.As(r.err, &re) && re.redirects():
			elsewhere, asking = c.follow(re, h), re.code == "ASK"
			pause = elsewhere == nil || try > 2 // of two that say it of each other, one is about to know better
			if re.code == "MOVED" && elsewhere != nil {
				if c.owner[slot].Swap(elsewhere) != elsewhere { // until the next look
					c.s.trackers.all()
				}
			}
			if re.code != "ASK" && re.code != "TRYAGAIN" || elsewhere == nil && asking {
				c.lookSoon()
			}
		default:
			return r
		}
		if pause && !c.rest(ctx, end, try) {
			return r
		}
	}
}

// togetherKey is of what does without where a slot that is on its way refuses it: a script that makes a record beside one that there
// is finds the two in one place only when the slot has arrived. Until it has been tried so often, about 100 ms, they may be on
// their way one behind the other.
type togetherKey struct{}

const togetherTries = 8

// redirects reports whether the server refuses because of the slot, or of the state that it is in.
func (e *replyError) redirects() bool {
	switch e.code {
	case "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY":
		return true
	}
	return e.elsewhere()
}

// elsewhere reports whether the server refuses because the slot, or a part of it, is another one's.
func (e *replyError) elsewhere() bool {
	return e.code == "MOVED" || e.code == "ASK" || e.code == "TRYAGAIN"
}

// follow returns the shard to which from points with MOVED or ASK, nil where none is known there.
func (c *cluster) follow(re *replyError, from *shard) *shard {
	f := strings.Fields(re.text)
	if len(f) != 3 || re.code != "MOVED" && re.code != "ASK" {
		return nil
	}
	return c.at(pointed(f[2], from.place.Load().addr))
}

// pointed reads the address in MOVED or ASK, of a server at from. Redis writes IPv6 without brackets, and no host, or ?, for
// the one that it was called by (cluster-preferred-endpoint-type).
func pointed(text, from string) string {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return text
	}
	host := strings.Trim(text[:colon], "[]")
	if host == "" || host == "?" {
		host, _, _ = net.SplitHostPort(from)
	}
	return net.JoinHostPort(host, text[colon+1:])
}

// patience is when an operation has been sent from server to server for long enough.
func (c *cluster) patience(ctx context.Context) time.Time {
	end := time.Now().Add(c.s.opt.Failover.Hold)
	if by, ok := ctx.Deadline(); ok && by.Before(end) {
		return by.Add(-lastMoment)
	}
	return end
}

// rest waits a little longer with each try, or until a slot has another owner. It reports whether there is time for another try.
func (c *cluster) rest(ctx context.Context, end time.Time, try int) bool {
	pause := 2 * time.Millisecond << min(try, 4)
	pause = pause/2 + rand.N(pause)
	if time.Until(end) < pause {
		return false
	}
	c.mu.Lock()
	changed := c.changed
	c.mu.Unlock()
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
		return false
	}
	return true
}

// askingCommand before a command makes a server take it for a slot that it is being given. It counts for the next command
// on the connection: both are sent as one.
const askingCommand = "ASKING"

func behind(complete lateArgs) lateArgs {
	if complete == nil {
		return nil
	}
	return func(w *wire, args []string) { complete(w, args[1:]) }
}

// each sends a command that changes nothing to every primary that has slots, and returns the answers, in no order.
func (c *cluster) each(ctx context.Context, op string, args ...string) ([]*reply, error) {
	shards := c.serving()
	replies := make([]*reply, len(shards))
	var wg sync.WaitGroup
	for i, h := range shards {
		wg.Go(func() { replies[i] = h.send(ctx, op, store.ErrUnavailable, slices.Clone(args), nil, nil) })
	}
	wg.Wait()
	for _, r := range replies {
		if r.err != nil {
			return nil, r.err
		}
	}
	if len(replies) == 0 {
		return nil, fmt.Errorf("store/redis: %s: %w: %w", op, store.ErrUnavailable, errUnlooked)
	}
	return replies, nil
}

// serving returns the shards that have slots, those whose primary is away included.
func (c *cluster) serving() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*shard
	for _, h := range c.shards {
		if h.slots > 0 {
			list = append(list, h)
		}
	}
	return list
}

// memory says what server has a slot: another number, another memory.
func (c *cluster) memory(slot int) uint64 {
	h := c.owner[slot].Load()
	if h == nil {
		return 0
	}
	return h.number<<32 | h.memories.Load()&math.MaxUint32
}

// instance names all primaries that have slots. Of one that is away it is the last one that was there: nobody else is
// known to have taken its place.
func (c *cluster) instance() (string, error) {
	var servers []string
	for _, h := range c.serving() {
		server := h.last()
		if server == "" {
			return "", fmt.Errorf("store/redis: instance: %w: a primary of the cluster was not seen yet", store.ErrUnavailable)
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		return "", fmt.Errorf("store/redis: instance: %w: %w", store.ErrUnavailable, errUnlooked)
	}
	slices.Sort(servers)
	sum := sha1.Sum([]byte(strings.Join(servers, "\n")))
	return hex.EncodeToString(sum[:]), nil
}

// oneInfo makes one INFO of those of all shards. What is unsafe in one of them is unsafe: the policy is that of a shard that
// evicts, where there is one, the memory that of the shard that is fullest, and what is not on everywhere is off.
func oneInfo(all []map[string]string) map[string]string {
	number := func(m map[string]string, name string) float64 {
		n, _ := strconv.ParseFloat(m[name], 64)
		return n
	}
	one, evicted, full := maps.Clone(all[0]), 0.0, -1.0
	evicts := false
	for _, m := range all {
		evicted += number(m, "evicted_keys")
		if m["aof_enabled"] != "1" {
			one["aof_enabled"] = m["aof_enabled"]
		}
		if m["rdb_last_bgsave_status"] != "ok" {
			one["rdb_last_bgsave_status"] = m["rdb_last_bgsave_status"]
		}
		bound := number(m, "maxmemory")
		if bound == 0 { // then the policy does not matter
			continue
		}
		if !evicts {
			evicts = m["maxmemory_policy"] != "noeviction"
			one["maxmemory_policy"] = m["maxmemory_policy"]
		}
		if share := number(m, "used_memory") / bound; share > full {
			full, one["used_memory"], one["maxmemory"] = share, m["used_memory"], m["maxmemory"]
		}
	}
	one["evicted_keys"] = strconv.FormatFloat(evicted, 'f', 0, 64)
	return one
}
