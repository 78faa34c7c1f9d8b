-- Checks one stretch of an index of ids, in its order, for entries that lead to no session, and takes them away.
--
-- ARGV    4 look | mend  5 sessions | deadlines | agent:<agent>  6 score ('' from the first)  7 id  8 how many to look at
-- reply   {done | more, score, id (the place to go on behind)}, {id, finding, ...}. Findings: stale (no such session, or
--         not this agent's), lost (its hash is gone before its time; told of a deadline only)
-- effects a stale entry goes; for a lost session what the sweep would do at its deadline: entries go, counters, and its
--         end event, `expired`, with what is left to tell. What the sweep will find due is left to it
local mend, name = ARGV[4] == 'mend', ARGV[5]
local index = ARGV[1] .. name
local agent = string.sub(name, 1, 6) == 'agent:' and string.sub(name, 7)
if mend then
  check_shard()
  redis.call('PERSIST', CLOCK)
end

local first, reach = 0, tonumber(ARGV[8])
if ARGV[6] ~= '' then
  first = count_before(index, ARGV[6], ARGV[7])
  if redis.call('ZSCORE', index, ARGV[7]) then first = first + 1 end
end
local entries = redis.call('ZRANGE', index, first, first + reach - 1, 'WITHSCORES')
local found = {}

local function note(id, finding)
  found[#found + 1] = id
  found[#found + 1] = finding
end

for i = 1, #entries, 2 do
  local id = entries[i]
  if agent then
    if redis.call('HGET', SESSION .. id, 'agent') ~= agent then
      note(id, 'stale')
      if mend then redis.call('ZREM', index, id) end
    end
  elseif redis.call('EXISTS', SESSION .. id) == 0 then
    local due = redis.call('ZSCORE', DEADLINES, id)
    if not due then
      note(id, 'stale')
      if mend then redis.call('ZREM', SESSIONS, id) end
    elseif index == DEADLINES and tonumber(due) > cutoff then
      note(id, 'lost')
      if mend then
        local started = redis.call('ZSCORE', SESSIONS, id) or ms(now)
        redis.call('ZREM', DEADLINES, id)
        redis.call('ZREM', SESSIONS, id)
        redis.call('HINCRBY', COUNTERS, 'ended:expired', 1)
        emit('session.ended', 'expired', id, {'started', started})
      end
    end
  end
end
return {{#entries < 2 * reach and 'done' or 'more', entries[#entries] or '', entries[#entries - 1] or ''}, found}
