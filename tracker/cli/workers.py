"""Workers: the processes that share one port, and how they come, are replaced and go."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterable

import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

__all__ = ["STRAGGLER_SECONDS", "Workers"]

STRAGGLER_SECONDS = 2
"""How long a worker is waited for beyond the time that its requests get to finish: it has its store to close."""
LOOK_SECONDS = 0.1
"""Between two looks for signals while workers end."""
STOPPING = frozenset({signal.SIGINT, signal.SIGTERM})

logger = logging.getLogger("tracker.serve")


class Workers(Multiprocess):
    """Replaces workers that die or hang, and on SIGHUP all of them. At the end it waits for none for ever.

    SIGTERM lets them drain; again, or SIGINT, lets them stop; a further SIGINT does not wait for them any more.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, drain_seconds: float = 0) -> None:
        super().__init__(config, sockets)
        self._drain_seconds = drain_seconds
        self._haste = 0
        self._leaving: list[tuple[Process, float]] = []
        """Workers that were replaced, each with the time when it must be gone."""

    def handle_int(self) -> None:
        self._haste += 1
        super().handle_int()

    def handle_term(self) -> None:
        if self.should_exit.is_set():
            self._haste = max(self._haste, 1)
        super().handle_term()

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
        super().keep_subprocess_alive()
        for worker, limit in self._leaving:
            if time.monotonic() > limit:
                _kill(worker)
        self._leaving = [(worker, limit) for worker, limit in self._leaving if worker.process.is_alive()]

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
