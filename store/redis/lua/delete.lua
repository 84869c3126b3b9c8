#!lua flags=allow-oom
-- KEYS: the key, its side key. ARGV: condition, how long the gone marker lives in ms. A marker of a move stays.
-- Answers whether there was something, its version, and the end of the gone marker.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then value = '' end -- no string, and none of ours: it goes as with DEL
if not holds(ARGV[1], value) then return {-5} end
local till = gone(KEYS[2], ARGV[2], '')
redis.call('DEL', KEYS[1])
return {0, value and 1 or 0, value and redis.sha1hex(value) or '', till}
