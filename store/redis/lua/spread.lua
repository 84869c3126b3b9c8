#!lua flags=allow-oom,allow-cross-slot-keys
-- Of each: the mark of a slot. Before: serial and text of that of home, and its note: '!' where a slot that has none gets it, too.
-- Answers 1 where there is none, what is there where that is a later one or another one, and 0 where all is well.
local serial, text = tonumber(ARGV[1]), ARGV[2]
return each(3, 1, 0, function(n)
  local raw = redis.call('GET', names[n])
  local there, said = 0, ''
  if raw then
    there, said = raw:match('^(%d+) (.*)$')
    if not there then error(redis.error_reply('BADMARK a mark cannot be read')) end
    there = tonumber(there)
  end
  if there > serial and (text ~= '' or said ~= '') or there == serial and said ~= text then return raw end
  if said == '' and text ~= '' and ARGV[3] ~= '!' and there < serial then return 1 end
  if there < serial and (raw or ARGV[3] == '!') then
    local value = string.format('%.0f ', serial) .. text
    if text == '' then redis.call('SET', names[n], value, 'PX', 86400000) else redis.call('SET', names[n], value) end
  end
  return 0
end)
