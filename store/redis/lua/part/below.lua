-- below reports whether the sender's epoch, ARGV[1], is below a fence, or there is none: then nothing is done.
local fences = {}
local function below(name)
  if fences[name] == nil then
    local fence = tonumber(redis.call('GET', name) or '')
    fences[name] = not fence or tonumber(ARGV[1]) < fence
  end
  return fences[name]
end
