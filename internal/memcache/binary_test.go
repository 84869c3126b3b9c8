package memcache

import (
	"encoding/binary"
	"strings"
	"testing"
)

// packet is a binary request.
func packet(opcode byte, extras, key, value string, cas uint64) []byte {
	b := []byte{requestMagic, opcode}
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = append(b, byte(len(extras)), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(extras)+len(key)+len(value)))
	b = append(b, "OPQ1"...)
	b = binary.BigEndian.AppendUint64(b, cas)
	return append(b, extras+key+value...)
}

// be is n in big endian.
func be(bytes int, n uint64) string {
	return string(binary.BigEndian.AppendUint64(nil, n)[8-bytes:])
}

// bin is a stream of packets, and of what is put in as it is.
func bin(parts ...any) string {
	var b strings.Builder
	for _, p := range parts {
		switch p := p.(type) {
		case []byte:
			b.Write(p)
		case string:
			b.WriteString(p)
		}
	}
	return b.String()
}

// header is a packet without its body, with lengths that may lie.
func header(opcode byte, key, extras, body int) []byte {
	b := packet(opcode, "", "", "", 0)
	binary.BigEndian.PutUint16(b[2:], uint16(key))
	b[4] = byte(extras)
	binary.BigEndian.PutUint32(b[8:], uint32(body))
	return b
}

var (
	version = packet(0x0b, "", "", "", 0)
	store8  = be(4, 7) + be(4, 1440)
	count20 = be(8, 5) + be(8, 9) + be(4, 60)

	invalid = []string{`refused "CLIENT_ERROR invalid arguments", close`, "close"}
)

func TestBinaryRequests(t *testing.T) { run(t, binaryRequests()) }

func binaryRequests() []requestCase {
	both := func(s string) []string { return []string{s, s + " quiet", "version"} }
	return []requestCase{
		{"get", bin(packet(0x00, "", "a", "", 0), packet(0x09, "", "a", "", 0), version), Limits{}, both(`get "a"`)},
		{"getk", bin(packet(0x0c, "", "a", "", 0), packet(0x0d, "", "a", "", 0), version), Limits{}, both(`get "a"`)},
		{"gat", bin(packet(0x1d, be(4, 60), "a", "", 0), packet(0x1e, be(4, 60), "a", "", 0), version), Limits{}, both(`gat "a" exptime=60`)},
		{"gatk", bin(packet(0x23, be(4, 60), "a", "", 0), packet(0x24, be(4, 60), "a", "", 0), version), Limits{}, both(`gat "a" exptime=60`)},
		{"set", bin(packet(0x01, store8, "a", "x", 0), packet(0x11, store8, "a", "x", 0), version), Limits{}, both(`set "a" value="x" flags=7 exptime=1440`)},
		{"add", bin(packet(0x02, store8, "a", "x", 0), packet(0x12, store8, "a", "x", 0), version), Limits{}, both(`add "a" value="x" flags=7 exptime=1440`)},
		{"replace", bin(packet(0x03, store8, "a", "x", 0), packet(0x13, store8, "a", "x", 0), version), Limits{}, both(`replace "a" value="x" flags=7 exptime=1440`)},
		{"append", bin(packet(0x0e, "", "a", "x", 0), packet(0x19, "", "a", "x", 0), version), Limits{}, both(`append "a" value="x"`)},
		{"prepend", bin(packet(0x0f, "", "a", "x", 0), packet(0x1a, "", "a", "x", 0), version), Limits{}, both(`prepend "a" value="x"`)},
		{"delete", bin(packet(0x04, "", "a", "", 0), packet(0x14, "", "a", "", 0), version), Limits{}, both(`delete "a"`)},
		{"incr", bin(packet(0x05, count20, "a", "", 0), packet(0x15, count20, "a", "", 0), version), Limits{}, both(`incr "a" exptime=60 delta=5 initial=9`)},
		{"decr", bin(packet(0x06, count20, "a", "", 0), packet(0x16, count20, "a", "", 0), version), Limits{}, both(`decr "a" exptime=60 delta=5 initial=9`)},
		{"incr that makes nothing", bin(packet(0x05, be(8, 5)+be(8, 9)+be(4, 1<<32-1), "a", "", 0)), Limits{}, []string{`incr "a" exptime=4294967295 delta=5`}},
		{"flush", bin(packet(0x08, "", "", "", 0), packet(0x18, "", "", "", 0), version), Limits{}, both("flush")},
		{"flush in a while", bin(packet(0x08, be(4, 60), "", "", 0), packet(0x18, be(4, 60), "", "", 0), version), Limits{}, both("flush exptime=60")},
		{"touch", bin(packet(0x1c, be(4, 60), "a", "", 0)), Limits{}, []string{`touch "a" exptime=60`}},
		{"noop, version, stat", bin(packet(0x0a, "", "", "", 0), version, packet(0x10, "", "", "", 0), packet(0x10, "", "settings", "", 0)), Limits{},
			[]string{"noop", "version", "stats", `stats "settings"`}},
		{"quit", bin(packet(0x07, "", "", "", 0), version), Limits{}, []string{"quit", "close"}},
		{"quitq", bin(packet(0x17, "", "", "", 0), version), Limits{}, []string{"quit quiet", "close"}},
		{"SASL", bin(packet(0x20, "", "", "", 0), packet(0x21, "", "PLAIN", "\x00u\x00p", 0), packet(0x22, "", "PLAIN", "x", 0)), Limits{},
			[]string{"sasl-list", `sasl-auth "PLAIN" value="\x00u\x00p"`, `sasl-step "PLAIN" value="x"`}},
		{"with a CAS", bin(packet(0x01, store8, "a", "x", 3), packet(0x02, store8, "a", "x", 3), packet(0x03, store8, "a", "x", 3),
			packet(0x0e, "", "a", "x", 3), packet(0x04, "", "a", "", 3), packet(0x05, count20, "a", "", 3)), Limits{},
			[]string{`set "a" value="x" flags=7 exptime=1440 cas=3`, `set "a" value="x" flags=7 exptime=1440 cas=3`, `set "a" value="x" flags=7 exptime=1440 cas=3`,
				`append "a" value="x" cas=3`, `delete "a" cas=3`, `incr "a" exptime=60 cas=3 delta=5 initial=9`}},
		{"php-memcached's key", bin(packet(0x0c, "", "memc.sess.key.a\x00\r\nb", "", 0)), Limits{}, []string{`get "memc.sess.key.a\x00\r\nb"`}},
		{"a value of nothing", bin(packet(0x01, store8, "a", "", 0)), Limits{}, []string{`set "a" flags=7 exptime=1440`}},
		{"an exptime is never negative", bin(packet(0x1c, be(4, 1<<32-1), "a", "", 0)), Limits{}, []string{`touch "a" exptime=4294967295`}},
		{"a value as long as it may be", bin(packet(0x01, store8, "a", "abcde", 0)), Limits{Item: 5}, []string{`set "a" value="abcde" flags=7 exptime=1440`}},
		{"a value too long, and what follows", bin(packet(0x01, store8, "a", "abcdef", 0), version), Limits{Item: 5},
			[]string{`refused "SERVER_ERROR object too large for cache"`, "version"}},
		{"a value too long that does not come", bin(header(0x01, 1, 8, 1<<20+10)), Limits{},
			[]string{`refused "SERVER_ERROR object too large for cache"`, "drop"}},
	}
}

// TestBadBinary has the lines of field/reliability.md c2 that the binary parser decides. 55 is about rates, 57 about what is
// allowed.
func TestBadBinary(t *testing.T) { run(t, badBinary()) }

func badBinary() []requestCase {
	datatype := packet(0x00, "", "a", "", 0)
	datatype[5] = 1
	return []requestCase{
		{"41 the magic alone", "\x80", Limits{}, []string{"wait"}},
		{"42 key longer than the body", bin(header(0x00, 256, 0, 1)), Limits{}, []string{hangUp, "close"}},
		{"43 body of 4 GiB", bin(header(0x01, 1, 8, 1<<32-1)), Limits{}, []string{hangUp, "close"}},
		{"43 body of 1 GiB", bin(header(0x01, 1, 8, 1<<30)), Limits{}, []string{`refused "SERVER_ERROR object too large for cache"`, "drop"}},
		{"44 key longer than the body", bin(header(0x04, 2, 0, 1), "ab"), Limits{}, []string{hangUp, "close"}},
		{"45 extras longer than the body", bin(header(0x01, 0, 8, 7)), Limits{}, []string{hangUp, "close"}},
		{"46 key of 250", bin(packet(0x00, "", key250, "", 0)), Limits{}, []string{"get (key of 250)"}},
		{"46 key of 251", bin(packet(0x00, "", key251, "", 0), version), Limits{}, invalid},
		{"47 get without a key", bin(packet(0x00, "", "", "", 0), version), Limits{}, invalid},
		{"48 set without extras", bin(packet(0x01, "", "a", "x", 0), version), Limits{}, invalid},
		{"48 set with extras of 7", bin(packet(0x01, store8[:7], "a", "x", 0), version), Limits{}, invalid},
		{"48 set with extras of 255", bin(packet(0x01, strings.Repeat("x", 255), "a", "x", 0), version), Limits{}, invalid},
		{"49 value of a negative length", bin(header(0x0e, 5, 0, 4), "abcd"), Limits{}, []string{hangUp, "close"}},
		{"50 an unknown opcode, and what follows", bin(packet(0xff, "eeee", "kk", "vvv", 0), version), Limits{}, []string{unknown, "version"}},
		{"50 verbosity", bin(packet(0x1b, be(4, 1), "", "", 0), version), Limits{}, []string{unknown, "version"}},
		{"51 an answer", "\x81\x00", Limits{}, []string{other, "close"}},
		{"51 an answer behind a request", bin(version, "\x81\x00"), Limits{}, []string{"version", other, "close"}},
		{"52 a data type", bin(datatype, version), Limits{}, []string{refusal("unknown data type"), "version"}},
		{"53 append with a body shorter than its key", bin(header(0x0e, 3, 0, 2), "ab"), Limits{}, []string{hangUp, "close"}},
		{"54 SASL with a mechanism of 64 KiB", bin(header(0x21, 65535, 0, 65535)), Limits{}, invalid},
		{"54 SASL with a word of 1 MiB", bin(header(0x21, 5, 0, 1<<20)), Limits{}, []string{`refused "SERVER_ERROR object too large for cache"`, "drop"}},
		{"54 SASL without a mechanism", bin(packet(0x22, "", "", "x", 0)), Limits{}, invalid},
		{"56 noop with a body", bin(packet(0x0a, "", "", "x", 0)), Limits{}, invalid},
		{"56 quit with a key", bin(packet(0x07, "", "a", "", 0)), Limits{}, invalid},
		{"56 version with extras", bin(packet(0x0b, "xxxx", "", "", 0)), Limits{}, invalid},
		{"56 get with a value", bin(packet(0x00, "", "a", "x", 0)), Limits{}, invalid},
		{"56 delete with extras", bin(packet(0x04, "xxxx", "a", "", 0)), Limits{}, invalid},
		{"56 touch with a value", bin(packet(0x1c, be(4, 1), "a", "x", 0)), Limits{}, invalid},
		{"56 stat with a value", bin(packet(0x10, "", "a", "x", 0)), Limits{}, invalid},
		{"56 flush with extras of 8", bin(packet(0x08, store8, "", "", 0)), Limits{}, invalid},
		{"58 incr with extras of 8", bin(packet(0x05, be(8, 1), "a", "", 0)), Limits{}, invalid},
		{"60 text behind binary", bin(version, "version\r\n"), Limits{}, []string{"version", other, "close"}},
		{"61 half a header", bin(version[:23]), Limits{}, []string{"wait"}}, // every other case is cut at each byte
		{"61 half a body", bin(packet(0x01, store8, "a", "xyz", 0)[:30]), Limits{}, []string{"wait"}},
	}
}
