package gateway

import (
	"bytes"
	"context"
	"errors"
	flags "flag"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/resp"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(inheritingChild())
	}
	goleak.VerifyTestMain(m)
}

// scripted is a memory store that fails, waits and counts as a test says.
type scripted struct {
	*memory.Store
	loads, saves, deletes, locks atomic.Int64

	mu     sync.Mutex
	before func(op, key string) error // an error is the answer, and nothing is done
	after  func(op, key string) error // an error is the answer, and it was done
}

func newScripted() *scripted { return &scripted{Store: memory.New(memory.Options{})} }

func (s *scripted) set(before, after func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func (s *scripted) around(op, key string, do func() error) error {
	s.mu.Lock()
	before, after := s.before, s.after
	s.mu.Unlock()
	if before != nil {
		if err := before(op, key); err != nil {
			return err
		}
	}
	err := do()
	if after != nil {
		if err := after(op, key); err != nil {
			return err
		}
	}
	return err
}

func (s *scripted) Load(ctx context.Context, key string) (rec store.Record, err error) {
	s.loads.Add(1)
	err = s.around("load", key, func() error { rec, err = s.Store.Load(ctx, key); return err })
	return rec, err
}

func (s *scripted) Inspect(ctx context.Context, key string) (rec store.Record, err error) {
	err = s.around("load", key, func() error { rec, err = s.Store.Inspect(ctx, key); return err })
	return rec, err
}

func (s *scripted) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	s.saves.Add(1)
	return s.around("save", key, func() error { return s.Store.Save(ctx, key, rec, cond) })
}

func (s *scripted) Touch(ctx context.Context, key string, expires time.Time) error {
	return s.around("touch", key, func() error { return s.Store.Touch(ctx, key, expires) })
}

func (s *scripted) Delete(ctx context.Context, key string, cond store.Condition) (existed bool, err error) {
	s.deletes.Add(1)
	err = s.around("delete", key, func() error { existed, err = s.Store.Delete(ctx, key, cond); return err })
	return existed, err
}

func (s *scripted) Lock(ctx context.Context, key, token string, life time.Duration) error {
	s.locks.Add(1)
	return s.around("lock", key, func() error { return s.Store.Lock(ctx, key, token, life) })
}

func (s *scripted) Unlock(ctx context.Context, key, token string) (held bool, err error) {
	err = s.around("unlock", key, func() error { held, err = s.Store.Unlock(ctx, key, token); return err })
	return held, err
}

func (s *scripted) LockHolder(ctx context.Context, key string) (token string, left time.Duration, err error) {
	err = s.around("holder", key, func() error { token, left, err = s.Store.LockHolder(ctx, key); return err })
	return token, left, err
}

// failing answers err to the operations named.
func failing(err error, ops ...string) func(op, key string) error {
	return func(op, key string) error {
		if slices.Contains(ops, op) {
			return err
		}
		return nil
	}
}

// gateway is a server under test with one listener.
type gateway struct {
	*Server
	t       testing.TB
	addr    net.Addr
	done    chan error
	viaLoop bool
}

// start serves site on a loopback address until the end of the test. Where site has no store, it gets one in memory.
func start(t testing.TB, site Site) *gateway { return startWith(t, site, Options{}) }

func startWith(t testing.TB, site Site, opt Options) *gateway {
	t.Helper()
	return startOn(t, site, opt, freeListener(t))
}

// freeListener returns a listener on a free address. That is a unix socket while fuzzing: the ports of a machine do not last for
// a minute of connections, each of which keeps its own in TIME_WAIT for as long.
func freeListener(t testing.TB) net.Listener {
	t.Helper()
	network, addr := "tcp", "127.0.0.1:0"
	if f := flags.Lookup("test.fuzz"); f != nil && f.Value.String() != "" {
		dir, err := os.MkdirTemp("", "gw")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		network, addr = "unix", dir+"/s"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func startOn(t testing.TB, site Site, opt Options, l net.Listener) *gateway {
	t.Helper()
	if site.Store == nil {
		site.Store = memory.New(memory.Options{})
	}
	if site.Lifetime == 0 {
		site.Lifetime = time.Hour
	}
	if opt.Logger == nil && os.Getenv("GATEWAY_LOG") != "" {
		opt.Logger = slog.Default()
	}
	site = throughLoop(t, site)
	s, err := New(site, opt)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Server: s, t: t, addr: l.Addr(), done: make(chan error, 1), viaLoop: viaLoop}
	go func() { g.done <- s.Serve(l) }()
	g.linked()
	t.Cleanup(func() {
		s.Close()
		if err := <-g.done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: got %v, want ErrServerClosed", err)
		}
		if n := s.Stats(); n.Panics != 0 || n.Memory != 0 || n.Open != 0 {
			t.Errorf("at the end: %+v; want no panics, no memory, no connections", n)
		}
	})
	return g
}

// client is a connection that a test sends bytes on.
type client struct {
	t   testing.TB
	nc  net.Conn
	buf []byte
}

func (g *gateway) dial() *client {
	g.t.Helper()
	nc, err := net.Dial(g.addr.Network(), g.addr.String())
	if err != nil {
		g.t.Fatal(err)
	}
	return newClient(g.t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	t.Cleanup(func() { nc.Close() })
	return &client{t: t, nc: nc}
}

const patience = 10 * time.Second // for what should take milliseconds

func (c *client) send(b string) {
	c.t.Helper()
	c.nc.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.nc, b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// reply reads one reply and returns its bytes.
func (c *client) reply() string {
	c.t.Helper()
	r, err := c.tryReply(patience)
	if err != nil {
		c.t.Fatalf("no reply: %v (got %q)", err, c.buf)
	}
	return r
}

func (c *client) tryReply(d time.Duration) (string, error) {
	c.nc.SetReadDeadline(time.Now().Add(d))
	for {
		_, n, _, err := resp.ParseReply(c.buf, resp.ReplyLimits{Bulk: 64 << 20})
		if err == nil {
			r := string(c.buf[:n])
			c.buf = bytes.Clone(c.buf[n:])
			return r, nil
		}
		if !errors.Is(err, resp.ErrIncomplete) {
			return "", err
		}
		var b [32 << 10]byte
		k, err := c.nc.Read(b[:])
		c.buf = append(c.buf, b[:k]...)
		if err != nil && k == 0 {
			return "", err
		}
	}
}

// do sends one command and returns the reply's bytes.
func (c *client) do(args ...string) string {
	c.t.Helper()
	c.send(command_(args...))
	return c.reply()
}

func (c *client) want(want string, args ...string) {
	c.t.Helper()
	if got := c.do(args...); got != want {
		c.t.Errorf("%.200q: got %.300q, want %.300q", args, got, want)
	}
}

// closed checks that the server closed the connection and had nothing more to say.
func (c *client) closed() {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.nc)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Error("the connection is still open")
	}
	if len(c.buf)+len(rest) > 0 {
		c.t.Errorf("before the end there was %.300q", append(c.buf, rest...))
	}
}

func (c *client) close() { c.nc.Close() }

func command_(args ...string) string { return string(resp.AppendRequestStrings(nil, args...)) }

func bulk(s string) string { return string(resp.AppendBulkString(nil, s)) }

const null = "$-1\r\n"

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// syncBuilder collects what is logged.
type syncBuilder struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuilder) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// plain is a store that can do nothing but what every store can.
type plain struct{ *scripted }

func (s *plain) Capabilities() store.Capabilities { return store.Capabilities{} }

func (s *plain) Save(ctx context.Context, key string, rec store.Record, cond store.Condition) error {
	if cond != store.Always {
		return errors.ErrUnsupported
	}
	return s.scripted.Save(ctx, key, rec, cond)
}

func (s *plain) Delete(ctx context.Context, key string, cond store.Condition) (bool, error) {
	if cond != store.Always {
		return false, errors.ErrUnsupported
	}
	return s.scripted.Delete(ctx, key, cond)
}
