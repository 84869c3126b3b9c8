package cassandra

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store"
)

// A dialer makes the connections of a session. The driver's own one has no bound for the handshake of TLS, and what was wrong with a
// connection is not always in the driver's errors.
type dialer struct {
	opt *Options

	mu   sync.Mutex // guards what follows
	tls  error      // of a handshake, or what the node has said after it
	ours bool       // that was about our certificate
	mute bool       // a node has ended a connection without a word
}

// DialHost implements gocql.HostDialer.
func (d *dialer) DialHost(ctx context.Context, host *gocql.HostInfo) (*gocql.DialedHost, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opt.DialTimeout)
	defer cancel()
	conn, err := cmp.Or(d.opt.dialer, gocql.Dialer(&net.Dialer{})).DialContext(ctx, "tcp", host.ConnectAddressAndPort())
	if err != nil {
		return nil, err
	}
	dialed, err := gocql.WrapTLS(ctx, conn, host.HostnameAndPort(), d.opt.TLS)
	if err != nil {
		d.note(err, strings.Contains(err.Error(), "remote error") && strings.Contains(err.Error(), "certificate"))
		return nil, err
	}
	dialed.Conn = &firstWord{Conn: dialed.Conn, d: d}
	return dialed, nil
}

func (d *dialer) note(err error, ours bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case strings.Contains(err.Error(), "tls: "): // so begins the text of each error of that package
		d.tls, d.ours = err, ours
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		d.mute = true
	}
}

// firstWord is a connection of which is noted how it ends before the node has said anything. With TLS 1.3 a node looks at our
// certificate when we are done with the handshake (RFC 8446, 2), and may say anything of it: of one whose CA has the right name and
// another key, Cassandra 5.0 says "internal error".
type firstWord struct {
	net.Conn
	d     *dialer
	heard atomic.Bool
}

func (c *firstWord) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(true)
	}
	if err != nil && !c.heard.Load() {
		c.d.note(err, true)
	}
	return n, err
}

// Write fails where the node has gone away by then. What it has said before is read now: the driver only closes.
func (c *firstWord) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !c.heard.Load() && c.SetReadDeadline(time.Now().Add(100*time.Millisecond)) == nil {
		if _, err := c.Conn.Read(make([]byte, 1)); err != nil {
			c.d.note(err, true)
		}
	}
	return n, err
}

// explain says why there is no session. What a node has refused is not mended by waiting for it, so that is not ErrDown.
func (d *dialer) explain(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	why, text := store.ErrDown, err.Error()
	switch {
	case d.tls != nil:
		if !strings.Contains(text, d.tls.Error()) {
			err = fmt.Errorf("%w: %w", err, d.tls)
		}
		said := d.tls.Error()
		if !strings.Contains(said, "expired") { // for that alone a gateway in ramp-down is to begin all the same
			why = store.ErrUnavailable
		}
		switch {
		case d.ours:
			err = fmt.Errorf("%w (cert_file=, key_file=)", err)
		case strings.Contains(said, "unknown authority"):
			err = fmt.Errorf("%w (ca_file=)", err)
		}
	case strings.Contains(text, "password"), strings.Contains(text, "authentication"): // all that the driver leaves of it
		why = store.ErrUnavailable
	case d.mute && d.opt.TLS == nil:
		err = fmt.Errorf("%w: a node has ended the connection without a word: does it want TLS (tls=)?", err)
	}
	return fmt.Errorf("store/cassandra: %w: %w", why, err)
}
