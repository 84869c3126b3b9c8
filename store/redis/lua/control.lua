#!lua flags=allow-oom
-- KEYS: the control records, a fence. ARGV: workflow, old, next; '-' is none, anything else begins with '+'.
-- Answers the fence.
local have = redis.call('HGET', KEYS[1], ARGV[1])
if (have and '+' .. have or '-') ~= ARGV[2] then return {-5} end
if ARGV[3] == '-' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]:sub(2))
end
return {0, redis.call('GET', KEYS[2])}
