package sqltable

// A Preset is the table of an application.
type Preset struct {
	Table
	Only     string // mysql or postgres, where it is not for both
	Postgres func(*Table)
}

// Presets are the tables of applications, by the name that a URL gives (preset=). What an application sets by a default
// of the column, or not at all, is not said here.
var Presets = map[string]Preset{
	// RequestTracker 5, and what else uses Apache::Session::MySQL or ::Postgres. On current servers MySQL's LastUpdated is
	// always NULL, PostgreSQL's is when the session was made, and RT ends none by it. PostgreSQL's column is Base64 already.
	"rt": {Table: Table{Name: "sessions", ID: "id", Data: "a_session", Codec: must(ParseCodec("to-base64")), Lazy: true,
		Lock: Lock{Named, "Apache-Session-{id}"}},
		Postgres: func(t *Table) { t.Codec, t.Lock = identity, Lock{Kind: ForUpdate} }},
	// LemonLDAP::NG: _utime is when the user logged in. It takes no lock, but for one that is told to.
	"lemonldap": {Table: Table{Name: "sessions", ID: "id", Data: "a_session", Codec: must(ParseCodec("json-latin1")), Lazy: true,
		Time: Time{Column: "_utime", Meaning: Created}, Lock: Lock{Named, "Apache-Session-{id}"}},
		Postgres: func(t *Table) { t.Lock = Lock{} }},
	// Symfony's PdoSessionHandler, which locks the row unless it is told otherwise.
	"symfony": {Table: Table{Name: "sessions", ID: "sess_id", Data: "sess_data",
		Time: Time{Column: "sess_lifetime", Since: "sess_time"}, Lock: Lock{Kind: ForUpdate}}},
	// Laravel: in Redis its driver has a serialized string around what the table has as Base64.
	"laravel": {Table: Table{Name: "sessions", ID: "id", Data: "payload", Codec: must(ParseCodec("base64,php-string")),
		Time: Time{Column: "last_activity", Meaning: LastAccess}}},
	// CodeIgniter 4, whose ids begin with the name of its cookie; and 3, where they do not.
	"codeigniter": {Table: Table{Name: "ci_sessions", ID: "id", Prefix: "ci_session:", Data: "data", Lazy: true,
		Time: Time{Column: "timestamp", Unit: Timestamp, Meaning: LastAccess}, Lock: Lock{Named, "{md5}"},
		Also: []Column{{Name: "ip_address", SQL: "''", Insert: true}}},
		Postgres: func(t *Table) {
			t.Lock.Name = "{id}"
			t.Also = []Column{{Name: "ip_address", SQL: "'0.0.0.0'::inet", Insert: true}}
		}},
	"codeigniter3": {Table: Table{Name: "ci_sessions", ID: "id", Data: "data", Lazy: true,
		Time: Time{Column: "timestamp", Meaning: LastAccess}, Lock: Lock{Named, "{md5}"},
		Also: []Column{{Name: "ip_address", SQL: "''", Insert: true}}},
		Postgres: func(t *Table) { t.Lock.Name, t.Codec = "{id}", must(ParseCodec("base64")) }},
	// Drupal 8 and later. Who it is, is in the body; the column is for lists.
	"drupal": {Table: Table{Name: "sessions", ID: "sid", Hash: SHA256Base64, Data: "session", Lazy: true,
		Time: Time{Column: "timestamp", Meaning: LastAccess}, Also: []Column{{Name: "uid", SQL: "0", Insert: true}}}},
	// Joomla 4 and 5. The table has the site's own prefix before its name: table=.
	"joomla": {Table: Table{Name: "jos_session", ID: "session_id", Data: "data", Lazy: true,
		Time: Time{Column: "time", Meaning: LastAccess}, Also: []Column{{Name: "client_id", SQL: "0", Insert: true}}}},
	// Moodle, up to 4.4 in Redis: phpredis serializes the body there once more.
	"moodle": {Table: Table{Name: "mdl_sessions", ID: "sid", Data: "sessdata", Codec: must(ParseCodec("base64,php-string")), Lazy: true,
		Time: Time{Column: "timemodified", Meaning: LastAccess},
		Also: []Column{{Name: "userid", SQL: "0", Insert: true}, {Name: "state", SQL: "0", Insert: true}, {Name: "timecreated", Now: true, Insert: true}}}},
	// MediaWiki: keys are <wiki>:MWSession:<id>, in Redis, too.
	"mediawiki": {Table: Table{Name: "objectcache", ID: "keyname", Data: "value", Codec: must(ParseCodec("deflate")),
		Time: Time{Column: "exptime", Unit: Digits}}, Only: "mysql"},
	// Magento 2: session_expires is, against its name, when the session was last written.
	"magento": {Table: Table{Name: "session", ID: "session_id", Data: "session_data", Codec: must(ParseCodec("base64-or-plain")), Lazy: true,
		Time: Time{Column: "session_expires", Meaning: LastAccess}}},
	"yii2":   {Table: Table{Name: "session", ID: "id", Data: "data", Time: Time{Column: "expire"}}},
	"django": {Table: Table{Name: "django_session", ID: "session_key", Data: "session_data", Time: Time{Column: "expire_date", Unit: UTC}}},
	// Rails' activerecord-session_store: ids are 2::<SHA-256>, in redis-rack, too; Marshal as Base64.
	"rails": {Table: Table{Name: "sessions", ID: "session_id", Data: "data", Codec: must(ParseCodec("base64")), Lazy: true,
		Time: Time{Column: "updated_at", Unit: UTC, Meaning: LastAccess},
		Also: []Column{{Name: "created_at", Now: true, Unit: UTC, Insert: true}}}},
	"express-mysql-session": {Table: Table{Name: "sessions", ID: "session_id", Data: "data", Time: Time{Column: "expires"}}, Only: "mysql"},
	"connect-pg-simple":     {Table: Table{Name: "session", ID: "sid", Data: "sess", Time: Time{Column: "expire", Unit: Timestamp}}, Only: "postgres"},
	// alexedwards/scs: mysqlstore, postgresstore, pgxstore.
	"scs": {Table: Table{Name: "sessions", ID: "token", Data: "data", Time: Time{Column: "expiry", Unit: UTC}}},
	// A table of our own, which is made where it is not there.
	"sessile": {Table: Table{Name: "sessile_sessions", ID: "id", Data: "data", Time: Time{Column: "expires", Unit: Milliseconds}}},
}
