#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: fence, key, side key, index of intents, of aheads; the key as the indices know it. Before: epoch.
-- Answers whether there was a value.
return each(1, 5, 1, function(n, a)
  if below(names[n]) then return -1 end
  local side, intents, aheads, member = names[n + 2], names[n + 3], names[n + 4], ARGV[a]
  redis.call('ZREM', intents, member)
  redis.call('ZREM', aheads, member)
  redis.call('DEL', side)
  return redis.call('DEL', names[n + 1])
end)
