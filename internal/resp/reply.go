package resp

import (
	"bytes"
	"strconv"
)

// Kind is the type of a Value: the byte that announces it on the wire.
type Kind byte

const (
	Simple    Kind = '+'
	Error     Kind = '-'
	Int       Kind = ':'
	Bulk      Kind = '$'
	Array     Kind = '*'
	Null      Kind = '_' // from here on RESP3 only
	Bool      Kind = '#'
	Double    Kind = ','
	BigNumber Kind = '('
	BlobError Kind = '!'
	Verbatim  Kind = '='
	Map       Kind = '%'
	Set       Kind = '~'
	Push      Kind = '>'

	attribute Kind = '|' // read and dropped: what it says is about the value behind it, and optional
)

func (k Kind) aggregate() bool {
	return k == Array || k == Map || k == Set || k == Push || k == attribute
}

// Value is one reply, or an element of one.
type Value struct {
	Kind  Kind
	Str   []byte  // the text of all kinds but Int, Bool, Null and the aggregates; aliases the buffer. Verbatim: without its format
	Int   int64   // Int; Bool: 0 or 1
	Elems []Value // Array, Set, Push; Map: key, value, key, value
	Null  bool    // `$-1`, `*-1` or `_`
}

// ReplyLimits bound what one reply may make us hold. A field that is zero means the default; more than 512 MiB counts
// as 512 MiB.
type ReplyLimits struct {
	Bulk  int // bytes of one string; default 16 MiB
	Elems int // elements of all aggregates together; default 65536, at most 2^24
	Depth int // of aggregates in aggregates: 1 is an array without arrays; default 16, at most 128
	Reply int // bytes of a whole reply on the wire; default Bulk + 1 MiB
}

const (
	// maxLine bounds what ends at a CRLF and has no length: status, errors, numbers. Redis's are far shorter.
	maxLine = 64 << 10
	// minItem is the size of the smallest elements, `+\r\n` and `_\r\n`.
	minItem = 3
)

// ParseReply reads one reply from the front of buf, and ScanReply's comment holds for it. Strings alias buf. Memory
// for elements is allocated when all of the reply has arrived.
func ParseReply(buf []byte, lim ReplyLimits) (v Value, n, need int, err error) {
	v, n, need, err = readReply(buf, lim, false)
	if err == nil && v.Kind.aggregate() && !v.Null {
		v, n, need, err = readReply(buf, lim, true)
	}
	return v, n, need, err
}

// ScanReply finds the end of the reply at the front of buf. It checks what ParseReply checks and allocates nothing.
// Where err is ErrIncomplete, need is the least length that buf must have for the reply to be complete, or 0; it is at
// most lim.Reply, and a buffer of lim.Reply bytes always suffices for a verdict. Other errors are *ProtocolError:
// the server is hostile or confused, or its replies are no longer in step with our requests.
func ScanReply(buf []byte, lim ReplyLimits) (n, need int, err error) {
	_, n, need, err = readReply(buf, lim, false)
	return n, need, err
}

func readReply(buf []byte, lim ReplyLimits, build bool) (v Value, n, need int, err error) {
	r := replyReader{
		bulk:  orDefault(lim.Bulk, 16<<20),
		elems: min(orDefault(lim.Elems, 65536), 1<<24),
		depth: min(orDefault(lim.Depth, 16), 128),
		owed:  1,
		build: build,
	}
	r.max = orDefault(lim.Reply, r.bulk+1<<20)
	r.buf = buf[:min(len(buf), r.max)] // as in ParseRequest
	v, err = r.value(0)
	switch {
	case err == nil:
		return v, r.pos, 0, nil
	case err == ErrIncomplete && len(r.buf) == r.max:
		return Value{}, 0, 0, refuse("too big reply")
	case err == ErrIncomplete && r.need > len(buf):
		return Value{}, 0, r.need, err
	}
	return Value{}, 0, 0, err
}

type replyReader struct {
	buf   []byte
	pos   int
	need  int
	owed  int // values that were announced and are not read yet
	build bool

	max, bulk, elems, depth int // what is left of the limits, as far as they add up
}

// value reads the value at r.pos and all that it contains.
func (r *replyReader) value(depth int) (Value, error) {
	for {
		v, err := r.item()
		if err != nil || !v.Kind.aggregate() || v.Null {
			return v, err
		}
		if depth == r.depth {
			return Value{}, refuse("too deep a reply")
		}
		if v.Kind == Push && depth > 0 {
			return Value{}, refuse("push inside a reply") // RESP3 specification: never within other types
		}
		n, build := int(v.Int), r.build
		v.Int = 0
		r.owed += n
		r.elems -= n
		if v.Kind == attribute {
			r.owed++ // the value that it belongs to
			r.elems--
			r.build = false
		} else if build && n > 0 {
			v.Elems = make([]Value, n)
		}
		for i := range n {
			e, err := r.value(depth + 1)
			if err != nil {
				return Value{}, err
			}
			if r.build {
				v.Elems[i] = e
			}
		}
		r.build = build
		if v.Kind != attribute {
			return v, nil
		}
	}
}

// item reads the scalar, or the head of an aggregate, at r.pos. In an aggregate's Int it returns how many elements
// follow.
func (r *replyReader) item() (v Value, err error) {
	r.need = r.pos + minItem*r.owed
	if r.need > r.max || r.elems < 0 {
		return v, refuse("too big reply")
	}
	if r.pos == len(r.buf) {
		return v, ErrIncomplete
	}
	v.Kind = Kind(r.buf[r.pos])
	start := r.pos + 1
	switch v.Kind {
	case Simple, Error, Int, Null, Bool, Double, BigNumber:
		v.Str, start, err = r.line(start)
		if err != nil {
			return v, err
		}
		if err = v.setLine(); err != nil {
			return v, err
		}

	case Bulk, BlobError, Verbatim:
		var size int
		if size, start, err = r.length(start, r.bulk, v.Kind == Bulk); err != nil {
			return v, err
		}
		if size < 0 {
			v.Null = true
			break
		}
		end := start + size
		r.need = end + 2 + minItem*(r.owed-1)
		switch {
		case r.need > r.max:
			return v, refuse("too big reply")
		case end+2 > len(r.buf):
			return v, ErrIncomplete
		case r.buf[end] != '\r' || r.buf[end+1] != '\n':
			return v, refuse("expected CRLF after a string")
		}
		v.Str = r.buf[start:end:end]
		if v.Kind == Verbatim {
			if size < 4 || v.Str[3] != ':' {
				return v, refuse("invalid verbatim string")
			}
			v.Str = v.Str[4:]
		}
		start = end + 2

	case Array, Set, Push, Map, attribute:
		limit, per := r.elems, 1
		if v.Kind == Map || v.Kind == attribute {
			limit, per = r.elems/2, 2
		}
		var n int
		if n, start, err = r.length(start, limit, v.Kind == Array); err != nil {
			return v, err
		}
		v.Int, v.Null = int64(max(n, 0)*per), n < 0

	default:
		return v, refuse("unknown type '" + printable(byte(v.Kind)) + "'")
	}
	r.pos = start
	r.owed--
	return v, nil
}

// length reads a length as in requests, and -1 where there are nulls. Lengths that a server does not know beforehand
// (`$?` in RESP3) are refused: none that we know sends them.
func (r *replyReader) length(start, limit int, nullable bool) (n, next int, err error) {
	if nullable && start < len(r.buf) && r.buf[start] == '-' {
		n, next = parseLen(r.buf, start+1, 1)
		if n = -n; n == 0 && next > 0 {
			next = bad // -0
		}
	} else {
		n, next = parseLen(r.buf, start, limit)
	}
	switch next {
	case wait:
		return 0, 0, ErrIncomplete
	case bad:
		return 0, 0, refuse("invalid length")
	}
	return n, next, nil
}

// line reads up to the CRLF.
func (r *replyReader) line(start int) (line []byte, next int, err error) {
	rest := r.buf[start:min(len(r.buf), start+maxLine)]
	end := bytes.IndexByte(rest, '\r')
	switch {
	case end < 0 && len(rest) == maxLine, end == maxLine-1:
		return nil, 0, refuse("too long line")
	case end < 0 || end+1 == len(rest):
		return nil, 0, ErrIncomplete
	case rest[end+1] != '\n' || bytes.IndexByte(rest[:end], '\n') >= 0:
		return nil, 0, refuse("stray line end")
	}
	return rest[:end:end], start + end + 2, nil
}

// setLine checks v.Str against v.Kind, and takes the value of those kinds that are not text out of it.
func (v *Value) setLine() error {
	s, ok := v.Str, true
	switch v.Kind {
	case Simple, Error:
		return nil
	case Int:
		// The sign may be a plus (RESP specification). The length keeps the conversion off the heap.
		if ok = len(s) <= len("-9223372036854775808"); ok {
			var err error
			v.Int, err = strconv.ParseInt(string(s), 10, 64)
			ok = err == nil
		}
	case Null:
		v.Null = true
		ok = len(s) == 0
	case Bool:
		if ok = string(s) == "t" || string(s) == "f"; ok && s[0] == 't' {
			v.Int = 1
		}
	case BigNumber:
		s, ok = digits(unsigned(s))
		ok = ok && len(s) == 0
	case Double:
		ok = isDouble(s)
	}
	if v.Kind == Int || v.Kind == Null || v.Kind == Bool {
		v.Str = nil
	}
	if !ok {
		return refuse("invalid number, boolean or null")
	}
	return nil
}

// isDouble follows the RESP3 specification, and allows the sign of nan that a C library may print.
func isDouble(s []byte) bool {
	s = unsigned(s)
	if string(s) == "inf" || string(s) == "nan" {
		return true
	}
	s, ok := digits(s)
	if ok && len(s) > 0 && s[0] == '.' {
		s, _ = digits(s[1:])
	}
	if ok && len(s) > 0 && s[0]|0x20 == 'e' {
		s, ok = digits(unsigned(s[1:]))
	}
	return ok && len(s) == 0
}

func unsigned(s []byte) []byte {
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		return s[1:]
	}
	return s
}

// digits returns what follows the digits that s begins with, and whether there are any.
func digits(s []byte) (rest []byte, ok bool) {
	i := 0
	for i < len(s) && s[i]-'0' <= 9 {
		i++
	}
	return s[i:], i > 0
}
