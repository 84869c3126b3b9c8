#!lua flags=no-writes,allow-cross-slot-keys
-- Of each: fence, steps. Before: handle. Answers the fence, or null, and how many of the handle's steps are known.
return each(1, 2, 0, function(n)
  return {redis.call('GET', names[n]), tonumber(redis.call('HGET', names[n + 1], ARGV[1]) or '0')}
end)
