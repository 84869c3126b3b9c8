#!lua
-- More: condition. Answers version, whether the marker is ours, whether there was a value, and of one that stays as it
-- is: value, PTTL.
local value, stays = redis.call('GET', KEYS[2]), ARGV[5] == '='
local lives = m.till and m.till > now
if m.kind == 1 and (lives or stays or ARGV[9] ~= '*') then
  return {-2, m.till - now} -- under a dead one, too, the origin decides what there is
end
if stays and not value then return {-4} end
if not holds(ARGV[9], value) then return {-5} end

local owner, till, version = nonce, now + ARGV[4], 1
if m.kind == 2 then
  version = m.version + 1
  if lives and not mine then owner, till = m.nonce, m.till end -- who has it propagates
end
if m.kind == 1 then clear() end
ahead(owner, till, version)
local ours, existed = owner == nonce and 1 or 0, value and 1 or 0
if stays then return {step(), version, ours, existed, value, redis.call('PTTL', KEYS[2])} end
put()
return {step(), version, ours, existed}
