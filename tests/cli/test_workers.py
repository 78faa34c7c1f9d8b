"""Workers that do not end when they should, or begin; what they do otherwise, real servers show in test_serve.py."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import SIGNALS

from tracker.cli import workers as room
from tracker.cli.workers import Workers

PATIENCE_SECONDS = 60


class Deaf:
    """A worker that hears no signal but SIGKILL, with what Workers want of a process; it ends after so many seconds."""

    def __init__(self, seconds: float = 600) -> None:
        ignore = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]"
        self._popen = subprocess.Popen(
            [sys.executable, "-c", f"{ignore}; print(flush=True); time.sleep({seconds})"], stdout=subprocess.PIPE
        )
        assert self._popen.stdout is not None
        with self._popen.stdout as said:
            said.readline()  # from now on it does not listen
        self.process: Any = self
        self.pid = self._popen.pid
        self.kill = self._popen.kill

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def join(self, seconds: float = PATIENCE_SECONDS) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Two that run and one that was replaced, all of them deaf; with no time to end."""
    monkeypatch.setattr(room, "STRAGGLER_SECONDS", 0.2)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    workers = Workers(
        uvicorn.Config("nowhere:app", workers=2, log_config=None, timeout_graceful_shutdown=0), [], drain_seconds=0
    )
    for number, handler in before.items():
        signal.signal(number, handler)
    workers.processes = [Deaf(), Deaf()]  # type: ignore[list-item]
    workers._leaving = [(Deaf(), 0.0)]  # type: ignore[list-item]
    everybody = workers._everybody()
    yield workers
    for worker in everybody:
        worker.process.kill()
        worker.process.join()


def codes(workers: Workers) -> list[int | None]:
    return [worker.exitcode for worker in workers._everybody()]


def test_one_that_hangs_does_not_keep_the_others_from_ending(workers: Workers) -> None:
    workers.join_all()
    assert codes(workers) == [-signal.SIGKILL] * 3


def test_one_that_drains_is_left_alone(workers: Workers) -> None:
    for deaf in workers._everybody():
        deaf.kill()
    workers._leaving = []
    workers.processes = [Deaf(0.5)]  # type: ignore[list-item]
    workers._drain_seconds = 600
    workers.join_all()
    assert codes(workers) == [0]


@pytest.mark.parametrize("told", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]])
def test_one_that_hangs_is_not_waited_for_when_told_so_again(workers: Workers, told: list[int]) -> None:
    """However much time it had: also what comes while they are waited for counts."""
    workers._drain_seconds = 3600
    workers.config.timeout_graceful_shutdown = 3600
    workers.signal_queue = told[:1]
    workers.handle_signals()
    workers.signal_queue = [signal.SIGWINCH, signal.SIGTTIN, *told[1:]]
    workers.join_all()
    assert codes(workers) == [-signal.SIGKILL] * 3


def test_one_that_was_replaced_and_hangs_is_killed_when_its_time_is_over(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_lives", lambda worker: True)
    workers.keep_subprocess_alive()
    assert workers._leaving == []
    assert codes(workers) == [None, None]


# Those that do not begin


class Puppet:
    """A worker that does what the test says, with what Workers want of a process."""

    numbers = itertools.count(1)

    def __init__(self, *config: object) -> None:
        self.pid = next(self.numbers)
        self.serves = False
        self.exitcode: int | None = None

    def die(self, code: int) -> None:
        self.exitcode = code

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def join(self) -> None: ...

    def is_alive(self, seconds: float) -> bool:
        return self.exitcode is None

    def is_ready(self, seconds: float) -> bool:
        return self.serves


class Pool:
    """Two workers that serve, and a clock."""

    def __init__(self, workers: Workers) -> None:
        self.now = time.monotonic()
        self.workers = workers
        self.workers._leaving = []
        self.first, self.second = Puppet(), Puppet()
        self.first.serves = self.second.serves = True
        self.workers.processes = [self.first, self.second]  # type: ignore[list-item]
        self.look()

    @property
    def puppets(self) -> list[Puppet]:
        return self.workers.processes  # type: ignore[return-value]

    def look(self) -> None:
        self.workers.keep_subprocess_alive()

    def until_replaced(self) -> float:
        """Looks until there are two again; the seconds that it took."""
        began = self.now
        while len(self.puppets) < 2:
            self.now += 0.01
            self.look()
        return self.now - began


@pytest.fixture
def pool(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(room, "Process", Puppet)
    pool = Pool(workers)
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: pool.now))
    return pool


def test_one_that_has_served_is_replaced_at_once(pool: Pool) -> None:
    pool.first.die(-signal.SIGKILL)
    pool.look()
    assert pool.puppets[0] is pool.second
    assert len(pool.puppets) == 2


@pytest.mark.parametrize("code", [STARTUP_FAILURE, 1, -signal.SIGSEGV])
def test_heirs_that_do_not_begin_come_later_and_later_and_the_others_stay(pool: Pool, code: int) -> None:
    pool.first.die(-signal.SIGKILL)
    pool.look()
    rests = []
    for _ in range(12):
        pool.puppets[1].die(code)
        pool.look()
        assert pool.puppets == [pool.second]
        rests.append(pool.until_replaced())
    assert rests == sorted(rests)
    assert rests[0] < 1
    assert rests[-1] == pytest.approx(room.LONGEST_REST_SECONDS, abs=0.1)
    assert not pool.workers.should_exit.is_set()


def test_one_that_begins_ends_the_waiting(pool: Pool) -> None:
    pool.first.die(-signal.SIGKILL)
    pool.look()
    for _ in range(6):
        pool.puppets[1].die(STARTUP_FAILURE)
        pool.look()
        pool.until_replaced()
    pool.puppets[1].serves = True
    pool.look()
    pool.second.die(-signal.SIGKILL)
    pool.look()
    pool.puppets[1].die(STARTUP_FAILURE)
    pool.look()
    assert pool.until_replaced() < 1


def test_when_none_serves_and_none_can_begin_all_is_over_and_has_failed(pool: Pool) -> None:
    for puppet in (pool.first, pool.second):
        puppet.die(-signal.SIGKILL)
    pool.look()
    assert not pool.workers.should_exit.is_set()
    pool.puppets[0].die(STARTUP_FAILURE)
    pool.look()
    assert pool.workers.should_exit.is_set()
    assert pool.workers.failed


def test_the_last_one_that_serves_is_replaced_at_once_whatever_came_before(pool: Pool) -> None:
    pool.first.die(-signal.SIGKILL)
    pool.look()
    for _ in range(6):
        pool.puppets[1].die(1)
        pool.look()
        pool.until_replaced()
    pool.puppets[1].die(1)
    pool.look()
    pool.second.die(-signal.SIGKILL)
    pool.look()
    assert len(pool.puppets) == 2


def test_who_is_told_to_have_one_less_leaves_those_that_serve_when_one_is_missing(pool: Pool) -> None:
    pool.first.die(-signal.SIGKILL)
    pool.look()
    pool.puppets[1].die(STARTUP_FAILURE)
    pool.look()
    pool.workers.handle_ttou()
    pool.now += 600
    pool.look()
    assert pool.puppets == [pool.second]
