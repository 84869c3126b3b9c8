package cassandra_test

import (
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/sessile/sessile/store/cassandra"
)

func TestParseURL(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]cassandra.Options{
		"cassandra://h1,h2:9043/k": {Hosts: []string{"h1:9043", "h2:9043"}, Keyspace: "k", Table: "sessions", ID: "id", Data: "data",
			Consistency: gocql.LocalQuorum, Serial: gocql.LocalSerial},
		"cassandra://app:pw@[::1]/k/?preset=sessile&lifetime=1h": {Hosts: []string{"[::1]:9042"}, Username: "app", Password: "pw", Keyspace: "k", Create: true, Nonce: "nonce",
			Table: "sessions", ID: "id", Data: "data", Consistency: gocql.LocalQuorum, Serial: gocql.LocalSerial, Lifetime: time.Hour},
		"cassandra://app@h/k?table=T&id=sid&data=b&expires=e&nonce=n&datacenter=dc1&serial_consistency=SERIAL&password_file=" + secret: {
			Hosts: []string{"h:9042"}, Username: "app", Password: "hush", Keyspace: "k", Table: "T", ID: "sid", Data: "b", Expires: "e", Nonce: "n", Datacenter: "dc1",
			Consistency: gocql.Quorum, Serial: gocql.Serial},
	} {
		want.MaxValue, want.Conns, want.DialTimeout, want.Bound = 1<<20, 2, time.Second, 2*time.Second
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		got, err := cassandra.ParseURL(u, cassandra.Options{})
		got.Logger = nil
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", raw, got, err, want)
		}
	}
	for raw, want := range map[string]string{
		"cassandra://h":                             "write cassandra://user@host",
		"cassandra:///k":                            "write cassandra://user@host",
		"cassandra://h:0/k":                         "write cassandra://user@host",
		"cassandra://h/k/t":                         "write cassandra://user@host",
		"cassandra://h/k?tabel=x":                   "no parameter \"tabel\"; the parameters are: ca_file, cert_file, connections",
		"cassandra://h/k?table=x&table=y":           "is given 2 times",
		"cassandra://h/k?table=x%22y":               "is no name",
		"cassandra://h/k?table=sessile":             "is not a table of sessions",
		"cassandra://h/k?id=data":                   "two columns have one name",
		"cassandra://h/k?consistency=ONE":           "it takes one of: LOCAL_QUORUM, QUORUM",
		"cassandra://h/k?serial_consistency=QUORUM": "it takes one of: LOCAL_SERIAL, SERIAL",
		"cassandra://h/k?consistency=QUORUM":        "reads at QUORUM do not see every transaction at LOCAL_SERIAL",
		"cassandra://h/k?consistency=LOCAL_QUORUM&serial_consistency=SERIAL": "reads at LOCAL_QUORUM do not see every transaction at SERIAL",
		"cassandra://h/k?preset=x":                     "the presets are: sessile",
		"cassandra://h/k?preset=sessile&expires=e":     "has no column of deadlines",
		"cassandra://h/k?op_bound=2":                   "missing unit",
		"cassandra://h/k?connections=0":                "must be more than 0",
		"cassandra://h/k?tls=maybe":                    "true, skip-verify, false",
		"cassandra://h/k?ca_file=/x":                   "go with tls=true",
		"cassandra://h/k?tls=skip-verify&ca_file=/x":   "go with tls=true",
		"cassandra://h/k?server_name=x":                "go with tls=true",
		"cassandra://h/k?cert_file=/x":                 "go with tls=true or skip-verify",
		"cassandra://h/k?tls=true&key_file=/x":         "cert_file, key_file: ",
		"cassandra://h/k?tls=true&ca_file=":            "cannot be read",
		"cassandra://h/k?tls=true&ca_file=" + secret:   "has no certificate in it",
		"cassandra://h/k?password_file=/nowhere/there": "cannot be read",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cassandra.ParseURL(u, cassandra.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", raw, err, want)
		}
	}
	one := cassandra.Options{Hosts: []string{"h:9042"}, Keyspace: "k", Consistency: gocql.One}
	if _, err := cassandra.Open(t.Context(), one); err == nil || !strings.Contains(err.Error(), "reads at ONE do not see") {
		t.Errorf("ONE: %v", err)
	}
}
