#!lua
-- KEYS: the key. ARGV: lifetime in ms, how many bytes there may be in all, what is put behind those that there are.
-- Answers the value, its PTTL, and whether there was something.
local old = redis.call('GET', KEYS[1])
local value, px = (old or '') .. ARGV[3], tonumber(ARGV[1])
if #value > tonumber(ARGV[2]) then return {-9} end
-- What begins like flags and are none would become some, or needs a header that says so (store.Flagged).
local head = '\0sessile:flags='
if value:sub(1, #head) == head and not (old and old:match('^%zsessile:flags=[1-9]%d*\n')) then return {-9} end

if not old then
  redis.call('SET', KEYS[1], value, 'PX', ARGV[1])
  return {0, value, px, 0}
end
local left = redis.call('PTTL', KEYS[1]) -- -1 where there is no deadline
if left < 0 then
  redis.call('SET', KEYS[1], value, 'KEEPTTL')
else
  left = math.max(left, px)
  redis.call('SET', KEYS[1], value, 'PX', left)
end
return {0, value, left, 1}
