#!lua flags=allow-oom
-- KEYS: leases. ARGV: gateway. A lease that is not over is somebody's who goes by it.
local till = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+')
if till and tonumber(till) > now then return {-5} end
redis.call('HDEL', KEYS[1], ARGV[1])
return {0}
