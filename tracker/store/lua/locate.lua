-- Says what a reshard must know to tell where sessions and idempotency records belong.
--
-- op      kind (session | idem), its id or key
-- reply   session, task ('' none); record, id, task ('' none), here | '' (whether its session is in this shard); claim:
--         a record without a session; gone; broken: a session whose hash is not whole; error, text
return serve(function(kind, name)
  if kind == 'idem' then
    local record = redis.call('HMGET', ARGV[1] .. 'idem:' .. name, 'fingerprint', 'id', 'task')
    if not record[1] then return {'gone'} end
    if not record[2] then return {'claim'} end
    local here = redis.call('HEXISTS', SESSION .. record[2], 'due') == 1 and not redis.call('HGET', SESSION .. record[2], 'task')
    return {'record', record[2], record[3] or '', here and 'here' or ''}
  end
  local hash = redis.call('HMGET', SESSION .. name, 'agent', 'trigger', 'started', 'due', 'ttl', 'task')
  local agent, trigger, started, due, ttl, task = unpack(hash, 1, 6)
  if agent and trigger and tonumber(started or nil) and tonumber(due or nil) and tonumber(ttl or nil) then
    return {'session', task or ''}
  end
  return {redis.call('EXISTS', SESSION .. name) == 1 and 'broken' or 'gone'}
end)
