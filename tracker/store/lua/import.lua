-- Puts sessions and idempotency records that come from another shard into this one. Doing it again changes nothing.
--
-- ARGV    4 the layout (`from>to`) for which this is done: with another nothing happens
-- op      kind (session | idem), its id or key, remaining life (ms), that of its task key ('' none that leads to it),
--         field, value, ...
-- reply   imported; error, text
-- effects a session: hash, task key, sessions, deadlines, agent, agents and triggers, no event; its id is no longer
--         forwarded from here. A record; of two for one key the whole one stays, of two bodies the one that lives longer
FIRST = 5
local layout = redis.call('HGET', ARGV[1] .. 'schema', 'shards')
check_shard()

local function remember(key, left, flat)
  local record, fields = ARGV[1] .. 'idem:' .. key, to_table(flat)
  local known = redis.call('HGET', record, 'fingerprint')
  local life = math.max(redis.call('PTTL', record), tonumber(left))
  if known and known ~= fields.fingerprint then
    if life > tonumber(left) then return end
    redis.call('DEL', record)
  end
  redis.call('HSET', record, unpack(flat))
  if life > 0 then redis.call('PEXPIRE', record, ms(life)) end
end

return serve(function(kind, name, left, task_left, ...)
  if layout ~= ARGV[4] then error('laid out otherwise: ' .. tostring(layout), 0) end
  local flat = {...}
  if kind == 'idem' then
    remember(name, left, flat)
    return {'imported'}
  end
  local session = to_table(flat)
  if session.task then redis.call('GET', TASK .. session.task) end
  redis.call('ZCARD', AGENT .. session.agent)
  local known = redis.call('EXISTS', SESSION .. name) == 1 or redis.call('ZSCORE', SESSIONS, name)
  redis.call('HSET', SESSION .. name, unpack(flat))
  redis.call('PEXPIRE', SESSION .. name, left)
  if task_left ~= '' then
    redis.call('SET', TASK .. session.task, name, 'PX', ms(math.max(tonumber(task_left), tonumber(left))))
  end
  redis.call('ZADD', SESSIONS, session.started, name)
  redis.call('ZADD', DEADLINES, session.due, name)
  redis.call('ZADD', AGENT .. session.agent, session.started, name)
  keep_index(2 * tonumber(session.ttl) + GRACE, session.agent)
  if not known then
    redis.call('ZINCRBY', AGENTS, 1, session.agent)
    redis.call('ZINCRBY', TRIGGERS, 1, session.trigger)
  end
  redis.call('DEL', MOVED .. name)
  return {'imported'}
end)
