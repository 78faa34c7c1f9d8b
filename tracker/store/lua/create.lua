-- Registers sessions; makes room for each by its conflict policy.
--
-- op      id tail, policy, idempotency key ('' none), fingerprint, idempotency life (ms), ttl (ms),
--         agent, trigger, task ('' none), then field, value, ... of the other hash fields
-- reply   created | reused | repeated | conflict, each with id, field, value, ...;
--         mismatch (the key came with another fingerprint); error, text
-- effects the task's expired session, if any, ends as `expired`; a replaced one as `replaced`; then hash, task key,
--         sessions, deadlines, agent, agents, triggers, counters, one `session.created`, and the idempotency record:
--         a hash of the fingerprint, the id and the session as it was made; a conflict gives a mere claim back
check_shard()
return serve(function(tail, policy, key, fingerprint, memory, ttl, agent, trigger, task, ...)
  local record, claimed = key ~= '' and ARGV[1] .. 'idem:' .. key, false
  if record then
    local known = redis.call('HGETALL', record)
    if #known > 0 then
      local past = to_table(known)
      if past.fingerprint ~= fingerprint then return {'mismatch'} end
      if past.id then
        local session = redis.call('HGETALL', SESSION .. past.id)
        return tell('repeated', past.id, #session > 0 and session or known)
      end
      claimed = true -- before a reshard, when the task was in another shard, by a create that got no answer
    end
  end
  local function remember(id, flat)
    if not record then return end
    redis.call('HSET', record, 'fingerprint', fingerprint, 'id', id, unpack(flat))
    redis.call('PEXPIRE', record, memory)
  end

  local high = string.format('%012x', now)
  local id = string.sub(high, 1, 8) .. '-' .. string.sub(high, 9, 12) .. '-' .. tail
  if redis.call('EXISTS', SESSION .. id) == 1 then error('the id ' .. id .. ' is taken') end
  redis.call('ZCARD', AGENT .. agent)
  local earlier = task ~= '' and redis.call('GET', TASK .. task)
  if earlier then
    local flat = redis.call('HGETALL', SESSION .. earlier)
    local session = to_table(flat)
    if session.due and tonumber(session.due) > cutoff then
      if policy == 'reuse' then
        renew(earlier, {session.due, session.started, session.ttl, session.agent, session.task})
        flat = redis.call('HGETALL', SESSION .. earlier)
        remember(earlier, flat)
        return tell('reused', earlier, flat)
      end
      if policy == 'reject' or (policy == 'supersede' and session.agent ~= agent) then
        if claimed then redis.call('DEL', record) end
        return tell('conflict', earlier, flat)
      end
      finish(earlier, flat, 'replaced')
    elseif session.due then
      finish(earlier, flat, 'expired')
    end
  end

  local duration = tonumber(ttl)
  local started, life = ms(now), 2 * duration + GRACE
  local flat = {'agent', agent, 'trigger', trigger, 'started', started, 'due', ms(now + duration), 'ttl', ttl, ...}
  if task ~= '' then
    flat[#flat + 1] = 'task'
    flat[#flat + 1] = task
  end
  redis.call('HSET', SESSION .. id, unpack(flat))
  redis.call('PEXPIRE', SESSION .. id, ms(duration + GRACE))
  if task ~= '' then redis.call('SET', TASK .. task, id, 'PX', ms(life)) end
  redis.call('ZADD', SESSIONS, started, id)
  redis.call('ZADD', DEADLINES, ms(now + duration), id)
  redis.call('ZADD', AGENT .. agent, started, id)
  keep_index(life, agent)
  redis.call('ZINCRBY', AGENTS, 1, agent)
  redis.call('ZINCRBY', TRIGGERS, 1, trigger)
  redis.call('HINCRBY', COUNTERS, 'created', 1)
  emit('session.created', '', id, flat)
  remember(id, flat)
  return tell('created', id, flat)
end)
