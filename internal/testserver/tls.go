package testserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

type certFiles struct{ ca, cert, key string }

// writeCerts makes a certificate authority and a server certificate for this machine and hosts, both for a day.
func writeCerts(t testing.TB, dir string, hosts ...*Host) certFiles {
	t.Helper()
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "sessile test CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		// The bus of a Redis Cluster wants a certificate of both sides, whatever tls-auth-clients says.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	for _, h := range hosts {
		if h != nil {
			server.IPAddresses = append(server.IPAddresses, net.ParseIP(h.IP))
		}
	}
	files := certFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("testserver: certificates: %v", err)
		}
	}
	write := func(path, kind string, der []byte) {
		t.Helper()
		must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	write(files.ca, "CERTIFICATE", der)
	der, err = x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	must(err)
	write(files.cert, "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	must(err)
	write(files.key, "PRIVATE KEY", der)
	return files
}
