-- Checks that the indices lead to sessions as their hashes say, and mends the indices. The hashes stay as they are.
--
-- ARGV    4 look | mend  5... ids
-- reply   seen, then {id, agent, trigger, finding, ...} for each that has a hash. Findings: sessions, deadlines, agent (no entry or
--         another score), task (no task key, or one that leads nowhere), rival (the task key leads to another session of
--         the task), broken (the hash is not whole), failed (its hash, or a key that belongs to it, is of a wrong type).
--         agent and trigger are '' where the hash does not say
-- effects entries and the task key as the hash has them, and the TTLs of the keys that got one; not for a rival's task
local mend = ARGV[4] == 'mend'
if mend then redis.call('PERSIST', CLOCK) end

local function check(id)
  local hash = redis.call('HMGET', SESSION .. id, 'agent', 'trigger', 'started', 'due', 'ttl', 'task')
  local agent, trigger, started, due, ttl, task = unpack(hash, 1, 6)
  if not due and redis.call('EXISTS', SESSION .. id) == 0 then return nil end
  local row = {id, agent or '', trigger or ''}
  if not (agent and trigger and tonumber(started or nil) and tonumber(due or nil) and tonumber(ttl or nil)) then
    row[#row + 1] = 'broken'
    return row
  end
  local life, entered = 2 * tonumber(ttl) + GRACE, false
  local function enter(finding, key, score)
    if tonumber(redis.call('ZSCORE', key, id) or nil) == tonumber(score) then return end
    row[#row + 1] = finding
    if not mend then return end
    redis.call('ZADD', key, score, id)
    entered = true
  end
  enter('sessions', SESSIONS, started)
  enter('deadlines', DEADLINES, due)
  enter('agent', AGENT .. agent, started)
  if entered then keep_index(life, agent) end
  if task then
    local holder = redis.call('GET', TASK .. task)
    if holder ~= id then
      if holder and redis.call('HGET', SESSION .. holder, 'task') == task then
        row[#row + 1] = 'rival'
      else
        row[#row + 1] = 'task'
        if mend then redis.call('SET', TASK .. task, id, 'PX', ms(redis.call('PTTL', SESSION .. id) + tonumber(ttl))) end
      end
    end
  end
  return row
end

local rows = {}
for i = 5, #ARGV do
  local ok, row = pcall(check, ARGV[i])
  if not ok then
    expect_wrong_type(row)
    local whose = redis.pcall('HMGET', SESSION .. ARGV[i], 'agent', 'trigger')
    row = {ARGV[i], whose[1] or '', whose[2] or '', 'failed'}
  end
  if row then rows[#rows + 1] = row end
end
if longest > 0 then
  for _, key in ipairs({SESSIONS, DEADLINES}) do outlast(key, longest) end
end
return {'seen', unpack(rows)}
