"""The thread that beats: what becomes of runs while the system has no thread to give."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.patience import until
from tracker.client import Lost
from tracker.client.calls import BASE, Call
from tracker.client.errors import NotFound
from tracker.client.lease import Lease
from tracker.client.sync import Run
from tracker.client.thread import Beater


class Tracker:
    """Answers as one. A session's id is its task."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.beaten: list[str] = []

    def send(self, call: Call[Any], timeout: float) -> Any:
        session_id, _, what = call.path.removeprefix(f"{BASE}/").partition("/")
        if call.method == "POST":
            task = json.loads(call.body or b"{}")["taskId"]
            self.live.add(task)
            return {"session": {"id": task, "ttlSeconds": 0.3}}
        if call.method == "DELETE":
            self.live.discard(session_id)
            return {"deleted": True}
        if call.method == "GET":
            raise NotFound(what)
        if not what:
            together = json.loads(call.body or b"{}")["sessionIds"]
            self.beaten += together
            missing = [one for one in together if one not in self.live]
            return {"updated": len(together) - len(missing), "missing": {"taskIds": [], "sessionIds": missing}}
        self.beaten.append(session_id)
        return {"updated": session_id in self.live, "stopRequested": False}


class Threads:
    """The system's: ``none`` are left to those of this kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.none = ""
        start = threading.Thread.start

        def start_if_any(thread: threading.Thread) -> None:
            if thread.name == self.none:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_if_any)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


def a_run(beater: Beater, task: str, **options: Any) -> Run:
    return Run(Lease({"agent_id": "a", "trigger_type": "t", "task_id": task}, 0, **options), 2, beater)


async def test_a_run_that_cannot_be_kept_alive_is_ended_and_in_the_way_of_none(threads: Threads) -> None:
    tracker = Tracker()
    beater = Beater(tracker.send, 5)
    threads.none = "tracker-heartbeats"
    with pytest.raises(RuntimeError, match="thread"), a_run(beater, "one"):
        pytest.fail("it has begun")
    assert tracker.live == set()

    threads.none = ""
    with a_run(beater, "two"):

        async def beaten() -> bool:
            return tracker.beaten.count("two") > 2

        await until(beaten)
    assert tracker.live == set()


async def test_a_loss_that_cannot_be_told_is_told_later_and_heartbeats_go_on(threads: Threads) -> None:
    tracker = Tracker()
    beater = Beater(tracker.send, 5)
    lost: list[Lost] = []
    threads.none = "tracker-on-lost"
    with a_run(beater, "one", on_lost=lost.append) as one, a_run(beater, "two") as two:
        tracker.live.remove("one")

        async def gone() -> bool:
            return one.lost is not None

        await until(gone)
        tracker.beaten.clear()

        async def beaten() -> bool:
            return tracker.beaten.count("two") > 2

        await until(beaten)
        assert (lost, two.lost) == ([], None)
        threads.none = ""

        async def told() -> bool:
            return lost == [one.lost]

        await until(told)
