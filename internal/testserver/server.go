package testserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is what all servers of a test have in common. Its methods fail the test when they cannot do what they say.
type server struct {
	Pid int // of the server; a restart changes it

	t    testing.TB
	name string
	dir  string // its folder, where it runs

	mu     sync.Mutex // guards p, paused and, while it changes, Pid; held over a whole change of state
	p      *process
	paused bool
}

// prepare makes the folder and sees to the end of the server.
func (s *server) prepare(t testing.TB, name string) {
	t.Helper()
	s.t, s.name, s.dir = t, name, tempDir(t)
	t.Cleanup(func() {
		if s.p != nil { // else it never started
			s.Stop()
		}
	})
}

// Stop ends the server with SIGTERM, in the middle of whatever it does, and with SIGKILL if that takes long.
func (s *server) Stop() {
	s.t.Helper()
	s.change("stop", func(p *process) error {
		return p.stop(func() { s.t.Logf("testserver: %s: no end %v after SIGTERM: killed", s.name, stopTime) })
	})
}

// Kill ends the server with SIGKILL.
func (s *server) Kill() {
	s.t.Helper()
	s.change("kill", (*process).kill)
}

// Pause stops the server where it stands (SIGSTOP): connections stay open and are accepted, and nothing answers.
func (s *server) Pause() {
	s.t.Helper()
	s.change("pause", func(p *process) error {
		s.paused = true
		return p.pause()
	})
}

// Resume lets a paused server go on.
func (s *server) Resume() {
	s.t.Helper()
	s.change("resume", func(p *process) error {
		s.paused = false
		return p.signal(syscall.SIGCONT, true)
	})
}

// awake reports whether the server runs and is not paused, so that a question to it has a meaning.
func (s *server) awake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.paused && s.p.running()
}

// begin starts a server for the first time, at ports that configure chooses.
func (s *server) begin(configure func(), start func() error) {
	s.t.Helper()
	err := errPortTaken
	for try := 0; try < 5 && errors.Is(err, errPortTaken); try++ { // taken between our look and the server's bind
		configure()
		err = start()
	}
	if err != nil {
		s.t.Fatalf("testserver: %s: %v\n%s", s.name, err, s.Log())
	}
}

// again starts a server that was stopped, at the same ports.
func (s *server) again(start func() error) {
	s.t.Helper()
	// Somebody else may be trying our port, as freePort does.
	deadline := time.Now().Add(startTime)
	err := start()
	for errors.Is(err, errPortTaken) && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		err = start()
	}
	if err != nil {
		s.t.Fatalf("testserver: %s: restart: %v\n%s", s.name, err, s.Log())
	}
}

func (s *server) change(what string, do func(*process) error) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := do(s.p); err != nil {
		s.t.Fatalf("testserver: %s: %s: %v", s.name, what, err)
	}
}

// Log returns what the server has printed since it was first started.
func (s *server) Log() string {
	b, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (s *server) logPath() string { return filepath.Join(s.dir, "server.log") }

// errPortTaken: somebody else listens on the port that the server was to have.
var errPortTaken = errors.New("port is taken")

// start runs cmd and asks ready until it says yes, with startTime at most; an error of ready is final. What cmd prints
// goes to the log.
func (s *server) start(cmd *exec.Cmd, onDeath syscall.Signal, ready func() (bool, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := os.OpenFile(s.logPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	before, err := out.Stat()
	if err != nil {
		return err
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	p, err := launch(cmd, onDeath)
	if err != nil {
		return err
	}
	s.p, s.Pid, s.paused = p, p.pid, false
	deadline := time.After(startTime)
	for {
		yes, err := ready()
		if yes {
			return nil
		}
		if err != nil {
			return firstError(p.kill(), err)
		}
		select {
		case <-p.done:
			// PostgreSQL's processes outlive a SIGKILL of the first one for a moment.
			if log := s.Log()[before.Size():]; strings.Contains(log, "Address already in use") || strings.Contains(log, "pre-existing shared memory") {
				return errPortTaken
			}
			return fmt.Errorf("ended at the start: %w", firstError(p.err, errors.New("exit status 0")))
		case <-deadline:
			return firstError(p.kill(), errors.New("does not get ready"))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
