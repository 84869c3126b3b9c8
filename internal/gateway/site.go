package gateway

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

// reserved is how the keys begin that Sessile itself puts into a target. No client may name one.
const reserved = "sessile:"

// A Site is one application's sessions: where they lie, what its clients may ask for and how long they are made to
// wait. Zero fields have the default that is said; Store is required.
type Site struct {
	Name  string // for the log
	Store store.Store

	// Prefix is what the client puts before every session id (`PHPREDIS_SESSION:`). The store is asked without it, and
	// a key that does not begin with it is refused. The default is none: the whole key is the id.
	Prefix string
	// LockSuffix is what a client puts behind a session's key to make that of its lock. The default is "_LOCK", as in
	// phpredis.
	LockSuffix string
	// KeyPattern says which ids may be used at all; the default is any of the bytes 0x21 to 0x7e. It sees the id
	// without Prefix and LockSuffix.
	KeyPattern func(id []byte) bool
	// Database is the number that SELECT must name.
	Database int

	// Lifetime is put on a session where the client names none (SET without EX). 0: such a write is refused, since
	// there are no sessions without a deadline.
	Lifetime time.Duration
	// SlidingWithoutTTL makes a GET put Lifetime on the session anew, at most once in a tenth of Lifetime, for clients
	// that never name one (RequestTracker).
	SlidingWithoutTTL bool

	// AccessSet is the key, as the client sends it, of the one sorted set that is served, of access times (see
	// accessset.go). It lies under the same name in Sets, which it then needs. The default is none.
	AccessSet string
	Sets      SortedSets

	// Passed are the names of commands that go to Passage as they are, see pass.go, which they then need. Whether that is
	// right while sessions are moved is for the caller to say: it is not. The default is none.
	Passed  []string
	Passage Passage

	// Critical names the writes that are answered only when the store's replicas have them, too (store.Replicated): create,
	// delete, both with a comma, or all, but for those that only move a deadline. The default is none.
	Critical string

	// SentinelMaster is the name that SENTINEL MASTERS lists. Any name will do where a client asks for one, but redis-py
	// looks for its own in this list. The default is "mymaster".
	SentinelMaster string

	// NoLoop gives every connection a goroutine of its own. Otherwise connections without TLS share a few, where the
	// system is Linux and the store an Upstream.
	NoLoop bool

	// Users may log in. Without any, every AUTH is accepted, and a listener that others can reach is refused unless
	// Insecure is set.
	Users    []User
	Insecure bool

	Limits Limits

	// Hold is how long a command waits for a store that is away before it is answered with a failure. The default is
	// 10 s; a negative value does not wait. PHP gives up after 60 s.
	Hold time.Duration
	// LockWait is how long a request for a lock is parked before it is answered "not now". The default is 5 s.
	LockWait time.Duration
	// LockLife caps the life of every lock, and is the life of one that asks for none. The default is 10 min.
	LockLife time.Duration
	// DestroyedMemory is how long a write is recognised that comes late, from a connection that read the session
	// before it was destroyed. The default is 2 min, and never more than 100,000 sessions.
	DestroyedMemory time.Duration
	// Linger is how long Shutdown lets the page that used a connection last go on with it. The default is 1 s; a
	// negative value closes at once. One that holds a lock is waited for in any case.
	Linger time.Duration
}

// A User may log in with any of its passwords: two during a rotation.
type User struct {
	Name      string // "" is "default", which AUTH with one argument means
	Passwords []string
}

// Limits bound what clients can make the gateway hold. Sizes are in bytes; 0 means the default.
type Limits struct {
	Value int // of a session; default 1 MiB
	Key   int // of a key as the client sends it, and of a lock's token; default 512
	Args  int // arguments of a command; default 64
	Conns int // connections at a time; default 10,000
	// Idle is how long a connection may say nothing. The default is 300 s; a negative value means for ever.
	Idle time.Duration
	// Command is how long a command may take from its first byte to its last, a login from the connection's beginning,
	// and a client to read anything at all of what it is sent. The default is 10 s.
	Command time.Duration
	Output  int // replies that a client asked for and does not read; default 4 MiB
	// Memory bounds what all connections together have sent in unfinished commands and not read of their replies,
	// beyond 16 KiB each. Above it the one that has been at it longest is closed. The default is 256 MiB.
	Memory int

	UnauthenticatedArgs int // before login; default 10
	UnauthenticatedArg  int // before login; default 16 KiB
}

const maxWait = time.Minute // a PHP client's patience (default_socket_timeout)

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// complete fills in the defaults and refuses what cannot work.
func (s *Site) complete() error {
	l := &s.Limits
	for _, n := range []int{l.Value, l.Key, l.Args, l.Conns, l.Output, l.Memory, l.UnauthenticatedArgs, l.UnauthenticatedArg} {
		if n < 0 {
			return errors.New("a limit is negative")
		}
	}
	if s.LockWait < 0 || s.LockLife < 0 || s.DestroyedMemory < 0 || s.Lifetime < 0 || l.Command < 0 {
		return errors.New("a duration is negative that must not be")
	}
	setDefault(&s.LockSuffix, "_LOCK")
	setDefault(&s.SentinelMaster, "mymaster")
	if s.KeyPattern == nil {
		s.KeyPattern = printable
	}
	setDefault(&s.Hold, 10*time.Second)
	setDefault(&s.LockWait, 5*time.Second)
	setDefault(&s.LockLife, 10*time.Minute)
	setDefault(&s.DestroyedMemory, 2*time.Minute)
	setDefault(&s.Linger, time.Second)
	setDefault(&l.Value, 1<<20)
	setDefault(&l.Key, 512)
	setDefault(&l.Args, 64)
	setDefault(&l.Conns, 10_000)
	setDefault(&l.Idle, 300*time.Second)
	setDefault(&l.Command, 10*time.Second)
	setDefault(&l.Output, 4<<20)
	setDefault(&l.Memory, 256<<20)
	setDefault(&l.UnauthenticatedArgs, 10)
	setDefault(&l.UnauthenticatedArg, 16<<10)

	switch {
	case s.Store == nil:
		return errors.New("no store")
	case strings.HasPrefix(s.Prefix, reserved):
		return fmt.Errorf("the prefix begins with %q, which is ours", reserved)
	case len(s.Prefix) >= l.Key:
		return errors.New("the prefix is as long as a whole key may be")
	case s.Database < 0:
		return fmt.Errorf("database %d", s.Database)
	case s.SlidingWithoutTTL && s.Lifetime == 0:
		return errors.New("SlidingWithoutTTL needs a Lifetime")
	case s.AccessSet != "" && s.Sets == nil:
		return errors.New("AccessSet needs Sets")
	case len(s.Passed) > 0 && s.Passage == nil:
		return errors.New("commands are passed on, and there is no Passage")
	case s.Lifetime > maxLifetime:
		return fmt.Errorf("a lifetime of %v", s.Lifetime)
	case s.Hold > maxWait || s.LockWait > maxWait:
		return fmt.Errorf("a Hold or LockWait above %v: by then PHP has given up", maxWait)
	case l.Memory < 4*l.Value:
		return errors.New("Limits.Memory has no room for four values")
	}
	for _, u := range s.Users {
		if len(u.Passwords) == 0 {
			return fmt.Errorf("user %q has no password", u.Name)
		}
		for _, p := range u.Passwords {
			if p == "" {
				return fmt.Errorf("user %q has an empty password", u.Name)
			}
		}
	}
	return nil
}

// printable is the default key pattern.
func printable(id []byte) bool {
	for _, b := range id {
		if b < 0x21 || b > 0x7e {
			return false
		}
	}
	return true
}

// limits are the parser's, before login and after.
func (s *Site) limits(authenticated bool) resp.Limits {
	if !authenticated {
		l := s.Limits
		return resp.Limits{Args: l.UnauthenticatedArgs, Arg: l.UnauthenticatedArg, Request: l.UnauthenticatedArgs*l.UnauthenticatedArg + 1<<10}
	}
	return resp.Limits{Args: s.Limits.Args, Arg: s.Limits.Value, Request: s.Limits.Value + 64<<10}
}

// A key is what a client named: a session, or its lock.
type key struct {
	id   string
	lock bool
	err  error // errForeign, or store.ErrInvalid: an id that there cannot be
}

// errReserved: the key is one of ours, or would become one.
var errReserved = fmt.Errorf("%w: reserved", store.ErrInvalid)

func (s *Site) key(raw []byte) key {
	if bytes.HasPrefix(raw, []byte(reserved)) {
		return key{err: errReserved}
	}
	if len(raw) > s.Limits.Key {
		return key{err: store.ErrInvalid}
	}
	if s.AccessSet != "" && string(raw) == s.AccessSet {
		return key{err: errWrongType}
	}
	id, ok := bytes.CutPrefix(raw, []byte(s.Prefix))
	if !ok {
		return key{err: errForeign}
	}
	id, lock := bytes.CutSuffix(id, []byte(s.LockSuffix))
	return s.named(id, lock)
}

// named is the key of a session, or of its lock, whose id a client has named.
func (s *Site) named(id []byte, lock bool) key {
	if bytes.HasPrefix(id, []byte(reserved)) {
		return key{err: errReserved}
	}
	if len(id) == 0 || bytes.HasSuffix(id, []byte(s.LockSuffix)) || !s.KeyPattern(id) {
		return key{err: store.ErrInvalid}
	}
	return key{id: string(id), lock: lock}
}

// credentials compares logins in constant time.
type credentials []struct{ name, password [sha256.Size]byte }

func newCredentials(users []User) (c credentials) {
	for _, u := range users {
		setDefault(&u.Name, defaultUser)
		for _, p := range u.Passwords {
			c = append(c, struct{ name, password [sha256.Size]byte }{sha256.Sum256([]byte(u.Name)), sha256.Sum256([]byte(p))})
		}
	}
	return c
}

const defaultUser = "default"

func (c credentials) allow(name, password []byte) bool {
	n, p := sha256.Sum256(name), sha256.Sum256(password)
	ok := 0
	for i := range c {
		ok |= subtle.ConstantTimeCompare(c[i].name[:], n[:]) & subtle.ConstantTimeCompare(c[i].password[:], p[:])
	}
	return ok == 1
}

// Options of a Server. The zero value logs nothing and tells nobody.
type Options struct {
	Logger *slog.Logger
	Hooks  Hooks
}

// Hooks are called where something happens, in the connection's goroutine: they must be quick. Any may be nil.
type Hooks struct {
	// Done is called after every command.
	Done func(Event)
	// Security is called when a client does what no honest client does; kind is one of the Security constants.
	Security func(kind string)
}

// An Event is a command that was answered.
type Event struct {
	Command string        // its name as Redis writes it, in capitals, or memcached, in small letters, or "other": never what the client sent
	Outcome store.Outcome // OutcomeInvalid where it was refused
	Took    time.Duration
}

// The kinds of Hooks.Security.
const (
	SecurityForeign = "cross-protocol" // another protocol on our port: somebody may have been made to speak to us
	SecurityLogin   = "login"          // a wrong password
	SecurityKey     = "reserved-key"   // a key that is ours
)
