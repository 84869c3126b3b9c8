#!lua
-- More: 'read' where the value was read in the origin (an overdue one, too), or ''. Then the same data that is held for
-- longer stays.
if m.kind ~= 1 or not mine then return {-3} end
local stays = ARGV[9] == 'read' and redis.call('GET', KEYS[2]) == ARGV[6] and redis.call('PTTL', KEYS[2]) > tonumber(ARGV[5])
clear()
if not stays then put() end
return {step()}
