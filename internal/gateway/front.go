package gateway

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// front is how a client of memcached names a site's sessions and their locks, and how long it waits for an answer. It is the
// listener's, not the site's, so that a site can be served to two handlers at once: what is left without these prefixes is the
// id, and the session is the same, whichever handler asks for it.
type front struct {
	client string
	prefix []byte
	before string // a lock is named PREFIX before ID
	behind string // or PREFIX ID behind
	zlib   bool   // the client compresses, and says so by flags
	mutes  bool   // the client reads no answer to a quiet delete, which memcached gives where there is nothing: it takes it for the next one's
	blanks bool   // without an answer, or the lock, the client goes on with an empty session, and may write it

	hold, lockWait time.Duration
}

// The patience is what was measured (clients.md, 6.1 and 7.1): php-memcached waits 5 s for the answer to a command and asks for a
// lock six times; php-memcache waits 1 s, and asks for a lock by two commands in one packet.
var fronts = map[string]front{
	"php-memcached": {prefix: []byte("memc.sess.key."), before: "lock.", mutes: true, hold: 4 * time.Second, lockWait: 2 * time.Second},
	"php-memcache":  {behind: ".lock", zlib: true, blanks: true, hold: 800 * time.Millisecond, lockWait: 300 * time.Millisecond},
}

// newFront reads the parameters of a listener: client, php-memcached by default, and prefix, by default the client's own.
func newFront(q url.Values) (*front, error) {
	name := "php-memcached"
	if q.Has("client") {
		name = q.Get("client")
	}
	f, ok := fronts[name]
	if !ok {
		return nil, fmt.Errorf("client %q: php-memcached or php-memcache is wanted", name)
	}
	f.client = name
	if q.Has("prefix") {
		f.prefix = []byte(q.Get("prefix"))
	}
	switch {
	case !printable(f.prefix) || len(f.prefix) > 200:
		return nil, fmt.Errorf("a prefix has up to 200 characters that can be printed, and no blanks")
	case strings.HasPrefix(string(f.prefix), reserved):
		return nil, fmt.Errorf("the prefix begins with %q, which is ours", reserved)
	}
	return &f, nil
}

// key is Site.key for this client. An id that looks like a lock's name is none: a cookie says what a session's id is, and must not
// say which lock is to be freed.
func (f *front) key(s *Site, raw []byte) key {
	if bytes.HasPrefix(raw, []byte(reserved)) {
		return key{err: errReserved}
	}
	id, ok := bytes.CutPrefix(raw, f.prefix)
	if !ok {
		return key{err: errForeign}
	}
	if s.AccessSet != "" && s.Prefix+string(id) == s.AccessSet {
		return key{err: errWrongType}
	}
	id, lock := f.cutLock(id)
	if _, again := f.cutLock(id); again {
		return key{err: store.ErrInvalid}
	}
	return s.named(id, lock)
}

func (f *front) cutLock(id []byte) (rest []byte, lock bool) {
	if f.before != "" {
		return bytes.CutPrefix(id, []byte(f.before))
	}
	return bytes.CutSuffix(id, []byte(f.behind))
}

// memcachedListener is one whose clients speak memcached.
type memcachedListener struct {
	net.Listener
	front *front
}
