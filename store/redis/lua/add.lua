#!lua flags=allow-cross-slot-keys
-- Of each: fence, key, side key; lifetime in ms (0: nothing), value. Before: epoch.
-- Answers 1 if the value was stored, 0 if not.
return each(1, 3, 2, function(n, a)
  if below(names[n]) then return -1 end
  local raw = redis.call('GET', names[n + 2])
  if ARGV[a] == '0' or raw and raw:sub(1, 1) ~= 'g' then return 0 end
  return redis.call('SET', names[n + 1], ARGV[a + 1], 'PX', ARGV[a], 'NX') and 1 or 0
end)
