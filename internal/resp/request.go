package resp

import "bytes"

// Limits bound what one request may make us hold. A field that is zero means the default; more than 512 MiB counts
// as 512 MiB.
type Limits struct {
	Args    int // arguments, the command's name among them; default 64
	Arg     int // bytes of one argument; default 1 MiB
	Request int // bytes of a whole request on the wire; default Arg + 64 KiB
	Inline  int // bytes of an inline request with its line end; default 4096
}

// ParseRequest reads one request from the front of buf. It appends the arguments, which alias buf, to args and returns
// them with the number of bytes consumed. An empty request (an empty line, which Redis ignores too, or `*0`) is
// consumed and has no arguments; how many of them are too many is the caller's business.
//
// Where err is ErrIncomplete, need is the length that buf must have before anything new can be said, as far as that
// is known, and 0 where not; a caller that waits for it does not parse a big value again with each of its pieces. It
// is at most lim.Request, and a buffer of lim.Request bytes always suffices for a verdict. On every error out holds
// what args held.
func ParseRequest(buf []byte, lim Limits, args [][]byte) (out [][]byte, n, need int, err error) {
	maxArg := orDefault(lim.Arg, 1<<20)
	maxRequest := orDefault(lim.Request, maxArg+64<<10)
	// What lies behind the limit must not count, or the verdict would depend on how much was read at once.
	buf = buf[:min(len(buf), maxRequest)]
	if len(buf) == 0 {
		return args, 0, 0, ErrIncomplete
	}
	if buf[0] != '*' {
		return parseInline(buf, min(orDefault(lim.Inline, 4096), maxRequest), args)
	}
	out = args
	incomplete := func(need int) ([][]byte, int, int, error) {
		if len(buf) == maxRequest {
			return out[:len(args)], 0, 0, refuse("too big request")
		}
		return out[:len(args)], 0, need, ErrIncomplete
	}
	refused := func(text string) ([][]byte, int, int, error) {
		return out[:len(args)], 0, 0, refuse(text)
	}

	left, pos := parseLen(buf, 1, orDefault(lim.Args, 64))
	switch pos {
	case wait:
		return incomplete(0)
	case bad:
		return refused("invalid multibulk length")
	}
	for ; left > 0; left-- {
		if pos == len(buf) {
			return incomplete(0)
		}
		if buf[pos] != '$' {
			return refused("expected '$', got '" + printable(buf[pos]) + "'")
		}
		size, start := parseLen(buf, pos+1, maxArg)
		if start == wait {
			return incomplete(0)
		}
		end := start + size
		switch {
		case start == bad || end+2 > maxRequest:
			return refused("invalid bulk length")
		case end >= len(buf):
			return incomplete(end + 1) // not end+2: the next byte may already be the wrong one
		case buf[end] != '\r':
			return refused("expected CRLF after an argument")
		case end+1 == len(buf):
			return incomplete(end + 2)
		case buf[end+1] != '\n':
			return refused("expected CRLF after an argument")
		}
		out = append(out, buf[start:end:end])
		pos = end + 2
	}
	return out, pos, 0, nil
}

// parseInline reads the requests that are not arrays: PING and QUIT, which health checks and people send, and the
// empty line. Anything else is refused, since a line of text is what other protocols can be made to send us.
func parseInline(buf []byte, limit int, args [][]byte) ([][]byte, int, int, error) {
	switch c := buf[0]; {
	case c == '\n':
		return args, 1, 0, nil
	case c == '\r' && len(buf) == 1:
		return args, 0, 0, ErrIncomplete
	case c == '\r' && buf[1] == '\n':
		// The signature of PROXY v2 begins with two of these; the NUL behind them ends it, long before its "QUIT\n".
		return args, 2, 0, nil
	case c == 0x16:
		return args, 0, 0, refuseForeign("TLS") // handshake record, RFC 8446, 5.1
	case c != '\r' && c < ' ' || c > '~':
		return args, 0, 0, refuseForeign("a binary protocol") // memcached's, say, or PROXY v2
	case c|0x20 < 'a' || c|0x20 > 'z':
		// The other types of RESP are among these: they are no requests.
		return args, 0, 0, refuse("expected '*', got '" + printable(c) + "'")
	}

	line := buf[:min(len(buf), limit)]
	end := bytes.IndexByte(line, '\n')
	if end < 0 && len(line) < limit {
		return args, 0, 0, ErrIncomplete
	}
	if end >= 0 {
		line = bytes.TrimSuffix(line[:end], []byte("\r"))
		if bytes.EqualFold(line, []byte("PING")) || bytes.EqualFold(line, []byte("QUIT")) {
			return append(args, line[:4:4]), end + 1, 0, nil
		}
	}
	if protocol := foreign(line); protocol != "" {
		return args, 0, 0, refuseForeign(protocol)
	}
	if end < 0 {
		return args, 0, 0, refuse("too big inline request")
	}
	return args, 0, 0, refuse("only PING and QUIT can be sent inline")
}

// foreign names the protocol that line belongs to, if it looks like one. A browser can be made to send HTTP to any
// port, with commands in the body; Redis therefore hangs up at POST and Host: (securityWarningCommand in its
// server.c), but reads `OPTIONS * HTTP/1.1` as just another unknown command.
func foreign(line []byte) string {
	line = bytes.ToUpper(line)
	word, rest, _ := bytes.Cut(line, []byte(" "))
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
