// Package resp turns bytes into RESP requests and replies, and back. It knows no sockets and no commands.
//
// Both parsers take what has arrived so far and hold no state between calls, so that a goroutine per connection and
// an event loop can use them alike. They judge a declared length before the bytes arrive and allocate nothing for
// it. A verdict other than ErrIncomplete never changes when more bytes arrive: any chunking of a stream gives the same
// messages and the same end.
//
// The parsers are stricter than Redis, which reads `*1\r\n$4\r\nPINGxx*1...` as two commands (7.0.15; field
// reliability.md, 0.10): a length has one spelling and every CRLF is checked, so a request that is accepted is what
// AppendRequest writes for its arguments, and nobody behind us can read it differently.
package resp

import (
	"errors"
	"strings"
)

// ErrIncomplete: more bytes are needed; nothing was consumed.
var ErrIncomplete = errors.New("resp: incomplete")

// ProtocolError: what arrived is not RESP as we accept it, and the connection cannot be used any more.
type ProtocolError struct {
	// Reply is what a client is told before its connection is closed, without the '-' and the CRLF; "" means to close
	// without a word. Where a server sent the bytes, it only serves as the text of the error.
	Reply string
	// Security: this looks like another protocol, which somebody may have been made to speak to us.
	Security bool

	protocol string // which one, for the log
}

const protocolError = "ERR Protocol error: " // how Redis begins all of these

func refuse(text string) error { return &ProtocolError{Reply: protocolError + text} }

func refuseForeign(protocol string) error { return &ProtocolError{Security: true, protocol: protocol} }

// Error never quotes what was received, but for one printable byte.
func (e *ProtocolError) Error() string {
	if e.Reply == "" {
		return "resp: this is " + e.protocol
	}
	return "resp: protocol error: " + strings.TrimPrefix(e.Reply, protocolError)
}

// maxLimit bounds every limit, so that sums of lengths and limits cannot overflow. It is Redis's proto-max-bulk-len.
const maxLimit = 512 << 20

// orDefault reads a field of Limits or ReplyLimits.
func orDefault(limit, def int) int {
	if limit <= 0 {
		return def
	}
	return min(limit, maxLimit)
}

const (
	wait = 0  // parseLen: the line has not ended yet
	bad  = -1 // parseLen: not a length, or more than the limit
)

// parseLen reads the length that begins at buf[i] and its CRLF. next is where the line ends, or wait or bad. A length
// is bad from the first byte on that makes it so, whatever follows.
func parseLen(buf []byte, i, limit int) (n, next int) {
	first, v := i, int64(0)
	for ; i < len(buf); i++ {
		d := buf[i] - '0'
		if d > 9 {
			break
		}
		v = v*10 + int64(d) // v <= maxLimit before
		if v > int64(limit) || i > first && v == int64(d) {
			return 0, bad // too much, or a leading zero
		}
	}
	switch {
	case i == len(buf):
		return 0, wait
	case buf[i] != '\r' || i == first:
		return 0, bad
	case i+1 == len(buf):
		return 0, wait
	case buf[i+1] != '\n':
		return 0, bad
	}
	return int(v), i + 2
}

// printable returns c as it may be quoted in a reply and in a log.
func printable(c byte) string {
	if c < ' ' || c > '~' {
		return "?"
	}
	return string(rune(c))
}
