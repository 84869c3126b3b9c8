#!lua
if m.kind == 0 or m.kind == 3 then put() end
return {0}
