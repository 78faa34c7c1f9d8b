"""`tracker reshard`: what it prints, and what it exits with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.audit import audit
from tests.cli.conftest import on_store
from tests.clockwork import outage
from tests.redis_server import RedisServer
from tests.store.wire import a_run
from tracker.cli.main import app
from tracker.store.store import Store

pytestmark = pytest.mark.usefixtures("environ")


def reshard(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reshard", *arguments])


async def filled(store: Store) -> None:
    for number in range(40):
        await store.sessions.create(a_run(f"t{number}"))


async def served(store: Store) -> None:
    await filled(store)
    await store.sweeper.pulse()


async def stopped(store: Store) -> None:
    await served(store)
    await outage(store, 60)


async def counted(store: Store) -> None:
    assert await audit(store) == 40


def test_a_store_gets_more_shards(redis_server: RedisServer, namespace: str, environ: dict[str, str]) -> None:
    on_store(redis_server, namespace, stopped)
    environ |= {"TRACKER_SHARDS": "1", "TRACKER_HOST": "0.0.0.0"}
    place = ("--store-url", redis_server.url, "--namespace", namespace)
    result = reshard("--to", "4", *place)
    assert (result.exit_code, result.stderr) == (0, "")
    first, *others = result.stdout.splitlines()
    assert first.startswith("Moved ")
    assert first.endswith(" of 40 sessions: 1 shards are 4 now.")
    assert others == ["All sessions agree with their indices.", "Start the servers with TRACKER_SHARDS=4."]
    on_store(redis_server, namespace, counted, shards=4)

    again = reshard("--to", "4", *place)
    assert again.exit_code == 0
    assert again.stdout.startswith("The store has 4 shards, and nothing is left to move.\n")


def test_what_disagrees_or_is_no_session_is_told(redis_server: RedisServer, namespace: str) -> None:
    async def damaged(store: Store) -> None:
        await stopped(store)
        shard = store.scripts.shards[0]
        await store.scripts.client.hset(f"{shard.prefix}session:\x1b[31m", "agent", "a1")

    on_store(redis_server, namespace, damaged)
    result = reshard("--to", "2", "--store-url", redis_server.url, "--namespace", namespace)
    assert result.exit_code == 1
    assert r"Left where it was, for it is no whole session: '{" in result.stdout
    assert "There are 1 disagreements with indices: see tracker doctor." in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("work", "to", "says"),
    [
        (served, "4", "tracker reshard: stop the pods first: one was there "),
        (stopped, "0", "tracker reshard: --to: must be "),
        (stopped, "4097", "tracker reshard: --to: must be "),
    ],
)
def test_what_it_refuses_it_refuses_in_a_line_and_exits_with_2(
    redis_server: RedisServer, namespace: str, work: Callable[[Store], Awaitable[Any]], to: str, says: str
) -> None:
    on_store(redis_server, namespace, work)
    result = reshard("--to", to, "--store-url", redis_server.url, "--namespace", namespace)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    on_store(redis_server, namespace, counted)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "tracker reshard: memory:// is inside the server's process"),
        (("--store-url", "http://x"), "tracker reshard: TRACKER_STORE_URL (--store-url): must begin with"),
        (
            ("--store-url", "redis://me:humble@127.0.0.1:1"),
            "tracker reshard: redis://***@127.0.0.1:1: the store cannot",
        ),
    ],
)
def test_where_it_cannot_begin_it_says_why(arguments: tuple[str, ...], says: str) -> None:
    result = reshard("--to", "4", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    assert "humble" not in result.stderr
