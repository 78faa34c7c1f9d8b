-- Reads sessions and idempotency records that are about to move to another shard.
--
-- ARGV    4 the layout (`from>to`) for which this is done: with another nothing happens
-- op      kind (session | idem), its id or key
-- reply   exported, remaining life (ms), that of its task key ('' none that leads to it), field, value, ...; gone;
--         error, text
-- effects a session's hash stays until it is taken away, so that a reshard that was interrupted finds it; what it has
--         left is reckoned from its deadline, at least the grace: time for pods to come back and sweep
FIRST = 5
local layout = redis.call('HGET', ARGV[1] .. 'schema', 'shards')
return serve(function(kind, name)
  if layout ~= ARGV[4] then error('laid out otherwise: ' .. tostring(layout), 0) end
  if kind == 'idem' then
    local record = ARGV[1] .. 'idem:' .. name
    local flat = redis.call('HGETALL', record)
    if #flat == 0 then return {'gone'} end
    return {'exported', ms(redis.call('PTTL', record)), '', unpack(flat)}
  end
  local flat = redis.call('HGETALL', SESSION .. name)
  if #flat == 0 then return {'gone'} end
  local session = to_table(flat)
  local left = math.max(tonumber(session.due) - now, 0) + GRACE
  local leads = session.task and redis.call('GET', TASK .. session.task) == name
  local task_left = leads and ms(redis.call('PTTL', TASK .. session.task)) or ''
  redis.call('PEXPIRE', SESSION .. name, ms(FORWARDED))
  return {'exported', ms(left), task_left, unpack(flat)}
end)
