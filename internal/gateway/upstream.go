package gateway

import (
	"context"
	"net"
	"time"

	"github.com/sessile/sessile/store"
)

// An Upstream is a store that is nothing but one Redis, and that lets its caller speak to it: then a loop can send what
// many clients ask for at once. What is under a key, what may be a key and what a value is are the same on either way.
type Upstream interface {
	store.Store

	// Raw says whether Dial's connections are plain sockets, the size of a value beyond which Save refuses it, and how
	// long an answer may take before the connection is to be given up.
	Raw() (plain bool, maxValue int, timeout time.Duration)
	// Dial returns a connection of the caller's own that is logged in and speaks RESP2, and on which nothing is still to
	// be answered. Once current is false, it is to be given up: the store's address is another server's.
	Dial(ctx context.Context) (nc net.Conn, current func() bool, err error)
	// DataKey appends the name of the session under key, or fails with ErrInvalid as Load and Save would.
	DataKey(dst []byte, key string) ([]byte, error)
	// LockKey appends the name of the lock of that session, or fails as Lock would.
	LockKey(dst []byte, key string) ([]byte, error)
	// UnlockScript returns the SHA-1 of the script that releases the lock KEYS[1] if it is ARGV[1]'s. Its answer is 0, and
	// then 1 or 0 for whether it was.
	UnlockScript() string
}
