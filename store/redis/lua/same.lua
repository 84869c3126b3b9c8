#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: fence, key, side key; lifetime in ms, version ('': absence). Before: epoch.
-- Answers 1 if it is the same, 0 if not.
local slack = 5000 -- store.DeadlineSlack
return each(1, 3, 2, function(n, a)
  if below(names[n]) then return -1 end
  local key, px, version = names[n + 1], ARGV[a], ARGV[a + 1]
  local raw = redis.call('GET', names[n + 2])
  if raw and raw:sub(1, 1) ~= 'g' then return 0 end
  local value = redis.pcall('GET', key)
  if not value then return version == '' and 1 or 0 end
  if type(value) == 'table' then
    if value.err:sub(1, 9) ~= 'WRONGTYPE' then error(value) end
    return 0 -- nothing of ours
  end
  if version == '' or redis.sha1hex(value) ~= version then return 0 end
  local left = redis.call('PTTL', key) -- -1 where there is no deadline
  if left > px + slack then return 0 end
  if left < px + 0 then redis.call('PEXPIRE', key, px) end
  return 1
end)
