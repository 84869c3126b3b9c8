package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/rueidis"
)

// Writes that store.Replicated marks are answered when the replicas have them. WAIT holds up everything behind it on its
// connection, and speaks of all that its connection has written: so they go by a connection of their own, many with one
// WAIT, and those that come meanwhile are the next ones.
//
// All replicas that were connected when the writes were sent have to confirm. One is not enough: in a failover that
// somebody asks for, the replicas that are not chosen stay with the old primary for a while, and confirm what is about to
// be lost (measured: 5,553 writes that WAIT 1 had confirmed).

// A marshal collects writes for one node.
type marshal struct {
	mu      sync.Mutex // guards what follows
	waiting []*march
	busy    bool
}

// A march is a write that waits for its answer.
type march struct {
	args    []string
	late    lateArgs
	through uint32      // the reasons for which a gate may be shut that it passes
	taken   atomic.Bool // by who sends it, or by its caller, who has no time left
	msg     rueidis.RedisMessage
	err     error
	done    chan struct{}
}

// maxMarch is how many writes share a WAIT. rueidis' queue has room for 1024 commands.
const maxMarch = 256

var (
	errShort       = errors.New("not all replicas confirmed in time")
	errUnconfirmed = errors.New("the server changed while its replicas were waited for")
)

// replicated is try for a write that the replicas shall have.
func (n *node) replicated(ctx context.Context, args []string, late lateArgs) (rueidis.RedisMessage, error) {
	m := &march{args: args, late: late, through: passes(ctx), done: make(chan struct{})}
	r := &n.marshal
	r.mu.Lock()
	if len(r.waiting) >= maxHeld {
		r.mu.Unlock()
		return m.msg, errCrowd
	}
	r.waiting = append(r.waiting, m)
	begin := !r.busy
	r.busy = true
	r.mu.Unlock()
	if begin {
		n.s.wg.Go(n.march)
	}
	select {
	case <-m.done:
		return m.msg, m.err
	case <-ctx.Done():
		if m.taken.CompareAndSwap(false, true) {
			return rueidis.RedisMessage{}, errStalled // it was not sent, and will not be
		}
		return rueidis.RedisMessage{}, context.Cause(ctx)
	}
}

// march sends what is waiting until nothing is.
func (n *node) march() {
	r := &n.marshal
	for {
		r.mu.Lock()
		k := min(len(r.waiting), maxMarch)
		batch := r.waiting[:k:k]
		if r.waiting = r.waiting[k:]; k == 0 {
			r.busy = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		n.sendMarch(batch)
		for _, m := range batch {
			close(m.done)
		}
	}
}

// sendMarch sends those of batch whose callers are still there, at once, and a WAIT behind them.
func (n *node) sendMarch(batch []*march) {
	f := &n.s.opt.Failover
	w := n.slow.wire.Load()
	away := w == nil || !w.conn.up()
	shut := n.gate.shut.Load() // behind the connection, as in try
	var sent []*march
	for _, m := range batch {
		switch {
		case !m.taken.CompareAndSwap(false, true):
		case away:
			m.err = fmt.Errorf("%w: %w", errAdrift, errNotSent)
		case shut&^m.through != 0:
			m.err = errAdrift
		default:
			sent = append(sent, m)
		}
	}
	if len(sent) == 0 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), n.s.opt.Timeout+f.Wait, n.s.errTimeout)
	defer cancel()
	replicas := n.replicas.Load()
	commands := make(rueidis.Commands, 0, len(sent)+1)
	at := make([]int, len(sent)) // the places of their answers
	for i, m := range sent {
		if m.late != nil {
			m.late(w, m.args)
		}
		args := m.args
		if args[0] == askingCommand {
			commands, args = append(commands, w.client.B().Asking().Build()), args[1:]
		}
		at[i] = len(commands)
		commands = append(commands, w.client.B().Arbitrary(args...).Build())
	}
	wait := strconv.FormatInt(f.Wait.Milliseconds(), 10)
	commands = append(commands, w.client.B().Arbitrary("WAIT", strconv.FormatInt(replicas, 10), wait).Build())
	results := w.client.DoMulti(ctx, commands...)
	have, err := results[len(results)-1].AsInt64()
	no, refused := rueidis.IsRedisErr(err)
	unknown := err != nil && (!refused || strings.HasPrefix(no.Error(), "UNBLOCKED"))
	short := err != nil || have < replicas || replicas == 0
	for i, m := range sent {
		m.msg, m.err = reading(results[at[i]])
		var re *rueidis.RedisError
		switch {
		case errors.As(m.err, &re):
			m.err = newReply(re)
		case m.err != nil:
		case unknown:
			m.err = errUnconfirmed
		case short && f.Strict:
			m.err = errShort
		case short:
			n.s.shortfalls.Add(1)
		}
	}
}
