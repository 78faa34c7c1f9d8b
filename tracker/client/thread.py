"""Beater: the thread that carries out the errands of `Heartbeats`."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from tracker.client.calls import Call
from tracker.client.errors import TrackerClientError, Unavailable, UnexpectedAnswer
from tracker.client.heartbeats import Heartbeats, Loss
from tracker.client.lease import Errand, Lease

__all__ = ["Beater"]

logger = logging.getLogger("tracker.client")


class Beater:
    """Heartbeats in the background. The thread is there while a lease is, and keeps no interpreter alive.

    ``send`` does a call once, within so many seconds. In a forked child no lease is left: they are the parent's.
    """

    def __init__(
        self, send: Callable[[Call[Any], float], Any], timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._timeout = timeout
        self._clock = clock
        self._reset()
        _EVERY.add(self)

    def _reset(self) -> None:
        self.heartbeats = Heartbeats(self._timeout)
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._untold: deque[Loss] = deque()
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """In a forked child: whatever state the parent's thread was in, none of it is ours."""
        self.heartbeats.abandon()
        self._reset()

    def add(self, lease: Lease) -> None:
        """Keep it alive from now on. Raises RuntimeError when no thread can be had."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._beat, name="tracker-heartbeats", daemon=True)
                thread.start()
                self._thread = thread
            self.heartbeats.add(lease)
            self._changed.notify_all()

    def drop(self, lease: Lease) -> None:
        """Ends one that is not kept alive, for its owner was cut short: in the background, or here if there is none."""
        with self._changed:
            lease.cut_short()
        try:
            self.add(lease)
        except RuntimeError:
            self.settle(lease, self._timeout, until=lambda: lease.over)

    def wake(self) -> None:
        """There may be something to tell."""
        with self._changed:
            self._changed.notify_all()

    def close(self, patience: float) -> None:
        """Ends every lease, waits as long as that (seconds) for all to be told, and then tells nothing more."""
        with self._changed:
            self.heartbeats.close(self._clock())
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.heartbeats, patience)
            self.heartbeats.abandon()
            self._changed.notify_all()

    def settle(self, lease: Lease, seconds: float, *, until: Callable[[], bool]) -> TrackerClientError | None:
        """Carries out a lease's errands here and now, until there is no need or the time is up.

        The first failure is returned, and ends it. Waits for an errand of the lease's that is under way elsewhere.
        """
        deadline = self._clock() + seconds
        while (left := deadline - self._clock()) > 0:
            with self._changed:
                if until():
                    return None
                errand = lease.errand(self._clock())
                if errand is None:
                    if not lease.busy:
                        return None
                    self._changed.wait(left)
                    continue
            if error := self._carry_out(errand, min(left, self._timeout)):
                return error
        return None

    def _beat(self) -> None:
        while True:
            with self._changed:
                step = self.heartbeats.next(self._clock())
                if not self.heartbeats:
                    self._thread = None
                    self._changed.notify_all()
                    return
                if not isinstance(step, Errand):
                    self._changed.wait(step)
                    continue
                timeout = self.heartbeats.timeout
            self._carry_out(step, timeout)

    def _carry_out(self, errand: Errand, timeout: float) -> TrackerClientError | None:
        try:
            failure, losses = self._attempt(errand, timeout)
        except BaseException:  # of a signal, wherever it came: it may or may not have arrived, and been taken in
            with self._changed:
                errand.failed(Unavailable("The call was cut short"), self._clock())
                self._changed.notify_all()
            raise
        with self.lock:
            self._untold += losses
            self._tell()
        return failure

    def _attempt(self, errand: Errand, timeout: float) -> tuple[TrackerClientError | None, list[Loss]]:
        sent_at = self._clock()
        failure: TrackerClientError | None = None
        answer: Any = None
        try:
            answer = self._send(errand.call, timeout)
        except TrackerClientError as error:
            failure = error
        except Exception as error:
            # Nobody's plan, a client that was closed maybe: for the runs it is one more reason to try again.
            failure = UnexpectedAnswer(f"The call could not be sent: {error!r}")
        with self._changed:
            if failure is None:
                losses = self.heartbeats.answered(errand, answer, sent_at)
            else:
                losses = self.heartbeats.failed(errand, failure, self._clock())
            self._changed.notify_all()
        return failure, losses

    def _tell(self) -> None:
        """Each loss in a thread of its own: what others do with it must not keep heartbeats waiting. With the lock."""
        while self._untold:
            callback, lost = self._untold[0]
            try:
                threading.Thread(target=callback, args=(lost,), name="tracker-on-lost", daemon=True).start()
            except RuntimeError as error:  # after the next errand, then
                logger.error("a loss is told later: %s", error)
                return
            self._untold.popleft()


_EVERY: weakref.WeakSet[Beater] = weakref.WeakSet()


def _forget_the_parents() -> None:
    for beater in list(_EVERY):
        beater.forget()


os.register_at_fork(after_in_child=_forget_the_parents)
