// Package scsstore is for sites that have sessions of alexedwards/scs: its SessionManager on any store of Sessile (New), its records
// (Decode), and the way from it to Sessile's own sessions without anybody being logged out (Origin).
//
//	st, err := scsstore.New(redisStore, scsstore.Options{})
//	...
//	sessions := scs.New()
//	sessions.Store = st
//	sessions.ErrorFunc = scsstore.ErrorFunc(sessions.ErrorFunc)
//
// What lies in the store is byte for byte what scs has made: under the prefix "scs:session:" a Redis store goes on with the sessions
// of goredisstore and redisstore, and they with ours.
package scsstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
)

// Options of a Store. The zero value of a field is its default.
type Options struct {
	// Hash keeps sessions under the SHA-256 of their tokens, so that nobody can make a cookie of what he sees in the store. It is
	// what SessionManager.HashTokenInStore does, which has to be off then: sessions that were saved with that are found, and what
	// Iterate visits can be destroyed, which it cannot with that.
	Hash bool
	// Codec, where it is not nil, has Find read the deadline in each record and compare it with the clock, which SessionManager does
	// not. It is for stores that may hold records without a deadline of their own: goredisstore leaves some. It costs a second
	// decoding of every session that is found.
	Codec scs.Codec
	// Timeout bounds a Commit or a Delete. They do not end with the request: a logout must not depend on the client's staying
	// connected. The default is 3 s.
	Timeout time.Duration
}

// Store is an scs.CtxStore and an scs.IterableCtxStore on a store of Sessile. It is safe for concurrent use.
//
// A session that was logged out stays so: a request that has found it before saves nothing after, be the logout in another process.
// (Commit replaces a session that was found and creates one that was not. What is found is remembered until the request's context
// ends, and a while longer.) The same holds for the old token after RenewToken, and for sessions whose time has run out meanwhile.
// Such a Commit fails with an error that matches sessile.ErrGone; see ErrorFunc.
//
// What remains is what scs' interface does not allow to mend:
//
//   - Of two requests that change one session at the same time the later one wins, and what the other one has changed is lost: scs
//     writes whole sessions. With IdleTimeout every request is one that writes.
//   - RenewToken deletes the old session at once and saves the new one when the response begins. Who asks for it between is logged out,
//     and so is everybody whose new one cannot be saved, or who is not there any more to be told its token.
//   - Beyond 65536 requests under way at once, or where sessions are found under contexts that never end, only some eight thousand of them
//     are remembered. One that is forgotten counts as new.
//   - A process that uses the same records with another store (a site half-way through a deployment) may still bring sessions back.
//
// The sessions of package sessile lose no change, and renew in one step; Origin leads there.
type Store struct {
	st      store.Store
	opt     Options
	load    func(ctx context.Context, key string) (store.Record, error)
	inspect func(ctx context.Context, keys []string) ([]*store.Record, error)
	known   known
}

var (
	_ scs.CtxStore         = (*Store)(nil)
	_ scs.IterableStore    = (*Store)(nil)
	_ scs.IterableCtxStore = (*Store)(nil)
)

// New returns a store for scs' sessions in st, which stays the caller's to close, as does its prefix. It does not ask st.
func New(st store.Store, opt Options) (*Store, error) {
	c := st.Capabilities()
	switch {
	case !c.Conditional:
		return nil, errors.New("adapters/scs: the store cannot write conditionally, so that a session that was destroyed could come back")
	case c.Ageless && !c.NativeTTL && opt.Codec == nil:
		return nil, errors.New("adapters/scs: the store does not know when a record ends, and without Options.Codec nobody else does")
	case opt.Timeout < 0:
		return nil, errors.New("adapters/scs: Timeout is negative")
	case opt.Timeout == 0:
		opt.Timeout = 3 * time.Second
	}
	s := &Store{st: st, opt: opt, load: st.Load, inspect: oneByOne(st)}
	if c.LazyExpiry { // its overdue records are live to it, and Load need not say that they are overdue
		s.load = st.Inspect
	}
	if bulk, ok := st.(store.BulkReader); ok {
		s.inspect = func(ctx context.Context, keys []string) ([]*store.Record, error) {
			recs, err := bulk.InspectAll(ctx, keys)
			if err != nil && !store.Failed(err) {
				return oneByOne(st)(ctx, keys)
			}
			return recs, err
		}
	}
	return s, nil
}

// tokens are 32 random bytes in base64 without padding, as scs makes them; its hashes look the same.
const tokenLen = 43

// strict refuses bits behind the last byte: there is one way to write a token.
var strict = base64.RawURLEncoding.Strict()

// valid reports whether token has the form of one. It comes out of a cookie, where anything may stand; nothing else is asked for.
func valid(token string) bool {
	if len(token) != tokenLen || strings.ContainsAny(token, "\r\n") { // which base64 skips
		return false
	}
	_, err := strict.DecodeString(token)
	return err == nil
}

// listed begins the names that All gives to sessions whose tokens nobody knows. It is no part of any token, so that Find
// refuses it: a key that somebody has seen in the store does not make a cookie.
const listed = "sha256:"

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// key returns the key of token's session, "" where it is none. wasListed: the token is no token but a name from All.
func (s *Store) key(token string) (key string, wasListed bool) {
	if s.opt.Hash {
		if name, ok := strings.CutPrefix(token, listed); ok && valid(name) {
			return name, true
		}
	}
	switch {
	case !valid(token):
		return "", false
	case s.opt.Hash:
		return hash(token), false
	}
	return token, false
}

// over reports whether a record's time has run out, as far as that can be known.
func (s *Store) over(rec store.Record) (bool, error) {
	now := time.Now()
	if !rec.Expires.IsZero() && !rec.Expires.After(now) {
		return true, nil
	}
	if s.opt.Codec == nil {
		return false, nil
	}
	deadline, _, err := Decode(s.opt.Codec, rec.Data)
	return err == nil && !deadline.After(now), err
}

// FindCtx returns the session of token. A token that has not the form of one is not looked up. found is false only where there is no such
// session, or where its time is over; what could not be asked for is an error, of the classes of package store.
func (s *Store) FindCtx(ctx context.Context, token string) (b []byte, found bool, err error) {
	key, wasListed := s.key(token)
	if key == "" || wasListed {
		return nil, false, nil
	}
	rec, err := s.load(ctx, key)
	var refused *store.RefusedError
	switch {
	case errors.Is(err, store.ErrAbsent), errors.Is(err, store.ErrInvalid) && !errors.As(err, &refused): // nothing can lie under such a key
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("adapters/scs: find: %w", err)
	}
	if over, err := s.over(rec); over || err != nil {
		return nil, false, err
	}
	s.known.add(ctx, key)
	return rec.Data, true, nil
}

// detached is a context of a request without its end.
func (s *Store) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.opt.Timeout)
}

// CommitCtx saves a session: one that was found only where it still is, one that was not found only where there is none. Where the session
// has gone meanwhile it saves nothing and answers an error that matches sessile.ErrGone and store.ErrConflict. An expiry that has passed
// ends the session. Where ctx has ended nothing is created: nobody would hear of the token.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	key, wasListed := s.key(token)
	if key == "" {
		return fmt.Errorf("adapters/scs: commit: %w: not a token of scs", store.ErrInvalid)
	}
	if err := s.save(ctx, key, wasListed, store.Record{Data: b, Expires: expiry}); err != nil {
		return fmt.Errorf("adapters/scs: commit: %w", err)
	}
	return nil
}

func (s *Store) save(asked context.Context, key string, wasListed bool, rec store.Record) error {
	ctx, cancel := s.detached(asked)
	defer cancel()
	cond := store.IfPresent
	if !wasListed && !s.known.has(key) && asked.Err() == nil {
		cond = store.IfAbsent
	}
	err := s.st.Save(ctx, key, rec, cond)
	if cond == store.IfAbsent && conflicts(err) { // nobody else makes 256 random bits: it is one that was forgotten
		cond, err = store.IfPresent, s.st.Save(ctx, key, rec, store.IfPresent)
	}
	switch {
	case err == nil && cond == store.IfAbsent:
		s.known.add(asked, key) // a request may commit twice
	case conflicts(err) && asked.Err() != nil:
		return fmt.Errorf("%w: %w: %w", sessile.ErrGone, err, context.Cause(asked))
	case conflicts(err):
		return fmt.Errorf("%w: %w", sessile.ErrGone, err)
	case errors.Is(err, store.ErrInvalid) && !rec.Expires.After(time.Now()): // no store takes a session that is over
		_, err = s.st.Delete(store.Replicated(ctx), key, store.Always)
	}
	return err
}

// conflicts reports whether a condition did not hold, as opposed to a lock or an operation in the way.
func conflicts(err error) bool {
	return errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrLocked) && !errors.Is(err, store.ErrBusy) && !errors.Is(err, store.ErrLost)
}

// DeleteCtx ends a session, also where ctx has ended. To delete nothing is no error.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	key, _ := s.key(token)
	if key == "" {
		return nil // scs destroys sessions that have no token yet, too
	}
	ctx, cancel := s.detached(ctx)
	defer cancel()
	if _, err := s.st.Delete(store.Replicated(ctx), key, store.Always); err != nil {
		return fmt.Errorf("adapters/scs: delete: %w", err)
	}
	return nil
}

const pageSize = 200

// AllCtx returns all sessions, in steps of some two hundred; their sum is the caller's, all of it in memory. With Options.Hash they have
// names in place of tokens, which can be committed and deleted and not found. Where the store cannot list it answers
// errors.ErrUnsupported.
func (s *Store) AllCtx(ctx context.Context) (map[string][]byte, error) {
	if !s.st.Capabilities().Scan {
		return nil, fmt.Errorf("adapters/scs: the store cannot list its sessions: %w", errors.ErrUnsupported)
	}
	all := map[string][]byte{}
	for cursor := ""; ; {
		page, err := s.st.Scan(ctx, cursor, pageSize)
		if err != nil {
			return nil, fmt.Errorf("adapters/scs: list: %w", err)
		}
		var keys []string
		for _, key := range page.Keys {
			if valid(key) {
				keys = append(keys, key)
			}
		}
		if err := s.page(ctx, keys, all); err != nil {
			return nil, fmt.Errorf("adapters/scs: list: %w", err)
		}
		if cursor = page.Cursor; cursor == "" {
			return all, nil
		}
	}
}

func (s *Store) page(ctx context.Context, keys []string, all map[string][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	recs, err := s.inspect(ctx, keys)
	if err != nil {
		return err
	}
	for i, rec := range recs {
		if rec == nil {
			continue
		}
		switch over, err := s.over(*rec); {
		case err != nil:
			return err
		case over:
		case s.opt.Hash:
			all[listed+keys[i]] = rec.Data
		default:
			all[keys[i]] = rec.Data
		}
	}
	if !s.opt.Hash {
		s.known.add(ctx, keys...) // Iterate may commit them
	}
	return nil
}

func oneByOne(st store.Store) func(ctx context.Context, keys []string) ([]*store.Record, error) {
	return func(ctx context.Context, keys []string) ([]*store.Record, error) {
		recs := make([]*store.Record, len(keys))
		for i, key := range keys {
			rec, err := st.Inspect(ctx, key)
			switch {
			case err == nil:
				recs[i] = &rec
			case !errors.Is(err, store.ErrAbsent):
				return nil, err
			}
		}
		return recs, nil
	}
}

// Find is FindCtx without a context.
func (s *Store) Find(token string) (b []byte, found bool, err error) {
	return s.FindCtx(context.Background(), token)
}

// Commit is CommitCtx without a context.
func (s *Store) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// Delete is DeleteCtx without a context.
func (s *Store) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// All is AllCtx without a context.
func (s *Store) All() (map[string][]byte, error) { return s.AllCtx(context.Background()) }

// ErrorFunc is a SessionManager.ErrorFunc that has a request answer as if nothing were wrong whose session has gone while it was
// under way, and leaves all other errors to next. What the request has changed in the session is dropped, and no cookie is set: that of the
// old session would take the place of the one that the browser got by a login meanwhile. Without it such a request is answered by next,
// which by default is status 500.
func ErrorFunc(next func(http.ResponseWriter, *http.Request, error)) func(http.ResponseWriter, *http.Request, error) {
	return func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, sessile.ErrGone) {
			next(w, r, err)
		}
	}
}
