"""What an operator must know of the store: is it there, is it ours, and is it set up not to lose sessions."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoPermissionError

from tracker.errors import StoreError
from tracker.store.scripts import Scripts
from tracker.store.snapshot import timestamp

__all__ = ["Findings", "inspect", "watch"]

logger = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
WATCH_SECONDS = 60


@dataclass(frozen=True)
class Findings:
    """``facts`` by name, as far as the store lets us look; ``warnings``: a sentence for each thing to change."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


async def inspect(scripts: Scripts, *, embedded: bool) -> Findings:
    """Checks layout and set-up. Raises StoreUnavailable or SchemaMismatch; a forbidden INFO or CONFIG is tolerated."""
    async with scripts.one_deadline():
        replies = await scripts.enroll()
        info = {} if embedded else await _info(scripts)
    holds = [int(reply[2]) for reply in replies if reply[2]]
    facts: dict[str, Any] = {"kind": "memory" if embedded else "redis", "shards": len(replies)}
    warnings: list[str] = []
    if holds:
        facts["heldUntil"] = timestamp(max(holds))
        warnings.append(f"after an outage no session expires until {facts['heldUntil']}")
    if embedded:
        warnings.append("the store is in memory: sessions are gone when this process stops")
        return Findings(facts, tuple(warnings))

    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if version:
        facts["version"] = ("Valkey " if "valkey_version" in info else "Redis ") + version
        if "valkey_version" not in info and numbers < OLDEST_VERSION:
            warnings.append(f"Redis {version} is too old: 6.2 or later is needed")
    policy = str(info.get("maxmemory_policy", ""))
    if policy:
        facts["maxmemoryPolicy"] = policy
        if policy != "noeviction":
            warnings.append(
                f"maxmemory-policy is {policy}: Redis may throw live sessions away. Set it to noeviction "
                "(CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
            )
    if "aof_enabled" in info:
        facts["appendOnlyFile"] = str(info["aof_enabled"]) == "1"
        if not facts["appendOnlyFile"]:
            warnings.append(
                "the append-only file is off: a restart of Redis loses the latest sessions (appendonly yes)"
            )
        if info.get("aof_last_write_status") == "err" or info.get("rdb_last_bgsave_status") == "err":
            warnings.append("Redis cannot write to its disk: it may lose sessions, or refuse to take them")
    if not info:
        warnings.append(
            "the store does not let us see its set-up (INFO is forbidden): make sure of noeviction yourself"
        )
    return Findings(facts, tuple(warnings))


async def _info(scripts: Scripts) -> dict[str, Any]:
    try:
        info = await scripts.command("INFO")
    except StoreError as error:
        if isinstance(error.__cause__, NoPermissionError):
            return {}
        raise
    return info if isinstance(info, dict) else {}


async def watch(scripts: Scripts, *, embedded: bool) -> None:
    """Looks every minute until cancelled, and logs each warning when it first appears."""
    known: tuple[str, ...] = ()
    while True:
        try:
            findings = await inspect(scripts, embedded=embedded)
        except StoreError:
            pass  # the sweeper tells of a store that is away
        else:
            for warning in findings.warnings:
                if warning not in known:
                    logger.warning("STORE: %s", warning)
            known = findings.warnings
        await asyncio.sleep(WATCH_SECONDS)
