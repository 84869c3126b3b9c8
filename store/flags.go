package store

import (
	"bytes"
	"math"
	"strconv"
)

// Flags of memcached clients say how a value is to be read: without them it is lost. A store that has no place of their own for
// them keeps them before the value. What has none, or 0, lies there as it is: an application's own clients find their values.
//
//	NUL sessile:flags=NUMBER LF value
//
// A value that happens to look so, and has no flags, gets a header with 0, so that it is not taken for another one.

var flagsHead = []byte("\x00sessile:flags=")

// parseFlags reads a header; n is its length, 0 where there is none.
func parseFlags(b []byte) (flags uint32, n int) {
	rest, ok := bytes.CutPrefix(b, flagsHead)
	if !ok {
		return 0, 0
	}
	end := bytes.IndexByte(rest[:min(len(rest), len("4294967295\n"))], '\n')
	if end <= 0 || end > 1 && rest[0] == '0' {
		return 0, 0
	}
	var number uint64
	for _, c := range rest[:end] {
		if c < '0' || c > '9' {
			return 0, 0
		}
		number = 10*number + uint64(c-'0')
	}
	if number > math.MaxUint32 {
		return 0, 0
	}
	return uint32(number), len(flagsHead) + end + 1
}

// HasFlags reports whether b is what Flagged makes of a value that has to have a header.
func HasFlags(b []byte) bool {
	for {
		flags, n := parseFlags(b)
		if n == 0 {
			return false
		}
		if flags != 0 {
			return true
		}
		b = b[n:] // with 0 it is one only where there is one behind it: there is one way to write a value
	}
}

// Flagged returns the value as it lies in a store that has no place for its flags: data itself where they are 0.
func Flagged(data []byte, flags uint32) []byte {
	if flags == 0 && !HasFlags(data) {
		return data
	}
	b := make([]byte, 0, len(flagsHead)+11+len(data))
	return append(append(strconv.AppendUint(append(b, flagsHead...), uint64(flags), 10), '\n'), data...)
}

// Unflagged takes apart what Flagged has made. data is part of b.
func Unflagged(b []byte) (data []byte, flags uint32) {
	if !HasFlags(b) {
		return b, 0
	}
	flags, n := parseFlags(b)
	return b[n:], flags
}
