package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// A vip is an address that moves from one server to another: new connections go where it points, those that there are
// stay where they are until they are cut.
type vip struct {
	addr string

	mu    sync.Mutex // guards what follows
	to    string
	conns []net.Conn // of the clients, in the order in which they came
}

func newVIP(t *testing.T, to string) *vip {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vip{addr: ln.Addr().String(), to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			v.mu.Lock()
			to := v.to
			v.conns = append(v.conns, c)
			v.mu.Unlock()
			up, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{up, c}, {c, up}} {
				wg.Go(func() {
					io.Copy(way[0], way[1])
					up.Close()
					c.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		v.cut(0)
		wg.Wait()
	})
	return v
}

// cut breaks the connections from the from-th on.
func (v *vip) cut(from int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.conns[min(from, len(v.conns)):] {
		c.Close()
	}
}

func (v *vip) move(to string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.to = to
}

func (v *vip) came() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.conns)
}

func TestAnAddressThatMoves(t *testing.T) {
	ctx := context.Background()
	old, next := testserver.Redis(t), testserver.Redis(t)
	v := newVIP(t, old.Addr)
	s := open(t, "redis://"+v.addr+"?connections=2")
	before, err := s.Instance(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Nobody who was answered by the new server is answered by the old one after that.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for moved := false; ; {
				select {
				case <-stop:
					return
				default:
				}
				id, err := s.Instance(ctx)
				switch {
				case err != nil: // the connection was closed
				case id != before:
					moved = true
					if got := s.Generation(); got < 3 {
						t.Errorf("the new server answered, and Generation is %d", got)
					}
				case moved:
					t.Error("the old server answers after the new one")
					return
				}
			}
		})
	}
	generation := s.Generation()
	v.move(next.Addr)
	v.cut(1) // the other one stays where it is
	eventually(t, "another generation", func() bool { return s.Generation() > generation })
	for i := range 40 {
		if id, err := s.Instance(ctx); id == before || err != nil {
			t.Fatalf("Instance %d: got %q, %v: the server before was %q", i, id, err, before)
		}
		key := fmt.Sprint("k", i)
		if err := s.Save(ctx, key, live(key), store.Always); err != nil {
			t.Fatalf("Save %d: %v", i, err)
		}
		if got, err := s.Load(ctx, key); string(got.Data) != key || err != nil {
			t.Fatalf("Load %d: got %q, %v", i, got.Data, err)
		}
	}
	close(stop)
	wg.Wait()
	if got := old.Do("DBSIZE"); got != int64(0) {
		t.Errorf("the old server has %v keys", got)
	}
	eventually(t, "both links to the new server", func() bool {
		return strings.Count(next.Do("CLIENT", "LIST").(string), "name=sessile ") == 2
	})
}

// With an address that goes to two servers by turns nothing can be right, but it must not become two memories of one
// store, nor a storm of logins.
func TestAnAddressOfTwoServers(t *testing.T) {
	ctx := context.Background()
	servers := []*testserver.RedisServer{testserver.Redis(t), testserver.Redis(t)}
	v := newVIP(t, servers[0].Addr)
	s := open(t, "redis://"+v.addr+"?connections=2")
	start, came := time.Now(), v.came()
	for i := 0; time.Since(start) < time.Second; i++ {
		v.move(servers[i%2].Addr)
		if i < 5 {
			v.cut(v.came() - 1)
		}
		s.Ping(ctx)
		time.Sleep(time.Millisecond)
	}
	if n := v.came() - came; n > 100 {
		t.Errorf("%d connections in a second", n)
	}
}

// A server that does not say which one it is may be another one behind each connection, so there is one connection.
func TestAServerThatDoesNotSayWhichOneItIs(t *testing.T) {
	ctx := context.Background()
	server := func(conf string) string { return testserver.Redis(t, testserver.WithConf(conf)).Addr }
	for what, c := range map[string]struct{ user, addr string }{
		"the user may not run INFO": {"web:pw@", server("user web on >pw ~* &* +@all -@dangerous")},
		"there is no INFO":          {"", server(`rename-command INFO ""`)},
		"INFO has no run_id":        {"", newFakeLogin(t, answering("$8\r\nredis:1\n\r\n"), answering("$8\r\nredis:1\n\r\n")).addr},
	} {
		v := newVIP(t, c.addr)
		s := open(t, "redis://"+c.user+v.addr+"?connections=4")
		if err := s.Ping(ctx); err != nil {
			t.Fatalf("%s: Ping: %v", what, err)
		}
		up := func() (n int) {
			for _, l := range s.node.links {
				if w := l.wire.Load(); w != nil && w.conn.up() {
					n++
				}
			}
			return n
		}
		generation := s.Generation()
		for round := range 3 {
			if n := up(); n != 1 || s.Generation() != generation {
				t.Errorf("%s: round %d: %d connections, generation %d, want 1 and %d", what, round, n, s.Generation(), generation)
			}
			v.cut(0)
			generation++
			eventually(t, "another connection", func() bool { return s.Generation() == generation && s.Ping(ctx) == nil })
			time.Sleep(20 * time.Millisecond) // for one that should not be
		}
		if _, err := s.Instance(ctx); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Instance: got %v", what, err)
		}
	}
}

// A login at which INFO is refused for the moment is tried again, and takes nobody's connection away meanwhile.
func TestALoginThatCannotAskYet(t *testing.T) {
	busy := make(chan struct{})
	f := newFakeLogin(t, func(args []string) string {
		select {
		case <-busy:
			return "$8\r\nrun_id:a\r\n"
		default:
			return "-BUSY Redis is busy running a script.\r\n"
		}
	}, answering("+OK\r\n"))
	u, err := url.Parse("redis://" + f.addr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ping(context.Background()); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "BUSY") {
		t.Errorf("Ping: got %v", err)
	}
	close(busy)
	eventually(t, "Ping", func() bool { return s.Ping(context.Background()) == nil })
}

func TestAdmission(t *testing.T) {
	type made struct {
		server string
		dial   uint64
	}
	for _, c := range []struct {
		what      string
		there, is made
		admitted  bool
		closes    bool
	}{
		{"of the same server", made{"a", 1}, made{"a", 2}, true, false},
		{"of the same server, dialled earlier", made{"a", 2}, made{"a", 1}, true, false},
		{"of another server", made{"a", 1}, made{"b", 2}, true, true},
		{"of another server, dialled earlier", made{"b", 2}, made{"a", 1}, false, false},
		{"of who knows which", made{"a", 1}, made{"", 2}, false, false},
		{"of who knows which, beside one of the kind", made{"", 1}, made{"", 2}, false, false},
		{"of a server, beside one of who knows which", made{"", 1}, made{"a", 2}, true, true},
	} {
		s := &Store{opt: Options{Connections: 2}}
		s.node = newNode(s, "tcp", "x")
		n := s.node
		of := func(m made) *wire {
			nc, _ := net.Pipe()
			return &wire{conn: newConn(nc, framingLimits{}), server: m.server, dial: m.dial, place: n.place.Load()}
		}
		there, w := of(c.there), of(c.is)
		if rival := n.admit(n.links[0], there); rival != nil {
			t.Fatalf("%s: the first one gives way", c.what)
		}
		if rival := n.admit(n.links[1], w); (rival == nil) != c.admitted || rival != nil && rival != there {
			t.Errorf("%s: admitted %v, want %v", c.what, rival == nil, c.admitted)
		}
		if n.links[1].wire.Load() == w != c.admitted || there.conn.up() == c.closes || s.Generation() == 2 != c.admitted {
			t.Errorf("%s: in use %v, the other one up %v, generation %d", c.what, n.links[1].wire.Load() == w, there.conn.up(), s.Generation())
		}
		if got, err := n.wire(); err != nil || (got == there) == c.admitted && c.closes {
			t.Errorf("%s: wire: got the one that was there %v, %v", c.what, got == there, err)
		}
	}
}
