-- Renews live sessions.
--
-- op      kind (task | id), target, guard ('' or the id that must be the live one), progress ('' none or '=' .. text)
-- reply   renewed, due (ms), stop (ms or ''); missing; conflict, id, field, value, ...; error, text
-- effects the hash's due, progress and TTL; deadlines; the TTLs of the task key and the index keys. No event.
redis.call('ZCARD', DEADLINES)
return serve(function(kind, target, guard, progress)
  local id, found = find(kind, target, 'ttl', 'agent', 'task', 'stop')
  if not id then return {'missing'} end
  if guard ~= '' and guard ~= id then return conflict(id) end
  local _, ttl, agent, task, stop = unpack(found, 1, 5)
  local due
  if progress == '' then
    due = renew(id, tonumber(ttl), agent, task)
  else
    due = renew(id, tonumber(ttl), agent, task, 'progress', string.sub(progress, 2))
  end
  return {'renewed', due, stop or ''}
end)
