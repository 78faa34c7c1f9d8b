-- Notes the provider's session id on live sessions. Does not renew them.
--
-- op      kind (task | id), target, guard ('' or the id that must be the live one), provider session id
-- reply   updated; missing; conflict, id, field, value, ...; error, text
-- effects the hash's provider, and one `session.updated` if that changed it
redis.call('XLEN', EVENTS)
return serve(function(kind, target, guard, provider)
  local id, found = find(kind, target, 'provider')
  if not id then return {'missing'} end
  if guard ~= '' and guard ~= id then return conflict(id) end
  if found[2] ~= provider then
    redis.call('HSET', SESSION .. id, 'provider', provider)
    emit('session.updated', '', id, redis.call('HGETALL', SESSION .. id))
  end
  return {'updated'}
end)
