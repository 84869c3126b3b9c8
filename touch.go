package sessile

import (
	"sync"
	"time"
)

// touches remembers when this process has extended which session, so that it does not at every request. What it forgets is
// extended once more.
type touches struct {
	every time.Duration

	mu   sync.Mutex // guards what follows
	last recent[time.Time]
}

// maxTouches bounds each of the two maps of touches.
const maxTouches = 1 << 15

// due reports whether the session is to be extended now, and notes that it is.
func (t *touches) due(k Key, now time.Time) bool {
	if t.every < 0 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, ok := t.last.get(k); ok && now.Sub(last) < t.every {
		return false
	}
	t.last.put(k, now, 1)
	return true
}

func (t *touches) note(k Key, now time.Time) {
	if t.every < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last.put(k, now, 1)
}

// forget has the next request extend the session.
func (t *touches) forget(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last.drop(k)
}
