-- Checks that task keys lead to sessions of their task, and drops those that do not.
--
-- ARGV    4 look | mend  5... tasks
-- reply   {seen, task, finding, ...}. Findings: stray (it leads to no session of it), failed (a key of a wrong type)
-- effects the keys of strays go
local mend, found = ARGV[4] == 'mend', {}
if mend then redis.call('PERSIST', CLOCK) end
for i = 5, #ARGV do
  local task = ARGV[i]
  local ok, strays = pcall(function()
    local id = redis.call('GET', TASK .. task)
    return id and redis.call('HGET', SESSION .. id, 'task') ~= task
  end)
  if not ok then expect_wrong_type(strays) end
  if not ok or strays then
    found[#found + 1] = task
    found[#found + 1] = ok and 'stray' or 'failed'
    if ok and mend then redis.call('DEL', TASK .. task) end
  end
end
return {'seen', unpack(found)}
