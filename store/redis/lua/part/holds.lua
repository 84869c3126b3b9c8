-- holds reports whether a condition holds for a value (false where there is none): store.Condition.Encode.
local function holds(cond, value)
  if cond == '*' then return true end
  if cond == '-' then return not value end
  if cond == '+' then return value and true end
  return value and redis.sha1hex(value) == cond
end
