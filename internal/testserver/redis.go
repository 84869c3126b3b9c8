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

// RedisServer is a Redis server, or a Sentinel, that belongs to one test. Its methods fail the test when they cannot do what they say.
// Stop, Kill, Pause and Resume may be called while other goroutines use the server.
type RedisServer struct {
	server

	Addr    string // "127.0.0.1:port", or the host's address with On; stays the same over Restart
	Socket  string // path of the unix socket
	TLSAddr string // as Addr with WithTLS, else ""
	CAFile  string // certificate that signed the server's, with WithTLS

	bin            string
	user, password string
	persistent     bool
	tls            bool
	certs          certFiles // of a set's servers, which trust each other; else made by configure
	sentinel       bool      // it is a Sentinel
	host           *Host     // nil: this machine
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

// On starts the server on a host. Do, Try and CLI reach it there whatever becomes of the host's cable.
func On(h *Host) RedisOption { return func(s *RedisServer) { s.host = h } }

// inTurn starts the i-th server of a set on its host.
func (s *RedisServer) inTurn(hosts []*Host, i int) {
	if len(hosts) > 0 {
		s.host = hosts[i%len(hosts)]
	}
}

// WithTLS adds a TLS port, with a certificate for its address and localhost. Clients need none.
func WithTLS() RedisOption { return func(s *RedisServer) { s.tls = true } }

// Persistent makes the server keep every acknowledged write over Kill and Restart (append-only file, fsync always).
func Persistent() RedisOption { return func(s *RedisServer) { s.persistent = true } }

// Redis starts a Redis server, on 127.0.0.1 if not told otherwise, that keeps nothing on disk, and stops it after the test.
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

// URL returns the address as redis://[user:password@]host:port.
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
// ErrorReply. No answer and an error for an answer fail the test; see Try. WAIT says nothing here: it is about writes of
// its own connection.
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

// peerAddr is where the other servers of a set, and its clients, find this one.
func (s *RedisServer) peerAddr() string {
	if s.tls {
		return s.TLSAddr
	}
	return s.Addr
}

// Data is the folder of the server's data files.
func (s *RedisServer) Data() string { return s.dataDir() }

func (s *RedisServer) dataDir() string  { return filepath.Join(s.dir, "data") }
func (s *RedisServer) confPath() string { return filepath.Join(s.dir, "redis.conf") }

// configure chooses the ports and writes redis.conf. The server may rewrite the file; Restart leaves it alone.
func (s *RedisServer) configure() {
	s.t.Helper()
	port := freePort(s.t)
	ip, protected := "127.0.0.1", "yes"
	if s.host != nil {
		ip, protected = s.host.IP, "no" // which would keep other hosts out
	}
	s.Addr = fmt.Sprintf("%s:%d", ip, port)
	lines := []string{
		"bind " + ip,
		"protected-mode " + protected,
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
		c := s.certs
		if c.ca == "" {
			c = writeCerts(s.t, s.dir, s.host)
		}
		tlsPort := freePort(s.t)
		s.TLSAddr, s.CAFile = fmt.Sprintf("%s:%d", ip, tlsPort), c.ca
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
	args := []string{s.confPath()}
	if s.sentinel {
		args = append(args, "--sentinel")
	}
	cmd := exec.Command(s.bin, args...)
	if s.host != nil {
		cmd = s.host.Command(s.bin, args...)
	}
	return s.server.start(cmd, syscall.SIGKILL, func() (bool, error) {
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
