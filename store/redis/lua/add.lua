#!lua
-- KEYS: fence, key, side key, key, side key ... ARGV: epoch, lifetime in ms (0: nothing), value, lifetime in ms, value ...
-- Answers for each key 1 if its value was stored, 0 if not.
local n, sides, stored = (#KEYS - 1) / 2, {}, {}
for i = 1, n do sides[i] = KEYS[2 * i + 1] end
local marked = redis.call('EXISTS', unpack(sides)) > 0 -- hardly ever
for i = 1, n do
  local px, value = ARGV[2 * i], ARGV[2 * i + 1]
  local raw = marked and redis.call('GET', sides[i])
  local free = px ~= '0' and (not raw or raw:sub(1, 1) == 'g')
  stored[i] = free and redis.call('SET', KEYS[2 * i], value, 'PX', px, 'NX') and '1' or '0'
end
return {0, table.concat(stored)}
