"""Learning of the end before the server waits for it: on SIGTERM uvicorn waits for open answers first, and only then
ends the lifespan; streams of events never end by themselves."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["told_to_stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def told_to_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Calls back, in the event loop, when a signal tells the server to stop; the server's own handler is called too.

    In each worker process alike: its server has put its handlers in place before it starts the application. Without
    such handlers, or outside of the main thread, it does nothing.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        before[signal.Signals(number)](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
