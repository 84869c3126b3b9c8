package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

var (
	markOne = store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: 3, Floor: store.FloorSync}}
	markTwo = store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: 4, Floor: store.FloorRetreat}}
)

// oneOn returns an id that lies on the server, and is saved there.
func oneOn(t *testing.T, s *Store, server int) string {
	t.Helper()
	for i := 0; ; i++ {
		id := fmt.Sprint("on", server, "n", i)
		if s.places(id)[0] == server {
			ok(t, "Save", s.Save(in10s(t), id, record("was there"), store.Always))
			return id
		}
	}
}

// A server that has come back empty has logged out who was in it, and that is not passed on as if nobody had been there.
func TestAServerThatLosesItsMemory(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *Store, servers []*testserver.MemcachedServer, at int){
		"restart": func(_ *testing.T, _ *Store, servers []*testserver.MemcachedServer, at int) { servers[at].Restart() },
		"flush_all": func(t *testing.T, s *Store, _ []*testserver.MemcachedServer, at int) {
			_, err := s.nodes[at].simple(in10s(t), "OK", "flush_all")
			ok(t, "flush_all", err)
		},
	} {
		for at := range 3 {
			t.Run(fmt.Sprintf("%s of %d", name, at), func(t *testing.T) {
				servers := some(t, 3)
				s := newStore(t, Options{Prefix: "p."}, servers...)
				ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
				gone, stays := oneOn(t, s, at), oneOn(t, s, (at+1)%3)
				lose(t, s, servers, at)
				u := s.Under(markOne)
				_, err := u.Load(in10s(t), gone)
				wantErr(t, "Load of what was lost", err, store.ErrSealed)
				_, err = u.Inspect(in10s(t), gone)
				wantErr(t, "Inspect of what was lost", err, store.ErrSealed)
				wantErr(t, "Save", u.Save(in10s(t), gone, record("new"), store.Always), store.ErrSealed)
				if rec, err := u.Load(in10s(t), stays); err != nil || string(rec.Data) != "was there" {
					t.Errorf("Load from another server: %q, %v", rec.Data, err)
				}
				left := store.Mark{Seal: markOne.Seal} // which says who must not be served from what is left
				for _, s := range []*Store{s, newStore(t, Options{Prefix: "p."}, servers...)} {
					if m, err := s.Mark(in10s(t)); err != nil || m != left {
						t.Errorf("Mark: got %v, %v, want %v", m, err, left)
					}
				}
				wantErr(t, "SwapMark as if nothing had been", s.SwapMark(in10s(t), markOne, markTwo), store.ErrConflict)
				wantErr(t, "SwapMark as of a new origin", s.SwapMark(in10s(t), store.Mark{}, markTwo), store.ErrConflict)
				ok(t, "SwapMark of who has decided", s.SwapMark(in10s(t), left, markTwo))
				if m, err := newStore(t, Options{Prefix: "p."}, servers...).Mark(in10s(t)); err != nil || m != markTwo {
					t.Errorf("Mark: got %v, %v, want %v", m, err, markTwo)
				}
				ok(t, "Save", s.Under(markTwo).Save(in10s(t), gone, record("new"), store.Always))
			})
		}
	}
}

// What a server has evicted, or never got since somebody was interrupted, it gets again.
func TestAMarkIsBroughtUpToDate(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{}, servers...)
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	old, err := s.nodes[2].get(in10s(t), s, s.markName(), nil, false)
	ok(t, "get", err)
	ok(t, "SwapMark", s.SwapMark(in10s(t), markOne, markTwo))
	ok(t, "evict", s.nodes[1].remove(in10s(t), s.markName()))
	ok(t, "put back", s.nodes[2].set(in10s(t), s.markName(), old, 0))
	evicted, behind := oneOn(t, s, 1), oneOn(t, s, 2)
	u := s.Under(markTwo)
	_, err = u.Load(in10s(t), evicted)
	wantErr(t, "Load from a server without the mark", err, store.ErrSealed)
	_, err = u.Load(in10s(t), behind)
	ok(t, "Load from a server whose mark has the identity", err)
	wantErr(t, "Save to one whose mark is behind", u.Save(in10s(t), behind, record("new"), store.Always), store.ErrSealed)
	if m, err := s.Mark(in10s(t)); err != nil || m != markTwo {
		t.Fatalf("Mark: got %v, %v", m, err)
	}
	for _, id := range []string{evicted, behind} {
		ok(t, "Save", u.Save(in10s(t), id, record("new"), store.Always))
	}
	ok(t, "evict from the first", s.nodes[0].remove(in10s(t), s.markName()))
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{Seal: markTwo.Seal}) {
		t.Errorf("Mark: got %v, %v, want no identity: nobody knows what the first had last", m, err)
	}
}

// An identity is given where all servers are there: one whose life was not noted then could restart without anybody's notice.
func TestAnIdentityIsGivenToAllServers(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{Timeout: time.Second}, servers...)
	gone := oneOn(t, s, 2)
	servers[2].Pause()
	wantErr(t, "SwapMark with a server away", s.SwapMark(in10s(t), store.Mark{}, markOne), store.ErrUnavailable)
	servers[2].Resume()
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{}) {
		t.Errorf("Mark: got %v, %v, want none", m, err)
	}
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	servers[2].Pause()
	ok(t, "SwapMark of the seal with a server away", s.SwapMark(in10s(t), markOne, markTwo))
	servers[2].Restart()
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{Seal: markTwo.Seal}) {
		t.Errorf("Mark: got %v, %v, want no identity", m, err)
	}
	_, err := s.Under(markTwo).Load(in10s(t), gone)
	wantErr(t, "Load of what was lost", err, store.ErrSealed)
}

// A server that restarts while the seal is changed does not get the mark as if it had its memory.
func TestARestartWhileTheSealIsChanged(t *testing.T) {
	t.Parallel()
	servers := some(t, 3)
	s := newStore(t, Options{Timeout: 4 * time.Second}, servers...)
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	watch := newStore(t, Options{}, servers[1])
	asked := func() string {
		is, err := watch.nodes[0].stats(in10s(t))
		ok(t, "stats", err)
		return is["cmd_get"]
	}
	before := asked()
	servers[2].Pause() // which is waited for a while, so that there is time
	done := make(chan error)
	go func() { done <- s.SwapMark(in10s(t), markOne, markTwo) }()
	waitFor(t, "the mark was read", func() bool { return asked() != before })
	servers[1].Restart()
	ok(t, "SwapMark", <-done)
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{Seal: markTwo.Seal}) {
		t.Errorf("Mark: got %v, %v, want no identity", m, err)
	}
}

// The cas of items begins again when a server restarts, so one from before may be that of another mark.
func TestACasFromBeforeARestart(t *testing.T) {
	server := testserver.Memcached(t)
	s := newStore(t, Options{}, server)
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	all, _, err := s.marks(in10s(t))
	ok(t, "marks", err)
	server.Restart()
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markTwo))
	now, _, err := s.marks(in10s(t))
	ok(t, "marks", err)
	if all[0].cas != now[0].cas {
		t.Fatalf("cas %s and %s", all[0].cas, now[0].cas)
	}
	if done, err := s.put(in10s(t), 0, all[0], all[0].marked); done || err != nil {
		t.Errorf("put over a mark that was not seen: %v, %v", done, err)
	}
	if m, err := s.Mark(in10s(t)); err != nil || m != markTwo {
		t.Errorf("Mark: got %v, %v", m, err)
	}
}

// The mark is that of the first server, so gateways that name the same servers in another order would have another one.
func TestServersInAnotherOrder(t *testing.T) {
	servers := some(t, 2)
	s := newStore(t, Options{Timeout: time.Second}, servers...)
	other := newStore(t, Options{Timeout: time.Second}, servers[1], servers[0])
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	servers[1].Pause()
	ok(t, "SwapMark", s.SwapMark(in10s(t), markOne, markTwo))
	servers[1].Resume()
	if m, err := other.Mark(in10s(t)); err != nil || m.Identity != "" || m.Seal.Workflow == "" {
		t.Errorf("Mark by another order: got %v, %v, want no identity", m, err)
	}
	if m, err := s.Mark(in10s(t)); err != nil || m != markTwo {
		t.Errorf("Mark: got %v, %v, want %v", m, err, markTwo)
	}
	if m, err := newStore(t, Options{}, servers[0]).Mark(in10s(t)); err != nil || m.Identity != "" || m.Seal != markTwo.Seal {
		t.Errorf("Mark by fewer servers: got %v, %v, want no identity", m, err)
	}
}

func TestAServerThatIsAway(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{Timeout: 300 * time.Millisecond}, servers...)
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	dead, stuck, alive := oneOn(t, s, 2), oneOn(t, s, 1), oneOn(t, s, 0)
	servers[2].Kill()
	servers[1].Pause()
	u := s.Under(markOne)
	_, err := u.Load(in10s(t), dead)
	wantErr(t, "Load where nobody listens", err, store.ErrDown)
	_, err = u.Load(in10s(t), stuck)
	wantErr(t, "Load where nobody answers", err, store.ErrUnavailable)
	err = u.Save(in10s(t), stuck, record("new"), store.Always)
	if store.OutcomeOf(err) != store.OutcomeUnavailable { // it begins by reading
		t.Errorf("Save where nobody answers: %v", err)
	}
	wantErr(t, "Touch where nobody answers", s.Touch(in10s(t), stuck, time.Now().Add(time.Hour)), store.ErrUnknown)
	if _, err := u.Load(in10s(t), alive); err != nil {
		t.Errorf("Load from the third: %v", err)
	}
	if m, err := s.Mark(in10s(t)); err != nil || m != markOne {
		t.Errorf("Mark: got %v, %v: the first server has it", m, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // by then nobody knows whether it is away
	defer cancel()
	_, err = s.Mark(ctx)
	wantErr(t, "Mark of who has no time", err, store.ErrUnavailable)
	ok(t, "SwapMark", s.SwapMark(in10s(t), markOne, markTwo))
	servers[1].Resume()
	if m, err := s.Mark(in10s(t)); err != nil || m != markTwo {
		t.Errorf("Mark: got %v, %v", m, err)
	}
	if _, err := s.Under(markTwo).Load(in10s(t), stuck); err != nil {
		t.Errorf("Load from the one that is back: %v", err)
	}
	servers[0].Kill()
	if _, err := s.Mark(in10s(t)); !store.Failed(err) {
		t.Errorf("Mark without the first server: %v", err)
	}
}

// The only server that still has the mark is slow: nobody takes the origin for one that nothing was decided about.
func TestTheOnlyOneWhoKnowsIsSlow(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{Timeout: 300 * time.Millisecond}, servers...)
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{}) {
		t.Errorf("Mark: got %v, %v", m, err)
	}
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	servers[0].Restart()
	servers[1].Restart()
	servers[2].Pause()
	if m, err := s.Mark(in10s(t)); !store.Failed(err) {
		t.Errorf("Mark: got %v, %v, want that it is not known", m, err)
	}
	servers[2].Resume()
	if m, err := s.Mark(in10s(t)); err != nil || m != (store.Mark{Seal: markOne.Seal}) {
		t.Errorf("Mark: got %v, %v", m, err)
	}
}

// A server restarts and idle connections are dead: nobody is to notice.
func TestIdleConnectionsThatAreDead(t *testing.T) {
	server := testserver.Memcached(t)
	s := newStore(t, Options{}, server)
	for range 3 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, _ = s.Load(in10s(t), "x") })
		}
		wg.Wait()
		server.Restart()
		ok(t, "Save", s.Save(in10s(t), "x", record("x"), store.Always))
		ok(t, "Touch", s.Touch(in10s(t), "x", time.Now().Add(time.Hour)))
		server.Restart()
		wantErr(t, "Touch", s.Touch(in10s(t), "x", time.Now().Add(time.Hour)), store.ErrAbsent)
	}
}

// relay stands before a server and keeps a line that begins with held, and all that follows on that connection, until it is let go.
type relay struct {
	net.Listener
	to   string
	held string
	got  chan struct{} // something is kept
	let  chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

func newRelay(t *testing.T, to, held string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, "listen", err)
	r := &relay{Listener: l, to: to, held: held, got: make(chan struct{}, 1), let: make(chan struct{})}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); r.release(); r.wg.Wait() })
	return r
}

// release lets go what is kept, and keeps nothing more.
func (r *relay) release() { r.once.Do(func() { close(r.let) }) }

func (r *relay) serve(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	r.wg.Go(func() { _, _ = io.Copy(c, up); c.Close() })
	for lines := bufio.NewReader(c); ; {
		line, err := lines.ReadString('\n')
		if strings.HasPrefix(line, r.held) {
			select {
			case r.got <- struct{}{}:
			default:
			}
			<-r.let
		}
		_, _ = io.WriteString(up, line)
		if err != nil {
			up.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// A flush between a packet's two questions, for the session and for the mark, is seen.
func TestAFlushBetweenTwoQuestions(t *testing.T) {
	for _, between := range []string{"gets x", "gets sessile:mark"} {
		t.Run(between, func(t *testing.T) {
			server := testserver.Memcached(t)
			direct := newStore(t, Options{}, server)
			ok(t, "SwapMark", direct.SwapMark(in10s(t), store.Mark{}, markOne))
			ok(t, "Save", direct.Save(in10s(t), "x", record("x"), store.Always))
			r := newRelay(t, server.Addr, between)
			addr := r.Addr().(*net.TCPAddr)
			s := newStore(t, Options{Servers: []Server{{Host: addr.IP.String(), Port: addr.Port}}})
			loaded := make(chan error)
			go func() {
				_, err := s.Under(markOne).Load(in10s(t), "x")
				loaded <- err
			}()
			<-r.got
			_, err := direct.nodes[0].simple(in10s(t), "OK", "flush_all")
			ok(t, "flush_all", err)
			r.release()
			wantErr(t, "Load", <-loaded, store.ErrSealed)
		})
	}
}

// A command that comes to the server late does nothing where the session has been written meanwhile.
func TestALateWriteDoesNothing(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, s *Store) error{
		"save": func(t *testing.T, s *Store) error { return s.Save(in10s(t), "x", record("late"), store.Always) },
		"delete": func(t *testing.T, s *Store) error {
			_, err := s.Delete(in10s(t), "x", store.Always)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := testserver.Memcached(t)
			r := newRelay(t, server.Addr, "cas ")
			addr := r.Addr().(*net.TCPAddr)
			slow, err := New(Options{Servers: []Server{{Host: addr.IP.String(), Port: addr.Port}}, Timeout: 200 * time.Millisecond})
			ok(t, "New", err)
			t.Cleanup(func() { slow.Close() })
			direct := newStore(t, Options{}, server)
			ok(t, "Save", direct.Save(in10s(t), "x", record("first"), store.Always))
			wantErr(t, name, write(t, slow), store.ErrUnknown)
			select {
			case <-r.got:
			case <-time.After(10 * time.Second):
				t.Fatal("nothing is kept: is it another command?")
			}
			ok(t, "Save", direct.Save(in10s(t), "x", record("second"), store.Always))
			badval := func() string {
				is, err := direct.nodes[0].stats(in10s(t))
				ok(t, "stats", err)
				return is["cas_badval"]
			}
			before := badval()
			r.release()
			waitFor(t, "the late command has come", func() bool { return badval() != before })
			if rec, err := direct.Load(in10s(t), "x"); err != nil || string(rec.Data) != "second" {
				t.Errorf("got %q, %v, want what was written meanwhile", rec.Data, err)
			}
		})
	}
}

// What a server has not taken yet when we give up, because the network is gone or its socket is full, does not come later.
func TestWhatIsGivenUpIsNotSentLater(t *testing.T) {
	server := testserver.Memcached(t)
	s := newStore(t, Options{Timeout: 200 * time.Millisecond}, server)
	_, err := s.Load(in10s(t), "x")
	wantErr(t, "Load", err, store.ErrAbsent)
	n := s.nodes[0]
	if len(n.idle) != 1 {
		t.Fatalf("%d connections, want one", len(n.idle))
	}
	server.Pause()
	ctx, cancel := s.begin(t.Context())
	defer cancel()
	_, err = n.store(ctx, "add", "x", &item{data: make([]byte, 900_000)}, 0)
	wantErr(t, "add", err, store.ErrUnknown)
	server.Resume()
	waitFor(t, "the connection has ended", func() bool {
		is, err := n.stats(in10s(t))
		return err == nil && is["curr_connections"] == "1" // the one that asks
	})
	_, err = s.Load(in10s(t), "x")
	wantErr(t, "Load", err, store.ErrAbsent)
}

// With copies the first server decides, as with PHP's handlers: a copy that is left over, by a logout while its server was away or
// by a write that came after it, is no session.
func TestCopies(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{Client: PHPMemcache}, servers...)
	ok(t, "Save", s.Save(in10s(t), "x", record("two of it"), store.Always))
	at := s.places("x")
	if len(at) != 2 {
		t.Fatalf("on %v, want two servers", at)
	}
	has := func(what, want string) {
		t.Helper()
		for _, i := range at {
			if it, err := s.nodes[i].get(in10s(t), s, "x", nil, false); err != nil || it == nil && want != "" || it != nil && string(it.data) != want {
				t.Errorf("%s: server %d has %v, %v", what, i, it, err)
			}
		}
	}
	has("Save", "two of it")
	ok(t, "remove", s.nodes[at[0]].remove(in10s(t), "x"))
	_, err := s.Load(in10s(t), "x")
	wantErr(t, "Load of what only a copy has", err, store.ErrAbsent)
	all, err := s.InspectAll(in10s(t), []string{"x", "nothing"})
	if err != nil || all[0] != nil || all[1] != nil {
		t.Errorf("InspectAll: %v, %v", all, err)
	}
	wantErr(t, "Touch", s.Touch(in10s(t), "x", time.Now().Add(time.Hour)), store.ErrAbsent)
	wantErr(t, "Save IfPresent", s.Save(in10s(t), "x", record("new"), store.IfPresent), store.ErrConflict)
	ok(t, "Save IfAbsent", s.Save(in10s(t), "x", record("new"), store.IfAbsent))
	has("Save IfAbsent", "new")
	if existed, err := s.Delete(in10s(t), "x", store.Always); !existed || err != nil {
		t.Errorf("Delete: %v, %v", existed, err)
	}
	has("Delete", "")
}

// A session that is deleted while it is being saved stays deleted, though a copy may come later.
func TestACopyThatComesAfterALogout(t *testing.T) {
	servers := some(t, 2)
	r := newRelay(t, servers[1].Addr, "set ")
	addr := r.Addr().(*net.TCPAddr)
	opt := Options{Copies: 2, Distribution: Modula, Servers: []Server{serverOf(t, servers[0], 1), serverOf(t, servers[1], 1)}}
	direct := newStore(t, opt)
	opt.Servers[1] = Server{Host: addr.IP.String(), Port: addr.Port}
	slow := newStore(t, opt)
	id := oneOn(t, direct, 0)
	saved := make(chan error)
	go func() { saved <- slow.Save(in10s(t), id, record("late"), store.Always) }()
	<-r.got
	if existed, err := direct.Delete(in10s(t), id, store.Always); !existed || err != nil {
		t.Errorf("Delete: %v, %v", existed, err)
	}
	r.release()
	ok(t, "Save", <-saved)
	rec, err := direct.Load(in10s(t), id)
	if !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load after the logout: %q, %v", rec.Data, err)
	}
}

// scanAll returns all that a scan returns, sorted.
func scanAll(t *testing.T, s *Store, limit int) (all []string, skipped map[string]int) {
	t.Helper()
	skipped = map[string]int{}
	for cursor, pages := "", 0; ; pages++ {
		page, err := s.Scan(in10s(t), cursor, limit)
		ok(t, "Scan", err)
		all = append(all, page.Keys...)
		for why, n := range page.Skipped {
			skipped[why] += n
		}
		if cursor = page.Cursor; cursor == "" {
			slices.Sort(all)
			return all, skipped
		}
	}
}

// Sessions that are written during a scan, with other lengths, move within the server, and are not passed over.
func TestScanMissesNothingThatStays(t *testing.T) {
	const sessions = 6000
	servers := some(t, 3)
	s := newStore(t, Options{Prefix: "p.", Copies: 2}, servers...)
	var want []string
	for i := range sessions {
		id := fmt.Sprintf("s%d%%:%d", i, i%7)
		want = append(want, id)
		ok(t, "Save", s.Save(in10s(t), id, record("x"), store.Always))
	}
	slices.Sort(want)
	ok(t, "Lock", s.Lock(in10s(t), want[0], "t", time.Minute))
	ok(t, "set", s.nodes[0].set(in10s(t), "elsewhere", &item{}, 0))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = s.Save(in10s(t), want[i*37%sessions], record(strings.Repeat("y", i%9*700)), store.Always)
			}
		}
	})
	for range 5 {
		got, skipped := scanAll(t, s, 1000)
		if !slices.Equal(got, want) {
			t.Errorf("%d sessions, want %d", len(got), len(want))
		}
		if skipped["lock"] != 1 || skipped["another prefix"] != 1 {
			t.Errorf("skipped %v", skipped)
		}
	}
	close(stop)
	wg.Wait()
	// Another gateway goes on with our cursor, and not by what it has seen before.
	other := newStore(t, Options{Prefix: "p.", Copies: 2}, servers...)
	_, err := other.Scan(in10s(t), "", 100)
	ok(t, "Scan", err)
	ok(t, "Save", s.Save(in10s(t), "zzz", record("later"), store.Always))
	page, err := s.Scan(in10s(t), "", 100)
	ok(t, "Scan", err)
	for cursor := page.Cursor; cursor != ""; {
		rest, err := other.Scan(in10s(t), cursor, 10*sessions)
		ok(t, "Scan", err)
		if !slices.Contains(rest.Keys, "zzz") {
			t.Errorf("%d sessions are left, and not the one that came before the scan", len(rest.Keys))
		}
		cursor = rest.Cursor
	}
	next, err := other.Scan(in10s(t), page.Cursor, 100)
	ok(t, "Scan", err)
	if len(next.Keys) != 100 || next.Keys[0] <= page.Keys[99] {
		t.Errorf("after %q comes %q", page.Keys[99], next.Keys)
	}
}

// fill puts so many items into a server that their list fits into no socket, with names that begin with "f".
func fill(t *testing.T, server *testserver.MemcachedServer, items int) {
	t.Helper()
	c, err := net.Dial("tcp", server.Addr)
	ok(t, "dial", err)
	defer c.Close()
	var b strings.Builder
	for i := range items {
		fmt.Fprintf(&b, "set f%d%s 0 0 0 noreply\r\n\r\n", i, strings.Repeat("-", 200))
	}
	_, err = io.WriteString(c, b.String()+"version\r\n")
	ok(t, "fill", err)
	_, err = c.Read(make([]byte, 100))
	ok(t, "fill", err)
}

// A session that gets longer while its server is being listed, and so comes to lie elsewhere, is listed all the same.
func TestAListHasWhatMovesMeanwhile(t *testing.T) {
	server := testserver.Memcached(t, "-m", "256")
	s := newStore(t, Options{}, server)
	fill(t, server, 100_000)
	const sessions = 50
	save := func(data string) {
		for i := range sessions {
			ok(t, "Save", s.Save(in10s(t), fmt.Sprint("s", i), record(data), store.Always))
		}
	}
	save("short")
	found := map[string]bool{}
	moved := false
	ok(t, "list", s.nodes[0].walk(in10s(t), func(name string) bool {
		if !moved { // the server has filled the sockets, and waits for us
			moved = true
			save(strings.Repeat("long ", 10_000))
		}
		if name[0] == 's' {
			found[name] = true
		}
		return true
	}))
	if len(found) != sessions {
		t.Errorf("%d of %d sessions are in the list", len(found), sessions)
	}
}

// Only one dump at a time: we wait for the other.
func TestScanWaitsForAnotherDump(t *testing.T) {
	server := testserver.Memcached(t, "-m", "256")
	s := newStore(t, Options{}, server)
	const items = 100_000
	fill(t, server, items)
	other, err := net.Dial("tcp", server.Addr)
	ok(t, "dial", err)
	fmt.Fprint(other, "lru_crawler metadump all\r\n")
	_, err = other.Read(make([]byte, 10))
	ok(t, "dump", err)
	err = s.nodes[0].metadump(in10s(t), "hash", func(string) bool { return true })
	if err == nil || !strings.Contains(err.Error(), "BUSY") {
		t.Fatalf("a second dump: %v, want BUSY", err)
	}
	done := make(chan int)
	go func() {
		d, err := s.dump(in10s(t))
		if err != nil {
			t.Error(err)
		}
		done <- len(d.keys)
	}()
	other.Close()
	if n := <-done; n != items {
		t.Errorf("%d items, want %d", n, items)
	}
}

func TestServersThatForbidListing(t *testing.T) {
	for _, args := range [][]string{{"-X"}, {"-o", "no_lru_crawler"}} {
		s := newStore(t, Options{}, testserver.Memcached(t, args...))
		_, err := s.Scan(in10s(t), "", 10)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "listed=false") {
			t.Errorf("%v: Scan: %v", args, err)
		}
		f, err := s.Check(in10s(t))
		ok(t, "Check", err)
		wantLine(t, f.Against, "listed=false")
		unlisted := newStore(t, Options{Unlisted: true, Servers: s.opt.Servers})
		f, err = unlisted.Check(in10s(t))
		if err != nil || len(f.Against) != 0 || unlisted.Capabilities().Scan {
			t.Errorf("%v, unlisted: against: %q, %v", args, f.Against, err)
		}
	}
}

func wantLine(t *testing.T, lines []string, part string) {
	t.Helper()
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, part) }) {
		t.Errorf("no line with %q in %q", part, lines)
	}
}

func TestWhatPlanFinds(t *testing.T) {
	servers := some(t, 3)
	s := newStore(t, Options{Prefix: "memc.sess.key."}, servers...)
	f, err := s.Check(in10s(t))
	ok(t, "Check", err)
	if len(f.Against) != 0 || len(f.Facts) != 4 || len(f.Require) == 0 {
		t.Errorf("of empty servers: %+v", f)
	}
	wantLine(t, f.Facts, "memcached 1.6")
	wantLine(t, f.Advice, "evict anything, the mark too")
	for i := range 100 {
		ok(t, "Save", s.Save(in10s(t), fmt.Sprint("s", i), record("x"), store.Always))
	}
	f, err = s.Check(in10s(t))
	ok(t, "Check", err)
	if len(f.Against) != 0 || len(f.Advice) != 2 {
		t.Errorf("of sessions: %+v", f)
	}
	wantLine(t, f.Facts, "deadlines: ")
	rec := record("x")
	rec.Flags = 4
	ok(t, "Save", s.Save(in10s(t), "flagged", rec, store.Always))
	name, err := s.name("endless")
	ok(t, "name", err)
	ok(t, "set", s.nodes[s.places("endless")[0]].set(in10s(t), name, &item{data: []byte("x")}, 0))
	_, err = s.Inspect(in10s(t), "endless")
	wantErr(t, "Inspect of a session without a deadline", err, store.ErrInvalid)
	f, err = s.Check(in10s(t))
	ok(t, "Check", err)
	wantLine(t, f.Advice, "1 of 102 sampled sessions carry flags")
	wantLine(t, f.Advice, "1 of 102 sampled sessions have no deadline, and are not moved")
	wrong := newStore(t, Options{Prefix: "memc.sess.key.", Distribution: Modula}, servers...)
	f, err = wrong.Check(in10s(t))
	ok(t, "Check", err)
	wantLine(t, f.Against, "distribution=")

	lifetime := newStore(t, Options{Prefix: "memc.sess.key.", Lifetime: time.Hour}, servers...)
	got, err := lifetime.Inspect(in10s(t), "endless")
	if left := time.Until(got.Expires); err != nil || left > time.Hour || left < 59*time.Minute {
		t.Errorf("with a lifetime: %v, %v", left, err)
	}
	off := newStore(t, Options{}, testserver.Memcached(t, "-C"))
	f, err = off.Check(in10s(t))
	ok(t, "Check", err)
	wantLine(t, f.Against, "cas is off (-C)")
}

// A server that is full evicts, and plan says so.
func TestEvictions(t *testing.T) {
	s := newStore(t, Options{}, testserver.Memcached(t, "-m", "2"))
	ok(t, "SwapMark", s.SwapMark(in10s(t), store.Mark{}, markOne))
	data := strings.Repeat("x", 50_000)
	saved := 0
	for evicted := int64(0); evicted < 5 && saved < 10_000; {
		ok(t, "Save", s.Under(markOne).Save(in10s(t), fmt.Sprint("s", saved), record(data), store.Always))
		if saved++; saved%20 == 0 {
			is, err := s.nodes[0].stats(in10s(t))
			ok(t, "stats", err)
			evicted, err = number(is["evictions"])
			ok(t, "evictions", err)
		}
	}
	if _, err := s.Load(in10s(t), "s0"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("the oldest session: %v, want ErrAbsent", err)
	}
	if m, err := s.Mark(in10s(t)); err != nil || m != markOne {
		t.Errorf("Mark: got %v, %v: it has been read all the time", m, err)
	}
	f, err := s.Check(in10s(t))
	ok(t, "Check", err)
	wantLine(t, f.Advice, "items were evicted")
	wantLine(t, f.Advice, "bytes are given out")
}

func TestAValueThatIsTooLarge(t *testing.T) {
	s := newStore(t, Options{MaxValue: 4 << 20}, testserver.Memcached(t))
	ok(t, "Save", s.Save(in10s(t), "x", record("small"), store.Always))
	wantErr(t, "Save over the server's limit", s.Save(in10s(t), "x", record(strings.Repeat("x", 2<<20)), store.Always), store.ErrInvalid)
	if rec, err := s.Load(in10s(t), "x"); err != nil || string(rec.Data) != "small" {
		t.Errorf("got %q, %v, want what was there", rec.Data, err)
	}
	tight := newStore(t, Options{MaxValue: 3, Servers: s.opt.Servers})
	wantErr(t, "Save over ours", tight.Save(in10s(t), "x", record("four"), store.Always), store.ErrInvalid)
	_, err := tight.Load(in10s(t), "x")
	wantErr(t, "Load over ours", err, store.ErrInvalid)
	if n := len(tight.nodes[0].idle); n != 1 {
		t.Errorf("%d connections, want the one that passed it over", n)
	}
}

func TestOverThirtyDays(t *testing.T) {
	s := newStore(t, Options{}, testserver.Memcached(t))
	for _, days := range []int{29, 30, 31, 400} {
		rec := record("x")
		rec.Expires = time.Now().Add(time.Duration(days) * 24 * time.Hour)
		ok(t, "Save", s.Save(in10s(t), "x", rec, store.Always))
		got, err := s.Inspect(in10s(t), "x")
		if late := got.Expires.Sub(rec.Expires); err != nil || late < 0 || late > 3*time.Second {
			t.Errorf("%d days: the deadline is %v late, %v", days, late, err)
		}
	}
}

// memcached's clock ticks by whole seconds. Sessions are saved at several times between two ticks.
func TestNoSessionEndsEarly(t *testing.T) {
	s := newStore(t, Options{}, testserver.Memcached(t))
	ends := map[string]time.Time{}
	every := time.NewTicker(170 * time.Millisecond)
	defer every.Stop()
	for i := range 6 {
		rec := record("x")
		rec.Expires = time.Now().Add(900 * time.Millisecond)
		id := fmt.Sprint("s", i)
		ok(t, "Save", s.Save(in10s(t), id, rec, store.Always))
		ends[id] = rec.Expires
		<-every.C
	}
	waitFor(t, "all have ended", func() bool {
		for id, end := range ends {
			if _, err := s.Load(in10s(t), id); !errors.Is(err, store.ErrAbsent) {
				continue
			}
			if early := time.Until(end); early > 0 {
				t.Errorf("%s ended %v before its deadline", id, early)
			}
			delete(ends, id)
		}
		return len(ends) == 0
	})
}

func TestOnASocket(t *testing.T) {
	server := testserver.MemcachedOnSocket(t)
	u, err := url.Parse("memcached+unix://" + server.Addr)
	ok(t, "Parse", err)
	opt, err := ParseURL(u, Options{})
	ok(t, "ParseURL", err)
	s := newStore(t, opt)
	ok(t, "Save", s.Save(in10s(t), "x", record("x"), store.Always))
	server.Kill()
	if _, err := s.Load(in10s(t), "x"); !errors.Is(err, store.ErrDown) {
		t.Errorf("Load without a server: %v", err)
	}
}
