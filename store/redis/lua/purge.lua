#!lua flags=allow-oom
-- KEYS: control records, what goes: an index of markers and side keys, or whole keys. ARGV: workflow, control record,
-- the members of the index that have these side keys; without any, the keys go as a whole.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {-5} end
if #ARGV == 2 then
  for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
end
for i = 3, #ARGV do
  local raw = redis.call('GET', KEYS[i])
  if raw and raw:sub(1, 1) ~= 'g' then redis.call('DEL', KEYS[i]) end
  redis.call('ZREM', KEYS[2], ARGV[i])
end
return {0}
