package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sessile/sessile/store"
)

const firstPause, lastPause = 5 * time.Millisecond, 250 * time.Millisecond

// patienceOf is how long a store may take over a command: Hold, and 2 s where nothing is to be held.
func patienceOf(hold time.Duration) time.Duration {
	if hold < 0 {
		return 2 * time.Second
	}
	return hold
}

// wait runs f until the store answers, for at most as long as c is to be held. again says which errors may be tried once more.
func (s *Server) wait(c *conn, f func(ctx context.Context) error, again func(error) bool) error {
	// A store may hold an operation by itself, as the engine does while the target is away: it, too, does so for as
	// long as we say.
	ctx, cancel := context.WithTimeout(s.ctx, patienceOf(c.hold))
	defer cancel()
	err := f(ctx)
	if err == nil || !again(err) || errors.Is(err, errors.ErrUnsupported) || c.hold < 0 {
		return err
	}
	s.count.held.Add(1)
	c.io.flush() // earlier replies do not wait with this one
	for pause := firstPause; again(err) && sleep(ctx, pause); pause = min(2*pause, lastPause) {
		err = f(ctx)
	}
	return err
}

// sleep waits for half of d to one and a half, and reports false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d/2 + rand.N(d)):
		return true
	case <-ctx.Done():
		return false
	}
}

// read runs f, which reads. An unknown outcome does no harm to a read: it is tried again like any failure, and means
// in the end that nothing was done.
func read[T any](s *Server, c *conn, f func(ctx context.Context) (T, error)) (v T, err error) {
	err = s.wait(c, func(ctx context.Context) (err error) {
		v, err = f(ctx)
		return err
	}, store.Failed)
	if store.OutcomeOf(err) == store.OutcomeUnknown {
		err = fmt.Errorf("%w: read: %v", store.ErrUnavailable, err)
	}
	return v, err
}

// readable notes whether the site can be read. An application whose read fails and whose next write works logs its
// user out (clients.md, 9): see write.
func (s *Server) readable(err error) {
	switch {
	case err == nil, errors.Is(err, store.ErrAbsent):
		if s.blind.Load() {
			s.blind.Store(false)
		}
	case store.Failed(err) && !errors.Is(err, errors.ErrUnsupported):
		s.blind.Store(true)
	}
}

// write runs f, which writes id; what may have been executed is not run again. After a read of this site has failed, the
// key is read first.
func (s *Server) write(c *conn, id string, f func(ctx context.Context) error) error {
	return s.wait(c, func(ctx context.Context) error {
		if s.blind.Load() {
			_, err := s.site.Store.Load(ctx, id)
			if s.readable(err); store.Failed(err) {
				return fmt.Errorf("%w: it cannot be read: %v", store.ErrUnavailable, err)
			}
		}
		return f(ctx)
	}, unavailable)
}

func unavailable(err error) bool { return store.OutcomeOf(err) == store.OutcomeUnavailable }

// update is write, but it does nothing, and says nothing of it, where the session that c read was destroyed since. undo,
// where given, removes what f wrote in spite of a destroy at the same time.
func (s *Server) update(c *conn, id string, f, undo func(ctx context.Context) error) error {
	began, guarded := c.reads.last(id)
	if !guarded {
		return s.write(c, id, f)
	}
	dropped := false
	err := s.write(c, id, func(ctx context.Context) error {
		if dropped = s.destroyed.since(ctx, id, began); dropped {
			return nil
		}
		return f(ctx)
	})
	if dropped {
		s.count.dropped.Add(1)
	} else if undo != nil {
		s.overtaken(id, began, err, undo)
	}
	return err
}

// overtaken undoes a write that came to err, where a destroy of what was read at began has overtaken it.
func (s *Server) overtaken(id string, began uint64, err error, undo func(ctx context.Context) error) {
	maybe := err == nil || store.OutcomeOf(err) == store.OutcomeUnknown
	if maybe && s.destroyed.since(s.ctx, id, began) && undo(s.ctx) == nil {
		s.count.dropped.Add(1)
	}
}
