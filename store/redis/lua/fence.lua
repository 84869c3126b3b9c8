#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: a fence. Before: epoch.
return each(1, 1, 0, function(n)
  if (tonumber(redis.call('GET', names[n]) or '') or 0) < tonumber(ARGV[1]) then redis.call('SET', names[n], ARGV[1]) end
  return 0
end)
