package testapp

import (
	"bytes"
	"cmp"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// Client is a client library of Redis that finds the server by itself: it is told of Sentinels, or of nodes of a Cluster.
type Client struct {
	Name    string
	Cluster bool // else Sentinel

	says  string // "" is handled
	start func(t testing.TB, kind, addr, master string) *exec.Cmd
}

// Clients are all of them.
var Clients = []Client{
	{Name: "phpredis, RedisSentinel and Redis", start: phpClient("phpredis")},
	{Name: "phpredis, RedisCluster", Cluster: true, start: phpClient("phpredis")},
	{Name: "predis, Sentinel", start: phpClient("predis")},
	{Name: "predis, Cluster", Cluster: true, start: phpClient("predis")},
	{Name: "Redis.pm", start: perlClient("Redis", "libredis-perl", "itself")},
	{Name: "Redis::Fast", start: perlClient("Redis::Fast", "libredis-fast-perl", "itself")},
	{Name: "Apache::Session::Browseable by Redis.pm", says: pagesBy("Redis"), start: perlClient("Redis", "libredis-perl", "sessions")},
	{Name: "Apache::Session::Browseable by Redis::Fast", says: pagesBy("Redis::Fast"), start: perlClient("Redis::Fast", "libredis-fast-perl", "sessions")},
	{Name: "redis-py, Sentinel", start: pythonClient},
	{Name: "redis-py, RedisCluster", Cluster: true, start: pythonClient},
	{Name: "redis-py of Debian, Sentinel", start: debianPythonClient},
	{Name: "redis-py of Debian, RedisCluster", Cluster: true, start: debianPythonClient},
	{Name: "ioredis, sentinels", start: nodeClient("ioredis")},
	{Name: "ioredis, Cluster", Cluster: true, start: nodeClient("ioredis")},
	{Name: "node-redis, createSentinel", start: nodeClient("noderedis")},
	{Name: "node-redis, createCluster", Cluster: true, start: nodeClient("noderedis")},
	{Name: "go-redis, FailoverClient", start: goClient("go-redis")},
	{Name: "go-redis, ClusterClient", Cluster: true, start: goClient("go-redis")},
	{Name: "rueidis, Sentinel", start: goClient("rueidis")},
	{Name: "rueidis, Cluster", Cluster: true, start: goClient("rueidis")},
}

func phpClient(library string) func(testing.TB, string, string, string) *exec.Cmd {
	return func(t testing.TB, kind, addr, master string) *exec.Cmd {
		bin := testserver.PHP(t).Path
		if library == "predis" {
			testserver.Need(t, "php-nrk-predis", exec.Command(bin, "-r", "include 'Predis/autoload.php' or exit(1);").Run() == nil)
		}
		return exec.Command(bin, "-d", "display_errors=stderr", "-f", filepath.Join(here(), "php", "clients.php"), "--", library, kind, addr, master)
	}
}

// perlClient runs a library for its own sake or under the sessions of Apache::Session::Browseable.
func perlClient(library, name, purpose string) func(testing.TB, string, string, string) *exec.Cmd {
	return func(t testing.TB, _, addr, master string) *exec.Cmd {
		bin, _ := exec.LookPath("perl")
		testserver.Need(t, "perl", bin != "")
		for module, name := range map[string]string{library: name, "Apache::Session::Browseable": "libapache-session-browseable-perl"} {
			testserver.Need(t, name, exec.Command(bin, "-M"+module, "-e", "1").Run() == nil)
		}
		return exec.Command(bin, filepath.Join(here(), "perl", "clients.pl"), library, purpose, addr, master)
	}
}

func pythonClient(t testing.TB, kind, addr, master string) *exec.Cmd {
	return pythonScript(t, "clients.py", kind, addr, master)
}

// debianPythonClient is that of Debian's Python, which need not be the first in the path.
func debianPythonClient(t testing.TB, kind, addr, master string) *exec.Cmd {
	const bin = "/usr/bin/python3"
	testserver.Need(t, "python3-redis", exec.Command(bin, "-c", "import redis").Run() == nil)
	return exec.Command(bin, filepath.Join(here(), "python", "clients.py"), kind, addr, master)
}

func nodeClient(library string) func(testing.TB, string, string, string) *exec.Cmd {
	return func(t testing.TB, kind, addr, master string) *exec.Cmd {
		return nodeScript(t, "clients.js", library, kind, addr, master)
	}
}

func goClient(library string) func(testing.TB, string, string, string) *exec.Cmd {
	return func(t testing.TB, kind, addr, master string) *exec.Cmd {
		return goProgram(t, "goclients", library, kind, addr, master)
	}
}

const handled = `get: null
setex: true
get: "v"
expire: 1
ttl: true
lock: true
lock: false
release: 1
exists: 1
del: 1
pipeline: [true,true,true]
mget: ["a1","b1",null,"c1"]
del: 2
unlink: 1
`

func pagesBy(library string) string {
	return fmt.Sprintf("library: %q\nchange: \"vw\"\nread: \"vw\"\nread: null\n", library)
}

// Want is what Run is to return when the server that the client finds is at where.
func (c Client) Want(where string) string {
	return fmt.Sprintf("where: %q\n%s", where, cmp.Or(c.says, handled))
}

// Run has the client find the server from addr, which is that of Sentinels or nodes with commas between, and do what a session
// handler does. It returns what came of it.
func (c Client) Run(t testing.TB, addr, master string) string {
	t.Helper()
	kind := "sentinel"
	if c.Cluster {
		kind = "cluster"
	}
	cmd := c.start(t, kind, addr, master)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("testapp: %s: %v", c.Name, err)
	}
	late := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("testapp: %s: %v\n%s", c.Name, err, stderr.Bytes())
	}
	return out.String()
}
