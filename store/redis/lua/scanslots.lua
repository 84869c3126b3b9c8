#!lua flags=no-writes,allow-cross-slot-keys
-- Of each: two names in a slot that nothing has; the slot. Before: what the keys begin with.
-- Answers 0 where there are none, 1 where there are very many and little else on this server, so that they are better
-- looked for by SCAN; otherwise how many of them hold no string, and the others. Of slots behind many keys, nothing.
local prefix, size = ARGV[1], 0
return each(1, 2, 1, function(n, a)
  if size >= 1000 then return nil end
  redis.call('EXISTS', names[n]) -- an error where the slot is being moved: then not all of it is here
  local slot = ARGV[a]
  local count = redis.call('CLUSTER', 'COUNTKEYSINSLOT', slot)
  if count == 0 then return 0 end
  if count > 10000 and count * 16 > redis.call('DBSIZE') then return 1 end
  local found = {0}
  for _, key in ipairs(redis.call('CLUSTER', 'GETKEYSINSLOT', slot, count)) do
    if key:sub(1, #prefix) == prefix then
      local kind = redis.call('TYPE', key).ok
      if kind == 'string' then
        found[#found + 1] = key
      elseif kind ~= 'none' then -- overdue
        found[1] = found[1] + 1
      end
    end
  end
  size = size + count
  return found
end)
