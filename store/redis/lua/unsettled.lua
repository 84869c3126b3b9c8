#!lua flags=no-writes
-- KEYS: index of intents, of aheads. ARGV: how many to list of each.
-- Answers the time in ms, both counts, and both lists, oldest first: key, end of its lease in ms, key ...
local last = ARGV[1] - 1
return {
  0, now, redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2]),
  redis.call('ZRANGE', KEYS[1], 0, last, 'WITHSCORES'), redis.call('ZRANGE', KEYS[2], 0, last, 'WITHSCORES'),
}
