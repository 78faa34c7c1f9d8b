"""Workers that do not end when they should; what they do otherwise, real servers show in test_serve.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
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
    workers = Workers(uvicorn.Config("nowhere:app", workers=2, timeout_graceful_shutdown=0), [], drain_seconds=0)
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
    monkeypatch.setattr(uvicorn.supervisors.Multiprocess, "keep_subprocess_alive", lambda self: None)
    workers.keep_subprocess_alive()
    assert workers._leaving == []
    assert codes(workers) == [None, None]
