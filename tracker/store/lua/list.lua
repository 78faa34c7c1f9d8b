-- One stretch of an index, newest first, below a place in the order (started, id). Says which sessions to look at; the
-- hashes are read by the caller, outside of Lua, which would copy each value twice.
--
-- ARGV    4 agent ('' all)  5 started (ms, '' from the newest)  6 id  7 how many to look at  8... field, value to match
-- reply   {done | more, started, id (the place to go on below), cutoff (ms)}, {id, ...}: all of the stretch, or where
--         there is something to match those that match
local index = ARGV[4] == '' and SESSIONS or AGENT .. ARGV[4]
local last
if ARGV[5] == '' then last = redis.call('ZCARD', index) else last = count_before(index, ARGV[5], ARGV[6]) end
if last == 0 then return {{'done', '', '', ms(cutoff)}, {}} end
local first = math.max(last - tonumber(ARGV[7]), 0)
local ids = redis.call('ZRANGE', index, first, last - 1)
local place = {first == 0 and 'done' or 'more', redis.call('ZSCORE', index, ids[1]), ids[1], ms(cutoff)}

local fields, values = {}, {}
for i = 8, #ARGV, 2 do
  fields[#fields + 1] = ARGV[i]
  values[#values + 1] = ARGV[i + 1]
end
local chosen = {}
for i = #ids, 1, -1 do
  local fits = true
  if #fields > 0 then
    local found = redis.call('HMGET', SESSION .. ids[i], unpack(fields))
    for j = 1, #fields do fits = fits and found[j] == values[j] end
  end
  if fits then chosen[#chosen + 1] = ids[i] end
end
return {place, chosen}
