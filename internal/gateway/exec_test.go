package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
)

const (
	textAway    = "-ERR sessile: session store unavailable, try again\r\n"
	textUnknown = "-ERR sessile: outcome unknown, the session may or may not have been written\r\n"
)

// clients.md 4.4 and 13: what a client is answered when the store fails.
func TestAnswersWhenTheStoreFails(t *testing.T) {
	all := []string{"load", "save", "delete", "touch", "lock", "unlock", "holder"}
	cases := []struct {
		args                           string
		away, unknown, refused, unable string // "" is the text of failure
	}{
		{args: "GET k"},
		{args: "MGET k l"},
		{args: "STRLEN k"},
		{args: "TYPE k"},
		{args: "TTL k", refused: ":-2\r\n"},
		{args: "GETEX k EX 10"},
		{args: "GETDEL k"},
		{args: "EXISTS k", away: ":1\r\n", unknown: ":1\r\n", refused: ":0\r\n", unable: ":1\r\n"},
		{args: "EXISTS k l k_LOCK", away: ":3\r\n", unknown: ":3\r\n", refused: ":0\r\n", unable: ":3\r\n"},
		{args: "SETEX k 100 v", unknown: textUnknown},
		{args: "SET k v", unknown: textUnknown},
		{args: "SET k v EX 10 NX", unknown: textUnknown},
		{args: "EXPIRE k 100", unknown: textUnknown, refused: ":0\r\n"},
		{args: "EXPIRE k -1", unknown: textUnknown, refused: ":0\r\n"},
		{args: "DEL k", unknown: textUnknown, refused: ":0\r\n"},
		{args: "DEL k l", unknown: textUnknown, refused: ":0\r\n"},
		{args: "SET k_LOCK t NX PX 100", unknown: textUnknown},
		{args: "EVAL script 1 k_LOCK t", unknown: textUnknown},
		{args: "GET k_LOCK"},
	}
	st := newScripted()
	c := start(t, Site{Store: st, Hold: -1, LockWait: 50 * time.Millisecond}).dial()
	for _, tc := range cases {
		args := strings.Split(tc.args, " ")
		if args[0] == "EVAL" {
			args[1] = phpredisScript
		}
		for _, failure := range []struct {
			err         error
			want, else_ string
		}{
			{store.ErrUnavailable, tc.away, textAway},
			{store.ErrSealed, tc.away, textAway},
			{store.ErrUnknown, tc.unknown, textAway},
			{fmt.Errorf("some bug"), tc.unknown, textAway},
			{store.ErrInvalid, tc.refused, "-ERR sessile: invalid session id or value\r\n"},
			{fmt.Errorf("no such thing: %w", errors.ErrUnsupported), tc.unable, "-ERR sessile: this site's store cannot do that\r\n"},
		} {
			st.set(failing(failure.err, all...), nil)
			want := failure.want
			if want == "" {
				want = failure.else_
			}
			if got := c.do(args...); got != want {
				t.Errorf("%s, %v: got %q, want %q", tc.args, failure.err, got, want)
			}
			st.set(nil, nil)
			c.want(null, "GET", "other")
		}
	}
	st.set(failing(store.ErrUnknown, "delete", "touch"), nil)
	c.want("+OK\r\n", "SETEX", "k", "100", "v")
	for _, args := range []string{"GETDEL k", "GETEX k EX 10", "DEL k"} {
		c.want(textUnknown, strings.Split(args, " ")...)
	}
}

// A store that is away is waited for once, and not for each of the keys: a client would be kept for minutes.
func TestHoldOfManyKeys(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Hold: 200 * time.Millisecond})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "a", "100", "v")
	st.set(func(op, key string) error {
		if op == "load" && key >= "c" {
			return store.ErrUnavailable
		}
		return nil
	}, nil)
	began := time.Now()
	c.want(":22\r\n", strings.Fields("EXISTS a b c d e f g h i j k l m n o p q r s t u v w")...) // all but b
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("answered after %v", took)
	}
}

// A store that comes back in time is not noticed but by the wait; what may have been executed is not tried again.
func TestHold(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Hold: 500 * time.Millisecond})
	c := gw.dial()
	c.want("+OK\r\n", "SETEX", "k", "100", "v")
	away := func(err error, times int, ops ...string) *int {
		n := 0
		st.set(func(op, _ string) error {
			for _, o := range ops {
				if o == op {
					if n++; n <= times {
						return err
					}
				}
			}
			return nil
		}, nil)
		return &n
	}
	for _, tc := range []struct {
		cmd   string
		op    string
		err   error
		times int
		want  string
		asked int
	}{
		{"GET k", "load", store.ErrUnavailable, 4, bulk("v"), 5},
		{"GET k", "load", store.ErrUnknown, 4, bulk("v"), 5},
		{"EXISTS k", "load", store.ErrUnavailable, 4, ":1\r\n", 5},
		{"TTL k", "load", store.ErrUnavailable, 4, ":100\r\n", 5},
		{"SETEX k 100 v", "save", store.ErrUnavailable, 4, "+OK\r\n", 5},
		{"SETEX k 100 v", "save", store.ErrFenced, 1, "+OK\r\n", 2},
		{"SETEX k 100 v", "save", store.ErrUnknown, 1, textUnknown, 1},
		{"EXPIRE k 100", "touch", store.ErrUnavailable, 4, ":1\r\n", 5},
		{"EXPIRE k 100", "touch", store.ErrUnknown, 1, textUnknown, 1},
		{"DEL nokey", "delete", store.ErrUnavailable, 4, ":0\r\n", 5},
		{"DEL k", "delete", store.ErrUnknown, 1, textUnknown, 1},
		{"SET k_LOCK t NX PX 1", "lock", store.ErrUnavailable, 4, "+OK\r\n", 5},
		{"SET l_LOCK t NX PX 1", "lock", store.ErrUnknown, 1, textUnknown, 1},
	} {
		n := away(tc.err, tc.times, tc.op)
		c.want(tc.want, strings.Split(tc.cmd, " ")...)
		st.set(nil, nil)
		if *n != tc.asked {
			t.Errorf("%s, %v: asked %d times, want %d", tc.cmd, tc.err, *n, tc.asked)
		}
	}
	if gw.Stats().Held == 0 {
		t.Error("nothing was counted")
	}
	// And one that does not come back is waited for as long as was said.
	st.set(failing(store.ErrUnavailable, "load", "save"), nil)
	for _, args := range []string{"GET k", "SETEX k 10 v"} {
		began := time.Now()
		c.want(textAway, strings.Split(args, " ")...)
		if took := time.Since(began); took < 500*time.Millisecond || took > 2*time.Second {
			t.Errorf("%s: answered after %v", args, took)
		}
	}
}

// The replies before a command that has to wait do not wait with it.
func TestEarlierRepliesAreNotHeld(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, LockWait: 300 * time.Millisecond, Hold: 300 * time.Millisecond})
	holder, c := gw.dial(), gw.dial()
	holder.want("+OK\r\n", "SET", "k_LOCK", "a", "NX")
	for _, slow := range []string{command_("SET", "k_LOCK", "b", "NX"), command_("GET", "away")} {
		st.set(func(op, key string) error {
			if key == "away" {
				return store.ErrUnavailable
			}
			return nil
		}, nil)
		began := time.Now()
		c.send(command_("PING") + slow)
		c.reply()
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("PING was answered after %v", took)
		}
		c.reply()
	}
}

// clients.md 9: an application whose reads fail and whose writes work logs its users out.
func TestReadsAndWritesFailTogether(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Hold: 20 * time.Millisecond})
	c := gw.dial()
	st.set(failing(store.ErrUnknown, "load"), nil)
	c.want("+OK\r\n", "SETEX", "k", "100", "v") // no read has failed yet
	c.want(textAway, "GET", "k")
	saves, deletes := st.saves.Load(), st.deletes.Load()
	for _, args := range []string{"SETEX new 100 v", "SET new v", "SET new v EX 10 NX", "SETNX new v", "EXPIRE k 10", "DEL k", "GETSET k v"} {
		if got := c.do(strings.Split(args, " ")...); got != textAway {
			t.Errorf("%s: got %q, want what GET got", args, got)
		}
	}
	if st.saves.Load() != saves || st.deletes.Load() != deletes {
		t.Error("the store was written")
	}
	// Another connection of the same site fares the same; the keys that can be read can be written, and then all can.
	other := gw.dial()
	other.want(textAway, "SETEX", "new", "100", "v")
	st.set(func(op, key string) error {
		if op == "load" && key == "dark" {
			return store.ErrUnavailable
		}
		return nil
	}, nil)
	other.want(textAway, "SETEX", "dark", "100", "v")
	other.want("+OK\r\n", "SETEX", "new", "100", "v")
	c.want("+OK\r\n", "SETEX", "k", "100", "w")
}

// PROTOCOL.md 4, end of "Locks".
func TestWriteAfterDestroy(t *testing.T) {
	st := newScripted()
	gw := start(t, Site{Store: st, Limits: Limits{Args: 200}})
	a, b, c := gw.dial(), gw.dial(), gw.dial()
	destroyed := func(id string) { // a has read it, b destroys it
		t.Helper()
		b.want("+OK\r\n", "SETEX", id, "100", "v")
		a.want(bulk("v"), "GET", id)
		b.want(":1\r\n", "DEL", id)
	}
	dropped := uint64(0)
	late := func(what string, id, want string, args ...string) {
		t.Helper()
		a.want(want, args...)
		c.want(null, "GET", id)
		if dropped++; gw.Stats().Dropped != dropped {
			t.Errorf("%s: %d writes dropped, want %d", what, gw.Stats().Dropped, dropped)
		}
	}
	for i, write := range []string{"SETEX ID 100 w", "SET ID w", "PSETEX ID 100000 w", "SET ID w EX 10 NX", "EXPIRE ID 100=:1", "SETNX ID w=:1"} {
		id := fmt.Sprint("s", i)
		line, want, ok := strings.Cut(strings.ReplaceAll(write, "ID", id), "=")
		if !ok {
			want = "+OK"
		}
		destroyed(id)
		late(write, id, want+"\r\n", strings.Split(line, " ")...)
		late(write+" again", id, "+OK\r\n", "SETEX", id, "100", "w")
	}
	for name, destroy := range map[string]string{"unlink": "UNLINK ID", "expire": "EXPIRE ID 0", "getdel": "GETDEL ID", "set in the past": "SET ID x PXAT 1"} {
		id := strings.ReplaceAll(name, " ", "")
		b.want("+OK\r\n", "SETEX", id, "100", "v")
		a.want(bulk("v"), "GET", id)
		b.do(strings.Split(strings.ReplaceAll(destroy, "ID", id), " ")...)
		late(name, id, "+OK\r\n", "SETEX", id, "100", "w")
	}

	// Whoever read "absent" afterwards may create it again; so may who destroyed it, and who never read it.
	destroyed("x")
	a.want(null, "GET", "x")
	a.want("+OK\r\n", "SETEX", "x", "100", "new")
	destroyed("y")
	b.want("+OK\r\n", "SETEX", "y", "100", "new")
	a.want(bulk("new"), "GET", "y") // found again, after the destroy
	a.want("+OK\r\n", "SETEX", "y", "100", "newer")
	destroyed("z")
	c.want("+OK\r\n", "SETEX", "z", "100", "new")
	// But a's old copy must not take its place.
	a.want("+OK\r\n", "SETEX", "z", "100", "old")
	c.want(bulk("new"), "GET", "z")
	dropped++
	// session_regenerate_id(true): read, destroy, create, on one connection.
	a.want(bulk("new"), "GET", "z")
	a.want(":1\r\n", "DEL", "z")
	a.want("+OK\r\n", "SETEX", "z", "100", "w")
	// A destroy that failed destroys nothing.
	b.want("+OK\r\n", "SETEX", "f", "100", "v")
	a.want(bulk("v"), "GET", "f")
	st.set(failing(store.ErrUnknown, "delete"), nil)
	b.want(textUnknown, "DEL", "f")
	st.set(nil, nil)
	a.want("+OK\r\n", "SETEX", "f", "100", "w")
	c.want(bulk("w"), "GET", "f")
	if n := gw.Stats().Dropped; n != dropped {
		t.Errorf("%d writes dropped, want %d", n, dropped)
	}

	// A connection's memory has 16 places, the newest.
	for i := range 20 {
		b.want("+OK\r\n", "SETEX", fmt.Sprint("m", i), "100", "v")
		a.want(bulk("v"), "GET", fmt.Sprint("m", i))
		b.want(":1\r\n", "DEL", fmt.Sprint("m", i))
	}
	for i := range 20 {
		a.want("+OK\r\n", "SETEX", fmt.Sprint("m", i), "100", "w")
	}
	if n := gw.Stats().Dropped - dropped; n != maxReads {
		t.Errorf("%d of 20 late writes dropped, want %d", n, maxReads)
	}
}

// The two orders in which a write and a destroy can overlap in the store.
func TestWriteWhileDestroyed(t *testing.T) {
	// One of the two goes by hand where there is a loop, or they could not overtake each other.
	for _, tc := range []struct{ first, write, destroy string }{
		{"delete", "SETEX k 100 late", "DEL k"}, {"delete", "SETEX k 100 late", "DEL k k"},
	} {
		first := tc.first
		st := newScripted()
		gw := start(t, Site{Store: st})
		a, b := gw.dial(), gw.dial()
		b.want("+OK\r\n", "SETEX", "k", "100", "v")
		a.want(bulk("v"), "GET", "k")
		second := map[string]string{"save": "delete", "delete": "save"}[first]
		arrived, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		st.set(func(op, _ string) error {
			if op == first { // the one that came first is overtaken on its way
				once.Do(func() { close(arrived); <-release })
			}
			return nil
		}, nil)
		cmds := map[string]func(){"save": func() { a.send(command_(strings.Fields(tc.write)...)) },
			"delete": func() { b.send(command_(strings.Fields(tc.destroy)...)) }}
		cmds[first]()
		<-arrived
		cmds[second]()
		if first == "save" {
			if got := b.reply(); got != ":1\r\n" {
				t.Errorf("DEL: got %q", got)
			}
		} else if got, err := a.tryReply(50 * time.Millisecond); err == nil {
			t.Errorf("SETEX did not wait for the DEL under way: %q", got)
		}
		close(release)
		if first == "delete" {
			if got := b.reply(); got != ":1\r\n" {
				t.Errorf("DEL: got %q", got)
			}
		}
		if got := a.reply(); got != "+OK\r\n" {
			t.Errorf("SETEX: got %q", got)
		}
		b.want(null, "GET", "k")
		if n := gw.Stats().Dropped; n != 1 {
			t.Errorf("%s first: %d writes dropped, want 1", first, n)
		}
	}
}

func TestDestroyedIsForgotten(t *testing.T) {
	d := newDestroyed(time.Minute, 3)
	now := time.Now()
	began := d.now()
	for i := range 5 {
		id := fmt.Sprint(i)
		d.begin(id)
		d.end(id, true, now)
	}
	ctx := t.Context()
	if d.since(ctx, "1", began) || !d.since(ctx, "2", began) || len(d.ids) != 3 {
		t.Errorf("%d ids kept, want the last 3", len(d.ids))
	}
	if d.since(ctx, "4", d.now()) {
		t.Error("a read after the destroy counts as one before")
	}
	d.begin("2") // destroyed once more: remembered from now on
	d.end("2", true, now.Add(50*time.Second))
	d.begin("9")
	d.end("9", false, now.Add(61*time.Second))
	d.begin("8")
	d.end("8", true, now.Add(61*time.Second))
	if !d.since(ctx, "2", began) || d.since(ctx, "4", began) || len(d.ids) != 2 {
		t.Errorf("after a minute: %d ids kept, want 2", len(d.ids))
	}
}

// What a client without TTLs gets.
func TestSiteLifetime(t *testing.T) {
	st := newScripted()
	touched := 0
	st.set(func(op, _ string) error {
		if op == "touch" {
			touched++
		}
		return nil
	}, nil)
	c := start(t, Site{Store: st, Lifetime: 1000 * time.Second, SlidingWithoutTTL: true}).dial()
	c.want("+OK\r\n", "SET", "k", "v")
	c.want(":1000\r\n", "TTL", "k")
	for range 10 {
		c.want(bulk("v"), "GET", "k")
	}
	if touched != 0 {
		t.Errorf("a fresh session was touched %d times", touched)
	}
	c.want("+OK\r\n", "SETEX", "k", "800", "v")
	for range 10 {
		c.want(bulk("v"), "GET", "k")
	}
	c.want(":1000\r\n", "TTL", "k")
	if touched != 1 {
		t.Errorf("%d touches, want 1", touched)
	}
	var th touches
	th.lifetime = time.Hour
	now := time.Now()
	for i, want := range []bool{true, false, false, true} {
		if got := th.due("k", time.Time{}, now.Add(time.Duration(i)*2*time.Minute)); got != want {
			t.Errorf("after %d minutes: due %v, want %v", 2*i, got, want)
		}
	}

	s, err := New(Site{Store: st}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := request{site: &s.site, cmd: table["SET"], now: time.Now()}
	if r.parseSet([][]byte{[]byte("SET"), []byte("k"), []byte("v")}); r.fail != string(errNoLifetime) {
		t.Errorf("SET without a lifetime: %q", r.fail)
	}
}

// A store that cannot compare serves what needs no comparison.
func TestStoreWithoutConditions(t *testing.T) {
	st := &plain{newScripted()}
	gw := start(t, Site{Store: st})
	a, b := gw.dial(), gw.dial()
	a.want("+OK\r\n", "SETEX", "k", "100", "v")
	a.want(bulk("v"), "GETDEL", "k")
	a.want("-ERR sessile: this site's store cannot do that\r\n", "SET", "k", "v", "EX", "10", "NX")
	a.want("-ERR sessile: this site's store cannot do that\r\n", "SET", "k_LOCK", "v", "NX")
	b.want("+OK\r\n", "SETEX", "k", "100", "v")
	a.want(bulk("v"), "GET", "k")
	b.want(":1\r\n", "DEL", "k")
	a.want("+OK\r\n", "SETEX", "k", "100", "w")
	b.want(null, "GET", "k")
}

// Random commands against a store that fails at random: what was acknowledged is there, what was refused is not, and
// what is unknown is one of the two. Each connection has its own sessions, of which another one destroys some.
func TestAgainstAModel(t *testing.T) {
	const conns, ops, ids = 8, 1500, 3
	st := newScripted()
	gw := start(t, Site{Store: st, Hold: 2 * time.Millisecond})
	fail := func(p float64) func(string, string) error {
		return func(op, _ string) error {
			switch f := rand.Float64(); {
			case f < p/2:
				return store.ErrUnavailable
			case f < p:
				return store.ErrUnknown
			}
			return nil
		}
	}
	st.set(fail(0.1), func(string, string) error {
		if rand.IntN(20) == 0 {
			return store.ErrUnknown // and it was executed
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range conns {
		c, other := gw.dial(), gw.dial()
		seed := rand.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			defer func() {
				if t.Failed() {
					t.Logf("connection %d: seed %d", i, seed)
				}
			}()
			may := map[string]map[string]bool{} // what each session may be
			read := map[string]bool{}           // c's last read found it, and other destroyed it since
			found := map[string]bool{}
			for k := range ids {
				may[fmt.Sprintf("c%d-%d", i, k)] = map[string]bool{null: true}
			}
			for n := range ops {
				id := fmt.Sprintf("c%d-%d", i, rng.IntN(ids))
				v := fmt.Sprint(n)
				switch rng.IntN(6) {
				case 0, 1:
					got := c.do("GET", id)
					if got == textAway {
						break
					}
					if !may[id][got] {
						t.Errorf("%d: GET %s: %q, want one of %v", n, id, got, may[id])
						return
					}
					may[id] = map[string]bool{got: true}
					found[id], read[id] = got != null, false
				case 2, 3:
					switch got := c.do("SETEX", id, "100", v); got {
					case "+OK\r\n":
						if !read[id] {
							may[id] = map[string]bool{bulk(v): true}
						}
					case textUnknown:
						if !read[id] {
							may[id][bulk(v)] = true
						}
					case textAway:
					default:
						t.Errorf("SETEX: %q", got)
					}
				case 4:
					switch got := c.do("DEL", id); got {
					case ":0\r\n", ":1\r\n":
						may[id] = map[string]bool{null: true}
						found[id], read[id] = false, false
					case textUnknown:
						may[id][null] = true
					}
				case 5:
					switch got := other.do("DEL", id); got {
					case ":0\r\n", ":1\r\n":
						may[id] = map[string]bool{null: true}
						read[id] = read[id] || found[id]
					case textUnknown:
						may[id][null] = true
					}
				}
			}
		})
	}
	wg.Wait()
	if n := gw.Stats(); n.Dropped == 0 || n.Held == 0 {
		t.Errorf("%+v: nothing was tried", n)
	}
}
