"""Examines a store as an operator would, part by part; changes nothing unless it may mend the indices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tracker.store.agreement import Agreement, agreement
from tracker.store.inspection import LEAST_SHARDS, judge, read_infos, spread, too_few, version_of
from tracker.store.keys import SCHEMA_VERSION
from tracker.store.scripts import Scripts, unfinished
from tracker.store.snapshot import timestamp

__all__ = ["Check", "Examination", "examine"]

CLOCK_SECONDS = 2
"""How far the store's clock may be from this machine's: whoever compares expiresAt with his own would be misled."""
MEMORY_SHARE = 0.85
"""How full the memory may be."""
PULSE_SECONDS = 60
"""How old the last pulse may be. It comes each second, with very many shards somewhat less often."""
TOPICS = ("version", "eviction", "persistence", "memory", "coverage", "replicas", "set-up")

State = Literal["good", "note", "problem"]


class Check(NamedTuple):
    """``note``: worth knowing, nothing to do."""

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Examination:
    """``agreement`` is None where the indices could not be looked at: ``checks`` says why."""

    checks: list[Check] = field(default_factory=list)
    agreement: Agreement | None = None

    @property
    def well(self) -> bool:
        return all(check.state != "problem" for check in self.checks) and (
            self.agreement is None or all(finding.mended for finding in self.agreement.findings)
        )


async def examine(scripts: Scripts, *, mend: bool, tell: Callable[[int], None] = lambda keys: None) -> Examination:
    """Looks at everything. Raises StoreUnavailable when the store cannot be reached, or stops answering meanwhile."""
    layout = await _layout(scripts)
    if layout.state != "good":
        return Examination([layout])
    began = time.time()
    replies = await scripts.enroll()
    ended = time.time()
    checks = [
        Check("reachable", "good", f"answers in {(ended - began) * 1000:.1f} ms"),
        layout,
        _clock(int(replies[0][3]) / 1000, began, ended),
        _pulse(replies),
        *_cluster(scripts),
        *_servers(await read_infos(scripts)),
    ]
    return Examination(checks, await agreement(scripts, mend=mend, tell=tell))


async def _layout(scripts: Scripts) -> Check:
    """Looks without recording anything, which the first script would do in a store that is not laid out."""
    shard, shards = scripts.shards[0], len(scripts.shards)
    fields: Sequence[Any] = await scripts.look(shard, "HMGET", f"{shard.prefix}schema", "version", "shards")
    if fields[0] is None:
        return Check("layout", "problem", "no tracker has ever used this namespace of this database")
    version, recorded = (field.decode(errors="replace") if field else "?" for field in fields)
    if under_way := unfinished(recorded):
        return Check("layout", "problem", under_way)
    if (version, recorded) != (str(SCHEMA_VERSION), str(shards)):
        return Check(
            "layout",
            "problem",
            f"laid out with {recorded} shards in schema version {version}, looked at with {shards} shards and version "
            f"{SCHEMA_VERSION} (--shards)",
        )
    return Check("layout", "good", f"schema version {version}, {shards} {'shard' if shards == 1 else 'shards'}")


def _clock(store: float, began: float, ended: float) -> Check:
    """All three in seconds since 1970. The store looked at its clock at some time in between."""
    ahead = store - ended if store > ended else min(store - began, 0.0)
    text = f"within {CLOCK_SECONDS} s of this machine's"
    if abs(ahead) <= CLOCK_SECONDS:
        return Check("clock", "good", text)
    text = (
        f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: times in answers are the store's"
    )
    return Check("clock", "problem", text)


def _pulse(replies: list[list[bytes]]) -> Check:
    holds = [int(reply[2]) for reply in replies if reply[2]]
    ages = [int(reply[4]) / 1000 if reply[4] else None for reply in replies]
    if holds:
        return Check("pulse", "note", f"after an outage no session expires until {timestamp(max(holds))}")
    if None in ages:
        return Check("pulse", "problem", "there never was one: is a server running?")
    oldest = max(age for age in ages if age is not None)
    if oldest > PULSE_SECONDS:
        return Check("pulse", "problem", f"the last was {oldest:.0f} s ago: is a server running?")
    return Check("pulse", "good", f"the last was {oldest:.1f} s ago")


def _cluster(scripts: Scripts) -> list[Check]:
    if not scripts.servers.several:
        return []
    shares = ", ".join(f"{name} {count}" for name, count in spread(scripts).items())
    if len(scripts.shards) < LEAST_SHARDS:
        return [Check("masters", "problem", too_few(len(scripts.shards)))]
    return [Check("masters", "good", f"shards of each: {shares}")]


def _servers(infos: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Those of each server, by its name; several that say the same say it once."""
    said: dict[Check, list[str]] = {}
    for name, info in infos.items():
        for check in _server(info):
            said.setdefault(check, []).append(name)
    return [
        check._replace(text=f"{', '.join(names)}: {check.text}") if all(names) else check
        for check, names in said.items()
    ]


def _server(info: Mapping[str, Any]) -> list[Check]:
    """Version, eviction, persistence, memory: one check for each, or what is wrong with it."""
    warnings = judge(info)
    checks = [Check(topic, "problem", text) for topic, text in warnings]
    good = {
        "version": version_of(info),
        "eviction": str(info.get("maxmemory_policy", "")),
        "persistence": "append-only file" if "aof_enabled" in info else "",
    }
    wrong = {topic for topic, _ in warnings}
    checks += [Check(topic, "good", text) for topic, text in good.items() if text and topic not in wrong]
    if "used_memory" in info:
        checks.append(_memory(info))
    return sorted(checks, key=lambda check: TOPICS.index(check.name))


def _memory(info: Mapping[str, Any]) -> Check:
    used = int(info["used_memory"])
    limit, whose = int(info.get("maxmemory") or 0), "maxmemory"
    if not limit:
        limit, whose = int(info.get("total_system_memory") or 0), "the machine's, and no maxmemory"
    if not limit:
        return Check("memory", "note", f"{_mib(used)} used, and no limit known")
    full = used > MEMORY_SHARE * limit
    text = f"{_mib(used)} used of {_mib(limit)} ({whose})"
    return Check("memory", "problem" if full else "good", text + (": creates will be refused soon" if full else ""))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
