package redis

import (
	"context"
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

// The scripts. Each file begins with a line that tells Redis 7 what the script is, so that it is refused before it
// begins wherever a write in it would be, and never stops half-way; and each reads before it writes, because a read can
// fail (WRONGTYPE). Its answer is an array that begins with one of the codes that outcome knows.
var (
	//go:embed lua
	files embed.FS

	inspectScript = load("inspect", "each")
	scanScript    = load("scan")
	slotsScript   = load("scanslots", "each")
	writeScript   = load("write", "holds")
	saveAllScript = load("saveall", "holds")
	appendScript  = load("append")
	unlockScript  = load("unlock")

	deleteScript   = load("delete", "clock", "gone", "holds")
	lookScript     = load("look")
	putBackScript  = load("putback", "clock", "gone")
	registerScript = load("register")

	markScript   = load("mark", "clock")
	swapScript   = load("swap", "clock", "timely")
	homeScript   = load("home", "clock", "timely")
	spreadScript = load("spread", "each")
	timelyScript = load("write", "clock", "timely", "holds")
	extendScript = load("extend", "clock", "timely")
	rightsScript = load("rights")

	controlScript   = load("control")
	dropScript      = load("drop", "clock")
	fenceScript     = load("fence", "each")
	renewScript     = load("renew", "clock")
	stepsScript     = load("steps", "each")
	leaveScript     = load("leave", "each")
	leasesScript    = load("leases", "clock")
	unsettledScript = load("unsettled", "clock", "each")
	purgeScript     = load("purge", "each")

	beginScript      = load("begin", "fenced", "clock", "marker")
	commitScript     = load("commit", "fenced", "marker")
	withdrawScript   = load("withdraw", "fenced", "clock", "marker")
	aheadScript      = load("ahead", "fenced", "clock", "marker", "holds")
	propagatedScript = load("propagated", "fenced", "clock", "marker")
	lastScript       = load("last", "fenced", "marker", "holds")
	touchScript      = load("touch", "fenced", "clock", "marker")
	copyScript       = load("copy", "fenced", "marker")
	addScript        = load("add", "each", "below")
	sameScript       = load("same", "each", "below")
	removeScript     = load("remove", "each", "below")
)

type script struct {
	text, sha string

	// spare is the script for a call that takes away more memory than it needs. A server that is out of memory lets it
	// through: a logout must work then, too.
	spare *script
}

// load puts the parts that name needs behind its first line.
func load(name string, parts ...string) *script {
	read := func(name string) string {
		b, err := files.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic(err) // a file that this package lacks
		}
		return string(b)
	}
	head, body, _ := strings.Cut(read(name), "\n")
	for i := len(parts) - 1; i >= 0; i-- {
		body = read("part/"+parts[i]) + body
	}
	s := newScript(head + "\n" + body)
	s.spare = newScript("#!lua flags=allow-oom\n" + body)
	return s
}

func newScript(text string) *script {
	sum := sha1.Sum([]byte(text))
	return &script{text: text, sha: hex.EncodeToString(sum[:])}
}

// run calls a script that writes; query one that does not.
func (s *Store) run(ctx context.Context, op string, sc *script, keys []string, args ...string) *reply {
	return s.call(ctx, op, store.ErrUnknown, sc, keys, args, nil, nil)
}

func (s *Store) query(ctx context.Context, op string, sc *script, keys []string, args ...string) *reply {
	return s.call(ctx, op, store.ErrUnavailable, sc, keys, args, nil, nil)
}

func (s *Store) call(ctx context.Context, op string, lost error, sc *script, keys, args []string, late lateArgs, done func(*reply)) *reply {
	at := ""
	if len(keys) > 0 {
		at = keys[0]
	}
	return s.callAt(ctx, op, lost, sc, at, keys, args, late, done)
}

// callAt is call where the key lies that is called at.
func (s *Store) callAt(ctx context.Context, op string, lost error, sc *script, at string, keys, args []string, late lateArgs, done func(*reply)) *reply {
	return sc.call(keys, args, late, done, func(cmd []string, late lateArgs, done func(*reply)) *reply {
		return s.send(ctx, op, lost, at, cmd, late, done)
	})
}

// call calls a script by way of send, and at most once: NOSCRIPT means that it was not known. done is send's, for when the
// script answers that it did what it was to do.
func (sc *script) call(keys, args []string, complete lateArgs, done func(*reply),
	send func(cmd []string, complete lateArgs, done func(*reply)) *reply) *reply {
	cmd := make([]string, 0, 3+len(keys)+len(args))
	cmd = append(cmd, "EVALSHA", sc.sha, strconv.Itoa(len(keys)))
	cmd = append(append(cmd, keys...), args...)
	var behindKeys lateArgs
	if complete != nil {
		behindKeys = func(w *wire, cmd []string) { complete(w, cmd[3+len(keys):]) }
	}
	answered := done
	if done != nil {
		answered = func(r *reply) {
			if r = r.script(); r.err == nil {
				done(r)
			}
		}
	}
	r := send(cmd, behindKeys, answered)
	var re *replyError
	if errors.As(r.err, &re) && re.code == "NOSCRIPT" {
		cmd[0], cmd[1] = "EVAL", sc.text
		r = send(cmd, behindKeys, answered)
	}
	return r.script()
}

// script makes of the reply to EVAL that of the script.
func (r *reply) script() *reply {
	one := *r
	one.items = one.list(0)
	if one.err == nil {
		one.err = one.outcome()
	}
	return &one
}

func (r *reply) outcome() error {
	code := r.int(0)
	err, known := failures[code]
	switch {
	case code == -2:
		return &store.BusyError{Left: r.millis(1)}
	case code == -7:
		return &lateError{now: r.int(1)}
	case known:
		return err
	case code < 0:
		return r.unreadable(fmt.Errorf("code %d", code))
	}
	return r.err // 0, or what the step's number is
}

// failures are the codes by which scripts say why they did nothing, but for those that have something beside them.
var failures = map[int64]error{-1: store.ErrFenced, -3: store.ErrLost, -4: store.ErrAbsent, -5: store.ErrConflict, -6: store.ErrSealed,
	-9: store.ErrInvalid}

// A reply is what came of a command: a failure, or the server's answer. What cannot be read of it is zero, and becomes
// the reply's error.
type reply struct {
	op    string
	lost  error                  // ErrUnknown or ErrUnavailable
	items []rueidis.RedisMessage // a script's answer, or one item, another command's
	one   [1]rueidis.RedisMessage
	err   error
}

func (r *reply) fail() error { return r.err }

// refused is fail for who reads one session: what is a hash, say, is there, and no session.
func (r *reply) refused() error {
	if re, ok := errors.AsType[*replyError](r.err); ok && strings.Contains(re.text, "WRONGTYPE") { // also from inside of a script
		return fmt.Errorf("store/redis: %w", &store.RefusedError{Reason: store.ReasonType})
	}
	return r.err
}

func (r *reply) unreadable(err error) error {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("store/redis: %s: %w: the answer cannot be read: %w", r.op, r.lost, err)
	}
	return r.err
}

// has reports whether the i-th item is there and not null.
func (r *reply) has(i int) bool {
	if r.err == nil && i >= len(r.items) {
		r.unreadable(fmt.Errorf("%d items", len(r.items)))
	}
	return r.err == nil && !r.items[i].IsNil()
}

// get reads the i-th item; null is zero.
func get[T any](r *reply, i int, as func(*rueidis.RedisMessage) (T, error)) (v T) {
	if !r.has(i) {
		return v
	}
	v, err := as(&r.items[i])
	r.unreadable(err)
	return v
}

func (r *reply) int(i int) int64            { return get(r, i, (*rueidis.RedisMessage).AsInt64) }
func (r *reply) text(i int) string          { return get(r, i, (*rueidis.RedisMessage).ToString) }
func (r *reply) texts(i int) []string       { return get(r, i, (*rueidis.RedisMessage).AsStrSlice) }
func (r *reply) flag(i int) bool            { return r.int(i) > 0 }
func (r *reply) bytes(i int) []byte         { return get(r, i, (*rueidis.RedisMessage).AsBytes) }
func (r *reply) millis(i int) time.Duration { return time.Duration(r.int(i)) * time.Millisecond }

func (r *reply) list(i int) []rueidis.RedisMessage {
	return get(r, i, (*rueidis.RedisMessage).ToArray)
}

// record reads a value and, behind it, what PTTL says of it.
func (r *reply) record(i int) *store.Record {
	if !r.has(i) {
		return nil
	}
	rec := recordOf(r.bytes(i))
	if left := r.millis(i + 1); left >= 0 {
		rec.Expires = time.Now().Add(left)
	}
	return &rec
}
