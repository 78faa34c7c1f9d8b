"""Witness: looks at the store behind the pods' backs: at its clock while they run, at everything when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from typing import Any

from tests.audit import audit
from tests.raw import RawKey, read_now, read_raw
from tests.torture.journal import Journal
from tests.torture.plan import Plan
from tracker.errors import StoreError
from tracker.settings import Settings
from tracker.store.keys import Shard
from tracker.store.store import Store, open_store

__all__ = ["testify", "watch_clocks"]

LOOK_SECONDS = 0.1
LOOK_TIMEOUT = 1.0
FIELDS = ("pulse", "held", "hold_end", "swept")


async def watch_clocks(plan: Plan, journal: Journal) -> None:
    """Notes each shard's pulse, hold and latest sweep whenever they change, until cancelled."""
    settings = Settings(
        store_url=plan.store_url, namespace=plan.namespace, shards=plan.shards, store_timeout_seconds=LOOK_TIMEOUT
    )
    async with open_store(settings) as store, asyncio.TaskGroup() as group:
        for shard in store.scripts.shards:
            group.create_task(_watch_clock(store, shard, journal))


async def _watch_clock(store: Store, shard: Shard, journal: Journal) -> None:
    known: list[int | None] | None = None
    while True:
        with contextlib.suppress(StoreError):
            values = await store.scripts.look(shard, "HMGET", shard.prefix + "clock", *FIELDS)
            clock = [None if value is None else int(value) for value in values]
            if clock[0] is not None and known != clock:
                known = clock
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
