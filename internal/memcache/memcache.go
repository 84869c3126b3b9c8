// Package memcache turns bytes into the requests of memcached's clients, and answers into bytes: the text protocol, its
// meta commands, and the binary protocol. It knows no sockets and keeps no items.
//
// A request is the same Request whatever protocol it came in, and its Append methods answer in that protocol, silent
// where the client wants no answer: who serves requests need not know which protocol they are in.
//
// The parsers take what has arrived so far and hold no state between calls. They judge a declared length before the
// bytes arrive and allocate nothing for it. A verdict other than ErrIncomplete never changes when more bytes arrive: any
// chunking of a stream gives the same requests and the same end.
//
// They are stricter than memcached where memcached reads data as commands. A line of text has no control characters and
// ends with CRLF; numbers are decimal digits within their range; and the data of a storage command that is refused are
// dropped, or the connection is closed where nobody knows how long they are. TestDifferences lists all of it.
//
// What is said here of memcached was read in its doc/protocol.txt, proto_text.c and proto_bin.c, and measured with 1.6.18.
package memcache

import (
	"errors"
	"math"
	"time"
)

const (
	// MaxKey is the length of the longest key (KEY_MAX_LENGTH in memcached.h; protocol.txt, "Keys").
	MaxKey = 250

	// maxValue is the length of the longest value that any memcached can be told to take (-I in memcached.c). A client
	// that declares more has lost count, and nothing of what it sends can be trusted to be data.
	maxValue = 1 << 30
)

// Limits bound what one request may make us hold. A field that is zero or less means the default.
type Limits struct {
	Item int // bytes of a value; default 1 MiB, as memcached -I, which counts the key and its own header too
	Keys int // keys of one get; default 100
	Line int // bytes of a line of text with its end; default is what a get of Keys keys needs
}

func (l Limits) item() int { return orDefault(l.Item, 1<<20) }
func (l Limits) keys() int { return orDefault(l.Keys, 100) }

// line: a gats with an exptime is the longest line of Keys keys.
func (l Limits) line() int {
	return orDefault(l.Line, min(l.keys(), maxValue/(MaxKey+1))*(MaxKey+1)+64)
}

func orDefault(limit, def int) int {
	if limit <= 0 {
		limit = def
	}
	return min(limit, maxValue)
}

// ErrIncomplete: more bytes are needed; nothing was consumed.
var ErrIncomplete = errors.New("memcache: incomplete")

// Error is why a request is refused, by a parser or by whoever serves it; AppendError tells the client.
type Error struct {
	// Reply is the line of text that says so: ERROR, or CLIENT_ERROR or SERVER_ERROR and a reason. "" means to close
	// without a word.
	Reply string
	// Status says the same in the binary protocol.
	Status Status
	// Close: the connection cannot be used any more. Otherwise the next request begins where Parse says.
	Close bool
	// Security: this looks like another protocol, which somebody may have been made to speak to us.
	Security bool

	protocol string // which one, for the log
}

// Error never quotes what was received.
func (e *Error) Error() string {
	switch {
	case e.protocol != "":
		return "memcache: this is " + e.protocol
	case e.Reply == "":
		return "memcache: not a request"
	}
	return "memcache: " + e.Reply
}

// Status is a code of the binary protocol (protocol_binary.h, protocol_binary_response_status).
type Status uint16

const (
	statusOK             Status = 0x00
	statusNotFound       Status = 0x01
	statusExists         Status = 0x02
	StatusTooLarge       Status = 0x03
	StatusInvalid        Status = 0x04
	statusNotStored      Status = 0x05
	StatusNotNumber      Status = 0x06
	StatusAuth           Status = 0x20 // also what flush answers where it is not allowed (memcached -F)
	StatusUnknownCommand Status = 0x81
	StatusNoMemory       Status = 0x82
	StatusInternal       Status = 0x84 // this and the next are in the protocol's description only
	StatusTemporary      Status = 0x86
)

// What several requests, and those who serve them, are refused with. The words are memcached's: clients look for them.
var (
	ErrUnknownCommand = &Error{Reply: "ERROR", Status: StatusUnknownCommand}
	ErrTooLarge       = &Error{Reply: "SERVER_ERROR object too large for cache", Status: StatusTooLarge}
	ErrNotNumber      = &Error{Reply: "CLIENT_ERROR cannot increment or decrement non-numeric value", Status: StatusNotNumber}
	errFormat         = &Error{Reply: "CLIENT_ERROR bad command line format", Status: StatusInvalid}
	errExptime        = &Error{Reply: "CLIENT_ERROR invalid exptime argument", Status: StatusInvalid}
	errToken          = &Error{Reply: "CLIENT_ERROR bad token in command line format", Status: StatusInvalid}
	errBadData        = &Error{Reply: "CLIENT_ERROR bad data chunk", Status: StatusInvalid, Close: true}
	errNonsense       = &Error{Close: true}
)

func clientError(reason string) *Error {
	return &Error{Reply: "CLIENT_ERROR " + reason, Status: StatusInvalid}
}

func foreign(protocol string) *Error {
	return &Error{Close: true, Security: true, protocol: protocol}
}

// maxRelative is the longest time that is counted from now; a greater number is a date (protocol.txt, "Expiration times";
// REALTIME_MAXDELTA in memcached.c).
const maxRelative = 30 * 24 * 60 * 60

// Deadline says when an item stored at now with exptime ends; the zero time means never. gone: it has ended already, which
// is stored all the same, in that it replaces what was there. php-memcached's strict mode relies on it: it asks whether a
// session exists by an add with exptime 2678400, a date in 1970.
func Deadline(exptime int64, now time.Time) (at time.Time, gone bool) {
	switch {
	case exptime == 0:
		return time.Time{}, false
	case exptime < 0:
		return now, true
	case exptime <= maxRelative:
		return now.Add(time.Duration(exptime) * time.Second), false
	}
	at = time.Unix(min(exptime, math.MaxUint32), 0) // no client can send more
	return at, !at.After(now)
}
