package cassandra_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"
	"go.uber.org/goleak"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
	"github.com/sessile/sessile/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tombstones are more than a node reads over at once.
const tombstones = 500

// node is a Cassandra, and what an operator does there.
type node struct {
	*testserver.CassandraServer
	plain *gocql.Session
	certs *testserver.CassandraTLS
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{CassandraServer: testserver.Cassandra(t, fmt.Sprint("tombstone_failure_threshold: ", tombstones)), certs: testserver.NewCassandraTLS(t)}
	cfg := gocql.NewCluster(n.Addr)
	cfg.Timeout, cfg.ConnectTimeout = 20*time.Second, 10*time.Second
	cfg.ReconnectInterval = 200 * time.Millisecond
	cfg.Authenticator = gocql.PasswordAuthenticator{Username: "cassandra", Password: "cassandra"}
	var err error
	n.plain, err = cfg.CreateSession()
	ok(t, "connect", err)
	t.Cleanup(n.plain.Close)
	return n
}

// waitFor waits for a condition with a deadline.
func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s: %v", what, err)
		}
	}
}

func (n *node) exec(t *testing.T, cql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if err := n.plain.Query(cql, args...).ExecContext(ctx); err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
}

// keyspace makes one, with a table sessions of these columns, if any.
func (n *node) keyspace(t *testing.T, name, columns string) {
	t.Helper()
	n.exec(t, "CREATE KEYSPACE "+name+" WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
	if columns != "" {
		n.exec(t, "CREATE TABLE "+name+".sessions ("+columns+")")
	}
}

// open opens a store as the user who is there at first, closed by the test's cleanup.
func (n *node) open(t *testing.T, opt cassandra.Options) *cassandra.Store {
	t.Helper()
	opt.Hosts = []string{n.Addr}
	opt.Username, opt.Password = "cassandra", "cassandra"
	s, err := cassandra.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func in10s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func record(data string) store.Record {
	return store.Record{Data: []byte(data), Expires: time.Now().Add(time.Hour)}
}

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func wantData(t *testing.T, s store.Store, key, want string) {
	t.Helper()
	if got, err := s.Load(in10s(t), key); err != nil || string(got.Data) != want {
		t.Errorf("Load: got %q, %v, want %q", got.Data, err, want)
	}
}

// All tests share a server, which takes seconds to start; the last ones kill it.
func TestCassandra(t *testing.T) {
	n := newNode(t)
	t.Run("store", func(t *testing.T) { testStore(t, n) })
	t.Run("a node without TLS", func(t *testing.T) {
		if s, err := n.openAt(t, "127.0.0.1", "none", "&tls=true"); s != nil || err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
			t.Errorf("got %v, %v", s, err)
		}
	})
	t.Run("rows", func(t *testing.T) { testRows(t, n) })
	t.Run("trouble", func(t *testing.T) { testTrouble(t, n) })
	t.Run("rights", func(t *testing.T) { testRights(t, n) })
	t.Run("clients' certificates", func(t *testing.T) { testClientCertificates(t, n) })
}

func testStore(t *testing.T, n *node) {
	for _, tc := range []struct {
		name, columns string
		opt           cassandra.Options
		bad           []string
	}{
		{"ours", "", cassandra.Options{Create: true}, []string{"\xff"}},
		{"deadlines", `"Key" ascii PRIMARY KEY, value blob, until timestamp, note text`,
			cassandra.Options{ID: "Key", Data: "value", Expires: "until"}, []string{"ä"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // some of it is waiting
			tc.opt.Keyspace = "ks_" + tc.name
			n.keyspace(t, tc.opt.Keyspace, tc.columns)
			storetest.RunOrigin(t, storetest.Harness[*cassandra.Store]{
				New: func(t *testing.T) *cassandra.Store {
					s := n.open(t, tc.opt)
					t.Cleanup(func() {
						for _, table := range []string{"sessions", "sessile"} {
							if err := n.plain.Query("TRUNCATE " + tc.opt.Keyspace + "." + table).Exec(); err != nil && !strings.Contains(err.Error(), "does not exist") {
								t.Error(err)
							}
						}
					})
					return s
				},
				BadKeys: append(tc.bad, strings.Repeat("x", 65536)),
				Grace:   4 * time.Second, // whole seconds, and one more
			})
		})
	}
}

// openURL opens a store by its URL.
func (n *node) openURL(t *testing.T, user, rest string) (*cassandra.Store, error) {
	t.Helper()
	u, err := url.Parse("cassandra://" + user + "@" + n.Addr + "/" + rest)
	ok(t, "URL", err)
	opt, err := cassandra.ParseURL(u, cassandra.Options{})
	ok(t, "ParseURL", err)
	s, err := cassandra.Open(t.Context(), opt)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}
