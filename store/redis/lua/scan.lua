#!lua flags=no-writes,allow-cross-slot-keys
-- ARGV: cursor, pattern, count. Answers cursor, size of the database, how many keys hold no string, the others.
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local keys, others = {}, 0
for _, key in ipairs(page[2]) do
  if redis.call('TYPE', key).ok == 'string' then
    keys[#keys + 1] = key
  else
    others = others + 1
  end
end
return {0, page[1], redis.call('DBSIZE'), others, keys}
