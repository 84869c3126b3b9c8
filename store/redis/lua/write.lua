#!lua
-- KEYS: the key. ARGV: condition, lifetime in ms (0: delete), value. Answers whether there was something.
local old = redis.call('GET', KEYS[1])
if not holds(ARGV[1], old) then return {-5} end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
end
return {0, old and 1 or 0}
