"""Drain: how a server leaves without losing a request.

Only an answer that says so ends a connection well: one that is closed while idle may take a request along that is on
its way (https://www.rfc-editor.org/rfc/rfc9112#section-9.6). And a proxy, or Kubernetes, must learn that it should send
nobody here any more. Both take time. So the server's own handler is called only after the drain; from then on uvicorn
takes nobody in and waits for open answers, of which streams of events never end by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Drain"]

logger = logging.getLogger("tracker.api")

Handler = Callable[[int, FrameType | None], object]


class Drain:
    """``closing``: each answer ends its connection. ``unready``: nobody should be sent here any more.

    SIGTERM begins it, for so many seconds; again, or SIGINT, is the end at once. A ``worker`` is one of several at one
    address: SIGHUP lets it leave too, but as the others stay the address is as ready as before; and as a signal to the
    whole group reaches it twice, by its parent as well, no signal means more when it is repeated.
    """

    def __init__(self, seconds: float, *, worker: bool = False) -> None:
        self.closing = False
        self.unready = False
        self._seconds = seconds
        self._worker = worker
        self._over = False

    @contextmanager
    def on_signals(self, end: Callable[[], None]) -> Iterator[None]:
        """Meanwhile signals are heeded. ``end`` is called, in the event loop, just before the server's own handler.

        In each worker process alike: its server has put its handlers in place before it starts the application. Without
        such handlers, or outside of the main thread, it does nothing.
        """
        loop = asyncio.get_running_loop()
        before: dict[int, Handler] = {}
        timer: asyncio.TimerHandle | None = None

        def handle(number: int, frame: FrameType | None) -> None:
            first, self.closing = not self.closing, True
            self.unready = self.unready or number != signal.SIGHUP
            if first and number != signal.SIGINT and self._seconds:
                loop.call_soon_threadsafe(wait)
            elif not self._worker or (not self._over and (first or number == signal.SIGINT)):
                finish(number, frame)

        def wait() -> None:
            nonlocal timer
            logger.info("draining for %g s: still serving, but not ready for more", self._seconds)
            timer = loop.call_later(self._seconds, waited)

        def waited() -> None:
            if not self._over:
                finish(signal.SIGTERM, None)

        def finish(number: int, frame: FrameType | None) -> None:
            self._over = True
            loop.call_soon_threadsafe(end)
            before[number](number, frame)

        def leave(number: int, frame: FrameType | None) -> None:
            before[signal.SIGTERM](signal.SIGTERM, frame)

        if threading.current_thread() is threading.main_thread():
            for told in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(told)
                if callable(handler):
                    before[told] = handler
            if self._worker and signal.SIGTERM in before:
                before[signal.SIGHUP] = leave
            for number in before:
                signal.signal(number, handle)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            for number, handler in before.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)
