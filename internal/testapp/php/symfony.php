<?php
// Symfony's sessions by its handlers, with the locks that are its default.
require __DIR__ . '/app.php';
require 'Symfony/Component/HttpFoundation/autoload.php';

use Symfony\Component\HttpFoundation\Session\Storage\Handler\PdoSessionHandler;
use Symfony\Component\HttpFoundation\Session\Storage\Handler\RedisSessionHandler;

$pdo = database($argv[1]);
$handler = $pdo ? new PdoSessionHandler($pdo) : new RedisSessionHandler(redis($argv[1]));
serve(new NativeSessions($handler, fn () => $handler->createTable()));
