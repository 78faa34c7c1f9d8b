-- Compares counts of sessions with those that were counted as of some event, and with what the feed has told since.
--
-- ARGV    4 look | mend  5 id of the newest event that was counted ('0-0' none)
--         6... agents | triggers, name, how many were counted
-- reply   {counted, agents | triggers, name, ...}: the counts that are wrong; {moved}: too much has happened since;
--         {trimmed}: the feed no longer holds that event
-- effects a wrong count is put right, and taken away if it is none
local MOST, position = 100, ARGV[5]
local events = redis.call('XRANGE', EVENTS, position == '0-0' and '-' or position, '+', 'COUNT', MOST + 1)
if position ~= '0-0' and (not events[1] or events[1][1] ~= position) then return {'trimmed'} end
if #events > MOST then return {'moved'} end

local since = {agents = {}, triggers = {}}
for _, event in ipairs(events) do
  local fields = to_table(event[2])
  local by = ({['session.created'] = 1, ['session.ended'] = -1})[fields.type]
  if event[1] ~= position and by and fields.agent and fields.trigger then
    since.agents[fields.agent] = (since.agents[fields.agent] or 0) + by
    since.triggers[fields.trigger] = (since.triggers[fields.trigger] or 0) + by
  end
end

local found = {'counted'}
for i = 6, #ARGV, 3 do
  local which, name = ARGV[i], ARGV[i + 1]
  local key, right = which == 'agents' and AGENTS or TRIGGERS, tonumber(ARGV[i + 2]) + (since[which][name] or 0)
  if tonumber(redis.call('ZSCORE', key, name) or '0') ~= right then
    found[#found + 1] = which
    found[#found + 1] = name
    if ARGV[4] == 'mend' then
      if right == 0 then redis.call('ZREM', key, name) else redis.call('ZADD', key, ms(right), name) end
      -- Nothing else says how long the longest session lives.
      outlast(key, math.max(redis.call('PTTL', SESSIONS), GRACE))
    end
  end
end
return found
