-- Records how the store is laid out, if nobody has, and says how it is.
--
-- ARGV    4 schema version  5 shard count
-- reply   {version, shards, hold: '' or its end (ms), now (ms), age of the pulse (ms, '' none yet)}
-- effects the shard's `schema` hash, the first time
local schema = ARGV[1] .. 'schema'
if redis.call('EXISTS', schema) == 0 then redis.call('HSET', schema, 'version', ARGV[4], 'shards', ARGV[5]) end
local layout = redis.call('HMGET', schema, 'version', 'shards')
return {layout[1] or '', layout[2] or '', hold_in_force(), ms(now), pulse and ms(now - pulse) or ''}
