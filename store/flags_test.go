package store

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"math"
	"testing"
)

func TestFlagged(t *testing.T) {
	const head = "\x00sessile:flags="
	for _, c := range []struct {
		data  string
		flags uint32
		want  string
	}{
		{"", 0, ""}, {"v", 0, "v"}, {"\x00", 0, "\x00"}, {head, 0, head}, {head + "\nv", 0, head + "\nv"}, {head + "05\nv", 0, head + "05\nv"},
		{head + "4294967296\nv", 0, head + "4294967296\nv"}, {head + "99999999999\nv", 0, head + "99999999999\nv"}, {head + "-1\nv", 0, head + "-1\nv"},
		{head + "5", 0, head + "5"}, {head + "0\nv", 0, head + "0\nv"}, {head + "0\n" + head + "0\n", 0, head + "0\n" + head + "0\n"},
		{"v", 5, head + "5\nv"}, {"", math.MaxUint32, head + "4294967295\n"}, {head + "5\nv", 7, head + "7\n" + head + "5\nv"},
		{head + "5\nv", 0, head + "0\n" + head + "5\nv"}, {head + "0\n" + head + "5\nv", 0, head + "0\n" + head + "0\n" + head + "5\nv"},
	} {
		got := Flagged([]byte(c.data), c.flags)
		if string(got) != c.want {
			t.Errorf("%q, %d: lies there as %q, want %q", c.data, c.flags, got, c.want)
		}
		data, flags := Unflagged(got)
		if string(data) != c.data || flags != c.flags {
			t.Errorf("%q: read as %q, %d, want %q, %d", got, data, flags, c.data, c.flags)
		}
	}
}

// Whatever lies there is read as one value, which would be written as what lies there; and its version is what Redis can compute.
func FuzzFlagged(f *testing.F) {
	f.Add([]byte("\x00sessile:flags=0\n\x00sessile:flags=16\nv"))
	f.Add([]byte("\x00sessile:flags=00\nv"))
	f.Add([]byte("v"))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, flags := Unflagged(b)
		if got := Flagged(data, flags); !bytes.Equal(got, b) {
			t.Errorf("%q is read as %q, %d, and written as %q", b, data, flags, got)
		}
		if sum := sha1.Sum(b); VersionOf(data, flags) != Version(hex.EncodeToString(sum[:])) {
			t.Errorf("%q: version %s", b, VersionOf(data, flags))
		}
		for _, flags := range []uint32{0, 1, math.MaxUint32} {
			if data, got := Unflagged(Flagged(b, flags)); !bytes.Equal(data, b) || got != flags {
				t.Errorf("%q, %d: comes back as %q, %d", b, flags, data, got)
			}
		}
	})
}
