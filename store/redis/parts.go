package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// A part is what a script that does the same many times (lua/part/each.lua) is told for one time. Its names are all of one
// slot.
type part struct{ names, args []string }

// A call has up to so many parts and about so many bytes: a script holds everybody else up, and that much takes the server
// about a millisecond.
const (
	batchEntries = 250
	batchBytes   = 512 << 10
)

// parts calls a script of parts, and answered for each of them with its place and the item that the script answers. It goes
// on to the end where answered, which is called by one goroutine at a time, returns an error, and returns the first one.
//
// In a Cluster parts of all slots that a server has go in one call. None of their names is declared, since those of a command
// have to be of one slot. What lies in a slot that is being moved the script leaves (moved): that is done part by part,
// with the names declared, so that the servers see to it that all are in one place.
func (s *Store) parts(ctx context.Context, op string, lost error, sc *script, common []string, parts []part, answered func(i int, m *rueidis.RedisMessage) error) error {
	var mu sync.Mutex // guards first, moved, and answered
	var first error
	var moved []int
	took := func(i int, m *rueidis.RedisMessage) {
		mu.Lock()
		defer mu.Unlock()
		if n, err := m.AsInt64(); err == nil && n == partMoved {
			moved = append(moved, i)
			return
		}
		first = cmp.Or(first, answered(i, m))
	}
	failed := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		first = cmp.Or(first, err)
	}
	left := make([]int, len(parts))
	for i := range left {
		left[i] = i
	}
	for try := 0; len(left) > 0; try++ {
		moved = nil
		if try > 0 && len(left) <= fewParts || try > 3 {
			s.oneByOne(ctx, op, lost, sc, common, parts, left, took, failed)
			if len(moved) > 0 && first == nil { // declared, and not all here
				first = fmt.Errorf("store/redis: %s: %w: %w", op, lost, errors.New("the slot is being moved"))
			}
			return first
		}
		if try > 0 {
			s.cluster.lookSoon()
			s.cluster.rest(ctx, s.cluster.patience(ctx), try)
		}
		if s.cluster != nil {
			split := s.cluster.splitSlots()
			left = slices.DeleteFunc(left, func(i int) bool {
				away := split[slotOf(parts[i].names[0])] != nil
				if away {
					failed(fmt.Errorf("store/redis: %s: %w: %w", op, store.ErrUnavailable, errSplit))
				}
				return away
			})
		}
		groups := s.groups(parts, left)
		var wg sync.WaitGroup
		for _, group := range groups {
			run := func() { s.inCalls(ctx, op, lost, sc, common, parts, group, took, failed) }
			if len(groups) == 1 {
				run()
			} else {
				wg.Go(run)
			}
		}
		wg.Wait()
		left = moved
	}
	return first
}

const (
	partMoved = -8 // lua/part/each.lua
	fewParts  = 32
)

// groups are the places of the parts that one server has the names of, as far as is known.
func (s *Store) groups(parts []part, left []int) (groups [][]int) {
	if s.cluster == nil {
		return [][]int{left}
	}
	of := map[*shard]int{}
	for _, i := range left {
		h := s.cluster.owner[slotOf(parts[i].names[0])].Load()
		g, ok := of[h]
		if !ok {
			g, of[h] = len(groups), len(groups)
			groups = append(groups, nil)
		}
		groups[g] = append(groups[g], i)
	}
	return groups
}

// inCalls is parts for a group.
func (s *Store) inCalls(ctx context.Context, op string, lost error, sc *script, common []string, parts []part, group []int, took func(int, *rueidis.RedisMessage), failed func(error)) {
	for len(group) > 0 {
		var names []string
		args, size, n := append([]string(nil), common...), 0, 0
		for ; n < len(group) && n < batchEntries && size < batchBytes; n++ {
			p := parts[group[n]]
			names, args = append(names, p.names...), append(args, p.args...)
			for _, a := range p.args {
				size += len(a)
			}
		}
		var r *reply
		if s.cluster == nil {
			r = s.callAt(ctx, op, lost, sc, "", names, args, nil, nil)
		} else {
			args = append(append(args, names...), fmt.Sprint(len(names)))
			r = s.callAt(ctx, op, lost, sc, names[0], nil, args, nil, nil)
		}
		done := min(n, len(r.items)-1)
		if r.err == nil && done < 1 {
			r.unreadable(fmt.Errorf("no answer for %d parts", n))
		}
		if r.err != nil {
			failed(r.err)
			return
		}
		for j := range done { // fewer than n, where the answer became too long
			took(group[j], &r.items[1+j])
		}
		group = group[done:]
	}
}

// oneByOne is parts where a call has only one.
func (s *Store) oneByOne(ctx context.Context, op string, lost error, sc *script, common []string, parts []part, left []int, took func(int, *rueidis.RedisMessage), failed func(error)) {
	turn := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for _, i := range left {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			args := append(append([]string(nil), common...), parts[i].args...)
			r := s.callAt(ctx, op, lost, sc, parts[i].names[0], parts[i].names, args, nil, nil)
			if r.err == nil && len(r.items) != 2 {
				r.unreadable(fmt.Errorf("%d answers for one part", len(r.items)-1))
			}
			if r.err != nil {
				failed(r.err)
				return
			}
			took(i, &r.items[1])
		})
	}
	wg.Wait()
}

// did reads the answer of a part that is a number, or says that nothing was done.
func did(m *rueidis.RedisMessage) (int, error) {
	n, err := m.AsInt64()
	if err != nil {
		return 0, err
	}
	return int(n), failures[n]
}

// queryOne calls a script of parts that writes nothing for one, and returns what it answers.
func (s *Store) queryOne(ctx context.Context, op string, sc *script, name string) *reply {
	return s.query(ctx, op, sc, []string{name}).sub(1)
}

// sub is a reply of the items that the i-th item is.
func (r *reply) sub(i int) *reply {
	one := *r
	one.items = one.list(i)
	return &one
}
