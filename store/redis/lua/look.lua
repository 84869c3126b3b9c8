#!lua flags=allow-oom
-- KEYS: key, side key, key, side key ... ARGV: for each the version that is looked for ('': any), and a lifetime in ms,
-- which that value gets where it has a shorter one ('0': it does not).
-- Answers for each what is there (nothing, 1: what was looked for, 2: no string, or the value) and the marker or ''; of
-- keys behind many bytes of values, nothing.
local answer, size = {0}, 0
for i = 1, #KEYS / 2 do
  if size >= 524288 then break end -- batchBytes
  local key, version, px = KEYS[2 * i - 1], ARGV[2 * i - 1], ARGV[2 * i]
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    value = 2
  elseif value and (version == '' or redis.sha1hex(value) == version) then
    if px ~= '0' then redis.call('PEXPIRE', key, px, 'GT') end
    value = 1
  end
  answer[2 * i] = value
  answer[2 * i + 1] = redis.call('GET', KEYS[2 * i]) or ''
  if type(value) == 'string' then size = size + #value end
end
return answer
