package gateway

import (
	"bytes"
	"time"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
)

// MULTI is for handlers that send SET and ZADD, or SETNX and EXPIRE, as one: until EXEC the commands are kept, and then run
// one after the other. Nobody else's come in between in Redis; here they may, since sessions lie in more than one place
// during a move. So there is no WATCH, and what runs is what would run without MULTI.

// transaction is what a connection has sent since MULTI.
type transaction struct {
	queue [][][]byte
	size  int  // of its arguments
	bad   bool // EXEC is to be refused
}

// queueing stands for a command that waits for EXEC.
var queueing = &command{name: "MULTI", local: (*conn).enqueue}

const (
	textAborted = "EXECABORT Transaction discarded because of previous errors."
	textBecause = "EXECABORT Transaction discarded because of: " // without the error's ERR
)

// inMulti changes a request that was understood while there is a transaction, or should be one.
func (c *conn) inMulti(r *request) {
	end := r.cmd.op == opExec || r.cmd.name == "DISCARD"
	switch {
	case end && c.multi == nil:
		r.fail = "ERR " + r.cmd.name + " without MULTI"
	case r.cmd.op == opExec && c.multi.bad:
		r.fail = textAborted
	case c.multi == nil || end || r.cmd.free:
	case r.cmd.name == "MULTI":
		r.fail = "ERR MULTI calls can not be nested"
	case r.cmd.local != nil:
		r.fail = "ERR sessile: '" + r.cmd.name + "' is not served inside MULTI"
	default:
		r.cmd = queueing
	}
}

func (c *conn) begin([][]byte) {
	c.multi = &transaction{}
	c.simple("OK")
}

// enqueue keeps a command. All of them together may be as large as one, and as many as it has arguments.
func (c *conn) enqueue(args [][]byte) {
	m, size := c.multi, 0
	kept := make([][]byte, len(args))
	for i, a := range args {
		kept[i] = bytes.Clone(a)
		size += len(a) + 64
	}
	if m.size+size > c.s.auth.Request || len(m.queue) == c.s.site.Limits.Args {
		m.bad = true
		c.fail("ERR sessile: the transaction is too large")
		return
	}
	m.queue, m.size = append(m.queue, kept), m.size+size
	c.charge(size)
	c.simple("QUEUED")
}

func (c *conn) discard([][]byte) {
	c.endMulti()
	c.simple("OK")
}

// endMulti forgets the transaction, if there is one.
func (c *conn) endMulti() {
	if c.multi != nil {
		c.charge(-c.multi.size)
		c.multi = nil
	}
}

// execMulti runs what was kept. The clock is not the connection's, which is its loop's.
func (c *conn) execMulti() (res result) {
	queue := c.multi.queue
	defer c.endMulti()
	b, away := resp.AppendArrayLen(nil, len(queue)), false
	for _, args := range queue {
		r := &request{site: &c.s.site, began: time.Now()}
		if r.cmd, r.fail = c.s.lookup(args); r.fail == "" {
			r.now = r.began
			r.cmd.parse(r, args)
		}
		switch {
		case r.fail != "":
			b = resp.AppendError(b, r.fail)
		case len(b) > c.s.site.Limits.Output:
			b = resp.AppendError(b, string(errTooLarge))
		default:
			var one result
			switch {
			case !away || r.cmd.op == opSorted:
				one = c.run(r)
				away = away || store.Failed(one.err)
			case r.cmd.op == opExists: // see exists
				one.n = int64(len(r.keys))
			default: // they are not all waited for
				one.err = store.ErrUnavailable
			}
			b = r.render(b, c.proto, &one)
			if f := c.s.hooks.Done; f != nil {
				f(Event{r.cmd.name, one.outcome(r.cmd), time.Since(r.began)})
			}
		}
	}
	res.data = b
	return res
}
