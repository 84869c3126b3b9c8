package main

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"testing"
)

// publish tells all who listen.
func (n *newsroom) publish(channel, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, r := range n.readers {
		var parts []string
		switch {
		case r.patterns:
			parts = []string{"pmessage", "*", channel, text}
		case r.channels:
			parts = []string{"message", channel, text}
		default:
			continue
		}
		kind := "*"
		if r.resp3 {
			kind = ">"
		}
		b := fmt.Appendf(nil, "%s%d\r\n", kind, len(parts))
		for _, p := range parts {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(p), p)
		}
		c.Write(b) // who is gone does not hear it
	}
}

// A newsroom stands before a Sentinel and passes everything on. To those who have subscribed it can publish more.
type newsroom struct {
	addr string

	mu      sync.Mutex // guards readers, and is held while something is written to one
	readers map[net.Conn]*reader
}

// A reader is a client.
type reader struct{ resp3, channels, patterns bool }

func newNewsroom(t *testing.T, sentinel string) *newsroom {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &newsroom{addr: ln.Addr().String(), readers: map[net.Conn]*reader{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", sentinel)
			if err != nil {
				c.Close()
				continue
			}
			n.mu.Lock()
			n.readers[c] = &reader{}
			n.mu.Unlock()
			wg.Go(func() { n.questions(c, up) })
			wg.Go(func() { n.answers(c, up) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		n.mu.Lock()
		for c := range n.readers {
			c.Close()
		}
		n.mu.Unlock()
		wg.Wait()
	})
	return n
}

// questions passes on what a client sends. Clients write whole commands.
func (n *newsroom) questions(c, up net.Conn) {
	defer up.Close()
	buf := make([]byte, 64<<10)
	for {
		k, err := c.Read(buf)
		if err != nil {
			return
		}
		said := bytes.ToUpper(buf[:k])
		n.mu.Lock()
		if r := n.readers[c]; r != nil {
			r.resp3 = r.resp3 || bytes.Contains(said, []byte("HELLO\r\n$1\r\n3\r\n"))
			r.channels = r.channels || bytes.Contains(said, []byte("\nSUBSCRIBE\r\n"))
			r.patterns = r.patterns || bytes.Contains(said, []byte("\nPSUBSCRIBE\r\n"))
		}
		n.mu.Unlock()
		if _, err := up.Write(buf[:k]); err != nil {
			return
		}
	}
}

// answers passes on what the Sentinel sends.
func (n *newsroom) answers(c, up net.Conn) {
	defer c.Close()
	buf := make([]byte, 64<<10)
	for {
		k, err := up.Read(buf)
		if err != nil {
			break
		}
		n.mu.Lock()
		_, err = c.Write(buf[:k])
		n.mu.Unlock()
		if err != nil {
			break
		}
	}
	n.mu.Lock()
	delete(n.readers, c)
	n.mu.Unlock()
}
