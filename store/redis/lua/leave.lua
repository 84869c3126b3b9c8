#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: steps. Before: handle.
return each(1, 1, 0, function(n) return redis.call('HDEL', names[n], ARGV[1]) end)
