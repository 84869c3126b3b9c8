#!lua
-- KEYS: key, side key, key, side key ... ARGV: how long gone markers live in ms, then for each: what to do, the version that
-- has to be there ('': nothing), the end of a gone marker that does not count ('': none), lifetime in ms, value.
-- What to do: set; delete, which leaves a gone marker; release, which leaves none; note, which only leaves one, for the
-- version that is the value. Nothing is done where a marker of a move is.
-- Answers for each 0 where nothing was done, and else 1, or the end of the gone marker that was left.
local answer = {0}
for i = 1, #KEYS / 2 do
  local key, side, a = KEYS[2 * i - 1], KEYS[2 * i], 5 * i - 3
  local what, want, own, px, value = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local there, mark = redis.pcall('GET', key), redis.call('GET', side)
  local fits = type(there) ~= 'table' and (there and redis.sha1hex(there) or '') == want
  local done = 0
  if mark and mark:sub(1, 1) ~= 'g' then
  elseif what == 'note' then
    done = gone(side, ARGV[1], value)
  elseif not fits then
  elseif what == 'delete' then
    done = gone(side, ARGV[1], '')
    redis.call('DEL', key)
  elseif what == 'release' then
    redis.call('DEL', key)
    done = 1
  elseif there or not mark or mark == 'g ' .. own then
    redis.call('SET', key, value, 'PX', px)
    done = 1
  end
  answer[i + 1] = done
end
return answer
