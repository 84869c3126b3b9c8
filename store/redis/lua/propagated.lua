#!lua flags=allow-oom
-- More: version. Answers whether that is all, the version, and where it is not: value, PTTL.
if m.kind ~= 2 or not mine then return {-3} end
if m.version == tonumber(ARGV[9]) then
  clear()
  return {0, 1, m.version}
end
local value = redis.call('GET', KEYS[2])
ahead(nonce, now + ARGV[4], m.version)
return {0, 0, m.version, value, redis.call('PTTL', KEYS[2])}
