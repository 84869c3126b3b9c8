package file

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

// Layout is how an application keeps sessions in a directory.
type Layout string

const (
	// PHP is the files handler: sess_ID, with the lock on the file itself.
	PHP Layout = "php"
	// ApacheSession is Perl's Apache::Session::File: ID, hexadecimal, and the lock a flock on another file,
	// LockDirectory/Apache-Session-ID.lock, which stays when the session goes (a job of the site removes old ones). It is shared for
	// reading and exclusive for writing, where the application does not say Transaction => 1 and has it exclusively for the whole
	// page. A file is written in place under it. Nothing ends by itself: a site's job collects by mtime, which a write moves.
	ApacheSession Layout = "apache-session"
)

// toBase64 is for Apache::Session::Redis, which has Base64 where Apache::Session::File has what Storable made.
const toBase64 = "to-base64"

const (
	lockBefore, lockBehind = "Apache-Session-", ".lock"

	maxHexID = 255 - len(lockBefore) - len(lockBehind)
)

// hexID reports whether id is one that Apache::Session takes (Generate/MD5.pm, validate).
func hexID[T string | []byte](id T) bool {
	for i := range len(id) {
		if c := id[i] | 0x20; (c < '0' || c > '9' || id[i] != c) && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(id) > 0 && len(id) <= maxHexID
}

func (s *Store) fileName(key string) string {
	if s.opt.Layout == ApacheSession {
		return key
	}
	return prefix + key
}

// openLock opens the file that f's flock is on, where that is another one, and makes it where there is none.
func (s *Store) openLock(f *file) (err error) {
	if s.lockDir < 0 {
		return nil
	}
	name := lockBefore + f.key + lockBehind
	for {
		// Not created in the same call: see openFile.
		if f.lock, err = openat(s.lockDir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			return nil
		}
		if err == unix.ENOENT {
			err = s.makeLock(name)
		}
		if err != nil && err != unix.EEXIST {
			f.lock = -1
			return unavailable("lock file", err)
		}
	}
}

// makeLock makes a lock file. It belongs to whom new sessions belong before anybody can see it: one that its application cannot
// open would end a user's session.
func (s *Store) makeLock(name string) error {
	fd, err, hidden := -1, error(nil), false
	if !s.visible.Load() {
		fd, err = openat(s.lockDir, ".", unix.O_TMPFILE|unix.O_RDWR, uint32(s.opt.Mode))
		hidden = err == nil
	}
	if !hidden {
		fd, err = openat(s.lockDir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint32(s.opt.Mode))
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Fchmod(fd, uint32(s.opt.Mode))
	if err == nil && s.owner.UID >= 0 && s.owner.UID != s.euid {
		err = unix.Fchown(fd, s.owner.UID, s.owner.GID)
	}
	if err == nil && hidden {
		if err = s.link(&file{fd: fd, dir: s.lockDir, name: name}); err == errAgain {
			err = unix.EEXIST
		}
	}
	return err
}

// flock takes the flock that f's layout has. errAgain: the lock file was removed meanwhile.
func (s *Store) flock(f *file, how int) error {
	if f.lock < 0 {
		return flock(f.fd, how)
	}
	if err := flock(f.lock, how); err != nil {
		return err
	}
	var is, named unix.Stat_t
	if unix.Fstat(f.lock, &is) != nil || unix.Fstatat(s.lockDir, lockBefore+f.key+lockBehind, &named, unix.AT_SYMLINK_NOFOLLOW) != nil ||
		is.Ino != named.Ino || is.Dev != named.Dev {
		return errAgain
	}
	return nil
}

// Canary implements store.Prover.
func (s *Store) Canary() (key string, data []byte) {
	if s.opt.Layout == PHP {
		return "sessile-canary-" + rand.Text(), []byte("canary")
	}
	return hex.EncodeToString([]byte(rand.Text()[:16])), s.opt.body([]byte("canary"))
}

// body makes a session's body of what its file has.
func (opt *Options) body(content []byte) []byte {
	if !opt.ToBase64 {
		return content
	}
	text := base64.StdEncoding.AppendEncode(nil, content)
	out := make([]byte, 0, len(text)+len(text)/76+1)
	for line := range slices.Chunk(text, 76) {
		out = append(append(out, line...), '\n')
	}
	return out
}

// content makes of a body what its file has. A body that would not come back as it was is refused.
func (opt *Options) content(body []byte) ([]byte, error) {
	if !opt.ToBase64 {
		return body, nil
	}
	content, err := base64.StdEncoding.Strict().AppendDecode(nil, body) // skips line feeds
	if err == nil && bytes.Equal(opt.body(content), body) {
		return content, nil
	}
	return nil, fmt.Errorf("store/file: %w: not Base64 as Perl's MIME::Base64 writes it", store.ErrInvalid)
}
