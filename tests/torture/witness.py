"""Witness: looks at the store behind the pods' backs: at its clock while they run, at everything when they are gone."""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.audit import audit
from tests.raw import RawKey, read_now, read_raw
from tests.torture.journal import Journal
from tests.torture.plan import Plan
from tracker.settings import Settings
from tracker.store.keys import Shard
from tracker.store.store import open_store

__all__ = ["testify", "watch_clocks"]

LOOK_SECONDS = 0.1
FIELDS = ("pulse", "held", "hold_end", "swept")


async def watch_clocks(plan: Plan, journal: Journal) -> None:
    """Notes each shard's pulse, hold and latest sweep whenever they change, until cancelled."""
    shards = [Shard(plan.namespace, number) for number in range(plan.shards)]
    known: dict[int, list[int | None]] = {}
    async with Redis.from_url(
        plan.store_url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0), protocol=2
    ) as client:
        while True:
            for shard in shards:
                try:
                    values = await client.hmget(shard.prefix + "clock", FIELDS)
                except (RedisError, OSError):
                    continue
                clock = [None if value is None else int(value) for value in values]
                if clock[0] is not None and known.get(shard.number) != clock:
                    known[shard.number] = clock
                    journal.write({"shard": shard.number, **dict(zip(FIELDS, clock, strict=True))})
            await asyncio.sleep(LOOK_SECONDS)


async def testify(plan: Plan) -> str:
    """What is in the store, and what the audit of its raw keys says, as JSON."""
    settings = Settings(
        store_url=plan.store_url, namespace=plan.namespace, shards=plan.shards, store_timeout_seconds=30
    )
    async with open_store(settings) as store:
        now = await read_now(store)
        raw = await read_raw(store)
        verdict = ""
        try:
            await audit(store)
        except (AssertionError, KeyError) as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            verdict = f"{type(error).__name__} at `{line}`: {str(error)[:300]}"
    shards = [{"events": _events(keys), "living": _living(keys)} for keys in raw]
    return json.dumps({"now": now, "audit": verdict, "shards": shards})


def _events(keys: dict[str, RawKey]) -> list[dict[str, Any]]:
    """In order; the whole feed."""
    entries = keys["events"].content if "events" in keys else []
    return [
        {
            "position": position.decode(),
            "type": fields[b"type"].decode(),
            "at": int(fields[b"at"]),
            "reason": fields[b"reason"].decode(),
            "id": fields[b"id"].decode(),
            "agent": fields.get(b"agent", b"").decode(),
            "task": fields[b"task"].decode() if b"task" in fields else None,
            "runtime": fields[b"runtime"].decode() if b"runtime" in fields else None,
            "ttl": int(fields.get(b"ttl", 0)),
            "tag": json.loads(fields.get(b"meta", b"{}")).get("tag"),
        }
        for position, fields in entries
    ]


def _living(keys: dict[str, RawKey]) -> dict[str, int]:
    """Deadlines (ms) of what is there, by id."""
    return {
        name.removeprefix("session:"): int(key.content[b"due"])
        for name, key in keys.items()
        if name.startswith("session:")
    }
