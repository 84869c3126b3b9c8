package sessile

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
)

// A near keeps copies of what was loaded, as long as the store says that they are good, and no longer than life: then a request that
// only reads asks nobody. A nil one keeps none.
type near[T any] struct {
	load func(ctx context.Context, name string) (store.Record, error)
	stop func()
	life time.Duration

	mu       sync.Mutex // guards what follows
	now, old map[string]*copied[T]
}

// A copied record is in the map before it is loaded, so that news of it that come meanwhile are not missed.
type copied[T any] struct {
	rec     store.Record
	until   time.Time                  // zero: it is being loaded
	decoded atomic.Pointer[decoded[T]] // only where values of T share nothing when they are copied
}

type decoded[T any] struct {
	rec   *record
	value T
}

// maxCopies bounds each of the two maps.
const maxCopies = 1 << 14

func newNear[T any](t store.Tracker, life time.Duration) (n *near[T], err error) {
	n = &near[T]{life: life, now: map[string]*copied[T]{}}
	n.load, n.stop, err = t.Track(n.drop)
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

// get returns the record under name, which nobody may change.
func (n *near[T]) get(ctx context.Context, name string, want *least) (*copied[T], error) {
	n.mu.Lock()
	c := n.now[name]
	if c == nil {
		c = n.old[name]
	}
	if c != nil && time.Now().Before(c.until) && want.met(c.rec.Data) {
		n.mu.Unlock()
		return c, nil
	}
	c = new(copied[T])
	if len(n.now) >= maxCopies {
		n.old, n.now = n.now, map[string]*copied[T]{}
	}
	n.now[name] = c
	n.mu.Unlock()

	rec, err := n.load(ctx, name)
	n.mu.Lock()
	defer n.mu.Unlock()
	c.rec = rec
	if n.now[name] == c { // no news of it
		if err == nil {
			c.until = time.Now().Add(n.life)
		} else {
			delete(n.now, name)
		}
	}
	return c, err
}

// drop forgets the copy of what has changed, and all of them where name is "".
func (n *near[T]) drop(name string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if name == "" {
		n.now, n.old = map[string]*copied[T]{}, nil
		return
	}
	delete(n.now, name)
	delete(n.old, name)
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
