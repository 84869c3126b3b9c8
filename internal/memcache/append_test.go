package memcache

import (
	"bytes"
	"testing"
)

// TestAnswers has the answers of a toy; that memcached gives the same is for TestMemcachedAnswersTheSame.
func TestAnswers(t *testing.T) {
	meta := "set a 7 0 3\r\nabc\r\n"
	for _, c := range []struct{ name, in, want string }{
		{"get", "set a 7 0 3\r\nabc\r\nget a b\r\nget b\r\n", "STORED\r\nVALUE a 7 3\r\nabc\r\nEND\r\nEND\r\n"},
		{"gets", "set a 7 0 0\r\n\r\nset b 0 0 1\r\nx\r\ngets a b a\r\n", "STORED\r\nSTORED\r\nVALUE a 7 0 1\r\n\r\nVALUE b 0 1 2\r\nx\r\nVALUE a 7 0 1\r\n\r\nEND\r\n"},
		{"gat and gats", "set a 7 0 1\r\nx\r\ngat 9 a\r\ngats 9 a\r\n", "STORED\r\nVALUE a 7 1\r\nx\r\nEND\r\nVALUE a 7 1 1\r\nx\r\nEND\r\n"},
		{"storing", "replace a 0 0 1\r\nx\r\nappend a 0 0 1\r\nx\r\nadd a 0 0 1\r\nx\r\nadd a 0 0 1\r\nx\r\nprepend a 0 0 1\r\ny\r\n", "NOT_STORED\r\nNOT_STORED\r\nSTORED\r\nNOT_STORED\r\nSTORED\r\n"},
		{"cas", "cas a 0 0 1 1\r\nx\r\nset a 0 0 1\r\nx\r\ncas a 0 0 1 9\r\nx\r\ncas a 0 0 1 1\r\nx\r\n", "NOT_FOUND\r\nSTORED\r\nEXISTS\r\nSTORED\r\n"},
		{"delete and touch", "touch a 1\r\ndelete a\r\nset a 0 0 1\r\nx\r\ntouch a 1\r\ndelete a\r\n", "NOT_FOUND\r\nNOT_FOUND\r\nSTORED\r\nTOUCHED\r\nDELETED\r\n"},
		{"counting", "incr a 1\r\nset a 0 0 1\r\n7\r\nincr a 3\r\ndecr a 4\r\nset a 0 0 1\r\nx\r\nincr a 1\r\n",
			"NOT_FOUND\r\nSTORED\r\n10\r\n6\r\nSTORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"},
		{"the rest", "version\r\nverbosity 1\r\nstats\r\nstats reset\r\nstats x\r\nflush_all\r\nmn\r\nquit\r\nversion\r\n",
			"VERSION 1.6.18\r\nOK\r\nSTAT version 1.6.18\r\nEND\r\nRESET\r\nERROR\r\nOK\r\nMN\r\n"},
		{"noreply hides all", "set a 0 0 1 noreply\r\nx\r\nadd a 0 0 1 noreply\r\nx\r\ncas a 0 0 1 7 noreply\r\nx\r\nincr a 1 noreply\r\nincr a x noreply\r\ntouch b 1 noreply\r\ndelete b noreply\r\n" +
			"set a x 0 1 noreply\r\nx\r\nset a 0 0 11 noreply\r\nxxxxxxxxxxx\r\nverbosity 1 noreply\r\nflush_all noreply\r\nmn\r\n", "MN\r\n"},
		{"mg", meta + "mg a\r\nmg b\r\nmg a q\r\nmg b q\r\nmg a v k f s c t O1\r\nmg b v k f s c t O1\r\n", "STORED\r\nHD\r\nEN\r\nHD\r\nVA 3 ka f7 s3 c1 t-1 O1\r\nabc\r\nEN kb O1\r\n"},
		{"mg, seen before", meta + "mg a h u\r\nmg a h\r\nmg a h T60 l\r\nmg a t\r\n", "STORED\r\nHD h0\r\nHD h0\r\nHD h1 l0\r\nHD t60\r\n"},
		{"ms", "ms a 1 c k O1\r\nx\r\nms a 1 q\r\nx\r\nms a 1 ME k\r\nx\r\nms a 1 ME q\r\nx\r\nms a 1 C9\r\nx\r\nms b 1 C9\r\nx\r\n", "HD c1 ka O1\r\nNS ka\r\nNS\r\nEX\r\nNF\r\n"},
		{"md", meta + "md b q\r\nmd a C9 O2\r\nmd a q\r\nmd a k\r\nmn\r\n", "STORED\r\nNF\r\nEX O2\r\nNF ka\r\nMN\r\n"},
		{"me", meta + "me b\r\nme a\r\ntouch a 60\r\nme a\r\n", "STORED\r\nEN\r\nME a exp=-1 la=0 cas=1 fetch=no cls=0 size=3\r\nTOUCHED\r\nME a exp=-60 la=0 cas=1 fetch=yes cls=0 size=3\r\n"},
		{"a key in base64", "ms AP8= 1 b k\r\nx\r\nmg AP8= k b v\r\n", "HD kAP8= b\r\nVA 1 kAP8= b\r\nx\r\n"},
		{"an error in meta is never hidden", "ms a 11 q\r\nxxxxxxxxxxx\r\n", "SERVER_ERROR object too large for cache\r\n"},

		{"binary get", bin(packet(0x01, be(4, 7)+be(4, 0), "a", "abc", 0), packet(0x00, "", "a", "", 0), packet(0x00, "", "b", "", 0), packet(0x09, "", "a", "", 0), packet(0x09, "", "b", "", 0)),
			response(0x01, 0, "", "", 1) + response(0x00, 0, be(4, 7), "abc", 1) + response(0x00, 1, "", "Not found", 0) + response(0x09, 0, be(4, 7), "abc", 1)},
		{"binary getk", bin(packet(0x11, be(4, 7)+be(4, 0), "a", "abc", 0), packet(0x0c, "", "a", "", 0), packet(0x0c, "", "b", "", 0), packet(0x0d, "", "a", "", 0), packet(0x0d, "", "b", "", 0)),
			keyed(1, response(0x0c, 0, be(4, 7), "aabc", 1)) + keyed(1, response(0x0c, 1, "", "b", 0)) + keyed(1, response(0x0d, 0, be(4, 7), "aabc", 1))},
		{"binary gatk", bin(packet(0x11, be(4, 7)+be(4, 0), "a", "abc", 0), packet(0x23, be(4, 0), "a", "", 0), packet(0x24, be(4, 0), "b", "", 0), packet(0x1d, be(4, 0), "a", "", 0)),
			keyed(1, response(0x23, 0, be(4, 7), "aabc", 1)) + response(0x1d, 0, be(4, 7), "abc", 1)},
		{"binary storing", bin(packet(0x03, store8, "a", "x", 0), packet(0x0e, "", "a", "x", 0), packet(0x01, store8, "a", "x", 9), packet(0x12, store8, "a", "x", 0),
			packet(0x02, store8, "a", "x", 0), packet(0x11, store8, "a", "x", 9)),
			response(0x03, 1, "", "Not found", 0) + response(0x0e, 5, "", "Not stored.", 0) + response(0x01, 1, "", "Not found", 0) +
				response(0x02, 2, "", "Data exists for key.", 0) + response(0x11, 2, "", "Data exists for key.", 0)},
		{"binary counting", bin(packet(0x05, count20, "n", "", 0), packet(0x15, count20, "n", "", 0), packet(0x06, count20, "n", "", 0), packet(0x06, be(8, 1)+be(8, 0)+be(4, 1<<32-1), "m", "", 0)),
			response(0x05, 0, "", be(8, 9), 1) + response(0x06, 0, "", be(8, 9), 3) + response(0x06, 1, "", "Not found", 0)},
		{"binary rest", bin(version, packet(0x14, "", "a", "", 0), packet(0x10, "", "", "", 0), packet(0x18, "", "", "", 0), packet(0x0a, "", "", "", 0), packet(0x20, "", "", "", 0), packet(0x07, "", "", "", 0), version),
			response(0x0b, 0, "", "1.6.18", 0) + response(0x14, 1, "", "Not found", 0) + keyed(7, response(0x10, 0, "", "version1.6.18", 0)) +
				response(0x10, 0, "", "", 0) + response(0x0a, 0, "", "", 0) + response(0x20, StatusUnknownCommand, "", "Unknown command", 0) + response(0x07, 0, "", "", 0)},
		{"quitq says nothing", bin(packet(0x17, "", "", "", 0), version), ""},
		{"quiet binary errors are told", bin(packet(0x11, store8, "a", "xxxxxxxxxxx", 0), packet(0x14, "", "a", "", 0)),
			response(0x11, StatusTooLarge, "", "Too large.", 0) + response(0x14, 1, "", "Not found", 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, _ := newToy().answer(t, []byte(c.in), Limits{Item: 10}, whole)
			if string(got) != c.want {
				t.Errorf("%.200q:\ngot  %q\nwant %q", c.in, got, c.want)
			}
		})
	}
}

// keyed says of an answer that its value begins with a key of so many bytes.
func keyed(n int, answer string) string { return answer[:3] + string(rune(n)) + answer[4:] }

func TestErrorsOfThoseWhoServe(t *testing.T) {
	unreachable := &Error{Reply: "SERVER_ERROR the store\r\nis away", Status: StatusTemporary}
	for _, c := range []struct {
		in   string
		err  *Error
		want string
	}{
		{"get a\r\n", unreachable, "SERVER_ERROR the store  is away\r\n"},
		{"touch a 1 noreply\r\n", unreachable, ""},
		{"mg a q\r\n", unreachable, "SERVER_ERROR the store  is away\r\n"},
		{"get a\r\n", &Error{Close: true}, ""},
		{string(packet(0x09, "", "a", "", 0)), unreachable, response(0x09, StatusTemporary, "", "the store\r\nis away", 0)},
		{string(packet(0x18, "", "", "", 0)), &Error{Reply: "CLIENT_ERROR flush_all not allowed", Status: StatusAuth}, response(0x18, StatusAuth, "", "Auth failure.", 0)},
		{string(packet(0x00, "", "a", "", 0)), &Error{Close: true}, ""},
	} {
		var r Request
		if _, _, err := r.parse(IsBinary(c.in[0]), []byte(c.in), Limits{}); err != nil {
			t.Fatal(err)
		}
		before := []byte("before")
		if got := r.AppendError(before, c.err); !bytes.Equal(got, append([]byte("before"), c.want...)) {
			t.Errorf("%q, %q: got %q, want %q", c.in, c.err.Reply, got, c.want)
		}
	}
}

// What a log says of a refusal: which protocol it was, and nothing of what was sent.
func TestErrorsSayNothingOfWhatWasSent(t *testing.T) {
	for in, want := range map[string]string{
		"\x16\x03\x01secret":               "memcache: this is TLS",
		"GET /secret HTTP/1.1\r\n":         "memcache: this is HTTP",
		"X-Secret: secret\r\n":             "memcache: this is HTTP",
		"PROXY TCP4 secret\r\n":            "memcache: this is the PROXY protocol",
		"SSH-2.0-secret\r\n":               "memcache: this is SSH",
		"\x00secret":                       "memcache: this is a binary protocol",
		"\x80\x01\xff\xff....secret......": "memcache: incomplete",
		string(header(0x01, 9, 9, 1)):      "memcache: not a request",
		"secret\r\n":                       "memcache: ERROR",
		"set secret secret 0 0\r\n":        "memcache: CLIENT_ERROR bad command line format",
	} {
		var r Request
		_, _, err := r.parse(IsBinary(in[0]), []byte(in), Limits{})
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}
