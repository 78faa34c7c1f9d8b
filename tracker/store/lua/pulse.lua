-- Says that a pod is there to take heartbeats, and turns an outage that has just ended into a hold.
--
-- ARGV    4 skip if the pulse is younger than this (ms): one pod's is as good as another's
--         5 patience: how old this pulse may grow before it means an outage (ms)  6 longest hold (ms)
-- reply   {''} | while a hold lasts, whoever began it: {its end, from, to when the outage lasted (all ms)}
-- effects the clock: pulse, patience; after an outage held, hold_end and resumed, which is now
local function tell()
  if not hold_end or hold_end <= now then return {''} end
  return {ms(hold_end), ms(held), redis.call('HGET', CLOCK, 'resumed') or ms(held)}
end
if recent(pulse, tonumber(ARGV[4])) then return tell() end
-- A write that needs no memory comes first, so that at maxmemory the pulse goes on.
redis.call('PERSIST', CLOCK)
if pulse and patience and now - pulse > patience then
  -- Whoever was alive when the outage began gets its length again to heartbeat; what was left of a hold stays left.
  local left = 0
  if held and hold_end and pulse < hold_end then left = hold_end - pulse else held = pulse end
  hold_end = now + math.max(math.min(now - pulse, tonumber(ARGV[6])), left)
  redis.call('HSET', CLOCK, 'held', ms(held), 'hold_end', ms(hold_end), 'resumed', ms(now))
end
redis.call('HSET', CLOCK, 'pulse', ms(now), 'patience', ARGV[5])
return tell()
