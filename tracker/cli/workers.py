"""Workers: the processes that share one port, and how they come, are replaced and go."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterable
from weakref import WeakSet

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

__all__ = ["STRAGGLER_SECONDS", "Workers"]

STRAGGLER_SECONDS = 2
"""How long a worker is waited for beyond the time that its requests get to finish: it has its store to close."""
LOOK_SECONDS = 0.1
"""Between two looks for signals while workers end."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 0.5, 30.0
"""Between two tries to replace workers whose heirs die before they serve; it doubles."""
STOPPING = frozenset({signal.SIGINT, signal.SIGTERM})

logger = logging.getLogger("tracker.serve")


class Workers(Multiprocess):
    """Replaces workers that die or hang, and on SIGHUP all of them. At the end it waits for none for ever.

    One that cannot start leaves those that serve alone; it is the end only where none serves: then ``failed`` is true.

    SIGTERM lets them drain; again, or SIGINT, lets them stop; a further SIGINT does not wait for them any more.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, drain_seconds: float = 0) -> None:
        super().__init__(config, sockets)
        self._drain_seconds = drain_seconds
        self._haste = 0
        self._leaving: list[tuple[Process, float]] = []
        """Workers that were replaced, each with the time when it must be gone."""
        self.failed = False
        """Whether they end because none can start, and not because they were told to."""
        self._served: WeakSet[Process] = WeakSet()
        self._rest = FIRST_REST_SECONDS
        self._next_start = 0.0

    def handle_int(self) -> None:
        self._haste += 1
        super().handle_int()

    def handle_term(self) -> None:
        if self.should_exit.is_set():
            self._haste = max(self._haste, 1)
        super().handle_term()

    def handle_ttou(self) -> None:
        if len(self.processes) < self.processes_num > 1:
            self.processes_num -= 1  # the one that is missing
        else:
            super().handle_ttou()

    def restart_all(self) -> None:
        """One after the other gets an heir; then it drains beside it, without a word to those who ask for readiness."""
        for index, worker in enumerate(self.processes):
            if not STOPPING.isdisjoint(self.signal_queue):
                return
            heir = Process(self.config, self.sockets)
            heir.start()
            if not heir.wait_until_ready(self.config.timeout_worker_healthcheck):
                logger.error("worker %s does not come up: worker %s and those after it stay", heir.pid, worker.pid)
                heir.kill()
                heir.join()
                return
            self.processes[index] = heir
            _send(signal.SIGHUP, [worker])
            self._leaving.append((worker, self._limit(self._drain_seconds)))

    def keep_subprocess_alive(self) -> None:
        """Replaces who died or hangs: at once who has served; later and later while heirs die before they serve."""
        if not self.should_exit.is_set():
            for worker in [worker for worker in self.processes if not self._lives(worker)]:
                self._bury(worker)
            if not self.should_exit.is_set() and time.monotonic() >= self._next_start:
                self._fill()
        for worker, limit in self._leaving:
            if time.monotonic() > limit:
                _kill(worker)
        self._leaving = [(worker, limit) for worker, limit in self._leaving if worker.process.is_alive()]

    def _lives(self, worker: Process) -> bool:
        patience = self.config.timeout_worker_healthcheck
        if not worker.is_alive(patience):
            return False
        if worker not in self._served and worker.is_ready(patience):
            self._served.add(worker)
            self._rest = FIRST_REST_SECONDS
        return True

    def _bury(self, worker: Process) -> None:
        worker.kill()  # it may only hang
        worker.join()
        self.processes.remove(worker)
        if worker in self._served:
            logger.warning("worker %s has died, with status %s", worker.pid, worker.exitcode)
            self._next_start = 0.0
            return
        logger.error("worker %s has died before it served, with status %s", worker.pid, worker.exitcode)
        self._next_start = time.monotonic() + self._rest
        self._rest = min(LONGEST_REST_SECONDS, 2 * self._rest)
        if worker.exitcode == STARTUP_FAILURE and self._served.isdisjoint(self.processes):
            logger.error("no worker serves, and none can start")
            self.failed = True
            self.should_exit.set()

    def _fill(self) -> None:
        while len(self.processes) < self.processes_num:
            heir = Process(self.config, self.sockets)
            heir.start()
            self.processes.append(heir)

    def terminate_all(self) -> None:
        for listener in self.sockets:
            listener.close()  # or new connections would wait in it for a worker that never comes
        super().terminate_all()
        _send(signal.SIGTERM, (worker for worker, _ in self._leaving))

    def join_all(self) -> None:
        limit, hurried = self._limit(self._drain_seconds), False
        while left := [worker for worker in self._everybody() if worker.process.is_alive()]:
            self.signal_queue[:] = [number for number in self.signal_queue if number in STOPPING]
            self.handle_signals()
            if self._haste and not hurried:
                limit, hurried = self._limit(0), True
                _send(signal.SIGINT, left)
            if self._haste > 1 or time.monotonic() > limit:
                for worker in left:
                    _kill(worker)
            left[0].process.join(LOOK_SECONDS)

    def _everybody(self) -> list[Process]:
        return [*self.processes, *(worker for worker, _ in self._leaving)]

    def _limit(self, seconds: float) -> float:
        return time.monotonic() + seconds + (self.config.timeout_graceful_shutdown or 0) + STRAGGLER_SECONDS


def _send(number: int, workers: Iterable[Process]) -> None:
    for worker in workers:
        if worker.pid is not None and worker.exitcode is None:
            os.kill(worker.pid, number)


def _kill(worker: Process) -> None:
    logger.error("worker %s does not stop and is killed", worker.pid)
    worker.process.kill()
    worker.process.join()
