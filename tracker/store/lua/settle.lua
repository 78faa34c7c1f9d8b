-- Notes what came of telling a webhook.
--
-- op      event id, outcome (told | later | parked), later: after how long to try again (ms); parked: how long to keep it
-- reply   settled; gone (somebody else has settled it); error, text
-- effects told: the copy goes; later: it is due again then; parked: it moves from `hooks` to `parked`, which keeps the
--         newest 1,000, and is counted
local HOOKS, PARKED, HOOK, KEPT = ARGV[1] .. 'hooks', ARGV[1] .. 'parked', ARGV[1] .. 'hook:', 1000
redis.call('ZCARD', HOOKS)
redis.call('ZCARD', PARKED)
redis.call('HLEN', COUNTERS)
return serve(function(id, outcome, duration)
  if not redis.call('ZSCORE', HOOKS, id) then return {'gone'} end
  if outcome == 'later' then
    redis.call('ZADD', HOOKS, ms(now + tonumber(duration)), id)
    return {'settled'}
  end
  redis.call('ZREM', HOOKS, id)
  if outcome == 'told' then
    redis.call('DEL', HOOK .. id)
    return {'settled'}
  end
  redis.call('PEXPIRE', HOOK .. id, duration)
  redis.call('ZADD', PARKED, ms(now), id)
  redis.call('PEXPIRE', PARKED, duration)
  redis.call('HINCRBY', COUNTERS, 'parked', 1)
  for _, old in ipairs(redis.call('ZRANGE', PARKED, 0, -KEPT - 1)) do
    redis.call('ZREM', PARKED, old)
    redis.call('DEL', HOOK .. old)
  end
  return {'settled'}
end)
