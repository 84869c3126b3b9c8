package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
)

// The raw wire, for a caller that multiplexes by itself. What it sends is what Load, Save, Touch and Delete would: GET,
// SET with PX, PEXPIRE and DEL of the name that DataKey makes; and SET with NX and PX of the name that LockKey makes, and
// the script that Unlock would run.

// Raw says what a caller of Dial has to know: whether its connections are plain sockets and not TLS, the size of a value
// beyond which Save refuses it, and how long an answer may take before the connection is to be given up.
func (s *Store) Raw() (plain bool, maxValue int, timeout time.Duration) {
	return s.opt.TLS == nil, s.opt.MaxValue, s.opt.Timeout
}

// A Shard is a server that has some of the sessions, or all of them: the same one as long as they change it together. It is
// an alias, so that those who use it need not import this package.
type Shard = interface {
	// Dial returns a connection of the caller's own. It is logged in, its database is selected, it speaks RESP2, and there is
	// nothing on it that is still to be answered. Close of the Store does not close it. Once current is false, the shard is at
	// another server: the caller has to close it then, before it uses anything that the store has answered since. Of a server
	// that does not say which one it is, that cannot be known. The error matches net.ErrClosed where the shard was given up.
	Dial(ctx context.Context) (nc net.Conn, current func() bool, err error)
	// Enter reports whether a command may be sent now by a connection of Dial. Who was let in has to Leave: while somebody is
	// inside, nothing is put back into a server that is new.
	Enter() bool
	// Leave undoes Enter.
	Leave()
	// Trusted reports whether an answer may be passed on that has come just now.
	Trusted() bool
}

// Shard returns who has what is called name in Redis, nil where that has to be found out for each command: nobody has it as
// far as is known, or its slot is on its way from one server to another. What it answers may be out of date: then the server
// refuses the command (MOVED, ASK), and has not executed it.
func (s *Store) Shard(name []byte) Shard {
	if s.cluster == nil {
		return s.node
	}
	slot := slotOf(name)
	h := s.cluster.owner[slot].Load()
	if h == nil || s.cluster.asked[slot].Load() != nil || s.cluster.splitSlots()[slot] != nil {
		return nil
	}
	return h.node
}

// A node is a Shard.

func (n *node) Dial(ctx context.Context) (nc net.Conn, current func() bool, err error) {
	if n.over.Load() {
		return nil, nil, fmt.Errorf("store/redis: connect: the shard is no more: %w", net.ErrClosed)
	}
	password, err := n.s.opt.password()
	if err != nil {
		return nil, nil, err
	}
	dial, p := n.dials.Add(1), n.place.Load()
	if nc, err = n.dial(ctx, p); err == nil {
		var server string
		if server, err = n.s.login(ctx, nc, password); err == nil {
			if current, err = n.admitRaw(p, server, dial); err == nil {
				return nc, current, nil
			}
		}
		nc.Close()
	}
	return nil, nil, fmt.Errorf("store/redis: connect: %w: %w", store.ErrUnavailable, err)
}

func (n *node) Enter() bool {
	n.gate.inside.Add(1)
	if n.gate.shut.Load() == 0 && n.trusted() {
		return true
	}
	n.gate.inside.Add(-1)
	return false
}

func (n *node) Leave() { n.gate.inside.Add(-1) }

func (n *node) Trusted() bool { return n.trusted() }

// FailsOver reports whether the servers change their roles: there is something to count then, and to decide.
func (s *Store) FailsOver() bool { return s.opt.watched() }

// Replicates reports whether a write that store.Replicated marks waits for replicas.
func (s *Store) Replicates() bool { return s.opt.replicates() }

// admitRaw is admit for a connection that is the caller's.
func (n *node) admitRaw(p *place, server string, dial uint64) (current func() bool, err error) {
	n.admission.Lock()
	defer n.admission.Unlock()
	if n.over.Load() || p != n.place.Load() || server != "" && n.settle(server, dial) != nil {
		return nil, errMoved
	}
	n.s.generation.Add(1)
	moves := n.moves.Load()
	return func() bool { return server == "" || n.moves.Load() == moves }, nil
}

// login sends everything at once: each command but the last one has one line for an answer, and an error does not keep
// those behind it from being answered. It returns the run_id of the server, as wire.identify does.
func (s *Store) login(ctx context.Context, nc net.Conn, password string) (server string, err error) {
	nc.SetDeadline(time.Now().Add(s.opt.DialTimeout))
	unwatch := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()
	var request []byte
	commands := 0
	command := func(args ...string) {
		request = fmt.Appendf(request, "*%d\r\n", len(args))
		for _, a := range args {
			request = fmt.Appendf(request, "$%d\r\n%s\r\n", len(a), a)
		}
		commands++
	}
	switch {
	case s.opt.Username != "":
		command("AUTH", s.opt.Username, password)
	case password != "":
		command("AUTH", password)
	}
	if s.opt.Database != 0 {
		command("SELECT", strconv.Itoa(s.opt.Database))
	}
	command("CLIENT", "SETNAME", "sessile")
	simple := commands
	section := "server"
	if s.opt.watched() {
		section = "default"
	}
	command("INFO", section)
	if _, err := nc.Write(request); err != nil {
		return "", err
	}
	r := bufio.NewReader(nc)
	for range simple {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return "", fmt.Errorf("login: %w", err)
		}
		switch line := strings.TrimRight(string(line), "\r\n"); {
		case strings.HasPrefix(line, "-"):
			return "", newReplyError(line[1:])
		case line != "+OK":
			return "", errors.New("login: what answers is not Redis")
		}
	}
	if server, err = readIdentity(r, s.opt.watched()); err != nil {
		return "", err
	}
	if r.Buffered() > 0 {
		return "", errors.New("login: more answers than commands")
	}
	if !unwatch() {
		return "", context.Cause(ctx)
	}
	return server, nc.SetDeadline(time.Time{})
}

// readIdentity reads the answer to INFO.
func readIdentity(r *bufio.Reader, primary bool) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("login: %w", err)
	}
	head := strings.TrimRight(string(line), "\r\n")
	switch {
	case strings.HasPrefix(head, "-"):
		if err := newReplyError(strings.TrimPrefix(head[1:], "ERR ")); primary || !err.silent() {
			return "", err
		}
		return "", nil
	case !strings.HasPrefix(head, "$"):
		return identity("", primary, nil) // of one line, whatever it is
	}
	n, err := strconv.Atoi(head[1:])
	if err != nil || n < 0 || n > 1<<20 {
		return "", errors.New("login: what answers is not Redis")
	}
	text := make([]byte, n+len("\r\n"))
	if _, err := io.ReadFull(r, text); err != nil {
		return "", fmt.Errorf("login: %w", err)
	}
	return identity(string(text), primary, nil)
}

// DataKey appends to dst the name in Redis of the session under key, or fails as Load and Save would.
func (s *Store) DataKey(dst []byte, key string) ([]byte, error) {
	name := append(append(dst, s.opt.Prefix...), key...)
	if err := checkName(s, key, name[len(dst):]); err != nil {
		return dst, err
	}
	return name, nil
}

// LockKey appends to dst the name in Redis of the lock of the session under key, or fails as Lock would.
func (s *Store) LockKey(dst []byte, key string) ([]byte, error) {
	name, err := s.DataKey(dst, key)
	if err != nil {
		return dst, err
	}
	return append(name, s.opt.LockSuffix...), nil
}

// UnlockScript returns the SHA-1 of the script by which Unlock releases a lock. KEYS[1] is the lock, ARGV[1] the token; the
// answer is 0, and 1 or 0 for whether it was held. A server that was never asked before answers NOSCRIPT.
func (s *Store) UnlockScript() string { return unlockScript.sha }
