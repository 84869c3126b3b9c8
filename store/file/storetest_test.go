package file_test

import (
	"strings"
	"testing"

	"github.com/sessile/sessile/store/file"
	"github.com/sessile/sessile/store/storetest"
)

func TestConformance(t *testing.T) {
	badKeys := []string{"..", "a/b", "a\x00b", "a_b", "a.b", strings.Repeat("a", 251)}
	for name, h := range map[string]storetest.Harness[*file.Store]{
		"flat": {New: func(t *testing.T) *file.Store { return open(t, t.TempDir()) }, BadKeys: badKeys},
		"without O_TMPFILE": {New: func(t *testing.T) *file.Store {
			s := open(t, t.TempDir())
			s.Visible()
			return s
		}, BadKeys: badKeys},
		"two levels": {New: func(t *testing.T) *file.Store {
			dir := t.TempDir()
			makeLevels(t, dir)
			return open(t, dir, depth(2))
		}, Key: func(word string) string { return "ab" + word }, BadKeys: append(badKeys, "ab")},
		"Apache::Session::File": {New: func(t *testing.T) *file.Store { return open(t, t.TempDir(), apache(t.TempDir())) }, Key: hexKey, BadKeys: hexBad},
		"Apache::Session::File, without O_TMPFILE, locks beside the sessions": {New: func(t *testing.T) *file.Store {
			dir := t.TempDir()
			s := open(t, dir, apache(dir))
			s.Visible()
			return s
		}, Key: hexKey, BadKeys: hexBad},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.RunOrigin(t, h)
		})
	}
}
