package cassandra

import (
	"context"
	"time"

	"github.com/sessile/sessile/store"
)

// Cassandra has no locks, and the applications that keep sessions in it take none. Ours are rows of a table of ours that end by
// themselves: they exclude those who come through a gateway, and nobody else.

func (c *cluster) lockName(key string) string { return "lock:" + c.opt.Table + ":" + key }

// pollFirst and pollMost are how long a locker waits before it asks again: nobody tells him.
const pollFirst, pollMost = 5 * time.Millisecond, 100 * time.Millisecond

// Lock implements store.Store. The lock ends up to two seconds later than life says, since Cassandra counts whole ones.
func (s *Store) Lock(ctx context.Context, key, token string, life time.Duration) error {
	if err := mayBe(key); err != nil {
		return err
	}
	if life <= 0 || len(token) > s.opt.MaxValue {
		return invalid("no such lock is possible")
	}
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		if err := store.Gone(ctx); err != nil {
			return err
		}
		took, err := s.tryLock(ctx, key, token, life)
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

func (s *Store) tryLock(ctx context.Context, key, token string, life time.Duration) (took bool, err error) {
	// Who asks has to know whether he has it, be his patience at its end meanwhile.
	ctx, cancel, c, err := s.begin(context.WithoutCancel(ctx), key)
	if err != nil {
		return false, err
	}
	defer cancel()
	name := c.lockName(key)
	if len(name) > maxKey {
		return false, invalid("no such lock is possible")
	}
	// A transaction is not begun for a lock that is held.
	is, err := c.note(ctx, name, s.opt.Consistency)
	if err != nil || is.value != nil {
		return false, err
	}
	took, _, err = c.putNote(ctx, "lock", is.node, name, lifetime(time.Now().Add(life)), nil, []byte(token))
	return took, err
}

// Unlock implements store.Store.
func (s *Store) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	if err := mayBe(key); err != nil {
		return false, err
	}
	ctx, cancel, c, err := s.begin(ctx, key)
	if err != nil {
		return false, err
	}
	defer cancel()
	for {
		held, sure, err := c.cas(ctx, "unlock", "", c.deleteNote, []byte(c.lockName(key)), []byte(token))
		switch {
		case err == nil:
			return held, nil
		case sure && c.missing(ctx, err):
			return false, nil
		case sure:
			return false, err
		}
		is, e := c.note(ctx, c.lockName(key), s.opt.Serial)
		switch {
		case e != nil:
			return false, err
		case is.value == nil || string(is.value) != token:
			return true, nil // it was ours, or had ended: nobody has it by that token now
		case !answered(err):
			return false, err
		}
	}
}

// LockHolder implements store.Store.
func (s *Store) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	if err := mayBe(key); err != nil {
		return "", 0, err
	}
	ctx, cancel, c, err := s.begin(ctx, key)
	if err != nil {
		return "", 0, err
	}
	defer cancel()
	is, err := c.note(ctx, c.lockName(key), s.opt.Serial)
	return string(is.value), time.Duration(is.life) * time.Second, err
}
