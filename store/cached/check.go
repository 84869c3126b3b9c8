package cached

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sessile/sessile/store"
)

// Audit implements store.Auditor, as far as the table does: who uses the cache alone cannot be seen.
func (s *Store) Audit(ctx context.Context) (store.Audit, error) {
	if t, ok := s.table.(store.Auditor); ok {
		return t.Audit(ctx)
	}
	return store.Audit{Blind: "this origin's server cannot say who uses it"}, nil
}

// Canary implements store.Prover.
func (s *Store) Canary() (key string, data []byte) {
	if t, ok := s.table.(store.Prover); ok {
		return t.Canary()
	}
	return "sessile-canary", []byte("canary")
}

// sampled is how many sessions of each part are looked for in the other.
const sampled = 1000

// compared is what a sample came to.
type compared struct {
	table, missing                 int // sessions of the table; which the cache lacks
	cache, elsewhere, alone        int // names in the cache; that are not found there; whose session the table lacks
	both, differ, cacheIs, tableIs int // in both; with other contents, of which the cache's, the table's, ends later
	unread                         int // in the cache, and no session's value
	longer, endless                int // with the same contents, and the cache's ends later by more than slack, or never
}

// slack is how far apart the ends of two copies may be that were written one after the other.
const slack = time.Minute

// Check implements store.Checker: what the table is, and how far the cache agrees with it.
func (s *Store) Check(ctx context.Context) (f store.Findings, err error) {
	if t, ok := s.table.(store.Checker); ok {
		if f, err = t.Check(ctx); err != nil {
			return f, err
		}
	}
	f.Facts = append(f.Facts, "behind a cache: the table answers; what is written or destroyed is removed from the cache")
	f.Require = append(f.Require,
		"every handler writes the table with every write, so that the cache never has what the table lacks",
		"cache servers are reached directly, not through a proxy: one that refuses connections is taken for one that has lost its memory")
	f.Advice = append(f.Advice,
		"while a server of the cache does not answer, and does not refuse connections either, its sessions can be read and not written: "+
			"what it has kept would be stale when it is back. Stop it, and start it empty; where that cannot be done take it out of every list, here and in the handlers'",
		"once nobody but the gateways uses the origin (the lock-out), the table alone is as good an origin; before handlers of the application "+
			"are used again, after a way back, the cache then has to be flushed")
	if c, ok := s.cache.(interface {
		Outliving(ctx context.Context) ([]string, error)
	}); ok {
		addrs, err := c.Outliving(ctx)
		if err != nil {
			return f, err
		}
		for _, addr := range addrs {
			f.Against = append(f.Against, addr+": it keeps its memory in a file (-e), and has again after a restart what was written or destroyed meanwhile, as it was before: start it without")
		}
	}
	c, err := s.compare(ctx)
	if err != nil {
		return f, err
	}
	c.report(&f)
	return f, nil
}

// compare looks for sessions of each part in the other.
func (s *Store) compare(ctx context.Context) (c compared, err error) {
	page, err := s.table.Scan(ctx, "", sampled)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	if err != nil {
		return c, err
	}
	for _, key := range page.Keys {
		switch there, err := c.look(ctx, s, key); {
		case err != nil:
			return c, err
		case there&inTable != 0:
			if c.table++; there&inCache == 0 {
				c.missing++
			}
		}
	}
	keys, err := s.someOfCache(ctx)
	if err != nil {
		return c, err
	}
	for _, key := range keys {
		there, err := c.look(ctx, s, key)
		if err != nil {
			return c, err
		}
		switch c.cache++; {
		case there&inCache == 0:
			c.elsewhere++
		case there&inTable == 0:
			c.alone++
		}
	}
	return c, nil
}

func (s *Store) someOfCache(ctx context.Context) ([]string, error) {
	if c, ok := s.cache.(interface {
		Some(ctx context.Context, n int) ([]string, error)
	}); ok {
		return c.Some(ctx, sampled)
	}
	page, err := s.cache.Scan(ctx, "", sampled)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return page.Keys, err
}

const (
	inTable = 1 << iota
	inCache
)

// look compares one session; twice where the parts differ, since a handler may be between its two writes.
func (c *compared) look(ctx context.Context, s *Store, key string) (there int, err error) {
	for try := 0; ; try++ {
		there = 0
		inC, cerr := s.cache.Load(ctx, key)
		inT, terr := s.table.Inspect(ctx, key)
		for _, err := range []error{cerr, terr} {
			if err != nil && store.Failed(err) {
				return 0, err
			}
		}
		if terr == nil {
			there |= inTable
		}
		refused := (*store.RefusedError)(nil)
		if cerr == nil || errors.As(cerr, &refused) {
			there |= inCache
		}
		differ := there == inTable|inCache && (cerr != nil || inC.Version() != inT.Version())
		if (differ || there == inCache) && try == 0 {
			continue
		}
		if there != inTable|inCache {
			return there, nil
		}
		if c.both++; cerr != nil {
			c.unread++
			return there, nil
		}
		if differ {
			c.differ++
		}
		aged, err := s.cache.Inspect(ctx, key)
		switch later := aged.Expires.Sub(inT.Expires); {
		case errors.As(err, &refused):
			c.endless++
		case err != nil && store.Failed(err):
			return 0, err
		case err != nil: // it has ended meanwhile
		case differ && later > 0:
			c.cacheIs++
		case differ:
			c.tableIs++
		case later > slack:
			c.longer++
		}
		return there, nil
	}
}

// many is how large a part of a sample is no coincidence any more.
func many(n, of int) bool { return n > of/20 }

func (c *compared) report(f *store.Findings) {
	f.Facts = append(f.Facts, fmt.Sprintf("of %d sampled sessions of the table %d are in the cache; of %d in both %d have other contents in the cache (in %d the cache's ends later, "+
		"in %d the table's); of %d sampled of the cache the table lacks %d", c.table, c.table-c.missing, c.both, c.differ, c.cacheIs, c.tableIs, c.cache, c.alone))
	settings := "client=, distribution=, prefix=, or the names or the order of the servers are not those of the handler"
	switch {
	case many(c.elsewhere, c.cache):
		f.Against = append(f.Against, fmt.Sprintf("%d of %d sampled names in the cache are not where the handler would look for them: %s", c.elsewhere, c.cache, settings))
	case c.table > 20 && c.missing == c.table:
		f.Against = append(f.Against, "the cache has none of the table's sessions: "+settings+". Or is it not used?")
	}
	if many(c.unread, c.both) {
		f.Advice = append(f.Advice, fmt.Sprintf("%d of %d sampled sessions are no strings in the cache", c.unread, c.both))
	}
	if many(c.longer, c.both) {
		f.Against = append(f.Against, fmt.Sprintf("%d of %d sampled sessions end later in the cache than the table says, and a page that is loaded until then finds them there: they would end "+
			"sooner here. Say the longer lifetime= of both, if the handler writes the time into the table with every page; make it do so, if it moves the time in the cache alone", c.longer, c.both))
	}
	if c.endless > 0 {
		f.Advice = append(f.Advice, fmt.Sprintf("%d of %d sampled sessions never end in the cache: here, and in the target, they end as the table says", c.endless, c.both))
	}
	switch {
	case many(c.alone, c.cache-c.elsewhere), many(c.cacheIs, c.both):
		f.Against = append(f.Against, "the cache has sessions that the table lacks, or has older: the handler does not write the table with every write. "+
			"Make it do so before the move (a version of it that writes both, for as long as a session lives)")
	case c.alone > 0 || c.differ > 0:
		f.Advice = append(f.Advice, "where they differ the table is right: a stale copy is left from when a server was away, or a reader put it back; users of the handler see it as it is, "+
			"users of the gateway do not")
	}
}
