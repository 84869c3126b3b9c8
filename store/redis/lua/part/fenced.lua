-- KEYS[1] is the fence and ARGV[1] the sender's epoch: nothing is done below the fence, nor where there is none.
-- A script that deals with one key gets
--   KEYS: fence, key, side key, index of intents, index of aheads, steps
--   ARGV: epoch, the key as the indices know it, nonce, lease in ms,
--         lifetime in ms (of the value that is to be; 0: none, '=': as it is), value,
--         handle, how many of its steps were answered, and more where it says so
local fence = tonumber(redis.call('GET', KEYS[1]) or '')
if not fence or tonumber(ARGV[1]) < fence then return {-1} end
