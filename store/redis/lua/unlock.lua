#!lua flags=allow-oom
-- KEYS: the lock. ARGV: the token that shall hold it.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return {0, redis.call('DEL', KEYS[1])}
end
return {0, 0}
