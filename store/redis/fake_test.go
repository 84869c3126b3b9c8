package redis

import (
	"bufio"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A fake answers what it is told to.
type fake struct {
	addr  string
	login func(args []string) string // answers the first INFO of a connection

	mu   sync.Mutex
	seen []string // names of the commands that came, logins and PINGs left out
}

const (
	silence = ""      // the command is never answered
	hangUp  = "close" // the connection is closed instead of an answer
	welcome = "%1\r\n+proto\r\n:3\r\n"
)

// newFake starts a server that answers a command with reply(args); see silence and hangUp. Logins say that it is one and
// the same server.
func newFake(t testing.TB, reply func(args []string) string) *fake {
	t.Helper()
	return newFakeLogin(t, func([]string) string { return "$11\r\nrun_id:fake\r\n" }, reply)
}

// newFakeLogin is newFake with what the server says of itself.
func newFakeLogin(t testing.TB, login, reply func(args []string) string) *fake {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{addr: ln.Addr().String(), login: login}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() { f.serve(c, reply) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return f
}

func (f *fake) serve(c net.Conn, reply func([]string) string) {
	defer c.Close()
	r := bufio.NewReader(c)
	number := func() int {
		line, _ := r.ReadString('\n')
		n, err := strconv.Atoi(strings.Trim(line, "*$\r\n"))
		if err != nil {
			return -1
		}
		return n
	}
	for loggedIn := false; ; {
		var args []string
		for range number() {
			b := make([]byte, max(0, number())+2)
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			args = append(args, string(b[:len(b)-2]))
		}
		if len(args) == 0 {
			return
		}
		answer := reply
		if args[0] == "INFO" && !loggedIn {
			answer, loggedIn = f.login, true
		} else if args[0] != "HELLO" && args[0] != "PING" {
			f.mu.Lock()
			f.seen = append(f.seen, args[0])
			f.mu.Unlock()
		}
		switch out := answer(args); out {
		case silence:
		case hangUp:
			return
		default:
			if _, err := io.WriteString(c, out); err != nil {
				return
			}
		}
	}
}

func (f *fake) commands() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.seen...)
}

// answering lets logins in and answers everything else with out.
func answering(out string) func([]string) string {
	return func(args []string) string {
		if args[0] == "HELLO" {
			return welcome
		}
		return out
	}
}
