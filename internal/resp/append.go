package resp

import "strconv"

// The Append functions write one element behind b and return the longer slice, as append does. proto is the
// connection's protocol version, 2 or 3.

func AppendSimple(b []byte, text string) []byte { return appendLine(append(b, '+'), text) }

// AppendError writes text, which begins with its code (ERR, NOAUTH ...), as an error.
func AppendError(b []byte, text string) []byte { return appendLine(append(b, '-'), text) }

func AppendInt(b []byte, n int64) []byte {
	return append(strconv.AppendInt(append(b, ':'), n, 10), "\r\n"...)
}

func AppendBulk(b, data []byte) []byte {
	return append(append(appendLen(b, '$', len(data)), data...), "\r\n"...)
}

func AppendBulkString(b []byte, data string) []byte {
	return append(append(appendLen(b, '$', len(data)), data...), "\r\n"...)
}

// AppendNull writes the answer "no such value".
func AppendNull(b []byte, proto int) []byte {
	if proto >= 3 {
		return append(b, "_\r\n"...)
	}
	return append(b, "$-1\r\n"...)
}

// AppendNullArray writes AppendNull's answer where an array is expected: RESP2 has two nulls.
func AppendNullArray(b []byte, proto int) []byte {
	if proto >= 3 {
		return append(b, "_\r\n"...)
	}
	return append(b, "*-1\r\n"...)
}

// AppendArrayLen begins an array: n elements follow.
func AppendArrayLen(b []byte, n int) []byte { return appendLen(b, '*', n) }

// AppendMapLen begins a map: n pairs follow. RESP2 has no maps and gets a flat array.
func AppendMapLen(b []byte, n, proto int) []byte {
	if proto >= 3 {
		return appendLen(b, '%', n)
	}
	return appendLen(b, '*', 2*n)
}

// AppendSetLen begins a set: n elements follow. RESP2 has no sets and gets an array.
func AppendSetLen(b []byte, n, proto int) []byte {
	if proto >= 3 {
		return appendLen(b, '~', n)
	}
	return appendLen(b, '*', n)
}

// AppendPushLen begins a message that is no reply: n elements follow. RESP2 gets an array.
func AppendPushLen(b []byte, n, proto int) []byte {
	if proto >= 3 {
		return appendLen(b, '>', n)
	}
	return appendLen(b, '*', n)
}

// AppendRequest writes a request.
func AppendRequest(b []byte, args ...[]byte) []byte {
	b = AppendArrayLen(b, len(args))
	for _, a := range args {
		b = AppendBulk(b, a)
	}
	return b
}

// AppendRequestStrings is AppendRequest for strings.
func AppendRequestStrings(b []byte, args ...string) []byte {
	b = AppendArrayLen(b, len(args))
	for _, a := range args {
		b = AppendBulkString(b, a)
	}
	return b
}

func appendLen(b []byte, kind byte, n int) []byte {
	return append(strconv.AppendInt(append(b, kind), int64(n), 10), "\r\n"...)
}

// appendLine writes text with spaces for CR and LF, as Redis does: an error may quote what a client sent, and a line
// end in it would forge the next reply.
func appendLine(b []byte, text string) []byte {
	start := len(b)
	b = append(b, text...)
	for i := start; i < len(b); i++ {
		if b[i] == '\r' || b[i] == '\n' {
			b[i] = ' '
		}
	}
	return append(b, "\r\n"...)
}
