"""Inspection: what an operator is told, and that nothing forbidden stands in its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clockwork import advance, outage
from tests.patience import until
from tests.redis_server import RedisServer, running_redis
from tests.store.puppet import running_puppet
from tests.store.wire import a_run
from tracker.errors import SchemaMismatch, StoreUnavailable
from tracker.settings import Settings
from tracker.store import inspection
from tracker.store.ending import end
from tracker.store.scripts import Scripts
from tracker.store.server import Server
from tracker.store.store import Store, open_store, verify

REDIS = pytest.mark.parametrize("backend", ["redis"])


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.mark.parametrize("backend", ["memory"])
async def test_the_embedded_store_says_that_it_forgets(store: Store) -> None:
    findings = await store.inspect()
    assert findings.facts == {"kind": "memory", "shards": 1}
    assert len(findings.warnings) == 1
    assert "in memory" in findings.warnings[0]


@REDIS
@pytest.mark.parametrize("shards", [1, 4])
async def test_a_redis_tells_its_version_policy_and_persistence(store: Store) -> None:
    findings = await store.inspect()
    assert findings.facts["kind"] == "redis"
    assert findings.facts["shards"] == len(store.scripts.shards)
    assert findings.facts["version"].startswith(("Redis ", "Valkey "))
    assert findings.facts["maxmemoryPolicy"] == "noeviction"
    assert findings.facts["appendOnlyFile"] is False
    assert [warning for warning in findings.warnings if "append-only file is off" in warning] == list(findings.warnings)


async def test_a_redis_that_may_throw_sessions_away_is_a_warning(own_redis: RedisServer) -> None:
    async with open_store(Settings(store_url=own_redis.url)) as store:
        await store.scripts.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        await store.scripts.command("CONFIG", "SET", "appendonly", "yes")
        findings = await store.inspect()
    assert findings.facts["maxmemoryPolicy"] == "volatile-lru"
    assert findings.facts["appendOnlyFile"] is True
    assert len(findings.warnings) == 1
    assert "maxmemory-policy is volatile-lru" in findings.warnings[0]
    assert "CONFIG SET maxmemory-policy noeviction" in findings.warnings[0]


async def test_where_looking_is_forbidden_the_store_works_and_says_what_to_check(own_redis: RedisServer) -> None:
    async with open_store(Settings(store_url=own_redis.url)) as admin:
        await admin.scripts.command(
            "ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all", "-@dangerous", "-info", "-config"
        )
    guest = own_redis.url.replace("redis://", "redis://guest:pw@")
    async with open_store(Settings(store_url=guest)) as store:
        assert await store.sessions.create(a_run())
        findings = await store.inspect()
    assert findings.facts == {"kind": "redis", "shards": 1}
    assert len(findings.warnings) == 1
    assert "INFO is forbidden" in findings.warnings[0]


@pytest.mark.parametrize(
    ("info", "version", "too_old"),
    [
        ({"redis_version": "6.0.16"}, "Redis 6.0.16", True),
        ({"redis_version": "5.0.14"}, "Redis 5.0.14", True),
        ({"redis_version": "6.2.0"}, "Redis 6.2.0", False),
        ({"redis_version": "10.1.0"}, "Redis 10.1.0", False),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "Valkey 8.0.1", False),
    ],
)
async def test_a_version_that_is_too_old_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], version: str, too_old: bool
) -> None:
    async def look(scripts: Scripts, server: Server) -> dict[str, Any]:
        return info

    monkeypatch.setattr(inspection, "_info", look)
    async with running_puppet() as puppet, open_store(Settings(store_url=puppet.url)) as store:
        findings = await store.inspect()
    assert findings.facts["version"] == version
    assert any("too old" in warning for warning in findings.warnings) == too_old


async def test_a_disk_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(scripts: Scripts, server: Server) -> dict[str, Any]:
        return {"redis_version": "7.2.0", "aof_enabled": 1, "aof_last_write_status": "err"}

    monkeypatch.setattr(inspection, "_info", look)
    async with running_puppet() as puppet, open_store(Settings(store_url=puppet.url)) as store:
        findings = await store.inspect()
    assert [warning for warning in findings.warnings if "cannot write to its disk" in warning]


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_hold_is_told_with_its_end(store: Store) -> None:
    await store.sweeper.sweep()
    await outage(store, 100)
    await store.sweeper.sweep()
    findings = await store.inspect()
    (warning,) = [warning for warning in findings.warnings if "outage" in warning]
    assert findings.facts["heldUntil"] in warning
    await advance(store, 101)
    findings = await store.inspect()
    assert "heldUntil" not in findings.facts
    assert not [warning for warning in findings.warnings if "outage" in warning]


async def test_verify_looks_before_anything_starts(redis_server: RedisServer, namespace: str) -> None:
    settings = Settings(store_url=redis_server.url, namespace=namespace)
    assert (await verify(settings)).facts["kind"] == "redis"
    with pytest.raises(SchemaMismatch):
        await verify(settings.model_copy(update={"shards": 2}))
    with pytest.raises(StoreUnavailable):
        await verify(Settings(store_url="redis://127.0.0.1:1/0"))


@REDIS
async def test_watching_logs_a_warning_when_it_first_appears_and_again_when_it_comes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspection, "WATCH_SECONDS", 0)
    policies = ["noeviction"] * 3 + ["allkeys-lru"] * 3 + ["noeviction"] * 3 + ["allkeys-lru"] * 3
    looks = iter(policies)
    done = asyncio.Event()

    async def look(scripts: Scripts, server: Server) -> dict[str, Any]:
        policy = next(looks, None)
        if policy is None:
            done.set()
        return {"redis_version": "7.2.0", "aof_enabled": 1, "maxmemory_policy": policy or "noeviction"}

    monkeypatch.setattr(inspection, "_info", look)
    with caplog.at_level(logging.WARNING):
        watching = asyncio.create_task(store.watch())
        await asyncio.wait_for(done.wait(), 20)
        await end([watching])
    warnings = [record.getMessage() for record in caplog.records if "maxmemory-policy" in record.getMessage()]
    assert len(warnings) == 2
    assert all(warning.startswith("STORE: ") for warning in warnings)


async def test_watching_outlasts_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspection, "WATCH_SECONDS", 0)
    with running_redis(tmp_path) as first:
        port = first.port
        async with open_store(Settings(store_url=first.url, store_timeout_seconds=0.2)) as store:
            first.kill()
            watching = asyncio.create_task(store.watch())
            await asyncio.sleep(0.05)
            with running_redis(tmp_path, port=port), caplog.at_level(logging.WARNING):

                async def warned() -> bool:
                    return any("append-only file is off" in record.getMessage() for record in caplog.records)

                await until(warned)
            await end([watching])
