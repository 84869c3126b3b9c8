#!lua flags=allow-oom
-- KEYS: leases, control records, steps, fence. ARGV: workflow, gateway, life in ms, info, handle, how many of its steps were
-- answered. Answers the number of this step, or 0 where some were forgotten, the control record, the time in ms, and the fence.
local control = redis.call('HGET', KEYS[2], ARGV[1])
local till = now + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', till) .. '|' .. ARGV[4])
local step = 0
if tonumber(redis.call('HGET', KEYS[3], ARGV[5]) or '0') >= tonumber(ARGV[6]) then
  step = redis.call('HINCRBY', KEYS[3], ARGV[5], 1)
end
return {step, control, now, redis.call('GET', KEYS[4])}
