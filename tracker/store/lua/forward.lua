-- Says, in the shard that is in their ids, where sessions are that a reshard has taken to another one.
--
-- ARGV    4 the layout (`from>to`) for which this is done: with another nothing happens
-- op      id, shard
-- reply   forwarded; error, text
-- effects the key `moved:<id>`
FIRST = 5
local layout = redis.call('HGET', ARGV[1] .. 'schema', 'shards')
return serve(function(id, shard)
  if layout ~= ARGV[4] then error('laid out otherwise: ' .. tostring(layout), 0) end
  redis.call('SET', MOVED .. id, shard, 'PX', ms(FORWARDED))
  return {'forwarded'}
end)
