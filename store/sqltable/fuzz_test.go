package sqltable_test

import (
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessile/sessile/store/sqltable"
)

// codecs are each step on its own, and what the presets have.
func codecs(f *testing.F) map[string]sqltable.Codec {
	all := map[string]sqltable.Codec{}
	for _, name := range sqltable.Steps() {
		all[name] = codec(name)
	}
	for name, p := range sqltable.Presets {
		t := p.Table
		if t.Codec != nil {
			all["preset "+name] = t.Codec
		}
		if p.Postgres != nil {
			if p.Postgres(&t); t.Codec != nil {
				all["preset "+name+", PostgreSQL"] = t.Codec
			}
		}
	}
	if len(all) < 8 {
		f.Fatalf("there are %d codecs", len(all))
	}
	return all
}

// Whatever is in a column, no codec panics; a body that is read is written so that it reads as the same; and what a codec
// takes for writing comes back as it was.
func FuzzCodec(f *testing.F) {
	all := codecs(f)
	for _, seed := range []string{"", "x", "\n", "=", "YQ==", "YQ==\n", "YR==", "Y Q==", "YWJj\r\nZGVm", strings.Repeat("A", 76) + "\n", strings.Repeat("A", 77),
		`s:3:"abc";`, `s:4:"abc";`, `s:0:"";`, `s:1:"`, `s::"";`, `s:03:"abc";`, `s:3:"abc";x`, `s:-1:"";`, "a|i:1;", `{"id":"a","data":"b","time":1}`,
		"\x4b\x04\x00", "\x03\x00", "\x01\x00\x00\xff\xff", "\x00\x01\xff\xfe", "pst0\x04\x0b", "\xff", "\x80abc", "O:8:\"stdClass\":0:{}"} {
		f.Add("0123456789abcdef", []byte(seed), int64(1793494800000))
	}
	names := slices.Sorted(maps.Keys(all))
	f.Fuzz(func(t *testing.T, id string, data []byte, ms int64) {
		for _, name := range names {
			c := all[name]
			if body, err := c.Read(sqltable.Row{ID: id, Data: slices.Clone(data), Time: ms}); err == nil {
				if row, err := c.Write(id, slices.Clone(body)); err == nil {
					row.ID = id
					if !c.Timed() {
						row.Time = ms
					}
					if again, err := c.Read(row); err != nil || string(again) != string(body) {
						t.Errorf("%s: the column %q is read as %q, which is written as %q and read as %q, %v", name, data, body, row.Data, again, err)
					}
				}
			}
			if row, err := c.Write(id, slices.Clone(data)); err == nil {
				row.ID = id
				if back, err := c.Read(row); err != nil || string(back) != string(data) {
					t.Errorf("%s: the body %q is written as %q, and read as %q, %v", name, data, row.Data, back, err)
				}
			}
		}
	})
}

// An id that is made a column's is that id again, and no two are one.
func FuzzID(f *testing.F) {
	f.Add("0123456789abcdef", "a", "")
	f.Add("ci_session:x", "x", "ci_session:")
	f.Add("", "ab", "a")
	f.Fuzz(func(t *testing.T, one, other, prefix string) {
		for _, hash := range []sqltable.Hash{sqltable.NoHash, sqltable.SHA256Hex, sqltable.SHA256Base64} {
			table := sqltable.Table{Prefix: prefix, Hash: hash}
			column := sqltable.ColumnID(&table, one)
			if back, ok := sqltable.KeyOf(&table, column); ok != (hash == sqltable.NoHash) || ok && back != one {
				t.Errorf("%q is %q in the column, and then %q, %v", one, column, back, ok)
			}
			if one != other && column == sqltable.ColumnID(&table, other) {
				t.Errorf("%q and %q are both %q", one, other, column)
			}
			if !strings.HasPrefix(column, prefix) {
				t.Errorf("%q has no prefix", column)
			}
		}
	})
}

// What a URL says is taken or refused, without a panic, and without the password in the text.
func FuzzURL(f *testing.F) {
	for _, seed := range []string{"preset=rt&lifetime=12h", "preset=rt", "preset=no", "preset=", "preset=rt&preset=rt", "table=s&id=i&data=d&expires=e&expires_unit=ms",
		"table=s&id=i&data=d&expires=e&expires_kind=never", "table=a.b.c&id=i&data=d", "table=&id=&data=", "table=s?&id=i&data=d", "table=s&id=i&data=d&lifetime=12",
		"table=s&id=i&data=d&lifetime=-1s", "table=s&id=i&data=d&lifetime=9999999h", "table=s&id=i&data=d&expires=e&codec=no", "table=s&id=i&data=d&expires=e&codec=base64,,",
		"table=s&id=i&data=d&expires=e&lock=named", "table=s&id=i&data=d&expires=e&lock=named&lock_name=x", "table=s&id=i&data=d&expires=e&id_hash=md5",
		"table=s&id=i&data=d&expires=e&max_value=0", "table=s&id=i&data=d&expires=e&max_value=1e9", "table=s&id=i&data=d&expires=e&lazy=perhaps", "tls=yes", "%zz", "a;b",
		"table=s&id=i&data=d&expires=e&op_bound=0s", "table=s&id=i&data=d&expires=e&op_bound=1ns", "unknown=1", "table=`s`&id=\"i\"&data=d&expires=e", "table=s&id=i&data=d&expires=e&expires_since=x&expires_unit=ms"} {
		f.Add("mysql", seed)
		f.Add("postgres", seed)
	}
	f.Fuzz(func(t *testing.T, scheme, query string) {
		if strings.Contains(query, "file") || strings.Contains(query, "%") && strings.Contains(strings.ToLower(query), "%6") {
			return // no file of this machine is read
		}
		u := &url.URL{Scheme: scheme, User: url.UserPassword("u", "geheim!"), Host: "h", Path: "/db", RawQuery: query}
		plain, opt, err := sqltable.ParseURL(u, sqltable.Options{})
		if err != nil {
			if strings.Contains(err.Error(), "geheim") && !strings.Contains(query, "geheim") {
				t.Errorf("the password is shown: %v", err)
			}
			return
		}
		if opt.Bound != 0 && opt.Bound < time.Millisecond { // to MySQL no bound at all
			t.Errorf("%q was taken: %v", query, opt.Bound)
		}
		if plain.RawQuery != "" || opt.Table.Name == "" || opt.Table.ID == "" || opt.Table.Data == "" || opt.Lifetime < 0 || opt.Bound < 0 || opt.MaxValue < 0 ||
			opt.Lifetime == 0 && (opt.Table.Time.Column == "" || opt.Table.Time.Meaning != sqltable.Deadline) {
			t.Errorf("%q was taken: %+v", query, opt)
		}
	})
}

// A password is what stands in the file, without its line feed.
func TestPasswordFile(t *testing.T) {
	name := t.TempDir() + "/password"
	if err := os.WriteFile(name, []byte("p@ss/w:rd%\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("postgres://u@h/db?table=s&id=i&data=d&expires=e&password_file=" + url.QueryEscape(name))
	plain, _, err := sqltable.ParseURL(u, sqltable.Options{})
	if password, _ := plain.User.Password(); err != nil || password != "p@ss/w:rd%" {
		t.Errorf("got %q, %v", password, err)
	}
}
