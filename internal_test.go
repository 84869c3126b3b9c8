package sessile

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTokens(t *testing.T) {
	a, b := newToken(""), newToken("")
	if a == b || !a.valid() || !b.valid() {
		t.Errorf("%q and %q", a, b)
	}
	plain, secret, braced := newKeyer(nil, false), newKeyer([]byte("secret"), false), newKeyer(nil, true)
	if k := plain.session(a); string(k) == string(a) || k != plain.session(a) || k == secret.session(a) || k == plain.session(b) {
		t.Errorf("the key of %q is %q", a, k)
	}
	next := newToken(a)
	if x, y := braced.session(a), braced.session(next); x == y || x[:6] != y[:6] || x[0] != '{' || x[5] != '}' {
		t.Errorf("%s and %s do not lie in one slot", x, y)
	}
	for _, k := range []*keyer{plain, braced} {
		if x := k.session(a); k.of(x.bytes()) != x {
			t.Errorf("%s comes back as %s", x, k.of(x.bytes()))
		}
	}
	if sealed := a.sealFor(next, plain.session(next)); a.unseal(sealed, plain.session(next)) != next || b.unseal(sealed, plain.session(next)) == next {
		t.Error("a successor is for who has the token")
	}
	for what, bad := range map[string]token{
		"empty": "", "short": a[1:], "long": a + "A", "a path": "../../../../etc/passwd/../x", "blanks": token(strings.Repeat(" ", tokenLen)),
		"other letters": a[:tokenLen-1] + "=", "another alphabet": "+" + a[1:], "a line feed": token(strings.Repeat("A", tokenLen-1)) + "\n", "a line end": token(strings.Repeat("A", tokenLen-2)) + "\r\n",
		"bits behind the last byte": a[:tokenLen-1] + "B", "percent": "%2e" + a[3:], "bytes": "\xff" + a[1:],
	} {
		if bad.valid() {
			t.Errorf("%s: %q is taken for a token", what, bad)
		}
	}
}

func FuzzRecord(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	for _, r := range []record{{}, {kind: live, incarnation: newIncarnation(), version: 7, created: now, end: now.Add(time.Hour), user: "alice", login: now, body: []byte("{}")},
		{kind: over, created: now}, {kind: moved, renewed: now, codec: 9, user: "alice", login: now, body: []byte("k")}} {
		f.Add(r.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		got, err := decodeRecord(r.encode())
		if err != nil || got.kind != r.kind || got.incarnation != r.incarnation || got.version != r.version || !got.created.Equal(r.created) ||
			!got.end.Equal(r.end) || got.codec != r.codec || !got.renewed.Equal(r.renewed) || got.user != r.user || !got.login.Equal(r.login) || !bytes.Equal(got.body, r.body) {
			t.Errorf("%+v comes back as %+v, %v", r, got, err)
		}
	})
}

func TestEncryption(t *testing.T) {
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	rings := map[string]ring{}
	for name, keys := range map[string][][]byte{"none": nil, "old": {key(1)}, "both": {key(2), key(1)}, "new": {key(2)}} {
		var err error
		if rings[name], err = newRing(keys); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newRing([][]byte{make([]byte, 16)}); err == nil {
		t.Error("a key of 16 bytes is taken")
	}
	const at = Key("k")
	rec := &record{incarnation: newIncarnation(), created: time.Unix(1_800_000_000, 0), user: "alice@example.com", login: time.Unix(1_800_000_000, 0), body: []byte("canary")}
	for writer, readers := range map[string]string{"none": "none", "old": "old both", "both": "both new", "new": "new both"} {
		b, err := rings[writer].encode(at, rec)
		if err != nil {
			t.Fatal(err)
		}
		if shown := bytes.Contains(b, []byte("canary")) || bytes.Contains(b, []byte("alice")); shown != (writer == "none") {
			t.Errorf("%s: %q", writer, b)
		}
		for name, r := range rings {
			got, err := r.decode(at, b, false)
			if may := strings.Contains(" "+readers+" ", " "+name+" "); may != (err == nil) || may && (got.user != rec.user || string(got.body) != "canary") {
				t.Errorf("written by %s, read by %s: %+v, %v", writer, name, got, err)
			}
		}
		if writer == "none" {
			continue
		}
		if _, err := rings[writer].decode("another", b, false); err == nil {
			t.Errorf("%s: a record is read in another one's place", writer)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if got, err := rings[writer].decode(at, bad, false); err == nil {
				t.Errorf("%s: byte %d is another one, and it is read: %+v", writer, i, got)
			}
			if _, err := rings[writer].decode(at, b[:i], false); err == nil {
				t.Errorf("%s: %d bytes of it are read", writer, i)
			}
		}
	}
}

func FuzzSuccessor(f *testing.F) {
	tok, next := newToken(""), newToken("")
	for _, k := range []*keyer{newKeyer(nil, false), newKeyer(nil, true)} {
		key := k.session(next)
		f.Add(successor{key: key}.encode())
		f.Add(successor{key, tok.sealFor(next, key)}.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := decodeSuccessor(b)
		if !ok {
			return
		}
		if got, ok := decodeSuccessor(n.encode()); !ok || got.key != n.key || !bytes.Equal(got.sealed, n.sealed) || n.key.tag() == "" {
			t.Errorf("%+v comes back as %+v", n, got)
		}
		if len(n.sealed) > 0 && !tok.unseal(n.sealed, n.key).valid() {
			t.Errorf("%x is no token", n.sealed)
		}
	})
}

// Whatever a client sends, there is a token of the right form or none, and of two none.
func FuzzCookies(f *testing.F) {
	tok := newToken("")
	key := newKeyer(nil, true).session(tok)
	f.Add("__Host-session="+string(tok)+"; __Host-session-v="+least{7, true}.value(key), string(tok))
	f.Add("__Host-session="+string(tok)+"; __Host-session=x", "Bearer "+string(tok))
	f.Fuzz(func(t *testing.T, cookie, header string) {
		var c Cookie
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		r := &http.Request{Header: http.Header{"Cookie": {cookie}, "Authorization": {header}}}
		value, _ := c.read(r, "")
		if tok := token(value); tok.valid() && (len(tok) != tokenLen || tokenOf(func() []byte { b := tok.bytes(); return b[:] }()) != tok) {
			t.Errorf("%q is taken for a token", tok)
		}
		version, _ := c.read(r, leastCookie)
		if l := parseLeast(version, key); l.known && l.value(key) != version {
			t.Errorf("%q is taken for the version %d", version, l.version)
		}
		o := Options{Header: "Authorization"}
		if o.hasHeader(r) {
			_, _ = o.readHeader(r)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(encodeIndex([]indexEntry{{newKeyer(nil, false).session(newToken("")), time.Unix(1_800_000_000, 0)}, {newKeyer(nil, false).session(newToken("")), time.Unix(1, 0)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := newKeyer(nil, false)
		list, err := k.decodeIndex(b)
		if err != nil {
			return
		}
		if again, err := k.decodeIndex(encodeIndex(list)); err != nil || !slices.Equal(again, list) {
			t.Errorf("%v comes back as %v, %v", list, again, err)
		}
	})
}

// PHP's session of five values takes 248 bytes in Redis; ours shall not take more, so the header has to be small.
func TestTheHeaderIsSmall(t *testing.T) {
	r := record{incarnation: newIncarnation(), created: time.Now(), end: time.Now()}
	if n := len(r.encode()); n > 21 {
		t.Errorf("%d bytes", n)
	}
}

func TestCookies(t *testing.T) {
	for name, c := range map[string]struct {
		cookie Cookie
		want   string // "": refused
	}{
		"by itself":            {Cookie{}, "__Host-session=T; Path=/; HttpOnly; Secure; SameSite=Lax"},
		"plain HTTP":           {Cookie{Insecure: true}, "session=T; Path=/; HttpOnly; SameSite=Lax"},
		"a domain":             {Cookie{Domain: "example.com"}, "session=T; Path=/; Domain=example.com; HttpOnly; Secure; SameSite=Lax"},
		"a path":               {Cookie{Path: "/shop"}, "session=T; Path=/shop; HttpOnly; Secure; SameSite=Lax"},
		"strict":               {Cookie{SameSite: http.SameSiteStrictMode}, "__Host-session=T; Path=/; HttpOnly; Secure; SameSite=Strict"},
		"none":                 {Cookie{SameSite: http.SameSiteNoneMode, Partitioned: true}, "__Host-session=T; Path=/; HttpOnly; Secure; SameSite=None; Partitioned"},
		"persistent":           {Cookie{Persistent: true}, "__Host-session=T; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Lax"},
		"__Host- for a domain": {Cookie{Name: "__Host-s", Domain: "example.com"}, ""},
		"__host- for a path":   {Cookie{Name: "__host-s", Path: "/shop"}, ""},
		"__Host- without TLS":  {Cookie{Name: "__Host-s", Insecure: true}, ""},
		"__Secure-, no TLS":    {Cookie{Name: "__Secure-s", Insecure: true}, ""},
		"None without TLS":     {Cookie{SameSite: http.SameSiteNoneMode, Insecure: true}, ""},
		"Partitioned, no TLS":  {Cookie{Partitioned: true, Insecure: true}, ""},
		"a top-level domain":   {Cookie{Domain: "com"}, ""},
		"a domain of no dots":  {Cookie{Domain: ".localhost"}, ""},
		"an address":           {Cookie{Domain: "192.0.2.1"}, ""},
		"a bad name":           {Cookie{Name: "a b"}, ""},
		"a bad path":           {Cookie{Path: "/;x"}, ""},
		"a bad domain":         {Cookie{Domain: "a b"}, ""},
	} {
		err := c.cookie.complete()
		if (err == nil) != (c.want != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		h := http.Header{}
		h.Add("Set-Cookie", "other=1")
		c.cookie.set(h, "", "x", time.Minute)
		c.cookie.set(h, "", "T", time.Minute)
		if got := h["Set-Cookie"]; len(got) != 2 || got[1] != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// Of two cookies of one name that differ, one was put there by somebody else.
func TestDuplicateCookies(t *testing.T) {
	c := Cookie{Name: "s"}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	a, b := string(newToken("")), string(newToken(""))
	for header, want := range map[string]string{
		"s=" + a: a, "s=" + a + "; s=" + a: a, "s=" + a + "; s=" + b: "", "s=" + a + "; S=" + b: a, "s=stale; s=" + a: "", "x=" + a: "", "s=": "",
		"s=" + a + "; s=" + b + "; s=" + b: "", "s=\"" + a + "\"": "\"" + a + "\"", "x=y;s=" + a + ";": a, "  s=" + a + "\t;ss=" + b + "; xs=" + b: a, "s": "", "s=" + a + "=": a + "=", ";;": "",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", header)
		if got, _ := c.read(r, ""); got != want {
			t.Errorf("%s: got %q, want %q", header, got, want)
		}
	}
}

// What is bounded stays so, whatever is put, put again and dropped; and what was put last is there.
func TestRecent(t *testing.T) {
	r := recent[int]{max: 100}
	for i := range 10_000 {
		k := Key(fmt.Sprint(i % 37))
		switch {
		case i%5 == 4:
			if r.drop(k); r.now[k].size != 0 || r.old[k].size != 0 {
				t.Fatalf("%s is there", k)
			}
		default:
			r.put(k, i, i%11)
			if v, ok := r.get(k); !ok || v != i {
				t.Fatalf("%s: %d, %v, want %d", k, v, ok, i)
			}
		}
		size := 0
		for _, s := range r.now {
			size += s.size
		}
		if size != r.size || size > 110 {
			t.Fatalf("%d: %d, and it says %d", i, size, r.size)
		}
	}
	if r.clear(); r.size != 0 || len(r.now)+len(r.old) != 0 {
		t.Error("it is not empty")
	}
}
