#!lua flags=no-writes
-- ARGV: a session, its lock, the mark, and '1' in a Cluster, as no KEYS because the user may have no right to them. Answers what of all that an
-- origin needs this user may not do: command, and the number of its key ('0': none), command ...
local session, lock, mark = unpack(ARGV)
local need = {
  {'0', 'SCAN', '0'}, {'0', 'DBSIZE'}, {'0', 'TIME'}, {'0', 'MGET', session, mark},
  {'1', 'GET', session}, {'1', 'SET', session, 'x'}, {'1', 'PEXPIRE', session, '1'}, {'1', 'PTTL', session}, {'1', 'DEL', session}, {'1', 'TYPE', session},
  {'2', 'GET', lock}, {'2', 'SET', lock, 'x'}, {'2', 'PTTL', lock}, {'2', 'DEL', lock},
  {'3', 'GET', mark}, {'3', 'SET', mark, 'x'}, {'3', 'PTTL', mark}, {'3', 'DEL', mark},
}
if ARGV[4] == '1' then
  for _, command in ipairs({{'EXISTS', session}, {'ASKING'}, {'WAIT', '1', '1'}, {'CLUSTER', 'COUNTKEYSINSLOT', '0'}, {'CLUSTER', 'GETKEYSINSLOT', '0', '1'}}) do
    need[#need + 1] = {'0', unpack(command)}
  end
end
local denied = {}
for _, command in ipairs(need) do
  if not redis.acl_check_cmd(unpack(command, 2)) then
    denied[#denied + 1] = command[2]
    denied[#denied + 1] = command[1]
  end
end
return {0, denied}
