#!lua flags=allow-oom
-- KEYS: fence, index of intents, of aheads, key, side key, key, side key ... ARGV: epoch, member, member ...
-- Answers how many values there were.
local removed = 0
for i = 2, #ARGV do
  redis.call('ZREM', KEYS[2], ARGV[i])
  redis.call('ZREM', KEYS[3], ARGV[i])
  removed = removed + redis.call('DEL', KEYS[2 * i])
  redis.call('DEL', KEYS[2 * i + 1])
end
return {0, removed}
