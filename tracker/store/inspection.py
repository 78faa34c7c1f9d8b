"""What an operator must know of the store: is it there, is it ours, and is it set up not to lose sessions."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoPermissionError

from tracker.errors import StoreError
from tracker.store.scripts import Scripts
from tracker.store.snapshot import timestamp

__all__ = ["Findings", "inspect", "judge", "read_info", "version_of", "watch"]

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

    if version := version_of(info):
        facts["version"] = version
    if policy := info.get("maxmemory_policy"):
        facts["maxmemoryPolicy"] = str(policy)
    if "aof_enabled" in info:
        facts["appendOnlyFile"] = str(info["aof_enabled"]) == "1"
    warnings += [warning for _, warning in judge(info)]
    return Findings(facts, tuple(warnings))


def version_of(info: Mapping[str, Any]) -> str:
    """`Redis 7.2.4` or `Valkey 8.0.1`; empty where INFO is forbidden."""
    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    return ("Valkey " if "valkey_version" in info else "Redis ") + version if version else ""


def judge(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to change of a Redis that says this of itself (INFO): the topic, and a sentence for each."""
    warnings: list[tuple[str, str]] = []

    def warn(topic: str, text: str) -> None:
        warnings.append((topic, text))

    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if version and "valkey_version" not in info and numbers < OLDEST_VERSION:
        warn("version", f"Redis {version} is too old: 6.2 or later is needed")
    policy = str(info.get("maxmemory_policy", ""))
    if policy not in ("", "noeviction"):
        warn(
            "eviction",
            f"maxmemory-policy is {policy}: Redis may throw live sessions away. Set it to noeviction "
            "(CONFIG SET maxmemory-policy noeviction, and in redis.conf)",
        )
    if "aof_enabled" in info:
        if str(info["aof_enabled"]) != "1":
            warn(
                "persistence",
                "the append-only file is off: a restart of Redis loses the latest sessions (appendonly yes)",
            )
        if info.get("aof_last_write_status") == "err" or info.get("rdb_last_bgsave_status") == "err":
            warn("persistence", "Redis cannot write to its disk: it may lose sessions, or refuse to take them")
    if not info:
        warn("set-up", "the store does not let us see its set-up (INFO is forbidden): make sure of noeviction yourself")
    return warnings


async def read_info(scripts: Scripts) -> dict[str, Any]:
    """What Redis says of itself; nothing where it may not. Raises StoreUnavailable."""
    return await _info(scripts)


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
