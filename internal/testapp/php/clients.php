<?php
// phpredis or predis, told to find the server through Sentinels or as a Cluster, does what a session handler does: see
// clients.go.
[, $library, $kind, $addresses, $service] = $argv;
$nodes = explode(',', $addresses);
const RELEASE = 'if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end';

set_error_handler(function ($no, $text) { if (error_reporting() & $no) throw new Exception($text); });

function say($step, $value) {
    echo $step, ': ', json_encode($value, JSON_UNESCAPED_SLASHES), "\n";
}

function where($info) {
    preg_match('/laddr=(\S+)/', $info, $found);
    say('where', $found[1]);
}

if ($library === 'predis') {
    require 'Predis/autoload.php';
    Predis\Autoloader::register();
    $r = $kind === 'cluster'
        ? new Predis\Client($nodes, ['cluster' => 'redis'])
        : new Predis\Client($nodes, ['replication' => 'sentinel', 'service' => $service]);
    $r->get('k'); // so that a node is known
    $one = $kind === 'cluster' ? $r->getConnection()->getConnectionBySlot(0) : $r->getConnection();
    where($one->executeCommand(new Predis\Command\RawCommand(['CLIENT', 'INFO'])));
    $null = null;
    $lock = fn($token, $ms) => (string) $r->set('k_LOCK', $token, 'PX', $ms, 'NX') === 'OK';
    $release = fn($token) => $r->eval(RELEASE, 1, 'k_LOCK', $token);
    $many = $kind !== 'cluster'; // else it refuses them by itself
    $unlink = fn($keys) => $r->del($keys); // it knows no other
    $pipeline = fn($keys) => $r->pipeline(function ($p) use ($keys) { foreach ($keys as $key) $p->setex($key, 100, $key . '1'); });
} elseif ($kind === 'cluster') {
    $r = new RedisCluster(null, $nodes, 2, 2, false);
    where($r->rawCommand('k', 'CLIENT', 'INFO'));
    $null = false;
    $lock = fn($token, $ms) => $r->set('k_LOCK', $token, ['NX', 'PX' => $ms]);
    $release = fn($token) => $r->eval(RELEASE, ['k_LOCK', $token], 1);
    $many = true;
    $unlink = [$r, 'unlink'];
    $pipeline = fn($keys) => array_map(fn($key) => $r->setex($key, 100, $key . '1'), $keys);
} else {
    foreach ($nodes as $node) {
        [$host, $port] = explode(':', $node);
        $s = new RedisSentinel($host, (int) $port, 2);
        try {
            if ($address = $s->getMasterAddrByName($service)) break;
        } catch (Exception $e) { // the next, then
        }
    }
    if (!$s->ping() || !$s->ckquorum($service) || $s->slaves($service) !== [] || count($s->sentinels($service)) !== 1
        || $s->masters()[0]['ip'] !== $address[0] || $s->master($service)['port'] !== $address[1]) {
        throw new Exception('the Sentinel disagrees with itself');
    }
    $r = new Redis;
    $r->connect($address[0], (int) $address[1], 2);
    where($r->rawCommand('CLIENT', 'INFO'));
    $null = false;
    $lock = fn($token, $ms) => $r->set('k_LOCK', $token, ['NX', 'PX' => $ms]);
    $release = fn($token) => $r->eval(RELEASE, ['k_LOCK', $token], 1);
    $many = true;
    $unlink = [$r, 'unlink'];
    $pipeline = function ($keys) use ($r) {
        $p = $r->pipeline();
        foreach ($keys as $key) $p->setex($key, 100, $key . '1');
        return $p->exec();
    };
}

$ok = fn($reply) => $reply === true || (string) $reply === 'OK';
say('get', $r->get('k') === $null ? null : 'something');
say('setex', $ok($r->setex('k', 100, 'v')));
say('get', $r->get('k'));
say('expire', (int) $r->expire('k', 200));
say('ttl', $r->ttl('k') > 100);
say('lock', $lock('me', 30000));
say('lock', $lock('you', 100));
say('release', $release('me'));
say('exists', (int) $r->exists('k'));
say('del', $r->del('k'));
say('pipeline', array_map($ok, $pipeline(['a', 'b', 'c'])));
$keys = ['a', 'b', 'nokey', 'c'];
say('mget', array_map(fn($v) => $v === $null ? null : $v, $many ? $r->mget($keys) : array_map([$r, 'get'], $keys)));
say('del', $many ? $r->del(['a', 'b']) : $r->del('a') + $r->del('b'));
say('unlink', $many ? $unlink(['b', 'c']) : $r->del('b') + $r->del('c'));
