#!lua
if m.kind ~= 1 or not mine then return {-3} end
clear()
put()
return {0}
