package sessile

import (
	"sync"
	"time"
)

// touches remembers when this process has extended which session, so that it does not at every request. What it forgets is
// extended once more.
type touches struct {
	every time.Duration

	mu       sync.Mutex // guards what follows
	now, old map[Key]time.Time
}

// maxTouches bounds each of the two maps.
const maxTouches = 1 << 15

// due reports whether the session is to be extended now, and notes that it is.
func (t *touches) due(k Key, now time.Time) bool {
	if t.every < 0 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	last, ok := t.now[k]
	if !ok {
		last, ok = t.old[k]
	}
	if ok && now.Sub(last) < t.every {
		return false
	}
	t.put(k, now)
	return true
}

func (t *touches) note(k Key, now time.Time) {
	if t.every < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(k, now)
}

// forget has the next request extend the session.
func (t *touches) forget(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.now, k)
	delete(t.old, k)
}

func (t *touches) put(k Key, now time.Time) {
	if t.now == nil || len(t.now) >= maxTouches {
		t.old, t.now = t.now, make(map[Key]time.Time)
	}
	t.now[k] = now
}
