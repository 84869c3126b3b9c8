#!lua flags=allow-oom
-- ARGV: the mark that is to be; '': none. The one that was is compared by part/timely.lua.
if ARGV[1] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
return {0}
