#!lua flags=no-writes,allow-cross-slot-keys
-- Of each: a key. Answers the value and the PTTL; of keys behind many bytes of values, nothing.
local size = 0
return each(0, 1, 0, function(n)
  if size >= 524288 then return nil end -- batchBytes
  local value = redis.call('GET', names[n])
  size = size + (value and #value or 0)
  return {value, redis.call('PTTL', names[n])}
end)
