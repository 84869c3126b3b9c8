package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sessile/sessile/internal/resp"
)

// A tap stands between a server and Redis, and notes what is asked: the commands, and how often something is asked after something was
// answered. With one request at a time in the server that is the number of round trips, whatever it pipelines.
type tap struct {
	net.Listener
	to string

	mu       sync.Mutex // guards what follows
	commands []string
	trips    int
	asked    bool // and not answered yet
	conns    []net.Conn
}

// tapDistance is how late answers come: what a server asks for at the same time is asked before the first of them.
const tapDistance = 5 * time.Millisecond

func startTap(to string) (*tap, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{Listener: l, to: to}
	go t.accept()
	return t, nil
}

// accept ends with the listener, and each connection with either of its ends.
func (t *tap) accept() {
	for {
		client, err := t.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", t.to)
		if err != nil {
			client.Close()
			return
		}
		t.mu.Lock()
		t.conns = append(t.conns, client, server)
		t.mu.Unlock()
		var waiting []byte
		go relay(server, client, func(b []byte) { waiting = t.ask(append(waiting, b...)) })
		go relay(client, server, func([]byte) {
			time.Sleep(tapDistance)
			t.mu.Lock()
			t.asked = false
			t.mu.Unlock()
		})
	}
}

func (t *tap) close() {
	t.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		c.Close()
	}
}

// relay tells of what it passes on before it does.
func relay(to, from net.Conn, tell func([]byte)) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			tell(buf[:n])
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// ask notes the requests in b, and returns what is of one that has not all come.
func (t *tap) ask(b []byte) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.asked {
		t.trips, t.asked = t.trips+1, true
	}
	for len(b) > 0 {
		args, n, _, err := resp.ParseRequest(b, resp.Limits{}, nil)
		if errors.Is(err, resp.ErrIncomplete) {
			return b
		}
		if err != nil {
			t.commands = append(t.commands, err.Error())
			return nil
		}
		if len(args) > 0 {
			t.commands = append(t.commands, strings.ToUpper(string(args[0])))
		}
		b = b[n:]
	}
	return nil
}

// take is what was asked since the last time.
func (t *tap) take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	said := fmt.Sprintf("%d: %s", t.trips, strings.Join(t.commands, " "))
	if t.commands == nil {
		said = "0"
	}
	t.commands, t.trips, t.asked = nil, 0, false
	return said
}

// An operation is one request whose commands are counted, after what makes ready for it.
type operation struct {
	name string
	run  func(p *prober) (cookie, path string)
}

var operations = []operation{
	{"read", func(p *prober) (string, string) { return p.login("alice"), "read" }},
	{"change", func(p *prober) (string, string) { return p.login("alice"), "add" }},
	{"login", func(p *prober) (string, string) { return p.ask("set?key=a&value=x").cookie, "login?user=alice" }},
	{"logout", func(p *prober) (string, string) { return p.login("alice"), "logout" }},
	{"no cookie", func(*prober) (string, string) { return "", "read" }},
}

// libraryCosts prints what operations ask of Redis, and what a session takes there.
func (r *run) libraryCosts(redis *server) error {
	head := []string{"library"}
	for _, o := range operations {
		head = append(head, o.name)
	}
	rows := [][]string{head}
	seen := map[string]bool{}
	sizes := [][]string{{"library", "", "bytes of the value", "of the key", "in memory (MEMORY USAGE)"}}
	for _, l := range libraries {
		if l.cookie == "" {
			continue
		}
		row := []string{l.name}
		for _, o := range operations {
			said, err := r.count(l, redis, o)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, o.name, err)
			}
			row = append(row, said)
		}
		r.say("%v", row)
		rows = append(rows, row)
		more, err := r.sizes(l, redis)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		family, _, _ := strings.Cut(l.name, ",")
		for _, row := range more {
			if key := fmt.Sprint(family, row[1:]); !seen[key] { // other options, the same record
				seen[key], sizes = true, append(sizes, row)
			}
		}
	}
	table(rows)
	fmt.Print("A session of five values (a user's id of 36 characters, a name of 13, a token of 32, a number and a time) in Redis:\n")
	table(sizes)
	return nil
}

// count does an operation some times and returns what was asked most often: a client looks after its connections at times, too.
func (r *run) count(l *library, redis *server, o operation) (string, error) {
	t, err := startTap(redis.addr)
	if err != nil {
		return "", err
	}
	defer t.close()
	p := &prober{run: r, lib: l, redis: &redisClient{addr: redis.addr}}
	defer p.redis.close()
	p.do("FLUSHALL")
	if p.site, err = r.startLibrary(l, siteSetup{Redis: t.Addr().String()}); err != nil {
		return "", err
	}
	defer r.end(p.site.proc)
	seen, most := map[string]int{}, ""
	for range 9 {
		cookie, path := o.run(p)
		t.take()
		p.ask(path, cookie)
		said := t.take()
		if seen[said]++; seen[said] > seen[most] {
			most = said
		}
	}
	return most, p.err
}

// sizes are those of a small session.
func (r *run) sizes(l *library, redis *server) (rows [][]string, err error) {
	p := &prober{run: r, lib: l, redis: &redisClient{addr: redis.addr}}
	defer p.redis.close()
	if p.site, err = r.startLibrary(l, siteSetup{Redis: redis.addr}); err != nil {
		return nil, err
	}
	defer r.end(p.site.proc)
	paths := map[string]string{"five": ""}
	if l.ours() {
		paths["fivelogin"] = "logged in, the user's id being one of the five"
	}
	for _, path := range []string{"five", "fivelogin"} {
		what, ok := paths[path]
		if !ok {
			continue
		}
		p.do("FLUSHALL")
		p.ask(path)
		keys := p.keys()
		slices.SortFunc(keys, func(a, b string) int { return int(p.do("STRLEN", b).Int - p.do("STRLEN", a).Int) })
		for i, key := range keys {
			if i > 0 {
				what = "the list of that user's sessions, with one"
			}
			rows = append(rows, []string{l.name, what, fmt.Sprint(p.do("STRLEN", key).Int), fmt.Sprint(len(key)), fmt.Sprint(p.do("MEMORY", "USAGE", key).Int)})
		}
	}
	return rows, p.err
}
