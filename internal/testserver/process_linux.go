package testserver

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

func groupLeader(onDeath syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: onDeath}
}

// reap waits for the process, ends what is left of its group and only then gives its pid back to the system: as long as
// the pid is ours, the group's number cannot be anybody else's.
func (p *process) reap() {
	const byPid = 1 // P_PID, waitid(2)
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPid, uintptr(p.pid), 0,
			syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			break
		}
	}
	p.mu.Lock()
	syscall.Kill(-p.pid, syscall.SIGKILL) // ESRCH: nobody is left
	p.gone = true
	p.mu.Unlock()
	p.err = p.cmd.Wait()
}

// pause returns when the process has stopped: SIGSTOP to a process on another processor takes a moment.
func (p *process) pause() error {
	if err := p.signal(syscall.SIGSTOP, true); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if s := procState(p.pid); s == 'T' || s == 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not stop", p.pid)
}

// procState returns the state letter of a process (proc(5)), 0 when there is no such process.
func procState(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name before it is in parentheses and may hold anything, parentheses too.
	_, after, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	if after == "" {
		return 0
	}
	return after[0]
}
