-- Says that a pod is there to take heartbeats, and turns an outage that has just ended into a hold.
--
-- ARGV    4 skip if the pulse is younger than this (ms): one pod's is as good as another's
--         5 patience: how old this pulse may grow before it means an outage (ms)  6 longest hold (ms)
-- reply   {hold: '' or its end (ms), outage: '' or its length (ms)}
-- effects the clock: pulse, patience; after an outage held, hold_end and resumed, which is now
if recent(pulse, tonumber(ARGV[4])) then return {'', ''} end
-- A write that needs no memory comes first, so that at maxmemory the pulse goes on.
redis.call('PERSIST', CLOCK)
local outage = ''
if pulse and patience and now - pulse > patience then
  -- Whoever was alive when the outage began gets its length again to heartbeat; what was left of a hold stays left.
  local from, left = pulse, 0
  if held and hold_end and pulse < hold_end then from, left = held, hold_end - pulse end
  outage = ms(now - pulse)
  hold_end = now + math.max(math.min(now - pulse, tonumber(ARGV[6])), left)
  redis.call('HSET', CLOCK, 'held', ms(from), 'hold_end', ms(hold_end), 'resumed', ms(now))
end
redis.call('HSET', CLOCK, 'pulse', ms(now), 'patience', ARGV[5])
return {hold_end and hold_end > now and ms(hold_end) or '', outage}
