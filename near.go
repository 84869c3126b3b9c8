package sessile

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"reflect"
	"sync"
	"time"

	"github.com/sessile/sessile/store"
)

// A near keeps copies of what was loaded, as long as the store says that they are good, and no longer than life: then a request that
// only reads asks nobody. A nil one keeps none.
type near struct {
	load func(ctx context.Context, name string) (store.Record, error)
	stop func()
	life time.Duration

	mu   sync.Mutex // guards what follows
	last recent[*copied]
}

// A copied record is in the map before it is loaded, so that news of it that come meanwhile are not missed.
type copied struct {
	rec   store.Record
	until time.Time // zero: it is being loaded
}

// maxCopies bounds each of the two maps of copies, in bytes. One costs no less than copyCosts.
const maxCopies, copyCosts = 32 << 20, 1 << 10

func newNear(t store.Tracker, life time.Duration) (n *near, err error) {
	n = &near{life: life, last: recent[*copied]{max: maxCopies}}
	n.load, n.stop, err = t.Track(func(name string) { n.drop(Key(name)) })
	return n, err
}

// A least is the version of its session that a browser knows of: it is served no older copy. So it reads its own writes, whichever
// process they went to. Who knows of none is served no copy.
//
// It is in a cookie of its own, beside that of the token: a response that comes late may set it back, but not the token.
type least struct {
	version uint16
	known   bool
}

// leastCookie is what the name of that cookie ends with. Its value begins with the end of the session's key, so that it does not
// count for another session.
const leastCookie = "-v"

const leastEnd = 4

func (l least) value(key Key) string {
	return string(key[len(key)-leastEnd:]) + base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint16(nil, l.version))
}

func parseLeast(value string, key Key) (l least) {
	end, text := value[:min(len(value), leastEnd)], value[min(len(value), leastEnd):]
	b, err := strict.DecodeString(text)
	if err != nil || len(text) != 3 || len(b) != 2 || end != string(key[len(key)-leastEnd:]) {
		return l
	}
	return least{binary.BigEndian.Uint16(b), true}
}

// met reports whether a record is of that version or a later one.
func (l least) met(data []byte) bool {
	version, ok := versionIn(data)
	return l.known && ok && notBefore(version, l.version)
}

// get returns the record under key, which nobody may change.
func (n *near) get(ctx context.Context, key Key, want *least) (store.Record, error) {
	n.mu.Lock()
	now := time.Now()
	if c, _ := n.last.get(key); c != nil && now.Before(c.until) && (c.rec.Expires.IsZero() || now.Before(c.rec.Expires)) && want.met(c.rec.Data) {
		n.mu.Unlock()
		return c.rec, nil
	}
	c := new(copied)
	n.last.put(key, c, copyCosts)
	n.mu.Unlock()

	rec, err := n.load(ctx, string(key))
	n.mu.Lock()
	defer n.mu.Unlock()
	if is, _ := n.last.get(key); is == c { // no news of it
		if err == nil {
			c.rec, c.until = rec, time.Now().Add(n.life)
			n.last.put(key, c, max(len(rec.Data), copyCosts))
		} else {
			n.last.drop(key)
		}
	}
	return rec, err
}

// drop forgets the copy of what has changed, and all of them where key is "".
func (n *near) drop(key Key) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if key == "" {
		n.last.clear()
		return
	}
	n.last.drop(key)
}

// flat reports whether values of t share nothing when they are copied: no pointers, slices, maps, interfaces in them.
func flat(t reflect.Type) bool {
	switch k := t.Kind(); {
	case k <= reflect.Complex128 && k != reflect.Invalid, k == reflect.String, t == reflect.TypeFor[time.Time]():
		return true
	case k == reflect.Array:
		return flat(t.Elem())
	case k == reflect.Struct:
		for i := range t.NumField() {
			if !flat(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return false
}
