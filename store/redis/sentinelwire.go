package redis

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// A sentinelConn is a connection to one Sentinel. Its requests are few and small, and they are not pipelined by many
// callers, so that it needs nothing of what a wire does; and it subscribes, which a wire cannot.
type sentinelConn struct {
	nc  net.Conn
	opt *SentinelOptions
	buf []byte // what has arrived
	pos int    // what of it is read
}

// sentinelLimits: a Sentinel that knows hundreds of others answers some hundred KB.
var sentinelLimits = resp.ReplyLimits{Bulk: 64 << 10, Elems: 1 << 16, Depth: 3, Reply: 4 << 20}

func dialSentinel(ctx context.Context, addr string, opt *SentinelOptions) (*sentinelConn, error) {
	pw, err := password(opt.Password, opt.PasswordFile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, opt.ConnectTimeout)
	defer cancel()
	nc, err := dialTLS(ctx, "tcp", addr, opt.TLS)
	if err != nil {
		return nil, err
	}
	c := &sentinelConn{nc: nc, opt: opt}
	if pw != "" {
		login := []string{"AUTH", pw}
		if opt.Username != "" {
			login = []string{"AUTH", opt.Username, pw}
		}
		if _, err := c.do(login); err != nil {
			nc.Close()
			return nil, err
		}
	}
	return c, nil
}

func (c *sentinelConn) send(commands ...[]string) error {
	var b []byte
	for _, args := range commands {
		b = resp.AppendArrayLen(b, len(args))
		for _, a := range args {
			b = resp.AppendBulkString(b, a)
		}
	}
	c.nc.SetWriteDeadline(time.Now().Add(c.opt.WriteTimeout))
	_, err := c.nc.Write(b)
	return err
}

// read returns the next reply, or push. Its strings are good until the next one.
func (c *sentinelConn) read(within time.Duration) (resp.Value, error) {
	c.nc.SetReadDeadline(time.Now().Add(within))
	for {
		v, n, _, err := resp.ParseReply(c.buf[c.pos:], sentinelLimits)
		if err == nil {
			c.pos += n
			return v, nil
		}
		if !errors.Is(err, resp.ErrIncomplete) {
			return v, err
		}
		c.buf = c.buf[:copy(c.buf, c.buf[c.pos:])]
		c.pos = 0
		if len(c.buf) == cap(c.buf) {
			c.buf = append(make([]byte, 0, max(4<<10, 2*cap(c.buf))), c.buf...)
		}
		k, err := c.nc.Read(c.buf[len(c.buf):cap(c.buf)])
		if err != nil {
			return v, err
		}
		c.buf = c.buf[:len(c.buf)+k]
	}
}

// do sends commands at once and returns their answers, of which the first that is an error is the error.
func (c *sentinelConn) do(commands ...[]string) (answers []sentinelAnswer, err error) {
	if err := c.send(commands...); err != nil {
		return nil, err
	}
	for range commands {
		v, e := c.read(c.opt.ReadTimeout)
		if e != nil {
			return nil, e
		}
		if v.Kind == resp.Error && err == nil {
			err = newReplyError(string(v.Str))
		}
		answers = append(answers, newAnswer(v))
	}
	return answers, err
}

// A sentinelAnswer is a reply: a text, or a list.
type sentinelAnswer struct {
	text string
	list []sentinelAnswer
}

func newAnswer(v resp.Value) (a sentinelAnswer) {
	for _, e := range v.Elems {
		a.list = append(a.list, newAnswer(e))
	}
	if a.text = string(v.Str); v.Kind == resp.Int {
		a.text = strconv.FormatInt(v.Int, 10)
	}
	return a
}

// fields reads a list of name and value, name and value.
func (a sentinelAnswer) fields() map[string]string {
	m := make(map[string]string, len(a.list)/2)
	for i := 0; i+1 < len(a.list); i += 2 {
		m[a.list[i].text] = a.list[i+1].text
	}
	return m
}

// ask asks what the Sentinel makes of master.
func (c *sentinelConn) ask(master string) (view, error) {
	v := view{asked: time.Now()}
	a, err := c.do([]string{"SENTINEL", "GET-MASTER-ADDR-BY-NAME", master}, []string{"SENTINEL", "MASTER", master},
		[]string{"SENTINEL", "SENTINELS", master}, []string{"SENTINEL", "MYID"})
	if len(a) == 4 && err != nil && strings.Contains(err.Error(), "No such master") {
		return v, errNoMaster
	}
	if err != nil {
		return v, err
	}
	if len(a[0].list) != 2 {
		return v, errNoMaster
	}
	m := a[1].fields()
	v.addr = net.JoinHostPort(a[0].list[0].text, a[0].list[1].text)
	v.id = a[3].text
	if v.epoch, err = strconv.ParseUint(m["config-epoch"], 10, 64); err != nil || v.id == "" {
		return v, errors.New("what answers is not a Sentinel")
	}
	ms, _ := strconv.Atoi(m["down-after-milliseconds"])
	v.downAfter = time.Duration(ms) * time.Millisecond
	if ms, _ := strconv.Atoi(m["last-ping-sent"]); ms > 0 { // since the first one that was not answered, or 0
		v.silent = time.Now().Add(-time.Duration(ms) * time.Millisecond)
	}
	for flag := range strings.SplitSeq(m["flags"], ",") {
		switch flag {
		case "s_down", "disconnected":
			v.down = true
		case "o_down", "failover_in_progress", "force_failover":
			v.failing = true
		}
	}
	for _, other := range a[2].list {
		f := other.fields()
		if f["ip"] != "" && f["runid"] != "" {
			v.others = append(v.others, peer{f["runid"], net.JoinHostPort(f["ip"], f["port"])})
		}
	}
	return v, nil
}

// An event is what a Sentinel publishes about a master: "+odown", say.
type event struct{ name, about string }

// listen subscribes and calls heard with every event, until the connection breaks. A Sentinel that has nothing to say is
// asked every second whether it is there.
func (c *sentinelConn) listen(heard func(event)) error {
	if err := c.send([]string{"PSUBSCRIBE", "*"}); err != nil {
		return err
	}
	for asked := false; ; {
		v, err := c.read(time.Second)
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout() && !asked:
			asked = true
			if err := c.send([]string{"PING"}); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case v.Kind == resp.Error:
			return newReplyError(string(v.Str))
		}
		asked = false
		if a := newAnswer(v); len(a.list) == 4 && a.list[0].text == "pmessage" {
			heard(event{a.list[2].text, a.list[3].text})
		}
	}
}
