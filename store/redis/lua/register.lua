#!lua flags=allow-oom
-- KEYS: the registry. ARGV: gateway, its record ('': it only asks), then gateway, record ... of those that are struck out
-- if that is still what they say. Answers the registry.
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
for i = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return {0, redis.call('HGETALL', KEYS[1])}
