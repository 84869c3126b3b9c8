#!lua flags=allow-oom
-- KEYS: an index, side keys. ARGV: the members of the index that have these side keys.
for i = 1, #ARGV do
  local raw = redis.call('GET', KEYS[i + 1])
  if raw and raw:sub(1, 1) ~= 'g' then redis.call('DEL', KEYS[i + 1]) end
  redis.call('ZREM', KEYS[1], ARGV[i])
end
return {0}
