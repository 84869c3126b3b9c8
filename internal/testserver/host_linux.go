package testserver

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// thisNamespace opens the network namespace that we are in.
func thisNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// newNamespace makes a network namespace that lives as long as the file is open, a process runs in it or a socket is its.
func newNamespace() (ns *os.File, err error) {
	onThreadOfItsOwn(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = thisNamespace()
		}
	})
	return ns, err
}

// inNamespace calls f on a thread that is in the network namespace.
func inNamespace(ns *os.File, f func()) (err error) {
	onThreadOfItsOwn(func() {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	return err
}

// onThreadOfItsOwn calls f on a thread that ends afterwards, so that no other goroutine finds itself in a foreign namespace.
func onThreadOfItsOwn(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and its namespace is what /proc/self and /proc/net show. It is held here, so that
			// f gets another one.
			onThreadOfItsOwn(f)
			runtime.UnlockOSThread()
			return
		}
		f() // not unlocked: Go ends the thread with the goroutine
	}()
	<-done
}
