package sessile

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// A record is a session as it lies in the store: one value, a header before the body, so that whatever reads it has all of it.
//
//	0      format: 0x9e
//	1      kind (two bits): live, over, moved; whether it was renewed (two bits); number of the codec (four bits)
//	2      number of the key that the body is encrypted with; 0: it is not
//	3      incarnation (4 bytes): random, made with the session; with the tag of its token another one is another session
//	7      version (2): counts the saves
//	9      nonce (3): random, so that no two requests save the same, and each can tell whether what is there is its own
//	12     created (4), in seconds since 1970
//	16     end (4): the absolute deadline, the same; 0: none
//	20     user: its length as a uvarint, then its bytes; where there is one, when he logged in (4)
//	       where it was renewed: when (4)
//	       body
//
// The idle timeout is the store's deadline, which is moved without the value: a request that only reads can neither undo
// what another one writes, nor bring a session back.
type record struct {
	kind        kind
	codec       byte
	incarnation incarnation
	version     uint16
	created     time.Time
	end         time.Time // zero: none
	user        string
	login       time.Time
	renewed     time.Time // zero: never
	body        []byte
}

// An incarnation is that of a session, under all its tokens.
type incarnation [4]byte

type kind byte

const (
	live  kind = iota
	over       // destroyed: who saves later finds that the session is over
	moved      // renewed: until end its body says where it goes on, and then it is over
)

const (
	format     = 0x9e // no byte that text, JSON, PHP, gob or a pickle begins with
	headerSize = 20
	maxUser    = 1 << 10

	renewedFlag = 1 << 6
)

var errRecord = errors.New("sessile: not a record of this version")

func newIncarnation() (id incarnation) {
	rand.Read(id[:])
	return id
}

// appendTime has room for times until 2106.
func appendTime(b []byte, t time.Time) []byte {
	var s uint32
	if !t.IsZero() {
		s = uint32(max(1, min(t.Unix(), math.MaxUint32)))
	}
	return binary.BigEndian.AppendUint32(b, s)
}

func timeOf(b []byte) time.Time {
	s := binary.BigEndian.Uint32(b)
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}

// over reports whether the absolute deadline is over.
func (r *record) over(now time.Time) bool { return !r.end.IsZero() && !now.Before(r.end) }

// since is when the session got the token that it has, as far as is known.
func (r *record) since() time.Time {
	for _, t := range []time.Time{r.renewed, r.login} {
		if !t.IsZero() {
			return t
		}
	}
	return r.created
}

func (r *record) encode() []byte {
	b := make([]byte, 0, headerSize+2+len(r.user)+8+len(r.body))
	first := byte(r.kind)<<4 | r.codec
	if !r.renewed.IsZero() {
		first |= renewedFlag
	}
	b = append(b, format, first, 0)
	b = append(b, r.incarnation[:]...)
	b = binary.BigEndian.AppendUint16(b, r.version)
	b = append(b, 0, 0, 0)
	rand.Read(b[len(b)-3:])
	b = appendTime(b, r.created)
	b = appendTime(b, r.end)
	b = binary.AppendUvarint(b, uint64(len(r.user)))
	if b = append(b, r.user...); r.user != "" {
		b = appendTime(b, r.login)
	}
	if !r.renewed.IsZero() {
		b = appendTime(b, r.renewed)
	}
	return append(b, r.body...)
}

// notBefore reports whether version a is b or a later one. They begin anew after 2^16.
func notBefore(a, b uint16) bool { return a-b < 1<<15 }

// versionIn reads the version out of what encode wrote, encrypted or not.
func versionIn(b []byte) (version uint16, ok bool) {
	if len(b) < headerSize || b[0] != format {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[7:]), true
}

// decodeRecord reads what encode wrote. The body is part of b.
func decodeRecord(b []byte) (*record, error) {
	if len(b) <= headerSize || b[0] != format || kind(b[1]>>4&3) > moved || b[1]>>7 != 0 || b[2] != 0 {
		return nil, errRecord
	}
	r := &record{kind: kind(b[1] >> 4 & 3), codec: b[1] & 0xf, created: timeOf(b[12:]), end: timeOf(b[16:])}
	r.version, _ = versionIn(b)
	copy(r.incarnation[:], b[3:])
	n, size := binary.Uvarint(b[headerSize:])
	if size <= 0 || n > maxUser || n > uint64(len(b)-headerSize-size) {
		return nil, errRecord
	}
	rest := b[headerSize+size:]
	r.user, rest = string(rest[:n]), rest[n:]
	for _, t := range []struct {
		there bool
		at    *time.Time
	}{{n > 0, &r.login}, {b[1]&renewedFlag != 0, &r.renewed}} {
		if !t.there {
			continue
		}
		if len(rest) < 4 {
			return nil, errRecord
		}
		*t.at, rest = timeOf(rest), rest[4:]
	}
	r.body = rest
	return r, nil
}

// A successor is what the body of a record says that has moved: the key of the session that it goes on as, and, sealed, its token.
// Without a token who comes with the old one reads and writes the session until the end of the grace, and has nothing then.
type successor struct {
	key    Key
	sealed []byte
}

func (n successor) encode() []byte {
	return append(append(append([]byte{}, byte(len(n.key))), n.key...), n.sealed...)
}

func decodeSuccessor(b []byte) (n successor, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return n, false
	}
	n.key, n.sealed = Key(b[1:1+b[0]]), b[1+b[0]:]
	return n, n.key.bytes() != nil && (len(n.sealed) == 0 || len(n.sealed) == tokenBytes)
}
