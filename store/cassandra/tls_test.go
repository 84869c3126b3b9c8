package cassandra_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/cassandra"
)

// toOne connects to one address, whichever is asked for.
type toOne string

func (addr toOne) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, string(addr))
}

// openAt opens a store of the node's by its URL, as if the node were at host, and asks it something: to Open a node that is not there
// is no error.
func (n *node) openAt(t *testing.T, host, keyspace, params string) (*cassandra.Store, error) {
	t.Helper()
	u, err := url.Parse("cassandra://secure:hush@" + strings.Replace(n.Addr, "127.0.0.1", host, 1) + "/" + keyspace + "?preset=sessile" + params)
	ok(t, "URL", err)
	opt, err := cassandra.ParseURL(u, cassandra.Options{})
	ok(t, "ParseURL", err)
	s, err := cassandra.Open(t.Context(), opt.Observed(toOne(n.Addr), nil))
	if err == nil {
		t.Cleanup(func() { s.Close() })
		_, err = s.Mark(in10s(t))
	}
	return s, err
}

// works shows it of a store.
func works(t *testing.T, s *cassandra.Store) {
	t.Helper()
	waitFor(t, "Save", func() error { return s.Save(in10s(t), "k", record("data"), store.Always) }) // a node may be told to give up easily
	wantData(t, s, "k", "data")
	_, err := s.Mark(in10s(t))
	ok(t, "Mark", err)
}

// A node that serves TLS alone, in a datacenter with a name of its own.
func TestTLS(t *testing.T) {
	certs := testserver.NewCassandraTLS(t)
	n := &node{CassandraServer: testserver.Cassandra(t, certs.Lines(true, false), "endpoint_snitch: GossipingPropertyFileSnitch")}
	cfg := gocql.NewCluster(n.Addr)
	cfg.Timeout, cfg.ConnectTimeout = 20*time.Second, 10*time.Second
	cfg.SslOpts = &gocql.SslOptions{CaPath: certs.CA, EnableHostVerification: true}
	var err error
	n.plain, err = cfg.CreateSession()
	ok(t, "connect", err)
	t.Cleanup(n.plain.Close)
	n.keyspace(t, "secret", "")

	ca := "&tls=true&ca_file=" + certs.CA
	for _, tc := range []struct {
		name, host, params string
		want               string // in the error; "": it works
	}{
		{"its CA", "127.0.0.1", ca, ""},
		{"nobody's CA", "127.0.0.1", "&tls=true", "signed by unknown authority (ca_file=)"},
		{"another CA", "127.0.0.1", "&tls=true&ca_file=" + certs.OtherCA, "signed by unknown authority (ca_file=)"},
		{"whoever it is", "127.0.0.1", "&tls=skip-verify", ""},
		{"whoever it is, elsewhere", "127.0.0.2", "&tls=skip-verify", ""},
		{"another address than its certificate's", "127.0.0.2", ca, "certificate is valid for 127.0.0.1, not 127.0.0.2"},
		{"another address, and the certificate's name", "127.0.0.2", ca + "&server_name=cassandra.test", ""},
		{"another name than its certificate's", "127.0.0.1", ca + "&server_name=other.test", "certificate is valid for cassandra.test, not other.test"},
		// The driver knows nodes by addresses: a name is asked for one, and forgotten.
		{"a name that its certificate has not, of an address that it has", "localhost", ca, ""},
		{"its datacenter", "127.0.0.1", ca + "&datacenter=north", ""},
		{"a datacenter that is written otherwise", "127.0.0.1", ca + "&datacenter=North", "there is no datacenter North: there are north"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := n.openAt(t, tc.host, "secret", tc.params)
			switch {
			case tc.want == "":
				ok(t, "open", err)
				works(t, s)
			case s != nil || err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush"):
				t.Errorf("got %v, %v, want no store and %q", s, err, tc.want)
			}
		})
	}
	t.Run("without TLS it is unavailable at once", func(t *testing.T) {
		begun := time.Now()
		s, err := n.openAt(t, "127.0.0.1", "secret", "")
		wantErr(t, "Mark", err, store.ErrDown)
		if s == nil || !strings.Contains(err.Error(), "does it want TLS (tls=)?") || time.Since(begun) > 5*time.Second {
			t.Errorf("got %v, %v after %v", s, err, time.Since(begun))
		}
	})
	t.Run("a gateway begins where only the time of a certificate is over", func(t *testing.T) {
		pem, err := os.ReadFile(certs.CA)
		ok(t, "CA", err)
		later := &tls.Config{RootCAs: x509.NewCertPool(), Time: func() time.Time { return time.Now().AddDate(0, 0, 2) }}
		later.RootCAs.AppendCertsFromPEM(pem)
		s := n.open(t, cassandra.Options{Keyspace: "secret", Create: true, TLS: later})
		if _, err := s.Mark(in10s(t)); store.OutcomeOf(err) != store.OutcomeUnavailable || !strings.Contains(err.Error(), "expired") {
			t.Errorf("Mark: %v", err)
		}
	})
}

// A node that takes connections and says nothing is waited for as long as was asked, and the store can be closed.
func TestAHandshakeHasABound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, "Listen", err)
	defer l.Close()
	begun := time.Now()
	s, err := cassandra.Open(t.Context(), cassandra.Options{Hosts: []string{l.Addr().String()}, Keyspace: "k", TLS: &tls.Config{ServerName: "x"}, DialTimeout: 200 * time.Millisecond})
	ok(t, "Open", err)
	_, err = s.Mark(in10s(t))
	wantErr(t, "Mark", err, store.ErrDown)
	ok(t, "Close", s.Close())
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// testClientCertificates is about a node that wants passwords, and certificates of clients with TLS.
func testClientCertificates(t *testing.T, n *node) {
	n.keyspace(t, "mutual", "")
	n.exec(t, "CREATE ROLE secure WITH PASSWORD = 'hush' AND LOGIN = true AND SUPERUSER = true")
	other := testserver.NewCassandraTLS(t)
	ca := "&tls=true&ca_file=" + n.certs.CA
	const refused = "(cert_file=, key_file=)"
	for _, tc := range []struct{ name, params, want string }{
		{"one that it knows", ca + "&cert_file=" + n.certs.Cert + "&key_file=" + n.certs.Key, ""},
		{"one that it knows, whoever it is itself", "&tls=skip-verify&cert_file=" + n.certs.Cert + "&key_file=" + n.certs.Key, ""},
		{"none", ca, refused},
		{"one that it does not know", ca + "&cert_file=" + other.Cert + "&key_file=" + other.Key, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := n.openAt(t, "127.0.0.1", "mutual", tc.params)
			switch {
			case tc.want == "":
				ok(t, "open", err)
				works(t, s)
			case s != nil || err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush"):
				t.Errorf("got %v, %v, want no store and %q", s, err, tc.want)
			}
		})
	}
}
