-- Asks live sessions to stop; each learns of it from its next heartbeat. Asking again changes nothing.
--
-- op      kind (task | id), target
-- reply   updated; missing; error, text
-- effects the hash's stop (ms) and one `session.updated`, the first time
redis.call('XLEN', EVENTS)
return serve(function(kind, target)
  local id, found = find(kind, target, 'stop')
  if not id then return {'missing'} end
  if not found[2] then
    redis.call('HSET', SESSION .. id, 'stop', ms(now))
    emit('session.updated', '', id, redis.call('HGETALL', SESSION .. id))
  end
  return {'updated'}
end)
