-- Renews live sessions.
--
-- op      kind (task | id), target, guard ('' or the id that must be the live one), progress ('' none or '=' .. text)
-- reply   renewed, due (ms), stop (ms or ''); missing; conflict, id, field, value, ...; error, text
-- effects the hash's due, progress and TTL; deadlines; now and then the TTLs of the index keys. No event.
redis.call('ZCARD', DEADLINES)
return serve(function(kind, target, guard, progress)
  local id, found = find(kind, target, 'started', 'ttl', 'agent', 'task', 'stop')
  if not id then return {'missing'} end
  if guard ~= '' and guard ~= id then return conflict(id) end
  local due
  if progress == '' then due = renew(id, found) else due = renew(id, found, 'progress', string.sub(progress, 2)) end
  return {'renewed', due, found[6] or ''}
end)
