-- Ends live sessions at the request of their runs. An expired one is left to the sweep, which tells that it died.
--
-- op      kind (task | id), target, guard ('' or the id that must be the live one)
-- reply   deleted; missing; conflict, id, field, value, ...; error, text
-- effects finish, with reason `deleted`
check_shard()
return serve(function(kind, target, guard)
  local id = find(kind, target)
  if not id then return {'missing'} end
  if guard ~= '' and guard ~= id then return conflict(id) end
  finish(id, redis.call('HGETALL', SESSION .. id), 'deleted')
  return {'deleted'}
end)
