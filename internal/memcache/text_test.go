package memcache

import (
	"strings"
	"testing"
)

const (
	format  = `refused "CLIENT_ERROR bad command line format"`
	unknown = `refused "ERROR"`
	hangUp  = `refused "", close`
	other   = `refused "", security, close`
)

var (
	key250 = strings.Repeat("k", 250)
	key251 = strings.Repeat("k", 251)
)

func refusal(reason string) string { return `refused "CLIENT_ERROR ` + reason + `"` }

func TestTextRequests(t *testing.T) { run(t, textRequests) }

var textRequests = []requestCase{
	{"get", "get a\r\n", Limits{}, []string{`get "a"`}},
	{"get of several", "get a b a\r\n", Limits{}, []string{`get "a" "b" "a"`}},
	{"get of bytes beyond ASCII", "get \xff\xc3\xa4\r\n", Limits{}, []string{`get "\xffä"`}},
	{"gets", "gets a\r\n", Limits{}, []string{`get "a"`}},
	{"gat", "gat 60 a b\r\n", Limits{}, []string{`gat "a" "b" exptime=60`}},
	{"gats", "gats -1 a\r\n", Limits{}, []string{`gat "a" exptime=-1`}},
	{"gat without keys", "gat 0\r\n", Limits{}, []string{unknown}},
	{"gat with a word", "gat x a\r\n", Limits{}, []string{refusal("invalid exptime argument")}},
	{"set", "set a 7 1440 3\r\nx\r\n\r\n", Limits{}, []string{`set "a" value="x\r\n" flags=7 exptime=1440`}},
	{"set of nothing", "set a 0 0 0\r\n\r\n", Limits{}, []string{`set "a" value=""`}},
	{"set, noreply", "set a 0 0 1 noreply\r\nx\r\n", Limits{}, []string{`set "a" value="x" quiet`}},
	{"flags of 32 bits", "set a 4294967295 0 1\r\nx\r\n", Limits{}, []string{`set "a" value="x" flags=4294967295`}},
	{"flags of 33 bits", "set a 4294967296 0 1\r\nx\r\n", Limits{}, []string{format}},
	{"exptime of 32 bits", "set a 0 2147483647 1\r\nx\r\nset a 0 -2147483648 1\r\nx\r\n", Limits{},
		[]string{`set "a" value="x" exptime=2147483647`, `set "a" value="x" exptime=-2147483648`}},
	{"a sign or a blank in a number", "set a +1 0 1\r\nx\r\nset a 0 +1 1\r\nx\r\ntouch a 0x1\r\ntouch a -\r\ntouch a --1\r\n", Limits{},
		[]string{format, format, refusal("invalid exptime argument"), refusal("invalid exptime argument"), refusal("invalid exptime argument")}},
	{"add, replace, append, prepend", "add a 0 0 1\r\nx\r\nreplace a 0 0 1\r\nx\r\nappend a 0 0 1\r\nx\r\nprepend a 0 0 1\r\nx\r\n", Limits{},
		[]string{`add "a" value="x"`, `replace "a" value="x"`, `append "a" value="x"`, `prepend "a" value="x"`}},
	{"cas", "cas a 1 2 1 18446744073709551615\r\nx\r\ncas a 1 2 1 0 noreply\r\nx\r\n", Limits{},
		[]string{`set "a" value="x" flags=1 exptime=2 cas=18446744073709551615`, `set "a" value="x" flags=1 exptime=2 cas=0 quiet`}},
	{"cas without a token", "cas a 0 0 1\r\nx\r\n", Limits{}, []string{unknown}},
	{"cas with a word", "cas a 0 0 1 x\r\nx\r\n", Limits{}, []string{format}},
	{"something else than noreply", "set a 0 0 1 norep\r\nx\r\ntouch a 0 x\r\nincr a 1 x\r\nverbosity 1 x\r\n", Limits{},
		[]string{format, format, format, format}},
	{"delete", "delete a\r\ndelete a noreply\r\ndelete a 0\r\ndelete a 0 noreply\r\n", Limits{},
		[]string{`delete "a"`, `delete "a" quiet`, `delete "a"`, `delete "a" quiet`}},
	{"delete without a key", "delete\r\n", Limits{}, []string{unknown}},
	{"incr and decr", "incr a 1\r\ndecr a 18446744073709551615 noreply\r\n", Limits{},
		[]string{`incr "a" delta=1`, `decr "a" delta=18446744073709551615 quiet`}},
	{"incr by what is no number", "incr a x\r\nincr a -1\r\nincr a 18446744073709551616\r\nincr a\r\n", Limits{},
		[]string{refusal("invalid numeric delta argument"), refusal("invalid numeric delta argument"), refusal("invalid numeric delta argument"), unknown}},
	{"touch", "touch a 0\r\ntouch a 9 noreply\r\n", Limits{}, []string{`touch "a"`, `touch "a" exptime=9 quiet`}},
	{"flush_all", "flush_all\r\nflush_all 5\r\nflush_all noreply\r\nflush_all 5 noreply\r\n", Limits{},
		[]string{"flush", "flush exptime=5", "flush quiet", "flush exptime=5 quiet"}},
	{"stats", "stats\r\nstats cachedump 1 0\r\n", Limits{}, []string{"stats", `stats "cachedump" "1" "0"`}},
	{"version", "version\r\n", Limits{}, []string{"version"}},
	{"verbosity", "verbosity 1\r\nverbosity 1 noreply\r\nverbosity\r\nverbosity x\r\n", Limits{},
		[]string{"verbosity", "verbosity quiet", unknown, format}},
	{"quit", "quit\r\n", Limits{}, []string{"quit", "close"}},
	{"php-memcache's three in one", "incr s.lock 1\r\nadd s.lock 768 15 1\r\n1\r\nget s\r\n", Limits{},
		[]string{`incr "s.lock" delta=1`, `add "s.lock" value="1" flags=768 exptime=15`, `get "s"`}},

	{"mn", "mn\r\nmn x\r\n", Limits{}, []string{"noop", "noop"}},
	{"mg", "mg a\r\nmg a v t f c k s l h u q O1\r\n", Limits{}, []string{`get "a"`, `get "a" quiet`}},
	{"mg with T", "mg a T60 v\r\n", Limits{}, []string{`gat "a" exptime=60`}},
	{"ms", "ms a 2\r\nxx\r\nms a 1 F7 T60 c k O1 q\r\nx\r\n", Limits{}, []string{`set "a" value="xx"`, `set "a" value="x" flags=7 exptime=60 quiet`}},
	{"ms in its modes", "ms a 1 ME\r\nx\r\nms a 1 MA\r\nx\r\nms a 1 MP\r\nx\r\nms a 1 MR\r\nx\r\nms a 1 MS\r\nx\r\n", Limits{},
		[]string{`add "a" value="x"`, `append "a" value="x"`, `prepend "a" value="x"`, `replace "a" value="x"`, `set "a" value="x"`}},
	{"ms with a CAS", "ms a 1 C5\r\nx\r\nms a 1 C5 MR\r\nx\r\nms a 1 C5 MA\r\nx\r\nms a 1 ME C5\r\nx\r\n", Limits{},
		[]string{`set "a" value="x" cas=5`, `set "a" value="x" cas=5`, `append "a" value="x" cas=5`, `add "a" value="x"`}},
	{"ms that is refused, and its data", "ms a 7 MZ\r\nversion\r\nms a 7 M\r\nversion\r\nms a 7 Fx\r\nversion\r\nms a 7 Cx\r\nversion\r\nms a 7 z\r\nversion\r\nms a 7 T T\r\nversion\r\n", Limits{},
		[]string{refusal("invalid mode for ms M token"), refusal("incorrect length for M token"), format,
			refusal("bad token in command line format"), refusal("invalid flag"), refusal("duplicate flag")}},
	{"ms without a length", "ms a\r\nversion\r\n", Limits{}, []string{format + ", close", "close"}},
	{"ms without a key", "ms\r\n", Limits{}, []string{unknown}},
	{"md", "md a\r\nmd a C5 q k\r\nmd a z\r\n", Limits{}, []string{`delete "a"`, `delete "a" cas=5 quiet`, refusal("invalid or duplicate flag")}},
	{"me", "me a\r\nme\r\nme YQ== b\r\n", Limits{}, []string{`debug "a"`, format, `debug "a"`}},
	{"a key in base64", "mg AP8gDQo= b\r\n", Limits{}, []string{`get "\x00\xff \r\n"`}},
	{"a key that is no base64", "mg a b\r\nmg YR== b\r\n", Limits{}, []string{refusal("error decoding key"), refusal("error decoding key")}},
	{"an opaque of 31", "mg a O" + strings.Repeat("x", 31) + "\r\n", Limits{}, []string{`get "a"`}},
	{"an opaque of 32", "mg a O" + strings.Repeat("x", 32) + "\r\n", Limits{}, []string{refusal("opaque token too long")}},
	{"a flag beyond ASCII", "mg a \xff\r\n", Limits{}, []string{refusal("duplicate flag")}},
	{"seventeen flags", "mg a s v t c f k q u h l N0 R0 T0 O I F0 C0\r\n", Limits{}, []string{`gat "a" cas=0 quiet`}},
	{"eighteen flags", "mg a s v t c f k q u h l N0 R0 T0 O I F0 C0 b\r\n", Limits{}, []string{refusal("options flags are too long")}},

	{"one key may be asked for", "get a\r\nget a b\r\nset a 0 0 1 noreply\r\nx\r\n", Limits{Keys: 1},
		[]string{`get "a"`, refusal("too many keys"), `set "a" value="x" quiet`}},
	{"a line as long as it may be", "get abcd\r\n", Limits{Line: 10}, []string{`get "abcd"`}},
	{"a line too long", "get abcde\r\n", Limits{Line: 10}, []string{hangUp, "close"}},
	{"a value as long as it may be", "set a 0 0 5\r\nabcde\r\n", Limits{Item: 5}, []string{`set "a" value="abcde"`}},
	{"a value too long, and what follows", "set a 0 0 6\r\nabcdef\r\nversion\r\n", Limits{Item: 5},
		[]string{`refused "SERVER_ERROR object too large for cache"`, "version"}},
	{"a value too long that does not come", "ms a 99\r\nabcdef", Limits{Item: 5},
		[]string{`refused "SERVER_ERROR object too large for cache"`, "drop"}},
	{"a value too long for any server", "set a 0 0 1073741825\r\n", Limits{Item: 1 << 62}, []string{format + ", close", "close"}},
	{"an announced value does not come", "set a 0 0 5\r\nabc", Limits{}, []string{"wait"}},
}

// TestBadText has the lines of field/reliability.md c2 that the text parser decides. Those missing here are about what is
// allowed (21, 25, 26, 29), or rates (40).
func TestBadText(t *testing.T) { run(t, badText) }

const badData = `refused "CLIENT_ERROR bad data chunk", close`

var badText = []requestCase{
	{"1 an empty line", "\r\nversion\r\n", Limits{}, []string{unknown, "version"}},
	{"1 spaces only", "   \r\n", Limits{}, []string{unknown}},
	{"2 get of nothing", "get\r\nget \r\n", Limits{}, []string{unknown, unknown}},
	{"3 key of 250", "get " + key250 + "\r\n", Limits{}, []string{`get (key of 250)`}},
	{"4 key of 251", "get a " + key251 + "\r\ngat 0 " + key251 + "\r\ntouch " + key251 + " 0\r\nincr " + key251 + " 1\r\ndelete " + key251 + "\r\nmg " + key251 + "\r\n",
		Limits{}, []string{format, format, format, format, format, format}},
	{"5 NUL in a key", "get a\x00b\r\n", Limits{}, []string{format}},
	{"6 tab in a key", "get a\tb\r\n", Limits{}, []string{format}},
	{"7 DEL, control", "get a\x7fb\r\nget \x01\r\nget a\rb\r\n", Limits{}, []string{format, format, format}},
	{"8 more spaces", "get  a  b\r\n get a \r\n", Limits{}, []string{`get "a" "b"`, `get "a"`}},
	{"9 capitals", "GET a\r\n", Limits{}, []string{unknown}},
	{"10 a hundred keys", "get" + strings.Repeat(" k", 100) + "\r\n", Limits{}, []string{"get" + strings.Repeat(` "k"`, 100)}},
	{"10 three thousand keys", "get" + strings.Repeat(" k", 3000) + "\r\nversion\r\n", Limits{}, []string{refusal("too many keys"), "version"}},
	{"10 a hundred keys of 250", "gats -2147483648" + strings.Repeat(" "+key250, 100) + "\r\n", Limits{}, []string{"gat" + strings.Repeat(` (key of 250)`, 100) + " exptime=-2147483648"}},
	{"10 keys without an end", "get" + strings.Repeat(" "+key250, 102), Limits{}, []string{hangUp, "close"}},
	{"11 LF only", "get a\nget a\n", Limits{}, []string{format, format}},
	{"11 LF only, and data", "set a 0 0 7\nversion\n", Limits{}, []string{format + ", close", "close"}},
	{"12 data shorter than announced", "set a 0 0 3\r\nab\r\nversion\r\n", Limits{}, []string{badData, "close"}},
	{"12 data longer than announced", "set a 0 0 1\r\nab\r\nversion\r\n", Limits{}, []string{badData, "close"}},
	{"12 data that end with LF", "set a 0 0 1\r\na\nversion\r\n", Limits{}, []string{badData, "close"}},
	{"12 data that end with CR", "set a 0 0 1\r\na\rversion\r\n", Limits{}, []string{badData, "close"}},
	{"13 length -1", "set a 0 0 -1\r\n", Limits{}, []string{format + ", close", "close"}},
	{"14 length 2^31-1", "set a 0 0 2147483647\r\n", Limits{}, []string{format + ", close", "close"}},
	{"15 item + 1", "set a 0 0 1048577\r\n" + strings.Repeat("x", 1<<20+1) + "\r\nversion\r\n", Limits{},
		[]string{`refused "SERVER_ERROR object too large for cache"`, "version"}},
	{"15 item", "set a 0 0 1048576\r\n" + strings.Repeat("x", 1<<20) + "\r\n", Limits{}, []string{`set "a" value=(1048576 bytes)`}},
	{"16 flags -1", "set a -1 0 7\r\nversion\r\n", Limits{}, []string{format}},
	{"17 exptime abc", "set a 0 abc 7\r\nversion\r\n", Limits{}, []string{format}},
	{"18 something behind noreply", "set a 0 0 7 noreply extra\r\nversion\r\n", Limits{}, []string{unknown}},
	{"20 a set with a key of 251", "set " + key251 + " 0 0 7\r\nversion\r\nms " + key251 + " 7\r\nversion\r\n", Limits{}, []string{format, format}},
	{"22 exptime -1", "set a 0 -1 1\r\nx\r\n", Limits{}, []string{`set "a" value="x" exptime=-1`}},
	{"23 exptime of more than 31 bits", "set a 0 4294967296 7\r\nversion\r\nset a 0 2147483648 7\r\nversion\r\n", Limits{}, []string{format, format}},
	{"24 cas of a key that is not there", "cas nokey 0 0 1 1\r\nx\r\n", Limits{}, []string{`set "nokey" value="x" cas=1`}},
	{"27 touch without exptime", "touch a\r\ntouch a -1\r\n", Limits{}, []string{unknown, `touch "a" exptime=-1`}},
	{"28 delete with a time", "delete a 0\r\ndelete a 10\r\n", Limits{}, []string{`delete "a"`, refusal("bad command line format.  Usage: delete <key> [noreply]")}},
	{"29 commands that are none here", "shutdown\r\nslabs reassign 1 2\r\nlru_crawler metadump all\r\nwatch\r\ndebugtime p\r\nflush_all abc\r\nlru mode flat\r\ncache_memlimit 9\r\n", Limits{},
		[]string{unknown, unknown, unknown, unknown, unknown, refusal("invalid exptime argument"), unknown, unknown}},
	{"30 quit and more", "quit\r\nversion\r\n", Limits{}, []string{"quit", "close"}},
	{"31 HTTP", "GET / HTTP/1.0\r\n\r\n", Limits{}, []string{other, "close"}},
	{"31 HTTP with commands in it", "POST / HTTP/1.1\r\nHost: x\r\n\r\nflush_all\r\n", Limits{}, []string{other, "close"}},
	{"31 a header of HTTP", "Host: 127.0.0.1\r\n", Limits{}, []string{other, "close"}},
	{"31 HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Limits{}, []string{other, "close"}},
	{"31 HTTP with a line too long", "GET /" + strings.Repeat("a", 30000), Limits{}, []string{other, "close"}},
	{"31 a key that begins with a slash", "get /a\r\n", Limits{}, []string{`get "/a"`}},
	{"32 TLS", "\x16", Limits{}, []string{other, "close"}},
	{"32 TLS later", "version\r\n\x16\x03\x01", Limits{}, []string{"version", other, "close"}},
	{"32 SSH", "SSH-2.0-OpenSSH_9.2p1\r\n", Limits{}, []string{other, "close"}},
	{"PROXY", "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\nflush_all\r\n", Limits{}, []string{other, "close"}},
	{"PROXY v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", Limits{}, []string{unknown, unknown, other, "close"}},
	{"33 a key with a command in it", "set a\r\nflush_all\r\n 0 0 1\r\nx\r\n", Limits{}, []string{unknown + ", close", "close"}},
	{"33 the same in a get", "get a\r\nflush_all\r\n", Limits{}, []string{`get "a"`, "flush"}}, // two requests, for all that can be seen
	{"34 mg of nothing", "mg\r\n", Limits{}, []string{unknown}},
	{"35 a flag twice", "mg a v v\r\n", Limits{}, []string{refusal("duplicate flag")}},
	{"36 a length that is none", "ms a abc\r\nversion\r\n", Limits{}, []string{format + ", close", "close"}},
	{"36 a length as it once was", "ms a S2\r\nversion\r\n", Limits{}, []string{format + ", close", "close"}},
	{"37 data longer than announced", "ms a 2 T-1\r\nxxx\r\n", Limits{}, []string{badData, "close"}},
	{"38 quiet", "md a q\r\nmn\r\n", Limits{}, []string{`delete "a" quiet`, "noop"}},
	{"39 meta arithmetic", "ma a D-1\r\nma a J13 N-5\r\n", Limits{}, []string{unknown, unknown}},
	{"60 binary behind text", "version\r\n\x80\x0b", Limits{}, []string{"version", other, "close"}},
}
