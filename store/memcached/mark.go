package memcached

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// Every server has the mark, in an item without a deadline, so that whoever asks for a session can see in the same packet whether
// that server still has its memory. The first server's is the mark; the others' follow it.
//
// With the mark is written which servers there are, in their order, and which life of each: process, when it was started, and how
// often it was flushed. That is noted with the identity, when all have to be there, and is not noted anew with another seal. A
// server that lacks the mark and still lives the life that was noted has evicted it (or never got it: who changed the mark was
// interrupted), and gets it again.
//
// Where a server lacks it that lives another life, or the first one lacks it, or where other servers are named, or in another
// order, a part of the origin has lost its memory, or is none of it. Then Mark answers no identity, as any origin does that has
// lost its memory, and a person decides. The seal stays: it says who must not be served from what is left.
type marked struct {
	store.Mark
	Servers []life `json:"servers"`

	raw string // as it is written, "" for none
}

// A life is one of a server's memory.
type life struct {
	Addr string `json:"addr"`
	Life string `json:"life"` // a restart ends it, and flush_all
}

// maxMark is the size in bytes of the longest mark.
const maxMark = 64 << 10

func (s *Store) markName() string { return reserved + "mark:" + s.opt.Prefix }

// read reads a mark as a server has it; nil is none.
func (s *Store) read(it *item) (*marked, error) {
	if it == nil {
		return &marked{}, nil
	}
	if known := s.noted.Load(); known != nil && known.raw == string(it.data) {
		return known, nil
	}
	m := &marked{raw: string(it.data)}
	d := json.NewDecoder(bytes.NewReader(it.data))
	d.DisallowUnknownFields() // a newer version's: its meaning is not known
	if err := d.Decode(m); err != nil || it.large {
		return nil, fmt.Errorf("store/memcached: %w: the mark of the origin cannot be read: is it a newer version's?", store.ErrUnavailable)
	}
	s.noted.Store(m)
	return m, nil
}

// want is the mark under which something is done.
type want struct {
	mark  store.Mark
	write bool // it has to be exactly that one; to be read from, a server needs only its identity
}

// knows refuses a server that does not have the mark that is wanted.
func (s *Store) knows(it *item, w *want) error {
	is, err := s.read(it)
	if err == nil && is.Mark != w.mark && (w.write || is.Identity != w.mark.Identity) {
		err = fmt.Errorf("store/memcached: %w: this server, or its memory, is another one", store.ErrSealed)
	}
	return err
}

// life asks which life of its memory a server lives.
func (c *conn) life(addr string) (life, error) {
	is, err := c.stats()
	if err != nil {
		return life{}, err
	}
	now, err := number(is["time"])
	up, err2 := number(is["uptime"])
	if err = errors.Join(err, err2); err != nil || is["pid"] == "" {
		return life{}, errForeign
	}
	return life{addr, fmt.Sprintf("%s/%d/%s", is["pid"], now-up, is["cmd_flush"])}, nil
}

func (n *node) life(ctx context.Context) (is life, err error) {
	err = n.do(ctx, true, func(c *conn) error {
		is, err = c.life(n.addr)
		return err
	})
	return is, err
}

// seen is the mark of one server.
type seen struct {
	*item
	*marked
	err error
}

// markOf asks one server.
func (s *Store) markOf(ctx context.Context, n *node) (is seen) {
	if is.item, is.err = n.get(ctx, s, s.markName(), nil, false); is.err == nil {
		is.marked, is.err = s.read(is.item)
	}
	return is
}

// marks asks all servers, and says what the mark is. The error is the first one's, without which there is none.
func (s *Store) marks(ctx context.Context) (all []seen, m store.Mark, err error) {
	all = make([]seen, len(s.nodes))
	var wg sync.WaitGroup
	for i, n := range s.nodes {
		wg.Go(func() {
			ctx := ctx
			if i > 0 { // one that does not answer is not waited for until there is no time for anything else
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, s.opt.Timeout/4, errTimeout)
				defer cancel()
			}
			all[i] = s.markOf(ctx, n)
		})
	}
	wg.Wait()
	lost := false
	if all[0].err == nil && all[0].item == nil {
		// It may have lost its memory, and the only one who knows of the seal may be slow: that one is waited for. Where no server is
		// there is no memory.
		for i, is := range all {
			if is.err != nil && !errors.Is(is.err, store.ErrDown) {
				if all[i] = s.markOf(ctx, s.nodes[i]); all[i].err != nil && !errors.Is(all[i].err, store.ErrDown) {
					return nil, m, fmt.Errorf("mark: %s, and the first server has none: %w", s.nodes[i].addr, all[i].err)
				}
			}
		}
		for _, is := range all {
			if is.item != nil && is.err == nil {
				lost = true
				if is.Seal.Epoch >= m.Seal.Epoch {
					m.Seal = is.Seal
				}
			}
		}
		if lost {
			all[0] = s.markOf(ctx, s.nodes[0]) // it may have got its first one while the others were asked
		}
	}
	first := all[0]
	if first.err != nil {
		return nil, m, first.err
	}
	if first.item != nil {
		m = first.Mark
		lost = m.Identity != "" && !s.are(first.Servers)
	}
	for i, is := range all {
		if lost || m.Identity == "" || is.err != nil || is.item != nil {
			continue // what that server has is not asked for: nobody is answered from it, or it has its memory
		}
		var now life
		if now, all[i].err = s.nodes[i].life(ctx); all[i].err == nil {
			lost = now != first.Servers[i]
		}
	}
	if lost {
		m.Identity = ""
	} else if err = store.Gone(ctx); err != nil { // who could not be asked in time is not away
		err = fmt.Errorf("store/memcached: mark: %w", err)
	}
	return all, m, err
}

// are reports whether those are our servers.
func (s *Store) are(those []life) bool {
	return slices.EqualFunc(s.nodes, those, func(n *node, l life) bool { return n.addr == l.Addr })
}

// Mark implements store.Origin.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	all, m, err := s.marks(ctx)
	if err == nil && m.Identity != "" {
		s.tell(ctx, all[0].marked, all)
	}
	return m, err
}

// tell brings to the other servers what the first one has. What fails is seen again the next time. If the mark is another by now,
// who changes it comes after us.
func (s *Store) tell(ctx context.Context, m *marked, all []seen) {
	for i, is := range all {
		if i > 0 && is.err == nil && is.raw != m.raw {
			_, _ = s.put(ctx, i, is, m)
		}
	}
}

// put replaces a server's mark, if that is still was; where it has none, if it lives the life that m says. All of it is asked on
// the connection that brings the mark, since a restart ends that, and begins to count anew what cas is compared with.
func (s *Store) put(ctx context.Context, at int, was seen, m *marked) (done bool, err error) {
	n, it := s.nodes[at], &item{data: []byte(m.raw)}
	err = n.do(ctx, false, func(c *conn) error {
		c.ask("gets", s.markName())
		found, err := c.values(maxMark, s.markName())
		if err != nil {
			return err
		}
		var line string
		switch is := found[0]; {
		case is != nil && was.item != nil && string(is.data) == was.raw:
			line, err = c.store("cas", s.markName(), it, 0, is.cas)
		case is == nil && was.item == nil:
			var now life
			if now, err = c.life(n.addr); err == nil && now == m.Servers[at] {
				line, err = c.store("add", s.markName(), it, 0)
			}
		}
		done = line == "STORED"
		return err
	})
	return done, err
}

// SwapMark implements store.Origin. It is done when the first server has it; a server that does not answer gets it when it does.
// But an identity is given only where all are there.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	all, is, err := s.marks(ctx)
	if err != nil {
		return err
	}
	if is != old {
		return store.ErrConflict
	}
	m := &marked{Mark: next, Servers: all[0].Servers}
	if old.Identity == "" {
		m.Servers = nil
		for i, n := range s.nodes {
			now, err := n.life(ctx)
			if err = cmp.Or(all[i].err, err); err != nil {
				return fmt.Errorf("mark: server %s: %w", n.addr, err)
			}
			m.Servers = append(m.Servers, now)
		}
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > maxMark {
		return fmt.Errorf("store/memcached: mark: %w: it cannot be written", store.ErrInvalid)
	}
	m.raw = string(b)
	if done, err := s.put(ctx, 0, all[0], m); err != nil {
		return err
	} else if !done {
		return store.ErrConflict
	}
	s.tell(ctx, m, all)
	return nil
}

// Under implements store.Origin. That the mark is still m is seen when what is to be replaced is read, not at the moment of the
// write: between the two there is one more packet.
func (s *Store) Under(m store.Mark) store.Store {
	if u := s.view.Load(); u != nil && u.mark == m {
		return u
	}
	u := &under{Store: s, mark: m, written: want{m, true}}
	if m.Identity != "" {
		u.read = &want{m, false}
	}
	s.view.Store(u)
	return u
}

// under is a store with a mark that its operations were begun under.
type under struct {
	*Store
	mark    store.Mark
	read    *want // nil: any origin is as good
	written want
}

func (u *under) Load(ctx context.Context, key string) (store.Record, error) {
	return u.load(ctx, key, u.read, false)
}

func (u *under) Inspect(ctx context.Context, key string) (store.Record, error) {
	return u.load(ctx, key, u.read, true)
}

func (u *under) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.save(ctx, key, rec, cond, &u.written)
}

func (u *under) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.touch(ctx, key, expires, &u.written)
}

func (u *under) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return u.remove(ctx, key, cond, &u.written)
}

// Close does nothing: the store is closed by who has opened it.
func (*under) Close() error { return nil }
