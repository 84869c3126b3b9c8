package testserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// RedisServer is a Redis server that belongs to one test. Its methods fail the test when they cannot do what they say.
// Stop, Kill, Pause and Resume may be called while other goroutines use the server.
type RedisServer struct {
	server

	Addr    string // "127.0.0.1:port"; stays the same over Restart
	Socket  string // path of the unix socket
	TLSAddr string // "127.0.0.1:port" with WithTLS, else ""
	CAFile  string // certificate that signed the server's, with WithTLS

	bin            string
	user, password string
	persistent     bool
	tls            bool
	conf           []string
}

// RedisOption changes the server that Redis starts.
type RedisOption func(*RedisServer)

// WithPassword lets in nobody but user with password. An empty user is the default user (requirepass); otherwise the
// default user is switched off.
func WithPassword(user, password string) RedisOption {
	return func(s *RedisServer) { s.user, s.password = user, password }
}

// WithConf adds lines to the end of redis.conf, where they overrule those above.
func WithConf(lines ...string) RedisOption {
	return func(s *RedisServer) { s.conf = append(s.conf, lines...) }
}

// WithTLS adds a TLS port, with a certificate for 127.0.0.1 and localhost. Clients need none.
func WithTLS() RedisOption { return func(s *RedisServer) { s.tls = true } }

// Persistent makes the server keep every acknowledged write over Kill and Restart (append-only file, fsync always).
func Persistent() RedisOption { return func(s *RedisServer) { s.persistent = true } }

// Redis starts a Redis server on 127.0.0.1 that keeps nothing on disk, and stops it after the test.
func Redis(t testing.TB, opts ...RedisOption) *RedisServer {
	t.Helper()
	s := &RedisServer{bin: find("redis-server")}
	Need(t, "redis-server", s.bin != "")
	for _, opt := range opts {
		opt(s)
	}
	s.prepare(t, "redis")
	s.Socket = filepath.Join(s.dir, "redis.sock")
	if err := os.Mkdir(s.dataDir(), 0o700); err != nil {
		t.Fatalf("testserver: redis: %v", err)
	}
	s.begin(s.configure, s.start)
	return s
}

// URL returns the address as redis://[user:password@]127.0.0.1:port.
func (s *RedisServer) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr}
	if s.password != "" {
		u.User = url.UserPassword(s.user, s.password)
	}
	return u.String()
}

// Restart stops the server if it runs and starts it again at the same addresses in the same folder. With Persistent it
// has its data again.
func (s *RedisServer) Restart() {
	s.t.Helper()
	s.Stop()
	s.again(s.start)
}

// Wipe removes the data files of a stopped server: it comes back empty, like a new machine under the old name.
func (s *RedisServer) Wipe() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p.running() {
		s.t.Fatal("testserver: redis: Wipe of a running server")
	}
	if err := firstError(os.RemoveAll(s.dataDir()), os.Mkdir(s.dataDir(), 0o700)); err != nil {
		s.t.Fatalf("testserver: redis: wipe: %v", err)
	}
}

// CLI runs redis-cli with args against the server and returns what it prints, without the last line feed. An error
// reply is printed like any other.
func (s *RedisServer) CLI(args ...string) string {
	s.t.Helper()
	bin := find("redis-cli")
	Need(s.t, "redis-cli", bin != "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	at := []string{"-s", s.Socket, "--no-auth-warning"}
	if s.user != "" {
		at = append(at, "--user", s.user)
	}
	cmd := exec.CommandContext(ctx, bin, append(at, args...)...)
	if s.password != "" {
		cmd.Env = append(os.Environ(), "REDISCLI_AUTH="+s.password)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("testserver: redis-cli %q: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return strings.TrimSuffix(string(out), "\n")
}

// Do sends one command on a connection of its own and returns the reply: string, int64, nil, or []any of these and
// ErrorReply. No answer and an error for an answer fail the test; see Try.
func (s *RedisServer) Do(args ...string) any {
	s.t.Helper()
	reply, err := s.Try(args...)
	if err != nil {
		s.t.Fatalf("testserver: redis: %q: %v", args, err)
	}
	return reply
}

// Try is Do for a server that may refuse or be away. An error reply is an ErrorReply.
func (s *RedisServer) Try(args ...string) (any, error) {
	// The unix socket: thousands of calls leave no ports in TIME_WAIT.
	return respCall("unix", s.Socket, s.user, s.password, args)
}

// Data is the folder of the server's data files.
func (s *RedisServer) Data() string { return s.dataDir() }

func (s *RedisServer) dataDir() string  { return filepath.Join(s.dir, "data") }
func (s *RedisServer) confPath() string { return filepath.Join(s.dir, "redis.conf") }

// configure chooses the ports and writes redis.conf. The server may rewrite the file; Restart leaves it alone.
func (s *RedisServer) configure() {
	s.t.Helper()
	port := freePort(s.t)
	s.Addr = fmt.Sprintf("127.0.0.1:%d", port)
	lines := []string{
		"bind 127.0.0.1",
		"protected-mode yes",
		fmt.Sprint("port ", port),
		"unixsocket " + confQuote(s.Socket),
		"unixsocketperm 700",
		"dir " + confQuote(s.dataDir()),
		`save ""`,
		"appendonly no",
		"daemonize no",
	}
	if s.persistent {
		lines = append(lines, "appendonly yes", "appendfsync always")
	}
	switch {
	case s.user != "" && s.user != "default":
		lines = append(lines, "user default off", "user "+confQuote(s.user)+" on ~* &* +@all "+confQuote(">"+s.password))
	case s.password != "":
		lines = append(lines, "requirepass "+confQuote(s.password))
	}
	if s.tls {
		c := writeCerts(s.t, s.dir)
		tlsPort := freePort(s.t)
		s.TLSAddr, s.CAFile = fmt.Sprintf("127.0.0.1:%d", tlsPort), c.ca
		lines = append(lines, fmt.Sprint("tls-port ", tlsPort), "tls-ca-cert-file "+confQuote(c.ca),
			"tls-cert-file "+confQuote(c.cert), "tls-key-file "+confQuote(c.key), "tls-auth-clients no")
	}
	text := strings.Join(append(lines, s.conf...), "\n") + "\n"
	if err := os.WriteFile(s.confPath(), []byte(text), 0o600); err != nil {
		s.t.Fatalf("testserver: redis: %v", err)
	}
}

// confQuote writes an argument of redis.conf so that any bytes survive (sdssplitargs in the server's source).
func confQuote(arg string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(arg) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// start starts the server and waits until it answers.
func (s *RedisServer) start() error {
	return s.server.start(exec.Command(s.bin, s.confPath()), syscall.SIGKILL, func() (bool, error) {
		// Asked on the unix socket in its own folder, it cannot be another server that has the port.
		_, err := s.Try("PING")
		var refused ErrorReply
		if !errors.As(err, &refused) {
			return err == nil, nil
		}
		switch code, _, _ := strings.Cut(string(refused), " "); code {
		case "NOAUTH", "WRONGPASS", "NOPERM", "ERR": // stays so
			return false, err
		case "LOADING":
			return false, nil
		}
		return true, nil // MASTERDOWN and the like: up, with nothing to say
	})
}
