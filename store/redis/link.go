package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/sessile/sessile/store"
)

var (
	errClosed  = errors.New("the store is closed")
	errStalled = errors.New("too many commands wait for an answer")
	errNotSent = errors.New("the connection is gone")
	errMoved   = errors.New("the address is another server's now")
)

// A link is a place for one connection, which keep fills again and again.
//
// A rueidis client of its own for each connection, because then a connection that is being made can be told from one
// that broke with a command on it. A client that dialled anew by itself would do so inside of a command, under the
// context of whoever came first, and with errors that do not say whether the command was sent.
type link struct {
	wire  atomic.Pointer[wire]  // nil while there is none
	err   atomic.Pointer[error] // why the last attempt failed
	tried chan struct{}         // closed after the first attempt
}

// keep connects l, and connects it anew whenever the connection breaks, until ctx ends.
func (n *node) keep(ctx context.Context, l *link) {
	failures := 0
	tried := sync.OnceFunc(func() { close(l.tried) })
	rest := func(err error) {
		failures++
		pause := 10 * time.Millisecond << min(failures-1, 5)
		if misconfigured(err) {
			pause = 2 * time.Second // nothing gets better by asking often, and each try is a line in ACL LOG
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-n.moved():
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		w, err := n.connect(ctx)
		l.err.Store(&err)
		if err != nil {
			if tried(); failures == 0 && ctx.Err() == nil {
				n.log().Warn("redis: cannot connect", "error", err)
			}
			n.trouble()
			rest(err)
			continue
		}
		rival := n.admit(l, w)
		tried()
		if rival != nil {
			w.close()
			if w.server == "" && rival != w {
				n.log().Warn("redis: the server does not tell its run_id (INFO server): one connection has to do")
				select {
				case <-rival.conn.down:
				case <-ctx.Done():
				}
			}
			continue
		}
		log := n.log() // the node may be elsewhere when the connection ends
		log.Info("redis: connected")
		began := time.Now()
		select {
		case <-w.conn.down:
			log.Warn("redis: connection lost", "error", w.conn.cause())
		case <-ctx.Done():
			w.client.Close()
			w.conn.Close()
		}
		l.wire.Store(nil)
		n.lost()
		n.trouble()
		// A connection that we had to close will soon have to be closed again, where it is the address that is wrong.
		if err := w.conn.cause(); err != nil && time.Since(began) < time.Second {
			rest(err)
		} else {
			failures = 0
		}
	}
	l.err.Store(&errClosed)
}

// admit puts w to use, unless that cannot be: then it returns the connection that is in its way, or w itself where the
// node has moved since it was dialled.
func (n *node) admit(l *link, w *wire) (rival *wire) {
	n.admission.Lock()
	defer n.admission.Unlock()
	if w.place != n.place.Load() {
		return w
	}
	if rival = n.settle(w.server, w.dial); rival != nil {
		return rival
	}
	n.s.generation.Add(1) // first: nobody shall have an answer of w and not see it
	w.clock = n.clock
	lost := n.s.trackers.all
	w.conn.lost.Store(&lost)
	l.wire.Store(w)
	n.replicas.Store(w.replicas)
	n.found()
	return nil
}

// settle makes way for a connection of server, the dial-th, unless that cannot be. Callers hold admission.
//
// All connections in use are of one server. An address may move to another one (a proxy, a virtual IP) and leave the
// connections that there are where they are: as soon as one of ours is of another server, those made before are closed,
// so that none of them answers after it. Of a server that does not say which one it is, there is only one connection.
func (n *node) settle(server string, dial uint64) (rival *wire) {
	var strangers []*wire
	for _, other := range n.links {
		o := other.wire.Load()
		switch {
		case o == nil || !o.conn.up() || o.server == server && server != "":
		case server == "" || o.dial > dial: // where the address is now, we know from the one that was dialled last
			return o
		default:
			strangers = append(strangers, o)
		}
	}
	for _, o := range strangers {
		o.conn.cut(errMoved)
	}
	if n.attendant != nil && (server != n.server || !n.connected()) {
		n.attendant.arriving()
	}
	if server != n.server || server == "" {
		n.clock = new(serverClock)
	}
	if server != n.server {
		n.server = server
		n.moves.Add(1)
	}
	if server != n.seen {
		n.seen = server
		n.memories.Add(1)
	}
	return nil
}

// connect makes a connection and logs in on it. It gives up at once when the node moves: a server that was stopped lets
// one connect, and says nothing.
func (n *node) connect(ctx context.Context) (*wire, error) {
	p := n.place.Load()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.left:
			cancel(errMoved)
		case <-ctx.Done():
		}
	}()
	w, err := n.connectBy(ctx, func(ctx context.Context) (net.Conn, error) { return n.dial(ctx, p) })
	if err == nil {
		w.place = p
	}
	return w, err
}

func (n *node) connectBy(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*wire, error) {
	s := n.s
	password, err := s.opt.password()
	if err != nil {
		return nil, err
	}
	w := &wire{turn: make(chan struct{}, inFlight), dial: n.dials.Add(1)}
	unwatch := func() bool { return true }
	w.client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"sessile"}, // dialled by DialCtxFn
		ForceSingleClient: true,
		PipelineMultiplex: -1,   // one connection
		AlwaysPipelining:  true, // the other way ignores that a context is cancelled, and a deadline costs the connection
		DisableRetry:      true,
		DisableCache:      true,
		ClientSetInfo:     rueidis.DisableClientSetInfo, // Redis 7.2
		ClientName:        "sessile",
		Username:          s.opt.Username,
		Password:          password,
		SelectDB:          s.opt.Database,
		// Where nothing came for KeepAlive, a PING goes out, and no answer for ConnWriteTimeout breaks the connection.
		Dialer:              net.Dialer{Timeout: s.opt.DialTimeout, KeepAlive: min(s.opt.Timeout, time.Second)},
		ConnWriteTimeout:    s.opt.Timeout,
		ReadBufferEachConn:  buffer,
		WriteBufferEachConn: buffer,
		OnInvalidations: func(names []rueidis.RedisMessage) {
			if w.conn.up() { // rueidis says nil, too, of every connection that ends
				s.trackers.heard(s.opt.Prefix, names)
			}
		},
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			if w.conn != nil {
				return nil, errNotSent // a client is good for one connection
			}
			nc, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			w.conn = newConn(nc, s.limits)
			unwatch = context.AfterFunc(ctx, func() { w.conn.Close() }) // Close does not wait for a slow login
			return w.conn, nil
		},
	})
	if err == nil && s.opt.Track {
		err = w.track(ctx, s.opt.DialTimeout)
	}
	if err == nil {
		w.server, err = w.identify(ctx, s.opt.DialTimeout, !n.anyRole)
	}
	unwatch()
	if err == nil {
		return w, nil
	}
	w.close()
	if errors.Is(err, errUntracked) {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if re, ok := rueidis.IsRedisErr(err); ok {
		return nil, newReply(re)
	}
	return nil, fmt.Errorf("connect: %w", err)
}

// identify asks the server which one it is. The answer is "" where that cannot be had: the user may not run INFO, there is
// no such command, or it does not say. One that has to be a primary has to say so, and which one it is.
func (w *wire) identify(ctx context.Context, timeout time.Duration, primary bool) (server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	section := "server"
	if primary {
		section = "default"
	}
	msg, err := w.exchange(ctx, "INFO", section)
	if re, ok := rueidis.IsRedisErr(err); ok && !primary && newReply(re).silent() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	text, err := msg.ToString()
	w.replicas = online(infoFields(text))
	return identity(text, primary, err)
}

// identity reads an answer to INFO.
func identity(text string, primary bool, err error) (server string, _ error) {
	info := infoFields(text)
	switch {
	case err != nil || !primary:
	case info["role"] != "master":
		err = errNotPrimary
	case info["run_id"] == "":
		err = errors.New("the server does not tell its run_id (INFO)")
	}
	return info["run_id"], err
}

// dial connects to where the node is.
func (n *node) dial(ctx context.Context, p *place) (net.Conn, error) {
	if p.addr == "" {
		return nil, p.err
	}
	ctx, cancel := context.WithTimeout(ctx, n.s.opt.DialTimeout)
	defer cancel()
	return dialTLS(ctx, p.network, p.addr, n.s.opt.TLS)
}

func dialTLS(ctx context.Context, network, addr string, conf *tls.Config) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil || conf == nil {
		return nc, err
	}
	if conf.ServerName == "" {
		conf = conf.Clone()
		conf.ServerName, _, _ = net.SplitHostPort(addr)
	}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return tc, nil
}

// conn says when it is closed, which is the first thing that rueidis does with a connection that broke, and lets nothing
// through to rueidis but replies that it can read, and not more of them than commands were sent.
type conn struct {
	net.Conn
	once sync.Once
	down chan struct{}
	why  error // set before down is closed

	// lost, once it is in use, is called when it is closed: what was read on it has nobody to tell of it any more. In this
	// order: who sees it open has asked before lost is called.
	lost     atomic.Pointer[func()]
	tracking atomic.Bool // the server may tell what changes

	replies, commands framing // each is followed by one goroutine at a time: rueidis' reader, its writer
	sent              atomic.Int64
}

func newConn(nc net.Conn, lim framingLimits) *conn {
	c := &conn{Conn: nc, down: make(chan struct{})}
	c.replies.lim, c.replies.asked, c.replies.pushed = lim, c.sent.Load, c.tracking.Load
	c.commands.lim = framingLimits{bulk: math.MaxInt, elems: math.MaxInt, room: math.MaxInt}
	return c
}

func (c *conn) Close() error {
	c.over(nil) // first: who sees it open believes that a command may be sent
	return c.Conn.Close()
}

// cut closes c for a reason of our own. What has arrived on it and was not read yet is nobody's answer any more.
func (c *conn) cut(why error) {
	c.over(why)
	sock := c.Conn
	if tc, ok := sock.(*tls.Conn); ok {
		sock = tc.NetConn() // without a goodbye, which may take its time
	}
	sock.Close()
}

func (c *conn) over(why error) {
	c.once.Do(func() {
		c.why = why
		close(c.down)
		if lost := c.lost.Load(); lost != nil {
			(*lost)()
		}
	})
}

func (c *conn) up() bool {
	select {
	case <-c.down:
		return false
	default:
		return true
	}
}

// cause returns why c was cut, or nil.
func (c *conn) cause() error {
	<-c.down
	return c.why
}

// Read answers nothing once c is closed, even where the socket still does.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.up() {
		return 0, cmp.Or(c.why, net.ErrClosed)
	}
	good, bad := c.replies.pass(p[:n])
	if bad == nil {
		return n, err
	}
	c.cut(bad)
	if good > 0 { // whole replies may be among it; the next Read fails
		return good, nil
	}
	return 0, bad
}

func (c *conn) Write(p []byte) (int, error) {
	if _, err := c.commands.pass(p); err != nil {
		return 0, err
	}
	c.sent.Store(c.commands.began) // first: the answer may be here at once
	n, err := c.Conn.Write(p)
	// Whoever is about to send a command does so before rueidis looks whether there is one: then they go together, which is half of
	// the work of each, here and for the server. Where nobody is, this costs next to nothing.
	runtime.Gosched()
	return n, err
}

const (
	// rueidis queues up to 1024 commands on a connection. Beyond that its callers wait for room without looking at their
	// context, so we never get there: commands under way and commands given up stay below.
	inFlight = 512
	givenUp  = 256

	buffer = 128 << 10
)

// A wire is one connection.
type wire struct {
	client   rueidis.Client
	conn     *conn
	server   string        // its run_id, or ""
	place    *place        // where it was dialled
	replicas int64         // that were connected to it then
	dial     uint64        // counts the attempts of the node
	turn     chan struct{} // one token for each command under way
	clock    *serverClock  // what is known of the server's clock, by all connections to it

	// A command that was given up still has its place in the queue until its answer comes. Answers come in order: who
	// gets one knows that those which had been given up before it began are answered, too.
	given, answered atomic.Int64
	probing         atomic.Bool
}

// close ends what connect made, or began to make.
func (w *wire) close() {
	if w.conn != nil {
		w.conn.Close()
	}
	if w.client != nil {
		w.client.Close()
	}
}

// lateArgs completes the arguments of a command when it is known through which connection they go; nil: there is nothing to
// complete.
type lateArgs func(w *wire, args []string)

// do sends one command. Beside the server's reply it answers errNotSent or errStalled, which are certain, or anything,
// where it is not known what became of the command.
func (w *wire) do(ctx context.Context, args []string, late lateArgs) (msg rueidis.RedisMessage, err error) {
	select {
	case w.turn <- struct{}{}:
	default:
		select {
		case w.turn <- struct{}{}:
		case <-w.conn.down:
			return msg, errNotSent
		case <-ctx.Done():
			return msg, errStalled
		}
	}
	defer func() { <-w.turn }()
	if !w.conn.up() {
		return msg, errNotSent
	}
	if late != nil {
		late(w, args)
	}
	if w.given.Load()-w.answered.Load() > givenUp {
		if w.probing.CompareAndSwap(false, true) {
			go func() { // ends with the connection
				defer w.probing.Store(false)
				w.exchange(context.Background(), "PING")
			}()
		}
		return msg, errStalled
	}
	msg, err = w.exchange(ctx, args...)
	if re, ok := rueidis.IsRedisErr(err); ok {
		return msg, newReply(re)
	}
	if err != nil && ctx.Err() != nil {
		w.given.Add(1)
		err = context.Cause(ctx)
	}
	return msg, err
}

func (w *wire) exchange(ctx context.Context, args ...string) (rueidis.RedisMessage, error) {
	given := w.given.Load()
	var res rueidis.RedisResult
	if args[0] == askingCommand { // both in one go: it counts for the next command on the connection
		res = w.client.DoMulti(ctx, w.client.B().Asking().Build(), w.client.B().Arbitrary(args[1:]...).Build())[1]
	} else {
		res = w.client.Do(ctx, w.client.B().Arbitrary(args...).Build())
	}
	if res.NonRedisError() == nil {
		for old := w.answered.Load(); old < given && !w.answered.CompareAndSwap(old, given); old = w.answered.Load() {
		}
	}
	return reading(res)
}

// reading takes null for an answer like any other.
func reading(res rueidis.RedisResult) (rueidis.RedisMessage, error) {
	msg, err := res.ToMessage()
	if rueidis.IsRedisNil(err) {
		err = nil
	}
	return msg, err
}

// ask sends a command that changes nothing: every failure is ErrUnavailable.
func (s *Store) ask(ctx context.Context, op string, args ...string) *reply {
	return s.send(ctx, op, store.ErrUnavailable, keyOf(args), args, nil, nil)
}

// tell sends a command that writes: where no answer came, the outcome is ErrUnknown.
func (s *Store) tell(ctx context.Context, op string, args ...string) *reply {
	return s.note(ctx, op, nil, args...)
}

// note is tell with what is to be done with the answer: see send.
func (s *Store) note(ctx context.Context, op string, done func(*reply), args ...string) *reply {
	return s.send(ctx, op, store.ErrUnknown, keyOf(args), args, nil, done)
}

// keyOf returns the key of a command that has one, which is its first argument.
func keyOf(args []string) string {
	if len(args) < 2 {
		return ""
	}
	return args[1]
}

// send answers lost where the command was sent, or may have been, and no answer came.
// at is a key: the command goes
// where that lies; "" is anywhere. done, if set, gets the answer before the operation is over for those who wait until none
// is under way: what it notes, they see.
func (s *Store) send(ctx context.Context, op string, lost error, at string, args []string, late lateArgs, done func(*reply)) *reply {
	sessions := at == "" && strings.HasPrefix(args[0], "EVAL") || strings.HasPrefix(at, nothing) // of all or of many
	if s.opt.watched() && (strings.HasPrefix(at, reserved) || at == "") && !sessions {
		ctx = pass(ctx, forgotten) // what is about a move: there others decide about a server that has forgotten everything
	}
	if s.cluster != nil {
		return s.cluster.send(ctx, op, lost, at, args, late, done)
	}
	return s.node.send(ctx, op, lost, args, late, done)
}

// down reports whether err says that nobody is answered: nothing listens there, or it is still loading its data.
func down(err error) bool {
	var re *replyError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.As(err, &re) && re.code == "LOADING"
}

// A replyError is an error that the server answered.
type replyError struct {
	code, text string // LOADING; LOADING Redis is loading the dataset in memory
}

func (e *replyError) Error() string { return "the server answers: " + e.text }

func newReply(err *rueidis.RedisError) *replyError { return newReplyError(err.Error()) }

// newReplyError leaves out what the server quotes of the command: keys, and for HELLO the password.
func newReplyError(text string) *replyError {
	text, _, _ = strings.Cut(text, ", with args")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text[:min(len(text), 200)])
	code, _, _ := strings.Cut(text, " ")
	return &replyError{code: code, text: text}
}

// silent reports whether a server that answers this to INFO will never say which one it is.
func (e *replyError) silent() bool { return e.code == "NOPERM" || e.code == "unknown" } // "unknown command"

// certain reports whether the reply proves that nothing was done. A command is refused before it begins, and so is a
// script, for all that its first line lets Redis know (OOM, READONLY, MISCONF, NOREPLICAS). An error from inside of a
// script proves nothing, with two exceptions: the scripts read before they write.
func (e *replyError) certain() bool {
	return !strings.Contains(e.text, "@user_script") || e.code == "WRONGTYPE" || e.code == "BADMARK"
}

// misconfigured reports whether err says that the options are wrong, not that the server is away.
func misconfigured(err error) bool {
	var cert *tls.CertificateVerificationError
	var re *replyError
	switch {
	case errors.As(err, &cert), errors.Is(err, errNoRESP3):
		return true
	case !errors.As(err, &re):
		return false
	}
	if errors.Is(err, errUntracked) && re.code != strings.ToUpper(re.code) { // without the ERR before it, which rueidis takes away
		return true
	}
	switch re.code {
	case "WRONGPASS", "NOAUTH", "NOPERM", "DENIED", "NOPROTO":
		return true
	}
	return strings.Contains(re.text, "DB index") || strings.Contains(re.text, "AUTH") || strings.Contains(re.text, "cluster support disabled")
}
