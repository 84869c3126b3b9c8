package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessile/sessile/internal/resp"
)

// pacedConn is one connection and what is under way on it.
type pacedConn struct {
	fd   int
	due  []time.Duration // of requests without an answer, oldest first
	have int             // bytes of the oldest one's answer
}

// paced sends get or set requests at rate for d, spread over the connections. It is open-loop: each goes out when it
// is due, behind others on its connection if answers are late, and its latency is counted from then. One thread does
// it all with poll(2): goroutines would wake up by timers of a millisecond. It returns mean, median and 99th percentile
// of the latency, and the 99th percentile of how late requests were sent, in µs.
func paced(addr, name string, keys int, rate float64, d time.Duration) ([]float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil { // 50 µs by default
		return nil, err
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	conns, polls := make([]pacedConn, clients), make([]unix.PollFd, clients)
	for i := range conns {
		// Not by package net: its poller would wake up for every answer, too.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(fd, true)); err != nil {
			return nil, err
		}
		conns[i].fd, polls[i] = fd, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}

	value := strings.Repeat("x", size)
	answer, kind := len("+OK\r\n"), byte('+')
	request := func(key string) []byte { return resp.AppendRequestStrings(nil, "SET", key, value) }
	if name == "get" {
		answer, kind = len(resp.AppendBulkString(nil, value)), '$'
		request = func(key string) []byte { return resp.AppendRequestStrings(nil, "GET", key) }
	}

	total := int(rate * d.Seconds())
	latency, late := make([]float64, 0, total), make([]float64, 0, total)
	buf := make([]byte, 64<<10)
	began := time.Now()
	due := func(i int) time.Duration { return time.Duration(float64(i) / rate * float64(time.Second)) }
	for sent := 0; len(latency) < total; {
		now := time.Since(began)
		if now > d+5*time.Second { // it does not keep up: what is missing has taken for ever
			for len(latency) < total {
				latency = append(latency, math.Inf(1))
			}
			break
		}
		for ; sent < total && due(sent) <= now; sent++ {
			c := &conns[sent%clients]
			b := request(fmt.Sprintf("key:%012d", rand.IntN(keys)))
			if n, err := unix.Write(c.fd, b); err != nil || n < len(b) {
				return nil, fmt.Errorf("it does not keep up: %w", cmp.Or(err, io.ErrShortWrite))
			}
			c.due = append(c.due, due(sent))
			late = append(late, float64((time.Since(began)-due(sent)).Nanoseconds())/1000)
		}
		wait := unix.NsecToTimespec(int64(time.Second))
		if sent < total {
			wait = unix.NsecToTimespec(int64(max(0, due(sent)-time.Since(began))))
		}
		if _, err := unix.Ppoll(polls, &wait, nil); err != nil && err != unix.EINTR {
			return nil, err
		}
		for i := range polls {
			if polls[i].Revents == 0 {
				continue
			}
			c := &conns[i]
			n, err := unix.Read(c.fd, buf)
			if err == unix.EAGAIN || err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return nil, fmt.Errorf("the connection was closed: %w", cmp.Or(err, io.EOF))
			}
			at := time.Since(began)
			for b := buf[:n]; len(b) > 0; {
				if c.have == 0 && (b[0] != kind || len(c.due) == 0) {
					return nil, fmt.Errorf("it answers %.80q", b)
				}
				took := min(len(b), answer-c.have)
				b, c.have = b[took:], c.have+took
				if c.have == answer {
					latency = append(latency, float64((at-c.due[0]).Nanoseconds())/1000)
					c.due, c.have = c.due[1:], 0
				}
			}
		}
	}
	return append(summary(latency), summary(late)[2]), nil
}
