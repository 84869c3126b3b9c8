package testserver

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// process is a program that this test binary started, with its whole process group.
type process struct {
	cmd  *exec.Cmd
	pid  int           // also the id of its group
	done chan struct{} // closed when it has ended and err is set
	err  error         // what Wait answered

	mu   sync.Mutex // guards gone; held while signalling, so that no signal goes to a pid that has been given back
	gone bool
}

// launch starts cmd as the leader of a group of its own. When this process dies, the kernel sends it the signal onDeath
// (Linux only). Of cmd's own attributes its credential is kept.
func launch(cmd *exec.Cmd, onDeath syscall.Signal) (*process, error) {
	attr := groupLeader(onDeath)
	if cmd.SysProcAttr != nil {
		attr.Credential = cmd.SysProcAttr.Credential
	}
	cmd.SysProcAttr = attr
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the starting thread for the death of the parent (prctl(2), PR_SET_PDEATHSIG), and
		// Go ends threads at times. So this one waits here until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.reap()
			close(p.done)
		}
	}()
	return p, <-started
}

// signal sends sig to the process, or to its whole group. A process that has ended is no error.
func (p *process) signal(sig syscall.Signal, group bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil
	}
	pid := p.pid
	if group {
		pid = -pid
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %v to %d: %w", sig, pid, err)
	}
	return nil
}

// stop ends the process with SIGTERM, or with SIGKILL when that takes longer than stopTime; late is called then.
func (p *process) stop(late func()) error {
	// A paused process sees SIGTERM only after SIGCONT.
	if err := firstError(p.signal(syscall.SIGTERM, false), p.signal(syscall.SIGCONT, true)); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		late()
		return p.kill()
	}
}

// kill ends the process and its group with SIGKILL.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	<-p.done
	return nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
