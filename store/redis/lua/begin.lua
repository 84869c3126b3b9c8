#!lua flags=allow-oom
-- More: 'settle' or ''. Answers the kind of the dead marker that was taken over, the version that is held, and of an
-- ahead: version, value, PTTL.
local value = redis.call('GET', KEYS[2])
if ARGV[9] == 'settle' and (m.kind == 0 or m.kind == 3) then return {-4} end
if (m.kind == 1 or m.kind == 2) and m.till > now and not mine then return {-2, m.till - now} end

local till, holds = now + ARGV[4], value and redis.sha1hex(value) or ''
if m.kind == 2 then
  ahead(nonce, till, m.version)
  return {step(), 2, holds, m.version, value, redis.call('PTTL', KEYS[2])}
end

local took, gone = 0, 0
if m.kind == 1 then
  gone = m.gone
  took = mine and m.took or 1 -- repeated: answer as the first time
elseif m.kind == 3 then
  gone = m.till
end
intent(till, gone, took)
return {step(), took, holds}
