"""What an operator must know of the store: is it there, is it ours, and is it set up not to lose sessions."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoPermissionError

from tracker.errors import StoreError, StoreUnavailable
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, together
from tracker.store.server import Server
from tracker.store.snapshot import timestamp

__all__ = [
    "LEAST_SHARDS",
    "Findings",
    "inspect",
    "judge",
    "judge_all",
    "read_infos",
    "spread",
    "too_few",
    "version_of",
    "watch",
]

logger = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
LEAST_SHARDS = 16
"""On a cluster: fewer would not spread evenly over three masters."""
WATCH_SECONDS = 60


@dataclass(frozen=True)
class Findings:
    """``facts`` by name, as far as the store lets us look; ``warnings``: a sentence for each thing to change."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


async def inspect(scripts: Scripts, *, embedded: bool) -> Findings:
    """Checks layout and set-up. Raises StoreUnavailable or SchemaMismatch; a forbidden INFO or CONFIG is tolerated.

    On a cluster shards that cannot be reached are a warning, as long as others can: what concerns those goes on.
    """
    async with scripts.one_deadline():
        replies = await scripts.survey()
        seen = {number: reply for number, reply in enumerate(replies) if not isinstance(reply, StoreUnavailable)}
        infos = await _infos(scripts, [scripts.shards[number] for number in seen])
    holds = [int(reply[2]) for reply in seen.values() if reply[2]]
    kind = "memory" if embedded else "cluster" if scripts.servers.several else "redis"
    facts: dict[str, Any] = {"kind": kind, "shards": len(replies)}
    warnings: list[str] = []
    if lost := [str(number) for number in range(len(replies)) if number not in seen]:
        errors = [reply for reply in replies if isinstance(reply, StoreUnavailable)]
        warnings.append(f"shards out of reach: {', '.join(lost)}: {errors[0]}")
    if holds:
        facts["heldUntil"] = timestamp(max(holds))
        warnings.append(f"after an outage no session expires until {facts['heldUntil']}")
    if embedded:
        warnings.append("the store is in memory: sessions are gone when this process stops")
        return Findings(facts, tuple(warnings))

    known = [info for info in infos.values() if info]
    if versions := sorted({version_of(info) for info in known} - {""}):
        facts["version"] = ", ".join(versions)
    if policies := sorted({str(info["maxmemory_policy"]) for info in known if info.get("maxmemory_policy")}):
        facts["maxmemoryPolicy"] = ", ".join(policies)
    if any("aof_enabled" in info for info in known):
        facts["appendOnlyFile"] = all(str(info.get("aof_enabled")) == "1" for info in known)
    if scripts.servers.several:
        facts["masters"] = spread(scripts)
        if len(replies) < LEAST_SHARDS:
            warnings.append(too_few(len(replies)))
    warnings += [text for _, text in judge_all(infos)]
    return Findings(facts, tuple(warnings))


def spread(scripts: Scripts) -> dict[str, int]:
    """How many shards each master of a cluster holds."""
    servers = [server for shard in scripts.shards if (server := scripts.servers.known(shard)) is not None]
    return dict(sorted(Counter(server.name for server in servers).items()))


def too_few(shards: int) -> str:
    return (
        f"{shards} {'shard does' if shards == 1 else 'shards do'} not spread over the masters of a cluster: "
        f"TRACKER_SHARDS should be {LEAST_SHARDS} or more"
    )


def judge_all(infos: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """``judge`` of several servers, each by its name; empty for one that is alone."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, info in infos.items():
        for warning in judge(info):
            found.setdefault(warning, []).append(name)
    return [(topic, f"{', '.join(names)}: {text}" if all(names) else text) for (topic, text), names in found.items()]


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
    if info.get("require_full_coverage"):
        warn(
            "coverage",
            "cluster-require-full-coverage is yes: while one master is lost all of them refuse to work. Set it to no "
            "(CONFIG SET cluster-require-full-coverage no, and in redis.conf)",
        )
    if "require_full_coverage" in info and str(info.get("connected_slaves")) == "0":
        warn("replicas", "it has no replica: when it fails nobody takes over, and its sessions are gone")
    if not info:
        warn("set-up", "the store does not let us see its set-up (INFO is forbidden): make sure of noeviction yourself")
    return warnings


async def read_infos(scripts: Scripts) -> dict[str, dict[str, Any]]:
    """What each server says of itself, by its name; nothing where we may not ask. Raises StoreUnavailable."""
    return await _infos(scripts, scripts.shards)


async def _infos(scripts: Scripts, shards: Iterable[Shard]) -> dict[str, dict[str, Any]]:
    servers = list(dict.fromkeys([await scripts.servers.holder(shard) for shard in shards]))
    infos = await together(_info(scripts, server) for server in servers)
    return {server.name: info for server, info in zip(servers, infos, strict=True)}


async def _info(scripts: Scripts, server: Server) -> dict[str, Any]:
    info = None if server.embedded else await _if_allowed(scripts.ask(server, "INFO"))
    if not isinstance(info, dict):
        return {}
    if scripts.servers.several:
        setting = await _if_allowed(scripts.ask(server, "CONFIG", "GET", "cluster-require-full-coverage"))
        info["require_full_coverage"] = bool(setting) and setting[-1] == b"yes"
    return info


async def _if_allowed(question: Awaitable[Any]) -> Any:
    try:
        return await question
    except StoreError as error:
        if isinstance(error.__cause__, NoPermissionError):
            return None
        raise


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
