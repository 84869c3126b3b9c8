package cassandra_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
)

// testRows is about rows that an application has written, and what it finds of ours.
func testRows(t *testing.T, n *node) {
	n.keyspace(t, "app", "id blob PRIMARY KEY, data text, ip text")
	n.exec(t, "CREATE TABLE app.both (id text PRIMARY KEY, data blob, until bigint) WITH default_time_to_live = 3000")
	n.exec(t, "CREATE TABLE app.wide (id text, n int, data blob, PRIMARY KEY (id, n))")
	n.exec(t, "CREATE TABLE app.numbers (id int PRIMARY KEY, data blob)")
	s := n.open(t, cassandra.Options{Keyspace: "app"})
	insert := func(id, data, using string) {
		t.Helper()
		n.exec(t, "INSERT INTO app.sessions (id, data, ip) VALUES (?, ?, '::1')"+using, []byte(id), data)
	}
	t.Run("a row without data is no session", func(t *testing.T) {
		n.exec(t, "INSERT INTO app.sessions (id, ip) VALUES (?, '::1')", []byte("null"))
		_, err := s.Inspect(in10s(t), "null")
		wantErr(t, "Inspect", err, store.ErrAbsent)
		wantErr(t, "Touch", s.Touch(in10s(t), "null", time.Now().Add(time.Hour)), store.ErrAbsent)
		if existed, err := s.Delete(in10s(t), "null", store.Always); existed || err != nil {
			t.Errorf("Delete: %v, %v", existed, err)
		}
		ok(t, "Save", s.Save(in10s(t), "null", record("new"), store.IfAbsent))
		wantData(t, s, "null", "new")
	})
	t.Run("the TTL of a row that an application made is not that of the session", func(t *testing.T) {
		insert("longer", "old", " USING TTL 3000")
		r := record("new")
		r.Expires = time.Now().Add(500 * time.Millisecond)
		ok(t, "Save", s.Save(in10s(t), "longer", r, store.Always))
		waitFor(t, "it ends", func() error {
			if _, err := s.Load(in10s(t), "longer"); !errors.Is(err, store.ErrAbsent) {
				return fmt.Errorf("Load: %v", err)
			}
			return nil
		})
		ok(t, "Save", s.Save(in10s(t), "longer", record("again"), store.IfAbsent))
		insert("shorter", "old", " USING TTL 1000")
		ok(t, "Touch", s.Touch(in10s(t), "shorter", time.Now().Add(2*time.Hour)))
		if got, err := s.Inspect(in10s(t), "shorter"); err != nil || string(got.Data) != "old" || time.Until(got.Expires) < 2*time.Hour-time.Second {
			t.Errorf("Inspect: %q until %v, %v", got.Data, got.Expires, err)
		}
	})
	t.Run("a session without a deadline gets one, or is refused", func(t *testing.T) {
		insert("endless", "x", "")
		if got, err := s.Load(in10s(t), "endless"); err != nil || !got.Expires.IsZero() {
			t.Errorf("Load: %v, %v", got, err)
		}
		var refused *store.RefusedError
		if _, err := s.Inspect(in10s(t), "endless"); !errors.As(err, &refused) || refused.Reason != "without a deadline" {
			t.Errorf("Inspect: %v", err)
		}
		if _, err := s.InspectAll(in10s(t), []string{"endless"}); !errors.As(err, &refused) {
			t.Errorf("InspectAll: %v", err)
		}
		o := n.open(t, cassandra.Options{Keyspace: "app", Lifetime: time.Hour})
		if got, err := o.Inspect(in10s(t), "endless"); err != nil || time.Until(got.Expires) < 59*time.Minute || !o.Capabilities().Ageless {
			t.Errorf("Inspect with a lifetime: %v, %v", got, err)
		}
	})
	t.Run("a deadline further away than Cassandra knows is as far as that", func(t *testing.T) {
		for _, years := range []int{15, 30, 500} {
			r := record("x")
			r.Expires = time.Now().AddDate(years, 0, 0)
			ok(t, "Save", s.Save(in10s(t), "far", r, store.Always))
			if got, err := s.Inspect(in10s(t), "far"); err != nil || got.Expires.Before(time.Now().AddDate(5, 0, 0)) {
				t.Errorf("%d years: until %v, %v", years, got.Expires, err)
			}
		}
	})
	t.Run("what the columns do not take is refused", func(t *testing.T) {
		wantErr(t, "Save of bytes in a text", s.Save(in10s(t), "k", record("\xff"), store.Always), store.ErrInvalid)
		ok(t, "Save under bytes", s.Save(in10s(t), "\x00\xff", record("é\x00"), store.Always))
		wantData(t, s, "\x00\xff", "é\x00")
		insert("large", strings.Repeat("x", 1<<20+1), " USING TTL 1000")
		var refused *store.RefusedError
		if _, err := s.Load(in10s(t), "large"); !errors.As(err, &refused) || refused.Reason != "too large" {
			t.Errorf("Load: %v", err)
		}
	})
	t.Run("a column of deadlines counts, and a TTL beside it is kept up", func(t *testing.T) {
		o := n.open(t, cassandra.Options{Keyspace: "app", Table: "both", Expires: "until"})
		now := time.Now().Unix()
		for id, until := range map[string]any{"over": now - 5, "soon": now + 500, "never": nil} {
			n.exec(t, "INSERT INTO app.both (id, data, until) VALUES (?, 0x6162, ?)", id, until)
		}
		_, err := o.Load(in10s(t), "over")
		wantErr(t, "Load of what is over", err, store.ErrAbsent)
		ok(t, "Save", o.Save(in10s(t), "over", record("new"), store.IfAbsent))
		wantData(t, o, "over", "new")
		if got, err := o.Inspect(in10s(t), "soon"); err != nil || got.Expires.Sub(time.Unix(now+500, 0)).Abs() > 100*time.Millisecond {
			t.Errorf("Inspect: until %v, %v", got.Expires, err)
		}
		ok(t, "Touch", o.Touch(in10s(t), "soon", time.Now().Add(2*time.Hour)))
		var until int64
		var ttl int
		ok(t, "SELECT", n.plain.Query("SELECT until, TTL(data) FROM app.both WHERE id = 'soon'").Scan(&until, &ttl))
		if until < now+7200 || until > now+7220 || ttl < 7190 || ttl > 7220 {
			t.Errorf("until %d s from now, TTL %d", until-now, ttl)
		}
		_, err = o.Inspect(in10s(t), "never")
		wantErr(t, "Inspect without a deadline", err, store.ErrInvalid)
		ok(t, "Save onto it", o.Save(in10s(t), "never", record("new"), store.IfVersion(store.VersionOf([]byte("ab"), 0))))
	})
	t.Run("ids that have one token are all listed", func(t *testing.T) {
		want := map[string]bool{}
		for i := range 10 {
			id := colliding(uint64(i))
			want[id] = true
			insert(id, "x", " USING TTL 1000")
		}
		var tokens []int64
		rows := n.plain.Query("SELECT token(id) FROM app.sessions").Iter()
		for token := int64(0); rows.Scan(&token); {
			tokens = append(tokens, token)
		}
		ok(t, "SELECT", rows.Close())
		same := 0
		for _, token := range tokens {
			for _, other := range tokens {
				if token == other {
					same++
				}
			}
		}
		if same < 100 {
			t.Fatalf("the ids do not have one token: %v", tokens)
		}
		for _, limit := range []int{1, 3, 5, 1000} {
			seen := map[string]bool{}
			for cursor, pages := "", 0; ; pages++ {
				page, err := s.Scan(in10s(t), cursor, limit)
				ok(t, "Scan", err)
				for _, key := range page.Keys {
					seen[key] = true
				}
				if cursor = page.Cursor; cursor == "" {
					break
				} else if pages > 100 {
					t.Fatal("it does not end")
				}
			}
			if len(seen) != len(tokens) {
				t.Errorf("by %d: %d ids, want %d", limit, len(seen), len(tokens))
			}
			for id := range want {
				if !seen[id] {
					t.Errorf("by %d: one is missing", limit)
				}
			}
		}
		_, err := s.Scan(in10s(t), "x", 10)
		wantErr(t, "Scan from no cursor", err, store.ErrInvalid)
	})
	// A transaction takes its time from a node's clock, and loses against what was written by one that is ahead.
	t.Run("what was written by a clock that is ahead is replaced, or nobody is told so", func(t *testing.T) {
		ahead := func(d time.Duration) string {
			return fmt.Sprint(" USING TTL 1000 AND TIMESTAMP ", time.Now().Add(d).UnixMicro())
		}
		for _, d := range []time.Duration{0, 300 * time.Millisecond, time.Hour} {
			key := func(what string) string { return what + d.String() }
			check := func(what string, err error) bool {
				t.Helper()
				if d == time.Hour {
					if store.OutcomeOf(err) != store.OutcomeUnavailable {
						t.Errorf("%s: %v", key(what), err)
					}
					wantData(t, s, key(what), "old")
				} else if err != nil {
					t.Errorf("%s: %v", key(what), err)
				}
				return err == nil
			}
			insert(key("delete"), "old", ahead(d))
			if f, err := s.Check(in10s(t)); err != nil || d == time.Hour && !strings.Contains(strings.Join(f.Against, ""), "written by a clock that is ahead, by up to 59m5") {
				t.Errorf("plan is against %q, %v", f.Against, err)
			}
			_, err := s.Delete(in10s(t), key("delete"), store.Always)
			if check("delete", err) {
				_, err := s.Load(in10s(t), key("delete"))
				wantErr(t, "Load after a logout", err, store.ErrAbsent)
			}
			insert(key("save"), "old", ahead(d))
			if check("save", s.Save(in10s(t), key("save"), record("new"), store.IfPresent)) {
				wantData(t, s, key("save"), "new")
			}
			insert(key("touch"), "old", ahead(d))
			if check("touch", s.Touch(in10s(t), key("touch"), time.Now().Add(2*time.Hour))) {
				if got, err := s.Inspect(in10s(t), key("touch")); err != nil || time.Until(got.Expires) < time.Hour {
					t.Errorf("until %v, %v", got.Expires, err)
				}
			}
			// When something was deleted nobody tells.
			n.exec(t, fmt.Sprint("DELETE FROM app.sessions USING TIMESTAMP ", time.Now().Add(d).UnixMicro(), " WHERE id = ?"), []byte(key("create")))
			if err := s.Save(in10s(t), key("create"), record("new"), store.IfAbsent); err == nil {
				wantData(t, s, key("create"), "new")
			} else if store.OutcomeOf(err) != store.OutcomeUnknown || d == 0 {
				t.Errorf("%s: %v", key("create"), err)
			}
			n.exec(t, "DELETE FROM app.sessions USING TIMESTAMP ? WHERE id IN (?, ?)", time.Now().Add(2*time.Hour).UnixMicro(), []byte(key("save")), []byte(key("touch")))
			n.exec(t, "DELETE FROM app.sessions USING TIMESTAMP ? WHERE id IN (?, ?)", time.Now().Add(2*time.Hour).UnixMicro(), []byte(key("delete")), []byte(key("create")))
		}
	})
	// Whoever finds nothing in a cluster that has lost its memory has not logged out.
	t.Run("what an origin with another memory lacks is no news", func(t *testing.T) {
		n.keyspace(t, "memory", "")
		o := n.open(t, cassandra.Options{Keyspace: "memory", Create: true})
		mark := store.Mark{Identity: "i", Seal: store.Seal{Workflow: "w", Epoch: 1, Floor: store.FloorSync}}
		ok(t, "SwapMark", o.SwapMark(in10s(t), store.Mark{}, mark))
		u := o.Under(mark)
		ok(t, "Save", u.Save(in10s(t), "k", record("in"), store.Always))
		absent := func(s store.Store, want error) {
			t.Helper()
			_, err := s.Load(in10s(t), "k")
			wantErr(t, "Load", err, want)
			_, err = s.Inspect(in10s(t), "k")
			wantErr(t, "Inspect", err, want)
			all, err := s.(store.BulkReader).InspectAll(in10s(t), []string{"k"})
			if errors.Is(want, store.ErrAbsent) {
				want = nil
			}
			if !errors.Is(err, want) || err == nil && all[0] != nil {
				t.Errorf("InspectAll: %v, %v", all, err)
			}
		}
		if _, err := u.Delete(in10s(t), "k", store.Always); err != nil {
			t.Error(err)
		}
		absent(u, store.ErrAbsent)
		lifted := mark
		lifted.Seal.Floor = store.FloorNone
		ok(t, "SwapMark", o.SwapMark(in10s(t), mark, lifted))
		absent(u, store.ErrAbsent) // of the same origin
		ok(t, "Save", o.Save(in10s(t), "k", record("in"), store.Always))
		n.exec(t, "TRUNCATE memory.sessions")
		n.exec(t, "TRUNCATE memory.sessile")
		absent(u, store.ErrSealed)
		absent(o.Under(store.Mark{}), store.ErrAbsent)
		n.exec(t, "DROP TABLE memory.sessile")
		absent(u, store.ErrSealed)
	})
	// Of three copies one is there: nobody is told that he is not logged in, that there is no mark, or that he has the lock.
	t.Run("a quorum that is lost is unavailable", func(t *testing.T) {
		n.keyspace(t, "lost", "")
		o := n.open(t, cassandra.Options{Keyspace: "lost", Create: true})
		mark := store.Mark{Identity: "i"}
		ok(t, "SwapMark", o.SwapMark(in10s(t), store.Mark{}, mark))
		u := o.Under(mark)
		ok(t, "Save", u.Save(in10s(t), "k", record("in"), store.Always))
		copies := func(k int) {
			n.exec(t, fmt.Sprintf("ALTER KEYSPACE lost WITH replication = {'class': 'SimpleStrategy', 'replication_factor': %d}", k))
		}
		copies(3)
		asked := map[string]func(key string) error{
			"Load":       func(key string) error { _, err := u.Load(in10s(t), key); return err },
			"Inspect":    func(key string) error { _, err := u.Inspect(in10s(t), key); return err },
			"InspectAll": func(key string) error { _, err := u.(store.BulkReader).InspectAll(in10s(t), []string{key}); return err },
			"Save":       func(key string) error { return u.Save(in10s(t), key, record("new"), store.Always) },
			"Touch":      func(key string) error { return u.Touch(in10s(t), key, time.Now().Add(2*time.Hour)) },
			"Delete":     func(key string) error { _, err := u.Delete(in10s(t), key, store.Always); return err },
			"Scan":       func(string) error { _, err := u.Scan(in10s(t), "", 10); return err },
			"Mark":       func(string) error { _, err := o.Mark(in10s(t)); return err },
			"Lock":       func(key string) error { return u.Lock(in10s(t), key, "token", time.Minute) },
			"LockHolder": func(key string) error { _, _, err := u.LockHolder(in10s(t), key); return err },
		}
		for what, ask := range asked {
			for _, key := range []string{"k", "nobody's"} {
				if err := ask(key); store.OutcomeOf(err) != store.OutcomeUnavailable {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
		if err := o.SwapMark(in10s(t), mark, store.Mark{Identity: "other"}); !store.Failed(err) {
			t.Errorf("SwapMark: %v", err)
		}
		copies(1)
		wantData(t, u, "k", "in")
		if got, err := o.Mark(in10s(t)); got != mark || err != nil {
			t.Errorf("Mark: %v, %v", got, err)
		}
	})
	// What the driver has prepared is prepared anew.
	t.Run("a table that is altered", func(t *testing.T) {
		n.exec(t, "CREATE TABLE app.altered (id text PRIMARY KEY, data blob, other text)")
		o := n.open(t, cassandra.Options{Keyspace: "app", Table: "altered"})
		ok(t, "Save", o.Save(in10s(t), "k", record("a"), store.Always))
		wantData(t, o, "k", "a")
		for _, cql := range []string{"ADD (aaa blob, zzz int)", "DROP other", "WITH default_time_to_live = 5000"} {
			n.exec(t, "ALTER TABLE app.altered "+cql)
			wantData(t, o, "k", "a")
			wantErr(t, "Save", o.Save(in10s(t), "k", record("x"), store.IfAbsent), store.ErrConflict)
			ok(t, "Save", o.Save(in10s(t), "k", record("b"), store.IfVersion(store.VersionOf([]byte("a"), 0))))
			ok(t, "Save", o.Save(in10s(t), "k", record("a"), store.Always))
		}
		n.exec(t, "ALTER TABLE app.altered DROP data")
		if _, err := o.Load(in10s(t), "k"); store.OutcomeOf(err) != store.OutcomeUnavailable {
			t.Errorf("Load: %v", err)
		}
		if err := o.Save(in10s(t), "k", record("x"), store.Always); store.OutcomeOf(err) != store.OutcomeUnavailable {
			t.Errorf("Save: %v", err)
		}
	})
	// Sessions come and go, and data that has ended lies there for gc_grace_seconds. A node refuses to read over too much of it.
	t.Run("a table that is full of what has gone is listed", func(t *testing.T) {
		n.exec(t, "CREATE TABLE app.graves (id text PRIMARY KEY, data blob)")
		o := n.open(t, cassandra.Options{Keyspace: "app", Table: "graves"})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 4 * tombstones / 8 {
					if err := n.plain.Query("DELETE data FROM app.graves WHERE id = ?", fmt.Sprint(w, "-", i)).Exec(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		const live = 30
		for i := range live {
			n.exec(t, "INSERT INTO app.graves (id, data) VALUES (?, 0x00) USING TTL 1000", fmt.Sprint("live", i))
		}
		if err := n.plain.Query("SELECT id FROM app.graves").Iter().Close(); err == nil {
			t.Fatal("the node reads it at once, so this shows nothing")
		}
		for _, limit := range []int{1, 7, 1000} {
			seen := map[string]bool{}
			for cursor, pages := "", 0; ; pages++ {
				page, err := o.Scan(in10s(t), cursor, limit)
				ok(t, "Scan", err)
				for _, key := range page.Keys {
					seen[key] = true
				}
				if cursor = page.Cursor; cursor == "" {
					break
				} else if pages > 200 {
					t.Fatal("it does not end")
				}
			}
			if len(seen) != live {
				t.Errorf("by %d: %d ids, want %d", limit, len(seen), live)
			}
		}
	})
	t.Run("a table that is none is refused", func(t *testing.T) {
		for rest, want := range map[string]string{
			"app?table=wide":                           "has not one row to each id",
			"app?table=numbers":                        "table numbers has int blob",
			"app?table=nothing":                        "there is no table nothing in keyspace app",
			"app?data=body":                            "has no column body (data=)",
			"app?expires=ip":                           "timestamp, bigint or int: table sessions has blob text text",
			"app?datacenter=dc9":                       "there is no datacenter dc9: there are datacenter1",
			"nowhere?preset=sessile":                   "Have it made: CREATE TABLE IF NOT EXISTS",
			"app?id=ip&data=data":                      "has not one row to each ip",
			"app?table=both&expires=until&data=nobody": "has no column nobody",
		} {
			if _, err := n.openURL(t, "cassandra:cassandra", rest); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", rest, err, want)
			}
		}
	})
	t.Run("plan says what there is", func(t *testing.T) {
		f, err := s.Check(in10s(t))
		ok(t, "Check", err)
		if len(f.Against) > 0 {
			t.Errorf("against: %q", f.Against)
		}
		all := strings.Join(append(f.Facts, f.Advice...), "\n")
		for _, want := range []string{"table app.sessions: id blob, data text; the deadline is the TTL of data; reads and writes at LOCAL_QUORUM, transactions at LOCAL_SERIAL",
			"1 of 17 sampled rows are too large", "1 of 17 sampled rows have no deadline, and are not moved", "other columns (ip)", "gc_grace_seconds 240h0m0s"} {
			if !strings.Contains(all, want) {
				t.Errorf("not said: %q in\n%s", want, all)
			}
		}
	})
}

// colliding returns an id whose token is that of all others: Murmur3 can be turned back a block at a time.
func colliding(i uint64) string {
	const c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
	mix := func(k, a, b uint64, r int) uint64 { return bits.RotateLeft64(k*a, r) * b }
	unmix := func(k, a, b uint64, r int) uint64 { return bits.RotateLeft64(k*inverse(b), -r) * inverse(a) }
	// The state after a first block of i and 0, begun at 0 and 0.
	h1, h2 := mix(i, c1, c2, 31), mix(0, c2, c1, 33)
	h1 = (bits.RotateLeft64(h1, 27)+0)*5 + 0x52dce729
	h2 = (bits.RotateLeft64(h2, 31)+h1)*5 + 0x38495ab5
	// The second block that leads from there to 1 and 2.
	five, to1, to2 := inverse(5), uint64(1), uint64(2)
	k2 := unmix(bits.RotateLeft64((to2-0x38495ab5)*five-to1, -31)^h2, c2, c1, 33)
	k1 := unmix(bits.RotateLeft64((to1-0x52dce729)*five-h2, -27)^h1, c1, c2, 31)
	var id []byte
	for _, k := range []uint64{i, 0, k1, k2} {
		id = binary.LittleEndian.AppendUint64(id, k)
	}
	return string(id)
}

// inverse is that of an odd number modulo 2^64.
func inverse(a uint64) uint64 {
	x := a
	for range 6 { // Newton: each step doubles the bits that are right
		x *= 2 - a*x
	}
	return x
}
