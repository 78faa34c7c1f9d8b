-- Checks indices of ids, each in its order, for entries that lead to no session, and takes those away.
--
-- ARGV    4 look | mend  5 how many entries to look at (each index counts as one more)  6 score, 7 id: the place in the first
--         index to go on behind ('' from its first entry)  8... sessions | deadlines | agent:<agent>
-- reply   {seen, how many indices are done, score, id (the place in the next one)}, {index, id, finding, ...}. Findings: stale
--         (no such session, or not this agent's), lost (its hash is gone before its time; told of a deadline only),
--         failed (an index of a wrong type, without an id)
-- effects a stale entry goes; for a lost session what the sweep would do at its deadline: entries go, counters, and its
--         end event, `expired`, with what is left to tell. What the sweep will find due is left to it
local mend, left = ARGV[4] == 'mend', tonumber(ARGV[5])
local score, id, at = ARGV[6], ARGV[7], 8
local found = {}
if mend then
  check_shard()
  redis.call('PERSIST', CLOCK)
end

local function note(name, id, finding)
  found[#found + 1] = name
  found[#found + 1] = id
  found[#found + 1] = finding
end

local function lose(id)
  local started = redis.call('ZSCORE', SESSIONS, id) or ms(now)
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', SESSIONS, id)
  redis.call('HINCRBY', COUNTERS, 'ended:expired', 1)
  emit('session.ended', 'expired', id, {'started', started})
end

-- What is wrong with an entry, which is mended if it may be.
local function check(index, agent, id)
  if agent then
    if redis.call('HGET', SESSION .. id, 'agent') == agent then return nil end
    if mend then redis.call('ZREM', index, id) end
    return 'stale'
  end
  if redis.call('EXISTS', SESSION .. id) == 1 then return nil end
  local due = redis.call('ZSCORE', DEADLINES, id)
  if not due then
    if mend then redis.call('ZREM', SESSIONS, id) end
    return 'stale'
  end
  if index ~= DEADLINES or tonumber(due) <= cutoff then return nil end
  if mend then lose(id) end
  return 'lost'
end

-- Looks at an index from the place on; the place to go on behind, where there may be more.
local function go_through(name)
  local index = ARGV[1] .. name
  local agent = string.sub(name, 1, 6) == 'agent:' and string.sub(name, 7)
  local first, reach = 0, left
  if score ~= '' then
    first = count_before(index, score, id)
    if redis.call('ZSCORE', index, id) then first = first + 1 end
  end
  local entries = redis.call('ZRANGE', index, first, first + reach - 1, 'WITHSCORES')
  left = left - #entries / 2
  for i = 1, #entries, 2 do
    -- A session's key of a wrong type is told of where the keys are looked at.
    local ok, finding = pcall(check, index, agent, entries[i])
    if not ok then expect_wrong_type(finding) elseif finding then note(name, entries[i], finding) end
  end
  if #entries == 2 * reach then return entries[#entries], entries[#entries - 1] end
end

while left > 0 and at <= #ARGV do
  local ok, next_score, next_id = pcall(go_through, ARGV[at])
  if not ok then
    expect_wrong_type(next_score)
    note(ARGV[at], '', 'failed')
  end
  score, id = ok and next_score or '', ok and next_id or ''
  if score == '' then at, left = at + 1, left - 1 end
end
return {{'seen', at - 8, score, id}, found}
