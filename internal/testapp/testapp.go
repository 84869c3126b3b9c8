// Package testapp gives a test the session library of a real application: what that makes in a table, and what it reads
// in Redis. Libraries that Debian has are installed by scripts/setup.sh; those of npm, PyPI and Go are fetched by the first
// test that wants them, as lock files beside them say, into the user's cache folder.
package testapp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
)

// App is an application whose sessions are in a table, and later in Redis.
type App struct {
	Name    string
	Preset  string
	Servers []string // mysql, postgres
	Params  string   // of the origin's URL, besides the preset
	// Key is what its Redis library puts before the id.
	Key string
	// ID is what begins each id, to the length that the application has: "" takes any.
	ID string
	// Life is how long its sessions live; with OneLife all of them, as the origin's URL says, too.
	Life    time.Duration
	OneLife bool
	// Fixed: a session ends a lifetime after it began, whatever happens to it.
	Fixed bool
	// Lazy: what is over is a session until it is collected.
	Lazy bool
	// Hashed: the table has hashes of ids, and cannot be listed.
	Hashed bool
	// Latin1: its library for Redis can write no other letters, though it reads them.
	Latin1 bool
	// NoTTL: its library for Redis names no lifetime.
	NoTTL bool
	// BySchema: there is no library of it here, only what is known of its table.
	BySchema bool
	// NoEmpty: a session without data is none.
	NoEmpty bool
	// Locks: a page that is open has the session for itself.
	Locks bool

	start func(t testing.TB, url string) *exec.Cmd
}

// Apps are all of them.
var Apps = []App{
	{Name: "Symfony", Preset: "symfony", Servers: []string{"mysql", "postgres"}, Key: "sf_s", Life: time.Hour, NoEmpty: true, Locks: true, start: phpLibrary("symfony.php", "php-symfony-http-foundation", "Symfony/Component/HttpFoundation")},
	{Name: "express-mysql-session", Preset: "express-mysql-session", Servers: []string{"mysql"}, Key: "sess:", Life: time.Hour, start: node},
	{Name: "connect-pg-simple", Preset: "connect-pg-simple", Servers: []string{"postgres"}, Key: "sess:", Life: time.Hour, start: node},
	{Name: "Django", Preset: "django", Servers: []string{"mysql", "postgres"}, Key: "session:", Life: time.Hour, start: python},
	{Name: "Laravel", Preset: "laravel", Servers: []string{"mysql", "postgres"}, Params: "&lifetime=2h", Key: "laravel_database_laravel_cache:",
		ID: "Laravel8", Life: 2 * time.Hour, OneLife: true, start: phpLibrary("laravel.php", "php-illuminate-*", "Illuminate/Session")},
	{Name: "scs", Preset: "scs", Servers: []string{"mysql", "postgres"}, Key: "scs:session:", ID: "Scs-Token_2", Life: time.Hour, start: scs},
	{Name: "LemonLDAP", Preset: "lemonldap", Servers: []string{"mysql", "postgres"}, Params: "&lifetime=1h",
		ID: "abcdef0123456789abcdef0123456789", Life: time.Hour, OneLife: true, Fixed: true, Lazy: true, NoTTL: true, Latin1: true, start: perl},

	bySchema(App{Name: "CodeIgniter 4", Preset: "codeigniter", Key: "ci_session:ci_session:", OneLife: true, Lazy: true, Locks: true}),
	bySchema(App{Name: "CodeIgniter 3", Preset: "codeigniter3", Key: "ci_session:", OneLife: true, Lazy: true, Locks: true}),
	bySchema(App{Name: "Drupal", Preset: "drupal", Key: "PHPREDIS_SESSION:", OneLife: true, Lazy: true, Hashed: true}),
	bySchema(App{Name: "Joomla", Preset: "joomla", Key: "jfw", OneLife: true, Lazy: true}),
	bySchema(App{Name: "Moodle", Preset: "moodle", Key: "moodle_", OneLife: true, Lazy: true}),
	bySchema(App{Name: "Magento", Preset: "magento", Servers: []string{"mysql"}, Key: "PHPREDIS_SESSION:", OneLife: true, Lazy: true}),
	bySchema(App{Name: "Yii 2", Preset: "yii2", Key: "PHPREDIS_SESSION:"}),
	bySchema(App{Name: "Rails", Preset: "rails", Key: "rack:session:", ID: "2::01234567890123456789012345678901", OneLife: true, Lazy: true}),
	bySchema(App{Name: "MediaWiki", Preset: "mediawiki", Servers: []string{"mysql"}, ID: "wiki:MWSession:"}),
}

// bySchema is an application without a package that the tests could have: its table, statements and bodies are written down
// in byschema.php.
func bySchema(a App) App {
	a.Life, a.BySchema = time.Hour, true
	if a.Servers == nil {
		a.Servers = []string{"mysql", "postgres"}
	}
	if a.OneLife {
		a.Params = "&lifetime=1h"
	}
	run := php("byschema.php")
	a.start = func(t testing.TB, url string) *exec.Cmd { return run(t, a.Preset, url) }
	return a
}

// here is the folder of this package, where the libraries' programs are.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// php returns what runs a script with arguments.
func php(script string) func(testing.TB, ...string) *exec.Cmd {
	return func(t testing.TB, args ...string) *exec.Cmd {
		bin := testserver.PHP(t).Path
		extensions, err := exec.Command(bin, "-m").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, ext := range []string{"mysql", "pgsql"} {
			testserver.Need(t, "php-"+ext, bytes.Contains(extensions, []byte("pdo_"+ext)))
		}
		args = append([]string{"-d", "session.save_path=" + t.TempDir(), "-f", filepath.Join(here(), "php", script), "--"}, args...)
		return exec.Command(bin, args...)
	}
}

// phpLibrary is the same for a library of a Debian package, which is found in its folder.
func phpLibrary(script, name, folder string) func(testing.TB, string) *exec.Cmd {
	run := php(script)
	return func(t testing.TB, url string) *exec.Cmd {
		_, err := os.Stat(filepath.Join("/usr/share/php", folder))
		testserver.Need(t, name, err == nil)
		return run(t, url)
	}
}

func node(t testing.TB, url string) *exec.Cmd { return nodeScript(t, "express.js", url) }

func nodeScript(t testing.TB, script string, args ...string) *exec.Cmd {
	bin, _ := exec.LookPath("node")
	testserver.Need(t, "nodejs", bin != "")
	modules := fetch(t, "npm", "node", []string{"package.json", "package-lock.json"}, func(dir string) *exec.Cmd {
		return exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved", "--prefix", dir)
	})
	cmd := exec.Command(bin, append([]string{filepath.Join(here(), "node", script)}, args...)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(modules, "node_modules"))
	return cmd
}

func python(t testing.TB, url string) *exec.Cmd { return pythonScript(t, "django_app.py", url) }

func pythonScript(t testing.TB, script string, args ...string) *exec.Cmd {
	bin, _ := exec.LookPath("python3")
	testserver.Need(t, "python3", bin != "")
	packages := fetch(t, "pip", "python", []string{"requirements.txt"}, func(dir string) *exec.Cmd {
		return exec.Command(bin, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
			"--target", dir, "--requirement", filepath.Join(dir, "requirements.txt"))
	})
	cmd := exec.Command(bin, append([]string{filepath.Join(here(), "python", script)}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+packages, "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

func perl(t testing.TB, url string) *exec.Cmd {
	bin, _ := exec.LookPath("perl")
	testserver.Need(t, "perl", bin != "")
	for module, name := range map[string]string{"Apache::Session::Browseable": "libapache-session-browseable-perl", "DBD::mysql": "libdbd-mysql-perl",
		"DBD::Pg": "libdbd-pg-perl", "Redis": "libredis-perl"} {
		testserver.Need(t, name, exec.Command(bin, "-M"+module, "-e", "1").Run() == nil)
	}
	return exec.Command(bin, filepath.Join(here(), "perl", "browseable.pl"), url)
}

func scs(t testing.TB, url string) *exec.Cmd { return goProgram(t, "scs", url) }

func goProgram(t testing.TB, name string, args ...string) *exec.Cmd {
	built := fetch(t, "the Go module proxy", name, []string{"go.mod", "go.sum", "main.go"}, func(dir string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), ".")
		cmd.Dir = filepath.Join(here(), name)
		return cmd
	})
	return exec.Command(filepath.Join(built, name), args...)
}

// step is what a library is asked, and answer what it says to it; each is a line of JSON.
type step struct {
	Do   string `json:"do"`
	ID   string `json:"id,omitempty"`
	Text string `json:"text,omitempty"`
	Life int    `json:"life,omitempty"` // in seconds
}

type answer struct {
	Found bool
	Text  string
	Error string
}

// Library is that of an application, with its sessions in a database or in Redis.
type Library struct {
	t      testing.TB
	in     io.WriteCloser
	out    *json.Decoder
	stderr bytes.Buffer
	ended  chan struct{}
}

// Start starts the application's library on what url says, until the test ends. It lives in another time zone than
// anybody else.
func (a App) Start(t testing.TB, url string) *Library {
	t.Helper()
	l := &Library{t: t, ended: make(chan struct{})}
	cmd := a.start(t, url)
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "TZ=America/St_Johns")
	cmd.Stderr = &l.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.in, l.out = in, json.NewDecoder(out)
	if err := cmd.Start(); err != nil {
		t.Fatalf("testapp: %s: %v", a.Name, err)
	}
	t.Cleanup(func() {
		in.Close() // each ends with its input
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		cmd.Wait()
	})
	return l
}

func (l *Library) do(s step) (a answer) {
	l.t.Helper()
	err := json.NewEncoder(l.in).Encode(s)
	if err == nil {
		err = l.out.Decode(&a)
	}
	if err != nil {
		l.t.Fatalf("testapp: %s: %v\n%s", s.Do, err, l.stderr.Bytes())
	}
	if a.Error != "" {
		l.t.Fatalf("testapp: %s of %s: %s", s.Do, s.ID, a.Error)
	}
	return a
}

// Create makes the table.
func (l *Library) Create() { l.t.Helper(); l.do(step{Do: "create"}) }

// Write is a page that keeps a text in the session, which lives for life from then on. Without a text it keeps nothing.
func (l *Library) Write(id, text string, life time.Duration) {
	l.t.Helper()
	l.do(step{"write", id, text, int(life.Seconds())})
}

// Read returns the text that the session keeps, and whether there is one; it touches nothing.
func (l *Library) Read(id string) (text string, found bool) {
	l.t.Helper()
	a := l.do(step{Do: "read", ID: id})
	return a.Text, a.Found
}

// Destroy is a logout.
func (l *Library) Destroy(id string) { l.t.Helper(); l.do(step{Do: "destroy", ID: id}) }

// Collect removes what is over.
func (l *Library) Collect() { l.t.Helper(); l.do(step{Do: "gc"}) }

// Open begins a page, which ends with Close; meanwhile it holds the lock of an application that has one.
func (l *Library) Open(id string) { l.t.Helper(); l.do(step{Do: "open", ID: id}) }

// Close ends the page that is open, which wrote nothing.
func (l *Library) Close() { l.t.Helper(); l.do(step{Do: "close"}) }

// Each runs test for all applications that it is for, on each kind of server that they can be on, several at a time: most
// of their time they wait.
func Each(t *testing.T, of func(App) bool, test func(t *testing.T, app App, scheme string)) {
	var wg sync.WaitGroup
	seats := make(chan struct{}, 14)
	for _, app := range Apps {
		for _, scheme := range app.Servers {
			if !of(app) {
				continue
			}
			wg.Go(func() {
				seats <- struct{}{}
				defer func() { <-seats }()
				t.Run(app.Name+", "+scheme, func(t *testing.T) { test(t, app, scheme) })
			})
		}
	}
	wg.Wait()
}

// NewID is one that the application could have made.
func (a App) NewID(n int) string { return fmt.Sprintf("%s%032x", a.ID, n) }
