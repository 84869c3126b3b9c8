package gateway

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"

	"github.com/sessile/sessile/store"
)

// critical says which writes are answered only when the replicas have them, too: those that a user would notice the loss
// of. The first write of a session is a login, or leads to one; a delete is a logout.
type critical struct{ create, destroy, all bool }

// parseCritical reads Site.Critical.
func parseCritical(text string) (c critical, err error) {
	for word := range strings.SplitSeq(text, ",") {
		switch strings.TrimSpace(word) {
		case "create":
			c.create = true
		case "delete":
			c.destroy = true
		case "all":
			c = critical{true, true, true}
		case "", "none":
		default:
			return c, fmt.Errorf("critical: %q is none of create, delete, all, none", word)
		}
	}
	return c, nil
}

// mark returns ctx as it is for a write that makes or changes the session.
func (s *Server) mark(ctx context.Context, id string) context.Context {
	if s.isCritical(id) {
		return store.Replicated(ctx)
	}
	return ctx
}

func (s *Server) isCritical(id string) bool {
	return s.critical.all || s.critical.create && !s.known.has(id)
}

// sightings remembers which sessions there were lately: what writes one of them is not its first write. A session that was
// not seen for long is written like a new one, which costs it a millisecond.
type sightings struct {
	seed maphash.Seed
	off  bool

	mu       sync.Mutex // guards the maps: what was seen last is in now
	now, old map[uint64]struct{}
}

const maxSightings = 1 << 16

func (k *sightings) has(id string) bool {
	h := maphash.String(k.seed, id)
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.now[h]; ok {
		return true
	}
	_, ok := k.old[h]
	return ok
}

func (k *sightings) note(id string) {
	if k.off {
		return
	}
	h := maphash.String(k.seed, id)
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.now[h]; ok {
		return
	}
	if k.now == nil || len(k.now) >= maxSightings {
		k.now, k.old = make(map[uint64]struct{}), k.now
	}
	k.now[h] = struct{}{}
}

func (k *sightings) forget(id string) {
	if k.off {
		return
	}
	h := maphash.String(k.seed, id)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.now, h)
	delete(k.old, h)
}
