package resp

import (
	"fmt"
	"testing"
)

func TestAppend(t *testing.T) {
	for _, c := range []struct {
		name, got, want string
	}{
		{"behind what is there", string(AppendSimple([]byte("+A\r\n"), "B")), "+A\r\n+B\r\n"},
		{"status", string(AppendSimple(nil, "OK")), "+OK\r\n"},
		{"status with line ends", string(AppendSimple(nil, "a\r\n+b")), "+a  +b\r\n"},
		{"error", string(AppendError(nil, "ERR no")), "-ERR no\r\n"},
		{"error that would forge a reply", string(AppendError(nil, "ERR unknown command 'x\r\n+OK\n'")), "-ERR unknown command 'x  +OK '\r\n"},
		{"integer", string(AppendInt(nil, -9223372036854775808)), ":-9223372036854775808\r\n"},
		{"bulk", string(AppendBulk(nil, []byte("a\r\n\x00"))), "$4\r\na\r\n\x00\r\n"},
		{"empty bulk", string(AppendBulk(nil, nil)), "$0\r\n\r\n"},
		{"bulk of a string", string(AppendBulkString(nil, "ab")), "$2\r\nab\r\n"},
		{"null in RESP2", string(AppendNull(nil, 2)), "$-1\r\n"},
		{"null in RESP3", string(AppendNull(nil, 3)), "_\r\n"},
		{"null array in RESP2", string(AppendNullArray(nil, 2)), "*-1\r\n"},
		{"null array in RESP3", string(AppendNullArray(nil, 3)), "_\r\n"},
		{"array", string(AppendArrayLen(nil, 12)), "*12\r\n"},
		{"map in RESP2", string(AppendMapLen(nil, 6, 2)), "*12\r\n"},
		{"map in RESP3", string(AppendMapLen(nil, 6, 3)), "%6\r\n"},
		{"set in RESP2", string(AppendSetLen(nil, 3, 2)), "*3\r\n"},
		{"set in RESP3", string(AppendSetLen(nil, 3, 3)), "~3\r\n"},
		{"message in RESP2", string(AppendPushLen(nil, 3, 2)), "*3\r\n"},
		{"message in RESP3", string(AppendPushLen(nil, 3, 3)), ">3\r\n"},
		{"request", string(AppendRequest(nil, []byte("GET"), []byte("k"))), "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"},
		{"request of strings", string(AppendRequestStrings(nil, "GET", "")), "*2\r\n$3\r\nGET\r\n$0\r\n\r\n"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, c.got, c.want)
		}
	}
}

func ExampleParseRequest() {
	buf := []byte("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$3\r\nGET\r\n$1\r\n") // what has arrived so far
	var args [][]byte
	for {
		var n int
		var err error
		args, n, _, err = ParseRequest(buf, Limits{}, args[:0])
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%q\n", args)
		buf = buf[n:]
	}
	// Output:
	// ["GET" "k"]
	// resp: incomplete
}
