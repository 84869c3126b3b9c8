package testserver

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// CassandraTLS is what nodes and their clients need for TLS, in files.
type CassandraTLS struct {
	CA        string // the nodes' certificate, which has signed itself, for 127.0.0.1 and cassandra.test
	Cert, Key string // of a client whom the nodes know
	OtherCA   string // has signed Cert, and not the nodes' certificate

	keys, known string // as Java has them
}

// keyPassword is that of both key stores.
const keyPassword = "keystore"

// NewCassandraTLS makes certificates, for a day.
func NewCassandraTLS(t testing.TB) *CassandraTLS {
	t.Helper()
	keytool := java17("keytool") // comes with java
	Need(t, "openjdk-17-jre-headless", keytool != "")
	dir := tempDir(t)
	client := writeCerts(t, dir)
	c := &CassandraTLS{CA: filepath.Join(dir, "node.pem"), Cert: client.cert, Key: client.key, OtherCA: client.ca,
		keys: filepath.Join(dir, "node.p12"), known: filepath.Join(dir, "clients.p12")}
	for _, args := range [][]string{
		{"-genkeypair", "-keystore", c.keys, "-alias", "node", "-keyalg", "EC", "-groupname", "secp256r1", "-dname", "CN=node", "-ext", "san=ip:127.0.0.1,dns:cassandra.test", "-validity", "1"},
		{"-exportcert", "-keystore", c.keys, "-alias", "node", "-rfc", "-file", c.CA},
		{"-importcert", "-keystore", c.known, "-alias", "clients", "-noprompt", "-file", client.ca},
	} {
		if out, err := exec.Command(keytool, append(args, "-storetype", "PKCS12", "-storepass", keyPassword)...).CombinedOutput(); err != nil {
			t.Fatalf("testserver: keytool %s: %v\n%s", args[0], err, out)
		}
	}
	return c
}

// Lines are those of a cassandra.yaml with which a node serves TLS: alone, or else beside clients without. It wants a certificate of its
// clients, or none.
func (c *CassandraTLS) Lines(alone, clients bool) string {
	return fmt.Sprintf("client_encryption_options: {enabled: true, optional: %v, require_client_auth: %v, store_type: PKCS12, keystore: %q, keystore_password: %s, "+
		"truststore: %q, truststore_password: %s}", !alone, clients, c.keys, keyPassword, c.known, keyPassword)
}
