"""Hashes: many at once, each in its place; and nobody gets the values of another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic_core import from_json

from tests.clockwork import advance
from tests.redis_server import running_redis
from tests.store.wire import ODD_TEXTS, a_run
from tracker.errors import StoreFault, StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.hashes import Hashes
from tracker.store.snapshot import FIELDS, Values, quoting, write
from tracker.store.store import Store, open_store

NOBODY = b"0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10"
TIMEOUT = 0.3
SLACK = 0.7


@pytest.fixture
def hashes(store: Store, settings: Settings) -> Hashes:
    return Hashes(store.scripts, embedded=settings.in_memory)


async def make(store: Store, count: int) -> list[bytes]:
    """The ids of sessions whose agent is named by their number."""
    created = await asyncio.gather(*(store.sessions.create(a_run(f"t{n}", str(n))) for n in range(count)))
    return [one.session["id"].encode() for one in created]


def agents(rows: list[Values]) -> list[str | None]:
    found = [row[FIELDS.index("agent")] for row in rows]
    return [None if agent is None else agent.decode() for agent in found]


async def test_no_ids_have_no_values(store: Store, hashes: Hashes) -> None:
    assert await hashes.read(store.scripts.shards[0], []) == []


@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_values_come_in_the_order_of_the_ids(store: Store, hashes: Hashes, count: int) -> None:
    ids = await make(store, count)
    shard = store.scripts.shards[0]
    assert agents(await hashes.read(shard, ids)) == [str(number) for number in range(count)]
    assert agents(await hashes.read(shard, ids[::-1])) == [str(number) for number in reversed(range(count))]


async def test_values_are_what_a_session_is_built_of(store: Store, hashes: Hashes) -> None:
    texts = "".join(ODD_TEXTS.values())[:512]
    await store.sessions.create(a_run("t1", texts, metadata={"k": texts}, taskDescription="\r\n" * 8000))
    await store.sessions.heartbeat(Target.task("t1"), progress="")
    await store.sessions.set_provider_session(Target.task("t1"), texts)
    await store.sessions.request_stop(Target.task("t1"))
    session = await store.sessions.get(Target.task("t1"))
    assert session is not None
    (values,) = await hashes.read(store.scripts.shards[0], [session["id"].encode()])
    assert from_json(write(session["id"].encode(), values)) == session


async def test_who_is_gone_has_no_values_and_takes_nobodys_place(store: Store, hashes: Hashes) -> None:
    first, second = await make(store, 2)
    rows = await hashes.read(store.scripts.shards[0], [first, NOBODY, second, NOBODY])
    assert agents(rows) == ["0", None, "1", None]
    assert set(rows[1]) == {None}


async def test_many_readers_at_once_get_their_own(store: Store, hashes: Hashes) -> None:
    ids = await make(store, 200)
    shard = store.scripts.shards[0]
    chunks = [ids[number : number + 7] for number in range(0, 200, 3)]
    answers = await asyncio.gather(*(hashes.read(shard, chunk) for chunk in chunks))
    for chunk, rows in zip(chunks, answers, strict=True):
        assert agents(rows) == [str(ids.index(session_id)) for session_id in chunk]


async def test_a_reader_that_leaves_disturbs_nobody(store: Store, hashes: Hashes) -> None:
    ids = await make(store, 50)
    shard = store.scripts.shards[0]
    for turns in range(25):
        leaving = asyncio.create_task(hashes.read(shard, ids))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        assert agents(await hashes.read(shard, ids[turns : turns + 2])) == [str(turns), str(turns + 1)]
        await asyncio.gather(leaving, return_exceptions=True)


async def test_a_key_of_the_wrong_type_is_a_fault_and_shifts_nobodys_values(store: Store, hashes: Hashes) -> None:
    ids = await make(store, 10)
    shard = store.scripts.shards[0]
    await store.scripts.command("DEL", f"{shard.prefix}session:{ids[4].decode()}")
    await store.scripts.command("RPUSH", f"{shard.prefix}session:{ids[4].decode()}", "planted")
    with pytest.raises(StoreFault):
        await hashes.read(shard, ids)
    others = ids[:4] + ids[5:]
    assert agents(await hashes.read(shard, others)) == [str(ids.index(session_id)) for session_id in others]


async def test_what_is_no_text_is_shown_as_such_and_disturbs_nobody(store: Store, hashes: Hashes) -> None:
    """Only somebody else can have written it."""
    session_id, other = await make(store, 2)
    shard = store.scripts.shards[0]
    await store.scripts.command("HSET", f"{shard.prefix}session:{session_id.decode()}", "about", b"a\xff")
    session = await store.sessions.get(Target.id(session_id.decode()))
    assert session is not None
    assert session["taskDescription"] == "a\ufffd"
    values, _ = rows = await hashes.read(shard, [session_id, other])
    assert from_json(write(session_id, values, quoting(rows))) == session
    assert agents(rows) == ["0", "1"]


async def test_expired_ones_still_have_their_values(store: Store, hashes: Hashes) -> None:
    """Whoever reads them judges by their deadline."""
    ids = await make(store, 1)
    await advance(store, 1801)
    assert agents(await hashes.read(store.scripts.shards[0], ids)) == ["0"]


async def test_a_frozen_store_is_given_up_in_time_and_read_again_when_it_is_back(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        async with open_store(Settings(store_url=server.url, store_timeout_seconds=TIMEOUT)) as store:
            ids = await make(store, 10)
            shard = store.scripts.shards[0]
            hashes = Hashes(store.scripts, embedded=False)
            await hashes.read(shard, ids)
            server.freeze()
            try:
                began = asyncio.get_running_loop().time()
                outcomes = await asyncio.gather(*(hashes.read(shard, ids) for _ in range(5)), return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
                assert asyncio.get_running_loop().time() - began < TIMEOUT + SLACK
            finally:
                server.thaw()
            for number, session_id in enumerate(ids):
                assert agents(await hashes.read(shard, [session_id])) == [str(number)]
