#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: what has to be as it is said, and two names; 'control' and the control record, or 'fence' and the highest epoch,
-- and '' where both names go, or the member of the index (the first name) that has that side key (the second one).
-- Before: workflow. Answers -5 where it is not as it is said.
return each(1, 3, 3, function(n, a)
  local guard, first, second, member = names[n], names[n + 1], names[n + 2], ARGV[a + 2]
  if ARGV[a] == 'control' then
    if redis.call('HGET', guard, ARGV[1]) ~= ARGV[a + 1] then return -5 end
  elseif (tonumber(redis.call('GET', guard) or '') or 0) > tonumber(ARGV[a + 1]) then
    return -5
  end
  if member == '' then
    redis.call('DEL', first)
    redis.call('DEL', second)
  else
    local raw = redis.call('GET', second)
    if raw and raw:sub(1, 1) ~= 'g' then redis.call('DEL', second) end
    redis.call('ZREM', first, member)
  end
  return 0
end)
