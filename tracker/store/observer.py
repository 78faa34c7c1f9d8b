"""Observer: what the store tells those who watch it. Numbers and traces are made of it elsewhere, by libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, Literal

from tracker.errors import StoreError

__all__ = ["Observer", "Slip", "Trace"]

Slip = Literal["reset", "lagged", "refused"]

Trace = Callable[[str], AbstractContextManager[object]]
"""Takes the name of a call; what it gives is held around one caller's wait for it, in that caller's context."""


class Observer:
    """Is told of each call to the store as it ends. This one listens to nothing.

    Calls go by the name of their script, or what else they are. They are told of on the hot path, so whoever listens
    must be quick, and raise nothing.
    """

    trace: Trace | None = None
    """None where nobody traces."""

    def landed(self, call: str, seconds: float, size: int, outcome: list[list[Any]] | StoreError) -> None:
        """A batch of ``size`` operations is back, with their replies or with why there are none."""

    def ran(self, call: str, seconds: float, error: StoreError | None) -> None:
        """A call that goes alone is back."""

    def failed(self, error: StoreError) -> None:
        """One operation of a batch was refused for itself."""

    def missed(self, call: str) -> None:
        """An operation was answered without the store: no session can have that id."""

    def swept(self, ended: int) -> None:
        """A shard was swept, and so many sessions of it were ended."""

    def followed(self, readers: int) -> None:
        """So many readers follow the change feed now."""

    def slipped(self, how: Slip) -> None:
        """A reader of the change feed: ``reset``, for its place is gone; ``lagged``, so that it catches up by pages; or
        ``refused``, as there are too many.
        """

    @contextmanager
    def watching(self, call: str) -> Iterator[None]:
        """Around a call that goes alone, where the driver's errors are ours already."""
        begin, failure = perf_counter(), None
        try:
            if self.trace is None:
                yield
            else:
                with self.trace(call):
                    yield
        except StoreError as error:
            failure = error
            raise
        finally:
            self.ran(call, perf_counter() - begin, failure)
