package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/storetest"
)

func TestOriginConformance(t *testing.T) {
	for query, badKeys := range map[string][]string{
		"":                            {"sessile:mark:", "k_LOCK"},
		"?prefix=PHPREDIS_SESSION%3A": {"k_LOCK"}, // no name under it is ours
		"?connections=1":              {"sessile:mark:", "k_LOCK"},
	} {
		t.Run(query, func(t *testing.T) {
			server := testserver.Redis(t)
			storetest.RunOrigin(t, storetest.Harness[*Origin]{
				New: func(t *testing.T) *Origin {
					server.Do("FLUSHALL")
					return NewOrigin(open(t, server.URL()+"/3"+query), 0)
				},
				BadKeys: badKeys,
			})
		})
	}
}

var marked = store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: 3, Floor: store.FloorSync}}

// clockOf is what is known of the clock of the server that o has just spoken to.
func clockOf(o *Origin) *serverClock {
	o.node.admission.Lock()
	defer o.node.admission.Unlock()
	return o.node.clock
}

func swap(t *testing.T, o *Origin, old, next store.Mark) {
	t.Helper()
	if err := o.SwapMark(context.Background(), old, next); err != nil {
		t.Fatal(err)
	}
}

func TestTwoPrefixesHaveTwoMarks(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	a, b := NewOrigin(open(t, server.URL()+"?prefix=a:"), 0), NewOrigin(open(t, server.URL()+"?prefix=b:"), 0)
	other := NewOrigin(open(t, server.URL()+"/1?prefix=a:"), 0)
	swap(t, a, store.Mark{}, marked)
	for _, o := range []*Origin{b, other} {
		if m, err := o.Mark(ctx); m != (store.Mark{}) || err != nil {
			t.Errorf("Mark: got %v, %v", m, err)
		}
		if err := o.Under(store.Mark{}).Save(ctx, "k", live("x"), store.Always); err != nil {
			t.Errorf("Save: %v", err)
		}
	}
	if m, err := a.Store.Mark(ctx); m != marked || err != nil { // as one sees it who is no origin
		t.Errorf("Mark: got %v, %v", m, err)
	}
	if got := server.Do("GET", "sessile:mark:a:"); got != `{"identity":"one","seal":{"workflow":"w","epoch":3,"floor":"sync"}}` {
		t.Errorf("the mark is %v", got)
	}
	if left := server.Do("PTTL", "sessile:mark:a:"); left != int64(-1) {
		t.Errorf("the mark goes away in %v ms", left)
	}
	// Where sessions have no prefix, what is ours is none of them.
	none := NewOrigin(open(t, server.URL()), 0)
	page, err := none.Scan(ctx, "", 10)
	if err != nil || len(page.Keys) != 1 || page.Skipped["sessile"] != 1 {
		t.Errorf("Scan: %+v, %v", page, err)
	}
}

func TestAMarkThatCannotBeRead(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	o := NewOrigin(open(t, server.URL()), 0)
	for _, set := range [][]string{
		{"SET", "sessile:mark:", "x"},
		{"SET", "sessile:mark:", `{"identity":"one","seal":{"floor":"higher"}}`},
		{"SET", "sessile:mark:", `{"identity":"one","seal":{},"more":1}`}, // a newer version's
		{"HSET", "sessile:mark:", "identity", "one"},
	} {
		server.Do("DEL", "sessile:mark:")
		server.Do(set...)
		if m, err := o.Mark(ctx); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%q: got %v, %v", set, m, err)
		}
		if err := o.SwapMark(ctx, store.Mark{}, marked); !store.Failed(err) && !errors.Is(err, store.ErrConflict) {
			t.Errorf("%q: SwapMark: %v", set, err)
		}
		for _, m := range []store.Mark{{}, marked} {
			if err := o.Under(m).Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%q: Save: %v", set, err)
			}
		}
		if _, err := o.Under(marked).Load(ctx, "k"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%q: Load: %v", set, err)
		}
	}
	bad := store.Mark{Identity: "\xff"} // does not come back from JSON
	if err := o.SwapMark(ctx, store.Mark{}, bad); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("SwapMark: %v", err)
	}
	server.Do("DEL", "sessile:mark:")
	if err := o.Under(bad).Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrSealed) {
		t.Errorf("Save: %v", err)
	}
}

// Sentinels may make another server the primary: it has the mark, since that waits for the replicas, and its clock is asked anew.
func TestAnOriginBehindSentinels(t *testing.T) {
	t.Parallel()
	set := testserver.Sentinel(t, testserver.SentinelOptions{DownAfter: time.Minute})
	ctx := context.Background()
	o := NewOrigin(open(t, set.URL()+"?replay=off"), 0)
	next := store.Mark{}
	for epoch := range 3 {
		set.WaitOK()
		old, was := set.Primary(), next
		next = store.Mark{Identity: "one", Seal: store.Seal{Workflow: "w", Epoch: uint64(epoch) + 1, Floor: store.FloorSync}}
		swap(t, o, was, next)
		clockOf(o).Store(&clock{told: time.Now().Add(time.Hour).UnixMilli(), at: time.Now()}) // of the old one
		set.Failover()
		set.WaitPrimary(old)
		eventually(t, "a new primary", func() bool { return o.Under(next).Save(ctx, "k", live(fmt.Sprint(epoch)), store.Always) == nil })
		if c := clockOf(o).Load(); time.UnixMilli(c.told).Sub(c.at).Abs() > time.Second {
			t.Errorf("the clock of the old primary is still believed: %+v", c)
		}
		if m, err := o.Mark(ctx); m != next || err != nil {
			t.Fatalf("Mark: got %v, %v", m, err)
		}
		if err := o.Under(was).Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrSealed) {
			t.Errorf("Save under the mark that was: %v", err)
		}
		if rec, err := o.Under(next).Load(ctx, "k"); string(rec.Data) != fmt.Sprint(epoch) || err != nil {
			t.Errorf("Load: %q, %v", rec.Data, err)
		}
	}
}

// A server that stands still finds in its sockets, when it wakes, what was given up long ago. A store that is no origin does
// it then; an origin does not.
func TestALateWriteDoesNotHappen(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	s := open(t, server.URL()+"?connections=1") // answers come in order
	o := NewOrigin(s, 0)
	swap(t, o, store.Mark{}, marked)
	for _, key := range []string{"touch", "delete", "late delete"} {
		if err := o.Save(ctx, key, live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	rec, under, next := live("late"), o.Under(marked), marked
	next.Seal.Epoch++
	far := time.Now().Add(10 * time.Hour)
	// The server has all scripts: EVALSHA does not wait for a second message.
	for _, f := range []func() error{
		func() error { return o.SwapMark(ctx, marked, marked) },
		func() error { return o.Touch(ctx, "touch", rec.Expires) },
		func() error { _, err := o.Delete(ctx, "none", store.Always); return err },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	server.Pause()
	var wg sync.WaitGroup
	for what, f := range map[string]func(ctx context.Context) error{
		"plain":          func(ctx context.Context) error { return s.Save(ctx, "plain", rec, store.Always) },
		"save":           func(ctx context.Context) error { return o.Save(ctx, "save", rec, store.IfAbsent) },
		"save under":     func(ctx context.Context) error { return under.Save(ctx, "save under", rec, store.Always) },
		"touch":          func(ctx context.Context) error { return o.Touch(ctx, "touch", far) },
		"touch under":    func(ctx context.Context) error { return under.Touch(ctx, "touch", far) },
		"delete":         func(ctx context.Context) error { _, err := o.Delete(ctx, "delete", store.Always); return err },
		"delete under":   func(ctx context.Context) error { _, err := under.Delete(ctx, "delete", store.IfPresent); return err },
		"swap":           func(ctx context.Context) error { return o.SwapMark(ctx, marked, next) },
		"save if absent": func(ctx context.Context) error { return o.Save(ctx, "save", rec, store.IfVersion(store.Absent)) },
	} {
		wg.Go(func() {
			short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if err := f(short); !errors.Is(err, store.ErrUnknown) {
				t.Errorf("%s: got %v, want unknown", what, err)
			}
		})
	}
	wg.Wait()
	server.Resume()
	if got, err := s.Load(ctx, "plain"); string(got.Data) != "late" || err != nil { // and all that was sent before is answered
		t.Fatalf("a plain store: %q, %v: this test shows nothing", got.Data, err)
	}
	for _, key := range []string{"save", "save under"} {
		if _, err := o.Load(ctx, key); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("%s happened", key)
		}
	}
	if _, err := o.Load(ctx, "delete"); err != nil {
		t.Errorf("delete happened: %v", err)
	}
	if rec, err := o.Inspect(ctx, "touch"); err != nil || time.Until(rec.Expires) > 2*time.Hour {
		t.Errorf("touch happened: %v, %v", rec.Expires, err)
	}
	if m, err := o.Mark(ctx); m != marked || err != nil {
		t.Errorf("swap happened: %v, %v", m, err)
	}
	// In time it does, though the clock that is known is from before.
	if err := under.Save(ctx, "save", rec, store.IfAbsent); err != nil {
		t.Errorf("Save: %v", err)
	}
}

// Whether a server of an origin has lost its memory its mark says, and people decide about that by the move.
func TestNobodyDecidesTwiceAboutAnOrigin(t *testing.T) {
	t.Parallel()
	set := testserver.Sentinel(t, testserver.SentinelOptions{Replicas: -1, Sentinels: 1, DownAfter: time.Minute})
	ctx := t.Context()
	s := open(t, set.URL()+"?replay=off")
	o := NewOrigin(s, 0)
	for i := range 100 {
		if err := o.Save(ctx, fmt.Sprint("k", i), live("x"), store.Always); err != nil {
			t.Fatal(err)
		}
	}
	swap(t, o, store.Mark{}, marked)
	eventually(t, "the gateway is not young any more", func() bool { return s.node.attendant.r.beats.Load() > countEvery })
	primary := set.Primary()
	primary.Kill()
	primary.Restart()
	eventually(t, "it answers", func() bool { m, err := o.Mark(ctx); return m == (store.Mark{}) && err == nil })
	swap(t, o, store.Mark{}, marked)
	if _, err := o.Under(marked).Load(ctx, "k1"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("Load: %v", err)
	}
}

// The server's clock need not be ours, and may be set: what is known of it then is mended by the server's next refusal.
func TestTheServersClock(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	o := NewOrigin(open(t, server.URL()), 0)
	wrong := func(ahead, age time.Duration) *clock {
		at := time.Now().Add(-age)
		return &clock{told: at.Add(ahead).UnixMilli(), at: at}
	}
	for what, c := range map[string]*clock{
		"not known":         nil,
		"set forward since": wrong(-time.Hour, 0),
		"asked long ago":    wrong(time.Hour, time.Minute),
	} {
		clockOf(o).Store(c)
		if err := o.Save(ctx, "k", live("x"), store.Always); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if c := clockOf(o).Load(); c == nil || time.UnixMilli(c.told).Sub(c.at).Abs() > time.Second {
			t.Errorf("%s: then it is %+v", what, c)
		}
	}
	// The next ones take one command each.
	if got := commands(t, server, func() {
		for range 10 {
			if err := o.Save(ctx, "k", live("x"), store.Always); err != nil {
				t.Error(err)
			}
		}
	}); got["evalsha"] != 10 || got["eval"] != 0 {
		t.Errorf("ten writes are %v", got)
	}
	// A time that is over before the server reads it.
	short, cancel := context.WithDeadline(ctx, time.Now())
	defer cancel()
	if err := o.Save(short, "k2", live("x"), store.Always); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestWhatAnOriginCosts(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	o := NewOrigin(open(t, server.URL()), 0)
	swap(t, o, store.Mark{}, marked)
	u := o.Under(marked)
	rec := live("x")
	steps := []struct {
		name, want string
		f          func() error
	}{
		{"Mark", "evalsha", func() error { _, err := o.Mark(ctx); return err }},
		{"Save", "evalsha", func() error { return o.Save(ctx, "k", rec, store.Always) }},
		{"Save under", "evalsha", func() error { return u.Save(ctx, "k", rec, store.Always) }},
		{"Load", "get", func() error { _, err := o.Load(ctx, "k"); return err }},
		{"Load under", "mget", func() error { _, err := u.Load(ctx, "k"); return err }},
		{"Inspect under", "evalsha", func() error { _, err := u.Inspect(ctx, "k"); return err }},
		{"Touch under", "evalsha", func() error { return u.Touch(ctx, "k", rec.Expires) }},
		{"Lock", "set", func() error { return u.Lock(ctx, "k", "t", time.Minute) }},
		{"Unlock", "evalsha", func() error { _, err := u.Unlock(ctx, "k", "t"); return err }},
		{"Delete under", "evalsha", func() error { _, err := u.Delete(ctx, "k", store.Always); return err }},
	}
	for round := range 2 { // in the first round the scripts are not there
		for _, st := range steps {
			got := commands(t, server, func() {
				if err := st.f(); err != nil {
					t.Errorf("%s: %v", st.name, err)
				}
			})
			if round == 1 && (got[st.want] != 1 || got["eval"] > 0 || st.want != "evalsha" && len(got) != 1) {
				t.Errorf("%s: the server executed %v, want one %s", st.name, got, st.want)
			}
		}
	}
}

func TestAnOriginWithoutItsMemory(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	o := NewOrigin(open(t, server.URL()), 0)
	large := strings.Repeat("x", 1<<20)
	swap(t, o, store.Mark{}, marked)
	known := o.Under(marked)
	for _, data := range []string{"small", large} {
		if err := known.Save(ctx, "k", live(data), store.Always); err != nil {
			t.Fatal(err)
		}
		rec, err := known.Inspect(ctx, "k")
		if left := time.Until(rec.Expires); string(rec.Data) != data || left < 59*time.Minute || left > time.Hour || err != nil {
			t.Errorf("Inspect: %d bytes, %v left, %v", len(rec.Data), left, err)
		}
		if rec, err := known.Load(ctx, "k"); string(rec.Data) != data || err != nil {
			t.Errorf("Load: %d bytes, %v", len(rec.Data), err)
		}
	}
	for name, read := range map[string]func(context.Context, string) (store.Record, error){"Load": known.Load, "Inspect": known.Inspect} {
		if _, err := read(ctx, "none"); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("%s of nothing: %v", name, err)
		}
		if _, err := read(ctx, "x_LOCK"); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s of a lock: %v", name, err)
		}
	}
	other := marked
	other.Identity = "two"
	for what, change := range map[string]func(){
		"emptied":     func() { server.Do("FLUSHALL") },
		"another one": func() { server.Do("FLUSHALL"); swap(t, o, store.Mark{}, other) },
	} {
		change()
		for name, read := range map[string]func(context.Context, string) (store.Record, error){"Load": known.Load, "Inspect": known.Inspect} {
			if _, err := read(ctx, "k"); !errors.Is(err, store.ErrSealed) {
				t.Errorf("%s: %s: %v", what, name, err)
			}
		}
		if err := known.Save(ctx, "k", live("x"), store.Always); !errors.Is(err, store.ErrSealed) {
			t.Errorf("%s: Save: %v", what, err)
		}
		if _, err := o.Load(ctx, "k"); !errors.Is(err, store.ErrAbsent) { // who knows of nothing else
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnOriginOutOfMemory(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	o := NewOrigin(open(t, server.URL()), 0)
	swap(t, o, store.Mark{}, marked)
	u := o.Under(marked)
	if err := u.Save(ctx, "k", live("x"), store.Always); err != nil {
		t.Fatal(err)
	}
	server.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	server.Do("CONFIG", "SET", "maxmemory", "1")
	if err := u.Save(ctx, "k", live("y"), store.Always); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Save: %v", err)
	}
	next := marked
	next.Seal.Floor = store.FloorRetreat
	for what, f := range map[string]func() error{
		"Touch":    func() error { return u.Touch(ctx, "k", time.Now().Add(time.Hour)) },
		"Inspect":  func() error { _, err := u.Inspect(ctx, "k"); return err },
		"SwapMark": func() error { return errors.Join(o.SwapMark(ctx, marked, next), o.SwapMark(ctx, next, marked)) },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if existed, err := u.Delete(ctx, "k", store.IfPresent); !existed || err != nil {
		t.Errorf("Delete: %v, %v", existed, err)
	}
}

func TestSessionsWithoutADeadline(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	server.Do("SET", "endless", "x")
	server.Do("SET", "ends", "x", "EX", "100")
	for lifetime, want := range map[time.Duration]string{0: "are not moved", time.Hour: "get one, 1h0m0s"} {
		o := NewOrigin(open(t, server.URL()), lifetime)
		rec, err := o.Inspect(ctx, "endless")
		all, errs := o.InspectAll(ctx, []string{"ends", "endless"})
		var refused *store.RefusedError
		switch left := time.Until(rec.Expires); {
		case lifetime == 0:
			if !errors.As(err, &refused) || !errors.As(errs, &refused) || refused.Reason != "without a deadline" {
				t.Errorf("without a lifetime: got %v, %v", err, errs)
			}
		case err != nil || errs != nil || left < 59*time.Minute || left > time.Hour || time.Until(all[0].Expires) > 2*time.Minute || all[1].Expires.Sub(rec.Expires).Abs() > time.Minute:
			t.Errorf("got %v left, %v, %v", left, err, errs)
		}
		if o.Capabilities().Ageless != (lifetime > 0) {
			t.Errorf("lifetime %v: %+v", lifetime, o.Capabilities())
		}
		f, err := o.Check(ctx)
		if err != nil || !said(f.Advice, "1 of 2 sampled sessions have no deadline, and "+want) || !said(f.Facts, "deadlines: the first in 1m40s") {
			t.Errorf("Check: %+v, %v", f, err)
		}
	}
}

func said(lines []string, part string) bool {
	return slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, part) })
}

func TestCheck(t *testing.T) {
	server := testserver.Redis(t)
	ctx := context.Background()
	check := func(user, query string) store.Findings {
		t.Helper()
		u, err := url.Parse(server.URL() + query)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			u.User = url.UserPassword(user, "secret")
		}
		f, err := NewOrigin(open(t, u.String()), 0).Check(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	wants := func(f store.Findings, lines []string, part string) {
		t.Helper()
		if !said(lines, part) {
			t.Errorf("nobody says %q: %+v", part, f)
		}
	}
	f := check("", "/2?prefix=a:")
	if len(f.Against) > 0 || len(f.Require) == 0 {
		t.Errorf("got %+v", f)
	}
	wants(f, f.Facts, `master, database 2: sessions are strings whose names begin with "a:"`)
	wants(f, f.Facts, `nothing (appendonly no, save "")`)
	wants(f, f.Advice, "appendonly yes")
	f = check("", "")
	wants(f, f.Advice, "every string in database 0")

	server.Do("CONFIG", "SET", "appendonly", "yes")
	server.Do("CONFIG", "SET", "maxmemory", "100mb")
	server.Do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	f = check("", "/2?prefix=a:")
	wants(f, f.Against, "allkeys-lru may evict the mark")
	wants(f, f.Facts, "every write (appendonly yes)")
	if said(f.Advice, "appendonly") {
		t.Errorf("got %+v", f)
	}
	server.Do("CONFIG", "SET", "appendonly", "no")
	server.Do("CONFIG", "SET", "save", "3600 1")
	server.Do("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
	f = check("", "/2?prefix=a:")
	wants(f, f.Advice, "volatile-ttl logs users out")
	wants(f, f.Facts, "snapshots (save 3600 1)")
	if len(f.Against) > 0 {
		t.Errorf("got %+v", f)
	}
	server.Do("CONFIG", "SET", "maxmemory", "0")

	// Users who may not do everything.
	server.Do("ACL", "SETUSER", "reader", "on", ">secret", "~a:*", "~sessile:*", "-@all", "+@read", "+@connection", "+evalsha", "+eval", "+time", "+info")
	f = check("reader", "?prefix=a:")
	wants(f, f.Against, "lacks the right to SET, PEXPIRE, DEL of a:*")
	wants(f, f.Against, "lacks the right to SET, DEL of a:*_LOCK")
	wants(f, f.Against, "lacks the right to SET, DEL of sessile:mark:a:")
	f = check("reader", "?prefix=b:")
	wants(f, f.Against, "GET, SET, PEXPIRE, PTTL, DEL, TYPE of b:*")
	wants(f, f.Against, "MGET")
	server.Do("ACL", "SETUSER", "scriptless", "on", ">secret", "~*", "+@all", "-eval", "-evalsha", "-info")
	u, _ := url.Parse(server.URL())
	u.User = url.UserPassword("scriptless", "secret")
	f, err := NewOrigin(open(t, u.String()), 0).Check(ctx)
	wants(f, f.Against, "may not run scripts")
	wants(f, f.Advice, "may not run INFO")
	if err != nil { // it cannot be listed, either, and why is said
		t.Error(err)
	}

	// The rights that the documentation names are enough.
	page, err := os.ReadFile("../../docs/redis.md")
	at := strings.Index(string(page), "ACL SETUSER sessile on")
	if err != nil || at < 0 {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(page[at:]), "\n")
	server.Do(strings.Fields(strings.Replace(line, "PASSWORD", "secret", 1))...)
	f = check("sessile", "?prefix=PHPREDIS_SESSION:")
	if len(f.Against) > 0 || said(f.Advice, "may not") {
		t.Errorf("got %+v", f)
	}

	primary := testserver.Redis(t)
	host, port, _ := net.SplitHostPort(primary.Addr)
	server.Do("REPLICAOF", host, port)
	f = check("", "?prefix=a:")
	wants(f, f.Against, "a replica, which takes no writes")
}

func TestAudit(t *testing.T) {
	server := testserver.Redis(t)
	var clients []func()
	client := func(db, name string, args ...string) {
		s := open(t, server.URL()+"/"+db+"?connections=1")
		do := func(args ...string) {
			if r := s.ask(context.Background(), "test", args...); r.err != nil {
				t.Error(r.err)
			}
		}
		do("CLIENT", "SETNAME", name)
		clients = append(clients, func() { do(args...) })
	}
	client("0", "php", "SETEX", "sess", "100", "x")
	client("0", "monitoring", "GET", "sess")
	client("0", "idler", "PING")
	client("1", "elsewhere", "SET", "x", "y")
	client("0", "sessile", "SET", "x", "y")
	audit := func(query string) store.Audit {
		t.Helper()
		for _, do := range clients {
			do()
		}
		o := NewOrigin(open(t, server.URL()+query), 0)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		cancel() // it looks once
		a, err := o.Audit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := audit("")
	if fmt.Sprint(a.Writers) != "[default at 127.0.0.1 (php): SETEX]" || fmt.Sprint(a.Readers) != "[default at 127.0.0.1 (monitoring): GET]" || a.Blind != "" {
		t.Errorf("got %+v", a)
	}
	// Under a prefix it may be anything that they write.
	if a := audit("?prefix=a:"); len(a.Writers) != 0 || !strings.Contains(a.Blind, "(php): SETEX") {
		t.Errorf("got %+v", a)
	}
	server.Do("ACL", "SETUSER", "default", "-client|list")
	if a := audit(""); !strings.Contains(a.Blind, "+client|list") {
		t.Errorf("got %+v", a)
	}
}
