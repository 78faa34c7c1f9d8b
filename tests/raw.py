"""The store as Redis sees it: every key of a namespace with its type, life and content, read in one step per shard."""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.asyncio import Redis

from tracker.store.keys import Shard
from tracker.store.store import Store

__all__ = ["RawKey", "client_of", "read_now", "read_raw"]

READ = """
local readers = {
  hash = {'HGETALL'}, string = {'GET'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, stream = {'XRANGE', '-', '+'},
  list = {'LRANGE', 0, -1}, set = {'SMEMBERS'},
}
local time, rows = redis.call('TIME'), {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind = redis.call('TYPE', key)
  kind = type(kind) == 'table' and kind.ok or kind
  local reader = readers[kind]
  rows[#rows + 1] = {key, kind, redis.call('PTTL', key), redis.call(reader[1], key, unpack(reader, 2))}
end
return {tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), rows}
"""


class RawKey(NamedTuple):
    """``ttl``: ms, -1 for none. ``content``: hashes and sorted sets as a dict (of scores), else as Redis has it."""

    kind: str
    ttl: int
    content: Any


async def read_raw(store: Store) -> list[dict[str, RawKey]]:
    """For each shard: the keys by name, without the shard's prefix."""
    return [(await _read(store, shard))[1] for shard in store.scripts.shards]


async def read_now(store: Store) -> int:
    """The store's clock (ms)."""
    return (await _read(store, store.scripts.shards[0], "nothing:"))[0]


async def client_of(store: Store, shard: int = 0) -> Redis:
    """The driver's client for the server that holds a shard."""
    return (await store.scripts.servers.holder(store.scripts.shards[shard])).client


async def _read(store: Store, shard: Shard, which: str = "") -> tuple[int, dict[str, RawKey]]:
    prefix = shard.prefix + which
    client = await client_of(store, shard.number)
    now, rows = await client.eval(READ, 1, shard.declared[0], prefix)
    return now, {
        key.decode()[len(prefix) :]: RawKey(kind.decode(), ttl, _content(kind.decode(), content))
        for key, kind, ttl, content in rows
    }


def _content(kind: str, content: Any) -> Any:
    if kind == "hash":
        return dict(zip(content[::2], content[1::2], strict=True))
    if kind == "zset":
        return {member: int(float(score)) for member, score in zip(content[::2], content[1::2], strict=True)}
    if kind == "stream":
        return [(entry_id, dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in content]
    return content
