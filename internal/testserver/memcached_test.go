package testserver

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"
)

// told is the first line of the answer to a command.
func told(t *testing.T, s *MemcachedServer, command string) string {
	t.Helper()
	c, err := net.Dial(s.Network, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, command)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestMemcached(t *testing.T) {
	for _, s := range []*MemcachedServer{Memcached(t, "-m", "16"), MemcachedOnSocket(t)} {
		if got := told(t, s, "set a 0 0 1\r\nx\r\n"); got != "STORED\r\n" {
			t.Errorf("%s: set: got %q", s.Network, got)
		}
		if got := told(t, s, "get a\r\n"); got != "VALUE a 0 1\r\n" {
			t.Errorf("%s: get: got %q", s.Network, got)
		}
		s.Restart()
		if got := told(t, s, "get a\r\n"); got != "END\r\n" {
			t.Errorf("%s: get after a restart: got %q", s.Network, got)
		}
	}
}
