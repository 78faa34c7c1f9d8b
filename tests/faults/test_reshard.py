"""A reshard, and its Redis, killed in the middle: the next run finishes it."""

from __future__ import annotations

from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.audit import audit
from tests.faults import resharder
from tests.faults.guillotine import MOMENTS, Moment
from tests.faults.nursery import PATIENCE_SECONDS, kill_around, nursery_with
from tests.patience import until
from tests.redis_server import RedisServer, running_redis
from tests.store.wire import a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.reshard import reshard
from tracker.store.scripts import together
from tracker.store.store import Store, open_store

SESSIONS = 250
SHARDS = 4
STEPS = ("lay_out", "locate", "export", "import", "forward", "depart")

pytestmark = pytest.mark.parametrize("backend", ["redis"])


@pytest.fixture(scope="module")
def nursery() -> ForkServerContext:
    return nursery_with(resharder)


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
    more = Settings(**{**dict(iter(settings)), "shards": SHARDS})
    await kill_around(store, more, redis_server, nursery, script, 2, moment, resharder.run)
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
