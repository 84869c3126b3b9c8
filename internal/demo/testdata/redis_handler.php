<?php
// A session handler as people write it by hand: Redis, an object of id, time of access and data under the bare id, and one
// sorted set of all times of access to collect by.
//
// session.save_path is host:port.

final class RedisSessionHandler implements SessionHandlerInterface
{
	private const ALL = 'ALL_SESSIONS';

	private ?Redis $redis = null;

	public function open(string $path, string $name): bool
	{
		[$host, $port] = explode(':', $path);
		$this->redis = new Redis();
		return $this->redis->connect($host, (int) $port);
	}

	public function close(): bool
	{
		$this->redis->close();
		return true;
	}

	public function read(string $id): string|false
	{
		$value = $this->redis->get($id);
		if ($value === false) {
			if ($this->redis->getLastError() !== null) {
				return false; // it is not known: PHP starts no session
			}
			return '';
		}
		return unserialize($value)->data;
	}

	public function write(string $id, string $data): bool
	{
		$session = new stdClass();
		$session->id = $id;
		$session->access = time();
		$session->data = $data;
		[$written] = $this->redis->pipeline()
			->set($id, serialize($session))
			->zAdd(self::ALL, $session->access, $id)
			->exec();
		return $written === true;
	}

	public function destroy(string $id): bool
	{
		$this->redis->del($id);
		$this->redis->zRem(self::ALL, $id);
		return true;
	}

	public function gc(int $max): int|false
	{
		$old = $this->redis->zRangeByScore(self::ALL, '0', '(' . (time() - $max));
		foreach ($old as $id) {
			$this->redis->del($id);
			$this->redis->zRem(self::ALL, $id);
		}
		return count($old);
	}
}

session_set_save_handler(new RedisSessionHandler(), true);
