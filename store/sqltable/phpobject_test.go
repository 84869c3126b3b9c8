package sqltable_test

import (
	"bytes"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store"
	"github.com/sessile/sessile/store/sqltable"
)

// What PHP itself writes comes back byte for byte, and what the codec writes is what PHP would.
func TestPHPObject(t *testing.T) {
	php := testserver.PHP(t)
	for name, c := range map[string]struct{ codec, code string }{
		"an object":          {"php-object", `$o = new stdClass; $o->id = $id; $o->access = $access; $o->data = $data;`},
		"an array":           {"php-object::id=id:access=access:data=data", `$o = ['id' => $id, 'access' => $access, 'data' => $data];`},
		"another class":      {`php-object:My\Session:id=session_id:access=last:data=d`, `$o = new My\Session; $o->session_id = $id; $o->last = $access; $o->d = $data;`},
		"private properties": {"php-object:P:data=\x00P\x00d:access=\x00*\x00a", `$o = new P($data, $access);`},
		"another order":      {"php-object::data=data:access=access", `$o = ['data' => $data, 'access' => $access];`},
		"a time as a string": {"php-object:stdClass:id=id:access-text=access:data=data", `$o = (object) ['id' => $id, 'access' => "$access", 'data' => $data];`},
	} {
		t.Run(name, func(t *testing.T) {
			codec := codec(c.codec)
			for _, data := range []string{"", `user|s:5:"alice";`, `x|s:4:"data";s:3:"a";";}{`, "\x00\xff\n", `s:4:"data";s:1:"x";`} {
				row := sqltable.Row{ID: "abc123", Data: []byte(data), Time: 1763715600_000}
				body, err := codec.Read(row)
				if err != nil {
					t.Fatal(err)
				}
				written := php.Run(`<?php namespace My { class Session { public $session_id, $last, $d; } }
					namespace { class P { private $d; protected $a; function __construct($d, $a) { $this->d = $d; $this->a = $a; } }
					$id = "abc123"; $access = 1763715600; $data = base64_decode($argv[1]); `+c.code+` echo serialize($o); }`, nil, encode(data))
				if written != string(body) {
					t.Errorf("%q: PHP writes\n%q, the codec\n%q", data, written, body)
				}
				back, err := codec.Write("abc123", []byte(written))
				if err != nil || string(back.Data) != data || back.Time != row.Time {
					t.Errorf("%q comes back as %q, %d, %v", data, back.Data, back.Time, err)
				}
			}
		})
	}
	good := `O:8:"stdClass":3:{s:2:"id";s:3:"abc";s:6:"access";i:1763715600;s:4:"data";s:1:"x";}`
	for _, bad := range []string{"", "x", good[:len(good)-1], good + "x", strings.Replace(good, "abc", "abd", 1), strings.Replace(good, "O:8", "O:08", 1),
		strings.Replace(good, "i:1763715600", "i:+1763715600", 1), strings.Replace(good, "i:1763715600", `s:10:"1763715600"`, 1), strings.Replace(good, "i:1763715600", "i:0", 1),
		strings.Replace(good, "i:1763715600", "i:-5", 1), strings.Replace(good, "i:1763715600", "i:99999999999999", 1), strings.Replace(good, "i:1763715600", "i:99999999999999999999", 1),
		strings.Replace(good, `s:1:"x"`, `s:2:"x"`, 1), strings.Replace(good, `s:1:"x"`, `s:-1:"x"`, 1), strings.Replace(good, `s:1:"x"`, "N", 1), strings.Replace(good, "stdClass", "SplQueue", 1),
		strings.Replace(good, ":3:{", ":4:{", 1), `a:3:{s:2:"id";s:3:"abc";s:6:"access";i:1;s:4:"data";s:1:"x";}`} {
		if row, err := codec("php-object").Write("abc", []byte(bad)); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%q: got %+v, %v", bad, row, err)
		}
	}
	if _, err := codec("php-object").Read(sqltable.Row{ID: "abc", Data: []byte("x")}); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a row without a time: %v", err)
	}
	for _, text := range []string{"php-objects", "php-object,base64", "php-object:", "php-object:C", "php-object:C:id=id:data=data", "php-object:C:access=a:access-text=b:data=d",
		"php-object:C:access=a:data=", "php-object:C:access=a:data", "php-object:C:access=a:data=d:what=x"} {
		if _, err := sqltable.ParseCodec(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A table that the codec does not go with is refused.
func TestPHPObjectNeedsTheTimeColumn(t *testing.T) {
	const table = "mysql://u@h/db?table=t&id=id&data=data&lifetime=1440s&codec=php-object"
	for query, want := range map[string]string{
		"":                                     "it needs the column",
		"&expires=access":                      "it needs the column",
		"&expires=access&expires_kind=created": "it needs the column",
		"&expires=access&expires_kind=last-access":                    "",
		"&expires=access&expires_kind=last-access&id_hash=sha256-hex": "cannot be had from its hash",
	} {
		u, err := url.Parse(table + query)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = sqltable.ParseURL(u, sqltable.Options{}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
	}
}

func encode(s string) string {
	c, _ := codec("to-base64-line").Read(sqltable.Row{Data: []byte(s)})
	return string(c)
}

// Both ways: every row makes a body that comes back as that row, and every body that is taken comes back as it was.
func FuzzPHPObject(f *testing.F) {
	f.Add("abc", []byte(`user|s:5:"alice";`), int64(1763715600), []byte(`O:8:"stdClass":3:{s:2:"id";s:3:"abc";s:6:"access";i:1763715600;s:4:"data";s:1:"x";}`))
	f.Add("", []byte(`s:4:"data";s:1:"x";}`), int64(1), []byte(`a:3:{s:2:"id";s:3:"abc";s:6:"access";i:1;s:4:"data";s:1:"x";}`))
	f.Add("a", []byte{}, int64(-1), []byte(`a:2:{s:4:"data";s:1:"x";s:6:"access";s:1:"1";}`))
	codecs := []sqltable.Codec{codec("php-object"), codec("php-object::id=id:access=access:data=data"), codec("php-object::data=data:access-text=access")}
	f.Fuzz(func(t *testing.T, id string, data []byte, at int64, body []byte) {
		for i, c := range codecs {
			if b, err := c.Read(sqltable.Row{ID: id, Data: data, Time: at}); err == nil {
				row, err := c.Write(id, b)
				if err != nil || !bytes.Equal(row.Data, data) || row.Time != at/1000*1000 {
					t.Fatalf("%d: %q, %q, %d comes back as %+v, %v", i, id, data, at, row, err)
				}
			}
			row, err := c.Write("abc", body)
			if err != nil {
				continue
			}
			row.ID = "abc"
			if again, err := c.Read(row); err != nil || !bytes.Equal(again, body) {
				t.Fatalf("%d: %q comes back as %q, %v", i, body, again, err)
			}
		}
	})
}
