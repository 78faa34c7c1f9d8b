"""A tracked run against the real server, by a thread and by a task: begun, kept alive, lost, and ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client.conftest import Answer, Door, Driver, OpenClient, in_process, opening, threads
from tests.patience import until
from tracker.client import Conflict, Invalid, Lost, NotFound, Unauthorized
from tracker.client.lease import Errand
from tracker.settings import Settings

BUSY: Answer = (503, {}, json.dumps({"error": "busy"}).encode())


@pytest.fixture
def mode(backend: str) -> str:
    """Every call is tried in all four ways in test_contract.py; what takes its time is tried in two."""
    return {"memory": "sync", "redis": "async", "cluster": "sync"}[backend]


@pytest.fixture
async def open_client(settings: Settings, door: Door, mode: str) -> AsyncIterator[OpenClient]:
    """Clients of an application in this process."""
    async with in_process(settings, door, mode) as transport, opening(mode, transport=transport) as opened:
        yield opened


@pytest.fixture
def url() -> str:
    return "http://tracker"


async def read(driver: Driver, session_id: str | None) -> Any:
    return (await driver.call("read_session", session_id))["session"]


async def listed(driver: Driver) -> Any:
    return (await driver.call("list_sessions"))["sessions"]


async def ended(driver: Driver) -> list[tuple[str, str]]:
    page = await driver.call("list_events", type="session.ended")
    return [(event["session"]["taskId"], event["reason"]) for event in page["events"]]


async def test_a_run_is_registered_for_as_long_as_it_is_worked_on(driver: Driver) -> None:
    async with driver.track(task_id="t1", ttl_seconds=600, metadata={"k": "v"}) as run:
        assert run.session == await read(driver, run.session_id)
        assert (run.session["taskId"], run.session["ttlSeconds"], run.session["metadata"]) == ("t1", 600, {"k": "v"})
        assert (run.lost, run.stop_requested) == (None, False)
    assert await ended(driver) == [("t1", "deleted")]


async def test_a_run_that_fails_is_ended_and_its_exception_goes_on(driver: Driver) -> None:
    with pytest.raises(ZeroDivisionError):
        async with driver.track(task_id="t1"):
            raise ZeroDivisionError
    assert await ended(driver) == [("t1", "deleted")]


async def test_a_run_outlives_its_ttl_by_heartbeats(driver: Driver, door: Door) -> None:
    async with driver.track(task_id="t1", ttl_seconds=1.5) as run:

        async def renewed() -> bool:
            return door.count("PUT", "/heartbeat") >= 4

        await until(renewed)
        assert run.lost is None
        assert (await read(driver, run.session_id))["taskId"] == "t1"


async def test_what_the_work_tells_arrives(driver: Driver) -> None:
    async with driver.track(task_id="t1") as run:
        assert await run.set_provider_session("p-123")
        assert (await read(driver, run.session_id))["providerSessionId"] == "p-123"
        run.progress("3 of 7")

        async def told() -> bool:
            return bool((await read(driver, run.session_id))["progress"] == "3 of 7")

        await until(told)
        run.progress("done")
    last = (await driver.call("list_events", type="session.ended"))["events"][-1]["session"]
    assert (last["progress"], last["providerSessionId"]) == ("done", "p-123")


@pytest.mark.parametrize("runs", [1, 3])
async def test_runs_learn_that_they_are_asked_to_stop(driver: Driver, runs: int) -> None:
    """From a heartbeat of their own, and from one that they share."""
    entered = [await driver.enter(task_id=f"t{number}", ttl_seconds=1.5) for number in range(runs)]
    await driver.call("request_stop", entered[0].session_id)

    async def stopping() -> bool:
        return bool(entered[0].stop_requested)

    await until(stopping)
    assert not any(run.stop_requested for run in entered[1:])


async def test_two_hundred_runs_share_their_heartbeats(driver: Driver, door: Door) -> None:
    entered = [await driver.enter(task_id=f"t{number}", ttl_seconds=6) for number in range(200)]
    door.asked.clear()

    async def beaten() -> bool:
        return door.count("PUT", "/active-sessions/heartbeat") >= 2

    await until(beaten)
    assert len(door.asked) < 10, "200 runs, each beaten"
    assert not any(run.lost for run in entered)
    assert (await driver.call("stats"))["sessions"] == 200
    await driver.close(20)
    assert threads() == []


async def test_what_the_tracker_refuses_is_raised_at_the_start(driver: Driver) -> None:
    await driver.call("create_session", agent_id="other", trigger_type="t", task_id="t1")
    with pytest.raises(Conflict):
        async with driver.track(task_id="t1"):
            pytest.fail("it has no session")
    with pytest.raises(Invalid):
        async with driver.track(ttl_seconds=-1):
            pytest.fail("it has no session")
    assert threads() == []


@pytest.mark.settings(api_keys=["k"])
async def test_a_wrong_key_is_raised_at_the_start(open_client: OpenClient, url: str) -> None:
    with pytest.raises(Unauthorized):
        async with open_client(url, api_key="wrong").track():
            pytest.fail("it has no session")


async def test_a_provider_session_that_is_none_is_raised_to_who_tells_it(driver: Driver) -> None:
    async with driver.track(task_id="t1") as run:
        with pytest.raises(Invalid):
            await run.set_provider_session("")
        assert await run.set_provider_session("p")


async def test_work_begins_without_the_server_which_learns_of_it_later(driver: Driver, door: Door) -> None:
    door.spares_reading, door.answers = True, [BUSY] * 3
    async with driver.track(task_id="t1", patience=1) as run:
        assert run.session is None
        assert not await run.set_provider_session("p")
        run.progress("alone")

        async def told() -> bool:
            return any(found["progress"] == "alone" for found in await listed(driver))

        await until(told)
        assert (await read(driver, run.session_id))["providerSessionId"] == "p"
        assert run.lost is None
    assert await ended(driver) == [("t1", "deleted")]


async def test_an_end_that_the_server_does_not_take_is_told_later(driver: Driver, door: Door) -> None:
    async with driver.track(task_id="t1", patience=1):
        door.spares_reading, door.answers = True, [BUSY] * 3

    async def over() -> bool:
        return await ended(driver) == [("t1", "deleted")]

    await until(over)


async def test_a_lost_registration_that_was_made_is_not_made_twice(driver: Driver, door: Door) -> None:
    door.spares_reading, door.lost = True, 3
    async with driver.track(task_id="t1", patience=1) as run:

        async def registered() -> bool:
            return run.session is not None

        await until(registered)
        assert [found["id"] for found in await listed(driver)] == [run.session_id]
    assert (await driver.call("stats"))["created"] == 1


class CutShort(BaseException):
    """As the KeyboardInterrupt or SystemExit of a signal, or a cancellation."""


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("moment", ["sent", "answered", "taken in"])
async def test_a_run_that_is_cut_short_while_it_begins_is_ended(driver: Driver, mode: str, moment: str) -> None:
    """Its registration has arrived, whether or not it has heard of that."""
    patch = pytest.MonkeyPatch()
    beater = driver.client._beater
    send, answered = beater._send, beater.heartbeats.answered

    def sent(call: Any, timeout: float) -> None:
        patch.undo()
        send(call, timeout)
        raise CutShort

    async def sent_later(call: Any, timeout: float) -> None:  # noqa: ASYNC109 - as the client's own
        patch.undo()
        await send(call, timeout)
        raise CutShort

    def take_in(errand: Errand, answer: Any, sent_at: float) -> None:
        patch.undo()
        if moment == "taken in":
            answered(errand, answer, sent_at)
        raise CutShort

    if moment == "sent":
        patch.setattr(beater, "_send", sent if mode == "sync" else sent_later)
    else:
        patch.setattr(beater.heartbeats, "answered", take_in)
    with pytest.raises(CutShort):
        async with driver.track(task_id="t1", ttl_seconds=600):
            pytest.fail("it has begun")

    async def over() -> bool:
        return await ended(driver) == [("t1", "deleted")]

    await until(over)
    assert (await driver.call("stats"))["created"] == 1


async def test_a_run_that_was_replaced_is_told_by_whom_and_leaves_the_other_alone(driver: Driver) -> None:
    lost: list[Lost] = []
    async with driver.track(task_id="t1", ttl_seconds=1.5, on_lost=lost.append, reregister=True) as run:
        mine = run.session_id
        other = (
            await driver.call(
                "create_session", agent_id="b", trigger_type="t", task_id="t1", on_conflict="replace", ttl_seconds=600
            )
        )["session"]

        async def told() -> bool:
            return bool(lost)

        await until(told)
        assert run.lost == lost[0]
        assert (lost[0].reason, lost[0].session_id) == ("replaced", mine)
        assert lost[0].session is not None
        assert lost[0].session["id"] == other["id"]
        assert not await run.set_provider_session("p"), "it is the other's task now"
    assert await read(driver, other["id"]) == other
    assert len(lost) == 1


async def test_a_run_that_was_ended_registers_anew_by_choice(driver: Driver) -> None:
    lost: list[Lost] = []
    async with driver.track(task_id="t1", ttl_seconds=1.5, on_lost=lost.append, reregister=True) as run:
        await run.set_provider_session("p")
        mine = run.session_id
        await driver.call("cleanup", agent_id="a")

        async def again() -> bool:
            try:
                return bool((await driver.call("read_by_task", "t1"))["session"]["providerSessionId"] == "p")
            except NotFound:
                return False

        await until(again)
        assert run.session_id != mine
        assert run.lost is None
        assert [one.reason for one in lost] == ["ended"]
    assert await ended(driver) == [("t1", "cleaned"), ("t1", "deleted")]


async def test_a_run_that_hangs_is_found_out(driver: Driver, door: Door) -> None:
    """Its process lives, its heartbeats do not: when it wakes, more than a TTL later, it finds itself expired."""
    lost: list[Lost] = []
    async with driver.track(task_id="t1", ttl_seconds=1, max_silence=0.5, on_lost=lost.append) as run:

        async def gone() -> bool:
            return not await listed(driver)

        await until(gone)
        run.progress("awake")

        async def told() -> bool:
            return bool(lost)

        await until(told)
        assert lost == [Lost("expired", run.session_id)]
    await driver.call("cleanup")
    assert await ended(driver) == [("t1", "expired")]


async def test_a_client_that_closes_ends_what_is_open_and_leaves_no_thread(
    driver: Driver, open_client: OpenClient, url: str
) -> None:
    for number in range(3):
        await driver.enter(task_id=f"t{number}")
    assert len(await listed(driver)) == 3
    await driver.close(20)
    assert await listed(open_client(url)) == []
    assert threads() == []
    assert [task for task in asyncio.all_tasks() if task.get_name() == "tracker-heartbeats"] == []


async def test_the_background_is_there_only_while_a_run_is(driver: Driver) -> None:
    for _ in range(2):
        async with driver.track():
            pass

        async def quiet() -> bool:
            tasks = [task for task in asyncio.all_tasks() if task.get_name() == "tracker-heartbeats"]
            return not threads() and not tasks

        await until(quiet)


@pytest.mark.parametrize("backend", ["memory"])
async def test_a_callback_that_blocks_keeps_nobody_from_heartbeats(driver: Driver, door: Door) -> None:
    """In the threaded client: one that blocks the event loop blocks all that runs on it."""
    blocked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def block(lost: Lost) -> None:
        asyncio.run_coroutine_threadsafe(blocked.wait(), loop).result()

    async with driver.track(ttl_seconds=1.5, on_lost=block) as one, driver.track(task_id="t2", ttl_seconds=1.5) as two:
        await driver.call("delete_session", one.session_id)

        async def lost() -> bool:
            return one.lost is not None

        await until(lost)
        door.asked.clear()

        async def beaten() -> bool:
            return door.count("PUT", f"/{two.session_id}/heartbeat") >= 2

        await until(beaten)
        blocked.set()
