#!lua
-- KEYS. ARGV: for each a condition, lifetime in ms, value. All is read before anything is written.
for i, key in ipairs(KEYS) do
  local cond = ARGV[3 * i - 2]
  if cond ~= '*' and not holds(cond, redis.call('GET', key)) then return {-5} end
end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[3 * i], 'PX', ARGV[3 * i - 1])
end
return {0}
