<?php
// PHP's sessions by a handler of a library, used as by pages: see stores.go.
[, $library, $url, $kept] = $argv;
error_reporting(E_ALL & ~E_DEPRECATED);
ini_set('display_errors', 'stderr');
ini_set('session.use_cookies', '0');
ini_set('session.cache_limiter', '');
ini_set('session.gc_maxlifetime', '3600');
require 'Predis/autoload.php';
require 'Symfony/Component/HttpFoundation/autoload.php';

use Symfony\Component\HttpFoundation\Session\Storage\Handler\RedisSessionHandler;

function phpredis(string $url): Redis
{
    $at = parse_url($url);
    $redis = new Redis();
    $redis->connect($at['host'], $at['port']);
    $redis->select((int) substr($at['path'], 1));
    return $redis;
}

$handlers = [
    'predis' => fn ($url) => new Predis\Session\Handler(new Predis\Client($url, ['prefix' => 'sess:']), ['gc_maxlifetime' => 3600]),
    'Symfony on phpredis' => fn ($url) => new RedisSessionHandler(phpredis($url)),
    'Symfony on predis' => fn ($url) => new RedisSessionHandler(new Predis\Client($url)),
];
$handler = $handlers[$library]($url);
session_set_save_handler($handler, true);
ob_start(null, 0);

/** A page, which says what its session held before and whether it has another id. */
function page(string $id, ?callable $do = null): array
{
    session_id($id);
    $started = session_start(['use_strict_mode' => $GLOBALS['library'] === 'predis' ? '0' : '1']);
    $before = $_SESSION;
    $same = session_id() === $id;
    if ($do) {
        $do();
    }
    if (session_status() === PHP_SESSION_ACTIVE) {
        session_write_close();
    }
    return [$started, $before, $same];
}

function set(string $name, mixed $value): callable
{
    return function () use ($name, $value) { $_SESSION[$name] = $value; };
}

$said = '';
function say(string $step, mixed $value): void
{
    $GLOBALS['said'] .= $step . ': ' . json_encode($value, JSON_INVALID_UTF8_SUBSTITUTE) . "\n";
}

$id = '';
say('unknown id', page('nobody0nobody0nobody0nobody0', function () use (&$id) { $_SESSION['user'] = 'alice'; $id = session_id(); }));
say('read', page($id));
say('change', page($id, set('user', "Gr\u{fc}\u{df}e\r\n\0\xff")));
say('read', page($id));
say('large', page($id, set('b', str_repeat('x', 300000)))[0]);
say('read', strlen(page($id)[1]['b']));
say('empty', page($id, function () { $_SESSION = []; }));
say('read', page($id, function () use (&$id) { $_SESSION['user'] = 'carol'; $id = session_id(); }));
$old = $id;
say('regenerate', page($id, function () use (&$id) { session_regenerate_id(true); $id = session_id(); }));
say('read', page($id));
say('the old one', array_slice(page($old), 0, 2));
say('regenerate, and keep', page($id, function () use (&$id) { session_regenerate_id(false); $id = session_id(); $_SESSION['n'] = 1; }));
say('read', page($id));
say('destroy', page($id, 'session_destroy'));
say('read', array_slice(page($id), 0, 2));
say('aborted', page($old, function () { $_SESSION['user'] = 'nobody'; session_abort(); })[0]);
for ($n = 0; $n < 20; $n++) {
    page($old, function () use (&$old) { $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; $old = session_id(); });
}
say('count', page($old)[1]);
$there = $handlers[$library]($kept);
$there->open('', 'PHPSESSID');
say('kept', $there->read($old));
while (ob_get_level()) {
    ob_end_clean();
}
echo $said;
