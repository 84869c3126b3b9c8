-- gone leaves a marker that lives for life ms, where no other marker is, and answers its end, or 0. No two of one key end
-- at the same time: who left one knows it again. version, if not '', is that of a value that was deleted elsewhere, while
-- here there is one of which it is not known whether it is older: whoever knows that it is shall delete it.
local function gone(side, life, version)
  local raw = redis.call('GET', side)
  if raw and raw:sub(1, 1) ~= 'g' then return 0 end
  local till = now + life
  if raw then till = math.max(till, tonumber(raw:match('^g (%d+)')) + 1) end
  local text = string.format('g %.0f', till)
  if version ~= '' then text = text .. ' ' .. version end
  redis.call('SET', side, text, 'PX', string.format('%.0f', till - now))
  return till
end
