-- Ends a batch of expired sessions.
--
-- ARGV    4 batch  5 skip if the last sweep is younger than this (ms; 0 never): keeps pods from sweeping at once
--         6 how many due entries to pass over: those that could not be ended, so that they do not block the others
-- reply   {skipped} | {swept, ended, due entries looked at, not ended, why the first of those}
-- effects finish with reason `expired` for each; deadlines that disagree with their hash are put right; an entry whose
--         hash is gone (it outlived its grace unswept) still gets its end event, with what is left to tell; the clock's
--         swept
if recent(tonumber(redis.call('HGET', CLOCK, 'swept') or nil), tonumber(ARGV[5])) then return {'skipped'} end
check_shard()
-- A write that needs no memory comes first, so that at maxmemory the sweep goes on, and frees some.
redis.call('PERSIST', CLOCK)
redis.call('HSET', CLOCK, 'swept', ms(now))

local ended, failed, why = 0, 0, ''
local ids = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', ms(cutoff), 'LIMIT', ARGV[6], ARGV[4])
for _, id in ipairs(ids) do
  local ok, problem = pcall(function()
    local flat = redis.call('HGETALL', SESSION .. id)
    local due = to_table(flat).due
    if #flat == 0 then
      local started = redis.call('ZSCORE', SESSIONS, id) or ms(now)
      redis.call('ZREM', DEADLINES, id)
      redis.call('ZREM', SESSIONS, id)
      redis.call('HINCRBY', COUNTERS, 'ended:expired', 1)
      emit('session.ended', 'expired', id, {'started', started})
      ended = ended + 1
    elseif tonumber(due) > cutoff then
      redis.call('ZADD', DEADLINES, due, id)
    else
      finish(id, flat, 'expired')
      ended = ended + 1
    end
  end)
  if not ok then
    if failed == 0 then why = describe(problem) end
    failed = failed + 1
  end
end
-- With nothing left, the counts of what lives are nothing too: entries whose hash was gone could not say whose they were.
-- (While the slot moves to another node of a cluster, a key that is not there cannot be looked at: then the next sweep.)
local whole, left = pcall(redis.call, 'ZCARD', SESSIONS)
if whole and left == 0 then redis.call('DEL', AGENTS, TRIGGERS) end
return {'swept', ms(ended), ms(#ids), ms(failed), why}
