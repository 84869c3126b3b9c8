//go:build !linux

package testserver

import "syscall"

// There is no signal on the parent's death here: a test binary that is killed leaves its servers behind.
func groupLeader(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func (p *process) reap() {
	p.err = p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	syscall.Kill(-p.pid, syscall.SIGKILL) // ESRCH: nobody is left
	p.gone = true
}

func (p *process) pause() error { return p.signal(syscall.SIGSTOP, true) }
