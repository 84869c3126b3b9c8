package testserver

import (
	"context"
	"embed"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// RTSite is a RequestTracker 5 that belongs to one test: a database rt5 with users, and any number of web servers. Nothing
// of the machine's own RequestTracker is read or written.
type RTSite struct {
	Port int // of every server

	t       testing.TB
	dir     string
	program string
	db      string // lines of RT_SiteConfig.pm
	servers int
}

// RTPassword is what every user of an RTSite logs in with.
const RTPassword = "correct horse"

// RTDatabase is a server on which RequestTracker can have its database: a MariaDBServer, a PostgresServer.
type RTDatabase interface {
	// forRT returns the lines of RT_SiteConfig.pm that say where it is, the user who may make databases, and the driver.
	forRT() (lines, dba, driver string)
}

func (s *MariaDBServer) forRT() (lines, dba, driver string) {
	return fmt.Sprintf("Set($DatabaseType, 'mysql');\nSet($DatabaseRTHost, '127.0.0.1');\nSet($DatabasePort, '%d');\n", s.port), "root", "mysql"
}

func (s *PostgresServer) forRT() (lines, dba, driver string) {
	return fmt.Sprintf("Set($DatabaseType, 'Pg');\nSet($DatabasePort, '%d');\n", s.port), "postgres", "Pg"
}

// perl is an Apache::Session::Redis.
//
//go:embed perl
var perl embed.FS

// RT makes a RequestTracker's database, with users who may do everything.
func RT(t testing.TB, db RTDatabase, users ...string) *RTSite {
	t.Helper()
	lines, dba, driver := db.forRT()
	setup := find("rt-setup-database-5", "rt-setup-database")
	// Debian keeps the web server out of everybody's way.
	s := &RTSite{t: t, program: find("rt-server", "../share/request-tracker5/libexec/rt-server")}
	Need(t, "request-tracker5", setup != "" && s.program != "")
	for _, module := range []string{"DBD::" + driver, "Starlet", "Apache::Session", "Redis"} {
		Need(t, "Perl's "+module, exec.Command("perl", "-M"+module, "-e", "1").Run() == nil)
	}
	s.dir, s.Port = tempDir(t), freePort(t)
	s.db = lines + "Set($DatabaseHost, '127.0.0.1');\nSet($DatabaseName, 'rt5');\nSet($DatabaseUser, 'rt');\nSet($DatabasePassword, 'rt');\n"
	data := "our @ACL = ({ GroupDomain => 'SystemInternal', GroupType => 'Privileged', Right => 'SuperUser' });\nour @Users = (\n"
	for _, u := range users {
		data += fmt.Sprintf("{ Name => '%s', Password => '%s', EmailAddress => '%s@example.com', Privileged => 1 },\n", u, RTPassword, u)
	}
	datafile := filepath.Join(s.dir, "users")
	if err := firstError(os.CopyFS(s.dir, perl), os.WriteFile(datafile, []byte(data+");\n1;\n"), 0o600)); err != nil {
		t.Fatalf("testserver: RequestTracker: %v", err)
	}
	env := s.configure(s.dir, "")
	for _, args := range [][]string{{"--action", "init", "--dba", dba}, {"--action", "insert", "--dba", dba, "--datafile", datafile}} {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, setup, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("testserver: %s: %v\n%s", filepath.Base(setup), err, out)
		}
	}
	return s
}

// configure writes RT_SiteConfig.pm into dir and returns the environment of a program that shall read this one only.
// Compiled pages are shared: to compile them anew for every server is most of what a test would wait for.
func (s *RTSite) configure(dir, lines string) (env []string) {
	s.t.Helper()
	config := filepath.Join(dir, "RT_SiteConfig.pm")
	text := s.db + fmt.Sprintf(`Set($rtname, 'example.com');
Set($Organization, 'example.com');
Set($WebDomain, '127.0.0.1');
Set($WebPort, %d);
Set($WebPath, '');
Set($Timezone, 'UTC');
Set($MailCommand, 'mbox');
Set($BcryptCost, 4);
Set($LogToSyslog, undef);
Set($LogToSTDERR, 'warning');
Set(%%GnuPG, Enable => 0);
Set(%%SMIME, Enable => 0);
$RT::VarPath = '%[2]s';
$RT::MasonDataDir = '%[2]s/mason';
$RT::MasonSessionDir = '%[2]s/sessions';
%[3]s
1;
`, s.Port, s.dir, lines)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		s.t.Fatalf("testserver: RequestTracker: %v", err)
	}
	return append(os.Environ(), "RT_SITE_CONFIG="+config, "RT_SITE_CONFIG_DIR="+filepath.Join(dir, "none"),
		"PERL5LIB="+filepath.Join(s.dir, "perl"))
}

// RTServer is a web server of an RTSite.
type RTServer struct {
	server

	// Addr is "127.0.0.n:port": each server of a site is a host of its own, since RT names its cookie after the port.
	Addr string
}

// Server starts a web server of the site, with so many processes that serve a request at a time each, and stops it after
// the test. Further lines of RT_SiteConfig.pm go behind ours.
func (s *RTSite) Server(processes int, lines string) *RTServer {
	s.t.Helper()
	s.servers++
	host := fmt.Sprintf("127.0.0.%d", s.servers)
	r := &RTServer{Addr: net.JoinHostPort(host, fmt.Sprint(s.Port))}
	r.prepare(s.t, "RequestTracker")
	cmd := exec.Command(s.program, "--host", host, "--port", fmt.Sprint(s.Port), "--max-workers", fmt.Sprint(processes),
		"--max-reqs-per-child", "1000000")
	cmd.Env = s.configure(r.dir, lines)
	// The processes do not end with the first of them when it is killed.
	err := r.start(cmd, syscall.SIGTERM, func() (bool, error) {
		resp, err := http.Get("http://" + r.Addr + "/static/images/request-tracker-logo.svg") // makes no session
		if err != nil {
			return false, nil
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
	if err != nil {
		s.t.Fatalf("testserver: RequestTracker: %v\n%s", err, r.Log())
	}
	return r
}
