package cassandra

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

// What we keep beside the sessions lies in a table of ours, in their keyspace: the mark of each table of sessions, and the locks.
// What was deleted there need not be remembered for longer than a lock lives.
const (
	ours     = "sessile"
	oursIs   = "(name blob PRIMARY KEY, value blob, nonce blob)"
	oursWith = " AND gc_grace_seconds = 86400"
)

// createOurs makes that table.
func (c *cluster) createOurs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return c.create(ctx, ours, oursIs, oursWith)
}

// missing reports whether an error is that there is no table of ours.
func (c *cluster) missing(ctx context.Context, err error) bool {
	var said *gocql.RequestErrInvalid
	if !errors.As(err, &said) {
		return false
	}
	columns, err := c.columns(ctx, ours)
	return err == nil && len(columns) == 0
}

// note is a row of that table.
type note struct {
	value []byte // nil: none
	nonce []byte
	life  int
	node  string // that has answered
}

func (c *cluster) note(ctx context.Context, name string, level gocql.Consistency) (n note, err error) {
	var value *[]byte
	var life *int
	n.node, err = c.one(ctx, level, []any{&value, &life, &n.nonce}, c.selectNote, []byte(name))
	if err != nil {
		if c.missing(ctx, err) {
			return n, nil
		}
		return n, failure(ctx, "table "+ours, err)
	}
	if value != nil {
		n.value = append([]byte{}, *value...)
	}
	if life != nil {
		n.life = *life
	}
	return n, nil
}

func (c *cluster) markName() string { return "mark:" + c.opt.Table }

// encode writes a mark as it is compared: nil is the zero Mark.
func encode(m store.Mark) ([]byte, error) {
	if m == (store.Mark{}) {
		return nil, nil
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > 64<<10 {
		return nil, invalid("such a mark cannot be written")
	}
	return b, nil
}

// Mark implements store.Origin.
func (s *Store) Mark(ctx context.Context) (store.Mark, error) { return s.markAt(ctx, s.opt.Serial) }

func (s *Store) markAt(ctx context.Context, level gocql.Consistency) (m store.Mark, err error) {
	ctx, cancel, c, err := s.begin(ctx, "mark")
	if err != nil {
		return m, err
	}
	defer cancel()
	n, err := c.note(ctx, c.markName(), level)
	if err != nil || n.value == nil {
		return m, err
	}
	if err := json.Unmarshal(n.value, &m); err != nil {
		return store.Mark{}, fmt.Errorf("store/cassandra: %w: the mark in %s cannot be read: is it a newer version's?", store.ErrUnavailable, ours)
	}
	return m, nil
}

// SwapMark implements store.Origin.
func (s *Store) SwapMark(ctx context.Context, old, next store.Mark) error {
	was, err := encode(old)
	if err != nil {
		return err
	}
	to, err := encode(next)
	if err != nil {
		return err
	}
	ctx, cancel, c, err := s.begin(ctx, "mark")
	if err != nil {
		return err
	}
	defer cancel()
	for {
		done, again, err := c.putNote(ctx, "mark", "", c.markName(), 0, was, to)
		switch {
		case err != nil:
			return err
		case done:
			return nil
		case !again:
			return store.ErrConflict
		}
	}
}

// putNote replaces a note by another one, which lives for so many seconds; 0: for good. It may be tried again where certainly
// nothing was done, and that not because another note is there.
func (c *cluster) putNote(ctx context.Context, what, node, name string, life int, was, to []byte) (done, again bool, err error) {
	nonce := []byte(rand.Text())
	done, sure, err := c.cas(ctx, what, node, c.updateNote, life, null(to), nonce, []byte(name), null(was))
	switch {
	case err == nil:
		return done, false, nil
	case sure && c.missing(ctx, err):
		return false, true, c.createOurs(ctx)
	case sure:
		return false, false, err
	}
	is, e := c.note(ctx, name, c.opt.Serial)
	switch {
	case e == nil && string(is.nonce) == string(nonce):
		return true, false, nil
	case e == nil && (is.value == nil) == (was == nil) && string(is.value) == string(was) && answered(err):
		return false, true, nil
	}
	return false, false, err
}

// still answers ErrSealed where the mark is not m.
func (c *cluster) still(ctx context.Context, m *store.Mark) error {
	want, err := encode(*m)
	if err != nil {
		return err
	}
	n, err := c.note(ctx, c.markName(), c.opt.Consistency)
	if err == nil && string(n.value) != string(want) {
		err = fmt.Errorf("store/cassandra: %w", store.ErrSealed)
	}
	return err
}

// Under implements store.Origin. That the mark is still m is seen when what is to be replaced is read, not at the moment of the
// write, which comes within the operation's bound after that. Whether this is still the origin is asked behind every read that
// finds nothing.
func (s *Store) Under(m store.Mark) store.Store { return under{s, m} }

type under struct {
	*Store
	mark store.Mark
}

func (u under) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	return u.save(ctx, key, rec, cond, &u.mark)
}

func (u under) Touch(ctx context.Context, key string, expires time.Time) error {
	return u.touch(ctx, key, expires, &u.mark)
}

func (u under) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	return u.remove(ctx, key, cond, &u.mark)
}

func (u under) Load(ctx context.Context, key string) (store.Record, error) {
	rec, err := u.Store.Load(ctx, key)
	return rec, u.known(ctx, err)
}

func (u under) Inspect(ctx context.Context, key string) (store.Record, error) {
	rec, err := u.Store.Inspect(ctx, key)
	return rec, u.known(ctx, err)
}

func (u under) InspectAll(ctx context.Context, keys []string) ([]*store.Record, error) {
	all, err := u.Store.InspectAll(ctx, keys)
	if err == nil && slices.Contains(all, nil) {
		if err = u.known(ctx, store.ErrAbsent); errors.Is(err, store.ErrAbsent) {
			err = nil
		}
	}
	return all, err
}

// known answers ErrSealed instead of ErrAbsent where this is not the origin of that identity (any more): truncated, or made anew.
func (u under) known(ctx context.Context, err error) error {
	if u.mark.Identity == "" || !errors.Is(err, store.ErrAbsent) {
		return err
	}
	if m, e := u.markAt(ctx, u.opt.Consistency); e != nil {
		return e
	} else if m.Identity != u.mark.Identity {
		return fmt.Errorf("store/cassandra: %w: this origin, or its memory, is another one", store.ErrSealed)
	}
	return err
}

// Close does nothing: the store is closed by who has opened it.
func (under) Close() error { return nil }
