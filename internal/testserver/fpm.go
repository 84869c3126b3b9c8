package testserver

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// FPMOptions says what FPM starts.
type FPMOptions struct {
	// Ini holds settings that scripts cannot change (php_admin_value). Constants such as E_ALL are not evaluated.
	Ini map[string]string
	// Workers is the number of processes that serve requests, one at a time each. 0 means 4.
	Workers int
	// Extensions are those that the scripts need besides redis and igbinary.
	Extensions []string
	// DocRoot is the folder of the scripts. Empty means a new one, see Script.
	DocRoot string
}

// FPMServer is a php-fpm that belongs to one test. Get may be called from several goroutines.
// Signals go to the master and, but for SIGTERM, to the workers too.
type FPMServer struct {
	server

	Socket  string // path of the unix socket, for any FastCGI client
	DocRoot string
}

// FPM starts a php-fpm with the redis and igbinary extensions as the current user, and stops it after the test.
// Sessions in files go to a folder of its own where Ini does not say otherwise.
func FPM(t testing.TB, o FPMOptions) *FPMServer {
	t.Helper()
	bin := find("php-fpm", "php-fpm[0-9]*")
	Need(t, "php-fpm", bin != "")
	needExtensions(t, "php-fpm", bin, o.Extensions...)
	s := &FPMServer{DocRoot: o.DocRoot}
	s.prepare(t, "php-fpm")
	s.Socket = filepath.Join(s.dir, "fpm.sock")
	if s.DocRoot == "" {
		s.DocRoot = filepath.Join(s.dir, "www")
	}
	sessions := filepath.Join(s.dir, "sessions")
	err := firstError(os.MkdirAll(s.DocRoot, 0o755), os.Mkdir(sessions, 0o700),
		os.WriteFile(s.confPath(), []byte(s.conf(o, sessions)), 0o600))
	if err != nil {
		t.Fatalf("testserver: php-fpm: %v", err)
	}
	if err := s.start(bin); err != nil {
		t.Fatalf("testserver: php-fpm: %v\n%s", err, s.Log())
	}
	return s
}

// Script writes a script into the document root; Get finds it under the same name.
func (s *FPMServer) Script(name, code string) {
	s.t.Helper()
	if err := writeScript(s.DocRoot, name, code); err != nil {
		s.t.Fatalf("testserver: php-fpm: %v", err)
	}
}

// Get asks for script (a path below the document root) with a query string and cookies, on a connection of its own, and
// waits for a free worker and its answer as long as ctx lasts. Cookies go out as they are: a value that PHP shall
// decode is encoded by the caller. Every status is an answer; no answer is an error.
func (s *FPMServer) Get(ctx context.Context, script, query string, cookies map[string]string) (*Response, error) {
	script = "/" + strings.TrimPrefix(script, "/")
	uri := script
	if query != "" {
		uri += "?" + query
	}
	params := map[string]string{
		"GATEWAY_INTERFACE": "CGI/1.1",
		"SERVER_PROTOCOL":   "HTTP/1.1",
		"SERVER_SOFTWARE":   "sessile-test",
		"SERVER_NAME":       "localhost",
		"SERVER_PORT":       "80",
		"REMOTE_ADDR":       "127.0.0.1",
		"REQUEST_METHOD":    http.MethodGet,
		"REQUEST_URI":       uri,
		"QUERY_STRING":      query,
		"DOCUMENT_ROOT":     s.DocRoot,
		"SCRIPT_NAME":       script,
		"SCRIPT_FILENAME":   filepath.Join(s.DocRoot, script),
		"HTTP_HOST":         "localhost",
	}
	if len(cookies) > 0 {
		params["HTTP_COOKIE"] = cookieHeader(cookies)
	}
	return fcgiGet(ctx, s.Socket, params)
}

const pingPath = "/sessile-ping" // answered by a worker itself, without a script

func (s *FPMServer) confPath() string { return filepath.Join(s.dir, "fpm.conf") }

func (s *FPMServer) conf(o FPMOptions, sessions string) string {
	workers := o.Workers
	if workers == 0 {
		workers = 4
	}
	lines := []string{
		"[global]",
		"error_log = " + iniQuote(s.logPath()),
		"daemonize = no",
		// A worker that ignores SIGTERM is killed by the master, which does it too when the master is told of our death.
		"process_control_timeout = 2s",
		"[sessile]",
		"listen = " + iniQuote(s.Socket),
		"listen.mode = 0600",
		"listen.backlog = 4096",
		"pm = static",
		fmt.Sprint("pm.max_children = ", workers),
		"ping.path = " + pingPath,
		"clear_env = no",
		"catch_workers_output = yes",
		"decorate_workers_output = no",
	}
	if os.Geteuid() == 0 {
		lines = append(lines, "user = root", "group = root") // it refuses to run as root without being told
	}
	// Scripts change while the test runs; opcache looks at them only every two seconds.
	if _, ok := o.Ini["opcache.enable"]; !ok {
		lines = append(lines, "php_admin_value[opcache.enable] = 0")
	}
	for _, setting := range iniLines(sessions, o.Ini) {
		lines = append(lines, fmt.Sprintf("php_admin_value[%s] = %s", setting.name, setting.value))
	}
	return strings.Join(lines, "\n") + "\n"
}

// start starts the server and waits until a worker answers.
func (s *FPMServer) start(bin string) error {
	args := []string{"--nodaemonize", "--fpm-config", s.confPath()}
	if os.Geteuid() == 0 {
		args = append(args, "--allow-to-run-as-root")
	}
	// The workers do not end with a master that is killed, and the kernel tells only the master of our death.
	return s.server.start(exec.Command(bin, args...), syscall.SIGTERM, func() (bool, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		resp, err := s.Get(ctx, pingPath, "", nil)
		return err == nil && string(resp.Body) == "pong", nil
	})
}
