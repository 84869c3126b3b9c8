<?php
// Applications of which there is no package: their tables as they make them, and the statements, bodies and deadlines of
// their session handlers, written down by what is known of them. See testapp.go.
require __DIR__ . '/app.php';

[, $name, $url] = $argv;

/** The statements of an application on one kind of server, and how a body is in the table and in Redis. */
class Schema
{
    public ?string $lock = null;
    public ?string $unlock = null;
    public ?Closure $column = null; // a body as it is in the column
    public ?Closure $body = null;   // and back
    public ?Closure $id = null;     // an id as it is in the column
    public bool $serialized = false; // in Redis, by phpredis
    public bool $plain = false;      // the body is none of PHP's sessions but the text itself

    public function __construct(public string $create, public string $read, public string $insert, public string $update,
        public string $delete, public string $gc, public string $key, array $more = [])
    {
        foreach ($more as $what => $how) {
            $this->$what = $how;
        }
        $this->column ??= fn ($body) => $body;
        $this->body ??= fn ($column) => $column;
        $this->id ??= fn ($id) => $id;
    }
}

function schema(string $name, bool $mysql): Schema
{
    $hex = ['column' => $mysql ? null : fn ($b) => '\x' . bin2hex($b)]; // bytea
    $base64 = ['column' => base64_encode(...), 'body' => base64_decode(...)];
    switch ($name) {
        case 'codeigniter':
            return new Schema(
                $mysql ? 'CREATE TABLE ci_sessions (id varchar(128) NOT NULL, ip_address varchar(45) NOT NULL,
                    timestamp timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL, data blob NOT NULL, KEY ci_sessions_timestamp (timestamp));
                    ALTER TABLE ci_sessions ADD PRIMARY KEY (id)'
                    : "CREATE TABLE ci_sessions (id varchar(128) NOT NULL, ip_address inet NOT NULL,
                    timestamp timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL, data bytea DEFAULT '' NOT NULL);
                    CREATE INDEX ci_sessions_timestamp ON ci_sessions (timestamp); ALTER TABLE ci_sessions ADD PRIMARY KEY (id)",
                $mysql ? 'SELECT data FROM ci_sessions WHERE id = :id' : "SELECT encode(data, 'base64') AS data FROM ci_sessions WHERE id = :id",
                "INSERT INTO ci_sessions (timestamp, id, ip_address, data) VALUES (now(), :id, '203.0.113.9', :data)",
                'UPDATE ci_sessions SET timestamp = now(), data = :data WHERE id = :id',
                'DELETE FROM ci_sessions WHERE id = :id',
                'DELETE FROM ci_sessions WHERE timestamp < now() - INTERVAL ' . ($mysql ? '{life} second' : "'{life} second'"),
                'ci_session:ci_session:',
                array_filter($hex) + ['id' => fn ($id) => "ci_session:$id", 'body' => $mysql ? null : base64_decode(...),
                    'lock' => $mysql ? "SELECT GET_LOCK('{md5}', 300)" : "SELECT pg_advisory_lock(hashtext('{id}'))",
                    'unlock' => $mysql ? "SELECT RELEASE_LOCK('{md5}')" : "SELECT pg_advisory_unlock(hashtext('{id}'))"]);
        case 'codeigniter3':
            return new Schema(
                $mysql ? 'CREATE TABLE ci_sessions (id varchar(128) NOT NULL, ip_address varchar(45) NOT NULL,
                    timestamp int(10) unsigned DEFAULT 0 NOT NULL, data blob NOT NULL, KEY ci_sessions_timestamp (timestamp));
                    ALTER TABLE ci_sessions ADD PRIMARY KEY (id)'
                    : "CREATE TABLE ci_sessions (id varchar(128) NOT NULL, ip_address varchar(45) NOT NULL,
                    timestamp bigint DEFAULT 0 NOT NULL, data text DEFAULT '' NOT NULL);
                    CREATE INDEX ci_sessions_timestamp ON ci_sessions (timestamp); ALTER TABLE ci_sessions ADD PRIMARY KEY (id)",
                'SELECT data FROM ci_sessions WHERE id = :id',
                "INSERT INTO ci_sessions (id, ip_address, timestamp, data) VALUES (:id, '203.0.113.9', {now}, :data)",
                'UPDATE ci_sessions SET timestamp = {now}, data = :data WHERE id = :id',
                'DELETE FROM ci_sessions WHERE id = :id',
                'DELETE FROM ci_sessions WHERE timestamp < {now} - {life}',
                'ci_session:',
                ($mysql ? [] : $base64) + [
                    'lock' => $mysql ? "SELECT GET_LOCK('{md5}', 300)" : "SELECT pg_advisory_lock(hashtext('{id}'))",
                    'unlock' => $mysql ? "SELECT RELEASE_LOCK('{md5}')" : "SELECT pg_advisory_unlock(hashtext('{id}'))"]);
        case 'drupal':
            return new Schema(
                $mysql ? "CREATE TABLE sessions (uid int(10) unsigned NOT NULL, sid varchar(128) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL,
                    hostname varchar(128) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT '', timestamp bigint NOT NULL DEFAULT 0,
                    session longblob, PRIMARY KEY (sid), KEY timestamp (timestamp), KEY uid (uid)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
                    : "CREATE TABLE sessions (uid bigint NOT NULL CHECK (uid >= 0), sid varchar(128) NOT NULL, hostname varchar(128) NOT NULL DEFAULT '',
                    timestamp bigint NOT NULL DEFAULT 0, session bytea, PRIMARY KEY (sid))",
                $mysql ? 'SELECT session FROM sessions WHERE sid = :id' : "SELECT encode(session, 'base64') FROM sessions WHERE sid = :id",
                "INSERT INTO sessions (sid, uid, hostname, session, timestamp) VALUES (:id, 7, '203.0.113.9', :data, {now})",
                "UPDATE sessions SET uid = 7, hostname = '203.0.113.9', session = :data, timestamp = {now} WHERE sid = :id",
                'DELETE FROM sessions WHERE sid = :id',
                'DELETE FROM sessions WHERE timestamp < {now} - {life}',
                'PHPREDIS_SESSION:',
                array_filter($hex) + ['body' => $mysql ? null : base64_decode(...),
                    'id' => fn ($id) => rtrim(strtr(base64_encode(hash('sha256', $id, true)), '+/', '-_'), '=')]);
        case 'joomla':
            return new Schema(
                $mysql ? "CREATE TABLE jos_session (session_id varbinary(192) NOT NULL, client_id tinyint unsigned DEFAULT NULL, guest tinyint unsigned DEFAULT 1,
                    time int NOT NULL DEFAULT 0, data mediumtext, userid int DEFAULT 0, username varchar(150) DEFAULT '', PRIMARY KEY (session_id),
                    KEY userid (userid), KEY time (time)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 DEFAULT COLLATE=utf8mb4_unicode_ci"
                    : "CREATE TABLE jos_session (session_id bytea NOT NULL, client_id smallint DEFAULT NULL, guest smallint DEFAULT 1,
                    time integer DEFAULT 0 NOT NULL, data text, userid bigint DEFAULT 0, username varchar(150) DEFAULT '', PRIMARY KEY (session_id))",
                'SELECT data FROM jos_session WHERE session_id = :id',
                'INSERT INTO jos_session (session_id, data, time) VALUES (:id, :data, {now})',
                'UPDATE jos_session SET data = :data, time = {now} WHERE session_id = :id',
                'DELETE FROM jos_session WHERE session_id = :id',
                'DELETE FROM jos_session WHERE time < {now} - {life}',
                'jfw');
        case 'moodle':
            return new Schema(
                $mysql ? "CREATE TABLE mdl_sessions (id bigint(10) NOT NULL AUTO_INCREMENT, state bigint(10) NOT NULL DEFAULT 0, sid varchar(128) NOT NULL DEFAULT '',
                    userid bigint(10) NOT NULL, sessdata longtext, timecreated bigint(10) NOT NULL, timemodified bigint(10) NOT NULL,
                    firstip varchar(45), lastip varchar(45), PRIMARY KEY (id), UNIQUE KEY mdl_sess_sid_uix (sid)) DEFAULT COLLATE=utf8mb4_unicode_ci"
                    : "CREATE TABLE mdl_sessions (id bigserial PRIMARY KEY, state bigint NOT NULL DEFAULT 0, sid varchar(128) NOT NULL DEFAULT '',
                    userid bigint NOT NULL, sessdata text, timecreated bigint NOT NULL, timemodified bigint NOT NULL, firstip varchar(45), lastip varchar(45));
                    CREATE UNIQUE INDEX mdl_sess_sid_uix ON mdl_sessions (sid)",
                'SELECT sessdata FROM mdl_sessions WHERE sid = :id',
                "INSERT INTO mdl_sessions (sid, state, userid, timecreated, timemodified, firstip, lastip, sessdata) VALUES (:id, 0, 2, {now}, {now}, '203.0.113.9', '203.0.113.9', :data)",
                'UPDATE mdl_sessions SET sessdata = :data, timemodified = {now} WHERE sid = :id',
                'DELETE FROM mdl_sessions WHERE sid = :id',
                'DELETE FROM mdl_sessions WHERE timemodified < {now} - {life}',
                'moodle_', $base64 + ['serialized' => true]);
        case 'magento':
            return new Schema(
                'CREATE TABLE session (session_id varchar(255) NOT NULL, session_expires int(10) unsigned NOT NULL DEFAULT 0, session_data mediumblob NOT NULL, PRIMARY KEY (session_id))',
                'SELECT session_data FROM session WHERE session_id = :id',
                'INSERT INTO session (session_expires, session_data, session_id) VALUES ({now}, :data, :id)',
                'UPDATE session SET session_expires = {now}, session_data = :data WHERE session_id = :id',
                'DELETE FROM session WHERE session_id = :id',
                'DELETE FROM session WHERE session_expires < {now} - {life}',
                'PHPREDIS_SESSION:', $base64);
        case 'yii2':
            return new Schema(
                'CREATE TABLE session (id CHAR(40) NOT NULL PRIMARY KEY, expire INTEGER, data ' . ($mysql ? 'BLOB)' : 'BYTEA)'),
                ($mysql ? 'SELECT data' : "SELECT encode(data, 'base64')") . ' FROM session WHERE expire > {now} AND id = :id',
                'INSERT INTO session (id, expire, data) VALUES (:id, {now} + {life}, :data)',
                'UPDATE session SET expire = {now} + {life}, data = :data WHERE id = :id',
                'DELETE FROM session WHERE id = :id',
                'DELETE FROM session WHERE expire < {now}',
                'PHPREDIS_SESSION:', array_filter($hex) + ['body' => $mysql ? null : base64_decode(...)]);
        case 'rails': // the text stands for what Marshal writes
            return new Schema(
                $mysql ? 'CREATE TABLE sessions (id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, session_id varchar(255) NOT NULL, data text, created_at datetime(6) NOT NULL,
                    updated_at datetime(6) NOT NULL, UNIQUE INDEX (session_id), INDEX (updated_at))'
                    : 'CREATE TABLE sessions (id bigserial PRIMARY KEY, session_id varchar NOT NULL, data text, created_at timestamp(6) without time zone NOT NULL,
                    updated_at timestamp(6) without time zone NOT NULL); CREATE UNIQUE INDEX ON sessions (session_id)',
                'SELECT data FROM sessions WHERE session_id = :id',
                "INSERT INTO sessions (session_id, data, created_at, updated_at) VALUES (:id, :data, '{utc}', '{utc}')",
                "UPDATE sessions SET data = :data, updated_at = '{utc}' WHERE session_id = :id",
                'DELETE FROM sessions WHERE session_id = :id',
                "DELETE FROM sessions WHERE updated_at < '{utc-life}'",
                'rack:session:', ['plain' => true, 'column' => fn ($b) => chunk_split(base64_encode($b), 60, "\n"), 'body' => base64_decode(...)]);
        case 'mediawiki':
            return new Schema(
                "CREATE TABLE objectcache (keyname varbinary(255) NOT NULL DEFAULT '', value mediumblob, exptime binary(14) NOT NULL,
                    modtoken varchar(17) NOT NULL DEFAULT '00000000000000000', flags int unsigned, PRIMARY KEY (keyname), KEY exptime (exptime))",
                "SELECT value FROM objectcache WHERE keyname = :id AND exptime >= '{digits}'",
                "INSERT INTO objectcache (keyname, value, exptime) VALUES (:id, :data, '{digits+life}')",
                "UPDATE objectcache SET value = :data, exptime = '{digits+life}' WHERE keyname = :id",
                'DELETE FROM objectcache WHERE keyname = :id',
                "DELETE FROM objectcache WHERE exptime < '{digits}'",
                '', ['plain' => true, 'column' => gzdeflate(...), 'body' => gzinflate(...)]);
    }
    throw new Exception("no $name");
}

/** The handler of an application whose table is as the schema says. */
class TableHandler implements SessionHandlerInterface, SessionUpdateTimestampHandlerInterface
{
    private ?string $locked = null;

    public function __construct(private PDO $db, private Schema $schema)
    {
    }

    private function fill(string $sql, string $id = '', ?int $life = null): string
    {
        $life ??= (int) ini_get('session.gc_maxlifetime');
        return strtr($sql, ['{now}' => time(), '{life}' => $life, '{md5}' => md5($id), '{id}' => $id,
            '{utc}' => gmdate('Y-m-d H:i:s'), '{utc-life}' => gmdate('Y-m-d H:i:s', time() - $life),
            '{digits}' => gmdate('YmdHis'), '{digits+life}' => gmdate('YmdHis', time() + $life)]);
    }

    private function run(string $sql, string $id, ?string $data = null): PDOStatement
    {
        $statement = $this->db->prepare($this->fill($sql, $id));
        $statement->execute([':id' => ($this->schema->id)($id)] + ($data === null ? [] : [':data' => ($this->schema->column)($data)]));
        return $statement;
    }

    /** The body of the session, or null where there is none. */
    public function find(string $id): ?string
    {
        $row = $this->run($this->schema->read, $id)->fetch(PDO::FETCH_NUM);
        return $row ? ($this->schema->body)((string) $row[0]) : null;
    }

    public function read($id): string|false
    {
        if ($this->schema->lock) {
            $this->db->query($this->fill($this->schema->lock, $id))->fetchAll();
            $this->locked = $id;
        }
        return $this->find($id) ?? '';
    }

    public function write($id, $data): bool
    {
        // Yii updates or inserts whatever there is, overdue or not.
        if ($this->run($this->schema->update, $id, $data)->rowCount() === 0 && $this->find($id) === null) {
            $this->run($this->schema->insert, $id, $data);
        }
        return true;
    }

    public function validateId($id): bool
    {
        return $this->find($id) !== null;
    }

    public function updateTimestamp($id, $data): bool
    {
        return $this->write($id, $data);
    }

    public function destroy($id): bool
    {
        $this->run($this->schema->delete, $id);
        return true;
    }

    public function gc($life): int|false
    {
        return $this->db->exec($this->fill($this->schema->gc, '', $life));
    }

    public function open($path, $name): bool
    {
        return true;
    }

    public function close(): bool
    {
        if ($this->locked !== null) {
            $this->db->query($this->fill($this->schema->unlock, $this->locked))->fetchAll();
            $this->locked = null;
        }
        return true;
    }

    public function create(): void
    {
        foreach (explode(';', $this->schema->create) as $sql) {
            $this->db->exec($sql);
        }
    }
}

/** What the same application has in Redis: the body, or what phpredis makes of it. */
class RedisHandler implements SessionHandlerInterface, SessionUpdateTimestampHandlerInterface
{
    public function __construct(private Redis $redis, private Schema $schema)
    {
        if ($schema->serialized) {
            $redis->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_PHP);
        }
    }

    public function find(string $id): ?string
    {
        $body = $this->redis->get($this->schema->key . $id);
        return $body === false ? null : $body;
    }

    public function read($id): string|false
    {
        return $this->find($id) ?? '';
    }

    public function write($id, $data): bool
    {
        return $this->redis->setex($this->schema->key . $id, (int) ini_get('session.gc_maxlifetime'), $data);
    }

    public function validateId($id): bool
    {
        return $this->find($id) !== null;
    }

    public function updateTimestamp($id, $data): bool
    {
        return $this->write($id, $data);
    }

    public function destroy($id): bool
    {
        $this->redis->del($this->schema->key . $id);
        return true;
    }

    public function gc($life): int|false
    {
        return 0;
    }

    public function open($path, $name): bool
    {
        return true;
    }

    public function close(): bool
    {
        return true;
    }
}

/** An application that keeps something else than PHP's sessions. */
class PlainSessions implements App
{
    public function __construct(private TableHandler|RedisHandler $handler)
    {
        ini_set('session.gc_maxlifetime', 3600);
    }

    public function create(): void
    {
        $this->handler->create();
    }

    public function write(string $id, int $life, string $text = ''): void
    {
        ini_set('session.gc_maxlifetime', $life);
        $this->handler->write($id, serialize(['data' => $text]));
    }

    public function read(string $id): ?string
    {
        $body = $this->handler->find($id);
        return $body === null ? null : unserialize($body)['data'];
    }

    public function destroy(string $id): void
    {
        $this->handler->destroy($id);
    }

    public function gc(): void
    {
        $this->handler->gc(3600);
    }

    public function open(string $id): void
    {
        throw new LogicException('no locks');
    }

    public function close(): void
    {
    }
}

$db = database($url);
$schema = schema($name, str_starts_with($url, 'mysql'));
$handler = $db ? new TableHandler($db, $schema) : new RedisHandler(redis($url), $schema);
serve($schema->plain ? new PlainSessions($handler) : new NativeSessions($handler, fn () => $handler->create()));
