package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
)

// setsFunc is a target as a test says.
type setsFunc func(args []string) ([]string, error)

func (f setsFunc) Sorted(_ context.Context, args ...string) ([]string, error) { return f(args) }

const wrongType = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"

// array is a reply of bulk strings.
func array(list ...string) string {
	b := fmt.Sprintf("*%d\r\n", len(list))
	for _, s := range list {
		b += bulk(s)
	}
	return b
}

// While the target is away, the set is empty, and nobody waits for it.
func TestAccessSetOfATargetThatIsAway(t *testing.T) {
	for name, site := range map[string]Site{"away": {Hold: time.Minute}, "hangs": {Hold: 20 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			r := testserver.Redis(t)
			site.Store, site.AccessSet, site.Sets = newScripted(), "z", redisSite(t, r, "", 0).Store.(SortedSets)
			gw := start(t, site)
			c := gw.dial()
			c.want(":1\r\n", "ZADD", "z", "1", "a")
			c.want(":0\r\n", "ZADD", "z", "2", "a")
			if name == "away" {
				r.Stop()
			} else {
				r.Pause()
			}
			began := time.Now()
			for _, tc := range [][2]string{
				{"ZADD z 1 a", ":1\r\n"}, {"ZADD z 1 a 2 b 3 a", ":2\r\n"}, {"ZADD z XX 1 a", ":0\r\n"}, {"ZADD z CH 1 a", ":1\r\n"},
				{"ZADD z INCR 2.5 a", bulk("2.5")}, {"ZADD z XX INCR 2.5 a", null}, {"ZREM z a", ":0\r\n"}, {"ZCARD z", ":0\r\n"}, {"ZSCORE z a", null},
				{"ZCOUNT z 0 9", ":0\r\n"}, {"ZREMRANGEBYSCORE z 0 9", ":0\r\n"}, {"ZRANGEBYSCORE z 0 (9", "*0\r\n"}, {"ZRANGEBYSCORE z 0 9 WITHSCORES", "*0\r\n"},
				{"ZRANGE z 0 -1", "*0\r\n"}, {"ZRANGE z 0 1", "*0\r\n"},
			} {
				c.want(tc[1], strings.Fields(tc[0])...)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if n := gw.Stats().SetLost; n != 15 {
				t.Errorf("%d commands counted as lost, want 15", n)
			}
			c.want("+OK\r\n", "SET", "a", "v") // the session is not the target's business
			if name == "hangs" {
				r.Resume()
				eventually(t, "the set", func() bool { return c.do("ZADD", "z", "1", "b") == ":0\r\n" })
			}
		})
	}
}

// A collector is told of those whose session was not written since, whatever the set says of it, and of nobody whose
// session cannot be looked at.
func TestNobodyIsCollectedWhoIsThere(t *testing.T) {
	r := testserver.Redis(t)
	st := newScripted()
	site := Site{Store: st, Prefix: "P:", Lifetime: 1000 * time.Second, AccessSet: "z", Sets: redisSite(t, r, "", 0).Store.(SortedSets), Hold: 50 * time.Millisecond}
	c := start(t, site).dial()
	now := time.Now().Unix()
	ago := func(s int64) string { return fmt.Sprint(now - s) }
	for id, left := range map[string]int64{"idle": 100, "fresh": 1000, "recent": 700, "own": 5000} { // written 900 s, 0 s and 300 s ago, and with a life of its own
		c.want("+OK\r\n", "SETEX", "P:"+id, fmt.Sprint(left), "v")
	}
	// All of them were last noted 950 s ago.
	members := []string{"P:recent", "absent", "fresh", "idle", "own", "sessile:x", "\x00"}
	note := func() {
		for _, m := range members {
			r.Do("ZADD", "z", ago(950), m)
		}
	}
	note()
	st.set(failing(store.ErrUnavailable, "load"), nil)
	c.want(array("\x00", "sessile:x"), "ZRANGEBYSCORE", "z", "0", "("+ago(500))
	c.want(array("\x00", "sessile:x"), "ZRANGEBYSCORE", "z", "0", ago(-500)) // nor whoever asks for everybody until later
	st.set(failing(store.ErrInvalid, "load"), nil)
	c.want(array("\x00", "sessile:x"), "ZRANGEBYSCORE", "z", "0", "("+ago(500))
	st.set(nil, nil)
	if got := r.Do("ZSCORE", "z", "fresh"); got != ago(950) {
		t.Errorf("a score was changed because the store was away: %v", got)
	}
	c.want(array("\x00", "absent", "idle", "sessile:x"), "ZRANGEBYSCORE", "z", "0", "("+ago(500))
	// Those who are there have the right score now; so the next collector does not ask for them.
	for m, want := range map[string]int64{"fresh": 0, "own": 0, "P:recent": 300, "idle": 950, "absent": 950} {
		var got int64
		fmt.Sscan(fmt.Sprint(r.Do("ZSCORE", "z", m)), &got)
		if got += want - now; got < -5 || got > 5 {
			t.Errorf("%s: the score is off by %d", m, got)
		}
	}
	note()
	c.want(":7\r\n", "ZCARD", "z")
	for _, args := range [][]string{{"ZRANGEBYSCORE", "z", "-inf", ago(500)}, {"ZRANGE", "z", "0", ago(500), "BYSCORE"}, {"ZRANGEBYSCORE", "z", "0", ago(500), "LIMIT", "0", "100"}} {
		note()
		c.want(array("\x00", "absent", "idle", "sessile:x"), args...)
	}
	// Where scores are told, they are not told too old.
	note()
	got := c.do("ZRANGE", "z", "0", "-1", "WITHSCORES")
	if n := strings.Count(got, ago(950)); n != 3 {
		t.Errorf("%d of %q have the old score, want 3", n, got)
	}
	if got := c.do("ZSCORE", "z", "idle"); got < bulk(ago(905)) || got > bulk(ago(890)) {
		t.Errorf("idle: %q", got)
	}
	c.want(bulk(ago(950)), "ZSCORE", "z", "absent")
	// In milliseconds it is the same.
	for _, m := range members {
		r.Do("ZADD", "z", ago(950)+"000", m)
	}
	c.want(array("\x00", "absent", "idle", "sessile:x"), "ZRANGEBYSCORE", "z", "0", "("+ago(500)+"000")
	// Everybody, without an end: that is no collector.
	c.want(":7\r\n", "ZCARD", "z")
	if got := c.do("ZRANGEBYSCORE", "z", "-inf", "+inf"); !strings.HasPrefix(got, "*7\r\n") {
		t.Errorf("got %q", got)
	}
}

// A gc as hand-written handlers have it.
func TestCollecting(t *testing.T) {
	r := testserver.Redis(t)
	st := newScripted()
	c := start(t, Site{Store: st, Lifetime: time.Hour, AccessSet: "z", Sets: redisSite(t, r, "", 0).Store.(SortedSets)}).dial()
	for i := range 20 {
		id := fmt.Sprint("s", i)
		c.want("+OK\r\n", "SET", id, "v")
		c.want(":1\r\n", "ZADD", "z", fmt.Sprint(time.Now().Unix()), id)
	}
	// Ten of them were left long ago.
	for i := range 10 {
		id := fmt.Sprint("s", i)
		if err := st.Store.Touch(t.Context(), id, time.Now().Add(time.Hour-2000*time.Second)); err != nil {
			t.Fatal(err)
		}
		r.Do("ZADD", "z", fmt.Sprint(time.Now().Unix()-2000), id)
	}
	old := "(" + fmt.Sprint(time.Now().Unix()-1440)
	c.send(command_("ZRANGEBYSCORE", "z", "0", old) + command_("ZCOUNT", "z", "0", old)) // a pipeline
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprint("s", i))
	}
	if got := c.reply() + c.reply(); got != array(want...)+":10\r\n" {
		t.Errorf("got %q", got)
	}
	c.want(":10\r\n", append([]string{"DEL"}, want...)...)
	c.want(":10\r\n", append([]string{"ZREM", "z"}, want...)...)
	for i := range 20 {
		reply := null
		if i >= 10 {
			reply = bulk("v")
		}
		c.want(reply, "GET", fmt.Sprint("s", i))
	}
	c.want("*0\r\n", "ZRANGEBYSCORE", "z", "0", old)
}

// What is no access set, and what is too much.
func TestAccessSetLimits(t *testing.T) {
	r := testserver.Redis(t)
	st := newScripted()
	sets := redisSite(t, r, "", 0).Store.(SortedSets)
	gw := start(t, Site{Store: st, Prefix: "", AccessSet: "ALL_SESSIONS", Sets: sets, Limits: Limits{Output: 64 << 10, Key: 64, Args: 1000}})
	c := gw.dial()
	for _, line := range []string{"ZADD other 1 a", "ZREM other a", "ZCARD all_sessions", "ZRANGEBYSCORE ALL_SESSIONS_LOCK 0 1", "GET ALL_SESSIONS", "SET ALL_SESSIONS v",
		"DEL ALL_SESSIONS", "EXPIRE ALL_SESSIONS 9", "MGET a ALL_SESSIONS"} {
		c.want(wrongType, strings.Fields(line)...)
	}
	c.want(":1\r\n", "EXISTS", "ALL_SESSIONS")
	c.want("-ERR sessile: 'zunion' is not served: a session is a string\r\n", "ZUNION", "1", "ALL_SESSIONS")
	c.want("-ERR sessile: 'zrange' with REV is not served\r\n", "ZRANGE", "ALL_SESSIONS", "0", "1", "REV")
	c.want("-ERR sessile: invalid session id or value\r\n", "ZADD", "ALL_SESSIONS", "1", strings.Repeat("x", 65))
	if n := st.saves.Load() + st.deletes.Load(); n != 0 {
		t.Errorf("the store was written %d times", n)
	}
	start(t, Site{}).dial().want("-ERR sessile: 'zadd' is not served: a session is a string\r\n", "ZADD", "ALL_SESSIONS", "1", "a")

	// A range ends where it would be too large, and the next one goes on.
	const all = 1000
	for i := range all {
		c.want(":1\r\n", "ZADD", "ALL_SESSIONS", fmt.Sprint(i), fmt.Sprintf("%060d", i))
	}
	var seen []string
	for rounds := 0; len(seen) < all && rounds < 10; rounds++ {
		v := elements(c.do("ZRANGEBYSCORE", "ALL_SESSIONS", "0", "5000"))
		if len(v) > 64<<10/128 {
			t.Fatalf("%d members in one answer", len(v))
		}
		if w := elements(c.do("ZRANGE", "ALL_SESSIONS", "0", "-1")); !slices.Equal(v, w) {
			t.Errorf("by index %d members, by score %d", len(w), len(v))
		}
		seen = append(seen, v...)
		c.want(fmt.Sprintf(":%d\r\n", len(v)), append([]string{"ZREM", "ALL_SESSIONS"}, v...)...)
	}
	if len(seen) != all {
		t.Errorf("%d of %d members", len(seen), all)
	}
	// One that was put there behind our back.
	r.Do("ZADD", "ALL_SESSIONS", "1", strings.Repeat("x", 100_000))
	c.want("-ERR sessile: the answer would be too large\r\n", "ZRANGE", "ALL_SESSIONS", "0", "1")
	// Or something else in its place.
	r.Do("SET", "ALL_SESSIONS", "x")
	c.want(":1\r\n", "ZADD", "ALL_SESSIONS", "1", "a")
	c.want("*0\r\n", "ZRANGEBYSCORE", "ALL_SESSIONS", "0", "1")
}

// elements of an array of bulk strings.
func elements(reply string) (list []string) {
	for i, s := range strings.Split(reply, "\r\n")[1:] {
		if i%2 == 1 {
			list = append(list, s)
		}
	}
	return list
}
