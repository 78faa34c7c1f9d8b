"""Moving time without sleeping: the store's clock cannot be set, so everything that it is compared with moves back.

Works on any backend and with any number of processes, for what moves is the data. Each shard moves in one step. What
stays where it was: the feed (its ids are positions) and the time inside session ids.
"""

from __future__ import annotations

from tests.raw import client_of
from tracker.store.store import Store

__all__ = ["advance", "outage"]

SHIFT = """
local prefix, ms, shift_pulse = ARGV[1], tonumber(ARGV[2]), ARGV[3] == 'pulse'
local timed = {sessions = true, deadlines = true, hooks = true, parked = true}
local function earlier(moment) return string.format('%.0f', tonumber(moment) - ms) end
local function shift_fields(key, fields)
  for _, field in ipairs(fields) do
    local moment = redis.call('HGET', key, field)
    if moment then redis.call('HSET', key, field, earlier(moment)) end
  end
end
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local name, left = string.sub(key, #prefix + 1), redis.call('PTTL', key)
  if left >= 0 and left <= ms then
    redis.call('DEL', key)
  else
    if left >= 0 then redis.call('PEXPIRE', key, left - ms) end
    if name == 'clock' then
      shift_fields(key, {'held', 'hold_end', 'resumed', shift_pulse and 'swept' or nil, shift_pulse and 'pulse' or nil})
    elseif string.find(name, '^session:') or string.find(name, '^idem:') then
      shift_fields(key, {'started', 'due', 'stop'})
    elseif timed[name] or string.find(name, '^agent:') then
      local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
      for i = 1, #entries, 2 do redis.call('ZADD', key, earlier(entries[i + 1]), entries[i]) end
    end
  end
end
return redis.call('HEXISTS', prefix .. 'clock', 'pulse')
"""


async def advance(store: Store, seconds: float) -> None:
    """Lets time pass while pods are up: they send their pulse, so an outage that was is over, and this is none.

    Nothing is swept meanwhile: what expires stays until somebody sweeps. A hold runs on, and ends.
    """
    if await _shift(store, 0, ""):
        await store.sweeper.pulse()
    await _shift(store, seconds, "")


async def outage(store: Store, seconds: float) -> None:
    """Lets time pass while no pod is up (or Redis is down): the pulse grows old with everything else."""
    assert await _shift(store, seconds, "pulse"), "no pod was ever up: sweep once before the outage"


async def _shift(store: Store, seconds: float, what: str) -> bool:
    """Whether each shard has a pulse."""
    # No deadline: a test may move thousands of sessions.
    pulses = [
        await (await client_of(store, shard.number)).eval(
            SHIFT, 1, shard.declared[0], shard.prefix, round(seconds * 1000), what
        )
        for shard in store.scripts.shards
    ]
    return all(pulses)
