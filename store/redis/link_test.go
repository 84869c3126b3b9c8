package redis

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

func live(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

// operations are one of each kind. Those that write must not be taken for failed when they may have happened.
func operations(s *Store) (reads, writes map[string]func(context.Context) error) {
	w := s.Workflow("w")
	rec, op, later := live("x"), store.Op{Nonce: "n", Epoch: 1, Lease: time.Second}, time.Now().Add(time.Hour)
	entries := []store.Entry{{Key: "k", Record: &rec}}
	reads = map[string]func(context.Context) error{
		"Load":       func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err },
		"Inspect":    func(ctx context.Context) error { _, err := s.Inspect(ctx, "k"); return err },
		"Scan":       func(ctx context.Context) error { _, err := s.Scan(ctx, "", 1); return err },
		"LockHolder": func(ctx context.Context) error { _, _, err := s.LockHolder(ctx, "k"); return err },
		"Ping":       s.Ping,
		"Info":       func(ctx context.Context) error { _, err := s.Info(ctx); return err },
		"Count":      func(ctx context.Context) error { _, err := s.Count(ctx); return err },
		"Instance":   func(ctx context.Context) error { _, err := s.Instance(ctx); return err },
		"Workflows":  func(ctx context.Context) error { _, err := s.Workflows(ctx); return err },
		"Control":    func(ctx context.Context) error { _, err := w.Control(ctx); return err },
		"Fence":      func(ctx context.Context) error { _, err := w.Fence(ctx); return err },
		"Leases":     func(ctx context.Context) error { _, err := w.Leases(ctx); return err },
		"LoadMarked": func(ctx context.Context) error { _, _, err := w.LoadMarked(ctx, "k"); return err },
		"Unsettled":  func(ctx context.Context) error { _, err := w.Unsettled(ctx, 1); return err },
	}
	writes = map[string]func(context.Context) error{
		"Save":           func(ctx context.Context) error { return s.Save(ctx, "k", rec, store.Always) },
		"Save IfAbsent":  func(ctx context.Context) error { return s.Save(ctx, "k", rec, store.IfAbsent) },
		"Save IfVersion": func(ctx context.Context) error { return s.Save(ctx, "k", rec, store.IfVersion("v")) },
		"Touch":          func(ctx context.Context) error { return s.Touch(ctx, "k", later) },
		"Delete":         func(ctx context.Context) error { _, err := s.Delete(ctx, "k", store.Always); return err },
		"Delete IfVersion": func(ctx context.Context) error {
			_, err := s.Delete(ctx, "k", store.IfVersion("v"))
			return err
		},
		"Lock":        func(ctx context.Context) error { return s.Lock(ctx, "k", "token", time.Second) },
		"Unlock":      func(ctx context.Context) error { _, err := s.Unlock(ctx, "k", "token"); return err },
		"SwapControl": func(ctx context.Context) error { return w.SwapControl(ctx, nil, []byte("c")) },
		"RaiseFence":  func(ctx context.Context) error { return w.RaiseFence(ctx, 1) },
		"Renew":       func(ctx context.Context) error { _, err := w.Renew(ctx, "g", nil, time.Second); return err },
		"DropLease":   func(ctx context.Context) error { return w.DropLease(ctx, "g") },
		"Begin":       func(ctx context.Context) error { _, err := w.Begin(ctx, "k", op); return err },
		"Settle":      func(ctx context.Context) error { _, err := w.Settle(ctx, "k", op); return err },
		"Commit":      func(ctx context.Context) error { return w.Commit(ctx, "k", op, &rec) },
		"Withdraw":    func(ctx context.Context) error { return w.Withdraw(ctx, "k", op) },
		"WriteAhead": func(ctx context.Context) error {
			_, err := w.WriteAhead(ctx, "k", op, &rec, store.Always)
			return err
		},
		"MarkAhead":   func(ctx context.Context) error { _, err := w.MarkAhead(ctx, "k", op); return err },
		"Propagated":  func(ctx context.Context) error { _, _, err := w.Propagated(ctx, "k", op, 1); return err },
		"SaveLast":    func(ctx context.Context) error { _, err := w.SaveLast(ctx, "k", 1, &rec, store.Always); return err },
		"TouchMarked": func(ctx context.Context) error { _, _, err := w.TouchMarked(ctx, "k", 1, later); return err },
		"Copy":        func(ctx context.Context) error { return w.Copy(ctx, "k", 1, nil) },
		"Add":         func(ctx context.Context) error { _, err := w.Add(ctx, 1, entries); return err },
		"Same":        func(ctx context.Context) error { _, err := w.Same(ctx, 1, entries); return err },
		"Remove":      func(ctx context.Context) error { _, err := w.Remove(ctx, 1, []string{"k"}); return err },
		"Purge":       func(ctx context.Context) error { return w.Purge(ctx, nil) },
	}
	return reads, writes
}

// wantOutcomes runs all operations at once and compares their outcomes.
func wantOutcomes(t *testing.T, s *Store, read, write store.Outcome, within time.Duration) {
	t.Helper()
	reads, writes := operations(s)
	var wg sync.WaitGroup
	run := func(ops map[string]func(context.Context) error, want store.Outcome) {
		for name, f := range ops {
			wg.Go(func() {
				start := time.Now()
				err := f(context.Background())
				if got := store.OutcomeOf(err); got != want {
					t.Errorf("%s: got %v (%v), want %v", name, got, err, want)
				}
				if err != nil && !strings.HasPrefix(err.Error(), "store/redis: ") {
					t.Errorf("%s: the error %q does not say where it comes from", name, err)
				}
				if took := time.Since(start); took > within {
					t.Errorf("%s took %v, want at most %v", name, took, within)
				}
			})
		}
	}
	run(reads, read)
	run(writes, write)
	wg.Wait()
}

func TestNoAnswer(t *testing.T) {
	t.Run("sent and not answered is unknown for a write, unavailable for a read", func(t *testing.T) {
		f := newFake(t, answering(silence))
		s := open(t, "redis://"+f.addr+"?timeout=200ms")
		wantOutcomes(t, s, store.OutcomeUnavailable, store.OutcomeUnknown, 2*time.Second)
	})
	t.Run("so is a connection that breaks", func(t *testing.T) {
		f := newFake(t, answering(hangUp))
		s := open(t, "redis://"+f.addr+"?connections=1")
		reads, writes := operations(s)
		up := func() {
			eventually(t, "connected", func() bool { w, err := s.node.wire(); return err == nil && w.conn.up() })
		}
		for name, op := range reads {
			up()
			if err := op(context.Background()); store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("%s: got %v, want unavailable", name, err)
			}
		}
		for name, op := range writes {
			up()
			if err := op(context.Background()); store.OutcomeOf(err) != store.OutcomeUnknown {
				t.Errorf("%s: got %v, want unknown", name, err)
			}
		}
		// "Never sent twice" is counted, not believed.
		if got, want := len(f.commands()), len(reads)-1+len(writes); got != want { // PING is not counted
			t.Errorf("the server saw %d commands for %d operations", got, want)
		}
	})
	t.Run("a login that is not answered means that nothing was sent", func(t *testing.T) {
		f := newFake(t, func([]string) string { return silence })
		s := open(t, "redis://"+f.addr+"?timeout=300ms&dial_timeout=50ms")
		wantOutcomes(t, s, store.OutcomeUnavailable, store.OutcomeUnavailable, 2*time.Second)
		if got := f.commands(); len(got) > 0 {
			t.Errorf("the server saw %q", got)
		}
	})
	t.Run("nobody there means that nothing was sent", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		s := open(t, "redis://"+ln.Addr().String())
		wantOutcomes(t, s, store.OutcomeUnavailable, store.OutcomeUnavailable, time.Second)
	})
	t.Run("a context that ends under way is unknown for a write", func(t *testing.T) {
		f := newFake(t, answering(silence))
		s := open(t, "redis://"+f.addr)
		ctx, cancel := context.WithCancel(context.Background())
		defer context.AfterFunc(ctx, func() {})()
		go func() {
			for len(f.commands()) == 0 {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		start := time.Now()
		err := s.Save(ctx, "k", live("x"), store.Always)
		if !errors.Is(err, store.ErrUnknown) || !errors.Is(err, context.Canceled) {
			t.Errorf("Save: got %v, want unknown and cancelled", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("Save took %v", took)
		}
	})
	t.Run("a closed store is unavailable", func(t *testing.T) {
		f := newFake(t, answering("+OK\r\n"))
		s := open(t, "redis://"+f.addr)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantOutcomes(t, s, store.OutcomeUnavailable, store.OutcomeUnavailable, time.Second)
	})
	t.Run("Close does not wait for a login that is not answered", func(t *testing.T) {
		f := newFake(t, func([]string) string { return silence })
		u, _ := url.Parse("redis://" + f.addr + "?dial_timeout=30s")
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		s, err := Open(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		s.Close()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}

// rueidis has room for 1024 commands on a connection. Whoever comes then waits in it whatever its context says.
func TestManyCallersOnAStalledServerKeepTheirDeadlines(t *testing.T) {
	f := newFake(t, answering(silence))
	s := open(t, "redis://"+f.addr+"?connections=1&timeout=1m")
	var wg sync.WaitGroup
	var slowest sync.Map
	for i := range 3000 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(20+i%50)*time.Millisecond)
			defer cancel()
			start := time.Now()
			if err := s.Save(ctx, "k", live("x"), store.Always); !store.Failed(err) {
				t.Errorf("Save: got %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				slowest.Store(i, took)
			}
		})
	}
	wg.Wait()
	slowest.Range(func(i, took any) bool { t.Errorf("caller %d waited %v", i, took); return true })
}

func TestAStallThatEndsDoesNotCostTheConnection(t *testing.T) {
	goOn := make(chan struct{})
	f := newFake(t, func(args []string) string {
		if args[0] == "HELLO" {
			return welcome
		}
		<-goOn
		return "+OK\r\n"
	})
	s := open(t, "redis://"+f.addr+"?connections=1&timeout=1m")
	generation := s.Generation()
	var wg sync.WaitGroup
	for range 600 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			s.Save(ctx, "k", live("x"), store.Always)
		})
	}
	wg.Wait()
	err := s.Save(context.Background(), "k", live("x"), store.Always)
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, errStalled) {
		t.Errorf("Save behind hundreds that were given up: got %v, want unavailable", err)
	}
	close(goOn)
	eventually(t, "Save", func() bool { return s.Save(context.Background(), "k", live("x"), store.Always) == nil })
	if got := s.Generation(); got != generation {
		t.Errorf("%d connections were made", got-generation)
	}
}

func TestGivenUpCommandsDoNotCostTheConnection(t *testing.T) {
	server := testserver.Redis(t)
	s := open(t, server.URL()+"?connections=1")
	before := s.Generation()
	for i := range 2000 { // many times givenUp, with answers between
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%40)*time.Microsecond)
		s.Load(ctx, "k")
		cancel()
		if _, err := s.Load(context.Background(), "k"); !errors.Is(err, store.ErrAbsent) {
			t.Fatalf("Load: got %v, want ErrAbsent", err)
		}
	}
	if after := s.Generation(); after != before {
		t.Errorf("%d connections were made", after-before)
	}
}

// Whoever sees another generation asks the server again who it is. A link that is refused again and again would make it
// ask for ever, while the other link has been on the same server all the time.
func TestALoginThatFailsIsNoGeneration(t *testing.T) {
	for _, answer := range []string{
		"-ERR max number of clients reached\r\n",
		"-LOADING Redis is loading the dataset in memory\r\n",
		hangUp, silence, "%1\r\n:1\r\n:1\r\n",
	} {
		var logins atomic.Int64
		f := newFake(t, func(args []string) string {
			switch {
			case args[0] != "HELLO":
				return "+OK\r\n"
			case logins.Add(1) == 1:
				return welcome
			}
			return answer
		})
		s := open(t, "redis://"+f.addr+"?connections=2&dial_timeout=50ms")
		eventually(t, "many logins", func() bool { return logins.Load() > 5 })
		if got := s.Generation(); got != 1 {
			t.Errorf("%q: Generation: got %d for one connection", answer, got)
		}
		if err := s.Ping(context.Background()); err != nil {
			t.Errorf("%q: Ping: %v", answer, err)
		}
		if nc, _, err := s.node.Dial(context.Background()); err == nil { // its login gets +OK
			nc.Close()
		}
		if got := s.Generation(); got != 2 {
			t.Errorf("%q: Generation after Dial: got %d", answer, got)
		}
	}
}

func TestReplies(t *testing.T) {
	for _, text := range []string{
		"OOM command not allowed when used memory > 'maxmemory'.",
		"READONLY You can't write against a read only replica.",
		"LOADING Redis is loading the dataset in memory",
		"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
		"NOAUTH Authentication required.",
		"NOPERM this user has no permissions to run the 'set' command",
		"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
		"CLUSTERDOWN Hash slot not served",
		"MOVED 3999 127.0.0.1:6381",
		"ASK 3999 127.0.0.1:6381",
		"TRYAGAIN Multiple keys request during rehashing of slot",
		"NOREPLICAS Not enough good replicas to write.",
		"EXECABORT Transaction discarded because of previous errors.",
		"ERR max number of clients reached",
	} {
		code, _, _ := strings.Cut(text, " ")
		t.Run(code+" is certainly not executed", func(t *testing.T) {
			f := newFake(t, answering("-"+text+"\r\n"))
			s := open(t, "redis://"+f.addr)
			wantOutcomes(t, s, store.OutcomeUnavailable, store.OutcomeUnavailable, time.Second)
			if _, err := s.Load(context.Background(), "k"); !strings.Contains(err.Error(), strings.TrimPrefix(text, "ERR ")) {
				t.Errorf("Load: the error %q does not show the server's", err)
			}
		})
	}
	t.Run("a key of another type is there, and no session", func(t *testing.T) { // nor a sign that the server is away
		f := newFake(t, answering("-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"))
		reads, writes := operations(open(t, "redis://"+f.addr))
		for name, op := range reads {
			want := store.OutcomeUnavailable
			if name == "Load" || name == "Inspect" {
				want = store.OutcomeInvalid
			}
			if err := op(context.Background()); store.OutcomeOf(err) != want {
				t.Errorf("%s: got %v, want %v", name, err, want)
			}
		}
		for name, op := range writes {
			if err := op(context.Background()); store.OutcomeOf(err) != store.OutcomeUnavailable {
				t.Errorf("%s: got %v, want unavailable", name, err)
			}
		}
	})
	t.Run("an error from inside of a script is unknown", func(t *testing.T) {
		f := newFake(t, answering("-ERR The user executing the script can't run this command or subcommand script: 86da, on @user_script:2.\r\n"))
		s := open(t, "redis://"+f.addr)
		if err := s.Workflow("w").Commit(context.Background(), "k", store.Op{Nonce: "n"}, nil); !errors.Is(err, store.ErrUnknown) {
			t.Errorf("Commit: got %v, want unknown", err)
		}
	})
	t.Run("a script that is not there is sent once", func(t *testing.T) {
		f := newFake(t, answering("-NOSCRIPT No matching script. Please use EVAL.\r\n"))
		s := open(t, "redis://"+f.addr)
		if err := s.Workflow("w").RaiseFence(context.Background(), 1); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("RaiseFence: got %v, want unavailable", err)
		}
		if got := f.commands(); !slices.Equal(got, []string{"EVALSHA", "EVAL"}) {
			t.Errorf("commands: %q", got)
		}
	})
	t.Run("nonsense is no answer", func(t *testing.T) {
		for _, out := range []string{"*0\r\n", "*1\r\n:7\r\n", "*2\r\n:0\r\n*1\r\n+x\r\n", "+what\r\n", "_\r\n", "*1\r\n*0\r\n"} {
			f := newFake(t, answering(out))
			s := open(t, "redis://"+f.addr)
			w := s.Workflow("w")
			if _, err := w.Begin(context.Background(), "k", store.Op{Nonce: "n"}); !errors.Is(err, store.ErrUnknown) {
				t.Errorf("Begin: %q: got %v, want unknown", out, err)
			}
			if _, err := w.Leases(context.Background()); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Leases: %q: got %v, want unavailable", out, err)
			}
			if _, err := w.Unsettled(context.Background(), 1); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Unsettled: %q: got %v, want unavailable", out, err)
			}
		}
	})
	t.Run("what the server quotes of the command is not shown", func(t *testing.T) {
		f := newFake(t, func(args []string) string {
			if args[0] == "HELLO" {
				return welcome
			}
			return "-ERR unknown command 'X', with args beginning with: '" + strings.Join(args, "' '") + "'\r\n"
		})
		s := open(t, "redis://"+f.addr)
		if _, err := s.Load(context.Background(), "thesessionid"); err == nil || strings.Contains(err.Error(), "thesessionid") {
			t.Errorf("Load: %v", err)
		}
	})
}

func TestServerAway(t *testing.T) {
	ctx := context.Background()
	t.Run("at Open", func(t *testing.T) {
		server := testserver.Redis(t)
		server.Kill()
		s := open(t, server.URL())
		if err := s.Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Save: got %v, want unavailable", err)
		}
		server.Restart()
		eventually(t, "Save", func() bool { return s.Save(ctx, "k", live("x"), store.Always) == nil })
	})
	t.Run("later, and back without its memory", func(t *testing.T) {
		server := testserver.Redis(t)
		s := open(t, server.URL())
		if err := s.Save(ctx, "k", live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
		gen := s.Generation()
		id, err := s.Instance(ctx)
		if err != nil || len(id) != 40 {
			t.Fatalf("Instance: got %q, %v", id, err)
		}
		server.Kill()
		eventually(t, "unavailable", func() bool {
			return errors.Is(s.Save(ctx, "k", live("x"), store.Always), store.ErrUnavailable)
		})
		server.Restart()
		for end := time.Now().Add(10 * time.Second); ; {
			// Whoever sees an answer of the new server sees the new generation.
			_, err := s.Load(ctx, "k")
			if errors.Is(err, store.ErrAbsent) {
				if s.Generation() == gen {
					t.Error("Generation is as before")
				}
				break
			}
			if time.Now().After(end) {
				t.Fatalf("Load: %v", err)
			}
		}
		if again, err := s.Instance(ctx); again == id || err != nil {
			t.Errorf("Instance: got %q again, %v", again, err)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		server := testserver.Redis(t)
		s := open(t, server.URL()+"?timeout=300ms")
		if err := s.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		server.Pause()
		if err := s.Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrUnknown) {
			t.Errorf("Save: got %v, want unknown", err)
		}
		server.Resume()
		eventually(t, "Ping", func() bool { return s.Ping(ctx) == nil })
	})
	t.Run("its scripts are gone", func(t *testing.T) {
		server := testserver.Redis(t)
		w := open(t, server.URL()).Workflow("w")
		for range 2 {
			if err := w.RaiseFence(ctx, 1); err != nil {
				t.Errorf("RaiseFence: %v", err)
			}
			server.Do("SCRIPT", "FLUSH")
		}
	})
}

func TestLogin(t *testing.T) {
	ctx := context.Background()
	const secret = "pa:ss/wo%rd#1"
	fails := func(t *testing.T, text, want string) {
		t.Helper()
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(ctx, u)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "wrong!") {
			t.Errorf("Open: got %v, want %q", err, want)
		}
	}
	server := testserver.Redis(t, testserver.WithPassword("someone", secret))
	if err := open(t, server.URL()+"/15").Ping(ctx); err != nil {
		t.Errorf("Ping: %v", err)
	}
	fails(t, "redis://someone:wrong!@"+server.Addr, "WRONGPASS")
	fails(t, "redis://"+server.Addr, "NOAUTH")
	fails(t, server.URL()+"/99", "DB index")

	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("wrong!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "redis://someone@" + server.Addr + "?password_file=" + url.QueryEscape(file)
	fails(t, text, "WRONGPASS")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, text)
	if err := s.Ping(ctx); err != nil {
		t.Errorf("Ping: %v", err)
	}

	// A password that changes while we run: Ping says what is wrong, and a new file mends it.
	server.Do("ACL", "SETUSER", "admin", "on", ">x", "~*", "+@all")
	server.Do("ACL", "SETUSER", "someone", ">second", "<"+secret)
	nc, err := net.Dial("tcp", server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write([]byte("AUTH admin x\r\nCLIENT KILL USER someone\r\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "WRONGPASS", func() bool {
		err := s.Ping(ctx)
		return errors.Is(err, store.ErrUnavailable) && strings.Contains(err.Error(), "WRONGPASS")
	})
	if err := os.WriteFile(file, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Ping", func() bool { return s.Ping(ctx) == nil })
}

func TestTransports(t *testing.T) {
	server := testserver.Redis(t, testserver.WithTLS(), testserver.WithPassword("u", "p"))
	ca := url.QueryEscape(server.CAFile)
	for name, text := range map[string]string{
		"tcp":                   "redis://u:p@" + server.Addr + "/2",
		"unix":                  "redis+unix://u:p@" + server.Socket + "?database=2",
		"tls":                   "rediss://u:p@" + server.TLSAddr + "/2?ca_file=" + ca,
		"tls, of another name":  "rediss://u:p@" + server.TLSAddr + "/2?server_name=localhost&ca_file=" + ca,
		"tls on one connection": "rediss://u:p@" + server.TLSAddr + "/2?connections=1&ca_file=" + ca,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, text)
			key := strings.ReplaceAll(name, " ", "")
			if err := s.Save(context.Background(), key, live("x"), store.Always); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Load(context.Background(), key); string(got.Data) != "x" || err != nil {
				t.Errorf("Load: got %q, %v", got.Data, err)
			}
		})
	}
	t.Run("tls, from nobody we know", func(t *testing.T) {
		u, _ := url.Parse("rediss://u:p@" + server.TLSAddr + "?dial_timeout=20s")
		s, err := Open(context.Background(), u)
		if err == nil {
			s.Close()
			t.Fatal("Open trusts anybody")
		}
		if !strings.Contains(err.Error(), "certificate") {
			t.Errorf("Open: %v", err)
		}
	})
}
