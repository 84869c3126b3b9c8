package gateway

import (
	"context"
	"net"
	"time"

	"github.com/sessile/sessile/store"
)

// An Upstream is a store that is nothing but Redis, one server or a Cluster, and that lets its caller speak to it: then a
// loop can send what many clients ask for at once. What is under a key, what may be a key and what a value is are the same
// on either way.
type Upstream interface {
	store.Store

	// Raw says whether the connections are plain sockets, the size of a value beyond which Save refuses it, and how long an
	// answer may take before the connection is to be given up.
	Raw() (plain bool, maxValue int, timeout time.Duration)
	// Shard returns the server that has what is called name, nil where a command about that cannot be sent as it is. The
	// answer may be out of date: a server that does not have it any more refuses the command.
	Shard(name []byte) Shard
	// DataKey appends the name of the session under key, or fails with ErrInvalid as Load and Save would.
	DataKey(dst []byte, key string) ([]byte, error)
	// LockKey appends the name of the lock of that session, or fails as Lock would.
	LockKey(dst []byte, key string) ([]byte, error)
	Memory
	// UnlockScript returns the SHA-1 of the script that releases the lock KEYS[1] if it is ARGV[1]'s. Its answer is 0, and
	// then 1 or 0 for whether it was.
	UnlockScript() string
}

// A Shard is a server of an Upstream. It is an alias: who implements it need not know it.
type Shard = interface {
	// Dial returns a connection of the caller's own that is logged in and speaks RESP2, and on which nothing is still to
	// be answered. Once current is false, it is to be given up: the shard is at another server. The error matches net.ErrClosed
	// where there is no such shard any more.
	Dial(ctx context.Context) (nc net.Conn, current func() bool, err error)
	// Enter reports whether a request may be sent now by a connection of Dial: not while the primary changes. Who was let
	// in has to Leave when it has taken note of the answer, or of there being none.
	Enter() bool
	Leave()
	// Trusted reports whether an answer may be passed on that came just now.
	Trusted() bool
}

// Recall is the part of a Memory that has to know what a client had read before it wrote. A store over others has it, too.
type Recall interface {
	// Remembers reports whether anything is remembered. It does not change.
	Remembers() bool
	// Sum stands for a value that was read. It is not 0.
	Sum(data []byte) uint64
	// Base returns a context for the Save of a client that had read the value with that Sum.
	Base(ctx context.Context, sum uint64) context.Context
}

// Memory is what an Upstream remembers of what its clients were answered, to put it back where a new primary lacks it. By
// its own methods (Save, say) it notes everything itself; what a loop was answered, the loop tells it, before it leaves.
type Memory interface {
	Recall
	// Saved, Touched and Deleted note what was done, and when that was asked for. base is the Sum of what the client had read before, or 0; version and
	// gone are of the answer of DeleteScript. data may be changed afterwards.
	Saved(key string, data []byte, expires, asked time.Time, base uint64)
	Touched(key string, expires, asked time.Time)
	Deleted(key string, asked time.Time, version store.Version, gone uint64)
	// Locked notes that token has the lock until then, Unlocked that it has it no longer.
	Locked(key, token string, until time.Time)
	Unlocked(key, token string)
	// DeleteScript returns the SHA-1 of the script that deletes the session KEYS[1] with the name KEYS[2] that SideKey makes;
	// ARGV are "*" and life. Its answer is 0, then 1 or 0 for whether there was something, its version, and a number. It is
	// "" where nothing is remembered: a DEL does it.
	DeleteScript() (sha, life string)
	SideKey(dst []byte, name string) []byte
	// Resolves reports whether it can be found out what became of a write of which no answer came: where another server takes the
	// place of one that is lost, whether anything is remembered or not. It does not change.
	Resolves() bool
	// ResolveSave and ResolveDelete report whether a write was done of which no answer came. Resolved notes what came of looking.
	ResolveSave(ctx context.Context, key string, rec store.Record) (done bool, err error)
	ResolveDelete(ctx context.Context, key string) (done bool, err error)
	Resolved(done bool)
}
