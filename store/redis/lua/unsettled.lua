#!lua flags=no-writes,allow-cross-slot-keys
-- Of each: index of intents, of aheads. Before: how many to list of each.
-- Answers 0 where there is nothing, or both counts, and both lists, oldest first: key, ms until its lease ends, key ...
local function list(index)
  local got = redis.call('ZRANGE', index, 0, ARGV[1] - 1, 'WITHSCORES')
  for i = 2, #got, 2 do got[i] = string.format('%.0f', got[i] - now) end
  return got
end
return each(1, 2, 0, function(n)
  if redis.call('EXISTS', names[n], names[n + 1]) == 0 then return 0 end -- of most slots there is no more to say
  return {redis.call('ZCARD', names[n]), redis.call('ZCARD', names[n + 1]), list(names[n]), list(names[n + 1])}
end)
