package memcache

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// The Append methods write an answer to the request behind b and return the longer slice, as append does.

// Item is what a get answers with.
type Item struct {
	Value []byte
	Flags uint32
	CAS   uint64 // for gets, the binary protocol and meta

	// The rest is for meta only.
	TTL     int64 // seconds until its deadline; -1 means never
	Idle    int64 // seconds since it was last used
	Fetched bool  // it has been used
}

// AppendItem says that key, one of those asked for, is there.
func (r *Request) AppendItem(b, key []byte, it Item) []byte {
	switch {
	case r.form == binaryForm:
		if !r.returnsKey() {
			key = nil
		}
		b = r.appendHeader(b, statusOK, 4, len(key), len(it.Value), it.CAS)
		b = binary.BigEndian.AppendUint32(b, it.Flags)
		return append(append(b, key...), it.Value...)
	case r.Op == OpDebug:
		return r.appendDebug(b, it)
	case r.form == metaForm && !r.HasFlag('v'):
		return append(r.appendMetaFlags(append(b, "HD"...), it), "\r\n"...)
	case r.form == metaForm:
		b = strconv.AppendInt(append(b, "VA "...), int64(len(it.Value)), 10)
		return appendData(r.appendMetaFlags(b, it), it.Value)
	}
	b = append(append(b, "VALUE "...), key...)
	b = appendUint(append(b, ' '), uint64(it.Flags))
	b = appendUint(append(b, ' '), uint64(len(it.Value)))
	if r.withCAS {
		b = appendUint(append(b, ' '), it.CAS)
	}
	return appendData(b, it.Value)
}

// AppendEnd comes behind the last item of OpGet, OpGetTouch and OpDebug, and behind the last AppendStat.
func (r *Request) AppendEnd(b []byte) []byte {
	switch {
	case r.form == textForm:
		return append(b, "END\r\n"...)
	case r.Op == OpStats:
		return r.appendHeader(b, statusOK, 0, 0, 0, 0)
	}
	return b
}

// Result is what became of a request.
type Result uint8

const (
	Done      Result = iota // stored, deleted, touched ...
	NotFound                // there is no such item
	Exists                  // the item has another CAS
	NotStored               // there is an item that add, or none that replace, append or prepend found
)

// AppendResult says what became of a request that is not answered with an item, a number or a text. cas is the item's
// after it, for who asked.
func (r *Request) AppendResult(b []byte, res Result, cas uint64) []byte {
	switch {
	case r.Mute:
		return b
	case r.form == binaryForm:
		return r.appendBinaryResult(b, res, cas)
	case r.form == metaForm:
		return r.appendMetaResult(b, res, cas)
	}
	if r.Quiet {
		return b
	}
	switch res {
	case NotFound:
		switch r.Op {
		case OpGet, OpGetTouch:
			return b // what is not there is not named
		case OpStats:
			return append(b, "ERROR\r\n"...)
		}
		return append(b, "NOT_FOUND\r\n"...)
	case Exists:
		return append(b, "EXISTS\r\n"...)
	case NotStored:
		return append(b, "NOT_STORED\r\n"...)
	}
	switch r.Op {
	case OpSet, OpAdd, OpReplace, OpAppend, OpPrepend:
		return append(b, "STORED\r\n"...)
	case OpDelete:
		return append(b, "DELETED\r\n"...)
	case OpTouch:
		return append(b, "TOUCHED\r\n"...)
	case OpQuit:
		return b
	case OpStats:
		return append(b, "RESET\r\n"...)
	}
	return append(b, "OK\r\n"...)
}

func (r *Request) appendBinaryResult(b []byte, res Result, cas uint64) []byte {
	switch res {
	case Done:
		if r.Quiet {
			return b
		}
		if r.Op == OpTouch {
			// Four bytes for flags, as memcached sends, though no client needs a touch to tell it the flags: they are 0 here.
			return append(r.appendHeader(b, statusOK, 4, 0, 0, cas), 0, 0, 0, 0)
		}
		return r.appendHeader(b, statusOK, 0, 0, 0, cas)
	case NotFound:
		if r.Op == OpGet || r.Op == OpGetTouch {
			if r.Quiet {
				return b
			}
			if r.returnsKey() {
				return append(r.appendHeader(b, statusNotFound, 0, len(r.Keys[0]), 0, 0), r.Keys[0]...)
			}
		}
		return r.appendStatus(b, statusNotFound, "")
	case Exists:
		return r.appendStatus(b, statusExists, "")
	}
	// NotStored (complete_update_bin).
	switch r.Op {
	case OpAdd:
		return r.appendStatus(b, statusExists, "")
	case OpReplace:
		return r.appendStatus(b, statusNotFound, "")
	}
	return r.appendStatus(b, statusNotStored, "")
}

func (r *Request) appendMetaResult(b []byte, res Result, cas uint64) []byte {
	get := r.Op == OpGet || r.Op == OpGetTouch || r.Op == OpDebug
	switch {
	case r.Op == OpNoop:
		return append(b, "MN\r\n"...)
	case r.Quiet && (res == Done || get):
		return b // q hides what is expected: HD, and of a get EN (1.6.18)
	case res == Done:
		b = append(b, "HD"...)
	case res == NotFound && get:
		b = append(b, "EN"...)
	case res == NotFound:
		b = append(b, "NF"...)
	case res == Exists:
		b = append(b, "EX"...)
	default:
		b = append(b, "NS"...)
	}
	if r.Op == OpDebug {
		return append(b, "\r\n"...)
	}
	for _, f := range r.meta {
		switch {
		case f[0] == 'c' && !get && r.Op != OpDelete:
			b = appendUint(append(b, " c"...), cas)
		default:
			b = r.appendEcho(b, f)
		}
	}
	return append(b, "\r\n"...)
}

// appendEcho gives back the flags that are the same in every answer.
func (r *Request) appendEcho(b, f []byte) []byte {
	switch f[0] {
	case 'O':
		return append(append(b, ' '), f...)
	case 'k':
		b = append(append(b, " k"...), r.rawKey...)
		if r.HasFlag('b') {
			b = append(b, " b"...)
		}
	}
	return b
}

// appendMetaFlags gives each flag its value, in the client's order (process_mget_command).
func (r *Request) appendMetaFlags(b []byte, it Item) []byte {
	for _, f := range r.meta {
		switch f[0] {
		case 's':
			b = appendUint(append(b, " s"...), uint64(len(it.Value)))
		case 't':
			b = strconv.AppendInt(append(b, " t"...), it.TTL, 10)
		case 'c':
			b = appendUint(append(b, " c"...), it.CAS)
		case 'f':
			b = appendUint(append(b, " f"...), uint64(it.Flags))
		case 'l':
			b = strconv.AppendInt(append(b, " l"...), it.Idle, 10)
		case 'h':
			b = append(b, " h0"...)
			if it.Fetched {
				b[len(b)-1] = '1'
			}
		default:
			b = r.appendEcho(b, f)
		}
	}
	return b
}

// appendDebug answers me (process_meta_command). Its exp is the time since the deadline. We have no slab classes, and the
// size is the value's.
func (r *Request) appendDebug(b []byte, it Item) []byte {
	exp := -it.TTL
	if it.TTL < 0 {
		exp = -1
	}
	fetched := "no"
	if it.Fetched {
		fetched = "yes"
	}
	b = append(append(b, "ME "...), r.rawKey...)
	b = strconv.AppendInt(append(b, " exp="...), exp, 10)
	b = strconv.AppendInt(append(b, " la="...), it.Idle, 10)
	b = appendUint(append(b, " cas="...), it.CAS)
	b = append(append(b, " fetch="...), fetched...)
	b = appendUint(append(b, " cls=0 size="...), uint64(len(it.Value)))
	return append(b, "\r\n"...)
}

// AppendNumber says what incr and decr came to.
func (r *Request) AppendNumber(b []byte, n, cas uint64) []byte {
	switch {
	case r.Quiet:
		return b
	case r.form == binaryForm:
		return binary.BigEndian.AppendUint64(r.appendHeader(b, statusOK, 0, 0, 8, cas), n)
	}
	return append(appendUint(b, n), "\r\n"...)
}

// AppendStat is one line of statistics.
func (r *Request) AppendStat(b []byte, name, value string) []byte {
	if r.form == binaryForm {
		b = r.appendHeader(b, statusOK, 0, len(name), len(value), 0)
		return append(append(b, name...), value...)
	}
	return appendLine(b, "STAT "+name+" "+value)
}

// AppendText answers OpVersion, and what is about SASL.
func (r *Request) AppendText(b []byte, text string) []byte {
	if r.form == binaryForm {
		return append(r.appendHeader(b, statusOK, 0, 0, len(text), 0), text...)
	}
	return appendLine(b, "VERSION "+text)
}

// AppendError says why a request is refused, whether a parser refused it or who serves it. Beware of an error on a get: PHP
// takes any for an empty session and writes it over the real one, where it takes a closed connection for what it is
// (measured with php-memcached 3.2.0).
func (r *Request) AppendError(b []byte, e *Error) []byte {
	switch {
	case e.Reply == "", r.Mute:
		return b
	case r.form == binaryForm:
		_, reason, _ := strings.Cut(e.Reply, " ")
		return r.appendStatus(b, e.Status, reason)
	case r.form == textForm && r.Quiet:
		return b
	}
	return appendLine(b, e.Reply)
}

// statusTexts are memcached's own (write_bin_error).
var statusTexts = map[Status]string{
	statusNotFound:       "Not found",
	statusExists:         "Data exists for key.",
	StatusTooLarge:       "Too large.",
	StatusInvalid:        "Invalid arguments",
	statusNotStored:      "Not stored.",
	StatusNotNumber:      "Non-numeric server-side value for incr or decr",
	StatusAuth:           "Auth failure.",
	StatusUnknownCommand: "Unknown command",
	StatusNoMemory:       "Out of memory",
}

func (r *Request) appendStatus(b []byte, s Status, reason string) []byte {
	if text, ok := statusTexts[s]; ok {
		reason = text
	}
	return append(r.appendHeader(b, s, 0, 0, len(reason), 0), reason...)
}

func (r *Request) appendHeader(b []byte, s Status, extras, key, value int, cas uint64) []byte {
	b = append(b, responseMagic, r.opcode)
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = append(b, byte(extras), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(s))
	b = binary.BigEndian.AppendUint32(b, uint32(extras+key+value))
	b = append(b, r.opaque[:]...)
	return binary.BigEndian.AppendUint64(b, cas)
}

func appendUint(b []byte, n uint64) []byte { return strconv.AppendUint(b, n, 10) }

func appendData(b, value []byte) []byte {
	return append(append(append(b, "\r\n"...), value...), "\r\n"...)
}

// appendLine writes text with spaces for CR and LF: an error may quote what somebody sent, and a line end in it would forge
// the next answer.
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

func (r *Request) returnsKey() bool {
	return bytes.IndexByte([]byte{opcodeGetK, opcodeGetKQ, opcodeGATK, opcodeGATKQ}, r.opcode) >= 0
}
