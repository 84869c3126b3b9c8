-- Nothing is done, either, where fewer steps of the sender are known than it has been answered: this memory is older.
-- step counts one.
if tonumber(redis.call('HGET', KEYS[6], ARGV[7]) or '0') < tonumber(ARGV[8]) then return {-1} end
local function step() return redis.call('HINCRBY', KEYS[6], ARGV[7], 1) end

-- What lies under a side key; times are in ms by the clock of this server:
--   i NONCE UNTIL GONE TOOK   intent; GONE: the end of the gone that it replaced, or 0; TOOK: 1 if it replaced a dead intent
--   a NONCE UNTIL VERSION     ahead
--   g UNTIL [VERSION]         gone, which goes away by itself; VERSION: see part/gone.lua
local function digits(n) return string.format('%.0f', n) end

local function read(raw)
  if not raw then return {kind = 0} end
  local nonce, till, gone, took = raw:match('^i (%S+) (%d+) (%d+) (%d)$')
  if nonce then
    return {kind = 1, nonce = nonce, till = tonumber(till), gone = tonumber(gone), took = tonumber(took)}
  end
  local version
  nonce, till, version = raw:match('^a (%S+) (%d+) (%d+)$')
  if nonce then return {kind = 2, nonce = nonce, till = tonumber(till), version = tonumber(version)} end
  till = raw:match('^g (%d+)$') or raw:match('^g (%d+) %x+$')
  if till then return {kind = 3, till = tonumber(till)} end
  error(redis.error_reply('BADMARK a marker cannot be read'))
end

local m = read(redis.call('GET', KEYS[3]))
local nonce = ARGV[3]
local mine = m.nonce == nonce

-- intent and ahead make the marker; clear removes it.
local function intent(till, gone, took)
  redis.call('ZADD', KEYS[4], digits(till), ARGV[2])
  redis.call('SET', KEYS[3], 'i ' .. nonce .. ' ' .. digits(till) .. ' ' .. digits(gone) .. ' ' .. took)
end

local function ahead(owner, till, version)
  redis.call('ZADD', KEYS[5], digits(till), ARGV[2])
  redis.call('SET', KEYS[3], 'a ' .. owner .. ' ' .. digits(till) .. ' ' .. digits(version))
end

local function clear()
  if m.kind == 1 then redis.call('ZREM', KEYS[4], ARGV[2]) end
  if m.kind == 2 then redis.call('ZREM', KEYS[5], ARGV[2]) end
  redis.call('DEL', KEYS[3])
end

-- put makes the value what it is to be.
local function put()
  if ARGV[5] == '0' then
    redis.call('DEL', KEYS[2])
  else
    redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[5])
  end
end
