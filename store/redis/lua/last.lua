#!lua
-- More: condition. Answers whether there was something.
local value = redis.call('GET', KEYS[2])
if not holds(ARGV[7], value) then return {-5} end
clear()
put()
return {0, value and 1 or 0}
