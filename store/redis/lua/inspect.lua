#!lua flags=no-writes
-- KEYS: keys. Answers the value and the PTTL of each; of keys behind many bytes of values, nothing.
local answer, size = {0}, 0
for _, key in ipairs(KEYS) do
  if size >= 524288 then break end -- batchBytes
  local value = redis.call('GET', key)
  answer[#answer + 1] = value
  answer[#answer + 1] = redis.call('PTTL', key)
  size = size + (value and #value or 0)
end
return answer
