package sessile_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile"
	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/memory"
	"github.com/sessile/sessile/store/open"
)

// An answer is what a request was told.
type answer struct {
	n       int
	gone    bool // there is no session
	refused bool // nothing was changed
	unknown bool
	err     error
}

type answerKey struct{}

func answerOf(got sight, act string) answer {
	gone := errors.Is(got.err, sessile.ErrGone) || got.err == nil && !got.exists && act != "logout"
	refused := errors.Is(got.err, store.ErrConflict) || errors.Is(got.err, store.ErrUnavailable)
	return answer{n: got.n, gone: gone, refused: refused && !gone, unknown: got.err != nil && !gone && !refused, err: got.err}
}

// counter is a session as those who share it see it: a number to add to, until it is -1, for good.
var counter = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{0} },
	Step: func(state, in, out any) []any {
		n, a := state.(int), out.(answer)
		next := n
		switch {
		case in == "logout":
			next = -1
		case in == "add, save" && n >= 0:
			next = n + 1
		}
		switch {
		case a.unknown:
			return []any{n, next}
		case a.refused:
			return []any{n}
		case in == "logout":
			return []any{-1}
		case in == "renew" && !a.gone: // what it has seen is as of when it began
			return []any{n}
		case a.gone != (n < 0), !a.gone && in == "read" && a.n != n, !a.gone && in == "add, save" && a.n != next:
			return nil
		}
		return []any{next}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%s: %+v", in, out) },
}).ToModel()

// realStores are stores of every kind that can write conditionally, each opened twice: by two processes.
func realStores(t *testing.T) map[string][2]store.Store {
	t.Helper()
	create := func(exec func(string) string, blob string) {
		exec("CREATE TABLE sessions (id varchar(128) PRIMARY KEY, data " + blob + " NOT NULL, expires bigint NOT NULL)")
	}
	maria, postgres := testserver.MariaDB(t), testserver.Postgres(t)
	create(maria.Exec, "LONGBLOB")
	create(postgres.Exec, "bytea")
	const table = "table=sessions&id=id&data=data&expires=expires"
	mem := memory.New(memory.Options{})
	all := map[string][2]store.Store{"memory": {mem, mem}}
	for name, raw := range map[string]string{
		"Redis":      testserver.Redis(t).URL(),
		"files":      "file://" + t.TempDir() + "?lifetime=1h",
		"MariaDB":    with(maria.URL("app"), table),
		"PostgreSQL": with(postgres.URL("app"), table),
		"memcached":  "memcached://" + testserver.Memcached(t).Addr,
		"Cluster":    testserver.Cluster(t, testserver.ClusterOptions{Replicas: -1}).URL(),
		"Sentinels":  testserver.Sentinel(t, testserver.SentinelOptions{}).URL(),
		"Cassandra":  "cassandra://" + withKeyspace(t, testserver.Cassandra(t).Addr) + "/app?preset=sessile",
	} {
		u, err := open.Parse(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var two [2]store.Store
		for i := range two {
			if two[i], err = open.Store(t.Context(), u, open.Options{}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			t.Cleanup(func() { two[i].Close() })
		}
		all[name] = two
	}
	return all
}

func withKeyspace(t *testing.T, addr string) string {
	t.Helper()
	c := gocql.NewCluster(addr)
	c.Timeout, c.ConnectTimeout = 20*time.Second, 10*time.Second
	s, err := c.CreateSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Query("CREATE KEYSPACE app WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}").Exec(); err != nil {
		t.Fatal(err)
	}
	return addr
}

func with(raw, params string) string {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += params
	return u.String()
}

// On every store, and whatever the requests of one session do at the same time, in two processes: what they are told could have been told to them one after the
// other. Its token changes meanwhile, and it ends.
func TestASessionIsLinearizable(t *testing.T) {
	span := time.Second
	if os.Getenv("SESSILE_SOAK") != "" {
		span = time.Minute
	}
	for name, two := range realStores(t) {
		t.Run(name, func(t *testing.T) {
			var processes [2]http.Handler
			for i, st := range two {
				m, err := sessile.New[data](st, sessile.Options{TouchEvery: -1, Cookie: sessile.Cookie{Insecure: true}})
				if err != nil {
					t.Fatal(err)
				}
				processes[i] = m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					a, act := r.Context().Value(answerKey{}).(*answer), r.Header.Get("Act")
					s, err := m.Get(r)
					if err != nil {
						*a = answer{unknown: true, err: err}
						return
					}
					*a = answerOf(perform(w, r, s, act), act)
				}))
			}
			theListOfAUser(t, two)
			sessions, added := 0, 0
			for start := time.Now(); sessions < 3 || time.Since(start) < span; sessions++ {
				ops := aSession(t, processes)
				for _, op := range ops {
					if a := op.Output.(answer); op.Input == "add, save" && !a.gone && !a.refused && !a.unknown {
						added++
					}
				}
				if got := porcupine.CheckOperationsTimeout(counter, ops, time.Minute); got != porcupine.Ok {
					for _, op := range ops {
						t.Logf("%8d %8d  client %d  %s", op.Call/1000, op.Return/1000, op.ClientId, counter.DescribeOperation(op.Input, op.Output))
					}
					t.Fatalf("session %d: %s", sessions, got)
				}
			}
			t.Logf("%d sessions, %d changes", sessions, added)
			if added < sessions {
				t.Error("next to nothing was changed")
			}
		})
	}
}

// theListOfAUser has a user log in in two processes: who is one too many goes, a renewal changes no list, and all are ended at once.
func theListOfAUser(t *testing.T, two [2]store.Store) {
	t.Helper()
	var sites [2]*site
	for i, st := range two {
		sites[i] = newPages(t, st, sessile.Options{MaxSessions: 3})
	}
	var windows []*window
	for i := range 4 {
		w := sites[i%2].window("")
		w.want("/add", "")
		w.want("/login", "")
		w.want("/renew", "")
		windows = append(windows, w)
	}
	windows[0].want("/", `"" 0`) // the oldest
	windows[1].want("/login", "")
	list, err := sites[0].m.Sessions(t.Context(), "alice")
	if err != nil || len(list) != 3 {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	mine := sessile.Key(windows[3].get("/key"))
	if n, err := sites[0].m.Revoke(t.Context(), "alice", mine); err != nil || n != 2 {
		t.Errorf("%d others, %v", n, err)
	}
	windows[1].want("/", `"" 0`)
	windows[2].want("/", `"" 0`)
	windows[3].want("/", `"alice" 1`)
	windows[3].want("/logout", "")
	if list, err = sites[1].m.Sessions(t.Context(), "alice"); err != nil || len(list) != 0 {
		t.Errorf("%d sessions, %v", len(list), err)
	}
}

// aSession makes a session, has four browsers use it at the same time, one of which logs out, and returns what they were told.
func aSession(t *testing.T, processes [2]http.Handler) []porcupine.Operation {
	t.Helper()
	var mu sync.Mutex // guards ops
	var ops []porcupine.Operation
	start := time.Now()
	do := func(client int, cookie, act string) string {
		a := new(answer)
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), answerKey{}, a), "GET", "/", nil)
		r.Header.Set("Act", act)
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		w := httptest.NewRecorder()
		call := time.Since(start)
		processes[client%2].ServeHTTP(w, r)
		op := porcupine.Operation{ClientId: client, Input: act, Call: call.Nanoseconds(), Output: *a, Return: time.Since(start).Nanoseconds()}
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op)
		for _, c := range w.Result().Cookies() {
			if c.MaxAge >= 0 {
				cookie = c.Name + "=" + c.Value
			}
		}
		return cookie
	}
	first := do(0, "", "add, save")
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			cookie := first
			for i := range 12 {
				act := []string{"read", "add, save", "add, save", "renew"}[min(rand.IntN(10)/3, 3)]
				if client == 0 && i == 8 {
					act = "logout"
				}
				cookie = do(client, cookie, act)
			}
		})
	}
	wg.Wait()
	return ops
}
