package redis

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// scanSlots lists a Cluster slot by slot, and each at one moment, on the server that has all of it then. So neither a slot that
// is moved meanwhile nor a failover makes it miss a key: wherever a slot is by then, it is listed once. A slot that is
// being moved is waited for.
//
// SCAN cannot do that. Its cursor is good for one server, and a slot that goes from one that comes late to one that was early
// is in neither's pages.
func (s *Store) scanSlots(ctx context.Context, cursor string, limit int) (page store.Page, err error) {
	at := slotCursor{width: 16}
	if cursor != "" {
		if err := at.parse(cursor); err != nil {
			return page, errCursor
		}
	}
	if at.scan != "" {
		return s.scanWide(ctx, at, limit)
	}
	end := min(at.slot+at.width, slotCount)
	parts := make([]part, end-at.slot)
	for i := range parts {
		parts[i] = part{emptyNames(at.slot + i), []string{fmt.Sprint(at.slot + i)}}
	}
	wide := end
	s.list(&page, 0, nil)
	err = s.parts(ctx, "scan", store.ErrUnavailable, slotsScript, []string{s.opt.Prefix}, parts, func(i int, m *rueidis.RedisMessage) error {
		if n, err := m.AsInt64(); err == nil {
			if n > 0 {
				wide = min(wide, at.slot+i)
			}
			return nil
		}
		items, err := m.ToArray()
		r := &reply{op: "scan", lost: store.ErrUnavailable, items: items}
		r.unreadable(err)
		var names []string
		for j := 1; j < len(items); j++ {
			names = append(names, r.text(j))
		}
		s.list(&page, int(r.int(0)), names)
		return r.err
	})
	if err != nil {
		return store.Page{}, err
	}
	next := slotCursor{slot: end, width: at.width}
	switch n := len(page.Keys); {
	case wide < end: // the slots behind it are listed once more
		next = slotCursor{slot: wide, width: at.width, scan: "0"}
	case n < limit/2:
		next.width = min(2*next.width, 1024)
	case n > limit:
		next.width = max(next.width/2, 1)
	}
	page.Cursor = next.String()
	return page, nil
}

// scanWide is for a slot that has very many keys, as under a prefix with a tag: they are listed by SCAN on their server,
// and from the beginning again where the slot is not there any more, or may have been elsewhere meanwhile.
func (s *Store) scanWide(ctx context.Context, at slotCursor, limit int) (page store.Page, err error) {
	name := emptyNames(at.slot)[0]
	memory := s.cluster.memory(at.slot)
	if at.scan == "0" {
		at.memory = memory
	}
	end := s.cluster.patience(ctx)
	for try := 0; ; try++ {
		here := at.memory == memory
		if here {
			page, here, err = s.scan(ctx, at.scan, limit, name)
		}
		if err != nil {
			return store.Page{}, err
		}
		if here && at.memory == s.cluster.memory(at.slot) {
			break
		}
		s.cluster.lookSoon()
		if !s.cluster.rest(ctx, end, try) {
			return store.Page{}, fmt.Errorf("store/redis: scan: %w: a slot is being moved", store.ErrUnavailable)
		}
		memory = s.cluster.memory(at.slot)
		at.scan, at.memory = "0", memory
	}
	page.Total = 0
	next := slotCursor{slot: at.slot + 1, width: at.width}
	if page.Cursor != "" {
		next = slotCursor{slot: at.slot, width: at.width, memory: at.memory, scan: page.Cursor}
	}
	page.Cursor = next.String()
	return page, nil
}

// emptyNames are names in a slot under which there is never anything. A command that has both is told TRYAGAIN as long as
// the slot is being moved, by whichever server; one that has one of them alone is not.
func emptyNames(slot int) []string {
	tag := slotTag(slot)
	return []string{nothing + tag + "1", nothing + tag + "2"}
}

const nothing = reserved + "nothing:"

// A slotCursor says where a scan goes on.
type slotCursor struct {
	slot, width int    // the next slots
	memory      uint64 // the server whose SCAN it is, where it is one
	scan        string
}

func (c slotCursor) String() string {
	switch {
	case c.slot >= slotCount:
		return ""
	case c.scan == "":
		return fmt.Sprintf("%d.%d", c.slot, c.width)
	}
	return fmt.Sprintf("%d.%d.%d.%s", c.slot, c.width, c.memory, c.scan)
}

func (c *slotCursor) parse(text string) error {
	f := strings.Split(text, ".")
	var err1, err2, err3, err4 error
	if len(f) != 2 && len(f) != 4 {
		return errCursor
	}
	c.slot, err1 = strconv.Atoi(f[0])
	c.width, err2 = strconv.Atoi(f[1])
	if len(f) == 4 {
		c.memory, err3 = strconv.ParseUint(f[2], 10, 64)
		_, err4 = strconv.ParseUint(f[3], 10, 64)
		c.scan = f[3]
	}
	if cmp.Or(err1, err2, err3, err4) != nil || c.slot < 0 || c.slot >= slotCount || c.width < 1 || c.width > 1024 {
		return errCursor
	}
	return nil
}
