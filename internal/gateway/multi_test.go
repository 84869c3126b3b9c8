package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

// A transaction is kept within limits, and gone with its connection.
func TestMultiLimits(t *testing.T) {
	gw := start(t, Site{Limits: Limits{Args: 20, Value: 1 << 20}})
	c := gw.dial()
	const aborted = "-EXECABORT Transaction discarded because of previous errors.\r\n"
	large := func(what string, n int, args ...string) {
		t.Helper()
		c.want("+OK\r\n", "MULTI")
		for range n {
			c.want("+QUEUED\r\n", args...)
		}
		c.want("-ERR sessile: the transaction is too large\r\n", args...)
		c.want(aborted, "EXEC")
		c.want(null, "GET", "k")
		if n := gw.Stats().Memory; n != 0 {
			t.Errorf("%s: %d bytes are left of it", what, n)
		}
	}
	large("many", 20, "SETEX", "k", "100", "v")
	large("much", 2, "SETEX", "k", "100", strings.Repeat("x", 500_000))
	for _, args := range [][]string{{"PING"}, {"SELECT", "0"}, {"KEYS", "*"}, {"WATCH", "k"}} {
		c.want("+OK\r\n", "MULTI")
		if got := c.do(args...); !strings.HasPrefix(got, "-ERR sessile: ") {
			t.Errorf("%q inside MULTI: %q", args, got)
		}
		c.want(aborted, "EXEC")
	}
	gone := gw.dial()
	gone.want("+OK\r\n", "MULTI")
	gone.want("+QUEUED\r\n", "SETEX", "k", "100", strings.Repeat("x", 500_000))
	gone.close()
	eventually(t, "its end", func() bool { return gw.Stats().Memory == 0 })
	c.want(null, "GET", "k")
}

// A store that is away is waited for once.
func TestMultiWhileTheStoreIsAway(t *testing.T) {
	st := newScripted()
	c := start(t, Site{Store: st, Hold: 200 * time.Millisecond, AccessSet: "z", Sets: setsFunc(func([]string) ([]string, error) { return []string{"7"}, nil })}).dial()
	st.set(failing(store.ErrUnavailable, "load", "save", "delete", "touch"), nil)
	c.want("+OK\r\n", "MULTI")
	for _, args := range []string{"GET a", "SETEX a 10 v", "EXISTS a b", "ZADD z 1 a", "DEL a", "GET b"} {
		c.want("+QUEUED\r\n", strings.Fields(args)...)
	}
	began := time.Now()
	c.want("*6\r\n"+textAway+textAway+":2\r\n:7\r\n"+textAway+textAway, "EXEC")
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}
