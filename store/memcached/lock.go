package memcached

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// The locks are those of the session handlers. php-memcached's is an item that who wants the lock adds, whatever is in it, so our
// token is. php-memcache counts: who makes it 1 has the lock, who makes it more has not, and 0 is free. So ours is a number that
// is far from both, made of the token, and the token itself lies in an item of our own beside it.

const (
	lockBefore = "lock." // php-memcached: before the session's id
	lockBehind = ".lock" // php-memcache: behind it

	countBits = 23 // below the number that is the token's: what those add who wait
)

// isLock reports whether a session's id is that of a lock.
func (s *Store) isLock(key string) bool {
	switch s.opt.Client {
	case PHPMemcached:
		return strings.HasPrefix(key, lockBefore)
	case PHPMemcache:
		return strings.HasSuffix(key, lockBehind)
	}
	return false
}

// lockAt returns the name of a session's lock, and where it lies: php-memcached chooses by the name of the lock, php-memcache by
// that of the session.
func (s *Store) lockAt(key string) (n *node, name string, err error) {
	if s.opt.Client == Object {
		return nil, "", fmt.Errorf("store/memcached: a handler of a site's own: its locks are not known: %w", errors.ErrUnsupported)
	}
	if _, err := s.name(key); err != nil {
		return nil, "", err
	}
	if s.opt.Client == PHPMemcached {
		return s.nodes[s.places(lockBefore + key)[0]], s.opt.Prefix + lockBefore + key, nil
	}
	return s.nodes[s.places(key)[0]], s.opt.Prefix + key + lockBehind, nil
}

// tokenName is where the token of a counting lock lies.
func (s *Store) tokenName(key string) string { return reserved + "lock:" + s.opt.Prefix + key }

// lockValue is what a lock of ours holds.
func (s *Store) lockValue(token string) []byte {
	if s.opt.Client == PHPMemcached {
		return []byte(token)
	}
	sum := sha1.Sum([]byte(token))
	n := binary.BigEndian.Uint64(sum[:])>>(countBits+1) | 1 // never 0, and it fits into 63 bits
	return strconv.AppendUint(nil, n<<countBits, 10)
}

// counted reads a counting lock: by whom it is held, 0 for nobody we know, and whether it is held at all.
func counted(it *item) (by uint64, held bool) {
	n, err := strconv.ParseUint(strings.TrimRight(string(it.data), " "), 10, 64) // memcached pads what gets shorter
	return n >> countBits, err != nil || n > 0
}

// heldBy reports whether a lock is held, and by token.
func (s *Store) heldBy(it *item, token string) (held, ours bool) {
	if it == nil {
		return false, false
	}
	if s.opt.Client == PHPMemcached {
		return true, string(it.data) == token
	}
	by, held := counted(it)
	mine, _ := counted(&item{data: s.lockValue(token)})
	return held, held && by == mine
}

// pollFirst and pollMost are how long a locker waits before it asks again: nobody tells him.
const pollFirst, pollMost = 5 * time.Millisecond, 100 * time.Millisecond

// Lock implements store.Store. The lock ends up to two seconds later than life says, since memcached counts whole ones.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	n, name, err := s.lockAt(key)
	if err != nil {
		return err
	}
	until, err := seconds(time.Now().Add(life))
	if err != nil || len(token) > n.opt.MaxValue {
		return fmt.Errorf("store/memcached: %w: no such lock is possible", store.ErrInvalid)
	}
	if err := store.Gone(ctx); err != nil {
		return err
	}
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		took, err := s.tryLock(ctx, n, name, key, token, until)
		if took || err != nil {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return store.ErrLocked
		}
	}
}

func (s *Store) tryLock(ctx context.Context, n *node, name, key, token string, life int64) (took bool, err error) {
	// Who asks has to know whether he has it, be his patience at its end meanwhile.
	bounded, cancel := s.begin(context.WithoutCancel(ctx))
	defer cancel()
	lock := &item{data: s.lockValue(token)}
	if s.opt.Client == PHPMemcached {
		took, err = n.swap(bounded, name, nil, lock, life)
	} else {
		var was *item
		if was, err = n.get(bounded, s, name, nil, false); err == nil {
			if held, _ := s.heldBy(was, token); !held {
				took, err = n.swap(bounded, name, was, lock, life)
			}
		}
		if took {
			err = unsure(n.set(bounded, s.tokenName(key), &item{data: []byte(token)}, life))
		}
	}
	return took, err
}

// Unlock implements store.Store.
func (s *Store) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	n, name, err := s.lockAt(key)
	if err != nil {
		return false, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	for {
		lock, err := n.get(ctx, s, name, nil, false)
		if err != nil {
			return false, err
		}
		if _, ours := s.heldBy(lock, token); !ours {
			return false, nil
		}
		// Those who wait for a counting lock change it.
		if done, err := n.swap(ctx, name, lock, nil, 0); done || err != nil {
			return done, err
		}
	}
}

// LockHolder implements store.Store. A lock that the client took without us has no token; it is called by the client's name.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	n, name, err := s.lockAt(key)
	if err != nil {
		return "", 0, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	lock, err := n.get(ctx, s, name, nil, true)
	if err != nil {
		return "", 0, err
	}
	if held, _ := s.heldBy(lock, ""); !held {
		return "", 0, nil
	}
	left = time.Duration(max(lock.left, 0)) * time.Second
	if s.opt.Client == PHPMemcached {
		return string(lock.data), left, nil
	}
	by, err := n.get(ctx, s, s.tokenName(key), nil, false)
	if err != nil {
		return "", 0, err
	}
	if by != nil {
		if _, ours := s.heldBy(lock, string(by.data)); ours {
			return string(by.data), left, nil
		}
	}
	return string(s.opt.Client), left, nil
}
