-- Ends, from one stretch of an index, the sessions that match; oldest first.
--
-- ARGV    4 agent ('' all)  5 started (ms, '' from the oldest)  6 id  7 how many to look at
--         8 last started to look at (ms; '' begins)  9 how long ago the caller came (ms): beginning, newer ones are spared
--         10 least age of the last heartbeat (ms, '' any)  11 runtime ('' any)  12 expired | any
-- reply   {done | more, started, id (the place to go on behind), last started, ended, not ended, why the first of those}
-- effects finish, with reason `expired` for those whose TTL has run out, else `cleaned`; index entries whose hash is
--         gone are removed from an agent's index
check_shard()
-- Since when silence counts: not before the end of the outage that a hold makes good, nor at all until that is known.
local resumed = 0
if cutoff < now then
  resumed = cutoff == held and recent(pulse, patience) and tonumber(redis.call('HGET', CLOCK, 'resumed') or nil) or now
end
local index = ARGV[4] == '' and SESSIONS or AGENT .. ARGV[4]
local first, reach = 0, tonumber(ARGV[7])
local last_started = tonumber(ARGV[8])
if not last_started then
  -- Who started in what is the time to come has not come since: the clock was set back.
  local newest = tonumber(redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2] or now)
  last_started = newest > now and newest or now - tonumber(ARGV[9])
end
if ARGV[5] ~= '' then
  first = count_before(index, ARGV[5], ARGV[6])
  if redis.call('ZSCORE', index, ARGV[6]) then first = first + 1 end
end
local ids = redis.call('ZRANGE', index, first, first + reach - 1, 'WITHSCORES')
local state, ended, failed, why = #ids < 2 * reach and 'done' or 'more', 0, 0, ''

local function weigh(id)
  local flat = redis.call('HGETALL', SESSION .. id)
  if #flat == 0 then
    if index ~= SESSIONS then redis.call('ZREM', index, id) end
    return
  end
  local session = to_table(flat)
  local due = tonumber(session.due)
  local expired = due <= cutoff
  local fits = expired or ARGV[12] == 'any'
  if ARGV[10] ~= '' then
    local beat = due - tonumber(session.ttl)
    local age = beat >= resumed and now - beat or cutoff - beat
    fits = fits and math.max(age, 0) >= tonumber(ARGV[10])
  end
  if ARGV[11] ~= '' then fits = fits and session.runtime == ARGV[11] end
  if not fits then return end
  finish(id, flat, expired and 'expired' or 'cleaned')
  ended = ended + 1
end

for i = 1, #ids, 2 do
  if tonumber(ids[i + 1]) > last_started then
    state = 'done'
    break
  end
  local ok, problem = pcall(weigh, ids[i])
  if not ok then
    if failed == 0 then why = describe(problem) end
    failed = failed + 1
  end
end
return {state, ids[#ids] or '', ids[#ids - 1] or '', ms(last_started), ms(ended), ms(failed), why}
