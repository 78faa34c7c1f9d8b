-- The shard in numbers, at a cost that does not grow with it.
--
-- ARGV    4 how many agents and trigger types to name  5 how many entries to look through where it must look
-- reply   {live, expired, created, started of the oldest ('' none), oldest heartbeat ('' none), now, agents,
--         time since the last sweep (ms, '' none yet), hold: '' or its end (ms)},
--         {ended:reason, n, ...}, {agent, n, ...}, {trigger, n, ...}, {agent, trigger of each expired, unswept one}
local swept = tonumber(redis.call('HGET', CLOCK, 'swept') or nil)
local top, reach = tonumber(ARGV[4]) - 1, tonumber(ARGV[5])

local gone, unswept = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', ms(cutoff), 'LIMIT', 0, reach)) do
  gone[id] = true
  local whose = redis.call('HMGET', SESSION .. id, 'agent', 'trigger')
  if whose[1] then
    unswept[#unswept + 1] = whose[1]
    unswept[#unswept + 1] = whose[2]
  end
end

local oldest = ''
local entries = redis.call('ZRANGE', SESSIONS, 0, reach, 'WITHSCORES')
for i = 1, #entries, 2 do
  if not gone[entries[i]] then
    oldest = entries[i + 1]
    break
  end
end

-- A heartbeat lies one TTL before its deadline: with one TTL for all, the first live entry by deadline has the oldest.
-- With several, an entry further on may have an older one; so look on, as far as the cost allows.
local beat
local due = redis.call('ZRANGEBYSCORE', DEADLINES, '(' .. ms(cutoff), '+inf', 'WITHSCORES', 'LIMIT', 0, reach)
for i = 1, #due, 2 do
  local ttl = redis.call('HGET', SESSION .. due[i], 'ttl')
  if ttl then beat = math.min(beat or now, tonumber(due[i + 1]) - tonumber(ttl)) end
end

return {
  {
    ms(redis.call('ZCOUNT', DEADLINES, '(' .. ms(cutoff), '+inf')),
    ms(redis.call('ZCOUNT', DEADLINES, '-inf', ms(cutoff))),
    redis.call('HGET', COUNTERS, 'created') or '0',
    oldest,
    beat and ms(beat) or '',
    ms(now),
    ms(redis.call('ZCARD', AGENTS)),
    swept and ms(now - swept) or '',
    hold_in_force(),
  },
  redis.call('HGETALL', COUNTERS),
  redis.call('ZREVRANGE', AGENTS, 0, top, 'WITHSCORES'),
  redis.call('ZREVRANGE', TRIGGERS, 0, top, 'WITHSCORES'),
  unswept,
}
