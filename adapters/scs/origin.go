package scsstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/sessile/sessile"
	"github.com/sessile/sessile/store"
)

// Origin lets a site that had its sessions in sm go on with them in package sessile: nobody has to log in again, and no cart is lost.
// sm is set up as it was: its Store (any one; a *Store of this package as well), Codec, HashTokenInStore and Cookie count, and nothing is
// asked of it besides. It is not used as a middleware any more.
//
// convert makes a value of what scs has kept, and says who is logged in, "" for nobody. What RememberMe has set is among the values, as
// "__rememberMe". The types that are in there have to be registered with gob, as they were.
//
// A session goes on until the deadline that it had with scs, if nobody leaves it idle. Its cookie is one of sessile.Cookie, which has to be
// Persistent where scs' was to stay when the browser ends (SessionCookie.Persist, the default there). When it was made, and when its user logged in, scs
// does not know: it counts as made and logged in when it is taken over.
//
// A session that cannot be decoded or converted is an error, and its request is answered like one that finds the store down: with none
// at all a type that somebody forgot to register would log everybody out, silently. Its record stays as it is. (convert may return a zero
// value in place of an error.)
//
// Old processes that still run while a session is taken over must have ended, or have a *Store of this package: with another one a slow request
// of theirs puts the old session back after it was taken over. What it has written is lost either way; where the session is logged out
// then, the old cookie finds the old session again some minutes later.
func Origin[T any](sm *scs.SessionManager, convert func(values map[string]any) (value T, user string, err error)) sessile.Origin[T] {
	return sessile.Origin[T]{
		ID: func(r *http.Request) string {
			cookie, err := r.Cookie(sm.Cookie.Name) // the first one, as scs does
			if err != nil || !valid(cookie.Value) {
				return ""
			}
			return cookie.Value
		},
		Load: func(ctx context.Context, token string) (*sessile.Adopted[T], error) {
			if !valid(token) {
				return nil, nil
			}
			b, found, err := find(ctx, sm, token)
			if !found || err != nil {
				return nil, err
			}
			deadline, values, err := Decode(sm.Codec, b)
			if err != nil {
				return nil, err
			}
			if !deadline.After(time.Now()) { // goredisstore keeps some for ever
				return nil, nil
			}
			value, user, err := convert(values)
			if err != nil {
				return nil, fmt.Errorf("adapters/scs: %w: a session cannot be converted: %w", store.ErrInvalid, err)
			}
			return &sessile.Adopted[T]{Value: value, User: user, End: deadline}, nil
		},
		Delete: func(ctx context.Context, token string) error {
			if !valid(token) {
				return nil
			}
			return remove(ctx, sm, token)
		},
		Cookie: http.Cookie{Name: sm.Cookie.Name, Domain: sm.Cookie.Domain, Path: sm.Cookie.Path, Secure: sm.Cookie.Secure,
			HttpOnly: sm.Cookie.HttpOnly, SameSite: sm.Cookie.SameSite, Partitioned: sm.Cookie.Partitioned},
	}
}

// underlying is where and under which name sm keeps the session of token.
func underlying(sm *scs.SessionManager, token string) (scs.Store, string) {
	if sm.HashTokenInStore {
		token = hash(token)
	}
	return sm.Store, token
}

// find asks with a context where that can be done, as scs does: the other methods of goredisstore panic.
func find(ctx context.Context, sm *scs.SessionManager, token string) (b []byte, found bool, err error) {
	st, key := underlying(sm, token)
	if with, ok := st.(interface {
		FindCtx(context.Context, string) ([]byte, bool, error)
	}); ok {
		b, found, err = with.FindCtx(ctx, key)
	} else {
		b, found, err = st.Find(key)
	}
	if err != nil {
		return nil, false, fmt.Errorf("adapters/scs: find: %w", classed(err, store.ErrUnavailable))
	}
	return b, found, nil
}

func remove(ctx context.Context, sm *scs.SessionManager, token string) (err error) {
	st, key := underlying(sm, token)
	if with, ok := st.(interface {
		DeleteCtx(context.Context, string) error
	}); ok {
		err = with.DeleteCtx(ctx, key)
	} else {
		err = st.Delete(key)
	}
	if err != nil {
		return fmt.Errorf("adapters/scs: delete: %w", classed(err, store.ErrUnknown))
	}
	return nil
}

// classed gives the error of somebody else's store a class.
func classed(err, class error) error {
	for _, known := range []error{store.ErrAbsent, store.ErrConflict, store.ErrUnavailable, store.ErrUnknown, store.ErrInvalid, errors.ErrUnsupported} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", class, err)
}
