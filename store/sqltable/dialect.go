package sqltable

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
)

// dialect is what the two kinds of servers say differently. Statements are written with ? for a parameter.
type dialect struct {
	quote  string                     // around a name
	now    string                     // the server's clock, in ms since 1970
	number func(expr string) string   // a whole one, of a size that can be reckoned with
	epoch  func(column string) string // a time column, in ms since 1970
	time   func(ms string) string     // ms since 1970 as a value of a time column, rounded up to a second
	// The same two where a column without a zone is in UTC, and where it holds digits.
	epochUTC, epochDigits func(column string) string
	timeUTC, timeDigits   func(ms string) string
	ceil                  func(ms string) string // ms in whole seconds, rounded up
	same                  string                 // the very bytes of a column, or no value: column, parameter
	share                 string                 // behind a SELECT: nobody changes the row before this statement's end
	// sharing and changing are further conditions of such a SELECT, and of the change of that row; "" where the server
	// lets the one who waits for the change come before those who share the row after him.
	sharing, changing string
	dual              string                 // behind a SELECT of constants that has a WHERE
	dollar            bool                   // parameters are $1, $2
	code              func(err error) string // an error, without the values that the server may have put into its text
	text              string                 // a parameter that is a text
	matches           string                 // whether the text in a column is of a form: column, regular expression
	schema            string                 // where tables are looked for
	marks             string                 // makes the table of marks, if it is not there
	// readOnlyErrors are what a server says that takes no writes.
	readOnlyErrors []string
	// begin begins a transaction that locks no more than a row: in MySQL's usual isolation one that is not there would lock
	// out others that are to be made.
	begin []string
	// lock asks for the lock that is named, and unlock gives it back, each with a truth for an answer. lock is told how
	// many seconds to wait for it, if lockWaits, and asked again after a moment.
	lock, unlock string
	lockWaits    bool
	// What Check asks: 1 where the server takes no writes; how many unique indexes there are on a column alone, given the
	// schema ("": the current one) twice, the table and the column; the table's engine, and how many triggers it has, given
	// the schema twice and the table; max_connections and the largest packet, or 0; a name and ON for a node of Galera;
	// 0 where the user may not make a table, given the schema twice ("": it is found out by preparing to).
	readOnly, unique, kind, triggers, limits, cluster, mayCreate string
	// What Audit asks: who (user@host) and the statement of each other connection to the database, which may be the last one
	// if it was begun after ?, in ms; and 0 where the user does not see those of other users, and what lets it.
	others, seesAll, letSee string
	// own makes a table of ours, if it is not there.
	own string
	// classify says what became of a statement whose error is err.
	classify func(err error) class
}

// class is what an error of the server says about the statement.
type class uint8

const (
	classUnknown   class = iota // it may have been executed, or be still
	classNot                    // certainly not executed
	classAgain                  // certainly not executed, and worth another try at once: a deadlock
	classDuplicate              // there is such a row
	classInvalid                // the table cannot hold this
	classMissing                // there is no such table
)

var mariadb = &dialect{
	quote:  "`",
	now:    nowMySQL,
	number: func(e string) string { return "CAST(" + within(e) + " AS SIGNED)" },
	// UNIX_TIMESTAMP knows nothing behind 2038, and takes the first of two for an hour that comes twice: whoever used a
	// session in the second would be out. IS NULL takes '0000-00-00' for NULL. That is over, as it is for an application.
	epoch: func(c string) string {
		return "IF(" + c + " < '1970-01-02', 0, GREATEST(CAST(COALESCE(UNIX_TIMESTAMP(" + c + "), 0) * 1000 AS SIGNED), " + nowMySQL +
			" + TIMESTAMPDIFF(MICROSECOND, NOW(6), " + c + ") DIV 1000))"
	},
	time: func(ms string) string { return "FROM_UNIXTIME(CEILING((" + ms + ") / 1000))" },
	ceil: func(ms string) string { return "CEILING((" + ms + ") / 1000)" },
	epochUTC: func(c string) string {
		return "IF(" + c + " < '1970-01-02', 0, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', " + c + ") DIV 1000)"
	},
	timeUTC: utcMySQL,
	epochDigits: func(c string) string {
		return "TIMESTAMPDIFF(SECOND, '1970-01-01', STR_TO_DATE(CONVERT(" + c + " USING ascii), '%Y%m%d%H%i%s')) * 1000"
	},
	timeDigits: func(ms string) string { return "DATE_FORMAT(" + utcMySQL(ms) + ", '%Y%m%d%H%i%s')" },
	same:       "CAST(%s AS BINARY) <=> CAST(%s AS BINARY)",
	share:      "LOCK IN SHARE MODE",
	dual:       " FROM DUAL",
	code:       codeMySQL,
	text:       "?",
	matches:    "CONVERT(%s USING utf8mb4) REGEXP '%s'",
	schema:     "DATABASE()",
	// The name is compared byte by byte, and the engine can hold a row.
	marks: "CREATE TABLE IF NOT EXISTS %s (name VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, " +
		"mark VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NOT NULL) ENGINE=InnoDB",
	own: "CREATE TABLE IF NOT EXISTS %s (id VARBINARY(512) PRIMARY KEY, data LONGBLOB NOT NULL, expires BIGINT NOT NULL, " +
		"KEY expires (expires)) ENGINE=InnoDB",
	others:         "SELECT CONCAT(user, '@', SUBSTRING_INDEX(host, ':', 1)), info FROM information_schema.processlist WHERE db = DATABASE() AND info IS NOT NULL AND id <> CONNECTION_ID()",
	seesAll:        "SELECT COUNT(*) FROM information_schema.user_privileges WHERE privilege_type = 'PROCESS'",
	letSee:         "GRANT PROCESS ON *.* TO it",
	readOnlyErrors: []string{"error 1290", "error 1792", "error 1836"},
	begin:          []string{"SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION"},
	lock:           "SELECT " + ours + "GET_LOCK(?, ?)",
	lockWaits:      true,
	readOnly:       "SELECT IF(@@global.read_only IN ('0', 'OFF'), 0, 1)", // of some versions it is a word
	unique: "SELECT COUNT(*) FROM (SELECT index_name FROM information_schema.statistics WHERE table_schema = IF(? = '', DATABASE(), ?) AND " +
		"table_name = ? AND non_unique = 0 GROUP BY index_name HAVING COUNT(*) = 1 AND MAX(column_name) = ?) one",
	kind:     "SELECT IF(table_type LIKE '%VIEW', 'view', engine) FROM information_schema.tables WHERE table_schema = IF(? = '', DATABASE(), ?) AND table_name = ?",
	triggers: "SELECT COUNT(*) FROM information_schema.triggers WHERE event_object_schema = IF(? = '', DATABASE(), ?) AND event_object_table = ?",
	limits:   "SELECT CONCAT_WS(' ', @@max_connections, @@max_allowed_packet)",
	cluster:  "SHOW VARIABLES LIKE 'wsrep_on'",
	unlock:   "SELECT " + ours + "RELEASE_LOCK(?)",
	classify: classifyMySQL,
}

var postgres = &dialect{
	quote:    `"`,
	now:      "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
	number:   func(e string) string { return within(e) + "::bigint" },
	epoch:    func(c string) string { return "(extract(epoch FROM " + finite(c) + "::timestamptz) * 1000)::bigint" },
	time:     func(ms string) string { return "to_timestamp(ceil((" + ms + ") / 1000.0))" },
	ceil:     func(ms string) string { return "ceil((" + ms + ") / 1000.0)::bigint" },
	epochUTC: func(c string) string { return "(extract(epoch FROM " + finite(c) + ") * 1000)::bigint" },
	timeUTC:  func(ms string) string { return "to_timestamp(ceil((" + ms + ") / 1000.0)) AT TIME ZONE 'UTC'" },
	epochDigits: func(c string) string {
		return "(extract(epoch FROM to_timestamp(" + c + ", 'YYYYMMDDHH24MISS')::timestamp) * 1000)::bigint"
	},
	timeDigits: func(ms string) string {
		return "to_char(to_timestamp(ceil((" + ms + ") / 1000.0)) AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISS')"
	},
	same:  "%s IS NOT DISTINCT FROM %s",
	share: "FOR SHARE",
	// Rows are shared past one who waits to change it, for ever under load; these locks are queued for. The row is locked
	// behind them, and its condition is looked at again then.
	sharing:        " AND pg_advisory_xact_lock_shared(hashtext('" + marksTable + "')) IS NOT NULL",
	changing:       " AND pg_advisory_xact_lock(hashtext('" + marksTable + "')) IS NOT NULL",
	code:           codePostgres,
	text:           "?::varchar",
	matches:        "%s ~ '%s'",
	schema:         "current_schema()",
	marks:          "CREATE TABLE IF NOT EXISTS %s (name varchar(128) PRIMARY KEY, mark varchar(1024) NOT NULL)",
	own:            "CREATE TABLE IF NOT EXISTS %s (id varchar(512) COLLATE \"C\" PRIMARY KEY, data bytea NOT NULL, expires bigint NOT NULL)",
	readOnlyErrors: []string{"error 25006"},
	begin:          []string{"BEGIN ISOLATION LEVEL READ COMMITTED"},
	// The server's own wait would end with lock_timeout, as an error.
	lock:     "SELECT pg_try_advisory_lock(hashtext($1))",
	unlock:   "SELECT pg_advisory_unlock(hashtext($1))",
	dollar:   true,
	readOnly: "SELECT CASE WHEN pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' THEN 1 ELSE 0 END",
	unique: "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace " +
		"JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] WHERE n.nspname = CASE WHEN ?::text = '' THEN " +
		"current_schema() ELSE ?::text END AND c.relname = ?::text AND a.attname = ?::text AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL",
	kind: "SELECT CASE WHEN c.relkind IN ('r', 'p') THEN 'table' ELSE 'view' END FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace " +
		"WHERE n.nspname = CASE WHEN ?::text = '' THEN current_schema() ELSE ?::text END AND c.relname = ?::text",
	triggers: "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace " +
		"WHERE NOT t.tgisinternal AND n.nspname = CASE WHEN ?::text = '' THEN current_schema() ELSE ?::text END AND c.relname = ?::text",
	others: "SELECT usename || '@' || COALESCE(host(client_addr), 'localhost'), query FROM pg_stat_activity WHERE datname = current_database() AND " +
		"pid <> pg_backend_pid() AND application_name <> 'sessile' AND (state = 'active' OR query_start > to_timestamp(?::bigint / 1000.0))",
	seesAll:   "SELECT CASE WHEN pg_has_role(current_user, 'pg_read_all_stats', 'MEMBER') THEN 1 ELSE 0 END",
	letSee:    "GRANT pg_read_all_stats TO it",
	limits:    "SELECT current_setting('max_connections') || ' 0'",
	mayCreate: "SELECT CASE WHEN has_schema_privilege(CASE WHEN ?::text = '' THEN current_schema() ELSE ?::text END, 'CREATE') THEN 1 ELSE 0 END",
	classify:  classifyPostgres,
}

// within keeps a number between the year 9999 and as long before 1970, in ms: seconds can still be made ms of.
func within(e string) string {
	return "(CASE WHEN " + e + " IS NOT NULL THEN LEAST(GREATEST(" + e + ", -253402300799999), 253402300799999) END)"
}

// finite is a moment that PostgreSQL may call infinity.
func finite(c string) string {
	return "(CASE WHEN " + c + " IS NOT NULL THEN LEAST(GREATEST(" + c + ", '1970-01-01'), '9999-12-31') END)"
}

// nowMySQL does not ask NOW(), which is ambiguous for an hour a year.
const nowMySQL = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000)"

func utcMySQL(ms string) string {
	return "DATE_ADD('1970-01-01', INTERVAL CEILING((" + ms + ") / 1000) SECOND)"
}

// held reports whether an error says that somebody else has the row.
func held(code string) bool {
	for _, c := range []string{"1205", "1213", "1969", "3024", "55P03", "57014", "40P01"} {
		if strings.HasPrefix(code, "error "+c) {
			return true
		}
	}
	return false
}

// milliseconds is the value of a column of unit u in ms since 1970.
func (d *dialect) milliseconds(column string, u Unit) string {
	switch u {
	case Milliseconds:
		return d.number(column)
	case Timestamp:
		return d.epoch(column)
	case UTC:
		return d.epochUTC(column)
	case Digits:
		return d.epochDigits(column)
	}
	return d.number(column) + " * 1000"
}

// value is ms since 1970 as a value for a column of unit u, rounded up.
func (d *dialect) value(ms string, u Unit) string {
	switch u {
	case Milliseconds:
		return ms
	case Timestamp:
		return d.time(ms)
	case UTC:
		return d.timeUTC(ms)
	case Digits:
		return d.timeDigits(ms)
	}
	return d.ceil(ms)
}

// ident quotes a name, of a table with its schema, too.
func (d *dialect) ident(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = d.quote + strings.ReplaceAll(p, d.quote, d.quote+d.quote) + d.quote
	}
	return strings.Join(parts, ".")
}

// also is the value of a column that a write sets besides.
func (d *dialect) also(c Column) string {
	if c.Now {
		return d.value(d.now, c.Unit)
	}
	return c.SQL
}

// classifyMySQL: an error that the server sends ends the statement, and what it had done is rolled back (InnoDB).
// https://mariadb.com/kb/en/mariadb-error-code-reference/
func classifyMySQL(err error) class {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		switch e.Number {
		case 1062: // ER_DUP_ENTRY
			return classDuplicate
		case 1213, 1615: // ER_LOCK_DEADLOCK, ER_NEED_REPREPARE
			return classAgain
		case 1053, 1180: // ER_SERVER_SHUTDOWN, ER_ERROR_DURING_COMMIT
			return classUnknown
		// Out of range, not of the column's character set, too long, not a time (twice), NULL, a constraint (MariaDB's and
		// MySQL's), not JSON, larger than max_allowed_packet.
		case 1153, 1264, 1366, 1406, 1292, 1411, 1048, 4025, 3819, 3140:
			return classInvalid
		case 1146: // ER_NO_SUCH_TABLE
			return classMissing
		}
		return classNot
	}
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return classInvalid
	}
	return classifyConnection(err)
}

// classifyPostgres: https://www.postgresql.org/docs/15/errcodes-appendix.html
func classifyPostgres(err error) class {
	var e *pgconn.PgError
	if connect := (*pgconn.ConnectError)(nil); errors.As(err, &connect) {
		return classNot
	}
	if errors.As(err, &e) {
		switch {
		case e.SeverityUnlocalized == "FATAL" || e.SeverityUnlocalized == "PANIC": // which also comes behind a commit
			return classUnknown
		case e.Code == "23505":
			return classDuplicate
		case e.Code == "40P01" || e.Code == "40001":
			return classAgain
		case strings.HasPrefix(e.Code, "22"), e.Code == "23502", e.Code == "23514": // a value that the column cannot hold, NULL, a constraint
			return classInvalid
		case e.Code == "42P01":
			return classMissing
		}
		return classNot
	}
	if pgconn.SafeToRetry(err) {
		return classNot
	}
	return classifyConnection(err)
}

func classifyConnection(err error) class {
	var dial *net.OpError
	switch {
	case errors.Is(err, driver.ErrBadConn): // database/sql: it was not sent
		return classNot
	case errors.As(err, &dial) && dial.Op == "dial":
		return classNot
	}
	return classUnknown
}

func codeMySQL(err error) string {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return fmt.Sprintf("error %d%s", e.Number, hints[fmt.Sprint(e.Number)])
	}
	return codeConnection(err)
}

func codePostgres(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return "error " + e.Code + hints[e.Code]
	}
	return codeConnection(err)
}

func codeConnection(err error) string {
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &cert):
		return "nobody we know has signed the server's certificate, or it is for another name (ca_file=)"
	case errors.Is(err, mysql.ErrNoTLS), strings.Contains(err.Error(), "refused TLS"):
		return "the server has no TLS (tls=)"
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, context.Canceled):
		return "given up"
	}
	return "the connection is lost"
}

// hints say what to do about an error, by its number.
var hints = map[string]string{
	"1040":  " (too many connections: raise max_connections)",
	"1044":  " (the user may not use this database)",
	"1045":  " (wrong user or password)",
	"1049":  " (there is no such database)",
	"1142":  " (the user lacks this right: GRANT SELECT, INSERT, UPDATE, DELETE)",
	"1146":  " (there is no such table)",
	"1153":  " (larger than max_allowed_packet)",
	"1203":  " (too many connections of this user: raise max_user_connections)",
	"1205":  " (somebody holds the row)",
	"1213":  " (a deadlock)",
	"1226":  " (too many connections of this user: raise MAX_USER_CONNECTIONS)",
	"1290":  " (the server is read-only: is it a replica by now?)",
	"1364":  " (a column has no default, and is not one of those that are said)",
	"1461":  " (raise max_prepared_stmt_count)",
	"1792":  " (the server is read-only: is it a replica by now?)",
	"3105":  " (the column is a generated one)",
	"3159":  " (the server wants TLS: tls=true)",
	"1836":  " (the server is read-only: is it a replica by now?)",
	"1906":  " (the column is a generated one)",
	"1969":  " (took too long)",
	"3024":  " (took too long)",
	"25006": " (the server is read-only: is it a replica by now?)",
	"28P01": " (wrong password)",
	"3D000": " (there is no such database)",
	"40P01": " (a deadlock)",
	"428C9": " (the column is a generated one)",
	"42501": " (the user lacks this right: GRANT SELECT, INSERT, UPDATE, DELETE)",
	"42P01": " (there is no such table)",
	"53300": " (too many connections: raise max_connections)",
	"55P03": " (somebody holds the row)",
	"57014": " (took too long)",
}

// checkName refuses what cannot be the name of a table, with its schema, or of a column.
func checkName(name string) error {
	for _, part := range strings.Split(name, ".") {
		if part == "" || len(part) > 64 {
			return fmt.Errorf("%q is no name of a table or column", name)
		}
	}
	if strings.ContainsAny(name, "?\x00") {
		return fmt.Errorf("%q is no name of a table or column", name)
	}
	return nil
}
