package gateway

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store/memory"
)

func listenAt(t *testing.T, url string) net.Listener {
	t.Helper()
	l, err := ListenURL(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestListenURL(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	used := listenAt(t, "redis+unix://"+filepath.Join(dir, "used"))
	defer used.Close()
	for _, tc := range []struct{ url, want string }{
		{"redis://127.0.0.1", "no port"},
		{"redis://127.0.0.1:0/3", "path"},
		{"redis://u:p@127.0.0.1:0", "users"},
		{"redis://127.0.0.1:0?foo=1", "unknown parameter"},
		{"redis://127.0.0.1:0?cert=x", "unknown parameter"},
		{"redis+tls://127.0.0.1:0", "cert and key"},
		{"redis+tls://127.0.0.1:0?cert=/nosuch&key=/nosuch", "no such file"},
		{"redis+unix://relative/path", "three slashes"},
		{"redis+unix://", "107"},
		{"redis+unix:///" + strings.Repeat("x", 107), "107"},
		{"redis+unix://" + file, "not a socket"},
		{"redis+unix://" + filepath.Join(dir, "used"), "somebody listens"},
		{"redis+unix://" + filepath.Join(dir, "a") + "?mode=9", "octal"},
		{"redis+unix://" + filepath.Join(dir, "a") + "?mode=01777", "octal"},
		{"redis+unix://" + filepath.Join(dir, "a") + "?owner=nosuchuser", "owner"},
		{"redis+unix://" + filepath.Join(dir, "a") + "?owner=:nosuchgroup", "owner"},
		{"fd://3", "LISTEN_PID"},
		{"memcache://127.0.0.1:0", "scheme"},
		{"memcached://127.0.0.1", "no port"},
		{"memcached://127.0.0.1:0?client=pymemcache", "php-memcached or php-memcache"},
		{"memcached://127.0.0.1:0?prefix=sessile:", "ours"},
		{"memcached://127.0.0.1:0?prefix=a%20b", "blanks"},
		{"memcached://127.0.0.1:0?mode=0660", "unknown parameter"},
		{"memcached+tls://127.0.0.1:0", "cert and key"},
		{"memcached+unix://relative/path", "three slashes"},
		{"redis://127.0.0.1:0?client=php-memcached", "unknown parameter"},
		{"://", "URL"},
	} {
		l, err := ListenURL(tc.url)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", tc.url, err, tc.want)
		}
	}
	if _, err := ListenURL("redis://u:canary@127.0.0.1:0"); strings.Contains(err.Error(), "canary") {
		t.Errorf("the error has the password: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for _, tc := range []struct {
		params string
		want   fs.FileMode
	}{{"", 0o660}, {"?mode=0600", 0o600}, {"?mode=666", 0o666}, {fmt.Sprintf("?mode=0640&owner=%d:%d", os.Getuid(), os.Getgid()), 0o640}} {
		l := listenAt(t, "redis+unix://"+path+tc.params)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tc.want {
			t.Errorf("%q: mode %v, %v; want %v", tc.params, info.Mode(), err, tc.want)
		}
		gw := startOn(t, Site{Linger: -1}, Options{}, l)
		gw.dial().want("+PONG\r\n", "PING")
		gw.dial().want("-ERR This instance has cluster support disabled\r\n", "CLUSTER", "SLOTS")
		gw.dial().want("-"+textNoSentinel+"\r\n", "SENTINEL", "MASTERS")
		gw.Shutdown(t.Context())
		if _, err := os.Stat(path); err == nil {
			t.Error("the socket is left behind")
		}
	}
	// What a killed gateway leaves is removed.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	startOn(t, Site{}, Options{}, listenAt(t, "redis+unix://"+path)).dial().want("+PONG\r\n", "PING")
}

func TestOpenListenersAreRefused(t *testing.T) {
	cert := makeCert(t, t.TempDir(), 1)
	tlsParams := "?cert=" + cert.cert + "&key=" + cert.key
	for _, tc := range []struct {
		url     string
		site    Site
		refused bool
	}{
		{"redis://0.0.0.0:0", Site{}, true},
		{"redis://[::]:0", Site{}, true},
		{"redis://:0", Site{}, true},
		{"redis+tls://0.0.0.0:0" + tlsParams, Site{}, true},
		{"redis+tls://0.0.0.0:0" + tlsParams + "&client_ca=" + cert.ca, Site{}, false},
		{"redis://0.0.0.0:0", Site{Insecure: true}, false},
		{"redis://0.0.0.0:0", Site{Users: []User{{Passwords: []string{"p"}}}}, false},
		{"redis://127.0.0.1:0", Site{}, false},
		{"redis://[::1]:0", Site{}, false},
		{"redis://localhost:0", Site{}, false},
	} {
		l := listenAt(t, tc.url)
		tc.site.Store = memory.New(memory.Options{})
		s, err := New(tc.site, Options{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		if tc.refused {
			if err := <-done; err == nil || err == ErrServerClosed {
				t.Errorf("%s: %v", tc.url, err)
			}
			s.Close()
			continue
		}
		select {
		case err := <-done:
			t.Errorf("%s: %v", tc.url, err)
			continue
		case <-time.After(20 * time.Millisecond):
		}
		s.Close()
		<-done
	}
}

type certificate struct{ ca, cert, key string }

// makeCert writes a certificate that signs itself and so is its own authority.
func makeCert(t *testing.T, dir string, serial int64) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint(serial)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := certificate{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{c.cert: {Type: "CERTIFICATE", Bytes: der}, c.key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	files := makeCert(t, dir, 1)
	l := listenAt(t, "redis+tls://127.0.0.1:0?cert="+files.cert+"&key="+files.key)
	gw := startOn(t, Site{Limits: Limits{Command: 500 * time.Millisecond}}, Options{}, l)
	dial := func(config *tls.Config) (*client, int64) {
		t.Helper()
		config.InsecureSkipVerify = true
		nc, err := tls.Dial("tcp", gw.addr.String(), config)
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, nc), nc.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	c, _ := dial(&tls.Config{})
	value := strings.Repeat("v", 1<<20)
	c.want("+OK\r\n", "SETEX", "k", "100", value)
	c.want(bulk(value), "GET", "k")
	// Waiting for a lock reads on the side; nothing is lost over it.
	other, _ := dial(&tls.Config{})
	other.want("+OK\r\n", "SET", "k_LOCK", "o", "NX", "PX", "30000")
	c.send(command_("SET", "k_LOCK", "c", "NX"))
	time.Sleep(3 * watchAfter)
	other.want(":1\r\n", "DEL", "k_LOCK")
	if got := c.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	c.want("+PONG\r\n", "PING")
	c.close() // and with it its lock
	other.want("+OK\r\n", "SET", "k_LOCK", "o", "NX")

	if _, err := tls.Dial("tcp", gw.addr.String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	plain := gw.dial()
	plain.send(command_("PING"))
	if got, err := plain.tryReply(patience); err == nil {
		t.Errorf("answered in the clear: %q", got)
	}
	silent := gw.dial()
	began := time.Now()
	silent.closed()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a handshake may take %v", took)
	}

	// New files are taken up; broken ones are not.
	if err := os.WriteFile(files.key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	if _, serial := dial(&tls.Config{}); serial != 1 {
		t.Errorf("serial %d", serial)
	}
	makeCert(t, dir, 2)
	eventually(t, "the new certificate", func() bool { _, serial := dial(&tls.Config{}); return serial == 2 })
	other.want("+PONG\r\n", "PING")
}

func TestTLSClientCertificates(t *testing.T) {
	files, stranger := makeCert(t, t.TempDir(), 1), makeCert(t, t.TempDir(), 2)
	l := listenAt(t, "redis+tls://127.0.0.1:0?cert="+files.cert+"&key="+files.key+"&client_ca="+files.ca)
	gw := startOn(t, Site{}, Options{}, l)
	try := func(with *certificate) error {
		config := &tls.Config{InsecureSkipVerify: true}
		if with != nil {
			pair, err := tls.LoadX509KeyPair(with.cert, with.key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		nc, err := tls.Dial("tcp", gw.addr.String(), config)
		if err != nil {
			return err
		}
		c := newClient(t, nc)
		nc.Write([]byte(command_("PING")))
		_, err = c.tryReply(patience)
		return err
	}
	if err := try(&files); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if try(nil) == nil || try(&stranger) == nil {
		t.Error("a stranger is let in")
	}
}

const childEnv = "GATEWAY_TEST_INHERITED"

// inheritingChild is this test binary as systemd would start it.
func inheritingChild() int {
	os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())) // systemd sets it after the fork
	for _, bad := range []string{"fd://2", "fd://5", "fd://nosuch"} {
		if l, err := ListenURL(bad); err == nil {
			l.Close()
			fmt.Println("FAIL", bad)
			return 1
		}
	}
	s, err := New(Site{Store: memory.New(memory.Options{}), Lifetime: time.Hour}, Options{})
	if err != nil {
		fmt.Println("FAIL", err)
		return 1
	}
	for _, url := range []string{"fd://3", "fd://second"} {
		l, err := ListenURL(url)
		if err != nil {
			fmt.Println("FAIL", url, err)
			return 1
		}
		go s.Serve(l)
	}
	fmt.Println("READY")
	bufio.NewReader(os.Stdin).ReadByte() // until the test closes it
	s.Close()
	return 0
}

func TestInheritedSockets(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	files := make([]*os.File, 2)
	for i, l := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		if files[i], err = l.File(); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=first:second")
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	// Who connects before the child is ready waits instead of being refused.
	early := (&gateway{t: t, addr: tcp.Addr()}).dial()
	early.send(command_("SETEX", "k", "100", "v"))
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "READY\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	if got := early.reply(); got != "+OK\r\n" {
		t.Errorf("got %q", got)
	}
	(&gateway{t: t, addr: unix.Addr()}).dial().want(bulk("v"), "GET", "k")
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the child removed a socket that is not its own")
	}
}
