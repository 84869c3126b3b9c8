#!lua flags=allow-oom
-- KEYS: the fence. ARGV: epoch.
if (tonumber(redis.call('GET', KEYS[1]) or '') or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
return {0}
