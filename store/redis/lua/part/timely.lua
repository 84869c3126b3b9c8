-- For a write of an origin; behind the other KEYS: its mark. Behind the other ARGV: until when, in ms by this clock, the write
-- may happen, and the mark that has to be there: '' is none, '*' any. In a Cluster
-- marks have a serial before them.
if now >= tonumber(ARGV[#ARGV - 1]) then return {-7, now} end
if ARGV[#ARGV] ~= '*' then
  local mark = redis.call('GET', KEYS[#KEYS]) or ''
  if (mark:match('^%d+[~!]? (.*)$') or mark) ~= ARGV[#ARGV] then return {-6} end
end
