package redis

import "fmt"

// rueidis believes what it reads. A length like $-2, %-1 or *99999999999999 makes it panic in a goroutine of its own,
// where nobody can recover, and so does a reply that nobody asked for; nesting without end takes its stack. So what
// comes from the server is followed on its way to rueidis, and the first byte that is not a reply as we expect it breaks
// the connection.
//
// The rules are those of internal/resp: one spelling for a length, every CRLF checked, nothing streamed ($?). It judges
// replies that lie whole in a buffer, though. Here they pass in pieces, some of hundreds of megabytes, and only where
// they begin and end matters.

// A framing follows RESP2 or RESP3 in whatever pieces it comes, and keeps nothing of what has passed but its place in it.
type framing struct {
	lim          framingLimits
	began, ended int64        // how many values; elements of others do not count
	asked        func() int64 // how many may begin; nil is any number
	pushed       func() bool  // whether what has changed may be told between replies; nil: never

	state state
	push  bool // the value at hand is that: one that nobody asked for and that does not count
	kind  byte // the type of the value at hand
	head  bool // the line at hand tells a length
	null  bool // which is -1
	size  int  // the length, as far as it was read
	limit int  // what it may be
	chars int  // how many of the line were read
	skip  int  // how many of a string have not passed yet

	depth       int
	left        [maxDepth]int // of each aggregate that is open, how many values have not ended yet
	elems, room int           // what the value at hand may still announce
}

// framingLimits bound what one reply can make its reader hold.
type framingLimits struct {
	bulk  int // bytes of one string
	elems int // of all aggregates together
	room  int // bytes of all strings and lines together
}

const (
	maxDepth = 16       // Redis tells of its modules in four, ours are two
	maxLine  = 64 << 10 // Redis's are far shorter

	// maxBulk is proto-max-bulk-len, as it is by default. No value is longer, whoever wrote it, unless somebody raised
	// that, and MaxValue with it.
	maxBulk = 512 << 20
	// maxElems: a page of a scan is the longest reply, a thousand keys or a few more. rueidis makes room for what is
	// announced, 40 bytes for each.
	maxElems = 1 << 20
)

// replyLimits are for a store of values of up to maxValue bytes. A reply has one value in it, or a number of keys.
func replyLimits(maxValue int) framingLimits {
	bulk := max(maxValue, maxBulk)
	return framingLimits{bulk: bulk, elems: maxElems, room: bulk + 64<<20}
}

type state uint8

const (
	atType state = iota
	inText
	inNumber
	inLength
	inBool
	atCR
	atLF
	inHead
)

// invalidated is how the news begin that CLIENT TRACKING brings. An array of names follows, or null, which stands for all.
const invalidated = ">2\r\n$10\r\ninvalidate\r\n"

// A framingError says why a connection was given up.
type framingError struct{ text string }

func (e *framingError) Error() string { return "what answers does not speak RESP: " + e.text }

func misframed(format string, args ...any) error {
	return &framingError{fmt.Sprintf(format, args...)}
}

// pass follows b. It returns how many bytes are in order, and what is wrong with the one behind them.
func (f *framing) pass(b []byte) (n int, err error) {
	for n < len(b) {
		if f.skip > 0 {
			k := min(f.skip, len(b)-n)
			f.skip -= k
			n += k
			continue
		}
		if f.state == inLength && f.chars == 0 {
			if k := f.short(b[n:]); k > 0 {
				n += k
				continue
			}
		}
		if err := f.next(b[n]); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// short passes a short string from its length on, where b has all of it: nearly everything that ever passes is that. It
// takes what next would take and answers 0 where it is not sure.
func (f *framing) short(b []byte) int {
	size, i := 0, 0
	for i < len(b) && i < 6 && b[i]-'0' <= 9 {
		size = 10*size + int(b[i]-'0')
		i++
	}
	end := i + 2 + size
	if f.kind != '$' || i == 0 || i > 1 && b[0] == '0' || size > f.limit || len(b) < end+2 ||
		b[i] != '\r' || b[i+1] != '\n' || b[end] != '\r' || b[end+1] != '\n' {
		return 0
	}
	f.head, f.room = false, f.room-size
	f.end()
	return end + 2
}

func (f *framing) next(c byte) error {
	switch f.state {
	case atType:
		return f.begin(c)
	case inLength:
		return f.length(c)
	case inText:
		switch {
		case c == '\r':
			f.state, f.room = atLF, f.room-f.chars
		case c == '\n':
			return misframed("a stray line end")
		case f.chars == min(maxLine, f.room):
			return misframed("too long a line")
		default:
			f.chars++
		}
	case inNumber:
		switch {
		case c-'0' <= 9 && f.size < 19: // digits
			f.size++
		case c == '-' && f.chars == 0:
		case c == '\r' && f.size > 0:
			f.state = atLF
		default:
			return misframed("not a number")
		}
		f.chars++
	case inBool:
		if c != 't' && c != 'f' {
			return misframed("not a boolean")
		}
		f.state = atCR
	case atCR:
		if c != '\r' {
			return misframed("no line end where one is due")
		}
		f.state = atLF
	case inHead:
		if c != invalidated[f.chars] {
			return misframed("a push")
		}
		if f.chars++; f.chars == len(invalidated) {
			f.depth, f.left[0], f.state = 1, 1, atType
		}
	case atLF:
		if c != '\n' {
			return misframed("no line end where one is due")
		}
		return f.line()
	}
	return nil
}

// begin reads the type of a value.
func (f *framing) begin(c byte) error {
	if f.depth == 0 && c == '>' && f.pushed != nil && f.pushed() {
		f.push, f.elems, f.room = true, f.lim.elems, f.lim.room
		f.state, f.chars = inHead, 1
		return nil
	}
	if f.push && !(c == '*' && f.depth == 1 || c == '_' && f.depth == 1 || c == '$' && f.depth == 2) {
		return misframed("a push of type %q", c)
	}
	if f.depth == 0 {
		if f.asked != nil && f.began >= f.asked() {
			return misframed("a reply that nobody asked for")
		}
		f.began++
		f.elems, f.room = f.lim.elems, f.lim.room
	}
	f.kind, f.head, f.null, f.size, f.chars = c, false, false, 0, 0
	switch c {
	case '+', '-', ',', '(':
		f.state = inText
	case ':':
		f.state = inNumber
	case '_':
		f.state = atCR
	case '#':
		f.state = inBool
	case '$', '!', '=':
		f.state, f.head, f.limit = inLength, true, min(f.lim.bulk, f.room)
	case '*', '~':
		f.state, f.head, f.limit = inLength, true, f.elems
	case '%':
		f.state, f.head, f.limit = inLength, true, f.elems/2
	case '|':
		f.state, f.head, f.limit = inLength, true, (f.elems-1)/2
	case '>':
		// We subscribe to nothing, and what has changed comes between replies. rueidis takes a push that confirms a
		// subscription for a reply, and panics.
		return misframed("a push")
	default:
		return misframed("type %q", c)
	}
	return nil
}

// length reads on in a length.
func (f *framing) length(c byte) error {
	switch {
	case c == '\r' && f.chars > 0 && (!f.null || f.size == 1):
		f.state = atLF
	case c == '-' && f.chars == 0 && (f.kind == '$' || f.kind == '*'):
		f.null, f.limit = true, 1
	case c-'0' > 9, f.chars > 0 && f.size == 0 && !f.null, f.null && c != '1':
		return misframed("not a length")
	default:
		d := int(c - '0')
		if f.size > f.limit/10 || 10*f.size > f.limit-d {
			return misframed("a length beyond the limit")
		}
		f.size = 10*f.size + d
	}
	f.chars++
	return nil
}

// line ends one.
func (f *framing) line() error {
	switch {
	case !f.head || f.null:
		f.end()
	case f.kind == '$' || f.kind == '!' || f.kind == '=':
		f.head, f.skip, f.state, f.room = false, f.size, atCR, f.room-f.size
	default:
		n := f.size
		switch f.kind {
		case '%':
			n = 2 * n
		case '|':
			n = 2*n + 1 // and the value that it is about, with which it ends
		}
		switch f.elems -= n; {
		case n == 0:
			f.end()
		case f.depth == maxDepth:
			return misframed("too deep a nesting")
		default:
			f.left[f.depth] = n
			f.depth++
			f.state = atType
		}
	}
	return nil
}

// end ends a value, and those that it was the last one of.
func (f *framing) end() {
	f.state = atType
	for f.depth > 0 {
		f.left[f.depth-1]--
		if f.left[f.depth-1] > 0 {
			return
		}
		f.depth--
	}
	if f.push {
		f.push = false
		return
	}
	f.ended++
}
