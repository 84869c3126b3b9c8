#!lua flags=allow-oom
-- KEYS: the mark of home. ARGV: what is there, as it is written; serial ('0': the next one), note and text of what shall be.
local raw = redis.call('GET', KEYS[1]) or ''
if raw ~= ARGV[1] then return {-5} end
local serial = tonumber(ARGV[2])
if serial == 0 then serial = math.max(tonumber(raw:match('^%d+') or '0') + 1, now) end
redis.call('SET', KEYS[1], string.format('%.0f', serial) .. ARGV[3] .. ' ' .. ARGV[4])
if ARGV[3] == '' and ARGV[4] == '' then redis.call('PEXPIRE', KEYS[1], 172800000) end
return {0}
