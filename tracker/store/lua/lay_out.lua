-- Changes the record of how a shard is laid out, from one of several layouts to another, and sets the shard's clock.
--
-- ARGV    4 schema version  5 the new shard count, or `from>to` while a reshard is under way  6 one that may be there
--         7 another  8 where in the feed webhooks begin, if they have no place in it yet ('' they need none)
--         9... field, value of the clock
-- reply   {laid, webhooks | '' (whether they have a place), pulse, patience, held, resumed, hold_end (ms, '' none)}
--         | {other, version, shards}: it is laid out in yet another way
-- effects the shard's `schema` hash, the fields of the clock, the webhooks' place
local schema, GROUP = ARGV[1] .. 'schema', 'webhooks'
local layout = redis.call('HMGET', schema, 'version', 'shards')
local version, shards = layout[1] or '', layout[2] or ''
local known = shards == ARGV[5] or shards == ARGV[6] or shards == ARGV[7]
if (version ~= '' and version ~= ARGV[4]) or (shards ~= '' and not known) then return {'other', version, shards} end

local function group()
  if redis.call('XLEN', EVENTS) == 0 and redis.call('EXISTS', EVENTS) == 0 then return '' end
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', EVENTS)) do
    if to_table(fields).name == GROUP then return GROUP end
  end
  return ''
end
local place = group()
redis.call('HSET', schema, 'version', ARGV[4], 'shards', ARGV[5])
if place == '' and ARGV[8] ~= '' then redis.call('XGROUP', 'CREATE', EVENTS, GROUP, ARGV[8], 'MKSTREAM') end
if ARGV[9] then redis.call('HSET', CLOCK, unpack(ARGV, 9)) end

local reply = {'laid', place}
for _, moment in ipairs(redis.call('HMGET', CLOCK, 'pulse', 'patience', 'held', 'resumed', 'hold_end')) do
  reply[#reply + 1] = moment or ''
end
return reply
