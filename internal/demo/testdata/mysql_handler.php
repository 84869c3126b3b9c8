<?php
// A session handler as people write it by hand: a table of MySQL.
//
//   CREATE TABLE php_sessions (id VARCHAR(128) ... PRIMARY KEY, data BLOB NOT NULL, access INT UNSIGNED NOT NULL)
//
// session.save_path is the DSN.

final class MySQLSessionHandler implements SessionHandlerInterface
{
	private ?PDO $db = null;

	public function open(string $path, string $name): bool
	{
		$this->db = new PDO($path, 'root', '', [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
		return true;
	}

	public function close(): bool
	{
		$this->db = null;
		return true;
	}

	public function read(string $id): string|false
	{
		$q = $this->db->prepare('SELECT data FROM php_sessions WHERE id = ?');
		$q->execute([$id]);
		$data = $q->fetchColumn();
		return $data === false ? '' : $data;
	}

	public function write(string $id, string $data): bool
	{
		return $this->db->prepare('INSERT INTO php_sessions (id, data, access) VALUES (?, ?, ?)
			ON DUPLICATE KEY UPDATE data = VALUES(data), access = VALUES(access)')->execute([$id, $data, time()]);
	}

	public function destroy(string $id): bool
	{
		return $this->db->prepare('DELETE FROM php_sessions WHERE id = ?')->execute([$id]);
	}

	public function gc(int $max): int|false
	{
		$q = $this->db->prepare('DELETE FROM php_sessions WHERE access < ?');
		$q->execute([time() - $max]);
		return $q->rowCount();
	}
}

session_set_save_handler(new MySQLSessionHandler(), true);
