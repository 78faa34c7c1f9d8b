-- Checks that task keys lead to sessions of their task, and drops those that do not.
--
-- ARGV    4 look | mend  5... tasks
-- reply   {seen, task, ...}: those that lead nowhere
-- effects their keys go
local mend, found = ARGV[4] == 'mend', {}
if mend then redis.call('PERSIST', CLOCK) end
for i = 5, #ARGV do
  local task = ARGV[i]
  local ok, strays = pcall(function()
    local id = redis.call('GET', TASK .. task)
    return id and redis.call('HGET', SESSION .. id, 'task') ~= task
  end)
  if not ok or strays then
    found[#found + 1] = task
    if ok and mend then redis.call('DEL', TASK .. task) end
  end
end
return {'seen', unpack(found)}
