package memcache

import (
	"bytes"
	"encoding/base64"
	"math"
)

// ParseText reads one request of the text protocol from the front of buf.
//
// It returns the number of bytes that are done with. They may be more than buf has: then err is an *Error, and what is
// missing is data of the refused request, to be dropped as it arrives.
//
// Where err is ErrIncomplete, need is the length that buf must have before anything new can be said, as far as that is
// known, and 0 where not. A buffer of a line, an item and two bytes, as lim has them, always suffices for a verdict.
func (r *Request) ParseText(buf []byte, lim Limits) (n, need int, err error) {
	r.reset(textForm)
	if len(buf) == 0 {
		return 0, 0, ErrIncomplete
	}
	switch c := buf[0]; {
	case c == 0x16:
		return 0, 0, foreign("TLS") // a handshake record, RFC 8446, 5.1
	case c < ' ' && c != '\r' && c != '\n', c >= 0x7f:
		// PROXY v2 is seen here: its signature begins with two empty lines, and the NUL behind them comes before its "QUIT\n".
		return 0, 0, foreign("a binary protocol")
	}
	maxLine := lim.line()
	line := buf[:min(len(buf), maxLine)]
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		switch {
		case len(line) < maxLine:
			return 0, 0, ErrIncomplete
		case foreignLine(line) != "":
			return 0, 0, foreign(foreignLine(line))
		}
		return 0, 0, errNonsense // as memcached, which waits for 2048 bytes, and for more of a get
	}
	n = end + 1
	line, crlf := bytes.CutSuffix(line[:end], []byte("\r"))
	size, refused := r.parseLine(line, lim)
	if refused == nil && (!crlf || hasControl(line)) {
		refused = errFormat
	}
	if !crlf && size != noData {
		size = lost // whoever ends a line with LF may end the data so too
	}
	switch {
	case refused == nil && size == noData:
		return n, 0, nil
	case refused == nil: // here come the data
	case refused.Close || size == lost:
		e := *refused
		e.Close = true
		return 0, 0, &e
	case size == noData:
		return n, 0, refused
	default:
		return n + size + 2, 0, refused
	}
	end = n + size
	switch {
	case len(buf) <= end:
		return 0, end + 1, ErrIncomplete // not end+2: the next byte may already be the wrong one
	case buf[end] != '\r':
		return 0, 0, errBadData
	case len(buf) == end+1:
		return 0, end + 2, ErrIncomplete
	case buf[end+1] != '\n':
		return 0, 0, errBadData
	}
	r.Value = buf[n:end:end]
	return end + 2, 0, nil
}

const (
	noData = -1 // parseLine: the line is the whole request
	lost   = -2 // parseLine: data follow, and nobody knows how many
)

var storage = map[string]Op{"set": OpSet, "add": OpAdd, "replace": OpReplace, "append": OpAppend, "prepend": OpPrepend, "cas": OpSet}

// parseLine reads a line without its end into r, and returns how many bytes of data follow, whether or not it is refused.
func (r *Request) parseLine(line []byte, lim Limits) (size int, refused *Error) {
	maxKeys := lim.keys()
	r.tokenize(line, max(maxKeys+3, maxMeta+2)) // one more than any line may have, which is gat, exptime and the keys
	t := r.tokens
	if len(t) == 0 {
		return noData, ErrUnknownCommand
	}
	verb := t[0]
	if op, ok := storage[string(verb)]; ok {
		return r.parseStorage(op, lim)
	}
	switch string(verb) {
	case "get", "gets":
		r.Op, r.withCAS = OpGet, len(verb) == 4
		return noData, r.takeKeys(t[1:], maxKeys)
	case "gat", "gats":
		r.Op, r.withCAS = OpGetTouch, len(verb) == 4
		if len(t) < 3 {
			return noData, ErrUnknownCommand
		}
		if !parseExptime(t[1], &r.Exptime) {
			return noData, errExptime
		}
		return noData, r.takeKeys(t[2:], maxKeys)
	case "incr", "decr":
		r.Op = OpIncr
		if verb[0] == 'd' {
			r.Op = OpDecr
		}
		switch {
		case !r.arguments(2):
			return noData, ErrUnknownCommand
		case !r.noreply(2) || r.takeKeys(t[1:2], 1) != nil:
			return noData, errFormat
		case !parseUint(t[2], math.MaxUint64, &r.Delta):
			return noData, clientError("invalid numeric delta argument")
		}
	case "touch":
		r.Op = OpTouch
		switch {
		case !r.arguments(2):
			return noData, ErrUnknownCommand
		case !r.noreply(2) || r.takeKeys(t[1:2], 1) != nil:
			return noData, errFormat
		case !parseExptime(t[2], &r.Exptime):
			return noData, errExptime
		}
	case "delete":
		// The time to hold the key that old clients send may be 0 only (process_delete_command).
		r.Op = OpDelete
		switch {
		case len(t) < 2 || len(t) > 4:
			return noData, ErrUnknownCommand
		case len(t) > 2 && string(t[2]) == "0" && !r.noreply(2), len(t) > 2 && string(t[2]) != "0" && !r.noreply(1):
			return noData, clientError("bad command line format.  Usage: delete <key> [noreply]")
		}
		return noData, r.takeKeys(t[1:2], 1)
	case "flush_all":
		r.Op = OpFlush
		switch {
		case len(t) > 3:
			return noData, ErrUnknownCommand
		case r.noreply(0):
		case !r.noreply(1):
			return noData, errFormat
		case !parseExptime(t[1], &r.Exptime):
			return noData, errExptime
		}
	case "verbosity":
		r.Op = OpVerbosity
		switch {
		case !r.arguments(1):
			return noData, ErrUnknownCommand
		case !r.noreply(1) || !parseUint(t[1], math.MaxUint32, new(uint64)):
			return noData, errFormat
		}
	case "stats":
		r.Op = OpStats
		r.Keys = t[1:]
	case "version":
		r.Op = OpVersion
	case "quit":
		r.Op = OpQuit
	case "mn":
		r.form, r.Op = metaForm, OpNoop
	case "mg", "ms", "md", "me":
		return r.parseMeta(lim)
	default:
		if protocol := foreignLine(line); protocol != "" {
			return noData, foreign(protocol)
		}
		return noData, ErrUnknownCommand
	}
	return noData, nil
}

// tokenize splits line at spaces, any number of them, and stops at limit tokens.
func (r *Request) tokenize(line []byte, limit int) {
	for len(r.tokens) < limit {
		line = bytes.TrimLeft(line, " ")
		if len(line) == 0 {
			return
		}
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		r.tokens = append(r.tokens, line[:end:end])
		line = line[end:]
	}
}

// arguments: the verb has n, and perhaps noreply behind them.
func (r *Request) arguments(n int) bool {
	return len(r.tokens) == n+1 || len(r.tokens) == n+2
}

// noreply reads what is behind n arguments: nothing or "noreply". Anything else memcached takes for nothing. An error is
// not told either to who wants no reply (out_string in memcached.c): it would be taken for the answer to the next request.
func (r *Request) noreply(n int) bool {
	t := r.tokens
	r.Quiet = len(t) > 1 && string(t[len(t)-1]) == "noreply"
	return len(t) == n+1 || len(t) == n+2 && r.Quiet
}

func (r *Request) takeKeys(keys [][]byte, limit int) *Error {
	if len(keys) == 0 {
		return ErrUnknownCommand
	}
	for _, key := range keys {
		if len(key) > MaxKey {
			return errFormat
		}
	}
	if len(keys) > limit {
		return clientError("too many keys")
	}
	r.Keys = keys
	return nil
}

// parseStorage reads <verb> <key> <flags> <exptime> <bytes> [<cas>] [noreply].
func (r *Request) parseStorage(op Op, lim Limits) (size int, refused *Error) {
	t := r.tokens
	r.Op, r.HasCAS = op, string(t[0]) == "cas"
	args := 4
	if r.HasCAS {
		args = 5
	}
	var length, flags uint64
	size = lost
	if len(t) > 4 && parseUint(t[4], maxValue, &length) {
		size = int(length)
	}
	switch {
	case !r.arguments(args):
		return size, ErrUnknownCommand
	case !r.noreply(args) || size == lost,
		r.takeKeys(t[1:2], 1) != nil,
		!parseUint(t[2], math.MaxUint32, &flags),
		!parseExptime(t[3], &r.Exptime),
		r.HasCAS && !parseUint(t[5], math.MaxUint64, &r.CAS):
		return size, errFormat
	case size > lim.item():
		return size, ErrTooLarge
	}
	r.Flags = uint32(flags)
	return size, nil
}

const (
	maxMeta   = 19 // tokens of a meta command (MFLAG_MAX_OPT_LENGTH, which counts the end too)
	maxOpaque = 32 // bytes of an O flag with its letter (MFLAG_MAX_OPAQUE_LENGTH)
)

// parseMeta reads mg, md and me <key> <flags>*, and ms <key> <bytes> <flags>* (protocol.txt, "Meta Commands").
func (r *Request) parseMeta(lim Limits) (size int, refused *Error) {
	t := r.tokens
	r.form = metaForm
	verb, flags := t[0][1], 2
	size = noData
	if verb == 's' {
		var length uint64
		flags, size = 3, lost
		if len(t) > 2 && parseUint(t[2], maxValue, &length) {
			size = int(length)
		}
	}
	switch {
	case len(t) < 2 && verb == 'e':
		return size, errFormat
	case len(t) < 2:
		return noData, ErrUnknownCommand // an ms without a key has no data either
	case len(t[1]) > MaxKey || size == lost:
		return size, errFormat
	case len(t) > maxMeta && verb == 'g':
		return size, clientError("options flags are too long")
	case len(t) > maxMeta && verb != 'e':
		return size, clientError("options flags too long")
	}
	r.rawKey, r.Keys, r.meta = t[1], t[1:2], t[flags:]
	switch verb {
	case 'e':
		r.Op = OpDebug
		if len(r.meta) > 0 && string(r.meta[0]) == "b" && !r.decodeKey() {
			return size, errFormat
		}
		return size, nil
	case 'g':
		r.Op = OpGet
	case 's':
		r.Op = OpSet
	case 'd':
		r.Op = OpDelete
	}
	if refused := r.parseFlags(); refused != nil {
		if verb == 'd' {
			refused = clientError("invalid or duplicate flag")
		}
		return size, refused
	}
	for _, f := range r.meta {
		if f[0] == 'O' && len(f) > maxOpaque {
			return size, clientError("opaque token too long")
		}
	}
	r.Quiet = r.HasFlag('q')
	switch {
	case verb == 'g' && r.HasFlag('T'):
		r.Op = OpGetTouch
	case verb == 's':
		return r.finishMetaSet(size, lim)
	}
	return size, nil
}

// metaModes are those of ms M (process_mset_command).
var metaModes = map[byte]Op{'E': OpAdd, 'A': OpAppend, 'P': OpPrepend, 'R': OpReplace, 'S': OpSet}

func (r *Request) finishMetaSet(size int, lim Limits) (int, *Error) {
	for _, f := range r.meta {
		if f[0] == 'M' {
			op, ok := metaModes[f[1]]
			if !ok {
				return size, clientError("invalid mode for ms M token")
			}
			r.Op = op
		}
	}
	if size > lim.item() {
		return size, ErrTooLarge
	}
	// As in process_mset_command: with a CAS, replace is set, and add looks at whether there is an item only.
	switch r.Op {
	case OpReplace:
		if r.HasCAS {
			r.Op = OpSet
		}
	case OpAdd:
		r.HasCAS = false
	}
	return size, nil
}

// parseFlags reads the flags of a meta command. As in memcached, all have the same in all commands, and of several errors
// the last is told (_meta_flag_preparse).
func (r *Request) parseFlags() (refused *Error) {
	for _, f := range r.meta {
		letter, arg := f[0], f[1:]
		if letter >= 127 || r.HasFlag(letter) {
			return clientError("duplicate flag")
		}
		r.seen[letter/64] |= 1 << (letter % 64)
		var n uint64
		var t int64
		switch letter {
		case 'b':
			if !r.decodeKey() {
				refused = clientError("error decoding key")
			}
		case 'T':
			if !parseExptime(arg, &r.Exptime) {
				refused = errToken
			}
		case 'N', 'R':
			if !parseExptime(arg, &t) {
				refused = errToken
			}
		case 'F':
			if !parseUint(arg, math.MaxUint32, &n) {
				refused = errFormat
			}
			r.Flags = uint32(n)
		case 'C':
			if !parseUint(arg, math.MaxUint64, &r.CAS) {
				refused = errToken
			}
			r.HasCAS = true
		case 'M':
			if len(arg) != 1 {
				refused = clientError("incorrect length for M token")
			}
		case 'J':
			if !parseUint(arg, math.MaxUint64, &r.Initial) {
				refused = clientError("invalid numeric initial value")
			}
		case 'D':
			if !parseUint(arg, math.MaxUint64, &r.Delta) {
				refused = clientError("invalid numeric delta value")
			}
		case 'l', 'O', 'P', 'L', 'k', 's', 't', 'c', 'f', 'v', 'h', 'u', 'q', 'I':
		default:
			return clientError("invalid flag")
		}
	}
	return refused
}

// strict64 knows one spelling of a key, so that the key can be given back as it was sent.
var strict64 = base64.StdEncoding.Strict()

func (r *Request) decodeKey() bool {
	// A key of MaxKey characters in base64 is shorter when decoded.
	n, err := strict64.Decode(r.decoded[:], r.rawKey)
	if err != nil || n == 0 {
		return false
	}
	r.tokens[1] = r.decoded[:n:n]
	return true
}

// parseUint reads decimal digits, not more than limit. memcached's strtoul takes signs, blanks and, of an exptime or flags
// beyond 32 bits, a part (1.6.18).
func parseUint(b []byte, limit uint64, n *uint64) bool {
	if len(b) == 0 {
		return false
	}
	var v uint64
	for _, c := range b {
		d := uint64(c - '0')
		if c < '0' || c > '9' || v > (limit-d)/10 {
			return false
		}
		v = v*10 + d
	}
	*n = v
	return true
}

// parseExptime reads a number of 32 bits.
func parseExptime(b []byte, t *int64) bool {
	digits, negative := bytes.CutPrefix(b, []byte("-"))
	var n uint64
	switch {
	case !negative && parseUint(b, math.MaxInt32, &n):
		*t = int64(n)
	case negative && parseUint(digits, -math.MinInt32, &n):
		*t = -int64(n)
	default:
		return false
	}
	return true
}

func hasControl(line []byte) bool {
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return true
		}
	}
	return false
}

// foreignLine names the protocol that a line belongs to that is no request, if it looks like one. A browser can be made to
// send HTTP to any port, with commands in the body; memcached hangs up at GET and POST (1.6.18).
func foreignLine(line []byte) string {
	word, rest, _ := bytes.Cut(bytes.ToUpper(line), []byte(" "))
	switch {
	case string(word) == "PROXY":
		return "the PROXY protocol"
	case bytes.HasPrefix(word, []byte("SSH-")):
		return "SSH"
	case string(word) == "POST",
		bytes.Contains(rest, []byte("HTTP/")),
		bytes.HasPrefix(rest, []byte("/")), // HTTP/0.9, or the end of a long line is not here
		bytes.HasPrefix(rest, []byte("HTTP:")),
		bytes.IndexByte(word, ':') > 0: // a header
		return "HTTP"
	}
	return ""
}
