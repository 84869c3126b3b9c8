package sessile

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// An Origin is where a site kept its sessions before, by means of another library. A request that has no session of ours and names one
// of those goes on with it, as one of ours: nobody has to log in again.
type Origin[T any] struct {
	// ID returns what names the old session that a request has, most of the time the value of its cookie, "" for none. It should look
	// at nothing but the request, and refuse what has not the form of such a name.
	ID func(r *http.Request) string
	// Load returns the old session, nil where there is none, or not any more. An error is an outage.
	Load func(ctx context.Context, id string) (*Adopted[T], error)
	// Delete ends the old session. It is called when ours is saved, and again where that is not sure; to delete nothing is no error.
	Delete func(ctx context.Context, id string) error
	// Cookie is the old one, which is removed from the browser: its name, path and domain, and whether it is Secure or Partitioned.
	Cookie http.Cookie
}

// Adopted is what an old session is to be with us.
type Adopted[T any] struct {
	Value T
	// User is who is logged in, "" for nobody, and Login since when. The default is now.
	User  string
	Login time.Time
	// Created is when it was made, and End its absolute deadline. The defaults are now, and that of Options.Absolute from now on, which is
	// also the latest that counts.
	Created, End time.Time
}

// Adopt has requests go on with the sessions that they had before. It is called before the first request, and needs Options.Secret:
// the new token of a session is made of the old one with it, so that two requests that bring the old one at the same time, even to
// two processes, get the same.
func (m *Manager[T]) Adopt(o Origin[T]) error {
	switch {
	case len(m.opt.Secret) == 0:
		return errors.New("sessile: Adopt needs Options.Secret: without it new tokens could be made of old ones by whoever has seen one")
	case o.ID == nil || o.Load == nil || o.Delete == nil:
		return errors.New("sessile: an Origin needs ID, Load and Delete")
	}
	if o.Cookie.Path == "" {
		o.Cookie.Path = "/"
	}
	m.origin = &o
	return nil
}

// apart reports whether the old cookie is not the one that takes its place by being set.
func (o *Origin[T]) apart(c *Cookie) bool {
	return o.Cookie.Name != c.Name || o.Cookie.Path != c.Path || strings.TrimPrefix(o.Cookie.Domain, ".") != strings.TrimPrefix(c.Domain, ".")
}

// drop has the browser forget the old cookie.
func (o *Origin[T]) drop(h http.Header) {
	if o.Cookie.Name == "" {
		return
	}
	gone := http.Cookie{Name: o.Cookie.Name, Path: o.Cookie.Path, Domain: o.Cookie.Domain, Secure: o.Cookie.Secure, Partitioned: o.Cookie.Partitioned, HttpOnly: true, MaxAge: -1}
	h.Add("Set-Cookie", gone.String())
}

// oldID names the session of the origin that the request comes with, "" for none.
func (s *Session[T]) oldID() string {
	if s.m.origin == nil || s.byHeader {
		return ""
	}
	return s.m.origin.ID(s.r)
}

// adopt finds the session that has become of the origin's of that id, or makes it.
func (s *Session[T]) adopt(ctx context.Context, id string) (err error) {
	defer func(start time.Time) { s.m.saw(ctx, EventAdopt, s.at, start, err) }(time.Now())
	was := s.state()
	defer func() {
		if err != nil { // who asks again does all of it again
			s.restore(was)
		}
	}()
	none := false // the origin has none
	for try := 0; ; try++ {
		for _, keys := range slices.Backward(s.m.keys) { // by the first one it is made
			s.token, s.blind = keys.adopted(id), false
			s.at = keys.session(s.token)
			if err := s.load(ctx, nil); err != nil {
				return err
			}
			if s.raw != nil {
				break
			}
		}
		if s.raw != nil { // made before, perhaps by a request that came at the same time, and perhaps over by now
			break
		}
		if none {
			s.restore(was)
			return nil
		}
		old, err := s.m.loadOld(ctx, id)
		if err != nil {
			return fmt.Errorf("sessile: the session from before: %w", err)
		}
		if old == nil || !old.End.IsZero() && !time.Now().Before(old.End) {
			none = true // or not any more: whoever took it has made ours before, so that it is there now
			continue
		}
		err = s.take(ctx, old)
		if err == nil {
			break
		}
		if again := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown); !again || try == maxTries || !backOff(ctx, try) {
			return err
		}
	}
	return s.endOld(ctx, id) // before anybody knows of ours
}

// loadOld asks the origin. What takes so long that it may be known no more that ours is over, which was made of it meanwhile, is an error.
func (m *Manager[T]) loadOld(ctx context.Context, id string) (*Adopted[T], error) {
	ctx, cancel := context.WithTimeout(ctx, graveLife/2)
	defer cancel()
	old, err := m.origin.Load(ctx, id)
	if err == nil {
		err = ctx.Err()
	}
	return old, err
}

// endOld ends the session of the origin of that id, so that a session that was destroyed is not adopted once more: a process from
// before may have written it again, or have logged somebody in.
func (s *Session[T]) endOld(ctx context.Context, id string) error {
	if err := s.m.origin.Delete(ctx, id); err != nil {
		return fmt.Errorf("sessile: the session from before: %w", err)
	}
	s.dropOld = true
	return nil
}

// take makes a session of an old one, which nobody else has made.
func (s *Session[T]) take(ctx context.Context, old *Adopted[T]) error {
	if len(old.User) > maxUser {
		return fmt.Errorf("sessile: the name of a user has up to %d bytes", maxUser)
	}
	orNow := func(t time.Time) time.Time {
		if t.IsZero() {
			return time.Now()
		}
		return t
	}
	rec := s.m.newRecord(time.Now())
	rec.created, rec.user = orNow(old.Created), old.User
	if rec.user != "" {
		rec.login = orNow(old.Login)
	}
	// Not later than one that begins now, if the old one may last longer: the list of the user's sessions knows it for so long.
	if !old.End.IsZero() && (rec.end.IsZero() || old.End.Before(rec.end)) {
		rec.end = old.End
	}
	s.rec, s.value = rec, old.Value
	next, err := s.next()
	if err != nil {
		return err
	}
	if rec.user != "" {
		if _, err := s.m.enlist(ctx, rec.user, s.at, time.Now()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(store.Replicated(ctx), s.m.opt.Timeout)
	defer cancel()
	raw, err := s.m.write(ctx, s.at, next, s.m.life(next), store.IfAbsent)
	if err != nil {
		return fmt.Errorf("sessile: save: %w", err)
	}
	s.written(next, raw)
	return nil
}
