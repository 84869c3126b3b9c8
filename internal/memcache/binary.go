package memcache

import "encoding/binary"

const (
	requestMagic  = 0x80
	responseMagic = 0x81
	headerLen     = 24

	// maxAuth bounds what a client may send before anybody knows who it is: a name and a password.
	maxAuth = 4096
)

// The opcodes whose answers give the key back.
const (
	opcodeGetK  = 0x0c
	opcodeGetKQ = 0x0d
	opcodeGATK  = 0x23
	opcodeGATKQ = 0x24
)

type opcode struct {
	op    Op
	quiet bool
}

// opcodes are those that memcached 1.6 serves (protocol_binary.h; dispatch_bin_command). The others of that file, 0x1b
// (verbosity) among them, memcached does not know either.
var opcodes = [256]opcode{
	0x00: {OpGet, false}, 0x09: {OpGet, true}, opcodeGetK: {OpGet, false}, opcodeGetKQ: {OpGet, true},
	0x01: {OpSet, false}, 0x11: {OpSet, true},
	0x02: {OpAdd, false}, 0x12: {OpAdd, true},
	0x03: {OpReplace, false}, 0x13: {OpReplace, true},
	0x04: {OpDelete, false}, 0x14: {OpDelete, true},
	0x05: {OpIncr, false}, 0x15: {OpIncr, true},
	0x06: {OpDecr, false}, 0x16: {OpDecr, true},
	0x07: {OpQuit, false}, 0x17: {OpQuit, true},
	0x08: {OpFlush, false}, 0x18: {OpFlush, true},
	0x0a: {OpNoop, false},
	0x0b: {OpVersion, false},
	0x0e: {OpAppend, false}, 0x19: {OpAppend, true},
	0x0f: {OpPrepend, false}, 0x1a: {OpPrepend, true},
	0x10: {OpStats, false},
	0x1c: {OpTouch, false},
	0x1d: {OpGetTouch, false}, 0x1e: {OpGetTouch, true}, opcodeGATK: {OpGetTouch, false}, opcodeGATKQ: {OpGetTouch, true},
	0x20: {OpSASLList, false}, 0x21: {OpSASLAuth, false}, 0x22: {OpSASLStep, false},
}

// ParseBinary is ParseText for the binary protocol. A buffer of a header, 20 bytes of extras, a key and an item, as lim
// has it, always suffices for a verdict.
//
// A request that has not the parts of its opcode is answered and ends the connection, as in memcached; where its lengths
// contradict each other nothing is answered.
func (r *Request) ParseBinary(buf []byte, lim Limits) (n, need int, err error) {
	r.reset(binaryForm)
	if len(buf) == 0 {
		return 0, 0, ErrIncomplete
	}
	if buf[0] != requestMagic {
		return 0, 0, foreign("not a binary request")
	}
	if len(buf) < headerLen {
		return 0, headerLen, ErrIncomplete
	}
	r.opcode = buf[1]
	copy(r.opaque[:], buf[12:16])
	keyLen := int(binary.BigEndian.Uint16(buf[2:]))
	extrasLen := int(buf[4])
	dataType := buf[5]
	bodyLen := int64(binary.BigEndian.Uint32(buf[8:]))
	cas := binary.BigEndian.Uint64(buf[16:])
	if bodyLen < int64(keyLen+extrasLen) || bodyLen > maxValue {
		return 0, 0, errNonsense
	}
	// The bytes 6 and 7, a number of a vbucket, mean nothing to memcached.
	n = headerLen + int(bodyLen)
	valueLen := int(bodyLen) - keyLen - extrasLen
	known := opcodes[r.opcode]
	r.Op, r.Quiet = known.op, known.quiet
	switch {
	case keyLen > MaxKey:
		return 0, 0, errBinary
	case known.op == OpNone:
		return n, 0, ErrUnknownCommand
	case !known.op.shaped(keyLen, extrasLen, valueLen):
		return 0, 0, errBinary
	case dataType != 0:
		return n, 0, clientError("unknown data type") // compressed, JSON: of Couchbase, not of memcached
	case valueLen > lim.item(), valueLen > maxAuth && known.op >= OpSASLList:
		return n, 0, ErrTooLarge
	case len(buf) < n:
		return 0, n, ErrIncomplete
	}

	extras := buf[headerLen : headerLen+extrasLen]
	if keyLen > 0 {
		key := headerLen + extrasLen
		r.tokens = append(r.tokens, buf[key:key+keyLen:key+keyLen])
		r.Keys = r.tokens
	}
	r.Value = buf[n-valueLen : n : n]
	r.CAS, r.HasCAS = cas, cas != 0
	switch r.Op {
	case OpSet, OpAdd, OpReplace:
		r.Flags = binary.BigEndian.Uint32(extras)
		r.Exptime = int64(binary.BigEndian.Uint32(extras[4:]))
		if r.HasCAS {
			r.Op = OpSet // whichever it is (process_bin_update)
		}
	case OpIncr, OpDecr:
		r.Delta = binary.BigEndian.Uint64(extras)
		r.Initial = binary.BigEndian.Uint64(extras[8:])
		r.Exptime = int64(binary.BigEndian.Uint32(extras[16:]))
		r.Create = r.Exptime != 0xffffffff
	case OpTouch, OpGetTouch, OpFlush:
		if extrasLen > 0 {
			r.Exptime = int64(binary.BigEndian.Uint32(extras))
		}
	}
	return n, 0, nil
}

var errBinary = &Error{Reply: "CLIENT_ERROR invalid arguments", Status: StatusInvalid, Close: true}

// shaped: a request for op may have these parts (dispatch_bin_command, which looks at the value of some only and then takes
// it for the next request).
func (op Op) shaped(key, extras, value int) bool {
	switch op {
	case OpSet, OpAdd, OpReplace:
		return key > 0 && extras == 8
	case OpAppend, OpPrepend, OpSASLAuth, OpSASLStep:
		return key > 0 && extras == 0
	case OpGet, OpDelete:
		return key > 0 && extras == 0 && value == 0
	case OpGetTouch, OpTouch:
		return key > 0 && extras == 4 && value == 0
	case OpIncr, OpDecr:
		return key > 0 && extras == 20 && value == 0
	case OpStats:
		return extras == 0 && value == 0
	case OpFlush:
		return key == 0 && (extras == 0 || extras == 4) && value == 0
	}
	return key == 0 && extras == 0 && value == 0
}
