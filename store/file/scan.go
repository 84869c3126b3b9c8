package file

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessile/sessile/store"
	"golang.org/x/sys/unix"
)

const (
	walkBuffer  = 64 << 10
	defaultPage = 1000
	maxWalks    = 16
	walkIdle    = 10 * time.Minute
)

// A walk is a place in the listing of one directory.
type walk struct {
	fd   int
	leaf string // the levels of the directory, a byte each
	pos  int64  // directory offset behind the entry returned last: d_off, which means nothing but to seek there
	buf  []byte
	rest []byte // of buf, not parsed yet
	used time.Time
}

// next returns the next name and its type, nil at the end. The name is valid until the call after.
func (w *walk) next() (name []byte, kind byte, err error) {
	const header = 8 + 8 + 2 + 1 // struct linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name
	if len(w.rest) == 0 {
		n, err := unix.Getdents(w.fd, w.buf)
		if err != nil || n <= 0 {
			return nil, 0, err
		}
		w.rest = w.buf[:n]
	}
	size := binary.NativeEndian.Uint16(w.rest[16:])
	w.pos = int64(binary.NativeEndian.Uint64(w.rest[8:]))
	kind, name = w.rest[18], w.rest[header:size]
	w.rest = w.rest[size:]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	return name, kind, nil
}

// Scan implements store.Store. It looks at names and types, not at the files: what is too large or somebody else's is
// refused by Load. Memory does not grow with the directory.
//
// The cursor names a listing that is kept open, and the place in it. If that listing is gone (the process was started
// anew, many scans run at once, none was asked for ten minutes) the place is looked up, on ext4, xfs and btrfs; other
// file systems number their entries anew when a directory is opened, so there the directory is listed again from its
// beginning: keys come twice, none is left out.
func (s *Store) Scan(ctx context.Context, cursor string, limit int) (store.Page, error) {
	if s.cantList != nil {
		return store.Page{}, s.cantList
	}
	if err := s.enter(ctx); err != nil {
		return store.Page{}, err
	}
	defer s.live.RUnlock()
	if limit <= 0 {
		limit = defaultPage
	}
	page := store.Page{Skipped: map[string]int{}}
	w, err := s.resume(cursor, &page)
	for w != nil && err == nil && len(page.Keys) < limit {
		var name []byte
		var kind byte
		if len(w.rest) == 0 {
			if err = store.Gone(ctx); err != nil {
				break
			}
		}
		if name, kind, err = w.next(); err != nil {
			break
		}
		if name == nil {
			unix.Close(w.fd)
			w, err = s.following(w.leaf, true, nil)
			continue
		}
		if id, reason := s.entryOf(w, name, kind); reason == "" {
			page.Keys = append(page.Keys, string(id))
		} else if reason != "-" {
			page.Skipped[reason]++
		}
	}
	if err != nil {
		if w != nil {
			unix.Close(w.fd)
		}
		if !errors.Is(err, store.ErrInvalid) && !errors.Is(err, store.ErrUnavailable) {
			err = unavailable("list", err)
		}
		return store.Page{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.table) > 0 {
		page.Keys = slices.DeleteFunc(page.Keys, func(key string) bool {
			e := s.table[key]
			return e != nil && e.file != nil && e.file.fresh.Load()
		})
	}
	if w != nil {
		page.Cursor = s.keep(w)
	}
	return page, nil
}

// entryOf returns the session id in a directory entry, or the reason why it has none: "-" if it is not worth counting.
func (s *Store) entryOf(w *walk, name []byte, kind byte) ([]byte, string) {
	id, ok := s.idOf(name)
	if !ok || len(id) <= s.opt.Depth || string(id[:s.opt.Depth]) != w.leaf {
		switch string(name) {
		case ".", "..", markName:
			return nil, "-"
		}
		if s.lockDir >= 0 && bytes.HasPrefix(name, []byte(lockBefore)) {
			return nil, "-"
		}
		return nil, reasonName
	}
	if kind == unix.DT_UNKNOWN {
		var st unix.Stat_t
		switch err := unix.Fstatat(w.fd, string(name), &st, unix.AT_SYMLINK_NOFOLLOW); {
		case err != nil:
			return nil, "-" // removed meanwhile
		case st.Mode&unix.S_IFMT == unix.S_IFREG:
			kind = unix.DT_REG
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			kind = unix.DT_LNK
		}
	}
	switch kind {
	case unix.DT_REG:
		return id, ""
	case unix.DT_LNK:
		return nil, reasonSymlink
	}
	return nil, reasonType
}

// resume returns the walk that a cursor names, or nil where there is no directory left.
func (s *Store) resume(cursor string, page *store.Page) (*walk, error) {
	if cursor == "" {
		return s.following("", false, page)
	}
	number, place, _ := strings.Cut(cursor, ".")
	leaf, offset, _ := strings.Cut(place, ".")
	id, err1 := strconv.ParseUint(number, 36, 64)
	pos, err2 := strconv.ParseInt(offset, 36, 64)
	if err := cmp.Or(err1, err2); err != nil || len(leaf) != s.opt.Depth || leaf != "" && !validID(leaf) {
		return nil, fmt.Errorf("store/file: %w: the cursor is not one of this store's; begin with an empty one", store.ErrInvalid)
	}
	s.mu.Lock()
	w := s.walks[id]
	if w != nil && w.leaf == leaf && w.pos == pos {
		delete(s.walks, id)
		s.mu.Unlock()
		return w, nil
	}
	s.mu.Unlock()
	w, err := s.following(leaf, false, nil)
	if w != nil && w.leaf == leaf && s.stable {
		if _, err := unix.Seek(w.fd, pos, 0); err == nil {
			w.pos = pos
		}
	}
	return w, err
}

// keep stores a walk until the page after this one is asked for, and returns its cursor. Called with mu held.
func (s *Store) keep(w *walk) string {
	w.used = time.Now()
	var oldest uint64
	for id, other := range s.walks {
		if time.Since(other.used) > walkIdle {
			unix.Close(other.fd)
			delete(s.walks, id)
		} else if oldest == 0 || other.used.Before(s.walks[oldest].used) {
			oldest = id
		}
	}
	if len(s.walks) >= maxWalks {
		unix.Close(s.walks[oldest].fd)
		delete(s.walks, oldest)
	}
	s.lastWalk++
	s.walks[s.lastWalk] = w
	return strconv.FormatUint(s.lastWalk, 36) + "." + w.leaf + "." + strconv.FormatInt(w.pos, 36)
}

// following opens the directory of sessions at leaf or, if there is none or after is set, the next one in the order of
// their names; nil where there is none left. If page is not nil, sessions that lie on the levels above are counted there.
func (s *Store) following(leaf string, after bool, page *store.Page) (*walk, error) {
	if after && leaf == "" { // depth 0: there is only one
		return nil, nil
	}
	fd, err := openat(s.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := s.gone(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s.descend(fd, "", leaf, after, page)
}

// descend looks below the directory fd, which it closes, for the first leaf from (or after) the one named.
func (s *Store) descend(fd int, path, leaf string, after bool, page *store.Page) (*walk, error) {
	w := &walk{fd: fd, leaf: path, buf: make([]byte, walkBuffer)}
	if len(path) == s.opt.Depth {
		if after && path == leaf {
			unix.Close(fd)
			return nil, nil
		}
		return w, nil
	}
	defer unix.Close(fd)
	var names []string
	for {
		name, kind, err := w.next()
		if err != nil {
			return nil, err
		}
		if name == nil {
			break
		}
		if len(name) == 1 && validID(name) {
			names = append(names, string(name))
		} else if _, ok := s.idOf(name); ok && page != nil && kind != unix.DT_DIR {
			page.Skipped[reasonLevel]++
		}
	}
	slices.Sort(names)
	for _, name := range names {
		below := path + name
		if len(leaf) > 0 && below < leaf[:len(below)] {
			continue
		}
		next, err := openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return nil, err
		}
		if w, err := s.descend(next, below, leaf, after, page); w != nil || err != nil {
			return w, err
		}
	}
	return nil, nil
}
