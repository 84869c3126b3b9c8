package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ListenURL opens a listener:
//
//	redis://host:port
//	redis+tls://host:port?cert=FILE&key=FILE&client_ca=FILE   TLS 1.2 or later; the files are read again when they change
//	redis+unix:///path?mode=0660&owner=user:group             mode 0660 and the process's own user by default
//	fd://3, fd://name                                         inherited from systemd (LISTEN_FDS), with cert= ... also for TLS
//	memcached://host:port?client=php-memcached&prefix=TEXT    and memcached+tls, memcached+unix, memcached+fd; see front
func ListenURL(raw string) (net.Listener, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error quotes what it could not parse.
		return nil, errors.New("gateway: listen: not a URL")
	}
	l, err := listen(u)
	if err != nil {
		return nil, fmt.Errorf("gateway: listen %s://%s%s: %w", u.Scheme, u.Host, u.Path, err)
	}
	return l, nil
}

func listen(u *url.URL) (l net.Listener, err error) {
	q := u.Query()
	if err := onlyKnown(u, q); err != nil {
		return nil, err
	}
	protocol, transport, _ := strings.Cut(u.Scheme, "+")
	var f *front
	if protocol == "memcached" {
		if f, err = newFront(q); err != nil {
			return nil, err
		}
	}
	var files *tlsFiles
	if transport == "tls" || q.Has("cert") || q.Has("key") {
		if files, err = loadTLS(q.Get("cert"), q.Get("key"), q.Get("client_ca")); err != nil {
			return nil, err
		}
	}
	switch u.Scheme {
	case "redis", "redis+tls", "memcached", "memcached+tls":
		if u.Port() == "" {
			return nil, errors.New("no port")
		}
		l, err = net.Listen("tcp", u.Host)
	case "redis+unix", "memcached+unix":
		l, err = listenUnix(u.Path, q.Get("mode"), q.Get("owner"))
	case "fd", "memcached+fd":
		l, err = inherited(u.Host)
	default:
		err = errors.New("not a scheme we listen at: redis, redis+tls, redis+unix, memcached, memcached+tls, memcached+unix, memcached+fd, fd")
	}
	if err != nil {
		return nil, err
	}
	if files != nil {
		l = &tlsListener{Listener: l, files: files, config: &tls.Config{GetConfigForClient: files.config}}
	}
	if protocol == "memcached" {
		l = &memcachedListener{l, f}
	}
	return l, nil
}

func onlyKnown(u *url.URL, q url.Values) error {
	allowed := map[string]string{"redis": "", "redis+tls": "cert key client_ca", "redis+unix": "mode owner", "fd": "cert key client_ca",
		"memcached": "client prefix", "memcached+tls": "client prefix cert key client_ca", "memcached+unix": "client prefix mode owner",
		"memcached+fd": "client prefix cert key client_ca"}
	for name := range q {
		if !strings.Contains(" "+allowed[u.Scheme]+" ", " "+name+" ") {
			return fmt.Errorf("unknown parameter %q", name)
		}
	}
	switch {
	case u.User != nil:
		return errors.New("users belong to the site, not to the listener")
	case !strings.HasSuffix(u.Scheme, "+unix") && u.Path != "" && u.Path != "/":
		return errors.New("a path says nothing here: the database is a property of the site")
	case strings.HasSuffix(u.Scheme, "+unix") && u.Host != "":
		return errors.New("three slashes are needed before the path")
	}
	return nil
}

// maxUnixPath is the size of sun_path without its NUL; the kernel would cut a longer one off (unix(7)).
const maxUnixPath = 107

func listenUnix(path, mode, owner string) (net.Listener, error) {
	if path == "" || len(path) > maxUnixPath {
		return nil, fmt.Errorf("a socket's path has 1 to %d bytes", maxUnixPath)
	}
	perm := uint64(0o660)
	if mode != "" {
		var err error
		if perm, err = strconv.ParseUint(mode, 8, 9); err != nil {
			return nil, errors.New("mode is not an octal number up to 0777")
		}
	}
	uid, gid, err := lookupOwner(owner)
	if err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Linux gives the file the mode of the descriptor: nobody can connect before the mode is as it shall be.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, fs.FileMode(perm))); err != nil {
		l.Close()
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	return &unixListener{UnixListener: u, remove: sync.OnceFunc(func() { os.Remove(path) })}, nil
}

// unixListener is one whose file is not removed before it is closed: net's is when its descriptor is handed on.
type unixListener struct {
	*net.UnixListener
	remove func()
}

func (l *unixListener) Close() error {
	defer l.remove()
	return l.UnixListener.Close()
}

// removeStale removes a socket that a gateway left behind when it was killed, if nobody listens there.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file that is not a socket")
	}
	nc, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		nc.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return errors.New("somebody listens there")
	}
	return os.Remove(path)
}

// lookupOwner reads "user", "user:group" or ":group", by name or number; -1 leaves as it is.
func lookupOwner(owner string) (uid, gid int, err error) {
	name, group, _ := strings.Cut(owner, ":")
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	if g, err := user.LookupGroup(group); err == nil {
		group = g.Gid
	}
	id := func(s string) int {
		if s == "" {
			return -1
		}
		n, parseErr := strconv.ParseUint(s, 10, 31)
		if parseErr != nil {
			err = fmt.Errorf("there is no owner %q", owner)
		}
		return int(n)
	}
	return id(name), id(group), err
}

const firstInherited = 3 // SD_LISTEN_FDS_START

// inherited returns the listener that systemd passed under a number or name (sd_listen_fds(3)).
func inherited(which string) (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("no sockets were passed to this process (LISTEN_PID)")
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || count < 0 {
		return nil, errors.New("LISTEN_FDS is not a count")
	}
	fd, err := strconv.Atoi(which)
	if err != nil {
		fd = -1
		for i, name := range strings.Split(os.Getenv("LISTEN_FDNAMES"), ":") {
			if name == which && fd < 0 {
				fd = firstInherited + i
			}
		}
	}
	if fd < firstInherited || fd >= firstInherited+count {
		return nil, fmt.Errorf("it is not among the %d sockets that were passed", count)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // FileListener works on a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		return &unixListener{UnixListener: u, remove: func() {}}, nil // the file is systemd's
	}
	return l, nil
}

// tlsListener makes TLS connections. The handshake is done by the connection's own goroutine, at its first read.
type tlsListener struct {
	net.Listener
	files  *tlsFiles
	config *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(nc, l.config), nil
}

// tlsFiles are the certificate, its key and the authority of clients, as they lie on disk. New ones are taken up within
// a second; ones that cannot be used are not, and those before them stay.
type tlsFiles struct {
	cert, key, clientCA string

	mu      sync.Mutex // guards what follows
	current *tls.Config
	state   []fs.FileInfo // of the files when current was made
	looked  time.Time
}

func loadTLS(cert, key, clientCA string) (*tlsFiles, error) {
	if cert == "" || key == "" {
		return nil, errors.New("TLS needs cert and key")
	}
	f := &tlsFiles{cert: cert, key: key, clientCA: clientCA, looked: time.Now()}
	f.state = f.stat()
	var err error
	f.current, err = f.read()
	return f, err
}

func (f *tlsFiles) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.clientCA != "" {
		pem, err := os.ReadFile(f.clientCA)
		if err != nil {
			return nil, err
		}
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("client_ca has no certificate")
		}
	}
	return config, nil
}

func (f *tlsFiles) stat() (all []fs.FileInfo) {
	for _, name := range []string{f.cert, f.key, f.clientCA} {
		info, _ := os.Stat(name) // nil is a state too
		all = append(all, info)
	}
	return all
}

// unchanged reports whether a and b are the same files in the same state: one may have taken the other's place by a
// link or a rename.
func unchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (f *tlsFiles) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= time.Second {
		f.looked = now
		if state := f.stat(); !slices.EqualFunc(state, f.state, unchanged) {
			if config, err := f.read(); err == nil {
				f.current, f.state = config, state
			}
		}
	}
	return f.current, nil
}
