package file

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

const (
	prefix = "sess_"
	// maxID is what fits into a file name of 255 bytes. PHP lets ids of up to 256 bytes through, and cannot open
	// those above 250 either.
	maxID = 255 - len(prefix)
)

// The reasons why something is no session of this store: what Page.Skipped counts by and store.RefusedError says. Scan
// sees the names and types of files, so some are found only by Load.
const (
	reasonName    = "foreign name"
	reasonSymlink = "symlink"
	reasonType    = "not a regular file"
	reasonOwner   = "foreign owner"
	reasonLinks   = "hard link"
	reasonSize    = "too large"
	reasonLevel   = "at another depth"
)

// idByte is PHP's alphabet of session ids. It knows no '.' and no '/'.
var idByte = func() (t [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789,-") {
		t[c] = true
	}
	return t
}()

// validID is for PHP: see idOf for others.
func validID[T string | []byte](id T) bool {
	for i := range len(id) {
		if !idByte[id[i]] {
			return false
		}
	}
	return len(id) > 0 && len(id) <= maxID
}

// check refuses keys that are no session ids. An id must be longer than the levels it is spread over, as in PHP.
func (s *Store) check(key string) error {
	if s.opt.Layout == ApacheSession {
		if !hexID(key) {
			return fmt.Errorf("store/file: %w: an id of Apache::Session has up to %d hexadecimal digits", store.ErrInvalid, maxHexID)
		}
		return nil
	}
	if !validID(key) || len(key) <= s.opt.Depth {
		return fmt.Errorf("store/file: %w: a session id has more than %d and up to %d of the characters A-Z a-z 0-9 , -",
			store.ErrInvalid, s.opt.Depth, maxID)
	}
	return nil
}

// idOf returns the session id in a file name.
func (s *Store) idOf(name []byte) ([]byte, bool) {
	if s.opt.Layout == ApacheSession {
		return name, hexID(name)
	}
	if len(name) <= len(prefix) || string(name[:len(prefix)]) != prefix {
		return nil, false
	}
	id := name[len(prefix):]
	return id, validID(id)
}

// level opens the directory that holds key's file. The error is a bare errno. Each level is opened by itself, since
// O_NOFOLLOW looks only at the last part of a path.
func (s *Store) level(key string) (int, error) {
	dir := s.dir
	for i := range s.opt.Depth {
		next, err := openat(dir, key[i:i+1], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		s.leave(dir)
		if err != nil {
			return -1, err
		}
		dir = next
	}
	return dir, nil
}

func (s *Store) leave(dir int) {
	if dir != s.dir {
		unix.Close(dir)
	}
}

// gone tells a file that is not there from a directory that is not there: nothing is found in a removed one either.
func (s *Store) gone() error {
	var st unix.Stat_t
	if err := unix.Fstat(s.dir, &st); err != nil {
		return unavailable("save path", err)
	}
	if st.Nlink == 0 {
		return unavailable("save path was removed", nil)
	}
	return nil
}

// openat is openat(2) that leaks no descriptor and lets no signal disturb it. Its error is a bare errno.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// ParseSavePath reads PHP's session.save_path: "/path", "N;/path" or "N;MODE;/path", MODE being octal. mode is 0 where
// it is not given.
func ParseSavePath(savePath string) (depth int, mode fs.FileMode, path string, err error) {
	parts := strings.SplitN(savePath, ";", 3) // a third semicolon is part of the path, as in PHP
	path = parts[len(parts)-1]
	if path == "" {
		return 0, 0, "", errors.New("store/file: save path is empty: PHP uses the system's temporary directory then; name it")
	}
	if len(parts) > 1 {
		if depth, err = strconv.Atoi(parts[0]); err != nil || depth < 0 || depth > maxDepth {
			return 0, 0, "", fmt.Errorf("store/file: save path %q: levels must be a number from 0 to %d", savePath, maxDepth)
		}
	}
	if len(parts) > 2 {
		if mode, err = parseMode(parts[1]); err != nil {
			return 0, 0, "", fmt.Errorf("store/file: save path %q: %w", savePath, err)
		}
	}
	return depth, mode, path, nil
}

func parseMode(value string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(value, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, errors.New("mode must be octal permissions, such as 0640")
	}
	return fs.FileMode(n), nil
}

// nearest returns the name that takes the fewest edits to come from word.
func nearest(word string, names []string) (best string) {
	least := -1
	for _, name := range names {
		row := make([]int, len(name)+1) // Levenshtein distances from word's beginning to name's
		for j := range row {
			row[j] = j
		}
		for i := range len(word) {
			diagonal := row[0]
			row[0] = i + 1
			for j := range len(name) {
				edits := diagonal
				if word[i] != name[j] {
					edits = 1 + min(diagonal, row[j], row[j+1])
				}
				diagonal, row[j+1] = row[j+1], edits
			}
		}
		if d := row[len(name)]; least < 0 || d < least {
			least, best = d, name
		}
	}
	return best
}
