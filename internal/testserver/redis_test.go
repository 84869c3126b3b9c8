package testserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRedisAnswersAtEachAddress(t *testing.T) {
	t.Parallel()
	s := Redis(t)
	s.Do("SET", "k", "a\r\n\x00b")
	for network, addr := range map[string]string{"tcp": s.Addr, "unix": s.Socket} {
		got, err := respCall(network, addr, "", "", []string{"GET", "k"})
		if err != nil || got != "a\r\n\x00b" {
			t.Errorf("GET over %s: got %q, %v", network, got, err)
		}
	}
	if want := "redis://" + s.Addr; s.URL() != want {
		t.Errorf("URL: got %q, want %q", s.URL(), want)
	}
	if got := s.CLI("GET", "k"); got != `a`+"\r\n\x00b" {
		t.Errorf("CLI: got %q", got)
	}
}

func TestRedisReplies(t *testing.T) {
	t.Parallel()
	s := Redis(t)
	s.Do("RPUSH", "l", "a", "")
	cases := []struct {
		args []string
		want any
	}{
		{[]string{"PING"}, "PONG"},
		{[]string{"GET", "absent"}, nil},
		{[]string{"EXISTS", "l"}, int64(1)},
		{[]string{"LRANGE", "l", "0", "-1"}, []any{"a", ""}},
		{[]string{"EVAL", "return {1, {}, redis.error_reply('MY own')}", "0"},
			[]any{int64(1), []any{}, ErrorReply("MY own")}},
	}
	for _, c := range cases {
		if got := s.Do(c.args...); !reflect.DeepEqual(got, c.want) {
			t.Errorf("Do(%q): got %#v, want %#v", c.args, got, c.want)
		}
	}
	_, err := s.Try("GET", "l")
	var reply ErrorReply
	if !errors.As(err, &reply) || !strings.HasPrefix(string(reply), "WRONGTYPE ") {
		t.Errorf("Try(GET of a list): got error %v, want an ErrorReply WRONGTYPE", err)
	}
}

func TestRedisWithPassword(t *testing.T) {
	t.Parallel()
	const password = `p "a\s's` + "\xff"
	cases := []struct{ name, user, url string }{
		{"the default user", "", "redis://:p%20%22a%5Cs%27s%FF@"},
		{"a named user", "bob", "redis://bob:p%20%22a%5Cs%27s%FF@"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := Redis(t, WithPassword(c.user, password))
			if got := s.Do("PING"); got != "PONG" {
				t.Errorf("PING: got %v", got)
			}
			if got := s.CLI("PING"); got != "PONG" {
				t.Errorf("redis-cli PING: got %q", got)
			}
			if got, err := respCall("tcp", s.Addr, "", "", []string{"PING"}); err == nil {
				t.Errorf("PING without a password: got %v, want an error", got)
			}
			if want := c.url + s.Addr; s.URL() != want {
				t.Errorf("URL: got %q, want %q", s.URL(), want)
			}
		})
	}
}

func TestRedisWithTLS(t *testing.T) {
	t.Parallel()
	s := Redis(t, WithTLS())
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, name := range []string{"127.0.0.1", "localhost"} {
		conn, err := tls.Dial("tcp", s.TLSAddr, &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			t.Errorf("Dial as %s: %v", name, err)
			continue
		}
		conn.Close()
	}
	if conn, err := tls.Dial("tcp", s.TLSAddr, nil); err == nil {
		conn.Close()
		t.Error("Dial without the CA: got a connection, want an error")
	}
}

func TestRedisRestart(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		opts []RedisOption
		stop func(*RedisServer)
		want any
	}{
		{"keeps nothing after Stop", nil, func(s *RedisServer) { s.Stop() }, nil},
		{"keeps nothing after Kill", nil, func(s *RedisServer) { s.Kill() }, nil},
		{"keeps everything after Kill with Persistent", []RedisOption{Persistent()}, func(s *RedisServer) { s.Kill() }, "v"},
		{"keeps everything while running with Persistent", []RedisOption{Persistent()}, func(*RedisServer) {}, "v"},
		{"keeps nothing after Wipe", []RedisOption{Persistent()}, func(s *RedisServer) { s.Stop(); s.Wipe() }, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := Redis(t, c.opts...)
			addr, pid := s.Addr, s.Pid
			s.Do("SET", "k", "v")
			c.stop(s)
			s.Restart()
			if s.Addr != addr || s.Pid == pid {
				t.Errorf("Restart: got pid %d at %s after pid %d at %s", s.Pid, s.Addr, pid, addr)
			}
			if got := s.Do("GET", "k"); got != c.want {
				t.Errorf("GET after Restart: got %v, want %v", got, c.want)
			}
		})
	}
}

func TestRedisPause(t *testing.T) {
	t.Parallel()
	s := Redis(t)
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.Pause()
	conn.Write([]byte("PING\r\n"))
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("PING while paused: got %q, %v, want no answer", buf[:n], err)
	}
	s.Resume()
	conn.SetReadDeadline(time.Now().Add(respTime))
	if n, err := conn.Read(buf); string(buf[:n]) != "+PONG\r\n" {
		t.Errorf("PING after Resume: got %q, %v", buf[:n], err)
	}
	s.Pause()
	begin := time.Now()
	s.Stop()
	if took := time.Since(begin); took >= stopTime {
		t.Errorf("Stop while paused: took %v, want less than %v", took, stopTime)
	}
}

func TestRedisStopTwice(t *testing.T) {
	t.Parallel()
	s := Redis(t)
	s.Stop()
	s.Stop()
	s.Kill()
	s.Pause()
	s.Resume()
	if _, err := s.Try("PING"); err == nil {
		t.Error("Try after Stop: got no error")
	}
}

func TestRedisWithConf(t *testing.T) {
	t.Parallel()
	s := Redis(t, WithConf("maxmemory 5mb", "appendonly yes"))
	if got := s.CLI("CONFIG", "GET", "maxmemory"); got != "maxmemory\n5242880" {
		t.Errorf("CONFIG GET maxmemory: got %q", got)
	}
	if got := s.Do("CONFIG", "GET", "appendonly"); !reflect.DeepEqual(got, []any{"appendonly", "yes"}) {
		t.Errorf("CONFIG GET appendonly: got %q, want the later line to hold", got)
	}
}

// The end of the test says why it could not start, with the words of the server.
func TestRedisThatCannotStart(t *testing.T) {
	t.Parallel()
	Redis(t) // skips, which f cannot
	f := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Redis(f, WithConf("no-such-directive yes"))
	}()
	<-done
	if !strings.Contains(f.fatal, "ended at the start") || !strings.Contains(f.fatal, "no-such-directive") {
		t.Errorf("Redis: failed with %q, want the server's log", f.fatal)
	}
}

// A server that is up on our port must not be taken for ours.
func TestRedisPortTaken(t *testing.T) {
	t.Parallel()
	other := Redis(t)
	s := Redis(t)
	s.Stop()
	s.conf = append(s.conf, "port "+other.Addr[len("127.0.0.1:"):])
	s.configure()
	if err := s.start(); !errors.Is(err, errPortTaken) {
		t.Errorf("start on a port of another server: got %v, want errPortTaken", err)
	}
	if got := other.Do("PING"); got != "PONG" {
		t.Errorf("PING of the other server: got %v", got)
	}
}

func TestManyRedisAtOnce(t *testing.T) {
	t.Parallel()
	Redis(t) // skips, which the goroutines cannot
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			s := Redis(t)
			mu.Lock()
			defer mu.Unlock()
			if seen[s.Addr] {
				t.Errorf("two servers at %s", s.Addr)
			}
			seen[s.Addr] = true
		})
	}
	wg.Wait()
}
