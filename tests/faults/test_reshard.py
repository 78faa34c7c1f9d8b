"""A reshard, and its Redis, killed in the middle: the next run finishes it."""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.audit import audit
from tests.faults import resharder
from tests.faults.guillotine import MOMENTS, Moment, running_guillotine
from tests.patience import until
from tests.redis_server import RedisServer, running_redis
from tests.store.wire import a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.reshard import reshard
from tracker.store.scripts import NAMES, together
from tracker.store.store import Store, open_store

SESSIONS = 250
SHARDS = 4
PATIENCE_SECONDS = 60
STEPS = ("lay_out", "locate", "export", "import", "forward", "depart")

pytestmark = pytest.mark.parametrize("backend", ["redis"])


@pytest.fixture(scope="module")
def nursery() -> ForkServerContext:
    """Starts processes fast, from one that has imported everything and has no threads or loops of ours in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([resharder.__name__])
    return context


async def fill(store: Store) -> list[str]:
    """The ids of sessions with a task, with an Idempotency-Key, and with neither."""
    made = await together(
        store.sessions.create(a_run(f"t{number}" if number % 3 else None), f"k{number}" if number % 2 else None)
        for number in range(SESSIONS)
    )
    return [one.session["id"] for one in made]


async def check(settings: Settings, ids: list[str]) -> None:
    async with open_store(settings) as pod:
        assert await audit(pod) == SESSIONS
        for session_id in ids:
            assert await pod.sessions.heartbeat(Target.id(session_id))
        for number in range(1, SESSIONS, 2):
            created = await pod.sessions.create(a_run(f"t{number}" if number % 3 else None), f"k{number}")
            assert (created.outcome, created.session["id"]) == ("repeated", ids[number])


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("script", STEPS)
async def test_a_reshard_killed_around_a_script_is_finished_by_the_next(
    store: Store,
    settings: Settings,
    redis_server: RedisServer,
    nursery: ForkServerContext,
    script: str,
    moment: Moment,
) -> None:
    ids = await fill(store)
    shard = store.scripts.shards[0]
    for name in NAMES:  # or the first call would be one that runs nothing
        await store.scripts.command("SCRIPT", "LOAD", store.scripts.by_source(name, shard, ())[1])
    digest = str(store.scripts.by_digest(script, shard, ())[1]).encode()
    more = Settings(**{**dict(iter(settings)), "shards": SHARDS})
    async with running_guillotine(redis_server.port, digest, 2, moment, lambda: process.kill()) as guillotine:
        through = Settings(**{**dict(iter(more)), "store_url": guillotine.url})
        process = nursery.Process(target=resharder.run, args=(through,), daemon=True)
        process.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await guillotine.fallen.wait()
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
        assert process.exitcode == -9
    async with open_store(more) as pod:
        await reshard(pod.scripts)
    await check(more, ids)


async def test_redis_killed_in_the_middle_comes_back_from_its_file_and_another_run_finishes(
    tmp_path: Path, namespace: str, backend: str
) -> None:
    """Four times: the file has a prefix of all steps, and none of them needs a later one."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(tmp_path, *options))
        settings = Settings(store_url=server.url, namespace=namespace, store_timeout_seconds=10)
        async with open_store(settings) as store:
            ids = await fill(store)
        more = Settings(**{**dict(iter(settings)), "shards": SHARDS})
        for script in ("import", "forward", "depart", "lay_out"):
            async with open_store(more) as pod:
                rearrange, seen = pod.scripts.rearrange, 0

                async def struck(name: str, *arguments: object) -> object:
                    nonlocal seen
                    reply = await rearrange(name, *arguments)  # type: ignore[arg-type]  # noqa: B023
                    seen += name == script  # noqa: B023
                    if seen == 2:
                        stack.close()
                    return reply

                pod.scripts.rearrange = struck  # type: ignore[method-assign, assignment]
                with pytest.raises(StoreUnavailable):
                    await reshard(pod.scripts)
            stack.enter_context(running_redis(tmp_path, *options, port=server.port))
        async with open_store(more) as pod:
            await until(lambda: is_done(pod), PATIENCE_SECONDS)
        await check(more, ids)


async def is_done(pod: Store) -> bool:
    try:
        await reshard(pod.scripts)
    except StoreUnavailable:
        return False  # it still reads its file
    return True
