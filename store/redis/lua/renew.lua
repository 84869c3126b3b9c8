#!lua flags=allow-oom
-- KEYS: leases, control records, steps. ARGV: workflow, gateway, life in ms, info, handle. Answers how many steps of
-- the handle this is, and the control record.
local control = redis.call('HGET', KEYS[2], ARGV[1])
local till = now + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', till) .. '|' .. ARGV[4])
return {redis.call('HINCRBY', KEYS[3], ARGV[5], 1), control}
