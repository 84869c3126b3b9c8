<?php
// Laravel's sessions by its own drivers, put together as its service providers do, with the prefixes of a new project.
require __DIR__ . '/app.php';
foreach (['Cache', 'Config', 'Container', 'Database', 'Redis', 'Session', 'Support'] as $part) {
    require "Illuminate/$part/autoload.php";
}

use Illuminate\Cache\CacheManager;
use Illuminate\Config\Repository;
use Illuminate\Container\Container;
use Illuminate\Database\Capsule\Manager;
use Illuminate\Redis\RedisManager;
use Illuminate\Session\SessionManager;
use Illuminate\Support\Facades\Facade;

class Laravel implements App
{
    private Container $container;
    private string $driver;

    public function __construct(string $url)
    {
        $u = parse_url($url);
        $redis = $u['scheme'] === 'redis';
        $this->driver = $redis ? 'redis' : 'database';
        $this->container = $c = new Container();
        $c['config'] = new Repository([
            'session' => ['driver' => $this->driver, 'lifetime' => 120, 'table' => 'sessions', 'cookie' => 'laravel_session'],
            'cache' => ['prefix' => 'laravel_cache', 'stores' => ['redis' => ['driver' => 'redis', 'connection' => 'cache']]],
        ]);
        if ($redis) {
            $at = ['host' => $u['host'], 'port' => $u['port'], 'database' => 0];
            $c['redis'] = new RedisManager($c, 'phpredis',
                ['options' => ['prefix' => 'laravel_database_'], 'default' => $at, 'cache' => ['database' => 1] + $at]);
            $c['cache'] = new CacheManager($c);
        } else {
            $db = new Manager($c);
            $db->addConnection(['driver' => ['mysql' => 'mysql', 'postgres' => 'pgsql'][$u['scheme']], 'host' => $u['host'],
                'port' => $u['port'], 'database' => substr($u['path'], 1), 'username' => $u['user'], 'charset' => 'utf8', 'prefix' => '']);
            $c['db'] = $db->getDatabaseManager();
        }
    }

    /** A driver of its own for each page, as each request has one. */
    private function session(string $id)
    {
        $session = (new SessionManager($this->container))->driver();
        $session->setId($id);
        if ($session->getId() !== $id) {
            throw new Exception("Laravel does not take the id $id");
        }
        return $session;
    }

    public function create(): void
    {
        Facade::setFacadeApplication($this->container);
        require 'Illuminate/Session/Console/stubs/database.stub';
        (new CreateSessionsTable())->up();
    }

    public function write(string $id, int $life, string $text = ''): void
    {
        $session = $this->session($id);
        $session->start();
        if ($text !== '') {
            $session->put('text', $text);
        }
        $session->save();
    }

    public function read(string $id): ?string
    {
        $session = $this->session($id);
        if ($session->getHandler()->read($id) === '') {
            return null;
        }
        $session->start();
        return $session->get('text', '');
    }

    public function destroy(string $id): void
    {
        $this->session($id)->getHandler()->destroy($id);
    }

    public function gc(): void
    {
        (new SessionManager($this->container))->driver()->getHandler()->gc(120 * 60);
    }

    public function open(string $id): void
    {
        throw new LogicException('Laravel has no locks');
    }

    public function close(): void
    {
    }
}

serve(new Laravel($argv[1]));
