#!lua
-- More: condition. Answers whether there was something.
local value = redis.call('GET', KEYS[2])
if not holds(ARGV[9], value) then return {-5} end
clear()
put()
return {step(), value and 1 or 0}
