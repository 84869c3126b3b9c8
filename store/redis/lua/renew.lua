#!lua flags=allow-oom
-- KEYS: leases, control records. ARGV: workflow, gateway, life in ms, info. Answers the control record.
local control = redis.call('HGET', KEYS[2], ARGV[1])
local till = now + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', till) .. '|' .. ARGV[4])
return {0, control}
