// Package file keeps sessions in a directory, as PHP's files handler does: one file per session, its deadline in the
// file's modification time, its lock a flock on the file itself. PHP may use the same directory at the same time.
//
// What lies in the directory beside sess_* is one file, .sessile, with identity and seal. PHP's collector and Debian's
// sessionclean remove sess_* only.
//
// Durability is PHP's: sessions are written into the page cache and not synchronised, so a process may die at any
// moment and a machine may not. See Store.Save for what a kill in the middle of a write can leave.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

// Options say how the application's PHP is set up. Only Lifetime is required.
type Options struct {
	// Lifetime is PHP's session.gc_maxlifetime: a session's deadline is its file's mtime plus Lifetime.
	Lifetime time.Duration
	// Layout is who else uses the directory. The default is PHP.
	Layout Layout
	// LockDir is the LockDirectory of Apache::Session::File, which has one; without it nobody's lock is known.
	LockDir string
	// ToBase64: a session's body is the Base64 of its file, as Perl's MIME::Base64 writes it. See Layout.
	ToBase64 bool
	// Depth is the number of directory levels, the N of a save path "N;MODE;/path". Like PHP, the store never makes
	// these directories.
	Depth int
	// Mode of new files, exactly, whatever the umask. 0 means 0600.
	Mode fs.FileMode
	// Owner of new files; files that exist keep theirs. PHP refuses a file that belongs neither to root nor to its
	// own user, and with an Owner so does this store. Where several users have sessions in one directory it is
	// therefore needed, or one of them can plant a session for another's application. nil means the one user whose
	// session files lie there already; else the directory's owner; else, for a directory of root's, root if only root
	// can make files in it, otherwise this process's user. A process with CAP_CHOWN does not guess then, it refuses
	// to make new files: a file of root's with mode 0600 is one that PHP accepts and cannot open.
	Owner *Owner
	// MaxValue is the size in bytes of the largest session that is read or written. 0 means 1 MiB.
	MaxValue int
	// OpBound is the longest time from the beginning of an operation, or from the end of its wait for somebody else's
	// lock, to the system call that writes. 0 means 2 s. A system call that hangs (a network file system) it cannot
	// interrupt.
	OpBound time.Duration
	// Logger is told of what is worth knowing at the start. nil means slog.Default().
	Logger *slog.Logger
}

// Owner of a file.
type Owner struct{ UID, GID int }

// Store is a directory of sessions. It implements store.Origin.
type Store struct {
	opt      Options
	dir      int   // O_PATH
	lockDir  int   // O_PATH; -1: locks are on the sessions' files
	cantList error // why Scan is impossible; nil if it is possible
	cantSave error // why nothing can be written
	cantMake error // why no file can be made
	owner    Owner // of new files; UID is -1 where nobody knows
	euid     int
	egid     int
	caps     uint64
	stable   bool // a position in a directory means the same after the directory was opened anew

	visible atomic.Bool // the file system knows no O_TMPFILE: see make

	closed atomic.Bool
	live   sync.RWMutex // held for reading wherever dir is used; Close takes it for writing
	seal   sync.RWMutex // lets SwapMark in among this process's writes; taken before the flock on .sessile

	// mu guards what follows and is held across no system call but close. Order: live, a file's io, seal, mu.
	mu       sync.Mutex
	table    map[string]*entry
	blocked  int // goroutines that wait in flock(2)
	walks    map[uint64]*walk
	lastWalk uint64
}

const (
	defaultMaxValue = 1 << 20
	defaultOpBound  = 2 * time.Second
	maxDepth        = 16
)

var params = []string{"layout", "lock_dir", "codec", "lifetime", "depth", "mode", "owner", "max_value", "op_bound"}

// OpenURL opens file:///var/lib/php/sessions?layout=php&lifetime=1440s&depth=2&mode=0640&owner=www-data:www-data, or
// file:///var/cache/app/sessions?layout=apache-session&lock_dir=/var/cache/app/locks&lifetime=12h&codec=to-base64.
func OpenURL(ctx context.Context, u *url.URL) (*Store, error) {
	if u.Scheme != "file" || u.Host != "" || u.Opaque != "" || u.User != nil {
		return nil, errors.New("store/file: write file:///absolute/path?layout=php&lifetime=1440s")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("store/file: parameters: %w", err)
	}
	var opt Options
	for name, values := range query {
		if !slices.Contains(params, name) {
			return nil, fmt.Errorf("store/file: no parameter %q; did you mean %q?", name, nearest(name, params))
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("store/file: parameter %s is given %d times", name, len(values))
		}
		if err := opt.set(name, values[0]); err != nil {
			return nil, fmt.Errorf("store/file: parameter %s=%q: %w", name, values[0], err)
		}
	}
	return Open(ctx, u.Path, opt)
}

func (opt *Options) set(name, value string) (err error) {
	switch name {
	case "layout":
		if opt.Layout = Layout(value); opt.Layout != PHP && opt.Layout != ApacheSession {
			return fmt.Errorf("the layouts are: %s, %s", PHP, ApacheSession)
		}
	case "lock_dir":
		opt.LockDir = value
	case "codec":
		if opt.ToBase64 = value == toBase64; !opt.ToBase64 {
			return fmt.Errorf("of files there is %s", toBase64)
		}
	case "lifetime":
		opt.Lifetime, err = duration(value)
	case "op_bound":
		opt.OpBound, err = duration(value)
	case "depth":
		opt.Depth, err = strconv.Atoi(value)
	case "max_value":
		if opt.MaxValue, err = strconv.Atoi(value); err == nil && opt.MaxValue <= 0 {
			err = errors.New("must be a number of bytes above 0")
		}
	case "mode":
		opt.Mode, err = parseMode(value)
	case "owner":
		opt.Owner, err = parseOwner(value)
	}
	return err
}

func duration(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if _, number := strconv.Atoi(value); number == nil {
		return 0, fmt.Errorf("which unit? for seconds write %ss", value)
	}
	if err == nil && d <= 0 {
		err = errors.New("must be above 0")
	}
	return d, err
}

// parseOwner reads user[:group], by name or number; without a group it is the user's own.
func parseOwner(value string) (*Owner, error) {
	name, group, hasGroup := strings.Cut(value, ":")
	o := &Owner{GID: -1}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			if o.UID, err = strconv.Atoi(name); err != nil || o.UID < 0 {
				return nil, errors.New("no such user on this machine")
			}
		}
	}
	if u != nil {
		o.UID, _ = strconv.Atoi(u.Uid)
		o.GID, _ = strconv.Atoi(u.Gid)
	}
	if hasGroup {
		gid := group
		if g, err := user.LookupGroup(group); err == nil {
			gid = g.Gid
		}
		if o.GID, err = strconv.Atoi(gid); err != nil || o.GID < 0 {
			return nil, errors.New("no such group on this machine")
		}
	}
	return o, nil
}

// Open opens the directory of a session.save_path. A symbolic link on the way is resolved now and never again.
//
// What this process may not do is found out here. To lack the right to list or to write is no error: Capabilities says
// that there is no Scan, writes answer store.ErrUnavailable, and each says what to do.
func Open(ctx context.Context, dir string, opt Options) (*Store, error) {
	if err := store.Gone(ctx); err != nil {
		return nil, fmt.Errorf("store/file: open: %w", err)
	}
	if err := opt.complete(); err != nil {
		return nil, err
	}
	path, err := resolve(dir, opt.Logger)
	if err != nil {
		return nil, err
	}
	s := &Store{opt: opt, dir: -1, lockDir: -1, euid: os.Geteuid(), egid: os.Getegid(), caps: capabilities(),
		table: map[string]*entry{}, walks: map[uint64]*walk{}}
	if s.dir, err = openat(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return nil, fmt.Errorf("store/file: save path: %w", err)
	}
	if opt.LockDir != "" {
		if s.lockDir, err = openat(unix.AT_FDCWD, opt.LockDir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			unix.Close(s.dir)
			return nil, fmt.Errorf("store/file: lock_dir: %w", err)
		}
	}
	if err := s.inspect(); err != nil {
		s.closeDirs()
		return nil, err
	}
	for _, problem := range []error{s.cantList, s.cantSave, s.cantMake} {
		if problem != nil {
			opt.Logger.Warn("session files: a right is missing", "dir", path, "problem", problem)
		}
	}
	return s, nil
}

func (opt *Options) complete() error {
	if opt.Lifetime <= 0 {
		return errors.New("store/file: a lifetime is needed: PHP's session.gc_maxlifetime, such as lifetime=1440s")
	}
	if opt.Layout == "" {
		opt.Layout = PHP
	}
	switch apache := opt.Layout == ApacheSession; {
	case apache && !filepath.IsAbs(opt.LockDir):
		return errors.New("store/file: lock_dir is needed: the LockDirectory of Apache::Session::File, /tmp if it is not told another")
	case apache && opt.Depth > 0:
		return errors.New("store/file: depth is PHP's")
	case !apache && (opt.LockDir != "" || opt.ToBase64):
		return errors.New("store/file: lock_dir and codec are for layout=apache-session")
	}
	if opt.Depth < 0 || opt.Depth > maxDepth {
		return fmt.Errorf("store/file: depth must be 0 to %d", maxDepth)
	}
	if opt.Mode == 0 {
		opt.Mode = 0o600
	}
	if opt.Mode&^0o777 != 0 || opt.Mode&0o600 != 0o600 {
		return fmt.Errorf("store/file: mode %#o: write the permissions of a file that its owner can read and write, such as 0600", opt.Mode)
	}
	if opt.MaxValue < 0 || opt.OpBound < 0 {
		return errors.New("store/file: limits must not be negative")
	}
	if opt.MaxValue == 0 {
		opt.MaxValue = defaultMaxValue
	}
	if opt.OpBound == 0 {
		opt.OpBound = defaultOpBound
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	return nil
}

func resolve(dir string, log *slog.Logger) (string, error) {
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return "", fmt.Errorf("store/file: save path %q is not absolute", dir)
	}
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("store/file: save path: %w; is it the application's session.save_path, and visible from here?", err)
	}
	if path == "/" {
		return "", errors.New("store/file: save path is /")
	}
	if path != filepath.Clean(dir) {
		log.Info("session files: the save path leads through a symbolic link, followed once", "dir", dir, "resolved", path)
	}
	return path, nil
}

// inspect finds out what may be done in the directory.
func (s *Store) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(s.dir, &st); err != nil {
		return fmt.Errorf("store/file: save path: %w", err)
	}
	if st.Mode&0o1002 == 0o002 {
		return errors.New("store/file: save path is writable for everybody and has no sticky bit: anybody can replace sessions; chmod +t or o-w")
	}
	if err := unix.Faccessat(s.dir, ".", unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("store/file: save path cannot be entered by uid %d: %w; run as root or as its owner, or give CAP_DAC_READ_SEARCH", s.euid, err)
	}
	var files unix.Statfs_t
	if err := unix.Fstatfs(s.dir, &files); err == nil {
		s.stable = slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}, int64(files.Type))
	}
	list, err := openat(s.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		s.cantList = fmt.Errorf("store/file: save path cannot be listed by uid %d: %w: %w; run as root, or give CAP_DAC_READ_SEARCH", s.euid, errors.ErrUnsupported, err)
	} else {
		defer unix.Close(list)
	}
	if err := unix.Faccessat(s.dir, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		s.cantSave = unavailable(fmt.Sprintf("save path is read-only for uid %d", s.euid), err)
	}
	return s.findOwner(st, list, err == nil)
}

// findOwner decides whom new files shall belong to: see Options.Owner.
func (s *Store) findOwner(dir unix.Stat_t, list int, listed bool) error {
	s.owner = Owner{-1, -1}
	switch {
	case s.opt.Owner != nil:
		s.owner = *s.opt.Owner
	case listed && s.sample(list):
	case dir.Uid != 0 || dir.Mode&0o022 == 0:
		s.owner = Owner{int(dir.Uid), int(dir.Gid)}
	case !s.can(unix.CAP_CHOWN):
		s.owner = Owner{s.euid, s.egid}
	default:
		s.cantMake = unavailable("whom new files shall belong to is not known, and PHP opens only its own user's; say owner=user", nil)
	}
	if dir.Mode&unix.S_ISGID != 0 {
		s.owner.GID = -1 // files inherit the directory's group
	}
	if s.owner.UID < 0 || s.owner.UID == s.euid {
		return nil
	}
	var missing []string
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_FOWNER, "CAP_FOWNER"}} {
		if !s.can(c.bit) {
			missing = append(missing, c.name)
		}
	}
	if missing == nil {
		return nil
	}
	s.cantMake = unavailable(fmt.Sprintf("session files belong to uid %d and this process is uid %d; run as that user or as root, or give %s",
		s.owner.UID, s.euid, strings.Join(missing, ", ")), nil)
	if s.opt.Owner != nil {
		return s.cantMake
	}
	return nil
}

// sample looks at the first entries of the directory, a bounded number. If the session files among them that are not
// root's all belong to one user it is the owner.
func (s *Store) sample(list int) bool {
	w := walk{fd: list, buf: make([]byte, walkBuffer)}
	seen := false
	for range 500 {
		name, _, err := w.next()
		if err != nil || name == nil {
			break
		}
		var st unix.Stat_t
		if _, ok := s.idOf(name); !ok || unix.Fstatat(list, string(name), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid == 0 {
			continue
		}
		if seen && s.owner.UID != int(st.Uid) {
			s.owner = Owner{-1, -1}
			return false
		}
		s.owner = Owner{int(st.Uid), int(st.Gid)}
		seen = true
	}
	return seen
}

// capabilities returns the effective capabilities of this process, 0 if they cannot be found out.
func capabilities() uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
}

func (s *Store) can(capability int) bool { return s.caps>>capability&1 == 1 }

// Capabilities implements store.Store.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{Scan: s.cantList == nil, Conditional: true, LazyExpiry: true, Lock: true, Seal: true, NarrowKeys: true}
}

// Lifetime is how long a session lives that nobody uses.
func (s *Store) Lifetime() time.Duration { return s.opt.Lifetime }

// Close releases every lock that is held, fails those who wait and returns when the operations under way have ended. A
// goroutine that waits in flock(2) for another process's lock cannot be woken; it ends when it gets the lock, and does
// nothing with it.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.Lock()
	entries := make([]*entry, 0, len(s.table))
	for _, e := range s.table {
		entries = append(entries, e)
	}
	for _, e := range entries {
		s.fail(e, errClosed)
		s.disown(e)
	}
	s.mu.Unlock()
	s.live.Lock()
	defer s.live.Unlock()
	for _, w := range s.walks {
		unix.Close(w.fd)
	}
	return s.closeDirs()
}

func (s *Store) closeDirs() error {
	if s.lockDir >= 0 {
		unix.Close(s.lockDir)
	}
	return unix.Close(s.dir)
}

var errClosed = fmt.Errorf("store/file: closed: %w", store.ErrUnavailable)

// enter begins a use of the directory; the caller calls s.live.RUnlock after it.
func (s *Store) enter(ctx context.Context) error {
	if err := store.Gone(ctx); err != nil {
		return fmt.Errorf("store/file: %w", err)
	}
	s.live.RLock()
	if s.closed.Load() {
		s.live.RUnlock()
		return errClosed
	}
	return nil
}

// unavailable is the error of something that was certainly not done, with what to do about it.
func unavailable(what string, err error) error {
	if err == nil {
		return fmt.Errorf("store/file: %s: %w", what, store.ErrUnavailable)
	}
	hint := ""
	switch err {
	case unix.EACCES, unix.EPERM:
		hint = "; run as the files' owner or as root, or give CAP_DAC_OVERRIDE, CAP_CHOWN, CAP_FOWNER; is a file immutable?"
	case unix.ENOSPC, unix.EDQUOT:
		hint = "; free some space or raise the quota"
	case unix.EMFILE, unix.ENFILE:
		hint = "; raise the limit on open files"
	case unix.EROFS:
		hint = "; the file system is mounted read-only"
	}
	return fmt.Errorf("store/file: %s: %w: %w%s", what, store.ErrUnavailable, err, hint)
}

// unknown is the error of something that may have been done.
func unknown(what string, err error) error {
	return fmt.Errorf("store/file: %s: %w: %w", what, store.ErrUnknown, err)
}
