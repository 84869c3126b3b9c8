#!lua flags=allow-oom
-- KEYS: leases, control records, steps. ARGV: workflow, gateway, life in ms, info, handle, how many of its steps were
-- answered. Answers the number of this step, or 0 where some were forgotten, the control record, and the time in ms.
local control = redis.call('HGET', KEYS[2], ARGV[1])
local till = now + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', till) .. '|' .. ARGV[4])
if tonumber(redis.call('HGET', KEYS[3], ARGV[5]) or '0') < tonumber(ARGV[6]) then return {0, control, now} end
return {redis.call('HINCRBY', KEYS[3], ARGV[5], 1), control, now}
