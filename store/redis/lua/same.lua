#!lua flags=allow-oom
-- KEYS: fence, key, side key, key, side key ... ARGV: epoch, lifetime in ms, version, lifetime in ms, version ...
-- Answers for each key 1 if it is the same, 0 if not. The version of absence is ''.
local slack = 5000 -- store.DeadlineSlack
local n, sides, same = (#KEYS - 1) / 2, {}, {}
for i = 1, n do sides[i] = KEYS[2 * i + 1] end
local marked = redis.call('EXISTS', unpack(sides)) > 0
for i = 1, n do
  local key, px, version = KEYS[2 * i], ARGV[2 * i], ARGV[2 * i + 1]
  local raw = marked and redis.call('GET', sides[i])
  same[i] = '0'
  if not raw or raw:sub(1, 1) == 'g' then
    local value = redis.pcall('GET', key) -- a table where it is no string: nothing of ours
    if not value then
      if version == '' then same[i] = '1' end
    elseif type(value) == 'string' and version ~= '' and redis.sha1hex(value) == version then
      local left = redis.call('PTTL', key) -- -1 where there is no deadline
      if left <= px + slack then
        if left < px + 0 then redis.call('PEXPIRE', key, px) end
        same[i] = '1'
      end
    end
  end
end
return {0, table.concat(same)}
