-- Put before every script (see scripts.py). What all of them share: the shard's keys, the store's clock, the cutoff that
-- judges life and death, and the few steps that keep hash, indices, counters and feed in agreement.
--
-- KEYS  1 clock  2 sessions  3 deadlines  4 agents  5 triggers  6 counters  7 events
-- ARGV  1 the shard's prefix, `{ns:shard}:`   2 grace (ms)   3 newest events kept   4... the script's own
--
-- Keys made here from an id or a task carry the hash tag of the declared ones: one slot, so one script may touch them.
local CLOCK, SESSIONS, DEADLINES, AGENTS, TRIGGERS, COUNTERS, EVENTS = unpack(KEYS)
local SESSION, TASK, AGENT = ARGV[1] .. 'session:', ARGV[1] .. 'task:', ARGV[1] .. 'agent:'
local MOVED, FORWARDED = ARGV[1] .. 'moved:', 30 * 86400000 -- how long (ms) an id is forwarded without being asked for
local GRACE, FEED_LENGTH, FIRST = tonumber(ARGV[2]), ARGV[3], 4

local function ms(number) return string.format('%.0f', number) end

-- TIME moves inside a script before Redis 7.2: read once.
local now
do
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The cutoff: a session is live while its deadline is ahead of it. Normally now. With the last pulse long ago nobody
-- could heartbeat: the pulse. While a hold lasts, or if the pulse fell into one: the time at which that outage began.
-- Never ahead of now, also not when the clock was set back, as by a failover to another machine.
local cutoff, pulse, patience, held, hold_end = now, nil, nil, nil, nil
do
  local clock = redis.call('HMGET', CLOCK, 'pulse', 'patience', 'held', 'hold_end')
  pulse, patience = tonumber(clock[1] or nil), tonumber(clock[2] or nil)
  held, hold_end = tonumber(clock[3] or nil), tonumber(clock[4] or nil)
  if pulse and patience and now - pulse > patience then cutoff = pulse end
  if held and hold_end and cutoff < hold_end then cutoff = math.min(cutoff, held) end
end

-- Whether a moment is there and less than so long (ms) ago. One that lies ahead is not: the clock was set back.
local function recent(moment, age) return moment and moment <= now and now - moment < age end

-- The end (ms) of the hold that keeps the cutoff back now; '' where none does.
local function hold_in_force()
  return cutoff < now and held and cutoff == held and hold_end and ms(hold_end) or ''
end

-- Raises on a key of the wrong type, so that it shows before the first write: a failed script does not roll back.
local function check_shard()
  for _, key in ipairs({SESSIONS, DEADLINES, AGENTS, TRIGGERS}) do redis.call('ZCARD', key) end
  redis.call('HLEN', COUNTERS)
  redis.call('XLEN', EVENTS)
end

-- The text of what pcall caught: a table with `err` from redis.call (a string before Redis 7), a string from error().
local function describe(problem)
  return type(problem) == 'table' and problem.err or tostring(problem)
end

-- For those that look at keys one by one, and tell of one that is of a wrong type: raises what pcall caught if it is
-- anything else, such as that keys are on their way to another node.
local function expect_wrong_type(problem)
  local text = describe(problem)
  if not string.find(text, 'WRONGTYPE', 1, true) then error(text, 0) end
end

local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- The id of the live session that a task or an id means, then its due time and the named fields; nil where none lives.
-- Raises `moved to shard <n>` for an id whose session a reshard has taken there.
local function find(kind, target, ...)
  local id = target
  if kind == 'task' then id = redis.call('GET', TASK .. target) end
  if not id then return nil end
  local values = redis.call('HMGET', SESSION .. id, 'due', ...)
  if values[1] and tonumber(values[1]) > cutoff then return id, values end
  local shard = kind == 'id' and not values[1] and redis.call('GET', MOVED .. id)
  if shard then
    -- pcall: a read must go on where nothing can be written.
    if redis.call('PTTL', MOVED .. id) < FORWARDED / 2 then redis.pcall('PEXPIRE', MOVED .. id, ms(FORWARDED)) end
    error('moved to shard ' .. shard, 0)
  end
  return nil
end

-- A reply that carries a session: status, id, field, value, ...
local function tell(status, id, flat)
  return {status, id, unpack(flat)}
end

local function conflict(id)
  return tell('conflict', id, redis.call('HGETALL', SESSION .. id))
end

-- Lets a key live at least that much longer (ms). Twice as long at once, so that most calls find nothing to do.
local function outlast(key, duration)
  if redis.call('PTTL', key) < duration then redis.call('PEXPIRE', key, ms(2 * duration)) end
end

local longest = 0 -- the longest time (ms) for which this script wants the shard's index keys to live

-- Index keys must outlive the hashes they lead to. They get one TTL of the session more than its hash, and so need a
-- look only once per TTL: when the deadline moves past a whole number of them since the start.
local function keep_index(life, agent)
  outlast(AGENT .. agent, life)
  longest = math.max(longest, life)
end

-- Moves the deadline of a live session to a full TTL from now; further fields and values are set with it.
-- PEXPIRE comes first: at maxmemory a script whose first write frees or keeps memory may go on, so heartbeats survive.
-- `found` has its due, started, ttl, agent and task as they were.
local function renew(id, found, ...)
  local earlier, started, ttl = tonumber(found[1]), tonumber(found[2]), tonumber(found[3])
  local agent, task, due = found[4], found[5], now + ttl
  local key, due_text = SESSION .. id, ms(due)
  redis.call('PEXPIRE', key, ms(ttl + GRACE))
  redis.call('HSET', key, 'due', due_text, ...)
  redis.call('ZADD', DEADLINES, due_text, id)
  if math.floor((earlier - started) / ttl) ~= math.floor((due - started) / ttl) then
    local life = 2 * ttl + GRACE
    if task then redis.call('PEXPIRE', TASK .. task, ms(life)) end
    keep_index(life, agent)
  end
  return due_text
end

local function count(key, member, by)
  if tonumber(redis.call('ZINCRBY', key, by, member)) <= 0 then redis.call('ZREM', key, member) end
end

local function emit(kind, reason, id, flat)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', FEED_LENGTH, '*',
    'type', kind, 'at', ms(now), 'reason', reason, 'id', id, unpack(flat))
end

-- Takes a session away: hash, indices and counts. `session` has at least its agent, trigger and task.
-- DEL comes first, so that ending works at maxmemory.
local function erase(id, session)
  local holder = session.task and redis.call('GET', TASK .. session.task)
  redis.call('ZCARD', AGENT .. session.agent)
  redis.call('DEL', SESSION .. id)
  if holder == id then redis.call('DEL', TASK .. session.task) end
  redis.call('ZREM', SESSIONS, id)
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', AGENT .. session.agent, id)
  count(AGENTS, session.agent, -1)
  count(TRIGGERS, session.trigger, -1)
end

-- Ends a session: it is taken away, and its one end event comes. `flat` is its whole hash.
-- The caller has run check_shard.
local function finish(id, flat, reason)
  erase(id, to_table(flat))
  redis.call('HINCRBY', COUNTERS, 'ended:' .. reason, 1)
  emit('session.ended', reason, id, flat)
end

-- Runs a script's operations one by one, each given as a count and as many arguments. One that fails answers
-- {'error', text} and leaves the others alone; it must not have written by then.
local function serve(operate)
  local replies, at = {}, FIRST
  while at <= #ARGV do
    local arity = tonumber(ARGV[at])
    local ok, reply = pcall(operate, unpack(ARGV, at + 1, at + arity))
    if not ok then reply = {'error', describe(reply)} end
    replies[#replies + 1] = reply
    at = at + arity + 1
  end
  if longest > 0 then
    for _, key in ipairs({SESSIONS, DEADLINES, AGENTS, TRIGGERS}) do outlast(key, longest) end
  end
  return replies
end

-- How many members of a sorted set of ids come before (score, id): a place that stays right when members come and go.
local function count_before(index, score, id)
  local before = redis.call('ZCOUNT', index, '-inf', '(' .. score)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', index, score, score)) do
    if other < id then before = before + 1 end
  end
  return before
end

