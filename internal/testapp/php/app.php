<?php
// What the PHP applications have in common: steps are read from stdin, and each is a page of $app. See testapp.go.

interface App
{
    public function create(): void;
    public function write(string $id, int $life, string $text = ''): void;
    /** The text of the session, or null where there is none. */
    public function read(string $id): ?string;
    public function destroy(string $id): void;
    public function gc(): void;
    /** A page that has read its session, and has not ended. */
    public function open(string $id): void;
    public function close(): void;
}

/** What PHP's own session functions do, over a handler. */
class NativeSessions implements App
{
    public function __construct(private SessionHandlerInterface $handler, private ?Closure $make = null, private int $life = 3600)
    {
        session_set_save_handler($handler, false);
        ini_set('session.use_cookies', '0');
    }

    public function create(): void
    {
        ($this->make)();
    }

    public function write(string $id, int $life, string $text = ''): void
    {
        $this->open($id, $life);
        $_SESSION = $text === '' ? [] : ['text' => $text];
        session_write_close();
    }

    public function read(string $id): ?string
    {
        // A strict page begins another session where there is none of this id, and one that only reads touches nothing.
        $this->start($id, '1', $this->life, ['read_and_close' => true]);
        return session_id() === $id ? $_SESSION['text'] ?? '' : null;
    }

    public function destroy(string $id): void
    {
        $this->open($id);
        session_destroy();
    }

    public function gc(): void
    {
        ini_set('session.gc_maxlifetime', $this->life);
        $this->handler->open('', 'PHPSESSID');
        $this->handler->gc($this->life);
        $this->handler->close();
    }

    public function open(string $id, ?int $life = null): void
    {
        $this->start($id, '0', $life ?? $this->life, []);
    }

    public function close(): void
    {
        session_abort();
    }

    private function start(string $id, string $strict, int $life, array $options): void
    {
        session_id($id);
        ini_set('session.gc_maxlifetime', $life);
        session_start(['use_strict_mode' => $strict, 'gc_probability' => '0'] + $options);
    }
}

/** A connection to MySQL or PostgreSQL, or null for Redis. */
function database(string $url): ?PDO
{
    ['scheme' => $scheme, 'host' => $host, 'port' => $port, 'user' => $user] = $u = parse_url($url) + ['user' => null];
    if ($scheme === 'redis') {
        return null;
    }
    $dsn = ['mysql' => 'mysql', 'postgres' => 'pgsql'][$scheme] . ":host=$host;port=$port;dbname=" . substr($u['path'], 1)
        . ($scheme === 'mysql' ? ';charset=utf8mb4' : '');
    return new PDO($dsn, $user, null, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function redis(string $url): Redis
{
    $u = parse_url($url);
    $redis = new Redis();
    $redis->connect($u['host'], $u['port'], 10);
    return $redis;
}

set_error_handler(function ($level, $message, $file, $line) {
    if (!(error_reporting() & $level)) {
        return false;
    }
    throw new ErrorException($message, 0, $level, $file, $line);
}, E_ALL & ~E_DEPRECATED & ~E_USER_DEPRECATED);

function serve(App $app): void
{
    while (($line = fgets(STDIN)) !== false) {
        $step = json_decode($line, true);
        $do = $step['do'];
        unset($step['do']);
        try {
            $answer = $app->$do(...$step);
            $answer = $do === 'read' ? ['found' => $answer !== null, 'text' => (string) $answer] : new stdClass();
        } catch (Throwable $e) {
            $answer = ['error' => (string) $e];
        }
        // Not through echo: a page that has begun its output begins no session.
        fwrite(STDOUT, json_encode($answer, JSON_THROW_ON_ERROR) . "\n");
    }
}
