-- Takes sessions and idempotency records away that another shard has by now. Nobody is told: they have not ended.
--
-- ARGV    4 the layout (`from>to`) for which this is done: with another nothing happens
-- op      kind (session | idem), its id or key, of a record: the id of its session as it was exported ('' none),
--         claim | '': whether its key is still bound here to its body
-- reply   departed; gone; error, text
-- effects a session: hash, task key, entries and counts, no event. A record goes, or all of it but the fingerprint
FIRST = 5
local layout = redis.call('HGET', ARGV[1] .. 'schema', 'shards')
check_shard()

local function forget(key, id, stays)
  local record = ARGV[1] .. 'idem:' .. key
  local fields = redis.call('HKEYS', record)
  if #fields == 0 or (redis.call('HGET', record, 'id') or '') ~= id then return {'gone'} end
  if stays ~= 'claim' then
    redis.call('DEL', record)
  else
    for _, field in ipairs(fields) do
      if field ~= 'fingerprint' then redis.call('HDEL', record, field) end
    end
  end
  return {'departed'}
end

return serve(function(kind, name, id, stays)
  if layout ~= ARGV[4] then error('laid out otherwise: ' .. tostring(layout), 0) end
  if kind == 'idem' then return forget(name, id, stays) end
  local session = to_table(redis.call('HGETALL', SESSION .. name))
  if not session.due then return {'gone'} end
  erase(name, session)
  return {'departed'}
end)
