#!lua flags=allow-oom
if m.kind == 1 and mine and m.took == 0 then -- one that was taken over from a dead one has to be settled
  clear()
  if m.gone > now then redis.call('SET', KEYS[3], 'g ' .. digits(m.gone), 'PX', digits(m.gone - now)) end
end
return {0}
