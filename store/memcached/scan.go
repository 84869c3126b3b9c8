package memcached

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// memcached lists what it has by `lru_crawler metadump`, all of it at once, to one client at a time. We ask for `hash`, which goes through
// its hash table, where an item stays when it is written or used; `all` goes through lists by size and use, between which items move.
//
// So the servers are dumped, and the names are handed out by pages in the order of their bytes, each once, whatever number of
// servers has copies. The cursor is the dump's id and the last name: any gateway can go on with it, by another dump if it does not
// have that one. An older one would lack what has come since the scan began.

// A dump is what the servers had when they were asked.
type dump struct {
	id      string
	keys    []string // of sessions, sorted
	skipped map[string]int
}

// Scan implements store.Store.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	if s.opt.Unlisted {
		return page, fmt.Errorf("store/memcached: listed=false: %w", errors.ErrUnsupported)
	}
	id, last, ok := strings.Cut(cursor, ":")
	if cursor != "" && !ok {
		return page, fmt.Errorf("store/memcached: %w: no such cursor", store.ErrInvalid)
	}
	d := s.dumped.Load()
	if d == nil || d.id != id {
		if d, err = s.dump(ctx); err != nil {
			return page, err
		}
		page.Skipped = d.skipped
		s.dumped.Store(d)
	}
	from, found := slices.BinarySearch(d.keys, last)
	if found {
		from++
	}
	to := min(from+max(limit, 1), len(d.keys))
	page.Keys = slices.Clone(d.keys[from:to])
	if cursor == "" {
		page.Total = len(d.keys)
	}
	if to < len(d.keys) {
		page.Cursor = d.id + ":" + d.keys[to-1]
	} else {
		s.dumped.CompareAndSwap(d, nil) // it may be large
	}
	return page, nil
}

// dump lists all servers. A session that is on several of them, and only on some at a time, is on one at least when that is listed.
func (s *Store) dump(ctx context.Context) (*dump, error) {
	d := &dump{id: rand.Text(), skipped: map[string]int{}}
	for _, n := range s.nodes {
		if err := n.walk(ctx, func(name string) bool {
			if key, why := s.key(name); why == "" {
				d.keys = append(d.keys, key)
			} else {
				d.skipped[why]++
			}
			return true
		}); err != nil {
			return nil, err
		}
	}
	slices.Sort(d.keys)
	d.keys = slices.Compact(d.keys)
	return d, nil
}

// busyPause is how long we wait for somebody else's dump to end before we ask again.
const busyPause = 50 * time.Millisecond

// key returns the session's id of a name, or why it is none.
func (s *Store) key(name string) (key, why string) {
	key, ours := strings.CutPrefix(name, s.opt.Prefix)
	switch {
	case strings.HasPrefix(name, reserved):
		return "", "sessile"
	case !ours:
		return "", "another prefix"
	case s.isLock(key):
		return "", "lock"
	}
	if _, err := s.name(key); err != nil {
		return "", "no session's name"
	}
	return key, ""
}

// walk calls f with every name that a server has, until f answers false.
func (n *node) walk(ctx context.Context, f func(name string) bool) error {
	for how := "hash"; ; {
		err := n.metadump(ctx, how, f)
		var refused *answerError
		if !errors.As(err, &refused) {
			return err
		}
		switch {
		case strings.HasPrefix(refused.line, "BUSY"):
			select {
			case <-time.After(busyPause):
			case <-ctx.Done():
				return fmt.Errorf("store/memcached: %w: somebody else is listing the server all the time", store.ErrUnavailable)
			}
		case how == "hash" && strings.HasPrefix(refused.line, "BADCLASS"):
			how = "all" // an older version's
		default:
			return fmt.Errorf("store/memcached: %w: this server does not let its sessions be listed (%s): start it without -X and without "+
				"-o no_lru_crawler, or say listed=false", errors.ErrUnsupported, strconv.Quote(refused.line))
		}
	}
}

// metadump asks on a connection of its own: what was begun on it cannot be ended but by closing it.
func (n *node) metadump(ctx context.Context, how string, f func(name string) bool) error {
	c, err := n.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.ask("lru_crawler", "metadump", how)
	for started := false; ; started = true {
		if err := c.SetReadDeadline(time.Now().Add(n.opt.Timeout)); err != nil || ctx.Err() != nil {
			return fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, errors.Join(err, ctx.Err()))
		}
		line, err := c.line()
		var refused *answerError
		switch {
		case errors.As(err, &refused):
			return err
		case err != nil:
			return fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, err)
		case line == "END":
			return nil
		case !started && (strings.HasPrefix(line, "BUSY") || strings.HasPrefix(line, "BADCLASS")):
			return &answerError{line}
		}
		encoded, _, _ := strings.Cut(strings.TrimPrefix(line, "key="), " ")
		name, err := url.PathUnescape(encoded)
		if err != nil || !strings.HasPrefix(line, "key=") {
			return fmt.Errorf("store/memcached: %w: %w", store.ErrUnavailable, errForeign)
		}
		if !f(name) {
			return nil
		}
	}
}
