-- Reads live sessions.
--
-- op      kind (task | id), target
-- reply   found, id, field, value, ...; missing; error, text
return serve(function(kind, target)
  local id = find(kind, target)
  if not id then return {'missing'} end
  return tell('found', id, redis.call('HGETALL', SESSION .. id))
end)
