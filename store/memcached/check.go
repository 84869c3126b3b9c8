package memcached

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

func number(text string) (int64, error) { return strconv.ParseInt(text, 10, 64) }

// Check implements store.Checker.
func (s *Store) Check(ctx context.Context) (f store.Findings, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*s.opt.Timeout)
	defer cancel()
	f.Facts = []string{fmt.Sprintf("%d memcached servers, written by %s: sessions are items whose names begin with %q, distribution %s, %d on each session",
		len(s.nodes), s.opt.Client, s.opt.Prefix, s.opt.Distribution, s.opt.Copies)}
	f.Require = []string{
		"session.save_path and all settings of the handler are the same on every application server, and these servers are named here as they are there, in the same order",
		"every application server keeps all settings of its session handler but the address, until `complete`",
	}
	f.Advice = []string{
		"memcached may evict anything, the mark too in which origin and move find each other. It is read with every session, which keeps it, and what one server " +
			"has evicted it gets again from the first; where the first has, or where a server has been restarted or flushed, nobody is served before a person has decided " +
			"(`sessile migrate repair`): the sessions are gone from the origin, and the target may have them",
		"memcached compares the seal and writes in two steps, and executes late what lay in its socket while it stood still: what is written is bound to what was read, " +
			"so a write that is late changes nothing that has changed since; only one that made a session where there was none can be late",
	}
	for _, n := range s.nodes {
		if err := n.check(ctx, s, &f); err != nil {
			return f, err
		}
	}
	return f, s.checkSample(ctx, &f)
}

func (n *node) check(ctx context.Context, s *Store, f *store.Findings) error {
	is, err := n.stats(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", n.addr, err)
	}
	set, err := n.stats(ctx, "settings")
	if err != nil {
		return fmt.Errorf("%s: %w", n.addr, err)
	}
	slabs, err := n.stats(ctx, "slabs")
	if err != nil {
		return fmt.Errorf("%s: %w", n.addr, err)
	}
	get := func(name string) int64 {
		v, _ := number(is[name]) // 0: not known
		return v
	}
	version, used, most, evicted := is["version"], get("bytes"), get("limit_maxbytes"), get("evictions")
	f.Facts = append(f.Facts, fmt.Sprintf("%s: memcached %s, up %v, %d items, %d of %d bytes used, %d evicted",
		n.addr, version, time.Duration(get("uptime"))*time.Second, get("curr_items"), used, most, evicted))
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || major < 1 || major == 1 && minor < 6 {
		f.Against = append(f.Against, fmt.Sprintf("%s: memcached %s does not tell when a session ends: 1.6 or later is needed", n.addr, version))
	}
	if set["cas_enabled"] == "no" {
		f.Against = append(f.Against, n.addr+": cas is off (-C), without which no write can be bound to what it replaces")
	}
	if !s.opt.Unlisted && (set["dump_enabled"] == "no" || set["lru_crawler"] == "no") {
		f.Against = append(f.Against, n.addr+": it does not let its sessions be listed: start it without -X and without -o no_lru_crawler, or say listed=false: "+
			"then one lifetime= is waited for in sync")
	}
	if size, err := number(set["item_size_max"]); err == nil && size < int64(s.opt.MaxValue) {
		f.Advice = append(f.Advice, fmt.Sprintf("%s: items of more than %d bytes are refused (-I)", n.addr, size))
	}
	if evicted > 0 {
		f.Advice = append(f.Advice, fmt.Sprintf("%s: %d items were evicted since it started, without a word to anybody: users who were logged out, as without a move; give it more memory (-m)", n.addr, evicted))
	}
	if given, _ := number(slabs["total_malloced"]); given > most/10*9 { // by pages, each for items of one size
		f.Advice = append(f.Advice, fmt.Sprintf("%s: %d of %d bytes are given out, and items of a size of which no more fit are evicted: give it more memory (-m)", n.addr, given, most))
	}
	if set["evictions"] == "off" {
		f.Advice = append(f.Advice, n.addr+": it does not evict (-M): when it is full, nobody can log in")
	}
	return nil
}

// Outliving lists the servers whose memory outlives them: after a restart they have again what they had (-e).
func (s *Store) Outliving(ctx context.Context) (addrs []string, err error) {
	for _, n := range s.nodes {
		set, err := n.stats(ctx, "settings")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.addr, err)
		}
		if file := set["memory_file"]; file != "" && file != "(null)" {
			addrs = append(addrs, n.addr)
		}
	}
	return addrs, nil
}

// sampled is how many sessions of each server are looked at.
const sampled = 1000

// Some lists a few sessions of each server, up to n in all.
func (s *Store) Some(ctx context.Context, n int) (keys []string, err error) {
	if s.opt.Unlisted {
		return nil, nil
	}
	for i, node := range s.nodes {
		most := len(keys) + (n-len(keys))/(len(s.nodes)-i)
		err := node.walk(ctx, func(name string) bool {
			if key, why := s.key(name); why == "" && len(keys) < most {
				keys = append(keys, key)
			}
			return len(keys) < most
		})
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
	}
	return keys, nil
}

// checkSample looks where sessions lie, what is in their flags, and when they end.
func (s *Store) checkSample(ctx context.Context, f *store.Findings) error {
	if s.opt.Unlisted {
		return nil
	}
	var left []time.Duration
	total, elsewhere, flagged, refused, endless := 0, 0, 0, 0, 0
	for at, n := range s.nodes {
		var keys []string
		err := n.walk(ctx, func(name string) bool {
			if key, why := s.key(name); why == "" {
				keys = append(keys, key)
			}
			return len(keys) < sampled
		})
		if errors.Is(err, errors.ErrUnsupported) {
			continue // of which was said
		}
		if err != nil {
			return err
		}
		for _, key := range keys {
			total++
			if !slices.Contains(s.places(key), at) {
				elsewhere++
				continue
			}
			name, err := s.name(key)
			if err != nil {
				continue
			}
			it, err := n.get(ctx, s, name, nil, true)
			switch {
			case err != nil:
				return err
			case it == nil:
				continue
			case it.left == forever:
				endless++
			case it.left != unknown:
				left = append(left, time.Duration(it.left)*time.Second)
			}
			if rec, err := s.record(it); err != nil {
				refused++
			} else if rec.Flags != 0 {
				flagged++
			}
		}
	}
	if n := len(left); n > 0 {
		slices.Sort(left)
		f.Facts = append(f.Facts, fmt.Sprintf("deadlines: the first in %v, half of them within %v, the last in %v", left[0], left[n/2], left[n-1]))
	}
	of := fmt.Sprintf(" of %d sampled sessions ", total)
	if elsewhere > 0 {
		line := fmt.Sprint(elsewhere, of, "are not where ", s.opt.Client, " with distribution ", s.opt.Distribution, " looks for them")
		if elsewhere > total/20 {
			f.Against = append(f.Against, line+": client=, distribution=, hash=, weights=, the names or the order of the servers are not those of the handler")
		} else {
			f.Advice = append(f.Advice, line+": left over from when a server was away? They are nobody's sessions")
		}
	}
	if flagged > 0 {
		f.Advice = append(f.Advice, fmt.Sprint(flagged, of, "carry flags, which PHP's handlers do not give: Redis keeps them before the value of each of these, for good, so that only clients of the gateway can read them there"))
	}
	if refused > 0 {
		f.Advice = append(f.Advice, fmt.Sprint(refused, of, "cannot be read (too large, or compressed otherwise than their flags say), and are not moved"))
	}
	if endless > 0 {
		then := "are not moved: say how long a session lives that nobody uses (lifetime)"
		if s.opt.Lifetime > 0 {
			then = fmt.Sprintf("get one, %v from when they are copied", s.opt.Lifetime)
		}
		f.Advice = append(f.Advice, fmt.Sprint(endless, of, "have no deadline, and ", strings.TrimSpace(then)))
	}
	return nil
}
