#!lua flags=no-writes,allow-cross-slot-keys
-- ARGV: cursor, pattern, count, a name in a slot that is to be here as a whole, or ''. Answers cursor, size of the database, how
-- many keys hold no string, the others; -8 where the slot is not here.
if ARGV[4] ~= '' and type(redis.pcall('EXISTS', ARGV[4])) == 'table' then return {0, '', 0, -8, {}} end
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
