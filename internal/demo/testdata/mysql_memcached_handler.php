<?php
// A session handler as people write it by hand: a table of MySQL, and memcached before it, so that a page seldom reads the table.
//
//   CREATE TABLE php_sessions (id VARCHAR(128) ... PRIMARY KEY, data BLOB NOT NULL, access INT UNSIGNED NOT NULL)
//
// session.save_path is the DSN, a space, and the servers: host:port,host:port.

final class MySQLMemcachedSessionHandler implements SessionHandlerInterface
{
	private ?PDO $db = null;
	private ?Memcached $cache = null;

	public function open(string $path, string $name): bool
	{
		[$dsn, $servers] = explode(' ', $path);
		$this->db = new PDO($dsn, 'root', '', [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
		$this->cache = new Memcached();
		foreach (explode(',', $servers) as $server) {
			[$host, $port] = explode(':', $server);
			$this->cache->addServer($host, (int) $port);
		}
		return true;
	}

	public function close(): bool
	{
		$this->db = null;
		$this->cache->quit();
		return true;
	}

	public function read(string $id): string|false
	{
		$data = $this->cache->get("sess_$id");
		if ($data !== false) {
			return $data;
		}
		$q = $this->db->prepare('SELECT data FROM php_sessions WHERE id = ?');
		$q->execute([$id]);
		$data = $q->fetchColumn();
		if ($data === false) {
			return '';
		}
		$this->cache->set("sess_$id", $data, (int) ini_get('session.gc_maxlifetime'));
		return $data;
	}

	public function write(string $id, string $data): bool
	{
		$done = $this->db->prepare('INSERT INTO php_sessions (id, data, access) VALUES (?, ?, ?)
			ON DUPLICATE KEY UPDATE data = VALUES(data), access = VALUES(access)')->execute([$id, $data, time()]);
		$this->cache->set("sess_$id", $data, (int) ini_get('session.gc_maxlifetime'));
		return $done;
	}

	public function destroy(string $id): bool
	{
		$done = $this->db->prepare('DELETE FROM php_sessions WHERE id = ?')->execute([$id]);
		$this->cache->delete("sess_$id");
		return $done;
	}

	public function gc(int $max): int|false
	{
		$q = $this->db->prepare('DELETE FROM php_sessions WHERE access < ?');
		$q->execute([time() - $max]);
		return $q->rowCount(); // in memcached they end by themselves
	}
}

session_set_save_handler(new MySQLMemcachedSessionHandler(), true);
