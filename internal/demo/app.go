package demo

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
)

// The application of the demo: pages that keep a session as a PHP page does, through PHP's files handler or phpredis.
// Both are written here anew, in the few system calls and commands that the real ones send, so that the demo needs no
// PHP, and so that what is measured and judged shares nothing with what is shown.

const (
	lifetime = 1440 * time.Second // session.gc_maxlifetime
	prefix   = "PHPREDIS_SESSION:"
)

// A visit is what one page does with a session.
type visit struct {
	id     string
	login  string // name of who logs in; "" for nobody
	add    string // item put into the cart; "" for none
	logout bool
}

// seen is what a page found.
type seen struct {
	found bool // somebody is logged in under this id
	items []string
	wrote bool // the page's change was acknowledged
}

// handler is a session handler of the application.
type handler interface {
	visit(ctx context.Context, v visit) (seen, error)
	close()
}

// body writes a session as PHP's default serializer does.
func body(user string, items []string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "user|s:%d:%q;cart|a:%d:{", len(user), user, len(items))
	for i, item := range items {
		fmt.Fprintf(&b, "i:%d;s:%d:%q;", i, len(item), item)
	}
	b.WriteString("}")
	return []byte(b.String())
}

// parse reads what body wrote.
func parse(b []byte) (user string, items []string) {
	parts := strings.Split(string(b), `"`)
	if len(parts) < 3 || !strings.HasPrefix(parts[0], "user|") {
		return "", nil
	}
	user = parts[1]
	for i := 3; i < len(parts); i += 2 {
		items = append(items, parts[i])
	}
	return user, items
}

// change is the page itself: what it makes of what it found. keep is false where the session ends, and changed where
// it has to be written.
func (v visit) change(found []byte) (next []byte, s seen, changed bool) {
	user, items := parse(found)
	s = seen{found: user != "", items: items}
	switch {
	case v.login != "":
		return body(v.login, nil), s, true
	case !s.found || v.add == "":
		return found, s, false
	}
	return body(user, append(items, v.add)), s, true
}

// files is PHP's files handler: open, flock for the whole page, rewrite in place.
type files struct{ dir string }

func (f files) close() {}

func (f files) visit(_ context.Context, v visit) (s seen, err error) {
	name := filepath.Join(f.dir, "sess_"+v.id)
	for {
		again, s, err := f.page(name, v)
		if !again || err != nil {
			return s, err
		}
	}
}

func (f files) page(name string, v visit) (again bool, s seen, err error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, s, err
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return false, s, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, s, err
	}
	if st.Nlink == 0 {
		return true, s, nil // destroyed while we waited for the lock
	}
	old := make([]byte, st.Size)
	if n, err := unix.Pread(fd, old, 0); err != nil || n != len(old) {
		return false, s, errors.Join(err, errors.New("short read"))
	}
	next, s, changed := v.change(old)
	switch {
	case v.logout || !s.found && !changed:
		err = unix.Unlink(name)
	case changed:
		if len(next) < len(old) {
			err = unix.Ftruncate(fd, 0)
		}
		if err == nil {
			_, err = unix.Pwrite(fd, next, 0)
		}
	default:
		now := unix.NsecToTimeval(time.Now().UnixNano())
		err = unix.Utimes(name, []unix.Timeval{now, now})
	}
	s.wrote = err == nil
	return false, s, err
}

// phpredis is phpredis' session handler, locking enabled, with a connection that is kept.
type phpredis struct {
	addr  string
	token string
	life  string // of a lock in ms, max_execution_time; "" is 30 s
	conn  net.Conn
	in    *bufio.Reader
	buf   []byte
}

const (
	unlockSHA    = "b70c2384248f88e6b75b9f89241a180f856ad852"
	unlockScript = `if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end`
)

func (p *phpredis) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// do sends one command and reads its reply.
func (p *phpredis) do(ctx context.Context, args ...string) (resp.Value, error) {
	if p.conn == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
		if err != nil {
			return resp.Value{}, err
		}
		p.conn, p.in, p.buf = conn, bufio.NewReaderSize(conn, 32<<10), nil
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Minute)
	}
	p.conn.SetDeadline(deadline)
	if _, err := p.conn.Write(resp.AppendRequestStrings(nil, args...)); err != nil {
		p.close()
		return resp.Value{}, err
	}
	for {
		v, n, _, err := resp.ParseReply(p.buf, resp.ReplyLimits{})
		if err == nil {
			p.buf = p.buf[n:]
			if v.Kind == '-' {
				return v, fmt.Errorf("%s: %s", args[0], v.Str)
			}
			return v, nil
		}
		if !errors.Is(err, resp.ErrIncomplete) {
			p.close()
			return resp.Value{}, err
		}
		chunk := make([]byte, 16<<10)
		n, err = p.in.Read(chunk)
		if err != nil {
			p.close()
			return resp.Value{}, err
		}
		p.buf = append(p.buf, chunk[:n]...)
	}
}

func (p *phpredis) visit(ctx context.Context, v visit) (s seen, err error) {
	key := prefix + v.id
	life := cmp.Or(p.life, "30000")
	// phpredis 6: 100 tries, 20 ms apart.
	for try := 0; ; try++ {
		got, err := p.do(ctx, "SET", key+"_LOCK", p.token, "NX", "PX", life)
		if err != nil {
			return s, err
		}
		if !got.Null {
			break
		}
		if try == 100 {
			return s, errors.New("the session is locked")
		}
		time.Sleep(20 * time.Millisecond)
	}
	defer func() {
		if _, uerr := p.do(ctx, "EVALSHA", unlockSHA, "1", key+"_LOCK", p.token); uerr != nil {
			if strings.Contains(uerr.Error(), "NOSCRIPT") {
				_, uerr = p.do(ctx, "EVAL", unlockScript, "1", key+"_LOCK", p.token)
			}
			if uerr != nil && err == nil {
				p.close() // the lock ends with its life
			}
		}
	}()
	got, err := p.do(ctx, "GET", key)
	if err != nil {
		return s, err
	}
	var old []byte
	if !got.Null {
		old = got.Str
	}
	next, s, changed := v.change(old)
	ttl := strconv.Itoa(int(lifetime / time.Second))
	switch {
	case v.logout:
		_, err = p.do(ctx, "DEL", key)
	case changed:
		_, err = p.do(ctx, "SETEX", key, ttl, string(next))
	case s.found:
		_, err = p.do(ctx, "EXPIRE", key, ttl)
	}
	s.wrote = err == nil
	return s, err
}

// lookFile reads a session as a plain program would.
func lookFile(dir string) func(id string) (bool, []string, error) {
	return func(id string) (bool, []string, error) {
		b, err := os.ReadFile(filepath.Join(dir, "sess_"+id))
		if errors.Is(err, os.ErrNotExist) {
			return false, nil, nil
		}
		user, items := parse(b)
		return user != "", items, err
	}
}

// lookRedis reads a session as a plain client would.
func lookRedis(addr string) func(id string) (bool, []string, error) {
	p := &phpredis{addr: addr}
	return func(id string) (bool, []string, error) {
		v, err := p.do(context.Background(), "GET", prefix+id)
		if err != nil || v.Null {
			return false, nil, err
		}
		user, items := parse(v.Str)
		return user != "", items, nil
	}
}
