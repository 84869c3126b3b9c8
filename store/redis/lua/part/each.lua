-- What is said of one part is done for each: its names are all of one slot. They are KEYS; or, those of several slots, all of
-- which this server has, they come behind the other arguments, and their number last.
local names, last = KEYS, #ARGV
if #KEYS == 0 then
  last = last - 1 - ARGV[last]
  names = {unpack(ARGV, last + 1, #ARGV - 1)}
end

-- each calls f with the places of a part's first name and of its first argument, and answers what it returns: an item for
-- each part, as far as f returns one; -8 where the slot is on its way to another server, or is there. A name that is not
-- here is an error: f has done nothing then, or what may be done once more.
local function each(common, width, more, f)
  local answer = {0}
  for i = 0, #names / width - 1 do
    local ok, got = pcall(f, 1 + i * width, common + 1 + i * more)
    if not ok then
      if not string.find(type(got) == 'table' and got.err or got, 'ERR Script attempted', 1, true) then error(got) end
      got = -8
    end
    if got == nil then break end
    answer[i + 2] = got
  end
  return answer
end
