"""The scripts: what each file promises in its header, that their cache may go, and the layout they enroll in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import pytest
from redis.exceptions import NoScriptError

from tests.audit import audit
from tests.conftest import OpenPod
from tests.patience import until
from tests.raw import client_of, read_raw
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tests.sweeping import sweeping
from tracker.errors import SchemaMismatch, StoreFault
from tracker.models import Target
from tracker.store.scripts import NAMES, together
from tracker.store.store import Store

LUA = {
    entry.name.removesuffix(".lua"): entry.read_text()
    for entry in (resources.files("tracker.store") / "lua").iterdir()
    if entry.name.endswith(".lua")
}
TASK = Target.task("t1")

CALLS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "create": lambda store: store.sessions.create(a_run(onConflict="replace"), "key"),
    "get": lambda store: store.sessions.get(TASK),
    "heartbeat": lambda store: store.sessions.heartbeat(TASK),
    "heartbeat_all": lambda store: store.sessions.heartbeat_all([TASK, Target.task("t2")]),
    "provider": lambda store: store.sessions.set_provider_session(TASK, "p"),
    "stop": lambda store: store.sessions.request_stop(TASK),
    "delete": lambda store: store.sessions.delete(TASK),
    "sweep": lambda store: store.sweeper.sweep(),
    "cleanup": lambda store: store.sweeper.cleanup(a_cleanup(agentId="a1")),
    "page": lambda store: store.listing.page(a_list(), 10),
    "events": lambda store: store.feed.page(some_events()),
    "stats": lambda store: store.stats(),
    "inspect": lambda store: store.inspect(),
}


# --- the files --------------------------------------------------------------------------------------------------------


def test_every_script_is_named_once() -> None:
    assert sorted(LUA.keys() - {"prelude"}) == sorted(NAMES) == sorted(set(NAMES))


@pytest.mark.parametrize("name", sorted(LUA))
def test_every_script_begins_with_what_it_takes_answers_and_changes(name: str) -> None:
    header: list[str] = []
    for line in LUA[name].splitlines():
        if not line.startswith("--"):
            break
        header.append(line)
    text = "\n".join(header)
    assert re.match(r"-- [A-Z].*\.", header[0]), "the first line says in a sentence what it is for"
    if name == "prelude":
        assert re.search("^-- KEYS  ", text, re.MULTILINE)
        assert re.search("^-- ARGV  ", text, re.MULTILINE)
        return
    takes = re.findall(r"ARGV\[(\d+)\]", LUA[name])
    if "serve(" in LUA[name]:
        assert re.search("^-- op      [a-z]", text, re.MULTILINE)
    elif takes:
        for number in {number for number in takes if int(number) >= 4}:
            assert re.search(rf"\b{number}(\.\.\.)? [a-z]", text), f"the header does not tell what ARGV[{number}] is"
    assert re.search(r"^-- reply   \S", text, re.MULTILINE)
    changes = re.search(r"'(SET|HSET|ZADD|DEL|PEXPIRE|XADD|ZREM)'|finish\(|erase\(|renew\(|emit\(", LUA[name])
    assert bool(re.search(r"^-- effects \S", text, re.MULTILINE)) == bool(changes), (
        "effects are told where there are any"
    )


def globals_set_in(source: str) -> set[str]:
    """Names that a script assigns to without having declared them anywhere as local."""
    source = re.sub(r"--[^\n]*", "", source)
    source = re.sub(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", "''", source)
    declared: set[str] = set()
    for names in re.findall(r"\blocal\s+(?!function)([\w, ]+)|\bfor\s+([\w, ]+?)\s+in\b|\bfor\s+(\w+)\s*=", source):
        declared |= set(re.findall(r"\w+", " ".join(names)))
    declared |= set(re.findall(r"\blocal\s+function\s+(\w+)", source))
    for parameters in re.findall(r"\bfunction\b[^(]*\(([^)]*)\)", source):
        declared |= set(re.findall(r"\w+", parameters))
    statement = r"(?:^|;|\bthen\b|\belse\b|\bdo\b)[ \t]*"
    assigned = set()
    for names in re.findall(statement + r"(\w+(?:\s*,\s*\w+)*)\s*=(?!=)", source, re.MULTILINE):
        assigned |= set(re.findall(r"\w+", names))
    assigned |= set(re.findall(statement + r"function\s+(\w+)", source, re.MULTILINE))
    return assigned - declared


@pytest.mark.parametrize("name", NAMES)
def test_no_script_sets_a_global(name: str) -> None:
    """On the embedded store one global would break every later script."""
    assert globals_set_in(LUA["prelude"] + LUA[name]) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1", {"x"}),
        ("local x\nx, y = 1, 2", {"y"}),
        ("if a == 1 then b = 2 end", {"b"}),
        ("function f() end", {"f"}),
        ("local function f(a) a = 1 end\nfor i, v in ipairs(t) do i = v end -- z = 1\nlocal s = 'q = 1'", set()),
    ],
)
def test_the_search_for_globals_finds_them(source: str, found: set[str]) -> None:
    assert globals_set_in(source) == found


def test_the_clock_is_read_in_one_place_only() -> None:
    """Before Redis 7.2 TIME moves inside a script."""
    assert sum(source.count("'TIME'") for source in LUA.values()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_script_searches_the_key_space(name: str) -> None:
    assert not re.search(r"'(KEYS|SCAN|FLUSHALL|FLUSHDB)'", LUA["prelude"] + LUA[name])


# --- the script cache -------------------------------------------------------------------------------------------------


async def forget_scripts(store: Store) -> None:
    for server in await store.scripts.servers.all():
        await server.client.script_flush()


@pytest.mark.parametrize("call", CALLS)
async def test_a_flush_of_the_script_cache_goes_unnoticed(store: Store, call: str) -> None:
    await store.sessions.create(a_run())
    await forget_scripts(store)
    await CALLS[call](store)
    await audit(store)


async def test_scripts_are_called_by_digest_once_redis_knows_them(store: Store) -> None:
    await store.sessions.create(a_run())
    await store.sessions.get(TASK)
    client = await client_of(store)
    assert all(await client.script_exists(digest_of(store, "create"), digest_of(store, "read")))
    await forget_scripts(store)
    with pytest.raises(NoScriptError):
        await client.evalsha(digest_of(store, "read"), 0)


def digest_of(store: Store, name: str) -> str:
    return store.scripts._scripts[name].digest


async def test_flushes_amid_traffic_lose_and_repeat_nothing(store: Store, open_pod: OpenPod) -> None:
    async def run(pod: Store, number: int) -> None:
        task = Target.task(f"t{number}")
        assert (await pod.sessions.create(a_run(task.value))).outcome == "created"
        assert await pod.sessions.heartbeat(task)
        assert await pod.sessions.set_provider_session(task, "p")
        if number % 2:
            assert await pod.sessions.delete(task)

    async def flush() -> None:
        for _ in range(50):
            await forget_scripts(store)

    async with open_pod() as pod:
        await together([flush(), *(run((store, pod)[number % 2], number) for number in range(100))])
    assert await audit(store) == 50


# --- the layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
async def test_a_pod_with_another_shard_count_touches_nothing(store: Store, open_pod: OpenPod, call: str) -> None:
    await store.sessions.create(a_run())
    before = (await read_raw(store))[0]["events"]
    async with open_pod(shards=4) as other:
        with pytest.raises(SchemaMismatch, match=r"1 shards.*TRACKER_SHARDS=1"):
            await CALLS[call](other)
        assert (await read_raw(other))[1:] == [{}] * 3
    assert (await read_raw(store))[0]["events"] == before


@pytest.mark.parametrize("shards", [4])
async def test_a_pod_with_fewer_shards_is_refused_too(store: Store, open_pod: OpenPod) -> None:
    await store.sessions.create(a_run())
    async with open_pod(shards=1) as other:
        with pytest.raises(SchemaMismatch, match="4 shards"):
            await other.sessions.get(TASK)


async def test_a_pod_of_another_schema_version_is_refused(
    store: Store, open_pod: OpenPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.sessions.create(a_run())
    monkeypatch.setattr("tracker.store.scripts.SCHEMA_VERSION", 2)
    async with open_pod() as newer:
        for _ in range(2):
            with pytest.raises(SchemaMismatch, match="schema version 1"):
                await newer.sessions.get(TASK)
    monkeypatch.undo()
    await store.inspect()


@pytest.mark.parametrize("shards", [1, 4])
async def test_the_layout_is_recorded_in_every_shard(store: Store) -> None:
    await store.inspect()
    for raw in await read_raw(store):
        assert raw["schema"].content == {b"version": b"1", b"shards": b"%d" % len(store.scripts.shards)}
        assert raw["schema"].ttl == -1


@pytest.mark.parametrize("shards", [1, 4])
async def test_an_emptied_store_is_enrolled_in_again(store: Store) -> None:
    await store.sessions.create(a_run())
    for shard, raw in zip(store.scripts.shards, await read_raw(store), strict=True):
        for name in raw:
            await store.scripts.command("DEL", shard.prefix + name, shard=shard)

    async def enrolled_and_swept() -> bool:
        return all({"schema", "clock"} <= raw.keys() for raw in await read_raw(store))

    async with sweeping(store):
        await until(enrolled_and_swept)
    assert await store.sessions.get(TASK) is None
    assert (await store.sessions.create(a_run())).outcome == "created"
    assert await audit(store) == 1


async def test_a_pod_notices_a_store_that_was_laid_out_anew(store: Store) -> None:
    await store.sessions.create(a_run())
    await store.scripts.command("HSET", store.scripts.shards[0].prefix + "schema", "shards", "2")
    with pytest.raises(SchemaMismatch):
        await store.inspect()
    with pytest.raises(SchemaMismatch):
        await store.sessions.get(TASK)


@pytest.mark.parametrize("shards", [4])
async def test_first_calls_at_once_are_all_answered(store: Store) -> None:
    """Calls that nothing coalesces, from a pod that has not yet looked at the layout."""
    answers = await asyncio.gather(*(store.stats() for _ in range(200)))
    assert len(answers) == 200


async def test_an_unknown_command_is_a_fault(store: Store) -> None:
    with pytest.raises(StoreFault):
        await store.scripts.command("NOSUCHCOMMAND")


# --- together ---------------------------------------------------------------------------------------------------------


async def test_together_gives_results_in_order() -> None:
    async def slow() -> str:
        await asyncio.sleep(0)
        return "slow"

    async def fast() -> str:
        return "fast"

    assert await together([slow(), fast()]) == ["slow", "fast"]


async def test_together_waits_for_all_before_it_raises() -> None:
    done: list[str] = []

    async def fails() -> None:
        raise StoreFault("first")

    async def works() -> None:
        await asyncio.sleep(0)
        done.append("work")

    with pytest.raises(StoreFault, match="first"):
        await together([fails(), works()])
    assert done == ["work"]
