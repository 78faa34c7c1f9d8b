"""The typed API as its users write it. mypy reads this page with the rest; running it shows that it is no fiction."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, assert_type

import pytest

from tests.api.conftest import listening
from tracker.client import AsyncTrackerClient, Conflict, Lost, Run, TrackerClient
from tracker.models import (
    Cleaned,
    Deleted,
    Event,
    EventPage,
    HeartbeatAnswer,
    HeartbeatBatchAnswer,
    OneSession,
    Ready,
    Session,
    Sessions,
    Stats,
    Updated,
)
from tracker.settings import Settings


def blocking(client: TrackerClient) -> None:
    assert_type(client.create_session(agent_id="a", trigger_type="t", metadata={"k": "v"}), OneSession)
    assert_type(client.list_sessions(agent_id="a", limit=5), Sessions)
    assert_type(client.walk_sessions(agent_id="a"), Iterator[Session])
    assert_type(client.read_session("s"), OneSession)
    assert_type(client.heartbeat("s", progress="1"), HeartbeatAnswer)
    assert_type(client.heartbeat_many(session_ids=["s"]), HeartbeatBatchAnswer)
    assert_type(client.set_provider_session("t", "p"), Updated)
    assert_type(client.delete_by_task("t", session_id="s"), Deleted)
    assert_type(client.cleanup(agent_id="a"), Cleaned)
    assert_type(client.stats(), Stats)
    assert_type(client.ready(), Ready)
    assert_type(client.list_events(type="session.ended"), EventPage)
    assert_type(client.events(type="session.ended"), Generator[Event, None, None])
    with client.track(agent_id="a", trigger_type="t", on_lost=lambda lost: print(lost.reason)) as run:  # noqa: T201
        assert_type(run, Run)
        assert_type(run.lost, Lost | None)
        assert_type(run.session_id, str | None)
        assert_type(run.set_provider_session("p"), bool)


def refused_by_the_type_checker(client: TrackerClient) -> None:
    """An ignore that is not needed is an error of mypy's: each line here must be refused."""
    client.create_session(agent_id="a")  # type: ignore[call-arg]
    client.create_session(agent_id="a", trigger_type="t", on_conflict="maybe")  # type: ignore[arg-type]
    client.list_events(type="session.moved")  # type: ignore[arg-type]
    client.track(agent_id=5, trigger_type="t")  # type: ignore[arg-type]
    client.heartbeat()  # type: ignore[call-arg]


def what_a_conflict_has(error: Conflict) -> None:
    assert_type(error.session["agentId"], str)


async def awaited(client: AsyncTrackerClient) -> None:
    assert_type(await client.create_session(agent_id="a", trigger_type="t"), OneSession)
    assert_type((await client.stats())["sessions"], int)
    assert_type(client.walk_sessions(), AsyncIterator[Session])
    assert_type(client.events(), AsyncGenerator[Event, None])
    async with client.track(agent_id="a", trigger_type="t", task_id="t1") as run:
        assert_type(await run.set_provider_session("p"), bool)


@pytest.mark.parametrize("kind", [TrackerClient, AsyncTrackerClient])
def test_help_and_editors_see_the_real_signatures(kind: Any) -> None:
    assert str(inspect.signature(kind.heartbeat)) == (
        "(self, /, session_id: 'str', *, progress: 'str | None' = None) -> 'HeartbeatAnswer'"
    )
    assert "Renew a live session" in kind.heartbeat.__doc__


@pytest.mark.parametrize("backend", ["memory"])
async def test_what_is_typed_runs(settings: Settings) -> None:
    async with listening(settings) as url, AsyncTrackerClient(url) as client:
        await awaited(client)
        assert (await client.stats())["created"] == 2
