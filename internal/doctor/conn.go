package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// A door is where a server is to be found, and what it wants to hear from whoever comes in.
type door struct {
	network, addr      string
	tls                *tls.Config // nil: none
	username, password string
	dial, answer       time.Duration // how long it may take to come in, and to be answered
}

// conn is a connection on which one question is asked after the other.
type conn struct {
	net.Conn
	timeout time.Duration
}

// refusal is an error that a server answered.
type refusal string

func (r refusal) Error() string { return string(r) }

func (r refusal) code() string {
	code, _, _ := strings.Cut(string(r), " ")
	return code
}

// knock connects and says nothing.
func (d door) knock(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.dial)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, d.network, d.addr)
	if err != nil {
		return nil, err
	}
	if d.tls == nil {
		return &conn{nc, d.answer}, nil
	}
	config := d.tls.Clone()
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(d.addr) // it was dialled
	}
	tc := tls.Client(nc, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return &conn{tc, d.answer}, nil
}

// enter connects and logs in.
func (d door) enter(ctx context.Context) (*conn, error) {
	c, err := d.knock(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case d.username != "":
		_, err = c.do(ctx, "AUTH", d.username, d.password)
	case d.password != "":
		_, err = c.do(ctx, "AUTH", d.password)
	}
	if err == nil {
		_, err = c.do(ctx, "PING")
		// A server that may not write, or lets us do no more than it has to, still tells of itself.
		if no := refusal(""); errors.As(err, &no) && slices.Contains([]string{"NOPERM", "MISCONF", "MASTERDOWN", "BUSY"}, no.code()) {
			err = nil
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// do asks and waits for the answer. An error that the server answers is a refusal; after any other the connection is of
// no use.
func (c *conn) do(ctx context.Context, args ...string) (resp.Value, error) {
	deadline := time.Now().Add(c.timeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	c.SetDeadline(deadline)
	unwatch := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()
	if _, err := c.Write(resp.AppendRequestStrings(nil, args...)); err != nil {
		return resp.Value{}, err
	}
	var buf []byte
	for {
		v, n, _, err := resp.ParseReply(buf, resp.ReplyLimits{})
		switch {
		case err == nil && n < len(buf):
			return v, errors.New("more answers than questions")
		case err == nil && v.Kind == resp.Error:
			return v, refusal(refused(v))
		case err == nil:
			return v, nil
		case !errors.Is(err, resp.ErrIncomplete):
			return v, fmt.Errorf("what answers is not Redis: %w", err)
		}
		var chunk [16 << 10]byte
		got, err := c.Read(chunk[:])
		if err != nil {
			return v, err
		}
		buf = append(buf, chunk[:got]...)
	}
}

// refused is the text of an error without what it quotes of the command.
func refused(v resp.Value) string {
	text, _, _ := strings.Cut(text(v), ", with args")
	return text[:min(len(text), 200)]
}

// text is a reply that is one string, or a number.
func text(v resp.Value) string {
	if v.Kind == resp.Int {
		return fmt.Sprint(v.Int)
	}
	return string(v.Str)
}

// pairs is a reply that is a list of names and values.
func pairs(v resp.Value) Fields {
	f := Fields{}
	for i := 0; i+1 < len(v.Elems); i += 2 {
		f[text(v.Elems[i])] = text(v.Elems[i+1])
	}
	return f
}
