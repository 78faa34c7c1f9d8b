-- Takes sessions and idempotency records away that another shard has by now. Nobody is told: they have not ended.
--
-- ARGV    4 the layout (`from>to`) for which this is done: with another nothing happens
-- op      kind (session | idem), its id or key, of a record: the id of its session as it was exported ('' none)
-- reply   departed; gone; error, text
-- effects a session: hash, task key, entries and counts, no event. A record, unless another has taken its place
FIRST = 5
local layout = redis.call('HGET', ARGV[1] .. 'schema', 'shards')
check_shard()

return serve(function(kind, name, id)
  if layout ~= ARGV[4] then error('laid out otherwise: ' .. tostring(layout), 0) end
  if kind == 'idem' then
    local record = redis.call('HMGET', ARGV[1] .. 'idem:' .. name, 'fingerprint', 'id')
    if not record[1] or (record[2] or '') ~= id then return {'gone'} end
    redis.call('DEL', ARGV[1] .. 'idem:' .. name)
    return {'departed'}
  end
  local session = to_table(redis.call('HGETALL', SESSION .. name))
  if not session.due then return {'gone'} end
  erase(name, session)
  return {'departed'}
end)
