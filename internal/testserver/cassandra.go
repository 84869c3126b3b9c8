package testserver

import (
	"crypto/sha256"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CassandraServer is a node of Apache Cassandra that belongs to one test. It takes some seconds to start, so one serves
// many cases. Its methods fail the test when they cannot do what they say. Stop, Kill, Pause and Resume may be called while
// other goroutines use the server.
type CassandraServer struct {
	server

	Addr string // "127.0.0.1:port", where it speaks CQL; stays the same over Restart

	java, lib string
	yaml      string
}

// What it is fetched and run with. The options are those of conf/jvm17-server.options of its own distribution, and what
// makes a single node start without waiting for others.
//
//go:embed cassandra
var cassandraFiles embed.FS

// Cassandra starts a Cassandra on 127.0.0.1, and stops it after the test. It keeps its data over Restart. Further lines go
// into its cassandra.yaml. It runs from the artifacts of its project that Maven fetches into the user's cache folder, once.
func Cassandra(t testing.TB, lines ...string) *CassandraServer {
	t.Helper()
	return CassandraCluster(t, 1, lines...)[0]
}

// CassandraCluster starts so many nodes, at 127.0.0.1, 127.0.0.2 and so on, one after the other.
func CassandraCluster(t testing.TB, n int, lines ...string) (nodes []*CassandraServer) {
	t.Helper()
	java := java17("java")
	version, _ := exec.Command(java, "-version").CombinedOutput() // it runs on no later one; none says nothing
	Need(t, "openjdk-17-jre-headless", strings.Contains(string(version), `version "17.`))
	lib := cassandraLib(t)
	file := func(name string) string {
		b, err := cassandraFiles.ReadFile("cassandra/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	port, storage := 0, 0
	for i := range n {
		s := &CassandraServer{java: java, lib: lib}
		s.prepare(t, "cassandra")
		// What is acknowledged is to outlive a SIGKILL, not the machine.
		log, err := os.MkdirTemp("/dev/shm", dirPrefix()+"*")
		if err == nil {
			t.Cleanup(func() { os.RemoveAll(log) })
		} else {
			log = filepath.Join(s.dir, "commitlog")
		}
		s.begin(func() {
			if i == 0 {
				port, storage = freePort(t), freePort(t)
			}
			host := fmt.Sprintf("127.0.0.%d", 1+i)
			s.Addr = fmt.Sprintf("%s:%d", host, port)
			s.yaml = file("cassandra.yaml") + fmt.Sprintf("listen_address: %[1]s\nrpc_address: %[1]s\nstorage_port: %[2]d\nnative_transport_port: %[3]d\n", host, storage, port) +
				"commitlog_directory: " + log + "\nauto_bootstrap: false\nstart_native_transport: true\n" +
				"seed_provider:\n  - class_name: org.apache.cassandra.locator.SimpleSeedProvider\n" +
				fmt.Sprintf("    parameters:\n      - seeds: \"127.0.0.1:%d\"\n", storage) + strings.Join(append(lines, ""), "\n")
			for _, name := range []string{"logback.xml", "options", "rackdc"} {
				if err := os.WriteFile(filepath.Join(s.dir, name), []byte(file(name)), 0o600); err != nil {
					t.Fatalf("testserver: cassandra: %v", err)
				}
			}
		}, s.start)
		t.Cleanup(s.Kill) // at SIGTERM it would write down what nobody wants
		nodes = append(nodes, s)
	}
	return nodes
}

func java17(program string) string { return find("../lib/jvm/java-17-*/bin/"+program, program) }

// cassandraLib returns the folder of the server's jars.
func cassandraLib(t testing.TB) string {
	t.Helper()
	pom, err := cassandraFiles.ReadFile("cassandra/pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "sessile-testserver")
	dir := filepath.Join(cache, fmt.Sprintf("cassandra-%x", sha256.Sum256(pom))[:26])
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	mvn := find("mvn")
	Need(t, "maven", mvn != "")
	tmp := tempDir(t)
	if err := firstError(os.MkdirAll(cache, 0o755), os.WriteFile(filepath.Join(tmp, "pom.xml"), pom, 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := os.MkdirTemp(cache, "tmp-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(got)
	cmd := exec.Command(mvn, "-q", "-B", "-f", tmp, "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+got)
	late := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() }) // 66 MB; what has ended is no error
	defer late.Stop()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		Need(t, "packages from Maven", false)
	}
	if err := os.Rename(got, dir); err != nil {
		if _, there := os.Stat(dir); there != nil { // another process was not faster
			t.Fatal(err)
		}
	}
	return dir
}

// Restart kills the server if it runs and starts it again at the same address, with its data, and further lines of its
// cassandra.yaml.
func (s *CassandraServer) Restart(lines ...string) {
	s.t.Helper()
	s.Kill()
	s.yaml += strings.Join(append(lines, ""), "\n")
	s.again(s.start)
}

// start starts the server and waits until it serves CQL.
func (s *CassandraServer) start() error {
	before := 0
	if _, err := os.Stat(s.logPath()); err == nil {
		before = len(s.Log())
	}
	path := func(name string) string { return filepath.Join(s.dir, name) }
	if err := os.WriteFile(path("cassandra.yaml"), []byte(s.yaml), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(s.java, "@"+path("options"), "-Dcassandra.config=file://"+path("cassandra.yaml"), "-Dlogback.configurationFile="+path("logback.xml"),
		"-Dcassandra-rackdc.properties=file://"+path("rackdc"), // for GossipingPropertyFileSnitch
		"-Dcassandra.storagedir="+path("data"), "-Dcassandra.logdir="+path("data"), "-cp", filepath.Join(s.lib, "*"),
		"org.apache.cassandra.service.CassandraDaemon")
	return s.server.start(cmd, syscall.SIGKILL, func() (bool, error) {
		return strings.Contains(s.Log()[before:], "Startup complete"), nil
	})
}
