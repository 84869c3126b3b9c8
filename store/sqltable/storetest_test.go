package sqltable_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessile/sessile/internal/testserver"
	"github.com/sessile/sessile/store/sqltable"
	"github.com/sessile/sessile/store/storetest"
)

// server is one of either kind.
type server interface {
	Exec(sql string) string
	Try(db, sql string) (string, error)
	URL(db string) string
}

// tables are kinds of tables, with %s for the name.
var tables = map[string]struct {
	mysql, postgres string
	table           sqltable.Table
}{
	"deadline in seconds": {
		"CREATE TABLE %s (id VARBINARY(128) PRIMARY KEY, data LONGBLOB NOT NULL, expires INT UNSIGNED NOT NULL) ENGINE=InnoDB",
		"CREATE TABLE %s (id varchar(128) PRIMARY KEY, data bytea NOT NULL, expires integer NOT NULL)",
		sqltable.Table{ID: "id", Data: "data", Time: sqltable.Time{Column: "expires"}},
	},
	"last access in seconds": {
		"CREATE TABLE %s (sid VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, body MEDIUMBLOB, access BIGINT) ENGINE=InnoDB",
		"CREATE TABLE %s (sid text PRIMARY KEY, body bytea, access bigint)",
		sqltable.Table{ID: "sid", Data: "body", Time: sqltable.Time{Column: "access", Meaning: sqltable.LastAccess}},
	},
	"timestamp, Base64 in a text": {
		"CREATE TABLE %s (id VARCHAR(191) PRIMARY KEY, payload LONGTEXT NOT NULL, until TIMESTAMP NULL) ENGINE=InnoDB",
		"CREATE TABLE %s (id varchar(191) PRIMARY KEY, payload text NOT NULL, until timestamp)",
		sqltable.Table{ID: "id", Data: "payload", Codec: codec("base64"), Time: sqltable.Time{Column: "until", Unit: sqltable.Timestamp}},
	},
	// The row's own lock, ids with a prefix, and a lifetime that is counted from another column.
	"FOR UPDATE, a prefix, a lifetime since": {
		"CREATE TABLE %s (sess_id VARBINARY(140) PRIMARY KEY, sess_data MEDIUMBLOB NOT NULL, sess_lifetime INT UNSIGNED NOT NULL, sess_time INT UNSIGNED NOT NULL) ENGINE=InnoDB",
		"CREATE TABLE %s (sess_id varchar(140) PRIMARY KEY, sess_data bytea NOT NULL, sess_lifetime integer NOT NULL, sess_time integer NOT NULL)",
		sqltable.Table{ID: "sess_id", Prefix: "ci_session:", Data: "sess_data", Lock: sqltable.Lock{Kind: sqltable.ForUpdate},
			Time: sqltable.Time{Column: "sess_lifetime", Since: "sess_time"}},
	},
}

var number atomic.Int64

func codec(name string) sqltable.Codec {
	c, err := sqltable.ParseCodec(name)
	if err != nil {
		panic(err)
	}
	return c
}

// open makes an empty table of the kind, and a store on it.
func open(t *testing.T, s server, kind string) *sqltable.Store {
	t.Helper()
	k := tables[kind]
	create := k.postgres
	u, err := url.Parse(s.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	if u.Scheme == "mysql" {
		create = k.mysql
	}
	k.table.Name = fmt.Sprint("t", number.Add(1))
	s.Exec(fmt.Sprintf(create, k.table.Name))
	st, err := sqltable.Open(t.Context(), u, sqltable.Options{Table: k.table, Lifetime: 10 * time.Hour, MaxValue: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func TestConformance(t *testing.T) {
	for name, s := range map[string]server{"MariaDB": testserver.MariaDB(t), "PostgreSQL": testserver.Postgres(t)} {
		for kind := range tables {
			t.Run(name+", "+kind, func(t *testing.T) {
				storetest.RunOrigin(t, storetest.Harness[*sqltable.Store]{
					New:     func(t *testing.T) *sqltable.Store { return open(t, s, kind) },
					BadKeys: []string{"a b", "a\x00b", "ä", strings.Repeat("a", 513)},
				})
			})
		}
		t.Run(name+", a table of our own", func(t *testing.T) {
			storetest.RunOrigin(t, storetest.Harness[*sqltable.Store]{
				New: func(t *testing.T) *sqltable.Store {
					return at(t, fmt.Sprintf("%s?preset=sessile&table=own%d&max_value=%d", s.URL("app"), number.Add(1), 2<<20))
				},
				BadKeys: []string{"a b", "a\x00b", "ä", strings.Repeat("a", 513)},
			})
		})
	}
}
