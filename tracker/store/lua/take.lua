-- Takes events that a webhook is to be told of: each is one pod's for as long as the lease, then anybody's again.
-- A consumer group holds how far the feed was read; what is to be told is copied out of it, for the feed gets trimmed.
--
-- ARGV    4 how many  5 lease (ms)  6 how many may wait (more stay in the feed)
--         7 how long (ms) a copy is kept after it was taken last
--         8 where a group that is not there begins ('$' the present, '0' all that the feed holds)
--         9... event types to tell
-- reply   {done | more (there are further ones), how many are gone untold, as their copies are,
--         {id, attempt (1 the first), field, value, ...}, ...}
-- effects the group's place in the feed, the hash `hook:<id>` of each and its entry in `hooks`, and for those
--         that are gone `parked` in the counters
local HOOKS, HOOK, GROUP = ARGV[1] .. 'hooks', ARGV[1] .. 'hook:', 'webhooks'
local many, lease, room, life = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local READ = 100 -- entries of the feed looked at in one call
local wanted = {}
for i = 9, #ARGV do wanted[ARGV[i]] = true end
redis.call('XLEN', EVENTS)
redis.call('ZCARD', HOOKS)
redis.call('HLEN', COUNTERS)
-- Fails where new keys cannot be made, while the shard's slot moves to another node: what was read would be lost.
redis.call('EXISTS', HOOK)

local taken, gone, state = {}, 0, 'done'
local function take(id)
  redis.call('ZADD', HOOKS, ms(now + lease), id)
  local attempt = redis.call('HINCRBY', HOOK .. id, 'attempt', 1)
  redis.call('PEXPIRE', HOOK .. id, life)
  taken[#taken + 1] = {id, ms(attempt), unpack(redis.call('HGETALL', HOOK .. id))}
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', HOOKS, '-inf', ms(now), 'LIMIT', 0, many)) do
  if redis.call('EXISTS', HOOK .. id) == 1 then take(id) else gone = gone + redis.call('ZREM', HOOKS, id) end
end
if gone > 0 then
  redis.call('HINCRBY', COUNTERS, 'parked', gone)
  state = 'more'
end

local function read()
  return redis.call('XREADGROUP', 'GROUP', GROUP, 'pods', 'NOACK', 'COUNT', READ, 'STREAMS', EVENTS, '>')
end

if #taken < many and redis.call('ZCARD', HOOKS) + READ <= room then
  local found, streams = pcall(read)
  if not found then
    redis.call('XGROUP', 'CREATE', EVENTS, GROUP, ARGV[8], 'MKSTREAM')
    streams = read()
  end
  local entries = streams and streams[1] and streams[1][2] or {}
  if #entries == READ then state = 'more' end
  for _, entry in ipairs(entries) do
    local id, flat = entry[1], entry[2]
    if wanted[to_table(flat).type] then
      redis.call('DEL', HOOK .. id)
      redis.call('HSET', HOOK .. id, unpack(flat))
      redis.call('PEXPIRE', HOOK .. id, life)
      redis.call('ZADD', HOOKS, ms(now), id)
      if #taken < many then take(id) end
    end
  end
end
-- Longer than the copies: it tells of those that go untold.
if #taken > 0 then redis.call('PEXPIRE', HOOKS, ms(2 * tonumber(life))) end
return {state, gone, unpack(taken)}
