-- One chunk of the live sessions, newest first, below a place in the order (started, id).
--
-- ARGV    4 agent ('' all)  5 started (ms, '' from the newest)  6 id  7 how many to look at  8... field, value to match
-- reply   {done | more, started, id} (the place to go on below), then {id, field, value, ...} for each match
local index = ARGV[4] == '' and SESSIONS or AGENT .. ARGV[4]
local reach = tonumber(ARGV[7])
local last
if ARGV[5] == '' then last = redis.call('ZCARD', index) else last = count_before(index, ARGV[5], ARGV[6]) end
local first = math.max(last - reach, 0)
if last == 0 then return {{'done', '', ''}} end
local ids = redis.call('ZRANGE', index, first, last - 1, 'WITHSCORES')
local replies = {{first == 0 and 'done' or 'more', ids[2], ids[1]}}
for i = #ids - 1, 1, -2 do
  local flat = redis.call('HGETALL', SESSION .. ids[i])
  local session = to_table(flat)
  local fits = session.due and tonumber(session.due) > cutoff
  for j = 8, #ARGV, 2 do fits = fits and session[ARGV[j]] == ARGV[j + 1] end
  if fits then replies[#replies + 1] = {ids[i], unpack(flat)} end
end
return replies
