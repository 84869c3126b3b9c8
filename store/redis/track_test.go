package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// copies keeps what it has loaded until it hears that it is not good any more. One load of a key is under way at a time.
type copies struct {
	load func(context.Context, string) (store.Record, error)
	stop func()

	loading sync.Map // of *sync.Mutex by key
	mu      sync.Mutex
	kept    map[string]string
	news    map[string]int // by key; "" is all
}

func track(t testing.TB, s *Store) *copies {
	t.Helper()
	c := &copies{kept: map[string]string{}, news: map[string]int{}}
	var err error
	if c.load, c.stop, err = s.Track(c.changed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

func (c *copies) changed(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.news[key]++
	if key == "" {
		clear(c.kept)
	} else {
		delete(c.kept, key)
	}
}

// heard counts the news of a key; "" is of all.
func (c *copies) heard(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.news[key]
}

// get returns "" for an absent record, of which it keeps a copy, too.
func (c *copies) get(key string) (string, error) {
	l, _ := c.loading.LoadOrStore(key, new(sync.Mutex))
	l.(*sync.Mutex).Lock()
	defer l.(*sync.Mutex).Unlock()
	c.mu.Lock()
	kept, ok := c.kept[key]
	one, all := c.news[key], c.news[""]
	c.mu.Unlock()
	if ok {
		return kept, nil
	}
	rec, err := c.load(context.Background(), key)
	if errors.Is(err, store.ErrAbsent) {
		err = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.news[key] == one && c.news[""] == all {
		c.kept[key] = string(rec.Data)
	}
	return string(rec.Data), err
}

// keep loads a record until there is a copy.
func (c *copies) keep(t *testing.T, key, want string) {
	t.Helper()
	eventually(t, "a copy of "+key, func() bool {
		got, err := c.get(key)
		c.mu.Lock()
		defer c.mu.Unlock()
		kept, ok := c.kept[key]
		return err == nil && got == want && ok && kept == want
	})
}

// doubts does something and waits for the news that all may have changed.
func (c *copies) doubts(t *testing.T, what string, do func()) {
	t.Helper()
	before := c.heard("")
	do()
	eventually(t, "doubts after "+what, func() bool { return c.heard("") > before })
}

func TestTrack(t *testing.T) {
	ctx := context.Background()
	server := testserver.Redis(t)
	u := server.URL() + "?track=yes&prefix=p%3A"

	t.Run("only where it was asked for", func(t *testing.T) {
		s := open(t, server.URL())
		if _, _, err := s.Track(func(string) {}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Track: got %v, want ErrUnsupported", err)
		}
		if !strings.Contains(server.Do("INFO", "clients").(string), "tracking_clients:0\r\n") {
			t.Error("connections track without being asked to")
		}
	})
	t.Run("only our keys", func(t *testing.T) {
		s := open(t, u+"&connections=1")
		c := track(t, s)
		for _, name := range []string{"p:", "other", "p:a"} {
			if _, err := s.Command(ctx, "GET", name); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"p:", "other", "p:a"} {
			server.Do("SET", name, "x")
		}
		eventually(t, "news of a", func() bool { return c.heard("a") == 1 })
		if len(c.news) != 1 {
			t.Errorf("heard of %v", c.news)
		}
	})
	t.Run("what the server does by itself", func(t *testing.T) {
		s := open(t, u)
		c := track(t, s)
		server.Do("SET", "p:expires", "x", "PX", "50")
		if _, err := c.get("expires"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "news of what has expired", func() bool { return c.heard("expires") > 0 })

		server.Do("SET", "p:a", "x")
		c.keep(t, "a", "x")
		c.doubts(t, "FLUSHALL", func() { server.Do("FLUSHALL") })
		c.keep(t, "a", "")

		server.Do("CONFIG", "SET", "tracking-table-max-keys", "1")
		t.Cleanup(func() { server.Do("CONFIG", "SET", "tracking-table-max-keys", "1000000") })
		for i := range 20 {
			if _, err := c.get(fmt.Sprint("many", i)); err != nil {
				t.Fatal(err)
			}
		}
		forgotten := func() (n int) {
			for i := range 20 {
				n += min(1, c.heard(fmt.Sprint("many", i)))
			}
			return n
		}
		eventually(t, "news of what the server does not track any more", func() bool { return forgotten() >= 19 })
	})
	t.Run("a connection is lost", func(t *testing.T) {
		s := open(t, u)
		c := track(t, s)
		server.Do("SET", "p:a", "1")
		for i := range 3 {
			c.keep(t, "a", fmt.Sprint(i+1))
			c.doubts(t, "CLIENT KILL", func() { server.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") })
			server.Do("SET", "p:a", fmt.Sprint(i+2))
		}
		c.keep(t, "a", "4")
	})
	t.Run("the server goes silent", func(t *testing.T) {
		s := open(t, u+"&timeout=300ms")
		c := track(t, s)
		server.Do("SET", "p:a", "1")
		c.keep(t, "a", "1")
		c.doubts(t, "a pause", server.Pause)
		server.Resume()
		c.keep(t, "a", "1")
	})
	t.Run("the server is restarted", func(t *testing.T) {
		s := open(t, u)
		c := track(t, s)
		server.Do("SET", "p:a", "1")
		c.keep(t, "a", "1")
		c.doubts(t, "a restart", func() { server.Kill(); server.Restart() })
		server.Do("SET", "p:a", "2")
		c.keep(t, "a", "2")
		server.Do("SET", "p:a", "3")
		eventually(t, "the news of the new server", func() bool { v, err := c.get("a"); return err == nil && v == "3" })
	})
	t.Run("the store is closed", func(t *testing.T) {
		s := open(t, u)
		c := track(t, s)
		c.keep(t, "b", "")
		c.doubts(t, "Close", func() { s.Close() })
		if v, err := c.get("b"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("got %q, %v", v, err)
		}
	})
}

func TestWhoMayNotTrack(t *testing.T) {
	server := testserver.Redis(t)
	server.Do("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-client|tracking")
	fails := func(addr, want string) {
		t.Helper()
		u, err := url.Parse("redis://app:secret@" + addr + "?track=yes")
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(context.Background(), u)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "CLIENT TRACKING") {
			t.Errorf("Open: got %v, want %q", err, want)
		}
	}
	fails(server.Addr, "NOPERM")
	if err := open(t, "redis://app:secret@"+server.Addr).Ping(context.Background()); err != nil {
		t.Errorf("without: %v", err)
	}

	old := func(hello, client string) *fake {
		return newFake(t, func(args []string) string {
			switch args[0] {
			case "HELLO":
				return hello
			case "CLIENT":
				return client
			}
			return "+OK\r\n"
		})
	}
	fails(old("-ERR unknown command 'HELLO'\r\n", "+OK\r\n").addr, "HELLO")
	fails(old("*2\r\n+proto\r\n:2\r\n", "+OK\r\n").addr, "RESP3")
	fails(old(welcome, "-ERR unknown subcommand 'TRACKING'\r\n").addr, "unknown subcommand")
}

const pushed = invalidated + "*1\r\n$1\r\nk\r\n"

// News come anywhere between answers, and what is not news costs the connection, as it does where nobody tracks.
func TestNewsOnTheWire(t *testing.T) {
	ctx := context.Background()
	for what, c := range map[string]struct {
		text string
		want map[string]int // of news; nil: the connection is lost
	}{
		"a name":                {pushed, map[string]int{"k": 1}},
		"two in a row":          {pushed + pushed, map[string]int{"k": 2}},
		"two names":             {invalidated + "*2\r\n$1\r\na\r\n$3\r\n\r\n\x00\r\n", map[string]int{"a": 1, "\r\n\x00": 1}},
		"all":                   {invalidated + "_\r\n", map[string]int{"": 1}},
		"all, by another null":  {invalidated + "*-1\r\n", map[string]int{"": 1}},
		"none":                  {invalidated + "*0\r\n", map[string]int{}},
		"a name that is null":   {invalidated + "*1\r\n$-1\r\n", map[string]int{"": 1}},
		"a name of no bytes":    {invalidated + "*1\r\n$0\r\n\r\n", map[string]int{}},
		"a subscription":        {">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", nil},
		"no subscription":       {">3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:1\r\n", nil},
		"a message":             {">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n", nil},
		"something else":        {">2\r\n$10\r\ninvalidatE\r\n*1\r\n$1\r\nk\r\n", nil},
		"more":                  {">3\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n+x\r\n", nil},
		"nothing":               {">0\r\n", nil},
		"a negative length":     {">-2\r\n", nil},
		"a name alone":          {invalidated + "$1\r\nk\r\n", nil},
		"a number":              {invalidated + ":1\r\n", nil},
		"a map":                 {invalidated + "%1\r\n$1\r\nk\r\n$1\r\nk\r\n", nil},
		"names in names":        {invalidated + "*1\r\n*1\r\n$1\r\nk\r\n", nil},
		"a name of minus two":   {invalidated + "*1\r\n$-2\r\n", nil},
		"a name that is longer": {invalidated + "*1\r\n$1\r\nkk\r\n", nil},
		"news in news":          {invalidated + invalidated + "_\r\n", nil},
		"news inside":           {"*2\r\n+a\r\n" + pushed, nil},
		"too many names":        {invalidated + "*" + fmt.Sprint(maxElems+1) + "\r\n", nil},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(args []string) string {
				switch args[0] {
				case "HELLO":
					return welcome
				case "GET":
					return c.text + "$1\r\nv\r\n" + c.text
				case "STRLEN":
					return ":7\r\n"
				}
				return "+OK\r\n"
			})
			s := open(t, "redis://"+f.addr+"?track=yes&connections=1")
			n := track(t, s)
			generation := s.Generation()
			rec, err := n.load(ctx, "k")
			if c.want == nil {
				if !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("load: got %q, %v", rec.Data, err)
				}
				eventually(t, "doubts", func() bool { return n.heard("") > 0 })
				eventually(t, "another connection", func() bool { return s.Generation() > generation })
				return
			}
			if err != nil || string(rec.Data) != "v" {
				t.Errorf("load: got %q, %v", rec.Data, err)
			}
			if v, err := s.Command(ctx, "STRLEN", "k"); err != nil || v.Int != 7 { // answers are in step
				t.Errorf("STRLEN: got %v, %v", v, err)
			}
			for key, count := range c.want {
				if n.heard(key) != 2*count {
					t.Errorf("%d times news of %q, want %d", n.heard(key), key, 2*count)
				}
			}
			if n.heard("k") != 2*c.want["k"] || n.heard("") != 2*c.want[""] || s.Generation() != generation {
				t.Errorf("news %v, %d connections", n.news, s.Generation())
			}
		})
	}
	t.Run("before anybody tracks", func(t *testing.T) {
		for _, piece := range []func() int{whole, single} {
			if _, _, err := follow(replyLimits(0), []byte(pushed), piece); err == nil {
				t.Error("news pass where nobody tracks")
			}
		}
	})
	t.Run("in any pieces", func(t *testing.T) {
		stream := pushed + "+a\r\n" + pushed + invalidated + "_\r\n" + "*1\r\n+b\r\n"
		for _, piece := range []func() int{whole, single} {
			f := framing{pushed: func() bool { return true }, asked: func() int64 { return 2 }}
			n, err := followOn(&f, replyLimits(0), []byte(stream), piece)
			if n != len(stream) || err != nil || f.began != 2 || f.ended != 2 {
				t.Errorf("got %d of %d bytes, %d of %d whole, %v", n, len(stream), f.ended, f.began, err)
			}
		}
	})
}

// A connection that ends right behind the answer takes the news with it: the loss is told.
func TestAnAnswerIsTheLastThing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				for r := bufio.NewReader(nc); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					answer := ""
					switch strings.TrimSpace(line) {
					case "HELLO":
						answer = welcome
					case "INFO":
						answer = "$11\r\nrun_id:fake\r\n"
					case "TRACKING":
						answer = "+OK\r\n"
					case "GET":
						io.WriteString(nc, "$1\r\nv\r\n")
						return
					}
					if _, err := io.WriteString(nc, answer); err != nil {
						return
					}
				}
			})
		}
	})
	s := open(t, "redis://"+ln.Addr().String()+"?track=yes&connections=1")
	n := track(t, s)
	for range 5 {
		before := n.heard("")
		eventually(t, "a load", func() bool { _, err := n.get("k"); return err == nil })
		eventually(t, "doubts", func() bool { return n.heard("") > before })
		n.mu.Lock()
		kept := len(n.kept)
		n.mu.Unlock()
		if kept != 0 {
			t.Fatal("a copy is kept that nobody tells of")
		}
	}
}

// storm writes numbers under keys by one store and reads copies by another one, both for as long as trouble takes, and looks whether
// any copy goes backwards, or stays behind at the end.
func storm(t *testing.T, reader, writer *Store, keys []string, trouble func()) {
	t.Helper()
	ctx := context.Background()
	c := track(t, reader)
	over := make(chan struct{})
	last := make([]int, len(keys))
	var wg sync.WaitGroup
	reads := 0
	for i, key := range keys {
		wg.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-over:
					return
				case <-time.After(time.Duration(i%4) * time.Millisecond): // the load of a test, not a wait for anything
				}
				if err := writer.Save(ctx, key, live(strconv.Itoa(n)), store.Always); err == nil {
					last[i] = n // one that failed may have happened all the same
				} else {
					last[i] = -1
				}
			}
		})
	}
	wg.Go(func() {
		seen := make([]int, len(keys))
		for n := 0; ; n++ {
			i := n % len(keys)
			select {
			case <-over:
				return
			default:
			}
			got, err := c.get(keys[i])
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			reads++
			v, _ := strconv.Atoi(got)
			if v < seen[i] {
				t.Errorf("%s: %d after %d", keys[i], v, seen[i])
			}
			seen[i] = v
		}
	})
	trouble()
	close(over)
	wg.Wait()
	for i, key := range keys {
		eventually(t, "the last value of "+key, func() bool {
			rec, err := writer.Load(ctx, key)
			got, bad := c.get(key)
			return err == nil && bad == nil && got == string(rec.Data) && (last[i] < 0 || got == strconv.Itoa(last[i]))
		})
	}
	t.Logf("%d reads, news of all %d times, writes %v", reads, c.heard(""), slices.Max(last))
}

func TestCopiesWhileConnectionsAreLost(t *testing.T) {
	server := testserver.Redis(t)
	reader, writer := open(t, server.URL()+"?track=yes"), open(t, server.URL())
	ids := func() (list []string) { // of connections that track
		for line := range strings.Lines(server.Do("CLIENT", "LIST").(string)) {
			if f := infoFields(strings.ReplaceAll(strings.ReplaceAll(line, " ", "\n"), "=", ":")); strings.Contains(f["flags"], "t") {
				list = append(list, f["id"])
			}
		}
		return list
	}
	storm(t, reader, writer, []string{"a", "b", "c", "d", "e"}, func() {
		end := time.Now().Add(2 * time.Second)
		for kills := 0; time.Now().Before(end); {
			for _, id := range ids() {
				server.Try("CLIENT", "KILL", "ID", id)
				kills++
				time.Sleep(3 * time.Millisecond) // the other connection goes on
			}
		}
	})
}

func TestCopiesWhileSlotsMove(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1})
	reader, writer := open(t, c.URL()+"?track=yes&hold=10s"), open(t, c.URL()+"?hold=10s")
	var keys []string
	var slots []int
	for i := range 6 {
		key := fmt.Sprint("k", i)
		keys = append(keys, key)
		if i%2 == 0 {
			slots = append(slots, slotOf(key))
		}
	}
	storm(t, reader, writer, keys, func() {
		life, stop := context.WithTimeout(context.Background(), 3*time.Second)
		defer stop()
		t.Logf("%d moves", reshard(life, c, slots))
	})

	// What is absent at the old place is made at the new one, while the slot is on its way: only the others say so.
	n := track(t, reader)
	key := "made meanwhile"
	from := c.NodeOf(key)
	to := c.Primaries()[0]
	if to == from {
		to = c.Primaries()[1]
	}
	n.keep(t, key, "")
	n.doubts(t, "a slot begins to move", func() { c.BeginMove(from, to, slotOf(key)) })
	if err := writer.Save(context.Background(), key, live("1"), store.Always); err != nil {
		t.Fatal(err)
	}
	n.keep(t, key, "1")
	n.doubts(t, "a slot has moved", func() { c.MoveKeys(from, to, slotOf(key)); c.EndMove(to, slotOf(key)) })
	n.keep(t, key, "1")
}

// While a node is away others are asked again and again, by connections on which no session is read.
func TestALookDoubtsNoCopies(t *testing.T) {
	opt := Options{Cluster: []string{"127.0.0.1:1"}, Track: true}
	if err := opt.complete(); err != nil {
		t.Fatal(err)
	}
	s, _ := newStore(opt)
	t.Cleanup(func() { s.Close() })
	n := track(t, s)
	if node := newNode(s, "tcp", "127.0.0.1:1"); n.heard("") != 0 || node.gate.shut.Load() == 0 {
		t.Errorf("a node that nobody uses: %d doubts", n.heard(""))
	}
}

func TestCopiesAfterAFailoverOfAShard(t *testing.T) {
	c := testserver.Cluster(t, testserver.ClusterOptions{})
	s := open(t, c.URL()+"?track=yes")
	n := track(t, s)
	ctx := context.Background()
	for _, how := range []string{"planned", "killed"} {
		if err := s.Save(ctx, "k", live(how), store.Always); err != nil {
			t.Fatal(err)
		}
		n.keep(t, "k", how)
		old := c.NodeOf("k")
		n.doubts(t, how, func() {
			if how == "planned" {
				c.ReplicaOf(old).Do("CLUSTER", "FAILOVER")
			} else {
				old.Kill()
			}
		})
		primary := c.WaitPrimary(slotOf("k"), old)
		eventually(t, "a write at the new primary", func() bool {
			_, err := primary.Try("SET", "k", how+" new")
			return err == nil
		})
		n.keep(t, "k", how+" new")
	}
}

func TestCopiesAfterAFailover(t *testing.T) {
	set := testserver.Sentinel(t, testserver.SentinelOptions{})
	for _, how := range []string{"planned", "killed"} {
		t.Run(how, func(t *testing.T) {
			set.WaitOK()
			s := openLoud(t, set.URL()+"?track=yes&replay=off")
			n := track(t, s)
			if err := s.Save(store.Replicated(context.Background()), "k", live(how), store.Always); err != nil {
				t.Fatal(err)
			}
			n.keep(t, "k", how)
			old := set.Primary()
			n.doubts(t, how, func() {
				if how == "planned" {
					set.Failover()
				} else {
					old.Kill()
				}
			})
			primary := set.WaitPrimary(old)
			primary.Do("SET", "k", how+" new")
			n.keep(t, "k", how+" new")
			if how == "killed" {
				old.Restart()
			}
		})
	}
}

// Others may have a new primary before we know: from the announcement on no copy is good.
func TestCopiesWhileAFailoverIsAnnounced(t *testing.T) {
	a, _, fakes := newFakes(t)
	s := openLoud(t, urlOf(fakes, "hold=1s&track=yes"))
	at(t, s, a)
	n := track(t, s)
	a.Do("SET", "k", "1")
	n.keep(t, "k", "1")
	eventually(t, "a listener", func() bool { return fakes[0].listeners() > 0 })
	generation := s.Generation()
	n.doubts(t, "an announcement", func() {
		fakes[0].set(func(f *fakeSentinel) { f.flags = "master,failover_in_progress" })
		fakes[0].publish("+try-failover", "master mymaster "+strings.ReplaceAll(a.Addr, ":", " "))
	})
	if s.Generation() != generation {
		t.Error("a connection was lost, too")
	}
	n.keep(t, "k", "1") // once nothing came of it
}

func BenchmarkTrack(b *testing.B) {
	server := testserver.Redis(b)
	ctx := context.Background()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = fmt.Sprint("PHPREDIS_SESSION:", i)
		server.Do("SET", keys[i], string(kib))
	}
	cpu := func() float64 { // of the server, in seconds
		m := infoFields(server.Do("INFO", "cpu").(string))
		user, _ := strconv.ParseFloat(m["used_cpu_user"], 64)
		sys, _ := strconv.ParseFloat(m["used_cpu_sys"], 64)
		return user + sys
	}
	for _, query := range []string{"", "?track=yes"} {
		s := open(b, server.URL()+query)
		load := s.Load
		if query != "" {
			load = track(b, s).load
		}
		for _, n := range []int{1, 50} {
			b.Run(fmt.Sprintf("load%s/%d", query, n), func(b *testing.B) {
				before := cpu()
				callers(b, n, func(i int) error { _, err := load(ctx, keys[i%len(keys)]); return err })
				b.ReportMetric((cpu()-before)/float64(b.N)*1e6, "server-µs/op")
			})
			b.Run(fmt.Sprintf("load and save%s/%d", query, n), func(b *testing.B) { // of ten, one
				rec := live(string(kib))
				before := cpu()
				callers(b, n, func(i int) error {
					if i%10 == 0 {
						return s.Save(ctx, keys[i/10*7%len(keys)], rec, store.Always)
					}
					_, err := load(ctx, keys[i%len(keys)])
					return err
				})
				b.ReportMetric((cpu()-before)/float64(b.N)*1e6, "server-µs/op")
			})
		}
	}
}
